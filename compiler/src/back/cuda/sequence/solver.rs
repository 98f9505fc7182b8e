//! Which mapping a sequence gets: blocks of a cluster, threads, and what lies where.
//!
//! All candidates (clusters of 1, 2, 4, 8, 16 blocks; 64 to 1024 threads) are tried. For each, what a step
//! touches most often is placed first: states and carried cotangents into registers, then into shared memory;
//! sums of gradients likewise, or else they stay in memory; parameters into what is left. States must fit on
//! the chip. Going backward they are tried with each way to bring states back ([`super::rebuild`]). Of
//! the candidates that fit, the one whose estimated time of a step (`cost`), times the waves that the
//! batch needs, is least is taken.
//!
//! # Clusters of 16
//!
//! A device of architecture 9.0 can have clusters of 16 blocks if a kernel asks for them. An H100 groups its multiprocessors by 16
//! or 18, so that at most 8 such clusters run at a time. They are worth it where a row needs more than the 2.7 MB of
//! registers and shared memory of 8 blocks: the retroactive network at N = 512 goes forward in 7 µs for a batch of 16, where
//! single steps take 34, and `simple` at N = 300 goes backward on the chip.
//!
//! `plastic_lstm`, N = 1149, batch 6, stays beyond them, though 5.3 MB of its matrix for each row are 330 KB for each of 16
//! blocks, where registers and shared memory have 116 + 227 KB. Calculated:
//!
//! * The 24,872 floats of a frame lie in every block, four frames at a time: 398 KB, more than there is, however many
//!   blocks share the matrix. Each would have to keep its own columns' part of most vectors.
//! * 1149 columns are 72 for a block, laid out as 96 (whole warps): 441 KB, a third of it for nothing, and
//!   230 rows of a thread, where registers hold up to [`MOST_ROWS`] and a matrix has one home. Some of its rows would
//!   have to lie in registers, others in shared memory, with columns by eights.
//! * The cluster of each row reads all weights in each step, 21 MB: for six rows 127 MB of the second cache, 23 µs at
//!   5.5 TB/s. With three barriers of a cluster, 0.9 µs, and a checkpoint every eighth step, 1.3 µs, a step forward
//!   takes 26 µs, where slabs, which read weights for two rows at a time, take 40 by their estimate. Going backward
//!   carried cotangents come to the states: 10.6 MB for a row, twice what 16 multiprocessors have.
//!
//! So 14 µs of 140 for a step forward and backward stand against two new kinds of homes: that is not done.

use super::arch::{Arch, CLUSTERS, Device, Replay};
use super::homes::{Held, Home, Homes, Shape};
use super::rebuild::{self, Group, MOST_SLOTS, Rebuild};
use super::{cost, routines};
use crate::loops::plan::usual_interval;
use crate::loops::{Access, Base, Effect, Extent, Nest, PARTIALS, Place, Program, padded};
use std::fmt::Write;

/// Registers of a multiprocessor.
pub(super) const REGISTERS: usize = 65_536;
/// Registers that the code of a sweep takes beside what it holds. This and what follows are chosen so that
/// NVRTC 12.9 spills nothing in the kernels that were compiled; it may use fewer, or all that there are.
const WORKING: usize = 64;
/// More for each sum over post: eight rows under way.
const PER_ROW_SUM: usize = 12;
/// More for each matrix that an unrolled loop reads from memory: loads under way.
const PER_STREAM: usize = 6;
/// More where some threads have no elements.
const PER_IDLE: usize = 8;
/// More for each further shape of matrices: elements are shared out in another way.
const PER_SHAPE: usize = 16;
/// Of what is held: hundredths that it takes, with copies.
const PER_HELD: usize = 112;
/// Rows of a thread whose loops are unrolled, at most.
const MOST_ROWS: usize = 48;
/// How a direction is mapped.
#[derive(Clone, Debug)]
pub struct Mapping {
    /// Where everything lies.
    pub(super) homes: Homes,
    /// Floats of shared memory, part by part: what, how many.
    pub(super) parts: Vec<(&'static str, usize)>,
    /// Frames of a step that the kernel looks at, and adjoint frames: the first and the last.
    pub(super) window: [(i64, i64); 2],
    /// Registers of a thread, estimated.
    pub registers: usize,
    /// Cycles of a step, estimated, for a batch: all its waves.
    pub cycles: f64,
    /// Rounds that the batch takes.
    pub waves: usize,
    /// Bytes per step and block that are not on the chip.
    pub spilled: usize,
    /// Going backward: how states come back.
    pub(super) rebuild: Option<Rebuild>,
    /// What is rebuilt on the chip.
    pub(super) groups: Vec<Group>,
    /// Numbers of all matrix states of a row.
    pub(super) states_len: usize,
}

impl Mapping {
    /// Threads of a block.
    pub fn threads(&self) -> usize {
        self.homes.threads
    }

