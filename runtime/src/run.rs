//! A run is a folder.
//!
//! ```text
//! run.json             what this run is: hashes, versions, device, back end, seed, flags; where it went on
//! spec.bpm             the spec as it was
//! recipe.toml          the resolved recipe
//! metrics.jsonl        the curve
//! checkpoints/         the two newest checkpoints
//! params.safetensors   parameters in the units of the spec, as of the last checkpoint
//! best.safetensors     the same after the epoch with the best validation, for language models
//! vocabulary.txt       the words of a language model
//! ```
//!
//! Files are written beside and renamed into place, so a kill at any time leaves a run that can go
//! on. `run.json` is written last: a folder that has it is complete.

use crate::engine::device::Tier;
use crate::engine::{Backend, Engine, device};
use crate::error::{Error, Kind};
use crate::language::Validation;
use crate::metrics::{self, Log, Window};
use crate::recipe::{Override, Recipe};
use crate::rng::fnv1a;
use crate::spec::{self, Spec};
use crate::timings::Phase;
use crate::train::{Outcome, Trainer};
use crate::{checkpoint, files, rollout, setup, tensors};
use ::torch::Place;
use compiler::form::Prefer;
use serde_json::{Map, Value, json};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

/// The version of the layout of the folder.
const FORMAT: u64 = 1;

/// The parameters of the best epoch.
pub const BEST: &str = "best.safetensors";
/// The words of a language model.
const VOCABULARY: &str = "vocabulary.txt";

/// Where the numbers of a run are computed.
#[derive(Clone, Copy, Debug)]
pub struct Machine {
    /// The back end.
    pub backend: Backend,
    /// Threads; no result depends on it.
    pub threads: usize,
    /// Which kernels run on a device.
    pub tier: Tier,
}

/// A run with its folder, ready to go.
pub struct Run {
    /// The folder.
    pub folder: PathBuf,
    /// The run in memory.
    pub trainer: Trainer,
    window: Window,
    log: Log,
    seconds: f64,
    saved: u64,
    _lock: std::fs::File,
}

/// Is told how a run goes.
pub trait Observer {
    /// An update is done.
    fn update(&mut self, trainer: &Trainer, outcome: &Outcome);
    /// An epoch of a text is over.
    fn epoch(&mut self, _trainer: &Trainer, _validation: Validation) {}
    /// A line of metrics was written.
    fn line(&mut self, line: &Map<String, Value>);
}

/// A finished or unfinished run, read back.
pub struct Stored {
    /// What `run.json` says.
    pub about: Value,
    /// The spec.
    pub spec: Spec,
    /// The recipe.
    pub recipe: Recipe,
}

impl Run {
    /// Starts a run in a new folder.
    ///
    /// # Errors
    /// If the folder has something in it or cannot be written.
    pub fn create(folder: &Path, trainer: Trainer, machine: Machine) -> Result<Self, Error> {
        Self::create_with(folder, trainer, machine, Value::Null)
    }

    /// Starts a run whose parameters come from a file: `start` is what `run.json` says of that. They are kept in a
    /// first checkpoint, so that the run can go on without the file.
    ///
    /// # Errors
    /// If the folder has something in it or cannot be written.
    pub fn create_from(
        folder: &Path,
        trainer: Trainer,
        machine: Machine,
        start: Value,
    ) -> Result<Self, Error> {
        let run = Self::create_with(folder, trainer, machine, start)?;
        checkpoint::save(&folder.join("checkpoints"), &run.trainer, &run.window)?;
        Ok(run)
    }

