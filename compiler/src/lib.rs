//! The bpm compiler.
