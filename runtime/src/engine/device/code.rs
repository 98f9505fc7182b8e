//! A model's kernels on a device, the parameters and the sums of gradients that belong to them.

use super::cache;
use super::sequences::{self, Route, Whole};
use super::{Address, Call, Device, Fault, FaultKind, Kernel, Module, Move, TapeArgs};
use crate::engine::Engine;
use compiler::back::cuda::{Choice, HOISTED_THREADS, Source, Spec, StepKernel, Wish};
use compiler::ir::{Shape, Sizes, Value};
use compiler::loops::{Base, NAMES, Program, leaves_all, routines};
use compiler::model::{Init, Model};
use std::collections::BTreeMap;
use std::ffi::c_int;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The source of what every spec needs.
pub(super) const MOVES: &str = include_str!("moves.cu");

/// Threads of a block of `move_numbers` and `add_rows`.
const PLAIN_THREADS: usize = 256;

/// Steps that a routine apart from the loop over time takes in one launch, at most.
const APART: usize = 64;

/// Bytes that their scratch may take then, if one step can do with so little.
const APART_BYTES: usize = 64 << 20;

/// Steps that a routine apart from the loop over time takes in one launch: its scratch grows with them.
pub(super) fn apart(scratch: usize, rows: usize) -> usize {
    (APART_BYTES / (4 * scratch * rows).max(1)).clamp(1, APART)
}

/// Memory of a device, given back when it is dropped.
pub(super) struct Buffer {
    device: Arc<dyn Device>,
    at: Address,
    bytes: usize,
}

impl Buffer {
    /// Memory that holds nothing yet.
    pub(super) fn new(device: &Arc<dyn Device>, bytes: usize) -> Result<Buffer, Fault> {
        let at = if bytes == 0 { 0 } else { device.allocate(bytes)? };
        Ok(Buffer { device: Arc::clone(device), at, bytes })
    }

    /// Memory of zeros.
    pub(super) fn zeros(device: &Arc<dyn Device>, bytes: usize) -> Result<Buffer, Fault> {
        let buffer = Buffer::new(device, bytes)?;
        buffer.clear()?;
        Ok(buffer)
    }

    /// Memory of these numbers.
    pub(super) fn of<T: Plain>(device: &Arc<dyn Device>, numbers: &[T]) -> Result<Buffer, Fault> {
        let buffer = Buffer::new(device, size_of_val(numbers))?;
        buffer.put(0, numbers)?;
        Ok(buffer)
    }

    pub(super) fn at(&self) -> Address {
        self.at
    }

    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    fn check(&self, start: usize, bytes: usize) {
        assert!(start + bytes <= self.bytes, "{start} and {bytes} of {} bytes", self.bytes);
    }

    pub(super) fn clear(&self) -> Result<(), Fault> {
        if self.bytes == 0 {
            return Ok(());
        }
        // SAFETY: the memory is this buffer's.
        unsafe { self.device.clear(self.at, self.bytes) }
    }

    /// Writes numbers from the `first`-th on.
    pub(super) fn put<T: Plain>(&self, first: usize, numbers: &[T]) -> Result<(), Fault> {
        let start = first * size_of::<T>();
        self.check(start, size_of_val(numbers));
        if numbers.is_empty() {
            return Ok(());
        }
        // SAFETY: plain numbers have no padding, and the place was checked.
        unsafe {
            let bytes = std::slice::from_raw_parts(numbers.as_ptr().cast::<u8>(), size_of_val(numbers));
            self.device.upload(self.at + start, bytes)
        }
    }

    /// Reads numbers from the `first`-th on.
    pub(super) fn get<T: Plain>(&self, first: usize, numbers: &mut [T]) -> Result<(), Fault> {
        let start = first * size_of::<T>();
        self.check(start, size_of_val(numbers));
        if numbers.is_empty() {
            return Ok(());
        }
        // SAFETY: any bytes are plain numbers, and the place was checked.
        unsafe {
            let bytes =
                std::slice::from_raw_parts_mut(numbers.as_mut_ptr().cast::<u8>(), size_of_val(numbers));
            self.device.download(self.at + start, bytes)
        }
    }

