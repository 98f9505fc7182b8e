//! `bpmc`: checks, explains and compiles specs. All reading and writing of files is here; what is
//! written comes from the library.

mod cli;

use clap::Parser;
use cli::{
    Backend, Check, Cli, Color, Command, Compile, Doc, DocFormat, Emit, Explain, Fmt, Format, Gradcheck,
    Load, Plan, Target, Tier,
};
use compiler::back::cuda::{Arch, Candidates, Device, Grid, Mapping, Refusal, Route, Wanted, Wish};
use compiler::check::{Checked, check};
use compiler::doc;
use compiler::form::{self, Prefer};
use compiler::gradcheck::Options;
use compiler::loops::plan::{Tapes, Use};
use compiler::model::Model;
use compiler::stages::{self, Stage, StageError};
use compiler::verdict::{self, Verdict};
use grammar::diag::{Diagnostic, Severity, did_you_mean};
use std::collections::BTreeMap;
use std::io::{IsTerminal, Read, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

/// No spec is larger than this.
const MAX_BYTES: u64 = 16 << 20;

/// Elements of a tensor, times steps, that a gradient check takes on.
const LARGEST_CHECK: usize = 10_000_000;

/// A command that did not succeed: a code, and a message unless everything has been said.
#[derive(Debug)]
struct Failure {
    code: u8,
    message: String,
    help: Option<String>,
}

impl Failure {
    /// Everything has been said.
    fn said(code: u8) -> Self {
        Failure { code, message: String::new(), help: None }
    }

    /// The input has errors, which have been shown; or a check failed.
    fn shown() -> Self {
        Failure::said(1)
    }

    fn usage(message: impl Into<String>) -> Self {
        Failure { code: 2, message: message.into(), help: None }
    }

    fn machine(message: impl Into<String>) -> Self {
        Failure { code: 3, message: message.into(), help: None }
    }

    fn help(mut self, text: impl Into<String>) -> Self {
        self.help = Some(text.into());
        self
    }

    fn file(verb: &str, path: &Path, error: &std::io::Error) -> Self {
        let why = match error.kind() {
            std::io::ErrorKind::NotFound => "there is no such file".to_owned(),
            std::io::ErrorKind::PermissionDenied => "permission denied".to_owned(),
            _ => error.to_string(),
        };
        Failure::usage(format!("cannot {verb} `{}`: {why}", path.display()))
    }
}

impl From<StageError> for Failure {
    fn from(error: StageError) -> Self {
        match error {
            StageError::Sizes(e) => Failure::usage(e.to_string()),
            StageError::Outside(e) => Failure::usage(e.to_string()),
            e @ (StageError::TooLarge { .. } | StageError::Jit(_)) => Failure::machine(e.to_string()),
        }
    }
}

type Done = Result<(), Failure>;

/// How things are said.
#[derive(Clone, Copy)]
struct Voice {
    format: Format,
    color: bool,
}

fn main() -> ExitCode {
    std::panic::set_hook(Box::new(|info| {
        say(&format!(
            "this is a bug in bpmc, not in your spec; report it with the command and this text:\n{info}"
        ));
    }));
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(e) => {
            let _ = e.print();
            return ExitCode::from(if e.use_stderr() { 2 } else { 0 });
        }
    };
    let voice = Voice { format: cli.message_format, color: has_color(cli.color) };
    let done = std::panic::catch_unwind(|| run(&cli.command, voice));
    match done {
        Ok(Ok(())) => ExitCode::SUCCESS,
        Ok(Err(failure)) => {
            voice.failure(&failure);
            ExitCode::from(failure.code)
        }
        Err(_) => ExitCode::from(101),
    }
}

fn run(command: &Command, voice: Voice) -> Done {
    match command {
        Command::Check(args) => check_files(args, voice),
        Command::Compile(args) => compile(args, voice),
        Command::Fmt(args) => fmt(args, voice),
        Command::Explain(args) => explain(args),
        Command::Doc(args) => document(args, voice),
        Command::Plan(args) => plan(args, voice),
        Command::Gradcheck(args) => gradcheck(args, voice),
    }
}

