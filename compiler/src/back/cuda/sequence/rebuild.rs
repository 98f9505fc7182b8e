//! How the matrix states of earlier steps come back while a sequence runs backward.
//!
//! # Two ways
//!
//! **Through memory.** A segment is replayed once from its checkpoint, every state of it written to snapshots in the
//! device's memory, and read again by the adjoints. One replay per step; but each state then travels three times
//! per step (read and written by the replay, read by the adjoint): 12 bytes, as much as kernels of single steps move
//! backward. For two matrices of 256 by 256 and 64 rows that is 100 MB, 34 µs at 3 TB/s, where all else of a step
//! takes about 10.
//!
//! **On the chip.** No state but checkpoints goes to memory. For every step the states are rebuilt from the nearest
//! state that was saved before it: a checkpoint in memory, or one of a few *slots* in shared memory. A write
//! of a plastic matrix needs vectors of its step and its own element alone, so that every thread replays its elements,
//! eight rows at a time in registers, without any barrier. On the way a slot is filled where that saves most
//! ([`Schedule`]): the known optimum of checkpointing with few slots (Griewank and Walther 2000, algorithm 799). With
//! segments of eight steps, a step costs 3.5 replays without slots, 1.75 with one, 1.4 with two; a replay of
//! the rules of the library is 3 to 8 operations per element, an adjoint 14 to 30.
//!
//! # Why states are not inverted
//!
//! `S' = clip(S + g)` and `S' = a S + g` can be run backward: `S = S' - g`, `S = (S' - g) / a`, where elements that
//! were clipped come from a log. That takes one inversion per step, 3 to 5 operations and a test of a mask. It also
//! takes a replay that makes the log, or a forward pass that does (then environments, which step, need another way);
//! two bits per element and step through memory, and four bytes for each element that is clipped; a bound on
//! `a` to the power of the interval, which a learned rate breaks while it is learned; and a second way for when a
//! log overflows. A replay and an inversion together cost what 1.75 replays cost. What is replayed has the
//! bits that it had going forward, whatever the rule, its rates and its clips: so states are replayed.

use super::homes::Shape;
use super::routines;
use crate::loops::plan::usual_interval;
use crate::loops::{Access, Base, Effect, Extent, Nest, Place, Program};
use std::collections::BTreeSet;

/// Rows of a thread that are rebuilt together.
pub(super) const ROWS: usize = 8;

/// Slots, at most.
pub(super) const MOST_SLOTS: usize = 3;

/// Steps between checkpoints, unless memory forbids it.
const INTERVAL: usize = 8;

/// Lengths for which the best place of the next slot is known.
const LONGEST: usize = 64;

/// How states come back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Rebuild {
    /// Through memory, and why.
    Memory(String),
    /// On the chip, with so many slots.
    Chip(usize),
}

/// A state that adjoints read: steps after the one before which it is (0 or 1), and where it lies among the states.
pub(super) type Version = (i8, usize);

/// Matrices of one shape: they are rebuilt together.
#[derive(Clone, Debug)]
pub(super) struct Group {
    /// Receiving and sending neurons.
    pub(super) extent: (usize, usize),
    /// Where its matrices lie among the states.
    pub(super) offsets: Vec<usize>,
    /// Their writes, as a replay has them: from `Snapshot(0)` to `Snapshot(1)`.
    pub(super) nests: Vec<Nest>,
    /// What adjoints read of them.
    pub(super) versions: Vec<Version>,
}

impl Group {
    /// Floats of shared memory of a slot.
    pub(super) fn slot(&self, threads: usize, cluster: usize) -> usize {
        let (post, pre) = self.extent;
        let each = Shape::new(post, pre, threads, cluster).map_or(0, |s| s.len());
        each * self.offsets.len()
    }

    /// Whether a step more than to the step itself is needed.
    pub(super) fn reads_after(&self) -> bool {
        self.versions.iter().any(|(k, _)| *k == 1)
    }
}

/// What must be rebuilt, by shape.
///
/// # Errors
/// Why it cannot be done on the chip.
pub(super) fn groups(program: &Program) -> Result<Vec<Group>, String> {
    let versions = versions(program)?;
    let mut found: Vec<Group> = vec![];
    for m in program.matrices.iter().flatten() {
        let extent = (m.post, m.pre);
        match found.iter_mut().find(|g| g.extent == extent) {
            Some(group) => group.offsets.push(m.offset),
            None => found.push(Group { extent, offsets: vec![m.offset], nests: vec![], versions: vec![] }),
        }
    }
    for nest in &program.replay.nests {
        let Extent::Matrix { post, pre } = nest.extent else {
            return Err("a replay is no sweep over matrices".to_owned());
        };
        let group = found.iter_mut().find(|g| g.extent == (post, pre));
        group.ok_or("a replay writes no state")?.nests.push(nest.clone());
    }
    for group in &mut found {
        group.versions = versions.iter().filter(|(_, o)| group.offsets.contains(o)).copied().collect();
        stands_alone(&group.nests)?;
    }
    found.retain(|g| !g.versions.is_empty());
    Ok(found)
}

