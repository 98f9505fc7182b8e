//! Where the time of training goes: a trace of the last updates, and a table of all of them.
//!
//! Phases that take turns in every step are summed, per thread and update; a trace shows such sums
//! end to end from the moment the thread began. Phases that run once per update are shown as they
//! were. Without `--timings` no clock is read.

use serde_json::{Value, json};
use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// What an update is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// What follows from the parameters alone.
    Parameters,
    /// The world: what is seen, rewards, targets, noise.
    Environment,
    /// The network's steps.
    Forward,
    /// Reading outputs and drawing actions.
    Sampling,
    /// Losses and the cotangents of outputs.
    Losses,
    /// The network's backward pass.
    Backward,
    /// Adding up the rows' gradients, and the gradients of the parameters from the sums.
    Gradient,
    /// Ranges, clipping, moving the parameters.
    Optimiser,
    /// Whole episodes on a device, with losses, gradients and, where parameters live there, the optimiser.
    Device,
    /// Metrics, messages and checkpoints.
    Files,
}

impl Phase {
    /// All phases, in the order of an update.
    pub const ALL: [Phase; 10] = [
        Phase::Parameters,
        Phase::Environment,
        Phase::Forward,
        Phase::Sampling,
        Phase::Losses,
        Phase::Backward,
        Phase::Gradient,
        Phase::Optimiser,
        Phase::Device,
        Phase::Files,
    ];

    fn name(self) -> &'static str {
        match self {
            Phase::Parameters => "parameters",
            Phase::Environment => "environment",
            Phase::Forward => "network forward",
            Phase::Sampling => "sampling",
            Phase::Losses => "losses",
            Phase::Backward => "network backward",
            Phase::Gradient => "gradient sums",
            Phase::Optimiser => "optimiser",
            Phase::Device => "on the device",
            Phase::Files => "metrics and files",
        }
    }
}

/// A duration per phase.
type Sums = [Duration; Phase::ALL.len()];

/// One thread's clock within an update. Switched off, which it is by default, it reads nothing.
#[derive(Clone, Debug, Default)]
pub struct Stopwatch {
    on: bool,
    began: Option<Instant>,
    last: Option<Instant>,
    sums: Sums,
}

impl Stopwatch {
    /// Forgets everything, and may be switched on.
    pub fn reset(&mut self, timed: Option<&Timings>) {
        *self = Stopwatch { on: timed.is_some(), ..Stopwatch::default() };
    }

    /// A piece of work begins.
    pub fn start(&mut self) {
        if self.on {
            self.last = Some(Instant::now());
            self.began = self.began.or(self.last);
        }
    }

    /// What was done since the last call belongs to this phase.
    #[inline]
    pub fn lap(&mut self, phase: Phase) {
        if let Some(last) = self.last {
            let now = Instant::now();
            self.sums[phase as usize] += now - last;
            self.last = Some(now);
        }
    }
}

/// A stretch of time of a thread.
#[derive(Clone, Debug)]
struct Span {
    phase: Phase,
    thread: usize,
    start: Instant,
    length: Duration,
    /// Whether it stands for many short stretches.
    summed: bool,
}

#[derive(Clone, Debug)]
struct Update {
    number: u64,
    start: Instant,
    length: Duration,
    spans: Vec<Span>,
}

/// The times of the updates of a run.
#[derive(Clone, Debug)]
pub struct Timings {
    origin: Instant,
    begun: Instant,
    mark: Instant,
    spans: Vec<Span>,
    kept: VecDeque<Update>,
    updates: u64,
    wall: Duration,
    sums: Sums,
    threads: usize,
}

impl Timings {
    /// This many updates are kept for the trace, the last ones.
    pub const KEPT: usize = 300;

    /// Nothing yet.
    pub fn new() -> Self {
        let now = Instant::now();
        Timings {
            origin: now,
            begun: now,
            mark: now,
            spans: vec![],
            kept: VecDeque::new(),
            updates: 0,
            wall: Duration::ZERO,
            sums: Sums::default(),
            threads: 1,
        }
    }

