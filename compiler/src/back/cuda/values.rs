//! The values of a nest's body as expressions of C.
//!
//! A value is a variable if it is used several times, if it need not be computed in the innermost loop, if
//! its expression would get long, or if it is read from a place to which the nest writes: what is read is
//! what was there before. Every other value stands where it is used. Operations are those of the body, in
//! their order: neither sums nor products are regrouped, and a multiply-add is fused exactly where the body
//! says so.

use super::super::level::{Level, levels};
use super::names::{Names, different};
use super::nest::Kernel;
use crate::loops::body::{BodyOp, Id};
use crate::loops::{Access, Base, Effect, Extent, Nest, Place, padded};
use std::collections::BTreeSet;

/// Expressions longer than this become variables.
const LONGEST: usize = 64;

/// Words that nests use.
const LOCAL: [&str; 22] = [
    "slab",
    "column",
    "stretch",
    "begin",
    "end",
    "s",
    "block",
    "i",
    "j",
    "r",
    "u",
    "top",
    "first",
    "is_row",
    "shared",
    "threadIdx",
    "thread",
    "this_thread",
    "lane_row",
    "own_column",
    "row_group",
    "is_column",
];

/// How tightly an expression holds together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Tie {
    Choice,
    And,
    Equal,
    Less,
    Sum,
    Product,
    Sign,
    Atom,
}

/// An expression.
#[derive(Clone, Debug)]
struct Expr {
    text: String,
    tie: Tie,
}

impl Expr {
    fn atom(text: impl Into<String>) -> Expr {
        Expr { text: text.into(), tie: Tie::Atom }
    }

    /// The text as an operand that must hold together at least so tightly.
    fn within(&self, tie: Tie) -> String {
        if self.tie >= tie { self.text.clone() } else { format!("({})", self.text) }
    }
}

/// The loops of a nest, from the outermost on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Loop {
    /// Outside of all.
    Nest,
    /// Over the post axis, or over a vector.
    Column,
    /// Over the pre axis.
    Point,
}

/// A variable.
#[derive(Clone, Debug)]
pub(super) struct Variable {
    /// Its definition.
    pub(super) text: String,
    /// Its type, its name, and what it becomes.
    pub(super) parts: (&'static str, String, String),
    /// The loop it is computed in.
    pub(super) at: Loop,
    /// The first effect that needs it.
    pub(super) effect: usize,
    /// Whether it is read from memory.
    pub(super) is_load: bool,
    /// Whether it differs from row to row of the batch.
    pub(super) is_batched: bool,
}

/// The values of a body.
pub(super) struct Values {
    expressions: Vec<Expr>,
    places: Vec<Loop>,
    /// In order.
    pub(super) variables: Vec<Variable>,
    /// Words that are used in the nest.
    used: BTreeSet<String>,
}

impl Values {
    /// Decides for all values of a nest.
    pub(super) fn new(nest: &Nest, kernel: &Kernel<'_>) -> Values {
        let (names, backward) = (kernel.names, kernel.backward);
        let places = loops(nest);
        let uses = Uses::of(nest, &places);
        let mut values =
            Values { expressions: vec![], places, variables: vec![], used: LOCAL.map(str::to_owned).into() };
        values.used.extend(kernel.homes.into_iter().flat_map(|h| h.words().map(str::to_owned)));
        let batched = batched(nest);
        for (k, op) in nest.body.ops.iter().enumerate() {
            let expression = values.expression(*op, nest, kernel);
            let is_constant = matches!(op, BodyOp::Const(_));
            let is_load = matches!(op, BodyOp::Load(_));
            let is_written = matches!(op, BodyOp::Load(a) if is_written(*a, nest));
            let is_read_first = is_load && kernel.bundle.points.is_some() && values.places[k] == Loop::Point;
            let is_variable = uses.count[k] > 1
                || is_read_first
                || uses.innermost[k] > values.places[k]
                || expression.text.replace("[u]", "").len() > LONGEST
                || is_written;
            if uses.count[k] == 0 || is_constant || !is_variable {
                values.expressions.push(expression);
                continue;
            }
            let word = different(&word(Id(k as u32), nest, names, backward), &mut values.used);
            let kind = if op.is_mask() { "bool" } else { "float" };
            let index = match (kernel.bundle.points, values.places[k]) {
                (None, _) => String::new(),
                (Some(_), Loop::Point) if is_load => kernel.bundle.of_point(batched[k]),
                (Some(_), Loop::Point) => String::new(),
                (Some(_), Loop::Nest | Loop::Column) => kernel.bundle.of_row(batched[k]).to_owned(),
            };
            values.expressions.push(Expr::atom(format!("{word}{index}")));
            values.variables.push(Variable {
                text: format!("const {kind} {word} = {};", expression.text),
                parts: (kind, word, expression.text),
                at: values.places[k],
                effect: uses.first[k],
                is_load,
                is_batched: batched[k],
            });
        }
        values
    }

