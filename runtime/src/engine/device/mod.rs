//! A whole batch on a device with kernels in CUDA C (`compiler::back::cuda`).
//!
//! # Layers
//!
//! ```text
//! training         whole episodes, losses and the optimiser on the device
//! lending          batches whose arrays lie on the device, and are somebody else's
//! tape, backward   what runs when: steps, checkpoints, replay, gradients; knows no CUDA
//! sequences        whether kernels take whole sequences, and those kernels
//! regions, code    on which memory, with which kernels
//!   [Device]       memory, modules, launches, recorded sequences of launches
//!     cuda         the driver and NVRTC, loaded when they are asked for
//!     emulated     g++ and the emulator of the compiler: a device that is none, for tests
//! cache            compiled kernels on disk, for any device
//! open, choice     which device, and whether it is worth it
//! ```
//!
//! Everything above [`Device`] is the same for both, so that what is tested on the emulated device is what
//! drives a real one.
//!
//! # A tape
//!
//! A tape holds all rows of a batch, as the kernels have them: regions of one kind follow each other, step by
//! step and row by row within a step. The host sees of it what it writes and reads: inputs, outputs and their
//! cotangents, penalties. These travel packed, `[step][row][element]`, in one transfer each way per sequence
//! (per step, where an environment answers), and one kernel, `move_numbers`, puts them into frames and takes
//! them out.
//!
//! **Matrix states** are kept for the way back in one of two ways, which give the same bits. Where memory allows, those
//! after every frame have a place of their own: a step finds them in one and leaves them in the next, and the way back
//! reads them there. Else a step changes them in place, they are copied at checkpoints, and the steps between two of these
//! are replayed. [`regions`] decides, before anything is allocated.
//!
//! A sequence whose inputs are known is **recorded** once for its shape: all launches of all steps, with fixed
//! pointers, and replayed from then on as one. What is recorded is described by [`tape::Shape`]; anything
//! else is launched one by one.
//!
//! # Faults
//!
//! A device can fail at any launch, long after everything has been checked. The first fault is kept
//! ([`code::Code::fault`]); from then on nothing runs and all numbers are zero, and whoever drives the engine
//! asks [`super::Engine::check`] before it believes a result.
//!
//! # Sums
//!
//! Gradients are summed over steps for each row, then over rows in their order in double precision, by
//! kernels; nothing depends on how blocks are scheduled.

mod backward;
mod cache;
mod choice;
mod code;
mod cuda;
mod emulated;
mod fault;
pub mod lending;
mod nvrtc;
mod open;
mod regions;
mod reserve;
mod sequences;
mod tape;
#[cfg(test)]
pub(crate) mod tests;
mod training;

pub use choice::{Choice, Mapped, Work, choose};
pub(super) use code::{Code, Grads, Params};
pub use emulated::Emulated;
pub use fault::{Fault, FaultKind};
pub use open::{DeviceId, open};
pub(super) use regions::{Room, bytes, states};
pub use sequences::{Route, Tier};
pub(super) use tape::Tape;
pub(super) use training::bytes as training_bytes;
pub use training::{
    Aim, Loss, Motion, Parameter, Plan, Results, RowResult, Training, Update, Weights, World,
};

use std::ffi::c_int;

/// A place in a device's memory.
pub type Address = usize;

/// What a device is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct About {
    /// The name that its maker gave it.
    pub name: String,
    /// What code must be compiled for: `sm_90`.
    pub architecture: String,
    /// The compiler and its version: a part of the key of cached code.
    pub compiler: String,
    /// Multiprocessors.
    pub multiprocessors: usize,
    /// Bytes of shared memory that a block can have if it asks for them.
    pub shared: usize,
    /// Whether blocks can form clusters.
    pub clusters: bool,
}

/// Bytes of a device's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Memory {
    /// What can be had.
    pub free: u64,
    /// All of it.
    pub total: u64,
}

/// A loaded module.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Module(pub u64);

/// A kernel of a loaded module.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kernel(pub u64);

/// A recorded sequence of launches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Graph(pub u64);

