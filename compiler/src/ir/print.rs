//! The step IR as text.
//!
//! ```text
//! step of retroactive
//!   %0: [N,I]    = load param Wx           ; Wx @ 1201..1210
//!   %1: b[I]     = load input u            ; u @ 1220..1221
//!   %2: b[N]     = contract %0, %1         ; @ 1201..1214
//!   …
//! results
//!   state y = %12
//!   output policy = %30
//! ```
//!
//! A line is a value, its type, its operation, the name it has in the spec and the bytes of the
//! spec it came from. A type is `[…]` with named axes, post before pre, and begins with `b` if the
//! value exists once per batch row. [`super::parse`] reads it back exactly.

use super::{Axes, Binary, Function, Instruction, Op, Shape, Sink, Source, Type, Unary, Value};
use crate::model::Model;

/// A function as text. `title` says what it is: `step`, `adjoint`, …
pub fn print(f: &Function, model: &Model, title: &str) -> String {
    let mut text = format!("{title} of {}\n", model.name);
    let lines: Vec<[String; 4]> = f.values().map(|(v, i)| columns(v, i, model)).collect();
    let width = |k: usize| lines.iter().map(|l| l[k].chars().count()).max().unwrap_or(0);
    let (value, ty, op) = (width(0), width(1), width(2).min(60));
    for [v, t, o, rest] in &lines {
        text.push_str(&format!("  {v:<value$} {t:<ty$} = {o:<op$}  ; {rest}\n"));
    }
    text.push_str("results\n");
    for (sink, v) in &f.results {
        text.push_str(&format!("  {} = %{}\n", sink_text(sink, model), v.0));
    }
    text
}

fn columns(v: Value, i: &Instruction, model: &Model) -> [String; 4] {
    let name = i.name.as_ref().map_or(String::new(), |n| format!("{n} "));
    [
        format!("%{}:", v.0),
        type_text(i.ty, &model.axes),
        op_text(&i.op, model),
        format!("{name}@ {}..{}", i.span.start, i.span.end),
    ]
}

/// A type: `b[N,I]`, `[N]`, `b[]`.
pub fn type_text(ty: Type, axes: &Axes) -> String {
    let batch = if ty.batched { "b" } else { "" };
    format!("{batch}{}", shape_text(ty.shape, axes))
}

/// A shape: `[N,I]`, `[N]`, `[]`.
pub fn shape_text(shape: Shape, axes: &Axes) -> String {
    match shape {
        Shape::Scalar => "[]".to_owned(),
        Shape::Vector(a) => format!("[{}]", axes.text(a)),
        Shape::Matrix { post, pre } => format!("[{},{}]", axes.text(post), axes.text(pre)),
    }
}

/// An operation; its result's axes stand in the type alone.
fn op_text(op: &Op, model: &Model) -> String {
    let axes = &model.axes;
    match op {
        Op::Const(c) => format!("const {c:?}"),
        Op::Size(a) => format!("size {}", axes.text(*a)),
        Op::Load(source) => format!("load {}", source_text(source, model)),
        Op::Unary(u, x) => format!("{} %{}", unary_word(*u), x.0),
        Op::Binary(o, x, y) => format!("{} %{}, %{}", binary_word(*o), x.0, y.0),
        Op::Select(c, x, y) => format!("select %{}, %{}, %{}", c.0, x.0, y.0),
        Op::Clip { x, low, high } => format!("clip %{}, %{}, %{}", x.0, low.0, high.0),
        Op::Splat(x, _) => format!("splat %{}", x.0),
        Op::Rows(x, _) => format!("rows %{}", x.0),
        Op::Cols(x, _) => format!("cols %{}", x.0),
        Op::SumAll(x) => format!("sum_all %{}", x.0),
        Op::MaxAll(x) => format!("max_all %{}", x.0),
        Op::SumPre(x) => format!("sum_pre %{}", x.0),
        Op::SumPost(x) => format!("sum_post %{}", x.0),
        Op::Contract(m, x) => format!("contract %{}, %{}", m.0, x.0),
        Op::ContractT(m, x) => format!("contract_t %{}, %{}", m.0, x.0),
        Op::Outer(a, b) => format!("outer %{}, %{}", a.0, b.0),
        Op::Concat(parts, _) => {
            let parts: Vec<String> = parts.iter().map(|p| format!("%{}", p.0)).collect();
            format!("concat {}", parts.join(", "))
        }
        Op::Slice { x, start, .. } => format!("slice %{} from {}", x.0, axes.text(*start)),
        Op::Pad { x, start, .. } => format!("pad %{} at {}", x.0, axes.text(*start)),
        Op::Element(x, k) => format!("element %{} at {k}", x.0),
        Op::OneHot { x, index, .. } => format!("one_hot %{} at {index}", x.0),
        Op::StopGrad(x) => format!("stopgrad %{}", x.0),
    }
}

