//! The axes of layers: what the text tells of the axes of an argument, before anything is checked.
//!
//! Nothing here is an error: where the text does not tell, the layer must say. A wrong guess is impossible to miss,
//! since the checker judges the equation that gives the layer its input.

use super::{Given, Outer, Use};
use crate::check::codes;
use grammar::ast::{
    AxisDeclaration, BinaryOp, Expr, ExprKind, Index, Statement, StatementKind, Target, Variable,
};
use grammar::diag::Diagnostic;
use grammar::span::Span;
use std::collections::BTreeMap;

/// How far names are followed.
const MAX_STEPS: usize = 64;

impl Outer<'_> {
    /// Gives the axes of the layers their sizes.
    pub(super) fn sizes(&mut self, uses: &mut [Use<'_>], given: &[Given]) {
        let all = uses.iter().flat_map(|u| u.statements.iter()).chain(&self.spec.statements);
        let known = Known::collect(all);
        let mut found: Vec<BTreeMap<String, Expr>> = vec![];
        for (u, g) in uses.iter().zip(given) {
            let mut sizes = g.axes.clone();
            for (v, _) in u.variables() {
                let ([axis], Some(argument)) = (v.axes.as_slice(), g.inputs.get(&v.name.name)) else {
                    continue;
                };
                let ExprKind::Name { name, primed: false } = &axis.kind else { continue };
                if let Some(Extent::Vector(size)) = known.extent(argument, MAX_STEPS) {
                    sizes.entry(name.clone()).or_insert(Expr { span: argument.span, ..size });
                }
            }
            found.push(sizes);
        }
        for (u, sizes) in uses.iter_mut().zip(found) {
            let prefix = u.name.name.len() + 1;
            for statement in &mut u.statements {
                let StatementKind::Axis(all) = &mut statement.kind else { continue };
                for axis in all {
                    if let Some(size) = sizes.get(&axis.name.name[prefix..]) {
                        axis.size = Some(size.clone());
                    }
                }
            }
            let open = |s: &Statement| match &s.kind {
                StatementKind::Axis(all) => all
                    .iter()
                    .filter(|a: &&AxisDeclaration| a.size.is_none())
                    .map(|a| a.name.clone())
                    .collect(),
                _ => vec![],
            };
            for axis in u.statements.iter().flat_map(open) {
                let own = &axis.name[prefix..];
                let message = format!("the layer `{}` needs the size of its axis `{own}`", u.name.name);
                self.diagnostics.push(
                    Diagnostic::error(codes::BAD_LAYER, message, u.spec.span, "not given here")
                        .label(axis.span, "open in its spec")
                        .help(format!("write `{}({own} = …)`, with a number or an axis", u.spec.name)),
                );
            }
        }
    }
}

/// What a value has for axes.
enum Extent {
    Scalar,
    Vector(Expr),
    Matrix(Expr, Expr),
}

/// What a spec declares and defines.
struct Known<'s> {
    declared: BTreeMap<&'s str, &'s [Expr]>,
    defined: BTreeMap<&'s str, (&'s [Target], &'s Target, &'s Expr)>,
}

impl<'s> Known<'s> {
    fn collect(statements: impl Iterator<Item = &'s Statement>) -> Self {
        let mut known = Known { declared: BTreeMap::new(), defined: BTreeMap::new() };
        for s in statements {
            match &s.kind {
                StatementKind::Axis(all) => all.iter().for_each(|a| known.number(&a.name.name)),
                StatementKind::Const(all) => all.iter().for_each(|(name, _)| known.number(&name.name)),
                StatementKind::Input { variables, .. } | StatementKind::Noise { variables, .. } => {
                    variables.iter().for_each(|v| known.variable(v));
                }
                StatementKind::Parameter { declarations, .. } => {
                    declarations.iter().for_each(|d| known.variable(&d.variable));
                }
                StatementKind::State { declarations, .. } => {
                    declarations.iter().for_each(|d| known.variable(&d.variable));
                }
                StatementKind::Equation { targets, value, .. } => {
                    for t in targets.iter().filter(|t| !t.primed) {
                        known.defined.insert(&t.name.name, (targets, t, value));
                    }
                }
                _ => {}
            }
        }
        known
    }

    fn number(&mut self, name: &'s str) {
        self.declared.insert(name, &[]);
    }

    fn variable(&mut self, v: &'s Variable) {
        self.declared.insert(&v.name.name, &v.axes);
    }

