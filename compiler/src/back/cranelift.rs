//! Loop IR → machine code through Cranelift, with 128-bit vectors.
//!
//! Every routine becomes a function `extern "C" fn(*const *mut f32)`: its argument is an array of
//! pointers, one per entry of [`Base::ALL`]. Cranelift neither vectorises nor unrolls, and its
//! optimiser makes these loops slower (it sinks multiply-adds until accumulators spill), so it
//! runs without, and this module emits code that needs none: invariants are computed outside of
//! the loops they do not vary with. A register of the loop IR is two of Cranelift's: its halves.

use super::level::{Level, levels};
/// The order of [`Kernels::entries`].
pub use crate::loops::NAMES as ROUTINES;
use crate::loops::body::{BodyOp, Id};
use crate::loops::{Access, Base, Effect, Extent, LANES, Nest, Place, Program, Routine, Tiles, routines};
use cranelift_codegen::ir::condcodes::{FloatCC, IntCC};
use cranelift_codegen::ir::types::{F32, F32X4, I32X4, I64};
use cranelift_codegen::ir::{
    AbiParam, Block, BlockArg, ConstantData, Endianness, InstBuilder, MemFlagsData, Type, Value,
};
use cranelift_codegen::settings::{self, Configurable};
use cranelift_frontend::{FunctionBuilder, FunctionBuilderContext};
use cranelift_jit::{JITBuilder, JITModule};
use cranelift_module::{FuncId, Linkage, Module};
use std::collections::BTreeMap;

/// Lanes of a machine register.
const HALF: usize = 4;

/// Machine registers in a register of the loop IR.
const HALVES: usize = LANES / HALF;

/// Machine code in memory. The pointers are valid as long as this lives.
pub struct Kernels {
    module: Option<JITModule>,
    /// Entry points, by [`ROUTINES`].
    pub entries: [*const u8; ROUTINES.len()],
    /// Bytes of machine code.
    pub code_bytes: usize,
}

/// Why kernels could not be made.
#[derive(Debug, thiserror::Error)]
pub enum JitError {
    /// Cranelift does not know this machine.
    #[error("the code generator does not support this processor: {0}")]
    Host(String),
    /// Cranelift refused a function.
    #[error("the code generator failed on {routine}: {why}")]
    Codegen {
        /// The routine.
        routine: &'static str,
        /// Its words.
        why: String,
    },
}

/// Compiles a program for this machine.
///
/// # Errors
/// [`JitError`] if Cranelift does not support the processor.
pub fn compile(program: &Program) -> Result<Kernels, JitError> {
    let mut module = module()?;
    let mut context = FunctionBuilderContext::new();
    let mut ids: Vec<FuncId> = vec![];
    let mut code_bytes = 0;
    for (name, routine) in ROUTINES.into_iter().zip(routines(program)) {
        if let Some(k) = routines(program)[..ids.len()].iter().position(|other| *other == routine) {
            ids.push(ids[k]);
            continue;
        }
        let fail = |why: String| JitError::Codegen { routine: name, why };
        let mut cx = module.make_context();
        cx.func.signature.params.push(AbiParam::new(I64));
        emit(FunctionBuilder::new(&mut cx.func, &mut context), routine, program.widest, &module);
        let id = module
            .declare_function(name, Linkage::Export, &cx.func.signature)
            .map_err(|e| fail(e.to_string()))?;
        module.define_function(id, &mut cx).map_err(|e| fail(format!("{e:?}")))?;
        code_bytes += cx.compiled_code().map_or(0, |c| c.code_buffer().len());
        module.clear_context(&mut cx);
        ids.push(id);
    }
    module
        .finalize_definitions()
        .map_err(|e| JitError::Codegen { routine: "finalize", why: e.to_string() })?;
    let entries = std::array::from_fn(|k| module.get_finalized_function(ids[k]));
    Ok(Kernels { module: Some(module), entries, code_bytes })
}

impl Kernels {
    /// Takes the module out, so that the owner can free the code when nothing runs it any more.
    pub fn into_module(mut self) -> Option<JITModule> {
        self.module.take()
    }
}

/// Prints the functions before compilation (`--emit clif`).
///
/// # Errors
/// [`JitError`] if Cranelift does not support the processor.
pub fn print(program: &Program) -> Result<String, JitError> {
    use std::fmt::Write;
    let module = module()?;
    let mut context = FunctionBuilderContext::new();
    let mut text = String::new();
    for (name, routine) in ROUTINES.into_iter().zip(routines(program)) {
        let mut cx = module.make_context();
        cx.func.signature.params.push(AbiParam::new(I64));
        emit(FunctionBuilder::new(&mut cx.func, &mut context), routine, program.widest, &module);
        let _ = writeln!(text, "; {name}\n{}", cx.func.display());
    }
    Ok(text)
}

