//! A batch whose arrays lie on the device already, and are somebody else's.
//!
//! # What is lent
//!
//! Whoever holds arrays in the memory of the device — a program of PyTorch, or one of Python that has asked for
//! [`Block`]s — lends all of them: parameters, inputs `[T, B, axes…]`, states `[B, axes…]` and cotangents to be read, and
//! places for outputs, final states and gradients to be written. They are contiguous, row-major, in single precision.
//! Numbers move between them and the frames of a tape on the device; the host sees the sum of the penalties, and which
//! rows are reset when, and nothing else. Nothing is copied twice.
//!
//! # Order
//!
//! A device does its work in the order in which it is asked for it. Who lends an array must see to it that what he has
//! asked of the device comes first ([`super::Device::door`] names what has to wait for it). A call returns when its
//! work is done: all that was lent is free again, all that was asked for is there, for everybody, and what has gone
//! wrong is known. Calls on a device take turns ([`in_turn`]), for a sequence that is being recorded must not be
//! disturbed.
//!
//! # Resets
//!
//! See [`segments`]. Segments are stretches of one tape; between them states go from frame to frame, and cotangents of
//! states stay where the next segment finds them.
//!
//! # Memory
//!
//! A tape, and memory for parameters, are kept when they are done with, and used again by a call of the same shape: from
//! the second one on a sequence without resets is one recording. Where the device has too little memory for something
//! else, all models give back what they keep.
//!
//! # What it must not know
//!
//! Who lends, and by which protocol.

mod batch;
mod segments;
#[cfg(test)]
mod tests;

pub use batch::Batch;

use super::code::{Buffer, Code};
use super::regions::Room;
use super::tape::Tape;
use super::training::{Rules, Values};
use super::{Address, Device, Fault, FaultKind, Move};
use crate::engine::{Bound, Engine, EngineError, Kind, Mode, jit};
use compiler::ir::Shape;
use compiler::model::Init;
use std::ffi::c_int;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

/// An array that is lent: numbers of single precision, one after the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lent {
    /// The first.
    pub at: Address,
    /// How many there are.
    pub count: usize,
}

/// What a batch is given.
#[derive(Clone, Debug)]
pub struct Given {
    /// Steps, `T`; at least 1.
    pub steps: usize,
    /// Rows, `B`; at least 1.
    pub rows: usize,
    /// By input, `[T, B, axes…]`; none for zeros.
    pub inputs: Vec<Option<Lent>>,
    /// By state, `[B, axes…]`: where the sequence starts; none for the state's own initial value.
    pub states: Vec<Option<Lent>>,
    /// `[T, B]`: before which steps a row's states return to their own initial values; empty for never.
    pub resets: Vec<bool>,
}

/// Where results go.
#[derive(Clone, Debug)]
pub struct Results {
    /// By output, `[T, B, axes…]`.
    pub outputs: Vec<Lent>,
    /// By state, `[B, axes…]`, after the last step.
    pub states: Vec<Lent>,
}

/// Cotangents of results.
#[derive(Clone, Debug)]
pub struct Cotangents {
    /// By output, `[T, B, axes…]`; none for zeros.
    pub outputs: Vec<Option<Lent>>,
    /// By state, `[B, axes…]`; none for zeros.
    pub states: Vec<Option<Lent>>,
    /// Of the penalty.
    pub penalty: f64,
}

/// Where gradients go; none where nobody wants them.
#[derive(Clone, Debug)]
pub struct Gradients {
    /// By parameter, with respect to its value in the units of the spec; zeros for what is fixed.
    pub params: Vec<Option<Lent>>,
    /// By input, `[T, B, axes…]`; zeros for those without gradient.
    pub inputs: Vec<Option<Lent>>,
    /// By state, `[B, axes…]`: of the states at the start. Zeros for rows that are reset before the first step.
    pub states: Vec<Option<Lent>>,
}

/// Memory of a device, for a host that has none of its own there.
pub struct Block(Buffer);

impl Block {
    /// So many bytes; what they hold is not known.
    ///
    /// # Errors
    /// If there is too little.
    pub fn new(device: &Arc<dyn Device>, bytes: usize) -> Result<Block, Fault> {
        Ok(Block(with_room(&desk_of(device), || Buffer::new(device, bytes))?))
    }

