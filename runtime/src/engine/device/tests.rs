//! The host's side on the emulated device: every spec of the library against machine code, bit for bit, and
//! against the interpreter; and what a device does when it fails. Kernels of whole sequences: `whole`; states that are
//! kept of every step: `kept`.

mod kept;
mod whole;

use super::cache::{self, Origin};
use super::*;
use crate::engine::{Backend, Bound, Engine, EngineOptions, Grads, Mode, RowState, Tape, Text, Wanted};
use crate::params::{ParamStore, draw};
use crate::rng::{Address as Numbers, Domain, Purpose};
use crate::rollout::is_random;
use compiler::ir::{InputId, OutputId, Shape, Sizes};
use compiler::model::{Model, Role};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Rows of a batch.
const ROWS: usize = 3;

/// The emulated device, if there is a C++ compiler; else it is said that nothing was tested.
pub(super) fn emulated() -> Option<Arc<Emulated>> {
    match Emulated::new() {
        Ok(device) => Some(Arc::new(device)),
        Err(fault) => {
            use std::io::Write;
            let _ = writeln!(std::io::stderr(), "NOT RUN: the emulated device: {fault}");
            assert!(std::env::var_os("BPM_CUDA").is_none(), "BPM_CUDA wants a C++ compiler");
            None
        }
    }
}

/// Whether there is the emulated device; else the same is said.
pub(crate) fn has_device() -> bool {
    emulated().is_some()
}

/// Whether the tests of results run on a GPU: where `BPM_TEST_DEVICE` is `cuda`.
fn on_a_gpu() -> bool {
    std::env::var_os("BPM_TEST_DEVICE").is_some_and(|d| d == "cuda")
}

/// The device under test.
pub(super) fn device() -> Option<Arc<dyn Device>> {
    if on_a_gpu() {
        return Some(open(DeviceId::Cuda(0)).expect("BPM_TEST_DEVICE wants a CUDA device"));
    }
    emulated().map(|device| device as Arc<dyn Device>)
}

/// The model library: that of the repository, wherever the tests were built.
fn library() -> PathBuf {
    let here = std::env::var_os("CARGO_MANIFEST_DIR").map(PathBuf::from);
    here.unwrap_or_else(|| env!("CARGO_MANIFEST_DIR").into()).join("../specs")
}

/// A model in a form, with its text and sizes.
pub(super) struct Case {
    text: String,
    pub(super) model: Arc<Model>,
    pub(super) sizes: Sizes,
}

impl Case {
    pub(super) fn of(path: &Path, events: Option<usize>) -> Vec<Case> {
        Case::sized(path, events, 4)
    }

    /// With axes of about this size.
    fn sized(path: &Path, events: Option<usize>, n: usize) -> Vec<Case> {
        let text = std::fs::read_to_string(path).expect("a spec");
        let models = compiler::check::check(&text).models;
        let one = |model: Model| {
            let named = model.axes.named.iter().enumerate();
            let bound: BTreeMap<String, usize> = named.map(|(k, a)| (a.name.clone(), n + k % 3)).collect();
            let model = Arc::new(model);
            let model = match events {
                None => model,
                Some(steps) => {
                    let prefer = compiler::form::Prefer::Events;
                    let (kept, _) = compiler::form::choose(&model, &bound, steps, prefer).expect("a form");
                    Arc::new(kept?)
                }
            };
            let sizes = Sizes::bind(&model.axes, &bound).expect("sizes");
            Some(Case { text: text.clone(), model, sizes })
        };
        models.into_iter().filter_map(one).collect()
    }

    pub(super) fn spec(name: &str) -> Case {
        let path = library().join(name);
        Case::of(&path, None).swap_remove(0)
    }

    fn engine(&self, backend: Backend, options: &EngineOptions) -> Engine {
        let text = Text { file: "spec.bpm", source: &self.text };
        let (model, sizes) = (Arc::clone(&self.model), self.sizes.clone());
        Engine::of_text(model, sizes, backend, options, text).expect("an engine")
    }

