//! `hold S when e`: a state keeps its value, its whole equation is frozen.

use super::checker::Checker;
use super::codes;
use super::equations::Equation;
use super::names::Symbol;
use super::types::{Kind, Typed};
use crate::ir::{Shape, Source, StateId, Value};
use grammar::ast::{Expr, StatementKind};
use grammar::diag::Diagnostic;

impl<'a> Checker<'a> {
    /// `where(e, S, rhs)` for every condition under which the state keeps its value.
    pub(super) fn hold(
        &mut self,
        equation: &Equation<'a>,
        s: StateId,
        value: Option<Value>,
    ) -> Option<Value> {
        let shape = self.states[s.index()].shape;
        let name = self.states[s.index()].name.clone();
        let mut value = value;
        for e in &equation.holds {
            let condition = self.expr(e).and_then(|c| self.hold_condition(s, c, e));
            let old = self.load(Source::State(s), shape, &name).value;
            value = match (condition, value) {
                (Some(c), Some(v)) => Some(self.builder.select(c, old, v)),
                _ => None,
            };
        }
        value
    }

    fn hold_condition(&mut self, s: StateId, condition: Typed, e: &Expr) -> Option<Value> {
        let shape = self.states[s.index()].shape;
        let fits = match (shape, condition.kind) {
            (_, Kind::Scalar) => true,
            (Shape::Matrix { post, .. }, Kind::Post(a)) => a == post,
            (Shape::Matrix { pre, .. }, Kind::Pre(a)) => a == pre,
            _ => Kind::of(shape) == condition.kind,
        };
        if fits {
            return Some(self.lift(condition, Kind::of(shape)));
        }
        let state = &self.states[s.index()];
        let (name, place) = (state.name.clone(), state.span);
        let text = self.operand_text(e);
        let help = match (shape, condition.kind) {
            (Shape::Matrix { .. }, Kind::Vector(_)) => format!("write `{text}[j]` or `{text}[i]`"),
            _ => "a condition is a scalar, or has the axes of the state".to_owned(),
        };
        let what = condition.kind.describe(&self.axes);
        self.report(
            Diagnostic::error(
                codes::BAD_HOLD,
                format!("this condition does not fit the state `{name}`"),
                e.span,
                format!("this is {what}"),
            )
            .label(place, self.declared_text(&name, shape))
            .help(help),
        );
        None
    }

    /// Hands the conditions of `hold S when e` to the equations of their states.
    pub(super) fn collect_holds(&mut self, equations: &mut [Equation<'a>]) {
        let spec = self.spec;
        for statement in &spec.statements {
            let StatementKind::Hold { states, condition } = &statement.kind else { continue };
            for name in states {
                let entry = self.names.get(&name.name).map(|e| (e.symbol.clone(), e.span));
                match entry {
                    Some((Symbol::State(s), _)) => {
                        if let Some(equation) = equations.iter_mut().find(|e| e.state == Some(s)) {
                            equation.holds.push(condition);
                        }
                    }
                    Some((Symbol::Poison, _)) => {}
                    Some((symbol, place)) => self.report(
                        Diagnostic::error(
                            codes::BAD_HOLD,
                            format!("`{}` is {} and cannot be held", name.name, symbol.noun()),
                            name.span,
                            "only a state keeps its value",
                        )
                        .label(place, "declared here")
                        .help("name the state whose equation is to pause"),
                    ),
                    None => self.unknown_name(&name.name, name.span),
                }
            }
        }
    }
}
