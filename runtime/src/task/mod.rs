//! Tasks: worlds that give observations and rewards, or inputs and targets.
//!
//! A task is built from the options of a recipe and is shared by threads. An [`Episode`] is one
//! row of the batch living through one episode; rows never wait for each other. All randomness
//! comes from the episode's [`Address`].

mod cue_reward;
mod maze;
mod one_shot;
mod pattern_completion;

use crate::encoder::Map;
use crate::language::Text;
use crate::options::Options;
use crate::rng::Address;

pub use cue_reward::CueReward;
pub use maze::Maze;
pub use one_shot::OneShot;
pub use pattern_completion::PatternCompletion;

/// What a task wants from a network at every step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Goal {
    /// A choice among this many actions, to collect reward.
    Act(usize),
    /// A vector of this many numbers, compared with a target where there is one.
    Match(usize),
    /// Features, from which the next word of a text is predicted.
    Continue,
    /// One of this many classes, where there is a target: a logit for each.
    Classify(usize),
}

/// A task with its options.
pub trait Task: Send + Sync {
    /// The number of steps of an episode.
    fn steps(&self) -> usize;

    /// The axes it binds: names as the specs use them, and sizes.
    fn axes(&self) -> Vec<(&'static str, usize)>;

    /// The number of inputs per step.
    fn inputs(&self) -> usize;

    /// The shape of the inputs of a step, if they are an image that can be encoded.
    fn image(&self) -> Option<Map> {
        None
    }

    /// The number of classes of the labels that are shown beside the inputs; 0 if none are.
    fn labels(&self) -> usize {
        0
    }

    /// What it wants.
    fn goal(&self) -> Goal;

    /// The names of the scores of an episode. The first one is the one that is maximised.
    fn scores(&self) -> &'static [&'static str];

    /// Starts an episode.
    fn episode(&self, address: Address) -> Box<dyn Episode + '_>;

    /// Its code for a device, if it has any.
    fn device(&self) -> Option<DeviceTask> {
        None
    }

    /// The text, if it is one; a text is read in windows, not in episodes.
    fn text(&self) -> Option<&Text> {
        None
    }
}

/// A task's world as code for a device, beside the task's file: the same episodes, number by number.
///
/// The source is CUDA C that draws from the same addresses. Where a network acts it defines `world_begin`,
/// `world_observe`, `world_act` and `world_reward` (`engine/device/training/episode.cu`), and the only score is the sum
/// of rewards; where outputs have targets, what is named at the head of `engine/device/training/known.cu`.
#[derive(Clone, Debug, PartialEq)]
pub struct DeviceTask {
    /// The source.
    pub source: &'static str,
    /// What it is told: integers.
    pub ints: Vec<i32>,
    /// Numbers in single precision.
    pub floats: Vec<f32>,
    /// Numbers in double precision.
    pub doubles: Vec<f64>,
    /// Integers that it remembers of a row.
    pub row_ints: usize,
    /// Numbers that it remembers of a row.
    pub row_floats: usize,
}

/// One row living through an episode.
pub trait Episode {
    /// Writes what the network sees at a step. `input` is zero on entry. Steps come in order.
    fn observe(&mut self, step: usize, input: &mut [f32]);

    /// Writes the label that the network sees at a step. `label` is zero on entry.
    fn label(&self, _step: usize, _label: &mut [f32]) {}

    /// The reward seen at a step: that of the action of the step before.
    fn previous_reward(&self) -> f32 {
        0.0
    }

    /// Acts at a step; gives the reward.
    fn act(&mut self, _step: usize, _action: usize) -> f32 {
        0.0
    }

    /// What the output should be at a step, unit by unit, if it matters. May be shorter than the
    /// output: the rest is free.
    fn target(&self, _step: usize) -> Option<&[f32]> {
        None
    }

    /// The scores, in the order of [`Task::scores`], after the last step. `output` is the last
    /// output; `reward` the sum of rewards.
    fn scores(&self, output: &[f32], reward: f64) -> Vec<f64>;
}

/// What learning on a task starts from, unless a recipe says otherwise.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Defaults {
    /// The index of the learner in [`crate::learner::NAMES`].
    pub learner: usize,
    /// Weight of the penalty on the squares of action probabilities.
    pub entropy: f64,
    /// Adam's rate.
    pub rate: f64,
    /// Adam's epsilon.
    pub epsilon: f64,
    /// Bound of the gradient norm; 0 for none.
    pub clip: f64,
    /// Rows per update.
    pub batch: usize,
    /// Epochs of a run; 0 for tasks without epochs.
    pub epochs: u32,
}

