//! `bpm --device cuda`, with the emulated device in the place of a GPU: the same runs as on the processor, and what
//! is said where there is no device or too little memory.

use serde_json::Value;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

type Outcome = Result<(), Box<dyn std::error::Error>>;

const SPEC: &str = "spec tiny {
  axis I = ?, N = 6, A = ?
  in u[I]
  learn Wx[N,I], bx[N] ~ linear
  learn W[N,N], alpha[N,N] ~ uniform(0, 0.1)
  learn eta in (0, 1) = 0.1
  learn Wo[A,N], bo[A], wv[N], bv ~ linear
  learn y0[N] ~ uniform(-0.1, 0.1)
  state y[N] = y0
  plastic H[N,N] = 0 KEEP
  y' = tanh(Wx @ u + bx + (W + alpha * H) @ y)
  H'[j,i] = clip(H + eta * y'[j] * y[i], -1, 1)
  penalty 0.1 * mean(y' * y')
  out policy[A] = Wo @ y' + bo
  out value = wv . y' + bv
}
";

const RECIPE: &str = "spec = \"tiny.bpm\"
[task]
name = \"cue-reward\"
cues = 2
bits = 2
steps = 8
[optimiser]
rate = 0.01
[run]
batch = 3
updates = 4
log_every = 1
checkpoint_every = 2
";

const MAZE: &str = "spec = \"free.bpm\"
[task]
name = \"maze\"
size = 5
steps = 10
[optimiser]
rate = 0.01
[run]
batch = 3
updates = 6
log_every = 1
checkpoint_every = 2
";

const COMPLETION: &str = "spec = \"match.bpm\"
[task]
name = \"pattern-completion\"
bits = 8
patterns = 2
cycles = 1
shows = 2
blanks = 1
tests = 2
[run]
batch = 3
updates = 2
log_every = 1
";

const ONE_SHOT: &str = "spec = \"head.bpm\"
[task]
name = \"one-shot\"
characters = 20
held_out = 8
side = 9
ways = 3
[encoder]
layers = [{ channels = 4, size = 3, stride = 2 }]
[optimiser]
rate = 0.01
[run]
batch = 3
updates = 4
log_every = 1
";

const MATCH: &str = "spec match {
  axis N = ?
  in u[N]
  learn W[N,N], alpha[N,N] ~ uniform(0, 0.1)
  learn eta in (0, 1) = 0.1
  state y[N] = 0
  plastic H[N,N] = 0
  y' = tanh(10 * u + (W + alpha * H) @ y)
  H'[j,i] = (1 - eta) * H + eta * y'[j] * y[i]
  out x[N] = y'
}
";

const WORDS: &str = "spec = \"words.bpm\"
[task]
name = \"language-model\"
corpus = \"words\"
window = 4
epochs = 1
valid_batch = 2
[learner]
embedding = 5
start = 0.5
[optimiser]
rate = 0.5
clip = 1.0
[run]
batch = 3
log_every = 3
checkpoint_every = 7
";

const READER: &str = "spec words {
  axis I = ?, N = 6
  in u[I]
  noise drop[N] ~ dropout(0.5)
  learn Wx[N,I], bx[N] ~ linear
  learn W[N,N], alpha[N,N] ~ uniform(0.2, 0.5)
  state h[N] = 0
  plastic P[N,N] = 0
  h' = tanh(Wx @ u + bx + (W + alpha * P) @ h)
  P'[j,i] = clip(P + 0.5 * h'[j] * h[i], -1, 1)
  out y[N] = drop * h'
}
";

struct Place {
    folder: tempfile::TempDir,
    /// The memory of the emulated device; none without a device.
    device: Option<&'static str>,
    /// Where libraries are looked for first, if not where they usually are.
    libraries: Option<PathBuf>,
}

/// Whether there is a C++ compiler for the emulated device; if not, it is said.
fn has_compiler() -> bool {
    let names = std::env::var("CXX").ok().into_iter().chain(["g++", "clang++", "c++"].map(str::to_owned));
    let works = |name: String| Command::new(name).arg("--version").output().is_ok_and(|o| o.status.success());
    if names.into_iter().any(works) {
        return true;
    }
    use std::io::Write;
    let _ = writeln!(std::io::stderr(), "NOT RUN: the emulated device: there is no C++ compiler");
    assert!(std::env::var_os("BPM_CUDA").is_none(), "BPM_CUDA wants a C++ compiler");
    false
}

