//! What training a program costs: every byte that it holds, and its passes over the matrices.
//!
//! The sizes of a tape are decided here and allocated by the engine. An update goes through
//! moments that need memory of their own, one after the other: parameters are laid out for the
//! kernels, rows run, their gradients are added up, the sums go back to the parameters. The plan
//! counts the moment that takes most.
//!
//! Matrix states are kept at checkpoints, `K` steps apart, and rebuilt in between: a segment takes
//! `K + 2` snapshots, the episode `⌈T/K⌉` checkpoints, so their sum is least near `K = √T`. Every
//! step is replayed exactly once whatever `K` is: the choice trades nothing but memory.
//!
//! Logs of events have room for all steps once; a row that is reset on its way takes them again for every
//! further stretch, up to where that stretch ends.
//!
//! Not counted are the program with its machine code, and what a matrix product packs.

use super::{Extent, Program, Steps, TEAM};
use crate::form::Form;
use crate::ir::{Function, Op, ParamId, Shape, Sizes, Source, Value};
use crate::model::{Init, Model, ResetPolicy, State};
use serde::Serialize;
use std::collections::BTreeMap;

/// Elements of every region of one row's tape, in training.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TapeSizes {
    /// Steps between checkpoints.
    pub interval: usize,
    /// Frames: one per step, one before the first and one behind the last.
    pub frames: usize,
    /// Adjoint frames.
    pub adjoint: usize,
    /// The matrix states.
    pub carry: usize,
    /// What the backward pass carries from call to call.
    pub back_carry: usize,
    /// The cotangents of the matrix states at both ends.
    pub ends: usize,
    /// Values within one call.
    pub scratch: usize,
    /// The matrix states of the segment that runs backward.
    pub snapshots: usize,
    /// The matrix states at the starts of segments.
    pub checkpoints: usize,
    /// The logs.
    pub logs: usize,
    /// Their cotangents.
    pub log_bars: usize,
}

impl TapeSizes {
    /// The sizes of a tape of this many steps with a checkpoint every `interval` steps (the square
    /// root of the steps if `None`).
    pub fn new(program: &Program, steps: usize, interval: Option<usize>) -> TapeSizes {
        let interval = interval.unwrap_or_else(|| usual_interval(steps)).clamp(1, steps.max(1));
        let matrices = program.matrices_len;
        TapeSizes {
            interval,
            frames: program.frame_len.saturating_mul(steps.saturating_add(2)),
            adjoint: program.adjoint_len.saturating_mul(steps.saturating_add(3)),
            carry: matrices,
            back_carry: program.carry_len,
            ends: matrices,
            scratch: program.scratch_len,
            snapshots: matrices.saturating_mul(interval + 1),
            checkpoints: matrices.saturating_mul(steps.div_ceil(interval)),
            logs: program.log_len,
            log_bars: program.log_bar_len,
        }
    }

    /// Bytes of what only the backward pass needs.
    pub fn room(&self) -> u64 {
        let all = [self.back_carry, self.ends, self.snapshots];
        all.iter().fold(0, |sum, n| sum.saturating_add(allocated(*n)))
    }

    /// Bytes of all regions.
    pub fn bytes(&self) -> u64 {
        let all = [
            self.frames,
            self.adjoint,
            self.carry,
            self.back_carry,
            self.ends,
            self.scratch,
            self.snapshots,
            self.checkpoints,
            self.logs,
            self.log_bars,
        ];
        all.iter().fold(0, |sum, n| sum.saturating_add(allocated(*n)))
    }
}

/// The square root of the steps, which makes checkpoints and snapshots take equal memory.
pub(crate) fn usual_interval(steps: usize) -> usize {
    ((steps as f64).sqrt().ceil() as usize).clamp(1, steps.max(1))
}

/// Bytes of a region: it is allocated in cache lines.
fn allocated(elements: usize) -> u64 {
    (elements.div_ceil(16) as u64).saturating_mul(64)
}

/// At most this many partial sums of gradients exist at a time, and as many threads have work.
const CHUNKS: usize = 16;

/// How a program is going to be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Use {
    /// Rows of a batch.
    pub batch: usize,
    /// Steps of an episode or window.
    pub steps: usize,
    /// Threads.
    pub threads: usize,
    /// Which rows have tapes at the same time.
    pub tapes: Tapes,
    /// Steps between checkpoints; `None` for the square root of the steps.
    pub checkpoint_every: Option<usize>,
    /// Bytes that may be used.
    pub memory: Option<u64>,
}

