//! The forward and backward pass of one update, row by row on the processor or side by side: episodes, the
//! cotangents that losses give outputs, and gradients summed by chunks.

use super::{Chunk, RowError, RowOutcome, Worker};
use crate::encoder;
use crate::engine::{Bound, Engine, Grads, Mode, RowState, Sums, Tape};
use crate::learner::{ActorCritic, Baseline, CrossEntropy, Learner, SquaredError, Terms};
use crate::parallel;
use crate::params::ParamStore;
use crate::recipe::Recipe;
use crate::rng::{Address, Domain};
use crate::rollout::{Choice, Record, Stage, advantages, carries};
use crate::timings::{Phase, Stopwatch};
use crate::wiring::Wiring;
use std::ops::Range;

pub(super) fn stage<'a>(
    engine: &'a Engine,
    wiring: &'a Wiring,
    recipe: &'a Recipe,
    bound: &'a Bound<'a>,
    params: &'a ParamStore,
) -> Stage<'a> {
    let encoder = encoder(engine, recipe, params);
    Stage { bound, model: engine.model(), sizes: engine.sizes(), wiring, task: &*recipe.task, encoder }
}

/// The encoder, whose weights follow the parameters of the spec.
pub(super) fn encoder<'a>(
    engine: &Engine,
    recipe: &'a Recipe,
    params: &'a ParamStore,
) -> Option<encoder::Bound<'a>> {
    let weights = &params.raw[engine.model().params.len()..];
    let encoder = &recipe.encoder;
    (!encoder.layers.is_empty()).then_some(encoder::Bound { encoder, weights })
}

/// The forward and backward pass of one update.
pub(super) struct Pass<'a> {
    pub(super) stage: Stage<'a>,
    pub(super) engine: &'a Engine,
    pub(super) learner: &'a Learner,
    pub(super) seed: u64,
    pub(super) episode: u32,
    pub(super) batch: usize,
    pub(super) carried: &'a [RowState],
    pub(super) sums: &'a Sums<'a>,
}

type Outcomes = Result<Chunk, RowError>;

