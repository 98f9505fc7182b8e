//! Step IR → loop IR: storage, vector nests, sweeps, and the routines made of them.
//!
//! Relies on verified functions and on their [`schedule`]. Every scalar or vector that crosses from
//! one nest to another gets a slot in a frame; no matrix does. Costs time in proportion to the
//! functions' lengths, none to their sizes.

use super::emit::Emit;
use super::hoist;
use super::schedule::{self, Direction, Schedule, is_matrix, is_rank_one, reduced_matrix};
use super::*;
use crate::ir::{Axis, Binary, Function, InputId, Op, OutputId, Shape, Sink, Sizes, Source, StateId, Value};
use crate::model::{Events, Model};
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

/// Where a scalar or vector lives, relative to its own step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Loc {
    region: Region,
    shift: i8,
    offset: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Region {
    Frame,
    Adjoint,
    Params,
    Scratch,
}

/// A region under layout.
#[derive(Default)]
struct Area {
    slots: Vec<Slot>,
    len: usize,
}

impl Area {
    /// Room for `len` elements. The slack of one register takes the overhang of a store that ends
    /// at an offset which is no multiple of the lanes.
    fn take(&mut self, name: String, len: usize) -> usize {
        let offset = self.len;
        self.slots.push(Slot { name, offset, len });
        self.len += padded(len) + LANES;
        offset
    }
}

/// The layout of all regions.
pub(super) struct Memory {
    frame: Area,
    adjoint: Area,
    matrices: Vec<Option<MatrixSlot>>,
    matrices_len: usize,
    /// By state.
    logs: Vec<Option<LogSlot>>,
    log_axis: Option<Axis>,
    log_len: usize,
    log_bar_len: usize,
    params: Vec<Bound>,
    params_len: usize,
    grads: Vec<GradSlot>,
    grads_len: usize,
    inputs: Vec<usize>,
    outputs: Vec<usize>,
    output_bars: Vec<usize>,
    states: Vec<Option<usize>>,
    state_bars: Vec<Option<usize>>,
    input_bars: Vec<Option<usize>>,
    penalties: Vec<usize>,
}

impl Memory {
    fn new(model: &Model, sizes: &Sizes) -> Memory {
        let mut frame = Area::default();
        let mut adjoint = Area::default();
        let count = |shape| sizes.count(shape);
        let inputs = model.inputs.iter().map(|i| frame.take(i.name.clone(), count(i.shape))).collect();
        let (mut states, mut state_bars, mut matrices_len) = (vec![], vec![], 0);
        let mut matrices: Vec<Option<MatrixSlot>> = vec![];
        let is_log = |k: usize| model.events.as_ref().is_some_and(|e| e.logs.contains(&StateId(k as u32)));
        for (k, s) in model.states.iter().enumerate() {
            match s.shape {
                Shape::Matrix { .. } if is_log(k) => {
                    matrices.push(None);
                    states.push(None);
                    state_bars.push(None);
                }
                Shape::Matrix { post, pre } => {
                    let (post, pre) = (sizes.of(post), sizes.of(pre));
                    let len = Tiles::packed_len(post, pre);
                    let number = matrices.iter().flatten().count();
                    let offset = apart(matrices_len, len, number, 0);
                    matrices.push(Some(MatrixSlot { name: s.name.clone(), offset, post, pre }));
                    matrices_len = offset + len;
                    states.push(None);
                    state_bars.push(None);
                }
                Shape::Scalar | Shape::Vector(_) => {
                    matrices.push(None);
                    states.push(Some(frame.take(format!("{}'", s.name), count(s.shape))));
                    state_bars.push(Some(adjoint.take(format!("bar {}", s.name), count(s.shape))));
                }
            }
        }
        let bars = |o: &crate::model::Output| (format!("bar {}", o.name), count(o.shape));
        let output_bars = model.outputs.iter().map(|o| frame.take(bars(o).0, bars(o).1)).collect();
        let (logs, log_len, log_bar_len) = log_slots(model, sizes, &mut adjoint);
        Memory {
            frame,
            adjoint,
            matrices,
            matrices_len: repeated(matrices_len),
            logs,
            log_axis: model.events.as_ref().map(|e| e.axis),
            log_len,
            log_bar_len,
            params: vec![],
            params_len: 0,
            grads: vec![],
            grads_len: 0,
            inputs,
            outputs: vec![],
            output_bars,
            states,
            state_bars,
            input_bars: vec![None; model.inputs.len()],
            penalties: vec![],
        }
    }

