//! `bpm` as a user calls it: arguments in; output, files, error text and exit code out.

mod place;

use place::{Outcome, Place};
use std::path::Path;
use std::process::{Command, Stdio};

const SPEC: &str = "spec tiny {
  axis I = ?, N = 6, A = ?
  in u[I]
  learn Wx[N,I], bx[N] ~ linear
  learn W[N,N], alpha[N,N] ~ uniform(0, 0.1)
  learn eta in (0, 1) = 0.1
  learn Wo[A,N], bo[A], wv[N], bv ~ linear
  state y[N] = 0
  plastic H[N,N] = 0
  y' = tanh(Wx @ u + bx + (W + alpha * H) @ y)
  H'[j,i] = clip(H + eta * y'[j] * y[i], -1, 1)
  out policy[A] = Wo @ y' + bo
  out value = wv . y' + bv
}
";

const RECIPE: &str = "spec = \"tiny.bpm\"
[task]
name = \"cue-reward\"
cues = 2
bits = 2
steps = 15
[optimiser]
rate = 0.01
[run]
batch = 3
updates = 12
log_every = 5
checkpoint_every = 2
";

impl Place {
    fn new() -> std::io::Result<Self> {
        Place::of(&[("tiny.bpm", SPEC), ("r.toml", RECIPE)])
    }

    /// The curve without its clock.
    fn curve(&self, run: &str) -> Result<Vec<String>, Box<dyn std::error::Error>> {
        let text = std::fs::read_to_string(self.path(run).join("metrics.jsonl"))?;
        let strip = |l: &str| l.split(",\"seconds\"").next().unwrap_or(l).to_string();
        Ok(text.lines().map(strip).collect())
    }

    fn same_end(&self, a: &str, b: &str) -> Outcome {
        let (one, two) = (self.curve(a)?, self.curve(b)?);
        assert_eq!(one.len(), two.len());
        for (x, y) in one.iter().zip(&two) {
            assert_eq!(x, y);
        }
        let last = |run: &str| -> std::io::Result<Vec<u8>> {
            std::fs::read(self.checkpoints(run)?.last().map_or(Path::new(""), |p| p))
        };
        assert!(last(a)? == last(b)?, "checkpoints differ");
        let params = |run: &str| std::fs::read(self.path(run).join("params.safetensors"));
        assert!(params(a)? == params(b)?, "parameters differ");
        Ok(())
    }
}

#[test]
fn usage() -> Outcome {
    let p = Place::new()?;
    p.fails("train", 2, &["needs a recipe", "small.toml", "--task maze", "--resume"])?;
    p.fails("trian", 2, &["train"])?;
    assert!(p.ok("--version")?.starts_with("bpm "));
    assert!(p.ok("tasks")?.contains("wall_penalty"));
    p.fails("train r.toml --device gpu", 2, &["auto, cpu, cuda or cuda:N"])?;
    p.fails("train r.toml --device cuda --backend x64", 2, &["leave --backend out", "--device cpu"])?;
    p.ok("train r.toml --device auto --updates 1 --out auto")?;
    p.ok("train r.toml --device cpu --updates 1 --out cpu")?;
    assert!(std::fs::read_to_string(p.path("cpu/run.json"))?.contains("\"device\": \"cpu\""));
    Ok(())
}