    pub(super) fn on(&self, device: Arc<dyn Device>, options: &EngineOptions) -> Engine {
        let (model, sizes) = (Arc::clone(&self.model), self.sizes.clone());
        let text = Text { file: "spec.bpm", source: &self.text };
        let backend = Backend::Device(DeviceId::Emulated);
        Engine::on(device, model, sizes, backend, options, text).expect("an engine")
    }

    fn params(&self) -> Vec<Vec<f32>> {
        ParamStore::new(&self.model, &self.sizes, 3, &BTreeMap::new()).expect("parameters").values()
    }

    fn numbers(&self, purpose: Purpose, row: usize, k: usize, shape: Shape) -> Vec<f32> {
        let address = Numbers { seed: 5, domain: Domain::Eval, episode: 0, row: row as u32 };
        let mut stream = address.stream(purpose, k as u32);
        (0..self.sizes.count(shape)).map(|_| (2.0 * stream.uniform() - 1.0) as f32).collect()
    }

    fn input(&self, row: usize, t: usize, input: InputId) -> Vec<f32> {
        let about = &self.model.inputs[input.index()];
        match about.role {
            Role::Reset => vec![0.0; self.sizes.count(about.shape)],
            _ => self.numbers(Purpose::Noise, row, 16 * t + input.index(), about.shape),
        }
    }

    /// Where states start; by row.
    fn states(&self, row: usize, own: bool) -> RowState {
        let state = |(k, s): (usize, &compiler::model::State)| {
            if s.name.starts_with("log.") || self.model.events.is_some() {
                return vec![];
            }
            if is_random(&s.init) || !own {
                let address = Numbers { seed: 6, domain: Domain::Eval, episode: 0, row: row as u32 };
                let mut stream = address.stream(Purpose::States, k as u32);
                if is_random(&s.init) {
                    let dims = self.sizes.dims(s.shape);
                    let drawn = draw(&s.init, &dims, &self.sizes, &mut stream);
                    return drawn.into_iter().map(|x| x as f32).collect();
                }
                return self.numbers(Purpose::States, row, k, s.shape).iter().map(|x| 0.3 * x).collect();
            }
            vec![]
        };
        RowState { states: self.model.states.iter().enumerate().map(state).collect() }
    }
}

/// How a batch is run.
#[derive(Clone, Copy, Debug)]
struct How {
    steps: usize,
    /// Whether inputs are known for the whole sequence.
    whole: bool,
    /// The step before which all rows start anew.
    reset: Option<usize>,
    /// Whether states start at their own initial values.
    own: bool,
}

/// What a batch gives: names and numbers. The last are gradients summed over rows.
type Results = Vec<(String, Vec<f32>)>;

/// Runs rows `first..first + count` on a tape as one team.
fn run_team(
    case: &Case,
    bound: &Bound<'_>,
    tape: &mut Tape,
    grads: &mut Grads,
    first: usize,
    how: How,
) -> Results {
    let count = bound.rows(tape);
    let states: Vec<RowState> = (first..first + count).map(|row| case.states(row, how.own)).collect();
    let starts: Vec<Option<&RowState>> = states.iter().map(Some).collect();
    bound.begin_team(tape, &starts);
    let inputs = case.model.inputs.len();
    let mut parts = vec![how.reset.unwrap_or(how.steps)];
    parts.extend(how.reset.map(|r| how.steps - r));
    let mut done = 0;
    for (k, steps) in parts.into_iter().enumerate() {
        if k > 0 {
            bound.reset_team(tape, &starts);
        }
        if how.whole {
            bound.forward_team(tape, steps, &mut |row, t, input, x| {
                x.copy_from_slice(&case.input(first + row, done + t, input));
            });
        } else {
            for t in done..done + steps {
                for (row, n) in (0..count).flat_map(|row| (0..inputs).map(move |n| (row, n))) {
                    let input = InputId(n as u32);
                    bound.select(tape, row);
                    bound.input_mut(tape, input).copy_from_slice(&case.input(first + row, t, input));
                }
                bound.step(tape);
            }
        }
        done += steps;
    }
    let mut results = vec![];
    for row in 0..count {
        bound.select(tape, row);
        let at = first + row;
        for (s, x) in case.model.states.iter().zip(bound.state(tape).states) {
            results.push((format!("{at} state {}", s.name), x));
        }
        for t in 0..how.steps {
            results.push((format!("{at} penalty {t}"), vec![bound.penalty(tape, t)]));
            for (k, o) in case.model.outputs.iter().enumerate() {
                let id = OutputId(k as u32);
                results.push((format!("{at} output {} {t}", o.name), bound.output(tape, t, id).to_vec()));
                let bar = case.numbers(Purpose::Action, at, 16 * t + k, o.shape);
                bound.output_bar_mut(tape, t, id).copy_from_slice(&bar);
            }
        }
    }
    bound.backward(tape, grads, 0.25, None);
    for row in 0..count {
        bound.select(tape, row);
        let at = first + row;
        for (s, x) in case.model.states.iter().zip(bound.init_bar(tape).states) {
            results.push((format!("{at} initial {}", s.name), x));
        }
        for (t, k) in (0..how.steps).flat_map(|t| (0..inputs).map(move |k| (t, k))) {
            if let Some(x) = bound.input_bar(tape, t, InputId(k as u32)) {
                results.push((format!("{at} input {k} {t}"), x.to_vec()));
            }
        }
    }
    results
}

