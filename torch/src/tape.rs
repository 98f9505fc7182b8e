//! A batch on its way through time, and back.
//!
//! Leaves of the graph are the parameters, the inputs and the states where a stretch of steps starts. The loss is
//! `Σ_t ⟨ō_t, o_t⟩ + p̄ Σ_t penalty_t + ⟨s̄_T, s_T⟩`, so autograd's gradient is the transposed Jacobian applied to the
//! given cotangents.

use crate::numbers::{Number, get, put};
use crate::place::Code;
use crate::values::Values;
use crate::{Cotangents, Fault, Gradients, Keep, Start};
use compiler::ir::{OutputId, Sink, Source, StateId};
use std::sync::Arc;
use tch::{TchError, Tensor};

/// The memory of a batch.
#[derive(Debug)]
pub struct Tape {
    code: Arc<Code>,
    rows: usize,
    keep: Keep,
    /// Leaves, by parameter.
    params: Vec<Tensor>,
    /// What depends on parameters alone.
    prologue: Values,
    /// Leaves: the states at the first steps of stretches.
    starts: Vec<(usize, Vec<Tensor>)>,
    /// Leaves: by input, `[steps, rows, axes…]` for some steps one after the other.
    inputs: Vec<Vec<Tensor>>,
    /// Before the coming step.
    states: Vec<Tensor>,
    /// By step, unless only the last is kept, and by output: `[rows, axes…]`.
    outputs: Vec<Vec<Tensor>>,
    /// By step, `[rows]`; as `outputs`.
    penalties: Vec<Tensor>,
    steps: usize,
}

impl Tape {
    /// The memory of so many rows.
    pub fn new(code: &Arc<Code>, rows: usize, keep: Keep) -> Tape {
        Tape {
            code: Arc::clone(code),
            rows,
            keep,
            params: vec![],
            prologue: vec![],
            starts: vec![],
            inputs: vec![],
            states: vec![],
            outputs: vec![],
            penalties: vec![],
            steps: 0,
        }
    }

    /// Starts a sequence from parameters, in the units of the spec, and states, `[rows, axes…]`.
    ///
    /// # Errors
    /// If libtorch fails.
    pub fn begin<P: Number, T: Number>(&mut self, params: &[&[P]], states: &[Vec<T>]) -> Result<(), Fault> {
        self.outputs.clear();
        self.penalties.clear();
        self.inputs.clear();
        self.starts.clear();
        self.steps = 0;
        self.params = self.param_leaves(params)?;
        let code = Arc::clone(&self.code);
        let step = &code.model.step;
        let params = &self.params;
        let prologue = || {
            let wanted = |v: compiler::ir::Value| !step.ty(v).batched && code.needed[v.index()];
            code.evaluator(self.rows).run(&vec![], wanted, &mut |source| match source {
                Source::Param(p) => Ok(params[p.index()].shallow_clone()),
                other => unreachable!("{other:?} is batched"),
            })
        };
        self.prologue = self.graded(prologue)?;
        self.states = self.start(states)?;
        Ok(())
    }

    /// Sets the states of all rows, or of some, to these before the coming step; nothing flows back from there.
    ///
    /// # Errors
    /// If libtorch fails.
    pub fn reset<T: Number>(&mut self, rows: Option<&[bool]>, states: &[Vec<T>]) -> Result<(), Fault> {
        if rows.is_none() && self.starts.last().is_some_and(|(step, _)| *step == self.steps) {
            self.starts.pop();
        }
        let leaves = self.start(states)?;
        let Some(rows) = rows else {
            self.states = leaves;
            return Ok(());
        };
        let mask = Tensor::f_from_slice(rows)?.f_to_device(self.code.place.1)?;
        let merge = |(old, new): (&Tensor, Tensor)| {
            let mask = mask.f_reshape(&[vec![-1], vec![1; new.dim() - 1]].concat()[..])?;
            new.f_where_self(&mask, old)
        };
        let merged: Result<Vec<Tensor>, TchError> =
            self.graded(|| self.states.iter().zip(leaves).map(merge).collect());
        self.states = merged?;
        Ok(())
    }

    /// Runs steps; `inputs` are by input, `[steps, rows, axes…]`.
    ///
    /// # Errors
    /// If libtorch fails.
    pub fn forward<T: Number>(&mut self, steps: usize, inputs: &[Vec<T>]) -> Result<(), Fault> {
        let leaves = self.input_leaves(steps, inputs)?;
        let by_step: Result<Vec<Vec<Tensor>>, TchError> =
            self.graded(|| leaves.iter().map(|leaf| leaf.f_unbind(0)).collect());
        let by_step = by_step?;
        if self.is_graph() {
            self.inputs.push(leaves);
        }
        let of = |t: usize| by_step.iter().map(|all| all[t].shallow_clone()).collect::<Vec<_>>();
        (0..steps).try_for_each(|t| self.step(&of(t)).map_err(Fault::from))
    }

