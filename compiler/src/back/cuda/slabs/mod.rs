//! A step of the batch over the whole device: a row's matrices are shared by blocks.
//!
//! # Mapping
//!
//! The kernels of [`super`] give a row of the batch one block. Where the batch is small, or a row large, most of the
//! device has nothing to do, and a thread with a whole column waits for memory at every pre neuron. Here **a block is
//! a slab of columns** of a row, or of several rows, and has a thread for every column and *stretch* of pre neurons
//! ([`Cut`]): 32 columns and 8 stretches are 256 threads. Whoever owns a column owns it in all nests of a launch.
//!
//! What needs the columns of others needs another launch, since blocks do not wait for each other: a sum over a
//! vector, a sum over post (which each slab writes for itself, to be added up), a product with a
//! vector that was just computed. `phases` splits a routine at these places, and puts side by side what can be: a
//! launch has some tracks of slabs, each with its own columns, and one block for each row that does what is small
//! and needs everything: scalars and sums over vectors. For the common rules that is two launches per step in each
//! direction; the first sweeps over the matrices. Three things keep it at that:
//!
//! * Products that end a step going backward wait for the next call ([`crate::loops::postpone`]), where they run beside
//!   its sweep. Blocks of such tracks take turns, so that on a multiprocessor some compute while others wait for memory.
//! * Nests over vectors that follow each other are one (`join`): a thread keeps what it has computed, and waits once.
//! * The results of the slabs are added by all stretches of a block, each its share, and then the shares: a thread reads
//!   few of them one after the other. The launch that needs a sum is the one that adds it up.
//!
//! A launch that would also take the vectors of the step before, every block all of them for itself, would save one more
//! launch in each direction, 2 to 4 µs of a step. It is not done: outputs would be there a step late.
//!
//! Going forward a step writes the matrix states that it leaves to where it is told ([`crate::loops::onward`]): in place,
//! or to where they stay for the way back. With the states of every step at hand there is no replay, nor any copy.
//!
//! # Bytes and instructions
//!
//! A step is bound by bytes, if enough of them are on their way. To move 3 TB/s past a latency of 0.7 µs an H100
//! must have 2 MB under way, 16 KB per multiprocessor: with 1024 threads there, 16 bytes per thread. So a thread
//! reads several pre neurons before it computes, and shall take 64 registers.
//!
//! **Wider loads are not worth it.** A warp reads 32 neighbouring columns, one line of 128 bytes, so that loads of four
//! columns would save instructions and no bytes. Of the 150 instructions per
//! element that fit into the time of 16 bytes, the rules of the library take 20 to 60 (3 loads, 2 stores, their
//! addresses, 6 to 14 of arithmetic, 4 to 6 for each sum over post: shuffles, choices, additions). The nearest that a sweep
//! comes to its instructions is `plastic_lstm` going backward: 34 µs of them beside 39 µs of bytes, the product of the
//! gates with its sum over post included, which alone would take 15 µs of instructions for 5 of bytes. Beside the sweep it
//! costs its bytes. Nor would more bytes be under way: a thread has as many registers as before.
//!
//! Parameters that all rows read come from the second cache. At 24 bytes per element through it (two matrices
//! read and written, two of parameters) it would be as busy as the memory behind it; a block with `r` rows reads
//! parameters once for all of them, `16 + 8/r` bytes. The weights of the gates are read three times for six rows, 48 MB
//! through the cache in 8.6 µs, beside a sweep that keeps the memory busy for 23 or 33: two rows together are enough.
//! With six a thread would have a quarter of the loads under way.
//!
//! Expected on an H100 (132 multiprocessors, 3.0 TB/s), calculated, nothing of it measured:
//!
//! * `retroactive`, N = 256, batch 64 (4.2 million elements): forward two matrices of the row read and written, 16
//!   bytes for each element, 67 MB, 22 µs; backward five read (a state, its trace, two carried
//!   cotangents, the gradient of alpha) and three written, 32 bytes, 134 MB, 45 µs: 67 µs. With four launches and what
//!   they wait, [`solver`] says 84 µs where states are kept, and 109 with a replay of 22 µs of bytes. All states are 34
//!   MB, and fit into the second cache of 50 MB in part, which is not counted. Of the 32 bytes 8 are those of the
//!   gradient of alpha, which every row adds up for itself.
//! * `plastic_lstm`, N = 1149, batch 6 (7.9 million elements; the weights of the gates are 4 million more, 16 MB, read
//!   for several rows at a time): forward 8 bytes and 5 + 16 MB of weights, 84 MB, 28 µs;
//!   backward 12 bytes and 21 MB, 116 MB, 39 µs: 67 µs. With four launches, [`solver`] says 82 µs where states are kept,
//!   106 with a replay, and 9 ms with a block for each row.
//!
//! What would save more is states that stay on the chip ([`super::sequence`]).
//!
//! # Sums
//!
//! [`crate::loops::cut`] has written them into the loop IR: products over post by halves within a slab, then the slabs
//! stretch by stretch; over pre stretch by stretch; vectors as ever. So the bits are those of `loops::eval` for the program that is
//! given back, whatever the order of blocks and threads, and however many rows a block takes; they depend on the
//! sizes of slabs and stretches, hence on what [`solver`] has chosen for the sizes, the batch and the number of
//! multiprocessors. No addition is atomic.

