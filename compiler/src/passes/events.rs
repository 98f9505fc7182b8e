//! Matrix states as a log of what was written to them.
//!
//! A plastic matrix that starts at zero and is changed by sums of outer products alone is known from
//! these products. If every matrix state `P` of a set has a write
//!
//! ```text
//! P' = Σ_k a_k P_k + Σ_r s_r (u_r ⊗ v_r)
//! ```
//!
//! with scalars `a_k` and `s_r` and states `P_k` of the set, then after `t` steps
//!
//! ```text
//! P = Σ_{l<t} Σ_r c_r[l] (u_r[l] ⊗ v_r[l])        P @ x = Σ_r U_rᵀ (c_r ∘ (V_r @ x))
//! ```
//!
//! where row `l` of the logs `U_r` and `V_r` is what step `l` wrote, and never changes, while the
//! coefficients follow the same recursion as the matrices: `c_r' = Σ_k a_k c_{k,r} + s_r p` with the
//! *clock* `p`, which is one at the place of this step and zero elsewhere. A step takes `O(t·N)` work
//! in place of `O(N²)`, and keeps vectors in place of matrices.
//!
//! Before: `%P = state P; … %y = %P @ %x; state P = %P + eta·(%y ⊗ %x)`. After: `%U = state U; %V = state V;
//! %s = %V @ %x; %w = %c · %s; %y = %U^T @ %w; state c = %c + eta·%p; state U = %U + %p ⊗ %y; …`.
//!
//! The result is an ordinary model over one more axis, the events, whose size is the number of steps
//! that it can run from the start or a reset; the interpreter, differentiation and the loops take it as
//! any other. [`crate::model::Events`] says which states are logs, so that the loops need not write
//! them as matrices. What a read of a state may look like follows from the same sums: factors that
//! vary with one axis, or with both as a sum of outer products, leave the matrix. Anything that looks
//! at entries one by one (a clip, a norm, a coefficient per synapse) needs the matrix itself.

use crate::ir::{Axis, Binary, Builder, Linear, Op, Shape, Sink, Sizes, Source, StateId, Type, Unary, Value};
use crate::model::{ConstExpr, Events, Init, Kept, Model, Prefer, ResetPolicy, State};
use grammar::ast::StateKind;
use std::collections::BTreeSet;

/// What the analysis says of a model.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Legality {
    /// The matrix states that events can replace.
    pub states: Vec<StateId>,
    /// Why others cannot be replaced: the state, and the reason, which continues "`H`: …".
    pub refused: Vec<(StateId, String)>,
}

/// Which matrix states of a model events can replace. What the spec wants to keep as a matrix counts
/// unless the user prefers events.
pub fn legality(model: &Model, prefer: Prefer) -> Legality {
    let mut found = Legality::default();
    let lasting = model.states.iter().find(|s| s.reset != ResetPolicy::EveryEpisodes(1));
    for (k, state) in model.states.iter().enumerate() {
        if matches!(state.shape, Shape::Matrix { .. }) {
            let s = StateId(k as u32);
            let dense = prefer == Prefer::Auto && state.prefer == Prefer::Dense;
            let dense = dense.then(|| "the spec says `dense`".to_owned());
            match dense.or_else(|| unsuitable(state, lasting)) {
                Some(why) => found.refused.push((s, why)),
                None => found.states.push(s),
            }
        }
    }
    while !found.states.is_empty() {
        match Pass::new(model, &found.states).outline() {
            Ok(_) => break,
            Err(Refusal { state, why }) => {
                found.states.retain(|s| *s != state);
                found.refused.push((state, why));
            }
        }
    }
    found
}

/// Why a state needs its matrix whatever its equation; `lasting` is a state that outlives an episode.
fn unsuitable(state: &State, lasting: Option<&State>) -> Option<String> {
    if let Some(lasting) = lasting {
        return Some(format!(
            "`{}` outlives the episode, and a log would grow from one to the next",
            lasting.name
        ));
    }
    match &state.init {
        Init::Constant(ConstExpr::Number(0.0)) => None,
        _ => Some("it does not start at zero".to_owned()),
    }
}

