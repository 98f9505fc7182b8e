//! Functions of matrices: sums and norms over one axis or over both.

use super::super::checker::Checker;
use super::super::types::{Kind, Typed};
use super::Call;
use super::vectors::{TINY, root_of_squares};
use crate::ir::{Axis, Binary, Op, Unary, Value};

/// `r[j] = Σ_i M[j,i]`
pub(super) fn rowsum<'a>(c: &mut Checker<'a>, call: &Call<'a>) -> Option<Typed> {
    let (m, post, _) = c.matrix_argument(call, 0)?;
    Some(Typed { value: c.builder.emit(Op::SumPre(m.value)), kind: Kind::Vector(post) })
}

/// `c[i] = Σ_j M[j,i]`
pub(super) fn colsum<'a>(c: &mut Checker<'a>, call: &Call<'a>) -> Option<Typed> {
    let (m, _, pre) = c.matrix_argument(call, 0)?;
    Some(Typed { value: c.builder.emit(Op::SumPost(m.value)), kind: Kind::Vector(pre) })
}

/// `√(Σ_i M² + 1e-12)`
fn row_lengths(c: &mut Checker<'_>, m: Value, post: Axis) -> Value {
    let squares = c.builder.mul(m, m);
    let sums = c.builder.emit(Op::SumPre(squares));
    root(c, sums, post)
}

/// `√(Σ_j M² + 1e-12)`
fn column_lengths(c: &mut Checker<'_>, m: Value, pre: Axis) -> Value {
    let squares = c.builder.mul(m, m);
    let sums = c.builder.emit(Op::SumPost(squares));
    root(c, sums, pre)
}

fn root(c: &mut Checker<'_>, sums: Value, axis: Axis) -> Value {
    let tiny = c.builder.fill(TINY, Kind::Vector(axis).shape());
    let sums = c.builder.add(sums, tiny);
    c.builder.unary(Unary::Sqrt, sums)
}

/// The length of every row.
pub(super) fn l2row<'a>(c: &mut Checker<'a>, call: &Call<'a>) -> Option<Typed> {
    let (m, post, _) = c.matrix_argument(call, 0)?;
    Some(Typed { value: row_lengths(c, m.value, post), kind: Kind::Vector(post) })
}

/// The length of every column.
pub(super) fn l2col<'a>(c: &mut Checker<'a>, call: &Call<'a>) -> Option<Typed> {
    let (m, _, pre) = c.matrix_argument(call, 0)?;
    Some(Typed { value: column_lengths(c, m.value, pre), kind: Kind::Vector(pre) })
}

/// Every row divided by its length.
pub(super) fn rownorm<'a>(c: &mut Checker<'a>, call: &Call<'a>) -> Option<Typed> {
    let (m, post, pre) = c.matrix_argument(call, 0)?;
    let lengths = row_lengths(c, m.value, post);
    let lengths = c.builder.emit(Op::Rows(lengths, pre));
    Some(Typed { value: c.builder.div(m.value, lengths), kind: m.kind })
}

/// Every column divided by its length.
pub(super) fn colnorm<'a>(c: &mut Checker<'a>, call: &Call<'a>) -> Option<Typed> {
    let (m, post, pre) = c.matrix_argument(call, 0)?;
    let lengths = column_lengths(c, m.value, pre);
    let lengths = c.builder.emit(Op::Cols(lengths, post));
    Some(Typed { value: c.builder.div(m.value, lengths), kind: m.kind })
}

/// `√(Σ M² + 1e-12)`
pub(super) fn frob<'a>(c: &mut Checker<'a>, call: &Call<'a>) -> Option<Typed> {
    let (m, _, _) = c.matrix_argument(call, 0)?;
    Some(Typed { value: root_of_squares(c, m.value), kind: Kind::Scalar })
}

/// `M / max(1, frob(M)/cap)`: at most `cap` long.
pub(super) fn frobcap<'a>(c: &mut Checker<'a>, call: &Call<'a>) -> Option<Typed> {
    let m = c.matrix_argument(call, 0);
    let cap = c.constant_argument(&call.arguments[1], "the cap of `frobcap`")?;
    let (m, _, _) = m?;
    if let Some(x) = c.declared_number(&cap)
        && (x <= 0.0 || !x.is_finite())
    {
        let help = "write a positive length: `frobcap(M, 1)`";
        c.bad_range(
            call.arguments[1].span,
            "the cap of `frobcap` must be positive",
            &format!("it is {x}"),
            help,
        );
        return None;
    }
    let cap = c.constant_value(&cap);
    let length = root_of_squares(c, m.value);
    let b = &mut c.builder;
    let ratio = b.div(length, cap);
    let one = b.constant(1.0);
    let ratio = b.binary(Binary::Max, one, ratio);
    let ratio = b.splat(ratio, m.kind.shape());
    Some(Typed { value: b.div(m.value, ratio), kind: m.kind })
}

fn largest(c: &mut Checker<'_>, m: Value) -> Value {
    let magnitude = c.builder.unary(Unary::Abs, m);
    c.builder.emit(Op::MaxAll(magnitude))
}

/// `max |M|`
pub(super) fn maxabs<'a>(c: &mut Checker<'a>, call: &Call<'a>) -> Option<Typed> {
    let (m, _, _) = c.matrix_argument(call, 0)?;
    Some(Typed { value: largest(c, m.value), kind: Kind::Scalar })
}

/// `M / (max |M| + 1e-12)`
pub(super) fn maxnorm<'a>(c: &mut Checker<'a>, call: &Call<'a>) -> Option<Typed> {
    let (m, _, _) = c.matrix_argument(call, 0)?;
    let top = largest(c, m.value);
    let b = &mut c.builder;
    let tiny = b.constant(TINY);
    let top = b.add(top, tiny);
    let top = b.splat(top, m.kind.shape());
    Some(Typed { value: b.div(m.value, top), kind: m.kind })
}
