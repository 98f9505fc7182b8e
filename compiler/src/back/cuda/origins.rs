//! Where in the spec an effect comes from.
//!
//! The loop IR keeps no places of the spec, but every effect goes to a place in memory that belongs to a
//! value of the step or of its adjoint, and those know theirs.

use super::Spec;
use crate::ir::{Function, Sink, StateId, Value};
use crate::loops::{Base, Effect, Place, Program, Slot};

/// Finds origins.
pub(super) struct Origins<'s> {
    spec: Spec<'s>,
    program: &'s Program,
}

impl<'s> Origins<'s> {
    pub(super) fn new(program: &'s Program, spec: Spec<'s>) -> Self {
        Origins { spec, program }
    }

    /// The line of the spec that an effect comes from, if it comes from one.
    pub(super) fn line(&self, effect: &Effect, backward: bool) -> Option<usize> {
        let (step, adjoint) = (self.spec.step, self.spec.adjoint);
        let place = effect.place();
        let (function, value) = match place.base {
            Base::Frame(_) => (step, slot_value(step, slot(&self.program.frame, place)?, false)?),
            Base::Adjoint(_) => (adjoint, slot_value(adjoint, slot(&self.program.adjoint, place)?, true)?),
            Base::Carry if backward && !self.program.carries_states => return None,
            Base::Carry | Base::Next | Base::Ends | Base::Snapshot(_) | Base::LogBar => {
                (step, step.result(Sink::State(self.state(place)?))?)
            }
            Base::Grads => {
                let found = self.program.grads.iter().rev().find(|g| g.offset <= place.offset)?;
                (adjoint, adjoint.result(Sink::BoundaryBar(found.value))?)
            }
            Base::Scratch | Base::Params | Base::Log => return None,
        };
        let span = function.at(value).span;
        // A caller may not have the text.
        let is_there = 0 < span.end && span.end as usize <= self.spec.source.len();
        is_there.then(|| grammar::span::line_column(self.spec.source, span.start as usize).0)
    }

    /// The matrix state at a place.
    fn state(&self, place: Place) -> Option<StateId> {
        if place.base == Base::LogBar {
            let log = self.program.logs.iter().filter(|l| l.bar <= place.offset).max_by_key(|l| l.bar)?;
            return Some(StateId(log.state as u32));
        }
        let before =
            |m: &Option<crate::loops::MatrixSlot>| m.as_ref().is_some_and(|m| m.offset <= place.offset);
        self.program.matrices.iter().rposition(before).map(|k| StateId(k as u32))
    }

    /// The text of a line of the spec.
    pub(super) fn text(&self, line: usize) -> &'s str {
        self.spec.source.lines().nth(line - 1).unwrap_or("").trim()
    }
}

fn slot(slots: &[Slot], place: Place) -> Option<&Slot> {
    slots.iter().rev().find(|s| s.offset <= place.offset)
}

/// The value that a slot holds.
fn slot_value(f: &Function, slot: &Slot, is_adjoint: bool) -> Option<Value> {
    if let Some(number) = slot.name.strip_prefix('%') {
        return number.parse().ok().map(Value).filter(|v| v.index() < f.body.len());
    }
    let named =
        |name: &str| f.values().filter(|(_, i)| i.name.as_deref() == Some(name)).last().map(|(v, _)| v);
    match is_adjoint {
        // The cotangent of what bears this name.
        true => named(slot.name.trim_start_matches("bar ")),
        false => named(slot.name.trim_end_matches('\'')).or_else(|| named(&slot.name)),
    }
}