/// Runs all rows in teams of so many; results of rows, then gradients of parameters.
fn run(case: &Case, engine: &Engine, rows: usize, how: How) -> (Results, Vec<Vec<f32>>) {
    let bound = engine.bind(&case.params()).expect("bound");
    let mut tape = engine.team_tape(how.steps, Mode::Train, rows);
    let mut grads = engine.grads();
    let mut results = vec![];
    for first in (0..ROWS).step_by(rows) {
        results.extend(run_team(case, &bound, &mut tape, &mut grads, first, how));
    }
    let gradients = engine.finish(&bound, vec![grads]);
    engine.check().expect("the device is well");
    results.sort_by(|(a, _), (b, _)| a.cmp(b));
    (results, gradients)
}

pub(super) fn options(every: Option<usize>) -> EngineOptions {
    EngineOptions { checkpoint_every: every, mapping: Wanted::Rows, ..EngineOptions::default() }
}

/// Equal bits, but that a NaN may have any and a zero any sign.
fn same(a: &[f32], b: &[f32]) -> bool {
    a.len() == b.len() && a.iter().zip(b).all(|(a, b)| a == b || (a.is_nan() && b.is_nan()))
}

fn far(a: &[f32], b: &[f32]) -> f64 {
    let norm = b.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt();
    let off = a.iter().zip(b).map(|(a, b)| (f64::from(*a) - f64::from(*b)).powi(2)).sum::<f64>().sqrt();
    off / norm.max(0.1)
}

/// Whether sums over whole matrices make the bits of a device differ from a processor's.
fn sums_matrices(engine: &Engine) -> bool {
    let sum = |n: &compiler::loops::Nest| {
        let is_matrix =
            !matches!(n.extent, compiler::loops::Extent::Vector(_) | compiler::loops::Extent::Scalar);
        is_matrix && n.effects.iter().any(|e| matches!(e, compiler::loops::Effect::SumAll(..)))
    };
    compiler::loops::routines(engine.program()).into_iter().flat_map(|r| &r.nests).any(sum)
}

fn agree(case: &Case, device: &Arc<dyn Device>, how: How) {
    agree_as(case, device, how, &options(Some(3)));
}

/// The same with rows shared by blocks.
fn agree_shared(case: &Case, device: &Arc<dyn Device>, how: How, mapping: Wanted) {
    let options = EngineOptions { mapping, batch: ROWS, ..options(Some(3)) };
    assert_eq!(agree_as(case, device, how, &options), [1, 1]);
}

