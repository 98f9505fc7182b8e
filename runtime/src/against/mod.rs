//! `bpm bench --against torch`: the same spec in PyTorch, side by side.
//!
//! The spec is emitted as a PyTorch module into a folder of its own and runs in a child process, eager and with a
//! compiled step. Before anything is timed, outputs and gradients of parameters must agree for the same numbers,
//! over a few rows and steps: single precision drifts apart over long sequences. Then all are timed in turn, round by
//! round, so that noise of the machine meets all; a ratio is the median over rounds of times of the same round.
//!
//! What is emitted is for reading. A network tuned by hand for PyTorch may be faster; `benches/peers` has such.

mod child;
mod report;

pub use report::{Agreement, Comparison, Rival};

use crate::bench::{self, Job, Times};
use crate::exact::{self, Dtype, Given};
use crate::params::{ParamStore, draw};
use crate::rng::{Address, Domain, Purpose};
use crate::spec::Spec;
use crate::tensors::{self, Tensor, Tensors};
use crate::{Error, files, rollout};
use child::Child;
use compiler::back::torch::{self, Signature};
use compiler::form::Prefer;
use compiler::ir::Sizes;
use compiler::model::{Model, Noise, Role};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Rows and steps over which numbers are compared.
const CHECKED: (usize, usize) = (8, 20);

/// A value that meets a bound up to rounding is clipped on one side and not on the other, and its gradient with it.
/// That is rare, so another draw is free of it; a mistake is in all draws.
const DRAWS: u64 = 3;

/// The largest relative error of the norm of a tensor.
const TOLERANCE: f64 = 1e-3;

/// The ways in which PyTorch runs a module.
const WAYS: [&str; 2] = ["eager", "compiled"];

/// Compares a spec with itself in PyTorch. `tell` is told what takes long.
///
/// # Errors
/// If Python or PyTorch is missing, numbers disagree, or the spec cannot run.
pub fn against(
    spec: &Spec,
    job: &Job,
    python: &str,
    tell: &mut dyn FnMut(&str),
) -> Result<Comparison, Error> {
    let model = &spec.model;
    let sizes = Sizes::bind(&model.axes, &job.axes)?;
    let folder = Folder::new()?;
    files::write(&folder.0.join("model.py"), torch::emit(model, &job.axes, &spec.path).as_bytes())?;
    let params = ParamStore::new(model, &sizes, 0, &BTreeMap::new())?;
    tensors::write(&folder.0.join("parameters.safetensors"), &params.state_dict(), None)?;
    let mut child = Child::start(python, &folder.0, job.threads)?;
    let subject = Subject { spec, job, sizes: &sizes, params: &params, folder: &folder.0 };
    let mut ways = vec![];
    for how in WAYS {
        if how == "compiled" {
            tell("torch.compile compiles a step");
        }
        match subject.agreement(&mut child, how) {
            Ok(agreement) if agreement.is_fine() => ways.push((how, agreement)),
            Ok(agreement) => return Err(agreement.error(how)),
            // A compiler may be missing; without it there is still the other way.
            Err(e) if how == "compiled" => tell(&format!("without torch.compile: {}", e.message)),
            Err(e) => return Err(e),
        }
    }
    let (own, rounds) = subject.rounds(&mut child, &ways.iter().map(|w| w.0).collect::<Vec<_>>(), tell)?;
    let rivals = ways
        .into_iter()
        .zip(rounds)
        .map(|((how, agreement), times)| Rival::new(how, agreement, &own, &times));
    let rivals = rivals.collect();
    Ok(Comparison {
        spec: model.name.clone(),
        batch: job.batch,
        steps: job.steps,
        threads: job.threads,
        backend: job.backend.name(),
        torch: child.torch.clone(),
        python: child.python.clone(),
        forward_ms: Times::of(own.iter().map(|t| t[0]).collect()),
        forward_backward_ms: Times::of(own.iter().map(|t| t[1]).collect()),
        rivals,
    })
}

