//! Recipes: TOML files that say what is trained, on what, and how.
//!
//! Reading a recipe yields the things it describes and the *resolved* table: all keys, defaults
//! included. A run keeps the resolved table, so that it can go on unchanged when defaults change.

use crate::cli::PREFERENCES;
use crate::encoder::Encoder;
use crate::learner::Learner;
use crate::optim::Settings;
use crate::options::{Options, Problem};
use crate::task::{self, Task};
use crate::{Error, files};
use compiler::form::Prefer;
use grammar::span::line_column;
use std::collections::BTreeMap;
use std::path::Path;
use toml::de::{DeTable, DeValue};
use toml::{Table, Value};

/// A recipe with everything it describes.
pub struct Recipe {
    /// The spec, relative to the recipe.
    pub spec: String,
    /// The name of the task.
    pub task_name: &'static str,
    /// The task.
    pub task: Box<dyn Task>,
    /// The layers between the images of the task and the spec.
    pub encoder: Encoder,
    /// The learner.
    pub learner: Learner,
    /// The optimiser.
    pub optimiser: Settings,
    /// Sizes of axes.
    pub sizes: BTreeMap<String, usize>,
    /// Constants that replace the declared start of parameters.
    pub init: BTreeMap<String, f64>,
    /// How long and how often.
    pub schedule: Schedule,
    /// All keys.
    pub table: Table,
}

/// How long and how often.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Schedule {
    /// Rows per update.
    pub batch: usize,
    /// Updates of the whole run.
    pub updates: u64,
    /// The seed of everything random.
    pub seed: u64,
    /// Updates per line of metrics.
    pub log_every: u64,
    /// Updates per checkpoint.
    pub checkpoint_every: u64,
    /// How plastic matrices are kept.
    pub prefer: Prefer,
}

/// A replacement of a key, from `--set key=value`.
#[derive(Clone, Debug, PartialEq)]
pub struct Override {
    /// The key: `task.size`.
    pub key: String,
    /// Its value.
    pub value: Value,
}

impl Override {
    /// Reads `key=value`; a value that is no TOML value is a text.
    ///
    /// # Errors
    /// If there is no `=` or no key.
    pub fn parse(text: &str) -> Result<Self, Error> {
        let (key, value) = text
            .split_once('=')
            .filter(|(k, _)| !k.trim().is_empty())
            .ok_or_else(|| Error::usage(format!("`--set {text}` is not of the form `key=value`")))?;
        let value = value.trim();
        let parsed = format!("x = {value}").parse::<Table>().ok().and_then(|mut t| match t.len() {
            1 => t.remove("x"),
            _ => None,
        });
        Ok(Override { key: key.trim().into(), value: parsed.unwrap_or(Value::String(value.into())) })
    }

    /// A replacement made by another flag.
    pub fn new(key: &str, value: impl Into<Value>) -> Self {
        Override { key: key.into(), value: value.into() }
    }

    fn apply(&self, table: &mut Table) -> Result<(), Error> {
        let mut place = table;
        let parts: Vec<&str> = self.key.split('.').collect();
        let (last, path) = parts.split_last().unwrap_or((&"", &[]));
        for part in path {
            let next = place.entry(*part).or_insert_with(|| Value::Table(Table::new()));
            place = next
                .as_table_mut()
                .ok_or_else(|| Error::usage(format!("`--set {}`: `{part}` is no table", self.key)))?;
        }
        place.insert((*last).into(), self.value.clone());
        Ok(())
    }
}

impl Recipe {
    /// Reads a recipe file.
    ///
    /// # Errors
    /// If the file cannot be read or a key is wrong; all wrong keys are named.
    pub fn load(path: &Path, overrides: &[Override]) -> Result<Self, Error> {
        Self::parse(&path.display().to_string(), &files::read_text(path)?, overrides)
    }

