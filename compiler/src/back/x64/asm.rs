//! Machine instructions: encoding, the pool of constants, loops, and executable memory.
//!
//! The pool lies in front of the code, so that an instruction that reads from it knows the distance.
//! All branches go backward.

use super::X64Error;
use crate::loops::{LANES, Program, body::BodyOp, routines};
use iced_x86::{Code, Encoder, Formatter, Instruction, IntelFormatter, MemoryOperand, Register};
use std::collections::BTreeMap;

/// Bytes of a vector register.
pub(super) const BYTES: i64 = 32;

/// A vector register, by its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Vector(pub u8);

/// How many vector registers there are.
pub(super) const VECTORS: usize = 16;

impl Vector {
    /// All eight lanes.
    pub(super) fn ymm(self) -> Register {
        Register::YMM0 + u32::from(self.0)
    }

    /// The lower four lanes.
    pub(super) fn xmm(self) -> Register {
        Register::XMM0 + u32::from(self.0)
    }
}

/// The second source of an instruction.
#[derive(Clone, Copy, Debug)]
pub(super) enum Source {
    /// A register.
    Vector(Vector),
    /// Memory.
    Memory(MemoryOperand),
}

/// Eight equal words, or a mask of lanes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Constant {
    /// The same bits in every lane.
    Splat(u32),
    /// All bits set in the lanes below.
    Lanes(usize),
}

impl Constant {
    /// Bits that only the sign has.
    pub(super) const SIGN: Constant = Constant::Splat(0x8000_0000);
    /// All bits but the sign.
    pub(super) const MAGNITUDE: Constant = Constant::Splat(0x7fff_ffff);
    /// All bits.
    pub(super) const ALL: Constant = Constant::Splat(u32::MAX);
    /// The bias of an exponent.
    pub(super) const BIAS: Constant = Constant::Splat(127);
    /// The bits of a fraction.
    pub(super) const FRACTION: Constant = Constant::Splat(0x007f_ffff);
    /// The number one.
    pub(super) const ONE: Constant = Constant::Splat(0x3f80_0000);
    /// −∞
    pub(super) const LOWEST: Constant = Constant::Splat(0xff80_0000);

    fn words(self) -> [u32; LANES] {
        std::array::from_fn(|lane| match self {
            Constant::Splat(bits) => bits,
            Constant::Lanes(count) => u32::from(lane < count).wrapping_neg(),
        })
    }
}

/// An assembler.
pub(super) struct Asm {
    encoder: Encoder,
    /// Bytes so far, the pool included.
    at: u64,
    pool: BTreeMap<Constant, u64>,
    pool_bytes: Vec<u8>,
    /// The first instruction that could not be encoded.
    error: Option<String>,
    text: Option<String>,
    patches: Vec<(u64, i32)>,
}

impl Asm {
    /// An assembler with a pool of what the program's bodies need.
    pub(super) fn new(program: &Program, listing: bool) -> Result<Asm, X64Error> {
        let mut pool = BTreeMap::new();
        let own = [
            Constant::SIGN,
            Constant::MAGNITUDE,
            Constant::ALL,
            Constant::BIAS,
            Constant::FRACTION,
            Constant::ONE,
            Constant::LOWEST,
        ];
        let lanes = (1..LANES).map(Constant::Lanes);
        let nests = routines(program).into_iter().flat_map(|r| &r.nests);
        let in_bodies = nests.flat_map(|n| &n.body.ops).filter_map(|op| match op {
            BodyOp::Const(c) => Some(Constant::Splat(c.to_bits())),
            _ => None,
        });
        let mut pool_bytes = vec![];
        for constant in own.into_iter().chain(lanes).chain(in_bodies) {
            pool.entry(constant).or_insert_with(|| {
                let start = pool_bytes.len() as u64;
                constant.words().iter().for_each(|w| pool_bytes.extend(w.to_le_bytes()));
                start
            });
        }
        let encoder = Encoder::try_with_capacity(64, 1 << 16).map_err(|e| X64Error::Encode(e.to_string()))?;
        let at = pool_bytes.len() as u64;
        Ok(Asm {
            encoder,
            at,
            pool,
            pool_bytes,
            error: None,
            text: listing.then(String::new),
            patches: vec![],
        })
    }

    /// Where the next instruction goes.
    pub(super) fn here(&self) -> u64 {
        self.at
    }

