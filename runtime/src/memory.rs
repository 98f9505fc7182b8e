//! Whether a run fits into memory. What does not is refused before anything of its size is
//! allocated, with what would help.

use crate::Error;
use crate::engine::device::Memory;
use crate::engine::{Backend, Engine, EngineError, Mode};
use ::torch::Place;
use compiler::ir::Shape;
use compiler::loops::plan::{TapeSizes, Use};
use std::path::{Path, PathBuf};

/// What is going to be run.
pub struct Need<'a> {
    /// The model, bound to sizes.
    pub engine: &'a Engine,
    /// Rows, steps and tapes.
    pub usage: Use,
    /// Whether rows run backward, too.
    pub mode: Mode,
    /// Bytes that the command itself holds: its data and results.
    pub data: u64,
    /// Bytes on a device beside those of the engine, if there are any.
    pub beside: Option<&'a dyn Fn(&Use) -> u64>,
    /// How a user makes it smaller.
    pub flags: Flags,
}

/// The words that set sizes on the command line; empty where there are none.
#[derive(Clone, Copy, Debug, Default)]
pub struct Flags {
    /// Rows.
    pub batch: &'static str,
    /// Steps.
    pub steps: &'static str,
    /// Threads.
    pub threads: &'static str,
}

impl Need<'_> {
    /// Bytes at the fullest moment, with other numbers of rows, steps or threads.
    fn bytes(&self, usage: &Use) -> u64 {
        let own = match (self.engine.backend(), self.mode) {
            (Backend::Interp, _) => interpreted(self.engine, usage),
            (Backend::Compiled(_), Mode::Train) => self.engine.plan(usage).total_bytes,
            (Backend::Compiled(_), Mode::Infer) => inference(self.engine, usage, 4),
            (Backend::Compiled(_), Mode::Forward) => inference(self.engine, usage, usage.steps + 2),
            (Backend::Torch(_), mode) => on_libtorch(self.engine, usage, mode),
            // What the command holds lies elsewhere.
            (Backend::Device(_), mode) => {
                let own = self.engine.device_bytes(usage.batch, usage.steps, mode);
                return own.saturating_add(self.beside.map_or(0, |bytes| bytes(usage)));
            }
        };
        own.saturating_add(self.data)
    }

    /// Bytes without the command's data.
    pub fn planned(&self) -> u64 {
        self.bytes(&self.usage).saturating_sub(self.data)
    }

    /// Refuses what needs more than there is, on a device what needs more than the device has. Where the system
    /// does not tell, everything passes.
    ///
    /// # Errors
    /// If the memory does not suffice.
    pub fn check(&self, available: Option<u64>) -> Result<(), Error> {
        if let Some(device) = self.engine.device() {
            let memory = device.memory().map_err(EngineError::from)?;
            return self.check_device(&device.about().name, memory);
        }
        // libtorch alone knows what there is; it refuses when it comes to it.
        if let Backend::Torch(Place::Cuda(_)) = self.engine.backend() {
            return Ok(());
        }
        let (needed, Some(available)) = (self.bytes(&self.usage), available) else { return Ok(()) };
        if needed <= available {
            return Ok(());
        }
        let message = format!("this needs {} of memory, and {} are available", size(needed), size(available));
        let mut error = Error::usage(message).help(self.parts());
        for help in self.advice(available) {
            error = error.help(help);
        }
        Err(error)
    }

    /// Refuses what a device cannot hold: before anything is allocated, with what would fit.
    fn check_device(&self, name: &str, memory: Memory) -> Result<(), Error> {
        let needed = self.bytes(&self.usage);
        // A part is left for code, recordings and what the driver keeps.
        let usable = memory.free - memory.free / 32;
        if needed <= usable {
            return Ok(());
        }
        let message = format!(
            "this needs {} of memory on {name}, where {} of {} are free",
            size(needed),
            size(memory.free),
            size(memory.total)
        );
        let mut error = Error::device(message).help(self.parts());
        for help in self.advice(usable) {
            error = error.help(help);
        }
        Err(error.help("or use --device cpu"))
    }

    /// Where it goes.
    fn parts(&self) -> String {
        let steps = self.usage.steps;
        let mut text = match (self.engine.backend(), self.mode) {
            (Backend::Compiled(_), Mode::Train) => {
                let plan = self.engine.plan(&self.usage);
                let tapes = plan.tapes;
                let shared = plan.total_bytes.saturating_sub(plan.tape_bytes.saturating_mul(tapes as u64));
                let plural = if tapes == 1 { "tape" } else { "tapes" };
                let (shared, tape) = (size(shared), size(plan.tape_bytes));
                format!(
                    "parameters and gradients take {shared}, {tapes} {plural} of {steps} steps {tape} each"
                )
            }
            (Backend::Interp, _) => format!("the interpreter keeps every value of {steps} steps"),
            (Backend::Torch(_), _) => {
                format!("libtorch keeps every value of {steps} steps of {} rows", self.usage.batch)
            }
            (Backend::Compiled(_), Mode::Infer | Mode::Forward) => {
                "parameters and states take nearly all of it".to_owned()
            }
            (Backend::Device(_), _) => {
                let bytes = |rows: usize| self.bytes(&Use { batch: rows, ..self.usage });
                let (rows, one) = (self.usage.batch, size(bytes(2).saturating_sub(bytes(1))));
                return format!("{rows} rows of {steps} steps are on the device at once, {one} each");
            }
        };
        if self.data > 0 {
            text += &format!("; inputs and results take {}", size(self.data));
        }
        text
    }

    /// What would make it fit: each change alone, else smaller axes.
    fn advice(&self, available: u64) -> Vec<String> {
        let usage = self.usage;
        let ways = [
            (self.flags.threads, usage.threads, (|u, n| Use { threads: n, ..u }) as fn(Use, usize) -> Use),
            (self.flags.batch, usage.batch, |u, n| Use { batch: n, threads: u.threads.min(n), ..u }),
            (self.flags.steps, usage.steps, |u, n| Use { steps: n, ..u }),
        ];
        let mut found = vec![];
        let has_threads = !self.engine.is_side_by_side();
        let ways = ways.into_iter().skip(if has_threads { 0 } else { 1 });
        for (flag, now, with) in ways.filter(|(flag, ..)| !flag.is_empty()) {
            let smaller = std::iter::successors(Some(now / 2), |n| Some(n / 2)).take_while(|n| *n > 0);
            let fits = smaller.map(|n| (n, self.bytes(&with(usage, n)))).find(|(_, b)| *b <= available);
            if let Some((n, bytes)) = fits {
                found.push(format!("with {flag}{n} it needs {}", size(bytes)));
            }
        }
        if found.is_empty() {
            found.push(format!("make an axis smaller, --axis NAME=SIZE: {}", self.axes()));
        }
        found
    }

    fn axes(&self) -> String {
        let (model, sizes) = (self.engine.model(), self.engine.sizes());
        let mut axes = model.axes.clone();
        let known = axes.len() as u32;
        let named = model.axes.named.iter().enumerate().map(|(k, a)| (&a.name, axes.intern_named(k)));
        let used = named.filter(|(_, a)| a.0 < known);
        used.map(|(name, a)| format!("{name} = {}", sizes.of(a))).collect::<Vec<_>>().join(", ")
    }
}

