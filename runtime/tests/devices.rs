//! `bpm --device cuda`, with the emulated device in the place of a GPU: the same runs as on the processor, and what
//! is said where there is no device or too little memory.

mod place;

use place::{Found, MATCH, Outcome, Place, has_compiler};
use serde_json::Value;
use std::process::Command;

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

impl Place {
    fn new() -> std::io::Result<Self> {
        let plain = SPEC.replace(" KEEP", "");
        let free = plain.replace("state y[N] = y0", "state y[N] = 0");
        let files = [
            ("tiny.bpm", plain.as_str()),
            ("kept.bpm", &SPEC.replace("KEEP", "every 2 episodes")),
            ("free.bpm", &free.replace("  learn y0[N] ~ uniform(-0.1, 0.1)\n", "")),
            ("r.toml", RECIPE),
            ("m.toml", MAZE),
            ("match.bpm", MATCH),
            ("c.toml", COMPLETION),
            ("words.bpm", READER),
            ("head.bpm", include_str!("../../specs/differentiable_plasticity/omniglot_head.bpm")),
            ("o.toml", ONE_SHOT),
            ("w.toml", WORDS),
        ];
        Ok(Place::of(&files)?.with_device(1))
    }

    /// Trains on the processor and on the device, and compares all that is measured.
    fn devices_agree(&self, args: &str) -> Outcome {
        self.alike(args, "--device cuda")?;
        assert_eq!(self.json("cuda/run.json")?["device"], "emulated device");
        Ok(())
    }

    /// Trains on the processor and `elsewhere`, and compares all that is measured.
    fn alike(&self, args: &str, elsewhere: &str) -> Outcome {
        self.ok(&format!("{args} --device cpu --out cpu"))?;
        self.ok(&format!("{args} {elsewhere} --out cuda"))?;
        self.agree("cuda", "cpu")
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
        p.devices_agree(&format!("train r.toml {extra}"))?;
        p.clear()?;
    }
    p.devices_agree("train r.toml")?;
    let eval = |device: &str| p.ok(&format!("eval cuda --episodes 7 --json --device {device}"));
    assert_eq!(eval("cuda")?, eval("cpu")?, "the same actions give the same scores");
    p.ok("train cuda --resume --device cuda --updates 6")?;
    assert_eq!(p.metrics("cuda")?.len(), 6);
    Ok(())
}

#[test]
fn episodes_live_on_a_device() -> Outcome {
    if !has_compiler() {
        return Ok(());
    }
    let p = Place::new()?;
    p.devices_agree("train m.toml")?;
    p.clear()?;
    // With the processor's answers at every step: the same numbers to the last place.
    let all = p.said("train m.toml --device cuda --out cuda --timings t.json")?;
    assert!(
        all.contains("run the network, the task, losses and the optimiser: one transfer each way"),
        "{all}"
    );
    assert!(all.contains("on the device "), "{all}");
    p.said("train m.toml --device cuda --episodes host --out cpu")?;
    assert_eq!(p.metrics("cuda")?, p.metrics("cpu")?);
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
    p.agree("moved", "cuda")?;
    // With a state that starts at learned numbers in every second episode; and with targets in the place of actions.
    for args in ["train r.toml --set spec=kept.bpm", "train c.toml"] {
        let all = p.said(&format!("{args} --device cuda --out all"))?;
        assert!(all.contains("losses and the optimiser: one transfer each way"), "{all}");
        p.said(&format!("{args} --device cuda --episodes host --out host"))?;
        assert_eq!(p.metrics("all")?, p.metrics("host")?);
        let bytes = |run: &str| std::fs::read(p.path(run).join("params.safetensors"));
        assert!(bytes("all")? == bytes("host")?, "{args}");
        for run in ["all", "host"] {
            std::fs::remove_dir_all(p.path(run))?;
        }
    }
    let encoded = p.said("train o.toml --device cuda --out encoded")?;
    assert!(encoded.contains("stay on the processor: images are encoded there"), "{encoded}");
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
        p.give_device(bytes);
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
    p.give_device(enough);
    p.fails(args, 3, &["of memory on emulated device", "with --set run.batch=1", "--device cpu"])
}

#[test]
fn known_sequences_are_learned_on_a_device() -> Outcome {
    if !has_compiler() {
        return Ok(());
    }
    let p = Place::new()?;
    p.devices_agree("train c.toml")?;
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
    p.devices_agree("train o.toml")
}

#[test]
fn texts_are_read_on_a_device() -> Outcome {
    if !has_compiler() {
        return Ok(());
    }
    let p = Place::new()?;
    p.write_words(90)?;
    p.devices_agree("train w.toml --data words")
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
    p.write_words(90)?;
    for (args, evaluate) in [
        ("train r.toml --set learner.baseline=first", "--episodes 7"),
        ("train r.toml --set spec=kept.bpm", "--episodes 7"),
        ("train c.toml", "--episodes 5"),
        ("train o.toml", "--episodes 5"),
        ("train w.toml --data words", "--batch 3"),
    ] {
        p.alike(args, "--backend torch")?;
        let run = p.json("cuda/run.json")?;
        assert_eq!((&run["backend"], &run["device"]), (&"torch".into(), &"cpu".into()));
        let eval = |backend: &str| -> Found<Vec<f64>> {
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
        p.give_device(400_000);
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
    p.take_device();
    let out = p.bpm(&format!("{bench} --device cuda:7"))?;
    let text = String::from_utf8_lossy(&out.stderr);
    assert_eq!(out.status.code(), Some(3), "{text}");
    // Without a GPU there is no driver; with one there is no eighth.
    assert!(text.contains("there is no CUDA d") && text.contains("help: "), "{text}");
    p.give_device(1);
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
        .current_dir(p.path(""))
        .args(["-shared", "-fPIC", "-o", "libcuda.so", "empty.cpp"])
        .status()?;
    assert!(built.success());
    p.take_device();
    p.environment.push(("LD_LIBRARY_PATH", p.path("").into()));
    let words = ["libcuda.so is no CUDA driver", "install NVIDIA's driver", "--device cpu"];
    p.fails("train r.toml --device cuda --out cuda", 3, &words)?;
    p.ok("train r.toml --out auto")?;
    Ok(())
}
