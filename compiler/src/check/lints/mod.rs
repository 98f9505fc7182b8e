//! Judgements of a whole step: roles, gradients and numbers. They read the typed model alone, and
//! speak only when they can prove what they say from it.

mod causality;
mod flow;
mod forms;
mod gradients;
mod intervals;
mod numerics;
mod ranges;
mod redundancy;
mod remarks;
mod roles;

use crate::ir::{StateId, Value};
use crate::model::Model;
use flow::Flow;
use grammar::diag::Diagnostic;
use grammar::span::Span;
use ranges::Start;
pub(super) use remarks::remarks;
use std::collections::{BTreeMap, BTreeSet};

/// What the model does not say.
#[derive(Debug, Default)]
pub(super) struct Facts {
    /// Plastic states that carry `unbounded`.
    pub(super) unbounded: BTreeSet<StateId>,
    /// The right sides of the states' equations.
    pub(super) equations: BTreeMap<StateId, Span>,
    /// The steps of soft clips.
    pub(super) softclips: Vec<(Value, Span)>,
}

/// Everything there is to say about a model that has no errors so far.
pub(super) fn lint(model: &Model, facts: &Facts) -> Vec<Diagnostic> {
    let flow = Flow::new(model);
    let always = ranges::propagate(model, Start::Anywhere);
    let at_start = ranges::propagate(model, Start::Initial);
    let mut found = vec![];
    roles::check(model, facts, &flow, &always, &mut found);
    causality::check(model, &flow, &mut found);
    gradients::check(model, &flow, &at_start, &mut found);
    numerics::check(model, facts, &flow, &always, &at_start, &mut found);
    redundancy::check(model, &flow, &mut found);
    forms::check(model, &mut found);
    found
}
