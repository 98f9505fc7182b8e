//! Straight-line code: which value lies in which register, and the instruction for each operation.
//!
//! The code of one row of a tile is a list of [`Item`]s, known before the first is emitted. A value
//! is in a register, or at its [`Home`] in memory, or both. When registers run out, the value that
//! is needed last gives up its register; it is stored first if it has no home. An operand that is
//! at home and not worth a register is read by the instruction that uses it.

use super::asm::{Asm, BYTES, Constant, Source, VECTORS, Vector, WIDE_VECTORS, Width};
use super::place::Addresses;
use crate::loops::Access;
use crate::loops::body::BodyOp;
use iced_x86::Code;

/// A value: an operation of the body at one register of the tile.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Key(pub usize);

/// A register of the tile, or two neighbours that share one of the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Unit {
    /// The first register of the tile.
    pub first: usize,
    /// How many lanes.
    pub width: Width,
}

/// What is known of values, by key, before the first item.
pub(super) struct Values<'v> {
    /// Where they can be read.
    pub homes: &'v [Option<Home>],
    /// How many lanes they have. A value that is the same in all lanes may be used where fewer are needed.
    pub widths: &'v [Width],
    /// Whether there are 32 registers.
    pub is_wide: bool,
}

/// Where a value can be read again.
#[derive(Clone, Copy, Debug)]
pub(super) enum Home {
    /// A register on the stack.
    Slot(usize),
    /// The pool.
    Constant(Constant),
    /// An operand of the nest, at a register of the tile.
    Operand(Access, usize),
}

/// A running sum or maximum.
#[derive(Clone, Copy, Debug)]
pub(super) struct Running {
    /// Its register, if it has one throughout.
    pub vector: Option<Vector>,
    /// Where it lies otherwise.
    pub memory: RunningHome,
    /// How many lanes it has.
    pub width: Width,
}

/// Where a running value lies in memory.
#[derive(Clone, Copy, Debug)]
pub(super) enum RunningHome {
    /// On the stack.
    Slot(usize),
    /// Among the row sums, with this offset from their row.
    Partial(usize),
}

/// One thing to do.
#[derive(Clone, Debug)]
pub(super) enum Item {
    /// Compute a value from these.
    Value(Key, BodyOp, Vec<Key>),
    /// Store it in a stack slot, its home from now on.
    Keep(Key, usize),
    /// A register becomes the value.
    Move(Vector, Key),
    /// Memory becomes the value.
    Store(Access, Unit, Key),
    /// Memory becomes the value's lowest lane.
    StoreLowest(Access, Key),
    /// Memory += value, or += value · factor.
    Add(Access, Unit, Key, Option<Key>),
    /// Memory += value, or += value · factor: one number.
    AddLowest(Access, Key, Option<Key>),
    /// A running sum += value, or += value · factor; only the lanes below the last number count.
    Sum(Running, Unit, Key, Option<Key>, Option<usize>),
    /// A running maximum.
    Max(Running, Unit, Key, Option<usize>),
}

impl Item {
    fn operands(&self) -> Vec<Key> {
        match self {
            Item::Value(_, _, keys) => keys.clone(),
            Item::Move(_, k) => vec![*k],
            Item::Keep(k, _) | Item::Store(_, _, k) | Item::StoreLowest(_, k) | Item::Max(_, _, k, _) => {
                vec![*k]
            }
            Item::Add(_, _, v, w) | Item::AddLowest(_, v, w) | Item::Sum(_, _, v, w, _) => {
                std::iter::once(*v).chain(*w).collect()
            }
        }
    }
}

#[derive(Clone, Debug)]
struct Known {
    width: Width,
    vector: Option<Vector>,
    home: Option<Home>,
    /// Items that use it, the next one last.
    uses: Vec<usize>,
}

/// Registers while straight-line code is emitted.
pub(super) struct Straight<'a> {
    pub(super) asm: &'a mut Asm,
    pub(super) at: &'a Addresses,
    slots: &'a mut usize,
    values: Vec<Known>,
    /// How many registers there are.
    registers: usize,
    owner: [Option<Key>; WIDE_VECTORS],
    /// Registers that are not to be touched: running values, operands of the current instruction.
    pinned: [bool; WIDE_VECTORS],
    locked: [bool; WIDE_VECTORS],
}

