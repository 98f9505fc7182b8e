//! Training with a world of its own on the emulated device: memory, faults, the order of threads.

use super::super::tests::{Case, Failing, emulated, options};
use super::*;
use crate::engine::device::{Device, Emulated};
use crate::engine::{EngineError, Mode};
use crate::optim::{Epochs, Rule, Settings};
use crate::params::ParamStore;
use std::collections::BTreeMap;

const ROWS: usize = 3;
const STEPS: usize = 4;

/// Shows the last action, and pays for it.
const MIRROR: &str = "
__device__ static inline void world_begin(const Row &row) { row.floats[0] = row.ints[0] = row.row; }
__device__ static inline float world_reward(const Row &row) { return row.floats[0]; }
__device__ static inline void world_observe(const Row &row, int step, float *input) {
  input[0] = (float)row.ints[0];
  input[1] = row.lesson->floats[step % 2];
}
__device__ static inline float world_act(const Row &row, int step, int action) {
  row.ints[0] = action;
  row.floats[0] = row.lesson->floats[0] * (float)action;
  return row.floats[0];
}
";

/// Shows the row, and wants the class that follows from the step.
const ECHO: &str = "
__device__ static inline void world_begin(const Row &row) { row.floats[0] = (float)row.row; }
__device__ static inline float world_shown(const Row &row, int step, int k) { return row.floats[0] - (float)(step + k); }
__device__ static inline float world_label(const Row &, int, int) { return 0.0f; }
__device__ static inline int world_targets(const Row &row, int step) { return step % 2 ? 2 : 0; }
__device__ static inline float world_target(const Row &, int step, int k) { return k == step / 2 % 2 ? 1.0f : 0.0f; }
__device__ static inline void world_scores(const Row &, const float *output, double *scores) { scores[0] = (double)(output[0] * output[0]); }
";

/// Raw parameters, means and mean squares.
type After = [Vec<Vec<f32>>; 3];

/// What a plan is about.
struct Subject {
    case: Case,
    acts: bool,
    store: ParamStore,
    values: Vec<Vec<f32>>,
    parameters: Vec<Parameter>,
    memory: Vec<Vec<f32>>,
    settings: Settings,
}

impl Subject {
    fn new(acts: bool) -> Subject {
        let case = Case::spec("backpropamine/retroactive.bpm");
        let store = ParamStore::new(&case.model, &case.sizes, 3, &BTreeMap::new()).expect("parameters");
        let about = |a: &crate::params::About| Parameter {
            learned: a.learned,
            range: a.range,
            gradscale: a.gradscale,
        };
        let rule = Rule::Adam { beta1: 0.9, beta2: 0.999, epsilon: 1e-6 };
        Subject {
            values: store.values(),
            parameters: store.about.iter().map(about).collect(),
            memory: store.raw.iter().map(|x| vec![0.0; x.len()]).collect(),
            settings: Settings { rule, rate: 0.01, decay: 0.0, clip: 1.0, epochs: Epochs::default() },
            case,
            acts,
            store,
        }
    }

    fn plan(&self) -> Plan<'_> {
        let output = |name: &str| self.case.model.output(name).expect("an output");
        Plan {
            world: World {
                source: if self.acts { MIRROR } else { ECHO },
                ints: &[],
                floats: &[0.5, -1.0],
                doubles: &[],
                row_ints: 1,
                row_floats: 1,
            },
            input: InputId(0),
            aim: match self.acts {
                true => Aim::Act {
                    reward: None,
                    policy: output("policy"),
                    value: output("value"),
                    weights: Weights { gamma: 0.9, value: 0.1, entropy: 0.03, shared_baseline: false },
                },
                false => Aim::Match { label: None, output: output("policy"), loss: Loss::Binary },
            },
            rows: ROWS,
            steps: STEPS,
            motion: Motion {
                parameters: &self.parameters,
                raw: &self.store.raw,
                values: &self.values,
                memory: [&self.memory, &self.memory],
                adam: true,
                numbers: self.settings.numbers(1, 1.0),
                clip: self.settings.clip,
            },
        }
    }

    /// So many updates; what they did, and the parameters afterwards.
    fn updates(&self, engine: &Engine, count: u32) -> Result<(Vec<Results>, After), EngineError> {
        let mut training = engine.training(&self.plan())?.expect("a device");
        let mut tape = engine.team_tape(STEPS, Mode::Train, ROWS);
        let mut found = vec![];
        for episode in 0..count {
            let numbers = self.settings.numbers(u64::from(episode) + 1, 1.0);
            let update = Update { seed: 5, episode, learns: 1, rate: numbers.rate, root: numbers.root };
            let bound = engine.bind_trained(&training);
            bound.begin_team(&mut tape, &[None; ROWS]);
            found.push(bound.train_episode(&mut tape, (&mut training, update), None));
            engine.check()?;
        }
        let after = training.fetch().map_err(EngineError::from)?;
        Ok((found, after))
    }
}

