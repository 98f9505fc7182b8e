//! Every operation and every built-in function, each in a tiny spec of its own: gradients against
//! finite differences, machine code against the interpreter, and what happens at ties.
//!
//! An expression is placed where the language allows it: on vectors, on synaptic values and on
//! scalars. Sizes are one, below, at and above the four lanes of a register, and around a tile.

mod support;

use compiler::gradcheck::{self, Options};
use runtime::engine::{Backend, Engine, EngineOptions, Mode};
use runtime::gradcheck::Check;
use support::{compare, model_of, outputs_at, small_sizes};

/// Sizes whose remainders by four differ, and which need one tile and several.
const SIZES: [usize; 6] = [1, 3, 4, 5, 31, 33];

/// Machine code rounds to 24 bits in every operation, so a few operations deep 1e-6 would do; the
/// functions are accurate to a few units in the last place, and a cancellation (a difference of
/// nearly equal numbers, a norm of small ones) costs up to two digits more.
const SINGLE: f64 = 1e-4;

/// Differences with a step of 1e-5 are exact to about 1e-8 on functions with curvature of order
/// one; normalisations of small vectors have more.
const DOUBLE: f64 = 1e-5;

/// Elementwise expressions of `$x` and `$y`, of numbers below two in size.
const ELEMENTWISE: &[(&str, &str)] = &[
    ("negation", "-$x"),
    ("sum", "$x + $y"),
    ("difference", "$x - $y"),
    ("product", "$x * $y"),
    ("quotient", "$x / (2.5 + $y)"),
    ("square", "$x^2"),
    ("cube", "$x^3"),
    ("inverse", "(2.5 + $x)^-1"),
    ("inverse square", "(2.5 + $x)^-2"),
    ("half power", "(2.5 + $x)^0.5"),
    ("tanh", "tanh($x)"),
    ("sigmoid", "sigmoid($x)"),
    ("exp", "exp($x)"),
    ("log", "log(2.5 + $x)"),
    ("sqrt", "sqrt(2.5 + $x)"),
    ("abs", "abs($x)"),
    ("relu", "relu($x)"),
    ("elu", "elu($x)"),
    ("softplus", "softplus(3 * $x)"),
    ("min", "min($x, $y)"),
    ("max", "max($x, $y)"),
    ("clip", "clip($x, -0.2, 0.3)"),
    ("softclip", "softclip(clip($x, -1, 1), 0.5 * $y, -1, 1)"),
    ("leak", "leak($x, $y, 5, 0.5)"),
    ("sign", "$x * sign($y)"),
    ("step", "$x * step($y)"),
    ("where", "where($x > $y, $x * $y, $x)"),
    ("where of a number", "where($x, $y, 0)"),
    ("where of nothing", "where($x > 0.1, 0, $y * $y)"),
    ("less", "$x * ($x < $y)"),
    ("less or equal", "$x * ($x <= $y)"),
    ("greater", "$x * ($x > $y)"),
    ("greater or equal", "$x * ($x >= $y)"),
    ("equal", "$x + ($x == $y)"),
    ("comparison as a number", "($x < $y) + ($x > 0.1) * ($y > 0.1)"),
];

/// The spec of an elementwise expression, on a vector, a scalar and a matrix.
fn elementwise(expression: &str) -> String {
    let on = |x: &str, y: &str| expression.replace("$x", x).replace("$y", y);
    format!(
        "spec elementwise {{
  axis N = ?, M = ?
  in u[N], w[M]
  learn a[N], b[N], c[M] ~ uniform(-1, 1)
  learn K[M,N], L[M,N] ~ uniform(-1, 1)
  learn s, t = 0.5
  plastic H[M,N] = 0 unbounded
  p = a * u
  q = b + u
  m = s * sum(u) / N
  n = t + s * w[0]
  R[j,i] = K * w[j]
  S[j,i] = L + 0.5 * H
  T[j,i] = a[i] * w[j]
  H'[j,i] = 0.5 * H + 0.2 * tanh({matrix})
  out vector[N] = {vector}
  out scalar = {scalar}
  out post[M] = ({outer}) @ u
  out pre[N] = ({parameters})^T @ c
}}",
        vector = on("p", "q"),
        scalar = on("m", "n"),
        matrix = on("R", "S"),
        outer = on("T", "R"),
        parameters = on("K", "L"),
    )
}