/// The same with kernels as the options say; which ran, forward and backward.
fn agree_as(case: &Case, device: &Arc<dyn Device>, how: How, options: &EngineOptions) -> [u8; 2] {
    let name = &case.model.name;
    let ours = case.on(Arc::clone(device), options);
    let tiers = ours.route().expect("it runs on a device").tiers();
    let compiled = case.engine(Backend::CRANELIFT, options);
    let (found, gradients) = run(case, &ours, ROWS, how);
    if tiers[1] == 1 {
        // States that are kept of every step are those that are rebuilt, to the bit.
        let every = EngineOptions { checkpoint_every: Some(1), ..*options };
        let kept = case.on(Arc::clone(device), &every);
        assert!(run(case, &kept, ROWS, how) == (found.clone(), gradients.clone()), "{name} {how:?}: kept");
    }
    let (expected, sums) = run(case, &compiled, 1, how);
    assert_eq!(found.len(), expected.len(), "{name} {how:?}");
    // On a GPU bits are counted, not demanded; kernels of whole sequences and of slabs take sums in orders of their own,
    // as sums over whole matrices are on any device.
    let by_rows = options.mapping == Wanted::Rows && tiers == [1, 1];
    let exact = !sums_matrices(&compiled) && !on_a_gpu() && by_rows;
    let mut equal = 0;
    for ((what, x), (other, y)) in found.iter().zip(&expected) {
        assert_eq!(what, other, "{name}");
        assert!(x.iter().all(|x| x.is_finite()), "{name} {how:?}: {what} is {x:?}, expected {y:?}");
        equal += usize::from(same(x, y));
        let alike = if exact { same(x, y) } else { far(x, y) < 2e-4 };
        assert!(alike, "{name} {how:?}: {what} is {x:?}, expected {y:?}");
    }
    if on_a_gpu() {
        use std::io::Write;
        let _ = writeln!(std::io::stderr(), "{name}: {equal} of {} tensors have equal bits", found.len());
    }
    let meant = case.engine(Backend::Interp, options);
    let (values, truth) = run(case, &meant, 1, how);
    for ((what, x), (_, y)) in found.iter().zip(&values) {
        assert!(far(x, y) < 2e-3, "{name} {how:?}: {what} is {x:?}, meant {y:?}");
    }
    for (k, p) in case.model.params.iter().enumerate() {
        let (x, y, z) = (&gradients[k], &sums[k], &truth[k]);
        assert!(far(x, y) < 1e-4, "{name} {how:?}: gradient of {} is {x:?}, compiled {y:?}", p.name);
        assert!(far(x, z) < 2e-3, "{name} {how:?}: gradient of {} is {x:?}, meant {z:?}", p.name);
    }
    tiers
}

pub(super) fn specs() -> Vec<PathBuf> {
    let mut todo = vec![library()];
    let mut found = vec![];
    while let Some(path) = todo.pop() {
        if path.is_dir() {
            todo.extend(std::fs::read_dir(&path).expect("a folder").map(|e| e.expect("an entry").path()));
        } else if path.extension().is_some_and(|e| e == "bpm") {
            found.push(path);
        }
    }
    found.sort();
    found
}

#[test]
fn every_spec_of_the_library_gives_what_machine_code_gives() {
    let Some(device) = device() else { return };
    let whole = How { steps: 7, whole: true, reset: None, own: false };
    let ways = [
        whole,
        How { own: true, ..whole },
        How { whole: false, ..whole },
        How { reset: Some(4), ..whole },
        How { reset: Some(4), own: true, whole: false, ..whole },
    ];
    let mut count = 0;
    for (k, path) in specs().iter().enumerate() {
        for (n, case) in Case::of(path, None).iter().enumerate() {
            agree(case, &device, ways[(k + n) % ways.len()]);
            count += 1;
        }
    }
    assert!(count > 20, "{count} models");
}

#[test]
fn every_way_of_running_a_network_agrees() {
    let Some(device) = device() else { return };
    let case = Case::spec("backpropamine/retroactive.bpm");
    for steps in [1, 2, 3, 4, 8] {
        for (whole, own) in [(true, true), (true, false), (false, true), (false, false)] {
            let resets = [None, Some(1), Some(steps - 1), Some(steps)];
            for reset in resets.into_iter().filter(|r| r.is_none_or(|r| 0 < r && r <= steps)) {
                agree(&case, &device, How { steps, whole, reset, own });
            }
        }
    }
}

