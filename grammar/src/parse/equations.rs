//! Statements that say what happens in a step: penalties, holds, layers, equations.

use super::items::Builder;
use super::{Node, Rule, mistakes};
use crate::ast::{Expr, ExprKind, Ident, LayerArgument, StatementKind, Target};
use crate::span::Span;

impl<'s> Builder<'s, '_> {
    pub(super) fn penalty(&mut self, node: Node<'s>) -> StatementKind {
        match node.into_inner().find(|c| c.as_rule() == Rule::value) {
            Some(value) => StatementKind::Penalty(self.expr(value)),
            None => StatementKind::Error,
        }
    }

    pub(super) fn hold(&mut self, node: Node<'s>) -> StatementKind {
        let span = self.span(&node);
        let mut states = vec![];
        let mut condition = Expr { kind: ExprKind::Error, span };
        for child in node.into_inner() {
            match child.as_rule() {
                Rule::target => {
                    let target = self.target(child);
                    if target.primed || target.axes.is_some() {
                        let help = format!("write `{}`", target.name.name);
                        self.report(mistakes::clause(
                            target.span,
                            "`hold` takes bare names of states",
                            &help,
                        ));
                    }
                    states.push(target.name);
                }
                Rule::missing_name => self.no_name(&child, "a state"),
                Rule::hold_comma => self.missing_comma(&child),
                Rule::missing_when if !self.reported_in(span) => {
                    let help = "say when: `hold S when e`";
                    self.report(mistakes::clause(span, "`hold` without a condition", help));
                }
                Rule::value => condition = self.expr(child),
                _ => {}
            }
        }
        StatementKind::Hold { states, condition }
    }

    pub(super) fn layer(&mut self, node: Node<'s>) -> StatementKind {
        let span = self.span(&node);
        let mut found: Option<Ident> = None;
        let (mut used, mut arguments) = (None, vec![]);
        for child in node.into_inner() {
            match child.as_rule() {
                Rule::declared_name => found = child.into_inner().next().map(|n| self.ident(&n)),
                Rule::missing_name => self.no_name(&child, "a layer"),
                Rule::assign => self.assign(&child, None),
                Rule::missing_assign if !self.reported_in(span) => {
                    let place = self.end_before(child.as_span().start());
                    self.report(mistakes::missing_assign(place, "the layer"));
                }
                Rule::layer_use => {
                    let mut inner = child.into_inner();
                    used = inner.next().map(|n| Ident { name: n.as_str().to_owned(), span: self.span(&n) });
                    arguments = inner.next().map_or(vec![], |n| self.layer_arguments(n));
                }
                Rule::missing if !self.reported_in(span) => {
                    let help = "say of which spec: `layer one = cell(u, N = 200)`";
                    self.report(mistakes::clause(span, "a layer without a spec", help));
                }
                _ => {}
            }
        }
        match (found, used) {
            (Some(name), Some(spec)) => StatementKind::Layer { name, spec, arguments },
            _ => StatementKind::Error,
        }
    }

    fn layer_arguments(&mut self, node: Node<'s>) -> Vec<LayerArgument> {
        let span = self.span(&node);
        let mut arguments = vec![];
        for child in node.into_inner() {
            match child.as_rule() {
                Rule::layer_argument => {
                    let (mut name, mut value) = (None, Expr { kind: ExprKind::Error, span });
                    for part in child.into_inner() {
                        match part.as_rule() {
                            Rule::name => name = Some(self.ident(&part)),
                            _ => value = self.expr(part),
                        }
                    }
                    arguments.push(LayerArgument { name, value });
                }
                Rule::unclosed | Rule::wrong_inside if !self.reported_in(span) => {
                    let help = "inputs and axes, separated by commas: `layer one = cell(u, N = 200)`";
                    self.report(mistakes::clause(
                        span,
                        "the parentheses of a layer are not understood",
                        help,
                    ));
                }
                _ => {}
            }
        }
        arguments
    }

    pub(super) fn equation(&mut self, node: Node<'s>, modulator: bool) -> StatementKind {
        let span = self.span(&node);
        let (mut targets, mut tuple) = (vec![], false);
        let mut value = Expr { kind: ExprKind::Error, span };
        for child in node.into_inner() {
            match child.as_rule() {
                Rule::tuple => {
                    tuple = true;
                    targets = self.tuple(child);
                }
                Rule::missing_name if modulator => self.no_name(&child, "a variable"),
                Rule::missing_name => {
                    let sign = self.layout.next(child.as_span().start()).map_or(span, |t| t.span);
                    self.report(mistakes::nameless_equation(sign));
                }
                Rule::target | Rule::incomplete_target => targets.push(self.target(child)),
                Rule::assign => self.assign(&child, targets.first()),
                Rule::missing_assign => {
                    let place = self.end_before(child.as_span().start());
                    self.report(mistakes::missing_assign(place, "the left side"));
                    if self.next_is_end(child.as_span().start()) {
                        return StatementKind::Error;
                    }
                }
                Rule::value => value = self.expr(child),
                _ => {}
            }
        }
        StatementKind::Equation { modulator, targets, tuple, value }
    }

    fn tuple(&mut self, node: Node<'s>) -> Vec<Target> {
        let mut targets = vec![];
        for child in node.into_inner() {
            match child.as_rule() {
                Rule::missing_comma => self.missing_comma(&child),
                Rule::missing_name => self.no_name(&child, "a variable"),
                _ => targets.push(self.target(child)),
            }
        }
        targets
    }

    pub(super) fn target(&mut self, node: Node<'s>) -> Target {
        let span = self.span(&node);
        let name = Ident { name: String::new(), span };
        let mut target = Target { name, primed: false, axes: None, span };
        for child in node.into_inner() {
            let at = self.span(&child);
            match child.as_rule() {
                Rule::name | Rule::reserved_name => target.name = self.declared(&child, "a variable"),
                Rule::brackets => target.axes = Some(self.brackets(child)),
                Rule::late_prime => {
                    target.primed = true;
                    let brackets = Span::new(target.name.span.end as usize, at.start as usize);
                    let text = &self.source[brackets.range()];
                    self.report(mistakes::prime_after_index(at, brackets.to(at), text));
                }
                _ => {
                    target.primed = true;
                    self.check_prime(at, child.as_str());
                }
            }
        }
        target
    }

    /// Reports an assignment that is not written `=`.
    pub(super) fn assign(&mut self, node: &Node<'s>, target: Option<&Target>) {
        let (at, sign) = (self.span(node), node.as_str());
        match sign {
            "=" => {}
            "+=" | "-=" | "*=" | "/=" => {
                let name = target.map_or("S", |t| t.name.name.as_str());
                self.report(mistakes::compound_assign(at, sign, name));
            }
            _ => self.report(mistakes::wrong_assign(at, sign)),
        }
    }
}
