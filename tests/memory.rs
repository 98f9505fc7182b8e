//! `bpmc plan` against what training takes: the heap is counted, byte by byte, while every spec of
//! the library goes through two updates, and its peak is compared with the plan.

mod support;

use compiler::ir::{InputId, OutputId, Sizes};
use compiler::loops::plan::{Tapes, Use};
use compiler::model::{Model, Prefer, ResetPolicy, Role};
use compiler::passes::events;
use runtime::engine::{Backend, Bound, Engine, EngineOptions, Grads, Mode, RowState, Tape};
use runtime::optim::{Epochs, Optimiser, Rule, Settings};
use runtime::params::ParamStore;
use runtime::recipe::Recipe;
use runtime::{parallel, setup};
use std::alloc::{GlobalAlloc, Layout, System};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

struct Counting;

static NOW: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

fn took(bytes: usize) {
    let now = NOW.fetch_add(bytes, Ordering::Relaxed) + bytes;
    PEAK.fetch_max(now, Ordering::Relaxed);
}

// SAFETY: everything is passed on to the system's allocator; only sizes are counted.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        took(layout.size());
        // SAFETY: the caller's promise is passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        took(layout.size());
        // SAFETY: the caller's promise is passed on.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        NOW.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller's promise is passed on.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static HEAP: Counting = Counting;

/// One measurement at a time: the count is of the whole process.
static TURN: Mutex<()> = Mutex::new(());

/// The growth of the heap while `work` runs, at its largest.
fn peak_of(work: impl FnOnce()) -> u64 {
    let before = NOW.load(Ordering::Relaxed);
    PEAK.store(before, Ordering::Relaxed);
    work();
    (PEAK.load(Ordering::Relaxed) - before) as u64
}

/// What an update needs besides the engine, as a trainer holds it.
struct Run<'e> {
    engine: &'e Engine,
    usage: Use,
    params: ParamStore,
    optimiser: Optimiser,
    tapes: Vec<Option<Tape>>,
    carried: Vec<RowState>,
}

impl Run<'_> {
    fn update(&mut self) {
        let bound = self.engine.bind(&self.params.values()).expect("parameters of the right size");
        let persists = self.engine.model().states.iter().any(|s| s.reset != ResetPolicy::EveryEpisodes(1));
        let (sums, mut states) = (self.engine.sums(), vec![]);
        let count = self.tapes.len();
        // Chunks that wait for their turn while every thread works on one.
        let waiting: Vec<Grads> = (1..count).map(|_| sums.zeros()).collect();
        let mut ahead: Vec<Grads> = (1..count).map(|_| sums.zeros()).collect();
        for (k, rows) in parallel::chunks(self.usage.batch).into_iter().enumerate() {
            let new = || self.engine.tape(self.usage.steps, Mode::Train);
            let tape = self.tapes[k % count].get_or_insert_with(new);
            let mut grads = ahead.pop().unwrap_or_else(|| sums.zeros());
            for row in rows {
                run_row(&bound, tape, self.usage.steps, self.carried.get(row));
                states.extend(persists.then(|| bound.state(tape)));
                bound.backward(tape, &mut grads, 0.0, None);
            }
            sums.add(k, grads);
        }
        drop(waiting);
        let gradients = sums.finish(&bound);
        let learned: Vec<bool> = self.params.about.iter().map(|a| a.learned).collect();
        self.optimiser.step(&mut self.params.raw, (&gradients, 1.0), &learned, 1.0);
        self.carried = states;
    }
}

/// A row, forward, with cotangents written.
fn run_row(bound: &Bound<'_>, tape: &mut Tape, steps: usize, carried: Option<&RowState>) {
    let model = bound.engine().model();
    bound.begin(tape, carried);
    for _ in 0..steps {
        for (k, _) in model.inputs.iter().enumerate().filter(|(_, i)| i.role != Role::Reset) {
            bound.input_mut(tape, InputId(k as u32)).fill(0.1);
        }
        bound.step(tape);
    }
    for (t, k) in (0..steps).flat_map(|t| (0..model.outputs.len()).map(move |k| (t, k))) {
        bound.output_bar_mut(tape, t, OutputId(k as u32)).fill(0.01);
    }
}

fn measured(engine: &Engine, usage: Use) -> u64 {
    let settings = Settings {
        rule: Rule::Adam { beta1: 0.9, beta2: 0.999, epsilon: 1e-8 },
        rate: 1e-4,
        decay: 0.0,
        clip: 0.0,
        epochs: Epochs::default(),
    };
    // Drawing them may take more for a moment than training does: that is not what is measured.
    let drawn = ParamStore::new(engine.model(), engine.sizes(), 0, &BTreeMap::new()).expect("parameters");
    peak_of(|| {
        let params = drawn.clone();
        let optimiser = Optimiser::new(settings, params.raw.iter().map(Vec::len), 1);
        let tapes = (0..usage.threads.min(usage.batch)).map(|_| None).collect();
        let mut run = Run { engine, usage, params, optimiser, tapes, carried: vec![] };
        (0..2).for_each(|_| run.update());
    })
}

