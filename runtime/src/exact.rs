//! `bpm run`: the exact interface to a compiled model. Tensors in, tensors out, nothing random.
//!
//! Inputs `<input>` of shape `[T, B, axes…]`, `init.<state>` of shape `[B, axes…]`, `reset` of
//! shape `[T, B]`; cotangents `<output>`; results `out.<output>`, `state.<state>`, and with
//! cotangents `grad.<param>`, `grad.in.<input>`, `grad.init.<state>`. Parameters are in the units
//! of the spec or as a PyTorch module keeps them; their gradients are in the units of the spec.

mod rows;
mod team;
mod torch;

use crate::Error;
use crate::engine::device::Tier;
use crate::engine::{Backend, Engine, EngineOptions, Mode, Text};
use crate::memory::{Flags, Need, available};
use crate::params::About;
use crate::setup;
use crate::spec::Spec;
use crate::tensors::{Taker, Tensor, Tensors, brackets};
use compiler::form::Prefer;
use compiler::interp::{Cotangents, Interpreter, Sequence};
use compiler::ir::{Shape, Sizes};
use compiler::loops::plan::{Tapes, Use};
use compiler::model::{Model, Role};
use compiler::passes::events;
use std::collections::BTreeMap;
use std::sync::Arc;

/// A number type of the results.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Dtype {
    /// 32 bits.
    F32,
    /// 64 bits; only with the interpreter and libtorch.
    F64,
}

/// What is given.
pub struct Given {
    /// Parameters.
    pub params: (String, Tensors),
    /// Inputs, initial states, resets.
    pub inputs: (String, Tensors),
    /// Cotangents of outputs, if gradients are wanted.
    pub cotangents: Option<(String, Tensors)>,
    /// Sizes of axes.
    pub axes: BTreeMap<String, usize>,
}

/// Everything checked and in order, in 64 bits.
struct Job {
    steps: usize,
    rows: usize,
    /// By parameter.
    params: Vec<Vec<f64>>,
    /// By input, `[T, B, …]`.
    inputs: Vec<Vec<f64>>,
    /// By state, `[B, …]`, where given.
    initial: Vec<Option<Vec<f64>>>,
    /// `[T, B]`.
    resets: Vec<bool>,
    /// By output, `[T, B, …]`, if gradients are wanted.
    cotangents: Option<Vec<Vec<f64>>>,
}

/// Runs a model on tensors.
///
/// # Errors
/// If a tensor is missing, unknown or misshapen (all of them are named), the combination of back
/// end and number type does not exist, or memory does not suffice.
pub fn run(
    spec: &Spec,
    given: Given,
    backend: Backend,
    dtype: Dtype,
    prefer: Prefer,
) -> Result<Tensors, Error> {
    run_on(spec, given, (backend, Tier::Auto), dtype, prefer)
}

/// The same where it is said which kernels of a device run.
///
/// # Errors
/// As [`run`], and if those kernels cannot be had.
pub fn run_on(
    spec: &Spec,
    given: Given,
    (backend, tier): (Backend, Tier),
    dtype: Dtype,
    prefer: Prefer,
) -> Result<Tensors, Error> {
    if dtype == Dtype::F64 && !matches!(backend, Backend::Interp | Backend::Torch(_)) {
        return Err(Error::usage("`--dtype f64` needs `--backend interp` or `--backend torch`"));
    }
    let prefer = setup::form(backend, prefer)?;
    let sizes = Sizes::bind(&spec.model.axes, &given.axes)?;
    compiler::ir::check_bounds(&spec.model.step, &sizes).map_err(|e| Error::input(e.to_string()))?;
    let axes = given.axes.clone();
    let job = Job::new(&spec.model, &sizes, given)?;
    let (kept, _) = compiler::form::choose(&spec.model, &axes, job.steps, prefer)?;
    let Some(kept) = kept.map(Arc::new) else {
        let results = compute((spec, &spec.model), &sizes, &job, (backend, tier), dtype)?;
        return Ok(results.into_tensors(&spec.model, &sizes, &job, dtype));
    };
    let kept_sizes = Sizes::bind(&kept.axes, &axes)?;
    let initial = kept_initial(&spec.model, &kept, &job)?;
    let job = Job { initial, ..job };
    let results = compute((spec, &kept), &kept_sizes, &job, (backend, tier), dtype)?;
    let results = results.recalled(&spec.model, &kept, &kept_sizes, job.rows);
    Ok(results.into_tensors(&spec.model, &sizes, &job, dtype))
}

