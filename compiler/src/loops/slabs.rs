//! Sums cut into slabs of columns and stretches of rows.
//!
//! Several blocks of a device share the matrices of a row of the batch by columns, and the threads of a block
//! share the columns of its slab by stretches of pre neurons. What they sum they sum for themselves, and then the
//! parts are added. [`cut`] says in the loop IR in which order, so that every reader of the program sums so:
//!
//! ```text
//! nest matrix [70,5]                           nest matrix [70,5]
//!   sum_post adjoint[0]+80 = %3 * %4     →       sum_post scratch+96 = %3 * %4
//!                                              nest vector [5] "sum of slabs"
//!                                                %0 = load post scratch+96
//!                                                %1 = load post scratch+112
//!                                                %2 = add %0, %1
//!                                                %3 = load post scratch+104
//!                                                %4 = add %2, %3
//!                                                store post adjoint[0]+80 = %4
//! nest vector [9]                              nest vector [9]
//!   store post frame[0]+16 = %5          →       store post frame[0]+16 = %5
//!   sum_all frame[0]+32 = %5                   nest vector [9] "sum"
//!                                                %0 = load post frame[0]+16
//!                                                sum_all frame[0]+32 = %0
//! ```
//!
//! In a routine that is cut ([`Routine::cut`]) a sum over post has one result for each slab, `padded(pre)` elements
//! from one to the next. It adds by halves: column `c` and column `c + n/2` of a slab of `n`, then these likewise, down
//! to one; products are rounded, and columns behind the last count as zero. A sum over pre adds each stretch on
//! its own, down the column, and then the stretches in ascending order. The results of the slabs are added in the same
//! way by as many stretches as a block has: the first takes slab 0, and with `s` stretches slab `s`, slab `2s` and so on,
//! one after the other; then the stretches are added in ascending order. Sums over vectors stay what they are: they
//! only get a nest of their own, so that the rest of a nest need not wait for all columns.
//!
//! The program must have been through [`super::by_columns`]. Routines with a largest value of a whole matrix cannot be
//! cut. Costs time in proportion to the program's length and the number of slabs.

use super::body::{Body, BodyOp, Id};
use super::{Access, Base, Effect, Extent, NAMES, Nest, Place, Program, Routine, padded, routines_mut};

/// How the sums of a routine are cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Cut {
    /// Columns of a slab: a power of two, at least [`super::LANES`].
    pub columns: usize,
    /// Stretches of the pre axis, at most.
    pub stretches: usize,
}

/// The pre neurons of a stretch are a multiple of this, so that several can be taken at a time.
pub const BUNDLE: usize = 8;

impl Cut {
    /// Slabs of a post axis.
    pub fn slabs(self, post: usize) -> usize {
        post.div_ceil(self.columns).max(1)
    }

    /// Pre neurons of a stretch; the last one may have fewer.
    pub fn rows(self, pre: usize) -> usize {
        pre.div_ceil(self.stretches).next_multiple_of(BUNDLE).max(BUNDLE)
    }

    /// Stretches that have pre neurons.
    pub fn used(self, pre: usize) -> usize {
        pre.div_ceil(self.rows(pre)).max(1)
    }
}

/// Whether a routine can be cut.
pub fn can_be_cut(routine: &Routine) -> bool {
    let is_matrix = |n: &&Nest| matches!(n.extent, Extent::Matrix { .. } | Extent::Log { .. });
    let whole = |e: &Effect| matches!(e, Effect::SumAll(..) | Effect::MaxAll(..));
    !routine.nests.iter().filter(is_matrix).flat_map(|n| &n.effects).any(whole)
}

/// The program with those routines cut for which there is a cut, by [`NAMES`]. What they sum in parts lies in
/// scratch, behind all else.
///
/// # Panics
/// If one of them cannot be cut.
#[must_use]
pub fn cut(program: &Program, cuts: &[Option<Cut>; NAMES.len()]) -> Program {
    let mut program = program.clone();
    let first = padded(program.scratch_len);
    let mut end = program.scratch_len;
    for (routine, cut) in routines_mut(&mut program).into_iter().zip(cuts) {
        let Some(cut) = *cut else { continue };
        assert!(can_be_cut(routine), "a largest value of a whole matrix is one");
        let mut parts = Parts { cut, next: first };
        let nests = std::mem::take(&mut routine.nests);
        *routine =
            Routine { nests: nests.into_iter().flat_map(|n| parts.split(n)).collect(), cut: Some(cut) };
        end = end.max(parts.next);
    }
    program.scratch_len = end;
    program
}

/// The results of the slabs for a sum over post, to be added up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SlabSum {
    /// The first slab's.
    pub(crate) parts: Place,
    /// How many there are, `padded(pre)` elements from one to the next.
    pub(crate) slabs: usize,
    /// Elements of each.
    pub(crate) pre: usize,
    /// Where the sum goes.
    pub(crate) total: Place,
}

