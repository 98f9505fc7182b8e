//! Equations of a spec as LaTeX.
//!
//! Time is written out: an unprimed state is `y^{t-1}`, a primed one `y^{t}`, as are inputs and what is
//! computed within the step. Equations over synapses are written element by element, with `j` for the
//! receiving and `i` for the sending neuron; all others with vectors and matrices.

use crate::ir::Shape;
use crate::model::Model;
use grammar::ast::{BinaryOp, Expr, ExprKind, Index, StatementKind, Target};

/// The equations of a spec, in text order. Outputs that only repeat a state are left out.
pub(crate) fn equations(model: &Model, statements: &[grammar::ast::Statement]) -> Vec<String> {
    let writer = Writer { model };
    let mut found = vec![];
    for statement in statements {
        match &statement.kind {
            StatementKind::Equation { targets, value, .. } => found.push(writer.equation(targets, value)),
            StatementKind::Output(outputs) => {
                for output in outputs {
                    if let Some(value) = &output.value {
                        let left = format!("\\text{{{}}}", escape(&output.target.name.name));
                        found.push(format!("{left} &= {}", writer.write(value, Mode::Whole).text));
                    }
                }
            }
            StatementKind::Penalty(value) => {
                found.push(format!("\\text{{penalty}} &= {}", writer.write(value, Mode::Whole).text));
            }
            StatementKind::Hold { states, condition } => {
                let names: Vec<String> =
                    states.iter().map(|s| writer.name(&s.name, true, Mode::Whole)).collect();
                let when = writer.write(condition, Mode::Whole).text;
                found.push(format!("{} &\\text{{ held when }} {when}", names.join(", ")));
            }
            StatementKind::Layer { name, spec, arguments } => {
                let given = arguments.iter().map(|a| {
                    let value = writer.write(&a.value, Mode::Whole).text;
                    let own = a.name.as_ref().map(|n| format!("{} = ", symbol(&n.name)));
                    own.unwrap_or_default() + &value
                });
                let given = given.collect::<Vec<_>>().join(", ");
                let (name, spec) = (escape(&name.name), escape(&spec.name));
                found.push(format!("\\text{{{name}}} &= \\text{{{spec}}}({given})"));
            }
            _ => {}
        }
    }
    found
}

/// Whether an expression is written element by element.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Mode {
    /// Vectors and matrices as wholes.
    Whole,
    /// One synapse `ji`.
    Synapse,
}

/// How tightly a text binds.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Bond {
    Sum,
    Product,
    Atom,
}

struct Tex {
    text: String,
    bond: Bond,
}

impl Tex {
    fn atom(text: impl Into<String>) -> Tex {
        Tex { text: text.into(), bond: Bond::Atom }
    }

    /// In parentheses if it binds more loosely than its place needs.
    fn at(self, place: Bond) -> String {
        if self.bond < place { format!("\\left({}\\right)", self.text) } else { self.text }
    }
}

struct Writer<'m> {
    model: &'m Model,
}

