//! The step IR: what one time step means, and its adjoint, in the same few operations.
//!
//! # Semantics
//!
//! A [`Function`] is a flat list of instructions in static single assignment form. Instruction `k`
//! may use only values defined before it. There is no control flow; every trip count is an axis
//! size known before anything runs.
//!
//! **Types.** A value has a [`Shape`] — a scalar, a vector over one axis, or a matrix over a post
//! and a pre axis, in this order — and says whether it is *batched*: a batched value exists once
//! per batch row, an unbatched one is the same for all rows and all steps. An operation is batched
//! exactly if one of its operands is. Unbatched instructions form the *prologue*: they depend on
//! parameters alone and are evaluated once per call, not once per step.
//!
//! **Elementwise operations** take operands of equal shape. There is no implicit broadcasting over
//! axes: [`Op::Splat`] fills a shape with a scalar, [`Op::Rows`] makes the matrix `m[j,i] = v[j]`,
//! [`Op::Cols`] the matrix `m[j,i] = v[i]`. The batch broadcasts implicitly.
//!
//! **Reductions** remove axes: [`Op::SumAll`], [`Op::MaxAll`] give a scalar, [`Op::SumPre`] sums a
//! matrix over its pre axis, [`Op::SumPost`] over its post axis. [`Op::Contract`] is
//! `y[j] = Σ_i m[j,i] v[i]`, [`Op::ContractT`] is `x[i] = Σ_j m[j,i] v[j]`, and [`Op::Outer`] is
//! `m[j,i] = a[j] b[i]`. Broadcasts and reductions are each other's transposes, as are contraction
//! and outer product, so differentiation stays inside the set.
//!
//! **Time.** [`Source::State`] loads a state's value before the step. The function lists, for every
//! state, the value after the step; for every output, its value in this step; and the penalty
//! terms.
//!
//! **Truth values** are numbers: comparisons give 1 or 0, and [`Op::Select`] takes its second
//! operand where the first is not zero.

mod build;
mod parse;
mod print;
mod verify;

pub use build::Builder;
pub use parse::parse;
pub use print::{print, shape_text, type_text};
pub use verify::{Outside, check_bounds, verify};

use grammar::span::Span;
use std::collections::BTreeMap;

/// An axis: a named one (`N`), or a linear combination of named ones (`I+N`, `3*N`, `4`).
/// Index into [`Axes`]; equal combinations have equal indices.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Axis(pub u32);

/// A linear combination of named axes plus a constant.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Linear {
    /// Named axis (index into [`Axes::named`]) → coefficient, never zero.
    pub terms: BTreeMap<usize, i64>,
    /// The constant part.
    pub constant: i64,
}

/// A named axis.
#[derive(Clone, Debug, PartialEq)]
pub struct NamedAxis {
    /// Its name.
    pub name: String,
    /// Its size, unless the task or the command line binds it.
    pub size: Option<usize>,
    /// Where it is declared.
    pub span: Span,
}

/// All axes of a model.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Axes {
    /// The declared axes, in text order. An axis declared by an expression (`M = 2*N`) is no
    /// named axis; its name is in [`Axes::aliases`].
    pub named: Vec<NamedAxis>,
    /// Names of axes declared by expressions.
    pub aliases: Vec<(String, Axis)>,
    table: Vec<Linear>,
}

impl Axes {
    /// The axis that is this combination.
    pub fn intern(&mut self, linear: Linear) -> Axis {
        match self.table.iter().position(|l| *l == linear) {
            Some(k) => Axis(k as u32),
            None => {
                self.table.push(linear);
                Axis(self.table.len() as u32 - 1)
            }
        }
    }

    /// The named axis with this index, as an axis.
    pub fn intern_named(&mut self, index: usize) -> Axis {
        self.intern(Linear { terms: BTreeMap::from([(index, 1)]), constant: 0 })
    }

