//! Evaluates a trained run: the same network on new episodes, without learning.

use crate::Error;
use crate::engine::Tape;
use crate::parallel;
use crate::rng::{Address, Domain};
use crate::rollout::{self, Choice, NonFinite, Place, Record, Stage};
use crate::timings::Stopwatch;
use crate::train::Trainer;
use serde_json::{Map, Value, json};

/// The mean of a score over episodes.
#[derive(Clone, Debug, PartialEq)]
pub struct Score {
    /// Its name.
    pub name: &'static str,
    /// The mean.
    pub mean: f64,
    /// The standard deviation over episodes.
    pub sd: f64,
    /// Half of the width of the 95 % confidence interval of the mean.
    pub ci95: f64,
}

/// What an evaluation found.
#[derive(Clone, Debug, PartialEq)]
pub struct Report {
    /// The number of episodes.
    pub episodes: usize,
    /// The scores; the first one is the one that is maximised.
    pub scores: Vec<Score>,
}

/// Runs episodes, each from the initial states.
///
/// # Errors
/// If an output is not finite.
pub fn evaluate(
    trainer: &Trainer,
    episodes: usize,
    seed: u64,
    choice: Choice,
    threads: usize,
) -> Result<Report, Error> {
    let bound = trainer.engine.bind(&trainer.params.values_of(trainer.engine.model().params.len()))?;
    let stage = Stage {
        bound: &bound,
        model: trainer.engine.model(),
        sizes: trainer.engine.sizes(),
        wiring: &trainer.wiring,
        task: &*trainer.recipe.task,
        encoder: trainer.encoder(&trainer.params),
    };
    if trainer.engine.is_side_by_side() {
        let records = side_by_side(trainer, &stage, episodes, seed, choice);
        trainer.engine.check()?;
        return report(trainer, episodes, records);
    }
    let mut workers: Vec<Option<Tape>> = (0..threads.max(1)).map(|_| None).collect();
    let results = parallel::run(&mut workers, (0..episodes).collect(), |tape, k: usize| {
        let mode = rollout::mode(stage.task);
        let tape = tape.get_or_insert_with(|| trainer.engine.tape(stage.task.steps(), mode));
        let address = Address { seed, domain: Domain::Eval, episode: 0, row: k as u32 };
        stage.run(tape, address, None, choice, &mut Stopwatch::default()).map_err(|e| (k, e))
    });
    report(trainer, episodes, results)
}

/// Whatever an episode gave, with its number if it failed.
type Outcome = Result<Record, (usize, NonFinite)>;

/// On a device or libtorch: as many episodes at once as the recipe has rows.
fn side_by_side(
    trainer: &Trainer,
    stage: &Stage<'_>,
    episodes: usize,
    seed: u64,
    choice: Choice,
) -> Vec<Outcome> {
    let most = trainer.recipe.schedule.batch;
    let (steps, mode) = (stage.task.steps(), rollout::mode(stage.task));
    let mut tape: Option<Tape> = None;
    let mut all = vec![];
    for first in (0..episodes).step_by(most) {
        let rows = most.min(episodes - first);
        let known = tape.take().filter(|t| stage.bound.rows(t) == rows);
        let tape = tape.insert(known.unwrap_or_else(|| trainer.engine.team_tape(steps, mode, rows)));
        let address = |k: usize| Address { seed, domain: Domain::Eval, episode: 0, row: k as u32 };
        let addresses: Vec<Address> = (first..first + rows).map(address).collect();
        let watch = &mut Stopwatch::default();
        match stage.run_team(tape, &addresses, &vec![None; rows], choice, watch) {
            Ok(records) => all.extend(records.into_iter().map(Ok)),
            Err((row, e)) => all.push(Err((first + row, e))),
        }
    }
    all
}

fn report(trainer: &Trainer, episodes: usize, results: Vec<Outcome>) -> Result<Report, Error> {
    let mut scores: Vec<Vec<f64>> = vec![vec![]; trainer.recipe.task.scores().len()];
    for result in results {
        let record = result.map_err(|(k, e)| {
            let what = match e.at {
                Place::Output(id) => &trainer.engine.model().outputs[id.index()].name,
                Place::State(id) => &trainer.engine.model().states[id.index()].name,
            };
            Error::diverged(format!("`{what}` is not finite after step {} of episode {k}", e.step))
        })?;
        scores.iter_mut().zip(record.scores).for_each(|(all, x)| all.push(x));
    }
    let names = trainer.recipe.task.scores();
    Ok(Report { episodes, scores: names.iter().zip(scores).map(|(name, x)| score(name, &x)).collect() })
}

fn score(name: &'static str, x: &[f64]) -> Score {
    let n = x.len() as f64;
    let mean = x.iter().sum::<f64>() / n;
    let sd = (x.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / (n - 1.0).max(1.0)).sqrt();
    Score { name, mean, sd, ci95: 1.96 * sd / n.sqrt() }
}

impl Report {
    /// For people.
    pub fn text(&self) -> String {
        let line = |s: &Score| {
            format!(
                "{:<14} {:>10.4} ± {:.4} (95 % CI; SD {:.4}, n = {})\n",
                s.name, s.mean, s.ci95, s.sd, self.episodes
            )
        };
        self.scores.iter().map(line).collect()
    }

    /// For programs.
    pub fn json(&self) -> Value {
        let scores: Map<String, Value> = self
            .scores
            .iter()
            .map(|s| (s.name.to_string(), json!({"mean": s.mean, "sd": s.sd, "ci95": s.ci95})))
            .collect();
        json!({"schema": 1, "episodes": self.episodes, "scores": scores})
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn means_and_intervals() {
        let s = score("return", &[1.0, 2.0, 3.0, 4.0]);
        assert_eq!(s.mean, 2.5);
        assert!((s.sd - 1.290_994).abs() < 1e-6 && (s.ci95 - 1.265_175).abs() < 1e-5);
        assert_eq!(score("return", &[7.0]).sd, 0.0);
    }
}