// -------------------------------------------------------------------- commands

fn check_files(args: &Check, voice: Voice) -> Done {
    let mut code = 0;
    for path in &args.files {
        let source = match read(path) {
            Ok(source) => source,
            Err(failure) => {
                voice.failure(&failure);
                code = failure.code;
                continue;
            }
        };
        let mut checked = check(&source);
        if args.verbose {
            checked.diagnostics.extend(checked.models.iter().flat_map(compiler::check::remarks));
        }
        code = code.max(u8::from(checked.diagnostics.iter().any(Diagnostic::is_error)));
        voice.diagnostics(&shown_name(path), &source, &checked.diagnostics, args.verbose);
        if args.verbose && voice.format == Format::Human {
            for model in &checked.models {
                say(&about(model));
            }
        }
    }
    if code > 0 { Err(Failure::said(code)) } else { Ok(()) }
}

/// `spec retroactive: 11 parameter tensors, 1 input, 3 states, 2 outputs`
fn about(model: &Model) -> String {
    let counted = |n: usize, word: &str| format!("{n} {word}{}", if n == 1 { "" } else { "s" });
    format!(
        "spec {}: {}, {}, {}, {}",
        model.name,
        counted(model.params.len(), "parameter tensor"),
        counted(model.inputs.len(), "input"),
        counted(model.states.len(), "state"),
        counted(model.outputs.len(), "output")
    )
}

fn compile(args: &Compile, voice: Voice) -> Done {
    let mut loaded = load(&args.subject, voice)?;
    let as_written = Arc::clone(&loaded.model);
    let usage = usage(&args.load, None);
    match prefer(&args.load, Prefer::Dense) {
        Prefer::Dense => {}
        prefer => {
            let (kept, form) =
                form::choose(&loaded.model, &loaded.bound, usage.steps, prefer).map_err(StageError::from)?;
            form.reasons().iter().for_each(|r| say(r));
            loaded.model = kept.map_or(loaded.model, Arc::new);
        }
    }
    let subject = loaded.subject(&usage);
    let mut wanted: Vec<Stage> = args.emit.iter().flat_map(|e| of_word(*e)).collect();
    if args.emit.is_empty() {
        wanted = match args.target {
            Target::Cuda => vec![Stage::Cuda],
            Target::Torch => vec![Stage::Torch],
            Target::Cpu if args.out.is_some() => Stage::ALL.to_vec(),
            Target::Cpu => vec![],
        };
    }
    wanted.sort_unstable();
    wanted.dedup();
    if wanted.is_empty() {
        let sizes = stages::bind(&loaded.model, &loaded.bound)?;
        let program = stages::program(&loaded.model, &sizes)?;
        let target = compiler::back::Target::fastest();
        let kernels = target.compile(&program).map_err(|e| Failure::machine(e.to_string()))?;
        let (name, bytes) = (&loaded.model.name, kernels.code_bytes);
        say(&format!("{name}: {bytes} bytes of machine code by the back end {}", target.name()));
        return Ok(());
    }
    emit(&wanted, &subject, &as_written, args)
}

/// Prints stages, or writes them into a folder. PyTorch keeps matrices as they are written, whatever is preferred.
fn emit(wanted: &[Stage], subject: &stages::Subject<'_>, as_written: &Model, args: &Compile) -> Done {
    for stage in wanted {
        let mut text = match (stage, args.tier) {
            (Stage::Torch, _) => stages::emit(*stage, &stages::Subject { model: as_written, ..*subject })?,
            (Stage::Cuda, tier) => cuda(subject, args, tier)?,
            _ => stages::emit(*stage, subject)?,
        };
        if args.no_lines {
            text = compiler::back::cuda::without_lines(&text);
        }
        match &args.out {
            Some(folder) => {
                std::fs::create_dir_all(folder).map_err(|e| Failure::file("create", folder, &e))?;
                write(&folder.join(file_name(*stage, subject)), &text)?;
            }
            None if wanted.len() > 1 => print(&format!("// stage {}\n{text}\n", stage.word()))?,
            None => print(&text)?,
        }
    }
    Ok(())
}

