//! The meaning of the loop IR: an interpreter in single precision, slow and obvious.
//!
//! It walks a nest in the documented order, tile by tile, row by row, register by register, and rounds
//! after every operation, so that a back end must give the same bits.

use super::body::{Body, BodyOp};
use super::{Access, Base, Cut, Effect, Extent, LANES, LIVE, Nest, PARTIALS, Place, Routine, Tiles, padded};

/// Neighbouring numbers.
type Register = [f32; LANES];

/// Memory and where the regions begin in it, in the order of [`Base::ALL`].
pub struct Memory<'m> {
    /// All regions.
    pub cells: &'m mut [f32],
    /// The first cell of every region.
    pub starts: [usize; Base::ALL.len()],
    /// The most registers in a tile of a packed matrix.
    pub widest: usize,
}

impl Memory<'_> {
    fn at(&self, place: Place, offset: usize) -> usize {
        self.starts[place.base.slot()] + place.offset + offset
    }

    fn one(&self, place: Place, offset: usize) -> f32 {
        self.cells[self.at(place, offset)]
    }

    fn register(&self, place: Place, offset: usize) -> Register {
        let at = self.at(place, offset);
        std::array::from_fn(|lane| self.cells[at + lane])
    }

    fn put(&mut self, place: Place, offset: usize, x: Register) {
        let at = self.at(place, offset);
        self.cells[at..at + LANES].copy_from_slice(&x);
    }

    fn put_one(&mut self, place: Place, offset: usize, x: f32) {
        let at = self.at(place, offset);
        self.cells[at] = x;
    }
}

/// Runs a routine.
///
/// # Panics
/// If the memory is smaller than what a verified program needs.
pub fn run(routine: &Routine, memory: &mut Memory<'_>) {
    for nest in &routine.nests {
        match (nest.extent, routine.cut) {
            (Extent::Matrix { post, pre } | Extent::Log { post, pre }, Some(cut)) => {
                cut_matrix(nest, post, pre, cut, memory);
                continue;
            }
            (Extent::Scalar | Extent::Vector(_), _) | (_, None) => {}
        }
        match nest.extent {
            Extent::Scalar => scalar(nest, memory),
            Extent::Vector(n) => vector(nest, n, memory),
            Extent::Matrix { post, pre } => matrix(nest, post, pre, post, memory),
            Extent::Log { post, pre } => {
                let live = memory.one(Place { base: Base::Scratch, offset: LIVE }, 0).to_bits() as usize;
                matrix(nest, post, pre, live, memory);
            }
        }
    }
}

/// Elements from the starts of a packed matrix, a post vector and a pre vector.
#[derive(Clone, Copy, Default)]
struct Position {
    matrix: usize,
    post: usize,
    pre: usize,
}

fn load(access: Access, at: Position, memory: &Memory<'_>) -> Register {
    match access {
        Access::Matrix(p) => memory.register(p, at.matrix),
        Access::Post(p) => memory.register(p, at.post),
        Access::Pre(p) => [memory.one(p, at.pre); LANES],
        Access::Scalar(p) => [memory.one(p, 0); LANES],
    }
}

/// All values of a body at a point. A mask has all bits set or none.
fn values(body: &Body, at: Position, memory: &Memory<'_>) -> Vec<Register> {
    let mut found: Vec<Register> = vec![];
    for op in &body.ops {
        let value = match op {
            BodyOp::Load(access) => load(*access, at, memory),
            op => {
                let operands = op.operands();
                std::array::from_fn(|lane| {
                    let x = |k: usize| operands.get(k).map_or(0.0, |o| found[o.index()][lane]);
                    apply(op, x(0), x(1), x(2))
                })
            }
        };
        found.push(value);
    }
    found
}

