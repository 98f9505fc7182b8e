//! Whole sequences, forward and backward, as an engine will launch them: a batch of rows with numbers of
//! their own, resets, checkpoints and replay. Outputs, states and every gradient agree with the interpreter
//! in double precision, within what single precision allows; and two orders of threads give the same bits.

use crate::device::{At, Device, Span, Tape, models, sizes, source};
use compiler::back::cuda::{Launch, Source};
use compiler::gradcheck::{Case, Options, random_case};
use compiler::interp::{Interpreter, Tensor};
use compiler::ir::{Shape, Sizes, Value};
use compiler::loops::{Base, LIVE, NAMES, Program, routines};
use compiler::model::Model;
use compiler::passes;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Rows of the batch.
const ROWS: usize = 2;
/// Steps between checkpoints.
const INTERVAL: usize = 3;

const BEFORE: usize = 0;
const FIRST: usize = 1;
const STEP: usize = 2;
const FLUSH: usize = 3;
const AFTER: usize = 4;
const REPLAY: usize = 5;
const BACK_BEFORE: usize = 6;
const BACK_FIRST: usize = 7;
const BACK_STEP: usize = 8;
const BACK_FLUSH: usize = 9;
const BACK_AFTER: usize = 10;

/// The memory of a batch and the kernels that work on it.
struct Batch<'s> {
    source: &'s Source,
    device: &'s Device,
    sizes: &'s Sizes,
    model: &'s Model,
    seed: u64,
    /// Steps between checkpoints.
    interval: usize,
    frames: Vec<f32>,
    adjoints: Vec<f32>,
    snapshots: Vec<f32>,
    checkpoints: Vec<Vec<f32>>,
    carry: Vec<f32>,
    back_carry: Vec<f32>,
    ends: Vec<f32>,
    grads: Vec<f32>,
    scratch: Vec<f32>,
    params: Vec<f32>,
    penalty_bar: f32,
    /// Of the hoisted gradients.
    hoisted: Vec<Vec<f64>>,
    /// What went wrong in a kernel of a whole sequence.
    wrong: Option<String>,
}

/// Steps between resets: the first frame is that of the initial states.
#[derive(Clone, Copy)]
struct Stretch {
    boundary: usize,
    first: usize,
    end: usize,
}

impl Stretch {
    fn frame(&self, t: usize) -> usize {
        self.boundary + 1 + t - self.first
    }
}

/// What a batch gives: a name, a row, numbers.
type Results = Vec<(String, usize, Vec<f32>)>;

fn narrow(x: &[f64]) -> Vec<f32> {
    x.iter().map(|v| *v as f32).collect()
}

fn number(n: usize) -> i32 {
    i32::try_from(n).expect("a small number")
}

impl<'s> Batch<'s> {
    fn new(
        source: &'s Source,
        device: &'s Device,
        (model, sizes): (&'s Model, &'s Sizes),
        (steps, interval): (usize, usize),
        seed: u64,
    ) -> Self {
        let p = &source.program;
        // What nothing has written yet is no number, so that nothing reads it unseen.
        let room = |len: usize| vec![f32::NAN; len * ROWS];
        Batch {
            source,
            device,
            sizes,
            model,
            seed,
            interval,
            frames: room(p.frame_len * (2 * steps + 3)),
            adjoints: room(p.adjoint_len * (steps + 3)),
            snapshots: room(p.matrices_len * (interval + 2)),
            checkpoints: vec![],
            carry: room(p.matrices_len),
            back_carry: room(p.carry_len),
            ends: room(p.matrices_len),
            grads: vec![0.0; p.grads_len * ROWS],
            scratch: room(p.scratch_len * steps),
            params: vec![0.0; p.params_len],
            penalty_bar: 0.0,
            hoisted: p.rank1.iter().map(|r| vec![0.0; r.post * r.pre]).collect(),
            wrong: None,
        }
    }

