//! The elementwise functions of the kernels against double precision: bounds over their whole range,
//! and what they do with NaN, infinities and numbers beyond the range.
//!
//! Errors are in units in the last place of the correct result, where that is a normal number. The
//! arguments are all bit patterns at a stride, so every exponent is seen alike; near ln 1 and other
//! points of cancellation the samples are denser.

mod support;

use compiler::ir::{InputId, OutputId, Sizes};
use runtime::engine::{Backend, Engine, EngineOptions, Mode};
use std::collections::BTreeMap;
use support::model_of;

const CHUNK: usize = 4096;

/// Evaluates `out y[N] = f(x)` on many numbers.
struct Kernel {
    engine: Engine,
}

impl Kernel {
    fn new(expression: &str, backend: Backend) -> Kernel {
        let model = model_of(&format!("spec k {{\n  axis N = ?\n  in x[N]\n  out y[N] = {expression}\n}}"));
        let sizes = Sizes::bind(&model.axes, &BTreeMap::from([("N".to_owned(), CHUNK)])).expect("one axis");
        let options = EngineOptions::default();
        Kernel { engine: Engine::new(model, sizes, backend, &options).expect("it compiles") }
    }

    fn eval(&self, xs: &[f32]) -> Vec<f32> {
        let bound = self.engine.bind(&[]).expect("there are no parameters");
        let mut tape = self.engine.tape(1, Mode::Infer);
        bound.begin(&mut tape, None);
        let mut ys = vec![];
        for (t, chunk) in xs.chunks(CHUNK).enumerate() {
            bound.input_mut(&mut tape, InputId(0))[..chunk.len()].copy_from_slice(chunk);
            bound.step(&mut tape);
            ys.extend_from_slice(&bound.output(&tape, t, OutputId(0))[..chunk.len()]);
        }
        ys
    }
}

/// Normal numbers between two bounds: bit patterns at a stride, of both signs where the range has
/// both, and evenly spaced ones.
fn samples(low: f32, high: f32) -> Vec<f32> {
    let patterns = (f32::MIN_POSITIVE.to_bits()..f32::MAX.to_bits()).step_by(4099).map(f32::from_bits);
    let both = patterns.flat_map(|x| [x, -x]);
    let even = (0..=200_000).map(|k| low + (high - low) * (k as f32 / 200_000.0));
    both.chain(even).filter(|x| *x >= low && *x <= high).collect()
}

/// The distance between neighbours in single precision at a number.
fn ulp(y: f64) -> f64 {
    let exponent = (y.abs().max(f64::from(f32::MIN_POSITIVE))).log2().floor() as i32;
    2f64.powi(exponent - 23)
}

/// The largest error over a range, in units in the last place, and where it is.
fn worst(expression: &str, exact: fn(f64) -> f64, low: f32, high: f32) -> (f64, f32) {
    let xs = samples(low, high);
    let mut worst = (0.0, 0.0);
    for (x, y) in xs.iter().zip(Kernel::new(expression, Backend::CRANELIFT).eval(&xs)) {
        let expected = exact(f64::from(*x));
        assert!(y.is_finite(), "{expression} at {x:e} is {y}, expected {expected:e}");
        // At the edge of what is flushed to zero, a rounding error decides.
        if expected.abs() < 2.0 * f64::from(f32::MIN_POSITIVE) {
            let tiny = 2.0 * f32::MIN_POSITIVE;
            assert!(y.abs() <= tiny, "{expression} at {x:e} is {y:e}, expected {expected:e}");
            continue;
        }
        let error = (f64::from(y) - expected).abs() / ulp(expected);
        if error > worst.0 {
            worst = (error, *x);
        }
    }
    worst
}

fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

fn softplus(x: f64) -> f64 {
    x.max(0.0) + (-x.abs()).exp().ln_1p()
}