/// Several blocks for a row, one or two rows for a block, whole sequences and single steps, resets: the layers that
/// the library has among them.
#[test]
fn rows_that_are_shared_by_blocks_agree() {
    let Some(device) = device() else { return };
    let cut = |columns, stretches| compiler::loops::Cut { columns, stretches };
    let whole = How { steps: 7, whole: true, reset: None, own: false };
    let ways = [
        (whole, Wanted::Slabs(cut(8, 4), 2)),
        (How { whole: false, own: true, ..whole }, Wanted::Slabs(cut(16, 2), 1)),
        (How { reset: Some(4), ..whole }, Wanted::Slabs(cut(8, 8), 1)),
        (How { reset: Some(4), whole: false, ..whole }, Wanted::Slabs(cut(32, 2), 3)),
    ];
    let mut count = 0;
    for (k, path) in specs().iter().enumerate().filter(|(k, _)| k % 3 == 0) {
        for (n, case) in Case::sized(path, None, 18).iter().enumerate() {
            let (how, mapping) = ways[(k / 3 + n) % ways.len()];
            agree_shared(case, &device, how, mapping);
            count += 1;
        }
    }
    let case = Case::sized(&library().join("backpropamine/retroactive.bpm"), None, 18).swap_remove(0);
    ways.iter().for_each(|(how, mapping)| agree_shared(&case, &device, *how, *mapping));
    assert!(count > 10, "{count} models");
}

/// What a batch has on a device with these blocks is what a row has alone, and what was foreseen.
#[test]
fn a_row_that_is_shared_does_not_depend_on_the_others() {
    let Some(device) = device() else { return };
    let case = Case::sized(&library().join("backpropamine/retroactive.bpm"), None, 18).swap_remove(0);
    let mapping = Wanted::Slabs(compiler::loops::Cut { columns: 8, stretches: 4 }, 2);
    let engine = case.on(device, &EngineOptions { mapping, ..options(Some(3)) });
    let how = How { steps: 5, whole: true, reset: None, own: false };
    let ((all, _), (single, _)) = (run(&case, &engine, ROWS, how), run(&case, &engine, 1, how));
    assert_eq!(all, single);
    let uncut = case.on(emulated().expect("a compiler"), &options(Some(3)));
    let bytes = |e: &Engine| e.device_bytes(ROWS, 5, Mode::Train);
    let parts = 4 * 5 * ROWS * (engine.program().scratch_len - uncut.program().scratch_len);
    assert!(bytes(&engine).abs_diff(bytes(&uncut) + parts as u64) < 1024, "sums in parts are counted");
}

#[test]
fn logs_of_events_agree() {
    let Some(device) = device() else { return };
    let mut count = 0;
    for path in specs() {
        for (k, case) in Case::of(&path, Some(9)).iter().enumerate() {
            let reset = (k % 2 == 1).then_some(4);
            agree(case, &device, How { steps: 9, whole: count % 2 == 0, reset, own: true });
            count += 1;
        }
    }
    assert!(count > 3, "{count} models can be kept as events");
}

#[test]
fn a_row_does_not_depend_on_the_others() {
    let Some(device) = device() else { return };
    let case = Case::spec("backpropamine/simple.bpm");
    let engine = case.on(device, &options(None));
    let how = How { steps: 5, whole: true, reset: None, own: false };
    let ((all, together), (single, one_by_one)) =
        (run(&case, &engine, ROWS, how), run(&case, &engine, 1, how));
    assert_eq!(all, single);
    for (x, y) in together.iter().zip(&one_by_one) {
        assert!(far(x, y) < 1e-6);
    }
}

