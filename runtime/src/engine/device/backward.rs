//! The backward pass of a batch: segment by segment, each from its checkpoint.

use super::code::{Buffer, Grads, Map};
use super::regions::{Work, number};
use super::tape::{Stretch, Tape, unpack_states, zero_states};
use super::{At, Fault, Move, Span};
use crate::engine::{Bound, RowState};

const REPLAY: usize = 5;
const BACK_BEFORE: usize = 6;
const BACK_FIRST: usize = 7;
const BACK_STEP: usize = 8;
const BACK_FLUSH: usize = 9;
const BACK_AFTER: usize = 10;

impl Tape {
    pub(in crate::engine) fn backward(
        &mut self,
        bound: &Bound<'_>,
        grads: &mut Grads,
        penalty_bar: f32,
        last: Option<&RowState>,
    ) {
        self.flush(bound);
        let bars = std::mem::take(&mut self.host.output_bars);
        self.work(bound, |w| w.regions.staging.put(0, &bars));
        self.host.output_bars = bars;
        let learned = grads.initial.iter().any(|x| !x.is_empty());
        self.host.init_bars = None;
        if self.stretches.len() == 1 && last.is_none() && self.steps > 0 {
            let at = grads.hoisted.iter().chain([&grads.sums]).map(Buffer::at).collect();
            let shape = self.shape(bound, false, self.steps, at, penalty_bar);
            let recorded = self.recorded(bound, Some(shape), |w| {
                self.take_bars(w)?;
                w.regions.grads.clear()?;
                self.clear_ends(w, self.steps)?;
                self.backward_stretch(w, 0, self.steps, self.saved.len(), penalty_bar, grads)?;
                w.code.add_rows(&w.regions.grads, w.rows, w.program.grads_len, grads)?;
                let adjoints = (w.adjoint(0), w.program.adjoint_len);
                w.gather(&w.code.input_bars, adjoints, self.steps * w.rows)
            });
            self.keep(recorded);
            self.read_input_bars(bound);
            if learned {
                let bars = self.collect_bars(bound, 0);
                self.add_start(grads, 0, &bars);
                self.host.init_bars = Some(bars);
            }
            return;
        }
        self.backward_parts(bound, grads, penalty_bar, last);
    }

    /// The backward pass of several stretches, or from given cotangents of the final states.
    fn backward_parts(
        &mut self,
        bound: &Bound<'_>,
        grads: &mut Grads,
        penalty_bar: f32,
        last: Option<&RowState>,
    ) {
        self.work(bound, |w| {
            self.take_bars(w)?;
            w.regions.grads.clear()
        });
        let zeros = zero_states(bound);
        let mut init = vec![zeros.clone(); self.rows];
        let mut end = self.steps;
        let mut saved = self.saved.len();
        for k in (0..self.stretches.len()).rev() {
            let first = self.stretches[k].first;
            let given = last.filter(|_| end == self.steps).map(|s| s.states.as_slice());
            let bars = if first < end {
                self.work(bound, |w| {
                    let w = Work { stretch: k, ..w };
                    self.clear_ends(w, end)?;
                    if let Some(given) = given {
                        self.place_ends(w, end, given)?;
                    }
                    self.backward_stretch(w, k, end, saved, penalty_bar, grads)
                });
                saved = self.saved.partition_point(|t| *t < first);
                self.collect_bars(bound, first)
            } else if end == self.steps && k + 1 == self.stretches.len() {
                // A reset after the last step: the final states are the initial ones.
                vec![given.map_or_else(|| zeros.clone(), <[_]>::to_vec); self.rows]
            } else {
                continue;
            };
            self.add_start(grads, k, &bars);
            for (sum, bars) in init.iter_mut().zip(&bars) {
                sum.iter_mut().zip(bars).for_each(|(s, b)| s.iter_mut().zip(b).for_each(|(s, b)| *s += b));
            }
            end = first;
        }
        self.host.init_bars = Some(init);
        self.work(bound, |w| {
            w.code.add_rows(&w.regions.grads, w.rows, w.program.grads_len, grads)?;
            w.gather(&w.code.input_bars, (w.adjoint(0), w.program.adjoint_len), self.steps * w.rows)
        });
        self.read_input_bars(bound);
    }

    /// The cotangents of outputs into their frames.
    fn take_bars(&self, w: Work<'_>) -> Result<(), Fault> {
        let each = 4 * self.rows * w.code.output_bars.width;
        let ends = self.stretches.iter().skip(1).map(|s| s.first).chain([self.steps]);
        for (stretch, end) in self.stretches.iter().zip(ends) {
            let from = w.regions.staging.at() + stretch.first * each;
            let to = (w.frame(stretch.boundary + 1), w.program.frame_len);
            w.scatter(&w.code.output_bars, to, from, (end - stretch.first) * w.rows)?;
        }
        Ok(())
    }

