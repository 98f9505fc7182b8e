//! A batch of lent arrays through a sequence, forward and backward.

use super::segments::{Segment, cut};
use super::{Cotangents, Given, Gradients, Held, Lending, Lent, Place, Results, Rows, State};
use crate::engine::device::code::Buffer;
use crate::engine::device::regions::Work;
use crate::engine::device::tape::Tape;
use crate::engine::device::{Address, Fault};
use crate::engine::{Bound, EngineError, Mode};
use compiler::ir::Shape;
use std::sync::Arc;

/// A batch that has run forward and can run backward, any number of times. It does not depend on the arrays that it was
/// made from.
pub struct Batch {
    held: Arc<Held>,
    shape: [usize; 3],
    mode: Mode,
    segments: Vec<Segment>,
    /// By state: whether it started at its own initial value.
    own: Vec<bool>,
    /// Whether a call of this shape has used the tape before: worth a recording.
    is_known: bool,
    /// Until this is dropped.
    tape: Option<Tape>,
}

impl Drop for Batch {
    fn drop(&mut self) {
        if let Some(tape) = self.tape.take() {
            self.held.lending.keep_tape(self.shape, self.mode, tape);
        }
    }
}

/// Refuses arrays of another length than a model wants them.
fn check<'l>(
    lending: &Lending,
    arrays: impl Iterator<Item = Option<&'l Lent>>,
    shapes: impl Iterator<Item = Shape>,
    front: usize,
) {
    let wanted: Vec<usize> = shapes.map(|s| front * lending.count(s)).collect();
    let found: Vec<Option<usize>> = arrays.map(|a| a.map(|a| a.count)).collect();
    assert_eq!(found.len(), wanted.len(), "an array, or none, for everything");
    for (found, wanted) in found.into_iter().zip(wanted) {
        assert!(found.is_none_or(|n| n == wanted), "an array has {found:?} elements and not {wanted}");
    }
}

impl Held {
    /// Runs a batch; `mode` says whether it is to run backward. Gives the penalty terms, summed, averaged over steps and
    /// rows.
    ///
    /// # Safety
    /// All arrays lie on this device, are as long as they say, and stay until the call returns.
    ///
    /// # Errors
    /// If there is too little memory, or the device fails.
    pub unsafe fn forward(
        self: &Arc<Self>,
        given: &Given,
        to: &Results,
        mode: Mode,
    ) -> Result<(f64, Batch), EngineError> {
        let lending = &*self.lending;
        let (model, moments) = (lending.engine.model(), given.steps * given.rows);
        let inputs = model.inputs.iter().map(|i| i.shape);
        let states = || model.states.iter().map(|s| s.shape);
        check(lending, given.inputs.iter().map(Option::as_ref), inputs, moments);
        check(lending, given.states.iter().map(Option::as_ref), states(), given.rows);
        check(lending, to.outputs.iter().map(Some), model.outputs.iter().map(|o| o.shape), moments);
        check(lending, to.states.iter().map(Some), states(), given.rows);
        assert!(
            0 < moments && (given.resets.is_empty() || given.resets.len() == moments),
            "resets are [T, B]"
        );
        let _call = lending.call()?;
        let segments = cut(given.steps, given.rows, &given.resets);
        let shape = [given.steps, given.rows, segments.len()];
        let (tape, is_known) = lending.tape(shape, mode)?;
        let own = given.states.iter().map(Option::is_none).collect();
        let mut batch =
            Batch { held: Arc::clone(self), shape, mode, segments, own, is_known, tape: Some(tape) };
        let penalty = batch.run(given, to);
        lending.done()?;
        Ok((penalty, batch))
    }
}

impl Batch {
    /// Steps and rows.
    pub fn extent(&self) -> (usize, usize) {
        (self.shape[0], self.shape[1])
    }

