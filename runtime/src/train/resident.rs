//! Updates that live on a device: what a recipe is to the engine, and updates without a transfer per step.
//!
//! A task brings its world as code for a device ([`Task::device`](crate::task::Task::device)), and the learner says what is
//! asked of the network ([`Aim`]); the engine runs the world between the steps of the network, or before and after them
//! where all inputs are known ([`crate::engine::device::Training`]). Parameters and the optimiser's memory live on the
//! device, too, and the trainer's own are behind until [`Trainer::settle`]. Whatever has no such code, and whatever an
//! encoder of the processor shows, keeps to the path on which the processor answers steps and makes losses.

use super::pass::Pass;
use super::{Outcome, RowError, RowOutcome, Trainer, Worker};
use crate::engine::device::{
    self, Aim, Loss, Motion, Parameter, Plan, Results, RowResult, Update, Weights, World,
};
use crate::engine::{EngineError, Mode, RowState};
use crate::error::Error;
use crate::learner::{Baseline, Form, Learner, Terms};
use crate::optim::Rule;
use crate::params::About;
use crate::rollout::{NonFinite, Place, carries};
use crate::setup;
use crate::task::{DeviceTask, Goal};
use crate::timings::{self, Phase};
use compiler::loops::plan::Use;
use std::mem::take;

/// Training on a device.
#[derive(Default)]
pub(super) struct Resident {
    /// Made for the first update, when parameters are those to begin with.
    training: Option<device::Training>,
    /// Whether the device's parameters have moved since the trainer's were written.
    is_ahead: bool,
}

impl Trainer {
    /// Lets episodes live on the device from the first update on, where the task and the model allow it. Says what runs
    /// where; nothing on a processor.
    ///
    /// # Errors
    /// If the device has too little memory.
    pub fn reside(&mut self) -> Result<Option<String>, Error> {
        let Some(device) = self.engine.device() else { return Ok(None) };
        let name = device.about().name.clone();
        let stays = |why: &str| {
            Ok(Some(format!(
                "on {name} runs the network; the task, losses and the optimiser stay on the processor: {why}"
            )))
        };
        if !self.recipe.encoder.layers.is_empty() {
            return stays("images are encoded there");
        }
        let Some((task, aim)) = self.device_task() else {
            return stays(&format!("task {} has no code for devices", self.recipe.task_name));
        };
        let (parameters, values) = (self.about_parameters(), self.params.values());
        let motion = self.motion(&parameters, &values);
        let beside = |usage: &Use| {
            self.engine.training_bytes(&self.plan((&task, aim), (usage.batch, usage.steps), motion))
        };
        let mut need = setup::need(&self.engine, &self.recipe, self.workers.len(), Mode::Train);
        need.beside = Some(&beside);
        need.check(None)?;
        self.resident = Some(Resident::default());
        Ok(Some(format!(
            "on {name} run the network, the task, losses and the optimiser: one transfer each way per update"
        )))
    }

    /// The task as code for devices, and what it asks of the network; nothing if it has none.
    fn device_task(&self) -> Option<(DeviceTask, Aim)> {
        let (wiring, task) = (&self.wiring, self.recipe.task.device()?);
        let matches = |loss| Aim::Match { label: wiring.label, output: wiring.output, loss };
        let aim = match &self.recipe.learner {
            Learner::ActorCritic(learner) => Aim::Act {
                reward: wiring.reward,
                policy: wiring.output,
                value: wiring.value?,
                weights: Weights {
                    gamma: learner.gamma,
                    value: learner.value,
                    entropy: learner.entropy,
                    shared_baseline: learner.baseline == Baseline::First,
                },
            },
            Learner::SquaredError(_) => matches(Loss::Squared),
            Learner::CrossEntropy(learner) => matches(match learner.form {
                Form::Categorical => Loss::Categorical,
                Form::Binary => Loss::Binary,
            }),
            Learner::NextWord(_) => return None,
        };
        Some((task, aim))
    }

