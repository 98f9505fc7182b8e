//! bpmc
fn main() {}
