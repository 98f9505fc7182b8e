//! Sequences against the exact interface, cut and whole, with one thread and with several.

use super::*;
use crate::engine::{Backend, Engine, EngineOptions};
use crate::exact::{self, Dtype};
use crate::params::ParamStore;
use crate::tensors::{Tensor, Tensors};
use compiler::form::Prefer;
use std::collections::BTreeMap;

/// Learned and constant initial values, a constraint, a penalty, a matrix, an input without gradient.
const SPEC: &str = "spec cell {
  axis I = 3, N = 5, A = 2
  in u[I]
  in target s
  learn Wx[N,I], Wo[A,N], wm[N] ~ linear
  learn W[N,N], alpha[N,N] ~ uniform(-0.5, 0.5)
  learn eta in (0, 1) = 0.3
  fixed g = 0.9
  state y[N] = learn
  plastic H[N,N] = 0
  y' = tanh(Wx @ u + g * ((W + alpha * H) @ y) + 0.1 * s)
  modulator m = tanh(wm . y')
  H'[j,i] = clip(H + eta * m * y'[j] * y[i], -1, 1)
  out a[A] = Wo @ y'
  out b = sum(y')
  penalty 0.3 * mean(y' * y')
}";

const T: usize = 5;
const B: usize = 3;

struct Case {
    engine: Arc<Engine>,
    params: Vec<Vec<f64>>,
    inputs: Vec<Vec<f64>>,
    states: Vec<Vec<f64>>,
    outputs: Vec<Vec<f64>>,
}

fn wave(count: usize, tag: f64) -> Vec<f64> {
    // Exact in single precision.
    (0..count).map(|k| f64::from((0.6 * (0.7 * k as f64 + tag).sin()) as f32)).collect()
}

fn case(backend: Backend) -> Case {
    let spec = crate::spec::compile("cell.bpm", SPEC.into(), None).unwrap_or_else(|e| panic!("{e:?}"));
    let model = spec.model;
    let sizes = Sizes::bind(&model.axes, &BTreeMap::new()).expect("sizes");
    let store = ParamStore::new(&model, &sizes, 4, &BTreeMap::new()).expect("parameters");
    let mut params: Vec<Vec<f64>> =
        store.values().iter().map(|x| x.iter().map(|x| f64::from(*x)).collect()).collect();
    let y = model.params.iter().position(|p| p.name == "y.init").expect("y.init");
    params[y] = wave(5, 3.0);
    let cells = |shape: Shape, tag: usize| wave(T * B * sizes.count(shape), tag as f64);
    let inputs = model.inputs.iter().enumerate().map(|(k, i)| cells(i.shape, k)).collect();
    let outputs = model.outputs.iter().enumerate().map(|(k, o)| cells(o.shape, 10 + k)).collect();
    let state = |(k, s): (usize, &compiler::model::State)| wave(B * sizes.count(s.shape), 20.0 + k as f64);
    let states = model.states.iter().enumerate().map(state).collect();
    let engine =
        Engine::new(Arc::clone(&model), sizes, backend, &EngineOptions::default()).expect("an engine");
    Case { engine: Arc::new(engine), params, inputs, states, outputs }
}

fn lend<N>(arrays: &[Vec<N>]) -> Vec<&[N]> {
    arrays.iter().map(Vec::as_slice).collect()
}

fn narrow(arrays: &[Vec<f64>]) -> Vec<Vec<f32>> {
    arrays.iter().map(|x| x.iter().map(|x| *x as f32).collect()).collect()
}

/// Outputs, states, penalty, gradients, as one list of numbers in double precision.
type Found = (Results<f64>, Gradients<f64>);

fn widen_all(x: Vec<Vec<f32>>) -> Vec<Vec<f64>> {
    x.into_iter().map(|x| x.into_iter().map(f64::from).collect()).collect()
}

/// What is asked of a case.
#[derive(Clone, Default)]
struct Question {
    resets: Vec<bool>,
    carried: bool,
    last: bool,
    penalty: f64,
}