    /// The place of an unbatched value of the step function.
    fn bind(&mut self, step: &Function, sizes: &Sizes, value: Value) -> usize {
        if let Some(bound) = self.params.iter().find(|b| b.value == value) {
            return bound.offset;
        }
        let shape = step.ty(value).shape;
        let (matrix, room) = packed(shape, sizes);
        let number = self.params.iter().filter(|p| p.matrix.is_some()).count();
        let offset = apart(self.params_len, if matrix.is_some() { room } else { 0 }, number, 1);
        self.params.push(Bound { value, offset, matrix, len: sizes.count(shape) });
        self.params_len = offset + room;
        offset
    }

    /// The place of the gradient of an unbatched value.
    fn gradient(&mut self, shape: Shape, sizes: &Sizes, value: Value) -> usize {
        if let Some(slot) = self.grads.iter().find(|g| g.value == value) {
            return slot.offset;
        }
        let (matrix, room) = packed(shape, sizes);
        // They are written beside the carried matrices, so they count on from these.
        let number = self.matrices.iter().flatten().count();
        let number = number + self.grads.iter().filter(|g| g.matrix.is_some()).count();
        let offset = apart(self.grads_len, if matrix.is_some() { room } else { 0 }, number, 0);
        self.grads.push(GradSlot { value, offset, matrix, len: sizes.count(shape) });
        self.grads_len = offset + room;
        offset
    }
}

/// The logs by state, and the lengths of their regions. Those of rows are known later.
fn log_slots(model: &Model, sizes: &Sizes, adjoint: &mut Area) -> (Vec<Option<LogSlot>>, usize, usize) {
    let mut slots: Vec<Option<LogSlot>> = vec![None; model.states.len()];
    let (mut end, mut bar_end) = (0, 0);
    let Some(events) = &model.events else { return (slots, end, bar_end) };
    for (number, s) in events.logs.iter().enumerate() {
        let state = &model.states[s.index()];
        let dims = sizes.dims(state.shape);
        let room = Tiles::packed_len(dims[0], dims[1]);
        let offset = apart(end, room, number, 0);
        let bar = apart(bar_end, room, events.logs.len() + number, 0);
        (end, bar_end) = (offset + room, bar + room);
        let row_bar = adjoint.take(format!("bar row {}", state.name), dims[1]);
        slots[s.index()] = Some(LogSlot {
            name: state.name.clone(),
            state: s.index(),
            offset,
            bar,
            events: dims[0],
            len: dims[1],
            row: 0,
            row_bar,
        });
    }
    (slots, end, bar_end)
}

/// Elements of a page of memory. A load whose address agrees with that of an earlier store, still
/// under way, in all bits that count within a page waits for it as if it were the same address.
const PAGE: usize = 1024;

/// Elements of a cache line.
const LINE: usize = 16;

/// Elements of the smallest matrix that is worth moving away from the others.
const LARGE: usize = 4 * PAGE;

/// Where a matrix of a region begins, at or after `end`.
///
/// Sweeps walk through all their matrices at one pace, so two that begin at nearby places of a page
/// would make each other's loads wait ([`PAGE`]). The beginnings of large ones are spread over a page
/// by the golden ratio; `number` counts the matrices of a region, and `shift` tells regions apart
/// that are only read.
fn apart(end: usize, len: usize, number: usize, shift: usize) -> usize {
    if len < LARGE {
        return end;
    }
    let golden = 0.618_033_988_749_895;
    let within = ((number as f64 * golden).fract() * (PAGE / LINE) as f64) as usize * LINE + shift * LINE;
    let ahead = (within % PAGE + PAGE - end % PAGE) % PAGE;
    end + ahead
}

/// Regions that repeat with large matrices in them take whole pages and five cache lines: the same
/// row of successive regions, which a replay of several steps stores together, would otherwise
/// compete for the same few lines of the cache.
fn repeated(len: usize) -> usize {
    if len < LARGE { len } else { len.next_multiple_of(PAGE) + 5 * LINE }
}

