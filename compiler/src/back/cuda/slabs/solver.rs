//! Which mapping the kernels of single steps get: a block for each row of the batch, or slabs, and which.
//!
//! All candidates are tried: slabs of 8, 16 or 32 columns, blocks of 128 to 512 threads, for each track 1 to 8 rows
//! of the batch in a block; routine by routine also the mapping with a block for each row; products that can wait for
//! the next call ([`crate::loops::postpone`]) here or there. The times of launches are
//! added, those of a step forward, of its replay and of its adjoint; what stands apart counts a share. The estimate
//! knows per launch what it costs to begin and to wait for memory, and for every sweep five times ([`Times`]): bytes of
//! the device's memory, bytes of the second cache, bytes of the busiest multiprocessor, the latency of what is on its
//! way at a time, and instructions. A sweep takes the longest of them. Sweeps of one track follow each other; tracks run
//! side by side, block by block in turn, so that one that waits for memory and one that computes overlap: a launch takes
//! the longest of its tracks, and of the sums of each of the five over all of them. The constants are data sheets and
//! arithmetic ([`super`]); none has been measured.

use super::phases::{Costs, Phase, split};
use super::sweep::points;
use super::touches::columns;
use super::{Planned, RESIDENT, Subject, threads};
use crate::back::cuda::MOST_SHARED;
use crate::loops::{
    Access, Base, Cut, Effect, Extent, NAMES, Nest, Program, Routine, can_be_cut, cut, postpone, routines,
    slab_sums,
};
use std::fmt::Write;

/// A device and a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Grid {
    /// Multiprocessors.
    pub processors: usize,
    /// Rows of the batch.
    pub batch: usize,
    /// Which mapping, if not the fastest.
    pub wanted: Wanted,
}

/// Which mapping is wanted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Wanted {
    /// The one that is estimated to be the fastest.
    #[default]
    Fastest,
    /// A block for each row.
    Rows,
    /// These slabs, wherever a routine can be cut, and so many rows together if that many read the same.
    Slabs(Cut, usize),
}

/// Microseconds that a launch of a recorded sequence costs before its first and after its last instruction.
pub(in crate::back::cuda) const LAUNCH: f64 = 2.0;
/// Microseconds until memory answers: what a nest waits at least.
pub(in crate::back::cuda) const WAIT: f64 = 0.7;
/// Numbers of vectors that a thread reads in this time, one after the other.
const LOADS: f64 = 16.0;
/// Microseconds in which the threads of a block meet in shared memory and one of them adds what they bring.
const MEETING: f64 = 0.3;
/// Bytes per microsecond of the device's memory, of the second cache, of one multiprocessor.
pub(in crate::back::cuda) const MEMORY: f64 = 3.0e6;
pub(in crate::back::cuda) const CACHE: f64 = 5.5e6;
pub(in crate::back::cuda) const PROCESSOR: f64 = 8.0e4;
/// Microseconds for each element of a vector that is summed: eight threads add them, one after the other.
pub(in crate::back::cuda) const SUM: f64 = 0.0006;
/// Instructions per microsecond of one multiprocessor: 128 lanes, 1.7 GHz, two slots of three used.
const ISSUE: f64 = 1.45e5;
/// Steps of a launch that stands apart from the loop over time.
const APART: usize = 64;
/// Rows of the batch in a block, at most.
const TOGETHER: [usize; 6] = [1, 2, 3, 4, 6, 8];
/// Numbers that a thread keeps for its rows, at most.
const KEPT: usize = 40;

/// What was chosen.
#[derive(Clone, Debug, PartialEq)]
pub struct Choice {
    /// By [`NAMES`]: the cut, if the routine is cut.
    pub cuts: [Option<Cut>; NAMES.len()],
    /// By [`NAMES`]: its launches; none if the routine is not cut.
    pub(super) planned: Vec<Vec<Planned>>,
    /// Microseconds of a step, estimated: forward, replay, backward.
    pub times: [f64; 3],
    /// The same with a block for each row.
    pub by_rows: [f64; 3],
    /// Whether products going backward wait for the next call.
    pub(super) postpones: bool,
    /// For whom.
    pub grid: Grid,
}

/// The routines of a step, by [`NAMES`]: forward, replay, backward.
const STEP: [usize; 3] = [2, 5, 8];

