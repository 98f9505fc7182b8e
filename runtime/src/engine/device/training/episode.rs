//! An episode of all rows on a tape: which launches, in which order.

use super::super::Fault;
use super::super::code::{Buffer, packed};
use super::super::regions::{Work, number};
use super::super::tape::{AFTER, BEFORE, FLUSH, Tape};
use super::starts::Edge;
use super::{Course, Results, THREADS, Training, Update, zeros};
use crate::engine::{Bound, TeamInputs};
use compiler::ir::InputId;
use compiler::loops::Program;

impl Tape {
    /// An episode of all rows, which have been started, forward and backward; then parameters move. `noise` fills what
    /// the world does not show.
    pub(in crate::engine) fn train_episode(
        &mut self,
        bound: &Bound<'_>,
        (training, update): (&mut Training, Update),
        noise: Option<&mut TeamInputs<'_>>,
    ) -> Results {
        let steps = training.steps;
        let frame = self.next_frame();
        self.reserve(bound, frame + steps);
        self.reserve_checkpoints(bound, steps);
        self.make_room_for(&bound.engine.program, steps);
        let noise = noise.map(|fill| self.gather_inputs(steps, fill));
        let own = self.stretches.last().map_or(vec![], |s| s.own.clone());
        self.work(bound, |w| {
            training.prepare((w.regions.frames.at(), number(frame as isize)), update)?;
            training.descent.starts_mut().tell(|state| edge(w, frame - 1, state), &own)?;
            noise.as_ref().map_or(Ok(()), |inputs| w.regions.staging.put(0, inputs))
        });
        let training = &*training;
        let sums = training.descent.grads();
        let at = sums.hoisted.iter().chain([&sums.sums]).map(Buffer::at).collect();
        let share = training.lesson.share as f32;
        let shape = self.shape(bound, true, steps, at, share).of(training.lesson_at.at());
        let recorded = self.recorded(bound, Some(shape), |w| {
            self.live(w, (frame, steps), training, noise.is_some())?;
            self.learn(w, (frame, steps), training)
        });
        self.keep(recorded);
        let results = self.work(bound, |_| training.read());
        self.stepped(steps, true);
        self.settled();
        results.unwrap_or_default()
    }

    /// The numbers of all inputs that are drawn on the host: `[step][row][input]`.
    fn gather_inputs(&self, steps: usize, fill: &mut TeamInputs<'_>) -> Vec<f32> {
        let (slots, width) = (&self.code.slots.inputs, self.code.inputs.width);
        let mut all = vec![0.0; steps * self.rows * width];
        for (at, numbers) in all.chunks_mut(width.max(1)).enumerate() {
            for input in 0..slots.len() {
                let slot = &mut numbers[packed(slots, input)];
                fill(at % self.rows, at / self.rows, InputId(input as u32), slot);
            }
        }
        all
    }

    /// All steps forward.
    fn live(
        &self,
        w: Work<'_>,
        (frame, steps): (usize, usize),
        training: &Training,
        has_noise: bool,
    ) -> Result<(), Fault> {
        let frames = (w.frame(frame), w.program.frame_len);
        match has_noise {
            true => w.scatter(&w.code.inputs, frames, w.regions.staging.at(), steps * w.rows)?,
            false => zeros(w.code, &w.code.inputs, frames, steps * w.rows)?,
        }
        training.descent.starts().place(w.code)?;
        training.row_by_row(training.kernels.begin_rows, 0)?;
        match training.kernels.course {
            Course::Known { show, .. } => {
                training.launch(show, steps * w.rows * training.lesson.seen(), THREADS, 0)?;
                self.advance_known(w, (0, steps), false, Some(0))
            }
            Course::Acting { answer, .. } => {
                let mut saved = 0;
                for t in 0..steps {
                    w.forward_apart(BEFORE, frame + t, 1)?;
                    self.advance(w, t, t > 0, Some(saved))?;
                    w.forward_apart(AFTER, frame + t, 1)?;
                    training.row_by_row(answer, t)?;
                    saved += usize::from(self.due_at(t));
                }
                if w.program.merged.0 { w.forward(FLUSH, frame + steps) } else { Ok(()) }
            }
        }
    }

    /// Losses, the backward pass, and the descent.
    fn learn(&self, w: Work<'_>, (frame, steps): (usize, usize), training: &Training) -> Result<(), Fault> {
        let (p, kernels, grads) = (w.program, &training.kernels, training.descent.grads());
        let (all, outputs) = (steps * w.rows, training.lesson.outputs());
        // Kernels write the cotangents of what they are about, where it has any.
        zeros(w.code, &w.code.output_bars, (w.frame(frame), p.frame_len), all)?;
        match kernels.course {
            Course::Acting { returns, .. } => {
                training.row_by_row(returns, 0)?;
                training.launch(kernels.cotangents, all, THREADS, 0)?;
            }
            Course::Known { logs, losses, .. } => {
                logs.map_or(Ok(()), |logs| training.launch(logs, all * outputs, THREADS, 0))?;
                training.launch(losses, all, THREADS, 0)?;
                training.launch(kernels.cotangents, all * outputs, THREADS, 0)?;
            }
        }
        training.row_by_row(kernels.totals, 0)?;
        grads.hoisted.iter().chain([&grads.sums, &w.regions.grads]).try_for_each(Buffer::clear)?;
        self.clear_ends(w, steps)?;
        let saved = (0..steps).filter(|t| self.due_at(*t)).count();
        self.backward_stretch(w, 0, steps, saved, training.lesson.share as f32, grads)?;
        w.code.add_rows(&w.regions.grads, w.rows, p.grads_len, grads)?;
        training.descent.run(&training.code)
    }

    /// Logs have room for so many steps.
    fn make_room_for(&self, p: &Program, steps: usize) {
        if let Some(log) = p.logs.iter().find(|log| log.events < steps) {
            panic!("a log has room for {} steps", log.events);
        }
    }
}

/// Where a tape has a state before its first step, and the cotangents there.
fn edge(w: Work<'_>, boundary: usize, state: usize) -> Edge {
    let (p, r, slots) = (w.program, w.regions, &w.code.slots);
    if let Some(m) = &p.matrices[state] {
        let (bars, length) =
            if p.carries_states { (&r.back_carry, p.carry_len) } else { (&r.ends, p.matrices_len) };
        let place = |region: &Buffer| region.at() + 4 * m.offset;
        return Edge { to: (place(&r.carry), p.matrices_len), bar: (place(bars), length) };
    }
    let place = |slot: Option<(usize, usize)>, frame| slot.map_or(0, |(offset, _)| frame + 4 * offset);
    Edge {
        to: (place(slots.states[state], w.frame(boundary)), p.frame_len),
        bar: (place(slots.state_bars[state], w.adjoint(0)), p.adjoint_len),
    }
}
