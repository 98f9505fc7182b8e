//! Training by machine code: bits on any number of threads, gradients, divergence, and that it learns.

use super::*;
use crate::engine::{Backend, Mode};
use crate::rng::{Address, Domain};
use crate::rollout::{Choice, Stage, advantages};
use crate::{setup, spec};

const SPEC: &str = "spec simple {
  axis I = ?, N = 7, A = ?
  in u[I]
  learn Wx[N,I], bx[N] ~ linear
  learn W[N,N], alpha[N,N] ~ uniform(0, 0.5)
  learn wm[N], bm ~ linear
  learn Wo[A,N], bo[A], wv[N], bv ~ linear
  state y[N] = 0
  plastic H[N,N] = 0 KEEP
  y' = tanh(Wx @ u + bx + (W + alpha * H) @ y)
  modulator m = tanh(wm . y' + bm)
  H'[j,i] = clip(H + m * y'[j] * y[i], -1, 1)
  out policy[A] = Wo @ y' + bo
  out value = wv . y' + bv
}";

fn trainer(spec: &str, recipe: &str, threads: usize) -> Trainer {
    let spec = spec::compile("s.bpm", spec.into(), None).unwrap_or_else(|e| panic!("{e:?}"));
    let text = format!("spec = \"s.bpm\"\n{recipe}");
    let recipe = Recipe::parse("r", &text, &[]).unwrap_or_else(|e| panic!("{e}"));
    setup::trainer(spec, recipe, Backend::CRANELIFT, threads, Mode::Train).unwrap_or_else(|e| panic!("{e}"))
}

fn cue(threads: usize, extra: &str, keep: &str) -> Trainer {
    let recipe = format!(
        "[task]\nname = \"cue-reward\"\ncues = 2\nbits = 2\nsteps = 20\n[run]\nbatch = 5\n\
             [optimiser]\nrate = 0.01\n{extra}"
    );
    trainer(&SPEC.replace("KEEP", keep), &recipe, threads)
}

fn after(mut t: Trainer, updates: usize) -> (Vec<Vec<f32>>, Vec<Outcome>) {
    let outcomes = (0..updates).map(|_| t.step().unwrap_or_else(|e| panic!("{e}"))).collect();
    (t.params.raw, outcomes)
}

#[test]
fn any_number_of_threads_gives_the_same_bits() {
    for extra in ["", "[learner]\nbaseline = \"first\"\n"] {
        for keep in ["", "every 3 episodes"] {
            let one = after(cue(1, extra, keep), 6);
            for threads in [2, 3, 8] {
                assert_eq!(one, after(cue(threads, extra, keep), 6), "{extra} {keep} {threads}");
            }
        }
    }
}

#[test]
fn carried_states_make_a_difference() {
    assert_ne!(after(cue(1, "", ""), 3).0, after(cue(1, "", "every 3 episodes"), 3).0);
    let first = |keep| after(cue(1, "", keep), 1).0;
    assert_eq!(first(""), first("every 3 episodes"), "the first episode starts anew");
}

#[test]
fn burn_in_changes_nothing() {
    let start = cue(1, "", "").params.raw;
    assert_eq!(after(cue(1, "[learner]\nburn_in = 4\n", ""), 4).0, start);
    assert_ne!(after(cue(1, "[learner]\nburn_in = 4\n", ""), 5).0, start);
}

/// The gradient of an update against finite differences of the loss with the same actions. The
/// policy term has a constant advantage, so it is checked on a learner without the value loss
/// and with values that the parameters in question cannot move.
#[test]
fn the_gradient_is_the_slope_of_the_loss() {
    let base = cue(1, "[learner]\nvalue = 0.0\n", "");
    let (bound_loss, gradients) = loss_and_gradient(&base);
    assert!(bound_loss.is_finite());
    let mut checked = 0;
    for name in ["Wo", "W", "alpha", "wm", "Wx"] {
        let k = base.params.about.iter().position(|a| a.name == name).expect("parameter");
        for at in [0, base.params.raw[k].len() - 1] {
            let h = 3e-3;
            let moved = |d: f32| {
                let mut t = cue(1, "[learner]\nvalue = 0.0\n", "");
                t.params.raw[k][at] += d;
                replayed_loss(&t, &base)
            };
            let slope = (moved(h) - moved(-h)) / (2.0 * f64::from(h));
            let found = f64::from(gradients[k][at]);
            assert!((slope - found).abs() < 2e-4 + 0.03 * slope.abs(), "{name}[{at}]: {slope} {found}");
            checked += usize::from(found.abs() > 1e-3);
        }
    }
    assert!(checked >= 4, "vacuous: {checked}");
}

