//! Two ways to write one thing give one thing: identities that hold whatever the numbers are, and
//! facts about rules that need no reference implementation.
//!
//! Two models of one identity share the names of their parameters and inputs; a tensor's values
//! follow from its name. The interpreter computes in double precision, so what is equal on paper is
//! equal to 1e-12 after six steps.

mod support;

use compiler::gradcheck::Random;
use compiler::interp::{Cotangents, Interpreter, Sequence, Tensor, Trajectory};
use compiler::ir::{Op, Shape, Sizes};
use compiler::model::Model;
use runtime::engine::{Backend, Engine, EngineOptions, Mode};
use std::collections::BTreeMap;
use std::sync::Arc;
use support::{all_specs, feed, model_of, narrow, outputs_at, spec};

const STEPS: usize = 6;
const N: usize = 4;

/// Equal on paper, after a few hundred operations in double precision.
const EXACT: f64 = 1e-12;

type Given<'a> = [(&'a str, Vec<f64>)];

/// Values that follow from a name.
fn named(name: &str, count: usize, scale: f64) -> Vec<f64> {
    let tag = name.bytes().fold(7u64, |h, b| h.wrapping_mul(31).wrapping_add(u64::from(b)));
    Random::new(tag).tensor(count, scale).to_vec()
}

/// A model, its numbers and what it did.
struct Run {
    interpreter: Interpreter,
    params: Vec<Tensor>,
    sequence: Sequence,
    trajectory: Trajectory,
}

/// Runs a model; tensors that are not given follow from their names.
fn run_model(model: Arc<Model>, sizes: Sizes, given: &Given<'_>, steps: usize) -> Run {
    let value = |name: &str, count: usize, scale: f64| {
        let found = given.iter().find(|(n, _)| *n == name).map(|(_, x)| x.clone());
        // A layer's name is a part of the name, in one spec as `one.W`, in another as `one_W`.
        let x = found.unwrap_or_else(|| named(&name.replace('.', "_"), count, scale));
        assert_eq!(x.len(), count, "{name}");
        Arc::new(x)
    };
    let params: Vec<Tensor> =
        model.params.iter().map(|p| value(&p.name, sizes.count(p.shape), 0.7)).collect();
    let input = |t: usize, i: &compiler::model::Input| {
        let count = sizes.count(i.shape);
        // Given inputs hold all steps, one after the other.
        match given.iter().find(|(n, _)| *n == i.name) {
            Some((_, x)) => Arc::new(x[t * count..(t + 1) * count].to_vec()),
            None => Arc::new(named(&format!("{} {t}", i.name.replace('.', "_")), count, 1.0)),
        }
    };
    let inputs = (0..steps).map(|t| model.inputs.iter().map(|i| input(t, i)).collect()).collect();
    let interpreter = Interpreter::new(model, sizes);
    let sequence = Sequence { inputs, initial: interpreter.initial(&params), resets: vec![] };
    let trajectory = interpreter.run(&params, &sequence);
    Run { interpreter, params, sequence, trajectory }
}

fn sizes_of(model: &Model) -> Sizes {
    let bound = model.axes.named.iter().map(|a| (a.name.clone(), if a.name == "N" { N } else { 3 }));
    Sizes::bind(&model.axes, &bound.collect()).expect("sizes for every axis")
}

fn run(text: &str, given: &Given<'_>) -> Run {
    let model = model_of(text);
    let sizes = sizes_of(&model);
    run_model(model, sizes, given, STEPS)
}

impl Run {
    fn state(&self, name: &str, steps: usize) -> &[f64] {
        &self.trajectory.states[steps][self.interpreter.model.state(name).expect("a state").index()]
    }

    fn output(&self, name: &str, t: usize) -> Vec<f64> {
        let id = self.interpreter.model.output(name).expect("an output");
        self.interpreter.output(&self.trajectory, t, id.index()).to_vec()
    }

    /// All outputs of all steps.
    fn behaviour(&self) -> Vec<f64> {
        let count = self.interpreter.model.outputs.len();
        let steps = 0..self.sequence.inputs.len();
        let at = |t, k| self.interpreter.output(&self.trajectory, t, k).to_vec();
        steps.flat_map(|t| (0..count).flat_map(move |k| at(t, k))).collect()
    }

