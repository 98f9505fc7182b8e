//! Training whose episodes run on the device from beginning to end.
//!
//! # What runs where
//!
//! An update is one recorded sequence of launches, and one transfer each way:
//!
//! ```text
//! host     the seed, the episode, this step's rate
//! device   begin_rows                                 the world of every row; what it shows at step 0
//!          for every step: the network's kernels, answer
//!                                                     answer: outputs are finite? softmax, action, reward,
//!                                                     what is seen next, straight into the next frame
//!          returns, cotangents, totals                losses, and cotangents straight into the frames
//!          the network's backward pass, sums over rows
//!          evaluate …, chain, squares, judge, move    gradients by raw numbers, their norm, Adam or SGD
//!          images, evaluate …, pack                   the parameters of the next episode
//! host     returns, terms of the loss and penalties by row, the norm, whether all numbers are finite
//! ```
//!
//! The first part is a [`Course`], made of hand-written sources: `episode.cu`, around the source of a world that a
//! task brings ([`World`]). The second is a [`Descent`](descent::Descent), `descent.cu`; what a spec computes with parameters alone becomes
//! instructions for it ([`unbatched`]). A course can do without a descent: then gradients go to the host once per update,
//! and parameters come back. What the host draws or keeps between episodes (noise, random and carried initial states)
//! travels once per episode, before the recording is replayed.
//!
//! # Bits
//!
//! The same seed gives the same episodes as on a processor: random numbers are functions of their address, and all
//! that decides over an action is made of operations that are rounded in one way (`learner/elementary.rs`). Losses,
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
#[cfg(test)]
mod tests;
mod unbatched;
mod values;

pub(in crate::engine) use descent::suits;
pub use descent::{Motion, Parameter};
pub(super) use values::{Rules, Values};

use super::code::{Buffer, Code, Map, Params, Plain};
use super::{Address, Call, Fault, Kernel, Module, cache};
use crate::engine::Engine;
use compiler::ir::{InputId, OutputId};
use descent::Descent;
use std::ffi::c_int;
use std::sync::Arc;

/// What all sources share.
const SHARED: &str = include_str!("training.cuh");
/// Episodes.
const EPISODE: &str = include_str!("episode.cu");

/// Threads of a block where a thread has a row: few, for there are few rows and many multiprocessors.
const ROW_THREADS: usize = 32;
/// Where it has an element.
const THREADS: usize = 128;

/// Numbers that the host is told of a row, and at their beginning of the descent.
const RESULTS: usize = 8;
const VERDICT: usize = 4;

/// A world that lives on the device: CUDA C that defines `world_begin`, `world_observe`, `world_act` and `world_reward`
/// (`episode.cu`), and what it is told.
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

/// What of a model the world and the learner use.
#[derive(Clone, Copy, Debug)]
pub struct Wires {
    /// What the world shows motion here.
    pub input: InputId,
    /// The previous reward motion here, if anywhere.
    pub reward: Option<InputId>,
    /// Logits of actions.
    pub policy: OutputId,
    /// The value of the state.
    pub value: OutputId,
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
    /// Its connections with the model.
    pub wires: Wires,
    /// The loss.
    pub weights: Weights,
    /// Rows of the batch.
    pub rows: usize,
    /// Steps of an episode.
    pub steps: usize,
    /// How parameters move, if they do so on the device.
    pub descent: Option<Motion<'a>>,
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
    /// Σ −ln p(a) adv.
    pub policy: f64,
    /// Σ Σ p².
    pub squares: f64,
    /// Σ adv².
    pub value: f64,
    /// Σ entropy of the policy, in nats.
    pub entropy: f64,
    /// The sum of rewards.
    pub reward: f64,
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
    /// The norm of the gradients; zero without a descent.
    pub norm: f64,
    /// Whether all gradients were finite; true without a descent.
    pub finite: bool,
}

/// What the kernels are told, on the device (`Lesson` in the source).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Lesson {
    update: Address,
    frames: Address,
    penalties: Address,
    ints: Address,
    floats: Address,
    doubles: Address,
    row_ints: Address,
    row_floats: Address,
    actions: Address,
    rewards: Address,
    returns: Address,
    terms: Address,
    results: Address,
    gamma: f64,
    value_weight: f64,
    entropy_weight: f64,
    share: f64,
    frame_length: i64,
    first_frame: c_int,
    rows: c_int,
    steps: c_int,
    int_count: c_int,
    float_count: c_int,
    input: c_int,
    reward: c_int,
    policy: c_int,
    policies: c_int,
    value: c_int,
    policy_bar: c_int,
    value_bar: c_int,
    penalty_count: c_int,
    shared_baseline: c_int,
}

impl Plain for Lesson {}

