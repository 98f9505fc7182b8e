//! `bpm --device cuda --tier 1|2|1,2|2,1|auto` on the emulated device: whole trainings, evaluations and exact runs with kernels
//! of whole sequences against those of single steps and against the processor, and what is said of the choice.
//!
//! What is measured in training agrees to 1e-4, as for any device: the first updates of a run do not
//! amplify what single precision rounds otherwise. Tensors of an exact run agree to 2e-4 of their norm, as everywhere
//! where a device takes sums in an order of its own.

use runtime::engine::Backend;
use runtime::engine::device::{DeviceId, Tier};
use runtime::exact::{self, Dtype, Given};
use runtime::tensors::{Tensor, Tensors};
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

type Outcome = Result<(), Box<dyn std::error::Error>>;

const RETROACTIVE: &str = include_str!("../../specs/backpropamine/retroactive.bpm");

const REWARD: &str = "spec = \"retroactive.bpm\"
[sizes]
N = 7
[task]
name = \"cue-reward\"
cues = 2
bits = 2
steps = 11
[optimiser]
rate = 0.01
[run]
batch = 5
updates = 3
log_every = 1
checkpoint_every = 2
";

const COMPLETION: &str = "spec = \"match.bpm\"
[task]
name = \"pattern-completion\"
bits = 13
patterns = 2
cycles = 1
shows = 2
blanks = 1
tests = 2
[run]
batch = 3
updates = 3
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
window = 9
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
log_every = 1
checkpoint_every = 7
";

const READER: &str = "spec words {
  axis I = ?, N = 6
  in u[I]
  learn Wx[N,I], bx[N] ~ linear
  learn W[N,N], alpha[N,N] ~ uniform(0.2, 0.5)
  state h[N] = 0
  plastic P[N,N] = 0
  h' = tanh(Wx @ u + bx + (W + alpha * P) @ h)
  P'[j,i] = clip(P + 0.5 * h'[j] * h[i], -1, 1)
  out y[N] = h'
}
";

struct Place {
    folder: tempfile::TempDir,
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
        let place = Place { folder: tempfile::tempdir()? };
        for (name, text) in [
            ("retroactive.bpm", RETROACTIVE),
            ("r.toml", REWARD),
            ("match.bpm", MATCH),
            ("c.toml", COMPLETION),
            ("words.bpm", READER),
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
        command.env("BPM_CACHE", self.path("cache")).env("BPM_EMULATED_CUDA", "1");
        command.args(args.split_whitespace()).output()
    }

    /// What it says on both channels.
    fn ok(&self, args: &str) -> Result<(String, String), Box<dyn std::error::Error>> {
        let out = self.bpm(args)?;
        let said = String::from_utf8(out.stderr)?;
        assert!(out.status.success(), "{args}: {said}");
        Ok((String::from_utf8(out.stdout)?, said))
    }

    fn json(&self, file: &str) -> Result<Value, Box<dyn std::error::Error>> {
        Ok(serde_json::from_str(&std::fs::read_to_string(self.path(file))?)?)
    }

    fn metrics(&self, run: &str) -> Result<Vec<Value>, Box<dyn std::error::Error>> {
        let text = std::fs::read_to_string(self.path(run).join("metrics.jsonl"))?;
        Ok(text.lines().map(serde_json::from_str).collect::<Result<_, _>>()?)
    }

