//! Learned initial states that live on the device: into every row before an episode, and their cotangents after it,
//! summed over rows.
//!
//! A state that outlives episodes starts at its learned numbers in some of them alone; in others it starts where it was
//! left, and its cotangents belong to nobody. Which it is, and where a tape has its regions, lies on the device beside
//! the kernels' other numbers, so that a recorded update stays good for both.

use super::super::code::{Buffer, Code, Plain};
use super::super::{Address, Call, Fault, Kernel};
use super::THREADS;
use crate::engine::Engine;
use compiler::ir::ParamId;
use compiler::loops::padded;
use compiler::model::Init;
use std::ffi::c_int;

/// A state that starts at learned numbers.
#[derive(Clone, Copy, Debug)]
pub(super) struct Learned {
    state: usize,
    param: usize,
    /// Elements.
    count: usize,
    /// Post and pre, if it is a matrix.
    matrix: Option<(usize, usize)>,
}

/// The states of a model that start at learned numbers, but for those that its kernels do without.
pub(super) fn find(engine: &Engine, code: &Code) -> Vec<Learned> {
    let states = engine.model().states.iter().enumerate();
    let found = states.filter_map(|(state, about)| {
        let Init::Param(ParamId(param)) = about.init else { return None };
        let matrix = engine.program.matrices[state].as_ref().map(|m| (m.post, m.pre));
        let count = engine.sizes().count(about.shape);
        let is_kept = matrix.is_some() || code.slots.states[state].is_some();
        is_kept.then_some(Learned { state, param: param as usize, count, matrix })
    });
    found.collect()
}

/// Bytes of memory.
pub(super) fn bytes(learned: &[Learned]) -> [usize; 2] {
    [size_of::<Start>() * learned.len(), 8 * elements(learned)]
}

fn elements(learned: &[Learned]) -> usize {
    learned.iter().map(|l| l.count).sum()
}

/// By state, its parameter and where the sums of its cotangents lie, which begin at `at`.
pub(super) fn sums(learned: &[Learned], mut at: Address) -> Vec<(usize, Address)> {
    let mut next = |l: &Learned| {
        let own = at;
        at += 8 * l.count;
        (l.param, own)
    };
    learned.iter().map(&mut next).collect()
}

/// Where the numbers of a state's first row lie, and how far it is from row to row.
#[derive(Clone, Copy, Debug)]
pub(in crate::engine::device) struct Edge {
    /// Before the first step.
    pub(in crate::engine::device) to: (Address, usize),
    /// The cotangents there, after the backward pass; null if it has none.
    pub(in crate::engine::device) bar: (Address, usize),
}

/// `Start` in the source.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq)]
struct Start {
    values: Address,
    to: Address,
    bar: Address,
    sum: Address,
    to_length: i64,
    bar_length: i64,
    count: i64,
    pre: c_int,
    stride: c_int,
    rows: c_int,
    own: c_int,
}

impl Plain for Start {}

/// Learned initial states of a batch.
pub(super) struct Starts {
    learned: Vec<Learned>,
    place: Kernel,
    add: Kernel,
    rows: usize,
    /// As it lies on the device.
    told: Vec<Start>,
    told_at: Buffer,
    sums: Buffer,
}

impl Starts {
    /// Takes the memory. `values` has all parameters, each from its number among `firsts` on.
    pub(super) fn new(
        code: &Code,
        learned: Vec<Learned>,
        [place, add]: [Kernel; 2],
        (values, firsts): (Address, &[usize]),
        rows: usize,
    ) -> Result<Starts, Fault> {
        let sums_at = Buffer::new(&code.device, 8 * elements(&learned))?;
        let start = |(l, (_, sum)): (&Learned, (usize, Address))| {
            let (pre, stride) = l.matrix.map_or((0, 0), |(post, pre)| (pre, padded(post)));
            Start {
                values: values + 4 * firsts[l.param],
                to: 0,
                bar: 0,
                sum,
                to_length: 0,
                bar_length: 0,
                count: l.count as i64,
                pre: pre as c_int,
                stride: stride as c_int,
                rows: rows as c_int,
                own: 0,
            }
        };
        let told: Vec<Start> = learned.iter().zip(sums(&learned, sums_at.at())).map(start).collect();
        let told_at = Buffer::of(&code.device, &told)?;
        Ok(Starts { learned, place, add, rows, told, told_at, sums: sums_at })
    }

    /// By state, its parameter and where the sums of its cotangents lie.
    pub(super) fn sums(&self) -> Vec<(usize, Address)> {
        sums(&self.learned, self.sums.at())
    }

    /// Says where a tape has these states, and which of them start at their own numbers in the coming episode.
    pub(in crate::engine::device) fn tell(
        &mut self,
        edge: impl Fn(usize) -> Edge,
        own: &[bool],
    ) -> Result<(), Fault> {
        let now = |(l, start): (&Learned, &Start)| {
            let Edge { to, bar } = edge(l.state);
            let (to_length, bar_length) = (to.1 as i64, bar.1 as i64);
            let own = c_int::from(own.get(l.state).copied().unwrap_or(true));
            Start { to: to.0, bar: bar.0, to_length, bar_length, own, ..*start }
        };
        let told: Vec<Start> = self.learned.iter().zip(&self.told).map(now).collect();
        if told != self.told {
            self.told_at.put(0, &told)?;
            self.told = told;
        }
        Ok(())
    }

    /// Their numbers into all rows.
    pub(in crate::engine::device) fn place(&self, code: &Code) -> Result<(), Fault> {
        self.launch(code, self.place, self.rows)
    }

    /// Their cotangents, summed over rows.
    pub(super) fn add(&self, code: &Code) -> Result<(), Fault> {
        self.launch(code, self.add, 1)
    }

    fn launch(&self, code: &Code, kernel: Kernel, rows: usize) -> Result<(), Fault> {
        let Some(widest) = self.learned.iter().map(|l| l.count * rows).max() else { return Ok(()) };
        let grid = [widest.div_ceil(THREADS) as u32, self.learned.len() as u32];
        let call = Call::Kept(self.told_at.at(), 0);
        // SAFETY: what the kernels are told of has the sizes that it says.
        unsafe { code.device.launch(kernel, grid, THREADS as u32, &call) }
    }
}
