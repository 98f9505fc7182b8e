//! The networks of the library against published facts: reference values of a small fixture, and
//! properties that the equations have whatever the numbers are.
//!
//! The fixture fills every tensor with `scale * sin(0.7 k + tag)`, `k` the row-major index, and runs
//! six steps on `u[i] = sin(0.3 i + 1.1 row + 0.5 t)`. The values were computed independently in
//! float64; nine decimal places are compared.

use compiler::interp::{Interpreter, Sequence, Tensor, Trajectory};
use compiler::ir::Sizes;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

const STEPS: usize = 6;
const INPUTS: usize = 3;
const HIDDEN: usize = 4;
const OUTPUTS: usize = 2;

type Parameters = BTreeMap<String, Vec<f64>>;

fn wave(count: usize, tag: f64, scale: f64) -> Vec<f64> {
    (0..count).map(|k| scale * (0.7 * k as f64 + tag).sin()).collect()
}

/// A matrix given as `[pre, post]`, as `[post, pre]`.
fn transposed(m: &[f64], pre: usize, post: usize) -> Vec<f64> {
    (0..post * pre).map(|k| m[(k % pre) * post + k / pre]).collect()
}

/// A network of the library with small sizes.
struct Network {
    interpreter: Interpreter,
}

impl Network {
    fn open(file: &str) -> Network {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("specs").join(file);
        let text = std::fs::read_to_string(path).expect("it is a file of the library");
        let model = compiler::check::check(&text).models.remove(0);
        let open = [("I", INPUTS), ("N", HIDDEN), ("A", OUTPUTS), ("O", OUTPUTS)];
        let known = |name: &str| model.axes.named.iter().any(|a| a.name == name);
        let bound = open.iter().filter(|(n, _)| known(n)).map(|(n, s)| ((*n).to_string(), *s)).collect();
        let sizes = Sizes::bind(&model.axes, &bound).expect("every open axis is bound");
        Network { interpreter: Interpreter::new(Arc::new(model), sizes) }
    }

    /// Runs one row. Parameters of the network that are not given are an error.
    fn run(&self, given: &Parameters, row: usize) -> Run<'_> {
        let model = &self.interpreter.model;
        let params: Vec<Tensor> = model
            .params
            .iter()
            .map(|p| {
                let value = given.get(&p.name).unwrap_or_else(|| panic!("no value for {}", p.name));
                assert_eq!(value.len(), self.interpreter.sizes.count(p.shape), "{}", p.name);
                Arc::new(value.clone())
            })
            .collect();
        let input = |t: usize| {
            let u = (0..INPUTS).map(|i| (0.3 * i as f64 + 1.1 * row as f64 + 0.5 * t as f64).sin());
            vec![Arc::new(u.collect::<Vec<f64>>())]
        };
        let sequence = Sequence {
            inputs: (0..STEPS).map(input).collect(),
            initial: self.interpreter.initial(&params),
            resets: vec![],
        };
        let trajectory = self.interpreter.run(&params, &sequence);
        Run { network: self, trajectory }
    }
}

/// What one row did.
struct Run<'n> {
    network: &'n Network,
    trajectory: Trajectory,
}

impl Run<'_> {
    /// A state after `steps` steps.
    fn state(&self, name: &str, steps: usize) -> &[f64] {
        let id = self.network.interpreter.model.state(name).expect("it is a state");
        &self.trajectory.states[steps][id.index()]
    }

    /// An output of the step with this index.
    fn output(&self, name: &str, step: usize) -> Vec<f64> {
        let id = self.network.interpreter.model.output(name).expect("it is an output");
        self.network.interpreter.output(&self.trajectory, step, id.index()).to_vec()
    }

    /// A modulator in the step with this index.
    fn modulator(&self, step: usize) -> f64 {
        let (_, value, _) = &self.network.interpreter.model.modulators[0];
        self.trajectory.values[step][value.index()].as_ref().expect("it is evaluated")[0]
    }

    /// Logits and values of all steps.
    fn behaviour(&self) -> Vec<f64> {
        (0..STEPS).flat_map(|t| [self.output("policy", t), self.output("value", t)].concat()).collect()
    }
}