/// The model with these matrix states ([`Legality::states`]) as events, with room for `steps` of them;
/// `None` if there are no such states.
pub fn rewrite(model: &Model, states: &[StateId], steps: usize) -> Option<Model> {
    if states.is_empty() {
        return None;
    }
    let outline = Pass::new(model, states).outline().ok()?;
    Some(Pass::new(model, states).rewrite(&outline, capacity(steps)))
}

/// The matrix that events stand for, from the states of a row.
pub fn recall(kept: &Kept, sizes: &Sizes, states: &[Vec<f64>]) -> Vec<f64> {
    let dims = sizes.dims(kept.shape);
    let [post, pre] = dims[..] else { return vec![] };
    let mut sum = vec![0.0; post * pre];
    for (c, u, v) in &kept.terms {
        let (c, u, v) = (&states[c.index()], &states[u.index()], &states[v.index()]);
        for (l, c) in c.iter().enumerate().filter(|(_, c)| **c != 0.0) {
            for (row, u) in sum.chunks_mut(pre).zip(&u[l * post..]) {
                row.iter_mut().zip(&v[l * pre..]).for_each(|(x, v)| *x += c * u * v);
            }
        }
    }
    sum
}

/// Events come in whole tiles of the packed matrices.
fn capacity(steps: usize) -> usize {
    steps.max(1).next_multiple_of(crate::loops::WIDEST * crate::loops::LANES)
}

/// Why a state needs its matrix.
struct Refusal {
    state: StateId,
    why: String,
}

type Judged<T> = Result<T, Refusal>;

/// What a matrix is a multiple of.
#[derive(Clone, Copy, PartialEq)]
enum Core {
    /// The matrix of ones.
    One,
    /// A state that events replace.
    State(StateId),
    /// Any other matrix.
    Dense(Value),
}

/// `scale · row[j] · col[i] · core[j,i]`; what is absent is one.
#[derive(Clone, Copy)]
struct Term {
    scale: Option<Value>,
    row: Option<Value>,
    col: Option<Value>,
    core: Core,
}

impl Term {
    const ONE: Term = Term { scale: None, row: None, col: None, core: Core::One };
}

/// Sums with more terms than this stay matrices.
const MOST_TERMS: usize = 64;

/// What the states consist of, by numbers that hold in any pass over the same model.
struct Outline {
    /// By log: which vector it collects, and its axis.
    logs: Vec<(Part, Axis)>,
    /// By kind of event: the logs of its post and its pre vector.
    kinds: Vec<(usize, usize)>,
    /// By replaced state: the kinds of its own events, in the order of its write.
    own: Vec<Vec<usize>>,
    /// By replaced state: the kinds of events that it can have a part of.
    reach: Vec<BTreeSet<usize>>,
}

/// A vector of an event: replaced state, event in the order of its write, side.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Part {
    state: usize,
    event: usize,
    side: Side,
}

/// An axis of a matrix.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Side {
    Post,
    Pre,
}

/// A write, taken apart.
#[derive(Default)]
struct Write {
    /// Multiples of replaced states.
    kept: Vec<(StateId, Option<Value>)>,
    /// Events: scale, post vector, pre vector.
    events: Vec<(Option<Value>, Value, Value)>,
}

/// The states of the result.
struct Layout {
    /// The events.
    axis: Axis,
    /// By log: the state, and the axis of its vectors.
    logs: Vec<(StateId, Axis)>,
    /// By kind of event: the logs of its post and its pre vector.
    kinds: Vec<(usize, usize)>,
    /// By replaced state and kind.
    coefficients: Vec<Vec<Option<StateId>>>,
}

struct Pass<'m> {
    model: &'m Model,
    /// The states that events replace.
    replaced: &'m [StateId],
    b: Builder,
    /// The values of the result; `None` for matrices that are made of replaced states.
    new: Vec<Option<Value>>,
    depends: Vec<Option<StateId>>,
    /// Where states are in the result; empty while the outline is drawn.
    moved: Vec<Option<StateId>>,
    /// Absent while the outline is drawn.
    layout: Option<Layout>,
}

