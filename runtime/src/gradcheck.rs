//! `bpm gradcheck`: libtorch beside the interpreter, on random numbers.
//!
//! A batch of short sequences with random parameters, inputs, initial states and cotangents runs on both; one row is
//! reset on the way. The interpreter goes backward with the adjoint of the step, libtorch with its autograd, which
//! knows nothing of that. Values, states and gradients are compared tensor by tensor.
//!
//! `bpmc gradcheck` compares the interpreter with finite differences; this compares two analytic gradients, so it
//! holds to rounding, at kinks, too, and sees through `stopgrad`.

use crate::Error;
use crate::engine::{EngineError, FlushDenormals};
use crate::exact::Dtype;
use ::torch::{Code, Cotangents, Keep, Place, Tape, Width};
use compiler::gradcheck::{Case, Options, random_case};
use compiler::interp::{Interpreter, Tensor};
use compiler::ir::{Sink, Sizes};
use compiler::model::Model;
use serde_json::json;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Tensors smaller than this are compared by their absolute error.
const FLOOR: f64 = 0.1;

/// What to check, and where.
#[derive(Clone, Copy, Debug)]
pub struct Check {
    /// The seed of the numbers.
    pub seed: u64,
    /// Steps of a sequence.
    pub steps: usize,
    /// Rows; the second is reset in the middle.
    pub rows: usize,
    /// In how many bits libtorch computes.
    pub dtype: Dtype,
    /// Where it computes.
    pub place: Place,
    /// Scale of the random initial states: large ones force clips to act.
    pub state_scale: f64,
}

impl Check {
    /// The largest error that rounding explains: sequences are short, and functions accurate to a few units in the
    /// last place. In single precision a cancellation costs up to three digits more.
    pub fn tolerance(&self) -> f64 {
        match self.dtype {
            Dtype::F64 => 1e-9,
            Dtype::F32 => 2e-3,
        }
    }
}

/// A tensor on both.
#[derive(Clone, Debug, PartialEq)]
pub struct Line {
    /// `out.NAME`, `penalty`, `state.NAME`, `grad.NAME`, `grad.in.NAME`, `grad.init.NAME`.
    pub name: String,
    /// Its norm in the interpreter.
    pub norm: f64,
    /// The norm of the difference, relative to that norm or to 0.1.
    pub error: f64,
}

/// All tensors of a model.
#[derive(Clone, Debug)]
pub struct Report {
    spec: String,
    dtype: Dtype,
    /// By tensor.
    pub lines: Vec<Line>,
    tolerance: f64,
}

/// Everything a batch gives, by name.
type Found = Vec<(String, Vec<f64>)>;

/// Runs a model on both.
///
/// # Errors
/// If libtorch is not there, or fails.
pub fn check(model: &Arc<Model>, sizes: &Sizes, check: &Check) -> Result<Report, Error> {
    let cases = cases(model, sizes, check);
    let found = on_libtorch(model, sizes, check, &cases).map_err(EngineError::from)?;
    let expected = interpreted(model, sizes, &cases);
    let lines = expected.into_iter().zip(found).map(|((name, e), (other, f))| {
        assert_eq!(name, other, "both give the same tensors");
        let norm = e.iter().map(|x| x * x).sum::<f64>().sqrt();
        let off = e.iter().zip(&f).map(|(e, f)| (e - f).powi(2)).sum::<f64>().sqrt();
        let error = if e.len() == f.len() { off / norm.max(FLOOR) } else { f64::INFINITY };
        Line { name, norm, error }
    });
    Ok(Report {
        spec: model.name.clone(),
        dtype: check.dtype,
        lines: lines.collect(),
        tolerance: check.tolerance(),
    })
}

/// A case for each row, with the same parameters.
fn cases(model: &Model, sizes: &Sizes, check: &Check) -> Vec<Case> {
    let case = |row: usize| {
        let options = Options {
            seed: check.seed.wrapping_add(1000 * row as u64),
            steps: check.steps,
            state_scale: check.state_scale,
            reset_at: (row == 1).then_some(check.steps / 2).filter(|t| *t > 0),
            sparse: false,
        };
        random_case(model, sizes, &options)
    };
    let mut cases: Vec<Case> = (0..check.rows).map(case).collect();
    if let Some((first, others)) = cases.split_first_mut() {
        others.iter_mut().for_each(|c| c.params.clone_from(&first.params));
    }
    if check.dtype == Dtype::F32 {
        cases.iter_mut().for_each(round);
    }
    cases
}

