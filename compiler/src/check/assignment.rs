//! Whether the value of an equation has the axes of what it defines.

use super::checker::Checker;
use super::codes;
use super::equations::{Brackets, Equation, Goal};
use super::names::Symbol;
use super::types::{Kind, Typed, shape_text};
use crate::ir::{Axis, Shape, StateId, Value};
use grammar::ast::Expr;
use grammar::diag::Diagnostic;
use grammar::span::Span;

impl<'a> Checker<'a> {
    pub(super) fn fit_state(
        &mut self,
        s: StateId,
        brackets: Brackets,
        value: Typed,
        equation: &Equation<'a>,
        goal: &Goal<'a>,
    ) -> Option<Value> {
        let shape = self.states[s.index()].shape;
        let fits = match (brackets, shape) {
            (Brackets::None, _)
            | (Brackets::Both, Shape::Matrix { .. })
            | (Brackets::Post | Brackets::Pre, Shape::Vector(_)) => true,
            (Brackets::Shape(other), _) => other == shape,
            (Brackets::Both | Brackets::Post | Brackets::Pre, _) => false,
        };
        if !fits {
            let brackets = match shape {
                Shape::Matrix { .. } => "[j,i]",
                Shape::Vector(_) | Shape::Scalar => "",
            };
            let declared = self.declared_text(&goal.target.name.name, shape);
            let place = self.states[s.index()].span;
            self.report(
                Diagnostic::error(
                    codes::BAD_TARGET,
                    "the left side does not have the axes of the state",
                    goal.target.span,
                    "other axes than declared",
                )
                .label(place, declared)
                .help(format!("write `{}'{brackets} = …`", goal.target.name.name)),
            );
            return None;
        }
        self.fit(shape, brackets, value, equation, goal)
    }

    /// Brings a value to the shape that it must have on the left side.
    fn fit(
        &mut self,
        shape: Shape,
        brackets: Brackets,
        value: Typed,
        equation: &Equation<'a>,
        goal: &Goal<'a>,
    ) -> Option<Value> {
        let indexed = |post: bool| match brackets {
            Brackets::Post => post,
            Brackets::Pre => !post,
            Brackets::None | Brackets::Both | Brackets::Shape(_) => false,
        };
        let fits = match (shape, value.kind) {
            (_, Kind::Scalar) => true,
            (Shape::Vector(a), Kind::Vector(b)) => a == b,
            (Shape::Vector(a), Kind::Post(b)) => a == b && indexed(true),
            (Shape::Vector(a), Kind::Pre(b)) => a == b && indexed(false),
            (Shape::Matrix { post, .. }, Kind::Post(a)) => a == post,
            (Shape::Matrix { pre, .. }, Kind::Pre(a)) => a == pre,
            (Shape::Matrix { .. }, Kind::Matrix { .. }) => Kind::of(shape) == value.kind,
            (Shape::Scalar, _)
            | (Shape::Matrix { .. }, Kind::Vector(_))
            | (Shape::Vector(_), Kind::Matrix { .. }) => false,
        };
        if !fits {
            self.unfit(shape, value.kind, equation, goal);
            return None;
        }
        Some(self.lift(value, Kind::of(shape)))
    }

    /// Reports a value without the axes of the left side.
    fn unfit(&mut self, shape: Shape, kind: Kind, equation: &Equation<'a>, goal: &Goal<'a>) {
        let text = self.operand_text(equation.value);
        let name = &equation.title;
        let code = match (shape, kind) {
            (Shape::Matrix { post, pre }, Kind::Vector(a)) if a == post || a == pre => codes::ORIENTATION,
            _ => codes::ASSIGNMENT_AXES,
        };
        let help = self.unfit_help(shape, kind, &text, goal);
        let wanted = Kind::of(shape).describe(&self.axes);
        let given = kind.describe(&self.axes);
        let declared = match self.names.get(&goal.target.name.name).map(|e| (e.symbol.clone(), e.span)) {
            Some((Symbol::State(_), place)) => (place, self.declared_text(&goal.target.name.name, shape)),
            _ => (goal.target.span, format!("written as {wanted}")),
        };
        let mut diagnostic = Diagnostic::error(
            code,
            format!("`{name}` is {wanted}, but its equation gives {given}"),
            equation.value.span,
            format!("this is {given}"),
        )
        .label(declared.0, declared.1);
        if let Some((place, label)) = self.unfit_origin(shape, kind, equation.value) {
            diagnostic = diagnostic.label(place, label);
        }
        self.report(diagnostic.help(help));
    }

