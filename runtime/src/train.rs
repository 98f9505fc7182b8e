//! Training: one update after the other.
//!
//! An update binds the parameters, takes every row of the batch through an episode and back, sums
//! gradients, and moves the parameters. Rows are cut into chunks by a fixed rule, each chunk has
//! its own gradient sums, and chunks are summed in order: the result has the same bits for any
//! number of threads. A thread keeps one tape and uses it for row after row.

mod resident;

use crate::encoder;
use crate::engine::{Bound, Engine, Grads, Mode, RowState, Sums, Tape};
use crate::error::Error;
use crate::language;
use crate::learner::{ActorCritic, Baseline, CrossEntropy, Learner, SquaredError, Terms};
use crate::optim::Optimiser;
use crate::parallel;
use crate::params::ParamStore;
use crate::recipe::Recipe;
use crate::rng::{Address, Domain};
use crate::rollout::{Choice, NonFinite, Place, Record, Stage, advantages, carries};
use crate::spec::Spec;
use crate::timings::{self, Phase, Stopwatch, Timings};
use crate::wiring::Wiring;
use compiler::form::Form;
use std::ops::Range;

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
        if self.resident.as_ref().is_some_and(resident::Resident::descends) {
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
        self.update += 1;
        let outcome = self.outcome(&rows, steps, grad_norm);
        if let Some(memory) = &mut self.language {
            memory.give_back(gradients);
        }
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

    /// The epoch of the next update, counted from one; 1 in tasks without epochs.
    pub fn epoch(&self) -> u32 {
        self.language.as_ref().map_or(1, |m| m.windows.at(self.update).epoch + 1)
    }

    /// The factor of the learning rate in the next update.
    fn multiple(&self) -> f64 {
        let scale = self.language.as_ref().map_or(1.0, |m| m.windows.at(self.update).scale);
        match self.language {
            Some(_) => scale * self.recipe.optimiser.epochs.factor(self.epoch()),
            None => 1.0,
        }
    }

    /// Whether parameters are averaged from the next update on.
    fn averages(&self) -> bool {
        let Some(memory) = &self.language else { return false };
        let epochs = &self.recipe.optimiser.epochs;
        self.optimiser.average().is_some() || epochs.averages(self.epoch(), &memory.history)
    }

    /// The parameters that are evaluated: averaged ones, if there are.
    pub fn evaluated(&self) -> ParamStore {
        let mut params = self.params.clone();
        if let Some(average) = self.optimiser.average() {
            params.raw = average.to_vec();
        }
        params
    }

    /// At the end of an epoch of a text: reads the validation split.
    ///
    /// # Errors
    /// If the split is too short, or its loss is not finite.
    pub fn validate(&mut self) -> Result<Option<language::Validation>, Error> {
        let (Some(memory), Some(text)) = (&self.language, self.recipe.task.text()) else { return Ok(None) };
        let ended = self.update.checked_sub(1).map(|last| memory.windows.at(last)).filter(|w| w.last);
        let Some(ended) = ended else { return Ok(None) };
        let how = language::report::Reading {
            split: language::Split::Valid,
            batch: text.valid_batch,
            window: text.window,
            carry: language::report::Carry::All,
        };
        let fit = language::report::read_split(self, &self.evaluated(), text, how, self.workers.len())?;
        let epoch = ended.epoch + 1;
        let Some(memory) = &mut self.language else { return Ok(None) };
        memory.history.truncate(ended.epoch as usize);
        let best = memory.history.iter().all(|l| fit.loss < *l);
        memory.history.push(fit.loss);
        Ok(Some(language::Validation { epoch, loss: fit.loss, best }))
    }

    /// A window of a text.
    fn window(&mut self, memory: &mut language::Memory) -> Result<Rows, Error> {
        let (Some(text), Learner::NextWord(learner)) = (self.recipe.task.text(), &self.recipe.learner) else {
            return Err(Error::usage("this task has no text"));
        };
        let bound = self.engine.bind(&self.params.values_of(self.engine.model().params.len()))?;
        timings::lap(&mut self.timings, Phase::Parameters);
        let window = memory.windows.at(self.update);
        let update = language::training::Update {
            engine: &self.engine,
            bound: &bound,
            wiring: &self.wiring,
            text,
            learner,
            params: &self.params,
            carried: &self.carried,
            window,
            seed: self.recipe.schedule.seed,
            update: self.update,
            batch: self.recipe.schedule.batch,
            threads: self.workers.len(),
        };
        let found = update.run(memory, &mut self.timings);
        self.engine.check()?;
        let found = found.map_err(|(row, at)| self.bad_number(row, at))?;
        let rows = found.losses.into_iter().zip(found.penalties).zip(found.states);
        let row = |((loss, penalty), state)| RowOutcome {
            scores: vec![loss],
            loss,
            penalty,
            state: Some(state),
            ..RowOutcome::default()
        };
        Ok(Rows { all: rows.map(row).collect(), steps: window.steps, gradients: found.gradients })
    }

    /// The rows' outcomes and the gradient of the loss with respect to the values of parameters.
    fn gradients(&mut self) -> Result<Rows, Error> {
        for worker in &mut self.workers {
            worker.watch.reset(self.timings.as_ref());
        }
        let bound = self.engine.bind(&self.params.values_of(self.engine.model().params.len()))?;
        timings::lap(&mut self.timings, Phase::Parameters);
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
        let done = match &self.recipe.learner {
            _ if let Some(resident) = &mut self.resident => pass.on_device(&mut self.workers[0], resident),
            _ if self.engine.device().is_some() => pass.side_by_side(&mut self.workers[0]),
            Learner::ActorCritic(a) if a.baseline == Baseline::First => {
                pass.with_shared_baseline(a, &mut self.workers, &mut self.tapes)
            }
            _ => pass.row_by_row(&mut self.workers),
        };
        if let Some(timings) = &mut self.timings {
            timings.collect(self.workers.iter().map(|w| &w.watch));
        }
        self.engine.check()?;
        let Chunk { rows, encoder } = match done {
            Ok(done) => done,
            Err((row, at)) => return Err(self.bad_number(row, self.locate(row).unwrap_or(at))),
        };
        let mut gradients = sums.finish(&bound);
        self.engine.check()?;
        gradients.truncate(self.engine.model().params.len());
        gradients.extend(encoder);
        timings::lap(&mut self.timings, Phase::Gradient);
        Ok(Rows { all: rows, steps: self.recipe.task.steps(), gradients })
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

    /// The first step of a row in which a state or an output is not finite.
    fn locate(&self, row: usize) -> Option<NonFinite> {
        let bound = self.engine.bind(&self.params.values_of(self.engine.model().params.len())).ok()?;
        let stage = stage(&self.engine, &self.wiring, &self.recipe, &bound, &self.params);
        let mut tape = self.engine.tape(stage.task.steps(), Mode::Infer);
        let seed = self.recipe.schedule.seed;
        let address = Address { seed, domain: Domain::Train, episode: self.update as u32, row: row as u32 };
        stage.locate(&mut tape, address, self.carried.get(row))
    }

    fn bad_number(&self, row: usize, found: NonFinite) -> Error {
        let model = self.engine.model();
        let (what, span) = match found.at {
            Place::Output(id) => {
                (format!("output `{}`", model.outputs[id.index()].name), model.outputs[id.index()].span)
            }
            Place::State(id) => {
                (format!("state `{}`", model.states[id.index()].name), model.states[id.index()].span)
            }
        };
        Error::diverged(format!(
            "training diverged in update {}: {what} is not finite after step {} of row {row}",
            self.update + 1,
            found.step
        ))
        .help(format!("it is declared in {}", self.spec.line(span)))
        .help("bound plastic states with `clip` or decay; lower `optimiser.rate`; set `optimiser.clip`")
    }

    fn bad_gradient(&self, gradients: &[Vec<f32>]) -> Error {
        // A state may be infinite and every output finite; the gradient is not, then.
        let mut rows = 0..if self.language.is_some() { 0 } else { self.recipe.schedule.batch };
        if let Some((row, found)) = rows.find_map(|row| self.locate(row).map(|found| (row, found))) {
            return self.bad_number(row, found);
        }
        let broken = gradients.iter().position(|g| g.iter().any(|x| !x.is_finite()));
        let number = self.update + 1;
        let Some(broken) = broken else {
            return Error::diverged(format!(
                "training diverged in update {number}: the gradient is too large"
            ));
        };
        let name = &self.params.about[broken].name;
        let error = Error::diverged(format!(
            "training diverged in update {number}: the gradient of parameter `{name}` is not finite"
        ));
        match self.engine.model().params.get(broken) {
            Some(param) => error.help(format!("it is declared in {}", self.spec.line(param.span))),
            // One of an encoder or an embedding.
            None => error.help("lower `optimiser.rate`; set `optimiser.clip`"),
        }
    }
}

fn stage<'a>(
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
fn encoder<'a>(engine: &Engine, recipe: &'a Recipe, params: &'a ParamStore) -> Option<encoder::Bound<'a>> {
    let weights = &params.raw[engine.model().params.len()..];
    let encoder = &recipe.encoder;
    (!encoder.layers.is_empty()).then_some(encoder::Bound { encoder, weights })
}

/// The forward and backward pass of one update.
struct Pass<'a> {
    stage: Stage<'a>,
    engine: &'a Engine,
    learner: &'a Learner,
    seed: u64,
    episode: u32,
    batch: usize,
    carried: &'a [RowState],
    sums: &'a Sums<'a>,
}

