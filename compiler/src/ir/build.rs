//! Builds functions: infers types, folds constants, and shares equal instructions.
//!
//! The builder is used by the checker, by differentiation and by every pass that rewrites a
//! function, so that all of them simplify alike. It relies on its callers for shapes that fit and
//! panics otherwise: by then a mistake is ours.

use super::{Axis, Binary, Function, Instruction, Op, Shape, Sink, Source, Type, Unary, Value};
use grammar::span::Span;
use std::collections::HashMap;

/// A function under construction.
#[derive(Clone, Debug, Default)]
pub struct Builder {
    function: Function,
    known: HashMap<String, Value>,
    span: Span,
}

impl Builder {
    /// An empty function.
    pub fn new() -> Self {
        Self::default()
    }

    /// The spec text that the following instructions come from.
    pub fn set_span(&mut self, span: Span) {
        self.span = span;
    }

    /// The current spec text.
    pub fn span(&self) -> Span {
        self.span
    }

    /// What has been built so far.
    pub fn function(&self) -> &Function {
        &self.function
    }

    /// The finished function.
    pub fn finish(self) -> Function {
        self.function
    }

    /// The type of a value.
    pub fn ty(&self, v: Value) -> Type {
        self.function.ty(v)
    }

    /// The shape of a value.
    pub fn shape(&self, v: Value) -> Shape {
        self.ty(v).shape
    }

    /// Records a result.
    pub fn result(&mut self, sink: Sink, v: Value) {
        self.function.results.push((sink, v));
    }

    /// Names a value after the spec's name for it.
    pub fn name(&mut self, v: Value, name: &str) {
        let slot = &mut self.function.body[v.index()].name;
        if slot.is_none() {
            *slot = Some(name.to_owned());
        }
    }

    /// The constant that a value is, if it is one (looking through splats).
    pub fn constant_of(&self, v: Value) -> Option<f64> {
        match &self.function.at(v).op {
            Op::Const(c) => Some(*c),
            Op::Splat(s, _) => self.constant_of(*s),
            _ => None,
        }
    }

    /// Adds a load.
    pub fn load(&mut self, source: Source, ty: Type) -> Value {
        self.push(Op::Load(source), ty)
    }

    /// A number.
    pub fn constant(&mut self, c: f64) -> Value {
        self.push(Op::Const(c), Type { shape: Shape::Scalar, batched: false })
    }

    /// A number in every element of a shape.
    pub fn fill(&mut self, c: f64, shape: Shape) -> Value {
        let c = self.constant(c);
        self.splat(c, shape)
    }

    /// The size of an axis, as a number.
    pub fn size(&mut self, axis: Axis) -> Value {
        self.push(Op::Size(axis), Type { shape: Shape::Scalar, batched: false })
    }

    /// A scalar in every element of a shape.
    pub fn splat(&mut self, v: Value, shape: Shape) -> Value {
        match shape {
            Shape::Scalar => v,
            _ => self.emit(Op::Splat(v, shape)),
        }
    }

    /// An elementwise function of one value.
    pub fn unary(&mut self, f: Unary, v: Value) -> Value {
        if let Some(c) = self.constant_of(v) {
            let shape = self.shape(v);
            return self.fill(f.eval(c), shape);
        }
        if f == Unary::Neg
            && let Op::Unary(Unary::Neg, inner) = self.function.at(v).op
        {
            return inner;
        }
        if let Some((s, shape)) = self.splatted(v) {
            let s = self.unary(f, s);
            return self.splat(s, shape);
        }
        self.emit(Op::Unary(f, v))
    }

    /// The scalar under a splat.
    fn splatted(&self, v: Value) -> Option<(Value, Shape)> {
        match self.function.at(v).op {
            Op::Splat(s, shape) => Some((s, shape)),
            _ => None,
        }
    }

    /// An elementwise function of two values of one shape.
    pub fn binary(&mut self, f: Binary, a: Value, b: Value) -> Value {
        let shape = self.shape(a);
        assert_eq!(shape, self.shape(b), "operands of {f:?} have one shape");
        let (ca, cb) = (self.constant_of(a), self.constant_of(b));
        if let (Some(x), Some(y)) = (ca, cb) {
            return self.fill(f.eval(x, y), shape);
        }
        // x+0, 0+x, x-0, x*1, 1*x, x/1 = x;  x*0, 0*x, 0/x = 0;  0-x, x*-1 = -x.
        match (f, ca, cb) {
            (Binary::Add | Binary::Sub, _, Some(0.0)) => return a,
            (Binary::Add, Some(0.0), _) => return b,
            (Binary::Sub, Some(0.0), _) => return self.unary(Unary::Neg, b),
            (Binary::Mul | Binary::Div, _, Some(1.0)) => return a,
            (Binary::Mul, Some(1.0), _) => return b,
            (Binary::Mul, _, Some(0.0)) => return b,
            (Binary::Mul | Binary::Div, Some(0.0), _) => return a,
            (Binary::Mul, _, Some(-1.0)) => return self.unary(Unary::Neg, a),
            (Binary::Mul, Some(-1.0), _) => return self.unary(Unary::Neg, b),
            _ => {}
        }
        if let (Some((x, _)), Some((y, _))) = (self.splatted(a), self.splatted(b)) {
            let s = self.binary(f, x, y);
            return self.splat(s, shape);
        }
        // a + (-b) = a - b, and its kin; exact in floating point.
        match (f, &self.function.at(a).op, &self.function.at(b).op) {
            (Binary::Add, _, &Op::Unary(Unary::Neg, y)) => return self.binary(Binary::Sub, a, y),
            (Binary::Add, &Op::Unary(Unary::Neg, x), _) => return self.binary(Binary::Sub, b, x),
            (Binary::Sub, _, &Op::Unary(Unary::Neg, y)) => return self.binary(Binary::Add, a, y),
            _ => {}
        }
        self.emit(Op::Binary(f, a, b))
    }

