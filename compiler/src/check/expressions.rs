//! Expressions: from the syntax tree to values of the step, with their kinds.

use super::checker::Checker;
use super::codes;
use super::constants::number;
use super::names::{Factored, Symbol};
use super::types::{Kind, Typed};
use crate::ir::{Axis, Binary, Op, Shape, Source, Unary};
use grammar::ast::{BinaryOp, Expr, ExprKind, Index};
use grammar::diag::Diagnostic;
use grammar::span::Span;

/// How deep expressions and the rules they call may nest.
pub(super) const MAX_DEPTH: usize = 160;

impl<'a> Checker<'a> {
    /// The value of an expression; `None` if it has an error, which has been reported.
    pub(super) fn expr(&mut self, e: &'a Expr) -> Option<Typed> {
        if self.depth >= MAX_DEPTH {
            self.too_deep(e.span);
            return None;
        }
        self.depth += 1;
        let found = self.expr_inside(e);
        self.depth -= 1;
        self.builder.set_span(e.span);
        found
    }

    fn expr_inside(&mut self, e: &'a Expr) -> Option<Typed> {
        match &e.kind {
            ExprKind::Number(x) => {
                self.builder.set_span(e.span);
                Some(Typed { value: self.builder.constant(*x), kind: Kind::Scalar })
            }
            ExprKind::Name { name, primed } => {
                self.builder.set_span(e.span);
                self.name_value(name, *primed, e.span)
            }
            ExprKind::Index { base, index, index_span } => self.index(e, base, index, *index_span),
            ExprKind::Transpose(inner) => {
                self.expr(inner)?;
                self.stray_transpose(e, inner);
                None
            }
            ExprKind::Negate(x) => {
                let x = self.expr(x)?;
                self.builder.set_span(e.span);
                Some(Typed { value: self.builder.unary(Unary::Neg, x.value), kind: x.kind })
            }
            ExprKind::Binary { op, op_span, left, right } => match op {
                BinaryOp::Contract => self.contract(e, *op_span, left, right),
                BinaryOp::Dot => self.dot(e, *op_span, left, right),
                BinaryOp::Pow => self.power(e, left, right),
                _ => self.elementwise(e, *op, *op_span, left, right),
            },
            ExprKind::Call { function, arguments } => self.call(e, function, arguments),
            ExprKind::Error => None,
        }
    }

    /// Reports an expression that nests too deeply.
    pub(super) fn too_deep(&mut self, span: Span) {
        self.report(
            Diagnostic::error(
                codes::TOO_LARGE,
                "this expression is nested too deeply",
                span,
                format!("more than {MAX_DEPTH} levels"),
            )
            .help("name parts of it: `a = …`"),
        );
    }

    fn stray_transpose(&mut self, e: &Expr, inner: &Expr) {
        let text = self.text(inner.span);
        self.report(
            Diagnostic::error(
                codes::STRAY_TRANSPOSE,
                "a transpose can only stand to the left of `@`",
                e.span,
                "this matrix is not applied to a vector",
            )
            .help(format!(
                "`{text}^T @ v` contracts the post axis; synaptic equations need no transpose, \
                 say `[j]` and `[i]` instead"
            )),
        );
    }

    /// The value of a name, or of a parameter of the rule that is being expanded.
    pub(super) fn name_value(&mut self, name: &str, primed: bool, span: Span) -> Option<Typed> {
        if let Some(found) = self.rule_parameter(name, primed, span) {
            return found;
        }
        let Some(entry) = self.names.get(name) else {
            self.unknown_name(name, span);
            return None;
        };
        let (symbol, place) = (entry.symbol.clone(), entry.span);
        if primed && !matches!(symbol, Symbol::State(_) | Symbol::Poison) {
            self.stray_prime(name, &symbol, span, place);
            return None;
        }
        match symbol {
            Symbol::Poison => None,
            Symbol::Axis(axis) => Some(Typed { value: self.builder.size(axis), kind: Kind::Scalar }),
            Symbol::Constant(c) => Some(Typed { value: self.constant_value(&c), kind: Kind::Scalar }),
            Symbol::Param(p) => {
                let shape = self.params[p.index()].shape;
                Some(self.load(Source::Param(p), shape, name))
            }
            Symbol::Factored(f) => Some(self.factored(name, f)),
            Symbol::Input(u) => {
                let shape = self.inputs[u.index()].shape;
                Some(self.load(Source::Input(u), shape, name))
            }
            Symbol::State(s) if primed => self.next_state(s),
            Symbol::State(s) => {
                let shape = self.states[s.index()].shape;
                Some(self.load(Source::State(s), shape, name))
            }
            Symbol::Transient(_) => self.transients.get(name).copied().flatten(),
        }
    }

