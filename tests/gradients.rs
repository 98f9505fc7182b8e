//! The gradient checks of the library cannot pass because there is nothing to check: every learned
//! parameter has a gradient, clips act and do not act, modulators vary. With clips forced to act,
//! and with resets and checkpoints in every place, the gradients are right.

mod support;

use compiler::gradcheck::{self, Case, Options, random_case};
use compiler::interp::Interpreter;
use compiler::model::{Init, Model};
use runtime::engine::{Backend, EngineOptions};
use std::sync::Arc;
use support::{all_specs, compare, is_at_a_kink, single_precision, small_sizes};

/// A gradient below this is none: cotangents, parameters and inputs are of order one.
const FLOOR: f64 = 1e-6;

/// Scales of the initial states: the first at which clips act on a part of the elements is taken.
const SCALES: [f64; 9] = [0.3, 0.6, 1.0, 1.5, 2.5, 5.0, 10.0, 30.0, 100.0];

fn options(state_scale: f64) -> Options {
    Options { steps: 10, state_scale, seed: 3, ..Options::default() }
}

fn interpreter(model: &Arc<Model>, options: &Options) -> (Interpreter, Case) {
    let sizes = small_sizes(model, 5);
    let case = random_case(model, &sizes, options);
    (Interpreter::new(model.clone(), sizes), case)
}

/// The smallest scale at which some of what passes a clip is clipped and some is not, and the
/// clipped part of it; `None` if the model has no clip. Larger scales only saturate what follows.
fn clipping_scale(model: &Arc<Model>) -> Option<(f64, f64)> {
    let mut last = (0.0, 0.0);
    for scale in SCALES {
        let (interpreter, case) = interpreter(model, &options(scale));
        last = (scale, gradcheck::clipped(&interpreter, &case)?);
        if (0.05..=0.95).contains(&last.1) {
            break;
        }
    }
    Some(last)
}

#[test]
fn every_learned_parameter_has_a_gradient() {
    let mut wrong = vec![];
    for (name, model) in all_specs() {
        let (interpreter, mut case) = interpreter(&model, &options(0.3));
        // A network may treat absent inputs apart: every second one is absent in every second step.
        for x in case.sequence.inputs.iter_mut().skip(1).step_by(2).flatten() {
            *x = Arc::new(x.iter().enumerate().map(|(k, x)| if k % 2 == 0 { 0.0 } else { *x }).collect());
        }
        let gradient = gradcheck::gradient(&interpreter, &case);
        for (k, p) in model.params.iter().enumerate().filter(|(_, p)| p.learned) {
            let initial = |s: &compiler::model::State| matches!(s.init, Init::Param(id) if id.index() == k);
            let (_, mut g) = gradient[k].clone();
            for (s, _) in model.states.iter().enumerate().filter(|(_, s)| initial(s)) {
                g.extend(&gradient[model.params.len() + s].1);
            }
            let norm = g.iter().map(|x| x * x).sum::<f64>().sqrt();
            if norm < FLOOR || norm.is_nan() {
                wrong.push(format!("{name}: the gradient of {} has norm {norm:e}", p.name));
            }
        }
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

#[test]
fn modulators_vary() {
    let mut seen = 0;
    for (name, model) in all_specs() {
        let (interpreter, case) = interpreter(&model, &options(0.3));
        let run = interpreter.run(&case.params, &case.sequence);
        for (modulator, value, _) in &model.modulators {
            let at = |t: usize| run.values[t][value.index()].as_ref().expect("it is evaluated")[0];
            let all: Vec<f64> = (0..run.values.len()).map(at).collect();
            let mean = all.iter().sum::<f64>() / all.len() as f64;
            let spread = all.iter().map(|x| (x - mean).powi(2)).sum::<f64>().sqrt();
            assert!(spread > 1e-3, "{name}: {modulator} is nearly constant: {all:?}");
            seen += 1;
        }
    }
    assert!(seen > 20, "the library has modulators");
}

#[test]
fn gradients_are_right_where_clips_act() {
    let (mut seen, mut compared, mut aside) = (0, 0, 0);
    for (name, model) in all_specs() {
        let Some((scale, share)) = clipping_scale(&model) else { continue };
        assert!((0.05..=0.95).contains(&share), "{name}: clips act on {share} at best");
        seen += 1;
        let sizes = small_sizes(&model, 4);
        let few = Options { steps: 5, ..options(scale) };
        let report = gradcheck::check(&model, &sizes, &few);
        let tested: usize = report.rows.iter().map(|r| r.tested).sum();
        assert!(tested > report.rows.len(), "{name}: most directions are beside a kink");
        for row in &report.rows {
            assert!(row.error < 1e-4, "{name}: {} is off by {:.1e}", row.name, row.error);
        }
        assert!(report.dot_error < 1e-10, "{name}: dot product off by {:.1e}", report.dot_error);
        for size in [3, 33] {
            let sizes = small_sizes(&model, size);
            let every = EngineOptions { checkpoint_every: Some(3), ..EngineOptions::default() };
            let worst = compare(&model, &sizes, &options(scale), Backend::CRANELIFT, &every);
            compared += 1;
            if worst.error > 2e-3 {
                let case = single_precision(random_case(&model, &sizes, &options(scale)));
                let kink = is_at_a_kink(&model, &sizes, &case, worst.error);
                assert!(kink, "{name}, size {size}: {} is off by {:.1e}", worst.name, worst.error);
                println!("{name}, size {size}: {} is off by {:.1e}, a kink", worst.name, worst.error);
                aside += 1;
            }
        }
    }
    assert!(seen > 20, "the library has clips");
    assert!(aside * 20 <= compared, "{aside} of {compared} say nothing, for rounding decides them");
}

#[test]
fn resets_and_checkpoints_may_fall_anywhere() {
    let every = EngineOptions { checkpoint_every: Some(4), ..EngineOptions::default() };
    for (name, model) in all_specs() {
        let sizes = small_sizes(&model, 5);
        for (steps, reset_at) in [(3, None), (4, Some(1)), (5, Some(4)), (8, Some(4)), (9, Some(3))] {
            let options =
                Options { steps, state_scale: 0.3, reset_at, seed: steps as u64, ..Options::default() };
            let worst = compare(&model, &sizes, &options, Backend::CRANELIFT, &every);
            // Single precision through nine steps of recurrent products keeps three to four digits.
            assert!(
                worst.error < 1e-3,
                "{name}, {steps} steps, reset at {reset_at:?}: {} is off by {:.1e}",
                worst.name,
                worst.error
            );
        }
    }
}
