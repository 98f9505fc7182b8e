//! Updates on the emulated device against the same updates whose episodes the processor answers: bit by bit where the
//! network runs on the same device, and against machine code.

use super::*;
use crate::engine::Backend;
use crate::engine::device::DeviceId;
use crate::engine::device::tests::has_device;
use crate::recipe::Recipe;
use crate::spec;

const SPEC: &str = "spec small {
  axis I = ?, N = 5, A = ?
  in u[I]
  REWARD
  learn Wx[N,I], bx[N] ~ linear
  learn W[N,N], alpha[N,N] ~ uniform(0, 0.3)
  learn eta in (0, 1) = 0.3
  learn tau > 1 = 1.5 gradscale(0.5)
  learn wm[N], bm ~ linear
  learn Wo[A,N], bo[A], wv[N], bv ~ linear
  learn y0[N] ~ uniform(-0.1, 0.1)
  state y[N] = START
  plastic H[N,N] = 0 KEEP
  y' = tanh(Wx @ u + bx + (W + alpha * H) @ y / tau SEEN)
  modulator m = tanh(wm . y' + bm)
  H'[j,i] = clip((1 - eta) * H + eta * m * y'[j] * y[i], -1, 1)
  penalty 0.1 * mean(y' * y')
  out policy[A] = Wo @ y' + bo
  out value = wv . y' + bv
}";

const CUES: &str = "[task]\nname = \"cue-reward\"\ncues = 3\nbits = 4\nsteps = 17\n";
const MAZE: &str = "[task]\nname = \"maze\"\nsize = 5\nsteps = 12\n";

/// The spec with other lines.
fn text(reward: bool, start: &str, keep: &str) -> String {
    let (input, seen) = if reward { ("in mod reward", "+ 0.1 * reward") } else { ("", "") };
    let lines = [("REWARD", input), ("SEEN", seen), ("START", start), ("KEEP", keep)];
    let text = lines.into_iter().fold(SPEC.to_owned(), |text, (word, line)| text.replace(word, line));
    if start == "y0" { text } else { text.replace("  learn y0[N] ~ uniform(-0.1, 0.1)\n", "") }
}

fn trainer(spec: &str, recipe: &str, backend: Backend) -> Trainer {
    let spec = spec::compile("s.bpm", spec.into(), None).unwrap_or_else(|e| panic!("{e:?}"));
    let recipe = format!("spec = \"s.bpm\"\n{recipe}\n[run]\nbatch = 3\nseed = 7\n");
    let recipe = Recipe::parse("r", &recipe, &[]).unwrap_or_else(|e| panic!("{e}"));
    setup::trainer(spec, recipe, backend, 1, Mode::Train).unwrap_or_else(|e| panic!("{e}"))
}

fn steps(t: &mut Trainer, updates: usize) -> Vec<Outcome> {
    (0..updates).map(|_| t.step().unwrap_or_else(|e| panic!("{e}"))).collect()
}

