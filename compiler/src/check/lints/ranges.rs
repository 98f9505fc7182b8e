//! Ranges of all values of a step, over all steps: intervals from the leaves to the results, and
//! round the states until nothing changes. A bound that keeps moving is taken to infinity.
//!
//! Three forms are known to stay inside of what they mix or normalise, which their intervals alone
//! would not show: `(1-c) a + c b`, `a + c (b - a)`, and a value divided by its own norm or sum.

use super::flow::Flow;
use super::intervals::Interval;
use crate::ir::{Axis, Binary, Op, Shape, Source, StateId, Unary, Value};
use crate::model::{ConstExpr, Constraint, Init, Law, Model, Role};

/// Rounds before bounds are taken to infinity.
const PATIENCE: usize = 6;

/// Which parameters are looked at.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Start {
    /// Anywhere that training may take them.
    Anywhere,
    /// Where they start.
    Initial,
}

/// The range of every value of the step, over all steps.
pub(super) fn propagate(model: &Model, start: Start) -> Vec<Interval> {
    let ranges = Ranges { model, flow: Flow::new(model), start };
    let mut states: Vec<Interval> = model.states.iter().map(|s| ranges.init(&s.init)).collect();
    let mut round = 0;
    loop {
        let values = ranges.step(&states);
        let mut stable = true;
        for (k, state) in states.iter_mut().enumerate() {
            let Some(next) = ranges.flow.next(StateId(k as u32)) else { continue };
            let joined = state.hull(values[next.index()]);
            if joined != *state {
                stable = false;
                *state = if round < PATIENCE { joined } else { widened(*state, joined) };
            }
        }
        round += 1;
        if stable {
            return values;
        }
    }
}

fn widened(old: Interval, new: Interval) -> Interval {
    let low = if new.low < old.low { f64::NEG_INFINITY } else { new.low };
    let high = if new.high > old.high { f64::INFINITY } else { new.high };
    Interval::new(low, high)
}

struct Ranges<'m> {
    model: &'m Model,
    flow: Flow<'m>,
    start: Start,
}

