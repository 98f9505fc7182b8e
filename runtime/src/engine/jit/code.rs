//! Compiled routines, and what they are called with: pointers to the regions of a tape.
//!
//! Nothing else enters machine code. A routine gets one pointer for each [`Base`]: at the frame, the snapshot and the
//! adjoint frame of the step that it is called for.

use super::{Grads, RING, Tape};
use crate::engine::{Bound, FlushDenormals, Mode, denormals};
use compiler::back::{BackError, Kernels, Target};
use compiler::loops::{Base, NAMES, Program, Steps, TOGETHER, routines};
use std::ops::Range;

type Entry = unsafe extern "C" fn(*const *mut f32);
type ReplaySteps = unsafe extern "C" fn(*const *mut f32, u64);
type Pointers = [*mut f32; Base::ALL.len()];

/// Compiled routines.
pub(in crate::engine) struct Code {
    _kernels: Kernels,
    entries: [Entry; NAMES.len()],
    /// Several steps at once of the routines of [`Apart`].
    together: Option<[Entry; 4]>,
    /// Which routines do nothing.
    empty: [bool; NAMES.len()],
    replay_steps: Option<ReplaySteps>,
    reads_second: bool,
    bytes: usize,
}

// SAFETY: the code is never written after compilation, and it touches only memory that its caller
// points it to.
unsafe impl Send for Code {}
// SAFETY: as above.
unsafe impl Sync for Code {}

pub(super) const FIRST: usize = 1;
pub(super) const STEP: usize = 2;
pub(super) const FLUSH: usize = 3;
const REPLAY: usize = 5;
pub(super) const BACK_FIRST: usize = 7;
pub(super) const BACK_STEP: usize = 8;
pub(super) const BACK_FLUSH: usize = 9;

/// A routine that stands apart from the loop over time.
#[derive(Clone, Copy)]
pub(super) struct Apart {
    /// Its number among all routines.
    entry: usize,
    /// Its number among those that take several steps at once.
    several: usize,
}

pub(super) const BEFORE: Apart = Apart { entry: 0, several: 0 };
pub(super) const AFTER: Apart = Apart { entry: 4, several: 1 };
pub(super) const BACK_BEFORE: Apart = Apart { entry: 6, several: 2 };
pub(super) const BACK_AFTER: Apart = Apart { entry: 10, several: 3 };

impl Code {
    pub(in crate::engine) fn new(target: Target, program: &Program) -> Result<Code, BackError> {
        let kernels = target.compile(program)?;
        // SAFETY: `compile` gives entry points of this signature, valid while `kernels` lives.
        let entries = kernels.entries.map(|p| unsafe { std::mem::transmute::<*const u8, Entry>(p) });
        // SAFETY: likewise.
        let replay_steps =
            kernels.replay_steps.map(|p| unsafe { std::mem::transmute::<*const u8, ReplaySteps>(p) });
        // SAFETY: likewise.
        let together =
            kernels.together.map(|all| all.map(|p| unsafe { std::mem::transmute::<*const u8, Entry>(p) }));
        let empty = routines(program).map(|r| r.nests.is_empty());
        let bytes = kernels.code_bytes;
        let Steps { first, step, flush, .. } = &program.backward;
        let nests = [first, step, flush].into_iter().flat_map(|r| &r.nests);
        let mut loads = nests.flat_map(|n| n.body.loads());
        let reads_second = loads.any(|a| a.place().base == Base::Snapshot(2));
        Ok(Code { _kernels: kernels, entries, together, empty, replay_steps, reads_second, bytes })
    }

    pub(in crate::engine) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Whether going backward a step reads the state after the step after it.
    pub(super) fn reads_second(&self) -> bool {
        self.reads_second
    }
}

impl Tape {
    /// The pointers of a routine that is called for the step in frame `index`.
    fn pointers(&self, bound: &Bound<'_>, index: isize) -> Pointers {
        let program = self.program(bound);
        Base::ALL.map(|base| match base {
            Base::Frame(k) => {
                let at = index + isize::from(k);
                let at = if self.mode == Mode::Infer { at.rem_euclid(RING as isize) } else { at };
                self.frames.pointer().wrapping_offset(at * program.frame_len as isize)
            }
            Base::Scratch => self.scratch.pointer(),
            Base::Params => bound.packed.pointer(),
            Base::Carry => self.carry.pointer(),
            Base::Ends => self.room.ends.pointer(),
            Base::Log => self.logs[self.stretch].pointer(),
            Base::LogBar => self.log_bars.pointer(),
            Base::Adjoint(_) | Base::Snapshot(_) | Base::Grads => std::ptr::null_mut(),
        })
    }

    /// The snapshot before a segment is its checkpoint; the others follow each other.
    fn point_at_snapshots(&self, bound: &Bound<'_>, pointers: &mut Pointers, at: isize) {
        let matrices = self.program(bound).matrices_len as isize;
        for k in 0..3i8 {
            let number = at + isize::from(k);
            pointers[Base::Snapshot(k).slot()] = match number {
                0 => self.checkpoints.pointer().wrapping_add(self.segment),
                _ => self.room.snapshots.pointer().wrapping_offset((number - 1) * matrices),
            };
        }
    }

