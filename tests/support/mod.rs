//! What several integration tests share.

#![allow(dead_code, reason = "each test binary uses a part")]

use compiler::gradcheck::{self, Case, Options, random_case};
use compiler::interp::{Interpreter, Tensor};
use compiler::ir::{InputId, Op, OutputId, Sizes, Value};
use compiler::model::Model;
use runtime::engine::{Backend, Bound, Engine, EngineOptions, Grads, Mode, RowState, Tape};
use std::collections::BTreeMap;
use std::io::Write;
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

/// Whether libtorch is built in; if not, it is said, past the test harness.
pub fn has_libtorch() -> bool {
    if !torch::BUILT_IN {
        let line = "NOT RUN: libtorch is not built in; tests/libtorch.sh builds it in and runs this";
        let _ = writeln!(std::io::stderr(), "{line}");
    }
    torch::BUILT_IN
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
#[derive(Clone, Debug, Default)]
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

/// In single precision.
pub fn narrow(x: &[f64]) -> Vec<f32> {
    x.iter().map(|v| *v as f32).collect()
}

/// How a row is run. None of it may change a result.
#[derive(Clone, Copy, Debug, Default)]
pub struct Manner {
    /// The length that is announced to the tape; the true one if absent.
    pub announced: Option<usize>,
    /// States are read on the way: twice, then not, and so on.
    pub peeks: bool,
    /// The inputs up to the next reset are given at once.
    pub ahead: bool,
}

/// Runs a case on an engine, forward and backward.
pub fn run_row(engine: &Engine, case: &Case) -> RowResult {
    run_in_manner(engine, case, Manner::default())
}

/// Runs a case on a fresh tape.
pub fn run_in_manner(engine: &Engine, case: &Case, manner: Manner) -> RowResult {
    let params: Vec<Vec<f32>> = case.params.iter().map(|p| narrow(p)).collect();
    let bound = engine.bind(&params).expect("parameters fit");
    let announced = manner.announced.unwrap_or(case.sequence.inputs.len());
    let mut tape = engine.tape(announced, Mode::Train);
    let mut grads = engine.grads();
    let mut row = run_on(&bound, &mut tape, &mut grads, case, manner);
    row.params = engine.finish(&bound, vec![grads]);
    row
}

/// Writes the inputs of a step.
pub fn feed(bound: &Bound<'_>, tape: &mut Tape, inputs: &[Tensor]) {
    for (k, x) in inputs.iter().enumerate() {
        bound.input_mut(tape, InputId(k as u32)).copy_from_slice(&narrow(x));
    }
}

/// All outputs of a step.
pub fn outputs_at(bound: &Bound<'_>, tape: &Tape, t: usize) -> Vec<Vec<f32>> {
    let count = bound.engine().model().outputs.len();
    (0..count).map(|k| bound.output(tape, t, OutputId(k as u32)).to_vec()).collect()
}

/// Runs a case on a tape that may have been used before; the gradients of the parameters stay in
/// `grads`.
pub fn run_on(
    bound: &Bound<'_>,
    tape: &mut Tape,
    grads: &mut Grads,
    case: &Case,
    manner: Manner,
) -> RowResult {
    let model = bound.engine().model();
    let steps = case.sequence.inputs.len();
    let initial = RowState { states: case.sequence.initial.iter().map(|s| narrow(s)).collect() };
    bound.begin(tape, Some(&initial));
    for (t, inputs) in case.sequence.inputs.iter().enumerate() {
        if case.sequence.resets[t] {
            bound.reset(tape, Some(&initial));
        }
        if manner.ahead {
            let starts_here = t == 0 || case.sequence.resets[t];
            let rest = case.sequence.resets.iter().skip(t + 1).take_while(|reset| !**reset).count();
            if starts_here {
                let mut write = |k: usize, input: InputId, x: &mut [f32]| {
                    x.copy_from_slice(&narrow(&case.sequence.inputs[t + k][input.index()]));
                };
                bound.forward(tape, rest + 1, &mut write);
            }
            continue;
        }
        feed(bound, tape, inputs);
        if manner.peeks && t % 3 != 2 {
            bound.state(tape);
        }
        bound.step(tape);
    }
    let outputs = (0..steps).map(|t| outputs_at(bound, tape, t)).collect();
    let penalties = (0..steps).map(|t| bound.penalty(tape, t)).collect();
    let states = bound.state(tape).states;
    for (t, bars) in case.bars.outputs.iter().enumerate() {
        for (k, bar) in bars.iter().enumerate() {
            bound.output_bar_mut(tape, t, OutputId(k as u32)).copy_from_slice(&narrow(bar));
        }
    }
    let last = RowState { states: case.bars.last.iter().map(|s| narrow(s)).collect() };
    bound.backward(tape, grads, case.bars.penalty as f32, Some(&last));
    let inputs = (0..steps)
        .map(|t| {
            (0..model.inputs.len())
                .map(|k| bound.input_bar(tape, t, InputId(k as u32)).map(<[f32]>::to_vec))
                .collect()
        })
        .collect();
    let initial = bound.init_bar(tape).states;
    RowResult { outputs, penalties, states, params: vec![], initial, inputs }
}

/// A result as bits, tensor by tensor, with the two zeros taken as one: the sums of an empty
/// stretch of time may give either.
pub fn bits(row: &RowResult) -> Vec<(String, Vec<u32>)> {
    let of = |x: &[f32]| x.iter().map(|v| (v + 0.0).to_bits()).collect::<Vec<u32>>();
    let mut found = vec![("penalty".to_owned(), of(&row.penalties))];
    for (t, step) in row.outputs.iter().enumerate() {
        found.extend(step.iter().enumerate().map(|(k, x)| (format!("output {k} of step {t}"), of(x))));
    }
    for (t, step) in row.inputs.iter().enumerate() {
        let bars = step.iter().enumerate().filter_map(|(k, x)| Some((k, x.as_ref()?)));
        found.extend(bars.map(|(k, x)| (format!("gradient of input {k} of step {t}"), of(x))));
    }
    for (what, tensors) in [
        ("state", &row.states),
        ("gradient of initial state", &row.initial),
        ("gradient of parameter", &row.params),
    ] {
        found.extend(tensors.iter().enumerate().map(|(k, x)| (format!("{what} {k}"), of(x))));
    }
    found
}

/// A case with the numbers that single precision has.
pub fn single_precision(mut case: Case) -> Case {
    let round = |x: &mut Tensor| *x = Arc::new(x.iter().map(|v| f64::from(*v as f32)).collect());
    let sequence = &mut case.sequence;
    case.params.iter_mut().chain(&mut sequence.initial).chain(&mut case.bars.last).for_each(round);
    sequence.inputs.iter_mut().chain(&mut case.bars.outputs).flatten().for_each(round);
    case
}

/// Runs a random case on an engine and on the interpreter.
pub fn compare(
    model: &Arc<Model>,
    sizes: &Sizes,
    options: &Options,
    backend: Backend,
    engine_options: &EngineOptions,
) -> Worst {
    // The engine sees single precision; the interpreter gets the same numbers.
    let case = single_precision(random_case(model, sizes, options));
    let engine = Engine::new(model.clone(), sizes.clone(), backend, engine_options).expect("it compiles");
    compare_case(model, &engine, &case)
}

/// Runs a case on an engine and on the interpreter.
pub fn compare_case(model: &Arc<Model>, engine: &Engine, case: &Case) -> Worst {
    let sizes = engine.sizes();
    let found = run_row(engine, case);
    let interpreter = Interpreter::new(model.clone(), sizes.clone());
    let run = interpreter.run(&case.params, &case.sequence);
    let row = interpreter.backward(&case.sequence, &run, &case.bars);
    // The case gives every initial state, so learned ones have no part in it.
    let unlearned: Vec<Vec<f64>> = row.initial.iter().map(|x| vec![0.0; x.len()]).collect();
    let params = interpreter.finish(&case.params, &row.boundary, &unlearned);
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

/// Whether the gradient of a case is decided by rounding. So it is where a change of the parameters
/// in the seventh digit changes the gradient about as much as machine code differs, and where a clip
/// is so close to its bound that single precision cannot tell (a weight at its bound that takes an
/// increment of 1e-9 is still at its bound in single precision, and passes no gradient).
pub fn is_at_a_kink(model: &Arc<Model>, sizes: &Sizes, case: &Case, error: f64) -> bool {
    let interpreter = Interpreter::new(model.clone(), sizes.clone());
    let run = interpreter.run(&case.params, &case.sequence);
    let at_a_bound = |values: &[Option<Tensor>]| {
        model.step.values().any(|(_, instruction)| {
            let Op::Clip { x, low, high } = instruction.op else { return false };
            let at = |v: Value| values[v.index()].clone().expect("it is evaluated");
            let bounds = [at(low)[0], at(high)[0]];
            let close = |x: f64, b: f64| x != b && (x - b).abs() < 1.2e-7 * b.abs();
            at(x).iter().any(|x| bounds.iter().any(|b| close(*x, *b)))
        })
    };
    if run.values.iter().any(|values| at_a_bound(values)) {
        return true;
    }
    let gradient = |case: &Case| gradcheck::gradient(&interpreter, case);
    let here = gradient(case);
    let mut random = gradcheck::Random::new(99);
    (0..6).any(|_| {
        let mut moved = case.clone();
        for x in moved.params.iter_mut().chain(&mut moved.sequence.initial) {
            *x = Arc::new(x.iter().map(|v| v * (1.0 + 1e-6 * random.symmetric())).collect());
        }
        gradient(&moved).iter().zip(&here).any(|((_, a), (_, b))| {
            let norm = b.iter().map(|x| x * x).sum::<f64>().sqrt().max(0.1);
            let off = a.iter().zip(b).map(|(a, b)| (a - b).powi(2)).sum::<f64>().sqrt();
            off / norm > 0.1 * error
        })
    })
}
