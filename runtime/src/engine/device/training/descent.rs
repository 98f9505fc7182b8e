//! Parameters that live on the device: their raw numbers, what the optimiser remembers of them, and how they move.

use super::super::code::{Buffer, Code, Params, Plain};
use super::super::{Address, Call, Fault, Kernel, Module};
use super::starts::{self, Starts};
use super::unbatched::{Instruction, Places, Read, Unbatched};
use super::{SHARED, THREADS, VERDICT, load};
use crate::engine::{Engine, device};
use compiler::loops::padded;
use compiler::model::Range;
use std::ffi::c_int;
use std::sync::Arc;

/// Parameters.
pub(super) const SOURCE: &str = include_str!("descent.cu");

/// What is known of a parameter.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Parameter {
    /// Whether it is learned.
    pub learned: bool,
    /// The range of its values.
    pub range: Range,
    /// Factor of its gradient.
    pub gradscale: f32,
}

/// How parameters move, and where from.
#[derive(Clone, Copy, Debug)]
pub struct Motion<'a> {
    /// What is known of them.
    pub parameters: &'a [Parameter],
    /// Their raw numbers.
    pub raw: &'a [Vec<f32>],
    /// What the equations see of them.
    pub values: &'a [Vec<f32>],
    /// Means and mean squares, or velocities; empty where the rule keeps none.
    pub memory: [&'a [Vec<f32>]; 2],
    /// Whether it is Adam; else gradient descent.
    pub adam: bool,
    /// The numbers of the rule that do not change.
    pub numbers: crate::optim::Numbers,
    /// Bound of the gradient's norm; 0 for none.
    pub clip: f64,
}

/// `Tensor` in the source.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Tensor {
    pub(super) bar: Address,
    pub(super) low: f64,
    pub(super) high: f64,
    pub(super) first: i64,
    pub(super) count: i64,
    pub(super) learned: c_int,
    pub(super) range: c_int,
    pub(super) gradscale: f32,
    pub(super) unused: c_int,
}

/// `Packed` in the source.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Packed {
    pub(super) to: Address,
    pub(super) wide: Address,
    pub(super) narrow: Address,
    pub(super) count: i64,
    pub(super) pre: c_int,
    pub(super) stride: c_int,
}

/// `Piece` in the source.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq)]
struct Piece {
    first: i64,
    count: i64,
}

/// `Descent` in the source.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Told {
    pub(super) update: Address,
    pub(super) results: Address,
    pub(super) code: Address,
    pub(super) tensors: Address,
    pub(super) packed: Address,
    pub(super) pieces: Address,
    pub(super) sums: Address,
    pub(super) verdict: Address,
    pub(super) raw: Address,
    pub(super) values: Address,
    pub(super) gradients: Address,
    pub(super) mean: Address,
    pub(super) square: Address,
    pub(super) clip: f64,
    pub(super) pieces_count: i64,
    pub(super) rows: c_int,
    pub(super) adam: c_int,
    pub(super) decay: f32,
    pub(super) epsilon: f32,
    pub(super) momentum: f32,
    pub(super) keep: f32,
    pub(super) add_mean: f32,
    pub(super) add_square: f32,
}

impl Plain for Instruction {}
impl Plain for Tensor {}
impl Plain for Packed {}
impl Plain for Piece {}
impl Plain for Told {}

/// The kernels of `descent.cu`.
struct Kernels {
    evaluate: Kernel,
    acquit: Kernel,
    chain: Kernel,
    squares: Kernel,
    judge: Kernel,
    advance: Kernel,
    images: Kernel,
    pack: Kernel,
}

/// How many threads the kernels need.
struct Counts {
    backward: Vec<usize>,
    forward: Vec<usize>,
    /// Parameters, and elements of the largest.
    tensors: [usize; 2],
    pieces: usize,
    /// Values that the network's kernels read, and elements of the largest.
    packed: [usize; 2],
}

