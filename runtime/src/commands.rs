//! The commands of `bpm`: from arguments to work.

use crate::cli::Episodes;
use crate::cli::{BackendName, Bench, Compare, Device, Eval, Plot, Run as RunArgs, Sample, Train};
use crate::engine::device::{self, DeviceId, Work};
use crate::engine::{Backend, Mode};
use crate::exact::{self, Given};
use crate::language::{self, Split, Text};
use crate::options::Options;
use crate::progress::{Format, Progress, say};
use crate::recipe::{self, Override, Recipe};
use crate::rollout::Choice;
use crate::run::{self, Machine, Run};
use crate::spec::{self, Spec};
use crate::timings::Timings;
use crate::train::Trainer;
use crate::{Error, bench, compare, eval, files, plot, report, setup, task, tensors};
use compiler::back::x64;
use compiler::form::Prefer;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

/// How to talk to the user.
#[derive(Clone, Copy, Debug)]
pub struct Voice {
    /// How messages look.
    pub format: Format,
    /// Only errors.
    pub quiet: bool,
}

impl Voice {
    /// A remark for people.
    fn remark(self, text: &str) {
        if !self.quiet && self.format != Format::Json {
            say(text);
        }
    }

    /// Something that programs want to know, too.
    fn note(self, text: &str) {
        if !self.quiet {
            report::note(text, self.format);
        }
    }

    /// Something that may be wrong.
    fn warn(self, text: &str) {
        report::warning(text, self.format);
    }
}

fn threads(asked: Option<u16>) -> usize {
    let cores = || std::thread::available_parallelism().map_or(1, usize::from).min(16);
    asked.map_or_else(cores, usize::from)
}

/// The back end of that name. What `auto` could not take is said.
fn backend(name: BackendName, voice: Voice) -> Backend {
    match name {
        BackendName::Auto => {
            // Elsewhere there is nothing to miss.
            if cfg!(target_arch = "x86_64")
                && let Some(what) = x64::lacking()
            {
                voice.note(&format!(
                    "models run on the back end cranelift; x64, which is faster, cannot run here: {what}"
                ));
            }
            Backend::fastest()
        }
        BackendName::X64 => Backend::X64,
        BackendName::Cranelift => Backend::CRANELIFT,
        BackendName::Interp => Backend::Interp,
    }
}

/// Where a command runs that takes the processor unless it is told otherwise.
fn here(device: Device, name: BackendName, voice: Voice) -> Result<Backend, Error> {
    let Device::Cuda(number) = device else { return Ok(backend(name, voice)) };
    if name != BackendName::Auto {
        let error =
            Error::usage("--backend says what runs a model on the processor, and --device cuda is none");
        return Err(error.help("leave --backend out, or use --device cpu"));
    }
    Ok(Backend::Device(DeviceId::cuda(number)))
}

/// Where a command runs: `auto` weighs the work.
fn place(
    device: Device,
    name: BackendName,
    voice: Voice,
    work: impl FnOnce() -> Result<Work, Error>,
) -> Result<Backend, Error> {
    if device != Device::Auto || name != BackendName::Auto {
        return here(device, name, voice);
    }
    let choice = device::choose(&work()?);
    choice.reason.iter().for_each(|r| voice.note(r));
    Ok(choice.backend.unwrap_or_else(|| backend(name, voice)))
}

fn axes(texts: &[String]) -> Result<BTreeMap<String, usize>, Error> {
    let parse = |text: &String| {
        let (name, size) = text.split_once('=')?;
        Some((name.trim().to_string(), size.trim().parse().ok().filter(|n| *n > 0)?))
    };
    let one = |text: &String| {
        parse(text).ok_or_else(|| Error::usage(format!("`--axis {text}` is not of the form `NAME=SIZE`")))
    };
    texts.iter().map(one).collect()
}

