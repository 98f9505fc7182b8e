//! Results are the same bits, however a row is run: for every checkpoint interval, on a fresh tape
//! and on a used one, for a reset in the middle and separate episodes, whether or not the backward
//! pass is wanted, whether or not states are read on the way.

mod support;

use compiler::gradcheck::{Case, Options, random_case};
use compiler::interp::{Cotangents, Sequence, Tensor};
use compiler::ir::{InputId, OutputId, Sizes};
use compiler::model::Model;
use runtime::engine::{Backend, Chaining, Engine, EngineOptions, KnownRow, Mode, RowState};
use std::sync::Arc;
use support::{
    Manner, RowResult, all_specs, bits, feed, files, model_of, narrow, outputs_at, run_in_manner, run_on,
    single_precision, small_sizes,
};

const STEPS: usize = 7;

/// Expressions that the write of a step and the read of the next have in common, matrices of
/// several shapes, and sums in the sweep that writes: where a compiler that joins sweeps is tempted
/// to round differently from one that does not.
const TEMPTING: &[&str] = &[
    "spec shared_products {
  axis N = ?
  in u[N]
  learn W[N,N], V[N,N] ~ uniform(-1, 1)
  learn s = 0.3, r[N] = 0.5
  state y[N] = 0
  plastic H[N,N] = 0
  y' = tanh(u + (H + s * W + r[j] * V) @ y)
  H'[j,i] = clip(0.5 * H + s * W + r[j] * V + 0.3 * y'[j] * y[i], -0.7, 0.7)
  out y'
}",
    "spec product_as_state {
  axis N = ?
  in u[N]
  learn W[N,N] ~ uniform(-1, 1)
  state y[N] = 0
  plastic H[N,N] = 0.5
  y' = tanh(u + (W + H) @ y)
  H'[j,i] = tanh(H) * W
  out y'
}",
    "spec sums_in_the_write {
  axis N = ?
  in u[N]
  learn W[N,N] ~ uniform(-1, 1)
  learn s = 0.3
  state y[N] = 0, z[N] = 0
  plastic H[N,N] = 0
  trace E[N,N] = 0
  y' = tanh(u + (s * H + W * E) @ y + z)
  E'[j,i] = 0.7 * E + 0.3 * y'[j] * y[i]
  H'[j,i] = clip(H + s * E * y'[j], -0.7, 0.7)
  z' = 0.1 * ((s * H' + W * E) @ y')
  out y'
  out o[N] = H'^T @ y'
  penalty mean(H' * H') + 0.1 * sum(s * E)
}",
    "spec two_shapes {
  axis N = ?, M = ?
  in u[N], w[M]
  learn V[M,N] ~ uniform(-1, 1)
  learn s = 0.4
  state z[M] = 0, y[N] = 0
  plastic H[M,N] = 0, G[N,M] = 0
  z' = tanh(w + (V + s * H) @ y)
  y' = tanh(u + G @ z')
  H'[j,i] = clip(0.9 * H + s * V * z'[j] * y[i], -0.4, 0.4)
  G'[j,i] = clip(G + s * y[j] * z[i], -0.4, 0.4)
  out y'
}",
    "spec no_matrix {
  axis N = ?
  in u[N]
  learn W[N,N] ~ uniform(-1, 1)
  state y[N] = 0
  y' = tanh(W @ y + u)
  out y'
}",
];

/// The library, the models that failed once and the specs above, at sizes that leave lanes of a register empty.
fn models() -> Vec<(String, Arc<Model>, Sizes)> {
    let cases = files("tests/cases", "bpm");
    let cases = cases.iter().map(|path| std::fs::read_to_string(path).expect("the case is readable"));
    let tempting = TEMPTING.iter().map(ToString::to_string).chain(cases);
    let tempting = tempting.map(|text| model_of(&text)).map(|m| (m.name.clone(), m));
    tempting
        .chain(all_specs())
        .map(|(name, model)| {
            let sizes = small_sizes(&model, 5);
            (name, model, sizes)
        })
        .collect()
}

