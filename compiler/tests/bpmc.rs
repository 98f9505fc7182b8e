//! `bpmc` as a user calls it: what it prints, what it says, and how it ends.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// What a call gave.
struct Ended {
    code: i32,
    out: String,
    err: String,
}

/// Calls `bpmc` with arguments and something on standard input.
fn bpmc_with(input: &[u8], arguments: &[&str]) -> Ended {
    let mut child = Command::new(env!("CARGO_BIN_EXE_bpmc"))
        .args(arguments)
        .current_dir(root())
        .env_remove("CLICOLOR_FORCE")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("bpmc starts");
    // It may end before it has read everything.
    let _ = child.stdin.take().expect("a pipe").write_all(input);
    let ended = child.wait_with_output().expect("bpmc ends");
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("bpmc writes text");
    Ended { code: ended.status.code().unwrap_or(-1), out: text(ended.stdout), err: text(ended.stderr) }
}

fn bpmc(arguments: &[&str]) -> Ended {
    bpmc_with(b"", arguments)
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// A fresh folder of this test.
fn folder(name: &str) -> PathBuf {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    let _ = std::fs::remove_dir_all(&path);
    std::fs::create_dir_all(&path).expect("a folder");
    path
}

const RETROACTIVE: &str = "specs/backpropamine/retroactive.bpm";
const SIZES: [&str; 6] = ["--axis", "I=3", "--axis", "A=2", "--axis", "N=6"];

fn with_sizes<'a>(arguments: &[&'a str]) -> Vec<&'a str> {
    arguments.iter().copied().chain(SIZES).collect()
}

#[test]
fn a_good_spec_is_met_with_silence() {
    let ended = bpmc(&["check", RETROACTIVE]);
    assert_eq!((ended.code, ended.out.as_str(), ended.err.as_str()), (0, "", ""));
    let ended = bpmc(&["check", "-v", RETROACTIVE]);
    assert_eq!(ended.code, 0);
    assert!(ended.err.contains("info[BPM0313]"), "{}", ended.err);
    assert!(ended.err.ends_with("spec retroactive: 11 parameter tensors, 1 input, 3 states, 2 outputs\n"));
}

#[test]
fn errors_of_a_spec_end_with_one() {
    let ended = bpmc_with(b"spec x {\n  out y = z\n}\n", &["check", "-"]);
    assert_eq!((ended.code, ended.out.as_str()), (1, ""));
    assert!(ended.err.starts_with("error[BPM0101]"), "{}", ended.err);
    assert!(ended.err.contains("--> <stdin>:2:11"), "{}", ended.err);
    let ended = bpmc_with(b"spec x {\n  out y = z\n}\n", &["check", "-", "--message-format", "short"]);
    assert!(ended.err.starts_with("<stdin>:2:11: error[BPM0101]: "), "{}", ended.err);
    assert!(!ended.err.contains('\u{1b}'));
    let ended = bpmc_with(b"spec x {\n  out y = z\n}\n", &["check", "-", "--color", "always"]);
    assert!(ended.err.contains('\u{1b}'));
}

#[test]
fn diagnostics_are_json_on_request() {
    let ended = bpmc_with(b"spec x {\n  out y = z + w\n}\n", &["check", "-", "--message-format", "json"]);
    assert_eq!(ended.code, 1);
    let lines: Vec<serde_json::Value> =
        ended.err.lines().map(|l| serde_json::from_str(l).expect("an object on a line")).collect();
    assert_eq!(lines.len(), 2);
    assert!(lines.iter().all(|l| l["reason"] == "diagnostic" && l["level"] == "error"));
}

#[test]
fn what_cannot_be_read_ends_with_two() {
    let folder = folder("unreadable");
    let bad = folder.join("bad.bpm");
    std::fs::write(&bad, b"spec \xff").expect("a file");
    for (path, why) in [
        ("nowhere.bpm", "there is no such file"),
        ("specs", "it is a folder"),
        (bad.to_str().expect("a path"), "it is no text (not UTF-8 from byte 5 on)"),
    ] {
        let ended = bpmc(&["check", path]);
        assert_eq!(ended.code, 2);
        assert_eq!(ended.err, format!("error: cannot read `{path}`: {why}\n"));
    }
    for wrong in [
        &["chekc", "x"][..],
        &["check"],
        &["plan", RETROACTIVE, "--axis", "I"],
        &["plan", RETROACTIVE, "--axis", "I=0"],
    ] {
        assert_eq!(bpmc(wrong).code, 2, "{wrong:?}");
    }
    assert_eq!(bpmc(&["--version"]).code, 0);
    assert!(bpmc(&["--help"]).out.contains("Exit codes"));
}

