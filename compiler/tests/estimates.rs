//! The table of `docs/gpu.md` that says what `--tier auto` takes of some networks, as the compiler estimates it today.

use compiler::back::cuda::{Arch, Device, Grid, Wanted, Wish};
use compiler::loops::plan::{Tapes, Use};
use compiler::stages::{self, Subject};
use std::fmt::Write;
use std::path::Path;

/// A file, a spec, sizes, rows of the batch.
type Network = (&'static str, &'static str, &'static [(&'static str, usize)], usize);

const NETWORKS: [Network; 12] = [
    ("backpropamine/retroactive", "retroactive", &[("N", 128), ("I", 17), ("A", 4)], 32),
    ("backpropamine/retroactive", "retroactive", &[("N", 256), ("I", 17), ("A", 4)], 64),
    ("backpropamine/retroactive", "retroactive", &[("N", 512), ("I", 17), ("A", 4)], 16),
    ("backpropamine/retroactive", "retroactive", &[("N", 1024), ("I", 17), ("A", 4)], 1),
    ("backpropamine/simple", "simple", &[("N", 100), ("I", 17), ("A", 4)], 30),
    ("backpropamine/simple", "simple", &[("N", 300), ("I", 17), ("A", 4)], 64),
    ("differentiable_plasticity/hebb", "hebb", &[("N", 100), ("I", 17), ("A", 4)], 30),
    ("differentiable_plasticity/pattern_completion", "pattern_completion", &[("N", 1001)], 1),
    ("zoo/stpn", "stpn", &[("N", 128), ("I", 17), ("A", 4)], 64),
    ("zoo/deltanet", "deltanet", &[("D", 64), ("I", 64), ("O", 64)], 64),
    ("plastic_lstm/plastic", "plastic_lstm", &[("N", 256), ("I", 400), ("O", 50)], 20),
    ("plastic_lstm/plastic", "plastic_lstm", &[("N", 1149), ("I", 400), ("O", 50)], 6),
];

/// A line of the table.
fn line((file, spec, sizes, batch): Network) -> String {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../specs");
    let source = std::fs::read_to_string(root.join(format!("{file}.bpm"))).expect("a spec");
    let model =
        compiler::check::check(&source).models.into_iter().find(|m| m.name == spec).expect("it is there");
    let bound = sizes.iter().map(|(name, n)| ((*name).to_owned(), *n)).collect();
    let (steps, threads, tapes) = (200, 1, Tapes::PerThread);
    let usage = Use { batch, steps, threads, tapes, checkpoint_every: None, memory: None };
    let subject = Subject { file, source: &source, model: &model, bound: &bound, usage: &usage };
    let arch = Arch::named("sm_90a").expect("it is known");
    let grid = Grid { processors: arch.processors, batch, wanted: Wanted::Fastest };
    let candidates =
        stages::cuda_candidates(&subject, grid, &Device::new(arch, batch).for_steps(steps)).expect("sizes");
    let route = candidates.choose(Wish::default()).expect("anything will do");
    let cells = route.directions.each_ref().map(|d| {
        let sequences = d.sequences.as_ref().map_or("—".to_owned(), |us| format!("{us:.1}"));
        format!("{:.1} | {sequences}", d.steps)
    });
    let (name, n) = sizes[0];
    let [forward, backward] = &cells;
    format!("| `{spec}` {name} = {n}, batch {batch} | {forward} | {backward} | {} |\n", route.number())
}

#[test]
fn the_document_has_the_estimates_of_today() {
    let mut table = String::from(
        "| | forward, steps | sequences | backward, steps | sequences | `auto` |\n|---|---|---|---|---|---|\n",
    );
    NETWORKS.into_iter().for_each(|network| {
        let _ = write!(table, "{}", line(network));
    });
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/gpu.md");
    let document = std::fs::read_to_string(path).expect("the document");
    assert!(
        document.contains(&table),
        "docs/gpu.md has another table of estimates; this is today's:\n\n{table}"
    );
}