    pub(super) fn call(&mut self, bound: &Bound<'_>, entry: usize, index: isize) {
        let pointers = self.pointers(bound, index);
        self.enter(bound, self.code(bound).entries[entry], &pointers);
    }

    /// Runs a routine for the steps in these frames.
    pub(super) fn apart(&mut self, bound: &Bound<'_>, routine: Apart, frames: Range<usize>) {
        for (entry, index) in calls(self.code(bound), routine, frames) {
            let pointers = self.pointers(bound, index as isize);
            self.enter(bound, entry, &pointers);
        }
    }

    /// Runs a routine of the backward pass for these steps.
    pub(super) fn apart_back(
        &mut self,
        bound: &Bound<'_>,
        routine: Apart,
        steps: Range<usize>,
        grads: &mut Grads,
    ) {
        let start = steps.start;
        for (entry, t) in calls(self.code(bound), routine, steps) {
            let pointers = self.back_pointers(bound, t as isize, start, grads);
            self.enter(bound, entry, &pointers);
        }
    }

    pub(super) fn call_back(
        &mut self,
        bound: &Bound<'_>,
        entry: usize,
        t: isize,
        start: usize,
        grads: &mut Grads,
    ) {
        let pointers = self.back_pointers(bound, t, start, grads);
        self.enter(bound, self.code(bound).entries[entry], &pointers);
    }

    fn back_pointers(&self, bound: &Bound<'_>, t: isize, start: usize, grads: &mut Grads) -> Pointers {
        let program = self.program(bound);
        let frame = match usize::try_from(t).ok().filter(|t| *t >= start) {
            Some(t) => self.frame_of(t) as isize,
            None => self.frame_of(start) as isize - 1,
        };
        let mut pointers = self.pointers(bound, frame);
        self.point_at_snapshots(bound, &mut pointers, t - start as isize);
        for k in 0..3i8 {
            let at = (t + isize::from(k)) * program.adjoint_len as isize;
            pointers[Base::Adjoint(k).slot()] = self.adjoint.pointer().wrapping_offset(at);
        }
        pointers[Base::Carry.slot()] = self.room.back_carry.pointer();
        pointers[Base::Grads.slot()] = grads.packed.pointer();
        pointers
    }

    /// Rebuilds the matrix states after each of these steps of a segment, from its snapshot before the first.
    pub(super) fn replay_steps(&mut self, bound: &Bound<'_>, steps: Range<usize>) {
        if steps.is_empty() {
            return;
        }
        let code = self.code(bound);
        let mut pointers = self.pointers(bound, self.frame_of(steps.start) as isize);
        self.point_at_snapshots(bound, &mut pointers, 0);
        if let Some(replay) = code.replay_steps {
            let _entered = Entered::new();
            // SAFETY: as for `enter`; frames and snapshots of the segment follow each other.
            unsafe { replay(pointers.as_ptr(), steps.len() as u64) };
            return;
        }
        for t in steps.clone() {
            let mut pointers = self.pointers(bound, self.frame_of(t) as isize);
            self.point_at_snapshots(bound, &mut pointers, (t - steps.start) as isize);
            self.enter(bound, code.entries[REPLAY], &pointers);
        }
    }

    #[expect(clippy::needless_pass_by_ref_mut, reason = "the routine writes to this tape's memory")]
    fn enter(&mut self, _bound: &Bound<'_>, entry: Entry, pointers: &Pointers) {
        let _entered = Entered::new();
        // SAFETY: the routine reads and writes only inside of the regions whose sizes its program
        // states; the buffers behind the pointers have these sizes, belong to this tape, to the
        // caller's gradients (both borrowed exclusively), or are only read (parameters).
        unsafe { entry(pointers.as_ptr()) };
    }
}

/// Which code runs a routine for these steps, and from which step on.
fn calls(code: &Code, routine: Apart, steps: Range<usize>) -> impl Iterator<Item = (Entry, usize)> {
    let several = code.together.map(|all| all[routine.several]);
    let one = code.entries[routine.entry];
    let end = if code.empty[routine.entry] { steps.start } else { steps.end };
    let mut next = steps.start;
    std::iter::from_fn(move || {
        let at = next;
        let (entry, count) = match several {
            Some(entry) if at + TOGETHER <= end => (entry, TOGETHER),
            _ => (one, 1),
        };
        next = at + count;
        (at < end).then_some((entry, at))
    })
}

/// The state of the processor that kernels need, while this lives.
pub(super) struct Entered {
    _flush: FlushDenormals,
}

impl Entered {
    pub(super) fn new() -> Entered {
        denormals::clear_upper_halves();
        Entered { _flush: FlushDenormals::start() }
    }
}
