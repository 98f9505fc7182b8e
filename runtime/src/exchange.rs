//! Parameters to PyTorch and back: the files that the module of `bpmc compile --target torch` loads and saves.
//!
//! A state dict holds a parameter under its name in the spec; a parameter with a range is the raw number under
//! `NAME.raw` ([`crate::params::About::key`]). `bpm export` writes such a file from a run, with the same bits as the
//! run has. Where a command takes parameters it takes such a file as well as one in the units of the spec.
//!
//! What a run learns beside its spec (an embedding, a decoder, an encoder of images) is no part of the module.
//! It is left out, and said to be, unless it is asked for.

use crate::params::ParamStore;
use crate::recipe::Override;
use crate::rng::fnv1a;
use crate::run::{self, BEST};
use crate::tensors::{self, Tensors};
use crate::train::Trainer;
use crate::{Error, checkpoint, files, setup};
use compiler::back::torch;
use compiler::ir::Axis;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// The parameters of a run, for PyTorch.
pub struct Exported {
    /// The state dict.
    pub tensors: Tensors,
    /// Names of what the run learned beside the spec, if it is left out.
    pub left_out: Vec<String>,
    /// Where they are from.
    pub source: PathBuf,
    /// The module, with the sizes of the run.
    pub module: String,
}

/// Which parameters of a run are wanted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    /// Those of the last checkpoint, also where better ones were found before.
    pub last: bool,
    /// What is no part of the spec, too.
    pub others: bool,
}

/// Reads the parameters of a run as the emitted module keeps them: the best ones of a language model, otherwise the
/// last ones.
///
/// # Errors
/// If it is no run, has no parameters yet, or a file is damaged.
pub fn export(folder: &Path, wanted: Wanted, overrides: &[Override]) -> Result<Exported, Error> {
    let stored = run::load(folder, overrides)?;
    let (model, recipe) = (&stored.spec.model, &stored.recipe);
    let sizes = setup::sizes(&stored.spec, recipe)?;
    let mut params = ParamStore::new(model, &sizes, recipe.schedule.seed, &recipe.init)?;
    let (source, found) = read(folder, wanted, &params)?;
    let names: Vec<String> = params.about.iter().flat_map(|a| [a.name.clone(), a.key.clone()]).collect();
    let (own, others): (Tensors, Tensors) = found.into_iter().partition(|(name, _)| names.contains(name));
    params.import(&source.display().to_string(), own).map_err(|e| {
        if wanted.last { e } else { e.help("take the parameters of the last checkpoint: --last") }
    })?;
    let mut tensors = params.state_dict();
    let mut left_out = vec![];
    match wanted.others {
        true => tensors.extend(others),
        false => left_out.extend(others.into_keys()),
    }
    let axes = (0..model.axes.len() as u32).map(Axis);
    let bound: BTreeMap<String, usize> = axes
        .filter_map(|axis| {
            let named = model.axes.named.iter().find(|a| a.name == model.axes.text(axis))?;
            Some((named.name.clone(), sizes.of(axis)))
        })
        .collect();
    let module = torch::emit(model, &bound, &stored.spec.path);
    Ok(Exported { tensors, left_out, source, module })
}

/// The file with the wanted parameters, and its tensors under names or keys.
fn read(folder: &Path, wanted: Wanted, params: &ParamStore) -> Result<(PathBuf, Tensors), Error> {
    let best = folder.join(BEST);
    if best.exists() && !wanted.last {
        let (found, _) = tensors::read(&best)?;
        return Ok((best, found));
    }
    let newest = checkpoint::list(&folder.join("checkpoints"))?.into_iter().next();
    let Some(path) = newest else {
        let error = Error::usage(format!("`{}` has no parameters yet", folder.display()));
        return Err(error.help("they are written with the first checkpoint"));
    };
    let found = raw(&path, params)?;
    Ok((path, found))
}

/// The raw numbers of a checkpoint, under the keys of parameters.
fn raw(path: &Path, params: &ParamStore) -> Result<Tensors, Error> {
    let (found, _) = tensors::read(path)?;
    let key = |name: &str| match params.about.iter().find(|a| a.name == name) {
        Some(about) => about.key.clone(),
        None => name.to_owned(),
    };
    Ok(found.into_iter().filter_map(|(name, t)| Some((key(name.strip_prefix("raw.")?), t))).collect())
}

/// Starts a training run from the parameters of a file. Gives what `run.json` says of it, and the names of what
/// starts as it is drawn, since the file does not have it.
///
/// # Errors
/// If the file cannot be read, or a tensor is missing, unknown, misshapen or outside of its range.
pub fn start(trainer: &mut Trainer, path: &Path) -> Result<(serde_json::Value, Vec<String>), Error> {
    let (found, _) = tensors::read(path)?;
    let count = trainer.spec.model.params.len();
    let place = path.display().to_string();
    let left = trainer.params.import_first(count, &place, found)?;
    let hash = format!("fnv1a-{:016x}", fnv1a(&files::read(path)?));
    Ok((serde_json::json!({ "params": place, "hash": hash }), left))
}