    /// Blocks of a row.
    pub fn cluster(&self) -> usize {
        self.homes.cluster
    }

    /// Bytes of shared memory of a block.
    pub fn shared_bytes(&self) -> usize {
        4 * self.parts.iter().map(|(_, n)| n).sum::<usize>()
    }

    /// Microseconds of a step of the batch, estimated: all its waves.
    pub fn microseconds(&self) -> f64 {
        self.cycles / cost::CLOCK
    }

    /// Steps between checkpoints, unless others are wanted.
    pub fn interval(&self, steps: usize) -> usize {
        self.rebuild.as_ref().map_or_else(|| usual_interval(steps), |rebuild| rebuild.interval(steps))
    }

    /// Bytes of the device's memory that checkpoints and snapshots of so many rows take, in words.
    pub fn memory(&self, rows: usize, steps: usize) -> Option<String> {
        self.rebuild.as_ref().filter(|_| 0 < self.states_len)?;
        let interval = self.interval(steps);
        let mib = |count: usize| (4 * count * self.states_len * rows) as f64 / f64::from(1 << 20);
        let (checkpoints, snapshots) = (steps.div_ceil(interval), self.snapshots(interval));
        let mut text =
            format!("{checkpoints} checkpoints, every {interval} steps, {:.1} MiB", mib(checkpoints));
        if 0 < snapshots {
            let _ = write!(text, "; {snapshots} snapshots, {:.1} MiB", mib(snapshots));
        }
        Some(text)
    }

    /// Snapshots of all states in memory that the kernel works with, at a checkpoint every `interval` steps.
    pub fn snapshots(&self, interval: usize) -> usize {
        match &self.rebuild {
            Some(Rebuild::Memory(_)) => interval + 2,
            Some(Rebuild::Chip(_)) | None => 0,
        }
    }

    /// How states come back going backward, in words.
    pub fn states(&self) -> Option<String> {
        self.rebuild.as_ref().map(Rebuild::text)
    }

    /// The float at which a part of shared memory begins.
    pub(super) fn part(&self, what: &str) -> usize {
        self.parts.iter().take_while(|(w, _)| *w != what).map(|(_, n)| n).sum()
    }

