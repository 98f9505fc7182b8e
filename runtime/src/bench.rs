//! `bpm bench`: how fast a spec runs here, and in how much memory.
//!
//! Rows get random inputs and output cotangents; parameters start as a training run would. Forward
//! is the whole sequence of every row, step by step, as an environment drives it; backward follows
//! each row at once. Times are wall-clock, the median over repetitions after one warm-up.

use crate::Error;
use crate::engine::device::Tier;
use crate::engine::{Backend, Bound, Engine, EngineOptions, KnownRow, Mode, RowState, Sums, Tape, Text};
use crate::memory::{Flags, Need, available};
use crate::params::{ParamStore, draw};
use crate::rng::{Address, Domain, Purpose};
use crate::spec::Spec;
use crate::{parallel, rollout, setup};
use ::torch::Place;
use compiler::form::{Form, Prefer};
use compiler::ir::{InputId, OutputId, Shape, Sizes};
use compiler::loops::plan::{Tapes, Use};
use compiler::model::{ConstExpr, Init, Model, Role};
use serde::Serialize;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

/// What to measure.
#[derive(Clone, Debug)]
pub struct Job {
    /// Sizes of axes.
    pub axes: BTreeMap<String, usize>,
    /// Rows.
    pub batch: usize,
    /// Steps.
    pub steps: usize,
    /// Repetitions.
    pub repeat: usize,
    /// Threads.
    pub threads: usize,
    /// Implementation.
    pub backend: Backend,
    /// Whether the backward pass gives cotangents of inputs.
    pub input_bars: bool,
    /// How plastic matrices are kept.
    pub prefer: Prefer,
    /// Which kernels run on a device.
    pub tier: Tier,
}

/// Milliseconds over the repetitions.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Times {
    /// The middle one.
    pub median: f64,
    /// The shortest.
    pub min: f64,
    /// The longest.
    pub max: f64,
}

/// What was measured.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// The spec.
    pub spec: String,
    /// Rows.
    pub batch: usize,
    /// Steps.
    pub steps: usize,
    /// Threads.
    pub threads: usize,
    /// How plastic matrices were kept.
    pub form: Form,
    /// The name of the back end that ran.
    pub backend: &'static str,
    /// The name of the device, if it is none of the processor's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub device: Option<String>,
    /// Which kernels ran on the device, forward and backward: 1 for those of single steps, 2 for those of whole
    /// sequences.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tiers: Option<[u8; 2]>,
    /// Why, in words, with estimates.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tier_why: Option<String>,
    /// Where the way back has the matrix states from, in words.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub states: Option<String>,
    /// Compiling all kernels, in milliseconds.
    pub compile_ms: f64,
    /// Bytes of machine code, on a device of source.
    pub code_bytes: usize,
    /// Forward, in milliseconds.
    pub forward_ms: Times,
    /// Forward and backward, in milliseconds.
    pub forward_backward_ms: Times,
    /// Elements of all matrix states, times steps, times rows, per second of forward and backward.
    pub synapse_steps_per_second: f64,
    /// Growth of the process's peak memory, in MiB; zero where the system does not tell.
    pub peak_mib: f64,
    /// What training takes by plan, in MiB: without the compiler and this command's inputs, with
    /// an optimiser. On a device: what is taken of its memory.
    pub planned_mib: f64,
}