impl<'m> Pass<'m> {
    fn new(model: &'m Model, replaced: &'m [StateId]) -> Self {
        let mut depends: Vec<Option<StateId>> = vec![];
        for (_, instruction) in model.step.values() {
            let matrix = matches!(instruction.ty.shape, Shape::Matrix { .. });
            depends.push(match instruction.op {
                Op::Load(Source::State(s)) => replaced.contains(&s).then_some(s),
                _ if !matrix => None,
                ref op => op.operands().iter().find_map(|o| depends[o.index()]),
            });
        }
        Pass { model, replaced, b: Builder::new(), new: vec![], depends, moved: vec![], layout: None }
    }

    fn number(&self, s: StateId) -> usize {
        self.replaced.iter().position(|r| *r == s).expect("only replaced states have a number")
    }

    // ---------------------------------------------------------------- two passes

    /// What the events are. Reads stay products with the matrices.
    fn outline(mut self) -> Judged<Outline> {
        self.body()?;
        let writes = self.writes()?;
        let mut outline = Outline { logs: vec![], kinds: vec![], own: vec![], reach: vec![] };
        let mut vectors: Vec<Value> = vec![];
        let mut pairs: Vec<(Value, Value)> = vec![];
        for (state, write) in writes.iter().enumerate() {
            let mut own = vec![];
            for (event, (_, u, v)) in write.events.iter().enumerate() {
                for (value, side) in [(*u, Side::Post), (*v, Side::Pre)] {
                    if !vectors.contains(&value) {
                        vectors.push(value);
                        let axis = vector_axis(self.b.shape(value));
                        outline.logs.push((Part { state, event, side }, axis));
                    }
                }
                let log = |v: &Value| vectors.iter().position(|x| x == v).unwrap_or(0);
                if !pairs.contains(&(*u, *v)) {
                    pairs.push((*u, *v));
                    outline.kinds.push((log(u), log(v)));
                }
                own.push(pairs.iter().position(|p| *p == (*u, *v)).unwrap_or(0));
            }
            outline.own.push(own);
        }
        outline.reach = outline.own.iter().map(|o| o.iter().copied().collect()).collect();
        loop {
            let before = outline.reach.clone();
            for (state, write) in writes.iter().enumerate() {
                for (from, _) in &write.kept {
                    let more = outline.reach[self.number(*from)].clone();
                    outline.reach[state].extend(more);
                }
            }
            if before == outline.reach {
                return Ok(outline);
            }
        }
    }

    /// The model with events.
    fn rewrite(mut self, outline: &Outline, capacity: usize) -> Model {
        let mut model = self.model.clone();
        let axis = model.axes.intern_constant(capacity);
        let (zero, one) = (model.axes.intern(Linear::default()), model.axes.intern_constant(1));
        let shorter = model.axes.intern_constant(capacity - 1);
        model.states = vec![];
        for (k, state) in self.model.states.iter().enumerate() {
            let kept = !self.replaced.contains(&StateId(k as u32));
            self.moved.push(kept.then_some(StateId(model.states.len() as u32)));
            if kept {
                model.states.push(state.clone());
            }
        }
        let layout = self.lay_out(&mut model, outline, axis);
        let free = StateId(model.states.len() as u32);
        model.states.push(self.added("events.free".to_owned(), Shape::Vector(axis), 1.0));
        // The clock: of the places that are free, the first.
        let ty = Type { shape: Shape::Vector(axis), batched: true };
        let load = self.b.load(Source::State(free), ty);
        let left = self.b.emit(Op::StopGrad(load));
        let part = self.b.emit(Op::Slice { x: left, start: zero, axis: shorter });
        let rest = self.b.emit(Op::Pad { x: part, start: one, axis });
        let clock = self.b.sub(left, rest);
        self.layout = Some(layout);
        let refused = "what the outline has accepted";
        self.body().map_err(|r| r.why).expect(refused);
        let writes = self.writes().map_err(|r| r.why).expect(refused);
        for (sink, v) in &self.model.step.results {
            match sink {
                Sink::State(s) => {
                    if let (Some(s), Some(v)) = (self.moved[s.index()], self.new[v.index()]) {
                        self.b.result(Sink::State(s), v);
                    }
                }
                sink => {
                    let v = self.new[v.index()].expect("outputs and penalties are no matrices");
                    self.b.result(*sink, v);
                }
            }
        }
        self.b.result(Sink::State(free), rest);
        self.write_coefficients(outline, &writes, clock);
        self.write_logs(outline, &writes, clock);
        for (_, v, _) in &mut model.modulators {
            *v = self.new[v.index()].expect("a modulator is no matrix of events");
        }
        let layout = self.layout.take().expect("it was laid out above");
        let matrices = self.replaced.iter().enumerate().map(|(k, s)| {
            let state = &self.model.states[s.index()];
            let terms = outline.reach[k].iter().filter_map(|r| {
                let (u, v) = outline.kinds[*r];
                Some((layout.coefficients[k][*r]?, layout.logs[u].0, layout.logs[v].0))
            });
            Kept { name: state.name.clone(), shape: state.shape, terms: terms.collect() }
        });
        let matrices = matrices.collect();
        let logs = layout.logs.iter().map(|(s, _)| *s).collect();
        model.events = Some(Events { axis, capacity, clock, logs, matrices });
        model.step = self.b.finish();
        debug_assert_eq!(crate::ir::verify(&model.step), Ok(()));
        model
    }