    /// Copies floats within or between buffers.
    pub(super) fn take(&self, to: usize, from: &Buffer, first: usize, count: usize) -> Result<(), Fault> {
        self.check(4 * to, 4 * count);
        from.check(4 * first, 4 * count);
        if count == 0 {
            return Ok(());
        }
        // SAFETY: both places were checked.
        unsafe { self.device.copy(self.at + 4 * to, from.at + 4 * first, 4 * count) }
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if self.bytes > 0 {
            // SAFETY: the memory is this buffer's, and nobody uses it any more.
            unsafe { self.device.free(self.at) };
        }
    }
}

/// Numbers without padding, of which any bytes are one.
pub(super) trait Plain: Copy {}
impl Plain for f32 {}
impl Plain for f64 {}
impl Plain for c_int {}
impl Plain for u8 {}

/// Where packed numbers lie within a region.
pub(super) struct Map {
    pub(super) places: Buffer,
    pub(super) width: usize,
}

impl Map {
    fn new(device: &Arc<dyn Device>, slots: &[(usize, usize)]) -> Result<Map, Fault> {
        let places = slots.iter().flat_map(|(offset, len)| *offset..offset + len);
        let places: Vec<c_int> = places.map(|p| p as c_int).collect();
        Ok(Map { width: places.len(), places: Buffer::of(device, &places)? })
    }
}

/// What the host reads and writes, as the offsets and lengths of slots.
pub(super) struct Slots {
    pub(super) inputs: Vec<(usize, usize)>,
    /// Outputs, then the terms of the penalty.
    pub(super) outputs: Vec<(usize, usize)>,
    pub(super) output_bars: Vec<(usize, usize)>,
    /// By input, where there is one.
    pub(super) input_bars: Vec<Option<(usize, usize)>>,
    /// Of states that are no matrices, by state.
    pub(super) states: Vec<Option<(usize, usize)>>,
    pub(super) state_bars: Vec<Option<(usize, usize)>>,
}

impl Slots {
    fn new(model: &Model, sizes: &Sizes, p: &Program) -> Slots {
        let count = |shape: Shape| sizes.count(shape);
        let some = |offset: &Option<usize>, shape: Shape| offset.map(|o| (o, count(shape)));
        let inputs = || model.inputs.iter().map(|i| i.shape);
        let outputs = || model.outputs.iter().map(|o| count(o.shape));
        let states = || model.states.iter().map(|s| s.shape);
        let penalties = p.penalties.iter().map(|offset| (*offset, 1));
        Slots {
            inputs: p.inputs.iter().copied().zip(inputs().map(count)).collect(),
            outputs: p.outputs.iter().copied().zip(outputs()).chain(penalties).collect(),
            output_bars: p.output_bars.iter().copied().zip(outputs()).collect(),
            input_bars: p.input_bars.iter().zip(inputs()).map(|(o, s)| some(o, s)).collect(),
            states: p.states.iter().zip(states()).map(|(o, s)| some(o, s)).collect(),
            state_bars: p.state_bars.iter().zip(states()).map(|(o, s)| some(o, s)).collect(),
        }
    }
}

/// The place of the `k`-th slot among packed ones.
pub(super) fn packed(slots: &[(usize, usize)], k: usize) -> std::ops::Range<usize> {
    let start = slots[..k].iter().map(|(_, len)| len).sum();
    start..start + slots[k].1
}

/// The place of the `k`-th slot among those that there are.
pub(super) fn packed_of(slots: &[Option<(usize, usize)>], k: usize) -> Option<std::ops::Range<usize>> {
    let (_, len) = slots[k]?;
    let start = slots[..k].iter().flatten().map(|(_, len)| len).sum();
    Some(start..start + len)
}

