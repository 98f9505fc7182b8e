//! Compares runs: a table over conditions and seeds, and tests between conditions.
//!
//! Runs belong to one condition if they differ in nothing but the seed, where their files lie and how
//! often they were saved. Only the files of a run are read, never its data.

use crate::stats::{self, RankSum, Summary};
use crate::{Error, files, metrics, run, task};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use toml::Table;

/// The level below which a difference counts.
const LEVEL: f64 = 0.05;

/// What is compared and how.
#[derive(Clone, Debug)]
pub struct Options {
    /// The metric; empty for the task's own.
    pub metric: String,
    /// Lines of metrics at the end of a run that are averaged.
    pub last: usize,
}

/// A run and its number.
#[derive(Clone, Debug)]
struct Member {
    folder: PathBuf,
    seed: u64,
    value: f64,
}

/// Runs that differ in their seeds.
#[derive(Clone, Debug)]
struct Condition {
    spec: String,
    hash: String,
    /// The keys of the recipe, flat.
    recipe: BTreeMap<String, String>,
    members: Vec<Member>,
    name: String,
}

/// A test between two conditions.
#[derive(Clone, Debug)]
struct Test {
    between: (usize, usize),
    result: RankSum,
    least: f64,
}

/// What was found.
#[derive(Clone, Debug)]
pub struct Report {
    metric: String,
    last: usize,
    conditions: Vec<Condition>,
    tests: Vec<Test>,
    /// What to be careful about.
    pub warnings: Vec<String>,
}

/// Reads the runs and compares them.
///
/// # Errors
/// If a folder is no run, is given twice, lacks the metric, or the runs have different tasks.
pub fn compare(runs: &[PathBuf], options: &Options) -> Result<Report, Error> {
    let mut conditions: Vec<Condition> = vec![];
    let mut warnings = vec![];
    let mut first: Option<(String, &Path)> = None;
    let mut metric = options.metric.clone();
    for folder in runs {
        let (about, recipe) = run::describe(folder)?;
        let name = about["task"].as_str().unwrap_or_default().to_string();
        let (task, place) = first.get_or_insert_with(|| (name.clone(), folder));
        if *task != name {
            let (place, folder) = (place.display(), folder.display());
            return Err(Error::usage(format!(
                "the runs have different tasks: `{place}` is of {task}, `{folder}` of {name}"
            ))
            .help("compare runs of one task"));
        }
        if metric.is_empty() {
            metric = task::compared_by(task).to_string();
        }
        let value = value(folder, &metric, options.last)?;
        warnings.extend(unfinished(folder, &recipe)?);
        let member = Member { folder: folder.clone(), seed: about["seed"].as_u64().unwrap_or(0), value };
        add(&mut conditions, &about["spec"], &recipe, member)?;
    }
    name(&mut conditions);
    warnings.extend(worlds(&conditions));
    let mut tests = vec![];
    for a in 0..conditions.len() {
        for b in a + 1..conditions.len() {
            tests.push(test(&conditions, a, b));
        }
    }
    let report = Report { metric, last: options.last, conditions, tests, warnings };
    let few = report.too_few();
    Ok(Report { warnings: [report.warnings.clone(), few].concat(), ..report })
}

/// The number of a run.
fn value(folder: &Path, metric: &str, last: usize) -> Result<f64, Error> {
    let lines = metrics::read(&folder.join("metrics.jsonl"))?;
    let having: Vec<_> = lines.iter().filter(|l| l.contains_key(metric)).collect();
    if having.is_empty() {
        return evaluated(folder, metric, &lines);
    }
    let Some(from) = having.len().checked_sub(last) else {
        let (folder, count) = (folder.display(), having.len());
        let message = format!("`{folder}` has {count} lines with `{metric}`, fewer than --last {last}");
        return Err(Error::usage(message).help(format!("take fewer: --last {count}")));
    };
    let value = having[from..].iter().map(|l| metrics::get(l, metric)).sum::<f64>() / last as f64;
    if value.is_finite() {
        return Ok(value);
    }
    Err(Error::usage(format!("`{metric}` is not a finite number at the end of `{}`", folder.display())))
}

