//! Axes: their declarations, and axis expressions in brackets.
//!
//! An axis is a linear combination of declared sizes. Two axes are the same exactly if their
//! combinations are, never because sizes happen to agree.

use super::checker::Checker;
use super::codes;
use super::names::{Symbol, nearest};
use crate::ir::{Axis, Linear, NamedAxis, Shape};
use grammar::ast::{AxisDeclaration, BinaryOp, Expr, ExprKind, StatementKind, Variable};
use grammar::diag::Diagnostic;
use grammar::span::Span;
use std::collections::BTreeMap;

/// The largest coefficient and size: far beyond any model, far below overflow.
const MAX_SIZE: i64 = 1 << 30;

impl<'a> Checker<'a> {
    /// Declares all axes. Those defined by others are resolved in rounds, so that text order does
    /// not matter.
    pub(super) fn declare_axes(&mut self) {
        let spec = self.spec;
        let mut open: Vec<&'a AxisDeclaration> = vec![];
        for statement in &spec.statements {
            if let StatementKind::Axis(declarations) = &statement.kind {
                open.extend(declarations.iter());
            }
        }
        open.retain(|d| self.declare(&d.name, Symbol::Poison));
        open.retain(|d| !self.declare_size(d));
        loop {
            let before = open.len();
            let names: Vec<String> = open.iter().map(|d| d.name.name.clone()).collect();
            open.retain(|d| match &d.size {
                Some(e) if mentions(e, &names) => true,
                Some(e) => {
                    self.declare_alias(d, e);
                    false
                }
                None => false,
            });
            if open.is_empty() || open.len() == before {
                break;
            }
        }
        if let [first, rest @ ..] = open.as_slice() {
            let mut diagnostic = Diagnostic::error(
                codes::CYCLE,
                format!("axis `{}` is defined by itself", first.name.name),
                first.name.span,
                "its size needs its own size",
            );
            for d in rest {
                diagnostic = diagnostic.label(d.name.span, "by way of this axis");
            }
            self.report(diagnostic.help("give one of them a number, or `?` to bind it later"));
        }
    }

    /// Declares an axis with a number or `?`. Returns whether it was one.
    fn declare_size(&mut self, d: &AxisDeclaration) -> bool {
        let size = match &d.size {
            None => None,
            Some(e) if mentions_any(e) => return false,
            Some(e) => match self.linear(e) {
                Some(l) if l.constant > 0 => Some(l.constant as usize),
                Some(l) => {
                    self.bad_axis(e.span, &format!("an axis cannot have size {}", l.constant));
                    return true;
                }
                None => return true,
            },
        };
        let index = self.axes.named.len();
        self.axes.named.push(NamedAxis { name: d.name.name.clone(), size, span: d.name.span });
        let axis = self.axes.intern_named(index);
        self.names.set(&d.name.name, Symbol::Axis(axis));
        true
    }

    fn declare_alias(&mut self, d: &AxisDeclaration, e: &Expr) {
        if let Some(axis) = self.axis(e) {
            let linear = self.axes.linear(axis);
            let plain = linear.constant == 0 && linear.terms.values().eq([&1]);
            if !plain {
                self.axes.aliases.push((d.name.name.clone(), axis));
            }
            self.names.set(&d.name.name, Symbol::Axis(axis));
        }
    }

    /// The axis that an expression in brackets means.
    pub(super) fn axis(&mut self, e: &Expr) -> Option<Axis> {
        let linear = self.linear(e)?;
        if linear.terms.is_empty() && linear.constant <= 0 {
            self.bad_axis(e.span, &format!("an axis cannot have size {}", linear.constant));
            return None;
        }
        Some(self.axes.intern(linear))
    }

    /// The linear combination that an axis expression means.
    pub(super) fn linear(&mut self, e: &Expr) -> Option<Linear> {
        let linear = match &e.kind {
            ExprKind::Number(x) => {
                if x.fract() != 0.0 || x.abs() > MAX_SIZE as f64 {
                    self.bad_axis(e.span, "the size of an axis is a whole number below 2^30");
                    return None;
                }
                Linear { terms: BTreeMap::new(), constant: *x as i64 }
            }
            ExprKind::Name { name, primed: false } => self.axis_name(name, e.span)?,
            ExprKind::Negate(x) => combine(&Linear::default(), &self.linear(x)?, -1),
            ExprKind::Binary { op, left, right, .. } => {
                let (l, r) = (self.linear(left), self.linear(right));
                let (l, r) = (l?, r?);
                match op {
                    BinaryOp::Add => combine(&l, &r, 1),
                    BinaryOp::Sub => combine(&l, &r, -1),
                    BinaryOp::Mul if l.terms.is_empty() => combine(&Linear::default(), &r, l.constant),
                    BinaryOp::Mul if r.terms.is_empty() => combine(&Linear::default(), &l, r.constant),
                    _ => {
                        self.bad_axis(e.span, "an axis is a sum of axes with whole coefficients");
                        return None;
                    }
                }
            }
            ExprKind::Error => return None,
            _ => {
                self.bad_axis(e.span, "this is no axis");
                return None;
            }
        };
        if linear.constant.abs() > MAX_SIZE || linear.terms.values().any(|c| c.abs() > MAX_SIZE) {
            self.bad_axis(e.span, "the axis is too large");
            return None;
        }
        Some(linear)
    }

