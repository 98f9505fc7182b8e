//! Models whose parts run one after the other over whole sequences ([`compiler::passes::chain`]).
//!
//! Every link is an engine of its own, with machine code. What a link gives to a later one is copied from the output
//! of the one to the input of the other, and going backward from the cotangent of the input to that of the output.
//! Steps taken one at a time go through all links before the next.

use super::{Bound, Engine, EngineError, EngineOptions, Mode, RowState, Start, TeamInputs, jit};
use compiler::interp::Interpreter;
use compiler::ir::{InputId, OutputId, StateId};
use compiler::loops::plan::{Plan, Use};
use compiler::model::Role;
use compiler::passes::chain::{Given, Link, chain};
use std::sync::Arc;

/// Bytes of what the loop over time of a whole model reads, above which its links run one after the other: half of the
/// second cache of a core, of which other things need a part.
const NEAR: usize = 1 << 20;

/// When the links of a model run one after the other.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Chaining {
    /// Never.
    #[default]
    Never,
    /// If all of them together do not fit into a core's cache. For sequences whose inputs are known.
    IfLarge,
    /// Always, if there are several.
    Always,
}

/// The links of a model.
pub(super) struct Chain {
    links: Vec<(Link, Engine)>,
    /// By input, output and state of the whole: the link, and the place there.
    inputs: Vec<(usize, InputId)>,
    outputs: Vec<(usize, OutputId)>,
    states: Vec<(usize, StateId)>,
}

/// A value that a link gives to another: from an output of the one to an input of the other.
#[derive(Clone, Copy)]
struct Crossing {
    from: (usize, OutputId),
    to: InputId,
}

impl Chain {
    /// The links of a model, each compiled by `compile`; none if there are not several, or no reason for them.
    pub(super) fn new(
        whole: &Interpreter,
        bytes: usize,
        options: &EngineOptions,
        compile: impl Fn(Interpreter, &EngineOptions) -> Result<Engine, EngineError>,
    ) -> Result<Option<Chain>, EngineError> {
        let wanted = match options.chaining {
            Chaining::Never => false,
            Chaining::IfLarge => bytes > NEAR,
            Chaining::Always => true,
        };
        let mut links = if wanted { chain(&whole.model) } else { vec![] };
        if links.len() < 2 {
            return Ok(None);
        }
        let own = EngineOptions { input_bars: true, chaining: Chaining::Never, ..*options };
        let mut made = vec![];
        for link in &mut links {
            for (input, given) in link.model.inputs.iter_mut().zip(&link.inputs) {
                if !options.input_bars && matches!(given, Given::Input(_)) && input.role == Role::Signal {
                    input.role = Role::Mask;
                }
            }
            made.push(compile(Interpreter::new(Arc::new(link.model.clone()), whole.sizes.clone()), &own)?);
        }
        let input = |id: InputId| find(&links, |l| l.inputs.iter().position(|g| *g == Given::Input(id)));
        let output = |id: OutputId| find(&links, |l| l.outputs.iter().position(|o| *o == Some(id)));
        let state = |id: StateId| find(&links, |l| l.states.iter().position(|s| *s == id));
        let model = &whole.model;
        let ids = |count: usize| 0..count as u32;
        let all = (
            ids(model.inputs.len()).map(|k| input(InputId(k))).collect::<Option<Vec<_>>>(),
            ids(model.outputs.len()).map(|k| output(OutputId(k))).collect::<Option<Vec<_>>>(),
            ids(model.states.len()).map(|k| state(StateId(k))).collect::<Option<Vec<_>>>(),
        );
        let (Some(inputs), Some(outputs), Some(states)) = all else { return Ok(None) };
        let inputs = inputs.into_iter().map(|(l, k)| (l, InputId(k as u32))).collect();
        let outputs = outputs.into_iter().map(|(l, k)| (l, OutputId(k as u32))).collect();
        let states = states.into_iter().map(|(l, k)| (l, StateId(k as u32))).collect();
        Ok(Some(Chain { links: links.into_iter().zip(made).collect(), inputs, outputs, states }))
    }

    /// The links' engines.
    pub(super) fn engines(&self) -> impl Iterator<Item = &Engine> {
        self.links.iter().map(|(_, engine)| engine)
    }

    /// By link: its parameters among those of the whole.
    pub(super) fn params(&self) -> impl Iterator<Item = &[compiler::ir::ParamId]> {
        self.links.iter().map(|(link, _)| link.params.as_slice())
    }