    /// Forward.
    fn run(&mut self, given: &Given, to: &Results) -> f64 {
        let held = Arc::clone(&self.held);
        let (lending, bound) = (&*held.lending, held.bound());
        let tape = self.tape.as_mut().expect("a batch has a tape as long as it lives");
        tape.rewind();
        let mut boundary = 0;
        for (number, segment) in self.segments.iter().enumerate() {
            tape.open(&bound, boundary, vec![]);
            tape.work(&bound, |w| {
                if number > 0 {
                    lending.go_on(w, boundary, segment)?;
                }
                held.start(w, boundary, segment, (number == 0).then_some(given))
            });
            let ahead = tape.prepare(&bound, segment.len());
            tape.work(&bound, |w| lending.feed(w, ahead.frame, segment, given));
            let shape = (self.is_known && self.segments.len() == 1)
                .then(|| tape.shape(&bound, true, segment.len(), vec![], 0.0));
            let recorded = tape.recorded(&bound, shape, |w| tape.advance_all(w, ahead));
            tape.keep(recorded);
            tape.work(&bound, |w| lending.collect(w, ahead.frame, segment, to));
            tape.stepped(segment.len(), ahead.save.is_some());
            tape.settled();
            boundary = tape.next_frame();
        }
        tape.work(&bound, |w| lending.end(w, boundary - 1, to));
        self.penalty(&bound)
    }

    /// The penalties of all steps and rows: of each in single precision, their sum in double precision.
    fn penalty(&self, bound: &Bound<'_>) -> f64 {
        let terms = bound.engine.program.penalties.len();
        let moments = self.shape[0] * self.shape[1];
        let mut numbers = vec![0.0f32; terms * moments];
        let tape = self.tape.as_ref().expect("a batch has a tape as long as it lives");
        tape.work(bound, |w| w.regions.staging.get(0, &mut numbers));
        let sums = numbers.chunks(terms.max(1)).map(|x| f64::from(x.iter().sum::<f32>()));
        sums.sum::<f64>() / moments as f64
    }

    /// Runs backward. What comes out is of these cotangents alone.
    ///
    /// # Safety
    /// All arrays lie on this device, are as long as they say, and stay until the call returns.
    ///
    /// # Errors
    /// If the device fails.
    pub unsafe fn backward(&mut self, bars: &Cotangents, to: &Gradients) -> Result<(), EngineError> {
        assert!(self.mode == Mode::Train, "a batch that was to run backward");
        let held = Arc::clone(&self.held);
        let (lending, model) = (&*held.lending, held.lending.engine.model());
        let (steps, rows) = self.extent();
        let states = || model.states.iter().map(|s| s.shape);
        let inputs = model.inputs.iter().map(|i| i.shape);
        let outputs = model.outputs.iter().map(|o| o.shape);
        check(lending, bars.outputs.iter().map(Option::as_ref), outputs, steps * rows);
        check(lending, bars.states.iter().map(Option::as_ref), states(), rows);
        check(lending, to.params.iter().map(Option::as_ref), model.params.iter().map(|p| p.shape), 1);
        check(lending, to.inputs.iter().map(Option::as_ref), inputs, steps * rows);
        check(lending, to.states.iter().map(Option::as_ref), states(), rows);
        let _call = lending.call()?;
        self.run_back(bars, to);
        lending.done()?;
        Ok(())
    }

