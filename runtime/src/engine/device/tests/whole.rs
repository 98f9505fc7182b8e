//! Kernels of whole sequences, driven by the host: the same specs and the same ways of running them as with kernels
//! of single steps. Numbers are compared with machine code and with the interpreter, at the tolerances that hold
//! where a device takes sums over whole matrices: the sums of these kernels have an order of their own too, and what
//! is rounded otherwise goes through all later steps. Bits are compared with bits of the same kernels.

use super::*;
use crate::engine::device::sequences::Tier;
use compiler::back::cuda::Arch;

fn whole(every: Option<usize>) -> EngineOptions {
    EngineOptions { batch: ROWS, tier: Tier::Auto, ..options(every) }
}

const KNOWN: How = How { steps: 7, whole: true, reset: None, own: false };

#[test]
fn every_spec_of_the_library_agrees() {
    let Some(device) = device() else { return };
    let ways = [
        KNOWN,
        How { own: true, ..KNOWN },
        How { whole: false, ..KNOWN },
        How { reset: Some(4), ..KNOWN },
        How { reset: Some(4), own: true, whole: false, ..KNOWN },
    ];
    let mut tiers = [0, 0];
    for (k, path) in specs().iter().enumerate() {
        for (n, case) in Case::of(path, None).iter().enumerate() {
            let found = agree_as(case, &device, ways[(k + n) % ways.len()], &whole(Some(3)));
            found.iter().for_each(|tier| tiers[usize::from(*tier) - 1] += 1);
        }
    }
    assert!(tiers[1] > 40 && tiers[1] > 9 * tiers[0], "kernels of steps, of sequences: {tiers:?}");
}

#[test]
fn every_way_of_running_a_network_agrees() {
    let Some(device) = device() else { return };
    let case = Case::spec("backpropamine/retroactive.bpm");
    for steps in [1, 2, 3, 4, 8] {
        for (whole_inputs, own) in [(true, true), (true, false), (false, true), (false, false)] {
            let resets = [None, Some(1), Some(steps - 1), Some(steps)];
            for reset in resets.into_iter().filter(|r| r.is_none_or(|r| 0 < r && r <= steps)) {
                let how = How { steps, whole: whole_inputs, reset, own };
                assert_eq!(agree_as(&case, &device, how, &whole(Some(3))), [2, 2]);
            }
        }
    }
}

/// A device with the limits of another kind.
fn like(arch: Arch) -> Option<Arc<Emulated>> {
    emulated().map(|_| Arc::new(Emulated::like(arch, 1 << 30).expect("there is a compiler")))
}

fn sm_90() -> Arch {
    Arch::named("sm_90a").expect("it is known")
}

/// Sizes that need a cluster where blocks have little memory, and rows that are a multiple of nothing; the largest
/// clusters where others run one at a time.
#[test]
fn clusters_agree() {
    let large = [132, 1, 1, 1, 8];
    let kinds = [
        (Arch { shared: 34_000, ..sm_90() }, 71, " blocks of "),
        (Arch { shared: 100_000, resident: large, ..sm_90() }, 150, "16 blocks of "),
    ];
    for (kind, n, words) in kinds {
        let Some(device) = like(kind) else { return };
        let device = device as Arc<dyn Device>;
        let mut case = Case::spec("backpropamine/retroactive.bpm");
        let bound = BTreeMap::from([("I", 5), ("N", n), ("A", 3)].map(|(name, n)| (name.to_owned(), n)));
        case.sizes = Sizes::bind(&case.model.axes, &bound).expect("sizes");
        let engine = case.on(Arc::clone(&device), &whole(Some(2)));
        let route = engine.route().expect("a device").clone();
        assert!(route.tiers() == [2, 2] && route.why().contains(words), "{route}");
        for how in [How { steps: 5, ..KNOWN }, How { steps: 5, whole: false, reset: Some(2), own: true }] {
            assert_eq!(agree_as(&case, &device, how, &whole(Some(2))), [2, 2]);
        }
    }
}