/// The kernels of `episode.cu`.
struct Kernels {
    begin_rows: Kernel,
    answer: Kernel,
    returns: Kernel,
    cotangents: Kernel,
    totals: Kernel,
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
    descent: Option<Descent>,
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

/// Bytes of what an episode keeps beside the tape: by row and step, by row, once.
fn episode_bytes(engine: &Engine, plan: &Plan<'_>) -> [usize; 12] {
    let (world, rows) = (&plan.world, plan.rows);
    let steps = rows.saturating_mul(plan.steps);
    [
        4 * engine.program.penalties.len(),
        size_of_val(world.ints),
        size_of_val(world.floats),
        size_of_val(world.doubles),
        (4 * world.row_ints).saturating_mul(rows),
        (4 * world.row_floats).saturating_mul(rows),
        steps.saturating_mul(4),
        steps.saturating_mul(4),
        steps.saturating_mul(8),
        steps.saturating_mul(32),
        8 * (VERDICT + RESULTS * rows),
        size_of::<Lesson>() + size_of::<Update>(),
    ]
}

/// Bytes that training takes on a device beside the tape of its rows.
pub(in crate::engine) fn bytes(engine: &Engine, plan: &Plan<'_>) -> u64 {
    let descent = plan.descent.map_or(0, |motion| sum_of(descent::bytes(engine, plan.rows, &motion)));
    sum_of(episode_bytes(engine, plan)).saturating_add(512).saturating_add(descent)
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
        let module = load(code, "episodes", &[SHARED, plan.world.source, EPISODE], modules)?;
        let kernel = |name| code.device.kernel(module, name);
        let kernels = Kernels {
            begin_rows: kernel("begin_rows")?,
            answer: kernel("answer")?,
            returns: kernel("returns")?,
            cotangents: kernel("cotangents")?,
            totals: kernel("totals")?,
        };
        let update_at = Buffer::of(&code.device, &[Update::default()])?;
        let results = Buffer::zeros(&code.device, 8 * (VERDICT + RESULTS * plan.rows))?;
        let (lesson, kept) = lesson(engine, code, plan, (update_at.at(), results.at() + 8 * VERDICT))?;
        let descent = match plan.descent {
            None => None,
            Some(motion) => {
                Some(Descent::new(engine, code, plan.rows, motion, (update_at.at(), results.at()), modules)?)
            }
        };
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

    /// The parameters, if they live on the device.
    pub(in crate::engine) fn params(&self) -> Option<&Arc<Params>> {
        self.descent.as_ref().map(Descent::params)
    }

    /// The initial states as they were when training began; learned ones live on the device.
    pub(in crate::engine) fn initial(&self) -> Vec<Vec<f32>> {
        self.descent.as_ref().map_or(vec![], Descent::initial)
    }

    /// Raw parameters, and what the optimiser remembers of them, by tensor; nothing without a descent.
    ///
    /// # Errors
    /// If the device fails, now or before.
    pub fn fetch(&self) -> Result<Option<[Vec<Vec<f32>>; 3]>, Fault> {
        let Some(descent) = &self.descent else { return Ok(None) };
        let fetched = self.code.attempt(|| descent.fetch());
        self.code.fault().map_or(Ok(fetched), Err)
    }

    /// The last gradients by raw numbers, by tensor; none without a descent.
    ///
    /// # Errors
    /// If the device fails, now or before.
    pub fn gradients(&self) -> Result<Vec<Vec<f32>>, Fault> {
        let Some(descent) = &self.descent else { return Ok(vec![]) };
        let read = self.code.attempt(|| descent.gradients());
        self.code.fault().map_or(Ok(read.unwrap_or_default()), Err)
    }

    /// Writes down what has changed since the last update.
    fn prepare(&mut self, (frames, first_frame): (Address, c_int), update: Update) -> Result<(), Fault> {
        let lesson = Lesson { frames, first_frame, ..self.lesson };
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
            policy: x[0],
            squares: x[1],
            value: x[2],
            entropy: x[3],
            reward: x[4],
            penalty: x[5],
            broken: (x[6] >= 0.0).then_some(x[6] as usize),
        };
        let rows = rows.chunks(RESULTS).map(row).collect();
        let [norm, finite] = if self.descent.is_some() { [verdict[0], verdict[1]] } else { [0.0, 1.0] };
        Ok(Results { rows, norm, finite: finite != 0.0 })
    }
}

/// Takes the memory of an episode, and says what is where. `update` and `results` lie elsewhere.
fn lesson(
    engine: &Engine,
    code: &Code,
    plan: &Plan<'_>,
    (update, results): (Address, Address),
) -> Result<(Lesson, Vec<Buffer>), Fault> {
    let p = &engine.program;
    let (world, wires, weights) = (&plan.world, &plan.wires, &plan.weights);
    let place = |n: usize| n as c_int;
    let penalties: Vec<c_int> = p.penalties.iter().map(|n| place(*n)).collect();
    let told = [
        Buffer::of(&code.device, &penalties)?,
        Buffer::of(&code.device, world.ints)?,
        Buffer::of(&code.device, world.floats)?,
        Buffer::of(&code.device, world.doubles)?,
    ];
    let room: Result<Vec<Buffer>, Fault> =
        episode_bytes(engine, plan)[4..10].iter().map(|n| Buffer::new(&code.device, *n)).collect();
    let room = room?;
    let lesson = Lesson {
        update,
        frames: 0,
        penalties: told[0].at(),
        ints: told[1].at(),
        floats: told[2].at(),
        doubles: told[3].at(),
        row_ints: room[0].at(),
        row_floats: room[1].at(),
        actions: room[2].at(),
        rewards: room[3].at(),
        returns: room[4].at(),
        terms: room[5].at(),
        results,
        gamma: weights.gamma,
        value_weight: weights.value,
        entropy_weight: weights.entropy,
        share: 1.0 / (plan.rows as f64 * plan.steps as f64),
        frame_length: p.frame_len as i64,
        first_frame: 0,
        rows: place(plan.rows),
        steps: place(plan.steps),
        int_count: place(world.row_ints),
        float_count: place(world.row_floats),
        input: place(p.inputs[wires.input.index()]),
        reward: wires.reward.map_or(-1, |id| place(p.inputs[id.index()])),
        policy: place(p.outputs[wires.policy.index()]),
        policies: place(engine.sizes().count(engine.model().outputs[wires.policy.index()].shape)),
        value: place(p.outputs[wires.value.index()]),
        policy_bar: place(p.output_bars[wires.policy.index()]),
        value_bar: place(p.output_bars[wires.value.index()]),
        penalty_count: place(penalties.len()),
        shared_baseline: c_int::from(weights.shared_baseline),
    };
    Ok((lesson, told.into_iter().chain(room).collect()))
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