/// A model's kernels on a device.
pub(crate) struct Code {
    pub(super) device: Arc<dyn Device>,
    modules: [Module; 2],
    /// The launches of every routine.
    kernels: [Vec<(Kernel, StepKernel)>; NAMES.len()],
    hoisted: Vec<Kernel>,
    add_rows: Kernel,
    move_numbers: Kernel,
    bytes: usize,
    /// The kernels of whole sequences, if they run.
    pub(super) whole: Option<Whole>,
    /// Which kernels take which direction, once that was decided.
    route: Option<Route>,
    /// As errors name it.
    name: String,
    /// Floats of a row's scratch.
    scratch: usize,
    /// Routines that add to the gradients of a row take step after step.
    adds: [bool; NAMES.len()],
    /// Whether going backward a step reads the matrix states after the step after it.
    pub(super) reads_second: bool,
    /// Whether a step leaves all matrix states where it is told to.
    leaves_all: bool,
    /// Bytes that the device had before anything was allocated.
    pub(super) free: u64,
    pub(super) slots: Slots,
    pub(super) inputs: Map,
    pub(super) outputs: Map,
    pub(super) output_bars: Map,
    pub(super) input_bars: Map,
    pub(super) states: Map,
    pub(super) state_bars: Map,
    /// By log: the numbers of a row of it.
    pub(super) logs: Vec<Map>,
    /// As many zeros as any move of zeros needs.
    pub(super) zeros: Buffer,
    fault: Mutex<Option<Fault>>,
    /// Held by whoever asks the device for several things in a row.
    turn: Mutex<()>,
    spare: Mutex<Vec<Buffer>>,
}

impl Drop for Code {
    fn drop(&mut self) {
        self.modules.iter().for_each(|m| self.device.unload(*m));
    }
}

impl Code {
    pub(in crate::engine) fn new(
        device: Arc<dyn Device>,
        source: &Source,
        (model, sizes): (&Model, &Sizes),
    ) -> Result<Code, Fault> {
        let folder = cache::folder();
        let p = &source.program;
        let free = device.memory()?.free;
        let (module, _) = cache::load(&*device, folder.clone(), &source.text, &model.name)?;
        let (moves, _) = cache::load(&*device, folder, MOVES, "moves")?;
        let kernel = |name: &String| device.kernel(module, name);
        let mut kernels = [const { vec![] }; NAMES.len()];
        for (k, launches) in source.kernels.iter().enumerate() {
            for launch in launches {
                kernels[k].push((kernel(&launch.name)?, launch.clone()));
            }
        }
        let hoisted: Result<Vec<Kernel>, Fault> = source.hoisted.iter().map(kernel).collect();
        let slots = Slots::new(model, sizes, p);
        let flat = |all: &[Option<(usize, usize)>]| all.iter().flatten().copied().collect::<Vec<_>>();
        let log = |l: &compiler::loops::LogSlot| {
            let places: Vec<_> = (0..l.len).map(|i| (l.at(p.widest, 0, i), 1)).collect();
            Map::new(&device, &places)
        };
        let logs: Result<Vec<Map>, Fault> = p.logs.iter().map(log).collect();
        let adds = routines(p)
            .map(|r| r.nests.iter().flat_map(|n| &n.effects).any(|e| e.place().base == Base::Grads));
        let mut loads = routines(p).into_iter().flat_map(|r| &r.nests).flat_map(|n| n.body.loads());
        let reads_second = loads.any(|a| a.place().base == Base::Snapshot(2));
        let widest = p.adjoint_len.max(p.frame_len).max(1);
        Ok(Code {
            modules: [module, moves],
            kernels,
            scratch: p.scratch_len,
            hoisted: hoisted?,
            add_rows: device.kernel(module, "add_rows")?,
            move_numbers: device.kernel(moves, "move_numbers")?,
            bytes: source.text.len(),
            whole: None,
            route: None,
            name: model.name.clone(),
            adds,
            reads_second,
            leaves_all: leaves_all(p),
            free,
            inputs: Map::new(&device, &slots.inputs)?,
            outputs: Map::new(&device, &slots.outputs)?,
            output_bars: Map::new(&device, &slots.output_bars)?,
            input_bars: Map::new(&device, &flat(&slots.input_bars))?,
            states: Map::new(&device, &flat(&slots.states))?,
            state_bars: Map::new(&device, &flat(&slots.state_bars))?,
            logs: logs?,
            zeros: Buffer::zeros(&device, 4 * widest)?,
            slots,
            device,
            fault: Mutex::new(None),
            turn: Mutex::new(()),
            spare: Mutex::new(vec![]),
        })
    }

