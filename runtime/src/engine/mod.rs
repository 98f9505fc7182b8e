//! Runs compiled models, row by row, or a whole batch on a device.
//!
//! An [`Engine`] is a model bound to axis sizes and a back end. [`Engine::bind`] adds parameters;
//! the resulting [`Bound`] is shared by all threads of an update. A [`Tape`] is one row's memory: a
//! thread steps a row through its episode on a tape, writes the cotangents of the outputs into it,
//! and runs it backward. Rows never wait for each other, and what a row computes does not depend on
//! which thread runs it.
//!
//! Denormal numbers are flushed to zero, on input and output, in all kernels and back ends; only
//! the f64 interpreter keeps them.

mod denormals;
pub mod device;
mod interp;
mod jit;
mod product;
mod sums;

pub use denormals::{DENORMALS, FlushDenormals};
pub use sums::Sums;

use device::{Device, DeviceId, Fault};

use compiler::back::Target;
use compiler::interp::Interpreter;
use compiler::ir::{InputId, OutputId, ParamId, Sizes, StateId};
use compiler::loops::Program;
use compiler::loops::plan::{self, Plan, Use};
use compiler::model::Model;
use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Which implementation runs the model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backend {
    /// The f64 interpreter: slow, exact, the meaning of the language.
    Interp,
    /// Machine code, f32.
    Compiled(Target),
    /// Kernels on a device, f32: all rows at once, as one team.
    Device(DeviceId),
}

impl Backend {
    /// Machine code through Cranelift.
    pub const CRANELIFT: Backend = Backend::Compiled(Target::Cranelift);
    /// Machine code for x86-64 with AVX2 and FMA.
    pub const X64: Backend = Backend::Compiled(Target::X64);

    /// The fastest machine code that this machine runs.
    pub fn fastest() -> Backend {
        Backend::Compiled(Target::fastest())
    }

    /// Its name on the command line and in run records.
    pub fn name(self) -> &'static str {
        match self {
            Backend::Interp => "interp",
            Backend::Compiled(target) => target.name(),
            Backend::Device(id) => id.name(),
        }
    }
}

/// Choices that change speed and memory, never results.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EngineOptions {
    /// Whether backward passes give the cotangents of inputs.
    pub input_bars: bool,
    /// Steps between checkpoints of the matrix states; `None` for the square root of the length,
    /// which makes checkpoints and replayed steps take equal memory.
    pub checkpoint_every: Option<usize>,
    /// The rows of batches whose rows may step together, where that is faster, since their inputs are known;
    /// 0 for none. Outputs keep their bits, sums of gradients over rows take another order.
    pub teams: usize,
}

impl Default for EngineOptions {
    fn default() -> Self {
        EngineOptions { input_bars: true, checkpoint_every: None, teams: 0 }
    }
}

/// Why a model cannot run here.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// The code generator failed.
    #[error(transparent)]
    Jit(#[from] compiler::back::BackError),
    /// A region of memory is too large for one program.
    #[error(
        "the model needs {bytes} bytes for {what} of one batch row, more than this back end can address; \
         make its axes smaller"
    )]
    TooLarge {
        /// The region.
        what: &'static str,
        /// Its size.
        bytes: usize,
    },
    /// A part of a vector lies outside of it.
    #[error(transparent)]
    Outside(#[from] compiler::ir::Outside),
    /// A device cannot be used.
    #[error(transparent)]
    Device(#[from] Fault),
    /// A parameter has the wrong number of elements.
    #[error("parameter `{name}` has {found} elements, expected {expected}")]
    Parameter {
        /// Its name.
        name: String,
        /// What was given.
        found: usize,
        /// What the model declares.
        expected: usize,
    },
}

/// Whether a tape can be run backward.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Keeps only the current step.
    Infer,
    /// Keeps the outputs of all steps, and nothing that only the backward pass reads.
    Forward,
    /// Keeps what the backward pass reads.
    Train,
}

/// Given an output of a step, fills its cotangent, which is zero.
pub type Cotangents<'a> = dyn FnMut(usize, OutputId, &[f32], &mut [f32]) + 'a;

/// Fills an input, which is zero, of a row of a team at a step.
pub type TeamInputs<'a> = dyn FnMut(usize, usize, InputId, &mut [f32]) + 'a;