#[test]
fn one_unreadable_file_does_not_hide_the_others() {
    let folder = folder("several");
    let wrong = folder.join("wrong.bpm");
    std::fs::write(&wrong, "spec x {\n  out y = z\n}\n").expect("a file");
    let ended = bpmc(&["check", "nowhere.bpm", wrong.to_str().expect("a path")]);
    assert_eq!(ended.code, 2);
    assert!(ended.err.contains("no such file") && ended.err.contains("BPM0101"), "{}", ended.err);
}

#[test]
fn axes_must_have_sizes_where_sizes_matter() {
    assert_eq!(bpmc(&["compile", RETROACTIVE, "--emit", "step,adjoint"]).code, 0);
    let ended = bpmc(&["compile", RETROACTIVE, "--emit", "loops"]);
    assert_eq!(ended.code, 2);
    assert_eq!(ended.err, "error: axis I, A has no size; give it with --axis I=SIZE\n");
    let ended = bpmc(&["plan", RETROACTIVE, "--axis", "I=3", "--axis", "A=2", "--axis", "M=2"]);
    assert_eq!((ended.code, ended.out.as_str()), (2, ""));
    let ended = bpmc(&["plan", RETROACTIVE, "--axis", "I=3", "--axis", "A=2", "--axis", "N=1000000000"]);
    assert_eq!(ended.code, 3, "{}", ended.err);
    assert!(ended.err.contains("more than can be addressed"), "{}", ended.err);
}

#[test]
fn stages_go_to_standard_output_or_into_a_folder() {
    let ended = bpmc(&with_sizes(&["compile", RETROACTIVE, "--emit", "step"]));
    assert_eq!((ended.code, ended.err.as_str()), (0, ""));
    assert!(ended.out.starts_with("step of retroactive\n  %0:"));
    let ended = bpmc(&with_sizes(&["compile", RETROACTIVE, "--emit", "loops,plan"]));
    assert!(ended.out.starts_with("// stage loops\nprogram\n") && ended.out.contains("// stage plan\n"));
    let folder = folder("stages");
    let out = folder.join("deeper");
    let ended = bpmc(&with_sizes(&["compile", RETROACTIVE, "-o", out.to_str().expect("a path")]));
    assert_eq!((ended.code, ended.out.as_str(), ended.err.as_str()), (0, "", ""));
    for stage in compiler::stages::Stage::ALL.map(|s| s.word()) {
        let name = match stage {
            "cuda" => "retroactive.cu".to_owned(),
            "torch" => "retroactive.py".to_owned(),
            other => format!("retroactive.{other}.txt"),
        };
        let text = std::fs::read_to_string(out.join(name)).expect(stage);
        assert!(text.len() > 50, "{stage}");
    }
}

#[test]
fn every_stage_can_be_asked_for_and_is_listed() {
    let help = bpmc(&["compile", "--help"]).out;
    for stage in compiler::stages::Stage::ALL {
        assert!(help.contains(stage.word()), "{help}");
        let ended = bpmc(&with_sizes(&["compile", RETROACTIVE, "--emit", stage.word()]));
        assert_eq!((ended.code, ended.err.as_str()), (0, ""), "{stage:?}");
        assert!(ended.out.len() > 50, "{stage:?}");
    }
}

#[test]
fn the_listing_of_instructions_shows_the_frames() {
    let listing = bpmc(&with_sizes(&["compile", RETROACTIVE, "--emit", "asm"])).out;
    let frames: Vec<&str> = listing.lines().filter_map(|l| l.trim().strip_prefix("sub rsp,")).collect();
    assert_eq!(frames.len(), listing.lines().filter(|l| l.starts_with("; routine")).count());
    let bytes = |frame: &&str| frame.parse::<u32>().is_ok_and(|n| n > 0 && n % 32 == 0);
    assert!(frames.len() > 5 && frames.iter().all(bytes), "{frames:?}");
}

