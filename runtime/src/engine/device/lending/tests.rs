//! Lent arrays on the emulated device against the same batch on the processor: with and without resets, carried states
//! and cotangents of final states, for kernels of steps and of sequences, launched and recorded.

mod watched;

use super::super::tests::{Case as Library, Failing, device, emulated, specs};
use super::*;
use crate::engine::device::{DeviceId, Emulated, Tier};
use crate::engine::{Backend, EngineOptions, Text};
use crate::params::ParamStore;
use crate::rollout::is_random;
use crate::sequence::{self, Single};
use compiler::ir::Sizes;
use compiler::model::Model;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicI64, Ordering};

/// Learned starts of a vector and of a matrix, a constant one, what depends on parameters alone, a range, a fixed
/// parameter, penalties, an input without gradient, one that is reset.
const SPEC: &str = "spec cell {
  axis I = 3, N = 5, A = 2
  in u[I]
  in target s
  learn Wx[N,I], Wo[A,N], wm[N] ~ linear
  learn W[N,N], alpha[N,N] ~ uniform(-0.5, 0.5)
  learn eta in (0, 1) = 0.3
  learn a[N] ~ uniform(-1, 1)
  fixed g = 0.9
  state y[N] = learn
  state z[N] = 0.5
  plastic H[N,N] = 0
  plastic F[N,N] = learn
  gain = exp(a) / sum(exp(a))
  y' = tanh(Wx @ u + g * ((W + alpha * H) @ y) + 0.1 * s + gain * z)
  z' = 0.9 * z + 0.1 * (F @ y')
  modulator m = tanh(wm . y')
  H'[j,i] = clip(H + eta * m * y'[j] * y[i], -1, 1)
  F'[j,i] = 0.9 * F + 0.1 * m * z[j] * y'[i]
  out a_[A] = Wo @ y'
  out b = sum(z')
  penalty 0.3 * mean(y' * y')
}";

const T: usize = 7;
const B: usize = 3;

/// Arrays of a kind that a model has, at most.
const MOST: usize = 64;
const ALL: [bool; MOST] = [true; MOST];

fn model() -> (Arc<Model>, Sizes) {
    let spec = crate::spec::compile("cell.bpm", SPEC.into(), None).unwrap_or_else(|e| panic!("{e:?}"));
    let sizes = Sizes::bind(&spec.model.axes, &BTreeMap::new()).expect("sizes");
    (spec.model, sizes)
}

fn wave(count: usize, tag: usize) -> Vec<f32> {
    (0..count).map(|k| (0.6 * (0.7 * k as f64 + tag as f64).sin()) as f32).collect()
}

fn waves(counts: impl Iterator<Item = usize>, tag: usize) -> Vec<Vec<f32>> {
    counts.enumerate().map(|(k, n)| wave(n, tag + k)).collect()
}

/// An array on the device.
struct Array {
    device: Arc<dyn Device>,
    block: Block,
}

impl Array {
    fn of(device: &Arc<dyn Device>, numbers: &[f32]) -> Array {
        let bytes: Vec<u8> = numbers.iter().flat_map(|x| x.to_ne_bytes()).collect();
        Array { device: Arc::clone(device), block: Block::of(device, &bytes).expect("memory") }
    }

    /// Of numbers that nothing may leave there.
    fn new(device: &Arc<dyn Device>, count: usize) -> Array {
        Array::of(device, &vec![f32::NAN; count])
    }

    fn lent(&self) -> Lent {
        Lent { at: self.block.at(), count: self.block.bytes() / 4 }
    }

    fn numbers(&self) -> Vec<f32> {
        let mut bytes = vec![0; self.block.bytes()];
        // SAFETY: the block is as long as that.
        unsafe { self.device.download(self.block.at(), &mut bytes) }.expect("a download");
        bytes.chunks(4).map(|x| f32::from_ne_bytes([x[0], x[1], x[2], x[3]])).collect()
    }
}

