//! A step as a chain of links, each of which runs over a whole sequence before the next begins.
//!
//! Layer two of a deep network needs what layer one gives at the same step, but layer one needs nothing of
//! layer two. Who knows all inputs of a sequence can therefore run layer one over all steps, then layer two; going
//! backward, layer two first. What is read at every step, parameters and plastic matrices, is then that of
//! one layer, which may fit into a core's cache where all layers do not. Products that feed layer two need
//! no state of it, so they leave its loop over time.
//!
//! **Loops.** States that reach each other through time belong together, with all values on the way. Such a *loop*
//! is heavy if it has a matrix in it. The *level* of a value is the number of heavy loops on the longest path that
//! leads to it, its own included; values of level 0 count as 1. A link is what has the same level. A value in no loop that
//! only later links use belongs to the first of these.
//!
//! **Links** are models of their own. What one link gives to a later one is an output of the former and an input of the
//! latter; a scalar or a vector. A chain with a matrix between links would have to keep it for every step: then there
//! is none. Unbatched values are computed by every link that uses them, so that a parameter may belong to
//! several links; its gradient is the sum of theirs.

use crate::ir::{Function, InputId, Op, OutputId, ParamId, Sink, Source, StateId, Value};
use crate::loops::schedule::is_matrix;
use crate::model::{Init, Input, Model, Output, Role};
use std::collections::BTreeMap;

/// Where an input of a link comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Given {
    /// An input of the whole model.
    Input(InputId),
    /// What an earlier link gives: the number of the link, and its output.
    Link(usize, OutputId),
}

/// A part of a model.
#[derive(Clone, Debug)]
pub struct Link {
    /// The part.
    pub model: Model,
    /// By its parameters: those of the whole.
    pub params: Vec<ParamId>,
    /// By its states: those of the whole.
    pub states: Vec<StateId>,
    /// By its inputs: where they come from.
    pub inputs: Vec<Given>,
    /// By its outputs: those of the whole; `None` for what only later links use.
    pub outputs: Vec<Option<OutputId>>,
}

/// Cuts a model. Fewer than two links if there is nothing to cut.
pub fn chain(model: &Model) -> Vec<Link> {
    let level = levels(model);
    let count = level.iter().flatten().copied().max().unwrap_or(0);
    let is_written = |k: usize| model.step.result(Sink::State(StateId(k as u32))).is_some();
    if count < 2 || model.events.is_some() || !(0..model.states.len()).all(is_written) {
        return vec![];
    }
    let f = &model.step;
    let crosses = |user: usize, v: Value| level[v.index()].is_some_and(|l| l < user);
    let is_cut = f.values().any(|(v, i)| {
        let Some(own) = level[v.index()] else { return false };
        i.op.operands().iter().any(|o| crosses(own, *o) && is_matrix(f, *o))
    });
    if is_cut {
        return vec![];
    }
    let mut cut = Cut { model, level: &level, made: vec![], given: BTreeMap::new() };
    (1..=count).for_each(|number| cut.add(number));
    cut.made
}

/// The level of every batched value.
fn levels(model: &Model) -> Vec<Option<usize>> {
    let f = &model.step;
    let loops = Loops::new(model);
    let mut level: Vec<Option<usize>> = f.body.iter().map(|i| i.ty.batched.then_some(1)).collect();
    let mut of_loop: Vec<usize> = loops.heavy.iter().map(|_| 1).collect();
    loop {
        let before = (level.clone(), of_loop.clone());
        for (v, i) in f.values().filter(|(v, _)| f.ty(*v).batched) {
            let own = loops.of[v.index()];
            let mut needs: Vec<Value> = i.op.operands();
            needs.extend(written(f, &i.op));
            let is_outer = |o: &&Value| own.is_none() || loops.of[o.index()] != own;
            let base = needs.iter().filter(is_outer).filter_map(|o| {
                // The first heavy loop has level 1, like what leads to it.
                let more = own.is_some_and(|l| loops.heavy[l]) && loops.behind[o.index()];
                level[o.index()].map(|l| l + usize::from(more))
            });
            let base = base.max().unwrap_or(1);
            match own {
                Some(l) => {
                    of_loop[l] = of_loop[l].max(base);
                    level[v.index()] = Some(of_loop[l]);
                }
                None => level[v.index()] = Some(base),
            }
        }
        if before == (level.clone(), of_loop.clone()) {
            break;
        }
    }
    later(f, &loops, level)
}

