//! Reads a table of options and writes down what it took, defaults included.
//!
//! One pass does three things: it checks what the user gave, fills in what was not given, and so
//! makes the resolved table a run keeps. Mistakes are collected, not thrown one by one. The list
//! of what was asked for is also the documentation that `bpm tasks` prints.

use grammar::diag::did_you_mean;
use std::ops::RangeInclusive;
use toml::{Table, Value};

/// A mistake at a key.
#[derive(Clone, Debug, PartialEq)]
pub struct Problem {
    /// The key, with the tables around it: `task.size`.
    pub key: String,
    /// What is wrong.
    pub message: String,
    /// What to do.
    pub help: Option<String>,
}

/// What is known of an option.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    /// Its key.
    pub key: &'static str,
    /// The value it has if it is not given.
    pub default: String,
    /// What it does.
    pub doc: &'static str,
}

/// A table being read.
#[derive(Debug)]
pub struct Options {
    path: String,
    given: Table,
    resolved: Table,
    entries: Vec<Entry>,
    problems: Vec<Problem>,
}

impl Options {
    /// Starts reading a table found at `path` (empty for the root).
    pub fn new(path: &str, given: Table) -> Self {
        Options { path: path.into(), given, resolved: Table::new(), entries: vec![], problems: vec![] }
    }

    fn full(&self, key: &str) -> String {
        if self.path.is_empty() { key.into() } else { format!("{}.{key}", self.path) }
    }

    /// Notes a mistake at a key.
    pub fn problem(&mut self, key: &str, message: impl Into<String>, help: Option<String>) {
        self.problems.push(Problem { key: self.full(key), message: message.into(), help });
    }

    fn take(&mut self, key: &'static str, default: String, doc: &'static str) -> Option<Value> {
        self.entries.push(Entry { key, default, doc });
        self.given.remove(key)
    }

    /// Says that a value is not what the key wants.
    fn wrong(&mut self, key: &str, wanted: &str, found: &Value) {
        let text = match found {
            Value::String(s) => format!("\"{s}\""),
            Value::Table(_) => "a table".into(),
            Value::Array(_) => "a list".into(),
            other => other.to_string(),
        };
        self.problem(key, format!("`{}` must be {wanted}, but it is {text}", self.full(key)), None);
    }

    /// A whole number in a range.
    pub fn integer(
        &mut self,
        key: &'static str,
        default: i64,
        range: RangeInclusive<i64>,
        doc: &'static str,
    ) -> i64 {
        let value = match self.take(key, default.to_string(), doc) {
            None => default,
            Some(Value::Integer(n)) if range.contains(&n) => n,
            Some(other) => {
                let wanted = match (*range.start(), *range.end()) {
                    (low, i64::MAX) => format!("a whole number, at least {low}"),
                    (low, high) => format!("a whole number from {low} to {high}"),
                };
                self.wrong(key, &wanted, &other);
                default
            }
        };
        self.resolved.insert(key.into(), Value::Integer(value));
        value
    }

    /// [`Options::integer`] as a size.
    pub fn size(
        &mut self,
        key: &'static str,
        default: usize,
        range: RangeInclusive<usize>,
        doc: &'static str,
    ) -> usize {
        let range = *range.start() as i64..=i64::try_from(*range.end()).unwrap_or(i64::MAX);
        self.integer(key, default as i64, range, doc) as usize
    }

    /// A finite number in a range.
    pub fn number(
        &mut self,
        key: &'static str,
        default: f64,
        range: RangeInclusive<f64>,
        doc: &'static str,
    ) -> f64 {
        let value = match self.take(key, default.to_string(), doc) {
            None => default,
            Some(Value::Float(x)) if x.is_finite() && range.contains(&x) => x,
            Some(Value::Integer(n)) if range.contains(&(n as f64)) => n as f64,
            Some(other) => {
                let wanted = match (*range.start(), *range.end()) {
                    (f64::NEG_INFINITY, f64::INFINITY) => "a finite number".into(),
                    (low, f64::INFINITY) => format!("a finite number, at least {low}"),
                    (low, high) => format!("a number from {low} to {high}"),
                };
                self.wrong(key, &wanted, &other);
                default
            }
        };
        self.resolved.insert(key.into(), Value::Float(value));
        value
    }

    /// `true` or `false`.
    pub fn flag(&mut self, key: &'static str, default: bool, doc: &'static str) -> bool {
        let value = match self.take(key, default.to_string(), doc) {
            None => default,
            Some(Value::Boolean(b)) => b,
            Some(other) => {
                self.wrong(key, "`true` or `false`", &other);
                default
            }
        };
        self.resolved.insert(key.into(), Value::Boolean(value));
        value
    }

