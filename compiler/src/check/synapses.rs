//! Elementwise operands side by side: which kind they have together, and how each is brought to it.
//!
//! Nothing is broadcast by position. A scalar goes with everything; a vector goes with vectors over
//! the same axis; `[j]`, `[i]` and matrices go together if each role has one axis.

use super::checker::Checker;
use super::codes;
use super::names::Symbol;
use super::types::{Kind, Typed};
use crate::ir::{Axis, Op, Shape, Value};
use grammar::ast::{BinaryOp, Expr, ExprKind};
use grammar::diag::Diagnostic;
use grammar::span::Span;

impl<'a> Checker<'a> {
    /// The kind that the operands of `what` have together.
    pub(super) fn join(&mut self, what: &str, at: Span, operands: &[(Typed, &'a Expr)]) -> Option<Kind> {
        let mut kind = Kind::Scalar;
        let mut from: Option<&'a Expr> = None;
        for (typed, e) in operands {
            match union(kind, typed.kind) {
                Some(joined) => kind = joined,
                None => {
                    self.misfit(what, at, (kind, from.unwrap_or(e)), (typed.kind, e));
                    return None;
                }
            }
            if typed.kind != Kind::Scalar && (from.is_none() || typed.kind == kind) {
                from = Some(e);
            }
        }
        Some(kind)
    }

    /// Reports operands that do not go together.
    fn misfit(&mut self, what: &str, at: Span, left: (Kind, &Expr), right: (Kind, &Expr)) {
        match (left.0, right.0) {
            (Kind::Vector(a), k) if k.is_synaptic() => self.orientation(left.1, a, right),
            (k, Kind::Vector(a)) if k.is_synaptic() => self.orientation(right.1, a, left),
            _ => self.axes_differ(what, at, left, right),
        }
    }

    /// A vector that meets synapses must say which of their ends it belongs to.
    fn orientation(&mut self, vector: &Expr, axis: Axis, other: (Kind, &Expr)) {
        let text = self.operand_text(vector);
        let product = self.product_of_vectors(vector);
        let name = self.axes.text(axis);
        let fits = |role: Option<Axis>| role.is_none_or(|a| a == axis);
        let (post, pre) = (fits(other.0.post()), fits(other.0.pre()));
        let (why, help) = match (post, pre) {
            (true, true) if product.is_some() => (
                format!("axis `{name}` could be the post or the pre axis here"),
                format!("an outer product is written `{}`", product.unwrap_or_default()),
            ),
            (true, true) => (
                format!("axis `{name}` could be the post or the pre axis here"),
                format!(
                    "write `{text}[j]` for one value per post neuron, or `{text}[i]` for one per pre neuron"
                ),
            ),
            (true, false) => (
                format!("axis `{name}` is the post axis here"),
                format!("write `{text}[j]`: one value per post neuron"),
            ),
            (false, true) => (
                format!("axis `{name}` is the pre axis here"),
                format!("write `{text}[i]`: one value per pre neuron"),
            ),
            (false, false) => (
                format!("axis `{name}` is neither the post nor the pre axis here"),
                "use a vector over one of these two axes".to_owned(),
            ),
        };
        let what = other.0.describe(&self.axes);
        let mut diagnostic = Diagnostic::error(
            codes::ORIENTATION,
            format!("the vector `{text}` does not say which end of the synapse it belongs to"),
            vector.span,
            why,
        )
        .label(other.1.span, format!("this is {what}"));
        if let Some((place, label)) = self.origin(vector, Some(axis)) {
            diagnostic = diagnostic.label(place, label);
        }
        self.report(diagnostic.help(help));
    }

    /// `a[j] * b[i]` where the expression is `a * b`, or `c * a * b`.
    fn product_of_vectors(&self, e: &Expr) -> Option<String> {
        let ExprKind::Binary { op: BinaryOp::Mul, left, right, .. } = &e.kind else { return None };
        let is_vector = |e: &Expr| match &e.kind {
            ExprKind::Name { name, .. } => {
                let transient = self.transients.get(name).copied().flatten().map(|t| t.kind.shape());
                matches!(transient.or(self.declared_shape(name)), Some(Shape::Vector(_)))
            }
            _ => false,
        };
        let (l, r) = (self.text(left.span), self.text(right.span));
        let before = self.product_of_vectors(left).is_none() && is_vector(left);
        match &left.kind {
            _ if !is_vector(right) => None,
            _ if before => Some(format!("{l}[j] * {r}[i]")),
            ExprKind::Binary { op: BinaryOp::Mul, left: first, right: middle, .. } if is_vector(middle) => {
                let first = self.text(first.span);
                Some(format!("{first} * {}[j] * {r}[i]", self.text(middle.span)))
            }
            _ => None,
        }
    }

    fn axes_differ(&mut self, what: &str, at: Span, left: (Kind, &Expr), right: (Kind, &Expr)) {
        let (l, r) = (left.0.describe(&self.axes), right.0.describe(&self.axes));
        let (a, b) = differing(left.0, right.0);
        let message = match (a, b) {
            (Some(a), Some(b)) => {
                let role = match (left.0, right.0) {
                    (Kind::Vector(_), Kind::Vector(_)) => "",
                    _ if left.0.post().zip(right.0.post()).is_some_and(|(a, b)| a != b) => "post ",
                    _ => "pre ",
                };
                format!(
                    "`{what}` needs equal axes, but the {role}axes of its operands are `{}` and `{}`",
                    self.axes.text(a),
                    self.axes.text(b)
                )
            }
            _ => format!("`{what}` cannot take {l} and {r} together"),
        };
        let mut diagnostic = Diagnostic::error(codes::AXES_DIFFER, message, at, "these do not fit")
            .label(left.1.span, format!("this is {l}"))
            .label(right.1.span, format!("this is {r}"));
        for (e, axis) in [(left.1, a), (right.1, b)] {
            if let Some((place, label)) = self.origin(e, axis) {
                diagnostic = diagnostic.label(place, label);
            }
        }
        self.report(diagnostic.help(
            "axes are the same only if their declared sums are; bring one to the other with `W @ v`, \
             or declare both over one axis",
        ));
    }

    /// The first name in an expression that has this axis, and what its declaration says. With no
    /// axis, the first name that has a declared shape.
    pub(super) fn origin(&self, e: &Expr, axis: Option<Axis>) -> Option<(Span, String)> {
        match &e.kind {
            ExprKind::Name { name, .. } => self.origin_of_name(name, axis),
            ExprKind::Index { base: x, .. } | ExprKind::Transpose(x) | ExprKind::Negate(x) => {
                self.origin(x, axis)
            }
            ExprKind::Binary { left, right, .. } => {
                self.origin(left, axis).or_else(|| self.origin(right, axis))
            }
            ExprKind::Call { arguments, .. } => arguments.iter().find_map(|a| self.origin(a, axis)),
            ExprKind::Number(_) | ExprKind::Error => None,
        }
    }

    fn origin_of_name(&self, name: &str, axis: Option<Axis>) -> Option<(Span, String)> {
        if self.frames.last().is_some_and(|f| f.binds(name)) {
            return None;
        }
        let entry = self.names.get(name)?;
        if let Symbol::Transient(_) = entry.symbol {
            let typed = self.transients.get(name).copied().flatten()?;
            let fits = axis.is_none_or(|a| has_axis(typed.kind.shape(), a));
            let what = typed.kind.describe(&self.axes);
            return fits.then(|| (entry.span, format!("`{name}` is defined here, {what}")));
        }
        if matches!(entry.symbol, Symbol::Axis(_) | Symbol::Constant(_)) {
            return None;
        }
        let shape = self.declared_shape(name)?;
        let fits = axis.is_none_or(|a| has_axis(shape, a));
        fits.then(|| (entry.span, self.declared_text(name, shape)))
    }

    /// A product of a value per post and a value per pre neuron, as an outer product.
    pub(super) fn outer(&mut self, a: Typed, b: Typed) -> Option<Value> {
        match (a.kind, b.kind) {
            (Kind::Post(_), Kind::Pre(_)) => Some(self.builder.emit(Op::Outer(a.value, b.value))),
            (Kind::Pre(_), Kind::Post(_)) => Some(self.builder.emit(Op::Outer(b.value, a.value))),
            _ => None,
        }
    }

    /// A value brought to a kind that its own kind goes with.
    pub(super) fn lift(&mut self, t: Typed, kind: Kind) -> Value {
        match (t.kind, kind) {
            (Kind::Scalar, _) => self.builder.splat(t.value, kind.shape()),
            (Kind::Post(_), Kind::Matrix { pre, .. }) => self.builder.emit(Op::Rows(t.value, pre)),
            (Kind::Pre(_), Kind::Matrix { post, .. }) => self.builder.emit(Op::Cols(t.value, post)),
            _ => t.value,
        }
    }
}

fn has_axis(shape: Shape, axis: Axis) -> bool {
    match shape {
        Shape::Scalar => false,
        Shape::Vector(a) => a == axis,
        Shape::Matrix { post, pre } => post == axis || pre == axis,
    }
}

/// The kind of two operands together; `None` if they do not go together.
fn union(a: Kind, b: Kind) -> Option<Kind> {
    match (a, b) {
        (Kind::Scalar, k) | (k, Kind::Scalar) => Some(k),
        (Kind::Vector(x), Kind::Vector(y)) => (x == y).then_some(a),
        (Kind::Vector(_), _) | (_, Kind::Vector(_)) => None,
        _ => {
            let post = one(a.post(), b.post())?;
            let pre = one(a.pre(), b.pre())?;
            match (post, pre) {
                (Some(post), Some(pre)) => Some(Kind::Matrix { post, pre }),
                (Some(post), None) => Some(Kind::Post(post)),
                (None, Some(pre)) => Some(Kind::Pre(pre)),
                (None, None) => None,
            }
        }
    }
}

/// The axis of a role, if the two operands agree on it.
fn one(a: Option<Axis>, b: Option<Axis>) -> Option<Option<Axis>> {
    match (a, b) {
        (Some(a), Some(b)) if a != b => None,
        _ => Some(a.or(b)),
    }
}

/// The axes on which two operands differ.
fn differing(a: Kind, b: Kind) -> (Option<Axis>, Option<Axis>) {
    let pairs = match (a, b) {
        (Kind::Vector(x), Kind::Vector(y)) => return (Some(x), Some(y)),
        _ => [(a.post(), b.post()), (a.pre(), b.pre())],
    };
    for (x, y) in pairs {
        if let (Some(x), Some(y)) = (x, y)
            && x != y
        {
            return (Some(x), Some(y));
        }
    }
    (None, None)
}