    fn stray_prime(&mut self, name: &str, symbol: &Symbol, span: Span, place: Span) {
        let noun = symbol.noun();
        let why = match symbol {
            Symbol::Transient(_) => "a transient has one value per step, that of this step",
            Symbol::Input(_) => "an input has one value per step, the current one",
            _ => "it does not change from step to step",
        };
        self.report(
            Diagnostic::error(
                codes::STRAY_PRIME,
                format!("`{name}` is {noun} and takes no prime"),
                span,
                "a prime means \"after this step\"",
            )
            .label(place, format!("`{name}` is {noun}"))
            .help(format!("write `{name}`: {why}"))
            .fix(span, name),
        );
    }

    /// `Σ_k post_k[j] pre_k[i]`
    fn factored(&mut self, name: &str, f: Factored) -> Typed {
        let of = |c: &Self, p: crate::ir::ParamId| c.params[p.index()].shape;
        let (post_shape, pre_shape) = (of(self, f.post_factor), of(self, f.pre_factor));
        let post = self.load(Source::Param(f.post_factor), post_shape, &format!("{name}.post"));
        let pre = self.load(Source::Param(f.pre_factor), pre_shape, &format!("{name}.pre"));
        let mut sum = None;
        for k in 0..f.rank {
            let a = self.factor_row(post, f.post, k);
            let b = self.factor_row(pre, f.pre, k);
            let term = self.builder.emit(Op::Outer(a, b));
            sum = Some(match sum {
                None => term,
                Some(sum) => self.builder.add(sum, term),
            });
        }
        let kind = Kind::Matrix { post: f.post, pre: f.pre };
        let value = match sum {
            Some(value) => value,
            None => self.builder.fill(0.0, kind.shape()),
        };
        self.builder.name(value, name);
        Typed { value, kind }
    }

    fn factor_row(&mut self, factor: Typed, axis: Axis, k: usize) -> crate::ir::Value {
        if factor.kind.shape() == Shape::Vector(axis) {
            return factor.value;
        }
        let linear = self.axes.linear(axis).clone();
        let start = self.axis_sum(&crate::ir::Linear::default(), &linear, k as i64);
        self.builder.emit(Op::Slice { x: factor.value, start, axis })
    }

    /// `v[j]`, `v[i]`, `M[j,i]`, `b[0]`
    fn index(&mut self, e: &'a Expr, base: &'a Expr, index: &Index, at: Span) -> Option<Typed> {
        if let ExprKind::Name { name, primed: false } = &base.kind
            && let Some(found) = self.indexed_rule_parameter(name, index, e.span)
        {
            return found;
        }
        let typed = self.expr(base)?;
        self.builder.set_span(e.span);
        let kind = match (typed.kind, index) {
            (Kind::Vector(a), Index::Post) => Kind::Post(a),
            (Kind::Vector(a), Index::Pre) => Kind::Pre(a),
            (Kind::Vector(a), Index::Element(k)) => return self.element(typed, a, *k, at),
            (Kind::Matrix { .. }, Index::Both) => typed.kind,
            _ => {
                self.bad_index(base, typed, index, at);
                return None;
            }
        };
        Some(Typed { value: typed.value, kind })
    }