#[test]
fn nothing_depends_on_the_order_of_threads() {
    let Some(device) = emulated() else { return };
    for acts in [true, false] {
        let subject = Subject::new(acts);
        let engine = subject.case.on(Arc::clone(&device) as Arc<dyn Device>, &options(Some(2)));
        let (found, after) = subject.updates(&engine, 3).expect("it runs");
        // Every launch draws its order anew.
        for _ in 0..3 {
            assert!(subject.updates(&engine, 3).expect("it runs") == (found.clone(), after.clone()));
        }
        assert!(found.iter().all(|r| r.finite && r.norm > 0.0 && r.rows.len() == ROWS));
        assert!(found[0].rows.iter().any(|r| r.scores[0] > 0.0), "the world gives scores");
        assert!(after[0] != subject.store.raw && after[1] != after[2]);
    }
}

#[test]
fn an_update_is_recorded_once() {
    let Some(device) = emulated() else { return };
    for acts in [true, false] {
        let subject = Subject::new(acts);
        let engine = subject.case.on(Arc::clone(&device) as Arc<dyn Device>, &options(None));
        let recorded = |updates: u32| {
            let before = device.counts().1;
            subject.updates(&engine, updates).expect("it runs");
            device.counts().1 - before
        };
        assert_eq!((recorded(1), recorded(4)), (1, 1));
    }
}

#[test]
fn the_plan_counts_what_training_takes() {
    let Some(device) = emulated() else { return };
    for acts in [true, false] {
        let subject = Subject::new(acts);
        let engine = subject.case.on(Arc::clone(&device) as Arc<dyn Device>, &options(None));
        let free = || device.memory().expect("memory").free;
        let before = free();
        let training = engine.training(&subject.plan()).expect("it fits");
        let tape = engine.team_tape(STEPS, Mode::Train, ROWS);
        let taken = before - free();
        let planned = engine.training_bytes(&subject.plan()) + engine.device_bytes(ROWS, STEPS, Mode::Train);
        drop((training, tape));
        assert!(taken <= planned && planned < taken + 48 * 512 + 4096, "{taken} of {planned}");
        // Memory of parameters is kept for the next ones.
        assert_eq!(before - free(), (4 * engine.program().params_len as u64).next_multiple_of(8));
    }
}

#[test]
fn a_device_may_fail_at_any_call_of_an_update() {
    if emulated().is_none() {
        return;
    }
    let subject = Subject::new(true);
    let mut faults = 0;
    for calls in (0..).step_by(9) {
        let inner = Emulated::new().expect("a device");
        let device = Arc::new(Failing { inner, left: 1_000_000.into() });
        let engine = subject.case.on(Arc::clone(&device) as Arc<dyn Device>, &options(Some(2)));
        device.left.store(calls, std::sync::atomic::Ordering::Relaxed);
        let Err(error) = subject.updates(&engine, 2) else { break };
        let error = crate::Error::from(error);
        // Where it was a kernel of the network, its name follows.
        assert!(error.message.starts_with("it has fallen off the bus"), "{calls}: {}", error.message);
        assert_eq!(error.exit_code(), 3, "{calls}");
        faults += 1;
    }
    assert!(faults > 10, "{faults} places to fail");
}

#[test]
fn training_that_does_not_fit_is_a_fault() {
    let Some(probe) = emulated() else { return };
    let subject = Subject::new(true);
    let whole = probe.memory().expect("memory").free;
    let _engine = subject.case.on(Arc::clone(&probe) as Arc<dyn Device>, &options(None));
    let network = whole - probe.memory().expect("memory").free;
    let small = Arc::new(Emulated::with_memory(network + 1024).expect("a device"));
    let engine = subject.case.on(small, &options(None));
    let error = engine.training(&subject.plan()).err().expect("it does not fit");
    assert_eq!(crate::Error::from(error).exit_code(), 3);
}