    /// Trains on the processor and with both tiers, and compares all that is measured.
    /// Where steps come one by one, they go forward by kernels of single steps whatever is asked for.
    fn agree(&self, args: &str, one_by_one: bool) -> Outcome {
        self.ok(&format!("{args} --device cpu --out cpu"))?;
        let expected = self.metrics("cpu")?;
        assert!(!expected.is_empty(), "{args}");
        for (tier, [known_forward, known_backward]) in
            [("1", [1, 1]), ("2", [2, 2]), ("auto", [2, 2]), ("1,2", [1, 2]), ("2,1", [2, 1])]
        {
            let run = format!("tier-{tier}");
            let (_, said) = self.ok(&format!("{args} --device cuda --tier {tier} --out {run}"))?;
            let known = [if one_by_one { 1 } else { known_forward }, known_backward];
            let number = match known {
                [f, b] if f == b => f.to_string(),
                [f, b] => format!("{f},{b}"),
            };
            assert!(said.lines().any(|l| l.contains(&format!("(tier {number}: a "))), "{said}");
            let about = self.json(&format!("{run}/run.json"))?;
            assert_eq!(about["tiers"], serde_json::json!(known), "{about}");
            assert!(about["tier_why"].as_str().is_some_and(|why| why.len() > 20), "{about}");
            for direction in [0, 1] {
                let estimates = &about["tier_microseconds"][direction];
                assert!(estimates["steps"].as_f64().is_some_and(|us| 0.0 < us), "{about}");
                let has_both = estimates["sequences"].as_f64().is_some_and(|us| 0.0 < us);
                assert_eq!(has_both, tier != "1", "{about}");
            }
            let found = self.metrics(&run)?;
            assert_eq!(found.len(), expected.len(), "{args}");
            for (x, y) in expected.iter().zip(&found) {
                for (name, value) in
                    x.as_object().into_iter().flatten().filter(|(name, _)| *name != "seconds")
                {
                    let (a, b) = (value.as_f64().unwrap_or(0.0), y[name].as_f64().unwrap_or(f64::NAN));
                    let far = (a - b).abs();
                    assert!(far <= 1e-4 * a.abs().max(1e-2), "{args} tier {tier}: {name} is {b}, not {a}");
                }
            }
        }
        Ok(())
    }
}

/// Going forward an environment answers every step; going backward the whole sequence is one launch.
#[test]
fn environments_agree_and_runs_go_on_with_their_bits() -> Outcome {
    if !has_compiler() {
        return Ok(());
    }
    let p = Place::new()?;
    p.agree("train r.toml", true)?;
    // A run that was interrupted ends with the bits of one that was not.
    p.ok("train r.toml --device cuda --updates 2 --out parts")?;
    p.ok("train parts --resume --device cuda --updates 3")?;
    let bytes = |run: &str| std::fs::read(p.path(run).join("params.safetensors"));
    assert!(bytes("parts")? == bytes("tier-auto")? && bytes("parts")? == bytes("tier-2")?);
    let eval = |tier: &str| p.ok(&format!("eval tier-2 --episodes 7 --json --device cuda --tier {tier}"));
    assert_eq!(eval("2")?.0, eval("1")?.0, "the same actions give the same scores");
    Ok(())
}

#[test]
fn known_sequences_and_texts_agree() -> Outcome {
    if !has_compiler() {
        return Ok(());
    }
    let p = Place::new()?;
    p.agree("train c.toml", false)?;
    let p = Place::new()?;
    std::fs::create_dir(p.path("words"))?;
    let words = ["a", "b", "c", "d"];
    let text =
        |n: usize, k: usize| (0..n).map(|t| words[(t * t + t / 3 + k * t) % 4]).collect::<Vec<_>>().join(" ");
    // The last window is shorter, and states go from window to window.
    for (name, count) in [("train", 99), ("valid", 40), ("test", 40)] {
        std::fs::write(p.path("words").join(format!("{name}.txt")), text(count, count % 7) + "\n")?;
    }
    p.agree("train w.toml --data words", false)
}

fn wave(shape: &[usize], tag: f64, scale: f64) -> Tensor {
    let count: usize = shape.iter().product();
    Tensor::f64(shape.to_vec(), (0..count).map(|k| scale * (0.7 * k as f64 + tag).sin()).collect())
}

