//! The native half of the Python package `bpm`: models, their parameters and their tapes.
//!
//! The other half, in `python/bpm`, is what a user sees: it knows names and says what is wrong with a tensor. Here
//! arrays come as lists, in the order of the model's declarations, already of the right type and layout.
//!
//! * What lies in the memory of the processor is the buffer protocol's ([`arrays`], [`run`]), what lies on a device is
//!   DLPack's ([`dlpack`], [`device`]).
//! * Arrays are lent, never copied, on the way in, and given away on the way out.
//! * Computing runs without the interpreter's lock.
//! * A panic is a `RuntimeError`; it never crosses the boundary.

mod arrays;
mod device;
mod dlpack;
mod errors;
mod model;
mod run;

use pyo3::prelude::*;

#[pymodule]
fn _native(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add("__version__", env!("CARGO_PKG_VERSION"))?;
    module.add("SpecError", module.py().get_type::<errors::SpecError>())?;
    module.add("DeviceError", module.py().get_type::<errors::DeviceError>())?;
    module.add("SpecWarning", module.py().get_type::<errors::SpecWarning>())?;
    module.add_class::<arrays::Memory>()?;
    module.add_class::<model::Native>()?;
    module.add_class::<run::Binding>()?;
    module.add_class::<run::NativeTape>()?;
    module.add_class::<dlpack::Borrowed>()?;
    module.add_class::<device::Device>()?;
    module.add_class::<device::DeviceMemory>()?;
    module.add_class::<device::DeviceBinding>()?;
    module.add_class::<device::DeviceTape>()?;
    Ok(())
}
