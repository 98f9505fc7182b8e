//! Functions along the axis of a vector; `sum` and `mean` also take a matrix.

use super::super::checker::Checker;
use super::super::codes;
use super::super::types::{Kind, Typed};
use super::Call;
use crate::ir::{Axis, Linear, Op, Unary, Value};
use grammar::ast::Expr;
use grammar::diag::Diagnostic;

/// Keeps square roots differentiable at zero.
pub(super) const TINY: f64 = 1e-12;

fn sum_all(c: &mut Checker<'_>, v: Value) -> Value {
    c.builder.emit(Op::SumAll(v))
}

/// `exp(v - max v) / Σ`. The maximum carries no gradient: it cancels.
pub(super) fn softmax<'a>(c: &mut Checker<'a>, call: &Call<'a>) -> Option<Typed> {
    let (v, axis) = c.vector_argument(call, 0)?;
    let shape = Kind::Vector(axis).shape();
    let b = &mut c.builder;
    let top = b.emit(Op::MaxAll(v.value));
    let top = b.emit(Op::StopGrad(top));
    let top = b.splat(top, shape);
    let shifted = b.sub(v.value, top);
    let exponential = b.unary(Unary::Exp, shifted);
    let sum = b.emit(Op::SumAll(exponential));
    let sum = b.splat(sum, shape);
    Some(Typed { value: b.div(exponential, sum), kind: v.kind })
}

/// `v / Σ v`
pub(super) fn sumnorm<'a>(c: &mut Checker<'a>, call: &Call<'a>) -> Option<Typed> {
    let (v, axis) = c.vector_argument(call, 0)?;
    let sum = sum_all(c, v.value);
    let sum = c.builder.splat(sum, Kind::Vector(axis).shape());
    Some(Typed { value: c.builder.div(v.value, sum), kind: v.kind })
}

/// `(v - mean) / √(variance + 1e-5)`
pub(super) fn layernorm<'a>(c: &mut Checker<'a>, call: &Call<'a>) -> Option<Typed> {
    let (v, axis) = c.vector_argument(call, 0)?;
    let shape = Kind::Vector(axis).shape();
    let n = c.builder.size(axis);
    let sum = sum_all(c, v.value);
    let b = &mut c.builder;
    let mean = b.div(sum, n);
    let mean = b.splat(mean, shape);
    let centred = b.sub(v.value, mean);
    let squares = b.mul(centred, centred);
    let variance = b.emit(Op::SumAll(squares));
    let variance = b.div(variance, n);
    let small = b.constant(1e-5);
    let variance = b.add(variance, small);
    let deviation = b.unary(Unary::Sqrt, variance);
    let deviation = b.splat(deviation, shape);
    Some(Typed { value: b.div(centred, deviation), kind: v.kind })
}

/// `√(Σ v² + 1e-12)`
pub(super) fn norm<'a>(c: &mut Checker<'a>, call: &Call<'a>) -> Option<Typed> {
    let (v, _) = c.vector_argument(call, 0)?;
    Some(Typed { value: root_of_squares(c, v.value), kind: Kind::Scalar })
}

/// `√(Σ x² + 1e-12)` over all elements.
pub(super) fn root_of_squares(c: &mut Checker<'_>, v: Value) -> Value {
    let squares = c.builder.mul(v, v);
    let sum = sum_all(c, squares);
    let tiny = c.builder.constant(TINY);
    let sum = c.builder.add(sum, tiny);
    c.builder.unary(Unary::Sqrt, sum)
}

/// A vector or a matrix, for functions that take both.
fn reducible<'a>(c: &mut Checker<'a>, call: &Call<'a>) -> Option<Typed> {
    let e = &call.arguments[0];
    let x = c.expr(e)?;
    c.builder.set_span(call.expr.span);
    if matches!(x.kind, Kind::Vector(_) | Kind::Matrix { .. }) {
        return Some(x);
    }
    let help = match x.kind {
        Kind::Scalar => "a scalar needs no reduction",
        _ => "apply it to the whole vector, without an index",
    };
    c.argument_kind(call, e, x.kind, "a vector or a matrix", help);
    None
}

/// `Σ x` over all elements.
pub(super) fn sum<'a>(c: &mut Checker<'a>, call: &Call<'a>) -> Option<Typed> {
    let x = reducible(c, call)?;
    Some(Typed { value: sum_all(c, x.value), kind: Kind::Scalar })
}

/// `Σ x` over all elements, by their number.
pub(super) fn mean<'a>(c: &mut Checker<'a>, call: &Call<'a>) -> Option<Typed> {
    let x = reducible(c, call)?;
    let sum = sum_all(c, x.value);
    let mut n = None;
    for axis in super::super::parameters::dims(x.kind.shape()) {
        let size = c.builder.size(axis);
        n = Some(n.map_or(size, |n| c.builder.mul(n, size)));
    }
    let value = n.map_or(sum, |n| c.builder.div(sum, n));
    Some(Typed { value, kind: Kind::Scalar })
}

/// The largest element.
pub(super) fn maximum<'a>(c: &mut Checker<'a>, call: &Call<'a>) -> Option<Typed> {
    let x = reducible(c, call)?;
    Some(Typed { value: c.builder.emit(Op::MaxAll(x.value)), kind: Kind::Scalar })
}