    /// The axis of a constant size.
    pub fn intern_constant(&mut self, size: usize) -> Axis {
        self.intern(Linear { terms: BTreeMap::new(), constant: size as i64 })
    }

    /// The combination that is this axis.
    pub fn linear(&self, axis: Axis) -> &Linear {
        &self.table[axis.0 as usize]
    }

    /// How many axes there are.
    pub fn len(&self) -> usize {
        self.table.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.table.is_empty()
    }

    /// The axis as the user would write it: `N`, `I+N`, `3*N`, `4`.
    pub fn text(&self, axis: Axis) -> String {
        if let Some((name, _)) = self.aliases.iter().find(|(_, a)| *a == axis) {
            return name.clone();
        }
        let linear = self.linear(axis);
        let mut parts: Vec<String> = linear
            .terms
            .iter()
            .map(|(&k, &c)| match c {
                1 => self.named[k].name.clone(),
                c => format!("{c}*{}", self.named[k].name),
            })
            .collect();
        if linear.constant != 0 || parts.is_empty() {
            parts.push(linear.constant.to_string());
        }
        parts.join("+").replace("+-", "-")
    }
}

/// The sizes of all axes of a model, once the open ones are bound.
#[derive(Clone, Debug, PartialEq)]
pub struct Sizes(Vec<usize>);

impl Sizes {
    /// Evaluates every axis. `bound` overrides or completes the declared sizes by name.
    ///
    /// # Errors
    /// Names of axes that have no size, or an axis whose size is not positive.
    pub fn bind(axes: &Axes, bound: &BTreeMap<String, usize>) -> Result<Sizes, SizeError> {
        let mut named = vec![];
        let mut open = vec![];
        for axis in &axes.named {
            match bound.get(&axis.name).copied().or(axis.size) {
                Some(n) => named.push(n as i64),
                None => {
                    open.push(axis.name.clone());
                    named.push(1);
                }
            }
        }
        if let Some(name) = bound.keys().find(|n| !axes.named.iter().any(|a| a.name == **n)) {
            let known = axes.named.iter().map(|a| a.name.clone()).collect();
            return Err(SizeError::Unknown { name: name.clone(), known });
        }
        if !open.is_empty() {
            return Err(SizeError::Unbound(open));
        }
        let mut sizes = vec![];
        for k in 0..axes.len() {
            let linear = axes.linear(Axis(k as u32));
            let size = linear.constant + linear.terms.iter().map(|(&a, &c)| c * named[a]).sum::<i64>();
            // A constant axis may be zero: it is the start of a slice.
            if size < 0 || (size == 0 && !linear.terms.is_empty()) || size > (1 << 30) {
                return Err(SizeError::OutOfRange { axis: axes.text(Axis(k as u32)), size });
            }
            sizes.push(size as usize);
        }
        Ok(Sizes(sizes))
    }

    /// The number of elements along an axis.
    pub fn of(&self, axis: Axis) -> usize {
        self.0[axis.0 as usize]
    }

    /// The number of elements of a shape.
    pub fn count(&self, shape: Shape) -> usize {
        match shape {
            Shape::Scalar => 1,
            Shape::Vector(a) => self.of(a),
            Shape::Matrix { post, pre } => self.of(post) * self.of(pre),
        }
    }

    /// The sizes of a shape's axes, outermost first.
    pub fn dims(&self, shape: Shape) -> Vec<usize> {
        match shape {
            Shape::Scalar => vec![],
            Shape::Vector(a) => vec![self.of(a)],
            Shape::Matrix { post, pre } => vec![self.of(post), self.of(pre)],
        }
    }
}

/// Why axes could not be bound.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SizeError {
    /// Axes declared `?` that nothing binds.
    #[error("axis {} has no size; give it with --axis {}=SIZE", .0.join(", "), .0[0])]
    Unbound(Vec<String>),
    /// A bound name that is no axis.
    #[error("there is no axis `{name}`; the spec declares {}", known.join(", "))]
    Unknown {
        /// The name.
        name: String,
        /// The declared axes.
        known: Vec<String>,
    },
    /// A size that no tensor can have.
    #[error("axis `{axis}` would have size {size}")]
    OutOfRange {
        /// The axis.
        axis: String,
        /// Its size.
        size: i64,
    },
}

