//! Forward mode: the tangent of a step, from the same table.
//!
//! The result computes the primal step beside its tangents. It serves the dot-product test
//! ⟨Jv, w⟩ = ⟨v, Jᵀw⟩, which needs no step size.

use super::rules::partials;
use crate::ir::{Axis, Binary, Builder, Function, Op, Shape, Sink, Source, Value};
use crate::model::Model;

/// One step with its tangents. Results: those of the step, and `StateDot`, `OutputDot`,
/// `PenaltyDot`.
pub fn forward(model: &Model) -> Function {
    let primal = &model.step;
    let mut b = Builder::new();
    let mut here: Vec<Value> = vec![];
    let mut dots: Vec<Option<Value>> = vec![];
    for (v, instruction) in primal.values() {
        b.set_span(instruction.span);
        let value = match &instruction.op {
            Op::Load(source) => b.load(*source, instruction.ty),
            op => {
                let op = op.map_operands(|o| here[o.index()]);
                b.rebuild(op)
            }
        };
        here.push(value);
        let dot = tangent(model, &mut b, v, &here, &dots);
        dots.push(dot);
    }
    for (sink, v) in &primal.results {
        b.result(*sink, here[v.index()]);
        let dot = match dots[v.index()] {
            Some(dot) => dot,
            None => b.fill(0.0, primal.ty(*v).shape),
        };
        match sink {
            Sink::State(s) => b.result(Sink::StateDot(*s), dot),
            Sink::Output(o) => b.result(Sink::OutputDot(*o), dot),
            Sink::Penalty => b.result(Sink::PenaltyDot, dot),
            _ => {}
        }
    }
    b.finish()
}

/// The tangent of a value; `None` if it is zero.
fn tangent(
    model: &Model,
    b: &mut Builder,
    v: Value,
    here: &[Value],
    dots: &[Option<Value>],
) -> Option<Value> {
    let instruction = model.step.at(v);
    if let Op::Load(source) = instruction.op {
        return load_tangent(model, b, source, instruction.ty);
    }
    let operands = instruction.op.operands();
    if operands.iter().all(|o| dots[o.index()].is_none()) {
        return None;
    }
    match partials(b, &instruction.op, v, &mut |_, x| here[x.index()]) {
        Some(partials) => {
            let terms = operands.iter().zip(partials).filter_map(|(o, p)| p.times(b, dots[o.index()]?));
            let terms: Vec<Value> = terms.collect();
            terms.into_iter().reduce(|x, y| b.add(x, y))
        }
        None => structural(b, &instruction.op, here, dots),
    }
}

fn load_tangent(model: &Model, b: &mut Builder, source: Source, ty: crate::ir::Type) -> Option<Value> {
    Some(match source {
        Source::Param(p) if model.params[p.index()].learned => b.load(Source::ParamDot(p), ty),
        Source::Input(i) if model.inputs[i.index()].role.is_differentiable() => {
            b.load(Source::InputDot(i), ty)
        }
        Source::State(s) => b.load(Source::StateDot(s), ty),
        _ => return None,
    })
}

/// The tangents of the structural operations: linear ones map tangents as they map values,
/// bilinear ones obey the product rule.
fn structural(b: &mut Builder, op: &Op, here: &[Value], dots: &[Option<Value>]) -> Option<Value> {
    match op {
        Op::Contract(x, y) | Op::ContractT(x, y) | Op::Outer(x, y) => {
            let like = |b: &mut Builder, x: Value, y: Value| match op {
                Op::Contract(..) => b.emit(Op::Contract(x, y)),
                Op::ContractT(..) => b.emit(Op::ContractT(x, y)),
                _ => b.emit(Op::Outer(x, y)),
            };
            let first = dots[x.index()].map(|dx| like(b, dx, here[y.index()]));
            let second = dots[y.index()].map(|dy| like(b, here[x.index()], dy));
            match (first, second) {
                (Some(p), Some(q)) => Some(b.add(p, q)),
                (p, q) => p.or(q),
            }
        }
        // ẏ = Σ ẋ [x = y] / #{x = y}
        Op::MaxAll(x) => {
            let dot = dots[x.index()]?;
            let x = here[x.index()];
            let shape = b.shape(x);
            let max = b.emit(Op::MaxAll(x));
            let max = b.splat(max, shape);
            let hit = b.binary(Binary::Equal, x, max);
            let count = b.emit(Op::SumAll(hit));
            let picked = b.mul(hit, dot);
            let sum = b.emit(Op::SumAll(picked));
            Some(b.div(sum, count))
        }
        Op::Concat(parts, axis) => {
            let mut tangents = vec![];
            for p in parts {
                tangents.push(match dots[p.index()] {
                    Some(dot) => dot,
                    None => {
                        let shape = Shape::Vector(vector_axis(b.shape(here[p.index()])));
                        b.fill(0.0, shape)
                    }
                });
            }
            Some(b.emit(Op::Concat(tangents, *axis)))
        }
        op => {
            let operand = *op.operands().first()?;
            let dot = dots[operand.index()]?;
            let op = op.map_operands(|_| dot);
            Some(b.rebuild(op))
        }
    }
}

fn vector_axis(shape: Shape) -> Axis {
    match shape {
        Shape::Vector(axis) => axis,
        _ => unreachable!("the verifier saw a vector here"),
    }
}
