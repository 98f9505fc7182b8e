//! Nests: loops over the elements of vectors and matrices, tile by tile, and the sums they carry.

use super::super::level::Level;
use super::{HALF, HALVES, NestEmitter, Position, bytes, flags};
use crate::loops::body::{BodyOp, Id};
use crate::loops::{Access, Base, Effect, Extent, LANES, Place, Tiles};
use cranelift_codegen::ir::condcodes::IntCC;
use cranelift_codegen::ir::types::{F32X4, I64};
use cranelift_codegen::ir::{Block, BlockArg, InstBuilder, Value};

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

impl NestEmitter<'_, '_> {
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

    pub(super) fn scalar(&mut self) {
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

    pub(super) fn vector(&mut self, n: usize) {
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

    pub(super) fn matrix(&mut self, post: usize, pre: usize) {
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
