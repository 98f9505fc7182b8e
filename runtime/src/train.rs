//! Training: one update after the other.
//!
//! An update binds the parameters, takes every row of the batch through an episode and back, sums
//! gradients, and moves the parameters. Rows are cut into chunks by a fixed rule, each chunk has
//! its own gradient sums, and chunks are summed in order: the result has the same bits for any
//! number of threads. A thread keeps one tape and uses it for row after row.
//!
//! ```text
//! train        what a run is, and what an update is made of
//!   pass       rows through their episodes and back, on the processor or side by side
//!   resident   whole updates on a device
//!   text       windows and epochs of texts
//!   divergence what is said when a number is not finite
//! ```

mod divergence;
mod pass;
mod resident;
#[cfg(test)]
mod tests;
mod text;

use crate::encoder;
use crate::engine::{Bound, Engine, RowState, Sums, Tape};
use crate::error::Error;
use crate::language;
use crate::learner::{Baseline, Learner, Terms};
use crate::optim::Optimiser;
use crate::params::ParamStore;
use crate::recipe::Recipe;
use crate::rollout::NonFinite;
use crate::spec::Spec;
use crate::timings::{self, Phase, Stopwatch, Timings};
use crate::wiring::Wiring;
use compiler::form::Form;
use pass::{Pass, encoder, stage};
use std::mem::take;

/// A run in memory.
pub struct Trainer {
    /// The spec.
    pub spec: Spec,
    /// The recipe.
    pub recipe: Recipe,
    /// The compiled model.
    pub engine: Engine,
    /// How its plastic matrices are kept.
    pub form: Form,
    /// How task and model are connected.
    pub wiring: Wiring,
    /// The parameters.
    pub params: ParamStore,
    /// The optimiser.
    pub optimiser: Optimiser,
    /// Updates done.
    pub update: u64,
    /// The states of every row that outlive an episode; empty if none does.
    pub carried: Vec<RowState>,
    /// Where the time goes, if it is measured.
    pub timings: Option<Timings>,
    /// What language models need besides.
    pub language: Option<language::Memory>,
    workers: Vec<Worker>,
    tapes: Vec<Tape>,
    /// What trains on a device, if episodes live there.
    resident: Option<resident::Resident>,
}

/// What a thread keeps from update to update.
#[derive(Default)]
struct Worker {
    tape: Option<Tape>,
    watch: Stopwatch,
}

/// What an update did.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Outcome {
    /// Means of the task's scores over rows.
    pub scores: Vec<f64>,
    /// Standard deviation of the first score over rows.
    pub spread: f64,
    /// The loss.
    pub loss: f64,
    /// Mean squared advantage.
    pub value_loss: f64,
    /// Mean entropy of the policy, in nats.
    pub entropy: f64,
    /// Mean penalty of the spec.
    pub penalty: f64,
    /// Norm of the gradient before clipping.
    pub grad_norm: f64,
}

/// What a row contributes to an outcome.
#[derive(Clone, Debug, Default)]
struct RowOutcome {
    scores: Vec<f64>,
    terms: Terms,
    loss: f64,
    penalty: f64,
    state: Option<RowState>,
}

/// What a chunk of rows contributes.
struct Chunk {
    rows: Vec<RowOutcome>,
    /// Gradients of the encoder's weights; empty if there is none.
    encoder: Vec<Vec<f32>>,
}

/// What all rows contribute.
struct Rows {
    all: Vec<RowOutcome>,
    /// Steps of a row.
    steps: usize,
    /// By parameter.
    gradients: Vec<Vec<f32>>,
}

/// A failure in a row.
type RowError = (usize, NonFinite);

impl Trainer {
    /// Sets up a run at its beginning.
    pub fn new(
        spec: Spec,
        recipe: Recipe,
        (engine, form): (Engine, Form),
        wiring: Wiring,
        params: ParamStore,
        threads: usize,
    ) -> Self {
        let optimiser = Optimiser::new(recipe.optimiser, params.raw.iter().map(Vec::len), threads);
        let (batch, seed) = (recipe.schedule.batch, recipe.schedule.seed);
        let language = recipe.task.text().map(|t| language::Memory::new(t.windows(batch, seed)));
        let workers = (0..threads.max(1)).map(|_| Worker::default()).collect();
        Trainer {
            spec,
            recipe,
            engine,
            form,
            wiring,
            params,
            optimiser,
            update: 0,
            carried: vec![],
            timings: None,
            language,
            workers,
            tapes: vec![],
            resident: None,
        }
    }