/// CUDA source, mapped to the device and the batch, with the kernels that are asked for.
fn cuda(subject: &stages::Subject<'_>, args: &Compile, tier: Tier) -> Result<String, Failure> {
    let (grid, device) = places(args.arch, &args.load);
    match (tier, tier.wish()) {
        (Tier::Steps, _) => Ok(stages::cuda_for(subject, grid)?.text),
        (_, wish) => match stages::cuda_chosen(subject, (grid, &device), wish)? {
            Ok((source, route)) => {
                say(&route.to_string());
                Ok(source.text)
            }
            Err(why) => Err(Failure::machine(format!("no kernels of whole sequences: {why}"))
                .help("use --tier 1, which runs every model, or --tier auto")),
        },
    }
}

/// A kind of device as steps and sequences are mapped to it.
fn places(arch: Arch, load: &Load) -> (Grid, Device) {
    let grid = Grid { processors: arch.processors, batch: load.batch, wanted: Wanted::default() };
    // Who wants checkpoints has no states kept.
    let steps = if load.checkpoint_every.is_some_and(|k| k > 1) { 0 } else { load.steps };
    (grid, Device::new(arch, load.batch).for_steps(steps))
}

/// `NAME.step.txt`, `NAME.cu`
fn file_name(stage: Stage, subject: &stages::Subject<'_>) -> String {
    let (name, ending) = (&subject.model.name, stage.ending());
    match stage {
        Stage::Cuda => format!("{name}.{ending}"),
        Stage::Torch => compiler::back::torch::file_name(subject.model),
        _ => format!("{name}.{}.{ending}", stage.word()),
    }
}

fn of_word(emit: Emit) -> Vec<Stage> {
    match emit {
        Emit::Ast => vec![Stage::Ast],
        Emit::Model => vec![Stage::Model],
        Emit::Step => vec![Stage::Step],
        Emit::Simplified => vec![Stage::Simplified],
        Emit::Adjoint => vec![Stage::Adjoint],
        Emit::Prologue => vec![Stage::Prologue],
        Emit::Tangent => vec![Stage::Tangent],
        Emit::Loops => vec![Stage::Loops],
        Emit::Plan => vec![Stage::Plan],
        Emit::Clif => vec![Stage::Clif],
        Emit::Asm => vec![Stage::Asm],
        Emit::Cuda => vec![Stage::Cuda],
        Emit::Torch => vec![Stage::Torch],
        Emit::All => Stage::ALL.to_vec(),
    }
}

fn fmt(args: &Fmt, voice: Voice) -> Done {
    let mut failed = false;
    for path in &args.files {
        let source = read(path)?;
        let formatted = match grammar::format(&source) {
            Ok(formatted) => formatted,
            Err(diagnostics) => {
                voice.diagnostics(&shown_name(path), &source, &diagnostics, false);
                failed = true;
                continue;
            }
        };
        match (args.check, is_stdin(path)) {
            (true, _) if formatted != source => {
                say(&format!("{}: not in the canonical layout; run `bpmc fmt`", shown_name(path)));
                failed = true;
            }
            (false, true) => print(&formatted)?,
            (false, false) if formatted != source => write(path, &formatted)?,
            _ => {}
        }
    }
    if failed { Err(Failure::shown()) } else { Ok(()) }
}

