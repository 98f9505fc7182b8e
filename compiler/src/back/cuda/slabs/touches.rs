//! What a nest touches, and who does: which block of a launch, which thread of a block.
//!
//! One list serves two questions. Between blocks of a launch nobody waits, so nests of one launch may touch the
//! same element only in the same block: [`Touch::meets`] with [`Touch::is_of_same_block`]. Within a block a barrier
//! is needed where different threads touch it: [`Touch::is_of_same_thread`].

use crate::loops::{Access, Cut, Effect, Extent, Nest, Place, padded, slab_sums};
use std::ops::Range;

/// Who runs a nest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Runner {
    /// The blocks of the slabs, each its columns.
    Slabs,
    /// One block for each row of the batch.
    Row,
}

/// Which part of a nest touches an element.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Owner {
    /// Of a vector: who has the column.
    Column,
    /// Of a matrix with rows of this many elements: who has the column, and the thread that has the pre neuron.
    Cell { stride: usize, pre: usize },
    /// Of a vector, in a nest over a matrix: all threads of the column.
    Stretches,
    /// Anybody.
    Any,
}

/// Elements that a nest reads or writes.
#[derive(Clone, Debug)]
pub(super) struct Touch {
    place: Place,
    cells: Range<usize>,
    owner: Owner,
    writes: bool,
    /// Whether it is a sum to which all stretches of a column contribute, which is stored when the nest has ended.
    pub(super) is_late: bool,
}

impl Touch {
    fn new(place: Place, len: usize, owner: Owner, writes: bool) -> Touch {
        let cells = place.offset..place.offset + len;
        Touch { place: place.in_memory(), cells, owner, writes, is_late: false }
    }

    /// Whether both touch an element that one of them writes.
    pub(super) fn meets(&self, other: &Touch) -> bool {
        self.place.base == other.place.base
            && (self.writes || other.writes)
            && self.cells.start < other.cells.end
            && other.cells.start < self.cells.end
    }

    /// Of nests with the same columns, both run in slabs: whether whoever touches an element is in the same block.
    pub(super) fn is_of_same_block(&self, other: &Touch) -> bool {
        let by_column = |owner: Owner| match owner {
            Owner::Column | Owner::Stretches => Some(0),
            Owner::Cell { stride, .. } => Some(stride),
            Owner::Any => None,
        };
        self.place == other.place
            && by_column(self.owner).is_some()
            && by_column(self.owner) == by_column(other.owner)
    }

    /// Likewise, whether it is the same thread. A block of one stretch has but one thread for a column.
    pub(super) fn is_of_same_thread(&self, other: &Touch, stretches: usize) -> bool {
        let alone = |owner: Owner| matches!(owner, Owner::Column | Owner::Cell { .. });
        self.is_of_same_block(other)
            && (stretches == 1 || alone(self.owner) && alone(other.owner) && self.owner == other.owner)
    }
}

/// Columns of a nest.
pub(super) fn columns(nest: &Nest) -> usize {
    match nest.extent {
        Extent::Scalar => 1,
        Extent::Vector(n) => n,
        Extent::Matrix { post, .. } | Extent::Log { post, .. } => post,
    }
}

/// All that a nest touches.
pub(super) fn touches(nest: &Nest, cut: Cut) -> Vec<Touch> {
    if let Some(sums) = slab_sums(nest, cut) {
        let loads = nest.body.loads().map(|a| Touch::new(a.place(), columns(nest), Owner::Stretches, false));
        let totals = sums
            .iter()
            .map(|s| Touch { is_late: true, ..Touch::new(s.total, columns(nest), Owner::Column, true) });
        return loads.chain(totals).collect();
    }
    let loads = nest.body.loads().map(|a| operand(nest, a, false));
    let effects = nest.effects.iter().map(|effect| match (effect, nest.extent) {
        (Effect::Store(a, _) | Effect::Add(a, ..), _) => operand(nest, *a, true),
        (Effect::SumPre(p, ..), _) => {
            Touch { is_late: true, ..Touch::new(*p, columns(nest), Owner::Column, true) }
        }
        (Effect::SumPost(p, ..), Extent::Matrix { post, pre } | Extent::Log { post, pre }) => {
            Touch::new(*p, cut.slabs(post) * padded(pre), Owner::Any, true)
        }
        (Effect::SumPost(p, ..) | Effect::SumAll(p, ..) | Effect::MaxAll(p, _), _) => {
            Touch::new(*p, 1, Owner::Any, true)
        }
    });
    loads.chain(effects).collect()
}

fn operand(nest: &Nest, access: Access, writes: bool) -> Touch {
    let place = access.place();
    let (len, owner) = match (access, nest.extent) {
        (_, Extent::Scalar) | (Access::Scalar(_), _) => (1, Owner::Any),
        (_, Extent::Vector(n)) => (n, Owner::Column),
        (Access::Post(_), Extent::Matrix { post, .. } | Extent::Log { post, .. }) => (post, Owner::Stretches),
        (Access::Pre(_), Extent::Matrix { pre, .. } | Extent::Log { pre, .. }) => (pre, Owner::Any),
        (Access::Matrix(_), Extent::Matrix { post, pre } | Extent::Log { post, pre }) => {
            (padded(post) * pre, Owner::Cell { stride: padded(post), pre })
        }
    };
    Touch::new(place, len, owner, writes)
}
