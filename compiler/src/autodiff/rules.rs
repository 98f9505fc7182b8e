//! The derivative table of the elementwise operations.
//!
//! Both directions read it: the tangent of `y = f(x…)` is `Σ ∂f/∂x · ẋ`, the cotangent of `x` is
//! `∂f/∂x · ȳ`. A partial derivative is given in a form that lets both avoid `0 · ∞`.

use crate::ir::{Binary, Builder, Op, Unary, Value};

/// ∂ result / ∂ operand, elementwise.
pub(super) enum Partial {
    /// 0
    Zero,
    /// 1
    One,
    /// −1
    MinusOne,
    /// A factor.
    Factor(Value),
    /// 1 / a value.
    Quotient(Value),
    /// 1 where the condition is not zero, else 0.
    Where(Value),
    /// 1 where the condition is zero, else 0.
    Unless(Value),
}

impl Partial {
    /// `∂f/∂x · v`, or `None` if it is zero.
    pub(super) fn times(&self, b: &mut Builder, v: Value) -> Option<Value> {
        let shape = b.shape(v);
        Some(match self {
            Partial::Zero => return None,
            Partial::One => v,
            Partial::MinusOne => b.unary(Unary::Neg, v),
            Partial::Factor(f) => b.mul(v, *f),
            Partial::Quotient(q) => b.div(v, *q),
            Partial::Where(c) => {
                let zero = b.fill(0.0, shape);
                b.select(*c, v, zero)
            }
            Partial::Unless(c) => {
                let zero = b.fill(0.0, shape);
                b.select(*c, zero, v)
            }
        })
    }
}

/// The partial derivatives of an elementwise operation, one per operand; `None` for a structural
/// operation. `primal` gives the value of an operand or (for `result`) of the operation itself.
pub(super) fn partials(
    b: &mut Builder,
    op: &Op,
    result: Value,
    primal: &mut dyn FnMut(&mut Builder, Value) -> Value,
) -> Option<Vec<Partial>> {
    Some(match op {
        Op::Unary(f, x) => vec![unary(b, *f, *x, result, primal)],
        Op::Binary(f, x, y) => binary(b, *f, *x, *y, result, primal),
        Op::Select(c, _, _) => {
            let c = primal(b, *c);
            vec![Partial::Zero, Partial::Where(c), Partial::Unless(c)]
        }
        Op::Clip { low, high, .. } => {
            // low < y < high, strictly: a clipped value, ties included, passes nothing.
            let y = primal(b, result);
            let shape = b.shape(y);
            let (low, high) = (primal(b, *low), primal(b, *high));
            let (low, high) = (b.splat(low, shape), b.splat(high, shape));
            let above = b.binary(Binary::Less, low, y);
            let below = b.binary(Binary::Less, y, high);
            let inside = b.mul(above, below);
            vec![Partial::Where(inside), Partial::Zero, Partial::Zero]
        }
        Op::StopGrad(_) => vec![Partial::Zero],
        _ => return None,
    })
}

fn unary(
    b: &mut Builder,
    f: Unary,
    x: Value,
    result: Value,
    primal: &mut dyn FnMut(&mut Builder, Value) -> Value,
) -> Partial {
    match f {
        Unary::Neg => Partial::MinusOne,
        Unary::Tanh => {
            // 1 - y²
            let y = primal(b, result);
            let shape = b.shape(y);
            let (one, square) = (b.fill(1.0, shape), b.mul(y, y));
            Partial::Factor(b.sub(one, square))
        }
        Unary::Sigmoid => {
            // y (1 - y)
            let y = primal(b, result);
            let shape = b.shape(y);
            let one = b.fill(1.0, shape);
            let rest = b.sub(one, y);
            Partial::Factor(b.mul(y, rest))
        }
        Unary::Exp => Partial::Factor(primal(b, result)),
        Unary::Log => Partial::Quotient(primal(b, x)),
        Unary::Sqrt => {
            // 1 / (2 y)
            let y = primal(b, result);
            Partial::Quotient(b.add(y, y))
        }
        Unary::Softplus => {
            let x = primal(b, x);
            Partial::Factor(b.unary(Unary::Sigmoid, x))
        }
        Unary::Relu => {
            let x = primal(b, x);
            let shape = b.shape(x);
            let zero = b.fill(0.0, shape);
            Partial::Where(b.binary(Binary::Less, zero, x))
        }
        Unary::Abs => {
            let x = primal(b, x);
            Partial::Factor(b.unary(Unary::Sign, x))
        }
        Unary::Sign => Partial::Zero,
    }
}

fn binary(
    b: &mut Builder,
    f: Binary,
    x: Value,
    y: Value,
    result: Value,
    primal: &mut dyn FnMut(&mut Builder, Value) -> Value,
) -> Vec<Partial> {
    match f {
        Binary::Add => vec![Partial::One, Partial::One],
        Binary::Sub => vec![Partial::One, Partial::MinusOne],
        Binary::Mul => vec![Partial::Factor(primal(b, y)), Partial::Factor(primal(b, x))],
        Binary::Div => {
            // ∂(x/y)/∂y = -(x/y)/y
            let (q, y) = (primal(b, result), primal(b, y));
            let ratio = b.div(q, y);
            vec![Partial::Quotient(y), Partial::Factor(b.unary(Unary::Neg, ratio))]
        }
        Binary::Min => {
            let (x, y) = (primal(b, x), primal(b, y));
            let first = b.binary(Binary::Less, x, y);
            vec![Partial::Where(first), Partial::Unless(first)]
        }
        Binary::Max => {
            let (x, y) = (primal(b, x), primal(b, y));
            let first = b.binary(Binary::Less, y, x);
            vec![Partial::Where(first), Partial::Unless(first)]
        }
        Binary::Less | Binary::LessEqual | Binary::Equal => vec![Partial::Zero, Partial::Zero],
    }
}
