//! The loop IR: what runs, spelled the same way by every back end.
//!
//! # Memory
//!
//! A row of the batch owns a *tape*: one [`Base::Frame`] per step with the step's vectors and
//! scalars (inputs, states after the step, what the backward pass reads), and, going backward, one
//! [`Base::Adjoint`] frame per step. Frames have a fixed layout and a fixed stride, so an operand
//! of a neighbouring step is the same offset in another frame: `Frame(-1)` is the step before the
//! one that a routine is called for. Matrix states live in [`Base::Carry`] (going forward) and are
//! rebuilt into snapshots ([`Base::Snapshot`]) going backward; matrix cotangents are carried in
//! `Carry` too. On a device a step leaves the matrix states in [`Base::Next`] (`onward`). [`Base::Params`] holds the unbatched values, [`Base::Grads`] their gradient sums.
//! Offsets count f32 elements.
//!
//! **Matrices are packed in tiles** ([`Tiles`]): vector lanes run along the post axis, rows along
//! the pre axis, `[tile][pre][lane]`, so that every stream of a sweep is sequential. The post axis
//! is padded to a multiple of eight lanes. Tiles have up to
//! [`Program::widest`] registers.
//!
//! # Nests
//!
//! A [`Nest`] runs a straight-line elementwise body over scalars (once), a vector, or a matrix. An
//! operand varies with both axes, with the post axis, with the pre axis, or not at all
//! ([`Access`]); an effect stores, adds to memory, or reduces. These are the nine classes: state,
//! parameter and gradient matrices; post and pre vectors; scalars; and sums over pre, over post,
//! over both.
//!
//! **Logs** are matrices `[events, neurons]` that grow by a row with every step ([`crate::model::Events`]).
//! They live in [`Base::Log`] from the start of a stretch to its end, in both directions: the host
//! writes the row of a step from its frame ([`LogSlot`]) when the step has run. A nest over logs runs
//! over the events that there are ([`LIVE`]); what is added up over the others is zero.
//!
//! **The order of every sum is fixed.** A sum over pre adds rows in ascending order, one lane per
//! post neuron. A sum over post keeps eight lanes per row, adds the tiles' vectors in ascending
//! order, and finally adds neighbouring lanes, neighbouring pairs, and the two halves. A sum over a
//! vector keeps eight lanes in the same way, and so does a sum over a whole matrix, tile after tile, row after
//! row: it is the only one that depends on the width of tiles, which is therefore the same everywhere. Products that feed a sum are fused multiply-adds. A
//! processor with narrower registers takes several for one of these. Routines for several blocks of a device have
//! other orders, if they are cut (`slabs`).
//!
//! # Sweeps
//!
//! A *sweep* is a matrix nest over batched matrices. [`schedule`] cuts a step into stages at the
//! matrix reductions, and joins the last sweep of a step (its *tail*, which writes the states) with
//! the first sweep of the next call (its *head*, which reads them), wherever the head's vectors do
//! not need the tail's sums. A routine therefore exists in three forms: `first` (head alone),
//! `step` (tail of the call before, then head), and `flush` (tail alone).
//!
//! Products that need no state, or feed none, stand in routines of their own, `before` and `after`, since
//! whoever knows a whole sequence need not take them step by step (`hoist`).

pub mod body;
mod columns;
mod emit;
pub mod eval;
mod fuse;
mod hoist;
mod lower;
mod math;
mod onward;
mod parse;
mod parts;
pub mod plan;
mod postpone;
mod print;
mod rows;
pub mod schedule;
mod slabs;
mod verify;

pub use columns::{WHOLE, by_columns};
pub use hoist::{TOGETHER, together};
pub use lower::{LowerOptions, lower};
pub use onward::{leaves_all, onward};
pub use parse::parse;
pub use postpone::postpone;
pub use print::{NAMES, print, routines};
pub use rows::{SIDE_BY_SIDE, TEAM, gains, side_by_side};
pub use slabs::{BUNDLE, Cut, can_be_cut, cut};
pub(crate) use slabs::{SlabSum, slab_sums};
pub use verify::verify;

use crate::ir::Value;
use body::Body;
use print::routines_mut;
use std::ops::Range;

/// The number of lanes of a vector register in the loop IR.
pub const LANES: usize = 8;

/// Columns of a matrix that are packed at a time: few enough to stay in the first cache meanwhile.
const BLOCK: usize = 16;