fn explain(args: &Explain) -> Done {
    let codes = compiler::explain::CODES;
    let Some(code) = &args.code else {
        let titles =
            codes.iter().filter_map(|c| compiler::explain::explain(c)).filter_map(|p| p.lines().next());
        let lines: String = titles.map(|t| format!("{}\n", t.trim_start_matches("# "))).collect();
        return print(&lines);
    };
    let plain = code.trim().to_ascii_uppercase();
    let full = if plain.starts_with("BPM") { plain } else { format!("BPM{plain:0>4}") };
    match compiler::explain::explain(&full) {
        Some(page) => print(&format!("{}\n", page.trim_end())),
        None => {
            let failure = Failure::usage(format!("there is no code `{code}`"));
            Err(match did_you_mean(&full, codes.iter().copied()) {
                Some(near) => failure.help(format!("did you mean {near}? `bpmc explain` lists all codes")),
                None => failure.help("`bpmc explain` lists all codes"),
            })
        }
    }
}

fn document(args: &Doc, voice: Voice) -> Done {
    let source = read(&args.file)?;
    let checked = check(&source);
    voice.diagnostics(&shown_name(&args.file), &source, &checked.diagnostics, false);
    if checked.diagnostics.iter().any(Diagnostic::is_error) {
        return Err(Failure::shown());
    }
    let models = match &args.spec {
        Some(name) => vec![pick(checked, Some(name), &args.file)?],
        None => checked.models,
    };
    let format = match args.format {
        DocFormat::Md => doc::Format::Markdown,
        DocFormat::Html => doc::Format::Html,
        DocFormat::Latex => doc::Format::Latex,
    };
    print(&doc::document(&source, &models, format))
}

fn plan(args: &Plan, voice: Voice) -> Done {
    let loaded = load(&args.subject, voice)?;
    let usage = usage(&args.load, args.memory);
    let plan = stages::planned_as(&loaded.subject(&usage), prefer(&args.load, Prefer::Auto))?;
    let chosen = match args.target {
        Target::Cuda => {
            let (grid, device) = places(args.arch, &args.load);
            let candidates = stages::cuda_candidates(&loaded.subject(&usage), grid, &device)?;
            let route =
                candidates.choose(Wish::default()).map_err(|why| Failure::machine(why.to_string()))?;
            Some((candidates, route))
        }
        Target::Cpu | Target::Torch => None,
    };
    match voice.format {
        Format::Json => {
            let mut value = serde_json::to_value(&plan).map_err(|e| Failure::usage(e.to_string()))?;
            if let Some(fields) = value.as_object_mut() {
                fields.insert("schema".to_owned(), 1.into());
                fields.insert("reason".to_owned(), "plan".into());
                if let Some((candidates, route)) = &chosen {
                    fields.insert("cuda".to_owned(), cuda_json(candidates, route, args));
                }
            }
            print(&format!("{value}\n"))?;
        }
        Format::Human | Format::Short => {
            print(&plan.text())?;
            if let Some((candidates, route)) = &chosen {
                print(&cuda_text(candidates, route, args))?;
                print(&states_text(&plan))?;
            }
        }
    }
    if plan.fits == Some(false) {
        let least = plan.total_bytes;
        return Err(Failure::machine(format!(
            "this needs {least} bytes and may use {}",
            args.memory.unwrap_or(0)
        ))
        .help("use fewer threads, shorter episodes or smaller axes"));
    }
    Ok(())
}

/// What runs on a CUDA device, and how sequences and steps are mapped to it, in words.
fn cuda_text(candidates: &Candidates, route: &Route, args: &Plan) -> String {
    let arch = &args.arch;
    let mut text = format!("CUDA, {}: what `--tier auto` takes, by estimates\n{}", arch.name, route.text());
    text += &format!("CUDA, {}: whole sequences, the plastic state on the chip\n", arch.name);
    for (word, mapped) in ["forward", "backward"].iter().zip(&candidates.sequences) {
        text += &match mapped {
            Ok(mapping) => format!("  {word}\n{}", mapping.text(arch)),
            Err(why) => format!("  {word}: no kernels of whole sequences: {why}\n"),
        };
    }
    let memory = candidates.sequences[1].as_ref().ok();
    if let Some(memory) = memory.and_then(|m| m.memory(args.load.batch, args.load.steps)) {
        text += &format!("  the device's memory: {memory}\n");
    }
    format!("{text}CUDA, {}: single steps\n{}", arch.name, candidates.steps.text())
}

