//! From a recipe to a run in memory: spec, sizes, connections, parameters, kernels.

use crate::Error;
use crate::engine::{Backend, Engine, EngineOptions, Mode};
use crate::learner::{Baseline, Learner};
use crate::memory::{Flags, Need, available};
use crate::params::ParamStore;
use crate::recipe::Recipe;
use crate::spec::Spec;
use crate::train::Trainer;
use crate::wiring::{Wiring, bind_sizes};
use compiler::form::Form;
use compiler::ir::Sizes;
use compiler::loops::plan::{Tapes, Use};
use compiler::model::Model;
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
    let model = Arc::clone(&spec.model);
    let sizes = bind_sizes(&model, &*recipe.task, &recipe.sizes)?;
    let wiring = Wiring::new(&model, &sizes, &*recipe.task, &recipe.learner)?;
    let options = EngineOptions { input_bars: false, ..EngineOptions::default() };
    let (kept, kept_sizes, form) = in_form(&model, &sizes, &recipe)?;
    let engine = Engine::new(kept, kept_sizes, backend, &options)?;
    need(&engine, &recipe, threads, mode).check(available())?;
    let params = ParamStore::new(&model, &sizes, recipe.schedule.seed, &recipe.init)?;
    Ok(Trainer::new(spec, recipe, (engine, form), wiring, params, threads))
}

/// The model in its form, with its sizes.
fn in_form(model: &Arc<Model>, sizes: &Sizes, recipe: &Recipe) -> Result<(Arc<Model>, Sizes, Form), Error> {
    let mut axes = model.axes.clone();
    let known = axes.len() as u32;
    let named = model.axes.named.iter().enumerate().map(|(k, a)| (a.name.clone(), axes.intern_named(k)));
    let bound: BTreeMap<String, usize> =
        named.map(|(name, a)| (name, if a.0 < known { sizes.of(a) } else { 1 })).collect();
    let (kept, form) = compiler::form::choose(model, &bound, recipe.task.steps(), recipe.schedule.prefer)?;
    match kept {
        None => Ok((Arc::clone(model), sizes.clone(), form)),
        Some(kept) => {
            let sizes = Sizes::bind(&kept.axes, &bound)?;
            Ok((Arc::new(kept), sizes, form))
        }
    }
}

fn need<'a>(engine: &'a Engine, recipe: &Recipe, threads: usize, mode: Mode) -> Need<'a> {
    let batch = recipe.schedule.batch;
    // Rows that share a baseline wait for each other, each on a tape of its own.
    let shared = matches!(&recipe.learner, Learner::ActorCritic(a) if a.baseline == Baseline::First);
    let tapes = if shared { Tapes::PerRow } else { Tapes::PerThread };
    let threads_too = Flags { threads: "--threads ", ..Flags::default() };
    let flags = match mode {
        Mode::Train => Flags { batch: "--set run.batch=", steps: steps_flag(recipe), ..threads_too },
        Mode::Infer | Mode::Forward => threads_too,
    };
    let usage =
        Use { batch, steps: recipe.task.steps(), threads, tapes, checkpoint_every: None, memory: None };
    Need { engine, usage, mode, data: 0, flags }
}

/// Not every task is told its steps; some follow from other options.
fn steps_flag(recipe: &Recipe) -> &'static str {
    let told = recipe.table.get("task").is_some_and(|task| task.get("steps").is_some());
    if told { "--set task.steps=" } else { "" }
}
