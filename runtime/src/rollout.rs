//! One row through one episode: world, network, sampled actions.

use crate::encoder::{self, Activations};
use crate::engine::{Bound, Mode, RowState, Tape};
use crate::learner::ActorCritic;
use crate::params::draw;
use crate::rng::{Address, Purpose};
use crate::task::{Episode, Goal, Task};
use crate::timings::{Phase, Stopwatch};
use crate::wiring::Wiring;
use compiler::ir::{InputId, OutputId, Sizes, StateId};
use compiler::model::{Init, Model, ResetPolicy};

/// How actions are chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Choice {
    /// Drawn from the policy.
    Sample,
    /// The likeliest one.
    Greedy,
}

/// What happened in an episode.
#[derive(Clone, Debug, Default)]
pub struct Record {
    /// Rewards by step.
    pub rewards: Vec<f32>,
    /// Actions by step.
    pub actions: Vec<usize>,
    /// Values of the state by step, if the model has them.
    pub values: Vec<f32>,
    /// The task's scores.
    pub scores: Vec<f64>,
    /// Targets by step, where there are any.
    pub targets: Vec<(usize, Vec<f32>)>,
    /// What went through the encoder, if there is one.
    pub encoded: Option<Encoded>,
}

/// The images of an episode, and what the encoder made of them.
#[derive(Clone, Debug, Default)]
pub struct Encoded {
    /// By step.
    pub images: Vec<f32>,
    /// By layer; the last are the features.
    pub activations: Activations,
}

/// What the network is shown at all steps: of each input, vector by vector.
type Shown = Vec<(InputId, Vec<f32>)>;

/// A number that is not finite.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NonFinite {
    /// The step.
    pub step: usize,
    /// Where it was seen.
    pub at: Place,
}

/// Where a number is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// In an output.
    Output(OutputId),
    /// In a state after the step.
    State(StateId),
}

/// Everything about a network and its task that does not change during an episode.
#[derive(Clone, Copy)]
pub struct Stage<'a> {
    /// The model with its parameters.
    pub bound: &'a Bound<'a>,
    /// The model.
    pub model: &'a Model,
    /// Its sizes.
    pub sizes: &'a Sizes,
    /// The connections.
    pub wiring: &'a Wiring,
    /// The task.
    pub task: &'a dyn Task,
    /// The encoder with its weights, if there is one.
    pub encoder: Option<encoder::Bound<'a>>,
}