    fn create_with(folder: &Path, trainer: Trainer, machine: Machine, start: Value) -> Result<Self, Error> {
        let taken = std::fs::read_dir(folder)
            .is_ok_and(|mut entries| entries.any(|e| e.is_ok_and(|e| e.file_name() != "run.lock")));
        if taken {
            let error = Error::usage(format!("`{}` is not empty", folder.display()));
            return Err(match is_run(folder) {
                true => {
                    error.help("go on with that run: --resume").help("or choose another folder: --out DIR")
                }
                false => error.help("choose another folder: --out DIR"),
            });
        }
        files::make_folder(&folder.join("checkpoints"))?;
        let lock = lock(folder)?;
        files::write(&folder.join("spec.bpm"), trainer.spec.source.as_bytes())?;
        files::write(&folder.join("recipe.toml"), trainer.recipe.text().as_bytes())?;
        if let Some(text) = trainer.recipe.task.text() {
            files::write(&folder.join(VOCABULARY), text.corpus.vocabulary.text().as_bytes())?;
        }
        let mut about = about(&trainer, machine);
        if start != Value::Null {
            about["start"] = start;
        }
        files::write(&folder.join("run.json"), pretty(&about).as_bytes())?;
        Self::open(folder, trainer, Window::default(), lock)
    }

    /// Goes on with the run of a folder, which must have the same spec and recipe; only the number
    /// of updates and of updates per checkpoint may differ. `run.json` is told where it goes on.
    /// Gives warnings.
    ///
    /// # Errors
    /// If there is no run, it differs, or none of its checkpoints can be read.
    pub fn resume(
        folder: &Path,
        mut trainer: Trainer,
        machine: Machine,
    ) -> Result<(Self, Vec<String>), Error> {
        let text = trainer.recipe.task.text();
        let moved = text.map(|t| Override::new("task.data", t.folder.display().to_string()));
        let stored = load(folder, moved.as_slice())?;
        let lock = lock(folder)?;
        same(folder, &stored, &trainer)?;
        same_words(folder, &trainer)?;
        let mut warnings = vec![];
        let mut window = Window::default();
        let checkpoints = checkpoint::list(&folder.join("checkpoints"))?;
        for path in &checkpoints {
            match checkpoint::load(path, &mut trainer) {
                Ok(w) => {
                    window = w;
                    break;
                }
                Err(e) => warnings.push(e.message),
            }
        }
        if warnings.len() == checkpoints.len() && !checkpoints.is_empty() {
            return Err(Error::usage(warnings.join("\n"))
                .help("no checkpoint of this run can be read; start again in another folder"));
        }
        files::write(&folder.join("recipe.toml"), trainer.recipe.text().as_bytes())?;
        let about = resumed(stored.about, &trainer, machine);
        files::write(&folder.join("run.json"), pretty(&about).as_bytes())?;
        Ok((Self::open(folder, trainer, window, lock)?, warnings))
    }

    fn open(folder: &Path, trainer: Trainer, window: Window, lock: std::fs::File) -> Result<Self, Error> {
        let (log, seconds) = Log::open(&folder.join("metrics.jsonl"), trainer.update)?;
        let saved = trainer.update;
        Ok(Run { folder: folder.into(), trainer, window, log, seconds, saved, _lock: lock })
    }

    /// Trains until the recipe's number of updates, or until `stop`.
    ///
    /// # Errors
    /// If a number is not finite, a file cannot be written, or the user stops.
    pub fn go(&mut self, observer: &mut dyn Observer, stop: &AtomicBool) -> Result<(), Error> {
        let start = Instant::now();
        let before = self.seconds;
        let schedule = self.trainer.recipe.schedule;
        while self.trainer.update < schedule.updates {
            if stop.load(Ordering::Relaxed) {
                self.save()?;
                let update = self.trainer.update;
                let message = format!("interrupted after update {update}; a checkpoint is saved");
                let help = format!("go on with: bpm train {} --resume", self.folder.display());
                return Err(Error::new(Kind::Interrupted, message).help(help));
            }
            let outcome = self.trainer.step().map_err(|e| self.with_checkpoint(e))?;
            self.window.add(&outcome);
            observer.update(&self.trainer, &outcome);
            let update = self.trainer.update;
            let epoch = self.trainer.validate().map_err(|e| self.with_checkpoint(e))?;
            if update.is_multiple_of(schedule.log_every) || update == schedule.updates || epoch.is_some() {
                let scores = self.trainer.recipe.task.scores();
                let seconds = before + start.elapsed().as_secs_f64();
                let mut line = self.window.line(update, schedule.batch, scores, seconds);
                self.about_words(&mut line, epoch);
                observer.line(&line);
                self.log.add(line)?;
            }
            if let Some(validation) = epoch {
                observer.epoch(&self.trainer, validation);
                if validation.best {
                    let values = self.trainer.evaluated().export();
                    tensors::write(&self.folder.join(BEST), &values, None)?;
                }
            }
            if update.is_multiple_of(schedule.checkpoint_every) {
                self.save()?;
            }
            if let Some(timings) = &mut self.trainer.timings {
                timings.lap(Phase::Files);
                timings.end(update);
            }
        }
        self.seconds = before + start.elapsed().as_secs_f64();
        self.save()
    }