impl Pass<'_> {
    pub(super) fn address(&self, row: usize) -> Address {
        Address { seed: self.seed, domain: Domain::Train, episode: self.episode, row: row as u32 }
    }

    /// The weight of a step of a row in the loss.
    fn share(&self) -> f64 {
        1.0 / (self.batch as f64 * self.stage.task.steps() as f64)
    }

    fn forward(&self, row: usize, tape: &mut Tape, watch: &mut Stopwatch) -> Result<Record, RowError> {
        let carried = self.carried.get(row);
        self.stage.run(tape, self.address(row), carried, Choice::Sample, watch).map_err(|e| (row, e))
    }

    /// The ordinary case: a row's loss needs only the row. One tape per thread.
    pub(super) fn row_by_row(&self, workers: &mut [Worker]) -> Outcomes {
        let work = |Worker { tape, watch }: &mut Worker, (number, rows): (usize, Range<usize>)| {
            watch.start();
            let tape = tape.get_or_insert_with(|| self.engine.tape(self.stage.task.steps(), Mode::Train));
            let mut grads = self.sums.zeros();
            let mut chunk = self.chunk();
            watch.lap(Phase::Backward);
            for row in rows {
                let record = self.forward(row, tape, watch)?;
                chunk.rows.push(self.backward((tape, watch), &record, &record.values, None, &mut grads));
                self.encoder_backward(tape, &record, &mut chunk.encoder);
                watch.lap(Phase::Backward);
            }
            self.sums.add(number, grads);
            watch.lap(Phase::Gradient);
            Ok(chunk)
        };
        let chunks = parallel::chunks(self.batch).into_iter().enumerate().collect();
        gather(parallel::run(workers, chunks, work))
    }

    /// All rows use the values of row 0, and row 0's value head is trained by all: two phases, and a
    /// tape per row.
    pub(super) fn with_shared_baseline(
        &self,
        learner: &ActorCritic,
        workers: &mut [Worker],
        tapes: &mut Vec<Tape>,
    ) -> Outcomes {
        while tapes.len() < self.batch {
            tapes.push(self.engine.tape(self.stage.task.steps(), Mode::Train));
        }
        let jobs: Vec<(usize, &mut Tape)> = tapes.iter_mut().enumerate().collect();
        let forward = |worker: &mut Worker, (row, tape): (usize, &mut Tape)| {
            worker.watch.start();
            self.forward(row, tape, &mut worker.watch)
        };
        let records: Result<Vec<Record>, RowError> =
            parallel::run(workers, jobs, forward).into_iter().collect();
        let records = records?;
        let shared = SharedBaseline::new(learner, &records);
        let mut rest = tapes.as_mut_slice();
        let mut jobs = vec![];
        for (number, rows) in parallel::chunks(self.batch).into_iter().enumerate() {
            let (head, tail) = rest.split_at_mut(rows.len());
            jobs.push((number, rows, head));
            rest = tail;
        }
        type Job<'a> = (usize, Range<usize>, &'a mut [Tape]);
        let work = |Worker { watch, .. }: &mut Worker, (number, rows, tapes): Job<'_>| {
            watch.start();
            let mut grads = self.sums.zeros();
            let outcome = |(row, tape): (usize, &mut Tape)| {
                let held = Some(shared.held(row));
                self.backward((tape, watch), &records[row], &shared.baseline, held, &mut grads)
            };
            let rows = rows.zip(tapes).map(outcome).collect();
            self.sums.add(number, grads);
            Ok(Chunk { rows, ..self.chunk() })
        };
        gather(parallel::run(workers, jobs, work))
    }

    /// On a device or libtorch: all rows side by side on one tape, forward and backward.
    pub(super) fn side_by_side(&self, Worker { tape, watch }: &mut Worker) -> Outcomes {
        watch.start();
        let steps = self.stage.task.steps();
        let tape = tape.get_or_insert_with(|| self.engine.team_tape(steps, Mode::Train, self.batch));
        let mut grads = self.sums.zeros();
        let addresses: Vec<Address> = (0..self.batch).map(|row| self.address(row)).collect();
        let carried: Vec<Option<&RowState>> = (0..self.batch).map(|row| self.carried.get(row)).collect();
        let records = self.stage.run_team(tape, &addresses, &carried, Choice::Sample, watch)?;
        let shared = match self.learner {
            Learner::ActorCritic(a) if a.baseline == Baseline::First => {
                Some(SharedBaseline::new(a, &records))
            }
            Learner::ActorCritic(_)
            | Learner::SquaredError(_)
            | Learner::NextWord(_)
            | Learner::CrossEntropy(_) => None,
        };
        let mut chunk = self.chunk();
        for (row, record) in records.iter().enumerate() {
            self.stage.bound.select(tape, row);
            let baseline = shared.as_ref().map_or(&record.values, |s| &s.baseline);
            let held = shared.as_ref().map(|s| s.held(row));
            chunk.rows.push(self.losses(tape, record, baseline, held));
        }
        watch.lap(Phase::Losses);
        self.stage.bound.backward(tape, &mut grads, self.share() as f32, None);
        self.sums.add(0, grads);
        for (row, record) in records.iter().enumerate() {
            self.stage.bound.select(tape, row);
            self.encoder_backward(tape, record, &mut chunk.encoder);
        }
        watch.lap(Phase::Backward);
        Ok(chunk)
    }

    /// Writes the cotangents of a row and runs its backward pass. `value_advantages` says what the
    /// row's value output is held against, if not its own advantages.
    fn backward(
        &self,
        (tape, watch): (&mut Tape, &mut Stopwatch),
        record: &Record,
        baseline: &[f32],
        value_advantages: Option<&Vec<f64>>,
        grads: &mut Grads,
    ) -> RowOutcome {
        let row = self.losses(tape, record, baseline, value_advantages);
        watch.lap(Phase::Losses);
        self.stage.bound.backward(tape, grads, self.share() as f32, None);
        watch.lap(Phase::Backward);
        row
    }

    /// Writes the cotangents of a row.
    fn losses(
        &self,
        tape: &mut Tape,
        record: &Record,
        baseline: &[f32],
        value_advantages: Option<&Vec<f64>>,
    ) -> RowOutcome {
        let mut row = RowOutcome { scores: record.scores.clone(), ..RowOutcome::default() };
        row.penalty =
            (0..self.stage.task.steps()).map(|t| f64::from(self.stage.bound.penalty(tape, t))).sum();
        row.state = carries(self.stage.model).then(|| self.stage.bound.state(tape));
        match self.learner {
            Learner::ActorCritic(a) => {
                let found = advantages(a, record, baseline);
                let held = value_advantages.unwrap_or(&found);
                row.terms = self.policy_cotangents(a, tape, &record.actions, &found, held);
                row.loss = a.loss(&row.terms) / self.stage.task.steps() as f64;
            }
            Learner::SquaredError(s) => self.error_cotangents(*s, tape, record, &mut row),
            Learner::CrossEntropy(c) => self.class_cotangents(*c, tape, record, &mut row),
            Learner::NextWord(_) => {}
        }
        row
    }

    fn chunk(&self) -> Chunk {
        let encoder = self.stage.encoder.map_or(vec![], |e| e.encoder.zeros());
        Chunk { rows: vec![], encoder }
    }

    /// Adds what a row gives to the gradients of the encoder, after its backward pass.
    fn encoder_backward(&self, tape: &Tape, record: &Record, gradients: &mut [Vec<f32>]) {
        let (Some(encoder), Some(encoded)) = (self.stage.encoder, &record.encoded) else { return };
        let (steps, input) = (self.stage.task.steps(), self.stage.wiring.input);
        let each = encoder.encoder.features().unwrap_or(0);
        let mut bar = vec![0.0; steps * each];
        for (t, to) in bar.chunks_mut(each.max(1)).enumerate() {
            if let Some(from) = self.stage.bound.input_bar(tape, t, input) {
                to.copy_from_slice(from);
            }
        }
        encoder.backward(&encoded.images, steps, &encoded.activations, bar, gradients);
    }

    /// `held` are the advantages that train the value.
    fn policy_cotangents(
        &self,
        learner: &ActorCritic,
        tape: &mut Tape,
        actions: &[usize],
        advantages: &[f64],
        held: &[f64],
    ) -> Terms {
        let (bound, wiring) = (self.stage.bound, self.stage.wiring);
        let mut terms = Terms::default();
        for (t, (&action, &advantage)) in actions.iter().zip(advantages).enumerate() {
            let logits = bound.output(tape, t, wiring.output).to_vec();
            terms.add(&learner.terms(&logits, action, advantage));
            let bar = bound.output_bar_mut(tape, t, wiring.output);
            learner.logits_bar(&logits, action, advantage, self.share(), bar);
            if let Some(id) = wiring.value {
                bound.output_bar_mut(tape, t, id)[0] = learner.value_bar(held[t], self.share());
            }
        }
        terms
    }

    fn class_cotangents(
        &self,
        learner: CrossEntropy,
        tape: &mut Tape,
        record: &Record,
        row: &mut RowOutcome,
    ) {
        let (bound, id) = (self.stage.bound, self.stage.wiring.output);
        for (t, target) in &record.targets {
            let logits = bound.output(tape, *t, id).to_vec();
            row.loss += learner.loss(&logits, target);
            let bar = bound.output_bar_mut(tape, *t, id);
            learner.logits_bar(&logits, target, 1.0 / self.batch as f64, bar);
        }
    }

    fn error_cotangents(
        &self,
        learner: SquaredError,
        tape: &mut Tape,
        record: &Record,
        row: &mut RowOutcome,
    ) {
        let (bound, id) = (self.stage.bound, self.stage.wiring.output);
        for (t, target) in &record.targets {
            let output = bound.output(tape, *t, id).to_vec();
            row.loss += learner.loss(&output, target);
            let bar = bound.output_bar_mut(tape, *t, id);
            learner.output_bar(&output, target, 1.0 / self.batch as f64, bar);
        }
    }
}