/// Updates on the device, on the device with the processor's answers, and by machine code.
fn agree(spec: &str, recipe: &str, updates: usize) -> (Trainer, Trainer) {
    let on_device = Backend::Device(DeviceId::Emulated);
    let mut ours = trainer(spec, recipe, on_device);
    let said = ours.reside().unwrap_or_else(|e| panic!("{e}")).expect("words");
    assert!(said.contains("the task, losses and the optimiser: one transfer each way"), "{recipe}: {said}");
    let mut answered = trainer(spec, recipe, on_device);
    let mut compiled = trainer(spec, recipe, Backend::CRANELIFT);
    let outcomes = steps(&mut ours, updates);
    assert_eq!(outcomes, steps(&mut answered, updates), "{recipe}");
    ours.settle().unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(ours.params.raw, answered.params.raw, "{recipe}");
    assert_eq!(ours.optimiser.memory(), answered.optimiser.memory(), "{recipe}");
    assert_eq!(ours.optimiser.steps(), answered.optimiser.steps(), "{recipe}");
    assert_eq!(ours.carried, answered.carried, "{recipe}");
    let meant = steps(&mut compiled, updates);
    let (first, other) = (&outcomes[0], &meant[0]);
    assert_eq!((&first.scores, first.spread), (&other.scores, other.spread), "{recipe}: the first episode");
    // Values and probabilities come from sums that blocks of a row take in an order of their own. Rewards are equal, and
    // with them all terms of an actor-critic; a loss of targets is one of them.
    let terms =
        [(first.value_loss, other.value_loss), (first.entropy, other.entropy), (first.loss, other.loss)];
    for (a, b) in terms {
        assert!((a - b).abs() <= 1e-5 * b.abs().max(1e-3), "{recipe}: the first episode: {a} {b}");
    }
    // Later parameters differ in their last places, for sums over rows are taken otherwise.
    for (a, b) in outcomes.iter().zip(&meant) {
        assert_eq!(a.scores, b.scores, "{recipe}");
        for (a, b) in [(a.loss, b.loss), (a.grad_norm, b.grad_norm), (a.entropy, b.entropy)] {
            assert!((a - b).abs() <= 1e-4 * b.abs().max(1e-3), "{recipe}: {a} {b}");
        }
    }
    assert_ne!(
        ours.params.raw,
        trainer(spec, recipe, Backend::CRANELIFT).params.raw,
        "{recipe}: nothing moved"
    );
    (ours, compiled)
}

/// How far parameters are apart, by their size.
fn apart(a: &Trainer, b: &Trainer) -> f64 {
    let all = |t: &Trainer| t.params.raw.concat().into_iter().map(f64::from).collect::<Vec<f64>>();
    let norm = |x: &mut dyn Iterator<Item = f64>| x.map(|x| x * x).sum::<f64>().sqrt();
    let (a, b) = (all(a), all(b));
    norm(&mut a.iter().zip(&b).map(|(a, b)| a - b)) / norm(&mut b.iter().copied())
}

#[test]
fn cues_are_the_same_everywhere() {
    if !has_device() {
        return;
    }
    let plain = text(false, "0", "");
    agree(&plain, CUES, 3);
    let variants = "flip = 0.3\npress_cost = 0.25\nlayout = \"paper\"\n[learner]\nbaseline = \"first\"\n[optimiser]\nrate = 0.01\nclip = 0.5";
    agree(&text(true, "0", ""), &format!("{CUES}{variants}"), 3);
    let fixed = "[task]\nname = \"cue-reward\"\ncues = 5\nbits = 5\nfixed_cues = true\nsteps = 9\n[optimiser]\nname = \"sgd\"\nmomentum = 0.5\nrate = 0.02\ndecay = 0.01";
    agree(&plain, fixed, 3);
}

#[test]
fn mazes_are_the_same_everywhere() {
    if !has_device() {
        return;
    }
    agree(&text(true, "0", ""), MAZE, 3);
    let variants = "wall_penalty = 0.1\nlayout = \"paper\"\nfirst_previous_action = \"up\"\n[optimiser]\nname = \"sgd\"\nrate = 0.01\nclip = 0.0";
    agree(&text(false, "0", ""), &format!("{MAZE}{variants}"), 3);
}

#[test]
fn states_start_as_they_do_elsewhere() {
    if !has_device() {
        return;
    }
    agree(&text(false, "y0", ""), CUES, 3);
    agree(&text(false, "0", "every 2 episodes"), CUES, 3);
    agree(&text(false, "y0", "every 2 episodes"), CUES, 4);
    // Matrices, in some episodes or in all.
    let learned = |text: String| {
        let text = text.replace("learn eta", "learn H0[N,N] ~ uniform(-0.3, 0.3)\n  learn eta");
        text.replace("plastic H[N,N] = 0", "plastic H[N,N] = H0")
    };
    agree(&learned(text(false, "y0", "")), CUES, 3);
    agree(&learned(text(false, "0", "every 2 episodes")), MAZE, 4);
    // One parameter that the equations see, too; one that cannot be learned.
    let both = text(true, "y0", "").replace("y' = tanh(", "y' = tanh(0.5 * y0 + ");
    agree(&both, CUES, 3);
    let drawn = text(false, "0", "").replace("state y[N] = 0", "state y[N] ~ normal(0, 0.1)");
    let drawn =
        drawn.replace("in u[I]", "in u[I]\n  noise n[N] ~ normal(0, 0.1)").replace("Wx @ u", "n + Wx @ u");
    agree(&drawn, MAZE, 3);
}