impl Place {
    fn new() -> std::io::Result<Self> {
        let folder = tempfile::tempdir()?;
        let place = Place { folder, device: Some("1"), libraries: None };
        for (name, text) in [
            ("tiny.bpm", SPEC.replace(" KEEP", "").as_str()),
            ("kept.bpm", &SPEC.replace("KEEP", "every 2 episodes")),
            (
                "free.bpm",
                &SPEC
                    .replace(" KEEP", "")
                    .replace("state y[N] = y0", "state y[N] = 0")
                    .replace("  learn y0[N] ~ uniform(-0.1, 0.1)\n", ""),
            ),
            ("r.toml", RECIPE),
            ("m.toml", MAZE),
            ("match.bpm", MATCH),
            ("c.toml", COMPLETION),
            ("words.bpm", READER),
            ("head.bpm", include_str!("../../specs/differentiable_plasticity/omniglot_head.bpm")),
            ("o.toml", ONE_SHOT),
            ("w.toml", WORDS),
        ] {
            std::fs::write(place.path(name), text)?;
        }
        Ok(place)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn bpm(&self, args: &str) -> std::io::Result<Output> {
        let mut command = Command::new(env!("CARGO_BIN_EXE_bpm"));
        command.current_dir(self.folder.path()).env("RUST_BACKTRACE", "0").stdin(Stdio::null());
        command.env("BPM_CACHE", self.path("cache")).env_remove("BPM_EMULATED_CUDA");
        command.envs(self.device.map(|d| ("BPM_EMULATED_CUDA", d)));
        command.envs(self.libraries.as_ref().map(|l| ("LD_LIBRARY_PATH", l)));
        command.args(args.split_whitespace()).output()
    }

    fn ok(&self, args: &str) -> Result<String, Box<dyn std::error::Error>> {
        let out = self.bpm(args)?;
        assert!(out.status.success(), "{args}: {}", String::from_utf8_lossy(&out.stderr));
        Ok(String::from_utf8(out.stdout)?)
    }

    fn fails(&self, args: &str, code: i32, words: &[&str]) -> Outcome {
        let out = self.bpm(args)?;
        let text = String::from_utf8_lossy(&out.stderr);
        assert_eq!(out.status.code(), Some(code), "{args}: {text}");
        assert!(!text.contains("panicked"), "{text}");
        for word in words {
            assert!(text.contains(word), "{args}: no `{word}` in\n{text}");
        }
        Ok(())
    }

    fn metrics(&self, run: &str) -> Result<Vec<Value>, Box<dyn std::error::Error>> {
        let text = std::fs::read_to_string(self.path(run).join("metrics.jsonl"))?;
        Ok(text.lines().map(serde_json::from_str).collect::<Result<_, _>>()?)
    }

    /// Trains on the processor and on the device, and compares all that is measured.
    fn agree(&self, args: &str) -> Outcome {
        self.alike(args, "--device cuda")?;
        let run: Value = serde_json::from_str(&std::fs::read_to_string(self.path("cuda/run.json"))?)?;
        assert_eq!(run["device"], "emulated device");
        Ok(())
    }

    /// Trains on the processor and `elsewhere`, and compares all that is measured.
    fn alike(&self, args: &str, elsewhere: &str) -> Outcome {
        self.ok(&format!("{args} --device cpu --out cpu"))?;
        self.ok(&format!("{args} {elsewhere} --out cuda"))?;
        let (one, two) = (self.metrics("cpu")?, self.metrics("cuda")?);
        assert!(!one.is_empty() && one.len() == two.len(), "{args}");
        for (x, y) in one.iter().zip(&two) {
            for (name, value) in x.as_object().into_iter().flatten().filter(|(name, _)| *name != "seconds") {
                let (a, b) = (value.as_f64().unwrap_or(0.0), y[name].as_f64().unwrap_or(f64::NAN));
                assert!(
                    (a - b).abs() <= 1e-4 * a.abs().max(1e-2),
                    "{args}: {name} is {b} with {elsewhere}, on the processor {a}"
                );
            }
        }
        Ok(())
    }

    /// Eleven dozens of words in a folder `words`.
    fn write_words(&self) -> Outcome {
        std::fs::create_dir(self.path("words"))?;
        let words = ["a", "b", "c", "d"];
        let text = |n: usize, k: usize| {
            (0..n).map(|t| words[(t * t + t / 3 + k * t) % 4]).collect::<Vec<_>>().join(" ")
        };
        for (name, count) in [("train", 90), ("valid", 40), ("test", 40)] {
            std::fs::write(self.path("words").join(format!("{name}.txt")), text(count, count % 7) + "\n")?;
        }
        Ok(())
    }

    fn clear(&self) -> Outcome {
        for run in ["cpu", "cuda"] {
            std::fs::remove_dir_all(self.path(run))?;
        }
        Ok(())
    }
}

#[test]
fn environments_answer_a_device_as_they_answer_a_processor() -> Outcome {
    if !has_compiler() {
        return Ok(());
    }
    let p = Place::new()?;
    for extra in ["--set learner.baseline=first", "--set spec=kept.bpm"] {
        p.agree(&format!("train r.toml {extra}"))?;
        p.clear()?;
    }
    p.agree("train r.toml")?;
    let eval = |device: &str| p.ok(&format!("eval cuda --episodes 7 --json --device {device}"));
    assert_eq!(eval("cuda")?, eval("cpu")?, "the same actions give the same scores");
    p.ok("train cuda --resume --device cuda --updates 6")?;
    assert_eq!(p.metrics("cuda")?.len(), 6);
    Ok(())
}

/// What a run says of itself on stderr.
fn said(p: &Place, args: &str) -> Result<String, Box<dyn std::error::Error>> {
    let out = p.bpm(args)?;
    let text = String::from_utf8_lossy(&out.stderr).into_owned();
    assert!(out.status.success(), "{args}: {text}");
    Ok(text)
}

#[test]
fn episodes_live_on_a_device() -> Outcome {
    if !has_compiler() {
        return Ok(());
    }
    let p = Place::new()?;
    p.agree("train m.toml")?;
    p.clear()?;
    // With the processor's answers at every step: the same numbers to the last place.
    let all = said(&p, "train m.toml --device cuda --out cuda --timings t.json")?;
    assert!(
        all.contains("run the network, the task, losses and the optimiser: one transfer each way"),
        "{all}"
    );
    assert!(all.contains("on the device "), "{all}");
    said(&p, "train m.toml --device cuda --episodes host --out cpu")?;
    let without_clock = |run: &str| -> Result<Vec<Value>, Box<dyn std::error::Error>> {
        let mut lines = p.metrics(run)?;
        lines.iter_mut().filter_map(Value::as_object_mut).for_each(|line| drop(line.remove("seconds")));
        Ok(lines)
    };
    assert_eq!(without_clock("cuda")?, without_clock("cpu")?);
    for file in ["params.safetensors", "checkpoints/000000000006.safetensors"] {
        assert!(
            std::fs::read(p.path("cuda").join(file))? == std::fs::read(p.path("cpu").join(file))?,
            "{file}"
        );
    }
    // On the processor, on a device, and back.
    p.ok("train m.toml --device cpu --updates 2 --out moved")?;
    p.ok("train moved --resume --device cuda --updates 4")?;
    p.ok("train moved --resume --device cpu --updates 6")?;
    for (x, y) in p.metrics("moved")?.iter().zip(&p.metrics("cuda")?) {
        for name in ["return", "loss", "grad_norm"] {
            let (a, b) = (x[name].as_f64().unwrap_or(f64::NAN), y[name].as_f64().unwrap_or(f64::NAN));
            assert!((a - b).abs() <= 1e-4 * a.abs().max(1e-2), "{name}: {a} {b}");
        }
    }
    // Where nothing says otherwise, a carried state and a learned one keep the optimiser on the processor.
    let kept = said(&p, "train r.toml --set spec=kept.bpm --device cuda --out kept")?;
    assert!(kept.contains("the optimiser stays on the processor"), "{kept}");
    let known = said(&p, "train c.toml --device cuda --out known")?;
    assert!(known.contains("task pattern-completion has no code for devices"), "{known}");
    Ok(())
}

/// What training keeps beside the network's tape counts: the smallest memory that the network passes with is too
/// little for it. A folder with something in it is refused after the memory is.
#[test]
fn training_that_does_not_fit_is_refused_before_it_begins() -> Outcome {
    if !has_compiler() {
        return Ok(());
    }
    let mut p = Place::new()?;
    std::fs::create_dir(p.path("taken"))?;
    std::fs::write(p.path("taken/file"), "")?;
    let args = "train m.toml --set task.steps=400 --device cuda --out taken";
    let mut code = |bytes: usize, more: &str| {
        p.device = Some(Box::leak(bytes.to_string().into_boxed_str()));
        p.bpm(&format!("{args} {more}")).map(|out| out.status.code())
    };
    let (mut little, mut enough) = (1 << 14, 1 << 24);
    while enough - little > 512 {
        let middle = usize::midpoint(little, enough);
        match code(middle, "--episodes host")? {
            Some(2) => enough = middle,
            other => {
                assert_eq!(other, Some(3), "{middle} bytes");
                little = middle;
            }
        }
    }
    assert_eq!((code(enough, "--episodes host")?, code(2 * enough, "")?), (Some(2), Some(2)));
    p.device = Some(Box::leak(enough.to_string().into_boxed_str()));
    p.fails(args, 3, &["of memory on emulated device", "with --set run.batch=1", "--device cpu"])
}

#[test]
fn known_sequences_are_learned_on_a_device() -> Outcome {
    if !has_compiler() {
        return Ok(());
    }
    let p = Place::new()?;
    p.agree("train c.toml --tier 1")?;
    let run: Value = serde_json::from_str(&std::fs::read_to_string(p.path("cuda/run.json"))?)?;
    assert_eq!(run["states"], "matrix states kept of every step, 1 MiB");
    p.clear()?;
    p.agree("train c.toml")?;
    let eval = |device: &str| p.ok(&format!("eval cuda --episodes 5 --json --device {device}"));
    let (one, two): (Value, Value) =
        (serde_json::from_str(&eval("cuda")?)?, serde_json::from_str(&eval("cpu")?)?);
    for (name, score) in one["scores"].as_object().into_iter().flatten() {
        let (a, b) = (score["mean"].as_f64(), two["scores"][name]["mean"].as_f64());
        assert!(a.zip(b).is_some_and(|(a, b)| (a - b).abs() < 1e-4), "{name}: {a:?} {b:?}");
    }
    Ok(())
}

/// With an encoder, which stays on the processor, and labels.
#[test]
fn characters_are_learned_on_a_device() -> Outcome {
    let p = Place::new()?;
    if !has_compiler() {
        return Ok(());
    }
    p.agree("train o.toml")
}

#[test]
fn texts_are_read_on_a_device() -> Outcome {
    if !has_compiler() {
        return Ok(());
    }
    let p = Place::new()?;
    p.write_words()?;
    p.agree("train w.toml --data words")
}

/// Each learner: with environments, carried states and a shared baseline; squared error; cross-entropy behind an
/// encoder; texts, window after window. And what reads a run again.
#[test]
fn libtorch_learns_what_machine_code_learns() -> Outcome {
    if !torch::BUILT_IN {
        use std::io::Write;
        let _ = writeln!(std::io::stderr(), "NOT RUN: training on libtorch: it is not built in");
        return Ok(());
    }
    let p = Place::new()?;
    p.write_words()?;
    for (args, evaluate) in [
        ("train r.toml --set learner.baseline=first", "--episodes 7"),
        ("train r.toml --set spec=kept.bpm", "--episodes 7"),
        ("train c.toml", "--episodes 5"),
        ("train o.toml", "--episodes 5"),
        ("train w.toml --data words", "--batch 3"),
    ] {
        p.alike(args, "--backend torch")?;
        let run: Value = serde_json::from_str(&std::fs::read_to_string(p.path("cuda/run.json"))?)?;
        assert_eq!((&run["backend"], &run["device"]), (&"torch".into(), &"cpu".into()));
        let eval = |backend: &str| -> Result<Vec<f64>, Box<dyn std::error::Error>> {
            let data = if args.contains("words") { "--data words" } else { "" };
            let text = p.ok(&format!("eval cuda {evaluate} {data} --json --backend {backend}"))?;
            let mut found = vec![];
            numbers(&serde_json::from_str(&text)?, &mut found);
            Ok(found)
        };
        let (here, there) = (eval("auto")?, eval("torch")?);
        assert!(here.len() > 2 && here.len() == there.len(), "{args}");
        for (a, b) in here.iter().zip(&there) {
            assert!((a - b).abs() <= 1e-4 * a.abs().max(1.0), "{args}: {there:?}, on the processor {here:?}");
        }
        p.clear()?;
    }
    p.ok("train r.toml --set spec=kept.bpm --backend torch --updates 2 --out half")?;
    p.ok("train half --resume --backend torch --updates 4")?;
    p.ok("train r.toml --set spec=kept.bpm --backend torch --out whole")?;
    let (half, whole) = (p.metrics("half")?, p.metrics("whole")?);
    assert!(half.len() == 4 && whole.len() == 4);
    for (x, y) in half.iter().zip(&whole) {
        assert_eq!((&x["loss"], &x["grad_norm"]), (&y["loss"], &y["grad_norm"]), "a resumed run");
    }
    Ok(())
}

/// All numbers in a value, in order, but for times.
fn numbers(value: &Value, found: &mut Vec<f64>) {
    match value {
        Value::Number(x) => found.extend(x.as_f64()),
        Value::Array(all) => all.iter().for_each(|x| numbers(x, found)),
        Value::Object(all) => {
            all.iter().filter(|(name, _)| *name != "seconds").for_each(|(_, x)| numbers(x, found));
        }
        Value::Null | Value::Bool(_) | Value::String(_) => {}
    }
}

#[test]
fn what_libtorch_cannot_is_told_with_its_remedy() -> Outcome {
    let p = Place::new()?;
    let bench = "bench tiny.bpm --axis I=3 --axis A=2 --batch 3 --steps 5 --repeat 1";
    if !torch::BUILT_IN {
        let words =
            ["the back end torch is not built into this program", "--features torch", "docs/libtorch.md"];
        for args in
            [bench, "gradcheck tiny.bpm", "train r.toml --out none", "train r.toml --out none --device cuda"]
        {
            p.fails(&format!("{args} --backend torch"), 3, &words)?;
        }
        return Ok(());
    }
    assert!(p.ok(&format!("{bench} --backend torch"))?.contains("torch on 1 thread"));
    p.fails(&format!("{bench} --backend torch --prefer events"), 2, &["as matrices", "--prefer dense"])?;
    p.fails("gradcheck tiny.bpm --backend interp", 2, &["libtorch", "bpmc gradcheck"])?;
    assert!(p.ok("gradcheck tiny.bpm")?.contains("both agree"));
    p.fails("gradcheck tiny.bpm --dtype f32 --tolerance 1e-12", 1, &["is off by"])?;
    // Without a GPU there is none; with one there is no 64th.
    p.fails(&format!("{bench} --backend torch --device cuda:63"), 3, &["CUDA", "--device cpu"])
}

#[test]
fn what_cannot_run_on_a_device_is_told_with_its_remedy() -> Outcome {
    let mut p = Place::new()?;
    let bench = "bench tiny.bpm --axis I=3 --axis A=2 --axis N=20 --batch 64 --steps 50 --repeat 1";
    if has_compiler() {
        p.device = Some("400000");
        let words = [
            "of memory on emulated device, where 38",
            "KiB of 390.6 KiB are free",
            "64 rows of 50 steps",
            "with --batch ",
            "--device cpu",
        ];
        p.fails(&format!("{bench} --device cuda"), 3, &words)?;
        assert!(p.ok(&format!("{bench} --device cpu"))?.contains("throughput"));
    }
    p.device = None;
    let out = p.bpm(&format!("{bench} --device cuda:7"))?;
    let text = String::from_utf8_lossy(&out.stderr);
    assert_eq!(out.status.code(), Some(3), "{text}");
    // Without a GPU there is no driver; with one there is no eighth.
    assert!(text.contains("there is no CUDA d") && text.contains("help: "), "{text}");
    p.device = Some("1");
    p.fails(&format!("{bench} --device cuda --backend interp"), 2, &["leave --backend out"])
}

/// A stub of the driver, as build systems have, or something else of its name.
#[cfg(target_os = "linux")]
#[test]
fn a_library_that_is_no_driver_is_told() -> Outcome {
    let mut p = Place::new()?;
    if !has_compiler() {
        return Ok(());
    }
    std::fs::write(p.path("empty.cpp"), "extern \"C\" int bpm_nothing() { return 0; }\n")?;
    let compiler = std::env::var("CXX").unwrap_or_else(|_| "g++".to_owned());
    let built = Command::new(compiler)
        .current_dir(p.folder.path())
        .args(["-shared", "-fPIC", "-o", "libcuda.so", "empty.cpp"])
        .status()?;
    assert!(built.success());
    p.device = None;
    p.libraries = Some(p.folder.path().to_path_buf());
    let words = ["libcuda.so is no CUDA driver", "install NVIDIA's driver", "--device cpu"];
    p.fails("train r.toml --device cuda --out cuda", 3, &words)?;
    p.ok("train r.toml --out auto")?;
    Ok(())
}