    /// An update begins.
    pub fn begin(&mut self) {
        self.spans.clear();
        self.begun = Instant::now();
        self.mark = self.begun;
    }

    /// What the main thread did since it was last heard of belongs to this phase.
    pub fn lap(&mut self, phase: Phase) {
        let (start, now) = (self.mark, Instant::now());
        self.spans.push(Span { phase, thread: 0, start, length: now - start, summed: false });
        self.mark = now;
    }

    /// Takes what the threads' clocks show. The first one is the main thread.
    pub fn collect<'a>(&mut self, watches: impl Iterator<Item = &'a Stopwatch>) {
        for (thread, watch) in watches.enumerate() {
            let Some(mut start) = watch.began else { continue };
            for phase in Phase::ALL {
                let length = watch.sums[phase as usize];
                if !length.is_zero() {
                    self.spans.push(Span { phase, thread, start, length, summed: true });
                    start += length;
                }
            }
            self.threads = self.threads.max(thread + 1);
        }
        self.mark = Instant::now();
    }

    /// The update is done, with everything that belongs to it.
    pub fn end(&mut self, number: u64) {
        let length = self.begun.elapsed();
        let spans = std::mem::take(&mut self.spans);
        spans.iter().for_each(|s| self.sums[s.phase as usize] += s.length);
        self.updates += 1;
        self.wall += length;
        if self.kept.len() == Self::KEPT {
            self.kept.pop_front();
        }
        self.kept.push_back(Update { number, start: self.begun, length, spans });
    }

    /// The trace, in the JSON that Perfetto and `chrome://tracing` read.
    pub fn trace(&self) -> String {
        let thread = |k: usize| {
            let name = if k == 0 { "main".to_owned() } else { format!("worker {k}") };
            json!({"name": "thread_name", "ph": "M", "pid": 1, "tid": k, "args": {"name": name}})
        };
        let mut events: Vec<Value> = (0..self.threads).map(thread).collect();
        for update in &self.kept {
            let name = format!("update {}", update.number);
            events.push(self.event(&name, "update", 0, (update.start, update.length)));
            for s in &update.spans {
                let category = if s.summed { "sum" } else { "span" };
                events.push(self.event(s.phase.name(), category, s.thread, (s.start, s.length)));
            }
        }
        let lines: Vec<String> = events.iter().map(Value::to_string).collect();
        format!("{{\"displayTimeUnit\":\"ms\",\"traceEvents\":[\n{}\n]}}\n", lines.join(",\n"))
    }

    fn event(
        &self,
        name: &str,
        category: &str,
        thread: usize,
        (start, length): (Instant, Duration),
    ) -> Value {
        let micros = |d: Duration| d.as_nanos() as f64 / 1e3;
        let (ts, dur) = (micros(start.saturating_duration_since(self.origin)), micros(length));
        json!({"name": name, "cat": category, "ph": "X", "pid": 1, "tid": thread, "ts": ts, "dur": dur})
    }

    /// Milliseconds per update, of all updates: phases and their sums over threads.
    pub fn rows(&self) -> Vec<(&'static str, f64)> {
        let per_update = |d: Duration| 1e3 * d.as_secs_f64() / self.updates.max(1) as f64;
        // Most runs have no such phase.
        let has = |p: &&Phase| **p != Phase::Device || !self.sums[Phase::Device as usize].is_zero();
        let mut rows: Vec<(&'static str, f64)> =
            Phase::ALL.iter().filter(has).map(|p| (p.name(), per_update(self.sums[*p as usize]))).collect();
        let spent: Duration = self.sums.iter().sum();
        rows.push(("waiting", per_update((self.wall * self.threads as u32).saturating_sub(spent))));
        rows
    }

    /// A table for people.
    pub fn table(&self) -> String {
        let rows = self.rows();
        let whole: f64 = rows.iter().map(|(_, ms)| ms).sum();
        let share = |ms: f64| if whole > 0.0 { 100.0 * ms / whole } else { 0.0 };
        let mut text = format!("{:<18} {:>13} {:>8}\n", "phase", "ms per update", "share");
        for (name, ms) in &rows {
            text += &format!("{name:<18} {ms:>13.3} {:>6.1} %\n", share(*ms));
        }
        let updates = format!("{} update{}", self.updates, if self.updates == 1 { "" } else { "s" });
        let threads = match self.threads {
            1 => "one thread".to_owned(),
            n => format!("{n} threads together, so {:.3} ms each", whole / n as f64),
        };
        text + &format!("{:<18} {whole:>13.3}   mean of {updates}, {threads}", "total")
    }
}

