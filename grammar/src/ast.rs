//! The syntax tree, shaped as the grammar. No meaning is attached: names are text, axes are
//! expressions, and a wrong combination of attributes is representable, so that the checker can
//! say what is wrong with it.

use crate::span::Span;

/// A name and its place.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Ident {
    /// The text of the name.
    pub name: String,
    /// Its place.
    pub span: Span,
}

/// One file: any number of specs and rules, in any order.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct File {
    /// The items, in text order.
    pub items: Vec<Item>,
}

/// A top-level item.
#[derive(Clone, Debug, PartialEq)]
pub enum Item {
    /// `spec name { … }`
    Spec(Spec),
    /// `rule name(x[i], y[j], w) = expr`
    Rule(Rule),
}

/// `spec name { statements }`
#[derive(Clone, Debug, PartialEq)]
pub struct Spec {
    /// `///` lines above the item, without the slashes.
    pub doc: Vec<String>,
    /// The model's name.
    pub name: Ident,
    /// Statements in text order; their order carries no meaning.
    pub statements: Vec<Statement>,
    /// The whole item.
    pub span: Span,
}

/// `rule name(parameters) = body`: a macro, expanded where it is called.
#[derive(Clone, Debug, PartialEq)]
pub struct Rule {
    /// `///` lines above the item.
    pub doc: Vec<String>,
    /// The rule's name.
    pub name: Ident,
    /// Formal parameters.
    pub parameters: Vec<RuleParameter>,
    /// The expression it stands for.
    pub body: Expr,
    /// The whole item.
    pub span: Span,
}

/// A formal parameter: `w` (scalar or matrix), `y[j]` (value per post neuron), `x[i]` (per pre).
#[derive(Clone, Debug, PartialEq)]
pub struct RuleParameter {
    /// Its name.
    pub name: Ident,
    /// Its index, if it is written with one.
    pub index: Option<Index>,
}

/// A statement of a spec and its documentation.
#[derive(Clone, Debug, PartialEq)]
pub struct Statement {
    /// `///` lines above the statement.
    pub doc: Vec<String>,
    /// What it says.
    pub kind: StatementKind,
    /// The whole statement.
    pub span: Span,
}

/// The kinds of statement.
#[derive(Clone, Debug, PartialEq)]
pub enum StatementKind {
    /// `axis I = ?, N = 200, M = 2*N`
    Axis(Vec<AxisDeclaration>),
    /// `const dt = 0.5`
    Const(Vec<(Ident, Expr)>),
    /// `in u[I]`, `in mod r`, `in target t[O]`, `in mask f`, `in reset e`
    Input {
        /// The word between `in` and the first name, if there is one (any word; checked later).
        role: Option<Ident>,
        /// The declared inputs.
        variables: Vec<Variable>,
    },
    /// `noise xi[N] ~ normal(0, 1)`, `noise d[N] ~ dropout(0.5) locked`
    Noise {
        /// The declared noise inputs.
        variables: Vec<Variable>,
        /// Where they are drawn from.
        initial: Option<Initial>,
        /// Whether they are drawn once per episode: the word `locked`.
        locked: bool,
    },
    /// `learn W[N,N], b[N] in (0,1) ~ linear gradscale 1/N`, `fixed …`
    ///
    /// In a list separated by commas each variable may carry its own constraint, initialiser and
    /// attributes; a variable without an initialiser takes the next one to its right in the
    /// statement (`learn W[N,N], alpha[N,N] ~ uniform(0, 0.01)`).
    Parameter {
        /// Whether it is trained.
        kind: ParameterKind,
        /// The declared parameters.
        declarations: Vec<ParameterDeclaration>,
    },
    /// `state y[N] = 0`, `plastic H[N,N] = 0 persist`, `trace E[N,N]`
    State {
        /// Its role.
        kind: StateKind,
        /// The declared states.
        declarations: Vec<StateDeclaration>,
    },
    /// `y' = …`, `H'[j,i] = …`, `d[N] = …`, `z = …`, `(f, i, o) = split(…, 3)`, and
    /// `modulator m = …`, which is an equation with a role.
    Equation {
        /// Whether it is written with the word `modulator`.
        modulator: bool,
        /// What is defined: one target, or several in parentheses.
        targets: Vec<Target>,
        /// Whether the targets stand in parentheses.
        tuple: bool,
        /// The defining expression.
        value: Expr,
    },
    /// `out y'`, `out policy[A] = Wo @ y'`, `out a, b = x + y`
    Output(Vec<OutputDeclaration>),
    /// `penalty 1e-4 * mean(P'*P')`
    Penalty(Expr),
    /// `hold S, y when e`
    Hold {
        /// States that keep their value.
        states: Vec<Ident>,
        /// While this is not zero.
        condition: Expr,
    },
    /// `layer one = cell(u, N = 200)`
    Layer {
        /// The layer's name.
        name: Ident,
        /// The spec that it is.
        spec: Ident,
        /// What it gets.
        arguments: Vec<LayerArgument>,
    },
    /// A statement that could not be parsed. The parser has reported it; it silences errors that
    /// would follow from it.
    Error,
}