impl Default for Defaults {
    fn default() -> Self {
        Defaults { learner: 0, entropy: 0.0, rate: 1e-3, epsilon: 1e-8, clip: 0.0, batch: 1, epochs: 0 }
    }
}

/// The names of all tasks.
pub const NAMES: [&str; 5] = ["cue-reward", "maze", "pattern-completion", "language-model", "one-shot"];

/// One line on each task.
pub const SUMMARIES: [&str; 5] = [
    "associate cues with reward: which of the cues of this episode is the target?",
    "find the reward in a grid maze, again and again, from 3x3 views",
    "memorise patterns, then complete one of them from half of its bits",
    "predict the next word of a text",
    "see characters once with their labels, then name one of them in another hand",
];

/// The metric by which runs of a task are compared, unless another is asked for: its first score, or what
/// is published of it.
pub fn compared_by(name: &str) -> &'static str {
    match name {
        "cue-reward" | "maze" => "return",
        "language-model" => "test_ppl",
        _ => "accuracy",
    }
}

/// Builds the task with this index in [`NAMES`] from its options.
pub fn build(index: usize, options: &mut Options) -> (Box<dyn Task>, Defaults) {
    match NAMES[index] {
        "cue-reward" => {
            let task = Box::new(CueReward::new(options));
            let defaults = Defaults {
                learner: 0,
                entropy: 0.1,
                rate: 1e-4,
                epsilon: 1e-6,
                clip: 2.0,
                batch: 30,
                epochs: 0,
            };
            (task, defaults)
        }
        "maze" => {
            let task = Box::new(Maze::new(options));
            let defaults = Defaults {
                learner: 0,
                entropy: 0.03,
                rate: 1e-4,
                epsilon: 1e-4,
                clip: 4.0,
                batch: 30,
                epochs: 0,
            };
            (task, defaults)
        }
        "one-shot" => {
            let task = Box::new(OneShot::new(options));
            (task, Defaults { learner: 3, ..Defaults::default() })
        }
        "language-model" => {
            let task = Box::new(Text::new(options));
            let defaults =
                Defaults { learner: 2, clip: 5.0, batch: 20, epochs: task.epochs, ..Defaults::default() };
            (task, defaults)
        }
        _ => {
            let task = Box::new(PatternCompletion::new(options));
            let defaults = Defaults {
                learner: 1,
                entropy: 0.0,
                rate: 3e-4,
                epsilon: 1e-8,
                clip: 0.0,
                batch: 1,
                epochs: 0,
            };
            (task, defaults)
        }
    }
}

/// Writes a one-hot vector.
fn one_hot(slots: &mut [f32], hot: Option<usize>) {
    if let Some(k) = hot {
        slots[k] = 1.0;
    }
}

/// The class that a one-hot vector names.
pub(crate) fn hot(target: &[f32]) -> usize {
    target.iter().position(|x| *x == 1.0).unwrap_or(0)
}

/// The likeliest class; the first of several.
pub(crate) fn likeliest(logits: &[f32]) -> usize {
    let top = logits.iter().fold(f32::NEG_INFINITY, |a, &b| a.max(b));
    logits.iter().position(|&z| z == top).unwrap_or(0)
}

#[cfg(test)]
mod testing {
    use super::*;
    use crate::rng::Domain;

    /// A task from the text of its options.
    pub(super) fn task(name: &str, text: &str) -> Box<dyn Task> {
        let index = NAMES.iter().position(|n| *n == name).expect("task");
        let mut options = Options::new("task", text.parse().expect("toml"));
        let (task, _) = build(index, &mut options);
        assert_eq!(options.finish().1, []);
        task
    }

    /// The address of a training episode.
    pub(super) fn address(seed: u64, row: u32) -> Address {
        Address { seed, domain: Domain::Train, episode: 0, row }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tasks_are_compared_by_their_first_score() {
        for name in NAMES.into_iter().filter(|n| *n != "language-model") {
            assert_eq!(compared_by(name), testing::task(name, "").scores()[0], "{name}");
        }
    }
}
