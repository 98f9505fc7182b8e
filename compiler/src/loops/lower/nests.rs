//! Nests over scalars and vectors.

use super::{Draft, Role, Task, Unit};
use crate::ir::{Op, Shape, Value};
use crate::loops::emit::Emit;
use crate::loops::schedule::reduced_matrix;
use crate::loops::*;
use std::collections::BTreeSet;

impl Unit<'_> {
    /// The nests of one stage's vectors.
    pub(super) fn vector_nests(&self, stage: usize, role: Role, nests: &mut Vec<Nest>) {
        for draft in self.drafts.get(stage).map_or(&[][..], |d| d) {
            if let [Task::Compute(v)] = draft.tasks[..]
                && !self.is_elementwise(v)
                && !self.is_fused_sum(v)
            {
                self.single(role, v, nests);
            } else {
                nests.push(self.fused(role, draft));
            }
        }
    }

    fn fused(&self, role: Role, draft: &Draft) -> Nest {
        let mut inside = BTreeSet::new();
        for task in &draft.tasks {
            if let Task::Compute(v) = task
                && self.is_elementwise(*v)
            {
                inside.insert(*v);
            }
        }
        let mut emit = Emit::new(self, inside);
        let mut names = vec![];
        for task in &draft.tasks {
            match *task {
                Task::Compute(v) if self.is_fused_sum(v) => {
                    let place = self.place(role, v);
                    if let Op::SumAll(x) = self.f.at(v).op {
                        let (a, b) = emit.factors(role, x);
                        emit.effect(Effect::SumAll(place, a, b));
                    } else if let Op::MaxAll(x) = self.f.at(v).op {
                        let x = emit.number(role, x);
                        emit.effect(Effect::MaxAll(place, x));
                    }
                }
                Task::Compute(v) if self.loc.contains_key(&v) => {
                    let id = emit.number(role, v);
                    emit.effect(Effect::Store(self.vector_access(v, self.place(role, v)), id));
                    names.extend(self.f.at(v).name.clone());
                }
                Task::Compute(_) => {}
                Task::Copy(k) => {
                    let (v, loc) = self.copies[k];
                    let id = emit.copied(role, v);
                    emit.effect(Effect::Store(self.vector_access(v, self.resolve(role, loc)), id));
                }
                Task::Accumulate(k) => {
                    let (v, offset) = self.sums[k];
                    let id = emit.copied(role, v);
                    let place = Place { base: Base::Grads, offset };
                    emit.effect(Effect::Add(self.vector_access(v, place), id, None));
                }
            }
        }
        emit.finish(draft.extent, names.join(", "))
    }

    fn vector_access(&self, v: Value, place: Place) -> Access {
        match self.f.ty(v).shape {
            Shape::Scalar => Access::Scalar(place),
            _ => Access::Post(place),
        }
    }

    /// A task that is no elementwise work: a product with parameters, or moving parts of vectors.
    pub(super) fn single(&self, role: Role, v: Value, nests: &mut Vec<Nest>) {
        let op = self.f.at(v).op.clone();
        let name = self.f.at(v).name.clone().unwrap_or_default();
        if let Some(m) = reduced_matrix(self.f, &op) {
            let mut emit = Emit::new(self, BTreeSet::new());
            self.reduce(&mut emit, role, v);
            nests.push(emit.finish(self.extent(self.f.ty(m).shape), format!("product {name}")));
            return;
        }
        let place = self.place(role, v);
        let len = self.sizes.count(self.f.ty(v).shape);
        let zero = |nests: &mut Vec<Nest>| {
            let mut body = Body::default();
            let zero = body.constant(0.0);
            let effects = vec![Effect::Store(Access::Post(place), zero)];
            nests.push(Nest { extent: Extent::Vector(len), body, effects, label: "zero".to_owned() });
        };
        let copy = |nests: &mut Vec<Nest>, x: Value, at: usize| {
            let mut emit = Emit::new(self, BTreeSet::new());
            let id = emit.copied(role, x);
            let to = Place { offset: place.offset + at, ..place };
            emit.effect(Effect::Store(self.vector_access(x, to), id));
            nests.push(emit.finish(self.extent(self.f.ty(x).shape), format!("part of {name}")));
        };
        match op {
            Op::Concat(parts, _) => {
                let mut at = 0;
                for part in parts {
                    copy(nests, part, at);
                    at += self.sizes.count(self.f.ty(part).shape);
                }
            }
            Op::Pad { x, start, .. } => {
                zero(nests);
                copy(nests, x, self.sizes.of(start));
                // A copy whose length is no multiple of the lanes runs over its end by the rest of
                // a register; what lies there is zero.
                let part = self.sizes.count(self.f.ty(x).shape);
                let end = self.sizes.of(start) + part;
                if !part.is_multiple_of(LANES) && end < len {
                    let mut body = Body::default();
                    let zero = body.constant(0.0);
                    let to = Place { offset: place.offset + end, ..place };
                    let effects = vec![Effect::Store(Access::Post(to), zero)];
                    let extent = Extent::Vector((len - end).min(LANES));
                    nests.push(Nest { extent, body, effects, label: "zero".to_owned() });
                }
            }
            Op::OneHot { x, index, .. } => {
                zero(nests);
                copy(nests, x, index);
            }
            other => unreachable!("{other:?} is no task"),
        }
    }

    /// Adds a reduction to a matrix nest.
    pub(super) fn reduce(&self, emit: &mut Emit<'_>, role: Role, v: Value) {
        let place = self.place(role, v);
        match self.f.at(v).op {
            Op::Contract(m, x) => {
                let m = emit.number(role, m);
                let x = emit.vector(role, x, Access::Pre);
                emit.effect(Effect::SumPre(place, m, Some(x)));
            }
            Op::ContractT(m, x) => {
                let m = emit.number(role, m);
                let x = emit.vector(role, x, Access::Post);
                emit.effect(Effect::SumPost(place, m, Some(x)));
            }
            Op::SumPre(m) => {
                let (a, b) = emit.factors(role, m);
                emit.effect(Effect::SumPre(place, a, b));
            }
            Op::SumPost(m) => {
                let (a, b) = emit.factors(role, m);
                emit.effect(Effect::SumPost(place, a, b));
            }
            Op::SumAll(m) => {
                let (a, b) = emit.factors(role, m);
                emit.effect(Effect::SumAll(place, a, b));
            }
            Op::MaxAll(m) => {
                let m = emit.number(role, m);
                emit.effect(Effect::MaxAll(place, m));
            }
            ref other => unreachable!("{other:?} reduces no matrix"),
        }
    }
}