/// Parameters on a device, and what moves them.
pub(super) struct Descent {
    kernels: Kernels,
    told: Buffer,
    counts: Counts,
    lengths: Vec<usize>,
    raw: Buffer,
    memory: [Buffer; 2],
    gradients: Buffer,
    starts: Starts,
    params: Arc<Params>,
    grads: device::Grads,
    initial: Vec<Vec<f32>>,
    _kept: Vec<Buffer>,
}

/// The first number of every tensor among all of them, and how many there are.
pub(super) fn firsts(lengths: &[usize]) -> (Vec<usize>, usize) {
    let mut total = 0;
    let first = |n: &usize| {
        total += n;
        total - n
    };
    (lengths.iter().map(first).collect(), total)
}

/// The squares that are summed apart, as the processor does.
fn pieces(firsts: &[usize], lengths: &[usize]) -> Vec<Piece> {
    let of = |(first, count): (&usize, &usize)| {
        let first = *first;
        crate::optim::pieces(*count)
            .map(move |(start, n)| Piece { first: (first + start) as i64, count: n as i64 })
    };
    firsts.iter().zip(lengths).flat_map(of).collect()
}

/// Bytes of all memory.
pub(super) fn bytes(engine: &Engine, motion: &Motion<'_>) -> Vec<usize> {
    let lengths: Vec<usize> = motion.raw.iter().map(Vec::len).collect();
    let (firsts, total) = firsts(&lengths);
    let code = match &engine.kind {
        crate::engine::Kind::Device(code) => code,
        _ => return vec![],
    };
    let learned = starts::find(engine, code);
    let places = Places { starts: starts::sums(&learned, 0), ..Places::default() };
    let unbatched = Unbatched::new(engine, &places, &firsts);
    let [starts, sums] = starts::bytes(&learned);
    let pieces = pieces(&firsts, &lengths).len();
    let memory = motion.memory.map(|m| 4 * m.iter().map(Vec::len).sum::<usize>());
    vec![
        4 * total,
        4 * total,
        4 * total,
        memory[0],
        memory[1],
        unbatched.bytes,
        starts,
        sums,
        size_of::<Instruction>() * (unbatched.backward.len() + unbatched.forward.len()),
        size_of::<Tensor>() * lengths.len(),
        size_of::<Packed>() * unbatched.reads.len(),
        size_of::<Piece>() * pieces,
        8 * pieces,
        size_of::<Told>(),
    ]
}

/// A range as the source numbers it.
fn range(range: Range) -> (c_int, f64, f64) {
    match range {
        Range::Free => (0, 0.0, 0.0),
        Range::Interval(a, b) => (1, a, b),
        Range::Above(a) => (2, a, 0.0),
        Range::Below(b) => (3, 0.0, b),
    }
}

