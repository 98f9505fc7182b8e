//! The bpm runtime: trains compiled plastic networks on tasks, evaluates and plots them.
//!
//! ```text
//! recipe ─┬─ task      worlds, one episode per batch row
//!         ├─ learner   loss and cotangents of outputs
//!         └─ optim     parameters from gradients
//! ```
//!
//! Everything random comes from [`rng`], everything that is written goes through atomic renames.

pub mod engine;
pub mod error;
pub mod learner;
pub mod options;
pub mod rng;
pub mod task;

pub use error::Error;
