//! Where a kernel needs a barrier between two nests.
//!
//! A thread sees what it has written itself. It needs a barrier to see what others have written, to write
//! where others may still read, and to use shared memory that others may still read. Columns belong to the
//! same thread in every nest, and scalar nests to the first thread, so many nests can follow each other
//! without one. Every barrier that is left is needed: the tests leave out each of them in turn.

use super::nest::{group, has_terms, is_in_stretches, sums_rows};
use crate::loops::{Access, Effect, Extent, Nest, Place, padded};
use std::ops::Range;

/// Which thread touches an element.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Thread {
    /// That of the column, counted from the start of the place in rows of this many elements (vectors: 0).
    Column(usize),
    /// The first one.
    First,
    /// Any.
    Any,
}

/// Elements that a nest reads or writes.
#[derive(Clone, Debug)]
pub(super) struct Touch {
    place: Place,
    cells: Range<usize>,
    thread: Thread,
    pub(super) writes: bool,
}

impl Touch {
    pub(super) fn new(place: Place, len: usize, thread: Thread, writes: bool) -> Touch {
        Touch { place: place.in_memory(), cells: place.offset..place.offset + len, thread, writes }
    }

    /// Whether two threads may touch the same element, at least one of them writing.
    pub(super) fn conflicts(&self, other: &Touch) -> bool {
        let is_own = match (self.thread, other.thread) {
            (Thread::Column(a), Thread::Column(b)) => a == b && self.place == other.place,
            (Thread::First, Thread::First) => true,
            _ => false,
        };
        self.overlaps(other) && (self.writes || other.writes) && !is_own
    }

    /// Whether both touch the same element.
    pub(super) fn overlaps(&self, other: &Touch) -> bool {
        self.place.base == other.place.base
            && self.cells.start < other.cells.end
            && other.cells.start < self.cells.end
    }
}

/// What a nest touches.
#[derive(Default)]
pub(super) struct Touches {
    /// Before its first barrier, if it has one.
    pub(super) early: Vec<Touch>,
    /// After its last barrier.
    pub(super) late: Vec<Touch>,
    pub(super) has_barrier: bool,
    pub(super) uses_shared: bool,
    /// Whether shared memory is read after its last barrier.
    pub(super) leaves_shared: bool,
}

/// What has happened since the last barrier.
#[derive(Default)]
pub(super) struct Barriers {
    pending: Vec<Touch>,
    shared: bool,
}

impl Barriers {
    /// Whether a barrier is needed before this nest; then the nest is the last that has happened.
    pub(super) fn before(&mut self, nest: &Nest, threads: usize) -> bool {
        let touches = touches(nest, threads);
        let after = if touches.has_barrier { &[][..] } else { &touches.late[..] };
        let mut now = touches.early.iter().chain(after);
        let needed =
            now.any(|t| self.pending.iter().any(|p| p.conflicts(t))) || self.shared && touches.uses_shared;
        if needed || touches.has_barrier {
            self.pending.clear();
            self.shared = false;
        }
        if !touches.has_barrier {
            self.pending.extend(touches.early);
        }
        self.pending.extend(touches.late);
        self.shared |= touches.leaves_shared;
        needed
    }
}

pub(super) fn touches(nest: &Nest, threads: usize) -> Touches {
    let mut early: Vec<Touch> = nest.body.loads().map(|a| touch(nest, a, false)).collect();
    let mut late = vec![];
    let rows = sums_rows(nest);
    let maxima = nest.effects.iter().any(|e| matches!(e, Effect::MaxAll(..)));
    let mut totals = 0;
    for effect in &nest.effects {
        match (effect, nest.extent) {
            (Effect::Store(a, _) | Effect::Add(a, ..), _) => early.push(touch(nest, *a, true)),
            (Effect::SumPre(p, ..), Extent::Matrix { post, .. } | Extent::Log { post, .. }) => {
                late.push(Touch::new(*p, post, Thread::Column(0), true));
            }
            // These lie between two barriers of the nest.
            (Effect::SumPost(..), _) => {}
            (Effect::SumAll(p, ..) | Effect::MaxAll(p, _), extent) => {
                let by_first = !matches!(extent, Extent::Vector(_)) || group(totals, threads) == 0;
                let thread = if by_first { Thread::First } else { Thread::Any };
                late.push(Touch::new(*p, 1, thread, true));
                totals += 1;
            }
            (Effect::SumPre(..), Extent::Scalar | Extent::Vector(_)) => {}
        }
    }
    let has_barrier = has_terms(nest) || maxima;
    let is_vector = matches!(nest.extent, Extent::Vector(_));
    let leaves_shared = if is_vector { has_barrier && !is_in_stretches(nest, threads) } else { maxima };
    Touches { early, late, has_barrier: has_barrier || rows, uses_shared: has_barrier, leaves_shared }
}

/// Who touches an operand.
fn touch(nest: &Nest, access: Access, writes: bool) -> Touch {
    let place = access.place();
    let (len, thread) = match (access, nest.extent) {
        (_, Extent::Scalar) => (1, Thread::First),
        (Access::Scalar(_), _) => (1, Thread::Any),
        (_, Extent::Vector(n)) => (n, Thread::Column(0)),
        (Access::Post(_), Extent::Matrix { post, .. } | Extent::Log { post, .. }) => {
            (post, Thread::Column(0))
        }
        (Access::Pre(_), Extent::Matrix { pre, .. } | Extent::Log { pre, .. }) => (pre, Thread::Any),
        (Access::Matrix(_), Extent::Matrix { post, pre } | Extent::Log { post, pre }) => {
            (padded(post) * pre, Thread::Column(padded(post)))
        }
    };
    Touch::new(place, len, thread, writes)
}
