//! Arrays in the memory of a device, lent and given away: DLPack, in the form of version 1 and in the one before it.
//!
//! # Lent
//!
//! Whoever lends an array is asked for a capsule, and told the stream that is going to read it (`__dlpack__(stream=…)`):
//! he makes that stream wait for what he has still to do with the array. The capsule is held until the call is over.
//!
//! # Given away
//!
//! A capsule of ours holds the memory, and not the interpreter: whoever took it may give it back from any thread, and
//! when the model is long gone. Nobody needs to wait for it, since a call of bpm returns when its work is done.

use crate::errors::{guarded, of_fault};
use pyo3::exceptions::{PyBufferError, PyTypeError, PyValueError};
use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::PyDict;
use runtime::engine::device::Device;
use runtime::engine::device::lending::{self, Block, Lent};
use std::ffi::{CStr, c_void};
use std::sync::Arc;

/// Where memory is, as DLPack numbers it: the kind of device, and which one.
pub(crate) type Place = (i32, i32);

/// Memory of the processor.
pub(crate) const PROCESSOR: i32 = 1;
/// Of a CUDA device.
pub(crate) const CUDA: i32 = 2;

/// Nobody may write to the array.
const READ_ONLY: u64 = 1;

const PLAIN: &CStr = c"dltensor";
const VERSIONED: &CStr = c"dltensor_versioned";

#[repr(C)]
struct Tensor {
    data: *mut c_void,
    place: [i32; 2],
    dimensions: i32,
    code: u8,
    bits: u8,
    lanes: u16,
    shape: *mut i64,
    strides: *mut i64,
    offset: u64,
}

#[repr(C)]
struct Managed {
    tensor: Tensor,
    context: *mut c_void,
    deleter: Option<unsafe extern "C" fn(*mut Managed)>,
}

#[repr(C)]
struct ManagedVersioned {
    major: u32,
    minor: u32,
    context: *mut c_void,
    deleter: Option<unsafe extern "C" fn(*mut ManagedVersioned)>,
    flags: u64,
    tensor: Tensor,
}

/// What a capsule held.
enum Owner {
    Plain(*mut Managed),
    Versioned(*mut ManagedVersioned),
}

impl Owner {
    /// Takes what is in a capsule, which is empty from then on.
    fn take(capsule: &Bound<'_, PyAny>) -> PyResult<Owner> {
        let is = |name: &CStr| {
            // SAFETY: any object may be asked.
            unsafe { ffi::PyCapsule_IsValid(capsule.as_ptr(), name.as_ptr()) == 1 }
        };
        let (name, used) = match (is(VERSIONED), is(PLAIN)) {
            (true, _) => (VERSIONED, c"used_dltensor_versioned"),
            (false, true) => (PLAIN, c"used_dltensor"),
            (false, false) => {
                return Err(PyBufferError::new_err("`__dlpack__` has given no capsule of DLPack"));
            }
        };
        // SAFETY: it is a capsule of this name, whose pointer is not null; the new name lives forever.
        let pointer = unsafe {
            let pointer = ffi::PyCapsule_GetPointer(capsule.as_ptr(), name.as_ptr());
            if pointer.is_null() || ffi::PyCapsule_SetName(capsule.as_ptr(), used.as_ptr()) != 0 {
                return Err(PyErr::fetch(capsule.py()));
            }
            pointer
        };
        if name == PLAIN {
            return Ok(Owner::Plain(pointer.cast()));
        }
        let owner = Owner::Versioned(pointer.cast());
        // SAFETY: all versions begin with their number.
        let major = unsafe { (*pointer.cast::<ManagedVersioned>()).major };
        match major {
            1 => Ok(owner),
            _ => Err(PyBufferError::new_err(format!("version {major} of DLPack is not known here"))),
        }
    }

    fn tensor(&self) -> &Tensor {
        // SAFETY: what a capsule held stays until its deleter is called, when this is dropped.
        unsafe {
            match self {
                Owner::Plain(managed) => &(**managed).tensor,
                Owner::Versioned(managed) => &(**managed).tensor,
            }
        }
    }

    fn is_read_only(&self) -> bool {
        match self {
            Owner::Plain(_) => false,
            // SAFETY: as above.
            Owner::Versioned(managed) => unsafe { (**managed).flags & READ_ONLY != 0 },
        }
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        // SAFETY: whoever takes what is in a capsule calls its deleter once, and does not use it any more.
        unsafe {
            match *self {
                Owner::Plain(managed) => {
                    if let Some(deleter) = (*managed).deleter {
                        deleter(managed);
                    }
                }
                Owner::Versioned(managed) => {
                    if let Some(deleter) = (*managed).deleter {
                        deleter(managed);
                    }
                }
            }
        }
    }
}

