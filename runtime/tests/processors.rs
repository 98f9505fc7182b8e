//! Other processors give the same bits, and `bpm` says which back end it took.
//!
//! `bpm` itself runs under an emulator (`qemu-user`): on processors of the x86-64 family without AVX2
//! and FMA, or without SSE4.1, on one with both, and on AArch64 where `BPM_AARCH64` names a `bpm` built for it
//! (`tests/foreign.sh` does that). What is not run for want of an emulator says so.

use compiler::ir::Sizes;
use compiler::model::Role;
use runtime::params::ParamStore;
use runtime::tensors::{Tensor, Tensors, read, write};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

type Outcome = Result<(), Box<dyn std::error::Error>>;

/// Every elementwise function, sums of every kind, numbers that are flushed to zero.
const EVERYTHING: &str = "spec everything {
  axis N = ?, M = ?
  in u[N], w[M]
  learn V[M,N], D[N,N] ~ uniform(-1, 1)
  learn s = 0.4, tiny = 1e-30, r[N] = 0.5
  state z[M] = 0, y[N] = 0, k[N] = learn
  plastic H[M,N] = 0, G[N,M] = 0.1
  trace E[N,N] = 0
  z' = tanh(w + (V + s * H) @ y)
  y' = sigmoid(u + G @ z') - softplus(r * y) + relu(u)
  k' = where(u > 0.2, exp(0.3 * k), log(abs(k) + 1.5)) * sqrt(abs(u) + 0.1) + tiny * tiny * (D @ u)
  H'[j,i] = clip(0.9 * H + s * V * z'[j] * y[i], -0.4, 0.4)
  G'[j,i] = softclip(G, 0.1 * tanh(y[j]) * z[i], -1, 1)
  E'[j,i] = 0.7 * E + 0.3 * k'[j] * y[i] * tiny
  out y'
  out o[N] = softmax(H'^T @ z') + min(u, max(k', y'))
  out p = maxabs(H') + frob(G') + mean(E' * D) + norm(k') + maximum(u)
}
";

/// Specs of the library that are run as well.
const LIBRARY: [&str; 4] = [
    "backpropamine/retroactive.bpm",
    "plastic_lstm/modulated.bpm",
    "differentiable_plasticity/oja.bpm",
    "zoo/deltanet.bpm",
];

const STEPS: usize = 9;
const ROWS: usize = 2;

/// Says something that the test harness does not swallow.
fn say(text: &str) {
    use std::io::Write;
    let _ = writeln!(std::io::stderr(), "{text}");
}

/// A way to run `bpm`.
struct Machine {
    name: String,
    emulator: Vec<String>,
    bpm: PathBuf,
}

impl Machine {
    fn here() -> Machine {
        Machine { name: "this machine".into(), emulator: vec![], bpm: env!("CARGO_BIN_EXE_bpm").into() }
    }

    /// A processor of this machine's family, if there is an emulator.
    fn x86(model: &str) -> Option<Machine> {
        if !cfg!(all(target_arch = "x86_64", target_os = "linux")) {
            say(&format!("NOT RUN: {model}: this is not x86-64 with Linux"));
            return None;
        }
        let Some(emulator) = program("qemu-x86_64") else {
            say(&format!("NOT RUN: {model}: there is no qemu-x86_64 (qemu-user)"));
            return None;
        };
        let emulator = [emulator.as_str(), "-cpu", model].map(str::to_owned).into();
        Some(Machine { name: model.into(), emulator, ..Machine::here() })
    }

    /// AArch64, if there is a program for it and an emulator.
    fn aarch64() -> Option<Machine> {
        let Some(bpm) = std::env::var_os("BPM_AARCH64") else {
            say("NOT RUN: AArch64: BPM_AARCH64 names no bpm for it; tests/foreign.sh builds one");
            return None;
        };
        let emulator = program("qemu-aarch64").expect("BPM_AARCH64 is set, so qemu-aarch64 is needed");
        let root = std::env::var("BPM_AARCH64_ROOT").unwrap_or("/usr/aarch64-linux-gnu".into());
        Some(Machine { name: "AArch64".into(), emulator: vec![emulator, "-L".into(), root], bpm: bpm.into() })
    }