fn apply(op: &BodyOp, x: f32, y: f32, z: f32) -> f32 {
    let mask = |holds: bool| f32::from_bits(if holds { u32::MAX } else { 0 });
    let both = |a: f32, b: f32| f32::from_bits(a.to_bits() & b.to_bits());
    match *op {
        BodyOp::Const(c) => c,
        BodyOp::Load(_) => unreachable!("loads are handled by the caller"),
        BodyOp::Neg(_) => -x,
        BodyOp::Abs(_) => x.abs(),
        BodyOp::Sqrt(_) => x.sqrt(),
        BodyOp::Round(_) => x.round_ties_even(),
        BodyOp::PowerOfTwo(_) => f32::from_bits((x as i32).wrapping_add(127).wrapping_shl(23) as u32),
        BodyOp::Exponent(_) => ((x.to_bits() >> 23) as i32 - 127) as f32,
        BodyOp::Mantissa(_) => f32::from_bits(x.to_bits() & 0x007f_ffff | 0x3f80_0000),
        BodyOp::Add(..) => x + y,
        BodyOp::Sub(..) => x - y,
        BodyOp::Mul(..) => x * y,
        BodyOp::Div(..) => x / y,
        BodyOp::Min(..) => {
            if x < y {
                x
            } else {
                y
            }
        }
        BodyOp::Max(..) => {
            if x > y {
                x
            } else {
                y
            }
        }
        BodyOp::Fma(..) => x.mul_add(y, z),
        BodyOp::FmaNeg(..) => (-x).mul_add(y, z),
        BodyOp::Less(..) => mask(x < y),
        BodyOp::LessEqual(..) => mask(x <= y),
        BodyOp::Equal(..) => mask(x == y),
        BodyOp::And(..) | BodyOp::Keep(..) => both(x, y),
        BodyOp::Not(_) => f32::from_bits(!x.to_bits()),
        BodyOp::Select(..) => {
            if x.to_bits() != 0 {
                y
            } else {
                z
            }
        }
        BodyOp::Number(_) => both(x, 1.0),
    }
}

/// `sum + v·w` in the lanes below `lanes`; a lane that does not count adds zero.
fn accumulate(sum: Register, v: Register, w: Option<Register>, lanes: usize) -> Register {
    let kept = |x: Register, lane: usize| if lane < lanes { x[lane] } else { 0.0 };
    std::array::from_fn(|lane| match w {
        Some(w) => kept(v, lane).mul_add(kept(w, lane), sum[lane]),
        None => sum[lane] + kept(v, lane),
    })
}

fn maximum(best: Register, v: Register, lanes: usize) -> Register {
    std::array::from_fn(|lane| if lane < lanes && best[lane] < v[lane] { v[lane] } else { best[lane] })
}

/// Neighbouring lanes, then neighbouring pairs, then the halves.
fn sum_lanes(x: Register) -> f32 {
    let half = |x: &[f32]| (x[0] + x[1]) + (x[2] + x[3]);
    half(&x[..4]) + half(&x[4..])
}

fn max_lanes(x: Register) -> f32 {
    x[1..].iter().fold(x[0], |best, x| if best < *x { *x } else { best })
}

fn scalar(nest: &Nest, memory: &mut Memory<'_>) {
    let found = values(&nest.body, Position::default(), memory);
    for effect in &nest.effects {
        match effect {
            Effect::Store(access, v) => memory.put_one(access.place(), 0, found[v.index()][0]),
            Effect::Add(access, v, w) => {
                let old = [memory.one(access.place(), 0); LANES];
                let new = accumulate(old, found[v.index()], w.map(|w| found[w.index()]), LANES);
                memory.put_one(access.place(), 0, new[0]);
            }
            other => unreachable!("{other:?} in a scalar nest"),
        }
    }
}

/// The sums of a nest over its whole extent: one register for each effect.
fn initial_sums(nest: &Nest) -> Vec<Register> {
    let start = |e: &Effect| if matches!(e, Effect::MaxAll(..)) { f32::NEG_INFINITY } else { 0.0 };
    nest.effects.iter().map(|e| [start(e); LANES]).collect()
}

