//! Training whose episodes run on the device from beginning to end.
//!
//! # What runs where
//!
//! An update is one recorded sequence of launches, and one transfer each way:
//!
//! ```text
//! host     the seed, the episode, this step's rate
//! device   place_starts, begin_rows                   learned initial states; the world of every row
//!        where the network acts:
//!          for every step: the network's kernels, answer
//!                                                     answer: outputs are finite? softmax, action, reward,
//!                                                     what is seen next, straight into the next frame
//!          returns, cotangents                        losses, and cotangents straight into the frames
//!        where outputs have targets:
//!          show                                       what is seen at all steps, straight into the frames
//!          the network's kernels, for all steps
//!          losses, cotangents                         the same for squared errors and cross-entropies
//!        then:
//!          totals                                     by row: the loss, penalties, scores
//!          the network's backward pass, sums over rows
//!          add_starts, evaluate …, chain, squares, judge, move
//!                                                     gradients by raw numbers, their norm, Adam or SGD
//!          images, evaluate …, pack                   the parameters of the next episode
//! host     terms of the loss, penalties and scores by row, the norm, whether all numbers are finite
//! ```
//!
//! The first part is a [`Course`], made of hand-written sources: `episode.cu` or `known.cu`, behind the source of a world
//! that a task brings ([`World`]). The second is a [`Descent`](descent::Descent), `descent.cu`; what a spec computes with
//! parameters alone becomes instructions for it ([`unbatched`]), and learned initial states are a part of it
//! ([`starts`]). What the host draws or keeps between episodes (noise, random and carried initial states) travels once
//! per episode, before the recording is replayed.
//!
//! # Bits
//!
//! The same seed gives the same episodes as on a processor: random numbers are functions of their address, and all
//! that decides over an action or makes a loss is made of operations that are rounded in one way (`learner/elementary.rs`). Losses,
//! gradients by raw numbers, the norm and the steps of the optimiser have the processor's bits for the same
//! gradients and parameters; sums over rows are those of the device's engine. Two things can differ in the last place
//! on a GPU: ranges and what a spec computes with parameters alone go through the device's own `exp`, `ln` and
//! `tanh` in double precision; and denormal numbers are flushed to zero where the optimiser of a processor keeps them.
//!
//! A thread has a row, or a step of a row, or an element; no sum depends on which comes first.
//!
//! # What it must not know
//!
//! Tasks, learners, recipes. It is told places in frames, numbers, and a source.

mod descent;
mod episode;
mod lesson;
mod starts;
#[cfg(test)]
mod tests;
mod unbatched;
mod values;

pub use descent::{Motion, Parameter};
pub(super) use values::{Rules, Values};

use super::code::{Buffer, Code, Map, Params, Plain};
use super::{Address, Call, Fault, Kernel, Module, cache};
use crate::engine::Engine;
use compiler::ir::{InputId, OutputId};
use descent::Descent;
use lesson::Lesson;
use std::ffi::c_int;
use std::sync::Arc;

/// What all sources share.
const SHARED: &str = include_str!("training.cuh");
/// Episodes whose actions a world answers.
const EPISODE: &str = include_str!("episode.cu");
/// Episodes whose inputs are known.
const KNOWN: &str = include_str!("known.cu");

/// Threads of a block where a thread has a row: few, for there are few rows and many multiprocessors.
const ROW_THREADS: usize = 32;
/// Where it has an element.
const THREADS: usize = 128;

/// Numbers that the host is told of a row, and at their beginning of the descent.
const RESULTS: usize = 9;
const VERDICT: usize = 4;

/// A world that lives on the device: CUDA C that defines what is named at the head of `episode.cu` or of `known.cu`, and
/// what it is told.
#[derive(Clone, Copy, Debug)]
pub struct World<'a> {
    /// The source.
    pub source: &'a str,
    /// What it is told, in integers.
    pub ints: &'a [c_int],
    /// In single precision.
    pub floats: &'a [f32],
    /// In double precision.
    pub doubles: &'a [f64],
    /// Integers that it remembers of a row.
    pub row_ints: usize,
    /// Numbers that it remembers of a row.
    pub row_floats: usize,
}

/// What is asked of a network, and where it says it.
#[derive(Clone, Copy, Debug)]
pub enum Aim {
    /// Actions, which the world answers with rewards: an actor-critic loss.
    Act {
        /// The previous reward goes here, if anywhere.
        reward: Option<InputId>,
        /// Logits of actions.
        policy: OutputId,
        /// The value of the state.
        value: OutputId,
        /// Of the loss.
        weights: Weights,
    },
    /// Outputs that are compared with targets. What is seen is known before the network runs.
    Match {
        /// Labels go here, if there are any.
        label: Option<InputId>,
        /// What is compared.
        output: OutputId,
        /// How.
        loss: Loss,
    },
}