/// Sizes at which a plan is some megabytes, so that small things do not count.
fn engine_of(model: &Arc<Model>, usage: &Use) -> Engine {
    let options = EngineOptions {
        input_bars: false,
        checkpoint_every: usage.checkpoint_every,
        ..EngineOptions::default()
    };
    let mut n = 24;
    loop {
        let sizes: Sizes = support::small_sizes(model, n);
        let engine = Engine::new(Arc::clone(model), sizes, Backend::CRANELIFT, &options);
        let engine = engine.unwrap_or_else(|e| panic!("{}: {e}", model.name));
        if engine.plan(usage).total_bytes > 4 << 20 {
            return engine;
        }
        n += n / 2;
    }
}

/// The first matrix product on a thread reserves room for packed operands, twice the processor's
/// cache, most of which is never touched: address space rather than memory.
fn reserve_products() {
    let usage =
        Use { batch: 1, steps: 2, threads: 1, tapes: Tapes::PerThread, checkpoint_every: None, memory: None };
    measured(&engine_of(&support::spec("backpropamine/plain.bpm"), &usage), usage);
}

#[test]
fn plans_are_what_training_takes() {
    let _turn = TURN.lock();
    reserve_products();
    let usual = Use {
        batch: 20,
        steps: 30,
        threads: 1,
        tapes: Tapes::PerThread,
        checkpoint_every: None,
        memory: None,
    };
    let usages = [
        usual,
        Use { batch: 3, steps: 100, threads: 2, ..usual },
        Use { batch: 1, steps: 50, checkpoint_every: Some(5), ..usual },
    ];
    let mut wrong = vec![];
    for (name, model) in support::all_specs() {
        for usage in &usages {
            let engine = engine_of(&model, usage);
            let (planned, found) = (engine.plan(usage).total_bytes, measured(&engine, *usage));
            let ratio = planned as f64 / found as f64;
            let line = format!("{name}, batch {}: {planned} planned, {found} taken: {ratio:.3}", usage.batch);
            println!("{line}");
            if !(0.9..=1.1).contains(&ratio) {
                wrong.push(line);
            }
        }
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

#[test]
fn plans_hold_for_events() {
    let _turn = TURN.lock();
    reserve_products();
    let usage = Use {
        batch: 3,
        steps: 60,
        threads: 1,
        tapes: Tapes::PerThread,
        checkpoint_every: None,
        memory: None,
    };
    let mut wrong = vec![];
    for (name, model) in support::all_specs() {
        let states = events::legality(&model, Prefer::Events).states;
        let Some(model) = events::rewrite(&model, &states, usage.steps) else { continue };
        let engine = engine_of(&Arc::new(model), &usage);
        let (planned, found) = (engine.plan(&usage).total_bytes, measured(&engine, usage));
        let ratio = planned as f64 / found as f64;
        println!("{name}: {planned} planned, {found} taken: {ratio:.3}");
        if !(0.9..=1.1).contains(&ratio) {
            wrong.push(format!("{name}: {planned} planned, {found} taken: {ratio:.3}"));
        }
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

/// A whole training run: worlds, rollouts and losses are small beside the network.
#[test]
fn plans_hold_for_recipes() {
    let _turn = TURN.lock();
    reserve_products();
    let maze = "[task]\nname = \"maze\"\nsteps = 200\n[sizes]\nN = 100\n[run]\nbatch = 20\n";
    let first = format!("{maze}[learner]\nbaseline = \"first\"\n");
    let pattern = "[task]\nname = \"pattern-completion\"\nbits = 200\n[run]\nbatch = 4\n";
    let cases = [
        ("backpropamine/simple.bpm", maze, Tapes::PerThread),
        ("backpropamine/retroactive.bpm", &first, Tapes::PerRow),
        ("differentiable_plasticity/pattern_completion.bpm", pattern, Tapes::PerThread),
    ];
    for (path, recipe, tapes) in cases {
        let spec = runtime::spec::load(&support::root().join("specs").join(path).display().to_string());
        let recipe = Recipe::parse("r", &format!("spec = \"{path}\"\n{recipe}"), &[]);
        let (spec, recipe) = (spec.expect("a spec"), recipe.expect("a recipe"));
        let trainer = setup::trainer(spec, recipe, Backend::CRANELIFT, 1, Mode::Train);
        let mut trainer = trainer.unwrap_or_else(|e| panic!("{path}: {e}"));
        let (batch, steps) = (trainer.recipe.schedule.batch, trainer.recipe.task.steps());
        let usage = Use { batch, steps, threads: 1, tapes, checkpoint_every: None, memory: None };
        let planned = trainer.engine.plan(&usage).total_bytes;
        // Parameters and moments are there already.
        let elements: usize = trainer.params.raw.iter().map(Vec::len).sum();
        let steps = || (0..2).for_each(|_| drop(trainer.step().unwrap_or_else(|e| panic!("{path}: {e}"))));
        let found = peak_of(steps) + 12 * elements as u64;
        let ratio = planned as f64 / found as f64;
        println!("{path}: {planned} planned, {found} taken: {ratio:.3}");
        assert!(planned > 2 << 20 && (0.9..=1.1).contains(&ratio), "{path}: {planned} {found} {ratio}");
    }
}