/// Forward, forward and backward, in milliseconds.
type Round = [f64; 2];

struct Subject<'a> {
    spec: &'a Spec,
    job: &'a Job,
    sizes: &'a Sizes,
    params: &'a ParamStore,
    folder: &'a Path,
}

impl Subject<'_> {
    /// Whether outputs and gradients agree, for one of a few draws.
    fn agreement(&self, child: &mut Child, how: &str) -> Result<Agreement, Error> {
        let (rows, steps) = (self.job.batch.min(CHECKED.0), self.job.steps.min(CHECKED.1));
        let mut last = Agreement::default();
        for seed in 0..DRAWS {
            let numbers = Numbers::draw(&self.spec.model, self.sizes, rows, steps, seed);
            let expected = self.expected(&numbers)?;
            let words = torch::signature(&self.spec.model);
            let path = self.folder.join("check.safetensors");
            tensors::write(&path, &numbers.for_torch(&self.spec.model, &words), None)?;
            child.ask(&serde_json::json!({ "do": "check", "how": how, "batch": rows, "steps": steps }))?;
            let (found, _) = tensors::read(&self.folder.join("found.safetensors"))?;
            last = Agreement::of(rows, steps, &found, &expected)?;
            if last.is_fine() {
                break;
            }
        }
        Ok(last)
    }

    /// What this project computes, under the names of the emitted module.
    fn expected(&self, numbers: &Numbers) -> Result<Tensors, Error> {
        let model = &self.spec.model;
        let given = Given {
            params: ("parameters".into(), self.params.export()),
            inputs: ("inputs".into(), numbers.inputs.clone()),
            cotangents: Some(("cotangents".into(), numbers.bars.clone())),
            axes: self.job.axes.clone(),
        };
        let found = exact::run(self.spec, given, self.job.backend, Dtype::F32, Prefer::Dense)?;
        let words = torch::signature(model);
        let mut expected = Tensors::new();
        for (output, word) in model.outputs.iter().zip(&words.outputs) {
            if let Some(t) = found.get(&format!("out.{}", output.name)) {
                expected.insert(format!("out.{word}"), t.clone());
            }
        }
        let count = model.params.len();
        let gradient = |k: usize| {
            let about = &self.params.about[k];
            let zeros = || vec![0.0; about.dims.iter().product()];
            found.get(&format!("grad.{}", about.name)).map_or_else(zeros, Tensor::to_f32)
        };
        let mut gradients: Vec<Vec<f32>> = (0..count).map(gradient).collect();
        self.params.chain(&mut gradients);
        let learned = self.params.about.iter().zip(gradients).filter(|(about, _)| about.learned);
        for (about, gradient) in learned {
            expected.insert(format!("grad.{}", about.key), Tensor::f32(about.dims.clone(), gradient));
        }
        Ok(expected)
    }

    /// Times of every round: this project's, and by way.
    fn rounds(
        &self,
        child: &mut Child,
        ways: &[&str],
        tell: &mut dyn FnMut(&str),
    ) -> Result<(Vec<Round>, Vec<Vec<Round>>), Error> {
        let (mut own, mut others) = (vec![], vec![vec![]; ways.len()]);
        let job = Job { repeat: 1, ..self.job.clone() };
        for round in 0..self.job.repeat {
            tell(&format!("round {} of {}", round + 1, self.job.repeat));
            let report = bench::bench(self.spec, &job)?;
            own.push([report.forward_ms.median, report.forward_backward_ms.median]);
            for (how, times) in ways.iter().zip(&mut others) {
                times.push([self.timed(child, how, "forward")?, self.timed(child, how, "both")?]);
            }
        }
        Ok((own, others))
    }

    fn timed(&self, child: &mut Child, how: &str, pass: &str) -> Result<f64, Error> {
        let answer = child.ask(&serde_json::json!({
            "do": "time", "how": how, "pass": pass, "batch": self.job.batch, "steps": self.job.steps,
            "input_gradients": self.job.input_bars,
        }))?;
        answer["ms"].as_f64().ok_or_else(|| Error::device("the child process gave no time"))
    }
}