    fn program(&self) -> &'s Program {
        &self.source.program
    }

    fn tape(&mut self, backward: bool) -> Tape {
        Tape {
            frames: self.frames.as_mut_ptr(),
            adjoints: self.adjoints.as_mut_ptr(),
            snapshots: self.snapshots.as_mut_ptr(),
            carry: if backward { self.back_carry.as_mut_ptr() } else { self.carry.as_mut_ptr() },
            next: self.carry.as_mut_ptr(),
            ends: self.ends.as_mut_ptr(),
            grads: self.grads.as_mut_ptr(),
            logs: std::ptr::null_mut(),
            log_bars: std::ptr::null_mut(),
            scratch: self.scratch.as_mut_ptr(),
            params: self.params.as_ptr(),
            penalty_bar: self.penalty_bar,
            rows: number(ROWS),
        }
    }

    fn launch(&mut self, routine: usize, steps: usize, at: At) {
        self.seed += 1;
        let tape = self.tape(routine > REPLAY);
        let kernels = &self.source.kernels[routine];
        self.device.launch(kernels, [ROWS, steps], self.seed, (tape, at)).expect("it runs");
    }

    /// All steps of a stretch at once.
    fn sequence(&mut self, launch: &Launch, backward: bool, stretch: Stretch, checkpoints: &mut [f32]) {
        self.seed += 1;
        let span = Span {
            frame: number(stretch.frame(stretch.first)),
            adjoint: number(stretch.first),
            steps: number(stretch.end - stretch.first),
            interval: number(self.interval),
            done: 0,
            checkpoints: checkpoints.as_mut_ptr(),
        };
        let tape = self.tape(backward);
        let done = self.device.sequence(launch, ROWS, self.seed, (tape, span));
        self.wrong = self.wrong.take().or(done.err());
    }

    fn slot(&mut self, row: usize, frame: usize, offset: usize, len: usize) -> &mut [f32] {
        let start = (frame * ROWS + row) * self.source.program.frame_len + offset;
        &mut self.frames[start..start + len]
    }

    fn bar(&mut self, row: usize, t: usize, offset: usize, len: usize) -> &mut [f32] {
        let start = (t * ROWS + row) * self.source.program.adjoint_len + offset;
        &mut self.adjoints[start..start + len]
    }

    fn count(&self, shape: Shape) -> usize {
        self.sizes.count(shape)
    }

    // ----------------------------------------------------------------- forward

    fn bind(&mut self, interpreter: &Interpreter, params: &[Tensor]) {
        let values = interpreter.prologue(params);
        for bound in &self.program().params {
            let value = narrow(values[bound.value.index()].as_ref().expect("the prologue is evaluated"));
            let to = &mut self.params[bound.offset..];
            match bound.matrix {
                Some((post, pre)) => self.source.program.pack(post, pre, &value, to),
                None => to[..bound.len].copy_from_slice(&value),
            }
        }
    }

    fn place_states(&mut self, row: usize, frame: usize, states: &[Tensor]) {
        let p = self.program();
        for (k, x) in states.iter().enumerate() {
            match (&p.matrices[k], p.states[k]) {
                (Some(m), _) => {
                    p.pack(m.post, m.pre, &narrow(x), &mut self.carry[row * p.matrices_len + m.offset..]);
                }
                (None, Some(offset)) => {
                    self.slot(row, frame, offset, x.len()).copy_from_slice(&narrow(x));
                }
                (None, None) => {}
            }
        }
    }

    fn forward(&mut self, cases: &[Case], stretch: Stretch) {
        for (row, case) in cases.iter().enumerate() {
            self.place_states(row, stretch.boundary, &case.sequence.initial);
            for t in stretch.first..stretch.end {
                self.feed(row, stretch.frame(t), case, t);
            }
        }
        let joined = self.program().merged.0;
        let steps = stretch.end - stretch.first;
        let at = |t: usize| At { frame: number(stretch.frame(t)), ..At::default() };
        self.launch(BEFORE, steps, at(stretch.first));
        if let Some(launch) = self.source.sequences.as_ref().and_then(|s| s.forward.as_ref()) {
            let all = self.program().matrices_len * ROWS;
            let count = steps.div_ceil(self.interval);
            let mut saved = vec![f32::NAN; all * count];
            self.sequence(launch, false, stretch, &mut saved);
            self.checkpoints.extend(saved.chunks(all.max(1)).map(<[f32]>::to_vec));
            self.launch(AFTER, steps, at(stretch.first));
            return;
        }
        for t in stretch.first..stretch.end {
            let due = (t - stretch.first).is_multiple_of(self.interval);
            if due && !joined {
                self.checkpoints.push(self.carry.clone());
            }
            self.launch(if joined && t > stretch.first { STEP } else { FIRST }, 1, at(t));
            if due && joined {
                self.checkpoints.push(self.carry.clone());
            }
        }
        if joined {
            self.launch(FLUSH, 1, at(stretch.end));
        }
        self.launch(AFTER, steps, at(stretch.first));
    }

    /// Inputs, and the cotangents of outputs.
    fn feed(&mut self, row: usize, frame: usize, case: &Case, t: usize) {
        for (k, x) in case.sequence.inputs[t].iter().enumerate() {
            let offset = self.program().inputs[k];
            self.slot(row, frame, offset, x.len()).copy_from_slice(&narrow(x));
        }
        for (k, x) in case.bars.outputs[t].iter().enumerate() {
            let offset = self.program().output_bars[k];
            self.slot(row, frame, offset, x.len()).copy_from_slice(&narrow(x));
        }
    }

    fn outputs(&mut self, stretch: Stretch, results: &mut Results) {
        for (t, row) in (stretch.first..stretch.end).flat_map(|t| (0..ROWS).map(move |row| (t, row))) {
            let frame = stretch.frame(t);
            for (k, o) in self.model.outputs.iter().enumerate() {
                let (offset, len) = (self.program().outputs[k], self.count(o.shape));
                let x = self.slot(row, frame, offset, len).to_vec();
                results.push((format!("out.{} at {t}", o.name), row, x));
            }
            let terms = self.program().penalties.clone();
            let penalty = terms.into_iter().map(|offset| self.slot(row, frame, offset, 1)[0]).sum();
            results.push((format!("penalty at {t}"), row, vec![penalty]));
        }
    }

    fn states(&mut self, stretch: Stretch, results: &mut Results) {
        let p = self.program();
        for (row, (k, s)) in
            (0..ROWS).flat_map(|row| self.model.states.iter().enumerate().map(move |s| (row, s)))
        {
            let mut x = vec![0.0; self.count(s.shape)];
            match (&p.matrices[k], p.states[k]) {
                (Some(m), _) => {
                    p.unpack(m.post, m.pre, &self.carry[row * p.matrices_len + m.offset..], &mut x)
                }
                (None, Some(offset)) => {
                    let (frame, len) = (stretch.frame(stretch.end - 1), x.len());
                    x.copy_from_slice(self.slot(row, frame, offset, len));
                }
                (None, None) => {}
            }
            results.push((format!("state.{}", s.name), row, x));
        }
    }

    // ---------------------------------------------------------------- backward

    fn backward(&mut self, cases: &[Case], stretch: Stretch, is_last: bool) -> Vec<Vec<Vec<f32>>> {
        for (row, case) in cases.iter().enumerate() {
            let zeros: Vec<Tensor> = case.bars.last.iter().map(|x| Arc::new(vec![0.0; x.len()])).collect();
            self.place_bars(row, stretch.end, if is_last { &case.bars.last } else { &zeros });
        }
        let Stretch { first, end, .. } = stretch;
        let joined = self.program().merged.1;
        let at = |t: usize, start: usize| At {
            frame: number(stretch.frame(t)),
            adjoint: number(t),
            snapshot: number(t - start),
        };
        self.launch(BACK_BEFORE, end - first, at(first, first));
        if let Some(launch) = self.source.sequences.as_ref().and_then(|s| s.backward.as_ref()) {
            let count =
                if self.program().matrices_len > 0 { (end - first).div_ceil(self.interval) } else { 0 };
            let from = self.checkpoints.len() - count;
            let mut saved: Vec<f32> = self.checkpoints.drain(from..).flatten().collect();
            self.sequence(launch, true, stretch, &mut saved);
            self.launch(BACK_AFTER, end - first, at(first, first));
            self.hoist(at(first, first), end - first);
            return (0..ROWS).map(|row| self.collect_bars(row, first)).collect();
        }
        let starts: Vec<usize> = (first..end).step_by(self.interval).collect();
        let mut segment_end = end;
        for start in starts.into_iter().rev() {
            self.rebuild(stretch, start, segment_end);
            for t in (start..segment_end).rev() {
                let entry = if t + 1 == end || !joined { BACK_FIRST } else { BACK_STEP };
                self.launch(entry, 1, at(t, start));
            }
            segment_end = start;
        }
        if joined {
            let before = at(first, first);
            let (frame, adjoint) = (before.frame - 1, before.adjoint - 1);
            self.launch(BACK_FLUSH, 1, At { frame, adjoint, snapshot: -1 });
        }
        self.launch(BACK_AFTER, end - first, at(first, first));
        self.hoist(at(first, first), end - first);
        (0..ROWS).map(|row| self.collect_bars(row, first)).collect()
    }

    fn place_bars(&mut self, row: usize, end: usize, bars: &[Tensor]) {
        let p = self.program();
        for (k, x) in bars.iter().enumerate() {
            match (&p.matrices[k], p.state_bars[k]) {
                (Some(m), _) => {
                    p.pack(m.post, m.pre, &narrow(x), &mut self.ends[row * p.matrices_len + m.offset..]);
                }
                (None, Some(offset)) => self.bar(row, end, offset, x.len()).copy_from_slice(&narrow(x)),
                (None, None) => {}
            }
        }
        if p.carries_states {
            let from = row * p.matrices_len..(row + 1) * p.matrices_len;
            self.back_carry[row * p.carry_len..][..p.matrices_len].copy_from_slice(&self.ends[from]);
        }
    }

    /// The matrix states of a segment; the one after the first step of the segment behind is kept.
    fn rebuild(&mut self, stretch: Stretch, start: usize, end: usize) {
        let all = self.program().matrices_len * ROWS;
        if all == 0 {
            return;
        }
        if end < stretch.end {
            self.snapshots.copy_within(all..2 * all, (end - start + 1) * all);
        }
        // Checkpoints are used from the last to the first.
        let saved = self.checkpoints.pop().expect("a checkpoint for every segment");
        self.snapshots[..all].copy_from_slice(&saved);
        for t in start..end {
            let at = At { frame: number(stretch.frame(t)), adjoint: 0, snapshot: number(t - start) };
            self.launch(REPLAY, 1, at);
        }
    }

    fn hoist(&mut self, at: At, steps: usize) {
        let tape = self.tape(true);
        let program = self.program();
        for (k, (r, name)) in program.rank1.iter().zip(&self.source.hoisted).enumerate() {
            let grid = [r.pre.div_ceil(16), r.post.div_ceil(16)];
            self.device.hoisted(name, grid, (tape, at), [steps, ROWS], &mut self.hoisted[k]);
        }
    }

    fn collect_bars(&mut self, row: usize, first: usize) -> Vec<Vec<f32>> {
        let p = self.program();
        let (from, stride) =
            if p.carries_states { (&self.back_carry, p.carry_len) } else { (&self.ends, p.matrices_len) };
        let shapes: Vec<Shape> = self.model.states.iter().map(|s| s.shape).collect();
        let mut bars: Vec<Vec<f32>> = shapes.iter().map(|s| vec![0.0; self.sizes.count(*s)]).collect();
        for (m, x) in p.matrices.iter().zip(&mut bars) {
            if let Some(m) = m {
                p.unpack(m.post, m.pre, &from[row * stride + m.offset..], x);
            }
        }
        for (offset, x) in p.state_bars.iter().zip(&mut bars) {
            if let Some(offset) = offset {
                let len = x.len();
                x.copy_from_slice(self.bar(row, first, *offset, len));
            }
        }
        bars
    }

    fn input_bars(&mut self, steps: usize, results: &mut Results) {
        for (k, input) in self.model.inputs.iter().enumerate() {
            let Some(offset) = self.program().input_bars[k] else { continue };
            let len = self.count(input.shape);
            for (t, row) in (0..steps).flat_map(|t| (0..ROWS).map(move |row| (t, row))) {
                let x = self.bar(row, t, offset, len).to_vec();
                results.push((format!("grad.in.{} at {t}", input.name), row, x));
            }
        }
    }

    /// The gradients of the unbatched values, summed over rows and steps.
    fn boundary(&self) -> BTreeMap<Value, Vec<f64>> {
        let p = self.program();
        let mut sums = vec![0.0; p.grads_len];
        self.device.add_rows(&self.grads, ROWS, &mut sums);
        let mut found: BTreeMap<Value, Vec<f64>> = BTreeMap::new();
        let mut add = |value: Value, x: &[f64]| {
            let sum = found.entry(value).or_insert_with(|| vec![0.0; x.len()]);
            sum.iter_mut().zip(x).for_each(|(s, x)| *s += x);
        };
        for g in &p.grads {
            match g.matrix {
                Some((post, pre)) => {
                    let mut plain = vec![0.0; post * pre];
                    p.unpack(post, pre, &narrow(&sums[g.offset..]), &mut plain);
                    add(g.value, &plain.into_iter().map(f64::from).collect::<Vec<f64>>());
                }
                None => add(g.value, &sums[g.offset..g.offset + g.len]),
            }
        }
        p.rank1.iter().zip(&self.hoisted).for_each(|(r, x)| add(r.value, x));
        found
    }
}