#[test]
fn cuda_source_names_the_spec_and_leads_back_to_it() {
    let ended = bpmc(&with_sizes(&["compile", RETROACTIVE, "--target", "cuda"]));
    assert_eq!((ended.code, ended.err.as_str()), (0, ""));
    let line = format!("#line 44 \"{RETROACTIVE}\"\n");
    assert!(
        ended.out.contains(&line) && ended.out.contains("next[matrix::H + i * 8 + j] ="),
        "{}",
        ended.out
    );
    let source = std::fs::read_to_string(root().join(RETROACTIVE)).expect("a spec");
    assert!(source.lines().nth(43).is_some_and(|l| l.trim_start().starts_with("H'[j,i] = ")));
    let plain = bpmc(&with_sizes(&["compile", RETROACTIVE, "--target", "cuda", "--no-lines"])).out;
    assert!(!plain.contains("#line") && plain.contains("next[matrix::H + i * 8 + j] ="));
    let stage = bpmc(&with_sizes(&["compile", RETROACTIVE, "--emit", "cuda"])).out;
    assert_eq!(stage, ended.out);
    let folder = folder("cuda");
    let out = folder.to_str().expect("a path");
    assert_eq!(bpmc(&with_sizes(&["compile", RETROACTIVE, "--target", "cuda", "-o", out])).code, 0);
    assert_eq!(std::fs::read_to_string(folder.join("retroactive.cu")).expect("a file"), ended.out);
    let open = bpmc(&["compile", RETROACTIVE, "--target", "cuda"]);
    assert_eq!(open.code, 2);
    assert_eq!(open.err, "error: axis I, A has no size; give it with --axis I=SIZE\n");
}

/// Whatever a spec calls its things, the source is legal.
#[test]
fn names_of_a_spec_need_not_be_legal_in_cuda() {
    let spec = b"spec int {\n  axis N = 3\n  in float[N], double, slot\n  learn W[N,N] ~ normal(0, 1)\n\
        \n  state now[N] = 0\n  now' = tanh(W @ now + float * double + slot)\n  out now'\n}\n";
    let ended = bpmc_with(spec, &["compile", "-", "--target", "cuda", "--no-lines"]);
    assert_eq!(ended.code, 0, "{}", ended.err);
    for legal in ["float_", "double_", "slot_", "now_"] {
        assert!(ended.out.contains(&format!("constexpr int {legal} = ")), "{legal}: {}", ended.out);
    }
}

#[test]
fn a_spec_is_printed_as_a_pytorch_module() {
    let ended = bpmc(&["compile", RETROACTIVE, "--target", "torch"]);
    assert_eq!((ended.code, ended.err.as_str()), (0, ""), "open axes are arguments");
    let expected = [
        "class Retroactive(nn.Module):",
        "def __init__(self, I: int, A: int, N: int = 200, *, device=None, dtype=None):",
        "# Eq. 4: E, not E'.\n        H_next = clip(H + m[:, None, None] * E, -1, 1)\n",
        "return Outputs(policy=policy, value=value), State(y=y_next, H=H_next, E=E_next)",
    ];
    for text in expected {
        assert!(ended.out.contains(text), "{text} in\n{}", ended.out);
    }
    let ended = bpmc(&with_sizes(&["compile", RETROACTIVE, "--target", "torch"]));
    assert!(ended.out.contains("I: int = "), "bound axes have defaults: {}", ended.out);
    let words = "spec lambda {\n  axis N = 2\n  in class[N]\n  learn step[N] > 0 = 1\n  state forward[N] = 0\n  \
                 forward' = tanh(forward + step * class)\n  out forward'\n}\n";
    let ended = bpmc_with(words.as_bytes(), &["compile", "-", "--target", "torch"]);
    for text in ["class_: Tensor", "self.step_ = Above(", "\"step\": \"step_.raw\"", "class Lambda("] {
        assert!(ended.out.contains(text), "{text} in\n{}", ended.out);
    }
}

