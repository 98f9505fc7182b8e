//! Language models: gradients, carried states, evaluation, runs, and what is refused.

mod place;

use place::{Outcome, Place};
use runtime::engine::{Backend, Mode};
use runtime::language::Split;
use runtime::language::report::{Carry, Reading, read_split};
use runtime::recipe::{Override, Recipe};
use runtime::rng::{Address, Domain};
use runtime::train::Trainer;
use runtime::{Error, setup, spec};
use std::path::Path;

/// A plastic layer with a fan-out per receiving neuron: the published code applies it to the sending
/// neurons when the batch has one row.
const SPEC: &str = "spec fast {
  axis I = ?, N = 6
  in u[I]
  learn Wx[N,I], bx[N] ~ linear
  learn W[N,N] ~ linear
  learn alpha[N] ~ uniform(0.2, 0.5)
  learn wm[N], bm ~ linear
  learn F[N], b[N] ~ uniform(-1, 1)
  state h[N] = 0
  plastic P[N,N] = 0
  h' = tanh(Wx @ u + bx + (W + alpha[j] * P) @ h)
  modulator m = tanh(wm . h' + bm)
  d = F * m + b
  P'[j,i] = clip(P + d[j] * h'[j] * h[i], -2, 2)
  penalty 0.1 * mean(h' * h')
  out y[N] = h'
}
";

/// Two layers with dropout between them.
const DEEP: &str = "spec deep {
  axis I = ?, N = 6
  in u[I]
  noise keep[N] ~ dropout(0.5) locked
  noise drop[N] ~ dropout(0.5)
  layer one = cell(u, N = N)
  layer two = cell(keep * one.h', N = 4)
  layer three = cell(concat(drop * one.h', two.h'), N = N)
  out y[N] = three.h'
}

spec cell {
  axis I = ?, N = ?
  in u[I]
  learn X[N,I], b[N] ~ linear
  learn W[N,N], alpha[N,N] ~ uniform(0.2, 0.5)
  state h[N] = 0
  plastic P[N,N] = 0
  h' = tanh(X @ u + b + (W + alpha * P) @ h)
  P'[j,i] = clip(P + 0.5 * h'[j] * h[i], -1, 1)
  penalty 0.1 * mean(h' * h')
  out h'
}
";

const RECIPE: &str = "spec = \"fast.bpm\"
[task]
name = \"language-model\"
corpus = \"words\"
window = 4
epochs = 3
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

/// Eleven words in an order that has some rhyme.
fn text(words: usize) -> String {
    let word = |k: usize| format!("w{}", (k * 7 + k * k / 5) % 10);
    (0..words)
        .map(|k| word(k) + if k % 7 == 6 { "\n" } else { " " })
        .collect::<String>()
        .trim_end()
        .to_string()
        + "\n"
}

impl Place {
    fn new() -> std::io::Result<Self> {
        let [train, rest] = [120, 40].map(text);
        Place::of(&[
            ("fast.bpm", SPEC),
            ("deep.bpm", DEEP),
            ("r.toml", RECIPE),
            ("train.txt", &train),
            ("valid.txt", &rest),
            ("test.txt", &rest),
        ])
    }

    fn trainer(&self, sets: &[&str], backend: Backend, threads: usize) -> Result<Trainer, Error> {
        let mut all = vec![Override::new("task.data", self.path("").display().to_string())];
        for set in sets {
            all.push(Override::parse(set)?);
        }
        let recipe = Recipe::load(&self.path("r.toml"), &all)?;
        let spec = spec::load(&self.path(&recipe.spec).display().to_string())?;
        setup::trainer(spec, recipe, backend, threads, Mode::Train)
    }

    /// The deep network, with plain gradient descent of rate 1.
    fn deep(&self, backend: Backend, threads: usize) -> Result<Trainer, Error> {
        self.trainer(&["spec=deep.bpm", "optimiser.rate=1.0", "optimiser.clip=0"], backend, threads)
    }
}

fn fit(trainer: &Trainer, split: Split, batch: usize, window: usize, carry: Carry) -> Result<f64, Error> {
    let text = trainer.recipe.task.text().expect("a text");
    Ok(read_split(trainer, &trainer.params, text, Reading { split, batch, window, carry }, 2)?.loss)
}