    /// In plain words.
    pub fn text(&self, arch: &Arch) -> String {
        let Homes { threads, cluster, .. } = self.homes;
        let blocks = match cluster {
            1 => "one block for each row of the batch".to_owned(),
            c => format!("a cluster of {c} blocks for each row, by columns"),
        };
        let mut text = format!("  {blocks}, {threads} threads each; waves of the batch: {}\n", self.waves);
        for held in &self.homes.held {
            let (Shape { post, pre, columns, rows, .. }, word) = (held.shape, &held.word);
            let at = match &held.home {
                Home::Registers(_) => format!("registers, {rows} of each thread"),
                Home::Shared(_) => format!("shared memory, {} KiB of each block", held.shape.len() / 256),
                Home::Memory => "the device's memory: no room on the chip".to_owned(),
                Home::Local(_) => "registers, a few rows at a time".to_owned(),
            };
            let _ = writeln!(text, "    {word:<16} [{post},{pre}] {columns} columns of a block: {at}");
        }
        if let Some(states) = self.states() {
            let _ = writeln!(text, "    states of earlier steps: {states}");
        }
        let (bytes, most) = (self.shared_bytes(), arch.shared);
        let _ =
            writeln!(text, "    shared memory: {bytes} of {most} bytes; registers: about {}", self.registers);
        let _ = writeln!(
            text,
            "    a step: about {:.0} cycles in all waves, {:.1} µs (estimated, never measured)",
            self.cycles,
            self.microseconds()
        );
        text
    }
}

/// Why a program has no kernels of whole sequences.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Refusal(pub String);

/// The mappings of a program, forward and backward. Each stands alone: a direction can have one where the other has
/// none.
///
/// # Errors
/// What is not supported, or what does not fit and by how much.
pub fn solve(
    program: &Program,
    word: &dyn Fn(Place, bool) -> String,
    device: &Device,
) -> [Result<Mapping, Refusal>; 2] {
    let direction = |backward: bool, rebuild: Option<Rebuild>, groups: &[Group]| {
        let subject = Subject { program, word, device, arch: &device.arch, backward, rebuild, groups };
        subject.supported()?;
        subject.best()
    };
    [direction(false, None, &[]), backward(program, device.replay, direction)]
}

/// The best of all ways to bring states back.
fn backward(
    program: &Program,
    replay: Replay,
    direction: impl Fn(bool, Option<Rebuild>, &[Group]) -> Result<Mapping, Refusal>,
) -> Result<Mapping, Refusal> {
    let through_memory = |why: &str| direction(true, Some(Rebuild::Memory(why.to_owned())), &[]);
    let groups = match rebuild::groups(program) {
        Ok(groups) => groups,
        Err(why) => return through_memory(&why),
    };
    let on_chip = |slots: usize| direction(true, Some(Rebuild::Chip(slots)), &groups);
    match replay {
        Replay::Memory if !groups.is_empty() => return through_memory("as asked for"),
        Replay::Slots(slots) => return on_chip(slots.min(MOST_SLOTS)),
        Replay::Cheapest | Replay::Memory => {}
    }
    if groups.is_empty() {
        // Without states there is nothing to choose.
        return on_chip(0);
    }
    let ways = (0..=MOST_SLOTS).map(on_chip).chain([through_memory("it takes less time here")]);
    let less = |a: &Mapping, b: &Mapping| a.cycles.total_cmp(&b.cycles);
    let (fitting, refused): (Vec<_>, Vec<_>) = ways.partition(Result::is_ok);
    let best = fitting.into_iter().flatten().min_by(less);
    // What needs least room says what is lacking.
    let why = refused.into_iter().filter_map(Result::err).next_back();
    best.ok_or_else(|| why.unwrap_or_else(|| Refusal("nothing to run".to_owned())))
}

pub(super) struct Subject<'s> {
    pub(super) program: &'s Program,
    word: &'s dyn Fn(Place, bool) -> String,
    pub(super) device: &'s Device,
    pub(super) arch: &'s Arch,
    backward: bool,
    /// How states come back, and what is rebuilt on the chip.
    pub(super) rebuild: Option<Rebuild>,
    pub(super) groups: &'s [Group],
}

