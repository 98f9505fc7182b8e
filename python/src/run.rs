//! Sequences: parameters that are bound, tapes that run backward.

use crate::arrays::{Item, Lent, given_away};
use crate::errors::{guarded, of_memory, of_runtime};
use compiler::loops::plan::{Tapes, Use};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::PyList;
use runtime::engine::{Engine, Mode};
use runtime::memory::{Flags, Need, available};
use runtime::sequence::{self, Cotangents, Double, Given, Kept, Machine, Single};
use std::sync::{Arc, Mutex};

/// A model with parameters, in one of the two number types.
pub(crate) enum Machines {
    Single(Arc<Single>),
    Double(Arc<Double>),
}

/// A list with something in every place.
fn all<N>(arrays: Vec<Option<&[N]>>) -> PyResult<Vec<&[N]>> {
    let complete: Option<Vec<&[N]>> = arrays.into_iter().collect();
    complete.ok_or_else(|| PyValueError::new_err("an array is missing"))
}

impl Machines {
    pub(crate) fn new(
        py: Python<'_>,
        engine: &Arc<Engine>,
        is_double: bool,
        params: &Bound<'_, PyList>,
    ) -> PyResult<Machines> {
        let engine = Arc::clone(engine);
        let refused = |e: runtime::engine::EngineError| of_runtime(py, &e.into());
        if is_double {
            let lent = Lent::<f64>::new(params)?;
            let params = all(lent.slices()?)?;
            let machine = guarded(py, || Double::new(engine, &params))?.map_err(refused)?;
            return Ok(Machines::Double(Arc::new(machine)));
        }
        let lent = Lent::<f32>::new(params)?;
        let params = all(lent.slices()?)?;
        let machine = guarded(py, || Single::new(engine, &params))?.map_err(refused)?;
        Ok(Machines::Single(Arc::new(machine)))
    }
}

/// What Python lends for a run.
struct Loan<'a, 'py> {
    extent: (usize, usize),
    inputs: &'a Bound<'py, PyList>,
    states: &'a Bound<'py, PyList>,
    resets: &'a [u8],
}

/// Outputs, states, penalty.
type Found<'py> = (Bound<'py, PyList>, Bound<'py, PyList>, f64);

