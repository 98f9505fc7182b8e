//! Episodes that live on a device: what a recipe is to the engine, and updates without a transfer per step.
//!
//! A task brings its world as code for a device ([`Task::device`](crate::task::Task::device)); the engine runs it between the
//! steps of the network ([`crate::engine::device::Training`]). Where the model allows it, parameters and the
//! optimiser's memory live on the device, too, and the trainer's own are behind until [`Trainer::settle`].
//! Whatever has no such code keeps to the path on which the processor answers every step.

use super::{Chunk, NonFinite, Outcome, Outcomes, Pass, Place, RowError, RowOutcome, Trainer, Worker, stage};
use crate::engine::device::{
    self, Motion, Parameter, Plan, Results, RowResult, Update, Weights, Wires, World,
};
use crate::engine::{EngineError, Grads, Mode, RowState, Tape};
use crate::error::Error;
use crate::learner::{ActorCritic, Baseline, Learner, Terms};
use crate::optim::Rule;
use crate::rollout::carries;
use crate::setup;
use crate::task::DeviceTask;
use crate::timings::{self, Phase, Stopwatch};
use compiler::loops::plan::Use;

/// Training on a device.
pub(super) struct Resident {
    part: Part,
    /// Made for the first update, when parameters are those to begin with.
    training: Option<device::Training>,
    /// Whether the device's parameters have moved since the trainer's were written.
    is_ahead: bool,
}

impl Resident {
    /// Whether parameters live on the device.
    pub(super) fn descends(&self) -> bool {
        self.part == Part::EpisodesAndOptimiser
    }
}

/// Whether the optimiser runs on the device, too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    Episodes,
    EpisodesAndOptimiser,
}

/// What of training is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wanted {
    Room,
    Kernels,
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
        let (Some(task), Learner::ActorCritic(learner)) = (self.recipe.task.device(), &self.recipe.learner)
        else {
            return stays(&format!("task {} has no code for devices", self.recipe.task_name));
        };
        let part = if self.engine.descends() { Part::EpisodesAndOptimiser } else { Part::Episodes };
        self.training((&task, learner), part, Wanted::Room)?;
        self.resident = Some(Resident { part, training: None, is_ahead: false });
        Ok(Some(match part {
            Part::EpisodesAndOptimiser => format!(
                "on {name} run the network, the task, losses and the optimiser: one transfer each way per update"
            ),
            Part::Episodes => format!(
                "on {name} run the network, the task and losses; the optimiser stays on the processor, because a \
                 state of the spec starts at a learned matrix, or keeps what it learned for several episodes"
            ),
        }))
    }

    /// Compiles kernels and takes memory, if that has not been done.
    ///
    /// # Errors
    /// If the device refuses.
    pub(super) fn board(&mut self) -> Result<(), Error> {
        let Some(Resident { part, training: None, .. }) = self.resident else { return Ok(()) };
        let (Some(task), Learner::ActorCritic(learner)) = (self.recipe.task.device(), &self.recipe.learner)
        else {
            return Ok(());
        };
        let training = self.training((&task, learner), part, Wanted::Kernels)?;
        self.resident = training.map(|t| Resident { part, training: Some(t), is_ahead: false });
        timings::lap(&mut self.timings, Phase::Parameters);
        Ok(())
    }

    /// Looks whether there is room for training, or makes it.
    fn training(
        &self,
        of: (&DeviceTask, &ActorCritic),
        part: Part,
        wanted: Wanted,
    ) -> Result<Option<device::Training>, Error> {
        let (schedule, steps) = (&self.recipe.schedule, self.recipe.task.steps());
        let values = self.params.values();
        let parameters: Vec<Parameter> = self
            .params
            .about
            .iter()
            .map(|a| Parameter { learned: a.learned, range: a.range, gradscale: a.gradscale })
            .collect();
        let plan = |rows: usize, steps: usize| {
            let descent = (part == Part::EpisodesAndOptimiser).then(|| Motion {
                parameters: &parameters,
                raw: &self.params.raw,
                values: &values,
                memory: self.optimiser.memory(),
                adam: matches!(self.recipe.optimiser.rule, Rule::Adam { .. }),
                numbers: self.recipe.optimiser.numbers(1, 1.0),
                clip: self.recipe.optimiser.clip,
            });
            self.plan(of, (rows, steps), descent)
        };
        if wanted == Wanted::Kernels {
            return Ok(self.engine.training(&plan(schedule.batch, steps))?);
        }
        let beside = |usage: &Use| self.engine.training_bytes(&plan(usage.batch, usage.steps));
        let mut need = setup::need(&self.engine, &self.recipe, self.workers.len(), Mode::Train);
        need.beside = Some(&beside);
        need.check(None).map(|()| None)
    }

    fn plan<'a>(
        &'a self,
        (task, learner): (&'a DeviceTask, &ActorCritic),
        (rows, steps): (usize, usize),
        descent: Option<Motion<'a>>,
    ) -> Plan<'a> {
        let world = World {
            source: task.source,
            ints: &task.ints,
            floats: &task.floats,
            doubles: &task.doubles,
            row_ints: task.row_ints,
            row_floats: task.row_floats,
        };
        let wires = Wires {
            input: self.wiring.input,
            reward: self.wiring.reward,
            policy: self.wiring.output,
            value: self.wiring.value.unwrap_or(self.wiring.output),
        };
        let weights = Weights {
            gamma: learner.gamma,
            value: learner.value,
            entropy: learner.entropy,
            shared_baseline: learner.baseline == Baseline::First,
        };
        Plan { world, wires, weights, rows, steps, descent }
    }

    /// Brings parameters and the optimiser's memory back from the device, if they have moved there.
    ///
    /// # Errors
    /// If the device fails.
    pub fn settle(&mut self) -> Result<(), Error> {
        let Some(resident) = self.resident.as_mut().filter(|r| r.is_ahead) else { return Ok(()) };
        let fetched = resident.training.as_ref().map(device::Training::fetch).transpose();
        if let Some([raw, mean, square]) = fetched.map_err(EngineError::from)?.flatten() {
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
        self.workers.iter_mut().for_each(|w| w.watch.reset(self.timings.as_ref()));
        let learns = self.update >= self.recipe.learner.burn_in();
        let numbers = self.recipe.optimiser.numbers(self.optimiser.steps() + 1, 1.0);
        let update =
            Update { learns: i32::from(learns), rate: numbers.rate, root: numbers.root, ..self.numbered() };
        let bound = match &self.resident {
            Some(Resident { training: Some(training), .. }) => self.engine.bind_trained(training),
            _ => None,
        };
        let (Some(resident), Some(bound)) = (&mut self.resident, bound) else {
            return Err(Error::device("no parameters live on the device"));
        };
        let sums = self.engine.sums();
        let pass = Pass {
            stage: stage(&self.engine, &self.wiring, &self.recipe, &bound, &self.params),
            engine: &self.engine,
            learner: &self.recipe.learner,
            seed: self.recipe.schedule.seed,
            episode: self.update as u32,
            batch: self.recipe.schedule.batch,
            carried: &self.carried,
            sums: &sums,
        };
        resident.is_ahead = true;
        let Worker { tape, watch } = &mut self.workers[0];
        let (results, rows) = pass.live((tape, watch), resident, update, None);
        if let Some(timings) = &mut self.timings {
            timings.collect(self.workers.iter().map(|w| &w.watch));
        }
        self.engine.check()?;
        let rows = match rows {
            Ok(rows) => rows,
            Err((row, at)) => {
                self.settle()?;
                return Err(self.bad_number(row, self.locate(row).unwrap_or(at)));
            }
        };
        if !results.finite {
            self.settle()?;
            let gradients =
                self.resident.as_ref().and_then(|r| r.training.as_ref()).map(device::Training::gradients);
            let gradients = gradients.transpose().map_err(EngineError::from)?.unwrap_or_default();
            return Err(self.bad_gradient(&gradients));
        }
        if learns {
            self.optimiser.set_steps(self.optimiser.steps() + 1);
        }
        self.update += 1;
        let outcome = self.outcome(&rows, self.recipe.task.steps(), results.norm);
        if rows.iter().all(|r| r.state.is_some()) {
            self.carried = rows.into_iter().filter_map(|r| r.state).collect();
        }
        timings::lap(&mut self.timings, Phase::Losses);
        match outcome.loss.is_finite() {
            true => Ok(outcome),
            false => Err(Error::diverged(format!("update {}: the loss is not finite", self.update))),
        }
    }

    /// The numbers of the next update, without those of a step of the optimiser.
    fn numbered(&self) -> Update {
        Update { seed: self.recipe.schedule.seed, episode: self.update as u32, ..Update::default() }
    }
}

