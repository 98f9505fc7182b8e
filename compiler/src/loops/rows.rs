//! Several rows of a batch side by side.
//!
//! A program takes one row. Its products of parameters with vectors read every parameter for a single
//! multiplication: where the parameters do not fit into the core's nearest cache, waiting for them takes most of
//! the time. [`side_by_side`] makes a program for several rows that step together. Each region of a row
//! ([`Base::Frame`], [`Base::Adjoint`], [`Base::Carry`], [`Base::Ends`], [`Base::Snapshot`]) is followed by that
//! of the next row; parameters, gradient sums and scratch are shared. Nests over matrices of parameters alone
//! are joined, so that a parameter is read once for all rows, and so are sweeps that read parameters or add to their
//! gradients, in parts that share no matrix; other nests are repeated.
//!
//! Every row has the bits that it has alone. Sums of gradients over rows take another order: all rows of a
//! step, then the step before.

use super::hoist::join;
use super::parts::parts;
use super::{Access, Base, Effect, Extent, Nest, Place, Program, Routine, Slot, Steps};
use std::ops::Range;

/// How many rows fit into the registers of a joined nest.
pub const SIDE_BY_SIDE: usize = 3;

/// How many rows step together at most: several groups that fit into the registers. What the first group reads
/// is near when the others read it.
pub const TEAM: usize = 6;

/// Whether rows gain from stepping together: whether a step has products with parameters alone.
pub fn gains(program: &Program) -> bool {
    let steps = [&program.forward.step, &program.backward.step];
    program.logs.is_empty() && steps.into_iter().flat_map(|r| &r.nests).any(reads_parameters_alone)
}

/// A program for several rows. There must be no logs.
pub fn side_by_side(program: &Program, rows: usize) -> Program {
    assert!(program.logs.is_empty(), "logs grow with every step of a row");
    let slots = |all: &[Slot], stride: usize| -> Vec<Slot> {
        let of_row =
            |row: usize| all.iter().map(move |s| Slot { offset: s.offset + row * stride, ..s.clone() });
        (0..rows).flat_map(of_row).collect()
    };
    let forward = Side { program, rows, carry: program.matrices_len };
    let backward = Side { program, rows, carry: program.carry_len };
    let mut wide = Program {
        forward: forward.steps(&program.forward),
        replay: forward.lockstep(&program.replay),
        backward: backward.steps(&program.backward),
        frame: slots(&program.frame, program.frame_len),
        frame_len: rows * program.frame_len,
        adjoint: slots(&program.adjoint, program.adjoint_len),
        adjoint_len: rows * program.adjoint_len,
        matrices_len: rows * program.matrices_len,
        carry_len: rows * program.carry_len,
        rows,
        ..program.clone()
    };
    wide.scratch_len = super::lower::scratch_len(&wide);
    wide
}

struct Side<'p> {
    program: &'p Program,
    rows: usize,
    /// Elements of a row's carry in this direction.
    carry: usize,
}

impl Side<'_> {
    fn shift(&self, row: usize, place: Place) -> Place {
        let stride = match place.base {
            Base::Frame(_) => self.program.frame_len,
            Base::Adjoint(_) => self.program.adjoint_len,
            Base::Carry => self.carry,
            Base::Next | Base::Ends | Base::Snapshot(_) => self.program.matrices_len,
            Base::Scratch | Base::Params | Base::Grads | Base::Log | Base::LogBar => 0,
        };
        Place { offset: place.offset + row * stride, ..place }
    }

    fn steps(&self, steps: &Steps) -> Steps {
        Steps {
            // These take several steps of a row at once.
            before: self.repeat(&steps.before),
            first: self.lockstep(&steps.first),
            step: self.lockstep(&steps.step),
            flush: self.lockstep(&steps.flush),
            after: self.repeat(&steps.after),
        }
    }

    fn repeat(&self, routine: &Routine) -> Routine {
        let of_row = |row| routine.nests.iter().map(move |nest| self.one(nest, row));
        Routine { nests: (0..self.rows).flat_map(of_row).collect(), cut: None }
    }

    fn lockstep(&self, routine: &Routine) -> Routine {
        let mut nests = vec![];
        for nest in &routine.nests.iter().flat_map(parts).collect::<Vec<_>>() {
            if reads_parameters_alone(nest) || shares_parameters(nest) {
                for group in groups(self.rows) {
                    let label = format!("{}, {} rows", nest.label, group.len());
                    let place = |row: usize, place| self.shift(group.start + row, place);
                    nests.push(join(nest, group.len(), label, place));
                }
            } else {
                nests.extend((0..self.rows).map(|row| self.one(nest, row)));
            }
        }
        Routine { nests, cut: None }
    }

    fn one(&self, nest: &Nest, row: usize) -> Nest {
        join(nest, 1, nest.label.clone(), |_, place| self.shift(row, place))
    }
}

/// Groups of nearly equal size that fit into the registers.
fn groups(rows: usize) -> impl Iterator<Item = Range<usize>> {
    let count = rows.div_ceil(SIDE_BY_SIDE).max(1);
    (0..count).map(move |k| k * rows / count..(k + 1) * rows / count)
}

/// Whether a nest over matrices of rows reads parameters or adds to gradients.
fn shares_parameters(nest: &Nest) -> bool {
    let is_matrix = matches!(nest.extent, Extent::Matrix { .. });
    let is_shared = |p: Place| matches!(p.base, Base::Params | Base::Grads);
    let loads = nest.body.loads().any(|a| matches!(a, Access::Matrix(p) if is_shared(p)));
    let adds = nest.effects.iter().any(|e| matches!(e, Effect::Add(Access::Matrix(p), ..) if is_shared(*p)));
    is_matrix && (loads || adds)
}

/// Whether a nest multiplies matrices of parameters, and no others, with vectors.
fn reads_parameters_alone(nest: &Nest) -> bool {
    let is_matrix = matches!(nest.extent, Extent::Matrix { .. });
    let loads = nest.body.loads().all(|a| match a {
        Access::Matrix(p) => p.base == Base::Params,
        _ => true,
    });
    let sums = nest.effects.iter().all(|e| matches!(e, Effect::SumPre(..) | Effect::SumPost(..)));
    is_matrix && loads && sums
}