/// Measures a model.
///
/// # Errors
/// If axes are missing, the engine refuses the model, or memory does not suffice.
pub fn bench(spec: &Spec, job: &Job) -> Result<Report, Error> {
    let model = Arc::clone(&spec.model);
    let plain = Arc::clone(&model);
    let (kept, form) =
        compiler::form::choose(&model, &job.axes, job.steps, setup::form(job.backend, job.prefer)?)?;
    let model = kept.map_or(model, Arc::new);
    let sizes = Sizes::bind(&model.axes, &job.axes)?;
    let before = peak_bytes();
    let started = Instant::now();
    let options = EngineOptions {
        input_bars: job.input_bars,
        batch: job.batch,
        steps: job.steps,
        tier: job.tier,
        ..EngineOptions::default()
    };
    let text = Text { file: &spec.path, source: &spec.source };
    let engine = Engine::of_text(Arc::clone(&model), sizes.clone(), job.backend, &options, text)?;
    let compile_ms = started.elapsed().as_secs_f64() * 1e3;
    need(&engine, job).check(available())?;
    let params = ParamStore::new(&model, &sizes, 0, &BTreeMap::new())?;
    let bound = engine.bind(&params.values())?;
    let data = Data::draw(&model, &sizes, job);
    let workers = || (0..job.threads).map(|_| None).collect::<Vec<Option<Tape>>>();
    let mut tapes = workers();
    let mut forward: Vec<f64> =
        (0..=job.repeat).map(|_| time(|| run(&bound, &data, job, &mut tapes, None))).collect();
    tapes = workers();
    let both = |_| {
        time(|| {
            let sums = engine.sums();
            run(&bound, &data, job, &mut tapes, Some(&sums));
            std::hint::black_box(sums.finish(&bound));
        })
    };
    let mut both: Vec<f64> = (0..=job.repeat).map(both).collect();
    engine.check()?;
    // The first of each warms up.
    forward.remove(0);
    both.remove(0);
    let synapses: usize = plain
        .states
        .iter()
        .filter(|s| matches!(s.shape, Shape::Matrix { .. }))
        .map(|s| sizes.count(s.shape))
        .sum();
    let forward_backward_ms = Times::of(both);
    let per_pass = (synapses * job.batch * job.steps) as f64;
    Ok(Report {
        spec: model.name.clone(),
        batch: job.batch,
        steps: job.steps,
        // libtorch has one.
        threads: if let Backend::Torch(_) = job.backend { 1 } else { job.threads },
        form,
        backend: engine.backend().name(),
        device: place(&engine),
        tiers: engine.route().map(|r| r.tiers()),
        tier_why: engine.route().map(|r| r.why()),
        states: engine.states(job.batch, job.steps),
        compile_ms,
        code_bytes: engine.code_bytes(),
        forward_ms: Times::of(forward),
        forward_backward_ms,
        synapse_steps_per_second: per_pass / (forward_backward_ms.median * 1e-3),
        planned_mib: need(&engine, job).planned() as f64 / f64::from(1 << 20),
        peak_mib: peak_bytes().saturating_sub(before) as f64 / f64::from(1 << 20),
    })
}

/// The device, if it is none of the processor's.
fn place(engine: &Engine) -> Option<String> {
    match engine.backend() {
        Backend::Torch(Place::Cuda(number)) => Some(format!("cuda:{number}")),
        _ => engine.device().map(|d| d.about().name.clone()),
    }
}

fn need<'a>(engine: &'a Engine, job: &Job) -> Need<'a> {
    let usage = Use {
        batch: job.batch,
        steps: job.steps,
        threads: job.threads,
        tapes: Tapes::PerThread,
        checkpoint_every: None,
        memory: None,
    };
    let flags = Flags { batch: "--batch ", steps: "--steps ", threads: "--threads " };
    Need { engine, usage, mode: Mode::Train, data: Data::bytes(engine, job), beside: None, flags }
}

impl Times {
    /// The middle and the ends of some numbers.
    pub fn of(mut ms: Vec<f64>) -> Times {
        ms.sort_by(f64::total_cmp);
        let at = |k: usize| ms.get(k).copied().unwrap_or(f64::NAN);
        Times { median: at(ms.len() / 2), min: at(0), max: at(ms.len().saturating_sub(1)) }
    }
}

impl Report {
    /// Which kernels ran on a device, and why.
    fn tier_line(&self) -> String {
        let both = self.tiers.zip(self.tier_why.as_ref());
        let states = self.states.as_ref().map_or(String::new(), |words| format!("; {words}"));
        let words = |(tiers, why): ([u8; 2], &String)| match tiers {
            [f, b] if f == b => format!("  tier {f}: {why}{states}\n"),
            [f, b] => format!("  tier {f},{b}: {why}{states}\n"),
        };
        both.map_or(String::new(), words)
    }