fn compute(
    (spec, model): (&Spec, &Arc<Model>),
    sizes: &Sizes,
    job: &Job,
    (backend, tier): (Backend, Tier),
    dtype: Dtype,
) -> Result<Results, Error> {
    let text = Text { file: &spec.path, source: &spec.source };
    let options = EngineOptions { batch: job.rows, steps: job.steps, tier, ..EngineOptions::default() };
    let engine = Engine::of_text(Arc::clone(model), sizes.clone(), backend, &options, text)?;
    need(&engine, job).check(available())?;
    match (backend, dtype) {
        (Backend::Torch(place), _) => torch::run(model, sizes, job, dtype, place),
        (_, Dtype::F64) => Ok(in_64_bits(model, sizes, job)),
        (_, Dtype::F32) if job.is_team(&engine) => team::run(&engine, job),
        (_, Dtype::F32) => rows::run(&engine, job),
    }
}

/// The given initial states, for a model with events.
fn kept_initial(model: &Model, kept: &Model, job: &Job) -> Result<Vec<Option<Vec<f64>>>, Error> {
    let mut initial = vec![None; kept.states.len()];
    for (state, given) in model.states.iter().zip(&job.initial) {
        match kept.state(&state.name) {
            Some(s) => initial[s.index()].clone_from(given),
            None if given.iter().flatten().any(|x| *x != 0.0) => {
                let message = format!("`init.{}` is not zero, but events start at zero", state.name);
                return Err(Error::input(message).help("leave it out, or use --prefer dense"));
            }
            None => {}
        }
    }
    Ok(initial)
}

fn need<'a>(engine: &'a Engine, job: &Job) -> Need<'a> {
    // One row after the other, on one tape, into one sum of gradients; on a device or libtorch all at once.
    let usage = Use {
        batch: if job.is_team(engine) || matches!(engine.backend(), Backend::Torch(_)) {
            job.rows
        } else {
            1
        },
        steps: job.steps,
        threads: 1,
        tapes: Tapes::PerThread,
        checkpoint_every: None,
        memory: None,
    };
    let mode = job.mode(engine);
    Need { engine, usage, mode, data: Results::bytes(engine, job), beside: None, flags: Flags::default() }
}

fn shape_of(sizes: &Sizes, front: &[usize], shape: Shape) -> Vec<usize> {
    [front, &sizes.dims(shape)].concat()
}

impl Job {
    fn new(model: &Model, sizes: &Sizes, given: Given) -> Result<Self, Error> {
        let mut inputs = Taker::new(given.inputs.0, given.inputs.1);
        let (steps, rows) = extent(model, sizes, &inputs)?;
        let front = [steps, rows];
        let mut problems = vec![];
        let mut params = Taker::new(given.params.0, given.params.1);
        let about = model.params.iter().map(|p| About::new(p, sizes));
        let param_values: Vec<Option<Vec<f64>>> =
            about.map(|a| a.take(&mut params).map(|found| a.values(found))).collect();
        problems.extend(params.finish().err());
        let input_values = take_inputs(model, sizes, &mut inputs, front);
        let initial = model.states.iter().map(|s| {
            let name = format!("init.{}", s.name);
            let shape = shape_of(sizes, &[rows], s.shape);
            let random = crate::rollout::is_random(&s.init);
            if random { inputs.required(&name, &shape) } else { inputs.optional(&name, &shape) }
        });
        let initial: Vec<_> = initial.map(|t| t.map(|t| t.to_f64())).collect();
        let resets = take_resets(model, &mut inputs, front, &input_values);
        problems.extend(inputs.finish().err());
        let cotangents = given.cotangents.map(|(place, tensors)| {
            let mut taker = Taker::new(place, tensors);
            let one = |o: &compiler::model::Output| {
                let shape = shape_of(sizes, &front, o.shape);
                taker
                    .optional(&o.name, &shape)
                    .map_or_else(|| vec![0.0; shape.iter().product()], |t| t.to_f64())
            };
            let all = model.outputs.iter().map(one).collect();
            problems.extend(taker.finish().err());
            all
        });
        if !problems.is_empty() {
            let lines: Vec<String> = problems.into_iter().map(|e: Error| e.message).collect();
            return Err(Error::input(lines.join("\n")));
        }
        let params = param_values.into_iter().flatten().collect();
        Ok(Job { steps, rows, params, inputs: input_values, initial, resets, cotangents })
    }

