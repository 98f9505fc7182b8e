//! Models from a generator: several states, several plastic links of different shapes, rules drawn
//! from the language. Each one is checked, differentiated and compared: the adjoint with finite
//! differences and with forward mode, machine code with the interpreter, machine code with
//! itself for other checkpoints and for states that are read on the way, and libtorch, where it is
//! built in, with the interpreter.
//!
//! Everything is bounded by `tanh`, `clip` or a decay, so that a run of a few steps amplifies
//! rounding errors little. `BPM_CASES` sets the number of models, `BPM_SEED` the random sequence.
//! What fails is shrunk; its text belongs into `tests/cases/`, which this file runs as well.

mod support;

use compiler::gradcheck::{self, Options, random_case};
use compiler::ir::Sizes;
use compiler::model::Model;
use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestCaseError, TestRng, TestRunner};
use runtime::engine::{Backend, Engine, EngineOptions};
use runtime::exact::Dtype;
use runtime::gradcheck::Check;
use std::cell::Cell;
use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::Arc;
use support::{Manner, bits, compare_case, files, is_at_a_kink, model_of, run_in_manner, single_precision};

/// Single precision has 1e-7; a run of nine steps with products, sums of 33 terms and normalisations
/// keeps four digits.
const SINGLE: f64 = 1e-3;

/// A plastic link.
#[derive(Clone, Debug)]
struct Link {
    post: bool,
    pre: bool,
    rule: u8,
    coefficient: u8,
    source: u8,
    rate: u8,
    learned: bool,
}

/// A model and how it is run.
#[derive(Clone, Debug)]
struct Plan {
    n: usize,
    m: usize,
    steps: usize,
    interval: usize,
    seed: u64,
    scale: f64,
    reset: Option<usize>,
    links: Vec<Link>,
    squash: u8,
    outputs: Vec<u8>,
    penalty: u8,
    hold: bool,
    learned_state: bool,
}

fn link() -> impl Strategy<Value = Link> {
    (any::<bool>(), any::<bool>(), 0..14u8, 0..6u8, 0..5u8, 0..5u8, any::<bool>()).prop_map(
        |(post, pre, rule, coefficient, source, rate, learned)| Link {
            post,
            pre,
            rule,
            coefficient,
            source,
            rate,
            learned,
        },
    )
}

fn plan() -> impl Strategy<Value = Plan> {
    let size = || prop::sample::select(vec![1usize, 2, 3, 5, 31, 33]);
    let run = (size(), size(), 1..10usize, 1..6usize, 0..1000u64);
    let start = (prop::sample::select(vec![0.1, 0.5, 1.5]), prop::option::of(0..6usize));
    let rest = (0..6u8, prop::collection::vec(0..14u8, 1..4), 0..4u8, any::<bool>(), any::<bool>());
    (run, start, prop::collection::vec(link(), 1..4), rest).prop_map(|(run, start, links, rest)| Plan {
        n: run.0,
        m: run.1,
        steps: run.2,
        interval: run.3,
        seed: run.4,
        scale: start.0,
        reset: start.1,
        links,
        squash: rest.0,
        outputs: rest.1,
        penalty: rest.2,
        hold: rest.3,
        learned_state: rest.4,
    })
}

/// An axis of the spec.
fn axis(first: bool) -> &'static str {
    if first { "N" } else { "M" }
}

/// The sending activity of a link, from before its write.
fn sender(first: bool, source: u8) -> &'static str {
    match (first, source) {
        (true, 0) => "y",
        (true, 1) => "u",
        (true, 2) => "tanh(u + y)",
        (true, 3) => "softmax(2 * y)",
        (true, _) => "(0.5 * y + sin * u)",
        (false, 0) => "z",
        (false, 1) => "w",
        (false, 2) => "tanh(w - z)",
        (false, 3) => "softmax(2 * w)",
        (false, _) => "(0.5 * z + 0.3 * w)",
    }
}

/// The receiving activity of a link, after the step.
fn receiver(first: bool) -> &'static str {
    if first { "y'" } else { "z'" }
}

impl Link {
    /// The effective weights, without parentheses.
    fn weights(&self, k: usize) -> String {
        match self.coefficient {
            0 => format!("H{k}"),
            1 => format!("W{k} + s * H{k}"),
            2 => format!("W{k} + r{k}[j] * H{k}"),
            3 => format!("W{k} + c{k}[i] * H{k}"),
            4 => format!("W{k} + A{k} * H{k}"),
            _ => format!("W{k} + Q{k} * H{k}"),
        }
    }