/// A row for [`Bound::train_step`].
pub struct KnownRow<'a> {
    /// The states at the start, if not their initial values.
    pub states: Option<&'a RowState>,
    /// How many steps there are.
    pub steps: usize,
    /// Fills an input of a step, which is zero.
    pub inputs: &'a mut dyn FnMut(usize, InputId, &mut [f32]),
    /// The cotangents of the outputs.
    pub cotangents: &'a mut Cotangents<'a>,
    /// The cotangent of the sum of all penalties.
    pub penalty_bar: f32,
}

/// The states of one row, by state, row-major.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RowState {
    /// One tensor per state. Where a row starts, an empty one stands for the state's own initial
    /// value.
    pub states: Vec<Vec<f32>>,
}

/// Where the states of a stretch of steps start.
struct Start<'s> {
    states: Vec<&'s [f32]>,
    /// Whether a state starts at its own initial value, so that a learned one gets a gradient.
    own: Vec<bool>,
}

/// The text of a spec.
#[derive(Clone, Copy, Debug, Default)]
pub struct Text<'a> {
    /// Its file.
    pub file: &'a str,
    /// All of it.
    pub source: &'a str,
}

/// A model bound to sizes and a back end.
pub struct Engine {
    pub(crate) interpreter: Interpreter,
    pub(crate) program: Program,
    kind: Kind,
    /// By parameter: whether batched code alone uses it.
    packed: Vec<bool>,
    /// The loops for rows that step together, by their number; none if that does not help.
    teams: Vec<(Program, jit::Code)>,
    backend: Backend,
    options: EngineOptions,
    /// Memory of gradient sums, to be used again.
    spare: Mutex<Vec<Grads>>,
}

enum Kind {
    Interp,
    Jit(Box<jit::Code>),
    Device(Arc<device::Code>),
}

/// Parameters in the layout of a back end.
pub struct Bound<'e> {
    engine: &'e Engine,
    params: Vec<compiler::interp::Tensor>,
    packed: jit::Buffer,
    on_device: Option<device::Params>,
    initial: Vec<Vec<f32>>,
}

/// One row's memory.
pub struct Tape(TapeKind);

enum TapeKind {
    Interp(interp::Tape),
    Jit(jit::Tape),
    Device(Box<device::Tape>),
}

/// Memory that a row needs only while it runs backward.
pub struct Room(jit::Room);

impl Tape {
    /// Exchanges the room that it has for this one; both are for as many rows and steps.
    pub fn exchange(&mut self, room: &mut Room) {
        if let TapeKind::Jit(tape) = &mut self.0 {
            tape.exchange(&mut room.0);
        }
    }
}

/// Gradient sums of a chunk of rows.
pub struct Grads(GradsKind);

enum GradsKind {
    Interp(interp::Grads),
    Jit(jit::Grads),
    /// None if the device has failed.
    Device(Option<device::Grads>),
}

impl Engine {
    /// Compiles a model for the given sizes.
    ///
    /// # Errors
    /// [`EngineError`] if the code generator fails, the model is too large to address, a slice
    /// lies outside of its vector, or the device cannot be used.
    pub fn new(
        model: Arc<Model>,
        sizes: Sizes,
        backend: Backend,
        options: &EngineOptions,
    ) -> Result<Engine, EngineError> {
        Engine::of_text(model, sizes, backend, options, Text::default())
    }

