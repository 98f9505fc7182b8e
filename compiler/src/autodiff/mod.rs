//! Differentiation of the step IR: one table of rules, two directions.
//!
//! [`rules`] gives, for every elementwise operation, its partial derivatives. Structural operations
//! (broadcasts, reductions, contractions, slices) are linear or bilinear; [`reverse`] and
//! [`forward`] spell their transposes and tangents, each with its equation.
//!
//! # The adjoint of a step
//!
//! A primal step maps parameters θ, inputs u and states S to states S' and outputs o. Its adjoint
//! maps the cotangents of S' and o to those of S, u and θ. It reads the primal step where it needs
//! to: scalars and vectors as they were computed ([`crate::ir::Source::Primal`], the tape), states
//! before and after the step ([`crate::ir::Source::State`], [`crate::ir::Source::Next`]). Matrices
//! that are no states are not taped: the adjoint recomputes them from states and vectors, which
//! costs elementwise work alone, since every contraction is a taped vector.
//!
//! Unbatched values (parameters and what follows from them alone) form the boundary: the step's
//! adjoint gives one contribution per row and step for each boundary value, and the adjoint of the
//! prologue runs once on their sum.

mod forward;
mod reverse;
mod rules;

pub use forward::forward;
pub use reverse::{boundary, prepare, prologue, step};
