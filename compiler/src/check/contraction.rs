//! `M @ v`, `M^T @ v` and `a . b`: the operators that remove an axis.

use super::checker::Checker;
use super::codes;
use super::types::{Kind, Typed};
use crate::ir::{Axis, Op};
use grammar::ast::{Expr, ExprKind};
use grammar::diag::Diagnostic;
use grammar::span::Span;

impl<'a> Checker<'a> {
    /// `M @ v` sums over the pre axis, `M^T @ v` over the post axis.
    pub(super) fn contract(
        &mut self,
        e: &'a Expr,
        at: Span,
        left: &'a Expr,
        right: &'a Expr,
    ) -> Option<Typed> {
        let (matrix, transposed) = match &left.kind {
            ExprKind::Transpose(inner) => (&**inner, true),
            _ => (left, false),
        };
        let (m, v) = (self.expr(matrix), self.expr(right));
        let (m, v) = (m?, v?);
        self.builder.set_span(e.span);
        let Kind::Matrix { post, pre } = m.kind else {
            self.no_matrix(at, (m, matrix), (v, right));
            return None;
        };
        let Kind::Vector(axis) = v.kind else {
            self.no_vector(at, (m, matrix), (v, right));
            return None;
        };
        let (inner, result) = if transposed { (post, pre) } else { (pre, post) };
        if axis != inner {
            self.contraction_axes(at, (matrix, post, pre), (right, axis), transposed);
            return None;
        }
        let op = if transposed { Op::ContractT(m.value, v.value) } else { Op::Contract(m.value, v.value) };
        Some(Typed { value: self.builder.emit(op), kind: Kind::Vector(result) })
    }

    fn no_matrix(&mut self, at: Span, left: (Typed, &Expr), right: (Typed, &Expr)) {
        let (l, r) = (self.operand_text(left.1), self.operand_text(right.1));
        let help = match (left.0.kind, right.0.kind) {
            (Kind::Vector(a), Kind::Vector(b)) if a == b => {
                format!("the dot product of two vectors is `{l} . {r}`")
            }
            (Kind::Vector(_), Kind::Matrix { .. }) => {
                format!("a vector stands to the right of `@`: `{r}^T @ {l}` sums over the post axis")
            }
            (Kind::Scalar, _) | (_, Kind::Scalar) => format!("write `{l} * {r}`"),
            (Kind::Post(_), _) => {
                format!("give `{l}` a pre axis, for example by multiplying it with a matrix `[post, pre]`")
            }
            (Kind::Pre(_), _) => {
                format!("give `{l}` a post axis, for example by multiplying it with a matrix `[post, pre]`")
            }
            _ => "`@` applies a matrix to a vector: `W @ v`".to_owned(),
        };
        self.operand_error("`@` needs a matrix on its left", at, left, right, help);
    }

    fn no_vector(&mut self, at: Span, left: (Typed, &Expr), right: (Typed, &Expr)) {
        let (l, r) = (self.operand_text(left.1), self.operand_text(right.1));
        let help = match (right.0.kind, &right.1.kind) {
            (Kind::Post(_) | Kind::Pre(_), ExprKind::Index { base, .. }) => {
                let base = self.operand_text(base);
                format!("`@` sums over the whole vector, so it takes no index: `{l} @ {base}`")
            }
            (Kind::Scalar, _) => format!("write `{r} * {l}` to scale the matrix, or `rowsum({l}) * {r}`"),
            (Kind::Matrix { .. }, _) => {
                "products of two matrices are not in the language; apply one after the other to a vector: \
                 `A @ (B @ v)`"
                    .to_owned()
            }
            _ => "`@` applies a matrix to a vector: `W @ v`".to_owned(),
        };
        self.operand_error("`@` needs a vector on its right", at, left, right, help);
    }

    fn operand_error(
        &mut self,
        message: &str,
        at: Span,
        left: (Typed, &Expr),
        right: (Typed, &Expr),
        help: String,
    ) {
        let (l, r) = (left.0.kind.describe(&self.axes), right.0.kind.describe(&self.axes));
        let mut diagnostic =
            Diagnostic::error(codes::CONTRACTION_OPERAND, message, at, "does not apply here")
                .label(left.1.span, format!("this is {l}"))
                .label(right.1.span, format!("this is {r}"));
        for e in [left.1, right.1] {
            if let (ExprKind::Name { .. } | ExprKind::Index { .. }, Some((place, text))) =
                (&e.kind, self.origin(e, None))
            {
                diagnostic = diagnostic.label(place, text);
            }
        }
        self.report(diagnostic.help(help));
    }