/// A tape of so many frames and nothing for a backward pass, and parameters.
fn inference(engine: &Engine, usage: &Use, frames: usize) -> u64 {
    let program = engine.program();
    let tape = TapeSizes::new(program, 2, Some(1));
    let elements = tape.carry + tape.scratch + tape.logs + frames * program.frame_len + count_states(engine);
    let tapes = usage.threads as u64;
    let params: usize = engine.model().params.iter().map(|p| engine.sizes().count(p.shape)).sum();
    (4 * elements as u64)
        .saturating_mul(tapes)
        .saturating_add(24 * params as u64 + 4 * program.params_len as u64)
}

/// The interpreter keeps all values of all steps of a row, in double precision, and every tape
/// holds a row.
fn interpreted(engine: &Engine, usage: &Use) -> u64 {
    let (model, sizes) = (engine.model(), engine.sizes());
    let total = |shapes: &mut dyn Iterator<Item = Shape>| -> u64 {
        shapes.fold(0, |sum, s| sum.saturating_add(sizes.count(s) as u64))
    };
    let batched = model.step.body.iter().filter(|i| i.ty.batched);
    let step = total(&mut batched.map(|i| i.ty.shape));
    let states = total(&mut model.states.iter().map(|s| s.shape));
    let params = total(&mut model.params.iter().map(|p| p.shape));
    let row = states.saturating_mul(2).saturating_add(step).saturating_mul(8 * usage.steps as u64);
    row.saturating_mul(usage.tape_count() as u64).saturating_add(params.saturating_mul(32))
}

