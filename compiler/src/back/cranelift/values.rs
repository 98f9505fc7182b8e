//! Values of a nest: operations, loads and sums on registers of the loop IR, each two halves of 128 bits.

use super::{HALF, NestEmitter, Position, bytes, flags};
use crate::loops::body::{BodyOp, Id};
use crate::loops::{Access, Base, LANES, Place};
use cranelift_codegen::ir::condcodes::FloatCC;
use cranelift_codegen::ir::types::{F32, F32X4, I32X4, I64};
use cranelift_codegen::ir::{ConstantData, Endianness, InstBuilder, MemFlagsData, Type, Value};
use cranelift_frontend::FunctionBuilder;

impl<'f> NestEmitter<'_, 'f> {
    pub(super) fn pointer(&mut self, base: Base) -> Value {
        let slot = base.slot();
        if let Some(p) = self.pointers.get(&slot) {
            return *p;
        }
        let p = self.b.ins().load(I64, flags(), self.bases, (slot * 8) as i32);
        self.pointers.insert(slot, p);
        p
    }

    pub(super) fn constant(&mut self, c: f32) -> Value {
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

    pub(super) fn splat_load(&mut self, address: Value, offset: i32) -> Value {
        let s = self.b.ins().load(F32, flags(), address, offset);
        self.b.ins().splat(F32X4, s)
    }

    /// A value of the body at a point; invariants come from outside, the rest is computed once.
    pub(super) fn value(
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

    pub(super) fn op(
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

    pub(super) fn integers(&mut self, c: i32) -> Value {
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

    pub(super) fn address(&mut self, base: Base, offset: Option<Value>) -> Value {
        let p = self.pointer(base);
        match offset {
            Some(o) => self.b.ins().iadd(p, o),
            None => p,
        }
    }

    pub(super) fn load(&mut self, access: Access, at: Option<Position>, register: usize) -> Value {
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
    pub(super) fn sum_lanes(&mut self, halves: &[Value]) -> Value {
        let sums: Vec<Value> = halves.iter().map(|v| self.sum_half(*v)).collect();
        self.b.ins().fadd(sums[0], sums[1])
    }

    fn sum_half(&mut self, v: Value) -> Value {
        let x: [Value; HALF] = std::array::from_fn(|lane| self.b.ins().extractlane(v, lane as u8));
        let (left, right) = (self.b.ins().fadd(x[0], x[1]), self.b.ins().fadd(x[2], x[3]));
        self.b.ins().fadd(left, right)
    }

    pub(super) fn max_lanes(&mut self, halves: &[Value]) -> Value {
        let mut best = self.b.ins().extractlane(halves[0], 0);
        for lane in 1..LANES {
            let x = self.b.ins().extractlane(halves[lane / HALF], (lane % HALF) as u8);
            let c = self.b.ins().fcmp(FloatCC::LessThan, best, x);
            best = self.b.ins().select(c, x, best);
        }
        best
    }

    /// Bits set in the lanes below `count`, in a half of a register.
    pub(super) fn lane_mask(&mut self, count: usize, half: usize) -> Value {
        let set = |k: usize| if half * HALF + k < count { -1i32 } else { 0 };
        let data: Vec<u8> = (0..HALF).flat_map(|k| set(k).to_le_bytes()).collect();
        let handle = self.b.func.dfg.constants.insert(ConstantData::from(data));
        let mask = self.b.ins().vconst(I32X4, handle);
        self.bits(F32X4, mask)
    }

    /// `acc + v·w` (or `acc + v`), only in the lanes of the mask.
    pub(super) fn accumulate(
        &mut self,
        acc: Value,
        v: Value,
        w: Option<Value>,
        mask: Option<Value>,
    ) -> Value {
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

    pub(super) fn maximum(&mut self, acc: Value, v: Value, mask: Option<Value>) -> Value {
        let v = match mask {
            Some(m) => self.b.ins().bitselect(m, v, acc),
            None => v,
        };
        let c = self.compare(FloatCC::LessThan, acc, v);
        self.b.ins().bitselect(c, v, acc)
    }

    pub(super) fn store_scalar(&mut self, place: Place, v: Value) {
        let address = self.address(place.base, None);
        self.b.ins().store(flags(), v, address, bytes(place.offset));
    }
}
