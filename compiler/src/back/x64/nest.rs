//! Loops: the code of one nest.

use super::asm::{Asm, BYTES, Constant, Source, VECTORS, Vector, Width, based};
use super::place::{Addresses, LIVE_BYTES, POST, PRE, point};
use super::straight::{Home, Item, Key, Running, RunningHome, Straight, Unit, Values};
use super::wide::{self, Vectors};
use crate::back::level::{Level, levels};
use crate::loops::body::{BodyOp, Id};
use crate::loops::{Access, Base, Effect, Extent, LANES, Nest, PARTIALS, Place, Tiles};
use iced_x86::{Code, Instruction, Register};

/// Registers that running sums may take; the others hold values.
const RUNNING: usize = 10;

/// The same in a nest without other values than loads.
const RUNNING_ALONE: usize = 12;

/// The same of 32 registers.
const WIDE_RUNNING: usize = 18;

/// The same of 32 registers, without other values than loads.
const WIDE_RUNNING_ALONE: usize = 24;

/// Registers that nothing owns between stretches of straight-line code.
const SPARE: [Vector; 3] = [Vector(15, Width::Eight), Vector(14, Width::Eight), Vector(13, Width::Eight)];

/// Emits one nest; returns how many registers it needs on the stack.
pub(super) fn emit(asm: &mut Asm, nest: &Nest, widest: usize) -> usize {
    let at = Addresses::new(nest, asm.slot_bytes());
    let is_wide = asm.vectors == Vectors::Avx512 && wide::gains(nest);
    let mut emitter = Emitter::new(asm, nest, at, is_wide);
    let here = emitter.asm.here();
    emitter.asm.remark(&format!("nest, at {here:#x}: {}", nest.label));
    emitter.at.load(emitter.asm);
    match nest.extent {
        Extent::Scalar => emitter.scalar(),
        Extent::Vector(n) => emitter.vector(n),
        Extent::Matrix { post, pre } | Extent::Log { post, pre } => emitter.matrix(post, pre, widest),
    }
    emitter.slots
}

pub(super) struct Emitter<'a> {
    pub(super) asm: &'a mut Asm,
    pub(super) nest: &'a Nest,
    pub(super) at: Addresses,
    levels: Vec<Level>,
    /// Homes of the values that do not vary with the post axis.
    homes: Vec<Option<Home>>,
    pub(super) slots: usize,
    pub(super) width: usize,
    /// Whether registers have sixteen lanes, and there are 32.
    is_wide: bool,
    /// Whether the tile's neighbours share a register.
    pub(super) is_paired: bool,
}

/// Items under construction.
pub(super) struct Build {
    pub(super) items: Vec<Item>,
    pub(super) homes: Vec<Option<Home>>,
    widths: Vec<Width>,
    done: Vec<bool>,
    /// Sums in memory that are in registers meanwhile: where they lie, and their last values.
    sums: Vec<(Access, Key)>,
}

impl Build {
    /// A value that the body does not have.
    fn add(&mut self, width: Width, home: Option<Home>) -> Key {
        self.homes.push(home);
        self.widths.push(width);
        self.done.push(false);
        Key(self.homes.len() - 1)
    }
}

/// The running values of a nest.
struct Sums {
    /// Over the whole extent.
    totals: Vec<Running>,
    /// Over post, for the current row.
    rows: Vec<Running>,
    /// Over pre, by effect and unit of the tile.
    columns: Vec<Vec<Running>>,
}

impl Sums {
    fn pinned(&self) -> Vec<Vector> {
        let all = self.totals.iter().chain(&self.rows).chain(self.columns.iter().flatten());
        all.filter_map(|r| r.vector).collect()
    }
}