/// `bpm train`
///
/// # Errors
/// Whatever can go wrong.
pub fn train(args: &Train, voice: Voice, stop: &AtomicBool) -> Result<(), Error> {
    let Some(input) = &args.input else {
        return Err(Error::usage("`bpm train` needs a recipe, a spec or the folder of a run")
            .help("bpm train examples/cue-reward/small.toml")
            .help("bpm train specs/backpropamine/simple.bpm --task maze")
            .help("bpm train runs/cue-reward-small-seed0 --resume"));
    };
    let threads = threads(args.threads);
    let (spec, recipe, name) = read_input(input, &overrides(args)?, args)?;
    let work = || setup::work(&spec, &recipe, threads);
    let machine = Machine { backend: place(args.device, args.backend, voice, work)?, threads };
    report::spec_warnings(&spec, voice.format, voice.quiet);
    let mut trainer = setup::trainer(spec, recipe, machine.backend, machine.threads, Mode::Train)?;
    let place = match args.episodes {
        Episodes::Auto => trainer.reside()?,
        Episodes::Host => None,
    };
    let seed = trainer.recipe.schedule.seed;
    let folder = match &args.out {
        Some(folder) => folder.clone(),
        None if run::is_run(input) => input.clone(),
        None => PathBuf::from("runs").join(format!("{name}-seed{seed}")),
    };
    let mut run = if args.resume {
        let (run, warnings) = Run::resume(&folder, trainer, machine)?;
        warnings.iter().for_each(|w| voice.warn(w));
        run
    } else {
        Run::create(&folder, trainer, machine)?
    };
    if let Some(path) = &args.timings {
        let timings = Timings::new();
        // A place that cannot be written to is refused now, not after hours.
        files::write(path, timings.trace().as_bytes())?;
        run.trainer.timings = Some(timings);
    }
    voice.remark(&headline(&run, machine));
    place.iter().for_each(|words| voice.remark(words));
    if !run.trainer.form.legal.is_empty() {
        run.trainer.form.reasons().iter().for_each(|r| voice.remark(r));
    }
    let mut progress = Progress::new(&run.trainer, voice.format, voice.quiet);
    let result = run.go(&mut progress, stop);
    progress.finish();
    let traced = write_timings(args, &run, voice);
    result?;
    traced?;
    voice.remark(&format!("done: {} updates", run.trainer.update));
    print(&format!("{}\n", folder.display()))
}

fn write_timings(args: &Train, run: &Run, voice: Voice) -> Result<(), Error> {
    let (Some(path), Some(timings)) = (&args.timings, &run.trainer.timings) else { return Ok(()) };
    voice.remark(&timings.table());
    files::write(path, timings.trace().as_bytes())
}

fn headline(run: &Run, machine: Machine) -> String {
    let t = &run.trainer;
    let threads = machine.threads.min(t.recipe.schedule.batch);
    let place = match t.engine.device() {
        Some(device) => format!("on {}", device.about().name),
        None => format!("on {threads} thread{}", if threads == 1 { "" } else { "s" }),
    };
    format!(
        "{} on {}: {} parameters, batch {}, {} {place}, seed {}, from update {} to {}, in {}",
        t.spec.model.name,
        t.recipe.task_name,
        t.params.count(),
        t.recipe.schedule.batch,
        machine.backend.name(),
        t.recipe.schedule.seed,
        t.update,
        t.recipe.schedule.updates,
        run.folder.display()
    )
}

/// A folder of data, as a replacement of a recipe's key.
fn data(folder: Option<&Path>) -> Option<Override> {
    folder.map(|f| Override::new("task.data", f.display().to_string()))
}

fn overrides(args: &Train) -> Result<Vec<Override>, Error> {
    let mut all = vec![];
    if let Some(name) = &args.task {
        all.push(Override::new("task.name", name.as_str()));
    }
    all.extend(data(args.data.as_deref()));
    for (name, size) in axes(&args.axes)? {
        all.push(Override::new(&format!("sizes.{name}"), size as i64));
    }
    for text in &args.sets {
        all.push(Override::parse(text)?);
    }
    if let Some(prefer) = args.prefer {
        all.push(Override::new("run.prefer", prefer.word()));
    }
    for (key, value) in [("run.seed", args.seed), ("run.updates", args.updates)] {
        if let Some(n) = value {
            let n = i64::try_from(n).map_err(|_| Error::usage(format!("`{key}` is too large: {n}")))?;
            all.push(Override::new(key, n));
        }
    }
    Ok(all)
}

