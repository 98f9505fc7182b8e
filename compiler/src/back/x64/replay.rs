//! The replay of several steps at once, with the states in registers.
//!
//! A replay is elementwise: given the frames, the states of one synapse need no other synapse. So
//! the loop over steps can be the innermost one, and a synapse's states stay in registers from step
//! to step; each step only stores its snapshot.

use super::asm::{Asm, BYTES, Vector, based};
use super::nest::Emitter;
use super::place::{Addresses, FIRST_SNAPSHOT, FRAME, POST, PRE, SNAPSHOT, STEPS, point};
use super::straight::{Item, Key, Unit};
use super::wide::Vectors;
use crate::loops::body::{BodyOp, Id};
use crate::loops::{Access, Base, Effect, Extent, Nest, Place, Program, Tiles};
use iced_x86::{Code, Instruction, Register};

/// Registers that states may take.
const STATES: usize = 9;

/// Whether the steps of a program can be replayed so: every nest computes the snapshots of its own
/// states from these, from frames and from parameters.
pub(super) fn is_possible(program: &Program) -> bool {
    !program.replay.nests.is_empty() && program.replay.nests.iter().all(is_elementwise)
}

fn is_elementwise(nest: &Nest) -> bool {
    if !matches!(nest.extent, Extent::Matrix { .. }) {
        return false;
    }
    let mut stored = vec![];
    for effect in &nest.effects {
        match effect {
            Effect::Store(Access::Matrix(Place { base: Base::Snapshot(1), offset }), _) => {
                stored.push(*offset)
            }
            _ => return false,
        }
    }
    let reads_its_own = nest.body.loads().all(|load| match load {
        Access::Matrix(Place { base: Base::Snapshot(0), offset }) => stored.contains(&offset),
        Access::Matrix(place) => place.base == Base::Params,
        load => matches!(load.place().base, Base::Frame(_) | Base::Params),
    });
    reads_its_own && states(nest).len() <= STATES
}

/// The states that a nest reads: their places and the values that read them.
fn states(nest: &Nest) -> Vec<(usize, Id)> {
    let ops = nest.body.ops.iter().enumerate();
    let found = ops.filter_map(|(k, op)| match op {
        BodyOp::Load(Access::Matrix(Place { base: Base::Snapshot(0), offset })) => {
            Some((*offset, Id(k as u32)))
        }
        _ => None,
    });
    found.collect()
}

/// Emits the routine, whose second argument is the number of steps; returns how many registers it
/// needs on the stack.
pub(super) fn emit(asm: &mut Asm, program: &Program) -> usize {
    let count = based(Register::RSP, 8);
    asm.push(Instruction::with2(Code::Mov_rm64_r64, count, Register::RSI));
    let frame_bytes = program.frame_len as i64 * 4;
    let mut slots = 0;
    for nest in &program.replay.nests {
        let Extent::Matrix { post, pre } = nest.extent else { continue };
        let at = Addresses::over_time(nest, frame_bytes, asm.slot_bytes());
        let is_wide = asm.vectors == Vectors::Avx512;
        let mut emitter = Emitter::new(asm, nest, at, is_wide);
        emitter.is_paired = is_wide;
        emitter.over_time(post, pre, program);
        slots = slots.max(emitter.slots);
    }
    slots
}

impl Emitter<'_> {
    fn over_time(&mut self, post: usize, pre: usize, program: &Program) {
        self.at.load(self.asm);
        point(self.asm, FIRST_SNAPSHOT, Base::Snapshot(1));
        self.asm.set(POST, 0);
        let tiles = Tiles::of(post, program.widest);
        let mut end = 0;
        for (count, width) in [(tiles.wide, tiles.width), (tiles.narrow, tiles.width - 1)] {
            end += count * width;
            if count == 0 {
                continue;
            }
            self.width = width;
            let header = self.asm.here();
            self.rows_over_time(pre, program);
            let bytes = (width as i64 * BYTES) as i32;
            self.asm.advance(POST, bytes);
            if count > 1 {
                self.asm.loop_while_not(POST, end as i32 * BYTES as i32, header);
            }
        }
    }

    fn rows_over_time(&mut self, pre: usize, program: &Program) {
        self.asm.set(PRE, 0);
        let header = self.asm.here();
        let states = states(self.nest);
        let units = self.units();
        let together = (STATES / states.len().max(1)).clamp(1, units.len());
        for units in units.chunks(together) {
            self.steps(units, &states, program);
        }
        self.at.next_row(self.asm, self.width);
        self.asm.advance(FIRST_SNAPSHOT, (self.width as i64 * BYTES) as i32);
        self.asm.advance(PRE, 4);
        if pre > 1 {
            self.asm.loop_while_not(PRE, pre as i32 * 4, header);
        }
    }

    /// All steps, for some units of a row.
    fn steps(&mut self, units: &[Unit], states: &[(usize, Id)], program: &Program) {
        let mut held: Vec<(usize, usize, Key, Vector)> = vec![];
        for unit in units {
            for (offset, id) in states {
                let v = Vector(held.len() as u8, unit.width);
                held.push((*offset, unit.first, self.key(*id, unit.first), v));
                let from = Access::Matrix(Place { base: Base::Snapshot(0), offset: *offset });
                let from = self.at.operand(self.asm, from, unit.first);
                self.asm.load(v, from);
            }
        }
        point(self.asm, FRAME, Base::Frame(0));
        self.asm.push(Instruction::with2(Code::Mov_r64_rm64, SNAPSHOT, FIRST_SNAPSHOT));
        self.asm.push(Instruction::with2(Code::Mov_r64_rm64, STEPS, based(Register::RSP, 8)));
        let header = self.header();
        self.one_step(units, &held);
        self.asm.advance(FRAME, program.frame_len as i32 * 4);
        self.asm.advance(SNAPSHOT, program.matrices_len as i32 * 4);
        self.asm.advance(STEPS, -1);
        self.asm.loop_while_not(STEPS, 0, header);
    }

    fn one_step(&mut self, units: &[Unit], held: &[(usize, usize, Key, Vector)]) {
        let mut build = self.build(&[]);
        for unit in units {
            let mut moves = vec![];
            for effect in self.nest.effects.clone() {
                let Effect::Store(access, v) = effect else { continue };
                let key = self.need(&mut build, v, unit.first);
                build.items.push(Item::Store(access, *unit, key));
                let state = held.iter().find(|h| h.0 == access.place().offset && h.1 == unit.first);
                moves.extend(state.map(|h| Item::Move(h.3, key)));
            }
            build.items.extend(moves);
        }
        let held: Vec<(Key, Vector)> = held.iter().map(|h| (h.2, h.3)).collect();
        self.run_with(&build, &[], &held);
    }
}
