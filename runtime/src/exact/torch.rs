//! `bpm run` on libtorch: all rows at once, in either width, each with its own resets.

use super::{Dtype, Job, Results};
use crate::Error;
use crate::engine::{EngineError, FlushDenormals};
use ::torch::{Code, Cotangents, Fault, Gradients, Keep, Place, Tape, Width};
use compiler::ir::Sizes;
use compiler::model::{Init, Model};
use std::sync::Arc;

/// Runs a batch. Numbers cross in 64 bits.
pub(super) fn run(
    model: &Arc<Model>,
    sizes: &Sizes,
    job: &Job,
    dtype: Dtype,
    place: Place,
) -> Result<Results, Error> {
    // Single precision flushes denormals everywhere.
    let (width, _flush) = match dtype {
        Dtype::F32 => (Width::Single, Some(FlushDenormals::start())),
        Dtype::F64 => (Width::Double, None),
    };
    let found = Code::new(Arc::clone(model), sizes.clone(), width, place)
        .and_then(|code| batch(&Arc::new(code), model, sizes, job));
    Ok(found.map_err(EngineError::from)?)
}

fn batch(code: &Arc<Code>, model: &Model, sizes: &Sizes, job: &Job) -> Result<Results, Fault> {
    let keep = if job.cotangents.is_some() { Keep::Graph { inputs: true } } else { Keep::Outputs };
    let mut tape = Tape::new(code, job.rows, keep);
    let params: Vec<&[f64]> = job.params.iter().map(Vec::as_slice).collect();
    let states = initial(model, sizes, job);
    tape.begin(&params, &states)?;
    let cells = |x: &Vec<f64>, t: usize| {
        let each = x.len() / job.steps;
        x[t * each..(t + 1) * each].to_vec()
    };
    for t in 0..job.steps {
        let rows: Vec<bool> = (0..job.rows).map(|b| t > 0 && job.resets_before(t, b)).collect();
        if rows.contains(&true) {
            tape.reset(Some(&rows), &states)?;
        }
        let inputs: Vec<Vec<f64>> = job.inputs.iter().map(|x| cells(x, t)).collect();
        tape.forward(1, &inputs)?;
    }
    let mut results = Results::new(model, sizes, job);
    for (k, slot) in results.outputs.iter_mut().enumerate() {
        *slot = tape.outputs(k, job.steps)?;
    }
    results.states = tape.states()?;
    if let Some(cotangents) = &job.cotangents {
        let bars = Cotangents { outputs: cotangents, penalty: 0.0, last: None };
        take(tape.backward(bars)?, model, job, &mut results);
    }
    Ok(results)
}

/// The states at the start, by state, `[rows, axes…]`.
fn initial(model: &Model, sizes: &Sizes, job: &Job) -> Vec<Vec<f64>> {
    let own = |init: &Init, count: usize| match init {
        Init::Constant(c) => vec![c.eval(sizes); count],
        Init::Param(p) => job.params[p.index()].clone(),
        // Those that are drawn must be given.
        Init::Uniform(..) | Init::Normal(..) | Init::FanIn(_) | Init::Orthogonal(_) => vec![0.0; count],
    };
    let one = |(s, given): (&compiler::model::State, &Option<Vec<f64>>)| match given {
        Some(given) => given.clone(),
        None => own(&s.init, sizes.count(s.shape)).repeat(job.rows),
    };
    model.states.iter().zip(&job.initial).map(one).collect()
}

/// Gradients, by parameter, input and initial state; a learned initial value that was not replaced by a given one
/// gets the sum over rows.
fn take(found: Gradients<f64>, model: &Model, job: &Job, results: &mut Results) {
    results.params = found.params;
    for (slot, bars) in results.inputs.iter_mut().zip(found.inputs) {
        slot.iter_mut().zip(bars.into_iter().flatten()).for_each(|(s, x)| *s = x);
    }
    for start in &found.starts {
        for (sum, bars) in results.initial.iter_mut().zip(&start.states) {
            sum.iter_mut().zip(bars).for_each(|(s, x)| *s += x);
        }
    }
    for (k, state) in model.states.iter().enumerate() {
        let Init::Param(p) = state.init else { continue };
        if model.params[p.index()].learned && job.initial[k].is_none() {
            let sum = &mut results.params[p.index()];
            for row in results.initial[k].chunks(sum.len().max(1)) {
                sum.iter_mut().zip(row).for_each(|(s, x)| *s += x);
            }
        }
    }
}
