//! Learners: what turns outputs, rewards and targets into a loss and its cotangents.
//!
//! The loss of an update is the mean over the rows of the batch. Cotangents are computed from
//! formulas, not by differentiation; the tests compare them with finite differences. Nothing here
//! knows about networks.

mod actor_critic;
mod cross_entropy;
mod elementary;
mod squared_error;

use crate::language::NextWord;
use crate::options::Options;
use crate::task::{Defaults, Goal};

pub(crate) use actor_critic::softmax;
pub use actor_critic::{ActorCritic, Baseline, Terms};
pub use cross_entropy::{CrossEntropy, Form};
pub use squared_error::SquaredError;

/// The names of all learners.
pub const NAMES: [&str; 4] = ["actor-critic", "squared-error", "next-word", "cross-entropy"];

/// A learner with its options.
#[derive(Clone, Debug, PartialEq)]
pub enum Learner {
    /// Advantage actor-critic.
    ActorCritic(ActorCritic),
    /// Squared error.
    SquaredError(SquaredError),
    /// Cross-entropy of the next word.
    NextWord(NextWord),
    /// Cross-entropy of a class.
    CrossEntropy(CrossEntropy),
}

impl Learner {
    /// Reads the options, and refuses a learner that does not suit the task's goal.
    pub fn new(o: &mut Options, goal: Goal, defaults: &Defaults) -> Self {
        let index = o.choice("name", defaults.learner, &NAMES, "how outputs become a loss");
        let suits = matches!(
            (index, goal),
            (0, Goal::Act(_)) | (1, Goal::Match(_)) | (2, Goal::Continue) | (3, Goal::Classify(_))
        );
        if !suits {
            let message = format!("the learner {} does not suit this task", NAMES[index]);
            o.problem("name", message, Some(format!("use \"{}\"", NAMES[defaults.learner])));
        }
        match index {
            0 => Learner::ActorCritic(ActorCritic::new(o, defaults)),
            2 => Learner::NextWord(NextWord::new(o)),
            3 => Learner::CrossEntropy(CrossEntropy::new(o)),
            _ => Learner::SquaredError(SquaredError),
        }
    }

    /// The number of updates at the start in which nothing is learned.
    pub fn burn_in(&self) -> u64 {
        match self {
            Learner::ActorCritic(a) => a.burn_in,
            Learner::SquaredError(_) | Learner::NextWord(_) | Learner::CrossEntropy(_) => 0,
        }
    }
}