    /// No cotangents of the states after step `end - 1`.
    pub(super) fn clear_ends(&self, w: Work<'_>, end: usize) -> Result<(), Fault> {
        w.regions.ends.clear()?;
        w.regions.log_bars.clear()?;
        w.zero(&w.code.state_bars, (w.adjoint(end), w.program.adjoint_len))
    }

    /// Cotangents of the states after step `end - 1`, the same for all rows.
    fn place_ends(&self, w: Work<'_>, end: usize, given: &[Vec<f32>]) -> Result<(), Fault> {
        let p = w.program;
        let mut matrices = vec![0.0; p.matrices_len];
        let mut log_bars = vec![0.0; p.log_bar_len];
        for (slot, x) in p.matrices.iter().zip(given) {
            if let Some(m) = slot {
                p.pack(m.post, m.pre, x, &mut matrices[m.offset..]);
            }
        }
        for log in &p.logs {
            let given = given.get(log.state).into_iter().flatten();
            for (k, x) in given.take(log.events * log.len).enumerate() {
                log_bars[log.bar + log.at(p.widest, k / log.len, k % log.len)] = *x;
            }
        }
        let slots = self.code.slots.state_bars.iter().zip(given).filter(|(slot, _)| slot.is_some());
        let vectors: Vec<f32> = slots.flat_map(|(_, x)| x.iter().copied()).collect();
        let rows = |x: &[f32]| x.repeat(w.rows);
        w.regions.ends.put(0, &rows(&matrices))?;
        w.regions.log_bars.put(0, &rows(&log_bars))?;
        w.regions.staging.put(0, &rows(&vectors))?;
        let to = (w.adjoint(end), p.adjoint_len);
        w.scatter(&w.code.state_bars, to, w.regions.staging.at(), w.rows)
    }

    /// The steps of a stretch, from the last to the first; the last of its checkpoints is the one before `saved`.
    pub(super) fn backward_stretch(
        &self,
        w: Work<'_>,
        stretch: usize,
        end: usize,
        saved: usize,
        penalty_bar: f32,
        grads: &Grads,
    ) -> Result<(), Fault> {
        let p = w.program;
        let Stretch { first, boundary, .. } = self.stretches[stretch];
        let tape = w.tape(true, penalty_bar);
        let at = |t: usize, start: usize| At {
            frame: number((boundary + 1 + t - first) as isize),
            adjoint: number(t as isize),
            snapshot: number(t as isize - start as isize),
        };
        if p.carries_states {
            let (to, from) =
                ((w.regions.back_carry.at(), p.carry_len), (w.regions.ends.at(), p.matrices_len));
            w.whole(to, from, p.matrices_len)?;
        }
        w.code.apart(BACK_BEFORE, w.rows, end - first, tape, at(first, first))?;
        if let Some(whole) = &w.code.whole {
            let span = Span {
                frame: at(first, first).frame,
                adjoint: number(first as isize),
                steps: number((end - first) as isize),
                interval: number(self.interval as isize),
                done: 0,
                checkpoints: w.checkpoint(saved.saturating_sub((end - first).div_ceil(self.interval))),
            };
            whole.launch(true, w.rows, tape, span)?;
        } else {
            self.backward_steps(w, stretch, end, saved, penalty_bar)?;
        }
        w.code.apart(BACK_AFTER, w.rows, end - first, tape, at(first, first))?;
        w.code.hoist(p, (tape, at(first, first)), [end - first, w.rows], grads)
    }

    /// The same by a kernel for each step, without what stands apart from the loop over time.
    fn backward_steps(
        &self,
        w: Work<'_>,
        stretch: usize,
        end: usize,
        saved: usize,
        penalty_bar: f32,
    ) -> Result<(), Fault> {
        let p = w.program;
        let Stretch { first, boundary, .. } = self.stretches[stretch];
        let tape = w.tape(true, penalty_bar);
        let joined = p.merged.1;
        let at = |t: usize, start: usize| At {
            frame: number((boundary + 1 + t - first) as isize),
            adjoint: number(t as isize),
            snapshot: number(t as isize - start as isize),
        };
        let (mut segment_end, mut checkpoint) = (end, saved);
        let starts: Vec<usize> = (first..end).step_by(self.interval).collect();
        for start in starts.into_iter().rev() {
            checkpoint = checkpoint.saturating_sub(1);
            self.rebuild(w, (start, segment_end), segment_end < end, checkpoint, boundary + 1 - first)?;
            for t in (start..segment_end).rev() {
                for log in p.logs.iter().zip(&w.code.logs) {
                    self.take_row_bars(w, log, t, t - first)?;
                }
                let routine = if t + 1 == end || !joined { BACK_FIRST } else { BACK_STEP };
                w.code.step(routine, w.rows, tape, at(t, start))?;
            }
            segment_end = start;
        }
        if joined {
            let (frame, adjoint) = (number(boundary as isize), number(first as isize - 1));
            w.code.step(BACK_FLUSH, w.rows, tape, At { frame, adjoint, snapshot: -1 })?;
        }
        Ok(())
    }

