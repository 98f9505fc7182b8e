//! Whole sequences in one launch: the plastic state never leaves the chip.
//!
//! # Mapping
//!
//! One kernel takes all steps of a stretch forward, one all of them backward. A row of the batch belongs to
//! one block, or to a cluster of blocks that share it by post columns: block `r` has the columns
//! `[r·n, (r+1)·n)` of every matrix. A thread owns one column and every `g`-th pre neuron of it, the same in
//! all nests, in the element order `[k][row group][column]`, so that what it owns (states, carried cotangents,
//! sums of gradients, slabs of parameters) can lie in its registers, or in shared memory, or stay in the
//! device's memory, without any other thread ever looking there. [`solver`] decides which.
//!
//! Vectors are small: every block keeps all of them, in shared memory, in a ring of the frames that a step
//! looks at. Nests over vectors run in every block alike, with equal bits. A nest over a matrix gives sums:
//!
//! * Over pre: a thread adds its rows in ascending order; the row groups of a warp by butterflies, then warps
//!   in ascending order; the block hands its columns' sums to all blocks of the cluster.
//! * Over post: butterflies over the columns of a warp (eight rows at a time, so that each of eight lanes ends
//!   with one row), then the block's warps, then the blocks of the cluster in ascending order, each block for
//!   itself from the parts that all have handed to all.
//!
//! So the order of every sum is fixed by the mapping, whatever the order of threads, and no addition is
//! atomic. Within a thread the operations are those of the loop IR, as in the other kernels. The bits are not
//! those of a kernel per step where a sum over pre has several row groups, and in sums over post.
//!
//! # Time
//!
//! Forward: before (joined: after) every `interval`-th step the states go to a checkpoint in memory. The
//! frame of the next step is fetched while a step runs (`cp.async`), and a frame goes to memory when nothing
//! will write to it any more. Backward, segment by segment from the last, the adjoints of the segment's steps run
//! in descending order; before each, the states that it reads are rebuilt on the chip (`rebuild`), or
//! those of a whole segment through memory where the chip has no room. Gradients of matrices that are no products
//! of vectors are added up by their owner over all steps. Products that stand apart from the loop over time,
//! hoisted gradients, and the sum over rows are kernels of their own, as they are without sequences.
//!
//! # Barriers
//!
//! `waits` puts them where [`super::barriers`] would, and one for the whole cluster where a block reads what
//! others have handed to it, or hands out what others may still be reading. Every step ends with one, and
//! nothing is handed to a block behind the last one, so that no block ends too early.
//!
//! # Launch
//!
//! See [`Launch`]: `rows · cluster` blocks in x (the kernel carries its cluster's dimensions), `threads`
//! threads, `shared_bytes` of dynamic shared memory (above 48 KiB the function's attribute must allow it).
//! Arguments: `Tape`, then `Span`. Going forward, `tape.carry` has the states at the start and at the end.
//! Going backward it has the carried cotangents if the program carries states ([`Program::carries_states`]);
//! otherwise `tape.ends` has the cotangents at the end, then at the start. `span.interval` can be any
//! ([`Mapping::interval`] is the one that costs least), and `tape.snapshots` has room for as many snapshots as
//! [`Mapping::snapshots`] says. Order: `forward_before`, [`Sequences::forward`], `forward_after`;
//! `backward_before`, [`Sequences::backward`], `backward_after`, `hoisted_…`, `add_rows`.
//! What is not supported runs a kernel per step, and [`Refusal`] says why. The directions know nothing of each
//! other but the checkpoints: one may run so and the other by steps ([`super::choice`]).

mod arch;
mod cost;
mod homes;
mod kernel;
mod rebuild;
mod replay;
pub mod solver;
mod sweep;
mod waits;

use super::names::Names;
use super::origins::Origins;
use super::text::Text;
use crate::loops::{Program, Routine};
pub use arch::{Arch, CLUSTERS, Device, Replay};
pub(super) use homes::Homes;
pub(super) use rebuild::USUAL as CHECKPOINT_EVERY;
pub use solver::{Mapping, Refusal};

/// What sequences share, besides the prelude.
const PRELUDE: &str = include_str!("sequence.cuh");

/// How a kernel of a whole sequence is launched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Launch {
    /// Its name.
    pub name: String,
    /// Threads of a block.
    pub threads: usize,
    /// Blocks that share a row of the batch.
    pub cluster: usize,
    /// Dynamic shared memory of a block.
    pub shared_bytes: usize,
    /// Registers of a thread, as foreseen.
    pub registers: usize,
}

/// The kernels of whole sequences, in the directions that have one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sequences {
    /// All steps.
    pub forward: Option<Launch>,
    /// Their adjoints.
    pub backward: Option<Launch>,
}

/// The routines of a direction.
pub(super) fn routines(program: &Program, backward: bool) -> Vec<&Routine> {
    let steps = if backward { &program.backward } else { &program.forward };
    vec![&steps.first, &steps.step, &steps.flush]
}

/// Writes the kernels of whole sequences, in the directions that are mapped.
pub(super) fn write(
    text: &mut Text,
    program: &Program,
    names: &Names,
    origins: &Origins<'_>,
    mapping: [Option<&Mapping>; 2],
) -> Sequences {
    text.lines(PRELUDE);
    text.line("");
    let mut launch = |backward: bool| {
        let subject = kernel::Subject { program, names, origins, backward };
        mapping[usize::from(backward)].map(|m| kernel::write(text, &subject, m))
    };
    Sequences { forward: launch(false), backward: launch(true) }
}