/// The states that adjoints read.
fn versions(program: &Program) -> Result<BTreeSet<Version>, String> {
    let mut found = BTreeSet::new();
    let nests = routines(program, true).into_iter().flat_map(|r| &r.nests);
    for access in nests.flat_map(|n| n.body.loads()) {
        match (access, access.place().base) {
            (Access::Matrix(p), Base::Snapshot(k @ (0 | 1))) => {
                found.insert((k, p.offset));
            }
            (_, Base::Snapshot(_)) => return Err("an adjoint reads the states two steps later".to_owned()),
            _ => {}
        }
    }
    Ok(found)
}

/// Whether a thread can do writes for its elements alone, one after the other, in place.
fn stands_alone(nests: &[Nest]) -> Result<(), String> {
    let mut written: BTreeSet<usize> = BTreeSet::new();
    for nest in nests {
        for access in nest.body.loads() {
            let Place { base, offset } = access.place();
            match (access, base) {
                (Access::Matrix(_), Base::Snapshot(0)) if written.contains(&offset) => {
                    return Err("a replay reads a state after it has written it".to_owned());
                }
                (Access::Matrix(_), Base::Snapshot(1)) if !written.contains(&offset) => {
                    return Err("a replay reads a state before it has written it".to_owned());
                }
                (Access::Matrix(_), Base::Snapshot(_) | Base::Params)
                | (_, Base::Frame(-1 | 0) | Base::Params) => {}
                _ => return Err("a replay reads more than states and vectors of its step".to_owned()),
            }
        }
        for effect in &nest.effects {
            match effect {
                Effect::Store(Access::Matrix(p), _) if p.base == Base::Snapshot(1) => {
                    written.insert(p.offset);
                }
                _ => return Err("a replay takes sums over matrices".to_owned()),
            }
        }
    }
    Ok(())
}

/// The writes in place: what a replay has written lies where it was read.
pub(super) fn in_place(nest: &Nest) -> Nest {
    let place = |p: Place| match p.base {
        Base::Snapshot(1) => Place { base: Base::Snapshot(0), ..p },
        _ => p,
    };
    mapped(nest, place)
}

/// The writes to these places alone.
pub(super) fn only(nest: &Nest, wanted: &[Version]) -> Nest {
    let is_wanted = |e: &&Effect| wanted.contains(&(1, e.place().offset));
    let effects = nest.effects.iter().filter(is_wanted).cloned().collect();
    Nest { effects, ..nest.clone() }
}

fn mapped(nest: &Nest, place: impl Fn(Place) -> Place) -> Nest {
    use crate::loops::body::BodyOp;
    let mut nest = nest.clone();
    for op in &mut nest.body.ops {
        if let BodyOp::Load(access) = op {
            *access = access.map(&place);
        }
    }
    nest.effects = nest.effects.iter().map(|e| e.map(&place, |v| v)).collect();
    nest
}

/// How often things happen in a segment.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Counts {
    /// Steps that are replayed.
    pub(super) replays: usize,
    /// Times that the checkpoint is read.
    pub(super) checkpoint: usize,
    /// Times that a slot is read.
    pub(super) read: usize,
    /// Times that a slot is filled.
    pub(super) filled: usize,
}

/// When which slot is filled.
pub(super) struct Schedule {
    /// By slots that are free and by length less one: steps to the next slot.
    splits: Vec<[u8; LONGEST]>,
}

impl Schedule {
    /// For so many slots.
    ///
    /// With a state in hand and `c - 1` slots free, the last `l` steps from it on are run backward with
    /// `T(l, c) = min over k of k + T(l - k, c - 1) + T(k, c)` replays, where the next slot is filled `k` steps on;
    /// `T(l, 1) = l (l - 1) / 2`, `T(1, c) = 0`.
    pub(super) fn new(slots: usize) -> Schedule {
        let mut least: Vec<usize> = (0..=LONGEST).map(|l| l * l.saturating_sub(1) / 2).collect();
        let mut splits = vec![];
        for _ in 0..slots {
            let (mut costs, mut ways) = (vec![0; LONGEST + 1], [0u8; LONGEST]);
            for l in 2..=LONGEST {
                let cost = |k: usize| k + least[l - k] + costs[k];
                let best = (1..l).min_by_key(|k| cost(*k)).unwrap_or(1);
                costs[l] = cost(best);
                ways[l - 1] = best as u8;
            }
            splits.push(ways);
            least = costs;
        }
        Schedule { splits }
    }

