//! Which kernels take a direction: those of single steps (tier 1), or one for a whole sequence (tier 2).
//!
//! The two can be mixed, for they share the tape: frames, checkpoints, carried cotangents. Whoever goes forward leaves
//! the states at checkpoints, and whoever goes backward starts from them. So each direction takes what is estimated to
//! need less time, and one that cannot be mapped to a sequence falls back alone. Where an environment answers
//! every step, the way forward goes step by step and only the way back is chosen.
//!
//! # What is compared
//!
//! Microseconds of a step of the batch: of single steps as [`super::slabs::solver`] estimates them, forward, and
//! replay with backward unless the states of every step will be kept ([`Device::keeps`](super::Device::keeps)); of sequences as `sequence::cost` does, at the clock of an H100. Both know the same device:
//! bytes per second, latencies and what sums over vectors take are the same constants. To both come the checkpoints, where there are any: a
//! sequence writes them as it goes (its estimate says so), between single steps they are copied there and back, a
//! launch and eight bytes for each number of the states. One every eighth step is counted, which is what sequences
//! that rebuild states on the chip want; others use more distant ones, the square root of the steps, and
//! are then a little better than is said here. The interval of a run follows from who goes backward, or from the user;
//! those who go forward write what they are told.
//!
//! All of this is arithmetic on data sheets; nothing has been measured. Beside hand calculation for designs that
//! were tuned further than these kernels (one launch per step and direction and no replay; messages in the place of barriers), both come out
//! higher, by about as much, so that neither is favoured: retroactive, N = 128, batch 32, 25 µs of single steps
//! against 8 to 10, 4.7 µs of sequences against 2.1; N = 256, batch 64, 87 against 56, and 37 against 9.6.
//! One published measurement on an H100 is near: an LSTM of 768 cells, batch 16, step by step in single precision (Haste, in the
//! figures of FlashRNN, arXiv 2412.07752), 18 µs forward and 43 with backward; of single steps 20 and 59 are estimated.
//!
//! # What it must not know
//!
//! How much memory is free: whether states can be expected to be kept follows from a device's whole memory, so that every
//! run takes the same kernels. The tape of either way is planned before anything is allocated, and refused if there is too little. Who
//! asks: `bpmc plan` and the engine go through [`Candidates::choose`] alike.

use super::sequence::{CHECKPOINT_EVERY, Mapping, Refusal};
use super::slabs::Choice;
use super::slabs::solver::{LAUNCH, MEMORY};

/// The kernels of a direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tier {
    /// Some for each step.
    Steps,
    /// One for a whole sequence.
    Sequences,
}

impl Tier {
    /// Its number on the command line and in records.
    pub fn number(self) -> u8 {
        match self {
            Tier::Steps => 1,
            Tier::Sequences => 2,
        }
    }
}

/// Directions, as they are indexed here.
const WORDS: [&str; 2] = ["forward", "backward"];

/// What is asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Wish {
    /// Forward and backward; what is estimated to take less time, if nothing is asked for.
    pub tiers: Option<[Tier; 2]>,
    /// Whether steps come one by one, since somebody answers each, so that no sequence is known before it has run. Then
    /// the way forward goes by steps whatever is asked for.
    pub one_by_one: bool,
}

/// What a device can do with a batch.
#[derive(Clone, Debug)]
pub struct Candidates {
    /// By single steps.
    pub steps: Choice,
    /// By whole sequences, forward and backward; or why not.
    pub sequences: [Result<Mapping, Refusal>; 2],
    /// Numbers of all matrix states of a row.
    pub states: usize,
    /// Whether single steps find the states of every step kept ([`Device::keeps`](super::Device::keeps)).
    pub keeps: bool,
}

/// Why a direction goes as it does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// It is estimated to take less time.
    Faster,
    /// It was asked for.
    Asked,
    /// The other kernels cannot be had.
    Only,
    /// Steps come one by one.
    OneByOne,
}

/// How a direction goes.
#[derive(Clone, Debug, PartialEq)]
pub struct Direction {
    /// Which kernels take it.
    pub tier: Tier,
    /// Why.
    pub reason: Reason,
    /// Microseconds of a step of the batch by kernels of single steps, estimated.
    pub steps: f64,
    /// The same by one of a whole sequence; or why there is none.
    pub sequences: Result<f64, Refusal>,
    /// Blocks of a row and threads of a block of the sequence, if there is one.
    blocks: Option<(usize, usize)>,
    /// How states come back in a sequence, going backward.
    states: Option<String>,
}

/// Which kernels run, forward and backward, and why.
#[derive(Clone, Debug, PartialEq)]
pub struct Route {
    /// Forward and backward.
    pub directions: [Direction; 2],
}

impl Candidates {
    /// Chooses, direction by direction.
    ///
    /// # Errors
    /// If a sequence is asked for and cannot be had.
    pub fn choose(&self, wish: Wish) -> Result<Route, Refusal> {
        let backward = self.direction(wish, true, self.keeps);
        // Kernels of whole sequences go back from checkpoints.
        let keeps = self.keeps && backward.as_ref().is_ok_and(|d| d.tier == Tier::Steps);
        Ok(Route { directions: [self.direction(wish, false, keeps)?, backward?] })
    }