impl Choice {
    /// Whether products going backward wait for the next call.
    pub(in crate::back::cuda) fn postpones(&self) -> bool {
        self.postpones
    }

    /// Launches of a step: forward, replay, backward.
    pub fn launches(&self) -> [usize; 3] {
        let mut launches = STEP.map(|k| self.planned[k].len().max(1));
        for (count, time) in launches.iter_mut().zip(self.by_rows) {
            // A routine without nests takes no time, and is not launched.
            *count = if time > 0.0 { *count } else { 0 };
        }
        launches
    }

    /// The mapping and the reason for it, in plain words.
    pub fn text(&self) -> String {
        let Grid { processors, batch, wanted } = self.grid;
        let sum = |t: &[f64; 3]| t.iter().sum::<f64>();
        let mut text = String::new();
        let names = ["forward", "replay", "backward"];
        for ((name, k), launches) in names.iter().zip(STEP).zip(self.launches()) {
            let how = match self.cuts[k] {
                None if launches == 0 => "there is nothing to do".to_owned(),
                None => "a block for each row of the batch".to_owned(),
                Some(cut) => {
                    let blocks: Vec<String> = self.planned[k].iter().map(|p| blocks(p, cut, batch)).collect();
                    format!(
                        "slabs of {} columns, {} stretches of rows; blocks: {}",
                        cut.columns,
                        cut.stretches,
                        blocks.join(", then ")
                    )
                }
            };
            let plural = if launches == 1 { "launch" } else { "launches" };
            let _ = writeln!(text, "  {name}: {launches} {plural}; {how}");
        }
        let reason = match wanted {
            Wanted::Fastest => "the least of all candidates",
            Wanted::Rows | Wanted::Slabs(..) => "as wanted",
        };
        let [forward, replay, backward] = self.times;
        let kept = match replay > 0.0 {
            true => format!("; {:.0} µs where the states of every step are kept", forward + backward),
            false => String::new(),
        };
        let _ = writeln!(
            text,
            "  {:.0} µs per step, forward, replay and backward, estimated, {reason}{kept}; \
             {:.0} µs with a block for each row ({batch} rows, {processors} multiprocessors)",
            sum(&self.times),
            sum(&self.by_rows)
        );
        text
    }
}

/// Blocks of a launch, in words.
fn blocks(planned: &Planned, cut: Cut, batch: usize) -> String {
    let tracks = planned.phase.tracks.iter().zip(&planned.together);
    let tracks = tracks.map(|(t, rows)| {
        let by = if *rows > 1 { format!(" of {rows} rows") } else { String::new() };
        format!("{}{by}", cut.slabs(t.columns) * (batch / rows + batch % rows))
    });
    let row = (!planned.phase.row.is_empty()).then(|| format!("{batch} whole rows"));
    tracks.chain(row).collect::<Vec<_>>().join(" + ")
}

/// Chooses the mapping of a program whose sums over matrices are taken by columns.
pub(in crate::back::cuda) fn choose(program: &Program, subject: &Subject<'_>, grid: Grid) -> Choice {
    let grid = Grid { batch: grid.batch.max(1), processors: grid.processors.max(1), ..grid };
    let uncut = Choice {
        cuts: [None; NAMES.len()],
        planned: vec![vec![]; NAMES.len()],
        times: STEP.map(|k| by_rows(routines(program)[k], grid)),
        by_rows: STEP.map(|k| by_rows(routines(program)[k], grid)),
        postpones: false,
        grid,
    };
    let candidates = match grid.wanted {
        Wanted::Rows => vec![],
        Wanted::Slabs(cut, _) => vec![cut],
        Wanted::Fastest => {
            let all = [32, 16, 8].into_iter().flat_map(|columns| [256, 512, 128].map(|t| (columns, t)));
            all.map(|(columns, threads)| Cut { columns, stretches: threads / columns }).collect()
        }
    };
    let mut best = (f64::INFINITY, uncut.clone());
    if grid.wanted == Wanted::Fastest {
        best.0 = total(&uncut, program, grid, &[None; NAMES.len()]);
    }
    let later = postpone(program);
    for cut in candidates {
        for (postpones, program) in [(false, Some(program)), (true, later.as_ref())] {
            let Some(program) = program else { continue };
            let start = Choice { postpones, ..uncut.clone() };
            let (cost, choice) = with(program, subject, (cut, grid), &start);
            if cost < best.0 {
                best = (cost, choice);
            }
        }
    }
    best.1
}

