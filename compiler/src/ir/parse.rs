//! Reads the printed step IR back: the inverse of [`super::print`].
//!
//! Names are those of a model, whose axes, parameters, inputs, states and outputs the text refers
//! to. What is read obeys the law of the IR ([`super::verify`]), and what it loads and gives has the
//! axes that the model declares.

use super::print::{BINARY, UNARY, shape_text};
use super::{
    Axis, Function, InputId, Instruction, Op, OutputId, ParamId, Shape, Sink, Source, StateId, Type, Value,
};
use crate::model::Model;
use crate::scan::{Line, ParseError, Read, lines};
use grammar::span::Span;

/// Reads a function; gives its title, too.
///
/// # Errors
/// [`ParseError`] with the line that cannot be read, or the breach of the law.
pub fn parse(text: &str, model: &Model) -> Result<(String, Function), ParseError> {
    let mut lines = lines(text);
    let empty = ParseError { line: 0, message: "the text is empty".to_owned() };
    let title = heading(lines.next().ok_or(empty)?, model)?;
    let mut reader = Reader { model, function: Function::default() };
    let mut in_results = false;
    for mut line in lines {
        match (in_results, line.is_heading()) {
            (false, true) => {
                line.expect("results")?;
                line.end()?;
                in_results = true;
            }
            (false, false) => reader.instruction(line)?,
            (true, _) => reader.result(line)?,
        }
    }
    if !in_results {
        return Err(ParseError { line: 0, message: "there is no line `results`".to_owned() });
    }
    super::verify(&reader.function).map_err(|message| ParseError { line: 0, message })?;
    Ok((title, reader.function))
}

/// `step of retroactive`
fn heading(mut line: Line<'_>, model: &Model) -> Read<String> {
    let title = line.word()?;
    line.expect("of ")?;
    let name = line.word()?;
    if name != model.name {
        return Err(line.error(format!("this is a function of `{name}`, not of `{}`", model.name)));
    }
    line.end()?;
    Ok(title.to_owned())
}

struct Reader<'m> {
    model: &'m Model,
    function: Function,
}