    /// Any text.
    pub fn text(&mut self, key: &'static str, default: &str, doc: &'static str) -> String {
        let value = match self.take(key, format!("\"{default}\""), doc) {
            None => default.to_string(),
            Some(Value::String(s)) => s,
            Some(other) => {
                self.wrong(key, "a text in quotes", &other);
                default.to_string()
            }
        };
        self.resolved.insert(key.into(), Value::String(value.clone()));
        value
    }

    /// A folder; a relative one is relative to the current folder, and is written down as it is from the root.
    pub fn folder(&mut self, key: &'static str, doc: &'static str) -> std::path::PathBuf {
        let given = self.text(key, "", doc);
        let path = match given.as_str() {
            "" => return std::path::PathBuf::new(),
            path => std::path::absolute(path).unwrap_or_else(|_| path.into()),
        };
        self.resolved.insert(key.into(), Value::String(path.display().to_string()));
        path
    }

    /// One of a few words; gives its index.
    pub fn choice(
        &mut self,
        key: &'static str,
        default: usize,
        choices: &[&'static str],
        doc: &'static str,
    ) -> usize {
        let index = match self.take(key, format!("\"{}\"", choices[default]), doc) {
            None => default,
            Some(Value::String(s)) => match choices.iter().position(|c| *c == s) {
                Some(k) => k,
                None => {
                    let help = nearest(&s, choices.iter().copied());
                    let all = quoted(choices.iter().copied());
                    let message = format!("`{}` is \"{s}\"; it can be {all}", self.full(key));
                    self.problem(key, message, help);
                    default
                }
            },
            Some(other) => {
                let all = quoted(choices.iter().copied());
                self.wrong(key, &format!("one of {all}"), &other);
                default
            }
        };
        self.resolved.insert(key.into(), Value::String(choices[index].into()));
        index
    }

    /// Starts reading a table inside this one; give it back with [`Options::close`].
    pub fn open(&mut self, key: &'static str, doc: &'static str) -> Options {
        let table = match self.take(key, "{}".into(), doc) {
            None => Table::new(),
            Some(Value::Table(t)) => t,
            Some(other) => {
                self.wrong(key, "a table", &other);
                Table::new()
            }
        };
        Options::new(&self.full(key), table)
    }

    /// Takes back what [`Options::open`] gave.
    pub fn close(&mut self, key: &'static str, section: Options) {
        let (resolved, mut problems) = section.finish();
        self.problems.append(&mut problems);
        self.resolved.insert(key.into(), Value::Table(resolved));
    }

    /// Starts reading a list of tables; give it back with [`Options::close_tables`].
    pub fn tables(&mut self, key: &'static str, doc: &'static str) -> Vec<Options> {
        let values = match self.take(key, "[]".into(), doc) {
            None => vec![],
            Some(Value::Array(values)) if values.iter().all(Value::is_table) => values,
            Some(other) => {
                self.wrong(key, "a list of tables", &other);
                vec![]
            }
        };
        let tables = values.into_iter().filter_map(|v| match v {
            Value::Table(t) => Some(t),
            _ => None,
        });
        let path = self.full(key);
        tables.enumerate().map(|(k, t)| Options::new(&format!("{path}.{k}"), t)).collect()
    }

    /// Takes back what [`Options::tables`] gave.
    pub fn close_tables(&mut self, key: &'static str, sections: Vec<Options>) {
        let mut all = vec![];
        for section in sections {
            let (resolved, mut problems) = section.finish();
            self.problems.append(&mut problems);
            all.push(Value::Table(resolved));
        }
        self.resolved.insert(key.into(), Value::Array(all));
    }

    /// Whether a key was given and not read yet.
    pub fn has(&self, key: &str) -> bool {
        self.given.contains_key(key)
    }

    /// All that was not read yet, as sizes by name: for tables whose keys are the user's.
    pub fn sizes(&mut self) -> std::collections::BTreeMap<String, usize> {
        let mut sizes = std::collections::BTreeMap::new();
        for (key, value) in flat(std::mem::take(&mut self.given)) {
            match &value {
                Value::Integer(n) if (1..=1 << 30).contains(n) => {
                    sizes.insert(key.clone(), *n as usize);
                    self.resolved.insert(key, value);
                }
                other => self.wrong(&key, "a size, at least 1", other),
            }
        }
        sizes
    }

    /// All that was not read yet, as numbers by name.
    pub fn numbers(&mut self) -> std::collections::BTreeMap<String, f64> {
        let mut numbers = std::collections::BTreeMap::new();
        for (key, value) in flat(std::mem::take(&mut self.given)) {
            let number = value.as_float().or(value.as_integer().map(|n| n as f64));
            match number.filter(|x| x.is_finite()) {
                Some(x) => {
                    numbers.insert(key.clone(), x);
                    self.resolved.insert(key, Value::Float(x));
                }
                None => self.wrong(&key, "a finite number", &value),
            }
        }
        numbers
    }

    /// The options asked for so far.
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// The resolved table and all mistakes, keys nobody asked for included.
    pub fn finish(mut self) -> (Table, Vec<Problem>) {
        let known: Vec<&str> = self.entries.iter().map(|e| e.key).collect();
        let unknown: Vec<String> = self.given.keys().cloned().collect();
        for key in unknown {
            let list = known.iter().map(|k| format!("`{k}`")).collect::<Vec<_>>().join(", ");
            let place = match self.path.as_str() {
                "" => "a recipe".to_string(),
                path => format!("`{path}`"),
            };
            let help =
                nearest(&key, known.iter().copied()).unwrap_or_else(|| format!("valid keys here are {list}"));
            let message = format!("{place} has no key `{key}`; it has {list}");
            self.problem(&key, message, Some(help));
        }
        (self.resolved, self.problems)
    }
}

fn nearest<'a>(name: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<String> {
    did_you_mean(name, candidates).map(|c| format!("did you mean `{c}`?"))
}

