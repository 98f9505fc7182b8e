//! Matrix states as events: where it is legal, it is the same model; where it is not, the reason is
//! said.

mod support;

use compiler::autodiff;
use compiler::form::{Form, choose};
use compiler::gradcheck::{self, Case, Options, random_case};
use compiler::interp::Interpreter;
use compiler::ir::{self, Sizes};
use compiler::loops::{self, LowerOptions};
use compiler::model::{Constraint, Model, Prefer};
use compiler::passes::events;
use runtime::engine::{Backend, Engine, EngineOptions, Mode};
use std::collections::BTreeMap;
use std::sync::Arc;
use support::{
    Manner, Worst, all_specs, bits, feed, model_of, narrow, outputs_at, run_in_manner, run_row,
    single_precision, spec,
};

/// A network with a plastic matrix, its equations given.
fn network(declared: &str, equations: &str) -> Arc<Model> {
    model_of(&format!(
        "spec s {{
  axis I = 3, N = 6
  in u[I]
  in mod reward
  learn Wx[N,I], W[N,N] ~ uniform(-0.5, 0.5)
  learn eta = 0.3
  learn a[N], g[N] ~ uniform(0.5, 1.5)
  state y[N] = 0
{declared}
{equations}
  out y'
}}"
    ))
}

/// Models that are legal for one reason each.
fn legal() -> Vec<(&'static str, Arc<Model>)> {
    let plain = "  plastic H[N,N] = 0 unbounded";
    let traced = "  plastic H[N,N] = 0 unbounded\n  trace E[N,N] = 0";
    let hebb = "  H'[j,i] = (1 - eta) * H + eta * y'[j] * y[i]";
    let y = |read: &str| format!("  y' = tanh(Wx @ u + {read})\n{hebb}");
    vec![
        ("scalar", network(plain, &y("(W + 0.7 * H) @ y"))),
        ("per post neuron", network(plain, &y("(W + a[j] * H) @ y"))),
        ("per pre neuron", network(plain, &y("(W + a[i] * H) @ y"))),
        ("both", network(plain, &y("(W + a[j] * g[i] * H) @ y + H^T @ y"))),
        (
            "low rank",
            network(
                &format!("  learn alpha[N,N] rank 2 ~ uniform(-1, 1)\n{plain}"),
                &y("(W + alpha * H) @ y"),
            ),
        ),
        (
            "retroactive",
            network(
                traced,
                "  y' = tanh(Wx @ u + (W + a[j] * H) @ y)\n  modulator m = tanh(a . y')\n  H'[j,i] = H + m * E\n  \
                 E'[j,i] = (1 - eta) * E + eta * y'[j] * y[i]",
            ),
        ),
        (
            "post modulator",
            network(
                plain,
                "  y' = tanh(Wx @ u + (W + H) @ y)\n  modulator m[N] = tanh(a * y')\n  \
                 H'[j,i] = 0.9 * H + m[j] * y'[j] * y[i] - 0.1 * y[j] * y[i]",
            ),
        ),
        (
            "read after the write",
            network(
                plain,
                "  k = tanh(Wx @ u)\n  r = k - H @ k\n  H'[j,i] = H + eta * r[j] * k[i]\n  \
                 y' = tanh(H' @ y + k)",
            ),
        ),
        (
            "beside a clipped matrix",
            network(
                &format!("{plain}\n  plastic K[N,N] = 0"),
                "  y' = tanh(Wx @ u + (W + a[j] * H + K) @ y)\n  H'[j,i] = H + eta * y'[j] * y[i]\n  \
                 K'[j,i] = clip(K + eta * y'[j] * y[i], -0.2, 0.2)",
            ),
        ),
        (
            "two kinds of products",
            network(
                &traced.replace("trace E[N,N] = 0", "trace E[N,N] = 0\n  trace x[N] = 0"),
                "  x' = 0.8 * x + 0.2 * y\n  y' = tanh(Wx @ u + (W + a[j] * H - 0.3 * E) @ y)\n  \
                 H'[j,i] = 0.9 * H + 0.2 * E + y'[j] * x[i] - y[j] * x[i]\n  \
                 E'[j,i] = 0.7 * E - 0.1 * H + eta * x[j] * y[i]",
            ),
        ),
        (
            "held",
            network(
                plain,
                "  y' = tanh(Wx @ u + (W + H) @ y)\n  H'[j,i] = where(reward > 0, H + 0.1 * y'[j] * y[i], 0.5 * H)",
            ),
        ),
    ]
}