impl Ranges<'_> {
    fn step(&self, states: &[Interval]) -> Vec<Interval> {
        let mut values: Vec<Interval> = vec![];
        for (v, instruction) in self.model.step.values() {
            let found = self.value(v, &instruction.op, states, &values);
            values.push(found);
        }
        values
    }

    fn value(&self, v: Value, op: &Op, states: &[Interval], known: &[Interval]) -> Interval {
        let at = |v: &Value| known[v.index()];
        match op {
            Op::Const(c) => Interval::point(*c),
            Op::Size(axis) => self.size(*axis),
            Op::Load(source) => self.load(source, states),
            Op::Unary(f, a) => unary(*f, at(a)),
            Op::Binary(f, a, b) => self.binary(v, *f, *a, *b, known),
            Op::Select(_, a, b) => at(a).hull(at(b)),
            Op::Clip { x, low, high } => at(x).map(|x| x.max(at(low).low).min(at(high).high)),
            Op::Splat(a, _)
            | Op::Rows(a, _)
            | Op::Cols(a, _)
            | Op::MaxAll(a)
            | Op::Slice { x: a, .. }
            | Op::Element(a, _)
            | Op::StopGrad(a) => at(a),
            Op::Pad { x, .. } | Op::OneHot { x, .. } => at(x).hull(Interval::point(0.0)),
            Op::SumAll(a) => self.sum(at(a), &dims(self.shape(*a))),
            Op::SumPre(a) => self.sum(at(a), &dims(self.shape(*a))[1..]),
            Op::SumPost(a) => self.sum(at(a), &dims(self.shape(*a))[..1]),
            Op::Contract(m, x) => self.sum(at(m).times(at(x)), &dims(self.shape(*x))),
            Op::ContractT(m, x) => self.sum(at(m).times(at(x)), &dims(self.shape(*x))),
            Op::Outer(a, b) => at(a).times(at(b)),
            Op::Concat(parts, _) => parts.iter().map(at).reduce(Interval::hull).unwrap_or(Interval::ALL),
        }
    }

    fn shape(&self, v: Value) -> Shape {
        self.model.step.ty(v).shape
    }

    /// The declared size of an axis; at least one if it is open.
    fn size(&self, axis: Axis) -> Interval {
        let linear = self.model.axes.linear(axis);
        let mut size = linear.constant as f64;
        for (&k, &c) in &linear.terms {
            match self.model.axes.named[k].size {
                Some(n) => size += c as f64 * n as f64,
                None => return Interval::new(1.0, f64::INFINITY),
            }
        }
        Interval::point(size.max(1.0))
    }

    fn sum(&self, x: Interval, axes: &[Axis]) -> Interval {
        axes.iter().fold(x, |x, axis| x.times(self.size(*axis)))
    }

    fn load(&self, source: &Source, states: &[Interval]) -> Interval {
        match source {
            Source::Param(p) => {
                let param = &self.model.params[p.index()];
                match self.start {
                    Start::Initial => self.init(&param.init),
                    Start::Anywhere if !param.learned => self.init(&param.init),
                    Start::Anywhere => self.constraint(&param.constraint),
                }
            }
            Source::State(s) => states[s.index()],
            Source::Input(u) => match &self.model.inputs[u.index()].role {
                Role::Mask | Role::Reset => Interval::new(0.0, 1.0),
                Role::Noise(noise) => match &noise.law {
                    Law::Drawn(init) => self.init(init),
                    Law::Dropout(p) => {
                        let p = self.number(p).magnitude();
                        Interval::new(0.0, if p < 1.0 { 1.0 / (1.0 - p) } else { f64::INFINITY })
                    }
                },
                Role::Signal | Role::Modulator | Role::Target => Interval::ALL,
            },
            _ => Interval::ALL,
        }
    }

    fn constraint(&self, constraint: &Constraint) -> Interval {
        match constraint {
            Constraint::Free => Interval::ALL,
            Constraint::Interval(a, b) => self.number(a).hull(self.number(b)),
            Constraint::Above(a) => Interval::new(self.number(a).low, f64::INFINITY),
            Constraint::Below(b) => Interval::new(f64::NEG_INFINITY, self.number(b).high),
        }
    }

    fn init(&self, init: &Init) -> Interval {
        match init {
            Init::Constant(c) => self.number(c),
            Init::Uniform(a, b) => self.number(a).hull(self.number(b)),
            Init::Normal(mean, sd) if self.number(sd).is_zero() => self.number(mean),
            Init::Normal(..) => Interval::ALL,
            Init::FanIn(axis) => {
                let bound = 1.0 / self.size(*axis).low.sqrt();
                Interval::new(-bound, bound)
            }
            Init::Orthogonal(gain) => {
                let bound = self.number(gain).magnitude();
                Interval::new(-bound, bound)
            }
            Init::Param(p) => {
                let param = &self.model.params[p.index()];
                match self.start {
                    Start::Anywhere if param.learned => self.constraint(&param.constraint),
                    Start::Anywhere | Start::Initial => self.init(&param.init),
                }
            }
        }
    }

    fn number(&self, c: &ConstExpr) -> Interval {
        match c {
            ConstExpr::Number(x) => Interval::point(*x),
            ConstExpr::Size(axis) => self.size(*axis),
            ConstExpr::Neg(x) => self.number(x).negate(),
            ConstExpr::Sqrt(x) => self.number(x).map(f64::sqrt),
            ConstExpr::Binary(op, a, b) => {
                use grammar::ast::BinaryOp;
                let (a, b) = (self.number(a), self.number(b));
                match op {
                    BinaryOp::Add => a.plus(b),
                    BinaryOp::Sub => a.plus(b.negate()),
                    BinaryOp::Mul => a.times(b),
                    BinaryOp::Div => a.over(b),
                    _ => Interval::ALL,
                }
            }
        }
    }

    fn binary(&self, v: Value, f: Binary, a: Value, b: Value, known: &[Interval]) -> Interval {
        let (x, y) = (known[a.index()], known[b.index()]);
        match f {
            Binary::Add => {
                let plain = x.plus(y);
                [self.mixture(a, b, known), self.mixture(b, a, known)]
                    .into_iter()
                    .chain([self.approach(a, b, known), self.approach(b, a, known)])
                    .flatten()
                    .fold(plain, intersect)
            }
            Binary::Sub if a == b => Interval::point(0.0),
            Binary::Sub => x.plus(y.negate()),
            Binary::Mul if a == b => x.squared(),
            Binary::Mul => x.times(y),
            Binary::Div => intersect(x.over(y), self.normalised(v, a, b, known)),
            Binary::Min => Interval::new(x.low.min(y.low), x.high.min(y.high)),
            Binary::Max => Interval::new(x.low.max(y.low), x.high.max(y.high)),
            Binary::Less | Binary::LessEqual | Binary::Equal => Interval::new(0.0, 1.0),
        }
    }

    /// `(1-c) a + c b` with `c` in `[0, 1]` lies between `a` and `b`.
    fn mixture(&self, first: Value, second: Value, known: &[Interval]) -> Option<Interval> {
        let mut rest = self.flow.factors(first);
        let at = rest.iter().position(|v| self.flow.complement(*v).is_some())?;
        let c = self.flow.complement(rest.swap_remove(at))?;
        let mut other = self.flow.factors(second);
        other.swap_remove(other.iter().position(|v| *v == c)?);
        // A negated product loses its sign among the factors.
        if self.is_negated(first) || self.is_negated(second) || !known[c.index()].within(0.0, 1.0) {
            return None;
        }
        Some(self.product(&rest, known).hull(self.product(&other, known)))
    }

    fn is_negated(&self, v: Value) -> bool {
        match self.flow.op(v) {
            Op::Unary(Unary::Neg, _) => true,
            Op::Binary(Binary::Mul, a, b) | Op::Outer(a, b) => self.is_negated(*a) || self.is_negated(*b),
            Op::Splat(a, _) | Op::Rows(a, _) | Op::Cols(a, _) => self.is_negated(*a),
            _ => false,
        }
    }

    /// The product of factors, the same ones as squares.
    fn product(&self, factors: &[Value], known: &[Interval]) -> Interval {
        let mut factors = factors.to_vec();
        factors.sort();
        let mut product = Interval::point(1.0);
        let mut k = 0;
        while k < factors.len() {
            let x = known[factors[k].index()];
            let twin = factors.get(k + 1) == Some(&factors[k]) && is_scalar(self.shape(factors[k]));
            product = product.times(if twin { x.squared() } else { x });
            k += if twin { 2 } else { 1 };
        }
        product
    }

    /// `a + c (b - a)` with `c` in `[0, 1]` lies between `a` and `b`.
    fn approach(&self, a: Value, product: Value, known: &[Interval]) -> Option<Interval> {
        let Op::Binary(Binary::Mul, x, y) = self.flow.op(product) else { return None };
        for (c, difference) in [(x, y), (y, x)] {
            if let Op::Binary(Binary::Sub, b, base) = self.flow.op(*difference)
                && *base == a
                && known[c.index()].within(0.0, 1.0)
            {
                return Some(known[a.index()].hull(known[b.index()]));
            }
        }
        None
    }

    /// A value divided by its own sum, length or largest magnitude.
    fn normalised(&self, _: Value, x: Value, by: Value, known: &[Interval]) -> Interval {
        let by = self.flow.core(by);
        let sum_of = |v: Value| match self.flow.op(v) {
            Op::SumAll(a) | Op::SumPre(a) | Op::SumPost(a) | Op::MaxAll(a) => Some(*a),
            _ => None,
        };
        if sum_of(by) == Some(x) && known[x.index()].low >= 0.0 {
            return Interval::new(0.0, 1.0);
        }
        if self.is_length_of(by, x) {
            return Interval::new(-1.0, 1.0);
        }
        match self.flow.op(by) {
            Op::Binary(Binary::Add, m, _) => match sum_of(*m).map(|a| self.flow.op(a)) {
                Some(Op::Unary(Unary::Abs, a)) if *a == x => Interval::new(-1.0, 1.0),
                _ => Interval::ALL,
            },
            Op::Binary(Binary::Max, one, ratio) if self.flow.constant(*one) == Some(1.0) => {
                match self.flow.op(*ratio) {
                    Op::Binary(Binary::Div, length, cap) if self.is_length_of(*length, x) => {
                        let cap = known[cap.index()].magnitude();
                        Interval::new(-cap, cap)
                    }
                    Op::Unary(Unary::Sqrt, _) if self.is_length_of(*ratio, x) => Interval::new(-1.0, 1.0),
                    _ => Interval::ALL,
                }
            }
            _ => Interval::ALL,
        }
    }

    /// Whether a value is `√(Σ x² + tiny)`.
    fn is_length_of(&self, v: Value, x: Value) -> bool {
        let Op::Unary(Unary::Sqrt, inner) = self.flow.op(v) else { return false };
        let sum = match self.flow.op(*inner) {
            Op::Binary(Binary::Add, sum, _) => *sum,
            _ => *inner,
        };
        let squares = match self.flow.op(sum) {
            Op::SumAll(a) | Op::SumPre(a) | Op::SumPost(a) => *a,
            _ => return false,
        };
        matches!(self.flow.op(squares), Op::Binary(Binary::Mul, a, b) if *a == x && *b == x)
    }
}

fn is_scalar(shape: Shape) -> bool {
    matches!(shape, Shape::Scalar)
}

fn dims(shape: Shape) -> Vec<Axis> {
    super::super::parameters::dims(shape)
}

fn intersect(a: Interval, b: Interval) -> Interval {
    let (low, high) = (a.low.max(b.low), a.high.min(b.high));
    if low <= high { Interval::new(low, high) } else { a }
}

fn unary(f: Unary, x: Interval) -> Interval {
    match f {
        Unary::Neg => x.negate(),
        Unary::Abs => x.absolute(),
        Unary::Log => x.map(|x| if x <= 0.0 { f64::NEG_INFINITY } else { x.ln() }),
        Unary::Sqrt => x.map(|x| x.max(0.0).sqrt()),
        Unary::Tanh | Unary::Sigmoid | Unary::Exp | Unary::Relu | Unary::Sign => x.map(|x| f.eval(x)),
        Unary::Softplus => x.map(|x| if x == f64::INFINITY { x } else { f.eval(x) }),
    }
}