/// The most registers in a tile of a packed matrix.
pub const WIDEST: usize = 4;

/// Elements from the start of [`Base::Scratch`] to the row sums of a matrix nest: [`LANES`] per
/// row for each of its sums over post.
pub const PARTIALS: usize = 16;

/// The place in [`Base::Scratch`] of the number of events that nests over logs run over, as an
/// integer: at least one, at most the capacity.
pub const LIVE: usize = 8;

/// A region of memory that a routine gets a pointer to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Base {
    /// The primal frame of a step, relative to the step the routine is called for.
    Frame(i8),
    /// The adjoint frame of a step, relative to the step the routine is called for.
    Adjoint(i8),
    /// Values that live within one call.
    Scratch,
    /// Unbatched values: parameters, and what follows from them.
    Params,
    /// Matrices that survive from call to call: the states, or carried cotangents.
    Carry,
    /// Adjoint only: the cotangents of the matrix states at the end (read by `first`) and at the
    /// beginning (written by `flush`).
    Ends,
    /// The matrix states before a step, relative to the step the routine is called for.
    Snapshot(i8),
    /// Sums of the gradients of the unbatched values.
    Grads,
    /// The logs.
    Log,
    /// Adjoint only: the cotangents of the logs.
    LogBar,
    /// Going forward, where `onward` has said so: the matrix states that a routine leaves, perhaps in the same memory
    /// as [`Base::Carry`].
    Next,
}

impl Base {
    /// All bases, in the order in which a routine receives their pointers.
    pub const ALL: [Base; 19] = [
        Base::Frame(-2),
        Base::Frame(-1),
        Base::Frame(0),
        Base::Frame(1),
        Base::Adjoint(0),
        Base::Adjoint(1),
        Base::Adjoint(2),
        Base::Scratch,
        Base::Params,
        Base::Carry,
        Base::Ends,
        Base::Snapshot(0),
        Base::Snapshot(1),
        Base::Snapshot(2),
        Base::Grads,
        Base::Frame(2),
        Base::Log,
        Base::LogBar,
        Base::Next,
    ];

    /// Its place in [`Base::ALL`].
    pub fn slot(self) -> usize {
        Base::ALL.iter().position(|b| *b == self).expect("every base that is used is listed")
    }
}

/// A place in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Place {
    /// The region.
    pub base: Base,
    /// Elements from its start.
    pub offset: usize,
}

impl Place {
    /// The place, by one name where two regions may be the same memory.
    pub(crate) fn in_memory(self) -> Place {
        match self.base {
            Base::Next => Place { base: Base::Carry, ..self },
            _ => self,
        }
    }
}

/// How an operand varies over a nest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Access {
    /// With both axes: a packed matrix.
    Matrix(Place),
    /// With the post axis, or with the axis of a vector nest.
    Post(Place),
    /// With the pre axis.
    Pre(Place),
    /// Not at all.
    Scalar(Place),
}

impl Access {
    /// Where it begins.
    pub fn place(self) -> Place {
        match self {
            Access::Matrix(p) | Access::Post(p) | Access::Pre(p) | Access::Scalar(p) => p,
        }
    }

    /// The same operand elsewhere.
    #[must_use]
    pub fn map(self, f: impl FnOnce(Place) -> Place) -> Access {
        match self {
            Access::Matrix(p) => Access::Matrix(f(p)),
            Access::Post(p) => Access::Post(f(p)),
            Access::Pre(p) => Access::Pre(f(p)),
            Access::Scalar(p) => Access::Scalar(f(p)),
        }
    }
}

/// What a nest runs over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Extent {
    /// Once.
    Scalar,
    /// A vector of this length.
    Vector(usize),
    /// A matrix.
    Matrix {
        /// The number of receiving neurons.
        post: usize,
        /// The number of sending neurons.
        pre: usize,
    },
    /// A matrix of which only the events that there are count.
    Log {
        /// The number of events that there can be: whole tiles.
        post: usize,
        /// The number of neurons.
        pre: usize,
    },
}

