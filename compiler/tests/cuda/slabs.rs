//! Rows shared by blocks: every launch gives the bits of the loop IR that is cut likewise, with blocks in any
//! order and with blocks that see nothing of each other; whole sequences agree with the interpreter. What a launch
//! would need of its own blocks is noticed, and so is every barrier that is left out.

use crate::bits::{compare, compare_all, fill_gently};
use crate::device::{Device, bind, has_compiler, models, sizes, source_for};
use crate::mistakes::barriers;
use crate::sequences::agree;
use compiler::back::cuda::{Grid, Source, StepKernel, Wanted};
use compiler::loops::{Cut, NAMES, parse, print};
use compiler::model::Model;
use std::sync::Arc;

/// Slabs, and rows of the batch in a block: narrow and wide, one stretch and several, one row and several.
const KINDS: [(Cut, usize); 4] = [
    (Cut { columns: 8, stretches: 4 }, 2),
    (Cut { columns: 32, stretches: 3 }, 1),
    (Cut { columns: 16, stretches: 8 }, 3),
    (Cut { columns: 32, stretches: 1 }, 2),
];

/// Sizes and numbers of steps.
const SIZES: [(usize, usize); 4] = [(33, 9), (1, 3), (31, 7), (100, 2)];

fn grid((cut, rows): (Cut, usize)) -> Grid {
    Grid { processors: 132, batch: 3, wanted: Wanted::Slabs(cut, rows) }
}

fn spec(name: &str) -> (String, Model) {
    models().into_iter().find(|(_, m)| m.name == name).expect("the library has it")
}

/// A model at a size; returns how many numbers and tensors agree.
fn check(text: &str, model: &Arc<Model>, (n, steps): (usize, usize), kind: (Cut, usize)) -> (usize, usize) {
    let bound = sizes(model, n);
    let source = source_for(text, model, &bound, grid(kind));
    let printed = print(&source.program);
    assert_eq!(print(&parse(&printed).expect("it reads back")), printed);
    let device = Device::new(&source);
    let numbers = compare_all(&source, &device, &format!("{} at {n}, {kind:?}", model.name));
    (numbers, agree(&source, &device, (model, &bind(model, &bound)), steps))
}

/// One spec in three, most at 33, some at other sizes, each with one kind of slabs; all at all with `BPM_CUDA=all`.
fn check_third(first: usize) {
    if !has_compiler() {
        return;
    }
    let all = std::env::var_os("BPM_CUDA").is_some_and(|v| v == "all");
    let (mut numbers, mut tensors, mut cut) = (0, 0, 0);
    for (k, (text, model)) in models().into_iter().enumerate().skip(first).step_by(3) {
        let model = Arc::new(model);
        for (which, size) in SIZES.into_iter().enumerate() {
            for (number, kind) in KINDS.into_iter().enumerate() {
                let is_turn = which == (k / 3 % 8).saturating_sub(4) && number == (k / 3) % 4;
                if all || is_turn {
                    let (n, t) = check(&text, &model, size, kind);
                    (numbers, tensors) = (numbers + n, tensors + t);
                    cut += 1;
                }
            }
        }
    }
    assert!(numbers > 1_000_000 && tensors > 1500 && cut > 20, "{numbers} numbers, {tensors} tensors, {cut}");
}

#[test]
fn a_third_of_the_library_in_slabs() {
    check_third(0);
}

#[test]
fn another_third_of_the_library_in_slabs() {
    check_third(1);
}

#[test]
fn the_last_third_of_the_library_in_slabs() {
    check_third(2);
}

/// Two launches as one: the blocks of the second do not wait for those of the first.
fn joined(source: &Source, routine: usize, rows: usize) -> (String, Vec<StepKernel>) {
    let [first, second] = &source.kernels[routine][..] else { panic!("two launches") };
    let (a, b, blocks) = (&first.name, &second.name, first.blocks(rows));
    let text = format!(
        "{}\nextern \"C\" __global__ void joined(const Tape tape, const At at) {{\n\
         if (blockIdx.x < {blocks}) return {a}(tape, at);\n  blockIdx.x -= {blocks};\n  {b}(tape, at);\n}}\n",
        source.text
    );
    // A grid of its own: one track of all blocks, for the rows that there are.
    let all = blocks + second.blocks(rows);
    assert!(all.is_multiple_of(rows));
    let slabs = vec![(all / rows, 1)];
    (text, vec![StepKernel { name: "joined".to_owned(), slabs, by_row: false, ..first.clone() }])
}

