//! Numbers known at compile time: `0.1`, `-5/D`, `1/N`, `dt/2`. Axis names stand for their sizes,
//! which may be bound late, so a constant is kept as an expression.

use super::checker::Checker;
use super::codes;
use super::names::Symbol;
use super::types::{Kind, Typed};
use crate::ir::{Binary, Op, Unary, Value};
use crate::model::ConstExpr;
use grammar::ast::{BinaryOp, Expr, ExprKind, Ident, StatementKind};
use grammar::diag::Diagnostic;
use grammar::span::Span;

/// How deep a value is searched for a compile-time number. A value shares its operands, so that the
/// search may grow as a power of this.
const MAX_CONSTANT_DEPTH: usize = 12;

impl<'a> Checker<'a> {
    /// Declares the `const`s. One may use another that stands later in the text.
    pub(super) fn declare_constants(&mut self) {
        let spec = self.spec;
        let mut open: Vec<&'a (Ident, Expr)> = vec![];
        for statement in &spec.statements {
            if let StatementKind::Const(list) = &statement.kind {
                open.extend(list.iter());
            }
        }
        open.retain(|(name, _)| self.declare(name, Symbol::Poison));
        loop {
            let before = open.len();
            let names: Vec<String> = open.iter().map(|(n, _)| n.name.clone()).collect();
            open.retain(|(name, value)| {
                if reads_one_of(value, &names) {
                    return true;
                }
                if let Some(value) = self.constant(value, "the value of a constant") {
                    self.names.set(&name.name, Symbol::Constant(value));
                }
                false
            });
            if open.is_empty() || open.len() == before {
                break;
            }
        }
        if let [(name, value), ..] = open.as_slice() {
            self.report(
                Diagnostic::error(
                    codes::CYCLE,
                    format!("constant `{}` is defined by itself", name.name),
                    name.span,
                    "its value needs its own value",
                )
                .label(value.span, "by way of this expression")
                .help("give one of the constants a number"),
            );
        }
    }

    /// The compile-time number that an expression means. `what` says what it is for.
    pub(super) fn constant(&mut self, e: &Expr, what: &str) -> Option<ConstExpr> {
        match &e.kind {
            ExprKind::Number(x) => Some(ConstExpr::Number(*x)),
            ExprKind::Name { name, primed: false } => self.constant_name(name, e.span, what),
            ExprKind::Negate(x) => Some(negate(self.constant(x, what)?)),
            ExprKind::Binary {
                op: op @ (BinaryOp::Add | BinaryOp::Sub | BinaryOp::Mul | BinaryOp::Div | BinaryOp::Pow),
                left,
                right,
                ..
            } => {
                let (a, b) = (self.constant(left, what), self.constant(right, what));
                Some(fold(*op, a?, b?))
            }
            ExprKind::Call { function, arguments } if function.name == "sqrt" && arguments.len() == 1 => {
                Some(ConstExpr::Sqrt(Box::new(self.constant(&arguments[0], what)?)))
            }
            ExprKind::Error => None,
            _ => self.not_constant(e.span, what, "this is computed at run time", None),
        }
    }

    fn constant_name(&mut self, name: &str, span: Span, what: &str) -> Option<ConstExpr> {
        let Some(entry) = self.names.get(name) else {
            self.unknown_name(name, span);
            return None;
        };
        let place = entry.span;
        match entry.symbol.clone() {
            Symbol::Poison => None,
            Symbol::Axis(axis) => Some(ConstExpr::Size(axis)),
            Symbol::Constant(value) => Some(value),
            other => {
                let label = format!("`{name}` is {}", other.noun());
                self.not_constant(span, what, &label, Some((place, format!("`{name}` is declared here"))))
            }
        }
    }

    fn not_constant(
        &mut self,
        span: Span,
        what: &str,
        label: &str,
        place: Option<(Span, String)>,
    ) -> Option<ConstExpr> {
        let mut diagnostic = Diagnostic::error(
            codes::NOT_CONSTANT,
            format!("{what} must be known at compile time"),
            span,
            label,
        );
        if let Some((place, text)) = place {
            diagnostic = diagnostic.label(place, text);
        }
        self.report(diagnostic.help("use numbers, `const`s and axis names with + - * / ^ and sqrt"));
        None
    }

    /// The compile-time number that an argument means. Inside of a rule it may be a parameter that a
    /// compile-time number was handed over for.
    pub(super) fn constant_argument(&mut self, e: &'a Expr, what: &str) -> Option<ConstExpr> {
        if self.frames.is_empty() {
            return self.constant(e, what);
        }
        let value = self.expr(e)?.value;
        match self.constant_of(value) {
            Some(c) => Some(c),
            None => self.not_constant(e.span, what, "this is computed at run time", None),
        }
    }

    /// The compile-time number that a value of the step is, if it is one.
    pub(super) fn constant_of(&self, v: Value) -> Option<ConstExpr> {
        self.constant_within(v, MAX_CONSTANT_DEPTH)
    }

