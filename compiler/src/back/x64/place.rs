//! Addresses: which general register points where while a nest runs.
//!
//! The routine's argument, the array of region pointers, stays in `rdi`. A matrix nest walks through
//! its packed matrices from the first element to the last, so each region that holds some has a
//! *stream*: a pointer that moves on with every row. Other operands are found from the start of
//! their region and a byte offset, which grows along the post axis (`rcx`) or the pre axis (`rdx`).
//! Regions for which no register is left are looked up in the array at each use (`rax`).

use super::asm::{Asm, BYTES, based, indexed};
use super::straight::RunningHome;
use crate::loops::{Access, Base, Effect, Extent, LANES, LIVE, Nest};
use iced_x86::{Code, Instruction, MemoryOperand, Register};

/// The routine's argument.
const REGIONS: Register = Register::RDI;
/// A pointer for one use.
const ONCE: Register = Register::RAX;
/// Bytes of a post vector over the events that there are, for one use.
pub(super) const LIVE_BYTES: Register = ONCE;
/// Bytes from the start of a post vector.
pub(super) const POST: Register = Register::RCX;
/// Bytes from the start of a pre vector.
pub(super) const PRE: Register = Register::RDX;

/// The frame of the step that is replayed.
pub(super) const FRAME: Register = Register::R11;
/// Where the row lies in the snapshot after the step that is replayed.
pub(super) const SNAPSHOT: Register = Register::RBX;
/// The row in the first of these snapshots.
pub(super) const FIRST_SNAPSHOT: Register = Register::R12;
/// Steps that are still to be replayed.
pub(super) const STEPS: Register = Register::R13;

/// Registers for pointers; a function may change the first five.
const POINTERS: [Register; 11] = [
    Register::RSI,
    Register::R8,
    Register::R9,
    Register::R10,
    Register::R11,
    Register::RBX,
    Register::RBP,
    Register::R12,
    Register::R13,
    Register::R14,
    Register::R15,
];

/// Registers that a function must give back as they were.
pub(super) const SAVED: [Register; 6] =
    [Register::RBX, Register::RBP, Register::R12, Register::R13, Register::R14, Register::R15];

/// Where everything is while a nest runs.
pub(super) struct Addresses {
    extent: Extent,
    starts: [Option<Register>; Base::ALL.len()],
    streams: [Option<Register>; Base::ALL.len()],
    /// Set if frames are found from that of the first step, which [`FRAME`] points to.
    frame_bytes: Option<i64>,
    /// Bytes between two registers on the stack.
    slot_bytes: i64,
}

/// Bytes of a number.
const NUMBER: i64 = 4;

fn displacement(offset: usize) -> i64 {
    offset as i64 * NUMBER
}

impl Addresses {
    /// Gives registers to the regions that a nest uses, streams first.
    pub(super) fn new(nest: &Nest, slot_bytes: i64) -> Addresses {
        let mut at = Addresses {
            extent: nest.extent,
            starts: [None; Base::ALL.len()],
            streams: [None; Base::ALL.len()],
            frame_bytes: None,
            slot_bytes,
        };
        let effects = nest.effects.iter().filter_map(|e| match e {
            Effect::Store(a, _) | Effect::Add(a, ..) => Some(*a),
            _ => None,
        });
        let accesses: Vec<Access> = nest.body.loads().chain(effects).collect();
        let mut free = POINTERS.into_iter();
        let is_matrix = matches!(nest.extent, Extent::Matrix { .. } | Extent::Log { .. });
        let mut take = |taken: &mut [Option<Register>], base: Base| {
            let register = &mut taken[base.slot()];
            if register.is_none() {
                *register = free.next();
            }
        };
        for access in &accesses {
            if let Access::Matrix(p) = access
                && is_matrix
            {
                take(&mut at.streams, p.base);
            }
        }
        if nest.effects.iter().any(|e| matches!(e, Effect::SumPost(..))) {
            take(&mut at.starts, Base::Scratch);
        }
        // What is read in the inner loop comes before what is read once.
        let inner = accesses.iter().filter(|a| matches!(a, Access::Pre(_) | Access::Post(_)));
        let outer = accesses.iter().filter(|a| matches!(a, Access::Scalar(_)));
        for access in inner.chain(outer) {
            take(&mut at.starts, access.place().base);
        }
        at
    }

    /// For a nest that replays several steps at once: one pointer moves from frame to frame, one
    /// from snapshot to snapshot.
    pub(super) fn over_time(nest: &Nest, frame_bytes: i64, slot_bytes: i64) -> Addresses {
        let mut at = Addresses {
            extent: nest.extent,
            starts: [None; Base::ALL.len()],
            streams: [None; Base::ALL.len()],
            frame_bytes: Some(frame_bytes),
            slot_bytes,
        };
        at.streams[Base::Snapshot(0).slot()] = Some(Register::R8);
        at.streams[Base::Params.slot()] = Some(Register::R9);
        at.streams[Base::Snapshot(1).slot()] = Some(SNAPSHOT);
        at.starts[Base::Params.slot()] = Some(Register::R10);
        at
    }

