//! Completion of binary patterns (Miconi, Stanley, Clune 2018, §4.2).
//!
//! An episode draws `patterns` vectors of ±1 bits. Each is shown for `shows` steps, then nothing
//! for `blanks` steps, in a new order per cycle; at last one of them is shown again with a part of
//! its bits at zero. The network, one neuron per bit, must fill in the rest. Inputs are multiplied
//! by `scale` and added to the neurons' drive; they do not clamp them.

use super::{DeviceTask, Episode, Goal, Task};
use crate::options::Options;
use crate::rng::{Address, Purpose, Stream};

/// The task.
#[derive(Clone, Debug)]
pub struct PatternCompletion {
    bits: usize,
    patterns: usize,
    cycles: usize,
    shows: usize,
    blanks: usize,
    tests: usize,
    dropped: f64,
    exactly: bool,
    balanced: bool,
    scale: f32,
    bias: bool,
    extra: usize,
}

impl PatternCompletion {
    /// Reads the options.
    pub fn new(o: &mut Options) -> Self {
        let drop_kinds = ["exact", "independent"];
        PatternCompletion {
            bits: o.size("bits", 1000, 1..=65_536, "bits of a pattern"),
            patterns: o.size("patterns", 5, 1..=4096, "patterns of an episode"),
            cycles: o.size("cycles", 2, 1..=4096, "how often every pattern is shown"),
            shows: o.size("shows", 6, 1..=4096, "steps that a pattern is shown"),
            blanks: o.size("blanks", 4, 0..=4096, "empty steps after a pattern"),
            tests: o.size("tests", 6, 1..=4096, "steps that the incomplete pattern is shown"),
            dropped: o.number("dropped", 0.5, 0.0..=1.0, "part of the bits that is missing in the test"),
            exactly: o.choice("drop", 0, &drop_kinds, "exactly that part, or every bit by chance") == 0,
            balanced: o.flag("balanced", true, "exactly half of the bits are 1; otherwise by chance"),
            scale: o.number("scale", 20.0, 0.0..=1e6, "factor of the inputs") as f32,
            bias: o.flag("bias", true, "one more neuron, fed `scale` at every step"),
            extra: o.size("extra", 0, 0..=65_536, "neurons without input"),
        }
    }

    fn draw(&self, stream: &mut Stream) -> Vec<f32> {
        if !self.balanced {
            return (0..self.bits).map(|_| [-1.0, 1.0][stream.below(2)]).collect();
        }
        let mut bits = vec![1.0; self.bits];
        bits[self.bits / 2..].fill(-1.0);
        stream.shuffle(&mut bits);
        bits
    }

    fn draw_dropped(&self, stream: &mut Stream) -> Vec<bool> {
        if !self.exactly {
            return (0..self.bits).map(|_| stream.chance(self.dropped)).collect();
        }
        let mut dropped: Vec<bool> = (0..self.bits).map(|k| k < self.count_dropped()).collect();
        stream.shuffle(&mut dropped);
        dropped
    }

    /// The bits that are missing in the test, if exactly that part is.
    fn count_dropped(&self) -> usize {
        (self.dropped * self.bits as f64).round() as usize
    }
}

impl Task for PatternCompletion {
    fn steps(&self) -> usize {
        self.cycles * self.patterns * (self.shows + self.blanks) + self.tests
    }

    fn axes(&self) -> Vec<(&'static str, usize)> {
        vec![("N", self.inputs())]
    }

    fn inputs(&self) -> usize {
        self.bits + usize::from(self.bias) + self.extra
    }

    fn goal(&self) -> Goal {
        Goal::Match(self.inputs())
    }

    fn scores(&self) -> &'static [&'static str] {
        &["accuracy", "error", "dropped_error"]
    }

    fn episode(&self, address: Address) -> Box<dyn Episode + '_> {
        let mut stream = address.stream(Purpose::World, 0);
        let patterns: Vec<Vec<f32>> = (0..self.patterns).map(|_| self.draw(&mut stream)).collect();
        let order = (0..self.cycles).flat_map(|_| stream.permutation(self.patterns)).collect();
        let tested = stream.below(self.patterns);
        let dropped = self.draw_dropped(&mut stream);
        Box::new(Run { task: self, patterns, order, tested, dropped })
    }

    fn device(&self) -> Option<DeviceTask> {
        let sizes = [self.bits, self.patterns, self.cycles, self.shows, self.blanks, self.count_dropped()];
        let flags = [self.exactly, self.balanced, self.bias];
        Some(DeviceTask {
            source: include_str!("pattern_completion.cu"),
            ints: sizes.map(|n| n as i32).into_iter().chain(flags.map(i32::from)).collect(),
            floats: vec![self.scale],
            doubles: vec![self.dropped],
            row_ints: 1 + self.cycles * self.patterns + self.bits,
            row_floats: self.patterns * self.bits,
        })
    }
}

