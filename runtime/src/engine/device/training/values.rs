//! Parameters that somebody else holds on the device: read there, and their gradients given back there.
//!
//! What a descent does between two episodes without moving anything: the values are copied from where their owner
//! keeps them, what depends on them alone is evaluated, and the network's kernels find all of it where they read it;
//! going back, sums of gradients become gradients by values. The kernels are those of [`super::descent`], told of
//! parameters without ranges and factors, for values are in the units of the spec. No number passes through the host.
//!
//! What a model needs for that whatever its parameters are, [`Rules`], is made once; [`Values`] have memory of their own
//! and are used again and again, so that recordings of the network's kernels stay good.

use super::super::code::{Buffer, Code, Params};
use super::super::{Address, Call, Fault, Kernel, Module};
use super::descent::{Packed, SOURCE, Tensor, Told, firsts, packed};
use super::unbatched::{Instruction, Places, Unbatched};
use super::{SHARED, THREADS, VERDICT, load};
use crate::engine::{Engine, device, jit};
use compiler::interp::Tensor as Wide;
use compiler::model::Init;
use std::ffi::c_int;
use std::sync::Arc;

/// The kernels.
pub(in crate::engine::device) struct Rules {
    code: Arc<Code>,
    modules: Vec<Module>,
    evaluate: Kernel,
    chain: Kernel,
    pack: Kernel,
}

impl Drop for Rules {
    fn drop(&mut self) {
        self.modules.iter().for_each(|m| self.code.device.unload(*m));
    }
}

impl Rules {
    /// Compiles them.
    pub(in crate::engine::device) fn new(code: &Arc<Code>) -> Result<Rules, Fault> {
        let mut modules = vec![];
        let module = load(code, "descent", &[SHARED, SOURCE], &mut modules)?;
        let kernel = |name| code.device.kernel(module, name);
        let found = kernel("evaluate").and_then(|e| Ok((e, kernel("chain")?, kernel("pack")?)));
        if found.is_err() {
            code.device.unload(module);
        }
        let (evaluate, chain, pack) = found?;
        Ok(Rules { code: Arc::clone(code), modules, evaluate, chain, pack })
    }

    /// Launches a kernel for so many threads, and so many rows of blocks.
    fn launch(&self, kernel: Kernel, [x, y]: [usize; 2], told: &Buffer, number: usize) -> Result<(), Fault> {
        if x * y == 0 {
            return Ok(());
        }
        let grid = [x.div_ceil(THREADS) as u32, y as u32];
        let call = Call::Kept(told.at(), number as c_int);
        // SAFETY: what the kernels are told of has the sizes that it says.
        unsafe { self.code.device.launch(kernel, grid, THREADS as u32, &call) }
    }
}

/// Parameters on the device, and the sums of their gradients.
pub(in crate::engine::device) struct Values {
    told: Buffer,
    /// Threads of every instruction; those after `backward` lead forward.
    instructions: Vec<usize>,
    backward: usize,
    /// Parameters, and elements of the largest.
    tensors: [usize; 2],
    /// Values that the network's kernels read, and elements of the largest.
    packed: [usize; 2],
    lengths: Vec<usize>,
    firsts: Vec<usize>,
    values: Buffer,
    gradients: Buffer,
    params: Arc<Params>,
    grads: device::Grads,
    /// By state that starts at a parameter: the parameter, and the sum of the cotangents in double precision.
    starts: Vec<Option<(usize, Buffer)>>,
    /// Memory that the kernels are told of, and nobody else needs.
    _kept: Vec<Buffer>,
}

impl Values {
    /// Memory for the parameters of a model.
    pub(in crate::engine::device) fn new(engine: &Engine, code: &Arc<Code>) -> Result<Values, Fault> {
        let device = &code.device;
        let count = |p: &compiler::model::Param| engine.sizes().count(p.shape);
        let lengths: Vec<usize> = engine.model().params.iter().map(count).collect();
        let (firsts, total) = firsts(&lengths);
        let (values, gradients) = (Buffer::zeros(device, 4 * total)?, Buffer::new(device, 4 * total)?);
        let params = Params::new(code, &beside(engine, &lengths))?;
        let grads = device::Grads::new(engine, code)?;
        let start = |s: &compiler::model::State| match s.init {
            Init::Param(p) => {
                let sum = Buffer::new(device, 8 * lengths[p.index()]);
                sum.map(|sum| Some((p.index(), sum)))
            }
            _ => Ok(None),
        };
        let starts: Result<Vec<_>, Fault> = engine.model().states.iter().map(start).collect();
        let starts = starts?;
        let mut places = Places {
            memory: 0,
            values: values.at(),
            sums: grads.sums.at(),
            products: grads.hoisted.iter().map(Buffer::at).collect(),
            starts: starts.iter().flatten().map(|(p, sum)| (*p, sum.at())).collect(),
        };
        let unbatched = |places: &Places| Unbatched::new(engine, places, &firsts);
        let results = Buffer::new(device, unbatched(&places).bytes)?;
        places.memory = results.at();
        let unbatched = unbatched(&places);
        let all = [unbatched.backward.as_slice(), &unbatched.forward].concat();
        let tensors = tensors(engine, &unbatched.bars, (&firsts, &lengths));
        let packed = packed(engine, &unbatched, (params.at(), values.at()), &firsts);
        let code_at = Buffer::of(device, &all)?;
        let (tensors_at, packed_at) = (Buffer::of(device, &tensors)?, Buffer::of(device, &packed)?);
        let verdict = Buffer::zeros(device, 8 * VERDICT)?;
        let told = Told {
            code: code_at.at(),
            tensors: tensors_at.at(),
            packed: packed_at.at(),
            verdict: verdict.at(),
            values: values.at(),
            gradients: gradients.at(),
            ..Told::default()
        };
        let longest = |packed: &[Packed]| packed.iter().map(|p| p.count as usize).max().unwrap_or(0);
        Ok(Values {
            told: Buffer::of(device, &[told])?,
            instructions: all.iter().map(Instruction::count).collect(),
            backward: unbatched.backward.len(),
            tensors: [lengths.len(), lengths.iter().copied().max().unwrap_or(0)],
            packed: [packed.len(), longest(&packed)],
            lengths,
            firsts,
            values,
            gradients,
            params: Arc::new(params),
            grads,
            starts,
            _kept: vec![code_at, tensors_at, packed_at, verdict, results],
        })
    }

