//! Reads a matrix before it is written, where that gives the same sum.
//!
//! Before: `%H' = H + b·(r ⊗ k); %o = %H' @ q`, where `r = v − H @ k`. The read of `H'` has to wait
//! for `r`, so a step takes two sweeps. After: `%o = H @ q + b·(k·q)·r`, and one sweep suffices. A
//! contraction distributes over sums, and factors that vary with one axis alone leave it:
//!
//! ```text
//! (A ± B) @ v        = A @ v ± B @ v
//! (a ⊗ c) @ v        = a · (c·v)
//! (s·A) @ v          = s · (A @ v)
//! (a[j]·A) @ v       = a · (A @ v)        (A / a[j]) @ v = (A @ v) / a
//! (c[i]·A) @ v       = A @ (c·v)          (A / c[i]) @ v = A @ (v / c)
//! ```
//!
//! and likewise for transposed contractions. A contraction is rewritten only if every matrix that is
//! still contracted is there earlier than the original one. This changes roundings, not meaning.

use crate::ir::{Binary, Builder, Function, Op, Unary, Value};
use crate::loops::schedule::{is_matrix, is_swept, reduced_matrix};
use crate::model::Model;

/// Rewrites all contractions that gain from it.
pub(super) fn spread(model: &mut Model) {
    let old = &model.step;
    let mut pass = Pass { b: Builder::new(), stages: vec![] };
    let mut new: Vec<Value> = vec![];
    for (_, instruction) in old.values() {
        pass.b.set_span(instruction.span);
        let here = |v: Value| new[v.index()];
        let value = match &instruction.op {
            Op::Load(source) => pass.b.load(*source, instruction.ty),
            Op::Contract(m, v) => pass.read(Side::Pre, here(*m), here(*v)),
            Op::ContractT(m, v) => pass.read(Side::Post, here(*m), here(*v)),
            op => pass.b.rebuild(op.map_operands(here)),
        };
        if let Some(name) = &instruction.name {
            pass.b.name(value, name);
        }
        new.push(value);
    }
    for (sink, v) in &old.results {
        pass.b.result(*sink, new[v.index()]);
    }
    for (_, v, _) in &mut model.modulators {
        *v = new[v.index()];
    }
    if let Some(events) = &mut model.events {
        events.clock = new[events.clock.index()];
    }
    model.step = pass.b.finish();
}

/// The axis that a contraction sums over.
#[derive(Clone, Copy, PartialEq)]
enum Side {
    Pre,
    Post,
}

struct Pass {
    b: Builder,
    /// The number of matrix reductions before each value.
    stages: Vec<usize>,
}

impl Pass {
    fn stage(&mut self, v: Value) -> usize {
        let f: &Function = self.b.function();
        while self.stages.len() <= v.index() {
            let op = &f.body[self.stages.len()].op;
            let base = op.operands().iter().map(|o| self.stages[o.index()]).max().unwrap_or(0);
            let swept = reduced_matrix(f, op).is_some_and(|m| is_swept(f, m));
            self.stages.push(base + usize::from(swept));
        }
        self.stages[v.index()]
    }

    /// `m @ v` or `mᵀ @ v`, spread if that lets it happen earlier.
    fn read(&mut self, side: Side, m: Value, v: Value) -> Value {
        let limit = self.stage(v);
        if limit < self.stage(m) && self.can_spread(side, m, limit) {
            return self.spread(side, m, v, limit);
        }
        self.contract(side, m, v)
    }

    fn contract(&mut self, side: Side, m: Value, v: Value) -> Value {
        self.b.emit(match side {
            Side::Pre => Op::Contract(m, v),
            Side::Post => Op::ContractT(m, v),
        })
    }

    fn op(&self, v: Value) -> Op {
        self.b.function().at(v).op.clone()
    }

