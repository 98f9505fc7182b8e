//! Machine code behind the engine's interface: memory, pointers, checkpoints and replay.
//!
//! # Layout of a tape
//!
//! Frames follow each other: a boundary frame with the initial states, then one frame per step; a
//! reset adds another boundary frame. [`Mode::Infer`] keeps a ring of four. The backward pass runs
//! over the stretches between resets from the last to the first, and over each stretch in segments
//! of `K` steps: the matrix states at a segment's start were saved going forward, those inside are
//! replayed from the frames.

use super::product::accumulate;
use super::{Bound, Engine, FlushDenormals, Mode, RowState, Start, TeamInputs};
use compiler::back::{BackError, Kernels, Target};
use compiler::interp::Tensor;
use compiler::ir::{InputId, Op, OutputId, Source, StateId, Value};
use compiler::loops::plan::TapeSizes;
use compiler::loops::{
    Base, LANES, LIVE, LogSlot, NAMES, Place, Program, Rank1, Steps, TOGETHER, Tiles, routines,
};
use compiler::model::Init;
use std::alloc::Layout;
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::ops::Range;
use std::ptr::NonNull;

type Entry = unsafe extern "C" fn(*const *mut f32);
type ReplaySteps = unsafe extern "C" fn(*const *mut f32, u64);
type Pointers = [*mut f32; Base::ALL.len()];

/// Frames of the ring of [`Mode::Infer`]: a step reads its own and the two before.
const RING: usize = 4;

/// Compiled routines.
pub(super) struct Code {
    _kernels: Kernels,
    entries: [Entry; NAMES.len()],
    /// Several steps at once of the routines of [`Apart`].
    together: Option<[Entry; 4]>,
    /// Which routines do nothing.
    empty: [bool; NAMES.len()],
    replay_steps: Option<ReplaySteps>,
    /// Whether going backward a step reads the state after the step after it.
    reads_second: bool,
    bytes: usize,
}

// SAFETY: the code is never written after compilation, and it touches only memory that its caller
// points it to.
unsafe impl Send for Code {}
// SAFETY: as above.
unsafe impl Sync for Code {}

const FIRST: usize = 1;
const STEP: usize = 2;
const FLUSH: usize = 3;
const REPLAY: usize = 5;
const BACK_FIRST: usize = 7;
const BACK_STEP: usize = 8;
const BACK_FLUSH: usize = 9;

/// A routine that stands apart from the loop over time.
#[derive(Clone, Copy)]
struct Apart {
    /// Its number among all routines.
    entry: usize,
    /// Its number among those that take several steps at once.
    several: usize,
}

const BEFORE: Apart = Apart { entry: 0, several: 0 };
const AFTER: Apart = Apart { entry: 4, several: 1 };
const BACK_BEFORE: Apart = Apart { entry: 6, several: 2 };
const BACK_AFTER: Apart = Apart { entry: 10, several: 3 };

impl Code {
    pub(super) fn new(target: Target, program: &Program) -> Result<Code, BackError> {
        let kernels = target.compile(program)?;
        // SAFETY: `compile` gives entry points of this signature, valid while `kernels` lives.
        let entries = kernels.entries.map(|p| unsafe { std::mem::transmute::<*const u8, Entry>(p) });
        // SAFETY: likewise.
        let replay_steps =
            kernels.replay_steps.map(|p| unsafe { std::mem::transmute::<*const u8, ReplaySteps>(p) });
        // SAFETY: likewise.
        let together =
            kernels.together.map(|all| all.map(|p| unsafe { std::mem::transmute::<*const u8, Entry>(p) }));
        let empty = routines(program).map(|r| r.nests.is_empty());
        let bytes = kernels.code_bytes;
        let Steps { first, step, flush, .. } = &program.backward;
        let nests = [first, step, flush].into_iter().flat_map(|r| &r.nests);
        let mut loads = nests.flat_map(|n| n.body.loads());
        let reads_second = loads.any(|a| a.place().base == Base::Snapshot(2));
        Ok(Code { _kernels: kernels, entries, together, empty, replay_steps, reads_second, bytes })
    }

    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }
}

/// Zeroed memory. A large one begins a page, so that the places of its matrices within a page are
/// those of the program.
pub(super) struct Buffer {
    start: NonNull<f32>,
    len: usize,
}

// SAFETY: a buffer owns its memory, like a vector.
unsafe impl Send for Buffer {}
// SAFETY: shared access only reads.
unsafe impl Sync for Buffer {}

/// Bytes of a cache line.
const LINE: usize = 64;
/// Bytes of a page.
const PAGE: usize = 4096;

impl Default for Buffer {
    fn default() -> Self {
        Buffer::new(0)
    }
}

impl Buffer {
    pub(super) fn new(len: usize) -> Self {
        let Some(layout) = Self::layout(len) else { return Buffer { start: NonNull::dangling(), len } };
        // SAFETY: the layout is not empty.
        let start = unsafe { std::alloc::alloc_zeroed(layout) };
        let Some(start) = NonNull::new(start.cast::<f32>()) else { std::alloc::handle_alloc_error(layout) };
        Buffer { start, len }
    }

    /// `None` for no memory at all.
    fn layout(len: usize) -> Option<Layout> {
        let bytes = len.saturating_mul(4).next_multiple_of(LINE);
        let align = if bytes < 4 * PAGE { LINE } else { PAGE };
        if len == 0 { None } else { Layout::from_size_align(bytes, align).ok() }
    }

    /// Makes it longer, keeping what it holds.
    fn grow(&mut self, len: usize) {
        if self.len < len {
            let mut longer = Buffer::new(len);
            longer.as_mut_slice()[..self.len].copy_from_slice(self.as_slice());
            *self = longer;
        }
    }

    fn pointer(&self) -> *mut f32 {
        self.start.as_ptr()
    }