impl<'a> Straight<'a> {
    /// Code over values that are known so far. `slots` counts stack slots.
    pub(super) fn new(
        asm: &'a mut Asm,
        at: &'a Addresses,
        slots: &'a mut usize,
        known: &Values<'_>,
        pinned: &[Vector],
    ) -> Self {
        let one = |(home, width): (&Option<Home>, &Width)| Known {
            width: *width,
            vector: None,
            home: *home,
            uses: vec![],
        };
        let values = known.homes.iter().zip(known.widths).map(one).collect();
        let mut straight = Straight {
            asm,
            at,
            slots,
            values,
            registers: if known.is_wide { WIDE_VECTORS } else { VECTORS },
            owner: [None; WIDE_VECTORS],
            pinned: [false; WIDE_VECTORS],
            locked: [false; WIDE_VECTORS],
        };
        pinned.iter().for_each(|v| straight.pinned[usize::from(v.0)] = true);
        straight
    }

    /// Values that lie in registers from the start, for as long as the code runs.
    pub(super) fn preset(&mut self, values: &[(Key, Vector)]) {
        for (key, v) in values {
            self.values[key.0] = Known { width: v.1, vector: Some(*v), home: None, uses: vec![] };
            self.pinned[usize::from(v.0)] = true;
        }
    }

    /// Emits the items.
    pub(super) fn run(&mut self, items: &[Item]) {
        for (position, item) in items.iter().enumerate().rev() {
            item.operands().iter().for_each(|k| self.values[k.0].uses.push(position));
        }
        for item in items {
            self.item(item);
            self.locked = [false; WIDE_VECTORS];
        }
    }

    fn item(&mut self, item: &Item) {
        match item {
            Item::Value(key, op, operands) => self.value(*key, *op, operands),
            Item::Keep(key, slot) => {
                let v = self.vector(*key);
                self.asm.store(self.at.slot(*slot), v);
                self.values[key.0].home = Some(Home::Slot(*slot));
                self.consume(&[*key]);
            }
            Item::Move(to, key) => {
                let from = self.source(*key, to.1);
                self.move_to(*to, from);
                self.consume(&[*key]);
            }
            Item::Store(access, unit, key) => {
                let v = self.vector(*key);
                self.before_store(*access, unit.first);
                let to = self.at.operand(self.asm, *access, unit.first);
                self.asm.store(to, v.with(unit.width));
                self.consume(&[*key]);
            }
            Item::StoreLowest(access, key) => {
                let v = self.vector(*key);
                self.before_store(*access, 0);
                let to = self.at.operand(self.asm, *access, 0);
                self.asm.store_lowest(to, v);
                self.consume(&[*key]);
            }
            Item::Add(access, unit, v, w) => {
                self.before_store(*access, unit.first);
                let sum = self.fresh(unit.width);
                let from = self.at.operand(self.asm, *access, unit.first);
                self.asm.load(sum, from);
                self.add(sum, unit.width, (*v, *w), None);
                let to = self.at.operand(self.asm, *access, unit.first);
                self.asm.store(to, sum);
            }
            Item::AddLowest(access, v, w) => {
                self.before_store(*access, 0);
                let sum = self.fresh(Width::Eight);
                let from = self.at.operand(self.asm, *access, 0);
                self.asm.broadcast(sum, from);
                self.add(sum, Width::Eight, (*v, *w), None);
                let to = self.at.operand(self.asm, *access, 0);
                self.asm.store_lowest(to, sum);
            }
            Item::Sum(running, unit, v, w, lanes) => {
                let sum = self.take_running(running);
                self.add(sum, unit.width, (*v, *w), *lanes);
                self.put_running(running, sum);
            }
            Item::Max(running, unit, v, lanes) => {
                let best = self.take_running(running);
                self.maximum(best, unit.width, *v, *lanes);
                self.put_running(running, best);
            }
        }
    }

    // --------------------------------------------------------------- registers

    fn next_use(&self, key: Key) -> usize {
        self.values[key.0].uses.last().copied().unwrap_or(usize::MAX)
    }

    fn free(&self) -> Option<Vector> {
        (0..self.registers)
            .find(|k| self.owner[*k].is_none() && !self.pinned[*k] && !self.locked[*k])
            .map(|k| Vector::eight(k as u8))
    }

    /// A register for a new value, locked until the item is done.
    fn fresh(&mut self, width: Width) -> Vector {
        let v = self.free().unwrap_or_else(|| self.evict());
        self.locked[usize::from(v.0)] = true;
        v.with(width)
    }