/// Every sort of parameter, embedding and decoder included, tied or not, losses averaged or summed.
#[test]
fn gradients_are_slopes_of_the_loss() -> Outcome {
    let p = Place::new()?;
    let plain = ["optimiser.rate=1.0", "optimiser.clip=0"];
    for more in [&[][..], &["learner.tied=true", "learner.embedding=6"], &["learner.steps=sum"]] {
        let sets: Vec<&str> = plain.iter().chain(more).copied().collect();
        // The second window, so that states are carried.
        let at = |name: &str, k: usize, change: f32| -> Result<(f64, f32), Error> {
            let mut trainer = p.trainer(&sets, Backend::Interp, 1)?;
            trainer.step()?;
            let found = trainer.params.about.iter().position(|a| a.name == name).expect("parameter");
            trainer.params.raw[found][k] += change;
            let before = trainer.params.raw[found][k];
            let loss = trainer.step()?.loss;
            Ok((loss, before - trainer.params.raw[found][k]))
        };
        let names = ["Wx", "W", "alpha", "F", "b", "wm", "embedding", "decoder", "decoder_bias"];
        for name in names.into_iter().filter(|n| !(more.contains(&"learner.tied=true") && *n == "decoder")) {
            let (_, gradient) = at(name, 2, 0.0)?;
            let h = 1.0 / 64.0;
            let slope = (at(name, 2, h)?.0 - at(name, 2, -h)?.0) / (2.0 * f64::from(h));
            let slope = if more.contains(&"learner.steps=sum") { 4.0 * slope } else { slope };
            let error = (slope - f64::from(gradient)).abs();
            assert!(error < 2e-3 * slope.abs() + 2e-4, "{name} {more:?}: {slope} {gradient}");
            if ["embedding", "decoder", "Wx"].contains(&name) {
                assert!(gradient.abs() > 1e-3, "{name}: vacuous");
            }
        }
    }
    Ok(())
}

/// The same through layers and their dropout.
#[test]
fn gradients_flow_through_layers() -> Outcome {
    let p = Place::new()?;
    let loss = |name: &str, k: usize, change: f32| -> Result<(f64, f32), Error> {
        let mut trainer = p.deep(Backend::Interp, 1)?;
        trainer.step()?;
        let found = trainer.params.about.iter().position(|a| a.name == name).expect("parameter");
        trainer.params.raw[found][k] += change;
        let before = trainer.params.raw[found][k];
        let loss = trainer.step()?.loss;
        Ok((loss, before - trainer.params.raw[found][k]))
    };
    let h = 1.0 / 64.0;
    for name in ["one.X", "one.W", "two.X", "two.alpha", "three.X", "three.alpha", "embedding"] {
        let (_, gradient) = loss(name, 4, 0.0)?;
        let slope = (loss(name, 4, h)?.0 - loss(name, 4, -h)?.0) / (2.0 * f64::from(h));
        let error = (slope - f64::from(gradient)).abs();
        assert!(error < 2e-3 * slope.abs() + 2e-4, "{name}: {slope} {gradient}");
    }
    let trained = |backend, threads| -> Result<Vec<Vec<f32>>, Error> {
        let mut trainer = p.deep(backend, threads)?;
        for _ in 0..6 {
            trainer.step()?;
        }
        Ok(trainer.params.raw.clone())
    };
    let bits = |all: Vec<Vec<f32>>| all.concat().iter().map(|x| x.to_bits()).collect::<Vec<_>>();
    let first = bits(trained(Backend::CRANELIFT, 1)?);
    assert_eq!(first, bits(trained(Backend::CRANELIFT, 2)?));
    assert_eq!(first, bits(trained(Backend::fastest(), 3)?));
    Ok(())
}

