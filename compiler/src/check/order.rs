//! The order of evaluation. Text order has no meaning: equations are sorted so that each stands
//! behind those it needs, and equations that need each other are an error that prints the way round.

use super::checker::Checker;
use super::codes;
use super::equations::Equation;
use super::names::Symbol;
use grammar::ast::{Expr, ExprKind};
use grammar::diag::Diagnostic;
use grammar::span::Span;

/// An equation that another one needs, and where it says so.
#[derive(Clone, Copy)]
struct Need {
    equation: usize,
    span: Span,
}

/// How far the search has come with an equation.
#[derive(Clone, Copy, PartialEq)]
enum Mark {
    New,
    Open,
    Done,
}

impl<'a> Checker<'a> {
    /// The equations in an order in which they can be evaluated. Those on a cycle come back as the
    /// second list.
    pub(super) fn order(&mut self, equations: &[Equation<'a>]) -> (Vec<usize>, Vec<usize>) {
        let needs: Vec<Vec<Need>> = equations.iter().map(|e| self.needs(e, equations)).collect();
        let mut marks = vec![Mark::New; equations.len()];
        let (mut order, mut cyclic) = (vec![], vec![]);
        for start in 0..equations.len() {
            if marks[start] != Mark::New {
                continue;
            }
            // The open equations, each with the number of its needs already followed.
            let mut path: Vec<(usize, usize)> = vec![(start, 0)];
            marks[start] = Mark::Open;
            while let Some((k, next)) = path.last_mut() {
                let (k, need) = (*k, needs[*k].get(*next).copied());
                *next += 1;
                match need {
                    None => {
                        marks[k] = Mark::Done;
                        order.push(k);
                        path.pop();
                    }
                    Some(need) => match marks[need.equation] {
                        Mark::New => {
                            marks[need.equation] = Mark::Open;
                            path.push((need.equation, 0));
                        }
                        Mark::Open => self.cycle(equations, &needs, &path, need.equation, &mut cyclic),
                        Mark::Done => {}
                    },
                }
            }
        }
        (order, cyclic)
    }

    /// The equations whose values an equation reads.
    fn needs(&self, equation: &Equation<'a>, equations: &[Equation<'a>]) -> Vec<Need> {
        let mut found = vec![];
        let mut expressions = vec![equation.value];
        expressions.extend(equation.holds.iter());
        for e in expressions {
            self.reads(e, &mut |name, primed, span| {
                let need = match (self.names.get(name).map(|n| &n.symbol), primed) {
                    (Some(Symbol::Transient(k)), _) => Some(*k),
                    (Some(Symbol::State(s)), true) => equations.iter().position(|q| q.state == Some(*s)),
                    _ => None,
                };
                if let Some(equation) = need {
                    found.push(Need { equation, span });
                }
            });
        }
        found
    }

    /// Calls `f` for every name in an expression.
    pub(super) fn reads(&self, e: &Expr, f: &mut impl FnMut(&str, bool, Span)) {
        match &e.kind {
            ExprKind::Number(_) | ExprKind::Error => {}
            ExprKind::Name { name, primed } => f(name, *primed, e.span),
            ExprKind::Index { base: x, .. } | ExprKind::Transpose(x) | ExprKind::Negate(x) => {
                self.reads(x, f)
            }
            ExprKind::Binary { left, right, .. } => {
                self.reads(left, f);
                self.reads(right, f);
            }
            ExprKind::Call { arguments, .. } => {
                for a in arguments {
                    self.reads(a, f);
                }
            }
        }
    }

    /// Reports the cycle that ends the open path.
    fn cycle(
        &mut self,
        equations: &[Equation<'a>],
        needs: &[Vec<Need>],
        path: &[(usize, usize)],
        back: usize,
        cyclic: &mut Vec<usize>,
    ) {
        let from = path.iter().position(|(k, _)| *k == back).unwrap_or(0);
        let ring: Vec<usize> = path[from..].iter().map(|(k, _)| *k).collect();
        // An equation that was reported on one cycle is not reported on another.
        let known = ring.iter().any(|k| cyclic.contains(k));
        cyclic.extend(&ring);
        if known {
            return;
        }
        let mut names: Vec<String> = ring.iter().map(|&k| equations[k].title.clone()).collect();
        names.push(names[0].clone());
        let first = &equations[ring[0]];
        let mut diagnostic = Diagnostic::error(
            codes::CYCLE,
            format!("these values need each other within one step: {}", names.join(" -> ")),
            first.span,
            format!("`{}` is defined here", names[0]),
        );
        for (k, &(equation, next)) in path[from..].iter().enumerate() {
            if let Some(need) = needs[equation].get(next.saturating_sub(1)) {
                let text = format!("`{}` needs `{}`", names[k], names[k + 1]);
                diagnostic = diagnostic.label(need.span, text);
            }
        }
        let state = ring.iter().find_map(|&k| equations[k].state.map(|_| &equations[k].title));
        diagnostic = match state {
            Some(title) => diagnostic.help(format!(
                "break the cycle by reading a value before the step: `{}` instead of `{title}`",
                title.trim_end_matches('\'')
            )),
            None => diagnostic.help("make one of them a state and read its value before the step"),
        };
        self.report(diagnostic);
    }
}
