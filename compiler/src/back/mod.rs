//! Back ends: they spell the loop IR and decide nothing.

pub mod cranelift;
mod level;
pub mod x64;