/// Which rows have tapes at the same time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Tapes {
    /// Those that are running: a thread uses its tape for row after row.
    #[default]
    PerThread,
    /// All of them: every row waits for the others before it runs backward.
    PerRow,
    /// All of them, while what only the backward pass needs exists once per thread, for the rows that step
    /// together. Hoisted gradients are summed over all rows at once.
    Waiting,
}

impl Use {
    /// Threads that have something to do.
    fn busy(&self) -> usize {
        self.threads.min(self.batch).min(CHUNKS)
    }

    /// Tapes whose room is another's.
    fn roomless(&self) -> u64 {
        match self.tapes {
            Tapes::PerThread | Tapes::PerRow => 0,
            Tapes::Waiting => self.batch.saturating_sub(self.busy() * TEAM) as u64,
        }
    }

    /// How many tapes exist.
    pub fn tape_count(&self) -> usize {
        match self.tapes {
            Tapes::PerThread => self.busy(),
            Tapes::PerRow | Tapes::Waiting => self.batch,
        }
    }
}

/// A region of memory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Item {
    /// What it holds.
    pub what: String,
    /// Its size.
    pub bytes: u64,
}

/// One way to place the checkpoints.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Choice {
    /// Steps between checkpoints.
    pub every: usize,
    /// Checkpoints of an episode.
    pub checkpoints: usize,
    /// Matrix states held while a segment runs backward.
    pub snapshots: usize,
    /// Steps whose writes are replayed.
    pub replayed: usize,
    /// Bytes of a tape.
    pub tape: u64,
    /// Bytes of the whole.
    pub total: u64,
}

/// Passes over the plastic matrices in one step.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Sweeps {
    /// How many.
    pub count: usize,
    /// What each of them does, for the matrix shape that has most.
    pub what: Vec<String>,
}

/// What kind of write a matrix state has.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Write {
    /// Its class.
    pub class: String,
    /// What follows from it.
    pub means: String,
}

/// The cost of training a program.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Plan {
    /// The spec.
    pub spec: String,
    /// The sizes of its axes.
    pub axes: Vec<(String, usize)>,
    /// Rows of a batch.
    pub batch: usize,
    /// Steps.
    pub steps: usize,
    /// Threads.
    pub threads: usize,
    /// Tapes.
    pub tapes: usize,
    /// Learned numbers.
    pub learned: usize,
    /// What exists once.
    pub shared: Vec<Item>,
    /// What exists once per thread.
    pub tape: Vec<Item>,
    /// Bytes of one tape.
    pub tape_bytes: u64,
    /// Bytes of everything.
    pub total_bytes: u64,
    /// What all matrix states of all steps and rows would need.
    pub dense_bytes: u64,
    /// The matrix states of a row, in bytes.
    pub matrix_bytes: u64,
    /// Ways to place the checkpoints.
    pub choices: Vec<Choice>,
    /// The way that is taken: steps between checkpoints.
    pub checkpoint_every: usize,
    /// Whether the whole fits into the memory that may be used.
    pub fits: Option<bool>,
    /// The memory that may be used.
    pub memory: Option<u64>,
    /// The classes of the writes, where the checker has said them.
    pub writes: Vec<Write>,
    /// How plastic matrices are kept, where that was decided.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub form: Option<Form>,
    /// Going forward.
    pub forward: Sweeps,
    /// Rebuilding states going backward.
    pub replay: Sweeps,
    /// Going backward.
    pub backward: Sweeps,
}

/// What a plan is made for.
#[derive(Clone, Copy, Debug)]
pub struct Subject<'a> {
    /// The model that the program was made from.
    pub model: &'a Model,
    /// Its sizes.
    pub sizes: &'a Sizes,
    /// Its loops.
    pub program: &'a Program,
    /// The adjoint of its prologue.
    pub prologue: &'a Function,
}