    /// Takes kernels of whole sequences, as far as they are wished for and can be had, beside single steps that
    /// are mapped so, in sequences of so many steps if that is known.
    ///
    /// # Errors
    /// If they are demanded and cannot be had; if the device fails.
    pub(in crate::engine) fn take_sequences(
        &mut self,
        wish: Wish,
        of: (&Program, &Spec<'_>),
        steps: (Choice, usize),
    ) -> Result<(), Fault> {
        let (whole, route) = sequences::choose(&self.device, wish, of, steps)?;
        (self.whole, self.route) = (whole, Some(route));
        Ok(())
    }

    /// Whether the matrix states of every step can be kept for the way back: kernels of whole sequences rebuild them.
    pub(super) fn can_keep(&self) -> bool {
        self.leaves_all && self.sequence(true).is_none()
    }

    /// Which kernels run, and why.
    pub(in crate::engine) fn route(&self) -> Option<&Route> {
        self.route.as_ref()
    }

    /// The kernels of whole sequences, if one takes this direction.
    pub(super) fn sequence(&self, is_backward: bool) -> Option<&Whole> {
        self.whole.as_ref().filter(|w| w.takes(is_backward))
    }

    /// Bytes of source.
    pub(in crate::engine) fn bytes(&self) -> usize {
        self.bytes + self.whole.as_ref().map_or(0, Whole::bytes)
    }

    /// The device.
    pub(in crate::engine) fn device(&self) -> &Arc<dyn Device> {
        &self.device
    }

    // ------------------------------------------------------------------ faults

    /// The first fault, if there was one.
    pub(in crate::engine) fn fault(&self) -> Option<Fault> {
        self.fault.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Does something in a turn of its own, unless something has failed before; `None` if it fails.
    pub(in crate::engine) fn attempt<T>(&self, work: impl FnOnce() -> Result<T, Fault>) -> Option<T> {
        let _turn: MutexGuard<'_, ()> = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        if self.fault().is_some() {
            return None;
        }
        work().map_err(|fault| *self.fault.lock().unwrap_or_else(PoisonError::into_inner) = Some(fault)).ok()
    }

    /// Whether all has gone well. Memory that was not there is forgiven when it has been said: a device that has too
    /// little for one batch has enough for another.
    pub(super) fn verdict(&self) -> Result<(), Fault> {
        let mut fault = self.fault.lock().unwrap_or_else(PoisonError::into_inner);
        let said = fault.clone();
        if fault.as_ref().is_some_and(|f| f.kind == FaultKind::OutOfMemory) {
            *fault = None;
        }
        said.map_or(Ok(()), Err)
    }

    // ---------------------------------------------------------------- launches

    /// Launches a routine for one step of all rows.
    pub(super) fn step(
        &self,
        routine: usize,
        rows: usize,
        tape: TapeArgs,
        at: super::At,
    ) -> Result<(), Fault> {
        self.steps(routine, rows, 1, tape, at)
    }

    /// Launches a routine that stands apart for several steps.
    pub(super) fn apart(
        &self,
        routine: usize,
        rows: usize,
        steps: usize,
        tape: TapeArgs,
        at: super::At,
    ) -> Result<(), Fault> {
        let most = if self.adds[routine] { 1 } else { apart(self.scratch, rows) };
        for first in (0..steps).step_by(most) {
            let k = first as c_int;
            let at = super::At { frame: at.frame + k, adjoint: at.adjoint + k, ..at };
            self.steps(routine, rows, most.min(steps - first), tape, at)?;
        }
        Ok(())
    }

    fn steps(
        &self,
        routine: usize,
        rows: usize,
        steps: usize,
        tape: TapeArgs,
        at: super::At,
    ) -> Result<(), Fault> {
        let call = Call::Step(tape, at);
        for (kernel, launch) in &self.kernels[routine] {
            let grid = [launch.blocks(rows) as u32, steps as u32];
            // SAFETY: a tape has the regions that its program states, for all its rows and steps.
            let done = unsafe { self.device.launch(*kernel, grid, launch.threads as u32, &call) };
            done.map_err(|fault| fault.of(&format!("`{}` of `{}`", launch.name, self.name)))?;
        }
        Ok(())
    }

    /// Launches the kernels of the hoisted gradients.
    pub(super) fn hoist(
        &self,
        program: &Program,
        (tape, at): (TapeArgs, super::At),
        count: [usize; 2],
        grads: &Grads,
    ) -> Result<(), Fault> {
        let count = count.map(|n| n as c_int);
        for ((rank1, kernel), sum) in program.rank1.iter().zip(&self.hoisted).zip(&grads.hoisted) {
            let grid = [rank1.pre.div_ceil(16) as u32, rank1.post.div_ceil(16) as u32];
            let call = Call::Hoisted(tape, at, count, sum.at());
            // SAFETY: as above, and the sum has an element for each pair.
            unsafe { self.device.launch(*kernel, grid, HOISTED_THREADS as u32, &call)? };
        }
        Ok(())
    }

    /// Adds the gradients of the rows to a sum.
    pub(super) fn add_rows(
        &self,
        from: &Buffer,
        rows: usize,
        length: usize,
        grads: &Grads,
    ) -> Result<(), Fault> {
        self.add_rows_to(from, rows, length, &grads.sums)
    }

    /// Adds rows of so many numbers to a sum in double precision, in their order.
    pub(super) fn add_rows_to(
        &self,
        from: &Buffer,
        rows: usize,
        length: usize,
        sum: &Buffer,
    ) -> Result<(), Fault> {
        if length == 0 {
            return Ok(());
        }
        let call = Call::AddRows(from.at(), [rows as c_int, length as c_int], sum.at());
        let grid = [length.div_ceil(PLAIN_THREADS) as u32, 1];
        // SAFETY: both buffers have this length.
        unsafe { self.device.launch(self.add_rows, grid, PLAIN_THREADS as u32, &call) }
    }

    /// Moves numbers.
    pub(super) fn moves(&self, moved: Move) -> Result<(), Fault> {
        let numbers = (moved.width * moved.count) as usize;
        if numbers == 0 {
            return Ok(());
        }
        let grid = [numbers.div_ceil(PLAIN_THREADS) as u32, 1];
        // SAFETY: tapes ask for moves between their own regions.
        unsafe { self.device.launch(self.move_numbers, grid, PLAIN_THREADS as u32, &Call::Move(moved)) }
    }

    /// Memory of this size, perhaps used before: parameters keep their place from update to update, so that
    /// recordings stay good.
    fn reuse(&self, bytes: usize) -> Result<Buffer, Fault> {
        let mut spare = self.spare.lock().unwrap_or_else(PoisonError::into_inner);
        match spare.iter().position(|b| b.bytes() == bytes) {
            Some(k) => Ok(spare.swap_remove(k)),
            None => Buffer::new(&self.device, bytes),
        }
    }

    fn give_back(&self, buffer: Buffer) {
        self.spare.lock().unwrap_or_else(PoisonError::into_inner).push(buffer);
    }
}

/// Parameters on a device.
pub(crate) struct Params {
    code: Arc<Code>,
    buffer: Option<Buffer>,
}

impl Params {
    pub(in crate::engine) fn new(code: &Arc<Code>, packed: &[f32]) -> Result<Params, Fault> {
        let buffer = code.reuse(size_of_val(packed))?;
        buffer.put(0, packed)?;
        Ok(Params { code: Arc::clone(code), buffer: Some(buffer) })
    }