    /// A part of a tensor `[T, B, …]`.
    fn part<'a>(&self, tensor: &'a [f64], t: usize, b: usize) -> &'a [f64] {
        let count = tensor.len() / (self.steps * self.rows);
        let k = t * self.rows + b;
        &tensor[k * count..(k + 1) * count]
    }

    fn row<'a>(&self, tensor: &'a [f64], b: usize) -> &'a [f64] {
        let count = tensor.len() / self.rows;
        &tensor[b * count..(b + 1) * count]
    }

    /// The initial states of a row: given ones, and `own` for the others.
    fn initial(&self, own: Vec<Vec<f64>>, b: usize) -> Vec<Vec<f64>> {
        let choose = |(own, given): (Vec<f64>, &Option<Vec<f64>>)| match given {
            Some(g) => self.row(g, b).to_vec(),
            None => own,
        };
        own.into_iter().zip(&self.initial).map(choose).collect()
    }

    /// Gradients need the whole sequence, and so do the outputs of a device.
    fn mode(&self, engine: &Engine) -> Mode {
        match (&self.cotangents, engine.device()) {
            (Some(_), _) => Mode::Train,
            (None, Some(_)) => Mode::Forward,
            (None, None) => Mode::Infer,
        }
    }

    /// Whether all rows run side by side: on a device, if they are reset together.
    fn is_team(&self, engine: &Engine) -> bool {
        let alike = |t: usize| (1..self.rows).all(|b| self.resets_before(t, b) == self.resets_before(t, 0));
        engine.device().is_some() && (1..self.steps).all(alike)
    }

    fn resets_before(&self, t: usize, b: usize) -> bool {
        self.resets[t * self.rows + b]
    }

    /// The first steps of the sequences between the resets of a row, and the end.
    fn parts(&self, b: usize) -> Vec<usize> {
        (0..self.steps).filter(|t| *t == 0 || self.resets_before(*t, b)).chain([self.steps]).collect()
    }
}

/// T and B, from the first input that is there, or from `reset`.
fn extent(model: &Model, sizes: &Sizes, inputs: &Taker) -> Result<(usize, usize), Error> {
    let all = model.inputs.iter().map(|i| (i.name.as_str(), sizes.dims(i.shape)));
    for (name, dims) in all.chain([("reset", vec![])]) {
        let Some(found) = inputs.shape(name) else { continue };
        match found {
            [t, b, rest @ ..] if *t > 0 && *b > 0 && rest == dims => return Ok((*t, *b)),
            _ => {
                let wanted: Vec<String> = ["T", "B"]
                    .iter()
                    .map(|s| s.to_string())
                    .chain(dims.iter().map(usize::to_string))
                    .collect();
                return Err(Error::input(format!(
                    "tensor `{name}` has shape {}, but it must have shape [{}] with T and B at least 1",
                    brackets(found),
                    wanted.join(", ")
                )));
            }
        }
    }
    let names: Vec<&str> = model.inputs.iter().map(|i| i.name.as_str()).collect();
    Err(Error::input(format!("the inputs hold none of `{}`, so T and B are unknown", names.join("`, `")))
        .help("every input is a tensor of shape [T, B, axes…]"))
}

fn take_inputs(model: &Model, sizes: &Sizes, taker: &mut Taker, front: [usize; 2]) -> Vec<Vec<f64>> {
    let one = |input: &compiler::model::Input| {
        let shape = shape_of(sizes, &front, input.shape);
        let found = match input.role {
            Role::Reset => taker.optional(&input.name, &shape),
            _ => taker.required(&input.name, &shape),
        };
        found.map_or_else(|| vec![0.0; shape.iter().product()], |t| t.to_f64())
    };
    model.inputs.iter().map(one).collect()
}

/// Where states return to their initial values: `reset`, and inputs with that role.
fn take_resets(model: &Model, taker: &mut Taker, front: [usize; 2], inputs: &[Vec<f64>]) -> Vec<bool> {
    let mut resets = vec![false; front[0] * front[1]];
    if !model.inputs.iter().any(|i| i.name == "reset")
        && let Some(t) = taker.optional("reset", &front)
    {
        resets.iter_mut().zip(t.to_f64()).for_each(|(r, x)| *r = x != 0.0);
    }
    for (_, x) in model.inputs.iter().zip(inputs).filter(|(i, _)| i.role == Role::Reset) {
        resets.iter_mut().zip(x).for_each(|(r, x)| *r |= *x != 0.0);
    }
    resets
}