/// What axes a value has, apart from the batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Shape {
    /// One number.
    Scalar,
    /// One number per neuron.
    Vector(Axis),
    /// One number per synapse, `[post, pre]`.
    Matrix {
        /// The axis of the receiving neurons.
        post: Axis,
        /// The axis of the sending neurons.
        pre: Axis,
    },
}

/// The type of a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Type {
    /// Its axes.
    pub shape: Shape,
    /// Whether it exists once per batch row and step.
    pub batched: bool,
}

macro_rules! index_type {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(pub u32);
        impl $name {
            /// As an index of the table it belongs to.
            pub fn index(self) -> usize { self.0 as usize }
        }
    };
}
index_type!(
    /// An instruction of a [`Function`], and the value it defines.
    Value
);
index_type!(
    /// A parameter tensor of the model.
    ParamId
);
index_type!(
    /// An input of the model (noise included).
    InputId
);
index_type!(
    /// A state of the model.
    StateId
);
index_type!(
    /// An output of the model.
    OutputId
);

/// Where a loaded value comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Source {
    /// A parameter, in the units of the spec (its constraint already applied).
    Param(ParamId),
    /// An input of this step.
    Input(InputId),
    /// A state before this step.
    State(StateId),
    /// Adjoint only: a state after this step.
    Next(StateId),
    /// Adjoint only: a scalar or vector of the primal step, as it was computed there.
    Primal(Value),
    /// Adjoint only: the cotangent of a state after this step.
    NextBar(StateId),
    /// Adjoint only: the cotangent of an output of this step.
    OutputBar(OutputId),
    /// Adjoint only: the cotangent of the sum of this step's penalty terms, a scalar.
    PenaltyBar,
    /// Prologue adjoint only: the cotangent of an unbatched value, summed over rows and steps.
    BoundaryBar(Value),
    /// Forward mode only: the tangent of what another source loads (only Param, Input, State).
    ParamDot(ParamId),
    /// Forward mode only.
    InputDot(InputId),
    /// Forward mode only.
    StateDot(StateId),
    /// Loops only: the cotangent of the vector that this step appended to a log.
    RowBar(StateId),
}

/// An elementwise function of one operand.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Unary {
    /// `-x`
    Neg,
    /// `tanh x`
    Tanh,
    /// `1 / (1 + exp(-x))`
    Sigmoid,
    /// `exp x`
    Exp,
    /// `ln x`
    Log,
    /// `√x`
    Sqrt,
    /// `ln(1 + exp x)`
    Softplus,
    /// `max(x, 0)`; the gradient at 0 is 0
    Relu,
    /// `|x|`; the gradient at 0 is 0
    Abs,
    /// −1, 0 or 1; no gradient
    Sign,
}

/// An elementwise function of two operands of equal shape.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Binary {
    /// `a + b`
    Add,
    /// `a - b`
    Sub,
    /// `a * b`
    Mul,
    /// `a / b`
    Div,
    /// The smaller one; at a tie the gradient goes to the second
    Min,
    /// The larger one; at a tie the gradient goes to the second
    Max,
    /// 1 where `a < b`, else 0; no gradient
    Less,
    /// 1 where `a <= b`, else 0; no gradient
    LessEqual,
    /// 1 where `a == b`, else 0; no gradient
    Equal,
}

