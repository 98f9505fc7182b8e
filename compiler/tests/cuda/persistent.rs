//! Kernels of whole sequences against the interpreter, as [`crate::sequences`] checks kernels of single steps:
//! one block for each row of the batch, and clusters of blocks. By default one spec in four at 33, a few at
//! 1, 31 and 100; all specs at all sizes in several mappings with `BPM_CUDA=all`.

use crate::device::{Device, bind, has_compiler, models, sequences, sizes, source};
use crate::mistakes::barriers;
use crate::sequences::{agree, bits, bits_at};
use compiler::back::cuda::{self, Arch, Replay};
use compiler::gradcheck::Options;
use compiler::ir::Sizes;
use compiler::model::Model;
use std::sync::Arc;

/// Blocks of a cluster and threads of a block.
type Mapping = (usize, usize);

fn on(wanted: Option<Mapping>) -> cuda::Device {
    cuda::Device {
        arch: Arch::named("sm_90a").expect("it is known"),
        batch: 2,
        steps: 0,
        wanted,
        replay: Replay::Cheapest,
    }
}

/// A model at a size on a device; how many tensors agree, or why it has no such kernels.
fn check(
    text: &str,
    model: &Arc<Model>,
    (n, steps): (usize, usize),
    device: &cuda::Device,
) -> Result<usize, String> {
    let bound = sizes(model, n);
    let (source, _) = sequences(text, model, &bound, device).map_err(|why| why.to_string())?;
    Ok(agree(&source, &Device::new(&source), (model, &bind(model, &bound)), steps))
}

/// The mappings of the whole test: sizes, steps, blocks and threads.
const ALL: [((usize, usize), Mapping); 8] = [
    ((33, 9), (1, 160)),
    ((33, 9), (2, 96)),
    ((1, 3), (1, 64)),
    ((31, 7), (4, 64)),
    ((100, 2), (1, 416)),
    ((100, 4), (4, 128)),
    ((33, 4), (8, 32)),
    ((100, 3), (16, 32)),
];

#[test]
fn whole_sequences_agree_with_the_interpreter() {
    if !has_compiler() {
        return;
    }
    let all = std::env::var_os("BPM_CUDA").is_some_and(|v| v == "all");
    let (mut tensors, mut refused, mut ran) = (0, vec![], 0);
    for (k, (text, model)) in models().into_iter().enumerate() {
        let model = Arc::new(model);
        for (which, (size, mapping)) in ALL.into_iter().enumerate() {
            // The large ones take longest.
            let chosen = match which {
                0 => k % 4 == 0,
                1 => k % 8 == 1,
                4 | 5 => k % 40 == which,
                _ => k % 20 == which,
            };
            if !all && !chosen {
                continue;
            }
            match check(&text, &model, size, &on(Some(mapping))) {
                Ok(n) => (tensors, ran) = (tensors + n, ran + 1),
                Err(why) => refused.push(format!("{} {size:?} {mapping:?}: {why}", model.name)),
            }
        }
    }
    let is_known = |why: &&String| {
        why.contains("the largest value of a whole matrix") || why.contains("columns more than")
    };
    let unknown: Vec<&String> = refused.iter().filter(|why| !is_known(why)).collect();
    assert!(unknown.is_empty(), "{unknown:#?}");
    assert!(refused.len() * 10 < ran && tensors > 50 * ran, "{ran} ran, {tensors} tensors, {refused:#?}");
}

/// Matrices in registers, in shared memory, and in the device's memory.
#[test]
fn it_does_not_matter_where_matrices_lie() {
    if !has_compiler() {
        return;
    }
    let small = Arch { shared: 72_000, ..Arch::named("sm_90a").expect("it is known") };
    let roomy = Arch::named("sm_90a").expect("it is known");
    let mut seen = String::new();
    for (text, model) in
        models().into_iter().filter(|(_, m)| ["retroactive", "stpn"].contains(&m.name.as_str()))
    {
        let model = Arc::new(model);
        for (arch, wanted) in [(roomy, (1, 256)), (roomy, (1, 64)), (small, (1, 64)), (small, (2, 32))] {
            let device =
                cuda::Device { arch, batch: 2, steps: 0, wanted: Some(wanted), replay: Replay::Cheapest };
            let bound = sizes(&model, 58);
            let Ok((source, mapping)) = sequences(&text, &model, &bound, &device) else { continue };
            mapping.iter().for_each(|m| seen.push_str(&m.text(&arch)));
            assert!(agree(&source, &Device::new(&source), (&model, &bind(&model, &bound)), 7) > 20);
        }
    }
    for (kind, at_least) in [("registers, ", 12), ("shared memory, ", 12), ("device's memory", 4)] {
        let count = seen.matches(kind).count();
        assert!(count >= at_least, "only {count} matrices lie in {kind}");
    }
}