/// The order of threads changes from launch to launch.
#[test]
fn bits_do_not_depend_on_the_order_of_threads() {
    let Some(device) = device() else { return };
    for name in ["backpropamine/retroactive.bpm", "zoo/deltanet.bpm", "backpropamine/simple.bpm"] {
        let case = Case::spec(name);
        let engine = case.on(Arc::clone(&device), &whole(Some(3)));
        assert_eq!(engine.route().map(|r| r.tiers()), Some([2, 2]));
        for how in [KNOWN, How { whole: false, reset: Some(3), ..KNOWN }] {
            let first = run(&case, &engine, ROWS, how);
            assert!((0..3).all(|_| run(&case, &engine, ROWS, how) == first), "{name} {how:?}");
        }
    }
}

#[test]
fn a_row_does_not_depend_on_the_others() {
    let Some(device) = device() else { return };
    let case = Case::spec("backpropamine/simple.bpm");
    let engine = case.on(device, &whole(None));
    let how = How { steps: 5, ..KNOWN };
    let ((all, together), (single, one_by_one)) =
        (run(&case, &engine, ROWS, how), run(&case, &engine, 1, how));
    assert_eq!(all, single);
    for (x, y) in together.iter().zip(&one_by_one) {
        assert!(far(x, y) < 1e-6);
    }
}

/// Windows that begin where the one before ended, the last one shorter, on one tape; and a sequence that is given
/// in two parts between which nothing is reset.
#[test]
fn windows_carry_states() {
    let Some(device) = device() else { return };
    let case = Case::spec("backpropamine/retroactive.bpm");
    let engines = [case.on(device, &whole(Some(3))), case.engine(Backend::CRANELIFT, &options(Some(3)))];
    let windows = |engine: &Engine, cut: Option<usize>| {
        let bound = engine.bind(&case.params()).expect("bound");
        let rows = if engine.device().is_some() { ROWS } else { 1 };
        let mut tape = engine.team_tape(8, Mode::Train, rows);
        let mut all = vec![];
        for row in (0..ROWS).step_by(rows) {
            let mut states: Vec<RowState> = (row..row + rows).map(|r| case.states(r, false)).collect();
            let mut done = 0;
            for steps in [8, 8, 5] {
                let mut grads = engine.grads();
                bound.begin_team(&mut tape, &states.iter().map(Some).collect::<Vec<_>>());
                let parts = [cut.map_or(steps, |c| c.min(steps)), cut.map_or(0, |c| steps.saturating_sub(c))];
                let mut before = 0;
                for part in parts.into_iter().filter(|n| 0 < *n) {
                    bound.forward_team(&mut tape, part, &mut |r, t, input, x| {
                        x.copy_from_slice(&case.input(row + r, done + before + t, input));
                    });
                    before += part;
                }
                for (r, t) in (0..rows).flat_map(|r| (0..steps).map(move |t| (r, t))) {
                    bound.select(&mut tape, r);
                    for (k, o) in case.model.outputs.iter().enumerate() {
                        let bar = case.numbers(Purpose::Action, row + r, 16 * t + k, o.shape);
                        bound.output_bar_mut(&mut tape, t, OutputId(k as u32)).copy_from_slice(&bar);
                    }
                }
                bound.backward(&mut tape, &mut grads, 0.0, None);
                for (r, last) in states.iter_mut().enumerate() {
                    bound.select(&mut tape, r);
                    *last = bound.state(&mut tape);
                    let bars = bound.init_bar(&tape).states.into_iter().chain(last.states.clone());
                    all.extend(bars.map(|x| (row + r, done, x)));
                }
                done += steps;
            }
        }
        engine.check().expect("it is well");
        all.sort_by_key(|(row, done, _)| (*row, *done));
        all
    };
    let expected = windows(&engines[1], None);
    let at_once = windows(&engines[0], None);
    assert_eq!(at_once.len(), expected.len());
    for ((row, done, x), (_, _, y)) in at_once.iter().zip(&expected) {
        assert!(far(x, y) < 2e-4, "row {row}, step {done}: {x:?}, expected {y:?}");
    }
    for cut in [1, 3, 4] {
        assert!(windows(&engines[0], Some(cut)) == at_once, "cut after {cut} steps");
    }
}

