//! Loop IR → CUDA C, for people to read and for NVRTC to compile.
//!
//! # Mapping
//!
//! There are two for steps, and `slabs::solver` chooses for a device and a batch, routine by routine. The plain one,
//! described here, has one kernel for each routine: it takes a step (backward: its adjoint) of the whole batch, so
//! that a step is one launch. **A block is a row of the batch**; it runs the nests of the routine one after the other, with
//! a barrier between them where one needs what other threads did (`barriers`). **A thread is a column**: an
//! element of a vector, or a post neuron with all its synapses, down which it runs from the first pre neuron
//! to the last. Matrices lie as `[pre][post]`, so that neighbouring threads touch neighbouring numbers; a
//! plastic matrix is read once and written once per sweep. A block has at most [`MOST_THREADS`] threads; where
//! there are more columns, a thread takes several. Rows of the batch share parameters alone: gradients are
//! summed over steps for each row, then over rows by a kernel of its own. Nests over logs run over all events
//! that there can be; the host clears those that there are not.
//!
//! What this mapping costs: a row keeps one multiprocessor busy with a thread per neuron that waits for memory at
//! every pre neuron. It is the one that runs every model, and it is best where launches cost more than sweeps. Where
//! they do not, [`slabs`] shares a row among blocks; where states fit on the chip, [`sequence`] keeps them there.
//!
//! Routines that stand apart from the loop over time are launched once for many steps (`gridDim.y`).
//!
//! # Sums
//!
//! No sum depends on which thread comes first; there are no atomic additions.
//!
//! * Over pre: a thread adds down its column, one fused multiply-add after the other.
//! * Over post: the threads put a stretch of rows into shared memory; then eight threads for each row, one
//!   per lane, add the columns `l, l+8, l+16, …`; then neighbouring lanes, neighbouring pairs, the halves.
//! * Over a vector: in the same way, as one row.
//! * Over a whole matrix: the columns' sums, then these as a vector. [`crate::loops::by_columns`] has said so
//!   in the loop IR.
//! * Of gradients over rows of the batch: from the first row to the last, in double precision. Of products
//!   that are hoisted out of the loop: step by step, row by row within a step, in stretches of 512 products.
//!
//! **Bits.** Every kernel gives the bits that [`crate::loops::eval`] gives for the program that
//! [`emit`] returns. That program differs from the one for processors in sums over whole matrices: these
//! are rounded otherwise, and so is all that follows from them. Beyond that the results differ from a
//! processor's in the sums over rows and steps, which the engine takes in chunks of rows, in what a NaN has
//! in its bits, and in the sign of a zero that is the largest value of a matrix. The compiler must be kept
//! from changing operations: [`FLAGS`]. With them a device treats denormals as the engine lets a processor
//! treat them; without `--ftz=true` it keeps them. All this holds under the emulator, which keeps denormals as
//! `eval` does; no device has run it yet.
//!
//! # Source
//!
//! Names come from the spec (`names`), `#line` leads back to it (`text`, `origins`), expressions are those
//! of the loop IR (`values`); every function stands as the polynomial of `loops/math.rs`, and `fmaf` where it
//! says so and nowhere else. What does not depend on the spec is `prelude.cuh`.
//! `emulator.h` runs the same source on a processor: blocks and threads in any order.

mod barriers;
pub mod choice;
mod names;
mod nest;
mod origins;
pub mod sequence;
pub mod slabs;
mod text;
mod values;

use crate::ir::Function;
use crate::loops::{
    Access, Base, Extent, NAMES, Nest, Place, Program, Rank1, Routine, by_columns, onward, routines,
};
use barriers::Barriers;
pub use choice::{Candidates, Route, Tier, Wish};
use names::{Names, pointer, value_name};
use nest::{Bundle, Kernel};
use origins::Origins;
pub use sequence::{Arch, CLUSTERS, Device, Launch, Mapping, Refusal, Replay, Sequences};
pub use slabs::{Choice, Grid, StepKernel, Wanted};
use std::collections::BTreeSet;
use text::Text;

