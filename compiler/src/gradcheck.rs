//! Are the gradients right? Finite differences and the dot-product test, on any model.
//!
//! Both run on the f64 interpreter over a short sequence with random parameters, inputs, initial
//! states and cotangents. The scalar under test is
//! `L = Σ_t ⟨w_t, o_t⟩ + ⟨w_S, S_T⟩ + penalties`.
//!
//! * **Finite differences**: for every tensor, the directional derivative along a random direction
//!   and along single elements, by central differences, against the adjoint. Where the function has
//!   a kink inside the step (a clip that opens, a maximum that changes), a smaller step is tried.
//! * **Dot product**: ⟨J v, w⟩ from forward mode against ⟨v, Jᵀ w⟩ from reverse mode. It needs no step
//!   size, so it holds to rounding.

use crate::autodiff;
use crate::interp::{Cotangents, Interpreter, Sequence, Tensor, evaluate};
use crate::ir::{Sink, Sizes, Source};
use crate::model::{Init, Model, Role};
use std::collections::BTreeMap;
use std::sync::Arc;

/// What to check.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Seed of the random numbers.
    pub seed: u64,
    /// Steps.
    pub steps: usize,
    /// Scale of the random initial matrices: large ones force clips to act.
    pub state_scale: f64,
    /// A reset of the states before this step.
    pub reset_at: Option<usize>,
    /// Whether half of the elements of signals are exactly zero, as missing values are.
    pub sparse: bool,
}

impl Default for Options {
    fn default() -> Self {
        Options { seed: 0, steps: 6, state_scale: 0.5, reset_at: None, sparse: false }
    }
}

/// The verdict on one tensor.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    /// `grad.NAME`, `grad.in.NAME`, `grad.init.NAME`.
    pub name: String,
    /// Norm of the gradient.
    pub norm: f64,
    /// Largest relative error of the tested derivatives.
    pub error: f64,
    /// Derivatives tested; fewer than tried if kinks were in the way.
    pub tested: usize,
}

/// The verdict on a model.
#[derive(Clone, Debug, PartialEq)]
pub struct Report {
    /// One row per tensor.
    pub rows: Vec<Row>,
    /// Relative error of the dot-product test.
    pub dot_error: f64,
    /// Share of clipped elements among those that pass a clip, if the model clips.
    pub clipped: Option<f64>,
}

impl Report {
    /// The largest error of all.
    pub fn worst(&self) -> f64 {
        self.rows.iter().map(|r| r.error).fold(self.dot_error, f64::max)
    }
}

/// Numbers for a model: everything a run needs.
#[derive(Clone, Debug)]
pub struct Case {
    /// Parameters, in the units of the spec.
    pub params: Vec<Tensor>,
    /// One row's inputs, initial states and resets.
    pub sequence: Sequence,
    /// Cotangents.
    pub bars: Cotangents,
}

/// A small generator for test data (SplitMix64); never used for training.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// A stream.
    pub fn new(seed: u64) -> Self {
        Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(0x1234_5678_9abc_def1))
    }

    /// Uniform in [-1, 1).
    pub fn symmetric(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 11) as f64 / (1u64 << 52) as f64 - 1.0
    }

    /// A tensor with elements in ±scale.
    pub fn tensor(&mut self, len: usize, scale: f64) -> Tensor {
        Arc::new((0..len).map(|_| scale * self.symmetric()).collect())
    }
}

