//! The one definition of every elementwise function, in primitive operations of a body.
//!
//! Back ends know none of these functions; they spell what stands here. `tests/accuracy.rs` holds
//! the bounds, in units in the last place of the exact result where that is a normal number:
//!
//! | function | bound | measured | range |
//! |---|---|---|---|
//! | `exp` | 1.5 | 1.24 | −87.33 … 88.37; 0 below, ∞ above |
//! | `ln` | 1 | 0.79 | all positive numbers; −∞ at 0, ∞ at ∞ |
//! | `tanh` | 4 | 4.00 | from 3e-36 on; 0 below 2e-36; ends at 1 − 2⁻²² |
//! | `σ` | 3 | 2.69 | −87.3 … ∞; 0 below −88.4 |
//! | `softplus` | 3 | 2.53 | −87.3 … ∞; 0 below |
//!
//! NaN stays NaN. Where the exact result is denormal, it may be 0.

use super::body::{Body, BodyOp, Id};
use crate::ir::{Binary, Unary};

/// Emits an elementwise function of one operand.
pub(super) fn unary(b: &mut Body, f: Unary, x: Id) -> Id {
    match f {
        Unary::Neg => b.push(BodyOp::Neg(x)),
        Unary::Abs => b.push(BodyOp::Abs(x)),
        Unary::Sqrt => b.push(BodyOp::Sqrt(x)),
        Unary::Relu => {
            let zero = b.constant(0.0);
            b.push(BodyOp::Max(zero, x))
        }
        Unary::Sign => sign(b, x),
        Unary::Tanh => tanh(b, x),
        Unary::Exp => exp(b, x),
        Unary::Log => log(b, x),
        Unary::Sigmoid => sigmoid(b, x),
        Unary::Softplus => softplus(b, x),
    }
}

/// Emits an elementwise function of two numbers; comparisons give masks.
pub(super) fn binary(b: &mut Body, f: Binary, x: Id, y: Id) -> Id {
    b.push(match f {
        Binary::Add => BodyOp::Add(x, y),
        Binary::Sub => BodyOp::Sub(x, y),
        Binary::Mul => BodyOp::Mul(x, y),
        Binary::Div => BodyOp::Div(x, y),
        Binary::Min => BodyOp::Min(x, y),
        Binary::Max => BodyOp::Max(x, y),
        Binary::Less => BodyOp::Less(x, y),
        Binary::LessEqual => BodyOp::LessEqual(x, y),
        Binary::Equal => BodyOp::Equal(x, y),
    })
}

/// `min(max(x, low), high)`, keeping NaN.
pub(super) fn clip(b: &mut Body, x: Id, low: Id, high: Id) -> Id {
    let up = b.push(BodyOp::Max(low, x));
    b.push(BodyOp::Min(high, up))
}

fn sign(b: &mut Body, x: Id) -> Id {
    let (zero, one, minus) = (b.constant(0.0), b.constant(1.0), b.constant(-1.0));
    let positive = b.push(BodyOp::Less(zero, x));
    let negative = b.push(BodyOp::Less(x, zero));
    let down = b.push(BodyOp::Keep(negative, minus));
    b.push(BodyOp::Select(positive, one, down))
}

/// `Σ_k c_k x^k`, coefficients from the highest power down, by Horner's scheme.
fn polynomial(b: &mut Body, x: Id, coefficients: &[f64]) -> Id {
    let mut sum = b.constant(coefficients[0]);
    for c in &coefficients[1..] {
        let c = b.constant(*c);
        sum = b.push(BodyOp::Fma(sum, x, c));
    }
    sum
}

/// A rational approximation of degree 13/6 on |x| < 7.905, where `tanh` is within 3e-7 of 1.
fn tanh(b: &mut Body, x: Id) -> Id {
    let (low, high) = (b.constant(-7.905_311_107_635_498), b.constant(7.905_311_107_635_498));
    let x = clip(b, x, low, high);
    let square = b.push(BodyOp::Mul(x, x));
    let p = polynomial(
        b,
        square,
        &[
            -2.760_768_477_423_55e-16,
            2.000_187_904_824_77e-13,
            -8.604_671_522_137_35e-11,
            5.122_297_090_371_14e-8,
            1.485_722_357_179_79e-5,
            6.372_619_288_754_36e-4,
            4.893_524_558_917_86e-3,
        ],
    );
    let p = b.push(BodyOp::Mul(p, x));
    let q = polynomial(
        b,
        square,
        &[1.198_258_394_667_02e-6, 1.185_347_056_866_54e-4, 2.268_434_632_439e-3, 4.893_525_185_543_85e-3],
    );
    b.push(BodyOp::Div(p, q))
}