    /// `a + b`
    pub fn add(&mut self, a: Value, b: Value) -> Value {
        self.binary(Binary::Add, a, b)
    }

    /// `a - b`
    pub fn sub(&mut self, a: Value, b: Value) -> Value {
        self.binary(Binary::Sub, a, b)
    }

    /// `a * b`
    pub fn mul(&mut self, a: Value, b: Value) -> Value {
        self.binary(Binary::Mul, a, b)
    }

    /// `a / b`
    pub fn div(&mut self, a: Value, b: Value) -> Value {
        self.binary(Binary::Div, a, b)
    }

    /// `s * v` for a scalar `s`.
    pub fn scale(&mut self, s: Value, v: Value) -> Value {
        let shape = self.shape(v);
        let s = self.splat(s, shape);
        self.mul(s, v)
    }

    /// `condition ≠ 0 ? a : b`
    pub fn select(&mut self, condition: Value, a: Value, b: Value) -> Value {
        match self.constant_of(condition) {
            Some(0.0) => b,
            Some(_) => a,
            None => self.emit(Op::Select(condition, a, b)),
        }
    }

    /// Adds an operation, its type inferred from its operands; shares an equal one.
    pub fn emit(&mut self, op: Op) -> Value {
        if let Some(v) = self.linear_of_zero(&op) {
            return v;
        }
        let ty = self.infer(&op);
        self.push(op, ty)
    }

    /// Adds an operation through the folding constructor of its kind.
    pub fn rebuild(&mut self, op: Op) -> Value {
        match op {
            Op::Const(c) => self.constant(c),
            Op::Size(a) => self.size(a),
            Op::Unary(f, x) => self.unary(f, x),
            Op::Binary(f, x, y) => self.binary(f, x, y),
            Op::Select(c, x, y) => self.select(c, x, y),
            Op::Splat(x, shape) => self.splat(x, shape),
            op => self.emit(op),
        }
    }

    /// A linear operation on a constant zero is zero.
    fn linear_of_zero(&mut self, op: &Op) -> Option<Value> {
        let zero = |b: &Self, v: &Value| b.constant_of(*v) == Some(0.0);
        let is_zero = match op {
            Op::Rows(a, _) | Op::Cols(a, _) | Op::SumAll(a) | Op::SumPre(a) | Op::SumPost(a) => zero(self, a),
            Op::Slice { x, .. } | Op::Pad { x, .. } | Op::Element(x, _) | Op::OneHot { x, .. } => {
                zero(self, x)
            }
            Op::Contract(a, b) | Op::ContractT(a, b) | Op::Outer(a, b) => zero(self, a) || zero(self, b),
            Op::StopGrad(a) => zero(self, a),
            _ => false,
        };
        is_zero.then(|| {
            let shape = self.infer(op).shape;
            self.fill(0.0, shape)
        })
    }

    /// The type of an operation.
    fn infer(&self, op: &Op) -> Type {
        let batched = op.operands().iter().any(|v| self.ty(*v).batched);
        Type { shape: super::verify::shape_of(&self.function, op), batched }
    }

    fn push(&mut self, op: Op, ty: Type) -> Value {
        let key = format!("{op:?}");
        if let Some(v) = self.known.get(&key) {
            return *v;
        }
        let v = Value(self.function.body.len() as u32);
        self.function.body.push(Instruction { op, ty, span: self.span, name: None });
        self.known.insert(key, v);
        v
    }
}

impl Unary {
    /// Its value in double precision.
    pub fn eval(self, x: f64) -> f64 {
        match self {
            Unary::Neg => -x,
            Unary::Tanh => x.tanh(),
            Unary::Sigmoid => 1.0 / (1.0 + (-x).exp()),
            Unary::Exp => x.exp(),
            Unary::Log => x.ln(),
            Unary::Sqrt => x.sqrt(),
            Unary::Softplus => x.max(0.0) + (-x.abs()).exp().ln_1p(),
            Unary::Relu => {
                if x < 0.0 {
                    0.0
                } else {
                    x
                }
            }
            Unary::Abs => x.abs(),
            Unary::Sign => {
                if x > 0.0 {
                    1.0
                } else if x < 0.0 {
                    -1.0
                } else {
                    0.0
                }
            }
        }
    }
}

impl Binary {
    /// Its value in double precision.
    pub fn eval(self, a: f64, b: f64) -> f64 {
        match self {
            Binary::Add => a + b,
            Binary::Sub => a - b,
            Binary::Mul => a * b,
            Binary::Div => a / b,
            Binary::Min => {
                if a < b {
                    a
                } else {
                    b
                }
            }
            Binary::Max => {
                if a > b {
                    a
                } else {
                    b
                }
            }
            Binary::Less => f64::from(a < b),
            Binary::LessEqual => f64::from(a <= b),
            Binary::Equal => f64::from(a == b),
        }
    }
}