/// The numbers that single precision has.
fn round(case: &mut Case) {
    let round = |x: &mut Tensor| *x = Arc::new(x.iter().map(|v| f64::from(*v as f32)).collect());
    case.params.iter_mut().chain(&mut case.sequence.initial).chain(&mut case.bars.last).for_each(round);
    case.sequence.inputs.iter_mut().chain(&mut case.bars.outputs).flatten().for_each(round);
    case.bars.penalty = f64::from(case.bars.penalty as f32);
}

fn interpreted(model: &Arc<Model>, sizes: &Sizes, cases: &[Case]) -> Found {
    let interpreter = Interpreter::new(Arc::clone(model), sizes.clone());
    let (steps, rows) = (cases[0].sequence.inputs.len(), cases.len());
    let mut outputs = vec![vec![vec![]; steps * rows]; model.outputs.len()];
    let mut inputs = vec![vec![vec![]; steps * rows]; model.inputs.len()];
    let mut penalties = vec![0.0; steps * rows];
    let (mut states, mut initial) = (vec![vec![]; model.states.len()], vec![vec![]; model.states.len()]);
    let mut boundary: BTreeMap<_, Vec<f64>> = BTreeMap::new();
    for (b, case) in cases.iter().enumerate() {
        let run = interpreter.run(&case.params, &case.sequence);
        let row = interpreter.backward(&case.sequence, &run, &case.bars);
        for t in 0..steps {
            let cell = t * rows + b;
            outputs
                .iter_mut()
                .enumerate()
                .for_each(|(k, o)| o[cell] = interpreter.output(&run, t, k).to_vec());
            penalties[cell] = interpreter.penalty(&run, t);
            for ((x, bar), i) in inputs.iter_mut().zip(&row.inputs[t]).zip(&model.inputs) {
                x[cell] = bar.as_ref().map_or_else(|| vec![0.0; sizes.count(i.shape)], |b| b.to_vec());
            }
        }
        states.iter_mut().zip(&run.states[steps]).for_each(|(all, s)| all.extend_from_slice(s));
        initial.iter_mut().zip(&row.initial).for_each(|(all, s)| all.extend_from_slice(s));
        for (value, bar) in row.boundary {
            let sum = boundary.entry(value).or_insert_with(|| vec![0.0; bar.len()]);
            sum.iter_mut().zip(bar).for_each(|(s, x)| *s += x);
        }
    }
    // Initial states are given, so learned ones have no part in it.
    let unlearned: Vec<Vec<f64>> = model.states.iter().map(|s| vec![0.0; sizes.count(s.shape)]).collect();
    let params = interpreter.finish(&cases[0].params, &boundary, &unlearned);
    let concat = |all: Vec<Vec<Vec<f64>>>| all.into_iter().map(|x| x.concat()).collect::<Vec<_>>();
    named(model, [concat(outputs), states, params, concat(inputs), initial], penalties)
}

fn on_libtorch(
    model: &Arc<Model>,
    sizes: &Sizes,
    check: &Check,
    cases: &[Case],
) -> Result<Found, ::torch::Fault> {
    let (width, _flush) = match check.dtype {
        Dtype::F32 => (Width::Single, Some(FlushDenormals::start())),
        Dtype::F64 => (Width::Double, None),
    };
    let code = Arc::new(Code::new(Arc::clone(model), sizes.clone(), width, check.place)?);
    let mut tape = Tape::new(&code, cases.len(), Keep::Graph { inputs: true });
    let params: Vec<&[f64]> = cases[0].params.iter().map(|p| p.as_slice()).collect();
    let count = model.states.len();
    let states = side_by_side(count, cases.iter().map(|c| c.sequence.initial.as_slice()));
    tape.begin(&params, &states)?;
    for t in 0..check.steps {
        let rows: Vec<bool> = cases.iter().map(|c| c.sequence.resets[t]).collect();
        if rows.contains(&true) {
            tape.reset(Some(&rows), &states)?;
        }
        let of = cases.iter().map(|c| c.sequence.inputs[t].as_slice());
        tape.forward(1, &side_by_side(model.inputs.len(), of))?;
    }
    let cells = (0..check.steps).flat_map(|t| cases.iter().map(move |c| c.bars.outputs[t].as_slice()));
    let outputs = side_by_side(model.outputs.len(), cells);
    let last = side_by_side(count, cases.iter().map(|c| c.bars.last.as_slice()));
    let values = (0..model.outputs.len()).map(|k| tape.outputs(k, check.steps));
    let values = values.collect::<Result<Vec<Vec<f64>>, _>>()?;
    let (ends, penalties) = (tape.states()?, tape.penalties()?);
    let bars = Cotangents { outputs: &outputs, penalty: cases[0].bars.penalty, last: Some(&last) };
    let found = tape.backward(bars)?;
    let mut initial: Vec<Vec<f64>> = states.iter().map(|s| vec![0.0; s.len()]).collect();
    for start in &found.starts {
        for (sum, x) in initial.iter_mut().zip(&start.states) {
            sum.iter_mut().zip(x).for_each(|(s, x)| *s += x);
        }
    }
    let inputs = found.inputs.into_iter().map(Option::unwrap_or_default).collect();
    Ok(named(model, [values, ends, found.params, inputs, initial], penalties))
}

