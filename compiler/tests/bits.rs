//! Machine code gives the bits that the loop IR means: every routine of every spec of the library, on
//! memory full of random numbers; where a spec can be kept as events, in this form too.

use compiler::back::x64::Vectors;
use compiler::back::{Target, x64};
use compiler::ir::Sizes;
use compiler::loops::eval::{Memory, run};
use compiler::loops::{self, Base, LANES, LIVE, LowerOptions, NAMES, Program, Routine, TOGETHER};
use compiler::model::{Model, Prefer};
use compiler::passes::events;
use compiler::{autodiff, passes};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

fn models() -> Vec<Model> {
    let mut todo = vec![Path::new(env!("CARGO_MANIFEST_DIR")).join("../specs")];
    let mut paths: Vec<PathBuf> = vec![];
    while let Some(path) = todo.pop() {
        if path.is_dir() {
            todo.extend(std::fs::read_dir(&path).expect("a folder").map(|e| e.expect("an entry").path()));
        } else if path.extension().is_some_and(|e| e == "bpm") {
            paths.push(path);
        }
    }
    paths.sort();
    let text = |p: &PathBuf| std::fs::read_to_string(p).expect("a spec is text");
    paths.iter().flat_map(|p| compiler::check::check(&text(p)).models).collect()
}

fn program(model: &Model, n: usize, widest: usize) -> Program {
    let named = model.axes.named.iter().enumerate();
    let bound: BTreeMap<String, usize> = named.map(|(k, a)| (a.name.clone(), n + k % 3)).collect();
    let sizes = Sizes::bind(&model.axes, &bound).expect("sizes for every axis");
    let model = &passes::optimise(model);
    let program = loops::lower(model, &sizes, &autodiff::step(model), LowerOptions { input_bars: true });
    Program { widest, ..program }
}

/// Every region of a program on its own, one behind the other, with room for so many steps' frames.
fn regions(program: &Program, steps: usize) -> ([usize; Base::ALL.len()], usize) {
    let mut end = 0;
    let starts = Base::ALL.map(|base| {
        let start = end;
        end += match base {
            Base::Frame(_) => program.frame_len * steps,
            Base::Adjoint(_) => program.adjoint_len * steps,
            Base::Scratch => program.scratch_len,
            Base::Params => program.params_len,
            Base::Carry => program.carry_len.max(program.matrices_len),
            Base::Ends | Base::Next | Base::Snapshot(_) => program.matrices_len,
            Base::Grads => program.grads_len,
            Base::Log => program.log_len,
            Base::LogBar => program.log_bar_len,
        };
        start
    });
    (starts, end + LANES)
}

/// Numbers in ±2, exact zeros and ones among them, from a seed.
fn fill(len: usize, mut seed: u64) -> Vec<f32> {
    let draw = |_| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let bits = seed >> 33;
        match bits % 16 {
            0 => 0.0,
            1 => 1.0,
            _ => (bits as f64 / f64::from(1u32 << 29) - 2.0) as f32,
        }
    };
    (0..len).map(draw).collect()
}

/// The same bits, or both no number.
fn same(a: f32, b: f32) -> bool {
    a.to_bits() == b.to_bits() || (a.is_nan() && b.is_nan())
}

/// Says something that the test harness does not swallow.
fn say(text: &str) {
    use std::io::Write;
    let _ = writeln!(std::io::stderr(), "{text}");
}

type Entry = unsafe extern "C" fn(*const *mut f32);

/// Entry points of compiled code, which lives as long as this.
struct Made {
    entries: [*const u8; NAMES.len()],
    together: Option<[*const u8; 4]>,
    replay_steps: Option<*const u8>,
    _code: Box<dyn std::any::Any>,
}

fn cranelift(program: &Program) -> Made {
    let kernels = Target::Cranelift.compile(program).expect("it compiles");
    let (entries, together, replay_steps) = (kernels.entries, kernels.together, kernels.replay_steps);
    Made { entries, together, replay_steps, _code: Box::new(kernels) }
}

fn x64(program: &Program, vectors: Vectors) -> Made {
    let kernels = x64::compile_for(program, vectors).expect("it compiles");
    let (entries, together, replay_steps) = (kernels.entries, Some(kernels.together), kernels.replay_steps);
    Made { entries, together, replay_steps, _code: Box::new(kernels) }
}