/// What a nest does with a value of its body.
#[derive(Clone, Debug, PartialEq)]
pub enum Effect {
    /// Memory becomes the value.
    Store(Access, body::Id),
    /// Memory += value, or memory += value · factor, fused.
    Add(Access, body::Id, Option<body::Id>),
    /// Post vector becomes Σ over pre of value (· factor, fused).
    SumPre(Place, body::Id, Option<body::Id>),
    /// Pre vector becomes Σ over post of value (· factor, fused).
    SumPost(Place, body::Id, Option<body::Id>),
    /// Scalar becomes the sum over the whole extent of value (· factor, fused).
    SumAll(Place, body::Id, Option<body::Id>),
    /// Scalar becomes the largest value over the whole extent.
    MaxAll(Place, body::Id),
}

impl Effect {
    /// The same effect on another place and other values.
    #[must_use]
    pub fn map(&self, to: impl FnOnce(Place) -> Place, value: impl Fn(body::Id) -> body::Id) -> Effect {
        match self {
            Effect::Store(a, v) => Effect::Store(a.map(to), value(*v)),
            Effect::Add(a, v, w) => Effect::Add(a.map(to), value(*v), w.map(value)),
            Effect::SumPre(p, v, w) => Effect::SumPre(to(*p), value(*v), w.map(value)),
            Effect::SumPost(p, v, w) => Effect::SumPost(to(*p), value(*v), w.map(value)),
            Effect::SumAll(p, v, w) => Effect::SumAll(to(*p), value(*v), w.map(value)),
            Effect::MaxAll(p, v) => Effect::MaxAll(to(*p), value(*v)),
        }
    }

    /// Where it goes.
    pub fn place(&self) -> Place {
        match self {
            Effect::Store(a, _) | Effect::Add(a, ..) => a.place(),
            Effect::SumPre(p, ..) | Effect::SumPost(p, ..) | Effect::SumAll(p, ..) | Effect::MaxAll(p, _) => {
                *p
            }
        }
    }
}

/// A loop nest.
#[derive(Clone, Debug, PartialEq)]
pub struct Nest {
    /// What it runs over.
    pub extent: Extent,
    /// What it computes at each point.
    pub body: Body,
    /// What it does with it.
    pub effects: Vec<Effect>,
    /// A remark for readers: `write H, E of t-1; read t`.
    pub label: String,
}

impl Nest {
    /// Whether it goes over matrices that exist once per batch row.
    pub fn is_sweep(&self) -> bool {
        let state = |p: &Place| {
            matches!(
                p.base,
                Base::Carry | Base::Next | Base::Ends | Base::Snapshot(_) | Base::Log | Base::LogBar
            )
        };
        let loads = self.body.loads().any(|a| matches!(a, Access::Matrix(p) if state(&p)));
        let stores = self.effects.iter().any(|e| match e {
            Effect::Store(Access::Matrix(p), _) => state(p),
            _ => false,
        });
        loads || stores
    }
}

/// A list of nests, run in order by one call.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Routine {
    /// Its nests.
    pub nests: Vec<Nest>,
    /// How its sums over matrices are cut; by default they are whole.
    pub cut: Option<Cut>,
}

/// A time step in its three forms, and what can run apart from it; see the module's documentation.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Steps {
    /// What needs no state: for every step, ahead of it.
    pub before: Routine,
    /// The first step of a sequence (backward: the last one).
    pub first: Routine,
    /// A later step, with what the call before left pending.
    pub step: Routine,
    /// What the last call left pending.
    pub flush: Routine,
    /// What feeds no state: for every step, after it.
    pub after: Routine,
}

impl Steps {
    /// Sweeps over plastic matrices per step, in the steady state, counted per matrix shape.
    pub fn sweeps(&self) -> usize {
        let mut shapes: Vec<(Extent, usize)> = vec![];
        for nest in self.step.nests.iter().filter(|n| n.is_sweep()) {
            match shapes.iter_mut().find(|(e, _)| *e == nest.extent) {
                Some((_, count)) => *count += 1,
                None => shapes.push((nest.extent, 1)),
            }
        }
        shapes.into_iter().map(|(_, n)| n).max().unwrap_or(0)
    }
}

/// A vector or scalar in a frame.
#[derive(Clone, Debug, PartialEq)]
pub struct Slot {
    /// What it holds, in the spec's words.
    pub name: String,
    /// Elements from the frame's start.
    pub offset: usize,
    /// Elements.
    pub len: usize,
}

/// A packed matrix.
#[derive(Clone, Debug, PartialEq)]
pub struct MatrixSlot {
    /// What it holds.
    pub name: String,
    /// Elements from the region's start.
    pub offset: usize,
    /// Receiving neurons.
    pub post: usize,
    /// Sending neurons.
    pub pre: usize,
}