    fn evict(&mut self) -> Vector {
        let candidates = (0..self.registers).filter(|k| !self.pinned[*k] && !self.locked[*k]);
        let held = candidates.filter_map(|k| self.owner[k].map(|key| (k, key)));
        let (k, key) =
            held.max_by_key(|(_, key)| self.next_use(*key)).expect("some register is free or held");
        let known = &self.values[key.0];
        let v = Vector(k as u8, known.width);
        if known.home.is_none() && !known.uses.is_empty() {
            let slot = self.new_slot();
            self.asm.store(self.at.slot(slot), v);
            self.values[key.0].home = Some(Home::Slot(slot));
        }
        self.values[key.0].vector = None;
        self.owner[k] = None;
        v
    }

    fn new_slot(&mut self) -> usize {
        *self.slots += 1;
        *self.slots - 1
    }

    fn own(&mut self, v: Vector, key: Key) {
        self.owner[usize::from(v.0)] = Some(key);
        self.values[key.0].vector = Some(v);
    }

    /// Counts one use of each; registers of values that are not needed any more become free.
    fn consume(&mut self, keys: &[Key]) {
        for key in keys {
            let known = &mut self.values[key.0];
            known.uses.pop();
            if known.uses.is_empty()
                && let Some(v) = known.vector.take()
            {
                self.owner[usize::from(v.0)] = None;
                self.locked[usize::from(v.0)] = false;
            }
        }
    }

    /// The value in a register.
    fn vector(&mut self, key: Key) -> Vector {
        if let Some(v) = self.values[key.0].vector {
            self.locked[usize::from(v.0)] = true;
            return v;
        }
        let v = self.fresh(self.values[key.0].width);
        self.load_home(v, key);
        self.own(v, key);
        v
    }

    fn load_home(&mut self, v: Vector, key: Key) {
        match self.values[key.0].home {
            Some(Home::Operand(access @ (Access::Pre(_) | Access::Scalar(_)), register)) => {
                let from = self.at.operand(self.asm, access, register);
                self.asm.broadcast(v, from);
            }
            Some(home) => {
                let from = self.home(home, v.1);
                self.move_to(v, from);
            }
            None => unreachable!("a value is computed before it is used"),
        }
    }

    fn home(&mut self, home: Home, width: Width) -> Source {
        match home {
            Home::Slot(slot) => Source::Memory(self.at.slot(slot)),
            Home::Constant(c) => self.asm.constant_source(c, width),
            Home::Operand(access, register) => Source::Memory(self.at.operand(self.asm, access, register)),
        }
    }

    fn move_to(&mut self, to: Vector, from: Source) {
        match from {
            Source::Everywhere(m) => self.asm.broadcast(to, m),
            from => self.asm.two(Code::VEX_Vmovups_ymm_ymmm256, to, from),
        }
    }

    /// The value where it is, for so many lanes; in a register if it is needed again and there is one.
    fn source(&mut self, key: Key, width: Width) -> Source {
        let known = &self.values[key.0];
        let foldable = match known.home {
            Some(Home::Operand(Access::Pre(_) | Access::Scalar(_), _)) | None => false,
            Some(_) => known.vector.is_none() && (known.uses.len() == 1 || self.free().is_none()),
        };
        match known.home {
            Some(home) if foldable => self.home(home, width),
            _ => Source::Vector(self.vector(key)),
        }
    }

    /// An operand that a store is about to change and that is needed later goes to a register.
    fn before_store(&mut self, to: Access, register: usize) {
        for k in 0..self.values.len() {
            let known = &self.values[k];
            let Some(Home::Operand(from, r)) = known.home else { continue };
            if from.place() != to.place() || r != register {
                continue;
            }
            if !known.uses.is_empty() {
                self.vector(Key(k));
            }
            self.values[k].home = None;
        }
    }

    // -------------------------------------------------------------- operations

    fn value(&mut self, key: Key, op: BodyOp, x: &[Key]) {
        let width = self.values[key.0].width;
        let to = match op {
            BodyOp::Fma(..) => self.fused(x, Codes::FMA, width),
            BodyOp::FmaNeg(..) => self.fused(x, Codes::FMA_NEG, width),
            BodyOp::Select(..) => self.select(x, width),
            BodyOp::Const(_) | BodyOp::Load(_) => unreachable!("these have homes"),
            op if x.len() == 1 => self.unary(op, x[0], width),
            op => self.binary(op, x, width),
        };
        if self.values[key.0].uses.is_empty() {
            return;
        }
        self.own(to, key);
    }