/// Runs a batch of cases with equal parameters and resets.
fn run(source: &Source, device: &Device, of: (&Arc<Model>, &Sizes), cases: &[Case], seed: u64) -> Results {
    try_run(source, device, of, cases, (INTERVAL, seed)).expect("it runs")
}

/// The bits of all results, by name; what goes wrong in a kernel of a whole sequence.
pub(crate) fn bits(
    source: &Source,
    device: &Device,
    of: (&Arc<Model>, &Sizes),
    (steps, seed): (usize, u64),
) -> Result<BTreeMap<(String, usize), Vec<u32>>, String> {
    let options = Options { steps, state_scale: 0.3, ..Options::default() };
    bits_at(source, device, of, &options, (INTERVAL, seed))
}

/// The same with so many steps between checkpoints, for any numbers.
pub(crate) fn bits_at(
    source: &Source,
    device: &Device,
    of: (&Arc<Model>, &Sizes),
    options: &Options,
    (interval, seed): (usize, u64),
) -> Result<BTreeMap<(String, usize), Vec<u32>>, String> {
    let found = try_run(source, device, of, &cases(of.0, of.1, options), (interval, seed))?;
    let plain = |x: Vec<f32>| x.into_iter().map(f32::to_bits).collect();
    Ok(found.into_iter().map(|(name, row, x)| ((name, row), plain(x))).collect())
}