impl Pass<'_> {
    /// Episodes on the device; gradients come back.
    pub(super) fn on_device(&self, Worker { tape, watch }: &mut Worker, resident: &mut Resident) -> Outcomes {
        let mut grads = self.sums.zeros();
        let update = Update { seed: self.seed, episode: self.episode, ..Update::default() };
        let (_, rows) = self.live((tape, watch), resident, update, Some(&mut grads));
        self.sums.add(0, grads);
        Ok(Chunk { rows: rows?, ..self.chunk() })
    }

    /// An episode of all rows.
    fn live(
        &self,
        (tape, watch): (&mut Option<Tape>, &mut Stopwatch),
        resident: &mut Resident,
        update: Update,
        grads: Option<&mut Grads>,
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
        let training = resident.training.as_mut().map(|training| (training, update));
        let results = training.map(|t| stage.bound.train_episode(tape, grads, t, noise)).unwrap_or_default();
        watch.lap(Phase::Device);
        let first = |r: &RowResult| r.broken;
        let broken = results.rows.iter().enumerate().filter_map(|(row, r)| Some((first(r)?, row))).min();
        if let Some((step, row)) = broken {
            return (results, Err((row, NonFinite { step, at: Place::Output(stage.wiring.output) })));
        }
        let state = |tape: &mut Tape, row: usize| {
            stage.bound.select(tape, row);
            stage.bound.state(tape)
        };
        let keeps = carries(stage.model);
        let rows = results
            .rows
            .iter()
            .enumerate()
            .map(|(row, r)| RowOutcome { state: keeps.then(|| state(tape, row)), ..self.lived(r) });
        let rows = rows.collect();
        (results, Ok(rows))
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
        let terms = Terms { policy: r.policy, squares: r.squares, value: r.value, entropy: r.entropy };
        let loss = match self.learner {
            Learner::ActorCritic(a) => a.loss(&terms) / self.stage.task.steps() as f64,
            Learner::SquaredError(_) | Learner::NextWord(_) | Learner::CrossEntropy(_) => 0.0,
        };
        RowOutcome { scores: vec![r.reward], terms, loss, penalty: r.penalty, state: None }
    }
}

#[cfg(test)]
mod tests;
