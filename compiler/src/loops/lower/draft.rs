//! Which scalars and vectors are computed together: the tasks of a stage, grouped into nests to be.

use super::{Draft, Task, Unit};
use crate::ir::{Op, Value};
use crate::loops::Extent;
use crate::loops::schedule::{self, is_matrix, reduced_matrix};
use std::collections::BTreeMap;

impl Unit<'_> {
    pub(super) fn is_elementwise(&self, v: Value) -> bool {
        matches!(
            self.f.at(v).op,
            Op::Unary(..)
                | Op::Binary(..)
                | Op::Select(..)
                | Op::Clip { .. }
                | Op::Splat(..)
                | Op::StopGrad(_)
        )
    }

    /// Whether a value is a sum or maximum over a vector, computed by a vector nest.
    pub(super) fn is_fused_sum(&self, v: Value) -> bool {
        matches!(self.f.at(v).op, Op::SumAll(x) | Op::MaxAll(x) if !is_matrix(self.f, x))
    }

    /// Groups the tasks of every stage into nests.
    pub(super) fn draft(&mut self) {
        let last = self.schedule.stage.iter().max().copied().unwrap_or(0);
        for stage in 0..=last.max(self.schedule.sweeps) {
            let mut tasks: Vec<Task> = vec![];
            for (v, _) in self.f.values() {
                let here = self.schedule.live[v.index()] && self.schedule.stage[v.index()] == stage;
                let swept =
                    reduced_matrix(self.f, &self.f.at(v).op).is_some_and(|m| schedule::is_swept(self.f, m));
                if here && self.is_task(v) && !swept {
                    tasks.push(Task::Compute(v));
                }
            }
            let at = |v: Value| self.schedule.stage[v.index()] == stage;
            tasks.extend((0..self.copies.len()).filter(|k| at(self.copies[*k].0)).map(Task::Copy));
            tasks.extend((0..self.sums.len()).filter(|k| at(self.sums[*k].0)).map(Task::Accumulate));
            let drafts = self.group(&tasks);
            self.drafts.push(drafts);
        }
    }

    /// Fuses tasks of equal extent greedily, each into the earliest nest that it can join.
    pub(super) fn group(&self, tasks: &[Task]) -> Vec<Draft> {
        let mut drafts: Vec<Draft> = vec![];
        let mut home: BTreeMap<Value, usize> = BTreeMap::new();
        for task in tasks {
            let (extent, fusable, operands) = self.shape_of_task(*task);
            let mut earliest = 0;
            for o in operands {
                let base = self.memory_value(o);
                if let Some(d) = home.get(&base) {
                    let same = base == self.strip(o)
                        && fusable
                        && drafts[*d].extent == extent
                        && self.is_elementwise(base);
                    earliest = earliest.max(if same { *d } else { *d + 1 });
                }
            }
            let joins = |d: &Draft| fusable && d.extent == extent && self.is_fusable_draft(d);
            let found = (earliest..drafts.len()).find(|d| joins(&drafts[*d]));
            let d = found.unwrap_or_else(|| {
                drafts.push(Draft { extent, tasks: vec![] });
                drafts.len() - 1
            });
            drafts[d].tasks.push(*task);
            if let Task::Compute(v) = task {
                home.insert(*v, d);
            }
        }
        drafts
    }

    fn is_fusable_draft(&self, draft: &Draft) -> bool {
        draft.tasks.iter().all(|t| self.shape_of_task(*t).1)
    }

    /// What a task runs over, whether it can share a nest, and what it reads.
    fn shape_of_task(&self, task: Task) -> (Extent, bool, Vec<Value>) {
        match task {
            Task::Copy(k) => {
                let v = self.copies[k].0;
                (self.extent(self.f.ty(v).shape), true, vec![v])
            }
            Task::Accumulate(k) => {
                let v = self.sums[k].0;
                (self.extent(self.f.ty(v).shape), true, vec![v])
            }
            Task::Compute(v) => {
                let op = &self.f.at(v).op;
                let operands = op.operands();
                let extent = match op {
                    Op::SumAll(x) | Op::MaxAll(x) => self.extent(self.f.ty(*x).shape),
                    Op::Contract(m, _) | Op::ContractT(m, _) | Op::SumPre(m) | Op::SumPost(m) => {
                        self.extent(self.f.ty(*m).shape)
                    }
                    _ => self.extent(self.f.ty(v).shape),
                };
                (extent, self.is_elementwise(v) || self.is_fused_sum(v), operands)
            }
        }
    }
}