    /// The cotangents of the row that a step has appended to a log, into its adjoint frame.
    fn take_row_bars(
        &self,
        w: Work<'_>,
        (log, map): (&compiler::loops::LogSlot, &Map),
        t: usize,
        event: usize,
    ) -> Result<(), Fault> {
        w.code.moves(Move {
            to: w.adjoint(t) + 4 * log.row_bar,
            to_map: 0,
            from: w.regions.log_bars.at() + 4 * (log.bar + event),
            from_map: map.places.at(),
            to_length: w.program.adjoint_len as i64,
            from_length: w.program.log_bar_len as i64,
            width: map.width as i64,
            count: w.rows as i64,
        })
    }

    /// The matrix states of a segment from its checkpoint; the one after the first step of the segment behind it is
    /// kept. `shift` leads from a step to its frame.
    fn rebuild(
        &self,
        w: Work<'_>,
        (start, end): (usize, usize),
        is_followed: bool,
        checkpoint: usize,
        shift: usize,
    ) -> Result<(), Fault> {
        let all = w.program.matrices_len * w.rows;
        if all == 0 {
            return Ok(());
        }
        let snapshots = &w.regions.snapshots;
        if is_followed && w.code.reads_second {
            snapshots.take((end - start + 1) * all, snapshots, all, all)?;
        }
        snapshots.take(0, &w.regions.checkpoints, checkpoint * all, all)?;
        for t in start..end {
            let (frame, snapshot) = (number((t + shift) as isize), number((t - start) as isize));
            w.code.step(REPLAY, w.rows, w.tape(false, 0.0), At { frame, adjoint: 0, snapshot })?;
        }
        Ok(())
    }

    /// The backward pass of a device that has failed: zeros.
    pub(in crate::engine) fn give_up(&mut self) {
        self.host.input_bars = vec![0.0; self.steps * self.rows * self.code.input_bars.width];
    }

    fn read_input_bars(&mut self, bound: &Bound<'_>) {
        let mut bars = std::mem::take(&mut self.host.input_bars);
        bars.resize(self.steps * self.rows * self.code.input_bars.width, 0.0);
        self.work(bound, |w| w.regions.staging.get(0, &mut bars));
        self.host.input_bars = bars;
    }

    /// The cotangents of the states before step `first`, by row and state.
    pub(super) fn collect_bars(&self, bound: &Bound<'_>, first: usize) -> Vec<Vec<Vec<f32>>> {
        let p = &bound.engine.program;
        let width = self.code.state_bars.width;
        let stride = if p.carries_states { p.carry_len } else { p.matrices_len };
        let (mut matrices, mut vectors) = (vec![0.0; self.rows * stride], vec![0.0; self.rows * width]);
        self.work(bound, |w| {
            let from = if p.carries_states { &w.regions.back_carry } else { &w.regions.ends };
            from.get(0, &mut matrices)?;
            w.gather(&w.code.state_bars, (w.adjoint(first), p.adjoint_len), w.rows)?;
            w.regions.staging.get(0, &mut vectors)
        });
        let row = |row: usize| {
            let mut states = zero_states(bound);
            let own = &vectors[row * width..(row + 1) * width];
            unpack_states(p, &self.code.slots.state_bars, &matrices[row * stride..], own, &mut states);
            states
        };
        (0..self.rows).map(row).collect()
    }

    /// Learned initial values get their share where a state started at its own, row after row.
    fn add_start(&self, grads: &mut Grads, stretch: usize, bars: &[Vec<Vec<f32>>]) {
        let own = &self.stretches[stretch].own;
        for bars in bars {
            for ((sum, bar), _) in grads.initial.iter_mut().zip(bars).zip(own).filter(|(_, own)| **own) {
                sum.iter_mut().zip(bar).for_each(|(s, b)| *s += f64::from(*b));
            }
        }
    }
}