    /// A value, to be used where a whole expression stands.
    pub(super) fn text(&self, id: Id) -> &str {
        &self.expressions[id.index()].text
    }

    /// A value, to be added to something.
    pub(super) fn addend(&self, id: Id) -> String {
        self.expressions[id.index()].within(Tie::Product)
    }

    /// A value, to be multiplied with something before it.
    pub(super) fn factor(&self, id: Id) -> String {
        self.expressions[id.index()].within(Tie::Sign)
    }

    /// The loop that a value is computed in.
    pub(super) fn place(&self, id: Id) -> Loop {
        self.places[id.index()]
    }

    /// A new word for a variable of the nest.
    pub(super) fn fresh(&mut self, word: &str) -> String {
        different(word, &mut self.used)
    }

    fn expression(&self, op: BodyOp, nest: &Nest, kernel: &Kernel<'_>) -> Expr {
        let operands: Vec<&Expr> = op.operands().iter().map(|o| &self.expressions[o.index()]).collect();
        let x = |k: usize, tie: Tie| operands[k].within(tie);
        let whole = |k: usize| operands[k].text.clone();
        let infix = |sign: &str, tie: Tie, right: Tie| Expr {
            text: format!("{} {sign} {}", x(0, tie), x(1, right)),
            tie,
        };
        let call = |f: &str| {
            let arguments: Vec<String> = (0..operands.len()).map(whole).collect();
            Expr::atom(format!("{f}({})", arguments.join(", ")))
        };
        let choice = |otherwise: String| Expr {
            text: format!("{} ? {} : {otherwise}", x(0, Tie::And), x(1, Tie::And)),
            tie: Tie::Choice,
        };
        match op {
            BodyOp::Const(c) => constant(c),
            BodyOp::Load(access) => Expr::atom(element(access, nest.extent, kernel)),
            BodyOp::Neg(_) => Expr { text: format!("-{}", x(0, Tie::Atom)), tie: Tie::Sign },
            BodyOp::Not(_) => Expr { text: format!("!{}", x(0, Tie::Atom)), tie: Tie::Sign },
            BodyOp::Abs(_) => call("fabsf"),
            BodyOp::Sqrt(_) => call("sqrtf"),
            BodyOp::Round(_) => call("rintf"),
            BodyOp::PowerOfTwo(_) => call("power_of_two"),
            BodyOp::Exponent(_) => call("exponent"),
            BodyOp::Mantissa(_) => call("mantissa"),
            BodyOp::Add(..) => infix("+", Tie::Sum, Tie::Product),
            BodyOp::Sub(..) => infix("-", Tie::Sum, Tie::Product),
            BodyOp::Mul(..) => infix("*", Tie::Product, Tie::Sign),
            BodyOp::Div(..) => infix("/", Tie::Product, Tie::Sign),
            BodyOp::Min(..) => call("lesser"),
            BodyOp::Max(..) => call("greater"),
            BodyOp::Fma(..) => call("fmaf"),
            BodyOp::FmaNeg(..) => {
                Expr::atom(format!("fmaf(-{}, {}, {})", x(0, Tie::Atom), whole(1), whole(2)))
            }
            BodyOp::Less(..) => infix("<", Tie::Less, Tie::Sum),
            BodyOp::LessEqual(..) => infix("<=", Tie::Less, Tie::Sum),
            BodyOp::Equal(..) => infix("==", Tie::Equal, Tie::Less),
            BodyOp::And(..) => infix("&&", Tie::And, Tie::Equal),
            BodyOp::Select(..) => choice(x(2, Tie::And)),
            BodyOp::Keep(..) => choice("0.0f".to_owned()),
            BodyOp::Number(_) => Expr { text: format!("{} ? 1.0f : 0.0f", x(0, Tie::And)), tie: Tie::Choice },
        }
    }
}

/// Whether a value differs from row to row of the batch.
fn batched(nest: &Nest) -> Vec<bool> {
    let mut found: Vec<bool> = vec![];
    for op in &nest.body.ops {
        found.push(match op {
            BodyOp::Load(Access::Scalar(p)) => !matches!(p.base, Base::Params | Base::Scratch),
            BodyOp::Load(a) => a.place().base != Base::Params,
            op => op.operands().iter().any(|o| found[o.index()]),
        });
    }
    found
}

/// The loop that every value of a body is computed in.
fn loops(nest: &Nest) -> Vec<Loop> {
    let place = |level: Level| match (nest.extent, level) {
        (Extent::Scalar, _) | (_, Level::Once) => Loop::Nest,
        (Extent::Vector(_), _) | (_, Level::Tile) => Loop::Column,
        (_, Level::Row | Level::Point) => Loop::Point,
    };
    levels(&nest.body).into_iter().map(place).collect()
}

/// How values are used.
struct Uses {
    count: Vec<usize>,
    /// The innermost loop with a use.
    innermost: Vec<Loop>,
    /// The first effect that needs the value.
    first: Vec<usize>,
}

impl Uses {
    fn of(nest: &Nest, places: &[Loop]) -> Uses {
        let n = nest.body.ops.len();
        let mut uses = Uses { count: vec![0; n], innermost: vec![Loop::Nest; n], first: vec![usize::MAX; n] };
        let inside = match nest.extent {
            Extent::Scalar => Loop::Nest,
            Extent::Vector(_) => Loop::Column,
            Extent::Matrix { .. } | Extent::Log { .. } => Loop::Point,
        };
        for (k, effect) in nest.effects.iter().enumerate() {
            effect.operands().into_iter().for_each(|v| uses.see(v, inside, k));
        }
        for k in (0..n).rev() {
            if uses.count[k] > 0 {
                let (place, first) = (places[k], uses.first[k]);
                nest.body.ops[k].operands().into_iter().for_each(|v| uses.see(v, place, first));
            }
        }
        uses
    }

