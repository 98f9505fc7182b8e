//! Where gradients flow: parameters that get none, functions that have none, and starting points at
//! which parameters keep each other from moving.
//!
//! The search runs backwards from outputs and penalties, round the states until nothing changes. By
//! structure alone it says whether a gradient exists; with the ranges of the starting values, whether
//! it can differ from zero before the first update.

use super::super::codes;
use super::flow::Flow;
use super::intervals::Interval;
use crate::ir::{Binary, Op, ParamId, Sink, Source, StateId, Unary, Value};
use crate::model::{Init, Model};
use grammar::diag::Diagnostic;
use grammar::span::Span;
use std::collections::BTreeSet;

/// Checks the gradient of every trained parameter.
pub(super) fn check(model: &Model, flow: &Flow<'_>, at_start: &[Interval], found: &mut Vec<Diagnostic>) {
    let structure = Reach::new(model, flow, &|v, k| passes(flow.op(v), k));
    let influence = Reach::new(model, flow, &|_, _| true);
    let start = Reach::new(model, flow, &|v, k| passes(flow.op(v), k) && moves(flow.op(v), k, at_start));
    flat_functions(model, flow, &structure, found);
    let mut told = BTreeSet::new();
    for (k, param) in model.params.iter().enumerate() {
        let p = ParamId(k as u32);
        if !param.learned || !influence.has_param(model, flow, p) {
            continue;
        }
        if !structure.has_param(model, flow, p) {
            found.push(no_gradient(model, flow, &influence, p));
        } else if !start.has_param(model, flow, p) && !told.contains(&p) {
            found.extend(saddle(model, flow, &structure, &start, at_start, p, &mut told));
        }
    }
}

/// The values that a cotangent reaches.
struct Reach {
    values: Vec<bool>,
}

impl Reach {
    /// Follows the edges (value, operand number) that `edge` lets through.
    fn new(model: &Model, flow: &Flow<'_>, edge: &dyn Fn(Value, usize) -> bool) -> Self {
        let mut values = vec![false; model.step.body.len()];
        let mut open: Vec<Value> = model
            .step
            .results
            .iter()
            .filter(|(sink, _)| matches!(sink, Sink::Output(_) | Sink::Penalty))
            .map(|(_, v)| *v)
            .collect();
        while let Some(v) = open.pop() {
            if std::mem::replace(&mut values[v.index()], true) {
                continue;
            }
            if let Op::Load(Source::State(s)) = flow.op(v) {
                open.extend(flow.next(*s));
            }
            for (k, operand) in flow.op(v).operands().into_iter().enumerate() {
                if edge(v, k) {
                    open.push(operand);
                }
            }
        }
        Reach { values }
    }

    fn has(&self, v: Value) -> bool {
        self.values[v.index()]
    }

    /// Whether it reaches a parameter, directly or as the initial value of a state.
    fn has_param(&self, model: &Model, flow: &Flow<'_>, p: ParamId) -> bool {
        let directly = flow.load(Source::Param(p)).is_some_and(|v| self.has(v));
        let initial = |k: usize| {
            let s = StateId(k as u32);
            flow.starts_at(s, p) && flow.load(Source::State(s)).is_some_and(|v| self.has(v))
        };
        directly || (0..model.states.len()).any(initial)
    }
}

/// Whether an operation has a gradient for its `k`th operand.
fn passes(op: &Op, k: usize) -> bool {
    match op {
        Op::StopGrad(_) | Op::Unary(Unary::Sign, _) => false,
        Op::Binary(Binary::Less | Binary::LessEqual | Binary::Equal, ..) => false,
        Op::Select(..) => k > 0,
        Op::Clip { .. } => k == 0,
        _ => true,
    }
}

