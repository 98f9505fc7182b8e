//! From a recipe to a run in memory: spec, sizes, connections, parameters, kernels.

use crate::Error;
use crate::engine::device::{Mapped, Tier, Work};
use crate::engine::{Backend, Chaining, Engine, EngineOptions, Mode, Text};
use crate::language::NextWord;
use crate::learner::{Baseline, Learner};
use crate::memory::{Flags, Need, available};
use crate::params::ParamStore;
use crate::recipe::Recipe;
use crate::run::Machine;
use crate::spec::Spec;
use crate::task::Goal;
use crate::train::Trainer;
use crate::wiring::{Wiring, bind_sizes, seen};
use compiler::back::cuda::{self, Grid, Wanted};
use compiler::form::{Form, Prefer};
use compiler::ir::{Shape, Sizes};
use compiler::loops::plan::{Tapes, Use};
use compiler::model::Model;
use compiler::stages::{self, Subject};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Builds everything a recipe describes.
///
/// # Errors
/// If spec and task do not fit together, the engine refuses the model, or memory does not suffice.
pub fn trainer(
    spec: Spec,
    recipe: Recipe,
    backend: Backend,
    threads: usize,
    mode: Mode,
) -> Result<Trainer, Error> {
    trainer_on(spec, recipe, Machine { backend, threads, tier: Tier::Auto }, mode)
}

/// The same where it is said which kernels of a device run.
///
/// # Errors
/// As [`trainer`].
pub fn trainer_on(spec: Spec, recipe: Recipe, machine: Machine, mode: Mode) -> Result<Trainer, Error> {
    let Machine { backend, threads, tier } = machine;
    let model = Arc::clone(&spec.model);
    let seen = seen(&*recipe.task, &recipe.learner, &recipe.encoder);
    let sizes = bind_sizes(&model, &*recipe.task, seen, &recipe.sizes)?;
    let wiring = Wiring::new(&model, &sizes, &*recipe.task, seen)?;
    // Only an embedding and an encoder learn from the gradients of inputs.
    let is_known = matches!(recipe.learner, Learner::NextWord(_)) && mode == Mode::Train;
    let encodes = !recipe.encoder.layers.is_empty();
    let input_bars = is_known || encodes && mode == Mode::Train;
    let teams = if is_known { recipe.schedule.batch } else { 0 };
    let chaining = if is_known { Chaining::IfLarge } else { Chaining::Never };
    let batch = recipe.schedule.batch;
    let options = EngineOptions {
        input_bars,
        initial_bars: false,
        teams,
        chaining,
        batch,
        steps: longest(&recipe),
        tier,
        one_by_one: one_by_one(&recipe) || mode == Mode::Infer,
        ..EngineOptions::default()
    };
    let (kept, kept_sizes, form) = in_form(&model, &sizes, &recipe, backend)?;
    let text = Text { file: &spec.path, source: &spec.source };
    let engine = Engine::of_text(kept, kept_sizes, backend, &options, text)?;
    need(&engine, &recipe, threads, mode).check(available())?;
    let mut params = ParamStore::new(&model, &sizes, recipe.schedule.seed, &recipe.init)?;
    if let (Learner::NextWord(learner), Some(text)) = (&recipe.learner, recipe.task.text()) {
        let features = features(&model, &sizes, &wiring, learner)?;
        learner.add_parameters(&mut params, text.corpus.vocabulary.len(), features, recipe.schedule.seed);
    }
    recipe.encoder.add_parameters(&mut params, recipe.schedule.seed);
    Ok(Trainer::new(spec, recipe, (engine, form), wiring, params, threads))
}

/// The sizes of a spec's axes in a recipe.
///
/// # Errors
/// If spec and task do not fit together.
pub fn sizes(spec: &Spec, recipe: &Recipe) -> Result<Sizes, Error> {
    let seen = seen(&*recipe.task, &recipe.learner, &recipe.encoder);
    bind_sizes(&spec.model, &*recipe.task, seen, &recipe.sizes)
}

/// What a recipe is going to run, as the choice of a device weighs it.
///
/// # Errors
/// If spec and task do not fit together.
pub fn work(spec: &Spec, recipe: &Recipe, threads: usize) -> Result<Work, Error> {
    let sizes = sizes(spec, recipe)?;
    let matrix = |s: &&compiler::model::State| matches!(s.shape, Shape::Matrix { .. });
    let elements = spec.model.states.iter().filter(matrix).map(|s| sizes.count(s.shape)).sum();
    let batch = recipe.schedule.batch;
    let steps = recipe.task.text().map_or(recipe.task.steps(), |t| t.windows(batch, 0).longest());
    // A world that has code for devices answers there.
    let answers = matches!(recipe.task.goal(), Goal::Act(_)) && recipe.task.device().is_none();
    Ok(Work { elements, batch, steps, answers, threads })
}

/// Whether somebody answers every step of a recipe's task.
fn one_by_one(recipe: &Recipe) -> bool {
    matches!(recipe.task.goal(), Goal::Act(_))
}