    /// Compiles kernels and takes memory, if that has not been done.
    ///
    /// # Errors
    /// If the device refuses.
    pub(super) fn board(&mut self) -> Result<(), Error> {
        let Some(Resident { training: None, .. }) = self.resident else { return Ok(()) };
        let Some((task, aim)) = self.device_task() else { return Ok(()) };
        let (parameters, values) = (self.about_parameters(), self.params.values());
        let size = (self.recipe.schedule.batch, self.recipe.task.steps());
        let plan = self.plan((&task, aim), size, self.motion(&parameters, &values));
        let training = self.engine.training(&plan)?;
        self.resident = training.map(|t| Resident { training: Some(t), is_ahead: false });
        timings::lap(&mut self.timings, Phase::Parameters);
        Ok(())
    }

    fn plan<'a>(
        &self,
        (task, aim): (&'a DeviceTask, Aim),
        (rows, steps): (usize, usize),
        motion: Motion<'a>,
    ) -> Plan<'a> {
        let world = World {
            source: task.source,
            ints: &task.ints,
            floats: &task.floats,
            doubles: &task.doubles,
            row_ints: task.row_ints,
            row_floats: task.row_floats,
        };
        Plan { world, input: self.wiring.input, aim, rows, steps, motion }
    }

    /// What a device must know of the parameters.
    fn about_parameters(&self) -> Vec<Parameter> {
        let one = |a: &About| Parameter { learned: a.learned, range: a.range, gradscale: a.gradscale };
        self.params.about.iter().map(one).collect()
    }

    /// How parameters move, which have these values now.
    fn motion<'a>(&'a self, parameters: &'a [Parameter], values: &'a [Vec<f32>]) -> Motion<'a> {
        let optimiser = &self.recipe.optimiser;
        Motion {
            parameters,
            raw: &self.params.raw,
            values,
            memory: self.optimiser.memory(),
            adam: matches!(optimiser.rule, Rule::Adam { .. }),
            numbers: optimiser.numbers(1, 1.0),
            clip: optimiser.clip,
        }
    }

    /// Brings parameters and the optimiser's memory back from the device, if they have moved there.
    ///
    /// # Errors
    /// If the device fails.
    pub fn settle(&mut self) -> Result<(), Error> {
        let Some(resident) = self.resident.as_mut().filter(|r| r.is_ahead) else { return Ok(()) };
        let fetched = resident.training.as_ref().map(device::Training::fetch).transpose();
        if let Some([raw, mean, square]) = fetched.map_err(EngineError::from)? {
            self.params.raw = raw;
            for (to, from) in self.optimiser.memory_mut().into_iter().zip([mean, square]) {
                to.iter_mut().zip(from).for_each(|(to, from)| *to = from);
            }
        }
        resident.is_ahead = false;
        Ok(())
    }

    /// An update of which everything happens on the device.
    pub(super) fn step_on_device(&mut self) -> Result<Outcome, Error> {
        let learns = self.update >= self.recipe.learner.burn_in();
        let numbers = self.recipe.optimiser.numbers(self.optimiser.steps() + 1, 1.0);
        let update = Update {
            seed: self.recipe.schedule.seed,
            episode: self.update as u32,
            learns: i32::from(learns),
            rate: numbers.rate,
            root: numbers.root,
        };
        let Some(Resident { training: Some(mut training), .. }) = self.resident.take() else {
            return Err(Error::device("no parameters live on the device"));
        };
        self.reset_watches();
        let mut workers = take(&mut self.workers);
        let bound = self.engine.bind_trained(&training);
        let (results, rows) =
            self.pass(&bound, &self.engine.sums()).live(&mut workers[0], (&mut training, update));
        drop(bound);
        if let Some(timings) = &mut self.timings {
            timings.collect(workers.iter().map(|w| &w.watch));
        }
        self.workers = workers;
        self.resident = Some(Resident { training: Some(training), is_ahead: true });
        self.engine.check()?;
        if rows.is_err() || !results.finite {
            self.settle()?;
        }
        let rows = rows.map_err(|failure| self.bad_row(failure))?;
        if !results.finite {
            let training = self.resident.as_ref().and_then(|r| r.training.as_ref());
            let gradients = training.map(device::Training::gradients).transpose();
            return Err(self.bad_gradient(&gradients.map_err(EngineError::from)?.unwrap_or_default()));
        }
        if learns {
            self.optimiser.set_steps(self.optimiser.steps() + 1);
        }
        let outcome = self.concluded(rows, self.recipe.task.steps(), results.norm);
        timings::lap(&mut self.timings, Phase::Losses);
        outcome
    }
}