/// Draws numbers for a model.
pub fn random_case(model: &Model, sizes: &Sizes, options: &Options) -> Case {
    let mut random = Random::new(options.seed);
    let params = model.params.iter().map(|p| random_param(p, sizes, &mut random)).collect();
    let states = |random: &mut Random, scale: f64| {
        model.states.iter().map(|s| random.tensor(sizes.count(s.shape), scale)).collect()
    };
    let initial: Vec<Tensor> = states(&mut random, options.state_scale);
    let input = |random: &mut Random, i: &crate::model::Input| {
        let x = random.tensor(sizes.count(i.shape), 1.0);
        match i.role {
            Role::Reset => Arc::new(vec![0.0; x.len()]),
            Role::Mask => Arc::new(x.iter().map(|v| f64::from(*v < 0.5)).collect()),
            Role::Signal if options.sparse => Arc::new(x.iter().map(|v| v.max(0.0)).collect()),
            _ => x,
        }
    };
    let inputs =
        (0..options.steps).map(|_| model.inputs.iter().map(|i| input(&mut random, i)).collect()).collect();
    let resets = (0..options.steps).map(|t| options.reset_at == Some(t)).collect();
    let outputs = (0..options.steps)
        .map(|_| model.outputs.iter().map(|o| random.tensor(sizes.count(o.shape), 1.0)).collect())
        .collect();
    let last = states(&mut random, 1.0);
    Case {
        params,
        sequence: Sequence { inputs, initial, resets },
        bars: Cotangents { outputs, penalty: 0.7, last },
    }
}

/// A value inside of the parameter's range, of a size that keeps a short run alive.
fn random_param(p: &crate::model::Param, sizes: &Sizes, random: &mut Random) -> Tensor {
    let count = sizes.count(p.shape);
    let range = p.constraint.range(sizes);
    let scale = match p.shape {
        crate::ir::Shape::Matrix { pre, .. } => 1.2 / (sizes.of(pre) as f64).sqrt(),
        _ => 0.8,
    };
    Arc::new((0..count).map(|_| range.value(scale * random.symmetric() * 1.5)).collect())
}

/// Checks a model.
pub fn check(model: &Arc<Model>, sizes: &Sizes, options: &Options) -> Report {
    let case = random_case(model, sizes, options);
    let interpreter = Interpreter::new(model.clone(), sizes.clone());
    let gradient = gradient(&interpreter, &case);
    let mut random = Random::new(options.seed ^ 0x5555);
    let mut rows = vec![];
    for (slot, (name, g)) in gradient.iter().enumerate() {
        rows.push(check_tensor(&interpreter, &case, slot, name, g, &mut random));
    }
    let dot_error = dot_product(&interpreter, &case, &gradient, &mut random);
    Report { rows, dot_error, clipped: clipped(&interpreter, &case) }
}

/// The tensors under test, in a fixed order: parameters, initial states, inputs by step.
pub fn gradient(interpreter: &Interpreter, case: &Case) -> Vec<(String, Vec<f64>)> {
    let model = &interpreter.model;
    let run = interpreter.run(&case.params, &case.sequence);
    let row = interpreter.backward(&case.sequence, &run, &case.bars);
    // The initial states are tensors of their own here, so learned ones get no gradient twice.
    let zero: Vec<Vec<f64>> = row.initial.iter().map(|x| vec![0.0; x.len()]).collect();
    let params = interpreter.finish(&case.params, &row.boundary, &zero);
    let mut found = vec![];
    for (p, g) in model.params.iter().zip(params) {
        found.push((format!("grad.{}", p.name), if p.learned { g } else { vec![] }));
    }
    for (s, g) in model.states.iter().zip(row.initial) {
        found.push((format!("grad.init.{}", s.name), g));
    }
    for (k, i) in model.inputs.iter().enumerate() {
        // A signal that no output needs has a gradient too: zero.
        let zero = || Arc::new(vec![0.0; interpreter.sizes.count(i.shape)]);
        let bar = |step: &Vec<Option<Tensor>>| match &step[k] {
            Some(x) => Some(x.clone()),
            None => i.role.is_differentiable().then(zero),
        };
        let all = row.inputs.iter().filter_map(bar).flat_map(|x| x.to_vec());
        found.push((format!("grad.in.{}", i.name), all.collect()));
    }
    found
}

