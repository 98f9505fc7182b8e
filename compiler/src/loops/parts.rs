//! Sweeps over matrices that have nothing to do with each other.
//!
//! All matrices of a shape are swept by one nest, so that a value which several of them need is computed once.
//! Matrices that share nothing, as those of different layers, gain nothing from that. Where several rows step
//! together it costs: their sums compete for registers, and their streams for the cache. [`parts`] makes a nest
//! for each group of matrices that meet in some value. Every effect keeps its operations, hence its bits.

use super::body::{Body, BodyOp, Id};
use super::{Access, Base, Effect, Extent, Nest, Place};
use std::collections::{BTreeMap, BTreeSet};

/// Cuts a nest over matrices into parts without a common matrix, in the order of their first effects.
pub(super) fn parts(nest: &Nest) -> Vec<Nest> {
    let groups = match nest.extent {
        Extent::Matrix { .. } if !reads_own_sums(nest) => groups(nest),
        _ => vec![],
    };
    match groups.len() {
        0 | 1 => vec![nest.clone()],
        n => groups.iter().enumerate().map(|(k, effects)| part(nest, effects, (k + 1, n))).collect(),
    }
}

/// Whether a nest loads a vector or scalar that it writes: the order of its parts would matter.
fn reads_own_sums(nest: &Nest) -> bool {
    let vector = |a: Access| if let Access::Matrix(_) = a { None } else { Some(a.place()) };
    let loads: BTreeSet<Place> = nest.body.loads().filter_map(vector).collect();
    let written = nest.effects.iter().filter(|e| matrix(e).is_none()).map(Effect::place);
    written.into_iter().any(|place| loads.contains(&place))
}

/// The matrix that an effect writes.
fn matrix(effect: &Effect) -> Option<Place> {
    match effect {
        Effect::Store(Access::Matrix(p), _) | Effect::Add(Access::Matrix(p), ..) => Some(*p),
        _ => None,
    }
}

/// Effects that meet in a matrix, directly or through others. Those without any are with the first.
fn groups(nest: &Nest) -> Vec<Vec<usize>> {
    let mut group: Vec<usize> = (0..nest.effects.len()).collect();
    let mut owner: BTreeMap<Place, usize> = BTreeMap::new();
    for (k, effect) in nest.effects.iter().enumerate() {
        let loads = slice(&nest.body, effect).into_iter().filter_map(|id| match nest.body.at(id) {
            BodyOp::Load(Access::Matrix(p)) => Some(p),
            _ => None,
        });
        let mut places: Vec<Place> = loads.chain(matrix(effect)).collect();
        if places.is_empty() {
            places.push(Place { base: Base::Scratch, offset: 0 });
            join(&mut group, k, 0);
        }
        for place in places {
            let other = *owner.entry(place).or_insert(k);
            join(&mut group, k, other);
        }
    }
    let mut found: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
    for (k, g) in group.into_iter().enumerate() {
        found.entry(g).or_default().push(k);
    }
    found.into_values().collect()
}

/// Makes one group of two; its number is that of its first effect.
fn join(group: &mut [usize], a: usize, b: usize) {
    let (a, b) = (group[a], group[b]);
    group.iter_mut().filter(|g| **g == a.max(b)).for_each(|g| *g = a.min(b));
}

/// What an effect needs, in order.
fn slice(body: &Body, effect: &Effect) -> BTreeSet<Id> {
    let mut todo = effect.operands();
    let mut found = BTreeSet::new();
    while let Some(id) = todo.pop() {
        if found.insert(id) {
            todo.extend(body.at(id).operands());
        }
    }
    found
}

fn part(nest: &Nest, effects: &[usize], (number, count): (usize, usize)) -> Nest {
    let needed: BTreeSet<Id> = effects.iter().flat_map(|k| slice(&nest.body, &nest.effects[*k])).collect();
    let mut body = Body::default();
    let mut ids: BTreeMap<Id, Id> = BTreeMap::new();
    for id in needed {
        let op = nest.body.at(id).map(|o| ids[&o]);
        ids.insert(id, body.push(op));
    }
    let effects = effects.iter().map(|k| nest.effects[*k].map(|p| p, |id| ids[&id])).collect();
    let label = format!("{}, part {number} of {count}", nest.label);
    Nest { extent: nest.extent, body, effects, label }
}
