//! Kernels of single steps in one direction and of whole sequences in the other, in one source: they agree with the
//! interpreter, and each way has the bits that it has beside its own kind. And which of the two is chosen.

use crate::device::{Device, bind, chosen, has_compiler, models, sizes};
use crate::sequences::{agree, bits_at};
use compiler::back::cuda::Tier::{Sequences, Steps};
use compiler::back::cuda::{self, Arch, Grid, Refusal, Route, Source, Tier, Wanted, Wish};
use compiler::gradcheck::Options;
use compiler::loops::Cut;
use compiler::model::Model;
use std::sync::Arc;

/// Steps in slabs, sequences in blocks or clusters.
fn places(cluster: usize) -> (Grid, cuda::Device) {
    let arch = Arch::named("sm_90a").expect("it is known");
    let slabs = Wanted::Slabs(Cut { columns: 16, stretches: 4 }, 2);
    let wanted = Some((cluster, 64));
    (Grid { processors: 132, batch: 3, wanted: slabs }, cuda::Device { wanted, ..cuda::Device::new(arch, 3) })
}

fn emitted(
    text: &str,
    model: &Model,
    n: usize,
    cluster: usize,
    tiers: [Tier; 2],
) -> Result<(Source, Route), Refusal> {
    let (grid, device) = places(cluster);
    let wish = Wish { tiers: Some(tiers), one_by_one: false };
    chosen(text, model, &sizes(model, n), (grid, &device), wish)
}

#[test]
fn mixed_sources_agree_with_the_interpreter() {
    if !has_compiler() {
        return;
    }
    let all = std::env::var_os("BPM_CUDA").is_some_and(|v| v == "all");
    let (mut tensors, mut ran) = (0, 0);
    for (k, (text, model)) in models().into_iter().enumerate() {
        let model = Arc::new(model);
        for (which, tiers) in [[Steps, Sequences], [Sequences, Steps]].into_iter().enumerate() {
            if !all && k % 10 != 5 * which {
                continue;
            }
            let cluster = 1 + k / 10 % 2;
            let Ok((source, route)) = emitted(&text, &model, 33, cluster, tiers) else { continue };
            assert_eq!(route.tiers(), tiers.map(Tier::number));
            tensors += agree(&source, &Device::new(&source), (&model, &bind(&model, &sizes(&model, 33))), 9);
            ran += 1;
        }
    }
    assert!(ran > 8 && tensors > 50 * ran, "{ran} ran, {tensors} tensors");
}

/// The way forward gives outputs and states, the way back the rest: each has the bits of a source of its kind, as long as
/// it starts from the same numbers; and no bit of either depends on the interval between checkpoints.
#[test]
fn a_direction_has_the_bits_of_its_kind() {
    if !has_compiler() {
        return;
    }
    let (text, model) = models().into_iter().find(|(_, m)| m.name == "retroactive").expect("the library");
    let model = Arc::new(model);
    let of = (&model, &bind(&model, &sizes(&model, 21)));
    let run = |tiers: [Tier; 2], interval: usize, seed: u64| {
        let (source, _) = emitted(&text, &model, 21, 2, tiers).expect("it fits");
        // Numbers that are large enough for clips.
        let options = Options { steps: 13, state_scale: 1.5, reset_at: Some(3), ..Options::default() };
        bits_at(&source, &Device::new(&source), of, &options, (interval, seed)).expect("it runs")
    };
    let is_forward = |name: &str| name.starts_with("out.") || name.starts_with("state.");
    let mut compared = 0;
    for tiers in [[Steps, Sequences], [Sequences, Steps]] {
        let found = run(tiers, 8, 1);
        for interval in [1, 3, 5, 21] {
            assert!(run(tiers, interval, 7) == found, "{tiers:?}, every {interval}");
        }
        for (key, expected) in run([tiers[0]; 2], 8, 3).iter().filter(|(key, _)| is_forward(&key.0)) {
            assert!(found.get(key) == Some(expected), "{tiers:?}: {key:?} has other bits");
            compared += 1;
        }
    }
    assert!(compared > 60, "{compared} tensors");
}

/// What is estimated to take less time is taken, direction by direction; what is asked for is taken or refused; what
/// cannot be mapped falls back alone.
#[test]
fn the_smaller_estimate_decides() {
    let (text, model) = models().into_iter().find(|(_, m)| m.name == "simple").expect("the library");
    let candidates = |arch: Arch, n: usize, batch: usize| {
        let bound = [("I", 17), ("N", n), ("A", 4)].map(|(name, n)| (name.to_owned(), n)).into();
        let usage = compiler::loops::plan::Use {
            batch,
            steps: 200,
            threads: 1,
            tapes: compiler::loops::plan::Tapes::PerThread,
            checkpoint_every: None,
            memory: None,
        };
        let subject = compiler::stages::Subject {
            file: "simple.bpm",
            source: &text,
            model: &model,
            bound: &bound,
            usage: &usage,
        };
        let grid = Grid { processors: arch.processors, batch, wanted: Wanted::Fastest };
        compiler::stages::cuda_candidates(&subject, grid, &cuda::Device::new(arch, batch)).expect("sizes")
    };
    let sm_90 = Arch::named("sm_90a").expect("it is known");
    let (mut taken, mut alone) = ([0, 0], 0);
    for (n, batch) in [(9, 3), (100, 30), (300, 64), (400, 3), (600, 64)] {
        for shared in [20_000, 100_000, sm_90.shared] {
            let found = candidates(Arch { shared, ..sm_90 }, n, batch);
            let route = found.choose(Wish::default()).expect("anything will do");
            for (direction, mapped) in route.directions.iter().zip(&found.sequences) {
                let least =
                    mapped.as_ref().map_or(direction.steps, |m| m.microseconds().min(direction.steps));
                assert_eq!(direction.microseconds(), least, "{route}");
                taken[usize::from(direction.tier == Sequences)] += 1;
            }
            let fit = found.sequences.each_ref().map(Result::is_ok);
            alone += usize::from(fit == [true, false] && route.tiers() == [2, 1]);
            for tiers in [[Steps, Steps], [Steps, Sequences], [Sequences, Steps], [Sequences, Sequences]] {
                let forced = found.choose(Wish { tiers: Some(tiers), one_by_one: false });
                let possible = (0..2).all(|k| tiers[k] == Steps || fit[k]);
                match forced {
                    Ok(forced) => assert!(possible && forced.tiers() == tiers.map(Tier::number)),
                    Err(Refusal(why)) => {
                        let word = if tiers[0] == Sequences && !fit[0] { "forward" } else { "backward" };
                        assert!(!possible && why.starts_with(&format!("going {word}: ")), "{why}");
                    }
                }
            }
            let answered = found.choose(Wish { tiers: None, one_by_one: true }).expect("anything will do");
            assert_eq!(answered.tiers(), [1, route.tiers()[1]]);
        }
    }
    assert!(taken.iter().all(|n| *n > 3) && alone > 0, "{taken:?} by steps and by sequences, {alone} alone");
}