    pub(super) fn as_slice(&self) -> &[f32] {
        // SAFETY: `len` numbers lie behind the pointer, initialised to zero; an empty slice may dangle.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }

    fn as_mut_slice(&mut self) -> &mut [f32] {
        // SAFETY: as above, and the borrow is exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.len) }
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if let Some(layout) = Self::layout(self.len) {
            // SAFETY: the memory was allocated with this layout.
            unsafe { std::alloc::dealloc(self.start.as_ptr().cast(), layout) };
        }
    }
}

/// Lays out the unbatched values.
pub(super) fn pack_params(engine: &Engine, params: &[&[f32]], wide: &[Tensor]) -> Buffer {
    let values = engine.interpreter.prologue_without(wide, |p| engine.packed[p.index()]);
    let mut buffer = Buffer::new(engine.program.params_len);
    for bound in &engine.program.params {
        let narrow: Cow<'_, [f32]> =
            match (engine.model().step.at(bound.value).op.clone(), &values[bound.value.index()]) {
                (_, Some(value)) => value.iter().map(|x| *x as f32).collect(),
                (Op::Load(Source::Param(p)), None) => params[p.index()].into(),
                (op, None) => unreachable!("{op:?} is part of the prologue"),
            };
        let to = &mut buffer.as_mut_slice()[bound.offset..];
        match bound.matrix {
            Some((post, pre)) => engine.program.pack(post, pre, &narrow, to),
            None => to[..bound.len].copy_from_slice(&narrow),
        }
    }
    buffer
}

/// Gradient sums of a chunk of rows.
pub(super) struct Grads {
    packed: Buffer,
    /// Hoisted gradients, row-major; none if they are summed apart.
    plain: BTreeMap<Value, Vec<f32>>,
    apart: bool,
    initial: Vec<Vec<f32>>,
}

impl Grads {
    /// `apart`: without hoisted gradients, which [`products`] sums.
    pub(super) fn new(engine: &Engine, apart: bool) -> Self {
        let program = &engine.program;
        let hoisted = program.rank1.iter().filter(|_| !apart);
        let plain = hoisted.map(|r| (r.value, vec![0.0; r.post * r.pre])).collect();
        let learned = |s: &compiler::model::State| match s.init {
            Init::Param(_) => vec![0.0; engine.sizes().count(s.shape)],
            _ => vec![],
        };
        let initial = engine.model().states.iter().map(learned).collect();
        Grads { packed: Buffer::new(program.grads_len), plain, apart, initial }
    }

    pub(super) fn is_apart(&self) -> bool {
        self.apart
    }

    pub(super) fn clear(&mut self) {
        self.packed.as_mut_slice().fill(0.0);
        self.plain.values_mut().chain(&mut self.initial).for_each(|x| x.fill(0.0));
    }

    /// Adds to sums in double precision: those of sweeps in their packed form, then [`unpack`] has them.
    pub(super) fn add_to(
        &self,
        engine: &Engine,
        packed: &mut Vec<Vec<f64>>,
        boundary: &mut BTreeMap<Value, Vec<f64>>,
        initial: &mut [Vec<f64>],
    ) {
        use std::collections::btree_map::Entry;
        let slots = &engine.program.grads;
        packed.resize(slots.len(), vec![]);
        for (slot, sum) in slots.iter().zip(packed) {
            let len = slot.matrix.map_or(slot.len, |(post, pre)| Tiles::packed_len(post, pre));
            sum.resize(len, 0.0);
            let from = &self.packed.as_slice()[slot.offset..];
            sum.iter_mut().zip(from).for_each(|(sum, x)| *sum += f64::from(*x));
        }
        let mut add = |value: Value, x: &[f32]| match boundary.entry(value) {
            Entry::Vacant(place) => {
                place.insert(x.iter().map(|x| 0.0 + f64::from(*x)).collect());
            }
            Entry::Occupied(mut sum) => {
                sum.get_mut().iter_mut().zip(x).for_each(|(s, x)| *s += f64::from(*x));
            }
        };
        for (value, x) in &self.plain {
            add(*value, x);
        }
        for (sum, x) in initial.iter_mut().zip(&self.initial) {
            sum.iter_mut().zip(x).for_each(|(s, x)| *s += f64::from(*x));
        }
    }
}

/// Gradients out of the packed sums of [`Grads::add_to`].
pub(super) fn unpack(engine: &Engine, packed: Vec<Vec<f64>>, boundary: &mut BTreeMap<Value, Vec<f64>>) {
    for (slot, sum) in engine.program.grads.iter().zip(packed) {
        let plain = match slot.matrix {
            Some((post, pre)) => {
                let mut plain = vec![0.0; post * pre];
                engine.program.unpack(post, pre, &sum, &mut plain);
                plain
            }
            None => sum,
        };
        match boundary.get_mut(&slot.value) {
            Some(sum) => sum.iter_mut().zip(plain).for_each(|(s, x)| *s += x),
            None => {
                boundary.insert(slot.value, plain);
            }
        }
    }
}

/// A stretch of steps between resets.
#[derive(Clone, Debug)]
struct Stretch {
    /// Its boundary frame.
    boundary: usize,
    /// Its first step.
    first: usize,
    /// Which states start at their own initial values.
    own: Vec<bool>,
}

/// The memory of a row, or of a few rows that step together.
pub(super) struct Tape {
    mode: Mode,
    /// Rows that step together.
    rows: usize,
    /// The row that the host speaks of.
    row: usize,
    frames: Buffer,
    frame_count: usize,
    adjoint: Buffer,
    carry: Buffer,
    scratch: Buffer,
    checkpoints: Buffer,
    room: Room,
    /// The logs of every stretch ([`Mode::Infer`]: of the last).
    logs: Vec<Buffer>,
    log_bars: Buffer,
    /// The stretch that runs.
    stretch: usize,
    /// The steps before which the matrix states were saved, in order.
    saved: Vec<usize>,
    /// Where the segment that runs backward begins in `checkpoints`.
    segment: usize,
    interval: usize,
    stretches: Vec<Stretch>,
    steps: usize,
    /// Whether the last step has left work for the next call.
    pending: bool,
    /// Whether the cotangents of the states at the start are wanted.
    keeps_bars: bool,
    init_bar: RowState,
}

/// What a tape needs only while it runs backward.
#[derive(Default)]
pub(super) struct Room {
    back_carry: Buffer,
    ends: Buffer,
    snapshots: Buffer,
}

impl Room {
    pub(super) fn new(engine: &Engine, steps: usize, interval: Option<usize>, rows: usize) -> Room {
        let sizes = TapeSizes::new(engine.program_of(rows), steps, interval);
        Room {
            back_carry: Buffer::new(sizes.back_carry),
            ends: Buffer::new(sizes.ends),
            snapshots: Buffer::new(sizes.snapshots),
        }
    }
}

impl Tape {
    /// With a room of its own, if it is one of [`Mode::Train`].
    pub(super) fn new(
        engine: &Engine,
        steps: usize,
        mode: Mode,
        interval: Option<usize>,
        rows: usize,
    ) -> Self {
        let mut tape = Tape::without_room(engine, steps, mode, interval, rows);
        if mode == Mode::Train {
            tape.room = Room::new(engine, steps, interval, rows);
        }
        tape
    }