/// The spec, the recipe and a name for the run.
fn read_input(input: &Path, sets: &[Override], args: &Train) -> Result<(Spec, Recipe, String), Error> {
    let stem = |path: &Path| path.file_stem().map_or("run".into(), |s| s.to_string_lossy().into_owned());
    if run::is_run(input) {
        if !args.resume {
            let error = Error::usage(format!("`{}` is a run", input.display()));
            return Err(error.help("go on with it: --resume"));
        }
        let stored = run::load(input, sets)?;
        let recipe = Recipe::load(&input.join("recipe.toml"), sets)?;
        return Ok((stored.spec, recipe, stem(input)));
    }
    if input.is_dir() {
        let error =
            Error::usage(format!("`{}` is a folder, but no run: it has no run.json", input.display()));
        return Err(error.help("give a recipe (.toml), a spec (.bpm) or the folder of a run"));
    }
    let text = input.to_string_lossy();
    let (file, _) = text.split_once('#').unwrap_or((&text, ""));
    match Path::new(file).extension().and_then(|x| x.to_str()) {
        Some("bpm") => {
            let spec = spec::load(&text)?;
            let recipe = Recipe::parse("the command line", &recipe::bare(&text), sets)?;
            let name = format!("{}-{}", recipe.task_name, spec.model.name);
            Ok((spec, recipe, name))
        }
        Some("toml") => {
            let recipe = Recipe::load(input, sets)?;
            let folder = input.parent().unwrap_or(Path::new(""));
            let spec = spec::load(&folder.join(&recipe.spec).display().to_string())
                .map_err(|e| e.help(format!("`spec` in `{}` is relative to that file", input.display())))?;
            let name = format!("{}-{}", recipe.task_name, stem(input));
            Ok((spec, recipe, name))
        }
        _ => {
            Err(Error::usage(format!("`{}` is neither a recipe (.toml) nor a spec (.bpm)", input.display()))
                .help("bpm train examples/cue-reward/small.toml"))
        }
    }
}

/// `bpm eval`
///
/// # Errors
/// Whatever can go wrong; a score below the wanted one.
pub fn evaluate(args: &Eval, voice: Voice) -> Result<(), Error> {
    let threads = threads(args.threads);
    let moved = data(args.data.as_deref());
    let work = || {
        let stored = run::load(&args.run, moved.as_slice())?;
        setup::work(&stored.spec, &stored.recipe, threads)
    };
    let machine = Machine { backend: place(args.device, args.backend, voice, work)?, threads };
    let prefer = args.prefer.map(|p| p.form());
    let trainer = run::load_trained(&args.run, machine, prefer, moved.as_slice())?;
    if let Some(text) = trainer.recipe.task.text() {
        return evaluate_text(args, &trainer, text, machine.threads);
    }
    let choice = if args.greedy { Choice::Greedy } else { Choice::Sample };
    let report = eval::evaluate(&trainer, args.episodes as usize, args.seed, choice, machine.threads)?;
    match args.json {
        true => print(&format!("{}\n", report.json()))?,
        false => print(&report.text())?,
    }
    let first = &report.scores[0];
    match args.min_score {
        Some(wanted) if first.mean < wanted || first.mean.is_nan() => {
            Err(Error::input(format!("{} is {:.4}, below {wanted}", first.name, first.mean)))
        }
        _ => Ok(()),
    }
}

/// `bpm eval` of a language model.
fn evaluate_text(args: &Eval, trainer: &Trainer, text: &Text, threads: usize) -> Result<(), Error> {
    let splits = match args.split {
        Some(split) => vec![Split::ALL[split as usize]],
        None => vec![Split::Valid, Split::Test],
    };
    let report = language::report::Report::new(trainer, text, &splits, args.batch as usize, threads)?;
    files::write(&args.run.join("eval.json"), format!("{:#}\n", report.json()).as_bytes())?;
    match args.json {
        true => print(&format!("{}\n", report.json()))?,
        false => print(&report.text())?,
    }
    let (found, wanted) = (report.perplexity(), args.max_perplexity);
    match wanted {
        Some(wanted) if found > wanted || found.is_nan() => {
            Err(Error::input(format!("the perplexity is {found:.2}, above {wanted}")))
        }
        _ => Ok(()),
    }
}

