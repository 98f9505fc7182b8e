//! How long a step takes, estimated.
//!
//! A step goes through phases, one after the other: the states that are rebuilt, the nests of the step. A phase
//! takes as long as the slowest of what it needs: instructions (a warp's over four schedulers, at [`IPC`]), bytes of
//! shared memory (128 per cycle), bytes of matrices that all rows share, which come from the second cache, bytes of
//! states and gradients that come from the device's memory or go there, and the latency of both where few of them are
//! under way: a thread reads some rows of its column at a time. Barriers and sums come on top. Where there are more rows than
//! multiprocessors, small blocks lie side by side on one; what is left takes further waves. An element takes the operations
//! that vary with its row. What is read and written once per sequence counts for [`STEPS`] steps. Going forward, states go to a
//! checkpoint every eighth step.
//!
//! # Beside the estimate of single steps
//!
//! The two are compared ([`super::super::choice`]), and so they share what they can: bytes per second of memory, of the
//! second cache and of a multiprocessor, the latency of memory and what a sum over a vector takes are those of
//! [`crate::back::cuda::slabs::solver`]; schedulers are used by two thirds there and [`IPC`] here. What only sequences
//! have are barriers: 40 cycles for a block; 500 for a cluster, whose blocks see each other's memory after about 180
//! cycles (arXiv 2402.13499), there and back and what it takes to gather; and shared memory, 30 cycles away. None of the constants has
//! been measured.

use super::super::super::level::{Level, levels};
use super::homes::{Home, Homes, Shape};
use super::rebuild::{self, Group, Rebuild};
use super::solver::{Mapping, REGISTERS, Subject};
use super::waits::{Wait, Waits};
use crate::back::cuda::slabs::solver::{CACHE, MEMORY, PROCESSOR, SUM, WAIT};
use crate::loops::body::{BodyOp, Id};
use crate::loops::{Access, Base, Effect, Extent, Nest, Place};

/// Cycles per microsecond: the clock of an H100 under load.
pub(super) const CLOCK: f64 = 1755.0;
/// The share of the schedulers' slots that is used.
const IPC: f64 = 0.6;
/// Cycles that a barrier of a block, of a cluster, and a step in itself take.
const BARRIERS: [f64; 3] = [40.0, 500.0, 300.0];
/// Cycles until memory answers, and the second cache: half of that.
const LATENCY: [f64; 2] = [WAIT * CLOCK, WAIT * CLOCK / 2.0];
/// Cycles until shared memory answers.
const NEAR: f64 = 30.0;
/// Steps of a sequence.
const STEPS: f64 = 64.0;

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
    /// Cycles in which a thread waits for what it reads, one after the other.
    stalls: f64,
}

/// Bytes per cycle that a multiprocessor gets from the second cache, and from memory, when so many have work.
#[derive(Clone, Copy, Debug)]
struct Rates {
    cached: f64,
    streamed: f64,
}

impl Rates {
    fn new(active: usize) -> Rates {
        let share = |all: f64| (all / active.max(1) as f64).min(PROCESSOR) / CLOCK;
        Rates { cached: share(CACHE), streamed: share(MEMORY) }
    }
}

impl Phase {
    /// Cycles of so many blocks side by side, with so many threads each.
    fn cycles(&self, (blocks, threads): (usize, usize), rates: Rates) -> f64 {
        // Few warps leave the schedulers without work.
        let busy = ((blocks * threads) as f64 / 512.0).clamp(0.25, 1.0);
        let issued = self.issued / 128.0 / IPC / busy.sqrt();
        let moved = self.cached / rates.cached + self.streamed / rates.streamed;
        (blocks as f64 * issued.max(self.shared / 128.0).max(moved)).max(self.stalls)
    }

    /// Elements that lie in memory.
    fn stream(&mut self, base: Base, bytes: f64) {
        match base {
            Base::Params => self.cached += bytes,
            _ => self.streamed += bytes,
        }
    }
}

/// Instructions for the operations of an element that effects need. In the source that NVRTC makes of a sweep over the
/// retroactive network, going forward, an element has 22 instructions, where 19 are counted.
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
    let instructions = |k: usize| match nest.body.ops[k] {
        // A comparison and a choice.
        BodyOp::Min(..) | BodyOp::Max(..) => 2,
        // Some steps of Newton's.
        BodyOp::Div(..) | BodyOp::Sqrt(..) => 8,
        _ => 1,
    };
    (0..needed.len()).filter(counts).map(instructions).sum()
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
                waiting += sums(nest, shape, homes);
            }
            None => waiting += vector(nest, homes.threads),
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
    seldom(&mut step, subject, homes);
    let before = rebuilding(subject, homes);
    let at_once = subject.arch.resident(homes.cluster).max(1);
    let rows = subject.device.batch.div_ceil(at_once).max(1);
    let side_by_side = rows.min(fitting(subject, mapping));
    mapping.waves = rows.div_ceil(side_by_side);
    // Blocks of a multiprocessor wait at the same time, and share the rest.
    let blocks = (side_by_side, homes.threads);
    let rates = Rates::new(subject.device.batch.clamp(1, at_once) * homes.cluster);
    let shared_out = step.cycles(blocks, rates) + before.cycles(blocks, rates);
    mapping.cycles = (shared_out + waiting) * mapping.waves as f64;
    mapping.spilled = (step.cached + step.streamed + before.streamed) as usize;
}

