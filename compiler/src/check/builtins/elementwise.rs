//! Functions of numbers, element by element. Operands of several arguments are brought together as
//! those of an operator are.

use super::super::checker::Checker;
use super::super::types::{Kind, Typed};
use super::Call;
use crate::ir::{Binary, Op, Unary, Value};

/// `x` where `x > 0`, else `exp(x) - 1`. The exponential sees `min(x, 0)`, so that it cannot
/// overflow where it is not taken.
pub(super) fn elu<'a>(c: &mut Checker<'a>, call: &Call<'a>) -> Option<Typed> {
    let x = c.expr(&call.arguments[0])?;
    c.builder.set_span(call.expr.span);
    let b = &mut c.builder;
    let zero = b.fill(0.0, x.kind.shape());
    let one = b.fill(1.0, x.kind.shape());
    let below = b.binary(Binary::Min, zero, x.value);
    let exponential = b.unary(Unary::Exp, below);
    let exponential = b.sub(exponential, one);
    let positive = b.binary(Binary::Less, zero, x.value);
    Some(Typed { value: b.select(positive, x.value, exponential), kind: x.kind })
}

/// 1 where `x > 0`, else 0.
pub(super) fn step<'a>(c: &mut Checker<'a>, call: &Call<'a>) -> Option<Typed> {
    let x = c.expr(&call.arguments[0])?;
    c.builder.set_span(call.expr.span);
    let zero = c.builder.fill(0.0, x.kind.shape());
    Some(Typed { value: c.builder.binary(Binary::Less, zero, x.value), kind: x.kind })
}

/// `min(a, b)`
pub(super) fn min<'a>(c: &mut Checker<'a>, call: &Call<'a>) -> Option<Typed> {
    two(c, call, Binary::Min)
}

/// `max(a, b)`
pub(super) fn max<'a>(c: &mut Checker<'a>, call: &Call<'a>) -> Option<Typed> {
    two(c, call, Binary::Max)
}

fn two<'a>(c: &mut Checker<'a>, call: &Call<'a>, f: Binary) -> Option<Typed> {
    let (values, kind) = together(c, call, 2)?;
    Some(Typed { value: c.builder.binary(f, values[0], values[1]), kind })
}

/// The first `n` arguments, brought to the kind that they have together.
fn together<'a>(c: &mut Checker<'a>, call: &Call<'a>, n: usize) -> Option<(Vec<Value>, Kind)> {
    let operands = &call.arguments[..n];
    let typed = c.values(operands)?;
    c.builder.set_span(call.expr.span);
    let pairs: Vec<_> = typed.iter().copied().zip(operands).collect();
    let kind = c.join(&call.function.name, call.function.span, &pairs)?;
    Some((typed.into_iter().map(|t| c.lift(t, kind)).collect(), kind))
}

/// `where(condition, a, b)`
pub(super) fn select<'a>(c: &mut Checker<'a>, call: &Call<'a>) -> Option<Typed> {
    let (values, kind) = together(c, call, 3)?;
    Some(Typed { value: c.builder.select(values[0], values[1], values[2]), kind })
}

/// The two bounds that start at argument `k`.
fn bounds<'a>(c: &mut Checker<'a>, call: &Call<'a>, k: usize) -> Option<(Value, Value)> {
    let what = "the bound of a clip";
    let (low, high) =
        (c.constant_argument(&call.arguments[k], what), c.constant_argument(&call.arguments[k + 1], what));
    let (low, high) = (low?, high?);
    if let (Some(a), Some(b)) = (c.declared_number(&low), c.declared_number(&high))
        && (a >= b || a.is_nan() || b.is_nan())
    {
        let span = call.arguments[k].span.to(call.arguments[k + 1].span);
        let message = format!("the range of `{}` is empty", call.function.name);
        let help = format!(
            "write the lower bound first: `{}({}, {b}, {a})`",
            call.function.name,
            match k {
                1 => "x",
                _ => "S, d",
            }
        );
        let help = if a == b { "the lower bound must be below the upper one".to_owned() } else { help };
        c.bad_range(span, &message, &format!("from {a} to {b}"), &help);
        return None;
    }
    c.builder.set_span(call.expr.span);
    Some((c.constant_value(&low), c.constant_value(&high)))
}