#[test]
fn sequences_are_recorded_once_for_their_shape() {
    let Some(device) = emulated() else { return };
    let case = Case::spec("backpropamine/simple.bpm");
    let engine = case.on(Arc::clone(&device) as Arc<dyn Device>, &options(None));
    let how = How { steps: 6, whole: true, reset: None, own: true };
    let mut tape = engine.team_tape(6, Mode::Train, ROWS);
    let update = |factor: f32, tape: &mut Tape| {
        let params: Vec<Vec<f32>> =
            case.params().iter().map(|p| p.iter().map(|x| x * factor).collect()).collect();
        let bound = engine.bind(&params).expect("bound");
        let sums = engine.sums();
        let mut grads = sums.zeros();
        let found = run_team(&case, &bound, tape, &mut grads, 0, how);
        sums.add(0, grads);
        (found, sums.finish(&bound))
    };
    let factors = [1.0, 0.9, 0.5];
    let found: Vec<_> = factors.iter().map(|f| update(*f, &mut tape)).collect();
    assert_eq!(device.counts().1, 2, "a recording for each direction, for all updates");
    // A recording reads the parameters and the numbers of its update: a tape without recordings agrees.
    for (factor, found) in factors.iter().zip(&found) {
        assert_eq!(*found, update(*factor, &mut engine.team_tape(6, Mode::Train, ROWS)));
    }
    // Parameters that live at the same time lie in different places.
    let one = engine.bind(&case.params()).expect("bound");
    let two =
        engine.bind(&case.params().iter().map(|p| p.iter().map(|x| 0.7 * x).collect()).collect::<Vec<_>>());
    let two = two.expect("bound");
    let mut at = |bound: &Bound<'_>| run_team(&case, bound, &mut tape, &mut engine.grads(), 0, how);
    assert!(at(&one) == found[0].0 && at(&two) != found[0].0 && at(&one) == found[0].0);
    assert!(found[0] != found[1] && found[0].1.iter().flatten().any(|x| *x != 0.0));
}

#[test]
fn a_tape_for_single_steps_runs_on_for_ever() {
    let Some(device) = device() else { return };
    let case = Case::spec("backpropamine/retroactive.bpm");
    let engine = case.on(device, &options(None));
    let compiled = case.engine(Backend::CRANELIFT, &options(None));
    let all = |engine: &Engine| {
        let bound = engine.bind(&case.params()).expect("bound");
        let mut tape = engine.tape(1, Mode::Infer);
        bound.begin(&mut tape, Some(&case.states(0, false)));
        let mut found = vec![];
        for t in 0..53 {
            if t == 30 {
                bound.reset(&mut tape, Some(&case.states(0, false)));
            }
            for k in 0..case.model.inputs.len() {
                let input = InputId(k as u32);
                bound.input_mut(&mut tape, input).copy_from_slice(&case.input(0, t, input));
            }
            bound.step(&mut tape);
            found.push(bound.output(&tape, t, OutputId(0)).to_vec());
            if t % 7 == 0 {
                found.extend(bound.state(&mut tape).states);
            }
        }
        found
    };
    let (found, expected) = (all(&engine), all(&compiled));
    assert!(found.iter().zip(&expected).all(|(x, y)| if on_a_gpu() { far(x, y) < 1e-3 } else { same(x, y) }));
}

#[test]
fn a_tape_grows() {
    let Some(device) = device() else { return };
    let case = Case::spec("backpropamine/simple.bpm");
    let engine = case.on(device, &options(Some(2)));
    for whole in [true, false] {
        let how = How { steps: 9, whole, reset: None, own: true };
        let bound = engine.bind(&case.params()).expect("bound");
        let run = |room: usize| {
            let mut tape = engine.team_tape(room, Mode::Train, ROWS);
            let mut grads = engine.grads();
            (run_team(&case, &bound, &mut tape, &mut grads, 0, how), engine.finish(&bound, vec![grads]))
        };
        // Checkpoints are as far apart in both.
        assert!(run(9) == run(4), "{whole}");
        engine.check().expect("the device is well");
    }
}

#[test]
fn what_does_not_fit_is_a_fault_and_stays_one() {
    let Some(probe) = emulated() else { return };
    let case = Case::spec("backpropamine/simple.bpm");
    let engine = case.on(probe, &options(None));
    let needed = engine.device_bytes(ROWS, 50, Mode::Train);
    let small = Arc::new(Emulated::with_memory(needed / 2).expect("a device"));
    let engine = case.on(small, &options(None));
    let bound = engine.bind(&case.params()).expect("parameters fit");
    let mut tape = engine.team_tape(50, Mode::Train, ROWS);
    let mut grads = engine.grads();
    let how = How { steps: 5, whole: true, reset: None, own: true };
    run_team(&case, &bound, &mut tape, &mut grads, 0, how);
    let error = crate::Error::from(engine.check().expect_err("it does not fit"));
    assert_eq!(error.exit_code(), 3);
    assert!(error.message.contains("has no"), "{}", error.message);
}