#[test]
fn wrong_input() -> Outcome {
    let p = Place::new()?;
    p.fails("train missing.toml", 2, &["cannot read `missing.toml`: no such file"])?;
    p.fails("train tiny.bpm", 2, &["names a task", "\"maze\""])?;
    p.fails("train r.toml --set task.cuse=3", 2, &["--set task.cuse", "did you mean `cues`?"])?;
    p.fails("train r.toml --set task.bits=0", 2, &["`task.bits` must be a whole number from 1"])?;
    p.fails("train r.toml --set run", 2, &["key=value"])?;
    p.fails("train r.toml --axis I=3", 2, &["the task binds axis `I` to 9", "sizes.I"])?;
    p.fails("train r.toml --axis M=3", 2, &["there is no axis `M`"])?;
    p.fails("train r.toml --set init.etta=1", 2, &["no parameter `etta`", "did you mean `eta`?"])?;
    p.fails("train r.toml --task pattern-completion", 2, &["has no key `cues`"])?;
    p.fails("train tiny.bpm --task pattern-completion", 1, &["binds axis `N` to 1001", "fixes it at 6"])?;
    p.fails("train .", 2, &["no run.json"])?;
    p.fails("eval .", 2, &["no run.json"])?;
    std::fs::write(p.path("bad.bpm"), SPEC.replace("tanh(Wx", "tahn(Wx"))?;
    p.fails("train bad.bpm --task maze", 1, &["bad.bpm:10", "tahn"])?;
    std::fs::write(p.path("bad.bpm"), SPEC.replace("out value", "out worth"))?;
    p.fails("train bad.bpm --task maze", 1, &["needs an output `value`"])
}

#[test]
fn files_that_cannot_be_written() -> Outcome {
    let p = Place::new()?;
    p.fails("train r.toml --out /proc/none/run", 2, &["/proc/none"])?;
    std::fs::write(p.path("file"), "")?;
    p.fails("train r.toml --out file/run", 2, &["file/run"])?;
    p.ok("train r.toml --out run -q")?;
    p.fails("train r.toml --out run", 2, &["`run` is not empty", "--resume", "--out DIR"])?;
    // A metrics file that takes nothing: the run stops, and what was saved stays.
    let before = p.checkpoints("run")?;
    std::fs::remove_file(p.path("run/metrics.jsonl"))?;
    std::fs::create_dir(p.path("run/metrics.jsonl"))?;
    p.fails("train run --resume --updates 20", 2, &["metrics.jsonl"])?;
    assert_eq!(p.checkpoints("run")?, before);
    Ok(())
}

#[test]
fn resumed_runs_have_the_same_bits() -> Outcome {
    let p = Place::new()?;
    p.ok("train r.toml --out whole -q --threads 2")?;
    p.ok("train r.toml --out cut -q --updates 7 --threads 1")?;
    p.ok("train cut --resume --updates 12 -q --threads 3")?;
    // The shorter run closed its last window early.
    assert_eq!(p.curve("cut")?.len(), 4);
    let params = |run: &str| std::fs::read(p.path(run).join("params.safetensors"));
    assert_eq!(params("whole")?, params("cut")?);
    let newest = p.checkpoints("whole")?.pop().unwrap_or_default();
    assert_eq!(p.checkpoints("whole")?.len(), 2, "only two are kept");
    assert!(newest.ends_with("000000000012.safetensors"));
    p.fails("train r.toml --out cut --resume --set task.steps=16", 2, &["`task.steps` was 15 and is 16"])?;
    std::fs::write(p.path("tiny.bpm"), SPEC.replace("-1, 1", "-2, 2"))?;
    p.fails("train r.toml --out cut --resume", 2, &["the spec has changed"])?;
    p.fails("train r.toml --out nothing --resume", 2, &["`nothing` is no run"])
}

