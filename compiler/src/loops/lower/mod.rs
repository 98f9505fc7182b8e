//! Step IR → loop IR: storage, vector nests, sweeps, and the routines made of them.
//!
//! Relies on verified functions and on their [`schedule`]. Every scalar or vector that crosses from
//! one nest to another gets a slot in a frame; no matrix does. Costs time in proportion to the
//! functions' lengths, none to their sizes.

mod draft;
mod locate;
mod memory;
mod nests;
mod sweeps;

use super::hoist;
use super::schedule::{self, Direction, Schedule, is_matrix};
use super::*;
use crate::ir::{Axis, Binary, Function, Op, Shape, Sink, Sizes, Source, StateId, Value};
use crate::model::{Events, Model};
use memory::{Loc, Memory, Region, apart};
use std::collections::{BTreeMap, BTreeSet};

/// What the program must be able to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LowerOptions {
    /// Whether the backward pass gives the cotangents of inputs.
    pub input_bars: bool,
}

/// Lowers a model and its adjoint.
pub fn lower(model: &Model, sizes: &Sizes, adjoint: &Function, options: LowerOptions) -> Program {
    let mut adjoint = adjoint.clone();
    if !options.input_bars {
        adjoint.results.retain(|(sink, _)| !matches!(sink, Sink::InputBar(_)));
    }
    let mut step = model.step.clone();
    if let Some(events) = &model.events {
        append(&mut step, &mut adjoint, events);
    }
    let mut memory = Memory::new(model, sizes);
    let mut forward = Unit::new(&step, sizes, Direction::Forward, &memory);
    forward.forced = primal_loads(&step, &adjoint);
    forward.plan(&mut memory, model);
    let mut backward = Unit::new(&adjoint, sizes, Direction::Backward, &memory);
    backward.primal = forward.loc.clone();
    backward.primal_function = Some(&step);
    backward.plan(&mut memory, model);
    forward.matrices.clone_from(&memory.matrices);
    backward.matrices.clone_from(&memory.matrices);
    let carry_len = backward.assign_carry(memory.matrices_len);
    let rank1 = backward.rank_one();
    let (forward_steps, replay, backward_steps) = (forward.steps(), forward.replay(), backward.steps());
    let mut program = Program {
        forward: forward_steps,
        replay,
        backward: backward_steps,
        merged: (forward.schedule.joined, backward.schedule.joined),
        carries_states: backward.schedule.carried.is_none(),
        rank1,
        carry_len,
        inputs: memory.inputs,
        outputs: memory.outputs,
        output_bars: memory.output_bars,
        states: memory.states,
        state_bars: memory.state_bars,
        input_bars: memory.input_bars,
        penalties: memory.penalties,
        frame: memory.frame.slots,
        frame_len: memory.frame.len + LANES,
        adjoint: memory.adjoint.slots,
        adjoint_len: memory.adjoint.len + LANES,
        scratch_len: 0,
        widest: WIDEST,
        rows: 1,
        penalty_bar: 0,
        matrices: memory.matrices,
        matrices_len: memory.matrices_len,
        logs: memory.logs.into_iter().flatten().collect(),
        log_len: memory.log_len,
        log_bar_len: memory.log_bar_len,
        params: memory.params,
        params_len: memory.params_len,
        grads: memory.grads,
        grads_len: memory.grads_len,
    };
    hoist::hoist(&mut program);
    program.scratch_len = scratch_len(&program);
    program
}

/// Elements of the scratch region.
pub(super) fn scratch_len(program: &Program) -> usize {
    PARTIALS + row_sums(program)
}

/// The write of a log is a row, and the cotangent of that row is one of the log's cotangent: neither
/// takes a sweep.
///
/// Before: `%m = clock outer row; state log = %log + %m` and, going backward, `%bar = (bar.next log)ᵀ @
/// clock`. After: `row log = row` and `%bar = bar.row log`.
fn append(step: &mut Function, adjoint: &mut Function, events: &Events) {
    let mut results = vec![];
    for (sink, v) in std::mem::take(&mut step.results) {
        let log = if let Sink::State(s) = sink { Some(s).filter(|s| events.logs.contains(s)) } else { None };
        let row = log.map(|s| match step.at(v).op {
            Op::Binary(Binary::Add, _, m) => match step.at(m).op {
                Op::Outer(clock, row) if clock == events.clock => (Sink::Row(s), row),
                ref other => unreachable!("a log is written by its clock, not by {other:?}"),
            },
            ref other => unreachable!("a row is added to a log, not {other:?}"),
        });
        results.push(row.unwrap_or((sink, v)));
    }
    step.results = results;
    for k in 0..adjoint.body.len() {
        if let Op::ContractT(m, x) = adjoint.body[k].op
            && let Op::Load(Source::NextBar(s)) = adjoint.at(m).op
            && adjoint.at(x).op == Op::Load(Source::Primal(events.clock))
            && events.logs.contains(&s)
        {
            adjoint.body[k].op = Op::Load(Source::RowBar(s));
        }
    }
}