/// `u`, or `N = 200`, in a `layer` statement.
#[derive(Clone, Debug, PartialEq)]
pub struct LayerArgument {
    /// The input or axis it is for; `None` if it is for the next input.
    pub name: Option<Ident>,
    /// What the input or axis is.
    pub value: Expr,
}

/// `N = 200`, `I = ?`, `M = 2*N`
#[derive(Clone, Debug, PartialEq)]
pub struct AxisDeclaration {
    /// The axis.
    pub name: Ident,
    /// Its size; `None` for `?`.
    pub size: Option<Expr>,
}

/// `learn` or `fixed`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ParameterKind {
    /// Trained by gradient descent.
    Learn,
    /// Set at the start and never trained.
    Fixed,
}

/// The role of a state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StateKind {
    /// Ordinary recurrent state.
    State,
    /// Fast weights.
    Plastic,
    /// Eligibility trace.
    Trace,
}

/// A declared name with its axes: `W[N, I+N]`, `alpha[j]`, `b`.
#[derive(Clone, Debug, PartialEq)]
pub struct Variable {
    /// The name.
    pub name: Ident,
    /// One expression per axis; `[j]` and `[i]` appear as names.
    pub axes: Vec<Expr>,
    /// Name and brackets.
    pub span: Span,
}

/// One parameter of a `learn` or `fixed` statement.
#[derive(Clone, Debug, PartialEq)]
pub struct ParameterDeclaration {
    /// Name and axes.
    pub variable: Variable,
    /// `in (0,1)`, `> 0`, `>= 0`, `< 0`, `<= 0`
    pub constraint: Option<Constraint>,
    /// `= 0.1`, `~ uniform(0, 0.01)`
    pub initial: Option<Initial>,
    /// `rank r`, `gradscale e`, `tied name`: the word and its operand.
    pub attributes: Vec<Attribute>,
    /// From the name to the last attribute.
    pub span: Span,
}

/// A word with an operand after a declaration.
#[derive(Clone, Debug, PartialEq)]
pub struct Attribute {
    /// The word (any word; checked later).
    pub word: Ident,
    /// Its operand, if it has one.
    pub operand: Option<Expr>,
}

/// A restriction of a parameter's range.
#[derive(Clone, Debug, PartialEq)]
pub enum Constraint {
    /// `in (lo, hi)`
    Interval {
        /// Lower bound.
        low: Expr,
        /// Upper bound.
        high: Expr,
        /// The constraint.
        span: Span,
    },
    /// `> 0` and kin
    Compare {
        /// The comparison.
        op: BinaryOp,
        /// The bound.
        bound: Expr,
        /// The constraint.
        span: Span,
    },
}

/// An initial value.
#[derive(Clone, Debug, PartialEq)]
pub enum Initial {
    /// `= expr`; `= learn` appears as [`Initial::Learn`].
    Value(Expr),
    /// `= learn`: the initial value of a state is itself a trained parameter. Optionally with
    /// a distribution: `= learn ~ normal(0, 0.1)`.
    Learn {
        /// The word.
        span: Span,
        /// Where the trained initial value starts.
        start: Option<Box<Initial>>,
    },
    /// `~ linear`, `~ uniform(a, b)`, `~ normal(mean, sd)`, `~ orthogonal`
    Distribution {
        /// The distribution's name (any word; checked later).
        name: Ident,
        /// Its arguments.
        arguments: Vec<Expr>,
    },
}

