//! A second opinion: values and gradients of every spec from PyTorch, which differentiates by itself.
//!
//! `torch/second_opinion.py` emits each spec as a PyTorch module, runs it in double precision and writes what it
//! finds into `torch/fixtures/`. The interpreter must agree to 1e-9, machine code to what single precision gives.
//! Parameters, inputs, initial states and cotangents are drawn there and here from one generator, by name. Sizes
//! are functions of the names of axes. `--nocapture` prints the largest error of every spec.

mod support;

use compiler::back::torch::{self, Signature};
use compiler::gradcheck::{Case, Random};
use compiler::interp::{Cotangents, Interpreter, Sequence, Tensor};
use compiler::ir::{Shape, Sizes};
use compiler::model::{Init, Model, Role};
use runtime::engine::{Backend, Engine, EngineOptions};
use runtime::rng::fnv1a;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use support::{files, root, run_row};

const STEPS: usize = 5;
const ROWS: usize = 2;
const PENALTY_BAR: f64 = 0.7;

/// Tensors by name.
type Found = BTreeMap<String, Vec<f64>>;

/// A generator that starts at a name.
fn drawn(name: &str, count: usize) -> Vec<f64> {
    let mut random = Random::new(fnv1a(name.as_bytes()));
    (0..count).map(|_| random.symmetric()).collect()
}

/// The fixture of a file: what PyTorch found, by spec.
fn fixture(file: &Path) -> BTreeMap<String, Found> {
    let below = |folder: &str| file.strip_prefix(root().join(folder)).ok().map(Path::to_path_buf);
    let place = below("specs").or_else(|| below("tests/torch").map(|p| Path::new("language").join(p)));
    let path = root().join("tests/torch/fixtures").join(place.expect("a spec")).with_extension("txt");
    let text = std::fs::read_to_string(&path).unwrap_or_else(|e| {
        panic!("{}: {e}; tests/torch/second_opinion.py BPMC --write makes it", path.display())
    });
    let mut found: BTreeMap<String, Found> = BTreeMap::new();
    let mut spec = String::new();
    for line in text.lines() {
        let mut words = line.split_whitespace();
        let name = words.next().expect("a line has a name").to_owned();
        if name == "spec" {
            words.next().expect("a name").clone_into(&mut spec);
            found.insert(spec.clone(), Found::new());
            continue;
        }
        let numbers = words.skip(1).map(|w| w.parse().expect("a number")).collect();
        found.get_mut(&spec).expect("a spec before its tensors").insert(name, numbers);
    }
    found
}

/// Every model that has, or must have, a fixture.
fn models() -> Vec<(PathBuf, Arc<Model>)> {
    let mut found = vec![];
    for path in files("specs", "bpm").into_iter().chain(files("tests/torch", "bpm")) {
        let text = std::fs::read_to_string(&path).expect("the spec is readable");
        let checked = compiler::check::check(&text);
        assert!(checked.diagnostics.iter().all(|d| !d.is_error()), "{}", path.display());
        found.extend(checked.models.into_iter().map(|m| (path.clone(), Arc::new(m))));
    }
    assert!(80 < found.len(), "the library has specs");
    found
}

/// A model with sizes, and the numbers of every row.
struct Subject {
    model: Arc<Model>,
    sizes: Sizes,
    words: Signature,
    /// Raw parameters.
    raw: Vec<Vec<f64>>,
    cases: Vec<Case>,
}

impl Subject {
    fn new(model: Arc<Model>, fixture: &Found) -> Subject {
        let words = torch::signature(&model);
        let size = |word: &String| 3 + (fnv1a(word.as_bytes()) % 3) as usize;
        let named = model.axes.named.iter().zip(&words.axes);
        let bound = named.map(|(a, word)| (a.name.clone(), size(word))).collect();
        let sizes = Sizes::bind(&model.axes, &bound).expect("sizes");
        let mut raw = vec![];
        for p in &model.params {
            let dims: Vec<usize> = p.dims.iter().map(|a| sizes.of(*a)).collect();
            let scale = if dims.len() == 2 { 1.2 / (dims[1] as f64).sqrt() } else { 0.8 };
            let numbers = drawn(&format!("param {}", torch::key(p)), dims.iter().product());
            raw.push(numbers.iter().map(|x| scale * x).collect::<Vec<f64>>());
        }
        let mut subject = Subject { model, sizes, words, raw, cases: vec![] };
        subject.cases = (0..ROWS).map(|row| subject.case(row, fixture)).collect();
        subject
    }

    fn count(&self, shape: Shape) -> usize {
        self.sizes.count(shape)
    }