impl Descent {
    /// Compiles the kernels and brings the parameters to the device. `update` and `results`, which begin with
    /// the verdict, lie there already.
    pub(super) fn new(
        engine: &Engine,
        code: &Arc<Code>,
        rows: usize,
        motion: Motion<'_>,
        (update, results): (Address, Address),
        modules: &mut Vec<Module>,
    ) -> Result<Descent, Fault> {
        let device = &code.device;
        let module = load(code, "descent", &[SHARED, SOURCE], modules)?;
        let kernel = |name| device.kernel(module, name);
        let kernels = Kernels {
            evaluate: kernel("evaluate")?,
            acquit: kernel("acquit")?,
            chain: kernel("chain")?,
            squares: kernel("squares")?,
            judge: kernel("judge")?,
            advance: kernel("move")?,
            images: kernel("images")?,
            pack: kernel("pack")?,
        };
        let lengths: Vec<usize> = motion.raw.iter().map(Vec::len).collect();
        let (firsts, total) = firsts(&lengths);
        let raw = Buffer::of(device, &motion.raw.concat())?;
        let memory = [
            Buffer::of(device, &motion.memory[0].concat())?,
            Buffer::of(device, &motion.memory[1].concat())?,
        ];
        let (values, gradients) =
            (Buffer::of(device, &motion.values.concat())?, Buffer::new(device, 4 * total)?);
        let narrow: Vec<&[f32]> = motion.values.iter().map(Vec::as_slice).collect();
        let widen = |x: &Vec<f32>| Arc::new(x.iter().map(|x| f64::from(*x)).collect());
        let wide: Vec<compiler::interp::Tensor> = motion.values.iter().map(widen).collect();
        // What lies beside the parameters, constants and padding, stays.
        let params = Params::new(code, crate::engine::jit::pack_params(engine, &narrow, &wide).as_slice())?;
        let initial = engine.interpreter.initial(&wide);
        let initial = initial.into_iter().map(|t| t.iter().map(|x| *x as f32).collect()).collect();
        let grads = device::Grads::new(engine, code)?;
        let [place, add] = ["place_starts", "add_starts"].map(kernel);
        let learned = starts::find(engine, code);
        let starts = Starts::new(code, learned, [place?, add?], (values.at(), &firsts), rows)?;
        let mut places = Places {
            memory: 0,
            values: values.at(),
            sums: grads.sums.at(),
            products: grads.hoisted.iter().map(Buffer::at).collect(),
            starts: starts.sums(),
        };
        let first = Unbatched::new(engine, &places, &firsts);
        let results_of_values = Buffer::new(device, first.bytes)?;
        places.memory = results_of_values.at();
        let unbatched = Unbatched::new(engine, &places, &firsts);
        let instructions = Buffer::of(device, &[unbatched.backward.as_slice(), &unbatched.forward].concat())?;
        let tensors: Vec<Tensor> = (0..lengths.len())
            .map(|k| motion.parameters[k].tensor(unbatched.bars[k], firsts[k], lengths[k]))
            .collect();
        let packed = packed(engine, &unbatched, (params.at(), values.at()), &firsts);
        let pieces = pieces(&firsts, &lengths);
        let kept = [
            Buffer::of(device, &tensors)?,
            Buffer::of(device, &packed)?,
            Buffer::of(device, &pieces)?,
            Buffer::new(device, 8 * pieces.len())?,
        ];
        let numbers = motion.numbers;
        let told = Told {
            update,
            results: results + 8 * VERDICT,
            code: instructions.at(),
            tensors: kept[0].at(),
            packed: kept[1].at(),
            pieces: kept[2].at(),
            sums: kept[3].at(),
            verdict: results,
            raw: raw.at(),
            values: values.at(),
            gradients: gradients.at(),
            mean: memory[0].at(),
            square: memory[1].at(),
            clip: motion.clip,
            pieces_count: pieces.len() as i64,
            rows: rows as c_int,
            adam: c_int::from(motion.adam),
            decay: numbers.decay,
            epsilon: numbers.epsilon,
            momentum: numbers.momentum,
            keep: numbers.keep,
            add_mean: numbers.add_mean,
            add_square: numbers.add_square,
        };
        let most = |counts: &mut dyn Iterator<Item = usize>| counts.max().unwrap_or(0);
        let counts = Counts {
            backward: unbatched.backward.iter().map(Instruction::count).collect(),
            forward: unbatched.forward.iter().map(Instruction::count).collect(),
            tensors: [lengths.len(), most(&mut lengths.iter().copied())],
            pieces: pieces.len(),
            packed: [packed.len(), most(&mut packed.iter().map(|p| p.count as usize))],
        };
        Ok(Descent {
            kernels,
            told: Buffer::of(device, &[told])?,
            counts,
            lengths,
            raw,
            memory,
            gradients,
            starts,
            params: Arc::new(params),
            grads,
            initial,
            _kept: kept.into_iter().chain([values, results_of_values, instructions]).collect(),
        })
    }

    pub(super) fn params(&self) -> &Arc<Params> {
        &self.params
    }

    pub(super) fn initial(&self) -> Vec<Vec<f32>> {
        self.initial.clone()
    }

