//! A folder in which `bpm` is called as a user calls it: what the tests of its commands share.
#![allow(dead_code, reason = "every test takes a part of it")]

use serde_json::Value;
use std::ffi::OsString;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

pub(crate) type Found<T> = Result<T, Box<dyn std::error::Error>>;
pub(crate) type Outcome = Found<()>;

/// A completion of patterns with one neuron for every bit.
pub(crate) const MATCH: &str = "spec match {
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

pub(crate) struct Place {
    folder: tempfile::TempDir,
    /// What is set where `bpm` runs.
    pub(crate) environment: Vec<(&'static str, OsString)>,
}

/// Whether there is a C++ compiler for the emulated device; if not, it is said.
pub(crate) fn has_compiler() -> bool {
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
    /// A folder with these files.
    pub(crate) fn of(files: &[(&str, &str)]) -> std::io::Result<Place> {
        let place = Place { folder: tempfile::tempdir()?, environment: vec![] };
        for (name, text) in files {
            std::fs::write(place.path(name), text)?;
        }
        Ok(place)
    }

    /// The same with an emulated device and a cache of its own.
    pub(crate) fn with_device(mut self, memory: usize) -> Place {
        self.give_device(memory);
        self.environment.push(("BPM_CACHE", self.path("cache").into()));
        self
    }

    /// An emulated device with so many bytes of memory; 1: enough.
    pub(crate) fn give_device(&mut self, memory: usize) {
        self.take_device();
        self.environment.push(("BPM_EMULATED_CUDA", memory.to_string().into()));
    }

    /// No device.
    pub(crate) fn take_device(&mut self) {
        self.environment.retain(|(name, _)| *name != "BPM_EMULATED_CUDA");
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub(crate) fn command(&self, args: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_bpm"));
        command.current_dir(self.folder.path()).env("RUST_BACKTRACE", "0").stdin(Stdio::null());
        command.env_remove("BPM_EMULATED_CUDA").envs(self.environment.iter().map(|(k, v)| (k, v)));
        command.args(args.split_whitespace());
        command
    }

    pub(crate) fn bpm(&self, args: &str) -> std::io::Result<Output> {
        self.command(args).output()
    }

    /// Runs a command that must succeed; gives what it says on both channels.
    pub(crate) fn both(&self, args: &str) -> Found<(String, String)> {
        let out = self.bpm(args)?;
        let said = String::from_utf8(out.stderr)?;
        assert_eq!(out.status.code(), Some(0), "{args}: {said}");
        Ok((String::from_utf8(out.stdout)?, said))
    }

    /// The same; gives stdout.
    pub(crate) fn ok(&self, args: &str) -> Found<String> {
        self.both(args).map(|(text, _)| text)
    }

    /// The same; gives stderr.
    pub(crate) fn said(&self, args: &str) -> Found<String> {
        self.both(args).map(|(_, said)| said)
    }

    /// Runs a command that must fail with a code and say all of these words.
    pub(crate) fn fails(&self, args: &str, code: i32, words: &[&str]) -> Outcome {
        self.fails_with(args, &[code], words)
    }

    /// The same with a mistake in a spec, a recipe or a file.
    pub(crate) fn refuses(&self, args: &str, words: &[&str]) -> Outcome {
        self.fails_with(args, &[1, 2], words)
    }

    fn fails_with(&self, args: &str, codes: &[i32], words: &[&str]) -> Outcome {
        let out = self.bpm(args)?;
        let text = String::from_utf8_lossy(&out.stderr);
        assert!(out.status.code().is_some_and(|code| codes.contains(&code)), "{args}: {text}");
        assert!(!text.contains("panicked"), "{text}");
        for word in words {
            assert!(text.contains(word), "{args}: no `{word}` in\n{text}");
        }
        Ok(())
    }

    pub(crate) fn json(&self, file: &str) -> Found<Value> {
        Ok(serde_json::from_str(&std::fs::read_to_string(self.path(file))?)?)
    }

    /// What a run has measured, without its clock.
    pub(crate) fn metrics(&self, run: &str) -> Found<Vec<Value>> {
        let text = std::fs::read_to_string(self.path(run).join("metrics.jsonl"))?;
        let mut lines: Vec<Value> = text.lines().map(serde_json::from_str).collect::<Result<_, _>>()?;
        lines.iter_mut().filter_map(Value::as_object_mut).for_each(|line| drop(line.remove("seconds")));
        Ok(lines)
    }

    /// The checkpoints of a run, in their order.
    pub(crate) fn checkpoints(&self, run: &str) -> std::io::Result<Vec<PathBuf>> {
        let mut found = vec![];
        for entry in std::fs::read_dir(self.path(run).join("checkpoints"))? {
            found.push(entry?.path());
        }
        found.retain(|p| p.extension().is_some_and(|x| x == "safetensors"));
        found.sort();
        Ok(found)
    }

    /// Compares all that two runs have measured: the first updates of a run do not amplify what single precision rounds
    /// otherwise.
    pub(crate) fn agree(&self, run: &str, expected: &str) -> Outcome {
        let (found, expected) = (self.metrics(run)?, self.metrics(expected)?);
        assert!(!expected.is_empty() && expected.len() == found.len(), "{run}");
        for (x, y) in expected.iter().zip(&found) {
            for (name, value) in x.as_object().into_iter().flatten() {
                let (a, b) = (value.as_f64().unwrap_or(0.0), y[name].as_f64().unwrap_or(f64::NAN));
                assert!((a - b).abs() <= 1e-4 * a.abs().max(1e-2), "{run}: {name} is {b}, not {a}");
            }
        }
        Ok(())
    }

    /// Writes the splits of a text of four words, the first of so many words, into a folder `words`.
    pub(crate) fn write_words(&self, train: usize) -> Outcome {
        std::fs::create_dir(self.path("words"))?;
        let words = ["a", "b", "c", "d"];
        let text = |n: usize, k: usize| {
            (0..n).map(|t| words[(t * t + t / 3 + k * t) % 4]).collect::<Vec<_>>().join(" ")
        };
        for (name, count) in [("train", train), ("valid", 40), ("test", 40)] {
            std::fs::write(self.path("words").join(format!("{name}.txt")), text(count, count % 7) + "\n")?;
        }
        Ok(())
    }
}