impl Subject<'_> {
    fn nests(&self) -> impl Iterator<Item = &Nest> {
        routines(self.program, self.backward).into_iter().flat_map(|r| &r.nests)
    }

    /// The nests of a step in the steady state.
    pub(super) fn steady(&self) -> &[Nest] {
        let steps = if self.backward { &self.program.backward } else { &self.program.forward };
        &steps.step.nests
    }

    fn supported(&self) -> Result<(), Refusal> {
        let refuse = |why: &str| Err(Refusal(why.to_owned()));
        if !self.program.logs.is_empty() {
            return refuse("logs of events: the host writes their rows between the steps");
        }
        for nest in self.nests() {
            if matches!(nest.extent, Extent::Log { .. }) {
                return refuse("logs of events: the host writes their rows between the steps");
            }
            let is_matrix = matches!(nest.extent, Extent::Matrix { .. });
            if is_matrix && nest.effects.iter().any(|e| matches!(e, Effect::MaxAll(..))) {
                return refuse("the largest value of a whole matrix is not supported");
            }
            if self.backward && nest.effects.iter().any(|e| matches!(e.place().base, Base::Frame(_))) {
                return refuse("the backward pass writes to frames");
            }
        }
        Ok(())
    }

    /// The matrices that a thread can own its elements of, and how often a step touches them.
    fn owned(&self) -> Vec<(Place, (usize, usize), usize)> {
        let mut found: Vec<(Place, (usize, usize), usize)> = vec![];
        let mut see = |place: Place, extent: (usize, usize), count: usize| {
            let is_owned = match place.base {
                Base::Carry | Base::Grads | Base::Params => true,
                Base::Snapshot(_) => !self.groups.is_empty(),
                _ => false,
            };
            if !is_owned {
                return;
            }
            match found.iter_mut().find(|(p, ..)| *p == place) {
                Some((.., n)) => *n += count,
                None => found.push((place, extent, count)),
            }
        };
        let mut all = |nest: &Nest, count: usize| {
            let Extent::Matrix { post, pre } = nest.extent else { return };
            for access in nest.body.loads().filter(|a| matches!(a, Access::Matrix(_))) {
                see(access.place(), (post, pre), count);
            }
            for effect in &nest.effects {
                match effect {
                    Effect::Store(Access::Matrix(p), _) => see(*p, (post, pre), count),
                    Effect::Add(Access::Matrix(p), ..) => see(*p, (post, pre), 2 * count),
                    _ => {}
                }
            }
        };
        self.nests().for_each(|n| all(n, 0));
        self.steady().iter().for_each(|n| all(n, 1));
        for group in self.groups {
            // They are written once.
            for (k, offset) in &group.versions {
                see(Place { base: Base::Snapshot(*k), offset: *offset }, group.extent, 1);
            }
        }
        if !self.backward || self.program.carries_states {
            for m in self.program.matrices.iter().flatten() {
                see(Place { base: Base::Carry, offset: m.offset }, (m.post, m.pre), 0);
            }
        }
        found
    }

    /// The first and the last frame, and adjoint frame, that nests look at.
    fn window(&self) -> [(i64, i64); 2] {
        let mut window = [(-1, 0), (0, 0)];
        let mut see = |place: Place| match place.base {
            Base::Frame(k) => window[0] = (window[0].0.min(k.into()), window[0].1.max(k.into())),
            Base::Adjoint(k) => window[1] = (window[1].0.min(k.into()), window[1].1.max(k.into())),
            _ => {}
        };
        for nest in self.nests() {
            nest.body.loads().for_each(|a| see(a.place()));
            nest.effects.iter().for_each(|e| see(e.place()));
        }
        window
    }

    /// The best candidate; or, if none fits, what the nearest one lacks.
    fn best(&self) -> Result<Mapping, Refusal> {
        let clusters = CLUSTERS.into_iter().filter(|c| 0 < self.arch.resident(*c));
        let threads = [64, 128, 192, 256, 384, 512, 768, 1024];
        let all = clusters.flat_map(|c| threads.map(|t| (c, t)));
        let all: Vec<(usize, usize)> =
            self.device.wanted.map_or_else(|| all.collect(), |wanted| vec![wanted]);
        let mut best: Option<Mapping> = None;
        let mut nearest: Option<(usize, Refusal)> = None;
        for (cluster, threads) in all {
            match self.candidate(threads, cluster) {
                Ok(found) if best.as_ref().is_none_or(|b| found.cycles < b.cycles) => best = Some(found),
                Ok(_) => {}
                Err((lack, why)) if nearest.as_ref().is_none_or(|(n, _)| lack < *n) => {
                    nearest = Some((lack, why));
                }
                Err(_) => {}
            }
        }
        let why = nearest.map_or_else(|| Refusal("nothing to run".to_owned()), |(_, why)| why);
        best.ok_or(why)
    }

    fn candidate(&self, threads: usize, cluster: usize) -> Result<Mapping, (usize, Refusal)> {
        let mut homes = self.homes(threads, cluster)?;
        let window = self.window();
        let mut parts = self.fixed_parts(&homes, window);
        let fixed = 4 * parts.iter().map(|(_, n)| n).sum::<usize>();
        let lack = |bytes: usize, what: &str| {
            let over = (fixed + bytes).saturating_sub(self.arch.shared);
            let of = if cluster == 1 { "a block".to_owned() } else { format!("each of {cluster} blocks") };
            let most = self.arch.shared;
            let why = format!(
                "{what} of a row: {of} would need {over} bytes more shared memory than the {most} of {}",
                self.arch.name
            );
            (over, Refusal(why))
        };
        if fixed > self.arch.shared {
            let (over, why) = lack(0, "the vectors");
            // It is as far from fitting as its states are, too.
            let is_state = |h: &&Held| matches!(h.place.base, Base::Carry | Base::Snapshot(_));
            let states = homes.held.iter().filter(is_state).map(|h| 4 * h.shape.len()).sum::<usize>();
            return Err((over + states, why));
        }
        let room = (self.arch.shared - fixed) / 4;
        let registers = self.place(&mut homes, room).map_err(|floats| lack(4 * floats, "the states"))?;
        let held =
            homes.held.iter().filter(|h| matches!(h.home, Home::Shared(_))).map(|h| h.shape.len()).sum();
        parts.insert(0, ("held", held));
        let (rebuild, groups) = (self.rebuild.clone(), self.groups.to_vec());
        let states_len = self.program.matrices_len;
        let mut mapping = Mapping {
            homes,
            parts,
            window,
            registers,
            cycles: 0.0,
            waves: 1,
            spilled: 0,
            rebuild,
            groups,
            states_len,
        };
        cost::estimate(self, &mut mapping);
        Ok(mapping)
    }

    /// Everything in memory.
    fn homes(&self, threads: usize, cluster: usize) -> Result<Homes, (usize, Refusal)> {
        let too_wide = |post: usize| {
            let over = post - threads * cluster;
            let why = format!(
                "a matrix of {post} receiving neurons has {over} columns more than {cluster} × {threads} threads"
            );
            (usize::MAX / 2 + over, Refusal(why))
        };
        for nest in self.nests() {
            if let Extent::Matrix { post, pre } = nest.extent {
                Shape::new(post, pre, threads, cluster).ok_or_else(|| too_wide(post))?;
            }
        }
        let mut held = vec![];
        for (place, (post, pre), traffic) in self.owned() {
            let shape = Shape::new(post, pre, threads, cluster).ok_or_else(|| too_wide(post))?;
            let word = (self.word)(place, self.backward);
            held.push(Held { place, word, shape, traffic, home: Home::Memory });
        }
        held.sort_by_key(|h| (h.place.base == Base::Params, std::cmp::Reverse(h.traffic), h.place));
        let mut used = std::collections::BTreeSet::new();
        for h in &mut held {
            h.word = super::super::names::different(&h.word, &mut used);
        }
        let (mut sums, mut at) = (vec![], 0);
        for g in self.program.grads.iter().filter(|g| g.matrix.is_none() && self.backward) {
            sums.push((g.offset, g.len, at));
            at += padded(g.len);
        }
        let columns = self.nests().flat_map(|n| {
            n.body
                .loads()
                .map(Access::place)
                .chain(n.effects.iter().map(Effect::place))
                .collect::<Vec<Place>>()
        });
        let columns = columns.filter(|p| p.base == Base::Scratch && p.offset >= PARTIALS);
        let scratch_first = columns.map(|p| p.offset).min().unwrap_or(self.program.scratch_len);
        Ok(Homes { threads, cluster, held, sums, scratch_first })
    }

    /// Floats of shared memory beside matrices.
    fn fixed_parts(&self, homes: &Homes, window: [(i64, i64); 2]) -> Vec<(&'static str, usize)> {
        let p = self.program;
        let slots = |(low, high): (i64, i64)| usize::try_from(high - low + 3).unwrap_or(3);
        let mut parts = vec![("frames", slots(window[0]) * p.frame_len)];
        if self.backward {
            parts.push(("bars", slots(window[1]) * p.adjoint_len));
        }
        parts.push(("sums", homes.sums.iter().map(|(_, len, _)| padded(*len)).sum()));
        parts.push(("scratch", p.scratch_len.saturating_sub(homes.scratch_first).next_multiple_of(4)));
        if let Some(Rebuild::Chip(slots)) = self.rebuild {
            let each: usize = self.groups.iter().map(|g| g.slot(homes.threads, homes.cluster)).sum();
            parts.push(("slots", (slots * each).next_multiple_of(4)));
        }
        let (mut terms, mut ranks) = (0, 0);
        for nest in self.nests() {
            let (own, handed) = shared_floats(nest, homes);
            (terms, ranks) = (terms.max(own), ranks.max(handed));
        }
        parts.push(("terms", terms.next_multiple_of(4)));
        parts.push(("ranks", ranks));
        parts
    }

    /// Places the matrices; the registers of a thread, or the floats of shared memory that states lack.
    fn place(&self, homes: &mut Homes, room: usize) -> Result<usize, usize> {
        let most = (REGISTERS / homes.threads).min(255) / 8 * 8;
        let mut lacking = room;
        // What a thread may hold; less if the rest of the code then lacks registers.
        for budget in (0..=most.saturating_sub(WORKING)).rev().step_by(8) {
            let (held, missing) = place_within(homes, room, budget);
            let needed = self.registers(homes, held);
            if missing == 0 && needed <= most {
                return Ok(needed);
            }
            lacking = missing.max(usize::from(missing == 0) * room);
        }
        Err(lacking)
    }

    /// Registers of a thread that holds so many.
    fn registers(&self, homes: &Homes, held: usize) -> usize {
        let of_nest = |nest: &Nest| {
            let row_sums = nest.effects.iter().filter(|e| matches!(e, Effect::SumPost(..))).count();
            let is_stream = |a: &Access| match a {
                Access::Matrix(p) => homes.find(*p).is_none_or(|h| h.home == Home::Memory),
                _ => false,
            };
            let streams = nest.body.loads().filter(is_stream).count();
            let streams = if homes.in_registers(nest) { streams } else { 0 };
            // Guards of threads without elements.
            let idle = homes.shape(nest.extent).is_some_and(|s| s.threads() != homes.threads);
            let idle = if idle { PER_IDLE } else { 0 };
            idle + row_sums * PER_ROW_SUM + (nest.body.ops.len() / 4).min(40) + streams * PER_STREAM
        };
        let sweeps = self.nests().filter(|n| matches!(n.extent, Extent::Matrix { .. }));
        // Eight rows of all states are under way, and what a replay of them works with.
        let of_group = |group: &Group| {
            let ops = group.nests.iter().map(|n| n.body.ops.len()).max().unwrap_or(0);
            rebuild::ROWS * group.offsets.len() + (ops / 4).min(40)
        };
        let replays = self.groups.iter().map(of_group).max().unwrap_or(0);
        let extents = self.nests().filter_map(|n| homes.shape(n.extent)).map(|s| (s.post, s.pre));
        let shapes = extents.collect::<std::collections::BTreeSet<(usize, usize)>>().len();
        let fixed = WORKING + shapes.saturating_sub(1) * PER_SHAPE;
        fixed + sweeps.map(of_nest).max().unwrap_or(0).max(replays) + held * PER_HELD / 100
    }
}

