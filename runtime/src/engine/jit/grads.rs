//! Sums of gradients over rows and steps: in the form that sweeps leave them in, and hoisted out of the loop over time.

use super::code::Entered;
use super::{Buffer, Tape};
use crate::engine::product::accumulate;
use crate::engine::{Bound, Engine};
use compiler::ir::Value;
use compiler::loops::{Base, Place, Rank1, Tiles};
use compiler::model::Init;
use std::collections::BTreeMap;
use std::ops::Range;

/// Gradient sums of a chunk of rows.
pub(in crate::engine) struct Grads {
    pub(super) packed: Buffer,
    /// Hoisted gradients, row-major; none if they are summed apart.
    pub(super) plain: BTreeMap<Value, Vec<f32>>,
    pub(super) apart: bool,
    pub(super) initial: Vec<Vec<f32>>,
}

impl Grads {
    /// `apart`: without hoisted gradients, which [`products`] sums.
    pub(in crate::engine) fn new(engine: &Engine, apart: bool) -> Self {
        let program = &engine.program;
        let hoisted = program.rank1.iter().filter(|_| !apart);
        let plain = hoisted.map(|r| (r.value, vec![0.0; r.post * r.pre])).collect();
        let learned = |s: &compiler::model::State| match s.init {
            Init::Param(_) => vec![0.0; engine.sizes().count(s.shape)],
            _ => vec![],
        };
        let initial = engine.model().states.iter().map(learned).collect();
        Grads { packed: Buffer::new(program.grads_len), plain, apart, initial }
    }

    pub(in crate::engine) fn is_apart(&self) -> bool {
        self.apart
    }

    pub(in crate::engine) fn clear(&mut self) {
        self.packed.as_mut_slice().fill(0.0);
        self.plain.values_mut().chain(&mut self.initial).for_each(|x| x.fill(0.0));
    }

    /// Adds to sums in double precision: those of sweeps in their packed form, then [`unpack`] has them.
    pub(in crate::engine) fn add_to(
        &self,
        engine: &Engine,
        packed: &mut Vec<Vec<f64>>,
        boundary: &mut BTreeMap<Value, Vec<f64>>,
        initial: &mut [Vec<f64>],
    ) {
        use std::collections::btree_map::Entry;
        let slots = &engine.program.grads;
        packed.resize(slots.len(), vec![]);
        for (slot, sum) in slots.iter().zip(packed) {
            let len = slot.matrix.map_or(slot.len, |(post, pre)| Tiles::packed_len(post, pre));
            sum.resize(len, 0.0);
            let from = &self.packed.as_slice()[slot.offset..];
            sum.iter_mut().zip(from).for_each(|(sum, x)| *sum += f64::from(*x));
        }
        let mut add = |value: Value, x: &[f32]| match boundary.entry(value) {
            Entry::Vacant(place) => {
                place.insert(x.iter().map(|x| 0.0 + f64::from(*x)).collect());
            }
            Entry::Occupied(mut sum) => {
                sum.get_mut().iter_mut().zip(x).for_each(|(s, x)| *s += f64::from(*x));
            }
        };
        for (value, x) in &self.plain {
            add(*value, x);
        }
        for (sum, x) in initial.iter_mut().zip(&self.initial) {
            sum.iter_mut().zip(x).for_each(|(s, x)| *s += f64::from(*x));
        }
    }
}

/// Gradients out of the packed sums of [`Grads::add_to`].
pub(in crate::engine) fn unpack(
    engine: &Engine,
    packed: Vec<Vec<f64>>,
    boundary: &mut BTreeMap<Value, Vec<f64>>,
) {
    for (slot, sum) in engine.program.grads.iter().zip(packed) {
        let plain = match slot.matrix {
            Some((post, pre)) => {
                let mut plain = vec![0.0; post * pre];
                engine.program.unpack(post, pre, &sum, &mut plain);
                plain
            }
            None => sum,
        };
        match boundary.get_mut(&slot.value) {
            Some(sum) => sum.iter_mut().zip(plain).for_each(|(s, x)| *s += x),
            None => {
                boundary.insert(slot.value, plain);
            }
        }
    }
}