    fn run_back(&mut self, bars: &Cotangents, to: &Gradients) {
        let held = Arc::clone(&self.held);
        let (lending, bound, values) = (&*held.lending, held.bound(), held.values());
        let (steps, rows) = self.extent();
        let penalty_bar = (bars.penalty / (steps * rows) as f64) as f32;
        let tape = self.tape.as_mut().expect("a batch has a tape as long as it lives");
        tape.work(&bound, |w| {
            for (segment, stretch) in self.segments.iter().zip(&tape.stretches) {
                lending.take_bars(w, stretch.boundary + 1, segment, bars)?;
            }
            w.regions.grads.clear()?;
            values.clear()?;
            tape.clear_ends(w, steps)?;
            lending.place_ends(w, steps, bars)
        });
        let grads = values.grads();
        let mut saved = tape.saved.len();
        for (k, segment) in self.segments.iter().enumerate().rev() {
            let pass = |w: Work<'_>| {
                let w = Work { stretch: k, ..w };
                tape.backward_stretch(w, k, segment.end, saved, penalty_bar, grads)
            };
            let shape = (self.is_known && self.segments.len() == 1).then(|| {
                let at = grads.hoisted.iter().chain([&grads.sums]).map(Buffer::at).collect();
                tape.shape(&bound, false, steps, at, penalty_bar)
            });
            let recorded = tape.recorded(&bound, shape, pass);
            tape.keep(recorded);
            saved = tape.saved.partition_point(|t| *t < segment.first);
            let own = |state: usize| k == 0 && self.own[state];
            tape.work(&bound, |w| {
                held.add_starts(w, segment, &own)?;
                if k == 0 { lending.give_starts(w, segment, to) } else { lending.go_back(w, segment) }
            });
        }
        tape.work(&bound, |w| {
            w.code.add_rows(&w.regions.grads, rows, w.program.grads_len, grads)?;
            lending.give_input_bars(w, steps, to)?;
            let to: Vec<Option<Address>> = to.params.iter().map(|p| p.map(|p| p.at)).collect();
            values.give(&lending.rules, &to)
        });
    }
}

// ------------------------------------------------------------------------ forward

impl Held {
    /// The states of the rows that start with a segment: where `given` says, if it is the first, else at their own
    /// initial values.
    fn start(
        &self,
        w: Work<'_>,
        boundary: usize,
        segment: &Segment,
        given: Option<&Given>,
    ) -> Result<(), Fault> {
        let (lending, matrices) = (&*self.lending, w.states(boundary));
        match given {
            Some(_) => lending.clear(matrices, w.rows * w.program.matrices_len)?,
            None => lending.clear_rows(w, matrices, segment)?,
        }
        for (k, state) in lending.states.iter().enumerate() {
            let to = match &state.place {
                Place::Vector(offset, _) => Rows::plain(w.frame(boundary) + 4 * offset, w.program.frame_len),
                Place::Matrix(offset, map) => lending.matrices(w, matrices, *offset, map),
                Place::Nowhere => continue,
            };
            let own = Rows::plain(self.own(k), 0);
            for run in &segment.fresh {
                lending.rows(to, own, state.count, run)?;
            }
            let Some(given) = given else { continue };
            let from = given.states[k].map_or(own, |lent| Rows::plain(lent.at, state.count));
            for run in &segment.going {
                lending.rows(to, from, state.count, run)?;
            }
        }
        w.regions.logs[w.stretch].clear()
    }

    /// Adds the cotangents of the states that have started a segment at a parameter to those of the parameter.
    fn add_starts(&self, w: Work<'_>, segment: &Segment, own: &dyn Fn(usize) -> bool) -> Result<(), Fault> {
        let lending = &*self.lending;
        for (k, state) in lending.states.iter().enumerate() {
            let Some((_, sum)) = self.values().start(k) else { continue };
            let Some(from) = lending.start_bars(w, segment.first, state) else { continue };
            let going = segment.going.iter().filter(|_| own(k));
            let mut count = 0;
            for run in segment.fresh.iter().chain(going) {
                // Rows that are summed follow each other, whichever they are.
                let to = w.regions.staging.at() + 4 * count * state.count - 4 * run.start * state.count;
                lending.rows(Rows::plain(to, state.count), from, state.count, run)?;
                count += run.len();
            }
            lending.code.add_rows_to(&w.regions.staging, count, state.count, sum)?;
        }
        Ok(())
    }
}

impl Lending {
    fn matrices<'m>(&self, w: Work<'_>, region: Address, offset: usize, map: &'m Buffer) -> Rows<'m> {
        Rows { at: region + 4 * offset, stride: w.program.matrices_len, map: Some(map) }
    }

    /// Zeros in all matrices of the rows that are reset.
    fn clear_rows(&self, w: Work<'_>, region: Address, segment: &Segment) -> Result<(), Fault> {
        let each = w.program.matrices_len;
        segment.fresh.iter().try_for_each(|run| self.clear(region + 4 * run.start * each, run.len() * each))
    }