/// Locked noise is drawn once per window and row, other noise at every step; dropout is for training.
#[test]
fn masks_are_locked_for_a_window() -> Outcome {
    let p = Place::new()?;
    let trainer = p.deep(Backend::Interp, 1)?;
    let model = trainer.engine.model().clone();
    let draw = |domain: Domain, episode: u32, row: u32, step: usize| {
        let mut found = std::collections::BTreeMap::new();
        let address = Address { seed: 3, domain, episode, row };
        trainer.wiring.draw_noise(trainer.engine.sizes(), address, step, |id, x| {
            found.insert(model.inputs[id.index()].name.clone(), x);
        });
        found
    };
    let first = draw(Domain::Train, 0, 0, 0);
    let later = draw(Domain::Train, 0, 0, 1);
    assert_eq!(first["keep"], later["keep"]);
    assert_ne!(first["drop"], later["drop"]);
    let masks: Vec<Vec<f64>> =
        (0..200).map(|k| draw(Domain::Train, k / 20, k % 20, 0)["keep"].clone()).collect();
    let zeros = masks.concat().iter().filter(|x| **x == 0.0).count();
    assert!(masks.concat().iter().all(|x| *x == 0.0 || *x == 2.0));
    // 1200 draws with probability one half: a standard deviation of 17.
    assert!((510..690).contains(&zeros), "{zeros}");
    assert!(draw(Domain::Eval, 0, 0, 0).values().flatten().all(|x| *x == 1.0));
    Ok(())
}

/// Words that are left out are so in all rows of a window, and the rest is scaled.
#[test]
fn left_out_words_change_training_only() -> Outcome {
    let p = Place::new()?;
    let drops = p.trainer(&["learner.word_dropout=0.4", "optimiser.rate=0"], Backend::fastest(), 1)?;
    let plain = p.trainer(&["optimiser.rate=0"], Backend::fastest(), 1)?;
    assert_eq!(
        fit(&drops, Split::Valid, 2, 4, Carry::All)?.to_bits(),
        fit(&plain, Split::Valid, 2, 4, Carry::All)?.to_bits()
    );
    let losses = |mut t: Trainer| -> Result<Vec<f64>, Error> { (0..5).map(|_| Ok(t.step()?.loss)).collect() };
    assert_ne!(losses(drops)?, losses(plain)?);
    Ok(())
}

/// Training reads what evaluation reads: the mean loss of an epoch at rate zero is that of the split,
/// for any window.
#[test]
fn states_are_carried_from_window_to_window() -> Outcome {
    let p = Place::new()?;
    let mut found = vec![];
    for window in [1, 4, 13] {
        let set = format!("task.window={window}");
        let mut trainer = p.trainer(&["optimiser.rate=0", &set], Backend::fastest(), 2)?;
        let (mut sum, mut words) = (0.0, 0.0);
        for update in 0..trainer.recipe.task.text().expect("text").windows(3, 0).updates(1) {
            let steps = trainer.language.as_ref().expect("text").windows.at(update).steps as f64;
            sum += trainer.step()?.scores[0] * steps;
            words += steps;
        }
        found.push(sum / words);
        found.push(fit(&trainer, Split::Train, 3, window, Carry::All)?);
    }
    assert!(found.iter().all(|x| (x - found[0]).abs() < 1e-6), "{found:?}");
    let trainer = p.trainer(&[], Backend::fastest(), 1)?;
    let reset = fit(&trainer, Split::Train, 3, 4, Carry::None)?;
    let plain = fit(&trainer, Split::Train, 3, 4, Carry::AllButPlastic)?;
    assert!(
        (reset - found[0]).abs() > 1e-5 && (plain - found[0]).abs() > 1e-6 && (plain - reset).abs() > 1e-6
    );
    Ok(())
}

/// One row gives what it gives among others: the fan-out of the modulator is over receiving neurons for
/// every batch size.
#[test]
fn one_row_is_as_many() -> Outcome {
    let p = Place::new()?;
    let once = text(40);
    std::fs::write(p.path("valid.txt"), once.repeat(3))?;
    std::fs::write(p.path("test.txt"), &once)?;
    for backend in [Backend::Interp, Backend::CRANELIFT, Backend::fastest()] {
        let trainer = p.trainer(&[], backend, 2)?;
        let one = fit(&trainer, Split::Test, 1, 4, Carry::All)?;
        let three = fit(&trainer, Split::Valid, 3, 4, Carry::All)?;
        assert!((one - three).abs() < 1e-6 * one, "{one} {three}");
    }
    Ok(())
}

