//! The arguments of `bpmc`.

use clap::{Args, Parser, Subcommand, ValueEnum};
use compiler::back::cuda::{Arch, Wish};
use std::path::PathBuf;

const EXAMPLES: &str = "Examples:
  bpmc check specs/backpropamine/*.bpm
  bpmc plan specs/backpropamine/retroactive.bpm --axis I=17 --axis A=4 --batch 30 --steps 200
  bpmc compile specs/zoo/deltanet.bpm --emit step,adjoint
  bpmc compile specs/zoo/stpn.bpm --target cuda --axis I=3 --axis A=2
  bpmc compile specs/zoo/stpn.bpm --target torch > stpn.py

Exit codes: 0 done, 1 the input has errors or a check failed, 2 usage or file error,
3 not on this machine or not enough memory, 101 a bug of bpmc.";

/// Checks, explains and compiles plastic networks written as .bpm specs.
#[derive(Debug, Parser)]
#[command(name = "bpmc", version, about, after_help = EXAMPLES, arg_required_else_help = true)]
pub(crate) struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub(crate) command: Command,
    /// How diagnostics and tables look.
    #[arg(long, global = true, value_enum, default_value_t, value_name = "FORMAT")]
    pub(crate) message_format: Format,
    /// When diagnostics are coloured; NO_COLOR is honoured.
    #[arg(long, global = true, value_enum, default_value_t, value_name = "WHEN")]
    pub(crate) color: Color,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Check specs; silent if nothing is wrong.
    #[command(visible_alias = "c")]
    Check(Check),
    /// Print or write what the compiler makes of a spec.
    Compile(Compile),
    /// Put specs into the canonical layout.
    Fmt(Fmt),
    /// Explain a code such as BPM0203; without a code, list them all.
    Explain(Explain),
    /// Print a spec as a document: tables, equations.
    Doc(Doc),
    /// Print memory and work of training, before anything runs.
    Plan(Plan),
    /// Compare the gradients of a spec with finite differences.
    Gradcheck(Gradcheck),
}

/// `bpmc check`
#[derive(Debug, Args)]
pub(crate) struct Check {
    /// Specs; `-` reads standard input.
    #[arg(required = true, value_name = "FILE")]
    pub(crate) files: Vec<PathBuf>,
    /// Show remarks too, and say what was checked.
    #[arg(short, long)]
    pub(crate) verbose: bool,
}

/// Which model, and its sizes.
#[derive(Debug, Args)]
pub(crate) struct Subject {
    /// The spec; `-` reads standard input.
    #[arg(value_name = "FILE")]
    pub(crate) file: PathBuf,
    /// Which spec of a file that holds several.
    #[arg(long, value_name = "NAME")]
    pub(crate) spec: Option<String>,
    /// The size of an axis.
    #[arg(long = "axis", value_name = "NAME=SIZE", value_parser = axis)]
    pub(crate) axes: Vec<(String, usize)>,
}

/// How long and how wide a run is.
#[derive(Debug, Args)]
pub(crate) struct Load {
    /// Rows of a batch.
    #[arg(long, default_value_t = 32, value_parser = positive, value_name = "ROWS")]
    pub(crate) batch: usize,
    /// Steps of an episode or window.
    #[arg(long, default_value_t = 100, value_parser = positive, value_name = "STEPS")]
    pub(crate) steps: usize,
    /// Threads.
    #[arg(long, default_value_t = 1, value_parser = positive, value_name = "THREADS")]
    pub(crate) threads: usize,
    /// Steps between checkpoints of the plastic matrices [default: the square root of the steps].
    #[arg(long, value_parser = positive, value_name = "STEPS")]
    pub(crate) checkpoint_every: Option<usize>,
    /// How plastic matrices are kept [default: auto for a plan, dense for the other stages].
    #[arg(long, value_enum, value_name = "FORM")]
    pub(crate) prefer: Option<Prefer>,
}

/// `bpmc compile`
#[derive(Debug, Args)]
pub(crate) struct Compile {
    #[command(flatten)]
    pub(crate) subject: Subject,
    /// Write the stages into this folder, one file each.
    #[arg(short, long, value_name = "DIR")]
    pub(crate) out: Option<PathBuf>,
    /// What the code is for.
    #[arg(long, value_enum, default_value_t, value_name = "TARGET")]
    pub(crate) target: Target,
    /// The stages to emit: ast, model, step, simplified, adjoint, prologue, tangent, loops, plan,
    /// clif (what Cranelift gets), asm (the instructions for x86-64), cuda, torch, or all.
    #[arg(long, value_enum, value_delimiter = ',', value_name = "STAGE", hide_possible_values = true)]
    pub(crate) emit: Vec<Emit>,
    /// Leave `#line` out of CUDA source, for reading.
    #[arg(long)]
    pub(crate) no_lines: bool,
    /// The kernels of CUDA source: some for each step (1), one for a whole sequence (2), one way forward and the other
    /// backward (1,2 or 2,1), or what is estimated to take less time, direction by direction (auto).
    #[arg(long, value_enum, default_value_t, value_name = "TIER")]
    pub(crate) tier: Tier,
    /// The CUDA device that sequences are mapped to: sm_80, sm_86 or sm_90a.
    #[arg(long, default_value = "sm_90a", value_parser = arch, value_name = "ARCH")]
    pub(crate) arch: Arch,
    #[command(flatten)]
    pub(crate) load: Load,
}

/// `bpmc fmt`
#[derive(Debug, Args)]
pub(crate) struct Fmt {
    /// Specs; `-` reads standard input and prints the result.
    #[arg(required = true, value_name = "FILE")]
    pub(crate) files: Vec<PathBuf>,
    /// Write nothing; fail (exit code 1) if a file is not in the canonical layout.
    #[arg(long)]
    pub(crate) check: bool,
}

/// `bpmc explain`
#[derive(Debug, Args)]
pub(crate) struct Explain {
    /// The code, with or without its letters.
    pub(crate) code: Option<String>,
}

/// `bpmc doc`
#[derive(Debug, Args)]
pub(crate) struct Doc {
    /// The spec; `-` reads standard input.
    #[arg(value_name = "FILE")]
    pub(crate) file: PathBuf,
    /// Which spec of a file that holds several [default: all].
    #[arg(long, value_name = "NAME")]
    pub(crate) spec: Option<String>,
    /// The kind of document.
    #[arg(long, value_enum, default_value_t, value_name = "FORMAT")]
    pub(crate) format: DocFormat,
}

/// `bpmc plan`
#[derive(Debug, Args)]
pub(crate) struct Plan {
    #[command(flatten)]
    pub(crate) subject: Subject,
    #[command(flatten)]
    pub(crate) load: Load,
    /// What may be used: 8GiB, 500MB.
    #[arg(long, value_parser = memory, value_name = "SIZE")]
    pub(crate) memory: Option<u64>,
    /// What the plan is for; cuda adds how whole sequences are mapped to a device.
    #[arg(long, value_enum, default_value_t, value_name = "TARGET")]
    pub(crate) target: Target,
    /// The CUDA device: sm_80, sm_86 or sm_90a.
    #[arg(long, default_value = "sm_90a", value_parser = arch, value_name = "ARCH")]
    pub(crate) arch: Arch,
}

/// `bpmc gradcheck`
#[derive(Debug, Args)]
pub(crate) struct Gradcheck {
    #[command(flatten)]
    pub(crate) subject: Subject,
    /// The seed of the numbers.
    #[arg(long, default_value_t = 0)]
    pub(crate) seed: u64,
    /// Steps of the sequence.
    #[arg(long, default_value_t = 6, value_parser = positive, value_name = "STEPS")]
    pub(crate) steps: usize,
    /// The largest relative error allowed.
    #[arg(long, default_value_t = 1e-5, value_name = "ERROR")]
    pub(crate) tolerance: f64,
    /// What gives the gradients under test.
    #[arg(long, value_enum, default_value_t, value_name = "BACKEND")]
    pub(crate) backend: Backend,
}

/// How plastic matrices are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Prefer {
    /// As the estimate says, where both are possible.
    Auto,
    /// As matrices.
    Dense,
    /// As the events that made them, where that is possible.
    Events,
}

/// What the code is for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Target {
    /// This processor.
    #[default]
    Cpu,
    /// A CUDA device: prints the source, if no stages are named.
    Cuda,
    /// PyTorch: prints a module, if no stages are named.
    Torch,
}

/// The kernels of CUDA source.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Tier {
    /// One for each step.
    #[default]
    #[value(name = "1")]
    Steps,
    /// One for a whole sequence.
    #[value(name = "2")]
    Sequences,
    /// Forward by steps, backward by sequences.
    #[value(name = "1,2")]
    ForwardSteps,
    /// Forward by sequences, backward by steps.
    #[value(name = "2,1")]
    BackwardSteps,
    /// By direction what is estimated to take less time.
    Auto,
}

impl Tier {
    /// What it asks for.
    pub(crate) fn wish(self) -> Wish {
        use compiler::back::cuda::Tier::{Sequences, Steps};
        let tiers = match self {
            Tier::Steps => Some([Steps, Steps]),
            Tier::Sequences => Some([Sequences, Sequences]),
            Tier::ForwardSteps => Some([Steps, Sequences]),
            Tier::BackwardSteps => Some([Sequences, Steps]),
            Tier::Auto => None,
        };
        Wish { tiers, one_by_one: false }
    }
}

/// What gives the gradients under test.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Backend {
    /// The interpreter in double precision.
    #[default]
    Interp,
    /// libtorch's autograd, which `bpm gradcheck` runs.
    Torch,
}

/// A stage, or all of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub(crate) enum Emit {
    Ast,
    Model,
    Step,
    Simplified,
    Adjoint,
    Prologue,
    Tangent,
    Loops,
    Plan,
    Clif,
    Asm,
    Cuda,
    Torch,
    All,
}

/// The kind of document.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum DocFormat {
    /// Markdown.
    #[default]
    Md,
    /// A web page.
    Html,
    /// A LaTeX document.
    Latex,
}

/// How diagnostics look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// With excerpts, for people.
    #[default]
    Human,
    /// One line each, for editors.
    Short,
    /// One JSON object per line, for programs.
    Json,
}

/// When to colour.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Color {
    /// On a terminal, unless NO_COLOR is set.
    #[default]
    Auto,
    /// Always.
    Always,
    /// Never.
    Never,
}

fn arch(text: &str) -> Result<Arch, String> {
    let known = || Arch::ALL.map(|a| a.name).join(", ");
    Arch::named(text).ok_or_else(|| format!("`{text}` is no device that is known: {}", known()))
}

fn axis(text: &str) -> Result<(String, usize), String> {
    let (name, size) = text.split_once('=').ok_or("write it as NAME=SIZE")?;
    Ok((name.trim().to_owned(), positive(size.trim())?))
}

fn positive(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(n) if (1..=1 << 30).contains(&n) => Ok(n),
        _ => Err(format!("`{text}` is no number between 1 and 2^30")),
    }
}

/// `8GiB`, `500 MB`, `1000000`
fn memory(text: &str) -> Result<u64, String> {
    let digits = text.trim().find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.trim().len());
    let (number, unit) = text.trim().split_at(digits);
    let scale = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "b" => 1.0,
        "k" | "kib" => 1024.0,
        "m" | "mib" => 1024.0 * 1024.0,
        "g" | "gib" => 1024.0 * 1024.0 * 1024.0,
        "t" | "tib" => 1024.0 * 1024.0 * 1024.0 * 1024.0,
        "kb" => 1e3,
        "mb" => 1e6,
        "gb" => 1e9,
        "tb" => 1e12,
        other => return Err(format!("`{other}` is no unit of memory; write 8GiB or 500MB")),
    };
    match number.parse::<f64>() {
        Ok(n) if n > 0.0 && n * scale < 1e18 => Ok((n * scale) as u64),
        _ => Err(format!("`{text}` is no amount of memory; write 8GiB or 500MB")),
    }
}
