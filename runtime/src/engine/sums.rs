//! The sums of gradients over the rows of a batch.
//!
//! Rows are cut into chunks. A chunk is summed in single precision, in memory that the next one uses
//! again; chunks are added up in double precision, in their order. One that is done before its
//! turn waits. Gradients that are products summed over time can be left to the end, when all rows have run
//! backward: they are then summed over all rows at once ([`Sums::products`]). So the memory for chunks grows with the threads, not with the rows, and the result
//! depends on neither.

use super::chain::Chain;
use super::{Bound, Engine, Grads, GradsKind, Kind, Tape, TapeKind, jit, torch};
use compiler::ir::{Op, ParamId, Sink, Source, Value};
use compiler::model::Init;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Sums of gradients under way.
pub struct Sums<'e> {
    engine: &'e Engine,
    state: Mutex<State>,
    /// Those of a chain's links, which then have everything.
    links: Vec<Sums<'e>>,
}

struct State {
    /// Of compiled code: sums of sweeps, as they are packed.
    packed: Vec<Vec<f64>>,
    /// By boundary value.
    boundary: BTreeMap<Value, Vec<f64>>,
    /// By state: the cotangents of learned initial values.
    initial: Vec<Vec<f64>>,
    /// Of libtorch: by parameter.
    params: Vec<Vec<f64>>,
    /// Sums over all rows, by boundary value.
    products: BTreeMap<Value, Vec<f32>>,
    /// The chunk whose turn it is.
    next: usize,
    waiting: BTreeMap<usize, Grads>,
    /// Memory of chunks that have been added.
    free: Vec<Grads>,
}

