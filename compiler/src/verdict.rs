//! What a gradient check says, judged and as text: `bpmc gradcheck`.

use crate::gradcheck::{self, Options, Report, Row};
use crate::ir::{Op, ParamId, Shape, Sink, Sizes, Source, Value};
use crate::model::{Init, Model, Param};
use grammar::span::Span;
use serde_json::json;
use std::collections::BTreeMap;
use std::sync::Arc;

/// The dot-product test needs no step size, so it must hold to rounding.
const DOT_TOLERANCE: f64 = 1e-9;

/// Declared sizes up to this are kept.
const SMALL: usize = 8;

/// What is said about one tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Judgement {
    /// The gradient agrees.
    Right,
    /// It is off by more than the tolerance.
    Wrong,
    /// It is zero, and nothing explains why.
    Zero,
    /// It is zero, as a warning says.
    Explained,
    /// It disagrees because the spec cuts gradients on its way, which differences do not see.
    Cut,
    /// Every direction met a kink.
    Untested,
}

/// A judged report.
#[derive(Clone, Debug)]
pub struct Verdict {
    spec: String,
    sizes: BTreeMap<String, usize>,
    rows: Vec<(Row, Judgement)>,
    dot_error: f64,
    clipped: Option<f64>,
}

impl Verdict {
    /// Judges a report. `explained` are the places that warnings of the checker point to.
    pub fn new(
        model: &Model,
        sizes: BTreeMap<String, usize>,
        report: Report,
        tolerance: f64,
        explained: &[Span],
    ) -> Verdict {
        let mut rows = report.rows;
        rows.retain(|r| (r.tested > 0 || is_learned(model, r)) && !is_initial_value(model, r));
        let judged = rows.into_iter().map(|r| {
            let judgement = judge(model, &r, tolerance, explained);
            (r, judgement)
        });
        Verdict {
            spec: model.name.clone(),
            sizes,
            rows: judged.collect(),
            dot_error: report.dot_error,
            clipped: report.clipped,
        }
    }

    /// Whether nothing is wrong.
    pub fn passed(&self) -> bool {
        let bad = |j: &Judgement| matches!(j, Judgement::Wrong | Judgement::Zero);
        self.dot_error <= DOT_TOLERANCE && !self.rows.iter().any(|(_, j)| bad(j))
    }

    /// As a table.
    pub fn text(&self) -> String {
        let sizes: Vec<String> = self.sizes.iter().map(|(name, n)| format!("{name} = {n}")).collect();
        let sizes = if sizes.is_empty() { "no axes".to_owned() } else { sizes.join(", ") };
        let mut text = format!("{}: {sizes}\n\n", self.spec);
        let width = self.rows.iter().map(|(r, _)| r.name.chars().count()).max().unwrap_or(0).max(16);
        text.push_str(&format!("{:<width$}  {:>10}  {:>10}  {:>6}\n", "tensor", "norm", "error", "tested"));
        for (row, judgement) in &self.rows {
            let remark = judgement.text();
            let line = format!(
                "{:<width$}  {:>10.3e}  {:>10.1e}  {:>6}  {remark}",
                row.name, row.norm, row.error, row.tested
            );
            text.push_str(&format!("{}\n", line.trim_end()));
        }
        text.push_str(&format!("\ndot-product test: relative error {:.1e}\n", self.dot_error));
        if let Some(share) = self.clipped {
            text.push_str(&format!("clipped: {:.0} % of what passes a clip\n", 100.0 * share));
        }
        text.push_str(if self.passed() { "the gradients are right\n" } else { "the gradients are WRONG\n" });
        text
    }

    /// As one JSON object on a line.
    pub fn json(&self) -> String {
        let rows: Vec<_> = self
            .rows
            .iter()
            .map(|(r, j)| {
                json!({
                    "tensor": r.name, "norm": r.norm, "error": r.error, "tested": r.tested,
                    "judgement": j.word(),
                })
            })
            .collect();
        let object = json!({
            "schema": 1, "reason": "gradcheck", "spec": self.spec, "axes": self.sizes, "rows": rows,
            "dot_error": self.dot_error, "clipped": self.clipped, "passed": self.passed(),
        });
        format!("{object}\n")
    }
}

impl Judgement {
    fn text(self) -> &'static str {
        match self {
            Judgement::Right => "",
            Judgement::Wrong => "WRONG",
            Judgement::Zero => "ZERO: no gradient reaches it, and no warning says why",
            Judgement::Explained => "zero, as the checker warns",
            Judgement::Cut => "not comparable: a gradient is cut on its way",
            Judgement::Untested => "not tested: a kink in every direction",
        }
    }

    fn word(self) -> &'static str {
        match self {
            Judgement::Right => "right",
            Judgement::Wrong => "wrong",
            Judgement::Zero => "zero",
            Judgement::Explained => "explained",
            Judgement::Cut => "cut",
            Judgement::Untested => "untested",
        }
    }
}