/// Tensors of rows, one behind the other.
fn side_by_side<'t>(count: usize, rows: impl Iterator<Item = &'t [Tensor]>) -> Vec<Vec<f64>> {
    let mut all = vec![vec![]; count];
    for row in rows {
        all.iter_mut().zip(row).for_each(|(all, x)| all.extend_from_slice(x));
    }
    all
}

/// Outputs, states, gradients of parameters, of inputs and of initial states, with their names.
fn named(model: &Model, found: [Vec<Vec<f64>>; 5], penalties: Vec<f64>) -> Found {
    let [outputs, states, params, inputs, initial] = found;
    let has_penalty = model.step.results.iter().any(|(sink, _)| *sink == Sink::Penalty);
    let mut all: Found = has_penalty.then(|| ("penalty".to_owned(), penalties)).into_iter().collect();
    all.extend(model.outputs.iter().zip(outputs).map(|(o, x)| (format!("out.{}", o.name), x)));
    all.extend(model.states.iter().zip(states).map(|(s, x)| (format!("state.{}", s.name), x)));
    let learned = model.params.iter().zip(params).filter(|(p, _)| p.learned);
    all.extend(learned.map(|(p, x)| (format!("grad.{}", p.name), x)));
    let signals = model.inputs.iter().zip(inputs).filter(|(i, _)| i.role.is_differentiable());
    all.extend(signals.map(|(i, x)| (format!("grad.in.{}", i.name), x)));
    all.extend(model.states.iter().zip(initial).map(|(s, x)| (format!("grad.init.{}", s.name), x)));
    all
}

impl Report {
    /// The same, judged by another tolerance.
    #[must_use]
    pub fn within(self, tolerance: f64) -> Report {
        Report { tolerance, ..self }
    }

    /// The tensor with the largest error; one that is not a number is the largest of all.
    pub fn worst(&self) -> Option<&Line> {
        let size = |l: &&Line| if l.error.is_nan() { f64::INFINITY } else { l.error };
        self.lines.iter().max_by(|a, b| size(a).total_cmp(&size(b)))
    }

    fn is_off(&self, line: &Line) -> bool {
        // A NaN is no number below the tolerance.
        line.error.is_nan() || self.tolerance < line.error || !line.norm.is_finite()
    }

    /// Whether all tensors agree.
    pub fn passed(&self) -> bool {
        !self.lines.iter().any(|l| self.is_off(l))
    }

    fn dtype(&self) -> &'static str {
        match self.dtype {
            Dtype::F32 => "f32",
            Dtype::F64 => "f64",
        }
    }

    /// As a table.
    pub fn text(&self) -> String {
        let width = self.lines.iter().map(|l| l.name.chars().count()).max().unwrap_or(0).max(16);
        let mut text = format!("{}: libtorch in {} and the interpreter\n\n", self.spec, self.dtype());
        text += &format!("{:<width$}  {:>10}  {:>10}\n", "tensor", "norm", "error");
        for line in &self.lines {
            let remark = if self.is_off(line) { "  DIFFERENT" } else { "" };
            text += &format!("{:<width$}  {:>10.3e}  {:>10.1e}{remark}\n", line.name, line.norm, line.error);
        }
        text + if self.passed() { "\nboth agree\n" } else { "\nthey DISAGREE\n" }
    }

    /// As one JSON object on a line.
    pub fn json(&self) -> String {
        let lines = self.lines.iter().map(|l| json!({ "tensor": l.name, "norm": l.norm, "error": l.error }));
        let object = json!({
            "schema": 1, "reason": "gradcheck", "spec": self.spec, "backend": "torch", "dtype": self.dtype(),
            "rows": lines.collect::<Vec<_>>(), "tolerance": self.tolerance, "passed": self.passed(),
        });
        format!("{object}\n")
    }
}