/// What goes to checkpoints, and what is read and written at both ends of a sequence.
fn seldom(step: &mut Phase, subject: &Subject<'_>, homes: &Homes) {
    if subject.rebuild.is_none() {
        let states = subject.program.matrices_len as f64 / homes.cluster as f64;
        step.streamed += 4.0 * states / rebuild::USUAL as f64;
    }
    for held in &homes.held {
        let bytes = 4.0 * held.shape.len() as f64 / STEPS;
        match (&held.home, held.place.base) {
            (Home::Memory, _) | (_, Base::Snapshot(_)) => {}
            (_, Base::Params) => step.cached += bytes,
            (_, _) => step.streamed += 2.0 * bytes,
        }
    }
}

/// A nest over a vector, or a scalar: every thread takes some elements, and sums go through shared memory.
fn vector(nest: &Nest, threads: usize) -> f64 {
    let n = match nest.extent {
        Extent::Vector(n) => n,
        _ => 1,
    };
    let rounds = n.div_ceil(threads) as f64;
    let whole = |e: &&Effect| matches!(e, Effect::SumAll(..) | Effect::MaxAll(..));
    let sums = nest.effects.iter().filter(whole).count().min(1) as f64;
    let gather = 2.0 * BARRIERS[0] * rounds + 3.0 * NEAR + SUM * CLOCK * n as f64;
    rounds * nest.body.ops.len() as f64 * 4.0 + if n > 1 { sums * gather } else { 0.0 }
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
    let (loads, stores) = in_memory(nest, homes);
    let per_element =
        operations(nest) + nest.effects.len() + 4 * row_sums(nest) + 2 + 2 * (loads.len() + stores.len());
    phase.issued += elements * per_element as f64;
    phase.shared += vectors(nest, shape);
    for place in loads.iter().chain(&stores).filter(|p| homes.find(**p).is_none()) {
        phase.stream(place.base, 4.0 * elements);
    }
    phase.stalls += stalls(nest, shape, homes);
}

/// The matrices that a nest reads and writes, where they lie in memory.
fn in_memory(nest: &Nest, homes: &Homes) -> (Vec<Place>, Vec<Place>) {
    let is_far = |p: &Place| homes.find(*p).is_none_or(|h| h.home == Home::Memory);
    let matrices = nest.body.loads().filter(|a| matches!(a, Access::Matrix(_)));
    let stored = nest.effects.iter().filter_map(|e| match e {
        Effect::Store(Access::Matrix(p), _) | Effect::Add(Access::Matrix(p), ..) => Some(*p),
        _ => None,
    });
    let added = nest.effects.iter().filter_map(|e| match e {
        Effect::Add(Access::Matrix(p), ..) => Some(*p),
        _ => None,
    });
    let loads = matrices.map(Access::place).chain(added).filter(is_far).collect();
    (loads, stored.filter(is_far).collect())
}

/// Cycles that a thread waits for memory, or for the second cache, as it goes down its rows.
///
/// Loops take eight rows at a time where they have sums over post or registers, else four. Their loads are under way
/// together, unless something is written between them that could be what they read: two regions in memory are nothing
/// that the compiler can tell apart, but for parameters, which nobody writes.
fn stalls(nest: &Nest, shape: Shape, homes: &Homes) -> f64 {
    let (loads, stores) = in_memory(nest, homes);
    let own = |p: &&Place| p.base != Base::Params;
    let Some(latency) = (match (loads.is_empty(), loads.iter().any(|p| own(&p))) {
        (true, _) => None,
        (false, true) => Some(LATENCY[0]),
        (false, false) => Some(LATENCY[1]),
    }) else {
        return 0.0;
    };
    let clash = |s: &Place| loads.iter().filter(own).any(|l| l.base != s.base);
    let at_a_time = match (stores.iter().any(clash), row_sums(nest) > 0 || homes.in_registers(nest)) {
        (true, _) => 1,
        (false, true) => 8,
        (false, false) => 4,
    };
    shape.rows.div_ceil(at_a_time) as f64 * latency
}

/// Cycles in which the parts of a nest's sums are put together: those of warps, then those of a cluster's blocks, each
/// read from shared memory after the one before it.
fn sums(nest: &Nest, shape: Shape, homes: &Homes) -> f64 {
    let rows = row_sums(nest) as f64;
    let columns = nest.effects.iter().filter(|e| matches!(e, Effect::SumPre(..))).count() as f64;
    let rounds = shape.pre.div_ceil(homes.threads) as f64;
    let mut cycles = if rows + columns > 0.0 { BARRIERS[0] + 2.0 * NEAR } else { 0.0 };
    // Four parts are read at a time.
    cycles += columns * (shape.row_parts(homes.threads) as f64 - 1.0) * NEAR / 4.0;
    cycles += rows * rounds * (shape.column_warps() as f64 - 1.0) * NEAR;
    if rows > 0.0 && homes.cluster > 1 {
        cycles += BARRIERS[1] + rows * rounds * (homes.cluster - 1) as f64 * NEAR;
    }
    cycles
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
    phase.stalls += shape.rows.div_ceil(rebuild::ROWS) as f64 * per_step(counts.checkpoint) * LATENCY[0];
}