    fn element(&mut self, v: Typed, axis: Axis, k: usize, at: Span) -> Option<Typed> {
        let linear = self.axes.linear(axis);
        if linear.terms.is_empty() && k as i64 >= linear.constant {
            let size = linear.constant;
            self.report(
                Diagnostic::error(
                    codes::OUT_OF_RANGE,
                    format!("there is no element {k}"),
                    at,
                    format!("the vector has {size} elements, 0 to {}", size - 1),
                )
                .help("elements are counted from 0"),
            );
            return None;
        }
        Some(Typed { value: self.builder.emit(Op::Element(v.value, k)), kind: Kind::Scalar })
    }

    fn bad_index(&mut self, base: &Expr, typed: Typed, index: &Index, at: Span) {
        let text = self.operand_text(base);
        let what = typed.kind.describe(&self.axes);
        let (message, help) = match (typed.kind, index) {
            (Kind::Scalar, _) => {
                (format!("`{text}` is a scalar and takes no index"), format!("write `{text}`"))
            }
            (Kind::Vector(_), Index::Both) => (
                format!("`{text}` is a vector and cannot be indexed with `[j,i]`"),
                format!("write `{text}[j]` for the post neuron or `{text}[i]` for the pre neuron"),
            ),
            (Kind::Vector(_), _) => (
                "this index is not understood".to_owned(),
                format!("a vector takes `{text}[j]`, `{text}[i]` or the number of an element, `{text}[0]`"),
            ),
            (Kind::Matrix { .. }, Index::Post | Index::Pre) => (
                format!("`{text}` has both a post and a pre axis, one index does not place it"),
                format!("write `{text}`, or `{text}[j,i]`; a row sum is `rowsum({text})`"),
            ),
            (Kind::Matrix { .. }, _) => {
                ("a matrix has no such index".to_owned(), format!("write `{text}`, or `{text}[j,i]`"))
            }
            (Kind::Post(_) | Kind::Pre(_), _) => {
                (format!("`{text}` is already placed on synapses"), "index the vector once".to_owned())
            }
        };
        let mut diagnostic = Diagnostic::error(codes::BAD_INDEX, message, at, format!("indexes {what}"));
        if let Some((place, label)) = self.origin(base, None) {
            diagnostic = diagnostic.label(place, label);
        }
        self.report(diagnostic.help(help));
    }

    /// `x ^ c` with a constant exponent.
    fn power(&mut self, e: &'a Expr, left: &'a Expr, right: &'a Expr) -> Option<Typed> {
        let base = self.expr(left);
        let exponent = match self.is_compile_time(right) {
            true => self.constant(right, "an exponent"),
            false => {
                let value = self.expr(right)?.value;
                let found = self.constant_of(value);
                if found.is_none() {
                    self.bad_power(right.span, "this exponent is computed at run time");
                }
                found
            }
        };
        let (base, exponent) = (base?, exponent?);
        self.builder.set_span(e.span);
        let Some(number) = number(&exponent) else {
            self.bad_power(right.span, "this exponent depends on the size of an axis");
            return None;
        };
        let known = number.fract() == 0.0 && number.abs() <= 32.0;
        if !known && number.abs() != 0.5 {
            self.bad_power(right.span, &format!("{number} is no whole number up to 32, and not 0.5 or -0.5"));
            return None;
        }
        Some(self.raise(base, number))
    }

    fn bad_power(&mut self, span: Span, label: &str) {
        self.report(
            Diagnostic::error(codes::BAD_POWER, "this power is not available", span, label)
                .help("write `exp(k * log(x))` for a positive `x` and any exponent `k`"),
        );
    }