/// Runs every routine of every spec, at several sizes, both ways.
fn compare(compile: impl Fn(&Program) -> Made, widest: usize) {
    let mut numbers = 0usize;
    for model in models() {
        for n in [1, 3, 6, 17, 31, 41] {
            let program = program(&model, n, widest);
            let kernels = compile(&program);
            let mut see = |routine: &Routine, name: &str, entry: *const u8, steps: usize| {
                // SAFETY: the entries have this signature, and the code lives as long as `kernels`.
                let entry = unsafe { std::mem::transmute::<*const u8, Entry>(entry) };
                let name = format!("{} {n}: {name}", model.name);
                numbers += compare_routine(&name, &program, (routine, 1), entry, steps);
            };
            for ((routine, name), entry) in
                loops::routines(&program).into_iter().zip(NAMES).zip(kernels.entries)
            {
                see(routine, name, entry, 1);
            }
            let apart = [&program.forward, &program.backward].map(|s| [&s.before, &s.after]);
            for (routine, entry) in apart.as_flattened().iter().zip(kernels.together.into_iter().flatten()) {
                see(&loops::together(routine, &program), "several steps", entry, TOGETHER);
            }
        }
    }
    assert!(numbers > 1_000_000, "only {numbers} numbers were compared");
}

/// The same for models of events, with logs that are nearly empty, filled in part, and full.
fn compare_events(compile: impl Fn(&Program) -> Made) {
    let mut numbers = 0usize;
    for model in models() {
        let states = events::legality(&model, Prefer::Events).states;
        let Some(model) = events::rewrite(&model, &states, 90) else { continue };
        for n in [1, 6, 31] {
            let program = program(&model, n, loops::WIDEST);
            assert!(!program.logs.is_empty(), "{} has logs", model.name);
            let kernels = compile(&program);
            for (k, live) in (0..NAMES.len()).flat_map(|k| [1, 32, 33, 96].map(|live| (k, live))) {
                // SAFETY: the entries have this signature, and the code lives as long as `kernels`.
                let entry = unsafe { std::mem::transmute::<*const u8, Entry>(kernels.entries[k]) };
                let name = format!("{} {n} {live}: {}", model.name, NAMES[k]);
                numbers += compare_routine(&name, &program, (loops::routines(&program)[k], live), entry, 1);
            }
        }
    }
    assert!(numbers > 1_000_000, "only {numbers} numbers were compared");
}

/// Rows that step together, where rows gain from it.
fn compare_teams(compile: impl Fn(&Program) -> Made) {
    let mut numbers = 0usize;
    for model in models() {
        for (n, rows) in [(6, 2), (17, 5), (31, 4)] {
            let program = program(&model, n, loops::WIDEST);
            if !loops::gains(&program) {
                continue;
            }
            let program = loops::side_by_side(&program, rows);
            let kernels = compile(&program);
            for (k, routine) in loops::routines(&program).into_iter().enumerate() {
                // SAFETY: the entries have this signature, and the code lives as long as `kernels`.
                let entry = unsafe { std::mem::transmute::<*const u8, Entry>(kernels.entries[k]) };
                let name = format!("{} {n}, {rows} rows: {}", model.name, NAMES[k]);
                numbers += compare_routine(&name, &program, (routine, 1), entry, 1);
            }
        }
    }
    assert!(numbers > 1_000_000, "only {numbers} numbers were compared");
}

