//! Machine code behind the engine's interface: memory, pointers, checkpoints and replay.
//!
//! # Layout of a tape
//!
//! Frames follow each other: a boundary frame with the initial states, then one frame per step; a
//! reset adds another boundary frame. [`Mode::Infer`] keeps a ring of four. The backward pass runs
//! over the stretches between resets from the last to the first, and over each stretch in segments
//! of `K` steps: the matrix states at a segment's start were saved going forward, those inside are
//! replayed from the frames.

mod backward;
mod buffer;
mod code;
mod forward;
mod grads;

pub(super) use buffer::Buffer;
pub(super) use code::Code;
pub(super) use grads::{Grads, products, unpack};

use super::{Bound, Engine, Mode, RowState, Start};
use compiler::interp::Tensor;
use compiler::ir::{InputId, Op, Source, StateId};
use compiler::loops::plan::TapeSizes;
use compiler::loops::{LANES, LogSlot, Program, Tiles};
use std::borrow::Cow;

/// Frames of the ring of [`Mode::Infer`]: a step reads its own and the two before.
const RING: usize = 4;

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