impl Tape {
    pub(super) fn hoisted(&mut self, bound: &Bound<'_>, grads: &mut Grads, first: usize, end: usize) {
        let _entered = Entered::new();
        for rank1 in &self.program(bound).rank1 {
            let sum = grads.plain.get_mut(&rank1.value).expect("one sum per hoisted gradient");
            self.multiply(bound, rank1, 0..rank1.post, first..end, sum);
        }
    }

    /// Adds these rows of a hoisted gradient, summed over steps.
    fn multiply(
        &self,
        bound: &Bound<'_>,
        rank1: &Rank1,
        post: Range<usize>,
        steps: Range<usize>,
        sum: &mut [f32],
    ) {
        let (a, stride) = self.series(bound, rank1.a, steps.start);
        let b = self.series(bound, rank1.b, steps.start);
        let part = Rank1 { post: post.len(), ..*rank1 };
        let a = (a.wrapping_add(post.start), stride);
        assert!(sum.len() == part.post * part.pre && post.end <= rank1.post, "a part of the gradient");
        // SAFETY: both series hold a vector of each row and step in frames of this tape, which stay
        // where they are; `sum` is a separate allocation of `post * pre` elements.
        unsafe { accumulate(&part, steps.len() * self.rows, a, b, sum) };
    }

    /// The hoisted gradient with this number, of all stretches.
    fn multiply_all(&self, bound: &Bound<'_>, number: usize, post: &Range<usize>, sum: &mut [f32]) {
        let rank1 = &self.program(bound).rank1[number];
        for (k, stretch) in self.stretches.iter().enumerate() {
            let end = self.stretches.get(k + 1).map_or(self.steps, |next| next.first);
            if stretch.first < end {
                self.multiply(bound, rank1, post.clone(), stretch.first..end, sum);
            }
        }
    }

    /// The first vector of a series over time and rows, and the distance between its vectors.
    fn series(&self, bound: &Bound<'_>, place: Place, first: usize) -> (*const f32, usize) {
        let program = self.program(bound);
        let (buffer, index, stride) = match place.base {
            Base::Frame(k) => {
                (&self.frames, self.frame_of(first) as isize + isize::from(k), program.frame_len)
            }
            Base::Adjoint(k) => (&self.adjoint, first as isize + isize::from(k), program.adjoint_len),
            _ => (&bound.packed, 0, 0),
        };
        let offset = index as usize * stride + place.offset;
        (&raw const buffer.as_slice()[offset], stride / self.rows)
    }
}

/// Rows of a hoisted gradient that one thread sums.
const ROWS: usize = 64;

/// The hoisted gradients of tapes that have run backward, in their order, by boundary value. `spare` is
/// memory that may be used.
pub(in crate::engine) fn products(
    bound: &Bound<'_>,
    tapes: &[&Tape],
    threads: usize,
    spare: &mut Vec<Vec<f32>>,
) -> BTreeMap<Value, Vec<f32>> {
    let rank1 = &bound.engine.program.rank1;
    let mut sums: Vec<Vec<f32>> = vec![];
    for r in rank1 {
        let found = spare.iter().position(|s| s.len() == r.post * r.pre);
        sums.push(found.map_or_else(|| vec![0.0; r.post * r.pre], |k| spare.swap_remove(k)));
    }
    let mut jobs = vec![];
    for (number, (r, sum)) in rank1.iter().zip(&mut sums).enumerate() {
        for (k, part) in sum.chunks_mut(ROWS * r.pre.max(1)).enumerate() {
            jobs.push((number, k * ROWS..r.post.min((k + 1) * ROWS), part));
        }
    }
    let work = |(): &mut (), (number, post, part): (usize, Range<usize>, &mut [f32])| {
        let _entered = Entered::new();
        part.fill(0.0);
        tapes.iter().for_each(|tape| tape.multiply_all(bound, number, &post, part));
    };
    crate::parallel::run(&mut vec![(); threads.max(1)], jobs, work);
    rank1.iter().map(|r| r.value).zip(sums).collect()
}