    /// The same with the text of the spec, to which the kernels of a device then lead back.
    ///
    /// # Errors
    /// As [`Engine::new`].
    pub fn of_text(
        model: Arc<Model>,
        sizes: Sizes,
        backend: Backend,
        options: &EngineOptions,
        text: Text<'_>,
    ) -> Result<Engine, EngineError> {
        if let Backend::Device(id) = backend {
            let device = device::open(id)?;
            return Engine::on(device, model, sizes, backend, options, text);
        }
        compiler::ir::check_bounds(&model.step, &sizes)?;
        // The interpreter keeps the step as it was checked; kernels run its optimised form.
        let model = match backend {
            Backend::Interp => model,
            Backend::Compiled(_) | Backend::Device(_) => Arc::new(compiler::passes::optimise(&model)),
        };
        let interpreter = Interpreter::new(model, sizes);
        let program = lowered(&interpreter, options);
        let kind = match backend {
            Backend::Interp | Backend::Device(_) => Kind::Interp,
            Backend::Compiled(target) => {
                check_addressable(&program)?;
                Kind::Jit(Box::new(jit::Code::new(target, &program)?))
            }
        };
        let mut teams = vec![];
        if let Backend::Compiled(target) = backend
            && options.teams > 1
            && compiler::loops::gains(&program)
        {
            let sizes: BTreeSet<usize> = cut(options.teams).into_iter().filter(|n| *n > 1).collect();
            for rows in sizes {
                let program = compiler::loops::side_by_side(&program, rows);
                check_addressable(&program)?;
                let code = jit::Code::new(target, &program)?;
                teams.push((program, code));
            }
        }
        let spare = Mutex::new(vec![]);
        let is_packed = |k| {
            matches!(backend, Backend::Compiled(_))
                && plan::is_packed(&interpreter.model, &interpreter.prologue_adjoint, ParamId(k as u32))
        };
        let packed = (0..interpreter.model.params.len()).map(is_packed).collect();
        Ok(Engine { packed, interpreter, program, kind, teams, backend, options: *options, spare })
    }

    /// A model on a device that has been opened.
    ///
    /// # Errors
    /// As [`Engine::new`].
    pub fn on(
        device: Arc<dyn Device>,
        model: Arc<Model>,
        sizes: Sizes,
        backend: Backend,
        options: &EngineOptions,
        text: Text<'_>,
    ) -> Result<Engine, EngineError> {
        compiler::ir::check_bounds(&model.step, &sizes)?;
        let interpreter = Interpreter::new(Arc::new(compiler::passes::optimise(&model)), sizes);
        let program = lowered(&interpreter, options);
        check_addressable(&program)?;
        let (model, sizes) = (&*interpreter.model, &interpreter.sizes);
        let file = if text.file.is_empty() { format!("{}.bpm", model.name) } else { text.file.to_owned() };
        let spec = compiler::back::cuda::Spec {
            file: &file,
            source: text.source,
            name: &model.name,
            step: &model.step,
            adjoint: &interpreter.adjoint,
        };
        let source = compiler::back::cuda::emit(&program, &spec);
        let code = device::Code::new(device, &source, (model, sizes))?;
        let (kind, teams) = (Kind::Device(Arc::new(code)), vec![]);
        let (program, spare) = (source.program, Mutex::new(vec![]));
        let packed = vec![false; interpreter.model.params.len()];
        Ok(Engine { packed, interpreter, program, kind, teams, backend, options: *options, spare })
    }

    /// Whether all that has run so far has run: a device can fail at any time, and what it gives from then on is
    /// nothing.
    ///
    /// # Errors
    /// The first fault of the device.
    pub fn check(&self) -> Result<(), EngineError> {
        match &self.kind {
            Kind::Device(code) => code.fault().map_or(Ok(()), |fault| Err(fault.into())),
            Kind::Interp | Kind::Jit(_) => Ok(()),
        }
    }

    /// The device that it runs on, if it is none of the processor's.
    pub fn device(&self) -> Option<&Arc<dyn Device>> {
        match &self.kind {
            Kind::Device(code) => Some(code.device()),
            Kind::Interp | Kind::Jit(_) => None,
        }
    }

    /// Bytes that a device needs for all rows of a batch, with parameters and gradients; zero without one.
    pub fn device_bytes(&self, rows: usize, steps: usize, mode: Mode) -> u64 {
        let Kind::Device(code) = &self.kind else { return 0 };
        let room = device::Room { rows, steps, mode, interval: self.options.checkpoint_every };
        let p = &self.program;
        let hoisted: usize = p.rank1.iter().map(|r| r.post * r.pre).sum();
        let sums = if mode == Mode::Train { 8 * (p.grads_len + hoisted) } else { 0 };
        device::bytes(self, code, room).saturating_add((4 * p.params_len + sums) as u64)
    }

    /// The model.
    pub fn model(&self) -> &Model {
        &self.interpreter.model
    }

    /// The axis sizes.
    pub fn sizes(&self) -> &Sizes {
        &self.interpreter.sizes
    }

    /// The back end.
    pub fn backend(&self) -> Backend {
        self.backend
    }

    /// The loops that run.
    pub fn program(&self) -> &Program {
        &self.program
    }