    /// For people.
    pub fn text(&self) -> String {
        let line = |name: &str, t: Times| {
            format!("{name:<18} {:>10.2} ms   (min {:.2}, max {:.2})\n", t.median, t.min, t.max)
        };
        let place = match &self.device {
            Some(name) => name.clone(),
            None => format!("{} thread{}", self.threads, if self.threads == 1 { "" } else { "s" }),
        };
        format!("{}: batch {}, {} steps, {} on {place}\n", self.spec, self.batch, self.steps, self.backend)
            + &self.tier_line()
            + &self.form.reasons().iter().map(|r| format!("  {r}\n")).collect::<String>()
            + &format!(
                "{:<18} {:>10.2} ms   ({} bytes of code)\n",
                "compile", self.compile_ms, self.code_bytes
            )
            + &line("forward", self.forward_ms)
            + &line("forward+backward", self.forward_backward_ms)
            + &format!(
                "{:<18} {:>10.1} million synapse-steps/s\n",
                "throughput",
                self.synapse_steps_per_second / 1e6
            )
            + &format!("{:<18} {:>10.1} MiB\n", "peak memory", self.peak_mib)
            + &format!(
                "{:<18} {:>10.1} MiB   {}, as planned\n",
                "",
                self.planned_mib,
                match self.device {
                    Some(_) => "on the device",
                    None => "training",
                }
            )
    }
}

/// Numbers for every row.
struct Data {
    /// By row, step and input.
    inputs: Vec<Vec<Vec<Vec<f32>>>>,
    /// By step and output; the same for all rows.
    bars: Vec<Vec<Vec<f32>>>,
    /// By row: where states start, if some start at random.
    states: Vec<Option<Vec<Vec<f32>>>>,
}

impl Data {
    /// Bytes of all inputs, with what it takes to hold them one by one.
    fn bytes(engine: &Engine, job: &Job) -> u64 {
        let tensor = |shape: Shape| 4 * engine.sizes().count(shape) as u64 + 40;
        let inputs: u64 = engine.model().inputs.iter().map(|i| tensor(i.shape)).sum();
        let moments = (job.batch as u64).saturating_mul(job.steps as u64);
        moments.saturating_mul(inputs + 40)
    }

    fn draw(model: &Model, sizes: &Sizes, job: &Job) -> Data {
        let numbers = |row: usize, step: usize, purpose: Purpose, shape: Shape| -> Vec<f32> {
            let address = Address { seed: 0, domain: Domain::Eval, episode: 0, row: row as u32 };
            let mut stream = address.stream(purpose, step as u32);
            (0..sizes.count(shape)).map(|_| (2.0 * stream.uniform() - 1.0) as f32).collect()
        };
        let input = |row: usize, t: usize, i: &compiler::model::Input| match i.role {
            Role::Reset => vec![0.0; sizes.count(i.shape)],
            _ => numbers(row, t, Purpose::Noise, i.shape),
        };
        let row_inputs = |row: usize| {
            (0..job.steps).map(|t| model.inputs.iter().map(|i| input(row, t, i)).collect()).collect()
        };
        let bars = |t: usize| model.outputs.iter().map(|o| numbers(0, t, Purpose::Action, o.shape)).collect();
        Data {
            inputs: (0..job.batch).map(row_inputs).collect(),
            bars: (0..job.steps).map(bars).collect(),
            states: (0..job.batch).map(|row| random_states(model, sizes, row)).collect(),
        }
    }
}

fn random_states(model: &Model, sizes: &Sizes, row: usize) -> Option<Vec<Vec<f32>>> {
    if !model.states.iter().any(|s| rollout::is_random(&s.init)) {
        return None;
    }
    let address = Address { seed: 0, domain: Domain::Eval, episode: 0, row: row as u32 };
    let zero = Init::Constant(ConstExpr::Number(0.0));
    let state = |(k, s): (usize, &compiler::model::State)| {
        let init = if rollout::is_random(&s.init) { &s.init } else { &zero };
        let mut stream = address.stream(Purpose::States, k as u32);
        let numbers = draw(init, &sizes.dims(s.shape), sizes, &mut stream);
        numbers.into_iter().map(|x| x as f32).collect()
    };
    Some(model.states.iter().enumerate().map(state).collect())
}