    fn params(&self) -> Vec<Tensor> {
        let value = |(p, raw): (&compiler::model::Param, &Vec<f64>)| {
            let range = p.constraint.range(&self.sizes);
            Arc::new(raw.iter().map(|x| range.value(*x)).collect())
        };
        self.model.params.iter().zip(&self.raw).map(value).collect()
    }

    fn is_reset(&self) -> bool {
        self.model.inputs.iter().any(|i| i.role == Role::Reset)
    }

    /// An input at a step, for a row.
    fn input(&self, k: usize, t: usize, row: usize) -> Tensor {
        let (input, word) = (&self.model.inputs[k], &self.words.inputs[k]);
        let count = self.count(input.shape);
        let locked = matches!(&input.role, Role::Noise(noise) if noise.locked);
        let (steps, t) = if locked { (1, 0) } else { (STEPS, t) };
        let all = drawn(&format!("in {word}"), steps * ROWS * count);
        let part = &all[(t * ROWS + row) * count..][..count];
        let seen = |x: &f64| match input.role {
            Role::Reset => f64::from(*x > 0.5),
            _ if x.abs() < 0.25 => 0.0,
            _ => *x,
        };
        Arc::new(part.iter().map(seen).collect())
    }

    /// Numbers of a row, by step: cotangents of outputs.
    fn bars(&self, t: usize, row: usize) -> Vec<Tensor> {
        let bar = |(o, word): (&compiler::model::Output, &String)| {
            let count = self.count(o.shape);
            let all = drawn(&format!("bar {word}"), STEPS * ROWS * count);
            Arc::new(all[(t * ROWS + row) * count..][..count].to_vec())
        };
        self.model.outputs.iter().zip(&self.words.outputs).map(bar).collect()
    }

    fn case(&self, row: usize, fixture: &Found) -> Case {
        let params = self.params();
        let interpreter = Interpreter::new(self.model.clone(), self.sizes.clone());
        let base = interpreter.initial(&params);
        let scale = if self.is_reset() { 0.0 } else { 0.4 };
        let states = self.model.states.iter().zip(&self.words.states).zip(&base);
        let initial = states.map(|((s, word), base)| {
            let count = self.count(s.shape);
            if let Some(start) = fixture.get(&format!("init.{word}")) {
                return Arc::new(start[row * count..][..count].to_vec());
            }
            let added = drawn(&format!("init {word}"), ROWS * count);
            Arc::new((0..count).map(|k| base[k] + scale * added[row * count + k]).collect())
        });
        let initial = initial.collect();
        let last = self.model.states.iter().zip(&self.words.states).map(|(s, word)| {
            let count = self.count(s.shape);
            Arc::new(drawn(&format!("last {word}"), ROWS * count)[row * count..][..count].to_vec())
        });
        let last = last.collect();
        let step = |t: usize| (0..self.model.inputs.len()).map(|k| self.input(k, t, row)).collect();
        let inputs: Vec<Vec<Tensor>> = (0..STEPS).map(step).collect();
        let asked = |(i, x): (&compiler::model::Input, &Tensor)| i.role == Role::Reset && x[0] != 0.0;
        let resets = inputs.iter().map(|step| self.model.inputs.iter().zip(step).any(asked)).collect();
        Case {
            params,
            sequence: Sequence { inputs, initial, resets },
            bars: Cotangents {
                outputs: (0..STEPS).map(|t| self.bars(t, row)).collect(),
                penalty: PENALTY_BAR,
                last,
            },
        }
    }

    /// Gradients with respect to values as those with respect to raw numbers, scaled.
    fn chained(&self, k: usize, gradient: &[f64]) -> Vec<f64> {
        let p = &self.model.params[k];
        let (range, scale) = (p.constraint.range(&self.sizes), p.gradscale.eval(&self.sizes));
        gradient.iter().zip(&self.raw[k]).map(|(g, raw)| g * range.slope(*raw) * scale).collect()
    }