/// A module for code of this machine.
fn module() -> Result<JITModule, JitError> {
    let mut builder = JITBuilder::with_isa(isa()?, cranelift_module::default_libcall_names());
    builder.symbol("fmaf", multiply_add as *const u8);
    builder.symbol("nearbyintf", nearest as *const u8);
    Ok(JITModule::new(builder))
}

/// What code calls where the processor has no fused multiply-add, lane by lane: x86-64 before FMA.
extern "C" fn multiply_add(x: f32, y: f32, z: f32) -> f32 {
    x.mul_add(y, z)
}

/// What code calls where the processor does not round to integers, lane by lane: x86-64 before SSE4.1.
extern "C" fn nearest(x: f32) -> f32 {
    x.round_ties_even()
}

fn isa() -> Result<cranelift_codegen::isa::OwnedTargetIsa, JitError> {
    let host = |e: &dyn std::fmt::Display| JitError::Host(e.to_string());
    let mut flags = settings::builder();
    let verifier = if cfg!(debug_assertions) { "true" } else { "false" };
    for (key, value) in [("opt_level", "none"), ("enable_verifier", verifier), ("is_pic", "false")] {
        flags.set(key, value).map_err(|e| host(&e))?;
    }
    let builder = cranelift_native::builder().map_err(|e| host(&e))?;
    builder.finish(settings::Flags::new(flags)).map_err(|e| host(&e))
}

fn emit(mut b: FunctionBuilder<'_>, routine: &Routine, widest: usize, module: &JITModule) {
    let entry = b.create_block();
    b.append_block_params_for_function_params(entry);
    b.switch_to_block(entry);
    b.seal_block(entry);
    let bases = b.block_params(entry)[0];
    for nest in &routine.nests {
        NestEmitter::new(&mut b, nest, bases, widest).run();
    }
    b.ins().return_(&[]);
    b.finalize(module.target_config());
}

/// Emits one nest.
struct NestEmitter<'b, 'f> {
    b: &'b mut FunctionBuilder<'f>,
    nest: &'b Nest,
    bases: Value,
    widest: usize,
    pointers: BTreeMap<usize, Value>,
    levels: Vec<Level>,
    /// Constants are kept in registers if they are few.
    keep_constants: bool,
    once: Vec<Option<Value>>,
}

/// The position inside a matrix nest.
#[derive(Clone, Copy)]
struct Position {
    /// Bytes from the start of a packed matrix to this tile row.
    matrix: Value,
    /// Bytes from the start of a post vector to this tile.
    post: Value,
    /// Bytes from the start of a pre vector to this row.
    pre: Value,
}

/// How often a loop runs.
#[derive(Clone, Copy)]
enum Count {
    /// As often as is known now.
    Known(usize),
    /// As often as a value says, at least once.
    Given(Value),
}

impl From<usize> for Count {
    fn from(count: usize) -> Count {
        Count::Known(count)
    }
}

fn flags() -> MemFlagsData {
    let mut flags = MemFlagsData::new();
    flags.set_notrap();
    flags
}

fn bytes(offset: usize) -> i32 {
    i32::try_from(offset * 4).expect("the engine refuses programs whose regions exceed 2 GiB")
}

impl<'b, 'f> NestEmitter<'b, 'f> {
    fn new(b: &'b mut FunctionBuilder<'f>, nest: &'b Nest, bases: Value, widest: usize) -> Self {
        let constants = nest.body.ops.iter().filter(|op| matches!(op, BodyOp::Const(_))).count();
        let levels = levels(&nest.body);
        let once = vec![None; nest.body.ops.len()];
        NestEmitter {
            b,
            nest,
            bases,
            widest,
            pointers: BTreeMap::new(),
            levels,
            keep_constants: constants <= 4,
            once,
        }
    }

    fn run(mut self) {
        for k in 0..self.nest.body.ops.len() {
            let is_constant = matches!(self.nest.body.ops[k], BodyOp::Const(_));
            if self.levels[k] == Level::Once && (!is_constant || self.keep_constants) {
                let mut values = std::mem::take(&mut self.once);
                let value = self.op(self.nest.body.ops[k], &mut values, None, 0);
                values[k] = Some(value);
                self.once = values;
            }
        }
        match self.nest.extent {
            Extent::Scalar => self.scalar(),
            Extent::Vector(n) => self.vector(n),
            Extent::Matrix { post, pre } | Extent::Log { post, pre } => self.matrix(post, pre),
        }
    }

    // ------------------------------------------------------------------ values

    fn pointer(&mut self, base: Base) -> Value {
        let slot = base.slot();
        if let Some(p) = self.pointers.get(&slot) {
            return *p;
        }
        let p = self.b.ins().load(I64, flags(), self.bases, (slot * 8) as i32);
        self.pointers.insert(slot, p);
        p
    }