    fn unary(&mut self, op: BodyOp, x: Key, width: Width) -> Vector {
        use Code::*;
        let with = |c: Constant, s: &Self| s.asm.constant_source(c, width);
        if let BodyOp::Sqrt(_) | BodyOp::Round(_) = op {
            let from = self.source(x, width);
            self.consume(&[x]);
            let to = self.fresh(width);
            if let BodyOp::Sqrt(_) = op {
                self.asm.two(VEX_Vsqrtps_ymm_ymmm256, to, from);
            } else {
                self.asm.round(to, from);
            }
            return to;
        }
        let v = self.vector(x);
        self.consume(&[x]);
        let to = self.fresh(width);
        match op {
            BodyOp::Neg(_) => self.asm.three(VEX_Vxorps_ymm_ymm_ymmm256, to, v, with(Constant::SIGN, self)),
            BodyOp::Abs(_) => {
                self.asm.three(VEX_Vandps_ymm_ymm_ymmm256, to, v, with(Constant::MAGNITUDE, self));
            }
            BodyOp::Not(_) => self.asm.three(VEX_Vxorps_ymm_ymm_ymmm256, to, v, with(Constant::ALL, self)),
            BodyOp::Number(_) => {
                self.asm.three(VEX_Vandps_ymm_ymm_ymmm256, to, v, with(Constant::ONE, self));
            }
            BodyOp::PowerOfTwo(_) => {
                self.asm.two(VEX_Vcvttps2dq_ymm_ymmm256, to, Source::Vector(v));
                self.asm.three(VEX_Vpaddd_ymm_ymm_ymmm256, to, to, with(Constant::BIAS, self));
                self.asm.shift(VEX_Vpslld_ymm_ymm_imm8, to, to, 23);
            }
            BodyOp::Exponent(_) => {
                self.asm.shift(VEX_Vpsrld_ymm_ymm_imm8, to, v, 23);
                self.asm.three(VEX_Vpsubd_ymm_ymm_ymmm256, to, to, with(Constant::BIAS, self));
                self.asm.two(VEX_Vcvtdq2ps_ymm_ymmm256, to, Source::Vector(to));
            }
            BodyOp::Mantissa(_) => {
                self.asm.three(VEX_Vandps_ymm_ymm_ymmm256, to, v, with(Constant::FRACTION, self));
                self.asm.three(VEX_Vorps_ymm_ymm_ymmm256, to, to, with(Constant::ONE, self));
            }
            other => unreachable!("{other:?} has more operands"),
        }
        to
    }

    fn binary(&mut self, op: BodyOp, x: &[Key], width: Width) -> Vector {
        use Code::*;
        let commutes = matches!(
            op,
            BodyOp::Add(..) | BodyOp::Mul(..) | BodyOp::Equal(..) | BodyOp::And(..) | BodyOp::Keep(..)
        );
        // The first source must be a register.
        let swap = commutes && self.values[x[0].0].vector.is_none() && self.values[x[1].0].vector.is_some();
        let (first, second) = if swap { (x[1], x[0]) } else { (x[0], x[1]) };
        let a = self.vector(first);
        let b = self.source(second, width);
        self.consume(x);
        let to = self.fresh(width);
        match op {
            BodyOp::Add(..) => self.asm.three(VEX_Vaddps_ymm_ymm_ymmm256, to, a, b),
            BodyOp::Sub(..) => self.asm.three(VEX_Vsubps_ymm_ymm_ymmm256, to, a, b),
            BodyOp::Mul(..) => self.asm.three(VEX_Vmulps_ymm_ymm_ymmm256, to, a, b),
            BodyOp::Div(..) => self.asm.three(VEX_Vdivps_ymm_ymm_ymmm256, to, a, b),
            BodyOp::Min(..) => self.asm.three(VEX_Vminps_ymm_ymm_ymmm256, to, a, b),
            BodyOp::Max(..) => self.asm.three(VEX_Vmaxps_ymm_ymm_ymmm256, to, a, b),
            BodyOp::And(..) | BodyOp::Keep(..) => self.asm.three(VEX_Vandps_ymm_ymm_ymmm256, to, a, b),
            BodyOp::Less(..) => self.asm.compare(to, a, b, 1),
            BodyOp::LessEqual(..) => self.asm.compare(to, a, b, 2),
            BodyOp::Equal(..) => self.asm.compare(to, a, b, 0),
            other => unreachable!("{other:?} has another number of operands"),
        }
        to
    }

