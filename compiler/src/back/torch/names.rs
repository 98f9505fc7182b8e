//! Words of a spec as Python names, and the keys under which the module keeps its parameters.
//!
//! A parameter keeps the name it has in the spec and in files; a dot in it is a module inside of the module, so
//! that `one.W`, `alpha.post` and `h.init` are keys of the state dict as they are. Words that Python or
//! `torch.nn.Module` need for themselves get an underscore at the end.

use super::py::Py;
use crate::ir::{Axes, Axis, Shape};
use crate::model::{ConstExpr, Constraint, Model, Param};
use grammar::ast::BinaryOp;
use std::collections::BTreeSet;

/// What Python does not let a name be.
const KEYWORDS: [&str; 35] = [
    "False", "None", "True", "and", "as", "assert", "async", "await", "break", "class", "continue", "def",
    "del", "elif", "else", "except", "finally", "for", "from", "global", "if", "import", "in", "is",
    "lambda", "nonlocal", "not", "or", "pass", "raise", "return", "try", "while", "with", "yield",
];

/// Names that the emitted methods use.
const USED: [&str; 32] = [
    "self",
    "state",
    "torch",
    "nn",
    "math",
    "Tensor",
    "State",
    "Outputs",
    "batch",
    "device",
    "dtype",
    "time",
    "steps",
    "abs",
    "float",
    "int",
    "len",
    "map",
    "max",
    "min",
    "range",
    "super",
    "zip",
    "clip",
    "contract",
    "contract_post",
    "minimum",
    "maximum",
    "softplus",
    "scale_gradient",
    "outputs",
    "names",
];

/// Attributes of a `torch.nn.Module`, and methods of the emitted one.
const ATTRIBUTES: [&str; 60] = [
    "T_destination",
    "add_module",
    "apply",
    "bfloat16",
    "buffers",
    "call_super_init",
    "children",
    "compile",
    "cpu",
    "cuda",
    "double",
    "dump_patches",
    "eval",
    "extra_repr",
    "float",
    "forward",
    "get_buffer",
    "get_extra_state",
    "get_parameter",
    "get_submodule",
    "half",
    "initial_state",
    "input_shapes",
    "ipu",
    "load_state_dict",
    "modules",
    "mtia",
    "named_buffers",
    "named_children",
    "named_modules",
    "named_parameters",
    "next_episode",
    "parameters",
    "register_backward_hook",
    "register_buffer",
    "register_forward_hook",
    "register_forward_pre_hook",
    "register_full_backward_hook",
    "register_full_backward_pre_hook",
    "register_load_state_dict_post_hook",
    "register_load_state_dict_pre_hook",
    "register_module",
    "register_parameter",
    "register_state_dict_post_hook",
    "register_state_dict_pre_hook",
    "requires_grad_",
    "reset",
    "reset_parameters",
    "set_extra_state",
    "set_submodule",
    "share_memory",
    "state_dict",
    "step",
    "to",
    "to_empty",
    "train",
    "training",
    "type",
    "xpu",
    "zero_grad",
];

/// Gives out names, each once.
#[derive(Clone, Debug)]
pub(super) struct Names {
    taken: BTreeSet<String>,
}

impl Names {
    /// Names beside those that the emitted code uses.
    pub(super) fn beside_code() -> Names {
        let preamble = super::preamble::NAMES.iter();
        Names { taken: USED.iter().chain(preamble).map(|n| (*n).to_owned()).collect() }
    }

    /// Names of fields, which are in nobody's way.
    pub(super) fn of_fields() -> Names {
        Names { taken: BTreeSet::new() }
    }

    /// A name for a word of the spec; another one if it is taken.
    pub(super) fn take(&mut self, word: &str) -> String {
        let plain = legal(word);
        let mut name = plain.clone();
        let mut number = 2;
        while !self.taken.insert(name.clone()) {
            name = if number == 2 && USED.contains(&plain.as_str()) {
                format!("{plain}_")
            } else {
                format!("{plain}_{number}")
            };
            number += 1;
        }
        name
    }
}

/// The words of a model.
#[derive(Clone, Debug)]
pub(super) struct Words {
    /// By named axis: the attribute that holds its size.
    pub(super) axes: Vec<String>,
    /// By parameter: the attribute that holds it.
    pub(super) params: Vec<String>,
    /// By input: the argument of a step.
    pub(super) inputs: Vec<String>,
    /// By state: the field, and its variable in a step.
    pub(super) states: Vec<String>,
    /// By output: the field.
    pub(super) outputs: Vec<String>,
    /// What else may be named in a step.
    pub(super) step: Names,
}

impl Words {
    /// Names for everything in a model.
    pub(super) fn new(model: &Model) -> Words {
        let params: Vec<String> = model.params.iter().map(place).collect();
        let mut attributes = Names::of_fields();
        attributes.taken.extend(["self", "device", "dtype", "kind"].map(str::to_owned));
        for place in &params {
            attributes.taken.extend(place.split('.').next().map(str::to_owned));
        }
        let axes = model.axes.named.iter().map(|a| attributes.take(&attribute(&legal(&a.name)))).collect();
        let mut step = Names::beside_code();
        let inputs = model.inputs.iter().map(|i| step.take(&i.name)).collect();
        let states = model.states.iter().map(|s| step.take(&s.name)).collect();
        let mut fields = Names::of_fields();
        fields.take("penalty");
        let outputs = model.outputs.iter().map(|o| fields.take(&o.name)).collect();
        Words { axes, params, inputs, states, outputs, step }
    }

