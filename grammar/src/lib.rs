//! The bpm language as text: syntax tree, parser, formatter and diagnostics.
//!
//! This crate knows what a spec looks like and nothing about what it means.

#![forbid(unsafe_code)]

pub mod ast;
pub mod codes;
pub mod diag;
pub mod format;
pub mod parse;
pub mod render;
pub mod span;
pub mod visit;

pub use format::{expr_text, format};
pub use parse::{Comment, Parsed, parse};