    /// `x^n` for a whole `n`, `x^0.5`, `x^-0.5`; other exponents by `exp` and `log`.
    pub(super) fn raise(&mut self, x: Typed, exponent: f64) -> Typed {
        let shape = x.kind.shape();
        let magnitude = exponent.abs();
        let mut value = if magnitude == 0.5 {
            self.builder.unary(Unary::Sqrt, x.value)
        } else if magnitude.fract() == 0.0 && magnitude <= 32.0 {
            self.whole_power(x, magnitude as u32)
        } else {
            let log = self.builder.unary(Unary::Log, x.value);
            let log = self.scaled(magnitude, log, shape);
            self.builder.unary(Unary::Exp, log)
        };
        if exponent < 0.0 {
            let one = self.builder.fill(1.0, shape);
            value = self.builder.div(one, value);
        }
        Typed { value, kind: x.kind }
    }

    fn scaled(&mut self, factor: f64, v: crate::ir::Value, shape: Shape) -> crate::ir::Value {
        let factor = self.builder.fill(factor, shape);
        self.builder.mul(factor, v)
    }

    /// By repeated squaring.
    fn whole_power(&mut self, x: Typed, mut n: u32) -> crate::ir::Value {
        let mut result = self.builder.fill(1.0, x.kind.shape());
        let mut square = x.value;
        while n > 0 {
            if n % 2 == 1 {
                result = self.builder.mul(result, square);
            }
            n /= 2;
            if n > 0 {
                square = self.builder.mul(square, square);
            }
        }
        result
    }

    /// Whether an expression uses numbers, constants and axes alone.
    pub(super) fn is_compile_time(&self, e: &Expr) -> bool {
        match &e.kind {
            ExprKind::Number(_) => true,
            ExprKind::Name { name, .. } => {
                self.frames.is_empty()
                    && matches!(
                        self.names.get(name).map(|n| &n.symbol),
                        Some(Symbol::Axis(_) | Symbol::Constant(_))
                    )
            }
            ExprKind::Negate(x) => self.is_compile_time(x),
            ExprKind::Binary { left, right, .. } => self.is_compile_time(left) && self.is_compile_time(right),
            _ => false,
        }
    }

    /// `+ - * /` and comparisons.
    fn elementwise(
        &mut self,
        e: &'a Expr,
        op: BinaryOp,
        at: Span,
        left: &'a Expr,
        right: &'a Expr,
    ) -> Option<Typed> {
        let (l, r) = (self.expr(left), self.expr(right));
        let (l, r) = (l?, r?);
        self.builder.set_span(e.span);
        let kind = self.join(symbol(op), at, &[(l, left), (r, right)])?;
        if op == BinaryOp::Mul
            && let Some(value) = self.outer(l, r)
        {
            return Some(Typed { value, kind });
        }
        let (a, b) = (self.lift(l, kind), self.lift(r, kind));
        let value = match op {
            BinaryOp::Add => self.builder.add(a, b),
            BinaryOp::Sub => self.builder.sub(a, b),
            BinaryOp::Mul => self.builder.mul(a, b),
            BinaryOp::Div => self.builder.div(a, b),
            BinaryOp::Less => self.builder.binary(Binary::Less, a, b),
            BinaryOp::LessEqual => self.builder.binary(Binary::LessEqual, a, b),
            BinaryOp::Greater => self.builder.binary(Binary::Less, b, a),
            BinaryOp::GreaterEqual => self.builder.binary(Binary::LessEqual, b, a),
            BinaryOp::Equal => self.builder.binary(Binary::Equal, a, b),
            BinaryOp::Pow | BinaryOp::Contract | BinaryOp::Dot => return None,
        };
        Some(Typed { value, kind })
    }
}

/// The operator as it is written.
fn symbol(op: BinaryOp) -> &'static str {
    match op {
        BinaryOp::Add => "+",
        BinaryOp::Sub => "-",
        BinaryOp::Mul => "*",
        BinaryOp::Div => "/",
        BinaryOp::Pow => "^",
        BinaryOp::Contract => "@",
        BinaryOp::Dot => ".",
        BinaryOp::Less => "<",
        BinaryOp::LessEqual => "<=",
        BinaryOp::Greater => ">",
        BinaryOp::GreaterEqual => ">=",
        BinaryOp::Equal => "==",
    }
}
