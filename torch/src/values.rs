//! Operations of the step IR as operations of libtorch, one table.
//!
//! The pieces of an operation are chosen for its derivative: autograd must give what the table of derivatives says,
//! at ties, too. Only what is NaN may differ.

use crate::numbers::dims;
use compiler::ir::{Axis, Binary, Function, Op, Shape, Sizes, Source, Unary, Value};
use tch::{Device, Kind, TchError, Tensor};

type Made = Result<Tensor, TchError>;

/// Values of a step, by instruction; none where there is nothing yet.
pub(crate) type Values = Vec<Option<Tensor>>;

/// What evaluates a step.
pub(crate) struct Evaluator<'a> {
    /// The step.
    pub(crate) step: &'a Function,
    /// Its sizes.
    pub(crate) sizes: &'a Sizes,
    /// Rows of the batch.
    pub(crate) rows: usize,
    /// Where numbers lie, and how.
    pub(crate) place: (Kind, Device),
}

impl Evaluator<'_> {
    /// Evaluates the instructions that `wanted` selects, in order; others are among `known`, if anything uses them.
    pub(crate) fn run(
        &self,
        known: &Values,
        wanted: impl Fn(Value) -> bool,
        load: &mut dyn FnMut(Source) -> Made,
    ) -> Result<Values, TchError> {
        let mut values: Values = (0..self.step.body.len()).map(|_| None).collect();
        for (v, instruction) in self.step.values() {
            if !wanted(v) {
                continue;
            }
            let found = match &instruction.op {
                Op::Load(source) => load(*source)?,
                op => {
                    let at = |v: Value| {
                        let value =
                            values[v.index()].as_ref().or(known.get(v.index()).and_then(Option::as_ref));
                        value.expect("an operand is evaluated before its use")
                    };
                    self.apply(op, instruction.ty.batched, &at)?
                }
            };
            values[v.index()] = Some(found);
        }
        Ok(values)
    }

    fn apply<'t>(&self, op: &Op, batched: bool, at: &dyn Fn(Value) -> &'t Tensor) -> Made {
        let shape = |v: Value| self.step.ty(v).shape;
        match op {
            Op::Const(c) => self.number(*c),
            Op::Size(axis) => self.number(self.sizes.of(*axis) as f64),
            Op::Load(_) => unreachable!("loads are handled by the caller"),
            Op::Unary(f, x) => unary(*f, at(*x)),
            Op::Binary(f, x, y) => binary(*f, at(*x), at(*y), self.place.0),
            Op::Select(c, x, y) => at(*x).f_where_self(&at(*c).f_ne(0.0)?, at(*y)),
            Op::Clip { x, low, high } => clip(at(*x), at(*low), at(*high)),
            Op::Splat(x, shape) => self.splat(at(*x), *shape, batched),
            Op::Rows(x, pre) => spread(at(*x), -1, self.size(*pre)),
            Op::Cols(x, post) => spread(at(*x), -2, self.size(*post)),
            Op::SumAll(x) => match axes(shape(*x)) {
                [] => Ok(at(*x).shallow_clone()),
                all => at(*x).f_sum_dim_intlist(all, false, None),
            },
            // The gradient is shared equally by all elements that are maximal.
            Op::MaxAll(x) => match axes(shape(*x)) {
                [] => Ok(at(*x).shallow_clone()),
                all => at(*x).f_amax(all, false),
            },
            Op::SumPre(m) => at(*m).f_sum_dim_intlist(-1, false, None),
            Op::SumPost(m) => at(*m).f_sum_dim_intlist(-2, false, None),
            Op::Contract(m, v) => self.product(at(*m), self.is_batched(*m), at(*v), self.is_batched(*v)),
            Op::ContractT(m, v) => {
                let m_t = at(*m).f_transpose(-1, -2)?;
                self.product(&m_t, self.is_batched(*m), at(*v), self.is_batched(*v))
            }
            Op::Outer(a, b) => at(*a).f_unsqueeze(-1)?.f_mul(&at(*b).f_unsqueeze(-2)?),
            Op::Concat(parts, _) => {
                let part =
                    |v: &Value| if batched { self.in_rows(*v, at(*v)) } else { Ok(at(*v).shallow_clone()) };
                let parts: Result<Vec<Tensor>, TchError> = parts.iter().map(part).collect();
                Tensor::f_cat(&parts?, -1)
            }
            Op::Slice { x, start, axis } => at(*x).f_narrow(-1, self.size(*start), self.size(*axis)),
            Op::Pad { x, start, axis } => {
                let (before, own) = (self.size(*start), self.sizes.count(shape(*x)) as i64);
                at(*x).f_constant_pad_nd([before, self.size(*axis) - before - own])
            }
            Op::Element(x, k) => at(*x).f_select(-1, *k as i64),
            Op::OneHot { x, index, axis } => {
                let before = *index as i64;
                at(*x).f_unsqueeze(-1)?.f_constant_pad_nd([before, self.size(*axis) - before - 1])
            }
            Op::StopGrad(x) => at(*x).f_detach(),
        }
    }

    fn is_batched(&self, v: Value) -> bool {
        self.step.ty(v).batched
    }

    fn size(&self, axis: Axis) -> i64 {
        self.sizes.of(axis) as i64
    }

    fn number(&self, x: f64) -> Made {
        Tensor::f_full([0i64; 0], x, self.place)
    }

    /// A value with rows: an unbatched one is the same in all of them.
    pub(crate) fn in_rows(&self, v: Value, x: &Tensor) -> Made {
        let ty = self.step.ty(v);
        if ty.batched {
            return Ok(x.shallow_clone());
        }
        let sizes = [vec![self.rows], self.sizes.dims(ty.shape)].concat();
        x.f_expand(&dims(&sizes)[..], false)
    }

    /// A shape filled with a scalar.
    fn splat(&self, x: &Tensor, shape: Shape, batched: bool) -> Made {
        let mut sizes = self.sizes.dims(shape);
        let mut x = x.shallow_clone();
        if batched {
            for _ in &sizes {
                x = x.f_unsqueeze(-1)?;
            }
            sizes.insert(0, self.rows);
        }
        x.f_expand(&dims(&sizes)[..], false)
    }

    /// `y[j] = Σ_i m[j,i] v[i]`. A matrix that all rows share takes all vectors in one product.
    fn product(&self, m: &Tensor, m_batched: bool, v: &Tensor, v_batched: bool) -> Made {
        match (m_batched, v_batched) {
            (_, false) => m.f_matmul(v),
            (false, true) => v.f_matmul(&m.f_transpose(-1, -2)?),
            (true, true) => m.f_matmul(&v.f_unsqueeze(-1)?)?.f_squeeze_dim(-1),
        }
    }
}