fn go<M: Machine>(
    machine: M,
    [inputs, states, outputs]: [&[Vec<M::Number>]; 3],
    question: &Question,
    threads: usize,
) -> (Results<M::Number>, Gradients<M::Number>)
where
    M::Number: PartialEq + std::fmt::Debug,
{
    let some = |x: &[Vec<M::Number>], wanted: bool| -> Vec<Option<Vec<M::Number>>> {
        x.iter().map(|x| wanted.then(|| x.clone())).collect()
    };
    let given_states = some(states, question.carried);
    let given = Given {
        steps: T,
        rows: B,
        inputs: inputs.iter().map(|x| Some(x.as_slice())).collect(),
        states: given_states.iter().map(Option::as_deref).collect(),
        resets: question.resets.clone(),
    };
    let machine = Arc::new(machine);
    let alone = infer(&*machine, &given, threads);
    let (results, mut kept) = forward(machine, &given, threads);
    assert_eq!(alone, results, "with and without a backward pass");
    let last = some(states, question.last);
    let bars = Cotangents {
        outputs: outputs.iter().map(|x| Some(x.as_slice())).collect(),
        states: last.iter().map(Option::as_deref).collect(),
        penalty: question.penalty,
    };
    // Other cotangents leave nothing behind.
    let states = some(states, true);
    let states = states.iter().map(Option::as_deref).collect();
    let others = Cotangents { outputs: vec![None; outputs.len()], states, penalty: 3.0 };
    let other = kept.backward(&others, threads);
    let gradients = kept.backward(&bars, threads);
    assert_ne!(other, gradients);
    assert_eq!(other, kept.backward(&others, threads), "backward again");
    (results, gradients)
}

fn double(case: &Case, question: &Question) -> Found {
    let machine = Double::new(Arc::clone(&case.engine), &lend(&case.params)).expect("bound");
    go(machine, [&case.inputs, &case.states, &case.outputs], question, 2)
}

fn single(case: &Case, question: &Question, threads: usize) -> Found {
    let params = narrow(&case.params);
    let machine = Single::new(Arc::clone(&case.engine), &lend(&params)).expect("bound");
    let (inputs, states, outputs) = (narrow(&case.inputs), narrow(&case.states), narrow(&case.outputs));
    let (results, gradients) = go(machine, [&inputs, &states, &outputs], question, threads);
    let Results { outputs, states, penalty } = results;
    let results = Results { outputs: widen_all(outputs), states: widen_all(states), penalty };
    let Gradients { params, inputs, states } = gradients;
    let gradients =
        Gradients { params: widen_all(params), inputs: widen_all(inputs), states: widen_all(states) };
    (results, gradients)
}

fn close(what: &str, found: &[f64], expected: &[f64], tolerance: f64) {
    let norm = expected.iter().map(|x| x * x).sum::<f64>().sqrt().max(1e-9);
    let error = found.iter().zip(expected).map(|(x, y)| (x - y).powi(2)).sum::<f64>().sqrt();
    assert!(found.len() == expected.len() && error <= tolerance * norm, "{what}: {error} of {norm}");
}

fn all_close(found: &Found, expected: &Found, tolerance: f64) {
    let lists = |(r, g): &Found| {
        [
            r.outputs.clone(),
            r.states.clone(),
            vec![vec![r.penalty]],
            g.params.clone(),
            g.inputs.clone(),
            g.states.clone(),
        ]
    };
    for (n, (found, expected)) in lists(found).iter().zip(&lists(expected)).enumerate() {
        assert_eq!(found.len(), expected.len());
        for (k, (x, y)) in found.iter().zip(expected).enumerate() {
            close(&format!("list {n}, tensor {k}"), x, y, tolerance);
        }
    }
}

fn questions() -> Vec<Question> {
    let resets: Vec<bool> = [0, 1, 0, 0, 0, 1, 1, 0, 0, 0, 1, 0, 0, 0, 1].map(|r| r != 0).into();
    let mut all = vec![];
    for resets in [vec![], resets] {
        for (carried, last, penalty) in
            [(false, false, 0.0), (true, false, 1.5), (true, true, 0.0), (false, true, 2.0)]
        {
            all.push(Question { resets: resets.clone(), carried, last, penalty });
        }
    }
    all
}

/// `bpm run` says the same where it can say anything: without carried states, cotangents of states and penalties.
#[test]
fn the_exact_interface_agrees() {
    let case = case(Backend::Interp);
    for resets in [vec![], questions()[4].resets.clone()] {
        let question = Question { resets: resets.clone(), ..Question::default() };
        let (results, gradients) = double(&case, &question);
        let spec = crate::spec::compile("cell.bpm", SPEC.into(), None).unwrap_or_else(|e| panic!("{e:?}"));
        let (model, sizes) = (Arc::clone(&spec.model), case.engine.sizes().clone());
        let cells = |shape: Shape| [vec![T, B], sizes.dims(shape)].concat();
        let put =
            |name: &str, shape: Vec<usize>, x: &[f64]| (name.to_owned(), Tensor::f64(shape, x.to_vec()));
        let params = model.params.iter().zip(&case.params).map(|(p, x)| put(&p.name, sizes.dims(p.shape), x));
        let inputs = model.inputs.iter().zip(&case.inputs).map(|(i, x)| put(&i.name, cells(i.shape), x));
        let mut inputs: Tensors = inputs.collect();
        if !resets.is_empty() {
            let mask = resets.iter().map(|r| f64::from(u8::from(*r))).collect();
            inputs.insert("reset".into(), Tensor::f64(vec![T, B], mask));
        }
        let bars = model.outputs.iter().zip(&case.outputs).map(|(o, x)| put(&o.name, cells(o.shape), x));
        let given = exact::Given {
            params: ("p".into(), params.collect()),
            inputs: ("x".into(), inputs),
            cotangents: Some(("g".into(), bars.collect())),
            axes: BTreeMap::new(),
        };
        let out = exact::run(&spec, given, Backend::Interp, Dtype::F64, Prefer::Dense);
        let out = out.unwrap_or_else(|e| panic!("{e}"));
        let at = |name: String| out[&name].to_f64();
        for (k, o) in model.outputs.iter().enumerate() {
            close(&o.name, &results.outputs[k], &at(format!("out.{}", o.name)), 1e-13);
        }
        for (k, s) in model.states.iter().enumerate() {
            close(&s.name, &results.states[k], &at(format!("state.{}", s.name)), 1e-13);
        }
        for (k, p) in model.params.iter().enumerate().filter(|(_, p)| p.learned) {
            let expected = at(format!("grad.{}", p.name));
            assert!(expected.iter().any(|x| x.abs() > 1e-4), "{} is vacuous", p.name);
            close(&p.name, &gradients.params[k], &expected, 1e-12);
        }
        close("u", &gradients.inputs[0], &at("grad.in.u".into()), 1e-12);
    }
}

