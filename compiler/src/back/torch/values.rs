//! One operation of the step as a Python expression, with the axes that its tensor has.
//!
//! The step IR says every broadcast; PyTorch does them by itself, from the right. So a broadcast is not written
//! as a copy: a scalar per row gets axes of length one, `m[:, None, None]`, what is the same in every row of a
//! matrix is `v[:, None, :]`, and only where an operation needs the whole tensor is it expanded. Truth values
//! stay booleans as long as they only choose.

use super::names::{Words, dims};
use super::py::Py;
use crate::ir::{Axis, Binary, Op, Shape, Type, Unary};
use crate::model::Model;
use std::collections::BTreeSet;

/// An axis that a tensor has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Dim {
    /// Rows of the batch.
    Batch,
    /// An axis of the spec.
    Axis(Axis),
    /// Length one: the same along the axis that belongs here.
    One,
}

/// What an expression gives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// A number of Python.
    Number,
    /// A tensor of numbers.
    Tensor,
    /// A tensor of booleans.
    Truth,
}

/// An expression and what it gives.
#[derive(Clone, Debug)]
pub(super) struct Spelled {
    pub(super) py: Py,
    /// The tensor's axes. Those that are missing on the left are as good as axes of length one.
    pub(super) dims: Vec<Dim>,
    pub(super) kind: Kind,
}

/// The axes of a whole value.
pub(super) fn whole(ty: Type) -> Vec<Dim> {
    let batch = ty.batched.then_some(Dim::Batch);
    batch.into_iter().chain(dims(ty.shape).into_iter().map(Dim::Axis)).collect()
}

/// The axes of two tensors together.
fn union(a: &[Dim], b: &[Dim]) -> Vec<Dim> {
    let (long, short) = if a.len() >= b.len() { (a, b) } else { (b, a) };
    let missing = long.len() - short.len();
    let at = |k: usize| if k < missing { Dim::One } else { short[k - missing] };
    long.iter().enumerate().map(|(k, d)| if *d == Dim::One { at(k) } else { *d }).collect()
}

impl Spelled {
    /// A tensor.
    pub(super) fn tensor(py: Py, dims: Vec<Dim>) -> Spelled {
        Spelled { py, dims, kind: Kind::Tensor }
    }

    /// A number of Python.
    pub(super) fn number(py: Py) -> Spelled {
        Spelled { py, dims: vec![], kind: Kind::Number }
    }

    fn is_number(&self) -> bool {
        self.kind == Kind::Number
    }
}

/// Spells operations; keeps account of what they need.
pub(super) struct Speller<'m> {
    pub(super) model: &'m Model,
    pub(super) words: Words,
    /// A tensor whose type and device are those of all others.
    pub(super) like: String,
    /// Helpers that are used.
    pub(super) preamble: BTreeSet<&'static str>,
    /// Whether the size of the batch is used.
    pub(super) needs_batch: bool,
}

