//! What a step hands out: outputs and penalty terms.

use super::checker::Checker;
use super::codes;
use super::types::{Kind, Typed, shape_text};
use crate::ir::{OutputId, Shape, Sink};
use crate::model::Output;
use grammar::ast::{Expr, ExprKind, OutputDeclaration, StatementKind};
use grammar::diag::Diagnostic;
use grammar::span::Span;

impl<'a> Checker<'a> {
    /// Whether an output has this name.
    pub(super) fn is_output(&self, name: &str) -> bool {
        self.spec.statements.iter().any(|s| match &s.kind {
            StatementKind::Output(list) => list.iter().any(|o| o.target.name.name == name),
            _ => false,
        })
    }

    /// Builds all outputs and penalties.
    pub(super) fn build_outputs(&mut self) {
        let spec = self.spec;
        let mut seen: Vec<(&'a str, Span)> = vec![];
        for statement in &spec.statements {
            match &statement.kind {
                StatementKind::Output(list) => {
                    for o in list {
                        self.build_output(o, &statement.doc, &mut seen);
                    }
                }
                StatementKind::Penalty(e) => self.build_penalty(e),
                _ => {}
            }
        }
    }

    fn build_output(&mut self, o: &'a OutputDeclaration, doc: &[String], seen: &mut Vec<(&'a str, Span)>) {
        let name = o.target.name.name.as_str();
        let value = match &o.value {
            Some(e) => self.expr(e).map(|v| (v, e.span)),
            None => self.output_name(o).map(|v| (v, o.target.span)),
        };
        if let Some((_, first)) = seen.iter().find(|(n, _)| *n == name) {
            self.report(
                Diagnostic::error(
                    codes::DEFINED_TWICE,
                    format!("there are two outputs named `{name}`"),
                    o.target.span,
                    "defined again here",
                )
                .label(*first, "first defined here")
                .help(format!("name one of them differently: `out {name}2 = …`")),
            );
            return;
        }
        seen.push((name, o.target.span));
        if o.value.is_some() && o.target.primed {
            self.report(
                Diagnostic::error(
                    codes::STRAY_PRIME,
                    format!("the output `{name}` takes no prime"),
                    o.target.span,
                    "an output is the value of this step",
                )
                .help(format!("write `out {name} = …`, or `out {name}'` for the state after the step")),
            );
            return;
        }
        let Some((value, span)) = value else { return };
        let Some(shape) = self.output_shape(o, value, span) else { return };
        let value = self.lift(value, Kind::of(shape));
        self.builder.name(value, name);
        let id = OutputId(self.outputs.len() as u32);
        self.outputs.push(Output { name: name.to_owned(), doc: doc.to_vec(), shape, span: o.target.span });
        self.builder.result(Sink::Output(id), value);
    }

    /// The value that `out y'` names.
    fn output_name(&mut self, o: &OutputDeclaration) -> Option<Typed> {
        let target = &o.target;
        if target.axes.is_some() {
            self.report(
                Diagnostic::error(
                    codes::BAD_TARGET,
                    format!("the output `{}` has no value", target.name.name),
                    target.span,
                    "axes, but no `=`",
                )
                .help(format!("write `out {} = …`, or leave the axes away", self.text(target.span))),
            );
            return None;
        }
        self.builder.set_span(target.span);
        self.name_value(&target.name.name, target.primed, target.span)
    }

    fn output_shape(&mut self, o: &OutputDeclaration, value: Typed, span: Span) -> Option<Shape> {
        let name = &o.target.name.name;
        let written = match &o.target.axes {
            Some(axes) => Some(self.shape_of_axes(axes, o.target.span)?),
            None => None,
        };
        let what = value.kind.describe(&self.axes);
        let help = match value.kind {
            Kind::Scalar | Kind::Vector(_) => None,
            Kind::Matrix { .. } => {
                Some("reduce it with `rowsum`, `mean` or `@`; `bpm run` hands out whole states at the end")
            }
            Kind::Post(_) | Kind::Pre(_) => Some("an output is no synaptic value: leave the index away"),
        };
        if let Some(help) = help {
            self.report(
                Diagnostic::error(
                    codes::TOO_MANY_AXES,
                    format!("the output `{name}` is neither a scalar nor a vector"),
                    span,
                    format!("this is {what}"),
                )
                .help(help),
            );
            return None;
        }
        match (written, value.kind.shape()) {
            (Some(shape @ (Shape::Vector(_) | Shape::Scalar)), Shape::Scalar) => Some(shape),
            (Some(shape), given) if shape != given => {
                let text = shape_text(&self.axes, given);
                let mut diagnostic = Diagnostic::error(
                    codes::ASSIGNMENT_AXES,
                    format!("the output `{name}` does not have the axes that it is written with"),
                    span,
                    format!("this is {what}"),
                )
                .label(o.target.span, "written with these axes");
                if let (Shape::Vector(a), Some(e)) = (given, &o.value)
                    && let Some((place, label)) = self.origin(e, Some(a))
                {
                    diagnostic = diagnostic.label(place, label);
                }
                self.report(diagnostic.help(format!("write `out {name}{text} = …`")));
                None
            }
            (_, given) => Some(given),
        }
    }

    fn build_penalty(&mut self, e: &'a Expr) {
        let Some(value) = self.expr(e) else { return };
        if value.kind == Kind::Scalar {
            self.builder.result(Sink::Penalty, value.value);
            return;
        }
        let what = value.kind.describe(&self.axes);
        let text = self.text(e.span);
        let inner = match &e.kind {
            ExprKind::Call { .. } | ExprKind::Name { .. } => text.to_owned(),
            _ => format!("({text})"),
        };
        let help = match value.kind {
            Kind::Post(_) | Kind::Pre(_) => {
                "leave the index away and reduce the vector with `mean`".to_owned()
            }
            _ => format!(
                "reduce it: `penalty mean{}`",
                if inner.starts_with('(') { inner } else { format!("({inner})") }
            ),
        };
        self.report(
            Diagnostic::error(
                codes::ARGUMENT_KIND,
                "a penalty is a scalar",
                e.span,
                format!("this is {what}"),
            )
            .help(help),
        );
    }
}