    pub(super) fn at(&self) -> Address {
        self.buffer.as_ref().map_or(0, Buffer::at)
    }
}

impl Drop for Params {
    fn drop(&mut self) {
        if let Some(buffer) = self.buffer.take() {
            self.code.give_back(buffer);
        }
    }
}

/// Sums of gradients over all rows, in double precision.
pub(crate) struct Grads {
    code: Arc<Code>,
    /// As the kernels lay them out.
    pub(super) sums: Buffer,
    /// By hoisted gradient, row-major.
    pub(super) hoisted: Vec<Buffer>,
    /// Of learned initial states, by state.
    pub(super) initial: Vec<Vec<f64>>,
}

impl Grads {
    pub(in crate::engine) fn new(engine: &Engine, code: &Arc<Code>) -> Result<Grads, Fault> {
        let p = &engine.program;
        let zeros = |n: usize| Buffer::zeros(&code.device, 8 * n);
        let learned = |s: &compiler::model::State| match s.init {
            Init::Param(_) => vec![0.0; engine.sizes().count(s.shape)],
            _ => vec![],
        };
        let hoisted: Result<Vec<Buffer>, Fault> = p.rank1.iter().map(|r| zeros(r.post * r.pre)).collect();
        Ok(Grads {
            code: Arc::clone(code),
            sums: zeros(p.grads_len)?,
            hoisted: hoisted?,
            initial: engine.model().states.iter().map(learned).collect(),
        })
    }