/// What is asked of a case.
#[derive(Clone, Debug, Default)]
struct Question {
    resets: Vec<bool>,
    /// Which states are given.
    carried: Vec<bool>,
    last: bool,
    penalty: f64,
}

fn questions() -> Vec<Question> {
    let rows = [[0, 1, 0], [0, 0, 0], [1, 0, 1], [1, 0, 0], [0, 0, 0], [1, 1, 1], [0, 0, 1]];
    let resets: Vec<bool> = rows.concat().iter().map(|r| *r != 0).collect();
    let all = |resets: &Vec<bool>| {
        let of = |carried: [bool; 4], last, penalty| {
            let (resets, carried) = (resets.clone(), carried.to_vec());
            Question { resets, carried, last, penalty }
        };
        [of([false; 4], false, 0.0), of([true; 4], true, 1.5), of([true, false, false, true], true, 0.0)]
    };
    [all(&vec![]), all(&resets)].concat()
}

/// All that comes out, in one order: outputs, states, penalty, gradients of parameters, inputs and states.
type Found = Vec<Vec<f32>>;

/// Numbers of a case.
struct Numbers {
    params: Vec<Vec<f32>>,
    inputs: Vec<Vec<f32>>,
    states: Vec<Vec<f32>>,
    outputs: Vec<Vec<f32>>,
    ends: Vec<Vec<f32>>,
}

fn numbers(model: &Model, sizes: &Sizes) -> Numbers {
    let store = ParamStore::new(model, sizes, 4, &BTreeMap::new()).expect("parameters");
    let mut params = store.values();
    for (k, p) in model.params.iter().enumerate().filter(|(_, p)| p.name.ends_with(".init")) {
        params[k] = wave(sizes.count(p.shape), 7 + k);
    }
    let states = |tag| waves(model.states.iter().map(|s| B * sizes.count(s.shape)), tag);
    Numbers {
        params,
        inputs: waves(model.inputs.iter().map(|i| T * B * sizes.count(i.shape)), 0),
        states: states(20),
        outputs: waves(model.outputs.iter().map(|o| T * B * sizes.count(o.shape)), 10),
        ends: states(30),
    }
}

fn some<'a>(all: &'a [Vec<f32>], wanted: &[bool]) -> Vec<Option<&'a [f32]>> {
    all.iter().zip(wanted).map(|(x, wanted)| wanted.then_some(x.as_slice())).collect()
}

fn on_the_processor(question: &Question) -> Found {
    on_the_processor_of(model(), question)
}

fn on_the_processor_of((model, sizes): (Arc<Model>, Sizes), question: &Question) -> Found {
    let n = numbers(&model, &sizes);
    let engine = Engine::new(model, sizes, Backend::fastest(), &EngineOptions::default()).expect("an engine");
    let params: Vec<&[f32]> = n.params.iter().map(Vec::as_slice).collect();
    let machine = Arc::new(Single::new(Arc::new(engine), &params).expect("bound"));
    let given = sequence::Given {
        steps: T,
        rows: B,
        inputs: some(&n.inputs, &ALL),
        states: some(&n.states, &question.carried),
        resets: question.resets.clone(),
    };
    let (results, mut kept) = sequence::forward(machine, &given, 1);
    let bars = sequence::Cotangents {
        outputs: some(&n.outputs, &ALL),
        states: some(&n.ends, &[question.last; MOST]),
        penalty: question.penalty,
    };
    let gradients = kept.backward(&bars, 1);
    let penalty = vec![vec![results.penalty as f32]];
    [results.outputs, results.states, penalty, gradients.params, gradients.inputs, gradients.states].concat()
}

fn engine(device: &Arc<dyn Device>, (model, sizes): (Arc<Model>, Sizes), tier: Tier) -> Arc<Engine> {
    let options = EngineOptions { tier, ..EngineOptions::default() };
    let backend = Backend::Device(DeviceId::Emulated);
    Arc::new(
        Engine::on(Arc::clone(device), model, sizes, backend, &options, Text::default()).expect("an engine"),
    )
}