    /// What training costs in memory with compiled code.
    pub fn plan(&self, usage: &Use) -> Plan {
        let (model, sizes) = (self.model(), self.sizes());
        let prologue = &self.interpreter.prologue_adjoint;
        plan::plan(&plan::Subject { model, sizes, program: &self.program, prologue }, usage)
    }

    /// Bytes of machine code, or of the source of a device's kernels; zero for the interpreter.
    pub fn code_bytes(&self) -> usize {
        match &self.kind {
            Kind::Interp => 0,
            Kind::Jit(code) => code.bytes(),
            Kind::Device(code) => code.bytes(),
        }
    }

    /// Evaluates what depends on parameters alone and lays it out. `params[k]` is the tensor of
    /// parameter `k` in the units of the spec (its constraint applied), row-major.
    ///
    /// # Errors
    /// [`EngineError::Parameter`] if a tensor has the wrong number of elements, [`EngineError::Device`] if a device
    /// fails.
    pub fn bind(&self, params: &[Vec<f32>]) -> Result<Bound<'_>, EngineError> {
        for (k, p) in self.model().params.iter().enumerate() {
            let (found, expected) = (params.get(k).map_or(0, Vec::len), self.sizes().count(p.shape));
            if found != expected {
                return Err(EngineError::Parameter { name: p.name.clone(), found, expected });
            }
        }
        let narrow = params;
        let widen = |(p, is_packed): (&Vec<f32>, &bool)| match is_packed {
            true => Arc::default(),
            false => Arc::new(p.iter().map(|x| f64::from(*x)).collect()),
        };
        let params: Vec<compiler::interp::Tensor> = params.iter().zip(&self.packed).map(widen).collect();
        let initial = self.interpreter.initial(&params);
        let initial = initial.into_iter().map(|t| t.iter().map(|x| *x as f32).collect()).collect();
        let packed = match self.backend {
            Backend::Interp => jit::Buffer::new(0),
            Backend::Compiled(_) | Backend::Device(_) => jit::pack_params(self, narrow, &params),
        };
        let on_device = match &self.kind {
            Kind::Device(code) => Some(device::Params::new(code, packed.as_slice())?),
            Kind::Interp | Kind::Jit(_) => None,
        };
        Ok(Bound { engine: self, params, packed, on_device, initial })
    }

    pub(crate) fn program_of(&self, rows: usize) -> &Program {
        match rows {
            0 | 1 => &self.program,
            _ => &self.team(rows).0,
        }
    }

    fn team(&self, rows: usize) -> &(Program, jit::Code) {
        let found = self.teams.iter().find(|(program, _)| program.rows == rows);
        found.unwrap_or_else(|| panic!("no team of {rows} rows was asked for"))
    }

    /// The sizes of the teams into which a batch is cut: rows that step together.
    pub fn teams(&self, rows: usize) -> Vec<usize> {
        if self.device().is_some() {
            return vec![rows];
        }
        if rows == self.options.teams && !self.teams.is_empty() { cut(rows) } else { vec![1; rows] }
    }

    /// The memory of a team of rows, for up to `steps` steps; see [`Engine::teams`].
    pub fn team_tape(&self, steps: usize, mode: Mode, rows: usize) -> Tape {
        let interval = self.options.checkpoint_every;
        Tape(match &self.kind {
            Kind::Interp => TapeKind::Interp(interp::Tape::new(self)),
            Kind::Jit(_) => TapeKind::Jit(jit::Tape::new(self, steps, mode, interval, rows)),
            Kind::Device(code) => {
                let room = device::Room { rows, steps, mode, interval };
                TapeKind::Device(Box::new(device::Tape::new(self, code, room)))
            }
        })
    }

    /// The memory of a team of rows that waits for others before it runs backward, and is lent a [`Room`] then.
    pub fn waiting_tape(&self, steps: usize, rows: usize) -> Tape {
        match &self.kind {
            Kind::Interp | Kind::Device(_) => self.team_tape(steps, Mode::Train, rows),
            Kind::Jit(_) => {
                let interval = self.options.checkpoint_every;
                Tape(TapeKind::Jit(jit::Tape::without_room(self, steps, Mode::Train, interval, rows)))
            }
        }
    }

    /// What a team of rows needs beside its [`Engine::waiting_tape`] while it runs backward.
    pub fn room(&self, steps: usize, rows: usize) -> Room {
        match &self.kind {
            Kind::Interp | Kind::Device(_) => Room(jit::Room::default()),
            Kind::Jit(_) => Room(jit::Room::new(self, steps, self.options.checkpoint_every, rows)),
        }
    }

    /// One row's memory for up to `steps` steps (any number of them in [`Mode::Infer`]).
    pub fn tape(&self, steps: usize, mode: Mode) -> Tape {
        self.team_tape(steps, mode, 1)
    }

    /// Gradient sums of one chunk of rows, zero.
    pub fn grads(&self) -> Grads {
        self.grads_for(false)
    }

    fn grads_for(&self, apart: bool) -> Grads {
        Grads(match &self.kind {
            Kind::Interp => GradsKind::Interp(interp::Grads::new(self)),
            Kind::Jit(_) => GradsKind::Jit(jit::Grads::new(self, apart)),
            Kind::Device(code) => GradsKind::Device(code.attempt(|| device::Grads::new(self, code))),
        })
    }

    fn spare(&self) -> MutexGuard<'_, Vec<Grads>> {
        self.spare.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sums of gradients over chunks of rows.
    pub fn sums(&self) -> Sums<'_> {
        Sums::new(self)
    }

    /// Adds up chunks in the given order and runs the adjoint of the prologue ([`Sums::finish`]).
    pub fn finish(&self, bound: &Bound<'_>, chunks: Vec<Grads>) -> Vec<Vec<f32>> {
        let sums = self.sums();
        chunks.into_iter().enumerate().for_each(|(k, chunk)| sums.add(k, chunk));
        sums.finish(bound)
    }
}

