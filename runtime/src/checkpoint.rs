//! Checkpoints: everything a run needs to go on with the same bits.
//!
//! A checkpoint is a safetensors file with raw parameters, the optimiser's memory, carried states
//! and the open window of metrics; its note holds counters and a checksum.

use crate::engine::RowState;
use crate::metrics::Window;
use crate::rng::fnv1a;
use crate::tensors::{self, Taker, Tensor, Tensors};
use crate::train::Trainer;
use crate::{Error, files};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// Counters beside the tensors.
#[derive(Debug, Serialize, Deserialize)]
struct Note {
    format: u32,
    update: u64,
    optimiser_steps: u64,
    #[serde(default)]
    averaged_steps: u64,
    checksum: String,
}

/// The version of this format.
const FORMAT: u32 = 1;

/// Checkpoints of a run, newest first.
///
/// # Errors
/// If the folder cannot be listed.
pub fn list(folder: &Path) -> Result<Vec<PathBuf>, Error> {
    let entries = match std::fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(vec![]),
        Err(e) => return Err(Error::file("list", folder, &e)),
    };
    let mut found: Vec<PathBuf> = entries
        .filter_map(|e| e.ok().map(|e| e.path()))
        .filter(|p| p.extension().is_some_and(|x| x == "safetensors"))
        .collect();
    found.sort();
    found.reverse();
    Ok(found)
}

/// Writes a checkpoint and removes all but the two newest.
///
/// # Errors
/// If it cannot be written; older ones are kept then.
pub fn save(folder: &Path, trainer: &Trainer, window: &Window) -> Result<(), Error> {
    let mut all = Tensors::new();
    trainer.params.export_raw(&mut all);
    let names: Vec<&str> = trainer.params.about.iter().map(|a| a.name.as_str()).collect();
    trainer.optimiser.export(&names, &mut all);
    all.insert("window".into(), Tensor::f64(vec![window.sums.len()], window.sums.clone()));
    for (k, state) in trainer.engine.model().states.iter().enumerate().filter(|_| !trainer.carried.is_empty())
    {
        let rows: Vec<f32> = trainer.carried.iter().flat_map(|r| r.states[k].iter().copied()).collect();
        let shape = vec![trainer.carried.len(), rows.len() / trainer.carried.len()];
        all.insert(format!("carry.{}", state.name), Tensor::f32(shape, rows));
    }
    if let Some(memory) = &trainer.language {
        all.insert("history".into(), Tensor::f64(vec![memory.history.len()], memory.history.clone()));
    }
    let note = Note {
        format: FORMAT,
        update: trainer.update,
        optimiser_steps: trainer.optimiser.steps(),
        averaged_steps: trainer.optimiser.averaged(),
        checksum: checksum(&all)?,
    };
    let note =
        serde_json::to_string(&note).map_err(|e| Error::usage(format!("cannot encode a note: {e}")))?;
    files::make_folder(folder)?;
    tensors::write(&folder.join(format!("{:012}.safetensors", trainer.update)), &all, Some(note))?;
    for old in list(folder)?.iter().skip(2) {
        // A checkpoint too many does no harm.
        let _ = std::fs::remove_file(old);
    }
    Ok(())
}

/// Sets a run back to a checkpoint; gives the open window.
///
/// # Errors
/// If the file is damaged or of another model; the run is in no defined state then.
pub fn load(path: &Path, trainer: &mut Trainer) -> Result<Window, Error> {
    let (all, note) = tensors::read(path)?;
    let broken = |what: &str| Error::usage(format!("cannot use `{}`: {what}", path.display()));
    let note: Note = note
        .and_then(|n| serde_json::from_str(&n).ok())
        .ok_or_else(|| broken("it is no checkpoint (its note is missing or damaged)"))?;
    if note.format != FORMAT {
        return Err(broken(&format!("it has format {}, but this version reads {FORMAT}", note.format)));
    }
    if note.checksum != checksum(&all)? {
        return Err(broken("its checksum is wrong, so it is damaged"));
    }
    let mut taker = Taker::new(path.display().to_string(), all);
    trainer.params.import_raw(&mut taker);
    let names: Vec<&str> = trainer.params.about.iter().map(|a| a.name.as_str()).collect();
    let sizes: Vec<usize> = trainer.params.raw.iter().map(Vec::len).collect();
    trainer.optimiser.set_averaged(note.averaged_steps, sizes);
    trainer.optimiser.import(&names, &mut taker);
    let epochs = taker.shape("history").map_or(0, |s| s.iter().product());
    if let Some(memory) = &mut trainer.language {
        memory.history = taker.required("history", &[epochs]).map_or(vec![], |t| t.to_f64());
    }
    let length = taker.shape("window").map_or(0, |s| s.iter().product());
    let sums = taker.required("window", &[length]).map_or(vec![], |t| t.to_f64());
    trainer.carried = load_carried(&mut taker, trainer);
    taker.finish()?;
    trainer.update = note.update;
    trainer.optimiser.set_steps(note.optimiser_steps);
    Ok(Window { sums })
}

fn load_carried(taker: &mut Taker, trainer: &Trainer) -> Vec<RowState> {
    let (model, sizes) = (trainer.engine.model(), trainer.engine.sizes());
    let batch = trainer.recipe.schedule.batch;
    if !taker.names().any(|n| n.starts_with("carry.")) {
        return vec![];
    }
    let mut rows = vec![RowState { states: vec![] }; batch];
    for state in &model.states {
        let count = sizes.count(state.shape);
        if let Some(t) = taker.required(&format!("carry.{}", state.name), &[batch, count]) {
            for (row, numbers) in rows.iter_mut().zip(t.to_f32().chunks(count.max(1))) {
                row.states.push(numbers.to_vec());
            }
        }
    }
    rows
}

/// A hash over names, shapes and numbers.
fn checksum(tensors: &Tensors) -> Result<String, Error> {
    Ok(format!("fnv1a-{:016x}", fnv1a(&tensors::to_bytes(tensors, None)?)))
}