/// A model on a device with the numbers of the case there.
struct Case {
    device: Arc<dyn Device>,
    lending: Arc<Lending>,
    params: Vec<Array>,
    inputs: Vec<Array>,
    states: Vec<Array>,
    outputs: Vec<Array>,
    ends: Vec<Array>,
}

/// A batch that has run, and where its results are.
struct Ran {
    penalty: f64,
    batch: Batch,
    results: Vec<Array>,
}

fn lent(all: &[Array]) -> Vec<Lent> {
    all.iter().map(Array::lent).collect()
}

fn lent_where(all: &[Array], wanted: &[bool]) -> Vec<Option<Lent>> {
    all.iter().zip(wanted).map(|(x, wanted)| wanted.then(|| x.lent())).collect()
}

impl Case {
    fn new(device: &Arc<dyn Device>, tier: Tier) -> Result<Case, EngineError> {
        Case::of(device, model(), tier)
    }

    fn of(device: &Arc<dyn Device>, of: (Arc<Model>, Sizes), tier: Tier) -> Result<Case, EngineError> {
        let lending = Lending::new(engine(device, of, tier))?;
        let n = numbers(lending.engine.model(), lending.engine.sizes());
        let place = |all: &[Vec<f32>]| all.iter().map(|x| Array::of(device, x)).collect();
        Ok(Case {
            params: place(&n.params),
            inputs: place(&n.inputs),
            states: place(&n.states),
            outputs: place(&n.outputs),
            ends: place(&n.ends),
            device: Arc::clone(device),
            lending,
        })
    }

    fn places(&self, like: &[Array]) -> Vec<Array> {
        like.iter().map(|x| Array::new(&self.device, x.lent().count)).collect()
    }

    fn bind(&self) -> Result<Arc<Held>, EngineError> {
        // SAFETY: the arrays live as long as the case.
        unsafe { self.lending.bind(&lent(&self.params)) }
    }

    fn forward(&self, held: &Arc<Held>, question: &Question, mode: Mode) -> Result<Ran, EngineError> {
        let (outputs, states) = (self.places(&self.outputs), self.places(&self.states));
        let given = Given {
            steps: T,
            rows: B,
            inputs: lent_where(&self.inputs, &ALL),
            states: lent_where(&self.states, &question.carried),
            resets: question.resets.clone(),
        };
        let to = Results { outputs: lent(&outputs), states: lent(&states) };
        // SAFETY: the arrays live as long as the call.
        let (penalty, batch) = unsafe { held.forward(&given, &to, mode) }?;
        Ok(Ran { penalty, batch, results: outputs.into_iter().chain(states).collect() })
    }

    fn backward(&self, batch: &mut Batch, question: &Question) -> Result<Found, EngineError> {
        let bars = Cotangents {
            outputs: lent_where(&self.outputs, &ALL),
            states: lent_where(&self.ends, &[question.last; MOST]),
            penalty: question.penalty,
        };
        let (params, inputs) = (self.places(&self.params), self.places(&self.inputs));
        let states = self.places(&self.states);
        let to = Gradients {
            params: lent_where(&params, &ALL),
            inputs: lent_where(&inputs, &ALL),
            states: lent_where(&states, &ALL),
        };
        // SAFETY: the arrays live as long as the call.
        unsafe { batch.backward(&bars, &to) }?;
        Ok([params, inputs, states].iter().flatten().map(Array::numbers).collect())
    }

    fn ask(&self, held: &Arc<Held>, question: &Question) -> Result<Found, EngineError> {
        let Ran { penalty, mut batch, results } = self.forward(held, question, Mode::Train)?;
        let mut found: Found = results.iter().map(Array::numbers).collect();
        found.push(vec![penalty as f32]);
        // Other cotangents leave nothing behind.
        let other = Question { last: true, penalty: 3.0, ..question.clone() };
        self.backward(&mut batch, &other)?;
        found.extend(self.backward(&mut batch, question)?);
        Ok(found)
    }
}

