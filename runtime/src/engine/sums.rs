//! The sums of gradients over the rows of a batch.
//!
//! Rows are cut into chunks. A chunk is summed in single precision, in memory that the next one uses
//! again; chunks are added up in double precision, in their order. One that is done before its
//! turn waits. So the memory for chunks grows with the threads, not with the rows, and the result
//! depends on neither.

use super::{Bound, Engine, Grads, GradsKind};
use compiler::ir::Value;
use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Sums of gradients under way.
pub struct Sums<'e> {
    engine: &'e Engine,
    state: Mutex<State>,
}

struct State {
    /// By boundary value.
    boundary: BTreeMap<Value, Vec<f64>>,
    /// By state: the cotangents of learned initial values.
    initial: Vec<Vec<f64>>,
    /// The chunk whose turn it is.
    next: usize,
    waiting: BTreeMap<usize, Grads>,
    /// Memory of chunks that have been added.
    free: Vec<Grads>,
}

impl<'e> Sums<'e> {
    pub(super) fn new(engine: &'e Engine) -> Self {
        let initial =
            engine.model().states.iter().map(|s| vec![0.0; engine.sizes().count(s.shape)]).collect();
        let (boundary, waiting) = (BTreeMap::new(), BTreeMap::new());
        let state = State { boundary, initial, next: 0, waiting, free: vec![] };
        Sums { engine, state: Mutex::new(state) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Zeros for a chunk of rows.
    pub fn zeros(&self) -> Grads {
        let free = self.state().free.pop();
        match free.or_else(|| self.engine.spare().pop()) {
            Some(mut grads) => {
                grads.clear();
                grads
            }
            None => self.engine.grads(),
        }
    }

    /// Takes a chunk; chunks are numbered from zero.
    pub fn add(&self, number: usize, chunk: Grads) {
        let mut state = self.state();
        state.waiting.insert(number, chunk);
        loop {
            let next = state.next;
            let Some(chunk) = state.waiting.remove(&next) else { return };
            state.add(self.engine, &chunk);
            state.free.push(chunk);
            state.next += 1;
        }
    }

    /// Runs the adjoint of the prologue. One tensor per parameter, in the units of the spec; zeros where
    /// there is no gradient path.
    pub fn finish(self, bound: &Bound<'_>) -> Vec<Vec<f32>> {
        let mut state = self.state.into_inner().unwrap_or_else(PoisonError::into_inner);
        // Chunks behind a missing number.
        for chunk in std::mem::take(&mut state.waiting).into_values() {
            state.add(self.engine, &chunk);
        }
        self.engine.spare().append(&mut state.free);
        let gradients = self.engine.interpreter.finish(&bound.params, &state.boundary, &state.initial);
        gradients.into_iter().map(|g| g.into_iter().map(|x| x as f32).collect()).collect()
    }
}

impl State {
    fn add(&mut self, engine: &Engine, chunk: &Grads) {
        match &chunk.0 {
            GradsKind::Interp(g) => g.add_to(&mut self.boundary, &mut self.initial),
            GradsKind::Jit(g) => g.add_to(engine, &mut self.boundary, &mut self.initial),
            GradsKind::Device(g) => {
                g.iter().for_each(|g| g.add_to(engine, &mut self.boundary, &mut self.initial));
            }
        }
    }
}
