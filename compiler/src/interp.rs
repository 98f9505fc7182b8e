//! The meaning of a model: an f64 interpreter of the step IR, slow and obvious.
//!
//! Every other back end is compared with this one, and this one with finite differences. It keeps
//! every value of every step, so its memory grows with the length of the sequence.

use crate::autodiff;
use crate::ir::{Axis, Function, Op, ParamId, Shape, Sink, Sizes, Source, StateId, Value};
use crate::model::{Init, Model, Param};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// A tensor in row-major order; its shape is known from the value it belongs to.
pub type Tensor = Arc<Vec<f64>>;

/// Evaluates the instructions of `f` that `wanted` selects, in order. `load` gives the loads;
/// `known` gives values computed before.
pub fn evaluate(
    f: &Function,
    sizes: &Sizes,
    known: &[Option<Tensor>],
    wanted: impl Fn(Value) -> bool,
    load: &mut dyn FnMut(Source) -> Tensor,
) -> Vec<Option<Tensor>> {
    let mut values: Vec<Option<Tensor>> = vec![None; f.body.len()];
    for (k, v) in known.iter().enumerate() {
        values[k].clone_from(v);
    }
    for (v, instruction) in f.values() {
        if values[v.index()].is_some() || !wanted(v) {
            continue;
        }
        let at = |v: &Value| -> &Vec<f64> {
            values[v.index()].as_ref().expect("an operand is evaluated before its use")
        };
        let result = match &instruction.op {
            Op::Load(source) => load(*source),
            op => Arc::new(apply(f, sizes, op, instruction.ty.shape, &at)),
        };
        debug_assert_eq!(result.len(), sizes.count(instruction.ty.shape), "{:?}", instruction.op);
        values[v.index()] = Some(result);
    }
    values
}

/// One operation.
fn apply<'v>(
    f: &Function,
    sizes: &Sizes,
    op: &Op,
    shape: Shape,
    at: &dyn Fn(&Value) -> &'v Vec<f64>,
) -> Vec<f64> {
    let count = sizes.count(shape);
    let dims = |v: &Value| match f.ty(*v).shape {
        Shape::Matrix { post, pre } => (sizes.of(post), sizes.of(pre)),
        Shape::Vector(axis) => (1, sizes.of(axis)),
        Shape::Scalar => (1, 1),
    };
    let size = |axis: &Axis| sizes.of(*axis);
    match op {
        Op::Const(c) => vec![*c],
        Op::Size(axis) => vec![size(axis) as f64],
        Op::Load(_) => unreachable!("loads are handled by the caller"),
        Op::Unary(g, x) => at(x).iter().map(|x| g.eval(*x)).collect(),
        Op::Binary(g, x, y) => at(x).iter().zip(at(y)).map(|(x, y)| g.eval(*x, *y)).collect(),
        Op::Select(c, x, y) => {
            let pick = |k: usize| if at(c)[k] != 0.0 { at(x)[k] } else { at(y)[k] };
            (0..count).map(pick).collect()
        }
        Op::Clip { x, low, high } => {
            let (low, high) = (at(low)[0], at(high)[0]);
            // The comparisons keep NaN, as the kernels do.
            let clip = |x: f64| {
                if x < low {
                    low
                } else if x > high {
                    high
                } else {
                    x
                }
            };
            at(x).iter().map(|x| clip(*x)).collect()
        }
        Op::Splat(x, _) => vec![at(x)[0]; count],
        Op::Rows(x, pre) => at(x).iter().flat_map(|v| std::iter::repeat_n(*v, size(pre))).collect(),
        Op::Cols(x, post) => (0..size(post)).flat_map(|_| at(x).iter().copied()).collect(),
        Op::SumAll(x) => vec![at(x).iter().sum()],
        Op::MaxAll(x) => vec![at(x).iter().fold(f64::NEG_INFINITY, |m, x| if *x > m { *x } else { m })],
        Op::SumPre(x) => at(x).chunks(dims(x).1).map(|row| row.iter().sum()).collect(),
        Op::SumPost(x) => {
            let mut sums = vec![0.0; count];
            for row in at(x).chunks(dims(x).1) {
                sums.iter_mut().zip(row).for_each(|(s, x)| *s += x);
            }
            sums
        }
        Op::Contract(m, v) => {
            let dot = |row: &[f64]| row.iter().zip(at(v)).map(|(m, v)| m * v).sum();
            at(m).chunks(dims(m).1).map(dot).collect()
        }
        Op::ContractT(m, v) => {
            let mut sums = vec![0.0; count];
            for (row, v) in at(m).chunks(dims(m).1).zip(at(v)) {
                sums.iter_mut().zip(row).for_each(|(s, m)| *s += m * v);
            }
            sums
        }
        Op::Outer(a, b) => at(a).iter().flat_map(|a| at(b).iter().map(move |b| a * b)).collect(),
        Op::Concat(parts, _) => parts.iter().flat_map(|p| at(p).iter().copied()).collect(),
        Op::Slice { x, start, .. } => at(x)[size(start)..size(start) + count].to_vec(),
        Op::Pad { x, start, .. } => {
            let mut out = vec![0.0; count];
            out[size(start)..size(start) + at(x).len()].copy_from_slice(at(x));
            out
        }
        Op::Element(x, k) => vec![at(x)[*k]],
        Op::OneHot { x, index, .. } => {
            let mut out = vec![0.0; count];
            out[*index] = at(x)[0];
            out
        }
        Op::StopGrad(x) => at(x).clone(),
    }
}