/// What a choice costs per step: its routines, those apart by their share.
fn total(choice: &Choice, program: &Program, grid: Grid, costs: &[Option<f64>; NAMES.len()]) -> f64 {
    let apart = super::super::APART;
    let steps = |k: usize| if apart.contains(&k) { APART } else { 1 };
    let each = (0..NAMES.len()).filter(|k| apart.contains(k) || STEP.contains(k));
    each.map(|k| {
        let grid = Grid { batch: grid.batch * steps(k), ..grid };
        let cost = costs[k].filter(|_| choice.cuts[k].is_some());
        cost.unwrap_or_else(|| by_rows(routines(program)[k], grid)) / steps(k) as f64
    })
    .sum()
}

/// The choice with one kind of slabs, wherever that is better.
fn with(
    program: &Program,
    subject: &Subject<'_>,
    (slabs, grid): (Cut, Grid),
    uncut: &Choice,
) -> (f64, Choice) {
    let possible = routines(program).map(|r| !r.nests.is_empty() && can_be_cut(r));
    let whole = cut(program, &possible.map(|p| p.then_some(slabs)));
    let mut choice = uncut.clone();
    let mut costs = [None; NAMES.len()];
    for (k, routine) in routines(&whole).into_iter().enumerate().filter(|(k, _)| possible[*k]) {
        let steps = if super::super::APART.contains(&k) { APART } else { 1 };
        let model = Model { cut: slabs, grid, steps, longest: longest(&whole) };
        let phases = split(routine, slabs, &model);
        let cost = phases.iter().map(|p| model.phase(routine, p)).sum::<f64>();
        let planned: Vec<Planned> = phases
            .into_iter()
            .map(|phase| Planned { together: model.together(routine, &phase), phase })
            .collect();
        let subject = Subject { backward: k > 5, ..*subject };
        let fits = planned.iter().all(|p| subject.shared(routine, p, slabs) <= MOST_SHARED);
        let is_better = match grid.wanted {
            Wanted::Fastest => {
                cost < by_rows(routines(program)[k], Grid { batch: grid.batch * steps, ..grid })
            }
            Wanted::Rows | Wanted::Slabs(..) => true,
        };
        if fits && is_better {
            costs[k] = Some(cost);
            choice.cuts[k] = Some(slabs);
            choice.planned[k] = planned;
            if let Some(n) = STEP.iter().position(|s| *s == k) {
                choice.times[n] = cost;
            }
        }
    }
    (total(&choice, program, grid, &costs), choice)
}

fn longest(p: &Program) -> usize {
    let all = [p.frame_len, p.adjoint_len, p.matrices_len, p.carry_len, p.grads_len, p.scratch_len];
    all.into_iter().chain([p.log_len, p.log_bar_len]).max().unwrap_or(0)
}

/// Bytes that a nest moves for one element, and how many operations it has.
struct Stream {
    elements: f64,
    /// Of the row's own matrices: read and written.
    own: f64,
    /// Of parameters.
    shared: f64,
    /// Instructions for an element.
    work: f64,
}

impl Stream {
    fn of(nest: &Nest) -> Option<Stream> {
        let (Extent::Matrix { post, pre } | Extent::Log { post, pre }) = nest.extent else { return None };
        let matrices = nest.body.loads().filter(|a| matches!(a, Access::Matrix(_)));
        let (params, own): (Vec<Access>, Vec<Access>) =
            matrices.partition(|a| a.place().base == Base::Params);
        let written = nest.effects.iter().map(|e| match e {
            Effect::Store(Access::Matrix(_), _) => 1.0,
            Effect::Add(Access::Matrix(_), ..) => 2.0,
            Effect::Store(..) | Effect::Add(..) => 0.0,
            Effect::SumPre(..) | Effect::SumPost(..) | Effect::SumAll(..) | Effect::MaxAll(..) => 0.0,
        });
        let written: f64 = written.sum();
        let posts = nest.effects.iter().filter(|e| matches!(e, Effect::SumPost(..))).count();
        let streams = params.len() as f64 + own.len() as f64 + written;
        Some(Stream {
            elements: (post * pre) as f64,
            own: 4.0 * (own.len() as f64 + written),
            shared: 4.0 * params.len() as f64,
            work: (nest.body.ops.len() + nest.effects.len() + 6 * posts) as f64 + 3.0 * streams,
        })
    }
}

