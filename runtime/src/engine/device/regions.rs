//! The regions of a tape: how long they are, where they lie, and what moves between them.

use super::code::{Buffer, Code, Map, apart};
use super::{Address, At, Fault, Move, TapeArgs};
use crate::engine::{Engine, Mode};
use compiler::loops::Program;
use compiler::loops::plan::TapeSizes;
use std::ffi::c_int;

/// Frames of [`Mode::Infer`]: the last ones move to the front when there is no room for another.
const WINDOW: usize = 16;

/// The regions of a tape.
pub(super) struct Regions {
    pub(super) frames: Buffer,
    pub(super) adjoints: Buffer,
    pub(super) snapshots: Buffer,
    pub(super) checkpoints: Buffer,
    pub(super) carry: Buffer,
    pub(super) back_carry: Buffer,
    pub(super) ends: Buffer,
    pub(super) grads: Buffer,
    /// By stretch.
    pub(super) logs: Vec<Buffer>,
    pub(super) log_bars: Buffer,
    pub(super) scratch: Buffer,
    /// Packed numbers on their way.
    pub(super) staging: Buffer,
    pub(super) frame_count: usize,
}

/// Bytes of all regions of a tape.
pub(in crate::engine) fn bytes(engine: &Engine, code: &Code, room: Room) -> u64 {
    Lengths::new(&engine.program, code, room).bytes()
}

/// What a tape has room for.
#[derive(Clone, Copy, Debug)]
pub(in crate::engine) struct Room {
    pub(in crate::engine) rows: usize,
    pub(in crate::engine) steps: usize,
    pub(in crate::engine) mode: Mode,
    pub(in crate::engine) interval: Option<usize>,
}

/// Floats of every region.
pub(super) struct Lengths {
    pub(super) frame_count: usize,
    pub(super) interval: usize,
    /// In the order of [`Regions`].
    all: [usize; 12],
}

impl Lengths {
    pub(super) fn new(p: &Program, code: &Code, room: Room) -> Lengths {
        let Room { rows, steps, mode, interval } = room;
        // Who goes backward says how often: kernels of whole sequences have a best interval, and may need no snapshots.
        let whole = code.whole.as_ref();
        let interval = interval.or(whole.and_then(|w| w.interval(steps)));
        let one = TapeSizes::new(p, steps, interval);
        let snapshots = whole.and_then(|w| w.snapshots(one.interval)).unwrap_or(one.interval + 2);
        let frame_count = if mode == Mode::Infer { WINDOW } else { steps + 3 };
        let train = |n: usize| if mode == Mode::Train { n.saturating_mul(rows) } else { 0 };
        let each = |n: usize| n.saturating_mul(rows);
        let kept = if mode == Mode::Infer { 1 } else { steps.max(1) };
        let widest = [&code.inputs, &code.outputs, &code.output_bars, &code.input_bars];
        let widest = widest.iter().map(|m| m.width).max().unwrap_or(0).saturating_mul(kept);
        let states = p.matrices_len.max(code.states.width).max(code.state_bars.width);
        let all = [
            each(p.frame_len.saturating_mul(frame_count)),
            train(p.adjoint_len.saturating_mul(steps + 3)),
            train(p.matrices_len.saturating_mul(snapshots)),
            train(one.checkpoints),
            each(p.matrices_len),
            train(p.carry_len),
            train(p.matrices_len),
            train(p.grads_len),
            each(p.log_len),
            train(p.log_bar_len),
            each(p.scratch_len.saturating_mul(apart(p.scratch_len, rows).min(kept))),
            each(widest.max(states)),
        ];
        Lengths { frame_count, interval: one.interval, all }
    }

    fn bytes(&self) -> u64 {
        // Devices give memory out in pieces of 512 bytes.
        self.all
            .iter()
            .fold(0, |sum: u64, n| sum.saturating_add((*n as u64).saturating_mul(4).next_multiple_of(512)))
    }
}

impl Regions {
    pub(super) fn new(code: &Code, lengths: &Lengths) -> Result<Regions, Fault> {
        let mut next = lengths.all.iter();
        let mut take = || Buffer::new(&code.device, 4 * next.next().copied().unwrap_or(0));
        Ok(Regions {
            frames: take()?,
            adjoints: take()?,
            snapshots: take()?,
            checkpoints: take()?,
            carry: take()?,
            back_carry: take()?,
            ends: take()?,
            grads: take()?,
            logs: vec![take()?],
            log_bars: take()?,
            scratch: take()?,
            staging: take()?,
            frame_count: lengths.frame_count,
        })
    }
}