/// Places matrices into so many registers of a thread and so many floats of shared memory; returns the
/// registers that they take, and the floats that states lack.
fn place_within(homes: &mut Homes, room: usize, budget: usize) -> (usize, usize) {
    let (mut registers, mut taken, mut lacking) = (0, 0, 0);
    let mut order: Vec<usize> = (0..homes.held.len()).collect();
    order.sort_by_key(|k| (rank(&homes.held[*k]), *k));
    for k in order {
        let held = &mut homes.held[k];
        let (rows, len) = (held.shape.rows, held.shape.len());
        held.home = if rows <= MOST_ROWS && registers + rows <= budget {
            registers += rows;
            Home::Registers(format!("own_{}", held.word))
        } else if taken + len <= room {
            taken += len;
            Home::Shared(taken - len)
        } else {
            let is_state = matches!(held.place.base, Base::Carry | Base::Snapshot(_));
            lacking += if is_state { len } else { 0 };
            Home::Memory
        };
    }
    (registers, if lacking > 0 { (lacking + taken).max(room + 1) } else { 0 })
}

/// What is placed first.
fn rank(held: &Held) -> (usize, std::cmp::Reverse<usize>) {
    let kind = match held.place.base {
        Base::Carry | Base::Snapshot(_) => 0,
        Base::Grads => 1,
        _ => 2,
    };
    (kind, std::cmp::Reverse(held.traffic))
}

