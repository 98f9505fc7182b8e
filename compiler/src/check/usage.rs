//! Who reads what, by name: modulators without effect, states and parameters that nothing uses.
//!
//! Names are nodes; the equation of a name points from those it reads. What reaches no output, no
//! penalty and no reset is dead. Only the end of a dead chain is reported: what feeds it comes alive
//! with it.

use super::checker::Checker;
use super::codes;
use super::equations::Equation;
use super::names::Symbol;
use crate::model::{Init, Role};
use grammar::ast::{Constraint as AstConstraint, ParameterDeclaration};
use grammar::ast::{Expr, Initial, Reset, StateKind, StatementKind, Variable};
use grammar::diag::Diagnostic;
use grammar::span::Span;
use std::collections::{BTreeMap, BTreeSet};

/// Which names each name is computed from.
#[derive(Default)]
struct Graph {
    reads: BTreeMap<String, BTreeSet<String>>,
    /// What outputs and penalties read.
    sinks: BTreeSet<String>,
}

impl Graph {
    /// All names that are computed, directly or not, from `start`.
    fn reached_from(&self, start: &str) -> BTreeSet<&str> {
        let mut found = BTreeSet::new();
        let mut open = vec![start];
        while let Some(name) = open.pop() {
            for (reader, reads) in &self.reads {
                if reads.contains(name) && found.insert(reader.as_str()) {
                    open.push(reader);
                }
            }
        }
        found
    }

    /// All names that outputs and penalties are computed from.
    fn live(&self) -> BTreeSet<&str> {
        let mut found: BTreeSet<&str> = self.sinks.iter().map(String::as_str).collect();
        let mut open: Vec<&str> = found.iter().copied().collect();
        while let Some(name) = open.pop() {
            for read in self.reads.get(name).into_iter().flatten() {
                if found.insert(read) {
                    open.push(read);
                }
            }
        }
        found
    }
}

