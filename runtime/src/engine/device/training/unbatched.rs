//! What a spec computes with parameters alone, as instructions for a device.
//!
//! The prologue of a step and its adjoint run once per update. On the processor the interpreter evaluates them, in
//! double precision; here every value that is needed becomes an instruction of the kernel `evaluate`
//! (`descent.cu`), with a place in one stretch of memory for its result. The order of every sum is the
//! interpreter's. `exp`, `ln`, `tanh` and their like are those of the device, which may differ from a processor's in
//! the last place; results are rounded to single precision after that.
//!
//! Addresses are known only when memory has been taken, and how much is needed only when all instructions are
//! there: so instructions are written twice, the first time with places that mean nothing.

use super::Address;
use crate::engine::Engine;
use compiler::ir::{Binary, Function, Op, ParamId, Shape, Sink, Source, Unary, Value};
use compiler::loops::padded;
use std::ffi::c_int;

/// An instruction of the kernel `evaluate`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Instruction {
    to: Address,
    a: Address,
    b: Address,
    c: Address,
    narrow: Address,
    constant: f64,
    count: i64,
    op: c_int,
    post: c_int,
    pre: c_int,
    stride: c_int,
    index: c_int,
    is_first: c_int,
}

impl Instruction {
    /// Elements of the result: threads that it needs.
    pub(super) fn count(&self) -> usize {
        self.count as usize
    }
}

/// The operations, as `descent.cu` numbers them.
#[repr(i32)]
#[derive(Clone, Copy, Debug)]
enum Code {
    Constant,
    Widen,
    Gather,
    Add,
    Zero,
    Copy,
    Unary,
    Binary = 16,
    Select = 25,
    Clip,
    Splat,
    Rows,
    Cols,
    SumAll,
    MaxAll,
    SumPre,
    SumPost,
    Contract,
    ContractT,
    Outer,
    Element,
    OneHot,
}

/// The place of a function among the unary ones.
fn unary(f: Unary) -> c_int {
    let place = match f {
        Unary::Neg => 0,
        Unary::Tanh => 1,
        Unary::Sigmoid => 2,
        Unary::Exp => 3,
        Unary::Log => 4,
        Unary::Sqrt => 5,
        Unary::Softplus => 6,
        Unary::Relu => 7,
        Unary::Abs => 8,
        Unary::Sign => 9,
    };
    Code::Unary as c_int + place
}

/// The place of a function among the binary ones.
fn binary(f: Binary) -> c_int {
    let place = match f {
        Binary::Add => 0,
        Binary::Sub => 1,
        Binary::Mul => 2,
        Binary::Div => 3,
        Binary::Min => 4,
        Binary::Max => 5,
        Binary::Less => 6,
        Binary::LessEqual => 7,
        Binary::Equal => 8,
    };
    Code::Binary as c_int + place
}

/// Where on the device things lie that the instructions are about.
#[derive(Clone, Debug, Default)]
pub(super) struct Places {
    /// Memory for results.
    pub(super) memory: Address,
    /// Values of parameters, one tensor after the other, in single precision.
    pub(super) values: Address,
    /// The sums of gradients, as the network's kernels lay them out.
    pub(super) sums: Address,
    /// Those of products, by their number.
    pub(super) products: Vec<Address>,
    /// The cotangents of learned initial states, summed over rows: by state, its parameter and where they lie.
    pub(super) starts: Vec<(usize, Address)>,
}

/// A value that the network's kernels read.
pub(super) enum Read {
    /// A parameter as it is.
    Param(usize),
    /// What was computed, at this place.
    Computed(Address),
}

/// All instructions of an update, and where their results are.
pub(super) struct Unbatched {
    /// From sums of gradients to the cotangents of parameters.
    pub(super) backward: Vec<Instruction>,
    /// The cotangents, by parameter.
    pub(super) bars: Vec<Address>,
    /// From the values of parameters to what the kernels read.
    pub(super) forward: Vec<Instruction>,
    /// What they read, by [`compiler::loops::Program::params`].
    pub(super) reads: Vec<Read>,
    /// Bytes of memory for results.
    pub(super) bytes: usize,
}

impl Unbatched {
    /// The instructions of a model.
    pub(super) fn new(engine: &Engine, places: &Places, firsts: &[usize]) -> Unbatched {
        let mut writer = Writer { engine, places, firsts, code: vec![], bytes: 0 };
        let bars = writer.backward();
        let backward = std::mem::take(&mut writer.code);
        let reads = writer.forward();
        Unbatched { backward, bars, forward: writer.code, reads, bytes: writer.bytes }
    }
}