impl Speller<'_> {
    fn size(&self, axis: Axis) -> Py {
        self.words.size(&self.model.axes, axis, "self.")
    }

    fn helper(&mut self, name: &'static str, arguments: Vec<Py>) -> Py {
        self.preamble.insert(name);
        Py::call(name, arguments)
    }

    /// Numbers in place of booleans.
    pub(super) fn numbers(&self, x: Spelled) -> Spelled {
        match x.kind {
            Kind::Truth => Spelled::tensor(x.py.of(format!(".to({}.dtype)", self.like)), x.dims),
            Kind::Number | Kind::Tensor => x,
        }
    }

    /// The whole tensor of a value.
    pub(super) fn expanded(&mut self, x: Spelled, ty: Type) -> Py {
        let x = self.numbers(x);
        let wanted = whole(ty);
        if !x.is_number() && x.dims == wanted {
            return x.py;
        }
        self.needs_batch |= ty.batched;
        let batch = ty.batched.then(|| Py::word("batch"));
        let sizes: Vec<Py> =
            batch.into_iter().chain(dims(ty.shape).into_iter().map(|a| self.size(a))).collect();
        if x.is_number() {
            let shape = tuple(&sizes);
            return Py::call(&format!("{}.new_full", self.like), vec![Py::word(shape), x.py]);
        }
        let list = sizes.iter().map(Py::flat).collect::<Vec<_>>().join(", ");
        x.py.of(format!(".expand({list})"))
    }

    /// An operation on operands that have been spelled. `types` are those of the operands.
    pub(super) fn operation(&mut self, op: &Op, operands: Vec<Spelled>, types: &[Type], ty: Type) -> Spelled {
        let mut operands = operands.into_iter();
        let mut next = || operands.next().expect("an operation has its operands");
        match op {
            Op::Const(c) => Spelled::number(Py::number(*c)),
            Op::Size(axis) => Spelled::number(self.size(*axis)),
            Op::Load(_) => unreachable!("loads are spelled by the caller"),
            Op::Unary(f, _) => {
                let x = next();
                self.unary(*f, x)
            }
            Op::Binary(f, ..) => {
                let (a, b) = (next(), next());
                self.binary(*f, a, b)
            }
            Op::Select(..) => {
                let (c, a, b) = (next(), next(), next());
                self.select(c, a, b)
            }
            Op::Clip { .. } => {
                let (x, low, high) = (next(), next(), next());
                let x = self.numbers(x);
                if x.is_number() {
                    let above = Py::call("max", vec![x.py, low.py]);
                    return Spelled::number(Py::call("min", vec![above, high.py]));
                }
                let py = self.helper("clip", vec![x.py, low.py, high.py]);
                Spelled::tensor(py, x.dims)
            }
            Op::Splat(_, shape) => splat(next(), *shape),
            Op::Rows(..) => rows(next()),
            Op::Cols(..) => columns(next()),
            Op::StopGrad(_) => {
                let x = next();
                if x.is_number() { x } else { Spelled { py: x.py.of(".detach()"), ..x } }
            }
            Op::SumAll(_) => self.reduced(next(), types[0], ty, ["sum(-1)", "sum((-2, -1))"]),
            Op::MaxAll(_) => self.reduced(next(), types[0], ty, ["amax(-1)", "amax((-2, -1))"]),
            Op::SumPre(_) => self.reduced(next(), types[0], ty, ["sum(-1)"; 2]),
            Op::SumPost(_) => self.reduced(next(), types[0], ty, ["sum(-2)"; 2]),
            Op::Contract(..) => {
                let (m, v) = (next(), next());
                let (m, v) = (self.expanded(m, types[0]), self.expanded(v, types[1]));
                Spelled::tensor(self.contract(m, v, types), whole(ty))
            }
            Op::ContractT(..) => {
                let (m, v) = (next(), next());
                let (m, v) = (self.expanded(m, types[0]), self.expanded(v, types[1]));
                let py = match types[0].batched && types[1].batched {
                    true => self.helper("contract_post", vec![v, m]),
                    false => Py::infix("@", v, m),
                };
                Spelled::tensor(py, whole(ty))
            }
            Op::Outer(..) => {
                let (a, b) = (rows(next()), columns(next()));
                self.binary(Binary::Mul, a, b)
            }
            Op::Concat(parts, _) => {
                let whole_part = |k: usize| Type { batched: ty.batched, ..types[k] };
                let parts = (0..parts.len()).map(|k| {
                    let x = next();
                    self.expanded(x, whole_part(k))
                });
                let list = Py::List(parts.collect());
                Spelled::tensor(Py::call("torch.cat", vec![list, Py::word("dim=-1")]), whole(ty))
            }
            Op::Slice { start, axis, .. } => {
                let x = self.expanded(next(), types[0]);
                Spelled::tensor(x.of(self.slice(*start, *axis, types[0])), whole(ty))
            }
            Op::Pad { start, axis, .. } => {
                let x = self.expanded(next(), types[0]);
                let (start, all, own) = (self.size(*start), self.size(*axis), self.dims_of(types[0]));
                let behind = Py::infix("-", Py::infix("-", all, start.clone()), own);
                let amount = Py::word(tuple(&[start, behind]));
                Spelled::tensor(Py::call("nn.functional.pad", vec![x, amount]), whole(ty))
            }
            Op::Element(_, k) => {
                let x = self.expanded(next(), types[0]);
                let rows = if ty.batched { ":, " } else { "" };
                Spelled::tensor(x.of(format!("[{rows}{k}]")), whole(ty))
            }
            Op::OneHot { index, axis, .. } => {
                let x = self.expanded(next(), types[0]).of("[..., None]");
                let behind = Py::infix("-", self.size(*axis), Py::word((index + 1).to_string()));
                let amount = Py::word(tuple(&[Py::word(index.to_string()), behind]));
                Spelled::tensor(Py::call("nn.functional.pad", vec![x, amount]), whole(ty))
            }
        }
    }

    fn dims_of(&self, ty: Type) -> Py {
        match dims(ty.shape).first() {
            Some(axis) => self.size(*axis),
            None => Py::word("1"),
        }
    }

    /// `[..., start:end]`
    fn slice(&self, start: Axis, axis: Axis, whole: Type) -> String {
        let axes = &self.model.axes;
        let (from, length) = (axes.linear(start), axes.linear(axis));
        let mut end = from.clone();
        for (k, factor) in &length.terms {
            *end.terms.entry(*k).or_insert(0) += factor;
        }
        end.terms.retain(|_, factor| *factor != 0);
        end.constant += length.constant;
        let is_last = matches!(whole.shape, Shape::Vector(a) if *axes.linear(a) == end);
        let is_first = from.terms.is_empty() && from.constant == 0;
        let first = if is_first { String::new() } else { self.size(start).flat() };
        let last = match (is_last, is_first) {
            (true, _) => String::new(),
            (false, true) => self.size(axis).flat(),
            (false, false) => Py::infix("+", self.size(start), self.size(axis)).flat(),
        };
        format!("[..., {first}:{last}]")
    }

    fn reduced(&mut self, x: Spelled, of: Type, ty: Type, methods: [&str; 2]) -> Spelled {
        let x = self.expanded(x, of);
        let method = methods[usize::from(matches!(of.shape, Shape::Matrix { .. }))];
        match of.shape {
            Shape::Scalar => Spelled::tensor(x, whole(ty)),
            Shape::Vector(_) | Shape::Matrix { .. } => Spelled::tensor(x.of(format!(".{method}")), whole(ty)),
        }
    }

    /// A matrix times a vector, over the sending neurons.
    fn contract(&mut self, m: Py, v: Py, types: &[Type]) -> Py {
        match (types[0].batched, types[1].batched) {
            (false, true) => Py::infix("@", v, m.of(".T")),
            (true, true) => self.helper("contract", vec![m, v]),
            (_, false) => Py::infix("@", m, v),
        }
    }

    fn unary(&mut self, f: Unary, x: Spelled) -> Spelled {
        let x = self.numbers(x);
        if x.is_number() {
            return Spelled::number(unary_of_number(f, x.py));
        }
        let py = match f {
            Unary::Neg => x.py.negative(),
            Unary::Tanh => Py::call("torch.tanh", vec![x.py]),
            Unary::Sigmoid => Py::call("torch.sigmoid", vec![x.py]),
            Unary::Exp => Py::call("torch.exp", vec![x.py]),
            Unary::Log => Py::call("torch.log", vec![x.py]),
            Unary::Sqrt => Py::call("torch.sqrt", vec![x.py]),
            Unary::Softplus => self.helper("softplus", vec![x.py]),
            Unary::Relu => Py::call("torch.relu", vec![x.py]),
            Unary::Abs => Py::call("torch.abs", vec![x.py]),
            Unary::Sign => Py::call("torch.sign", vec![x.py]),
        };
        Spelled::tensor(py, x.dims)
    }

    fn binary(&mut self, f: Binary, a: Spelled, b: Spelled) -> Spelled {
        let (a, b) = (self.numbers(a), self.numbers(b));
        let dims = union(&a.dims, &b.dims);
        let are_numbers = a.is_number() && b.is_number();
        let infix = |sign: &'static str, a: Spelled, b: Spelled| Py::infix(sign, a.py, b.py);
        let py = match f {
            Binary::Add => infix("+", a, b),
            Binary::Sub => infix("-", a, b),
            Binary::Mul => infix("*", a, b),
            Binary::Div => infix("/", a, b),
            Binary::Min | Binary::Max if are_numbers => {
                Py::call(if f == Binary::Min { "min" } else { "max" }, vec![a.py, b.py])
            }
            Binary::Min => self.helper("minimum", vec![a.py, b.py]),
            Binary::Max => self.helper("maximum", vec![a.py, b.py]),
            Binary::Less | Binary::LessEqual | Binary::Equal => {
                let (sign, turned) = match f {
                    Binary::Less => ("<", ">"),
                    Binary::LessEqual => ("<=", ">="),
                    _ => ("==", "=="),
                };
                // What is compared stands first, and what it is compared with second.
                let py = if a.is_number() { infix(turned, b, a) } else { infix(sign, a, b) };
                return match are_numbers {
                    true => Spelled::number(Py::call("float", vec![py])),
                    false => Spelled { py, dims, kind: Kind::Truth },
                };
            }
        };
        if are_numbers { Spelled::number(py) } else { Spelled::tensor(py, dims) }
    }

    fn select(&mut self, c: Spelled, a: Spelled, b: Spelled) -> Spelled {
        let (mut a, b) = (self.numbers(a), self.numbers(b));
        let condition = match c.kind {
            Kind::Truth => c.py,
            Kind::Number | Kind::Tensor => Py::infix("!=", c.py, Py::word("0")),
        };
        if c.kind == Kind::Number {
            let text = format!("({} if {} else {})", a.py.flat(), condition.flat(), b.py.flat());
            let kind = if a.is_number() && b.is_number() { Kind::Number } else { Kind::Tensor };
            return Spelled { py: Py::word(text), dims: union(&a.dims, &b.dims), kind };
        }
        if a.is_number() && b.is_number() {
            a.py = Py::call(&format!("{}.new_tensor", self.like), vec![a.py]);
        }
        let dims = union(&c.dims, &union(&a.dims, &b.dims));
        Spelled::tensor(Py::call("torch.where", vec![condition, a.py, b.py]), dims)
    }
}

