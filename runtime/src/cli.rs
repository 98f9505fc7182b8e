//! The arguments of `bpm`.

use crate::engine::device::Tier;
use crate::exact::Dtype;
use crate::progress::Format;
use clap::{Args, Parser, Subcommand, ValueEnum};
use compiler::form::Prefer;
use std::path::PathBuf;

const EXAMPLES: &str = "Examples:
  bpm train examples/cue-reward/small.toml
  bpm train specs/backpropamine/simple.bpm --task maze --set sizes.N=50
  bpm plot runs/*
  bpm compare runs/*

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
    /// Draw text from a trained language model.
    Sample(Sample),
    /// Run a model on tensors, exactly.
    Run(Run),
    /// Compare a model on libtorch, and its autograd, with the interpreter and its adjoint.
    Gradcheck(Gradcheck),
    /// Time a model: forward, forward and backward, memory.
    Bench(Bench),
    /// Write the parameters of a run for PyTorch.
    Export(Export),
    /// Draw learning curves of runs.
    Plot(Plot),
    /// Compare runs: means over seeds, and tests between conditions.
    Compare(Compare),
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
    /// The folder of the task's data; short for --set task.data=DIR.
    #[arg(long, value_name = "DIR")]
    pub data: Option<PathBuf>,
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
    /// Start from these parameters (.safetensors): a state dict of the PyTorch module, or values in the units of
    /// the spec. With --updates 0 they become a run that is not trained.
    #[arg(long, value_name = "FILE", conflicts_with = "resume")]
    pub params: Option<PathBuf>,
    /// Write where the time goes: a trace of the last 300 updates for ui.perfetto.dev or
    /// chrome://tracing; a table of all updates is printed at the end.
    #[arg(long, value_name = "FILE.json")]
    pub timings: Option<PathBuf>,
    /// Where to train: auto, cpu, cuda or cuda:N. `auto` takes a GPU where it is estimated to win.
    #[arg(long, default_value = "auto", value_name = "DEVICE")]
    pub device: Device,
    /// On a GPU: a kernel for each step (1), for a whole sequence (2), or for a sequence where that fits (auto).
    #[arg(long, value_enum, default_value = "auto", value_name = "TIER")]
    pub tier: Tier,
    /// How plastic matrices are kept; short for --set run.prefer=FORM.
    #[arg(long, value_enum, value_name = "FORM")]
    pub prefer: Option<PreferName>,
    /// What runs the model.
    #[arg(long, value_enum, default_value_t, value_name = "BACKEND")]
    pub backend: BackendName,
    /// On a GPU: whole updates there where the task has code for it (auto), or answers and losses from the processor
    /// (host).
    #[arg(long, value_enum, default_value_t, value_name = "PLACE")]
    pub episodes: Episodes,
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
    /// Where the data of the run's task are now, if they have moved.
    #[arg(long, value_name = "DIR")]
    pub data: Option<PathBuf>,
    /// Language models: only this split.
    #[arg(long, value_enum, value_name = "SPLIT")]
    pub split: Option<SplitName>,
    /// Language models: rows that are read side by side.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1 << 16))]
    pub batch: u32,
    /// Language models: fail (exit code 1) if the perplexity of the last split read is above this.
    #[arg(long, value_name = "PERPLEXITY")]
    pub max_perplexity: Option<f64>,
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
    /// Where to evaluate: auto, cpu, cuda or cuda:N. `auto` takes a GPU where it is estimated to win.
    #[arg(long, default_value = "auto", value_name = "DEVICE")]
    pub device: Device,
    /// On a GPU: a kernel for each step (1), for a whole sequence (2), or for a sequence where that fits (auto).
    #[arg(long, value_enum, default_value = "auto", value_name = "TIER")]
    pub tier: Tier,
    /// What runs the model on the processor.
    #[arg(long, value_enum, default_value_t, value_name = "BACKEND")]
    pub backend: BackendName,
    /// How plastic matrices are kept [default: as in training].
    #[arg(long, value_enum, value_name = "FORM")]
    pub prefer: Option<PreferName>,
}

/// `bpm sample`
#[derive(Debug, Args)]
pub struct Sample {
    /// The folder of a run of a language model.
    pub run: PathBuf,
    /// How many tokens.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=1 << 20))]
    pub tokens: u32,
    /// What the network reads first [default: the end of a line].
    #[arg(long, default_value = "", hide_default_value = true)]
    pub prompt: String,
    /// Logits are divided by it; at 0 the likeliest token is taken.
    #[arg(long, default_value_t = 1.0, allow_negative_numbers = true)]
    pub temperature: f64,
    /// The seed.
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    /// Where the text is now, if it has moved.
    #[arg(long, value_name = "DIR")]
    pub data: Option<PathBuf>,
    /// What runs the model.
    #[arg(long, value_enum, default_value_t, value_name = "BACKEND")]
    pub backend: BackendName,
}

/// Parts of a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum SplitName {
    /// What is learned from.
    Train,
    /// What decides which parameters are kept.
    Valid,
    /// What is reported.
    Test,
}

/// `bpm run`
#[derive(Debug, Args)]
pub struct Run {
    /// The spec; FILE.bpm#NAME for one of several.
    pub spec: String,
    /// Parameters: values in the units of the spec, or a state dict of the PyTorch module.
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
    /// Where to run: cpu, cuda or cuda:N; `auto` is the processor here.
    #[arg(long, default_value = "cpu", value_name = "DEVICE")]
    pub device: Device,
    /// On a GPU: a kernel for each step (1), for a whole sequence (2), or for a sequence where that fits (auto).
    #[arg(long, value_enum, default_value = "auto", value_name = "TIER")]
    pub tier: Tier,
    /// How plastic matrices are kept: as matrices, or as the events that made them. Left out, they
    /// are matrices, for then all states are given out.
    #[arg(long, value_enum, value_name = "FORM")]
    pub prefer: Option<PreferName>,
    /// The type of the results; f64 needs the interpreter or libtorch.
    #[arg(long, value_enum, default_value = "f32", value_name = "DTYPE")]
    pub dtype: Dtype,
}

/// `bpm gradcheck`
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  bpm gradcheck specs/backpropamine/simple.bpm
  bpm gradcheck specs/backpropamine/simple.bpm --dtype f32 --axis N=100 --steps 50

`bpmc gradcheck` compares the interpreter with finite differences.")]
pub struct Gradcheck {
    /// The spec; FILE.bpm#NAME for one of several.
    pub spec: String,
    /// The size of an axis; small sizes are taken for others.
    #[arg(long = "axis", value_name = "NAME=SIZE")]
    pub axes: Vec<String>,
    /// The seed of the numbers.
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    /// Steps.
    #[arg(long, default_value_t = 6, value_parser = clap::value_parser!(u32).range(1..=1 << 20))]
    pub steps: u32,
    /// Rows; the second one is reset on the way.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=1 << 16))]
    pub batch: u32,
    /// The largest relative error allowed [default: 1e-9 in f64, 2e-3 in f32].
    #[arg(long, value_name = "ERROR")]
    pub tolerance: Option<f64>,
    /// What is compared with the interpreter.
    #[arg(long, value_enum, default_value = "torch", value_name = "BACKEND")]
    pub backend: BackendName,
    /// Where it runs: cpu, cuda or cuda:N; `auto` is the processor here.
    #[arg(long, default_value = "cpu", value_name = "DEVICE")]
    pub device: Device,
    /// In how many bits it computes.
    #[arg(long, value_enum, default_value = "f64", value_name = "DTYPE")]
    pub dtype: Dtype,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
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
    /// Where to run: cpu, cuda or cuda:N; `auto` is the processor here.
    #[arg(long, default_value = "cpu", value_name = "DEVICE")]
    pub device: Device,
    /// On a GPU: a kernel for each step (1), for a whole sequence (2), or for a sequence where that fits (auto).
    #[arg(long, value_enum, default_value = "auto", value_name = "TIER")]
    pub tier: Tier,
    /// What runs the model on the processor.
    #[arg(long, value_enum, default_value_t, value_name = "BACKEND")]
    pub backend: BackendName,
    /// How plastic matrices are kept.
    #[arg(long, value_enum, default_value_t, value_name = "FORM")]
    pub prefer: PreferName,
    /// Run the spec in PyTorch, too, eager and with torch.compile: compare numbers, then times in turn.
    #[arg(long, value_enum, value_name = "RIVAL")]
    pub against: Option<RivalName>,
    /// The Python that has PyTorch [default: BPM_PYTHON, else python3].
    #[arg(long, value_name = "PATH", requires = "against")]
    pub python: Option<String>,
}

/// What else runs a spec.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum RivalName {
    /// PyTorch, from the source that `bpmc compile --target torch` emits.
    Torch,
}

/// `bpm export`
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  bpm export runs/maze-simple-seed0 -o maze.safetensors --module maze.py
  python -c \"import maze, safetensors.torch as s; m = maze.Simple(); m.load_state_dict(s.load_file('maze.safetensors'))\"
  bpm train specs/backpropamine/simple.bpm --task maze --params maze.safetensors")]
pub struct Export {
    /// The folder of a run.
    pub run: PathBuf,
    /// The state dict (.safetensors).
    #[arg(short, long, value_name = "FILE")]
    pub out: PathBuf,
    /// Write the module, too (.py), with the sizes of the run.
    #[arg(long, value_name = "FILE")]
    pub module: Option<PathBuf>,
    /// Take the parameters of the last checkpoint, also where the best ones are kept.
    #[arg(long)]
    pub last: bool,
    /// Write what is no part of the spec, too: an embedding, a decoder, an encoder.
    #[arg(long)]
    pub all: bool,
    /// Where the data of the run's task are now, if they have moved.
    #[arg(long, value_name = "DIR")]
    pub data: Option<PathBuf>,
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

/// `bpm compare`
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  bpm compare runs/*
  bpm compare runs/maze-* --metric return --last 20
  bpm compare runs/language-model-* --metric valid_ppl")]
pub struct Compare {
    /// Folders of runs; those that differ in nothing but the seed are one condition.
    #[arg(required = true, value_name = "RUN")]
    pub runs: Vec<PathBuf>,
    /// What is compared: a name in metrics.jsonl, or in what `bpm eval` left in eval.json
    /// [default: the task's first score; test_ppl for language models].
    #[arg(long, default_value = "", hide_default_value = true, value_name = "NAME")]
    pub metric: String,
    /// Lines of metrics at the end of a run that are averaged.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..), value_name = "LINES")]
    pub last: u32,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

/// Where to run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Device {
    /// A GPU where it is estimated to win, else the processor.
    #[default]
    Auto,
    /// The processor.
    Cpu,
    /// A CUDA device, by its number.
    Cuda(u32),
}

impl std::str::FromStr for Device {
    type Err = String;

    fn from_str(text: &str) -> Result<Device, String> {
        match text {
            "auto" => Ok(Device::Auto),
            "cpu" => Ok(Device::Cpu),
            "cuda" => Ok(Device::Cuda(0)),
            _ => {
                let number = text.strip_prefix("cuda:").and_then(|n| n.parse().ok());
                number.map(Device::Cuda).ok_or_else(|| "it can be auto, cpu, cuda or cuda:N".to_owned())
            }
        }
    }
}

/// Where episodes live when a GPU runs the network.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Episodes {
    /// On the GPU, with losses and the optimiser, as far as task and model have code for it.
    #[default]
    Auto,
    /// On the processor: a transfer each way per step.
    Host,
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
    /// libtorch and its autograd, where they are built in; also with --device cuda.
    Torch,
}

/// How plastic matrices are kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum PreferName {
    /// As the estimate says, where both are possible.
    #[default]
    Auto,
    /// As matrices.
    Dense,
    /// As the events that made them, where that is possible.
    Events,
}

impl PreferName {
    /// The same for the compiler.
    pub fn form(self) -> Prefer {
        match self {
            PreferName::Auto => Prefer::Auto,
            PreferName::Dense => Prefer::Dense,
            PreferName::Events => Prefer::Events,
        }
    }

    /// Its word in a recipe.
    pub fn word(self) -> &'static str {
        PREFERENCES[self as usize]
    }
}

/// The words of [`PreferName`] in a recipe, in its order.
pub const PREFERENCES: [&str; 3] = ["auto", "dense", "events"];