    fn constant(&mut self, c: f32) -> Value {
        let data: Vec<u8> = std::iter::repeat_n(c.to_le_bytes(), HALF).flatten().collect();
        let handle = self.b.func.dfg.constants.insert(ConstantData::from(data));
        self.b.ins().vconst(F32X4, handle)
    }

    fn bits(&mut self, ty: Type, v: Value) -> Value {
        self.b.ins().bitcast(ty, MemFlagsData::new().with_endianness(Endianness::Little), v)
    }

    fn compare(&mut self, cc: FloatCC, x: Value, y: Value) -> Value {
        let mask = self.b.ins().fcmp(cc, x, y);
        self.bits(F32X4, mask)
    }

    fn splat_load(&mut self, address: Value, offset: i32) -> Value {
        let s = self.b.ins().load(F32, flags(), address, offset);
        self.b.ins().splat(F32X4, s)
    }

    /// A value of the body at a point; invariants come from outside, the rest is computed once.
    fn value(
        &mut self,
        id: Id,
        here: &mut Vec<Option<Value>>,
        at: Option<Position>,
        register: usize,
    ) -> Value {
        if let Some(v) = here[id.index()] {
            return v;
        }
        let v = self.op(self.nest.body.at(id), here, at, register);
        here[id.index()] = Some(v);
        v
    }

    fn op(
        &mut self,
        op: BodyOp,
        here: &mut Vec<Option<Value>>,
        at: Option<Position>,
        register: usize,
    ) -> Value {
        if let BodyOp::Load(access) = op {
            return self.load(access, at, register);
        }
        let operands = op.operands();
        let x: Vec<Value> = operands.iter().map(|o| self.value(*o, here, at, register)).collect();
        match op {
            BodyOp::Const(c) => self.constant(c),
            BodyOp::Load(_) => unreachable!("handled above"),
            BodyOp::Neg(_) => self.b.ins().fneg(x[0]),
            BodyOp::Abs(_) => self.b.ins().fabs(x[0]),
            BodyOp::Sqrt(_) => self.b.ins().sqrt(x[0]),
            BodyOp::Round(_) => self.b.ins().nearest(x[0]),
            BodyOp::PowerOfTwo(_) => self.power_of_two(x[0]),
            BodyOp::Exponent(_) => self.exponent(x[0]),
            BodyOp::Mantissa(_) => self.mantissa(x[0]),
            BodyOp::Add(..) => self.b.ins().fadd(x[0], x[1]),
            BodyOp::Sub(..) => self.b.ins().fsub(x[0], x[1]),
            BodyOp::Mul(..) => self.b.ins().fmul(x[0], x[1]),
            BodyOp::Div(..) => self.b.ins().fdiv(x[0], x[1]),
            BodyOp::Min(..) => {
                let c = self.compare(FloatCC::LessThan, x[0], x[1]);
                self.b.ins().bitselect(c, x[0], x[1])
            }
            BodyOp::Max(..) => {
                let c = self.compare(FloatCC::LessThan, x[1], x[0]);
                self.b.ins().bitselect(c, x[0], x[1])
            }
            BodyOp::Fma(..) => self.b.ins().fma(x[0], x[1], x[2]),
            BodyOp::FmaNeg(..) => {
                let minus = self.b.ins().fneg(x[0]);
                self.b.ins().fma(minus, x[1], x[2])
            }
            BodyOp::Less(..) => self.compare(FloatCC::LessThan, x[0], x[1]),
            BodyOp::LessEqual(..) => self.compare(FloatCC::LessThanOrEqual, x[0], x[1]),
            BodyOp::Equal(..) => self.compare(FloatCC::Equal, x[0], x[1]),
            BodyOp::And(..) | BodyOp::Keep(..) => self.b.ins().band(x[0], x[1]),
            BodyOp::Not(_) => self.b.ins().bnot(x[0]),
            BodyOp::Select(..) => self.b.ins().bitselect(x[0], x[1], x[2]),
            BodyOp::Number(_) => {
                let one = self.constant(1.0);
                self.b.ins().band(x[0], one)
            }
        }
    }

    fn integers(&mut self, c: i32) -> Value {
        let data: Vec<u8> = std::iter::repeat_n(c.to_le_bytes(), HALF).flatten().collect();
        let handle = self.b.func.dfg.constants.insert(ConstantData::from(data));
        self.b.ins().vconst(I32X4, handle)
    }

    fn power_of_two(&mut self, n: Value) -> Value {
        let n = self.b.ins().fcvt_to_sint_sat(I32X4, n);
        let bias = self.integers(127);
        let biased = self.b.ins().iadd(n, bias);
        let shifted = self.b.ins().ishl_imm_s(biased, 23);
        self.bits(F32X4, shifted)
    }

    fn exponent(&mut self, x: Value) -> Value {
        let x = self.bits(I32X4, x);
        let shifted = self.b.ins().ushr_imm_u(x, 23);
        let bias = self.integers(127);
        let n = self.b.ins().isub(shifted, bias);
        self.b.ins().fcvt_from_sint(F32X4, n)
    }