/// One state of a `state`, `plastic` or `trace` statement.
#[derive(Clone, Debug, PartialEq)]
pub struct StateDeclaration {
    /// Name and axes.
    pub variable: Variable,
    /// Initial value; zero if it is not written.
    pub initial: Option<Initial>,
    /// `per episode`, `every 3 episodes`, `persist`
    pub reset: Option<Reset>,
    /// Other words: `unbounded`, `dense`, `events`.
    pub attributes: Vec<Attribute>,
    /// From the name to the last word.
    pub span: Span,
}

/// When a state returns to its initial value.
#[derive(Clone, Debug, PartialEq)]
pub enum Reset {
    /// `per episode`, also the default.
    PerEpisode(Span),
    /// `every k episodes`
    Every {
        /// The number of episodes.
        episodes: Expr,
        /// The words.
        span: Span,
    },
    /// `persist`
    Persist(Span),
}

/// The left side of an equation: `y'`, `H'[j,i]`, `d[N]`, `n[j]`, `z`.
#[derive(Clone, Debug, PartialEq)]
pub struct Target {
    /// The name.
    pub name: Ident,
    /// Whether it carries a prime.
    pub primed: bool,
    /// What stands in brackets, if there are any.
    pub axes: Option<Vec<Expr>>,
    /// The whole target.
    pub span: Span,
}

/// `y'`, or `policy[A] = expr`.
#[derive(Clone, Debug, PartialEq)]
pub struct OutputDeclaration {
    /// The name of the output; the state's name for `out y'`.
    pub target: Target,
    /// Its value; `None` for the short form.
    pub value: Option<Expr>,
}

/// `[j]`, `[i]`, `[j,i]` or `[3]` after an operand.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Index {
    /// `[j]`: per post neuron.
    Post,
    /// `[i]`: per pre neuron.
    Pre,
    /// `[j,i]`: per synapse.
    Both,
    /// `[3]`: one element of a vector.
    Element(usize),
    /// Anything else in brackets: the text, for the error.
    Other(String),
}

/// An expression and its place.
#[derive(Clone, Debug, PartialEq)]
pub struct Expr {
    /// What it says.
    pub kind: ExprKind,
    /// Its place.
    pub span: Span,
}

/// The kinds of expression.
#[derive(Clone, Debug, PartialEq)]
pub enum ExprKind {
    /// `0.5`
    Number(f64),
    /// `y`, `y'`
    Name {
        /// The name.
        name: String,
        /// Whether it carries a prime.
        primed: bool,
    },
    /// `y'[j]`, `(v - H@k)[j]`, `b[0]`
    Index {
        /// The indexed expression.
        base: Box<Expr>,
        /// What stands in brackets.
        index: Index,
        /// The brackets.
        index_span: Span,
    },
    /// `W^T`; the operand is any matrix expression.
    Transpose(Box<Expr>),
    /// `-x`
    Negate(Box<Expr>),
    /// Two operands.
    Binary {
        /// The operator.
        op: BinaryOp,
        /// The operator's place.
        op_span: Span,
        /// Left operand.
        left: Box<Expr>,
        /// Right operand.
        right: Box<Expr>,
    },
    /// `tanh(x)`
    Call {
        /// The function or rule.
        function: Ident,
        /// The arguments.
        arguments: Vec<Expr>,
    },
    /// An operand that could not be parsed; reported by the parser.
    Error,
}

/// The binary operators. Precedence from loose to tight:
/// comparisons; `+ -`; `* /`; `@ .`; unary minus; `^`; postfix `' [ ] ^T`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum BinaryOp {
    /// `+`
    Add,
    /// `-`
    Sub,
    /// `*`
    Mul,
    /// `/`
    Div,
    /// `^`, with a constant exponent
    Pow,
    /// `@`: matrix times vector, contracting the pre axis
    Contract,
    /// `.`: dot product of two vectors
    Dot,
    /// `<`: one where it holds, zero elsewhere
    Less,
    /// `<=`
    LessEqual,
    /// `>`
    Greater,
    /// `>=`
    GreaterEqual,
    /// `==`
    Equal,
}
