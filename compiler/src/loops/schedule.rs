//! When things happen: stages, sweeps, and what one call leaves to the next.
//!
//! The *stage* of a value is the number of reductions of batched matrices on the longest path that
//! leads to it. Vectors of stage `s` are computed before sweep `s`; sweep `s` gives the reductions
//! of stage `s + 1`. All matrix states are written in the last sweep, so every earlier sweep reads
//! them as they were before the step.
//!
//! **Joining.** The last sweep of a step can run together with the first sweep of the next call if
//! nothing needs its sums before then: outputs of the step do not (going forward; penalties can
//! wait), and the vectors that the next call's first sweep reads do not. Vectors that do follow from those sums are
//! *late*: they are computed after the joined sweep, and a state that is late counts as stage 1 in
//! the next call. A step with `n` sweeps then costs `n − 1`.
//!
//! **Carrying.** Going backward, what crosses from one call to the next need not be the cotangents
//! of the states. If the last sweep uses the incoming cotangents only through a few expressions of
//! stage 0, no more of them than there are states, then these are carried instead: they were
//! computed in the first sweep already.

use crate::ir::{Function, Op, Shape, Sink, Source, Value};
use std::collections::BTreeSet;

/// The direction of time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// A step.
    Forward,
    /// A step's adjoint.
    Backward,
}

/// When each value of a function is computed.
#[derive(Clone, Debug)]
pub struct Schedule {
    /// Which values a result needs.
    pub live: Vec<bool>,
    /// The stage of every value.
    pub stage: Vec<usize>,
    /// How many sweeps a step has before joining.
    pub sweeps: usize,
    /// Whether the last sweep joins the next call's first.
    pub joined: bool,
    /// The matrix values that cross from call to call, or `None` if these are the states (forward)
    /// or their cotangents (backward) themselves.
    pub carried: Option<Vec<Value>>,
}

/// Whether a value is a matrix.
pub fn is_matrix(f: &Function, v: Value) -> bool {
    matches!(f.ty(v).shape, Shape::Matrix { .. })
}

/// Whether an operation removes an axis of a matrix.
pub fn reduced_matrix(f: &Function, op: &Op) -> Option<Value> {
    match op {
        Op::SumAll(m) | Op::MaxAll(m) | Op::SumPre(m) | Op::SumPost(m) => is_matrix(f, *m).then_some(*m),
        Op::Contract(m, _) | Op::ContractT(m, _) => Some(*m),
        _ => None,
    }
}

/// Whether a value is a matrix that one call hands to the next.
pub fn is_incoming(f: &Function, direction: Direction, v: Value) -> bool {
    let Op::Load(source) = f.at(v).op else { return false };
    let incoming = match direction {
        Direction::Forward => matches!(source, Source::State(_)),
        Direction::Backward => matches!(source, Source::NextBar(_)),
    };
    incoming && is_matrix(f, v)
}

/// Schedules a function. Sweeps are joined only where they may be.
pub fn schedule(f: &Function, direction: Direction, may_join: bool) -> Schedule {
    let live = live(f);
    let plain = stages(f, direction, &BTreeSet::new());
    let sweeps = count_sweeps(f, &live, &plain);
    let joined = if sweeps < 2 || !may_join { None } else { join(f, direction, &live, sweeps) };
    match joined {
        Some(stage) => {
            let carried = match direction {
                Direction::Backward if sweeps == 2 => carried(f, &live, &stage),
                _ => None,
            };
            Schedule { live, stage, sweeps, joined: true, carried }
        }
        None => Schedule { live, stage: plain, sweeps, joined: false, carried: None },
    }
}

/// The values that results need.
fn live(f: &Function) -> Vec<bool> {
    let mut live = vec![false; f.body.len()];
    for (_, v) in &f.results {
        live[v.index()] = true;
    }
    for k in (0..f.body.len()).rev() {
        if live[k] {
            for o in f.body[k].op.operands() {
                live[o.index()] = true;
            }
        }
    }
    live
}

fn stages(f: &Function, direction: Direction, late: &BTreeSet<Value>) -> Vec<usize> {
    let mut stage: Vec<usize> = vec![];
    for (v, instruction) in f.values() {
        let operands = instruction.op.operands();
        let base = operands.iter().map(|o| stage[o.index()]).max().unwrap_or(0);
        let swept = reduced_matrix(f, &instruction.op).is_some_and(|m| is_swept(f, m));
        let own = base + usize::from(swept);
        stage.push(if late.contains(&v) { own.max(1) } else { own });
    }
    let _ = direction;
    stage
}

