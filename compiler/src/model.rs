//! The typed model: what the checker makes of a spec, and all that later stages know of it.

use crate::ir::{Axes, Axis, Function, Shape, Sizes, StateId, Value};
use grammar::ast::StateKind;
use grammar::span::Span;

/// A checked spec.
#[derive(Clone, Debug)]
pub struct Model {
    /// The spec's name.
    pub name: String,
    /// Its documentation.
    pub doc: Vec<String>,
    /// All axes.
    pub axes: Axes,
    /// Parameter tensors. `learn`ed initial states and the factors of `rank r` parameters are
    /// parameters of their own.
    pub params: Vec<Param>,
    /// Inputs, noise included.
    pub inputs: Vec<Input>,
    /// States.
    pub states: Vec<State>,
    /// Outputs.
    pub outputs: Vec<Output>,
    /// One time step.
    pub step: Function,
    /// Transients declared `modulator`: name, value in [`Model::step`], place.
    pub modulators: Vec<(String, Value, Span)>,
    /// Its equations and penalty terms, in text order: what the text says of them.
    pub equations: Vec<Equation>,
    /// The matrix states that are kept as events, if some are; never from the checker.
    pub events: Option<Events>,
}

/// What the text says of an equation, or of a penalty term.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Equation {
    /// The names it defines, as in [`crate::ir::Instruction::name`]: `y'`, `m`; none for a penalty term.
    pub names: Vec<String>,
    /// Its documentation.
    pub doc: Vec<String>,
}

/// Matrix states as a log of the outer products that were written to them; see
/// [`crate::passes::events`].
#[derive(Clone, Debug, PartialEq)]
pub struct Events {
    /// One place for every step.
    pub axis: Axis,
    /// How many steps can run from the start or a reset.
    pub capacity: usize,
    /// One at the place of this step, else zero.
    pub clock: Value,
    /// The logs: matrices `[events, neurons]` whose write adds `clock ⊗ row`.
    pub logs: Vec<StateId>,
    /// What they replace.
    pub matrices: Vec<Kept>,
}

/// A matrix state as events: `Σ_l Σ_terms c[l] u[l] ⊗ v[l]`.
#[derive(Clone, Debug, PartialEq)]
pub struct Kept {
    /// Its name in the spec.
    pub name: String,
    /// Its axes.
    pub shape: Shape,
    /// Its coefficients, and the logs of post and pre vectors.
    pub terms: Vec<(StateId, StateId, StateId)>,
}

/// A parameter tensor.
#[derive(Clone, Debug, PartialEq)]
pub struct Param {
    /// Its name: the spec's name, `NAME.init` for the learned initial value of state `NAME`, and
    /// `NAME.post`, `NAME.pre` for the factors of a parameter of rank `r`.
    pub name: String,
    /// Its documentation.
    pub doc: Vec<String>,
    /// Its axes in the IR. A factor of rank `r` over `N` is a vector over `r*N`: `r` vectors, one
    /// after the other.
    pub shape: Shape,
    /// Its axes outside: `[r, N]` for a factor, otherwise those of `shape`.
    pub dims: Vec<Axis>,
    /// Whether it is trained.
    pub learned: bool,
    /// Its range.
    pub constraint: Constraint,
    /// Where it starts.
    pub init: Init,
    /// Its gradient is multiplied by this before clipping and the optimiser.
    pub gradscale: ConstExpr,
    /// Where it is declared.
    pub span: Span,
}

/// The range of a parameter, kept by a reparametrisation: the optimiser moves a raw number, the
/// equations see its image.
#[derive(Clone, Debug, PartialEq)]
pub enum Constraint {
    /// Any number; value = raw.
    Free,
    /// `in (low, high)`: value = low + (high − low)·σ(raw).
    Interval(ConstExpr, ConstExpr),
    /// `> low` or `>= low`: value = low + softplus(raw).
    Above(ConstExpr),
    /// `< high` or `<= high`: value = high − softplus(raw).
    Below(ConstExpr),
}

/// A constraint with its numbers.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Range {
    /// Any number.
    Free,
    /// Between two numbers.
    Interval(f64, f64),
    /// Above a number.
    Above(f64),
    /// Below a number.
    Below(f64),
}