impl<'e> Sums<'e> {
    pub(super) fn new(engine: &'e Engine) -> Self {
        let initial =
            engine.model().states.iter().map(|s| vec![0.0; engine.sizes().count(s.shape)]).collect();
        let (boundary, waiting) = (BTreeMap::new(), BTreeMap::new());
        let state = State {
            packed: vec![],
            boundary,
            initial,
            params: vec![],
            products: BTreeMap::new(),
            next: 0,
            waiting,
            free: vec![],
        };
        let links = match &engine.kind {
            Kind::Chain(chain) => chain.engines().map(Sums::new).collect(),
            Kind::Interp | Kind::Jit(_) | Kind::Device(_) | Kind::Torch(_) => vec![],
        };
        Sums { engine, state: Mutex::new(state), links }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Zeros for a chunk of rows.
    pub fn zeros(&self) -> Grads {
        self.cleared(false)
    }

    /// Zeros for a chunk of rows whose tapes are kept for [`Sums::products`].
    pub fn zeros_without_products(&self) -> Grads {
        self.cleared(true)
    }

    fn cleared(&self, apart: bool) -> Grads {
        let free = self.state().free.pop();
        match free.or_else(|| self.engine.spare().pop()).filter(|g| g.suits(apart)) {
            Some(mut grads) => {
                grads.clear();
                grads
            }
            None => self.engine.grads_for(apart),
        }
    }

    /// Sums products over all tapes, which have run backward, in their order. Takes memory from `spare`.
    pub fn products(&self, bound: &Bound<'_>, tapes: &[Tape], threads: usize, spare: &mut Vec<Vec<f32>>) {
        for (l, (link, own)) in self.links.iter().zip(&bound.links).enumerate() {
            let mut compiled: Vec<&jit::Tape> = vec![];
            for tape in tapes {
                if let TapeKind::Chain(tape) = &tape.0 {
                    compiled.push(&tape.links()[l]);
                }
            }
            link.state().products = jit::products(own, &compiled, threads, spare);
        }
        let mut compiled: Vec<&jit::Tape> = vec![];
        for tape in tapes {
            if let TapeKind::Jit(tape) = &tape.0 {
                compiled.push(tape);
            }
        }
        // The interpreter's tapes have left theirs in the chunks.
        if !compiled.is_empty() {
            self.state().products = jit::products(bound, &compiled, threads, spare);
        }
    }

    /// Takes a chunk; chunks are numbered from zero.
    pub fn add(&self, number: usize, chunk: Grads) {
        let mut state = self.state();
        state.waiting.insert(number, chunk);
        loop {
            let next = state.next;
            let Some(chunk) = state.waiting.remove(&next) else { return };
            self.take(&mut state, &chunk);
            state.free.push(chunk);
            state.next += 1;
        }
    }

    fn take(&self, state: &mut State, chunk: &Grads) {
        match &chunk.0 {
            GradsKind::Chain(parts) => {
                for (link, part) in self.links.iter().zip(parts) {
                    let State { packed, boundary, initial, .. } = &mut *link.state();
                    part.add_to(link.engine, packed, boundary, initial);
                }
            }
            GradsKind::Interp(_) | GradsKind::Jit(_) | GradsKind::Device(_) | GradsKind::Torch(_) => {
                state.add(self.engine, chunk);
            }
        }
    }

    /// Runs the adjoint of the prologue. One tensor per parameter, in the units of the spec; zeros where
    /// there is no gradient path.
    pub fn finish(self, bound: &Bound<'_>) -> Vec<Vec<f32>> {
        {
            // Chunks behind a missing number.
            let mut state = self.state();
            for chunk in std::mem::take(&mut state.waiting).into_values() {
                self.take(&mut state, &chunk);
            }
            self.engine.spare().append(&mut state.free);
        }
        if let Kind::Chain(chain) = &self.engine.kind {
            return merged(self.engine, chain, bound, self.links);
        }
        let mut state = self.state.into_inner().unwrap_or_else(PoisonError::into_inner);
        if let Kind::Torch(_) = &self.engine.kind {
            return torch::finish(self.engine, state.params, &state.initial);
        }
        jit::unpack(self.engine, std::mem::take(&mut state.packed), &mut state.boundary);
        let direct = state.direct(self.engine);
        for (value, sum) in &state.products {
            if !direct.values().any(|v| v == value) {
                state.boundary.insert(*value, sum.iter().map(|x| f64::from(*x)).collect());
            }
        }
        let known: BTreeSet<ParamId> = direct.keys().copied().collect();
        let interpreter = &self.engine.interpreter;
        let gradients = interpreter.finish_others(&bound.params, &state.boundary, &state.initial, &known);
        let found = gradients.into_iter().enumerate().map(|(k, gradient)| {
            let product = direct.get(&ParamId(k as u32)).and_then(|v| state.products.remove(v));
            product.unwrap_or_else(|| gradient.into_iter().map(|x| x as f32).collect())
        });
        found.collect()
    }
}

/// The gradients of all parameters from those of the links: a parameter of several links gets the sum.
fn merged(engine: &Engine, chain: &Chain, bound: &Bound<'_>, links: Vec<Sums<'_>>) -> Vec<Vec<f32>> {
    let mut all: Vec<Vec<f32>> = vec![vec![]; engine.model().params.len()];
    for ((link, own), params) in links.into_iter().zip(&bound.links).zip(chain.params()) {
        for (gradient, p) in link.finish(own).into_iter().zip(params) {
            let sum = &mut all[p.index()];
            if sum.is_empty() {
                *sum = gradient;
            } else {
                sum.iter_mut().zip(gradient).for_each(|(s, x)| *s += x);
            }
        }
    }
    for (sum, p) in all.iter_mut().zip(&engine.model().params) {
        sum.resize(engine.sizes().count(p.shape), 0.0);
    }
    all
}

impl State {
    /// The parameters whose gradient is a product as it is, and which.
    fn direct(&self, engine: &Engine) -> BTreeMap<ParamId, Value> {
        let f = &engine.interpreter.prologue_adjoint;
        let is_once = |p: ParamId, v: Value| {
            let results = f.results.iter().filter(|(sink, r)| *sink == Sink::ParamBar(p) || *r == v).count();
            results == 1 && !f.values().any(|(_, i)| i.op.operands().contains(&v))
        };
        let is_initial = |p| engine.model().states.iter().any(|s| s.init == Init::Param(p));
        let product = |(sink, v): &(Sink, Value)| match (sink, &f.at(*v).op) {
            (Sink::ParamBar(p), Op::Load(Source::BoundaryBar(b)))
                if self.products.contains_key(b) && is_once(*p, *v) && !is_initial(*p) =>
            {
                Some((*p, *b))
            }
            _ => None,
        };
        f.results.iter().filter_map(product).collect()
    }

    fn add(&mut self, engine: &Engine, chunk: &Grads) {
        match &chunk.0 {
            GradsKind::Interp(g) => g.add_to(&mut self.boundary, &mut self.initial),
            GradsKind::Jit(g) => g.add_to(engine, &mut self.packed, &mut self.boundary, &mut self.initial),
            GradsKind::Torch(g) => g.add_to(&mut self.params, &mut self.initial),
            GradsKind::Chain(_) => unreachable!("the links have sums of their own"),
            GradsKind::Device(g) => {
                g.iter().for_each(|g| g.add_to(engine, &mut self.boundary, &mut self.initial));
            }
        }
    }
}
