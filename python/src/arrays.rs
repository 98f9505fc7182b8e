//! Arrays of Python: lent on the way in, given away on the way out. Both ways are the buffer protocol.

use pyo3::buffer::{Element, PyBuffer};
use pyo3::exceptions::PyValueError;
use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::PyList;
use runtime::sequence::Number;
use std::ffi::{c_int, c_void};

/// Numbers that arrays hold.
pub(crate) trait Item: Number + Element {
    /// The memory that holds them.
    fn keep(numbers: Vec<Self>) -> Numbers;
}

impl Item for f32 {
    fn keep(numbers: Vec<f32>) -> Numbers {
        Numbers::Single(numbers)
    }
}

impl Item for f64 {
    fn keep(numbers: Vec<f64>) -> Numbers {
        Numbers::Double(numbers)
    }
}

/// Arrays that Python lends for the time of a call; none where there is none.
pub(crate) struct Lent<N: Element>(Vec<Option<PyBuffer<N>>>);

impl<N: Element> Lent<N> {
    /// Takes a list of arrays and `None`.
    pub(crate) fn new(list: &Bound<'_, PyList>) -> PyResult<Self> {
        let array = |item: Bound<'_, PyAny>| (!item.is_none()).then(|| PyBuffer::get(&item)).transpose();
        Ok(Lent(list.iter().map(array).collect::<PyResult<_>>()?))
    }

    /// Their numbers.
    pub(crate) fn slices(&self) -> PyResult<Vec<Option<&[N]>>> {
        let mut all = vec![];
        for array in &self.0 {
            let Some(array) = array else {
                all.push(None);
                continue;
            };
            let place = array.as_slice_ptr().filter(|_| array.is_c_contiguous());
            let place = place.ok_or_else(|| PyValueError::new_err("an array is not contiguous"))?;
            // SAFETY: `self` holds the buffer, so its memory stays where it is; the numbers are of this type and in
            // one piece. The contract of the package is that nobody writes to an array while a call reads it.
            all.push(Some(unsafe { place.as_ref() }));
        }
        Ok(all)
    }
}

/// Numbers that Rust has made and an array of Python holds.
pub(crate) enum Numbers {
    Single(Vec<f32>),
    Double(Vec<f64>),
}

/// Memory that Rust gives away: a buffer that Python reads and writes as it likes.
#[pyclass(frozen, module = "bpm._native")]
pub(crate) struct Memory {
    start: *mut c_void,
    bytes: usize,
    _numbers: Numbers,
}

// SAFETY: the numbers are owned like those of a vector, and nothing here reads or writes them.
unsafe impl Send for Memory {}
// SAFETY: as above: shared access gives no more than their place.
unsafe impl Sync for Memory {}

impl Memory {
    fn new(mut numbers: Numbers) -> Memory {
        let (start, bytes) = match &mut numbers {
            Numbers::Single(x) => (x.as_mut_ptr().cast(), size_of_val(x.as_slice())),
            Numbers::Double(x) => (x.as_mut_ptr().cast(), size_of_val(x.as_slice())),
        };
        Memory { start, bytes, _numbers: numbers }
    }
}

#[pymethods]
impl Memory {
    unsafe fn __getbuffer__(slf: Bound<'_, Self>, view: *mut ffi::Py_buffer, flags: c_int) -> PyResult<()> {
        let (start, bytes) = (slf.get().start, slf.get().bytes as ffi::Py_ssize_t);
        // SAFETY: the memory lives as long as the object, which the view keeps alive; it may be written to.
        let filled = unsafe { ffi::PyBuffer_FillInfo(view, slf.as_ptr(), start, bytes, 0, flags) };
        if filled == 0 { Ok(()) } else { Err(PyErr::fetch(slf.py())) }
    }
}

/// Memory for every one of these arrays.
pub(crate) fn given_away<N: Item>(py: Python<'_>, arrays: Vec<Vec<N>>) -> PyResult<Bound<'_, PyList>> {
    let all = arrays.into_iter().map(|x| Bound::new(py, Memory::new(N::keep(x))));
    PyList::new(py, all.collect::<PyResult<Vec<_>>>()?)
}