    /// Does one update.
    ///
    /// # Errors
    /// If a number is not finite; the parameters are those before the update.
    pub fn step(&mut self) -> Result<Outcome, Error> {
        if let Some(timings) = &mut self.timings {
            timings.begin();
        }
        self.board()?;
        if self.resident.is_some() {
            return self.step_on_device();
        }
        let Rows { all: rows, steps, mut gradients } = match self.language.take() {
            None => self.gradients()?,
            Some(mut memory) => {
                let found = self.window(&mut memory);
                self.language = Some(memory);
                found?
            }
        };
        let threads = self.workers.len();
        let before_chain = if self.params.chains() { crate::optim::norm(&gradients, threads) } else { 0.0 };
        self.params.chain(&mut gradients);
        let (grad_norm, factor) = self.optimiser.clip(&gradients);
        if !(before_chain.is_finite() && grad_norm.is_finite()) {
            return Err(self.bad_gradient(&gradients));
        }
        if self.update >= self.recipe.learner.burn_in() {
            let learned: Vec<bool> = self.params.about.iter().map(|a| a.learned).collect();
            let multiple = self.multiple();
            self.optimiser.step(&mut self.params.raw, (&gradients, factor), &learned, multiple);
            if self.averages() {
                self.optimiser.add_to_average(&self.params.raw);
            }
        }
        timings::lap(&mut self.timings, Phase::Optimiser);
        if let Some(memory) = &mut self.language {
            memory.give_back(gradients);
        }
        self.concluded(rows, steps, grad_norm)
    }

    /// What an update did, after which its rows stay where they are.
    fn concluded(&mut self, rows: Vec<RowOutcome>, steps: usize, grad_norm: f64) -> Result<Outcome, Error> {
        self.update += 1;
        let outcome = self.outcome(&rows, steps, grad_norm);
        if rows.iter().all(|r| r.state.is_some()) {
            self.carried = rows.into_iter().filter_map(|r| r.state).collect();
        }
        match outcome.loss.is_finite() {
            true => Ok(outcome),
            false => Err(Error::diverged(format!("update {}: the loss is not finite", self.update))),
        }
    }

    /// The encoder with weights among these parameters, if there is one.
    pub fn encoder<'a>(&'a self, params: &'a ParamStore) -> Option<encoder::Bound<'a>> {
        encoder(&self.engine, &self.recipe, params)
    }

    /// The rows' outcomes and the gradient of the loss with respect to the values of parameters.
    fn gradients(&mut self) -> Result<Rows, Error> {
        self.reset_watches();
        let bound = self.engine.bind(&self.params.values_of(self.engine.model().params.len()))?;
        timings::lap(&mut self.timings, Phase::Parameters);
        let sums = self.engine.sums();
        let (mut workers, mut tapes) = (take(&mut self.workers), take(&mut self.tapes));
        let pass = self.pass(&bound, &sums);
        let done = match &self.recipe.learner {
            _ if self.engine.is_side_by_side() => pass.side_by_side(&mut workers[0]),
            Learner::ActorCritic(a) if a.baseline == Baseline::First => {
                pass.with_shared_baseline(a, &mut workers, &mut tapes)
            }
            _ => pass.row_by_row(&mut workers),
        };
        if let Some(timings) = &mut self.timings {
            timings.collect(workers.iter().map(|w| &w.watch));
        }
        (self.workers, self.tapes) = (workers, tapes);
        self.engine.check()?;
        let Chunk { rows, encoder } = done.map_err(|failure| self.bad_row(failure))?;
        let mut gradients = sums.finish(&bound);
        self.engine.check()?;
        gradients.truncate(self.engine.model().params.len());
        gradients.extend(encoder);
        timings::lap(&mut self.timings, Phase::Gradient);
        Ok(Rows { all: rows, steps: self.recipe.task.steps(), gradients })
    }

    fn reset_watches(&mut self) {
        self.workers.iter_mut().for_each(|w| w.watch.reset(self.timings.as_ref()));
    }

    /// The next update's way through its episodes.
    fn pass<'a>(&'a self, bound: &'a Bound<'a>, sums: &'a Sums<'a>) -> Pass<'a> {
        Pass {
            stage: stage(&self.engine, &self.wiring, &self.recipe, bound, &self.params),
            engine: &self.engine,
            learner: &self.recipe.learner,
            seed: self.recipe.schedule.seed,
            episode: self.update as u32,
            batch: self.recipe.schedule.batch,
            carried: &self.carried,
            sums,
        }
    }

    fn outcome(&self, rows: &[RowOutcome], steps: usize, grad_norm: f64) -> Outcome {
        let count = rows.len() as f64;
        let moments = count * steps as f64;
        let mean = |f: &dyn Fn(&RowOutcome) -> f64| rows.iter().map(f).sum::<f64>() / count;
        let scores: Vec<f64> =
            (0..self.recipe.task.scores().len()).map(|k| mean(&|r: &RowOutcome| r.scores[k])).collect();
        let spread = mean(&|r: &RowOutcome| (r.scores[0] - scores[0]).powi(2)).sqrt();
        let mut terms = Terms::default();
        rows.iter().for_each(|r| terms.add(&r.terms));
        let penalty = rows.iter().map(|r| r.penalty).sum::<f64>() / moments;
        Outcome {
            spread,
            loss: mean(&|r: &RowOutcome| r.loss) + penalty,
            value_loss: terms.value / moments,
            entropy: terms.entropy / moments,
            penalty,
            grad_norm,
            scores,
        }
    }
}