/// What the matrix states of every step take on a device.
fn states_text(plan: &compiler::loops::plan::Plan) -> String {
    if plan.dense_bytes == 0 {
        return String::new();
    }
    let (gib, share) = (plan.dense_bytes as f64 / f64::from(1 << 30), compiler::back::cuda::slabs::KEPT);
    format!(
        "  the states of every step: {gib:.1} GiB for {} steps; kept if they take at most 1/{share} of the memory \
         that is free\n",
        plan.steps
    )
}

/// The same for programs.
fn cuda_json(candidates: &Candidates, route: &Route, args: &Plan) -> serde_json::Value {
    let (choice, steps) = (&candidates.steps, args.load.steps);
    let one = |which: usize| {
        let direction = &route.directions[which];
        let sequence = match &candidates.sequences[which] {
            Ok(m) => mapping_json(m, steps, which == 1),
            Err(Refusal(why)) => serde_json::json!({ "why_not": why }),
        };
        serde_json::json!({
            "tier": direction.tier.number(),
            "microseconds_by_steps": direction.steps,
            "microseconds_by_sequences": direction.sequences.as_ref().ok(),
            "sequence": sequence,
        })
    };
    let single = serde_json::json!({
        "launches": choice.launches(), "microseconds": choice.times, "microseconds_by_rows": choice.by_rows,
        "words": choice.text(),
    });
    serde_json::json!({
        "arch": args.arch.name, "tiers": route.tiers(), "why": route.why(),
        "forward": one(0), "backward": one(1), "steps": single,
    })
}

/// How a direction is mapped as a whole sequence.
fn mapping_json(m: &Mapping, steps: usize, is_backward: bool) -> serde_json::Value {
    let mut value = serde_json::json!({
        "cluster": m.cluster(), "threads": m.threads(), "shared_bytes": m.shared_bytes(),
        "registers": m.registers, "waves": m.waves, "cycles_per_step": m.cycles.round(),
    });
    if let (true, Some(fields)) = (is_backward, value.as_object_mut()) {
        fields.insert("states".to_owned(), m.states().into());
        fields.insert("checkpoint_every".to_owned(), m.interval(steps).into());
        fields.insert("snapshots".to_owned(), m.snapshots(m.interval(steps)).into());
    }
    value
}

fn gradcheck(args: &Gradcheck, voice: Voice) -> Done {
    if args.backend == Backend::Torch {
        let file = args.subject.file.display();
        return Err(Failure::usage("this program knows nothing of libtorch")
            .help(format!("bpm gradcheck {file} --backend torch")));
    }
    let loaded = load(&args.subject, voice)?;
    let bound = verdict::small_sizes(&loaded.model, &loaded.bound);
    let sizes = stages::bind(&loaded.model, &bound)?;
    let largest = loaded.model.step.body.iter().map(|i| sizes.count(i.ty.shape)).max().unwrap_or(0);
    if largest.saturating_mul(args.steps) > LARGEST_CHECK {
        return Err(Failure::usage("finite differences at this size would take too long")
            .help("gradients do not depend on sizes: leave --axis out, or use fewer --steps"));
    }
    let options = Options { seed: args.seed, steps: args.steps, ..Options::default() };
    let report = verdict::thorough(&loaded.model, &sizes, &options);
    let explained = loaded.diagnostics.iter().filter(|d| d.severity == Severity::Warning);
    let spans: Vec<_> = explained.flat_map(|d| d.labels.iter().map(|l| l.span)).collect();
    let verdict = Verdict::new(&loaded.model, bound, report, args.tolerance, &spans);
    match voice.format {
        Format::Json => print(&verdict.json())?,
        Format::Human | Format::Short => print(&verdict.text())?,
    }
    if verdict.passed() { Ok(()) } else { Err(Failure::shown()) }
}

