//! Sums over a matrix, column by column.
//!
//! A sum over a whole matrix adds row after row in eight lanes: one after the other, which suits one
//! processor with its eight lanes. A device with a thread for every column wants the columns' sums side
//! by side. [`by_columns`] says so in the loop IR, so that every reader of the program sums in this order:
//!
//! ```text
//! nest matrix [5,5]                            nest matrix [5,5]
//!   sum_all adjoint[0]+80 = %3 * %4      →       sum_pre scratch+96 = %3 * %4
//!                                              nest vector [5] "sum of columns"
//!                                                %0 = load post scratch+96
//!                                                sum_all adjoint[0]+80 = %0
//! ```
//!
//! Such sums are rounded otherwise than in the program for processors; everything else has the same bits.
//! Matrices are kept in one tile ([`WHOLE`]), hence as `[pre][post]` with the post axis padded to eight: a
//! column is a thread's, and neighbouring threads read neighbouring numbers. Costs time in proportion to
//! the program's length.

use super::body::{Body, BodyOp};
use super::{Access, Base, Effect, Extent, Nest, PARTIALS, Place, Program, Routine, padded, routines_mut};

/// The width of tiles for which every matrix is one tile.
pub const WHOLE: usize = 1 << 30;

/// The program with sums over matrices taken column by column, and with matrices in one tile each. The
/// columns' sums lie in scratch, behind the row sums.
#[must_use]
pub fn by_columns(program: &Program) -> Program {
    let mut program = Program { widest: WHOLE, ..program.clone() };
    let first = padded(program.scratch_len.max(PARTIALS));
    let mut end = first;
    for routine in routines_mut(&mut program) {
        let nests = std::mem::take(&mut routine.nests);
        *routine = Routine {
            nests: nests.into_iter().flat_map(|nest| split(nest, first, &mut end)).collect(),
            cut: None,
        };
    }
    program.scratch_len = end;
    program
}

/// The nest, and the nest that adds up its columns' sums if there are any.
fn split(mut nest: Nest, first: usize, end: &mut usize) -> Vec<Nest> {
    let (Extent::Matrix { post, .. } | Extent::Log { post, .. }) = nest.extent else { return vec![nest] };
    let mut sums = Nest {
        extent: Extent::Vector(post),
        body: Body::default(),
        effects: vec![],
        label: "sum of columns".to_owned(),
    };
    for effect in &mut nest.effects {
        if let Effect::SumAll(total, v, w) = *effect {
            let offset = first + sums.effects.len() * padded(post);
            let column = Place { base: Base::Scratch, offset };
            let id = sums.body.push(BodyOp::Load(Access::Post(column)));
            sums.effects.push(Effect::SumAll(total, id, None));
            *effect = Effect::SumPre(column, v, w);
        }
    }
    *end = (*end).max(first + sums.effects.len() * padded(post));
    if sums.effects.is_empty() { vec![nest] } else { vec![nest, sums] }
}
