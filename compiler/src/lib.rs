//! The bpm compiler: text in, typed model, step IR, adjoint, plan, loops and kernels out.

#![forbid(unsafe_code)]

pub mod check;
pub mod explain;
pub mod ir;
pub mod model;