#[test]
fn one_of_several_specs_is_chosen_by_name() {
    let two = b"spec first {\n  in u\n  out y = u\n}\n\nspec second {\n  in u\n  out y = 2 * u\n}\n";
    let ended = bpmc_with(two, &["compile", "-", "--emit", "step"]);
    assert_eq!(ended.code, 2);
    assert!(ended.err.contains("<stdin> has several specs: first, second"), "{}", ended.err);
    let ended = bpmc_with(two, &["compile", "-", "--emit", "step", "--spec", "second"]);
    assert!(ended.out.starts_with("step of second\n"), "{}{}", ended.out, ended.err);
    let ended = bpmc_with(two, &["compile", "-", "--emit", "step", "--spec", "secnod"]);
    assert!(ended.err.contains("did you mean second?"), "{}", ended.err);
    assert_eq!(ended.code, 2);
}

#[test]
fn formatting_rewrites_only_what_differs() {
    let folder = folder("fmt");
    let file = folder.join("x.bpm");
    let path = file.to_str().expect("a path");
    std::fs::write(&file, "spec x{\n in u;out y=u}").expect("a file");
    let ended = bpmc(&["fmt", "--check", path]);
    assert_eq!((ended.code, ended.out.as_str()), (1, ""));
    assert_eq!(std::fs::read_to_string(&file).expect("a file"), "spec x{\n in u;out y=u}");
    assert_eq!(bpmc(&["fmt", path]).code, 0);
    let canonical = "spec x {\n  in u\n  out y = u\n}\n";
    assert_eq!(std::fs::read_to_string(&file).expect("a file"), canonical);
    assert_eq!(bpmc(&["fmt", "--check", path]).code, 0);
    assert_eq!(bpmc_with(b"spec x{\n in u;out y=u}", &["fmt", "-"]).out, canonical);
    let ended = bpmc_with(b"spec x {", &["fmt", "-"]);
    assert_eq!((ended.code, ended.out.as_str()), (1, ""));
    let left: Vec<_> = std::fs::read_dir(&folder).expect("a folder").collect();
    assert_eq!(left.len(), 1, "nothing is left beside the file");
}

#[test]
fn codes_are_explained() {
    let ended = bpmc(&["explain", "BPM0203"]);
    assert_eq!((ended.code, ended.err.as_str()), (0, ""));
    assert!(ended.out.starts_with("# BPM0203: "));
    assert_eq!(bpmc(&["explain", "bpm0203"]).out, ended.out);
    assert_eq!(bpmc(&["explain", "203"]).out, ended.out);
    assert_eq!(bpmc(&["explain"]).out.lines().count(), compiler::explain::CODES.len());
    let ended = bpmc(&["explain", "BPM0230"]);
    assert_eq!((ended.code, ended.out.as_str()), (2, ""));
    assert!(ended.err.contains("did you mean BPM0030?"), "{}", ended.err);
}

#[test]
fn plans_are_tables_or_json() {
    let ended =
        bpmc(&with_sizes(&["plan", RETROACTIVE, "--batch", "30", "--steps", "200", "--threads", "2"]));
    assert_eq!((ended.code, ended.err.as_str()), (0, ""));
    assert!(ended.out.starts_with("retroactive: I = 3, N = 6, A = 2; batch 30, 200 steps, 2 threads\n"));
    let json = ["plan", RETROACTIVE, "--batch", "30", "--steps", "200", "--message-format", "json"];
    let plan: serde_json::Value = serde_json::from_str(&bpmc(&with_sizes(&json)).out).expect("one object");
    // 30 rows, 201 moments, two matrices of 6 by 6, 4 bytes each.
    assert_eq!(plan["dense_bytes"], 30 * 201 * 2 * 36 * 4);
    assert_eq!((&plan["checkpoint_every"], &plan["learned"]), (&15.into(), &125.into()));
    assert_eq!((&plan["forward"]["count"], &plan["backward"]["count"]), (&1.into(), &1.into()));
    let tape: u64 = plan["tape"].as_array().expect("items").iter().filter_map(|i| i["bytes"].as_u64()).sum();
    assert_eq!(plan["tape_bytes"], tape);
    let ended = bpmc(&with_sizes(&["plan", RETROACTIVE, "--memory", "1KiB"]));
    assert_eq!(ended.code, 3, "{}", ended.err);
}

