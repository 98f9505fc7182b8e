//! From the syntax tree to the typed model: what the text means, or why it means nothing.
//!
//! One judgement per file. `layers` puts specs into those that use them, so that a spec is judged as a
//! whole. Declarations come first (`names`, `axes`, `constants`, `parameters`,
//! `states`), then equations are sorted (`order`) and built into the step IR (`equations`,
//! `assignment`, `hold`, `expressions`, `synapses`, `contraction`, `builtins`, `rules`), then outputs.
//! `usage` and `lints` judge the whole.
//!
//! A judgement that fails reports once and poisons what depends on it, so that one cause gives one
//! error and independent mistakes are found in one run. A model is made only of a spec without
//! errors.

mod assignment;
mod axes;
mod builtins;
mod checker;
pub mod codes;
mod constants;
mod contraction;
mod equations;
mod expressions;
mod hold;
mod initial;
mod layers;
mod lints;
mod names;
mod order;
mod outputs;
mod parameters;
mod rules;
mod states;
mod synapses;
mod types;
mod usage;

use crate::ir::{self, Sink, StateId};
use crate::model::Model;
use checker::Checker;
use equations::{Equation, Meaning};
use grammar::ast::{self, Item};
use grammar::diag::Diagnostic;
use grammar::span::Span;
use layers::{Flat, Layers};
use rules::Rules;
use std::collections::{BTreeMap, BTreeSet};

/// What the checker makes of a file.
#[derive(Clone, Debug)]
pub struct Checked {
    /// The models of the specs without errors, in text order.
    pub models: Vec<Model>,
    /// Everything there is to say, by place.
    pub diagnostics: Vec<Diagnostic>,
    /// The names of specs that others use as layers.
    pub layers: BTreeSet<String>,
}

impl Checked {
    /// The models that no other spec uses as a layer; all, if there are no others.
    pub fn outermost(&self) -> Vec<&Model> {
        let found: Vec<&Model> = self.models.iter().filter(|m| !self.layers.contains(&m.name)).collect();
        if found.is_empty() { self.models.iter().collect() } else { found }
    }
}

/// Parses and checks a file.
pub fn check(source: &str) -> Checked {
    let parsed = grammar::parse::parse(source);
    let mut checked = check_file(source, &parsed.file);
    let errors: Vec<Span> =
        parsed.diagnostics.iter().filter(|d| d.is_error()).map(Diagnostic::span).collect();
    if !errors.is_empty() {
        // A tree that the parser has mended may not say what its author meant.
        checked.models.clear();
        let damaged = damaged_statements(&parsed.file, &errors);
        let within =
            |d: &Diagnostic| damaged.iter().any(|s| s.start <= d.span().start && d.span().end <= s.end);
        checked.diagnostics.retain(|d| d.is_error() && !within(d));
    }
    checked.diagnostics.extend(parsed.diagnostics);
    checked.diagnostics.sort_by_key(|d| (d.span(), d.severity));
    checked
}

/// The statements and rules that hold a syntax error.
fn damaged_statements(file: &ast::File, errors: &[Span]) -> Vec<Span> {
    let mut spans = vec![];
    for item in &file.items {
        match item {
            Item::Spec(spec) => spans.extend(spec.statements.iter().map(|s| s.span)),
            Item::Rule(rule) => spans.push(rule.span),
        }
    }
    spans.retain(|s| errors.iter().any(|e| s.start <= e.start && e.start <= s.end));
    spans
}

/// Facts about the plastic states of a model that are worth knowing and no mistakes: latency, locality,
/// and the class of the write. Tools show them on request.
pub fn remarks(model: &Model) -> Vec<Diagnostic> {
    lints::remarks(model)
}