impl Writer<'_> {
    fn equation(&self, targets: &[Target], value: &Expr) -> String {
        let synapse = |t: &Target| matches!(self.shape(&t.name.name), Some(Shape::Matrix { .. }));
        let mode = if targets.iter().all(synapse) { Mode::Synapse } else { Mode::Whole };
        let left: Vec<String> = targets.iter().map(|t| self.target(t, mode)).collect();
        let left = if left.len() == 1 { left.join("") } else { format!("({})", left.join(", ")) };
        format!("{left} &= {}", self.write(value, mode).text)
    }

    /// What is defined belongs to this step, primed or not.
    fn target(&self, target: &Target, mode: Mode) -> String {
        self.name(&target.name.name, true, mode)
    }

    fn shape(&self, name: &str) -> Option<Shape> {
        let m = self.model;
        m.param(name)
            .map(|p| m.params[p.index()].shape)
            .or_else(|| m.input(name).map(|i| m.inputs[i.index()].shape))
            .or_else(|| m.state(name).map(|s| m.states[s.index()].shape))
            .or_else(|| {
                let named = m.step.body.iter().find(|i| i.name.as_deref() == Some(name));
                named.map(|i| i.ty.shape)
            })
    }

    /// A name with its time, and with its synapse where that is the mode.
    fn name(&self, name: &str, now: bool, mode: Mode) -> String {
        let m = self.model;
        let base = symbol(name);
        let timeless = m.param(name).is_some() || self.shape(name).is_none();
        let time = match (timeless, m.state(name).is_some() && !now) {
            (true, _) => "",
            (false, true) => "^{t-1}",
            (false, false) => "^{t}",
        };
        let matrix = matches!(self.shape(name), Some(Shape::Matrix { .. }));
        let index = if mode == Mode::Synapse && matrix { "_{ji}" } else { "" };
        match index.is_empty() || !base.contains('_') {
            true => format!("{base}{time}{index}"),
            false => format!("({base}){time}{index}"),
        }
    }

    fn write(&self, expr: &Expr, mode: Mode) -> Tex {
        match &expr.kind {
            ExprKind::Number(x) => number(*x),
            ExprKind::Name { name, primed } => Tex::atom(self.name(name, *primed, mode)),
            ExprKind::Index { base, index, .. } => self.indexed(base, index),
            ExprKind::Transpose(base) => {
                Tex::atom(format!("{{{}}}^{{\\top}}", self.write(base, Mode::Whole).at(Bond::Atom)))
            }
            ExprKind::Negate(x) => {
                Tex { text: format!("-{}", self.write(x, mode).at(Bond::Product)), bond: Bond::Sum }
            }
            ExprKind::Binary { op, left, right, .. } => self.binary(*op, left, right, mode),
            ExprKind::Call { function, arguments } => self.call(&function.name, arguments, mode),
            ExprKind::Error => Tex::atom("\\dots"),
        }
    }

    /// `y'[j]`, `(v - H @ k)[j]`
    fn indexed(&self, base: &Expr, index: &Index) -> Tex {
        let index = match index {
            Index::Post => "j".to_owned(),
            Index::Pre => "i".to_owned(),
            Index::Both => "ji".to_owned(),
            Index::Element(k) => k.to_string(),
            Index::Other(text) => escape(text),
        };
        let base = match &base.kind {
            ExprKind::Name { .. } => self.write(base, Mode::Whole).text,
            _ => format!("\\left({}\\right)", self.write(base, Mode::Whole).text),
        };
        // A name that has an index of its own takes the new one behind parentheses.
        match base.contains('_') && !base.ends_with(')') {
            true => Tex::atom(format!("({base})_{{{index}}}")),
            false => Tex::atom(format!("{base}_{{{index}}}")),
        }
    }

    fn binary(&self, op: BinaryOp, left: &Expr, right: &Expr, mode: Mode) -> Tex {
        let (l, r) = (|m| self.write(left, m), |m| self.write(right, m));
        let compare = |sign: &str| {
            Tex::atom(format!("\\mathbb{{1}}\\left[{} {sign} {}\\right]", l(mode).text, r(mode).text))
        };
        match op {
            BinaryOp::Add => sum(format!("{} + {}", l(mode).text, r(mode).text)),
            BinaryOp::Sub => sum(format!("{} - {}", l(mode).text, r(mode).at(Bond::Product))),
            BinaryOp::Mul => {
                let scalar = self.is_scalar(left) || self.is_scalar(right) || mode == Mode::Synapse;
                let dot = if scalar { "\\," } else { " \\odot" };
                product(format!("{}{dot} {}", l(mode).at(Bond::Product), r(mode).at(Bond::Product)))
            }
            BinaryOp::Div => Tex::atom(format!("\\frac{{{}}}{{{}}}", l(mode).text, r(mode).text)),
            BinaryOp::Pow => Tex::atom(format!("{{{}}}^{{{}}}", l(mode).at(Bond::Atom), r(mode).text)),
            BinaryOp::Contract => self.contraction(left, right),
            BinaryOp::Dot => {
                let (a, b) = (l(Mode::Whole).at(Bond::Atom), r(Mode::Whole).at(Bond::Atom));
                product(format!("{{{a}}}^{{\\top}} {b}"))
            }
            BinaryOp::Less => compare("<"),
            BinaryOp::LessEqual => compare("\\le"),
            BinaryOp::Greater => compare(">"),
            BinaryOp::GreaterEqual => compare("\\ge"),
            BinaryOp::Equal => compare("="),
        }
    }

    /// A matrix written synapse by synapse is summed over the sending neurons in the open.
    fn contraction(&self, matrix: &Expr, vector: &Expr) -> Tex {
        if !has_index(matrix) {
            let m = self.write(matrix, Mode::Whole).at(Bond::Atom);
            return product(format!("{m}\\, {}", self.write(vector, Mode::Whole).at(Bond::Product)));
        }
        let m = self.write(matrix, Mode::Synapse).at(Bond::Product);
        product(format!("\\sum_i {m}\\, {}", self.indexed(vector, &Index::Pre).text))
    }

    /// Whether an expression is one number, as far as its form says.
    fn is_scalar(&self, expr: &Expr) -> bool {
        match &expr.kind {
            ExprKind::Number(_) => true,
            ExprKind::Name { name, .. } => {
                matches!(self.shape(name), Some(Shape::Scalar) | None)
            }
            ExprKind::Index { index, .. } => matches!(index, Index::Element(_)),
            ExprKind::Transpose(_) | ExprKind::Error => false,
            ExprKind::Negate(x) => self.is_scalar(x),
            ExprKind::Binary { op: BinaryOp::Dot, .. } => true,
            ExprKind::Binary { op: BinaryOp::Contract, .. } => false,
            ExprKind::Binary { left, right, .. } => self.is_scalar(left) && self.is_scalar(right),
            ExprKind::Call { function, arguments } => {
                matches!(function.name.as_str(), "sum" | "mean" | "max" | "norm" | "frobenius")
                    || arguments.iter().all(|a| self.is_scalar(a))
            }
        }
    }

    fn call(&self, function: &str, arguments: &[Expr], mode: Mode) -> Tex {
        let all: Vec<String> = arguments.iter().map(|a| self.write(a, mode).text).collect();
        let word = match function {
            "tanh" | "exp" | "max" | "min" => format!("\\{function}"),
            "log" => "\\ln".to_owned(),
            "sigmoid" => "\\sigma".to_owned(),
            "sqrt" => return Tex::atom(format!("\\sqrt{{{}}}", all.join(", "))),
            "abs" => return Tex::atom(format!("\\left|{}\\right|", all.join(", "))),
            "clip" if all.len() == 3 => {
                let word = "\\operatorname{clip}";
                return Tex::atom(format!("{word}_{{[{}, {}]}}\\left({}\\right)", all[1], all[2], all[0]));
            }
            other => format!("\\operatorname{{{}}}", escape(other)),
        };
        Tex::atom(format!("{word}\\left({}\\right)", all.join(", ")))
    }
}

