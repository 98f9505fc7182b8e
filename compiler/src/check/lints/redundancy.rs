//! Two parameters of which only the product matters: without a clip or a coupled decay, a rate that
//! scales every write of a state and a gain that scales every read of it can be traded for each other.

use super::super::codes;
use super::flow::{Flow, Sign};
use crate::ir::{Op, ParamId, Shape, Source, StateId, Value};
use crate::model::{Constraint, Init, Model};
use grammar::diag::Diagnostic;
use std::collections::BTreeSet;

/// Checks every state that starts at zero.
pub(super) fn check(model: &Model, flow: &Flow<'_>, found: &mut Vec<Diagnostic>) {
    for s in flow.states() {
        let (rates, gains) = (rates(model, flow, s), gains(model, flow, s));
        let free = |p: &&ParamId| model.params[p.index()].constraint == Constraint::Free;
        let pair = rates.iter().filter(free).find_map(|rate| {
            gains
                .iter()
                .filter(free)
                .find(|gain| *gain != rate && tradable(model, *rate, **gain))
                .map(|g| (*rate, *g))
        });
        if let Some((rate, gain)) = pair {
            found.push(redundant(model, s, rate, gain));
        }
    }
}

fn redundant(model: &Model, s: StateId, rate: ParamId, gain: ParamId) -> Diagnostic {
    let (rate, gain) = (&model.params[rate.index()], &model.params[gain.index()]);
    let state = &model.states[s.index()];
    Diagnostic::warning(
        codes::SCALE_REDUNDANCY,
        format!("only the product of `{}` and `{}` matters", rate.name, gain.name),
        rate.span,
        format!("scales every write of `{}`", state.name),
    )
    .label(gain.span, format!("scales every read of `{}`", state.name))
    .help(format!(
        "declare one of them `fixed`, or couple the rate with a decay or a clip of `{}`",
        state.name
    ))
}

/// Whether the gain has room for the rate: the rate is a number, or both have the same axes.
fn tradable(model: &Model, rate: ParamId, gain: ParamId) -> bool {
    let (rate, gain) = (model.params[rate.index()].shape, model.params[gain.index()].shape);
    rate == Shape::Scalar || rate == gain
}

/// Trained parameters that are a factor of every write of a state and occur nowhere else. The old
/// value must enter with a coefficient that does not depend on them.
fn rates(model: &Model, flow: &Flow<'_>, s: StateId) -> BTreeSet<ParamId> {
    let state = &model.states[s.index()];
    let zero = matches!(&state.init, Init::Constant(c) if *c == crate::model::ConstExpr::Number(0.0));
    let Some(next) = flow.next(s).filter(|_| zero) else { return BTreeSet::new() };
    let is_old = |v: &Value| *flow.op(*v) == Op::Load(Source::State(s));
    let mut common: Option<BTreeSet<ParamId>> = None;
    let mut kept = false;
    for (term, sign) in flow.terms(next) {
        let factors = flow.factors(term);
        if factors.iter().any(is_old) {
            kept |= sign == Sign::Plus;
            continue;
        }
        let params = trained(model, flow, &factors);
        common = Some(match common {
            None => params,
            Some(common) => common.intersection(&params).copied().collect(),
        });
    }
    let writes = flow.terms(next).len();
    let mut found = common.unwrap_or_default();
    found.retain(|p| kept && uses(flow, *p) < writes);
    found
}

/// Trained parameters that are a factor of every read of a state.
fn gains(model: &Model, flow: &Flow<'_>, s: StateId) -> BTreeSet<ParamId> {
    let Some(load) = flow.load(Source::State(s)) else { return BTreeSet::new() };
    let mut common: Option<BTreeSet<ParamId>> = None;
    let writes: BTreeSet<Value> = flow
        .next(s)
        .map(|next| flow.terms(next).into_iter().flat_map(|(t, _)| flow.parts(t)).chain([next]).collect())
        .unwrap_or_default();
    for &user in flow.users(load) {
        if writes.contains(&user) {
            continue;
        }
        let factors = flow.factors(user);
        let params = if factors.contains(&load) { trained(model, flow, &factors) } else { BTreeSet::new() };
        common = Some(match common {
            None => params,
            Some(common) => common.intersection(&params).copied().collect(),
        });
    }
    let mut found = common.unwrap_or_default();
    found.retain(|p| uses(flow, *p) <= 1);
    found
}

fn trained(model: &Model, flow: &Flow<'_>, factors: &[Value]) -> BTreeSet<ParamId> {
    factors
        .iter()
        .filter_map(|f| match flow.op(*f) {
            Op::Load(Source::Param(p)) if model.params[p.index()].learned => Some(*p),
            _ => None,
        })
        .collect()
}

/// How many values are computed from a parameter, broadcasts looked through.
fn uses(flow: &Flow<'_>, p: ParamId) -> usize {
    let mut open: Vec<Value> = flow.load(Source::Param(p)).into_iter().collect();
    let mut count = 0;
    while let Some(v) = open.pop() {
        for &u in flow.users(v) {
            match flow.op(u) {
                Op::Splat(..) | Op::Rows(..) | Op::Cols(..) => open.push(u),
                _ => count += 1,
            }
        }
    }
    count
}