/// A network of events trains, goes on, and is evaluated, and says in which form it is.
#[test]
fn events_train_as_matrices_do() -> Outcome {
    let p = Place::new()?;
    let spec = SPEC
        .replace("alpha * H", "alpha[j] * H")
        .replace("learn W[N,N], alpha[N,N]", "learn W[N,N], alpha[N]")
        .replace("clip(H + eta * y'[j] * y[i], -1, 1)", "(1 - eta) * H + eta * y'[j] * y[i]");
    std::fs::write(p.path("tiny.bpm"), spec)?;
    p.ok("train r.toml --out whole -q --prefer events --threads 2")?;
    p.ok("train r.toml --out cut -q --prefer events --updates 7 --threads 1")?;
    p.ok("train cut --resume --updates 12 -q --threads 3")?;
    let params = |run: &str| std::fs::read(p.path(run).join("params.safetensors"));
    assert_eq!(params("whole")?, params("cut")?);
    assert!(std::fs::read_to_string(p.path("cut/recipe.toml"))?.contains("prefer = \"events\""));
    p.ok("train r.toml --out dense -q --prefer dense")?;
    let scores = |args: &str| -> Result<f64, Box<dyn std::error::Error>> {
        let report: serde_json::Value = serde_json::from_str(&p.ok(args)?)?;
        Ok(report["scores"]["return"]["mean"].as_f64().unwrap_or(f64::NAN))
    };
    let (events, dense) = (scores("eval whole --json")?, scores("eval dense --json")?);
    assert!((events - dense).abs() < 0.2, "{events} and {dense}");
    let other = scores("eval whole --json --prefer dense")?;
    assert!((events - other).abs() < 0.2, "{events} and {other}");
    let bench = "bench tiny.bpm --axis I=3 --axis A=2 --batch 2 --steps 9 --repeat 1";
    assert!(p.ok(&format!("{bench} --prefer events"))?.contains("`H` kept as events, as asked for"));
    assert!(p.ok(&format!("{bench} --prefer dense"))?.contains("`H` kept as matrices, as asked for"));
    let report: serde_json::Value = serde_json::from_str(&p.ok(&format!("{bench} --json"))?)?;
    assert_eq!(report["form"]["legal"][0], "H");
    p.fails(&format!("{bench} --prefer lists"), 2, &["auto", "dense", "events"])
}

/// Sizes that no machine has the memory for: nothing may be allocated on the way to the message.
#[test]
fn what_does_not_fit_is_refused_at_once() -> Outcome {
    use runtime::tensors::{Tensor, Tensors, write};
    let p = Place::new()?;
    std::fs::write(p.path("wide.bpm"), SPEC.replace("N = 6", "N = ?"))?;
    let words = ["of memory, and", "are available", "parameters and gradients take", "tape"];
    let long = "--axis N=10000 --set task.steps=1000000";
    p.fails(&format!("train wide.bpm --task maze {long} --out run"), 2, &words)?;
    assert!(!p.path("run").exists());
    let long = "train wide.bpm --task maze --axis N=16 --set task.steps=1000000 --set learner.baseline=first";
    p.fails(
        &format!("{long} --set run.batch=4096 --out run"),
        2,
        &["4096 tapes", "--set run.batch=", "needs"],
    )?;
    let axes = "--axis I=3 --axis A=2 --axis N=10000";
    let bench = format!("bench wide.bpm {axes} --steps 1000000");
    p.fails(&bench, 2, &words)?;
    let bench = format!("bench wide.bpm {} --threads 64", axes.replace("10000", "2000"));
    p.fails(&format!("{bench} --batch 1000000 --steps 1000000"), 2, &words)?;
    // Ten thousand steps of ten numbers are small as a file, their tape is not.
    std::fs::write(p.path("state.bpm"), STATE)?;
    write(&p.path("p.safetensors"), &Tensors::from([("w".into(), Tensor::f32(vec![], vec![1.0]))]), None)?;
    let series = |count: usize| Tensor::f32(vec![count, 1], vec![0.5; count]);
    write(&p.path("x.safetensors"), &Tensors::from([("u".into(), series(200_000))]), None)?;
    write(&p.path("g.safetensors"), &Tensors::from([("s".into(), series(200_000))]), None)?;
    let run = "run state.bpm --params p.safetensors --inputs x.safetensors --out y --axis N=20000";
    p.fails(&format!("{run} --cotangents g.safetensors"), 2, &[&words[..], &["N = 20000"]].concat())?;
    p.fails(&format!("{run} --backend interp"), 2, &["the interpreter keeps every value of 200000 steps"])
}