    /// Names of the results of rows, by step and row or by row, put one after the other.
    fn collect(&self, rows: &[Row]) -> Found {
        let mut found = Found::new();
        for (k, word) in self.words.outputs.iter().enumerate() {
            let parts =
                (0..STEPS).flat_map(|t| rows.iter().flat_map(move |r| r.outputs[t][k].iter().copied()));
            found.insert(format!("out.{word}"), parts.collect());
        }
        if self.model.step.results.iter().any(|(s, _)| *s == compiler::ir::Sink::Penalty) {
            let parts = (0..STEPS).flat_map(|t| rows.iter().map(move |r| r.penalties[t]));
            found.insert("penalty".to_owned(), parts.collect());
        }
        for (k, word) in self.words.states.iter().enumerate() {
            let of = |f: fn(&Row) -> &Vec<Vec<f64>>| rows.iter().flat_map(|r| f(r)[k].clone()).collect();
            found.insert(format!("state.{word}"), of(|r| &r.states));
            found.insert(format!("grad.init.{word}"), of(|r| &r.starts));
        }
        for (k, (input, word)) in self.model.inputs.iter().zip(&self.words.inputs).enumerate() {
            if matches!(input.role, Role::Noise(_)) {
                continue;
            }
            let parts =
                (0..STEPS).flat_map(|t| rows.iter().flat_map(move |r| r.inputs[t][k].iter().copied()));
            found.insert(format!("grad.in.{word}"), parts.collect());
        }
        found
    }

    /// What the interpreter finds.
    fn interpreted(&self) -> Found {
        let interpreter = Interpreter::new(self.model.clone(), self.sizes.clone());
        let mut rows = vec![];
        let mut boundary: BTreeMap<_, Vec<f64>> = BTreeMap::new();
        let mut initial: Vec<Vec<f64>> =
            self.model.states.iter().map(|s| vec![0.0; self.count(s.shape)]).collect();
        for case in &self.cases {
            let run = interpreter.run(&case.params, &case.sequence);
            let gradient = interpreter.backward(&case.sequence, &run, &case.bars);
            let outputs = |t: usize| {
                (0..self.model.outputs.len()).map(|k| interpreter.output(&run, t, k).to_vec()).collect()
            };
            let inputs = |t: usize| {
                let bar = |k: usize| match &gradient.inputs[t][k] {
                    Some(bar) => bar.to_vec(),
                    None => vec![0.0; self.count(self.model.inputs[k].shape)],
                };
                (0..self.model.inputs.len()).map(bar).collect()
            };
            let first = gradient.starts.iter().find(|(t, _)| *t == 0).expect("a row has a start");
            // A reset before the first step puts the given states away.
            let used = f64::from(!case.sequence.resets[0]);
            rows.push(Row {
                outputs: (0..STEPS).map(outputs).collect(),
                penalties: (0..STEPS).map(|t| interpreter.penalty(&run, t)).collect(),
                states: run.states[STEPS].iter().map(|s| s.to_vec()).collect(),
                starts: first.1.iter().map(|s| s.iter().map(|x| used * x).collect()).collect(),
                inputs: (0..STEPS).map(inputs).collect(),
            });
            for (value, bar) in gradient.boundary {
                add(boundary.entry(value).or_insert_with(|| vec![0.0; bar.len()]), &bar);
            }
            initial.iter_mut().zip(&gradient.initial).for_each(|(sum, bar)| add(sum, bar));
        }
        let gradients = interpreter.finish(&self.cases[0].params, &boundary, &initial);
        self.with_gradients(self.collect(&rows), &gradients)
    }

    fn with_gradients(&self, mut found: Found, gradients: &[Vec<f64>]) -> Found {
        for (k, p) in self.model.params.iter().enumerate().filter(|(_, p)| p.learned) {
            found.insert(format!("grad.{}", torch::key(p)), self.chained(k, &gradients[k]));
        }
        found
    }

    /// What machine code finds. Where states are reset, gradients of initial states are sums over resets, which
    /// nothing here takes apart.
    fn compiled(&self, backend: Backend) -> Found {
        let options = EngineOptions { input_bars: true, ..EngineOptions::default() };
        let engine =
            Engine::new(self.model.clone(), self.sizes.clone(), backend, &options).expect("an engine");
        let wide = |x: &[f32]| x.iter().map(|v| f64::from(*v)).collect::<Vec<f64>>();
        let mut rows = vec![];
        let mut gradients: Vec<Vec<f64>> = self.raw.iter().map(|x| vec![0.0; x.len()]).collect();
        for case in &self.cases {
            let row = run_row(&engine, case);
            gradients.iter_mut().zip(&row.params).for_each(|(sum, bar)| add(sum, &wide(bar)));
            for (s, bar) in self.model.states.iter().zip(&row.initial) {
                if let Init::Param(p) = s.init {
                    add(&mut gradients[p.index()], &wide(bar));
                }
            }
            let inputs = |step: &Vec<Option<Vec<f32>>>| {
                let bar = |(k, bar): (usize, &Option<Vec<f32>>)| match bar {
                    Some(bar) => wide(bar),
                    None => vec![0.0; self.count(self.model.inputs[k].shape)],
                };
                step.iter().enumerate().map(bar).collect()
            };
            rows.push(Row {
                outputs: row.outputs.iter().map(|step| step.iter().map(|x| wide(x)).collect()).collect(),
                penalties: wide(&row.penalties),
                states: row.states.iter().map(|x| wide(x)).collect(),
                starts: row.initial.iter().map(|x| wide(x)).collect(),
                inputs: row.inputs.iter().map(inputs).collect(),
            });
        }
        let mut found = self.with_gradients(self.collect(&rows), &gradients);
        if self.is_reset() {
            found.retain(|name, _| !name.starts_with("grad.init."));
        }
        found
    }
}

