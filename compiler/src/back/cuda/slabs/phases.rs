//! A routine as launches: what can run side by side, and what must wait.
//!
//! Blocks of a launch do not wait for each other, so a nest that needs what other blocks do belongs to a later
//! launch. Nests over matrices, and vectors point by point, run in slabs: nests with the same number of columns form
//! a *track*, whose blocks each take their columns through all of its nests. Scalars and sums over vectors run in one
//! block for each row of the batch, which does all of them in order. A vector that is computed point by point can do
//! either: in a slab it waits for nothing if it needs only its own columns, in a row's block it waits for nothing if
//! it needs only what that block has done. Every nest gets the earliest launch that it can have.
//!
//! [`split`] looks for the choice of least cost: it begins with all such vectors in slabs, and with all of them in
//! rows, and turns one after the other for as long as that helps. The cost of a choice is that of [`Costs`].

use super::join::joined;
use super::touches::{Runner, Touch, columns, touches};
use crate::loops::{Cut, Effect, Extent, Nest, Routine};

/// Nests with the same columns, run by the same blocks: numbers of nests, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Track {
    pub(super) columns: usize,
    pub(super) nests: Vec<usize>,
}

impl Track {
    /// Its nests, as a block runs them.
    pub(super) fn joined(&self, routine: &Routine, cut: Cut) -> Vec<Nest> {
        joined(self.nests.iter().map(|k| &routine.nests[*k]), Some(cut))
    }
}

/// What one launch does.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Phase {
    /// In slabs.
    pub(super) tracks: Vec<Track>,
    /// In one block for each row of the batch.
    pub(super) row: Vec<usize>,
}

impl Phase {
    /// The nests of a row's block, as it runs them.
    pub(super) fn of_row(&self, routine: &Routine) -> Vec<Nest> {
        joined(self.row.iter().map(|k| &routine.nests[*k]), None)
    }
}

/// What launches are estimated to cost, in microseconds.
pub(super) trait Costs {
    /// One launch with these tracks, and these nests in a row's block.
    fn phase(&self, routine: &Routine, phase: &Phase) -> f64;
}

/// The launches of a routine that is cut.
pub(super) fn split(routine: &Routine, cut: Cut, costs: &dyn Costs) -> Vec<Phase> {
    let all: Vec<Vec<Touch>> = routine.nests.iter().map(|n| touches(n, cut)).collect();
    let meetings = meetings(routine, &all);
    let free: Vec<usize> = (0..routine.nests.len()).filter(|k| is_free(&routine.nests[*k])).collect();
    let judge = |runners: &[Runner]| {
        let phases = phases(routine, &meetings, runners);
        (phases.iter().map(|p| costs.phase(routine, p)).sum::<f64>(), phases)
    };
    let start = |kind: Runner| -> Vec<Runner> {
        let fixed = |n: &Nest| if in_row(n) { Runner::Row } else { Runner::Slabs };
        routine.nests.iter().map(|n| if is_free(n) { kind } else { fixed(n) }).collect()
    };
    let mut best: Option<(f64, Vec<Phase>)> = None;
    for kind in [Runner::Slabs, Runner::Row] {
        let mut runners = start(kind);
        let (mut cost, mut found) = judge(&runners);
        for k in &free {
            let other = if runners[*k] == Runner::Slabs { Runner::Row } else { Runner::Slabs };
            let before = std::mem::replace(&mut runners[*k], other);
            let (new, phases) = judge(&runners);
            match new < cost {
                true => (cost, found) = (new, phases),
                false => runners[*k] = before,
            }
        }
        if best.as_ref().is_none_or(|(least, _)| cost < *least) {
            best = Some((cost, found));
        }
    }
    best.map(|(_, phases)| phases).unwrap_or_default()
}

/// Whether a nest must run in a row's block.
fn in_row(nest: &Nest) -> bool {
    let whole = |e: &Effect| matches!(e, Effect::SumAll(..) | Effect::MaxAll(..));
    nest.extent == Extent::Scalar || nest.effects.iter().any(whole)
}

/// Whether a nest can run either way.
fn is_free(nest: &Nest) -> bool {
    matches!(nest.extent, Extent::Vector(_)) && !in_row(nest)
}

/// That a nest touches what an earlier one does.
struct Meeting {
    earlier: usize,
    /// Whether it is enough that both run in slabs with the same columns.
    is_by_column: bool,
}

/// By nest.
fn meetings(routine: &Routine, all: &[Vec<Touch>]) -> Vec<Vec<Meeting>> {
    let between = |earlier: usize, later: usize| {
        let pairs = || all[earlier].iter().flat_map(|a| all[later].iter().map(move |b| (a, b)));
        let mut met = pairs().filter(|(a, b)| a.meets(b)).peekable();
        met.peek()?;
        let same = columns(&routine.nests[earlier]) == columns(&routine.nests[later]);
        Some(Meeting { earlier, is_by_column: same && met.all(|(a, b)| a.is_of_same_block(b)) })
    };
    (0..all.len()).map(|k| (0..k).filter_map(|earlier| between(earlier, k)).collect()).collect()
}

/// The launches, if nests are run so.
fn phases(routine: &Routine, meetings: &[Vec<Meeting>], runners: &[Runner]) -> Vec<Phase> {
    let mut level: Vec<usize> = vec![];
    for (k, met) in meetings.iter().enumerate() {
        let after = |m: &Meeting| {
            let is_same_block = match (runners[m.earlier], runners[k]) {
                (Runner::Row, Runner::Row) => true,
                (Runner::Slabs, Runner::Slabs) => m.is_by_column,
                (Runner::Row, Runner::Slabs) | (Runner::Slabs, Runner::Row) => false,
            };
            level[m.earlier] + usize::from(!is_same_block)
        };
        let earliest = met.iter().map(after).max().unwrap_or(0);
        level.push(earliest);
    }
    let mut phases = vec![Phase::default(); level.iter().max().map_or(0, |l| l + 1)];
    for (k, nest) in routine.nests.iter().enumerate() {
        let phase = &mut phases[level[k]];
        match runners[k] {
            Runner::Row => phase.row.push(k),
            Runner::Slabs => match phase.tracks.iter_mut().find(|t| t.columns == columns(nest)) {
                Some(track) => track.nests.push(k),
                None => phase.tracks.push(Track { columns: columns(nest), nests: vec![k] }),
            },
        }
    }
    phases
}
