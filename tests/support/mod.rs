//! What several integration tests share.

#![allow(dead_code, reason = "each test binary uses a part")]

use compiler::gradcheck::{Case, Options, random_case};
use compiler::interp::Interpreter;
use compiler::ir::{InputId, OutputId, Sizes};
use compiler::model::Model;
use runtime::engine::{Backend, Engine, EngineOptions, Mode, RowState};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The workspace.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).to_path_buf()
}

/// All files below a folder with this extension, sorted.
pub fn files(folder: &str, extension: &str) -> Vec<PathBuf> {
    let mut found = vec![];
    let mut todo = vec![root().join(folder)];
    while let Some(path) = todo.pop() {
        if path.is_dir() {
            let entries = std::fs::read_dir(&path).expect("the folder is readable");
            todo.extend(entries.map(|e| e.expect("an entry").path()));
        } else if path.extension().is_some_and(|e| e == extension) {
            found.push(path);
        }
    }
    found.sort();
    found
}

/// Every model of the library.
pub fn all_specs() -> Vec<(String, Arc<Model>)> {
    let mut found = vec![];
    for path in files("specs", "bpm") {
        let text = std::fs::read_to_string(&path).expect("the spec is readable");
        let checked = compiler::check::check(&text);
        assert!(
            checked.diagnostics.iter().all(|d| !d.is_error()),
            "{}: {:?}",
            path.display(),
            checked.diagnostics
        );
        for model in checked.models {
            found.push((model.name.clone(), Arc::new(model)));
        }
    }
    assert!(found.len() > 20, "the library has specs");
    found
}

/// The model of a spec in the library.
pub fn spec(path: &str) -> Arc<Model> {
    let text = std::fs::read_to_string(root().join("specs").join(path)).expect("the spec is readable");
    model_of(&text)
}

/// The last model of a text.
pub fn model_of(text: &str) -> Arc<Model> {
    let checked = compiler::check::check(text);
    assert!(checked.diagnostics.iter().all(|d| !d.is_error()), "{:?}", checked.diagnostics);
    Arc::new(checked.models.into_iter().next_back().expect("a model"))
}

/// Odd sizes near `n`, different for every axis.
pub fn small_sizes(model: &Model, n: usize) -> Sizes {
    let mut bound = BTreeMap::new();
    for (k, axis) in model.axes.named.iter().enumerate() {
        bound.insert(axis.name.clone(), n + k % 3);
    }
    Sizes::bind(&model.axes, &bound).expect("sizes for every axis")
}

/// The tensor that agrees least.
#[derive(Clone, Debug)]
pub struct Worst {
    /// Its name.
    pub name: String,
    /// Its relative error.
    pub error: f64,
}

impl Worst {
    /// Takes another tensor into account. The error is relative to the norm of the expected tensor,
    /// or to `floor` if that is larger.
    pub fn see(&mut self, name: &str, found: &[f32], expected: &[f64], floor: f64) {
        assert_eq!(found.len(), expected.len(), "{name} has the expected size");
        assert!(found.iter().all(|x| x.is_finite()), "{name} is finite: {found:?} expected {expected:?}");
        let norm = expected.iter().map(|x| x * x).sum::<f64>().sqrt();
        let off = found.iter().zip(expected).map(|(f, e)| (f64::from(*f) - e).powi(2)).sum::<f64>().sqrt();
        let error = off / norm.max(floor);
        if self.error < error {
            *self = Worst { name: name.to_owned(), error };
        }
    }
}

/// Everything that one row gives on an engine.
pub struct RowResult {
    /// By step and output.
    pub outputs: Vec<Vec<Vec<f32>>>,
    /// Penalties by step.
    pub penalties: Vec<f32>,
    /// Final states.
    pub states: Vec<Vec<f32>>,
    /// Gradients of the parameters.
    pub params: Vec<Vec<f32>>,
    /// Of the initial states.
    pub initial: Vec<Vec<f32>>,
    /// Of the inputs, by step.
    pub inputs: Vec<Vec<Option<Vec<f32>>>>,
}

fn narrow(x: &[f64]) -> Vec<f32> {
    x.iter().map(|v| *v as f32).collect()
}