/// An expression, what it should give, its range, and the largest error in units of the last place.
type Claim = (&'static str, fn(f64) -> f64, f32, f32, f64);

#[test]
fn functions_are_as_accurate_as_their_documentation_says() {
    let huge = f32::MAX;
    let table: [Claim; 9] = [
        ("exp(x)", f64::exp, -87.3365, 88.376, 1.5),
        ("log(x)", f64::ln, f32::MIN_POSITIVE, huge, 1.0),
        ("log(x)", f64::ln, 0.5, 2.0, 1.0),
        ("tanh(x)", f64::tanh, 3e-36, huge, 4.0),
        ("tanh(x)", f64::tanh, -huge, -3e-36, 4.0),
        ("tanh(x)", f64::tanh, 3e-36, 1.0, 4.0),
        ("tanh(x)", f64::tanh, 7.0, 30.0, 4.0),
        ("sigmoid(x)", sigmoid, -87.3, huge, 3.0),
        ("softplus(x)", softplus, -87.3, huge, 3.0),
    ];
    let mut wrong = vec![];
    for (expression, exact, low, high, bound) in table {
        let (error, at) = worst(expression, exact, low, high);
        println!("{expression} in [{low:e}, {high:e}]: {error:.2} ulp at {at:e}");
        if error > bound {
            wrong.push(format!("{expression} is off by {error:.2} ulp at {at:e}"));
        }
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

#[test]
fn ranges_are_kept() {
    let xs = samples(-f32::MAX, f32::MAX);
    let within = |expression: &str, low: f32, high: f32| {
        let ys = Kernel::new(expression, Backend::CRANELIFT).eval(&xs);
        for (x, y) in xs.iter().zip(ys) {
            assert!(y >= low && y <= high, "{expression} at {x:e} is {y:e}");
        }
    };
    // 1 - tanh² must not become negative by more than a rounding error.
    within("tanh(x)", -1.0, 1.0);
    within("sigmoid(x)", 0.0, 1.0);
    within("exp(x)", 0.0, f32::INFINITY);
    within("softplus(x)", 0.0, f32::INFINITY);
    within("abs(x)", 0.0, f32::INFINITY);
    within("clip(x, -2, 3)", -2.0, 3.0);
}

#[test]
fn infinities_have_their_limits() {
    let (inf, nan) = (f32::INFINITY, f32::NAN);
    let table: [(&str, f32, f32); 13] = [
        ("exp(x)", inf, 0.0),
        ("log(x)", inf, nan),
        ("sigmoid(x)", 1.0, 0.0),
        ("softplus(x)", inf, 0.0),
        ("relu(x)", inf, 0.0),
        ("abs(x)", inf, inf),
        ("sqrt(x)", inf, nan),
        ("clip(x, -2, 3)", 3.0, -2.0),
        ("elu(x)", inf, -1.0),
        ("sign(x)", 1.0, -1.0),
        ("min(x, 5)", 5.0, -inf),
        ("max(x, 5)", inf, 5.0),
        ("1 / x", 0.0, 0.0),
    ];
    for (expression, up, down) in table {
        for backend in [Backend::Interp, Backend::CRANELIFT] {
            let ys = Kernel::new(expression, backend).eval(&[inf, -inf]);
            for (y, expected) in ys.iter().zip([up, down]) {
                let same = *y == expected || (y.is_nan() && expected.is_nan());
                assert!(same, "{expression} at infinity is {ys:?}, {backend:?}");
            }
        }
    }
    // The approximation of tanh ends four units in the last place before one.
    let tanh = Kernel::new("tanh(x)", Backend::CRANELIFT).eval(&[inf, -inf, 1e-36, -1e-36]);
    assert_eq!(tanh, [0.999_999_76, -0.999_999_76, 0.0, 0.0]);
    let zero = Kernel::new("log(x)", Backend::CRANELIFT).eval(&[0.0, -0.0, -1.0]);
    assert!(zero[0] == -inf && zero[1] == -inf && zero[2].is_nan(), "{zero:?}");
}

#[test]
fn a_number_that_is_none_stays_none() {
    for expression in [
        "exp(x)",
        "log(x)",
        "tanh(x)",
        "sigmoid(x)",
        "softplus(x)",
        "relu(x)",
        "elu(x)",
        "abs(x)",
        "sqrt(x)",
        "clip(x, -2, 3)",
        "x + 1",
        "1 / x",
        "softmax(x)",
        "layernorm(x)",
        "x^3",
        "max(1, x)",
        "min(1, x)",
    ] {
        for backend in [Backend::Interp, Backend::CRANELIFT] {
            let y = Kernel::new(expression, backend).eval(&[f32::NAN])[0];
            assert!(y.is_nan(), "{expression} of NaN is {y}, {backend:?}");
        }
    }
}

#[test]
fn what_exceeds_the_range_is_infinite_or_zero() {
    let exp = Kernel::new("exp(x)", Backend::CRANELIFT).eval(&[88.377, 88.8, 1e30, -87.34, -104.0, -1e30]);
    assert_eq!(exp, [f32::INFINITY, f32::INFINITY, f32::INFINITY, 0.0, 0.0, 0.0]);
    let sigmoid = Kernel::new("sigmoid(x)", Backend::CRANELIFT).eval(&[-89.0, -1e30, 89.0, 1e30]);
    assert_eq!(sigmoid, [0.0, 0.0, 1.0, 1.0]);
    let softplus = Kernel::new("softplus(x)", Backend::CRANELIFT).eval(&[-89.0, -1e30, 89.0, 1e30]);
    assert_eq!(softplus, [0.0, 0.0, 89.0, 1e30]);
    let product = Kernel::new("x * x", Backend::CRANELIFT).eval(&[1e30, 1e-30]);
    assert_eq!(product, [f32::INFINITY, 0.0]);
}
