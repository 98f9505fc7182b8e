//! Declarations of `learn` and `fixed`: shape, range, initial value, attributes.

use super::checker::Checker;
use super::codes;
use super::constants::number;
use super::initial::Place;
use super::names::{Factored, Symbol};
use crate::ir::{Linear, ParamId, Shape};
use crate::model::{ConstExpr, Constraint, Init, Param};
use grammar::ast::{
    Attribute, Constraint as AstConstraint, Initial, ParameterDeclaration, ParameterKind, StatementKind,
};
use grammar::diag::{Diagnostic, did_you_mean};
use grammar::span::Span;

/// The largest rank: beyond it a full matrix is smaller.
const MAX_RANK: f64 = 4096.0;

/// What the attributes of a declaration say.
struct Attributes {
    rank: Option<usize>,
    gradscale: ConstExpr,
}

impl<'a> Checker<'a> {
    /// Declares all parameters.
    pub(super) fn declare_parameters(&mut self) {
        let spec = self.spec;
        for statement in &spec.statements {
            if let StatementKind::Parameter { kind, declarations } = &statement.kind {
                let mut before = None;
                for (k, d) in declarations.iter().enumerate() {
                    let inherited = declarations[k..].iter().find_map(|d| d.initial.as_ref());
                    let shape = self.shape(&d.variable);
                    if self.declare(&d.variable.name, Symbol::Poison) {
                        self.declare_parameter(*kind, d, shape, inherited, before, &statement.doc);
                    }
                    before = shape;
                }
            }
        }
    }

    fn declare_parameter(
        &mut self,
        kind: ParameterKind,
        d: &'a ParameterDeclaration,
        shape: Option<Shape>,
        initial: Option<&'a Initial>,
        before: Option<Shape>,
        doc: &[String],
    ) {
        let constraint = self.constraint(d.constraint.as_ref());
        let attributes = self.attributes(d, shape);
        let init = match (initial, shape) {
            (None, _) => {
                self.missing_initial(d, shape);
                None
            }
            (Some(initial), Some(shape)) => {
                self.initial(initial, &Place { name: &d.variable.name, shape, before })
            }
            (Some(_), None) => None,
        };
        let (Some(shape), Some(constraint), Some(attributes), Some(init)) =
            (shape, constraint, attributes, init)
        else {
            return;
        };
        let places = (initial.map_or(d.span, initial_span), constraint_span(d));
        if !self.starts_inside(&d.variable.name, &init, &constraint, places) {
            return;
        }
        let param = Param {
            name: d.variable.name.name.clone(),
            doc: doc.to_vec(),
            shape,
            dims: dims(shape),
            learned: kind == ParameterKind::Learn,
            constraint,
            init,
            gradscale: attributes.gradscale,
            span: d.variable.span,
        };
        let symbol = self.parameter_symbol(param, attributes.rank);
        self.names.set(&d.variable.name.name, symbol);
    }

    /// Adds a parameter as one tensor or, with a rank, as its factors.
    fn parameter_symbol(&mut self, param: Param, rank: Option<usize>) -> Symbol {
        match (rank, param.shape) {
            (Some(rank), Shape::Matrix { post, pre }) => {
                let post_factor = self.add_factor(&param, "post", rank, post);
                let pre_factor = self.add_factor(&param, "pre", rank, pre);
                Symbol::Factored(Factored { post_factor, pre_factor, rank, post, pre })
            }
            _ => Symbol::Param(self.add_param(param)),
        }
    }

    /// Adds a parameter tensor to the model.
    pub(super) fn add_param(&mut self, param: Param) -> ParamId {
        self.params.push(param);
        ParamId(self.params.len() as u32 - 1)
    }

    fn add_factor(&mut self, param: &Param, side: &str, rank: usize, axis: crate::ir::Axis) -> ParamId {
        let linear = self.axes.linear(axis).clone();
        let flat = self.axis_sum(&Linear::default(), &linear, rank as i64);
        let rank_axis = self.axes.intern_constant(rank);
        self.add_param(Param {
            name: format!("{}.{side}", param.name),
            shape: Shape::Vector(flat),
            dims: vec![rank_axis, axis],
            ..param.clone()
        })
    }

    fn attributes(&mut self, d: &'a ParameterDeclaration, shape: Option<Shape>) -> Option<Attributes> {
        let mut found = Attributes { rank: None, gradscale: ConstExpr::Number(1.0) };
        let mut fine = true;
        for attribute in &d.attributes {
            fine &= match attribute.word.name.as_str() {
                "rank" => self.rank(attribute, d, shape).map(|r| found.rank = Some(r)).is_some(),
                "gradscale" => match &attribute.operand {
                    Some(e) => self.constant(e, "a gradient scale").map(|c| found.gradscale = c).is_some(),
                    None => self.missing_operand(attribute, "gradscale 1/N"),
                },
                "tied" => self.not_available(attribute.word.span, "`tied` parameters"),
                _ => self.unknown_attribute(attribute, &["rank", "gradscale"]),
            };
        }
        fine.then_some(found)
    }