/// Plans the training of a program.
pub fn plan(subject: &Subject<'_>, usage: &Use) -> Plan {
    let Subject { model, sizes, program, .. } = *subject;
    let shared = shared(subject, usage);
    let fixed = sum(&shared);
    let tapes = usage.tape_count() as u64;
    let ends = cotangent_elements(subject).saturating_mul(4);
    let choice = |every: usize| {
        let parts = TapeSizes::new(program, usage.steps, Some(every));
        let tape = parts.bytes().saturating_add(ends);
        let lent = parts.room().saturating_mul(usage.roomless());
        Choice {
            every,
            checkpoints: usage.steps.div_ceil(every),
            snapshots: every + 1,
            replayed: if program.matrices_len == 0 { 0 } else { usage.steps },
            tape,
            total: fixed.saturating_add(tape.saturating_mul(tapes)).saturating_sub(lent),
        }
    };
    let chosen = chosen(program, usage, &choice);
    let intervals = if program.matrices_len == 0 { vec![chosen] } else { intervals(usage.steps, chosen) };
    let taken = choice(chosen);
    let learned = model.params.iter().filter(|p| p.learned).map(|p| sizes.count(p.shape));
    let (matrix_bytes, dense_bytes) = dense(model, sizes, usage);
    Plan {
        spec: model.name.clone(),
        axes: named_sizes(model, sizes),
        batch: usage.batch,
        steps: usage.steps,
        threads: usage.threads,
        tapes: usage.tape_count(),
        learned: learned.sum(),
        shared,
        tape: tape_items(program, usage.steps, chosen, ends),
        tape_bytes: taken.tape,
        total_bytes: taken.total,
        dense_bytes,
        matrix_bytes,
        choices: intervals.into_iter().map(choice).collect(),
        checkpoint_every: chosen,
        fits: usage.memory.map(|m| taken.total <= m),
        memory: usage.memory,
        writes: vec![],
        form: None,
        forward: sweeps(&program.forward),
        replay: sweeps(&Steps { step: program.replay.clone(), ..Steps::default() }),
        backward: sweeps(&program.backward),
    }
}

/// Bytes of the matrix states of a row, and of those of all rows and steps.
pub fn dense(model: &Model, sizes: &Sizes, usage: &Use) -> (u64, u64) {
    let matrix_bytes = matrix_elements(model, sizes).saturating_mul(4);
    let moments = (usage.batch as u64).saturating_mul(usage.steps as u64 + 1);
    (matrix_bytes, matrix_bytes.saturating_mul(moments))
}

fn named_sizes(model: &Model, sizes: &Sizes) -> Vec<(String, usize)> {
    let mut axes = model.axes.clone();
    let known = axes.len() as u32;
    let named = model.axes.named.iter().enumerate().map(|(k, a)| (a.name.clone(), axes.intern_named(k)));
    named.map(|(name, a)| (name, if a.0 < known { sizes.of(a) } else { 0 })).collect()
}

/// The interval asked for, else the square root of the steps, else, if that does not fit, the one
/// that takes least.
fn chosen(program: &Program, usage: &Use, choice: &dyn Fn(usize) -> Choice) -> usize {
    let usual = TapeSizes::new(program, usage.steps, usage.checkpoint_every).interval;
    let fits = |c: &Choice| usage.memory.is_none_or(|m| c.total <= m);
    if usage.checkpoint_every.is_some() || fits(&choice(usual)) {
        return usual;
    }
    let near = usual.saturating_sub(usual / 2 + 2).max(1)..=(usual * 2).min(usage.steps);
    near.min_by_key(|k| choice(*k).total).unwrap_or(usual)
}

/// Powers of two, the chosen interval, and all steps.
fn intervals(steps: usize, chosen: usize) -> Vec<usize> {
    let mut found: Vec<usize> = (0..).map(|k| 1 << k).take_while(|k| *k < steps).collect();
    found.extend([chosen, steps.max(1)]);
    found.sort_unstable();
    found.dedup();
    found
}

fn item(what: impl Into<String>, bytes: u64) -> Item {
    Item { what: what.into(), bytes }
}

fn sum(items: &[Item]) -> u64 {
    items.iter().fold(0, |sum, i| sum.saturating_add(i.bytes))
}

/// Numbers of `width` bytes each.
fn numbers(what: impl Into<String>, width: u64, count: u64) -> Item {
    item(what, width.saturating_mul(count))
}

fn elements(shapes: impl Iterator<Item = Shape>, sizes: &Sizes) -> u64 {
    shapes.fold(0, |sum, s| sum.saturating_add(sizes.count(s) as u64))
}

/// Elements of all states of a row.
fn state_elements(model: &Model, sizes: &Sizes) -> u64 {
    elements(model.states.iter().map(|s| s.shape), sizes)
}

