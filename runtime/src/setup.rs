//! From a recipe to a run in memory: spec, sizes, connections, parameters, kernels.

use crate::Error;
use crate::engine::{Backend, Engine, EngineOptions};
use crate::params::ParamStore;
use crate::recipe::Recipe;
use crate::spec::Spec;
use crate::train::Trainer;
use crate::wiring::{Wiring, bind_sizes};
use std::sync::Arc;

/// Builds everything a recipe describes.
///
/// # Errors
/// If spec and task do not fit together, or the engine refuses the model.
pub fn trainer(spec: Spec, recipe: Recipe, backend: Backend, threads: usize) -> Result<Trainer, Error> {
    let model = Arc::clone(&spec.model);
    let sizes = bind_sizes(&model, &*recipe.task, &recipe.sizes)?;
    let wiring = Wiring::new(&model, &sizes, &*recipe.task, &recipe.learner)?;
    let params = ParamStore::new(&model, &sizes, recipe.schedule.seed, &recipe.init)?;
    let options = EngineOptions { input_bars: false, ..EngineOptions::default() };
    let engine = Engine::new(model, sizes, backend, &options)?;
    Ok(Trainer::new(spec, recipe, engine, wiring, params, threads))
}