/// A device that fails after so many calls, for good.
pub(super) struct Failing {
    pub(super) inner: Emulated,
    pub(super) left: std::sync::atomic::AtomicI64,
}

impl Failing {
    fn call(&self) -> Result<(), Fault> {
        let left = self.left.fetch_sub(1, std::sync::atomic::Ordering::Relaxed);
        if 0 < left {
            Ok(())
        } else {
            Err(Fault::new(FaultKind::Lost, "it has fallen off the bus").help("a"))
        }
    }
}

impl Device for Failing {
    fn about(&self) -> &About {
        self.inner.about()
    }
    fn memory(&self) -> Result<Memory, Fault> {
        self.inner.memory()
    }
    fn compile(&self, source: &str, name: &str) -> Result<Vec<u8>, Fault> {
        self.inner.compile(source, name)
    }
    fn load(&self, image: &[u8]) -> Result<Module, Fault> {
        self.inner.load(image)
    }
    fn unload(&self, module: Module) {
        self.inner.unload(module);
    }
    fn kernel(&self, module: Module, name: &str) -> Result<Kernel, Fault> {
        self.inner.kernel(module, name)
    }
    fn allocate(&self, bytes: usize) -> Result<Address, Fault> {
        self.call().and_then(|()| self.inner.allocate(bytes))
    }
    unsafe fn free(&self, at: Address) {
        // SAFETY: as promised to this one.
        unsafe { self.inner.free(at) };
    }
    unsafe fn upload(&self, to: Address, from: &[u8]) -> Result<(), Fault> {
        // SAFETY: as promised to this one.
        self.call().and_then(|()| unsafe { self.inner.upload(to, from) })
    }
    unsafe fn download(&self, from: Address, to: &mut [u8]) -> Result<(), Fault> {
        // SAFETY: as promised to this one.
        self.call().and_then(|()| unsafe { self.inner.download(from, to) })
    }
    fn wait(&self) -> Result<(), Fault> {
        self.call().and_then(|()| self.inner.wait())
    }
    fn door(&self) -> Option<u64> {
        self.inner.door()
    }
    fn admit(&self) -> Result<(), Fault> {
        self.call().and_then(|()| self.inner.admit())
    }
    unsafe fn copy(&self, to: Address, from: Address, bytes: usize) -> Result<(), Fault> {
        // SAFETY: as promised to this one.
        self.call().and_then(|()| unsafe { self.inner.copy(to, from, bytes) })
    }
    unsafe fn clear(&self, at: Address, bytes: usize) -> Result<(), Fault> {
        // SAFETY: as promised to this one.
        self.call().and_then(|()| unsafe { self.inner.clear(at, bytes) })
    }
    unsafe fn launch_blocks(&self, kernel: Kernel, blocks: &Blocks, call: &Call) -> Result<(), Fault> {
        // SAFETY: as promised to this one.
        self.call().and_then(|()| unsafe { self.inner.launch_blocks(kernel, blocks, call) })
    }
    fn resident(&self, kernel: Kernel, blocks: &Blocks) -> Result<usize, Fault> {
        self.call().and_then(|()| self.inner.resident(kernel, blocks))
    }
    fn record(&self) -> Result<(), Fault> {
        self.call().and_then(|()| self.inner.record())
    }
    fn recorded(&self) -> Result<Graph, Fault> {
        // What was begun is ended in any case.
        let graph = self.inner.recorded()?;
        self.call().map(|()| graph)
    }
    unsafe fn replay(&self, graph: Graph) -> Result<(), Fault> {
        // SAFETY: as promised to this one.
        self.call().and_then(|()| unsafe { self.inner.replay(graph) })
    }
    fn forget(&self, graph: Graph) {
        self.inner.forget(graph);
    }
}