// ---------------------------------------------------------------------- inputs

/// A checked spec.
struct Loaded {
    file: String,
    source: String,
    diagnostics: Vec<Diagnostic>,
    model: Arc<Model>,
    bound: BTreeMap<String, usize>,
}

impl Loaded {
    fn subject<'a>(&'a self, usage: &'a Use) -> stages::Subject<'a> {
        stages::Subject {
            file: &self.file,
            source: &self.source,
            model: &self.model,
            bound: &self.bound,
            usage,
        }
    }
}

/// Reads and checks a file, shows what is wrong, and picks a spec.
fn load(subject: &cli::Subject, voice: Voice) -> Result<Loaded, Failure> {
    let path = &subject.file;
    let source = read(path)?;
    let checked = check(&source);
    let failed = checked.diagnostics.iter().any(Diagnostic::is_error);
    voice.diagnostics(&shown_name(path), &source, &checked.diagnostics, false);
    if failed {
        return Err(Failure::shown());
    }
    let diagnostics = checked.diagnostics.clone();
    let model = Arc::new(pick(checked, subject.spec.as_deref(), path)?);
    let bound = subject.axes.iter().cloned().collect();
    Ok(Loaded { file: shown_name(path), source, diagnostics, model, bound })
}

/// The spec with a name, or the only one that is no layer of another.
fn pick(mut checked: Checked, name: Option<&str>, path: &Path) -> Result<Model, Failure> {
    let file = shown_name(path);
    let Some(name) = name else {
        let names: Vec<String> = checked.outermost().iter().map(|m| m.name.clone()).collect();
        return match names.as_slice() {
            [] => Err(Failure::usage(format!("{file} has no spec, only rules"))),
            [name] => pick(checked, Some(name), path),
            [first, ..] => Err(Failure::usage(format!("{file} has several specs: {}", names.join(", ")))
                .help(format!("choose one: --spec {first}"))),
        };
    };
    let names: Vec<String> = checked.models.iter().map(|m| m.name.clone()).collect();
    let at = names.iter().position(|n| n == name);
    let near = did_you_mean(name, names.iter().map(String::as_str));
    let advice = near.map_or(format!("it has {}", names.join(", ")), |n| format!("did you mean {n}?"));
    let missing = || Failure::usage(format!("{file} has no spec `{name}`")).help(advice);
    at.map(|k| checked.models.swap_remove(k)).ok_or_else(missing)
}

fn prefer(load: &Load, usual: Prefer) -> Prefer {
    match load.prefer {
        None => usual,
        Some(cli::Prefer::Auto) => Prefer::Auto,
        Some(cli::Prefer::Dense) => Prefer::Dense,
        Some(cli::Prefer::Events) => Prefer::Events,
    }
}

fn usage(load: &Load, memory: Option<u64>) -> Use {
    Use {
        batch: load.batch,
        steps: load.steps,
        threads: load.threads,
        tapes: Tapes::PerThread,
        checkpoint_every: load.checkpoint_every,
        memory,
    }
}

fn is_stdin(path: &Path) -> bool {
    path.as_os_str() == "-"
}

fn shown_name(path: &Path) -> String {
    if is_stdin(path) { "<stdin>".to_owned() } else { path.display().to_string() }
}

/// The text of a file, or of standard input.
fn read(path: &Path) -> Result<String, Failure> {
    let fail = |e: &std::io::Error| Failure::file("read", path, e);
    let mut bytes = vec![];
    if is_stdin(path) {
        std::io::stdin().take(MAX_BYTES + 1).read_to_end(&mut bytes).map_err(|e| fail(&e))?;
    } else {
        let file = std::fs::File::open(path).map_err(|e| fail(&e))?;
        if file.metadata().is_ok_and(|m| m.is_dir()) {
            return Err(Failure::usage(format!("cannot read `{}`: it is a folder", path.display())));
        }
        file.take(MAX_BYTES + 1).read_to_end(&mut bytes).map_err(|e| fail(&e))?;
    }
    if bytes.len() as u64 > MAX_BYTES {
        return Err(Failure::usage(format!("cannot read `{}`: it is larger than 16 MiB", shown_name(path))));
    }
    let name = shown_name(path);
    String::from_utf8(bytes).map_err(|e| {
        let at = e.utf8_error().valid_up_to();
        Failure::usage(format!("cannot read `{name}`: it is no text (not UTF-8 from byte {at} on)"))
    })
}