fn engine(model: &Arc<Model>, sizes: &Sizes, checkpoint_every: Option<usize>) -> Engine {
    let options = EngineOptions { checkpoint_every, ..EngineOptions::default() };
    Engine::new(model.clone(), sizes.clone(), Backend::fastest(), &options).expect("it compiles")
}

fn case(model: &Model, sizes: &Sizes, seed: u64, reset_at: Option<usize>) -> Case {
    let options = Options { seed, steps: STEPS, state_scale: 0.4, reset_at, ..Options::default() };
    single_precision(random_case(model, sizes, &options))
}

fn params(case: &Case) -> Vec<Vec<f32>> {
    case.params.iter().map(|p| narrow(p)).collect()
}

fn same(name: &str, what: &str, found: &RowResult, expected: &RowResult) {
    for ((k, a), (_, b)) in bits(found).iter().zip(&bits(expected)) {
        assert_eq!(a, b, "{name}: {k} depends on {what}");
    }
}

#[test]
fn back_ends_give_the_same_bits() {
    let mut compared = 0;
    for (name, model, _) in models() {
        for n in [1, 5, 13, 34] {
            let sizes = small_sizes(&model, n);
            let case = case(&model, &sizes, 8, Some(3));
            let run = |backend| {
                let options = EngineOptions { checkpoint_every: Some(2), ..EngineOptions::default() };
                let engine = Engine::new(model.clone(), sizes.clone(), backend, &options);
                run_in_manner(&engine.expect("it compiles"), &case, Manner::default())
            };
            same(&name, "the back end", &run(Backend::fastest()), &run(Backend::CRANELIFT));
            compared += 1;
        }
    }
    assert!(compared > 200, "only {compared} runs were compared");
}

#[test]
fn checkpoints_change_nothing() {
    for (name, model, sizes) in models() {
        for reset_at in [None, Some(3)] {
            let case = case(&model, &sizes, 1, reset_at);
            let expected = run_in_manner(&engine(&model, &sizes, Some(1)), &case, Manner::default());
            for interval in [2, 3, 4, STEPS - 1, STEPS, STEPS + 5] {
                let found = run_in_manner(&engine(&model, &sizes, Some(interval)), &case, Manner::default());
                same(&name, &format!("a checkpoint every {interval} steps"), &found, &expected);
            }
        }
    }
}

#[test]
fn reading_states_on_the_way_changes_nothing() {
    for (name, model, sizes) in models() {
        let case = case(&model, &sizes, 2, Some(4));
        let engine = engine(&model, &sizes, None);
        let expected = run_in_manner(&engine, &case, Manner::default());
        let peeks = Manner { peeks: true, ..Manner::default() };
        same(&name, "reading states", &run_in_manner(&engine, &case, peeks), &expected);
    }
}

#[test]
fn tapes_may_outgrow_their_announced_length() {
    for (name, model, sizes) in models() {
        let case = case(&model, &sizes, 3, Some(2));
        let engine = engine(&model, &sizes, None);
        let expected = run_in_manner(&engine, &case, Manner::default());
        for announced in [0, 1, 2, STEPS - 1, 100] {
            let manner = Manner { announced: Some(announced), ..Manner::default() };
            let found = run_in_manner(&engine, &case, manner);
            same(&name, &format!("an announced length of {announced}"), &found, &expected);
        }
    }
}

#[test]
fn rows_do_not_see_what_ran_on_their_tape_before() {
    for (name, model, sizes) in models() {
        let engine = engine(&model, &sizes, None);
        let (first, mut second) = (case(&model, &sizes, 4, Some(2)), case(&model, &sizes, 5, None));
        second.params.clone_from(&first.params);
        let bound = engine.bind(&params(&first)).expect("parameters fit");
        let fresh = run_in_manner(&engine, &second, Manner::default());
        let mut tape = engine.tape(STEPS, Mode::Train);
        run_on(&bound, &mut tape, &mut engine.grads(), &first, Manner::default());
        let mut grads = engine.grads();
        let mut used = run_on(&bound, &mut tape, &mut grads, &second, Manner::default());
        used.params = engine.finish(&bound, vec![grads]);
        same(&name, "the row before", &used, &fresh);
        // A shorter row after a longer one.
        let mut short = second.clone();
        short.sequence.inputs.truncate(2);
        short.sequence.resets.truncate(2);
        short.bars.outputs.truncate(2);
        let fresh = run_in_manner(&engine, &short, Manner::default());
        let mut grads = engine.grads();
        let mut used = run_on(&bound, &mut tape, &mut grads, &short, Manner::default());
        used.params = engine.finish(&bound, vec![grads]);
        same(&name, "the longer row before", &used, &fresh);
    }
}