/// The memory of a batch, as the kernels have it (`Tape` in their source).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TapeArgs {
    /// `[frame][row][FRAME]`
    pub frames: Address,
    /// `[step][row][ADJOINT]`
    pub adjoints: Address,
    /// `[number][row][MATRICES]`
    pub snapshots: Address,
    /// `[row][MATRICES]`: what a step finds; `[row][CARRY]` going backward.
    pub carry: Address,
    /// `[row][MATRICES]`: what a step going forward leaves, perhaps the same memory.
    pub next: Address,
    /// `[row][MATRICES]`
    pub ends: Address,
    /// `[row][GRADS]`
    pub grads: Address,
    /// `[row][LOGS]`
    pub logs: Address,
    /// `[row][LOG_BARS]`
    pub log_bars: Address,
    /// `[step of the launch][row][SCRATCH]`
    pub scratch: Address,
    /// `[PARAMS]`
    pub params: Address,
    /// The cotangent of the penalty.
    pub penalty_bar: f32,
    /// Rows of the batch.
    pub rows: c_int,
}

/// The step that a kernel is launched for (`At` in the source).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct At {
    /// The number of its frame.
    pub frame: c_int,
    /// Of its adjoint frame.
    pub adjoint: c_int,
    /// Of the snapshot before it.
    pub snapshot: c_int,
}

/// The steps that a kernel of a whole sequence takes (`Span` in the source).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// The number of the first step's frame.
    pub frame: c_int,
    /// Of its adjoint frame.
    pub adjoint: c_int,
    /// How many there are.
    pub steps: c_int,
    /// Steps between checkpoints.
    pub interval: c_int,
    /// Steps of the stretch that are over.
    pub done: c_int,
    /// The checkpoints of the stretch; null for none.
    pub checkpoints: Address,
}

/// The blocks of a launch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Blocks {
    /// How many there are, in x and y.
    pub grid: [u32; 2],
    /// Threads of a block.
    pub threads: u32,
    /// Blocks of a cluster, side by side in x.
    pub cluster: u32,
    /// Bytes of dynamic shared memory of a block.
    pub shared: u32,
}

/// The arguments of `move_numbers`: `to[r * to_length + to_map[k]] = from[r * from_length + from_map[k]]` for
/// `k` below `width` and `r` below `count`; a map that is null is the identity.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Move {
    /// The first number that is written to may be.
    pub to: Address,
    /// Places within a region.
    pub to_map: Address,
    /// The first number that may be read.
    pub from: Address,
    /// Places within a region.
    pub from_map: Address,
    /// Elements from region to region.
    pub to_length: i64,
    /// The same; zero if all come from one.
    pub from_length: i64,
    /// Numbers of a region.
    pub width: i64,
    /// Regions.
    pub count: i64,
}

/// A kernel's arguments, by the kinds of kernels that there are.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Call {
    /// A routine of the loop IR.
    Step(TapeArgs, At),
    /// All steps of a sequence.
    Sequence(TapeArgs, Span),
    /// `hoisted_…`: steps, rows, and where the sum in double precision lies.
    Hoisted(TapeArgs, At, [c_int; 2], Address),
    /// `add_rows`: gradients by row, rows, their length, the sum in double precision.
    AddRows(Address, [c_int; 2], Address),
    /// `move_numbers`
    Move(Move),
    /// A kernel that finds what it is told on the device, and a number.
    Kept(Address, c_int),
}

/// What the host wants of a device. Work is done in the order in which it is asked for; `upload` and
/// `download` return when the host's memory is free again.
///
/// # Safety
/// Addresses come from `allocate` of the same device, are not freed while work on them is under way, and
/// reach as far as the work does.
pub trait Device: Send + Sync {
    /// What it is.
    fn about(&self) -> &About;

    /// Its memory.
    ///
    /// # Errors
    /// If the device does not answer.
    fn memory(&self) -> Result<Memory, Fault>;

    /// Compiles a source for this device.
    ///
    /// # Errors
    /// With the compiler's words if it refuses.
    fn compile(&self, source: &str, name: &str) -> Result<Vec<u8>, Fault>;