#[test]
fn gradients_are_judged() {
    let ended = bpmc(&["gradcheck", RETROACTIVE]);
    assert_eq!(ended.code, 0, "{}", ended.out);
    assert!(ended.out.ends_with("the gradients are right\n"));
    let ended = bpmc(&["gradcheck", RETROACTIVE, "--tolerance", "1e-30"]);
    assert_eq!(ended.code, 1);
    assert!(ended.out.contains("WRONG"));
    let ended = bpmc(&["gradcheck", RETROACTIVE, "--message-format", "json", "--seed", "3", "--steps", "4"]);
    let verdict: serde_json::Value = serde_json::from_str(&ended.out).expect("one object");
    assert_eq!(verdict["passed"], true);
    assert!(verdict["rows"].as_array().is_some_and(|r| r.len() > 10));
}

#[test]
fn plans_say_how_matrices_are_kept() {
    let ended = bpmc(&with_sizes(&["plan", RETROACTIVE]));
    assert!(
        ended.out.contains("`H` needs its matrix: `alpha` has a number for every synapse"),
        "{}",
        ended.out
    );
    assert!(ended.out.contains("`E` needs its matrix: `H`, which needs its matrix, takes it up"));
    let events = RETROACTIVE.replace(".bpm", "_events.bpm");
    let sizes = ["--axis", "I=17", "--axis", "A=4", "--axis", "N=200"];
    let plan = |more: &[&str]| bpmc(&[&["plan", &events], &sizes[..], more].concat()).out;
    let few = plan(&["--steps", "50"]);
    assert!(few.contains("`H`, `E` kept as events\n") && few.contains("logs of events"), "{few}");
    assert!(few.contains("us with matrices, ") && few.contains("us with events, by estimate"));
    let many = plan(&["--steps", "5000"]);
    assert!(many.contains("`H`, `E` kept as matrices\n") && !many.contains("logs of events"), "{many}");
    assert!(plan(&["--steps", "5000", "--prefer", "events"]).contains("kept as events, as asked for"));
    assert!(plan(&["--steps", "50", "--prefer", "dense"]).contains("kept as matrices, as asked for"));
    let emit = ["compile", &events, "--emit", "step", "--prefer", "events", "--steps", "50"];
    let ended = bpmc(&[&emit, &sizes[..]].concat());
    assert!(ended.out.contains("state events.log0 ="), "{}{}", ended.out, ended.err);
}

#[test]
fn a_gradient_that_is_zero_needs_an_explanation() {
    let explained = b"spec x {\n  in u\n  learn w = 1, v = 1\n  out y = stopgrad(w) * u + v\n}\n";
    let ended = bpmc_with(explained, &["gradcheck", "-"]);
    assert_eq!(ended.code, 0, "{}{}", ended.out, ended.err);
    assert!(ended.out.contains("zero, as the checker warns"), "{}", ended.out);
}

#[test]
fn a_spec_is_a_document() {
    let ended = bpmc(&["doc", RETROACTIVE]);
    assert_eq!((ended.code, ended.err.as_str()), (0, ""));
    assert!(ended.out.starts_with("# retroactive\n"));
    for line in [
        "| `Wx` | `[N,I]` | `learn ~ linear(I)` | Input layer. |",
        "| `E` | `[N,N]` | `trace = 0` | Eligibility trace of every connection. |",
        "y^{t} &= \\tanh\\left(W_{x}\\, u^{t} + b_{x} + \\left(W + \\alpha \\odot H^{t-1}\\right)\\, y^{t-1}\\right) \\\\",
        "H^{t}_{ji} &= \\operatorname{clip}_{[-1, 1]}\\left(H^{t-1}_{ji} + m^{t}\\, E^{t-1}_{ji}\\right) \\\\",
        "E^{t}_{ji} &= \\left(1 - \\eta\\right)\\, E^{t-1}_{ji} + \\eta\\, y^{t}_{j}\\, y^{t-1}_{i} \\\\",
        "\\text{value} &= {w_{v}}^{\\top} y^{t} + b_{v}",
    ] {
        assert!(ended.out.lines().any(|l| l == line), "{line} in\n{}", ended.out);
    }
    let page = bpmc(&["doc", RETROACTIVE, "--format", "html"]).out;
    assert!(page.starts_with("<!doctype html>") && page.ends_with("</html>\n"));
    assert!(page.contains("E&#39;[j,i] = (1 - eta)") || page.contains("E'[j,i] = (1 - eta)"));
    let paper = bpmc(&["doc", "specs/rules.bpm", "--format", "latex"]).out;
    assert_eq!(paper.matches("\\begin{align*}").count(), 11);
    let braces = |c| paper.chars().filter(|x| *x == c).count();
    assert_eq!(braces('{'), braces('}'));
    assert_eq!(bpmc(&["doc", "specs/rules.bpm", "--spec", "nothing"]).code, 2);
}

