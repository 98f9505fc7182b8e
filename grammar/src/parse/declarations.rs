//! Statements that declare something: axes, constants, inputs, noise, parameters, states, outputs.

use super::items::Builder;
use super::{Node, Rule, mistakes};
use crate::ast::{
    Attribute, AxisDeclaration, BinaryOp, Constraint, Expr, ExprKind, Ident, Initial, OutputDeclaration,
    ParameterDeclaration, ParameterKind, Reset, StateDeclaration, StateKind, StatementKind, Variable,
};
use crate::span::Span;

impl<'s> Builder<'s, '_> {
    pub(super) fn axes(&mut self, node: Node<'s>) -> Vec<AxisDeclaration> {
        let mut declarations = vec![];
        for child in node.into_inner() {
            match child.as_rule() {
                Rule::axis_declaration => {
                    let (name, size, open) = self.named_value(child, "an axis");
                    if size.is_none() && !open {
                        self.report(mistakes::axis_without_size(name.span, &name.name));
                    }
                    declarations.push(AxisDeclaration { name, size });
                }
                Rule::missing_comma => self.missing_comma(&child),
                Rule::missing_name => self.no_name(&child, "an axis"),
                _ => {}
            }
        }
        declarations
    }

    pub(super) fn constants(&mut self, node: Node<'s>) -> Vec<(Ident, Expr)> {
        let mut declarations = vec![];
        for child in node.into_inner() {
            match child.as_rule() {
                Rule::const_declaration => {
                    let (name, value, _) = self.named_value(child, "a constant");
                    let value = value.unwrap_or_else(|| {
                        let gap = Span::new(name.span.end as usize, name.span.end as usize);
                        self.report(mistakes::missing_assign(gap, "the constant"));
                        Expr { kind: ExprKind::Error, span: name.span }
                    });
                    declarations.push((name, value));
                }
                Rule::missing_comma => self.missing_comma(&child),
                Rule::missing_name => self.no_name(&child, "a constant"),
                _ => {}
            }
        }
        declarations
    }

    /// `name = value`; the flag says whether `?` or nothing nameable stands for the value.
    fn named_value(&mut self, node: Node<'s>, what: &str) -> (Ident, Option<Expr>, bool) {
        let span = self.span(&node);
        let mut name = Ident { name: String::new(), span };
        let (mut value, mut open) = (None, false);
        for child in node.into_inner() {
            match child.as_rule() {
                Rule::declared_name => {
                    let Some(inner) = child.into_inner().next() else { continue };
                    name = self.declared(&inner, what);
                }
                Rule::assign => self.assign(&child, None),
                Rule::open_size => open = true,
                _ => {
                    self.in_brackets = what == "an axis";
                    value = Some(self.expr(child));
                    self.in_brackets = false;
                }
            }
        }
        (name, value, open)
    }

    pub(super) fn input(&mut self, node: Node<'s>) -> StatementKind {
        let (mut role, mut variables) = (None, vec![]);
        for child in node.into_inner() {
            match child.as_rule() {
                Rule::role => role = Some(self.ident(&child)),
                Rule::variable_list => variables = self.variables(child),
                _ => {}
            }
        }
        StatementKind::Input { role, variables }
    }

    pub(super) fn noise(&mut self, node: Node<'s>) -> StatementKind {
        let (mut initial, mut variables, mut locked) = (None, vec![], false);
        for child in node.into_inner() {
            match child.as_rule() {
                Rule::initial => initial = self.initial(child),
                Rule::locked_word => locked = true,
                Rule::variable_list => variables = self.variables(child),
                _ => {}
            }
        }
        StatementKind::Noise { variables, initial, locked }
    }

    fn variables(&mut self, node: Node<'s>) -> Vec<Variable> {
        let mut variables = vec![];
        for child in node.into_inner() {
            match child.as_rule() {
                Rule::missing_comma => self.missing_comma(&child),
                Rule::missing_name => self.no_name(&child, "a variable"),
                _ => variables.push(self.variable(child)),
            }
        }
        variables
    }

    fn variable(&mut self, node: Node<'s>) -> Variable {
        let span = self.span(&node);
        let mut name = Ident { name: String::new(), span };
        let mut axes = vec![];
        for child in node.into_inner() {
            match child.as_rule() {
                Rule::name | Rule::reserved_name => name = self.declared(&child, "a variable"),
                Rule::brackets => axes = self.brackets(child),
                _ => {
                    let at = self.span(&child);
                    self.report(mistakes::declared_prime(at, &name.name));
                }
            }
        }
        Variable { name, axes, span }
    }

    pub(super) fn parameters(&mut self, node: Node<'s>) -> StatementKind {
        let mut kind = ParameterKind::Learn;
        let mut declarations = vec![];
        for child in node.into_inner() {
            match child.as_rule() {
                Rule::parameter_word if child.as_str() == "fixed" => kind = ParameterKind::Fixed,
                Rule::parameter => declarations.push(self.parameter(child)),
                Rule::missing_name => self.no_name(&child, "a parameter"),
                Rule::missing_comma => self.missing_comma(&child),
                _ => {}
            }
        }
        StatementKind::Parameter { kind, declarations }
    }

    fn parameter(&mut self, node: Node<'s>) -> ParameterDeclaration {
        let span = self.span(&node);
        let clauses = self.clauses(node);
        if let Some(reset) = clauses.reset {
            let at = reset_span(&reset);
            self.report(mistakes::clause(at, "a parameter has no reset", "only states are reset"));
        }
        ParameterDeclaration {
            variable: clauses.variable,
            constraint: clauses.constraint,
            initial: clauses.initial,
            attributes: clauses.attributes,
            span,
        }
    }

    pub(super) fn states(&mut self, node: Node<'s>) -> StatementKind {
        let mut kind = StateKind::State;
        let mut declarations = vec![];
        for child in node.into_inner() {
            match child.as_rule() {
                Rule::state_word => {
                    kind = match child.as_str() {
                        "plastic" => StateKind::Plastic,
                        "trace" => StateKind::Trace,
                        _ => StateKind::State,
                    }
                }
                Rule::state => declarations.push(self.state(child)),
                Rule::missing_name => self.no_name(&child, "a state"),
                Rule::missing_comma => self.missing_comma(&child),
                _ => {}
            }
        }
        StatementKind::State { kind, declarations }
    }

    fn state(&mut self, node: Node<'s>) -> StateDeclaration {
        let span = self.span(&node);
        let clauses = self.clauses(node);
        if let Some(Constraint::Interval { span, .. } | Constraint::Compare { span, .. }) = clauses.constraint
        {
            let help = "bound a state in its equation, with `clip(…, low, high)`";
            self.report(mistakes::clause(span, "a state has no range", help));
        }
        StateDeclaration {
            variable: clauses.variable,
            initial: clauses.initial,
            reset: clauses.reset,
            attributes: clauses.attributes,
            span,
        }
    }

    fn clauses(&mut self, node: Node<'s>) -> Clauses {
        let at = self.span(&node);
        let mut clauses = Clauses::new(at);
        for child in node.into_inner() {
            let at = self.span(&child);
            let repeated = match child.as_rule() {
                Rule::variable => {
                    clauses.variable = self.variable(child);
                    None
                }
                Rule::interval => {
                    let new = self.interval(child);
                    clauses.constraint.replace(new).map(|_| "range")
                }
                Rule::bound => {
                    let new = self.bound(child);
                    clauses.constraint.replace(new).map(|_| "range")
                }
                Rule::initial => {
                    let new = self.initial(child);
                    let old = clauses.initial.take();
                    clauses.initial = new;
                    old.map(|_| "initial value")
                }
                Rule::reset => {
                    let new = self.reset(child);
                    clauses.reset.replace(new).map(|_| "reset")
                }
                _ => {
                    let new = self.attribute(child);
                    let again = clauses.attributes.iter().any(|a| a.word.name == new.word.name);
                    clauses.attributes.push(new);
                    again.then_some("attribute")
                }
            };
            if let Some(what) = repeated {
                let name = &clauses.variable.name.name;
                let message = format!("`{name}` has more than one {what}");
                self.report(mistakes::clause(at, &message, "keep one of them"));
            }
        }
        clauses
    }

    fn interval(&mut self, node: Node<'s>) -> Constraint {
        let span = self.span(&node);
        let text = node.as_str();
        let open = node.as_span().start() + text.find(['(', '[']).unwrap_or(0);
        if text.starts_with('∈') {
            let at = Span::new(span.start as usize, span.start as usize + '∈'.len_utf8());
            self.report(mistakes::operator_spelling(at, "∈", "in"));
        }
        let mut bounds = vec![];
        for child in node.into_inner() {
            match child.as_rule() {
                Rule::interval_word => {}
                Rule::unclosed => self.unclosed(open, &self.source[open..span.end as usize], span.end),
                _ => bounds.push(self.expr(child)),
            }
        }
        let brackets = Span::new(open, span.end as usize);
        let inside =
            self.source[brackets.range()].trim_start_matches(['(', '[']).trim_end_matches([')', ']']);
        if self.source[brackets.range()].contains('[') && !self.reported_in(span) {
            self.report(mistakes::interval_brackets(brackets, inside));
        }
        if bounds.len() != 2 && !self.reported_in(span) {
            self.report(mistakes::clause(brackets, "an interval has two bounds", "write `in (low, high)`"));
        }
        let mut bounds = bounds.into_iter();
        let none = Expr { kind: ExprKind::Error, span };
        let low = bounds.next().unwrap_or_else(|| none.clone());
        Constraint::Interval { low, high: bounds.next().unwrap_or(none), span }
    }

    fn bound(&mut self, node: Node<'s>) -> Constraint {
        let span = self.span(&node);
        let mut op = BinaryOp::Greater;
        let mut bound = Expr { kind: ExprKind::Error, span };
        for child in node.into_inner() {
            if child.as_rule() == Rule::compare_op {
                let at = self.span(&child);
                op = match child.as_str() {
                    "<" => BinaryOp::Less,
                    "<=" => BinaryOp::LessEqual,
                    ">" => BinaryOp::Greater,
                    ">=" => BinaryOp::GreaterEqual,
                    "≤" | "≥" => self.bound_sign(at, child.as_str()),
                    sign => {
                        self.report(mistakes::bound_sign(at, sign));
                        BinaryOp::Greater
                    }
                };
            } else {
                bound = self.expr(child);
            }
        }
        Constraint::Compare { op, bound, span }
    }

    fn bound_sign(&mut self, at: Span, sign: &str) -> BinaryOp {
        let (op, ascii) =
            if sign == "≤" { (BinaryOp::LessEqual, "<=") } else { (BinaryOp::GreaterEqual, ">=") };
        self.report(mistakes::operator_spelling(at, sign, ascii));
        op
    }

    fn initial(&mut self, node: Node<'s>) -> Option<Initial> {
        let mut initial = None;
        for child in node.into_inner() {
            match child.as_rule() {
                Rule::assign => self.assign(&child, None),
                Rule::value => initial = Some(Initial::Value(self.expr(child))),
                Rule::learned => initial = Some(self.learned(child)),
                Rule::distribution => initial = Some(self.distribution(child)),
                _ => self.distribution_sign(&child),
            }
        }
        initial
    }

    fn distribution_sign(&mut self, node: &Node<'s>) {
        if node.as_str().starts_with('∼') {
            let at = self.span(node);
            self.report(mistakes::operator_spelling(at, "∼", "~"));
        }
    }

    fn learned(&mut self, node: Node<'s>) -> Initial {
        let mut span = self.span(&node);
        let mut start = None;
        for child in node.into_inner() {
            match child.as_rule() {
                Rule::learn_word => span = self.span(&child),
                Rule::distribution => start = Some(Box::new(self.distribution(child))),
                _ => self.distribution_sign(&child),
            }
        }
        Initial::Learn { span, start }
    }

    fn distribution(&mut self, node: Node<'s>) -> Initial {
        let span = self.span(&node);
        let mut name = Ident { name: String::new(), span };
        let mut arguments = vec![];
        for child in node.into_inner() {
            match child.as_rule() {
                Rule::name => name = self.ident(&child),
                Rule::call_arguments => arguments = self.call_arguments(child),
                _ => {
                    let place = self.end_before(child.as_span().start());
                    let next = self.found(child.as_span().start());
                    self.report(mistakes::missing_distribution(place, &next));
                }
            }
        }
        Initial::Distribution { name, arguments }
    }

    fn reset(&mut self, node: Node<'s>) -> Reset {
        let span = self.span(&node);
        let (mut every, mut persist, mut episodes, mut complete) = (false, false, None, true);
        for child in node.into_inner() {
            match child.as_rule() {
                Rule::persist_word => persist = true,
                Rule::every_word => every = true,
                Rule::sum => episodes = Some(self.expr(child)),
                Rule::missing_name | Rule::missing => complete = false,
                _ => {}
            }
        }
        if !complete {
            let wanted = if every { "every 3 episodes" } else { "per episode" };
            let message = "this reset is not complete";
            self.report(mistakes::clause(span, message, &format!("write, for example, `{wanted}`")));
        }
        match episodes {
            Some(episodes) => Reset::Every { episodes, span },
            None if persist => Reset::Persist(span),
            None => Reset::PerEpisode(span),
        }
    }

    fn attribute(&mut self, node: Node<'s>) -> Attribute {
        let mut word = Ident { name: String::new(), span: self.span(&node) };
        let mut operand = None;
        for child in node.into_inner() {
            match child.as_rule() {
                Rule::attribute_word | Rule::flag_word => word = self.ident(&child),
                _ => operand = Some(self.expr(child)),
            }
        }
        Attribute { word, operand }
    }

    pub(super) fn outputs(&mut self, node: Node<'s>) -> StatementKind {
        let mut outputs = vec![];
        for child in node.into_inner() {
            if child.as_rule() == Rule::output {
                outputs.extend(self.output(child));
            }
        }
        StatementKind::Output(outputs)
    }

    fn output(&mut self, node: Node<'s>) -> Option<OutputDeclaration> {
        let (mut target, mut value) = (None, None);
        for child in node.into_inner() {
            let at = self.span(&child);
            match child.as_rule() {
                Rule::target => target = Some(self.target(child)),
                Rule::assign => self.assign(&child, None),
                Rule::value => value = Some(self.expr(child)),
                Rule::missing => {
                    let next = self.found(child.as_span().start());
                    let place = self.end_before(child.as_span().start());
                    self.report(mistakes::missing_name(place, "an output", &next));
                }
                _ => {
                    self.report(mistakes::unnamed_output(at));
                    self.expr(child);
                }
            }
        }
        target.map(|target| OutputDeclaration { target, value })
    }
}

/// What may follow a declared variable.
struct Clauses {
    variable: Variable,
    constraint: Option<Constraint>,
    initial: Option<Initial>,
    reset: Option<Reset>,
    attributes: Vec<Attribute>,
}

impl Clauses {
    fn new(span: Span) -> Self {
        let name = Ident { name: String::new(), span };
        Clauses {
            variable: Variable { name, axes: vec![], span },
            constraint: None,
            initial: None,
            reset: None,
            attributes: vec![],
        }
    }
}

fn reset_span(reset: &Reset) -> Span {
    match reset {
        Reset::PerEpisode(span) | Reset::Persist(span) | Reset::Every { span, .. } => *span,
    }
}