/// A model bound to sizes, with its adjoints.
#[derive(Clone, Debug)]
pub struct Interpreter {
    /// The model.
    pub model: Arc<Model>,
    /// Its sizes.
    pub sizes: Sizes,
    /// The adjoint of a step.
    pub adjoint: Function,
    /// The adjoint of the prologue.
    pub prologue_adjoint: Function,
}

/// What one row sees.
#[derive(Clone, Debug, Default)]
pub struct Sequence {
    /// Inputs of every step, by input.
    pub inputs: Vec<Vec<Tensor>>,
    /// Initial states, by state.
    pub initial: Vec<Tensor>,
    /// Steps before which the states return to their initial values; empty for none.
    pub resets: Vec<bool>,
}

/// One row's run.
#[derive(Clone, Debug)]
pub struct Trajectory {
    /// States before each step, and after the last: `T + 1` entries.
    pub states: Vec<Vec<Tensor>>,
    /// The states after each step, which differ from the next entry of `states` at a reset.
    pub after: Vec<Vec<Tensor>>,
    /// All values of each step.
    pub values: Vec<Vec<Option<Tensor>>>,
}

/// Cotangents of what a row gave.
#[derive(Clone, Debug, Default)]
pub struct Cotangents {
    /// By step and output.
    pub outputs: Vec<Vec<Tensor>>,
    /// Of the penalty of every step.
    pub penalty: f64,
    /// Of the final states; empty for zero.
    pub last: Vec<Tensor>,
}

/// One row's gradient.
#[derive(Clone, Debug, Default)]
pub struct RowGradient {
    /// Of the boundary values.
    pub boundary: BTreeMap<Value, Vec<f64>>,
    /// By step and input; `None` for inputs without gradient.
    pub inputs: Vec<Vec<Option<Tensor>>>,
    /// Of the initial states, summed over resets.
    pub initial: Vec<Vec<f64>>,
    /// Of the states at the start of the row and after each reset: the step, and one tensor per
    /// state.
    pub starts: Vec<(usize, Vec<Tensor>)>,
}

impl Interpreter {
    /// Differentiates the model.
    pub fn new(model: Arc<Model>, sizes: Sizes) -> Self {
        let adjoint = autodiff::step(&model);
        let prologue_adjoint = autodiff::prologue(&model);
        Interpreter { model, sizes, adjoint, prologue_adjoint }
    }

    /// The unbatched values, from the parameters (by parameter, in the units of the spec).
    pub fn prologue(&self, params: &[Tensor]) -> Vec<Option<Tensor>> {
        self.prologue_without(params, |_| false)
    }

    /// The same, but for parameters that nothing but batched code uses: those that are `packed` are nothing here.
    pub fn prologue_without(
        &self,
        params: &[Tensor],
        packed: impl Fn(ParamId) -> bool,
    ) -> Vec<Option<Tensor>> {
        let step = &self.model.step;
        let is_packed = |v| matches!(step.at(v).op, Op::Load(Source::Param(p)) if packed(p));
        let wanted = |v: Value| !step.ty(v).batched && !is_packed(v);
        evaluate(step, &self.sizes, &[], wanted, &mut |source| match source {
            Source::Param(p) => params[p.index()].clone(),
            other => unreachable!("{other:?} is batched"),
        })
    }