/// `2^n · e^r` with `n = round(x / ln 2)` and a polynomial in `r`; 0 below −87.3, ∞ above 88.3.
fn exp(b: &mut Body, x: Id) -> Id {
    let (low, high) = (b.constant(-87.336_54), b.constant(88.376_26));
    let clipped = clip(b, x, low, high);
    let log2e = b.constant(std::f64::consts::LOG2_E);
    let scaled = b.push(BodyOp::Mul(clipped, log2e));
    let n = b.push(BodyOp::Round(scaled));
    let (high_part, low_part) = (b.constant(0.693_359_375), b.constant(-2.121_944_4e-4));
    let r = b.push(BodyOp::FmaNeg(n, high_part, clipped));
    let r = b.push(BodyOp::FmaNeg(n, low_part, r));
    let p = polynomial(
        b,
        r,
        &[
            1.987_569_15e-4,
            1.398_199_950_7e-3,
            8.333_451_907_3e-3,
            4.166_579_589_4e-2,
            1.666_666_545_9e-1,
            5.000_000_120_1e-1,
        ],
    );
    let square = b.push(BodyOp::Mul(r, r));
    let one = b.constant(1.0);
    let tail = b.push(BodyOp::Add(r, one));
    let m = b.push(BodyOp::Fma(p, square, tail));
    let power = b.push(BodyOp::PowerOfTwo(n));
    let y = b.push(BodyOp::Mul(m, power));
    let over = b.push(BodyOp::Less(high, x));
    let infinity = b.constant(f64::INFINITY);
    let y = b.push(BodyOp::Select(over, infinity, y));
    let under = b.push(BodyOp::Less(x, low));
    let zero = b.constant(0.0);
    b.push(BodyOp::Select(under, zero, y))
}

/// The logarithm of all numbers: −∞ at 0 and of numbers that are flushed to it, ∞ at ∞, NaN of
/// negative numbers and NaN.
fn log(b: &mut Body, x: Id) -> Id {
    let y = log_normal(b, x);
    let (zero, infinity) = (b.constant(0.0), b.constant(f64::INFINITY));
    let (minus_infinity, nan) = (b.constant(f64::NEG_INFINITY), b.constant(f64::NAN));
    let is_finite = b.push(BodyOp::Less(x, infinity));
    let y = b.push(BodyOp::Select(is_finite, y, x));
    let is_zero = b.push(BodyOp::Equal(x, zero));
    let is_positive = b.push(BodyOp::Less(zero, x));
    let otherwise = b.push(BodyOp::Select(is_zero, minus_infinity, nan));
    b.push(BodyOp::Select(is_positive, y, otherwise))
}

/// `e · ln 2 + ln m` with `m` between √½ and √2, and a polynomial in `m − 1`; for positive normal
/// numbers.
fn log_normal(b: &mut Body, x: Id) -> Id {
    let mantissa = b.push(BodyOp::Mantissa(x));
    let exponent = b.push(BodyOp::Exponent(x));
    let (root, half, one) = (b.constant(std::f64::consts::SQRT_2), b.constant(0.5), b.constant(1.0));
    let large = b.push(BodyOp::Less(root, mantissa));
    let halved = b.push(BodyOp::Mul(mantissa, half));
    let m = b.push(BodyOp::Select(large, halved, mantissa));
    let raised = b.push(BodyOp::Add(exponent, one));
    let e = b.push(BodyOp::Select(large, raised, exponent));
    let f = b.push(BodyOp::Sub(m, one));
    let square = b.push(BodyOp::Mul(f, f));
    let p = polynomial(
        b,
        f,
        &[
            7.037_683_629_2e-2,
            -1.151_461_031e-1,
            1.167_699_874e-1,
            -1.242_014_084_6e-1,
            1.424_932_278_7e-1,
            -1.666_805_766_5e-1,
            2.000_071_476_5e-1,
            -2.499_999_399_3e-1,
            3.333_333_117_4e-1,
        ],
    );
    let p = b.push(BodyOp::Mul(p, f));
    let p = b.push(BodyOp::Mul(p, square));
    let low_part = b.constant(-2.121_944_4e-4);
    let p = b.push(BodyOp::Fma(e, low_part, p));
    let p = b.push(BodyOp::FmaNeg(square, half, p));
    let p = b.push(BodyOp::Add(f, p));
    let high_part = b.constant(0.693_359_375);
    b.push(BodyOp::Fma(e, high_part, p))
}

/// `1 / (1 + exp(-x))`
fn sigmoid(b: &mut Body, x: Id) -> Id {
    let minus = b.push(BodyOp::Neg(x));
    let e = exp(b, minus);
    let one = b.constant(1.0);
    let below = b.push(BodyOp::Add(one, e));
    b.push(BodyOp::Div(one, below))
}

/// `max(x, 0) + log1p(exp(-|x|))`, with `log1p(e) = ln(1+e) · e / ((1+e) − 1)`.
fn softplus(b: &mut Body, x: Id) -> Id {
    let (zero, one) = (b.constant(0.0), b.constant(1.0));
    let magnitude = b.push(BodyOp::Abs(x));
    let minus = b.push(BodyOp::Neg(magnitude));
    let e = exp(b, minus);
    let u = b.push(BodyOp::Add(one, e));
    let logarithm = log_normal(b, u);
    let rounded = b.push(BodyOp::Sub(u, one));
    let correction = b.push(BodyOp::Div(e, rounded));
    let corrected = b.push(BodyOp::Mul(logarithm, correction));
    let exact = b.push(BodyOp::Equal(u, one));
    let log1p = b.push(BodyOp::Select(exact, e, corrected));
    let positive = b.push(BodyOp::Max(zero, x));
    b.push(BodyOp::Add(positive, log1p))
}
