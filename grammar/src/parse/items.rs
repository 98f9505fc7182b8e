//! Items of the parse to items of the tree; what its statements share.

use super::layout::{Layout, Token, TokenKind};
use super::{Node, Rule, access, mistakes};
use crate::ast::{Expr, ExprKind, File, Ident, Item, RuleParameter, Spec, Statement, StatementKind};
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

    // ------------------------------------------------------------ names

    /// A name of the language in a place where names are used.
    pub(super) fn ident(&mut self, node: &Node<'s>) -> Ident {
        self.declared(node, "a name")
    }

    /// A name in a place where names are declared.
    pub(super) fn declared(&mut self, node: &Node<'s>, what: &str) -> Ident {
        let (span, name) = (self.span(node), node.as_str());
        if mistakes::KEYWORDS.contains(&name) {
            self.report(mistakes::reserved(span, name, what));
        } else if !name.is_ascii() {
            self.report(mistakes::name_letters(span, name));
        }
        Ident { name: name.to_owned(), span }
    }

    pub(super) fn no_name(&mut self, node: &Node<'s>, what: &str) {
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
