//! Cue-reward association (Miconi et al. 2019, §4.1): which of the cues is the target?
//!
//! An episode draws `cues` random vectors of ±1 and makes one of them the target. It is a chain of
//! trials: a blank step, a random half of the cues among blanks, a *go* step, a blank step. At the
//! go step, action 1 says "the target was shown", action 0 "it was not"; the reward is ±1 and is
//! seen one step later. The network cannot know the target except from rewards.
//!
//! A trial has `cues/2 + 3 + U{0 … cues−1}` steps; the last trial of an episode may be cut short.

use super::{DeviceTask, Episode, Goal, Task, one_hot};
use crate::options::Options;
use crate::rng::{Address, Purpose, Stream};

/// Which inputs there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Layout {
    /// As released: bits, go, bias, time, previous reward, an unused zero, previous action (2).
    Code,
    /// As printed: bits, time, previous action (2), previous reward.
    Paper,
}

/// The task.
#[derive(Clone, Debug)]
pub struct CueReward {
    steps: usize,
    cues: usize,
    bits: usize,
    reward: f32,
    press_cost: f32,
    flip: f64,
    fixed: bool,
    layout: Layout,
}

impl CueReward {
    /// Reads the options.
    pub fn new(o: &mut Options) -> Self {
        let task = CueReward {
            steps: o.size("steps", 120, 1..=1_000_000, "steps of an episode"),
            cues: o.size("cues", 4, 2..=1024, "cues of an episode; half of them are shown in a trial"),
            bits: o.size("bits", 20, 1..=4096, "bits of a cue"),
            reward: o.number("reward", 1.0, 0.0..=1e6, "reward of a right answer; a wrong one costs it")
                as f32,
            press_cost: o.number("press_cost", 0.0, 0.0..=1e6, "cost of action 1 outside of go steps") as f32,
            flip: o.number("flip", 0.0, 0.0..=1.0, "probability that a reward has the wrong sign"),
            fixed: o.flag("fixed_cues", false, "cues are 1000, 0100, … in every episode; bits = cues"),
            layout: match o.choice("layout", 0, &["code", "paper"], "inputs as released, or as printed") {
                0 => Layout::Code,
                _ => Layout::Paper,
            },
        };
        if task.fixed && task.bits != task.cues {
            let message = format!("fixed cues need as many bits as cues, {}", task.cues);
            o.problem("bits", message, Some(format!("set `bits = {}`", task.cues)));
        } else if task.bits < 12 && task.cues > 1 << task.bits {
            let message = format!("{} bits make fewer than {} different cues", task.bits, task.cues);
            o.problem("bits", message, None);
        }
        task
    }

    fn draw_cues(&self, stream: &mut Stream) -> Vec<Vec<f32>> {
        let mut cues: Vec<Vec<f32>> = vec![];
        while cues.len() < self.cues {
            let cue: Vec<f32> = match self.fixed {
                true => (0..self.bits).map(|k| f32::from(u8::from(k == cues.len()))).collect(),
                false => (0..self.bits).map(|_| [-1.0, 1.0][stream.below(2)]).collect(),
            };
            if !cues.contains(&cue) {
                cues.push(cue);
            }
        }
        cues
    }
}

impl Task for CueReward {
    fn steps(&self) -> usize {
        self.steps
    }

    fn axes(&self) -> Vec<(&'static str, usize)> {
        vec![("I", self.inputs()), ("A", 2)]
    }

    fn inputs(&self) -> usize {
        self.bits
            + match self.layout {
                Layout::Code => 7,
                Layout::Paper => 4,
            }
    }

    fn goal(&self) -> Goal {
        Goal::Act(2)
    }

    fn scores(&self) -> &'static [&'static str] {
        &["return"]
    }

    fn episode(&self, address: Address) -> Box<dyn Episode + '_> {
        let mut stream = address.stream(Purpose::World, 0);
        let cues = self.draw_cues(&mut stream);
        let target = stream.below(self.cues);
        let trial = Trial { start: 0, slots: vec![], shown: false };
        let mut run = Run { task: self, address, cues, target, trial, action: None, reward: 0.0 };
        run.trial = run.draw_trial(0);
        Box::new(run)
    }

    fn device(&self) -> Option<DeviceTask> {
        let printed = self.layout == Layout::Paper;
        let sizes = [self.steps, self.cues, self.bits, usize::from(self.fixed), usize::from(printed)];
        // A trial has a step for half of the cues, at most one less than there are for blanks, and three more.
        let slots = self.cues / 2 + self.cues + 2;
        Some(DeviceTask {
            source: include_str!("cue_reward.cu"),
            ints: sizes.iter().map(|n| *n as i32).collect(),
            floats: vec![self.reward, self.press_cost],
            doubles: vec![self.flip],
            row_ints: 5 + self.cues + slots,
            row_floats: 1 + self.cues * self.bits,
        })
    }
}