fn finish_sums(nest: &Nest, sums: &[Register], memory: &mut Memory<'_>) {
    for (effect, sum) in nest.effects.iter().zip(sums) {
        match effect {
            Effect::SumAll(place, ..) => memory.put_one(*place, 0, sum_lanes(*sum)),
            Effect::MaxAll(place, _) => memory.put_one(*place, 0, max_lanes(*sum)),
            Effect::Store(..) | Effect::Add(..) | Effect::SumPre(..) | Effect::SumPost(..) => {}
        }
    }
}

fn vector(nest: &Nest, n: usize, memory: &mut Memory<'_>) {
    let mut sums = initial_sums(nest);
    for first in (0..n).step_by(LANES) {
        let at = Position { matrix: first, post: first, pre: first };
        let found = values(&nest.body, at, memory);
        let lanes = (n - first).min(LANES);
        for (k, effect) in nest.effects.iter().enumerate() {
            point(effect, &found, at, lanes, &mut sums[k], memory);
        }
    }
    finish_sums(nest, &sums, memory);
}

/// One effect at one point; `sum` is what the effect adds up.
fn point(
    effect: &Effect,
    found: &[Register],
    at: Position,
    lanes: usize,
    sum: &mut Register,
    memory: &mut Memory<'_>,
) {
    let offset = |a: &Access| if matches!(a, Access::Matrix(_)) { at.matrix } else { at.post };
    match effect {
        Effect::Store(a, v) => memory.put(a.place(), offset(a), found[v.index()]),
        Effect::Add(a, v, w) => {
            let old = load(*a, at, memory);
            let new = accumulate(old, found[v.index()], w.map(|w| found[w.index()]), LANES);
            memory.put(a.place(), offset(a), new);
        }
        // A column is as wide as the register: the lanes of the padding are summed too.
        Effect::SumPre(_, v, w) => {
            *sum = accumulate(*sum, found[v.index()], w.map(|w| found[w.index()]), LANES)
        }
        Effect::SumPost(_, v, w) | Effect::SumAll(_, v, w) => {
            *sum = accumulate(*sum, found[v.index()], w.map(|w| found[w.index()]), lanes);
        }
        Effect::MaxAll(_, v) => *sum = maximum(*sum, found[v.index()], lanes),
    }
}

/// The sums of a matrix nest under way, one of each for each effect.
struct Sums {
    /// Over the whole extent.
    all: Vec<Register>,
    /// Over post: a register for each row.
    rows: Vec<Vec<Register>>,
    /// Over pre: the registers of the tile.
    columns: Vec<Vec<Register>>,
}

/// The first `live` elements of the post axis, in whole tiles; the sums over pre of the others are zero.
fn matrix(nest: &Nest, post: usize, pre: usize, live: usize, memory: &mut Memory<'_>) {
    let count = nest.effects.len();
    let rows = vec![vec![[0.0; LANES]; pre]; count];
    let mut sums = Sums { all: initial_sums(nest), rows, columns: vec![] };
    for (first, width) in Tiles::of(post, memory.widest).iter() {
        sums.columns = vec![vec![[0.0; LANES]; width]; count];
        if live <= first * LANES {
            finish_columns(nest, first, &sums.columns, memory);
            continue;
        }
        let points = (0..pre).flat_map(|i| (0..width).map(move |register| (i, register)));
        for (i, register) in points {
            let j = (first + register) * LANES;
            let start = first * LANES * pre + (i * width + register) * LANES;
            let at = Position { matrix: start, post: j, pre: i };
            let found = values(&nest.body, at, memory);
            let lanes = post.saturating_sub(j).min(LANES);
            for (k, effect) in nest.effects.iter().enumerate() {
                let sum = match effect {
                    Effect::SumPre(..) => &mut sums.columns[k][register],
                    Effect::SumPost(..) => &mut sums.rows[k][i],
                    Effect::Store(..) | Effect::Add(..) | Effect::SumAll(..) | Effect::MaxAll(..) => {
                        &mut sums.all[k]
                    }
                };
                point(effect, &found, at, lanes, sum, memory);
            }
        }
        finish_columns(nest, first, &sums.columns, memory);
    }
    finish_sums(nest, &sums.all, memory);
    finish_rows(nest, &sums.rows, memory);
}