/// States that were rebuilt on the chip, with any number of slots, have the bits of those that went through memory, and
/// so have all gradients: in segments of any length, for clips that hit (the states' numbers are large) or do not.
#[test]
fn states_come_back_with_their_bits() {
    if !has_compiler() {
        return;
    }
    let (mut compared, mut on_chip) = (0, 0);
    let (mut numbers, mut at_the_bound) = (0, 0);
    let wanted = ["retroactive", "recurrent_delta", "stpn"];
    for (text, model) in models().into_iter().filter(|(_, m)| wanted.contains(&m.name.as_str())) {
        let model = Arc::new(model);
        let bound = sizes(&model, 21);
        let of = (&model, &bind(&model, &bound));
        for mapping in [(1, 96), (2, 64)] {
            let with = |replay: Replay| {
                let device = cuda::Device { replay, ..on(Some(mapping)) };
                let (source, [_, backward]) = sequences(&text, &model, &bound, &device).expect("it fits");
                let words = backward.states().unwrap_or_default();
                assert_eq!(
                    replay == Replay::Memory,
                    words.contains("through the device's memory"),
                    "{words}"
                );
                (Device::new(&source), source)
            };
            let run = |(device, source): &(Device, cuda::Source), interval: usize, seed: u64| {
                let state_scale = if interval.is_multiple_of(2) { 0.3 } else { 1.5 };
                let options = Options { steps: 13, state_scale, reset_at: Some(3), ..Options::default() };
                bits_at(source, device, of, &options, (interval, seed)).expect("it runs")
            };
            let memory = with(Replay::Memory);
            let intervals = [2, 5, 8, 21];
            let expected = intervals.map(|interval| run(&memory, interval, 1));
            for slots in 0..=3 {
                let chip = with(Replay::Slots(slots));
                on_chip += 1;
                for (interval, expected) in intervals.into_iter().zip(&expected) {
                    let found = run(&chip, interval, 7);
                    assert!(found == *expected, "{} {mapping:?} {slots} slots, every {interval}", model.name);
                    compared += found.len();
                    if model.name == "retroactive" && !interval.is_multiple_of(2) {
                        let states = found.iter().filter(|((name, _), _)| name == "state.H");
                        let states: Vec<f32> =
                            states.flat_map(|(_, x)| x).map(|b| f32::from_bits(*b)).collect();
                        numbers += states.len();
                        at_the_bound += states.iter().filter(|x| x.abs() == 1.0).count();
                    }
                }
            }
        }
    }
    assert!(on_chip >= 24 && compared > 5000, "{on_chip} kernels, {compared} tensors");
    let clipped = at_the_bound as f64 / numbers as f64;
    assert!((0.05..0.95).contains(&clipped), "{clipped} of the states are clipped");
}

/// With one thread for each column, going forward, every operation is that of the kernel of a step.
#[test]
fn one_row_group_gives_the_bits_of_single_steps() {
    if !has_compiler() {
        return;
    }
    let mut compared = 0;
    let wanted = ["retroactive", "hebb", "simple_fanout"];
    for (text, model) in models().into_iter().filter(|(_, m)| wanted.contains(&m.name.as_str())) {
        let model = Arc::new(model);
        let bound = sizes(&model, 40);
        // One of these is an LSTM, with more columns than threads.
        let Ok((whole, _)) = sequences(&text, &model, &bound, &on(Some((1, 64)))) else { continue };
        let single = source(&text, &model, &bound);
        let of = (&model, &bind(&model, &bound));
        let results = [&whole, &single].map(|s| bits(s, &Device::new(s), of, (9, 5)).expect("it runs"));
        for (key, expected) in &results[1] {
            if key.0.starts_with("out.") || key.0.starts_with("state.") {
                assert!(results[0].get(key) == Some(expected), "{}: {key:?} has other bits", model.name);
                compared += 1;
            }
        }
    }
    assert!(compared > 60, "only {compared} tensors");
}

/// Whether a kernel with a barrier less gives other bits, or does not run, for some order of threads.
fn is_noticed(source: &cuda::Source, device: &Device, of: (&Arc<Model>, &Sizes), expected: &Bits) -> bool {
    (1..7).any(|seed| bits(source, device, of, (3, seed)).as_ref() != Ok(expected))
}

type Bits = std::collections::BTreeMap<(String, usize), Vec<u32>>;

#[test]
fn barriers_of_sequences_that_are_left_out_are_noticed() {
    if !has_compiler() {
        return;
    }
    let (mut tried, mut unnoticed) = (0, vec![]);
    let all = std::env::var_os("BPM_CUDA").is_some_and(|v| v == "all");
    let mappings: &[Mapping] = if all { &[(2, 64), (1, 128)] } else { &[(2, 64)] };
    let wanted = ["retroactive", "recurrent_delta"];
    for (text, model) in models().into_iter().filter(|(_, m)| wanted.contains(&m.name.as_str())) {
        let model = Arc::new(model);
        let bound = sizes(&model, 41);
        let sizes = bind(&model, &bound);
        for mapping in mappings.iter().copied() {
            let (source, _) = sequences(&text, &model, &bound, &on(Some(mapping))).expect("it fits");
            let device = Device::new(&source);
            let of = (&model, &sizes);
            let expected = bits(&source, &device, of, (3, 1)).expect("it runs");
            for (number, kernel) in barriers(&source).iter().enumerate() {
                if !kernel.ends_with("_sequence") {
                    continue;
                }
                device.leave_out(i32::try_from(number).expect("few barriers"));
                tried += 1;
                if !is_noticed(&source, &device, of, &expected) {
                    unnoticed.push(format!("{} {mapping:?} {kernel} barrier {number}", model.name));
                }
                device.leave_out(-1);
            }
            assert!(!is_noticed(&source, &device, of, &expected));
        }
    }
    // The rule takes any thread for a reader of a sweep's vectors, and all of shared memory for taken; a few
    // barriers are more than these sizes need.
    assert!(tried > 50 && unnoticed.len() * 6 < tried, "{tried} barriers, not noticed: {unnoticed:#?}");
}