fn quoted<'a>(words: impl Iterator<Item = &'a str>) -> String {
    let words: Vec<String> = words.map(|w| format!("\"{w}\"")).collect();
    match words.as_slice() {
        [one] => one.clone(),
        [most @ .., last] => format!("{} or {last}", most.join(", ")),
        [] => String::new(),
    }
}

/// `one = { N = 3 }` as `one.N = 3`: a name of a layer's part, which TOML reads as a table.
fn flat(given: Table) -> Table {
    let mut found = Table::new();
    for (key, value) in given {
        match value {
            Value::Table(inner) if !inner.is_empty() => {
                found.extend(flat(inner).into_iter().map(|(k, v)| (format!("{key}.{k}"), v)));
            }
            value => drop(found.insert(key, value)),
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> (Table, Vec<Problem>, (usize, f64, bool, usize)) {
        let mut o = Options::new("task", text.parse().expect("toml"));
        let values = (
            o.size("size", 11, 5..=99, "edge"),
            o.number("reward", 10.0, 0.0..=f64::INFINITY, "pay"),
            o.flag("loud", false, "noise"),
            o.choice("layout", 0, &["code", "paper"], "inputs"),
        );
        let (table, problems) = o.finish();
        (table, problems, values)
    }

    #[test]
    fn defaults_are_written_down() {
        let (table, problems, values) = read("size = 13");
        assert_eq!(problems, []);
        assert_eq!(values, (13, 10.0, false, 0));
        assert_eq!(table.to_string(), "size = 13\nreward = 10.0\nloud = false\nlayout = \"code\"\n");
        assert_eq!(read(&table.to_string()).0, table);
    }

    #[test]
    fn all_mistakes_are_reported() {
        let (_, problems, values) =
            read("size = 3\nreward = \"x\"\nloud = 1\nlayout = \"papr\"\nsise = 2\nz = 1");
        assert_eq!(values, (11, 10.0, false, 0));
        let text: Vec<&str> = problems.iter().map(|p| p.message.as_str()).collect();
        assert_eq!(
            text,
            [
                "`task.size` must be a whole number from 5 to 99, but it is 3",
                "`task.reward` must be a finite number, at least 0, but it is \"x\"",
                "`task.loud` must be `true` or `false`, but it is 1",
                "`task.layout` is \"papr\"; it can be \"code\" or \"paper\"",
                "`task` has no key `sise`; it has `size`, `reward`, `loud`, `layout`",
                "`task` has no key `z`; it has `size`, `reward`, `loud`, `layout`",
            ]
        );
        assert_eq!(problems[3].help.as_deref(), Some("did you mean `paper`?"));
        assert_eq!(problems[4].help.as_deref(), Some("did you mean `size`?"));
    }

    #[test]
    fn numbers_are_finite() {
        assert_eq!(read("reward = nan").1.len(), 1);
        assert_eq!(read("reward = inf").1.len(), 1);
        assert_eq!(read("reward = 3").2.1, 3.0);
    }
}
