//! The backward pass: stretch by stretch from the last, segment by segment, each replayed from its checkpoint.

use super::code::{BACK_AFTER, BACK_BEFORE, BACK_FIRST, BACK_FLUSH, BACK_STEP};
use super::{Grads, Tape, tile_of, zero_states};
use crate::engine::{Bound, RowState};
use compiler::ir::{InputId, StateId};
use compiler::loops::Program;

impl Tape {
    pub(in crate::engine) fn backward(
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

    /// Rebuilds the matrix states of steps `start..=end` into snapshots `0..=end - start`. If a
    /// later segment follows, the state after its first step is kept in the next snapshot, if the
    /// backward pass reads it.
    fn replay(&mut self, bound: &Bound<'_>, start: usize, end: usize, is_last: bool) {
        let matrices = self.program(bound).matrices_len;
        if matrices == 0 {
            return;
        }
        let code = self.code(bound);
        if !is_last && code.reads_second() {
            let keep = end - start;
            self.room.snapshots.as_mut_slice().copy_within(..matrices, keep * matrices);
        }
        self.segment = self.saved.iter().position(|t| *t == start).unwrap_or(0) * matrices;
        self.replay_steps(bound, start..end);
    }

    pub(in crate::engine) fn input_bar(&self, bound: &Bound<'_>, t: usize, input: InputId) -> Option<&[f32]> {
        let program = self.program(bound);
        let offset = program.input_bars[input.index()]?;
        let start = t * program.adjoint_len + self.shift(program.adjoint_len) + offset;
        let (_, len) = self.input_slot(bound, input);
        Some(&self.adjoint.as_slice()[start..start + len])
    }

    pub(in crate::engine) fn init_bar(&self) -> RowState {
        self.init_bar.clone()
    }
}

fn add_all(sums: &mut [Vec<f32>], xs: &[Vec<f32>]) {
    for (sum, x) in sums.iter_mut().zip(xs) {
        sum.iter_mut().zip(x).for_each(|(s, x)| *s += x);
    }
}