/// Checks a model, and once more with many zeros among its inputs if a gradient is zero: some models
/// compute only where a value is missing.
pub fn thorough(model: &Arc<Model>, sizes: &Sizes, options: &Options) -> Report {
    let mut report = gradcheck::check(model, sizes, options);
    if report.rows.iter().any(|r| is_learned(model, r) && r.norm == 0.0) {
        let sparse = gradcheck::check(model, sizes, &Options { sparse: true, ..*options });
        report.dot_error = report.dot_error.max(sparse.dot_error);
        for (row, other) in report.rows.iter_mut().zip(sparse.rows) {
            if row.norm == 0.0 {
                *row = other;
            }
        }
    }
    report
}

/// The learned parameter that a row is about. A learned initial value is checked as the initial state
/// that it is.
fn param<'m>(model: &'m Model, row: &Row) -> Option<&'m Param> {
    let initial = model.states.iter().find_map(|s| match s.init {
        Init::Param(p) if row.name == format!("grad.init.{}", s.name) => Some(&model.params[p.index()]),
        _ => None,
    });
    let named = || model.params.iter().find(|p| row.name == format!("grad.{}", p.name));
    initial.or_else(named).filter(|p| p.learned)
}

/// Whether a row is about a learned initial value under its own name; the initial state says it all.
fn is_initial_value(model: &Model, row: &Row) -> bool {
    let starts = |p: &ParamId| row.name == format!("grad.{}", model.params[p.index()].name);
    row.norm == 0.0 && model.states.iter().any(|s| matches!(&s.init, Init::Param(p) if starts(p)))
}

fn is_learned(model: &Model, row: &Row) -> bool {
    param(model, row).is_some()
}

fn judge(model: &Model, row: &Row, tolerance: f64, explained: &[Span]) -> Judgement {
    // A NaN is no number below the tolerance.
    let agrees = row.error <= tolerance && row.norm.is_finite();
    match param(model, row) {
        Some(p) if row.norm == 0.0 => {
            let touches = |s: &Span| s.start < p.span.end && p.span.start < s.end;
            if explained.iter().any(touches) { Judgement::Explained } else { Judgement::Zero }
        }
        _ if !agrees && is_cut(model, row) => Judgement::Cut,
        _ if !agrees => Judgement::Wrong,
        _ if row.tested == 0 => Judgement::Untested,
        _ => Judgement::Right,
    }
}

/// Whether what a row is about reaches a `stopgrad`, in this step or in a later one.
fn is_cut(model: &Model, row: &Row) -> bool {
    let is_it = |source: &Source| {
        let name = match source {
            Source::Param(p) => format!("grad.{}", model.params[p.index()].name),
            Source::Input(i) => format!("grad.in.{}", model.inputs[i.index()].name),
            Source::State(s) => format!("grad.init.{}", model.states[s.index()].name),
            _ => return false,
        };
        name == row.name
    };
    let step = &model.step;
    let mut reached = vec![false; step.body.len()];
    for _ in 0..=model.states.len() {
        for (v, i) in step.values() {
            let loaded = match &i.op {
                Op::Load(Source::State(s)) => {
                    step.result(Sink::State(*s)).is_some_and(|n| reached[n.index()])
                }
                _ => false,
            };
            let it = matches!(&i.op, Op::Load(source) if is_it(source));
            reached[v.index()] |= loaded || it || i.op.operands().iter().any(|o| reached[o.index()]);
        }
    }
    step.values().any(|(v, i)| matches!(i.op, Op::StopGrad(_)) && reached[v.index()])
}

/// Small sizes for the axes that are not given: finite differences at full size take long and say
/// no more. Axes of which single elements are named keep their declared size.
pub fn small_sizes(model: &Model, given: &BTreeMap<String, usize>) -> BTreeMap<String, usize> {
    let mut sizes = given.clone();
    for (k, axis) in model.axes.named.iter().enumerate() {
        let small = 3 + k % 3;
        let kept = axis.size.filter(|n| *n <= SMALL || has_named_elements(model, k));
        sizes.entry(axis.name.clone()).or_insert(kept.unwrap_or(small));
    }
    sizes
}

fn has_named_elements(model: &Model, axis: usize) -> bool {
    let over = |v: &Value| match model.step.ty(*v).shape {
        Shape::Vector(a) => model.axes.linear(a).terms.contains_key(&axis),
        Shape::Scalar | Shape::Matrix { .. } => false,
    };
    model.step.body.iter().any(|i| matches!(&i.op, Op::Element(x, _) if over(x)))
}