impl Constraint {
    /// The constraint with its numbers, once axes have sizes.
    pub fn range(&self, sizes: &Sizes) -> Range {
        match self {
            Constraint::Free => Range::Free,
            Constraint::Interval(a, b) => Range::Interval(a.eval(sizes), b.eval(sizes)),
            Constraint::Above(a) => Range::Above(a.eval(sizes)),
            Constraint::Below(b) => Range::Below(b.eval(sizes)),
        }
    }
}

impl Range {
    /// The number the equations see.
    pub fn value(self, raw: f64) -> f64 {
        let sigmoid = |x: f64| 1.0 / (1.0 + (-x).exp());
        let softplus = |x: f64| x.max(0.0) + (-x.abs()).exp().ln_1p();
        match self {
            Range::Free => raw,
            Range::Interval(a, b) => a + (b - a) * sigmoid(raw),
            Range::Above(a) => a + softplus(raw),
            Range::Below(b) => b - softplus(raw),
        }
    }

    /// d value / d raw.
    pub fn slope(self, raw: f64) -> f64 {
        let sigmoid = |x: f64| 1.0 / (1.0 + (-x).exp());
        match self {
            Range::Free => 1.0,
            Range::Interval(a, b) => (b - a) * sigmoid(raw) * sigmoid(-raw),
            Range::Above(_) => sigmoid(raw),
            Range::Below(_) => -sigmoid(raw),
        }
    }

    /// The raw number whose image is `value`; `None` outside of the (open) range.
    pub fn raw(self, value: f64) -> Option<f64> {
        let inverse_softplus = |y: f64| y + (-(-y).exp()).ln_1p();
        match self {
            Range::Free => Some(value),
            Range::Interval(a, b) => {
                let p = (value - a) / (b - a);
                (0.0 < p && p < 1.0).then(|| (p / (1.0 - p)).ln())
            }
            Range::Above(a) => (a < value).then(|| inverse_softplus(value - a)),
            Range::Below(b) => (value < b).then(|| inverse_softplus(b - value)),
        }
    }
}

/// Where a parameter or a state starts.
#[derive(Clone, Debug, PartialEq)]
pub enum Init {
    /// The same number everywhere.
    Constant(ConstExpr),
    /// Uniform between two numbers.
    Uniform(ConstExpr, ConstExpr),
    /// Normal with mean and standard deviation.
    Normal(ConstExpr, ConstExpr),
    /// Uniform in ±1/√(fan-in), as `torch.nn.Linear` does for weights and biases.
    FanIn(Axis),
    /// Orthogonal rows or columns (whichever are fewer), scaled by a gain.
    Orthogonal(ConstExpr),
    /// The value of a parameter: `= learn`, or a parameter's name.
    Param(crate::ir::ParamId),
}

/// An input.
#[derive(Clone, Debug, PartialEq)]
pub struct Input {
    /// Its name.
    pub name: String,
    /// Its documentation.
    pub doc: Vec<String>,
    /// Its role.
    pub role: Role,
    /// Its axes.
    pub shape: Shape,
    /// Where it is declared.
    pub span: Span,
}

/// The role of an input.
#[derive(Clone, Debug, PartialEq)]
pub enum Role {
    /// An ordinary input; gradients flow into it.
    Signal,
    /// A modulator of the host: reward, baseline, context. No gradient.
    Modulator,
    /// A label or target. No gradient.
    Target,
    /// A mask or gate. No gradient.
    Mask,
    /// Where not zero, the row's states return to their initial values before the step.
    Reset,
    /// Drawn by the runtime. No gradient.
    Noise(Noise),
}

/// How a noise input is drawn, independently for every row and element.
#[derive(Clone, Debug, PartialEq)]
pub struct Noise {
    /// From what.
    pub law: Law,
    /// Whether it is drawn once per episode, or window of a text, and not at every step.
    pub locked: bool,
}

/// What a noise input is drawn from.
#[derive(Clone, Debug, PartialEq)]
pub enum Law {
    /// A distribution: [`Init::Uniform`] or [`Init::Normal`].
    Drawn(Init),
    /// A factor: 0 with this probability p, else 1/(1-p); always 1 outside of training.
    Dropout(ConstExpr),
}

impl Role {
    /// Whether a gradient with respect to the input exists.
    pub fn is_differentiable(&self) -> bool {
        matches!(self, Role::Signal)
    }
}