/// Writes instructions and deals out memory.
struct Writer<'w> {
    engine: &'w Engine,
    places: &'w Places,
    /// By parameter: its first number among all.
    firsts: &'w [usize],
    code: Vec<Instruction>,
    bytes: usize,
}

impl Writer<'_> {
    fn room(&mut self, count: usize) -> Address {
        let at = self.places.memory + self.bytes;
        self.bytes += 8 * count;
        at
    }

    fn push(&mut self, code: Code, to: Address, count: usize, rest: Instruction) {
        self.code.push(Instruction { op: code as c_int, to, count: count as i64, ..rest });
    }

    /// What the kernels read.
    fn forward(&mut self) -> Vec<Read> {
        let engine = self.engine;
        let (step, bounds) = (&engine.model().step, &engine.program.params);
        let as_it_is = |v: Value| match step.at(v).op {
            Op::Load(Source::Param(p)) => Some(p.index()),
            _ => None,
        };
        let roots: Vec<Value> = bounds.iter().map(|b| b.value).filter(|v| as_it_is(*v).is_none()).collect();
        let values = self.function(step, &roots);
        let read = |v: Value| match as_it_is(v) {
            Some(param) => Read::Param(param),
            None => Read::Computed(values[v.index()]),
        };
        bounds.iter().map(|b| read(b.value)).collect()
    }

    /// The cotangents of all parameters; zeros where there is no path.
    fn backward(&mut self) -> Vec<Address> {
        let engine = self.engine;
        let adjoint = &engine.interpreter.prologue_adjoint;
        let results: Vec<(ParamId, Value)> = adjoint
            .results
            .iter()
            .filter_map(|(sink, v)| match sink {
                Sink::ParamBar(p) => Some((*p, *v)),
                _ => None,
            })
            .collect();
        let values = self.function(adjoint, &results.iter().map(|(_, v)| *v).collect::<Vec<_>>());
        let params = &engine.model().params;
        let mut bars = vec![];
        for (k, param) in params.iter().enumerate() {
            let count = engine.sizes().count(param.shape);
            let direct = results.iter().filter(|(p, _)| p.index() == k).map(|(_, v)| values[v.index()]);
            let starts =
                self.places.starts.iter().filter(|(p, _)| *p == k && param.learned).map(|(_, at)| *at);
            let parts: Vec<Address> = direct.chain(starts).collect();
            bars.push(match parts.as_slice() {
                [only] => *only,
                parts => self.total(count, parts),
            });
        }
        bars
    }

    /// The sum of values of equal shape, from the first to the last.
    fn total(&mut self, count: usize, parts: &[Address]) -> Address {
        let to = self.room(count);
        if parts.is_empty() {
            self.push(Code::Zero, to, count, Instruction::default());
        }
        for (k, part) in parts.iter().enumerate() {
            let rest = Instruction { a: *part, is_first: c_int::from(k == 0), ..Instruction::default() };
            self.push(Code::Add, to, count, rest);
        }
        to
    }

    /// Evaluates these values and all that they need; gives the places of values.
    fn function(&mut self, f: &Function, roots: &[Value]) -> Vec<Address> {
        let mut needed = vec![false; f.body.len()];
        roots.iter().for_each(|v| mark(f, *v, &mut needed));
        let mut places = vec![0; f.body.len()];
        for (v, instruction) in f.values().filter(|(v, _)| needed[v.index()]) {
            let count = self.engine.sizes().count(instruction.ty.shape);
            places[v.index()] = self.room(count);
            self.instruction(f, v, &places);
        }
        places
    }

    /// Post and pre of a matrix; a vector is one row.
    fn dims(&self, shape: Shape) -> (usize, usize) {
        let sizes = self.engine.sizes();
        match shape {
            Shape::Matrix { post, pre } => (sizes.of(post), sizes.of(pre)),
            Shape::Vector(axis) => (1, sizes.of(axis)),
            Shape::Scalar => (1, 1),
        }
    }

    fn instruction(&mut self, f: &Function, v: Value, places: &[Address]) {
        let (sizes, shape) = (self.engine.sizes(), f.ty(v).shape);
        let (to, count) = (places[v.index()], sizes.count(shape));
        let at = |v: &Value| places[v.index()];
        // The matrix that the operation is about: the operand of a reduction, else the result.
        let about = |shape: Shape, rest: Instruction| {
            let (post, pre) = self.dims(shape);
            Instruction { post: post as c_int, pre: pre as c_int, ..rest }
        };
        let plain = Instruction::default();
        let of = |a: &Value| Instruction { a: at(a), ..plain };
        let of_two = |a: &Value, b: &Value| Instruction { a: at(a), b: at(b), ..plain };
        let reduced = |a: &Value, rest: Instruction| about(f.ty(*a).shape, rest);
        let (code, rest) = match &f.at(v).op {
            Op::Load(source) => return self.load(*source, to, count),
            Op::Const(c) => (Code::Constant, Instruction { constant: *c, ..plain }),
            Op::Size(axis) => (Code::Constant, Instruction { constant: sizes.of(*axis) as f64, ..plain }),
            Op::Unary(g, a) => {
                self.code.push(Instruction { op: unary(*g), to, count: count as i64, ..of(a) });
                return;
            }
            Op::Binary(g, a, b) => {
                self.code.push(Instruction { op: binary(*g), to, count: count as i64, ..of_two(a, b) });
                return;
            }
            Op::Select(c, a, b) => (Code::Select, Instruction { c: at(b), ..of_two(c, a) }),
            Op::Clip { x, low, high } => (Code::Clip, Instruction { c: at(high), ..of_two(x, low) }),
            Op::Splat(a, _) => (Code::Splat, of(a)),
            Op::Rows(a, _) => (Code::Rows, about(shape, of(a))),
            Op::Cols(a, _) => (Code::Cols, about(shape, of(a))),
            Op::SumAll(a) => (Code::SumAll, reduced(a, of(a))),
            Op::MaxAll(a) => (Code::MaxAll, reduced(a, of(a))),
            Op::SumPre(a) => (Code::SumPre, reduced(a, of(a))),
            Op::SumPost(a) => (Code::SumPost, reduced(a, of(a))),
            Op::Contract(m, a) => (Code::Contract, reduced(m, of_two(m, a))),
            Op::ContractT(m, a) => (Code::ContractT, reduced(m, of_two(m, a))),
            Op::Outer(a, b) => (Code::Outer, about(shape, of_two(a, b))),
            Op::Concat(parts, _) => return self.concat(f, parts, to, places),
            Op::Slice { x, start, .. } => {
                (Code::Copy, Instruction { a: at(x) + 8 * sizes.of(*start), ..plain })
            }
            Op::Pad { x, start, .. } => {
                let (from, inner) = (of(x), sizes.count(f.ty(*x).shape));
                let to_inner = to + 8 * sizes.of(*start);
                self.push(Code::Zero, to, count, plain);
                return self.push(Code::Copy, to_inner, inner, from);
            }
            Op::Element(a, k) => (Code::Element, Instruction { index: *k as c_int, ..of(a) }),
            Op::OneHot { x, index, .. } => (Code::OneHot, Instruction { index: *index as c_int, ..of(x) }),
            Op::StopGrad(a) => (Code::Copy, of(a)),
        };
        self.push(code, to, count, rest);
    }

    fn concat(&mut self, f: &Function, parts: &[Value], mut to: Address, places: &[Address]) {
        for part in parts {
            let count = self.engine.sizes().count(f.ty(*part).shape);
            self.push(
                Code::Copy,
                to,
                count,
                Instruction { a: places[part.index()], ..Instruction::default() },
            );
            to += 8 * count;
        }
    }

    fn load(&mut self, source: Source, to: Address, count: usize) {
        match source {
            Source::Param(p) => {
                let narrow = self.places.values + 4 * self.firsts[p.index()];
                self.push(Code::Widen, to, count, Instruction { narrow, ..Instruction::default() });
            }
            Source::BoundaryBar(v) => self.gather(v, to, count),
            other => unreachable!("{other:?} is batched"),
        }
    }

    /// The sum of a boundary value's gradients, from where the network's kernels have left them.
    fn gather(&mut self, v: Value, to: Address, count: usize) {
        let engine = self.engine;
        let p = &engine.program;
        let mut parts = vec![];
        for slot in p.grads.iter().filter(|slot| slot.value == v) {
            let a = self.places.sums + 8 * slot.offset;
            let (pre, stride) = slot.matrix.map_or((0, 0), |(post, pre)| (pre, padded(post)));
            parts.push(Instruction {
                a,
                pre: pre as c_int,
                stride: stride as c_int,
                ..Instruction::default()
            });
        }
        for (k, _) in p.rank1.iter().enumerate().filter(|(_, r)| r.value == v) {
            let a = self.places.products.get(k).copied().unwrap_or(0);
            parts.push(Instruction { a, ..Instruction::default() });
        }
        if parts.is_empty() {
            self.push(Code::Zero, to, count, Instruction::default());
        }
        for (k, part) in parts.into_iter().enumerate() {
            self.push(Code::Gather, to, count, Instruction { is_first: c_int::from(k == 0), ..part });
        }
    }
}

/// Marks a value, and all that it needs.
fn mark(f: &Function, v: Value, needed: &mut [bool]) {
    if !std::mem::replace(&mut needed[v.index()], true) {
        f.at(v).op.operands().into_iter().for_each(|operand| mark(f, operand, needed));
    }
}
