//! Every spec of the library: gradients against finite differences, and machine code against the
//! interpreter, forward and backward.

mod support;

use compiler::gradcheck::{self, Options};
use runtime::engine::{Backend, EngineOptions};
use support::{all_specs, compare, small_sizes};

#[test]
fn gradients_agree_with_finite_differences() {
    for (name, model) in all_specs() {
        let sizes = small_sizes(&model, 5);
        let report = gradcheck::check(&model, &sizes, &Options::default());
        for row in &report.rows {
            assert!(
                row.error < 1e-5,
                "{name}: {} is off by {:.1e} (norm {:.1e})",
                row.name,
                row.error,
                row.norm
            );
        }
        assert!(report.dot_error < 1e-10, "{name}: dot-product test off by {:.1e}", report.dot_error);
    }
}

#[test]
fn machine_code_agrees_with_the_interpreter() {
    for (name, model) in all_specs() {
        for (size, steps) in [(1, 3), (3, 7), (5, 1), (31, 10), (33, 5)] {
            let sizes = small_sizes(&model, size);
            let options =
                Options { steps, state_scale: 0.3, reset_at: (steps > 5).then_some(4), ..Options::default() };
            let worst = compare(&model, &sizes, &options, Backend::CRANELIFT, &EngineOptions::default());
            assert!(
                worst.error < 2e-3,
                "{name}, size {size}, {steps} steps: {} is off by {:.1e}",
                worst.name,
                worst.error
            );
        }
    }
}