    pub(in crate::engine) fn clear(&mut self) {
        let all = || self.hoisted.iter().chain([&self.sums]);
        self.code.attempt(|| all().try_for_each(Buffer::clear));
        self.initial.iter_mut().for_each(|x| x.fill(0.0));
    }

    pub(in crate::engine) fn add_to(
        &self,
        engine: &Engine,
        boundary: &mut BTreeMap<Value, Vec<f64>>,
        initial: &mut [Vec<f64>],
    ) {
        let p = &engine.program;
        let read = |buffer: &Buffer, count: usize| {
            let mut numbers = vec![0.0f64; count];
            self.code.attempt(|| buffer.get(0, &mut numbers));
            numbers
        };
        let mut add = |value: Value, x: &[f64]| {
            let sum = boundary.entry(value).or_insert_with(|| vec![0.0; x.len()]);
            sum.iter_mut().zip(x).for_each(|(s, x)| *s += x);
        };
        let sums = read(&self.sums, p.grads_len);
        for slot in &p.grads {
            match slot.matrix {
                Some((post, pre)) => add(slot.value, &plain(&sums[slot.offset..], post, pre)),
                None => add(slot.value, &sums[slot.offset..slot.offset + slot.len]),
            }
        }
        for (rank1, buffer) in p.rank1.iter().zip(&self.hoisted) {
            add(rank1.value, &read(buffer, rank1.post * rank1.pre));
        }
        for (sum, x) in initial.iter_mut().zip(&self.initial) {
            sum.iter_mut().zip(x).for_each(|(s, x)| *s += x);
        }
    }
}

/// A matrix of one tile, `[pre][post]`, in rows.
fn plain(tile: &[f64], post: usize, pre: usize) -> Vec<f64> {
    let stride = compiler::loops::padded(post);
    (0..post).flat_map(|j| (0..pre).map(move |i| tile[i * stride + j])).collect()
}
