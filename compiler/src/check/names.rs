//! Which name means what. A spec has one namespace: axes, constants, parameters, inputs, states and
//! transients share it, and a name is defined once. Functions and rules are named apart, as are
//! outputs.

use super::checker::Checker;
use super::codes;
use crate::ir::{Axis, InputId, ParamId, Shape, StateId};
use crate::model::ConstExpr;
use grammar::ast::Ident;
use grammar::diag::{Diagnostic, did_you_mean};
use grammar::span::Span;
use std::collections::BTreeMap;

/// What a name stands for.
#[derive(Clone, Debug)]
pub(super) enum Symbol {
    /// Something whose declaration has an error, which has been reported.
    Poison,
    /// An axis; a number in expressions.
    Axis(Axis),
    /// A compile-time number.
    Constant(ConstExpr),
    /// A parameter tensor.
    Param(ParamId),
    /// A matrix of rank `rank`, kept as factors.
    Factored(Factored),
    /// An input or noise.
    Input(InputId),
    /// A state.
    State(StateId),
    /// A transient: defined by the equation with this index.
    Transient(usize),
}

/// A parameter kept as `rank` pairs of vectors.
#[derive(Clone, Copy, Debug)]
pub(super) struct Factored {
    pub(super) post_factor: ParamId,
    pub(super) pre_factor: ParamId,
    pub(super) rank: usize,
    pub(super) post: Axis,
    pub(super) pre: Axis,
}

/// A name's meaning and the place that gives it.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub(super) symbol: Symbol,
    pub(super) span: Span,
}

/// All names of a spec.
#[derive(Clone, Debug, Default)]
pub(super) struct Names {
    entries: BTreeMap<String, Entry>,
}

impl Names {
    /// The entry of a name.
    pub(super) fn get(&self, name: &str) -> Option<&Entry> {
        self.entries.get(name)
    }

    /// Every name with its entry, in alphabetical order.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&str, &Entry)> {
        self.entries.iter().map(|(n, e)| (n.as_str(), e))
    }

    /// Silences whatever would be said about a name that has been reported.
    pub(super) fn poison(&mut self, name: &Ident) {
        let entry = Entry { symbol: Symbol::Poison, span: name.span };
        self.entries.entry(name.name.clone()).or_insert(entry).symbol = Symbol::Poison;
    }

    /// Gives a declared name its meaning.
    pub(super) fn set(&mut self, name: &str, symbol: Symbol) {
        if let Some(entry) = self.entries.get_mut(name) {
            entry.symbol = symbol;
        }
    }
}

impl Symbol {
    /// The kind of thing, with its article, in the user's words.
    pub(super) fn noun(&self) -> &'static str {
        match self {
            Symbol::Poison => "a name",
            Symbol::Axis(_) => "an axis",
            Symbol::Constant(_) => "a constant",
            Symbol::Param(_) | Symbol::Factored(_) => "a parameter",
            Symbol::Input(_) => "an input",
            Symbol::State(_) => "a state",
            Symbol::Transient(_) => "a transient",
        }
    }
}

/// The candidate that a name was probably meant to be: the same in other case, or a slip away.
pub(super) fn nearest<'n>(name: &str, candidates: impl Iterator<Item = &'n str> + Clone) -> Option<&'n str> {
    candidates.clone().find(|c| c.eq_ignore_ascii_case(name)).or_else(|| did_you_mean(name, candidates))
}

impl Checker<'_> {
    /// Declares a name; a second declaration is an error and does not count.
    /// Returns whether the name is new.
    pub(super) fn declare(&mut self, name: &Ident, symbol: Symbol) -> bool {
        if name.name == "i" || name.name == "j" {
            let what = if name.name == "j" { "the post neuron" } else { "the pre neuron" };
            self.report(
                Diagnostic::error(
                    codes::RESERVED_NAME,
                    format!("`{}` is reserved", name.name),
                    name.span,
                    format!("`{}` is the index of {what} in synaptic equations", name.name),
                )
                .help("choose another name"),
            );
            self.names.poison(name);
            return false;
        }
        if let Some(first) = self.names.get(&name.name) {
            let diagnostic = Diagnostic::error(
                codes::DEFINED_TWICE,
                format!("`{}` is defined twice", name.name),
                name.span,
                "defined again here",
            )
            .label(first.span, format!("first defined here, as {}", first.symbol.noun()))
            .help("every name is defined once per spec; rename or remove one of the two");
            self.report(diagnostic);
            // Which of two declarations is meant is unknown; a second equation changes nothing.
            if !matches!(symbol, Symbol::Transient(_)) {
                self.names.poison(name);
            }
            return false;
        }
        self.names.entries.insert(name.name.clone(), Entry { symbol, span: name.span });
        true
    }

    /// The declared shape of what a name stands for, if it has one that is known before the
    /// equations are checked.
    pub(super) fn declared_shape(&self, name: &str) -> Option<Shape> {
        match self.names.get(name)?.symbol {
            Symbol::Param(p) => Some(self.params[p.index()].shape),
            Symbol::Factored(f) => Some(Shape::Matrix { post: f.post, pre: f.pre }),
            Symbol::Input(u) => Some(self.inputs[u.index()].shape),
            Symbol::State(s) => Some(self.states[s.index()].shape),
            Symbol::Axis(_) | Symbol::Constant(_) => Some(Shape::Scalar),
            Symbol::Poison | Symbol::Transient(_) => None,
        }
    }

    /// Reports a name that stands for nothing, with the nearest name that does.
    pub(super) fn unknown_name(&mut self, name: &str, span: Span) {
        let candidates: Vec<String> = self.names.entries.keys().cloned().collect();
        let mut diagnostic = Diagnostic::error(
            codes::UNKNOWN_NAME,
            format!("there is no `{name}` in this spec"),
            span,
            "not declared and not defined by any equation",
        );
        let near = nearest(name, candidates.iter().map(String::as_str));
        if let Some(near) = near {
            let place = self.names.get(near).map(|e| e.span);
            diagnostic = diagnostic.help(format!("did you mean `{near}`?"));
            if let Some(place) = place {
                diagnostic = diagnostic.label(place, format!("`{near}` is defined here"));
            }
        } else if self.is_output(name) {
            diagnostic = diagnostic.help(format!(
                "`{name}` is an output, which cannot be read; define `{name} = …` and write `out {name}`"
            ));
        } else if name == "i" || name == "j" {
            diagnostic = diagnostic.help("`j` and `i` stand in brackets only: `y[j]`, `y[i]`");
        } else {
            diagnostic = diagnostic
                .help(format!("declare it, for example `learn {name} = 0.1`, or define it: `{name} = …`"));
        }
        self.report(diagnostic);
    }
}