fn sum(text: String) -> Tex {
    Tex { text, bond: Bond::Sum }
}

fn product(text: String) -> Tex {
    Tex { text, bond: Bond::Product }
}

fn number(x: f64) -> Tex {
    let plain = format!("{x}");
    let short = format!("{x:e}");
    let text = match short.split_once('e') {
        Some(("1", power)) if plain.len() > 6 => format!("10^{{{power}}}"),
        Some((digits, power)) if plain.len() > 6 => format!("{digits} \\cdot 10^{{{power}}}"),
        _ => plain,
    };
    if x < 0.0 { sum(text) } else { Tex::atom(text) }
}

fn has_index(expr: &Expr) -> bool {
    match &expr.kind {
        ExprKind::Index { index, .. } => !matches!(index, Index::Element(_)),
        ExprKind::Binary { left, right, .. } => has_index(left) || has_index(right),
        ExprKind::Negate(x) => has_index(x),
        ExprKind::Call { arguments, .. } => arguments.iter().any(has_index),
        ExprKind::Number(_) | ExprKind::Name { .. } | ExprKind::Transpose(_) | ExprKind::Error => false,
    }
}

const GREEK: [&str; 23] = [
    "alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta", "iota", "kappa", "lambda", "mu",
    "nu", "xi", "pi", "rho", "sigma", "tau", "upsilon", "phi", "chi", "psi", "omega",
];

/// A name as a symbol: Greek letters as such, `Wx` as W with an index, longer words upright.
fn symbol(name: &str) -> String {
    if let Some((layer, part)) = name.split_once('.') {
        let part = symbol(part);
        let part = if part.contains('_') { format!("({part})") } else { part };
        return with_index(&part, &format!("\\text{{{}}}", escape(layer)));
    }
    let letters = name.trim_end_matches(|c: char| c.is_ascii_digit());
    let digits = &name[letters.len()..];
    if GREEK.contains(&letters) {
        return with_index(&format!("\\{letters}"), digits);
    }
    let mut characters = name.chars();
    let (first, rest) = (characters.next().unwrap_or('?'), characters.as_str());
    match rest.len() {
        0 => first.to_string(),
        1 | 2 if rest.chars().all(|c| c.is_ascii_alphanumeric()) => with_index(&first.to_string(), rest),
        _ => with_index(&format!("\\mathrm{{{}}}", escape(letters)), digits),
    }
}

fn with_index(base: &str, index: &str) -> String {
    if index.is_empty() { base.to_owned() } else { format!("{base}_{{{index}}}") }
}

/// Characters that mean something to LaTeX, as themselves.
pub(crate) fn escape(text: &str) -> String {
    let mut found = String::new();
    for c in text.chars() {
        match c {
            '\\' => found.push_str("\\textbackslash{}"),
            '~' => found.push_str("\\textasciitilde{}"),
            '^' => found.push_str("\\textasciicircum{}"),
            '&' | '%' | '$' | '#' | '_' | '{' | '}' => found.extend(['\\', c]),
            '<' | '>' | '|' => found.extend(['$', c, '$']),
            c => found.push(c),
        }
    }
    found
}