    /// The gradient of the sum of an output's elements in one step with respect to a parameter.
    fn gradient(&self, output: &str, t: usize, param: &str) -> Vec<f64> {
        let model = &self.interpreter.model;
        let k = model.output(output).expect("an output").index();
        let bar = |s: usize, o: usize| {
            let count = self.interpreter.sizes.count(model.outputs[o].shape);
            Arc::new(vec![if s == t && o == k { 1.0 } else { 0.0 }; count])
        };
        let steps = self.sequence.inputs.len();
        let outputs = (0..steps).map(|s| (0..model.outputs.len()).map(|o| bar(s, o)).collect()).collect();
        let bars = Cotangents { outputs, ..Cotangents::default() };
        let row = self.interpreter.backward(&self.sequence, &self.trajectory, &bars);
        let all = self.interpreter.finish(&self.params, &row.boundary, &row.initial);
        let p = model.params.iter().position(|p| p.name == param).expect("a parameter");
        all[p].clone()
    }
}

#[track_caller]
fn close(found: &[f64], expected: &[f64], tolerance: f64, what: &str) {
    assert_eq!(found.len(), expected.len(), "{what}");
    for (a, b) in found.iter().zip(expected) {
        assert!((a - b).abs() <= tolerance * b.abs().max(1.0), "{what}: {found:?} is not {expected:?}");
    }
}

/// A recurrent network with these declarations and equations.
fn network(items: &str) -> String {
    format!(
        "spec network {{\n  axis N = ?\n  in u[N]\n  learn W[N,N], alpha[N,N] ~ linear\n  state y[N] = 0\n  \
         plastic H[N,N] = 0 unbounded\n  {}\n  out y'\n}}",
        items.replace("; ", "\n  ")
    )
}

const READ: &str = "y' = tanh(u + (W + alpha * H) @ y)";

/// Two sets of items give the same outputs; the outputs depend on what is written.
fn equal(first: &str, second: &str, given: &Given<'_>) {
    let (a, b) = (run(&network(first), given), run(&network(second), given));
    close(&a.behaviour(), &b.behaviour(), EXACT, &format!("{first} against {second}"));
    assert!(a.state("H", STEPS).iter().any(|x| x.abs() > 1e-3), "plasticity does something in {first}");
}

#[test]
fn modulation_that_is_constant_is_a_rate() {
    let given = [("bm", vec![0.4]), ("eta", vec![0.4f64.tanh()])];
    equal(
        &format!(
            "learn bm = 0.4; modulator m = tanh(bm); {READ}; H'[j,i] = clip(H + m * y'[j] * y[i], -1, 1)"
        ),
        &format!("learn eta = 0.4; {READ}; H'[j,i] = clip(H + eta * y'[j] * y[i], -1, 1)"),
        &given,
    );
}

#[test]
fn an_immediate_trace_is_none() {
    let modulator = "learn wm[N] ~ linear; modulator m = tanh(wm . y')";
    let traced = "trace E[N,N] = 0; learn eta = 1; E'[j,i] = (1 - eta) * E + eta * y'[j] * y[i]";
    let given = [("eta", vec![1.0])];
    equal(
        &format!("{modulator}; {traced}; {READ}; H'[j,i] = clip(H + m * E', -1, 1)"),
        &format!("{modulator}; {READ}; H'[j,i] = clip(H + m * y'[j] * y[i], -1, 1)"),
        &given,
    );
    // The old trace delays the product by one step: both activities are remembered.
    equal(
        &format!("{modulator}; {traced}; {READ}; H'[j,i] = clip(H + m * E, -1, 1)"),
        &format!("{modulator}; state x[N] = 0; x' = y; {READ}; H'[j,i] = clip(H + m * y[j] * x[i], -1, 1)"),
        &given,
    );
}

#[test]
fn decay_and_rate_are_one_convention_or_the_other() {
    let given = [("eta", vec![0.3]), ("lambda", vec![0.7])];
    equal(
        &format!("learn eta = 0.3; {READ}; H'[j,i] = (1 - eta) * H + eta * y'[j] * y[i]"),
        &format!("learn eta = 0.3, lambda = 0.7; {READ}; H'[j,i] = lambda * H + eta * y'[j] * y[i]"),
        &given,
    );
}