impl<'a> Emitter<'a> {
    pub(super) fn new(asm: &'a mut Asm, nest: &'a Nest, at: Addresses, is_wide: bool) -> Emitter<'a> {
        let levels = levels(&nest.body);
        Emitter { asm, nest, at, levels, homes: vec![], slots: 0, width: 1, is_wide, is_paired: false }
    }

    /// The registers of the tile, two together where they share one of the machine.
    pub(super) fn units(&self) -> Vec<Unit> {
        let (pairs, mut units) = (if self.is_paired { self.width / 2 } else { 0 }, vec![]);
        units.extend((0..pairs).map(|k| Unit { first: 2 * k, width: Width::Sixteen }));
        units.extend((2 * pairs..self.width).map(|first| Unit { first, width: Width::Eight }));
        units
    }

    fn op(&self, id: usize) -> BodyOp {
        self.nest.body.ops[id]
    }

    /// Values that vary with the post axis exist once for each register of the tile.
    pub(super) fn key(&self, id: Id, register: usize) -> Key {
        let n = self.nest.body.ops.len();
        match self.levels[id.index()] {
            Level::Once | Level::Row => Key(id.index()),
            Level::Tile | Level::Point => Key(n * (register + 1) + id.index()),
        }
    }

    /// Starts a list of items; constants, operands, and what has been kept have homes.
    pub(super) fn build(&self, kept: &[(Key, usize)]) -> Build {
        let n = self.nest.body.ops.len();
        let mut homes = vec![None; n * (self.width + 1)];
        homes[..self.homes.len()].copy_from_slice(&self.homes);
        let widest = if self.is_wide { Width::Sixteen } else { Width::Eight };
        let mut widths = vec![widest; homes.len()];
        for Unit { first: register, width } in self.units() {
            widths[n * (register + 1)..][..n].fill(width);
            for id in 0..n {
                let home = &mut homes[self.key(Id(id as u32), register).0];
                match self.op(id) {
                    BodyOp::Const(c) => *home = Some(Home::Constant(Constant::Splat(c.to_bits()))),
                    BodyOp::Load(access) if home.is_none() => *home = Some(Home::Operand(access, register)),
                    _ => {}
                }
            }
        }
        for (key, slot) in kept {
            homes[key.0] = Some(Home::Slot(*slot));
        }
        let done = vec![false; homes.len()];
        Build { items: vec![], homes, widths, done, sums: vec![] }
    }

    /// Adds what a value needs, and the value.
    pub(super) fn need(&self, build: &mut Build, id: Id, register: usize) -> Key {
        let key = self.key(id, register);
        if !build.done[key.0] && build.homes[key.0].is_none() {
            build.done[key.0] = true;
            let op = self.op(id.index());
            let operands = op.operands().into_iter().map(|o| self.need(build, o, register)).collect();
            build.items.push(Item::Value(key, op, operands));
        }
        key
    }

    fn run(&mut self, build: &Build, pinned: &[Vector]) {
        self.run_with(build, pinned, &[]);
    }

    /// With values that lie in registers from the start.
    pub(super) fn run_with(&mut self, build: &Build, pinned: &[Vector], held: &[(Key, Vector)]) {
        let mut slots = self.slots;
        let values = Values { homes: &build.homes, widths: &build.widths, is_wide: self.is_wide };
        let mut straight = Straight::new(self.asm, &self.at, &mut slots, &values, pinned);
        straight.preset(held);
        straight.run(&build.items);
        self.slots = slots;
    }

    fn new_slot(&mut self) -> usize {
        self.slots += 1;
        self.slots - 1
    }

    /// Whether some effect, or some value of another level, uses a value.
    fn is_border(&self, id: usize) -> bool {
        let is = |o: &Id| o.index() == id;
        let by_values = self.nest.body.ops.iter().enumerate();
        let by_effects = self.nest.effects.iter().flat_map(effect_operands);
        by_values
            .filter(|(k, _)| self.levels[*k] != self.levels[id])
            .any(|(_, op)| op.operands().iter().any(is))
            || by_effects.into_iter().any(|o| is(&o))
    }

    /// Computes what does not vary, once, onto the stack.
    fn once(&mut self) {
        let ids: Vec<usize> = (0..self.nest.body.ops.len())
            .filter(|k| self.levels[*k] == Level::Once && !matches!(self.op(*k), BodyOp::Const(_)))
            .filter(|k| self.is_border(*k))
            .collect();
        let mut build = self.build(&[]);
        let mut kept = vec![];
        for id in ids {
            let key = self.need(&mut build, Id(id as u32), 0);
            let slot = self.new_slot();
            build.items.push(Item::Keep(key, slot));
            kept.push((key, slot));
        }
        self.run(&build, &[]);
        self.homes = vec![None; self.nest.body.ops.len()];
        for (key, slot) in kept {
            self.homes[key.0] = Some(Home::Slot(slot));
        }
    }

    // ------------------------------------------------------- scalars and vectors

    fn scalar(&mut self) {
        let mut build = self.build(&[]);
        for effect in &self.nest.effects {
            let item = match effect {
                Effect::Store(access, v) => Item::StoreLowest(*access, self.need(&mut build, *v, 0)),
                Effect::Add(access, v, w) => {
                    let v = self.need(&mut build, *v, 0);
                    Item::AddLowest(*access, v, w.map(|w| self.need(&mut build, w, 0)))
                }
                other => unreachable!("{other:?} in a scalar nest"),
            };
            build.items.push(item);
        }
        self.run(&build, &[]);
    }

    fn vector(&mut self, n: usize) {
        self.once();
        let sums = self.running();
        self.start_totals(&sums);
        self.asm.set(POST, 0);
        let (whole, rest) = (n / LANES, n % LANES);
        if whole > 0 {
            let header = self.header();
            self.body(&sums, None);
            self.asm.advance(POST, BYTES as i32);
            if whole > 1 {
                self.asm.loop_while_not(POST, whole as i32 * BYTES as i32, header);
            }
        }
        if rest > 0 {
            self.body(&sums, Some(rest));
        }
        self.finish_totals(&sums);
    }

    pub(super) fn header(&mut self) -> u64 {
        self.asm.align();
        self.asm.here()
    }

    /// All effects at all registers of the tile. Of the last, only `rest` lanes count in sums.
    fn body(&mut self, sums: &Sums, rest: Option<usize>) {
        self.body_with(sums, rest, &[]);
    }

    fn body_with(&mut self, sums: &Sums, rest: Option<usize>, kept: &[(Key, usize)]) {
        let mut build = self.build(kept);
        for (k, unit) in self.units().into_iter().enumerate() {
            let lanes = rest.filter(|_| unit.first + 1 == self.width);
            self.point(&mut build, sums, (k, unit), lanes);
        }
        self.run(&build, &sums.pinned());
    }

    /// All effects at one unit of the tile, which is its `number`-th.
    fn point(&self, build: &mut Build, sums: &Sums, (number, unit): (usize, Unit), lanes: Option<usize>) {
        let (mut totals, mut rows) = (sums.totals.iter(), sums.rows.iter());
        let mut columns = sums.columns.iter();
        for effect in &self.nest.effects {
            let keys: Vec<Key> =
                effect_operands(effect).into_iter().map(|o| self.need(build, o, unit.first)).collect();
            let (v, w) = (keys[0], keys.get(1).copied());
            let missing = "there is one running value for each effect";
            let item = match effect {
                Effect::Store(access, _) => Item::Store(*access, unit, v),
                Effect::Add(access @ Access::Matrix(_), ..) if self.is_matrix() => {
                    self.add_in_register(build, *access, unit, v, w);
                    continue;
                }
                Effect::Add(access, ..) => Item::Add(*access, unit, v, w),
                Effect::SumPre(..) => Item::Sum(columns.next().expect(missing)[number], unit, v, w, None),
                Effect::SumPost(..) => Item::Sum(*rows.next().expect(missing), unit, v, w, lanes),
                Effect::SumAll(..) => Item::Sum(*totals.next().expect(missing), unit, v, w, lanes),
                Effect::MaxAll(..) => Item::Max(*totals.next().expect(missing), unit, v, lanes),
            };
            build.items.push(item);
        }
        for (access, sum) in std::mem::take(&mut build.sums) {
            build.items.push(Item::Store(access, unit, sum));
        }
    }

    fn is_matrix(&self) -> bool {
        matches!(self.nest.extent, Extent::Matrix { .. })
    }

    /// Adds to memory that several effects may add to: it is read before the first and written after the last.
    fn add_in_register(&self, build: &mut Build, access: Access, unit: Unit, v: Key, w: Option<Key>) {
        let known = build.sums.iter().position(|(place, _)| *place == access);
        let sum = match known {
            Some(k) => build.sums.swap_remove(k).1,
            None => build.add(unit.width, Some(Home::Operand(access, unit.first))),
        };
        let next = build.add(unit.width, None);
        let none = Id(0);
        build.items.push(match w {
            Some(w) => Item::Value(next, BodyOp::Fma(none, none, none), vec![v, w, sum]),
            None => Item::Value(next, BodyOp::Add(none, none), vec![sum, v]),
        });
        build.sums.push((access, next));
    }

    // ------------------------------------------------------------ running values

    /// Registers for the running values of the tile: those that are used most come first.
    fn running(&mut self) -> Sums {
        let (units, mut free) = (self.units(), self.running_registers().into_iter());
        let mut take = |memory: RunningHome, width: Width| {
            let vector = free.next().map(|v| v.with(width));
            Running { vector, memory, width }
        };
        let pre = match self.nest.extent {
            Extent::Matrix { pre, .. } | Extent::Log { pre, .. } => pre,
            Extent::Scalar | Extent::Vector(_) => 0,
        };
        let count = |f: fn(&Effect) -> bool| self.nest.effects.iter().filter(|e| f(e)).count();
        let totals = count(|e| matches!(e, Effect::SumAll(..) | Effect::MaxAll(..)));
        let rows = count(|e| matches!(e, Effect::SumPost(..)));
        let columns = count(|e| matches!(e, Effect::SumPre(..)));
        let first = self.slots;
        self.slots += totals + columns * units.len();
        let totals =
            (0..totals).map(|k| take(RunningHome::Slot(first + k), Width::Eight)).collect::<Vec<_>>();
        let partial = |k: usize| RunningHome::Partial(PARTIALS + k * pre * LANES);
        let rows = (0..rows).map(|k| take(partial(k), Width::Eight)).collect();
        let first = first + totals.len();
        let mut column = |c: usize| {
            let slots = units.iter().enumerate().map(|(k, u)| (first + c * units.len() + k, u.width));
            slots.map(|(slot, width)| take(RunningHome::Slot(slot), width)).collect()
        };
        let columns = (0..columns).map(&mut column).collect();
        Sums { totals, rows, columns }
    }

    /// Registers that running values may take. The spare ones are never among them.
    fn running_registers(&self) -> Vec<Vector> {
        let is_load = |op: &BodyOp| matches!(op, BodyOp::Load(_));
        let count = match (self.nest.body.ops.iter().all(is_load), self.is_wide) {
            (true, false) => RUNNING_ALONE,
            (false, false) => RUNNING,
            (true, true) => WIDE_RUNNING_ALONE,
            (false, true) => WIDE_RUNNING,
        };
        (0..).map(Vector::eight).filter(|v| !SPARE.contains(v)).take(count).collect()
    }

    fn start_totals(&mut self, sums: &Sums) {
        let totals =
            self.nest.effects.iter().filter(|e| matches!(e, Effect::SumAll(..) | Effect::MaxAll(..)));
        for (effect, running) in totals.zip(&sums.totals) {
            let v = running.vector.unwrap_or(SPARE[0]);
            if let Effect::MaxAll(..) = effect {
                let lowest = self.asm.constant(Constant::LOWEST);
                self.asm.load(v, lowest);
            } else {
                self.asm.zero(v);
            }
            self.put(running, v);
        }
    }

    fn put(&mut self, running: &Running, v: Vector) {
        if running.vector.is_none() {
            let to = self.at.running(self.asm, running.memory);
            self.asm.store(to, v);
        }
    }

    fn get(&mut self, running: &Running) -> Vector {
        running.vector.unwrap_or_else(|| {
            let spare = SPARE[0].with(running.width);
            let from = self.at.running(self.asm, running.memory);
            self.asm.load(spare, from);
            spare
        })
    }

    fn finish_totals(&mut self, sums: &Sums) {
        let mut totals = sums.totals.iter();
        for effect in &self.nest.effects {
            let is_sum = matches!(effect, Effect::SumAll(..));
            if !is_sum && !matches!(effect, Effect::MaxAll(..)) {
                continue;
            }
            let running = totals.next().expect("there is one for each effect");
            let mut v = self.get(running);
            if usize::from(v.0) >= VECTORS {
                // What follows knows the lower registers only.
                self.asm.two(Code::VEX_Vmovaps_ymm_ymmm256, SPARE[0], Source::Vector(v));
                v = SPARE[0];
            }
            let result = if is_sum { self.sum_lanes(v) } else { self.max_lanes(v) };
            let place = effect.place();
            let to = self.at.number(self.asm, place.base, place.offset);
            self.asm.store_lowest(to, result);
        }
    }

    /// Neighbouring lanes, then neighbouring pairs, then the halves.
    fn sum_lanes(&mut self, v: Vector) -> Vector {
        let (to, upper) = (SPARE[0], SPARE[1]);
        self.asm.three(Code::VEX_Vhaddps_ymm_ymm_ymmm256, to, v, Source::Vector(v));
        self.asm.three(Code::VEX_Vhaddps_ymm_ymm_ymmm256, to, to, Source::Vector(to));
        self.asm.upper_half(upper, to);
        self.asm.add_lowest(to, to, upper);
        to
    }

    fn max_lanes(&mut self, v: Vector) -> Vector {
        let slot = self.new_slot();
        self.asm.store(self.at.slot(slot), v);
        let (best, x) = (SPARE[0], SPARE[1]);
        for lane in 0..LANES {
            let mut from = self.at.slot(slot);
            from.displacement += lane as i64 * 4;
            self.asm.push(Instruction::with2(
                Code::VEX_Vmovss_xmm_m32,
                if lane == 0 { best.xmm() } else { x.xmm() },
                from,
            ));
            if lane > 0 {
                self.asm.push(Instruction::with3(
                    Code::VEX_Vmaxss_xmm_xmm_xmmm32,
                    best.xmm(),
                    x.xmm(),
                    best.xmm(),
                ));
            }
        }
        best
    }

    // ---------------------------------------------------------------- matrices

    fn matrix(&mut self, post: usize, pre: usize, widest: usize) {
        self.clear_partials(pre);
        if self.is_log() {
            self.clear_columns(post);
        }
        self.once();
        let tiles = Tiles::of(post, widest);
        let is_masked = !post.is_multiple_of(LANES) && self.nest.effects.iter().any(Effect::sums_over_post);
        let rest = Some(post % LANES).filter(|_| is_masked);
        self.width = 0;
        let totals = self.running();
        self.start_totals(&totals);
        self.asm.set(POST, 0);
        let groups = [(tiles.wide, tiles.width), (tiles.narrow, tiles.width - 1)];
        let last = groups.iter().rposition(|(count, _)| *count > 0);
        let mut end = 0;
        for (k, (count, width)) in groups.into_iter().enumerate() {
            let masked = usize::from(count > 0 && last == Some(k) && rest.is_some());
            for (count, rest) in [(count - masked, None), (masked, rest)] {
                end += count * width;
                if count > 0 {
                    self.tiles((count, width, end), pre, rest, &totals);
                }
            }
        }
        self.finish_totals(&totals);
        self.finish_partials(pre);
    }

    /// `count` tiles of a width, up to the register `end` of the post axis.
    fn tiles(
        &mut self,
        (count, width, end): (usize, usize, usize),
        pre: usize,
        rest: Option<usize>,
        totals: &Sums,
    ) {
        self.width = width;
        // Sums know how many lanes of the last register count.
        self.is_paired = self.is_wide && rest.is_none();
        let sums = Sums { totals: totals.totals.clone(), ..self.running() };
        let header = self.asm.here();
        let kept = self.tile_values();
        for running in sums.columns.iter().flatten() {
            let v = running.vector.unwrap_or(SPARE[0].with(running.width));
            self.asm.zero(v);
            self.put(running, v);
        }
        self.rows(&sums, pre, rest, &kept);
        self.store_columns(&sums);
        self.asm.advance(POST, (width as i64 * BYTES) as i32);
        if count > 1 && self.is_log() {
            self.at.load_live(self.asm);
            self.asm.loop_while_below(POST, LIVE_BYTES, header);
        } else if count > 1 {
            self.asm.loop_while_not(POST, end as i32 * BYTES as i32, header);
        }
    }

    fn is_log(&self) -> bool {
        matches!(self.nest.extent, Extent::Log { .. })
    }

    /// The sums over pre of events that there are not.
    fn clear_columns(&mut self, post: usize) {
        let places = self.column_targets();
        if places.is_empty() {
            return;
        }
        self.asm.zero(SPARE[0]);
        self.asm.set(POST, 0);
        let header = self.header();
        for place in places {
            let to = self.at.operand(self.asm, Access::Post(place), 0);
            self.asm.store(to, SPARE[0]);
        }
        self.asm.advance(POST, BYTES as i32);
        self.asm.loop_while_not(POST, (post / LANES) as i32 * BYTES as i32, header);
    }

    fn column_targets(&self) -> Vec<Place> {
        let places = self.nest.effects.iter().filter_map(|e| match e {
            Effect::SumPre(place, ..) => Some(*place),
            _ => None,
        });
        places.collect()
    }

    /// Computes what varies with the post axis alone, onto the stack. Loads stay where they are.
    fn tile_values(&mut self) -> Vec<(Key, usize)> {
        let ids: Vec<usize> = (0..self.nest.body.ops.len())
            .filter(|k| self.levels[*k] == Level::Tile && !matches!(self.op(*k), BodyOp::Load(_)))
            .filter(|k| self.is_border(*k))
            .collect();
        let mut build = self.build(&[]);
        let mut kept = vec![];
        for unit in self.units() {
            for id in &ids {
                let key = self.need(&mut build, Id(*id as u32), unit.first);
                let slot = self.new_slot();
                build.items.push(Item::Keep(key, slot));
                kept.push((key, slot));
            }
        }
        let totals = self.running_registers();
        self.run(&build, &totals);
        kept
    }

    fn rows(&mut self, sums: &Sums, pre: usize, rest: Option<usize>, kept: &[(Key, usize)]) {
        self.asm.set(PRE, 0);
        let header = self.header();
        for row in &sums.rows {
            if let Some(v) = row.vector {
                let from = self.at.running(self.asm, row.memory);
                self.asm.load(v, from);
            }
        }
        self.body_with(sums, rest, kept);
        for row in &sums.rows {
            if let Some(v) = row.vector {
                let to = self.at.running(self.asm, row.memory);
                self.asm.store(to, v);
            }
        }
        self.at.next_row(self.asm, self.width);
        self.asm.advance(PRE, 4);
        if pre > 1 {
            self.asm.loop_while_not(PRE, pre as i32 * 4, header);
        }
    }

    fn store_columns(&mut self, sums: &Sums) {
        for (place, column) in self.column_targets().into_iter().zip(&sums.columns) {
            for (unit, running) in self.units().into_iter().zip(column) {
                let v = self.get(running);
                let to = self.at.operand(self.asm, Access::Post(place), unit.first);
                self.asm.store(to, v);
            }
        }
    }

    fn row_targets(&self) -> Vec<Place> {
        let places = self.nest.effects.iter().filter_map(|e| match e {
            Effect::SumPost(place, ..) => Some(*place),
            _ => None,
        });
        places.collect()
    }

    /// Zeroes the row sums: one register per row.
    fn clear_partials(&mut self, pre: usize) {
        let count = self.row_targets().len() * pre;
        if count == 0 {
            return;
        }
        self.asm.zero(SPARE[0]);
        self.asm.set(PRE, 0);
        let header = self.header();
        let to = self.at.partial(self.asm, PARTIALS);
        self.asm.store(to, SPARE[0]);
        self.asm.advance(PRE, 4);
        self.asm.loop_while_not(PRE, count as i32 * 4, header);
    }

    /// Adds up the lanes of the row sums, eight rows at a time.
    fn finish_partials(&mut self, pre: usize) {
        let (from, to) = (Register::RAX, Register::RSI);
        for (k, place) in self.row_targets().into_iter().enumerate() {
            point(self.asm, from, Base::Scratch);
            point(self.asm, to, place.base);
            self.asm.advance(from, ((PARTIALS + k * pre * LANES) * 4) as i32);
            self.asm.advance(to, (place.offset * 4) as i32);
            let (blocks, rest) = (pre / LANES, pre % LANES);
            if blocks > 0 {
                self.asm.set(PRE, 0);
                let header = self.header();
                self.eight_rows(from, to);
                self.asm.advance(from, (LANES as i64 * BYTES) as i32);
                self.asm.advance(to, BYTES as i32);
                self.asm.advance(PRE, 1);
                self.asm.loop_while_not(PRE, blocks as i32, header);
            }
            for row in 0..rest {
                self.asm.load(SPARE[0], based(from, row as i64 * BYTES));
                let sum = self.sum_lanes(SPARE[0]);
                self.asm.store_lowest(based(to, row as i64 * 4), sum);
            }
        }
    }

    fn eight_rows(&mut self, from: Register, to: Register) {
        let v: [Vector; 4] = std::array::from_fn(|k| Vector::eight(k as u8));
        let row = |k: i64| based(from, k * BYTES);
        for (k, v) in v.into_iter().enumerate() {
            self.asm.load(v, row(2 * k as i64));
            let odd = Source::Memory(row(2 * k as i64 + 1));
            self.asm.three(Code::VEX_Vhaddps_ymm_ymm_ymmm256, v, v, odd);
        }
        self.asm.three(Code::VEX_Vhaddps_ymm_ymm_ymmm256, v[0], v[0], Source::Vector(v[1]));
        self.asm.three(Code::VEX_Vhaddps_ymm_ymm_ymmm256, v[2], v[2], Source::Vector(v[3]));
        let halves = Code::VEX_Vperm2f128_ymm_ymm_ymmm256_imm8;
        self.asm.three_with(halves, v[1], v[0], v[2], 0x20);
        self.asm.three_with(halves, v[3], v[0], v[2], 0x31);
        self.asm.three(Code::VEX_Vaddps_ymm_ymm_ymmm256, v[1], v[1], Source::Vector(v[3]));
        self.asm.store(based(to, 0), v[1]);
    }
}

fn effect_operands(effect: &Effect) -> Vec<Id> {
    match effect {
        Effect::Store(_, v) | Effect::MaxAll(_, v) => vec![*v],
        Effect::Add(_, v, w)
        | Effect::SumPre(_, v, w)
        | Effect::SumPost(_, v, w)
        | Effect::SumAll(_, v, w) => std::iter::once(*v).chain(*w).collect(),
    }
}