/// Relative to the norm of an array, or to `floor` if that is larger: where parts cancel, their error remains.
fn close(what: &str, found: &Found, expected: &Found, (tolerance, floor): (f64, f64)) {
    assert_eq!(found.len(), expected.len());
    for (k, (found, expected)) in found.iter().zip(expected).enumerate() {
        let norm = expected.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt();
        let parts = found.iter().zip(expected).map(|(x, y)| (f64::from(*x) - f64::from(*y)).powi(2));
        let error = parts.sum::<f64>().sqrt();
        assert!(
            found.len() == expected.len() && error <= tolerance * norm.max(floor),
            "{what}, array {k}: {error} of {norm}"
        );
    }
}

#[test]
fn lent_arrays_give_what_the_processor_gives() {
    let Some(device) = device() else { return };
    for tier in [Tier::Steps, Tier::Sequences] {
        let case = Case::new(&device, tier).expect("a model on the device");
        let held = case.bind().expect("parameters");
        for question in questions() {
            let expected = on_the_processor(&question);
            let what = format!("{tier:?}, {question:?}");
            let found = case.ask(&held, &question).expect("a batch");
            close(&what, &found, &expected, (2e-5, 1e-6));
            // The second time a sequence without resets is recorded, the third time replayed.
            for _ in 0..2 {
                assert_eq!(case.ask(&held, &question).expect("a batch"), found, "{what}");
            }
            let alone = case.forward(&held, &question, Mode::Forward).expect("a batch");
            let alone: Found = alone.results.iter().map(Array::numbers).collect();
            assert_eq!(alone, found[..alone.len()], "{what}: without a backward pass");
        }
        let gradients = &on_the_processor(&questions()[0])[case.outputs.len() + case.states.len() + 1..];
        let learned = case.lending.engine.model().params.iter().map(|p| p.learned);
        for (gradient, learned) in gradients.iter().zip(learned) {
            assert_eq!(gradient.iter().any(|x| x.abs() > 1e-4), learned, "a gradient says something");
        }
    }
}

/// Every spec: with states where they belong, with all of them given, and with resets where no state starts at random.
#[test]
fn every_spec_of_the_library_agrees() {
    let Some(device) = device() else { return };
    let mut count = 0;
    for path in specs() {
        for case in Library::of(&path, None) {
            let of = || (Arc::clone(&case.model), case.sizes.clone());
            let random: Vec<bool> = case.model.states.iter().map(|s| is_random(&s.init)).collect();
            let resets = if random.contains(&true) { vec![] } else { questions().swap_remove(3).resets };
            let asked = [
                Question { carried: random.clone(), resets, last: true, penalty: 1.0 },
                Question { carried: vec![true; random.len()], last: true, ..Question::default() },
            ];
            let lent = Case::of(&device, of(), Tier::Auto).expect("a model on the device");
            let held = lent.bind().expect("parameters");
            for question in &asked {
                let found = lent.ask(&held, question).expect("a batch");
                let what = format!("{}, {question:?}", path.display());
                close(&what, &found, &on_the_processor_of(of(), question), (2e-4, 0.1));
            }
            count += 1;
        }
    }
    assert!(count > 20, "{count} models");
}

/// Parameters are read when they are bound, and a tape keeps its own whatever is bound after it.
#[test]
fn a_tape_keeps_its_parameters() {
    let Some(device) = device() else { return };
    let mut case = Case::new(&device, Tier::Steps).expect("a model on the device");
    let question = questions().swap_remove(1);
    let expected = case.ask(&case.bind().expect("parameters"), &question).expect("a batch");
    let old = case.bind().expect("parameters");
    let mut ran = case.forward(&old, &question, Mode::Train).expect("a batch");
    drop(old);
    case.params = case.params.iter().map(|p| Array::of(&device, &vec![0.1; p.lent().count])).collect();
    let other = case.ask(&case.bind().expect("parameters"), &question).expect("a batch");
    assert_ne!(other, expected);
    let gradients = case.backward(&mut ran.batch, &question).expect("a backward pass");
    assert_eq!(gradients, expected[expected.len() - gradients.len()..]);
}

