//! The step as statements: which values get a variable, and in which order they are written.
//!
//! A value with a name in the spec is a variable of that name, under the words that the spec has for it. What has
//! no name is written where it is read; if it is read more than once it gets a name made of what it is. Views
//! (broadcasts, parts, stopped gradients) cost nothing and are always written where they are read.

use super::patterns::{Pattern, Patterns, Split};
use super::py::Py;
use super::values::{Dim, Kind, Spelled, Speller, whole};
use crate::ir::{Binary, Function, Op, OutputId, ParamId, Shape, Sink, Source, StateId, Type, Unary, Value};
use crate::model::{ConstExpr, Constraint, Model};
use std::collections::{BTreeMap, BTreeSet};

/// The statements of a step, without those that take the states and inputs apart.
pub(super) struct Step<'m> {
    model: &'m Model,
    speller: Speller<'m>,
    patterns: BTreeMap<Value, Pattern>,
    splits: Vec<Split>,
    /// How often each value is read, where it is written.
    reads: Vec<usize>,
    variables: BTreeMap<Value, Spelled>,
    /// Equations whose documentation has been written.
    said: BTreeSet<usize>,
    lines: Vec<String>,
}

/// What a step is in Python.
pub(super) struct Written {
    /// The statements, without indentation.
    pub(super) lines: Vec<String>,
    /// Helpers that they use.
    pub(super) preamble: BTreeSet<&'static str>,
    /// Whether they use the size of the batch.
    pub(super) needs_batch: bool,
    /// Whether each state's old value is read.
    pub(super) states_read: Vec<bool>,
}

/// Columns that a statement of a method is indented by.
const INDENT: usize = 8;

impl<'m> Step<'m> {
    /// A step that is not yet written.
    pub(super) fn new(model: &'m Model, speller: Speller<'m>) -> Self {
        let found = Patterns::new(model);
        let (patterns, splits) = (found.find(), found.splits());
        let mut step = Step {
            model,
            speller,
            patterns,
            splits,
            reads: vec![0; model.step.body.len()],
            variables: BTreeMap::new(),
            said: BTreeSet::new(),
            lines: vec![],
        };
        step.count_reads();
        step
    }