    /// A constant in the pool.
    pub(super) fn constant(&self, c: Constant) -> MemoryOperand {
        let address = self.pool.get(&c).copied().unwrap_or_default();
        MemoryOperand::with_base_displ(Register::RIP, address as i64)
    }

    pub(super) fn remark(&mut self, text: &str) {
        if let Some(listing) = &mut self.text {
            listing.push_str(&format!("; {text}\n"));
        }
    }

    /// Appends an instruction.
    pub(super) fn push(&mut self, instruction: Result<Instruction, iced_x86::IcedError>) {
        let encoded = instruction.and_then(|i| self.encoder.encode(&i, self.at).map(|len| (i, len)));
        match encoded {
            Ok((i, len)) => {
                self.at += len as u64;
                if let Some(text) = &mut self.text {
                    let mut line = String::new();
                    IntelFormatter::new().format(&i, &mut line);
                    text.push_str(&format!("    {line}\n"));
                }
            }
            Err(e) => {
                self.error.get_or_insert_with(|| e.to_string());
            }
        }
    }

    /// `to = f(a, b)`
    pub(super) fn three(&mut self, code: Code, to: Vector, a: Vector, b: Source) {
        self.push(match b {
            Source::Vector(b) => Instruction::with3(code, to.ymm(), a.ymm(), b.ymm()),
            Source::Memory(m) => Instruction::with3(code, to.ymm(), a.ymm(), m),
        });
    }

    /// `to = f(a, b)` with an immediate byte.
    pub(super) fn three_with(&mut self, code: Code, to: Vector, a: Vector, b: Source, byte: u32) {
        self.push(match b {
            Source::Vector(b) => Instruction::with4(code, to.ymm(), a.ymm(), b.ymm(), byte),
            Source::Memory(m) => Instruction::with4(code, to.ymm(), a.ymm(), m, byte),
        });
    }

    /// `to = f(a)`
    pub(super) fn two(&mut self, code: Code, to: Vector, a: Source) {
        self.push(match a {
            Source::Vector(a) => Instruction::with2(code, to.ymm(), a.ymm()),
            Source::Memory(m) => Instruction::with2(code, to.ymm(), m),
        });
    }

    /// The nearest integers, ties to even.
    pub(super) fn round(&mut self, to: Vector, from: Source) {
        self.push(match from {
            Source::Vector(v) => {
                Instruction::with3(Code::VEX_Vroundps_ymm_ymmm256_imm8, to.ymm(), v.ymm(), 0u32)
            }
            Source::Memory(m) => Instruction::with3(Code::VEX_Vroundps_ymm_ymmm256_imm8, to.ymm(), m, 0u32),
        });
    }

    /// Shifts every word.
    pub(super) fn shift(&mut self, code: Code, to: Vector, from: Vector, bits: u32) {
        self.push(Instruction::with3(code, to.ymm(), from.ymm(), bits));
    }

    /// `to = mask ? chosen : otherwise`
    pub(super) fn blend(&mut self, to: Vector, otherwise: Vector, chosen: Source, mask: Vector) {
        let code = Code::VEX_Vblendvps_ymm_ymm_ymmm256_ymm;
        self.push(match chosen {
            Source::Vector(v) => Instruction::with4(code, to.ymm(), otherwise.ymm(), v.ymm(), mask.ymm()),
            Source::Memory(m) => Instruction::with4(code, to.ymm(), otherwise.ymm(), m, mask.ymm()),
        });
    }

    /// Loads eight lanes.
    pub(super) fn load(&mut self, to: Vector, from: MemoryOperand) {
        self.two(Code::VEX_Vmovups_ymm_ymmm256, to, Source::Memory(from));
    }

    /// Loads one number into every lane.
    pub(super) fn broadcast(&mut self, to: Vector, from: MemoryOperand) {
        self.push(Instruction::with2(Code::VEX_Vbroadcastss_ymm_m32, to.ymm(), from));
    }

    /// Stores eight lanes.
    pub(super) fn store(&mut self, to: MemoryOperand, from: Vector) {
        self.push(Instruction::with2(Code::VEX_Vmovups_ymmm256_ymm, to, from.ymm()));
    }

    /// Stores the lowest lane.
    pub(super) fn store_lowest(&mut self, to: MemoryOperand, from: Vector) {
        self.push(Instruction::with2(Code::VEX_Vmovss_m32_xmm, to, from.xmm()));
    }

