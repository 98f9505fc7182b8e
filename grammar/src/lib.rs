//! The bpm language as text: syntax tree, parser, formatter and diagnostics.
//!
//! This crate knows what a spec looks like and nothing about what it means.

#![forbid(unsafe_code)]

pub mod ast;
pub mod diag;
pub mod span;
