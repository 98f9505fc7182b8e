//! Machine instructions: encoding, the pool of constants, loops, and executable memory.
//!
//! The pool lies in front of the code, so that an instruction that reads from it knows the distance.
//! All branches go backward.

use super::X64Error;
use super::wide::{Vectors, encoding};
use crate::loops::{LANES, Program, body::BodyOp, routines};
use iced_x86::{Code, Encoder, Formatter, Instruction, IntelFormatter, MemoryOperand, Register};
use std::collections::BTreeMap;

/// Bytes of a vector register.
pub(super) const BYTES: i64 = 32;

/// How much of a vector register an instruction takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Width {
    /// One register of the loop IR.
    Eight,
    /// Two that are neighbours in a tile.
    Sixteen,
}

/// Holds the result of a comparison for a moment.
const MASK: Register = Register::K1;

/// A vector register, by its number, or its lower half.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Vector(pub u8, pub Width);

/// How many vector registers there are without AVX-512.
pub(super) const VECTORS: usize = 16;

/// How many there are with it.
pub(super) const WIDE_VECTORS: usize = 32;

impl Vector {
    /// The register with this number, as eight lanes.
    pub(super) fn eight(number: u8) -> Vector {
        Vector(number, Width::Eight)
    }

    /// As so many lanes.
    pub(super) fn with(self, width: Width) -> Vector {
        Vector(self.0, width)
    }

    fn register(self, width: Width) -> Register {
        match width {
            Width::Eight => Register::YMM0 + u32::from(self.0),
            Width::Sixteen => Register::ZMM0 + u32::from(self.0),
        }
    }

    /// Eight lanes.
    pub(super) fn ymm(self) -> Register {
        self.register(Width::Eight)
    }

    /// The lower four lanes.
    pub(super) fn xmm(self) -> Register {
        Register::XMM0 + u32::from(self.0)
    }

    fn is_high(self) -> bool {
        usize::from(self.0) >= VECTORS
    }
}

/// The second source of an instruction.
#[derive(Clone, Copy, Debug)]
pub(super) enum Source {
    /// A register.
    Vector(Vector),
    /// Memory.
    Memory(MemoryOperand),
    /// One number in memory, for every lane.
    Everywhere(MemoryOperand),
}

impl Source {
    fn needs_avx512(self) -> bool {
        match self {
            Source::Vector(v) => v.is_high(),
            Source::Memory(_) => false,
            Source::Everywhere(_) => true,
        }
    }

