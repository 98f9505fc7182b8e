//! Reverse mode: the adjoint of a step, and the adjoint of the prologue.
//!
//! Before: `%y = tanh %x; state y = %y`. After: `%b = next_bar y; %p = primal %y; %f = 1 - %p·%p;
//! %x̄ = %b·%f …`. Relies on a verified primal function; gives a verified adjoint whose size is
//! proportional to the primal's.

use super::rules::partials;
use crate::ir::{Axes, Axis, Binary, Builder, Function, Op, Shape, Sink, Source, Type, Unary, Value};
use crate::model::Model;
use std::collections::{BTreeMap, BTreeSet};

/// Names the offsets that the adjoints of concatenations need, so that they get sizes with all
/// other axes.
pub fn prepare(model: &mut Model) {
    for k in 0..model.step.body.len() {
        let Op::Concat(parts, _) = model.step.body[k].op.clone() else { continue };
        let mut at = crate::ir::Linear::default();
        for part in parts {
            model.axes.intern(at.clone());
            let axis = vector_axis(model.step.ty(part).shape);
            at = sum(&at, &model.axes.linear(axis).clone());
        }
    }
}

/// The unbatched values through which gradients leave the step: those that depend on a learned
/// parameter and are used by a batched instruction or are a result themselves. What a broadcast
/// repeats is the boundary, not the broadcast: its cotangent is a sum and smaller.
pub fn boundary(model: &Model) -> Vec<Value> {
    let step = &model.step;
    let active = active(model);
    let mut found = BTreeSet::new();
    let mut visit = |v: Value| {
        let mut v = v;
        while let Some(x) = spreads(step, v) {
            v = x;
        }
        if active[v.index()] && !step.ty(v).batched {
            found.insert(v);
        }
    };
    for (_, instruction) in step.values().filter(|(_, i)| i.ty.batched) {
        instruction.op.operands().into_iter().for_each(&mut visit);
    }
    step.results.iter().for_each(|(_, v)| visit(*v));
    found.into_iter().collect()
}

/// What an unbatched broadcast repeats.
fn spreads(step: &Function, v: Value) -> Option<Value> {
    let instruction = step.at(v);
    match instruction.op {
        Op::Splat(x, _) | Op::Rows(x, _) | Op::Cols(x, _) if !instruction.ty.batched => Some(x),
        _ => None,
    }
}

/// Which values depend, through operations that pass gradients, on something that has one.
fn active(model: &Model) -> Vec<bool> {
    let mut active: Vec<bool> = vec![];
    for (_, instruction) in model.step.values() {
        active.push(match &instruction.op {
            Op::Load(Source::Param(p)) => model.params[p.index()].learned,
            Op::Load(Source::Input(i)) => model.inputs[i.index()].role.is_differentiable(),
            Op::Load(_) => true,
            Op::StopGrad(_) | Op::Unary(Unary::Sign, _) => false,
            Op::Binary(Binary::Less | Binary::LessEqual | Binary::Equal, ..) => false,
            Op::Clip { x, .. } => active[x.index()],
            Op::Select(_, a, b) => active[a.index()] || active[b.index()],
            op => op.operands().iter().any(|v| active[v.index()]),
        });
    }
    active
}

/// The adjoint of one step.
///
/// Results: `StateBar` for every state, `InputBar` for every input with a gradient, and
/// `BoundaryBar(v)` for the values of [`boundary`]. Several results may share a matrix-shaped
/// `BoundaryBar`: they add up.
pub fn step(model: &Model) -> Function {
    let primal = &model.step;
    let mut tape = Reverse::new(model, Region::Step);
    for (sink, v) in &primal.results {
        let ty = Type { shape: primal.ty(*v).shape, batched: true };
        let seed = match sink {
            Sink::State(s) => tape.b.load(Source::NextBar(*s), ty),
            Sink::Output(o) => tape.b.load(Source::OutputBar(*o), ty),
            Sink::Penalty => tape.b.load(Source::PenaltyBar, ty),
            _ => continue,
        };
        tape.contribute(*v, seed);
    }
    for k in (0..primal.body.len()).rev() {
        let v = Value(k as u32);
        if primal.ty(v).batched || spreads(primal, v).is_some() {
            tape.visit(v);
        }
    }
    tape.step_results();
    tape.b.finish()
}