fn loss_and_gradient(t: &Trainer) -> (f64, Vec<Vec<f32>>) {
    let mut copy = cue(1, "[learner]\nvalue = 0.0\n", "");
    copy.params = t.params.clone();
    let Rows { all: rows, gradients, .. } = copy.gradients().unwrap_or_else(|e| panic!("{e}"));
    (rows.iter().map(|r| r.loss).sum::<f64>() / rows.len() as f64, gradients)
}

/// The loss of `t` with the actions and advantages that `base` had.
fn replayed_loss(t: &Trainer, base: &Trainer) -> f64 {
    let Learner::ActorCritic(learner) = &base.recipe.learner else { panic!("actor-critic") };
    let steps = base.recipe.task.steps();
    let mut total = 0.0;
    for row in 0..5u32 {
        let address = Address { seed: 0, domain: Domain::Train, episode: 0, row };
        let old = base.engine.bind(&base.params.values()).expect("bind");
        let stage = |bound| Stage {
            bound,
            model: base.engine.model(),
            sizes: base.engine.sizes(),
            wiring: &base.wiring,
            task: &*base.recipe.task,
            encoder: None,
        };
        let mut tape = base.engine.tape(steps, Mode::Infer);
        let record = stage(&old)
            .run(&mut tape, address, None, Choice::Sample, &mut Stopwatch::default())
            .expect("finite");
        let advantages = advantages(learner, &record, &record.values);
        let new = t.engine.bind(&t.params.values()).expect("bind");
        let mut tape = t.engine.tape(steps, Mode::Infer);
        let mut world = base.recipe.task.episode(address);
        new.begin(&mut tape, None);
        for (s, &action) in record.actions.iter().enumerate() {
            world.observe(s, new.input_mut(&mut tape, t.wiring.input));
            new.step(&mut tape);
            let logits = new.output(&tape, s, t.wiring.output);
            total += learner.loss(&learner.terms(logits, action, advantages[s]));
            world.act(s, action);
        }
    }
    total / (5.0 * steps as f64)
}

#[test]
fn divergence_names_the_line() {
    let spec = SPEC
        .replace("plastic H[N,N] = 0 KEEP", "plastic H[N,N] = 0 unbounded")
        .replace("clip(H + m * y'[j] * y[i], -1, 1)", "H * 1e9 + m * y'[j] * y[i]");
    let mut t = trainer(&spec, "[task]\nname = \"maze\"\n[run]\nbatch = 2\n", 1);
    let error = (0..3).find_map(|_| t.step().err()).expect("diverges");
    assert_eq!(error.exit_code(), 4);
    assert!(error.message.contains("update 1: state `H` is not finite after step"), "{}", error.message);
    assert!(error.help[0].contains("s.bpm:9: plastic H[N,N]"), "{:?}", error.help);
}

#[test]
fn the_supervised_task_learns() {
    let spec = "spec p {
  axis N = ?
  in u[N]
  learn W[N,N], alpha[N,N] ~ normal(0, 0.01)
  learn eta in (0, 1) = 0.01
  state y[N] = 0
  plastic H[N,N] = 0
  y' = tanh((W + alpha * H) @ y + u)
  H'[j,i] = (1 - eta) * H + eta * y'[j] * y[i]
  out y'
}";
    let recipe = "[task]\nname = \"pattern-completion\"\nbits = 12\npatterns = 1\ncycles = 1\n\
                      [run]\nbatch = 4\n[optimiser]\nrate = 0.01\n";
    let outcomes = after(trainer(spec, recipe, 1), 300).1;
    let mean = |o: &[Outcome]| o.iter().map(|o| o.scores[2]).sum::<f64>() / o.len() as f64;
    assert!(mean(&outcomes[..20]) > 0.3 && mean(&outcomes[280..]) < 0.05, "{}", mean(&outcomes[280..]));
}