/// A large state without a large parameter.
const STATE: &str = "spec state {
  axis N = ?
  in u
  learn w = 1
  state y[N] = 1
  plastic H[N,N] = 0
  y' = tanh(w * u + H @ y)
  H'[j,i] = 0.5 * H + 0.1 * y'[j] * y[i]
  out s = mean(y')
}
";

#[test]
fn timings_change_nothing_and_name_every_phase() -> Outcome {
    let p = Place::new()?;
    p.ok("train r.toml --out plain -q")?;
    for (name, more) in [("one", "--threads 1"), ("two", "--threads 2")] {
        let out = p.bpm(&format!("train r.toml --out {name} --timings {name}.json {more}"))?;
        let said = String::from_utf8(out.stderr)?;
        assert!(said.contains("ms per update") && said.contains("mean of 12 updates"), "{said}");
        p.same_end("plain", name)?;
        let text = std::fs::read_to_string(p.path(&format!("{name}.json")))?;
        let trace: serde_json::Value = serde_json::from_str(&text)?;
        let events = trace["traceEvents"].as_array().ok_or("no events")?;
        let phases =
            ["parameters", "environment", "network forward", "sampling", "losses", "network backward"];
        for phase in phases.into_iter().chain(["gradient sums", "optimiser", "metrics and files"]) {
            let of_main = events.iter().filter(|e| e["name"] == phase && e["tid"] == 0).count();
            // Gradients are added up as chunks of rows end, and go back to the parameters at the end.
            let most = if phase == "gradient sums" { 24 } else { 12 };
            assert!((1..=most).contains(&of_main) && said.contains(phase), "{name} {phase}: {of_main}");
        }
    }
    p.ok("train r.toml --out first -q --set learner.baseline=first --timings first.json")?;
    p.fails("train r.toml --out late --timings nowhere/t.json", 2, &["cannot write `nowhere/t.json`"])?;
    assert!(!p.path("late/checkpoints").exists() || p.checkpoints("late")?.is_empty());
    Ok(())
}

#[test]
fn a_killed_run_goes_on() -> Outcome {
    let p = Place::new()?;
    let long = "train r.toml -q --updates 3000 --set run.checkpoint_every=100 --out";
    p.ok(&format!("{long} whole"))?;
    let mut child =
        p.command(&format!("{long} killed")).stderr(Stdio::null()).stdout(Stdio::null()).spawn()?;
    while p.checkpoints("killed").map_or(0, |c| c.len()) == 0 && child.try_wait()?.is_none() {
        std::thread::yield_now();
    }
    child.kill()?;
    child.wait()?;
    // A line cut short, as a power failure leaves it.
    let metrics = p.path("killed/metrics.jsonl");
    let text = std::fs::read_to_string(&metrics)? + "{\"update\":99";
    std::fs::write(&metrics, text)?;
    p.ok(&format!("{long} killed --resume"))?;
    p.same_end("whole", "killed")
}

#[test]
fn interrupted_runs_save_a_checkpoint() -> Outcome {
    let p = Place::new()?;
    let long = "train r.toml --updates 4294967296 --set run.checkpoint_every=4294967296 --out run";
    let child = p.command(long).stderr(Stdio::piped()).stdout(Stdio::null()).spawn()?;
    while !std::fs::metadata(p.path("run/metrics.jsonl")).is_ok_and(|m| m.len() > 0) {
        std::thread::yield_now();
    }
    Command::new("kill").args(["-INT", &child.id().to_string()]).status()?;
    let out = child.wait_with_output()?;
    let text = String::from_utf8_lossy(&out.stderr);
    assert_eq!(out.status.code(), Some(130), "{text}");
    assert!(text.contains("a checkpoint is saved") && text.contains("bpm train run --resume"), "{text}");
    assert_eq!(p.checkpoints("run")?.len(), 1);
    Ok(())
}