    fn contraction_axes(
        &mut self,
        at: Span,
        (matrix, post, pre): (&Expr, Axis, Axis),
        (vector, axis): (&Expr, Axis),
        transposed: bool,
    ) {
        let inner = if transposed { post } else { pre };
        let (post_text, pre_text) = (self.axes.text(post), self.axes.text(pre));
        let (inner_text, axis_text) = (self.axes.text(inner), self.axes.text(axis));
        let role = if transposed { "post" } else { "pre" };
        let (m, v) = (self.operand_text(matrix), self.operand_text(vector));
        let mut diagnostic = Diagnostic::error(
            codes::CONTRACTION_AXES,
            format!("`@` sums over the {role} axis `{inner_text}`, but the vector is over `{axis_text}`"),
            at,
            "axes do not fit",
        )
        .label(matrix.span, format!("a matrix `[{post_text}, {pre_text}]`, which is `[post, pre]`"))
        .label(vector.span, format!("a vector over `{axis_text}`"));
        for (e, a) in [(matrix, inner), (vector, axis)] {
            if let Some((place, text)) = self.origin(e, Some(a)) {
                diagnostic = diagnostic.label(place, text);
            }
        }
        let help = match (transposed, axis == post, axis == pre) {
            (false, true, _) => format!("to sum over the post axis write `{m}^T @ {v}`"),
            (true, _, true) => format!("to sum over the pre axis write `{m} @ {v}`"),
            (false, ..) => format!(
                "use a vector over `{inner_text}`, or declare the matrix `[{post_text}, {axis_text}]`"
            ),
            (true, ..) => {
                format!("use a vector over `{inner_text}`, or declare the matrix `[{axis_text}, {pre_text}]`")
            }
        };
        self.report(diagnostic.help(help));
    }

    /// `a . b = Σ a b`
    pub(super) fn dot(&mut self, e: &'a Expr, at: Span, left: &'a Expr, right: &'a Expr) -> Option<Typed> {
        let (a, b) = (self.expr(left), self.expr(right));
        let (a, b) = (a?, b?);
        self.builder.set_span(e.span);
        let (Kind::Vector(x), Kind::Vector(y)) = (a.kind, b.kind) else {
            let (l, r) = (self.operand_text(left), self.operand_text(right));
            let help = match (a.kind, b.kind) {
                (Kind::Matrix { .. }, Kind::Vector(_)) => format!("a matrix is applied with `{l} @ {r}`"),
                (Kind::Scalar, _) | (_, Kind::Scalar) => format!("write `{l} * {r}`"),
                (Kind::Post(_) | Kind::Pre(_), _) | (_, Kind::Post(_) | Kind::Pre(_)) => {
                    "a dot product sums over whole vectors, which take no index".to_owned()
                }
                (Kind::Matrix { .. }, Kind::Matrix { .. }) => format!("write `sum({l} * {r})`"),
                _ => "a dot product takes two vectors over one axis".to_owned(),
            };
            self.operand_error("`.` needs two vectors", at, (a, left), (b, right), help);
            return None;
        };
        if x != y {
            self.dot_axes(at, (left, x), (right, y));
            return None;
        }
        let product = self.builder.mul(a.value, b.value);
        Some(Typed { value: self.builder.emit(Op::SumAll(product)), kind: Kind::Scalar })
    }

    fn dot_axes(&mut self, at: Span, left: (&Expr, Axis), right: (&Expr, Axis)) {
        let (x, y) = (self.axes.text(left.1), self.axes.text(right.1));
        let mut diagnostic = Diagnostic::error(
            codes::CONTRACTION_AXES,
            format!("`.` needs two vectors over one axis, but these are over `{x}` and `{y}`"),
            at,
            "axes do not fit",
        )
        .label(left.0.span, format!("a vector over `{x}`"))
        .label(right.0.span, format!("a vector over `{y}`"));
        for (e, axis) in [left, right] {
            if let Some((place, text)) = self.origin(e, Some(axis)) {
                diagnostic = diagnostic.label(place, text);
            }
        }
        self.report(diagnostic.help("declare both vectors over the same axis"));
    }
}