    fn select(&mut self, x: &[Key], width: Width) -> Vector {
        let (mask, otherwise) = (self.vector(x[0]), self.vector(x[2]));
        let chosen = self.source(x[1], width);
        self.consume(x);
        let to = self.fresh(width);
        self.asm.blend(to, otherwise, chosen, mask);
        to
    }

    /// Whether a value is in a register that this use frees.
    fn dies(&self, key: Key, x: &[Key]) -> Option<Vector> {
        let here = x.iter().filter(|k| **k == key).count();
        let vector = self.values[key.0].vector.filter(|v| !self.pinned[usize::from(v.0)]);
        vector.filter(|_| here == 1 && self.values[key.0].uses.len() == 1)
    }

    /// `x0 · x1 + x2`, rounded once; one operand's register becomes the result.
    fn fused(&mut self, x: &[Key], codes: Codes, width: Width) -> Vector {
        let (a, b, c) = (x[0], x[1], x[2]);
        if let Some(to) = self.dies(c, x) {
            let to = to.with(width);
            self.lock(to);
            let (a, b) = self.product(a, b, width);
            self.asm.three(codes.c, to, a, b);
            return self.result(to, x);
        }
        for (one, other) in [(a, b), (b, a)] {
            let Some(to) = self.dies(one, x).map(|v| v.with(width)) else { continue };
            self.lock(to);
            if self.values[c.0].vector.is_none() {
                let other = self.vector(other);
                let c = self.source(c, width);
                self.asm.three(codes.b, to, other, c);
            } else {
                let c = self.vector(c);
                let other = self.source(other, width);
                self.asm.three(codes.a, to, c, other);
            }
            return self.result(to, x);
        }
        let (a, b) = self.product(a, b, width);
        let to = match (self.values[c.0].vector, self.values[c.0].home) {
            (Some(c), _) => {
                self.lock(c);
                let to = self.fresh(width);
                self.asm.two(Code::VEX_Vmovaps_ymm_ymmm256, to, Source::Vector(c));
                to
            }
            _ => {
                let to = self.fresh(width);
                self.load_home(to, c);
                to
            }
        };
        self.asm.three(codes.c, to, a, b);
        self.result(to, x)
    }

    fn lock(&mut self, v: Vector) {
        self.locked[usize::from(v.0)] = true;
    }

    /// Two factors, the first in a register.
    fn product(&mut self, a: Key, b: Key, width: Width) -> (Vector, Source) {
        let swap = self.values[a.0].vector.is_none() && self.values[b.0].vector.is_some();
        let (a, b) = if swap { (b, a) } else { (a, b) };
        (self.vector(a), self.source(b, width))
    }

    /// Marks the register of the result, and the operands as used.
    fn result(&mut self, to: Vector, x: &[Key]) -> Vector {
        self.consume(x);
        self.lock(to);
        to
    }

    // ----------------------------------------------------------------- effects

    fn take_running(&mut self, running: &Running) -> Vector {
        match running.vector {
            Some(v) => v,
            None => {
                let v = self.fresh(running.width);
                let from = self.at.running(self.asm, running.memory);
                self.asm.load(v, from);
                v
            }
        }
    }

    fn put_running(&mut self, running: &Running, v: Vector) {
        if running.vector.is_none() {
            let to = self.at.running(self.asm, running.memory);
            self.asm.store(to, v);
        }
    }