fn try_run(
    source: &Source,
    device: &Device,
    of: (&Arc<Model>, &Sizes),
    cases: &[Case],
    (interval, seed): (usize, u64),
) -> Result<Results, String> {
    let (model, sizes) = of;
    let simplified = Arc::new(passes::optimise(model));
    let interpreter = Interpreter::new(simplified, sizes.clone());
    let steps = cases[0].sequence.inputs.len();
    let mut batch = Batch::new(source, device, (model, sizes), (steps, interval), seed);
    batch.bind(&interpreter, &cases[0].params);
    batch.penalty_bar = cases[0].bars.penalty as f32;
    let scratch = source.program.scratch_len;
    (0..steps * ROWS).for_each(|k| batch.scratch[k * scratch + LIVE] = f32::from_bits(1));
    let resets = &cases[0].sequence.resets;
    let mut firsts: Vec<usize> = (0..steps).filter(|t| *t == 0 || resets[*t]).collect();
    firsts.push(steps);
    let stretches: Vec<Stretch> = firsts
        .windows(2)
        .enumerate()
        .map(|(k, w)| Stretch { boundary: w[0] + k, first: w[0], end: w[1] })
        .collect();
    let mut results = vec![];
    for stretch in &stretches {
        batch.forward(cases, *stretch);
        batch.outputs(*stretch, &mut results);
    }
    batch.states(stretches[stretches.len() - 1], &mut results);
    let mut initial: Vec<Vec<Vec<f32>>> = vec![];
    for (k, stretch) in stretches.iter().enumerate().rev() {
        let bars = batch.backward(cases, *stretch, k + 1 == stretches.len());
        if initial.is_empty() {
            initial = bars;
        } else {
            let sums = initial.iter_mut().flatten().flatten();
            sums.zip(bars.iter().flatten().flatten()).for_each(|(s, x)| *s += x);
        }
    }
    batch.input_bars(steps, &mut results);
    for (row, bars) in initial.into_iter().enumerate() {
        let named = model.states.iter().zip(bars);
        results.extend(named.map(|(s, x)| (format!("grad.init.{}", s.name), row, x)));
    }
    let zero: Vec<Vec<f64>> = model.states.iter().map(|s| vec![0.0; sizes.count(s.shape)]).collect();
    let params = interpreter.finish(&cases[0].params, &batch.boundary(), &zero);
    let named = model.params.iter().zip(params);
    results.extend(named.map(|(p, x)| (format!("grad.{}", p.name), 0, narrow(&x))));
    batch.wrong.map_or(Ok(results), Err)
}

