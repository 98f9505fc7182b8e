//! Where every scalar and vector lives.

use super::memory::{Loc, Memory, Region};
use super::{Task, Unit};
use crate::ir::{InputId, Op, OutputId, Sink, Source, StateId, Value};
use crate::loops::schedule::{Direction, is_matrix, reduced_matrix};
use crate::model::Model;
use std::collections::{BTreeMap, BTreeSet};

impl Unit<'_> {
    /// Decides what is stored where, and which nests compute it.
    pub(super) fn plan(&mut self, memory: &mut Memory, model: &Model) {
        self.locate_loads(memory, model);
        self.locate_results(memory, model);
        self.draft();
        self.locate_rest(memory);
    }

    fn locate_loads(&mut self, memory: &mut Memory, model: &Model) {
        for k in 0..self.f.body.len() {
            let v = Value(k as u32);
            let frame = |offset, shift| Some(Loc { region: Region::Frame, shift, offset });
            let loc = match self.f.at(v).op {
                _ if !self.schedule.live[k] => None,
                Op::Load(Source::Input(InputId(i))) => frame(memory.inputs[i as usize], 0),
                Op::Load(Source::State(StateId(s))) => {
                    memory.states[s as usize].and_then(|offset| frame(offset, -1))
                }
                Op::Load(Source::OutputBar(OutputId(o))) => frame(memory.output_bars[o as usize], 0),
                Op::Load(Source::NextBar(StateId(s))) => memory.state_bars[s as usize].map(|offset| Loc {
                    region: Region::Adjoint,
                    shift: 1,
                    offset,
                }),
                Op::Load(Source::RowBar(s)) => memory.logs[s.index()].as_ref().map(|l| Loc {
                    region: Region::Adjoint,
                    shift: 0,
                    offset: l.row_bar,
                }),
                Op::Load(Source::PenaltyBar) => Some(Loc { region: Region::Scratch, shift: 0, offset: 0 }),
                Op::Load(Source::Primal(p)) if model.step.ty(p).batched => Some(self.primal_loc(p)),
                Op::Load(Source::Primal(p)) => {
                    let offset = memory.bind(&model.step, self.sizes, p);
                    Some(Loc { region: Region::Params, shift: 0, offset })
                }
                _ if self.is_forward() && self.is_leaf(v) && self.leaf_used(v) => {
                    let offset = memory.bind(self.f, self.sizes, v);
                    Some(Loc { region: Region::Params, shift: 0, offset })
                }
                _ => None,
            };
            if let Some(loc) = loc {
                self.loc.insert(v, loc);
            }
        }
    }

    /// Whether an unbatched value is read by batched code or is a result.
    fn leaf_used(&self, v: Value) -> bool {
        let spread = |op: &Op| matches!(op, Op::Rows(..) | Op::Cols(..) | Op::Splat(..) | Op::Outer(..));
        let user = |i: &crate::ir::Instruction| i.ty.batched || spread(&i.op);
        let stripped = |o: &Value| self.strip(*o) == v || *o == v;
        self.f.values().any(|(_, i)| user(i) && i.op.operands().iter().any(stripped))
            || self.f.results.iter().any(|(_, r)| stripped(r))
    }

    fn primal_loc(&self, p: Value) -> Loc {
        let step = self.primal_function.expect("only the adjoint loads primal values");
        match step.at(p).op {
            Op::StopGrad(x) => self.primal_loc(x),
            Op::Slice { x, start, .. } if !self.primal.contains_key(&p) => {
                let loc = self.primal_loc(x);
                Loc { offset: loc.offset + self.sizes.of(start), ..loc }
            }
            Op::Element(x, k) if !self.primal.contains_key(&p) => {
                let loc = self.primal_loc(x);
                Loc { offset: loc.offset + k, ..loc }
            }
            _ => self.primal[&p],
        }
    }

    /// Gives results their slots, with a copy where the value already lives elsewhere.
    fn locate_results(&mut self, memory: &mut Memory, model: &Model) {
        for (sink, v) in self.f.results.clone() {
            let shape = self.f.ty(v).shape;
            let count = self.sizes.count(shape);
            match sink {
                Sink::State(s) => {
                    if let Some(offset) = memory.states[s.index()] {
                        self.claim(v, Loc { region: Region::Frame, shift: 0, offset });
                    }
                }
                Sink::Output(o) => {
                    let name = model.outputs[o.index()].name.clone();
                    let offset = self.reuse_or_take(v, memory, name, count);
                    memory.outputs.push(offset);
                }
                Sink::Row(s) => {
                    let name = format!("row {}", model.states[s.index()].name);
                    let offset = self.reuse_or_take(v, memory, name, count);
                    if let Some(log) = &mut memory.logs[s.index()] {
                        log.row = offset;
                    }
                }
                Sink::Penalty => {
                    let offset = self.reuse_or_take(v, memory, "penalty".to_owned(), count);
                    memory.penalties.push(offset);
                }
                Sink::StateBar(s) => {
                    if let Some(offset) = memory.state_bars[s.index()] {
                        self.claim(v, Loc { region: Region::Adjoint, shift: 0, offset });
                    }
                }
                Sink::InputBar(i) => {
                    let name = format!("bar {}", model.inputs[i.index()].name);
                    let offset = memory.adjoint.take(name, count);
                    memory.input_bars[i.index()] = Some(offset);
                    self.claim(v, Loc { region: Region::Adjoint, shift: 0, offset });
                }
                Sink::BoundaryBar(p) => {
                    if let Op::Outer(a, b) = self.f.at(v).op {
                        self.settle(a, memory);
                        self.settle(b, memory);
                        continue;
                    }
                    let offset = memory.gradient(shape, self.sizes, p);
                    self.grad_places.insert(p, offset);
                    if !is_matrix(self.f, v) {
                        self.sums.push((v, offset));
                    }
                }
                _ => {}
            }
        }
    }

    /// An operand of a hoisted product needs memory even if it is a constant.
    fn settle(&mut self, v: Value, memory: &mut Memory) {
        let v = self.strip(v);
        let spread = matches!(self.f.at(v).op, Op::Splat(..));
        if (self.constant(v).is_some() || spread) && !self.loc.contains_key(&v) {
            let offset = memory.adjoint.take(format!("%{}", v.0), self.sizes.count(self.f.ty(v).shape));
            let loc = Loc { region: Region::Adjoint, shift: 0, offset };
            self.copies.push((v, loc));
            self.loc.insert(v, loc);
        }
        self.forced.insert(v);
    }

    /// An output that is stored in this step's frame anyway needs no slot of its own.
    fn reuse_or_take(&mut self, v: Value, memory: &mut Memory, name: String, count: usize) -> usize {
        match self.loc.get(&self.strip(v)) {
            Some(Loc { region: Region::Frame, shift: 0, offset }) => *offset,
            _ => {
                let offset = memory.frame.take(name, count);
                self.claim(v, Loc { region: Region::Frame, shift: 0, offset });
                offset
            }
        }
    }

    fn claim(&mut self, v: Value, loc: Loc) {
        let v = self.strip(v);
        if self.is_task(v) && !self.loc.contains_key(&v) {
            self.loc.insert(v, loc);
        } else {
            self.copies.push((v, loc));
        }
        self.forced.insert(v);
    }

    /// Whether a scalar or vector is computed by a task of its own (or by a sweep).
    pub(super) fn is_task(&self, v: Value) -> bool {
        !is_matrix(self.f, v)
            && !self.is_leaf(v)
            && self.constant(v).is_none()
            && !matches!(
                self.f.at(v).op,
                Op::Load(_) | Op::Splat(..) | Op::Slice { .. } | Op::Element(..) | Op::StopGrad(_)
            )
    }

    /// Gives every other value that crosses nests a slot.
    fn locate_rest(&mut self, memory: &mut Memory) {
        let stored = self.crossing();
        for v in stored {
            if self.loc.contains_key(&v) || !self.is_task(v) {
                continue;
            }
            let name = self.f.at(v).name.clone().unwrap_or_else(|| format!("%{}", v.0));
            let count = self.sizes.count(self.f.ty(v).shape);
            let (region, offset) = match self.direction {
                Direction::Forward => (Region::Frame, memory.frame.take(name, count)),
                Direction::Backward => (Region::Adjoint, memory.adjoint.take(name, count)),
            };
            self.loc.insert(v, Loc { region, shift: 0, offset });
        }
    }

    /// Values that are used outside of the nest that computes them.
    fn crossing(&self) -> BTreeSet<Value> {
        let mut home: BTreeMap<Value, (usize, usize)> = BTreeMap::new();
        for (g, drafts) in self.drafts.iter().enumerate() {
            for (d, draft) in drafts.iter().enumerate() {
                for task in &draft.tasks {
                    if let Task::Compute(v) = task {
                        home.insert(*v, (g, d));
                    }
                }
            }
        }
        let mut stored: BTreeSet<Value> = self.forced.iter().map(|v| self.memory_value(*v)).collect();
        for (v, instruction) in self.f.values() {
            if !self.schedule.live[v.index()] {
                continue;
            }
            if reduced_matrix(self.f, &instruction.op).is_some() || self.is_fused_sum(v) {
                stored.insert(v);
            }
            for o in instruction.op.operands() {
                let same = home.contains_key(&v) && home.get(&v) == home.get(&self.strip(o));
                if !same || !self.is_elementwise(v) {
                    stored.insert(self.memory_value(o));
                }
            }
        }
        for (d, (v, _)) in self.copies.iter().enumerate() {
            self.store_for(Task::Copy(d), *v, &home, &mut stored);
        }
        for (d, (v, _)) in self.sums.iter().enumerate() {
            self.store_for(Task::Accumulate(d), *v, &home, &mut stored);
        }
        stored
    }

    fn store_for(
        &self,
        task: Task,
        v: Value,
        home: &BTreeMap<Value, (usize, usize)>,
        stored: &mut BTreeSet<Value>,
    ) {
        let at = self
            .drafts
            .iter()
            .enumerate()
            .find_map(|(g, drafts)| drafts.iter().position(|d| d.tasks.contains(&task)).map(|d| (g, d)));
        if home.get(&self.strip(v)).copied() != at {
            stored.insert(self.memory_value(v));
        }
    }

    /// The value in memory that an alias reads.
    pub(super) fn memory_value(&self, v: Value) -> Value {
        let v = self.strip(v);
        match self.f.at(v).op {
            Op::Slice { x, .. } | Op::Element(x, _) | Op::Splat(x, _) => self.memory_value(x),
            _ => v,
        }
    }
}