/// An episode.
struct Run<'a> {
    task: &'a PatternCompletion,
    patterns: Vec<Vec<f32>>,
    order: Vec<usize>,
    tested: usize,
    dropped: Vec<bool>,
}

impl Episode for Run<'_> {
    fn observe(&mut self, step: usize, input: &mut [f32]) {
        let task = self.task;
        let (shown, place) = (step / (task.shows + task.blanks), step % (task.shows + task.blanks));
        match self.order.get(shown) {
            Some(&k) if place < task.shows => input[..task.bits].copy_from_slice(&self.patterns[k]),
            Some(_) => {}
            None => {
                for (slot, (bit, dropped)) in
                    input.iter_mut().zip(self.patterns[self.tested].iter().zip(&self.dropped))
                {
                    *slot = if *dropped { 0.0 } else { *bit };
                }
            }
        }
        if task.bias {
            input[task.bits] = 1.0;
        }
        input.iter_mut().for_each(|x| *x *= task.scale);
    }

    fn target(&self, step: usize) -> Option<&[f32]> {
        (step + 1 == self.task.steps()).then(|| &self.patterns[self.tested][..])
    }

    fn scores(&self, output: &[f32], _reward: f64) -> Vec<f64> {
        let wrong = |k: &usize| output[*k] * self.patterns[self.tested][*k] <= 0.0;
        let all = (0..self.task.bits).filter(wrong).count();
        let among = (0..self.task.bits).filter(|&k| self.dropped[k]).filter(wrong).count();
        let dropped = self.dropped.iter().filter(|d| **d).count().max(1);
        let error = all as f64 / self.task.bits as f64;
        vec![1.0 - error, error, among as f64 / dropped as f64]
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{address, task};
    use super::*;

    fn inputs(task: &dyn Task) -> (Vec<Vec<f32>>, Vec<f32>) {
        let mut run = task.episode(address(2, 1));
        let rows = (0..task.steps()).map(|t| {
            let mut input = vec![0.0; task.inputs()];
            run.observe(t, &mut input);
            assert_eq!(run.target(t).is_some(), t + 1 == task.steps());
            input
        });
        let rows: Vec<Vec<f32>> = rows.collect();
        let target = run.target(task.steps() - 1).expect("target").to_vec();
        (rows, target)
    }

    #[test]
    fn an_episode_as_published() {
        let task = task("pattern-completion", "");
        assert_eq!((task.steps(), task.inputs(), task.axes()), (106, 1001, vec![("N", 1001)]));
        let (rows, target) = inputs(&*task);
        assert_eq!(target.iter().sum::<f32>(), 0.0);
        for (t, row) in rows.iter().enumerate() {
            assert_eq!(row[1000], 20.0);
            let shown = row[..1000].iter().filter(|x| x.abs() == 20.0).count();
            assert_eq!(
                shown,
                if t >= 100 {
                    500
                } else if t % 10 < 6 {
                    1000
                } else {
                    0
                },
                "step {t}"
            );
        }
        for cycle in [0, 50] {
            let mut shown: Vec<&Vec<f32>> = (0..5).map(|k| &rows[cycle + 10 * k]).collect();
            shown.sort_by(|a, b| a.partial_cmp(b).expect("finite"));
            shown.dedup();
            assert_eq!(shown.len(), 5, "every pattern once per cycle");
        }
        let seen = rows[..10 * 5].iter().any(|r| r[..1000].iter().zip(&target).all(|(x, y)| *x == 20.0 * y));
        assert!(seen, "the tested pattern was shown");
    }

    #[test]
    fn scores_count_signs() {
        let task = task("pattern-completion", "bits = 8\npatterns = 1\nextra = 3");
        assert_eq!(task.inputs(), 12);
        let (rows, target) = inputs(&*task);
        let run = task.episode(address(2, 1));
        assert_eq!(run.scores(&[target.clone(), vec![0.0; 4]].concat(), 0.0), [1.0, 0.0, 0.0]);
        // Repeating what is seen leaves all dropped bits wrong.
        let last = rows.last().expect("steps");
        assert_eq!(run.scores(last, 0.0), [0.5, 0.5, 1.0]);
    }

    #[test]
    fn the_comparison_setting() {
        let text = "bits = 50\npatterns = 2\ncycles = 1\nshows = 3\nblanks = 1\ntests = 3";
        let task = task("pattern-completion", text);
        assert_eq!((task.steps(), task.inputs()), (11, 51));
    }
}