/// The estimate for slabs.
struct Model {
    cut: Cut,
    grid: Grid,
    /// Steps of a launch.
    steps: usize,
    /// Elements of the longest region of a row: places within a block's rows are 32-bit numbers.
    longest: usize,
}

impl Costs for Model {
    fn phase(&self, routine: &Routine, phase: &Phase) -> f64 {
        let (mut all, mut longest, mut waits) = (Times::default(), 0.0f64, 0.0f64);
        for track in &phase.tracks {
            let rows = self.rows(routine, &track.nests);
            let (mut swept, mut waited) = (0.0, 0.0);
            for nest in track.joined(routine, self.cut) {
                waited += WAIT;
                match self.sweep(&nest, rows) {
                    Some(times) => (swept, all) = (swept + times.longest(), all.and(times)),
                    None => waited += self.at_columns(&nest),
                }
            }
            (longest, waits) = (longest.max(swept + waited), waits.max(waited));
        }
        let row: f64 = phase.of_row(routine).iter().map(|nest| self.in_row(nest)).sum();
        LAUNCH + longest.max(all.longest() + waits).max(row)
    }
}

/// What a sweep takes of a device, in microseconds.
#[derive(Clone, Copy, Debug, Default)]
struct Times {
    memory: f64,
    cache: f64,
    /// The multiprocessor that moves most.
    busiest: f64,
    latency: f64,
    issue: f64,
}

impl Times {
    fn longest(self) -> f64 {
        self.memory.max(self.cache).max(self.busiest).max(self.latency).max(self.issue)
    }

    /// Both, side by side.
    fn and(self, other: Times) -> Times {
        Times {
            memory: self.memory + other.memory,
            cache: self.cache + other.cache,
            busiest: self.busiest + other.busiest,
            latency: self.latency + other.latency,
            issue: self.issue + other.issue,
        }
    }
}

impl Model {
    /// A nest over a vector, without what it waits at least.
    fn at_columns(&self, nest: &Nest) -> f64 {
        let loads = nest.body.loads().count() as f64;
        match slab_sums(nest, self.cut).filter(|_| self.cut.stretches > 1) {
            Some(sums) => {
                let each: usize = sums.iter().map(|s| s.slabs.div_ceil(self.cut.stretches)).sum();
                MEETING + WAIT * each as f64 / LOADS
            }
            None => WAIT * loads / LOADS,
        }
    }

    /// For every track, rows that a block takes together.
    fn together(&self, routine: &Routine, phase: &Phase) -> Vec<usize> {
        phase.tracks.iter().map(|t| self.rows(routine, &t.nests)).collect()
    }

    /// How many rows of the batch a block of a track takes together.
    fn rows(&self, routine: &Routine, nests: &[usize]) -> usize {
        let nests: Vec<&Nest> = nests.iter().map(|k| &routine.nests[*k]).collect();
        let gains = nests.iter().filter_map(|n| Stream::of(n)).any(|s| s.shared > 0.0);
        if !gains {
            return 1;
        }
        if let Wanted::Slabs(_, rows) = self.grid.wanted {
            return rows.max(1);
        }
        let possible = TOGETHER.into_iter().filter(|r| *r <= self.grid.batch);
        let possible = possible.filter(|r| nests.iter().all(|n| self.fits(n, *r)));
        let cost = |rows: &usize| -> f64 {
            let rest = !self.grid.batch.is_multiple_of(*rows);
            let sum: f64 = nests.iter().map(|n| self.nest(n, *rows)).sum();
            sum + if rest { WAIT } else { 0.0 }
        };
        possible.min_by(|a, b| cost(a).total_cmp(&cost(b))).unwrap_or(1)
    }