/// Checks the specs and rules of a file. `source` is the text that its spans refer to, for advice.
pub fn check_file(source: &str, file: &ast::File) -> Checked {
    let mut diagnostics = vec![];
    let rules = Rules::collect(file, &mut diagnostics);
    let rules_are_sound = !diagnostics.iter().any(Diagnostic::is_error);
    let all = Layers::collect(file);
    let mut models = BTreeMap::new();
    let mut flat: BTreeMap<usize, Option<Flat>> = BTreeMap::new();
    for (k, _) in all.order() {
        let spec = all.flatten(k, &flat);
        let (model, found) = check_spec(source, &spec, &rules);
        let sound = !spec.torn && !found.iter().any(Diagnostic::is_error);
        for d in found {
            let said = |e: &Diagnostic| e.code == d.code && e.span() == d.span() && spec.borrows(d.span());
            if !diagnostics.contains(&d) && !diagnostics.iter().any(said) {
                diagnostics.push(spec.trace(d));
            }
        }
        models.extend(model.filter(|_| rules_are_sound && sound).map(|m| (k, m)));
        flat.insert(k, Some(spec).filter(|_| sound));
    }
    Checked { models: models.into_values().collect(), diagnostics, layers: all.used() }
}

fn check_spec(source: &str, flat: &Flat, rules: &Rules<'_>) -> (Option<Model>, Vec<Diagnostic>) {
    let mut checker = Checker::new(source, &flat.spec, rules);
    checker.torn |= flat.torn;
    checker.diagnostics.extend(flat.diagnostics.iter().cloned());
    checker.declare_axes();
    checker.declare_constants();
    checker.declare_parameters();
    checker.declare_inputs();
    checker.declare_states();
    let mut equations = checker.collect_equations();
    checker.collect_holds(&mut equations);
    checker.build_step(&equations);
    checker.build_outputs();
    checker.check_usage(&equations);
    if checker.failed() || flat.torn {
        return (None, checker.diagnostics);
    }
    let (model, facts, mut diagnostics) = checker.into_model(&equations);
    debug_assert_eq!(ir::verify(&model.step), Ok(()));
    diagnostics.extend(lints::lint(&model, &facts));
    let sound = !diagnostics.iter().any(Diagnostic::is_error);
    (Some(model).filter(|_| sound), diagnostics)
}

impl<'a> Checker<'a> {
    /// Builds all equations, each behind those that it needs.
    fn build_step(&mut self, equations: &[Equation<'a>]) {
        self.keep_states_without_equation(equations);
        let (order, cyclic) = self.order(equations);
        for k in order {
            if cyclic.contains(&k) {
                for goal in &equations[k].goals {
                    self.transients.insert(goal.target.name.name.clone(), None);
                }
            } else {
                self.build_equation(&equations[k]);
            }
        }
        for k in 0..self.states.len() {
            let s = StateId(k as u32);
            if let Some(next) = self.next.get(&s) {
                self.builder.result(Sink::State(s), next.value);
            }
        }
    }

    fn keep_states_without_equation(&mut self, equations: &[Equation<'a>]) {
        for k in 0..self.states.len() {
            let s = StateId(k as u32);
            let defined = |e: &Equation<'a>| e.goals.iter().any(|g| g.meaning == Meaning::State(s));
            if equations.iter().any(defined) {
                continue;
            }
            let (shape, name, span) =
                (self.states[k].shape, self.states[k].name.clone(), self.states[k].span);
            let value = self.load(ir::Source::State(s), shape, &name);
            self.next.insert(s, value);
            if self.misspelt.contains(&s) {
                continue;
            }
            self.report(
                Diagnostic::warning(
                    codes::NO_EQUATION,
                    format!("the state `{name}` has no equation"),
                    span,
                    "keeps its initial value for ever",
                )
                .help(format!("write `{name}' = …`, or declare it as a parameter: `learn` or `fixed`")),
            );
        }
    }

    fn into_model(self, equations: &[Equation<'a>]) -> (Model, lints::Facts, Vec<Diagnostic>) {
        let mut modulators = vec![];
        for equation in equations.iter().filter(|e| e.modulator) {
            for goal in &equation.goals {
                let name = &goal.target.name.name;
                if let Some(typed) = self.transients.get(name).copied().flatten() {
                    modulators.push((name.clone(), typed.value, goal.target.span));
                }
            }
        }
        let mut model = Model {
            name: self.spec.name.name.clone(),
            doc: self.spec.doc.clone(),
            axes: self.axes,
            params: self.params,
            inputs: self.inputs,
            states: self.states,
            outputs: self.outputs,
            step: self.builder.finish(),
            modulators,
            equations: equations::described(self.spec),
            events: None,
        };
        crate::autodiff::prepare(&mut model);
        (model, self.facts, self.diagnostics)
    }
}