    /// Loads the pointers.
    pub(super) fn load(&self, asm: &mut Asm) {
        for taken in [&self.starts, &self.streams] {
            for (slot, register) in taken.iter().enumerate() {
                if let Some(register) = register
                    && !self.is_led(*register)
                {
                    look_up(asm, *register, slot);
                }
            }
        }
    }

    /// Whether the loop over steps moves a pointer.
    fn is_led(&self, register: Register) -> bool {
        self.frame_bytes.is_some() && register == SNAPSHOT
    }

    /// Moves the streams on to the next row.
    pub(super) fn next_row(&self, asm: &mut Asm, width: usize) {
        for register in self.streams.iter().flatten().filter(|r| !self.is_led(**r)) {
            asm.advance(*register, width as i32 * BYTES as i32);
        }
    }

    fn start(&self, asm: &mut Asm, base: Base) -> Register {
        if let (Base::Frame(_), Some(_)) = (base, self.frame_bytes) {
            return FRAME;
        }
        self.starts[base.slot()].unwrap_or_else(|| {
            look_up(asm, ONCE, base.slot());
            ONCE
        })
    }

    /// Puts the bytes of the events that there are into [`LIVE_BYTES`].
    pub(super) fn load_live(&self, asm: &mut Asm) {
        let scratch = self.start(asm, Base::Scratch);
        let from = based(scratch, displacement(LIVE));
        asm.push(Instruction::with2(Code::Mov_r32_rm32, Register::EAX, from));
        asm.push(Instruction::with2(Code::Shl_rm64_imm8, LIVE_BYTES, NUMBER.ilog2()));
    }

    /// An operand of the nest, at a register of the tile.
    pub(super) fn operand(&self, asm: &mut Asm, access: Access, register: usize) -> MemoryOperand {
        let place = access.place();
        let lane = register as i64 * BYTES;
        let frame = match (place.base, self.frame_bytes) {
            (Base::Frame(k), Some(bytes)) => i64::from(k) * bytes,
            _ => 0,
        };
        let displacement = displacement(place.offset) + frame;
        match (access, self.extent) {
            (Access::Matrix(p), Extent::Matrix { .. } | Extent::Log { .. })
                if self.streams[p.base.slot()].is_some() =>
            {
                based(self.streams[p.base.slot()].unwrap_or(ONCE), displacement + lane)
            }
            (Access::Scalar(_), _) | (_, Extent::Scalar) => based(self.start(asm, place.base), displacement),
            (Access::Pre(_), Extent::Matrix { .. } | Extent::Log { .. }) => {
                indexed(self.start(asm, place.base), PRE, 1, displacement)
            }
            (Access::Pre(_), Extent::Vector(_)) => {
                indexed(self.start(asm, place.base), POST, 1, displacement)
            }
            (Access::Matrix(_) | Access::Post(_), _) => {
                indexed(self.start(asm, place.base), POST, 1, displacement + lane)
            }
        }
    }

    /// A number by its place.
    pub(super) fn number(&self, asm: &mut Asm, base: Base, offset: usize) -> MemoryOperand {
        based(self.start(asm, base), displacement(offset))
    }

    /// Eight lanes of a row sum, `offset` elements from the sums of their row.
    pub(super) fn partial(&self, asm: &mut Asm, offset: usize) -> MemoryOperand {
        // A row of pre is four bytes of `PRE` and one register of sums.
        indexed(self.start(asm, Base::Scratch), PRE, LANES as u32, displacement(offset))
    }

    /// A register on the stack. The first holds the caller's stack pointer.
    pub(super) fn slot(&self, slot: usize) -> MemoryOperand {
        based(Register::RSP, (slot as i64 + 1) * self.slot_bytes)
    }

    /// Where a running sum lies if it has no register.
    pub(super) fn running(&self, asm: &mut Asm, home: RunningHome) -> MemoryOperand {
        match home {
            RunningHome::Slot(slot) => self.slot(slot),
            RunningHome::Partial(offset) => self.partial(asm, offset),
        }
    }
}

/// Loads the pointer of a region.
fn look_up(asm: &mut Asm, to: Register, slot: usize) {
    asm.push(Instruction::with2(Code::Mov_r64_rm64, to, based(REGIONS, slot as i64 * 8)));
}

/// Loads the pointer of a region into a register of the caller's choice.
pub(super) fn point(asm: &mut Asm, to: Register, base: Base) {
    look_up(asm, to, base.slot());
}
