//! One-shot classification: an encoder outside of the spec, a plastic layer inside, labels and classes.

mod place;

use place::{Outcome, Place};
use runtime::engine::{Backend, Mode};
use runtime::recipe::{Override, Recipe};
use runtime::train::Trainer;
use runtime::{Error, setup, spec};
use std::path::{Path, PathBuf};

const RECIPE: &str = "spec = \"head.bpm\"
[task]
name = \"one-shot\"
characters = 30
held_out = 10
side = 9
ways = 3
[encoder]
layers = [
  { channels = 4, size = 3, stride = 2 },
  { kind = \"dense\", channels = 6 },
]
[learner]
form = \"binary\"
[optimiser]
rate = 0.003
[run]
batch = 4
updates = 6
log_every = 1
checkpoint_every = 3
";

impl Place {
    fn new() -> std::io::Result<Self> {
        let head = include_str!("../../specs/differentiable_plasticity/omniglot_head.bpm");
        Place::of(&[("head.bpm", head), ("r.toml", RECIPE)])
    }

    fn trainer(&self, sets: &[&str], backend: Backend, threads: usize) -> Result<Trainer, Error> {
        load(&self.path("r.toml"), sets, backend, threads)
    }

    fn last_checkpoint(&self, run: &str) -> std::io::Result<Vec<u8>> {
        std::fs::read(self.checkpoints(run)?.last().map_or(Path::new(""), |p| p))
    }
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn load(recipe: &Path, sets: &[&str], backend: Backend, threads: usize) -> Result<Trainer, Error> {
    let sets: Result<Vec<Override>, Error> = sets.iter().map(|s| Override::parse(s)).collect();
    let place = recipe.parent().unwrap_or(Path::new(""));
    let recipe = Recipe::load(recipe, &sets?)?;
    let spec = spec::load(&place.join(&recipe.spec).display().to_string())?;
    setup::trainer(spec, recipe, backend, threads, Mode::Train)
}

#[test]
fn the_published_network_has_its_size() -> Outcome {
    let paper = root().join("examples/omniglot/paper.toml");
    let trainer = load(&paper, &["task.characters=210"], Backend::fastest(), 1)?;
    let count: usize = trainer.params.raw.iter().map(Vec::len).sum();
    assert_eq!(count, 112_065);
    Ok(())
}

/// From the loss through the plastic layer and the labels to the first convolution.
#[test]
fn gradients_are_slopes_of_the_loss() -> Outcome {
    let p = Place::new()?;
    for (backend, form) in
        [(Backend::Interp, "binary"), (Backend::fastest(), "binary"), (Backend::fastest(), "categorical")]
    {
        let form = format!("learner.form={form}");
        let sets = ["optimiser.name=sgd", "optimiser.rate=1.0", &form];
        let at = |name: &str, k: usize, change: f32| -> Result<(f64, f32), Error> {
            let mut trainer = p.trainer(&sets, backend, 1)?;
            // Far from the beginning, where the plastic part is small.
            for (raw, about) in trainer.params.raw.iter_mut().zip(&trainer.params.about) {
                match about.name.as_str() {
                    "alpha" => raw.fill(5.0),
                    "eta" => raw.fill(0.8),
                    _ => {}
                }
            }
            let found = trainer.params.about.iter().position(|a| a.name == name).expect("parameter");
            trainer.params.raw[found][k] += change;
            let before = trainer.params.raw[found][k];
            let loss = trainer.step()?.loss;
            Ok((loss, before - trainer.params.raw[found][k]))
        };
        let names =
            ["W", "alpha", "eta", "encoder.0.weight", "encoder.0.bias", "encoder.1.weight", "encoder.1.bias"];
        let mut moving = 0;
        for name in names {
            for k in if name == "eta" { vec![0] } else { vec![0, 1, 3] } {
                let (_, gradient) = at(name, k, 0.0)?;
                let h = 1.0 / 256.0;
                let slope = (at(name, k, h)?.0 - at(name, k, -h)?.0) / (2.0 * f64::from(h));
                let error = (slope - f64::from(gradient)).abs();
                assert!(
                    error < 5e-3 * slope.abs() + 1e-4,
                    "{name} {k} {}: {slope} {gradient}",
                    backend.name()
                );
                moving += usize::from(gradient.abs() > 1e-3);
            }
        }
        assert!(moving >= 10, "vacuous: {moving}");
    }
    Ok(())
}

#[test]
fn bits_depend_on_neither_threads_nor_back_ends() -> Outcome {
    let p = Place::new()?;
    let run = |backend, threads| -> Result<Vec<Vec<u32>>, Error> {
        let mut trainer = p.trainer(&[], backend, threads)?;
        for _ in 0..3 {
            trainer.step()?;
        }
        Ok(trainer.params.raw.iter().map(|x| x.iter().map(|x| x.to_bits()).collect()).collect())
    };
    let first = run(Backend::fastest(), 1)?;
    assert_eq!(first, run(Backend::fastest(), 3)?);
    assert_eq!(first, run(Backend::CRANELIFT, 2)?);
    Ok(())
}

#[test]
fn held_out_characters_are_learned_to_be_told_apart() -> Outcome {
    let p = Place::new()?;
    let small = root().join("examples/omniglot/small.toml");
    let sets = "--set run.updates=6000 --set run.log_every=2000 --out run";
    p.ok(&format!("train {} {sets}", small.display()))?;
    let found: serde_json::Value = serde_json::from_str(&p.ok("eval run --episodes 400 --json")?)?;
    let accuracy = &found["scores"]["accuracy"];
    let (mean, ci) = (accuracy["mean"].as_f64().unwrap_or(0.0), accuracy["ci95"].as_f64().unwrap_or(0.0));
    assert!(mean > 0.6, "{found}: chance is 1/5");
    // The interval of a rate.
    let wanted = 1.96 * (mean * (1.0 - mean) / 400.0).sqrt();
    assert!((ci - wanted).abs() < 0.01 * wanted, "{ci} {wanted}");
    Ok(())
}

#[test]
fn resumed_runs_have_the_same_bits() -> Outcome {
    let p = Place::new()?;
    p.ok("train r.toml --out whole")?;
    p.ok("train r.toml --out parts --set run.updates=3")?;
    p.ok("train parts --resume --set run.updates=6 --threads 2")?;
    assert_eq!(p.last_checkpoint("whole")?, p.last_checkpoint("parts")?);
    p.ok("plot whole --out curve.svg")?;
    Ok(())
}

#[test]
fn mistakes_are_told() -> Outcome {
    let p = Place::new()?;
    std::fs::write(p.path("wide.toml"), RECIPE.replace("size = 3", "size = 30"))?;
    p.refuses(
        "train wide.toml --out a",
        &["wide.toml:10", "do not fit into a map of 9 by 9", "smaller sizes"],
    )?;
    p.refuses(
        "train r.toml --set task.ways=40 --out a",
        &["r.toml:5", "10 are held out; an episode needs 40"],
    )?;
    p.refuses("train r.toml --data nowhere --out a", &["nowhere", "--data"])?;
    p.refuses("train r.toml --set learner.name=squared-error --out a", &["does not suit", "cross-entropy"])?;
    std::fs::write(p.path("images_x.zip"), b"PK no archive")?;
    p.refuses("train r.toml --data . --out a", &["images_x.zip", "fetch the archive again"])?;
    let unknown = RECIPE.replace("stride = 2 }", "strides = 2 }");
    std::fs::write(p.path("u.toml"), unknown)?;
    p.refuses("train u.toml --out a", &["strides", "stride"])?;
    // Another encoder than the one that was trained.
    p.ok("train r.toml --out run")?;
    let text = std::fs::read_to_string(p.path("run/recipe.toml"))?;
    std::fs::write(p.path("run/recipe.toml"), text.replace("channels = 4", "channels = 5"))?;
    p.refuses("eval run", &["encoder.0.weight"])?;
    assert!(!p.path("a").exists());
    Ok(())
}