/// The adjoint of the prologue: from the summed cotangents of the boundary to those of the
/// parameters. Results: `ParamBar(p)` for every learned parameter that has a gradient path.
pub fn prologue(model: &Model) -> Function {
    let primal = &model.step;
    let mut tape = Reverse::new(model, Region::Prologue);
    for v in boundary(model) {
        let ty = Type { shape: primal.ty(v).shape, batched: false };
        let seed = tape.b.load(Source::BoundaryBar(v), ty);
        tape.contribute(v, seed);
    }
    for k in (0..primal.body.len()).rev() {
        if !primal.body[k].ty.batched {
            tape.visit(Value(k as u32));
        }
    }
    tape.b.finish()
}

#[derive(Clone, Copy, PartialEq)]
enum Region {
    Step,
    Prologue,
}

struct Reverse<'m> {
    model: &'m Model,
    axes: Axes,
    region: Region,
    active: Vec<bool>,
    b: Builder,
    /// Contributions to the cotangent of each primal value.
    bars: BTreeMap<Value, Vec<Value>>,
    /// Primal values, as seen from the adjoint.
    seen: BTreeMap<Value, Value>,
    /// Matrix values that are a state after the step.
    next: BTreeMap<Value, crate::ir::StateId>,
    state_bars: BTreeMap<crate::ir::StateId, Value>,
}

impl<'m> Reverse<'m> {
    fn new(model: &'m Model, region: Region) -> Self {
        let mut next = BTreeMap::new();
        for (sink, v) in &model.step.results {
            if let (Sink::State(s), Shape::Matrix { .. }) = (sink, model.step.ty(*v).shape) {
                next.entry(*v).or_insert(*s);
            }
        }
        Reverse {
            model,
            axes: model.axes.clone(),
            region,
            active: active(model),
            b: Builder::new(),
            bars: BTreeMap::new(),
            seen: BTreeMap::new(),
            next,
            state_bars: BTreeMap::new(),
        }
    }

    fn contribute(&mut self, v: Value, bar: Value) {
        if self.active[v.index()] {
            self.bars.entry(v).or_default().push(bar);
        }
    }

    /// The total cotangent of a value.
    fn total(&mut self, v: Value) -> Option<Value> {
        let parts = self.bars.get(&v)?.clone();
        if let Some(whole) = self.join(&parts) {
            return Some(whole);
        }
        let mut parts = parts.into_iter();
        let first = parts.next()?;
        Some(parts.fold(first, |sum, p| self.b.add(sum, p)))
    }

    /// Padded parts that follow each other without gap are the concatenation of the parts.
    fn join(&mut self, parts: &[Value]) -> Option<Value> {
        if parts.len() < 2 {
            return None;
        }
        let mut rest = vec![];
        let mut whole = None;
        for p in parts {
            let Op::Pad { x, start, axis } = self.b.function().at(*p).op else { return None };
            rest.push((x, self.axes.linear(start).clone()));
            whole = Some(axis);
        }
        let whole = whole?;
        let mut at = crate::ir::Linear::default();
        let mut ordered = vec![];
        while !rest.is_empty() {
            let k = rest.iter().position(|(_, start)| *start == at)?;
            let (x, _) = rest.swap_remove(k);
            let Shape::Vector(axis) = self.b.shape(x) else { return None };
            let length = self.axes.linear(axis).clone();
            at = sum(&at, &length);
            ordered.push(x);
        }
        (at == *self.axes.linear(whole)).then(|| self.b.emit(Op::Concat(ordered, whole)))
    }

    /// A primal value, as the adjoint can have it.
    fn primal(&mut self, v: Value) -> Value {
        if let Some(seen) = self.seen.get(&v) {
            return *seen;
        }
        let instruction = &self.model.step.body[v.index()];
        let matrix = matches!(instruction.ty.shape, Shape::Matrix { .. });
        let cheap = matches!(instruction.op, Op::Const(_) | Op::Size(_) | Op::Splat(..) | Op::Load(_));
        // A broadcast of parameters is no matrix in memory, so it is rebuilt rather than loaded.
        let spread = matches!(instruction.op, Op::Rows(..) | Op::Cols(..) | Op::Outer(..));
        let cheap = cheap || (spread && !instruction.ty.batched);
        let source = match self.region {
            // The prologue recomputes everything.
            Region::Prologue => None,
            Region::Step if matches!(instruction.op, Op::Load(Source::Param(_))) => Some(Source::Primal(v)),
            Region::Step if cheap => None,
            Region::Step if !instruction.ty.batched => Some(Source::Primal(v)),
            Region::Step if matrix => self.next.get(&v).map(|s| Source::Next(*s)),
            Region::Step => Some(Source::Primal(v)),
        };
        let (op, ty) = (instruction.op.clone(), instruction.ty);
        let here = match (source, &op) {
            (Some(source), _) => self.b.load(source, ty),
            (None, Op::Load(source)) => self.b.load(*source, ty),
            (None, op) => {
                let operands: BTreeMap<Value, Value> =
                    op.operands().into_iter().map(|o| (o, self.primal(o))).collect();
                self.b.rebuild(op.map_operands(|o| operands[&o]))
            }
        };
        self.seen.insert(v, here);
        here
    }