impl Grads {
    /// Whether it can be used again; `apart`: without hoisted gradients where it is compiled code's.
    fn suits(&self, apart: bool) -> bool {
        match &self.0 {
            GradsKind::Interp(_) | GradsKind::Device(_) => true,
            GradsKind::Jit(g) => g.is_apart() == apart,
        }
    }

    fn clear(&mut self) {
        match &mut self.0 {
            GradsKind::Interp(g) => g.clear(),
            GradsKind::Jit(g) => g.clear(),
            GradsKind::Device(g) => g.iter_mut().for_each(device::Grads::clear),
        }
    }
}

/// Cuts a batch into teams. An even number of them is easily shared by two threads or four.
fn cut(rows: usize) -> Vec<usize> {
    let count = rows.div_ceil(compiler::loops::TEAM).next_multiple_of(2).min(rows);
    (0..count).map(|k| (k + 1) * rows / count - k * rows / count).collect()
}

fn lowered(interpreter: &Interpreter, options: &EngineOptions) -> Program {
    let lower = compiler::loops::LowerOptions { input_bars: options.input_bars };
    compiler::loops::lower(&interpreter.model, &interpreter.sizes, &interpreter.adjoint, lower)
}

/// Offsets are 32-bit displacements.
fn check_addressable(program: &Program) -> Result<(), EngineError> {
    let regions = [
        ("the parameters", program.params_len),
        ("the gradient sums", program.grads_len),
        ("the matrix states", program.matrices_len),
        ("the logs", program.log_len.max(program.log_bar_len)),
        ("a frame", program.frame_len.max(program.adjoint_len)),
    ];
    for (what, elements) in regions {
        let bytes = elements.saturating_mul(4);
        if i32::try_from(bytes).is_err() {
            return Err(EngineError::TooLarge { what, bytes });
        }
    }
    Ok(())
}