    fn mantissa(&mut self, x: Value) -> Value {
        let x = self.bits(I32X4, x);
        let (fraction, one) = (self.integers(0x007f_ffff), self.integers(0x3f80_0000));
        let fraction = self.b.ins().band(x, fraction);
        let m = self.b.ins().bor(fraction, one);
        self.bits(F32X4, m)
    }

    fn address(&mut self, base: Base, offset: Option<Value>) -> Value {
        let p = self.pointer(base);
        match offset {
            Some(o) => self.b.ins().iadd(p, o),
            None => p,
        }
    }

    fn load(&mut self, access: Access, at: Option<Position>, register: usize) -> Value {
        let lane = (register * HALF * 4) as i32;
        match access {
            Access::Scalar(p) => {
                let address = self.address(p.base, None);
                self.splat_load(address, bytes(p.offset))
            }
            Access::Post(p) => {
                let address = self.address(p.base, at.map(|a| a.post));
                self.b.ins().load(F32X4, flags(), address, bytes(p.offset) + lane)
            }
            Access::Pre(p) => {
                let address = self.address(p.base, at.map(|a| a.pre));
                self.splat_load(address, bytes(p.offset))
            }
            Access::Matrix(p) => {
                let address = self.address(p.base, at.map(|a| a.matrix));
                self.b.ins().load(F32X4, flags(), address, bytes(p.offset) + lane)
            }
        }
    }

    /// Neighbouring lanes, then neighbouring pairs, then the halves.
    fn sum_lanes(&mut self, halves: &[Value]) -> Value {
        let sums: Vec<Value> = halves.iter().map(|v| self.sum_half(*v)).collect();
        self.b.ins().fadd(sums[0], sums[1])
    }

    fn sum_half(&mut self, v: Value) -> Value {
        let x: [Value; HALF] = std::array::from_fn(|lane| self.b.ins().extractlane(v, lane as u8));
        let (left, right) = (self.b.ins().fadd(x[0], x[1]), self.b.ins().fadd(x[2], x[3]));
        self.b.ins().fadd(left, right)
    }

    fn max_lanes(&mut self, halves: &[Value]) -> Value {
        let mut best = self.b.ins().extractlane(halves[0], 0);
        for lane in 1..LANES {
            let x = self.b.ins().extractlane(halves[lane / HALF], (lane % HALF) as u8);
            let c = self.b.ins().fcmp(FloatCC::LessThan, best, x);
            best = self.b.ins().select(c, x, best);
        }
        best
    }

    /// Bits set in the lanes below `count`, in a half of a register.
    fn lane_mask(&mut self, count: usize, half: usize) -> Value {
        let set = |k: usize| if half * HALF + k < count { -1i32 } else { 0 };
        let data: Vec<u8> = (0..HALF).flat_map(|k| set(k).to_le_bytes()).collect();
        let handle = self.b.func.dfg.constants.insert(ConstantData::from(data));
        let mask = self.b.ins().vconst(I32X4, handle);
        self.bits(F32X4, mask)
    }

