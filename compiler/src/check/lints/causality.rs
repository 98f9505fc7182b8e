//! Coincidences whose factors stand the wrong way round in time: the sending neuron after the step, the receiving
//! neuron before it.
//!
//! In `y' = f(W @ y)` what neuron `i` sent before the step has its effect on neuron `j` after it, so that a Hebbian
//! write of `W` is `y'[j] * y[i]`. `y[j] * y'[i]` is what comes of exchanging rows and columns. It also is half of a rule
//! that depends on the order of spikes: where the same state has the other half, nothing is said.

use super::super::codes;
use super::flow::Flow;
use crate::ir::{Op, Shape, Source, StateId, Value};
use crate::model::Model;
use grammar::ast::StateKind;
use grammar::diag::Diagnostic;

/// Checks the writes of every matrix that a recurrent activity is read through.
pub(super) fn check(model: &Model, flow: &Flow<'_>, found: &mut Vec<Diagnostic>) {
    for s in flow.states() {
        let state = &model.states[s.index()];
        let is_synaptic = state.kind == StateKind::Plastic && matches!(state.shape, Shape::Matrix { .. });
        if !is_synaptic {
            continue;
        }
        let Some((y, product)) = flow.states().find_map(|y| Some((y, reversed(model, flow, s, y)?))) else {
            continue;
        };
        let (name, y) = (&state.name, &model.states[y.index()].name);
        found.push(
            Diagnostic::warning(
                codes::REVERSED_COINCIDENCE,
                format!("the write of `{name}` takes the sending neuron after the step and the receiving one before"),
                model.step.at(product).span,
                format!("`{y}` at `j`, and `{y}'` at `i`"),
            )
            .note(format!("`{name}` is read with `{y}`: what `i` sent before the step reaches `j` after it"))
            .help(format!("a Hebbian write is `{y}'[j] * {y}[i]`; were rows and columns exchanged?")),
        );
    }
}

/// The first product with which a matrix through which `y` is read is written the wrong way round; none if it is written
/// the right way, too.
fn reversed(model: &Model, flow: &Flow<'_>, s: StateId, y: StateId) -> Option<Value> {
    let (before, after) = (flow.load(Source::State(y))?, flow.next(y)?);
    let reads = flow.elementwise(s);
    let is_read = |op: &Op| matches!(op, Op::Contract(m, x) if *x == before && reads.contains(m));
    if before == after || !model.step.values().any(|(_, i)| is_read(&i.op)) {
        return None;
    }
    let has = |product: Value, factor: Value| flow.factors(product).contains(&factor);
    let mut found = None;
    for (v, instruction) in model.step.values() {
        let Op::Outer(post, pre) = instruction.op else { continue };
        if flow.feeds(v, s) {
            if has(pre, before) {
                return None;
            }
            if has(post, before) && has(pre, after) {
                found = found.or(Some(v));
            }
        }
    }
    found
}