/// Several steps replayed at once against the same steps one by one.
fn compare_replay(compile: impl Fn(&Program) -> Made) {
    const STEPS: usize = 3;
    type Replay = unsafe extern "C" fn(*const *mut f32, u64);
    let mut compared = 0usize;
    for model in models() {
        for n in [1, 6, 17, 31] {
            let program = program(&model, n, loops::WIDEST);
            let kernels = compile(&program);
            let Some(replay) = kernels.replay_steps else { continue };
            // SAFETY: the entry has this signature, and the code lives as long as `kernels`.
            let replay = unsafe { std::mem::transmute::<*const u8, Replay>(replay) };
            let matrices = program.matrices_len;
            // Frames of a boundary and of the steps, snapshots before and after every step.
            let regions = [
                (Base::Frame(-1), program.frame_len * (STEPS + 2)),
                (Base::Params, program.params_len),
                (Base::Scratch, program.scratch_len),
                (Base::Snapshot(0), matrices * (STEPS + 1)),
            ];
            let mut starts = [0; Base::ALL.len()];
            let mut end = 0;
            for (base, len) in regions {
                starts[base.slot()] = end;
                end += len;
            }
            starts[Base::Frame(0).slot()] = starts[Base::Frame(-1).slot()] + program.frame_len;
            starts[Base::Snapshot(1).slot()] = starts[Base::Snapshot(0).slot()] + matrices;
            let start = fill(end + LANES, n as u64);
            let (mut meant, mut found) = (start.clone(), start);
            for t in 0..STEPS {
                let mut starts = starts;
                starts[Base::Frame(-1).slot()] += t * program.frame_len;
                starts[Base::Frame(0).slot()] += t * program.frame_len;
                starts[Base::Snapshot(0).slot()] += t * matrices;
                starts[Base::Snapshot(1).slot()] += t * matrices;
                run(&program.replay, &mut Memory { cells: &mut meant, starts, widest: program.widest });
            }
            let pointers = starts.map(|at| &raw mut found[at]);
            // SAFETY: frames and snapshots of the steps follow each other in `found`.
            unsafe { replay(pointers.as_ptr(), STEPS as u64) };
            for (at, (m, f)) in meant.iter().zip(&found).enumerate() {
                assert!(same(*m, *f), "{} {n}: replay, element {at}: means {m:e}, found {f:e}", model.name);
            }
            compared += 1;
        }
    }
    assert!(compared > 20, "only {compared} programs were replayed");
}

/// Runs a routine with so many events in the logs, both ways.
fn compare_routine(
    name: &str,
    program: &Program,
    (routine, live): (&Routine, usize),
    entry: Entry,
    steps: usize,
) -> usize {
    let (starts, len) = regions(program, steps);
    let mut start = fill(len, (len + routine.nests.len()) as u64);
    start[starts[Base::Scratch.slot()] + LIVE] = f32::from_bits(live as u32);
    let (mut meant, mut found) = (start.clone(), start);
    run(routine, &mut Memory { cells: &mut meant, starts, widest: program.widest });
    let pointers = starts.map(|at| &raw mut found[at]);
    // SAFETY: the program keeps inside its regions, which all lie in `found`.
    unsafe { entry(pointers.as_ptr()) };
    for (at, (m, f)) in meant.iter().zip(&found).enumerate() {
        let region = starts.iter().rposition(|s| *s <= at).map(|slot| Base::ALL[slot]);
        let offset = starts.iter().rev().find(|s| **s <= at).map(|s| at - s);
        assert!(same(*m, *f), "{name}: {region:?}+{offset:?} means {m:e}, found {f:e}");
    }
    assert!(meant.iter().filter(|x| x.is_finite()).count() * 2 > len, "{name}");
    len
}

#[test]
fn cranelift_gives_the_bits_of_the_loop_ir() {
    compare(cranelift, loops::WIDEST);
    compare_events(cranelift);
}

/// With these vectors, if the machine has them.
fn x64_gives_the_bits_with(vectors: Vectors, missing: Option<String>) {
    if let Some(what) = missing {
        say(&format!("NOT RUN: the bits of the back end x64 with {vectors:?}: {what}"));
        return;
    }
    for widest in [1, 3, loops::WIDEST] {
        compare(|program| x64(program, vectors), widest);
    }
    compare_events(|program| x64(program, vectors));
    compare_teams(|program| x64(program, vectors));
    compare_replay(|program| x64(program, vectors));
}

#[test]
fn x64_gives_the_bits_of_the_loop_ir() {
    x64_gives_the_bits_with(Vectors::Avx2, x64::lacking());
}

#[test]
fn x64_gives_the_same_bits_with_wider_registers() {
    let has = Vectors::here() == Vectors::Avx512;
    let missing = (!has).then(|| "this processor has no AVX-512".to_owned());
    x64_gives_the_bits_with(Vectors::Avx512, x64::lacking().or(missing));
}