    fn constant_within(&self, v: Value, depth: usize) -> Option<ConstExpr> {
        let one = |a| self.constant_within(a, depth.checked_sub(1)?);
        let two = |op, a, b| Some(ConstExpr::Binary(op, Box::new(one(a)?), Box::new(one(b)?)));
        match self.builder.function().at(v).op {
            Op::Const(x) => Some(ConstExpr::Number(x)),
            Op::Size(axis) => Some(ConstExpr::Size(axis)),
            Op::Unary(Unary::Neg, a) => Some(negate(one(a)?)),
            Op::Unary(Unary::Sqrt, a) => Some(ConstExpr::Sqrt(Box::new(one(a)?))),
            Op::Binary(Binary::Add, a, b) => two(BinaryOp::Add, a, b),
            Op::Binary(Binary::Sub, a, b) => two(BinaryOp::Sub, a, b),
            Op::Binary(Binary::Mul, a, b) => two(BinaryOp::Mul, a, b),
            Op::Binary(Binary::Div, a, b) => two(BinaryOp::Div, a, b),
            _ => None,
        }
    }

    /// A compile-time number as a value of the step.
    pub(super) fn constant_value(&mut self, c: &ConstExpr) -> Value {
        match c {
            ConstExpr::Number(x) => self.builder.constant(*x),
            ConstExpr::Size(axis) => self.builder.size(*axis),
            ConstExpr::Neg(x) => {
                let x = self.constant_value(x);
                self.builder.unary(Unary::Neg, x)
            }
            ConstExpr::Sqrt(x) => {
                let x = self.constant_value(x);
                self.builder.unary(Unary::Sqrt, x)
            }
            ConstExpr::Binary(op, a, b) => {
                if let (BinaryOp::Pow, Some(exponent)) = (op, number(b)) {
                    let base = self.constant_value(a);
                    let base = Typed { value: base, kind: Kind::Scalar };
                    return self.raise(base, exponent).value;
                }
                let (a, b) = (self.constant_value(a), self.constant_value(b));
                match op {
                    BinaryOp::Add => self.builder.add(a, b),
                    BinaryOp::Sub => self.builder.sub(a, b),
                    BinaryOp::Mul => self.builder.mul(a, b),
                    BinaryOp::Div => self.builder.div(a, b),
                    _ => self.power_of_positive(a, b),
                }
            }
        }
    }

    /// `a^b = exp(b ln a)`, for sizes of axes and other positive numbers.
    fn power_of_positive(&mut self, a: Value, b: Value) -> Value {
        let log = self.builder.unary(Unary::Log, a);
        let product = self.builder.mul(b, log);
        self.builder.unary(Unary::Exp, product)
    }

    /// The number, with the declared sizes of axes; `None` if one of them is open.
    pub(super) fn declared_number(&self, c: &ConstExpr) -> Option<f64> {
        let two = |a: &ConstExpr, b: &ConstExpr| Some((self.declared_number(a)?, self.declared_number(b)?));
        Some(match c {
            ConstExpr::Number(x) => *x,
            ConstExpr::Size(axis) => self.declared_size(*axis)?,
            ConstExpr::Neg(x) => -self.declared_number(x)?,
            ConstExpr::Sqrt(x) => self.declared_number(x)?.sqrt(),
            ConstExpr::Binary(op, a, b) => {
                let (a, b) = two(a, b)?;
                arithmetic(*op, a, b)
            }
        })
    }

    /// The declared size of an axis; `None` if it is open.
    pub(super) fn declared_size(&self, axis: crate::ir::Axis) -> Option<f64> {
        let linear = self.axes.linear(axis);
        let mut size = linear.constant as f64;
        for (&k, &c) in &linear.terms {
            size += c as f64 * self.axes.named[k].size? as f64;
        }
        Some(size)
    }
}

/// The number, if no axis occurs in it.
pub(super) fn number(c: &ConstExpr) -> Option<f64> {
    match c {
        ConstExpr::Number(x) => Some(*x),
        ConstExpr::Size(_) => None,
        ConstExpr::Neg(x) => Some(-number(x)?),
        ConstExpr::Sqrt(x) => Some(number(x)?.sqrt()),
        ConstExpr::Binary(op, a, b) => Some(arithmetic(*op, number(a)?, number(b)?)),
    }
}

fn negate(c: ConstExpr) -> ConstExpr {
    match c {
        ConstExpr::Number(x) => ConstExpr::Number(-x),
        other => ConstExpr::Neg(Box::new(other)),
    }
}

fn fold(op: BinaryOp, a: ConstExpr, b: ConstExpr) -> ConstExpr {
    match (&a, &b) {
        (ConstExpr::Number(x), ConstExpr::Number(y)) => ConstExpr::Number(arithmetic(op, *x, *y)),
        _ => ConstExpr::Binary(op, Box::new(a), Box::new(b)),
    }
}

fn arithmetic(op: BinaryOp, a: f64, b: f64) -> f64 {
    match op {
        BinaryOp::Add => a + b,
        BinaryOp::Sub => a - b,
        BinaryOp::Mul => a * b,
        BinaryOp::Div => a / b,
        BinaryOp::Pow => a.powf(b),
        _ => f64::NAN,
    }
}

fn reads_one_of(e: &Expr, names: &[String]) -> bool {
    match &e.kind {
        ExprKind::Name { name, .. } => names.contains(name),
        ExprKind::Negate(x) => reads_one_of(x, names),
        ExprKind::Binary { left, right, .. } => reads_one_of(left, names) || reads_one_of(right, names),
        ExprKind::Call { arguments, .. } => arguments.iter().any(|a| reads_one_of(a, names)),
        _ => false,
    }
}