#[test]
fn sequences_are_recorded_once_for_their_shape() {
    let Some(device) = emulated() else { return };
    let case = Case::spec("backpropamine/simple.bpm");
    let engine = case.on(Arc::clone(&device) as Arc<dyn Device>, &whole(None));
    let mut tape = engine.team_tape(12, Mode::Train, ROWS);
    let bound = engine.bind(&case.params()).expect("bound");
    let mut grads = engine.grads();
    let mut update = |steps: usize| {
        let how = How { steps, own: true, ..KNOWN };
        let before = device.counts().0;
        (run_team(&case, &bound, &mut tape, &mut grads, 0, how), device.counts().0 - before)
    };
    let found: Vec<Results> = (0..3).map(|_| update(6).0).collect();
    assert!(found[1] == found[0] && found[2] == found[0]);
    assert_eq!(device.counts().1, 2, "a recording for each direction, for all updates");
    assert_eq!(update(6).1, update(12).1, "as many launches for any number of steps");
    assert_eq!(device.counts().1, 4);
}

#[test]
fn what_cannot_be_mapped_runs_step_by_step_or_is_refused() {
    let Some(device) = like(Arch { shared: 1000, ..sm_90() }) else { return };
    let device = device as Arc<dyn Device>;
    let case = Case::spec("backpropamine/retroactive.bpm");
    assert_eq!(agree_as(&case, &device, KNOWN, &whole(Some(3))), [1, 1]);
    let engine = case.on(Arc::clone(&device), &whole(None));
    let route = engine.route().expect("a device");
    assert!(route.why().contains("bytes more shared memory than the 1000 of"), "{route}");
    let demanded = EngineOptions { tier: Tier::Sequences, ..whole(None) };
    let (model, sizes) = (Arc::clone(&case.model), case.sizes.clone());
    let text = Text { file: "spec.bpm", source: &case.text };
    let refused = Engine::on(device, model, sizes, Backend::Device(DeviceId::Emulated), &demanded, text);
    let error = crate::Error::from(refused.err().expect("it does not fit"));
    assert_eq!(error.exit_code(), 3);
    assert!(error.message.contains("`retroactive` has no kernels of whole sequences"), "{}", error.message);
    assert!(error.help.iter().any(|h| h.contains("--tier 1")), "{:?}", error.help);
}

#[test]
fn a_device_may_fail_at_any_call() {
    if emulated().is_none() {
        return;
    }
    let case = Case::spec("backpropamine/retroactive.bpm");
    let (mut faults, mut named) = (0, 0);
    for calls in 0.. {
        let inner = Emulated::new().expect("a device");
        let device = Arc::new(Failing { inner, left: 1_000_000.into() });
        let engine = case.on(Arc::clone(&device) as Arc<dyn Device>, &whole(Some(2)));
        device.left.store(calls, std::sync::atomic::Ordering::Relaxed);
        let how = How { steps: 5, whole: calls % 3 != 0, reset: (calls % 4 == 1).then_some(3), own: true };
        let error = engine.bind(&case.params()).and_then(|bound| {
            let mut tape = engine.team_tape(how.steps, Mode::Train, ROWS);
            let mut grads = engine.grads();
            run_team(&case, &bound, &mut tape, &mut grads, 0, how);
            engine.finish(&bound, vec![grads]);
            engine.check()
        });
        let Err(error) = error else { break };
        let error = crate::Error::from(error);
        assert_eq!(error.exit_code(), 3, "{calls}");
        assert!(error.message.starts_with("it has fallen off the bus"), "{calls}: {}", error.message);
        named += usize::from(error.message.contains("_sequence` of `retroactive` (spec.bpm)"));
        faults += 1;
    }
    assert!(faults > 10 && named > 0, "{faults} places to fail, {named} in kernels of whole sequences");
}

#[test]
fn the_plan_of_a_device_counts_what_is_taken() {
    let Some(device) = emulated() else { return };
    let case = Case::spec("backpropamine/retroactive.bpm");
    let engine = case.on(Arc::clone(&device) as Arc<dyn Device>, &whole(None));
    let free = || device.memory().expect("memory").free;
    let bound = engine.bind(&case.params()).expect("bound");
    let before = free();
    let tape = engine.team_tape(40, Mode::Train, ROWS);
    let grads = engine.grads();
    let (taken, planned) = (before - free(), engine.device_bytes(ROWS, 40, Mode::Train));
    drop((tape, grads, bound));
    assert!(taken <= planned && planned < taken + 16 * 512 + 4096, "{taken} of {planned}");
}