impl Reader<'_> {
    /// `%3: b[N] = tanh %2  ; y @ 10..20`
    fn instruction(&mut self, mut line: Line<'_>) -> Read<()> {
        let number = line.value()?;
        if number as usize != self.function.body.len() {
            return Err(line.error(format!("expected %{}, found %{number}", self.function.body.len())));
        }
        line.expect(":")?;
        let batched = line.take("b[");
        if !batched {
            line.expect("[")?;
        }
        let ty = Type { shape: self.shape(&mut line)?, batched };
        line.expect("=")?;
        let op = self.op(&mut line, ty)?;
        line.expect(";")?;
        let name = if line.rest().starts_with('@') { None } else { Some(line.word()?.to_owned()) };
        line.expect("@")?;
        let start = line.index()?;
        line.expect("..")?;
        let span = Span { start, end: line.index()? };
        line.end()?;
        self.function.body.push(Instruction { op, ty, span, name });
        Ok(())
    }

    /// Behind `[`: the axes, up to and with `]`.
    fn shape(&self, line: &mut Line<'_>) -> Read<Shape> {
        if line.take("]") {
            return Ok(Shape::Scalar);
        }
        let first = self.axis(line)?;
        let shape = match line.take(",") {
            true => Shape::Matrix { post: first, pre: self.axis(line)? },
            false => Shape::Vector(first),
        };
        line.expect("]")?;
        Ok(shape)
    }

    fn axis(&self, line: &mut Line<'_>) -> Read<Axis> {
        let axes = &self.model.axes;
        let text = line.run("an axis", |c| c.is_alphanumeric() || matches!(c, '_' | '+' | '-' | '*'))?;
        let found = (0..axes.len() as u32).map(Axis).find(|a| axes.text(*a) == text);
        found.ok_or_else(|| line.error(format!("the model has no axis `{text}`")))
    }

    fn op(&self, line: &mut Line<'_>, ty: Type) -> Read<Op> {
        let word = line.word()?;
        match word {
            "const" => return Ok(Op::Const(line.float()?)),
            "size" => return Ok(Op::Size(self.axis(line)?)),
            "load" => return self.load(line, ty),
            _ => {}
        }
        let operands: Vec<Value> = line.values()?.into_iter().map(Value).collect();
        if let Some(undefined) = operands.iter().find(|o| o.index() >= self.function.body.len()) {
            return Err(line.error(format!("%{} is not defined before", undefined.0)));
        }
        match self.applied(line, word, &operands, ty)? {
            Some(op) => Ok(op),
            None => Err(line.error(format!("there is no operation `{word}` of {} operands", operands.len()))),
        }
    }

    fn applied(&self, line: &mut Line<'_>, word: &str, operands: &[Value], ty: Type) -> Read<Option<Op>> {
        let unary = UNARY.iter().find(|(w, _)| *w == word).map(|(_, f)| *f);
        let binary = BINARY.iter().find(|(w, _)| *w == word).map(|(_, f)| *f);
        let vector = |line: &Line<'_>| match ty.shape {
            Shape::Vector(axis) => Ok(axis),
            _ => Err(line.error(format!("`{word}` gives a vector"))),
        };
        let matrix = |line: &Line<'_>| match ty.shape {
            Shape::Matrix { post, pre } => Ok((post, pre)),
            _ => Err(line.error(format!("`{word}` gives a matrix"))),
        };
        Ok(Some(match (word, operands) {
            (_, [x]) if unary.is_some() => return Ok(unary.map(|f| Op::Unary(f, *x))),
            (_, [x, y]) if binary.is_some() => return Ok(binary.map(|f| Op::Binary(f, *x, *y))),
            ("select", [c, x, y]) => Op::Select(*c, *x, *y),
            ("clip", [x, low, high]) => Op::Clip { x: *x, low: *low, high: *high },
            ("splat", [x]) => Op::Splat(*x, ty.shape),
            ("rows", [x]) => Op::Rows(*x, matrix(line)?.1),
            ("cols", [x]) => Op::Cols(*x, matrix(line)?.0),
            ("sum_all", [x]) => Op::SumAll(*x),
            ("max_all", [x]) => Op::MaxAll(*x),
            ("sum_pre", [x]) => Op::SumPre(*x),
            ("sum_post", [x]) => Op::SumPost(*x),
            ("contract", [m, x]) => Op::Contract(*m, *x),
            ("contract_t", [m, x]) => Op::ContractT(*m, *x),
            ("outer", [a, b]) => Op::Outer(*a, *b),
            ("stopgrad", [x]) => Op::StopGrad(*x),
            ("concat", parts) => Op::Concat(parts.to_vec(), vector(line)?),
            ("slice", [x]) => {
                line.expect("from ")?;
                Op::Slice { x: *x, start: self.axis(line)?, axis: vector(line)? }
            }
            ("pad", [x]) => {
                line.expect("at ")?;
                Op::Pad { x: *x, start: self.axis(line)?, axis: vector(line)? }
            }
            ("element", [x]) => {
                line.expect("at ")?;
                Op::Element(*x, line.count()?)
            }
            ("one_hot", [x]) => {
                line.expect("at ")?;
                Op::OneHot { x: *x, index: line.count()?, axis: vector(line)? }
            }
            _ => return Ok(None),
        }))
    }

    fn load(&self, line: &mut Line<'_>, ty: Type) -> Read<Op> {
        let source = match line.word()? {
            "param" => Source::Param(self.param(line)?),
            "input" => Source::Input(self.input(line)?),
            "state" => Source::State(self.state(line)?),
            "next" => Source::Next(self.state(line)?),
            "primal" => Source::Primal(self.primal(line)?),
            "bar.next" => Source::NextBar(self.state(line)?),
            "bar.output" => Source::OutputBar(self.output(line)?),
            "bar.penalty" => Source::PenaltyBar,
            "bar.primal" => Source::BoundaryBar(self.primal(line)?),
            "dot.param" => Source::ParamDot(self.param(line)?),
            "dot.input" => Source::InputDot(self.input(line)?),
            "dot.state" => Source::StateDot(self.state(line)?),
            "bar.row" => Source::RowBar(self.state(line)?),
            other => return Err(line.error(format!("nothing is loaded with `{other}`"))),
        };
        self.must_have(line, ty.shape, self.shape_of_source(source))?;
        Ok(Op::Load(source))
    }

    fn shape_of_source(&self, source: Source) -> Shape {
        let model = self.model;
        match source {
            Source::Param(p) | Source::ParamDot(p) => model.params[p.index()].shape,
            Source::Input(i) | Source::InputDot(i) => model.inputs[i.index()].shape,
            Source::State(s) | Source::Next(s) | Source::NextBar(s) | Source::StateDot(s) => {
                model.states[s.index()].shape
            }
            Source::OutputBar(o) => model.outputs[o.index()].shape,
            Source::Primal(v) | Source::BoundaryBar(v) => model.step.ty(v).shape,
            Source::PenaltyBar => Shape::Scalar,
            Source::RowBar(s) => self.row_shape(s),
        }
    }

    /// The vectors that a log collects.
    fn row_shape(&self, s: super::StateId) -> Shape {
        match self.model.states[s.index()].shape {
            Shape::Matrix { pre, .. } => Shape::Vector(pre),
            shape => shape,
        }
    }

    fn must_have(&self, line: &Line<'_>, found: Shape, declared: Shape) -> Read<()> {
        if found == declared {
            return Ok(());
        }
        let text = |shape| shape_text(shape, &self.model.axes);
        Err(line.error(format!("the model declares {} here, found {}", text(declared), text(found))))
    }

    /// `state y = %12`
    fn result(&mut self, mut line: Line<'_>) -> Read<()> {
        let model = self.model;
        let (sink, shape) = match line.word()? {
            "state" => self.of_state(&mut line, Sink::State)?,
            "bar.state" => self.of_state(&mut line, Sink::StateBar)?,
            "dot.state" => self.of_state(&mut line, Sink::StateDot)?,
            "output" => self.of_output(&mut line, Sink::Output)?,
            "dot.output" => self.of_output(&mut line, Sink::OutputDot)?,
            "penalty" => (Sink::Penalty, Shape::Scalar),
            "row" => {
                let s = self.state(&mut line)?;
                (Sink::Row(s), self.row_shape(s))
            }
            "dot.penalty" => (Sink::PenaltyDot, Shape::Scalar),
            "bar.input" => {
                let i = self.input(&mut line)?;
                (Sink::InputBar(i), model.inputs[i.index()].shape)
            }
            "bar.param" => {
                let p = self.param(&mut line)?;
                (Sink::ParamBar(p), model.params[p.index()].shape)
            }
            "bar.primal" => {
                let v = self.primal(&mut line)?;
                (Sink::BoundaryBar(v), model.step.ty(v).shape)
            }
            other => return Err(line.error(format!("there is no result `{other}`"))),
        };
        line.expect("=")?;
        let v = Value(line.value()?);
        line.end()?;
        if v.index() >= self.function.body.len() {
            return Err(line.error(format!("%{} does not exist", v.0)));
        }
        self.must_have(&line, self.function.ty(v).shape, shape)?;
        self.function.results.push((sink, v));
        Ok(())
    }

    fn of_state(&self, line: &mut Line<'_>, sink: fn(StateId) -> Sink) -> Read<(Sink, Shape)> {
        let s = self.state(line)?;
        Ok((sink(s), self.model.states[s.index()].shape))
    }

    fn of_output(&self, line: &mut Line<'_>, sink: fn(OutputId) -> Sink) -> Read<(Sink, Shape)> {
        let o = self.output(line)?;
        Ok((sink(o), self.model.outputs[o.index()].shape))
    }

    fn param(&self, line: &mut Line<'_>) -> Read<ParamId> {
        let name = line.word()?;
        self.model.param(name).ok_or_else(|| line.error(format!("the model has no parameter `{name}`")))
    }

    fn input(&self, line: &mut Line<'_>) -> Read<InputId> {
        let name = line.word()?;
        self.model.input(name).ok_or_else(|| line.error(format!("the model has no input `{name}`")))
    }

    fn state(&self, line: &mut Line<'_>) -> Read<StateId> {
        let name = line.word()?;
        self.model.state(name).ok_or_else(|| line.error(format!("the model has no state `{name}`")))
    }

    fn output(&self, line: &mut Line<'_>) -> Read<OutputId> {
        let name = line.word()?;
        self.model.output(name).ok_or_else(|| line.error(format!("the model has no output `{name}`")))
    }

    fn primal(&self, line: &mut Line<'_>) -> Read<Value> {
        let v = Value(line.value()?);
        if v.index() < self.model.step.body.len() {
            Ok(v)
        } else {
            Err(line.error(format!("the step has no value %{}", v.0)))
        }
    }
}