/// Tensors for the retroactive network: 19 steps, three rows, with or without resets of all rows together.
fn given(resets: bool) -> Given {
    let (i, n, a, steps, rows) = (3, 9, 2, 19, 3);
    let shapes: [(&str, Vec<usize>, f64); 11] = [
        ("Wx", vec![n, i], 0.8),
        ("bx", vec![n], 0.3),
        ("W", vec![n, n], 0.5),
        ("alpha", vec![n, n], 0.9),
        ("eta", vec![], 0.4),
        ("wm", vec![n], 1.2),
        ("bm", vec![], 0.2),
        ("Wo", vec![a, n], 0.7),
        ("bo", vec![a], 0.2),
        ("wv", vec![n], 0.6),
        ("bv", vec![], 0.1),
    ];
    let named = shapes.into_iter().enumerate();
    let params: Tensors = named
        .map(|(k, (name, shape, scale))| (name.to_owned(), wave(&shape, 1.0 + k as f64, scale)))
        .collect();
    let mut inputs = Tensors::from([("u".to_owned(), wave(&[steps, rows, i], 0.2, 1.0))]);
    if resets {
        let at = |t: usize| f64::from(u8::from(t == 5 || t == 14));
        let flags = (0..steps * rows).map(|k| at(k / rows)).collect();
        inputs.insert("reset".to_owned(), Tensor::f64(vec![steps, rows], flags));
    }
    let cotangents = Tensors::from([
        ("policy".to_owned(), wave(&[steps, rows, a], 0.3, 1.0)),
        ("value".to_owned(), wave(&[steps, rows], 0.9, 1.0)),
    ]);
    let axes = [("I", i), ("N", n), ("A", a)].map(|(name, size)| (name.to_owned(), size));
    Given {
        params: ("p".to_owned(), params),
        inputs: ("x".to_owned(), inputs),
        cotangents: Some(("g".to_owned(), cotangents)),
        axes: BTreeMap::from(axes),
    }
}

#[test]
fn exact_runs_agree() -> Outcome {
    if !has_compiler() {
        return Ok(());
    }
    let spec = runtime::spec::compile("retroactive.bpm", RETROACTIVE.to_owned(), None)?;
    for resets in [false, true] {
        let run = |backend: Backend, tier: Tier| {
            exact::run_on(&spec, given(resets), (backend, tier), Dtype::F32, compiler::form::Prefer::Dense)
        };
        let expected = run(Backend::fastest(), Tier::Auto)?;
        let device = Backend::Device(DeviceId::Emulated);
        let found = run(device, Tier::Sequences)?;
        assert!(expected.len() > 10 && expected.len() == found.len());
        let far = |x: &[f64], y: &[f64]| {
            let norm = y.iter().map(|y| y * y).sum::<f64>().sqrt();
            x.iter().zip(y).map(|(x, y)| (x - y).powi(2)).sum::<f64>().sqrt() / norm.max(0.1)
        };
        let mut moved = 0;
        for (name, y) in &expected {
            let (x, y) = (found[name].to_f64(), y.to_f64());
            assert!(far(&x, &y) < 2e-4, "{name}, resets {resets}: {x:?}, expected {y:?}");
            moved += usize::from(y.iter().any(|y| y.abs() > 1e-3));
        }
        assert!(moved > 8, "{moved} tensors are not zero");
        assert!(run(device, Tier::Sequences)? == found, "the order of threads decides");
    }
    Ok(())
}

#[test]
fn what_cannot_be_mapped_is_told() -> Outcome {
    if !has_compiler() {
        return Ok(());
    }
    let p = Place::new()?;
    // Its matrices lie on no chip.
    let bench = "bench retroactive.bpm --axis I=3 --axis A=2 --axis N=1300 --batch 1 --steps 2 --repeat 1 --device cuda";
    let out = p.bpm(&format!("{bench} --tier 2"))?;
    let said = String::from_utf8_lossy(&out.stderr);
    assert_eq!(out.status.code(), Some(3), "{said}");
    for words in [
        "`retroactive` has no kernels of whole sequences on this device",
        "bytes more shared memory",
        "--tier 1",
    ] {
        assert!(said.contains(words), "{said}");
    }
    let small =
        "bench retroactive.bpm --axis I=3 --axis A=2 --axis N=9 --batch 2 --steps 3 --repeat 1 --device cuda";
    for (tier, tiers) in [("1", [1, 1]), ("2", [2, 2]), ("auto", [2, 2]), ("1,2", [1, 2]), ("2,1", [2, 1])] {
        let (text, _) = p.ok(&format!("{small} --tier {tier} --json"))?;
        assert_eq!(serde_json::from_str::<Value>(&text)?["tiers"], serde_json::json!(tiers));
    }
    assert!(p.ok(small)?.0.contains("  tier 2: a sequence is one launch, "));
    let out = p.bpm(&format!("{small} --tier 3"))?;
    assert_eq!(out.status.code(), Some(2));
    Ok(())
}
