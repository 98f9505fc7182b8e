//! Straight-line elementwise code: the inside of a loop nest.
//!
//! Values are numbers or masks. A mask is the result of a comparison; it selects, and it becomes a
//! number (1 or 0) only where the spec computes with it. All arithmetic is IEEE single precision;
//! a fused multiply-add is an operation of its own and never implied.

use super::Access;
use std::collections::HashMap;
use std::mem::Discriminant;

/// A value of a body.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Id(pub u32);

impl Id {
    /// As an index into [`Body::ops`].
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

/// An operation of a body.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum BodyOp {
    /// A number.
    Const(f32),
    /// An operand from memory.
    Load(Access),
    /// `-a`
    Neg(Id),
    /// `|a|`
    Abs(Id),
    /// `√a`
    Sqrt(Id),
    /// The nearest integer, ties to even.
    Round(Id),
    /// `2^a` for an integer `a` between −126 and 127.
    PowerOfTwo(Id),
    /// The exponent of a positive normal number, `a = m · 2^e` with `1 ≤ m < 2`.
    Exponent(Id),
    /// The `m` of a positive normal number, `a = m · 2^e` with `1 ≤ m < 2`.
    Mantissa(Id),
    /// `a + b`
    Add(Id, Id),
    /// `a - b`
    Sub(Id, Id),
    /// `a * b`
    Mul(Id, Id),
    /// `a / b`
    Div(Id, Id),
    /// `a < b ? a : b`
    Min(Id, Id),
    /// `a > b ? a : b`
    Max(Id, Id),
    /// `a · b + c`, rounded once.
    Fma(Id, Id, Id),
    /// `c - a · b`, rounded once.
    FmaNeg(Id, Id, Id),
    /// Mask: `a < b`
    Less(Id, Id),
    /// Mask: `a <= b`
    LessEqual(Id, Id),
    /// Mask: `a == b`
    Equal(Id, Id),
    /// Mask: both.
    And(Id, Id),
    /// Mask: not.
    Not(Id),
    /// `mask ? a : b`
    Select(Id, Id, Id),
    /// `mask ? a : 0`
    Keep(Id, Id),
    /// 1 where the mask holds, else 0.
    Number(Id),
}

impl BodyOp {
    /// The operands, in order.
    pub fn operands(&self) -> Vec<Id> {
        match *self {
            BodyOp::Const(_) | BodyOp::Load(_) => vec![],
            BodyOp::Neg(a)
            | BodyOp::Abs(a)
            | BodyOp::Sqrt(a)
            | BodyOp::Round(a)
            | BodyOp::PowerOfTwo(a)
            | BodyOp::Exponent(a)
            | BodyOp::Mantissa(a)
            | BodyOp::Not(a)
            | BodyOp::Number(a) => vec![a],
            BodyOp::Add(a, b)
            | BodyOp::Sub(a, b)
            | BodyOp::Mul(a, b)
            | BodyOp::Div(a, b)
            | BodyOp::Min(a, b)
            | BodyOp::Max(a, b)
            | BodyOp::Less(a, b)
            | BodyOp::LessEqual(a, b)
            | BodyOp::Equal(a, b)
            | BodyOp::And(a, b)
            | BodyOp::Keep(a, b) => vec![a, b],
            BodyOp::Fma(a, b, c) | BodyOp::FmaNeg(a, b, c) | BodyOp::Select(a, b, c) => vec![a, b, c],
        }
    }

    /// The same operation on other operands.
    #[must_use]
    pub fn map(self, mut f: impl FnMut(Id) -> Id) -> BodyOp {
        match self {
            BodyOp::Const(_) | BodyOp::Load(_) => self,
            BodyOp::Neg(a) => BodyOp::Neg(f(a)),
            BodyOp::Abs(a) => BodyOp::Abs(f(a)),
            BodyOp::Sqrt(a) => BodyOp::Sqrt(f(a)),
            BodyOp::Round(a) => BodyOp::Round(f(a)),
            BodyOp::PowerOfTwo(a) => BodyOp::PowerOfTwo(f(a)),
            BodyOp::Exponent(a) => BodyOp::Exponent(f(a)),
            BodyOp::Mantissa(a) => BodyOp::Mantissa(f(a)),
            BodyOp::Not(a) => BodyOp::Not(f(a)),
            BodyOp::Number(a) => BodyOp::Number(f(a)),
            BodyOp::Add(a, b) => BodyOp::Add(f(a), f(b)),
            BodyOp::Sub(a, b) => BodyOp::Sub(f(a), f(b)),
            BodyOp::Mul(a, b) => BodyOp::Mul(f(a), f(b)),
            BodyOp::Div(a, b) => BodyOp::Div(f(a), f(b)),
            BodyOp::Min(a, b) => BodyOp::Min(f(a), f(b)),
            BodyOp::Max(a, b) => BodyOp::Max(f(a), f(b)),
            BodyOp::Less(a, b) => BodyOp::Less(f(a), f(b)),
            BodyOp::LessEqual(a, b) => BodyOp::LessEqual(f(a), f(b)),
            BodyOp::Equal(a, b) => BodyOp::Equal(f(a), f(b)),
            BodyOp::And(a, b) => BodyOp::And(f(a), f(b)),
            BodyOp::Keep(a, b) => BodyOp::Keep(f(a), f(b)),
            BodyOp::Fma(a, b, c) => BodyOp::Fma(f(a), f(b), f(c)),
            BodyOp::FmaNeg(a, b, c) => BodyOp::FmaNeg(f(a), f(b), f(c)),
            BodyOp::Select(a, b, c) => BodyOp::Select(f(a), f(b), f(c)),
        }
    }

    fn key(&self) -> Key {
        let mut operands = [0; 3];
        for (to, id) in operands.iter_mut().zip(self.operands()) {
            *to = id.0;
        }
        let (access, bits) = match self {
            BodyOp::Load(access) => (Some(*access), 0),
            BodyOp::Const(c) => (None, c.to_bits()),
            _ => (None, 0),
        };
        (std::mem::discriminant(self), operands, access, bits)
    }

    /// Whether its result is a mask.
    pub fn is_mask(&self) -> bool {
        matches!(
            self,
            BodyOp::Less(..) | BodyOp::LessEqual(..) | BodyOp::Equal(..) | BodyOp::And(..) | BodyOp::Not(_)
        )
    }
}

/// What makes two operations equal: the kind, the operands, the place, the bits of the number.
type Key = (Discriminant<BodyOp>, [u32; 3], Option<Access>, u32);

/// A list of operations; equal ones are shared.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Body {
    /// The operations; an operand comes before its use.
    pub ops: Vec<BodyOp>,
    known: HashMap<Key, Id>,
}

impl Body {
    /// Adds an operation, or finds an equal one.
    pub fn push(&mut self, op: BodyOp) -> Id {
        let key = op.key();
        if let Some(id) = self.known.get(&key) {
            return *id;
        }
        let id = Id(self.ops.len() as u32);
        self.ops.push(op);
        self.known.insert(key, id);
        id
    }

    /// A number.
    pub fn constant(&mut self, c: f64) -> Id {
        self.push(BodyOp::Const(c as f32))
    }

    /// The operation that defines a value.
    pub fn at(&self, id: Id) -> BodyOp {
        self.ops[id.index()]
    }

    /// All operands from memory.
    pub fn loads(&self) -> impl Iterator<Item = Access> + '_ {
        self.ops.iter().filter_map(|op| match op {
            BodyOp::Load(access) => Some(*access),
            _ => None,
        })
    }
}