/// What comes out, in 64 bits; by output, state, parameter, input.
struct Results {
    outputs: Vec<Vec<f64>>,
    states: Vec<Vec<f64>>,
    params: Vec<Vec<f64>>,
    inputs: Vec<Vec<f64>>,
    initial: Vec<Vec<f64>>,
}

impl Results {
    /// Bytes of what [`Results::new`] makes.
    fn bytes(engine: &Engine, job: &Job) -> u64 {
        let (model, sizes) = (engine.model(), engine.sizes());
        let count = |shape: Shape| sizes.count(shape) as u64;
        let vectors: u64 = model.outputs.iter().map(|o| count(o.shape)).sum::<u64>()
            + model.inputs.iter().map(|i| count(i.shape)).sum::<u64>();
        let states: u64 = model.states.iter().map(|s| 2 * count(s.shape)).sum();
        let (steps, rows) = (job.steps as u64, job.rows as u64);
        steps.saturating_mul(vectors).saturating_add(states).saturating_mul(rows).saturating_mul(8)
    }

    fn new(model: &Model, sizes: &Sizes, job: &Job) -> Self {
        let zeros = |front: usize, shape: Shape| vec![0.0; front * sizes.count(shape)];
        let cells = job.steps * job.rows;
        Results {
            outputs: model.outputs.iter().map(|o| zeros(cells, o.shape)).collect(),
            states: model.states.iter().map(|s| zeros(job.rows, s.shape)).collect(),
            params: vec![],
            inputs: model.inputs.iter().map(|i| zeros(cells, i.shape)).collect(),
            initial: model.states.iter().map(|s| zeros(job.rows, s.shape)).collect(),
        }
    }

    /// The results of a model with events, by the states of the spec. What events replace has no
    /// gradient of its initial value.
    fn recalled(self, model: &Model, kept: &Model, sizes: &Sizes, rows: usize) -> Results {
        let place = |state: &compiler::model::State| kept.state(&state.name);
        let matrices = kept.events.iter().flat_map(|e| &e.matrices);
        let recall = |state: &compiler::model::State| -> Vec<f64> {
            let matrix = matrices.clone().find(|m| m.name == state.name);
            let row = |b: usize| {
                let part = |x: &Vec<f64>| x[b * (x.len() / rows)..(b + 1) * (x.len() / rows)].to_vec();
                let states: Vec<Vec<f64>> = self.states.iter().map(part).collect();
                matrix.map_or(vec![], |m| events::recall(m, sizes, &states))
            };
            (0..rows).flat_map(row).collect()
        };
        let states = model.states.iter().map(|s| match place(s) {
            Some(k) => self.states[k.index()].clone(),
            None => recall(s),
        });
        let initial =
            model.states.iter().map(|s| place(s).map_or(vec![], |k| self.initial[k.index()].clone()));
        Results { states: states.collect(), initial: initial.collect(), ..self }
    }

    fn into_tensors(self, model: &Model, sizes: &Sizes, job: &Job, dtype: Dtype) -> Tensors {
        let mut all = Tensors::new();
        let mut put = |name: String, shape: Vec<usize>, data: Vec<f64>| {
            let tensor = match dtype {
                Dtype::F32 => Tensor::f32(shape, data.into_iter().map(|x| x as f32).collect()),
                Dtype::F64 => Tensor::f64(shape, data),
            };
            all.insert(name, tensor);
        };
        let cells = [job.steps, job.rows];
        for (o, x) in model.outputs.iter().zip(self.outputs) {
            put(format!("out.{}", o.name), shape_of(sizes, &cells, o.shape), x);
        }
        for (s, x) in model.states.iter().zip(self.states) {
            put(format!("state.{}", s.name), shape_of(sizes, &[job.rows], s.shape), x);
        }
        if job.cotangents.is_none() {
            return all;
        }
        for (p, x) in model.params.iter().zip(self.params).filter(|(p, _)| p.learned) {
            put(format!("grad.{}", p.name), p.dims.iter().map(|a| sizes.of(*a)).collect(), x);
        }
        for (i, x) in model.inputs.iter().zip(self.inputs).filter(|(i, _)| i.role.is_differentiable()) {
            put(format!("grad.in.{}", i.name), shape_of(sizes, &cells, i.shape), x);
        }
        for (s, x) in model.states.iter().zip(self.initial).filter(|(_, x)| !x.is_empty()) {
            put(format!("grad.init.{}", s.name), shape_of(sizes, &[job.rows], s.shape), x);
        }
        all
    }
}

