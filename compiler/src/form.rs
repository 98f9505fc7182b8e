//! In which form plastic matrices are kept: as matrices, or as the events that made them.
//!
//! [`crate::passes::events`] says what is legal; here it is decided what is faster. Both forms are
//! lowered, and the time of a step is estimated from their loops: what a matrix nest reads and writes
//! per element, by the elements that it runs over, and dearer the more memory all matrices of a step
//! take together. A log has half of its events on average. The numbers were fitted to measurements on
//! one machine (`docs/performance.md`); what counts is the ratio of the two times.

use crate::ir::{SizeError, Sizes};
use crate::loops::body::BodyOp;
use crate::loops::{Access, Effect, Extent, LANES, LowerOptions, Nest, Place, WIDEST, lower};
use crate::model::Model;
pub use crate::model::Prefer;
use crate::passes::events::{self, Legality};
use crate::{autodiff, passes};
use serde::Serialize;
use std::collections::BTreeMap;

/// The form that is taken, and why.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Form {
    /// The states that are kept as events.
    pub events: Vec<String>,
    /// The states that could be kept so.
    pub legal: Vec<String>,
    /// The other matrix states, and why they need their matrices.
    pub refused: Vec<(String, String)>,
    /// Nanoseconds of a step of a row, forward and backward, as estimated: with matrices, with
    /// events.
    pub estimate: Option<(f64, f64)>,
    /// Whether it was asked for.
    pub asked: bool,
}

impl Form {
    /// Why the model stays as it is or does not, in a sentence per line.
    pub fn reasons(&self) -> Vec<String> {
        let mut lines = vec![];
        let names = |all: &[String]| all.iter().map(|n| format!("`{n}`")).collect::<Vec<_>>().join(", ");
        if !self.legal.is_empty() {
            let taken = if self.events.is_empty() { "matrices" } else { "events" };
            let asked = if self.asked { ", as asked for" } else { "" };
            lines.push(format!("{} kept as {taken}{asked}", names(&self.legal)));
        }
        if let Some((dense, events)) = self.estimate {
            let (dense, events) = (dense / 1e3, events / 1e3);
            lines.push(format!(
                "a step forward and backward: {dense:.2} us with matrices, {events:.2} us with events, by estimate"
            ));
        }
        lines.extend(self.refused.iter().map(|(name, why)| format!("`{name}` needs its matrix: {why}")));
        lines
    }
}

/// Takes a form for a model that runs `steps` steps from the start or a reset. `None` if the model stays
/// as it is.
///
/// # Errors
/// If axes have no sizes.
pub fn choose(
    model: &Model,
    bound: &BTreeMap<String, usize>,
    steps: usize,
    prefer: Prefer,
) -> Result<(Option<Model>, Form), SizeError> {
    let Legality { states, refused } = events::legality(model, prefer);
    let name = |s: &crate::ir::StateId| model.states[s.index()].name.clone();
    let mut form = Form {
        events: vec![],
        legal: states.iter().map(name).collect(),
        refused: refused.iter().map(|(s, why)| (name(s), why.clone())).collect(),
        estimate: None,
        asked: false,
    };
    let wanted = |s: &crate::ir::StateId| model.states[s.index()].prefer == Prefer::Events;
    let prefer = match prefer {
        Prefer::Auto if states.iter().any(wanted) => Prefer::Events,
        prefer => prefer,
    };
    form.asked = prefer != Prefer::Auto && !states.is_empty();
    if prefer == Prefer::Dense {
        return Ok((None, form));
    }
    let Some(kept) = events::rewrite(model, &states, steps) else { return Ok((None, form)) };
    let sizes = Sizes::bind(&model.axes, bound)?;
    let kept_sizes = match (Sizes::bind(&kept.axes, bound), prefer) {
        (Ok(sizes), _) => sizes,
        (Err(_), Prefer::Auto) => return Ok((None, form)),
        (Err(e), _) => return Err(e),
    };
    let sizes = [sizes, kept_sizes];
    let times = [(model, &sizes[0]), (&kept, &sizes[1])].map(|(m, s)| estimate(m, s, steps));
    form.estimate = Some((times[0], times[1]));
    if prefer == Prefer::Auto && times[0] <= times[1] {
        return Ok((None, form));
    }
    form.events.clone_from(&form.legal);
    Ok((Some(kept), form))
}

/// Nanoseconds of a step of a row, forward and backward.
fn estimate(model: &Model, sizes: &Sizes, steps: usize) -> f64 {
    let model = passes::optimise(model);
    let program = lower(&model, sizes, &autodiff::step(&model), LowerOptions { input_bars: false });
    let routines = [&program.forward.step, &program.replay, &program.backward.step];
    let nests: Vec<&Nest> = routines.iter().flat_map(|r| &r.nests).collect();
    let far = (NEAR + FAR * footprint(&nests, steps) / f64::from(1 << 20)).min(FARTHEST);
    let rows: f64 = program.logs.iter().map(|l| 2.0 * MOVE * l.len as f64).sum();
    nests.iter().map(|n| nest(n, steps, far)).sum::<f64>() + rows
}

/// Of reading an element of a matrix.
const READ: f64 = 0.05;
/// Of writing one.
const WRITE: f64 = 0.08;
/// Of an operation on an element.
const OPERATION: f64 = 0.01;
/// Of beginning a nest.
const NEST: f64 = 5.0;
/// Of moving an element of a row into a log, or its cotangent out of it.
const MOVE: f64 = 0.5;
/// By how much elements of matrices are dearer: at least, for each MiB that they take, and at most.
const NEAR: f64 = 0.75;
const FAR: f64 = 0.4;
const FARTHEST: f64 = 3.0;

/// The elements that a nest runs over, on average.
fn elements(extent: Extent, steps: usize) -> usize {
    match extent {
        Extent::Scalar => 1,
        Extent::Vector(n) => n,
        Extent::Matrix { post, pre } => post.next_multiple_of(LANES) * pre,
        Extent::Log { post, pre } => (steps / 2 + WIDEST * LANES / 2).min(post) * pre,
    }
}

fn nest(nest: &Nest, steps: usize, far: f64) -> f64 {
    let reads = nest.body.loads().filter(|a| matches!(a, Access::Matrix(_))).count();
    let stored = nest.effects.iter().filter(|e| matches!(e, Effect::Store(Access::Matrix(_), _))).count();
    let added = nest.effects.iter().filter(|e| matches!(e, Effect::Add(Access::Matrix(_), ..))).count();
    let ops = nest.body.ops.iter().filter(|op| !matches!(op, BodyOp::Const(_) | BodyOp::Load(_)));
    let ops = ops.count() + nest.effects.len();
    let memory = READ * (reads + added) as f64 + WRITE * (stored + added) as f64;
    NEST + elements(nest.extent, steps) as f64 * far * (memory + OPERATION * ops as f64)
}

/// Bytes of all matrices that the nests touch.
fn footprint(nests: &[&Nest], steps: usize) -> f64 {
    let mut matrices: BTreeMap<Place, usize> = BTreeMap::new();
    for nest in nests {
        let written = nest.effects.iter().filter_map(|e| match e {
            Effect::Store(a, _) | Effect::Add(a, ..) => Some(*a),
            _ => None,
        });
        for access in nest.body.loads().chain(written) {
            if let Access::Matrix(place) = access {
                matrices.insert(place, elements(nest.extent, steps));
            }
        }
    }
    4.0 * matrices.values().sum::<usize>() as f64
}