/// A trial: where it starts, which cue (if any) is shown at each step, and whether the target is.
/// The step before the last is the go step.
struct Trial {
    start: usize,
    slots: Vec<Option<usize>>,
    shown: bool,
}

/// An episode.
struct Run<'a> {
    task: &'a CueReward,
    address: Address,
    cues: Vec<Vec<f32>>,
    target: usize,
    trial: Trial,
    action: Option<usize>,
    reward: f32,
}

impl Run<'_> {
    fn draw_trial(&self, start: usize) -> Trial {
        let n = self.task.cues;
        let mut stream = self.address.stream(Purpose::World, start as u32 + 1);
        let blanks = stream.below(n);
        let chosen = &stream.permutation(n)[..n / 2];
        let mut middle: Vec<Option<usize>> = chosen.iter().map(|&k| Some(k)).collect();
        middle.extend(std::iter::repeat_n(None, blanks));
        stream.shuffle(&mut middle);
        let shown = chosen.contains(&self.target);
        let slots = [vec![None], middle, vec![None, None]].concat();
        Trial { start, slots, shown }
    }

    fn is_go(&self, step: usize) -> bool {
        step - self.trial.start + 2 == self.trial.slots.len()
    }
}

impl Episode for Run<'_> {
    fn observe(&mut self, step: usize, input: &mut [f32]) {
        if step == self.trial.start + self.trial.slots.len() {
            self.trial = self.draw_trial(step);
        }
        let bits = self.task.bits;
        if let Some(cue) = self.trial.slots[step - self.trial.start] {
            input[..bits].copy_from_slice(&self.cues[cue]);
        }
        let time = step as f32 / self.task.steps as f32;
        let rest = &mut input[bits..];
        match self.task.layout {
            Layout::Code => {
                rest[0] = f32::from(u8::from(self.is_go(step)));
                rest[1] = 1.0;
                rest[2] = time;
                rest[3] = self.reward;
                one_hot(&mut rest[5..], self.action);
            }
            Layout::Paper => {
                rest[0] = time;
                one_hot(&mut rest[1..3], self.action);
                rest[3] = self.reward;
            }
        }
    }

    fn previous_reward(&self) -> f32 {
        self.reward
    }

    fn act(&mut self, step: usize, action: usize) -> f32 {
        self.action = Some(action);
        self.reward = if self.is_go(step) {
            let right = (action == 1) == self.trial.shown;
            let flipped = self.task.flip > 0.0
                && self.address.stream(Purpose::World, (step as u32 + 1) | 1 << 31).chance(self.task.flip);
            if right != flipped { self.task.reward } else { -self.task.reward }
        } else if action == 1 {
            -self.task.press_cost
        } else {
            0.0
        };
        self.reward
    }

    fn scores(&self, _output: &[f32], reward: f64) -> Vec<f64> {
        vec![reward]
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{address, task};
    use super::*;

    /// Plays an episode with a policy that sees the input and the step; gives reward and go steps.
    fn play(task: &dyn Task, row: u32, mut policy: impl FnMut(&[f32], usize) -> usize) -> (f64, usize) {
        let mut run = task.episode(address(5, row));
        let (mut total, mut goes) = (0.0, 0);
        for t in 0..task.steps() {
            let mut input = vec![0.0; task.inputs()];
            run.observe(t, &mut input);
            goes += usize::from(input[task.inputs() - 7] == 1.0);
            let action = policy(&input, t);
            total += f64::from(run.act(t, action));
        }
        (total, goes)
    }

    fn go_steps(options: &str, expected: f64, least: usize, most: usize) {
        let task = task("cue-reward", options);
        let counts: Vec<usize> = (0..20_000).map(|row| play(&*task, row, |_, _| 0).1).collect();
        let mean = counts.iter().sum::<usize>() as f64 / 20_000.0;
        assert!((mean - expected).abs() < 0.05, "{options}: {mean}");
        assert!(counts.iter().all(|c| (least..=most).contains(c)), "{options}");
    }

    #[test]
    fn go_steps_per_episode() {
        go_steps("", 18.207, 15, 24);
        go_steps("steps = 200", 30.515, 25, 40);
        go_steps("cues = 2\nbits = 2\nsteps = 75", 16.505, 15, 19);
    }

    #[test]
    fn a_constant_answer_earns_nothing() {
        let task = task("cue-reward", "");
        for action in [0, 1] {
            let returns: Vec<f64> = (0..20_000).map(|row| play(&*task, row, |_, _| action).0).collect();
            let mean = returns.iter().sum::<f64>() / 20_000.0;
            let sd = (returns.iter().map(|r| r * r).sum::<f64>() / 20_000.0).sqrt();
            assert!(mean.abs() < 4.0 * 4.27 / 141.0, "{mean}");
            assert!((sd - 4.27).abs() < 0.1, "{sd}");
        }
    }

    /// The best possible player: it keeps the set of cues that can still be the target. It must
    /// reach the Bayes-optimal return and cannot exceed it; more would mean that the target leaks.
    #[test]
    fn the_bayes_optimal_player() {
        for (options, bits, expected) in [("", 20, 16.207), ("cues = 2\nbits = 2\nsteps = 75", 2, 15.505)] {
            let task = task("cue-reward", options);
            let n = if bits == 20 { 4 } else { 2 };
            let mut total = 0.0;
            for row in 0..20_000 {
                let (mut known, mut possible): (Vec<Vec<f32>>, Vec<bool>) = (vec![], vec![true; n]);
                let (mut shown, mut answered): (Vec<usize>, Option<usize>) = (vec![], None);
                total += play(&*task, row, |input, _| {
                    if let Some(action) = answered.take() {
                        let was_shown = (input[bits + 3] > 0.0) == (action == 1);
                        for (k, p) in possible.iter_mut().enumerate() {
                            *p &= shown.contains(&k) == was_shown;
                        }
                        shown.clear();
                    }
                    if input[..bits].iter().any(|x| *x != 0.0) {
                        let cue = input[..bits].to_vec();
                        let index = known.iter().position(|k| *k == cue).unwrap_or_else(|| {
                            known.push(cue);
                            known.len() - 1
                        });
                        shown.push(index);
                    }
                    let inside = shown.iter().filter(|k| possible[**k]).count();
                    let action = usize::from(2 * inside > possible.iter().filter(|p| **p).count());
                    if input[bits] == 1.0 {
                        answered = Some(action);
                    }
                    action
                })
                .0;
            }
            let mean = total / 20_000.0;
            assert!((mean - expected).abs() < 0.06, "{options}: {mean}");
        }
    }

    #[test]
    fn layout_of_the_inputs() {
        let t = task("cue-reward", "");
        assert_eq!((t.inputs(), t.axes()), (27, vec![("I", 27), ("A", 2)]));
        assert_eq!(task("cue-reward", "layout = \"paper\"").inputs(), 24);
        let mut run = t.episode(address(1, 0));
        let mut seen = vec![];
        for step in 0..40 {
            let mut input = vec![0.0; 27];
            run.observe(step, &mut input);
            assert_eq!((input[21], input[22], input[24]), (1.0, step as f32 / 120.0, 0.0));
            assert_eq!(input[25..], if step == 0 { [0.0, 0.0] } else { [0.0, 1.0] });
            assert_eq!(input[23], run.previous_reward());
            let reward = run.act(step, 1);
            assert_eq!(reward != 0.0, input[20] == 1.0);
            seen.push(input[..20].iter().filter(|x| x.abs() == 1.0).count());
        }
        assert!(seen.iter().all(|c| [0, 20].contains(c)) && seen.contains(&20));
    }

    #[test]
    fn variants() {
        let t = task("cue-reward", "fixed_cues = true\nbits = 4\npress_cost = 0.5");
        let mut run = t.episode(address(1, 0));
        let mut input = vec![0.0; t.inputs()];
        run.observe(0, &mut input);
        assert_eq!(run.act(0, 1), -0.5);
        let always = task("cue-reward", "flip = 1.0");
        let honest = task("cue-reward", "");
        for row in 0..20 {
            assert_eq!(play(&*always, row, |_, t| t % 2).0, -play(&*honest, row, |_, t| t % 2).0);
        }
        let mut o = Options::new("task", "bits = 1".parse().expect("toml"));
        CueReward::new(&mut o);
        assert_eq!(o.finish().1.len(), 1);
    }
}
