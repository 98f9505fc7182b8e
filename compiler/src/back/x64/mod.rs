//! Loop IR → machine code for x86-64 with AVX2 and FMA, with 256-bit vectors; with 512-bit vectors where there is
//! AVX-512 (`wide`).
//!
//! The same nests as [`super::cranelift`], in the same order of operations, hence with the same
//! bits; a register of the loop IR is one machine register here, or half of one. A nest is a few counted loops
//! around straight-line code, so a small assembler and an allocator of registers that sees all of
//! that code at once ([`straight`]) are enough, and take a tenth of the time of a general code
//! generator.

mod asm;
mod nest;
mod place;
mod replay;
mod straight;
mod wide;

use crate::loops::{NAMES, Program, Routine, routines, together};
use asm::{Asm, based};
use iced_x86::{Code, Instruction, Register};
use memmap2::{Mmap, MmapMut};
use place::SAVED;
pub use wide::Vectors;

/// Why kernels could not be made.
#[derive(Debug, thiserror::Error)]
pub enum X64Error {
    /// The machine lacks what the code needs.
    #[error("the back end x64 cannot run here: {0}")]
    Host(String),
    /// An instruction could not be encoded.
    #[error("an instruction could not be encoded: {0}")]
    Encode(String),
    /// The operating system gave no executable memory.
    #[error("no executable memory: {0}")]
    Memory(#[from] std::io::Error),
}

/// Machine code in memory. The pointers are valid as long as this lives.
pub struct Kernels {
    _memory: Mmap,
    /// Entry points, by [`crate::loops::NAMES`].
    pub entries: [*const u8; NAMES.len()],
    /// Several steps at once of `forward.before`, `forward.after`, `backward.before`, `backward.after`.
    pub together: [*const u8; 4],
    /// `unsafe extern "C" fn(*const *mut f32, steps: u64)`: the routine `replay`, for one step or more
    /// from that on for which the pointers are, whose frames and snapshots follow each other.
    pub replay_steps: Option<*const u8>,
    /// Bytes of machine code and constants.
    pub code_bytes: usize,
}

/// What this machine lacks to run the code, in words; `None` if nothing. The routines follow the
/// System V calling convention.
pub fn lacking() -> Option<String> {
    #[cfg(all(target_arch = "x86_64", unix))]
    {
        let features = [
            ("AVX2", std::arch::is_x86_feature_detected!("avx2")),
            ("FMA", std::arch::is_x86_feature_detected!("fma")),
        ];
        let missing: Vec<&str> = features.iter().filter(|(_, has)| !has).map(|(name, _)| *name).collect();
        (!missing.is_empty()).then(|| format!("this processor has no {}", missing.join(" and no ")))
    }
    #[cfg(not(all(target_arch = "x86_64", unix)))]
    {
        let (system, processor) = (std::env::consts::OS, std::env::consts::ARCH);
        Some(format!("it needs x86-64 with a Unix system, and this is {processor} with {system}"))
    }
}

/// Compiles a program for this machine, with the widest vectors that it has.
///
/// # Errors
/// [`X64Error`] if the machine lacks something ([`lacking`]), or there is no executable memory.
pub fn compile(program: &Program) -> Result<Kernels, X64Error> {
    compile_for(program, Vectors::here())
}

/// Compiles a program with these vectors, which give the same bits.
///
/// # Errors
/// As [`compile`].
pub fn compile_for(program: &Program, vectors: Vectors) -> Result<Kernels, X64Error> {
    if let Some(what) = lacking() {
        return Err(X64Error::Host(what));
    }
    if vectors == Vectors::Avx512 && Vectors::here() == Vectors::Avx2 {
        return Err(X64Error::Host("this processor has no AVX-512".to_owned()));
    }
    let Assembled { code, starts, together, replay, .. } = assemble(program, vectors, false)?;
    let mut memory = MmapMut::map_anon(code.len())?;
    memory.copy_from_slice(&code);
    let memory = memory.make_exec()?;
    let entries = starts.map(|start| memory[start..].as_ptr());
    let together = together.map(|start| memory[start..].as_ptr());
    let replay_steps = replay.map(|start| memory[start..].as_ptr());
    Ok(Kernels { _memory: memory, entries, together, replay_steps, code_bytes: code.len() })
}

/// Prints the instructions (`--emit asm`), on every machine those of AVX2.
///
/// # Errors
/// [`X64Error::Encode`] if one cannot be encoded.
pub fn print(program: &Program) -> Result<String, X64Error> {
    Ok(assemble(program, Vectors::Avx2, true)?.text)
}

/// All routines behind their constants.
struct Assembled {
    code: Vec<u8>,
    starts: [usize; NAMES.len()],
    together: [usize; 4],
    /// Where the replay of several steps begins.
    replay: Option<usize>,
    text: String,
}

fn assemble(program: &Program, vectors: Vectors, listing: bool) -> Result<Assembled, X64Error> {
    let mut asm = Asm::new(program, vectors, listing)?;
    let mut starts = [0; NAMES.len()];
    for (k, routine) in routines(program).into_iter().enumerate() {
        starts[k] = emit(&mut asm, NAMES[k], routine, program.widest);
    }
    let apart = [&program.forward, &program.backward].map(|steps| [&steps.before, &steps.after]);
    let apart = apart.as_flattened();
    let together = std::array::from_fn(|k| {
        let name = ["forward.before", "forward.after", "backward.before", "backward.after"][k];
        emit(&mut asm, &format!("{name}, several steps"), &together(apart[k], program), program.widest)
    });
    let replay = replay::is_possible(program).then(|| {
        asm.align();
        let at = asm.here();
        asm.remark(&format!("routine replay of several steps, at {at:#x}"));
        let frame = enter(&mut asm);
        let slots = replay::emit(&mut asm, program);
        leave(&mut asm);
        asm.patch(frame, (slots as i64 + 2) * asm.slot_bytes());
        at as usize
    });
    let (code, text) = asm.finish()?;
    Ok(Assembled { code, starts, together, replay, text })
}

/// Emits a routine; returns where it begins.
fn emit(asm: &mut Asm, name: &str, routine: &Routine, widest: usize) -> usize {
    asm.align();
    let at = asm.here();
    asm.remark(&format!("routine {name}, at {at:#x}"));
    let frame = enter(asm);
    let slots = routine.nests.iter().map(|nest| nest::emit(asm, nest, widest)).max();
    leave(asm);
    asm.patch(frame, (slots.unwrap_or(0) as i64 + 2) * asm.slot_bytes());
    at as usize
}

/// Saves registers and makes room on the stack. Returns where its size is to be filled in.
fn enter(asm: &mut Asm) -> u64 {
    for register in SAVED {
        asm.push(Instruction::with1(Code::Push_r64, register));
    }
    asm.push(Instruction::with2(Code::Mov_r64_rm64, Register::RAX, Register::RSP));
    asm.push(Instruction::with2(Code::Sub_rm64_imm32, Register::RSP, 0));
    let patch = asm.here() - 4;
    asm.push(Instruction::with2(Code::And_rm64_imm8, Register::RSP, -(asm.slot_bytes() as i32)));
    asm.push(Instruction::with2(Code::Mov_rm64_r64, based(Register::RSP, 0), Register::RAX));
    patch
}

fn leave(asm: &mut Asm) {
    asm.push(Ok(Instruction::with(Code::VEX_Vzeroupper)));
    asm.push(Instruction::with2(Code::Mov_r64_rm64, Register::RSP, based(Register::RSP, 0)));
    for register in SAVED.into_iter().rev() {
        asm.push(Instruction::with1(Code::Pop_r64, register));
    }
    asm.push(Ok(Instruction::with(Code::Retnq)));
}