    /// Passes the cotangent of a value on to its operands, or to the results.
    fn visit(&mut self, v: Value) {
        if !self.active[v.index()] {
            return;
        }
        let Some(bar) = self.total(v) else { return };
        let instruction = self.model.step.body[v.index()].clone();
        self.b.set_span(instruction.span);
        if let Op::Load(source) = instruction.op {
            return self.arrive(source, bar);
        }
        let active: Vec<bool> = instruction.op.operands().iter().map(|o| self.active[o.index()]).collect();
        if active.iter().any(|a| *a) {
            self.propagate(&instruction.op, v, bar);
        }
    }

    fn arrive(&mut self, source: Source, bar: Value) {
        match source {
            Source::State(s) => {
                self.state_bars.insert(s, bar);
            }
            Source::Input(i) => self.b.result(Sink::InputBar(i), bar),
            Source::Param(p) => self.b.result(Sink::ParamBar(p), bar),
            _ => {}
        }
    }

    fn propagate(&mut self, op: &Op, v: Value, bar: Value) {
        let operands = op.operands();
        // The table is asked only for what is needed: an operand without gradient costs nothing.
        let mut builder = std::mem::take(&mut self.b);
        let table = partials(&mut builder, op, v, &mut |b, x| {
            std::mem::swap(&mut self.b, b);
            let here = self.primal(x);
            std::mem::swap(&mut self.b, b);
            here
        });
        self.b = builder;
        match table {
            Some(partials) => {
                for (operand, partial) in operands.iter().zip(partials) {
                    if self.active[operand.index()]
                        && let Some(c) = partial.times(&mut self.b, bar)
                    {
                        self.contribute(*operand, c);
                    }
                }
            }
            None => self.transpose(op, v, bar),
        }
    }

    /// The transposes of the structural operations, each beside its equation.
    fn transpose(&mut self, op: &Op, result: Value, bar: Value) {
        let shape_of = |v: &Value| self.model.step.ty(*v).shape;
        match op {
            // y = Σ-free fill: x̄ = Σ ȳ
            Op::Splat(x, _) => self.send(*x, Op::SumAll(bar)),
            // m[j,i] = v[j]: v̄[j] = Σ_i m̄[j,i]
            Op::Rows(x, _) => self.send(*x, Op::SumPre(bar)),
            // m[j,i] = v[i]: v̄[i] = Σ_j m̄[j,i]
            Op::Cols(x, _) => self.send(*x, Op::SumPost(bar)),
            // s = Σ x: x̄ = s̄
            Op::SumAll(x) => self.send(*x, Op::Splat(bar, shape_of(x))),
            // y[j] = Σ_i m[j,i]: m̄[j,i] = ȳ[j]
            Op::SumPre(x) => {
                let (_, pre) = matrix_axes(shape_of(x));
                self.send(*x, Op::Rows(bar, pre));
            }
            // y[i] = Σ_j m[j,i]: m̄[j,i] = ȳ[i]
            Op::SumPost(x) => {
                let (post, _) = matrix_axes(shape_of(x));
                self.send(*x, Op::Cols(bar, post));
            }
            // y = max x: x̄ = ȳ [x = y] / #{x = y}
            Op::MaxAll(x) => self.transpose_max(*x, result, bar),
            // y[j] = Σ_i m[j,i] v[i]: m̄ = ȳ ⊗ v, v̄[i] = Σ_j m[j,i] ȳ[j]
            Op::Contract(m, v) => {
                if self.active[m.index()] {
                    let v = self.primal(*v);
                    self.send(*m, Op::Outer(bar, v));
                }
                if self.active[v.index()] {
                    let m = self.primal(*m);
                    self.send(*v, Op::ContractT(m, bar));
                }
            }
            // x[i] = Σ_j m[j,i] v[j]: m̄ = v ⊗ x̄, v̄[j] = Σ_i m[j,i] x̄[i]
            Op::ContractT(m, v) => {
                if self.active[m.index()] {
                    let v = self.primal(*v);
                    self.send(*m, Op::Outer(v, bar));
                }
                if self.active[v.index()] {
                    let m = self.primal(*m);
                    self.send(*v, Op::Contract(m, bar));
                }
            }
            // m[j,i] = a[j] b[i]: ā[j] = Σ_i m̄[j,i] b[i], b̄[i] = Σ_j m̄[j,i] a[j]
            Op::Outer(a, b) => {
                if self.active[a.index()] {
                    let b = self.primal(*b);
                    self.send(*a, Op::Contract(bar, b));
                }
                if self.active[b.index()] {
                    let a = self.primal(*a);
                    self.send(*b, Op::ContractT(bar, a));
                }
            }
            Op::Concat(parts, _) => self.transpose_concat(parts, bar),
            // y = x[start..]: x̄ = ȳ padded, and back
            Op::Slice { x, start, .. } => {
                let axis = vector_axis(shape_of(x));
                self.send(*x, Op::Pad { x: bar, start: *start, axis });
            }
            Op::Pad { x, start, .. } => {
                let axis = vector_axis(shape_of(x));
                self.send(*x, Op::Slice { x: bar, start: *start, axis });
            }
            Op::Element(x, index) => {
                let axis = vector_axis(shape_of(x));
                self.send(*x, Op::OneHot { x: bar, index: *index, axis });
            }
            Op::OneHot { x, index, .. } => self.send(*x, Op::Element(bar, *index)),
            Op::Const(_)
            | Op::Size(_)
            | Op::Load(_)
            | Op::Unary(..)
            | Op::Binary(..)
            | Op::Select(..)
            | Op::Clip { .. }
            | Op::StopGrad(_) => {}
        }
    }

