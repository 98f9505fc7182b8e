//! What the words `plastic` and `trace` promise: a plastic state remembers and stays bounded, a trace
//! fades.

use super::super::codes;
use super::Facts;
use super::flow::{Flow, Sign};
use super::intervals::Interval;
use crate::ir::{Binary, Op, Source, StateId, Unary, Value};
use crate::model::{Model, ResetPolicy, State};
use grammar::ast::StateKind;
use grammar::diag::Diagnostic;
use grammar::span::Span;
use std::collections::BTreeSet;

/// Checks the role of every state.
pub(super) fn check(
    model: &Model,
    facts: &Facts,
    flow: &Flow<'_>,
    ranges: &[Interval],
    found: &mut Vec<Diagnostic>,
) {
    for s in flow.states() {
        let state = &model.states[s.index()];
        let Some(&equation) = facts.equations.get(&s) else { continue };
        match state.kind {
            StateKind::State => {}
            StateKind::Plastic if !flow.remembers(s) => found.push(memoryless(state, equation)),
            StateKind::Plastic if facts.unbounded.contains(&s) => {}
            StateKind::Plastic => {
                if let Some(growth) = growth(flow, s, ranges) {
                    found.push(unbounded(state, equation, growth));
                }
            }
            StateKind::Trace if state.reset == ResetPolicy::Persist => {
                if let Some(growth) = growth(flow, s, ranges) {
                    found.push(trace_without_decay(state, equation, growth));
                }
            }
            StateKind::Trace => {}
        }
    }
}

/// How a state grows.
enum Growth {
    /// By a sum that takes nothing away; at most by this much per step.
    Sum(f64),
    /// By a factor above one.
    Factor(f64),
}

fn memoryless(state: &State, equation: Span) -> Diagnostic {
    let name = &state.name;
    Diagnostic::error(
        codes::MEMORYLESS,
        format!("the plastic state `{name}` is memoryless: `{name}'` does not depend on `{name}`"),
        equation,
        format!("the old value of `{name}` is lost at every step"),
    )
    .label(state.span, "declared plastic here")
    .help(format!(
        "keep the old value, for example `{name}' = clip({name} + …, -1, 1)`, or define a value of \
         this step alone without `plastic` and prime"
    ))
}

fn unbounded(state: &State, equation: Span, growth: Growth) -> Diagnostic {
    let name = &state.name;
    let diagnostic = Diagnostic::error(
        codes::UNBOUNDED,
        format!("the plastic state `{name}` grows without bound"),
        equation,
        "nothing bounds this or takes anything away",
    )
    .label(state.span, "declared plastic here")
    .help(format!(
        "bound it, `clip({name} + …, -1, 1)`, let it decay, `(1 - eta) * {name} + …`, or declare it \
         `unbounded`"
    ));
    noted(diagnostic, name, growth)
}

fn trace_without_decay(state: &State, equation: Span, growth: Growth) -> Diagnostic {
    let name = &state.name;
    let diagnostic = Diagnostic::error(
        codes::TRACE_WITHOUT_DECAY,
        format!("the trace `{name}` never fades"),
        equation,
        "only adds, and is never reset",
    )
    .label(state.span, "declared to persist here")
    .help(format!("let it decay, `0.9 * {name} + …`, bound it with `clip`, or reset it `per episode`"));
    noted(diagnostic, name, growth)
}

fn noted(diagnostic: Diagnostic, name: &str, growth: Growth) -> Diagnostic {
    match growth {
        Growth::Sum(step) if step.is_finite() => {
            let bound = if step == 1.0 { "T".to_owned() } else { format!("{step} T") };
            diagnostic.note(format!("after T steps |{name}| can be as large as {bound}"))
        }
        Growth::Sum(_) => diagnostic,
        Growth::Factor(factor) => diagnostic.note(format!("it grows by a factor of {factor} at every step")),
    }
}

/// How a state grows without bound, if its equation shows that it does: its old value stands in a sum
/// by itself, and no other term takes from it, neither element by element (a decay, Oja's rule) nor
/// by way of a read (the delta rule).
fn growth(flow: &Flow<'_>, s: StateId, ranges: &[Interval]) -> Option<Growth> {
    let elementwise = flow.elementwise(s);
    let linear = flow.linear(s);
    let is_old = |v: Value| *flow.op(v) == Op::Load(Source::State(s));
    let mut open = vec![flow.next(s)?];
    while let Some(v) = open.pop() {
        match flow.op(v) {
            Op::Select(_, a, b) => open.extend([*a, *b]),
            Op::StopGrad(a) => open.push(*a),
            Op::Binary(Binary::Add | Binary::Sub, ..) | Op::Unary(Unary::Neg, _) => {
                let terms = flow.terms(v);
                let taken = terms.iter().any(|&(t, sign)| {
                    !is_old(t) && (elementwise.contains(&t) || taken_by_read(&linear, t, sign))
                });
                let kept = terms.iter().any(|&(t, sign)| is_old(t) && sign == Sign::Plus);
                if kept && !taken {
                    let others = terms.iter().filter(|(t, _)| !is_old(*t));
                    let step = others.map(|(t, _)| ranges[t.index()].magnitude()).sum();
                    return Some(Growth::Sum(step));
                }
                let alone = terms.iter().filter(|(t, _)| elementwise.contains(t)).count() == 1;
                let factor = terms.iter().find_map(|&(t, _)| amplification(flow, t, &is_old));
                if let Some(factor) = factor.filter(|_| alone) {
                    return Some(Growth::Factor(factor));
                }
            }
            _ => {
                if let Some(factor) = amplification(flow, v, &is_old) {
                    return Some(Growth::Factor(factor));
                }
            }
        }
    }
    None
}

/// Whether a term, which is added with `sign`, contains a read of the state that takes from it: one
/// that comes out with a minus.
fn taken_by_read(linear: &BTreeSet<(Value, Sign)>, term: Value, sign: Sign) -> bool {
    let minus = match sign {
        Sign::Plus => Sign::Minus,
        Sign::Minus => Sign::Plus,
    };
    linear.contains(&(term, minus))
}

/// The constant above one that a state is multiplied with.
fn amplification(flow: &Flow<'_>, v: Value, is_old: &impl Fn(Value) -> bool) -> Option<f64> {
    let Op::Binary(Binary::Mul, a, b) = flow.op(v) else { return None };
    let factor = match (is_old(*a), is_old(*b)) {
        (true, false) => flow.constant(*b)?,
        (false, true) => flow.constant(*a)?,
        _ => return None,
    };
    (factor.abs() > 1.0).then_some(factor)
}
