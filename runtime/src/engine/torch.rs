//! libtorch behind the engine's interface: a batch is one team, in 32 bits, as on a device.
//!
//! Numbers cross as whole batches, `[steps][row][element]`. The first fault ends all work: what follows gives zeros,
//! and [`super::Engine::check`] tells.

use super::{Bound, Engine, FlushDenormals, Mode, RowState, Start, TeamInputs};
use ::torch::{Cotangents, Fault, Keep, Place, Width};
use compiler::ir::{InputId, OutputId};
use compiler::model::Init;
use std::sync::{Arc, Mutex, PoisonError};

/// A model on libtorch.
pub(super) struct Code {
    code: Arc<::torch::Code>,
    fault: Mutex<Option<Fault>>,
}

impl Code {
    pub(super) fn new(engine: &compiler::interp::Interpreter, place: Place) -> Result<Code, Fault> {
        let (model, sizes) = (Arc::clone(&engine.model), engine.sizes.clone());
        let code = ::torch::Code::new(model, sizes, Width::Single, place)?;
        Ok(Code { code: Arc::new(code), fault: Mutex::new(None) })
    }

    /// The first fault.
    pub(super) fn fault(&self) -> Option<Fault> {
        self.fault.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Does something, unless something has failed before.
    fn attempt<T>(&self, work: impl FnOnce() -> Result<T, Fault>) -> Option<T> {
        let mut fault = self.fault.lock().unwrap_or_else(PoisonError::into_inner);
        if fault.is_some() {
            return None;
        }
        let _flush = FlushDenormals::start();
        match work() {
            Ok(found) => Some(found),
            Err(e) => {
                *fault = Some(e);
                None
            }
        }
    }
}

/// The memory of a batch.
pub(super) struct Tape {
    code: Arc<Code>,
    /// Threads may share it, though tensors may not be; only its owner uses it.
    tape: Mutex<::torch::Tape>,
    mode: Mode,
    rows: usize,
    /// The row that the caller speaks of.
    row: usize,
    steps: usize,
    /// Where states started: the step, and by row and state whether at their own initial values.
    own: Vec<(usize, Vec<Vec<bool>>)>,
    /// By input: of the coming step.
    inputs: Vec<Vec<f32>>,
    /// By output; in [`Mode::Infer`] of the last step.
    outputs: Vec<Vec<f32>>,
    output_bars: Vec<Vec<f32>>,
    /// By input; none for inputs without gradient.
    input_bars: Vec<Option<Vec<f32>>>,
    /// By state, summed over resets.
    init_bars: Vec<Vec<f32>>,
    /// Until the next step.
    penalties: Option<Vec<f32>>,
    /// By state, until the next step.
    states: Option<Vec<Vec<f32>>>,
}

/// Gradient sums.
pub(super) struct Grads {
    /// By parameter.
    pub(super) params: Vec<Vec<f64>>,
    /// By state: of learned initial values.
    pub(super) initial: Vec<Vec<f64>>,
}

/// One row of a step.
fn part(all: &[f32], cell: usize, len: usize) -> &[f32] {
    &all[cell * len..(cell + 1) * len]
}

impl Tape {
    pub(super) fn new(engine: &Engine, code: &Arc<Code>, mode: Mode, rows: usize) -> Tape {
        let (model, sizes) = (engine.model(), engine.sizes());
        let keep = match mode {
            Mode::Infer => Keep::Last,
            Mode::Forward => Keep::Outputs,
            Mode::Train => Keep::Graph { inputs: engine.options.input_bars },
        };
        Tape {
            code: Arc::clone(code),
            tape: Mutex::new(::torch::Tape::new(&code.code, rows, keep)),
            mode,
            rows,
            row: 0,
            steps: 0,
            own: vec![],
            inputs: model.inputs.iter().map(|i| vec![0.0; rows * sizes.count(i.shape)]).collect(),
            outputs: vec![vec![]; model.outputs.len()],
            output_bars: vec![vec![]; model.outputs.len()],
            input_bars: vec![None; model.inputs.len()],
            init_bars: vec![],
            penalties: None,
            states: None,
        }
    }

    /// Does something with the graph, unless something has failed before.
    fn work<T>(&mut self, work: impl FnOnce(&mut ::torch::Tape) -> Result<T, Fault>) -> Option<T> {
        let tape = self.tape.get_mut().unwrap_or_else(PoisonError::into_inner);
        self.code.attempt(|| work(tape))
    }

    pub(super) fn rows(&self) -> usize {
        self.rows
    }

    pub(super) fn steps(&self) -> usize {
        self.steps
    }

    pub(super) fn select(&mut self, row: usize) {
        assert!(row < self.rows, "row {row} of {}", self.rows);
        self.row = row;
    }

    // ------------------------------------------------------------------ states

    /// One start for each row.
    pub(super) fn begin(&mut self, bound: &Bound<'_>, starts: &[Start<'_>]) {
        self.row = 0;
        self.steps = 0;
        self.inputs.iter_mut().for_each(|x| x.fill(0.0));
        self.outputs.iter_mut().chain(&mut self.output_bars).for_each(Vec::clear);
        self.own.clear();
        self.states = None;
        self.penalties = None;
        let states = self.started(bound, starts);
        let params: Vec<&[f64]> = bound.params.iter().map(|p| p.as_slice()).collect();
        self.work(|t| t.begin(&params, &states));
    }

