//! Sweeps over matrices, and the routines that are made of nests and sweeps.

use super::{Role, Unit};
use crate::ir::{Op, Sink, StateId, Value};
use crate::loops::emit::Emit;
use crate::loops::schedule::{self, is_matrix, is_rank_one, reduced_matrix};
use crate::loops::*;
use std::collections::BTreeSet;

impl Unit<'_> {
    /// The matrix extents of this function's sweeps.
    fn extents(&self) -> Vec<Extent> {
        let mut found = vec![];
        let mut add = |v: Value| {
            let extent = self.extent(self.f.ty(v).shape);
            if !found.contains(&extent) {
                found.push(extent);
            }
        };
        for (_, v) in self.f.results.iter().filter(|(_, v)| is_matrix(self.f, *v)) {
            add(*v);
        }
        for (v, i) in self.f.values().filter(|(v, _)| self.schedule.live[v.index()]) {
            let _ = v;
            if let Some(m) = reduced_matrix(self.f, &i.op).filter(|m| schedule::is_swept(self.f, *m)) {
                add(m);
            }
        }
        found
    }

    /// The nests of one sweep: the tail of the call before, the head, or both joined.
    fn sweep(&self, tail: Option<usize>, head: Option<usize>, place: Ends, nests: &mut Vec<Nest>) {
        for extent in self.extents() {
            let mut emit = Emit::new(self, BTreeSet::new());
            let mut label = vec![];
            if let Some(k) = tail {
                self.write(&mut emit, Role::Tail, extent, place, &mut label);
                self.sums_of(&mut emit, Role::Tail, k, extent, &mut label);
            }
            if let Some(k) = head {
                emit.from_ends = place == Ends::First && self.schedule.carried.is_some();
                self.sums_of(&mut emit, Role::Head, k, extent, &mut label);
                if self.schedule.joined && k == 0 {
                    self.keep(&mut emit, extent, &mut label);
                }
                if !self.schedule.joined && k + 1 == self.schedule.sweeps {
                    self.write(&mut emit, Role::Head, extent, place, &mut label);
                }
            }
            let nest = emit.finish(extent, label.join("; "));
            if !nest.effects.is_empty() {
                nests.push(nest);
            }
        }
    }

    /// The matrix states (or their cotangents) after the step.
    fn write(&self, emit: &mut Emit<'_>, role: Role, extent: Extent, place: Ends, label: &mut Vec<String>) {
        for (sink, v) in &self.f.results {
            let s = match sink {
                Sink::State(s) | Sink::StateBar(s) => *s,
                _ => continue,
            };
            if !is_matrix(self.f, *v) || self.extent(self.f.ty(*v).shape) != extent {
                continue;
            }
            let id = emit.number(role, *v);
            emit.handed.insert(s, id);
            if let Some(place) = self.log_bar_place(s) {
                emit.effect(Effect::Store(Access::Matrix(place), id));
                label.push(format!("write the cotangents of {}", model_name(&self.logs, s)));
                continue;
            }
            let to_ends = self.schedule.carried.is_some();
            let slot = self.matrix(s);
            let base = match role {
                Role::Replay => Base::Snapshot(1),
                _ if to_ends => Base::Ends,
                _ => Base::Carry,
            };
            if !to_ends || place == Ends::Last {
                let to = Place { base, offset: slot.offset };
                emit.effect(Effect::Store(Access::Matrix(to), id));
            }
            label.push(format!("write {}", slot.name));
        }
    }

    /// The sums and gradients of one sweep.
    fn sums_of(
        &self,
        emit: &mut Emit<'_>,
        role: Role,
        sweep: usize,
        extent: Extent,
        label: &mut Vec<String>,
    ) {
        for (v, instruction) in self.f.values() {
            let here = self.schedule.live[v.index()] && self.schedule.stage[v.index()] == sweep + 1;
            let Some(m) = reduced_matrix(self.f, &instruction.op) else { continue };
            let mine = self.extent(self.f.ty(m).shape) == extent && schedule::is_swept(self.f, m);
            // A late load raises the stage of what it feeds; a sum belongs to the sweep in which
            // its operands are there.
            if here && mine {
                self.reduce(emit, role, v);
                label.push(format!("sum {}", instruction.name.clone().unwrap_or(format!("%{}", v.0))));
            }
        }
        for (sink, v) in &self.f.results {
            let Sink::BoundaryBar(p) = sink else { continue };
            let mine = is_matrix(self.f, *v)
                && !is_rank_one(self.f, *v)
                && self.extent(self.f.ty(*v).shape) == extent
                && self.schedule.stage[v.index()] == sweep;
            if mine {
                let (a, b) = emit.factors(role, *v);
                let place = Place { base: Base::Grads, offset: self.grad_places[p] };
                emit.effect(Effect::Add(Access::Matrix(place), a, b));
                label.push(format!("gradient %{}", p.0));
            }
        }
    }

    /// Keeps the carried expressions for the next call.
    fn keep(&self, emit: &mut Emit<'_>, extent: Extent, label: &mut Vec<String>) {
        for (v, offset) in &self.carry {
            if self.extent(self.f.ty(*v).shape) == extent {
                let id = emit.number(Role::Head, *v);
                let place = Place { base: Base::Carry, offset: *offset };
                emit.effect(Effect::Store(Access::Matrix(place), id));
                label.push(format!("carry %{}", v.0));
            }
        }
    }

    // ---------------------------------------------------------------- routines

    pub(super) fn steps(&self) -> Steps {
        let sweeps = self.schedule.sweeps;
        if !self.schedule.joined {
            let mut nests = vec![];
            for k in 0..=sweeps {
                self.vector_nests(k, Role::Head, &mut nests);
                if k < sweeps {
                    self.sweep(None, Some(k), Ends::Middle, &mut nests);
                }
            }
            let step = Routine { nests, cut: None };
            return Steps { first: step.clone(), step, ..Steps::default() };
        }
        let mut flush = vec![];
        self.sweep(Some(sweeps - 1), None, Ends::Last, &mut flush);
        self.vector_nests(sweeps, Role::Tail, &mut flush);
        let (first, step) = (self.joined(false), self.joined(true));
        Steps { first, step, flush: Routine { nests: flush, cut: None }, ..Steps::default() }
    }

    pub(super) fn joined(&self, pending: bool) -> Routine {
        let sweeps = self.schedule.sweeps;
        let mut nests = vec![];
        self.vector_nests(0, Role::Head, &mut nests);
        let (tail, place) = match pending {
            true => (Some(sweeps - 1), Ends::Middle),
            false => (None, Ends::First),
        };
        self.sweep(tail, Some(0), place, &mut nests);
        if pending {
            self.vector_nests(sweeps, Role::Tail, &mut nests);
        }
        for k in 1..sweeps {
            self.vector_nests(k, Role::Head, &mut nests);
            if k + 1 < sweeps {
                self.sweep(None, Some(k), Ends::Middle, &mut nests);
            }
        }
        Routine { nests, cut: None }
    }

    /// Rebuilds the matrix states from the frames, without any sum.
    pub(super) fn replay(&self) -> Routine {
        let mut nests = vec![];
        for extent in self.extents() {
            let mut emit = Emit::new(self, BTreeSet::new());
            let mut label = vec![];
            self.write(&mut emit, Role::Replay, extent, Ends::Middle, &mut label);
            let nest = emit.finish(extent, label.join("; ").replace("write", "replay"));
            if !nest.effects.is_empty() {
                nests.push(nest);
            }
        }
        Routine { nests, cut: None }
    }

    /// The hoisted gradients.
    pub(super) fn rank_one(&self) -> Vec<Rank1> {
        let mut found = vec![];
        for (sink, v) in &self.f.results {
            if let (Sink::BoundaryBar(value), Op::Outer(a, b)) = (sink, &self.f.at(*v).op) {
                let dims = self.sizes.dims(self.f.ty(*v).shape);
                let (a, b) = (self.place(Role::Head, *a), self.place(Role::Head, *b));
                found.push(Rank1 { value: *value, a, b, post: dims[0], pre: dims[1] });
            }
        }
        found
    }
}

fn model_name(logs: &[Option<LogSlot>], s: StateId) -> &str {
    logs[s.index()].as_ref().map_or("", |l| &l.name)
}

/// Which call of a sequence a sweep belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ends {
    First,
    Middle,
    Last,
}
