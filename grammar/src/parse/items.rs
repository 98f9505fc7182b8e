//! Items and statements of the parse to items and statements of the tree.

use super::layout::{Layout, Token, TokenKind};
use super::{Node, Rule, access, mistakes};
use crate::ast::{
    Attribute, AxisDeclaration, BinaryOp, Constraint, Expr, ExprKind, File, Ident, Initial, Item,
    LayerArgument, OutputDeclaration, ParameterDeclaration, ParameterKind, Reset, RuleParameter, Spec,
    StateDeclaration, StateKind, Statement, StatementKind, Target, Variable,
};
use crate::diag::Diagnostic;
use crate::span::Span;

/// Walks the parse, collects mistakes.
pub(super) struct Builder<'s, 'l> {
    pub(super) source: &'s str,
    pub(super) layout: &'l Layout<'s>,
    diagnostics: Vec<Diagnostic>,
    /// Whether the statement at hand has an expression already reported as too deep.
    pub(super) depth_reported: bool,
    /// Whether the expression at hand stands in brackets.
    pub(super) in_brackets: bool,
    /// Places of the statements and items that may carry documentation.
    documented: Vec<u32>,
}

/// What stood before the statement at hand.
#[derive(Default)]
struct Before {
    /// Where it ended, unless a `;` follows.
    end: Option<u32>,
    /// Whether it was reported.
    broken: bool,
}

impl<'s, 'l> Builder<'s, 'l> {
    pub(super) fn new(source: &'s str, layout: &'l Layout<'s>) -> Self {
        Builder {
            source,
            layout,
            diagnostics: vec![],
            depth_reported: false,
            in_brackets: false,
            documented: vec![],
        }
    }

    /// The place of a node, from its first to its last token.
    pub(super) fn span(&self, node: &Node<'s>) -> Span {
        let at = node.as_span();
        self.layout.trim(at.start(), at.end())
    }

    pub(super) fn report(&mut self, mistake: Diagnostic) {
        self.diagnostics.push(mistake);
    }

    /// Whether something inside a place is reported already.
    pub(super) fn reported_in(&self, place: Span) -> bool {
        let inside = |s: Span| s.start >= place.start && s.start <= place.end;
        self.diagnostics.iter().rev().take(64).any(|d| inside(d.span()))
    }

    /// All mistakes, sorted by place.
    pub(super) fn finish(mut self) -> Vec<Diagnostic> {
        self.lost_docs();
        self.diagnostics.sort_by_key(|d| d.span());
        self.diagnostics
    }

    // ------------------------------------------------------------ items

    pub(super) fn file(&mut self, node: Node<'s>) -> File {
        let mut file = File::default();
        let mut strays = 0;
        let mut before = Before::default();
        for child in node.into_inner() {
            match child.as_rule() {
                Rule::spec => self.spec(child, &mut file),
                Rule::rule_item => {
                    let count = self.diagnostics.len();
                    let rule = self.rule(child);
                    before = Before { end: Some(rule.span.end), broken: self.diagnostics.len() > count };
                    file.items.push(Item::Rule(rule));
                }
                Rule::stray => {
                    strays += 1;
                    let before = std::mem::take(&mut before);
                    self.stray(child, &mut file, before);
                }
                _ => {}
            }
        }
        if file.items.is_empty() && strays == 0 {
            self.report(mistakes::empty_file());
        }
        file
    }

    fn spec(&mut self, node: Node<'s>, file: &mut File) {
        let span = self.span(&node);
        let doc = self.doc(span.start);
        let mut name = Ident { name: String::new(), span };
        let (mut statements, mut rules) = (vec![], vec![]);
        let mut head = span;
        for child in node.into_inner() {
            match child.as_rule() {
                Rule::spec_word => head = self.span(&child),
                Rule::any_name => {
                    // A spec's name is never used in an expression, so any word will do.
                    name = Ident { name: child.as_str().to_owned(), span: self.span(&child) };
                    if !name.name.is_ascii() {
                        self.report(mistakes::name_letters(name.span, &name.name));
                    }
                    head = head.to(name.span);
                }
                Rule::missing_name => {
                    name.span = Span::new(head.end as usize, head.end as usize);
                    let next = self.found(child.as_span().start());
                    self.report(mistakes::missing_name(name.span, "a name for the spec", &next));
                }
                Rule::missing_open => self.report(mistakes::missing_open(head)),
                Rule::body => (statements, rules) = self.body(child),
                Rule::unclosed => {
                    let end = Span::new(span.end as usize, span.end as usize);
                    self.report(mistakes::unclosed_spec(head, end, &name.name));
                }
                _ => {}
            }
        }
        let mut spec = Spec { doc, name, statements, span };
        access::resolve(&mut spec);
        file.items.push(Item::Spec(spec));
        file.items.extend(rules.into_iter().map(Item::Rule));
    }