    /// It is lent a room while it runs backward.
    pub(super) fn without_room(
        engine: &Engine,
        steps: usize,
        mode: Mode,
        interval: Option<usize>,
        rows: usize,
    ) -> Self {
        let program = engine.program_of(rows);
        let frame_count = match mode {
            Mode::Infer => RING,
            Mode::Forward | Mode::Train => steps + 2,
        };
        let sizes = TapeSizes::new(program, steps, interval);
        let train = |len: usize| Buffer::new(if mode == Mode::Train { len } else { 0 });
        Tape {
            mode,
            rows,
            row: 0,
            frames: Buffer::new(frame_count * program.frame_len),
            frame_count,
            adjoint: train(sizes.adjoint),
            carry: Buffer::new(sizes.carry),
            scratch: Buffer::new(sizes.scratch),
            checkpoints: train(sizes.checkpoints),
            room: Room::default(),
            logs: vec![Buffer::new(sizes.logs)],
            log_bars: train(sizes.log_bars),
            stretch: 0,
            saved: vec![],
            segment: 0,
            interval: sizes.interval,
            stretches: vec![],
            steps: 0,
            pending: false,
            keeps_bars: engine.options.initial_bars,
            init_bar: RowState::default(),
        }
    }

    fn program<'e>(&self, bound: &Bound<'e>) -> &'e Program {
        bound.engine.program_of(self.rows)
    }

    fn code<'b>(&self, bound: &'b Bound<'_>) -> &'b Code {
        match &bound.engine.kind {
            super::Kind::Jit(_) if self.rows > 1 => &bound.engine.team(self.rows).1,
            super::Kind::Jit(code) => code,
            super::Kind::Interp | super::Kind::Chain(_) | super::Kind::Device(_) | super::Kind::Torch(_) => {
                unreachable!("this tape belongs to a compiled engine")
            }
        }
    }

    /// Exchanges its room for this one.
    pub(super) fn exchange(&mut self, room: &mut Room) {
        std::mem::swap(&mut self.room, room);
    }

    /// Rows that step together.
    pub(super) fn rows(&self) -> usize {
        self.rows
    }

    /// The row that the host speaks of.
    pub(super) fn selected(&self) -> usize {
        self.row
    }

    /// From now on the host speaks of this row.
    pub(super) fn select(&mut self, row: usize) {
        assert!(row < self.rows, "row {row} of {}", self.rows);
        self.row = row;
    }

    /// Elements from the place of the first row to that of the selected one, in a region of all rows.
    fn shift(&self, region: usize) -> usize {
        region / self.rows * self.row
    }

    // ------------------------------------------------------------------ frames

    /// The frame of a step.
    fn frame_of(&self, t: usize) -> usize {
        let stretch = self.stretches.iter().rev().find(|s| s.first <= t);
        let stretch = stretch.expect("a tape is begun before it is used");
        stretch.boundary + 1 + (t - stretch.first)
    }

    /// The frame of the step about to run.
    fn next_frame(&self) -> usize {
        self.frame_of(self.steps)
    }

    fn frame_start(&self, program: &Program, index: usize) -> usize {
        let index = if self.mode == Mode::Infer { index % RING } else { index };
        index * program.frame_len
    }

    fn slot(&self, program: &Program, index: usize, offset: usize, len: usize) -> &[f32] {
        let start = self.frame_start(program, index) + self.shift(program.frame_len) + offset;
        &self.frames.as_slice()[start..start + len]
    }

    fn slot_mut(&mut self, program: &Program, index: usize, offset: usize, len: usize) -> &mut [f32] {
        let start = self.frame_start(program, index) + self.shift(program.frame_len) + offset;
        &mut self.frames.as_mut_slice()[start..start + len]
    }

    /// Makes room for a frame; a tape that is used for longer than announced grows.
    fn reserve(&mut self, engine: &Engine, index: usize) {
        if self.mode == Mode::Infer || index < self.frame_count {
            return;
        }
        let program = engine.program_of(self.rows);
        self.frame_count = (index + 2).max(self.frame_count * 2);
        self.frames.grow(self.frame_count * program.frame_len);
        if self.mode == Mode::Train {
            self.adjoint.grow((self.frame_count + 3) * program.adjoint_len);
        }
    }

    // ------------------------------------------------------------------ states

    /// One start for each row.
    pub(super) fn begin(&mut self, bound: &Bound<'_>, starts: &[Start<'_>]) {
        let own = starts.first().map_or(vec![], |s| s.own.clone());
        assert!(starts.len() == self.rows && starts.iter().all(|s| s.own == own), "rows that start alike");
        self.steps = 0;
        self.pending = false;
        self.saved.clear();
        self.stretches = vec![Stretch { boundary: 0, first: 0, own }];
        self.stretch = 0;
        for (row, start) in starts.iter().enumerate() {
            self.select(row);
            self.place_states(bound, 0, &start.states);
        }
        self.select(0);
        self.clear_slots(bound, 1, true);
    }

    pub(super) fn reset(&mut self, bound: &Bound<'_>, start: &Start<'_>) {
        assert!(self.rows == 1, "rows that step together are not reset in the middle");
        self.flush(bound);
        let old = self.next_frame();
        let own = start.own.clone();
        match self.stretches.last_mut() {
            Some(s) if s.first == self.steps => s.own = own,
            _ => self.stretches.push(Stretch { boundary: old, first: self.steps, own }),
        }
        self.stretch = if self.mode == Mode::Infer { 0 } else { self.stretches.len() - 1 };
        if self.logs.len() <= self.stretch {
            self.logs.push(Buffer::new(self.program(bound).log_len));
        }
        let new = self.next_frame();
        if new != old {
            self.move_inputs(bound, old, new);
        }
        self.place_states(bound, new - 1, &start.states);
    }

    /// The inputs of the coming step may have been written already: they move along.
    fn move_inputs(&mut self, bound: &Bound<'_>, from: usize, to: usize) {
        self.reserve(bound.engine, to);
        let program = self.program(bound);
        for k in 0..program.inputs.len() {
            let (offset, len) = self.input_slot(bound, InputId(k as u32));
            let x = self.slot(program, from, offset, len).to_vec();
            self.slot_mut(program, to, offset, len).copy_from_slice(&x);
        }
        self.clear_slots(bound, to, false);
    }

    fn place_states(&mut self, bound: &Bound<'_>, boundary: usize, states: &[&[f32]]) {
        let program = self.program(bound);
        self.reserve(bound.engine, boundary + 1);
        let shift = self.shift(program.matrices_len);
        for (k, x) in states.iter().enumerate() {
            match (&program.matrices[k], program.states[k]) {
                (Some(m), _) => {
                    program.pack(m.post, m.pre, x, &mut self.carry.as_mut_slice()[shift + m.offset..])
                }
                (None, Some(offset)) => {
                    self.slot_mut(program, boundary, offset, x.len()).copy_from_slice(x);
                }
                (None, None) => {}
            }
        }
    }

    pub(super) fn state(&mut self, bound: &Bound<'_>) -> RowState {
        self.flush(bound);
        let program = self.program(bound);
        let index = self.next_frame() - 1;
        let events = self.events();
        let mut states = zero_states(bound);
        let shift = self.shift(program.matrices_len);
        for log in &program.logs {
            let rows = &self.logs[self.stretch].as_slice()[log.offset..];
            states[log.state] = vec![0.0; log.events * log.len];
            for (k, x) in states[log.state][..events * log.len].iter_mut().enumerate() {
                *x = rows[log.at(program.widest, k / log.len, k % log.len)];
            }
        }
        for (k, x) in states.iter_mut().enumerate() {
            match (&program.matrices[k], program.states[k]) {
                (Some(m), _) => program.unpack(m.post, m.pre, &self.carry.as_slice()[shift + m.offset..], x),
                (None, Some(offset)) => {
                    let len = x.len();
                    x.copy_from_slice(self.slot(program, index, offset, len));
                }
                (None, None) => {}
            }
        }
        RowState { states }
    }

    // ----------------------------------------------------------------- forward

    fn input_slot(&self, bound: &Bound<'_>, input: InputId) -> (usize, usize) {
        let len = bound.engine.sizes().count(bound.engine.model().inputs[input.index()].shape);
        (self.program(bound).inputs[input.index()], len)
    }

    fn output_len(bound: &Bound<'_>, output: OutputId) -> usize {
        bound.engine.sizes().count(bound.engine.model().outputs[output.index()].shape)
    }

    pub(super) fn input_mut(&mut self, bound: &Bound<'_>, input: InputId) -> &mut [f32] {
        let (offset, len) = self.input_slot(bound, input);
        let index = self.next_frame();
        self.slot_mut(self.program(bound), index, offset, len)
    }

    /// Zeroes what the host writes into a frame: cotangents of outputs, and inputs if wanted.
    fn clear_slots(&mut self, bound: &Bound<'_>, index: usize, inputs: bool) {
        self.reserve(bound.engine, index);
        let selected = self.row;
        for row in 0..self.rows {
            self.select(row);
            self.clear_row(bound, index, inputs);
        }
        self.select(selected);
    }

    fn clear_row(&mut self, bound: &Bound<'_>, index: usize, inputs: bool) {
        let program = self.program(bound);
        for k in 0..if inputs { program.inputs.len() } else { 0 } {
            let (offset, len) = self.input_slot(bound, InputId(k as u32));
            self.slot_mut(program, index, offset, len).fill(0.0);
        }
        for (k, offset) in program.output_bars.iter().enumerate() {
            let len = Self::output_len(bound, OutputId(k as u32));
            self.slot_mut(program, index, *offset, len).fill(0.0);
        }
    }

    pub(super) fn step(&mut self, bound: &Bound<'_>) {
        let index = self.next_frame();
        self.apart(bound, BEFORE, index..index + 1);
        self.advance(bound);
        self.apart(bound, AFTER, index..index + 1);
        self.clear_slots(bound, index + 1, true);
    }

    /// Several steps of all rows whose inputs are known.
    pub(super) fn forward(&mut self, bound: &Bound<'_>, steps: usize, inputs: &mut TeamInputs<'_>) {
        let first = self.next_frame();
        for k in 0..steps {
            let index = if self.mode == Mode::Infer { self.next_frame() } else { first + k };
            self.clear_slots(bound, index, true);
            let count = self.program(bound).inputs.len();
            for (row, number) in (0..self.rows).flat_map(|r| (0..count).map(move |n| (r, n))) {
                self.select(row);
                let input = InputId(number as u32);
                let (offset, len) = self.input_slot(bound, input);
                inputs(row, k, input, self.slot_mut(self.program(bound), index, offset, len));
            }
            self.select(0);
            if self.mode == Mode::Infer {
                self.step(bound);
            }
        }
        if self.mode == Mode::Infer {
            return;
        }
        self.apart(bound, BEFORE, first..first + steps);
        (0..steps).for_each(|_| self.advance(bound));
        self.apart(bound, AFTER, first..first + steps);
        self.clear_slots(bound, first + steps, true);
    }

    /// A step but for what stands apart from the loop over time.
    fn advance(&mut self, bound: &Bound<'_>) {
        let index = self.next_frame();
        let joined = self.program(bound).merged.0;
        // A joined step first finishes the step before: only then are the states complete.
        if !joined {
            self.checkpoint(bound);
        }
        let entry = if joined && self.pending { STEP } else { FIRST };
        self.make_room(bound);
        self.call(bound, entry, index as isize);
        self.append(bound, index);
        if joined {
            self.checkpoint(bound);
        }
        self.pending = joined;
        self.steps += 1;
    }

    /// Events in the logs: the steps of the stretch so far.
    fn events(&self) -> usize {
        self.steps - self.stretches.last().map_or(0, |s| s.first)
    }

    /// Tells the kernels how many events there are.
    fn set_live(&mut self, events: usize) {
        self.scratch.as_mut_slice()[LIVE] = f32::from_bits(events.max(1) as u32);
    }

    /// Clears the tile of the logs that the coming step begins.
    fn make_room(&mut self, bound: &Bound<'_>) {
        let program = self.program(bound);
        let event = self.events();
        for log in &program.logs {
            assert!(
                event < log.events,
                "the log of {} has room for {} steps",
                bound.engine.model().name,
                log.events
            );
            let tile = tile_of(program, log);
            if event.is_multiple_of(tile) {
                let start = log.offset + log.at(program.widest, event, 0);
                self.logs[self.stretch].as_mut_slice()[start..start + tile * log.len].fill(0.0);
            }
        }
        if !program.logs.is_empty() {
            self.set_live(event);
        }
    }

    /// Moves the rows of the step that has run from its frame into the logs.
    fn append(&mut self, bound: &Bound<'_>, index: usize) {
        let program = self.program(bound);
        let event = self.events();
        let frame = self.frame_start(program, index);
        for log in &program.logs {
            let row = &self.frames.as_slice()[frame + log.row..][..log.len];
            let (start, stride) = (log.offset + log.at(program.widest, event, 0), tile_of(program, log));
            let column = self.logs[self.stretch].as_mut_slice()[start..].iter_mut().step_by(stride);
            column.zip(row).for_each(|(to, x)| *to = *x);
        }
    }

    /// Moves the cotangents of the rows that step `t` has appended into its adjoint frame.
    fn take_row_bars(&mut self, bound: &Bound<'_>, t: usize) {
        let program = self.program(bound);
        let event = t - self.stretches[self.stretch].first;
        for log in &program.logs {
            let (start, stride) = (log.bar + log.at(program.widest, event, 0), tile_of(program, log));
            let to = &mut self.adjoint.as_mut_slice()[t * program.adjoint_len + log.row_bar..][..log.len];
            let column = self.log_bars.as_slice()[start..].iter().step_by(stride);
            to.iter_mut().zip(column).for_each(|(to, x)| *to = *x);
        }
        if !program.logs.is_empty() {
            self.set_live(event);
        }
    }

    /// The cotangents of the logs after `events` events: zero, or what is given.
    fn place_log_bars(&mut self, program: &Program, events: usize, bar: Option<&[Vec<f32>]>) {
        for log in &program.logs {
            let rows = events.next_multiple_of(tile_of(program, log)).min(log.events);
            let to = &mut self.log_bars.as_mut_slice()[log.bar..][..rows * log.len];
            to.fill(0.0);
            let given = bar.and_then(|b| b.get(log.state)).into_iter().flatten();
            for (k, x) in given.take(events * log.len).enumerate() {
                to[log.at(program.widest, k / log.len, k % log.len)] = *x;
            }
        }
    }

    /// Saves the matrix states before the step that is running, if one is due.
    fn checkpoint(&mut self, bound: &Bound<'_>) {
        let matrices = self.program(bound).matrices_len;
        let first = self.stretches.last().map_or(0, |s| s.first);
        let due = (self.steps - first).is_multiple_of(self.interval);
        if self.mode != Mode::Train || matrices == 0 || !due {
            return;
        }
        let start = self.saved.len() * matrices;
        self.saved.push(self.steps);
        self.checkpoints.grow(start + matrices);
        let to = &mut self.checkpoints.as_mut_slice()[start..start + matrices];
        to.copy_from_slice(&self.carry.as_slice()[..matrices]);
    }

    /// Finishes what the last step has left pending.
    fn flush(&mut self, bound: &Bound<'_>) {
        if self.pending {
            let index = self.next_frame();
            self.call(bound, FLUSH, index as isize);
            self.pending = false;
        }
    }

    pub(super) fn steps(&self) -> usize {
        self.steps
    }

    pub(super) fn output(&self, bound: &Bound<'_>, t: usize, output: OutputId) -> &[f32] {
        let program = self.program(bound);
        let offset = program.outputs[output.index()];
        self.slot(program, self.frame_of(t), offset, Self::output_len(bound, output))
    }

    /// The same of a row that need not be the selected one.
    pub(super) fn output_of(&self, bound: &Bound<'_>, row: usize, t: usize, output: OutputId) -> &[f32] {
        let program = self.program(bound);
        let offset = program.outputs[output.index()] + program.frame_len / self.rows * row;
        let start = self.frame_start(program, self.frame_of(t)) + offset;
        &self.frames.as_slice()[start..start + Self::output_len(bound, output)]
    }

    pub(super) fn penalty(&mut self, bound: &Bound<'_>, t: usize) -> f32 {
        if t + 1 == self.steps {
            self.flush(bound);
        }
        let program = self.program(bound);
        let frame = self.frame_of(t);
        program.penalties.iter().map(|offset| self.slot(program, frame, *offset, 1)[0]).sum()
    }

    pub(super) fn output_bar_mut(&mut self, bound: &Bound<'_>, t: usize, output: OutputId) -> &mut [f32] {
        let program = self.program(bound);
        let offset = program.output_bars[output.index()];
        let index = self.frame_of(t);
        self.slot_mut(program, index, offset, Self::output_len(bound, output))
    }

    // ---------------------------------------------------------------- backward

    pub(super) fn backward(
        &mut self,
        bound: &Bound<'_>,
        grads: &mut Grads,
        penalty_bar: f32,
        last: Option<&RowState>,
    ) {
        self.flush(bound);
        let at = self.program(bound).penalty_bar;
        self.scratch.as_mut_slice()[at] = penalty_bar;
        self.init_bar =
            if self.keeps_bars { RowState { states: zero_states(bound) } } else { RowState::default() };
        let mut end = self.steps;
        for k in (0..self.stretches.len()).rev() {
            let first = self.stretches[k].first;
            self.stretch = k;
            let bar = last.filter(|_| end == self.steps).map(|s| s.states.as_slice());
            if first < end {
                self.backward_stretch(bound, grads, first, end, bar);
            } else if let (true, Some(bar)) = (end == self.steps && k + 1 == self.stretches.len(), bar) {
                // A reset after the last step: the final states are the initial ones.
                self.add_start(grads, first, bar);
            }
            end = first;
        }
    }

    /// Adds the cotangent of the states at the start of a stretch; learned initial values get
    /// their share where a state started at its own.
    fn add_start(&mut self, grads: &mut Grads, first: usize, bar: &[Vec<f32>]) {
        add_all(&mut self.init_bar.states, bar);
        for ((sum, bar), own) in grads.initial.iter_mut().zip(bar).zip(self.own_starts(first)) {
            if *own {
                sum.iter_mut().zip(bar).for_each(|(s, b)| *s += b);
            }
        }
    }

    /// Which states start a stretch at their own initial values.
    fn own_starts(&self, first: usize) -> &[bool] {
        self.stretches.iter().rev().find(|s| s.first == first).map_or(&[], |s| &s.own)
    }

    /// Whether somebody wants the cotangents of the states at the start of a stretch.
    fn wants_bars(&self, grads: &Grads, first: usize) -> bool {
        let is_learned = |(sum, own): (&Vec<f32>, &bool)| *own && !sum.is_empty();
        self.keeps_bars || grads.initial.iter().zip(self.own_starts(first)).any(is_learned)
    }

    /// Steps `first..end`, from the last to the first; `bar` is zero if absent.
    fn backward_stretch(
        &mut self,
        bound: &Bound<'_>,
        grads: &mut Grads,
        first: usize,
        end: usize,
        bar: Option<&[Vec<f32>]>,
    ) {
        self.place_bars(bound, end, bar);
        self.place_log_bars(self.program(bound), end - first, bar);
        let joined = self.program(bound).merged.1;
        self.apart_back(bound, BACK_BEFORE, first..end, grads);
        let mut segment_end = end;
        let starts: Vec<usize> = (first..end).step_by(self.interval).collect();
        for start in starts.into_iter().rev() {
            self.replay(bound, start, segment_end, segment_end == end);
            for t in (start..segment_end).rev() {
                let entry = if t + 1 == end || !joined { BACK_FIRST } else { BACK_STEP };
                self.take_row_bars(bound, t);
                self.call_back(bound, entry, t as isize, start, grads);
            }
            segment_end = start;
        }
        if joined {
            self.call_back(bound, BACK_FLUSH, first as isize - 1, first, grads);
        }
        self.apart_back(bound, BACK_AFTER, first..end, grads);
        let wanted = if self.wants_bars(grads, first) { self.rows } else { 0 };
        for row in 0..wanted {
            self.select(row);
            let bars = self.collect_bars(bound, first);
            self.add_start(grads, first, &bars);
        }
        self.select(0);
        if !grads.apart {
            self.hoisted(bound, grads, first, end);
        }
    }

    fn place_bars(&mut self, bound: &Bound<'_>, end: usize, bar: Option<&[Vec<f32>]>) {
        let program = self.program(bound);
        if bar.is_none_or(|b| b.len() < program.matrices.len()) {
            self.room.ends.as_mut_slice().fill(0.0);
        }
        for row in 0..self.rows {
            self.select(row);
            let start = end * program.adjoint_len + self.shift(program.adjoint_len);
            let shift = self.shift(program.matrices_len);
            for k in 0..program.matrices.len() {
                let x = bar.and_then(|b| b.get(k)).map(Vec::as_slice);
                match (&program.matrices[k], program.state_bars[k]) {
                    (Some(m), _) => {
                        let to = &mut self.room.ends.as_mut_slice()[shift + m.offset..];
                        x.into_iter().for_each(|x| program.pack(m.post, m.pre, x, to));
                    }
                    (None, Some(offset)) => {
                        let len = bound.state_len(StateId(k as u32));
                        let to = &mut self.adjoint.as_mut_slice()[start + offset..][..len];
                        match x {
                            Some(x) => to.copy_from_slice(x),
                            None => to.fill(0.0),
                        }
                    }
                    (None, None) => {}
                }
            }
        }
        self.select(0);
        if program.carries_states {
            let n = program.matrices_len;
            self.room.back_carry.as_mut_slice()[..n].copy_from_slice(&self.room.ends.as_slice()[..n]);
        }
    }

    /// The cotangents of the states before step `first`.
    fn collect_bars(&self, bound: &Bound<'_>, first: usize) -> Vec<Vec<f32>> {
        let program = self.program(bound);
        let start = first * program.adjoint_len + self.shift(program.adjoint_len);
        let shift = self.shift(if program.carries_states { program.carry_len } else { program.matrices_len });
        let from = if program.carries_states { &self.room.back_carry } else { &self.room.ends };
        let mut bars = zero_states(bound);
        for (k, x) in bars.iter_mut().enumerate() {
            match (&program.matrices[k], program.state_bars[k]) {
                (Some(m), _) => program.unpack(m.post, m.pre, &from.as_slice()[shift + m.offset..], x),
                (None, Some(offset)) => {
                    let len = x.len();
                    x.copy_from_slice(&self.adjoint.as_slice()[start + offset..][..len]);
                }
                (None, None) => {}
            }
        }
        bars
    }

    /// Rebuilds the matrix states of steps `start..=end` into snapshots `0..=end - start`. If a
    /// later segment follows, the state after its first step is kept in the next snapshot, if the
    /// backward pass reads it.
    fn replay(&mut self, bound: &Bound<'_>, start: usize, end: usize, is_last: bool) {
        let matrices = self.program(bound).matrices_len;
        if matrices == 0 {
            return;
        }
        let code = self.code(bound);
        if !is_last && code.reads_second {
            let keep = end - start;
            self.room.snapshots.as_mut_slice().copy_within(..matrices, keep * matrices);
        }
        self.segment = self.saved.iter().position(|t| *t == start).unwrap_or(0) * matrices;
        let mut pointers = self.pointers(bound, self.frame_of(start) as isize);
        self.point_at_snapshots(bound, &mut pointers, 0);
        if start == end {
            return;
        }
        if let Some(replay) = code.replay_steps {
            let _entered = Entered::new();
            // SAFETY: as for `enter`; frames and snapshots of the segment follow each other.
            unsafe { replay(pointers.as_ptr(), (end - start) as u64) };
            return;
        }
        for t in start..end {
            let mut pointers = self.pointers(bound, self.frame_of(t) as isize);
            self.point_at_snapshots(bound, &mut pointers, (t - start) as isize);
            self.enter(bound, code.entries[REPLAY], &pointers);
        }
    }

    fn hoisted(&mut self, bound: &Bound<'_>, grads: &mut Grads, first: usize, end: usize) {
        let _entered = Entered::new();
        for rank1 in &self.program(bound).rank1 {
            let sum = grads.plain.get_mut(&rank1.value).expect("one sum per hoisted gradient");
            self.multiply(bound, rank1, 0..rank1.post, first..end, sum);
        }
    }

    /// Adds these rows of a hoisted gradient, summed over steps.
    fn multiply(
        &self,
        bound: &Bound<'_>,
        rank1: &Rank1,
        post: Range<usize>,
        steps: Range<usize>,
        sum: &mut [f32],
    ) {
        let (a, stride) = self.series(bound, rank1.a, steps.start);
        let b = self.series(bound, rank1.b, steps.start);
        let part = Rank1 { post: post.len(), ..*rank1 };
        let a = (a.wrapping_add(post.start), stride);
        assert!(sum.len() == part.post * part.pre && post.end <= rank1.post, "a part of the gradient");
        // SAFETY: both series hold a vector of each row and step in frames of this tape, which stay
        // where they are; `sum` is a separate allocation of `post * pre` elements.
        unsafe { accumulate(&part, steps.len() * self.rows, a, b, sum) };
    }

    /// The hoisted gradient with this number, of all stretches.
    fn multiply_all(&self, bound: &Bound<'_>, number: usize, post: &Range<usize>, sum: &mut [f32]) {
        let rank1 = &self.program(bound).rank1[number];
        for (k, stretch) in self.stretches.iter().enumerate() {
            let end = self.stretches.get(k + 1).map_or(self.steps, |next| next.first);
            if stretch.first < end {
                self.multiply(bound, rank1, post.clone(), stretch.first..end, sum);
            }
        }
    }

    /// The first vector of a series over time and rows, and the distance between its vectors.
    fn series(&self, bound: &Bound<'_>, place: Place, first: usize) -> (*const f32, usize) {
        let program = self.program(bound);
        let (buffer, index, stride) = match place.base {
            Base::Frame(k) => {
                (&self.frames, self.frame_of(first) as isize + isize::from(k), program.frame_len)
            }
            Base::Adjoint(k) => (&self.adjoint, first as isize + isize::from(k), program.adjoint_len),
            _ => (&bound.packed, 0, 0),
        };
        let offset = index as usize * stride + place.offset;
        (&raw const buffer.as_slice()[offset], stride / self.rows)
    }

    pub(super) fn input_bar(&self, bound: &Bound<'_>, t: usize, input: InputId) -> Option<&[f32]> {
        let program = self.program(bound);
        let offset = program.input_bars[input.index()]?;
        let start = t * program.adjoint_len + self.shift(program.adjoint_len) + offset;
        let (_, len) = self.input_slot(bound, input);
        Some(&self.adjoint.as_slice()[start..start + len])
    }

    pub(super) fn init_bar(&self) -> RowState {
        self.init_bar.clone()
    }

    // ------------------------------------------------------------------- calls

    /// The pointers of a routine that is called for the step in frame `index`.
    fn pointers(&self, bound: &Bound<'_>, index: isize) -> Pointers {
        let program = self.program(bound);
        Base::ALL.map(|base| match base {
            Base::Frame(k) => {
                let at = index + isize::from(k);
                let at = if self.mode == Mode::Infer { at.rem_euclid(RING as isize) } else { at };
                self.frames.pointer().wrapping_offset(at * program.frame_len as isize)
            }
            Base::Scratch => self.scratch.pointer(),
            Base::Params => bound.packed.pointer(),
            Base::Carry => self.carry.pointer(),
            Base::Ends => self.room.ends.pointer(),
            Base::Log => self.logs[self.stretch].pointer(),
            Base::LogBar => self.log_bars.pointer(),
            Base::Adjoint(_) | Base::Snapshot(_) | Base::Grads | Base::Next => std::ptr::null_mut(),
        })
    }

    /// The snapshot before a segment is its checkpoint; the others follow each other.
    fn point_at_snapshots(&self, bound: &Bound<'_>, pointers: &mut Pointers, at: isize) {
        let matrices = self.program(bound).matrices_len as isize;
        for k in 0..3i8 {
            let number = at + isize::from(k);
            pointers[Base::Snapshot(k).slot()] = match number {
                0 => self.checkpoints.pointer().wrapping_add(self.segment),
                _ => self.room.snapshots.pointer().wrapping_offset((number - 1) * matrices),
            };
        }
    }

    fn call(&mut self, bound: &Bound<'_>, entry: usize, index: isize) {
        let pointers = self.pointers(bound, index);
        self.enter(bound, self.code(bound).entries[entry], &pointers);
    }

    /// Runs a routine for the steps in these frames.
    fn apart(&mut self, bound: &Bound<'_>, routine: Apart, frames: Range<usize>) {
        for (entry, index) in calls(self.code(bound), routine, frames) {
            let pointers = self.pointers(bound, index as isize);
            self.enter(bound, entry, &pointers);
        }
    }

    /// Runs a routine of the backward pass for these steps.
    fn apart_back(&mut self, bound: &Bound<'_>, routine: Apart, steps: Range<usize>, grads: &mut Grads) {
        let start = steps.start;
        for (entry, t) in calls(self.code(bound), routine, steps) {
            let pointers = self.back_pointers(bound, t as isize, start, grads);
            self.enter(bound, entry, &pointers);
        }
    }

    fn call_back(&mut self, bound: &Bound<'_>, entry: usize, t: isize, start: usize, grads: &mut Grads) {
        let pointers = self.back_pointers(bound, t, start, grads);
        self.enter(bound, self.code(bound).entries[entry], &pointers);
    }

    fn back_pointers(&self, bound: &Bound<'_>, t: isize, start: usize, grads: &mut Grads) -> Pointers {
        let program = self.program(bound);
        let frame = match usize::try_from(t).ok().filter(|t| *t >= start) {
            Some(t) => self.frame_of(t) as isize,
            None => self.frame_of(start) as isize - 1,
        };
        let mut pointers = self.pointers(bound, frame);
        self.point_at_snapshots(bound, &mut pointers, t - start as isize);
        for k in 0..3i8 {
            let at = (t + isize::from(k)) * program.adjoint_len as isize;
            pointers[Base::Adjoint(k).slot()] = self.adjoint.pointer().wrapping_offset(at);
        }
        pointers[Base::Carry.slot()] = self.room.back_carry.pointer();
        pointers[Base::Grads.slot()] = grads.packed.pointer();
        pointers
    }

    #[expect(clippy::needless_pass_by_ref_mut, reason = "the routine writes to this tape's memory")]
    fn enter(&mut self, _bound: &Bound<'_>, entry: Entry, pointers: &Pointers) {
        let _entered = Entered::new();
        // SAFETY: the routine reads and writes only inside of the regions whose sizes its program
        // states; the buffers behind the pointers have these sizes, belong to this tape, to the
        // caller's gradients (both borrowed exclusively), or are only read (parameters).
        unsafe { entry(pointers.as_ptr()) };
    }
}

