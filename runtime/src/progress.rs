//! What a run says while it goes: one status line on a terminal, a plain line now and then
//! elsewhere, one JSON object per line of metrics for programs. All of it on stderr.

use crate::language::Validation;
use crate::run::Observer;
use crate::train::{Outcome, Trainer};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::{Map, Value, json};
use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

/// How messages look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// For people.
    #[default]
    Human,
    /// One line each.
    Short,
    /// One JSON object each.
    Json,
}

/// Seconds between plain lines.
const EVERY: u64 = 10;

/// The status line.
pub struct Progress {
    kind: Kind,
    score: f64,
    first: u64,
    start: Instant,
    last: Option<Instant>,
}

enum Kind {
    Quiet,
    Bar(ProgressBar),
    Lines,
    Json,
}

impl Progress {
    /// Starts at the current update of a run.
    pub fn new(trainer: &Trainer, format: Format, quiet: bool) -> Self {
        let kind = match format {
            _ if quiet => Kind::Quiet,
            Format::Json => Kind::Json,
            _ if std::io::stderr().is_terminal() => Kind::Bar(bar(trainer)),
            _ => Kind::Lines,
        };
        Progress { kind, score: f64::NAN, first: trainer.update, start: Instant::now(), last: None }
    }

    /// Removes the status line.
    pub fn finish(&self) {
        if let Kind::Bar(bar) = &self.kind {
            bar.finish_and_clear();
        }
    }

    fn plain_line(&mut self, trainer: &Trainer) {
        let now = Instant::now();
        let done = trainer.update == trainer.recipe.schedule.updates;
        if self.last.is_some_and(|l| now - l < Duration::from_secs(EVERY)) && !done {
            return;
        }
        self.last = Some(now);
        let rate = (trainer.update - self.first) as f64 / self.start.elapsed().as_secs_f64().max(1e-9);
        let left = (trainer.recipe.schedule.updates - trainer.update) as f64 / rate.max(1e-9);
        let name = trainer.recipe.task.scores()[0];
        say(&format!(
            "update {}/{}  {name} {:.3}  {rate:.1} updates/s  {} left",
            trainer.update,
            trainer.recipe.schedule.updates,
            self.score,
            clock(left)
        ));
    }
}

impl Observer for Progress {
    fn update(&mut self, trainer: &Trainer, outcome: &Outcome) {
        let score = outcome.scores[0];
        self.score = if self.score.is_nan() { score } else { self.score + 0.05 * (score - self.score) };
        match &self.kind {
            Kind::Bar(bar) => {
                bar.set_message(format!("{} {:.3}", trainer.recipe.task.scores()[0], self.score));
                bar.set_position(trainer.update);
            }
            Kind::Lines => self.plain_line(trainer),
            Kind::Quiet | Kind::Json => {}
        }
    }

    fn epoch(&mut self, _trainer: &Trainer, validation: Validation) {
        let Validation { epoch, loss, best } = validation;
        let text = format!(
            "epoch {epoch}: validation perplexity {:.2}{}",
            loss.exp(),
            if best { ", the best so far" } else { "" }
        );
        match &self.kind {
            Kind::Bar(bar) => bar.println(text),
            Kind::Lines => say(&text),
            Kind::Quiet | Kind::Json => {}
        }
    }

    fn line(&mut self, line: &Map<String, Value>) {
        if let Kind::Json = self.kind {
            say(&json!({"schema": 1, "reason": "metric", "metric": line}).to_string());
        }
    }
}

/// A line on stderr; a closed stderr is nobody's business.
pub fn say(text: &str) {
    let _ = writeln!(std::io::stderr(), "{text}");
}

fn bar(trainer: &Trainer) -> ProgressBar {
    let target = ProgressDrawTarget::stderr_with_hz(4);
    let bar = ProgressBar::with_draw_target(Some(trainer.recipe.schedule.updates), target);
    bar.set_position(trainer.update);
    bar.reset_eta();
    let template = "{wide_bar} {pos}/{len}  {msg}  {per_sec}  {eta} left";
    bar.with_style(ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar()))
}

/// Seconds as `1 h 02 min`, `3 min 20 s` or `12 s`.
fn clock(seconds: f64) -> String {
    let s = seconds.clamp(0.0, 1e9) as u64;
    match (s / 3600, s / 60 % 60, s % 60) {
        (0, 0, s) => format!("{s} s"),
        (0, m, s) => format!("{m} min {s:02} s"),
        (h, m, _) => format!("{h} h {m:02} min"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clocks() {
        assert_eq!([12.3, 200.0, 3720.0].map(clock), ["12 s", "3 min 20 s", "1 h 02 min"]);
        assert_eq!(clock(f64::INFINITY), "277777 h 46 min");
    }
}