/// What both sides see.
struct Numbers {
    /// Inputs `[T, B, …]` and random initial states, as `bpm run` takes them.
    inputs: Tensors,
    /// Cotangents of outputs.
    bars: Tensors,
}

impl Numbers {
    fn draw(model: &Model, sizes: &Sizes, rows: usize, steps: usize, seed: u64) -> Numbers {
        let address = Address { seed, domain: Domain::Eval, episode: 0, row: 0 };
        let uniform = |purpose: Purpose, k: usize, count: usize| -> Vec<f32> {
            let mut stream = address.stream(purpose, k as u32);
            (0..count).map(|_| (2.0 * stream.uniform() - 1.0) as f32).collect()
        };
        let shape = |front: &[usize], s| [front, &sizes.dims(s)].concat();
        let mut inputs = Tensors::new();
        for (k, input) in model.inputs.iter().enumerate() {
            let count = sizes.count(input.shape);
            let numbers = match &input.role {
                Role::Reset => vec![0.0; steps * rows * count],
                Role::Noise(Noise { locked: true, .. }) => {
                    uniform(Purpose::Noise, k, rows * count).repeat(steps)
                }
                _ => uniform(Purpose::Noise, k, steps * rows * count),
            };
            inputs.insert(input.name.clone(), Tensor::f32(shape(&[steps, rows], input.shape), numbers));
        }
        if model.inputs.is_empty() {
            inputs.insert("reset".into(), Tensor::f32(vec![steps, rows], vec![0.0; steps * rows]));
        }
        for (k, state) in model.states.iter().enumerate().filter(|(_, s)| rollout::is_random(&s.init)) {
            let mut stream = address.stream(Purpose::States, k as u32);
            let dims = sizes.dims(state.shape);
            let numbers =
                (0..rows).flat_map(|_| draw(&state.init, &dims, sizes, &mut stream)).map(|x| x as f32);
            let tensor = Tensor::f32(shape(&[rows], state.shape), numbers.collect());
            inputs.insert(format!("init.{}", state.name), tensor);
        }
        let bars = model.outputs.iter().enumerate().map(|(k, o)| {
            let numbers = uniform(Purpose::Action, k, steps * rows * sizes.count(o.shape));
            (o.name.clone(), Tensor::f32(shape(&[steps, rows], o.shape), numbers))
        });
        let bars = bars.collect();
        Numbers { inputs, bars }
    }

    /// The same under the words of the emitted module, where locked noise has no steps.
    fn for_torch(&self, model: &Model, words: &Signature) -> Tensors {
        let mut all = Tensors::new();
        for (input, word) in model.inputs.iter().zip(&words.inputs) {
            let tensor = &self.inputs[&input.name];
            let is_locked = matches!(&input.role, Role::Noise(noise) if noise.locked);
            let tensor = match (is_locked, tensor.shape.split_first()) {
                (true, Some((steps, rest))) => {
                    let numbers = tensor.to_f32();
                    Tensor::f32(rest.to_vec(), numbers[..numbers.len() / steps].to_vec())
                }
                _ => tensor.clone(),
            };
            all.insert(format!("in.{word}"), tensor);
        }
        for (state, word) in model.states.iter().zip(&words.states) {
            if let Some(start) = self.inputs.get(&format!("init.{}", state.name)) {
                all.insert(format!("init.{word}"), start.clone());
            }
        }
        for (output, word) in model.outputs.iter().zip(&words.outputs) {
            all.insert(format!("bar.{word}"), self.bars[&output.name].clone());
        }
        all
    }
}

/// A folder that goes when it is dropped.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Result<Folder, Error> {
        let path = std::env::temp_dir().join(format!("bpm-against-torch-{}", std::process::id()));
        files::make_folder(&path)?;
        Ok(Folder(path))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // What is left behind in a folder for what is temporary does no harm.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