    /// A state that the spec does not have.
    fn added(&self, name: String, shape: Shape, start: f64) -> State {
        let span = self.model.states[self.replaced[0].index()].span;
        let init = Init::Constant(ConstExpr::Number(start));
        let reset = ResetPolicy::EveryEpisodes(1);
        let (doc, kind, prefer) = (vec![], StateKind::State, Prefer::Auto);
        State { name, doc, kind, shape, init, reset, prefer, span }
    }

    fn lay_out(&self, model: &mut Model, outline: &Outline, axis: Axis) -> Layout {
        let mut layout = Layout { axis, logs: vec![], kinds: outline.kinds.clone(), coefficients: vec![] };
        let mut push = |state: State| {
            model.states.push(state);
            StateId(model.states.len() as u32 - 1)
        };
        for (k, (_, pre)) in outline.logs.iter().enumerate() {
            let shape = Shape::Matrix { post: axis, pre: *pre };
            layout.logs.push((push(self.added(format!("events.log{k}"), shape, 0.0)), *pre));
        }
        for (state, reach) in self.replaced.iter().zip(&outline.reach) {
            let name = &self.model.states[state.index()].name;
            let one = |r: usize| {
                let name = format!("events.{name}{r}");
                reach.contains(&r).then(|| push(self.added(name, Shape::Vector(axis), 0.0)))
            };
            layout.coefficients.push((0..outline.kinds.len()).map(one).collect());
        }
        layout
    }

    /// `c_r' = Σ_k a_k c_{k,r} + s_r p`
    fn write_coefficients(&mut self, outline: &Outline, writes: &[Write], clock: Value) {
        for (state, write) in writes.iter().enumerate() {
            for r in &outline.reach[state] {
                let mut sum: Option<Value> = None;
                for (from, scale) in &write.kept {
                    let from = self.number(*from);
                    if let Some(c) = self.coefficient(from, *r) {
                        let c = scale.map_or(c, |s| self.b.scale(s, c));
                        sum = Some(sum.map_or(c, |x| self.b.add(x, c)));
                    }
                }
                for (event, (scale, ..)) in write.events.iter().enumerate() {
                    if outline.own[state][event] == *r {
                        let c = scale.map_or(clock, |s| self.b.scale(s, clock));
                        sum = Some(sum.map_or(c, |x| self.b.add(x, c)));
                    }
                }
                let shape = self.b.shape(clock);
                let sum = sum.unwrap_or_else(|| self.b.fill(0.0, shape));
                if let Some(s) = self.layout().coefficients[state][*r] {
                    self.b.result(Sink::State(s), sum);
                }
            }
        }
    }

    /// `U' = U + p ⊗ u`: the place of this step was zero.
    fn write_logs(&mut self, outline: &Outline, writes: &[Write], clock: Value) {
        for (k, (part, _)) in outline.logs.iter().enumerate() {
            let (_, u, v) = writes[part.state].events[part.event];
            let row = if part.side == Side::Post { u } else { v };
            let log = self.log(k);
            let written = self.b.emit(Op::Outer(clock, row));
            let sum = self.b.add(log, written);
            let s = self.layout().logs[k].0;
            self.b.result(Sink::State(s), sum);
        }
    }