    /// The upper four lanes become the lower ones.
    pub(super) fn upper_half(&mut self, to: Vector, from: Vector) {
        self.push(Instruction::with3(Code::VEX_Vextractf128_xmmm128_ymm_imm8, to.xmm(), from.ymm(), 1u32));
    }

    /// `to = a + b` in the lowest lane.
    pub(super) fn add_lowest(&mut self, to: Vector, a: Vector, b: Vector) {
        self.push(Instruction::with3(Code::VEX_Vaddss_xmm_xmm_xmmm32, to.xmm(), a.xmm(), b.xmm()));
    }

    /// Zeroes all lanes.
    pub(super) fn zero(&mut self, to: Vector) {
        self.push(Instruction::with3(Code::VEX_Vxorps_xmm_xmm_xmmm128, to.xmm(), to.xmm(), to.xmm()));
    }

    /// `to = value`
    pub(super) fn set(&mut self, to: Register, value: i32) {
        self.push(Instruction::with2(Code::Mov_rm64_imm32, to, value));
    }

    /// `to += value`
    pub(super) fn advance(&mut self, to: Register, value: i32) {
        self.push(match i8::try_from(value) {
            Ok(_) => Instruction::with2(Code::Add_rm64_imm8, to, value),
            Err(_) => Instruction::with2(Code::Add_rm64_imm32, to, value),
        });
    }

    /// Jumps back to `target` as long as `counter` is not `end`.
    pub(super) fn loop_while_not(&mut self, counter: Register, end: i32, target: u64) {
        self.push(Instruction::with2(Code::Cmp_rm64_imm32, counter, end));
        self.push(Instruction::with_branch(Code::Jne_rel32_64, target));
    }

    /// Jumps back to `target` as long as `counter` is below `end`.
    pub(super) fn loop_while_below(&mut self, counter: Register, end: Register, target: u64) {
        self.push(Instruction::with2(Code::Cmp_r64_rm64, counter, end));
        self.push(Instruction::with_branch(Code::Jb_rel32_64, target));
    }

    /// Fills up to a boundary that the processor fetches loops from.
    pub(super) fn align(&mut self) {
        while !self.at.is_multiple_of(32) {
            let gap = 32 - self.at % 32;
            let (code, len) = match gap {
                1 => (Code::Nopd, 1),
                2 => (Code::Nopw, 2),
                _ => (Code::Nop_rm32, 3),
            };
            debug_assert!(len <= gap);
            self.push(match code {
                Code::Nop_rm32 => Instruction::with1(code, MemoryOperand::with_base(Register::RAX)),
                code => Ok(Instruction::with(code)),
            });
        }
    }

    /// Fills in four bytes of the code.
    pub(super) fn patch(&mut self, at: u64, value: i64) {
        match i32::try_from(value) {
            Ok(value) => {
                self.patches.push((at, value));
                self.list_patched(value);
            }
            Err(_) => self.error = Some("the stack frame exceeds 2 GiB".to_owned()),
        }
    }

    /// Shows what was filled in: the size of the last frame of a routine.
    fn list_patched(&mut self, value: i32) {
        const OPEN: &str = "sub rsp,0\n";
        if let Some(text) = &mut self.text
            && let Some(start) = text.rfind(OPEN)
        {
            text.replace_range(start..start + OPEN.len(), &format!("sub rsp,{value}\n"));
        }
    }

    /// The pool and the code, and the listing if one was asked for.
    pub(super) fn finish(mut self) -> Result<(Vec<u8>, String), X64Error> {
        if let Some(why) = self.error {
            return Err(X64Error::Encode(why));
        }
        let mut bytes = self.pool_bytes;
        bytes.extend(self.encoder.take_buffer());
        for (at, value) in self.patches {
            bytes[at as usize..][..4].copy_from_slice(&value.to_le_bytes());
        }
        Ok((bytes, self.text.unwrap_or_default()))
    }
}

/// The address `base + displacement`.
pub(super) fn based(base: Register, displacement: i64) -> MemoryOperand {
    MemoryOperand::with_base_displ(base, displacement)
}

/// The address `base + index · scale + displacement`.
pub(super) fn indexed(base: Register, index: Register, scale: u32, displacement: i64) -> MemoryOperand {
    MemoryOperand::with_base_index_scale_displ_size(base, index, scale, displacement, 1)
}
