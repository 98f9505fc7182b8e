//! CUDA kernels without a GPU: the source that the back end prints runs under an emulator of blocks, barriers
//! and shuffles. It must give the bits of the loop IR, whatever the order of threads, and whole sequences
//! must agree with the interpreter in double precision.

mod bits;
mod device;
mod goldens;
mod library;
mod mistakes;
mod mixed;
mod persistent;
mod sequences;
mod slabs;