#[test]
fn a_clip_that_never_acts_is_none() {
    equal(
        &format!("{READ}; H'[j,i] = clip(H + 0.3 * y'[j] * y[i], -1e30, 1e30)"),
        &format!("{READ}; H'[j,i] = H + 0.3 * y'[j] * y[i]"),
        &[],
    );
}

#[test]
fn without_modulation_weights_stay() {
    let text = network(&format!(
        "learn wm[N] ~ linear; modulator m = tanh(wm . y'); {READ}; \
        H'[j,i] = clip(H + m * y'[j] * y[i], -1, 1)"
    ));
    let run = run(&text, &[("wm", vec![0.0; N])]);
    assert!(run.state("H", STEPS).iter().all(|x| *x == 0.0));
}

#[test]
fn granularities_contain_each_other() {
    let rule = "H'[j,i] = clip(H + 0.5 * y'[j] * y[i], -1, 1)";
    let full = format!("{READ}; {rule}");
    let r = named("r", N, 0.7);
    let rows: Vec<f64> = (0..N * N).map(|k| r[k / N]).collect();
    let columns: Vec<f64> = (0..N * N).map(|k| r[k % N]).collect();
    let per = |index: &str| format!("learn r[N] ~ linear; y' = tanh(u + (W + r[{index}] * H) @ y); {rule}");
    equal(&full, &per("j"), &[("alpha", rows)]);
    equal(&full, &per("i"), &[("alpha", columns)]);
    let scalar = format!("learn a = 0.3; y' = tanh(u + (W + a * H) @ y); {rule}");
    equal(&full, &scalar, &[("alpha", vec![0.3; N * N]), ("a", vec![0.3])]);
    // alpha_ji = sum_k a_kj b_ki with b the unit vectors: a is the transposed matrix.
    let alpha = named("alpha", N * N, 0.7);
    let post: Vec<f64> = (0..N * N).map(|k| alpha[(k % N) * N + k / N]).collect();
    let pre: Vec<f64> = (0..N * N).map(|k| f64::from(u8::from(k / N == k % N))).collect();
    let factored = format!("learn K[N,N] rank 4 ~ linear; y' = tanh(u + (W + K * H) @ y); {rule}");
    equal(&full, &factored, &[("K.post", post), ("K.pre", pre)]);
}

const MEMORY: &str = "spec memory {
  axis N = ?
  in k[N], v[N], q[N], b
  learn start[N,N] ~ linear
  plastic H[N,N] = start unbounded
  H'[j,i] = H + b * (v - H @ k)[j] * k[i]
  out read[N] = H' @ k
  out query[N] = H' @ q
}";

/// Row `t` of an orthonormal matrix (a scaled Hadamard matrix), for four steps; then again.
fn orthonormal() -> Vec<f64> {
    let h = [[1.0, 1.0, 1.0, 1.0], [1.0, -1.0, 1.0, -1.0], [1.0, 1.0, -1.0, -1.0], [1.0, -1.0, -1.0, 1.0]];
    (0..STEPS).flat_map(|t| h[t % N].map(|x| 0.5 * x)).collect()
}

#[test]
fn a_delta_rule_overwrites() {
    let run = run(MEMORY, &[("k", orthonormal()), ("b", vec![1.0; STEPS])]);
    let value = |t: usize| run.sequence.inputs[t][1].to_vec();
    let key = |t: usize| run.sequence.inputs[t][0].to_vec();
    for t in 0..STEPS {
        close(&run.output("read", t), &value(t), EXACT, "a value is read as it was written");
    }
    // The last value of every key is there at the end: the later ones for keys 0 and 1.
    let h = run.state("H", STEPS);
    for (t, latest) in [(0, 4), (1, 5), (2, 2), (3, 3)] {
        let k = key(t);
        let read: Vec<f64> = h.chunks(N).map(|row| row.iter().zip(&k).map(|(h, k)| h * k).sum()).collect();
        close(&read, &value(latest), EXACT, "writing one key leaves the others");
    }
}

#[test]
fn a_delta_rule_without_rate_is_static() {
    let run = run(MEMORY, &[("b", vec![0.0; STEPS])]);
    close(run.state("H", STEPS), run.state("H", 0), 0.0, "nothing is written");
}