/// Elements of the cotangents of a row's states, which logs do not have outside of their tape.
fn cotangent_elements(subject: &Subject<'_>) -> u64 {
    let logs: usize = subject.program.logs.iter().map(|l| l.events * l.len).sum();
    state_elements(subject.model, subject.sizes).saturating_sub(logs as u64)
}

/// Elements of all values of a function that are no parameters themselves.
fn evaluated(function: &Function, sizes: &Sizes, wanted: impl Fn(bool) -> bool) -> u64 {
    let counted = |op: &Op| !matches!(op, Op::Load(Source::Param(_)));
    let body = function.body.iter().filter(|i| wanted(i.ty.batched) && counted(&i.op));
    elements(body.map(|i| i.ty.shape), sizes)
}

/// What exists once: what always does, and what the fullest moment of an update adds.
fn shared(subject: &Subject<'_>, usage: &Use) -> Vec<Item> {
    let Subject { model, sizes, program, .. } = *subject;
    let params = elements(model.params.iter().map(|p| p.shape), sizes);
    let states = state_elements(model, sizes);
    let mut items = vec![
        numbers("parameters", 4, params),
        numbers("Adam's moments", 8, params),
        numbers("parameters in double precision, for what follows from them alone", 8, wide(subject)),
        numbers("initial states", 4, states),
        item("unbatched values as the kernels read them", allocated(program.params_len)),
    ];
    if model.states.iter().any(|s| s.reset != ResetPolicy::EveryEpisodes(1)) {
        // Those of the last episode are read while those of this one are collected.
        let all = states.saturating_mul(usage.batch as u64);
        items.push(numbers("states of all rows from episode to episode", 8, all));
    }
    let moments = [binding(subject, params), running(subject, usage), adding(subject, usage)];
    let moments = moments.into_iter().chain([finishing(subject, params)]);
    items.extend(moments.max_by_key(|m| sum(m)).unwrap_or_default());
    items
}

/// Elements of the parameters that are known in double precision.
fn wide(subject: &Subject<'_>) -> u64 {
    let Subject { model, sizes, prologue, .. } = *subject;
    let ids = (0..model.params.len()).map(|k| ParamId(k as u32));
    elements(ids.filter(|p| !is_packed(model, prologue, *p)).map(|p| model.params[p.index()].shape), sizes)
}

/// Whether batched code alone uses a parameter, so that it need not be known in double precision. `prologue` is the
/// adjoint of the prologue.
pub fn is_packed(model: &Model, prologue: &Function, p: ParamId) -> bool {
    let load = Op::Load(Source::Param(p));
    let is_load = |v: &Value| model.step.at(*v).op == load;
    let in_prologue = model.step.values().any(|(_, i)| !i.ty.batched && i.op.operands().iter().any(is_load));
    let in_adjoint = prologue.values().any(|(_, i)| i.op == load);
    let initial = model.states.iter().any(|s| s.init == Init::Param(p));
    !in_prologue && !in_adjoint && !initial
}

/// While parameters are laid out for the kernels.
fn binding(subject: &Subject<'_>, params: u64) -> Vec<Item> {
    let Subject { model, sizes, program, .. } = *subject;
    let largest = program.params.iter().map(|b| b.len as u64).max().unwrap_or(0);
    let unbatched = evaluated(&model.step, sizes, |batched| !batched);
    vec![
        numbers("parameters in the units of the spec", 4, params),
        numbers("what follows from parameters alone, in double precision", 8, unbatched),
        numbers("one of these values on its way to the kernels", 4, largest),
    ]
}

/// While rows run.
fn running(subject: &Subject<'_>, usage: &Use) -> Vec<Item> {
    let states = cotangent_elements(subject).saturating_mul(usage.busy() as u64);
    vec![
        partial_sums(subject, usage),
        numbers("states and their cotangents at the ends of a row, one set per thread", 8, states),
    ]
}

/// While the gradients of the rows are added up.
fn adding(subject: &Subject<'_>, usage: &Use) -> Vec<Item> {
    let packed = subject.program.grads.iter().filter(|g| g.matrix.is_some()).map(|g| g.len as u64);
    vec![
        partial_sums(subject, usage),
        sums(subject),
        numbers("one of the partial sums on its way to them", 4, packed.max().unwrap_or(0)),
    ]
}

/// While the sums of the gradients go back to the parameters.
fn finishing(subject: &Subject<'_>, params: u64) -> Vec<Item> {
    let values = evaluated(subject.prologue, subject.sizes, |_| true);
    vec![
        sums(subject),
        numbers("what follows from them for the parameters, in double precision", 8, values),
        numbers("gradients of the parameters, in double precision", 8, params),
    ]
}