    /// Whether a factor of a matrix varies with at most one axis. A factor that varies with the
    /// summed axis goes into the vector, which must not become later by that.
    fn is_factor(&mut self, side: Side, v: Value, limit: usize) -> bool {
        match (self.op(v), side) {
            (Op::Splat(..), _) | (Op::Rows(..), Side::Pre) | (Op::Cols(..), Side::Post) => true,
            (Op::Cols(x, _), Side::Pre) | (Op::Rows(x, _), Side::Post) => self.stage(x) <= limit,
            (Op::Outer(a, c), Side::Pre) => {
                let _ = a;
                self.stage(c) <= limit
            }
            (Op::Outer(a, _), Side::Post) => self.stage(a) <= limit,
            _ => false,
        }
    }

    /// Whether every matrix left to contract is there by the limit.
    fn can_spread(&mut self, side: Side, m: Value, limit: usize) -> bool {
        if self.stage(m) <= limit || is_rank_one(&self.op(m)) {
            return true;
        }
        match self.op(m) {
            Op::Unary(Unary::Neg, x) => self.can_spread(side, x, limit),
            Op::Binary(Binary::Add | Binary::Sub, x, y) => {
                self.can_spread(side, x, limit) && self.can_spread(side, y, limit)
            }
            Op::Binary(Binary::Mul, x, y) => {
                (self.is_factor(side, x, limit) && self.can_spread(side, y, limit))
                    || (self.is_factor(side, y, limit) && self.can_spread(side, x, limit))
            }
            Op::Binary(Binary::Div, x, y) => {
                !matches!(self.op(y), Op::Outer(..))
                    && self.is_factor(side, y, limit)
                    && self.can_spread(side, x, limit)
            }
            _ => false,
        }
    }

    fn spread(&mut self, side: Side, m: Value, v: Value, limit: usize) -> Value {
        debug_assert!(is_matrix(self.b.function(), m));
        if self.stage(m) <= limit {
            return self.contract(side, m, v);
        }
        match self.op(m) {
            Op::Outer(a, c) => {
                let (kept, summed) = if side == Side::Pre { (a, c) } else { (c, a) };
                let product = self.b.mul(summed, v);
                let s = self.b.rebuild(Op::SumAll(product));
                self.b.scale(s, kept)
            }
            Op::Unary(Unary::Neg, x) => {
                let x = self.spread(side, x, v, limit);
                self.b.unary(Unary::Neg, x)
            }
            Op::Binary(f @ (Binary::Add | Binary::Sub), x, y) => {
                let (x, y) = (self.spread(side, x, v, limit), self.spread(side, y, v, limit));
                self.b.binary(f, x, y)
            }
            Op::Binary(Binary::Mul, x, y) => {
                let first = self.is_factor(side, x, limit) && self.can_spread(side, y, limit);
                let (factor, rest) = if first { (x, y) } else { (y, x) };
                self.factored(side, Binary::Mul, factor, rest, v, limit)
            }
            Op::Binary(Binary::Div, x, y) => self.factored(side, Binary::Div, y, x, v, limit),
            _ => self.contract(side, m, v),
        }
    }

    /// `(rest · factor) @ v`, or with a quotient.
    fn factored(
        &mut self,
        side: Side,
        f: Binary,
        factor: Value,
        rest: Value,
        v: Value,
        limit: usize,
    ) -> Value {
        match (self.op(factor), side) {
            (Op::Splat(s, _), _) => {
                let sum = self.spread(side, rest, v, limit);
                let shape = self.b.shape(sum);
                let s = self.b.splat(s, shape);
                self.b.binary(f, sum, s)
            }
            (Op::Rows(a, _), Side::Pre) | (Op::Cols(a, _), Side::Post) => {
                let sum = self.spread(side, rest, v, limit);
                self.b.binary(f, sum, a)
            }
            (Op::Cols(c, _), Side::Pre) | (Op::Rows(c, _), Side::Post) => {
                let v = self.b.binary(f, v, c);
                self.spread(side, rest, v, limit)
            }
            (Op::Outer(a, c), _) => {
                let (kept, summed) = if side == Side::Pre { (a, c) } else { (c, a) };
                let v = self.b.mul(v, summed);
                let sum = self.spread(side, rest, v, limit);
                self.b.mul(sum, kept)
            }
            (other, _) => unreachable!("{other:?} is no factor"),
        }
    }
}

fn is_rank_one(op: &Op) -> bool {
    matches!(op, Op::Outer(..))
}