/// The value that a load of a state gives at the next step.
fn written(f: &Function, op: &Op) -> Option<Value> {
    match op {
        Op::Load(Source::State(s)) => f.result(Sink::State(*s)),
        _ => None,
    }
}

/// Moves values to the first link that uses them.
fn later(f: &Function, loops: &Loops, mut level: Vec<Option<usize>>) -> Vec<Option<usize>> {
    let mut first: Vec<Option<usize>> = vec![None; f.body.len()];
    let mut stays = vec![false; f.body.len()];
    f.results.iter().for_each(|(_, v)| stays[v.index()] = true);
    for k in (0..f.body.len()).rev() {
        let op = &f.body[k].op;
        let is_free = !stays[k] && loops.of[k].is_none() && !matches!(op, Op::Load(Source::State(_)));
        if let (true, Some(own), Some(user)) = (is_free, level[k], first[k]) {
            level[k] = Some(own.max(user));
        }
        for o in op.operands() {
            let known = first[o.index()];
            first[o.index()] = known.into_iter().chain(level[k]).min();
        }
    }
    level
}

/// The loops through time.
struct Loops {
    /// The loop of a value.
    of: Vec<Option<usize>>,
    /// Whether a loop has a matrix in it.
    heavy: Vec<bool>,
    /// Whether a heavy loop leads to a value, or has it.
    behind: Vec<bool>,
}

impl Loops {
    fn new(model: &Model) -> Loops {
        let f = &model.step;
        let states = model.states.len();
        let mut up = vec![vec![false; states]; f.body.len()];
        let mut down = up.clone();
        for (v, i) in f.values() {
            if let Op::Load(Source::State(s)) = i.op {
                up[v.index()][s.index()] = true;
            }
            for o in i.op.operands() {
                let from = up[o.index()].clone();
                join(&mut up[v.index()], &from);
            }
        }
        for (sink, v) in &f.results {
            if let Sink::State(s) = sink {
                down[v.index()][s.index()] = true;
            }
        }
        for k in (0..f.body.len()).rev() {
            let from = down[k].clone();
            f.body[k].op.operands().iter().for_each(|o| join(&mut down[o.index()], &from));
        }
        let reach = reach(f, &up, states);
        // A loop is known by the first of its states.
        let name = |s: usize| (0..states).find(|t| reach[s][*t] && reach[*t][s]);
        let mut names: Vec<usize> = (0..states).filter_map(name).collect();
        names.sort_unstable();
        names.dedup();
        let of_state = |s: usize| name(s).and_then(|n| names.iter().position(|m| *m == n));
        let of_value = |k: usize| {
            let closes =
                |s: &usize| up[k][*s] && (0..states).any(|t| down[k][t] && (t == *s || reach[t][*s]));
            (0..states).find(closes).and_then(of_state)
        };
        let of: Vec<Option<usize>> = (0..f.body.len()).map(of_value).collect();
        let mut heavy = vec![false; names.len()];
        for (v, i) in f.values() {
            let matrix = is_matrix(f, v) || i.op.operands().iter().any(|o| is_matrix(f, *o));
            if let (Some(l), true) = (of[v.index()], matrix) {
                heavy[l] = true;
            }
        }
        let behind = |k: usize| {
            let is_heavy = |l: Option<usize>| l.is_some_and(|l| heavy[l]);
            let leads =
                |s: usize| up[k][s] && (0..states).any(|t| (t == s || reach[t][s]) && is_heavy(of_state(t)));
            is_heavy(of[k]) || (0..states).any(leads)
        };
        let behind = (0..f.body.len()).map(behind).collect();
        Loops { of, heavy, behind }
    }
}

