//! Rows on tapes: what a [`Bound`] does, whatever runs it.

use super::{
    Bound, Engine, Grads, GradsKind, Kind, KnownRow, RowState, Start, Tape, TapeKind, TeamInputs, chain,
    device,
};
use compiler::ir::{InputId, OutputId, StateId};

impl Bound<'_> {
    /// The links of a tape's engine.
    fn chain(&self) -> &chain::Chain {
        match &self.engine.kind {
            Kind::Chain(chain) => chain,
            Kind::Interp | Kind::Jit(_) | Kind::Device(_) | Kind::Torch(_) => {
                unreachable!("this tape belongs to a chain")
            }
        }
    }

    /// The engine.
    pub fn engine(&self) -> &Engine {
        self.engine
    }

    /// The initial states that this binding gives (constants and learned ones; zero for random
    /// ones).
    pub fn initial(&self) -> RowState {
        RowState { states: self.initial.clone() }
    }

    /// Starts a row: its states become `states`, or their initial values.
    pub fn begin(&self, tape: &mut Tape, states: Option<&RowState>) {
        self.begin_team(tape, &[states]);
    }

    /// Starts the rows of a team. Either all or none of them have their own initial values.
    pub fn begin_team(&self, tape: &mut Tape, states: &[Option<&RowState>]) {
        let starts: Vec<Start<'_>> = states.iter().map(|s| self.start(*s)).collect();
        match &mut tape.0 {
            TapeKind::Interp(t) => t.begin(&starts[0]),
            TapeKind::Jit(t) => t.begin(self, &starts),
            TapeKind::Chain(t) => t.begin(self.chain(), self, &starts),
            TapeKind::Device(t) => t.begin(self, &starts),
            TapeKind::Torch(t) => t.begin(self, &starts),
        }
    }

    /// From now on inputs, outputs, states and their cotangents are those of this row of a team.
    pub fn select(&self, tape: &mut Tape, row: usize) {
        match &mut tape.0 {
            TapeKind::Interp(_) => {}
            TapeKind::Jit(t) => t.select(row),
            TapeKind::Chain(t) => t.select(row),
            TapeKind::Device(t) => t.select(row),
            TapeKind::Torch(t) => t.select(row),
        }
    }

    /// Sets the states back before the next step, and cuts the gradient there.
    pub fn reset(&self, tape: &mut Tape, states: Option<&RowState>) {
        self.reset_team(tape, &[states]);
    }

    /// The same for all rows of a team; only a device can have more than one.
    pub fn reset_team(&self, tape: &mut Tape, states: &[Option<&RowState>]) {
        let starts: Vec<Start<'_>> = states.iter().map(|s| self.start(*s)).collect();
        match &mut tape.0 {
            TapeKind::Interp(t) => t.reset(&starts[0]),
            TapeKind::Jit(t) => t.reset(self, &starts[0]),
            TapeKind::Chain(t) => t.reset(self.chain(), self, &starts),
            TapeKind::Device(t) => t.reset(self, &starts),
            TapeKind::Torch(t) => t.reset(self, &starts),
        }
    }

    fn start<'s>(&'s self, states: Option<&'s RowState>) -> Start<'s> {
        let given = |k: usize| states.and_then(|s| s.states.get(k)).filter(|s| !s.is_empty());
        let count = self.initial.len();
        Start {
            states: (0..count).map(|k| given(k).unwrap_or(&self.initial[k]).as_slice()).collect(),
            own: (0..count).map(|k| given(k).is_none()).collect(),
        }
    }

    /// The input slot of the step about to run.
    pub fn input_mut<'t>(&self, tape: &'t mut Tape, input: InputId) -> &'t mut [f32] {
        match &mut tape.0 {
            TapeKind::Interp(t) => t.input_mut(input),
            TapeKind::Jit(t) => t.input_mut(self, input),
            TapeKind::Chain(t) => t.input_mut(self.chain(), self, input),
            TapeKind::Device(t) => t.input_mut(input),
            TapeKind::Torch(t) => t.input_mut(input),
        }
    }

    /// Runs one step.
    pub fn step(&self, tape: &mut Tape) {
        match &mut tape.0 {
            TapeKind::Interp(t) => t.step(self),
            TapeKind::Jit(t) => t.step(self),
            TapeKind::Chain(t) => t.step(self.chain(), self),
            TapeKind::Device(t) => t.step(self),
            TapeKind::Torch(t) => t.step(self),
        }
    }

    /// Runs several steps whose inputs are known: the same as a call of [`Bound::step`] for each, bit for
    /// bit, and faster. `inputs(k, input, x)` fills `x`, which is zero, with an input of the `k`-th of
    /// these steps.
    pub fn forward(&self, tape: &mut Tape, steps: usize, inputs: &mut dyn FnMut(usize, InputId, &mut [f32])) {
        self.forward_team(tape, steps, &mut |_, k, input, x| inputs(k, input, x));
    }

    /// The same for a team; the first argument of `inputs` is the row.
    pub fn forward_team(&self, tape: &mut Tape, steps: usize, inputs: &mut TeamInputs<'_>) {
        match &mut tape.0 {
            TapeKind::Interp(t) => {
                for k in 0..steps {
                    for input in (0..self.engine.model().inputs.len()).map(|n| InputId(n as u32)) {
                        let x = t.input_mut(input);
                        x.fill(0.0);
                        inputs(0, k, input, x);
                    }
                    t.step(self);
                }
            }
            TapeKind::Jit(t) => t.forward(self, steps, inputs),
            TapeKind::Chain(t) => t.forward(self.chain(), self, steps, inputs),
            TapeKind::Device(t) => t.forward(self, steps, inputs),
            TapeKind::Torch(t) => t.forward(self, steps, inputs),
        }
    }

    /// A row whose inputs are known, forward and backward: begins it, runs all steps, asks for the cotangents of
    /// every output of every step, and adds its gradients to `grads`. The tape is one of [`Mode::Train`].
    ///
    /// Going backward begins where going forward ended, with the row's matrices still in the core's cache.
    pub fn train_step(&self, tape: &mut Tape, grads: &mut Grads, row: KnownRow<'_>) {
        let KnownRow { states, steps, inputs, cotangents, penalty_bar } = row;
        self.begin(tape, states);
        self.forward(tape, steps, inputs);
        let mut value = vec![];
        for t in 0..steps {
            for output in (0..self.engine.model().outputs.len()).map(|k| OutputId(k as u32)) {
                value.clear();
                value.extend_from_slice(self.output(tape, t, output));
                cotangents(t, output, &value, self.output_bar_mut(tape, t, output));
            }
        }
        self.backward(tape, grads, penalty_bar, None);
    }

    /// An episode of all rows of a team on a device, whose rows have been started: forward, losses, backward; then the
    /// parameters, which live there, move. `noise` fills the inputs that are drawn on the host.
    pub fn train_episode(
        &self,
        tape: &mut Tape,
        training: (&mut device::Training, device::Update),
        noise: Option<&mut TeamInputs<'_>>,
    ) -> device::Results {
        let TapeKind::Device(tape) = &mut tape.0 else { unreachable!("only a device trains on itself") };
        tape.train_episode(self, training, noise)
    }

    /// How many rows step together on a tape.
    pub fn rows(&self, tape: &Tape) -> usize {
        match &tape.0 {
            TapeKind::Interp(_) => 1,
            TapeKind::Jit(t) => t.rows(),
            TapeKind::Chain(t) => t.rows(),
            TapeKind::Device(t) => t.rows(),
            TapeKind::Torch(t) => t.rows(),
        }
    }

    /// How many steps have run since [`Bound::begin`].
    pub fn steps(&self, tape: &Tape) -> usize {
        match &tape.0 {
            TapeKind::Interp(t) => t.steps(),
            TapeKind::Jit(t) => t.steps(),
            TapeKind::Chain(t) => t.steps(),
            TapeKind::Device(t) => t.steps(),
            TapeKind::Torch(t) => t.steps(),
        }
    }

    /// An output of step `t`; in [`Mode::Infer`] only the last step's are kept.
    pub fn output<'t>(&self, tape: &'t Tape, t: usize, output: OutputId) -> &'t [f32] {
        match &tape.0 {
            TapeKind::Interp(tape) => tape.output(t, output),
            TapeKind::Jit(tape) => tape.output(self, t, output),
            TapeKind::Chain(tape) => tape.output(self.chain(), self, t, output),
            TapeKind::Device(tape) => tape.output(t, output),
            TapeKind::Torch(tape) => tape.output(t, output),
        }
    }

    /// The sum of step `t`'s penalty terms. It may need sums that the last step has left pending;
    /// they are finished then.
    pub fn penalty(&self, tape: &mut Tape, t: usize) -> f32 {
        match &mut tape.0 {
            TapeKind::Interp(tape) => tape.penalty(t),
            TapeKind::Jit(tape) => tape.penalty(self, t),
            TapeKind::Chain(tape) => tape.penalty(self, t),
            TapeKind::Device(tape) => tape.penalty(self, t),
            TapeKind::Torch(tape) => tape.penalty(t),
        }
    }

    /// The states after the last step.
    pub fn state(&self, tape: &mut Tape) -> RowState {
        match &mut tape.0 {
            TapeKind::Interp(t) => t.state(),
            TapeKind::Jit(t) => t.state(self),
            TapeKind::Chain(t) => t.state(self.chain(), self),
            TapeKind::Device(t) => t.state(self),
            TapeKind::Torch(t) => t.state(self),
        }
    }

    /// The cotangent slot of an output of step `t`: zero unless written.
    pub fn output_bar_mut<'t>(&self, tape: &'t mut Tape, t: usize, output: OutputId) -> &'t mut [f32] {
        match &mut tape.0 {
            TapeKind::Interp(tape) => tape.output_bar_mut(t, output),
            TapeKind::Jit(tape) => tape.output_bar_mut(self, t, output),
            TapeKind::Chain(tape) => tape.output_bar_mut(self.chain(), self, t, output),
            TapeKind::Device(tape) => tape.output_bar_mut(t, output),
            TapeKind::Torch(tape) => tape.output_bar_mut(t, output),
        }
    }

    /// Runs the tape backward and adds the gradients of the parameters to `grads`. `penalty_bar` is
    /// the cotangent of every step's penalty, `last` that of the final states (zero if absent).
    pub fn backward(&self, tape: &mut Tape, grads: &mut Grads, penalty_bar: f32, last: Option<&RowState>) {
        match (&mut tape.0, &mut grads.0) {
            (TapeKind::Interp(t), GradsKind::Interp(g)) => t.backward(self, g, penalty_bar, last),
            (TapeKind::Jit(t), GradsKind::Jit(g)) => t.backward(self, g, penalty_bar, last),
            (TapeKind::Chain(t), GradsKind::Chain(g)) => t.backward(self.chain(), self, g, penalty_bar, last),
            (TapeKind::Device(t), GradsKind::Device(Some(g))) => t.backward(self, g, penalty_bar, last),
            (TapeKind::Device(t), GradsKind::Device(None)) => t.give_up(),
            (TapeKind::Torch(t), GradsKind::Torch(g)) => t.backward(self, g, penalty_bar, last),
            _ => unreachable!("tape and gradients come from one engine"),
        }
    }

    /// After [`Bound::backward`]: the cotangent of an input of step `t`; `None` if it has none.
    pub fn input_bar<'t>(&self, tape: &'t Tape, t: usize, input: InputId) -> Option<&'t [f32]> {
        match &tape.0 {
            TapeKind::Interp(tape) => tape.input_bar(t, input),
            TapeKind::Jit(tape) => tape.input_bar(self, t, input),
            TapeKind::Chain(tape) => tape.input_bar(self.chain(), self, t, input),
            TapeKind::Device(tape) => tape.input_bar(t, input),
            TapeKind::Torch(tape) => tape.input_bar(t, input),
        }
    }

    /// After [`Bound::backward`]: the cotangent of the initial states, summed over resets; empty tensors if
    /// compiled code was told that nobody wants it ([`EngineOptions::initial_bars`]).
    pub fn init_bar(&self, tape: &Tape) -> RowState {
        match &tape.0 {
            TapeKind::Interp(t) => t.init_bar(),
            TapeKind::Jit(t) => t.init_bar(),
            TapeKind::Chain(t) => t.init_bar(self.chain()),
            TapeKind::Device(t) => t.init_bar(self),
            TapeKind::Torch(t) => t.init_bar(self),
        }
    }

    /// Elements of a state.
    pub(crate) fn state_len(&self, s: StateId) -> usize {
        self.engine.sizes().count(self.engine.model().states[s.index()].shape)
    }
}