/// The values of row 0 as the baseline of all rows.
struct SharedBaseline {
    baseline: Vec<f32>,
    /// The sums of all rows' advantages, which train the value head of row 0.
    pooled: Vec<f64>,
    zeros: Vec<f64>,
}

impl SharedBaseline {
    fn new(learner: &ActorCritic, records: &[Record]) -> SharedBaseline {
        let baseline = records.first().map(|r| r.values.clone()).unwrap_or_default();
        let mut pooled = vec![0.0; baseline.len()];
        for record in records {
            for (sum, advantage) in pooled.iter_mut().zip(advantages(learner, record, &baseline)) {
                *sum += advantage;
            }
        }
        let zeros = vec![0.0; pooled.len()];
        SharedBaseline { baseline, pooled, zeros }
    }

    /// What the value output of a row is held against.
    fn held(&self, row: usize) -> &Vec<f64> {
        if row == 0 { &self.pooled } else { &self.zeros }
    }
}

/// Rows in order, and the sums of the chunks' gradients, added in order.
fn gather(chunks: Vec<Outcomes>) -> Outcomes {
    let mut all = Chunk { rows: vec![], encoder: vec![] };
    for chunk in chunks {
        let Chunk { mut rows, encoder } = chunk?;
        all.rows.append(&mut rows);
        match all.encoder.is_empty() {
            true => all.encoder = encoder,
            false => {
                let pairs = all.encoder.iter_mut().flatten().zip(encoder.iter().flatten());
                pairs.for_each(|(sum, x)| *sum += x);
            }
        }
    }
    Ok(all)
}