    /// `sum += v · w`, or `sum += v`, in the lanes that count, for values of so many lanes.
    fn add(&mut self, sum: Vector, width: Width, (v, w): (Key, Option<Key>), lanes: Option<usize>) {
        let keys: Vec<Key> = std::iter::once(v).chain(w).collect();
        match (w, lanes) {
            (None, None) => {
                let v = self.source(v, sum.1);
                self.asm.three(Code::VEX_Vaddps_ymm_ymm_ymmm256, sum, sum, v);
            }
            (Some(w), None) => {
                let (v, w) = self.product(v, w, sum.1);
                self.asm.three(Code::VEX_Vfmadd231ps_ymm_ymm_ymmm256, sum, v, w);
            }
            (None, Some(lanes)) => {
                let v = self.masked(v, lanes);
                self.asm.three(Code::VEX_Vaddps_ymm_ymm_ymmm256, sum, sum, Source::Vector(v));
            }
            (Some(w), Some(lanes)) => {
                let (v, w) = (self.masked(v, lanes), self.masked(w, lanes));
                self.asm.three(Code::VEX_Vfmadd231ps_ymm_ymm_ymmm256, sum, v, Source::Vector(w));
            }
        }
        if sum.1 != width {
            self.add_upper(sum, v, w);
        }
        self.consume(&keys);
    }

    /// The same with the upper halves, after the lower ones.
    fn add_upper(&mut self, sum: Vector, v: Key, w: Option<Key>) {
        let v = self.upper(v);
        match w {
            None => self.asm.three(Code::VEX_Vaddps_ymm_ymm_ymmm256, sum, sum, v),
            Some(w) => {
                let w = self.upper(w);
                let (v, w) = match (v, w) {
                    (v, Source::Vector(w)) => (w, v),
                    (Source::Vector(v), w) => (v, w),
                    (v, w) => {
                        let to = self.fresh(Width::Eight);
                        self.move_to(to, v);
                        (to, w)
                    }
                };
                self.asm.three(Code::VEX_Vfmadd231ps_ymm_ymm_ymmm256, sum, v, w);
            }
        }
    }

    /// The upper eight lanes of a value.
    fn upper(&mut self, key: Key) -> Source {
        let home = match self.values[key.0].home {
            Some(Home::Operand(Access::Matrix(_) | Access::Post(_), _) | Home::Slot(_)) => {
                self.values[key.0].home
            }
            _ => None,
        };
        if let Some(home) = home
            && let Source::Memory(mut place) = self.home(home, Width::Eight)
        {
            place.displacement += BYTES;
            return Source::Memory(place);
        }
        let (from, to) = (self.vector(key), self.fresh(Width::Eight));
        self.asm.upper_eight(to, from);
        Source::Vector(to)
    }

    fn masked(&mut self, key: Key, lanes: usize) -> Vector {
        let v = self.vector(key);
        let to = self.fresh(Width::Eight);
        let mask = Source::Memory(self.asm.constant(Constant::Lanes(lanes)));
        self.asm.three(Code::VEX_Vandps_ymm_ymm_ymmm256, to, v, mask);
        to
    }

    /// `best = v > best ? v : best`, for a value of so many lanes.
    fn maximum(&mut self, best: Vector, width: Width, v: Key, lanes: Option<usize>) {
        let x = self.vector(v);
        let x = match lanes {
            None => x,
            Some(lanes) => {
                let (mask, to) = (self.fresh(Width::Eight), self.fresh(Width::Eight));
                let words = self.asm.constant(Constant::Lanes(lanes));
                self.asm.load(mask, words);
                self.asm.blend(to, best, Source::Vector(x), mask);
                to
            }
        };
        self.asm.three(Code::VEX_Vmaxps_ymm_ymm_ymmm256, best, x, Source::Vector(best));
        if best.1 != width {
            let upper = self.fresh(Width::Eight);
            self.asm.upper_eight(upper, x);
            self.asm.three(Code::VEX_Vmaxps_ymm_ymm_ymmm256, best, upper, Source::Vector(best));
        }
        self.consume(&[v]);
    }
}

/// The three spellings of a fused operation: which operand the result replaces.
#[derive(Clone, Copy)]
struct Codes {
    /// `a = a · third + second`
    a: Code,
    /// `b = b · second + third`
    b: Code,
    /// `c = second · third + c`
    c: Code,
}

impl Codes {
    const FMA: Codes = Codes {
        a: Code::VEX_Vfmadd132ps_ymm_ymm_ymmm256,
        b: Code::VEX_Vfmadd213ps_ymm_ymm_ymmm256,
        c: Code::VEX_Vfmadd231ps_ymm_ymm_ymmm256,
    };
    const FMA_NEG: Codes = Codes {
        a: Code::VEX_Vfnmadd132ps_ymm_ymm_ymmm256,
        b: Code::VEX_Vfnmadd213ps_ymm_ymm_ymmm256,
        c: Code::VEX_Vfnmadd231ps_ymm_ymm_ymmm256,
    };
}