/// The library's models of which some matrix can be kept as events.
fn library() -> Vec<(String, Arc<Model>)> {
    all_specs().into_iter().filter(|(_, m)| !events::legality(m, Prefer::Auto).states.is_empty()).collect()
}

/// The model with all events that are legal.
fn kept(model: &Model, steps: usize) -> Option<Model> {
    events::rewrite(model, &events::legality(model, Prefer::Events).states, steps)
}

fn sizes(model: &Model, n: usize) -> Sizes {
    let named = model.axes.named.iter().enumerate();
    let bound: BTreeMap<String, usize> = named.map(|(k, a)| (a.name.clone(), n + k % 3)).collect();
    Sizes::bind(&model.axes, &bound).expect("sizes for every axis")
}

/// A case that starts where an episode starts, with cotangents of outputs alone.
fn case_of(model: &Arc<Model>, sizes: &Sizes, options: &Options) -> Case {
    let mut case = random_case(model, sizes, options);
    case.bars.last = vec![];
    // Weak recurrence, so that rounding does not grow from step to step.
    for (p, about) in case.params.iter_mut().zip(&model.params) {
        if about.constraint == Constraint::Free {
            *p = Arc::new(p.iter().map(|x| 0.3 * x).collect());
        }
    }
    case.sequence.initial = Interpreter::new(model.clone(), sizes.clone()).initial(&case.params);
    case
}

/// The same case for the model with events.
fn moved(case: &Case, kept: &Arc<Model>, sizes: &Sizes) -> Case {
    let mut case = case.clone();
    case.sequence.initial = Interpreter::new(kept.clone(), sizes.clone()).initial(&case.params);
    case
}

fn relative(found: &[f64], expected: &[f64]) -> f64 {
    let norm = expected.iter().map(|x| x * x).sum::<f64>().sqrt();
    let off = found.iter().zip(expected).map(|(f, e)| (f - e).powi(2)).sum::<f64>().sqrt();
    off / norm.max(1e-3)
}

/// Outputs, states and gradients of both forms, in double precision.
fn compare(name: &str, model: &Arc<Model>, options: &Options) {
    let dense_sizes = sizes(model, 5);
    let kept = Arc::new(kept(model, options.steps).unwrap_or_else(|| panic!("{name} is legal")));
    let kept_sizes = sizes(&kept, 5);
    let case = case_of(model, &dense_sizes, options);
    let other = moved(&case, &kept, &kept_sizes);
    let (dense, log) = (
        Interpreter::new(model.clone(), dense_sizes.clone()),
        Interpreter::new(kept.clone(), kept_sizes.clone()),
    );
    let (a, b) = (dense.run(&case.params, &case.sequence), log.run(&other.params, &other.sequence));
    let close = |what: &str, found: &[f64], expected: &[f64]| {
        let error = relative(found, expected);
        assert!(error < 1e-12, "{name}: {what} differs by {error:e}");
    };
    for t in 0..options.steps {
        for (k, o) in model.outputs.iter().enumerate() {
            close(&format!("{} at {t}", o.name), &log.output(&b, t, k), &dense.output(&a, t, k));
        }
    }
    let matrices = kept.events.iter().flat_map(|e| &e.matrices);
    let mut norm = 0.0;
    let last: Vec<Vec<f64>> = b.states[options.steps].iter().map(|x| x.to_vec()).collect();
    for matrix in matrices {
        let s = model.state(&matrix.name).expect("the state");
        let expected = &a.states[options.steps][s.index()];
        norm += expected.iter().map(|x| x * x).sum::<f64>();
        close(&matrix.name, &events::recall(matrix, &kept_sizes, &last), expected);
    }
    assert!(1e-6 < norm, "{name}: nothing was learned");
    let (x, y) = (gradcheck::gradient(&dense, &case), gradcheck::gradient(&log, &other));
    for (p, (x, y)) in model.params.iter().zip(x.iter().zip(&y)) {
        close(&format!("the gradient of {}", p.name), &y.1, &x.1);
    }
}