    fn body(&mut self, node: Node<'s>) -> (Vec<Statement>, Vec<Rule_>) {
        let (mut statements, mut rules) = (vec![], vec![]);
        let mut before = Before::default();
        for child in node.into_inner() {
            match child.as_rule() {
                Rule::semicolon => before = Before::default(),
                Rule::rule_item => {
                    let rule = self.rule(child);
                    self.report(mistakes::rule_inside(rule.name.span));
                    rules.push(rule);
                    before = Before::default();
                }
                _ => statements.extend(self.line(child, &mut before)),
            }
        }
        (statements, rules)
    }

    /// A statement or junk, judged by what stands before it on its line.
    fn line(&mut self, node: Node<'s>, before: &mut Before) -> Option<Statement> {
        let span = self.span(&node);
        let same_line = before.end.is_some_and(|end| self.layout.same_line(end, span.start));
        let count = self.diagnostics.len();
        let junk = node.as_rule() == Rule::junk;
        self.depth_reported = false;
        let mut kind = StatementKind::Error;
        let doc = self.doc(span.start);
        if same_line && before.broken {
            // The cause is reported; what follows on the line may be a part of it.
        } else if junk {
            let previous = if same_line { self.layout.previous(span.start as usize) } else { None };
            self.leftover(span, previous);
        } else {
            let end = before.end.unwrap_or(span.start);
            kind = self.statement(node);
            if same_line {
                self.report(mistakes::same_line(end, span));
                kind = StatementKind::Error;
            }
        }
        *before = Before {
            end: Some(span.end),
            broken: (same_line && before.broken) || self.diagnostics.len() > count,
        };
        Some(Statement { doc, kind, span })
    }

    /// Statements and braces outside of all specs. They belong to the spec before them if a brace
    /// follows that closes nothing.
    fn stray(&mut self, node: Node<'s>, file: &mut File, mut before: Before) {
        let span = self.span(&node);
        let same_line = before.end.is_some_and(|end| self.layout.same_line(end, span.start));
        let explained = before.broken && same_line;
        let (mut statements, mut closed) = (vec![], None);
        for child in node.into_inner() {
            match child.as_rule() {
                Rule::semicolon => before = Before::default(),
                Rule::close_brace => closed = Some(self.span(&child)),
                _ => statements.extend(self.line(child, &mut before)),
            }
        }
        let first = statements.first().map(|s| s.span);
        let no_items = file.items.is_empty();
        let last_spec = file.items.iter_mut().rev().find_map(|item| match item {
            Item::Spec(spec) => Some(spec),
            Item::Rule(_) => None,
        });
        match (first, closed, last_spec) {
            (Some(first), Some(close), Some(spec)) => {
                let early = Span::new(spec.span.end.saturating_sub(1) as usize, spec.span.end as usize);
                self.report(mistakes::closed_early(first, early, close));
                spec.statements.extend(statements);
                spec.span = spec.span.to(close);
            }
            (Some(first), ..) if !explained && !self.reported_in(first) => {
                self.report(mistakes::outside(first))
            }
            (None, Some(close), _) => self.report(mistakes::stray_brace(close)),
            (None, None, _) if no_items => self.report(mistakes::outside(span)),
            _ => {}
        }
    }

