//! The built-in functions: one table, and what every one of them lowers to.
//!
//! | file | functions |
//! |---|---|
//! | `elementwise` | of one or more numbers, on operands of any kind |
//! | `vectors` | over one axis: softmax, norms, concat, slice |
//! | `matrices` | over synapses: row and column sums and norms |

mod elementwise;
mod matrices;
mod vectors;

use super::checker::Checker;
use super::codes;
use super::initial::count;
use super::types::{Kind, Typed};
use crate::ir::{Axis, Unary};
use grammar::ast::{Expr, Ident};
use grammar::diag::Diagnostic;

/// A call of a built-in function.
pub(super) struct Call<'a> {
    /// The whole call.
    pub(super) expr: &'a Expr,
    /// The function's name.
    pub(super) function: &'a Ident,
    /// What it is given.
    pub(super) arguments: &'a [Expr],
}

/// How a function is lowered.
type Lower = for<'a> fn(&mut Checker<'a>, &Call<'a>) -> Option<Typed>;

/// What a built-in function is.
enum Form {
    /// An elementwise operation of the step IR.
    Unary(Unary),
    /// Anything else.
    Other(Lower),
}

/// One row of the table.
pub(super) struct Builtin {
    name: &'static str,
    /// The names of its arguments; a last `…` stands for any number of further ones.
    parameters: &'static [&'static str],
    form: Form,
}

const fn unary(name: &'static str, f: Unary) -> Builtin {
    Builtin { name, parameters: &["x"], form: Form::Unary(f) }
}

const fn other(name: &'static str, parameters: &'static [&'static str], lower: Lower) -> Builtin {
    Builtin { name, parameters, form: Form::Other(lower) }
}

const BUILTINS: &[Builtin] = &[
    unary("tanh", Unary::Tanh),
    unary("sigmoid", Unary::Sigmoid),
    unary("relu", Unary::Relu),
    unary("softplus", Unary::Softplus),
    unary("exp", Unary::Exp),
    unary("log", Unary::Log),
    unary("sqrt", Unary::Sqrt),
    unary("abs", Unary::Abs),
    unary("sign", Unary::Sign),
    other("elu", &["x"], elementwise::elu),
    other("step", &["x"], elementwise::step),
    other("min", &["a", "b"], elementwise::min),
    other("max", &["a", "b"], elementwise::max),
    other("where", &["condition", "a", "b"], elementwise::select),
    other("clip", &["x", "low", "high"], elementwise::clip),
    other("clip_st", &["x", "low", "high"], elementwise::clip_st),
    other("sign_st", &["x"], elementwise::sign_st),
    other("softclip", &["S", "d", "low", "high"], elementwise::softclip),
    other("leak", &["v", "drive", "tau", "dt"], elementwise::leak),
    other("stopgrad", &["x"], elementwise::stopgrad),
    other("softmax", &["v"], vectors::softmax),
    other("sumnorm", &["v"], vectors::sumnorm),
    other("layernorm", &["v"], vectors::layernorm),
    other("norm", &["v"], vectors::norm),
    other("sum", &["x"], vectors::sum),
    other("mean", &["x"], vectors::mean),
    other("maximum", &["v"], vectors::maximum),
    other("concat", &["a", "b", "…"], vectors::concat),
    other("slice", &["v", "start", "length"], vectors::slice),
    other("split", &["v", "k"], vectors::stray_split),
    other("rowsum", &["M"], matrices::rowsum),
    other("colsum", &["M"], matrices::colsum),
    other("l2row", &["M"], matrices::l2row),
    other("l2col", &["M"], matrices::l2col),
    other("rownorm", &["M"], matrices::rownorm),
    other("colnorm", &["M"], matrices::colnorm),
    other("frob", &["M"], matrices::frob),
    other("frobcap", &["M", "c"], matrices::frobcap),
    other("maxabs", &["M"], matrices::maxabs),
    other("maxnorm", &["M"], matrices::maxnorm),
];

/// The built-in function with this name.
pub(super) fn find(name: &str) -> Option<&'static Builtin> {
    BUILTINS.iter().find(|b| b.name == name)
}

/// The names of all built-in functions.
pub(super) fn names() -> impl Iterator<Item = &'static str> + Clone {
    BUILTINS.iter().map(|b| b.name)
}

impl Builtin {
    fn takes(&self, given: usize) -> bool {
        match self.parameters.last() {
            Some(&"…") => given + 1 >= self.parameters.len(),
            _ => given == self.parameters.len(),
        }
    }
}

