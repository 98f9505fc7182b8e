//! The source of a few specs, as files that people read: `snapshots`. What is the same for all specs stands
//! in the first alone; `#line` too. They prove that nothing changes unseen.

use crate::device::{models, source};
use compiler::back::cuda::without_lines;
use std::collections::BTreeMap;

fn text(name: &str) -> String {
    let (text, model) = models().into_iter().find(|(_, m)| m.name == name).expect("the library has it");
    let named = model.axes.named.iter().enumerate();
    // Sizes that differ, so that no axis can be taken for another.
    let bound: BTreeMap<String, usize> = named.map(|(k, a)| (a.name.clone(), 5 + 2 * k)).collect();
    source(&text, &model, &bound).text
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
}
