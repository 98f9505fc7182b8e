//! Leaves away what serves only outputs of layers that nobody reads.
//!
//! What the outer spec says stays as it is, and so do the penalties of layers. A statement of a layer stays if it
//! defines or declares a name that is needed by one that stays.

use super::{Use, declared};
use grammar::ast::{Expr, ExprKind, Ident, Initial, Statement, StatementKind};
use grammar::visit::{self, Visitor};
use std::collections::BTreeSet;

/// Removes it.
pub(super) fn remove(outer: &[Statement], uses: &mut [Use<'_>]) {
    let mut needed = Names::default();
    for s in outer {
        needed.read(s);
    }
    let all: Vec<&Statement> = uses.iter().flat_map(|u| u.statements.iter()).collect();
    let mut waiting: Vec<&Statement> = vec![];
    for s in all {
        match s.kind {
            StatementKind::Penalty(_) => needed.read(s),
            _ => waiting.push(s),
        }
    }
    loop {
        let before = waiting.len();
        waiting.retain(|s| {
            let wanted = gives(s).iter().any(|name| needed.0.contains(*name));
            if wanted {
                needed.read(s);
            }
            !wanted
        });
        if waiting.len() == before {
            break;
        }
    }
    for u in uses {
        u.statements.retain_mut(|s| keep(s, &needed.0));
    }
}

/// The names that a statement gives a meaning, or decides about.
fn gives(s: &Statement) -> Vec<&str> {
    match &s.kind {
        StatementKind::Equation { targets, .. } => targets.iter().map(|t| t.name.name.as_str()).collect(),
        StatementKind::Hold { states, .. } => states.iter().map(|s| s.name.as_str()).collect(),
        _ => declared(s).into_iter().map(|d| d.name.as_str()).collect(),
    }
}

/// Takes what is not needed out of a statement; whether something is left.
fn keep(s: &mut Statement, needed: &BTreeSet<String>) -> bool {
    let wanted = |name: &Ident| needed.contains(&name.name);
    match &mut s.kind {
        StatementKind::Axis(all) => {
            all.retain(|a| wanted(&a.name));
            !all.is_empty()
        }
        StatementKind::Const(all) => {
            all.retain(|(name, _)| wanted(name));
            !all.is_empty()
        }
        StatementKind::Input { variables, .. } | StatementKind::Noise { variables, .. } => {
            variables.retain(|v| wanted(&v.name));
            !variables.is_empty()
        }
        StatementKind::Parameter { declarations, .. } => {
            // A parameter without an initial value takes the next one to its right.
            let mut next: Option<Initial> = None;
            for d in declarations.iter_mut().rev() {
                match &d.initial {
                    Some(_) => next.clone_from(&d.initial),
                    None => d.initial.clone_from(&next),
                }
            }
            declarations.retain(|d| wanted(&d.variable.name));
            !declarations.is_empty()
        }
        StatementKind::State { declarations, .. } => {
            declarations.retain(|d| wanted(&d.variable.name));
            !declarations.is_empty()
        }
        StatementKind::Hold { states, .. } => {
            states.retain(wanted);
            !states.is_empty()
        }
        StatementKind::Equation { targets, .. } => targets.iter().any(|t| wanted(&t.name)),
        StatementKind::Output(_) | StatementKind::Layer { .. } => false,
        StatementKind::Penalty(_) | StatementKind::Error => true,
    }
}

/// The names that are read.
#[derive(Default)]
struct Names(BTreeSet<String>);

impl Names {
    fn read(&mut self, s: &Statement) {
        // The walk is made for rewriting; the copy is small.
        let mut kind = s.kind.clone();
        visit::statement(&mut kind, self);
        if let StatementKind::Output(all) = &s.kind {
            let short = all.iter().filter(|o| o.value.is_none());
            self.0.extend(short.map(|o| o.target.name.name.clone()));
        }
    }
}

impl Visitor for Names {
    fn expr(&mut self, e: &mut Expr) {
        if let ExprKind::Name { name, .. } = &e.kind {
            self.0.insert(name.clone());
        }
    }
}
