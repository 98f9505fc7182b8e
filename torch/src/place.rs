//! A model on libtorch: its step, which of it is needed, and where it runs.

use crate::values::Evaluator;
use crate::{Fault, Place, Width};
use compiler::ir::{Sizes, Value};
use compiler::model::Model;
use std::error::Error;
use std::sync::{Arc, OnceLock};
use tch::{Cuda, Device, Kind};

/// A model bound to sizes, a width and a place.
#[derive(Debug)]
pub struct Code {
    pub(crate) model: Arc<Model>,
    pub(crate) sizes: Sizes,
    pub(crate) place: (Kind, Device),
    /// By value: whether a result needs it.
    pub(crate) needed: Vec<bool>,
    asked: Place,
}

impl Code {
    /// Finds the place.
    ///
    /// # Errors
    /// If libtorch is not built in, or has no such device.
    pub fn new(model: Arc<Model>, sizes: Sizes, width: Width, place: Place) -> Result<Code, Fault> {
        static ONE_THREAD: OnceLock<()> = OnceLock::new();
        ONE_THREAD.get_or_init(|| tch::set_num_threads(1));
        let kind = match width {
            Width::Single => Kind::Float,
            Width::Double => Kind::Double,
        };
        let device = match place {
            Place::Processor => Device::Cpu,
            Place::Cuda(number) => cuda(number)?,
        };
        let needed = needed(&model);
        Ok(Code { model, sizes, place: (kind, device), needed, asked: place })
    }

    /// Where it computes.
    pub fn place(&self) -> Place {
        self.asked
    }

    pub(crate) fn evaluator(&self, rows: usize) -> Evaluator<'_> {
        Evaluator { step: &self.model.step, sizes: &self.sizes, rows, place: self.place }
    }
}

/// The values that results need.
fn needed(model: &Model) -> Vec<bool> {
    let step = &model.step;
    let mut needed = vec![false; step.body.len()];
    step.results.iter().for_each(|(_, v)| needed[v.index()] = true);
    for k in (0..step.body.len()).rev() {
        if needed[k] {
            let operands: Vec<Value> = step.body[k].op.operands();
            operands.into_iter().for_each(|v| needed[v.index()] = true);
        }
    }
    needed
}

fn cuda(number: u32) -> Result<Device, Fault> {
    load_cuda()?;
    let count = Cuda::device_count().max(0);
    if !Cuda::is_available() || count == 0 {
        return Err(Fault::no_device("libtorch finds no CUDA device".to_owned()));
    }
    if count <= i64::from(number) {
        return Err(Fault::no_device(format!("libtorch has no CUDA device {number}; it finds {count}")));
    }
    Ok(Device::Cuda(number as usize))
}

/// Loads the part of libtorch that runs on CUDA. Nothing in this program names a symbol of it, so linkers leave it
/// out; it announces itself to libtorch when it is loaded.
fn load_cuda() -> Result<(), Fault> {
    static LOADED: OnceLock<Result<(), String>> = OnceLock::new();
    let load = || {
        let name = libloading::library_filename("torch_cuda");
        // SAFETY: the library's initialisers register kernels with the libtorch that is part of this process, which is
        // of the same version; it is never unloaded.
        match unsafe { open(&name) } {
            Ok(library) => {
                std::mem::forget(library);
                Ok(())
            }
            // The system's words say which library is missing.
            Err(e) => Err(e.source().map_or_else(|| e.to_string(), ToString::to_string)),
        }
    };
    let missing = |why: &String| Fault::no_device(format!("libtorch has no part for CUDA here: {why}"));
    LOADED.get_or_init(load).as_ref().map_err(missing).copied()
}

/// Symbols are looked up when they are first used: of the libraries behind this one only some are.
#[cfg(unix)]
unsafe fn open(name: &std::ffi::OsStr) -> Result<libloading::Library, libloading::Error> {
    use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_LAZY};
    // SAFETY: as the caller promises.
    unsafe { Library::open(Some(name), RTLD_LAZY | RTLD_GLOBAL).map(Into::into) }
}

#[cfg(not(unix))]
unsafe fn open(name: &std::ffi::OsStr) -> Result<libloading::Library, libloading::Error> {
    // SAFETY: as the caller promises.
    unsafe { libloading::Library::new(name) }
}
