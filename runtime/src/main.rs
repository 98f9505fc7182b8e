//! bpm
fn main() {}