    /// States from the last frame of a segment to the frame before the next. Matrices move only where those of every
    /// step are kept; else they stay where they are.
    fn go_on(&self, w: Work<'_>, boundary: usize, segment: &Segment) -> Result<(), Fault> {
        let each = w.program.frame_len;
        for state in &self.states {
            let Place::Vector(offset, _) = state.place else { continue };
            let to = Rows::plain(w.frame(boundary) + 4 * offset, each);
            let from = Rows::plain(w.frame(boundary - 1) + 4 * offset, each);
            segment.going.iter().try_for_each(|run| self.rows(to, from, state.count, run))?;
        }
        let (to, from, each) = (w.states(boundary), w.states(boundary - 1), w.program.matrices_len);
        if to == from || each == 0 {
            return Ok(());
        }
        let (to, from) = (Rows::plain(to, each), Rows::plain(from, each));
        segment.going.iter().try_for_each(|run| self.rows(to, from, each, run))
    }

    /// Inputs into frames.
    fn feed(&self, w: Work<'_>, frame: usize, segment: &Segment, given: &Given) -> Result<(), Fault> {
        let (each, all) = (w.program.frame_len, 0..segment.len() * w.rows);
        for ((offset, count), input) in self.code.slots.inputs.iter().zip(&given.inputs) {
            let to = Rows::plain(w.frame(frame) + 4 * offset, each);
            self.rows(to, self.part(input.as_ref(), *count, segment, w.rows), *count, &all)?;
        }
        Ok(())
    }

