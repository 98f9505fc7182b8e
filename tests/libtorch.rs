//! libtorch beside the interpreter: every spec of the library, in both widths, and through the engine's interface.
//! Operations and their kinks are in `operations.rs`, random models in `random_specs.rs`, training in
//! `runtime/tests/devices.rs`. Where libtorch is not built in, a line says so; `libtorch.sh` builds it in.

mod support;

use compiler::gradcheck::Options;
use runtime::engine::{Backend, EngineOptions};
use runtime::exact::Dtype;
use runtime::gradcheck::{self, Check};
use support::{all_specs, compare, has_libtorch, small_sizes};
use torch::Place;

const HERE: Backend = Backend::Torch(Place::Processor);

fn check(dtype: Dtype) -> Check {
    Check { seed: 0, steps: 6, rows: 3, dtype, place: Place::Processor, state_scale: 0.5 }
}

/// Autograd knows nothing of our adjoint, and both agree to rounding.
#[test]
fn every_spec_agrees_with_the_interpreter_in_64_bits() {
    if !has_libtorch() {
        return;
    }
    for (name, model) in all_specs() {
        for (size, steps, state_scale) in [(1, 3, 0.5), (5, 7, 0.5), (4, 5, 2.5)] {
            let sizes = small_sizes(&model, size);
            let wanted = Check { steps, state_scale, ..check(Dtype::F64) };
            let report = gradcheck::check(&model, &sizes, &wanted).expect("libtorch runs");
            assert!(report.passed(), "{name}, size {size}: {:?}\n{}", report.worst(), report.text());
        }
    }
}

/// Through the engine's interface, as machine code is compared.
#[test]
fn every_spec_agrees_with_the_interpreter_in_32_bits() {
    if !has_libtorch() {
        return;
    }
    for (name, model) in all_specs() {
        for (size, steps) in [(3, 7), (31, 5)] {
            let sizes = small_sizes(&model, size);
            let options =
                Options { steps, state_scale: 0.3, reset_at: (steps > 5).then_some(4), ..Options::default() };
            let worst = compare(&model, &sizes, &options, HERE, &EngineOptions::default());
            assert!(worst.error < 2e-3, "{name}, size {size}: {} is off by {:.1e}", worst.name, worst.error);
        }
    }
}

/// A clip that acts, states that are reset in one row and not in another, and gradients of everything that is learned:
/// what is compared is there.
#[test]
fn nothing_is_compared_with_nothing() {
    if !has_libtorch() {
        return;
    }
    let model = support::spec("backpropamine/retroactive.bpm");
    let sizes = small_sizes(&model, 5);
    let report = gradcheck::check(&model, &sizes, &check(Dtype::F64)).expect("libtorch runs");
    for prefix in ["out.", "state.", "grad.", "grad.in.", "grad.init."] {
        let of_kind = report.lines.iter().filter(|l| l.name.starts_with(prefix));
        assert!(of_kind.clone().count() > 0 && of_kind.clone().all(|l| l.norm > 1e-3), "{}", report.text());
    }
    assert!(!report.clone().within(0.0).passed(), "rounding differs: both are computed");
}

/// What no spec of the library has: a gradient that is stopped on its way through time, and a function where libtorch's
/// own takes a short cut. The errors are those of rounding, so the bound is, too.
#[test]
fn stopped_gradients_and_large_arguments_agree() {
    if !has_libtorch() {
        return;
    }
    for text in [
        "spec s {\n  axis N = 4\n  in x[N]\n  learn k = 0.5\n  state y[N] = 0\n  y' = tanh(k * y + stopgrad(y) * x + x)\n  \
         out o[N] = y' * stopgrad(k * y')\n}",
        "spec s {\n  axis N = 4\n  in x[N]\n  out o[N] = softplus(21 + x)\n  out p[N] = softplus(40 * x)\n}",
        "spec s {\n  axis N = 4\n  in x[N]\n  state y[N] = 0\n  y' = clip_st(y + x, -0.3, 0.3)\n  out o[N] = sign_st(y')\n}",
    ] {
        let model = support::model_of(text);
        let sizes = small_sizes(&model, 4);
        let report = gradcheck::check(&model, &sizes, &check(Dtype::F64)).expect("libtorch runs");
        let report = report.within(1e-13);
        assert!(report.passed(), "{text}\n{}", report.text());
    }
}