    /// The mappings of the directions that take sequences.
    pub fn taken(&self, route: &Route) -> [Option<&Mapping>; 2] {
        let of = |which: usize| match route.directions[which].tier {
            Tier::Sequences => self.sequences[which].as_ref().ok(),
            Tier::Steps => None,
        };
        [of(0), of(1)]
    }

    /// Microseconds of a step of the batch by single steps, with what checkpoints and replay take.
    fn by_steps(&self, is_backward: bool, keeps: bool) -> f64 {
        let [forward, replay, backward] = self.steps.times;
        if keeps {
            return if is_backward { backward } else { forward };
        }
        let numbers = (self.states * self.steps.grid.batch) as f64;
        let copy = if 0.0 < numbers { LAUNCH + 8.0 * numbers / MEMORY } else { 0.0 };
        copy / CHECKPOINT_EVERY as f64 + if is_backward { replay + backward } else { forward }
    }

    fn direction(&self, wish: Wish, is_backward: bool, keeps: bool) -> Result<Direction, Refusal> {
        let which = usize::from(is_backward);
        let mapped = &self.sequences[which];
        let steps = self.by_steps(is_backward, keeps);
        let sequences = mapped.as_ref().map(Mapping::microseconds).map_err(Clone::clone);
        let one_by_one = wish.one_by_one && !is_backward;
        let (tier, reason) = match (wish.tiers.map(|t| t[which]), &sequences) {
            _ if one_by_one => (Tier::Steps, Reason::OneByOne),
            (Some(Tier::Steps), _) => (Tier::Steps, Reason::Asked),
            (Some(Tier::Sequences), Ok(_)) => (Tier::Sequences, Reason::Asked),
            (Some(Tier::Sequences), Err(why)) => {
                return Err(Refusal(format!("going {}: {why}", WORDS[which])));
            }
            (None, Err(_)) => (Tier::Steps, Reason::Only),
            (None, Ok(time)) if *time < steps => (Tier::Sequences, Reason::Faster),
            (None, Ok(_)) => (Tier::Steps, Reason::Faster),
        };
        Ok(Direction {
            tier,
            reason,
            steps,
            sequences,
            blocks: mapped.as_ref().ok().map(|m| (m.cluster(), m.threads())),
            states: mapped.as_ref().ok().and_then(Mapping::states),
        })
    }
}

impl Direction {
    /// Microseconds of a step of the batch, estimated.
    pub fn microseconds(&self) -> f64 {
        match (self.tier, &self.sequences) {
            (Tier::Sequences, Ok(time)) => *time,
            (Tier::Sequences, Err(_)) | (Tier::Steps, _) => self.steps,
        }
    }

    /// What runs.
    fn kernels(&self) -> String {
        match (self.tier, self.blocks) {
            (Tier::Steps, _) | (_, None) => "a kernel for each step".to_owned(),
            (Tier::Sequences, Some((1, threads))) => {
                format!("a sequence is one launch, one block of {threads} threads for a row")
            }
            (Tier::Sequences, Some((blocks, threads))) => {
                format!("a sequence is one launch, {blocks} blocks of {threads} threads for a row")
            }
        }
    }

    /// Both estimates and what decides.
    fn estimates(&self) -> String {
        let reason = match (self.reason, self.tier, &self.sequences) {
            (Reason::Asked, ..) => "as asked for".to_owned(),
            (Reason::OneByOne, ..) => "steps come one by one".to_owned(),
            (Reason::Faster, Tier::Sequences, _) => format!("{:.1} by steps", self.steps),
            (_, _, Ok(time)) => format!("{time:.1} by sequences"),
            (_, _, Err(why)) => format!("a whole sequence does not fit: {why}"),
        };
        format!("estimated {:.1} µs per step; {reason}", self.microseconds())
    }
}

impl Route {
    /// Forward and backward.
    pub fn tiers(&self) -> [u8; 2] {
        self.directions.each_ref().map(|d| d.tier.number())
    }

    /// As `--tier` takes it: `1`, `2`, `1,2` or `2,1`.
    pub fn number(&self) -> String {
        match self.tiers() {
            [f, b] if f == b => f.to_string(),
            [f, b] => format!("{f},{b}"),
        }
    }

    /// What runs and why, in one line.
    pub fn why(&self) -> String {
        let [forward, backward] = &self.directions;
        let one = |d: &Direction| format!("{} ({})", d.kernels(), d.estimates());
        let states = backward.states.as_ref().filter(|_| backward.tier == Tier::Sequences);
        let states = states.map_or(String::new(), |s| format!("; states {s}"));
        format!("{} forward, {} backward{states}", one(forward), one(backward))
    }

    /// The same for a plan.
    pub fn text(&self) -> String {
        let mut text = String::new();
        for (word, d) in WORDS.iter().zip(&self.directions) {
            let tier = d.tier.number();
            text += &format!("  {word}: tier {tier}, {}; {}\n", d.kernels(), d.estimates());
        }
        text
    }
}

impl std::fmt::Display for Route {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "tier {}: {}", self.number(), self.why())
    }
}