/// The loss under test.
pub fn loss(interpreter: &Interpreter, case: &Case) -> f64 {
    let run = interpreter.run(&case.params, &case.sequence);
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    let mut sum = 0.0;
    for (t, bars) in case.bars.outputs.iter().enumerate() {
        for (k, bar) in bars.iter().enumerate() {
            sum += dot(bar, &interpreter.output(&run, t, k));
        }
        sum += case.bars.penalty * interpreter.penalty(&run, t);
    }
    let last = &run.states[case.sequence.inputs.len()];
    sum + case.bars.last.iter().zip(last).map(|(b, s)| dot(b, s)).sum::<f64>()
}

/// The case with one tensor moved along a direction.
fn moved(interpreter: &Interpreter, case: &Case, slot: usize, direction: &[f64], h: f64) -> Case {
    let model = &interpreter.model;
    let mut case = case.clone();
    let shift = |x: &mut Tensor, d: &[f64]| {
        *x = Arc::new(x.iter().zip(d).map(|(x, d)| x + h * d).collect());
    };
    let (params, states) = (model.params.len(), model.states.len());
    if slot < params {
        shift(&mut case.params[slot], direction);
    } else if slot < params + states {
        shift(&mut case.sequence.initial[slot - params], direction);
    } else {
        let k = slot - params - states;
        let len = interpreter.sizes.count(model.inputs[k].shape);
        for (step, d) in case.sequence.inputs.iter_mut().zip(direction.chunks(len)) {
            shift(&mut step[k], d);
        }
    }
    case
}

fn check_tensor(
    interpreter: &Interpreter,
    case: &Case,
    slot: usize,
    name: &str,
    g: &[f64],
    random: &mut Random,
) -> Row {
    let norm = g.iter().map(|x| x * x).sum::<f64>().sqrt();
    let mut directions: Vec<Vec<f64>> = vec![];
    if !g.is_empty() {
        directions.push((0..g.len()).map(|_| random.symmetric()).collect());
        for _ in 0..g.len().min(4) {
            let k = ((random.symmetric() + 1.0) * 0.5 * g.len() as f64) as usize % g.len();
            directions.push((0..g.len()).map(|i| f64::from(u8::from(i == k))).collect());
        }
    }
    let (mut error, mut tested) = (0.0f64, 0);
    for d in &directions {
        let exact: f64 = g.iter().zip(d).map(|(g, d)| g * d).sum();
        if let Some(e) = best_difference(interpreter, case, slot, d, exact) {
            error = error.max(e);
            tested += 1;
        }
    }
    Row { name: name.to_owned(), norm, error, tested }
}

/// The error of the best of several step sizes; `None` if the differences themselves disagree, as
/// they do beside a kink.
fn best_difference(
    interpreter: &Interpreter,
    case: &Case,
    slot: usize,
    direction: &[f64],
    exact: f64,
) -> Option<f64> {
    let at = |h: f64| loss(interpreter, &moved(interpreter, case, slot, direction, h));
    let mut best: Option<f64> = None;
    let mut smooth = false;
    for h in [1e-4, 1e-5, 1e-6] {
        let (up, here, down) = (at(h), at(0.0), at(-h));
        let central = (up - down) / (2.0 * h);
        let (right, left) = ((up - here) / h, (here - down) / h);
        let scale = exact.abs().max(central.abs()).max(1e-3);
        // One-sided differences agree up to the curvature where the function is smooth.
        smooth |= (right - left).abs() <= 1e-2 * scale + 1e3 * h * scale;
        let error = (central - exact).abs() / scale;
        best = Some(best.map_or(error, |b: f64| b.min(error)));
    }
    best.filter(|_| smooth)
}