type Outcomes = Result<Chunk, RowError>;

impl Pass<'_> {
    fn address(&self, row: usize) -> Address {
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
    fn row_by_row(&self, workers: &mut [Worker]) -> Outcomes {
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
    fn with_shared_baseline(
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

    /// On a device: all rows side by side on one tape, forward and backward.
    fn side_by_side(&self, Worker { tape, watch }: &mut Worker) -> Outcomes {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::Backend;
    use crate::{setup, spec};

    const SPEC: &str = "spec simple {
  axis I = ?, N = 7, A = ?
  in u[I]
  learn Wx[N,I], bx[N] ~ linear
  learn W[N,N], alpha[N,N] ~ uniform(0, 0.5)
  learn wm[N], bm ~ linear
  learn Wo[A,N], bo[A], wv[N], bv ~ linear
  state y[N] = 0
  plastic H[N,N] = 0 KEEP
  y' = tanh(Wx @ u + bx + (W + alpha * H) @ y)
  modulator m = tanh(wm . y' + bm)
  H'[j,i] = clip(H + m * y'[j] * y[i], -1, 1)
  out policy[A] = Wo @ y' + bo
  out value = wv . y' + bv
}";

    fn trainer(spec: &str, recipe: &str, threads: usize) -> Trainer {
        let spec = spec::compile("s.bpm", spec.into(), None).unwrap_or_else(|e| panic!("{e:?}"));
        let text = format!("spec = \"s.bpm\"\n{recipe}");
        let recipe = Recipe::parse("r", &text, &[]).unwrap_or_else(|e| panic!("{e}"));
        setup::trainer(spec, recipe, Backend::CRANELIFT, threads, Mode::Train)
            .unwrap_or_else(|e| panic!("{e}"))
    }

    fn cue(threads: usize, extra: &str, keep: &str) -> Trainer {
        let recipe = format!(
            "[task]\nname = \"cue-reward\"\ncues = 2\nbits = 2\nsteps = 20\n[run]\nbatch = 5\n\
             [optimiser]\nrate = 0.01\n{extra}"
        );
        trainer(&SPEC.replace("KEEP", keep), &recipe, threads)
    }

    fn after(mut t: Trainer, updates: usize) -> (Vec<Vec<f32>>, Vec<Outcome>) {
        let outcomes = (0..updates).map(|_| t.step().unwrap_or_else(|e| panic!("{e}"))).collect();
        (t.params.raw, outcomes)
    }

    #[test]
    fn any_number_of_threads_gives_the_same_bits() {
        for extra in ["", "[learner]\nbaseline = \"first\"\n"] {
            for keep in ["", "every 3 episodes"] {
                let one = after(cue(1, extra, keep), 6);
                for threads in [2, 3, 8] {
                    assert_eq!(one, after(cue(threads, extra, keep), 6), "{extra} {keep} {threads}");
                }
            }
        }
    }

    #[test]
    fn carried_states_make_a_difference() {
        assert_ne!(after(cue(1, "", ""), 3).0, after(cue(1, "", "every 3 episodes"), 3).0);
        let first = |keep| after(cue(1, "", keep), 1).0;
        assert_eq!(first(""), first("every 3 episodes"), "the first episode starts anew");
    }

    #[test]
    fn burn_in_changes_nothing() {
        let start = cue(1, "", "").params.raw;
        assert_eq!(after(cue(1, "[learner]\nburn_in = 4\n", ""), 4).0, start);
        assert_ne!(after(cue(1, "[learner]\nburn_in = 4\n", ""), 5).0, start);
    }

    /// The gradient of an update against finite differences of the loss with the same actions. The
    /// policy term has a constant advantage, so it is checked on a learner without the value loss
    /// and with values that the parameters in question cannot move.
    #[test]
    fn the_gradient_is_the_slope_of_the_loss() {
        let base = cue(1, "[learner]\nvalue = 0.0\n", "");
        let (bound_loss, gradients) = loss_and_gradient(&base);
        assert!(bound_loss.is_finite());
        let mut checked = 0;
        for name in ["Wo", "W", "alpha", "wm", "Wx"] {
            let k = base.params.about.iter().position(|a| a.name == name).expect("parameter");
            for at in [0, base.params.raw[k].len() - 1] {
                let h = 3e-3;
                let moved = |d: f32| {
                    let mut t = cue(1, "[learner]\nvalue = 0.0\n", "");
                    t.params.raw[k][at] += d;
                    replayed_loss(&t, &base)
                };
                let slope = (moved(h) - moved(-h)) / (2.0 * f64::from(h));
                let found = f64::from(gradients[k][at]);
                assert!((slope - found).abs() < 2e-4 + 0.03 * slope.abs(), "{name}[{at}]: {slope} {found}");
                checked += usize::from(found.abs() > 1e-3);
            }
        }
        assert!(checked >= 4, "vacuous: {checked}");
    }

    fn loss_and_gradient(t: &Trainer) -> (f64, Vec<Vec<f32>>) {
        let mut copy = cue(1, "[learner]\nvalue = 0.0\n", "");
        copy.params = t.params.clone();
        let Rows { all: rows, gradients, .. } = copy.gradients().unwrap_or_else(|e| panic!("{e}"));
        (rows.iter().map(|r| r.loss).sum::<f64>() / rows.len() as f64, gradients)
    }

    /// The loss of `t` with the actions and advantages that `base` had.
    fn replayed_loss(t: &Trainer, base: &Trainer) -> f64 {
        let Learner::ActorCritic(learner) = &base.recipe.learner else { panic!("actor-critic") };
        let steps = base.recipe.task.steps();
        let mut total = 0.0;
        for row in 0..5u32 {
            let address = Address { seed: 0, domain: Domain::Train, episode: 0, row };
            let old = base.engine.bind(&base.params.values()).expect("bind");
            let stage = |bound| Stage {
                bound,
                model: base.engine.model(),
                sizes: base.engine.sizes(),
                wiring: &base.wiring,
                task: &*base.recipe.task,
                encoder: None,
            };
            let mut tape = base.engine.tape(steps, Mode::Infer);
            let record = stage(&old)
                .run(&mut tape, address, None, Choice::Sample, &mut Stopwatch::default())
                .expect("finite");
            let advantages = advantages(learner, &record, &record.values);
            let new = t.engine.bind(&t.params.values()).expect("bind");
            let mut tape = t.engine.tape(steps, Mode::Infer);
            let mut world = base.recipe.task.episode(address);
            new.begin(&mut tape, None);
            for (s, &action) in record.actions.iter().enumerate() {
                world.observe(s, new.input_mut(&mut tape, t.wiring.input));
                new.step(&mut tape);
                let logits = new.output(&tape, s, t.wiring.output);
                total += learner.loss(&learner.terms(logits, action, advantages[s]));
                world.act(s, action);
            }
        }
        total / (5.0 * steps as f64)
    }

    #[test]
    fn divergence_names_the_line() {
        let spec = SPEC
            .replace("plastic H[N,N] = 0 KEEP", "plastic H[N,N] = 0 unbounded")
            .replace("clip(H + m * y'[j] * y[i], -1, 1)", "H * 1e9 + m * y'[j] * y[i]");
        let mut t = trainer(&spec, "[task]\nname = \"maze\"\n[run]\nbatch = 2\n", 1);
        let error = (0..3).find_map(|_| t.step().err()).expect("diverges");
        assert_eq!(error.exit_code(), 4);
        assert!(error.message.contains("update 1: state `H` is not finite after step"), "{}", error.message);
        assert!(error.help[0].contains("s.bpm:9: plastic H[N,N]"), "{:?}", error.help);
    }

    #[test]
    fn the_supervised_task_learns() {
        let spec = "spec p {
  axis N = ?
  in u[N]
  learn W[N,N], alpha[N,N] ~ normal(0, 0.01)
  learn eta in (0, 1) = 0.01
  state y[N] = 0
  plastic H[N,N] = 0
  y' = tanh((W + alpha * H) @ y + u)
  H'[j,i] = (1 - eta) * H + eta * y'[j] * y[i]
  out y'
}";
        let recipe = "[task]\nname = \"pattern-completion\"\nbits = 12\npatterns = 1\ncycles = 1\n\
                      [run]\nbatch = 4\n[optimiser]\nrate = 0.01\n";
        let outcomes = after(trainer(spec, recipe, 1), 300).1;
        let mean = |o: &[Outcome]| o.iter().map(|o| o.scores[2]).sum::<f64>() / o.len() as f64;
        assert!(mean(&outcomes[..20]) > 0.3 && mean(&outcomes[280..]) < 0.05, "{}", mean(&outcomes[280..]));
    }
}