/// `(a, b)`, `(a,)`
pub(super) fn tuple(parts: &[Py]) -> String {
    match parts {
        [one] => format!("({},)", one.flat()),
        parts => format!("({})", parts.iter().map(Py::flat).collect::<Vec<_>>().join(", ")),
    }
}

/// A scalar in a shape: axes of length one behind the batch.
fn splat(x: Spelled, shape: Shape) -> Spelled {
    match x.dims.as_slice() {
        [Dim::Batch] => {
            let count = dims(shape).len();
            behind(x, count)
        }
        _ => x,
    }
}

/// A vector over the receiving neurons, in a matrix.
fn rows(x: Spelled) -> Spelled {
    if x.dims.is_empty() {
        return x;
    }
    behind(x, 1)
}

/// A vector over the sending neurons, in a matrix.
fn columns(x: Spelled) -> Spelled {
    match x.dims.as_slice() {
        [Dim::Batch, one] => {
            let dims = vec![Dim::Batch, Dim::One, *one];
            let py = x.py.of("[:, None, :]");
            Spelled { py, dims, kind: x.kind }
        }
        _ => x,
    }
}

/// Axes of length one at the end: `[:, None]`.
fn behind(x: Spelled, count: usize) -> Spelled {
    let added = ", None".repeat(count);
    let index = x.dims.iter().map(|_| ":").collect::<Vec<_>>().join(", ");
    let dims = x.dims.iter().copied().chain(std::iter::repeat_n(Dim::One, count)).collect();
    let py = match x.py {
        // One element of a vector: `b[:, 0, None]`.
        Py::Of(vector, element) if is_element(&element) => {
            vector.of(format!("{}{added}]", element.trim_end_matches(']')))
        }
        py => py.of(format!("[{index}{added}]")),
    };
    Spelled { py, dims, kind: x.kind }
}

