//! How long a step takes, estimated.
//!
//! A step goes through phases, one after the other: the states that are rebuilt, the nests of the step. A phase
//! takes as long as the slowest of what it needs: instructions (a warp's over four schedulers, at [`IPC`]), bytes of
//! shared memory (128 per cycle), bytes of matrices that all rows share ([`CACHED`] per cycle), bytes of states that
//! come from the device's memory ([`STREAMED`]). Barriers and sums come on top. Where there are more rows than
//! multiprocessors, small blocks lie side by side on one; what is left takes further waves. An element takes the operations
//! that vary with its row. None of the constants has been measured.

use super::super::super::level::{Level, levels};
use super::homes::{Home, Homes, Shape};
use super::rebuild::{self, Group, Rebuild};
use super::solver::{Mapping, REGISTERS, Subject};
use super::waits::{Wait, Waits};
use crate::loops::body::Id;
use crate::loops::{Access, Base, Effect, Nest};

/// The share of the schedulers' slots that is used.
const IPC: f64 = 0.6;
/// Bytes per cycle and multiprocessor that come from caches behind it: 5.5 TB/s over 132 of them at 1.755 GHz.
const CACHED: f64 = 24.0;
/// Bytes per cycle and multiprocessor that come from memory, or go there: 3 TB/s.
const STREAMED: f64 = 13.0;
/// Cycles that a barrier of a block, of a cluster, and a step in itself take.
const BARRIERS: [f64; 3] = [40.0, 500.0, 300.0];

/// Bytes of shared memory that a block takes besides its own.
const RESERVED: usize = 1024;
/// Threads of a multiprocessor; 1536 on some.
const MOST_THREADS: usize = 1536;

/// What a phase of a step needs, per block.
#[derive(Clone, Copy, Debug, Default)]
struct Phase {
    issued: f64,
    shared: f64,
    cached: f64,
    streamed: f64,
}

impl Phase {
    fn cycles(&self, threads: usize) -> f64 {
        // Few warps leave the schedulers without work.
        let busy = (threads as f64 / 512.0).clamp(0.25, 1.0);
        let issued = self.issued / 128.0 / IPC / busy.sqrt();
        issued.max(self.shared / 128.0).max(self.cached / CACHED + self.streamed / STREAMED)
    }

    /// Elements that lie in memory.
    fn stream(&mut self, base: Base, bytes: f64) {
        match base {
            Base::Params => self.cached += bytes,
            _ => self.streamed += bytes,
        }
    }
}

/// Operations of an element that effects need.
fn operations(nest: &Nest) -> usize {
    let mut needed = vec![false; nest.body.ops.len()];
    let mut todo: Vec<Id> = nest.effects.iter().flat_map(Effect::operands).collect();
    while let Some(id) = todo.pop() {
        if !std::mem::replace(&mut needed[id.index()], true) {
            todo.extend(nest.body.ops[id.index()].operands());
        }
    }
    let levels = levels(&nest.body);
    let counts = |k: &usize| needed[*k] && matches!(levels[*k], Level::Row | Level::Point);
    (0..needed.len()).filter(counts).count()
}

/// Bytes of shared memory of a vector that is read for each row: a warp has whole columns.
fn vectors(nest: &Nest, shape: Shape) -> f64 {
    let count = nest.body.loads().filter(|a| matches!(a, Access::Pre(_))).count();
    count as f64 * shape.len() as f64 * 4.0 / shape.columns.min(32) as f64
}

/// Fills in the estimate of a mapping.
pub(super) fn estimate(subject: &Subject<'_>, mapping: &mut Mapping) {
    let homes = &mapping.homes;
    let mut step = Phase::default();
    let mut waiting = BARRIERS[2];
    let mut waits = Waits::default();
    for nest in subject.steady() {
        waiting += match waits.before(nest, homes) {
            Wait::None => 0.0,
            Wait::Block => BARRIERS[0],
            Wait::Cluster => BARRIERS[1],
        };
        match homes.shape(nest.extent) {
            Some(shape) => {
                sweep(&mut step, nest, shape, homes);
                waiting += sums(nest, homes.cluster);
            }
            None => waiting += nest.body.ops.len() as f64 * 4.0,
        }
    }
    for held in &homes.held {
        let bytes = (held.traffic * held.shape.len() * 4) as f64;
        match held.home {
            Home::Registers(_) | Home::Local(_) => {}
            Home::Shared(_) => step.shared += bytes,
            Home::Memory => step.stream(held.place.base, bytes),
        }
    }
    let before = rebuilding(subject, homes);
    let at_once = subject.arch.resident(homes.cluster).max(1);
    let rows = subject.device.batch.div_ceil(at_once).max(1);
    let side_by_side = rows.min(fitting(subject, mapping));
    mapping.waves = rows.div_ceil(side_by_side);
    // Blocks of a multiprocessor wait at the same time, and share the rest.
    let threads = homes.threads * side_by_side;
    let shared_out = (step.cycles(threads) + before.cycles(threads)) * side_by_side as f64;
    mapping.cycles = (shared_out + waiting) * mapping.waves as f64;
    mapping.spilled = (step.cached + step.streamed + before.streamed) as usize;
}