/// What the interpreter gives, by name and row.
fn meant(model: &Arc<Model>, sizes: &Sizes, cases: &[Case]) -> BTreeMap<(String, usize), Vec<f64>> {
    let interpreter = Interpreter::new(model.clone(), sizes.clone());
    let mut found = BTreeMap::new();
    let mut boundary: BTreeMap<Value, Vec<f64>> = BTreeMap::new();
    for (row, case) in cases.iter().enumerate() {
        let run = interpreter.run(&case.params, &case.sequence);
        let gradient = interpreter.backward(&case.sequence, &run, &case.bars);
        let mut put = |name: String, x: Vec<f64>| found.insert((name, row), x);
        for t in 0..case.sequence.inputs.len() {
            for (k, o) in model.outputs.iter().enumerate() {
                put(format!("out.{} at {t}", o.name), interpreter.output(&run, t, k).to_vec());
            }
            put(format!("penalty at {t}"), vec![interpreter.penalty(&run, t)]);
            for (k, i) in model.inputs.iter().enumerate() {
                if let Some(x) = &gradient.inputs[t][k] {
                    put(format!("grad.in.{} at {t}", i.name), x.to_vec());
                }
            }
        }
        let last = &run.states[case.sequence.inputs.len()];
        for (k, s) in model.states.iter().enumerate() {
            put(format!("state.{}", s.name), last[k].to_vec());
            put(format!("grad.init.{}", s.name), gradient.initial[k].clone());
        }
        for (value, x) in gradient.boundary {
            let sum = boundary.entry(value).or_insert_with(|| vec![0.0; x.len()]);
            sum.iter_mut().zip(&x).for_each(|(s, x)| *s += x);
        }
    }
    let zero: Vec<Vec<f64>> = model.states.iter().map(|s| vec![0.0; sizes.count(s.shape)]).collect();
    let params = interpreter.finish(&cases[0].params, &boundary, &zero);
    found.extend(model.params.iter().zip(params).map(|(p, x)| ((format!("grad.{}", p.name), 0), x)));
    found
}