    /// The initial states that do not come from a distribution; those give zeros.
    pub fn initial(&self, params: &[Tensor]) -> Vec<Tensor> {
        let value = |s: &crate::model::State| match &s.init {
            Init::Constant(c) => Arc::new(vec![c.eval(&self.sizes); self.sizes.count(s.shape)]),
            Init::Param(p) => params[p.index()].clone(),
            Init::Uniform(..) | Init::Normal(..) | Init::FanIn(_) | Init::Orthogonal(_) => {
                Arc::new(vec![0.0; self.sizes.count(s.shape)])
            }
        };
        self.model.states.iter().map(value).collect()
    }

    /// One step: all values, from the states before it and its inputs.
    pub fn step(
        &self,
        prologue: &[Option<Tensor>],
        states: &[Tensor],
        inputs: &[Tensor],
    ) -> Vec<Option<Tensor>> {
        evaluate(&self.model.step, &self.sizes, prologue, |_| true, &mut |source| match source {
            Source::State(s) => states[s.index()].clone(),
            Source::Input(i) => inputs[i.index()].clone(),
            other => unreachable!("a step does not load {other:?}"),
        })
    }

    /// The states after a step.
    pub fn next_states(&self, states: &[Tensor], values: &[Option<Tensor>]) -> Vec<Tensor> {
        let next = |k: usize| match self.model.step.result(Sink::State(StateId(k as u32))) {
            Some(v) => self.shaped(&self.model.states[k].shape, values, v),
            None => states[k].clone(),
        };
        (0..states.len()).map(next).collect()
    }

    fn shaped(&self, _shape: &Shape, values: &[Option<Tensor>], v: Value) -> Tensor {
        values[v.index()].clone().expect("every value of a step is evaluated")
    }

    /// Runs one row.
    pub fn run(&self, params: &[Tensor], sequence: &Sequence) -> Trajectory {
        let prologue = self.prologue(params);
        let mut states = vec![sequence.initial.clone()];
        let (mut after, mut all) = (vec![], vec![]);
        for (t, inputs) in sequence.inputs.iter().enumerate() {
            if sequence.resets.get(t) == Some(&true) {
                states[t].clone_from(&sequence.initial);
            }
            let values = self.step(&prologue, &states[t], inputs);
            let next = self.next_states(&states[t], &values);
            after.push(next.clone());
            states.push(next);
            all.push(values);
        }
        Trajectory { states, after, values: all }
    }

    /// An output of a step.
    pub fn output(&self, run: &Trajectory, t: usize, k: usize) -> Tensor {
        let v = self.model.step.result(Sink::Output(crate::ir::OutputId(k as u32)));
        v.and_then(|v| run.values[t][v.index()].clone()).unwrap_or_default()
    }

    /// The sum of a step's penalty terms.
    pub fn penalty(&self, run: &Trajectory, t: usize) -> f64 {
        let terms = self.model.step.results.iter().filter(|(s, _)| *s == Sink::Penalty);
        terms.filter_map(|(_, v)| run.values[t][v.index()].as_ref()).map(|x| x[0]).sum()
    }

    /// Runs one row backward.
    pub fn backward(&self, sequence: &Sequence, run: &Trajectory, bars: &Cotangents) -> RowGradient {
        let model = &self.model;
        let zero = |shape: Shape| Arc::new(vec![0.0; self.sizes.count(shape)]);
        let zeros: Vec<Tensor> = model.states.iter().map(|s| zero(s.shape)).collect();
        let mut bar = if bars.last.is_empty() { zeros.clone() } else { bars.last.clone() };
        let mut gradient = RowGradient {
            boundary: BTreeMap::new(),
            inputs: vec![vec![None; model.inputs.len()]; sequence.inputs.len()],
            initial: zeros.iter().map(|z| z.to_vec()).collect(),
            starts: vec![],
        };
        for t in (0..sequence.inputs.len()).rev() {
            let values = self.adjoint_step(sequence, run, bars, &bar, t);
            let at = |v: &Value| values[v.index()].clone().expect("evaluated");
            for (sink, v) in &self.adjoint.results {
                match sink {
                    Sink::StateBar(s) => bar[s.index()] = at(v),
                    Sink::InputBar(i) => gradient.inputs[t][i.index()] = Some(at(v)),
                    Sink::BoundaryBar(p) => add_into(gradient.boundary.entry(*p).or_default(), &at(v)),
                    _ => {}
                }
            }
            if t == 0 || sequence.resets.get(t) == Some(&true) {
                for (sum, b) in gradient.initial.iter_mut().zip(&bar) {
                    add_into(sum, b);
                }
                gradient.starts.push((t, std::mem::replace(&mut bar, zeros.clone())));
            }
        }
        gradient
    }