/// Most threads of a block: more would leave each too few registers.
pub const MOST_THREADS: usize = 512;

/// Floats of shared memory that a block may take: 48 KiB, which every device has.
const MOST_SHARED: usize = 12 * 1024;

/// Threads of a block of the kernels `hoisted_…`: a tile of 16 by 16.
pub const HOISTED_THREADS: usize = 256;

/// What NVRTC must be told to keep to the operations that stand in the source.
pub const FLAGS: [&str; 5] =
    ["--fmad=false", "--ftz=true", "--prec-div=true", "--prec-sqrt=true", "--std=c++17"];

/// What does not depend on the spec.
const PRELUDE: &str = include_str!("prelude.cuh");

/// What makes the source run on a processor: blocks one after the other, threads as fibers.
pub const EMULATOR: &str = include_str!("emulator.h");

/// Where a program comes from.
#[derive(Clone, Copy, Debug)]
pub struct Spec<'a> {
    /// The file of the spec, for `#line`.
    pub file: &'a str,
    /// Its text.
    pub source: &'a str,
    /// The name of the spec.
    pub name: &'a str,
    /// The step that was lowered.
    pub step: &'a Function,
    /// Its adjoint.
    pub adjoint: &'a Function,
}

/// A program as CUDA C.
#[derive(Clone, Debug)]
pub struct Source {
    /// The text.
    pub text: String,
    /// The program that it spells: matrices in one tile, sums over matrices by columns, matrix states written onward.
    pub program: Program,
    /// The launches of every routine, in order, by [`NAMES`]; none where a routine does nothing.
    pub kernels: [Vec<StepKernel>; NAMES.len()],
    /// How routines were mapped, if there was a choice.
    pub choice: Option<Choice>,
    /// The kernels of the gradients that are hoisted, by [`Program::rank1`].
    pub hoisted: Vec<String>,
    /// The kernels of whole sequences, which take the place of those of single steps in their directions.
    pub sequences: Option<Sequences>,
}

/// Routines that stand apart from the loop over time, by [`NAMES`].
const APART: [usize; 4] = [0, 4, 6, 10];

/// The replay, by [`NAMES`].
const REPLAY: usize = 5;

/// Spells a program for one row, whose grid then has a block for every row of the batch.
///
/// # Panics
/// If the program is for several rows.
pub fn emit(program: &Program, spec: &Spec<'_>) -> Source {
    spell(program, spec, [None, None], None)
}

/// Spells a program for one row, with the mapping that suits a device and a batch.
///
/// # Panics
/// If the program is for several rows.
pub fn emit_for(program: &Program, spec: &Spec<'_>, grid: Grid) -> Source {
    spell(program, spec, [None, None], Some(grid))
}

/// How the steps of a program are mapped to a device.
///
/// # Panics
/// If the program is for several rows.
pub fn map_steps(program: &Program, spec: &Spec<'_>, grid: Grid) -> Choice {
    let program = onward(&by_columns(program));
    let (names, origins) = (Names::new(&program, spec), Origins::new(&program, *spec));
    slabs::solver::choose(
        &program,
        &slabs::Subject { names: &names, origins: &origins, backward: false },
        grid,
    )
}

/// Spells a program with kernels that take whole sequences.
///
/// # Panics
/// If the program is for several rows, or the mapping for another program.
pub fn emit_sequences(program: &Program, spec: &Spec<'_>, mapping: &[Mapping; 2]) -> Source {
    spell(program, spec, mapping.each_ref().map(Some), None)
}

/// Spells a program with kernels that take whole sequences in the directions that are mapped, and kernels of single
/// steps in the others, mapped to a device and a batch.
///
/// # Panics
/// If the program is for several rows, or the mapping for another program.
pub fn emit_mixed(program: &Program, spec: &Spec<'_>, mapping: [Option<&Mapping>; 2], grid: Grid) -> Source {
    spell(program, spec, mapping, Some(grid))
}