/// The vectors one after the other.
pub(super) fn concat<'a>(c: &mut Checker<'a>, call: &Call<'a>) -> Option<Typed> {
    let parts: Vec<Option<(Typed, Axis)>> =
        (0..call.arguments.len()).map(|k| c.vector_argument(call, k)).collect();
    let parts: Vec<(Typed, Axis)> = parts.into_iter().collect::<Option<_>>()?;
    let mut total = Linear::default();
    for (_, axis) in &parts {
        total = super::super::axes::combine(&total, c.axes.linear(*axis), 1);
    }
    let axis = c.axes.intern(total);
    let values = parts.iter().map(|(t, _)| t.value).collect();
    Some(Typed { value: c.builder.emit(Op::Concat(values, axis)), kind: Kind::Vector(axis) })
}

/// `length` elements of a vector, from `start` on.
pub(super) fn slice<'a>(c: &mut Checker<'a>, call: &Call<'a>) -> Option<Typed> {
    let v = c.vector_argument(call, 0);
    let start = c.axis_argument(&call.arguments[1]);
    let length = c.axis_argument(&call.arguments[2]);
    let ((v, axis), start, length) = (v?, start?, length?);
    let end = super::super::axes::combine(&start, &length, 1);
    let room = super::super::axes::combine(c.axes.linear(axis), &end, -1);
    let below = |l: &Linear| {
        let negative = l.constant <= 0 && l.terms.values().all(|c| *c < 0);
        negative && (l.constant < 0 || !l.terms.is_empty())
    };
    let empty = length.terms.is_empty() && length.constant == 0;
    if below(&room) || below(&start) || below(&length) || empty {
        let what = c.axes.text(axis);
        c.report(
            Diagnostic::error(
                codes::OUT_OF_RANGE,
                "this slice does not lie inside of the vector",
                call.expr.span,
                format!("the vector is over `{what}`"),
            )
            .help("write `slice(v, start, length)`; elements are counted from 0"),
        );
        return None;
    }
    let (start, length) = (c.axes.intern(start), c.axes.intern(length));
    c.builder.set_span(call.expr.span);
    let value = c.builder.emit(Op::Slice { x: v.value, start, axis: length });
    Some(Typed { value, kind: Kind::Vector(length) })
}

/// `split` outside of `(a, b) = split(v, 2)`.
pub(super) fn stray_split<'a>(c: &mut Checker<'a>, call: &Call<'a>) -> Option<Typed> {
    c.vector_argument(call, 0)?;
    let text = c.text(call.arguments[0].span);
    c.report(
        Diagnostic::error(
            codes::BAD_TARGET,
            "`split` gives several vectors",
            call.expr.span,
            "only one value is expected here",
        )
        .help(format!(
            "write `(a, b) = split({text}, 2)`, or take one part with `slice({text}, start, length)`"
        )),
    );
    None
}

impl<'a> Checker<'a> {
    /// A size or offset: an axis expression.
    fn axis_argument(&mut self, e: &'a Expr) -> Option<Linear> {
        self.linear(e)
    }

    /// The parts of `split(v, k)`.
    pub(in super::super) fn split(&mut self, call: &Call<'a>, targets: usize) -> Option<Vec<Typed>> {
        let v = self.vector_argument(call, 0);
        let k = self.linear(&call.arguments[1]);
        let ((v, axis), k) = (v?, k?);
        if !k.terms.is_empty() || k.constant != targets as i64 {
            self.report(
                Diagnostic::error(
                    codes::OUT_OF_RANGE,
                    format!("`split` gives another number of parts than there are names, {targets}"),
                    call.arguments[1].span,
                    "this many parts",
                )
                .help(format!("write `split({}, {targets})`", self.text(call.arguments[0].span))),
            );
            return None;
        }
        let whole = self.axes.linear(axis).clone();
        let Some(part) = divided(&whole, k.constant) else {
            self.uneven(call, axis, k.constant);
            return None;
        };
        let axis = self.axes.intern(part.clone());
        let mut parts = vec![];
        for n in 0..k.constant {
            let start = self.axis_sum(&Linear::default(), &part, n);
            let value = match k.constant {
                1 => v.value,
                _ => self.builder.emit(Op::Slice { x: v.value, start, axis }),
            };
            parts.push(Typed { value, kind: Kind::Vector(axis) });
        }
        Some(parts)
    }

    fn uneven(&mut self, call: &Call<'a>, axis: Axis, k: i64) {
        let text = self.axes.text(axis);
        let e = &call.arguments[0];
        let mut diagnostic = Diagnostic::error(
            codes::OUT_OF_RANGE,
            format!("axis `{text}` cannot be split into {k} equal parts"),
            e.span,
            format!("a vector over `{text}`"),
        );
        if let Some((place, label)) = self.origin(e, Some(axis)) {
            diagnostic = diagnostic.label(place, label);
        }
        self.report(diagnostic.help(format!("a vector over `{k}*M` splits into {k} vectors over `M`")));
    }
}

/// A combination divided by a number, if all of it is divisible.
fn divided(l: &Linear, k: i64) -> Option<Linear> {
    if k < 1 || l.constant % k != 0 || l.terms.values().any(|c| c % k != 0) {
        return None;
    }
    let terms = l.terms.iter().map(|(&a, &c)| (a, c / k)).collect();
    Some(Linear { terms, constant: l.constant / k })
}