/// ⟨Jv, w⟩ against ⟨v, Jᵀw⟩, for a random v in all tensors at once.
fn dot_product(
    interpreter: &Interpreter,
    case: &Case,
    gradient: &[(String, Vec<f64>)],
    random: &mut Random,
) -> f64 {
    let model = &interpreter.model;
    let v: Vec<Vec<f64>> =
        gradient.iter().map(|(_, g)| g.iter().map(|_| random.symmetric()).collect()).collect();
    let reverse: f64 =
        gradient.iter().zip(&v).flat_map(|((_, g), v)| g.iter().zip(v)).map(|(g, v)| g * v).sum();
    let forward = autodiff::forward(model);
    let (params, states) = (model.params.len(), model.states.len());
    let mut state = case.sequence.initial.clone();
    let mut dot: Vec<Tensor> = (0..states).map(|k| Arc::new(v[params + k].clone())).collect();
    let initial_dot = dot.clone();
    let mut sum = 0.0;
    for (t, inputs) in case.sequence.inputs.iter().enumerate() {
        if case.sequence.resets.get(t) == Some(&true) {
            state.clone_from(&case.sequence.initial);
            dot.clone_from(&initial_dot);
        }
        let values = evaluate(&forward, &interpreter.sizes, &[], |_| true, &mut |source| match source {
            Source::Param(p) => case.params[p.index()].clone(),
            Source::Input(i) => inputs[i.index()].clone(),
            Source::State(s) => state[s.index()].clone(),
            Source::ParamDot(p) => Arc::new(v[p.index()].clone()),
            Source::StateDot(s) => dot[s.index()].clone(),
            Source::InputDot(i) => {
                let len = interpreter.sizes.count(model.inputs[i.index()].shape);
                Arc::new(v[params + states + i.index()][t * len..(t + 1) * len].to_vec())
            }
            other => unreachable!("forward mode does not load {other:?}"),
        });
        let at = |v: &crate::ir::Value| values[v.index()].clone().expect("evaluated");
        let product = |a: &Tensor, b: &Tensor| a.iter().zip(b.iter()).map(|(a, b)| a * b).sum::<f64>();
        let mut next = BTreeMap::new();
        for (sink, v) in &forward.results {
            match sink {
                Sink::OutputDot(o) => sum += product(&at(v), &case.bars.outputs[t][o.index()]),
                Sink::PenaltyDot => sum += case.bars.penalty * at(v)[0],
                Sink::State(s) => {
                    next.insert((s.index(), false), at(v));
                }
                Sink::StateDot(s) => {
                    next.insert((s.index(), true), at(v));
                }
                _ => {}
            }
        }
        for ((s, is_dot), x) in next {
            if is_dot {
                dot[s] = x;
            } else {
                state[s] = x;
            }
        }
    }
    sum += dot
        .iter()
        .zip(&case.bars.last)
        .map(|(d, b)| d.iter().zip(b.iter()).map(|(d, b)| d * b).sum::<f64>())
        .sum::<f64>();
    (sum - reverse).abs() / sum.abs().max(reverse.abs()).max(1e-3)
}

/// The share of clipped elements among those that pass a clip; `None` if the model has none.
pub fn clipped(interpreter: &Interpreter, case: &Case) -> Option<f64> {
    use crate::ir::Op;
    let step = &interpreter.model.step;
    let run = interpreter.run(&case.params, &case.sequence);
    let (mut hits, mut all) = (0usize, 0usize);
    for values in &run.values {
        for (v, instruction) in step.values() {
            if let Op::Clip { x, .. } = instruction.op
                && let (Some(y), Some(x)) = (&values[v.index()], &values[x.index()])
            {
                hits += y.iter().zip(x.iter()).filter(|(y, x)| y != x).count();
                all += y.len();
            }
        }
    }
    (all > 0).then(|| hits as f64 / all as f64)
}

/// Initial states of a model as tensors of the case, for learned ones.
pub fn tie_learned_states(model: &Model, case: &mut Case) {
    for (k, s) in model.states.iter().enumerate() {
        if let Init::Param(p) = s.init {
            case.sequence.initial[k] = case.params[p.index()].clone();
        }
    }
}