    /// Where the axis comes from that the left side does not have.
    fn unfit_origin(&self, shape: Shape, kind: Kind, value: &Expr) -> Option<(Span, String)> {
        let has: Vec<Axis> = super::parameters::dims(shape);
        let extra = super::parameters::dims(kind.shape()).into_iter().find(|a| !has.contains(a))?;
        self.origin(value, Some(extra))
    }

    fn unfit_help(&self, shape: Shape, kind: Kind, text: &str, goal: &Goal<'a>) -> String {
        let prime = if goal.target.primed { "'" } else { "" };
        let name = format!("{}{prime}", goal.target.name.name);
        match (shape, kind) {
            (Shape::Matrix { post, pre }, Kind::Vector(a)) => match (a == post, a == pre) {
                (true, true) => format!("write `{text}[j]` or `{text}[i]`"),
                (true, false) => format!("write `{text}[j]`"),
                (false, true) => format!("write `{text}[i]`"),
                (false, false) => format!("give the right side the axes `{}`", shape_text(&self.axes, shape)),
            },
            (Shape::Vector(_), Kind::Post(_)) => format!("write `{name}[j] = …`"),
            (Shape::Vector(_), Kind::Pre(_)) => format!("write `{name}[i] = …`"),
            (Shape::Vector(_), Kind::Matrix { .. }) => {
                "sum over one axis with `rowsum`, `colsum` or `@`".to_owned()
            }
            (Shape::Scalar, Kind::Vector(_)) => {
                "reduce the vector with `mean`, `sum` or a dot product, or declare the axis".to_owned()
            }
            (Shape::Matrix { post, pre }, Kind::Matrix { post: p, pre: q }) if (p, q) == (pre, post) => {
                "rows are post, columns are pre: exchange `[j]` and `[i]`".to_owned()
            }
            _ if goal.target.name.name.contains('.') => {
                "an input of a layer has the axes that its spec declares: hand over another value, or give the \
                 layer other sizes"
                    .to_owned()
            }
            _ => format!(
                "both sides need the same axes: declare `{}{}`, or change the right side",
                goal.target.name.name,
                shape_text(&self.axes, kind.shape())
            ),
        }
    }

    pub(super) fn fit_transient(
        &mut self,
        brackets: Brackets,
        value: Typed,
        equation: &Equation<'a>,
        goal: &Goal<'a>,
    ) -> Option<Typed> {
        let kind = match (brackets, value.kind) {
            (Brackets::Shape(shape), _) => {
                let found = self.fit(shape, brackets, value, equation, goal)?;
                return Some(Typed { value: found, kind: Kind::of(shape) });
            }
            (Brackets::None, Kind::Scalar | Kind::Vector(_) | Kind::Matrix { .. }) => value.kind,
            (Brackets::Post, Kind::Post(a) | Kind::Vector(a))
            | (Brackets::Pre, Kind::Pre(a) | Kind::Vector(a)) => Kind::Vector(a),
            (Brackets::Both, Kind::Matrix { .. }) => value.kind,
            _ => {
                self.unfit_transient(brackets, value.kind, equation, goal);
                return None;
            }
        };
        Some(Typed { value: value.value, kind })
    }

    fn unfit_transient(&mut self, brackets: Brackets, kind: Kind, equation: &Equation<'a>, goal: &Goal<'a>) {
        let name = &goal.target.name.name;
        let given = kind.describe(&self.axes);
        let help = match (brackets, kind) {
            (Brackets::Both, Kind::Post(_) | Kind::Pre(_) | Kind::Scalar) => {
                format!("name the axes, `{name}[N, N] = …`, to fill a whole matrix with it")
            }
            (_, Kind::Post(_)) => format!("write `{name}[j] = …`"),
            (_, Kind::Pre(_)) => format!("write `{name}[i] = …`"),
            (_, Kind::Matrix { .. }) => format!("write `{name}[j,i] = …`"),
            (_, Kind::Scalar) => format!("write `{name} = …`, or name its axis: `{name}[N] = …`"),
            (_, Kind::Vector(_)) => format!("write `{name} = …`"),
        };
        self.report(
            Diagnostic::error(
                codes::ASSIGNMENT_AXES,
                format!("the two sides of the equation for `{name}` differ in their indices"),
                equation.value.span,
                format!("this is {given}"),
            )
            .label(goal.target.span, "defined here")
            .help(help),
        );
    }
}