/// Runs a case on an engine, forward and backward.
pub fn run_row(engine: &Engine, case: &Case) -> RowResult {
    let model = engine.model();
    let params: Vec<Vec<f32>> = case.params.iter().map(|p| narrow(p)).collect();
    let bound = engine.bind(&params).expect("parameters fit");
    let steps = case.sequence.inputs.len();
    let initial = RowState { states: case.sequence.initial.iter().map(|s| narrow(s)).collect() };
    let mut tape = engine.tape(steps, Mode::Train);
    bound.begin(&mut tape, Some(&initial));
    for (t, inputs) in case.sequence.inputs.iter().enumerate() {
        if case.sequence.resets[t] {
            bound.reset(&mut tape, Some(&initial));
        }
        for (k, x) in inputs.iter().enumerate() {
            bound.input_mut(&mut tape, InputId(k as u32)).copy_from_slice(&narrow(x));
        }
        bound.step(&mut tape);
    }
    let outputs = (0..steps)
        .map(|t| {
            (0..model.outputs.len()).map(|k| bound.output(&tape, t, OutputId(k as u32)).to_vec()).collect()
        })
        .collect();
    let penalties = (0..steps).map(|t| bound.penalty(&mut tape, t)).collect();
    let states = bound.state(&mut tape).states;
    for (t, bars) in case.bars.outputs.iter().enumerate() {
        for (k, bar) in bars.iter().enumerate() {
            bound.output_bar_mut(&mut tape, t, OutputId(k as u32)).copy_from_slice(&narrow(bar));
        }
    }
    let mut grads = engine.grads();
    let last = RowState { states: case.bars.last.iter().map(|s| narrow(s)).collect() };
    bound.backward(&mut tape, &mut grads, case.bars.penalty as f32, Some(&last));
    let inputs = (0..steps)
        .map(|t| {
            (0..model.inputs.len())
                .map(|k| bound.input_bar(&tape, t, InputId(k as u32)).map(<[f32]>::to_vec))
                .collect()
        })
        .collect();
    let initial = bound.init_bar(&tape).states;
    let params = engine.finish(&bound, vec![grads]);
    RowResult { outputs, penalties, states, params, initial, inputs }
}

/// Runs a random case on an engine and on the interpreter.
pub fn compare(
    model: &Arc<Model>,
    sizes: &Sizes,
    options: &Options,
    backend: Backend,
    engine_options: &EngineOptions,
) -> Worst {
    let mut case = random_case(model, sizes, options);
    // The engine sees single precision; the interpreter gets the same numbers.
    for x in case.params.iter_mut().chain(&mut case.sequence.initial) {
        *x = Arc::new(x.iter().map(|v| f64::from(*v as f32)).collect());
    }
    let engine = Engine::new(model.clone(), sizes.clone(), backend, engine_options).expect("it compiles");
    let found = run_row(&engine, &case);
    let interpreter = Interpreter::new(model.clone(), sizes.clone());
    let run = interpreter.run(&case.params, &case.sequence);
    let row = interpreter.backward(&case.sequence, &run, &case.bars);
    let params = interpreter.finish(&case.params, &row.boundary, &row.initial);
    let mut worst = Worst { name: String::new(), error: 0.0 };
    let steps = case.sequence.inputs.len();
    for t in 0..steps {
        for (k, o) in model.outputs.iter().enumerate() {
            worst.see(
                &format!("out.{} at {t}", o.name),
                &found.outputs[t][k],
                &interpreter.output(&run, t, k),
                0.1,
            );
        }
        worst.see("penalty", &[found.penalties[t]], &[interpreter.penalty(&run, t)], 0.1);
        for (k, i) in model.inputs.iter().enumerate() {
            match (&found.inputs[t][k], &row.inputs[t][k]) {
                (Some(f), Some(e)) => worst.see(&format!("grad.in.{} at {t}", i.name), f, e, 0.1),
                (None, None) => {}
                other => panic!("input {}: {other:?}", i.name),
            }
        }
    }
    for (k, s) in model.states.iter().enumerate() {
        worst.see(&format!("state.{}", s.name), &found.states[k], &run.states[steps][k], 0.1);
        worst.see(&format!("grad.init.{}", s.name), &found.initial[k], &row.initial[k], 0.1);
    }
    for (k, p) in model.params.iter().enumerate() {
        worst.see(&format!("grad.{}", p.name), &found.params[k], &params[k], 0.1);
    }
    worst
}
