//! `one.h'`: a name of a layer.
//!
//! The grammar reads the dot as a dot product, which `@` and `.` bind from the left: `W @ one.h'` is `(W @ one) .
//! h'`. Where the name directly before the dot is a layer's, and no space stands around the dot, it is the name of a
//! part of that layer.

use crate::ast::{BinaryOp, Expr, ExprKind, Spec, StatementKind};
use crate::span::Span;
use crate::visit::{self, Visitor};
use std::collections::BTreeSet;

/// Finds the names of layers' parts in a spec.
pub(super) fn resolve(spec: &mut Spec) {
    let layers: BTreeSet<String> = spec
        .statements
        .iter()
        .filter_map(|s| match &s.kind {
            StatementKind::Layer { name, .. } => Some(name.name.clone()),
            _ => None,
        })
        .collect();
    if !layers.is_empty() {
        let mut access = Access { layers };
        spec.statements.iter_mut().for_each(|s| visit::statement(&mut s.kind, &mut access));
    }
}

struct Access {
    layers: BTreeSet<String>,
}

impl Visitor for Access {
    fn expr(&mut self, e: &mut Expr) {
        let ExprKind::Binary { op: BinaryOp::Dot, op_span, left, right } = &mut e.kind else { return };
        let (dot, span) = (*op_span, e.span);
        let Some(layer) = last(left) else { return };
        let ExprKind::Name { name, primed: false } = &layer.kind else { return };
        let touches = layer.span.end == dot.start && dot.end == right.span.start;
        if !touches || !self.layers.contains(name) {
            return;
        }
        let (owner, start) = (name.clone(), layer.span);
        let Some(part) = first(right) else { return };
        let ExprKind::Name { name, .. } = &mut part.kind else { return };
        *name = format!("{owner}.{name}");
        widen(right, start);
        let part = std::mem::replace(&mut **right, Expr { kind: ExprKind::Error, span });
        if let Some(layer) = last(left) {
            *layer = part;
        }
        *e = std::mem::replace(&mut **left, Expr { kind: ExprKind::Error, span });
        e.span = span;
    }
}

/// The operand directly before the dot.
fn last(e: &mut Expr) -> Option<&mut Expr> {
    if let ExprKind::Binary { op: BinaryOp::Contract | BinaryOp::Dot, .. } = e.kind {
        let ExprKind::Binary { right, .. } = &mut e.kind else { return None };
        return last(right);
    }
    matches!(e.kind, ExprKind::Name { .. }).then_some(e)
}

/// The name directly behind the dot.
fn first(e: &mut Expr) -> Option<&mut Expr> {
    if let ExprKind::Index { .. } = e.kind {
        let ExprKind::Index { base, .. } = &mut e.kind else { return None };
        return first(base);
    }
    matches!(e.kind, ExprKind::Name { .. }).then_some(e)
}

/// The place of a part begins with that of its layer.
fn widen(e: &mut Expr, start: Span) {
    e.span = start.to(e.span);
    if let ExprKind::Index { base, .. } = &mut e.kind {
        widen(base, start);
    }
}