/// How whole sequences of a program are mapped to a device, forward and backward; or why a direction cannot be.
pub fn map_sequences(program: &Program, spec: &Spec<'_>, device: &Device) -> [Result<Mapping, Refusal>; 2] {
    let program = by_columns(program);
    let names = Names::new(&program, spec);
    let word = |place: Place, backward: bool| {
        let word = names.word(place.base, place.offset, backward);
        word.unwrap_or_else(|| format!("m{}", place.offset))
    };
    sequence::solver::solve(&program, &word, device)
}

/// What a device can do with a batch: steps are mapped to `grid`, sequences to `device`.
///
/// # Panics
/// If the program is for several rows.
pub fn candidates(program: &Program, spec: &Spec<'_>, grid: Grid, device: &Device) -> Candidates {
    Candidates {
        steps: map_steps(program, spec, grid),
        sequences: map_sequences(program, spec, device),
        states: program.matrices_len,
        keeps: device.keeps(program.matrices_len),
    }
}

/// Kernels that take whole sequences, as a source of their own beside that of [`emit`].
#[derive(Clone, Debug)]
pub struct Whole {
    /// The text.
    pub text: String,
    /// How its kernels are launched.
    pub sequences: Sequences,
}

/// Spells the kernels of whole sequences alone, in the directions that are mapped: what stands apart from the loop
/// over time, hoisted gradients and the sum over rows are those of [`emit`].
///
/// # Panics
/// If the program is for several rows, or the mapping for another program.
pub fn emit_whole(program: &Program, spec: &Spec<'_>, mapping: [Option<&Mapping>; 2]) -> Whole {
    assert!(program.rows == 1, "the grid takes the rows of the batch");
    let program = by_columns(program);
    let names = Names::new(&program, spec);
    let origins = Origins::new(&program, *spec);
    let mut text = Text::new(spec.file, &format!("{}.sequences.cu", spec.name));
    head(&mut text, &program, spec, threads(&program, &names, &origins));
    text.lines(&names.source());
    let sequences = sequence::write(&mut text, &program, &names, &origins, mapping);
    Whole { text: text.finish(), sequences }
}

/// Spells the routines that no sequence takes, and sequences where they are mapped.
fn spell(program: &Program, spec: &Spec<'_>, mapping: [Option<&Mapping>; 2], grid: Option<Grid>) -> Source {
    assert!(program.rows == 1, "the grid takes the rows of the batch");
    let whole = by_columns(program);
    let (whole_names, whole_origins) = (Names::new(&whole, spec), Origins::new(&whole, *spec));
    // Sequences hold the states themselves.
    let by_steps = if mapping.iter().all(Option::is_some) { whole.clone() } else { onward(&whole) };
    let choice = grid.map(|grid| {
        let (names, origins) = (Names::new(&by_steps, spec), Origins::new(&by_steps, *spec));
        let subject = slabs::Subject { names: &names, origins: &origins, backward: false };
        slabs::solver::choose(&by_steps, &subject, grid)
    });
    let program = match &choice {
        Some(choice) => {
            let postponed = choice.postpones().then(|| crate::loops::postpone(&by_steps)).flatten();
            crate::loops::cut(&postponed.unwrap_or(by_steps), &choice.cuts)
        }
        None => by_steps,
    };
    let names = Names::new(&program, spec);
    let origins = Origins::new(&program, *spec);
    let threads = threads(&program, &names, &origins);
    let mut text = Text::new(spec.file, &format!("{}.cu", spec.name));
    head(&mut text, &program, spec, threads);
    text.lines(&names.source());
    let mut kernels: [Vec<StepKernel>; NAMES.len()] = [const { vec![] }; NAMES.len()];
    for (k, routine) in routines(&program).into_iter().enumerate().filter(|(_, r)| !r.nests.is_empty()) {
        // A replay belongs to the way back.
        let is_backward = k >= REPLAY;
        if mapping[usize::from(is_backward)].is_some() && !APART.contains(&k) {
            continue;
        }
        let name = NAMES[k].replace('.', "_");
        let backward = k > REPLAY;
        if let (Some(choice), Some(_)) = (&choice, routine.cut) {
            let subject = slabs::Subject { names: &names, origins: &origins, backward };
            let words = (k, name.as_str(), MEANINGS[k]);
            kernels[k] = slabs::write(&mut text, &subject, words, routine, choice);
            continue;
        }
        let bundle = Bundle::ONE;
        let kernel = Kernel { names: &names, origins: &origins, backward, threads, homes: None, bundle };
        write_kernel(&mut text, &kernel, k, &name, routine);
        kernels[k] = vec![StepKernel { name, threads, slabs: vec![], by_row: true }];
    }
    let hoisted = program.rank1.iter().enumerate();
    let hoisted = hoisted.map(|(k, r)| write_hoisted(&mut text, &names, spec, k, r)).collect();
    // Sequences take sums in orders of their own: nothing of them is cut. The regions are the same but for scratch,
    // which they do not have.
    let is_mapped = mapping.iter().any(Option::is_some);
    let sequences =
        is_mapped.then(|| sequence::write(&mut text, &whole, &whole_names, &whole_origins, mapping));
    Source { text: text.finish(), program: program.clone(), kernels, choice, hoisted, sequences }
}