/// Whether reducing this matrix takes a sweep over batched data. A matrix of parameters alone does
/// not count: it is the same for all rows.
pub fn is_swept(f: &Function, m: Value) -> bool {
    f.ty(m).batched
}

fn count_sweeps(f: &Function, live: &[bool], stage: &[usize]) -> usize {
    let reductions = f
        .values()
        .filter(|(v, i)| live[v.index()] && reduced_matrix(f, &i.op).is_some_and(|m| is_swept(f, m)));
    let by_sums = reductions.map(|(v, _)| stage[v.index()]).max().unwrap_or(0);
    let by_results = f
        .results
        .iter()
        .filter(|(sink, v)| is_matrix(f, *v) && is_swept_result(f, *sink, *v))
        .map(|(_, v)| stage[v.index()] + 1)
        .max()
        .unwrap_or(0);
    by_sums.max(by_results)
}

/// Whether a matrix result is written by a sweep: states are, and gradients that are no outer
/// product (those are hoisted).
pub fn is_swept_result(f: &Function, sink: Sink, v: Value) -> bool {
    match sink {
        Sink::BoundaryBar(_) => !is_rank_one(f, v),
        _ => true,
    }
}

/// Whether a matrix is an outer product of two vectors.
pub fn is_rank_one(f: &Function, v: Value) -> bool {
    matches!(f.at(v).op, Op::Outer(..))
}

/// The stages with late states, if joining is possible and keeps the number of sweeps.
fn join(f: &Function, direction: Direction, live: &[bool], sweeps: usize) -> Option<Vec<usize>> {
    let mut late: BTreeSet<Value> = BTreeSet::new();
    loop {
        let stage = stages(f, direction, &late);
        if count_sweeps(f, live, &stage) != sweeps {
            return None;
        }
        let is_late = |v: &Value| stage[v.index()] >= sweeps;
        let early_needed = f.results.iter().any(|(sink, v)| matches!(sink, Sink::Output(_)) && is_late(v));
        if early_needed {
            return None;
        }
        let mut grown = late.clone();
        for (sink, v) in f.results.iter().filter(|(_, v)| is_late(v) && !is_matrix(f, *v)) {
            let load = match sink {
                Sink::State(s) => Source::State(*s),
                Sink::StateBar(s) => Source::NextBar(*s),
                _ => continue,
            };
            let _ = v;
            grown.extend(f.values().filter(|(_, i)| i.op == Op::Load(load)).map(|(v, _)| v));
        }
        if grown == late {
            return Some(stage);
        }
        late = grown;
    }
}

/// The expressions of stage 0 through which the last sweep uses the incoming cotangents, if they
/// are no more than the cotangents themselves.
fn carried(f: &Function, live: &[bool], stage: &[usize]) -> Option<Vec<Value>> {
    let incoming: Vec<bool> = depends_on_incoming(f);
    let mut found = BTreeSet::new();
    let mut todo: Vec<Value> = vec![];
    for (sink, v) in f.results.iter().filter(|(_, v)| is_matrix(f, *v)) {
        let in_tail = match sink {
            Sink::StateBar(_) => true,
            _ => stage[v.index()] == 1 && is_swept_result(f, *sink, *v),
        };
        if in_tail {
            todo.push(*v);
        }
    }
    for (v, instruction) in f.values() {
        if let Some(m) = reduced_matrix(f, &instruction.op)
            && live[v.index()]
            && is_swept(f, m)
            && stage[v.index()] == 2
        {
            todo.push(m);
        }
    }
    while let Some(v) = todo.pop() {
        if !is_matrix(f, v) || !incoming[v.index()] {
            continue;
        }
        if stage[v.index()] == 0 {
            found.insert(v);
        } else {
            todo.extend(f.at(v).op.operands());
        }
    }
    let states =
        f.values().filter(|(v, _)| live[v.index()] && is_incoming(f, Direction::Backward, *v)).count();
    (found.len() <= states).then(|| found.into_iter().collect())
}

/// Which matrix values depend, through matrices alone, on an incoming cotangent.
fn depends_on_incoming(f: &Function) -> Vec<bool> {
    let mut depends: Vec<bool> = vec![];
    for (v, instruction) in f.values() {
        let own = is_incoming(f, Direction::Backward, v);
        let matrix = is_matrix(f, v);
        let via = instruction.op.operands().iter().any(|o| is_matrix(f, *o) && depends[o.index()]);
        depends.push(own || (matrix && via));
    }
    depends
}