    fn function(&self) -> &'m Function {
        &self.model.step
    }

    /// What the writing of a value reads.
    fn operands(&self, v: Value) -> Vec<Value> {
        match self.patterns.get(&v) {
            Some(pattern) => pattern.reads(),
            None => self.function().at(v).op.operands(),
        }
    }

    fn count_reads(&mut self) {
        for (_, v) in &self.function().results {
            self.reads[v.index()] += 1;
        }
        for k in (0..self.reads.len()).rev() {
            let v = Value(k as u32);
            let times = match self.reads[k] {
                0 => 0,
                n if self.is_repeated(v) => n,
                _ => 1,
            };
            // A vector that is taken apart is read once.
            if self.splits.iter().any(|s| s.parts[1..].contains(&v)) {
                continue;
            }
            for operand in self.operands(v) {
                self.reads[operand.index()] += times;
            }
        }
    }

    /// Whether a value is written anew wherever it is read.
    fn is_repeated(&self, v: Value) -> bool {
        let instruction = self.function().at(v);
        match &instruction.op {
            Op::Const(_) | Op::Size(_) => true,
            Op::Load(Source::Param(p)) => !self.is_computed(*p),
            Op::Load(_) => true,
            Op::Splat(..) | Op::Rows(..) | Op::Cols(..) | Op::Element(..) | Op::StopGrad(_) => {
                instruction.name.is_none()
            }
            _ => instruction.name.is_none() && self.is_number(v),
        }
    }

    /// Whether a value is a number of Python.
    fn is_number(&self, v: Value) -> bool {
        match &self.function().at(v).op {
            Op::Const(_) | Op::Size(_) => true,
            Op::Unary(_, a) | Op::Splat(a, _) => self.is_number(*a),
            Op::Binary(_, a, b) => self.is_number(*a) && self.is_number(*b),
            _ => false,
        }
    }

    /// Whether the value of a parameter is more than a look at a tensor.
    fn is_computed(&self, p: ParamId) -> bool {
        let param = &self.model.params[p.index()];
        let is_factor = param.dims.len() != super::names::dims(param.shape).len();
        param.constraint != Constraint::Free || is_factor || !is_one(&param.gradscale)
    }

    /// Writes the step.
    pub(super) fn write(mut self) -> Written {
        for (v, instruction) in self.function().values() {
            if self.reads[v.index()] == 0 || self.variables.contains_key(&v) || self.is_repeated(v) {
                continue;
            }
            if let Some(split) = self.splits.iter().find(|s| s.parts.contains(&v)).cloned() {
                self.take_apart(&split);
            } else if instruction.name.is_some() || 1 < self.reads[v.index()] {
                if self.is_plain_load(v) && self.reads[v.index()] == 1 {
                    continue;
                }
                self.assign(v);
            }
        }
        self.give_back();
        let read = |k: usize| {
            let loads = |v: &Value| self.function().at(*v).op == Op::Load(Source::State(StateId(k as u32)));
            self.function().values().any(|(v, _)| loads(&v) && 0 < self.reads[v.index()])
        };
        Written {
            states_read: (0..self.model.states.len()).map(read).collect(),
            lines: self.lines,
            preamble: self.speller.preamble,
            needs_batch: self.speller.needs_batch,
        }
    }

    fn is_plain_load(&self, v: Value) -> bool {
        matches!(self.function().at(v).op, Op::Load(_))
    }

    /// `name = expression`, under what the spec says of it.
    fn assign(&mut self, v: Value) {
        let spelled = self.spell(v);
        let name = self.function().at(v).name.clone();
        let variable = match &name {
            Some(name) => {
                self.say(name);
                self.speller.words.step.take(name)
            }
            None => self.invented(v),
        };
        let text = spelled.py.laid_out(INDENT, variable.len() + 3);
        self.lines.push(format!("{variable} = {text}"));
        self.variables.insert(v, Spelled { py: Py::word(variable), ..spelled });
    }

    /// `f, k, o = x.chunk(3, dim=-1)`
    fn take_apart(&mut self, split: &Split) {
        let whole_of = |v: Value| self.function().ty(v);
        let ty = whole_of(split.whole);
        let part = whole(whole_of(split.parts[0]));
        let x = self.value(split.whole);
        let x = self.speller.expanded(x, ty);
        let names: Vec<String> =
            split.parts.iter().map(|v| self.function().at(*v).name.clone().unwrap_or_default()).collect();
        self.say(&names[0]);
        let variables: Vec<String> = names.iter().map(|n| self.speller.words.step.take(n)).collect();
        let value = x.of(format!(".chunk({}, dim=-1)", variables.len()));
        let head = variables.join(", ");
        self.lines.push(format!("{head} = {}", value.laid_out(INDENT, head.len() + 3)));
        for (v, variable) in split.parts.iter().zip(variables) {
            self.variables.insert(*v, Spelled::tensor(Py::word(variable), part.clone()));
        }
    }

    /// The documentation of an equation, or of an output, as comments.
    fn say(&mut self, name: &str) {
        let equations = &self.model.equations;
        let found = equations.iter().position(|e| e.names.iter().any(|n| n == name));
        let doc = match found {
            Some(k) if self.said.insert(k) => equations[k].doc.clone(),
            Some(_) => vec![],
            None => {
                self.model.outputs.iter().find(|o| o.name == name).map(|o| o.doc.clone()).unwrap_or_default()
            }
        };
        self.lines.extend(doc.iter().map(|line| format!("# {line}").trim_end().to_owned()));
    }

    /// A name for a value that has none in the spec.
    fn invented(&mut self, v: Value) -> String {
        let step = self.function();
        let word = |v: Value| -> Option<String> {
            let name = match self.variables.get(&v) {
                Some(spelled) => spelled.py.name().map(str::to_owned),
                None => step.at(v).name.clone(),
            };
            name.filter(|n| n.len() < 12).map(|n| n.trim_end_matches("_next").to_owned())
        };
        let pair = |a: Value, sign: &str, b: Value| Some(format!("{}{sign}{}", word(a)?, word(b)?));
        let made = match (&self.patterns.get(&v), &step.at(v).op) {
            (Some(Pattern::Dot(a, b)), _) => pair(*a, "_dot_", *b),
            (Some(Pattern::Square(a)), _) => word(*a).map(|a| format!("{a}_squared")),
            (None, Op::Contract(a, b)) => pair(*a, "_", *b),
            (None, Op::Binary(Binary::Add, a, b)) => pair(*a, "_plus_", *b),
            (None, Op::Binary(Binary::Sub, a, b)) => pair(*a, "_minus_", *b),
            (None, Op::Binary(Binary::Mul, a, b)) => pair(*a, "_times_", *b),
            (None, Op::Binary(Binary::Div, a, b)) => pair(*a, "_over_", *b),
            (None, Op::Unary(Unary::Tanh, a)) => word(*a).map(|a| format!("tanh_{a}")),
            _ => None,
        };
        let name = made.unwrap_or_else(|| {
            let later = step.body[v.index()..].iter().find_map(|i| i.name.clone());
            format!("{}_part", later.map_or("some".to_owned(), |n| n.trim_end_matches('\'').to_owned()))
        });
        self.speller.words.step.take(&name)
    }

    /// A value where it is read: its variable, or its expression.
    fn value(&mut self, v: Value) -> Spelled {
        match self.variables.get(&v) {
            Some(variable) => variable.clone(),
            None => self.spell(v),
        }
    }

    /// The expression of a value.
    fn spell(&mut self, v: Value) -> Spelled {
        let instruction = self.function().at(v);
        if let Some(pattern) = self.patterns.get(&v).cloned() {
            return self.pattern(&pattern, instruction.ty);
        }
        if let Op::Load(source) = instruction.op {
            return self.load(source, instruction.ty);
        }
        let operands = instruction.op.operands();
        let types: Vec<Type> = operands.iter().map(|o| self.function().ty(*o)).collect();
        let operands = operands.into_iter().map(|o| self.value(o)).collect();
        self.speller.operation(&instruction.op, operands, &types, instruction.ty)
    }

    fn load(&mut self, source: Source, ty: Type) -> Spelled {
        let words = &self.speller.words;
        let py = match source {
            Source::State(s) => Py::word(&words.states[s.index()]),
            Source::Input(i) => Py::word(&words.inputs[i.index()]),
            Source::Param(p) => self.param(p, true),
            other => unreachable!("a step does not load {other:?}"),
        };
        Spelled::tensor(py, whole(ty))
    }

    /// The value of a parameter; a factor as the vector that the step knows, or as it is.
    fn param(&mut self, p: ParamId, as_vector: bool) -> Py {
        let param = &self.model.params[p.index()];
        let mut py = Py::word(format!("self.{}", self.speller.words.params[p.index()]));
        if param.constraint != Constraint::Free {
            py = py.of("()");
        }
        if !is_one(&param.gradscale) {
            self.speller.preamble.insert("scale_gradient");
            let factor = self.speller.words.number(&self.model.axes, &param.gradscale, "self.");
            py = Py::call("scale_gradient", vec![py, factor]);
        }
        let is_factor = param.dims.len() != super::names::dims(param.shape).len();
        if is_factor && as_vector { py.of(".flatten()") } else { py }
    }

    fn pattern(&mut self, pattern: &Pattern, ty: Type) -> Spelled {
        let shaped = |step: &mut Self, v: Value| {
            let ty = step.function().ty(v);
            let x = step.value(v);
            step.speller.expanded(x, ty)
        };
        let py = match *pattern {
            Pattern::Softmax(v) => Py::call("torch.softmax", vec![shaped(self, v), Py::word("dim=-1")]),
            Pattern::Mean(v) => {
                let is_matrix = matches!(self.function().ty(v).shape, Shape::Matrix { .. });
                shaped(self, v).of(if is_matrix { ".mean((-2, -1))" } else { ".mean(-1)" })
            }
            Pattern::Square(v) => {
                let x = self.value(v);
                let x = self.speller.numbers(x);
                return match x.kind {
                    Kind::Number => Spelled::number(Py::infix("*", x.py.clone(), x.py)),
                    Kind::Tensor | Kind::Truth => Spelled::tensor(x.py.of(".square()"), x.dims),
                };
            }
            Pattern::Dot(a, b) => {
                let batched = |v: Value| self.function().ty(v).batched;
                match (batched(a), batched(b)) {
                    (true, true) => Py::infix("*", shaped(self, a), shaped(self, b)).of(".sum(-1)"),
                    (false, true) => Py::infix("@", shaped(self, b), shaped(self, a)),
                    (_, false) => Py::infix("@", shaped(self, a), shaped(self, b)),
                }
            }
            Pattern::Factors(post, pre) => {
                let [post, pre] = [post, pre].map(|v| match self.function().at(v).op {
                    Op::Load(Source::Param(p)) => self.param(p, false),
                    _ => unreachable!("factors are parameters"),
                });
                Py::infix("@", post.of(".T"), pre)
            }
        };
        Spelled::tensor(py, whole(ty))
    }

    /// A result as a whole tensor of every row.
    fn result(&mut self, v: Value) -> Py {
        let ty = Type { batched: true, ..self.function().ty(v) };
        let x = self.value(v);
        self.speller.expanded(x, ty)
    }

    /// The outputs and the states after the step.
    fn give_back(&mut self) {
        let mut outputs = vec![];
        for (k, _) in self.model.outputs.iter().enumerate() {
            if let Some(v) = self.function().result(Sink::Output(OutputId(k as u32))) {
                let value = self.result(v);
                outputs.push(Py::keyword(&self.speller.words.outputs[k].clone(), value));
            }
        }
        if let Some(penalty) = self.penalty() {
            outputs.push(Py::keyword("penalty", penalty));
        }
        let mut states = vec![];
        for (k, _) in self.model.states.iter().enumerate() {
            let value = match self.function().result(Sink::State(StateId(k as u32))) {
                Some(v) => self.result(v),
                None => Py::word(&self.speller.words.states[k]),
            };
            states.push(Py::keyword(&self.speller.words.states[k].clone(), value));
        }
        let (outputs, states) = (Py::call("Outputs", outputs), Py::call("State", states));
        let one = format!("return {}, {}", outputs.flat(), states.flat());
        if INDENT + one.len() <= 100 {
            self.lines.push(one);
            return;
        }
        self.lines.push(format!("outputs = {}", outputs.laid_out(INDENT, 10)));
        self.lines.push(format!("return outputs, {}", states.laid_out(INDENT, 16)));
    }

    /// The sum of all penalty terms.
    fn penalty(&mut self) -> Option<Py> {
        let terms: Vec<Value> =
            self.function().results.iter().filter(|(s, _)| *s == Sink::Penalty).map(|(_, v)| *v).collect();
        let docs: Vec<&[String]> =
            self.model.equations.iter().filter(|e| e.names.is_empty()).map(|e| e.doc.as_slice()).collect();
        let mut sum: Option<Spelled> = None;
        for (k, v) in terms.iter().enumerate() {
            for line in docs.get(k).copied().unwrap_or_default() {
                self.lines.push(format!("# {line}").trim_end().to_owned());
            }
            let ty = self.function().ty(*v);
            let x = self.value(*v);
            let py = self.speller.expanded(x, Type { batched: true, ..ty });
            sum = Some(match sum {
                None => {
                    self.lines.push(format!("penalty = {}", py.laid_out(INDENT, 10)));
                    Spelled::tensor(Py::word("penalty"), vec![Dim::Batch])
                }
                Some(sum) => {
                    let py = Py::infix("+", sum.py.clone(), py);
                    self.lines.push(format!("penalty = {}", py.laid_out(INDENT, 10)));
                    sum
                }
            });
        }
        sum.map(|s| s.py)
    }
}

/// Whether a factor changes nothing.
pub(super) fn is_one(x: &ConstExpr) -> bool {
    *x == ConstExpr::Number(1.0)
}