/// What is loaded.
fn source_text(source: &Source, model: &Model) -> String {
    let state = |s: &super::StateId| &model.states[s.index()].name;
    match source {
        Source::Param(p) => format!("param {}", model.params[p.index()].name),
        Source::Input(i) => format!("input {}", model.inputs[i.index()].name),
        Source::State(s) => format!("state {}", state(s)),
        Source::Next(s) => format!("next {}", state(s)),
        Source::Primal(v) => format!("primal %{}", v.0),
        Source::NextBar(s) => format!("bar.next {}", state(s)),
        Source::OutputBar(o) => format!("bar.output {}", model.outputs[o.index()].name),
        Source::PenaltyBar => "bar.penalty".to_owned(),
        Source::BoundaryBar(v) => format!("bar.primal %{}", v.0),
        Source::ParamDot(p) => format!("dot.param {}", model.params[p.index()].name),
        Source::InputDot(i) => format!("dot.input {}", model.inputs[i.index()].name),
        Source::StateDot(s) => format!("dot.state {}", state(s)),
        Source::RowBar(s) => format!("bar.row {}", state(s)),
    }
}

fn sink_text(sink: &Sink, model: &Model) -> String {
    let state = |s: &super::StateId| &model.states[s.index()].name;
    let output = |o: &super::OutputId| &model.outputs[o.index()].name;
    match sink {
        Sink::State(s) => format!("state {}", state(s)),
        Sink::Output(o) => format!("output {}", output(o)),
        Sink::Penalty => "penalty".to_owned(),
        Sink::StateBar(s) => format!("bar.state {}", state(s)),
        Sink::InputBar(i) => format!("bar.input {}", model.inputs[i.index()].name),
        Sink::BoundaryBar(v) => format!("bar.primal %{}", v.0),
        Sink::ParamBar(p) => format!("bar.param {}", model.params[p.index()].name),
        Sink::StateDot(s) => format!("dot.state {}", state(s)),
        Sink::OutputDot(o) => format!("dot.output {}", output(o)),
        Sink::PenaltyDot => "dot.penalty".to_owned(),
        Sink::Row(s) => format!("row {}", state(s)),
    }
}

/// The words of the elementwise functions, for printer and parser.
pub(super) const UNARY: [(&str, Unary); 10] = [
    ("neg", Unary::Neg),
    ("tanh", Unary::Tanh),
    ("sigmoid", Unary::Sigmoid),
    ("exp", Unary::Exp),
    ("log", Unary::Log),
    ("sqrt", Unary::Sqrt),
    ("softplus", Unary::Softplus),
    ("relu", Unary::Relu),
    ("abs", Unary::Abs),
    ("sign", Unary::Sign),
];

/// The words of the functions of two operands.
pub(super) const BINARY: [(&str, Binary); 9] = [
    ("add", Binary::Add),
    ("sub", Binary::Sub),
    ("mul", Binary::Mul),
    ("div", Binary::Div),
    ("min", Binary::Min),
    ("max", Binary::Max),
    ("less", Binary::Less),
    ("less_equal", Binary::LessEqual),
    ("equal", Binary::Equal),
];

fn unary_word(u: Unary) -> &'static str {
    UNARY.iter().find(|(_, x)| *x == u).map_or("?", |(word, _)| word)
}

fn binary_word(o: Binary) -> &'static str {
    BINARY.iter().find(|(_, x)| *x == o).map_or("?", |(word, _)| word)
}
