//! PyTorch: a model as one readable Python module that needs nothing but `torch`.
//!
//! What is written is what an expert would write by hand: a `torch.nn.Module` whose `step` takes the inputs of a
//! step and the states before it, and gives outputs and the states after it. It is a second opinion on all other
//! back ends, because its derivatives come from PyTorch, and the way out of this project with a model.
//!
//! **Mapping.** Every value has the batch in front, then the axes of the spec: a scalar is `[batch]`, a vector
//! `[batch, N]`, a matrix `[batch, post, pre]`. What depends on parameters alone has no batch. Equations keep their
//! names and order of evaluation; what the step IR says in several instructions and a person in one word is
//! written in one ([`patterns`]). Parameters are loaded under the keys that they have in the files of this
//! project ([`key`]); a parameter with a range keeps the raw number that an optimiser moves, and takes values in
//! the units of the spec from a file, too.
//!
//! **Meaning.** Values and gradients are those of the interpreter, up to rounding, and so is what happens at
//! kinks: `clip` passes no gradient where it clips, ties included; `min` and `max` give it to the second operand at
//! a tie. A reset acts before a step and cuts the gradient of the rows it resets. Noise can be given; left out, it
//! is drawn, dropout only in training, and what is locked once for a sequence.
//!
//! It reads the model before any pass has rewritten it, and knows nothing of loops, storage or differentiation.

mod names;
mod patterns;
mod preamble;
mod py;
mod start;
mod step;
mod values;

pub use names::key;

use crate::ir::Shape;
use crate::model::{Constraint, Input, Model, Role};
use names::{Words, class, legal};
use py::Py;
use start::Start;
use std::collections::{BTreeMap, BTreeSet};
use step::{Step, Written};
use values::{Speller, tuple};

/// The name of the emitted module's class.
pub fn class_name(model: &Model) -> String {
    class(&model.name)
}

/// The name of the file that the module belongs into.
pub fn file_name(model: &Model) -> String {
    format!("{}.py", legal(&model.name))
}

/// The words of a model in its emitted module, which are those of the spec unless Python needs them.
#[derive(Clone, Debug)]
pub struct Signature {
    /// By named axis: the argument of the constructor.
    pub axes: Vec<String>,
    /// By input: the argument of `step` and `forward`.
    pub inputs: Vec<String>,
    /// By state: the field of `State`.
    pub states: Vec<String>,
    /// By output: the field of `Outputs`.
    pub outputs: Vec<String>,
}

/// The words of a model in its emitted module.
pub fn signature(model: &Model) -> Signature {
    let Words { axes, inputs, states, outputs, .. } = Words::new(model);
    Signature { axes, inputs, states, outputs }
}

/// A model as a Python module. `bound` holds sizes that replace those of the spec as defaults; what stays open is
/// an argument of the constructor. `file` is where the spec comes from.
pub fn emit(model: &Model, bound: &BTreeMap<String, usize>, file: &str) -> String {
    let words = Words::new(model);
    let start = Start { model, words: &words, bound };
    let like = like(model, &words);
    let speller = Speller {
        model,
        words: words.clone(),
        like: like.clone(),
        preamble: BTreeSet::new(),
        needs_batch: false,
    };
    let written = Step::new(model, speller).write();
    let module = Module { model, words: &words, start, written, like };
    module.text(file)
}

/// A tensor by which a step knows batch, type and device: an input, else a state, else a noise.
fn like(model: &Model, words: &Words) -> String {
    let given = model.inputs.iter().position(|i| !is_optional(i));
    match (given, words.states.first(), words.inputs.first()) {
        (Some(k), _, _) => words.inputs[k].clone(),
        (None, Some(state), _) => format!("state.{state}"),
        (None, None, Some(noise)) => noise.clone(),
        (None, None, None) => "self._like".to_owned(),
    }
}

/// Whether an input may be left out: noise is drawn then, and nothing is reset.
fn is_optional(input: &Input) -> bool {
    matches!(input.role, Role::Noise(_) | Role::Reset)
}

fn is_locked(input: &Input) -> bool {
    matches!(&input.role, Role::Noise(noise) if noise.locked)
}

/// A text in a docstring.
fn docstring(text: &str) -> String {
    let text = text.replace('\\', "\\\\").replace("\"\"\"", "\\\"\\\"\\\"");
    match text.strip_suffix('"') {
        Some(rest) if !rest.ends_with('\\') => format!("{rest}\\\""),
        _ => text,
    }
}

/// A text on lines of a docstring in a method, the later ones indented.
fn wrapped(text: &str) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split_whitespace() {
        let line = lines.last_mut().expect("there is a line");
        if !line.is_empty() && 92 < line.len() + 1 + word.len() {
            lines.push(format!("    {word}"));
        } else {
            if !line.is_empty() {
                line.push(' ');
            }
            line.push_str(word);
        }
    }
    lines
}