/// Elements that the row sums of a nest take: one register for each row and sum.
fn row_sums(program: &Program) -> usize {
    let of_nest = |nest: &Nest| match nest.extent {
        Extent::Matrix { pre, .. } | Extent::Log { pre, .. } => {
            nest.effects.iter().filter(|e| matches!(e, Effect::SumPost(..))).count() * pre * LANES
        }
        Extent::Scalar | Extent::Vector(_) => 0,
    };
    let apart = [&program.forward, &program.backward].into_iter().flat_map(|s| [&s.before, &s.after]);
    let apart = apart.flat_map(|r| &r.nests).map(|nest| of_nest(nest) * TOGETHER);
    let nests = routines(program).into_iter().flat_map(|r| &r.nests);
    nests.map(of_nest).chain(apart).max().unwrap_or(0)
}

/// The scalars and vectors of the step that the adjoint reads.
fn primal_loads(step: &Function, adjoint: &Function) -> BTreeSet<Value> {
    let mut found = BTreeSet::new();
    for (_, instruction) in adjoint.values() {
        if let Op::Load(Source::Primal(v)) = instruction.op
            && step.ty(v).batched
        {
            found.insert(v);
        }
    }
    found
}

/// Which step a value belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Role {
    /// The step the routine is called for.
    Head,
    /// The step of the call before.
    Tail,
    /// The step the routine is called for, with states from snapshots.
    Replay,
}

/// A piece of work on scalars or vectors.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Task {
    /// Compute a value.
    Compute(Value),
    /// Copy a value to a slot (index into [`Unit::copies`]).
    Copy(usize),
    /// Add a value to a gradient sum (index into [`Unit::sums`]).
    Accumulate(usize),
}

/// A nest to be: what it runs over and what it does.
struct Draft {
    extent: Extent,
    tasks: Vec<Task>,
}

/// A function with its schedule and storage.
pub(super) struct Unit<'f> {
    pub(super) f: &'f Function,
    sizes: &'f Sizes,
    direction: Direction,
    schedule: Schedule,
    matrices: Vec<Option<MatrixSlot>>,
    /// By state.
    logs: Vec<Option<LogSlot>>,
    log_axis: Option<Axis>,
    /// Where scalars and vectors live.
    loc: BTreeMap<Value, Loc>,
    /// Backward: where the step's values live.
    primal: BTreeMap<Value, Loc>,
    primal_function: Option<&'f Function>,
    /// Values that must be stored.
    forced: BTreeSet<Value>,
    copies: Vec<(Value, Loc)>,
    sums: Vec<(Value, usize)>,
    drafts: Vec<Vec<Draft>>,
    carry: BTreeMap<Value, usize>,
    grad_places: BTreeMap<Value, usize>,
}

impl<'f> Unit<'f> {
    fn new(f: &'f Function, sizes: &'f Sizes, direction: Direction, memory: &Memory) -> Self {
        Unit {
            f,
            sizes,
            direction,
            // The host moves rows between the calls, which must have done all of a step by then.
            schedule: schedule::schedule(f, direction, memory.log_axis.is_none()),
            matrices: memory.matrices.clone(),
            logs: memory.logs.clone(),
            log_axis: memory.log_axis,
            loc: BTreeMap::new(),
            primal: BTreeMap::new(),
            primal_function: None,
            forced: BTreeSet::new(),
            copies: vec![],
            sums: vec![],
            drafts: vec![],
            carry: BTreeMap::new(),
            grad_places: BTreeMap::new(),
        }
    }

    pub(super) fn is_forward(&self) -> bool {
        self.direction == Direction::Forward
    }

    /// Looks through operations that change nothing at run time.
    pub(super) fn strip(&self, mut v: Value) -> Value {
        while let Op::StopGrad(x) = self.f.at(v).op {
            v = x;
        }
        v
    }

    /// The number that a value is, if it is known now.
    pub(super) fn constant(&self, v: Value) -> Option<f64> {
        match self.f.at(self.strip(v)).op {
            Op::Const(c) => Some(c),
            Op::Size(axis) => Some(self.sizes.of(axis) as f64),
            Op::Splat(s, _) => self.constant(s),
            _ => None,
        }
    }

