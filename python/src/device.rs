//! Models whose arrays lie on a device: the same calls as in [`crate::run`], with places for results, which are lent,
//! too.

use crate::dlpack::{Borrowed, CUDA, Form, PROCESSOR, Place, capsule, download};
use crate::errors::{guarded, of_device, of_engine, of_fault};
use compiler::loops::plan::{Tapes, Use};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyList};
use runtime::engine::device::lending::{
    Batch, Block, Cotangents, Given, Gradients, Held, Lending, Lent, Results,
};
use runtime::engine::device::{self, DeviceId, FaultKind};
use runtime::engine::{EngineError, Mode};
use runtime::memory::{Flags, Need, available};
use std::sync::{Arc, Mutex, PoisonError};

/// A device by its name; none for the processor.
pub(crate) fn named(name: &str) -> PyResult<Option<DeviceId>> {
    let number = match name {
        "cpu" => return Ok(None),
        "cuda" => Some(0),
        other => other.strip_prefix("cuda:").and_then(|n| n.parse().ok()),
    };
    match number {
        Some(number) => Ok(Some(DeviceId::cuda(number))),
        None => Err(PyValueError::new_err(format!(
            "there is no device {name:?}: take \"cpu\", \"cuda\", or \"cuda:N\" with a number that counts from zero"
        ))),
    }
}

/// A device's name.
pub(crate) fn name(id: DeviceId) -> String {
    match id {
        DeviceId::Cuda(number) => format!("cuda:{number}"),
        DeviceId::Emulated => "emulated".to_owned(),
    }
}

/// Where a device's memory is.
fn place(id: DeviceId) -> Place {
    match id {
        DeviceId::Cuda(number) => (CUDA, number as i32),
        // Its memory is the processor's, and everybody may read it.
        DeviceId::Emulated => (PROCESSOR, 0),
    }
}

/// A device, opened.
#[pyclass(frozen, module = "bpm._native")]
pub(crate) struct Device {
    id: DeviceId,
    device: Arc<dyn device::Device>,
}

impl Device {
    pub(crate) fn open(py: Python<'_>, id: DeviceId) -> PyResult<Device> {
        let device = guarded(py, || device::open(id))?.map_err(|fault| of_fault(&fault))?;
        Ok(Device { id, device })
    }

    fn at(&self) -> Place {
        place(self.id)
    }
}

#[pymethods]
impl Device {
    /// `cuda` or `cuda:N`.
    #[new]
    fn new(py: Python<'_>, device_name: &str) -> PyResult<Device> {
        let id = named(device_name)?;
        Device::open(py, id.ok_or_else(|| PyValueError::new_err("the processor is no device of its own"))?)
    }

    /// Its name: `cuda:N`, or `emulated`.
    #[getter]
    fn name(&self) -> String {
        name(self.id)
    }

    /// Where its memory is, as DLPack numbers devices.
    #[getter]
    fn place(&self) -> Place {
        self.at()
    }

    /// Borrows an array; whoever has it makes our work wait for his.
    fn borrow(&self, value: &Bound<'_, PyAny>) -> PyResult<Borrowed> {
        Borrowed::new(value, self.device.door())
    }

    /// Memory that holds nothing yet.
    fn allocate(&self, py: Python<'_>, bytes: usize) -> PyResult<DeviceMemory> {
        let block = guarded(py, || Block::new(&self.device, bytes))?.map_err(|fault| of_fault(&fault))?;
        Ok(DeviceMemory { id: self.id, place: self.at(), block: Arc::new(block) })
    }

    /// Memory of these bytes.
    fn upload(&self, py: Python<'_>, bytes: &[u8]) -> PyResult<DeviceMemory> {
        let block = guarded(py, || Block::of(&self.device, bytes))?.map_err(|fault| of_fault(&fault))?;
        Ok(DeviceMemory { id: self.id, place: self.at(), block: Arc::new(block) })
    }

    /// The bytes of a contiguous array.
    fn download<'py>(
        &self,
        py: Python<'py>,
        borrowed: &Bound<'py, Borrowed>,
    ) -> PyResult<Bound<'py, PyBytes>> {
        let lent = borrowed.get();
        if lent.place() != self.at() || !borrowed.getattr("is_contiguous")?.extract::<bool>()? {
            return Err(PyValueError::new_err("an array is on another device, or not contiguous"));
        }
        Ok(PyBytes::new(py, &download(py, &self.device, lent)?))
    }
}

