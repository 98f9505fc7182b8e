//! Nests over vectors that follow each other in a track, or in a row's block, as one.
//!
//! A thread has the same columns in all of them. What one nest stores at a column and the next one loads
//! there is a value that the thread has: joined, the second need not wait for memory, and what both load is loaded
//! once, all of it before anything is computed. Every operation stays, and so do all bits and all that is stored.
//!
//! In a track sums of slabs are joined with each other alone: all threads of a block take part in them ([`super::sweep`]). In a row's block a
//! sum over a vector can end a nest, whose results are there when it has ended.

use super::touches::touches;
use crate::loops::body::{Body, BodyOp, Id};
use crate::loops::{Access, Cut, Effect, Extent, LANES, Nest, slab_sums};

/// The nests of a track that is cut so, or of a row's block, those over vectors joined.
pub(super) fn joined<'n>(nests: impl Iterator<Item = &'n Nest>, cut: Option<Cut>) -> Vec<Nest> {
    let mut found: Vec<Nest> = vec![];
    for nest in nests {
        let place = found.iter().rposition(|earlier| can_join(earlier, nest, cut));
        let apart = |nest: &Nest, others: &[Nest]| others.iter().all(|other| !meet(nest, other, cut));
        match place {
            // The later one comes up to the earlier one, or the earlier one down to it.
            Some(k) if apart(nest, &found[k + 1..]) => append(&mut found[k], nest),
            Some(k) if apart(&found[k], &found[k + 1..]) => {
                let mut earlier = found.remove(k);
                append(&mut earlier, nest);
                found.push(earlier);
            }
            _ => found.push(nest.clone()),
        }
    }
    found
}

/// Whether both touch an element that one of them writes.
fn meet(a: &Nest, b: &Nest, cut: Option<Cut>) -> bool {
    // In a row's block there are no sums over post.
    let cut = cut.unwrap_or(Cut { columns: LANES, stretches: 1 });
    let (a, b) = (touches(a, cut), touches(b, cut));
    a.iter().any(|x| b.iter().any(|y| x.meets(y)))
}

/// Whether the second nest can follow the first in the same loop over columns. What the first adds to memory, the second
/// would have to read again.
fn can_join(first: &Nest, second: &Nest, cut: Option<Cut>) -> bool {
    let is_of_slabs = |n: &Nest| cut.is_some_and(|cut| slab_sums(n, cut).is_some());
    let is_vector = |n: &Nest| matches!(n.extent, Extent::Vector(_));
    let ends = |e: &Effect| matches!(e, Effect::SumAll(..) | Effect::MaxAll(..));
    let added = |a: &Access| {
        first.effects.iter().any(|e| matches!(e, Effect::Add(to, ..) if to.place() == a.place()))
    };
    first.extent == second.extent
        && is_vector(first)
        && is_vector(second)
        && is_of_slabs(first) == is_of_slabs(second)
        && !first.effects.iter().any(ends)
        && !second.body.loads().any(|a| added(&a))
}

/// Appends a nest.
fn append(nest: &mut Nest, second: &Nest) {
    let mut ids: Vec<Id> = vec![];
    for op in &second.body.ops {
        let known = match op {
            BodyOp::Load(access) => stored(nest, *access).or_else(|| loaded(&nest.body, *access)),
            _ => None,
        };
        let id = known.unwrap_or_else(|| nest.body.push(op.map(|id| ids[id.index()])));
        ids.push(id);
    }
    nest.effects.extend(second.effects.iter().map(|e| e.map(|place| place, |id| ids[id.index()])));
    let labels = [nest.label.as_str(), second.label.as_str()];
    nest.label = labels.into_iter().filter(|l| !l.is_empty()).collect::<Vec<_>>().join("; ");
}

/// The value that was stored last where an operand is loaded.
fn stored(nest: &Nest, access: Access) -> Option<Id> {
    nest.effects.iter().rev().find_map(|e| match e {
        Effect::Store(to, v) if *to == access => Some(*v),
        _ => None,
    })
}

/// The operand, if it has been loaded.
fn loaded(body: &Body, access: Access) -> Option<Id> {
    let place = body.ops.iter().position(|op| *op == BodyOp::Load(access));
    place.map(|k| Id(k as u32))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::loops::{Base, Place};

    const CUT: Option<Cut> = Some(Cut { columns: 8, stretches: 2 });

    fn at(offset: usize) -> Access {
        Access::Post(Place { base: Base::Frame(0), offset })
    }

    /// Stores the sum of two operands.
    fn add(from: [usize; 2], to: usize) -> Nest {
        let mut body = Body::default();
        let [a, b] = from.map(|k| body.push(BodyOp::Load(at(k))));
        let sum = body.push(BodyOp::Mul(a, b));
        let effects = vec![Effect::Store(at(to), sum)];
        Nest { extent: Extent::Vector(9), body, effects, label: String::new() }
    }

    #[test]
    fn what_was_stored_or_loaded_is_known() {
        let (first, second) = (add([0, 16], 32), add([32, 16], 48));
        let all = joined([&first, &second].into_iter(), CUT);
        let [nest] = &all[..] else { panic!("one nest") };
        assert_eq!(nest.body.loads().count(), 2);
        assert_eq!(nest.effects.len(), 2);
        assert_eq!(nest.body.ops[3], BodyOp::Mul(Id(2), Id(1)));
    }

    #[test]
    fn what_was_added_is_read_again() {
        let mut first = add([0, 16], 32);
        let Effect::Store(to, v) = first.effects[0] else { panic!("it stores") };
        first.effects[0] = Effect::Add(to, v, None);
        assert_eq!(joined([&first, &add([32, 0], 48)].into_iter(), CUT).len(), 2);
        assert_eq!(joined([&first, &add([16, 0], 48)].into_iter(), CUT).len(), 1);
    }
}