/// Equations over `u[N]`, `w[M]`, `W[M,N]`, `V[M,N]`, `s`, the states `y[M]`, `H[M,N]` and outputs.
const STRUCTURAL: &[(&str, &str)] = &[
    ("softmax", "out o[N] = softmax(u * a)"),
    ("sumnorm", "out o[N] = sumnorm(exp(u * a))"),
    ("layernorm", "out o[N] = layernorm(2 * u + a)"),
    ("norm", "out o = norm(u * a)"),
    ("sum of a vector", "out o = sum(u * a)"),
    ("mean of a vector", "out o = mean(u * a)"),
    ("maximum of a vector", "out o = maximum(u + a)"),
    ("concat", "out o[N+M+N] = concat(tanh(u), w, a * u)"),
    ("concat and use", "z = concat(u, y, w); r = concat(c, a, c); out o = z . concat(c, w, a)"),
    ("split", "z = concat(u * a, tanh(u), a); (d, e, f) = split(z, 3); out o[N] = d * e + f"),
    ("slice at the start", "z = concat(u * a, w, u); out o[2] = slice(z, 0, 2)"),
    ("slice of one", "z = sigmoid(concat(u, w, a)); out o[1] = slice(z, 3, 1)"),
    ("slice inside", "z = sigmoid(concat(u * a, w, u)); out o[2] = slice(z, 2, 2)"),
    (
        "slices that are summed",
        "z = sigmoid(concat(u, w, a)); out o = sum(slice(z, 2, 2)) + sum(slice(z, 3, 1))",
    ),
    (
        "slice summed and read",
        "z = sigmoid(concat(u * a, w, a)); r = slice(z, 1, 3); out o = sum(r * r) + sum(z)",
    ),
    ("slice from an axis on", "z = sigmoid(concat(u, w, a)); out o[M] = slice(z, N, M)"),
    ("slices that overlap", "z = sigmoid(concat(u, w, a)); out o[3] = slice(z, 0, 3) * slice(z, 1, 3)"),
    ("slice of a state", "z = concat(y, y); out o[2] = slice(z, 1, 2) * slice(y', 0, 2)"),
    ("element", "out o = u[0] * a[0] + w[1]"),
    ("dot product", "out o = (u * a) . (u + a)"),
    ("product", "out o[M] = W @ (u * a)"),
    ("transposed product", "out o[N] = W^T @ (w + c)"),
    ("product with a state", "out o[M] = (W + H) @ u"),
    ("transposed product with a state", "out o[N] = (W * H)^T @ y"),
    ("product with an expression", "out o[M] = (W + c[j] * H + a[i] * V) @ u"),
    ("read after write", "out o[M] = H' @ u"),
    ("two reads", "h = tanh(H @ u); g = H^T @ h; out o[M] = (W + H) @ tanh(g)"),
    ("sum of a matrix", "out o = sum(W * H)"),
    ("mean of a matrix", "out o = mean(W * H)"),
    ("maximum of a matrix", "out o = maximum(W * c[j] + H)"),
    ("row sums", "out o[M] = rowsum(W * H) * w"),
    ("column sums", "out o[N] = colsum(W * H) * u"),
    ("sums of parameters", "out o = sum(W * V) * s; out p[M] = rowsum(W) * w; out q[N] = colsum(V) * u"),
    // Zero in the empty lanes of a register becomes something else here, and must not be summed.
    ("column sums without zeros", "out o[N] = colsum(exp(W * H)) * u"),
    ("transposed product without zeros", "out o[N] = (sigmoid(W + H))^T @ exp(w)"),
    ("sum without zeros", "out o = mean(exp(W * H)); out p = maximum(W * H - 5)"),
    ("row norms", "out o[M] = l2row(W + H) * w"),
    ("column norms", "out o[N] = l2col(W + H) * u"),
    ("rows of norm one", "out o[M] = rownorm(W + H) @ u"),
    ("columns of norm one", "out o[M] = colnorm(W + H) @ u"),
    ("Frobenius norm", "out o = frob(W + H)"),
    ("Frobenius cap that acts", "out o[M] = frobcap(W + H, 0.2) @ u"),
    ("Frobenius cap that rests", "out o[M] = frobcap(W + H, 1000) @ u"),
    ("largest absolute value", "out o = maxabs(W - H)"),
    ("maximum norm", "out o[M] = maxnorm(W + H) @ u"),
    ("values per receiving neuron", "D[j,i] = (w - H @ u)[j] * u[i] + c[j]; out o[M] = D @ a"),
    ("a vector over rows", "n[j] = w[j] * c[j]; out o[M] = n * y"),
    ("rank two", "out o[M] = (Q + H) @ u"),
    ("penalty", "penalty mean(H' * H') + 0.1 * sum(y'); penalty s * s; out y'"),
    ("parameters as outputs", "out o[N] = a; out r = s; out v[M] = W @ a"),
    ("an output of an input", "out o[N] = u; out y'"),
    ("constants as outputs", "const k = 1 / N; out o = k; out p = 2 * k + s"),
];