    /// Bytes of the host.
    ///
    /// # Errors
    /// If there is too little memory, or the device fails.
    pub fn of(device: &Arc<dyn Device>, bytes: &[u8]) -> Result<Block, Fault> {
        let block = Block::new(device, bytes.len())?;
        in_turn(device, || {
            block.0.put(0, bytes)?;
            // From here on everybody may read it.
            device.wait()
        })?;
        Ok(block)
    }

    /// Where it lies.
    pub fn at(&self) -> Address {
        self.0.at()
    }

    /// How many bytes it has.
    pub fn bytes(&self) -> usize {
        self.0.bytes()
    }
}

/// Reads memory that is lent.
///
/// # Safety
/// It lies on this device, is as long as that, and stays until the call returns.
///
/// # Errors
/// If the device fails.
pub unsafe fn read(device: &Arc<dyn Device>, from: Address, to: &mut [u8]) -> Result<(), Fault> {
    if to.is_empty() {
        return Ok(());
    }
    // SAFETY: the caller vouches for the place.
    in_turn(device, || unsafe { device.download(from, to) })
}

/// Does something with a device while nobody else does, and after what its door waits for.
///
/// # Errors
/// Those of the work; if the device fails.
pub fn in_turn<T, E: From<Fault>>(
    device: &Arc<dyn Device>,
    work: impl FnOnce() -> Result<T, E>,
) -> Result<T, E> {
    let desk = desk_of(device);
    let _turn = locked(&desk.turn);
    device.admit()?;
    work()
}

/// Where a state lies within the regions of a tape.
enum Place {
    /// In frames, and its cotangent, if it has one, in adjoint frames.
    Vector(usize, Option<usize>),
    /// Among matrices, with the places of its elements there.
    Matrix(usize, Buffer),
    /// Nowhere: nothing reads it.
    Nowhere,
}

/// A state of a model.
struct State {
    place: Place,
    count: usize,
    /// Its own initial value, unless it is a parameter.
    own: Option<Buffer>,
}

/// Tapes that are kept for calls of the same shape, at most.
const TAPES: usize = 2;
/// Parameters.
const VALUES: usize = 2;

/// A tape that waits for a call of its shape: steps, rows, segments.
type Spare = ([usize; 3], Mode, Tape);

/// A model on a device, for arrays that lie there.
pub struct Lending {
    engine: Arc<Engine>,
    code: Arc<Code>,
    rules: Rules,
    states: Vec<State>,
    tapes: Mutex<Vec<Spare>>,
    values: Mutex<Vec<Values>>,
    desk: Arc<Desk>,
}

/// What all models of a device share.
struct Desk {
    /// The device, by its place in memory.
    device: usize,
    /// Held by whoever is at work.
    turn: Mutex<()>,
    models: Mutex<Vec<Weak<Lending>>>,
}

static DESKS: Mutex<Vec<Arc<Desk>>> = Mutex::new(vec![]);

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn desk_of(device: &Arc<dyn Device>) -> Arc<Desk> {
    let key = Arc::as_ptr(device).cast::<()>() as usize;
    let mut desks = locked(&DESKS);
    if let Some(desk) = desks.iter().find(|desk| desk.device == key) {
        return Arc::clone(desk);
    }
    let desk = Arc::new(Desk { device: key, turn: Mutex::new(()), models: Mutex::new(vec![]) });
    desks.push(Arc::clone(&desk));
    desk
}

/// Takes memory; where there is too little, once more when all models have given back what they keep.
fn with_room<T>(desk: &Desk, take: impl Fn() -> Result<T, Fault>) -> Result<T, Fault> {
    match take() {
        Err(fault) if fault.kind == FaultKind::OutOfMemory => {
            let models: Vec<Arc<Lending>> = locked(&desk.models).iter().filter_map(Weak::upgrade).collect();
            for model in models {
                locked(&model.tapes).clear();
                locked(&model.values).clear();
            }
            take()
        }
        taken => taken,
    }
}