/// A number that `bpm eval` has left.
fn evaluated(folder: &Path, metric: &str, lines: &[serde_json::Map<String, Value>]) -> Result<f64, Error> {
    let path = folder.join("eval.json");
    let found: Value = match path.exists() {
        false => Value::Null,
        true => serde_json::from_str(&files::read_text(&path)?)
            .map_err(|e| Error::usage(format!("cannot use `{}`: it is no JSON ({e})", path.display())))?,
    };
    let number = found[metric].as_f64().or(found["scores"][metric]["mean"].as_f64());
    if let Some(x) = number.filter(|x| x.is_finite()) {
        return Ok(x);
    }
    let error = Error::usage(format!("`{}` has no metric `{metric}`", folder.display()));
    let mut names: Vec<&str> = lines.iter().flat_map(|l| l.keys().map(String::as_str)).collect();
    let evaluated = [&found, &found["scores"]].into_iter().filter_map(Value::as_object);
    let numbers = evaluated.flat_map(|o| o.iter().filter(|(_, v)| !v.is_string() && *v != &found["scores"]));
    names.extend(numbers.map(|(k, _)| k.as_str()));
    names.retain(|n| !["update", "schema"].contains(n));
    let mut seen = BTreeSet::new();
    names.retain(|n| seen.insert(*n));
    let error = match names.is_empty() {
        true => error.help("it has not trained long enough for a line of metrics"),
        false => error.help(format!("it has {}", names.join(", "))),
    };
    Err(match path.exists() {
        true => error,
        false => error.help(format!("if `bpm eval` finds it, run: bpm eval {}", folder.display())),
    })
}

/// A warning if a run can go on.
fn unfinished(folder: &Path, recipe: &Table) -> Result<Option<String>, Error> {
    let wanted = recipe.get("run").and_then(|r| r.get("updates")).and_then(toml::Value::as_integer);
    let lines = metrics::read(&folder.join("metrics.jsonl"))?;
    let done = lines.last().map_or(0.0, |l| metrics::get(l, "update")) as i64;
    let short = wanted.filter(|wanted| done < *wanted);
    Ok(short.map(|wanted| format!("`{}` is not finished: update {done} of {wanted}", folder.display())))
}

/// Puts a run into its condition.
fn add(all: &mut Vec<Condition>, spec: &Value, recipe: &Table, member: Member) -> Result<(), Error> {
    let text = |key: &str| spec[key].as_str().unwrap_or_default().to_string();
    let (spec, hash) = (text("name"), text("hash"));
    let mut flat = BTreeMap::new();
    flatten("", recipe, &mut flat);
    // Windows of varying length leave the number of updates to the seed.
    let varies = flat.get("task.vary").is_some_and(|v| v == "true");
    for key in ["spec", "task.data", "run.seed", "run.checkpoint_every"] {
        flat.remove(key);
    }
    if varies {
        flat.remove("run.updates");
    }
    let known = all.iter_mut().find(|c| c.spec == spec && c.hash == hash && c.recipe == flat);
    let Some(condition) = known else {
        all.push(Condition { name: spec.clone(), spec, hash, recipe: flat, members: vec![member] });
        return Ok(());
    };
    if let Some(twin) = condition.members.iter().find(|m| m.seed == member.seed) {
        let (a, b) = (twin.folder.display(), member.folder.display());
        return Err(Error::usage(format!(
            "`{a}` and `{b}` are the same run: they differ in nothing, not even the seed"
        ))
        .help("give every run once"));
    }
    condition.members.push(member);
    Ok(())
}

/// `task.size` → `11`.
fn flatten(path: &str, table: &Table, flat: &mut BTreeMap<String, String>) {
    for (key, value) in table {
        let at = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
        match value {
            toml::Value::Table(inner) => flatten(&at, inner, flat),
            toml::Value::String(text) => drop(flat.insert(at, text.clone())),
            other => drop(flat.insert(at, other.to_string())),
        }
    }
}

/// The keys in which conditions differ.
fn differing<'c>(conditions: &[&'c Condition]) -> Vec<&'c String> {
    let keys: BTreeSet<&String> = conditions.iter().flat_map(|c| c.recipe.keys()).collect();
    let differs =
        |key: &&String| conditions.iter().any(|c| c.recipe.get(*key) != conditions[0].recipe.get(*key));
    keys.into_iter().filter(differs).collect()
}

/// Names: the spec's, and what tells it apart from others of that name.
fn name(conditions: &mut [Condition]) {
    let names: Vec<String> = conditions
        .iter()
        .map(|c| {
            let alike: Vec<&Condition> = conditions.iter().filter(|d| d.spec == c.spec).collect();
            let hash = alike.iter().any(|d| d.hash != c.hash);
            let short =
                |hash: &str| hash.rsplit('-').next().unwrap_or(hash).chars().take(6).collect::<String>();
            let mut parts = vec![c.spec.clone()];
            parts.extend(hash.then(|| format!("spec {}", short(&c.hash))));
            let own = |key: &&String| c.recipe.get(*key).map_or("none", String::as_str);
            parts.extend(differing(&alike).iter().map(|key| format!("{key}={}", own(key))));
            parts.join(", ")
        })
        .collect();
    conditions.iter_mut().zip(names).for_each(|(c, name)| c.name = name);
}