pub(super) fn number(n: isize) -> i32 {
    i32::try_from(n).expect("a tape has fewer than 2^31 frames")
}

/// What a pass works with: the tape's memory, its program, its parameters.
#[derive(Clone, Copy)]
pub(super) struct Work<'w> {
    pub(super) code: &'w Code,
    pub(super) regions: &'w Regions,
    pub(super) program: &'w Program,
    pub(super) params: Address,
    pub(super) rows: usize,
    /// The frame that lies first in memory.
    pub(super) base: usize,
    pub(super) stretch: usize,
}

impl Work<'_> {
    pub(super) fn tape(&self, is_backward: bool, penalty_bar: f32) -> TapeArgs {
        let r = self.regions;
        TapeArgs {
            frames: r.frames.at(),
            adjoints: r.adjoints.at(),
            snapshots: r.snapshots.at(),
            carry: if is_backward { r.back_carry.at() } else { r.carry.at() },
            ends: r.ends.at(),
            grads: r.grads.at(),
            logs: r.logs[self.stretch].at(),
            log_bars: r.log_bars.at(),
            scratch: r.scratch.at(),
            params: self.params,
            penalty_bar,
            rows: self.rows as c_int,
        }
    }

    pub(super) fn forward(&self, routine: usize, frame: usize) -> Result<(), Fault> {
        let at = At { frame: number((frame - self.base) as isize), ..At::default() };
        self.code.step(routine, self.rows, self.tape(false, 0.0), at)
    }

    pub(super) fn forward_apart(&self, routine: usize, frame: usize, steps: usize) -> Result<(), Fault> {
        let at = At { frame: number((frame - self.base) as isize), ..At::default() };
        self.code.apart(routine, self.rows, steps, self.tape(false, 0.0), at)
    }

    /// Where the frames of a step lie.
    pub(super) fn frame(&self, frame: usize) -> Address {
        self.regions.frames.at() + 4 * (frame - self.base) * self.rows * self.program.frame_len
    }

    /// Where a checkpoint lies.
    pub(super) fn checkpoint(&self, number: usize) -> Address {
        self.regions.checkpoints.at() + 4 * number * self.rows * self.program.matrices_len
    }

    pub(super) fn adjoint(&self, t: usize) -> Address {
        self.regions.adjoints.at() + 4 * t * self.rows * self.program.adjoint_len
    }

    /// Packed numbers into frames.
    pub(super) fn scatter(
        &self,
        map: &Map,
        to: (Address, usize),
        from: Address,
        count: usize,
    ) -> Result<(), Fault> {
        self.code.moves(Move {
            to: to.0,
            to_map: map.places.at(),
            from,
            from_map: 0,
            to_length: to.1 as i64,
            from_length: map.width as i64,
            width: map.width as i64,
            count: count as i64,
        })
    }

    /// Numbers of frames into the staging memory.
    pub(super) fn gather(&self, map: &Map, from: (Address, usize), count: usize) -> Result<(), Fault> {
        self.code.moves(Move {
            to: self.regions.staging.at(),
            to_map: 0,
            from: from.0,
            from_map: map.places.at(),
            to_length: map.width as i64,
            from_length: from.1 as i64,
            width: map.width as i64,
            count: count as i64,
        })
    }

    /// Zeros where a map says, in all rows.
    pub(super) fn zero(&self, map: &Map, to: (Address, usize)) -> Result<(), Fault> {
        self.code.moves(Move {
            to: to.0,
            to_map: map.places.at(),
            from: self.code.zeros.at(),
            from_map: 0,
            to_length: to.1 as i64,
            from_length: 0,
            width: map.width as i64,
            count: self.rows as i64,
        })
    }

    /// Whole regions, one after the other.
    pub(super) fn whole(
        &self,
        to: (Address, usize),
        from: (Address, usize),
        width: usize,
    ) -> Result<(), Fault> {
        self.code.moves(Move {
            to: to.0,
            to_map: 0,
            from: from.0,
            from_map: 0,
            to_length: to.1 as i64,
            from_length: from.1 as i64,
            width: width as i64,
            count: self.rows as i64,
        })
    }
}

/// A longer region that begins with what there is.
pub(super) fn grow(w: Work<'_>, from: &Buffer, floats: usize) -> Result<Buffer, Fault> {
    let to = Buffer::new(&w.code.device, 4 * floats)?;
    to.take(0, from, 0, from.bytes() / 4)?;
    Ok(to)
}