fn close(found: &[f64], expected: &[f64], tolerance: f64, what: &str) {
    assert_eq!(found.len(), expected.len(), "{what}");
    for (a, b) in found.iter().zip(expected) {
        assert!((a - b).abs() < tolerance, "{what}: {found:?} is not {expected:?}");
    }
}

/// Parameters of all recurrent networks of the fixture.
fn recurrent() -> Parameters {
    let (n, i, o) = (HIDDEN, INPUTS, OUTPUTS);
    let rows = [
        ("Wx", n * i, 1.0, 0.8),
        ("bx", n, 2.0, 0.3),
        ("W", n * n, 3.0, 0.5),
        ("alpha", n * n, 4.0, 0.9),
        ("Wo", o * n, 5.0, 0.7),
        ("bo", o, 6.0, 0.2),
        ("wv", n, 7.0, 0.6),
        ("bv", 1, 8.0, 0.1),
        ("wm", n, 9.0, 1.2),
        ("bm", 1, 10.0, 0.2),
        ("F", n, 11.0, 0.9),
        ("c", n, 12.0, 0.4),
    ];
    let mut p: Parameters = rows.map(|(name, k, tag, s)| (name.to_string(), wave(k, tag, s))).into();
    p.insert("eta".to_string(), vec![0.1]);
    p
}

fn with(mut p: Parameters, changes: &[(&str, Vec<f64>)]) -> Parameters {
    for (name, value) in changes {
        p.insert((*name).to_string(), value.clone());
    }
    p
}

fn negated(mut p: Parameters, names: &[&str]) -> Parameters {
    for name in names {
        p.get_mut(*name).expect("it is a parameter").iter_mut().for_each(|x| *x = -*x);
    }
    p
}

