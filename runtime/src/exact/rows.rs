//! `bpm run` row after row, on one tape: on the processor, and on a device where rows are reset apart.

use super::{Job, Results, copy, narrow, widen};
use crate::Error;
use crate::engine::{Bound, Engine, RowState, Tape};
use compiler::ir::{InputId, OutputId};

/// Runs the rows of a job, in 32 bits.
pub(super) fn run(engine: &Engine, job: &Job) -> Result<Results, Error> {
    let (model, sizes) = (engine.model(), engine.sizes());
    let params: Vec<Vec<f32>> = job.params.iter().map(|x| narrow(x)).collect();
    let bound = engine.bind(&params)?;
    let mut tape = engine.tape(job.steps, job.mode(engine));
    let mut grads = engine.grads();
    let mut results = Results::new(model, sizes, job);
    // An empty tensor stands for the state's own initial value.
    let own: Vec<Vec<f64>> = vec![vec![]; model.states.len()];
    for b in 0..job.rows {
        let start = RowState { states: job.initial(own.clone(), b).iter().map(|x| narrow(x)).collect() };
        bound.begin(&mut tape, Some(&start));
        match engine.device() {
            Some(_) => forward(&bound, &mut tape, (job, b), &start, &mut results),
            None => step_by_step(&bound, &mut tape, (job, b), &start, &mut results),
        }
        let last = bound.state(&mut tape).states;
        results.states.iter_mut().zip(last).for_each(|(slot, x)| copy(slot, b, &widen(&x)));
        let Some(cotangents) = &job.cotangents else { continue };
        for t in 0..job.steps {
            for (k, x) in cotangents.iter().enumerate() {
                let slot = bound.output_bar_mut(&mut tape, t, OutputId(k as u32));
                slot.copy_from_slice(&narrow(job.part(x, t, b)));
            }
        }
        bound.backward(&mut tape, &mut grads, 0.0, None);
        for (k, slot) in results.inputs.iter_mut().enumerate() {
            for t in 0..job.steps {
                if let Some(bar) = bound.input_bar(&tape, t, InputId(k as u32)) {
                    copy(slot, t * job.rows + b, &widen(bar));
                }
            }
        }
        let bars = bound.init_bar(&tape).states.into_iter();
        let bars = results.initial.iter_mut().zip(bars).filter(|(_, x)| !x.is_empty());
        bars.for_each(|(slot, x)| copy(slot, b, &widen(&x)));
    }
    results.params = engine.finish(&bound, vec![grads]).iter().map(|x| widen(x)).collect();
    engine.check()?;
    Ok(results)
}

/// A row whose outputs are read as it goes: nothing else of a step is kept if no gradients are wanted.
fn step_by_step(
    bound: &Bound<'_>,
    tape: &mut Tape,
    (job, b): (&Job, usize),
    start: &RowState,
    results: &mut Results,
) {
    for t in 0..job.steps {
        if t > 0 && job.resets_before(t, b) {
            bound.reset(tape, Some(start));
        }
        for (k, x) in job.inputs.iter().enumerate() {
            let slot = bound.input_mut(tape, InputId(k as u32));
            slot.copy_from_slice(&narrow(job.part(x, t, b)));
        }
        bound.step(tape);
        for (k, out) in results.outputs.iter_mut().enumerate() {
            copy(out, t * job.rows + b, &widen(bound.output(tape, t, OutputId(k as u32))));
        }
    }
}

/// A row in the sequences between its resets, as all rows go side by side where they are reset together.
fn forward(
    bound: &Bound<'_>,
    tape: &mut Tape,
    (job, b): (&Job, usize),
    start: &RowState,
    results: &mut Results,
) {
    for part in job.parts(b).windows(2) {
        if part[0] > 0 {
            bound.reset(tape, Some(start));
        }
        bound.forward(tape, part[1] - part[0], &mut |t, input, x| {
            x.copy_from_slice(&narrow(job.part(&job.inputs[input.index()], part[0] + t, b)));
        });
    }
    for (k, out) in results.outputs.iter_mut().enumerate() {
        let id = OutputId(k as u32);
        (0..job.steps).for_each(|t| copy(out, t * job.rows + b, &widen(bound.output(tape, t, id))));
    }
}