/// The time of a call. When it ends the device has done all that it was asked for, whatever has happened.
struct Call<'l> {
    device: &'l Arc<dyn Device>,
    _turn: MutexGuard<'l, ()>,
}

impl Drop for Call<'_> {
    fn drop(&mut self) {
        // What has gone wrong was said, or nobody asks.
        let _ = self.device.wait();
    }
}

impl Lending {
    /// A model on a device.
    ///
    /// # Errors
    /// If it is on no device; if the device fails.
    pub fn new(engine: Arc<Engine>) -> Result<Arc<Lending>, EngineError> {
        let Kind::Device(code) = &engine.kind else {
            return Err(Fault::new(FaultKind::NoDevice, "the model is on no device").into());
        };
        let code = Arc::clone(code);
        let desk = desk_of(&code.device);
        let made = || Ok::<_, Fault>((Rules::new(&code)?, states(&engine, &code)?));
        let (rules, states) = in_turn(&code.device, made)?;
        let (tapes, values) = (Mutex::new(vec![]), Mutex::new(vec![]));
        let lending = Lending { engine, code, rules, states, tapes, values, desk: Arc::clone(&desk) };
        let lending = Arc::new(lending);
        let mut models = locked(&desk.models);
        models.retain(|model| 0 < model.strong_count());
        models.push(Arc::downgrade(&lending));
        drop(models);
        Ok(lending)
    }

    /// The model.
    pub fn engine(&self) -> &Engine {
        &self.engine
    }

    /// Reads parameters, by parameter, in the units of the spec. What changes later is not seen.
    ///
    /// # Safety
    /// The arrays lie on this device, are as long as they say, and stay until the call returns.
    ///
    /// # Errors
    /// If a parameter has the wrong number of elements; if the device fails.
    pub unsafe fn bind(self: &Arc<Self>, params: &[Lent]) -> Result<Arc<Held>, EngineError> {
        for (k, p) in self.engine.model().params.iter().enumerate() {
            let (found, expected) = (params.get(k).map_or(0, |x| x.count), self.count(p.shape));
            if found != expected {
                return Err(EngineError::Parameter { name: p.name.clone(), found, expected });
            }
        }
        let _call = self.call()?;
        let values = self.room()?;
        let from: Vec<Address> = params.iter().map(|p| p.at).collect();
        self.code.attempt(|| values.read(&self.rules, &from));
        let held = Arc::new(Held { lending: Arc::clone(self), values: Some(values) });
        self.done()?;
        Ok(held)
    }

    fn count(&self, shape: Shape) -> usize {
        self.engine.sizes().count(shape)
    }

    fn call(&self) -> Result<Call<'_>, Fault> {
        let call = Call { device: &self.code.device, _turn: locked(&self.desk.turn) };
        self.code.verdict()?;
        self.code.device.admit()?;
        Ok(call)
    }

    /// Memory for parameters.
    fn room(&self) -> Result<Values, Fault> {
        if let Some(spare) = locked(&self.values).pop() {
            return Ok(spare);
        }
        with_room(&self.desk, || Values::new(&self.engine, &self.code))
    }

    /// Waits until the device has done everything.
    fn done(&self) -> Result<(), Fault> {
        self.code.attempt(|| self.code.device.wait());
        self.code.verdict()
    }

    /// A tape, and whether a call of its shape has used it before.
    fn tape(&self, shape: [usize; 3], mode: Mode) -> Result<(Tape, bool), Fault> {
        let mut spare = locked(&self.tapes);
        if let Some(k) = spare.iter().position(|(s, m, _)| *s == shape && *m == mode) {
            return Ok((spare.swap_remove(k).2, true));
        }
        drop(spare);
        let [steps, rows, segments] = shape;
        // Every segment has a frame of its own before its first step.
        let steps = steps + segments - 1;
        let room = Room { rows, steps, mode, interval: self.engine.options.checkpoint_every };
        let tape = with_room(&self.desk, || {
            // A tape takes its memory in a turn of its own, and has none if that fails.
            let tape = Tape::new(&self.engine, &self.code, room);
            self.code.verdict().map(|()| tape)
        })?;
        Ok((tape, false))
    }

    fn keep_tape(&self, shape: [usize; 3], mode: Mode, tape: Tape) {
        let mut spare = locked(&self.tapes);
        if spare.len() == TAPES {
            spare.remove(0);
        }
        spare.push((shape, mode, tape));
    }

    /// Numbers of rows from region to region.
    fn rows(&self, to: Rows<'_>, from: Rows<'_>, width: usize, run: &Range<usize>) -> Result<(), Fault> {
        self.code.moves(Move {
            to: to.at + 4 * run.start * to.stride,
            to_map: to.map.map_or(0, Buffer::at),
            from: from.at + 4 * run.start * from.stride,
            from_map: from.map.map_or(0, Buffer::at),
            to_length: to.stride as i64,
            from_length: from.stride as i64,
            width: width as i64,
            count: run.len() as i64,
        })
    }

    /// Zeros in a part of memory that is lent or a tape's.
    fn clear(&self, at: Address, floats: usize) -> Result<(), Fault> {
        if floats == 0 {
            return Ok(());
        }
        // SAFETY: the caller has made sure that the place is as long as that.
        unsafe { self.code.device.clear(at, 4 * floats) }
    }
}

