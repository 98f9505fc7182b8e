//! How values of a step depend on each other, and on themselves over time.

use crate::ir::{Binary, Op, ParamId, Source, StateId, Unary, Value};
use crate::model::{Init, Model};
use std::collections::BTreeSet;

/// The dependencies of a step.
pub(super) struct Flow<'m> {
    model: &'m Model,
    /// For every value, the values computed from it.
    users: Vec<Vec<Value>>,
    /// For every state, its value after the step.
    next: Vec<Value>,
}

/// How a value depends on a state that it contains linearly.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Sign {
    /// Added.
    Plus,
    /// Subtracted.
    Minus,
}

impl<'m> Flow<'m> {
    /// The dependencies of a model's step.
    pub(super) fn new(model: &'m Model) -> Self {
        let mut users = vec![vec![]; model.step.body.len()];
        for (v, instruction) in model.step.values() {
            for operand in instruction.op.operands() {
                users[operand.index()].push(v);
            }
        }
        let next = (0..model.states.len())
            .filter_map(|k| model.step.result(crate::ir::Sink::State(StateId(k as u32))))
            .collect();
        Flow { model, users, next }
    }

    /// The operation that gives a value.
    pub(super) fn op(&self, v: Value) -> &'m Op {
        &self.model.step.at(v).op
    }

    /// The values computed from a value.
    pub(super) fn users(&self, v: Value) -> &[Value] {
        &self.users[v.index()]
    }

    /// A state's value after the step.
    pub(super) fn next(&self, s: StateId) -> Option<Value> {
        self.next.get(s.index()).copied()
    }

    /// All states.
    pub(super) fn states(&self) -> impl Iterator<Item = StateId> + use<> {
        (0..self.model.states.len()).map(|k| StateId(k as u32))
    }

    /// The load of a state before the step, if there is one.
    pub(super) fn load(&self, source: Source) -> Option<Value> {
        self.model.step.values().find(|(_, i)| i.op == Op::Load(source)).map(|(v, _)| v)
    }

    /// The values that depend on a state element by element: by way of values of its shape alone.
    pub(super) fn elementwise(&self, s: StateId) -> BTreeSet<Value> {
        let shape = self.model.states[s.index()].shape;
        let mut found = BTreeSet::new();
        let mut open: Vec<Value> = self.load(Source::State(s)).into_iter().collect();
        while let Some(v) = open.pop() {
            if self.model.step.ty(v).shape == shape && found.insert(v) {
                open.extend(self.users(v));
            }
        }
        found
    }

    /// Whether a state's next value depends on its old one element by element, perhaps by way of
    /// other states.
    pub(super) fn remembers(&self, s: StateId) -> bool {
        let mut seen = BTreeSet::from([s]);
        let mut open = vec![s];
        while let Some(t) = open.pop() {
            let reached = self.elementwise(t);
            for u in self.states() {
                if self.next(u).is_some_and(|v| reached.contains(&v)) {
                    if u == s {
                        return true;
                    }
                    if seen.insert(u) {
                        open.push(u);
                    }
                }
            }
        }
        false
    }

    /// The values that contain a state linearly, sums over its axes included, with the signs that it
    /// has in them. Coefficients may be anything; their signs are not looked at.
    pub(super) fn linear(&self, s: StateId) -> BTreeSet<(Value, Sign)> {
        let mut found = BTreeSet::new();
        let start = self.load(Source::State(s)).map(|v| (v, Sign::Plus));
        let mut open: Vec<(Value, Sign)> = start.into_iter().collect();
        while let Some((v, sign)) = open.pop() {
            if found.insert((v, sign)) {
                open.extend(self.users(v).iter().flat_map(|&u| linear_in(self.op(u), v, sign, u)));
            }
        }
        found
    }

    /// The terms of a sum, with their signs.
    pub(super) fn terms(&self, v: Value) -> Vec<(Value, Sign)> {
        let mut found = vec![];
        let mut open = vec![(v, Sign::Plus)];
        while let Some((v, sign)) = open.pop() {
            match self.op(v) {
                Op::Binary(Binary::Add, a, b) => open.extend([(*a, sign), (*b, sign)]),
                Op::Binary(Binary::Sub, a, b) => open.extend([(*a, sign), (*b, sign.flip())]),
                Op::Unary(Unary::Neg, a) => open.push((*a, sign.flip())),
                _ => found.push((v, sign)),
            }
        }
        found
    }

    /// The factors of a product, without broadcasts.
    pub(super) fn factors(&self, v: Value) -> Vec<Value> {
        let mut found = vec![];
        let mut open = vec![v];
        while let Some(v) = open.pop() {
            match self.op(v) {
                Op::Binary(Binary::Mul, a, b) | Op::Outer(a, b) => open.extend([*a, *b]),
                Op::Splat(a, _) | Op::Rows(a, _) | Op::Cols(a, _) | Op::Unary(Unary::Neg, a) => open.push(*a),
                _ => found.push(v),
            }
        }
        found
    }

    /// Everything that a product is made of: itself, its factors, and the products on the way.
    pub(super) fn parts(&self, v: Value) -> Vec<Value> {
        let mut found = vec![];
        let mut open = vec![v];
        while let Some(v) = open.pop() {
            found.push(v);
            match self.op(v) {
                Op::Binary(Binary::Mul, a, b) | Op::Outer(a, b) => open.extend([*a, *b]),
                Op::Splat(a, _) | Op::Rows(a, _) | Op::Cols(a, _) | Op::Unary(Unary::Neg, a) => open.push(*a),
                _ => {}
            }
        }
        found
    }

    /// A value without broadcasts.
    pub(super) fn core(&self, v: Value) -> Value {
        match self.op(v) {
            Op::Splat(a, _) | Op::Rows(a, _) | Op::Cols(a, _) => self.core(*a),
            _ => v,
        }
    }

    /// The number that a value is, if it is a constant.
    pub(super) fn constant(&self, v: Value) -> Option<f64> {
        match self.op(self.core(v)) {
            Op::Const(c) => Some(*c),
            _ => None,
        }
    }

    /// `c` where the value is `1 - c`.
    pub(super) fn complement(&self, v: Value) -> Option<Value> {
        match self.op(v) {
            Op::Binary(Binary::Sub, one, c) if self.constant(*one) == Some(1.0) => Some(self.core(*c)),
            _ => None,
        }
    }

    /// Whether a synaptic value enters a state, in this step or by way of other states.
    pub(super) fn feeds(&self, v: Value, s: StateId) -> bool {
        let mut seen = BTreeSet::new();
        let mut open = vec![v];
        while let Some(v) = open.pop() {
            if !seen.insert(v) {
                continue;
            }
            for t in self.states().filter(|t| self.next(*t) == Some(v)) {
                if t == s {
                    return true;
                }
                open.extend(self.load(Source::State(t)));
            }
            open.extend(self.users(v).iter().filter(|u| is_elementwise(self.op(**u))));
        }
        false
    }

    /// Whether a state starts at a parameter.
    pub(super) fn starts_at(&self, s: StateId, p: ParamId) -> bool {
        self.model.states[s.index()].init == Init::Param(p)
    }
}