fn join(to: &mut [bool], from: &[bool]) {
    to.iter_mut().zip(from).for_each(|(t, f)| *t |= f);
}

/// Which states reach which, in one step or more.
fn reach(f: &Function, up: &[Vec<bool>], states: usize) -> Vec<Vec<bool>> {
    let mut reach = vec![vec![false; states]; states];
    for (sink, v) in &f.results {
        if let Sink::State(t) = sink {
            (0..states).filter(|s| up[v.index()][*s]).for_each(|s| reach[s][t.index()] = true);
        }
    }
    for via in 0..states {
        for s in 0..states {
            if reach[s][via] {
                let more = reach[via].clone();
                join(&mut reach[s], &more);
            }
        }
    }
    reach
}

/// Links under way.
struct Cut<'m> {
    model: &'m Model,
    level: &'m [Option<usize>],
    made: Vec<Link>,
    /// What earlier links give to later ones.
    given: BTreeMap<Value, (usize, OutputId)>,
}

impl Cut<'_> {
    fn results(&self, number: usize) -> Vec<(Sink, Value)> {
        // Results that depend on parameters alone belong to the first link.
        let of = |v: Value| self.level[v.index()].unwrap_or(1);
        self.model.step.results.iter().copied().filter(|(_, v)| of(*v) == number).collect()
    }

    /// What a link gives to later ones.
    fn crossing(&self, number: usize) -> Vec<Value> {
        let f = &self.model.step;
        let is_here = |v: Value| self.level[v.index()] == Some(number);
        let uses = |v: Value| {
            f.values().any(|(u, i)| {
                self.level[u.index()].is_some_and(|l| l > number) && i.op.operands().contains(&v)
            })
        };
        let late = |v: Value| {
            f.results.iter().any(|(_, r)| *r == v && self.level[v.index()].is_some_and(|l| l > number))
        };
        f.values().map(|(v, _)| v).filter(|v| is_here(*v) && (uses(*v) || late(*v))).collect()
    }

    fn add(&mut self, number: usize) {
        let (model, f) = (self.model, &self.model.step);
        let results = self.results(number);
        let crossing = self.crossing(number);
        let mut wanted = vec![false; f.body.len()];
        results.iter().for_each(|(_, v)| wanted[v.index()] = true);
        crossing.iter().for_each(|v| wanted[v.index()] = true);
        let is_given = |v: Value| self.level[v.index()].is_some_and(|l| l < number);
        for (v, i) in f.values().collect::<Vec<_>>().into_iter().rev() {
            if wanted[v.index()] && !is_given(v) {
                i.op.operands().iter().for_each(|o| wanted[o.index()] = true);
            }
        }
        let states: Vec<StateId> = results
            .iter()
            .filter_map(|(sink, _)| if let Sink::State(s) = sink { Some(*s) } else { None })
            .collect();
        let mut part = Part { link: empty(model, states), of_param: BTreeMap::new() };
        if number == 1 {
            part.unused_inputs(model);
        }
        let mut new: BTreeMap<Value, Value> = BTreeMap::new();
        for (v, instruction) in f.values().filter(|(v, _)| wanted[v.index()]) {
            let mut instruction = instruction.clone();
            instruction.op = match instruction.op {
                _ if is_given(v) => {
                    let (link, output) = self.given[&v];
                    let from = &self.made[link].model.outputs[output.index()];
                    Op::Load(Source::Input(part.link_input(from, f, v, Given::Link(link, output), model)))
                }
                Op::Load(source) => Op::Load(part.source(source, model)),
                op => op.map_operands(|o| new[&o]),
            };
            new.insert(v, Value(part.link.model.step.body.len() as u32));
            part.link.model.step.body.push(instruction);
        }
        for (sink, v) in &results {
            let sink = match sink {
                Sink::State(s) => Sink::State(part.state(*s)),
                Sink::Output(o) => Sink::Output(part.output(model.outputs[o.index()].clone(), Some(*o))),
                other => *other,
            };
            part.link.model.step.results.push((sink, new[v]));
        }
        for v in crossing {
            let (ty, name) = (f.ty(v), f.at(v).name.clone().unwrap_or(format!("%{}", v.0)));
            let output = Output { name, doc: vec![], shape: ty.shape, span: f.at(v).span };
            let id = part.output(output, None);
            part.link.model.step.results.push((Sink::Output(id), new[&v]));
            self.given.insert(v, (number - 1, id));
        }
        part.initial(model);
        debug_assert_eq!(crate::ir::verify(&part.link.model.step), Ok(()));
        self.made.push(part.link);
    }
}