impl<'a> Checker<'a> {
    /// A call of a built-in function or of a rule.
    pub(super) fn call(&mut self, e: &'a Expr, function: &'a Ident, arguments: &'a [Expr]) -> Option<Typed> {
        if let Some(rule) = self.rules.get(&function.name) {
            return self.expand(e, rule, arguments);
        }
        let Some(builtin) = find(&function.name) else {
            for a in arguments {
                self.expr(a);
            }
            // In a rule this was reported with the rule.
            if self.frames.is_empty() {
                let diagnostic = self.rules.unknown_function(function);
                self.report(diagnostic);
            }
            return None;
        };
        if !builtin.takes(arguments.len()) {
            self.wrong_arguments(e, builtin, arguments.len());
            return None;
        }
        let call = Call { expr: e, function, arguments };
        match builtin.form {
            Form::Unary(f) => {
                let x = self.expr(&arguments[0])?;
                self.builder.set_span(e.span);
                Some(Typed { value: self.builder.unary(f, x.value), kind: x.kind })
            }
            Form::Other(lower) => lower(self, &call),
        }
    }

    fn wrong_arguments(&mut self, e: &Expr, builtin: &Builtin, given: usize) {
        let usage = format!("{}({})", builtin.name, builtin.parameters.join(", "));
        let help = match (builtin.name, given) {
            ("max", 1) => "the largest element of a vector is `maximum(v)`".to_owned(),
            ("min", 1) => "the smallest element of a vector is `-maximum(-v)`".to_owned(),
            _ => format!("write `{usage}`"),
        };
        let message = format!("`{}` takes {}", builtin.name, count(builtin.parameters.len()));
        self.report(
            Diagnostic::error(codes::ARGUMENT_COUNT, message, e.span, format!("{} given", count(given)))
                .help(help),
        );
    }

    /// The values of expressions. All are checked before the first error ends the call.
    fn values(&mut self, list: &'a [Expr]) -> Option<Vec<Typed>> {
        let values: Vec<Option<Typed>> = list.iter().map(|a| self.expr(a)).collect();
        values.into_iter().collect()
    }

    /// The single argument, which must be a vector.
    fn vector_argument(&mut self, call: &Call<'a>, k: usize) -> Option<(Typed, Axis)> {
        let e = &call.arguments[k];
        let v = self.expr(e)?;
        self.builder.set_span(call.expr.span);
        match v.kind {
            Kind::Vector(axis) => Some((v, axis)),
            _ => {
                let help = match v.kind {
                    Kind::Post(_) | Kind::Pre(_) => "apply it to the whole vector and index the result",
                    Kind::Matrix { .. } => {
                        "for matrices there are rowsum, colsum, rownorm, colnorm, l2row, maxabs"
                    }
                    Kind::Vector(_) | Kind::Scalar => "it works along the axis of a vector",
                };
                self.argument_kind(call, e, v.kind, "a vector", help);
                None
            }
        }
    }

    /// The argument, which must be a matrix.
    fn matrix_argument(&mut self, call: &Call<'a>, k: usize) -> Option<(Typed, Axis, Axis)> {
        let e = &call.arguments[k];
        let m = self.expr(e)?;
        self.builder.set_span(call.expr.span);
        match m.kind {
            Kind::Matrix { post, pre } => Some((m, post, pre)),
            _ => {
                let help = match (call.function.name.as_str(), m.kind) {
                    ("frob" | "l2row" | "l2col", Kind::Vector(_)) => "the length of a vector is `norm(v)`",
                    ("maxabs", Kind::Vector(_)) => "write `maximum(abs(v))`",
                    (_, Kind::Post(_) | Kind::Pre(_)) => "the value must have both `[j]` and `[i]`",
                    _ => "it works on values per synapse, `[post, pre]`",
                };
                self.argument_kind(call, e, m.kind, "a matrix", help);
                None
            }
        }
    }

    fn argument_kind(&mut self, call: &Call<'a>, e: &Expr, kind: Kind, wanted: &str, help: &str) {
        let what = kind.describe(&self.axes);
        let mut diagnostic = Diagnostic::error(
            codes::ARGUMENT_KIND,
            format!("`{}` takes {wanted}", call.function.name),
            e.span,
            format!("this is {what}"),
        );
        if let Some((place, text)) = self.origin(e, None) {
            diagnostic = diagnostic.label(place, text);
        }
        self.report(diagnostic.help(help));
    }
}