#[test]
fn wrong_lengths_are_refused_before_anything_runs() {
    let Some(device) = device() else { return };
    let mut case = Case::new(&device, Tier::Steps).expect("a model on the device");
    let held = case.bind().expect("parameters");
    let wrong = Array::new(&device, 4);
    let right = std::mem::replace(&mut case.inputs[0], wrong);
    let run = || case.forward(&held, &questions()[0], Mode::Train).map(|_| ());
    let refused = std::panic::catch_unwind(std::panic::AssertUnwindSafe(run));
    assert!(refused.is_err(), "an input of 4 numbers");
    case.inputs[0] = right;
    case.params.pop();
    assert!(matches!(case.bind().map(|_| ()), Err(EngineError::Parameter { .. })));
    case.forward(&held, &questions()[0], Mode::Train).expect("life goes on");
}

/// Too little memory is said, and is no failure of the device.
#[test]
fn memory_that_is_not_there_is_forgiven() {
    let Some(_) = emulated() else { return };
    let device: Arc<dyn Device> = Arc::new(Emulated::with_memory(2 << 20).expect("a device"));
    let case = Case::new(&device, Tier::Steps).expect("a model on the device");
    let held = case.bind().expect("parameters");
    let question = questions().swap_remove(0);
    let expected = case.ask(&held, &question).expect("a batch");
    let free = device.memory().expect("memory").free as usize;
    let rest = Block::new(&device, free - 4096).expect("nearly all of it");
    // Another shape: what the first batch has left is given back, and does not suffice.
    let longer = questions().swap_remove(5);
    match case.ask(&held, &longer) {
        Err(EngineError::Device(fault)) => assert_eq!(fault.kind, FaultKind::OutOfMemory, "{fault}"),
        other => panic!("{:?}", other.map(|_| ())),
    }
    drop(rest);
    assert_eq!(case.ask(&held, &question).expect("a batch"), expected);
    // What a model keeps, it gives back to others.
    let free = device.memory().expect("memory").free as usize;
    let more = Block::new(&device, free + 4096).expect("all of it, and what was kept");
    assert!(free < more.bytes());
}

/// A device that is lost at any moment is an error of the call, and nothing else.
#[test]
fn a_device_that_fails_is_an_error() {
    let Some(_) = emulated() else { return };
    let failing =
        Arc::new(Failing { inner: Emulated::new().expect("a device"), left: AtomicI64::new(i64::MAX) });
    let device: Arc<dyn Device> = Arc::clone(&failing) as Arc<dyn Device>;
    let question = questions().swap_remove(4);
    for left in [0, 1, 5, 17, 60, 150, 300] {
        failing.left.store(i64::MAX, Ordering::Relaxed);
        let case = Case::new(&device, Tier::Steps).expect("a model on the device");
        let held = case.bind().expect("parameters");
        let Ran { mut batch, .. } = case.forward(&held, &question, Mode::Train).expect("a batch");
        failing.left.store(left, Ordering::Relaxed);
        let bars = Cotangents { outputs: vec![None; 2], states: vec![None; 4], penalty: 1.0 };
        let to =
            Gradients { params: vec![None; case.params.len()], inputs: vec![None; 2], states: vec![None; 4] };
        // SAFETY: nothing is lent.
        let done = unsafe { batch.backward(&bars, &to) };
        if failing.left.load(Ordering::Relaxed) < 0 {
            assert!(matches!(done, Err(EngineError::Device(_))), "{left}: {done:?}");
        }
        assert!(left != 0 || done.is_err());
    }
}