/// What `bpmc plan --target cuda` says of a kind of device is what runs on a device of that kind: which kernels take
/// which direction, with both estimates of both, and how they are mapped.
#[test]
fn the_plan_of_the_compiler_is_what_runs() {
    let Some(device) = like(sm_90()) else { return };
    let cases = [
        ("backpropamine/retroactive.bpm", 9, 3, [2, 2]),
        ("backpropamine/retroactive.bpm", 100, 30, [2, 2]),
        ("backpropamine/retroactive.bpm", 512, 16, [2, 1]),
    ];
    for (name, n, batch, tiers) in cases {
        let case = Case::spec(name);
        let bound = BTreeMap::from([("I", 5), ("N", n), ("A", 3)].map(|(name, n)| (name.to_owned(), n)));
        let sizes = Sizes::bind(&case.model.axes, &bound).expect("sizes");
        let case = Case { text: case.text.clone(), model: Arc::clone(&case.model), sizes };
        let training = EngineOptions { input_bars: false, batch, mapping: Wanted::Fastest, ..whole(None) };
        let engine = case.on(Arc::clone(&device) as Arc<dyn Device>, &training);
        let crate::engine::Kind::Device(code) = &engine.kind else { panic!("it runs on a device") };
        let usage = compiler::loops::plan::Use {
            batch,
            steps: 50,
            threads: 1,
            tapes: compiler::loops::plan::Tapes::PerThread,
            checkpoint_every: None,
            memory: None,
        };
        let (file, source, model) = ("spec.bpm", case.text.as_str(), &*case.model);
        let subject = compiler::stages::Subject { file, source, model, bound: &bound, usage: &usage };
        let grid =
            compiler::back::cuda::Grid { processors: sm_90().processors, batch, wanted: Wanted::Fastest };
        let wanted = compiler::back::cuda::Device::new(sm_90(), batch);
        let plan = compiler::stages::cuda_candidates(&subject, grid, &wanted).expect("sizes");
        let route = plan.choose(compiler::back::cuda::Wish::default()).expect("anything will do");
        assert_eq!(route.tiers(), tiers, "{name} {n}: {route}");
        let ours = engine.route().expect("a device");
        assert_eq!(ours.tiers(), tiers, "{name} {n}: {ours}");
        for (ours, planned) in ours.directions.iter().zip(&route.directions) {
            assert_eq!((ours.reason, ours.steps), (planned.reason, planned.steps));
            // What is refused names the device.
            assert_eq!(ours.sequences.as_ref().ok(), planned.sequences.as_ref().ok());
        }
        let ours = code.whole.as_ref().expect("it is mapped").text(&sm_90());
        assert_eq!(ours, plan.taken(&route).map(|m| m.map(|m| m.text(&sm_90()))));
    }
}

const MIXED: [(Tier, [u8; 2]); 2] = [(Tier::ForwardSteps, [1, 2]), (Tier::BackwardSteps, [2, 1])];

/// Kernels of single steps one way and of whole sequences the other: one spec in three, all of them with `BPM_CUDA=all`.
#[test]
fn mixed_routes_agree() {
    let Some(device) = device() else { return };
    let all = std::env::var_os("BPM_CUDA").is_some_and(|v| v == "all");
    let ways = [KNOWN, How { own: true, ..KNOWN }, How { reset: Some(4), ..KNOWN }];
    let (mut ran, mut refused) = (0, 0);
    for (k, path) in specs().iter().enumerate() {
        for (n, case) in Case::of(path, None).iter().enumerate() {
            let turn = k / 3 + n;
            for (which, (tier, tiers)) in MIXED.into_iter().enumerate() {
                if !all && (k % 3 != 0 || turn % 2 != which) {
                    continue;
                }
                let options = EngineOptions { tier, ..whole(Some(3)) };
                let (model, sizes) = (Arc::clone(&case.model), case.sizes.clone());
                let text = Text { file: "spec.bpm", source: &case.text };
                let backend = Backend::Device(DeviceId::Emulated);
                match Engine::on(Arc::clone(&device), model, sizes, backend, &options, text) {
                    Err(why) => {
                        let why = crate::Error::from(why).message;
                        assert!(
                            why.contains("largest value of a whole matrix") || why.contains("logs"),
                            "{why}"
                        );
                        refused += 1;
                    }
                    Ok(_) => {
                        assert_eq!(agree_as(case, &device, ways[(turn / 2) % ways.len()], &options), tiers);
                        ran += 1;
                    }
                }
            }
        }
    }
    assert!(ran > 15 && refused * 9 < ran, "{ran} ran, {refused} refused");
}