/// Every operation that a spec can put on parameters alone.
#[test]
fn what_is_computed_with_parameters_alone_is_computed_there() {
    if !has_device() {
        return;
    }
    let spec = "spec prologue {
  axis I = ?, N = 4, M = 3, A = ?
  in u[I]
  learn Wx[N,I], bx[N] ~ linear
  learn W[N,N], V[N,N] ~ uniform(0, 0.3)
  learn g[N], a[N], b[N] ~ uniform(0.1, 0.4)
  learn c[M] ~ uniform(0.1, 0.3)
  learn d ~ uniform(0.1, 0.5)
  learn Wo[A,N], bo[A], wv[N], bv ~ linear
  state y[N] = 0
  scaled[j,i] = sigmoid(d) * W[j,i] * exp(g[j]) / (1 + abs(b[i])) + 0.1 * a[j] * b[i]
  drive = tanh(V @ a) + sqrt(softplus(g)) * max(a, b) + mean(V) - min(a, 0.2)
  y' = tanh(Wx @ u + bx + scaled @ y + drive + sum(c) + log(d + 1))
  out policy[A] = Wo @ y' + bo
  out value = wv . y' + bv
  out rest[N] = 0.5 * y'
}";
    agree(spec, MAZE, 3);
}

#[test]
fn burn_in_moves_nothing() {
    if !has_device() {
        return;
    }
    let recipe = format!("{MAZE}[learner]\nburn_in = 2\n");
    let mut t = trainer(&text(false, "0", ""), &recipe, Backend::Device(DeviceId::Emulated));
    let start = t.params.raw.clone();
    t.reside().unwrap_or_else(|e| panic!("{e}"));
    for (update, moves) in [(2, false), (3, true)] {
        while t.update < update {
            steps(&mut t, 1);
        }
        t.settle().unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(t.params.raw != start, moves, "after update {update}");
        assert_eq!(t.optimiser.steps(), u64::from(moves));
    }
}

/// The parameters are those before the update, and the message is that of a processor.
#[test]
fn divergence_is_told_as_elsewhere() {
    if !has_device() {
        return;
    }
    let spec = text(false, "0", "")
        .replace("clip((1 - eta) * H + ", "H * 1e25 + (")
        .replace("y[i], -1, 1)", "y[i])");
    let spec = spec.replace("plastic H[N,N] = 0 ", "plastic H[N,N] = 0 unbounded");
    let known = COMPLETE.replace("(1 - eta) * H", "H * 1e25").replace("= H0\n", "= H0 unbounded\n");
    let fails = |(spec, recipe): (&str, &str), backend| {
        let mut t = trainer(spec, recipe, backend);
        t.reside().unwrap_or_else(|e| panic!("{e}"));
        let start = t.params.raw.clone();
        let error = t.step().expect_err("diverges");
        assert_eq!((error.exit_code(), t.params.raw == start), (4, true));
        (error.message, error.help)
    };
    for of in [(spec.as_str(), MAZE), (known.as_str(), PATTERNS)] {
        assert_eq!(fails(of, Backend::Device(DeviceId::Emulated)), fails(of, Backend::CRANELIFT));
    }
}

const COMPLETE: &str = "spec complete {
  axis N = ?
  in u[N]
  learn W[N,N], alpha[N,N] ~ normal(0, 0.1)
  learn eta in (0, 1) = 0.1
  learn H0[N,N] ~ normal(0, 0.02)
  state y[N] = 0
  plastic H[N,N] = H0
  y' = tanh((W + alpha * H) @ y + u)
  H'[j,i] = (1 - eta) * H + eta * y'[j] * y[i]
  penalty 0.1 * mean(y' * y')
  out y'
}";