    fn extent(&self, e: &Expr, steps: usize) -> Option<Extent> {
        let steps = steps.checked_sub(1)?;
        match &e.kind {
            ExprKind::Number(_) | ExprKind::Index { index: Index::Element(_), .. } => Some(Extent::Scalar),
            ExprKind::Name { name, .. } => self.name(name, steps),
            ExprKind::Index { .. } | ExprKind::Error => None,
            ExprKind::Transpose(x) => match self.extent(x, steps)? {
                Extent::Matrix(post, pre) => Some(Extent::Matrix(pre, post)),
                _ => None,
            },
            ExprKind::Negate(x) => self.extent(x, steps),
            ExprKind::Binary { op: BinaryOp::Dot, .. } => Some(Extent::Scalar),
            ExprKind::Binary { op: BinaryOp::Contract, left, .. } => match self.extent(left, steps)? {
                Extent::Matrix(post, _) => Some(Extent::Vector(post)),
                _ => None,
            },
            ExprKind::Binary { left, right, .. } => self.widest([&**left, &**right], steps),
            ExprKind::Call { function, arguments } => self.call(&function.name, arguments, steps),
        }
    }

    fn name(&self, name: &str, steps: usize) -> Option<Extent> {
        let written = |axes: &[Expr]| match axes {
            [] => Some(Extent::Scalar),
            [a] => Some(Extent::Vector(a.clone())),
            [a, b] => Some(Extent::Matrix(a.clone(), b.clone())),
            _ => None,
        };
        if let Some(axes) = self.declared.get(name) {
            return written(axes);
        }
        let (targets, target, value) = self.defined.get(name)?;
        let index = |e: &Expr| matches!(&e.kind, ExprKind::Name { name, .. } if name == "i" || name == "j");
        match &target.axes {
            Some(axes) if axes.iter().any(index) => None,
            Some(axes) => written(axes),
            None if targets.len() == 1 => self.extent(value, steps),
            None => self.part(targets.len(), value, steps),
        }
    }

    /// A part of `split(v, k)`, where the axis of `v` is written as `k*N`.
    fn part(&self, count: usize, value: &Expr, steps: usize) -> Option<Extent> {
        let ExprKind::Call { arguments, .. } = &value.kind else { return None };
        let Extent::Vector(axis) = self.extent(arguments.first()?, steps)? else { return None };
        let ExprKind::Binary { op: BinaryOp::Mul, left, right, .. } = axis.kind else { return None };
        let is_count = |e: &Expr| matches!(e.kind, ExprKind::Number(x) if x == count as f64);
        match (is_count(&left), is_count(&right)) {
            (true, _) => Some(Extent::Vector(*right)),
            (_, true) => Some(Extent::Vector(*left)),
            _ => None,
        }
    }

    /// The axes of operands that are combined element by element.
    fn widest<'e>(&self, operands: impl IntoIterator<Item = &'e Expr>, steps: usize) -> Option<Extent> {
        let mut all_known = true;
        for e in operands {
            match self.extent(e, steps) {
                Some(Extent::Scalar) => {}
                Some(other) => return Some(other),
                None => all_known = false,
            }
        }
        all_known.then_some(Extent::Scalar)
    }

    fn call(&self, function: &str, arguments: &[Expr], steps: usize) -> Option<Extent> {
        let first = || self.extent(arguments.first()?, steps);
        match function {
            "sum" | "mean" | "norm" | "maximum" | "frob" | "maxabs" => Some(Extent::Scalar),
            "rowsum" | "rownorm" | "colsum" | "colnorm" => match (function.starts_with("row"), first()?) {
                (true, Extent::Matrix(a, _)) | (false, Extent::Matrix(_, a)) => Some(Extent::Vector(a)),
                _ => None,
            },
            "slice" => Some(Extent::Vector(arguments.get(2)?.clone())),
            "concat" => {
                let mut sum: Option<Expr> = None;
                for a in arguments {
                    let axis = match self.extent(a, steps)? {
                        Extent::Vector(axis) => axis,
                        Extent::Scalar => Expr { kind: ExprKind::Number(1.0), span: a.span },
                        Extent::Matrix(..) => return None,
                    };
                    sum = Some(match sum {
                        None => axis,
                        Some(left) => plus(left, axis, a.span),
                    });
                }
                sum.map(Extent::Vector)
            }
            _ if crate::check::builtins::find(function).is_some() => self.widest(arguments, steps),
            _ => None,
        }
    }
}

fn plus(left: Expr, right: Expr, span: Span) -> Expr {
    let kind =
        ExprKind::Binary { op: BinaryOp::Add, op_span: span, left: Box::new(left), right: Box::new(right) };
    Expr { kind, span }
}
