//! The source of a few specs, as files that people read: `snapshots`. What is the same for all specs stands
//! in the first alone; `#line` too. They prove that nothing changes unseen.

use crate::device::{models, sequences, source, source_for};
use compiler::back::cuda::without_lines;
use compiler::back::cuda::{Arch, Device, Grid, Replay, Wanted};
use compiler::loops::Cut;
use compiler::model::Model;
use std::collections::BTreeMap;

fn spec(name: &str) -> (String, Model, BTreeMap<String, usize>) {
    let (text, model) = models().into_iter().find(|(_, m)| m.name == name).expect("the library has it");
    let named = model.axes.named.iter().enumerate();
    // Sizes that differ, so that no axis can be taken for another.
    let bound = named.map(|(k, a)| (a.name.clone(), 5 + 2 * k)).collect();
    (text, model, bound)
}

fn text(name: &str) -> String {
    let (text, model, bound) = spec(name);
    source(&text, &model, &bound).text
}

/// The kernels of whole sequences, without `#line`.
fn whole(name: &str, cluster: usize) -> String {
    let (text, model, bound) = spec(name);
    let arch = Arch::named("sm_90a").expect("it is known");
    let device = Device { arch, batch: 2, steps: 0, wanted: Some((cluster, 64)), replay: Replay::Cheapest };
    let (source, _) = sequences(&text, &model, &bound, &device).expect("it fits");
    let all = without_lines(&source.text);
    let start = all.find("// All steps of a stretch").expect("the first of two kernels");
    all[start..].to_owned()
}

/// The kernels of a step whose rows are shared by blocks, without `#line`: three slabs of eight columns, two
/// stretches, two rows of the batch at a time.
fn slabs(name: &str) -> String {
    let (text, model, mut bound) = spec(name);
    bound.insert("N".to_owned(), 19);
    let wanted = Wanted::Slabs(Cut { columns: 8, stretches: 2 }, 2);
    let source = source_for(&text, &model, &bound, Grid { processors: 132, batch: 2, wanted });
    let all = without_lines(&source.text);
    let start = all.find("// A later step").expect("the first of its launches");
    let end = all.find("// What the last step left").expect("the kernel behind it");
    let back = all.find("// The adjoint of an earlier step").expect("the first of its launches");
    let last = all.find("// What the adjoint of the first step").expect("the kernel behind it");
    all[start..end].to_owned() + &all[back..last]
}

/// What depends on the spec, without `#line`.
fn own_part(name: &str) -> String {
    let whole = without_lines(&text(name));
    let start = whole.find("// Threads of a block").expect("the sizes come behind the prelude");
    whole[start..].to_owned()
}

#[test]
fn sources_are_as_they_were() {
    insta::assert_snapshot!("retroactive", text("retroactive"));
    insta::assert_snapshot!("simple_fanout", own_part("simple_fanout"));
    insta::assert_snapshot!("modulated", own_part("modulated"));
    insta::assert_snapshot!("stpn", own_part("stpn"));
    insta::assert_snapshot!("slabs_retroactive", slabs("retroactive"));
    insta::assert_snapshot!("whole_retroactive", whole("retroactive", 1));
    insta::assert_snapshot!("whole_retroactive_in_two_blocks", whole("retroactive", 2));
    insta::assert_snapshot!("whole_deltanet", whole("deltanet", 1));
}