/// A log.
#[derive(Clone, Debug, PartialEq)]
pub struct LogSlot {
    /// What it holds.
    pub name: String,
    /// The state.
    pub state: usize,
    /// Elements from the start of [`Base::Log`].
    pub offset: usize,
    /// Elements from the start of [`Base::LogBar`].
    pub bar: usize,
    /// Events that it has room for.
    pub events: usize,
    /// Elements of a row.
    pub len: usize,
    /// Where a step leaves its row: elements from the start of its frame.
    pub row: usize,
    /// Where the backward pass of a step wants the cotangent of its row: elements from the start of its
    /// adjoint frame.
    pub row_bar: usize,
}

/// An unbatched value that the routines read.
#[derive(Clone, Debug, PartialEq)]
pub struct Bound {
    /// The value of the step function.
    pub value: Value,
    /// Elements from the start of [`Base::Params`].
    pub offset: usize,
    /// `Some((post, pre))` for a packed matrix, else its length.
    pub matrix: Option<(usize, usize)>,
    /// Elements, before packing.
    pub len: usize,
}

/// A gradient sum.
#[derive(Clone, Debug, PartialEq)]
pub struct GradSlot {
    /// The boundary value it belongs to.
    pub value: Value,
    /// Elements from the start of [`Base::Grads`].
    pub offset: usize,
    /// `Some((post, pre))` for a packed matrix.
    pub matrix: Option<(usize, usize)>,
    /// Elements, before packing.
    pub len: usize,
}

/// A gradient of rank one per step, hoisted out of the loop over time:
/// `grad[j,i] += Σ_t a_t[j] b_t[i]`.
#[derive(Clone, Debug, PartialEq)]
pub struct Rank1 {
    /// The boundary value.
    pub value: Value,
    /// The post vector, in the frame of step `t` (`Frame(0)`, `Frame(-1)` or `Adjoint(0)`).
    pub a: Place,
    /// The pre vector, likewise.
    pub b: Place,
    /// Receiving neurons.
    pub post: usize,
    /// Sending neurons.
    pub pre: usize,
}

/// Everything that a back end needs to run a model.
#[derive(Clone, Debug, PartialEq)]
pub struct Program {
    /// Going forward.
    pub forward: Steps,
    /// Rebuilding the matrix states: reads `Snapshot(0)`, writes `Snapshot(1)`, from the frames of
    /// the step it is called for.
    pub replay: Routine,
    /// Going backward.
    pub backward: Steps,
    /// The layout of a primal frame.
    pub frame: Vec<Slot>,
    /// Elements of a primal frame.
    pub frame_len: usize,
    /// The layout of an adjoint frame.
    pub adjoint: Vec<Slot>,
    /// Elements of an adjoint frame.
    pub adjoint_len: usize,
    /// Elements of the scratch region.
    pub scratch_len: usize,
    /// The scalar in scratch that holds the cotangent of the penalty.
    pub penalty_bar: usize,
    /// The matrix states, in this order in `Carry` (forward), in every snapshot, and in `Ends`.
    /// Indexed by state; `None` for states that are no matrices.
    pub matrices: Vec<Option<MatrixSlot>>,
    /// Elements of all matrix states of a row.
    pub matrices_len: usize,
    /// Elements of `Carry` going backward.
    pub carry_len: usize,
    /// Logs.
    pub logs: Vec<LogSlot>,
    /// Elements of all logs of a stretch.
    pub log_len: usize,
    /// Elements of their cotangents.
    pub log_bar_len: usize,
    /// Unbatched values.
    pub params: Vec<Bound>,
    /// Elements of the parameter region.
    pub params_len: usize,
    /// Gradient sums.
    pub grads: Vec<GradSlot>,
    /// Elements of the gradient region.
    pub grads_len: usize,
    /// Hoisted gradients.
    pub rank1: Vec<Rank1>,
    /// Frame offset of every input.
    pub inputs: Vec<usize>,
    /// Frame offset of every output.
    pub outputs: Vec<usize>,
    /// Frame offset of the cotangent of every output.
    pub output_bars: Vec<usize>,
    /// Frame offset of every state that is no matrix.
    pub states: Vec<Option<usize>>,
    /// Adjoint-frame offset of the cotangent of every state that is no matrix.
    pub state_bars: Vec<Option<usize>>,
    /// Adjoint-frame offset of the cotangent of every input that has one.
    pub input_bars: Vec<Option<usize>>,
    /// Frame offsets of the penalty terms.
    pub penalties: Vec<usize>,
    /// The most registers in a tile of a packed matrix.
    pub widest: usize,
    /// Rows of the batch that step together; their regions follow each other ([`side_by_side`]).
    pub rows: usize,
    /// Whether the last sweep of a step joins the next call's first: forward, backward.
    pub merged: (bool, bool),
    /// Whether the backward pass carries the cotangents of the matrix states themselves, rather
    /// than expressions of them.
    pub carries_states: bool,
}