impl Stage<'_> {
    /// Runs an episode on a tape.
    ///
    /// # Errors
    /// At the first output that is not finite; the episode ends there.
    pub fn run(
        &self,
        tape: &mut Tape,
        address: Address,
        carried: Option<&RowState>,
        choice: Choice,
        watch: &mut Stopwatch,
    ) -> Result<Record, NonFinite> {
        let start = self.start(address, carried);
        self.bound.begin(tape, start.as_ref());
        let mut episode = self.task.episode(address);
        let mut record = Record::default();
        watch.lap(Phase::Environment);
        if knows_inputs(self.task) {
            self.run_known(tape, address, &mut *episode, &mut record, watch)?;
            return Ok(record);
        }
        let mut total = 0.0;
        for t in 0..self.task.steps() {
            episode.observe(t, self.bound.input_mut(tape, self.wiring.input));
            if let Some(id) = self.wiring.reward {
                self.bound.input_mut(tape, id)[0] = episode.previous_reward();
            }
            self.put_noise(tape, address, t);
            watch.lap(Phase::Environment);
            self.bound.step(tape);
            watch.lap(Phase::Forward);
            self.check_outputs(tape, t)?;
            if let Some(id) = self.wiring.value {
                record.values.push(self.bound.output(tape, t, id)[0]);
            }
            let output = self.bound.output(tape, t, self.wiring.output);
            if let Goal::Act(_) = self.task.goal() {
                let action = choose(output, address, t, choice);
                watch.lap(Phase::Sampling);
                let reward = episode.act(t, action);
                total += f64::from(reward);
                record.actions.push(action);
                record.rewards.push(reward);
            }
            if let Some(target) = episode.target(t) {
                record.targets.push((t, target.to_vec()));
            }
            if t + 1 == self.task.steps() {
                record.scores = episode.scores(output, total);
            }
        }
        watch.lap(Phase::Environment);
        Ok(record)
    }

    /// Runs an episode of each of these rows side by side, on a tape of as many rows; each is what [`Stage::run`]
    /// gives for its row.
    ///
    /// # Errors
    /// The first output that is not finite, and its row.
    pub fn run_team(
        &self,
        tape: &mut Tape,
        addresses: &[Address],
        carried: &[Option<&RowState>],
        choice: Choice,
        watch: &mut Stopwatch,
    ) -> Result<Vec<Record>, (usize, NonFinite)> {
        let starts: Vec<Option<RowState>> =
            addresses.iter().zip(carried).map(|(a, c)| self.start(*a, *c)).collect();
        self.bound.begin_team(tape, &starts.iter().map(Option::as_ref).collect::<Vec<_>>());
        let mut episodes: Vec<_> = addresses.iter().map(|a| self.task.episode(*a)).collect();
        let mut records = vec![Record::default(); addresses.len()];
        watch.lap(Phase::Environment);
        if knows_inputs(self.task) {
            self.run_known_team(tape, addresses, &mut episodes, &mut records, watch)?;
            return Ok(records);
        }
        let mut totals = vec![0.0; addresses.len()];
        for t in 0..self.task.steps() {
            for (row, (episode, address)) in episodes.iter_mut().zip(addresses).enumerate() {
                self.bound.select(tape, row);
                episode.observe(t, self.bound.input_mut(tape, self.wiring.input));
                if let Some(id) = self.wiring.reward {
                    self.bound.input_mut(tape, id)[0] = episode.previous_reward();
                }
                self.put_noise(tape, *address, t);
            }
            watch.lap(Phase::Environment);
            self.bound.step(tape);
            watch.lap(Phase::Forward);
            for (row, (episode, record)) in episodes.iter_mut().zip(&mut records).enumerate() {
                self.bound.select(tape, row);
                let total = &mut totals[row];
                self.answer((tape, t), addresses[row], (&mut **episode, record, total), choice)
                    .map_err(|e| (row, e))?;
            }
            watch.lap(Phase::Sampling);
        }
        Ok(records)
    }

    /// What the world makes of a step of the selected row.
    fn answer(
        &self,
        (tape, t): (&Tape, usize),
        address: Address,
        (episode, record, total): (&mut dyn Episode, &mut Record, &mut f64),
        choice: Choice,
    ) -> Result<(), NonFinite> {
        self.check_outputs(tape, t)?;
        record.values.extend(self.wiring.value.map(|id| self.bound.output(tape, t, id)[0]));
        let output = self.bound.output(tape, t, self.wiring.output);
        if let Goal::Act(_) = self.task.goal() {
            let action = choose(output, address, t, choice);
            let reward = episode.act(t, action);
            *total += f64::from(reward);
            record.actions.push(action);
            record.rewards.push(reward);
        }
        record.targets.extend(episode.target(t).map(|target| (t, target.to_vec())));
        if t + 1 == self.task.steps() {
            record.scores = episode.scores(output, *total);
        }
        Ok(())
    }

    /// Episodes that do not depend on what the network does, side by side: all steps at once.
    fn run_known_team(
        &self,
        tape: &mut Tape,
        addresses: &[Address],
        episodes: &mut [Box<dyn Episode + '_>],
        records: &mut [Record],
        watch: &mut Stopwatch,
    ) -> Result<(), (usize, NonFinite)> {
        let steps = self.task.steps();
        let mut shown = vec![];
        for ((episode, record), address) in episodes.iter_mut().zip(records.iter_mut()).zip(addresses) {
            shown.push(self.show(*address, &mut **episode, record, watch));
        }
        watch.lap(Phase::Environment);
        self.bound.forward_team(tape, steps, &mut |row, t, id, x| put(&shown[row], t, id, x));
        watch.lap(Phase::Forward);
        for (row, (episode, record)) in episodes.iter().zip(records).enumerate() {
            self.bound.select(tape, row);
            for t in 0..steps {
                self.check_outputs(tape, t).map_err(|e| (row, e))?;
                record.values.extend(self.wiring.value.map(|id| self.bound.output(tape, t, id)[0]));
            }
            if let Some(last) = steps.checked_sub(1) {
                record.scores = episode.scores(self.bound.output(tape, last, self.wiring.output), 0.0);
            }
        }
        watch.lap(Phase::Environment);
        Ok(())
    }

    /// An episode that does not depend on what the network does: all steps at once.
    fn run_known(
        &self,
        tape: &mut Tape,
        address: Address,
        episode: &mut dyn Episode,
        record: &mut Record,
        watch: &mut Stopwatch,
    ) -> Result<(), NonFinite> {
        let steps = self.task.steps();
        let shown = self.show(address, episode, record, watch);
        self.bound.forward(tape, steps, &mut |t, id, x| put(&shown, t, id, x));
        watch.lap(Phase::Forward);
        for t in 0..steps {
            self.check_outputs(tape, t)?;
            record.values.extend(self.wiring.value.map(|id| self.bound.output(tape, t, id)[0]));
        }
        if let Some(last) = steps.checked_sub(1) {
            record.scores = episode.scores(self.bound.output(tape, last, self.wiring.output), 0.0);
        }
        watch.lap(Phase::Environment);
        Ok(())
    }

    /// Everything that is shown in an episode that does not depend on what the network does. Targets and
    /// encoded images are recorded.
    fn show(
        &self,
        address: Address,
        episode: &mut dyn Episode,
        record: &mut Record,
        watch: &mut Stopwatch,
    ) -> Shown {
        let (steps, classes) = (self.task.steps(), self.task.labels());
        let each = self.task.inputs();
        let (mut seen, mut labels) = (vec![0.0; steps * each], vec![0.0; steps * classes]);
        let mut shown = Shown::new();
        for t in 0..steps {
            episode.observe(t, &mut seen[t * each..][..each]);
            episode.label(t, &mut labels[t * classes..][..classes]);
            record.targets.extend(episode.target(t).map(|target| (t, target.to_vec())));
            self.wiring.draw_noise(self.sizes, address, t, |id, noise| {
                let noise = noise.into_iter().map(|x| x as f32);
                match shown.iter_mut().find(|(known, _)| *known == id) {
                    Some((_, all)) => all.extend(noise),
                    None => shown.push((id, noise.collect())),
                }
            });
        }
        watch.lap(Phase::Environment);
        shown.extend(self.wiring.label.map(|id| (id, labels)));
        match self.encoder {
            None => shown.push((self.wiring.input, seen)),
            Some(encoder) => {
                let activations = encoder.forward(&seen, steps);
                shown.push((self.wiring.input, activations.last().cloned().unwrap_or_default()));
                record.encoded = Some(Encoded { images: seen, activations });
            }
        }
        shown
    }

    /// Runs an episode again, with the actions it took, and finds the first step after which a
    /// state or an output is not finite.
    pub fn locate(&self, tape: &mut Tape, address: Address, carried: Option<&RowState>) -> Option<NonFinite> {
        let start = self.start(address, carried);
        self.bound.begin(tape, start.as_ref());
        let mut episode = self.task.episode(address);
        let known = knows_inputs(self.task)
            .then(|| self.show(address, &mut *episode, &mut Record::default(), &mut Stopwatch::default()));
        for t in 0..self.task.steps() {
            match &known {
                Some(shown) => {
                    for (id, _) in shown {
                        put(shown, t, *id, self.bound.input_mut(tape, *id));
                    }
                }
                None => {
                    episode.observe(t, self.bound.input_mut(tape, self.wiring.input));
                    if let Some(id) = self.wiring.reward {
                        self.bound.input_mut(tape, id)[0] = episode.previous_reward();
                    }
                    self.put_noise(tape, address, t);
                }
            }
            self.bound.step(tape);
            let states = self.bound.state(tape).states;
            let broken = states.iter().position(|s| s.iter().any(|x| !x.is_finite()));
            if let Some(k) = broken {
                return Some(NonFinite { step: t, at: Place::State(StateId(k as u32)) });
            }
            if let Err(e) = self.check_outputs(tape, t) {
                return Some(e);
            }
            if let Goal::Act(_) = self.task.goal() {
                let output = self.bound.output(tape, t, self.wiring.output);
                episode.act(t, choose(output, address, t, Choice::Sample));
            }
        }
        None
    }

    fn put_noise(&self, tape: &mut Tape, address: Address, t: usize) {
        self.wiring.draw_noise(self.sizes, address, t, |id, noise| {
            for (slot, x) in self.bound.input_mut(tape, id).iter_mut().zip(noise) {
                *slot = x as f32;
            }
        });
    }

    fn check_outputs(&self, tape: &Tape, t: usize) -> Result<(), NonFinite> {
        for id in [Some(self.wiring.output), self.wiring.value].into_iter().flatten() {
            if self.bound.output(tape, t, id).iter().any(|x| !x.is_finite()) {
                return Err(NonFinite { step: t, at: Place::Output(id) });
            }
        }
        Ok(())
    }

    /// The states at the start of an episode; `None` if all have their own initial values.
    pub(crate) fn start(&self, address: Address, carried: Option<&RowState>) -> Option<RowState> {
        let mut start: Option<RowState> = None;
        for (k, state) in self.model.states.iter().enumerate() {
            let numbers = match carried.filter(|_| !resets(state.reset, address.episode)) {
                Some(c) => c.states[k].clone(),
                None if is_random(&state.init) => {
                    let mut stream = address.stream(Purpose::States, k as u32);
                    let numbers = draw(&state.init, &self.sizes.dims(state.shape), self.sizes, &mut stream);
                    numbers.into_iter().map(|x| x as f32).collect()
                }
                None => continue,
            };
            let own = || RowState { states: vec![vec![]; self.model.states.len()] };
            start.get_or_insert_with(own).states[k] = numbers;
        }
        start
    }
}