fn structural(equations: &str) -> String {
    format!(
        "spec structural {{
  axis N = ?, M = ?
  in u[N], w[M]
  learn a[N], c[M] ~ uniform(-1, 1)
  learn W[M,N], V[M,N] ~ uniform(-1, 1)
  learn Q[M,N] ~ uniform(-1, 1) rank 2
  learn s = 0.5
  state y[M] = 0
  plastic H[M,N] = 0
  y' = tanh(w + (s * H) @ u + 0.5 * y)
  H'[j,i] = clip(0.9 * H + 0.3 * y'[j] * u[i], -0.4, 0.4)
  {}
}}",
        equations.replace("; ", "\n  ")
    )
}

/// States of all kinds and what governs them.
const STATEFUL: &[(&str, &str)] = &[
    (
        "hold",
        "in mask f; state y[N] = 0; plastic H[N,N] = 0; y' = tanh(u + (W + H) @ y); \
      H'[j,i] = clip(H + 0.3 * y'[j] * y[i], -0.5, 0.5); hold y, H when f; out y'",
    ),
    ("scalar state", "state m = 0.2; m' = 0.7 * m + mean(u); out o[N] = m' * (W @ u) + m"),
    ("state that stands still", "state y[N] = 0.3; state z[N] = 0; z' = tanh(W @ z + y * u); out z'"),
    (
        "learned initial state",
        "learn h[N] ~ uniform(-1, 1); state y[N] = h; \
      plastic H[N,N] = learn ~ normal(0, 0.1); y' = tanh(u + (W + H) @ y); \
      H'[j,i] = 0.8 * H + 0.2 * y'[j] * y[i]; out y'",
    ),
    (
        "forced decay",
        "state y[N] = 0; trace e[N] = 0; e' = 0.9 * e + 0.1 * y'; \
      y' = tanh(W @ y + u - e); out y'",
    ),
    (
        "trace of a trace",
        "state y[N] = 0; trace E[N,N] = 0; plastic H[N,N] = 0; \
      modulator m = tanh(sum(y')); y' = tanh(u + (W + H) @ y); E'[j,i] = 0.8 * E + 0.2 * y'[j] * y[i]; \
      H'[j,i] = clip(H + m * E, -0.4, 0.4); out y'",
    ),
    (
        "new trace",
        "state y[N] = 0; trace E[N,N] = 0; plastic H[N,N] = 0; modulator m = tanh(sum(y')); \
      y' = tanh(u + (W + H) @ y); E'[j,i] = 0.8 * E + 0.2 * y'[j] * y[i]; \
      H'[j,i] = clip(H + m * E', -0.4, 0.4); out y'",
    ),
    (
        "host modulator",
        "in mod r; state y[N] = 0; plastic H[N,N] = 0; y' = tanh(u + (W + H) @ y); \
      H'[j,i] = clip(H + r * y'[j] * y[i], -0.4, 0.4); out y'",
    ),
    (
        "delta rule",
        "plastic H[N,N] = 0; k = softmax(u); H'[j,i] = H + 0.5 * (W @ u - H @ k)[j] * k[i]; \
      out o[N] = H' @ k",
    ),
    (
        "transposed write",
        "plastic H[N,N] = 0; x = H^T @ u; H'[j,i] = clip(0.9 * H + 0.1 * u[j] * x[i] \
      + 0.2 * W, -0.3, 0.3); out x",
    ),
    (
        "matrices of two shapes",
        "in w[M]; learn V[M,N] ~ uniform(-1, 1); state z[M] = 0; state y[N] = 0; \
      plastic H[M,N] = 0; plastic G[N,M] = 0; z' = tanh(w + (V + H) @ y); y' = tanh(u + (G @ z')); \
      H'[j,i] = clip(H + 0.3 * z'[j] * y[i], -0.4, 0.4); G'[j,i] = clip(G + 0.3 * y[j] * z[i], -0.4, 0.4); \
      out y'",
    ),
    (
        "constrained parameters",
        "learn k in (0, 1) = 0.5; learn g[N] > 0 = 1; learn l < 0 = -0.2; \
      plastic H[N,N] = 0; y = tanh(g * ((W + H) @ u)); H'[j,i] = k * H + l * y[j] * u[i]; out y",
    ),
    (
        "rate per connection",
        "learn R[N,N] ~ uniform(-1, 1); state y[N] = 0; plastic H[N,N] = 0; \
      y' = tanh(u + (W * H) @ y); H'[j,i] = clip(H + R * y'[j] * y[i], -0.3, 0.3); out y'",
    ),
];