    /// Reads the text of a recipe; `place` names it in messages.
    ///
    /// # Errors
    /// If a key is wrong; all wrong keys are named.
    pub fn parse(place: &str, text: &str, overrides: &[Override]) -> Result<Self, Error> {
        let mut table: Table = text.parse().map_err(|e: toml::de::Error| syntax(place, text, &e))?;
        for o in overrides {
            o.apply(&mut table)?;
        }
        let mut root = Options::new("", table);
        let spec = root.text("spec", "", "the spec, relative to this file; FILE.bpm#NAME for one of several");
        if spec.is_empty() {
            root.problem("spec", "a recipe names a spec", Some("add `spec = \"FILE.bpm\"`".into()));
        }
        let (task_name, task, defaults) = read_task(&mut root);
        let encoder = read_encoder(&mut root, &*task);
        let mut o = root.open("learner", "how outputs become a loss");
        let learner = Learner::new(&mut o, task.goal(), &defaults);
        root.close("learner", o);
        let mut o = root.open("optimiser", "how gradients move the parameters");
        let optimiser = Settings::new(&mut o, &defaults);
        root.close("optimiser", o);
        let mut o = root.open("sizes", "sizes of the spec's axes");
        let sizes = o.sizes();
        root.close("sizes", o);
        let mut o = root.open("init", "numbers that replace the declared start of parameters");
        let init = o.numbers();
        root.close("init", o);
        let mut o = root.open("run", "how long and how often");
        let schedule = Schedule::new(&mut o, &defaults, &*task);
        root.close("run", o);
        let (table, problems) = root.finish();
        if !problems.is_empty() {
            return Err(report(place, text, overrides, &problems));
        }
        Ok(Recipe { spec, task_name, task, encoder, learner, optimiser, sizes, init, schedule, table })
    }

    /// The resolved recipe as text.
    pub fn text(&self) -> String {
        self.table.to_string()
    }
}

fn read_task(root: &mut Options) -> (&'static str, Box<dyn Task>, task::Defaults) {
    let mut o = root.open("task", "the task and its options");
    if !o.has("name") {
        let all = task::NAMES.map(|n| format!("\"{n}\"")).join(", ");
        o.problem("name", format!("a recipe names a task: {all}"), Some("add `--task NAME`".into()));
    }
    let index = o.choice("name", 0, &task::NAMES, "the task");
    let (task, defaults) = task::build(index, &mut o);
    root.close("task", o);
    (task::NAMES[index], task, defaults)
}

/// Only tasks with images have something to encode; a recipe of another one keeps its keys.
fn read_encoder(root: &mut Options, task: &dyn Task) -> Encoder {
    if task.image().is_none() && !root.has("encoder") {
        return Encoder::default();
    }
    let mut o = root.open("encoder", "layers between the images of a task and the spec");
    let encoder = Encoder::new(&mut o, task.image());
    root.close("encoder", o);
    encoder
}

impl Schedule {
    fn new(o: &mut Options, defaults: &task::Defaults, task: &dyn Task) -> Self {
        let count = 1..=1 << 32;
        let batch = o.size("batch", defaults.batch, 1..=1 << 20, "rows per update");
        let seed = o.integer("seed", 0, 0..=i64::MAX, "seed of everything random") as u64;
        let updates = match task.text() {
            // The whole run, unless it is said otherwise; a text without words is a mistake told elsewhere.
            Some(text) => text.windows(batch, seed).updates(defaults.epochs).max(1) as i64,
            None => 10_000,
        };
        Schedule {
            batch,
            updates: o.integer("updates", updates, 0..=1 << 32, "updates of the whole run") as u64,
            seed,
            log_every: o.integer("log_every", 10, count.clone(), "updates per line of metrics") as u64,
            checkpoint_every: o.integer("checkpoint_every", 1000, count, "updates per checkpoint") as u64,
            prefer: match o.choice("prefer", 0, &PREFERENCES, "how plastic matrices are kept") {
                1 => Prefer::Dense,
                2 => Prefer::Events,
                _ => Prefer::Auto,
            },
        }
    }
}

fn syntax(place: &str, text: &str, error: &toml::de::Error) -> Error {
    let line = error.span().map_or(1, |s| line_column(text, s.start).0);
    let message = error.message().lines().collect::<Vec<_>>().join("; ");
    Error::usage(format!("{place}:{line}: {message}"))
}

/// All mistakes in one error, each with its line or its `--set`.
fn report(place: &str, text: &str, overrides: &[Override], problems: &[Problem]) -> Error {
    let mut lines = vec![];
    let mut help = vec![];
    for problem in problems {
        let at = if overrides.iter().any(|o| o.key == problem.key) {
            format!("--set {}", problem.key)
        } else {
            match line_of(text, &problem.key) {
                Some(line) => format!("{place}:{line}"),
                None => place.to_string(),
            }
        };
        lines.push(format!("{at}: {}", problem.message));
        help.extend(problem.help.clone());
    }
    help.dedup();
    let mut error = Error::usage(lines.join("\n"));
    error.help = help;
    error
}

