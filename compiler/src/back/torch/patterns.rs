//! What a person writes with one word, and the step IR with several instructions: a softmax, a dot product, a
//! square, a mean, a matrix of low rank, a vector taken apart.
//!
//! A pattern is taken only where nothing else reads the instructions inside of it, so that nothing is computed
//! twice. Its value and gradient are those of the instructions; only rounding may differ.

use super::names::dims;
use crate::ir::{Axis, Binary, Function, Op, Shape, Source, Unary, Value};
use crate::model::Model;
use std::collections::BTreeMap;

/// How a value is written, and which values it reads.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Pattern {
    /// `torch.softmax(v, -1)`
    Softmax(Value),
    /// The dot product of two vectors.
    Dot(Value, Value),
    /// `x.square()`
    Square(Value),
    /// `x.mean()`
    Mean(Value),
    /// `post.T @ pre`, for the loads of two factors.
    Factors(Value, Value),
}

impl Pattern {
    /// The values that it reads. Factors are parameters, which it names itself.
    pub(super) fn reads(&self) -> Vec<Value> {
        match self {
            Pattern::Softmax(v) | Pattern::Square(v) | Pattern::Mean(v) => vec![*v],
            Pattern::Dot(a, b) => vec![*a, *b],
            Pattern::Factors(..) => vec![],
        }
    }
}

/// A vector that is taken apart into equal parts: the parts, in order.
#[derive(Clone, Debug)]
pub(super) struct Split {
    /// The vector.
    pub(super) whole: Value,
    /// Its parts.
    pub(super) parts: Vec<Value>,
}

/// The patterns of a step.
pub(super) struct Patterns<'m> {
    model: &'m Model,
    step: &'m Function,
    /// How often each value is read.
    uses: Vec<usize>,
}

impl<'m> Patterns<'m> {
    /// Counts readers.
    pub(super) fn new(model: &'m Model) -> Self {
        let step = &model.step;
        let mut uses = vec![0; step.body.len()];
        let operands = step.body.iter().flat_map(|i| i.op.operands());
        operands.chain(step.results.iter().map(|(_, v)| *v)).for_each(|v| uses[v.index()] += 1);
        Patterns { model, step, uses }
    }

    /// The pattern of every value that has one.
    pub(super) fn find(&self) -> BTreeMap<Value, Pattern> {
        self.step.values().filter_map(|(v, _)| Some((v, self.at(v)?))).collect()
    }

    fn at(&self, v: Value) -> Option<Pattern> {
        self.softmax(v)
            .or_else(|| self.mean(v))
            .or_else(|| self.dot(v))
            .or_else(|| self.square(v))
            .or_else(|| self.factors(v))
    }

