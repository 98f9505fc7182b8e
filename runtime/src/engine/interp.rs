//! The interpreter behind the engine's interface: f64 inside, f32 at the edge.

use super::{Bound, Engine, RowState, Start};
use compiler::interp::{Cotangents, RowGradient, Sequence, Tensor, Trajectory};
use compiler::ir::{InputId, OutputId, Shape, Sizes, Value};
use std::collections::BTreeMap;
use std::sync::Arc;

/// One row's memory.
pub(super) struct Tape {
    sequence: Sequence,
    run: Trajectory,
    current: Vec<Vec<f32>>,
    outputs: Vec<Vec<Vec<f32>>>,
    penalties: Vec<f32>,
    output_bars: Vec<Vec<Vec<f32>>>,
    input_bars: Vec<Vec<Option<Vec<f32>>>>,
    init_bar: RowState,
    pending_reset: Option<Vec<Tensor>>,
    /// Starts of stretches, and which states start at their own initial values there.
    own: Vec<(usize, Vec<bool>)>,
}

/// Gradient sums.
pub(super) struct Grads {
    boundary: BTreeMap<Value, Vec<f64>>,
    initial: Vec<Vec<f64>>,
}

fn wide(x: &[f32]) -> Tensor {
    Arc::new(x.iter().map(|v| f64::from(*v)).collect())
}

fn narrow(x: &[f64]) -> Vec<f32> {
    x.iter().map(|v| *v as f32).collect()
}

fn zeros(sizes: &Sizes, shapes: impl Iterator<Item = Shape>) -> Vec<Vec<f32>> {
    shapes.map(|s| vec![0.0; sizes.count(s)]).collect()
}

impl Tape {
    pub(super) fn new(engine: &Engine) -> Self {
        let current = zeros(engine.sizes(), engine.model().inputs.iter().map(|i| i.shape));
        Tape {
            sequence: Sequence::default(),
            run: Trajectory { states: vec![], after: vec![], values: vec![] },
            current,
            outputs: vec![],
            penalties: vec![],
            output_bars: vec![],
            input_bars: vec![],
            init_bar: RowState::default(),
            pending_reset: None,
            own: vec![],
        }
    }

    pub(super) fn begin(&mut self, start: &Start<'_>) {
        let initial: Vec<Tensor> = start.states.iter().map(|s| wide(s)).collect();
        self.own = vec![(0, start.own.clone())];
        self.sequence = Sequence { inputs: vec![], initial: initial.clone(), resets: vec![] };
        self.run = Trajectory { states: vec![initial], after: vec![], values: vec![] };
        self.outputs.clear();
        self.penalties.clear();
        self.output_bars.clear();
        self.input_bars.clear();
        self.pending_reset = None;
        self.current.iter_mut().for_each(|c| c.fill(0.0));
    }

    pub(super) fn reset(&mut self, start: &Start<'_>) {
        self.pending_reset = Some(start.states.iter().map(|s| wide(s)).collect());
        let step = self.steps();
        self.own.retain(|(t, _)| *t != step);
        self.own.push((step, start.own.clone()));
    }

    pub(super) fn input_mut(&mut self, input: InputId) -> &mut [f32] {
        &mut self.current[input.index()]
    }

    pub(super) fn step(&mut self, bound: &Bound<'_>) {
        let interpreter = &bound.engine.interpreter;
        let prologue = interpreter.prologue(&bound.params);
        let t = self.steps();
        if let Some(events) = &interpreter.model.events {
            let first = self.own.last().map_or(0, |(first, _)| *first);
            let (name, room) = (&interpreter.model.name, events.capacity);
            assert!(t - first < room, "the log of {name} has room for {room} steps");
        }
        let reset = self.pending_reset.take();
        self.sequence.resets.push(reset.is_some());
        if let Some(states) = reset {
            self.run.states[t] = states;
        }
        let inputs: Vec<Tensor> = self.current.iter().map(|c| wide(c)).collect();
        self.current.iter_mut().for_each(|c| c.fill(0.0));
        let values = interpreter.step(&prologue, &self.run.states[t], &inputs);
        let next = interpreter.next_states(&self.run.states[t], &values);
        self.sequence.inputs.push(inputs);
        self.run.after.push(next.clone());
        self.run.states.push(next);
        self.run.values.push(values);
        let model = &interpreter.model;
        let outputs = (0..model.outputs.len()).map(|k| narrow(&interpreter.output(&self.run, t, k)));
        self.outputs.push(outputs.collect());
        self.penalties.push(interpreter.penalty(&self.run, t) as f32);
        self.output_bars.push(zeros(bound.engine.sizes(), model.outputs.iter().map(|o| o.shape)));
    }