impl SlabSum {
    /// Appends it to a nest.
    fn write(&self, stretches: usize, nest: &mut Nest) {
        let part = |body: &mut Body, s: usize| {
            let offset = self.parts.offset + s * padded(self.pre);
            body.push(BodyOp::Load(Access::Post(Place { offset, ..self.parts })))
        };
        let mut total = None;
        for stretch in 0..stretches.min(self.slabs) {
            let mut sum = part(&mut nest.body, stretch);
            for s in (stretch + stretches..self.slabs).step_by(stretches) {
                let next = part(&mut nest.body, s);
                sum = nest.body.push(BodyOp::Add(sum, next));
            }
            total = Some(total.map_or(sum, |total| nest.body.push(BodyOp::Add(total, sum))));
        }
        let total = total.expect("a sum has slabs");
        nest.effects.push(Effect::Store(Access::Post(self.total), total));
    }
}

fn place_of_load(op: &BodyOp) -> Option<Place> {
    match op {
        BodyOp::Load(access) => Some(access.place()),
        _ => None,
    }
}

/// The sums of slabs that a nest takes, if that is all that it does.
pub(crate) fn slab_sums(nest: &Nest, cut: Cut) -> Option<Vec<SlabSum>> {
    let Extent::Vector(pre) = nest.extent else { return None };
    let mut sums = vec![];
    let mut first = 0;
    for effect in &nest.effects {
        // The operations of a sum follow each other up to the one that is stored.
        let Effect::Store(Access::Post(total), v) = effect else { return None };
        let ops = nest.body.ops.get(first..=v.index()).unwrap_or(&[]);
        let from: Vec<Place> = ops.iter().filter_map(place_of_load).collect();
        let parts = *from.first().filter(|p| p.base == Base::Scratch && from.len() > 1)?;
        sums.push(SlabSum { parts, slabs: from.len(), pre, total: *total });
        first = v.index() + 1;
    }
    let mut same = Nest { body: Body::default(), effects: vec![], ..nest.clone() };
    sums.iter().for_each(|s| s.write(cut.stretches, &mut same));
    (same == *nest && !sums.is_empty()).then_some(sums)
}

/// Room for parts of sums.
struct Parts {
    cut: Cut,
    /// Where the next ones begin, in scratch.
    next: usize,
}

impl Parts {
    fn room(&mut self, len: usize) -> Place {
        let place = Place { base: Base::Scratch, offset: self.next };
        self.next += padded(len);
        place
    }

    fn split(&mut self, nest: Nest) -> Vec<Nest> {
        match nest.extent {
            Extent::Scalar => vec![nest],
            Extent::Vector(n) => self.split_vector(nest, n),
            Extent::Matrix { post, pre } | Extent::Log { post, pre } => self.split_matrix(nest, post, pre),
        }
    }

    /// Sums over post go to scratch, slab by slab, and are added up.
    fn split_matrix(&mut self, mut nest: Nest, post: usize, pre: usize) -> Vec<Nest> {
        let slabs = self.cut.slabs(post);
        if slabs == 1 {
            return vec![nest];
        }
        let mut sums = Nest {
            extent: Extent::Vector(pre),
            body: Body::default(),
            effects: vec![],
            label: "sum of slabs".to_owned(),
        };
        for effect in &mut nest.effects {
            if let Effect::SumPost(total, v, w) = *effect {
                let parts = self.room(slabs * padded(pre));
                let sum = SlabSum { parts, slabs, pre, total };
                sum.write(self.cut.stretches, &mut sums);
                *effect = Effect::SumPost(parts, v, w);
            }
        }
        if sums.effects.is_empty() { vec![nest] } else { vec![nest, sums] }
    }

    /// Sums over a vector get a nest of their own, if there is anything else.
    fn split_vector(&mut self, mut nest: Nest, n: usize) -> Vec<Nest> {
        let is_sum = |e: &Effect| matches!(e, Effect::SumAll(..) | Effect::MaxAll(..));
        let (sums, mut rest): (Vec<Effect>, Vec<Effect>) = nest.effects.drain(..).partition(is_sum);
        if sums.is_empty() || rest.is_empty() {
            nest.effects = if rest.is_empty() { sums } else { rest };
            return vec![nest];
        }
        let mut body = Body::default();
        let mut load = |v: Id| {
            let from = self.kept(v, n, &mut rest);
            body.push(BodyOp::Load(Access::Post(from)))
        };
        let effects = sums.into_iter().map(|sum| match sum {
            Effect::SumAll(total, v, w) => Effect::SumAll(total, load(v), w.map(&mut load)),
            Effect::MaxAll(total, v) => Effect::MaxAll(total, load(v)),
            other => other,
        });
        let effects: Vec<Effect> = effects.collect();
        let sums = Nest { extent: nest.extent, body, effects, label: "sum".to_owned() };
        nest.effects = rest;
        vec![nest, sums]
    }

    /// Where a value of a vector nest is stored: where it is already, or in scratch from now on.
    fn kept(&mut self, v: Id, n: usize, effects: &mut Vec<Effect>) -> Place {
        let stored = effects.iter().find_map(|e| match e {
            Effect::Store(Access::Post(place), value) if *value == v => Some(*place),
            _ => None,
        });
        stored.unwrap_or_else(|| {
            let place = self.room(n);
            effects.push(Effect::Store(Access::Post(place), v));
            place
        })
    }
}
