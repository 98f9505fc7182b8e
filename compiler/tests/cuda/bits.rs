//! Every kernel gives the bits that the loop IR means, on memory full of random numbers: what a nest
//! writes agrees, and everything else stays as it was, for whatever order of threads.

use crate::device::{At, Device, Tape, bind, has_compiler, models, sizes, source};
use compiler::back::cuda::Source;
use compiler::loops::eval::{self, Memory};
use compiler::loops::{
    self, Access, Base, Effect, Extent, LIVE, NAMES, Nest, Program, Routine, padded, verify,
};
use compiler::model::Prefer;
use compiler::passes::events;

/// Rows of the batch: odd, so that blocks that take two leave one.
const ROWS: usize = 3;
/// Frames, adjoint frames and snapshots of the memory; a kernel is launched for the third frame, and for the
/// one behind it if it takes several steps.
const STEPS: usize = 6;
const PENALTY_BAR: f32 = 0.7;

/// The memory of a batch: one region behind the other.
struct Layout<'p> {
    program: &'p Program,
    backward: bool,
}

impl Layout<'_> {
    /// Elements of a row's region, and how many of them a row has.
    fn region(&self, base: Base) -> (usize, usize) {
        let p = self.program;
        match base {
            Base::Frame(_) => (p.frame_len, STEPS),
            Base::Adjoint(_) => (p.adjoint_len, STEPS),
            Base::Snapshot(_) => (p.matrices_len, STEPS),
            Base::Carry if self.backward => (p.carry_len, 1),
            Base::Carry | Base::Next | Base::Ends => (p.matrices_len, 1),
            Base::Grads => (p.grads_len, 1),
            Base::Log => (p.log_len, 1),
            Base::LogBar => (p.log_bar_len, 1),
            Base::Scratch => (p.scratch_len, 2),
            Base::Params => (p.params_len, 1),
        }
    }

    /// Where the regions of this kind begin, and the end of all.
    fn start(&self, base: Base) -> (usize, usize) {
        let kinds = [
            Base::Frame(0),
            Base::Adjoint(0),
            Base::Snapshot(0),
            Base::Carry,
            Base::Next,
            Base::Ends,
            Base::Grads,
            Base::Log,
            Base::LogBar,
            Base::Scratch,
            Base::Params,
        ];
        let mut end = 0;
        let mut start = 0;
        for kind in kinds {
            if std::mem::discriminant(&kind) == std::mem::discriminant(&base) {
                start = end;
            }
            let (len, count) = self.region(kind);
            end += len * count * ROWS + 16;
        }
        (start, end)
    }

    /// Where the regions of a row begin, for a step of the launch.
    fn starts(&self, row: usize, step: usize) -> [usize; Base::ALL.len()] {
        Base::ALL.map(|base| {
            let number = match base {
                Base::Frame(k) => 2 + step as i64 + i64::from(k),
                Base::Adjoint(k) => 1 + step as i64 + i64::from(k),
                Base::Snapshot(k) => 1 + i64::from(k),
                Base::Scratch => step as i64,
                _ => 0,
            };
            let row = if base == Base::Params { 0 } else { row };
            self.start(base).0 + (number as usize * ROWS + row) * self.region(base).0
        })
    }

    fn tape(&self, memory: &mut [f32]) -> Tape {
        let start = memory.as_mut_ptr();
        let at = |base: Base| start.wrapping_add(self.start(base).0);
        Tape {
            frames: at(Base::Frame(0)),
            adjoints: at(Base::Adjoint(0)),
            snapshots: at(Base::Snapshot(0)),
            carry: at(Base::Carry),
            next: at(Base::Next),
            ends: at(Base::Ends),
            grads: at(Base::Grads),
            logs: at(Base::Log),
            log_bars: at(Base::LogBar),
            scratch: at(Base::Scratch),
            params: at(Base::Params),
            penalty_bar: PENALTY_BAR,
            rows: ROWS as i32,
        }
    }
}