#[test]
fn a_delta_rule_that_adds_what_it_would_subtract_is_a_sum() {
    let sum = MEMORY.replace("(v - H @ k)[j]", "v[j]");
    let undone = MEMORY.replace("(v - H @ k)[j]", "((v + H @ k) - H @ k)[j]");
    close(&run(&undone, &[]).behaviour(), &run(&sum, &[]).behaviour(), EXACT, "the sum rule");
}

#[test]
fn a_sum_is_causal_linear_attention() {
    let text = MEMORY.replace("(v - H @ k)[j]", "v[j]");
    let run = run(&text, &[("b", vec![1.0; STEPS]), ("start", vec![0.0; N * N])]);
    let input = |t: usize, k: usize| run.sequence.inputs[t][k].clone();
    for t in 0..STEPS {
        let mut expected = vec![0.0; N];
        for s in 0..=t {
            let score: f64 = input(s, 0).iter().zip(input(t, 2).iter()).map(|(k, q)| k * q).sum();
            expected.iter_mut().zip(input(s, 1).iter()).for_each(|(e, v)| *e += score * v);
        }
        close(&run.output("query", t), &expected, EXACT, "attention");
    }
}

#[test]
fn a_self_referential_write_of_equal_key_and_query_is_none() {
    let text = |q: &str| {
        format!(
            "spec srwm {{\n  axis N = ?\n  in x[N]\n  learn Wk[N,N], wb[N] ~ linear\n  plastic W[N,N] = learn \
             unbounded\n  p = softmax(x)\n  k = softmax(Wk @ p)\n  q = {q}\n  modulator b = sigmoid(wb . p)\n  \
             W'[j,i] = W + b * (W @ q - W @ k)[j] * k[i]\n  out y[N] = W @ p\n}}"
        )
    };
    let same = run(&text("k"), &[]);
    close(same.state("W", STEPS), same.state("W", 0), 0.0, "q = k writes nothing");
    assert!(same.state("W", 0).iter().any(|x| *x != 0.0));
    let other = run(&text("softmax(x)"), &[]);
    let moved = other.state("W", STEPS).iter().zip(other.state("W", 0)).any(|(a, b)| (a - b).abs() > 1e-3);
    assert!(moved, "another query writes something");
}

#[test]
fn ojas_rule_converges_to_its_fixed_point() {
    let text = "spec oja {\n  axis N = ?\n  in x[N], z[N]\n  plastic H[N,N] = 0.3 unbounded\n  \
                H'[j,i] = H + 0.2 * z[j] * (x[i] - z[j] * H)\n  out y[N] = H' @ x\n}";
    let model = model_of(text);
    let sizes = sizes_of(&model);
    let steps = 400;
    let (x, z) = (vec![0.3, -0.5, 0.8, 0.1], vec![0.9, -0.7, 1.2, 0.6]);
    let given = [("x", x.repeat(steps)), ("z", z.repeat(steps))];
    let run = run_model(model, sizes, &given, steps);
    let expected: Vec<f64> = (0..N * N).map(|k| x[k % N] / z[k / N]).collect();
    // The slowest row contracts by 1 - 0.2·0.36 in each step: 1e-12 after 400.
    close(run.state("H", steps), &expected, 1e-10, "x_i / y_j");
}

#[test]
fn bounds_hold_at_all_times() {
    let text = network(&format!("{READ}; H'[j,i] = clip(H + 3 * y'[j] * y[i], -0.6, 0.4)"));
    let model = model_of(&text);
    let sizes = sizes_of(&model);
    let run = run_model(model, sizes, &[], 60);
    let all: Vec<f64> = (0..=60).flat_map(|t| run.state("H", t).to_vec()).collect();
    assert!(all.iter().all(|h| (-0.6..=0.4).contains(h)));
    assert!(all.contains(&-0.6) && all.contains(&0.4), "both bounds are reached");
}

#[test]
fn every_step_adds_a_rank() {
    let run = run(&network(&format!("{READ}; H'[j,i] = H + y'[j] * y[i]")), &[]);
    assert!(run.state("H", 1).iter().all(|h| *h == 0.0), "the first product is with the state at rest");
    let h = run.state("H", 2);
    assert!(h.iter().any(|x| x.abs() > 1e-3));
    for (j, i) in [(1, 1), (2, 3), (3, 2)] {
        let minor = h[0] * h[j * N + i] - h[i] * h[j * N];
        assert!(minor.abs() < 1e-15, "the second state has rank one: {minor:e}");
    }
    let h = run.state("H", 3);
    let minor = h[0] * h[N + 1] - h[1] * h[N];
    assert!(minor.abs() > 1e-9, "the third has more");
}