#[test]
fn both_forms_are_one_model() {
    let models = legal().into_iter().map(|(n, m)| (n.to_owned(), m)).chain(library());
    for (name, model) in models {
        for (steps, reset_at) in [(7, None), (40, Some(13))] {
            compare(&name, &model, &Options { steps, reset_at, seed: 5, ..Options::default() });
        }
    }
}

/// Outputs and gradients of machine code on the log against the dense matrices in double precision.
fn compare_machine_code(name: &str, model: &Arc<Model>, n: usize, options: &Options, backend: Backend) {
    let kept = Arc::new(kept(model, options.steps).expect("it is legal"));
    let (dense_sizes, kept_sizes) = (sizes(model, n), sizes(&kept, n));
    let case = single_precision(case_of(model, &dense_sizes, options));
    let other = moved(&case, &kept, &kept_sizes);
    let dense = Interpreter::new(model.clone(), dense_sizes.clone());
    let run = dense.run(&case.params, &case.sequence);
    let gradient = gradcheck::gradient(&dense, &case);
    let engine = Engine::new(kept, kept_sizes, backend, &EngineOptions::default()).expect("it compiles");
    let row = run_row(&engine, &other);
    let mut worst = Worst { name: String::new(), error: 0.0 };
    for t in 0..options.steps {
        for (k, o) in model.outputs.iter().enumerate() {
            worst.see(&format!("{} at {t}", o.name), &row.outputs[t][k], &dense.output(&run, t, k), 0.1);
        }
    }
    for (k, p) in model.params.iter().enumerate() {
        // Learned initial values are given by the case: they have no part in its gradients.
        if p.learned && !p.name.ends_with(".init") {
            worst.see(&p.name, &row.params[k], &gradient[k].1, 0.1);
        }
    }
    assert!(worst.error < 2e-5, "{name} on {backend:?}, n = {n}: {worst:?}");
}

#[test]
fn machine_code_agrees() {
    let models = legal().into_iter().map(|(n, m)| (n.to_owned(), m)).chain(library());
    for (name, model) in models {
        for backend in [Backend::fastest(), Backend::CRANELIFT] {
            // With n = 32, matrices and logs have the same sizes.
            for (n, steps, reset_at) in [(3, 1, None), (5, 33, Some(9)), (17, 70, Some(33)), (32, 25, None)] {
                let options = Options { steps, reset_at, seed: 7, ..Options::default() };
                compare_machine_code(&name, &model, n, &options, backend);
            }
        }
    }
}

#[test]
fn the_gradients_of_models_of_events_are_right() {
    let models = legal().into_iter().map(|(n, m)| (n.to_owned(), m)).chain(library());
    for (name, model) in models {
        let kept = Arc::new(kept(&model, 8).expect("it is legal"));
        let sizes = sizes(&kept, 4);
        let report = gradcheck::check(&kept, &sizes, &Options { state_scale: 0.3, ..Options::default() });
        assert!(report.dot_error < 1e-9, "{name}: dot product {:e}", report.dot_error);
        // No gradient goes into the clock.
        let rows = report.rows.iter().filter(|r| r.name != "grad.init.events.free");
        let wrong: Vec<_> = rows.filter(|r| r.error.is_nan() || 1e-5 < r.error).collect();
        assert!(wrong.is_empty(), "{name}: {wrong:?}");
    }
}