fn packed(shape: Shape, sizes: &Sizes) -> (Option<(usize, usize)>, usize) {
    match shape {
        Shape::Matrix { post, pre } => {
            let (post, pre) = (sizes.of(post), sizes.of(pre));
            (Some((post, pre)), Tiles::packed_len(post, pre))
        }
        other => (None, padded(sizes.count(other)) + LANES),
    }
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

    // ----------------------------------------------------------------- storage

    /// Decides what is stored where, and which nests compute it.
    fn plan(&mut self, memory: &mut Memory, model: &Model) {
        self.locate_loads(memory, model);
        self.locate_results(memory, model);
        self.draft();
        self.locate_rest(memory);
    }

    fn locate_loads(&mut self, memory: &mut Memory, model: &Model) {
        for k in 0..self.f.body.len() {
            let v = Value(k as u32);
            let frame = |offset, shift| Some(Loc { region: Region::Frame, shift, offset });
            let loc = match self.f.at(v).op {
                _ if !self.schedule.live[k] => None,
                Op::Load(Source::Input(InputId(i))) => frame(memory.inputs[i as usize], 0),
                Op::Load(Source::State(StateId(s))) => {
                    memory.states[s as usize].and_then(|offset| frame(offset, -1))
                }
                Op::Load(Source::OutputBar(OutputId(o))) => frame(memory.output_bars[o as usize], 0),
                Op::Load(Source::NextBar(StateId(s))) => memory.state_bars[s as usize].map(|offset| Loc {
                    region: Region::Adjoint,
                    shift: 1,
                    offset,
                }),
                Op::Load(Source::RowBar(s)) => memory.logs[s.index()].as_ref().map(|l| Loc {
                    region: Region::Adjoint,
                    shift: 0,
                    offset: l.row_bar,
                }),
                Op::Load(Source::PenaltyBar) => Some(Loc { region: Region::Scratch, shift: 0, offset: 0 }),
                Op::Load(Source::Primal(p)) if model.step.ty(p).batched => Some(self.primal_loc(p)),
                Op::Load(Source::Primal(p)) => {
                    let offset = memory.bind(&model.step, self.sizes, p);
                    Some(Loc { region: Region::Params, shift: 0, offset })
                }
                _ if self.is_forward() && self.is_leaf(v) && self.leaf_used(v) => {
                    let offset = memory.bind(self.f, self.sizes, v);
                    Some(Loc { region: Region::Params, shift: 0, offset })
                }
                _ => None,
            };
            if let Some(loc) = loc {
                self.loc.insert(v, loc);
            }
        }
    }

    /// Whether an unbatched value is read by batched code or is a result.
    fn leaf_used(&self, v: Value) -> bool {
        let spread = |op: &Op| matches!(op, Op::Rows(..) | Op::Cols(..) | Op::Splat(..) | Op::Outer(..));
        let user = |i: &crate::ir::Instruction| i.ty.batched || spread(&i.op);
        let stripped = |o: &Value| self.strip(*o) == v || *o == v;
        self.f.values().any(|(_, i)| user(i) && i.op.operands().iter().any(stripped))
            || self.f.results.iter().any(|(_, r)| stripped(r))
    }

    fn primal_loc(&self, p: Value) -> Loc {
        let step = self.primal_function.expect("only the adjoint loads primal values");
        match step.at(p).op {
            Op::StopGrad(x) => self.primal_loc(x),
            Op::Slice { x, start, .. } if !self.primal.contains_key(&p) => {
                let loc = self.primal_loc(x);
                Loc { offset: loc.offset + self.sizes.of(start), ..loc }
            }
            Op::Element(x, k) if !self.primal.contains_key(&p) => {
                let loc = self.primal_loc(x);
                Loc { offset: loc.offset + k, ..loc }
            }
            _ => self.primal[&p],
        }
    }

    /// Gives results their slots, with a copy where the value already lives elsewhere.
    fn locate_results(&mut self, memory: &mut Memory, model: &Model) {
        for (sink, v) in self.f.results.clone() {
            let shape = self.f.ty(v).shape;
            let count = self.sizes.count(shape);
            match sink {
                Sink::State(s) => {
                    if let Some(offset) = memory.states[s.index()] {
                        self.claim(v, Loc { region: Region::Frame, shift: 0, offset });
                    }
                }
                Sink::Output(o) => {
                    let name = model.outputs[o.index()].name.clone();
                    let offset = self.reuse_or_take(v, memory, name, count);
                    memory.outputs.push(offset);
                }
                Sink::Row(s) => {
                    let name = format!("row {}", model.states[s.index()].name);
                    let offset = self.reuse_or_take(v, memory, name, count);
                    if let Some(log) = &mut memory.logs[s.index()] {
                        log.row = offset;
                    }
                }
                Sink::Penalty => {
                    let offset = self.reuse_or_take(v, memory, "penalty".to_owned(), count);
                    memory.penalties.push(offset);
                }
                Sink::StateBar(s) => {
                    if let Some(offset) = memory.state_bars[s.index()] {
                        self.claim(v, Loc { region: Region::Adjoint, shift: 0, offset });
                    }
                }
                Sink::InputBar(i) => {
                    let name = format!("bar {}", model.inputs[i.index()].name);
                    let offset = memory.adjoint.take(name, count);
                    memory.input_bars[i.index()] = Some(offset);
                    self.claim(v, Loc { region: Region::Adjoint, shift: 0, offset });
                }
                Sink::BoundaryBar(p) => {
                    if let Op::Outer(a, b) = self.f.at(v).op {
                        self.settle(a, memory);
                        self.settle(b, memory);
                        continue;
                    }
                    let offset = memory.gradient(shape, self.sizes, p);
                    self.grad_places.insert(p, offset);
                    if !is_matrix(self.f, v) {
                        self.sums.push((v, offset));
                    }
                }
                _ => {}
            }
        }
    }

    /// An operand of a hoisted product needs memory even if it is a constant.
    fn settle(&mut self, v: Value, memory: &mut Memory) {
        let v = self.strip(v);
        let spread = matches!(self.f.at(v).op, Op::Splat(..));
        if (self.constant(v).is_some() || spread) && !self.loc.contains_key(&v) {
            let offset = memory.adjoint.take(format!("%{}", v.0), self.sizes.count(self.f.ty(v).shape));
            let loc = Loc { region: Region::Adjoint, shift: 0, offset };
            self.copies.push((v, loc));
            self.loc.insert(v, loc);
        }
        self.forced.insert(v);
    }

    /// An output that is stored in this step's frame anyway needs no slot of its own.
    fn reuse_or_take(&mut self, v: Value, memory: &mut Memory, name: String, count: usize) -> usize {
        match self.loc.get(&self.strip(v)) {
            Some(Loc { region: Region::Frame, shift: 0, offset }) => *offset,
            _ => {
                let offset = memory.frame.take(name, count);
                self.claim(v, Loc { region: Region::Frame, shift: 0, offset });
                offset
            }
        }
    }

    fn claim(&mut self, v: Value, loc: Loc) {
        let v = self.strip(v);
        if self.is_task(v) && !self.loc.contains_key(&v) {
            self.loc.insert(v, loc);
        } else {
            self.copies.push((v, loc));
        }
        self.forced.insert(v);
    }

    /// Whether a scalar or vector is computed by a task of its own (or by a sweep).
    fn is_task(&self, v: Value) -> bool {
        !is_matrix(self.f, v)
            && !self.is_leaf(v)
            && self.constant(v).is_none()
            && !matches!(
                self.f.at(v).op,
                Op::Load(_) | Op::Splat(..) | Op::Slice { .. } | Op::Element(..) | Op::StopGrad(_)
            )
    }

    /// Gives every other value that crosses nests a slot.
    fn locate_rest(&mut self, memory: &mut Memory) {
        let stored = self.crossing();
        for v in stored {
            if self.loc.contains_key(&v) || !self.is_task(v) {
                continue;
            }
            let name = self.f.at(v).name.clone().unwrap_or_else(|| format!("%{}", v.0));
            let count = self.sizes.count(self.f.ty(v).shape);
            let (region, offset) = match self.direction {
                Direction::Forward => (Region::Frame, memory.frame.take(name, count)),
                Direction::Backward => (Region::Adjoint, memory.adjoint.take(name, count)),
            };
            self.loc.insert(v, Loc { region, shift: 0, offset });
        }
    }

    /// Values that are used outside of the nest that computes them.
    fn crossing(&self) -> BTreeSet<Value> {
        let mut home: BTreeMap<Value, (usize, usize)> = BTreeMap::new();
        for (g, drafts) in self.drafts.iter().enumerate() {
            for (d, draft) in drafts.iter().enumerate() {
                for task in &draft.tasks {
                    if let Task::Compute(v) = task {
                        home.insert(*v, (g, d));
                    }
                }
            }
        }
        let mut stored: BTreeSet<Value> = self.forced.iter().map(|v| self.memory_value(*v)).collect();
        for (v, instruction) in self.f.values() {
            if !self.schedule.live[v.index()] {
                continue;
            }
            if reduced_matrix(self.f, &instruction.op).is_some() || self.is_fused_sum(v) {
                stored.insert(v);
            }
            for o in instruction.op.operands() {
                let same = home.contains_key(&v) && home.get(&v) == home.get(&self.strip(o));
                if !same || !self.is_elementwise(v) {
                    stored.insert(self.memory_value(o));
                }
            }
        }
        for (d, (v, _)) in self.copies.iter().enumerate() {
            self.store_for(Task::Copy(d), *v, &home, &mut stored);
        }
        for (d, (v, _)) in self.sums.iter().enumerate() {
            self.store_for(Task::Accumulate(d), *v, &home, &mut stored);
        }
        stored
    }

    fn store_for(
        &self,
        task: Task,
        v: Value,
        home: &BTreeMap<Value, (usize, usize)>,
        stored: &mut BTreeSet<Value>,
    ) {
        let at = self
            .drafts
            .iter()
            .enumerate()
            .find_map(|(g, drafts)| drafts.iter().position(|d| d.tasks.contains(&task)).map(|d| (g, d)));
        if home.get(&self.strip(v)).copied() != at {
            stored.insert(self.memory_value(v));
        }
    }

    /// The value in memory that an alias reads.
    fn memory_value(&self, v: Value) -> Value {
        let v = self.strip(v);
        match self.f.at(v).op {
            Op::Slice { x, .. } | Op::Element(x, _) | Op::Splat(x, _) => self.memory_value(x),
            _ => v,
        }
    }

    // ------------------------------------------------------------------ drafts

    fn is_elementwise(&self, v: Value) -> bool {
        matches!(
            self.f.at(v).op,
            Op::Unary(..)
                | Op::Binary(..)
                | Op::Select(..)
                | Op::Clip { .. }
                | Op::Splat(..)
                | Op::StopGrad(_)
        )
    }

    /// Whether a value is a sum or maximum over a vector, computed by a vector nest.
    fn is_fused_sum(&self, v: Value) -> bool {
        matches!(self.f.at(v).op, Op::SumAll(x) | Op::MaxAll(x) if !is_matrix(self.f, x))
    }

    /// Groups the tasks of every stage into nests.
    fn draft(&mut self) {
        let last = self.schedule.stage.iter().max().copied().unwrap_or(0);
        for stage in 0..=last.max(self.schedule.sweeps) {
            let mut tasks: Vec<Task> = vec![];
            for (v, _) in self.f.values() {
                let here = self.schedule.live[v.index()] && self.schedule.stage[v.index()] == stage;
                let swept =
                    reduced_matrix(self.f, &self.f.at(v).op).is_some_and(|m| schedule::is_swept(self.f, m));
                if here && self.is_task(v) && !swept {
                    tasks.push(Task::Compute(v));
                }
            }
            let at = |v: Value| self.schedule.stage[v.index()] == stage;
            tasks.extend((0..self.copies.len()).filter(|k| at(self.copies[*k].0)).map(Task::Copy));
            tasks.extend((0..self.sums.len()).filter(|k| at(self.sums[*k].0)).map(Task::Accumulate));
            let drafts = self.group(&tasks);
            self.drafts.push(drafts);
        }
    }

    /// Fuses tasks of equal extent greedily, each into the earliest nest that it can join.
    fn group(&self, tasks: &[Task]) -> Vec<Draft> {
        let mut drafts: Vec<Draft> = vec![];
        let mut home: BTreeMap<Value, usize> = BTreeMap::new();
        for task in tasks {
            let (extent, fusable, operands) = self.shape_of_task(*task);
            let mut earliest = 0;
            for o in operands {
                let base = self.memory_value(o);
                if let Some(d) = home.get(&base) {
                    let same = base == self.strip(o)
                        && fusable
                        && drafts[*d].extent == extent
                        && self.is_elementwise(base);
                    earliest = earliest.max(if same { *d } else { *d + 1 });
                }
            }
            let joins = |d: &Draft| fusable && d.extent == extent && self.is_fusable_draft(d);
            let found = (earliest..drafts.len()).find(|d| joins(&drafts[*d]));
            let d = found.unwrap_or_else(|| {
                drafts.push(Draft { extent, tasks: vec![] });
                drafts.len() - 1
            });
            drafts[d].tasks.push(*task);
            if let Task::Compute(v) = task {
                home.insert(*v, d);
            }
        }
        drafts
    }

    fn is_fusable_draft(&self, draft: &Draft) -> bool {
        draft.tasks.iter().all(|t| self.shape_of_task(*t).1)
    }

    /// What a task runs over, whether it can share a nest, and what it reads.
    fn shape_of_task(&self, task: Task) -> (Extent, bool, Vec<Value>) {
        match task {
            Task::Copy(k) => {
                let v = self.copies[k].0;
                (self.extent(self.f.ty(v).shape), true, vec![v])
            }
            Task::Accumulate(k) => {
                let v = self.sums[k].0;
                (self.extent(self.f.ty(v).shape), true, vec![v])
            }
            Task::Compute(v) => {
                let op = &self.f.at(v).op;
                let operands = op.operands();
                let extent = match op {
                    Op::SumAll(x) | Op::MaxAll(x) => self.extent(self.f.ty(*x).shape),
                    Op::Contract(m, _) | Op::ContractT(m, _) | Op::SumPre(m) | Op::SumPost(m) => {
                        self.extent(self.f.ty(*m).shape)
                    }
                    _ => self.extent(self.f.ty(v).shape),
                };
                (extent, self.is_elementwise(v) || self.is_fused_sum(v), operands)
            }
        }
    }

    // ------------------------------------------------------------------- nests

    /// The nests of one stage's vectors.
    fn vector_nests(&self, stage: usize, role: Role, nests: &mut Vec<Nest>) {
        for draft in self.drafts.get(stage).map_or(&[][..], |d| d) {
            if let [Task::Compute(v)] = draft.tasks[..]
                && !self.is_elementwise(v)
                && !self.is_fused_sum(v)
            {
                self.single(role, v, nests);
            } else {
                nests.push(self.fused(role, draft));
            }
        }
    }

    fn fused(&self, role: Role, draft: &Draft) -> Nest {
        let mut inside = BTreeSet::new();
        for task in &draft.tasks {
            if let Task::Compute(v) = task
                && self.is_elementwise(*v)
            {
                inside.insert(*v);
            }
        }
        let mut emit = Emit::new(self, inside);
        let mut names = vec![];
        for task in &draft.tasks {
            match *task {
                Task::Compute(v) if self.is_fused_sum(v) => {
                    let place = self.place(role, v);
                    if let Op::SumAll(x) = self.f.at(v).op {
                        let (a, b) = emit.factors(role, x);
                        emit.effect(Effect::SumAll(place, a, b));
                    } else if let Op::MaxAll(x) = self.f.at(v).op {
                        let x = emit.number(role, x);
                        emit.effect(Effect::MaxAll(place, x));
                    }
                }
                Task::Compute(v) if self.loc.contains_key(&v) => {
                    let id = emit.number(role, v);
                    emit.effect(Effect::Store(self.vector_access(v, self.place(role, v)), id));
                    names.extend(self.f.at(v).name.clone());
                }
                Task::Compute(_) => {}
                Task::Copy(k) => {
                    let (v, loc) = self.copies[k];
                    let id = emit.copied(role, v);
                    emit.effect(Effect::Store(self.vector_access(v, self.resolve(role, loc)), id));
                }
                Task::Accumulate(k) => {
                    let (v, offset) = self.sums[k];
                    let id = emit.copied(role, v);
                    let place = Place { base: Base::Grads, offset };
                    emit.effect(Effect::Add(self.vector_access(v, place), id, None));
                }
            }
        }
        emit.finish(draft.extent, names.join(", "))
    }

    fn vector_access(&self, v: Value, place: Place) -> Access {
        match self.f.ty(v).shape {
            Shape::Scalar => Access::Scalar(place),
            _ => Access::Post(place),
        }
    }

    /// A task that is no elementwise work: a product with parameters, or moving parts of vectors.
    fn single(&self, role: Role, v: Value, nests: &mut Vec<Nest>) {
        let op = self.f.at(v).op.clone();
        let name = self.f.at(v).name.clone().unwrap_or_default();
        if let Some(m) = reduced_matrix(self.f, &op) {
            let mut emit = Emit::new(self, BTreeSet::new());
            self.reduce(&mut emit, role, v);
            nests.push(emit.finish(self.extent(self.f.ty(m).shape), format!("product {name}")));
            return;
        }
        let place = self.place(role, v);
        let len = self.sizes.count(self.f.ty(v).shape);
        let zero = |nests: &mut Vec<Nest>| {
            let mut body = Body::default();
            let zero = body.constant(0.0);
            let effects = vec![Effect::Store(Access::Post(place), zero)];
            nests.push(Nest { extent: Extent::Vector(len), body, effects, label: "zero".to_owned() });
        };
        let copy = |nests: &mut Vec<Nest>, x: Value, at: usize| {
            let mut emit = Emit::new(self, BTreeSet::new());
            let id = emit.copied(role, x);
            let to = Place { offset: place.offset + at, ..place };
            emit.effect(Effect::Store(self.vector_access(x, to), id));
            nests.push(emit.finish(self.extent(self.f.ty(x).shape), format!("part of {name}")));
        };
        match op {
            Op::Concat(parts, _) => {
                let mut at = 0;
                for part in parts {
                    copy(nests, part, at);
                    at += self.sizes.count(self.f.ty(part).shape);
                }
            }
            Op::Pad { x, start, .. } => {
                zero(nests);
                copy(nests, x, self.sizes.of(start));
                // A copy whose length is no multiple of the lanes runs over its end by the rest of
                // a register; what lies there is zero.
                let part = self.sizes.count(self.f.ty(x).shape);
                let end = self.sizes.of(start) + part;
                if !part.is_multiple_of(LANES) && end < len {
                    let mut body = Body::default();
                    let zero = body.constant(0.0);
                    let to = Place { offset: place.offset + end, ..place };
                    let effects = vec![Effect::Store(Access::Post(to), zero)];
                    let extent = Extent::Vector((len - end).min(LANES));
                    nests.push(Nest { extent, body, effects, label: "zero".to_owned() });
                }
            }
            Op::OneHot { x, index, .. } => {
                zero(nests);
                copy(nests, x, index);
            }
            other => unreachable!("{other:?} is no task"),
        }
    }

    /// Adds a reduction to a matrix nest.
    fn reduce(&self, emit: &mut Emit<'_>, role: Role, v: Value) {
        let place = self.place(role, v);
        match self.f.at(v).op {
            Op::Contract(m, x) => {
                let m = emit.number(role, m);
                let x = emit.vector(role, x, Access::Pre);
                emit.effect(Effect::SumPre(place, m, Some(x)));
            }
            Op::ContractT(m, x) => {
                let m = emit.number(role, m);
                let x = emit.vector(role, x, Access::Post);
                emit.effect(Effect::SumPost(place, m, Some(x)));
            }
            Op::SumPre(m) => {
                let (a, b) = emit.factors(role, m);
                emit.effect(Effect::SumPre(place, a, b));
            }
            Op::SumPost(m) => {
                let (a, b) = emit.factors(role, m);
                emit.effect(Effect::SumPost(place, a, b));
            }
            Op::SumAll(m) => {
                let (a, b) = emit.factors(role, m);
                emit.effect(Effect::SumAll(place, a, b));
            }
            Op::MaxAll(m) => {
                let m = emit.number(role, m);
                emit.effect(Effect::MaxAll(place, m));
            }
            ref other => unreachable!("{other:?} reduces no matrix"),
        }
    }

    // ------------------------------------------------------------------ sweeps

    /// The matrix extents of this function's sweeps.
    fn extents(&self) -> Vec<Extent> {
        let mut found = vec![];
        let mut add = |v: Value| {
            let extent = self.extent(self.f.ty(v).shape);
            if !found.contains(&extent) {
                found.push(extent);
            }
        };
        for (_, v) in self.f.results.iter().filter(|(_, v)| is_matrix(self.f, *v)) {
            add(*v);
        }
        for (v, i) in self.f.values().filter(|(v, _)| self.schedule.live[v.index()]) {
            let _ = v;
            if let Some(m) = reduced_matrix(self.f, &i.op).filter(|m| schedule::is_swept(self.f, *m)) {
                add(m);
            }
        }
        found
    }

    /// The nests of one sweep: the tail of the call before, the head, or both joined.
    fn sweep(&self, tail: Option<usize>, head: Option<usize>, place: Ends, nests: &mut Vec<Nest>) {
        for extent in self.extents() {
            let mut emit = Emit::new(self, BTreeSet::new());
            let mut label = vec![];
            if let Some(k) = tail {
                self.write(&mut emit, Role::Tail, extent, place, &mut label);
                self.sums_of(&mut emit, Role::Tail, k, extent, &mut label);
            }
            if let Some(k) = head {
                emit.from_ends = place == Ends::First && self.schedule.carried.is_some();
                self.sums_of(&mut emit, Role::Head, k, extent, &mut label);
                if self.schedule.joined && k == 0 {
                    self.keep(&mut emit, extent, &mut label);
                }
                if !self.schedule.joined && k + 1 == self.schedule.sweeps {
                    self.write(&mut emit, Role::Head, extent, place, &mut label);
                }
            }
            let nest = emit.finish(extent, label.join("; "));
            if !nest.effects.is_empty() {
                nests.push(nest);
            }
        }
    }

    /// The matrix states (or their cotangents) after the step.
    fn write(&self, emit: &mut Emit<'_>, role: Role, extent: Extent, place: Ends, label: &mut Vec<String>) {
        for (sink, v) in &self.f.results {
            let s = match sink {
                Sink::State(s) | Sink::StateBar(s) => *s,
                _ => continue,
            };
            if !is_matrix(self.f, *v) || self.extent(self.f.ty(*v).shape) != extent {
                continue;
            }
            let id = emit.number(role, *v);
            emit.handed.insert(s, id);
            if let Some(place) = self.log_bar_place(s) {
                emit.effect(Effect::Store(Access::Matrix(place), id));
                label.push(format!("write the cotangents of {}", model_name(&self.logs, s)));
                continue;
            }
            let to_ends = self.schedule.carried.is_some();
            let slot = self.matrix(s);
            let base = match role {
                Role::Replay => Base::Snapshot(1),
                _ if to_ends => Base::Ends,
                _ => Base::Carry,
            };
            if !to_ends || place == Ends::Last {
                let to = Place { base, offset: slot.offset };
                emit.effect(Effect::Store(Access::Matrix(to), id));
            }
            label.push(format!("write {}", slot.name));
        }
    }

    /// The sums and gradients of one sweep.
    fn sums_of(
        &self,
        emit: &mut Emit<'_>,
        role: Role,
        sweep: usize,
        extent: Extent,
        label: &mut Vec<String>,
    ) {
        for (v, instruction) in self.f.values() {
            let here = self.schedule.live[v.index()] && self.schedule.stage[v.index()] == sweep + 1;
            let Some(m) = reduced_matrix(self.f, &instruction.op) else { continue };
            let mine = self.extent(self.f.ty(m).shape) == extent && schedule::is_swept(self.f, m);
            // A late load raises the stage of what it feeds; a sum belongs to the sweep in which
            // its operands are there.
            if here && mine {
                self.reduce(emit, role, v);
                label.push(format!("sum {}", instruction.name.clone().unwrap_or(format!("%{}", v.0))));
            }
        }
        for (sink, v) in &self.f.results {
            let Sink::BoundaryBar(p) = sink else { continue };
            let mine = is_matrix(self.f, *v)
                && !is_rank_one(self.f, *v)
                && self.extent(self.f.ty(*v).shape) == extent
                && self.schedule.stage[v.index()] == sweep;
            if mine {
                let (a, b) = emit.factors(role, *v);
                let place = Place { base: Base::Grads, offset: self.grad_places[p] };
                emit.effect(Effect::Add(Access::Matrix(place), a, b));
                label.push(format!("gradient %{}", p.0));
            }
        }
    }

    /// Keeps the carried expressions for the next call.
    fn keep(&self, emit: &mut Emit<'_>, extent: Extent, label: &mut Vec<String>) {
        for (v, offset) in &self.carry {
            if self.extent(self.f.ty(*v).shape) == extent {
                let id = emit.number(Role::Head, *v);
                let place = Place { base: Base::Carry, offset: *offset };
                emit.effect(Effect::Store(Access::Matrix(place), id));
                label.push(format!("carry %{}", v.0));
            }
        }
    }

    // ---------------------------------------------------------------- routines

    fn steps(&self) -> Steps {
        let sweeps = self.schedule.sweeps;
        if !self.schedule.joined {
            let mut nests = vec![];
            for k in 0..=sweeps {
                self.vector_nests(k, Role::Head, &mut nests);
                if k < sweeps {
                    self.sweep(None, Some(k), Ends::Middle, &mut nests);
                }
            }
            let step = Routine { nests, cut: None };
            return Steps { first: step.clone(), step, ..Steps::default() };
        }
        let mut flush = vec![];
        self.sweep(Some(sweeps - 1), None, Ends::Last, &mut flush);
        self.vector_nests(sweeps, Role::Tail, &mut flush);
        let (first, step) = (self.joined(false), self.joined(true));
        Steps { first, step, flush: Routine { nests: flush, cut: None }, ..Steps::default() }
    }

    fn joined(&self, pending: bool) -> Routine {
        let sweeps = self.schedule.sweeps;
        let mut nests = vec![];
        self.vector_nests(0, Role::Head, &mut nests);
        let (tail, place) = match pending {
            true => (Some(sweeps - 1), Ends::Middle),
            false => (None, Ends::First),
        };
        self.sweep(tail, Some(0), place, &mut nests);
        if pending {
            self.vector_nests(sweeps, Role::Tail, &mut nests);
        }
        for k in 1..sweeps {
            self.vector_nests(k, Role::Head, &mut nests);
            if k + 1 < sweeps {
                self.sweep(None, Some(k), Ends::Middle, &mut nests);
            }
        }
        Routine { nests, cut: None }
    }

    /// Rebuilds the matrix states from the frames, without any sum.
    fn replay(&self) -> Routine {
        let mut nests = vec![];
        for extent in self.extents() {
            let mut emit = Emit::new(self, BTreeSet::new());
            let mut label = vec![];
            self.write(&mut emit, Role::Replay, extent, Ends::Middle, &mut label);
            let nest = emit.finish(extent, label.join("; ").replace("write", "replay"));
            if !nest.effects.is_empty() {
                nests.push(nest);
            }
        }
        Routine { nests, cut: None }
    }

    /// The hoisted gradients.
    fn rank_one(&self) -> Vec<Rank1> {
        let mut found = vec![];
        for (sink, v) in &self.f.results {
            if let (Sink::BoundaryBar(value), Op::Outer(a, b)) = (sink, &self.f.at(*v).op) {
                let dims = self.sizes.dims(self.f.ty(*v).shape);
                let (a, b) = (self.place(Role::Head, *a), self.place(Role::Head, *b));
                found.push(Rank1 { value: *value, a, b, post: dims[0], pre: dims[1] });
            }
        }
        found
    }
}

fn model_name(logs: &[Option<LogSlot>], s: StateId) -> &str {
    logs[s.index()].as_ref().map_or("", |l| &l.name)
}

/// Which call of a sequence a sweep belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ends {
    First,
    Middle,
    Last,
}