mod join;
pub(super) mod phases;
pub mod solver;
mod sweep;
mod touches;
mod waits;

use super::barriers::Barriers;
use super::names::{Names, length, pointer};
use super::nest::{self, Bundle, Kernel};
use super::origins::Origins;
use super::text::Text;
use crate::loops::{Access, Base, Cut, Extent, Nest, Routine};
use phases::{Phase, Track};
pub use solver::{Choice, Grid, Wanted};
use std::collections::BTreeSet;
use sweep::Hold;
use waits::Waits;

/// Of the memory that a device has free, the part that the matrix states of every step may take, for which they are
/// kept: one in so many. A tape that keeps them needs no replay.
pub const KEPT: u64 = 8;

/// Threads that a multiprocessor has at a time, which then have 64 registers each.
const RESIDENT: usize = 1024;

/// Registers up to which the compiler is told so. It is an estimate that is often too high; above it the compiler
/// mostly finds that 64 are enough.
const REGISTERS: usize = 52;

/// A launch of a routine for a step, or for several.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StepKernel {
    /// Its name.
    pub name: String,
    /// Threads of a block.
    pub threads: usize,
    /// For every track: blocks of a row, and rows of the batch that a block takes together.
    pub slabs: Vec<(usize, usize)>,
    /// Whether there is also a block for each row.
    pub by_row: bool,
}

impl StepKernel {
    /// Blocks for a batch: `gridDim.x`.
    pub fn blocks(&self, rows: usize) -> usize {
        let of_track = |(slabs, together): &(usize, usize)| slabs * (rows / together + rows % together);
        self.slabs.iter().map(of_track).sum::<usize>() + if self.by_row { rows } else { 0 }
    }
}

/// What the kernels of a program share.
pub(super) struct Subject<'s> {
    pub(super) names: &'s Names,
    pub(super) origins: &'s Origins<'s>,
    pub(super) backward: bool,
}

impl Subject<'_> {
    fn kernel(&self, threads: usize) -> Kernel<'_> {
        Kernel {
            names: self.names,
            origins: self.origins,
            backward: self.backward,
            threads,
            homes: None,
            bundle: Bundle::ONE,
        }
    }

    /// Floats of shared memory that a launch takes.
    fn shared(&self, routine: &Routine, launch: &Planned, cut: Cut) -> usize {
        let kernel = self.kernel(threads(cut));
        let quiet = || Text::new("", "");
        let row = launch.phase.of_row(routine);
        let row = row.iter().map(|nest| nest::write(&kernel, nest, &mut quiet()));
        let tracks = launch.phase.tracks.iter().zip(&launch.together).flat_map(|(track, rows)| {
            let hold = Hold { cut, rows: *rows };
            track.joined(routine, cut).into_iter().map(move |nest| (nest, hold))
        });
        let tracks = tracks.map(|(nest, hold)| sweep::write(&kernel, &nest, hold, &mut quiet()));
        row.chain(tracks).max().unwrap_or(0)
    }
}

/// A launch, and how many rows of the batch a block of each track takes together.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Planned {
    phase: Phase,
    together: Vec<usize>,
}

/// Threads of a block.
fn threads(cut: Cut) -> usize {
    (cut.columns * cut.stretches).max(32)
}

/// Writes the kernels of a routine that is cut, by its number in [`crate::loops::NAMES`]; `meaning` says what it does.
pub(super) fn write(
    text: &mut Text,
    subject: &Subject<'_>,
    (number, name, meaning): (usize, &str, &str),
    routine: &Routine,
    choice: &Choice,
) -> Vec<StepKernel> {
    let Some(cut) = routine.cut else { return vec![] };
    let planned = &choice.planned[number];
    let of = planned.len();
    let write_one = |(k, launch): (usize, &Planned)| {
        let name = if of == 1 { name.to_owned() } else { format!("{name}_{}", k + 1) };
        let part = if of == 1 { String::new() } else { format!(" Launch {} of {of}.", k + 1) };
        text.line(&format!("// {meaning}{part}"));
        Writer { text: &mut *text, subject, routine, cut }.launch(&name, launch);
        let tracks = launch.phase.tracks.iter().zip(&launch.together);
        StepKernel {
            name,
            threads: threads(cut),
            slabs: tracks.map(|(t, rows)| (cut.slabs(t.columns), *rows)).collect(),
            by_row: !launch.phase.row.is_empty(),
        }
    };
    planned.iter().enumerate().map(write_one).collect()
}