fn partial_sums(subject: &Subject<'_>, usage: &Use) -> Item {
    let Subject { model, sizes, program, .. } = *subject;
    // Several products may go into one sum.
    let hoisted: usize = hoisted(program).values().sum();
    let initial = |s: &State| matches!(s.init, Init::Param(_)).then(|| sizes.count(s.shape));
    let initial: usize = model.states.iter().filter_map(initial).sum();
    let (each, once) = match usage.tapes {
        Tapes::Waiting => (initial, hoisted),
        Tapes::PerThread | Tapes::PerRow => (hoisted + initial, 0),
    };
    let chunk = allocated(program.grads_len) + 4 * each as u64;
    // One per thread, and those that wait for their turn.
    let chunks = usage.batch.min(CHUNKS).min(2 * usage.busy() - 1);
    let all = chunk.saturating_mul(chunks as u64).saturating_add(4 * once as u64);
    item(format!("partial sums of gradients, {chunks} of them"), all)
}

/// Elements of the hoisted gradients.
fn hoisted(program: &Program) -> BTreeMap<Value, usize> {
    program.rank1.iter().map(|r| (r.value, r.post * r.pre)).collect()
}

/// The sums over all rows.
fn sums(subject: &Subject<'_>) -> Item {
    let Subject { model, sizes, program, .. } = *subject;
    let mut lengths = hoisted(program);
    lengths.extend(program.grads.iter().map(|g| (g.value, g.len)));
    let values: usize = lengths.values().sum();
    let all = state_elements(model, sizes).saturating_add(values as u64);
    numbers("sums of gradients, in double precision", 8, all)
}

fn tape_items(program: &Program, steps: usize, every: usize, ends: u64) -> Vec<Item> {
    let t = TapeSizes::new(program, steps, Some(every));
    let of = |what: String, elements: usize| item(what, allocated(elements));
    let (frame, adjoint) = (4 * program.frame_len, 4 * program.adjoint_len);
    let mut items = vec![
        of(format!("frames, {} of {frame} bytes", steps + 2), t.frames),
        of(format!("adjoint frames, {} of {adjoint} bytes", steps + 3), t.adjoint),
    ];
    if program.matrices_len > 0 {
        let checkpoints = steps.div_ceil(every);
        items.extend([
            of(format!("checkpoints of the matrices, {checkpoints}, every {every} steps"), t.checkpoints),
            of(format!("snapshots of the matrices, {}", every + 2), t.snapshots),
            of("the matrices now".to_owned(), t.carry),
            of("their cotangents at both ends".to_owned(), t.ends),
            of("carried from step to step, backward".to_owned(), t.back_carry),
        ]);
    } else {
        items.push(of("carried from step to step, backward".to_owned(), t.back_carry));
    }
    if !program.logs.is_empty() {
        items.push(of("logs of events".to_owned(), t.logs));
        items.push(of("their cotangents".to_owned(), t.log_bars));
    }
    items.push(of("scratch".to_owned(), t.scratch));
    items.push(item("cotangents of the initial states", ends));
    items
}

/// Elements of all matrix states of one row.
fn matrix_elements(model: &Model, sizes: &Sizes) -> u64 {
    let matrix = |s: &&State| matches!(s.shape, Shape::Matrix { .. });
    model.states.iter().filter(matrix).map(|s| sizes.count(s.shape) as u64).sum()
}

/// The sweeps of the matrix shape that has most.
fn sweeps(steps: &Steps) -> Sweeps {
    let mut shapes: Vec<(Extent, Vec<String>)> = vec![];
    for nest in steps.step.nests.iter().filter(|n| n.is_sweep()) {
        match shapes.iter_mut().find(|(e, _)| *e == nest.extent) {
            Some((_, what)) => what.push(nest.label.clone()),
            None => shapes.push((nest.extent, vec![nest.label.clone()])),
        }
    }
    let what = shapes.into_iter().map(|(_, w)| w).max_by_key(Vec::len).unwrap_or_default();
    Sweeps { count: what.len(), what }
}

// ---------------------------------------------------------------------- text

