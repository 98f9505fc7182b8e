//! Pieces in single precision, on machine code.

use super::{Asked, Inputs, Machine, Start};
use crate::engine::{Bound, Engine, EngineError, Grads, Mode, Room, RowState, Tape};
use compiler::ir::{InputId, OutputId, Sizes};
use compiler::model::Model;
use std::collections::BTreeMap;
use std::sync::Arc;

/// An engine of machine code with parameters, both kept as long as somebody needs them.
pub struct Single {
    /// Borrows from `engine`, and is dropped before it.
    bound: Bound<'static>,
    engine: Arc<Engine>,
}

impl Single {
    /// Binds parameters: by parameter, in the units of the spec.
    ///
    /// # Errors
    /// If a parameter has the wrong number of elements.
    pub fn new(engine: Arc<Engine>, params: &[&[f32]]) -> Result<Self, EngineError> {
        // SAFETY: the engine lies behind an `Arc` that this value holds longer than what borrows from it, nobody
        // can reach it mutably, and `bound` is handed out with the life of `self` alone.
        let lent: &'static Engine = unsafe { &*Arc::as_ptr(&engine) };
        Ok(Single { bound: lent.bind_slices(params)?, engine })
    }

    fn bound(&self) -> &Bound<'_> {
        &self.bound
    }
}

impl Machine for Single {
    type Number = f32;
    type Tape = Tape;
    type Room = BTreeMap<usize, Room>;
    type Chunk = Grads;

    fn model(&self) -> &Model {
        self.engine.model()
    }

    fn sizes(&self) -> &Sizes {
        self.engine.sizes()
    }

    fn tape(&self, steps: usize, kept: bool) -> Tape {
        match kept {
            true => self.engine.waiting_tape(steps, 1),
            false => self.engine.tape(steps, Mode::Forward),
        }
    }

    fn forward(&self, tape: &mut Tape, start: &Start<'_, f32>, steps: usize, inputs: &mut Inputs<'_, f32>) {
        let states = start.iter().map(|s| s.map_or(vec![], <[f32]>::to_vec)).collect();
        self.bound().begin(tape, Some(&RowState { states }));
        self.bound().forward(tape, steps, &mut |t, input, x| inputs(t, input.index(), x));
    }

    fn output(&self, tape: &Tape, step: usize, output: usize, to: &mut [f32]) {
        to.copy_from_slice(self.bound().output(tape, step, OutputId(output as u32)));
    }

    fn states(&self, tape: &mut Tape) -> Vec<Vec<f32>> {
        self.bound().state(tape).states
    }

    fn penalty(&self, tape: &mut Tape, steps: usize) -> f64 {
        (0..steps).map(|t| f64::from(self.bound().penalty(tape, t))).sum()
    }

    fn chunk(&self) -> Grads {
        self.engine.grads()
    }

    fn backward(&self, tape: &mut Tape, room: &mut Self::Room, asked: Asked<'_, f32>, chunk: &mut Grads) {
        let bound = self.bound();
        for t in 0..asked.steps {
            for k in 0..self.model().outputs.len() {
                let slot = bound.output_bar_mut(tape, t, OutputId(k as u32));
                match (asked.outputs)(t, k) {
                    Some(bar) => slot.copy_from_slice(bar),
                    None => slot.fill(0.0),
                }
            }
        }
        let room = room.entry(asked.steps).or_insert_with(|| self.engine.room(asked.steps, 1));
        tape.exchange(room);
        let last = asked.last.map(|states| RowState { states });
        bound.backward(tape, chunk, asked.penalty as f32, last.as_ref());
        tape.exchange(room);
    }

    fn input_bar(&self, tape: &Tape, step: usize, input: usize, to: &mut [f32]) {
        if let Some(bar) = self.bound().input_bar(tape, step, InputId(input as u32)) {
            to.copy_from_slice(bar);
        }
    }

    fn start_bars(&self, tape: &Tape) -> Vec<Vec<f32>> {
        self.bound().init_bar(tape).states
    }

    fn finish(&self, chunks: Vec<Grads>) -> Vec<Vec<f32>> {
        self.engine.finish(self.bound(), chunks)
    }
}