// --------------------------------------------------------------------- outputs

/// Writes a file beside its place and renames it into place; permissions stay as they were.
fn write(path: &Path, text: &str) -> Done {
    let fail = |e: std::io::Error| Failure::file("write", path, &e);
    let target = std::fs::canonicalize(path).unwrap_or_else(|_| path.to_path_buf());
    if std::fs::metadata(&target).is_ok_and(|m| m.permissions().readonly()) {
        return Err(Failure::usage(format!("cannot write `{}`: it is read-only", path.display())));
    }
    let name = target.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let beside: PathBuf = target.with_file_name(format!(".{name}.{}.part", std::process::id()));
    let replaced = std::fs::write(&beside, text)
        .and_then(|()| match std::fs::metadata(&target) {
            Ok(old) => std::fs::set_permissions(&beside, old.permissions()),
            Err(_) => Ok(()),
        })
        .and_then(|()| std::fs::rename(&beside, &target));
    if replaced.is_err() {
        let _ = std::fs::remove_file(&beside);
    }
    replaced.map_err(fail)
}

/// Writes the product to standard output; a reader that has gone away is no mistake.
fn print(text: &str) -> Done {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(e) if e.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(Failure::usage(format!("cannot write to standard output: {e}")))
        }
        _ => Ok(()),
    }
}

/// Writes a line to standard error.
fn say(text: &str) {
    let _ = writeln!(std::io::stderr().lock(), "{text}");
}

fn has_color(color: Color) -> bool {
    let set = |name: &str| std::env::var_os(name).is_some_and(|v| !v.is_empty());
    let dumb = std::env::var_os("TERM").is_some_and(|t| t == "dumb");
    match color {
        Color::Always => true,
        Color::Never => false,
        Color::Auto if set("NO_COLOR") || dumb => false,
        Color::Auto => set("CLICOLOR_FORCE") || std::io::stderr().is_terminal(),
    }
}

impl Voice {
    /// Shows what is wrong with a file; remarks only on request.
    fn diagnostics(self, path: &str, source: &str, all: &[Diagnostic], remarks: bool) {
        let wanted = |d: &&Diagnostic| remarks || d.severity != Severity::Info;
        let shown: Vec<Diagnostic> = all.iter().filter(wanted).cloned().collect();
        if shown.is_empty() {
            return;
        }
        let text = match self.format {
            Format::Human => {
                let text = grammar::render::human(path, source, &shown, self.color);
                format!("{text}\n{}", grammar::render::summary(path, &shown))
            }
            Format::Short => grammar::render::short(path, source, &shown),
            Format::Json => grammar::render::json(path, source, &shown),
        };
        say(text.trim_end());
    }

    fn failure(self, failure: &Failure) {
        let Failure { code, message, help } = failure;
        if message.is_empty() {
            return;
        }
        let painted = |word: &str, number: &str| match self.color {
            true => format!("\u{1b}[1;{number}m{word}\u{1b}[0m"),
            false => word.to_owned(),
        };
        match self.format {
            Format::Human => {
                say(&format!("{}: {message}", painted("error", "31")));
                help.iter().for_each(|h| say(&format!("  {}: {h}", painted("help", "36"))));
            }
            Format::Short => say(&format!("error: {message}")),
            Format::Json => {
                let help: Vec<&String> = help.iter().collect();
                let line = serde_json::json!({
                    "schema": 1, "reason": "error", "message": message, "help": help, "exit_code": code,
                });
                say(&line.to_string());
            }
        }
    }
}