fn copy(to: &mut [f64], at: usize, from: &[f64]) {
    to[at * from.len()..(at + 1) * from.len()].copy_from_slice(from);
}

fn widen(x: &[f32]) -> Vec<f64> {
    x.iter().map(|x| f64::from(*x)).collect()
}

fn narrow(x: &[f64]) -> Vec<f32> {
    x.iter().map(|x| *x as f32).collect()
}

/// The interpreter, from numbers to numbers in 64 bits.
fn in_64_bits(model: &Arc<Model>, sizes: &Sizes, job: &Job) -> Results {
    let interpreter = Interpreter::new(Arc::clone(model), sizes.clone());
    let params: Vec<_> = job.params.iter().cloned().map(Arc::new).collect();
    let own: Vec<Vec<f64>> = interpreter.initial(&params).iter().map(|t| t.to_vec()).collect();
    let mut results = Results::new(model, sizes, job);
    let mut boundary = BTreeMap::new();
    let mut initial: Vec<Vec<f64>> = model.states.iter().map(|s| vec![0.0; sizes.count(s.shape)]).collect();
    for b in 0..job.rows {
        let cell = |x: &Vec<f64>, t: usize| Arc::new(job.part(x, t, b).to_vec());
        let sequence = Sequence {
            inputs: (0..job.steps).map(|t| job.inputs.iter().map(|x| cell(x, t)).collect()).collect(),
            initial: job.initial(own.clone(), b).into_iter().map(Arc::new).collect(),
            resets: (0..job.steps).map(|t| job.resets_before(t, b)).collect(),
        };
        let run = interpreter.run(&params, &sequence);
        for (k, out) in results.outputs.iter_mut().enumerate() {
            (0..job.steps).for_each(|t| copy(out, t * job.rows + b, &interpreter.output(&run, t, k)));
        }
        for (k, state) in results.states.iter_mut().enumerate() {
            copy(state, b, &run.after[job.steps - 1][k]);
        }
        let Some(cotangents) = &job.cotangents else { continue };
        let outputs = (0..job.steps).map(|t| cotangents.iter().map(|x| cell(x, t)).collect()).collect();
        let bars = Cotangents { outputs, penalty: 0.0, last: vec![] };
        let gradient = interpreter.backward(&sequence, &run, &bars);
        for (t, inputs) in gradient.inputs.iter().enumerate() {
            for (slot, bar) in results.inputs.iter_mut().zip(inputs) {
                bar.iter().for_each(|bar| copy(slot, t * job.rows + b, bar));
            }
        }
        for (k, bar) in gradient.initial.iter().enumerate() {
            copy(&mut results.initial[k], b, bar);
            if job.initial[k].is_none() {
                initial[k].iter_mut().zip(bar).for_each(|(s, x)| *s += x);
            }
        }
        for (value, bar) in gradient.boundary {
            let sum = boundary.entry(value).or_insert_with(|| vec![0.0; bar.len()]);
            sum.iter_mut().zip(bar).for_each(|(s, x)| *s += x);
        }
    }
    results.params = interpreter.finish(&params, &boundary, &initial);
    results
}

#[cfg(test)]
mod tests {
    use super::*;

    const SPEC: &str = include_str!("../../specs/backpropamine/simple.bpm");

    fn wave(shape: &[usize], tag: f64, scale: f64) -> Tensor {
        let count: usize = shape.iter().product();
        Tensor::f64(shape.to_vec(), (0..count).map(|k| scale * (0.7 * k as f64 + tag).sin()).collect())
    }

    /// The published fixture: B = 2, I = 3, N = 4, A = 2, T = 6.
    fn given() -> Given {
        let tensors = [
            ("Wx", wave(&[4, 3], 1.0, 0.8)),
            ("bx", wave(&[4], 2.0, 0.3)),
            ("W", wave(&[4, 4], 3.0, 0.5)),
            ("alpha", wave(&[4, 4], 4.0, 0.9)),
            ("Wo", wave(&[2, 4], 5.0, 0.7)),
            ("bo", wave(&[2], 6.0, 0.2)),
            ("wv", wave(&[4], 7.0, 0.6)),
            ("bv", wave(&[], 8.0, 0.1)),
            ("wm", wave(&[4], 9.0, 1.2)),
            ("bm", wave(&[], 10.0, 0.2)),
        ];
        let params = tensors.into_iter().map(|(n, t)| (n.to_string(), t)).collect();
        let u = |k: usize| (0.3 * (k % 3) as f64 + 1.1 * (k / 3 % 2) as f64 + 0.5 * (k / 6) as f64).sin();
        let inputs = Tensors::from([("u".into(), Tensor::f64(vec![6, 2, 3], (0..36).map(u).collect()))]);
        let axes = [("I", 3), ("N", 4), ("A", 2)].map(|(n, s)| (n.to_string(), s)).into();
        Given { params: ("p".into(), params), inputs: ("x".into(), inputs), cotangents: None, axes }
    }

