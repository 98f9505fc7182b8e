//! The commands of `bpm`: from arguments to work.

use crate::cli::{
    BackendName, Bench, Compare, Device, Episodes, Eval, Export, Gradcheck, Plot, Run as RunArgs, Sample,
    Train,
};
use crate::engine::device::{self, DeviceId, Mapped, Tier, Work};
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
use crate::{
    Error, against, bench, compare, eval, exchange, files, gradcheck, plot, report, setup, task, tensors,
};
use ::torch::Place;
use compiler::back::x64;
use compiler::form::Prefer;
use compiler::ir::Sizes;
use compiler::verdict;
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
        BackendName::Torch => Backend::Torch(Place::Processor),
    }
}

/// Where a command runs that takes the processor unless it is told otherwise.
fn here(device: Device, name: BackendName, voice: Voice) -> Result<Backend, Error> {
    let Device::Cuda(number) = device else { return Ok(backend(name, voice)) };
    if name == BackendName::Torch {
        return Ok(Backend::Torch(Place::Cuda(number)));
    }
    if name != BackendName::Auto {
        let error =
            Error::usage("--backend says what runs a model on the processor, and --device cuda is none");
        return Err(error.help("leave --backend out, use --backend torch, or use --device cpu"));
    }
    Ok(Backend::Device(DeviceId::cuda(number)))
}

/// What a recipe is going to run, as a device is chosen for it.
fn weighed(spec: &Spec, recipe: &Recipe, threads: usize, tier: Tier) -> Result<(Work, Mapped), Error> {
    Ok((setup::work(spec, recipe, threads)?, setup::mapped(spec, recipe, tier)?))
}

/// Where a command runs: `auto` weighs the work.
fn place(
    device: Device,
    name: BackendName,
    voice: Voice,
    work: impl FnOnce() -> Result<(Work, Mapped), Error>,
) -> Result<Backend, Error> {
    if device != Device::Auto || name != BackendName::Auto {
        return here(device, name, voice);
    }
    let (work, mapped) = work()?;
    let choice = device::choose(&work, &mapped);
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
    let work = || weighed(&spec, &recipe, threads, args.tier);
    let backend = place(args.device, args.backend, voice, work)?;
    let machine = Machine { backend, threads, tier: args.tier };
    report::spec_warnings(&spec, voice.format, voice.quiet);
    let mut trainer = setup::trainer_on(spec, recipe, machine, Mode::Train)?;
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
    } else if let Some(path) = &args.params {
        let (start, left) = exchange::start(&mut trainer, path)?;
        if !left.is_empty() {
            voice.note(&format!("`{}` has no {}; drawn anew", path.display(), left.join(", ")));
        }
        Run::create_from(&folder, trainer, machine, start)?
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
    let place = match (t.engine.device(), machine.backend) {
        (Some(device), _) => {
            let route = t.engine.route().map_or(String::new(), |route| format!(" ({route})"));
            let states = t.engine.states(t.recipe.schedule.batch, crate::setup::longest(&t.recipe));
            let states = states.map_or(String::new(), |words| format!(", {words}"));
            format!("on {}{route}{states}", device.about().name)
        }
        (None, Backend::Torch(Place::Processor)) => "on the processor".to_owned(),
        (None, Backend::Torch(Place::Cuda(number))) => format!("on cuda:{number}"),
        (None, _) => format!("on {threads} thread{}", if threads == 1 { "" } else { "s" }),
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
        weighed(&stored.spec, &stored.recipe, threads, args.tier)
    };
    let backend = place(args.device, args.backend, voice, work)?;
    let machine = Machine { backend, threads, tier: args.tier };
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
    let machine = Machine { backend: backend(args.backend, voice), threads: 1, tier: Tier::Auto };
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
    let backend = here(args.device, args.backend, voice)?;
    let results = exact::run_on(&spec, given, (backend, args.tier), args.dtype, prefer)?;
    tensors::write(&args.out, &results, None)
}

/// `bpm gradcheck`
///
/// # Errors
/// Whatever can go wrong; a tensor that differs.
pub fn gradcheck(args: &Gradcheck, voice: Voice) -> Result<(), Error> {
    let spec = spec::load(&args.spec)?;
    report::spec_warnings(&spec, voice.format, voice.quiet);
    let Backend::Torch(place) = here(args.device, args.backend, voice)? else {
        let error = Error::usage("`bpm gradcheck` compares libtorch with the interpreter");
        return Err(error
            .help("leave --backend out, or use --backend torch")
            .help("`bpmc gradcheck` compares the interpreter with finite differences"));
    };
    let given = axes(&args.axes)?;
    let sizes = Sizes::bind(&spec.model.axes, &verdict::small_sizes(&spec.model, &given))?;
    compiler::ir::check_bounds(&spec.model.step, &sizes).map_err(|e| Error::input(e.to_string()))?;
    let check = gradcheck::Check {
        seed: args.seed,
        steps: args.steps as usize,
        rows: args.batch as usize,
        dtype: args.dtype,
        place,
        state_scale: 0.5,
    };
    let mut found = gradcheck::check(&spec.model, &sizes, &check)?;
    if let Some(tolerance) = args.tolerance {
        found = found.within(tolerance);
    }
    print(&if args.json { found.json() } else { found.text() })?;
    match found.worst().filter(|_| !found.passed()) {
        Some(line) => Err(Error::input(format!("{} is off by {:.1e} on libtorch", line.name, line.error))),
        None => Ok(()),
    }
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
        tier: args.tier,
    };
    if args.against.is_some() {
        return bench_against(args, &spec, &job, voice);
    }
    let report = bench::bench(&spec, &job)?;
    if args.json {
        let json = serde_json::to_string(&report).map_err(|e| Error::input(e.to_string()))?;
        print(&format!("{json}\n"))
    } else {
        print(&report.text())
    }
}

/// `bpm bench --against torch`
fn bench_against(args: &Bench, spec: &Spec, job: &bench::Job, voice: Voice) -> Result<(), Error> {
    if let Backend::Device(_) = job.backend {
        let error = Error::usage("--against compares on the processor, and --device cuda is none");
        return Err(error.help("leave --device out"));
    }
    let named = args.python.clone().or_else(|| std::env::var("BPM_PYTHON").ok().filter(|p| !p.is_empty()));
    let python = named.unwrap_or_else(|| "python3".to_owned());
    let report = against::against(spec, job, &python, &mut |text| voice.remark(text))?;
    match args.json {
        true => {
            let json = serde_json::to_string(&report).map_err(|e| Error::input(e.to_string()))?;
            print(&format!("{json}\n"))
        }
        false => print(&report.text()),
    }
}

/// `bpm export`
///
/// # Errors
/// Whatever can go wrong.
pub fn export(args: &Export, voice: Voice) -> Result<(), Error> {
    let wanted = exchange::Wanted { last: args.last, others: args.all };
    let found = exchange::export(&args.run, wanted, data(args.data.as_deref()).as_slice())?;
    tensors::write(&args.out, &found.tensors, None)?;
    if let Some(path) = &args.module {
        files::write(path, found.module.as_bytes())?;
    }
    if !found.left_out.is_empty() {
        voice.note(&format!("left out, as no part of the spec: {} (--all)", found.left_out.join(", ")));
    }
    voice.remark(&format!("{} tensors of {}", found.tensors.len(), found.source.display()));
    print(&format!("{}\n", args.out.display()))
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