#[test]
fn a_sequence_that_is_known_gives_what_its_steps_give() {
    for (name, model, _) in models() {
        for backend in [Backend::Interp, Backend::CRANELIFT, Backend::fastest()] {
            for n in [5, 13] {
                let sizes = small_sizes(&model, n);
                let options = EngineOptions { checkpoint_every: Some(3), ..EngineOptions::default() };
                let engine =
                    Engine::new(model.clone(), sizes.clone(), backend, &options).expect("it compiles");
                for reset_at in [None, Some(4)] {
                    let case = case(&model, &sizes, 11, reset_at);
                    let by_steps = run_in_manner(&engine, &case, Manner::default());
                    let at_once = run_in_manner(&engine, &case, Manner { ahead: true, ..Manner::default() });
                    same(&name, "whether inputs are known", &at_once, &by_steps);
                }
                let case = case(&model, &sizes, 12, None);
                let mut expected = case.clone();
                expected.bars.last.iter_mut().for_each(|x| *x = Arc::new(vec![0.0; x.len()]));
                let expected = run_in_manner(&engine, &expected, Manner::default()).params;
                let found = trained_at_once(&engine, &case);
                assert_eq!(found, expected, "{name}: {backend:?}");
            }
        }
    }
}

/// The gradients by the one call for rows with known inputs.
fn trained_at_once(engine: &Engine, case: &Case) -> Vec<Vec<f32>> {
    let bound = engine.bind(&params(case)).expect("parameters fit");
    let initial = RowState { states: case.sequence.initial.iter().map(|s| narrow(s)).collect() };
    let (mut tape, mut grads) = (engine.tape(STEPS, Mode::Train), engine.grads());
    let row = KnownRow {
        states: Some(&initial),
        steps: STEPS,
        inputs: &mut |t, k, x| x.copy_from_slice(&narrow(&case.sequence.inputs[t][k.index()])),
        cotangents: &mut |t, k, _, bar| bar.copy_from_slice(&narrow(&case.bars.outputs[t][k.index()])),
        penalty_bar: case.bars.penalty as f32,
    };
    bound.train_step(&mut tape, &mut grads, row);
    engine.finish(&bound, vec![grads])
}

#[test]
fn gradients_are_summed_row_by_row() {
    for (name, model, sizes) in models() {
        let engine = engine(&model, &sizes, None);
        let (first, mut second) = (case(&model, &sizes, 6, None), case(&model, &sizes, 7, Some(5)));
        second.params.clone_from(&first.params);
        let bound = engine.bind(&params(&first)).expect("parameters fit");
        let mut chunks = vec![];
        for case in [&first, &second] {
            let mut grads = engine.grads();
            run_on(&bound, &mut engine.tape(STEPS, Mode::Train), &mut grads, case, Manner::default());
            chunks.push(grads);
        }
        let apart = engine.finish(&bound, chunks);
        let mut together = engine.grads();
        let mut tape = engine.tape(STEPS, Mode::Train);
        for case in [&first, &second] {
            run_on(&bound, &mut tape, &mut together, case, Manner::default());
        }
        let together = engine.finish(&bound, vec![together]);
        // Chunks are summed in double precision, rows within a chunk in single precision.
        for (p, (a, b)) in model.params.iter().zip(apart.iter().zip(&together)) {
            let norm = a.iter().map(|x| x * x).sum::<f32>().sqrt().max(0.1);
            let off = a.iter().zip(b).map(|(a, b)| (a - b).powi(2)).sum::<f32>().sqrt();
            assert!(off < 1e-4 * norm, "{name}: {} is not the sum over rows: {off:e} of {norm}", p.name);
        }
    }
}