#[test]
fn a_launch_that_needs_its_own_blocks_is_noticed() {
    if !has_compiler() {
        return;
    }
    let (text, model) = spec("retroactive");
    let mut source = source_for(&text, &model, &sizes(&model, 41), grid(KINDS[1]));
    let device = Device::new(&source);
    for routine in [2, 8] {
        let whole = |seed| compare(&source, &device, routine, seed, fill_gently);
        assert!((1..5).all(|seed| whole(seed).is_ok_and(|n| n > 0)), "two launches");
    }
    for routine in [2, 8] {
        let kept = source.kernels[routine].clone();
        let (text, kernels) = joined(&source, routine, 3);
        let device = Device::of_text(&text, 32);
        source.kernels[routine] = kernels;
        let wrong = |seed| compare(&source, &device, routine, seed, fill_gently).is_err();
        assert!(wrong(2), "{}: blocks that see nothing of each other", NAMES[routine]);
        assert!((1..9).step_by(2).any(wrong), "{}: some order of blocks", NAMES[routine]);
        source.kernels[routine] = kept;
    }
}

#[test]
fn every_barrier_of_slabs_that_is_left_out_is_noticed() {
    if !has_compiler() {
        return;
    }
    let mut tried = 0;
    for name in ["retroactive", "simple_fanout", "modulated", "recurrent_delta"] {
        let (text, model) = spec(name);
        // More than one warp: the threads of one wait for each other in every shuffle.
        let slabs = (Cut { columns: 8, stretches: 8 }, 2);
        let source = source_for(&text, &model, &sizes(&model, 41), grid(slabs));
        let device = Device::new(&source);
        for (number, kernel) in barriers(&source).iter().enumerate() {
            let is_of = |k: &usize| source.kernels[*k].iter().any(|s| s.name == *kernel);
            let Some(routine) = (0..NAMES.len()).find(is_of) else { continue };
            device.leave_out(i32::try_from(number).expect("few barriers"));
            let is_noticed =
                (1..9).any(|seed| compare(&source, &device, routine, seed, fill_gently).is_err());
            assert!(is_noticed, "{name}: {kernel} gives the same bits without barrier {number}");
            device.leave_out(-1);
            assert!(compare(&source, &device, routine, 1, fill_gently).is_ok_and(|n| n > 0));
            tried += 1;
        }
    }
    assert!(tried > 60, "only {tried} barriers were left out");
}

/// What the solver takes for the sizes that were counted by hand.
#[test]
fn large_rows_are_shared_and_small_ones_are_not() {
    let choice = |name: &str, n: usize, batch: usize| {
        let (text, model) = spec(name);
        let mut bound = sizes(&model, n);
        for (axis, size) in &mut bound {
            if axis != "N" {
                *size = 17;
            }
        }
        let grid = Grid { processors: 132, batch, wanted: Wanted::Fastest };
        let source = source_for(&text, &model, &bound, grid);
        source.choice.expect("there was one")
    };
    for (name, n, batch) in [("retroactive", 256, 64), ("modulated", 1149, 6), ("plastic_lstm", 1149, 6)] {
        let found = choice(name, n, batch);
        assert!([2, 5, 8].iter().all(|k| found.cuts[*k].is_some()), "{name}: {}", found.text());
        let sum = |t: [f64; 3]| t.iter().sum::<f64>();
        assert!(2.0 * sum(found.times) < sum(found.by_rows), "{name}: {}", found.text());
    }
    assert_eq!(choice("retroactive", 256, 64).launches(), [2, 1, 2]);
    let small = choice("retroactive", 8, 2000);
    assert!([2, 8].iter().all(|k| small.cuts[*k].is_none()), "{}", small.text());
}