    fn cotangents() -> Option<(String, Tensors)> {
        let all =
            [("policy".to_string(), wave(&[6, 2, 2], 0.3, 1.0)), ("value".into(), wave(&[6, 2], 0.9, 1.0))];
        Some(("g".into(), all.into()))
    }

    fn go(given: Given, backend: Backend, dtype: Dtype) -> Result<Tensors, Error> {
        run(&spec(), given, backend, dtype, Prefer::Dense)
    }

    fn spec() -> Spec {
        crate::spec::compile("simple.bpm", SPEC.into(), None).unwrap_or_else(|e| panic!("{e:?}"))
    }

    fn close(a: &[f64], b: &[f64], tolerance: f64) {
        let norm = b.iter().map(|x| x * x).sum::<f64>().sqrt().max(1e-12);
        let error = a.iter().zip(b).map(|(x, y)| (x - y).powi(2)).sum::<f64>().sqrt();
        assert!(a.len() == b.len() && error <= tolerance * norm, "{error} of {norm}\n{a:?}\n{b:?}");
    }

    #[test]
    fn reference_values_of_simple_modulation() {
        let out = go(given(), Backend::Interp, Dtype::F64).unwrap_or_else(|e| panic!("{e}"));
        let y = out["state.y"].to_f64();
        close(&y[..4], &[0.5916317205, -0.3886120494, -0.3677281650, 0.6482876783], 1e-9);
        let policy = out["out.policy"].to_f64();
        close(&policy[20..22], &[-0.0024057315, 0.0122932800], 1e-8);
        close(&out["out.value"].to_f64()[10..11], &[0.0373083111], 1e-8);
        close(&[out["state.H"].to_f64()[..16].iter().sum()], &[0.0435006600], 1e-8);
        assert_eq!(out["out.policy"].shape, [6, 2, 2]);
        assert_eq!(out["out.value"].shape, [6, 2]);
        assert_eq!(out.len(), 4);
    }

    #[test]
    fn back_ends_agree_and_gradients_have_names() {
        let exact = go(Given { cotangents: cotangents(), ..given() }, Backend::Interp, Dtype::F64);
        let exact = exact.unwrap_or_else(|e| panic!("{e}"));
        let single = [Backend::Interp, Backend::CRANELIFT].into_iter().chain(emulated());
        let single = single.map(|b| (b, Dtype::F32, 1e-4));
        let libtorch = [(Dtype::F32, 1e-4), (Dtype::F64, 1e-12)];
        let libtorch = libtorch.into_iter().filter_map(|(d, t)| libtorch_here().map(|b| (b, d, t)));
        for (backend, dtype, tolerance) in single.chain(libtorch) {
            let found = go(Given { cotangents: cotangents(), ..given() }, backend, dtype);
            let found = found.unwrap_or_else(|e| panic!("{e}"));
            assert_eq!(found.keys().collect::<Vec<_>>(), exact.keys().collect::<Vec<_>>());
            for (name, tensor) in &exact {
                assert_eq!(found[name].shape, tensor.shape, "{name}");
                close(&found[name].to_f64(), &tensor.to_f64(), tolerance);
            }
        }
        for name in ["grad.alpha", "grad.wm", "grad.in.u", "grad.init.y", "grad.init.H"] {
            assert!(exact[name].to_f64().iter().any(|x| x.abs() > 1e-3), "{name} is vacuous");
        }
    }

    /// libtorch, where it is built in.
    fn libtorch_here() -> Option<Backend> {
        ::torch::BUILT_IN.then_some(Backend::Torch(::torch::Place::Processor))
    }

    /// The emulated device, where there is a C++ compiler.
    fn emulated() -> Option<Backend> {
        let id = crate::engine::device::DeviceId::Emulated;
        crate::engine::device::open(id).is_ok().then_some(Backend::Device(id))
    }

