//! Expressions of the parse to expressions of the tree.

use super::items::Builder;
use super::{Node, Rule, mistakes};
use crate::ast::{BinaryOp, Expr, ExprKind, Ident, Index};
use crate::span::Span;

/// Deepest tree of an expression.
const MAX_DEPTH: usize = 200;

/// An expression and the depth of its tree.
pub(super) struct Sized {
    expr: Expr,
    depth: usize,
}

impl Sized {
    fn leaf(kind: ExprKind, span: Span) -> Self {
        Sized { expr: Expr { kind, span }, depth: 1 }
    }
}

impl<'s> Builder<'s, '_> {
    /// The expression under any expression rule.
    pub(super) fn expr(&mut self, node: Node<'s>) -> Expr {
        self.sized(node).expr
    }

    /// An expression of known depth, or an error node if that is too deep.
    fn sized_of(&mut self, kind: ExprKind, span: Span, below: usize) -> Sized {
        if below < MAX_DEPTH {
            return Sized { expr: Expr { kind, span }, depth: below + 1 };
        }
        if !self.depth_reported {
            self.depth_reported = true;
            self.report(mistakes::deep_expression(span, MAX_DEPTH));
        }
        Sized::leaf(ExprKind::Error, span)
    }

    fn sized(&mut self, node: Node<'s>) -> Sized {
        let span = self.span(&node);
        match node.as_rule() {
            Rule::value => self.only_child(node, span),
            Rule::expr => self.chain(node, span),
            Rule::sum | Rule::product | Rule::contraction | Rule::power => self.chain(node, span),
            Rule::unary | Rule::exponent => self.signed(node, span),
            Rule::postfix => self.postfix(node),
            Rule::number => Sized::leaf(self.number(node.as_str(), span), span),
            Rule::scaled => self.scaled(node, span),
            Rule::call => self.call(node, span),
            Rule::name | Rule::reserved_operand => {
                let name = self.ident(&node).name;
                Sized::leaf(ExprKind::Name { name, primed: false }, span)
            }
            Rule::paren => self.paren(node, span),
            Rule::named_argument => self.named_argument(node),
            Rule::missing => {
                self.missing_expression(span);
                Sized::leaf(ExprKind::Error, span)
            }
            _ => Sized::leaf(ExprKind::Error, span),
        }
    }

    fn only_child(&mut self, node: Node<'s>, span: Span) -> Sized {
        match node.into_inner().next() {
            Some(child) => self.sized(child),
            None => Sized::leaf(ExprKind::Error, span),
        }
    }

    /// Operands with binary operators between them, grouped from the left.
    fn chain(&mut self, node: Node<'s>, span: Span) -> Sized {
        let rule = node.as_rule();
        let mut inner = node.into_inner();
        let Some(first) = inner.next() else { return Sized::leaf(ExprKind::Error, span) };
        let mut left = self.sized(first);
        let mut previous: Option<Span> = None;
        while let (Some(sign), Some(operand)) = (inner.next(), inner.next()) {
            let op_span = self.span(&sign);
            let logical = matches!(sign.as_str(), "&&" | "||");
            if let Some(first) = previous.filter(|_| !logical) {
                self.chained(rule, first, op_span);
            }
            previous = Some(op_span).filter(|_| !logical);
            let right = self.sized(operand);
            left = self.binary(sign.as_str(), op_span, left, right);
        }
        left
    }

    fn chained(&mut self, rule: Rule, first: Span, second: Span) {
        match rule {
            Rule::expr => self.report(mistakes::comparison_chain(first, second)),
            Rule::power => self.report(mistakes::power_chain(first, second)),
            _ => {}
        }
    }

    fn binary(&mut self, sign: &str, op_span: Span, left: Sized, right: Sized) -> Sized {
        let op = self.operator(sign, op_span);
        let span = left.expr.span.to(right.expr.span).to(op_span);
        let depth = left.depth.max(right.depth);
        if let ExprKind::Name { name, primed: false } = &right.expr.kind
            && op == BinaryOp::Pow
            && name == "T"
        {
            return self.sized_of(ExprKind::Transpose(Box::new(left.expr)), span, left.depth);
        }
        if op == BinaryOp::Dot && matches!(right.expr.kind, ExprKind::Number(_)) {
            let text = &self.source[right.expr.span.range()];
            let fix = Span::new(op_span.start as usize, right.expr.span.end as usize);
            self.report(mistakes::dot_element(fix, text));
        }
        let kind = ExprKind::Binary { op, op_span, left: Box::new(left.expr), right: Box::new(right.expr) };
        self.sized_of(kind, span, depth)
    }

    fn operator(&mut self, sign: &str, at: Span) -> BinaryOp {
        let (op, ascii) = match sign {
            "+" => return BinaryOp::Add,
            "-" => return BinaryOp::Sub,
            "*" => return BinaryOp::Mul,
            "/" => return BinaryOp::Div,
            "^" => return BinaryOp::Pow,
            "@" => return BinaryOp::Contract,
            "." => return BinaryOp::Dot,
            "<" => return BinaryOp::Less,
            "<=" => return BinaryOp::LessEqual,
            ">" => return BinaryOp::Greater,
            ">=" => return BinaryOp::GreaterEqual,
            "==" => return BinaryOp::Equal,
            "−" | "–" => (BinaryOp::Sub, "-"),
            "×" | "⊙" | "∘" => (BinaryOp::Mul, "*"),
            "÷" => (BinaryOp::Div, "/"),
            "·" | "⋅" | "∙" => (BinaryOp::Dot, "."),
            "≤" => (BinaryOp::LessEqual, "<="),
            "≥" => (BinaryOp::GreaterEqual, ">="),
            ".*" => (BinaryOp::Mul, "*"),
            "./" => (BinaryOp::Div, "/"),
            "**" | ".^" => (BinaryOp::Pow, "^"),
            _ => {
                self.report(mistakes::no_such_operator(at, sign));
                return BinaryOp::Equal;
            }
        };
        self.report(mistakes::operator_spelling(at, sign, ascii));
        op
    }

    fn signed(&mut self, node: Node<'s>, span: Span) -> Sized {
        let (signs, rest): (Vec<_>, Vec<_>) = node.into_inner().partition(|p| p.as_rule() == Rule::sign);
        let Some(operand) = rest.into_iter().next() else { return Sized::leaf(ExprKind::Error, span) };
        let mut value = self.sized(operand);
        for sign in signs.into_iter().rev() {
            let at = self.span(&sign);
            match sign.as_str() {
                "+" => {
                    self.report(mistakes::plus_sign(at));
                    continue;
                }
                "-" => {}
                other => self.report(mistakes::operator_spelling(at, other, "-")),
            }
            let span = at.to(value.expr.span);
            value = self.sized_of(ExprKind::Negate(Box::new(value.expr)), span, value.depth);
        }
        value
    }

    fn postfix(&mut self, node: Node<'s>) -> Sized {
        let start = node.as_span().start();
        let mut inner = node.into_inner();
        let Some(first) = inner.next() else {
            return Sized::leaf(ExprKind::Error, Span::new(start, start));
        };
        let mut value = self.sized(first);
        for part in inner {
            let at = self.span(&part);
            let span = Span::new(start, at.end as usize);
            value = match part.as_rule() {
                Rule::prime => self.primed(value, part, span),
                Rule::brackets => self.indexed(value, part, span),
                Rule::superscript => self.raised(value, part.as_str(), at, span),
                _ => {
                    if part.as_str() == "ᵀ" {
                        self.report(mistakes::operator_spelling(at, "ᵀ", "^T"));
                    }
                    self.sized_of(ExprKind::Transpose(Box::new(value.expr)), span, value.depth)
                }
            };
        }
        value
    }

    fn primed(&mut self, mut value: Sized, part: Node<'s>, span: Span) -> Sized {
        let at = self.span(&part);
        match &mut value.expr.kind {
            ExprKind::Name { primed, .. }
                if !*primed && !self.source[value.expr.span.range()].starts_with('(') =>
            {
                *primed = true;
                self.check_prime(at, part.as_str());
            }
            ExprKind::Index { base, .. } if matches!(base.kind, ExprKind::Name { primed: false, .. }) => {
                let name = base.span;
                if let ExprKind::Name { primed, .. } = &mut base.kind {
                    *primed = true;
                }
                let brackets = Span::new(name.end as usize, at.start as usize);
                let text = &self.source[brackets.range()];
                self.report(mistakes::prime_after_index(at, brackets.to(at), text));
            }
            ExprKind::Number(_) => self.report(mistakes::prime_on(at, "a number")),
            ExprKind::Error => {}
            _ => self.report(mistakes::prime_on(at, "this expression")),
        }
        value.expr.span = span;
        value
    }

    /// Reports a prime that is not one plain `'`.
    pub(super) fn check_prime(&mut self, at: Span, text: &str) {
        let double = text.chars().count() > 1 || text == "″" || text == "\"";
        if double {
            self.report(mistakes::double_prime(at, text));
        } else if text != "'" {
            self.report(mistakes::operator_spelling(at, text, "'"));
        }
    }

    fn indexed(&mut self, value: Sized, part: Node<'s>, span: Span) -> Sized {
        let index_span = self.span(&part);
        let index = self.index(part);
        let kind = ExprKind::Index { base: Box::new(value.expr), index, index_span };
        self.sized_of(kind, span, value.depth)
    }

    /// What brackets after an operand say.
    pub(super) fn index(&mut self, brackets: Node<'s>) -> Index {
        let text = brackets.as_str();
        let parts = self.brackets(brackets);
        let names: Vec<&str> = parts.iter().map(|p| self.source[p.span.range()].trim()).collect();
        match names.as_slice() {
            ["j"] => Index::Post,
            ["i"] => Index::Pre,
            ["j", "i"] => Index::Both,
            [one] if one.chars().all(|c| c.is_ascii_digit()) && one.parse::<usize>().is_ok() => {
                Index::Element(one.parse().unwrap_or_default())
            }
            _ => Index::Other(inside(text)),
        }
    }

    /// The expressions in brackets, which are sizes of axes or indices.
    pub(super) fn brackets(&mut self, node: Node<'s>) -> Vec<Expr> {
        let outer = self.in_brackets;
        self.in_brackets = true;
        let parts = self.list(node);
        self.in_brackets = outer;
        parts.into_iter().map(|p| p.expr).collect()
    }

    fn raised(&mut self, value: Sized, digits: &str, at: Span, span: Span) -> Sized {
        let plain: String = digits.chars().map(plain_digit).collect();
        self.report(mistakes::operator_spelling(at, digits, &format!("^{plain}")));
        let number = Expr { kind: ExprKind::Number(plain.parse().unwrap_or(1.0)), span: at };
        let kind = ExprKind::Binary {
            op: BinaryOp::Pow,
            op_span: at,
            left: Box::new(value.expr),
            right: Box::new(number),
        };
        self.sized_of(kind, span, value.depth)
    }

    fn number(&mut self, text: &str, span: Span) -> ExprKind {
        match text.parse::<f64>() {
            Ok(value) if value.is_finite() => return ExprKind::Number(value),
            Ok(_) => self.report(mistakes::huge_number(span, text)),
            Err(_) => self.report(mistakes::bad_number(span, text)),
        }
        ExprKind::Error
    }

    /// `3N`, which is a product in the size of an axis and a mistake elsewhere.
    fn scaled(&mut self, node: Node<'s>, span: Span) -> Sized {
        let mut inner = node.into_inner();
        let (Some(number), Some(name)) = (inner.next(), inner.next()) else {
            return Sized::leaf(ExprKind::Error, span);
        };
        let gap = Span::new(name.as_span().start(), name.as_span().start());
        if !self.in_brackets {
            self.report(mistakes::number_then_name(span, gap, number.as_str(), name.as_str()));
        }
        let (left, right) = (self.sized(number), self.sized(name));
        let kind = ExprKind::Binary {
            op: BinaryOp::Mul,
            op_span: gap,
            left: Box::new(left.expr),
            right: Box::new(right.expr),
        };
        self.sized_of(kind, span, 1)
    }

    fn call(&mut self, node: Node<'s>, span: Span) -> Sized {
        let mut inner = node.into_inner();
        let (Some(name), Some(arguments)) = (inner.next(), inner.next()) else {
            return Sized::leaf(ExprKind::Error, span);
        };
        let function: Ident = self.ident(&name);
        let outer = std::mem::replace(&mut self.in_brackets, false);
        let parts = self.list(arguments);
        self.in_brackets = outer;
        let depth = parts.iter().map(|p| p.depth).max().unwrap_or(0);
        let arguments = parts.into_iter().map(|p| p.expr).collect();
        self.sized_of(ExprKind::Call { function, arguments }, span, depth)
    }

    /// The arguments of a call as expressions.
    pub(super) fn call_arguments(&mut self, node: Node<'s>) -> Vec<Expr> {
        self.list(node).into_iter().map(|p| p.expr).collect()
    }

    fn paren(&mut self, node: Node<'s>, span: Span) -> Sized {
        let mut parts = self.list(node);
        if parts.len() != 1 {
            if !self.reported_in(span) {
                self.report(mistakes::tuple_value(span, parts.len()));
            }
            return Sized::leaf(ExprKind::Error, span);
        }
        let mut value = parts.remove(0);
        value.expr.span = span;
        value
    }

    /// The list between brackets of any kind, with its mistakes.
    fn list(&mut self, node: Node<'s>) -> Vec<Sized> {
        let (open, text) = (node.as_span().start(), node.as_str());
        let one_value = node.as_rule() == Rule::paren;
        let end = self.span(&node).end;
        let mut parts = vec![];
        let mut wrong: Option<Node<'s>> = None;
        for child in node.into_inner() {
            match child.as_rule() {
                Rule::arguments => parts = self.arguments(child, one_value),
                Rule::wrong_inside => wrong = Some(child),
                Rule::unclosed => self.unclosed(open, text, end),
                _ => {}
            }
        }
        if let Some(junk) = wrong {
            let at = self.span(&junk);
            let before = self.layout.previous(at.start as usize);
            self.leftover(at, before);
        }
        parts
    }

    fn arguments(&mut self, node: Node<'s>, one_value: bool) -> Vec<Sized> {
        let mut parts: Vec<Sized> = vec![];
        for child in node.into_inner() {
            if child.as_rule() == Rule::missing_comma {
                let at = child.as_span().start();
                let before = parts.last().map_or(Span::new(at, at), |p| p.expr.span);
                self.side_by_side(before, at, one_value);
            } else {
                let part = self.sized(child);
                parts.push(part);
            }
        }
        parts
    }

    fn named_argument(&mut self, node: Node<'s>) -> Sized {
        let span = self.span(&node);
        let mut inner = node.into_inner();
        let (Some(name), Some(value)) = (inner.next(), inner.next()) else {
            return Sized::leaf(ExprKind::Error, span);
        };
        let label = Span::new(span.start as usize, value.as_span().start());
        self.report(mistakes::named_argument(label, name.as_str()));
        self.sized(value)
    }
}

/// The text between the first and last character, as it is.
fn inside(text: &str) -> String {
    let text = text.trim_end();
    let text = text.strip_prefix('[').unwrap_or(text);
    text.strip_suffix(']').unwrap_or(text).trim().to_owned()
}

fn plain_digit(c: char) -> char {
    let raised = "⁰¹²³⁴⁵⁶⁷⁸⁹";
    match raised.chars().position(|r| r == c) {
        Some(digit) => char::from(b'0' + digit as u8),
        None => '-',
    }
}