    fn bpm(&self, folder: &Path, arguments: &str) -> std::io::Result<Output> {
        let mut words = self.emulator.iter().map(PathBuf::from).collect::<Vec<_>>();
        words.push(self.bpm.clone());
        words.extend(arguments.split_whitespace().map(PathBuf::from));
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]).current_dir(folder).stdin(Stdio::null()).env("RUST_BACKTRACE", "0");
        command.output()
    }

    /// Runs a command that must succeed; gives what it prints and what it says.
    fn ok(&self, folder: &Path, arguments: &str) -> Result<(String, String), Box<dyn std::error::Error>> {
        let out = self.bpm(folder, arguments)?;
        let said = said(&out);
        assert_eq!(out.status.code(), Some(0), "{}: {arguments}: {said}", self.name);
        Ok((String::from_utf8(out.stdout)?, said))
    }
}

/// What `bpm` says; the emulator's own warnings are left out.
fn said(out: &Output) -> String {
    let text = String::from_utf8_lossy(&out.stderr);
    text.lines().filter(|l| !l.starts_with("qemu-")).map(|l| format!("{l}\n")).collect()
}

fn program(name: &str) -> Option<String> {
    let path = std::env::var_os("PATH")?;
    let found = std::env::split_paths(&path).map(|folder| folder.join(name)).find(|p| p.is_file())?;
    Some(found.to_string_lossy().into_owned())
}

/// Files for `bpm run`, and the arguments that name them.
struct Case {
    name: String,
    arguments: String,
}

/// Numbers in ±2; some are 0, some denormal.
fn numbers(count: usize, seed: &mut u64) -> Vec<f32> {
    let mut draw = || {
        *seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let bits = *seed >> 33;
        let x = bits as f64 / f64::from(1u32 << 29) - 2.0;
        match bits % 32 {
            0 => 0.0,
            1 => (x * 1e-39) as f32,
            _ => x as f32,
        }
    };
    (0..count).map(|_| draw()).collect()
}

fn case(folder: &Path, name: &str, spec: &Path, seed: &mut u64) -> Result<Case, Box<dyn std::error::Error>> {
    let model = runtime::spec::load(&spec.display().to_string())?.model;
    let axes = model.axes.named.iter().enumerate().filter(|(_, a)| a.size.is_none());
    let bound: BTreeMap<String, usize> = axes.map(|(k, a)| (a.name.clone(), 11 + k % 3)).collect();
    let sizes = Sizes::bind(&model.axes, &bound)?;
    let tensor = |seed: &mut u64, shape: Vec<usize>| {
        let count = shape.iter().product();
        Tensor::f32(shape, numbers(count, seed))
    };
    let mut inputs = Tensors::new();
    for i in model.inputs.iter().filter(|i| i.role != Role::Reset) {
        inputs.insert(i.name.clone(), tensor(seed, [&[STEPS, ROWS], &*sizes.dims(i.shape)].concat()));
    }
    let reset = (0..STEPS * ROWS).map(|k| f32::from(u8::from(k == 5))).collect();
    inputs.entry("reset".into()).or_insert(Tensor::f32(vec![STEPS, ROWS], reset));
    let mut cotangents = Tensors::new();
    for o in &model.outputs {
        cotangents.insert(o.name.clone(), tensor(seed, [&[STEPS, ROWS], &*sizes.dims(o.shape)].concat()));
    }
    let params = ParamStore::new(&model, &sizes, 1, &BTreeMap::new())?.export();
    let mut arguments = format!("run {}", spec.display());
    for (what, tensors) in [("params", params), ("inputs", inputs), ("cotangents", cotangents)] {
        let path = folder.join(format!("{name}.{what}"));
        write(&path, &tensors, None)?;
        arguments += &format!(" --{what} {}", path.display());
    }
    bound.iter().for_each(|(axis, n)| arguments += &format!(" --axis {axis}={n}"));
    Ok(Case { name: name.into(), arguments })
}

fn cases(folder: &Path) -> Result<Vec<Case>, Box<dyn std::error::Error>> {
    let everything = folder.join("everything.bpm");
    std::fs::write(&everything, EVERYTHING)?;
    let mut specs = vec![everything];
    let library = Path::new(env!("CARGO_MANIFEST_DIR")).join("../specs");
    specs.extend(LIBRARY.map(|name| library.join(name)));
    let mut seed = 1;
    let one = |(k, spec): (usize, &PathBuf)| case(folder, &format!("case{k}"), spec, &mut seed);
    specs.iter().enumerate().map(one).collect()
}

/// The same bits, or both no number.
fn same(a: f32, b: f32) -> bool {
    a.to_bits() == b.to_bits() || (a.is_nan() && b.is_nan())
}

