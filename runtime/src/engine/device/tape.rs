//! The memory of a batch on a device, and what runs on it when.

use super::code::{Buffer, Code, Params, packed, packed_of};
use super::regions::{Lengths, Regions, Room, Work, number};
use super::{Address, Fault, Graph, Move, Span, TapeArgs};
use crate::engine::{Bound, Engine, Mode, RowState, Start, TeamInputs};
use compiler::ir::{InputId, OutputId};
use compiler::loops::Program;
use std::sync::Arc;

pub(super) const BEFORE: usize = 0;
pub(super) const FIRST: usize = 1;
const STEP: usize = 2;
pub(super) const FLUSH: usize = 3;
pub(super) const AFTER: usize = 4;

/// Recordings that a tape keeps: a forward and a backward pass, and those of a shorter last window.
const RECORDINGS: usize = 4;

/// A stretch of steps between resets.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Stretch {
    /// Its boundary frame.
    pub(super) boundary: usize,
    /// Its first step.
    pub(super) first: usize,
    /// Which states start at their own initial values.
    pub(super) own: Vec<bool>,
}

/// All that decides what a pass launches, and with which arguments.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Shape {
    is_forward: bool,
    steps: usize,
    params: Address,
    grads: Vec<Address>,
    penalty_bar: u32,
    /// What training is told on the device; null for a pass of the network alone.
    lesson: Address,
}

impl Shape {
    /// The shape of an episode.
    pub(super) fn of(self, lesson: Address) -> Shape {
        Shape { lesson, ..self }
    }
}

/// Steps that are to run.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ahead {
    first: usize,
    steps: usize,
    /// The first one's frame.
    pub(super) frame: usize,
    /// Whether the step before has left work for it.
    pending: bool,
    /// The number of the next checkpoint, if checkpoints are made.
    pub(super) save: Option<usize>,
}

/// The memory of a batch.
pub(in crate::engine) struct Tape {
    pub(super) code: Arc<Code>,
    pub(super) mode: Mode,
    pub(super) rows: usize,
    /// The row that the host speaks of.
    row: usize,
    pub(super) interval: usize,
    /// Whether the matrix states of every step are kept, those after a frame by its number.
    pub(super) keeps: bool,
    pub(super) memory: Option<Regions>,
    recordings: Vec<(Shape, Graph)>,
    pub(super) stretches: Vec<Stretch>,
    /// The frame that lies first in memory.
    pub(super) base: usize,
    pub(super) steps: usize,
    /// Whether the last step has left work for the next.
    pending: bool,
    /// The steps before which the matrix states were saved, in order.
    pub(super) saved: Vec<usize>,
    pub(super) host: Host,
}

/// What the host has of a tape, packed: `[step][row][element]`.
#[derive(Default)]
pub(super) struct Host {
    /// Of the coming step.
    inputs: Vec<f32>,
    /// And terms of penalties. [`Mode::Infer`]: of the last step.
    outputs: Vec<f32>,
    /// Steps whose penalties are there.
    penalties: usize,
    pub(super) output_bars: Vec<f32>,
    pub(super) input_bars: Vec<f32>,
    /// By row and state: the cotangents of the initial states; none if they are still on the device.
    pub(super) init_bars: Option<Vec<Vec<Vec<f32>>>>,
    /// By row, until the next step.
    states: Option<Vec<RowState>>,
}

impl Tape {
    pub(in crate::engine) fn new(engine: &Engine, code: &Arc<Code>, room: Room) -> Tape {
        let lengths = Lengths::new(&engine.program, code, room);
        Tape {
            code: Arc::clone(code),
            mode: room.mode,
            rows: room.rows,
            row: 0,
            interval: lengths.interval,
            keeps: lengths.keeps,
            memory: code.attempt(|| Regions::new(code, &lengths)),
            recordings: vec![],
            stretches: vec![],
            base: 0,
            steps: 0,
            pending: false,
            saved: vec![],
            host: Host::default(),
        }
    }

