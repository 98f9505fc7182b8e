//! An episode of all rows on a tape: which launches, in which order.

use super::super::code::{Buffer, Grads, packed};
use super::super::regions::{Work, number};
use super::super::tape::{AFTER, BEFORE, FLUSH, Tape};
use super::super::{Fault, Move};
use super::descent::Descent;
use super::{Results, THREADS, Training, Update, zeros};
use crate::engine::{Bound, TeamInputs};
use compiler::ir::InputId;
use compiler::loops::Program;

impl Tape {
    /// An episode of all rows, which have been started, forward and backward. Its gradients are those in `grads`
    /// afterwards; where the parameters live on the device, nobody needs them, and parameters move. `noise` fills what
    /// the world does not show.
    pub(in crate::engine) fn train_episode(
        &mut self,
        bound: &Bound<'_>,
        grads: Option<&mut Grads>,
        (training, update): (&mut Training, Update),
        noise: Option<&mut TeamInputs<'_>>,
    ) -> Results {
        let steps = training.steps;
        let frame = self.next_frame();
        self.reserve(bound, frame + steps);
        self.reserve_checkpoints(bound, steps);
        self.make_room_for(&bound.engine.program, steps);
        let noise = noise.map(|fill| self.gather_inputs(steps, fill));
        self.work(bound, |w| {
            training.prepare((w.regions.frames.at(), number(frame as isize)), update)?;
            noise.as_ref().map_or(Ok(()), |inputs| w.regions.staging.put(0, inputs))
        });
        let training = &*training;
        let own = training.descent.as_ref().map(Descent::grads);
        let Some(sums) = own.or(grads.as_deref()) else { return Results::default() };
        let at = sums.hoisted.iter().chain([&sums.sums]).map(Buffer::at).collect();
        let share = training.lesson.share as f32;
        let shape = self.shape(bound, true, steps, at, share).of(training.lesson_at.at());
        let recorded = self.recorded(bound, Some(shape), |w| {
            self.live(w, (frame, steps), training, noise.is_some())?;
            self.learn(w, steps, training, sums)
        });
        self.keep(recorded);
        let results = self.work(bound, |_| training.read());
        self.stepped(steps, true);
        self.settled();
        if let Some(grads) = grads {
            self.learn_starts(bound, grads);
        }
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
        self.place_starts(w, frame - 1, training)?;
        training.row_by_row(training.kernels.begin_rows, 0)?;
        let mut saved = 0;
        for t in 0..steps {
            w.forward_apart(BEFORE, frame + t, 1)?;
            self.advance(w, t, t > 0, Some(saved))?;
            w.forward_apart(AFTER, frame + t, 1)?;
            training.row_by_row(training.kernels.answer, t)?;
            saved += usize::from(self.due_at(t));
        }
        if w.program.merged.0 {
            w.forward(FLUSH, frame + steps)?;
        }
        Ok(())
    }

    /// Learned initial states that live on the device, into the frame before the first.
    fn place_starts(&self, w: Work<'_>, boundary: usize, training: &Training) -> Result<(), Fault> {
        let Some(descent) = &training.descent else { return Ok(()) };
        for (values, state, count) in descent.starts() {
            let Some((offset, _)) = w.code.slots.states[state] else { continue };
            w.code.moves(Move {
                to: w.frame(boundary) + 4 * offset,
                to_map: 0,
                from: values,
                from_map: 0,
                to_length: w.program.frame_len as i64,
                from_length: 0,
                width: count as i64,
                count: w.rows as i64,
            })?;
        }
        Ok(())
    }

    /// Losses, the backward pass, and the descent.
    fn learn(&self, w: Work<'_>, steps: usize, training: &Training, grads: &Grads) -> Result<(), Fault> {
        let (p, kernels) = (w.program, &training.kernels);
        training.row_by_row(kernels.returns, 0)?;
        training.launch(kernels.cotangents, steps * w.rows, THREADS, 0)?;
        training.row_by_row(kernels.totals, 0)?;
        grads.hoisted.iter().chain([&grads.sums, &w.regions.grads]).try_for_each(Buffer::clear)?;
        self.clear_ends(w, steps)?;
        let saved = (0..steps).filter(|t| self.due_at(*t)).count();
        self.backward_stretch(w, 0, steps, saved, training.lesson.share as f32, grads)?;
        w.code.add_rows(&w.regions.grads, w.rows, p.grads_len, grads)?;
        let Some(descent) = &training.descent else { return Ok(()) };
        w.code.moves(Move {
            to: descent.start_bars(),
            to_map: 0,
            from: w.adjoint(0),
            from_map: w.code.state_bars.places.at(),
            to_length: w.code.state_bars.width as i64,
            from_length: p.adjoint_len as i64,
            width: if descent.start_bars() == 0 { 0 } else { w.code.state_bars.width as i64 },
            count: w.rows as i64,
        })?;
        descent.run(&training.code)
    }

    /// Logs have room for so many steps.
    fn make_room_for(&self, p: &Program, steps: usize) {
        if let Some(log) = p.logs.iter().find(|log| log.events < steps) {
            panic!("a log has room for {} steps", log.events);
        }
    }
}