    /// What all links take together, in the words of the whole.
    pub(super) fn plan(&self, whole: Plan, usage: &Use) -> Plan {
        let plans: Vec<Plan> = self.engines().map(|e| e.plan(usage)).collect();
        let total = |of: fn(&Plan) -> u64| plans.iter().map(of).fold(0, u64::saturating_add);
        let (total_bytes, tape_bytes) = (total(|p| p.total_bytes), total(|p| p.tape_bytes));
        Plan { total_bytes, tape_bytes, fits: whole.memory.map(|m| total_bytes <= m), ..whole }
    }

    fn crossings(&self, link: usize) -> impl Iterator<Item = Crossing> {
        let given = self.links[link].0.inputs.iter().enumerate();
        given.filter_map(|(k, given)| match given {
            Given::Link(l, output) => Some(Crossing { from: (*l, *output), to: InputId(k as u32) }),
            Given::Input(_) => None,
        })
    }

    /// A link's part of the states of the whole.
    fn part<T: Clone>(&self, link: usize, states: &[T]) -> Vec<T> {
        self.links[link].0.states.iter().map(|s| states[s.index()].clone()).collect()
    }

    /// The states of the whole from those of the links.
    pub(super) fn merge(&self, mut parts: Vec<RowState>) -> RowState {
        let take = |(l, s): &(usize, StateId)| {
            parts[*l].states.get_mut(s.index()).map(std::mem::take).unwrap_or_default()
        };
        RowState { states: self.states.iter().map(take).collect() }
    }
}

/// The first link that has something, and where.
fn find(links: &[Link], place: impl Fn(&Link) -> Option<usize>) -> Option<(usize, usize)> {
    links.iter().enumerate().find_map(|(l, link)| place(link).map(|k| (l, k)))
}

/// The memory of a row or a team: a tape for each link.
pub(super) struct Tape {
    tapes: Vec<jit::Tape>,
    mode: Mode,
}

/// What tapes need only while they run backward.
pub(super) type Rooms = Vec<jit::Room>;

impl Tape {
    /// One tape for each link, made by `tape`.
    pub(super) fn new(chain: &Chain, mode: Mode, tape: impl Fn(&Engine) -> jit::Tape) -> Tape {
        Tape { tapes: chain.engines().map(tape).collect(), mode }
    }

    pub(super) fn links(&self) -> &[jit::Tape] {
        &self.tapes
    }

    pub(super) fn exchange(&mut self, rooms: &mut Rooms) {
        self.tapes.iter_mut().zip(rooms).for_each(|(tape, room)| tape.exchange(room));
    }

    pub(super) fn rows(&self) -> usize {
        self.tapes[0].rows()
    }

    pub(super) fn select(&mut self, row: usize) {
        self.tapes.iter_mut().for_each(|t| t.select(row));
    }

    pub(super) fn steps(&self) -> usize {
        self.tapes[0].steps()
    }