/// Whether an index is `[:, k]`.
fn is_element(index: &str) -> bool {
    let number = index.strip_prefix("[:, ").and_then(|rest| rest.strip_suffix(']'));
    number.is_some_and(|n| n.bytes().all(|b| b.is_ascii_digit()))
}

fn unary_of_number(f: Unary, x: Py) -> Py {
    let one = || Py::word("1");
    match f {
        Unary::Neg => x.negative(),
        Unary::Tanh => Py::call("math.tanh", vec![x]),
        Unary::Sigmoid => {
            Py::infix("/", one(), Py::infix("+", one(), Py::call("math.exp", vec![x.negative()])))
        }
        Unary::Exp => Py::call("math.exp", vec![x]),
        Unary::Log => Py::call("math.log", vec![x]),
        Unary::Sqrt => Py::call("math.sqrt", vec![x]),
        Unary::Softplus => Py::call("math.log1p", vec![Py::call("math.exp", vec![x])]),
        Unary::Relu => Py::call("max", vec![x, Py::word("0")]),
        Unary::Abs => Py::call("abs", vec![x]),
        Unary::Sign => Py::infix(
            "-",
            Py::call("float", vec![Py::infix(">", x.clone(), Py::word("0"))]),
            Py::call("float", vec![Py::infix("<", x, Py::word("0"))]),
        ),
    }
}
