//! Kernels of whole sequences against the interpreter, as [`crate::sequences`] checks kernels of single steps:
//! one block for each row of the batch, and clusters of blocks.

use crate::device::{Device, bind, has_compiler, models, sequences, sizes};
use crate::sequences::agree;
use compiler::back::cuda::{self, Arch};
use compiler::model::Model;
use std::sync::Arc;

fn on(wanted: Option<(usize, usize)>) -> cuda::Device {
    cuda::Device { arch: Arch::named("sm_90a").expect("it is known"), batch: 2, wanted }
}

/// A model at a size on a device; how many tensors agree, or why it has no such kernels.
fn check(
    text: &str,
    model: &Arc<Model>,
    (n, steps): (usize, usize),
    device: &cuda::Device,
) -> Result<usize, String> {
    let bound = sizes(model, n);
    let source = sequences(text, model, &bound, device).map_err(|why| why.to_string())?;
    Ok(agree(&source, &Device::new(&source), (model, &bind(model, &bound)), steps))
}

#[test]
fn try_all() {
    if !has_compiler() {
        return;
    }
    let only = std::env::var("ONLY").ok();
    let n: usize = std::env::var("N").ok().and_then(|n| n.parse().ok()).unwrap_or(33);
    let c: usize = std::env::var("C").ok().and_then(|n| n.parse().ok()).unwrap_or(1);
    let t: usize = std::env::var("T").ok().and_then(|n| n.parse().ok()).unwrap_or(128);
    for (text, model) in models() {
        if only.as_ref().is_some_and(|o| !o.split(',').any(|o| *o == model.name)) {
            continue;
        }
        let model = Arc::new(model);
        let found = std::panic::catch_unwind(|| check(&text, &model, (n, 9), &on(Some((c, t)))));
        eprintln!("{} {n}: {:?}", model.name, found.map_err(|e| e.downcast_ref::<String>().cloned()));
    }
}
