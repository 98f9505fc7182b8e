//! The whole library: every kernel against the loop IR, bit by bit, and whole sequences against the
//! interpreter. Every spec at 33; one spec in three at 1, at 31 and at 100; all at all sizes with
//! `BPM_CUDA=all`.

use crate::bits::compare_all;
use crate::device::{Device, bind, has_compiler, models, sizes, source};
use crate::sequences::agree;
use compiler::model::Model;
use std::sync::Arc;

/// Sizes and numbers of steps: with a reset and several segments, if there are enough.
const SIZES: [(usize, usize); 4] = [(33, 9), (1, 3), (31, 7), (100, 2)];

/// A model at a size; returns how many numbers and tensors agree.
fn check(text: &str, model: &Arc<Model>, (n, steps): (usize, usize)) -> (usize, usize) {
    let bound = sizes(model, n);
    let source = source(text, model, &bound);
    let device = Device::new(&source);
    let numbers = compare_all(&source, &device, &format!("{} at {n}", model.name));
    (numbers, agree(&source, &device, (model, &bind(model, &bound)), steps))
}

/// One spec in three.
fn check_third(first: usize) {
    if !has_compiler() {
        return;
    }
    let all = std::env::var_os("BPM_CUDA").is_some_and(|v| v == "all");
    let (mut numbers, mut tensors) = (0, 0);
    for (k, (text, model)) in models().into_iter().enumerate().skip(first).step_by(3) {
        let model = Arc::new(model);
        for (which, size) in SIZES.into_iter().enumerate() {
            if all || which == 0 || which == 1 + k / 3 % 3 {
                let (n, t) = check(&text, &model, size);
                (numbers, tensors) = (numbers + n, tensors + t);
            }
        }
    }
    assert!(numbers > 1_000_000 && tensors > 2000, "only {numbers} numbers, {tensors} tensors");
}

#[test]
fn a_third_of_the_library() {
    check_third(0);
}

#[test]
fn another_third_of_the_library() {
    check_third(1);
}

#[test]
fn the_last_third_of_the_library() {
    check_third(2);
}

/// Words of C++, of CUDA, of the prelude and of other systems, as names of a spec.
#[test]
fn a_spec_may_call_things_as_it_likes() {
    if !has_compiler() {
        return;
    }
    let text = "spec int {
  axis N = 3
  in float[N], threadIdx, slot
  learn W[N,N] ~ normal(0, 1)
  learn shared, term, unix = 0.5
  state now[N] = 0
  plastic matrix[N,N] = 0
  sum = W @ now
  total[j] = shared * sum[j] + unix
  now' = tanh(total + matrix @ now + float * threadIdx + slot)
  matrix'[j,i] = clip(matrix + term * now'[j] * now[i], -1, 1)
  out now', fmaf = float . now'
}";
    let model = Arc::new(compiler::check::check(text).models.swap_remove(0));
    let (numbers, tensors) = check(text, &model, (3, 4));
    assert!(numbers > 100 && tensors > 10);
}

/// More sums in one nest than fit into shared memory with as many threads as there are columns.
#[test]
fn many_sums_take_fewer_threads() {
    if !has_compiler() {
        return;
    }
    let lines = (0..40).map(|k| format!("  learn w{k}[N] ~ normal(0, 1)\n  out o{k} = w{k} . y'\n"));
    let text = format!(
        "spec sums {{\n  axis N = 600\n  in u[N]\n  state y[N] = 0\n  y' = tanh(u + y)\n{}}}",
        lines.collect::<String>()
    );
    let model = compiler::check::check(&text).models.swap_remove(0);
    let source = source(&text, &model, &sizes(&model, 600));
    let most = compiler::back::cuda::MOST_THREADS;
    assert!(source.kernels.iter().flatten().all(|k| k.threads < most));
    let taken = source.text.split("__shared__ float shared[").skip(1);
    let taken = taken.map(|rest| rest.split(']').next().and_then(|n| n.parse().ok()));
    let taken: Vec<Option<usize>> = taken.collect();
    assert!(taken.iter().any(|n| n.is_some_and(|n| n > 8 * 1024)), "{taken:?}");
    assert!(taken.iter().all(|n| n.is_some_and(|n| n * 4 <= 48 * 1024)), "{taken:?}");
    assert!(compare_all(&source, &Device::new(&source), "sums") > 1000);
}
