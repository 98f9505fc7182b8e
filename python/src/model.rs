//! A spec bound to sizes and a back end.

use crate::arrays::given_away;
use crate::device::{Device, DeviceBinding, OnDevice, named, tier};
use crate::errors::{SpecWarning, guarded, of_engine, of_file, of_runtime};
use crate::run::{Binding, Machines};
use compiler::ir::{Axis, Sizes};
use compiler::loops::plan::{Tapes, Use};
use compiler::model::{Init, Model, Range, Role};
use grammar::diag::{Diagnostic, Severity};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList};
use runtime::Error;
use runtime::engine::device;
use runtime::engine::device::lending::{self, Lending};
use runtime::engine::{Backend, Engine, EngineError, EngineOptions, Text};
use runtime::params::{ParamStore, draw};
use runtime::rng::{Address, Domain, Purpose};
use runtime::rollout::is_random;
use runtime::sequence::Number;
use runtime::spec::{self, Spec};
use runtime::wiring::{draw_noise, noise_inputs};
use std::collections::BTreeMap;
use std::ffi::CString;
use std::num::NonZeroUsize;
use std::sync::Arc;

/// A model, compiled for its sizes.
#[pyclass(frozen, module = "bpm._native")]
pub(crate) struct Native {
    spec: Spec,
    sizes: Sizes,
    engine: Arc<Engine>,
    axes: BTreeMap<String, usize>,
    threads: usize,
    /// As they were asked for.
    asked: Asked,
    /// If it is on a device.
    on: Option<OnDevice>,
}

/// What a model is to run on.
#[derive(Clone)]
struct Asked {
    backend: String,
    device: String,
    tier: String,
}

impl Asked {
    fn backend(&self) -> PyResult<Backend> {
        match (named(&self.device)?, self.backend.as_str()) {
            (None, name) => backend(name),
            (Some(id), "auto") => Ok(Backend::Device(id)),
            (Some(_), name) => Err(PyValueError::new_err(format!(
                "back end `{name}` runs on the processor: leave backend= out, or take device=\"cpu\""
            ))),
        }
    }
}

/// The arguments of [`Native::new`].
type Recipe = (String, String, String, BTreeMap<String, usize>, (String, String, String), usize);

/// What a spec is read from.
fn read(py: Python<'_>, place: &str, text: Option<String>, name: Option<&str>) -> PyResult<Spec> {
    let compiled = match text {
        Some(text) => guarded(py, || spec::compile(place, text, name))?,
        None => {
            let (path, within) = match (name, place.split_once('#')) {
                (None, Some((path, within))) => (path, Some(within)),
                _ => (place, name),
            };
            std::fs::metadata(path).map_err(|e| of_file(path, &e))?;
            let text = runtime::files::read_text(path.as_ref()).map_err(|e| of_runtime(py, &e))?;
            guarded(py, || spec::compile(path, text, within))?
        }
    };
    compiled.map_err(|e| of_runtime(py, &e))
}

/// Python's own warnings say what the compiler warns of.
fn warn(py: Python<'_>, spec: &Spec) -> PyResult<()> {
    let is_warning = |d: &&Diagnostic| d.severity == Severity::Warning;
    let shown: Vec<Diagnostic> = spec.warnings.iter().filter(is_warning).cloned().collect();
    if shown.is_empty() {
        return Ok(());
    }
    let text = grammar::render::human(&spec.path, &spec.source, &shown, false);
    let text = CString::new(text.replace('\0', " ")).map_err(|e| PyValueError::new_err(e.to_string()))?;
    PyErr::warn(py, &py.get_type::<SpecWarning>(), &text, 2)
}

fn backend(name: &str) -> PyResult<Backend> {
    match name {
        "auto" => Ok(Backend::fastest()),
        "x64" => Ok(Backend::X64),
        "cranelift" => Ok(Backend::CRANELIFT),
        "interp" => Ok(Backend::Interp),
        _ => Err(PyValueError::new_err(format!(
            "there is no back end `{name}`: take auto, x64, cranelift (float32) or interp (float64); a GPU is \
             device=\"cuda\""
        ))),
    }
}