    pub(super) fn reset(&mut self, bound: &Bound<'_>, starts: &[Start<'_>]) {
        self.own.retain(|(step, _)| *step != self.steps);
        self.states = None;
        let states = self.started(bound, starts);
        self.work(|t| t.reset(None, &states));
    }

    /// The states of all rows where a stretch begins, by state.
    fn started(&mut self, bound: &Bound<'_>, starts: &[Start<'_>]) -> Vec<Vec<f32>> {
        assert_eq!(starts.len(), self.rows, "a start for each row");
        self.own.push((self.steps, starts.iter().map(|s| s.own.clone()).collect()));
        let count = bound.engine.model().states.len();
        (0..count).map(|k| starts.iter().flat_map(|s| s.states[k].iter().copied()).collect()).collect()
    }

    /// The states of the selected row before the coming step.
    pub(super) fn state(&mut self, bound: &Bound<'_>) -> RowState {
        if self.states.is_none() {
            self.states = self.work(|t| t.states());
        }
        self.row_of(bound, self.states.as_deref().unwrap_or_default())
    }

    /// The selected row of states, `[state][row, axes…]`; zeros where there is nothing.
    fn row_of(&self, bound: &Bound<'_>, all: &[Vec<f32>]) -> RowState {
        let (model, sizes) = (bound.engine.model(), bound.engine.sizes());
        let one = |(k, s): (usize, &compiler::model::State)| {
            let len = sizes.count(s.shape);
            all.get(k).map_or_else(|| vec![0.0; len], |x| part(x, self.row, len).to_vec())
        };
        RowState { states: model.states.iter().enumerate().map(one).collect() }
    }

    // ----------------------------------------------------------------- forward

    pub(super) fn input_mut(&mut self, input: InputId) -> &mut [f32] {
        let all = &mut self.inputs[input.index()];
        let len = all.len() / self.rows;
        &mut all[self.row * len..(self.row + 1) * len]
    }

    /// One step of all rows, whose inputs have been written.
    pub(super) fn step(&mut self, bound: &Bound<'_>) {
        let inputs = std::mem::take(&mut self.inputs);
        self.advance(bound, 1, &inputs);
        self.inputs = inputs;
        self.inputs.iter_mut().for_each(|x| x.fill(0.0));
    }

    /// Several steps whose inputs are known.
    pub(super) fn forward(&mut self, bound: &Bound<'_>, steps: usize, inputs: &mut TeamInputs<'_>) {
        let (model, sizes) = (bound.engine.model(), bound.engine.sizes());
        let len = |k: usize| sizes.count(model.inputs[k].shape);
        let mut all: Vec<Vec<f32>> =
            (0..model.inputs.len()).map(|k| vec![0.0; steps * self.rows * len(k)]).collect();
        for row in 0..self.rows {
            for t in 0..steps {
                for (k, x) in all.iter_mut().enumerate() {
                    let cell = t * self.rows + row;
                    inputs(row, t, InputId(k as u32), &mut x[cell * len(k)..(cell + 1) * len(k)]);
                }
            }
        }
        self.advance(bound, steps, &all);
    }

    fn advance(&mut self, bound: &Bound<'_>, steps: usize, inputs: &[Vec<f32>]) {
        let (model, sizes) = (bound.engine.model(), bound.engine.sizes());
        self.states = None;
        self.penalties = None;
        self.steps += steps;
        self.work(|t| t.forward(steps, inputs));
        let kept = if self.mode == Mode::Infer { steps.min(1) } else { steps };
        for (k, o) in model.outputs.iter().enumerate() {
            let count = kept * self.rows * sizes.count(o.shape);
            let found = self.work(|t| t.outputs(k, kept));
            let mut found = found.unwrap_or_else(|| vec![0.0; count]);
            let known = &mut self.outputs[k];
            if self.mode == Mode::Infer && kept > 0 {
                known.clear();
            }
            known.append(&mut found);
            if self.mode == Mode::Train {
                self.output_bars[k].resize(self.outputs[k].len(), 0.0);
            }
        }
    }

    /// Where an output of a step of the selected row is.
    fn cell(&self, t: usize) -> usize {
        let first = if self.mode == Mode::Infer { self.steps.saturating_sub(1) } else { 0 };
        (t - first) * self.rows + self.row
    }

    fn output_len(&self, output: OutputId) -> usize {
        let kept = if self.mode == Mode::Infer { self.steps.min(1) } else { self.steps };
        self.outputs[output.index()].len() / (kept * self.rows)
    }

    pub(super) fn output(&self, t: usize, output: OutputId) -> &[f32] {
        part(&self.outputs[output.index()], self.cell(t), self.output_len(output))
    }

    pub(super) fn penalty(&mut self, t: usize) -> f32 {
        if self.penalties.is_none() {
            self.penalties = self.work(|t| t.penalties());
        }
        let cell = self.cell(t);
        self.penalties.as_ref().and_then(|p| p.get(cell)).copied().unwrap_or(0.0)
    }

    // ---------------------------------------------------------------- backward

    pub(super) fn output_bar_mut(&mut self, t: usize, output: OutputId) -> &mut [f32] {
        let (cell, len) = (self.cell(t), self.output_len(output));
        &mut self.output_bars[output.index()][cell * len..(cell + 1) * len]
    }

    /// `last` are the cotangents of the final states, the same for all rows.
    pub(super) fn backward(
        &mut self,
        bound: &Bound<'_>,
        grads: &mut Grads,
        penalty_bar: f32,
        last: Option<&RowState>,
    ) {
        let last: Option<Vec<Vec<f32>>> =
            last.map(|l| l.states.iter().map(|x| x.repeat(self.rows)).collect());
        let bars = Cotangents { outputs: &self.output_bars, penalty: penalty_bar, last: last.as_deref() };
        self.init_bars = grads.initial.iter().map(|x| vec![0.0; self.rows * x.len()]).collect();
        let tape = self.tape.get_mut().unwrap_or_else(PoisonError::into_inner);
        let Some(found) = self.code.attempt(|| tape.backward(bars)) else {
            return self.give_up(bound);
        };
        self.input_bars = found.inputs;
        for (sum, x) in grads.params.iter_mut().zip(&found.params) {
            sum.iter_mut().zip(x).for_each(|(s, x)| *s += f64::from(*x));
        }
        for start in &found.starts {
            for (sum, x) in self.init_bars.iter_mut().zip(&start.states) {
                sum.iter_mut().zip(x).for_each(|(s, x)| *s += x);
            }
            let own = self.own.iter().find(|(step, _)| *step == start.step);
            own.into_iter().for_each(|(_, own)| grads.add_start(own, &start.states));
        }
    }

    /// The gradients of inputs of a batch that has failed: zeros.
    fn give_up(&mut self, bound: &Bound<'_>) {
        let sizes = bound.engine.sizes();
        let zeros = |i: &compiler::model::Input| {
            let count = self.steps * self.rows * sizes.count(i.shape);
            (bound.engine.options.input_bars && i.role.is_differentiable()).then(|| vec![0.0; count])
        };
        self.input_bars = bound.engine.model().inputs.iter().map(zeros).collect();
    }

    pub(super) fn input_bar(&self, t: usize, input: InputId) -> Option<&[f32]> {
        let all = self.input_bars[input.index()].as_ref()?;
        Some(part(all, t * self.rows + self.row, all.len() / (self.steps * self.rows)))
    }

    pub(super) fn init_bar(&self, bound: &Bound<'_>) -> RowState {
        self.row_of(bound, &self.init_bars)
    }
}

