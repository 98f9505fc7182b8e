//! The arguments of `bpm`.

use crate::exact::Dtype;
use crate::progress::Format;
use clap::{Args, Parser, Subcommand, ValueEnum};
use std::path::PathBuf;

const EXAMPLES: &str = "Examples:
  bpm train examples/cue-reward/small.toml
  bpm train specs/backpropamine/simple.bpm --task maze --set sizes.N=50
  bpm plot runs/*

Exit codes: 0 done, 1 the input has errors or a check failed, 2 usage or file error, 3 device,
4 training diverged, 101 a bug of bpm, 130 interrupted (a checkpoint is saved first).";

/// Trains, runs and plots plastic networks written as .bpm specs.
#[derive(Debug, Parser)]
#[command(name = "bpm", version, about, after_help = EXAMPLES, arg_required_else_help = true)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
    /// How errors and progress look.
    #[arg(long, global = true, value_enum, default_value_t, value_name = "FORMAT")]
    pub message_format: Format,
    /// Say nothing but errors.
    #[arg(short, long, global = true)]
    pub quiet: bool,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Train a network on a task.
    Train(Train),
    /// Evaluate a trained run on new episodes.
    Eval(Eval),
    /// Run a model on tensors, exactly.
    Run(Run),
    /// Time a model: forward, forward and backward, memory.
    Bench(Bench),
    /// Draw learning curves of runs.
    Plot(Plot),
    /// List the tasks and their options.
    Tasks,
}

/// `bpm train`
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  bpm train examples/cue-reward/small.toml
  bpm train specs/backpropamine/simple.bpm --task maze --updates 500 --out runs/first
  bpm train runs/first --resume")]
pub struct Train {
    /// A recipe (.toml), a spec (.bpm), or the folder of a run.
    pub input: Option<PathBuf>,
    /// The task; `bpm tasks` lists them.
    #[arg(long, value_name = "NAME")]
    pub task: Option<String>,
    /// Replace a key of the recipe.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub sets: Vec<String>,
    /// The size of an axis; short for --set sizes.NAME=SIZE.
    #[arg(long = "axis", value_name = "NAME=SIZE")]
    pub axes: Vec<String>,
    /// The folder of the run [default: runs/NAME-seedSEED].
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
    /// The seed of everything random.
    #[arg(long)]
    pub seed: Option<u64>,
    /// Updates of the whole run.
    #[arg(long)]
    pub updates: Option<u64>,
    /// Threads; results do not depend on them [default: all cores].
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub threads: Option<u16>,
    /// Go on with a run.
    #[arg(long)]
    pub resume: bool,
    /// Write where the time goes: a trace of the last 300 updates for ui.perfetto.dev or
    /// chrome://tracing; a table of all updates is printed at the end.
    #[arg(long, value_name = "FILE.json")]
    pub timings: Option<PathBuf>,
    /// Where to train.
    #[arg(long, value_enum, default_value_t, value_name = "DEVICE")]
    pub device: Device,
    /// What runs the model.
    #[arg(long, value_enum, default_value_t, value_name = "BACKEND")]
    pub backend: BackendName,
}

/// `bpm eval`
#[derive(Debug, Args)]
pub struct Eval {
    /// The folder of a run.
    pub run: PathBuf,
    /// Episodes.
    #[arg(long, default_value_t = 300, value_parser = clap::value_parser!(u32).range(1..=1 << 24))]
    pub episodes: u32,
    /// The seed of the episodes; they are never those of training.
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    /// Take the likeliest action instead of drawing one.
    #[arg(long)]
    pub greedy: bool,
    /// Fail (exit code 1) if the mean of the first score is below this.
    #[arg(long, value_name = "SCORE", allow_negative_numbers = true)]
    pub min_score: Option<f64>,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
    /// Threads; results do not depend on them [default: all cores].
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub threads: Option<u16>,
    /// What runs the model.
    #[arg(long, value_enum, default_value_t, value_name = "BACKEND")]
    pub backend: BackendName,
}

/// `bpm run`
#[derive(Debug, Args)]
pub struct Run {
    /// The spec; FILE.bpm#NAME for one of several.
    pub spec: String,
    /// Parameters in the units of the spec, one tensor per name.
    #[arg(long, value_name = "FILE")]
    pub params: PathBuf,
    /// Inputs [T, B, axes…], and perhaps init.<state> and reset.
    #[arg(long, value_name = "FILE")]
    pub inputs: PathBuf,
    /// Cotangents of outputs [T, B, axes…]; gradients are written then.
    #[arg(long, value_name = "FILE")]
    pub cotangents: Option<PathBuf>,
    /// Where the results go.
    #[arg(long, value_name = "FILE")]
    pub out: PathBuf,
    /// The size of an axis.
    #[arg(long = "axis", value_name = "NAME=SIZE")]
    pub axes: Vec<String>,
    /// What runs the model.
    #[arg(long, value_enum, default_value_t, value_name = "BACKEND")]
    pub backend: BackendName,
    /// The type of the results; f64 needs the interpreter.
    #[arg(long, value_enum, default_value = "f32", value_name = "DTYPE")]
    pub dtype: Dtype,
}

/// `bpm bench`
#[derive(Debug, Args)]
pub struct Bench {
    /// The spec; FILE.bpm#NAME for one of several.
    pub spec: String,
    /// The size of an axis.
    #[arg(long = "axis", value_name = "NAME=SIZE")]
    pub axes: Vec<String>,
    /// Rows.
    #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(u32).range(1..=1 << 20))]
    pub batch: u32,
    /// Steps.
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..=1 << 20))]
    pub steps: u32,
    /// Repetitions; the median counts.
    #[arg(long, default_value_t = 7, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub repeat: u32,
    /// Threads.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub threads: u16,
    /// Compute the cotangents of inputs, too.
    #[arg(long)]
    pub input_gradients: bool,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
    /// What runs the model.
    #[arg(long, value_enum, default_value_t, value_name = "BACKEND")]
    pub backend: BackendName,
}

/// `bpm plot`
#[derive(Debug, Args)]
pub struct Plot {
    /// Folders of runs.
    #[arg(required = true, value_name = "RUN")]
    pub runs: Vec<PathBuf>,
    /// The picture, without extension; .svg and .png are written.
    #[arg(long, default_value = "curves", value_name = "FILE")]
    pub out: PathBuf,
    /// What is drawn [default: the task's first score].
    #[arg(long, default_value = "", hide_default_value = true, value_name = "NAME")]
    pub metric: String,
    /// Points of the moving average.
    #[arg(long, default_value_t = 1, value_name = "POINTS")]
    pub smooth: usize,
    /// The title.
    #[arg(long, default_value = "", hide_default_value = true)]
    pub title: String,
}

/// Where to train.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Device {
    /// The best there is.
    #[default]
    Auto,
    /// The processor.
    Cpu,
    /// A CUDA device.
    Cuda,
}

/// What runs the model.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum BackendName {
    /// The fastest machine code that this processor runs.
    #[default]
    Auto,
    /// Machine code for x86-64 with AVX2 and FMA.
    X64,
    /// Machine code through Cranelift, for any processor; the same bits.
    Cranelift,
    /// The interpreter: slow, and the meaning of the language.
    Interp,
}