/// Copies what is shown at a step into an input.
fn put(shown: &Shown, t: usize, id: InputId, x: &mut [f32]) {
    if let Some((_, all)) = shown.iter().find(|(known, _)| *known == id) {
        x.copy_from_slice(&all[t * x.len()..][..x.len()]);
    }
}

/// Whether what the network sees does not depend on what it does.
fn knows_inputs(task: &dyn Task) -> bool {
    !matches!(task.goal(), Goal::Act(_))
}

/// What a tape must keep for [`Stage::run`] without a backward pass.
pub fn mode(task: &dyn Task) -> Mode {
    if knows_inputs(task) { Mode::Forward } else { Mode::Infer }
}

/// Whether a state starts at random numbers.
pub fn is_random(init: &Init) -> bool {
    !matches!(init, Init::Constant(_) | Init::Param(_))
}

/// Whether a state starts anew at an episode.
fn resets(policy: ResetPolicy, episode: u32) -> bool {
    match policy {
        ResetPolicy::EveryEpisodes(k) => episode.is_multiple_of(k.max(1)),
        ResetPolicy::Persist => episode == 0,
    }
}

/// Whether any state outlives an episode.
pub fn carries(model: &Model) -> bool {
    model.states.iter().any(|s| s.reset != ResetPolicy::EveryEpisodes(1))
}

fn choose(logits: &[f32], address: Address, t: usize, choice: Choice) -> usize {
    match choice {
        Choice::Sample => {
            let p = crate::learner::softmax(logits);
            address.stream(Purpose::Action, t as u32).categorical(&p)
        }
        Choice::Greedy => crate::task::likeliest(logits),
    }
}

/// The advantages of an episode over a baseline.
pub fn advantages(learner: &ActorCritic, record: &Record, baseline: &[f32]) -> Vec<f64> {
    let returns = learner.returns(&record.rewards);
    returns.iter().zip(baseline).map(|(r, v)| r - f64::from(*v)).collect()
}