/// The line of a key such as `task.size`, or of its nearest list: `encoder.layers.1.size`.
fn line_of(text: &str, key: &str) -> Option<usize> {
    let root = DeTable::parse(text).ok()?;
    let mut table: &DeTable<'_> = root.get_ref();
    let mut parts = key.split('.').peekable();
    while let Some(part) = parts.next() {
        let (name, value) = table.iter().find(|(name, _)| name.get_ref() == part)?;
        let line = |at: usize| line_column(text, at).0;
        if parts.peek().is_none() {
            return Some(line(name.span().start));
        }
        table = match value.get_ref() {
            DeValue::Table(inner) => inner,
            DeValue::Array(items) => {
                let index: usize = parts.next()?.parse().ok()?;
                match items.get(index)?.get_ref() {
                    DeValue::Table(inner)
                        if inner.iter().any(|(n, _)| Some(&&**n.get_ref()) == parts.peek()) =>
                    {
                        inner
                    }
                    _ => return Some(line(items.get(index)?.span().start)),
                }
            }
            _ => return None,
        };
    }
    None
}

/// The recipe of a bare spec: everything at its default.
pub fn bare(spec: &str) -> String {
    Table::from_iter([("spec".to_string(), Value::String(spec.into()))]).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn parse(text: &str, sets: &[&str]) -> Result<Recipe, Error> {
        let sets: Vec<Override> = sets.iter().map(|s| Override::parse(s).expect("set")).collect();
        Recipe::parse("r.toml", text, &sets)
    }

    const SMALL: &str = "spec = \"s.bpm\"\n\n[task]\nname = \"maze\"\nsize = 9\n\n[run]\nseed = 4\n";

    #[test]
    fn resolved_recipes_resolve_to_themselves() {
        let one = parse(SMALL, &["sizes.N=50", "init.eta=0.01"]).expect("ok");
        assert_eq!((one.task_name, one.schedule.seed, one.sizes["N"]), ("maze", 4, 50));
        assert_eq!(one.optimiser.clip, 4.0);
        let two = parse(&one.text(), &[]).expect("ok");
        assert_eq!(one.text(), two.text());
        assert!(one.text().contains("wall_penalty = 0.0"), "{}", one.text());
    }

    #[test]
    fn overrides_replace() {
        let r = parse(SMALL, &["task.name=cue-reward", "task.size=9", "run.batch = 3"]);
        let message = r.err().expect("size is no option of cue-reward").message;
        assert!(message.starts_with("--set task.size: `task` has no key `size`"), "{message}");
        assert_eq!(parse(SMALL, &["run.batch = 3"]).expect("ok").schedule.batch, 3);
        assert!(Override::parse("x").is_err());
        assert_eq!(Override::parse("a.b=\"c\"").expect("ok").value, Value::String("c".into()));
    }

    #[test]
    fn mistakes_have_lines() {
        let text = SMALL.replace("size", "sise").replace("seed = 4", "seed = -4\nlog_evry = 1");
        let error = parse(&text, &[]).err().expect("mistakes");
        let lines: Vec<&str> = error.message.lines().collect();
        assert_eq!(lines.len(), 3, "{lines:?}");
        assert!(
            lines[0].starts_with("r.toml:5: `task` has no key `sise`; it has `name`, `size`"),
            "{lines:?}"
        );
        assert!(lines[1].starts_with("r.toml:8: `run.seed` must be"), "{lines:?}");
        assert!(lines[2].starts_with("r.toml:9: `run` has no key `log_evry`"), "{lines:?}");
        assert_eq!(error.help, ["did you mean `size`?", "did you mean `log_every`?"]);
        assert_eq!(error.exit_code(), 2);
    }

    #[test]
    fn what_must_be_there() {
        let message = parse("", &[]).err().expect("empty").message;
        assert!(message.contains("names a spec") && message.contains("names a task"), "{message}");
        let message = parse("spec = [1\n", &[]).err().expect("syntax").message;
        assert!(message.starts_with("r.toml:"), "{message}");
        let learner = SMALL.to_string() + "[learner]\nname = \"squared-error\"\n";
        assert!(parse(&learner, &[]).err().expect("unsuited").message.contains("does not suit"));
    }

    proptest! {
        #[test]
        fn no_text_panics(text in "[a-z\\[\\]=\".0-9\n# -]{0,80}") {
            let _ = parse(&text, &[]);
        }

        #[test]
        fn no_damage_panics(
            at in 0usize..70,
            with in any::<char>(),
            set in "[a-z.]{0,9}=[0-9a-z\\[{\"]{0,5}",
        ) {
            let damaged = |(k, c)| if k == at { with } else { c };
            let text: String = SMALL.chars().enumerate().map(damaged).collect();
            let sets: Vec<Override> = Override::parse(&set).into_iter().collect();
            let _ = Recipe::parse("r.toml", &text, &sets);
        }
    }
}