    /// Whether a value comes ready-made from [`Base::Params`].
    pub(super) fn is_leaf(&self, v: Value) -> bool {
        let instruction = self.f.at(v);
        let spread = matches!(instruction.op, Op::Rows(..) | Op::Cols(..) | Op::Splat(..) | Op::Outer(..));
        match self.direction {
            Direction::Forward => {
                let spread_matrix = spread && is_matrix(self.f, v);
                !(instruction.ty.batched || spread_matrix) && self.constant(v).is_none()
            }
            Direction::Backward => !instruction.ty.batched && matches!(instruction.op, Op::Load(_)),
        }
    }

    // ------------------------------------------------------------------ places

    /// Where a scalar, a vector or a packed parameter is, seen from a routine.
    pub(super) fn place(&self, role: Role, v: Value) -> Place {
        let v = self.strip(v);
        match self.f.at(v).op {
            Op::Slice { x, start, .. } if !self.loc.contains_key(&v) => {
                let place = self.place(role, x);
                return Place { offset: place.offset + self.sizes.of(start), ..place };
            }
            Op::Element(x, k) if !self.loc.contains_key(&v) => {
                let place = self.place(role, x);
                return Place { offset: place.offset + k, ..place };
            }
            _ => {}
        }
        let loc = self.loc.get(&v);
        let loc = loc.unwrap_or_else(|| panic!("%{} has no place: {:?}", v.0, self.f.at(v).op));
        self.resolve(role, *loc)
    }

    fn resolve(&self, role: Role, loc: Loc) -> Place {
        let tail = match self.direction {
            Direction::Forward => -1,
            Direction::Backward => 1,
        };
        let shift = loc.shift + if role == Role::Tail { tail } else { 0 };
        let base = match loc.region {
            Region::Frame => Base::Frame(shift),
            Region::Adjoint => Base::Adjoint(shift),
            Region::Params => Base::Params,
            Region::Scratch => Base::Scratch,
        };
        Place { base, offset: loc.offset }
    }

    /// A matrix state before (`after = 0`) or after (`after = 1`) the role's step.
    pub(super) fn snapshot(&self, role: Role, s: StateId, after: i8) -> Place {
        let shift = if role == Role::Tail { 1 } else { 0 };
        Place { base: Base::Snapshot(shift + after), offset: self.matrix(s).offset }
    }

    fn matrix(&self, s: StateId) -> &MatrixSlot {
        self.matrices[s.index()].as_ref().expect("the state is a matrix")
    }

    /// Where a log is.
    pub(super) fn log_place(&self, s: StateId) -> Option<Place> {
        self.logs[s.index()].as_ref().map(|l| Place { base: Base::Log, offset: l.offset })
    }

    /// Where the cotangent of a log is.
    fn log_bar_place(&self, s: StateId) -> Option<Place> {
        self.logs[s.index()].as_ref().map(|l| Place { base: Base::LogBar, offset: l.bar })
    }

    /// Where an incoming matrix is read.
    pub(super) fn incoming_place(&self, role: Role, s: StateId, from_ends: bool) -> Place {
        if let Some(place) = self.log_bar_place(s) {
            return place;
        }
        let base = match role {
            Role::Replay => Base::Snapshot(0),
            Role::Head | Role::Tail if from_ends => Base::Ends,
            Role::Head | Role::Tail => Base::Carry,
        };
        Place { base, offset: self.matrix(s).offset }
    }

    /// Where a carried expression is kept.
    pub(super) fn carried_place(&self, v: Value) -> Option<Place> {
        self.carry.get(&v).map(|offset| Place { base: Base::Carry, offset: *offset })
    }

    fn assign_carry(&mut self, matrices_len: usize) -> usize {
        let Some(carried) = self.schedule.carried.clone() else { return matrices_len };
        let mut len = 0;
        for (number, v) in carried.into_iter().enumerate() {
            let dims = self.sizes.dims(self.f.ty(v).shape);
            let room = Tiles::packed_len(dims[0], dims[1]);
            let offset = apart(len, room, number, 0);
            self.carry.insert(v, offset);
            len = offset + room;
        }
        len.max(LANES)
    }

    fn extent(&self, shape: Shape) -> Extent {
        match shape {
            Shape::Scalar => Extent::Scalar,
            Shape::Vector(axis) => Extent::Vector(self.sizes.of(axis)),
            Shape::Matrix { post, pre } if self.log_axis == Some(post) => {
                Extent::Log { post: self.sizes.of(post), pre: self.sizes.of(pre) }
            }
            Shape::Matrix { post, pre } => {
                Extent::Matrix { post: self.sizes.of(post), pre: self.sizes.of(pre) }
            }
        }
    }
}