    fn rule(&mut self, node: Node<'s>) -> Rule_ {
        let span = self.span(&node);
        let mut rule = Rule_ {
            doc: self.doc(span.start),
            name: Ident { name: String::new(), span },
            parameters: vec![],
            body: Expr { kind: ExprKind::Error, span },
            span,
        };
        self.depth_reported = false;
        for child in node.into_inner() {
            let at = self.span(&child);
            match child.as_rule() {
                Rule::any_name => rule.name = self.declared(&child, "a rule"),
                Rule::missing_name => {
                    rule.name.span = at;
                    let next = self.found(child.as_span().start());
                    self.report(mistakes::missing_name(at, "a name for the rule", &next));
                }
                Rule::rule_parameters if child.as_str().trim().is_empty() => {
                    let gap = self.end_before(child.as_span().start());
                    self.report(mistakes::missing_parameters(gap));
                    return rule;
                }
                Rule::rule_parameters => rule.parameters = self.rule_parameters(child),
                Rule::missing_assign if self.reported_in(span) => return rule,
                Rule::assign => self.assign(&child, None),
                Rule::missing_assign => {
                    let place = self.end_before(child.as_span().start());
                    self.report(mistakes::missing_assign(place, "the parameters of the rule"));
                    if self.next_is_end(child.as_span().start()) {
                        return rule;
                    }
                }
                Rule::value => rule.body = self.expr(child),
                _ => {}
            }
        }
        rule
    }

    fn rule_parameters(&mut self, node: Node<'s>) -> Vec<RuleParameter> {
        let (open, text, end) = (node.as_span().start(), node.as_str(), self.span(&node).end);
        let mut parameters = vec![];
        for child in node.into_inner() {
            match child.as_rule() {
                Rule::target => {
                    if let Some(parameter) = self.rule_parameter(child) {
                        parameters.push(parameter);
                    }
                }
                Rule::missing_comma => self.missing_comma(&child),
                Rule::missing_name => self.no_name(&child, "a parameter"),
                Rule::wrong_inside => {
                    let at = self.span(&child);
                    let before = self.layout.previous(at.start as usize);
                    self.leftover(at, before);
                }
                Rule::unclosed => self.unclosed(open, text, end),
                _ => {}
            }
        }
        parameters
    }

    fn rule_parameter(&mut self, node: Node<'s>) -> Option<RuleParameter> {
        let mut name = None;
        let mut index = None;
        for child in node.into_inner() {
            match child.as_rule() {
                Rule::name | Rule::reserved_name => name = Some(self.declared(&child, "a parameter")),
                Rule::brackets => index = Some(self.index(child)),
                _ => {
                    let at = self.span(&child);
                    self.report(mistakes::prime_on(at, "a parameter of a rule"));
                }
            }
        }
        name.map(|name| RuleParameter { name, index })
    }

    // ------------------------------------------------------------ statements

    fn statement(&mut self, node: Node<'s>) -> StatementKind {
        let mut inner = node.into_inner();
        let Some(child) = inner.next() else { return StatementKind::Error };
        match child.as_rule() {
            Rule::axis_statement => StatementKind::Axis(self.axes(child)),
            Rule::const_statement => StatementKind::Const(self.constants(child)),
            Rule::input_statement => self.input(child),
            Rule::noise_statement => self.noise(child),
            Rule::parameter_statement => self.parameters(child),
            Rule::state_statement => self.states(child),
            Rule::output_statement => self.outputs(child),
            Rule::penalty_statement => self.penalty(child),
            Rule::hold_statement => self.hold(child),
            Rule::modulator_statement => self.equation(child, true),
            Rule::layer_statement => self.layer(child),
            Rule::equation => self.equation(child, false),
            _ => {
                let word = self.span(&child);
                self.wrong_word(word);
                StatementKind::Error
            }
        }
    }

