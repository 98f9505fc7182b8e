//! `bpm --device cuda --tier 1|2|auto` on the emulated device: whole trainings, evaluations and exact runs with kernels
//! of whole sequences against those of single steps and against the processor, and what is said of the choice.
//!
//! What is measured in training agrees to 1e-4, as for any device: the first updates of a run do not
//! amplify what single precision rounds otherwise. Tensors of an exact run agree to 2e-4 of their norm, as everywhere
//! where a device takes sums in an order of its own.

mod place;

use place::{MATCH, Outcome, Place, has_compiler};
use runtime::engine::Backend;
use runtime::engine::device::{DeviceId, Tier};
use runtime::exact::{self, Dtype, Given};
use runtime::tensors::{Tensor, Tensors};
use serde_json::Value;
use std::collections::BTreeMap;

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

impl Place {
    fn new() -> std::io::Result<Self> {
        let files = [
            ("retroactive.bpm", RETROACTIVE),
            ("r.toml", REWARD),
            ("match.bpm", MATCH),
            ("c.toml", COMPLETION),
            ("words.bpm", READER),
            ("w.toml", WORDS),
        ];
        Ok(Place::of(&files)?.with_device(1))
    }

    /// Trains on the processor and with both tiers, and compares all that is measured.
    fn all_agree(&self, args: &str) -> Outcome {
        self.ok(&format!("{args} --device cpu --out cpu"))?;
        for tier in ["1", "2", "auto"] {
            let run = format!("tier-{tier}");
            let said = self.said(&format!("{args} --device cuda --tier {tier} --out {run}"))?;
            let known = if tier == "1" { 1 } else { 2 };
            assert!(said.lines().any(|l| l.contains(&format!("(tier {known}: a "))), "{said}");
            let about = self.json(&format!("{run}/run.json"))?;
            assert_eq!(about["tier"], known, "{about}");
            assert!(about["tier_why"].as_str().is_some_and(|why| why.len() > 20), "{about}");
            self.agree(&run, "cpu")?;
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
    p.all_agree("train r.toml")?;
    // A run that was interrupted ends with the bits of one that was not.
    p.ok("train r.toml --device cuda --updates 2 --out parts")?;
    p.ok("train parts --resume --device cuda --updates 3")?;
    let bytes = |run: &str| std::fs::read(p.path(run).join("params.safetensors"));
    assert!(bytes("parts")? == bytes("tier-auto")? && bytes("parts")? == bytes("tier-2")?);
    let eval = |tier: &str| p.ok(&format!("eval tier-2 --episodes 7 --json --device cuda --tier {tier}"));
    assert_eq!(eval("2")?, eval("1")?, "the same actions give the same scores");
    Ok(())
}

#[test]
fn known_sequences_and_texts_agree() -> Outcome {
    if !has_compiler() {
        return Ok(());
    }
    let p = Place::new()?;
    p.all_agree("train c.toml")?;
    let p = Place::new()?;
    // The last window is shorter, and states go from window to window.
    p.write_words(99)?;
    p.all_agree("train w.toml --data words")
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
    for (tier, number) in [("1", 1), ("2", 2), ("auto", 2)] {
        let text = p.ok(&format!("{small} --tier {tier} --json"))?;
        assert_eq!(serde_json::from_str::<Value>(&text)?["tier"], number);
    }
    assert!(p.ok(small)?.contains("  tier 2: a sequence is one launch, "));
    let out = p.bpm(&format!("{small} --tier 3"))?;
    assert_eq!(out.status.code(), Some(2));
    Ok(())
}