impl Bound<'_> {
    /// The engine.
    pub fn engine(&self) -> &Engine {
        self.engine
    }

    /// The initial states that this binding gives (constants and learned ones; zero for random
    /// ones).
    pub fn initial(&self) -> RowState {
        RowState { states: self.initial.clone() }
    }

    /// Starts a row: its states become `states`, or their initial values.
    pub fn begin(&self, tape: &mut Tape, states: Option<&RowState>) {
        self.begin_team(tape, &[states]);
    }

    /// Starts the rows of a team. Either all or none of them have their own initial values.
    pub fn begin_team(&self, tape: &mut Tape, states: &[Option<&RowState>]) {
        let starts: Vec<Start<'_>> = states.iter().map(|s| self.start(*s)).collect();
        match &mut tape.0 {
            TapeKind::Interp(t) => t.begin(&starts[0]),
            TapeKind::Jit(t) => t.begin(self, &starts),
            TapeKind::Device(t) => t.begin(self, &starts),
        }
    }

    /// From now on inputs, outputs, states and their cotangents are those of this row of a team.
    pub fn select(&self, tape: &mut Tape, row: usize) {
        match &mut tape.0 {
            TapeKind::Interp(_) => {}
            TapeKind::Jit(t) => t.select(row),
            TapeKind::Device(t) => t.select(row),
        }
    }

    /// Sets the states back before the next step, and cuts the gradient there.
    pub fn reset(&self, tape: &mut Tape, states: Option<&RowState>) {
        self.reset_team(tape, &[states]);
    }

    /// The same for all rows of a team; only a device can have more than one.
    pub fn reset_team(&self, tape: &mut Tape, states: &[Option<&RowState>]) {
        let starts: Vec<Start<'_>> = states.iter().map(|s| self.start(*s)).collect();
        match &mut tape.0 {
            TapeKind::Interp(t) => t.reset(&starts[0]),
            TapeKind::Jit(t) => t.reset(self, &starts[0]),
            TapeKind::Device(t) => t.reset(self, &starts),
        }
    }

    fn start<'s>(&'s self, states: Option<&'s RowState>) -> Start<'s> {
        let given = |k: usize| states.and_then(|s| s.states.get(k)).filter(|s| !s.is_empty());
        let count = self.initial.len();
        Start {
            states: (0..count).map(|k| given(k).unwrap_or(&self.initial[k]).as_slice()).collect(),
            own: (0..count).map(|k| given(k).is_none()).collect(),
        }
    }

    /// The input slot of the step about to run.
    pub fn input_mut<'t>(&self, tape: &'t mut Tape, input: InputId) -> &'t mut [f32] {
        match &mut tape.0 {
            TapeKind::Interp(t) => t.input_mut(input),
            TapeKind::Jit(t) => t.input_mut(self, input),
            TapeKind::Device(t) => t.input_mut(input),
        }
    }

    /// Runs one step.
    pub fn step(&self, tape: &mut Tape) {
        match &mut tape.0 {
            TapeKind::Interp(t) => t.step(self),
            TapeKind::Jit(t) => t.step(self),
            TapeKind::Device(t) => t.step(self),
        }
    }

    /// Runs several steps whose inputs are known: the same as a call of [`Bound::step`] for each, bit for
    /// bit, and faster. `inputs(k, input, x)` fills `x`, which is zero, with an input of the `k`-th of
    /// these steps.
    pub fn forward(&self, tape: &mut Tape, steps: usize, inputs: &mut dyn FnMut(usize, InputId, &mut [f32])) {
        self.forward_team(tape, steps, &mut |_, k, input, x| inputs(k, input, x));
    }

    /// The same for a team; the first argument of `inputs` is the row.
    pub fn forward_team(&self, tape: &mut Tape, steps: usize, inputs: &mut TeamInputs<'_>) {
        match &mut tape.0 {
            TapeKind::Interp(t) => {
                for k in 0..steps {
                    for input in (0..self.engine.model().inputs.len()).map(|n| InputId(n as u32)) {
                        let x = t.input_mut(input);
                        x.fill(0.0);
                        inputs(0, k, input, x);
                    }
                    t.step(self);
                }
            }
            TapeKind::Jit(t) => t.forward(self, steps, inputs),
            TapeKind::Device(t) => t.forward(self, steps, inputs),
        }
    }

    /// A row whose inputs are known, forward and backward: begins it, runs all steps, asks for the cotangents of
    /// every output of every step, and adds its gradients to `grads`. The tape is one of [`Mode::Train`].
    ///
    /// Going backward begins where going forward ended, with the row's matrices still in the core's cache.
    pub fn train_step(&self, tape: &mut Tape, grads: &mut Grads, row: KnownRow<'_>) {
        let KnownRow { states, steps, inputs, cotangents, penalty_bar } = row;
        self.begin(tape, states);
        self.forward(tape, steps, inputs);
        let mut value = vec![];
        for t in 0..steps {
            for output in (0..self.engine.model().outputs.len()).map(|k| OutputId(k as u32)) {
                value.clear();
                value.extend_from_slice(self.output(tape, t, output));
                cotangents(t, output, &value, self.output_bar_mut(tape, t, output));
            }
        }
        self.backward(tape, grads, penalty_bar, None);
    }

    /// How many rows step together on a tape.
    pub fn rows(&self, tape: &Tape) -> usize {
        match &tape.0 {
            TapeKind::Interp(_) => 1,
            TapeKind::Jit(t) => t.rows(),
            TapeKind::Device(t) => t.rows(),
        }
    }

    /// How many steps have run since [`Bound::begin`].
    pub fn steps(&self, tape: &Tape) -> usize {
        match &tape.0 {
            TapeKind::Interp(t) => t.steps(),
            TapeKind::Jit(t) => t.steps(),
            TapeKind::Device(t) => t.steps(),
        }
    }

    /// An output of step `t`; in [`Mode::Infer`] only the last step's are kept.
    pub fn output<'t>(&self, tape: &'t Tape, t: usize, output: OutputId) -> &'t [f32] {
        match &tape.0 {
            TapeKind::Interp(tape) => tape.output(t, output),
            TapeKind::Jit(tape) => tape.output(self, t, output),
            TapeKind::Device(tape) => tape.output(t, output),
        }
    }

    /// The sum of step `t`'s penalty terms. It may need sums that the last step has left pending;
    /// they are finished then.
    pub fn penalty(&self, tape: &mut Tape, t: usize) -> f32 {
        match &mut tape.0 {
            TapeKind::Interp(tape) => tape.penalty(t),
            TapeKind::Jit(tape) => tape.penalty(self, t),
            TapeKind::Device(tape) => tape.penalty(self, t),
        }
    }

    /// The states after the last step.
    pub fn state(&self, tape: &mut Tape) -> RowState {
        match &mut tape.0 {
            TapeKind::Interp(t) => t.state(),
            TapeKind::Jit(t) => t.state(self),
            TapeKind::Device(t) => t.state(self),
        }
    }

    /// The cotangent slot of an output of step `t`: zero unless written.
    pub fn output_bar_mut<'t>(&self, tape: &'t mut Tape, t: usize, output: OutputId) -> &'t mut [f32] {
        match &mut tape.0 {
            TapeKind::Interp(tape) => tape.output_bar_mut(t, output),
            TapeKind::Jit(tape) => tape.output_bar_mut(self, t, output),
            TapeKind::Device(tape) => tape.output_bar_mut(t, output),
        }
    }

    /// Runs the tape backward and adds the gradients of the parameters to `grads`. `penalty_bar` is
    /// the cotangent of every step's penalty, `last` that of the final states (zero if absent).
    pub fn backward(&self, tape: &mut Tape, grads: &mut Grads, penalty_bar: f32, last: Option<&RowState>) {
        match (&mut tape.0, &mut grads.0) {
            (TapeKind::Interp(t), GradsKind::Interp(g)) => t.backward(self, g, penalty_bar, last),
            (TapeKind::Jit(t), GradsKind::Jit(g)) => t.backward(self, g, penalty_bar, last),
            (TapeKind::Device(t), GradsKind::Device(Some(g))) => t.backward(self, g, penalty_bar, last),
            (TapeKind::Device(t), GradsKind::Device(None)) => t.give_up(),
            _ => unreachable!("tape and gradients come from one engine"),
        }
    }

    /// After [`Bound::backward`]: the cotangent of an input of step `t`; `None` if it has none.
    pub fn input_bar<'t>(&self, tape: &'t Tape, t: usize, input: InputId) -> Option<&'t [f32]> {
        match &tape.0 {
            TapeKind::Interp(tape) => tape.input_bar(t, input),
            TapeKind::Jit(tape) => tape.input_bar(self, t, input),
            TapeKind::Device(tape) => tape.input_bar(t, input),
        }
    }

    /// After [`Bound::backward`]: the cotangent of the initial states, summed over resets.
    pub fn init_bar(&self, tape: &Tape) -> RowState {
        match &tape.0 {
            TapeKind::Interp(t) => t.init_bar(),
            TapeKind::Jit(t) => t.init_bar(),
            TapeKind::Device(t) => t.init_bar(self),
        }
    }

    /// Elements of a state.
    pub(crate) fn state_len(&self, s: StateId) -> usize {
        self.engine.sizes().count(self.engine.model().states[s.index()].shape)
    }
}