/// libtorch holds a batch: its graph keeps nearly every value of every step in single precision and, beside kinks, what
/// was chosen; going backward takes as much again for a while. Without a graph a step is forgotten.
fn on_libtorch(engine: &Engine, usage: &Use, mode: Mode) -> u64 {
    let (model, sizes) = (engine.model(), engine.sizes());
    let count = |shape: Shape| sizes.count(shape) as u64;
    let values: u64 = model.step.body.iter().filter(|i| i.ty.batched).map(|i| count(i.ty.shape)).sum();
    let outputs: u64 = model.outputs.iter().map(|o| count(o.shape)).sum();
    let params: u64 = model.params.iter().map(|p| count(p.shape)).sum();
    let steps = usage.steps as u64;
    let row = match mode {
        Mode::Train => values.saturating_mul(8 * steps),
        Mode::Infer | Mode::Forward => {
            values.saturating_mul(8).saturating_add(outputs.saturating_mul(8 * steps))
        }
    };
    row.saturating_mul(usage.batch as u64).saturating_add(params.saturating_mul(32))
}

fn count_states(engine: &Engine) -> usize {
    engine.model().states.iter().map(|s| engine.sizes().count(s.shape)).sum()
}

/// Bytes as a person reads them.
fn size(bytes: u64) -> String {
    const UNITS: [(u64, &str); 3] = [(1 << 40, "TiB"), (1 << 30, "GiB"), (1 << 20, "MiB")];
    let fitting = UNITS.iter().find(|(unit, _)| *unit <= bytes);
    let (unit, name) = fitting.unwrap_or(&(1 << 10, "KiB"));
    format!("{:.1} {name}", bytes as f64 / *unit as f64)
}

/// Bytes that can be had without paging, as the system and the limits of this process say.
pub fn available() -> Option<u64> {
    available_under(Path::new("/"))
}

/// The same, on Linux, with another root of the file system.
fn available_under(root: &Path) -> Option<u64> {
    let read = |path: &str| std::fs::read_to_string(root.join(path)).unwrap_or_default();
    let machine = field(&read("proc/meminfo"), "MemAvailable:").map(|kib| kib.saturating_mul(1024));
    let groups = read("proc/self/cgroup");
    groups.lines().filter_map(|line| group_headroom(root, line)).chain(machine).min()
}

/// The number behind a word at the beginning of a line.
fn field(text: &str, name: &str) -> Option<u64> {
    let mut words =
        text.lines().map(str::split_whitespace).find_map(|mut w| (w.next()? == name).then_some(w))?;
    words.next()?.parse().ok()
}