    fn axes(&mut self, node: Node<'s>) -> Vec<AxisDeclaration> {
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

    fn constants(&mut self, node: Node<'s>) -> Vec<(Ident, Expr)> {
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

    fn input(&mut self, node: Node<'s>) -> StatementKind {
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

    fn noise(&mut self, node: Node<'s>) -> StatementKind {
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

    fn parameters(&mut self, node: Node<'s>) -> StatementKind {
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

    fn states(&mut self, node: Node<'s>) -> StatementKind {
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

    fn outputs(&mut self, node: Node<'s>) -> StatementKind {
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

    fn penalty(&mut self, node: Node<'s>) -> StatementKind {
        match node.into_inner().find(|c| c.as_rule() == Rule::value) {
            Some(value) => StatementKind::Penalty(self.expr(value)),
            None => StatementKind::Error,
        }
    }

    fn hold(&mut self, node: Node<'s>) -> StatementKind {
        let span = self.span(&node);
        let mut states = vec![];
        let mut condition = Expr { kind: ExprKind::Error, span };
        for child in node.into_inner() {
            match child.as_rule() {
                Rule::target => {
                    let target = self.target(child);
                    if target.primed || target.axes.is_some() {
                        let help = format!("write `{}`", target.name.name);
                        self.report(mistakes::clause(
                            target.span,
                            "`hold` takes bare names of states",
                            &help,
                        ));
                    }
                    states.push(target.name);
                }
                Rule::missing_name => self.no_name(&child, "a state"),
                Rule::hold_comma => self.missing_comma(&child),
                Rule::missing_when if !self.reported_in(span) => {
                    let help = "say when: `hold S when e`";
                    self.report(mistakes::clause(span, "`hold` without a condition", help));
                }
                Rule::value => condition = self.expr(child),
                _ => {}
            }
        }
        StatementKind::Hold { states, condition }
    }

    fn layer(&mut self, node: Node<'s>) -> StatementKind {
        let span = self.span(&node);
        let mut found: Option<Ident> = None;
        let (mut used, mut arguments) = (None, vec![]);
        for child in node.into_inner() {
            match child.as_rule() {
                Rule::declared_name => found = child.into_inner().next().map(|n| self.ident(&n)),
                Rule::missing_name => self.no_name(&child, "a layer"),
                Rule::assign => self.assign(&child, None),
                Rule::missing_assign if !self.reported_in(span) => {
                    let place = self.end_before(child.as_span().start());
                    self.report(mistakes::missing_assign(place, "the layer"));
                }
                Rule::layer_use => {
                    let mut inner = child.into_inner();
                    used = inner.next().map(|n| Ident { name: n.as_str().to_owned(), span: self.span(&n) });
                    arguments = inner.next().map_or(vec![], |n| self.layer_arguments(n));
                }
                Rule::missing if !self.reported_in(span) => {
                    let help = "say of which spec: `layer one = cell(u, N = 200)`";
                    self.report(mistakes::clause(span, "a layer without a spec", help));
                }
                _ => {}
            }
        }
        match (found, used) {
            (Some(name), Some(spec)) => StatementKind::Layer { name, spec, arguments },
            _ => StatementKind::Error,
        }
    }

    fn layer_arguments(&mut self, node: Node<'s>) -> Vec<LayerArgument> {
        let span = self.span(&node);
        let mut arguments = vec![];
        for child in node.into_inner() {
            match child.as_rule() {
                Rule::layer_argument => {
                    let (mut name, mut value) = (None, Expr { kind: ExprKind::Error, span });
                    for part in child.into_inner() {
                        match part.as_rule() {
                            Rule::name => name = Some(self.ident(&part)),
                            _ => value = self.expr(part),
                        }
                    }
                    arguments.push(LayerArgument { name, value });
                }
                Rule::unclosed | Rule::wrong_inside if !self.reported_in(span) => {
                    let help = "inputs and axes, separated by commas: `layer one = cell(u, N = 200)`";
                    self.report(mistakes::clause(
                        span,
                        "the parentheses of a layer are not understood",
                        help,
                    ));
                }
                _ => {}
            }
        }
        arguments
    }

    fn equation(&mut self, node: Node<'s>, modulator: bool) -> StatementKind {
        let span = self.span(&node);
        let (mut targets, mut tuple) = (vec![], false);
        let mut value = Expr { kind: ExprKind::Error, span };
        for child in node.into_inner() {
            match child.as_rule() {
                Rule::tuple => {
                    tuple = true;
                    targets = self.tuple(child);
                }
                Rule::missing_name if modulator => self.no_name(&child, "a variable"),
                Rule::missing_name => {
                    let sign = self.layout.next(child.as_span().start()).map_or(span, |t| t.span);
                    self.report(mistakes::nameless_equation(sign));
                }
                Rule::target | Rule::incomplete_target => targets.push(self.target(child)),
                Rule::assign => self.assign(&child, targets.first()),
                Rule::missing_assign => {
                    let place = self.end_before(child.as_span().start());
                    self.report(mistakes::missing_assign(place, "the left side"));
                    if self.next_is_end(child.as_span().start()) {
                        return StatementKind::Error;
                    }
                }
                Rule::value => value = self.expr(child),
                _ => {}
            }
        }
        StatementKind::Equation { modulator, targets, tuple, value }
    }

    fn tuple(&mut self, node: Node<'s>) -> Vec<Target> {
        let mut targets = vec![];
        for child in node.into_inner() {
            match child.as_rule() {
                Rule::missing_comma => self.missing_comma(&child),
                Rule::missing_name => self.no_name(&child, "a variable"),
                _ => targets.push(self.target(child)),
            }
        }
        targets
    }

    fn target(&mut self, node: Node<'s>) -> Target {
        let span = self.span(&node);
        let name = Ident { name: String::new(), span };
        let mut target = Target { name, primed: false, axes: None, span };
        for child in node.into_inner() {
            let at = self.span(&child);
            match child.as_rule() {
                Rule::name | Rule::reserved_name => target.name = self.declared(&child, "a variable"),
                Rule::brackets => target.axes = Some(self.brackets(child)),
                Rule::late_prime => {
                    target.primed = true;
                    let brackets = Span::new(target.name.span.end as usize, at.start as usize);
                    let text = &self.source[brackets.range()];
                    self.report(mistakes::prime_after_index(at, brackets.to(at), text));
                }
                _ => {
                    target.primed = true;
                    self.check_prime(at, child.as_str());
                }
            }
        }
        target
    }

    /// Reports an assignment that is not written `=`.
    fn assign(&mut self, node: &Node<'s>, target: Option<&Target>) {
        let (at, sign) = (self.span(node), node.as_str());
        match sign {
            "=" => {}
            "+=" | "-=" | "*=" | "/=" => {
                let name = target.map_or("S", |t| t.name.name.as_str());
                self.report(mistakes::compound_assign(at, sign, name));
            }
            _ => self.report(mistakes::wrong_assign(at, sign)),
        }
    }

    // ------------------------------------------------------------ names

    /// A name of the language in a place where names are used.
    pub(super) fn ident(&mut self, node: &Node<'s>) -> Ident {
        self.declared(node, "a name")
    }

    /// A name in a place where names are declared.
    fn declared(&mut self, node: &Node<'s>, what: &str) -> Ident {
        let (span, name) = (self.span(node), node.as_str());
        if mistakes::KEYWORDS.contains(&name) {
            self.report(mistakes::reserved(span, name, what));
        } else if !name.is_ascii() {
            self.report(mistakes::name_letters(span, name));
        }
        Ident { name: name.to_owned(), span }
    }

    fn no_name(&mut self, node: &Node<'s>, what: &str) {
        let start = node.as_span().start();
        let place = self.end_before(start);
        let next = self.found(start);
        let what = format!("the name of {what}");
        self.report(mistakes::missing_name(place, &what, &next));
    }

    // ------------------------------------------------------------ documentation

    /// The `///` lines directly above a place.
    fn doc(&mut self, place: u32) -> Vec<String> {
        self.documented.push(place);
        let tokens = self.layout.tokens();
        let count = tokens.partition_point(|t| t.span.start < place);
        let is_gap = |t: &&Token| t.kind == TokenKind::Comment || self.layout.text(**t) == ";";
        let above = tokens[..count].iter().rev().take_while(is_gap);
        let mut lines: Vec<String> = above.filter_map(|&token| self.doc_line(token)).collect();
        lines.reverse();
        lines
    }

    fn doc_line(&self, token: Token) -> Option<String> {
        let text = self.layout.text(token).trim_end();
        let line = text.strip_prefix("///").filter(|l| !l.starts_with('/'))?;
        let start = token.span.start as usize;
        let before = self.source[..start].rsplit('\n').next().unwrap_or_default();
        let own = before.chars().all(|c| c.is_whitespace() || c == '\u{FEFF}');
        own.then(|| line.strip_prefix(' ').unwrap_or(line).to_owned())
    }

    /// Reports `///` comments that stand above nothing.
    fn lost_docs(&mut self) {
        self.documented.sort_unstable();
        let mut lost: Vec<Span> = vec![];
        let tokens = self.layout.tokens();
        for (at, &token) in tokens.iter().enumerate() {
            let text = self.layout.text(token);
            if token.kind != TokenKind::Comment || !text.starts_with("///") || text.starts_with("////") {
                continue;
            }
            let is_gap = |t: &&Token| t.kind != TokenKind::Comment && self.layout.text(**t) != ";";
            let next = tokens[at..].iter().find(is_gap);
            let attached = next.is_some_and(|n| self.documented.binary_search(&n.span.start).is_ok());
            if !attached || self.doc_line(token).is_none() {
                lost.push(token.span);
            }
        }
        for span in lost {
            self.report(mistakes::lost_doc(span));
        }
    }
}

/// The tree's rule; the grammar's `Rule` is in scope under its own name.
type Rule_ = crate::ast::Rule;

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