    /// What a line of metrics says of a language model.
    fn about_words(&self, line: &mut Map<String, Value>, epoch: Option<Validation>) {
        let Some(memory) = &self.trainer.language else { return };
        let number = |x: f64| serde_json::Number::from_f64(x).map_or(Value::Null, Value::Number);
        for other in ["episodes", "value_loss", "entropy"] {
            line.remove(other);
        }
        line.insert("perplexity".into(), number(metrics::get(line, "cross_entropy").exp()));
        let last = memory.windows.at(self.trainer.update.saturating_sub(1));
        line.insert("epoch".into(), (last.epoch + 1).into());
        if let Some(v) = epoch {
            line.insert("valid_loss".into(), number(v.loss));
            line.insert("valid_ppl".into(), number(v.loss.exp()));
        }
    }

    fn save(&mut self) -> Result<(), Error> {
        let exported = self.folder.join("params.safetensors");
        if self.saved == self.trainer.update && exported.exists() {
            return Ok(());
        }
        self.log.sync()?;
        self.trainer.settle()?;
        checkpoint::save(&self.folder.join("checkpoints"), &self.trainer, &self.window)?;
        tensors::write(&exported, &self.trainer.params.export(), None)?;
        self.saved = self.trainer.update;
        Ok(())
    }

    fn with_checkpoint(&self, error: Error) -> Error {
        match self.saved {
            0 => error,
            n => {
                error.help(format!("the checkpoint after update {n} is kept in `{}`", self.folder.display()))
            }
        }
    }
}

/// Whether a folder holds a run.
pub fn is_run(folder: &Path) -> bool {
    folder.join("run.json").is_file()
}

/// What `run.json` says, and the keys of the recipe: without the spec, the task and its data.
///
/// # Errors
/// If it is no run or a file is damaged.
pub fn describe(folder: &Path) -> Result<(Value, toml::Table), Error> {
    let about = about_run(folder)?;
    let path = folder.join("recipe.toml");
    let recipe = files::read_text(&path)?.parse::<toml::Table>().map_err(|e| {
        Error::usage(format!("cannot use `{}`: it is no TOML ({})", path.display(), e.message()))
    })?;
    Ok((about, recipe))
}

/// Reads `run.json`.
fn about_run(folder: &Path) -> Result<Value, Error> {
    if !is_run(folder) {
        let error = Error::usage(format!("`{}` is no run: it has no run.json", folder.display()));
        return Err(error.help("a run is a folder made by `bpm train`"));
    }
    let path = folder.join("run.json");
    let broken = |what: &str| Error::usage(format!("cannot use `{}`: {what}", path.display()));
    let about: Value = serde_json::from_str(&files::read_text(&path)?)
        .map_err(|e| broken(&format!("it is no JSON ({e})")))?;
    match about["format"].as_u64() {
        Some(FORMAT) => {}
        Some(n) => return Err(broken(&format!("it has format {n}, but this version reads {FORMAT}"))),
        None => return Err(broken("it has no format number")),
    }
    Ok(about)
}

/// Reads a run's spec and recipe back.
///
/// # Errors
/// If it is no run or a file is damaged.
pub fn load(folder: &Path, overrides: &[Override]) -> Result<Stored, Error> {
    let about = about_run(folder)?;
    let place = folder.join("spec.bpm");
    let name = about["spec"]["name"].as_str();
    let spec = spec::compile(&place.display().to_string(), files::read_text(&place)?, name)?;
    let recipe = Recipe::load(&folder.join("recipe.toml"), overrides)?;
    Ok(Stored { about, spec, recipe })
}