/// Name, hidden activity, policy, value, and the sum of the plastic component, after the last step.
type Reference = (&'static str, [f64; 4], [f64; 2], f64, f64);

#[test]
fn recurrent_networks_give_the_reference_values() {
    let cases: [Reference; 3] = [
        (
            "plain",
            [0.803_446_610_1, -0.166_540_302_8, -0.468_541_207_0, 0.393_101_183_6],
            [-0.368_630_943_0, 0.350_473_462_8],
            0.151_919_999_9,
            0.0,
        ),
        (
            "plastic",
            [0.519_088_826_1, -0.479_146_512_6, -0.323_410_110_8, 0.677_510_632_4],
            [0.099_715_186_1, -0.091_460_950_8],
            -0.016_645_988_4,
            0.126_677_884_0,
        ),
        (
            "simple",
            [0.591_631_720_5, -0.388_612_049_4, -0.367_728_165_0, 0.648_287_678_3],
            [-0.002_405_731_5, 0.012_293_280_0],
            0.037_308_311_1,
            0.043_500_660_0,
        ),
    ];
    for (name, hidden, policy, value, plastic) in cases {
        let network = Network::open(&format!("backpropamine/{name}.bpm"));
        let run = network.run(&recurrent(), 0);
        close(run.state("y", STEPS), &hidden, 1e-9, name);
        close(&run.output("policy", STEPS - 1), &policy, 1e-9, name);
        close(&run.output("value", STEPS - 1), &[value], 1e-9, name);
        if name != "plain" {
            close(&[run.state("H", STEPS).iter().sum()], &[plastic], 1e-9, name);
        }
    }
    let network = Network::open("backpropamine/simple.bpm");
    let modulators = [0, 1].map(|row| network.run(&recurrent(), row).modulator(STEPS - 1));
    close(&modulators, &[-0.097_583_798_9, 0.110_932_069_4], 1e-9, "modulator of simple");
}

/// Parameters of the plastic long short-term memory: gates in the order forget, input, output.
fn memory() -> Parameters {
    let (n, i) = (HIDDEN, INPUTS);
    let stacked = |tags: [f64; 3], count: usize, scale: f64| tags.map(|t| wave(count, t, scale)).concat();
    let (from_input, from_output) = ([23.0, 25.0, 24.0], [20.0, 21.0, 22.0]);
    let biases = |tags: [f64; 3]| stacked(tags.map(|t| t + 0.5), n, 0.2);
    [
        ("Xg", stacked(from_input, n * i, 0.6)),
        ("xg", biases(from_input)),
        ("Hg", stacked(from_output, n * n, 0.6)),
        ("hg", biases(from_output)),
        ("Xc", wave(n * i, 26.0, 0.6)),
        ("xc", wave(n, 26.5, 0.2)),
        ("W", transposed(&wave(n * n, 40.0, 0.5), n, n)),
        ("alpha", wave(n, 42.0, 0.9)),
        ("wm", wave(n, 43.0, 1.2)),
        ("bm", wave(1, 44.0, 0.2)),
        ("F", wave(n, 45.0, 0.9)),
        ("b", wave(n, 46.0, 0.4)),
        ("eta", vec![0.01]),
        ("Wo", vec![0.0; OUTPUTS * n]),
        ("bo", vec![0.0; OUTPUTS]),
    ]
    .map(|(name, value)| (name.to_string(), value))
    .into()
}

#[test]
fn the_plastic_memory_cell_gives_the_reference_values() {
    let network = Network::open("plastic_lstm/modulated.bpm");
    let run = network.run(&memory(), 0);
    let h = [0.166_675_044_4, -0.145_791_820_9, -0.138_832_632_9, 0.149_642_071_2];
    let c = [0.480_664_687_7, -0.260_211_824_1, -0.314_694_707_2, 0.351_655_738_9];
    close(run.state("h", STEPS), &h, 1e-9, "h");
    close(run.state("c", STEPS), &c, 1e-9, "c");
    close(&[run.state("P", STEPS).iter().sum()], &[-0.025_536_096_3], 1e-9, "P");
}

#[test]
fn without_plasticity_all_are_the_plain_network() {
    let plain = Network::open("backpropamine/plain.bpm").run(&recurrent(), 0).behaviour();
    let none = with(recurrent(), &[("alpha", vec![0.0; HIDDEN * HIDDEN])]);
    for name in ["plastic", "plastic_decay", "plastic_softclip", "simple", "simple_fanout", "retroactive"] {
        let network = Network::open(&format!("backpropamine/{name}.bpm"));
        close(&network.run(&none, 0).behaviour(), &plain, 1e-12, name);
    }
    let none = with(none, &[("alpha", vec![0.0; HIDDEN])]);
    close(
        &Network::open("backpropamine/plastic_alpha_neuron.bpm").run(&none, 0).behaviour(),
        &plain,
        1e-12,
        "alpha per neuron",
    );
    // The plain cell has a bias in its recurrent candidate; it is zero here.
    let p = memory();
    let plain = with(
        p.clone(),
        &[
            ("X", [&p["Xg"][..], &p["Xc"][..]].concat()),
            ("bx", [&p["xg"][..], &p["xc"][..]].concat()),
            ("R", [&p["Hg"][..], &p["W"][..]].concat()),
            ("br", [&p["hg"][..], &[0.0; HIDDEN][..]].concat()),
        ],
    );
    let (network, cell) =
        (Network::open("plastic_lstm/modulated.bpm"), Network::open("plastic_lstm/lstm.bpm"));
    let run = network.run(&with(p, &[("alpha", vec![0.0; HIDDEN])]), 0);
    close(run.state("h", STEPS), cell.run(&plain, 0).state("h", STEPS), 1e-12, "memory cell");
}

#[test]
fn a_silent_modulator_leaves_the_plain_network() {
    let plain = Network::open("backpropamine/plain.bpm").run(&recurrent(), 0).behaviour();
    let silent = with(recurrent(), &[("wm", vec![0.0; HIDDEN]), ("bm", vec![0.0]), ("c", vec![0.0; HIDDEN])]);
    for name in
        ["simple", "simple_fanout", "simple_softclip", "simple_noclip", "retroactive", "retroactive_noclip"]
    {
        let network = Network::open(&format!("backpropamine/{name}.bpm"));
        let run = network.run(&silent, 0);
        assert!(run.state("H", STEPS).iter().all(|x| *x == 0.0), "{name}");
        close(&run.behaviour(), &plain, 1e-12, name);
    }
}

#[test]
fn the_sign_of_plasticity_is_a_convention() {
    for name in [
        "simple",
        "simple_softclip",
        "simple_noclip",
        "retroactive",
        "retroactive_softclip",
        "retroactive_noclip",
    ] {
        let network = Network::open(&format!("backpropamine/{name}.bpm"));
        let flipped = negated(recurrent(), &["alpha", "wm", "bm"]);
        close(&network.run(&flipped, 0).behaviour(), &network.run(&recurrent(), 0).behaviour(), 1e-12, name);
    }
    let network = Network::open("backpropamine/simple_fanout.bpm");
    let flipped = negated(recurrent(), &["alpha", "F", "c"]);
    close(&network.run(&flipped, 0).behaviour(), &network.run(&recurrent(), 0).behaviour(), 1e-12, "fan-out");
}

#[test]
fn plasticity_begins_after_the_first_coincidence() {
    let simple = Network::open("backpropamine/simple.bpm");
    let run = simple.run(&recurrent(), 0);
    assert!(run.state("H", 1).iter().all(|x| *x == 0.0), "nothing comes before the first activity");
    assert!(run.state("H", 2).iter().any(|x| *x != 0.0));
    let retroactive = Network::open("backpropamine/retroactive.bpm");
    let run = retroactive.run(&recurrent(), 0);
    assert!(run.state("H", 2).iter().all(|x| *x == 0.0), "the trace is read before it is written");
    assert!(run.state("H", 3).iter().any(|x| *x != 0.0));
}

#[test]
fn the_trace_of_retroactive_modulation_delays_by_a_step() {
    let network = Network::open("backpropamine/retroactive.bpm");
    let immediate = with(recurrent(), &[("eta", vec![1.0])]);
    let run = network.run(&immediate, 0);
    for t in 1..STEPS {
        let (before, after) = (run.state("H", t), run.state("H", t + 1));
        let (post, pre) = (run.state("y", t), run.state("y", t - 1));
        let m = run.modulator(t);
        let expected: Vec<f64> = (0..HIDDEN * HIDDEN)
            .map(|k| (before[k] + m * post[k / HIDDEN] * pre[k % HIDDEN]).clamp(-1.0, 1.0))
            .collect();
        close(after, &expected, 1e-12, "with eta = 1");
    }
    let frozen = with(recurrent(), &[("eta", vec![0.0])]);
    assert!(network.run(&frozen, 0).state("H", STEPS).iter().all(|x| *x == 0.0), "with eta = 0");
}

#[test]
fn the_fan_out_is_per_receiving_neuron() {
    let network = Network::open("backpropamine/simple_fanout.bpm");
    let only = 2;
    let mut one_hot = vec![0.0; HIDDEN];
    one_hot[only] = 1.0;
    let p = with(recurrent(), &[("F", one_hot), ("c", vec![0.0; HIDDEN])]);
    let run = network.run(&p, 0);
    let changed = |j: usize| run.state("H", STEPS)[j * HIDDEN..(j + 1) * HIDDEN].iter().any(|x| *x != 0.0);
    assert_eq!((0..HIDDEN).filter(|j| changed(*j)).collect::<Vec<_>>(), [only]);
}

#[test]
fn a_decaying_trace_needs_no_clip() {
    let network = Network::open("backpropamine/plastic_decay.bpm");
    let strong: Parameters =
        recurrent().into_iter().map(|(k, v)| (k, v.iter().map(|x| 30.0 * x).collect())).collect();
    let run = network.run(&with(strong, &[("eta", vec![0.9])]), 0);
    assert!(run.state("H", STEPS).iter().any(|x| x.abs() > 0.5), "the case is not vacuous");
    assert!(run.state("H", STEPS).iter().all(|x| x.abs() <= 1.0));
}