    /// Rows that are reset together run side by side on a device, others one by one.
    #[test]
    fn a_device_resets_rows_together_and_apart() {
        let Some(device) = emulated() else { return };
        for resets in [[0; 12], [0, 0, 0, 0, 1, 1, 0, 0, 1, 1, 0, 0], [0, 0, 0, 1, 1, 1, 0, 0, 0, 0, 1, 0]] {
            let run = |backend, tier| {
                let mut g = Given { cotangents: cotangents(), ..given() };
                let mask = resets.iter().map(|x| f64::from(*x)).collect();
                g.inputs.1.insert("reset".into(), Tensor::f64(vec![6, 2], mask));
                let results = run_on(&spec(), g, (backend, tier), Dtype::F32, Prefer::Dense);
                results.unwrap_or_else(|e| panic!("{e}"))
            };
            let expected = run(Backend::CRANELIFT, Tier::Auto);
            for tier in [Tier::Steps, Tier::Sequences] {
                let found = run(device, tier);
                assert_eq!(found.keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>());
                for (name, tensor) in &expected {
                    let is_forward = name.starts_with("out.") || name.starts_with("state.");
                    match is_forward && tier == Tier::Steps {
                        true => assert_eq!(found[name], *tensor, "{name} {resets:?}"),
                        false => close(&found[name].to_f64(), &tensor.to_f64(), 1e-5),
                    }
                }
            }
        }
    }

    /// A reset in the middle of a row is two rows, and a carried state is one.
    #[test]
    fn resets_and_initial_states() {
        let device = emulated().map(|d| (d, Dtype::F32)).into_iter();
        let others = device.chain(libtorch_here().map(|b| (b, Dtype::F64)));
        for (backend, dtype) in
            [(Backend::Interp, Dtype::F64), (Backend::CRANELIFT, Dtype::F32)].into_iter().chain(others)
        {
            let whole = go(given(), backend, dtype).unwrap_or_else(|e| panic!("{e}"));
            let cut = |from: usize, to: usize| {
                let mut g = given();
                let u = g.inputs.1["u"].to_f64()[from * 6..to * 6].to_vec();
                g.inputs.1.insert("u".into(), Tensor::f64(vec![to - from, 2, 3], u));
                g
            };
            let head = go(cut(0, 2), backend, dtype).unwrap_or_else(|e| panic!("{e}"));
            let mut tail = cut(2, 6);
            for name in ["y", "H"] {
                tail.inputs.1.insert(format!("init.{name}"), head[&format!("state.{name}")].clone());
            }
            let tail = go(tail, backend, dtype).unwrap_or_else(|e| panic!("{e}"));
            assert_eq!(tail["state.H"], whole["state.H"], "carried");
            let mut reset = given();
            let mask = (0..12).map(|k| f64::from(u8::from(k == 4))).collect();
            reset.inputs.1.insert("reset".into(), Tensor::f64(vec![6, 2], mask));
            let reset = go(reset, backend, dtype).unwrap_or_else(|e| panic!("{e}"));
            let fresh = go(cut(2, 6), backend, dtype).unwrap_or_else(|e| panic!("{e}"));
            let (r, f, w) = (reset["state.H"].to_f64(), fresh["state.H"].to_f64(), whole["state.H"].to_f64());
            assert_eq!(r[..16], f[..16], "row 0 starts anew");
            assert_eq!(r[16..], w[16..], "row 1 does not");
        }
    }

    #[test]
    fn mistakes_are_named_together() {
        let mut g = given();
        g.params.1.remove("bv");
        g.params.1.insert("Wo".into(), wave(&[4, 2], 1.0, 1.0));
        g.inputs.1.insert("init.h".into(), wave(&[2, 4], 1.0, 1.0));
        g.cotangents = Some(("g".into(), [("valeu".to_string(), wave(&[6, 2], 1.0, 1.0))].into()));
        let message = go(g, Backend::Interp, Dtype::F64).expect_err("mistakes").message;
        let expected = [
            "tensor `Wo` in `p` has shape [4, 2], but it must have shape [2, 4]",
            "`p` has no tensor `bv`; it needs one of shape []",
            "`x` has an unknown tensor `init.h`; did you mean `init.H`?",
            "`g` has an unknown tensor `valeu`; did you mean `value`?",
        ];
        assert_eq!(message.lines().collect::<Vec<_>>(), expected);
        let mut g = given();
        g.inputs.1.insert("u".into(), wave(&[6, 3], 1.0, 1.0));
        let message = go(g, Backend::Interp, Dtype::F64).expect_err("shape").message;
        assert_eq!(
            message,
            "tensor `u` has shape [6, 3], but it must have shape [T, B, 3] with T and B at least 1"
        );
        assert!(go(given(), Backend::CRANELIFT, Dtype::F64).is_err());
        let g = Given { axes: [("N".to_string(), 4)].into(), ..given() };
        assert!(go(g, Backend::Interp, Dtype::F64).expect_err("open").message.contains("I, A"));
    }