/// Any checkpoints, resets, numbers of steps, steps one by one, in slabs and in blocks of rows; clips that hit. For a
/// mapping, checkpoints change no bit.
#[test]
fn mixed_routes_agree_in_every_way_of_running_a_network() {
    let Some(device) = device() else { return };
    let case = Case::spec("backpropamine/retroactive.bpm");
    for (tier, tiers) in MIXED {
        let options = |every| EngineOptions { tier, ..whole(every) };
        let ways = [
            (How { steps: 1, ..KNOWN }, None),
            (How { steps: 11, own: true, ..KNOWN }, Some(4)),
            (How { steps: 9, reset: Some(4), own: true, ..KNOWN }, Some(1)),
            (How { steps: 8, reset: Some(8), ..KNOWN }, Some(5)),
            (How { steps: 7, whole: false, reset: Some(3), own: true }, Some(2)),
        ];
        for (how, every) in ways {
            assert_eq!(agree_as(&case, &device, how, &options(every)), tiers);
        }
        let slabs = Wanted::Slabs(compiler::loops::Cut { columns: 8, stretches: 4 }, 2);
        let shared = EngineOptions { mapping: slabs, ..options(Some(3)) };
        assert_eq!(agree_as(&case, &device, How { reset: Some(4), own: true, ..KNOWN }, &shared), tiers);
        let how = How { steps: 13, reset: Some(9), own: true, ..KNOWN };
        let bits = |every| run(&case, &case.on(Arc::clone(&device), &options(every)), ROWS, how);
        let expected = bits(None);
        for every in [1, 2, 5, 8, 13] {
            assert!(bits(Some(every)) == expected, "{tier:?}, a checkpoint every {every} steps");
        }
    }
}

/// Where steps come one by one, only the way back is chosen, whatever is asked for; a direction that cannot be mapped
/// falls back alone.
#[test]
fn directions_are_chosen_one_by_one() {
    let Some(device) = device() else { return };
    let case = Case::spec("backpropamine/retroactive.bpm");
    for (tier, tiers) in [
        (Tier::Auto, [1, 2]),
        (Tier::Sequences, [1, 2]),
        (Tier::ForwardSteps, [1, 2]),
        (Tier::BackwardSteps, [1, 1]),
        (Tier::Steps, [1, 1]),
    ] {
        let options = EngineOptions { tier, one_by_one: true, ..whole(Some(3)) };
        let route = case.on(Arc::clone(&device), &options).route().cloned().expect("a device");
        assert_eq!(route.tiers(), tiers, "{route}");
        assert!(route.why().contains("steps come one by one"), "{route}");
    }
    // Going backward a row takes more: adjoint frames, and what is carried.
    let mut only_forward = 0;
    for shared in (2000..12_000).step_by(1000) {
        let Some(device) = like(Arch { shared, ..sm_90() }) else { return };
        let device = device as Arc<dyn Device>;
        let route = case.on(Arc::clone(&device), &whole(None)).route().cloned().expect("a device");
        if route.tiers() == [2, 1] {
            only_forward += 1;
            assert!(route.why().contains("backward") && route.why().contains("does not fit"), "{route}");
            assert_eq!(agree_as(&case, &device, KNOWN, &whole(Some(3))), [2, 1]);
        }
    }
    assert!(only_forward > 0, "somewhere between nothing and everything");
}