#[test]
fn a_device_may_fail_at_any_call() {
    if emulated().is_none() {
        return;
    }
    let case = Case::spec("backpropamine/retroactive.bpm");
    let mut faults = 0;
    for calls in (0..).step_by(5) {
        let inner = Emulated::new().expect("a device");
        let device = Arc::new(Failing { inner, left: 1_000_000.into() });
        let engine = case.on(Arc::clone(&device) as Arc<dyn Device>, &options(Some(2)));
        device.left.store(calls, std::sync::atomic::Ordering::Relaxed);
        let how = How { steps: 5, whole: calls % 2 == 0, reset: (calls % 4 == 1).then_some(3), own: true };
        let error = engine.bind(&case.params()).and_then(|bound| {
            let mut tape = engine.team_tape(how.steps, Mode::Train, ROWS);
            let mut grads = engine.grads();
            run_team(&case, &bound, &mut tape, &mut grads, 0, how);
            engine.finish(&bound, vec![grads]);
            engine.check()
        });
        let Err(error) = error else { break };
        let error = crate::Error::from(error);
        assert_eq!(error.exit_code(), 3, "{calls}");
        assert!(error.message.starts_with("it has fallen off the bus"), "{calls}: {}", error.message);
        faults += 1;
    }
    assert!(faults > 10, "{faults} places to fail");
}

#[test]
fn the_plan_of_a_device_counts_what_is_taken() {
    let Some(device) = emulated() else { return };
    let case = Case::spec("backpropamine/retroactive.bpm");
    let engine = case.on(Arc::clone(&device) as Arc<dyn Device>, &options(None));
    let free = || device.memory().expect("memory").free;
    let bound = engine.bind(&case.params()).expect("bound");
    let before = free();
    let tape = engine.team_tape(40, Mode::Train, ROWS);
    let grads = engine.grads();
    let (taken, planned) = (before - free(), engine.device_bytes(ROWS, 40, Mode::Train));
    drop((tape, grads, bound));
    assert!(taken <= planned && planned < taken + 16 * 512 + 4096, "{taken} of {planned}");
}

#[test]
fn kernels_are_cached_and_broken_entries_are_made_again() {
    let Some(device) = emulated() else { return };
    let folder = tempfile::tempdir().expect("a folder");
    let place = || Some(folder.path().join("new"));
    let source = "extern \"C\" __global__ void k(const float *a) {}\n";
    let load = |source: &str| cache::load(&*device, place(), source, "k").expect("it loads").1;
    assert_eq!(load(source), Origin::Compiled);
    assert_eq!(load(source), Origin::Cached);
    assert_eq!(load(&format!("{source}\n")), Origin::Compiled, "another source");
    let entries: Vec<(PathBuf, Vec<u8>)> = std::fs::read_dir(place().expect("a folder"))
        .expect("a list")
        .map(|e| e.expect("an entry").path())
        .map(|path| (path.clone(), std::fs::read(path).expect("an entry")))
        .collect();
    assert_eq!(entries.len(), 2);
    for damage in 0..4 {
        for (path, whole) in &entries {
            let mut bytes = whole.clone();
            match damage {
                0 => bytes.truncate(bytes.len() / 2),
                1 => bytes.clear(),
                2 => *bytes.last_mut().expect("a byte") ^= 1,
                _ => bytes = b"bpm-kernels-1 \xff\xfe\n".to_vec(),
            }
            std::fs::write(path, bytes).expect("written");
        }
        assert_eq!(load(source), Origin::Compiled, "damage {damage}");
        assert_eq!(load(source), Origin::Cached, "damage {damage}");
    }
    assert_eq!(cache::load(&*device, None, source, "k").expect("it loads").1, Origin::Compiled);
    let wrong = PathBuf::from("/dev/null/no/folder");
    assert_eq!(cache::load(&*device, Some(wrong), source, "k").expect("it loads").1, Origin::Compiled);
}

#[test]
fn a_source_that_is_refused_is_told_with_its_line() {
    let Some(device) = emulated() else { return };
    let source = "extern \"C\" __global__ void step(const float *a) {\n#line 4 \"net.bpm\"\n  y = 1;\n}\n";
    let fault = cache::load(&*device, None, source, "net").expect_err("y is unknown");
    assert_eq!(fault.kind, FaultKind::Source);
    assert!(fault.message.contains("kernel `step` of `net` at line 4 of net.bpm"), "{}", fault.message);
}
