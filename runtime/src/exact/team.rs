//! `bpm run` on a device: all rows at once.

use super::{Job, Results, copy, narrow, widen};
use crate::Error;
use crate::engine::{Bound, Engine, RowState, Tape};
use compiler::ir::{InputId, OutputId};

/// Runs all rows side by side; they return to their initial values at the same steps.
pub(super) fn run(engine: &Engine, job: &Job) -> Result<Results, Error> {
    let (model, sizes) = (engine.model(), engine.sizes());
    let params: Vec<Vec<f32>> = job.params.iter().map(|x| narrow(x)).collect();
    let bound = engine.bind(&params)?;
    let mut tape = engine.team_tape(job.steps, job.mode(engine), job.rows);
    let mut grads = engine.grads();
    let mut results = Results::new(model, sizes, job);
    forward(&bound, &mut tape, job);
    for b in 0..job.rows {
        bound.select(&mut tape, b);
        for (k, out) in results.outputs.iter_mut().enumerate() {
            let id = OutputId(k as u32);
            (0..job.steps).for_each(|t| copy(out, t * job.rows + b, &widen(bound.output(&tape, t, id))));
        }
        let last = bound.state(&mut tape).states;
        results.states.iter_mut().zip(last).for_each(|(slot, x)| copy(slot, b, &widen(&x)));
        for (k, x) in job.cotangents.iter().flatten().enumerate() {
            for t in 0..job.steps {
                let slot = bound.output_bar_mut(&mut tape, t, OutputId(k as u32));
                slot.copy_from_slice(&narrow(job.part(x, t, b)));
            }
        }
    }
    if job.cotangents.is_some() {
        bound.backward(&mut tape, &mut grads, 0.0, None);
        for b in 0..job.rows {
            bound.select(&mut tape, b);
            gradients(&bound, &tape, job, b, &mut results);
        }
    }
    results.params = engine.finish(&bound, vec![grads]).iter().map(|x| widen(x)).collect();
    engine.check()?;
    Ok(results)
}

fn forward(bound: &Bound<'_>, tape: &mut Tape, job: &Job) {
    let own = vec![vec![]; bound.engine().model().states.len()];
    let start = |b: usize| job.initial(own.clone(), b).iter().map(|x| narrow(x)).collect();
    let starts: Vec<RowState> = (0..job.rows).map(|b| RowState { states: start(b) }).collect();
    let starts: Vec<Option<&RowState>> = starts.iter().map(Some).collect();
    bound.begin_team(tape, &starts);
    for part in job.parts(0).windows(2) {
        if part[0] > 0 {
            bound.reset_team(tape, &starts);
        }
        let mut inputs = |b: usize, t: usize, input: InputId, x: &mut [f32]| {
            x.copy_from_slice(&narrow(job.part(&job.inputs[input.index()], part[0] + t, b)));
        };
        bound.forward_team(tape, part[1] - part[0], &mut inputs);
    }
}

/// The cotangents of the inputs and of the initial states of the selected row.
fn gradients(bound: &Bound<'_>, tape: &Tape, job: &Job, b: usize, results: &mut Results) {
    for (k, slot) in results.inputs.iter_mut().enumerate() {
        for t in 0..job.steps {
            if let Some(bar) = bound.input_bar(tape, t, InputId(k as u32)) {
                copy(slot, t * job.rows + b, &widen(bar));
            }
        }
    }
    let bars = bound.init_bar(tape).states.into_iter();
    let bars = results.initial.iter_mut().zip(bars).filter(|(_, x)| !x.is_empty());
    bars.for_each(|(slot, x)| copy(slot, b, &widen(&x)));
}