    /// The size of an axis: `self.I + self.N`, with the place of sizes in front.
    pub(super) fn size(&self, axes: &Axes, axis: Axis, place: &str) -> Py {
        let linear = axes.linear(axis);
        let mut sum: Option<Py> = None;
        let mut add = |term: Py, positive: bool| {
            sum = Some(match (sum.take(), positive) {
                (None, true) => term,
                (None, false) => term.negative(),
                (Some(sum), true) => Py::infix("+", sum, term),
                (Some(sum), false) => Py::infix("-", sum, term),
            });
        };
        for (k, factor) in &linear.terms {
            let size = Py::word(format!("{place}{}", self.axes[*k]));
            let term = match factor.abs() {
                1 => size,
                f => Py::infix("*", Py::word(f.to_string()), size),
            };
            add(term, *factor > 0);
        }
        if linear.constant != 0 {
            add(Py::word(linear.constant.abs().to_string()), linear.constant > 0);
        }
        sum.unwrap_or_else(|| Py::word("0"))
    }

    /// The sizes of a shape: `self.N`, `self.I`.
    pub(super) fn sizes(&self, axes: &Axes, shape: Shape, place: &str) -> Vec<Py> {
        dims(shape).into_iter().map(|a| self.size(axes, a, place)).collect()
    }

    /// A number of the spec, which may depend on sizes.
    pub(super) fn number(&self, axes: &Axes, x: &ConstExpr, place: &str) -> Py {
        let of = |x: &ConstExpr| self.number(axes, x, place);
        match x {
            ConstExpr::Number(x) => Py::number(*x),
            ConstExpr::Size(axis) => self.size(axes, *axis, place),
            ConstExpr::Neg(x) => of(x).negative(),
            ConstExpr::Sqrt(x) => Py::call("math.sqrt", vec![of(x)]),
            ConstExpr::Binary(op, a, b) => match op {
                BinaryOp::Add => Py::infix("+", of(a), of(b)),
                BinaryOp::Sub => Py::infix("-", of(a), of(b)),
                BinaryOp::Mul => Py::infix("*", of(a), of(b)),
                BinaryOp::Div => Py::infix("/", of(a), of(b)),
                _ => Py::call("math.pow", vec![of(a), of(b)]),
            },
        }
    }
}

/// The axes of a shape, outermost first.
pub(super) fn dims(shape: Shape) -> Vec<Axis> {
    match shape {
        Shape::Scalar => vec![],
        Shape::Vector(a) => vec![a],
        Shape::Matrix { post, pre } => vec![post, pre],
    }
}

/// A word as a Python name: `one.h'` is `one_h_next`.
pub(super) fn legal(word: &str) -> String {
    let word = word.replace('\'', "_next").replace('.', "_");
    let trimmed = word.trim_start_matches('_');
    let name = match trimmed.len() == word.len() {
        true => word,
        false => format!("{trimmed}_"),
    };
    match name.as_str() {
        "_" => "it".to_owned(),
        n if n.starts_with(|c: char| c.is_ascii_digit()) => format!("n{n}"),
        n if KEYWORDS.contains(&n) => format!("{n}_"),
        _ => name,
    }
}

/// The name of the module's class: `large_lstm` is `LargeLstm`.
pub(super) fn class(name: &str) -> String {
    let capital = |part: &str| {
        let mut letters = part.chars();
        letters.next().map_or(String::new(), |c| c.to_ascii_uppercase().to_string() + letters.as_str())
    };
    let name: String = name.split(['_', '.']).map(capital).collect();
    match name.as_str() {
        "State" | "Outputs" | "Interval" | "Above" | "Below" | "Tensor" | "False" | "None" | "True" => {
            format!("{name}Net")
        }
        n if !n.starts_with(|c: char| c.is_ascii_alphabetic()) => format!("Net{n}"),
        _ => name,
    }
}

/// One part of an attribute: a word that is no keyword and none of `torch.nn.Module`'s own.
fn attribute(part: &str) -> String {
    let is_own = ATTRIBUTES.contains(&part) || part.starts_with('_') || part.starts_with("draw_");
    if KEYWORDS.contains(&part) || is_own {
        format!("{}_", part.trim_start_matches('_'))
    } else {
        part.to_owned()
    }
}

/// Where the module has a parameter: `one.W`, `alpha.post`.
pub(super) fn place(param: &Param) -> String {
    param.name.split('.').map(attribute).collect::<Vec<_>>().join(".")
}

/// The key of a parameter in the state dict of the emitted module. A parameter with a range is kept as the raw
/// number that an optimiser moves, under `NAME.raw`.
pub fn key(param: &Param) -> String {
    match param.constraint {
        Constraint::Free => place(param),
        Constraint::Interval(..) | Constraint::Above(_) | Constraint::Below(_) => {
            format!("{}.raw", place(param))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_become_names() {
        assert_eq!(legal("one.h'"), "one_h_next");
        assert_eq!(legal("lambda"), "lambda_");
        assert_eq!(legal("_x"), "x_");
        assert_eq!(class("large_lstm"), "LargeLstm");
        assert_eq!(attribute("step"), "step_");
        let mut names = Names::beside_code();
        assert_eq!(names.take("y"), "y");
        assert_eq!(names.take("y"), "y_2");
        assert_eq!(names.take("state"), "state_");
    }
}