/// Reads a run back with its exported parameters.
///
/// # Errors
/// If it is no run, or has no parameters yet.
pub fn load_trained(
    folder: &Path,
    machine: Machine,
    prefer: Option<Prefer>,
    overrides: &[Override],
) -> Result<Trainer, Error> {
    let stored = load(folder, overrides)?;
    let mut recipe = stored.recipe;
    recipe.schedule.prefer = prefer.unwrap_or(recipe.schedule.prefer);
    let mode = rollout::mode(&*recipe.task);
    let mut trainer = setup::trainer_on(stored.spec, recipe, machine, mode)?;
    same_words(folder, &trainer)?;
    let best = folder.join(BEST);
    let path = if best.exists() { best } else { folder.join("params.safetensors") };
    if !path.exists() {
        let error = Error::usage(format!("`{}` has no parameters yet", folder.display()));
        return Err(error.help("they are written with the first checkpoint"));
    }
    let (found, _) = tensors::read(&path)?;
    trainer.params.import(&path.display().to_string(), found)?;
    Ok(trainer)
}

/// A text must have the words that a run was made with.
fn same_words(folder: &Path, trainer: &Trainer) -> Result<(), Error> {
    let Some(text) = trainer.recipe.task.text() else { return Ok(()) };
    let path = folder.join(VOCABULARY);
    let Some((line, own, theirs)) = text.corpus.vocabulary.difference(&files::read_text(&path)?) else {
        return Ok(());
    };
    let (path, data) = (path.display(), text.folder.display());
    Err(Error::usage(format!(
        "{path}:{line}: the run was made with another vocabulary: word {line} is `{theirs}` there, and `{own}` in the text in `{data}`"
    ))
    .help("give the folder of the text that the run was trained on: --data FOLDER"))
}

fn same(folder: &Path, stored: &Stored, trainer: &Trainer) -> Result<(), Error> {
    let differs = |what: &str, why: String| {
        Err(Error::usage(format!("cannot resume `{}`: the {what} has changed{why}", folder.display()))
            .help("start a new run with --out DIR, or go on with `bpm train RUN --resume`"))
    };
    if stored.spec.source != trainer.spec.source || stored.spec.model.name != trainer.spec.model.name {
        return differs("spec", String::new());
    }
    let strip = |table: &toml::Table| {
        let mut table = table.clone();
        table.remove("spec");
        if let Some(task) = table.get_mut("task").and_then(toml::Value::as_table_mut) {
            task.remove("data");
        }
        if let Some(run) = table.get_mut("run").and_then(toml::Value::as_table_mut) {
            run.remove("updates");
            run.remove("checkpoint_every");
        }
        table
    };
    let (old, new) = (strip(&stored.recipe.table), strip(&trainer.recipe.table));
    match first_difference("", &old, &new) {
        None => Ok(()),
        Some(text) => differs("recipe", format!(": {text}")),
    }
}

/// `task.size was 11 and is 13`.
fn first_difference(path: &str, old: &toml::Table, new: &toml::Table) -> Option<String> {
    let mut keys: Vec<&String> = old.keys().chain(new.keys()).collect();
    keys.sort();
    keys.dedup();
    keys.into_iter().find_map(|key| {
        let at = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
        match (old.get(key), new.get(key)) {
            (Some(toml::Value::Table(a)), Some(toml::Value::Table(b))) => first_difference(&at, a, b),
            (a, b) if a == b => None,
            (Some(a), Some(b)) => Some(format!("`{at}` was {a} and is {b}")),
            (Some(a), None) => Some(format!("`{at}` was {a} and is not given")),
            (None, b) => {
                Some(format!("`{at}` was not given and is {}", b.map_or(String::new(), |b| b.to_string())))
            }
        }
    })
}

