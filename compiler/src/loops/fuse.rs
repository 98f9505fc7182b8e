//! Fuses multiplications into additions, and drops what nothing uses.
//!
//! Before: `%3 = mul %1, %2; %4 = add %0, %3`. After: `%3 = fma %1, %2, %0`. A product is fused
//! wherever it is added or subtracted, unless it is stored: a stored product is rounded, so that
//! who computes with it here gets the bits that others load. This changes roundings (one instead
//! of two), the same way on every back end, because it happens here and nowhere else. Whether a
//! product is fused depends on its own use alone, never on what else the nest computes: a step
//! that is joined with its neighbour, one that is not, and its replay give the same bits.

use super::Effect;
use super::body::{Body, BodyOp, Id};

/// Rewrites a body and its effects.
pub(super) fn fuse(body: Body, effects: Vec<Effect>) -> (Body, Vec<Effect>) {
    let mut ops = body.ops;
    let stored: Vec<Id> = effects.iter().filter_map(Effect::stored).collect();
    for k in 0..ops.len() {
        let product = |id: Id| match ops[id.index()] {
            BodyOp::Mul(a, b) if !stored.contains(&id) => Some((a, b)),
            _ => None,
        };
        let fused = match ops[k] {
            BodyOp::Add(x, y) => product(y)
                .map(|(a, b)| BodyOp::Fma(a, b, x))
                .or_else(|| product(x).map(|(a, b)| BodyOp::Fma(a, b, y))),
            BodyOp::Sub(x, y) => product(y).map(|(a, b)| BodyOp::FmaNeg(a, b, x)),
            _ => None,
        };
        if let Some(op) = fused {
            ops[k] = op;
        }
    }
    compact(&ops, effects)
}

/// Keeps what the effects need, in order.
fn compact(ops: &[BodyOp], effects: Vec<Effect>) -> (Body, Vec<Effect>) {
    let mut needed = vec![false; ops.len()];
    for effect in &effects {
        effect.operands().iter().for_each(|o| needed[o.index()] = true);
    }
    for k in (0..ops.len()).rev() {
        if needed[k] {
            ops[k].operands().iter().for_each(|o| needed[o.index()] = true);
        }
    }
    let mut body = Body::default();
    let mut new = vec![Id(0); ops.len()];
    for (k, op) in ops.iter().enumerate() {
        if needed[k] {
            new[k] = body.push(op.map(|o| new[o.index()]));
        }
    }
    let effects = effects.into_iter().map(|e| e.map(|place| place, |o| new[o.index()])).collect();
    (body, effects)
}

impl Effect {
    /// The value that it stores as it is.
    fn stored(&self) -> Option<Id> {
        match self {
            Effect::Store(_, v) => Some(*v),
            Effect::Add(..)
            | Effect::SumPre(..)
            | Effect::SumPost(..)
            | Effect::SumAll(..)
            | Effect::MaxAll(..) => None,
        }
    }

    /// The values it uses.
    pub fn operands(&self) -> Vec<Id> {
        match self {
            Effect::Store(_, v) | Effect::MaxAll(_, v) => vec![*v],
            Effect::Add(_, v, w)
            | Effect::SumPre(_, v, w)
            | Effect::SumPost(_, v, w)
            | Effect::SumAll(_, v, w) => std::iter::once(*v).chain(*w).collect(),
        }
    }
}