#[test]
fn damaged_checkpoints_are_passed_over() -> Outcome {
    let p = Place::new()?;
    p.ok("train r.toml --out whole -q")?;
    p.ok("train r.toml --out hurt -q")?;
    let damage = |path: &Path| -> std::io::Result<()> {
        let mut bytes = std::fs::read(path)?;
        let at = bytes.len() - 5;
        bytes[at] ^= 64;
        std::fs::write(path, bytes)
    };
    let both = p.checkpoints("hurt")?;
    damage(&both[1])?;
    let out = p.bpm("train hurt --resume")?;
    assert_eq!(out.status.code(), Some(0));
    let text = String::from_utf8_lossy(&out.stderr);
    assert!(
        text.contains("warning") && text.contains("checksum") && text.contains("from update 10"),
        "{text}"
    );
    p.same_end("whole", "hurt")?;
    for path in p.checkpoints("hurt")? {
        std::fs::write(path, [7; 40])?;
    }
    p.fails("train hurt --resume", 2, &["no valid safetensors", "no checkpoint of this run can be read"])
}

#[test]
fn evaluation_and_plots() -> Outcome {
    let p = Place::new()?;
    p.ok("train r.toml --out a -q")?;
    p.ok("train r.toml --out b -q --seed 1")?;
    assert!(p.ok("eval a --episodes 20")?.contains("return"));
    let report: serde_json::Value = serde_json::from_str(&p.ok("eval a --episodes 20 --json --threads 3")?)?;
    assert_eq!(report["episodes"], 20);
    let again: serde_json::Value = serde_json::from_str(&p.ok("eval a --episodes 20 --json --threads 1")?)?;
    assert_eq!(report, again);
    p.ok("eval a --episodes 20 --greedy --min-score -100")?;
    p.fails("eval a --episodes 20 --min-score 99", 1, &["below 99"])?;
    assert_eq!(p.ok("plot a b --out curve.png --smooth 2")?, "curve.svg\ncurve.png\n");
    assert!(std::fs::read_to_string(p.path("curve.svg"))?.contains("2 seeds"));
    p.fails("plot a --metric retrun", 2, &["no metrics named `retrun`", "return"])
}

#[test]
fn diverging_runs_say_where() -> Outcome {
    let p = Place::new()?;
    let spec = SPEC.replace("plastic H[N,N] = 0", "plastic H[N,N] = 0 unbounded");
    std::fs::write(
        p.path("tiny.bpm"),
        spec.replace("clip(H + eta * y'[j] * y[i], -1, 1)", "1e9 * H + eta * y'[j] * y[i]"),
    )?;
    p.fails("train r.toml --out run", 4, &["diverged in update", "`H` is not finite", "tiny.bpm:9"])
}

#[test]
fn messages_for_programs() -> Outcome {
    let p = Place::new()?;
    let out = p.bpm("train r.toml --out run --message-format json")?;
    let text = String::from_utf8(out.stderr)?;
    assert!(!text.is_empty());
    for line in text.lines() {
        let value: serde_json::Value = serde_json::from_str(line)?;
        assert_eq!(value["schema"], 1, "{line}");
    }
    let out = p.bpm("train r.toml --out run --message-format json")?;
    let value: serde_json::Value = serde_json::from_str(&String::from_utf8(out.stderr)?)?;
    assert_eq!((&value["reason"], &value["exit_code"]), (&"error".into(), &2.into()));
    Ok(())
}