/// Steps `from..to` of a case, as an episode of its own.
fn episode(case: &Case, from: usize, to: usize, last: bool) -> Case {
    let zeros = |x: &Tensor| Arc::new(vec![0.0; x.len()]);
    Case {
        params: case.params.clone(),
        sequence: Sequence {
            inputs: case.sequence.inputs[from..to].to_vec(),
            initial: case.sequence.initial.clone(),
            resets: vec![false; to - from],
        },
        bars: Cotangents {
            outputs: case.bars.outputs[from..to].to_vec(),
            penalty: case.bars.penalty,
            last: match last {
                true => case.bars.last.clone(),
                false => case.bars.last.iter().map(zeros).collect(),
            },
        },
    }
}

#[test]
fn a_reset_is_the_beginning_of_an_episode() {
    for (name, model, sizes) in models() {
        let engine = engine(&model, &sizes, Some(2));
        for at in [0, 1, 3, STEPS - 1] {
            let whole = case(&model, &sizes, 8, Some(at));
            let found = run_in_manner(&engine, &whole, Manner::default());
            let bound = engine.bind(&params(&whole)).expect("parameters fit");
            let mut grads = engine.grads();
            let mut tape = engine.tape(STEPS, Mode::Train);
            // The backward pass goes from the last episode to the first, and adds in this order.
            let second =
                run_on(&bound, &mut tape, &mut grads, &episode(&whole, at, STEPS, true), Manner::default());
            let mut expected = second.clone();
            if at > 0 {
                let first = episode(&whole, 0, at, false);
                let first = run_on(&bound, &mut tape, &mut grads, &first, Manner::default());
                expected.outputs = [first.outputs, second.outputs].concat();
                expected.penalties = [first.penalties, second.penalties].concat();
                expected.inputs = [first.inputs, second.inputs].concat();
                for (sum, x) in expected.initial.iter_mut().zip(&first.initial) {
                    sum.iter_mut().zip(x).for_each(|(s, x)| *s += x);
                }
            }
            expected.params = engine.finish(&bound, vec![grads]);
            same(&name, &format!("whether step {at} is a reset or a new episode"), &found, &expected);
        }
    }
}

#[test]
fn inference_gives_what_training_gives() {
    for (name, model, sizes) in models() {
        let engine = engine(&model, &sizes, None);
        let case = case(&model, &sizes, 9, Some(4));
        let trained = run_in_manner(&engine, &case, Manner::default());
        let bound = engine.bind(&params(&case)).expect("parameters fit");
        let initial = RowState { states: case.sequence.initial.iter().map(|s| narrow(s)).collect() };
        for mode in [Mode::Infer, Mode::Forward] {
            let mut tape = engine.tape(1, mode);
            // Twice, so that the second time begins on a used tape.
            for peek in [false, true] {
                bound.begin(&mut tape, Some(&initial));
                for (t, inputs) in case.sequence.inputs.iter().enumerate() {
                    if case.sequence.resets[t] {
                        bound.reset(&mut tape, Some(&initial));
                    }
                    feed(&bound, &mut tape, inputs);
                    bound.step(&mut tape);
                    let found = outputs_at(&bound, &tape, t);
                    assert_eq!(found, trained.outputs[t], "{name}: outputs of step {t}, {mode:?}");
                    let penalty = bound.penalty(&mut tape, t);
                    assert_eq!(penalty, trained.penalties[t], "{name}: penalty of step {t}, {mode:?}");
                    if peek {
                        bound.state(&mut tape);
                    }
                }
                assert_eq!(bound.state(&mut tape).states, trained.states, "{name}: final states, {mode:?}");
            }
            // The steps before the reset, all inputs given at once.
            bound.begin(&mut tape, Some(&initial));
            let inputs = &case.sequence.inputs;
            bound.forward(&mut tape, 4, &mut |t, k, x| x.copy_from_slice(&narrow(&inputs[t][k.index()])));
            for t in if mode == Mode::Infer { 3..4 } else { 0..4 } {
                assert_eq!(outputs_at(&bound, &tape, t), trained.outputs[t], "{name}: step {t}, {mode:?}");
            }
        }
    }
}