/// Cases with the numbers that single precision has; the parameters are those of the first.
fn cases(model: &Model, sizes: &Sizes, options: &Options) -> Vec<Case> {
    let mut all: Vec<Case> = (0..ROWS as u64)
        .map(|row| random_case(model, sizes, &Options { seed: options.seed + row, ..*options }))
        .collect();
    let params = all[0].params.clone();
    for case in &mut all {
        case.params.clone_from(&params);
        let round = |x: &mut Tensor| *x = Arc::new(x.iter().map(|v| f64::from(*v as f32)).collect());
        let sequence = &mut case.sequence;
        case.params.iter_mut().chain(&mut sequence.initial).chain(&mut case.bars.last).for_each(round);
        sequence.inputs.iter_mut().chain(&mut case.bars.outputs).flatten().for_each(round);
    }
    all
}

/// The name and the error of the tensor that agrees least, relative to its norm or to 0.1.
fn worst(found: &Results, expected: &BTreeMap<(String, usize), Vec<f64>>) -> (String, f64) {
    let mut worst = (String::new(), 0.0);
    for (name, row, x) in found {
        let Some(e) = expected.get(&(name.clone(), *row)) else { panic!("nothing is known of {name}") };
        assert_eq!(x.len(), e.len(), "{name}");
        assert!(x.iter().all(|v| v.is_finite()), "{name} of row {row} is finite: {x:?}, expected {e:?}");
        let norm = e.iter().map(|v| v * v).sum::<f64>().sqrt();
        let off = x.iter().zip(e).map(|(f, e)| (f64::from(*f) - e).powi(2)).sum::<f64>().sqrt();
        let error = off / norm.max(0.1);
        if error > worst.1 {
            worst = (format!("{name} of row {row}"), error);
        }
    }
    worst
}

