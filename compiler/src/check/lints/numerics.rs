//! Ranges that a form relies on: mixing coefficients, soft clips, decays, keys of delta rules, and
//! clips that never open.

use super::super::codes;
use super::super::types::shape_text;
use super::Facts;
use super::flow::{Flow, Sign};
use super::intervals::Interval;
use crate::ir::{Binary, Op, Source, StateId, Unary, Value};
use crate::model::{Constraint, Model};
use grammar::ast::StateKind;
use grammar::diag::Diagnostic;
use std::collections::BTreeSet;

/// Checks what the forms of the equations rely on.
pub(super) fn check(
    model: &Model,
    facts: &Facts,
    flow: &Flow<'_>,
    always: &[Interval],
    at_start: &[Interval],
    found: &mut Vec<Diagnostic>,
) {
    let context = Context { model, flow, always, at_start };
    context.mixtures(found);
    context.softclips(facts, found);
    context.saturated(found);
    for s in flow.states() {
        context.decay(s, found);
        context.keys(s, found);
    }
}

struct Context<'m> {
    model: &'m Model,
    flow: &'m Flow<'m>,
    always: &'m [Interval],
    at_start: &'m [Interval],
}

impl Context<'_> {
    /// `(1-m) S + m …` with a computed `m` that may leave `[0, 1]`.
    fn mixtures(&self, found: &mut Vec<Diagnostic>) {
        let mut told = BTreeSet::new();
        for (v, instruction) in self.model.step.values() {
            if !matches!(instruction.op, Op::Binary(Binary::Add, ..)) {
                continue;
            }
            let terms: Vec<Vec<Value>> =
                self.flow.terms(v).iter().map(|(t, _)| self.flow.factors(*t)).collect();
            for (k, factors) in terms.iter().enumerate() {
                let Some(c) = factors.iter().find_map(|f| self.flow.complement(*f)) else { continue };
                let keeps = factors.iter().any(|f| matches!(self.flow.op(*f), Op::Load(Source::State(_))));
                let shared = terms.iter().enumerate().any(|(n, other)| n != k && other.contains(&c));
                let range = self.always[c.index()];
                let computed = self.model.step.ty(c).batched;
                if keeps && shared && computed && !range.within(0.0, 1.0) && told.insert(c) {
                    found.push(self.not_convex(v, c, range));
                }
            }
        }
    }

    fn not_convex(&self, v: Value, c: Value, range: Interval) -> Diagnostic {
        let coefficient = self.model.step.at(c);
        let name = coefficient.name.clone().unwrap_or_else(|| "the coefficient".to_owned());
        Diagnostic::warning(
            codes::NOT_CONVEX,
            format!("this mixes old and new by `{name}`, which may leave [0, 1]"),
            self.model.step.at(v).span,
            format!("a mixture only for `{name}` in [0, 1]"),
        )
        .label(coefficient.span, format!("ranges over {}", range.text()))
        .help("compute it with `sigmoid`, or write `clip(S + m * …, -1, 1)`")
    }

    /// Soft clips that may be stepped over.
    fn softclips(&self, facts: &Facts, found: &mut Vec<Diagnostic>) {
        for (d, span) in &facts.softclips {
            let range = self.always[d.index()];
            if !range.within(-1.0, 1.0) {
                found.push(
                    Diagnostic::warning(
                        codes::SOFTCLIP_STEP,
                        "a soft clip is smooth only for steps in [-1, 1]",
                        *span,
                        format!("this step ranges over {}", range.text()),
                    )
                    .help("bound the step, for example with `tanh`, or use `clip`")
                    .note("a larger step jumps over the bound and is cut off there, without a gradient"),
                );
            }
        }
    }

    /// Clips that no starting value lets a gradient through.
    fn saturated(&self, found: &mut Vec<Diagnostic>) {
        for (_, instruction) in self.model.step.values() {
            let Op::Clip { x, low, high } = &instruction.op else { continue };
            let range = self.at_start[x.index()];
            let (low, high) = (self.at_start[low.index()].low, self.at_start[high.index()].high);
            let outside = range.low > high || range.high < low;
            if outside && self.model.step.ty(*x).batched {
                found.push(
                    Diagnostic::warning(
                        codes::SATURATED,
                        "this clip is saturated from the start",
                        instruction.span,
                        format!("what it clips to [{low}, {high}] ranges over {}", range.text()),
                    )
                    .help("move the bounds or the initial values: a saturated clip passes no gradient"),
                );
            }
        }
    }

    /// A state that a free trained parameter decays, with nothing that bounds it.
    fn decay(&self, s: StateId, found: &mut Vec<Diagnostic>) {
        let state = &self.model.states[s.index()];
        let Some(next) = self.flow.next(s) else { return };
        if state.kind == StateKind::State {
            return;
        }
        for (term, _) in self.flow.terms(next) {
            let factors = self.factors_of_old(term, s);
            for f in factors {
                let Op::Load(Source::Param(p)) = self.flow.op(f) else { continue };
                let param = &self.model.params[p.index()];
                if param.learned && param.constraint == Constraint::Free {
                    found.push(
                        Diagnostic::warning(
                            codes::FREE_DECAY,
                            format!(
                                "`{}` decays `{}`, but training may take it out of [0, 1]",
                                param.name, state.name
                            ),
                            param.span,
                            "unconstrained",
                        )
                        .label(self.model.step.at(term).span, "multiplies the old value here")
                        .help(format!(
                            "declare it `learn {}{} in (0, 1)`",
                            param.name,
                            shape_text(&self.model.axes, param.shape)
                        )),
                    );
                }
            }
        }
    }

    /// What the old value of a state is multiplied with in a term; nothing if it is not a factor.
    fn factors_of_old(&self, term: Value, s: StateId) -> Vec<Value> {
        let mut factors = vec![];
        let mut open = vec![term];
        while let Some(v) = open.pop() {
            match self.flow.op(v) {
                Op::Binary(Binary::Div, a, _) => open.push(*a),
                _ => match self.flow.factors(v).as_slice() {
                    [one] if *one == v => factors.push(v),
                    more => open.extend(more),
                },
            }
        }
        let is_old = |v: &Value| *self.flow.op(*v) == Op::Load(Source::State(s));
        match factors.iter().position(is_old) {
            Some(at) => {
                factors.swap_remove(at);
                factors
            }
            None => vec![],
        }
    }

    /// `S + β (v - S @ k)[j] k[i]` is stable only for `β |k|²` in `[0, 2]`.
    fn keys(&self, s: StateId, found: &mut Vec<Diagnostic>) {
        let Some(next) = self.flow.next(s) else { return };
        let name = &self.model.states[s.index()].name;
        let is_old = |v: Value| *self.flow.op(v) == Op::Load(Source::State(s));
        let terms = self.flow.terms(next);
        if !terms.iter().any(|(t, sign)| is_old(*t) && *sign == Sign::Plus) {
            return;
        }
        let mut told = BTreeSet::new();
        for (_, instruction) in self.model.step.values() {
            let Op::Contract(m, k) = &instruction.op else { continue };
            let writes = |t: &Value| self.flow.parts(*t).contains(k) && !is_old(*t);
            let reads_back = terms.iter().any(|(t, _)| writes(t) && self.takes(s, *t));
            if is_old(*m) && reads_back && !self.is_short(*k) && told.insert(*k) {
                let key = self.model.step.at(*k);
                let text = key.name.clone().unwrap_or_else(|| "the key".to_owned());
                found.push(
                    Diagnostic::warning(
                        codes::RAW_KEYS,
                        format!("the delta rule of `{name}` is stable only for short keys"),
                        instruction.span,
                        format!("the length of `{text}` is not bounded"),
                    )
                    .label(key.span, format!("`{text}` is computed here"))
                    .help(format!("normalise it: `{text} / norm({text})`, `softmax` or `sumnorm`"))
                    .note("with rate b and key k, errors shrink while b |k|² lies between 0 and 2"),
                );
            }
        }
    }

    fn takes(&self, s: StateId, term: Value) -> bool {
        self.flow.linear(s).contains(&(term, Sign::Minus))
    }

    /// Whether a vector is at most one long: a softmax, a sum-normalised or a unit vector.
    fn is_short(&self, k: Value) -> bool {
        let Op::Binary(Binary::Div, x, by) = self.flow.op(k) else { return false };
        match self.flow.op(self.flow.core(*by)) {
            Op::SumAll(a) => a == x,
            Op::Unary(Unary::Sqrt, _) => true,
            _ => false,
        }
    }
}
