//! What the compiler makes of a few specs, stage by stage, as files that people read:
//! `golden/<stage>/<spec>.txt`. They prove that nothing changes unseen; other tests prove that it is
//! right. `UPDATE_GOLDEN=1` rewrites them.

mod support;

use compiler::loops::plan::{Tapes, Use};
use compiler::model::Model;
use compiler::stages::{Stage, Subject, emit};
use std::collections::BTreeMap;

/// Specs that differ in what they ask of the compiler.
const SPECS: [&str; 6] = [
    "backpropamine/retroactive.bpm",
    "backpropamine/simple_fanout.bpm",
    "plastic_lstm/modulated.bpm",
    "zoo/stpn.bpm",
    "zoo/deltanet.bpm",
    "zoo/srwm.bpm",
];

const STAGES: [Stage; 6] =
    [Stage::Step, Stage::Simplified, Stage::Adjoint, Stage::Loops, Stage::Plan, Stage::Torch];

/// Sizes that differ, so that no axis can be taken for another.
fn sizes(model: &Model) -> BTreeMap<String, usize> {
    let named = model.axes.named.iter().enumerate();
    named.map(|(k, axis)| (axis.name.clone(), 5 + 2 * k)).collect()
}

/// The first lines that differ, with their neighbours.
fn difference(expected: &str, found: &str) -> String {
    let (a, b): (Vec<&str>, Vec<&str>) = (expected.lines().collect(), found.lines().collect());
    let at = a.iter().zip(&b).take_while(|(x, y)| x == y).count();
    let mut text = String::new();
    for line in &a[at.saturating_sub(2)..at] {
        text.push_str(&format!("  {line}\n"));
    }
    a.iter().skip(at).take(4).for_each(|line| text.push_str(&format!("- {line}\n")));
    b.iter().skip(at).take(4).for_each(|line| text.push_str(&format!("+ {line}\n")));
    format!("line {}:\n{text}", at + 1)
}

#[test]
fn stages_are_as_they_were() {
    let update = std::env::var_os("UPDATE_GOLDEN").is_some();
    let usage = Use {
        batch: 4,
        steps: 12,
        threads: 2,
        tapes: Tapes::PerThread,
        checkpoint_every: None,
        memory: None,
    };
    let mut changed = vec![];
    for path in SPECS {
        let model = support::spec(path);
        let source = std::fs::read_to_string(support::root().join("specs").join(path)).expect("a spec");
        let bound = sizes(&model);
        let subject = Subject { file: path, source: &source, model: &model, bound: &bound, usage: &usage };
        for stage in STAGES {
            let found = emit(stage, &subject).expect("it can be emitted");
            let folder = support::root().join("tests/golden").join(stage.word());
            let file = folder.join(format!("{}.txt", model.name));
            if update {
                std::fs::create_dir_all(&folder).expect("the folder can be made");
                std::fs::write(&file, &found).expect("the file can be written");
                continue;
            }
            let expected = std::fs::read_to_string(&file).unwrap_or_default();
            if expected != found {
                let name = format!("{}/{}.txt", stage.word(), model.name);
                changed.push(format!("{name}, {}", difference(&expected, &found)));
            }
        }
    }
    assert!(changed.is_empty(), "changed; UPDATE_GOLDEN=1 rewrites them:\n\n{}", changed.join("\n"));
}