    /// Whether a thread can keep what it needs for so many rows, and its block the parts of sums.
    fn fits(&self, nest: &Nest, rows: usize) -> bool {
        let sums = |f: fn(&Effect) -> bool| nest.effects.iter().filter(|e| f(e)).count();
        let columns = sums(|e| matches!(e, Effect::SumPre(..)));
        let posts = sums(|e| matches!(e, Effect::SumPost(..)));
        let loads = nest.body.loads().filter(|a| a.place().base != Base::Params).count();
        let shared = columns * rows * self.cut.columns * self.cut.stretches;
        let kept = rows * (columns + loads + posts * points(nest, rows));
        let is_addressable = rows.saturating_mul(self.longest) <= i32::MAX as usize;
        rows == 1 || kept <= KEPT && shared <= MOST_SHARED && is_addressable
    }

    /// A nest in slabs, in microseconds, without what it waits at least.
    fn nest(&self, nest: &Nest, rows: usize) -> f64 {
        self.sweep(nest, rows).map_or_else(|| self.at_columns(nest), Times::longest)
    }

    /// A nest over a matrix.
    fn sweep(&self, nest: &Nest, rows: usize) -> Option<Times> {
        let s = Stream::of(nest)?;
        let Grid { processors, batch, .. } = self.grid;
        let groups = (self.steps * (batch / rows + batch % rows)) as f64;
        let batch = self.steps * batch;
        let blocks = self.cut.slabs(columns(nest)) as f64 * groups;
        // Narrow slabs read parts of what memory gives at a time.
        let waste = match self.cut.columns {
            0..=8 => 1.5,
            9..=16 => 1.1,
            _ => 1.0,
        };
        let moved = s.elements * (s.own * batch as f64 + s.shared * groups) * waste;
        let memory = s.elements * (s.own * batch as f64 + s.shared) * waste / MEMORY;
        let busiest = (blocks / processors as f64).ceil() * moved / blocks / PROCESSOR;
        let resident = (RESIDENT / threads(self.cut)).max(1) * processors;
        let threads = threads(self.cut) as f64 * blocks.min(resident as f64);
        let taken = points(nest, rows) as f64;
        let under_way = threads * taken * (s.own * rows as f64 + s.shared).max(4.0);
        let latency = moved / under_way * WAIT;
        let busy = (blocks.min(processors as f64)).max(1.0);
        let issue = s.work * s.elements * batch as f64 / (busy * ISSUE);
        Some(Times { memory, cache: moved / CACHE, busiest, latency, issue })
    }

    /// A nest in the block of a row.
    fn in_row(&self, nest: &Nest) -> f64 {
        let waves = (self.steps * self.grid.batch).div_ceil(self.grid.processors * 2) as f64;
        waves * small(nest, threads(self.cut))
    }
}

/// A nest over a vector, or a scalar, in one block.
fn small(nest: &Nest, threads: usize) -> f64 {
    let Extent::Vector(n) = nest.extent else { return WAIT };
    let whole = |e: &&Effect| matches!(e, Effect::SumAll(..) | Effect::MaxAll(..));
    let sums = nest.effects.iter().filter(whole).count();
    let sum = if sums > 0 { MEETING + n as f64 * SUM } else { 0.0 };
    let loads = nest.body.loads().count() as f64;
    WAIT + sum + n.div_ceil(threads) as f64 * WAIT * loads / LOADS
}

/// A routine with a block for each row: a thread runs down its columns, and waits at every pre neuron.
fn by_rows(routine: &Routine, grid: Grid) -> f64 {
    if routine.nests.is_empty() {
        return 0.0;
    }
    let widest = routine.nests.iter().map(columns).max().unwrap_or(1);
    let threads = widest.next_multiple_of(32).clamp(32, super::super::MOST_THREADS);
    let waves = grid.batch.div_ceil(grid.processors * (RESIDENT / threads).max(1)) as f64;
    let nest = |nest: &Nest| match Stream::of(nest) {
        None => waves * small(nest, threads),
        Some(s) => {
            let rounds = (columns(nest).div_ceil(threads)) as f64;
            let (Extent::Matrix { post, pre } | Extent::Log { post, pre }) = nest.extent else { return 0.0 };
            let stalls = waves * rounds * pre as f64 * WAIT / 2.0;
            let bytes = (post * pre) as f64 * grid.batch as f64 * (s.own / MEMORY + s.shared / CACHE);
            stalls.max(bytes)
        }
    };
    LAUNCH + routine.nests.iter().map(nest).sum::<f64>()
}
