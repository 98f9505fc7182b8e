//! Turns values of a function into the body of one nest, on demand.
//!
//! A value is either *inside* the nest (computed here) or an operand from memory. For a vector nest
//! the scheduler says which values are inside; in a matrix nest every batched matrix that is no
//! state is inside, so no matrix but the states ever reaches memory.

use super::body::{Body, BodyOp, Id};
use super::lower::{Role, Unit};
use super::{Access, Effect, Extent, Nest, Place, math};
use crate::ir::{Binary, Op, Shape, Source, StateId, Unary, Value};
use std::collections::{BTreeMap, BTreeSet};

/// A nest under construction.
pub(super) struct Emit<'u> {
    unit: &'u Unit<'u>,
    body: Body,
    effects: Vec<Effect>,
    numbers: BTreeMap<(Role, Value), Id>,
    masks: BTreeMap<(Role, Value), Id>,
    inside: BTreeSet<Value>,
    /// Matrix states (or cotangents) that the tail has just computed.
    pub(super) handed: BTreeMap<StateId, Id>,
    /// Where incoming matrices are read if the tail has not computed them.
    pub(super) from_ends: bool,
}

impl<'u> Emit<'u> {
    /// A nest in which the given scalars and vectors are computed.
    pub(super) fn new(unit: &'u Unit<'u>, inside: BTreeSet<Value>) -> Self {
        Emit {
            unit,
            body: Body::default(),
            effects: vec![],
            numbers: BTreeMap::new(),
            masks: BTreeMap::new(),
            inside,
            handed: BTreeMap::new(),
            from_ends: false,
        }
    }

    /// The finished nest.
    pub(super) fn finish(self, extent: Extent, label: String) -> Nest {
        let (body, effects) = super::fuse::fuse(self.body, self.effects);
        Nest { extent, body, effects, label }
    }

    /// Adds an effect.
    pub(super) fn effect(&mut self, effect: Effect) {
        self.effects.push(effect);
    }

    /// The value as a number.
    pub(super) fn number(&mut self, role: Role, v: Value) -> Id {
        let v = self.unit.strip(v);
        if let Some(id) = self.numbers.get(&(role, v)) {
            return *id;
        }
        let id = match self.operand(role, v) {
            Some(id) => id,
            None if self.is_mask(v) => {
                let mask = self.mask(role, v);
                self.body.push(BodyOp::Number(mask))
            }
            None => self.compute(role, v),
        };
        self.numbers.insert((role, v), id);
        id
    }

    /// A value as one or two factors, so that a sum can fuse their product.
    pub(super) fn factors(&mut self, role: Role, v: Value) -> (Id, Option<Id>) {
        let v = self.unit.strip(v);
        if let Op::Binary(Binary::Mul, a, b) = self.unit.f.at(v).op
            && !self.numbers.contains_key(&(role, v))
            && !self.is_mask(v)
            && self.operand(role, v).is_none()
        {
            return (self.number(role, a), Some(self.number(role, b)));
        }
        (self.number(role, v), None)
    }

    /// A vector operand of a matrix nest, or of a vector nest.
    pub(super) fn vector(&mut self, role: Role, v: Value, access: fn(Place) -> Access) -> Id {
        if let Some(c) = self.unit.constant(v) {
            return self.body.constant(c);
        }
        match self.unit.f.at(self.unit.strip(v)).op {
            Op::Splat(s, _) => self.scalar(role, s),
            _ => {
                let place = self.unit.place(role, v);
                self.body.push(BodyOp::Load(access(place)))
            }
        }
    }

    /// A value to be copied or summed: computed here, constant, or from memory.
    pub(super) fn copied(&mut self, role: Role, v: Value) -> Id {
        let v = self.unit.strip(v);
        if self.inside.contains(&v) {
            return self.number(role, v);
        }
        match self.unit.f.ty(v).shape {
            Shape::Scalar => self.scalar(role, v),
            _ => self.source(role, v),
        }
    }

    /// A vector from where it came from, not from where it is copied to.
    fn source(&mut self, role: Role, v: Value) -> Id {
        if let Op::Splat(s, _) = self.unit.f.at(v).op
            && self.unit.constant(v).is_none()
        {
            return self.scalar(role, s);
        }
        self.vector(role, v, Access::Post)
    }

    fn scalar(&mut self, role: Role, v: Value) -> Id {
        if let Some(c) = self.unit.constant(v) {
            return self.body.constant(c);
        }
        let v = self.unit.strip(v);
        if self.inside.contains(&v) {
            return self.number(role, v);
        }
        let place = self.unit.place(role, v);
        self.body.push(BodyOp::Load(Access::Scalar(place)))
    }

    /// The value from memory (or a constant), or `None` if the nest computes it.
    fn operand(&mut self, role: Role, v: Value) -> Option<Id> {
        if let Some(c) = self.unit.constant(v) {
            return Some(self.body.constant(c));
        }
        let shape = self.unit.f.ty(v).shape;
        match shape {
            Shape::Matrix { .. } => self.matrix_operand(role, v),
            Shape::Scalar | Shape::Vector(_) if self.inside.contains(&v) => None,
            Shape::Scalar => Some(self.scalar(role, v)),
            Shape::Vector(_) => Some(self.vector(role, v, Access::Post)),
        }
    }

