//! Facts about plastic states that are worth knowing and no mistakes: how late a coincidence takes
//! effect, which quantities a synapse needs, and of which class its write is.

use super::super::codes;
use super::flow::Flow;
use crate::ir::{Binary, Op, Shape, Sink, Source, StateId, Unary, Value};
use crate::model::{Model, State};
use grammar::ast::StateKind;
use grammar::diag::Diagnostic;
use std::collections::{BTreeSet, VecDeque};

/// All remarks on a model.
pub(in super::super) fn remarks(model: &Model) -> Vec<Diagnostic> {
    let flow = Flow::new(model);
    let mut found = vec![];
    for s in flow.states() {
        let state = &model.states[s.index()];
        if state.kind != StateKind::Plastic || !matches!(state.shape, Shape::Matrix { .. }) {
            continue;
        }
        found.extend(latency(model, &flow, s, state));
        found.push(locality(model, &flow, s, state));
        found.push(class(model, &flow, s, state));
    }
    found
}

/// The fewest steps from a coincidence that is written to a state, perhaps by way of a trace, to an
/// output.
fn latency(model: &Model, flow: &Flow<'_>, s: StateId, state: &State) -> Option<Diagnostic> {
    let outputs = outputs(model);
    let steps = model
        .step
        .values()
        .filter(|(v, i)| matches!(i.op, Op::Outer(..)) && flow.feeds(*v, s))
        .filter_map(|(v, _)| distance(flow, v, &outputs))
        .min()?;
    let when = match steps {
        0 => "in the same step".to_owned(),
        1 => "one step later".to_owned(),
        n => format!("{n} steps later"),
    };
    Some(
        Diagnostic::info(
            codes::LATENCY,
            format!("a coincidence reaches an output by way of `{}` {when} at the earliest", state.name),
            state.span,
            "the path by way of this state",
        )
        .note("a primed read shortens it by a step; a trace that is read unprimed lengthens it by one"),
    )
}

fn outputs(model: &Model) -> BTreeSet<Value> {
    model.step.results.iter().filter(|(sink, _)| matches!(sink, Sink::Output(_))).map(|(_, v)| *v).collect()
}

/// The fewest steps between a value and one of the targets.
fn distance(flow: &Flow<'_>, from: Value, targets: &BTreeSet<Value>) -> Option<usize> {
    let mut seen = BTreeSet::new();
    let mut open = VecDeque::from([(from, 0)]);
    while let Some((v, steps)) = open.pop_front() {
        if !seen.insert(v) {
            continue;
        }
        if targets.contains(&v) {
            return Some(steps);
        }
        for t in flow.states().filter(|t| flow.next(*t) == Some(v)) {
            open.extend(flow.load(Source::State(t)).map(|load| (load, steps + 1)));
        }
        for &u in flow.users(v) {
            open.push_front((u, steps));
        }
    }
    None
}

/// What enters a write from outside of the synapse.
#[derive(Default)]
struct Ingredients {
    /// Computed numbers that all synapses see.
    broadcast: BTreeSet<Value>,
    /// Sums over the synapses of a neuron.
    population: bool,
    /// Sums over all synapses.
    global: bool,
}

fn locality(model: &Model, flow: &Flow<'_>, s: StateId, state: &State) -> Diagnostic {
    let ingredients = ingredients(model, flow, s);
    let names: BTreeSet<String> = ingredients
        .broadcast
        .iter()
        .map(|v| model.step.at(*v).name.as_ref().map_or("a computed number".to_owned(), |n| format!("`{n}`")))
        .collect();
    let kind = match (ingredients.global, ingredients.population, names.is_empty()) {
        (true, ..) => "global: its write needs a sum over all synapses".to_owned(),
        (_, true, _) => {
            "local to a population: its write needs a sum over the synapses of a neuron".to_owned()
        }
        (_, _, true) => "two-factor local: its write needs the pre and the post neuron alone".to_owned(),
        _ => format!("three-factor local: its write needs pre, post, and the broadcast {}", listed(&names)),
    };
    let reads = flow.elementwise(s);
    let transported =
        model.step.values().any(|(_, i)| matches!(&i.op, Op::ContractT(m, _) if reads.contains(m)));
    let diagnostic = Diagnostic::info(
        codes::LOCALITY,
        format!("`{}` is {kind}", state.name),
        state.span,
        "what a synapse must know",
    );
    match transported {
        true => diagnostic.note("its transpose is read too, which needs weight transport"),
        false => diagnostic,
    }
}

fn ingredients(model: &Model, flow: &Flow<'_>, s: StateId) -> Ingredients {
    let mut found = Ingredients::default();
    let own = flow.elementwise(s);
    let of_synapses = |v: Value| matches!(model.step.ty(v).shape, Shape::Matrix { .. });
    let mut seen = BTreeSet::new();
    let mut open: Vec<Value> = flow.next(s).into_iter().collect();
    while let Some(v) = open.pop() {
        if !seen.insert(v) {
            continue;
        }
        match flow.op(v) {
            Op::Splat(x, _) if model.step.ty(*x).batched => match sums_of(flow, *x, &own) {
                true => found.global = true,
                false => drop(found.broadcast.insert(*x)),
            },
            Op::Rows(x, _) | Op::Cols(x, _) => found.population |= sums_of(flow, *x, &own),
            Op::Outer(a, b) => {
                found.population |= sums_of(flow, *a, &own) || sums_of(flow, *b, &own);
                found.broadcast.extend(scalar_factors(model, flow, *a));
                found.broadcast.extend(scalar_factors(model, flow, *b));
            }
            op => open.extend(op.operands().into_iter().filter(|o| of_synapses(*o))),
        }
    }
    found
}

fn listed(names: &BTreeSet<String>) -> String {
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    names.join(", ")
}