fn stateful(items: &str) -> String {
    let extra = if items.contains("[M") { ", M = ?" } else { "" };
    let body = items.replace("; ", "\n  ");
    format!("spec stateful {{\n  axis N = ?{extra}\n  in u[N]\n  learn W[N,N] ~ uniform(-1, 1)\n  {body}\n}}")
}

/// All of them, with their names.
fn all() -> Vec<(&'static str, String)> {
    let elementwise = ELEMENTWISE.iter().map(|(name, e)| (*name, elementwise(e)));
    let structural = STRUCTURAL.iter().map(|(name, e)| (*name, structural(e)));
    let stateful = STATEFUL.iter().map(|(name, e)| (*name, stateful(e)));
    elementwise.chain(structural).chain(stateful).collect()
}

#[test]
fn gradients_agree_with_finite_differences() {
    let mut wrong = vec![];
    for (name, text) in all() {
        let model = model_of(&text);
        for (size, scale) in [(1, 0.3), (3, 2.0), (4, 0.3), (5, 1.0)] {
            let options = Options { steps: 3, state_scale: scale, seed: size as u64, ..Options::default() };
            let report = gradcheck::check(&model, &small_sizes(&model, size), &options);
            for row in report.rows.iter().filter(|r| r.error.is_nan() || r.error > DOUBLE) {
                wrong.push(format!("{name}, size {size}: {} is off by {:.1e}", row.name, row.error));
            }
            if report.dot_error.is_nan() || report.dot_error > 1e-10 {
                wrong.push(format!("{name}, size {size}: dot product is off by {:.1e}", report.dot_error));
            }
        }
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

#[test]
fn machine_code_agrees_with_the_interpreter() {
    let mut wrong = vec![];
    for (name, text) in all() {
        let model = model_of(&text);
        for size in SIZES {
            let options = Options { steps: 4, seed: size as u64, reset_at: Some(2), ..Options::default() };
            let sizes = small_sizes(&model, size);
            let worst = compare(&model, &sizes, &options, Backend::CRANELIFT, &EngineOptions::default());
            if worst.error > SINGLE {
                wrong.push(format!("{name}, size {size}: {} is off by {:.1e}", worst.name, worst.error));
            }
        }
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

/// Autograd on libtorch's operations against our derivatives, where libtorch is built in.
#[test]
fn libtorch_agrees_with_the_interpreter() {
    if !support::has_libtorch() {
        return;
    }
    let mut wrong = vec![];
    for (name, text) in all() {
        let model = model_of(&text);
        for (size, state_scale) in [(1, 0.3), (3, 2.0), (5, 1.0), (31, 0.3)] {
            let (place, dtype) = (torch::Place::Processor, runtime::exact::Dtype::F64);
            let check = Check { seed: size as u64, steps: 4, rows: 3, dtype, place, state_scale };
            let report = runtime::gradcheck::check(&model, &small_sizes(&model, size), &check);
            let report = report.expect("libtorch runs");
            if !report.passed() {
                wrong.push(format!("{name}, size {size}: {:?}", report.worst()));
            }
        }
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

/// Outputs and input gradients of one step of a spec with scalar inputs and outputs, on a back end.
fn at(text: &str, backend: Backend, inputs: &[f64]) -> (Vec<f32>, Vec<Option<f32>>) {
    use compiler::ir::{InputId, OutputId};
    let model = model_of(text);
    let sizes = small_sizes(&model, 1);
    let engine = Engine::new(model, sizes, backend, &EngineOptions::default()).expect("it compiles");
    let bound = engine.bind(&[]).expect("there are no parameters");
    let mut tape = engine.tape(1, Mode::Train);
    bound.begin(&mut tape, None);
    for (k, x) in inputs.iter().enumerate() {
        bound.input_mut(&mut tape, InputId(k as u32))[0] = *x as f32;
    }
    bound.step(&mut tape);
    let outputs = outputs_at(&bound, &tape, 0).concat();
    for k in 0..outputs.len() {
        bound.output_bar_mut(&mut tape, 0, OutputId(k as u32))[0] = 1.0;
    }
    bound.backward(&mut tape, &mut engine.grads(), 0.0, None);
    let bars = (0..inputs.len()).map(|k| bound.input_bar(&tape, 0, InputId(k as u32)).map(|b| b[0]));
    (outputs, bars.collect())
}

/// The interpreter, machine code, and libtorch where it is built in.
fn back_ends() -> Vec<Backend> {
    let libtorch = torch::BUILT_IN.then_some(Backend::Torch(torch::Place::Processor));
    [Backend::Interp, Backend::CRANELIFT].into_iter().chain(libtorch).collect()
}

/// An expression of `x` (and `y`), its value and its derivatives by convention, on all back ends.
fn convention(expression: &str, inputs: &[f64], value: f32, derivatives: &[f32]) {
    let names = if inputs.len() == 1 { "x" } else { "x, y" };
    let text = format!("spec s {{\n  in {names}\n  out o = {expression}\n}}");
    for backend in back_ends() {
        let (outputs, bars) = at(&text, backend, inputs);
        assert_eq!(outputs, [value], "{expression} at {inputs:?}, {backend:?}");
        for (found, expected) in bars.iter().zip(derivatives) {
            let found = found.unwrap_or(0.0);
            assert_eq!(found, *expected, "gradient of {expression} at {inputs:?}, {backend:?}");
        }
    }
}

#[test]
fn gradients_at_ties_follow_the_conventions() {
    for (x, value, derivative) in
        [(-1.0, -1.0, 0.0), (1.0, 1.0, 0.0), (2.0, 1.0, 0.0), (-3.0, -1.0, 0.0), (0.5, 0.5, 1.0)]
    {
        convention("clip(x, -1, 1)", &[x], value, &[derivative]);
    }
    for (x, value) in [(2.0, 1.0), (-3.0, -1.0), (1.0, 1.0), (0.5, 0.5)] {
        convention("clip_st(x, -1, 1)", &[x], value, &[1.0]);
    }
    convention("relu(x)", &[0.0], 0.0, &[0.0]);
    convention("elu(x)", &[0.0], 0.0, &[1.0]);
    convention("abs(x)", &[0.0], 0.0, &[0.0]);
    convention("abs(x)", &[-2.0], 2.0, &[-1.0]);
    convention("min(x, y)", &[1.0, 1.0], 1.0, &[0.0, 1.0]);
    convention("max(x, y)", &[1.0, 1.0], 1.0, &[0.0, 1.0]);
    convention("min(x, y)", &[1.0, 2.0], 1.0, &[1.0, 0.0]);
    convention("max(x, y)", &[1.0, 2.0], 2.0, &[0.0, 1.0]);
    convention("where(x, y, 2 * y)", &[0.0, 3.0], 6.0, &[0.0, 2.0]);
    convention("where(x, y, 2 * y)", &[-1.0, 3.0], 3.0, &[0.0, 1.0]);
    for (x, value) in [(0.0, 0.0), (-2.0, -1.0), (0.5, 1.0)] {
        convention("sign_st(x)", &[x], value, &[1.0]);
        convention("sign(x)", &[x], value, &[0.0]);
    }
    convention("step(x)", &[0.0], 0.0, &[0.0]);
    convention("step(x)", &[0.1], 1.0, &[0.0]);
    convention("x * stopgrad(x)", &[3.0], 9.0, &[3.0]);
    convention(
        "(x < y) + 2 * (x <= y) + 4 * (x == y) + 8 * (x >= y) + 16 * (x > y)",
        &[1.0, 1.0],
        14.0,
        &[0.0, 0.0],
    );
    // At d = 0 the gradient of a soft clip is that of a positive d: hi - S.
    convention("softclip(clip(x, -1, 1), y, -1, 1)", &[0.25, 0.0], 0.25, &[1.0, 0.75]);
}

#[test]
fn the_largest_elements_share_the_gradient() {
    use compiler::ir::{InputId, OutputId};
    let text = "spec s {\n  axis N = 5\n  in x[N]\n  out o = maximum(x)\n}";
    for backend in back_ends() {
        let model = model_of(text);
        let sizes = small_sizes(&model, 5);
        let engine = Engine::new(model, sizes, backend, &EngineOptions::default()).expect("it compiles");
        let bound = engine.bind(&[]).expect("there are no parameters");
        let mut tape = engine.tape(1, Mode::Train);
        bound.begin(&mut tape, None);
        bound.input_mut(&mut tape, InputId(0)).copy_from_slice(&[-1.0, -0.5, -2.0, -0.5, -3.0]);
        bound.step(&mut tape);
        assert_eq!(bound.output(&tape, 0, OutputId(0)), [-0.5]);
        bound.output_bar_mut(&mut tape, 0, OutputId(0))[0] = 1.0;
        bound.backward(&mut tape, &mut engine.grads(), 0.0, None);
        assert_eq!(bound.input_bar(&tape, 0, InputId(0)), Some(&[0.0, 0.5, 0.0, 0.5, 0.0][..]));
    }
}

#[test]
fn parts_outside_of_a_vector_are_refused() {
    for (equation, size) in [("out o[3] = slice(x, 2, 3)", 4), ("out o = x[3]", 3)] {
        let model = model_of(&format!("spec s {{\n  axis N = ?\n  in x[N]\n  {equation}\n}}"));
        for backend in back_ends() {
            let sizes = small_sizes(&model, size);
            let found = Engine::new(model.clone(), sizes, backend, &EngineOptions::default());
            let why = found.err().expect("it is refused").to_string();
            assert!(why.contains("needs a vector of"), "{why}");
        }
    }
}