#[test]
fn threads_and_back_ends_give_the_same_bits() -> Outcome {
    let p = Place::new()?;
    let sets = ["task.vary=true", "task.window=9", "learner.word_dropout=0.2", "run.batch=5"];
    let after = |backend, threads| -> Result<(Vec<f64>, Vec<Vec<f32>>), Error> {
        let mut trainer = p.trainer(&sets, backend, threads)?;
        let losses = (0..9).map(|_| Ok(trainer.step()?.loss)).collect::<Result<_, Error>>()?;
        Ok((losses, trainer.params.raw.clone()))
    };
    let one = after(Backend::fastest(), 1)?;
    assert_eq!(one, after(Backend::fastest(), 3)?);
    assert_eq!(one, after(Backend::CRANELIFT, 2)?);
    let meant = after(Backend::Interp, 2)?;
    assert_eq!(meant, after(Backend::Interp, 1)?);
    for (a, b) in one.1.iter().flatten().zip(meant.1.iter().flatten()) {
        assert!((a - b).abs() < 1e-4, "{a} {b}");
    }
    Ok(())
}

#[test]
fn runs_go_on_with_the_same_bits() -> Outcome {
    let p = Place::new()?;
    let sets = "--data . --set optimiser.average_from=2 --set optimiser.epoch_decay=0.5";
    p.ok(&format!("train r.toml {sets} --out whole"))?;
    p.ok(&format!("train r.toml {sets} --out parts --updates 18"))?;
    // The data may have moved.
    std::fs::create_dir(p.path("moved"))?;
    for name in ["train.txt", "valid.txt", "test.txt"] {
        std::fs::copy(p.path(name), p.path("moved").join(name))?;
    }
    p.ok("train parts --resume --data moved --updates 36")?;
    for name in ["params.safetensors", "best.safetensors"] {
        let read = |run: &str| std::fs::read(p.path(run).join(name));
        assert!(read("whole")? == read("parts")?, "{name} differs");
    }
    let curve = |run: &str| -> Result<Vec<String>, std::io::Error> {
        let text = std::fs::read_to_string(p.path(run).join("metrics.jsonl"))?;
        Ok(text.lines().map(|l| l.split(",\"seconds\"").next().unwrap_or("").to_string()).collect())
    };
    assert_eq!(curve("whole")?, curve("parts")?);
    let last = std::fs::read_to_string(p.path("whole/metrics.jsonl"))?;
    assert_eq!(last.matches("valid_ppl").count(), 3, "{last}");
    Ok(())
}

#[test]
fn evaluation_and_samples() -> Outcome {
    let p = Place::new()?;
    p.ok("train r.toml --data . --out run")?;
    let table = p.ok("eval run")?;
    assert!(table.contains("valid") && table.contains("test") && table.contains("plastic reset"), "{table}");
    let json: serde_json::Value = serde_json::from_str(&p.ok("eval run --split test --batch 2 --json")?)?;
    assert!(json["test_ppl"].as_f64().is_some_and(|x| x > 1.0 && x < 11.0), "{json}");
    assert_eq!(
        json["test_words"],
        2 * (std::fs::read_to_string(p.path("test.txt"))?.split_whitespace().count() as u64 + 6) / 2 - 2
    );
    p.refuses("eval run --max-perplexity 1.01", &["above 1.01"])?;
    p.refuses("eval run --batch 30", &["too few for 30 rows"])?;
    let words = p.ok("sample run --tokens 12 --prompt w1 --seed 3")?;
    assert_eq!(words, p.ok("sample run --tokens 12 --prompt w1 --seed 3")?);
    assert!(words.starts_with("w1") && words.split_whitespace().all(|w| w.starts_with('w')), "{words}");
    p.ok("sample run --temperature 0")?;
    p.refuses("sample run --prompt w99", &["`w99`", "did you mean `w9`"])?;
    p.refuses("sample run --temperature -1", &["--temperature"])
}