/// Computed numbers that scale a whole vector.
fn scalar_factors(model: &Model, flow: &Flow<'_>, v: Value) -> Vec<Value> {
    let mut factors = flow.factors(v);
    factors.retain(|f| model.step.ty(*f).batched && model.step.ty(*f).shape == Shape::Scalar);
    factors
}

/// Whether a value is a sum over synapses of one of the given matrices, nothing else in between that
/// remembers or squashes it.
fn sums_of(flow: &Flow<'_>, v: Value, matrices: &BTreeSet<Value>) -> bool {
    let mut open = vec![v];
    let mut seen = BTreeSet::new();
    while let Some(v) = open.pop() {
        if !seen.insert(v) {
            continue;
        }
        match flow.op(v) {
            Op::SumAll(m)
            | Op::MaxAll(m)
            | Op::SumPre(m)
            | Op::SumPost(m)
            | Op::ContractT(m, _)
            | Op::Contract(m, _)
                if matrices.contains(m) =>
            {
                return true;
            }
            Op::Unary(Unary::Tanh | Unary::Sigmoid | Unary::Relu, _) | Op::Load(_) => {}
            op => open.extend(op.operands()),
        }
    }
    false
}

fn class(model: &Model, flow: &Flow<'_>, s: StateId, state: &State) -> Diagnostic {
    let form = flow.next(s).map_or(Form::Constant, |v| form(flow, v, &flow.elementwise(s)));
    let (text, note) = match form {
        Form::Other => (
            "is not affine in it (class D)",
            "the backward pass rebuilds it from checkpoints by replaying writes",
        ),
        Form::Piecewise => (
            "is piecewise affine in it (class C)",
            "the backward pass rebuilds it from checkpoints by replaying writes; a clipped value cannot be undone",
        ),
        Form::Affine | Form::Constant if reads_itself(model, flow, s) => (
            "is affine in it, given activities that read it (class B)",
            "steps run in sequence; a log of vectors is enough to rebuild it",
        ),
        Form::Affine | Form::Constant => (
            "is affine in it, and independent of what is read from it (class A)",
            "a log of vectors is enough to rebuild it, and steps could run in chunks",
        ),
    };
    Diagnostic::info(
        codes::WRITE_CLASS,
        format!("the write of `{}` {text}", state.name),
        state.span,
        "this state",
    )
    .note(note)
}

/// How a value depends on a state element by element.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Form {
    Constant,
    Affine,
    Piecewise,
    Other,
}

fn form(flow: &Flow<'_>, v: Value, own: &BTreeSet<Value>) -> Form {
    let mut forms: Vec<Form> = vec![];
    let mut order: Vec<Value> = own.iter().copied().filter(|o| *o <= v).collect();
    order.sort();
    let at =
        |forms: &[Form], o: &Value| order.iter().position(|x| x == o).and_then(|k| forms.get(k).copied());
    for w in &order {
        let of = |o: &Value| at(&forms, o).unwrap_or(Form::Constant);
        let found = match flow.op(*w) {
            Op::Load(_) => Form::Affine,
            Op::Binary(Binary::Add | Binary::Sub, a, b) => of(a).max(of(b)),
            Op::Binary(Binary::Mul, a, b) if of(a) == Form::Constant || of(b) == Form::Constant => {
                of(a).max(of(b))
            }
            Op::Binary(Binary::Div, a, b)
                if of(b) == Form::Constant && !sums_of(flow, flow.core(*b), own) =>
            {
                of(a)
            }
            Op::Binary(Binary::Min | Binary::Max, a, b) => of(a).max(of(b)).max(Form::Piecewise),
            Op::Unary(Unary::Neg, a) | Op::StopGrad(a) => of(a),
            Op::Unary(Unary::Relu | Unary::Abs, a) => of(a).max(Form::Piecewise),
            Op::Clip { x, .. } => of(x).max(Form::Piecewise),
            Op::Select(c, a, b) if of(c) == Form::Constant => of(a).max(of(b)),
            _ => Form::Other,
        };
        forms.push(found);
    }
    at(&forms, &v).unwrap_or(Form::Constant)
}

/// Whether what is written depends on what was read, other than linearly in this step (the delta rule).
fn reads_itself(model: &Model, flow: &Flow<'_>, s: StateId) -> bool {
    let linear: BTreeSet<Value> = flow.linear(s).into_iter().map(|(v, _)| v).collect();
    let mut tainted = BTreeSet::new();
    let mut open: Vec<Value> = model
        .step
        .values()
        .filter(|(_, i)| matches!(&i.op, Op::Contract(m, _) | Op::ContractT(m, _) if linear.contains(m)))
        .flat_map(|(v, _)| reached(flow, v, &linear))
        .collect();
    while let Some(v) = open.pop() {
        if !tainted.insert(v) {
            continue;
        }
        for t in flow.states().filter(|t| *t != s && flow.next(*t) == Some(v)) {
            open.extend(flow.load(Source::State(t)));
        }
        open.extend(flow.users(v));
    }
    flow.next(s).is_some_and(|v| tainted.contains(&v))
}

/// The first values after a read that are not linear in the state, and states that keep it.
fn reached(flow: &Flow<'_>, read: Value, linear: &BTreeSet<Value>) -> Vec<Value> {
    let mut found = vec![];
    let mut seen = BTreeSet::new();
    let mut open = vec![read];
    while let Some(v) = open.pop() {
        if !seen.insert(v) {
            continue;
        }
        for t in flow.states().filter(|t| flow.next(*t) == Some(v)) {
            found.extend(flow.load(Source::State(t)).filter(|load| !linear.contains(load)));
        }
        for &u in flow.users(v) {
            if linear.contains(&u) { open.push(u) } else { found.push(u) }
        }
    }
    found
}