impl<'a> Checker<'a> {
    /// Checks that every modulator modulates, and in a spec without errors that everything is used.
    pub(super) fn check_usage(&mut self, equations: &[Equation<'a>]) {
        let names_are_sound = !self.diagnostics.iter().any(|d| d.is_error() && d.code.starts_with("BPM01"));
        if self.torn || !names_are_sound {
            return;
        }
        let graph = self.graph(equations);
        self.check_modulators(equations, &graph);
        if self.failed() {
            return;
        }
        if graph.sinks.is_empty() {
            let name = &self.spec.name;
            self.report(
                Diagnostic::warning(
                    codes::UNUSED,
                    format!("the spec `{}` has no output", name.name),
                    name.span,
                    "computes nothing that leaves it",
                )
                .help("add `out y'` or `out name = …`"),
            );
            return;
        }
        self.check_dead(&graph);
        self.check_declared_numbers();
    }

    fn graph(&self, equations: &[Equation<'a>]) -> Graph {
        let mut graph = Graph::default();
        for equation in equations {
            let mut reads = BTreeSet::new();
            for e in std::iter::once(&equation.value).chain(&equation.holds) {
                self.reads(e, &mut |name, _, _| {
                    reads.insert(name.to_owned());
                });
            }
            for goal in &equation.goals {
                graph.reads.entry(goal.target.name.name.clone()).or_default().extend(reads.clone());
            }
        }
        for state in &self.states {
            if let Init::Param(p) = state.init {
                let reads = graph.reads.entry(state.name.clone()).or_default();
                reads.insert(self.params[p.index()].name.clone());
            }
        }
        for statement in &self.spec.statements {
            let mut sink = |name: &str, _: bool, _: Span| {
                graph.sinks.insert(name.to_owned());
            };
            match &statement.kind {
                StatementKind::Output(list) => {
                    for o in list {
                        match &o.value {
                            Some(e) => self.reads(e, &mut sink),
                            None => sink(&o.target.name.name, o.target.primed, o.target.span),
                        }
                    }
                }
                StatementKind::Penalty(e) => self.reads(e, &mut sink),
                _ => {}
            }
        }
        graph
    }

    fn check_modulators(&mut self, equations: &[Equation<'a>], graph: &Graph) {
        for equation in equations.iter().filter(|e| e.modulator) {
            for goal in &equation.goals {
                let name = &goal.target.name.name;
                let reached = graph.reached_from(name);
                let modulated =
                    |s: &&crate::model::State| matches!(s.kind, StateKind::Plastic | StateKind::Trace);
                if self.states.iter().filter(modulated).any(|s| reached.contains(s.name.as_str())) {
                    continue;
                }
                let mut diagnostic = Diagnostic::error(
                    codes::MODULATOR_WITHOUT_EFFECT,
                    format!("the modulator `{name}` reaches no plastic state and no trace"),
                    goal.target.span,
                    "modulates nothing",
                );
                diagnostic = match self.states.iter().find(modulated) {
                    Some(s) => diagnostic
                        .label(s.span, format!("the equation of `{}` does not depend on it", s.name))
                        .help(format!(
                            "multiply a write with it, for example `{}'[j,i] = … + {name} * …`",
                            s.name
                        )),
                    None => diagnostic.help(format!(
                        "there is no plastic state and no trace; write `{name} = …` without `modulator`"
                    )),
                };
                self.report(diagnostic);
            }
        }
    }

    fn check_dead(&mut self, graph: &Graph) {
        let live = graph.live();
        let dead: Vec<(String, Symbol, Span)> = self
            .names
            .iter()
            .filter(|(n, e)| !live.contains(n) && self.counts(&e.symbol))
            .map(|(n, e)| (n.to_owned(), e.symbol.clone(), e.span))
            .collect();
        let readers = |name: &str| {
            graph.reads.iter().filter(|(r, reads)| r.as_str() != name && reads.contains(name)).count()
        };
        // The ends of dead chains, and for dead circles every state in them.
        let ends: BTreeSet<&str> = dead.iter().map(|d| d.0.as_str()).filter(|n| readers(n) == 0).collect();
        for (name, symbol, span) in &dead {
            let feeds_an_end = || graph.reached_from(name).iter().any(|n| ends.contains(n));
            let circle = matches!(symbol, Symbol::State(_)) && !feeds_an_end();
            if ends.contains(name.as_str()) || circle {
                self.report_dead(name, symbol, *span);
            }
        }
    }

    /// Whether a name is expected to be used by an equation.
    fn counts(&self, symbol: &Symbol) -> bool {
        match symbol {
            Symbol::Poison | Symbol::Axis(_) | Symbol::Constant(_) => false,
            Symbol::Input(u) => !matches!(self.inputs[u.index()].role, Role::Reset),
            Symbol::Param(_) | Symbol::Factored(_) | Symbol::State(_) | Symbol::Transient(_) => true,
        }
    }

    fn report_dead(&mut self, name: &str, symbol: &Symbol, span: Span) {
        let diagnostic = match symbol {
            Symbol::State(_) => Diagnostic::warning(
                codes::STATE_NEVER_READ,
                format!("the state `{name}` is written but has no effect"),
                span,
                "no output, and nothing that an output needs, reads it",
            )
            .help(format!("read it in another equation, write `out {name}'`, or remove it")),
            _ => Diagnostic::warning(
                codes::UNUSED,
                format!("{} `{name}` is never used", the(symbol)),
                span,
                "no output, and nothing that an output needs, reads it",
            )
            .help("use it or remove it"),
        };
        self.report(diagnostic);
    }

    /// Axes and constants that neither a declaration nor an equation mentions.
    fn check_declared_numbers(&mut self) {
        let mut used = BTreeSet::new();
        let mut read = |e: &Expr| {
            self.reads(e, &mut |name, _, _| {
                used.insert(name.to_owned());
            });
        };
        for statement in &self.spec.statements {
            expressions(&statement.kind, &mut read);
        }
        let unused: Vec<(String, Symbol, Span)> = self
            .names
            .iter()
            .filter(|(n, e)| matches!(e.symbol, Symbol::Axis(_) | Symbol::Constant(_)) && !used.contains(*n))
            .map(|(n, e)| (n.to_owned(), e.symbol.clone(), e.span))
            .collect();
        for (name, symbol, span) in unused {
            let noun = the(&symbol);
            self.report(
                Diagnostic::warning(
                    codes::UNUSED,
                    format!("{noun} `{name}` is never used"),
                    span,
                    "nothing in this spec mentions it",
                )
                .help("use it or remove it"),
            );
        }
    }
}

/// Calls `f` for every expression of a statement.
fn expressions(kind: &StatementKind, f: &mut impl FnMut(&Expr)) {
    match kind {
        StatementKind::Axis(list) => list.iter().filter_map(|d| d.size.as_ref()).for_each(f),
        StatementKind::Const(list) => list.iter().for_each(|(_, e)| f(e)),
        StatementKind::Input { variables, .. } => axes_of(variables, f),
        StatementKind::Noise { variables, initial, .. } => {
            axes_of(variables, f);
            initial_expressions(initial.as_ref(), f);
        }
        StatementKind::Parameter { declarations, .. } => {
            declarations.iter().for_each(|d| parameter_expressions(d, f));
        }
        StatementKind::State { declarations, .. } => {
            for d in declarations {
                d.variable.axes.iter().for_each(&mut *f);
                initial_expressions(d.initial.as_ref(), f);
                if let Some(Reset::Every { episodes, .. }) = &d.reset {
                    f(episodes);
                }
            }
        }
        StatementKind::Equation { targets, value, .. } => {
            targets.iter().filter_map(|t| t.axes.as_ref()).flatten().for_each(&mut *f);
            f(value);
        }
        StatementKind::Output(list) => {
            for o in list {
                o.target.axes.iter().flatten().for_each(&mut *f);
                o.value.iter().for_each(&mut *f);
            }
        }
        StatementKind::Penalty(e) | StatementKind::Hold { condition: e, .. } => f(e),
        StatementKind::Layer { arguments, .. } => arguments.iter().for_each(|a| f(&a.value)),
        StatementKind::Error => {}
    }
}

fn axes_of(variables: &[Variable], f: &mut impl FnMut(&Expr)) {
    variables.iter().flat_map(|v| &v.axes).for_each(f);
}

fn parameter_expressions(d: &ParameterDeclaration, f: &mut impl FnMut(&Expr)) {
    d.variable.axes.iter().for_each(&mut *f);
    initial_expressions(d.initial.as_ref(), f);
    d.attributes.iter().filter_map(|a| a.operand.as_ref()).for_each(&mut *f);
    match &d.constraint {
        Some(AstConstraint::Interval { low, high, .. }) => {
            f(low);
            f(high);
        }
        Some(AstConstraint::Compare { bound, .. }) => f(bound),
        None => {}
    }
}

fn initial_expressions(initial: Option<&Initial>, f: &mut impl FnMut(&Expr)) {
    match initial {
        None => {}
        Some(Initial::Value(e)) => f(e),
        Some(Initial::Learn { start, .. }) => {
            if let Some(Initial::Distribution { arguments, .. }) = start.as_deref() {
                arguments.iter().for_each(&mut *f);
            } else if let Some(Initial::Value(e)) = start.as_deref() {
                f(e);
            }
        }
        Some(Initial::Distribution { arguments, .. }) => arguments.iter().for_each(&mut *f),
    }
}

/// The kind of thing with the definite article.
fn the(symbol: &Symbol) -> String {
    let noun = symbol.noun();
    format!("the {}", noun.split_once(' ').map_or(noun, |(_, rest)| rest))
}