    fn rank(
        &mut self,
        attribute: &Attribute,
        d: &ParameterDeclaration,
        shape: Option<Shape>,
    ) -> Option<usize> {
        let Some(operand) = &attribute.operand else {
            self.missing_operand(attribute, "rank 2");
            return None;
        };
        let rank = self.constant(operand, "a rank")?;
        let rank = number(&rank).filter(|r| r.fract() == 0.0 && (1.0..=MAX_RANK).contains(r));
        if rank.is_none() {
            let help = "write a positive whole number: `rank 2`";
            self.bad_range(operand.span, "this is no rank", "not a positive whole number", help);
        }
        match shape {
            Some(Shape::Scalar | Shape::Vector(_)) => {
                self.report(
                    Diagnostic::error(
                        codes::BAD_DECLARATION,
                        format!("`{}` is no matrix and has no rank", d.variable.name.name),
                        attribute.word.span,
                        "a matrix of rank r is kept as r pairs of vectors",
                    )
                    .label(d.variable.span, self.declared_text(&d.variable.name.name, shape?))
                    .help("remove `rank`, or give it two axes"),
                );
                None
            }
            Some(Shape::Matrix { .. }) | None => rank.map(|r| r as usize),
        }
    }

    fn missing_operand(&mut self, attribute: &Attribute, example: &str) -> bool {
        let word = &attribute.word;
        self.report(
            Diagnostic::error(
                codes::BAD_DECLARATION,
                format!("`{}` needs a value", word.name),
                word.span,
                "nothing follows",
            )
            .help(format!("for example `{example}`")),
        );
        false
    }

    /// Reports something reserved for later; always false.
    pub(super) fn not_available(&mut self, span: Span, what: &str) -> bool {
        self.report(
            Diagnostic::error(
                codes::NOT_AVAILABLE,
                format!("{what} are not available yet"),
                span,
                "reserved",
            )
            .help("declare one parameter and use it in both places"),
        );
        false
    }

    /// Reports an attribute that this declaration does not know; always false.
    pub(super) fn unknown_attribute(&mut self, attribute: &Attribute, known: &[&str]) -> bool {
        let word = &attribute.word;
        let diagnostic = Diagnostic::error(
            codes::UNKNOWN_WORD,
            format!("`{}` is no attribute of this declaration", word.name),
            word.span,
            "not understood",
        );
        self.report(match did_you_mean(&word.name, known.iter().copied()) {
            Some(near) => diagnostic.help(format!("did you mean `{near}`?")).fix(word.span, near),
            None => diagnostic.help(format!("it may carry {}", known.join(", "))),
        });
        false
    }

    fn missing_initial(&mut self, d: &ParameterDeclaration, shape: Option<Shape>) {
        let name = &d.variable.name.name;
        let example = match (shape, &d.constraint) {
            (Some(Shape::Scalar) | None, _) | (_, Some(_)) => format!("{} = 0.1", self.text(d.variable.span)),
            _ => format!("{} ~ linear", self.text(d.variable.span)),
        };
        self.report(
            Diagnostic::error(
                codes::MISSING_INITIAL,
                format!("`{name}` has no initial value"),
                d.variable.span,
                "neither here nor further right in this statement",
            )
            .help(format!("write `{example}`, or another start such as `~ uniform(0, 0.01)`"))
            .note("in a list, a parameter without an initial value takes the next one to its right"),
        );
    }
}

/// The axes of a shape, as a list.
pub(super) fn dims(shape: Shape) -> Vec<crate::ir::Axis> {
    match shape {
        Shape::Scalar => vec![],
        Shape::Vector(a) => vec![a],
        Shape::Matrix { post, pre } => vec![post, pre],
    }
}

/// The place of a constraint.
fn constraint_span(d: &ParameterDeclaration) -> Span {
    match &d.constraint {
        Some(AstConstraint::Interval { span, .. } | AstConstraint::Compare { span, .. }) => *span,
        None => d.span,
    }
}

/// The place of an initialiser.
pub(super) fn initial_span(initial: &Initial) -> Span {
    match initial {
        Initial::Value(e) => e.span,
        Initial::Learn { span, .. } => *span,
        Initial::Distribution { name, arguments } => {
            arguments.last().map_or(name.span, |last| name.span.to(last.span))
        }
    }
}

/// A parameter that nothing restricts and that starts at zero: a learned initial state.
pub(super) fn learned_start(name: &str, shape: Shape, init: Init, span: Span) -> Param {
    Param {
        name: format!("{name}.init"),
        doc: vec![format!("The initial value of the state `{name}`.")],
        shape,
        dims: dims(shape),
        learned: true,
        constraint: Constraint::Free,
        init,
        gradscale: ConstExpr::Number(1.0),
        span,
    }
}