#[test]
fn what_needs_its_matrix_is_told_why() {
    let check = |model: &Model, expected: &[(&str, &str)]| {
        let legality = events::legality(model, Prefer::Auto);
        assert!(legality.states.is_empty(), "{}: {:?}", model.name, legality.states);
        let found: Vec<(&str, &str)> = legality
            .refused
            .iter()
            .map(|(s, why)| (model.states[s.index()].name.as_str(), why.as_str()))
            .collect();
        assert_eq!(found.len(), expected.len(), "{found:?}");
        for ((name, why), (wanted, part)) in found.iter().zip(expected) {
            assert!(name == wanted && why.contains(part), "{}: {found:?}", model.name);
        }
    };
    check(&spec("backpropamine/plastic_alpha_scalar.bpm"), &[("H", "it is clipped")]);
    check(&spec("backpropamine/simple_noclip.bpm"), &[("H", "`alpha` has a number for every synapse")]);
}

#[test]
fn the_library_has_models_of_events() {
    let found: Vec<String> = library().into_iter().map(|(name, _)| name).collect();
    for name in ["hebb_homogenous", "clark_abbott", "delta_rnn", "deltanet", "hebbff", "recurrent_delta"] {
        assert!(found.iter().any(|f| f == name), "{found:?}");
    }
}

/// A model that decides between its forms.
fn undecided(words: &str) -> Arc<Model> {
    let equations = "  y' = tanh(Wx @ u + (W + a[j] * H) @ y)\n  H'[j,i] = H + eta * y'[j] * y[i]";
    network(&format!("  plastic H[N,N] = 0 unbounded {words}"), equations)
}

fn form(model: &Model, n: usize, steps: usize, prefer: Prefer) -> (bool, Form) {
    let bound = BTreeMap::from([("I".to_owned(), 17), ("N".to_owned(), n)]);
    let (kept, form) = choose(model, &bound, steps, prefer).expect("sizes for every axis");
    assert_eq!(kept.is_some(), !form.events.is_empty());
    (kept.is_some(), form)
}

#[test]
fn the_estimate_the_spec_and_the_user_decide() {
    let model = undecided("");
    let taken = |model: &Model, n, steps, prefer| form(model, n, steps, prefer).0;
    // Few steps of a large network are few events; many steps of a small one are many.
    assert!(taken(&model, 400, 50, Prefer::Auto));
    assert!(!taken(&model, 50, 2000, Prefer::Auto));
    assert!(!taken(&model, 400, 50, Prefer::Dense));
    assert!(taken(&model, 50, 2000, Prefer::Events));
    assert!(!taken(&undecided("dense"), 400, 50, Prefer::Auto));
    assert!(taken(&undecided("dense"), 400, 50, Prefer::Events));
    assert!(taken(&undecided("events"), 50, 2000, Prefer::Auto));
    assert!(!taken(&undecided("events"), 50, 2000, Prefer::Dense));
    let said = form(&model, 400, 50, Prefer::Auto).1.reasons().join("; ");
    assert!(said.starts_with("`H` kept as events; a step forward and backward: "), "{said}");
    let said = form(&spec("backpropamine/simple_noclip.bpm"), 9, 5, Prefer::Auto);
    assert!(said.1.reasons()[0].contains("`alpha` has a number for every synapse"), "{:?}", said.1);
}

