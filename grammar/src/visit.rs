//! Walks over the expressions and names of a statement, for tools that rewrite trees.

use crate::ast::{
    Attribute, Constraint, Expr, ExprKind, Ident, Initial, Reset, StatementKind, Target, Variable,
};

/// What a walk is told. Names of functions, distributions, attributes and roles are no names.
pub trait Visitor {
    /// A name that is declared, defined or held.
    fn name(&mut self, _name: &mut Ident) {}
    /// The name of an output that has a value of its own.
    fn output(&mut self, name: &mut Ident) {
        self.name(name);
    }
    /// An expression, after its parts.
    fn expr(&mut self, _expr: &mut Expr) {}
}

/// Walks over a statement.
pub fn statement(kind: &mut StatementKind, v: &mut impl Visitor) {
    match kind {
        StatementKind::Axis(all) => {
            for a in all {
                v.name(&mut a.name);
                a.size.iter_mut().for_each(|e| expr(e, v));
            }
        }
        StatementKind::Const(all) => {
            for (name, value) in all {
                v.name(name);
                expr(value, v);
            }
        }
        StatementKind::Input { variables, .. } => variables.iter_mut().for_each(|x| variable(x, v)),
        StatementKind::Noise { variables, initial: start, .. } => {
            variables.iter_mut().for_each(|x| variable(x, v));
            start.iter_mut().for_each(|i| initial(i, v));
        }
        StatementKind::Parameter { declarations, .. } => {
            for d in declarations {
                variable(&mut d.variable, v);
                d.constraint.iter_mut().for_each(|c| constraint(c, v));
                d.initial.iter_mut().for_each(|i| initial(i, v));
                attributes(&mut d.attributes, v);
            }
        }
        StatementKind::State { declarations, .. } => {
            for d in declarations {
                variable(&mut d.variable, v);
                d.initial.iter_mut().for_each(|i| initial(i, v));
                if let Some(Reset::Every { episodes, .. }) = &mut d.reset {
                    expr(episodes, v);
                }
                attributes(&mut d.attributes, v);
            }
        }
        StatementKind::Equation { targets, value, .. } => {
            targets.iter_mut().for_each(|t| target(t, v));
            expr(value, v);
        }
        StatementKind::Output(all) => {
            for o in all {
                match &o.value {
                    Some(_) => v.output(&mut o.target.name),
                    None => v.name(&mut o.target.name),
                }
                o.target.axes.iter_mut().flatten().for_each(|e| expr(e, v));
                o.value.iter_mut().for_each(|e| expr(e, v));
            }
        }
        StatementKind::Penalty(e) => expr(e, v),
        StatementKind::Hold { states, condition } => {
            states.iter_mut().for_each(|s| v.name(s));
            expr(condition, v);
        }
        StatementKind::Layer { name, arguments, .. } => {
            v.name(name);
            arguments.iter_mut().for_each(|a| expr(&mut a.value, v));
        }
        StatementKind::Error => {}
    }
}

fn variable(x: &mut Variable, v: &mut impl Visitor) {
    v.name(&mut x.name);
    x.axes.iter_mut().for_each(|e| expr(e, v));
}

fn target(t: &mut Target, v: &mut impl Visitor) {
    v.name(&mut t.name);
    t.axes.iter_mut().flatten().for_each(|e| expr(e, v));
}

fn attributes(all: &mut [Attribute], v: &mut impl Visitor) {
    all.iter_mut().filter_map(|a| a.operand.as_mut()).for_each(|e| expr(e, v));
}

fn constraint(c: &mut Constraint, v: &mut impl Visitor) {
    match c {
        Constraint::Interval { low, high, .. } => {
            expr(low, v);
            expr(high, v);
        }
        Constraint::Compare { bound, .. } => expr(bound, v),
    }
}

fn initial(i: &mut Initial, v: &mut impl Visitor) {
    match i {
        Initial::Value(e) => expr(e, v),
        Initial::Learn { start, .. } => start.iter_mut().for_each(|s| initial(s, v)),
        Initial::Distribution { arguments, .. } => arguments.iter_mut().for_each(|e| expr(e, v)),
    }
}

/// Walks over an expression.
pub fn expr(e: &mut Expr, v: &mut impl Visitor) {
    match &mut e.kind {
        ExprKind::Number(_) | ExprKind::Name { .. } | ExprKind::Error => {}
        ExprKind::Index { base, .. } => expr(base, v),
        ExprKind::Transpose(x) | ExprKind::Negate(x) => expr(x, v),
        ExprKind::Binary { left, right, .. } => {
            expr(left, v);
            expr(right, v);
        }
        ExprKind::Call { arguments, .. } => arguments.iter_mut().for_each(|a| expr(a, v)),
    }
    v.expr(e);
}