    /// How many steps have run.
    pub fn steps(&self) -> usize {
        self.steps
    }

    /// An output of the last `steps` steps, `[steps, rows, axes…]`.
    ///
    /// # Errors
    /// If libtorch fails.
    pub fn outputs<T: Number>(&self, output: usize, steps: usize) -> Result<Vec<T>, Fault> {
        let first = self.outputs.len() - steps;
        let all: Vec<&Tensor> = self.outputs[first..].iter().map(|step| &step[output]).collect();
        if all.is_empty() {
            return Ok(vec![]);
        }
        Ok(get(&tch::no_grad(|| Tensor::f_stack(&all, 0))?)?)
    }

    /// The sum of the penalty terms of every step that is kept, `[steps, rows]`.
    ///
    /// # Errors
    /// If libtorch fails.
    pub fn penalties<T: Number>(&self) -> Result<Vec<T>, Fault> {
        if self.penalties.is_empty() {
            return Ok(vec![]);
        }
        Ok(get(&tch::no_grad(|| Tensor::f_stack(&self.penalties, 0))?)?)
    }

    /// The states before the coming step, `[rows, axes…]`.
    ///
    /// # Errors
    /// If libtorch fails.
    pub fn states<T: Number>(&self) -> Result<Vec<Vec<T>>, Fault> {
        Ok(self.states.iter().map(get).collect::<Result<_, TchError>>()?)
    }

    /// The gradients. They can be asked for once.
    ///
    /// # Errors
    /// If libtorch fails.
    pub fn backward<T: Number>(&mut self, bars: Cotangents<'_, T>) -> Result<Gradients<T>, Fault> {
        let loss = self.loss(bars)?;
        if loss.requires_grad() {
            loss.f_backward()?;
        }
        Ok(self.gradients()?)
    }

    // ------------------------------------------------------------------ leaves

    fn is_graph(&self) -> bool {
        matches!(self.keep, Keep::Graph { .. })
    }

    /// Does something with or without a graph.
    fn graded<T>(&self, work: impl FnOnce() -> T) -> T {
        if self.is_graph() { work() } else { tch::no_grad(work) }
    }

    fn leaf<T: Number>(&self, x: &[T], sizes: &[usize], wanted: bool) -> Result<Tensor, TchError> {
        let leaf = put(x, sizes, self.code.place)?;
        if wanted && self.is_graph() { leaf.f_set_requires_grad(true) } else { Ok(leaf) }
    }

    fn param_leaves<P: Number>(&self, params: &[&[P]]) -> Result<Vec<Tensor>, TchError> {
        let model = &self.code.model;
        let pairs = model.params.iter().zip(params);
        pairs.map(|(p, x)| self.leaf(x, &self.code.sizes.dims(p.shape), p.learned)).collect()
    }

    /// The leaves of a stretch that begins with the coming step.
    fn start<T: Number>(&mut self, states: &[Vec<T>]) -> Result<Vec<Tensor>, TchError> {
        let sizes = |shape| [vec![self.rows], self.code.sizes.dims(shape)].concat();
        let pairs = self.code.model.states.iter().zip(states);
        let leaves: Result<Vec<Tensor>, TchError> =
            pairs.map(|(s, x)| self.leaf(x, &sizes(s.shape), true)).collect();
        let leaves = leaves?;
        self.starts.push((self.steps, leaves.iter().map(Tensor::shallow_clone).collect()));
        Ok(leaves)
    }

    fn input_leaves<T: Number>(&self, steps: usize, inputs: &[Vec<T>]) -> Result<Vec<Tensor>, TchError> {
        let wanted = self.keep == Keep::Graph { inputs: true };
        let one = |(i, x): (&compiler::model::Input, &Vec<T>)| {
            let sizes = [vec![steps, self.rows], self.code.sizes.dims(i.shape)].concat();
            self.leaf(x, &sizes, wanted && i.role.is_differentiable())
        };
        self.code.model.inputs.iter().zip(inputs).map(one).collect()
    }

    // ----------------------------------------------------------------- forward