    fn rate(&self, k: usize) -> String {
        match self.rate {
            0 => "0.4".to_owned(),
            1 => "s".to_owned(),
            2 => "m".to_owned(),
            3 => format!("(m * r{k} + 0.2)[j]"),
            _ => "r".to_owned(),
        }
    }

    fn uses_trace(&self) -> bool {
        matches!(self.rule, 4 | 5)
    }

    /// The write.
    fn equation(&self, k: usize) -> String {
        let (h, q, rate) = (format!("H{k}"), receiver(self.post), self.rate(k));
        let x = sender(self.pre, self.source).replace("sin", "0.3");
        let pair = format!("{q}[j] * {x}[i]");
        match self.rule {
            0 => format!("clip({h} + {rate} * {pair}, -0.4, 0.4)"),
            1 => format!("0.8 * {h} + 0.2 * tanh({rate} * {pair})"),
            2 => format!("clip({h} + 0.3 * {q}[j] * ({x}[i] - {q}[j] * {h}), -1, 1)"),
            3 => format!("clip({h} + 0.4 * ({q} - {h} @ {x})[j] * {x}[i], -1, 1)"),
            4 => format!("clip({h} + {rate} * E{k}, -0.3, 0.3)"),
            5 => format!("clip(0.9 * {h} + {rate} * E{k}', -0.3, 0.3)"),
            6 => format!("tanh(0.9 * {h} + {rate} * {pair})"),
            7 => format!("softclip(clip({h}, -1, 1), 0.5 * tanh({rate} * {pair}), -1, 1)"),
            8 => format!("(0.9 * {h} + 0.3 * {pair}) / (1 + l2row({h})[j])"),
            9 => format!("where({q}[j] > 0, clip({h} + {rate} * {pair}, -0.6, 0.6), 0.9 * {h})"),
            10 => format!("frobcap({h} + 0.2 * {pair}, 1.5)"),
            11 => format!("clip(0.7 * {h} + A{k} * {pair} + {rate} * W{k}, -0.5, 0.5)"),
            12 => format!("clip(0.9 * {h} + 0.2 * {q}[j] * ({x} - {h}^T @ {q})[i], -1, 1)"),
            _ => format!("clip(0.8 * {h} + {rate} * {pair} * (1 - {h} * {h}), -0.7, 0.7)"),
        }
    }
}

impl Plan {
    /// The text of the model.
    fn text(&self) -> String {
        let mut t = String::from("spec random {\n  axis N = ?, M = ?\n  in u[N], w[M]\n  in mod r\n");
        if self.hold {
            t += "  in mask f\n";
        }
        t += "  learn s = 0.3\n  learn wm[N] ~ linear\n";
        if self.learned_state {
            t += "  state y[N] = learn, z[M] = 0\n";
        } else {
            t += "  state y[N] = 0, z[M] = 0\n";
        }
        for (k, link) in self.links.iter().enumerate() {
            let (p, q) = (axis(link.post), axis(link.pre));
            let _ = writeln!(t, "  learn W{k}[{p},{q}], A{k}[{p},{q}] ~ linear");
            let _ = writeln!(t, "  learn r{k}[{p}], c{k}[{q}] ~ linear");
            let _ = writeln!(t, "  learn Q{k}[{p},{q}] ~ linear rank 2");
            let start = if link.learned { "learn ~ normal(0, 0.1)" } else { "0" };
            let _ = writeln!(t, "  plastic H{k}[{p},{q}] = {start} unbounded");
            if link.uses_trace() {
                let _ = writeln!(t, "  trace E{k}[{p},{q}] = 0");
            }
        }
        t += &self.drives();
        t += &self.writes();
        t += &self.results();
        t + "}\n"
    }

    /// What drives the vector states.
    fn drives(&self) -> String {
        let (mut y, mut z) = (String::from("u"), String::from("w"));
        for (k, link) in self.links.iter().enumerate() {
            let x = sender(link.pre, link.source).replace("sin", "0.3");
            let term = format!(" + ({}) @ {x}", link.weights(k));
            if link.post {
                y += &term
            } else {
                z += &term
            }
            // The same link backward, from the old activity of its receivers.
            if link.rate % 2 == 1 {
                let back = if link.post { "y" } else { "z" };
                let term = format!(" + 0.5 * (({})^T @ {back})", link.weights(k));
                if link.pre { y += &term } else { z += &term }
            }
        }
        let squash = |x: &str| match self.squash {
            0 | 1 => format!("tanh({x})"),
            2 => format!("sigmoid({x}) - 0.5"),
            3 => format!("clip({x}, -0.8, 0.8)"),
            4 => format!("relu(tanh({x}))"),
            _ => format!("tanh(softplus({x}) - 0.5)"),
        };
        let z = if self.squash.is_multiple_of(2) { format!("{z} + mean(y')") } else { z };
        format!(
            "  y' = {}\n  z' = {}\n  modulator m = tanh(wm . y')\n  g = m + r + s\n",
            squash(&y),
            squash(&z)
        )
    }