    fn axis_name(&mut self, name: &str, span: Span) -> Option<Linear> {
        if name == "i" || name == "j" {
            self.report(
                Diagnostic::error(
                    codes::UNKNOWN_AXIS,
                    format!("`{name}` is an index, not an axis"),
                    span,
                    "a declaration needs the axis itself",
                )
                .help("name the axis, for example `alpha[N]`, and write `alpha[j]` where it is used"),
            );
            return None;
        }
        let (noun, place) = match self.names.get(name) {
            Some(entry) => match &entry.symbol {
                Symbol::Axis(axis) => return Some(self.axes.linear(*axis).clone()),
                Symbol::Poison => return None,
                other => (Some(other.noun()), Some(entry.span)),
            },
            None => (None, None),
        };
        let message = format!("there is no axis `{name}`");
        let label = match noun {
            Some(noun) => format!("this is {noun}"),
            None => "not declared as an axis".to_owned(),
        };
        let mut diagnostic = Diagnostic::error(codes::UNKNOWN_AXIS, message, span, label);
        let known: Vec<String> = self
            .names
            .iter()
            .filter(|(_, e)| matches!(e.symbol, Symbol::Axis(_)))
            .map(|(n, _)| n.to_owned())
            .collect();
        if let Some(place) = place {
            diagnostic = diagnostic.label(place, format!("`{name}` is declared here"));
        }
        diagnostic = match nearest(name, known.iter().map(String::as_str)) {
            Some(near) => diagnostic.help(format!("did you mean `{near}`?")).fix(span, near),
            None if noun.is_some() => {
                diagnostic.help("declare an axis under a name of its own, and use that")
            }
            None => diagnostic.help(format!("declare it: `axis {name} = ?` or `axis {name} = 100`")),
        };
        self.report(diagnostic);
        None
    }

    fn bad_axis(&mut self, span: Span, why: &str) {
        self.report(
            Diagnostic::error(codes::BAD_AXIS, "this is not the size of an axis", span, why)
                .help("write a positive whole number, `?`, or a sum such as `I+N`, `3*N`, `N-1`"),
        );
    }

    /// The shape that a declared name has.
    pub(super) fn shape(&mut self, variable: &Variable) -> Option<Shape> {
        self.shape_of_axes(&variable.axes, variable.span)
    }

    /// The shape with these axes.
    pub(super) fn shape_of_axes(&mut self, axes: &[Expr], span: Span) -> Option<Shape> {
        let found: Vec<Option<Axis>> = axes.iter().map(|e| self.axis(e)).collect();
        if axes.len() > 2 {
            self.report(
                Diagnostic::error(
                    codes::TOO_MANY_AXES,
                    format!("a tensor has at most two axes, this one has {}", axes.len()),
                    span,
                    "one axis per population: `[post, pre]`",
                )
                .help("declare several matrices, or merge axes: `[4*N, I]`"),
            );
            return None;
        }
        match found.as_slice() {
            [] => Some(Shape::Scalar),
            [a] => Some(Shape::Vector((*a)?)),
            [post, pre, ..] => Some(Shape::Matrix { post: (*post)?, pre: (*pre)? }),
        }
    }

    /// `a + factor * b`, as an axis.
    pub(super) fn axis_sum(&mut self, a: &Linear, b: &Linear, factor: i64) -> Axis {
        let sum = combine(a, b, factor);
        self.axes.intern(sum)
    }
}

/// `a + factor * b`.
pub(super) fn combine(a: &Linear, b: &Linear, factor: i64) -> Linear {
    let scaled = |c: i64| c.saturating_mul(factor);
    let mut sum = a.clone();
    sum.constant = sum.constant.saturating_add(scaled(b.constant));
    for (&k, &c) in &b.terms {
        let slot = sum.terms.entry(k).or_insert(0);
        *slot = slot.saturating_add(scaled(c));
    }
    sum.terms.retain(|_, c| *c != 0);
    sum
}

fn mentions_any(e: &Expr) -> bool {
    match &e.kind {
        ExprKind::Name { .. } => true,
        ExprKind::Negate(x) => mentions_any(x),
        ExprKind::Binary { left, right, .. } => mentions_any(left) || mentions_any(right),
        _ => false,
    }
}

fn mentions(e: &Expr, names: &[String]) -> bool {
    match &e.kind {
        ExprKind::Name { name, .. } => names.contains(name),
        ExprKind::Negate(x) => mentions(x, names),
        ExprKind::Binary { left, right, .. } => mentions(left, names) || mentions(right, names),
        _ => false,
    }
}