impl Plan {
    /// The plan as a person reads it.
    pub fn text(&self) -> String {
        let mut text = self.heading();
        let width = self.shared.iter().chain(&self.tape).map(|i| i.what.chars().count()).max();
        let width = width.unwrap_or(0).max(36) + 2;
        let mut line = |indent: &str, what: &str, bytes: u64| {
            text.push_str(&format!("{indent}{what:<w$}{:>14}\n", mib(bytes), w = width - indent.len()));
        };
        line("", &format!("{} learned numbers", grouped(self.learned as u64)), self.shared_bytes());
        self.shared.iter().for_each(|i| line("  ", &i.what, i.bytes));
        line("", "the tape of a row, one per thread", self.tape_bytes);
        self.tape.iter().for_each(|i| line("  ", &i.what, i.bytes));
        let tapes = self.tapes;
        let plural = if tapes == 1 { "tape" } else { "tapes" };
        line("", &format!("total, {tapes} {plural}"), self.total_bytes);
        text.push_str(&self.dense());
        text.push_str(&self.work());
        text.push_str(&self.table());
        text
    }

    fn shared_bytes(&self) -> u64 {
        sum(&self.shared)
    }

    fn heading(&self) -> String {
        let axes: Vec<String> = self.axes.iter().map(|(name, size)| format!("{name} = {size}")).collect();
        format!(
            "{}: {}; batch {}, {} steps, {} {}\n\n",
            self.spec,
            axes.join(", "),
            self.batch,
            self.steps,
            self.threads,
            if self.threads == 1 { "thread" } else { "threads" }
        )
    }

    fn dense(&self) -> String {
        if self.dense_bytes == 0 {
            return "\nNo state is a matrix: nothing is replayed.\n".to_owned();
        }
        let ratio = self.dense_bytes as f64 / self.total_bytes.max(1) as f64;
        let compared = match ratio {
            r if r >= 1.5 => format!("{r:.0} times as much"),
            _ => "no more than the whole".to_owned(),
        };
        format!(
            "\nA dense trajectory, every matrix state of every row and step, would need {}: {compared}.\n",
            mib(self.dense_bytes)
        )
    }

    fn work(&self) -> String {
        let mut text = "\nsweeps over the matrices, per step\n".to_owned();
        for (name, sweeps) in
            [("forward", &self.forward), ("replay", &self.replay), ("backward", &self.backward)]
        {
            text.push_str(&format!("  {name:<9} {}{}\n", sweeps.count, sweeps.reason()));
        }
        if let Some(form) = &self.form {
            text.push_str("\nhow plastic matrices are kept\n");
            form.reasons().iter().for_each(|r| text.push_str(&format!("  {r}\n")));
        }
        if !self.writes.is_empty() {
            text.push_str("\nwrites\n");
        }
        for write in &self.writes {
            text.push_str(&format!("  {}:\n    {}\n", write.class, write.means));
        }
        text
    }

    fn table(&self) -> String {
        if self.choices.iter().all(|c| c.replayed == 0) {
            return String::new();
        }
        let mut text = "\ncheckpoints\n".to_owned();
        text.push_str("  every  checkpoints  snapshots  replayed steps          tape         total\n");
        for c in &self.choices {
            let mark = if c.every == self.checkpoint_every { '>' } else { ' ' };
            text.push_str(&format!(
                "{mark} {:>5}  {:>11}  {:>9}  {:>14}  {:>12}  {:>12}\n",
                c.every,
                c.checkpoints,
                c.snapshots,
                c.replayed,
                mib(c.tape),
                mib(c.total)
            ));
        }
        text.push_str("Each step is replayed once, whatever the interval: it costs memory alone.\n");
        text
    }
}

impl Sweeps {
    /// Why there are several, in words.
    fn reason(&self) -> String {
        if self.count < 2 {
            return String::new();
        }
        let parts = self.what.iter().enumerate();
        let parts: Vec<String> = parts.map(|(k, what)| format!("{}. {what}", k + 1)).collect();
        format!(": each needs the sums of the one before\n            {}", parts.join("\n            "))
    }
}

/// Bytes in MiB, with three digits behind the point.
fn mib(bytes: u64) -> String {
    let thousandths = (bytes as f64 / 1_048.576).round() as u64;
    format!("{}.{:03} MiB", grouped(thousandths / 1000), thousandths % 1000)
}

/// `86,405`
pub(crate) fn grouped(n: u64) -> String {
    let digits = n.to_string();
    let mut text = String::new();
    for (k, c) in digits.chars().enumerate() {
        if k > 0 && (digits.len() - k).is_multiple_of(3) {
            text.push(',');
        }
        text.push(c);
    }
    text
}
