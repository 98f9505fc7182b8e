//! Work that needs no loop over time.
//!
//! Some products of a step need no state: those of inputs going forward, those of the cotangents of
//! outputs going backward. Others feed no state: readouts going forward, cotangents of inputs going
//! backward. They go into routines of their own, [`super::Steps::before`] and
//! [`super::Steps::after`]. Who takes one step at a time runs all three in turn. Who knows a
//! sequence runs `before` for all of its steps first and `after` for all of them last, several
//! steps at once ([`together`]), so that a matrix of parameters is read once for several vectors.
//!
//! A nest is *early* if it reads only parameters, inputs (backward: any value of the forward pass)
//! and what early nests write. It is *late* if only late nests read what it writes. Of these, products
//! are moved, with the early nests that they need and the late ones that need them. Every sum keeps its
//! order, hence its bits.

use super::body::{Body, BodyOp, Id};
use super::{Access, Base, Effect, Extent, Nest, Place, Program, Routine, Slot, Steps};
use std::collections::BTreeSet;

/// How many steps [`together`] joins.
pub const TOGETHER: usize = 3;

/// Moves nests out of the steps of a program.
pub(super) fn hoist(program: &mut Program) {
    let inputs = program.inputs.iter().filter_map(|o| slot_at(&program.frame, *o)).collect();
    let replay = program.replay.nests.clone();
    // The host moves the rows of logs out of the frame before the next step.
    let kept = program.logs.iter().filter_map(|log| slot_at(&program.frame, log.row)).collect();
    let forward = Side { slots: &program.frame, is_forward: true, inputs, replay, kept };
    split(&mut program.forward, &forward);
    let backward = Side {
        slots: &program.adjoint,
        is_forward: false,
        inputs: BTreeSet::new(),
        replay: vec![],
        kept: BTreeSet::new(),
    };
    split(&mut program.backward, &backward);
}

/// A direction of time.
struct Side<'p> {
    /// The layout of the frames that its nests write.
    slots: &'p [Slot],
    is_forward: bool,
    /// The slots of inputs.
    inputs: BTreeSet<usize>,
    /// Other nests that read these frames within the pass.
    replay: Vec<Nest>,
    /// Slots that must be there when the step ends.
    kept: BTreeSet<usize>,
}

/// A slot of a frame, and which step's frame it is.
type Cell = (i8, usize);

fn slot_at(slots: &[Slot], offset: usize) -> Option<usize> {
    slots.iter().rposition(|s| s.offset <= offset)
}

impl Side<'_> {
    /// The cell of these frames that a place belongs to.
    fn cell(&self, place: Place) -> Option<Cell> {
        match (place.base, self.is_forward) {
            (Base::Frame(k), true) | (Base::Adjoint(k), false) => {
                slot_at(self.slots, place.offset).map(|slot| (k, slot))
            }
            _ => None,
        }
    }

    fn reads(&self, nest: &Nest) -> Vec<Cell> {
        nest.body.loads().filter_map(|a| self.cell(a.place())).collect()
    }

    fn writes(&self, nest: &Nest) -> Vec<Cell> {
        nest.effects.iter().filter_map(|e| self.cell(e.place())).collect()
    }

    /// Whether a nest touches nothing but parameters and frames, and writes those of its step.
    fn is_movable(&self, nest: &Nest) -> bool {
        let reads = nest.body.loads().all(|a| match a.place().base {
            Base::Params => true,
            Base::Frame(_) => !matches!(a, Access::Matrix(_)),
            Base::Adjoint(_) => !self.is_forward && !matches!(a, Access::Matrix(_)),
            _ => false,
        });
        let writes = nest
            .effects
            .iter()
            .all(|e| !matches!(e, Effect::Add(..)) && matches!(self.cell(e.place()), Some((0, _))));
        reads && writes
    }
}

fn is_product(nest: &Nest) -> bool {
    matches!(nest.extent, Extent::Matrix { .. })
}

fn split(steps: &mut Steps, side: &Side<'_>) {
    let nests = steps.step.nests.clone();
    let occurs_once = |all: &[Nest], nest: &Nest| all.iter().filter(|n| *n == nest).count() == 1;
    let movable: BTreeSet<usize> = (0..nests.len())
        .filter(|k| side.is_movable(&nests[*k]))
        .filter(|k| occurs_once(&nests, &nests[*k]) && occurs_once(&steps.first.nests, &nests[*k]))
        .collect();
    // What other routines do with the frames counts as well.
    let others: Vec<&Nest> = steps.flush.nests.iter().chain(&side.replay).collect();
    let early = early(&nests, &others, &movable, side);
    let rest: BTreeSet<usize> = movable.difference(&early).copied().collect();
    let late = late(&nests, &others, &rest, side);
    let take = |chosen: &BTreeSet<usize>| Routine {
        nests: chosen.iter().map(|k| nests[*k].clone()).collect(),
        cut: None,
    };
    (steps.before, steps.after) = (take(&early), take(&late));
    let is_moved = |n: &Nest| steps.before.nests.contains(n) || steps.after.nests.contains(n);
    steps.first.nests.retain(|n| !is_moved(n));
    steps.step.nests.retain(|n| !is_moved(n));
}

