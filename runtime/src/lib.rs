//! The bpm runtime.
