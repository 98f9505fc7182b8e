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

mod bound;
mod chain;
mod denormals;
pub mod device;
mod interp;
mod jit;
mod product;
mod sums;
mod torch;

pub use chain::Chaining;
pub use denormals::{DENORMALS, FlushDenormals};
pub use sums::Sums;

use device::{Device, DeviceId, Fault, Route, Tier};

use ::torch::Place;
use compiler::back::Target;
use compiler::back::cuda::Grid;
pub use compiler::back::cuda::Wanted;
use compiler::interp::Interpreter;
use compiler::ir::{InputId, OutputId, ParamId, Sizes};
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
    /// libtorch and its autograd, f32: all rows at once, as one team.
    Torch(Place),
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
            Backend::Torch(_) => "torch",
        }
    }
}

/// Choices that change speed and memory, never results.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EngineOptions {
    /// Whether backward passes give the cotangents of inputs.
    pub input_bars: bool,
    /// Whether backward passes give the cotangents of the states at the start ([`Bound::init_bar`]).
    pub initial_bars: bool,
    /// Steps between checkpoints of the matrix states; `None` for the square root of the length,
    /// which makes checkpoints and replayed steps take equal memory.
    pub checkpoint_every: Option<usize>,
    /// The rows of batches whose rows may step together, where that is faster, since their inputs are known;
    /// 0 for none. Outputs keep their bits, sums of gradients over rows take another order.
    pub teams: usize,
    /// Whether what only feeds forward runs link after link. Outputs keep their bits.
    pub chaining: Chaining,
    /// On a device: which kernels run. Those of whole sequences have bits of their own, which depend on how they are
    /// mapped to the device, and so on [`EngineOptions::batch`].
    pub tier: Tier,
    /// Whether steps come one by one, so that no sequence is known before it has run: then kernels of whole sequences
    /// may go backward alone.
    pub one_by_one: bool,
    /// Rows of the batches that are expected on a device, for which it shares out its work: 0 if that is not known.
    pub batch: usize,
    /// Steps of their sequences, for the estimates by which [`Tier::Auto`] chooses: 0 if that is not known.
    pub steps: usize,
    /// How a device shares out the work of a step.
    pub mapping: Wanted,
}

impl Default for EngineOptions {
    fn default() -> Self {
        EngineOptions {
            input_bars: true,
            initial_bars: true,
            checkpoint_every: None,
            teams: 0,
            chaining: Chaining::Never,
            tier: Tier::Steps,
            one_by_one: false,
            batch: 0,
            steps: 0,
            mapping: Wanted::Fastest,
        }
    }
}

/// Rows of a batch on a device, if nobody says how many.
const SOME_ROWS: usize = 16;

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
    /// libtorch is not there, or has failed.
    #[error(transparent)]
    Torch(#[from] ::torch::Fault),
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
    Chain(Box<chain::Chain>),
    Device(Arc<device::Code>),
    Torch(Arc<torch::Code>),
}

/// Parameters in the layout of a back end.
pub struct Bound<'e> {
    engine: &'e Engine,
    params: Vec<compiler::interp::Tensor>,
    packed: jit::Buffer,
    on_device: Option<Arc<device::Params>>,
    /// Of a chain: the parameters of every link, and then none here.
    links: Vec<Bound<'e>>,
    initial: Vec<Vec<f32>>,
}

/// One row's memory.
pub struct Tape(TapeKind);

enum TapeKind {
    Interp(interp::Tape),
    Jit(jit::Tape),
    Chain(chain::Tape),
    Device(Box<device::Tape>),
    Torch(Box<torch::Tape>),
}

/// Memory that a row needs only while it runs backward.
pub struct Room(RoomKind);

enum RoomKind {
    None,
    Jit(jit::Room),
    Chain(chain::Rooms),
}

impl Tape {
    /// Exchanges the room that it has for this one; both are for as many rows and steps.
    pub fn exchange(&mut self, room: &mut Room) {
        match (&mut self.0, &mut room.0) {
            (TapeKind::Jit(tape), RoomKind::Jit(room)) => tape.exchange(room),
            (TapeKind::Chain(tape), RoomKind::Chain(rooms)) => tape.exchange(rooms),
            _ => {}
        }
    }
}

/// Gradient sums of a chunk of rows.
pub struct Grads(GradsKind);