#[test]
fn records_name_the_back_end_that_ran() -> Outcome {
    let p = Place::new()?;
    let about = || -> Result<serde_json::Value, Box<dyn std::error::Error>> {
        Ok(serde_json::from_str(&std::fs::read_to_string(p.path("run/run.json"))?)?)
    };
    let fastest = runtime::engine::Backend::fastest().name();
    let out = p.bpm("train r.toml --out run")?;
    let text = String::from_utf8(out.stderr)?;
    assert!(text.contains(&format!(", {fastest} on ")), "{text}");
    let record = about()?;
    assert_eq!((&record["backend"], &record["resumed"]), (&fastest.into(), &serde_json::Value::Null));
    p.ok("train run --resume --updates 14 --backend cranelift --threads 2")?;
    p.ok("train run --resume --updates 16 --backend interp")?;
    let record = about()?;
    assert_eq!(record["backend"], fastest);
    let resumed: Vec<_> = record["resumed"].as_array().into_iter().flatten().collect();
    let told: Vec<_> = resumed.iter().map(|r| (r["update"].as_u64(), r["backend"].as_str())).collect();
    assert_eq!(told, [(Some(12), Some("cranelift")), (Some(14), Some("interp"))]);
    assert_eq!((&resumed[0]["threads"], &resumed[0]["denormals"]), (&2.into(), &record["denormals"]));
    for name in [fastest, "cranelift", "interp"] {
        let sizes = "--axis I=3 --axis A=2 --batch 2 --steps 3 --repeat 1";
        let bench = format!("bench tiny.bpm {sizes} --backend {name}");
        let report: serde_json::Value = serde_json::from_str(&p.ok(&format!("{bench} --json"))?)?;
        assert_eq!(report["backend"], name);
        let text = p.ok(&bench)?;
        assert!(text.starts_with(&format!("tiny: batch 2, 3 steps, {name} on 1 thread\n")), "{text}");
    }
    Ok(())
}

#[test]
fn exact_runs() -> Outcome {
    use runtime::tensors::{Tensor, Tensors, write};
    let p = Place::new()?;
    p.ok("train tiny.bpm --task maze --updates 2 --set run.batch=2 --set task.steps=5 --out run -q")?;
    let u = Tensor::f32(vec![3, 2, 17], (0..102).map(|k| (k as f32).sin()).collect());
    write(&p.path("x.safetensors"), &Tensors::from([("u".into(), u)]), None)?;
    let policy = Tensor::f32(vec![3, 2, 4], vec![1.0; 24]);
    write(&p.path("g.safetensors"), &Tensors::from([("policy".into(), policy)]), None)?;
    let axes = "--axis I=17 --axis A=4";
    let base = format!("run tiny.bpm --params run/params.safetensors --inputs x.safetensors {axes}");
    p.ok(&format!("{base} --out y.safetensors --cotangents g.safetensors"))?;
    let (found, _) = runtime::tensors::read(&p.path("y.safetensors"))?;
    assert_eq!(found["out.policy"].shape, [3, 2, 4]);
    assert_eq!(found["grad.alpha"].shape, [6, 6]);
    p.ok(&format!("{base} --out z.safetensors --backend interp --dtype f64"))?;
    p.fails(&format!("{base} --out /dev/full"), 2, &["cannot write `/dev/full`: no space left on device"])?;
    p.fails(&format!("{base} --out y --dtype f64"), 2, &["--backend interp"])?;
    p.fails(&base.replace("x.saf", "g.saf").replace("run tiny", "run --out o tiny"), 1, &["none of `u`"])?;
    std::fs::write(p.path("x.safetensors"), b"rubbish")?;
    p.fails(&format!("{base} --out y"), 2, &["x.safetensors", "no valid safetensors"])
}