/// Kernels of whole sequences where they fit; otherwise the reason, or kernels of single steps; either in each direction.
#[test]
fn cuda_sequences_are_printed_where_they_fit() {
    let bpmc = |words: &[&str]| {
        let spec = concat!(env!("CARGO_MANIFEST_DIR"), "/../specs/backpropamine/retroactive.bpm");
        let axes = ["--axis", "I=17", "--axis", "A=4", "--target", "cuda"];
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_bpmc"));
        let done = command.arg(words[0]).arg(spec).args(axes).args(&words[1..]).output().expect("it starts");
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (done.status.code(), text(&done.stdout), text(&done.stderr))
    };
    let (code, text, _) = bpmc(&["compile", "--tier", "2", "--axis", "N=100"]);
    assert!(code == Some(0) && text.contains("// launch backward_sequence: blocks = 4 * rows"));
    let (code, _, why) = bpmc(&["compile", "--tier", "2", "--arch", "sm_80", "--axis", "N=256"]);
    assert!(code == Some(3) && why.contains("bytes more shared memory than the 166912 of sm_80"), "{why}");
    let (code, text, why) = bpmc(&["compile", "--tier", "auto", "--arch", "sm_80", "--axis", "N=256"]);
    assert!(
        code == Some(0) && text.contains("forward_step") && why.contains("tier 1: a kernel for each step"),
        "{why}"
    );
    for (tier, has, lacks) in [
        ("1,2", ["forward_step", "backward_sequence"], ["forward_sequence", "backward_step"]),
        ("2,1", ["forward_sequence", "backward_step"], ["forward_step", "backward_sequence"]),
    ] {
        let (code, text, why) = bpmc(&["compile", "--tier", tier, "--axis", "N=100"]);
        let has_kernel = |name: &&str| text.lines().any(|l| l.contains("__global__") && l.contains(name));
        assert!(has.iter().all(has_kernel) && !lacks.iter().any(has_kernel), "{tier}");
        assert!(code == Some(0) && why.starts_with(&format!("tier {tier}: ")), "{why}");
    }
    let (code, plan, _) = bpmc(&["plan", "--axis", "N=256"]);
    assert!(code == Some(0) && plan.contains("CUDA, sm_90a") && plan.contains("registers, "), "{plan}");
    for words in
        ["  forward: tier 2, a sequence is one launch, ", " by steps\n  backward: tier 2, a sequence"]
    {
        assert!(plan.contains(words), "{plan}");
    }
    let (code, plan, _) = bpmc(&["plan", "--axis", "N=512", "--batch", "16", "--message-format", "json"]);
    let plan: serde_json::Value = serde_json::from_str(&plan).expect("a plan");
    let cuda = &plan["cuda"];
    assert!(code == Some(0) && cuda["tiers"] == serde_json::json!([2, 1]), "{cuda}");
    assert!(
        cuda["forward"]["microseconds_by_sequences"].as_f64()
            < cuda["forward"]["microseconds_by_steps"].as_f64()
    );
    assert!(cuda["backward"]["microseconds_by_sequences"].is_null(), "{cuda}");
    assert!(cuda["backward"]["sequence"]["why_not"].is_string(), "{cuda}");
}