enum GradsKind {
    Interp(interp::Grads),
    Jit(jit::Grads),
    Chain(Vec<jit::Grads>),
    /// None if the device has failed.
    Device(Option<device::Grads>),
    Torch(torch::Grads),
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
        // The interpreter and libtorch keep the step as it was checked; kernels run its optimised form.
        let model = match backend {
            Backend::Interp | Backend::Torch(_) => model,
            Backend::Compiled(_) | Backend::Device(_) => Arc::new(compiler::passes::optimise(&model)),
        };
        Engine::compiled(Interpreter::new(model, sizes), backend, options, None)
    }

    /// `gains`: whether rows gain from stepping together, if that is known.
    fn compiled(
        interpreter: Interpreter,
        backend: Backend,
        options: &EngineOptions,
        gains: Option<bool>,
    ) -> Result<Engine, EngineError> {
        let program = lowered(&interpreter, options);
        let gains = gains.unwrap_or_else(|| compiler::loops::gains(&program));
        let mut teams = vec![];
        let kind = match backend {
            Backend::Interp | Backend::Device(_) => Kind::Interp,
            Backend::Torch(place) => Kind::Torch(Arc::new(torch::Code::new(&interpreter, place)?)),
            Backend::Compiled(target) => {
                let rows = if gains { cut(options.teams).into_iter().max().unwrap_or(1) } else { 1 };
                let bytes = 4 * (program.params_len + program.grads_len + rows * program.matrices_len);
                let link = |part, own: &EngineOptions| Engine::compiled(part, backend, own, Some(gains));
                match chain::Chain::new(&interpreter, bytes, options, link)? {
                    Some(chain) => Kind::Chain(Box::new(chain)),
                    None => {
                        teams = if gains { compile_teams(&program, target, options)? } else { vec![] };
                        check_addressable(&program)?;
                        Kind::Jit(Box::new(jit::Code::new(target, &program)?))
                    }
                }
            }
        };
        let is_packed = |k| {
            matches!(backend, Backend::Compiled(_))
                && plan::is_packed(&interpreter.model, &interpreter.prologue_adjoint, ParamId(k as u32))
        };
        let packed = (0..interpreter.model.params.len()).map(is_packed).collect();
        let spare = Mutex::new(vec![]);
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
        let batch = if options.batch == 0 { SOME_ROWS } else { options.batch };
        let grid = Grid { processors: device.about().multiprocessors, batch, wanted: options.mapping };
        let source = compiler::back::cuda::emit_for(&program, &spec, grid);
        let mut code = device::Code::new(device, &source, (model, sizes))?;
        if let Some(steps) = source.choice {
            // Who wants checkpoints has no states kept.
            let length = if options.checkpoint_every.is_some_and(|k| k > 1) { 0 } else { options.steps };
            code.take_sequences(options.tier.wish(options.one_by_one), (&program, &spec), (steps, length))?;
        }
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
            Kind::Torch(code) => code.fault().map_or(Ok(()), |fault| Err(fault.into())),
            Kind::Interp | Kind::Jit(_) | Kind::Chain(_) => Ok(()),
        }
    }

    /// The device that our kernels run on, if they do not run on the processor.
    pub fn device(&self) -> Option<&Arc<dyn Device>> {
        match &self.kind {
            Kind::Device(code) => Some(code.device()),
            Kind::Interp | Kind::Jit(_) | Kind::Chain(_) | Kind::Torch(_) => None,
        }
    }

    /// Whether all rows of a batch run at once, as one team.
    pub fn is_side_by_side(&self) -> bool {
        matches!(self.kind, Kind::Device(_) | Kind::Torch(_))
    }

    /// Which kernels run on a device, and why; none on the processor.
    pub fn route(&self) -> Option<&Route> {
        match &self.kind {
            Kind::Device(code) => code.route(),
            Kind::Interp | Kind::Jit(_) | Kind::Chain(_) | Kind::Torch(_) => None,
        }
    }

    /// Where going backward a device has the matrix states of so many rows and steps from, in words; none on the processor,
    /// without such states, and where they are rebuilt on the chip.
    pub fn states(&self, rows: usize, steps: usize) -> Option<String> {
        let Kind::Device(code) = &self.kind else { return None };
        let (mode, interval) = (Mode::Train, self.options.checkpoint_every);
        device::states(self, code, device::Room { rows, steps, mode, interval })
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
        let plan = plan::plan(&plan::Subject { model, sizes, program: &self.program, prologue }, usage);
        match &self.kind {
            Kind::Chain(chain) => chain.plan(plan, usage),
            Kind::Interp | Kind::Jit(_) | Kind::Device(_) | Kind::Torch(_) => plan,
        }
    }

    /// Bytes of machine code, or of the source of a device's kernels; zero for the interpreter and libtorch.
    pub fn code_bytes(&self) -> usize {
        match &self.kind {
            Kind::Interp | Kind::Torch(_) => 0,
            Kind::Jit(code) => code.bytes(),
            Kind::Chain(chain) => chain.engines().map(Engine::code_bytes).sum(),
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
        self.bind_slices(&params.iter().map(Vec::as_slice).collect::<Vec<_>>())
    }

    /// The same with parameters that lie elsewhere.
    ///
    /// # Errors
    /// As [`Engine::bind`].
    pub fn bind_slices(&self, params: &[&[f32]]) -> Result<Bound<'_>, EngineError> {
        for (k, p) in self.model().params.iter().enumerate() {
            let (found, expected) = (params.get(k).map_or(0, |x| x.len()), self.sizes().count(p.shape));
            if found != expected {
                return Err(EngineError::Parameter { name: p.name.clone(), found, expected });
            }
        }
        if let Kind::Chain(chain) = &self.kind {
            return self.bind_links(chain, params);
        }
        let narrow = params;
        let widen = |(p, is_packed): (&&[f32], &bool)| match is_packed {
            true => Arc::default(),
            false => Arc::new(p.iter().map(|x| f64::from(*x)).collect()),
        };
        let params: Vec<compiler::interp::Tensor> = params.iter().zip(&self.packed).map(widen).collect();
        let initial = self.interpreter.initial(&params);
        let initial = initial.into_iter().map(|t| t.iter().map(|x| *x as f32).collect()).collect();
        let packed = match self.backend {
            Backend::Interp | Backend::Torch(_) => jit::Buffer::new(0),
            Backend::Compiled(_) | Backend::Device(_) => jit::pack_params(self, narrow, &params),
        };
        let on_device = match &self.kind {
            Kind::Device(code) => Some(Arc::new(device::Params::new(code, packed.as_slice())?)),
            Kind::Interp | Kind::Jit(_) | Kind::Chain(_) | Kind::Torch(_) => None,
        };
        Ok(Bound { engine: self, params, packed, on_device, links: vec![], initial })
    }

    /// Training whose episodes run on the device; none without one.
    ///
    /// # Errors
    /// If the device refuses a kernel, or has too little memory.
    pub fn training(&self, plan: &device::Plan<'_>) -> Result<Option<device::Training>, EngineError> {
        match &self.kind {
            Kind::Device(code) => Ok(Some(device::Training::new(self, code, plan)?)),
            Kind::Interp | Kind::Jit(_) | Kind::Chain(_) | Kind::Torch(_) => Ok(None),
        }
    }

    /// Bytes that training takes on the device beside what [`Engine::device_bytes`] says.
    pub fn training_bytes(&self, plan: &device::Plan<'_>) -> u64 {
        if self.device().is_some() { device::training_bytes(self, plan) } else { 0 }
    }

    /// The parameters that live on the device.
    pub fn bind_trained(&self, training: &device::Training) -> Bound<'_> {
        let on_device = Some(Arc::clone(training.params()));
        let (packed, initial) = (jit::Buffer::new(0), training.initial());
        Bound { engine: self, params: vec![], packed, on_device, links: vec![], initial }
    }

    fn bind_links<'e>(
        &'e self,
        chain: &'e chain::Chain,
        params: &[&[f32]],
    ) -> Result<Bound<'e>, EngineError> {
        let mut links = vec![];
        for (engine, own) in chain.engines().zip(chain.params()) {
            links.push(engine.bind_slices(&own.iter().map(|p| params[p.index()]).collect::<Vec<_>>())?);
        }
        let initial = chain.merge(links.iter().map(Bound::initial).collect()).states;
        let packed = jit::Buffer::new(0);
        Ok(Bound { engine: self, params: vec![], packed, on_device: None, links, initial })
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
        if self.is_side_by_side() {
            return vec![rows];
        }
        let has_teams = match &self.kind {
            Kind::Chain(chain) => chain.engines().all(|e| !e.teams.is_empty()),
            Kind::Interp | Kind::Jit(_) | Kind::Device(_) | Kind::Torch(_) => !self.teams.is_empty(),
        };
        if rows == self.options.teams && has_teams { cut(rows) } else { vec![1; rows] }
    }

    /// The memory of a team of rows, for up to `steps` steps; see [`Engine::teams`].
    pub fn team_tape(&self, steps: usize, mode: Mode, rows: usize) -> Tape {
        let interval = self.options.checkpoint_every;
        Tape(match &self.kind {
            Kind::Interp => TapeKind::Interp(interp::Tape::new(self)),
            Kind::Jit(_) => TapeKind::Jit(jit::Tape::new(self, steps, mode, interval, rows)),
            Kind::Chain(chain) => {
                let tape = |e: &Engine| jit::Tape::new(e, steps, mode, interval, rows);
                TapeKind::Chain(chain::Tape::new(chain, mode, tape))
            }
            Kind::Device(code) => {
                let room = device::Room { rows, steps, mode, interval };
                TapeKind::Device(Box::new(device::Tape::new(self, code, room)))
            }
            Kind::Torch(code) => TapeKind::Torch(Box::new(torch::Tape::new(self, code, mode, rows))),
        })
    }

    /// The memory of a team of rows that waits for others before it runs backward, and is lent a [`Room`] then.
    pub fn waiting_tape(&self, steps: usize, rows: usize) -> Tape {
        match &self.kind {
            Kind::Interp | Kind::Device(_) | Kind::Torch(_) => self.team_tape(steps, Mode::Train, rows),
            Kind::Jit(_) => {
                let interval = self.options.checkpoint_every;
                Tape(TapeKind::Jit(jit::Tape::without_room(self, steps, Mode::Train, interval, rows)))
            }
            Kind::Chain(chain) => {
                let interval = self.options.checkpoint_every;
                let tape = |e: &Engine| jit::Tape::without_room(e, steps, Mode::Train, interval, rows);
                Tape(TapeKind::Chain(chain::Tape::new(chain, Mode::Train, tape)))
            }
        }
    }

    /// What a team of rows needs beside its [`Engine::waiting_tape`] while it runs backward.
    pub fn room(&self, steps: usize, rows: usize) -> Room {
        let room = |e: &Engine| jit::Room::new(e, steps, self.options.checkpoint_every, rows);
        Room(match &self.kind {
            Kind::Interp | Kind::Device(_) | Kind::Torch(_) => RoomKind::None,
            Kind::Jit(_) => RoomKind::Jit(room(self)),
            Kind::Chain(chain) => RoomKind::Chain(chain.engines().map(room).collect()),
        })
    }

    /// One row's memory for up to `steps` steps (any number of them in [`Mode::Infer`]).
    pub fn tape(&self, steps: usize, mode: Mode) -> Tape {
        self.team_tape(steps, mode, 1)
    }

    /// Gradient sums of one chunk of rows, zero.
    pub fn grads(&self) -> Grads {
        // What [`Engine::finish`] has left is used again.
        match self.spare().pop().filter(|g| g.suits(false)) {
            Some(mut grads) => {
                grads.clear();
                grads
            }
            None => self.grads_for(false),
        }
    }

    fn grads_for(&self, apart: bool) -> Grads {
        Grads(match &self.kind {
            Kind::Interp => GradsKind::Interp(interp::Grads::new(self)),
            Kind::Jit(_) => GradsKind::Jit(jit::Grads::new(self, apart)),
            Kind::Chain(chain) => {
                GradsKind::Chain(chain.engines().map(|e| jit::Grads::new(e, apart)).collect())
            }
            Kind::Device(code) => GradsKind::Device(code.attempt(|| device::Grads::new(self, code))),
            Kind::Torch(_) => GradsKind::Torch(torch::Grads::new(self)),
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
            GradsKind::Interp(_) | GradsKind::Device(_) | GradsKind::Torch(_) => true,
            GradsKind::Jit(g) => g.is_apart() == apart,
            GradsKind::Chain(all) => all.iter().all(|g| g.is_apart() == apart),
        }
    }

    fn clear(&mut self) {
        match &mut self.0 {
            GradsKind::Interp(g) => g.clear(),
            GradsKind::Jit(g) => g.clear(),
            GradsKind::Chain(all) => all.iter_mut().for_each(jit::Grads::clear),
            GradsKind::Device(g) => g.iter_mut().for_each(device::Grads::clear),
            GradsKind::Torch(g) => g.clear(),
        }
    }
}

/// The loops of teams of every size that a batch is cut into.
fn compile_teams(
    program: &Program,
    target: Target,
    options: &EngineOptions,
) -> Result<Vec<(Program, jit::Code)>, EngineError> {
    let sizes: BTreeSet<usize> = cut(options.teams).into_iter().filter(|n| *n > 1).collect();
    let compile = |rows| {
        let program = compiler::loops::side_by_side(program, rows);
        check_addressable(&program)?;
        let code = jit::Code::new(target, &program)?;
        Ok((program, code))
    };
    sizes.into_iter().map(compile).collect()
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