    pub(in crate::engine) fn rows(&self) -> usize {
        self.rows
    }

    pub(in crate::engine) fn steps(&self) -> usize {
        self.steps
    }

    pub(in crate::engine) fn select(&mut self, row: usize) {
        assert!(row < self.rows, "row {row} of {}", self.rows);
        self.row = row;
    }

    /// Does something with the device, unless something has failed before.
    pub(super) fn work<T>(
        &self,
        bound: &Bound<'_>,
        work: impl FnOnce(Work<'_>) -> Result<T, Fault>,
    ) -> Option<T> {
        let regions = self.memory.as_ref()?;
        let params = bound.on_device.as_ref().map_or(0, |p| Params::at(p));
        let stretch = if self.mode == Mode::Infer { 0 } else { self.stretches.len().saturating_sub(1) };
        let (code, program) = (&*self.code, &bound.engine.program);
        let (rows, base, keeps) = (self.rows, self.base, self.keeps);
        let given = Work { code, regions, program, params, rows, base, stretch, keeps };
        self.code.attempt(|| work(given))
    }

    // ------------------------------------------------------------------ frames

    fn frame_of(&self, t: usize) -> usize {
        let stretch = self.stretches.iter().rev().find(|s| s.first <= t);
        let stretch = stretch.expect("a tape is begun before it is used");
        stretch.boundary + 1 + (t - stretch.first)
    }

    pub(super) fn next_frame(&self) -> usize {
        self.frame_of(self.steps)
    }

    // ------------------------------------------------------------------ states

    /// One start for each row.
    pub(in crate::engine) fn begin(&mut self, bound: &Bound<'_>, starts: &[Start<'_>]) {
        self.rewind();
        self.start(bound, 0, starts);
    }

    /// Forgets all steps.
    pub(super) fn rewind(&mut self) {
        self.steps = 0;
        self.base = 0;
        self.pending = false;
        self.saved.clear();
        self.row = 0;
        self.host.inputs = vec![0.0; self.rows * self.code.inputs.width];
        self.host.outputs.clear();
        self.host.output_bars.clear();
        self.host.penalties = 0;
        self.host.init_bars = None;
        self.stretches.clear();
    }