impl LogSlot {
    /// The place of an element of an event's row, from the start of the log.
    pub fn at(&self, widest: usize, event: usize, i: usize) -> usize {
        let lanes = Tiles::of(self.events, widest).width * LANES;
        (event / lanes * self.len + i) * lanes + event % lanes
    }
}

/// Elements that a vector of `n` takes: padded to whole registers.
pub fn padded(n: usize) -> usize {
    n.div_ceil(LANES) * LANES
}

/// How the post axis of a packed matrix is cut into tiles of a few registers each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tiles {
    /// Width of the wide tiles, in registers; the narrow ones are one register less.
    pub width: usize,
    /// How many wide tiles there are, first.
    pub wide: usize,
    /// How many narrow tiles follow.
    pub narrow: usize,
}

impl Tiles {
    /// The tiles of a post axis of this size, of at most `widest` registers: as few as possible, of
    /// nearly equal width.
    pub fn of(post: usize, widest: usize) -> Tiles {
        let registers = post.div_ceil(LANES).max(1);
        let tiles = registers.div_ceil(widest.max(1));
        let width = registers.div_ceil(tiles);
        let narrow = tiles * width - registers;
        Tiles { width, wide: tiles - narrow, narrow }
    }

    /// First register and width of every tile.
    pub fn iter(self) -> impl Iterator<Item = (usize, usize)> {
        let narrow_width = self.width - 1;
        let wide = (0..self.wide).map(move |k| (k * self.width, self.width));
        let start = self.wide * self.width;
        wide.chain((0..self.narrow).map(move |k| (start + k * narrow_width, narrow_width)))
    }

    /// Elements of a packed matrix.
    pub fn packed_len(post: usize, pre: usize) -> usize {
        padded(post) * pre
    }
}

impl Program {
    /// Packs a row-major `[post, pre]` matrix; padding becomes zero.
    pub fn pack(&self, post: usize, pre: usize, from: &[f32], to: &mut [f32]) {
        for (start, width, rows) in self.packed_tiles(post, pre) {
            let tile = &mut to[start..start + width * pre];
            for (block, columns) in tile.chunks_mut(width * BLOCK).enumerate() {
                columns.fill(0.0);
                for (lane, j) in rows.clone().enumerate() {
                    let row = &from[j * pre + block * BLOCK..(j + 1) * pre];
                    columns[lane..].iter_mut().step_by(width).zip(row).for_each(|(to, x)| *to = *x);
                }
            }
        }
    }

    /// Unpacks into a row-major `[post, pre]` matrix.
    pub fn unpack<T: Copy>(&self, post: usize, pre: usize, from: &[T], to: &mut [T]) {
        for (start, width, rows) in self.packed_tiles(post, pre) {
            let tile = &from[start..start + width * pre];
            for (block, columns) in tile.chunks(width * BLOCK).enumerate() {
                for (lane, j) in rows.clone().enumerate() {
                    let row = &mut to[j * pre + block * BLOCK..(j + 1) * pre];
                    row.iter_mut().zip(columns[lane..].iter().step_by(width)).for_each(|(to, x)| *to = *x);
                }
            }
        }
    }

    /// Where each tile of a packed matrix starts, how many lanes it has, and which rows of the plain
    /// matrix lie in its first lanes.
    fn packed_tiles(&self, post: usize, pre: usize) -> impl Iterator<Item = (usize, usize, Range<usize>)> {
        Tiles::of(post, self.widest).iter().map(move |(first, width)| {
            let (first, lanes) = (first * LANES, width * LANES);
            (first * pre, lanes, first..(first + lanes).min(post))
        })
    }
}
