//! Products that nothing of their call needs wait for the next call.
//!
//! Going backward a step often ends with a product of parameters: the cotangent of a vector, from which the step before
//! it will begin. Whoever runs a routine in several launches, each of which waits for the one before, has a launch for
//! that product, and one more where its parts are added up. But the next call begins with a sweep over the matrices
//! that does not need the product, either: [`postpone`] moves it there, where both run side by side.
//!
//! ```text
//! routine backward.step                        routine backward.step
//!                                                nest matrix [9,4] "product"
//!                                                  …
//!                                                  sum_post adjoint[1]+80 = %0 * %1
//!   nest matrix [4,4] "sum %20"          →       nest matrix [4,4] "sum %20"
//!   …                                            …
//!   nest matrix [9,4] "product"
//!     …
//!     sum_post adjoint[0]+80 = %0 * %1
//! ```
//!
//! What stood last in `first` and in `step` stands first in `step` and in `flush`, a step later in all its places. With
//! a product go those nests behind it that touch what it touches, and those before it that compute its vectors point by
//! point for nobody else. Moved is only what lives in frames, parameters and
//! gradients, which the next call finds as they were; nothing of it reads or writes what the nests that it passes
//! write. So every sum keeps its order, and all bits stay. Costs time in proportion to the square of a routine's nests.

use super::body::{Body, BodyOp, Id};
use super::{Access, Base, Effect, Extent, Nest, Place, Program, Routine, padded};
use std::ops::Range;

/// The program with such products going backward moved to the next call; nothing if there are none.
#[must_use]
pub fn postpone(program: &Program) -> Option<Program> {
    if !program.merged.1 {
        return None;
    }
    let mut program = program.clone();
    let steps = &mut program.backward;
    set_sums_apart(&mut steps.first);
    set_sums_apart(&mut steps.step);
    let moved = movable(&steps.step);
    let late: Vec<Nest> = moved.iter().map(|k| steps.step.nests[*k].clone()).collect();
    // The last step leaves the same to the one before it.
    let position = |nest: &Nest| steps.first.nests.iter().position(|n| n == nest);
    let found: Option<Vec<usize>> = late.iter().map(position).collect();
    let found = found.filter(|f| !f.is_empty() && f.is_sorted() && nothing_behind(&steps.first, f))?;
    let next: Option<Vec<Nest>> = late.iter().map(a_step_later).collect();
    let next = next?;
    remove(&mut steps.first, &found);
    remove(&mut steps.step, &moved);
    for routine in [&mut steps.step, &mut steps.flush] {
        routine.nests.splice(0..0, next.clone());
    }
    Some(program)
}

/// Sums over vectors that are stored get a nest of their own, which can wait where the others cannot.
fn set_sums_apart(routine: &mut Routine) {
    routine.nests = std::mem::take(&mut routine.nests).into_iter().flat_map(sums_apart).collect();
}

fn sums_apart(mut nest: Nest) -> Vec<Nest> {
    let (sums, rest): (Vec<Effect>, Vec<Effect>) = nest.effects.iter().cloned().partition(is_sum);
    let stored = |v: Id| {
        rest.iter().find_map(|e| match e {
            Effect::Store(to @ Access::Post(_), value) if *value == v => Some(*to),
            _ => None,
        })
    };
    let mut body = Body::default();
    let mut load = |v: Id| stored(v).map(|from| body.push(BodyOp::Load(from)));
    let effects: Option<Vec<Effect>> = sums
        .iter()
        .map(|sum| match sum {
            Effect::SumAll(total, v, w) => {
                let w = w.map(|w| load(w).ok_or(())).transpose().ok()?;
                Some(Effect::SumAll(*total, load(*v)?, w))
            }
            Effect::MaxAll(total, v) => Some(Effect::MaxAll(*total, load(*v)?)),
            other => Some(other.clone()),
        })
        .collect();
    match effects.filter(|e| !e.is_empty() && !rest.is_empty()) {
        None => vec![nest],
        Some(effects) => {
            let sums = Nest { extent: nest.extent, body, effects, label: "sum".to_owned() };
            nest.effects = rest;
            vec![nest, sums]
        }
    }
}

fn remove(routine: &mut Routine, moved: &[usize]) {
    let mut k = 0..;
    routine.nests.retain(|_| k.next().is_some_and(|k| !moved.contains(&k)));
}

/// The nests that can wait, in order: products of parameters, sums over vectors and scalars behind which nothing stays
/// that touches what they touch, and vectors that such products alone need.
fn movable(routine: &Routine) -> Vec<usize> {
    let nests = &routine.nests;
    let mut moved: Vec<usize> = vec![];
    for k in (0..nests.len()).rev() {
        let nest = &nests[k];
        let is_last = match nest.extent {
            Extent::Matrix { .. } => !nest.is_sweep(),
            Extent::Scalar => true,
            Extent::Vector(_) => {
                nest.effects.iter().all(is_sum) || moved.iter().any(|m| feeds(nest, &nests[*m]))
            }
            Extent::Log { .. } => false,
        };
        let mut behind = (k + 1..nests.len()).filter(|later| !moved.contains(later));
        if is_last && a_step_later(nest).is_some() && behind.all(|later| !conflict(nest, &nests[later])) {
            moved.push(k);
        }
    }
    moved.reverse();
    // For scalars alone it is not worth it: they need no launch of their own.
    let is_worth_it = |k: &usize| nests[*k].extent != Extent::Scalar;
    if moved.iter().any(is_worth_it) { moved } else { vec![] }
}