/// A warning if conditions live in different worlds.
fn worlds(conditions: &[Condition]) -> Option<String> {
    let all: Vec<&Condition> = conditions.iter().collect();
    let keys: Vec<&str> =
        differing(&all).into_iter().map(String::as_str).filter(|k| k.starts_with("task.")).collect();
    (!keys.is_empty()).then(|| format!("the conditions differ in the task itself: {}", keys.join(", ")))
}

fn test(conditions: &[Condition], a: usize, b: usize) -> Test {
    let (x, y) = (conditions[a].values(), conditions[b].values());
    Test { between: (a, b), result: stats::rank_sum(&x, &y), least: stats::least_p(x.len(), y.len()) }
}

impl Condition {
    fn values(&self) -> Vec<f64> {
        self.members.iter().map(|m| m.value).collect()
    }
}

/// Whether less of a metric is better.
fn lower_is_better(metric: &str) -> bool {
    let words = ["loss", "error", "ppl", "perplexity", "entropy", "errors", "seconds"];
    metric.split('_').any(|part| words.contains(&part))
}

impl Report {
    /// Pairs of conditions whose test cannot find anything.
    fn too_few(&self) -> Vec<String> {
        let mut pairs: Vec<&Test> = self.tests.iter().filter(|t| t.least >= LEVEL).collect();
        let count = pairs.len();
        pairs.truncate(1);
        let warn = |t: &Test| {
            let (a, b) = (&self.conditions[t.between.0], &self.conditions[t.between.1]);
            let (m, n) = (a.members.len(), b.members.len());
            let others = match count {
                1 => String::new(),
                2 => " (and one more pair)".to_string(),
                _ => format!(" (and {} more pairs)", count - 1),
            };
            format!(
                "too few seeds: {m} of `{}` and {n} of `{}` cannot give a p below {LEVEL}, {:.3} at best{others}; 4 of each can",
                a.name, b.name, t.least
            )
        };
        pairs.into_iter().map(warn).collect()
    }

    /// For people.
    pub fn text(&self) -> String {
        let better = if lower_is_better(&self.metric) { "lower" } else { "higher" };
        let lines = match self.last {
            1 => String::new(),
            n => format!(", mean of the last {n} lines"),
        };
        let mut text = format!("{} ({better} is better){lines}\n\n", self.metric);
        let mut rows =
            vec![["condition", "n", "mean ± 95 % CI", "median", "min – max"].map(String::from).to_vec()];
        for c in &self.conditions {
            let s = Summary::of(&c.values());
            let spread = match s.ci95 {
                Some(ci) => format!("{} ± {}", short(s.mean), short(ci)),
                None => format!("{} (one seed)", short(s.mean)),
            };
            let range = format!("{} – {}", short(s.min), short(s.max));
            rows.push(vec![c.name.clone(), s.count.to_string(), spread, short(s.median), range]);
        }
        text += &table(&rows);
        if self.tests.is_empty() {
            return text;
        }
        text += "\nWilcoxon rank-sum tests, two-sided";
        if self.tests.len() > 1 {
            text += &format!(", not corrected for {} comparisons", self.tests.len());
        }
        text += "\n\n";
        let mut rows = vec![["conditions", "U", "p", ""].map(String::from).to_vec()];
        for t in &self.tests {
            let (a, b) = t.between;
            let names = format!("{} – {}", self.conditions[a].name, self.conditions[b].name);
            rows.push(vec![names, t.result.u.to_string(), short(t.result.p), t.result.method.words().into()]);
        }
        text + &table(&rows)
    }

    /// For programs.
    pub fn json(&self) -> Value {
        let condition = |c: &Condition| {
            let s = Summary::of(&c.values());
            let runs: Vec<Value> = c
                .members
                .iter()
                .map(|m| json!({"run": m.folder.display().to_string(), "seed": m.seed, "value": m.value}))
                .collect();
            json!({
                "name": c.name, "spec": c.spec, "n": s.count, "mean": s.mean, "sd": s.sd, "ci95": s.ci95,
                "median": s.median, "min": s.min, "max": s.max, "runs": runs,
            })
        };
        let test = |t: &Test| {
            let (a, b) = t.between;
            json!({
                "a": self.conditions[a].name, "b": self.conditions[b].name, "u": t.result.u, "p": t.result.p,
                "method": t.result.method.words(), "least_p": t.least,
            })
        };
        json!({
            "schema": 1,
            "metric": self.metric,
            "last": self.last,
            "lower_is_better": lower_is_better(&self.metric),
            "conditions": self.conditions.iter().map(condition).collect::<Vec<_>>(),
            "tests": self.tests.iter().map(test).collect::<Vec<_>>(),
            "warnings": self.warnings,
        })
    }
}