#[test]
fn the_best_epoch_is_kept() -> Outcome {
    let p = Place::new()?;
    // What is learned of one text spoils what is expected of another: a single word again and again.
    std::fs::write(p.path("valid.txt"), "w9 w9 w9 w9\n".repeat(12))?;
    p.ok("train r.toml --data . --out run --set task.epochs=5")?;
    let text = std::fs::read_to_string(p.path("run/metrics.jsonl"))?;
    let lines = text.lines().map(serde_json::from_str::<serde_json::Value>).collect::<Result<Vec<_>, _>>()?;
    let valid: Vec<f64> = lines.iter().filter_map(|l| l["valid_ppl"].as_f64()).collect();
    let best = valid.iter().copied().fold(f64::INFINITY, f64::min);
    assert!(valid.last().is_some_and(|last| *last > best), "every epoch was better: {valid:?}");
    let json: serde_json::Value = serde_json::from_str(&p.ok("eval run --split valid --batch 2 --json")?)?;
    assert!((json["valid_ppl"].as_f64().unwrap_or(0.0) - best).abs() < 1e-4 * best, "{json} {valid:?}");
    Ok(())
}

#[test]
fn what_does_not_fit_is_refused() -> Outcome {
    let p = Place::new()?;
    p.refuses("train r.toml", &["no folder is given", "--data"])?;
    p.refuses("train r.toml --data nowhere", &["train.txt"])?;
    p.refuses("train r.toml --data . --set task.corpus=ptb", &["ptb.train.txt"])?;
    p.refuses("train r.toml --data . --set learner.tied=true", &["tied", "5", "6"])?;
    p.refuses("train r.toml --data . --set learner.name=squared-error", &["does not suit"])?;
    p.ok("train r.toml --data . --out run --updates 8")?;
    std::fs::create_dir(p.path("other"))?;
    for name in ["train.txt", "valid.txt", "test.txt"] {
        std::fs::write(p.path("other").join(name), "w0 zebra w2\n".repeat(20))?;
    }
    p.refuses("eval run --data other", &["vocabulary.txt:", "another vocabulary", "zebra"])?;
    p.refuses("train run --resume --data other --updates 9", &["another vocabulary"])?;
    std::fs::write(p.path("fast.bpm"), SPEC.replace("out y[N] = h'", "out a[N] = h'\n  out b[N] = h'"))?;
    p.refuses("train r.toml --data . --out new", &["no output `y`", "a, b"])?;
    std::fs::write(p.path("valid.txt"), "w1 w2\nw3 gnu\n")?;
    p.refuses("train r.toml --data . --out new", &["valid.txt:2", "`gnu`", "task.unknown"])?;
    std::fs::write(p.path("valid.txt"), "")?;
    p.refuses("train r.toml --data . --out new", &["valid.txt", "is empty"])
}

/// The spec's parameters go to PyTorch; embedding and decoder stay, unless they are asked for.
#[test]
fn the_spec_of_a_language_model_goes_to_pytorch() -> Outcome {
    let p = Place::new()?;
    p.ok("train r.toml --data . --out run --updates 8")?;
    let text = p.said("export run -o spec.safetensors")?;
    assert!(text.contains("left out") && text.contains("embedding"), "{text}");
    let text = p.said("export run -o all.safetensors --all")?;
    assert!(!text.contains("left out"), "{text}");
    let names = |file: &str| runtime::tensors::read(&p.path(file)).map(|(t, _)| t.contains_key("embedding"));
    assert!(!names("spec.safetensors")? && names("all.safetensors")?);
    let start = "train r.toml --data . --updates 0";
    let text = p.said(&format!("{start} --params spec.safetensors --out one"))?;
    assert!(text.contains("has no embedding") && text.contains("drawn anew"), "{text}");
    let text = p.said(&format!("{start} --params all.safetensors --out two"))?;
    assert!(!text.contains("drawn anew"), "{text}");
    assert_eq!(p.ok("eval run --split test")?, p.ok("eval two --split test")?);
    assert_ne!(p.ok("eval run --split test")?, p.ok("eval one --split test")?);
    Ok(())
}

/// Enough to predict who has what better than by the grammar alone.
#[test]
fn the_generated_text_is_learned() -> Outcome {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/language-model/small.toml");
    let p = Place::new()?;
    p.ok(&format!("train {} --out run", folder.display()))?;
    p.ok("eval run --max-perplexity 6.0").map(|_| ())
}
