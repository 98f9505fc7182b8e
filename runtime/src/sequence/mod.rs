//! A batch through a whole sequence, forward and backward, for a host that holds the arrays.
//!
//! The host lends inputs `[T, B, axes…]` and states `[B, axes…]`; it gets outputs, final states and, on demand,
//! gradients. Nothing is random here, nothing is read or written, and parameters are in the units of the spec,
//! as in [`crate::exact`].
//!
//! # Resets
//!
//! A row that is reset in the middle of a sequence is several *pieces*: stretches of steps that know nothing of each
//! other. Each has a tape of its own. The first piece of a row starts at the states that the host gave, all others
//! at the states' own initial values; so a cotangent of the given states is that of the first piece alone, and
//! learned initial values get theirs from the others.
//!
//! # Copies
//!
//! An input is copied once, into the frames of a tape, where the machine code and the backward pass read it beside
//! the values of its step; an output is copied once, from there into the array that the host gets.
//!
//! # Order
//!
//! Pieces are cut into chunks, chunks are summed in their order: results do not depend on the number of threads.

mod double;
mod pieces;
mod single;

pub use double::Double;
pub use single::Single;

use crate::parallel;
use compiler::ir::{Shape, Sizes};
use compiler::model::Model;
use pieces::{Cells, Piece, cut, deal};
use std::sync::Arc;

/// What a batch is given.
pub struct Given<'a, N> {
    /// Steps, `T`; at least 1.
    pub steps: usize,
    /// Rows, `B`; at least 1.
    pub rows: usize,
    /// By input, `[T, B, axes…]`; none for zeros.
    pub inputs: Vec<Option<&'a [N]>>,
    /// By state, `[B, axes…]`: where the sequence starts; none for the state's own initial value.
    pub states: Vec<Option<&'a [N]>>,
    /// `[T, B]`: before which steps a row's states return to their own initial values; empty for never.
    pub resets: Vec<bool>,
}

/// What a batch gives.
#[derive(Clone, Debug, PartialEq)]
pub struct Results<N> {
    /// By output, `[T, B, axes…]`.
    pub outputs: Vec<Vec<N>>,
    /// By state, `[B, axes…]`, after the last step.
    pub states: Vec<Vec<N>>,
    /// The penalty terms of the spec: their sum, averaged over steps and rows.
    pub penalty: f64,
}

/// Cotangents of [`Results`].
pub struct Cotangents<'a, N> {
    /// By output, `[T, B, axes…]`; none for zeros.
    pub outputs: Vec<Option<&'a [N]>>,
    /// By state, `[B, axes…]`; none for zeros.
    pub states: Vec<Option<&'a [N]>>,
    /// Of the penalty.
    pub penalty: f64,
}

/// Gradients of what was given.
#[derive(Clone, Debug, PartialEq)]
pub struct Gradients<N> {
    /// By parameter, with respect to its value in the units of the spec.
    pub params: Vec<Vec<N>>,
    /// By input, `[T, B, axes…]`; zeros for those without gradient.
    pub inputs: Vec<Vec<N>>,
    /// By state, `[B, axes…]`: of the states at the start. Zeros for rows that are reset before the first step.
    pub states: Vec<Vec<N>>,
}

/// A number of arrays.
pub trait Number: Copy + Default + Send + Sync {
    /// From 64 bits, rounded.
    fn from_f64(x: f64) -> Self;
    /// To 64 bits.
    fn to_f64(self) -> f64;
}

impl Number for f32 {
    fn from_f64(x: f64) -> f32 {
        x as f32
    }

    fn to_f64(self) -> f64 {
        f64::from(self)
    }
}

impl Number for f64 {
    fn from_f64(x: f64) -> f64 {
        x
    }

    fn to_f64(self) -> f64 {
        self
    }
}

/// Fills an input of a step, which is zero.
pub type Inputs<'a, N> = dyn FnMut(usize, usize, &mut [N]) + 'a;

/// Where a piece starts, by state; none for the state's own initial value.
pub type Start<'a, N> = Vec<Option<&'a [N]>>;