/// The names of a control group's files: limit, use, and the part of the use that can be taken
/// back at once.
type GroupFiles = [&'static str; 3];

/// What a control group and those above it leave; a line of `/proc/self/cgroup` names it.
fn group_headroom(root: &Path, line: &str) -> Option<u64> {
    let mut parts = line.splitn(3, ':').skip(1);
    let (controllers, path) = (parts.next()?, parts.next()?);
    let (base, files): (_, GroupFiles) = match controllers {
        "" => ("sys/fs/cgroup", ["memory.max", "memory.current", "inactive_file"]),
        c if c.split(',').any(|c| c == "memory") => (
            "sys/fs/cgroup/memory",
            ["memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"],
        ),
        _ => return None,
    };
    let base = root.join(base);
    let own: PathBuf = base.join(path.trim_start_matches('/'));
    // In a container the path may be that of the host; its own group is then the base.
    own.ancestors().take_while(|p| p.starts_with(&base)).filter_map(|p| headroom(p, files)).min()
}

fn headroom(group: &Path, [limit, used, reclaimable]: GroupFiles) -> Option<u64> {
    let text = |name: &str| std::fs::read_to_string(group.join(name)).ok();
    let number = |name: &str| text(name)?.trim().parse::<u64>().ok();
    let cached = text("memory.stat").and_then(|t| field(&t, reclaimable)).unwrap_or(0);
    Some(number(limit)?.saturating_sub(number(used)?.saturating_sub(cached)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::EngineOptions;
    use compiler::ir::Sizes;
    use compiler::loops::plan::Tapes;
    use std::sync::Arc;

    fn engine(n: usize, backend: Backend) -> Engine {
        let text = include_str!("../../specs/backpropamine/simple.bpm");
        let model = compiler::check::check(text).models.into_iter().next().expect("a model");
        let axes = [("I", 3), ("N", n), ("A", 2)].map(|(name, size)| (name.to_owned(), size));
        let sizes = Sizes::bind(&model.axes, &axes.into()).expect("sizes");
        Engine::new(Arc::new(model), sizes, backend, &EngineOptions::default()).expect("an engine")
    }

    fn need(engine: &Engine) -> Need<'_> {
        let usage = Use {
            batch: 30,
            steps: 1000,
            threads: 8,
            tapes: Tapes::PerThread,
            checkpoint_every: None,
            memory: None,
        };
        let flags = Flags { batch: "--batch ", steps: "--steps ", threads: "--threads " };
        Need { engine, usage, mode: Mode::Train, data: 0, beside: None, flags }
    }

    #[test]
    fn what_fits_passes_and_what_does_not_is_told_what_helps() {
        let engine = engine(200, Backend::CRANELIFT);
        let need = need(&engine);
        let needed = need.bytes(&need.usage);
        assert!(need.check(None).is_ok() && need.check(Some(needed)).is_ok());
        let error = need.check(Some(needed - 1)).expect_err("a byte is missing");
        assert_eq!(error.exit_code(), 2);
        assert!(error.help[0].contains("8 tapes of 1000 steps"), "{:?}", error.help);
        let help = error.help.join("\n");
        for flag in ["--threads 4", "--batch 7", "--steps 500"] {
            assert!(help.contains(&format!("with {flag} it needs")), "{flag}: {help}");
        }
        assert!(!help.contains("--axis"));
        let error = need.check(Some(1 << 10)).expect_err("nothing fits");
        assert!(error.help[1].ends_with("--axis NAME=SIZE: I = 3, N = 200, A = 2"), "{:?}", error.help);
    }

    #[test]
    fn every_change_that_is_advised_fits() {
        let engine = engine(100, Backend::CRANELIFT);
        let need = need(&engine);
        let half = need.bytes(&need.usage) / 2;
        let threads = Use { threads: 2, ..need.usage };
        assert!(need.bytes(&threads) <= half, "fewer tapes, fewer bytes");
        assert!(need.check(Some(half)).is_err());
        assert!(Need { usage: threads, ..need }.check(Some(half)).is_ok());
    }

    #[test]
    fn evaluation_takes_less_than_training_and_the_interpreter_more() {
        let compiled = engine(100, Backend::CRANELIFT);
        let bytes = |engine: &Engine, mode| {
            let need = Need { mode, ..need(engine) };
            need.bytes(&need.usage)
        };
        let (infer, train) = (bytes(&compiled, Mode::Infer), bytes(&compiled, Mode::Train));
        assert!(4 * infer < train);
        assert!(4 * train < bytes(&engine(100, Backend::Interp), Mode::Train));
    }

    #[test]
    fn sizes_are_readable() {
        assert_eq!([1 << 10, 3 << 19, 5 << 30].map(size), ["1.0 KiB", "1.5 MiB", "5.0 GiB"]);
        assert!(size(u64::MAX).ends_with("TiB"));
    }

    /// Files below a made-up root.
    fn root(files: &[(&str, &str)]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().expect("a folder");
        for (path, text) in files {
            let path = folder.path().join(path);
            std::fs::create_dir_all(path.parent().expect("a parent")).expect("folders");
            std::fs::write(path, text).expect("a file");
        }
        folder
    }

    const MEMINFO: (&str, &str) = ("proc/meminfo", "MemTotal: 9000 kB\nMemAvailable:    4000 kB\n");

    #[test]
    fn the_tightest_limit_counts() {
        let check = |files: &[(&str, &str)], expected: Option<u64>| {
            assert_eq!(available_under(root(files).path()), expected, "{files:?}");
        };
        check(&[], None);
        check(&[("proc/meminfo", "MemAvailable: many kB\n")], None);
        check(&[MEMINFO], Some(4_096_000));
        let second = |max| {
            vec![
                MEMINFO,
                ("proc/self/cgroup", "0::/a/b\n"),
                ("sys/fs/cgroup/a/memory.max", max),
                ("sys/fs/cgroup/a/memory.current", "600000\n"),
                ("sys/fs/cgroup/a/memory.stat", "anon 5\ninactive_file 100000\n"),
                ("sys/fs/cgroup/a/b/memory.max", "max\n"),
                ("sys/fs/cgroup/a/b/memory.current", "600000\n"),
            ]
        };
        check(&second("1000000\n"), Some(500_000));
        check(&second("1000\n"), Some(0));
        check(&second("max\n"), Some(4_096_000));
        let first = [
            MEMINFO,
            ("proc/self/cgroup", "5:cpu,memory:/host/path\n4:pids:/\n0::/\nrubbish\n"),
            ("sys/fs/cgroup/memory/memory.limit_in_bytes", "2000000\n"),
            ("sys/fs/cgroup/memory/memory.usage_in_bytes", "500000\n"),
        ];
        check(&first, Some(1_500_000));
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn this_machine_has_memory() {
        assert!(available().is_some_and(|bytes| 1 << 20 < bytes));
    }
}