/// `bpm sample`
///
/// # Errors
/// Whatever can go wrong.
pub fn sample(args: &Sample, voice: Voice) -> Result<(), Error> {
    let machine = Machine { backend: backend(args.backend, voice), threads: 1 };
    let moved = data(args.data.as_deref());
    let trainer = run::load_trained(&args.run, machine, None, moved.as_slice())?;
    let Some(text) = trainer.recipe.task.text() else {
        return Err(Error::usage(format!("`{}` is no run of a language model", args.run.display()))
            .help("evaluate it: bpm eval RUN"));
    };
    if !(args.temperature >= 0.0 && args.temperature.is_finite()) {
        return Err(Error::usage(format!(
            "--temperature must be a number from 0 on, but is {}",
            args.temperature
        )));
    }
    let how = language::report::Drawing {
        prompt: text.corpus.read(&args.prompt)?,
        tokens: args.tokens as usize,
        temperature: args.temperature,
        seed: args.seed,
    };
    let drawn = language::report::draw(&trainer, &trainer.params, &how)?;
    print(&format!("{}{}\n", args.prompt, text.corpus.write(&drawn, !args.prompt.is_empty())))
}

/// `bpm run`
///
/// # Errors
/// Whatever can go wrong.
pub fn run(args: &RunArgs, voice: Voice) -> Result<(), Error> {
    let spec = spec::load(&args.spec)?;
    report::spec_warnings(&spec, voice.format, voice.quiet);
    let read = |path: &PathBuf| tensors::read(path).map(|(t, _)| (path.display().to_string(), t));
    let given = Given {
        params: read(&args.params)?,
        inputs: read(&args.inputs)?,
        cotangents: args.cotangents.as_ref().map(read).transpose()?,
        axes: axes(&args.axes)?,
    };
    let prefer = args.prefer.map_or(Prefer::Dense, |p| p.form());
    let results = exact::run(&spec, given, here(args.device, args.backend, voice)?, args.dtype, prefer)?;
    tensors::write(&args.out, &results, None)
}

/// `bpm bench`
///
/// # Errors
/// Whatever can go wrong.
pub fn bench(args: &Bench, voice: Voice) -> Result<(), Error> {
    let spec = spec::load(&args.spec)?;
    report::spec_warnings(&spec, voice.format, voice.quiet);
    let job = bench::Job {
        axes: axes(&args.axes)?,
        batch: args.batch as usize,
        steps: args.steps as usize,
        repeat: args.repeat as usize,
        threads: usize::from(args.threads),
        backend: here(args.device, args.backend, voice)?,
        input_bars: args.input_gradients,
        prefer: args.prefer.form(),
    };
    let report = bench::bench(&spec, &job)?;
    if args.json {
        let json = serde_json::to_string(&report).map_err(|e| Error::input(e.to_string()))?;
        print(&format!("{json}\n"))
    } else {
        print(&report.text())
    }
}

/// `bpm plot`
///
/// # Errors
/// Whatever can go wrong.
pub fn plot(args: &Plot) -> Result<(), Error> {
    let options =
        plot::Options { metric: args.metric.clone(), smooth: args.smooth, title: args.title.clone() };
    let paths = plot::plot(&args.runs, &args.out, &options)?;
    print(&paths.map(|p| format!("{}\n", p.display())).concat())
}

/// `bpm compare`
///
/// # Errors
/// Whatever can go wrong.
pub fn compare(args: &Compare, voice: Voice) -> Result<(), Error> {
    let options = compare::Options { metric: args.metric.clone(), last: args.last as usize };
    let report = compare::compare(&args.runs, &options)?;
    match args.json {
        true => print(&format!("{}\n", report.json()))?,
        false => print(&report.text())?,
    }
    report.warnings.iter().for_each(|w| voice.warn(w));
    Ok(())
}

/// `bpm tasks`
///
/// # Errors
/// If stdout cannot be written to.
pub fn tasks() -> Result<(), Error> {
    let mut text = String::new();
    for (k, name) in task::NAMES.iter().enumerate() {
        let mut options = Options::new("task", toml::Table::new());
        task::build(k, &mut options);
        text += &format!("{name}: {}\n", task::SUMMARIES[k]);
        for e in options.entries() {
            text += &format!("  {:<22} {:>8}  {}\n", e.key, e.default, e.doc);
        }
        text += "\n";
    }
    print(text.trim_end_matches('\n'))?;
    print("\n")
}

/// Writes to stdout; a closed pipe is no error.
fn print(text: &str) -> Result<(), Error> {
    use std::io::Write;
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(e) if e.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(Error::file("write", Path::new("stdout"), &e))
        }
        _ => Ok(()),
    }
}