#[test]
fn inputs_may_be_written_before_a_reset() {
    for (name, model, sizes) in models() {
        let engine = engine(&model, &sizes, None);
        let case = case(&model, &sizes, 10, Some(3));
        let expected = run_in_manner(&engine, &case, Manner::default());
        let bound = engine.bind(&params(&case)).expect("parameters fit");
        let initial = RowState { states: case.sequence.initial.iter().map(|s| narrow(s)).collect() };
        for mode in [Mode::Train, Mode::Forward, Mode::Infer] {
            let mut tape = engine.tape(STEPS, mode);
            bound.begin(&mut tape, Some(&initial));
            for (t, inputs) in case.sequence.inputs.iter().enumerate() {
                feed(&bound, &mut tape, inputs);
                if case.sequence.resets[t] {
                    bound.reset(&mut tape, Some(&initial));
                    bound.reset(&mut tape, Some(&initial));
                }
                bound.step(&mut tape);
                assert_eq!(outputs_at(&bound, &tape, t), expected.outputs[t], "{name}: step {t}, {mode:?}");
            }
            assert_eq!(bound.state(&mut tape).states, expected.states, "{name}: {mode:?}");
        }
    }
}

#[test]
fn inputs_that_are_not_written_are_zero() {
    for (name, model, sizes) in models() {
        let engine = engine(&model, &sizes, None);
        let mut case = case(&model, &sizes, 11, None);
        let zeros = |x: &Tensor| Arc::new(vec![0.0; x.len()]);
        for inputs in case.sequence.inputs.iter_mut().skip(1).step_by(2) {
            *inputs = inputs.iter().map(zeros).collect();
        }
        let expected = run_in_manner(&engine, &case, Manner::default());
        let bound = engine.bind(&params(&case)).expect("parameters fit");
        let initial = RowState { states: case.sequence.initial.iter().map(|s| narrow(s)).collect() };
        let mut tape = engine.tape(STEPS, Mode::Train);
        for _ in 0..2 {
            bound.begin(&mut tape, Some(&initial));
            for (t, inputs) in case.sequence.inputs.iter().enumerate() {
                for (k, x) in inputs.iter().enumerate().filter(|_| t % 2 == 0) {
                    bound.input_mut(&mut tape, InputId(k as u32)).copy_from_slice(&narrow(x));
                }
                bound.step(&mut tape);
                assert_eq!(outputs_at(&bound, &tape, t), expected.outputs[t], "{name}: step {t}");
            }
        }
    }
}

/// Outputs, penalties, states and cotangents of inputs: the same bits. Gradients of parameters are summed over
/// rows in another order.
#[test]
fn rows_that_step_together_are_as_rows_alone() {
    let mut count = 0;
    for ((name, model, sizes), backend) in
        models().into_iter().flat_map(|m| [(m.clone(), Backend::CRANELIFT), (m, Backend::fastest())])
    {
        let checkpoint_every = Some(1 + count % 4);
        for rows in [2usize, 3, 5] {
            let options = EngineOptions { checkpoint_every, teams: 2 * rows, ..EngineOptions::default() };
            let engine = Engine::new(model.clone(), sizes.clone(), backend, &options).expect("it compiles");
            if engine.teams(2 * rows).len() > 2 {
                continue;
            }
            count += 1;
            let mut cases: Vec<Case> = (0..rows as u64).map(|r| case(&model, &sizes, 20 + r, None)).collect();
            for k in 0..cases.len() {
                cases[k].params = cases[0].params.clone();
                cases[k].bars.penalty = cases[0].bars.penalty;
                cases[k].bars.last = zeros_of(&cases[k].bars.last);
            }
            let manner = Manner { ahead: true, ..Manner::default() };
            let alone: Vec<RowResult> = cases.iter().map(|c| run_in_manner(&engine, c, manner)).collect();
            let (found, gradients) = run_together(&engine, &cases);
            for (row, (found, alone)) in found.iter().zip(&alone).enumerate() {
                let without = RowResult { params: vec![], initial: vec![], ..alone.clone() };
                assert_eq!(bits(found), bits(&without), "{name}: row {row} of {rows}, {}", backend.name());
            }
            for (k, sum) in gradients.iter().enumerate() {
                let meant = |i: usize| alone.iter().map(|a| f64::from(a.params[k][i])).sum::<f64>();
                let norm = (0..sum.len()).map(|i| meant(i).powi(2)).sum::<f64>().sqrt();
                let error =
                    (0..sum.len()).map(|i| (meant(i) - f64::from(sum[i])).powi(2)).sum::<f64>().sqrt();
                assert!(error <= 3e-6 * norm + 1e-7, "{name}: gradient {k}: {error} of {norm}");
            }
        }
    }
    assert!(count > 60, "{count}");
}