/// Whether the gradient of an operation for its `k`th operand can differ from zero in these ranges.
fn moves(op: &Op, k: usize, ranges: &[Interval]) -> bool {
    let zero = |v: &Value| ranges[v.index()].is_zero();
    match op {
        Op::Binary(Binary::Mul, a, b) | Op::Contract(a, b) | Op::ContractT(a, b) | Op::Outer(a, b) => {
            !zero(if k == 0 { b } else { a })
        }
        Op::Binary(Binary::Div, a, _) => k == 0 || !zero(a),
        Op::Unary(Unary::Relu, a) => ranges[a.index()].high > 0.0,
        Op::Unary(Unary::Abs, a) => !zero(a),
        Op::Clip { x, low, high } => {
            let (x, low, high) = (ranges[x.index()], ranges[low.index()], ranges[high.index()]);
            x.high > low.low && x.low < high.high
        }
        _ => true,
    }
}

fn no_gradient(model: &Model, flow: &Flow<'_>, influence: &Reach, p: ParamId) -> Diagnostic {
    let param = &model.params[p.index()];
    let mut diagnostic = Diagnostic::warning(
        codes::NO_GRADIENT,
        format!("the parameter `{}` has no gradient path and is never trained", param.name),
        param.span,
        "declared `learn` here",
    );
    for cut in cuts(model, flow, influence, p).into_iter().take(3) {
        diagnostic = diagnostic.label(cut, "the path to the outputs is cut here");
    }
    diagnostic.help(
        "declare it `fixed`, or open a path: `clip_st` and `sign_st` pass the gradient straight through",
    )
}

/// The places that stop the gradient on its way to a parameter.
fn cuts(model: &Model, flow: &Flow<'_>, influence: &Reach, p: ParamId) -> Vec<Span> {
    let mut places = BTreeSet::new();
    let mut seen = BTreeSet::new();
    let mut open: Vec<Value> = flow.load(Source::Param(p)).into_iter().collect();
    for s in flow.states().filter(|s| flow.starts_at(*s, p)) {
        open.extend(flow.load(Source::State(s)));
    }
    while let Some(v) = open.pop() {
        if !seen.insert(v) {
            continue;
        }
        for s in flow.states().filter(|s| flow.next(*s) == Some(v)) {
            open.extend(flow.load(Source::State(s)));
        }
        for &u in flow.users(v) {
            let operands = flow.op(u).operands();
            let through = operands.iter().enumerate().any(|(k, o)| *o == v && passes(flow.op(u), k));
            if through {
                open.push(u);
            } else if influence.has(u) {
                places.insert(model.step.at(u).span);
            }
        }
    }
    places.into_iter().collect()
}

/// A function without a gradient where a gradient arrives and could go on.
fn flat_functions(model: &Model, flow: &Flow<'_>, structure: &Reach, found: &mut Vec<Diagnostic>) {
    let trained = depends_on_trained(model, flow);
    for (v, instruction) in model.step.values() {
        let (name, operands) = match &instruction.op {
            Op::Unary(Unary::Sign, a) => ("sign", vec![*a]),
            Op::Binary(Binary::Less | Binary::LessEqual | Binary::Equal, a, b) => {
                ("a jump between 0 and 1", vec![*a, *b])
            }
            _ => continue,
        };
        if !structure.has(v) || !operands.iter().any(|o| trained[o.index()]) {
            continue;
        }
        let name = if name == "sign" { "`sign`" } else { name };
        found.push(
            Diagnostic::warning(
                codes::FLAT_FUNCTION,
                format!("{name} has no gradient, but one arrives here"),
                instruction.span,
                "the gradient is zero on both sides of the jump",
            )
            .help("use `sign_st` or a smooth function such as `tanh(4 * x)`, or wrap it in `stopgrad`"),
        );
    }
}

/// For every value, whether a gradient can flow from it to a trained parameter.
fn depends_on_trained(model: &Model, flow: &Flow<'_>) -> Vec<bool> {
    let mut found = vec![false; model.step.body.len()];
    let mut states = vec![false; model.states.len()];
    loop {
        let before = states.clone();
        for (v, instruction) in model.step.values() {
            found[v.index()] = match &instruction.op {
                Op::Load(Source::Param(p)) => model.params[p.index()].learned,
                Op::Load(Source::State(s)) => states[s.index()],
                op => op.operands().iter().enumerate().any(|(k, o)| found[o.index()] && passes(op, k)),
            };
        }
        for s in flow.states() {
            let trained = match model.states[s.index()].init {
                Init::Param(p) => model.params[p.index()].learned,
                _ => false,
            };
            states[s.index()] |= trained || flow.next(s).is_some_and(|v| found[v.index()]);
        }
        if states == before {
            return found;
        }
    }
}