    fn step(&mut self, inputs: &[Tensor]) -> Result<(), TchError> {
        let code = Arc::clone(&self.code);
        let step = &code.model.step;
        let evaluator = code.evaluator(self.rows);
        let (outputs, penalty, states) = self.graded(|| -> Result<_, TchError> {
            let wanted = |v: compiler::ir::Value| step.ty(v).batched && code.needed[v.index()];
            let values = evaluator.run(&self.prologue, wanted, &mut |source| match source {
                Source::State(s) => Ok(self.states[s.index()].shallow_clone()),
                Source::Input(i) => Ok(inputs[i.index()].shallow_clone()),
                other => unreachable!("a step does not load {other:?}"),
            })?;
            let in_rows = |v: compiler::ir::Value| {
                let known = values[v.index()].as_ref().or(self.prologue[v.index()].as_ref());
                evaluator.in_rows(v, known.expect("every result is evaluated"))
            };
            let output = |k: usize| {
                let result = step.result(Sink::Output(OutputId(k as u32)));
                in_rows(result.expect("every output has a value"))
            };
            let next = |k: usize| match step.result(Sink::State(StateId(k as u32))) {
                Some(v) => in_rows(v),
                None => Ok(self.states[k].shallow_clone()),
            };
            let outputs = (0..code.model.outputs.len()).map(output).collect::<Result<Vec<_>, _>>()?;
            let states = (0..code.model.states.len()).map(next).collect::<Result<Vec<_>, _>>()?;
            let mut penalty = Tensor::f_zeros([self.rows as i64], code.place)?;
            for (_, v) in step.results.iter().filter(|(sink, _)| *sink == Sink::Penalty) {
                penalty = penalty.f_add(&in_rows(*v)?)?;
            }
            Ok((outputs, penalty, states))
        })?;
        if self.keep == Keep::Last {
            self.outputs.clear();
            self.penalties.clear();
        }
        self.outputs.push(outputs);
        self.penalties.push(penalty);
        self.states = states;
        self.steps += 1;
        Ok(())
    }

    // ---------------------------------------------------------------- backward

    fn loss<T: Number>(&self, bars: Cotangents<'_, T>) -> Result<Tensor, TchError> {
        let place = self.code.place;
        let mut loss = Tensor::f_zeros([0i64; 0], place)?;
        for (k, (o, bar)) in self.code.model.outputs.iter().zip(bars.outputs).enumerate() {
            let all: Vec<&Tensor> = self.outputs.iter().map(|step| &step[k]).collect();
            if !all.is_empty() {
                let sizes = [vec![all.len(), self.rows], self.code.sizes.dims(o.shape)].concat();
                let bar = put(bar, &sizes, place)?;
                loss = loss.f_add(&Tensor::f_stack(&all, 0)?.f_mul(&bar)?.f_sum(None)?)?;
            }
        }
        if !self.penalties.is_empty() {
            let bar = put(&[bars.penalty], &[], place)?;
            loss = loss.f_add(&Tensor::f_stack(&self.penalties, 0)?.f_sum(None)?.f_mul(&bar)?)?;
        }
        for (state, bar) in self.states.iter().zip(bars.last.into_iter().flatten()) {
            let bar = put(bar, &[bar.len()], place)?;
            loss = loss.f_add(&state.f_reshape([-1])?.f_mul(&bar)?.f_sum(None)?)?;
        }
        Ok(loss)
    }

    fn gradients<T: Number>(&self) -> Result<Gradients<T>, TchError> {
        let all = |leaves: &[Tensor]| leaves.iter().map(gradient).collect::<Result<Vec<Vec<T>>, TchError>>();
        let params = all(&self.params)?;
        let mut inputs: Vec<Option<Vec<T>>> = vec![];
        for (k, input) in self.code.model.inputs.iter().enumerate() {
            let wanted = self.keep == Keep::Graph { inputs: true } && input.role.is_differentiable();
            let parts = self.inputs.iter().map(|leaves| gradient(&leaves[k]));
            inputs.push(if wanted { Some(parts.collect::<Result<Vec<_>, _>>()?.concat()) } else { None });
        }
        let start = |(step, leaves): &(usize, Vec<Tensor>)| Ok(Start { step: *step, states: all(leaves)? });
        let starts = self.starts.iter().map(start).collect::<Result<_, TchError>>()?;
        Ok(Gradients { params, inputs, starts })
    }
}

/// The gradient of a leaf; zeros if nothing has flowed into it.
fn gradient<T: Number>(leaf: &Tensor) -> Result<Vec<T>, TchError> {
    let gradient = leaf.f_grad()?;
    if gradient.defined() { get(&gradient) } else { Ok(vec![T::ZERO; leaf.numel()]) }
}