impl Sign {
    /// The other sign.
    pub(super) fn flip(self) -> Sign {
        match self {
            Sign::Plus => Sign::Minus,
            Sign::Minus => Sign::Plus,
        }
    }
}

/// The value `u = op(…, v, …)` with the sign of what `v` contains, if it is linear in `v`.
fn linear_in(op: &Op, v: Value, sign: Sign, u: Value) -> Vec<(Value, Sign)> {
    let mut found = vec![];
    match op {
        Op::Binary(Binary::Sub, a, b) => {
            if *a == v {
                found.push((u, sign));
            }
            if *b == v {
                found.push((u, sign.flip()));
            }
        }
        Op::Unary(Unary::Neg, _) => found.push((u, sign.flip())),
        Op::Binary(Binary::Div, a, _) if *a == v => found.push((u, sign)),
        Op::Select(_, a, b) if *a == v || *b == v => found.push((u, sign)),
        Op::Binary(Binary::Add | Binary::Mul, ..)
        | Op::Splat(..)
        | Op::Rows(..)
        | Op::Cols(..)
        | Op::SumAll(_)
        | Op::SumPre(_)
        | Op::SumPost(_)
        | Op::Contract(..)
        | Op::ContractT(..)
        | Op::Outer(..)
        | Op::Concat(..)
        | Op::Slice { .. }
        | Op::Pad { .. }
        | Op::Element(..)
        | Op::OneHot { .. }
        | Op::StopGrad(_) => found.push((u, sign)),
        Op::Const(_)
        | Op::Size(_)
        | Op::Load(_)
        | Op::Unary(..)
        | Op::Binary(..)
        | Op::Select(..)
        | Op::Clip { .. }
        | Op::MaxAll(_) => {}
    }
    found
}

fn is_elementwise(op: &Op) -> bool {
    matches!(op, Op::Unary(..) | Op::Binary(..) | Op::Select(..) | Op::Clip { .. } | Op::StopGrad(_))
}