#[test]
fn printed_models_of_events_read_back() {
    for (name, model) in library() {
        let model = compiler::passes::optimise(&kept(&model, 40).expect("it is legal"));
        let sizes = sizes(&model, 5);
        for (f, what) in [(&model.step, "step"), (&autodiff::step(&model), "adjoint")] {
            let text = ir::print(f, &model, what);
            assert_eq!(
                ir::parse(&text, &model).map(|(_, f)| ir::print(&f, &model, what)),
                Ok(text),
                "{name}"
            );
        }
        let options = LowerOptions { input_bars: true };
        let program = loops::lower(&model, &sizes, &autodiff::step(&model), options);
        assert_eq!(loops::verify(&program), Ok(()), "{name}");
        assert_eq!(loops::parse(&loops::print(&program)), Ok(program), "{name}");
    }
}

#[test]
fn inference_gives_the_outputs_of_training() {
    let model = Arc::new(kept(&undecided(""), 40).expect("it is legal"));
    let sizes = sizes(&model, 9);
    let engine = Engine::new(model.clone(), sizes.clone(), Backend::fastest(), &EngineOptions::default());
    let engine = engine.expect("it compiles");
    let options = Options { steps: 100, reset_at: Some(36), seed: 2, ..Options::default() };
    let case = case_of(&model, &sizes, &options);
    let params: Vec<Vec<f32>> = case.params.iter().map(|p| narrow(p)).collect();
    let bound = engine.bind(&params).expect("parameters fit");
    let run = |mode: Mode| -> Vec<Vec<f32>> {
        let mut tape = engine.tape(options.steps, mode);
        let mut outputs = vec![];
        // Twice, so that the second row finds what the first has left.
        for _ in 0..2 {
            outputs.clear();
            bound.begin(&mut tape, None);
            for (t, inputs) in case.sequence.inputs.iter().enumerate() {
                if t > 0 && t % 36 == 0 {
                    bound.reset(&mut tape, None);
                }
                feed(&bound, &mut tape, inputs);
                bound.step(&mut tape);
                outputs.extend(outputs_at(&bound, &tape, t));
            }
        }
        outputs
    };
    assert_eq!(run(Mode::Infer), run(Mode::Train));
}

#[test]
fn a_sequence_that_is_known_gives_what_its_steps_give() {
    let models = legal().into_iter().map(|(name, model)| (name.to_owned(), model)).chain(library());
    let mut seen = 0;
    for (name, model) in models {
        let Some(model) = kept(&model, 40).map(Arc::new) else { continue };
        let sizes = sizes(&model, 9);
        for backend in [Backend::CRANELIFT, Backend::fastest()] {
            let engine = Engine::new(model.clone(), sizes.clone(), backend, &EngineOptions::default());
            let engine = engine.expect("it compiles");
            for reset_at in [None, Some(14)] {
                let options = Options { steps: 37, reset_at, seed: 6, ..Options::default() };
                let case = case_of(&model, &sizes, &options);
                let by_steps = bits(&run_in_manner(&engine, &case, Manner::default()));
                let at_once =
                    bits(&run_in_manner(&engine, &case, Manner { ahead: true, ..Manner::default() }));
                for ((what, a), (_, b)) in at_once.iter().zip(&by_steps) {
                    assert_eq!(a, b, "{name}: {what} depends on whether inputs are known");
                }
                seen += 1;
            }
        }
    }
    assert!(seen > 40, "{seen}");
}

#[test]
fn a_full_log_takes_no_more() {
    let model = Arc::new(kept(&undecided(""), 32).expect("it is legal"));
    for backend in [Backend::fastest(), Backend::Interp] {
        let steps = |steps| {
            let (model, sizes) = (model.clone(), sizes(&model, 3));
            move || {
                let engine = Engine::new(model.clone(), sizes.clone(), backend, &EngineOptions::default());
                let options = Options { steps, ..Options::default() };
                run_row(&engine.expect("it compiles"), &case_of(&model, &sizes, &options));
            }
        };
        assert!(std::panic::catch_unwind(steps(32)).is_ok(), "{backend:?}: there is room for 32 steps");
        assert!(std::panic::catch_unwind(steps(33)).is_err(), "{backend:?}: there is room for 32 steps");
    }
}