#[test]
fn single_precision_agrees_with_double_for_any_number_of_threads() {
    let exact = case(Backend::Interp);
    for backend in [Backend::CRANELIFT, Backend::fastest()] {
        let case = case(backend);
        for question in questions() {
            let expected = double(&exact, &question);
            let found = single(&case, &question, 1);
            all_close(&found, &expected, 2e-5);
            assert_eq!(found, single(&case, &question, 3), "{backend:?}");
        }
    }
}

/// Cotangents of carried states, final states and the penalty against finite differences of
/// `Σ outputs·bars + Σ states·bars + 2·penalty`.
#[test]
fn gradients_agree_with_finite_differences() {
    let mut case = case(Backend::Interp);
    let learned: Vec<bool> = case.engine.model().params.iter().map(|p| p.learned).collect();
    for resets in [vec![], questions()[4].resets.clone()] {
        let question = Question { resets, carried: true, last: true, penalty: 2.0 };
        let (_, gradients) = double(&case, &question);
        let bars = case.states.clone();
        let loss = |case: &Case, question: &Question| {
            let results = double(case, question).0;
            let dot = |x: &[Vec<f64>], y: &[Vec<f64>]| -> f64 {
                x.iter().flatten().zip(y.iter().flatten()).map(|(x, y)| x * y).sum()
            };
            dot(&results.outputs, &case.outputs) + dot(&results.states, &bars) + 2.0 * results.penalty
        };
        let h = 1e-5;
        let mut slope = |at: &dyn Fn(&mut Case) -> &mut f64| {
            *at(&mut case) += h;
            let above = loss(&case, &question);
            *at(&mut case) -= 2.0 * h;
            let below = loss(&case, &question);
            *at(&mut case) += h;
            (above - below) / (2.0 * h)
        };
        let mut checked = 0.0;
        for (k, gradient) in gradients.params.iter().enumerate().filter(|(k, _)| learned[*k]) {
            close("parameter", &[gradient[0]], &[slope(&|c| &mut c.params[k][0])], 1e-6);
        }
        for n in [0, 4, 16, 44] {
            close("input", &[gradients.inputs[0][n]], &[slope(&|c| &mut c.inputs[0][n])], 1e-6);
        }
        for (k, n) in [(0, 1), (0, 7), (0, 12), (1, 3), (1, 30), (1, 60)] {
            let gradient = gradients.states[k][n];
            close("state", &[gradient], &[slope(&|c| &mut c.states[k][n])], 1e-5);
            checked += gradient.abs();
        }
        assert!(checked > 1e-2, "vacuous: {checked}");
    }
}

/// A row that is reset before its first step does not know what it was given.
#[test]
fn resets_before_the_first_step_forget_what_was_given() {
    let case = case(Backend::fastest());
    let first: Vec<bool> = (0..T * B).map(|k| k == 1).collect();
    let carried = single(&case, &Question { resets: first, carried: true, ..Question::default() }, 1);
    let fresh = single(&case, &Question::default(), 1);
    let kept = single(&case, &Question { carried: true, ..Question::default() }, 1);
    for (k, state) in carried.0.states.iter().enumerate() {
        assert_eq!(row(state, B, 1), row(&fresh.0.states[k], B, 1));
        assert_eq!(row(state, B, 0), row(&kept.0.states[k], B, 0));
        assert_ne!(row(&fresh.0.states[k], B, 1), row(&kept.0.states[k], B, 1));
        assert!(row(&carried.1.states[k], B, 1).iter().all(|x| *x == 0.0));
    }
}