/// A state.
#[derive(Clone, Debug, PartialEq)]
pub struct State {
    /// Its name.
    pub name: String,
    /// Its documentation.
    pub doc: Vec<String>,
    /// Its role.
    pub kind: StateKind,
    /// Its axes.
    pub shape: Shape,
    /// Its value at the start of an episode.
    pub init: Init,
    /// When it returns to that value.
    pub reset: ResetPolicy,
    /// How it is kept, if it is a matrix.
    pub prefer: Prefer,
    /// Where it is declared.
    pub span: Span,
}

/// Which form of a plastic matrix is wanted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Prefer {
    /// What the spec says, else the one that takes less time, by estimate.
    #[default]
    Auto,
    /// A matrix.
    Dense,
    /// The events that made it, wherever that is legal.
    Events,
}

/// When a state returns to its initial value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ResetPolicy {
    /// At the start of every `k`th episode.
    EveryEpisodes(u32),
    /// Only at the start of a run or sequence.
    Persist,
}

/// An output.
#[derive(Clone, Debug, PartialEq)]
pub struct Output {
    /// Its name.
    pub name: String,
    /// Its documentation.
    pub doc: Vec<String>,
    /// Its axes: a scalar or a vector.
    pub shape: Shape,
    /// Where it is declared.
    pub span: Span,
}

/// A number that may depend on axis sizes: `0.1`, `-5/D`, `1/N`.
#[derive(Clone, Debug, PartialEq)]
pub enum ConstExpr {
    /// A number.
    Number(f64),
    /// The size of an axis.
    Size(Axis),
    /// `-x`
    Neg(Box<ConstExpr>),
    /// `√x`
    Sqrt(Box<ConstExpr>),
    /// Two operands; only `+ - * /` and `^`.
    Binary(grammar::ast::BinaryOp, Box<ConstExpr>, Box<ConstExpr>),
}

impl ConstExpr {
    /// As the spec would write it.
    pub fn text(&self, axes: &Axes) -> String {
        use grammar::ast::BinaryOp;
        match self {
            ConstExpr::Number(x) => format!("{x}"),
            ConstExpr::Size(axis) => axes.text(*axis),
            ConstExpr::Neg(x) => format!("-{}", x.text(axes)),
            ConstExpr::Sqrt(x) => format!("sqrt({})", x.text(axes)),
            ConstExpr::Binary(op, a, b) => {
                let sign = match op {
                    BinaryOp::Add => "+",
                    BinaryOp::Sub => "-",
                    BinaryOp::Mul => "*",
                    BinaryOp::Div => "/",
                    _ => "^",
                };
                let operand = |x: &ConstExpr| match x {
                    ConstExpr::Binary(..) | ConstExpr::Neg(_) => format!("({})", x.text(axes)),
                    x => x.text(axes),
                };
                format!("{} {sign} {}", operand(a), operand(b))
            }
        }
    }

    /// Its value, once axes have sizes.
    pub fn eval(&self, sizes: &Sizes) -> f64 {
        use grammar::ast::BinaryOp;
        match self {
            ConstExpr::Number(x) => *x,
            ConstExpr::Size(axis) => sizes.of(*axis) as f64,
            ConstExpr::Neg(x) => -x.eval(sizes),
            ConstExpr::Sqrt(x) => x.eval(sizes).sqrt(),
            ConstExpr::Binary(op, a, b) => {
                let (a, b) = (a.eval(sizes), b.eval(sizes));
                match op {
                    BinaryOp::Add => a + b,
                    BinaryOp::Sub => a - b,
                    BinaryOp::Mul => a * b,
                    BinaryOp::Div => a / b,
                    BinaryOp::Pow => a.powf(b),
                    _ => f64::NAN,
                }
            }
        }
    }
}

impl Model {
    /// The state with this name.
    pub fn state(&self, name: &str) -> Option<crate::ir::StateId> {
        self.states.iter().position(|s| s.name == name).map(|k| crate::ir::StateId(k as u32))
    }

    /// The input with this name.
    pub fn input(&self, name: &str) -> Option<crate::ir::InputId> {
        self.inputs.iter().position(|s| s.name == name).map(|k| crate::ir::InputId(k as u32))
    }

    /// The output with this name.
    pub fn output(&self, name: &str) -> Option<crate::ir::OutputId> {
        self.outputs.iter().position(|s| s.name == name).map(|k| crate::ir::OutputId(k as u32))
    }

    /// The parameter with this name.
    pub fn param(&self, name: &str) -> Option<crate::ir::ParamId> {
        self.params.iter().position(|s| s.name == name).map(|k| crate::ir::ParamId(k as u32))
    }
}