    /// Reads parameters, by parameter, row-major, and lays them out for the network's kernels.
    pub(in crate::engine::device) fn read(&self, rules: &Rules, from: &[Address]) -> Result<(), Fault> {
        for ((from, first), count) in from.iter().zip(&self.firsts).zip(&self.lengths) {
            // SAFETY: the lender vouches for what is read; the place is that of this parameter.
            unsafe { rules.code.device.copy(self.values.at() + 4 * first, *from, 4 * count)? };
        }
        for (number, count) in self.instructions.iter().enumerate().skip(self.backward) {
            rules.launch(rules.evaluate, [*count, 1], &self.told, number)?;
        }
        let [packed, longest] = self.packed;
        rules.launch(rules.pack, [longest, packed], &self.told, 0)
    }

    /// No gradients yet.
    pub(in crate::engine::device) fn clear(&self) -> Result<(), Fault> {
        let sums = self.starts.iter().flatten().map(|(_, sum)| sum);
        self.grads.hoisted.iter().chain([&self.grads.sums]).chain(sums).try_for_each(Buffer::clear)
    }

    /// From sums of gradients to gradients by values, by parameter, where somebody wants them; zeros of what is fixed.
    pub(in crate::engine::device) fn give(&self, rules: &Rules, to: &[Option<Address>]) -> Result<(), Fault> {
        for (number, count) in self.instructions[..self.backward].iter().enumerate() {
            rules.launch(rules.evaluate, [*count, 1], &self.told, number)?;
        }
        let [tensors, widest] = self.tensors;
        rules.launch(rules.chain, [widest, tensors], &self.told, 0)?;
        for ((to, first), count) in to.iter().zip(&self.firsts).zip(&self.lengths) {
            let Some(to) = to else { continue };
            // SAFETY: the lender vouches for what is written; the place is that of this parameter.
            unsafe { rules.code.device.copy(*to, self.gradients.at() + 4 * first, 4 * count)? };
        }
        Ok(())
    }

    /// What the network's kernels read.
    pub(in crate::engine::device) fn params(&self) -> &Arc<Params> {
        &self.params
    }

    /// The sums of gradients.
    pub(in crate::engine::device) fn grads(&self) -> &device::Grads {
        &self.grads
    }

    /// Where a state starts, if it starts at a parameter: its numbers, and the sum of their cotangents.
    pub(in crate::engine::device) fn start(&self, state: usize) -> Option<(Address, &Buffer)> {
        let (param, sum) = self.starts[state].as_ref()?;
        Some((self.values.at() + 4 * self.firsts[*param], sum))
    }
}

/// What lies beside the parameters where the kernels read them, and stays.
fn beside(engine: &Engine, lengths: &[usize]) -> Vec<f32> {
    let narrow: Vec<Vec<f32>> = lengths.iter().map(|n| vec![0.0; *n]).collect();
    let wide: Vec<Wide> = lengths.iter().map(|n| Arc::new(vec![0.0; *n])).collect();
    let lent: Vec<&[f32]> = narrow.iter().map(Vec::as_slice).collect();
    jit::pack_params(engine, &lent, &wide).as_slice().to_vec()
}

/// Parameters in the units of the spec: nothing is between them and their raw numbers.
fn tensors(engine: &Engine, bars: &[Address], (firsts, lengths): (&[usize], &[usize])) -> Vec<Tensor> {
    let tensor = |(k, p): (usize, &compiler::model::Param)| Tensor {
        bar: bars[k],
        low: 0.0,
        high: 0.0,
        first: firsts[k] as i64,
        count: lengths[k] as i64,
        learned: c_int::from(p.learned),
        range: 0,
        gradscale: 1.0,
        unused: 0,
    };
    engine.model().params.iter().enumerate().map(tensor).collect()
}