    pub(in crate::engine) fn reset(&mut self, bound: &Bound<'_>, starts: &[Start<'_>]) {
        self.flush(bound);
        let old = self.next_frame();
        if self.stretches.last().is_some_and(|s| s.first == self.steps) {
            self.stretches.pop();
            self.start(bound, old - 1, starts);
        } else {
            self.start(bound, old, starts);
        }
    }

    /// Begins a stretch with the coming step.
    fn start(&mut self, bound: &Bound<'_>, boundary: usize, starts: &[Start<'_>]) {
        let own = starts.first().map_or(vec![], |s| s.own.clone());
        assert!(starts.len() == self.rows && starts.iter().all(|s| s.own == own), "rows that start alike");
        self.open(bound, boundary, own);
        let p = &bound.engine.program;
        // Rows that start with the same numbers get them from one place.
        let alike = |s: &Start<'_>| s.states.iter().zip(&starts[0].states).all(|(a, b)| std::ptr::eq(*a, *b));
        let count = if starts.iter().all(alike) { 1 } else { starts.len() };
        let (mut matrices, mut vectors) = (vec![0.0; count * p.matrices_len], vec![]);
        for (row, start) in starts[..count].iter().enumerate() {
            for (slot, x) in p.matrices.iter().zip(&start.states) {
                if let Some(m) = slot {
                    p.pack(m.post, m.pre, x, &mut matrices[row * p.matrices_len + m.offset..]);
                }
            }
            for (slot, x) in self.code.slots.states.iter().zip(&start.states) {
                if slot.is_some() {
                    vectors.extend_from_slice(x);
                }
            }
        }
        self.work(bound, |w| {
            let r = w.regions;
            let stride = |n: usize| if count == 1 { 0 } else { n };
            if count == w.rows {
                let (region, first) = w.states_in(boundary);
                region.put(first, &matrices)?;
            } else {
                r.staging.put(0, &matrices)?;
                let from = (r.staging.at(), stride(p.matrices_len));
                w.whole((w.states(boundary), p.matrices_len), from, p.matrices_len)?;
            }
            r.staging.put(0, &vectors)?;
            w.code.moves(Move {
                to: w.frame(boundary),
                to_map: w.code.states.places.at(),
                from: r.staging.at(),
                from_map: 0,
                to_length: p.frame_len as i64,
                from_length: stride(w.code.states.width) as i64,
                width: w.code.states.width as i64,
                count: w.rows as i64,
            })?;
            r.logs[w.stretch].clear()
        });
    }

    /// A stretch that begins with the coming step, and room for it; its states are to be placed.
    pub(super) fn open(&mut self, bound: &Bound<'_>, boundary: usize, own: Vec<bool>) {
        self.stretches.push(Stretch { boundary, first: self.steps, own });
        self.host.states = None;
        self.reserve(bound, boundary + 1);
        if self.keeps {
            self.reserve_checkpoints(bound, 0);
        }
        let logs = if self.mode == Mode::Infer { 1 } else { self.stretches.len() };
        let log_len = bound.engine.program.log_len;
        while self.memory.as_ref().is_some_and(|m| m.logs.len() < logs) {
            let more = self.work(bound, |w| Buffer::new(&w.code.device, 4 * log_len * w.rows));
            match (more, &mut self.memory) {
                (Some(more), Some(m)) => m.logs.push(more),
                _ => return,
            }
        }
    }

    /// The states of the selected row after the last step.
    pub(in crate::engine) fn state(&mut self, bound: &Bound<'_>) -> RowState {
        self.flush(bound);
        if self.host.states.is_none() {
            self.host.states = Some(self.read_states(bound));
        }
        let states = self.host.states.as_ref().and_then(|s| s.get(self.row));
        states.cloned().unwrap_or_default()
    }

    fn read_states(&self, bound: &Bound<'_>) -> Vec<RowState> {
        let p = &bound.engine.program;
        let width = self.code.states.width;
        let mut matrices = vec![0.0; self.rows * p.matrices_len];
        let mut vectors = vec![0.0; self.rows * width];
        let mut logs = vec![0.0; self.rows * p.log_len];
        let frame = self.next_frame() - 1;
        self.work(bound, |w| {
            let (region, first) = w.states_in(frame);
            region.get(first, &mut matrices)?;
            w.gather(&w.code.states, (w.frame(frame), p.frame_len), w.rows)?;
            w.regions.staging.get(0, &mut vectors)?;
            w.regions.logs[w.stretch].get(0, &mut logs)
        });
        let row = |row: usize| {
            let mut states = zero_states(bound);
            let own = &vectors[row * width..(row + 1) * width];
            unpack_states(p, &self.code.slots.states, &matrices[row * p.matrices_len..], own, &mut states);
            for log in &p.logs {
                let from = &logs[row * p.log_len + log.offset..];
                let place = |k: usize| log.at(p.widest, k / log.len, k % log.len);
                states[log.state] = (0..log.events * log.len).map(|k| from[place(k)]).collect();
            }
            RowState { states }
        };
        (0..self.rows).map(row).collect()
    }

    // ----------------------------------------------------------------- forward

    pub(in crate::engine) fn input_mut(&mut self, input: InputId) -> &mut [f32] {
        let place = packed(&self.code.slots.inputs, input.index());
        let start = self.row * self.code.inputs.width;
        &mut self.host.inputs[start + place.start..start + place.end]
    }

    /// One step of all rows, whose inputs have been written.
    pub(in crate::engine) fn step(&mut self, bound: &Bound<'_>) {
        let frame = self.next_frame();
        self.reserve(bound, frame + 1);
        self.reserve_checkpoints(bound, 1);
        self.make_room(&bound.engine.program);
        let (t, pending, save) = (self.steps, self.pending, self.due());
        let (rows, width) = (self.rows, self.code.outputs.width);
        let mut outputs = vec![0.0; rows * width];
        let inputs = std::mem::take(&mut self.host.inputs);
        self.work(bound, |w| {
            w.regions.staging.put(0, &inputs)?;
            let frames = (w.frame(frame), w.program.frame_len);
            w.scatter(&w.code.inputs, frames, w.regions.staging.at(), rows)?;
            w.forward_apart(BEFORE, frame, 1)?;
            self.advance(w, t, pending, save)?;
            w.forward_apart(AFTER, frame, 1)?;
            w.gather(&w.code.outputs, frames, rows)?;
            w.regions.staging.get(0, &mut outputs)
        });
        self.host.inputs = inputs;
        self.host.inputs.fill(0.0);
        if self.mode == Mode::Infer {
            self.host.outputs.clear();
        }
        self.host.outputs.append(&mut outputs);
        self.stepped(1, save.is_some());
        let bars = self.steps * rows * self.code.output_bars.width;
        if self.mode == Mode::Train {
            self.host.output_bars.resize(bars, 0.0);
        }
    }

    pub(super) fn stepped(&mut self, steps: usize, saves: bool) {
        for t in self.steps..self.steps + steps {
            if saves && self.due_at(t) {
                self.saved.push(t);
            }
        }
        self.steps += steps;
        self.pending = true;
        self.host.states = None;
    }

    pub(super) fn due_at(&self, t: usize) -> bool {
        let first = self.stretches.last().map_or(0, |s| s.first);
        (t - first).is_multiple_of(self.interval)
    }

    /// The number of the next checkpoint, if checkpoints are made.
    pub(super) fn due(&self) -> Option<usize> {
        (self.mode == Mode::Train && !self.keeps).then_some(self.saved.len())
    }

    /// Logs have room for so many steps.
    fn make_room(&self, p: &Program) {
        let event = self.steps - self.stretches.last().map_or(0, |s| s.first);
        if let Some(log) = p.logs.iter().find(|log| log.events <= event) {
            panic!("a log has room for {} steps", log.events);
        }
    }

    /// A step but for what stands apart from the loop over time. `save` is the number of the next checkpoint.
    pub(super) fn advance(
        &self,
        w: Work<'_>,
        t: usize,
        pending: bool,
        save: Option<usize>,
    ) -> Result<(), Fault> {
        let joined = w.program.merged.0;
        let frame = self.frame_of(t);
        let all = w.program.matrices_len * w.rows;
        let checkpoint = || match save.filter(|_| !self.keeps && self.due_at(t)) {
            Some(number) => w.regions.checkpoints.take(number * all, &w.regions.carry, 0, all),
            None => Ok(()),
        };
        // A joined step first finishes the step before: only then are the states complete.
        if !joined {
            checkpoint()?;
        }
        w.forward(if joined && pending { STEP } else { FIRST }, frame)?;
        let event = t - self.stretches.last().map_or(0, |s| s.first);
        for (log, map) in w.program.logs.iter().zip(&w.code.logs) {
            w.code.moves(Move {
                to: w.regions.logs[w.stretch].at() + 4 * (log.offset + event),
                to_map: map.places.at(),
                from: w.frame(frame) + 4 * log.row,
                from_map: 0,
                to_length: w.program.log_len as i64,
                from_length: w.program.frame_len as i64,
                width: map.width as i64,
                count: w.rows as i64,
            })?;
        }
        if joined { checkpoint() } else { Ok(()) }
    }

    /// All of these steps in one launch, if there are kernels for that. `save` is the number of the next checkpoint.
    fn advance_whole(
        &self,
        w: Work<'_>,
        (first, steps): (usize, usize),
        save: Option<usize>,
    ) -> Result<bool, Fault> {
        let Some(whole) = w.code.sequence(false) else { return Ok(false) };
        let done = first - self.stretches.last().map_or(0, |s| s.first);
        let frame = self.frame_of(first);
        let (interval, checkpoints, left) = if self.keeps {
            // A checkpoint before every step is what is to be kept, but for the states after the last.
            let all = w.program.matrices_len * w.rows;
            let (region, to) = w.states_in(frame + steps - 1);
            region.take(to, region, w.states_in(frame - 1).1, all)?;
            (1, w.states(frame - 1 - done), frame + steps - 1)
        } else {
            // The checkpoints of this stretch begin before those that are to come.
            let saved = save.map(|n| n - done.div_ceil(self.interval));
            (self.interval, saved.map_or(0, |n| w.checkpoint(n)), frame)
        };
        let span = Span {
            frame: number((frame - w.base) as isize),
            adjoint: 0,
            steps: number(steps as isize),
            interval: number(interval as isize),
            done: number(done as isize),
            checkpoints,
        };
        let tape = TapeArgs { carry: w.states(left), ..w.tape(false, 0.0) };
        whole.launch(false, w.rows, tape, span)
    }

    /// Steps whose inputs lie in their frames, from the `first` on, with what stands apart from the loop over time.
    /// `save` is the number of the next checkpoint.
    pub(super) fn advance_known(
        &self,
        w: Work<'_>,
        (first, steps): (usize, usize),
        pending: bool,
        save: Option<usize>,
    ) -> Result<(), Fault> {
        let frame = self.frame_of(first);
        w.forward_apart(BEFORE, frame, steps)?;
        if !self.advance_whole(w, (first, steps), save)? {
            let mut number = save;
            for t in first..first + steps {
                self.advance(w, t, pending || t > first, number)?;
                if self.due_at(t) {
                    number = number.map(|n| n + 1);
                }
            }
            if w.program.merged.0 {
                w.forward(FLUSH, frame + steps)?;
            }
        }
        w.forward_apart(AFTER, frame, steps)
    }

    /// Several steps of all rows whose inputs are known.
    pub(in crate::engine) fn forward(
        &mut self,
        bound: &Bound<'_>,
        steps: usize,
        inputs: &mut TeamInputs<'_>,
    ) {
        let width = self.code.inputs.width;
        let mut all = vec![0.0; if self.mode == Mode::Infer { 0 } else { steps * self.rows * width }];
        for k in 0..steps {
            for (row, input) in
                (0..self.rows).flat_map(|r| (0..self.code.slots.inputs.len()).map(move |n| (r, n)))
            {
                let place = packed(&self.code.slots.inputs, input);
                let slots = if self.mode == Mode::Infer { &mut self.host.inputs } else { &mut all };
                let step = if self.mode == Mode::Infer { 0 } else { k };
                let start = (step * self.rows + row) * width;
                let slot = &mut slots[start + place.start..start + place.end];
                slot.fill(0.0);
                inputs(row, k, InputId(input as u32), slot);
            }
            if self.mode == Mode::Infer {
                self.step(bound);
            }
        }
        if self.mode != Mode::Infer && steps > 0 {
            self.sequence(bound, steps, &all);
        }
    }

    /// Makes room for steps whose inputs are known.
    pub(super) fn prepare(&mut self, bound: &Bound<'_>, steps: usize) -> Ahead {
        let frame = self.next_frame();
        self.reserve(bound, frame + steps);
        self.reserve_checkpoints(bound, steps);
        if let Some(last) = steps.checked_sub(1) {
            self.steps += last;
            self.make_room(&bound.engine.program);
            self.steps -= last;
        }
        if self.code.sequence(false).is_some() {
            // Kernels of whole sequences begin with complete states.
            self.flush(bound);
        }
        Ahead { first: self.steps, steps, frame, pending: self.pending, save: self.due() }
    }

    /// The kernels of these steps, whose inputs lie in their frames; outputs and penalties are complete afterwards.
    pub(super) fn advance_all(&self, w: Work<'_>, ahead: Ahead) -> Result<(), Fault> {
        self.advance_known(w, (ahead.first, ahead.steps), ahead.pending, ahead.save)
    }

    fn sequence(&mut self, bound: &Bound<'_>, steps: usize, inputs: &[f32]) {
        let (first, rows) = (self.steps, self.rows);
        let ahead = self.prepare(bound, steps);
        let (frame, save) = (ahead.frame, ahead.save);
        let whole = first == 0 && self.stretches.len() == 1;
        let shape = whole.then(|| self.shape(bound, true, steps, vec![], 0.0));
        self.work(bound, |w| w.regions.staging.put(0, inputs));
        let launches = |w: Work<'_>| {
            let frames = (w.frame(frame), w.program.frame_len);
            w.scatter(&w.code.inputs, frames, w.regions.staging.at(), steps * rows)?;
            self.advance_all(w, ahead)?;
            w.gather(&w.code.outputs, frames, steps * rows)
        };
        let recorded = self.recorded(bound, shape, launches);
        self.keep(recorded);
        let mut outputs = vec![0.0; steps * rows * self.code.outputs.width];
        self.work(bound, |w| w.regions.staging.get(0, &mut outputs));
        self.host.outputs.append(&mut outputs);
        self.stepped(steps, save.is_some());
        self.pending = false;
        self.host.penalties = if self.host.penalties == first { self.steps } else { self.host.penalties };
        if self.mode == Mode::Train {
            self.host.output_bars.resize(self.steps * rows * self.code.output_bars.width, 0.0);
        }
    }

    /// The last step has left nothing for the next.
    pub(super) fn settled(&mut self) {
        self.pending = false;
    }

    pub(super) fn shape(
        &self,
        bound: &Bound<'_>,
        is_forward: bool,
        steps: usize,
        grads: Vec<Address>,
        penalty_bar: f32,
    ) -> Shape {
        let params = bound.on_device.as_ref().map_or(0, |p| Params::at(p));
        Shape { is_forward, steps, params, grads, penalty_bar: penalty_bar.to_bits(), lesson: 0 }
    }

    /// Does the launches: those of a shape that is known as they were recorded, those of a new one after
    /// recording them; without a shape one by one. Gives a new recording.
    pub(super) fn recorded(
        &self,
        bound: &Bound<'_>,
        shape: Option<Shape>,
        launches: impl Fn(Work<'_>) -> Result<(), Fault>,
    ) -> Option<(Shape, Graph)> {
        let Some(shape) = shape else {
            self.work(bound, launches);
            return None;
        };
        let device = &self.code.device;
        // SAFETY: what is recorded reaches only regions of this tape, parameters and gradients, whose places are
        // part of the shape; a tape whose regions move forgets its recordings.
        let replay = |graph: Graph| unsafe { device.replay(graph) };
        if let Some((_, graph)) = self.recordings.iter().find(|(known, _)| *known == shape) {
            self.work(bound, |_| replay(*graph));
            return None;
        }
        let graph = self.work(bound, |w| {
            device.record()?;
            let done = launches(w);
            // A recording is ended whatever has happened in it.
            let graph = device.recorded();
            done?;
            graph
        })?;
        self.work(bound, |_| replay(graph));
        Some((shape, graph))
    }

    /// Keeps a new recording, in the place of the oldest if there are many.
    pub(super) fn keep(&mut self, recorded: Option<(Shape, Graph)>) {
        if recorded.is_some() && self.recordings.len() == RECORDINGS {
            let (_, graph) = self.recordings.remove(0);
            self.code.device.forget(graph);
        }
        self.recordings.extend(recorded);
    }

    /// Gives all recordings back.
    pub(super) fn forget(&mut self) {
        self.recordings.drain(..).for_each(|(_, graph)| self.code.device.forget(graph));
    }

    /// Finishes what the last step has left pending.
    pub(super) fn flush(&mut self, bound: &Bound<'_>) {
        if self.pending && bound.engine.program.merged.0 {
            let frame = self.next_frame();
            self.work(bound, |w| w.forward(FLUSH, frame));
        }
        self.pending = false;
    }

    pub(in crate::engine) fn output(&self, t: usize, output: OutputId) -> &[f32] {
        let place = packed(&self.code.slots.outputs, output.index());
        let step = if self.mode == Mode::Infer { 0 } else { t };
        let start = (step * self.rows + self.row) * self.code.outputs.width;
        &self.host.outputs[start + place.start..start + place.end]
    }

    pub(in crate::engine) fn penalty(&mut self, bound: &Bound<'_>, t: usize) -> f32 {
        let (terms, width) = (bound.engine.program.penalties.len(), self.code.outputs.width);
        if terms == 0 {
            return 0.0;
        }
        if self.host.penalties <= t || self.mode == Mode::Infer {
            self.flush(bound);
            self.fetch_outputs(bound);
        }
        let step = if self.mode == Mode::Infer { 0 } else { t };
        let end = (step * self.rows + self.row + 1) * width;
        self.host.outputs[end - terms..end].iter().sum()
    }

    /// Reads all outputs and penalties again.
    fn fetch_outputs(&mut self, bound: &Bound<'_>) {
        let (rows, width) = (self.rows, self.code.outputs.width);
        let first = if self.mode == Mode::Infer { self.steps - 1 } else { 0 };
        let mut outputs = std::mem::take(&mut self.host.outputs);
        self.work(bound, |w| {
            for (t, to) in (first..self.steps).zip(outputs.chunks_mut(rows * width)) {
                w.gather(&w.code.outputs, (w.frame(self.frame_of(t)), w.program.frame_len), rows)?;
                w.regions.staging.get(0, to)?;
            }
            Ok(())
        });
        self.host.outputs = outputs;
        self.host.penalties = self.steps;
    }

    pub(in crate::engine) fn output_bar_mut(&mut self, t: usize, output: OutputId) -> &mut [f32] {
        let place = packed(&self.code.slots.output_bars, output.index());
        let start = (t * self.rows + self.row) * self.code.output_bars.width;
        &mut self.host.output_bars[start + place.start..start + place.end]
    }

    pub(in crate::engine) fn input_bar(&self, t: usize, input: InputId) -> Option<&[f32]> {
        let place = packed_of(&self.code.slots.input_bars, input.index())?;
        let start = (t * self.rows + self.row) * self.code.input_bars.width;
        Some(&self.host.input_bars[start + place.start..start + place.end])
    }

    /// The cotangents of the initial states of the selected row.
    pub(in crate::engine) fn init_bar(&self, bound: &Bound<'_>) -> RowState {
        let states = match &self.host.init_bars {
            Some(bars) => bars[self.row].clone(),
            None => self.collect_bars(bound, 0).swap_remove(self.row),
        };
        RowState { states }
    }
}

impl Drop for Tape {
    fn drop(&mut self) {
        self.forget();
    }
}

/// Zeros for all states; none for logs.
pub(super) fn zero_states(bound: &Bound<'_>) -> Vec<Vec<f32>> {
    let p = &bound.engine.program;
    let kept = |k: usize| p.matrices[k].is_some() || p.states[k].is_some();
    let states = bound.engine.model().states.iter().enumerate();
    states.map(|(k, s)| vec![0.0; if kept(k) { bound.engine.sizes().count(s.shape) } else { 0 }]).collect()
}

/// States from packed matrices and packed vectors.
pub(super) fn unpack_states(
    p: &Program,
    slots: &[Option<(usize, usize)>],
    matrices: &[f32],
    vectors: &[f32],
    states: &mut [Vec<f32>],
) {
    for (k, x) in states.iter_mut().enumerate() {
        match (&p.matrices[k], packed_of(slots, k)) {
            (Some(m), _) => p.unpack(m.post, m.pre, &matrices[m.offset..], x),
            (None, Some(place)) => x.copy_from_slice(&vectors[place]),
            (None, None) => {}
        }
    }
}