/// All rows, forward and perhaps backward.
fn run(bound: &Bound<'_>, data: &Data, job: &Job, workers: &mut [Option<Tape>], sums: Option<&Sums<'_>>) {
    let engine = bound.engine();
    let mode = if sums.is_some() { Mode::Train } else { Mode::Forward };
    if engine.is_side_by_side() {
        let tape = workers[0].get_or_insert_with(|| engine.team_tape(job.steps, mode, job.batch));
        return run_team(bound, data, job, tape, sums);
    }
    let chunks = parallel::chunks(job.batch).into_iter().enumerate().collect();
    parallel::run(workers, chunks, |tape, (number, rows)| {
        let tape = tape.get_or_insert_with(|| engine.tape(job.steps, mode));
        let mut grads = sums.map(Sums::zeros);
        for row in rows {
            let states = data.states[row].clone().map(|states| RowState { states });
            let inputs = &data.inputs[row];
            let mut write =
                |t: usize, input: InputId, x: &mut [f32]| x.copy_from_slice(&inputs[t][input.index()]);
            let Some(grads) = &mut grads else {
                bound.begin(tape, states.as_ref());
                bound.forward(tape, job.steps, &mut write);
                continue;
            };
            let row = KnownRow {
                states: states.as_ref(),
                steps: job.steps,
                inputs: &mut write,
                cotangents: &mut |t, output, _, bar| bar.copy_from_slice(&data.bars[t][output.index()]),
                penalty_bar: 0.0,
            };
            bound.train_step(tape, grads, row);
        }
        if let (Some(sums), Some(grads)) = (sums, grads) {
            sums.add(number, grads);
        }
    });
}

/// All rows at once.
fn run_team(bound: &Bound<'_>, data: &Data, job: &Job, tape: &mut Tape, sums: Option<&Sums<'_>>) {
    let states: Vec<Option<RowState>> =
        data.states.iter().map(|s| s.clone().map(|states| RowState { states })).collect();
    bound.begin_team(tape, &states.iter().map(Option::as_ref).collect::<Vec<_>>());
    bound.forward_team(tape, job.steps, &mut |row, t, input, x| {
        x.copy_from_slice(&data.inputs[row][t][input.index()]);
    });
    let Some(sums) = sums else { return };
    let mut grads = sums.zeros();
    for row in 0..job.batch {
        bound.select(tape, row);
        for (t, bars) in data.bars.iter().enumerate() {
            for (k, bar) in bars.iter().enumerate() {
                bound.output_bar_mut(tape, t, OutputId(k as u32)).copy_from_slice(bar);
            }
        }
    }
    bound.backward(tape, &mut grads, 0.0, None);
    sums.add(0, grads);
}

fn time(work: impl FnOnce()) -> f64 {
    let started = Instant::now();
    work();
    started.elapsed().as_secs_f64() * 1e3
}

/// The peak resident memory of this process, where the system tells.
fn peak_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:")).unwrap_or_default();
    line.split_whitespace().next().and_then(|n| n.parse::<u64>().ok()).unwrap_or(0) * 1024
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The gradients of the pass that is timed.
    fn gradients(threads: usize, batch: usize, backend: Backend) -> Vec<Vec<f32>> {
        let text = include_str!("../../specs/backpropamine/retroactive.bpm");
        let model = Arc::new(compiler::check::check(text).models.into_iter().next().expect("a model"));
        let axes = BTreeMap::from([("I", 3), ("N", 9), ("A", 2)].map(|(name, n)| (name.to_owned(), n)));
        let job = Job {
            axes,
            batch,
            steps: 12,
            repeat: 1,
            threads,
            backend,
            input_bars: false,
            prefer: Prefer::Dense,
            tier: Tier::Auto,
        };
        let sizes = Sizes::bind(&model.axes, &job.axes).expect("sizes");
        let params = ParamStore::new(&model, &sizes, 0, &BTreeMap::new()).expect("parameters");
        let options = EngineOptions { input_bars: false, ..EngineOptions::default() };
        let engine = Engine::new(Arc::clone(&model), sizes.clone(), backend, &options).expect("an engine");
        let bound = engine.bind(&params.values()).expect("bound");
        let data = Data::draw(&model, &sizes, &job);
        let mut workers: Vec<Option<Tape>> = (0..threads).map(|_| None).collect();
        let sums = engine.sums();
        run(&bound, &data, &job, &mut workers, Some(&sums));
        let used = workers.iter().filter(|tape| tape.is_some()).count();
        assert!((1..=threads.min(batch)).contains(&used), "{used} tapes");
        sums.finish(&bound)
    }

    #[test]
    fn gradients_do_not_depend_on_threads() {
        for (backend, batch) in [(Backend::CRANELIFT, 1), (Backend::CRANELIFT, 30), (Backend::Interp, 5)] {
            let one = gradients(1, batch, backend);
            assert!(one.iter().flatten().any(|g| *g != 0.0), "there is a gradient");
            for threads in [2, 3, 8] {
                assert_eq!(one, gradients(threads, batch, backend), "{backend:?} {batch} {threads}");
            }
        }
    }
}