/// A run as a state dict, a run from a state dict: the same bits, and mistakes that name tensors.
#[test]
fn parameters_go_to_pytorch_and_back() -> Outcome {
    let p = Place::new()?;
    p.ok("train r.toml --out run -q")?;
    assert_eq!(p.ok("export run -o p.safetensors --module tiny.py -q")?.trim(), "p.safetensors");
    let (dict, _) = runtime::tensors::read(&p.path("p.safetensors"))?;
    let names: Vec<&str> = dict.keys().map(String::as_str).collect();
    assert_eq!(names, ["W", "Wo", "Wx", "alpha", "bo", "bv", "bx", "eta.raw", "wv"]);
    let module = std::fs::read_to_string(p.path("tiny.py"))?;
    assert!(module.contains("class Tiny(nn.Module):"), "{module}");
    assert!(module.contains("def __init__(self, I: int = 9, N: int = 6, A: int = 2, *,"), "{module}");

    p.ok("train r.toml --params p.safetensors --updates 0 --out copy -q")?;
    p.ok("export copy -o again.safetensors -q")?;
    assert!(std::fs::read(p.path("p.safetensors"))? == std::fs::read(p.path("again.safetensors"))?);
    assert_eq!(p.ok("eval run --episodes 9")?, p.ok("eval copy --episodes 9")?);
    assert!(std::fs::read_to_string(p.path("copy/run.json"))?.contains("\"params\": \"p.safetensors\""));
    // The file is not needed to go on, also not before the first checkpoint of the run itself.
    std::fs::remove_file(p.path("copy/params.safetensors"))?;
    std::fs::rename(p.path("p.safetensors"), p.path("q.safetensors"))?;
    p.ok("train copy --resume --updates 5 -q")?;
    p.ok("train r.toml --params run/params.safetensors --updates 5 --out values -q")?;
    let (one, two) = (p.curve("copy")?, p.curve("values")?);
    assert_eq!(one.len(), two.len(), "values in the units of the spec start a run, too");

    // A model runs on either.
    let u = runtime::tensors::Tensor::f32(vec![3, 1, 9], (0..27).map(|k| (k as f32).sin()).collect());
    runtime::tensors::write(&p.path("u.safetensors"), &[("u".to_owned(), u)].into(), None)?;
    let run = "run tiny.bpm --axis I=9 --axis A=2 --inputs u.safetensors";
    p.ok(&format!("{run} --params q.safetensors --out raw.safetensors"))?;
    p.ok(&format!("{run} --params run/params.safetensors --out value.safetensors"))?;
    let read = |name: &str| runtime::tensors::read(&p.path(name)).map(|(t, _)| t["out.policy"].to_f32());
    for (a, b) in read("raw.safetensors")?.iter().zip(read("value.safetensors")?) {
        assert!((a - b).abs() < 1e-5, "{a} {b}");
    }

    p.fails("train copy --resume --params q.safetensors", 2, &["--params", "--resume"])?;
    p.fails("export . -o x.safetensors", 2, &["no run.json"])?;
    p.fails("train r.toml --params no.safetensors --out x", 2, &["cannot read `no.safetensors`"])?;
    let wider = "train r.toml --params q.safetensors --axis N=7 --out x";
    let words = [
        "tensor `W` in `q.safetensors` has shape [6, 6], but it must have shape [7, 7]",
        "tensor `wv`",
        "eta or eta.raw []",
    ];
    p.fails(wider, 1, &words)?;
    let (mut broken, _) = runtime::tensors::read(&p.path("q.safetensors"))?;
    broken.remove("bo");
    broken.insert("extra".into(), runtime::tensors::Tensor::f32(vec![2], vec![0.0; 2]));
    runtime::tensors::write(&p.path("broken.safetensors"), &broken, None)?;
    let words =
        ["`broken.safetensors` has no tensor `bo`; it needs one of shape [2]", "unknown tensor `extra`"];
    p.fails("train r.toml --params broken.safetensors --out x", 1, &words)
}

#[test]
fn pytorch_that_is_missing_is_said_with_a_remedy() -> Outcome {
    let p = Place::new()?;
    let bench = "bench tiny.bpm --axis I=3 --axis A=2 --against torch";
    p.fails(
        &format!("{bench} --python no-such-python"),
        3,
        &["no-such-python", "--python PATH", "pip install"],
    )?;
    p.fails("bench tiny.bpm --axis I=3 --axis A=2 --python x", 2, &["--against"])?;
    let out = p.command(bench).env("BPM_PYTHON", "no-such-either").output()?;
    assert_eq!(out.status.code(), Some(3));
    assert!(String::from_utf8_lossy(&out.stderr).contains("cannot run `no-such-either`"));
    p.fails(&format!("{bench} --device cuda"), 2, &["--against", "processor"])
}