/// Whether some nest apart from the chosen ones writes a slot, in whatever step's frame.
fn is_written_by_others(
    slot: usize,
    nests: &[Nest],
    others: &[&Nest],
    chosen: &BTreeSet<usize>,
    side: &Side<'_>,
) -> bool {
    let rest = nests.iter().enumerate().filter(|(k, _)| !chosen.contains(k)).map(|(_, n)| n);
    rest.chain(others.iter().copied()).any(|n| side.writes(n).iter().any(|(_, s)| *s == slot))
}

fn early(nests: &[Nest], others: &[&Nest], movable: &BTreeSet<usize>, side: &Side<'_>) -> BTreeSet<usize> {
    let mut chosen = movable.clone();
    loop {
        let is_early = |k: &usize| {
            let nest = &nests[*k];
            let known = |(shift, slot): (i8, usize)| {
                let made_before = nests[..*k].iter().any(|n| side.writes(n).contains(&(0, slot)));
                shift == 0
                    && (side.inputs.contains(&slot)
                        || made_before && !is_written_by_others(slot, nests, others, &chosen, side))
            };
            let alone = |(_, slot)| !is_written_by_others(slot, nests, others, &chosen, side);
            side.reads(nest).into_iter().all(known) && side.writes(nest).into_iter().all(alone)
        };
        let kept: BTreeSet<usize> = chosen.iter().copied().filter(is_early).collect();
        if kept == chosen {
            break;
        }
        chosen = kept;
    }
    let products = chosen.iter().copied().filter(|k| is_product(&nests[*k])).collect();
    closure(products, &chosen, |a, b| {
        let read = side.reads(&nests[a]);
        let written = side.writes(&nests[a]);
        side.writes(&nests[b]).iter().any(|w| read.contains(w) || written.contains(w))
    })
}

fn late(nests: &[Nest], others: &[&Nest], movable: &BTreeSet<usize>, side: &Side<'_>) -> BTreeSet<usize> {
    let mut chosen = movable.clone();
    loop {
        let is_late = |k: &usize| {
            let is_read = |slot: usize| {
                let rest = nests.iter().enumerate().filter(|(k, _)| !chosen.contains(k)).map(|(_, n)| n);
                let all = rest.chain(others.iter().copied());
                all.into_iter().any(|n| side.reads(n).iter().any(|(_, s)| *s == slot))
            };
            // What a later step reads is no end in itself.
            let is_recalled = |slot: usize| {
                chosen
                    .iter()
                    .any(|n| side.reads(&nests[*n]).iter().any(|(shift, s)| *shift != 0 && *s == slot))
            };
            let fine = |(_, slot): (i8, usize)| {
                !side.kept.contains(&slot)
                    && !is_read(slot)
                    && !is_recalled(slot)
                    && !is_written_by_others(slot, nests, others, &chosen, side)
            };
            side.writes(&nests[*k]).into_iter().all(fine)
        };
        let kept: BTreeSet<usize> = chosen.iter().copied().filter(is_late).collect();
        if kept == chosen {
            break;
        }
        chosen = kept;
    }
    let products = chosen.iter().copied().filter(|k| is_product(&nests[*k])).collect();
    closure(products, &chosen, |a, b| {
        let written = side.writes(&nests[a]);
        let (reads, writes) = (side.reads(&nests[b]), side.writes(&nests[b]));
        written.iter().any(|w| reads.contains(w) || writes.contains(w))
    })
}

/// The smallest set with `start` that is closed: if `a` is in it, so is every allowed `b` that `a` needs.
fn closure(
    start: BTreeSet<usize>,
    allowed: &BTreeSet<usize>,
    needs: impl Fn(usize, usize) -> bool,
) -> BTreeSet<usize> {
    let mut found = start;
    loop {
        let more: Vec<usize> = allowed
            .iter()
            .copied()
            .filter(|b| !found.contains(b) && found.iter().any(|a| needs(*a, *b)))
            .collect();
        if more.is_empty() {
            return found;
        }
        found.extend(more);
    }
}

/// A routine for the step that it is called for and the next ones, [`TOGETHER`] in all. Their frames
/// follow each other. Only for [`Steps::before`] and [`Steps::after`].
pub fn together(routine: &Routine, program: &Program) -> Routine {
    let later = |step: usize, place: Place| {
        let stride = match place.base {
            Base::Frame(_) => program.frame_len,
            Base::Adjoint(_) => program.adjoint_len,
            _ => 0,
        };
        Place { offset: place.offset + step * stride, ..place }
    };
    let join = |nest: &Nest| join(nest, TOGETHER, format!("{}, {TOGETHER} steps", nest.label), later);
    Routine { nests: routine.nests.iter().map(join).collect(), cut: routine.cut }
}

/// A nest that does what several copies of it do, each with its places elsewhere.
pub(super) fn join(nest: &Nest, copies: usize, label: String, place: impl Fn(usize, Place) -> Place) -> Nest {
    let mut body = Body::default();
    let mut effects = vec![];
    for copy in 0..copies {
        let shifted = |p: Place| place(copy, p);
        let mut ids: Vec<Id> = vec![];
        for op in &nest.body.ops {
            let op = match op.map(|id| ids[id.index()]) {
                BodyOp::Load(access) => BodyOp::Load(access.map(shifted)),
                op => op,
            };
            ids.push(body.push(op));
        }
        effects.extend(nest.effects.iter().map(|e| e.map(shifted, |id| ids[id.index()])));
    }
    Nest { extent: nest.extent, body, effects, label }
}