/// Outputs, penalties and states have the bits of the whole; the cotangent of what crosses is a sum in another order.
#[test]
fn links_one_after_the_other_are_as_the_whole() {
    let mut found = vec![];
    for (name, model, sizes) in models() {
        let links = compiler::passes::chain::chain(&compiler::passes::optimise(&model)).len();
        if links < 2 {
            continue;
        }
        found.push(format!("{name} {links}"));
        for backend in [Backend::CRANELIFT, Backend::fastest()] {
            for rows in [1, 3] {
                links_agree(&name, (&model, &sizes), backend, rows);
            }
        }
    }
    assert!(found.len() >= 8, "{found:?}");
    assert!(found.iter().any(|f| f.ends_with(" 3")), "{found:?}");
}

fn links_agree(name: &str, (model, sizes): (&Arc<Model>, &Sizes), backend: Backend, rows: usize) {
    let options = EngineOptions { checkpoint_every: Some(2), teams: 2 * rows, ..EngineOptions::default() };
    let engine = |chaining| {
        let options = EngineOptions { chaining, ..options };
        Engine::new(Arc::clone(model), sizes.clone(), backend, &options).expect("it compiles")
    };
    let (whole, chain) = (engine(Chaining::Never), engine(Chaining::Always));
    assert_eq!(whole.teams(2 * rows), chain.teams(2 * rows), "{name}");
    let mut cases: Vec<Case> = (0..rows as u64).map(|r| case(model, sizes, 20 + r, None)).collect();
    for k in 0..cases.len() {
        cases[k].params = cases[0].params.clone();
        cases[k].bars.penalty = cases[0].bars.penalty;
        cases[k].bars.last =
            if rows == 1 { cases[k].bars.last.clone() } else { zeros_of(&cases[k].bars.last) };
    }
    let same = |found: &RowResult, meant: &RowResult| {
        let bits =
            |r: &RowResult| bits(&RowResult { inputs: vec![], params: vec![], initial: vec![], ..r.clone() });
        assert_eq!(bits(found), bits(meant), "{name}: {rows} rows, {}", backend.name());
        for (t, (found, meant)) in found.inputs.iter().zip(&meant.inputs).enumerate() {
            let paths = |all: &[Option<Vec<f32>>]| all.iter().map(Option::is_some).collect::<Vec<_>>();
            assert_eq!(paths(found), paths(meant), "{name}: which inputs have a gradient");
            found.iter().flatten().zip(meant.iter().flatten()).for_each(|(f, m)| near(name, t, f, m));
        }
    };
    if rows == 1 {
        for ahead in [true, false] {
            let manner = Manner { ahead, ..Manner::default() };
            let (found, meant) =
                (run_in_manner(&chain, &cases[0], manner), run_in_manner(&whole, &cases[0], manner));
            same(&found, &meant);
            for (k, (f, m)) in found.params.iter().zip(&meant.params).enumerate() {
                near(name, k, f, m);
            }
            found.initial.iter().zip(&meant.initial).enumerate().for_each(|(k, (f, m))| near(name, k, f, m));
        }
        for mode in [Mode::Infer, Mode::Forward] {
            assert_eq!(
                last_outputs(&chain, &cases[0], mode),
                last_outputs(&whole, &cases[0], mode),
                "{name}"
            );
        }
    } else if whole.teams(2 * rows).len() == 2 {
        let (found, gradients) = run_together(&chain, &cases);
        let (meant, wanted) = run_together(&whole, &cases);
        found.iter().zip(&meant).for_each(|(f, m)| same(f, m));
        gradients.iter().zip(&wanted).enumerate().for_each(|(k, (f, m))| near(name, k, f, m));
    }
}