/// Floats of shared memory that the sums of a nest take: for this block, and handed over by others.
pub(super) fn shared_floats(nest: &Nest, homes: &Homes) -> (usize, usize) {
    let count = |wanted: fn(&Effect) -> bool| nest.effects.iter().filter(|e| wanted(e)).count();
    let Some(shape) = homes.shape(nest.extent) else {
        let mut terms = std::collections::BTreeSet::new();
        for e in &nest.effects {
            if let (Effect::SumAll(_, v, w), Extent::Vector(_)) = (e, nest.extent) {
                terms.extend([Some((*v, false)), w.map(|w| (w, false))].into_iter().flatten());
            }
            if let (Effect::MaxAll(_, v), Extent::Vector(_)) = (e, nest.extent) {
                terms.insert((*v, true));
            }
        }
        return (terms.len() * (homes.threads + 8), 0);
    };
    let rows = count(|e| matches!(e, Effect::SumPost(..)));
    let columns = count(|e| matches!(e, Effect::SumPre(..)));
    let parts = shape.row_parts(homes.threads);
    let own = columns * (if parts > 1 { parts * shape.columns } else { 0 })
        + rows * shape.column_warps() * shape.pre;
    (own, if homes.cluster > 1 { rows * homes.cluster * shape.pre } else { 0 })
}