/// An array that is lent until this object is gone.
#[pyclass(frozen, module = "bpm._native")]
pub(crate) struct Borrowed {
    owner: Owner,
    shape: Vec<i64>,
    /// In elements.
    strides: Vec<i64>,
}

// SAFETY: DLPack lets any thread read an array and give it back.
unsafe impl Send for Borrowed {}
// SAFETY: as above; nothing of it changes.
unsafe impl Sync for Borrowed {}

impl Borrowed {
    /// Borrows an array for work on a stream; `None` where work is done when a call returns.
    pub(crate) fn new(value: &Bound<'_, PyAny>, stream: Option<u64>) -> PyResult<Borrowed> {
        let py = value.py();
        let options = PyDict::new(py);
        if let Some(stream) = stream {
            options.set_item("stream", stream)?;
        }
        let export = value.getattr("__dlpack__")?;
        let versions = options.copy()?;
        versions.set_item("max_version", (1, 0))?;
        let capsule = match export.call((), Some(&versions)) {
            // Older libraries do not know versions.
            Err(e) if e.is_instance_of::<PyTypeError>(py) => export.call((), Some(&options))?,
            other => other?,
        };
        let owner = Owner::take(&capsule)?;
        let tensor = owner.tensor();
        let dimensions =
            usize::try_from(tensor.dimensions).map_err(|e| PyBufferError::new_err(e.to_string()))?;
        let read = |from: *mut i64| match dimensions {
            0 => vec![],
            // SAFETY: an array has so many sizes, and strides if there are any.
            n => unsafe { std::slice::from_raw_parts(from, n) }.to_vec(),
        };
        if tensor.shape.is_null() && dimensions > 0 {
            return Err(PyBufferError::new_err("an array of DLPack has no shape"));
        }
        let shape = read(tensor.shape);
        let strides = if tensor.strides.is_null() { row_major(&shape) } else { read(tensor.strides) };
        Ok(Borrowed { owner, shape, strides })
    }

    pub(crate) fn place(&self) -> Place {
        let [kind, number] = self.owner.tensor().place;
        (kind, number)
    }

    /// Where its first element lies.
    pub(crate) fn at(&self) -> usize {
        let tensor = self.owner.tensor();
        (tensor.data as usize).wrapping_add(tensor.offset as usize)
    }

    /// Bytes of an element.
    fn each(&self) -> usize {
        let tensor = self.owner.tensor();
        (usize::from(tensor.bits) * usize::from(tensor.lanes)).div_ceil(8)
    }

    fn count(&self) -> usize {
        self.shape.iter().map(|n| usize::try_from(*n).unwrap_or(0)).product()
    }

    pub(crate) fn bytes(&self) -> usize {
        self.count() * self.each()
    }

    /// The array as numbers of single precision.
    pub(crate) fn lent(&self, place: Place, writes: bool) -> PyResult<Lent> {
        let tensor = self.owner.tensor();
        let refused = match () {
            () if self.place() != place => "is on another device",
            () if (tensor.code, tensor.bits, tensor.lanes) != (2, 32, 1) => "is not of dtype float32",
            () if !self.is_contiguous() => "is not contiguous",
            () if writes && self.owner.is_read_only() => "may not be written to",
            () => return Ok(Lent { at: self.at(), count: self.count() }),
        };
        Err(PyValueError::new_err(format!("an array {refused}")))
    }
}

fn row_major(shape: &[i64]) -> Vec<i64> {
    let mut strides = vec![1i64; shape.len()];
    for k in (1..shape.len()).rev() {
        strides[k - 1] = strides[k].saturating_mul(shape[k]);
    }
    strides
}

#[pymethods]
impl Borrowed {
    /// Its sizes.
    #[getter]
    fn shape(&self) -> Vec<i64> {
        self.shape.clone()
    }

    /// Bytes from element to element, by axis.
    #[getter]
    fn strides(&self) -> Vec<i64> {
        self.strides.iter().map(|s| s.saturating_mul(self.each() as i64)).collect()
    }

    /// The type of its elements, as NumPy calls it.
    #[getter]
    fn dtype(&self) -> String {
        let Tensor { code, bits, lanes, .. } = *self.owner.tensor();
        let word = match code {
            0 => "int",
            1 => "uint",
            2 => "float",
            4 => "bfloat",
            5 => "complex",
            6 if bits == 8 && lanes == 1 => return "bool".to_owned(),
            _ => return format!("number {code} of DLPack, {bits} bits"),
        };
        if lanes == 1 { format!("{word}{bits}") } else { format!("{word}{bits}x{lanes}") }
    }

    /// Where it lies, as DLPack numbers devices.
    #[getter(place)]
    fn py_place(&self) -> Place {
        self.place()
    }