    /// Starts of a link from those of the whole.
    fn starts<'s>(chain: &Chain, link: usize, starts: &[Start<'s>]) -> Vec<Start<'s>> {
        let part =
            |s: &Start<'s>| Start { states: chain.part(link, &s.states), own: chain.part(link, &s.own) };
        starts.iter().map(part).collect()
    }

    pub(super) fn begin(&mut self, chain: &Chain, bound: &Bound<'_>, starts: &[Start<'_>]) {
        for (l, (tape, own)) in self.tapes.iter_mut().zip(&bound.links).enumerate() {
            tape.begin(own, &Tape::starts(chain, l, starts));
        }
    }

    pub(super) fn reset(&mut self, chain: &Chain, bound: &Bound<'_>, start: &[Start<'_>]) {
        for (l, (tape, own)) in self.tapes.iter_mut().zip(&bound.links).enumerate() {
            tape.reset(own, &Tape::starts(chain, l, start)[0]);
        }
    }

    pub(super) fn input_mut(&mut self, chain: &Chain, bound: &Bound<'_>, input: InputId) -> &mut [f32] {
        let (l, input) = chain.inputs[input.index()];
        self.tapes[l].input_mut(&bound.links[l], input)
    }

    /// One step of every link.
    pub(super) fn step(&mut self, chain: &Chain, bound: &Bound<'_>) {
        for l in 0..self.tapes.len() {
            let (before, rest) = self.tapes.split_at_mut(l);
            let t = rest[0].steps();
            for Crossing { from: (k, output), to } in chain.crossings(l) {
                let x = before[k].output(&bound.links[k], t, output);
                rest[0].input_mut(&bound.links[l], to).copy_from_slice(x);
            }
            rest[0].step(&bound.links[l]);
        }
    }

    /// All steps of every link, one link after the other; step by step where only the last step is kept.
    pub(super) fn forward(
        &mut self,
        chain: &Chain,
        bound: &Bound<'_>,
        steps: usize,
        inputs: &mut TeamInputs<'_>,
    ) {
        if self.mode == Mode::Infer {
            (0..steps)
                .for_each(|k| self.forward_all(chain, bound, 1, &mut |row, _, id, x| inputs(row, k, id, x)));
        } else {
            self.forward_all(chain, bound, steps, inputs);
        }
    }

    fn forward_all(&mut self, chain: &Chain, bound: &Bound<'_>, steps: usize, inputs: &mut TeamInputs<'_>) {
        for (l, (link, _)) in chain.links.iter().enumerate() {
            let (before, rest) = self.tapes.split_at_mut(l);
            let first = rest[0].steps();
            rest[0].forward(&bound.links[l], steps, &mut |row, k, id, x| match link.inputs[id.index()] {
                Given::Input(whole) => inputs(row, k, whole, x),
                Given::Link(from, output) => {
                    x.copy_from_slice(before[from].output_of(&bound.links[from], row, first + k, output));
                }
            });
        }
    }

    pub(super) fn output(&self, chain: &Chain, bound: &Bound<'_>, t: usize, output: OutputId) -> &[f32] {
        let (l, output) = chain.outputs[output.index()];
        self.tapes[l].output(&bound.links[l], t, output)
    }

    pub(super) fn output_bar_mut(
        &mut self,
        chain: &Chain,
        bound: &Bound<'_>,
        t: usize,
        output: OutputId,
    ) -> &mut [f32] {
        let (l, output) = chain.outputs[output.index()];
        self.tapes[l].output_bar_mut(&bound.links[l], t, output)
    }

    pub(super) fn penalty(&mut self, bound: &Bound<'_>, t: usize) -> f32 {
        self.tapes.iter_mut().zip(&bound.links).map(|(tape, own)| tape.penalty(own, t)).sum()
    }

    pub(super) fn state(&mut self, chain: &Chain, bound: &Bound<'_>) -> RowState {
        chain.merge(self.tapes.iter_mut().zip(&bound.links).map(|(tape, own)| tape.state(own)).collect())
    }

    /// The last link first.
    pub(super) fn backward(
        &mut self,
        chain: &Chain,
        bound: &Bound<'_>,
        grads: &mut [jit::Grads],
        penalty_bar: f32,
        last: Option<&RowState>,
    ) {
        let selected = self.tapes[0].selected();
        for l in (0..self.tapes.len()).rev() {
            let own = &bound.links[l];
            let last = last.map(|s| RowState { states: chain.part(l, &s.states) });
            self.tapes[l].backward(own, &mut grads[l], penalty_bar, last.as_ref());
            self.hand_back(chain, bound, l);
        }
        self.select(selected);
    }

    /// Adds the cotangents of a link's inputs to those of the outputs that they came from.
    fn hand_back(&mut self, chain: &Chain, bound: &Bound<'_>, link: usize) {
        let (before, rest) = self.tapes.split_at_mut(link);
        let tape = &mut rest[0];
        for (row, t) in
            (0..tape.rows()).flat_map(|r| (0..tape.steps()).map(move |t| (r, t))).collect::<Vec<_>>()
        {
            tape.select(row);
            for Crossing { from: (k, output), to } in chain.crossings(link) {
                let Some(bar) = tape.input_bar(&bound.links[link], t, to) else { continue };
                before[k].select(row);
                let sum = before[k].output_bar_mut(&bound.links[k], t, output);
                sum.iter_mut().zip(bar).for_each(|(s, x)| *s += x);
            }
        }
    }

    pub(super) fn input_bar(
        &self,
        chain: &Chain,
        bound: &Bound<'_>,
        t: usize,
        input: InputId,
    ) -> Option<&[f32]> {
        let (l, input) = chain.inputs[input.index()];
        self.tapes[l].input_bar(&bound.links[l], t, input)
    }

    pub(super) fn init_bar(&self, chain: &Chain) -> RowState {
        chain.merge(self.tapes.iter().map(jit::Tape::init_bar).collect())
    }
}