/// Source without `#line`, for reading.
pub fn without_lines(text: &str) -> String {
    text.lines().filter(|l| !l.starts_with("#line ")).map(|l| format!("{l}\n")).collect()
}

/// Threads of a block: a warp, and more for as long as there are columns and shared memory.
fn threads(program: &Program, names: &Names, origins: &Origins<'_>) -> usize {
    let columns = |nest: &Nest| match nest.extent {
        Extent::Scalar => 1,
        Extent::Vector(n) => n,
        Extent::Matrix { post, .. } | Extent::Log { post, .. } => post,
    };
    let widest = routines(program).into_iter().flat_map(|r| &r.nests).map(columns).max().unwrap_or(1);
    let mut threads = widest.next_multiple_of(32).clamp(32, MOST_THREADS);
    let shared = |threads: usize| {
        let kernel = Kernel { names, origins, backward: true, threads, homes: None, bundle: Bundle::ONE };
        let whole = routines(program).into_iter().filter(|r| r.cut.is_none());
        whole.map(|r| shared_memory(&kernel, r)).max().unwrap_or(0)
    };
    while threads > 32 && shared(threads) > MOST_SHARED {
        threads = (threads / 2).next_multiple_of(32);
    }
    threads
}

/// Floats of shared memory that a routine takes.
fn shared_memory(kernel: &Kernel<'_>, routine: &Routine) -> usize {
    let of_nest = |nest: &Nest| nest::write(kernel, nest, &mut Text::new("", ""));
    routine.nests.iter().map(of_nest).max().unwrap_or(0)
}

/// What the file is, the prelude, the sizes.
fn head(text: &mut Text, program: &Program, spec: &Spec<'_>, threads: usize) {
    text.line(&format!("// {}, a step and its adjoint.", spec.name));
    text.line(&format!("// Made from {}. Compile it with {}.", spec.file, FLAGS.join(" ")));
    text.line("");
    text.lines(PRELUDE);
    text.line("");
    text.line("// Threads of a block, and the lengths of regions.");
    let sizes = [
        ("THREADS", threads),
        ("FRAME", program.frame_len),
        ("ADJOINT", program.adjoint_len),
        ("MATRICES", program.matrices_len),
        ("CARRY", program.carry_len),
        ("PARAMS", program.params_len),
        ("GRADS", program.grads_len),
        ("SCRATCH", program.scratch_len),
        ("LOGS", program.log_len),
        ("LOG_BARS", program.log_bar_len),
    ];
    for (name, size) in sizes {
        text.line(&format!("constexpr int {name} = {size};"));
    }
    text.line("");
}