    fn see(&mut self, v: Id, place: Loop, effect: usize) {
        let k = v.index();
        self.count[k] += 1;
        self.innermost[k] = self.innermost[k].max(place);
        self.first[k] = self.first[k].min(effect);
    }
}

/// Whether a nest stores to where an operand comes from.
fn is_written(access: Access, nest: &Nest) -> bool {
    let cells = |a: Access| a.place().offset..a.place().offset + len(a, nest.extent);
    let from = cells(access);
    nest.effects.iter().any(|e| match e {
        Effect::Store(to, _) | Effect::Add(to, ..) => {
            let written = cells(*to);
            to.place().base == access.place().base && from.start < written.end && written.start < from.end
        }
        Effect::SumPre(..) | Effect::SumPost(..) | Effect::SumAll(..) | Effect::MaxAll(..) => false,
    })
}

/// Elements of an operand.
fn len(access: Access, extent: Extent) -> usize {
    match (access, extent) {
        (Access::Scalar(_), _) | (_, Extent::Scalar) => 1,
        (_, Extent::Vector(n)) => n,
        (Access::Post(_), Extent::Matrix { post, .. } | Extent::Log { post, .. }) => post,
        (Access::Pre(_), Extent::Matrix { pre, .. } | Extent::Log { pre, .. }) => pre,
        (Access::Matrix(_), Extent::Matrix { post, pre } | Extent::Log { post, pre }) => padded(post) * pre,
    }
}

/// What a value is called: as the place it goes to, or comes from.
fn word(id: Id, nest: &Nest, names: &Names, backward: bool) -> String {
    let named = |p: Place| names.word(p.base, p.offset, backward);
    let stored = nest.effects.iter().find_map(|e| match e {
        Effect::Store(a, v) if *v == id => named(a.place()).map(|w| (w, matches!(a, Access::Matrix(_)))),
        _ => None,
    });
    let op = nest.body.at(id);
    match (op, stored) {
        (BodyOp::Load(a), _) => named(a.place()).unwrap_or_else(|| format!("t{}", id.0)),
        (_, Some((word, true))) => format!("{word}_new"),
        (_, Some((word, false))) => word,
        _ if op.is_mask() => format!("is{}", id.0),
        _ => format!("t{}", id.0),
    }
}

/// A number that reads back as the same bits.
fn constant(c: f32) -> Expr {
    if c.is_nan() {
        return Expr::atom("not_a_number()");
    }
    let size = if c.is_infinite() { "infinity()".to_owned() } else { format!("{:?}f", c.abs()) };
    match c.is_sign_negative() {
        true => Expr { text: format!("-{size}"), tie: Tie::Sign },
        false => Expr::atom(size),
    }
}

/// An operand in memory: `now[slot::y + j]`.
pub(super) fn element(access: Access, extent: Extent, kernel: &Kernel<'_>) -> String {
    let (names, backward) = (kernel.names, kernel.backward);
    let place = access.place();
    if let (Base::Scratch, Access::Scalar(_)) = (place.base, access) {
        // The host's number does not lie in scratch.
        return "tape.penalty_bar".to_owned();
    }
    if let Some(text) = kernel.homes.and_then(|homes| homes.element(access)) {
        return text;
    }
    let (pointer, _) = super::names::pointer(place.base, backward);
    let mut offset = names.offset(place.base, place.offset, backward);
    if kernel.bundle.rows > 1 && place.base != Base::Params {
        offset = format!("r * {} + {offset}", super::names::length(place.base, backward));
    }
    match access {
        Access::Scalar(_) => format!("{pointer}[{offset}]"),
        Access::Post(_) => format!("{pointer}[{offset} + j]"),
        Access::Pre(_) => format!("{pointer}[{offset} + i]"),
        Access::Matrix(_) => match extent {
            Extent::Matrix { post, .. } | Extent::Log { post, .. } => {
                format!("{pointer}[{offset} + i * {} + j]", padded(post))
            }
            Extent::Scalar | Extent::Vector(_) => unreachable!("a matrix in a nest without its axes"),
        },
    }
}
