//! Loop IR → machine code through Cranelift, with 128-bit vectors.
//!
//! Every routine becomes a function `extern "C" fn(*const *mut f32)`: its argument is an array of
//! pointers, one per entry of [`crate::loops::Base::ALL`]. Cranelift neither vectorises nor unrolls, and its
//! optimiser makes these loops slower (it sinks multiply-adds until accumulators spill), so it
//! runs without, and this module emits code that needs none: invariants are computed outside of
//! the loops they do not vary with. A register of the loop IR is two of Cranelift's: its halves.

mod nests;
mod values;

use super::level::{Level, levels};
/// The order of [`Kernels::entries`].
pub use crate::loops::NAMES as ROUTINES;
use crate::loops::body::BodyOp;
use crate::loops::{Extent, LANES, Nest, Program, Routine, routines};
use cranelift_codegen::ir::types::I64;
use cranelift_codegen::ir::{AbiParam, InstBuilder, MemFlagsData, Value};
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
}