/// Four digits that count.
fn short(x: f64) -> String {
    if x == 0.0 {
        return "0".into();
    }
    let before = x.abs().log10().floor() as i32 + 1;
    match before {
        -3..=9 => format!("{x:.*}", (4 - before).max(0) as usize),
        _ => format!("{x:.3e}"),
    }
}

/// Columns of equal width, two spaces apart.
fn table(rows: &[Vec<String>]) -> String {
    let width = |k: usize| rows.iter().map(|r| r[k].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..rows[0].len()).map(width).collect();
    let line = |row: &Vec<String>| {
        let cells: Vec<String> = row.iter().zip(&widths).map(|(x, w)| format!("{x:<w$}")).collect();
        cells.join("  ").trim_end().to_string() + "\n"
    };
    rows.iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A folder with runs as `bpm train` leaves them.
    struct Runs(tempfile::TempDir);

    impl Runs {
        fn new() -> Runs {
            Runs(tempfile::tempdir().expect("folder"))
        }

        /// A run of a spec with a recipe; `scores` are the lines of its curve.
        fn add(&self, name: &str, (spec, seed, rate): (&str, u64, f64), scores: &[f64]) -> PathBuf {
            self.write(name, "maze", (spec, seed, rate), "return", scores)
        }

        fn write(
            &self,
            name: &str,
            task: &str,
            (spec, seed, rate): (&str, u64, f64),
            score: &str,
            scores: &[f64],
        ) -> PathBuf {
            let folder = self.0.path().join(name);
            std::fs::create_dir(&folder).expect("folder");
            let about = json!({
                "format": 1, "spec": {"name": spec, "hash": format!("fnv1a-{spec}")}, "task": task, "seed": seed,
            });
            let updates = 10 * scores.len();
            let recipe = format!(
                "spec = \"{name}.bpm\"\n[task]\nname = \"{task}\"\n[optimiser]\nrate = {rate:?}\n\
                 [run]\nseed = {seed}\nupdates = {updates}\n"
            );
            let line = |(k, x): (usize, &f64)| json!({"update": 10 * (k + 1), score: x}).to_string() + "\n";
            let curve: String = scores.iter().enumerate().map(line).collect();
            let put = |file: &str, text: &str| std::fs::write(folder.join(file), text).expect("written");
            put("run.json", &about.to_string());
            put("recipe.toml", &recipe);
            put("metrics.jsonl", &curve);
            folder
        }
    }

    fn options(metric: &str, last: usize) -> Options {
        Options { metric: metric.into(), last }
    }

    fn message(runs: &[PathBuf], options: &Options) -> String {
        let error = compare(runs, options).expect_err("an error");
        format!("{}\n{}", error.message, error.help.join("\n"))
    }

    #[test]
    fn seeds_are_pooled_and_conditions_named() {
        let place = Runs::new();
        let mut runs = vec![];
        for seed in 0..5 {
            let x = seed as f64;
            runs.push(place.add(&format!("a{seed}"), ("simple", seed, 0.1), &[50.0, x]));
            runs.push(place.add(&format!("b{seed}"), ("plain", seed, 0.1), &[50.0, 10.0 + x]));
            runs.push(place.add(&format!("c{seed}"), ("simple", seed, 0.2), &[50.0, 2.5 + x]));
        }
        let report = compare(&runs, &options("", 1)).expect("report");
        let names: Vec<&str> = report.conditions.iter().map(|c| c.name.as_str()).collect();
        assert_eq!(names, ["simple, optimiser.rate=0.1", "plain", "simple, optimiser.rate=0.2"]);
        assert_eq!(report.warnings, [""; 0]);
        let json = report.json();
        assert_eq!(json["metric"], "return");
        assert_eq!((&json["conditions"][1]["n"], &json["conditions"][1]["mean"]), (&json!(5), &json!(12.0)));
        let test = &json["tests"][0];
        assert_eq!((&test["a"], &test["b"]), (&json!("simple, optimiser.rate=0.1"), &json!("plain")));
        assert!((test["p"].as_f64().expect("p") - 2.0 / 252.0).abs() < 1e-12, "{test}");
        let text = report.text();
        for word in ["higher is better", "12.00 ± 1.963", "10.00 – 14.00", "not corrected for 3", "exact"]
        {
            assert!(text.contains(word), "{word} in\n{text}");
        }
        let averaged = compare(&runs, &options("return", 2)).expect("report");
        assert_eq!(averaged.json()["conditions"][0]["mean"], 26.0);
    }

    #[test]
    fn few_seeds_are_told() {
        let place = Runs::new();
        let mut runs = vec![place.add("b", ("plain", 0, 0.1), &[3.0])];
        runs.extend((0..3).map(|k| place.add(&format!("a{k}"), ("simple", k, 0.1), &[k as f64])));
        let report = compare(&runs, &options("", 1)).expect("report");
        assert!(report.text().contains("3.000 (one seed)"), "{}", report.text());
        assert_eq!(report.json()["conditions"][0]["ci95"], Value::Null);
        assert!(report.warnings[0].contains("1 of `plain` and 3 of `simple`"), "{:?}", report.warnings);
        assert!(report.warnings[0].contains("0.500 at best"), "{:?}", report.warnings);
    }

    #[test]
    fn evaluations_are_read() {
        let place = Runs::new();
        let runs: Vec<PathBuf> = (0..2)
            .map(|k| {
                let run =
                    place.write(&format!("{k}"), "language-model", ("lstm", k, 0.1), "cross_entropy", &[5.0]);
                std::fs::write(run.join("eval.json"), json!({"schema": 1, "test_ppl": 100 + k}).to_string())
                    .expect("written");
                run
            })
            .collect();
        let report = compare(&runs, &options("", 1)).expect("report");
        assert_eq!(report.json()["conditions"][0]["mean"], 100.5);
        assert!(report.text().starts_with("test_ppl (lower is better)"));
        std::fs::remove_file(runs[1].join("eval.json")).expect("removed");
        let text = message(&runs, &options("", 1));
        assert!(text.contains("no metric `test_ppl`") && text.contains("bpm eval"), "{text}");
        std::fs::write(runs[1].join("eval.json"), "{").expect("written");
        assert!(message(&runs, &options("", 1)).contains("no JSON"));
    }

    #[test]
    fn mistakes() {
        let place = Runs::new();
        let a = place.add("a", ("simple", 0, 0.1), &[1.0, 2.0]);
        let b = place.add("b", ("simple", 0, 0.1), &[1.0, 2.0]);
        let c = place.write("c", "cue-reward", ("simple", 1, 0.1), "return", &[1.0, 2.0]);
        let d = place.add("d", ("simple", 2, 0.1), &[]);
        let n = place.add("n", ("simple", 3, 0.1), &[1.0, f64::NAN]);
        let one = options("", 1);
        assert!(message(&[a.clone(), b], &one).contains("are the same run"));
        assert!(message(&[a.clone(), c], &one).contains("different tasks"));
        assert!(message(&[d], &one).contains("not trained long enough"));
        assert!(message(&[n], &one).contains("not a finite number"));
        assert!(message(&[place.0.path().into()], &one).contains("no run.json"));
        assert!(message(std::slice::from_ref(&a), &options("retrun", 1)).contains("it has return"));
        assert!(message(std::slice::from_ref(&a), &options("", 3)).contains("has 2 lines with `return`"));
        std::fs::write(a.join("recipe.toml"), "[").expect("written");
        assert!(message(&[a], &one).contains("no TOML"));
    }

    #[test]
    fn what_may_mislead_is_told() {
        let place = Runs::new();
        let a = place.add("a", ("simple", 0, 0.1), &[1.0, 2.0]);
        let recipe = std::fs::read_to_string(a.join("recipe.toml")).expect("read");
        let longer = recipe.replace("updates = 20", "updates = 90").replace("\"maze\"", "\"maze\"\nsize = 9");
        std::fs::write(a.join("recipe.toml"), longer).expect("written");
        let b = place.add("b", ("simple", 1, 0.1), &[1.0, 2.0]);
        let warnings = compare(&[a, b], &options("", 1)).expect("report").warnings;
        assert!(warnings[0].contains("not finished: update 20 of 90"), "{warnings:?}");
        assert!(warnings[1].contains("task.size"), "{warnings:?}");
    }

    #[test]
    fn numbers_have_four_digits() {
        let found = [0.0, 0.000_12, 0.0456, 1.0, -12.3456, 12_345.6, 1e-7].map(short);
        assert_eq!(found, ["0", "0.0001200", "0.04560", "1.000", "-12.35", "12346", "1.000e-7"]);
    }
}