/// What a routine does to a cell.
#[derive(Clone, Copy, PartialEq)]
enum Cell {
    Untouched,
    /// What fills up registers: the loop IR writes it, a kernel need not.
    Padding,
    Written,
}

/// Marks what a nest writes.
fn mark(nest: &Nest, starts: &[usize; Base::ALL.len()], cells: &mut [Cell]) {
    for effect in &nest.effects {
        let place = effect.place();
        let at = starts[place.base.slot()] + place.offset;
        let mut set = |from: usize, len: usize| {
            cells[at + from..at + from + padded(len)][len..].fill(Cell::Padding);
            cells[at + from..at + from + len].fill(Cell::Written);
        };
        match (effect, nest.extent) {
            (Effect::SumAll(..) | Effect::MaxAll(..), _)
            | (Effect::Store(Access::Scalar(_), _) | Effect::Add(Access::Scalar(_), ..), _) => {
                cells[at] = Cell::Written;
            }
            (Effect::SumPost(..), Extent::Matrix { pre, .. } | Extent::Log { pre, .. }) => {
                cells[at..at + pre].fill(Cell::Written);
            }
            (Effect::SumPre(..), Extent::Matrix { post, .. } | Extent::Log { post, .. }) => set(0, post),
            (_, Extent::Matrix { post, pre } | Extent::Log { post, pre }) => {
                (0..pre).for_each(|i| set(i * padded(post), post));
            }
            (_, Extent::Vector(n)) => set(0, n),
            (_, Extent::Scalar) => cells[at] = Cell::Written,
        }
    }
}

/// Numbers in ±2, exact zeros and ones among them, from a seed.
fn fill(len: usize, mut seed: u64) -> Vec<f32> {
    let draw = |_| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let bits = seed >> 33;
        match bits % 16 {
            0 => 0.0,
            1 => 1.0,
            _ => (bits as f64 / f64::from(1u32 << 29) - 2.0) as f32,
        }
    };
    (0..len).map(draw).collect()
}

/// Numbers between a half and one: nothing overflows, saturates or cancels.
pub(crate) fn fill_gently(len: usize, seed: u64) -> Vec<f32> {
    fill(len, seed).into_iter().map(|x| 0.75 + x / 8.0).collect()
}

/// Numbers from a seed.
type Fill = fn(usize, u64) -> Vec<f32>;

/// Runs a routine both ways; the first cell that differs, in words, or how many numbers agree.
pub(crate) fn compare(
    source: &Source,
    device: &Device,
    number: usize,
    seed: u64,
    fill: Fill,
) -> Result<usize, String> {
    let (kernels, routine) = (&source.kernels[number], loops::routines(&source.program)[number]);
    if kernels.is_empty() {
        return Ok(0);
    }
    let name = NAMES[number];
    let layout = Layout { program: &source.program, backward: number > 5 };
    let (_, len) = layout.start(Base::Params);
    let mut before = fill(len, (len + number) as u64 + seed);
    let scratch = layout.start(Base::Scratch).0;
    for k in 0..2 * ROWS {
        before[scratch + k * source.program.scratch_len] = PENALTY_BAR;
        before[scratch + k * source.program.scratch_len + LIVE] = f32::from_bits(1);
    }
    let steps = if [0, 4, 6, 10].contains(&number) { 2 } else { 1 };
    let (mut meant, mut found) = (before.clone(), before.clone());
    let mut cells = vec![Cell::Untouched; len];
    for (row, step) in (0..ROWS).flat_map(|row| (0..steps).map(move |step| (row, step))) {
        let starts = layout.starts(row, step);
        let mut memory = Memory { cells: &mut meant, starts, widest: source.program.widest };
        eval::run(routine, &mut memory);
        routine.nests.iter().for_each(|nest| mark(nest, &starts, &mut cells));
    }
    let at = At { frame: 2, adjoint: 1, snapshot: 1 };
    // No block sees what others do, or all see what was done before, in some order.
    if seed.is_multiple_of(2) {
        device.isolate(&mut found);
    }
    let done = device.launch(kernels, [ROWS, steps], seed, (layout.tape(&mut found), at));
    device.isolate(&mut []);
    done.map_err(|why| format!("{name}: {why}"))?;
    let scratch = scratch..scratch + 2 * ROWS * source.program.scratch_len;
    let cells_in_question = (0..len).filter(|k| !scratch.contains(k) && cells[*k] != Cell::Padding);
    let mut written = 0;
    for k in cells_in_question {
        let expected = if cells[k] == Cell::Written { meant[k] } else { before[k] };
        written += usize::from(cells[k] == Cell::Written);
        if expected.to_bits() != found[k].to_bits() && !(expected.is_nan() && found[k].is_nan()) {
            let was = if cells[k] == Cell::Written { "written" } else { "not to be touched" };
            return Err(format!("{name}: cell {k}, {was}, means {expected:e}, found {:e}", found[k]));
        }
    }
    Ok(written)
}