/// What a routine does, in words, by [`NAMES`].
const MEANINGS: [&str; NAMES.len()] = [
    "Before the steps: what needs no state. For many steps at once.",
    "The first step.",
    "A later step, with what the step before left pending.",
    "What the last step left pending.",
    "After the steps: what feeds no state. For many steps at once.",
    "Rebuilds the matrix states after a step from those before it.",
    "Before the adjoints of the steps: what needs no carried cotangent. For many steps at once.",
    "The adjoint of the last step.",
    "The adjoint of an earlier step, with what the step after it left pending.",
    "What the adjoint of the first step left pending.",
    "After the adjoints of the steps: what feeds no state. For many steps at once.",
];

fn write_kernel(text: &mut Text, kernel: &Kernel<'_>, number: usize, name: &str, routine: &Routine) {
    let shared = shared_memory(kernel, routine);
    text.line(&format!("// {}", MEANINGS[number]));
    text.open(&format!(
        "extern \"C\" __global__ void __launch_bounds__(THREADS, 1) {name}(const Tape tape, const At at) {{"
    ));
    for base in bases(routine, kernel.threads) {
        let (word, value) = pointer(base, kernel.backward);
        let kind = if base == Base::Params { "const float *__restrict__ const" } else { "float *const" };
        text.line(&format!("{kind} {word} = {value};"));
    }
    if shared > 0 {
        text.line(&format!("__shared__ float shared[{shared}];"));
    }
    let mut barriers = Barriers::default();
    for nest in &routine.nests {
        text.line("");
        if barriers.before(nest, kernel.threads) {
            text.line("__syncthreads();");
        }
        nest::write(kernel, nest, text);
    }
    text.close();
    text.line("");
}

/// The regions that a routine touches.
fn bases(routine: &Routine, threads: usize) -> BTreeSet<Base> {
    let mut found = BTreeSet::new();
    for nest in &routine.nests {
        let is_number = |a: &Access| matches!(a, Access::Scalar(p) if p.base == Base::Scratch);
        found.extend(nest.body.loads().filter(|a| !is_number(a)).map(|a| a.place().base));
        found.extend(nest.effects.iter().map(|e| e.place().base));
        if nest::sums_rows(nest) && nest::is_in_stretches(nest, threads) {
            found.insert(Base::Scratch);
        }
    }
    found
}

/// The kernel of a hoisted gradient; returns its name.
fn write_hoisted(text: &mut Text, names: &Names, spec: &Spec<'_>, number: usize, rank1: &Rank1) -> String {
    let name = format!("hoisted_{number}");
    let series = |place: Place| {
        let offset = names.offset(place.base, place.offset, true);
        let shifted = |what: &str, at: &str, shift: i8, len: &str| {
            format!("{{tape.{what} + (long long)(at.{at} + {shift}) * rows * {len} + {offset}, {len}}}")
        };
        match place.base {
            Base::Frame(k) => shifted("frames", "frame", k, "FRAME"),
            Base::Adjoint(k) => shifted("adjoints", "adjoint", k, "ADJOINT"),
            _ => format!("{{tape.params + {offset}, 0}}"),
        }
    };
    let Rank1 { post, pre, .. } = *rank1;
    text.line(&format!(
        "// The gradient of {}, hoisted: a sum of products over steps and rows.",
        value_name(spec.step, rank1.value)
    ));
    text.line(&format!("// Launched with {} by {} blocks.", pre.div_ceil(16), post.div_ceil(16)));
    text.open(&format!("extern \"C\" __global__ void __launch_bounds__({HOISTED_THREADS}, 1) {name}("));
    text.line("const Tape tape, const At at, const int steps, const int rows, double *const sum) {");
    text.line(&format!("const Series a = {};", series(rank1.a)));
    text.line(&format!("const Series b = {};", series(rank1.b)));
    text.line(&format!("outer_products<{post}, {pre}>(a, b, steps * rows, sum);"));
    text.close();
    text.line("");
    name
}