impl Grads {
    pub(super) fn new(engine: &Engine) -> Grads {
        let (model, sizes) = (engine.model(), engine.sizes());
        Grads {
            params: model.params.iter().map(|p| vec![0.0; sizes.count(p.shape)]).collect(),
            initial: model.states.iter().map(|s| vec![0.0; sizes.count(s.shape)]).collect(),
        }
    }

    pub(super) fn clear(&mut self) {
        self.params.iter_mut().chain(&mut self.initial).for_each(|x| x.fill(0.0));
    }

    /// Learned initial values get their share where a state started at its own.
    fn add_start(&mut self, own: &[Vec<bool>], states: &[Vec<f32>]) {
        for (k, (sum, bars)) in self.initial.iter_mut().zip(states).enumerate() {
            let rows = own.iter().enumerate().filter(|(_, own)| own[k]);
            for (row, _) in rows {
                let bar = part(bars, row, sum.len());
                sum.iter_mut().zip(bar).for_each(|(s, b)| *s += f64::from(*b));
            }
        }
    }

    pub(super) fn add_to(&self, params: &mut Vec<Vec<f64>>, initial: &mut [Vec<f64>]) {
        params.resize(self.params.len(), vec![]);
        for (sum, x) in params.iter_mut().zip(&self.params).chain(initial.iter_mut().zip(&self.initial)) {
            sum.resize(x.len(), 0.0);
            sum.iter_mut().zip(x).for_each(|(s, x)| *s += x);
        }
    }
}

/// The gradients of all parameters: autograd's, and those of learned initial values.
pub(super) fn finish(engine: &Engine, mut params: Vec<Vec<f64>>, initial: &[Vec<f64>]) -> Vec<Vec<f32>> {
    let (model, sizes) = (engine.model(), engine.sizes());
    params.resize(model.params.len(), vec![]);
    for (sum, p) in params.iter_mut().zip(&model.params) {
        sum.resize(sizes.count(p.shape), 0.0);
    }
    for (state, bar) in model.states.iter().zip(initial) {
        if let Init::Param(p) = state.init
            && model.params[p.index()].learned
        {
            params[p.index()].iter_mut().zip(bar).for_each(|(s, b)| *s += b);
        }
    }
    params.into_iter().map(|x| x.into_iter().map(|x| x as f32).collect()).collect()
}