    fn op(&self, v: Value) -> &'m Op {
        &self.step.at(v).op
    }

    /// The operand of a value that this instruction alone reads, `times` times, and that has no name.
    fn inside(&self, v: Value, times: usize) -> Option<&'m Op> {
        (self.uses[v.index()] == times && self.step.at(v).name.is_none()).then(|| self.op(v))
    }

    /// `exp(v - max v) / Σ`
    fn softmax(&self, v: Value) -> Option<Pattern> {
        let Op::Binary(Binary::Div, top, bottom) = self.op(v) else { return None };
        let Op::Splat(sum, _) = self.inside(*bottom, 1)? else { return None };
        let Op::SumAll(terms) = self.inside(*sum, 1)? else { return None };
        let Op::Unary(Unary::Exp, shifted) = self.inside(*top, 2)? else { return None };
        let Op::Binary(Binary::Sub, x, largest) = self.inside(*shifted, 1)? else { return None };
        let Op::Splat(largest, _) = self.inside(*largest, 1)? else { return None };
        let Op::StopGrad(largest) = self.inside(*largest, 1)? else { return None };
        let Op::MaxAll(of) = self.inside(*largest, 1)? else { return None };
        (terms == top && of == x).then_some(Pattern::Softmax(*x))
    }

    /// `Σ x / (N·M)`
    fn mean(&self, v: Value) -> Option<Pattern> {
        let Op::Binary(Binary::Div, sum, count) = self.op(v) else { return None };
        let Op::SumAll(x) = self.inside(*sum, 1)? else { return None };
        let mut found = vec![];
        self.sizes(*count, &mut found)?;
        (found == dims(self.step.ty(*x).shape)).then_some(Pattern::Mean(*x))
    }

    /// The axes whose sizes are multiplied.
    fn sizes(&self, v: Value, found: &mut Vec<Axis>) -> Option<()> {
        match self.op(v) {
            Op::Size(axis) => found.push(*axis),
            Op::Binary(Binary::Mul, a, b) => {
                self.sizes(*a, found)?;
                self.sizes(*b, found)?;
            }
            _ => return None,
        }
        Some(())
    }

    /// `Σ a·b`, unless a vector is multiplied with itself.
    fn dot(&self, v: Value) -> Option<Pattern> {
        let Op::SumAll(product) = self.op(v) else { return None };
        let Op::Binary(Binary::Mul, a, b) = self.inside(*product, 1)? else { return None };
        let is_vector = matches!(self.step.ty(*product).shape, Shape::Vector(_));
        (is_vector && a != b).then_some(Pattern::Dot(*a, *b))
    }

    fn square(&self, v: Value) -> Option<Pattern> {
        match self.op(v) {
            Op::Binary(Binary::Mul, a, b) if a == b => Some(Pattern::Square(*a)),
            _ => None,
        }
    }

    /// `Σ_k post_k ⊗ pre_k`, over all rows of two factors.
    fn factors(&self, v: Value) -> Option<Pattern> {
        let mut terms = vec![];
        self.terms(v, &mut terms)?;
        let rows: Vec<(Value, Value)> = terms.iter().map(|(a, b)| (self.row(*a).0, self.row(*b).0)).collect();
        let (post, pre) = *rows.first()?;
        let in_order = |(k, (a, b)): (usize, &(Value, Value))| self.is_row(*a, k) && self.is_row(*b, k);
        let same = rows.iter().all(|pair| *pair == (post, pre));
        let all = terms.iter().enumerate().all(in_order);
        let count = self.count_of_factor(post).zip(self.count_of_factor(pre));
        (same && all && count == Some((terms.len(), terms.len()))).then_some(Pattern::Factors(post, pre))
    }

    fn terms(&self, v: Value, found: &mut Vec<(Value, Value)>) -> Option<()> {
        match self.op(v) {
            Op::Outer(a, b) => found.push((*a, *b)),
            Op::Binary(Binary::Add, a, b) => {
                self.inside(*a, 1)?;
                self.inside(*b, 1)?;
                self.terms(*a, found)?;
                self.terms(*b, found)?;
            }
            _ => return None,
        }
        Some(())
    }

    /// The vector that a part is of, and where the part begins.
    fn row(&self, v: Value) -> (Value, Option<Axis>) {
        match self.op(v) {
            Op::Slice { x, start, .. } => (*x, Some(*start)),
            _ => (v, None),
        }
    }

    /// Whether this is row `k` of a factor.
    fn is_row(&self, v: Value, k: usize) -> bool {
        match self.op(v) {
            Op::Slice { start, axis, .. } => self.is_multiple(*start, *axis, k),
            _ => k == 0,
        }
    }

    fn is_multiple(&self, start: Axis, axis: Axis, k: usize) -> bool {
        let (start, one) = (self.model.axes.linear(start), self.model.axes.linear(axis));
        let k = k as i64;
        let scaled = one.terms.iter().map(|(a, c)| (*a, c * k)).filter(|(_, c)| *c != 0);
        start.constant == one.constant * k && start.terms == scaled.collect()
    }

    /// The number of rows of a factor, if this loads one.
    fn count_of_factor(&self, v: Value) -> Option<usize> {
        let Op::Load(Source::Param(p)) = self.op(v) else { return None };
        let param = &self.model.params[p.index()];
        let is_factor = matches!(param.shape, Shape::Vector(_)) && param.dims.len() == 2;
        let rows = self.model.axes.linear(*param.dims.first()?);
        (is_factor && rows.terms.is_empty()).then_some(rows.constant as usize)
    }

    /// Vectors that are taken apart into equal parts that all have names.
    pub(super) fn splits(&self) -> Vec<Split> {
        let mut by_whole: BTreeMap<Value, Vec<Value>> = BTreeMap::new();
        for (v, instruction) in self.step.values() {
            if let Op::Slice { x, .. } = instruction.op {
                by_whole.entry(x).or_default().push(v);
            }
        }
        let splits = by_whole.into_iter().map(|(whole, parts)| Split { whole, parts });
        splits.filter(|s| self.is_whole(s)).collect()
    }

    fn is_whole(&self, split: &Split) -> bool {
        let Shape::Vector(all) = self.step.ty(split.whole).shape else { return false };
        let mut own = None;
        let fits = split.parts.iter().enumerate().all(|(k, v)| {
            let Op::Slice { start, axis, .. } = self.op(*v) else { return false };
            let same = *own.get_or_insert(*axis) == *axis;
            same && self.is_multiple(*start, *axis, k) && self.step.at(*v).name.is_some()
        });
        fits && own.is_some_and(|one| 1 < split.parts.len() && self.is_multiple(all, one, split.parts.len()))
    }
}