/// The outputs of the last step, of a sequence that is taken in two parts.
fn last_outputs(engine: &Engine, case: &Case, mode: Mode) -> Vec<Vec<f32>> {
    let bound = engine.bind(&params(case)).expect("parameters fit");
    let mut tape = engine.tape(STEPS, mode);
    bound.begin(&mut tape, None);
    for part in [0..3, 3..STEPS] {
        let first = part.start;
        bound.forward(&mut tape, part.len(), &mut |t, input, x| {
            x.copy_from_slice(&narrow(&case.sequence.inputs[first + t][input.index()]));
        });
    }
    outputs_at(&bound, &tape, STEPS - 1)
}

fn near(name: &str, which: usize, found: &[f32], meant: &[f32]) {
    assert_eq!(found.len(), meant.len(), "{name}: {which}");
    let norm = meant.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt();
    let error = found.iter().zip(meant).map(|(f, m)| f64::from(f - m).powi(2)).sum::<f64>().sqrt();
    assert!(error <= 3e-6 * norm + 1e-7, "{name}: {which}: {error} of {norm}");
}

fn zeros_of(tensors: &[Tensor]) -> Vec<Tensor> {
    tensors.iter().map(|x| Arc::new(vec![0.0; x.len()])).collect()
}

/// Rows in step on one tape, used before; the gradients of the parameters are those of all rows.
fn run_together(engine: &Engine, cases: &[Case]) -> (Vec<RowResult>, Vec<Vec<f32>>) {
    let bound = engine.bind(&params(&cases[0])).expect("parameters fit");
    let mut tape = engine.team_tape(STEPS, Mode::Train, cases.len());
    let initial: Vec<RowState> = cases
        .iter()
        .map(|c| RowState { states: c.sequence.initial.iter().map(|s| narrow(s)).collect() })
        .collect();
    let initial: Vec<Option<&RowState>> = initial.iter().map(Some).collect();
    let (mut rows, mut gradients) = (vec![], vec![]);
    for _ in 0..2 {
        rows.clear();
        let mut grads = engine.grads();
        bound.begin_team(&mut tape, &initial);
        bound.forward_team(&mut tape, STEPS, &mut |row, t, input, x| {
            x.copy_from_slice(&narrow(&cases[row].sequence.inputs[t][input.index()]));
        });
        for (row, case) in cases.iter().enumerate() {
            bound.select(&mut tape, row);
            let outputs = (0..STEPS).map(|t| outputs_at(&bound, &tape, t)).collect();
            let penalties = (0..STEPS).map(|t| bound.penalty(&mut tape, t)).collect();
            let states = bound.state(&mut tape).states;
            for (t, bars) in case.bars.outputs.iter().enumerate() {
                for (k, bar) in bars.iter().enumerate() {
                    let to = bound.output_bar_mut(&mut tape, t, OutputId(k as u32));
                    to.copy_from_slice(&narrow(bar));
                }
            }
            rows.push(RowResult { outputs, penalties, states, ..RowResult::default() });
        }
        bound.backward(&mut tape, &mut grads, cases[0].bars.penalty as f32, None);
        for (row, result) in rows.iter_mut().enumerate() {
            bound.select(&mut tape, row);
            let bar = |t, k| bound.input_bar(&tape, t, InputId(k as u32)).map(<[f32]>::to_vec);
            let inputs = engine.model().inputs.len();
            result.inputs = (0..STEPS).map(|t| (0..inputs).map(|k| bar(t, k)).collect()).collect();
        }
        gradients = engine.finish(&bound, vec![grads]);
    }
    (rows, gradients)
}