/// Rows of a hoisted gradient that one thread sums.
const ROWS: usize = 64;

/// The hoisted gradients of tapes that have run backward, in their order, by boundary value. `spare` is
/// memory that may be used.
pub(super) fn products(
    bound: &Bound<'_>,
    tapes: &[&Tape],
    threads: usize,
    spare: &mut Vec<Vec<f32>>,
) -> BTreeMap<Value, Vec<f32>> {
    let rank1 = &bound.engine.program.rank1;
    let mut sums: Vec<Vec<f32>> = vec![];
    for r in rank1 {
        let found = spare.iter().position(|s| s.len() == r.post * r.pre);
        sums.push(found.map_or_else(|| vec![0.0; r.post * r.pre], |k| spare.swap_remove(k)));
    }
    let mut jobs = vec![];
    for (number, (r, sum)) in rank1.iter().zip(&mut sums).enumerate() {
        for (k, part) in sum.chunks_mut(ROWS * r.pre.max(1)).enumerate() {
            jobs.push((number, k * ROWS..r.post.min((k + 1) * ROWS), part));
        }
    }
    let work = |(): &mut (), (number, post, part): (usize, Range<usize>, &mut [f32])| {
        let _entered = Entered::new();
        part.fill(0.0);
        tapes.iter().for_each(|tape| tape.multiply_all(bound, number, &post, part));
    };
    crate::parallel::run(&mut vec![(); threads.max(1)], jobs, work);
    rank1.iter().map(|r| r.value).zip(sums).collect()
}