    /// Steps to the next slot, when so many slots are free (at least one) and so many steps wait (at least two).
    fn split(&self, free: usize, length: usize) -> usize {
        if length <= LONGEST { usize::from(self.splits[free - 1][length - 1]) } else { length / 2 }
    }

    /// What a segment of so many steps takes, as the kernel goes through it.
    pub(super) fn counts(&self, steps: usize) -> Counts {
        let slots = self.splits.len();
        let mut saved: Vec<usize> = vec![];
        let mut counts = Counts::default();
        for when in (0..steps).rev() {
            saved.retain(|s| *s <= when);
            let start = saved.last().copied().unwrap_or(0);
            if saved.is_empty() {
                counts.checkpoint += 1
            } else {
                counts.read += 1
            }
            counts.replays += when - start;
            let mut last = start;
            while saved.len() < slots && last < when {
                last += self.split(slots - saved.len(), when - last + 1);
                saved.push(last);
                counts.filled += usize::from(last < when);
            }
        }
        counts
    }

    /// The table as source: `split_at[free - 1][length - 1]`.
    pub(super) fn source(&self) -> Vec<String> {
        let row = |ways: &[u8; LONGEST]| {
            let numbers: Vec<String> = ways.iter().map(u8::to_string).collect();
            format!("  {{{}}},", numbers.join(", "))
        };
        let mut lines = vec![
            "// Where the next slot is filled: steps on, by slots that are free and by steps that wait, less one each.".to_owned(),
            format!("__device__ static const unsigned char split_at[{}][{LONGEST}] = {{", self.splits.len()),
        ];
        lines.extend(self.splits.iter().map(row));
        lines.push("};".to_owned());
        lines.push("__device__ static inline int split(int free, int length) {".to_owned());
        lines.push(format!("  return length <= {LONGEST} ? split_at[free - 1][length - 1] : length / 2;"));
        lines.push("}".to_owned());
        lines
    }
}

impl Rebuild {
    /// Steps between checkpoints of so many steps: on the chip few, as long as all of them take no more memory than
    /// checkpoints and snapshots at the square root of the steps.
    pub(super) fn interval(&self, steps: usize) -> usize {
        let usual = usual_interval(steps);
        match self {
            Rebuild::Memory(_) => usual,
            Rebuild::Chip(_) => {
                let room = steps.div_ceil(usual) + usual + 2;
                INTERVAL.max(steps.div_ceil(room)).clamp(1, steps.max(1))
            }
        }
    }

    /// Replays per step, for segments of the usual length.
    pub(super) fn counts(&self) -> Counts {
        match self {
            Rebuild::Memory(_) => Counts { replays: INTERVAL, checkpoint: 1, ..Counts::default() },
            Rebuild::Chip(slots) => Schedule::new(*slots).counts(INTERVAL),
        }
    }

    /// In words.
    pub(super) fn text(&self) -> String {
        match self {
            Rebuild::Memory(why) => format!("replayed once through the device's memory: {why}"),
            Rebuild::Chip(slots) => {
                let per_step = self.counts().replays as f64 / INTERVAL as f64;
                let slots = match slots {
                    0 => "no state saved between checkpoints".to_owned(),
                    1 => "one state saved in shared memory between checkpoints".to_owned(),
                    n => format!("{n} states saved in shared memory between checkpoints"),
                };
                format!(
                    "replayed on the chip, {slots}: {per_step:.2} replays per step at {INTERVAL} steps a segment"
                )
            }
        }
    }
}

/// Steps of a segment that costs are counted for.
pub(in crate::back::cuda) const USUAL: usize = INTERVAL;

#[cfg(test)]
mod tests {
    use super::*;

    /// The least replays of a segment by trying everything, for small ones.
    fn least(l: usize, c: usize) -> usize {
        match (l, c) {
            (0 | 1, _) => 0,
            (_, 1) => l * (l - 1) / 2,
            _ => (1..l).map(|k| k + least(l - k, c - 1) + least(k, c)).min().unwrap_or(0),
        }
    }

    #[test]
    fn a_segment_takes_the_least_replays() {
        for slots in 0..=MOST_SLOTS {
            let schedule = Schedule::new(slots);
            for steps in 1..=11 {
                let counts = schedule.counts(steps);
                assert_eq!(counts.replays, least(steps, slots + 1), "{slots} slots, {steps} steps");
                assert_eq!(counts.checkpoint + counts.read, steps);
            }
            // Any length is served.
            assert!(schedule.counts(200).replays >= 200 - 1);
        }
        let per_step = |slots| Schedule::new(slots).counts(8).replays;
        assert_eq!([0, 1, 2, 3].map(per_step), [28, 14, 11, 10]);
    }
}
