//! Matrix states that are kept of every step: when they are, what that takes, and that nothing else changes. That they
//! give the bits of states that are rebuilt, every comparison of [`super::agree_as`] says.

use super::*;

const GIB: u64 = 1 << 30;

/// A network whose matrices take most of a tape, and a device with so much memory.
fn engine(case: &Case, memory: u64, every: Option<usize>) -> Engine {
    let device = Arc::new(Emulated::with_memory(memory).expect("there is a compiler"));
    case.on(device, &options(every))
}

fn retroactive(n: usize) -> Case {
    let mut case = Case::spec("backpropamine/retroactive.bpm");
    let bound = BTreeMap::from([("I", 17), ("N", n), ("A", 4)].map(|(name, n)| (name.to_owned(), n)));
    case.sizes = Sizes::bind(&case.model.axes, &bound).expect("sizes");
    case
}

#[test]
fn they_are_kept_where_they_take_little_of_the_device() {
    if emulated().is_none() {
        return;
    }
    let case = retroactive(40);
    let (rows, steps) = (ROWS, 20);
    let states = 4 * 2 * (40 * 40 * rows * (steps + 1)) as u64;
    let words = |memory: u64, every: Option<usize>| {
        let engine = engine(&case, memory, every);
        let planned = engine.device_bytes(rows, steps, Mode::Train);
        (engine.states(rows, steps).expect("it has matrices"), planned)
    };
    let (kept, most) = words(9 * states, None);
    assert!(kept.starts_with("matrix states kept of every step, "), "{kept}");
    let (rebuilt, least) = words(7 * states, None);
    assert!(rebuilt.starts_with("matrix states replayed, from one in 5 steps, "), "{rebuilt}");
    assert!(most > states && least < most, "{most} and {least} bytes");
    // Whoever asks for an interval gets it.
    assert_eq!(words(7 * states, Some(1)).1, most);
    assert!(words(9 * states, Some(4)).0.contains("from one in 4 steps"));
    // There is nothing to keep where nothing goes back.
    assert!(engine(&case, 9 * states, None).device_bytes(rows, steps, Mode::Infer) < states);
}

#[test]
fn the_numbers_are_the_same_with_much_memory_and_with_little() {
    if emulated().is_none() {
        return;
    }
    let case = retroactive(24);
    let how = How { steps: 9, whole: true, reset: Some(4), own: true };
    let states = 4 * 2 * (24 * 24 * ROWS * (how.steps + 1)) as u64;
    let found = [GIB, 7 * states].map(|memory| {
        let engine = engine(&case, memory, None);
        (engine.states(ROWS, how.steps).expect("it has matrices"), run(&case, &engine, ROWS, how))
    });
    let [(kept, all), (rebuilt, same)] = found;
    assert!(kept.contains("kept") && rebuilt.contains("replayed"), "{kept}; {rebuilt}");
    assert!(all == same);
}

/// Resets and longer sequences than were foreseen make the memory of the states grow.
#[test]
fn a_tape_of_kept_states_grows() {
    let Some(device) = device() else { return };
    let case = Case::spec("backpropamine/retroactive.bpm");
    let engine = case.on(device, &options(Some(1)));
    let bound = engine.bind(&case.params()).expect("bound");
    for (whole, reset) in [(true, None), (false, None), (true, Some(5)), (false, Some(5))] {
        let how = How { steps: 9, whole, reset, own: true };
        let run = |room: usize| {
            let mut tape = engine.team_tape(room, Mode::Train, ROWS);
            let mut grads = engine.grads();
            (run_team(&case, &bound, &mut tape, &mut grads, 0, how), engine.finish(&bound, vec![grads]))
        };
        assert!(run(9) == run(1), "{how:?}");
        engine.check().expect("the device is well");
    }
}

/// What the states of all steps would take does not decide over what fits.
#[test]
fn long_sequences_of_large_batches_fit_into_four_gigabytes() {
    if emulated().is_none() {
        return;
    }
    let case = retroactive(256);
    let engine = engine(&case, 80 * GIB, None);
    let bytes = engine.device_bytes(64, 1000, Mode::Train);
    assert!(bytes < 4_000_000_000, "{bytes} bytes");
    let words = |steps| engine.states(64, steps).expect("it has matrices");
    assert!(words(1000).contains("replayed") && words(200).contains("kept"), "{}", words(1000));
}