/// Memory of a device.
#[pyclass(frozen, module = "bpm._native")]
pub(crate) struct DeviceMemory {
    id: DeviceId,
    place: Place,
    block: Arc<Block>,
}

#[pymethods]
impl DeviceMemory {
    /// The name of the device.
    #[getter]
    fn device(&self) -> String {
        name(self.id)
    }

    /// Where it is, as DLPack numbers devices.
    #[getter]
    fn place(&self) -> Place {
        self.place
    }

    /// A capsule of DLPack: an array of these sizes, with elements of a kind and so many bits.
    fn capsule<'py>(
        &self,
        py: Python<'py>,
        shape: Vec<i64>,
        element: (u8, u8),
        versioned: bool,
    ) -> PyResult<Bound<'py, PyAny>> {
        let (code, bits) = element;
        let fits = |n: i64, size: &i64| n.checked_mul(*size).filter(|n| *n >= 0);
        let count = shape.iter().try_fold(1, fits);
        let bytes = count.and_then(|n: i64| n.checked_mul(i64::from(bits / 8)));
        if bytes.and_then(|n| usize::try_from(n).ok()).is_none_or(|n| n > self.block.bytes()) {
            return Err(PyValueError::new_err("the memory is smaller than that"));
        }
        capsule(py, &self.block, self.place, Form { shape, code, bits }, versioned)
    }
}

/// Arrays that are lent for the time of a call, in a list with `None` where there is none.
struct Loans(Vec<Option<Py<Borrowed>>>);

impl Loans {
    fn new(list: &Bound<'_, PyList>) -> PyResult<Loans> {
        let one = |item: Bound<'_, PyAny>| match item.is_none() {
            true => Ok(None),
            false => Ok(Some(item.cast_into::<Borrowed>()?.unbind())),
        };
        Ok(Loans(list.iter().map(one).collect::<PyResult<_>>()?))
    }

    fn read(&self, place: Place) -> PyResult<Vec<Option<Lent>>> {
        self.0.iter().map(|b| b.as_ref().map(|b| b.get().lent(place, false)).transpose()).collect()
    }

    fn written(&self, place: Place) -> PyResult<Vec<Option<Lent>>> {
        self.0.iter().map(|b| b.as_ref().map(|b| b.get().lent(place, true)).transpose()).collect()
    }

    fn all(&self, place: Place, writes: bool) -> PyResult<Vec<Lent>> {
        let lent = if writes { self.written(place)? } else { self.read(place)? };
        let complete: Option<Vec<Lent>> = lent.into_iter().collect();
        complete.ok_or_else(|| PyValueError::new_err("an array is missing"))
    }
}

/// A model on a device.
#[derive(Clone)]
pub(crate) struct OnDevice {
    pub(crate) id: DeviceId,
    pub(crate) lending: Arc<Lending>,
}

impl OnDevice {
    fn place(&self) -> Place {
        place(self.id)
    }

    pub(crate) fn bind(&self, py: Python<'_>, params: &Bound<'_, PyList>) -> PyResult<DeviceBinding> {
        let loans = Loans::new(params)?;
        let params = loans.all(self.place(), false)?;
        // SAFETY: the loans are of this device, and live until the call is over.
        let held = guarded(py, || unsafe { self.lending.bind(&params) })?.map_err(|e| of_engine(py, e))?;
        Ok(DeviceBinding { on: self.clone(), held })
    }
}

/// Parameters that a device has read.
#[pyclass(frozen, module = "bpm._native")]
pub(crate) struct DeviceBinding {
    on: OnDevice,
    held: Arc<Held>,
}

/// What is given to a run: inputs, states, resets.
type Lists<'py> = (Bound<'py, PyList>, Bound<'py, PyList>, Bound<'py, PyBytes>);
/// Where outputs and states go.
type Places<'py> = (Bound<'py, PyList>, Bound<'py, PyList>);

