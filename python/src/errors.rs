//! What Python is told when something is wrong.

use pyo3::exceptions::{
    PyFileNotFoundError, PyMemoryError, PyOSError, PyRuntimeError, PyUserWarning, PyValueError,
};
use pyo3::prelude::*;
use runtime::engine::EngineError;
use runtime::engine::device::Fault;
use runtime::error::Kind;
use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};

pyo3::create_exception!(
    bpm,
    SpecError,
    PyValueError,
    "A spec does not compile. The message shows every mistake with its place; `diagnostics` has them as data."
);
pyo3::create_exception!(
    bpm,
    DeviceError,
    PyRuntimeError,
    "A device is missing, has too little memory, or has failed; or its driver or compiler is missing."
);
pyo3::create_exception!(
    bpm,
    SpecWarning,
    PyUserWarning,
    "What the compiler warns of in a spec that compiles."
);

/// A fault of a device.
pub(crate) fn of_fault(fault: &Fault) -> PyErr {
    let words = fault.help.iter().fold(fault.message.clone(), |text, help| format!("{text}\n  help: {help}"));
    DeviceError::new_err(in_python(&words))
}

/// An error of an engine: a fault of a device, or else of sizes and back ends.
pub(crate) fn of_engine(py: Python<'_>, error: EngineError) -> PyErr {
    match error {
        EngineError::Device(fault) => of_fault(&fault),
        other => of_runtime(py, &other.into()),
    }
}

/// What commands are told, as a caller in Python says it.
fn in_python(words: &str) -> String {
    let said = [("--device cuda:N", "device=\"cuda:N\""), ("--device cuda:0", "device=\"cuda:0\"")];
    let also =
        [("--device cpu", "device=\"cpu\""), ("--tier 1", "tier=\"1\""), ("--tier auto", "tier=\"auto\"")];
    said.iter().chain(&also).fold(words.to_owned(), |text, (from, to)| text.replace(from, to))
}

/// An error of a model on a device: of the device, or as [`of_runtime`] has it.
pub(crate) fn of_device(py: Python<'_>, error: &runtime::Error) -> PyErr {
    match error.kind {
        Kind::Device => DeviceError::new_err(in_python(&with_help(error))),
        Kind::Input | Kind::Usage | Kind::Diverged | Kind::Interrupted => of_runtime(py, error),
    }
}

/// An error of the runtime: a `SpecError` if it is about a spec, else a `ValueError`.
pub(crate) fn of_runtime(py: Python<'_>, error: &runtime::Error) -> PyErr {
    if let Some(spec) = &error.spec {
        let path = spec.path.display().to_string();
        return of_spec(py, &path, &spec.source, &spec.diagnostics);
    }
    let text = with_help(error);
    match error.kind {
        // Without devices these are sizes, and back ends that this processor lacks.
        Kind::Input | Kind::Usage | Kind::Device => PyValueError::new_err(text),
        Kind::Diverged | Kind::Interrupted => PyRuntimeError::new_err(text),
    }
}

/// The memory does not suffice.
pub(crate) fn of_memory(error: &runtime::Error) -> PyErr {
    PyMemoryError::new_err(with_help(error))
}

/// A file cannot be read.
pub(crate) fn of_file(path: &str, reason: &std::io::Error) -> PyErr {
    let text = runtime::Error::file("read", path.as_ref(), reason).message;
    match reason.kind() {
        std::io::ErrorKind::NotFound => PyFileNotFoundError::new_err(text),
        _ => PyOSError::new_err(text),
    }
}

fn with_help(error: &runtime::Error) -> String {
    error.help.iter().fold(error.message.clone(), |text, help| format!("{text}\n  help: {help}"))
}

fn of_spec(py: Python<'_>, path: &str, source: &str, diagnostics: &[grammar::diag::Diagnostic]) -> PyErr {
    let error = SpecError::new_err(grammar::render::human(path, source, diagnostics, false));
    let data = || -> PyResult<()> {
        let read = py.import("json")?.getattr("loads")?;
        let lines = grammar::render::json(path, source, diagnostics);
        let all = lines.lines().map(|line| read.call1((line,))).collect::<PyResult<Vec<_>>>()?;
        error.value(py).setattr("diagnostics", all)
    };
    match data() {
        Ok(()) => error,
        Err(other) => other,
    }
}

/// Runs something without the interpreter's lock. A panic becomes a `RuntimeError`.
pub(crate) fn guarded<T: Send>(py: Python<'_>, work: impl FnOnce() -> T + Send) -> PyResult<T> {
    let outcome = py.detach(|| catch_unwind(AssertUnwindSafe(work)));
    outcome.map_err(|panic| PyRuntimeError::new_err(format!("bpm has failed: {}", words(&*panic))))
}

fn words(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().cloned();
    let text = text.or_else(|| panic.downcast_ref::<&str>().map(|t| (*t).to_owned()));
    text.unwrap_or_else(|| "no reason was given".to_owned())
}