    fn matrix_operand(&mut self, role: Role, v: Value) -> Option<Id> {
        if role == Role::Tail
            && let Some(place) = self.unit.carried_place(v)
        {
            return Some(self.load_matrix(place));
        }
        match self.unit.f.at(v).op {
            Op::Load(Source::State(s) | Source::Next(s)) if self.unit.log_place(s).is_some() => {
                self.unit.log_place(s).map(|place| self.load_matrix(place))
            }
            Op::Load(Source::State(s)) if self.unit.is_forward() => Some(self.incoming(role, s)),
            Op::Load(Source::NextBar(s)) => Some(self.incoming(role, s)),
            Op::Load(Source::State(s)) => {
                let place = self.unit.snapshot(role, s, 0);
                Some(self.load_matrix(place))
            }
            Op::Load(Source::Next(s)) => {
                let place = self.unit.snapshot(role, s, 1);
                Some(self.load_matrix(place))
            }
            Op::Rows(x, _) => Some(self.vector(role, x, Access::Post)),
            Op::Cols(x, _) => Some(self.vector(role, x, Access::Pre)),
            Op::Splat(x, _) => Some(self.scalar(role, x)),
            Op::Outer(..) => None,
            _ if self.unit.is_leaf(v) => {
                let place = self.unit.place(role, v);
                Some(self.load_matrix(place))
            }
            _ => None,
        }
    }

    fn load_matrix(&mut self, place: Place) -> Id {
        self.body.push(BodyOp::Load(Access::Matrix(place)))
    }

    fn incoming(&mut self, role: Role, s: StateId) -> Id {
        if role == Role::Head
            && let Some(id) = self.handed.get(&s)
        {
            return *id;
        }
        let place = self.unit.incoming_place(role, s, self.from_ends);
        self.load_matrix(place)
    }

    /// Whether a value is 1 or 0 by construction.
    fn is_mask(&self, v: Value) -> bool {
        let v = self.unit.strip(v);
        let vector_outside =
            !matches!(self.unit.f.ty(v).shape, Shape::Matrix { .. }) && !self.inside.contains(&v);
        if vector_outside || self.unit.is_leaf(v) {
            return false;
        }
        match self.unit.f.at(v).op {
            Op::Binary(Binary::Less | Binary::LessEqual | Binary::Equal, ..) => true,
            Op::Binary(Binary::Mul, a, b) => self.is_mask(a) && self.is_mask(b),
            _ => false,
        }
    }

    /// The value as a mask: where it is not zero.
    fn mask(&mut self, role: Role, v: Value) -> Id {
        let v = self.unit.strip(v);
        if let Some(id) = self.masks.get(&(role, v)) {
            return *id;
        }
        let id = match self.unit.f.at(v).op {
            Op::Binary(f @ (Binary::Less | Binary::LessEqual | Binary::Equal), a, b) if self.is_mask(v) => {
                let (a, b) = (self.number(role, a), self.number(role, b));
                math::binary(&mut self.body, f, a, b)
            }
            Op::Binary(Binary::Mul, a, b) if self.is_mask(v) => {
                let (a, b) = (self.mask(role, a), self.mask(role, b));
                self.body.push(BodyOp::And(a, b))
            }
            _ => {
                let x = self.number(role, v);
                let zero = self.body.constant(0.0);
                let equal = self.body.push(BodyOp::Equal(x, zero));
                self.body.push(BodyOp::Not(equal))
            }
        };
        self.masks.insert((role, v), id);
        id
    }

    fn compute(&mut self, role: Role, v: Value) -> Id {
        let op = self.unit.f.at(v).op.clone();
        match op {
            Op::Unary(Unary::Neg, x) => {
                let x = self.number(role, x);
                self.body.push(BodyOp::Neg(x))
            }
            Op::Unary(f, x) => {
                let x = self.number(role, x);
                math::unary(&mut self.body, f, x)
            }
            Op::Binary(f, a, b) => {
                let (a, b) = (self.number(role, a), self.number(role, b));
                math::binary(&mut self.body, f, a, b)
            }
            Op::Select(c, a, b) => self.select(role, c, a, b),
            Op::Clip { x, low, high } => {
                let x = self.number(role, x);
                let (low, high) = (self.scalar(role, low), self.scalar(role, high));
                math::clip(&mut self.body, x, low, high)
            }
            Op::Outer(a, b) => {
                let a = self.vector(role, a, Access::Post);
                let b = self.vector(role, b, Access::Pre);
                self.body.push(BodyOp::Mul(a, b))
            }
            Op::Splat(x, _) => self.scalar(role, x),
            other => unreachable!("{other:?} is an operand, not computed in a nest"),
        }
    }

    fn select(&mut self, role: Role, c: Value, a: Value, b: Value) -> Id {
        let mask = self.mask(role, c);
        if self.unit.constant(b) == Some(0.0) {
            let a = self.number(role, a);
            return self.body.push(BodyOp::Keep(mask, a));
        }
        if self.unit.constant(a) == Some(0.0) {
            let not = self.body.push(BodyOp::Not(mask));
            let b = self.number(role, b);
            return self.body.push(BodyOp::Keep(not, b));
        }
        let (a, b) = (self.number(role, a), self.number(role, b));
        self.body.push(BodyOp::Select(mask, a, b))
    }
}