    /// `acc + v·w` (or `acc + v`), only in the lanes of the mask.
    fn accumulate(&mut self, acc: Value, v: Value, w: Option<Value>, mask: Option<Value>) -> Value {
        let keep = |b: &mut FunctionBuilder<'f>, x: Value| match mask {
            Some(m) => b.ins().band(x, m),
            None => x,
        };
        let v = keep(self.b, v);
        match w {
            Some(w) => {
                let w = keep(self.b, w);
                self.b.ins().fma(v, w, acc)
            }
            None => self.b.ins().fadd(acc, v),
        }
    }

    fn maximum(&mut self, acc: Value, v: Value, mask: Option<Value>) -> Value {
        let v = match mask {
            Some(m) => self.b.ins().bitselect(m, v, acc),
            None => v,
        };
        let c = self.compare(FloatCC::LessThan, acc, v);
        self.b.ins().bitselect(c, v, acc)
    }

    fn store_scalar(&mut self, place: Place, v: Value) {
        let address = self.address(place.base, None);
        self.b.ins().store(flags(), v, address, bytes(place.offset));
    }

    // ------------------------------------------------------------------- loops

    /// `for k in 0..count`, carrying byte offsets (each with its stride) and vectors.
    fn counted(
        &mut self,
        count: impl Into<Count>,
        offsets: &[(Value, i64)],
        carried: &[Value],
        mut body: impl FnMut(&mut Self, &[Value], Vec<Value>) -> Vec<Value>,
    ) -> Vec<Value> {
        let count = count.into();
        if matches!(count, Count::Known(0)) {
            return carried.to_vec();
        }
        if matches!(count, Count::Known(1)) {
            let starts: Vec<Value> = offsets.iter().map(|(v, _)| *v).collect();
            return body(self, &starts, carried.to_vec());
        }
        let (header, exit) = (self.b.create_block(), self.b.create_block());
        let zero = self.b.ins().iconst(I64, 0);
        let mut arguments = vec![BlockArg::from(zero)];
        self.b.append_block_param(header, I64);
        for (v, _) in offsets {
            self.b.append_block_param(header, I64);
            arguments.push(BlockArg::from(*v));
        }
        self.carry(header, exit, carried, &mut arguments);
        self.b.ins().jump(header, &arguments);
        self.b.switch_to_block(header);
        let parameters = self.b.block_params(header).to_vec();
        let (index, rest) = (parameters[0], &parameters[1..]);
        let results = body(self, &rest[..offsets.len()], rest[offsets.len()..].to_vec());
        let next = self.b.ins().iadd_imm_s(index, 1);
        let mut again = vec![BlockArg::from(next)];
        for ((_, stride), at) in offsets.iter().zip(rest) {
            let moved = self.b.ins().iadd_imm_s(*at, *stride);
            again.push(BlockArg::from(moved));
        }
        again.extend(results.iter().map(|v| BlockArg::from(*v)));
        let out: Vec<BlockArg> = results.iter().map(|v| BlockArg::from(*v)).collect();
        let more = match count {
            Count::Known(count) => self.b.ins().icmp_imm_s(IntCC::NotEqual, next, count as i64),
            Count::Given(count) => self.b.ins().icmp(IntCC::UnsignedLessThan, next, count),
        };
        self.b.ins().brif(more, header, &again, exit, &out);
        self.b.seal_block(header);
        self.b.switch_to_block(exit);
        self.b.seal_block(exit);
        self.b.block_params(exit).to_vec()
    }

    fn carry(&mut self, header: Block, exit: Block, carried: &[Value], arguments: &mut Vec<BlockArg>) {
        for v in carried {
            let ty = self.b.func.dfg.value_type(*v);
            self.b.append_block_param(header, ty);
            self.b.append_block_param(exit, ty);
            arguments.push(BlockArg::from(*v));
        }
    }

    /// Pointers must be loaded before the loops in which they are used.
    fn load_pointers(&mut self) {
        let mut used: Vec<Base> = self.nest.body.loads().map(|a| a.place().base).collect();
        used.extend(self.nest.effects.iter().map(|e| e.place().base));
        used.push(Base::Scratch);
        for base in used {
            self.pointer(base);
        }
    }

    fn scalar(&mut self) {
        let mut here = self.once.clone();
        for effect in self.nest.effects.clone() {
            match effect {
                Effect::Store(Access::Scalar(p) | Access::Post(p), v) => {
                    let v = self.value(v, &mut here, None, 0);
                    let v = self.b.ins().extractlane(v, 0);
                    self.store_scalar(p, v);
                }
                Effect::Add(Access::Scalar(p) | Access::Post(p), v, w) => {
                    let v = self.value(v, &mut here, None, 0);
                    let w = w.map(|w| self.value(w, &mut here, None, 0));
                    let address = self.address(p.base, None);
                    let old = self.splat_load(address, bytes(p.offset));
                    let new = self.accumulate(old, v, w, None);
                    let new = self.b.ins().extractlane(new, 0);
                    self.store_scalar(p, new);
                }
                other => unreachable!("{other:?} in a scalar nest"),
            }
        }
    }

    fn vector(&mut self, n: usize) {
        self.load_pointers();
        let zero = self.b.ins().iconst(I64, 0);
        let start = self.initial_sums();
        let (whole, rest) = (n / LANES, n % LANES);
        let sums = self.counted(whole, &[(zero, (LANES * 4) as i64)], &start, |e, at, sums| {
            e.vector_point(at[0], sums, None)
        });
        let sums = match rest {
            0 => sums,
            _ => {
                let at = self.b.ins().iconst(I64, (whole * LANES * 4) as i64);
                self.vector_point(at, sums, Some(rest))
            }
        };
        self.finish_sums(&sums);
    }

    /// One register of a vector nest; only the lanes below `rest` count in sums.
    fn vector_point(&mut self, at: Value, mut sums: Vec<Value>, rest: Option<usize>) -> Vec<Value> {
        let position = Some(Position { matrix: at, post: at, pre: at });
        for half in 0..HALVES {
            let mask = rest.map(|count| self.lane_mask(count, half));
            self.vector_half(position, half, &mut sums, mask);
        }
        sums
    }

    fn vector_half(&mut self, at: Option<Position>, half: usize, sums: &mut [Value], mask: Option<Value>) {
        let mut here = self.once.clone();
        let mut k = half;
        for effect in self.nest.effects.clone() {
            match effect {
                Effect::Store(access, v) => {
                    let v = self.value(v, &mut here, at, half);
                    self.store(access, v, at, half);
                }
                Effect::Add(access, v, w) => {
                    let v = self.value(v, &mut here, at, half);
                    let w = w.map(|w| self.value(w, &mut here, at, half));
                    let old = self.load(access, at, half);
                    let new = self.accumulate(old, v, w, None);
                    self.store(access, new, at, half);
                }
                Effect::SumAll(_, v, w) => {
                    let v = self.value(v, &mut here, at, half);
                    let w = w.map(|w| self.value(w, &mut here, at, half));
                    sums[k] = self.accumulate(sums[k], v, w, mask);
                    k += HALVES;
                }
                Effect::MaxAll(_, v) => {
                    let v = self.value(v, &mut here, at, half);
                    sums[k] = self.maximum(sums[k], v, mask);
                    k += HALVES;
                }
                other @ (Effect::SumPre(..) | Effect::SumPost(..)) => {
                    unreachable!("{other:?} in a vector nest")
                }
            }
        }
    }

    fn store(&mut self, access: Access, v: Value, at: Option<Position>, register: usize) {
        let lane = (register * HALF * 4) as i32;
        let (place, offset) = match access {
            Access::Matrix(p) => (p, at.map(|a| a.matrix)),
            Access::Post(p) => (p, at.map(|a| a.post)),
            Access::Pre(p) | Access::Scalar(p) => unreachable!("no nest stores to {p:?} point by point"),
        };
        let address = self.address(place.base, offset);
        self.b.ins().store(flags(), v, address, bytes(place.offset) + lane);
    }

    /// Start values of the sums over the whole extent, half by half.
    fn initial_sums(&mut self) -> Vec<Value> {
        let effects = self.nest.effects.clone();
        let mut sums = vec![];
        for effect in effects {
            let start = match effect {
                Effect::SumAll(..) => 0.0,
                Effect::MaxAll(..) => f32::NEG_INFINITY,
                Effect::Store(..) | Effect::Add(..) | Effect::SumPre(..) | Effect::SumPost(..) => continue,
            };
            let start = self.constant(start);
            sums.extend([start; HALVES]);
        }
        sums
    }

    fn finish_sums(&mut self, sums: &[Value]) {
        let mut sums = sums.chunks(HALVES);
        for effect in self.nest.effects.clone() {
            let (place, v) = match effect {
                Effect::SumAll(place, ..) => {
                    let halves = sums.next().expect("one per effect");
                    (place, self.sum_lanes(halves))
                }
                Effect::MaxAll(place, _) => {
                    let halves = sums.next().expect("one per effect");
                    (place, self.max_lanes(halves))
                }
                Effect::Store(..) | Effect::Add(..) | Effect::SumPre(..) | Effect::SumPost(..) => continue,
            };
            self.store_scalar(place, v);
        }
    }

    // ---------------------------------------------------------------- matrices

    fn matrix(&mut self, post: usize, pre: usize) {
        self.load_pointers();
        let partials = self.clear_partials(pre);
        self.clear_columns(post);
        let tiles = Tiles::of(post, self.widest);
        let masked = !post.is_multiple_of(LANES) && self.nest.effects.iter().any(Effect::sums_over_post);
        let mut groups: Vec<(usize, usize, usize, bool)> = vec![];
        let wide_end = tiles.wide * tiles.width;
        for (start, count, width) in [(0, tiles.wide, tiles.width), (wide_end, tiles.narrow, tiles.width - 1)]
        {
            if count > 0 {
                groups.push((start, count, width, false));
            }
        }
        if masked && let Some((start, count, width, _)) = groups.pop() {
            if count > 1 {
                groups.push((start, count - 1, width, false));
            }
            groups.push((start + (count - 1) * width, 1, width, true));
        }
        let mut sums = self.initial_sums();
        for (start, count, width, last) in groups {
            let mask = if last { Some(post % LANES) } else { None };
            let matrix = self.b.ins().iconst(I64, (start * LANES * 4 * pre) as i64);
            let lane = self.b.ins().iconst(I64, (start * LANES * 4) as i64);
            let tile = (width * LANES * 4) as i64;
            let offsets = [(matrix, tile * pre as i64), (lane, tile)];
            let carried = sums.clone();
            let count = self.live_tiles(width).unwrap_or(Count::Known(count));
            sums = self.counted(count, &offsets, &carried, |e, at, sums| {
                e.tile(at[0], at[1], width * HALVES, pre, mask, &partials, sums)
            });
        }
        self.finish_sums(&sums);
        self.finish_partials(&partials, pre);
    }

    /// How many tiles of a log there are, of `width` registers of the loop IR; at least one.
    fn live_tiles(&mut self, width: usize) -> Option<Count> {
        let Extent::Log { .. } = self.nest.extent else { return None };
        let scratch = self.pointer(Base::Scratch);
        let live = self.b.ins().uload32(flags(), scratch, bytes(crate::loops::LIVE));
        let lanes = (width * LANES) as i64;
        let live = self.b.ins().iadd_imm_s(live, lanes - 1);
        let lanes = self.b.ins().iconst(I64, lanes);
        Some(Count::Given(self.b.ins().udiv(live, lanes)))
    }

    /// Zeroes the sums over pre of events that there are not.
    fn clear_columns(&mut self, post: usize) {
        let Extent::Log { .. } = self.nest.extent else { return };
        let targets = self.nest.effects.iter();
        let targets =
            targets.filter_map(|e| if let Effect::SumPre(place, ..) = e { Some(*place) } else { None });
        for place in targets.collect::<Vec<Place>>() {
            let zero = self.constant(0.0);
            let target = self.pointer(place.base);
            let at = self.b.ins().iconst(I64, 0);
            self.counted(post / LANES * HALVES, &[(at, (HALF * 4) as i64)], &[], |e, at, _| {
                let address = e.b.ins().iadd(target, at[0]);
                e.b.ins().store(flags(), zero, address, bytes(place.offset));
                vec![]
            });
        }
    }

    /// Zeroes the row sums of every sum over post: one register per row, in scratch.
    fn clear_partials(&mut self, pre: usize) -> Vec<usize> {
        let count = self.nest.effects.iter().filter(|e| matches!(e, Effect::SumPost(..))).count();
        let places: Vec<usize> = (0..count).map(|k| crate::loops::PARTIALS + k * pre * LANES).collect();
        if count > 0 {
            let zero = self.constant(0.0);
            let scratch = self.pointer(Base::Scratch);
            let at = self.b.ins().iconst(I64, 0);
            self.counted(count * pre * HALVES, &[(at, (HALF * 4) as i64)], &[], |e, at, _| {
                let address = e.b.ins().iadd(scratch, at[0]);
                e.b.ins().store(flags(), zero, address, bytes(crate::loops::PARTIALS));
                vec![]
            });
        }
        places
    }

    fn finish_partials(&mut self, partials: &[usize], pre: usize) {
        let targets: Vec<Place> = self
            .nest
            .effects
            .iter()
            .filter_map(|e| if let Effect::SumPost(place, ..) = e { Some(*place) } else { None })
            .collect();
        for (place, partial) in targets.into_iter().zip(partials) {
            let scratch = self.pointer(Base::Scratch);
            let target = self.pointer(place.base);
            let zero = self.b.ins().iconst(I64, 0);
            self.counted(pre, &[(zero, (LANES * 4) as i64), (zero, 4)], &[], |e, at, _| {
                let from = e.b.ins().iadd(scratch, at[0]);
                let halves: [Value; HALVES] = std::array::from_fn(|half| {
                    e.b.ins().load(F32X4, flags(), from, bytes(*partial + half * HALF))
                });
                let sum = e.sum_lanes(&halves);
                let to = e.b.ins().iadd(target, at[1]);
                e.b.ins().store(flags(), sum, to, bytes(place.offset));
                vec![]
            });
        }
    }

    /// One tile: all rows, `width` machine registers each.
    #[expect(clippy::too_many_arguments, reason = "the position and shape of a tile")]
    fn tile(
        &mut self,
        matrix: Value,
        post: Value,
        width: usize,
        pre: usize,
        mask: Option<usize>,
        partials: &[usize],
        sums: Vec<Value>,
    ) -> Vec<Value> {
        let zero = self.b.ins().iconst(I64, 0);
        let position = Position { matrix, post, pre: zero };
        let fixed: Vec<Vec<Option<Value>>> = (0..width).map(|r| self.tile_values(position, r)).collect();
        let columns = self.nest.effects.iter().filter(|e| matches!(e, Effect::SumPre(..))).count();
        let mut carried = sums;
        let whole = carried.len();
        for _ in 0..columns * width {
            carried.push(self.constant(0.0));
        }
        let row = (width * HALF * 4) as i64;
        let results = self.counted(pre, &[(matrix, row), (zero, 4)], &carried, |e, at, sums| {
            let position = Position { matrix: at[0], post, pre: at[1] };
            e.row(position, width, mask, partials, &fixed, whole, sums)
        });
        self.store_columns(post, width, &results[whole..]);
        results[..whole].to_vec()
    }

    /// What a tile computes once per register: everything that varies with the post axis alone and
    /// is more than a load.
    fn tile_values(&mut self, position: Position, register: usize) -> Vec<Option<Value>> {
        let mut values = self.once.clone();
        for k in 0..self.nest.body.ops.len() {
            let op = self.nest.body.ops[k];
            if self.levels[k] == Level::Tile && !matches!(op, BodyOp::Load(_)) {
                let v = self.value(Id(k as u32), &mut values, Some(position), register);
                values[k] = Some(v);
            }
        }
        // Loads stay inside: they fold into the instructions that use them.
        for (k, op) in self.nest.body.ops.iter().enumerate() {
            if self.levels[k] == Level::Tile && matches!(op, BodyOp::Load(_)) {
                values[k] = None;
            }
            if matches!(op, BodyOp::Const(_)) && !self.keep_constants {
                values[k] = None;
            }
        }
        values
    }

    #[expect(clippy::too_many_arguments, reason = "the position and shape of a row")]
    fn row(
        &mut self,
        position: Position,
        width: usize,
        mask: Option<usize>,
        partials: &[usize],
        fixed: &[Vec<Option<Value>>],
        whole: usize,
        mut sums: Vec<Value>,
    ) -> Vec<Value> {
        let rows = self.row_values(position);
        let effects = self.nest.effects.clone();
        let mut row_sums: Vec<Value> = vec![];
        for partial in partials {
            let at = self.row_address(position);
            for half in 0..HALVES {
                row_sums.push(self.b.ins().load(F32X4, flags(), at, bytes(*partial + half * HALF)));
            }
        }
        for (register, tile_values) in fixed.iter().enumerate() {
            let mut here = tile_values.clone();
            for (k, v) in rows.iter().enumerate() {
                if v.is_some() && self.levels[k] == Level::Row {
                    here[k] = *v;
                }
            }
            let lanes = match mask {
                Some(count) if register + HALVES >= width => Some(self.lane_mask(count, register % HALVES)),
                _ => None,
            };
            let half = register % HALVES;
            let (mut column, mut total, mut row) = (0, half, half);
            let at = Some(position);
            for effect in &effects {
                match effect {
                    Effect::Store(access, v) => {
                        let v = self.value(*v, &mut here, at, register);
                        self.store(*access, v, at, register);
                    }
                    Effect::Add(access, v, w) => {
                        let v = self.value(*v, &mut here, at, register);
                        let w = w.map(|w| self.value(w, &mut here, at, register));
                        let old = self.load(*access, at, register);
                        let new = self.accumulate(old, v, w, None);
                        self.store(*access, new, at, register);
                    }
                    Effect::SumPre(_, v, w) => {
                        let v = self.value(*v, &mut here, at, register);
                        let w = w.map(|w| self.value(w, &mut here, at, register));
                        let k = whole + column * width + register;
                        sums[k] = self.accumulate(sums[k], v, w, None);
                        column += 1;
                    }
                    Effect::SumPost(_, v, w) => {
                        let v = self.value(*v, &mut here, at, register);
                        let w = w.map(|w| self.value(w, &mut here, at, register));
                        row_sums[row] = self.accumulate(row_sums[row], v, w, lanes);
                        row += HALVES;
                    }
                    Effect::SumAll(_, v, w) => {
                        let v = self.value(*v, &mut here, at, register);
                        let w = w.map(|w| self.value(w, &mut here, at, register));
                        sums[total] = self.accumulate(sums[total], v, w, lanes);
                        total += HALVES;
                    }
                    Effect::MaxAll(_, v) => {
                        let v = self.value(*v, &mut here, at, register);
                        sums[total] = self.maximum(sums[total], v, lanes);
                        total += HALVES;
                    }
                }
            }
        }
        for (partial, halves) in partials.iter().zip(row_sums.chunks(HALVES)) {
            let at = self.row_address(position);
            for (half, v) in halves.iter().enumerate() {
                self.b.ins().store(flags(), *v, at, bytes(*partial + half * HALF));
            }
        }
        sums
    }

    /// The address of this row's partial sums: one register per row, so [`LANES`] times the pre offset.
    fn row_address(&mut self, position: Position) -> Value {
        let scratch = self.pointer(Base::Scratch);
        let offset = self.b.ins().ishl_imm_s(position.pre, i64::from(LANES.ilog2()));
        self.b.ins().iadd(scratch, offset)
    }

    /// What varies with the pre axis alone: once per row.
    fn row_values(&mut self, position: Position) -> Vec<Option<Value>> {
        let mut values = self.once.clone();
        for k in 0..self.nest.body.ops.len() {
            if self.levels[k] == Level::Row {
                let v = self.value(Id(k as u32), &mut values, Some(position), 0);
                values[k] = Some(v);
            }
        }
        values
    }

    fn store_columns(&mut self, post: Value, width: usize, sums: &[Value]) {
        let targets: Vec<Place> = self
            .nest
            .effects
            .iter()
            .filter_map(|e| if let Effect::SumPre(place, ..) = e { Some(*place) } else { None })
            .collect();
        for (c, place) in targets.into_iter().enumerate() {
            let address = self.address(place.base, Some(post));
            for register in 0..width {
                let lane = (register * HALF * 4) as i32;
                self.b.ins().store(flags(), sums[c * width + register], address, bytes(place.offset) + lane);
            }
        }
    }
}