fn lock(folder: &Path) -> Result<std::fs::File, Error> {
    let path = folder.join("run.lock");
    let file = std::fs::OpenOptions::new().create(true).append(true).open(&path);
    let file = file.map_err(|e| Error::file("write", &path, &e))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(std::fs::TryLockError::WouldBlock) => {
            Err(Error::usage(format!("another process is training in `{}`", folder.display())))
        }
        // A file system without locks: nothing to protect us, nothing to refuse.
        Err(std::fs::TryLockError::Error(_)) => Ok(file),
    }
}

fn about(trainer: &Trainer, machine: Machine) -> Value {
    let hash = |text: &str| format!("fnv1a-{:016x}", fnv1a(text.as_bytes()));
    let mut about = json!({
        "format": FORMAT,
        "spec": {
            "name": trainer.spec.model.name,
            "path": trainer.spec.path,
            "hash": hash(&trainer.spec.source),
        },
        "recipe_hash": hash(&trainer.recipe.text()),
        "task": trainer.recipe.task_name,
        "seed": trainer.recipe.schedule.seed,
        "parameters": trainer.params.count(),
    });
    append(&mut about, place(machine, &trainer.engine, &trainer.recipe));
    about
}

/// What a run record says of a run that goes on after an update.
fn resumed(mut about: Value, trainer: &Trainer, machine: Machine) -> Value {
    let mut entry = json!({ "update": trainer.update });
    append(&mut entry, place(machine, &trainer.engine, &trainer.recipe));
    match about.get_mut("resumed").and_then(Value::as_array_mut) {
        Some(entries) => entries.push(entry),
        None => about["resumed"] = json!([entry]),
    }
    about
}

fn append(object: &mut Value, more: Value) {
    if let (Some(object), Value::Object(more)) = (object.as_object_mut(), more) {
        object.extend(more);
    }
}

/// Where numbers are computed from now on.
fn place(machine: Machine, engine: &Engine, recipe: &Recipe) -> Value {
    let started = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let mut place = json!({
        "bpm": env!("CARGO_PKG_VERSION"),
        "device": device(machine.backend),
        "backend": machine.backend.name(),
        "simd": simd(),
        "denormals": crate::engine::DENORMALS,
        "threads": machine.threads,
        "started": started.map_or(0, |t| t.as_secs()),
        "flags": std::env::args().skip(1).collect::<Vec<_>>(),
    });
    if let Some(route) = engine.route() {
        let estimates = route
            .directions
            .each_ref()
            .map(|d| json!({ "steps": d.steps, "sequences": d.sequences.as_ref().ok() }));
        append(
            &mut place,
            json!({ "tiers": route.tiers(), "tier_why": route.why(), "tier_microseconds": estimates }),
        );
        if let Some(states) = engine.states(recipe.schedule.batch, crate::setup::longest(recipe)) {
            append(&mut place, json!({ "states": states }));
        }
    }
    place
}

/// The name of the device.
fn device(backend: Backend) -> String {
    match backend {
        Backend::Interp | Backend::Compiled(_) | Backend::Torch(Place::Processor) => "cpu".to_owned(),
        Backend::Torch(Place::Cuda(number)) => format!("cuda:{number}"),
        Backend::Device(id) => device::open(id).map_or(id.name().to_owned(), |d| d.about().name.clone()),
    }
}

/// The processor, and those of its vector extensions that matter.
fn simd() -> Vec<&'static str> {
    let extensions = extensions();
    std::iter::once(std::env::consts::ARCH)
        .chain(extensions.into_iter().filter(|(_, has)| *has).map(|(name, _)| name))
        .collect()
}

#[cfg(target_arch = "x86_64")]
fn extensions() -> Vec<(&'static str, bool)> {
    vec![
        ("avx2", std::arch::is_x86_feature_detected!("avx2")),
        ("fma", std::arch::is_x86_feature_detected!("fma")),
        ("avx512f", std::arch::is_x86_feature_detected!("avx512f")),
    ]
}

#[cfg(not(target_arch = "x86_64"))]
fn extensions() -> Vec<(&'static str, bool)> {
    vec![]
}

fn pretty(value: &Value) -> String {
    format!("{value:#}\n")
}