/// `min(max(x, low), high)`; no gradient where it clips.
pub(super) fn clip<'a>(c: &mut Checker<'a>, call: &Call<'a>) -> Option<Typed> {
    let x = c.expr(&call.arguments[0]);
    let (low, high) = bounds(c, call, 1)?;
    let x = x?;
    Some(Typed { value: c.builder.emit(Op::Clip { x: x.value, low, high }), kind: x.kind })
}

/// `clip` whose gradient is that of `x`: `x + stopgrad(clip(x) - x)`.
pub(super) fn clip_st<'a>(c: &mut Checker<'a>, call: &Call<'a>) -> Option<Typed> {
    let clipped = clip(c, call)?;
    let x = c.expr(&call.arguments[0])?;
    c.builder.set_span(call.expr.span);
    Some(straight_through(c, x, clipped.value))
}

/// `sign` whose gradient is that of `x`.
pub(super) fn sign_st<'a>(c: &mut Checker<'a>, call: &Call<'a>) -> Option<Typed> {
    let x = c.expr(&call.arguments[0])?;
    c.builder.set_span(call.expr.span);
    let sign = c.builder.unary(Unary::Sign, x.value);
    Some(straight_through(c, x, sign))
}

fn straight_through(c: &mut Checker<'_>, x: Typed, value: Value) -> Typed {
    let difference = c.builder.sub(value, x.value);
    let constant = c.builder.emit(Op::StopGrad(difference));
    Typed { value: c.builder.add(x.value, constant), kind: x.kind }
}

/// `clip(S + max(d,0) (high-S) + min(d,0) (S-low), low, high)`. The further `S` is from a bound, the
/// larger the step towards it. At `d = 0` the gradient is that of a positive step.
pub(super) fn softclip<'a>(c: &mut Checker<'a>, call: &Call<'a>) -> Option<Typed> {
    let operands = together(c, call, 2);
    let (low, high) = bounds(c, call, 2)?;
    let (values, kind) = operands?;
    let (s, d) = (values[0], values[1]);
    c.facts.softclips.push((d, call.arguments[1].span));
    let b = &mut c.builder;
    let zero = b.fill(0.0, kind.shape());
    let (low_full, high_full) = (b.splat(low, kind.shape()), b.splat(high, kind.shape()));
    // A tie gives its gradient to the second operand: to `d` above, to the zero below.
    let up = b.binary(Binary::Max, zero, d);
    let down = b.binary(Binary::Min, d, zero);
    let above = b.sub(high_full, s);
    let below = b.sub(s, low_full);
    let up = b.mul(up, above);
    let down = b.mul(down, below);
    let sum = b.add(s, up);
    let sum = b.add(sum, down);
    Some(Typed { value: b.emit(Op::Clip { x: sum, low, high }), kind })
}

/// `v + dt/tau (drive - v)`: one Euler step of a leaky integrator.
pub(super) fn leak<'a>(c: &mut Checker<'a>, call: &Call<'a>) -> Option<Typed> {
    let (values, kind) = together(c, call, 4)?;
    let b = &mut c.builder;
    let rate = b.div(values[3], values[2]);
    let distance = b.sub(values[1], values[0]);
    let step = b.mul(rate, distance);
    Some(Typed { value: b.add(values[0], step), kind })
}

/// The value without its gradient.
pub(super) fn stopgrad<'a>(c: &mut Checker<'a>, call: &Call<'a>) -> Option<Typed> {
    let x = c.expr(&call.arguments[0])?;
    c.builder.set_span(call.expr.span);
    Some(Typed { value: c.builder.emit(Op::StopGrad(x.value)), kind: x.kind })
}