/// All kernels of a source, with two orders of threads; returns how many numbers agree.
pub(crate) fn compare_all(source: &Source, device: &Device, name: &str) -> usize {
    assert_eq!(verify(&source.program), Ok(()), "{name}");
    let mut numbers = 0;
    for (k, seed) in (0..NAMES.len()).flat_map(|k| [1, 2].map(|seed| (k, seed))) {
        match compare(source, device, k, seed, fill) {
            Ok(count) => numbers += count,
            Err(why) => panic!("{name}: {why}"),
        }
    }
    numbers
}

/// Models of events.
#[test]
fn kernels_of_logs_give_the_bits_of_the_loop_ir() {
    if !has_compiler() {
        return;
    }
    let mut numbers = 0;
    let logs = models().into_iter().filter_map(|(text, model)| {
        let states = events::legality(&model, Prefer::Events).states;
        events::rewrite(&model, &states, 90).map(|model| (text, model))
    });
    for (text, model) in logs.step_by(2) {
        let source = source(&text, &model, &sizes(&model, 6));
        assert!(!source.program.logs.is_empty());
        numbers += compare_all(&source, &Device::new(&source), &model.name);
    }
    assert!(numbers > 100_000, "only {numbers} numbers were compared");
}

/// Networks with more columns than a block has threads.
#[test]
fn kernels_of_wide_layers_give_the_bits_of_the_loop_ir() {
    if !has_compiler() {
        return;
    }
    let mut numbers = 0;
    let wanted = ["retroactive"];
    for (text, model) in models().into_iter().filter(|(_, m)| wanted.contains(&m.name.as_str())) {
        let source = source(&text, &model, &sizes(&model, 520));
        assert!(source.kernels.iter().flatten().all(|k| k.threads < 520));
        numbers += compare_all(&source, &Device::new(&source), &model.name);
    }
    assert!(numbers > 10_000_000, "only {numbers} numbers were compared");
}

/// Counts sums over whole matrices.
fn whole_sums(routine: &Routine) -> usize {
    let matrices =
        routine.nests.iter().filter(|n| matches!(n.extent, Extent::Matrix { .. } | Extent::Log { .. }));
    matrices.flat_map(|n| &n.effects).filter(|e| matches!(e, Effect::SumAll(..))).count()
}

#[test]
fn sums_over_matrices_are_taken_by_columns() {
    let mut taken = 0;
    for (text, model) in models() {
        let bound = sizes(&model, 6);
        let program = compiler::stages::program(&model, &bind(&model, &bound)).expect("a program");
        taken += loops::routines(&program).into_iter().map(whole_sums).sum::<usize>();
        let source = source(&text, &model, &bound);
        assert_eq!(loops::routines(&source.program).into_iter().map(whole_sums).sum::<usize>(), 0);
    }
    assert!(taken > 10, "only {taken} sums over matrices in the library");
}
