//! The bpm runtime: trains compiled plastic networks on tasks, evaluates and plots them.
//!
//! ```text
//! recipe ─┬─ task      worlds, one episode per batch row
//!         ├─ learner   loss and cotangents of outputs
//!         └─ optim     parameters from gradients
//! ```
//!
//! Everything random comes from [`rng`], everything that is written goes through atomic renames.

pub mod against;
pub mod bench;
pub mod checkpoint;
pub mod cli;
pub mod commands;
pub mod compare;
pub mod encoder;
pub mod engine;
pub mod error;
pub mod eval;
pub mod exact;
pub mod exchange;
pub mod files;
pub mod language;
pub mod learner;
pub mod memory;
pub mod metrics;
pub mod optim;
pub mod options;
pub mod parallel;
pub mod params;
pub mod plot;
pub mod progress;
pub mod recipe;
pub mod report;
pub mod rng;
pub mod rollout;
pub mod run;
pub mod setup;
pub mod spec;
pub mod stats;
pub mod task;
pub mod tensors;
pub mod timings;
pub mod train;
pub mod wiring;

pub use error::Error;