/// An operation. Every variant states its typing rule.
#[derive(Clone, Debug, PartialEq)]
pub enum Op {
    /// A number: an unbatched scalar.
    Const(f64),
    /// The size of an axis: an unbatched scalar.
    Size(Axis),
    /// A load; its type is that of what is loaded.
    Load(Source),
    /// Same shape as the operand.
    Unary(Unary, Value),
    /// Operands and result have one shape.
    Binary(Binary, Value, Value),
    /// `condition ≠ 0 ? a : b`; all of one shape. No gradient into the condition.
    Select(Value, Value, Value),
    /// `min(max(x, low), high)`; `low` and `high` are unbatched scalars without gradient. The
    /// gradient passes where `low < result < high`, and is zero elsewhere, ties included.
    Clip {
        /// The clipped value, any shape.
        x: Value,
        /// Lower bound.
        low: Value,
        /// Upper bound.
        high: Value,
    },
    /// Scalar → a shape.
    Splat(Value, Shape),
    /// Vector over `post` → matrix `[post, pre]`, the same in every column.
    Rows(Value, Axis),
    /// Vector over `pre` → matrix `[post, pre]`, the same in every row. The axis is `post`.
    Cols(Value, Axis),
    /// Vector or matrix → scalar.
    SumAll(Value),
    /// Vector or matrix → scalar; the gradient is shared equally by all elements that are maximal.
    MaxAll(Value),
    /// Matrix → vector over `post`.
    SumPre(Value),
    /// Matrix → vector over `pre`.
    SumPost(Value),
    /// Matrix, vector over `pre` → vector over `post`.
    Contract(Value, Value),
    /// Matrix, vector over `post` → vector over `pre`.
    ContractT(Value, Value),
    /// Vector over `post`, vector over `pre` → matrix.
    Outer(Value, Value),
    /// Vectors → the vector over the sum of their axes.
    Concat(Vec<Value>, Axis),
    /// Elements `start .. start + axis` of a vector → vector over `axis`. `start` is an axis whose
    /// size is the offset (the axis of size zero for the beginning).
    Slice {
        /// The vector.
        x: Value,
        /// Its size is the first element's index.
        start: Axis,
        /// The axis of the result.
        axis: Axis,
    },
    /// A vector inside a vector of zeros over `axis`, at offset `start`: the transpose of a slice.
    Pad {
        /// The vector.
        x: Value,
        /// Its size is the first element's index.
        start: Axis,
        /// The axis of the result.
        axis: Axis,
    },
    /// One element of a vector → scalar.
    Element(Value, usize),
    /// A scalar → the vector over `axis` that is zero but for element `index`: the transpose of
    /// an element.
    OneHot {
        /// The scalar.
        x: Value,
        /// The place.
        index: usize,
        /// The axis of the result.
        axis: Axis,
    },
    /// The identity, without gradient.
    StopGrad(Value),
}

impl Op {
    /// The operands, in order.
    pub fn operands(&self) -> Vec<Value> {
        match self {
            Op::Const(_) | Op::Size(_) | Op::Load(_) => vec![],
            Op::Unary(_, a)
            | Op::Splat(a, _)
            | Op::Rows(a, _)
            | Op::Cols(a, _)
            | Op::SumAll(a)
            | Op::MaxAll(a)
            | Op::SumPre(a)
            | Op::SumPost(a)
            | Op::Slice { x: a, .. }
            | Op::Pad { x: a, .. }
            | Op::Element(a, _)
            | Op::OneHot { x: a, .. }
            | Op::StopGrad(a) => vec![*a],
            Op::Binary(_, a, b) | Op::Contract(a, b) | Op::ContractT(a, b) | Op::Outer(a, b) => {
                vec![*a, *b]
            }
            Op::Select(a, b, c) | Op::Clip { x: a, low: b, high: c } => vec![*a, *b, *c],
            Op::Concat(parts, _) => parts.clone(),
        }
    }

