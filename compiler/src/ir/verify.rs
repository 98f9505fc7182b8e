//! The law of the step IR.
//!
//! * An operand is defined before it is used.
//! * Every instruction has the type that its operation gives (see [`super::Op`]).
//! * An instruction is batched exactly if an operand is; a load is batched unless it loads a
//!   parameter or the cotangent or tangent of an unbatched value.
//! * Results name values of the function.

use super::{Function, Op, Shape, Sizes, Source, Value};

/// Checks a function against the law.
///
/// # Errors
/// The first breach, with the printed instruction.
pub fn verify(f: &Function) -> Result<(), String> {
    for (v, instruction) in f.values() {
        let fail = |why: &str| Err(format!("%{}: {why}: {:?}", v.0, instruction.op));
        if instruction.op.operands().iter().any(|o| o.0 >= v.0) {
            return fail("an operand is not defined before");
        }
        if let Op::Load(source) = &instruction.op {
            if !matches!(source, Source::Primal(_)) && instruction.ty.batched != is_batched(source) {
                return fail("a load has the wrong batch");
            }
            continue;
        }
        if let Err(why) = check_shape(f, v) {
            return fail(&why);
        }
        let batched = instruction.op.operands().iter().any(|o| f.ty(*o).batched);
        if instruction.ty.batched != batched {
            return fail("the batch does not follow from the operands");
        }
    }
    match f.results.iter().find(|(_, v)| v.index() >= f.body.len()) {
        Some((sink, v)) => Err(format!("result {sink:?} names %{}, which does not exist", v.0)),
        None => Ok(()),
    }
}

/// A part of a vector that lies outside of it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{what} needs a vector of {needed} elements or more, but at these sizes it has {len}; make its axis larger"
)]
pub struct Outside {
    /// The part, in words.
    pub what: String,
    /// Elements that the vector must have.
    pub needed: usize,
    /// Elements that it has.
    pub len: usize,
}

/// Parts of vectors must lie inside of them; whether they do is known only when axes have sizes.
///
/// # Errors
/// The first part that does not.
pub fn check_bounds(f: &Function, sizes: &Sizes) -> Result<(), Outside> {
    for (_, instruction) in f.values() {
        let (x, what, needed) = match &instruction.op {
            Op::Slice { x, start, axis } => {
                let (start, length) = (sizes.of(*start), sizes.of(*axis));
                (x, format!("a slice of {length} elements from element {start} on"), start + length)
            }
            Op::Element(x, k) => (x, format!("element {k}"), k + 1),
            _ => continue,
        };
        let len = sizes.count(f.ty(*x).shape);
        if needed > len {
            return Err(Outside { what, needed, len });
        }
    }
    Ok(())
}

fn is_batched(source: &Source) -> bool {
    !matches!(source, Source::Param(_) | Source::ParamDot(_) | Source::BoundaryBar(_))
}

fn check_shape(f: &Function, v: Value) -> Result<(), String> {
    let instruction = f.at(v);
    let shape = infer(f, &instruction.op)?;
    if shape == instruction.ty.shape { Ok(()) } else { Err(format!("its shape is {shape:?}")) }
}

/// The shape that an operation gives.
///
/// # Panics
/// If the operands do not fit, which is a mistake of the pass that built the operation.
pub(super) fn shape_of(f: &Function, op: &Op) -> Shape {
    match infer(f, op) {
        Ok(shape) => shape,
        Err(why) => panic!("{why}: {op:?}"),
    }
}

fn infer(f: &Function, op: &Op) -> Result<Shape, String> {
    let shape = |v: &Value| f.ty(*v).shape;
    let same = |a: &Value, b: &Value| {
        if shape(a) == shape(b) { Ok(shape(a)) } else { Err("operands differ in shape".to_owned()) }
    };
    let scalar = |v: &Value| match shape(v) {
        Shape::Scalar => Ok(Shape::Scalar),
        _ => Err("an operand is no scalar".to_owned()),
    };
    let vector = |v: &Value| match shape(v) {
        Shape::Vector(axis) => Ok(axis),
        _ => Err("an operand is no vector".to_owned()),
    };
    let matrix = |v: &Value| match shape(v) {
        Shape::Matrix { post, pre } => Ok((post, pre)),
        _ => Err("an operand is no matrix".to_owned()),
    };
    Ok(match op {
        Op::Const(_) | Op::Size(_) => Shape::Scalar,
        Op::Load(_) => return Err("a load carries its own type".to_owned()),
        Op::Unary(_, a) | Op::StopGrad(a) => shape(a),
        Op::Binary(_, a, b) => same(a, b)?,
        Op::Select(c, a, b) => {
            same(c, a)?;
            same(a, b)?
        }
        Op::Clip { x, low, high } => {
            scalar(low)?;
            scalar(high)?;
            shape(x)
        }
        Op::Splat(a, target) => {
            scalar(a)?;
            *target
        }
        Op::Rows(a, pre) => Shape::Matrix { post: vector(a)?, pre: *pre },
        Op::Cols(a, post) => Shape::Matrix { post: *post, pre: vector(a)? },
        Op::SumAll(_) | Op::MaxAll(_) => Shape::Scalar,
        Op::SumPre(a) => Shape::Vector(matrix(a)?.0),
        Op::SumPost(a) => Shape::Vector(matrix(a)?.1),
        Op::Contract(m, v) => {
            let (post, pre) = matrix(m)?;
            if vector(v)? != pre {
                return Err("the vector is not over the pre axis".to_owned());
            }
            Shape::Vector(post)
        }
        Op::ContractT(m, v) => {
            let (post, pre) = matrix(m)?;
            if vector(v)? != post {
                return Err("the vector is not over the post axis".to_owned());
            }
            Shape::Vector(pre)
        }
        Op::Outer(a, b) => Shape::Matrix { post: vector(a)?, pre: vector(b)? },
        Op::Concat(parts, axis) => {
            for part in parts {
                vector(part)?;
            }
            Shape::Vector(*axis)
        }
        Op::Slice { x, axis, .. } | Op::Pad { x, axis, .. } => {
            vector(x)?;
            Shape::Vector(*axis)
        }
        Op::Element(a, _) => {
            vector(a)?;
            Shape::Scalar
        }
        Op::OneHot { x, axis, .. } => {
            scalar(x)?;
            Shape::Vector(*axis)
        }
    })
}
