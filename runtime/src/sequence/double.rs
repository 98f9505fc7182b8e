//! Pieces in double precision, on the interpreter: slow, exact, for checks.

use super::{Asked, Inputs, Machine, Start, zeros};
use crate::engine::{Engine, EngineError};
use compiler::interp::{Cotangents, Interpreter, RowGradient, Sequence, Tensor, Trajectory};
use compiler::ir::{Sizes, Value};
use compiler::model::Model;
use std::collections::BTreeMap;
use std::sync::Arc;

/// The interpreter with parameters.
pub struct Double {
    engine: Arc<Engine>,
    params: Vec<Tensor>,
    initial: Vec<Tensor>,
}

/// What a piece was given, what it did, and its gradient.
pub struct Tape {
    sequence: Sequence,
    run: Trajectory,
    /// By state: whether it started at its own initial value.
    own: Vec<bool>,
    gradient: RowGradient,
}

/// The gradients of a chunk: of boundary values, and of learned initial values by state.
pub struct Chunk {
    boundary: BTreeMap<Value, Vec<f64>>,
    initial: Vec<Vec<f64>>,
}

impl Double {
    /// Binds parameters: by parameter, in the units of the spec.
    ///
    /// # Errors
    /// If a parameter has the wrong number of elements.
    pub fn new(engine: Arc<Engine>, params: &[&[f64]]) -> Result<Self, EngineError> {
        for (k, p) in engine.model().params.iter().enumerate() {
            let (found, expected) = (params.get(k).map_or(0, |x| x.len()), engine.sizes().count(p.shape));
            if found != expected {
                return Err(EngineError::Parameter { name: p.name.clone(), found, expected });
            }
        }
        let params: Vec<Tensor> = params.iter().map(|p| Arc::new(p.to_vec())).collect();
        let initial = engine.interpreter.initial(&params);
        Ok(Double { engine, params, initial })
    }

    fn interpreter(&self) -> &Interpreter {
        &self.engine.interpreter
    }
}

impl Machine for Double {
    type Number = f64;
    type Tape = Tape;
    type Room = ();
    type Chunk = Chunk;

    fn model(&self) -> &Model {
        self.engine.model()
    }

    fn sizes(&self) -> &Sizes {
        self.engine.sizes()
    }

    fn tape(&self, _steps: usize, _kept: bool) -> Tape {
        let run = Trajectory { states: vec![], after: vec![], values: vec![] };
        Tape { sequence: Sequence::default(), run, own: vec![], gradient: RowGradient::default() }
    }

    fn forward(&self, tape: &mut Tape, start: &Start<'_, f64>, steps: usize, inputs: &mut Inputs<'_, f64>) {
        let mut step = |t: usize| -> Vec<Tensor> {
            let mut all = zeros(self.sizes(), 1, self.model().inputs.iter().map(|i| i.shape));
            all.iter_mut().enumerate().for_each(|(k, x)| inputs(t, k, x));
            all.into_iter().map(Arc::new).collect()
        };
        let state = |(given, own): (&Option<&[f64]>, &Tensor)| match given {
            Some(x) => Arc::new(x.to_vec()),
            None => Arc::clone(own),
        };
        let initial = start.iter().zip(&self.initial).map(state).collect();
        tape.own = start.iter().map(Option::is_none).collect();
        tape.sequence = Sequence { inputs: (0..steps).map(&mut step).collect(), initial, resets: vec![] };
        tape.run = self.interpreter().run(&self.params, &tape.sequence);
    }

    fn output(&self, tape: &Tape, step: usize, output: usize, to: &mut [f64]) {
        to.copy_from_slice(&self.interpreter().output(&tape.run, step, output));
    }

    fn states(&self, tape: &mut Tape) -> Vec<Vec<f64>> {
        tape.run.states.last().into_iter().flatten().map(|x| x.to_vec()).collect()
    }

    fn penalty(&self, tape: &mut Tape, steps: usize) -> f64 {
        (0..steps).map(|t| self.interpreter().penalty(&tape.run, t)).sum()
    }

    fn chunk(&self) -> Chunk {
        let initial = zeros(self.sizes(), 1, self.model().states.iter().map(|s| s.shape));
        Chunk { boundary: BTreeMap::new(), initial }
    }

    fn backward(&self, tape: &mut Tape, _room: &mut (), asked: Asked<'_, f64>, chunk: &mut Chunk) {
        let zero = zeros(self.sizes(), 1, self.model().outputs.iter().map(|o| o.shape));
        let bar = |t: usize, k: usize| {
            Arc::new((asked.outputs)(t, k).map_or_else(|| zero[k].clone(), <[f64]>::to_vec))
        };
        let outputs = (0..asked.steps).map(|t| (0..zero.len()).map(|k| bar(t, k)).collect()).collect();
        let last = asked.last.into_iter().flatten().map(Arc::new).collect();
        let bars = Cotangents { outputs, penalty: asked.penalty, last };
        tape.gradient = self.interpreter().backward(&tape.sequence, &tape.run, &bars);
        for (value, bar) in &tape.gradient.boundary {
            let sum = chunk.boundary.entry(*value).or_insert_with(|| vec![0.0; bar.len()]);
            add(sum, bar);
        }
        let starts = chunk.initial.iter_mut().zip(&tape.gradient.initial).zip(&tape.own);
        starts.filter(|(_, own)| **own).for_each(|((sum, bar), _)| add(sum, bar));
    }

    fn input_bar(&self, tape: &Tape, step: usize, input: usize, to: &mut [f64]) {
        if let Some(bar) = &tape.gradient.inputs[step][input] {
            to.copy_from_slice(bar);
        }
    }

    fn start_bars(&self, tape: &Tape) -> Vec<Vec<f64>> {
        tape.gradient.initial.clone()
    }

    fn finish(&self, chunks: Vec<Chunk>) -> Vec<Vec<f64>> {
        let mut all = self.chunk();
        for chunk in chunks {
            for (value, x) in chunk.boundary {
                add(all.boundary.entry(value).or_insert_with(|| vec![0.0; x.len()]), &x);
            }
            all.initial.iter_mut().zip(&chunk.initial).for_each(|(sum, x)| add(sum, x));
        }
        self.interpreter().finish(&self.params, &all.boundary, &all.initial)
    }
}

fn add(sum: &mut [f64], x: &[f64]) {
    sum.iter_mut().zip(x).for_each(|(s, x)| *s += x);
}