/// A parameter without gradient at the start because others are zero, which for the same reason get
/// none either.
fn saddle(
    model: &Model,
    flow: &Flow<'_>,
    structure: &Reach,
    start: &Reach,
    at_start: &[Interval],
    p: ParamId,
    told: &mut BTreeSet<ParamId>,
) -> Option<Diagnostic> {
    let partners: Vec<ParamId> =
        blockers(model, flow, structure, at_start, p).into_iter().filter(|q| *q != p).collect();
    let stuck = |q: &ParamId| !model.params[q.index()].learned || !start.has_param(model, flow, *q);
    if partners.is_empty() || !partners.iter().all(stuck) {
        return None;
    }
    let param = &model.params[p.index()];
    let names: Vec<String> = partners.iter().map(|q| format!("`{}`", model.params[q.index()].name)).collect();
    let mut diagnostic = Diagnostic::warning(
        codes::ZERO_SADDLE,
        format!(
            "`{}` gets no gradient as long as {} is zero, and nothing moves it",
            param.name,
            names.join(" and ")
        ),
        param.span,
        "starts without a gradient",
    );
    for q in &partners {
        let name = &model.params[q.index()].name;
        diagnostic = diagnostic.label(model.params[q.index()].span, format!("`{name}` starts at zero"));
        told.insert(*q);
    }
    told.insert(p);
    Some(diagnostic.help("start one of them away from zero, for example `~ uniform(0, 0.01)`"))
}

/// The parameters that start at zero and so stop the gradient on its way to `p`.
fn blockers(
    model: &Model,
    flow: &Flow<'_>,
    structure: &Reach,
    at_start: &[Interval],
    p: ParamId,
) -> BTreeSet<ParamId> {
    let mut zeros = BTreeSet::new();
    let mut seen = BTreeSet::new();
    let mut open: Vec<Value> = flow.load(Source::Param(p)).into_iter().collect();
    while let Some(v) = open.pop() {
        if !seen.insert(v) {
            continue;
        }
        for s in flow.states().filter(|s| flow.next(*s) == Some(v)) {
            open.extend(flow.load(Source::State(s)));
        }
        for &u in flow.users(v).iter().filter(|u| structure.has(**u)) {
            for (k, _) in flow.op(u).operands().iter().enumerate().filter(|(_, o)| **o == v) {
                if !passes(flow.op(u), k) {
                    continue;
                }
                open.push(u);
                if !moves(flow.op(u), k, at_start) {
                    let others = flow.op(u).operands().into_iter().enumerate().filter(|(n, _)| *n != k);
                    for (_, other) in others {
                        causes_of_zero(model, flow, at_start, other, &mut zeros);
                    }
                }
            }
        }
    }
    zeros
}

/// The parameters that start at zero and make a value zero.
fn causes_of_zero(
    model: &Model,
    flow: &Flow<'_>,
    at_start: &[Interval],
    v: Value,
    zeros: &mut BTreeSet<ParamId>,
) {
    let mut seen = BTreeSet::new();
    let mut open = vec![v];
    while let Some(v) = open.pop() {
        if !at_start[v.index()].is_zero() || !seen.insert(v) {
            continue;
        }
        match flow.op(v) {
            Op::Load(Source::Param(q)) => {
                zeros.insert(*q);
            }
            Op::Load(Source::State(s)) => {
                if let Init::Param(q) = model.states[s.index()].init {
                    zeros.insert(q);
                }
                open.extend(flow.next(*s));
            }
            op => open.extend(op.operands()),
        }
    }
}