    fn writes(&self) -> String {
        let mut t = String::new();
        for (k, link) in self.links.iter().enumerate() {
            let _ = writeln!(t, "  H{k}'[j,i] = {}", link.equation(k));
            if link.uses_trace() {
                let (q, x) = (receiver(link.post), sender(link.pre, link.source).replace("sin", "0.3"));
                let _ = writeln!(t, "  E{k}'[j,i] = (1 - 0.2) * E{k} + 0.2 * {q}[j] * {x}[i]");
            }
        }
        // A modulator must reach a plastic state or a trace.
        t += "  trace e[N] = 0\n  e' = 0.9 * e + 0.1 * m * y'\n";
        if self.hold {
            t += "  hold H0 when f\n";
        }
        t
    }

    fn results(&self) -> String {
        let mut t = String::from("  out y'\n  out z'\n  out g\n  out e'\n");
        let (p, q) = (self.links[0].post, self.links[0].pre);
        for (k, output) in self.outputs.iter().enumerate() {
            let _ = match output {
                0 => writeln!(t, "  out o{k} = mean(H0' * H0')"),
                1 => writeln!(t, "  out o{k}[{}] = H0' @ {}", axis(p), receiver(q)),
                2 => writeln!(t, "  out o{k}[{}] = H0'^T @ {}", axis(q), receiver(p)),
                3 => writeln!(t, "  out o{k}[{}] = rowsum(H0' * W0)", axis(p)),
                4 => writeln!(t, "  out o{k}[{}] = 0.2 * colsum(H0)", axis(q)),
                5 => writeln!(t, "  out o{k}[N+M] = concat(y', z')"),
                6 => writeln!(t, "  v{k} = concat(tanh(y'), w, u)\n  out o{k}[2] = slice(v{k}, 1, 2)"),
                7 => writeln!(t, "  v{k} = sigmoid(concat(z', y', u))\n  out o{k} = sum(slice(v{k}, M, N))"),
                8 => writeln!(t, "  out o{k}[N] = softmax(3 * y')"),
                9 => writeln!(t, "  out o{k} = norm(z' + 0.5) + maximum(y')"),
                10 => writeln!(t, "  out o{k}[M] = min(z', w) * max(z, 0.1 * w)"),
                11 => writeln!(t, "  out o{k} = y'[0] * z'[0] + abs(mean(u))"),
                12 => writeln!(t, "  out o{k} = frob(W0 + H0') + maxabs(H0' + W0)"),
                _ => writeln!(
                    t,
                    "  v{k} = concat(y', u)\n  (a{k}, b{k}) = split(v{k}, 2)\n  out o{k} = a{k} . b{k}"
                ),
            };
        }
        t += match self.penalty {
            0 => "  penalty 0.1 * mean(H0' * H0')\n",
            1 => "  penalty mean(y' * y') + s * s\n",
            _ => "",
        };
        t
    }

    fn options(&self) -> Options {
        let reset_at = self.reset.filter(|t| *t < self.steps);
        Options {
            seed: self.seed,
            steps: self.steps,
            state_scale: self.scale,
            reset_at,
            ..Options::default()
        }
    }
}

fn sizes_of(model: &Model, n: usize, m: usize) -> Sizes {
    let all = [("N", n), ("M", m)];
    let known = |name: &str| model.axes.named.iter().any(|a| a.name == name);
    let bound: BTreeMap<String, usize> =
        all.iter().filter(|(a, _)| known(a)).map(|(a, s)| ((*a).to_owned(), *s)).collect();
    Sizes::bind(&model.axes, &bound).expect("sizes for every axis")
}