/// The loss of an output that has a target, as the source numbers it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Loss {
    /// The sum of squared errors.
    Squared,
    /// −ln of the probability of the class that the target names.
    Categorical,
    /// The mean over classes of binary entropies.
    Binary,
}

/// The weights of an actor-critic loss.
#[derive(Clone, Copy, Debug)]
pub struct Weights {
    /// Discount of later rewards.
    pub gamma: f64,
    /// Of the value loss.
    pub value: f64,
    /// Of the squares of probabilities.
    pub entropy: f64,
    /// Whether all rows use the values of row 0.
    pub shared_baseline: bool,
}

/// What is to be trained, for how many rows and steps.
#[derive(Clone, Copy, Debug)]
pub struct Plan<'a> {
    /// The world.
    pub world: World<'a>,
    /// What it shows goes here.
    pub input: InputId,
    /// What it asks for, and the loss.
    pub aim: Aim,
    /// Rows of the batch.
    pub rows: usize,
    /// Steps of an episode.
    pub steps: usize,
    /// How parameters move.
    pub motion: Motion<'a>,
}

/// What changes from update to update.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Update {
    /// The seed of the run.
    pub seed: u64,
    /// The episode.
    pub episode: u32,
    /// Whether parameters may move: 0 or 1.
    pub learns: c_int,
    /// The rate of the step, with the correction of Adam's mean.
    pub rate: f32,
    /// The root of the correction of Adam's mean square.
    pub root: f32,
}

impl Plain for Update {}

/// What a row has lived through.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct RowResult {
    /// The terms of the loss, summed over steps: Σ −ln p(a) adv, Σ Σ p², Σ adv² and the entropy of the policy in nats
    /// where the network acts; else the first is the loss itself.
    pub terms: [f64; 4],
    /// The scores, or the sum of rewards; as many as the task has.
    pub scores: [f64; 3],
    /// The sum of penalties.
    pub penalty: f64,
    /// The first step after which an output was not finite.
    pub broken: Option<usize>,
}

/// What an update has done.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Results {
    /// By row.
    pub rows: Vec<RowResult>,
    /// The norm of the gradients.
    pub norm: f64,
    /// Whether all gradients were finite.
    pub finite: bool,
}

/// The kernels of an episode.
struct Kernels {
    begin_rows: Kernel,
    course: Course,
    cotangents: Kernel,
    totals: Kernel,
}

/// Those of a kind of episodes.
enum Course {
    /// `episode.cu`
    Acting { answer: Kernel, returns: Kernel },
    /// `known.cu`; logarithms of probabilities are for cross-entropies.
    Known { show: Kernel, logs: Option<Kernel>, losses: Kernel },
}

impl Kernels {
    fn new(code: &Code, module: Module, aim: &Aim) -> Result<Kernels, Fault> {
        let kernel = |name| code.device.kernel(module, name);
        let course = match aim {
            Aim::Act { .. } => Course::Acting { answer: kernel("answer")?, returns: kernel("returns")? },
            Aim::Match { loss, .. } => {
                let logs = (*loss != Loss::Squared).then(|| kernel("logs")).transpose()?;
                Course::Known { show: kernel("show")?, logs, losses: kernel("losses")? }
            }
        };
        Ok(Kernels {
            begin_rows: kernel("begin_rows")?,
            course,
            cotangents: kernel("cotangents")?,
            totals: kernel("totals")?,
        })
    }
}

/// Training on a device, with its memory.
pub struct Training {
    code: Arc<Code>,
    modules: Vec<Module>,
    kernels: Kernels,
    /// As it lies on the device.
    lesson: Lesson,
    lesson_at: Buffer,
    update_at: Buffer,
    results: Buffer,
    rows: usize,
    steps: usize,
    descent: Descent,
    /// Memory that the kernels are told of, and nobody else needs.
    _kept: Vec<Buffer>,
}

impl Drop for Training {
    fn drop(&mut self) {
        self.modules.iter().for_each(|m| self.code.device.unload(*m));
    }
}

/// Compiles a source, or takes it from the cache.
fn load(code: &Code, name: &str, parts: &[&str], modules: &mut Vec<Module>) -> Result<Module, Fault> {
    let text = parts.concat();
    let (module, _) = cache::load(&*code.device, cache::folder(), &text, name)?;
    modules.push(module);
    Ok(module)
}

/// Bytes of all memory, as devices give it out.
fn sum_of(bytes: impl IntoIterator<Item = usize>) -> u64 {
    bytes.into_iter().fold(0, |sum: u64, n| sum.saturating_add((n as u64).next_multiple_of(512)))
}

/// Bytes that training takes on a device beside the tape of its rows.
pub(in crate::engine) fn bytes(engine: &Engine, plan: &Plan<'_>) -> u64 {
    let episode = sum_of(lesson::bytes(engine, plan)).saturating_add(512);
    episode.saturating_add(sum_of(descent::bytes(engine, &plan.motion)))
}