fn finish_columns(nest: &Nest, first: usize, columns: &[Vec<Register>], memory: &mut Memory<'_>) {
    for (effect, column) in nest.effects.iter().zip(columns) {
        if let Effect::SumPre(place, ..) = effect {
            let put = |(r, x): (usize, &Register)| memory.put(*place, (first + r) * LANES, *x);
            column.iter().enumerate().for_each(put);
        }
    }
}

/// The row sums lie in scratch until they are added up.
fn finish_rows(nest: &Nest, rows: &[Vec<Register>], memory: &mut Memory<'_>) {
    let sums = nest.effects.iter().zip(rows).filter_map(|(e, r)| match e {
        Effect::SumPost(place, ..) => Some((*place, r)),
        _ => None,
    });
    for (k, (place, row)) in sums.enumerate() {
        for (i, x) in row.iter().enumerate() {
            let partial = Place { base: Base::Scratch, offset: PARTIALS + (k * row.len() + i) * LANES };
            memory.put(partial, 0, *x);
            memory.put_one(place, i, sum_lanes(*x));
        }
    }
}

/// A matrix nest of a routine that is cut: every stretch of a column and every slab of a row for itself. Matrices
/// lie in one tile each, and nests over logs run over all events that there can be.
fn cut_matrix(nest: &Nest, post: usize, pre: usize, cut: Cut, memory: &mut Memory<'_>) {
    let count = nest.effects.len();
    // By stretch, register and effect.
    let mut columns = vec![vec![vec![[0.0; LANES]; count]; post.div_ceil(LANES)]; cut.used(pre)];
    for i in 0..pre {
        let mut terms = vec![vec![0.0; cut.slabs(post) * cut.columns]; count];
        for (register, sums) in columns[i / cut.rows(pre)].iter_mut().enumerate() {
            let j = register * LANES;
            let at = Position { matrix: i * padded(post) + j, post: j, pre: i };
            let found = values(&nest.body, at, memory);
            for ((effect, terms), sum) in nest.effects.iter().zip(&mut terms).zip(sums) {
                if let Effect::SumPost(_, v, w) = effect {
                    let factor = |lane: usize| w.map_or(1.0, |w| found[w.index()][lane]);
                    let lanes = (post - j).min(LANES);
                    (0..lanes).for_each(|lane| terms[j + lane] = found[v.index()][lane] * factor(lane));
                } else {
                    point(effect, &found, at, LANES, sum, memory);
                }
            }
        }
        for (effect, terms) in nest.effects.iter().zip(&mut terms) {
            if let Effect::SumPost(place, ..) = effect {
                for (slab, terms) in terms.chunks_mut(cut.columns).enumerate() {
                    memory.put_one(*place, slab * padded(pre) + i, sum_halves(terms));
                }
            }
        }
    }
    finish_stretches(nest, &columns, memory);
}

/// The stretches of every column, in ascending order.
fn finish_stretches(nest: &Nest, columns: &[Vec<Vec<Register>>], memory: &mut Memory<'_>) {
    let Some((first, others)) = columns.split_first() else { return };
    for (k, effect) in nest.effects.iter().enumerate() {
        let Effect::SumPre(place, ..) = effect else { continue };
        for (register, sums) in first.iter().enumerate() {
            let add = |sum: Register, x: Register| std::array::from_fn(|lane| sum[lane] + x[lane]);
            let sum = others.iter().map(|stretch| stretch[register][k]).fold(sums[k], add);
            memory.put(*place, register * LANES, sum);
        }
    }
}

/// The first half and the second, element by element, until there is one.
fn sum_halves(x: &mut [f32]) -> f32 {
    let mut half = x.len() / 2;
    while half > 0 {
        (0..half).for_each(|k| x[k] += x[k + half]);
        half /= 2;
    }
    x[0]
}
