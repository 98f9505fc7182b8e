//! Runs the step of a model on libtorch, a whole batch at once, and differentiates it with libtorch's autograd.
//!
//! It is a second opinion. Our interpreter gives the values of a step and, with our adjoint, its gradients. Here the
//! forward part of the step IR alone is handed to libtorch, which knows nothing of our derivatives: where both
//! agree, both are right, or wrong in the same way by two roads.
//!
//! ```text
//! ir::Function ── values: one operation of libtorch, or a few, for each of ours
//!              └─ tape:   states from step to step, leaves, outputs; backward by autograd
//! ```
//!
//! # Semantics
//!
//! * A batched value is a tensor `[rows, axes…]`, an unbatched one `[axes…]`. Elementwise operations have operands
//!   of one shape, so libtorch's broadcasting, which aligns the last axes, adds rows and nothing else.
//! * Where libtorch's derivative at a kink is not ours, the operation is built of pieces that have ours: a clip
//!   passes nothing at its bounds, a minimum gives its gradient at a tie to the second operand.
//! * States at the start of a stretch are leaves: nothing flows back from one stretch into the one before.
//! * Prologues run once per sequence, since their part of the graph is gone after a backward pass.
//!
//! # With and without
//!
//! libtorch is large, and its version must be exactly the one that the crate `tch` wants. So it is there only with
//! the feature `libtorch`. Without it the package has the same face, and [`Code::new`] gives a [`Fault`] that says
//! how to get it.
//!
//! It must not know the adjoint, the loops, the interpreter, or anything of the runtime.

mod fault;
#[cfg(feature = "libtorch")]
mod numbers;
#[cfg(feature = "libtorch")]
mod place;
#[cfg(feature = "libtorch")]
mod tape;
#[cfg(feature = "libtorch")]
mod values;

#[cfg(not(feature = "libtorch"))]
mod absent;

#[cfg(not(feature = "libtorch"))]
pub use absent::{Code, Number, Tape};
pub use fault::Fault;
#[cfg(feature = "libtorch")]
pub use numbers::Number;
#[cfg(feature = "libtorch")]
pub use place::Code;
#[cfg(feature = "libtorch")]
pub use tape::Tape;

/// Whether libtorch is built in.
pub const BUILT_IN: bool = cfg!(feature = "libtorch");

/// In how many bits libtorch computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Width {
    /// 32.
    Single,
    /// 64.
    Double,
}

/// Where libtorch computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// On the processor, on one thread: sums then have one order on every machine.
    Processor,
    /// On a CUDA device, by its number.
    Cuda(u32),
}

/// What a tape keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keep {
    /// The outputs of the last step.
    Last,
    /// The outputs of all steps.
    Outputs,
    /// What autograd needs; with or without the gradients of inputs.
    Graph {
        /// Whether inputs get gradients.
        inputs: bool,
    },
}

/// Cotangents of what a batch gave.
#[derive(Clone, Copy, Debug)]
pub struct Cotangents<'a, T> {
    /// By output, `[steps, rows, axes…]`.
    pub outputs: &'a [Vec<T>],
    /// Of every step's penalty, in every row.
    pub penalty: T,
    /// By state, `[rows, axes…]`: of the states after the last step; zero if absent.
    pub last: Option<&'a [Vec<T>]>,
}

/// What autograd gives for a batch. Where no gradient flows there are zeros.
#[derive(Clone, Debug, Default)]
pub struct Gradients<T> {
    /// By parameter, summed over rows and steps.
    pub params: Vec<Vec<T>>,
    /// By input, `[steps, rows, axes…]`; none for inputs without gradients.
    pub inputs: Vec<Option<Vec<T>>>,
    /// Of the states at the beginning and after each reset.
    pub starts: Vec<Start<T>>,
}

/// The cotangents of the states where a stretch of steps begins.
#[derive(Clone, Debug)]
pub struct Start<T> {
    /// The first step of the stretch.
    pub step: usize,
    /// By state, `[rows, axes…]`.
    pub states: Vec<Vec<T>>,
}