    /// Learned initial states.
    pub(super) fn starts(&self) -> &Starts {
        &self.starts
    }

    pub(super) fn starts_mut(&mut self) -> &mut Starts {
        &mut self.starts
    }

    /// From the sums of gradients to the parameters of the next episode.
    pub(super) fn run(&self, code: &Code) -> Result<(), Fault> {
        let (k, c) = (&self.kernels, &self.counts);
        let launch = |kernel, [x, y]: [usize; 2], number: usize| {
            if x * y == 0 {
                return Ok(());
            }
            let grid = [x.div_ceil(THREADS) as u32, y as u32];
            let call = Call::Kept(self.told.at(), number as c_int);
            // SAFETY: what the kernels are told of has the sizes that it says.
            unsafe { code.device.launch(kernel, grid, THREADS as u32, &call) }
        };
        let [tensors, widest] = c.tensors;
        let [packed, longest] = c.packed;
        self.starts.add(code)?;
        launch(k.acquit, [1, 1], 0)?;
        for (number, count) in c.backward.iter().enumerate() {
            launch(k.evaluate, [*count, 1], number)?;
        }
        launch(k.chain, [widest, tensors], 0)?;
        launch(k.squares, [THREADS * c.pieces, 1], 0)?;
        launch(k.judge, [1, 1], 0)?;
        launch(k.advance, [widest, tensors], 0)?;
        launch(k.images, [widest, tensors], 0)?;
        for (number, count) in c.forward.iter().enumerate() {
            launch(k.evaluate, [*count, 1], c.backward.len() + number)?;
        }
        launch(k.pack, [longest, packed], 0)
    }

    /// The sums of gradients.
    pub(super) fn grads(&self) -> &device::Grads {
        &self.grads
    }

    /// Raw numbers and what is remembered of them, by tensor.
    pub(super) fn fetch(&self) -> Result<[Vec<Vec<f32>>; 3], Fault> {
        Ok([self.read(&self.raw)?, self.read(&self.memory[0])?, self.read(&self.memory[1])?])
    }

    /// The last gradients by raw numbers, by tensor.
    pub(super) fn gradients(&self) -> Result<Vec<Vec<f32>>, Fault> {
        self.read(&self.gradients)
    }

    /// Numbers of all tensors; none where nothing is kept.
    fn read(&self, from: &Buffer) -> Result<Vec<Vec<f32>>, Fault> {
        let mut all = vec![0.0; from.bytes() / 4];
        from.get(0, &mut all)?;
        let mut rest = all.as_slice();
        let cut = |n: &usize| {
            let (head, tail) = rest.split_at(if rest.is_empty() { 0 } else { *n });
            rest = tail;
            head.to_vec()
        };
        Ok(self.lengths.iter().map(cut).collect())
    }
}

impl Parameter {
    fn tensor(&self, bar: Address, first: usize, count: usize) -> Tensor {
        let (range, low, high) = range(self.range);
        let learned = c_int::from(self.learned);
        let (first, count) = (first as i64, count as i64);
        Tensor { bar, low, high, first, count, learned, range, gradscale: self.gradscale, unused: 0 }
    }
}

/// Where what the network's kernels read comes from.
pub(super) fn packed(
    engine: &Engine,
    unbatched: &Unbatched,
    (to, values): (Address, Address),
    firsts: &[usize],
) -> Vec<Packed> {
    let one = |(bound, read): (&compiler::loops::Bound, &Read)| {
        let (wide, narrow) = match read {
            Read::Param(k) => (0, values + 4 * firsts[*k]),
            Read::Computed(at) => (*at, 0),
        };
        let (count, pre, stride) = match bound.matrix {
            Some((post, pre)) => (post * pre, pre as c_int, padded(post) as c_int),
            None => (bound.len, 0, 0),
        };
        Packed { to: to + 4 * bound.offset, wide, narrow, count: count as i64, pre, stride }
    };
    engine.program.params.iter().zip(&unbatched.reads).map(one).collect()
}