/// All comparisons on one model. Gives whether the case was set aside because rounding decides it.
fn examine(
    model: &Arc<Model>,
    sizes: &Sizes,
    options: &Options,
    interval: usize,
    differences: bool,
) -> Result<bool, String> {
    if differences {
        let report = gradcheck::check(model, sizes, options);
        for row in &report.rows {
            // A best step of 1e-4 to 1e-6 is exact to 1e-6 where curvatures are of order one; a
            // normalisation of small vectors has curvatures of a hundred.
            if row.error.is_nan() || row.error > 1e-3 {
                return Err(format!("differences: {} is off by {:.1e}", row.name, row.error));
            }
        }
        if report.dot_error.is_nan() || report.dot_error > 1e-9 {
            return Err(format!("dot product: off by {:.1e}", report.dot_error));
        }
    }
    if torch::BUILT_IN {
        agrees_with_libtorch(model, sizes, options)?;
    }
    let case = single_precision(random_case(model, sizes, options));
    let engine = |every, backend| {
        let options = EngineOptions { checkpoint_every: every, ..EngineOptions::default() };
        Engine::new(model.clone(), sizes.clone(), backend, &options).expect("it compiles")
    };
    let plain = engine(Some(interval), Backend::CRANELIFT);
    let worst = compare_case(model, &plain, &case);
    let aside = worst.error > SINGLE && is_at_a_kink(model, sizes, &case, worst.error);
    if worst.error > SINGLE && !aside {
        return Err(format!("machine code: {} is off by {:.1e}", worst.name, worst.error));
    }
    let expected = bits(&run_in_manner(&plain, &case, Manner::default()));
    for (what, engine, manner) in [
        ("a checkpoint in every step", &engine(Some(1), Backend::CRANELIFT), Manner::default()),
        ("one checkpoint", &engine(Some(options.steps), Backend::CRANELIFT), Manner::default()),
        ("the back end", &engine(Some(interval), Backend::fastest()), Manner::default()),
        ("reading states", &plain, Manner { peeks: true, announced: Some(1), ..Manner::default() }),
        ("giving all inputs at once", &plain, Manner { ahead: true, ..Manner::default() }),
    ] {
        let found = bits(&run_in_manner(engine, &case, manner));
        if let Some(((name, _), _)) = found.iter().zip(&expected).find(|(a, b)| a != b) {
            return Err(format!("{name} depends on {what}"));
        }
    }
    Ok(aside)
}

/// libtorch's values and autograd, where it is built in.
fn agrees_with_libtorch(model: &Arc<Model>, sizes: &Sizes, options: &Options) -> Result<(), String> {
    let check = Check {
        seed: options.seed,
        steps: options.steps,
        rows: 2,
        dtype: Dtype::F64,
        place: torch::Place::Processor,
        state_scale: options.state_scale,
    };
    let report = runtime::gradcheck::check(model, sizes, &check).map_err(|e| e.to_string())?;
    match report.worst().filter(|_| !report.passed()) {
        Some(line) => Err(format!("libtorch: {} is off by {:.1e}", line.name, line.error)),
        None => Ok(()),
    }
}

fn number(variable: &str, default: u64) -> u64 {
    std::env::var(variable).ok().and_then(|x| x.parse().ok()).unwrap_or(default)
}

#[test]
fn random_models_are_right() {
    let cases = number("BPM_CASES", 120) as u32;
    let config = Config { cases, failure_persistence: None, max_shrink_iters: 2000, ..Config::default() };
    let mut seed = [7u8; 32];
    seed[..8].copy_from_slice(&number("BPM_SEED", 1).to_le_bytes());
    let mut runner = TestRunner::new_with_rng(config, TestRng::from_seed(RngAlgorithm::ChaCha, &seed));
    let (aside, all) = (Cell::new(0), Cell::new(0));
    let result = runner.run(&plan(), |plan| {
        let model = model_of(&plan.text());
        let sizes = sizes_of(&model, plan.n, plan.m);
        // Differences take a run per direction, so they are for small models.
        let small = plan.n.max(plan.m) <= 5;
        let mut options = plan.options();
        options.steps = if small { options.steps.min(5) } else { options.steps };
        options.reset_at = options.reset_at.filter(|t| *t < options.steps);
        let found = examine(&model, &sizes, &options, plan.interval, small);
        all.set(all.get() + 1);
        match found {
            Ok(set_aside) => aside.set(aside.get() + usize::from(set_aside)),
            Err(why) => return Err(TestCaseError::fail(format!("{why}\n{}", plan.text()))),
        }
        Ok(())
    });
    println!("{} models, {} set aside because rounding decides them", all.get(), aside.get());
    if let Err(why) = result {
        panic!("{why}");
    }
    assert!(aside.get() * 20 <= all.get(), "too many of the models say nothing");
}

#[test]
fn models_that_failed_once_are_right() {
    for path in files("tests/cases", "bpm") {
        let name = path.file_name().expect("a file").to_string_lossy().into_owned();
        let text = std::fs::read_to_string(&path).expect("the case is readable");
        let model = model_of(&text);
        for (n, m) in [(1, 3), (3, 2), (5, 4), (31, 33)] {
            for (interval, reset_at) in [(2, None), (3, Some(1))] {
                let options = Options { steps: 5, reset_at, seed: n as u64, ..Options::default() };
                let found = examine(&model, &sizes_of(&model, n, m), &options, interval, n <= 5);
                assert_eq!(found, Ok(false), "{name} with sizes {n} and {m}");
            }
        }
    }
}