    /// The part of an array `[T, B, …]` that belongs to a segment; zeros if there is none.
    fn part(&self, array: Option<&Lent>, count: usize, segment: &Segment, rows: usize) -> Rows<'static> {
        match array {
            Some(lent) => Rows::plain(lent.at + 4 * segment.first * rows * count, count),
            None => Rows::plain(self.code.zeros.at(), 0),
        }
    }

    /// Outputs out of frames; penalties into the staging memory, where those of all steps are in the end.
    fn collect(&self, w: Work<'_>, frame: usize, segment: &Segment, to: &Results) -> Result<(), Fault> {
        let (each, all) = (w.program.frame_len, 0..segment.len() * w.rows);
        let (outputs, terms) = self.code.slots.outputs.split_at(to.outputs.len());
        for ((offset, count), to) in outputs.iter().zip(&to.outputs) {
            let from = Rows::plain(w.frame(frame) + 4 * offset, each);
            self.rows(self.part(Some(to), *count, segment, w.rows), from, *count, &all)?;
        }
        for (k, (offset, _)) in terms.iter().enumerate() {
            let to = w.regions.staging.at() + 4 * (segment.first * w.rows * terms.len() + k);
            let from = Rows::plain(w.frame(frame) + 4 * offset, each);
            self.rows(Rows::plain(to, terms.len()), from, 1, &all)?;
        }
        Ok(())
    }

    /// The states after the last step.
    fn end(&self, w: Work<'_>, frame: usize, to: &Results) -> Result<(), Fault> {
        for (state, to) in self.states.iter().zip(&to.states) {
            let from = match &state.place {
                Place::Vector(offset, _) => Rows::plain(w.frame(frame) + 4 * offset, w.program.frame_len),
                Place::Matrix(offset, map) => self.matrices(w, w.states(frame), *offset, map),
                Place::Nowhere => {
                    self.clear(to.at, to.count)?;
                    continue;
                }
            };
            self.rows(Rows::plain(to.at, state.count), from, state.count, &(0..w.rows))?;
        }
        Ok(())
    }

    // ---------------------------------------------------------------- backward

    /// Cotangents of outputs into the frames of a segment.
    fn take_bars(
        &self,
        w: Work<'_>,
        frame: usize,
        segment: &Segment,
        bars: &Cotangents,
    ) -> Result<(), Fault> {
        let (each, all) = (w.program.frame_len, 0..segment.len() * w.rows);
        for ((offset, count), bar) in self.code.slots.output_bars.iter().zip(&bars.outputs) {
            let to = Rows::plain(w.frame(frame) + 4 * offset, each);
            self.rows(to, self.part(bar.as_ref(), *count, segment, w.rows), *count, &all)?;
        }
        Ok(())
    }

    /// Cotangents of the final states, where there are zeros.
    fn place_ends(&self, w: Work<'_>, end: usize, bars: &Cotangents) -> Result<(), Fault> {
        for (state, bar) in self.states.iter().zip(&bars.states) {
            let (Some(bar), Some(to)) = (bar, self.end_bars(w, end, state)) else { continue };
            self.rows(to, Rows::plain(bar.at, state.count), state.count, &(0..w.rows))?;
        }
        Ok(())
    }

    /// Where the cotangents of a state after step `end - 1` lie.
    fn end_bars<'s>(&self, w: Work<'_>, end: usize, state: &'s State) -> Option<Rows<'s>> {
        match &state.place {
            Place::Vector(_, bar) => {
                bar.map(|bar| Rows::plain(w.adjoint(end) + 4 * bar, w.program.adjoint_len))
            }
            Place::Matrix(offset, map) => Some(self.matrices(w, w.regions.ends.at(), *offset, map)),
            Place::Nowhere => None,
        }
    }

    /// Where the backward pass of a segment leaves the cotangents of a state before its first step.
    fn start_bars<'s>(&self, w: Work<'_>, first: usize, state: &'s State) -> Option<Rows<'s>> {
        match &state.place {
            Place::Matrix(offset, map) if w.program.carries_states => {
                let at = w.regions.back_carry.at() + 4 * offset;
                Some(Rows { at, stride: w.program.carry_len, map: Some(map) })
            }
            _ => self.end_bars(w, first, state),
        }
    }

    /// From a segment to the one before it: cotangents of the rows that went on stay or move to where they are read,
    /// those of the others become zero.
    fn go_back(&self, w: Work<'_>, segment: &Segment) -> Result<(), Fault> {
        match w.program.carries_states {
            true => w.regions.ends.clear()?,
            false => self.clear_rows(w, w.regions.ends.at(), segment)?,
        }
        let zeros = Rows::plain(self.code.zeros.at(), 0);
        for state in &self.states {
            let (Some(from), Some(to)) =
                (self.start_bars(w, segment.first, state), self.end_bars(w, segment.first, state))
            else {
                continue;
            };
            match state.place {
                Place::Matrix(..) if w.program.carries_states => {
                    segment.going.iter().try_for_each(|run| self.rows(to, from, state.count, run))?;
                }
                Place::Vector(..) => {
                    segment.fresh.iter().try_for_each(|run| self.rows(to, zeros, state.count, run))?;
                }
                Place::Matrix(..) | Place::Nowhere => {}
            }
        }
        Ok(())
    }

    /// Cotangents of the states at the start, but for rows that are reset there.
    fn give_starts(&self, w: Work<'_>, segment: &Segment, to: &Gradients) -> Result<(), Fault> {
        for (state, to) in self.states.iter().zip(&to.states) {
            let Some(to) = to else { continue };
            self.clear(to.at, to.count)?;
            let Some(from) = self.start_bars(w, segment.first, state) else { continue };
            let to = Rows::plain(to.at, state.count);
            segment.going.iter().try_for_each(|run| self.rows(to, from, state.count, run))?;
        }
        Ok(())
    }

    /// Cotangents of inputs.
    fn give_input_bars(&self, w: Work<'_>, steps: usize, to: &Gradients) -> Result<(), Fault> {
        for (slot, to) in self.code.slots.input_bars.iter().zip(&to.inputs) {
            let Some(to) = to else { continue };
            let Some((offset, count)) = slot else {
                self.clear(to.at, to.count)?;
                continue;
            };
            let from = Rows::plain(w.adjoint(0) + 4 * offset, w.program.adjoint_len);
            self.rows(Rows::plain(to.at, *count), from, *count, &(0..steps * w.rows))?;
        }
        Ok(())
    }
}