fn address(seed: u64, domain: Domain, episode: u32, row: usize) -> Address {
    Address { seed, domain, episode, row: row as u32 }
}

fn role(role: &Role) -> &'static str {
    match role {
        Role::Signal => "signal",
        Role::Modulator => "mod",
        Role::Target => "target",
        Role::Mask => "mask",
        Role::Reset => "reset",
        Role::Noise(_) => "noise",
    }
}

fn bounds(range: Range) -> (Option<f64>, Option<f64>) {
    match range {
        Range::Free => (None, None),
        Range::Interval(a, b) => (Some(a), Some(b)),
        Range::Above(a) => (Some(a), None),
        Range::Below(b) => (None, Some(b)),
    }
}

fn words(range: Range) -> String {
    match range {
        Range::Free => "it must be finite".to_owned(),
        Range::Interval(a, b) => format!("it must lie between {a} and {b}"),
        Range::Above(a) => format!("it must be above {a}"),
        Range::Below(b) => format!("it must be below {b}"),
    }
}

impl Native {
    fn model(&self) -> &Model {
        &self.spec.model
    }

    fn dims(&self, axes: &[Axis]) -> Vec<usize> {
        axes.iter().map(|a| self.sizes.of(*a)).collect()
    }

    fn is_double(&self) -> bool {
        self.engine.backend() == Backend::Interp
    }

    /// Arrays in the numbers of this model, from 64 bits.
    fn arrays<'py>(&self, py: Python<'py>, arrays: Vec<Vec<f64>>) -> PyResult<Bound<'py, PyList>> {
        if self.is_double() {
            return given_away(py, arrays);
        }
        let narrow = |x: Vec<f64>| x.into_iter().map(f32::from_f64).collect();
        given_away(py, arrays.into_iter().map(narrow).collect::<Vec<Vec<f32>>>())
    }
}

#[pymethods]
impl Native {
    #[new]
    fn new(
        py: Python<'_>,
        place: &str,
        text: Option<String>,
        name: Option<&str>,
        axes: BTreeMap<String, usize>,
        runs_on: (String, String, String),
        threads: Option<NonZeroUsize>,
    ) -> PyResult<Self> {
        let (backend, device, wanted) = runs_on;
        let asked = Asked { backend, device, tier: wanted };
        let (backend, tier) = (asked.backend()?, tier(&asked.tier)?);
        let spec = read(py, place, text, name)?;
        warn(py, &spec)?;
        let bind = || -> Result<Sizes, Error> {
            let sizes = Sizes::bind(&spec.model.axes, &axes)?;
            compiler::ir::check_bounds(&spec.model.step, &sizes).map_err(|e| Error::input(e.to_string()))?;
            Ok(sizes)
        };
        let sizes = bind().map_err(|e| of_runtime(py, &e))?;
        let compile = || -> Result<(Arc<Engine>, Option<OnDevice>), EngineError> {
            let text = Text { file: &spec.path, source: &spec.source };
            let model = Arc::clone(&spec.model);
            let options = EngineOptions { tier, ..EngineOptions::default() };
            let make = || Engine::of_text(model, sizes.clone(), backend, &options, text).map(Arc::new);
            match backend {
                Backend::Device(id) => {
                    let engine = lending::in_turn(&device::open(id)?, make)?;
                    let lending = Lending::new(Arc::clone(&engine))?;
                    Ok((engine, Some(OnDevice { id, lending })))
                }
                Backend::Interp | Backend::Compiled(_) | Backend::Torch(_) => Ok((make()?, None)),
            }
        };
        let (engine, on) = guarded(py, compile)?.map_err(|e| of_engine(py, e))?;
        let threads = threads.or_else(|| std::thread::available_parallelism().ok()).map_or(1, usize::from);
        Ok(Native { spec, sizes, engine, axes, threads, asked, on })
    }

    /// The name of the spec.
    #[getter]
    fn name(&self) -> &str {
        &self.model().name
    }

