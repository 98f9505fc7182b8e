//! The curve of a run: means over windows of updates, one line of JSON each.

use crate::train::Outcome;
use crate::{Error, files};
use serde_json::{Map, Value};
use std::io::Write;
use std::path::{Path, PathBuf};

/// The names of what a window sums, apart from the task's scores.
const NAMES: [&str; 6] = ["spread", "loss", "grad_norm", "value_loss", "entropy", "penalty"];

/// Sums over the updates since the last line.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Window {
    /// The number of updates, then the sums. Empty at the start of a window.
    pub sums: Vec<f64>,
}

impl Window {
    /// Adds an update.
    pub fn add(&mut self, o: &Outcome) {
        let fixed = [o.spread, o.loss, o.grad_norm, o.value_loss, o.entropy, o.penalty];
        let row: Vec<f64> = [1.0].iter().chain(&fixed).chain(&o.scores).copied().collect();
        self.sums.resize(row.len(), 0.0);
        self.sums.iter_mut().zip(row).for_each(|(s, x)| *s += x);
    }

    /// A line of metrics; empties the window.
    pub fn line(&mut self, update: u64, batch: usize, scores: &[&str], seconds: f64) -> Map<String, Value> {
        let sums = std::mem::take(&mut self.sums);
        let count = sums.first().copied().unwrap_or(1.0);
        let mean = |k: usize| number(sums.get(k).copied().unwrap_or(f64::NAN) / count);
        let mut line = Map::new();
        line.insert("update".into(), update.into());
        line.insert("episodes".into(), (update * batch as u64).into());
        for (k, name) in scores.iter().enumerate() {
            line.insert((*name).into(), mean(1 + NAMES.len() + k));
        }
        for (k, name) in NAMES.iter().enumerate() {
            line.insert((*name).into(), mean(1 + k));
        }
        line.insert("seconds".into(), number((seconds * 1e3).round() / 1e3));
        line
    }
}

fn number(x: f64) -> Value {
    serde_json::Number::from_f64(x).map_or(Value::Null, Value::Number)
}

/// The file that lines are added to.
pub struct Log {
    path: PathBuf,
    file: std::fs::File,
}

impl Log {
    /// Opens the file and drops what lies behind an update: lines of a run that was killed after its
    /// last checkpoint, and a line cut short.
    ///
    /// # Errors
    /// If the file cannot be read or written.
    pub fn open(path: &Path, update: u64) -> Result<(Self, f64), Error> {
        let lines = if path.exists() { read_lines(path)? } else { vec![] };
        let kept: Vec<&Line> = lines.iter().filter(|(_, l)| get(l, "update") <= update as f64).collect();
        // The text is kept as it is: numbers that are read and written may change in the last bit.
        let text: String = kept.iter().map(|(text, _)| text.as_str()).collect();
        files::write(path, text.as_bytes())?;
        let seconds = kept.last().map_or(0.0, |(_, l)| get(l, "seconds"));
        let file = std::fs::OpenOptions::new().append(true).open(path);
        let file = file.map_err(|e| Error::file("write", path, &e))?;
        Ok((Log { path: path.into(), file }, seconds))
    }

    /// Adds a line.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn add(&mut self, line: Map<String, Value>) -> Result<(), Error> {
        let text = Value::Object(line).to_string() + "\n";
        self.file.write_all(text.as_bytes()).map_err(|e| Error::file("write", &self.path, &e))
    }

    /// Flushes to the disk.
    ///
    /// # Errors
    /// If the system cannot.
    pub fn sync(&self) -> Result<(), Error> {
        self.file.sync_all().map_err(|e| Error::file("write", &self.path, &e))
    }
}

/// All whole lines of a metrics file, up to the first broken one.
///
/// # Errors
/// If the file cannot be read.
pub fn read(path: &Path) -> Result<Vec<Map<String, Value>>, Error> {
    Ok(read_lines(path)?.into_iter().map(|(_, line)| line).collect())
}

/// A line as text and as what it says.
type Line = (String, Map<String, Value>);

/// The same, with the text of every line.
fn read_lines(path: &Path) -> Result<Vec<Line>, Error> {
    let bytes = files::read(path)?;
    let text = String::from_utf8_lossy(&bytes);
    let parsed = text.split_inclusive('\n').map_while(|line| {
        let whole = line.strip_suffix('\n')?;
        let object: Map<String, Value> = serde_json::from_str(whole).ok()?;
        object.contains_key("update").then(|| (line.to_string(), object))
    });
    Ok(parsed.collect())
}

/// A number of a line; not a number if it is missing.
pub fn get(line: &Map<String, Value>, name: &str) -> f64 {
    line.get(name).and_then(Value::as_f64).unwrap_or(f64::NAN)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_are_means() {
        let mut w = Window::default();
        for x in [1.0, 3.0] {
            w.add(&Outcome { scores: vec![x], loss: 2.0 * x, ..Outcome::default() });
        }
        let line = w.line(20, 30, &["return"], 1.23456);
        assert_eq!((get(&line, "return"), get(&line, "loss"), get(&line, "episodes")), (2.0, 4.0, 600.0));
        assert_eq!(get(&line, "seconds"), 1.235);
        assert_eq!(w, Window::default());
    }

    #[test]
    fn what_lies_behind_a_checkpoint_is_dropped() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("metrics.jsonl");
        let text = "{\"update\":10,\"seconds\":1.5}\n{\"update\":20,\"seconds\":3}\n{\"update\":30}\n{\"upd";
        std::fs::write(&path, text).expect("write");
        let (mut log, seconds) = Log::open(&path, 20).expect("open");
        assert_eq!(seconds, 3.0);
        log.add(Map::from_iter([("update".to_string(), 30.into())])).expect("add");
        let found: Vec<f64> = read(&path).expect("read").iter().map(|l| get(l, "update")).collect();
        assert_eq!(found, [10.0, 20.0, 30.0]);
        std::fs::write(&path, [0xff, b'\n', b'{']).expect("write");
        assert_eq!(read(&path).expect("read").len(), 0);
    }
}