fn empty(model: &Model, states: Vec<StateId>) -> Link {
    let part = Model {
        params: vec![],
        inputs: vec![],
        states: states.iter().map(|s| model.states[s.index()].clone()).collect(),
        outputs: vec![],
        step: Function::default(),
        modulators: vec![],
        equations: vec![],
        events: None,
        ..model.clone()
    };
    Link { model: part, params: vec![], states, inputs: vec![], outputs: vec![] }
}

/// A link under way.
struct Part {
    link: Link,
    of_param: BTreeMap<ParamId, ParamId>,
}

impl Part {
    fn source(&mut self, source: Source, model: &Model) -> Source {
        match source {
            Source::Param(p) => Source::Param(self.param(p, model)),
            Source::State(s) => Source::State(self.state(s)),
            Source::Input(i) => Source::Input(self.input(model.inputs[i.index()].clone(), Given::Input(i))),
            other => unreachable!("a step does not load {other:?}"),
        }
    }

    fn state(&self, s: StateId) -> StateId {
        let found = self.link.states.iter().position(|t| *t == s);
        StateId(found.expect("a state is read where it is written") as u32)
    }

    fn param(&mut self, p: ParamId, model: &Model) -> ParamId {
        let link = &mut self.link;
        *self.of_param.entry(p).or_insert_with(|| {
            link.params.push(p);
            link.model.params.push(model.params[p.index()].clone());
            ParamId(link.params.len() as u32 - 1)
        })
    }

    fn input(&mut self, input: Input, given: Given) -> InputId {
        let known = self.link.inputs.iter().position(|g| *g == given);
        let place = known.unwrap_or_else(|| {
            self.link.inputs.push(given);
            self.link.model.inputs.push(input);
            self.link.inputs.len() - 1
        });
        InputId(place as u32)
    }

    /// An input that an earlier link gives. An input of the whole that is passed on keeps its role.
    fn link_input(&mut self, from: &Output, f: &Function, v: Value, given: Given, model: &Model) -> InputId {
        let role = match f.at(v).op {
            Op::Load(Source::Input(i)) if !model.inputs[i.index()].role.is_differentiable() => Role::Mask,
            _ => Role::Signal,
        };
        let (name, shape, span) = (from.name.clone(), from.shape, from.span);
        self.input(Input { name, doc: vec![], role, shape, span }, given)
    }

    /// Inputs that no equation reads.
    fn unused_inputs(&mut self, model: &Model) {
        for (k, input) in model.inputs.iter().enumerate() {
            let id = InputId(k as u32);
            if !model.step.body.iter().any(|i| i.op == Op::Load(Source::Input(id))) {
                self.input(input.clone(), Given::Input(id));
            }
        }
    }

    fn output(&mut self, output: Output, whole: Option<OutputId>) -> OutputId {
        self.link.outputs.push(whole);
        self.link.model.outputs.push(output);
        OutputId(self.link.outputs.len() as u32 - 1)
    }

    /// Learned initial values.
    fn initial(&mut self, model: &Model) {
        for k in 0..self.link.model.states.len() {
            if let Init::Param(p) = self.link.model.states[k].init {
                let own = self.param(p, model);
                self.link.model.states[k].init = Init::Param(own);
            }
        }
    }
}