    /// Whether its elements follow each other, row by row, where an element may lie.
    #[getter]
    fn is_contiguous(&self) -> bool {
        let aligned = self.at().is_multiple_of(self.each().max(1));
        let mut axes = self.shape.iter().zip(&self.strides).zip(row_major(&self.shape));
        aligned && axes.all(|((n, stride), wanted)| *n <= 1 || *stride == wanted)
    }
}

/// What a capsule of ours points to. Whichever form is taken comes first for its taker; the rest keeps it alive.
struct Export<M> {
    managed: M,
    _shape: Vec<i64>,
    _strides: Vec<i64>,
    _memory: Arc<Block>,
}

unsafe extern "C" fn delete_plain(managed: *mut Managed) {
    // SAFETY: the context is the box that `capsule` has let go; its taker calls this once.
    drop(unsafe { Box::from_raw((*managed).context.cast::<Export<Managed>>()) });
}

unsafe extern "C" fn delete_versioned(managed: *mut ManagedVersioned) {
    // SAFETY: as above.
    drop(unsafe { Box::from_raw((*managed).context.cast::<Export<ManagedVersioned>>()) });
}

/// A capsule that nobody has taken gives its memory back.
unsafe extern "C" fn destroy(capsule: *mut ffi::PyObject) {
    // SAFETY: capsules are destroyed with the interpreter's lock held; only one that was not taken has its first name.
    unsafe {
        if ffi::PyCapsule_IsValid(capsule, PLAIN.as_ptr()) == 1 {
            delete_plain(ffi::PyCapsule_GetPointer(capsule, PLAIN.as_ptr()).cast());
        } else if ffi::PyCapsule_IsValid(capsule, VERSIONED.as_ptr()) == 1 {
            delete_versioned(ffi::PyCapsule_GetPointer(capsule, VERSIONED.as_ptr()).cast());
        }
    }
}

/// An array of memory: its sizes, and its elements as DLPack names them.
pub(crate) struct Form {
    pub(crate) shape: Vec<i64>,
    pub(crate) code: u8,
    pub(crate) bits: u8,
}

/// A capsule for whoever wants to read an array of this memory.
pub(crate) fn capsule<'py>(
    py: Python<'py>,
    memory: &Arc<Block>,
    place: Place,
    form: Form,
    is_versioned: bool,
) -> PyResult<Bound<'py, PyAny>> {
    let Form { mut shape, code, bits } = form;
    let mut strides = row_major(&shape);
    let tensor = Tensor {
        data: memory.at() as *mut c_void,
        place: [place.0, place.1],
        dimensions: shape.len() as i32,
        code,
        bits,
        lanes: 1,
        shape: shape.as_mut_ptr(),
        strides: strides.as_mut_ptr(),
        offset: 0,
    };
    let (_shape, _strides, _memory, context) = (shape, strides, Arc::clone(memory), std::ptr::null_mut());
    let (pointer, name): (*mut c_void, &CStr) = if is_versioned {
        let (major, minor, deleter, flags) = (1, 0, Some(delete_versioned as unsafe extern "C" fn(_)), 0);
        let managed = ManagedVersioned { major, minor, context, deleter, flags, tensor };
        let export = Box::into_raw(Box::new(Export { managed, _shape, _strides, _memory }));
        // SAFETY: the box was just made.
        unsafe { (*export).managed.context = export.cast() };
        // SAFETY: as above.
        (unsafe { &raw mut (*export).managed }.cast(), VERSIONED)
    } else {
        let managed = Managed { tensor, context, deleter: Some(delete_plain) };
        let export = Box::into_raw(Box::new(Export { managed, _shape, _strides, _memory }));
        // SAFETY: as above.
        unsafe { (*export).managed.context = export.cast() };
        // SAFETY: as above.
        (unsafe { &raw mut (*export).managed }.cast(), PLAIN)
    };
    // SAFETY: the pointer is not null and the name lives forever.
    let made = unsafe { ffi::PyCapsule_New(pointer, name.as_ptr(), Some(destroy)) };
    // SAFETY: a new reference, or null with an error set.
    unsafe { Bound::from_owned_ptr_or_err(py, made) }
}

/// Bytes of an array on a device, for the host.
pub(crate) fn download(py: Python<'_>, device: &Arc<dyn Device>, from: &Borrowed) -> PyResult<Vec<u8>> {
    let mut bytes = vec![0; from.bytes()];
    // SAFETY: the array is contiguous, which was checked, and lent until the call is over.
    let done = guarded(py, || unsafe { lending::read(device, from.at(), &mut bytes) })?;
    done.map_err(|fault| of_fault(&fault))?;
    Ok(bytes)
}