fn is_sum(effect: &Effect) -> bool {
    matches!(effect, Effect::SumAll(..) | Effect::MaxAll(..))
}

/// Whether a nest computes a vector for the columns of a product, and can wait with it.
fn feeds(nest: &Nest, product: &Nest) -> bool {
    let Extent::Matrix { post, .. } = product.extent else { return false };
    nest.extent == Extent::Vector(post) && !nest.effects.iter().any(is_sum) && conflict(nest, product)
}

/// Whether no nest behind these, but for themselves, touches what they touch.
fn nothing_behind(routine: &Routine, moved: &[usize]) -> bool {
    let nests = &routine.nests;
    let behind = |k: usize| (k + 1..nests.len()).filter(|later| !moved.contains(later));
    moved.iter().all(|k| behind(*k).all(|later| !conflict(&nests[*k], &nests[later])))
}

/// The nest as the next call runs it; nothing if that does not find what the nest needs.
fn a_step_later(nest: &Nest) -> Option<Nest> {
    let shifted = |place: Place| -> Option<Place> {
        let base = match place.base {
            Base::Frame(k) => Base::Frame(k + 1),
            Base::Adjoint(k) => Base::Adjoint(k + 1),
            Base::Params | Base::Grads => place.base,
            Base::Scratch | Base::Carry | Base::Next | Base::Ends | Base::Snapshot(_) => return None,
            Base::Log | Base::LogBar => return None,
        };
        Base::ALL.contains(&base).then_some(Place { base, ..place })
    };
    let mut nest = nest.clone();
    for op in &mut nest.body.ops {
        if let BodyOp::Load(access) = op {
            let place = shifted(access.place())?;
            *access = access.map(|_| place);
        }
    }
    for effect in &mut nest.effects {
        let place = shifted(effect.place())?;
        *effect = effect.map(|_| place, |v| v);
    }
    Some(nest)
}

/// Whether both touch an element that one of them writes.
fn conflict(a: &Nest, b: &Nest) -> bool {
    let (a, b) = (touches(a), touches(b));
    let meets = |x: &Touch, y: &Touch| {
        (x.writes || y.writes)
            && x.base == y.base
            && x.cells.start < y.cells.end
            && y.cells.start < x.cells.end
    };
    a.iter().any(|x| b.iter().any(|y| meets(x, y)))
}

/// Elements that a nest reads or writes.
struct Touch {
    base: Base,
    cells: Range<usize>,
    writes: bool,
}

fn touches(nest: &Nest) -> Vec<Touch> {
    let touch = |place: Place, len: usize, writes: bool| {
        let place = place.in_memory();
        Touch { base: place.base, cells: place.offset..place.offset + len, writes }
    };
    let len = |access: Access| match (access, nest.extent) {
        (Access::Scalar(_), _) | (_, Extent::Scalar) => 1,
        (_, Extent::Vector(n)) => n,
        (Access::Post(_), Extent::Matrix { post, .. } | Extent::Log { post, .. }) => post,
        (Access::Pre(_), Extent::Matrix { pre, .. } | Extent::Log { pre, .. }) => pre,
        (Access::Matrix(_), Extent::Matrix { post, pre } | Extent::Log { post, pre }) => padded(post) * pre,
    };
    let loads = nest.body.loads().map(|a| touch(a.place(), len(a), false));
    let effects = nest.effects.iter().map(|effect| match effect {
        Effect::Store(a, _) | Effect::Add(a, ..) => touch(a.place(), len(*a), true),
        Effect::SumPre(p, ..) => touch(*p, len(Access::Post(*p)), true),
        Effect::SumPost(p, ..) => touch(*p, len(Access::Pre(*p)), true),
        Effect::SumAll(p, ..) | Effect::MaxAll(p, _) => touch(*p, 1, true),
    });
    loads.chain(effects).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::loops::{by_columns, routines, verify};

    fn program(text: &str, n: usize) -> Program {
        let model = crate::check::check(text).models.into_iter().next().expect("a model");
        let sizes = model.axes.named.iter().map(|a| (a.name.clone(), n)).collect();
        let sizes = crate::ir::Sizes::bind(&model.axes, &sizes).expect("sizes");
        by_columns(&crate::stages::program(&model, &sizes).expect("a program"))
    }

    #[test]
    fn the_gates_of_a_plastic_lstm_wait() {
        let before = program(include_str!("../../../specs/plastic_lstm/plastic.bpm"), 6);
        let after = postpone(&before).expect("its step ends with the product of its gates");
        assert_eq!(verify(&after), Ok(()));
        let gates = Extent::Matrix { post: 18, pre: 6 };
        let at = |r: &Routine| r.nests.iter().position(|n| n.extent == gates);
        let places = |p: &Program| [&p.backward.first, &p.backward.step, &p.backward.flush].map(at);
        let [first, step, flush] = places(&before);
        assert!(first > Some(3) && step > Some(3) && flush.is_none());
        // Before them comes what they multiply; with them wait a sum and a gradient.
        assert_eq!(places(&after), [None, Some(2), Some(2)]);
        for (k, (old, new)) in routines(&before).into_iter().zip(routines(&after)).enumerate() {
            assert_eq!(old != new, (7..10).contains(&k), "routine {k}");
        }
    }

    /// What the step goes on with is not moved, nor is anything where there are no such products.
    #[test]
    fn what_is_needed_stays() {
        for text in [
            include_str!("../../../specs/backpropamine/retroactive.bpm"),
            include_str!("../../../specs/backpropamine/plain.bpm"),
        ] {
            assert!(postpone(&program(text, 6)).is_none());
        }
    }
}