    /// The name of the back end that runs.
    #[getter]
    fn backend(&self) -> &'static str {
        self.engine.backend().name()
    }

    /// The type of all arrays, as NumPy calls it.
    #[getter]
    fn dtype(&self) -> &'static str {
        if self.is_double() { "float64" } else { "float32" }
    }

    /// Threads that a batch may use.
    #[getter]
    fn threads(&self) -> usize {
        self.threads
    }

    /// The device, if it is on one.
    fn device(&self, py: Python<'_>) -> PyResult<Option<Device>> {
        self.on.as_ref().map(|on| Device::open(py, on.id)).transpose()
    }

    /// Which kernels run on a device, and why.
    fn route(&self) -> Option<String> {
        self.engine.route().map(ToString::to_string)
    }

    /// What another process makes the same model of: place, text, name, axes as given; back end, device and tier; threads.
    fn recipe(&self) -> Recipe {
        let Spec { path, source, model, .. } = &self.spec;
        let Asked { backend, device, tier } = self.asked.clone();
        let (path, source, name) = (path.clone(), source.clone(), model.name.clone());
        // On the processor the one that was chosen.
        let backend = if self.on.is_some() { backend } else { self.backend().to_owned() };
        (path, source, name, self.axes.clone(), (backend, device, tier), self.threads)
    }

    /// The sizes of all axes.
    fn axes<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let usage = Use {
            batch: 1,
            steps: 1,
            threads: 1,
            tapes: Tapes::PerThread,
            checkpoint_every: None,
            memory: None,
        };
        let all = PyDict::new(py);
        for (name, size) in self.engine.plan(&usage).axes {
            all.set_item(name, size)?;
        }
        Ok(all)
    }

    /// Name, shape, whether it is learned, range, factor of its gradient, documentation.
    #[allow(clippy::type_complexity, reason = "a row of a table that Python reads")]
    fn parameters(&self) -> Vec<(String, Vec<usize>, bool, (Option<f64>, Option<f64>), f64, String)> {
        let mut all = vec![];
        for p in &self.model().params {
            let scale = p.gradscale.eval(&self.sizes);
            let range = bounds(p.constraint.range(&self.sizes));
            all.push((p.name.clone(), self.dims(&p.dims), p.learned, range, scale, p.doc.join("\n")));
        }
        all
    }

    /// Name, shape, role, whether gradients flow into it, documentation.
    fn inputs(&self) -> Vec<(String, Vec<usize>, &'static str, bool, String)> {
        let mut all = vec![];
        for i in &self.model().inputs {
            let (shape, role) = (self.sizes.dims(i.shape), (role(&i.role), i.role.is_differentiable()));
            all.push((i.name.clone(), shape, role.0, role.1, i.doc.join("\n")));
        }
        all
    }

    /// Name, shape, whether it starts at random, whether it starts at a parameter, documentation.
    fn states(&self) -> Vec<(String, Vec<usize>, bool, bool, String)> {
        let mut all = vec![];
        for s in &self.model().states {
            let start = (is_random(&s.init), matches!(s.init, Init::Param(_)));
            all.push((s.name.clone(), self.sizes.dims(s.shape), start.0, start.1, s.doc.join("\n")));
        }
        all
    }

    /// Name, shape, documentation.
    fn outputs(&self) -> Vec<(String, Vec<usize>, String)> {
        let outputs = self.model().outputs.iter();
        outputs.map(|o| (o.name.clone(), self.sizes.dims(o.shape), o.doc.join("\n"))).collect()
    }

    /// Whether the spec has penalty terms.
    fn has_penalty(&self) -> bool {
        self.model().step.results.iter().any(|(sink, _)| *sink == compiler::ir::Sink::Penalty)
    }

    /// Parameters as the spec's initialisers say: the numbers of `bpm train` with this seed.
    fn init<'py>(&self, py: Python<'py>, seed: u64) -> PyResult<Bound<'py, PyList>> {
        let store = ParamStore::new(self.model(), &self.sizes, seed, &BTreeMap::new());
        let values = store.map_err(|e| of_runtime(py, &e))?.values();
        self.arrays(py, values.into_iter().map(|x| x.into_iter().map(f64::from).collect()).collect())
    }

    /// Raw numbers of a parameter for its values, or the values of raw numbers.
    fn reparametrise<'py>(
        &self,
        py: Python<'py>,
        parameter: usize,
        numbers: Vec<f64>,
        to_raw: bool,
    ) -> PyResult<Bound<'py, PyList>> {
        let Some(p) = self.model().params.get(parameter) else {
            return Err(PyValueError::new_err("there is no such parameter"));
        };
        let range = p.constraint.range(&self.sizes);
        let raw = |x: f64| {
            let raw = range.raw(x).filter(|_| x.is_finite());
            raw.ok_or_else(|| {
                PyValueError::new_err(format!("parameter `{}` cannot be {x}: {}", p.name, words(range)))
            })
        };
        let numbers = numbers.into_iter().map(|x| if to_raw { raw(x) } else { Ok(range.value(x)) });
        self.arrays(py, vec![numbers.collect::<PyResult<_>>()?])
    }

    /// States at the start of an episode: drawn row by row where the spec says so; `None` for those that start at a
    /// parameter.
    fn initial_state<'py>(
        &self,
        py: Python<'py>,
        rows: usize,
        seed: u64,
    ) -> PyResult<Vec<Option<Bound<'py, PyAny>>>> {
        let mut all = vec![];
        for (k, state) in self.model().states.iter().enumerate() {
            if let Init::Param(_) = state.init {
                all.push(None);
                continue;
            }
            let dims = self.sizes.dims(state.shape);
            let mut numbers = vec![];
            for row in 0..rows {
                let mut stream = address(seed, Domain::Train, 0, row).stream(Purpose::States, k as u32);
                numbers.extend(draw(&state.init, &dims, &self.sizes, &mut stream));
            }
            all.push(Some(self.arrays(py, vec![numbers])?.get_item(0)?));
        }
        Ok(all)
    }

    /// The parameter at which a state starts.
    fn starts_at(&self, state: usize) -> Option<usize> {
        match self.model().states.get(state)?.init {
            Init::Param(p) => Some(p.index()),
            _ => None,
        }
    }

    /// The noise inputs of a sequence, by input; `None` for all other inputs.
    fn noise<'py>(
        &self,
        py: Python<'py>,
        extent: (usize, usize),
        seed: u64,
        episode: u32,
        training: bool,
    ) -> PyResult<Vec<Option<Bound<'py, PyAny>>>> {
        let (steps, rows) = extent;
        let inputs = noise_inputs(self.model(), &self.sizes);
        let domain = if training { Domain::Train } else { Domain::Eval };
        let mut drawn: BTreeMap<usize, Vec<f64>> = BTreeMap::new();
        for (t, row) in (0..steps).flat_map(|t| (0..rows).map(move |row| (t, row))) {
            let at = address(seed, domain, episode, row);
            draw_noise(&inputs, &self.sizes, at, t, |id, x| drawn.entry(id.index()).or_default().extend(x));
        }
        let mut all = vec![];
        for k in 0..self.model().inputs.len() {
            let numbers = drawn.remove(&k);
            all.push(numbers.map(|x| self.arrays(py, vec![x])?.get_item(0)).transpose()?);
        }
        Ok(all)
    }

    /// Binds parameters: arrays in the order of the spec.
    fn bind(&self, py: Python<'_>, params: &Bound<'_, PyList>) -> PyResult<Binding> {
        if self.on.is_some() {
            return Err(PyValueError::new_err("the model is on a device"));
        }
        let machines = Machines::new(py, &self.engine, self.is_double(), params)?;
        Ok(Binding::new(machines, self.threads, Arc::clone(&self.engine)))
    }

    /// Binds parameters that lie on the model's device.
    fn bind_on_device(&self, py: Python<'_>, params: &Bound<'_, PyList>) -> PyResult<DeviceBinding> {
        match &self.on {
            Some(on) => on.bind(py, params),
            None => Err(PyValueError::new_err("the model is on the processor")),
        }
    }
}