    /// Memory as an operand.
    fn place(m: MemoryOperand, is_broadcast: bool) -> MemoryOperand {
        MemoryOperand { is_broadcast, ..m }
    }
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
    /// What the code may use.
    pub(super) vectors: Vectors,
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
    pub(super) fn new(program: &Program, vectors: Vectors, listing: bool) -> Result<Asm, X64Error> {
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
            vectors,
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

    /// Bytes between two registers on the stack.
    pub(super) fn slot_bytes(&self) -> i64 {
        match self.vectors {
            Vectors::Avx2 => BYTES,
            Vectors::Avx512 => 2 * BYTES,
        }
    }

    /// A constant as a source of so many lanes.
    pub(super) fn constant_source(&self, c: Constant, width: Width) -> Source {
        match (c, width) {
            (Constant::Splat(_), Width::Sixteen) => Source::Everywhere(self.constant(c)),
            _ => Source::Memory(self.constant(c)),
        }
    }

    /// The encoding of an operation on these registers.
    fn spelled(code: Code, width: Width, high: bool) -> Code {
        if width == Width::Sixteen || high { encoding(code, width) } else { code }
    }

    /// `to = f(a, b)`
    pub(super) fn three(&mut self, code: Code, to: Vector, a: Vector, b: Source) {
        let width = to.1;
        let code = Asm::spelled(code, width, to.is_high() || a.is_high() || b.needs_avx512());
        let (to, a) = (to.register(width), a.register(width));
        self.push(match b {
            Source::Vector(b) => Instruction::with3(code, to, a, b.register(width)),
            Source::Memory(m) => Instruction::with3(code, to, a, m),
            Source::Everywhere(m) => Instruction::with3(code, to, a, Source::place(m, true)),
        });
    }

    /// `to = f(a, b)` with an immediate byte, of eight lanes of low registers.
    pub(super) fn three_with(&mut self, code: Code, to: Vector, a: Vector, b: Vector, byte: u32) {
        self.push(Instruction::with4(code, to.ymm(), a.ymm(), b.ymm(), byte));
    }

    /// A mask of the lanes in which a comparison holds.
    pub(super) fn compare(&mut self, to: Vector, a: Vector, b: Source, byte: u32) {
        let width = to.1;
        let high = to.is_high() || a.is_high() || b.needs_avx512();
        let code = Asm::spelled(Code::VEX_Vcmpps_ymm_ymm_ymmm256_imm8, width, high);
        let is_wide = code != Code::VEX_Vcmpps_ymm_ymm_ymmm256_imm8;
        let found = if is_wide { MASK } else { to.register(width) };
        let first = a.register(width);
        self.push(match b {
            Source::Vector(b) => Instruction::with4(code, found, first, b.register(width), byte),
            Source::Memory(m) => Instruction::with4(code, found, first, m, byte),
            Source::Everywhere(m) => Instruction::with4(code, found, first, Source::place(m, true), byte),
        });
        if is_wide {
            let spread = match width {
                Width::Eight => Code::EVEX_Vpmovm2d_ymm_kr,
                Width::Sixteen => Code::EVEX_Vpmovm2d_zmm_kr,
            };
            self.push(Instruction::with2(spread, to.register(width), MASK));
        }
    }

    /// `to = f(a)`
    pub(super) fn two(&mut self, code: Code, to: Vector, a: Source) {
        let width = to.1;
        let code = Asm::spelled(code, width, to.is_high() || a.needs_avx512());
        let to = to.register(width);
        self.push(match a {
            Source::Vector(a) => Instruction::with2(code, to, a.register(width)),
            Source::Memory(m) => Instruction::with2(code, to, m),
            Source::Everywhere(m) => Instruction::with2(code, to, Source::place(m, true)),
        });
    }

    /// The nearest integers, ties to even.
    pub(super) fn round(&mut self, to: Vector, from: Source) {
        let width = to.1;
        let high = to.is_high() || from.needs_avx512();
        let code = Asm::spelled(Code::VEX_Vroundps_ymm_ymmm256_imm8, width, high);
        let to = to.register(width);
        self.push(match from {
            Source::Vector(v) => Instruction::with3(code, to, v.register(width), 0u32),
            Source::Memory(m) => Instruction::with3(code, to, m, 0u32),
            Source::Everywhere(m) => Instruction::with3(code, to, Source::place(m, true), 0u32),
        });
    }

    /// Shifts every word.
    pub(super) fn shift(&mut self, code: Code, to: Vector, from: Vector, bits: u32) {
        let width = to.1;
        let code = Asm::spelled(code, width, to.is_high() || from.is_high());
        self.push(Instruction::with3(code, to.register(width), from.register(width), bits));
    }

    /// `to = mask ? chosen : otherwise`
    pub(super) fn blend(&mut self, to: Vector, otherwise: Vector, chosen: Source, mask: Vector) {
        let width = to.1;
        let high = [to, otherwise, mask].iter().any(|v| v.is_high()) || chosen.needs_avx512();
        if width == Width::Sixteen || high {
            return self.blend_by_mask(to, otherwise, chosen, mask);
        }
        let code = Code::VEX_Vblendvps_ymm_ymm_ymmm256_ymm;
        self.push(match chosen {
            Source::Vector(v) => Instruction::with4(code, to.ymm(), otherwise.ymm(), v.ymm(), mask.ymm()),
            Source::Memory(m) | Source::Everywhere(m) => {
                Instruction::with4(code, to.ymm(), otherwise.ymm(), m, mask.ymm())
            }
        });
    }

    fn blend_by_mask(&mut self, to: Vector, otherwise: Vector, chosen: Source, mask: Vector) {
        let width = to.1;
        let (gather, blend) = match width {
            Width::Eight => (Code::EVEX_Vpmovd2m_kr_ymm, Code::EVEX_Vblendmps_ymm_k1z_ymm_ymmm256b32),
            Width::Sixteen => (Code::EVEX_Vpmovd2m_kr_zmm, Code::EVEX_Vblendmps_zmm_k1z_zmm_zmmm512b32),
        };
        self.push(Instruction::with2(gather, MASK, mask.register(width)));
        let (to, otherwise) = (to.register(width), otherwise.register(width));
        let blended = match chosen {
            Source::Vector(v) => Instruction::with3(blend, to, otherwise, v.register(width)),
            Source::Memory(m) => Instruction::with3(blend, to, otherwise, m),
            Source::Everywhere(m) => Instruction::with3(blend, to, otherwise, Source::place(m, true)),
        };
        self.push(blended.map(|mut i| {
            i.set_op_mask(MASK);
            i
        }));
    }

    /// Loads all lanes.
    pub(super) fn load(&mut self, to: Vector, from: MemoryOperand) {
        self.two(Code::VEX_Vmovups_ymm_ymmm256, to, Source::Memory(from));
    }

    /// Loads one number into every lane.
    pub(super) fn broadcast(&mut self, to: Vector, from: MemoryOperand) {
        self.two(Code::VEX_Vbroadcastss_ymm_m32, to, Source::Memory(from));
    }

    /// Stores all lanes.
    pub(super) fn store(&mut self, to: MemoryOperand, from: Vector) {
        let code = Asm::spelled(Code::VEX_Vmovups_ymmm256_ymm, from.1, from.is_high());
        self.push(Instruction::with2(code, to, from.register(from.1)));
    }

    /// The upper eight of sixteen lanes.
    pub(super) fn upper_eight(&mut self, to: Vector, from: Vector) {
        let code = Code::EVEX_Vextractf64x4_ymmm256_k1z_zmm_imm8;
        self.push(Instruction::with3(code, to.ymm(), from.register(Width::Sixteen), 1u32));
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
        let code = match to.is_high() {
            true => Code::EVEX_Vpxord_xmm_k1z_xmm_xmmm128b32,
            false => Code::VEX_Vxorps_xmm_xmm_xmmm128,
        };
        self.push(Instruction::with3(code, to.xmm(), to.xmm(), to.xmm()));
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