/// What the main thread did since it was last heard of belongs to this phase, if anybody asks.
pub fn lap(timings: &mut Option<Timings>, phase: Phase) {
    if let Some(timings) = timings {
        timings.lap(phase);
    }
}

impl Default for Timings {
    fn default() -> Self {
        Timings::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn update(timings: &mut Timings, number: u64) {
        timings.begin();
        timings.lap(Phase::Parameters);
        let mut watches = vec![Stopwatch::default(); 2];
        for watch in &mut watches {
            watch.reset(Some(timings));
            watch.start();
            (0..3).for_each(|_| [Phase::Environment, Phase::Forward].into_iter().for_each(|p| watch.lap(p)));
        }
        timings.collect(watches.iter());
        timings.lap(Phase::Optimiser);
        timings.end(number);
    }

    #[test]
    fn memory_is_bounded_and_totals_are_not_cut() {
        let mut timings = Timings::new();
        let updates = Timings::KEPT as u64 + 20;
        (1..=updates).for_each(|n| update(&mut timings, n));
        assert_eq!((timings.kept.len(), timings.updates), (Timings::KEPT, updates));
        assert_eq!(timings.kept[0].number, 21);
        let (whole, spent): (Duration, Duration) = (timings.wall * 2, timings.sums.iter().sum());
        assert!(spent <= whole, "{spent:?} {whole:?}");
    }

    #[test]
    fn traces_are_json_with_spans_inside_of_their_update() {
        let mut timings = Timings::new();
        update(&mut timings, 7);
        let trace: Value = serde_json::from_str(&timings.trace()).expect("JSON");
        let events = trace["traceEvents"].as_array().expect("events");
        let number = |e: &Value, key: &str| e[key].as_f64().expect("a number");
        let whole = events.iter().find(|e| e["name"] == "update 7").expect("the update");
        let end = number(whole, "ts") + number(whole, "dur");
        let spans: Vec<&Value> = events.iter().filter(|e| e["ph"] == "X" && e["cat"] != "update").collect();
        assert_eq!(spans.len(), 2 + 2 * 2);
        for span in spans {
            assert!(number(whole, "ts") <= number(span, "ts"), "{span}");
            assert!(number(span, "ts") + number(span, "dur") <= end + 1e-3, "{span}");
        }
        assert_eq!(events.iter().filter(|e| e["ph"] == "M").count(), 2);
    }

    #[test]
    fn tables_add_up() {
        let mut timings = Timings::new();
        (1..4).for_each(|n| update(&mut timings, n));
        let sum: f64 = timings.rows().iter().map(|(_, ms)| ms).sum();
        let wall = 2.0 * 1e3 * timings.wall.as_secs_f64() / 3.0;
        assert!((sum - wall).abs() < 1e-3 * wall, "{sum} {wall}");
        assert!(timings.table().contains("mean of 3 updates, 2 threads"));
    }

    #[test]
    fn a_clock_that_is_off_shows_nothing() {
        let mut watch = Stopwatch::default();
        watch.reset(None);
        watch.start();
        watch.lap(Phase::Forward);
        assert_eq!((watch.began, watch.sums), (None, Sums::default()));
    }
}
