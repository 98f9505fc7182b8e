//! Initial values: `= 0.1`, `~ uniform(0, 0.01)`, `~ linear`, and what the constraint of a parameter
//! allows of them.

use super::checker::Checker;
use super::codes;
use super::types::shape_text;
use crate::ir::{Axis, Shape};
use crate::model::{ConstExpr, Constraint, Init};
use grammar::ast::{BinaryOp, Constraint as AstConstraint, Expr, Ident, Initial};
use grammar::diag::{Diagnostic, did_you_mean};
use grammar::span::Span;

/// The known distributions with the names of their arguments.
const DISTRIBUTIONS: &[(&str, &[&str])] = &[
    ("uniform", &["low", "high"]),
    ("normal", &["mean", "sd"]),
    ("linear", &[]),
    ("orthogonal", &["gain"]),
    ("constant", &["value"]),
];

/// What an initialiser belongs to.
pub(super) struct Place<'n> {
    /// The declared name.
    pub(super) name: &'n Ident,
    /// Its shape.
    pub(super) shape: Shape,
    /// The shape of the declaration before it in the same statement: that of the weights, if this
    /// is their bias.
    pub(super) before: Option<Shape>,
}

impl Checker<'_> {
    /// The starting point that an initialiser describes; `= learn` is the caller's business.
    pub(super) fn initial(&mut self, initial: &Initial, place: &Place<'_>) -> Option<Init> {
        match initial {
            Initial::Value(e) => Some(Init::Constant(self.constant(e, "an initial value")?)),
            Initial::Learn { span, .. } => {
                self.report(
                    Diagnostic::error(
                        codes::BAD_DECLARATION,
                        "`= learn` is the initial value of a state",
                        *span,
                        format!("`{}` is no state", place.name.name),
                    )
                    .help("give a number, `= 0.1`, or a distribution, `~ uniform(0, 0.01)`"),
                );
                None
            }
            Initial::Distribution { name, arguments } => self.distribution(name, arguments, place),
        }
    }

    fn distribution(&mut self, name: &Ident, arguments: &[Expr], place: &Place<'_>) -> Option<Init> {
        let Some((_, parameters)) = DISTRIBUTIONS.iter().find(|(n, _)| *n == name.name) else {
            return self.unknown_distribution(name);
        };
        let values: Vec<Option<ConstExpr>> =
            arguments.iter().map(|e| self.constant(e, "an argument of a distribution")).collect();
        let values: Option<Vec<ConstExpr>> = values.into_iter().collect();
        let optional = name.name == "orthogonal" && arguments.is_empty();
        if arguments.len() != parameters.len() && !optional {
            let usage = match parameters {
                [] => format!("`~ {}` takes no arguments", name.name),
                _ => format!("write `~ {}({})`", name.name, parameters.join(", ")),
            };
            self.report(
                Diagnostic::error(
                    codes::ARGUMENT_COUNT,
                    format!("`{}` takes {}, not {}", name.name, count(parameters.len()), arguments.len()),
                    name.span,
                    format!("{} given", count(arguments.len())),
                )
                .help(usage),
            );
            return None;
        }
        let mut values = values?.into_iter();
        let mut next = || values.next().unwrap_or(ConstExpr::Number(1.0));
        match name.name.as_str() {
            "uniform" => self.uniform(next(), next(), name.span),
            "normal" => self.normal(next(), next(), name.span),
            "constant" => Some(Init::Constant(next())),
            "orthogonal" => self.orthogonal(next(), name, place),
            _ => Some(Init::FanIn(self.fan_in(name, place)?)),
        }
    }

    fn unknown_distribution(&mut self, name: &Ident) -> Option<Init> {
        let mut known = DISTRIBUTIONS.iter().map(|(n, _)| *n);
        let near = match name.name.as_str() {
            "U" | "unif" | "rand" => Some("uniform"),
            "N" | "gaussian" | "randn" | "gauss" => Some("normal"),
            "kaiming" | "xavier" | "glorot" => Some("linear"),
            other => did_you_mean(other, known.clone()),
        };
        let mut diagnostic = Diagnostic::error(
            codes::UNKNOWN_WORD,
            format!("there is no distribution `{}`", name.name),
            name.span,
            "not a distribution",
        );
        diagnostic = match near {
            _ if name.name == "dropout" => {
                diagnostic.help("dropout is noise, a factor drawn in training: `noise d[N] ~ dropout(0.5)`")
            }
            Some(near) => diagnostic.help(format!("did you mean `{near}`?")).fix(name.span, near),
            None => {
                let first = known.next().unwrap_or_default();
                let rest: Vec<&str> = known.collect();
                diagnostic.help(format!("the distributions are {first}, {}", rest.join(", ")))
            }
        };
        self.report(diagnostic);
        None
    }

    fn uniform(&mut self, low: ConstExpr, high: ConstExpr, span: Span) -> Option<Init> {
        if let (Some(a), Some(b)) = (self.declared_number(&low), self.declared_number(&high))
            && (a > b || !a.is_finite() || !b.is_finite())
        {
            self.bad_range(
                span,
                "the range of `uniform` is empty",
                &format!("from {a} to {b}"),
                "write the lower bound first",
            );
            return None;
        }
        Some(Init::Uniform(low, high))
    }

    fn normal(&mut self, mean: ConstExpr, sd: ConstExpr, span: Span) -> Option<Init> {
        if let Some(s) = self.declared_number(&sd)
            && (s < 0.0 || !s.is_finite())
        {
            let help = "write `~ normal(mean, sd)` with a standard deviation of at least 0";
            self.bad_range(span, "a standard deviation cannot be negative", &format!("it is {s}"), help);
            return None;
        }
        Some(Init::Normal(mean, sd))
    }

    fn orthogonal(&mut self, gain: ConstExpr, name: &Ident, place: &Place<'_>) -> Option<Init> {
        if matches!(place.shape, Shape::Matrix { .. }) {
            return Some(Init::Orthogonal(gain));
        }
        self.report(
            Diagnostic::error(
                codes::BAD_DECLARATION,
                "`orthogonal` starts a matrix",
                name.span,
                "its rows or columns are made orthogonal",
            )
            .label(place.name.span, format!("`{}` is no matrix", place.name.name))
            .help("use `~ normal(0, 0.1)` or `~ uniform(-0.1, 0.1)`"),
        );
        None
    }

    /// The number of inputs that a unit sums over: the pre axis of a matrix, the axis of a weight
    /// vector, and for a bias that of the weights declared directly before it.
    fn fan_in(&mut self, name: &Ident, place: &Place<'_>) -> Option<Axis> {
        match (place.shape, place.before) {
            (Shape::Matrix { pre, .. }, _) => Some(pre),
            (Shape::Vector(n), Some(Shape::Matrix { post, pre })) if n == post => Some(pre),
            (Shape::Vector(n), _) => Some(n),
            (Shape::Scalar, Some(Shape::Vector(n))) => Some(n),
            (Shape::Scalar, Some(Shape::Matrix { pre, .. })) => Some(pre),
            (Shape::Scalar, Some(Shape::Scalar) | None) => {
                self.report(
                    Diagnostic::error(
                        codes::BAD_DECLARATION,
                        format!("`linear` finds no fan-in for the scalar `{}`", place.name.name),
                        name.span,
                        "a bias takes the fan-in of the weights declared directly before it",
                    )
                    .label(place.name.span, "no weights before this name in the statement")
                    .help(format!(
                        "declare it behind its weights, `learn w[N], {0} ~ linear`, or write `{0} = 0.1`",
                        place.name.name
                    )),
                );
                None
            }
        }
    }

    /// The range that a constraint describes.
    pub(super) fn constraint(&mut self, constraint: Option<&AstConstraint>) -> Option<Constraint> {
        match constraint {
            None => Some(Constraint::Free),
            Some(AstConstraint::Interval { low, high, span }) => {
                let what = "the bound of a parameter";
                let (low, high) = (self.constant(low, what), self.constant(high, what));
                let (low, high) = (low?, high?);
                if let (Some(a), Some(b)) = (self.declared_number(&low), self.declared_number(&high))
                    && (a >= b || !a.is_finite() || !b.is_finite())
                {
                    let label = format!("from {a} to {b}");
                    self.bad_range(
                        *span,
                        "the range of the parameter is empty",
                        &label,
                        "write the lower bound first",
                    );
                    return None;
                }
                Some(Constraint::Interval(low, high))
            }
            Some(AstConstraint::Compare { op, bound, span }) => {
                let bound = self.constant(bound, "the bound of a parameter")?;
                match op {
                    BinaryOp::Greater | BinaryOp::GreaterEqual => Some(Constraint::Above(bound)),
                    BinaryOp::Less | BinaryOp::LessEqual => Some(Constraint::Below(bound)),
                    _ => {
                        let help = "write `> 0`, `< 0` or `in (0, 1)`";
                        self.bad_range(*span, "this restricts nothing", "not a range", help);
                        None
                    }
                }
            }
        }
    }

    /// Checks that a parameter starts inside of its range.
    pub(super) fn starts_inside(
        &mut self,
        name: &Ident,
        init: &Init,
        constraint: &Constraint,
        (init_span, constraint_span): (Span, Span),
    ) -> bool {
        let (low, high) = match constraint {
            Constraint::Free => return true,
            Constraint::Interval(a, b) => (self.declared_number(a), self.declared_number(b)),
            Constraint::Above(a) => (self.declared_number(a), Some(f64::INFINITY)),
            Constraint::Below(b) => (Some(f64::NEG_INFINITY), self.declared_number(b)),
        };
        let (Some(low), Some(high)) = (low, high) else { return true };
        let (inside, label) = match init {
            Init::Constant(c) => match self.declared_number(c) {
                Some(x) => (low < x && x < high, format!("starts at {x}")),
                None => return true,
            },
            Init::Uniform(a, b) => match (self.declared_number(a), self.declared_number(b)) {
                (Some(a), Some(b)) => (low <= a && b <= high, format!("starts between {a} and {b}")),
                _ => return true,
            },
            Init::Normal(..) | Init::FanIn(_) | Init::Orthogonal(_) | Init::Param(_) => {
                (false, "this distribution may leave the range".to_owned())
            }
        };
        if !inside {
            let help = match (low.is_finite(), high.is_finite()) {
                (true, true) => format!("start strictly inside, for example `= {}`", (low + high) / 2.0),
                (true, false) => format!("start above {low}, for example `= {}`", low + 0.1),
                _ => format!("start below {high}, for example `= {}`", high - 0.1),
            };
            let help = format!("{help}; the ends of the range are never reached");
            let message = format!("`{}` does not start inside of its range", name.name);
            self.report(
                Diagnostic::error(codes::BAD_RANGE, message, init_span, label)
                    .label(constraint_span, "its range")
                    .help(help),
            );
        }
        inside
    }

    /// Reports numbers in the wrong order or out of range.
    pub(super) fn bad_range(&mut self, span: Span, message: &str, label: &str, help: &str) {
        self.report(Diagnostic::error(codes::BAD_RANGE, message, span, label).help(help));
    }

    /// Whether a number written as text is known and the same: used for shapes in messages.
    pub(super) fn declared_text(&self, name: &str, shape: Shape) -> String {
        match shape {
            Shape::Scalar => format!("`{name}` is declared here, a scalar"),
            _ => format!("`{name}` is declared `{}` here", shape_text(&self.axes, shape)),
        }
    }
}

/// `one argument`, `2 arguments`.
pub(super) fn count(n: usize) -> String {
    match n {
        0 => "no arguments".to_owned(),
        1 => "one argument".to_owned(),
        n => format!("{n} arguments"),
    }
}