    /// Loads what `compile` gave.
    ///
    /// # Errors
    /// If it is not for this device.
    fn load(&self, image: &[u8]) -> Result<Module, Fault>;

    /// Gives a module back.
    fn unload(&self, module: Module);

    /// A kernel by name.
    ///
    /// # Errors
    /// If the module does not have it.
    fn kernel(&self, module: Module, name: &str) -> Result<Kernel, Fault>;

    /// Takes memory; what it holds is not known.
    ///
    /// # Errors
    /// If there is too little.
    fn allocate(&self, bytes: usize) -> Result<Address, Fault>;

    /// Gives memory back.
    ///
    /// # Safety
    /// See the trait.
    unsafe fn free(&self, at: Address);

    /// From the host to the device.
    ///
    /// # Safety
    /// See the trait.
    ///
    /// # Errors
    /// If the device fails, here or in work before.
    unsafe fn upload(&self, to: Address, from: &[u8]) -> Result<(), Fault>;

    /// From the device to the host, when all work before is done.
    ///
    /// # Safety
    /// See the trait.
    ///
    /// # Errors
    /// If the device fails, here or in work before.
    unsafe fn download(&self, from: Address, to: &mut [u8]) -> Result<(), Fault>;

    /// Returns when all work is done.
    ///
    /// # Errors
    /// If the device fails, here or in work before.
    fn wait(&self) -> Result<(), Fault>;

    /// The stream, as the driver knows it, that others make wait for work of theirs which must come before ours; none where
    /// there is nothing to wait for.
    fn door(&self) -> Option<u64>;

    /// From now on work comes after all that the door waits for.
    ///
    /// # Errors
    /// If the device fails.
    fn admit(&self) -> Result<(), Fault>;

    /// From place to place.
    ///
    /// # Safety
    /// See the trait.
    ///
    /// # Errors
    /// If the device fails.
    unsafe fn copy(&self, to: Address, from: Address, bytes: usize) -> Result<(), Fault>;

    /// Zeros.
    ///
    /// # Safety
    /// See the trait.
    ///
    /// # Errors
    /// If the device fails.
    unsafe fn clear(&self, at: Address, bytes: usize) -> Result<(), Fault>;

    /// Runs a kernel with so many blocks of so many threads.
    ///
    /// # Safety
    /// See the trait; the kernel has the arguments of `call`.
    ///
    /// # Errors
    /// If the device refuses.
    unsafe fn launch(&self, kernel: Kernel, grid: [u32; 2], threads: u32, call: &Call) -> Result<(), Fault> {
        let blocks = Blocks { grid, threads, cluster: 1, shared: 0 };
        // SAFETY: as promised to this one.
        unsafe { self.launch_blocks(kernel, &blocks, call) }
    }

    /// Runs a kernel with blocks that share dynamic memory, and may form clusters. What they ask for was granted by
    /// [`Device::resident`].
    ///
    /// # Safety
    /// See the trait; the kernel has the arguments of `call`.
    ///
    /// # Errors
    /// If the device refuses.
    unsafe fn launch_blocks(&self, kernel: Kernel, blocks: &Blocks, call: &Call) -> Result<(), Fault>;

    /// How many clusters of such blocks run at the same time; none if not even one does. From then on the kernel may
    /// have so much dynamic shared memory.
    ///
    /// # Errors
    /// If the device does not answer.
    fn resident(&self, kernel: Kernel, blocks: &Blocks) -> Result<usize, Fault>;

    /// From now on `copy`, `clear` and `launch` are recorded and not done; nothing else may be asked for.
    ///
    /// # Errors
    /// If the device refuses.
    fn record(&self) -> Result<(), Fault>;

    /// Ends a recording.
    ///
    /// # Errors
    /// If something in it cannot be recorded.
    fn recorded(&self) -> Result<Graph, Fault>;

    /// Does what was recorded.
    ///
    /// # Safety
    /// See the trait, for all that was recorded.
    ///
    /// # Errors
    /// If the device refuses.
    unsafe fn replay(&self, graph: Graph) -> Result<(), Fault>;

    /// Gives a recording back.
    fn forget(&self, graph: Graph);
}