    pub(super) fn steps(&self) -> usize {
        self.run.values.len()
    }

    pub(super) fn output(&self, t: usize, output: OutputId) -> &[f32] {
        &self.outputs[t][output.index()]
    }

    pub(super) fn penalty(&self, t: usize) -> f32 {
        self.penalties[t]
    }

    pub(super) fn state(&self) -> RowState {
        let last = match &self.pending_reset {
            Some(states) => states,
            None => &self.run.states[self.steps()],
        };
        RowState { states: last.iter().map(|s| narrow(s)).collect() }
    }

    pub(super) fn output_bar_mut(&mut self, t: usize, output: OutputId) -> &mut [f32] {
        &mut self.output_bars[t][output.index()]
    }

    pub(super) fn backward(
        &mut self,
        bound: &Bound<'_>,
        grads: &mut Grads,
        penalty_bar: f32,
        last: Option<&RowState>,
    ) {
        let interpreter = &bound.engine.interpreter;
        let outputs = self.output_bars.iter().map(|step| step.iter().map(|b| wide(b)).collect()).collect();
        let last = last.map_or(vec![], |s| s.states.iter().map(|x| wide(x)).collect());
        let bars = Cotangents { outputs, penalty: f64::from(penalty_bar), last };
        let gradient = interpreter.backward(&self.sequence, &self.run, &bars);
        self.input_bars = gradient
            .inputs
            .iter()
            .map(|step| step.iter().map(|b| b.as_ref().map(|b| narrow(b))).collect())
            .collect();
        self.init_bar = RowState { states: gradient.initial.iter().map(|b| narrow(b)).collect() };
        grads.add(&gradient, &self.own);
    }

    pub(super) fn input_bar(&self, t: usize, input: InputId) -> Option<&[f32]> {
        self.input_bars[t][input.index()].as_deref()
    }

    pub(super) fn init_bar(&self) -> RowState {
        self.init_bar.clone()
    }
}

impl Grads {
    pub(super) fn new(engine: &Engine) -> Self {
        let shapes = engine.model().states.iter().map(|s| s.shape);
        let initial = shapes.map(|s| vec![0.0; engine.sizes().count(s)]).collect();
        Grads { boundary: BTreeMap::new(), initial }
    }

    fn add(&mut self, row: &RowGradient, own: &[(usize, Vec<bool>)]) {
        add_boundary(&mut self.boundary, &row.boundary);
        for (step, bars) in &row.starts {
            let Some((_, own)) = own.iter().find(|(t, _)| t == step) else { continue };
            for ((sum, bar), own) in self.initial.iter_mut().zip(bars).zip(own) {
                if *own {
                    sum.iter_mut().zip(bar.iter()).for_each(|(s, b)| *s += b);
                }
            }
        }
    }

    pub(super) fn clear(&mut self) {
        self.boundary.clear();
        self.initial.iter_mut().for_each(|x| x.fill(0.0));
    }

    pub(super) fn add_to(&self, boundary: &mut BTreeMap<Value, Vec<f64>>, initial: &mut [Vec<f64>]) {
        add_boundary(boundary, &self.boundary);
        add_initial(initial, &self.initial);
    }
}

fn add_boundary(sums: &mut BTreeMap<Value, Vec<f64>>, more: &BTreeMap<Value, Vec<f64>>) {
    for (v, g) in more {
        let sum = sums.entry(*v).or_insert_with(|| vec![0.0; g.len()]);
        sum.iter_mut().zip(g).for_each(|(s, x)| *s += x);
    }
}

fn add_initial(sums: &mut [Vec<f64>], more: &[Vec<f64>]) {
    for (sum, g) in sums.iter_mut().zip(more) {
        sum.iter_mut().zip(g).for_each(|(s, x)| *s += x);
    }
}
