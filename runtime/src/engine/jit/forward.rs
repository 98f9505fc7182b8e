//! Steps, one by one or many whose inputs are known, and what they leave: outputs, penalties, logs, checkpoints.

use super::code::{AFTER, BEFORE, FIRST, FLUSH, STEP};
use super::{Tape, tile_of};
use crate::engine::{Bound, Mode, TeamInputs};
use compiler::ir::{InputId, OutputId};
use compiler::loops::LIVE;

impl Tape {
    pub(super) fn input_slot(&self, bound: &Bound<'_>, input: InputId) -> (usize, usize) {
        let len = bound.engine.sizes().count(bound.engine.model().inputs[input.index()].shape);
        (self.program(bound).inputs[input.index()], len)
    }

    fn output_len(bound: &Bound<'_>, output: OutputId) -> usize {
        bound.engine.sizes().count(bound.engine.model().outputs[output.index()].shape)
    }

    pub(in crate::engine) fn input_mut(&mut self, bound: &Bound<'_>, input: InputId) -> &mut [f32] {
        let (offset, len) = self.input_slot(bound, input);
        let index = self.next_frame();
        self.slot_mut(self.program(bound), index, offset, len)
    }

    /// Zeroes what the host writes into a frame: cotangents of outputs, and inputs if wanted.
    pub(super) fn clear_slots(&mut self, bound: &Bound<'_>, index: usize, inputs: bool) {
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

    pub(in crate::engine) fn step(&mut self, bound: &Bound<'_>) {
        let index = self.next_frame();
        self.apart(bound, BEFORE, index..index + 1);
        self.advance(bound);
        self.apart(bound, AFTER, index..index + 1);
        self.clear_slots(bound, index + 1, true);
    }

    /// Several steps of all rows whose inputs are known.
    pub(in crate::engine) fn forward(
        &mut self,
        bound: &Bound<'_>,
        steps: usize,
        inputs: &mut TeamInputs<'_>,
    ) {
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
    pub(super) fn events(&self) -> usize {
        self.steps - self.stretches.last().map_or(0, |s| s.first)
    }

    /// Tells the kernels how many events there are.
    pub(super) fn set_live(&mut self, events: usize) {
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
    pub(super) fn flush(&mut self, bound: &Bound<'_>) {
        if self.pending {
            let index = self.next_frame();
            self.call(bound, FLUSH, index as isize);
            self.pending = false;
        }
    }

    pub(in crate::engine) fn steps(&self) -> usize {
        self.steps
    }

    pub(in crate::engine) fn output(&self, bound: &Bound<'_>, t: usize, output: OutputId) -> &[f32] {
        let program = self.program(bound);
        let offset = program.outputs[output.index()];
        self.slot(program, self.frame_of(t), offset, Self::output_len(bound, output))
    }

    /// The same of a row that need not be the selected one.
    pub(in crate::engine) fn output_of(
        &self,
        bound: &Bound<'_>,
        row: usize,
        t: usize,
        output: OutputId,
    ) -> &[f32] {
        let program = self.program(bound);
        let offset = program.outputs[output.index()] + program.frame_len / self.rows * row;
        let start = self.frame_start(program, self.frame_of(t)) + offset;
        &self.frames.as_slice()[start..start + Self::output_len(bound, output)]
    }

    pub(in crate::engine) fn penalty(&mut self, bound: &Bound<'_>, t: usize) -> f32 {
        if t + 1 == self.steps {
            self.flush(bound);
        }
        let program = self.program(bound);
        let frame = self.frame_of(t);
        program.penalties.iter().map(|offset| self.slot(program, frame, *offset, 1)[0]).sum()
    }

    pub(in crate::engine) fn output_bar_mut(
        &mut self,
        bound: &Bound<'_>,
        t: usize,
        output: OutputId,
    ) -> &mut [f32] {
        let program = self.program(bound);
        let offset = program.output_bars[output.index()];
        let index = self.frame_of(t);
        self.slot_mut(program, index, offset, Self::output_len(bound, output))
    }
}