/// How fast a recipe's model runs on a device with the kernels that are asked for, by the estimates of the compiler.
///
/// # Errors
/// If spec and task do not fit together.
pub fn mapped(spec: &Spec, recipe: &Recipe, tier: Tier) -> Result<Mapped, Error> {
    let seen = seen(&*recipe.task, &recipe.learner, &recipe.encoder);
    let sizes = bind_sizes(&spec.model, &*recipe.task, seen, &recipe.sizes)?;
    // What asks for a device has the kernels of one.
    let (model, _, _) = in_form(&spec.model, &sizes, recipe, Backend::CRANELIFT)?;
    let (bound, batch) = (bound(&spec.model, &sizes), recipe.schedule.batch);
    let (file, source) = (spec.path.clone(), spec.source.clone());
    let (wish, steps) = (tier.wish(one_by_one(recipe)), longest(recipe));
    Ok(Box::new(move |arch| {
        let threads = 1;
        let usage =
            Use { batch, steps: 1, threads, tapes: Tapes::PerThread, checkpoint_every: None, memory: None };
        let subject = Subject { file: &file, source: &source, model: &model, bound: &bound, usage: &usage };
        let grid = Grid { processors: arch.processors, batch, wanted: Wanted::Fastest };
        let device = cuda::Device::new(*arch, batch).for_steps(steps);
        let candidates = stages::cuda_candidates(&subject, grid, &device).ok()?;
        // What cannot be had is said when it is taken.
        let route = candidates.choose(wish).or_else(|_| candidates.choose(cuda::Wish::default())).ok()?;
        Some(route.directions.map(|d| d.microseconds()))
    }))
}

/// The number of features from which the next word is predicted.
fn features(model: &Model, sizes: &Sizes, wiring: &Wiring, learner: &NextWord) -> Result<usize, Error> {
    let output = &model.outputs[wiring.output.index()];
    let features = sizes.count(output.shape);
    if learner.tied && features != learner.embedding {
        let (name, embedding) = (&output.name, learner.embedding);
        return Err(Error::input(format!(
            "the decoder is tied to the embedding of {embedding} numbers, but output `{name}` has {features}"
        ))
        .help("make both sizes equal, or --set learner.tied=false"));
    }
    Ok(features)
}

/// The form in which a back end keeps plastic matrices, where another was asked for.
///
/// # Errors
/// If it has not that form.
pub fn form(backend: Backend, asked: Prefer) -> Result<Prefer, Error> {
    match (backend, asked) {
        (Backend::Torch(_), Prefer::Events) => {
            let error = Error::usage("the back end torch keeps plastic matrices as matrices, not as events");
            Err(error.help("use --prefer dense"))
        }
        (Backend::Torch(_), Prefer::Auto | Prefer::Dense) => Ok(Prefer::Dense),
        (Backend::Interp | Backend::Compiled(_) | Backend::Device(_), asked) => Ok(asked),
    }
}

/// The sizes of axes, by name.
fn bound(model: &Model, sizes: &Sizes) -> BTreeMap<String, usize> {
    let mut axes = model.axes.clone();
    let known = axes.len() as u32;
    let named = model.axes.named.iter().enumerate().map(|(k, a)| (a.name.clone(), axes.intern_named(k)));
    named.map(|(name, a)| (name, if a.0 < known { sizes.of(a) } else { 1 })).collect()
}

/// The model in its form, with its sizes.
fn in_form(
    model: &Arc<Model>,
    sizes: &Sizes,
    recipe: &Recipe,
    backend: Backend,
) -> Result<(Arc<Model>, Sizes, Form), Error> {
    let bound = bound(model, sizes);
    // Matrices that are carried from window to window have no event at which they were zero.
    let asked = form(backend, recipe.schedule.prefer)?;
    let prefer = if recipe.task.text().is_some() { Prefer::Dense } else { asked };
    let (kept, form) = compiler::form::choose(model, &bound, recipe.task.steps(), prefer)?;
    match kept {
        None => Ok((Arc::clone(model), sizes.clone(), form)),
        Some(kept) => {
            let sizes = Sizes::bind(&kept.axes, &bound)?;
            Ok((Arc::new(kept), sizes, form))
        }
    }
}

/// What a recipe needs in memory.
pub(crate) fn need<'a>(engine: &'a Engine, recipe: &Recipe, threads: usize, mode: Mode) -> Need<'a> {
    let batch = recipe.schedule.batch;
    // Rows that share a baseline, or a softmax, wait for each other, each on a tape of its own.
    let tapes = match &recipe.learner {
        Learner::ActorCritic(a) if a.baseline == Baseline::First => Tapes::PerRow,
        Learner::NextWord(_) => Tapes::Waiting,
        Learner::ActorCritic(_) | Learner::SquaredError(_) | Learner::CrossEntropy(_) => Tapes::PerThread,
    };
    let threads_too = Flags { threads: "--threads ", ..Flags::default() };
    let flags = match mode {
        Mode::Train => Flags { batch: "--set run.batch=", steps: steps_flag(recipe), ..threads_too },
        Mode::Infer | Mode::Forward => threads_too,
    };
    let steps = longest(recipe);
    let usage = Use { batch, steps, threads, tapes, checkpoint_every: None, memory: None };
    let at_once = threads.min(batch) as u64;
    let data = softmax(recipe, batch * steps) + at_once * recipe.encoder.memory(steps);
    Need { engine, usage, mode, data, beside: None, flags }
}

/// Steps of the longest sequence of an update.
pub(crate) fn longest(recipe: &Recipe) -> usize {
    let batch = recipe.schedule.batch;
    recipe.task.text().map_or(recipe.task.steps(), |t| t.windows(batch, 0).longest())
}

/// Bytes of embedding, decoder, their gradients and averages, and of the probabilities of a window.
fn softmax(recipe: &Recipe, tokens: usize) -> u64 {
    match (&recipe.learner, recipe.task.text()) {
        (Learner::NextWord(n), Some(text)) => {
            let words = text.corpus.vocabulary.len() as u64;
            let tables = if n.tied { 1 } else { 2 };
            4 * words * (tables * 4 * n.embedding as u64 + tokens as u64)
        }
        _ => 0,
    }
}

/// Not every task is told its steps; some follow from other options.
fn steps_flag(recipe: &Recipe) -> &'static str {
    let told = recipe.table.get("task").is_some_and(|task| task.get("steps").is_some());
    if told { "--set task.steps=" } else { "" }
}