struct Writer<'w> {
    text: &'w mut Text,
    subject: &'w Subject<'w>,
    routine: &'w Routine,
    cut: Cut,
}

impl Writer<'_> {
    fn launch(&mut self, name: &str, launch: &Planned) {
        let threads = threads(self.cut);
        let shared = self.subject.shared(self.routine, launch, self.cut);
        let blocks = (self.resident(launch) / threads).max(1);
        self.text.open(&format!(
            "extern \"C\" __global__ void __launch_bounds__({threads}, {blocks}) {name}(const Tape tape, const At at) {{"
        ));
        if shared > 0 {
            self.text.line(&format!("__shared__ float shared[{shared}];"));
        }
        self.text.line("const int batch = tape.rows;");
        self.text.line("int block = blockIdx.x;");
        if !launch.phase.tracks.is_empty() {
            self.text.line(&format!("constexpr int COLUMNS = {};", self.cut.columns));
            self.text.line("const int column = threadIdx.x % COLUMNS, stretch = threadIdx.x / COLUMNS;");
        }
        // What is small begins first: it would otherwise begin when the sweeps end.
        if !launch.phase.row.is_empty() {
            self.row_blocks(&launch.phase);
        }
        let [sweeps, others] = self.tracks(launch);
        for (track, rows) in others {
            self.track(track, rows, false);
        }
        if sweeps.len() > 1 {
            self.text.line("");
            self.text.line("// Blocks of these tracks take turns.");
            let all: Vec<String> = sweeps.iter().map(|(t, r)| self.count(t, *r)).collect();
            self.text.line(&format!("int left = {};", all.join(" + ")));
        }
        for (k, (track, rows)) in sweeps.iter().enumerate() {
            self.track(track, *rows, k + 1 < sweeps.len());
        }
        self.text.close();
        self.text.line("");
    }

    /// The tracks of a launch, with the rows that a block takes together: those that sweep over matrices, and the others.
    fn tracks<'l>(&self, launch: &'l Planned) -> [Vec<(&'l Track, usize)>; 2] {
        let is_matrix =
            |k: &usize| matches!(self.routine.nests[*k].extent, Extent::Matrix { .. } | Extent::Log { .. });
        let all = launch.phase.tracks.iter().zip(launch.together.iter().copied());
        let (sweeps, others) = all.partition(|(track, _)| track.nests.iter().any(is_matrix));
        [sweeps, others]
    }

    /// The blocks of a track, as text.
    fn count(&self, track: &Track, rows: usize) -> String {
        let slabs = self.cut.slabs(track.columns);
        match rows {
            1 => format!("{slabs} * batch"),
            n => format!("{slabs} * (batch / {n} + batch % {n})"),
        }
    }

    /// A block for each row of the batch; the last blocks of the launch if there are no others.
    fn row_blocks(&mut self, phase: &Phase) {
        let are_last = phase.tracks.is_empty();
        self.text.line("");
        self.text.line("// A block for each row of the batch.");
        if !are_last {
            self.text.open("if (block < batch) {");
        }
        self.text.line("const int row = block;");
        self.rows(phase);
        if !are_last {
            self.text.line("return;");
            self.text.close();
            self.text.line("block -= batch;");
        }
    }

    /// Threads that a multiprocessor shall have at a time. The compiler keeps to the registers that are left for each, or
    /// puts into memory what it cannot keep: launches that seem to need more get more.
    fn resident(&self, launch: &Planned) -> usize {
        let tracks = launch.phase.tracks.iter().zip(&launch.together);
        let nests = tracks.flat_map(|(track, rows)| track.nests.iter().map(move |k| (k, *rows)));
        // Nests over vectors that are joined have few threads, and may take what they need of the others' registers.
        match nests.map(|(k, rows)| sweep::registers(&self.routine.nests[*k], rows)).max() {
            None => 1,
            Some(n) if n <= REGISTERS => RESIDENT,
            Some(_) => RESIDENT / 2,
        }
    }

    /// The blocks of a track: those that take several rows, then those for the rows that are left. They take turns with
    /// those of the tracks behind it, or come first: of the `left` blocks evenly spread ones are this track's.
    fn track(&mut self, track: &Track, rows: usize, takes_turns: bool) {
        let slabs = self.cut.slabs(track.columns);
        let columns = track.columns;
        self.text.line("");
        let by = if rows > 1 { format!(", {rows} rows of the batch at a time") } else { String::new() };
        self.text.line(&format!("// {columns} columns: {slabs} slabs for each row{by}."));
        if takes_turns {
            let count = self.count(track, rows);
            self.text.line(&format!("const int of_{columns} = {count};"));
            self.text.line(&format!(
                "const int before_{columns} = (int)((long long)block * of_{columns} / left);"
            ));
            self.text.line(&format!(
                "const int behind_{columns} = (int)((long long)(block + 1) * of_{columns} / left);"
            ));
            self.text.open(&format!("if (before_{columns} < behind_{columns}) {{"));
            self.text.line(&format!("block = before_{columns};"));
        }
        self.groups(track, rows);
        if takes_turns {
            self.text.line("return;");
            self.text.close();
            self.text.line(&format!("block -= behind_{columns};"));
            self.text.line(&format!("left -= of_{columns};"));
        }
    }

    fn groups(&mut self, track: &Track, rows: usize) {
        let slabs = self.cut.slabs(track.columns);
        let (count, first) = match rows {
            1 => ("batch".to_owned(), "block % batch".to_owned()),
            n => (format!("batch / {n}"), format!("block % (batch / {n}) * {n}")),
        };
        self.text.open(&format!("if (block < {slabs} * ({count})) {{"));
        self.text.line(&format!("const int slab = block / ({count}), row = {first};"));
        self.nests(track, rows);
        self.text.line("return;");
        self.text.close();
        self.text.line(&format!("block -= {slabs} * ({count});"));
        if rows > 1 {
            let rest = format!("batch % {rows}");
            self.text.line("// The rows that are left, one by one.");
            self.text.open(&format!("if (block < {slabs} * ({rest})) {{"));
            let first = format!("batch / {rows} * {rows} + block % ({rest})");
            self.text.line(&format!("const int slab = block / ({rest}), row = {first};"));
            self.nests(track, 1);
            self.text.line("return;");
            self.text.close();
            self.text.line(&format!("block -= {slabs} * ({rest});"));
        }
    }

    /// The nests of a track, in the block of a slab.
    fn nests(&mut self, track: &Track, rows: usize) {
        let kernel = self.subject.kernel(threads(self.cut));
        self.pointers(&track.nests);
        let mut waits = Waits::default();
        for nest in track.joined(self.routine, self.cut) {
            self.text.line("");
            if waits.before(&nest, self.cut) {
                self.text.line("__syncthreads();");
            }
            sweep::write(&kernel, &nest, Hold { cut: self.cut, rows }, self.text);
        }
    }

    /// Nests in the block of a row.
    fn rows(&mut self, phase: &Phase) {
        let threads = threads(self.cut);
        let kernel = self.subject.kernel(threads);
        self.text.line(&format!("constexpr int THREADS = {threads};"));
        self.pointers(&phase.row);
        let mut barriers = Barriers::default();
        for nest in phase.of_row(self.routine) {
            self.text.line("");
            if barriers.before(&nest, threads) {
                self.text.line("__syncthreads();");
            }
            nest::write(&kernel, &nest, self.text);
        }
    }

    /// Pointers to the regions of a block's first row.
    fn pointers(&mut self, nests: &[usize]) {
        let backward = self.subject.backward;
        let mut found: BTreeSet<Base> = BTreeSet::new();
        for nest in nests.iter().map(|k| &self.routine.nests[*k]) {
            found.extend(bases(nest));
        }
        for base in found {
            let (word, value) = pointer(base, backward);
            if base == Base::Params {
                self.text.line(&format!("const float *__restrict__ const {word} = {value};"));
                continue;
            }
            let end = format!(", {})", length(base, backward));
            let value = value
                .replace("region(", "region_of(")
                .replace(&end, &format!("{}, row, batch)", &end[..end.len() - 1]));
            self.text.line(&format!("float *const {word} = {value};"));
        }
    }
}

/// The regions that a nest touches.
fn bases(nest: &Nest) -> BTreeSet<Base> {
    let is_number = |a: &Access| matches!(a, Access::Scalar(p) if p.base == Base::Scratch);
    let loads = nest.body.loads().filter(|a| !is_number(a)).map(|a| a.place().base);
    loads.chain(nest.effects.iter().map(|e| e.place().base)).collect()
}