/// Everything that a module is made of.
struct Module<'m> {
    model: &'m Model,
    words: &'m Words,
    start: Start<'m>,
    written: Written,
    like: String,
}

impl Module<'_> {
    fn text(&self, file: &str) -> String {
        let mut parts = vec![self.head(file)];
        parts.extend(self.preamble().iter().map(|name| preamble::source(name).to_owned()));
        parts.push(self.states());
        parts.push(self.outputs());
        parts.push(self.class());
        let text = parts.join("\n\n");
        if text.contains("math.") { text } else { text.replacen("import math\n", "", 1) }
    }

    fn head(&self, file: &str) -> String {
        let doc = docstring(&self.model.doc.join("\n"));
        let name = &self.model.name;
        let doc = if doc.is_empty() { format!("The network `{name}`.") } else { doc };
        let file = file.rsplit(['/', '\\']).next().unwrap_or(file);
        format!(
            "\"\"\"{doc}\n\nMade by `bpmc compile {} --target torch`. Matrices are [post, pre]: rows receive, columns send.\n\"\"\"\n\nimport math\nfrom typing import NamedTuple\n\nimport torch\nfrom torch import Tensor, nn\n",
            docstring(file)
        )
    }

    fn preamble(&self) -> Vec<&'static str> {
        let mut needed = self.written.preamble.clone();
        for param in &self.model.params {
            match param.constraint {
                Constraint::Free => {}
                Constraint::Interval(..) => drop(needed.insert("Interval")),
                Constraint::Above(_) => needed.extend(["Above", "softplus"]),
                Constraint::Below(_) => needed.extend(["Below", "softplus"]),
            }
        }
        preamble::NAMES.into_iter().filter(|n| needed.contains(n)).collect()
    }

    /// `[batch, N, N]`
    fn shape_text(&self, shape: Shape) -> String {
        let axes = names::dims(shape).into_iter().map(|a| self.model.axes.text(a));
        let all: Vec<String> = std::iter::once("batch".to_owned()).chain(axes).collect();
        format!("[{}]", all.join(", "))
    }

    /// Fields of a tuple, each under its documentation.
    fn fields<'a>(&self, fields: impl Iterator<Item = (&'a String, &'a [String], Shape)>) -> String {
        let mut text = String::new();
        let mut last: &[String] = &[];
        for (word, doc, shape) in fields {
            if doc != last {
                last = doc;
                let lines = doc.iter().map(|l| format!("    # {l}").trim_end().to_owned() + "\n");
                let gap = if text.is_empty() { "" } else { "\n" };
                text += &(gap.to_owned() + &lines.collect::<String>());
            }
            text += &format!("    {word}: Tensor  # {}\n", self.shape_text(shape));
        }
        text
    }

    fn states(&self) -> String {
        let fields = self.model.states.iter().zip(&self.words.states);
        let fields = self.fields(fields.map(|(s, w)| (w, s.doc.as_slice(), s.shape)));
        let doc = "What lives from step to step, once per row of the batch.";
        format!("class State(NamedTuple):\n    \"\"\"{doc}\"\"\"\n\n{fields}").trim_end().to_owned() + "\n"
    }

    fn outputs(&self) -> String {
        let fields = self.model.outputs.iter().zip(&self.words.outputs);
        let mut fields = self.fields(fields.map(|(o, w)| (w, o.doc.as_slice(), o.shape)));
        if self.has_penalty() {
            fields += "    # Part of the loss: its mean over steps and rows is added.\n    penalty: Tensor  # [batch]\n";
        }
        let doc = "What a step gives; of a sequence, with the steps in front.";
        format!("class Outputs(NamedTuple):\n    \"\"\"{doc}\"\"\"\n\n{fields}").trim_end().to_owned() + "\n"
    }

    fn has_penalty(&self) -> bool {
        self.model.step.results.iter().any(|(sink, _)| *sink == crate::ir::Sink::Penalty)
    }

    fn class(&self) -> String {
        let class = class_name(self.model);
        let mut methods = vec![self.start.constructor()];
        methods.push(self.start.parameters());
        methods.push(self.start.states());
        methods.push(self.start.episodes());
        methods.push(self.reset());
        methods.extend(self.start.noises());
        methods.push(self.input_shapes());
        methods.push(self.step());
        methods.push(self.forward());
        methods.push(self.loading());
        methods.retain(|m| !m.is_empty());
        let first: Vec<&str> =
            self.model.doc.iter().map(String::as_str).take_while(|l| !l.is_empty()).collect();
        let about = match first.join("\n    ") {
            none if none.is_empty() => format!("The network `{}`.", self.model.name),
            text => docstring(&text),
        };
        let end = if about.contains('\n') { "\n    \"\"\"" } else { "\"\"\"" };
        format!("class {class}(nn.Module):\n    \"\"\"{about}{end}\n\n{}", methods.join("\n"))
    }

    fn inputs(&self) -> impl Iterator<Item = (&Input, &String)> {
        self.model.inputs.iter().zip(&self.words.inputs)
    }

    /// Axes of inputs, for programs that make them.
    fn input_shapes(&self) -> String {
        let one = |(i, word): (&Input, &String)| {
            let sizes = self.words.sizes(&self.model.axes, i.shape, "self.");
            let shape = if sizes.is_empty() { "()".to_owned() } else { tuple(&sizes) };
            format!("\"{word}\": {shape}")
        };
        let entries: Vec<String> = self.inputs().map(one).collect();
        let line = format!("        return {{{}}}\n", entries.join(", "));
        let value = match line.len() <= 100 {
            true => line,
            false => {
                let lines: String = entries.iter().map(|e| format!("            {e},\n")).collect();
                format!("        return {{\n{lines}        }}\n")
            }
        };
        format!(
            "    def input_shapes(self) -> dict[str, tuple[int, ...]]:\n        \"\"\"Axes of the inputs, behind steps and batch.\"\"\"\n{value}"
        )
    }

    /// The arguments of a step or sequence, without `self`: what must be given, the states, what may be given.
    fn arguments(&self, state: &str) -> String {
        let given = self.inputs().filter(|(i, _)| !is_optional(i)).map(|(_, w)| format!("{w}: Tensor"));
        let optional =
            self.inputs().filter(|(i, _)| is_optional(i)).map(|(_, w)| format!("{w}: Tensor | None = None"));
        let mut all: Vec<String> = given.chain([state.to_owned()]).collect();
        let optional: Vec<String> = optional.collect();
        if !optional.is_empty() {
            all.push("*".to_owned());
            all.extend(optional);
        }
        all.join(", ")
    }

    /// A head of a method, on one line or one argument on each.
    fn method_head(name: &str, arguments: &str) -> String {
        let one = format!("    def {name}(self, {arguments}) -> tuple[Outputs, State]:\n");
        if one.len() <= 101 {
            return one;
        }
        let lines: String = arguments.split(", ").map(|a| format!("        {a},\n")).collect();
        format!("    def {name}(\n        self,\n{lines}    ) -> tuple[Outputs, State]:\n")
    }

    /// What the inputs are, one line each.
    fn inputs_text(&self, first: &str) -> Vec<String> {
        let one = |(i, word): (&Input, &String)| {
            let shape = self.shape_text(i.shape);
            let first = if is_locked(i) { "" } else { first };
            let shape = shape.replacen('[', &format!("[{first}"), 1);
            let left_out = match &i.role {
                Role::Noise(_) => "Drawn if left out.",
                Role::Reset => "Where it is not zero, the row starts again before the step.",
                _ => "",
            };
            let text = format!("{word}: {shape} {} {left_out}", docstring(&i.doc.join(" ")));
            wrapped(&text)
        };
        self.inputs().flat_map(one).collect()
    }

    fn step(&self) -> String {
        let mut lines = vec!["\"\"\"One time step.".to_owned(), String::new()];
        lines.extend(self.inputs_text(""));
        lines.push("\"\"\"".to_owned());
        if self.inputs().next().is_none() {
            lines = vec!["\"\"\"One time step.\"\"\"".to_owned()];
        }
        let has_noise = self.inputs().any(|(i, _)| matches!(i.role, Role::Noise(_)));
        if self.written.needs_batch || has_noise {
            lines.push(format!("batch = {}.shape[0]", self.like));
        }
        for (i, word) in self.inputs() {
            match i.role {
                Role::Noise(_) => {
                    lines.push(format!("if {word} is None:"));
                    lines.push(format!("    {word} = self.draw_{word}(batch)"));
                }
                Role::Reset => {
                    lines.push(format!("if {word} is not None:"));
                    lines.push(format!("    state = self.reset(state, {word})"));
                }
                Role::Modulator | Role::Target | Role::Mask => {
                    lines.push(format!("{word} = {word}.detach()"));
                }
                Role::Signal => {}
            }
        }
        lines.extend(self.taken_apart());
        lines.extend(self.written.lines.iter().cloned());
        let body: String = lines
            .iter()
            .map(|l| if l.is_empty() { "\n".to_owned() } else { format!("        {l}\n") })
            .collect();
        Self::method_head("step", &self.arguments("state: State")) + &body
    }

    /// The states as variables.
    fn taken_apart(&self) -> Vec<String> {
        let read = &self.written.states_read;
        let words: Vec<&String> =
            self.words.states.iter().zip(read).filter(|(_, r)| **r).map(|(w, _)| w).collect();
        let all = words.iter().map(|w| w.as_str()).collect::<Vec<_>>().join(", ");
        if words.len() == read.len() && 1 < words.len() && all.len() < 80 {
            return vec![format!("{all} = state")];
        }
        words.iter().map(|w| format!("{w} = state.{w}")).collect()
    }

    fn forward(&self) -> String {
        let given: Vec<&String> = self.inputs().filter(|(i, _)| !is_optional(i)).map(|(_, w)| w).collect();
        let mut lines =
            vec!["\"\"\"A sequence: every tensor has the steps in front, then the batch.".to_owned()];
        lines.push(String::new());
        lines.extend(self.inputs_text("steps, "));
        lines
            .push("state: the states before the first step; those of a new episode, if left out.".to_owned());
        lines.push("\"\"\"".to_owned());
        let (steps, state) = match given.first() {
            Some(word) => (format!("{word}.shape[0]"), "state: State | None = None".to_owned()),
            None => ("steps".to_owned(), "steps: int, state: State".to_owned()),
        };
        if let Some(word) = given.first() {
            lines.push("if state is None:".to_owned());
            lines.push(format!("    state = self.initial_state({word}.shape[1])"));
        }
        let rows = given.first().map_or(format!("{}.shape[0]", self.like), |w| format!("{w}.shape[1]"));
        for (_, word) in self.inputs().filter(|(i, _)| is_locked(i)) {
            lines.push(format!("if {word} is None:"));
            lines.push(format!("    {word} = self.draw_{word}({rows})"));
        }
        lines.push("outputs = []".to_owned());
        lines.push(format!("for time in range({steps}):"));
        let mut arguments: Vec<Py> = given.iter().map(|w| Py::word(format!("{w}[time]"))).collect();
        arguments.push(Py::word("state"));
        for (i, word) in self.inputs().filter(|(i, _)| is_optional(i)) {
            let value = match is_locked(i) {
                true => word.clone(),
                false => format!("None if {word} is None else {word}[time]"),
            };
            arguments.push(Py::keyword(word, Py::word(value)));
        }
        let call = Py::call("self.step", arguments).laid_out(12, 16);
        lines.push(format!("    output, state = {call}"));
        lines.push("    outputs.append(output)".to_owned());
        lines.push("return Outputs(*map(torch.stack, zip(*outputs))), state".to_owned());
        let body: String = lines
            .iter()
            .map(|l| if l.is_empty() { "\n".to_owned() } else { format!("        {l}\n") })
            .collect();
        Self::method_head("forward", &self.arguments(&state)) + &body
    }

    /// `reset`, if an input asks for it.
    fn reset(&self) -> String {
        if !self.inputs().any(|(i, _)| i.role == Role::Reset) {
            return String::new();
        }
        let source = r#"    def reset(self, state: State, again: Tensor) -> State:
        """The states of rows for which `again` is not zero return to those of a new episode."""

        def chosen(new: Tensor, old: Tensor) -> Tensor:
            return torch.where(again.view(-1, *[1] * (old.dim() - 1)) != 0, new, old)

        return State(*map(chosen, self.initial_state(again.shape[0]), state))
"#;
        source.to_owned()
    }

    /// Takes parameters in the units of the spec, under the names of the spec.
    fn loading(&self) -> String {
        let other = self.model.params.iter().filter(|p| key(p) != p.name);
        let entries: Vec<String> = other.map(|p| format!("\"{}\": \"{}\"", p.name, key(p))).collect();
        if entries.is_empty() {
            return String::new();
        }
        let list = match entries.iter().map(|e| e.len() + 2).sum::<usize>() < 80 {
            true => format!("{{{}}}", entries.join(", ")),
            false => {
                let lines: String = entries.iter().map(|e| format!("            {e},\n")).collect();
                format!("{{\n{lines}        }}")
            }
        };
        let is_ranged = self.model.params.iter().any(|p| p.constraint != Constraint::Free);
        let value = match is_ranged {
            true => {
                "                if key.endswith(\".raw\"):\n                    value = self.get_submodule(key.removesuffix(\".raw\")).inverse(value)\n"
            }
            false => "",
        };
        format!(
            "    def _load_from_state_dict(self, state_dict, prefix, *arguments):\n        # Values in the units of the spec, as `bpm` writes them, and what is kept in their place.\n        names = {list}\n        for name, key in names.items():\n            if prefix + name in state_dict:\n                value = state_dict.pop(prefix + name)\n{value}                state_dict[prefix + key] = value\n        super()._load_from_state_dict(state_dict, prefix, *arguments)\n"
        )
    }
}