/// Blocks for which a multiprocessor has shared memory, registers and threads.
fn fitting(subject: &Subject<'_>, mapping: &Mapping) -> usize {
    let threads = mapping.homes.threads;
    let memory = subject.arch.shared / (mapping.shared_bytes() + RESERVED);
    let registers = REGISTERS / (threads * mapping.registers.next_multiple_of(8)).max(1);
    memory.min(registers).min(MOST_THREADS / threads).max(1)
}

/// Sums over post take shuffles for each row.
fn row_sums(nest: &Nest) -> usize {
    nest.effects.iter().filter(|e| matches!(e, Effect::SumPost(..))).count()
}

fn sweep(phase: &mut Phase, nest: &Nest, shape: Shape, homes: &Homes) {
    let elements = shape.len() as f64;
    let per_element = operations(nest) + nest.effects.len() + 4 * row_sums(nest) + 2;
    phase.issued += elements * per_element as f64;
    phase.shared += vectors(nest, shape);
    for access in nest.body.loads() {
        if let Access::Matrix(p) = access
            && homes.find(p).is_none()
        {
            phase.stream(p.base, 4.0 * elements);
        }
    }
    for effect in &nest.effects {
        if let Effect::Store(Access::Matrix(p), _) = effect
            && homes.find(*p).is_none()
        {
            phase.stream(p.base, 4.0 * elements);
        }
    }
}

/// Cycles in which the parts of a nest's sums are put together.
fn sums(nest: &Nest, cluster: usize) -> f64 {
    let columns = nest.effects.iter().filter(|e| matches!(e, Effect::SumPre(..))).count();
    let block = if row_sums(nest) + columns > 0 { BARRIERS[0] + 60.0 } else { 0.0 };
    block + if row_sums(nest) > 0 && cluster > 1 { BARRIERS[1] } else { 0.0 }
}

/// What states take that are rebuilt for a step.
fn rebuilding(subject: &Subject<'_>, homes: &Homes) -> Phase {
    let mut phase = Phase::default();
    match &subject.rebuild {
        None => {}
        Some(Rebuild::Memory(_)) => {
            for nest in &subject.program.replay.nests {
                if let Some(shape) = homes.shape(nest.extent) {
                    sweep(&mut phase, nest, shape, homes);
                }
            }
        }
        Some(rebuild @ Rebuild::Chip(_)) => {
            subject.groups.iter().for_each(|g| on_chip(&mut phase, g, rebuild, homes));
        }
    }
    phase
}

fn on_chip(phase: &mut Phase, group: &Group, rebuild: &Rebuild, homes: &Homes) {
    let (post, pre) = group.extent;
    let Some(shape) = Shape::new(post, pre, homes.threads, homes.cluster) else { return };
    let counts = rebuild.counts();
    let per_step = |n: usize| n as f64 / rebuild::USUAL as f64;
    let elements = shape.len() as f64;
    let states = elements * group.offsets.len() as f64;
    let work = |nest: &Nest| if nest.effects.is_empty() { 0 } else { operations(nest) + 1 };
    let whole: usize = group.nests.iter().map(work).sum();
    let last: usize = group.nests.iter().map(|n| work(&rebuild::only(n, &group.versions))).sum();
    let last = if group.reads_after() { last } else { 0 };
    let copies = per_step(counts.checkpoint + counts.read + counts.filled);
    phase.issued += elements * (whole as f64 * per_step(counts.replays) + last as f64);
    phase.issued += states * (copies + 1.0);
    phase.shared += 4.0 * states * per_step(counts.read + counts.filled);
    phase.shared += group.nests.iter().map(|n| vectors(n, shape)).sum::<f64>() * per_step(counts.replays);
    phase.streamed += 4.0 * states * per_step(counts.checkpoint);
}