    fn send(&mut self, to: Value, op: Op) {
        if self.active[to.index()] {
            let c = self.b.rebuild(op);
            self.contribute(to, c);
        }
    }

    fn transpose_max(&mut self, x: Value, result: Value, bar: Value) {
        let here = self.primal(x);
        let shape = self.b.shape(here);
        let max = self.primal(result);
        let max = self.b.splat(max, shape);
        let hit = self.b.binary(Binary::Equal, here, max);
        let count = self.b.emit(Op::SumAll(hit));
        let share = self.b.div(bar, count);
        let c = self.b.scale(share, hit);
        self.contribute(x, c);
    }

    fn transpose_concat(&mut self, parts: &[Value], bar: Value) {
        let mut at = crate::ir::Linear::default();
        for part in parts {
            let axis = vector_axis(self.model.step.ty(*part).shape);
            let start = self.axes.intern(at.clone());
            self.send(*part, Op::Slice { x: bar, start, axis });
            at = sum(&at, self.axes.linear(axis));
        }
    }

    /// Records the results of the step's adjoint.
    fn step_results(&mut self) {
        for k in 0..self.model.states.len() {
            let s = crate::ir::StateId(k as u32);
            let bar = match self.state_bars.get(&s) {
                Some(bar) => *bar,
                None => self.b.fill(0.0, self.model.states[k].shape),
            };
            self.b.result(Sink::StateBar(s), bar);
        }
        for v in boundary(self.model) {
            let parts = self.bars.get(&v).cloned().unwrap_or_default();
            match self.model.step.ty(v).shape {
                Shape::Matrix { .. } => {
                    for p in parts {
                        self.b.result(Sink::BoundaryBar(v), p);
                    }
                }
                Shape::Scalar | Shape::Vector(_) => {
                    if let Some(bar) = self.total(v) {
                        self.b.result(Sink::BoundaryBar(v), bar);
                    }
                }
            }
        }
    }
}

fn sum(a: &crate::ir::Linear, b: &crate::ir::Linear) -> crate::ir::Linear {
    let mut sum = a.clone();
    sum.constant += b.constant;
    for (axis, c) in &b.terms {
        *sum.terms.entry(*axis).or_insert(0) += c;
    }
    sum.terms.retain(|_, c| *c != 0);
    sum
}

fn matrix_axes(shape: Shape) -> (Axis, Axis) {
    match shape {
        Shape::Matrix { post, pre } => (post, pre),
        _ => unreachable!("the verifier saw a matrix here"),
    }
}

fn vector_axis(shape: Shape) -> Axis {
    match shape {
        Shape::Vector(axis) => axis,
        _ => unreachable!("the verifier saw a vector here"),
    }
}