/// What a piece is asked for going backward.
pub struct Asked<'a, N> {
    /// Its steps.
    pub steps: usize,
    /// The cotangent of an output at a step; none for zero.
    pub outputs: &'a dyn Fn(usize, usize) -> Option<&'a [N]>,
    /// Of the penalty of every step.
    pub penalty: f64,
    /// Of its last states, by state; none for zero, for all of them.
    pub last: Option<Vec<Vec<N>>>,
}

/// What runs pieces: a model with sizes and parameters.
pub trait Machine: Sync {
    /// The numbers of its arrays.
    type Number: Number;
    /// The memory of a piece.
    type Tape: Send;
    /// What a thread needs besides.
    type Room: Send + Default;
    /// The sum of the gradients of a chunk.
    type Chunk: Send;

    /// The model.
    fn model(&self) -> &Model;
    /// The sizes of its axes.
    fn sizes(&self) -> &Sizes;
    /// Memory for a piece; `kept` for one that runs backward later.
    fn tape(&self, steps: usize, kept: bool) -> Self::Tape;
    /// Runs all steps of a piece.
    fn forward(
        &self,
        tape: &mut Self::Tape,
        start: &Start<'_, Self::Number>,
        steps: usize,
        inputs: &mut Inputs<'_, Self::Number>,
    );
    /// Copies an output of a step.
    fn output(&self, tape: &Self::Tape, step: usize, output: usize, to: &mut [Self::Number]);
    /// The states after the last step.
    fn states(&self, tape: &mut Self::Tape) -> Vec<Vec<Self::Number>>;
    /// The penalties of all steps, summed.
    fn penalty(&self, tape: &mut Self::Tape, steps: usize) -> f64;
    /// Zeros.
    fn chunk(&self) -> Self::Chunk;
    /// Runs a piece backward and adds the gradients of parameters.
    fn backward(
        &self,
        tape: &mut Self::Tape,
        room: &mut Self::Room,
        asked: Asked<'_, Self::Number>,
        chunk: &mut Self::Chunk,
    );
    /// After that: copies the cotangent of an input of a step, if it has one.
    fn input_bar(&self, tape: &Self::Tape, step: usize, input: usize, to: &mut [Self::Number]);
    /// After that: the cotangents of the states at the start.
    fn start_bars(&self, tape: &Self::Tape) -> Vec<Vec<Self::Number>>;
    /// The gradients of all parameters, from chunks in their order.
    fn finish(&self, chunks: Vec<Self::Chunk>) -> Vec<Vec<Self::Number>>;
}

/// The part of an array `[T, B, …]` that belongs to a step and a row.
fn cell<N>(array: &[N], (steps, rows): (usize, usize), t: usize, b: usize) -> &[N] {
    let count = array.len() / (steps * rows);
    &array[(t * rows + b) * count..][..count]
}

/// The part of an array `[B, …]` that belongs to a row.
fn row<N>(array: &[N], rows: usize, b: usize) -> &[N] {
    let count = array.len() / rows;
    &array[b * count..][..count]
}

/// Zeros of these shapes, `front` times.
fn zeros<N: Number>(sizes: &Sizes, front: usize, shapes: impl Iterator<Item = Shape>) -> Vec<Vec<N>> {
    shapes.map(|s| vec![N::default(); front * sizes.count(s)]).collect()
}

/// Elements of the larger arrays of a step, below which another thread costs more than it saves.
const WORTH_A_THREAD: usize = 1 << 18;

/// How many threads have enough to do.
fn useful_threads(model: &Model, sizes: &Sizes, moments: usize, threads: usize) -> usize {
    let states = model.states.iter().map(|s| sizes.count(s.shape));
    let params = model.params.iter().map(|p| sizes.count(p.shape));
    let work = states.chain(params).sum::<usize>().saturating_mul(moments);
    threads.min(1 + work / WORTH_A_THREAD).max(1)
}

