//! The bpm compiler: text in, typed model, step IR, adjoint, plan, loops and kernels out.

#![forbid(unsafe_code)]

pub mod autodiff;
pub mod back;
pub mod check;
pub mod doc;
pub mod explain;
pub mod form;
pub mod gradcheck;
pub mod interp;
pub mod ir;
pub mod loops;
pub mod model;
pub mod passes;
mod scan;
pub mod stages;
mod tex;
pub mod verdict;

pub use scan::ParseError;