impl Training {
    /// Compiles the kernels and takes the memory.
    pub(in crate::engine) fn new(
        engine: &Engine,
        code: &Arc<Code>,
        plan: &Plan<'_>,
    ) -> Result<Training, Fault> {
        let mut modules = vec![];
        let made = Training::with(engine, code, plan, &mut modules);
        if made.is_err() {
            modules.iter().for_each(|m| code.device.unload(*m));
        }
        made
    }

    fn with(
        engine: &Engine,
        code: &Arc<Code>,
        plan: &Plan<'_>,
        modules: &mut Vec<Module>,
    ) -> Result<Training, Fault> {
        let source = if matches!(plan.aim, Aim::Act { .. }) { EPISODE } else { KNOWN };
        let module = load(code, "episodes", &[SHARED, plan.world.source, source], modules)?;
        let kernels = Kernels::new(code, module, &plan.aim)?;
        let update_at = Buffer::of(&code.device, &[Update::default()])?;
        let results = Buffer::zeros(&code.device, 8 * (VERDICT + RESULTS * plan.rows))?;
        let (lesson, kept) = Lesson::new(engine, code, plan, (update_at.at(), results.at() + 8 * VERDICT))?;
        let told = (update_at.at(), results.at());
        let descent = Descent::new(engine, code, plan.rows, plan.motion, told, modules)?;
        Ok(Training {
            code: Arc::clone(code),
            modules: std::mem::take(modules),
            kernels,
            lesson,
            lesson_at: Buffer::of(&code.device, &[lesson])?,
            update_at,
            results,
            rows: plan.rows,
            steps: plan.steps,
            descent,
            _kept: kept,
        })
    }

    /// The parameters.
    pub(in crate::engine) fn params(&self) -> &Arc<Params> {
        self.descent.params()
    }

    /// The initial states as they were when training began; learned ones live on the device.
    pub(in crate::engine) fn initial(&self) -> Vec<Vec<f32>> {
        self.descent.initial()
    }

    /// Raw parameters, and what the optimiser remembers of them, by tensor.
    ///
    /// # Errors
    /// If the device fails, now or before.
    pub fn fetch(&self) -> Result<[Vec<Vec<f32>>; 3], Fault> {
        let fetched = self.code.attempt(|| self.descent.fetch());
        self.code.fault().map_or(Ok(fetched.unwrap_or_default()), Err)
    }

    /// The last gradients by raw numbers, by tensor.
    ///
    /// # Errors
    /// If the device fails, now or before.
    pub fn gradients(&self) -> Result<Vec<Vec<f32>>, Fault> {
        let read = self.code.attempt(|| self.descent.gradients());
        self.code.fault().map_or(Ok(read.unwrap_or_default()), Err)
    }

    /// Writes down what has changed since the last update.
    fn prepare(&mut self, (frames, first_frame): (Address, c_int), update: Update) -> Result<(), Fault> {
        let lesson = self.lesson.at(frames, first_frame);
        if lesson != self.lesson {
            self.lesson_at.put(0, &[lesson])?;
            self.lesson = lesson;
        }
        self.update_at.put(0, &[update])
    }

    fn row_by_row(&self, kernel: Kernel, step: usize) -> Result<(), Fault> {
        self.launch(kernel, self.rows, ROW_THREADS, step)
    }

    fn launch(&self, kernel: Kernel, count: usize, threads: usize, step: usize) -> Result<(), Fault> {
        let grid = [count.div_ceil(threads) as u32, 1];
        let call = Call::Kept(self.lesson_at.at(), step as c_int);
        // SAFETY: the lesson lies on the device, and what it names has the sizes that it says.
        unsafe { self.code.device.launch(kernel, grid, threads as u32, &call) }
    }

    /// Reads what an update has done.
    fn read(&self) -> Result<Results, Fault> {
        let mut numbers = vec![0.0f64; VERDICT + RESULTS * self.rows];
        self.results.get(0, &mut numbers)?;
        let (verdict, rows) = numbers.split_at(VERDICT);
        let row = |x: &[f64]| RowResult {
            terms: [x[0], x[1], x[2], x[3]],
            scores: [x[4], x[5], x[6]],
            penalty: x[7],
            broken: (x[8] >= 0.0).then_some(x[8] as usize),
        };
        let rows = rows.chunks(RESULTS).map(row).collect();
        Ok(Results { rows, norm: verdict[0], finite: verdict[1] != 0.0 })
    }
}

/// Zeros where a map says, in so many regions.
fn zeros(code: &Code, map: &Map, to: (Address, usize), count: usize) -> Result<(), Fault> {
    code.moves(super::Move {
        to: to.0,
        to_map: map.places.at(),
        from: code.zeros.at(),
        from_map: 0,
        to_length: to.1 as i64,
        from_length: 0,
        width: map.width as i64,
        count: count as i64,
    })
}
