//! The state of one spec's check: what is declared, what has been built, what has been reported.
//!
//! Every judgement is a method in a file of its own. A method that finds a mistake reports it and
//! returns `None`; its caller passes the `None` on in silence, so that one cause gives one error.

use super::codes;
use super::lints::Facts;
use super::names::Names;
use super::rules::{Frame, Rules};
use super::types::Typed;
use crate::ir::{Axes, Builder, Shape, Source, StateId, Type};
use crate::model::{Input, Output, Param, State};
use grammar::ast::{self, Expr, ExprKind, StatementKind};
use grammar::diag::Diagnostic;
use grammar::span::Span;
use std::collections::{BTreeMap, BTreeSet};

/// Mistakes that a statement which could not be parsed brings about.
const FOLLOWING: &[&str] = &[codes::UNKNOWN_NAME, codes::UNKNOWN_AXIS, codes::NO_EQUATION];

/// One spec under check.
pub(super) struct Checker<'a> {
    pub(super) source: &'a str,
    pub(super) spec: &'a ast::Spec,
    pub(super) rules: &'a Rules<'a>,
    pub(super) diagnostics: Vec<Diagnostic>,
    pub(super) names: Names,
    pub(super) axes: Axes,
    pub(super) params: Vec<Param>,
    pub(super) inputs: Vec<Input>,
    pub(super) states: Vec<State>,
    pub(super) outputs: Vec<Output>,
    pub(super) builder: Builder,
    /// The calls of rules around the expression under check, outermost first.
    pub(super) frames: Vec<Frame<'a>>,
    /// The values of transients; `None` for one with an error.
    pub(super) transients: BTreeMap<String, Option<Typed>>,
    /// The values of states after the step, as far as they are built.
    pub(super) next: BTreeMap<StateId, Typed>,
    /// States whose equation lacks its prime.
    pub(super) misspelt: BTreeSet<StateId>,
    /// What the step IR does not tell, for the lints.
    pub(super) facts: Facts,
    /// How many more calls of rules may be expanded.
    pub(super) expansions: usize,
    /// Whether a statement could not be parsed: a name that it declares may then seem to be missing.
    pub(super) torn: bool,
    /// How deep the expression under check lies in others.
    pub(super) depth: usize,
}

impl<'a> Checker<'a> {
    /// A checker that knows nothing yet.
    pub(super) fn new(source: &'a str, spec: &'a ast::Spec, rules: &'a Rules<'a>) -> Self {
        Checker {
            source,
            spec,
            rules,
            diagnostics: vec![],
            names: Names::default(),
            axes: Axes::default(),
            params: vec![],
            inputs: vec![],
            states: vec![],
            outputs: vec![],
            builder: Builder::new(),
            frames: vec![],
            transients: BTreeMap::new(),
            next: BTreeMap::new(),
            misspelt: BTreeSet::new(),
            facts: Facts::default(),
            expansions: super::rules::MAX_EXPANSIONS,
            torn: spec.statements.iter().any(|s| matches!(s.kind, StatementKind::Error)),
            depth: 0,
        }
    }

    /// Reports a mistake, once per place. Inside a rule the calls that led there are shown.
    pub(super) fn report(&mut self, mut diagnostic: Diagnostic) {
        let again = |d: &Diagnostic| d.code == diagnostic.code && d.span() == diagnostic.span();
        let follows = self.torn && FOLLOWING.contains(&diagnostic.code);
        if follows || self.diagnostics.iter().any(again) {
            return;
        }
        let mut seen = vec![];
        diagnostic.labels.retain(|l| {
            let new = !seen.contains(&(l.span, l.text.clone()));
            seen.push((l.span, l.text.clone()));
            new
        });
        for frame in self.frames.iter().rev() {
            diagnostic = diagnostic.label(frame.call, format!("in this call of `{}`", frame.rule.name.name));
        }
        self.diagnostics.push(diagnostic);
    }

    /// The text at a span, for use in advice.
    pub(super) fn text(&self, span: Span) -> &'a str {
        self.source.get(span.range()).unwrap_or("…").trim()
    }

    /// The text of an expression as an operand that can take an index: `y'`, `(v - H@k)`.
    pub(super) fn operand_text(&self, e: &Expr) -> String {
        let text = self.text(e.span);
        match e.kind {
            ExprKind::Name { .. } | ExprKind::Call { .. } | ExprKind::Number(_) => text.to_owned(),
            _ if text.starts_with('(') && text.ends_with(')') => text.to_owned(),
            _ => format!("({text})"),
        }
    }

    /// Adds a load to the step, named after what is loaded.
    pub(super) fn load(&mut self, source: Source, shape: Shape, name: &str) -> Typed {
        let batched = !matches!(source, Source::Param(_));
        let value = self.builder.load(source, Type { shape, batched });
        self.builder.name(value, name);
        Typed { value, kind: super::types::Kind::of(shape) }
    }

    /// Whether an error has been reported.
    pub(super) fn failed(&self) -> bool {
        self.diagnostics.iter().any(Diagnostic::is_error)
    }
}