/// Which code runs a routine for these steps, and from which step on.
fn calls(code: &Code, routine: Apart, steps: Range<usize>) -> impl Iterator<Item = (Entry, usize)> {
    let several = code.together.map(|all| all[routine.several]);
    let one = code.entries[routine.entry];
    let end = if code.empty[routine.entry] { steps.start } else { steps.end };
    let mut next = steps.start;
    std::iter::from_fn(move || {
        let at = next;
        let (entry, count) = match several {
            Some(entry) if at + TOGETHER <= end => (entry, TOGETHER),
            _ => (one, 1),
        };
        next = at + count;
        (at < end).then_some((entry, at))
    })
}

/// The state of the processor that kernels need, while this lives.
struct Entered {
    _flush: FlushDenormals,
}

impl Entered {
    fn new() -> Entered {
        super::denormals::clear_upper_halves();
        Entered { _flush: FlushDenormals::start() }
    }
}

/// Zeros for all states; none for logs.
fn zero_states(bound: &Bound<'_>) -> Vec<Vec<f32>> {
    let program = &bound.engine.program;
    let kept = |k: usize| program.matrices[k].is_some() || program.states[k].is_some();
    let zeros = |k: usize| vec![0.0; if kept(k) { bound.state_len(StateId(k as u32)) } else { 0 }];
    (0..bound.engine.model().states.len()).map(zeros).collect()
}

/// Events of a tile of a log.
fn tile_of(program: &Program, log: &LogSlot) -> usize {
    Tiles::of(log.events, program.widest).width * LANES
}

fn add_all(sums: &mut [Vec<f32>], xs: &[Vec<f32>]) {
    for (sum, x) in sums.iter_mut().zip(xs) {
        sum.iter_mut().zip(x).for_each(|(s, x)| *s += x);
    }
}