/// Runs a model; returns how many tensors agree.
pub(crate) fn agree(source: &Source, device: &Device, of: (&Arc<Model>, &Sizes), steps: usize) -> usize {
    let (model, sizes) = of;
    let reset_at = (steps > 5).then_some(4);
    let cases = cases(model, sizes, &Options { steps, state_scale: 0.3, reset_at, ..Options::default() });
    let found = run(source, device, of, &cases, 1);
    let expected = meant(model, sizes, &cases);
    assert_eq!(found.len(), expected.len(), "{}: every tensor is compared", model.name);
    let (name, error) = worst(&found, &expected);
    // As for machine code: gradients pass clips and long sums.
    assert!(error < 2e-3, "{}, {steps} steps: {name} is off by {error:.1e}", model.name);
    let again = run(source, device, of, &cases, 77);
    let bits =
        |all: &Results| -> Vec<u32> { all.iter().flat_map(|(_, _, x)| x).map(|v| v.to_bits()).collect() };
    assert!(bits(&found) == bits(&again), "{}: the order of threads decides", model.name);
    found.len()
}

/// The names of the routines are those that the driver above takes them for.
#[test]
fn routines_are_known_by_number() {
    let names = [BEFORE, FIRST, STEP, FLUSH, AFTER, REPLAY, BACK_BEFORE, BACK_FIRST, BACK_STEP, BACK_FLUSH];
    assert!(names.iter().enumerate().all(|(k, n)| k == *n) && BACK_AFTER == NAMES.len() - 1);
    assert_eq!((NAMES[REPLAY], NAMES[BACK_FLUSH]), ("replay", "backward.flush"));
    let (text, model) = models().swap_remove(0);
    let source = source(&text, &model, &sizes(&model, 3));
    let mut loads = [FIRST, STEP].into_iter().flat_map(|k| &routines(&source.program)[k].nests);
    assert!(!loads.any(|n| n.body.loads().any(|a| matches!(a.place().base, Base::Snapshot(_)))));
}