#[test]
fn modulators_learn_through_later_use_alone() {
    let sizes = |model: &Model| {
        let known = |name: &&(&str, usize)| model.axes.named.iter().any(|a| a.name == name.0);
        let all = [("I", 3), ("N", N), ("A", 2)];
        let bound = all.iter().filter(known).map(|(n, s)| ((*n).to_owned(), *s)).collect();
        Sizes::bind(&model.axes, &bound).expect("sizes")
    };
    for (file, first) in [("backpropamine/simple.bpm", 2), ("backpropamine/retroactive.bpm", 3)] {
        let model = spec(file);
        let sizes = sizes(&model);
        let run = run_model(model, sizes, &[], STEPS);
        for t in 0..STEPS {
            let norm: f64 = run.gradient("policy", t, "wm").iter().map(|g| g * g).sum::<f64>().sqrt();
            assert_eq!(norm > 1e-9, t >= first, "{file}: the gradient of step {t} has norm {norm:e}");
        }
    }
}

/// A permutation of `N` units.
const MOVED: [usize; N] = [2, 0, 3, 1];

/// A tensor with the axis `N` permuted wherever it stands; `None` if the axis is part of another.
fn permuted(model: &Model, sizes: &Sizes, dims: &[compiler::ir::Axis], x: &[f64]) -> Option<Vec<f64>> {
    let n = model.axes.named.iter().position(|a| a.name == "N")?;
    let mut moves = vec![];
    for axis in dims {
        let linear = model.axes.linear(*axis);
        let is_n = linear.constant == 0 && linear.terms.len() == 1 && linear.terms.get(&n) == Some(&1);
        if linear.terms.contains_key(&n) && !is_n {
            return None;
        }
        moves.push((sizes.of(*axis), is_n));
    }
    let mut out = vec![0.0; x.len()];
    for (k, v) in x.iter().enumerate() {
        let (mut rest, mut stride, mut to) = (k, 1, 0);
        for (size, is_n) in moves.iter().rev() {
            let at = rest % size;
            to += stride * if *is_n { MOVED[at] } else { at };
            rest /= size;
            stride *= size;
        }
        out[to] = *v;
    }
    Some(out)
}

fn dims_of(shape: Shape) -> Vec<compiler::ir::Axis> {
    match shape {
        Shape::Scalar => vec![],
        Shape::Vector(a) => vec![a],
        Shape::Matrix { post, pre } => vec![post, pre],
    }
}

#[test]
fn the_order_of_units_is_irrelevant() {
    let mut tested = 0;
    for (name, model) in all_specs() {
        let places = |op: &Op| matches!(op, Op::Slice { .. } | Op::Element(..) | Op::Concat(..));
        if model.step.values().any(|(_, i)| places(&i.op)) || model.axes.named.iter().all(|a| a.name != "N") {
            continue;
        }
        let sizes = sizes_of(&model);
        let plain = run_model(model.clone(), sizes.clone(), &[], STEPS);
        let mut given: Vec<(&str, Vec<f64>)> = vec![];
        let mut possible = true;
        for (p, x) in model.params.iter().zip(&plain.params) {
            match permuted(&model, &sizes, &dims_of(p.shape), x) {
                Some(x) => given.push((&p.name, x)),
                None => possible = false,
            }
        }
        for (k, i) in model.inputs.iter().enumerate() {
            let steps = plain.sequence.inputs.iter();
            let moved = steps.map(|s| permuted(&model, &sizes, &dims_of(i.shape), &s[k]));
            match moved.collect::<Option<Vec<_>>>() {
                Some(x) => given.push((&i.name, x.concat())),
                None => possible = false,
            }
        }
        if !possible {
            continue;
        }
        tested += 1;
        let other = run_model(model.clone(), sizes.clone(), &given, STEPS);
        for (k, o) in model.outputs.iter().enumerate() {
            for t in 0..STEPS {
                let x = plain.interpreter.output(&plain.trajectory, t, k);
                let expected = permuted(&model, &sizes, &dims_of(o.shape), &x).expect("N stands alone");
                let found = other.interpreter.output(&other.trajectory, t, k);
                close(&found, &expected, 1e-9, &format!("{name}: {} of step {t}", o.name));
            }
        }
        for (k, s) in model.states.iter().enumerate() {
            let x = &plain.trajectory.states[STEPS][k];
            let expected = permuted(&model, &sizes, &dims_of(s.shape), x).expect("N stands alone");
            close(&other.trajectory.states[STEPS][k], &expected, 1e-9, &format!("{name}: {}", s.name));
        }
    }
    assert!(tested >= 20, "only {tested} models could be tested");
}