/// Runs a batch whose gradients nobody wants.
pub fn infer<M: Machine>(machine: &M, given: &Given<'_, M::Number>, threads: usize) -> Results<M::Number> {
    run(machine, given, Keeping::Nothing, threads).0
}

/// Runs a batch, and keeps what its gradients need.
pub fn forward<M: Machine>(
    machine: Arc<M>,
    given: &Given<'_, M::Number>,
    threads: usize,
) -> (Results<M::Number>, Kept<M>) {
    let (results, pieces) = run(&*machine, given, Keeping::Tapes, threads);
    (results, Kept { machine, extent: (given.steps, given.rows), pieces })
}

/// What is kept of a run.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Keeping {
    Nothing,
    Tapes,
}

/// Pieces with their tapes.
type Pieces<M> = Vec<(Piece, <M as Machine>::Tape)>;

/// A piece that has run.
struct Ran<M: Machine> {
    piece: Piece,
    /// If it is kept.
    tape: Option<M::Tape>,
    /// If it is the last of its row.
    states: Option<Vec<Vec<M::Number>>>,
    penalty: f64,
}

fn run<M: Machine>(
    machine: &M,
    given: &Given<'_, M::Number>,
    keeping: Keeping,
    threads: usize,
) -> (Results<M::Number>, Pieces<M>) {
    let (model, sizes, extent) = (machine.model(), machine.sizes(), (given.steps, given.rows));
    let mut outputs = zeros(sizes, given.steps * given.rows, model.outputs.iter().map(|o| o.shape));
    let mut states: Vec<Vec<M::Number>> = zeros(sizes, given.rows, model.states.iter().map(|s| s.shape));
    let pieces = cut(given);
    let longest = pieces.iter().map(Piece::len).max().unwrap_or(0);
    let cells = deal(&mut outputs, &pieces, extent);
    let threads = useful_threads(model, sizes, given.steps * given.rows, threads);
    let mut workers: Vec<Option<M::Tape>> = (0..threads).map(|_| None).collect();
    let jobs = pieces.into_iter().zip(cells).collect();
    let ran = parallel::run(&mut workers, jobs, |worker, (piece, mut cells)| {
        if keeping == Keeping::Tapes {
            *worker = Some(machine.tape(piece.len(), true));
        }
        let tape = worker.get_or_insert_with(|| machine.tape(longest, false));
        run_piece(machine, given, &piece, tape);
        for (k, cells) in cells.iter_mut().enumerate() {
            cells.iter_mut().enumerate().for_each(|(t, to)| machine.output(tape, t, k, to));
        }
        let penalty = machine.penalty(tape, piece.len());
        let states = (piece.end == given.steps).then(|| machine.states(tape));
        Ran { tape: if keeping == Keeping::Tapes { worker.take() } else { None }, piece, states, penalty }
    });
    let penalty = ran.iter().map(|r| r.penalty).sum::<f64>() / (given.steps * given.rows) as f64;
    let mut kept = vec![];
    for Ran::<M> { piece, tape, states: last, .. } in ran {
        for (all, own) in states.iter_mut().zip(last.into_iter().flatten()) {
            all[piece.row * own.len()..][..own.len()].copy_from_slice(&own);
        }
        kept.extend(tape.map(|tape| (piece, tape)));
    }
    (Results { outputs, states, penalty }, kept)
}

fn run_piece<M: Machine>(machine: &M, given: &Given<'_, M::Number>, piece: &Piece, tape: &mut M::Tape) {
    let extent = (given.steps, given.rows);
    let states = given.states.iter().map(|array| array.filter(|_| piece.continues));
    let start = states.map(|array| array.map(|x| row(x, given.rows, piece.row))).collect();
    machine.forward(tape, &start, piece.len(), &mut |t, input, x| {
        if let Some(array) = given.inputs[input] {
            x.copy_from_slice(cell(array, extent, piece.first + t, piece.row));
        }
    });
}

/// A batch that has run forward and can run backward, any number of times.
pub struct Kept<M: Machine> {
    machine: Arc<M>,
    extent: (usize, usize),
    pieces: Pieces<M>,
}