/// Runs a batch and gives away what came out. `work` runs without the interpreter's lock.
fn run<'py, M: Machine, T: Send>(
    py: Python<'py>,
    loan: Loan<'_, 'py>,
    work: impl FnOnce(&Given<'_, M::Number>) -> (sequence::Results<M::Number>, T) + Send,
) -> PyResult<(Found<'py>, T)>
where
    M::Number: Item,
{
    let (steps, rows) = loan.extent;
    let (inputs, states) = (Lent::<M::Number>::new(loan.inputs)?, Lent::<M::Number>::new(loan.states)?);
    let resets = loan.resets.iter().map(|r| *r != 0).collect();
    let given = Given { steps, rows, inputs: inputs.slices()?, states: states.slices()?, resets };
    let (results, kept) = guarded(py, || work(&given))?;
    Ok(((given_away(py, results.outputs)?, given_away(py, results.states)?, results.penalty), kept))
}

/// Parameters in the layout of a back end.
#[pyclass(frozen, module = "bpm._native")]
pub(crate) struct Binding {
    machines: Machines,
    threads: usize,
    engine: Arc<Engine>,
}

/// Elements of matrix states of all steps of a batch below which nobody asks whether memory suffices.
const SMALL: usize = 1 << 24;

impl Binding {
    pub(crate) fn new(machines: Machines, threads: usize, engine: Arc<Engine>) -> Self {
        Binding { machines, threads, engine }
    }

    /// Refuses what does not fit into memory.
    fn check_memory(&self, (steps, rows): (usize, usize), mode: Mode) -> PyResult<()> {
        let (model, sizes) = (self.engine.model(), self.engine.sizes());
        let states = model.states.iter().map(|s| s.shape).chain(model.inputs.iter().map(|i| i.shape));
        let elements: usize = states.map(|s| sizes.count(s)).sum();
        if elements.saturating_mul(steps).saturating_mul(rows) < SMALL {
            return Ok(());
        }
        let tapes = if mode == Mode::Train { Tapes::Waiting } else { Tapes::PerThread };
        let threads = self.threads;
        let usage = Use { batch: rows, steps, threads, tapes, checkpoint_every: None, memory: None };
        let flags = Flags { batch: "batch ", steps: "steps ", threads: "threads=" };
        let need = Need { engine: &self.engine, usage, mode, data: 0, beside: None, flags };
        need.check(available()).map_err(|e| of_memory(&e))
    }
}

#[pymethods]
impl Binding {
    /// Runs a batch whose gradients nobody wants: outputs, states, penalty.
    fn infer<'py>(
        &self,
        py: Python<'py>,
        extent: (usize, usize),
        inputs: &Bound<'py, PyList>,
        states: &Bound<'py, PyList>,
        resets: &[u8],
    ) -> PyResult<Found<'py>> {
        self.check_memory(extent, Mode::Forward)?;
        let (loan, threads) = (Loan { extent, inputs, states, resets }, self.threads);
        let (found, ()) = match &self.machines {
            Machines::Single(m) => run::<Single, _>(py, loan, |g| (sequence::infer(&**m, g, threads), ()))?,
            Machines::Double(m) => run::<Double, _>(py, loan, |g| (sequence::infer(&**m, g, threads), ()))?,
        };
        Ok(found)
    }

    /// The same, with a tape.
    fn forward<'py>(
        &self,
        py: Python<'py>,
        extent: (usize, usize),
        inputs: &Bound<'py, PyList>,
        states: &Bound<'py, PyList>,
        resets: &[u8],
    ) -> PyResult<(Bound<'py, PyList>, Bound<'py, PyList>, f64, NativeTape)> {
        self.check_memory(extent, Mode::Train)?;
        let (loan, threads) = (Loan { extent, inputs, states, resets }, self.threads);
        let ((outputs, states, penalty), kept) = match &self.machines {
            Machines::Single(m) => {
                let (found, kept) =
                    run::<Single, _>(py, loan, |g| sequence::forward(Arc::clone(m), g, threads))?;
                (found, AnyKept::Single(Mutex::new(kept)))
            }
            Machines::Double(m) => {
                let (found, kept) =
                    run::<Double, _>(py, loan, |g| sequence::forward(Arc::clone(m), g, threads))?;
                (found, AnyKept::Double(Mutex::new(kept)))
            }
        };
        Ok((outputs, states, penalty, NativeTape { kept, threads }))
    }
}

/// A batch in one of the two number types, for one thread at a time.
enum AnyKept {
    Single(Mutex<Kept<Single>>),
    Double(Mutex<Kept<Double>>),
}

/// A batch that has run forward.
#[pyclass(frozen, module = "bpm._native")]
pub(crate) struct NativeTape {
    kept: AnyKept,
    threads: usize,
}

/// Gradients of parameters, inputs and states at the start.
type Gradients<'py> = (Bound<'py, PyList>, Bound<'py, PyList>, Bound<'py, PyList>);

fn backward<'py, M: Machine + Send>(
    py: Python<'py>,
    kept: &Mutex<Kept<M>>,
    (outputs, states, penalty): (&Bound<'py, PyList>, &Bound<'py, PyList>, f64),
    threads: usize,
) -> PyResult<Gradients<'py>>
where
    M::Number: Item,
{
    let (outputs, states) = (Lent::<M::Number>::new(outputs)?, Lent::<M::Number>::new(states)?);
    let bars = Cotangents { outputs: outputs.slices()?, states: states.slices()?, penalty };
    // Waiting for another thread's backward pass while the interpreter's lock is held would be a deadlock.
    let found = guarded(py, || {
        let mut kept = kept.lock().expect("no backward pass of this tape has failed");
        kept.backward(&bars, threads)
    })?;
    Ok((given_away(py, found.params)?, given_away(py, found.inputs)?, given_away(py, found.states)?))
}

#[pymethods]
impl NativeTape {
    /// Runs backward.
    fn backward<'py>(
        &self,
        py: Python<'py>,
        outputs: &Bound<'py, PyList>,
        states: &Bound<'py, PyList>,
        penalty: f64,
    ) -> PyResult<Gradients<'py>> {
        let bars = (outputs, states, penalty);
        match &self.kept {
            AnyKept::Single(kept) => backward(py, kept, bars, self.threads),
            AnyKept::Double(kept) => backward(py, kept, bars, self.threads),
        }
    }
}