impl Pass<'_> {
    /// An episode of all rows, and what it leaves on the device.
    fn live(
        &self,
        Worker { tape, watch }: &mut Worker,
        training: (&mut device::Training, Update),
    ) -> (Results, Result<Vec<RowOutcome>, RowError>) {
        watch.start();
        let (stage, steps) = (&self.stage, self.stage.task.steps());
        let tape = tape.get_or_insert_with(|| self.engine.team_tape(steps, Mode::Train, self.batch));
        let starts: Vec<Option<RowState>> =
            (0..self.batch).map(|row| stage.start(self.address(row), self.carried.get(row))).collect();
        stage.bound.begin_team(tape, &starts.iter().map(Option::as_ref).collect::<Vec<_>>());
        watch.lap(Phase::Environment);
        let mut draw = |row: usize, t: usize, id, x: &mut [f32]| self.draw(row, t, id, x);
        let noise: Option<&mut crate::engine::TeamInputs<'_>> =
            if stage.wiring.noise.is_empty() { None } else { Some(&mut draw) };
        let results = stage.bound.train_episode(tape, training, noise);
        watch.lap(Phase::Device);
        if let Some(broken) = self.first_broken(&results) {
            return (results, Err(broken));
        }
        let keeps = carries(stage.model);
        let mut rows: Vec<RowOutcome> = results.rows.iter().map(|r| self.lived(r)).collect();
        for (row, outcome) in rows.iter_mut().enumerate().filter(|_| keeps) {
            stage.bound.select(tape, row);
            outcome.state = Some(stage.bound.state(tape));
        }
        (results, Ok(rows))
    }

    /// The first row whose output is not finite: of the first step where rows act side by side, else the first of all.
    fn first_broken(&self, results: &Results) -> Option<RowError> {
        let acts = matches!(self.stage.task.goal(), Goal::Act(_));
        let rows = results.rows.iter().enumerate().filter_map(|(row, r)| Some((r.broken?, row)));
        let (step, row) = rows.min_by_key(|(step, row)| (if acts { *step } else { 0 }, *row))?;
        Some((row, NonFinite { step, at: Place::Output(self.stage.wiring.output) }))
    }

    /// Noise that the world does not show.
    fn draw(&self, row: usize, t: usize, wanted: compiler::ir::InputId, x: &mut [f32]) {
        self.stage.wiring.draw_noise(self.stage.sizes, self.address(row), t, |id, noise| {
            if id == wanted {
                x.iter_mut().zip(noise).for_each(|(slot, x)| *slot = x as f32);
            }
        });
    }

    fn lived(&self, r: &RowResult) -> RowOutcome {
        let [policy, squares, value, entropy] = r.terms;
        let (terms, loss) = match self.learner {
            Learner::ActorCritic(a) => {
                let terms = Terms { policy, squares, value, entropy };
                (terms, a.loss(&terms) / self.stage.task.steps() as f64)
            }
            Learner::SquaredError(_) | Learner::NextWord(_) | Learner::CrossEntropy(_) => {
                (Terms::default(), r.terms[0])
            }
        };
        let scores = r.scores[..self.stage.task.scores().len().min(r.scores.len())].to_vec();
        RowOutcome { scores, terms, loss, penalty: r.penalty, state: None }
    }
}

#[cfg(test)]
mod tests;