/// The axes of a shape, counted from the last.
fn axes(shape: Shape) -> &'static [i64] {
    match shape {
        Shape::Scalar => &[],
        Shape::Vector(_) => &[-1],
        Shape::Matrix { .. } => &[-2, -1],
    }
}

/// A vector, repeated along a new axis.
fn spread(x: &Tensor, axis: i64, size: i64) -> Made {
    let x = x.f_unsqueeze(axis)?;
    let mut sizes = x.size();
    let place = sizes.len() - axis.unsigned_abs() as usize;
    sizes[place] = size;
    x.f_expand(&sizes[..], false)
}

fn unary(f: Unary, x: &Tensor) -> Made {
    match f {
        Unary::Neg => x.f_neg(),
        Unary::Tanh => x.f_tanh(),
        Unary::Sigmoid => x.f_sigmoid(),
        Unary::Exp => x.f_exp(),
        Unary::Log => x.f_log(),
        Unary::Sqrt => x.f_sqrt(),
        // libtorch's own softplus is the identity above 20.
        Unary::Softplus => x.f_logaddexp(&x.f_zeros_like()?),
        // 0 at 0, as ours.
        Unary::Relu => x.f_relu(),
        // 0 at 0, as ours.
        Unary::Abs => x.f_abs(),
        Unary::Sign => x.f_detach()?.f_sign(),
    }
}

fn binary(f: Binary, x: &Tensor, y: &Tensor, kind: Kind) -> Made {
    match f {
        Binary::Add => x.f_add(y),
        Binary::Sub => x.f_sub(y),
        Binary::Mul => x.f_mul(y),
        Binary::Div => x.f_div(y),
        // libtorch's own would share the gradient at a tie.
        Binary::Min => x.f_where_self(&x.f_lt_tensor(y)?, y),
        Binary::Max => x.f_where_self(&x.f_gt_tensor(y)?, y),
        Binary::Less => x.f_lt_tensor(y)?.f_to_kind(kind),
        Binary::LessEqual => x.f_le_tensor(y)?.f_to_kind(kind),
        Binary::Equal => x.f_eq_tensor(y)?.f_to_kind(kind),
    }
}

/// libtorch's own clamp lets the gradient pass at the bounds, and to them.
fn clip(x: &Tensor, low: &Tensor, high: &Tensor) -> Made {
    let (low, high) = (low.f_detach()?, high.f_detach()?);
    let under = high.f_where_self(&x.f_gt_tensor(&high)?, x)?;
    let clipped = low.f_where_self(&x.f_lt_tensor(&low)?, &under)?.f_detach()?;
    let inside = clipped.f_gt_tensor(&low)?.f_logical_and(&clipped.f_lt_tensor(&high)?)?;
    x.f_where_self(&inside, &clipped)
}