    fn adjoint_step(
        &self,
        sequence: &Sequence,
        run: &Trajectory,
        bars: &Cotangents,
        bar: &[Tensor],
        t: usize,
    ) -> Vec<Option<Tensor>> {
        let value = |v: Value| run.values[t][v.index()].clone().expect("evaluated");
        evaluate(&self.adjoint, &self.sizes, &[], |_| true, &mut |source| match source {
            Source::Primal(v) => value(v),
            Source::State(s) => run.states[t][s.index()].clone(),
            Source::Next(s) => run.after[t][s.index()].clone(),
            Source::Input(i) => sequence.inputs[t][i.index()].clone(),
            Source::NextBar(s) => bar[s.index()].clone(),
            Source::OutputBar(o) => bars.outputs[t][o.index()].clone(),
            Source::PenaltyBar => Arc::new(vec![bars.penalty]),
            other => unreachable!("a step's adjoint does not load {other:?}"),
        })
    }

    /// From the cotangents of the boundary (summed over rows and steps) and of the initial states
    /// (summed over rows) to those of the parameters; zeros where there is no gradient path.
    pub fn finish(
        &self,
        params: &[Tensor],
        boundary: &BTreeMap<Value, Vec<f64>>,
        initial: &[Vec<f64>],
    ) -> Vec<Vec<f64>> {
        self.finish_others(params, boundary, initial, &BTreeSet::new())
    }

    /// The same but for the parameters whose cotangents are known: nothing for these.
    pub fn finish_others(
        &self,
        params: &[Tensor],
        boundary: &BTreeMap<Value, Vec<f64>>,
        initial: &[Vec<f64>],
        known: &BTreeSet<ParamId>,
    ) -> Vec<Vec<f64>> {
        let model = &self.model;
        let is_known = |k: usize| known.contains(&ParamId(k as u32));
        let zeros =
            |(k, p): (usize, &Param)| vec![0.0; if is_known(k) { 0 } else { self.sizes.count(p.shape) }];
        let mut gradients: Vec<Vec<f64>> = model.params.iter().enumerate().map(zeros).collect();
        let f = &self.prologue_adjoint;
        let is_known = |sink: &Sink| matches!(sink, Sink::ParamBar(p) if known.contains(p));
        let skipped: BTreeSet<Value> =
            f.results.iter().filter(|(sink, _)| is_known(sink)).map(|(_, v)| *v).collect();
        let wanted = |v: Value| !skipped.contains(&v);
        let values = evaluate(f, &self.sizes, &[], wanted, &mut |source| match source {
            Source::Param(p) => params[p.index()].clone(),
            Source::BoundaryBar(v) => {
                let count = self.sizes.count(model.step.ty(v).shape);
                Arc::new(boundary.get(&v).cloned().unwrap_or_else(|| vec![0.0; count]))
            }
            other => unreachable!("the prologue's adjoint does not load {other:?}"),
        });
        for (sink, v) in &f.results {
            if let (Sink::ParamBar(p), Some(bar)) = (sink, &values[v.index()]) {
                add_into(&mut gradients[p.index()], bar);
            }
        }
        for (state, bar) in model.states.iter().zip(initial) {
            if let Init::Param(p) = state.init
                && model.params[p.index()].learned
            {
                add_into(&mut gradients[p.index()], bar);
            }
        }
        gradients
    }
}

fn add_into(sum: &mut Vec<f64>, x: &[f64]) {
    if sum.is_empty() {
        sum.extend_from_slice(x);
    } else {
        sum.iter_mut().zip(x).for_each(|(s, x)| *s += x);
    }
}