/// Regions of rows: where row 0 begins, elements from row to row (0 if all have the same), places within a region.
#[derive(Clone, Copy)]
struct Rows<'m> {
    at: Address,
    stride: usize,
    map: Option<&'m Buffer>,
}

impl Rows<'_> {
    fn plain(at: Address, stride: usize) -> Rows<'static> {
        Rows { at, stride, map: None }
    }
}

/// Where the states of a model lie, and their own initial values.
fn states(engine: &Engine, code: &Code) -> Result<Vec<State>, Fault> {
    let (p, device) = (&engine.program, &code.device);
    assert!(p.logs.is_empty(), "plastic matrices are kept as matrices");
    let nothing: Vec<_> =
        engine.model().params.iter().map(|p| Arc::new(vec![0.0; engine.sizes().count(p.shape)])).collect();
    let initial = engine.interpreter.initial(&nothing);
    let mut all = vec![];
    for (k, state) in engine.model().states.iter().enumerate() {
        let count = engine.sizes().count(state.shape);
        let place = match (&p.matrices[k], code.slots.states[k]) {
            (Some(m), _) => {
                // The number of every element as the program itself unpacks a matrix.
                let numbers: Vec<c_int> = (0..(p.matrices_len - m.offset) as c_int).collect();
                let mut places: Vec<c_int> = vec![0; count];
                p.unpack(m.post, m.pre, &numbers, &mut places);
                Place::Matrix(m.offset, Buffer::of(device, &places)?)
            }
            (None, Some((offset, _))) => Place::Vector(offset, code.slots.state_bars[k].map(|(bar, _)| bar)),
            (None, None) => Place::Nowhere,
        };
        let own = match state.init {
            Init::Param(_) => None,
            _ => {
                let numbers: Vec<f32> = initial[k].iter().map(|x| *x as f32).collect();
                Some(Buffer::of(device, &numbers)?)
            }
        };
        all.push(State { place, count, own });
    }
    Ok(all)
}

/// Parameters that have been read.
pub struct Held {
    lending: Arc<Lending>,
    /// Until this is dropped.
    values: Option<Values>,
}

impl Held {
    fn values(&self) -> &Values {
        self.values.as_ref().expect("parameters are held as long as this lives")
    }

    fn bound(&self) -> Bound<'_> {
        let on_device = Some(Arc::clone(self.values().params()));
        let (engine, packed) = (&*self.lending.engine, jit::Buffer::new(0));
        Bound { engine, params: vec![], packed, on_device, links: vec![], initial: vec![] }
    }

    /// The model on its device.
    pub fn lending(&self) -> &Arc<Lending> {
        &self.lending
    }

    /// Where a state starts if nobody says where.
    fn own(&self, state: usize) -> Address {
        let own = self.lending.states[state].own.as_ref().map(Buffer::at);
        own.or_else(|| self.values().start(state).map(|(at, _)| at)).unwrap_or(0)
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let mut spare = locked(&self.lending.values);
        if spare.len() < VALUES {
            spare.extend(self.values.take());
        }
    }
}