impl DeviceBinding {
    fn run(
        &self,
        py: Python<'_>,
        (steps, rows): (usize, usize),
        (inputs, states, resets): Lists<'_>,
        (outputs, ends): Places<'_>,
        mode: Mode,
    ) -> PyResult<(f64, Batch)> {
        let (inputs, states) = (Loans::new(&inputs)?, Loans::new(&states)?);
        let (outputs, ends) = (Loans::new(&outputs)?, Loans::new(&ends)?);
        let place = self.on.place();
        let resets = resets.as_bytes().iter().map(|r| *r != 0).collect();
        let given = Given { steps, rows, inputs: inputs.read(place)?, states: states.read(place)?, resets };
        let to = Results { outputs: outputs.all(place, true)?, states: ends.all(place, true)? };
        // SAFETY: the loans are of this device, and live until the call is over.
        let done = guarded(py, || unsafe { self.held.forward(&given, &to, mode) })?;
        done.map_err(|error| self.of_error(py, error, (steps, rows), mode))
    }

    /// What a batch needs, where the device has too little memory for it.
    fn of_error(
        &self,
        py: Python<'_>,
        error: EngineError,
        (steps, rows): (usize, usize),
        mode: Mode,
    ) -> PyErr {
        if let EngineError::Device(fault) = &error
            && fault.kind == FaultKind::OutOfMemory
        {
            let engine = self.on.lending.engine();
            let usage = Use {
                batch: rows,
                steps,
                threads: 1,
                tapes: Tapes::Waiting,
                checkpoint_every: None,
                memory: None,
            };
            let flags = Flags { batch: "batch ", steps: "steps ", threads: "" };
            let need = Need { engine, usage, mode, data: 0, beside: None, flags };
            if let Err(words) = need.check(available()) {
                return of_device(py, &words);
            }
        }
        of_engine(py, error)
    }
}

#[pymethods]
impl DeviceBinding {
    /// Runs a batch whose gradients nobody wants; gives the penalty.
    fn infer<'py>(
        &self,
        py: Python<'py>,
        extent: (usize, usize),
        given: Lists<'py>,
        to: Places<'py>,
    ) -> PyResult<f64> {
        Ok(self.run(py, extent, given, to, Mode::Forward)?.0)
    }

    /// The same, with a tape.
    fn forward<'py>(
        &self,
        py: Python<'py>,
        extent: (usize, usize),
        given: Lists<'py>,
        to: Places<'py>,
    ) -> PyResult<(f64, DeviceTape)> {
        let (penalty, batch) = self.run(py, extent, given, to, Mode::Train)?;
        Ok((penalty, DeviceTape { place: self.on.place(), batch: Mutex::new(batch) }))
    }
}

/// A batch that has run forward, for one thread at a time.
#[pyclass(frozen, module = "bpm._native")]
pub(crate) struct DeviceTape {
    place: Place,
    batch: Mutex<Batch>,
}

#[pymethods]
impl DeviceTape {
    /// Runs backward: cotangents of outputs, states and the penalty; where gradients of parameters, inputs and states go.
    fn backward<'py>(
        &self,
        py: Python<'py>,
        bars: (Bound<'py, PyList>, Bound<'py, PyList>, f64),
        to: (Bound<'py, PyList>, Bound<'py, PyList>, Bound<'py, PyList>),
    ) -> PyResult<()> {
        let (outputs, states, penalty) = (Loans::new(&bars.0)?, Loans::new(&bars.1)?, bars.2);
        let (params, inputs, starts) = (Loans::new(&to.0)?, Loans::new(&to.1)?, Loans::new(&to.2)?);
        let place = self.place;
        let bars = Cotangents { outputs: outputs.read(place)?, states: states.read(place)?, penalty };
        let to = Gradients {
            params: params.written(place)?,
            inputs: inputs.written(place)?,
            states: starts.written(place)?,
        };
        // Waiting for another thread's backward pass while the interpreter's lock is held would be a deadlock.
        let done = guarded(py, || {
            let mut batch = self.batch.lock().unwrap_or_else(PoisonError::into_inner);
            // SAFETY: the loans are of this device, and live until the call is over.
            unsafe { batch.backward(&bars, &to) }
        })?;
        done.map_err(|error| of_engine(py, error))
    }
}

/// A tier of kernels by its name.
pub(crate) fn tier(name: &str) -> PyResult<device::Tier> {
    device::Tier::named(name).ok_or_else(|| {
        PyValueError::new_err(format!(
            "there is no tier {name:?}: take \"auto\", \"1\", \"2\", \"1,2\" or \"2,1\""
        ))
    })
}