/// What one row gives.
struct Row {
    outputs: Vec<Vec<Vec<f64>>>,
    penalties: Vec<f64>,
    states: Vec<Vec<f64>>,
    /// Gradients of the initial states.
    starts: Vec<Vec<f64>>,
    inputs: Vec<Vec<Vec<f64>>>,
}

fn add(sum: &mut [f64], x: &[f64]) {
    sum.iter_mut().zip(x).for_each(|(s, x)| *s += x);
}

/// The largest error relative to the norm of the expected tensor, or to `floor`, and its name.
fn worst(found: &Found, expected: &Found, floor: f64) -> (f64, String) {
    let mut worst = (0.0, String::new());
    for (name, x) in found {
        let y = expected.get(name).unwrap_or_else(|| panic!("the fixture has {name}"));
        assert_eq!(x.len(), y.len(), "{name} has the expected size");
        let norm = y.iter().map(|v| v * v).sum::<f64>().sqrt();
        let off = x.iter().zip(y).map(|(a, b)| (a - b).powi(2)).sum::<f64>().sqrt() / norm.max(floor);
        assert!(off.is_finite(), "{name} is finite");
        if worst.0 < off {
            worst = (off, name.clone());
        }
    }
    worst
}

/// Every model with what PyTorch says of it.
fn subjects() -> Vec<(String, Subject, Found)> {
    let mut all = vec![];
    for (path, model) in models() {
        let expected = fixture(&path).remove(&model.name);
        let expected = expected.unwrap_or_else(|| panic!("{}: no fixture of {}", path.display(), model.name));
        let name = format!("{}: {}", path.display(), model.name);
        let subject = Subject::new(model, &expected);
        all.push((name, subject, expected));
    }
    all
}

#[test]
fn the_interpreter_agrees_with_pytorch() {
    for (name, subject, expected) in subjects() {
        let found = subject.interpreted();
        let theirs = expected.keys().filter(|k| !k.starts_with("init."));
        assert_eq!(found.keys().collect::<Vec<_>>(), theirs.collect::<Vec<_>>(), "{name}");
        let (error, tensor) = worst(&found, &expected, 0.1);
        println!("{name}, {} tensors, interp: {error:.1e}", found.len());
        assert!(error < 1e-9, "{name}: {tensor} is off by {error:.1e}");
        let vanishing = found.values().all(|x| x.iter().all(|v| v.abs() < 1e-6));
        assert!(!vanishing, "{name}: nothing is compared");
    }
}

#[test]
fn machine_code_agrees_with_pytorch() {
    let x64 = compiler::back::x64::lacking().is_none();
    if !x64 {
        println!("NOT RUN: the back end x64 needs AVX2 and FMA");
    }
    for (name, subject, expected) in subjects() {
        for backend in [Backend::CRANELIFT].into_iter().chain(x64.then_some(Backend::X64)) {
            let (error, tensor) = worst(&subject.compiled(backend), &expected, 0.1);
            println!("{name}, {}: {error:.1e}", backend.name());
            assert!(error < 1e-4, "{name}, {}: {tensor} is off by {error:.1e}", backend.name());
        }
    }
}

#[test]
fn every_spec_is_emitted_for_reading() {
    for (path, model) in models() {
        let text = torch::emit(&model, &BTreeMap::new(), &path.display().to_string());
        let class = format!("\nclass {}(nn.Module):\n", torch::class_name(&model));
        assert!(text.contains(&class), "{}: {class}", path.display());
        let root = root().display().to_string();
        assert!(!text.contains(&root), "{}: a path of this machine", path.display());
        for p in model.params.iter().filter(|p| p.learned) {
            let place = torch::key(p);
            let place = place.trim_end_matches(".raw");
            assert!(text.contains(&format!("self.{place} = ")), "{}: {place}", path.display());
        }
        assert!(text.ends_with('\n') && !text.contains("\n\n\n\n"), "{}", path.display());
    }
}