/// A chunk of pieces with the cells of their cotangents of inputs.
type Chunk<'a, M> = Vec<(&'a mut (Piece, <M as Machine>::Tape), Cells<'a, <M as Machine>::Number>)>;

impl<M: Machine> Kept<M> {
    /// The machine that it ran on.
    pub fn machine(&self) -> &M {
        &self.machine
    }

    /// Steps and rows.
    pub fn extent(&self) -> (usize, usize) {
        self.extent
    }

    /// Runs backward. What comes out is of these cotangents alone.
    pub fn backward(&mut self, bars: &Cotangents<'_, M::Number>, threads: usize) -> Gradients<M::Number> {
        let Kept { machine, extent, pieces } = self;
        let (machine, extent) = (&**machine, *extent);
        let (model, sizes, (steps, rows)) = (machine.model(), machine.sizes(), extent);
        let mut inputs = zeros(sizes, steps * rows, model.inputs.iter().map(|i| i.shape));
        let mut states: Vec<Vec<M::Number>> = zeros(sizes, rows, model.states.iter().map(|s| s.shape));
        let places: Vec<Piece> = pieces.iter().map(|(piece, _)| *piece).collect();
        let mut all = pieces.iter_mut().zip(deal(&mut inputs, &places, extent));
        let lengths = parallel::chunks(places.len()).into_iter().map(|c| c.len());
        let jobs: Vec<Chunk<'_, M>> = lengths.map(|n| all.by_ref().take(n).collect()).collect();
        let threads = useful_threads(model, sizes, 2 * steps * rows, threads);
        let mut rooms: Vec<M::Room> = (0..threads).map(|_| M::Room::default()).collect();
        let done = parallel::run(&mut rooms, jobs, |room, job| {
            let mut chunk = machine.chunk();
            let one = |(kept, cells)| back_piece(machine, bars, extent, (kept, cells), (room, &mut chunk));
            let starts: Vec<_> = job.into_iter().map(one).collect();
            (chunk, starts)
        });
        let mut chunks = vec![];
        for (chunk, starts) in done {
            chunks.push(chunk);
            for (row, bars) in starts.into_iter().flatten() {
                for (all, own) in states.iter_mut().zip(bars) {
                    all[row * own.len()..][..own.len()].copy_from_slice(&own);
                }
            }
        }
        Gradients { params: machine.finish(chunks), inputs, states }
    }
}

/// A row, and the cotangents of the states at its start.
type StartBars<N> = (usize, Vec<Vec<N>>);

/// Runs a piece backward; gives the cotangents of the states at its start, if they are those of the row.
fn back_piece<M: Machine>(
    machine: &M,
    bars: &Cotangents<'_, M::Number>,
    extent: (usize, usize),
    ((piece, tape), mut cells): (&mut (Piece, M::Tape), Cells<'_, M::Number>),
    (room, chunk): (&mut M::Room, &mut M::Chunk),
) -> Option<StartBars<M::Number>> {
    let (steps, rows) = extent;
    let output = |t: usize, k: usize| bars.outputs[k].map(|x| cell(x, extent, piece.first + t, piece.row));
    let is_last = piece.end == steps && bars.states.iter().any(Option::is_some);
    let last = is_last.then(|| {
        let zero = zeros(machine.sizes(), 1, machine.model().states.iter().map(|s| s.shape));
        let given =
            |(zero, bar): (Vec<_>, &Option<&[_]>)| bar.map_or(zero, |x| row(x, rows, piece.row).to_vec());
        zero.into_iter().zip(&bars.states).map(given).collect()
    });
    let penalty = bars.penalty / (steps * rows) as f64;
    machine.backward(tape, room, Asked { steps: piece.len(), outputs: &output, penalty, last }, chunk);
    for (k, cells) in cells.iter_mut().enumerate() {
        cells.iter_mut().enumerate().for_each(|(t, to)| machine.input_bar(tape, t, k, to));
    }
    piece.continues.then(|| (piece.row, machine.start_bars(tape)))
}

#[cfg(test)]
mod tests;
