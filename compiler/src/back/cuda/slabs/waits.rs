//! Where a block of a slab needs a barrier between two nests.
//!
//! As [`super::super::barriers`], for the threads of a slab: a thread has its column, and within it its stretch of
//! pre neurons, or of a vector the rows of the batch of its stretch's number.

use super::touches::{Touch, touches};
use crate::loops::{Cut, Nest};

/// What has happened since the last barrier.
#[derive(Default)]
pub(super) struct Waits {
    pending: Vec<Touch>,
    /// Whether shared memory may still be read.
    shared: bool,
}

impl Waits {
    /// Whether a barrier is needed before this nest; then the nest is the last that has happened.
    pub(super) fn before(&mut self, nest: &Nest, cut: Cut) -> bool {
        let (late, early): (Vec<Touch>, Vec<Touch>) = touches(nest, cut).into_iter().partition(|t| t.is_late);
        // Sums over pre of several stretches meet at a barrier of their own.
        let has_barrier = cut.stretches > 1 && !late.is_empty();
        let conflicts = |p: &Touch, t: &Touch| p.meets(t) && !p.is_of_same_thread(t, cut.stretches);
        let behind = if has_barrier { &[][..] } else { &late[..] };
        let mut now = early.iter().chain(behind);
        let needed = now.any(|t| self.pending.iter().any(|p| conflicts(p, t))) || self.shared && has_barrier;
        if needed || has_barrier {
            self.pending.clear();
        }
        if !has_barrier {
            self.pending.extend(early);
        }
        self.pending.extend(late);
        self.shared = has_barrier || self.shared && !needed;
        needed
    }
}