    #[test]
    fn events_give_what_matrices_give() {
        let text = SPEC
            .replace("clip(H + m * y'[j] * y[i], -1, 1)", "H + m * y'[j] * y[i]")
            .replace("alpha * H", "alpha[j] * H")
            .replace("learn W[N,N], alpha[N,N]", "learn W[N,N], alpha[N]")
            .replace("plastic H[N,N] = 0", "plastic H[N,N] = 0 unbounded");
        let spec = crate::spec::compile("s.bpm", text, None).unwrap_or_else(|e| panic!("{e:?}"));
        let given = || {
            let mut g = Given { cotangents: cotangents(), ..given() };
            g.params.1.insert("alpha".into(), wave(&[4], 4.0, 0.9));
            let mask = (0..12).map(|k| f64::from(u8::from(k == 4))).collect();
            g.inputs.1.insert("reset".into(), Tensor::f64(vec![6, 2], mask));
            g
        };
        let dense = run(&spec, given(), Backend::Interp, Dtype::F64, Prefer::Dense);
        let dense = dense.unwrap_or_else(|e| panic!("{e}"));
        for (backend, dtype, tolerance) in [
            (Backend::Interp, Dtype::F64, 1e-12),
            (Backend::Interp, Dtype::F32, 1e-5),
            (Backend::CRANELIFT, Dtype::F32, 1e-5),
        ] {
            let found = run(&spec, given(), backend, dtype, Prefer::Events);
            let found = found.unwrap_or_else(|e| panic!("{e}"));
            let expected: Vec<_> = dense.keys().filter(|k| *k != "grad.init.H").collect();
            assert_eq!(found.keys().collect::<Vec<_>>(), expected);
            for (name, tensor) in &found {
                assert_eq!(tensor.shape, dense[name].shape, "{name}");
                close(&tensor.to_f64(), &dense[name].to_f64(), tolerance);
            }
        }
        assert!(dense["state.H"].to_f64().iter().any(|x| x.abs() > 1e-3));
        let mut g = given();
        g.inputs.1.insert("init.H".into(), wave(&[2, 4, 4], 1.0, 1.0));
        let error = run(&spec, g, Backend::Interp, Dtype::F64, Prefer::Events).expect_err("not zero");
        assert!(error.message.contains("`init.H` is not zero"), "{}", error.message);
    }

    #[test]
    fn learned_initial_states_have_gradients_unless_given() {
        let text =
            "spec s {\n  axis N = 3\n  in u[N]\n  state y[N] = learn\n  y' = tanh(0.5 * y + u)\n  out y'\n}";
        let spec = crate::spec::compile("s.bpm", text.into(), None).unwrap_or_else(|e| panic!("{e:?}"));
        let name = spec.model.params[0].name.clone();
        let compiled = [(Backend::Interp, Dtype::F32), (Backend::CRANELIFT, Dtype::F32)];
        let libtorch = libtorch_here().map(|b| (b, Dtype::F64));
        for (backend, dtype) in [(Backend::Interp, Dtype::F64)].into_iter().chain(compiled).chain(libtorch) {
            for start in [false, true] {
                let mut inputs: Tensors = [("u".to_string(), wave(&[4, 2, 3], 1.0, 1.0))].into();
                if start {
                    inputs.insert("init.y".into(), wave(&[2, 3], 2.0, 0.5));
                }
                let given = Given {
                    params: ("p".into(), [(name.clone(), wave(&[3], 1.0, 0.2))].into()),
                    inputs: ("x".into(), inputs),
                    cotangents: Some(("g".into(), [("y".to_string(), wave(&[4, 2, 3], 5.0, 1.0))].into())),
                    axes: BTreeMap::new(),
                };
                let out = run(&spec, given, backend, dtype, Prefer::Dense).unwrap_or_else(|e| panic!("{e}"));
                let size = out[&format!("grad.{name}")].to_f64().iter().map(|x| x.abs()).sum::<f64>();
                assert_eq!(size > 1e-6, !start, "{size}");
                assert!(out["grad.init.y"].to_f64().iter().any(|x| x.abs() > 1e-3));
            }
        }
    }
}
