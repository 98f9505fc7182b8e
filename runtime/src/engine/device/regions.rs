//! The regions of a tape: how long they are, where they lie, and what moves between them.

use super::code::{Buffer, Code, Map, apart};
use super::tape::FIRST;
use super::{Address, At, Fault, Move, TapeArgs};
use crate::engine::{Engine, Mode};
use compiler::back::cuda::slabs::KEPT;
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
    /// Matrix states at the starts of segments; if those of every step are kept, the ones after every frame.
    pub(super) checkpoints: Buffer,
    /// The matrix states now, unless they are kept.
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

/// Of the memory that a device has free, the part that a tape may take which keeps the matrix states of every step.
const WHOLE: u64 = 2;

/// Bytes of all regions of a tape.
pub(in crate::engine) fn bytes(engine: &Engine, code: &Code, room: Room) -> u64 {
    Lengths::new(&engine.program, code, room).bytes()
}

/// Where the way back has the matrix states from, in words, if it goes step by step.
pub(in crate::engine) fn states(engine: &Engine, code: &Code, room: Room) -> Option<String> {
    if engine.program.matrices_len == 0 || code.sequence(true).is_some() {
        return None;
    }
    let lengths = Lengths::new(&engine.program, code, room);
    let mib = (4 * lengths.all[CHECKPOINTS] as u64).div_ceil(1 << 20);
    Some(match (lengths.keeps, lengths.interval) {
        (true, _) => format!("matrix states kept of every step, {mib} MiB"),
        (false, 1) => format!("matrix states copied before every step, {mib} MiB"),
        (false, k) => format!("matrix states replayed, from one in {k} steps, {mib} MiB"),
    })
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
    /// Whether the matrix states of every step are kept.
    pub(super) keeps: bool,
    /// In the order of [`Regions`].
    all: [usize; 12],
}

/// The place of the checkpoints among the regions.
const CHECKPOINTS: usize = 3;

impl Lengths {
    /// Keeps the states of every step if that is asked for by an interval of one, and if nothing is asked for and
    /// they take little of the device. What follows is the same either way, to the bit.
    pub(super) fn new(p: &Program, code: &Code, room: Room) -> Lengths {
        let can_keep = room.mode == Mode::Train && p.matrices_len > 0 && code.can_keep();
        if !can_keep || room.interval.is_some_and(|k| k > 1) {
            return Lengths::with(p, code, room, false);
        }
        let kept = Lengths::with(p, code, room, true);
        let takes = |bytes: u64, share: u64| bytes <= code.free / share;
        let is_small = takes(4 * kept.all[CHECKPOINTS] as u64, KEPT) && takes(kept.bytes(), WHOLE);
        if is_small || room.interval == Some(1) { kept } else { Lengths::with(p, code, room, false) }
    }

    fn with(p: &Program, code: &Code, room: Room, keeps: bool) -> Lengths {
        let Room { rows, steps, mode, interval } = room;
        // Who goes backward says how often: kernels of whole sequences have a best interval, and may need no snapshots.
        let whole = code.whole.as_ref();
        let interval = interval.or(whole.and_then(|w| w.interval(steps)));
        let one = TapeSizes::new(p, steps, interval);
        let (snapshots, checkpoints) = match keeps {
            true => (0, p.matrices_len.saturating_mul(steps + 1)),
            false => {
                let snapshots = whole.and_then(|w| w.snapshots(one.interval));
                (snapshots.unwrap_or(one.interval + 2), one.checkpoints)
            }
        };
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
            train(checkpoints),
            if keeps { 0 } else { each(p.matrices_len) },
            train(p.carry_len),
            train(p.matrices_len),
            train(p.grads_len),
            each(p.log_len),
            train(p.log_bar_len),
            each(p.scratch_len.saturating_mul(apart(p.scratch_len, rows).min(kept))),
            each(widest.max(states)),
        ];
        Lengths { frame_count, interval: one.interval, keeps, all }
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
    /// Whether the matrix states of every step are kept.
    pub(super) keeps: bool,
}

impl Work<'_> {
    pub(super) fn tape(&self, is_backward: bool, penalty_bar: f32) -> TapeArgs {
        let r = self.regions;
        TapeArgs {
            frames: r.frames.at(),
            adjoints: r.adjoints.at(),
            snapshots: if self.keeps { r.checkpoints.at() } else { r.snapshots.at() },
            carry: if is_backward { r.back_carry.at() } else { r.carry.at() },
            next: if is_backward { 0 } else { r.carry.at() },
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

    /// The routine finds the matrix states that the step before has left; a joined one first writes those.
    pub(super) fn forward(&self, routine: usize, frame: usize) -> Result<(), Fault> {
        let at = At { frame: number((frame - self.base) as isize), ..At::default() };
        let is_joined = self.program.merged.0;
        let found = if is_joined && routine != FIRST { frame - 2 } else { frame - 1 };
        let left = if is_joined { frame - 1 } else { frame };
        let (carry, next) = (self.states(found), self.states(left));
        self.code.step(routine, self.rows, TapeArgs { carry, next, ..self.tape(false, 0.0) }, at)
    }

    /// The region in which the matrix states after a frame lie, and the first of its floats that is theirs.
    pub(super) fn states_in(&self, frame: usize) -> (&Buffer, usize) {
        match self.keeps {
            true => (&self.regions.checkpoints, frame * self.rows * self.program.matrices_len),
            false => (&self.regions.carry, 0),
        }
    }

    /// Where they lie.
    pub(super) fn states(&self, frame: usize) -> Address {
        let (region, first) = self.states_in(frame);
        region.at() + 4 * first
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