/// Runs every case on a machine and on this one.
fn compare(machine: &Machine, options: &str) -> Outcome {
    let folder = tempfile::tempdir()?;
    let folder = folder.path();
    let (mut count, mut wrong) = (0, vec![]);
    for case in cases(folder)? {
        let mut results = vec![];
        for (machine, options) in [(&Machine::here(), ""), (machine, options)] {
            let out = folder.join("out");
            machine.ok(folder, &format!("{} {options} --out {}", case.arguments, out.display()))?;
            results.push(read(&out)?.0);
        }
        let (expected, found) = (&results[0], &results[1]);
        assert_eq!(expected.keys().collect::<Vec<_>>(), found.keys().collect::<Vec<_>>());
        for (name, tensor) in expected {
            let (e, f) = (tensor.to_f32(), found[name].to_f32());
            assert_eq!(e.len(), f.len(), "{name}");
            assert!(e.iter().all(|x| x.is_finite()), "{}: {name} is finite", case.name);
            let differ = e.iter().zip(&f).filter(|(e, f)| !same(**e, **f)).count();
            if differ > 0 {
                let first = e.iter().zip(&f).find(|(e, f)| !same(**e, **f));
                wrong.push(format!("{} {name}: {differ} of {}, {first:?}", case.arguments, e.len()));
            }
            count += e.iter().filter(|x| **x != 0.0).count();
        }
    }
    assert!(wrong.is_empty(), "{}:\n{}", machine.name, wrong.join("\n"));
    assert!(count > 10_000, "only {count} numbers other than 0 were compared");
    say(&format!("{} gives the bits of this machine: {count} numbers other than 0", machine.name));
    Ok(())
}

#[test]
fn processors_without_avx2_and_fma_give_the_same_bits() -> Outcome {
    // The first rounds to integers and multiplies and adds in two instructions, the second has neither.
    for model in ["Nehalem", "qemu64"] {
        if let Some(machine) = Machine::x86(model) {
            compare(&machine, "")?;
        }
    }
    Ok(())
}

#[test]
fn another_processor_with_avx2_and_fma_gives_the_same_bits() -> Outcome {
    match Machine::x86("Haswell") {
        Some(machine) => compare(&machine, "--backend x64"),
        None => Ok(()),
    }
}

#[test]
fn aarch64_gives_the_same_bits() -> Outcome {
    match Machine::aarch64() {
        Some(machine) => compare(&machine, ""),
        None => Ok(()),
    }
}

#[test]
fn what_auto_cannot_take_is_said_once() -> Outcome {
    let machines = [(Machine::x86("Nehalem"), "no AVX2 and no FMA"), (Machine::aarch64(), "this is aarch64")];
    for (machine, lacks) in machines.iter().filter_map(|(m, lacks)| Some((m.as_ref()?, *lacks))) {
        let folder = tempfile::tempdir()?;
        let folder = folder.path();
        let everything = folder.join("everything.bpm");
        std::fs::write(&everything, EVERYTHING)?;
        let bench =
            format!("bench {} --axis N=3 --axis M=4 --batch 1 --steps 2 --repeat 1", everything.display());
        let (printed, said) = machine.ok(folder, &format!("{bench} --json"))?;
        let report: serde_json::Value = serde_json::from_str(&printed)?;
        assert_eq!(report["backend"], "cranelift");
        assert!(said.starts_with("note: ") && said.lines().count() == 1 && said.contains(lacks), "{said}");
        let (printed, said) = machine.ok(folder, &format!("{bench} --message-format json"))?;
        assert!(printed.contains("cranelift on 1 thread"), "{printed}");
        let note: serde_json::Value = serde_json::from_str(&said)?;
        assert_eq!((&note["reason"], &note["schema"]), (&"note".into(), &1.into()));
        assert!(note["message"].as_str().is_some_and(|m| m.contains(lacks)), "{note}");
        for quiet in ["-q", "--backend cranelift", "--backend interp"] {
            assert_eq!(machine.ok(folder, &format!("{bench} {quiet}"))?.1, "", "{quiet}");
        }
        let out = machine.bpm(folder, &format!("{bench} --backend x64"))?;
        let text = self::said(&out);
        assert_eq!(out.status.code(), Some(3), "{text}");
        for words in ["error: the back end x64 cannot run here", lacks, "--backend cranelift"] {
            assert!(text.contains(words), "no `{words}` in\n{text}");
        }
    }
    Ok(())
}