const PATTERNS: &str = "[task]\nname = \"pattern-completion\"\nbits = 9\npatterns = 2\ncycles = 2\nshows = 2\nblanks = 1\ntests = 2\n";

#[test]
fn patterns_are_the_same_everywhere() {
    if !has_device() {
        return;
    }
    let variants = [
        "scale = 1.0\n",
        "scale = 1.0\nbias = false\nextra = 3\ndrop = \"independent\"\n[optimiser]\nclip = 0.2\nrate = 0.01",
        "balanced = false\ndropped = 0.3\nblanks = 0\n[optimiser]\nname = \"sgd\"\nrate = 0.01\nmomentum = 0.5",
    ];
    for variant in variants {
        let patterns =
            if variant.contains("blanks") { PATTERNS.replace("blanks = 1\n", "") } else { PATTERNS.into() };
        let (ours, compiled) = agree(COMPLETE, &format!("{patterns}{variant}"), 6);
        let apart = apart(&ours, &compiled);
        assert!(apart < 1e-7, "{variant}: {apart}");
    }
    // Noise, and a matrix that starts at its learned numbers in every second episode.
    let noisy =
        COMPLETE.replace("in u[N]", "in u[N]\n  noise n[N] ~ normal(0, 0.1)").replace("+ u)", "+ u + n)");
    agree(&noisy.replace("= H0\n", "= H0 every 2 episodes\n"), &format!("{PATTERNS}scale = 1.0\n"), 4);
}

const NAME: &str = "spec name {
  axis I = ?, N = 5, O = ?
  in u[I]
  in target label[O]
  learn Wx[N,I] ~ linear
  learn Wl[N,O] ~ normal(0, 0.3)
  learn alpha[N,N] ~ normal(0, 0.3)
  state y[N] = 0
  plastic H[N,N] = 0
  y' = tanh(Wx @ u + Wl @ label + (alpha * H) @ y)
  H'[j,i] = 0.7 * H + 0.3 * y'[j] * y[i]
  learn Wo[O,N], bo[O] ~ linear
  out logits[O] = Wo @ y' + bo
  out rest[N] = 0.5 * y'
}";

const CHARACTERS: &str =
    "[task]\nname = \"one-shot\"\ncharacters = 20\nheld_out = 8\nside = 7\nways = 3\nSHOTS\n";

#[test]
fn characters_are_the_same_everywhere() {
    if !has_device() {
        return;
    }
    let several = "rotations = false\n[learner]\nform = \"binary\"\n[optimiser]\nclip = 0.3\nrate = 0.01";
    for (shots, variant) in [("", "[optimiser]\nrate = 0.01"), ("shots = 3", several)] {
        let recipe = format!("{}{variant}", CHARACTERS.replace("SHOTS", shots));
        // Characters that are shown once, with matrices; others with logs of events.
        let logged = NAME.replace("H[N,N] = 0", "H[N,N] = 0 events").replace("alpha[N,N]", "alpha");
        let spec = if shots.is_empty() { NAME } else { &logged };
        let (ours, compiled) = agree(spec, &recipe, 6);
        assert_eq!(ours.engine.model().events.is_some(), !shots.is_empty());
        let apart = apart(&ours, &compiled);
        assert!(apart < 1e-7, "{variant}: {apart}");
    }
}

#[test]
fn what_a_processor_encodes_keeps_losses_there() {
    if !has_device() {
        return;
    }
    let recipe = format!(
        "{}[encoder]\nlayers = [{{ channels = 2, size = 3, stride = 2 }}]",
        CHARACTERS.replace("SHOTS", "")
    );
    let mut t = trainer(NAME, &recipe, Backend::Device(DeviceId::Emulated));
    let said = t.reside().unwrap_or_else(|e| panic!("{e}")).expect("words");
    assert!(
        said.ends_with("the task, losses and the optimiser stay on the processor: images are encoded there"),
        "{said}"
    );
    steps(&mut t, 1);
    let mut t = trainer(NAME, &recipe, Backend::CRANELIFT);
    assert_eq!(t.reside().unwrap_or_else(|e| panic!("{e}")), None);
}
