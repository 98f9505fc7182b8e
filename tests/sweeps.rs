//! One sweep per step each way, for every rule that allows it; the others are listed with why.

mod support;

use runtime::engine::{Backend, Engine, EngineOptions};
use support::{all_specs, small_sizes};

/// Specs with more than one sweep over a plastic matrix per step: forward, backward, reason.
const MORE: [(&str, usize, usize, &str); 6] = [
    ("abcd", 3, 3, "a norm of the written matrices must be known before they are written"),
    ("abcd_example", 2, 2, "a norm of the written matrix must be known before it is written"),
    ("feedback_oja", 2, 2, "the second layer is read with the first layer's activity"),
    ("oja_subspace_example", 2, 2, "the matrix is read again with the new activity"),
    ("srwm", 2, 2, "the matrix is read with a query that it has just given"),
    ("metods", 2, 1, "the written matrix is read before the step's output"),
];

#[test]
fn sweeps_per_step() {
    for (name, model) in all_specs() {
        let sizes = small_sizes(&model, 5);
        let engine =
            Engine::new(model, sizes, Backend::CRANELIFT, &EngineOptions::default()).expect("it compiles");
        let program = engine.program();
        let found = (program.forward.sweeps(), program.backward.sweeps());
        let listed = MORE.iter().find(|(n, ..)| *n == name);
        match listed {
            Some((_, forward, backward, why)) => assert_eq!(found, (*forward, *backward), "{name}: {why}"),
            None => assert!(found.0 < 2 && found.1 < 2, "{name} takes {found:?} sweeps"),
        }
    }
}