    fn layout(&self) -> &Layout {
        self.layout.as_ref().expect("the outline has been drawn")
    }

    fn log(&mut self, k: usize) -> Value {
        let ((s, pre), post) = (self.layout().logs[k], self.layout().axis);
        self.b.load(Source::State(s), Type { shape: Shape::Matrix { post, pre }, batched: true })
    }

    fn coefficient(&mut self, state: usize, kind: usize) -> Option<Value> {
        let s = self.layout().coefficients[state][kind]?;
        let ty = Type { shape: Shape::Vector(self.layout().axis), batched: true };
        Some(self.b.load(Source::State(s), ty))
    }
}

// ------------------------------------------------------------------- instructions

impl Pass<'_> {
    /// Rebuilds every instruction that is no matrix of replaced states.
    fn body(&mut self) -> Judged<()> {
        let step = &self.model.step;
        for (v, instruction) in step.values() {
            self.b.set_span(instruction.span);
            if self.depends[v.index()].is_some() {
                self.new.push(None);
                continue;
            }
            let value = match &instruction.op {
                Op::Load(Source::State(s)) if !self.moved.is_empty() => {
                    let s = self.moved[s.index()].expect("replaced states are matrices");
                    self.b.load(Source::State(s), instruction.ty)
                }
                Op::Load(source) => self.b.load(*source, instruction.ty),
                Op::Contract(m, x) if self.depends[m.index()].is_some() => {
                    let x = self.plain(*x);
                    self.read(*m, Side::Pre, x)?
                }
                Op::ContractT(m, x) if self.depends[m.index()].is_some() => {
                    let x = self.plain(*x);
                    self.read(*m, Side::Post, x)?
                }
                Op::SumPre(m) if self.depends[m.index()].is_some() => self.sum(*m, Side::Pre)?,
                Op::SumPost(m) if self.depends[m.index()].is_some() => self.sum(*m, Side::Post)?,
                Op::SumAll(m) if self.depends[m.index()].is_some() => {
                    let rows = self.sum(*m, Side::Pre)?;
                    self.b.emit(Op::SumAll(rows))
                }
                op => match op.operands().iter().find_map(|o| self.depends[o.index()]) {
                    Some(state) => return Err(refuse(state, "its largest entry is looked for")),
                    None => self.b.rebuild(op.map_operands(|o| self.plain(o))),
                },
            };
            if let Some(name) = &instruction.name {
                self.b.name(value, name);
            }
            self.new.push(Some(value));
        }
        Ok(())
    }

    fn plain(&self, old: Value) -> Value {
        self.new[old.index()].expect("a value without replaced states is rebuilt")
    }

    /// The writes of the replaced states.
    fn writes(&mut self) -> Judged<Vec<Write>> {
        for (sink, v) in &self.model.step.results {
            if let (Sink::State(s), Some(state)) = (sink, self.depends[v.index()])
                && !self.replaced.contains(s)
            {
                let name = &self.model.states[s.index()].name;
                return Err(refuse(state, &format!("`{name}`, which needs its matrix, takes it up")));
            }
        }
        let mut writes = vec![];
        for s in self.replaced {
            let shape = self.model.states[s.index()].shape;
            let terms = match self.model.step.result(Sink::State(*s)) {
                Some(v) => self.terms(v).map_err(|r| Refusal { state: *s, ..r })?,
                None => vec![Term { core: Core::State(*s), ..Term::ONE }],
            };
            let mut write = Write::default();
            for term in terms {
                match (term.core, term.row.or(term.col)) {
                    (Core::State(from), None) => write.kept.push((from, term.scale)),
                    (Core::State(_), Some(_)) => {
                        return Err(refuse(*s, "what it keeps of itself differs from neuron to neuron"));
                    }
                    (Core::Dense(m), _) => return Err(refuse(*s, &self.adds(m))),
                    (Core::One, _) => {
                        let (post, pre) = matrix_axes(shape);
                        let u = term.row.unwrap_or_else(|| self.b.fill(1.0, Shape::Vector(post)));
                        let v = term.col.unwrap_or_else(|| self.b.fill(1.0, Shape::Vector(pre)));
                        write.events.push((term.scale, u, v));
                    }
                }
            }
            writes.push(write);
        }
        Ok(writes)
    }

    /// In words, that a matrix is added to a state.
    fn adds(&self, m: Value) -> String {
        let mut todo = vec![m];
        while let Some(v) = todo.pop() {
            let op = &self.b.function().at(v).op;
            if let Op::Load(Source::State(s)) = op
                && self.moved.is_empty()
            {
                return format!("it takes up `{}`, which is a matrix", self.model.states[s.index()].name);
            }
            todo.extend(op.operands());
        }
        "what is added to it is no sum of products of vectors".to_owned()
    }

    // ---------------------------------------------------------------------- terms

    /// A matrix as a sum.
    fn terms(&mut self, old: Value) -> Judged<Vec<Term>> {
        if self.depends[old.index()].is_none() {
            return Ok(self
                .products(old)
                .unwrap_or_else(|| vec![Term { core: Core::Dense(self.plain(old)), ..Term::ONE }]));
        }
        let state = self.depends[old.index()].expect("it depends on a state");
        let terms = match self.model.step.at(old).op.clone() {
            Op::Load(Source::State(s)) => vec![Term { core: Core::State(s), ..Term::ONE }],
            Op::Unary(Unary::Neg, x) => {
                let x = self.terms(x)?;
                x.into_iter().map(|t| self.negated(t)).collect()
            }
            Op::Binary(Binary::Add, x, y) => {
                let mut all = self.terms(x)?;
                all.extend(self.terms(y)?);
                all
            }
            Op::Binary(Binary::Sub, x, y) => {
                let mut all = self.terms(x)?;
                let y = self.terms(y)?;
                all.extend(y.into_iter().map(|t| self.negated(t)).collect::<Vec<_>>());
                all
            }
            Op::Binary(Binary::Mul, x, y) => {
                let (x, y) = (self.terms(x)?, self.terms(y)?);
                let mut all = vec![];
                for a in &x {
                    for b in &y {
                        all.push(self.product(*a, *b).map_err(|why| refuse(state, &why))?);
                    }
                }
                all
            }
            Op::Binary(Binary::Div, x, y) => self.quotient(state, x, y)?,
            Op::Select(c, x, y) => self.choice(state, c, x, y)?,
            Op::Clip { .. } => return Err(refuse(state, "it is clipped, entry by entry")),
            Op::Unary(f, _) => {
                let f = format!("{f:?}").to_lowercase();
                return Err(refuse(state, &format!("`{f}` acts on it, entry by entry")));
            }
            Op::Binary(f, ..) => {
                let f = format!("{f:?}").to_lowercase();
                return Err(refuse(state, &format!("`{f}` acts on it, entry by entry")));
            }
            _ => return Err(refuse(state, "gradients through it are stopped, entry by entry")),
        };
        if terms.len() > MOST_TERMS {
            return Err(refuse(state, "its equation has too many terms"));
        }
        Ok(terms)
    }

    /// A matrix without replaced states as a sum of products of vectors, if it is one.
    fn products(&mut self, old: Value) -> Option<Vec<Term>> {
        let one = |scale, row, col| Some(vec![Term { scale, row, col, core: Core::One }]);
        match self.model.step.at(old).op.clone() {
            Op::Splat(x, _) => one(Some(self.plain(x)), None, None),
            Op::Rows(x, _) => one(None, Some(self.plain(x)), None),
            Op::Cols(x, _) => one(None, None, Some(self.plain(x))),
            Op::Outer(x, y) => one(None, Some(self.plain(x)), Some(self.plain(y))),
            Op::Unary(Unary::Neg, x) => {
                let x = self.products(x)?;
                Some(x.into_iter().map(|t| self.negated(t)).collect())
            }
            Op::Binary(f @ (Binary::Add | Binary::Sub), x, y) => {
                let (mut x, y) = (self.products(x)?, self.products(y)?);
                for t in y {
                    let t = if f == Binary::Sub { self.negated(t) } else { t };
                    x.push(t);
                }
                (x.len() <= MOST_TERMS).then_some(x)
            }
            Op::Binary(Binary::Mul, x, y) => {
                let (x, y) = (self.products(x)?, self.products(y)?);
                if x.len() * y.len() > MOST_TERMS {
                    return None;
                }
                let pairs = x.iter().flat_map(|a| y.iter().map(move |b| (*a, *b)));
                pairs.map(|(a, b)| self.product(a, b).ok()).collect()
            }
            _ => None,
        }
    }

    fn negated(&mut self, t: Term) -> Term {
        let scale = match t.scale {
            Some(s) => self.b.unary(Unary::Neg, s),
            None => self.b.constant(-1.0),
        };
        Term { scale: Some(scale), ..t }
    }

    fn times(&mut self, a: Option<Value>, b: Option<Value>) -> Option<Value> {
        match (a, b) {
            (Some(a), Some(b)) => Some(self.b.mul(a, b)),
            (a, b) => a.or(b),
        }
    }

    fn product(&mut self, a: Term, b: Term) -> Result<Term, String> {
        let core = match (a.core, b.core) {
            (Core::One, core) | (core, Core::One) => core,
            (Core::Dense(x), Core::Dense(y)) => Core::Dense(self.b.mul(x, y)),
            (Core::State(_), Core::State(_)) => {
                return Err("it is multiplied with a plastic matrix, entry by entry".to_owned());
            }
            (Core::State(_), Core::Dense(m)) | (Core::Dense(m), Core::State(_)) => {
                return Err(self.full(m));
            }
        };
        let scale = self.times(a.scale, b.scale);
        let (row, col) = (self.times(a.row, b.row), self.times(a.col, b.col));
        Ok(Term { scale, row, col, core })
    }

    /// In words, that a coefficient has a number for every synapse.
    fn full(&self, m: Value) -> String {
        let mut op = &self.b.function().at(m).op;
        while let Op::Unary(_, x) | Op::StopGrad(x) = op {
            op = &self.b.function().at(*x).op;
        }
        let name = match op {
            Op::Load(Source::Param(p)) => format!("`{}`", self.model.params[p.index()].name),
            _ => "a matrix that multiplies it".to_owned(),
        };
        format!(
            "{name} has a number for every synapse; one number, one for each neuron (`[j]`, `[i]`) or `rank r` \
             could be taken out of the matrix"
        )
    }

    fn quotient(&mut self, state: StateId, x: Value, y: Value) -> Judged<Vec<Term>> {
        let below = self.terms(y)?;
        let [Term { scale, row, col, core: Core::One }] = below[..] else {
            return Err(refuse(state, "it is part of a quotient that is no quotient of vectors"));
        };
        let x = self.terms(x)?;
        let mut over = |a: Option<Value>, b: Option<Value>| match (a, b) {
            (Some(a), Some(b)) => Some(self.b.div(a, b)),
            (None, Some(b)) => {
                let shape = self.b.shape(b);
                let one = self.b.fill(1.0, shape);
                Some(self.b.div(one, b))
            }
            (a, None) => a,
        };
        let divided = x.into_iter().map(|t| Term {
            scale: over(t.scale, scale),
            row: over(t.row, row),
            col: over(t.col, col),
            ..t
        });
        Ok(divided.collect())
    }

    /// `c ? x : y` with one condition for all entries.
    fn choice(&mut self, state: StateId, c: Value, x: Value, y: Value) -> Judged<Vec<Term>> {
        let Op::Splat(c, _) = self.model.step.at(c).op else {
            return Err(refuse(state, "a condition chooses it, entry by entry"));
        };
        let c = self.plain(c);
        let (x, y) = (self.terms(x)?, self.terms(y)?);
        let zero = self.b.constant(0.0);
        let mut all = vec![];
        for (terms, first) in [(x, true), (y, false)] {
            for t in terms {
                let scale = t.scale.unwrap_or_else(|| self.b.constant(1.0));
                let (a, b) = if first { (scale, zero) } else { (zero, scale) };
                all.push(Term { scale: Some(self.b.select(c, a, b)), ..t });
            }
        }
        Ok(all)
    }

    // ---------------------------------------------------------------------- reads

    /// The sum over an axis: a product with ones.
    fn sum(&mut self, m: Value, summed: Side) -> Judged<Value> {
        let (post, pre) = matrix_axes(self.model.step.ty(m).shape);
        let axis = if summed == Side::Pre { pre } else { post };
        let ones = self.b.fill(1.0, Shape::Vector(axis));
        self.read(m, summed, ones)
    }

    /// `m @ x`, or `mᵀ @ x` if the post axis is summed.
    fn read(&mut self, m: Value, summed: Side, x: Value) -> Judged<Value> {
        let (post, pre) = matrix_axes(self.model.step.ty(m).shape);
        let terms = self.terms(m)?;
        let mut sum: Option<Value> = None;
        for t in terms {
            let (inner, outer) = if summed == Side::Pre { (t.col, t.row) } else { (t.row, t.col) };
            let x = inner.map_or(x, |f| self.b.mul(f, x));
            let mut y = match t.core {
                Core::One => {
                    let s = self.b.rebuild(Op::SumAll(x));
                    let kept = if summed == Side::Pre { post } else { pre };
                    self.b.splat(s, Shape::Vector(kept))
                }
                Core::State(s) => self.recall(s, summed, x),
                Core::Dense(m) => self.contract(m, summed, x),
            };
            if let Some(f) = outer {
                y = self.b.mul(f, y);
            }
            if let Some(s) = t.scale {
                y = self.b.scale(s, y);
            }
            sum = Some(sum.map_or(y, |z| self.b.add(z, y)));
        }
        let kept = if summed == Side::Pre { post } else { pre };
        Ok(sum.unwrap_or_else(|| self.b.fill(0.0, Shape::Vector(kept))))
    }

    fn contract(&mut self, m: Value, summed: Side, x: Value) -> Value {
        self.b.emit(match summed {
            Side::Pre => Op::Contract(m, x),
            Side::Post => Op::ContractT(m, x),
        })
    }

    /// `Σ_r U_rᵀ (c_r ∘ (V_r @ x))`, or with `U` and `V` exchanged.
    fn recall(&mut self, s: StateId, summed: Side, x: Value) -> Value {
        let state = self.number(s);
        let shape = self.model.states[s.index()].shape;
        let Some(layout) = &self.layout else {
            let m = self.b.load(Source::State(s), Type { shape, batched: true });
            return self.contract(m, summed, x);
        };
        // Kinds that give the same vectors share the product with them.
        let mut weights: Vec<(usize, Value)> = vec![];
        for (r, (u, v)) in layout.kinds.clone().into_iter().enumerate() {
            let Some(c) = self.coefficient(state, r) else { continue };
            let (asked, given) = if summed == Side::Pre { (v, u) } else { (u, v) };
            let asked = self.log(asked);
            let found = self.b.emit(Op::Contract(asked, x));
            let weight = self.b.mul(c, found);
            match weights.iter_mut().find(|(log, _)| *log == given) {
                Some((_, sum)) => *sum = self.b.add(*sum, weight),
                None => weights.push((given, weight)),
            }
        }
        let mut sum: Option<Value> = None;
        for (given, weight) in weights {
            let given = self.log(given);
            let y = self.b.emit(Op::ContractT(given, weight));
            sum = Some(sum.map_or(y, |z| self.b.add(z, y)));
        }
        let (post, pre) = matrix_axes(shape);
        let kept = if summed == Side::Pre { post } else { pre };
        sum.unwrap_or_else(|| self.b.fill(0.0, Shape::Vector(kept)))
    }
}

fn refuse(state: StateId, why: &str) -> Refusal {
    Refusal { state, why: why.to_owned() }
}

fn matrix_axes(shape: Shape) -> (Axis, Axis) {
    match shape {
        Shape::Matrix { post, pre } => (post, pre),
        Shape::Scalar | Shape::Vector(_) => unreachable!("the verifier saw a matrix here"),
    }
}

fn vector_axis(shape: Shape) -> Axis {
    match shape {
        Shape::Vector(axis) => axis,
        Shape::Scalar | Shape::Matrix { .. } => unreachable!("the verifier saw a vector here"),
    }
}