    /// The same operation on other operands.
    #[must_use]
    pub fn map_operands(&self, mut f: impl FnMut(Value) -> Value) -> Op {
        match self {
            Op::Const(_) | Op::Size(_) | Op::Load(_) => self.clone(),
            Op::Unary(u, a) => Op::Unary(*u, f(*a)),
            Op::Binary(o, a, b) => Op::Binary(*o, f(*a), f(*b)),
            Op::Select(a, b, c) => Op::Select(f(*a), f(*b), f(*c)),
            Op::Clip { x, low, high } => Op::Clip { x: f(*x), low: f(*low), high: f(*high) },
            Op::Splat(a, s) => Op::Splat(f(*a), *s),
            Op::Rows(a, x) => Op::Rows(f(*a), *x),
            Op::Cols(a, x) => Op::Cols(f(*a), *x),
            Op::SumAll(a) => Op::SumAll(f(*a)),
            Op::MaxAll(a) => Op::MaxAll(f(*a)),
            Op::SumPre(a) => Op::SumPre(f(*a)),
            Op::SumPost(a) => Op::SumPost(f(*a)),
            Op::Contract(a, b) => Op::Contract(f(*a), f(*b)),
            Op::ContractT(a, b) => Op::ContractT(f(*a), f(*b)),
            Op::Outer(a, b) => Op::Outer(f(*a), f(*b)),
            Op::Concat(parts, axis) => Op::Concat(parts.iter().map(|p| f(*p)).collect(), *axis),
            Op::Slice { x, start, axis } => Op::Slice { x: f(*x), start: *start, axis: *axis },
            Op::Pad { x, start, axis } => Op::Pad { x: f(*x), start: *start, axis: *axis },
            Op::Element(a, k) => Op::Element(f(*a), *k),
            Op::OneHot { x, index, axis } => Op::OneHot { x: f(*x), index: *index, axis: *axis },
            Op::StopGrad(a) => Op::StopGrad(f(*a)),
        }
    }
}

/// An instruction.
#[derive(Clone, Debug, PartialEq)]
pub struct Instruction {
    /// What it does.
    pub op: Op,
    /// What it gives.
    pub ty: Type,
    /// The spec text it came from.
    pub span: Span,
    /// The name of the transient, state or output it defines in the spec, for printers and
    /// messages.
    pub name: Option<String>,
}

/// A list of instructions; see the module's documentation.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Function {
    /// The instructions.
    pub body: Vec<Instruction>,
    /// What is computed, by role.
    pub results: Vec<(Sink, Value)>,
}

/// What a result of a function is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Sink {
    /// The state after the step.
    State(StateId),
    /// An output of the step.
    Output(OutputId),
    /// A penalty term (several may appear; they add up).
    Penalty,
    /// Adjoint: the cotangent of a state before the step.
    StateBar(StateId),
    /// Adjoint: the cotangent of an input.
    InputBar(InputId),
    /// Adjoint: one row's and one step's contribution to the cotangent of an unbatched value of
    /// the primal function; the sum over rows and steps is what counts.
    BoundaryBar(Value),
    /// Prologue adjoint: the cotangent of a parameter.
    ParamBar(ParamId),
    /// Forward mode: the tangent of a state after the step.
    StateDot(StateId),
    /// Forward mode: the tangent of an output.
    OutputDot(OutputId),
    /// Forward mode: the tangent of the sum of the penalty terms.
    PenaltyDot,
    /// Loops only: the vector that this step appends to a log.
    Row(StateId),
}

impl Function {
    /// The instruction that defines a value.
    pub fn at(&self, v: Value) -> &Instruction {
        &self.body[v.index()]
    }

    /// The type of a value.
    pub fn ty(&self, v: Value) -> Type {
        self.at(v).ty
    }

    /// The first result with this role.
    pub fn result(&self, sink: Sink) -> Option<Value> {
        self.results.iter().find(|(s, _)| *s == sink).map(|(_, v)| *v)
    }

    /// All values, in order.
    pub fn values(&self) -> impl Iterator<Item = (Value, &Instruction)> {
        self.body.iter().enumerate().map(|(k, i)| (Value(k as u32), i))
    }
}