/// A cell with everything that a layer may bring along.
const CELL: &str = "
/// Brings constants, noise, a tuple, a hold, a modulator without gradient, a penalty.
spec cell {
  axis I = ?, N = 3
  const leak = 0.25
  in u[I]
  in mod r
  in mask stay
  noise xi[N] ~ normal(0, 0.1)
  learn X[2*N,I], b[2*N] ~ uniform(-1, 1)
  learn eta in (0, 1) = 0.3
  learn unused_by_readers[N] = 0.1
  state h[N] = 0
  plastic P[N,N] = 0
  (f, g) = split(sigmoid(X @ u + b), 2)
  h' = (1 - leak) * f * h + leak * tanh(g + P @ h + xi)
  modulator m = tanh(r + mean(h'))
  P'[j,i] = clip(P + eta * m * h'[j] * h[i], -1, 1)
  hold h when stay > 0.3
  penalty 0.1 * mean(P' * P')
  out h'
  out z[N] = 2 * h' - g
  out never = sum(unused_by_readers * h')
}
";

/// The same twice, written out; `two` gets its size, its constant and its inputs by name.
const FLAT: &str = "
spec flat {
  axis I = ?, N = ?, one_N = 3
  in u[I], v[I]
  in mod r
  in mask stay
  noise one_xi[one_N], two_xi[N] ~ normal(0, 0.1)
  learn one_X[2*one_N,I+N], one_b[2*one_N] ~ uniform(-1, 1)
  learn two_X[2*N,one_N], two_b[2*N] ~ uniform(-1, 1)
  learn one_eta in (0, 1) = 0.3
  learn two_eta in (0, 1) = 0.3
  state one_h[one_N] = 0
  state two_h[N] = 0
  plastic one_P[one_N,one_N] = 0
  plastic two_P[N,N] = 0
  (one_f, one_g) = split(sigmoid(one_X @ concat(u + v, two_h) + one_b), 2)
  one_h' = 0.75 * one_f * one_h + 0.25 * tanh(one_g + one_P @ one_h + one_xi)
  modulator one_m = tanh(r + mean(one_h'))
  one_P'[j,i] = clip(one_P + one_eta * one_m * one_h'[j] * one_h[i], -1, 1)
  (two_f, two_g) = split(sigmoid(two_X @ (2 * one_h' - one_g) + two_b), 2)
  two_h' = 0.5 * two_f * two_h + 0.5 * tanh(two_g + two_P @ two_h + two_xi)
  modulator two_m = tanh(stopgrad(sum(one_h')) + mean(two_h'))
  two_P'[j,i] = clip(two_P + two_eta * two_m * two_h'[j] * two_h[i], -1, 1)
  hold one_h when stay > 0.3
  hold two_h when stay > 0.3
  penalty 0.1 * mean(one_P' * one_P') + 0.1 * mean(two_P' * two_P')
  out y[N] = two_h' + two_h
}
";

const NESTED: &str = "
spec net {
  axis I = ?, N = ?
  in u[I], v[I]
  in mod r
  in mask stay
  layer one = cell(concat(u + v, two.h), r, stay)
  layer two = cell(one.z, stay = stay, r = sum(one.h'), N = N, leak = 0.5)
  out y[N] = two.h' + two.h
}
";

/// Layers are the same as everything written out, in values and in gradients.
#[test]
fn layers_are_what_is_written_out() {
    let nested = run(&format!("{CELL}{NESTED}"), &[]);
    let flat = run(FLAT, &[]);
    let names = |r: &Run| -> Vec<String> {
        let m = &r.interpreter.model;
        let mut all: Vec<String> = m.params.iter().map(|p| p.name.replace('.', "_")).collect();
        all.extend(m.states.iter().map(|s| s.name.replace('.', "_")));
        all.sort();
        all
    };
    assert_eq!(names(&nested), names(&flat));
    close(&nested.behaviour(), &flat.behaviour(), EXACT, "y");
    for t in 0..STEPS {
        let penalty = |r: &Run| [r.interpreter.penalty(&r.trajectory, t)];
        close(&penalty(&nested), &penalty(&flat), EXACT, "penalty");
    }
    let gradients = |r: &Run| {
        let params = r.interpreter.model.params.iter();
        params
            .map(|p| (p.name.replace('.', "_"), r.gradient("y", STEPS - 1, &p.name)))
            .collect::<BTreeMap<_, _>>()
    };
    let (a, b) = (gradients(&nested), gradients(&flat));
    for (name, x) in &a {
        assert!(x.iter().any(|v| *v != 0.0), "{name} has no gradient");
        close(x, &b[name], EXACT, name);
    }
}

#[test]
fn machine_code_gives_the_reference_values() {
    let wave = |count: usize, tag: f64, s: f64| {
        (0..count).map(|k| s * (0.7 * k as f64 + tag).sin()).collect::<Vec<_>>()
    };
    let tensors = [
        ("Wx", 12, 1.0, 0.8),
        ("bx", 4, 2.0, 0.3),
        ("W", 16, 3.0, 0.5),
        ("alpha", 16, 4.0, 0.9),
        ("Wo", 8, 5.0, 0.7),
        ("bo", 2, 6.0, 0.2),
        ("wv", 4, 7.0, 0.6),
        ("bv", 1, 8.0, 0.1),
        ("wm", 4, 9.0, 1.2),
        ("bm", 1, 10.0, 0.2),
    ];
    for (file, hidden, policy, value) in [
        (
            "backpropamine/plain.bpm",
            [0.803_446_610_1, -0.166_540_302_8, -0.468_541_207_0, 0.393_101_183_6],
            [-0.368_630_943_0, 0.350_473_462_8],
            0.151_919_999_9,
        ),
        (
            "backpropamine/plastic.bpm",
            [0.519_088_826_1, -0.479_146_512_6, -0.323_410_110_8, 0.677_510_632_4],
            [0.099_715_186_1, -0.091_460_950_8],
            -0.016_645_988_4,
        ),
        (
            "backpropamine/simple.bpm",
            [0.591_631_720_5, -0.388_612_049_4, -0.367_728_165_0, 0.648_287_678_3],
            [-0.002_405_731_5, 0.012_293_280_0],
            0.037_308_311_1,
        ),
    ] {
        let model = spec(file);
        let sizes = [("I", 3), ("N", 4), ("A", 2)].map(|(a, n)| (a.to_owned(), n));
        let sizes = Sizes::bind(&model.axes, &BTreeMap::from(sizes)).expect("sizes");
        let param = |p: &compiler::model::Param| match tensors.iter().find(|(n, ..)| *n == p.name) {
            Some((_, count, tag, s)) => narrow(&wave(*count, *tag, *s)),
            None => vec![0.1],
        };
        let params: Vec<Vec<f32>> = model.params.iter().map(param).collect();
        let engine = Engine::new(model.clone(), sizes, Backend::CRANELIFT, &EngineOptions::default())
            .expect("it compiles");
        let bound = engine.bind(&params).expect("parameters fit");
        let mut tape = engine.tape(STEPS, Mode::Infer);
        bound.begin(&mut tape, None);
        for t in 0..STEPS {
            let u = (0..3).map(|i| (0.3 * f64::from(i) + 0.5 * t as f64).sin()).collect();
            feed(&bound, &mut tape, &[Arc::new(u)]);
            bound.step(&mut tape);
        }
        let outputs = outputs_at(&bound, &tape, STEPS - 1);
        let at = |name: &str| model.output(name).expect("an output").index();
        let y = model.state("y").expect("a state").index();
        let wide = |x: &[f32]| x.iter().map(|v| f64::from(*v)).collect::<Vec<_>>();
        // Six steps in single precision.
        close(&wide(&bound.state(&mut tape).states[y]), &hidden, 1e-5, file);
        close(&wide(&outputs[at("policy")]), &policy, 1e-5, file);
        close(&wide(&outputs[at("value")]), &[value], 1e-5, file);
    }
}
