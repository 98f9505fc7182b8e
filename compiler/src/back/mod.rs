//! Back ends: they spell the loop IR and decide nothing. All give the same bits; but PyTorch source, which spells the
//! model itself.

pub mod cranelift;
pub mod cuda;
mod level;
pub mod torch;
pub mod x64;

use crate::loops::{NAMES, Program};

/// A way to make machine code.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Target {
    /// Cranelift, with 128-bit vectors: any processor that it knows.
    Cranelift,
    /// x86-64 with AVX2 and FMA, with 256-bit vectors.
    X64,
}

impl Target {
    /// The fastest that this machine runs.
    pub fn fastest() -> Target {
        if x64::lacking().is_none() { Target::X64 } else { Target::Cranelift }
    }

    /// Its name on command lines and in run records.
    pub fn name(self) -> &'static str {
        match self {
            Target::Cranelift => "cranelift",
            Target::X64 => "x64",
        }
    }

    /// Compiles a program for this machine.
    ///
    /// # Errors
    /// [`BackError`] if the machine cannot run such code.
    pub fn compile(self, program: &Program) -> Result<Kernels, BackError> {
        Ok(match self {
            Target::Cranelift => {
                let kernels = cranelift::compile(program)?;
                let (entries, code_bytes) = (kernels.entries, kernels.code_bytes);
                Kernels {
                    entries,
                    together: None,
                    replay_steps: None,
                    code_bytes,
                    _code: Code::Cranelift(Box::new(kernels)),
                }
            }
            Target::X64 => {
                let kernels = x64::compile(program)?;
                let (entries, code_bytes) = (kernels.entries, kernels.code_bytes);
                let together = Some(kernels.together);
                Kernels {
                    entries,
                    together,
                    replay_steps: kernels.replay_steps,
                    code_bytes,
                    _code: Code::X64(kernels),
                }
            }
        })
    }
}

/// Machine code in memory.
pub struct Kernels {
    /// Entry points, by [`crate::loops::NAMES`]: functions of the type
    /// `unsafe extern "C" fn(*const *mut f32)`, whose argument is an array of pointers, one per entry
    /// of [`crate::loops::Base::ALL`]. They are valid as long as this lives.
    pub entries: [*const u8; NAMES.len()],
    /// Likewise, several steps at once ([`crate::loops::together`]), of the four routines that stand apart from the
    /// loop over time: `forward.before`, `forward.after`, `backward.before`, `backward.after`.
    pub together: Option<[*const u8; 4]>,
    /// `unsafe extern "C" fn(*const *mut f32, steps: u64)`: the routine `replay`, for one step or more
    /// from that on for which the pointers are, whose frames and snapshots follow each other.
    pub replay_steps: Option<*const u8>,
    /// Bytes of machine code.
    pub code_bytes: usize,
    _code: Code,
}

#[expect(dead_code, reason = "what is inside owns the memory of the code")]
enum Code {
    Cranelift(Box<cranelift::Kernels>),
    X64(x64::Kernels),
}

/// Why kernels could not be made.
#[derive(Debug, thiserror::Error)]
pub enum BackError {
    /// From Cranelift.
    #[error(transparent)]
    Cranelift(#[from] cranelift::JitError),
    /// From the x86-64 back end.
    #[error(transparent)]
    X64(#[from] x64::X64Error),
}
