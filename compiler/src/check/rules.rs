//! Rules: macros over values. The arguments of a call are checked and built where they stand, the
//! body is checked with the parameters bound to them. So a body sees its parameters and nothing
//! else, and an argument is computed once.

use super::builtins;
use super::checker::Checker;
use super::codes;
use super::expressions::MAX_DEPTH;
use super::initial::count;
use super::types::{Kind, Typed};
use grammar::ast::{Expr, ExprKind, File, Ident, Index, Item, Rule, RuleParameter};
use grammar::diag::{Diagnostic, did_you_mean};
use grammar::span::Span;
use std::collections::{BTreeMap, BTreeSet};

/// How many calls of rules one spec may expand to.
pub(super) const MAX_EXPANSIONS: usize = 4096;

/// The rules of a file.
pub(super) struct Rules<'a> {
    table: BTreeMap<&'a str, &'a Rule>,
    /// Rules with an error of their own: calls of them are silent.
    broken: BTreeSet<&'a str>,
    /// Those that call themselves.
    recursive: BTreeSet<&'a str>,
}

/// A call of a rule that is being expanded.
pub(super) struct Frame<'a> {
    /// The rule.
    pub(super) rule: &'a Rule,
    /// Where it is called.
    pub(super) call: Span,
    values: Vec<Option<Typed>>,
}

impl Frame<'_> {
    /// Whether a name is one of the rule's parameters.
    pub(super) fn binds(&self, name: &str) -> bool {
        self.rule.parameters.iter().any(|p| p.name.name == name)
    }
}

impl<'a> Rules<'a> {
    /// Collects the rules of a file and checks what can be said without a call: names, arguments,
    /// recursion.
    pub(super) fn collect(file: &'a File, diagnostics: &mut Vec<Diagnostic>) -> Self {
        let mut rules = Rules { table: BTreeMap::new(), broken: BTreeSet::new(), recursive: BTreeSet::new() };
        for item in &file.items {
            if let Item::Rule(rule) = item {
                rules.add(rule, diagnostics);
            }
        }
        let all: Vec<&'a Rule> = rules.table.values().copied().collect();
        for rule in &all {
            let before = diagnostics.len();
            rules.check_parameters(rule, diagnostics);
            rules.check_body(rule, &rule.body, diagnostics, 0);
            if diagnostics.len() > before {
                rules.broken.insert(&rule.name.name);
            }
        }
        for rule in all {
            rules.check_recursion(rule, diagnostics);
        }
        rules
    }

    /// The rule with this name.
    pub(super) fn get(&self, name: &str) -> Option<&'a Rule> {
        self.table.get(name).copied()
    }

    /// The names of all rules.
    pub(super) fn names(&self) -> impl Iterator<Item = &'a str> {
        self.table.keys().copied()
    }

    fn add(&mut self, rule: &'a Rule, diagnostics: &mut Vec<Diagnostic>) {
        let name = &rule.name;
        if builtins::find(&name.name).is_some() {
            diagnostics.push(
                Diagnostic::error(
                    codes::RESERVED_NAME,
                    format!("`{}` is a built-in function", name.name),
                    name.span,
                    "a rule needs a name of its own",
                )
                .help(format!("rename it, for example `my_{}`", name.name)),
            );
            return;
        }
        if let Some(first) = self.table.get(name.name.as_str()) {
            diagnostics.push(
                Diagnostic::error(
                    codes::DEFINED_TWICE,
                    format!("the rule `{}` is defined twice", name.name),
                    name.span,
                    "defined again here",
                )
                .label(first.name.span, "first defined here")
                .help("rename or remove one of the two"),
            );
            return;
        }
        self.table.insert(&name.name, rule);
    }

    fn check_parameters(&self, rule: &Rule, diagnostics: &mut Vec<Diagnostic>) {
        for (k, p) in rule.parameters.iter().enumerate() {
            if let Some(first) = rule.parameters[..k].iter().find(|q| q.name.name == p.name.name) {
                diagnostics.push(
                    Diagnostic::error(
                        codes::DEFINED_TWICE,
                        format!("the parameter `{}` occurs twice", p.name.name),
                        p.name.span,
                        "again here",
                    )
                    .label(first.name.span, "first here")
                    .help("rename one of the two"),
                );
            }
            if !matches!(p.index, None | Some(Index::Post | Index::Pre)) {
                diagnostics.push(
                    Diagnostic::error(
                        codes::BAD_TARGET,
                        format!("the parameter `{}` has an index that is not understood", p.name.name),
                        p.name.span,
                        "not `[j]` and not `[i]`",
                    )
                    .help(format!("write `{0}[j]`, `{0}[i]`, or `{0}` for a scalar or matrix", p.name.name)),
                );
            }
        }
    }

    fn check_body(&self, rule: &Rule, e: &Expr, diagnostics: &mut Vec<Diagnostic>, depth: usize) {
        if depth > MAX_DEPTH {
            return;
        }
        let mut inside = |e: &Expr| self.check_body(rule, e, diagnostics, depth + 1);
        match &e.kind {
            ExprKind::Number(_) | ExprKind::Error => {}
            ExprKind::Name { name, primed } => self.check_body_name(rule, name, *primed, e.span, diagnostics),
            ExprKind::Index { base: x, .. } | ExprKind::Transpose(x) | ExprKind::Negate(x) => inside(x),
            ExprKind::Binary { left, right, .. } => {
                inside(left);
                inside(right);
            }
            ExprKind::Call { function, arguments } => {
                for a in arguments {
                    inside(a);
                }
                if self.get(&function.name).is_none() && builtins::find(&function.name).is_none() {
                    diagnostics.push(self.unknown_function(function));
                }
            }
        }
    }

    fn check_body_name(
        &self,
        rule: &Rule,
        name: &str,
        primed: bool,
        span: Span,
        diagnostics: &mut Vec<Diagnostic>,
    ) {
        let known = rule.parameters.iter().map(|p| p.name.name.as_str());
        if known.clone().all(|k| k != name) {
            let diagnostic = Diagnostic::error(
                codes::UNKNOWN_NAME,
                format!("`{name}` is no parameter of the rule `{}`", rule.name.name),
                span,
                "a rule sees its parameters and nothing else",
            )
            .label(rule.name.span, "in this rule");
            diagnostics.push(match did_you_mean(name, known) {
                Some(near) => diagnostic.help(format!("did you mean `{near}`?")),
                None => {
                    diagnostic.help(format!("add `{name}` to the parameters and hand it over in every call"))
                }
            });
        } else if primed {
            diagnostics.push(
                Diagnostic::error(
                    codes::STRAY_PRIME,
                    format!("`{name}` is a parameter of a rule and takes no prime"),
                    span,
                    "a prime means \"after this step\"",
                )
                .help(format!("write `{name}` and hand over the primed state: `{}(…')`", rule.name.name))
                .fix(span, name),
            );
        }
    }

    /// The error for a call of something that does not exist.
    pub(super) fn unknown_function(&self, function: &Ident) -> Diagnostic {
        let known = builtins::names().map(|n| n as &str).chain(self.names());
        let near: Option<&str> = match function.name.as_str() {
            "sigm" | "logistic" => Some("sigmoid"),
            "ln" => Some("log"),
            "sgn" => Some("sign"),
            "detach" | "stop_gradient" => Some("stopgrad"),
            "if" | "select" => Some("where"),
            "clamp" => Some("clip"),
            "dot" => None,
            other => did_you_mean(other, known),
        };
        let diagnostic = Diagnostic::error(
            codes::UNKNOWN_FUNCTION,
            format!("there is no function or rule `{}`", function.name),
            function.span,
            "neither built in nor a rule of this file",
        );
        match near {
            Some(near) => diagnostic.help(format!("did you mean `{near}`?")).fix(function.span, near),
            None if function.name == "dot" => diagnostic.help("the dot product is written `a . b`"),
            None => diagnostic.help(format!("define it: `rule {}(x) = …`", function.name)),
        }
    }

    fn check_recursion(&mut self, rule: &'a Rule, diagnostics: &mut Vec<Diagnostic>) {
        let mut seen = BTreeSet::new();
        let mut open = vec![];
        calls(&rule.body, &mut open, 0);
        while let Some(callee) = open.pop() {
            if self.recursive.contains(callee.name.as_str()) {
                self.broken.insert(&rule.name.name);
            }
            if callee.name == rule.name.name {
                let known = self.recursive.iter().any(|r| seen.contains(r));
                self.broken.insert(&rule.name.name);
                self.recursive.insert(&rule.name.name);
                if known {
                    return;
                }
                diagnostics.push(
                    Diagnostic::error(
                        codes::RECURSIVE_RULE,
                        format!("the rule `{}` calls itself", rule.name.name),
                        rule.name.span,
                        "would expand for ever",
                    )
                    .label(callee.span, "called again here")
                    .help("a rule stands for one expression; spell the repetition out"),
                );
                return;
            }
            if seen.insert(callee.name.as_str())
                && let Some(next) = self.get(&callee.name)
            {
                calls(&next.body, &mut open, 0);
            }
        }
    }
}

/// The functions that an expression calls.
fn calls<'a>(e: &'a Expr, found: &mut Vec<&'a Ident>, depth: usize) {
    if depth > MAX_DEPTH {
        return;
    }
    match &e.kind {
        ExprKind::Number(_) | ExprKind::Error | ExprKind::Name { .. } => {}
        ExprKind::Index { base: x, .. } | ExprKind::Transpose(x) | ExprKind::Negate(x) => {
            calls(x, found, depth + 1);
        }
        ExprKind::Binary { left, right, .. } => {
            calls(left, found, depth + 1);
            calls(right, found, depth + 1);
        }
        ExprKind::Call { function, arguments } => {
            found.push(function);
            for a in arguments {
                calls(a, found, depth + 1);
            }
        }
    }
}

impl<'a> Checker<'a> {
    /// Expands a call of a rule.
    pub(super) fn expand(&mut self, e: &Expr, rule: &'a Rule, arguments: &'a [Expr]) -> Option<Typed> {
        let mut values: Vec<Option<Typed>> = arguments.iter().map(|a| self.expr(a)).collect();
        if arguments.len() != rule.parameters.len() {
            self.wrong_rule_arguments(e, rule, arguments.len());
            return None;
        }
        if self.rules.broken.contains(rule.name.name.as_str()) {
            return None;
        }
        for ((value, p), a) in values.iter_mut().zip(&rule.parameters).zip(arguments) {
            if let Some(typed) = *value {
                *value = self.fits_parameter(typed, p, a, rule).then_some(typed);
            }
        }
        if self.expansions == 0 {
            self.report(
                Diagnostic::error(
                    codes::TOO_LARGE,
                    "the rules of this spec expand beyond all bounds",
                    e.span,
                    format!("more than {MAX_EXPANSIONS} calls"),
                )
                .help("give intermediate results names in the spec"),
            );
            return None;
        }
        self.expansions -= 1;
        self.frames.push(Frame { rule, call: e.span, values });
        let found = self.expr(&rule.body);
        self.frames.pop();
        found
    }

    fn wrong_rule_arguments(&mut self, e: &Expr, rule: &Rule, given: usize) {
        let list: Vec<String> = rule.parameters.iter().map(parameter_text).collect();
        self.report(
            Diagnostic::error(
                codes::ARGUMENT_COUNT,
                format!("the rule `{}` takes {}", rule.name.name, count(rule.parameters.len())),
                e.span,
                format!("{} given", count(given)),
            )
            .label(rule.name.span, "defined here")
            .help(format!("write `{}({})`", rule.name.name, list.join(", "))),
        );
    }

    /// Whether an argument has the index form of its parameter.
    fn fits_parameter(&mut self, typed: Typed, p: &RuleParameter, a: &Expr, rule: &Rule) -> bool {
        let index = match (&p.index, typed.kind) {
            (None, _) | (_, Kind::Scalar) => return true,
            (Some(Index::Post), Kind::Post(_)) | (Some(Index::Pre), Kind::Pre(_)) => return true,
            (Some(Index::Post), _) => "[j]",
            (Some(_), _) => "[i]",
        };
        let what = typed.kind.describe(&self.axes);
        let role = if index == "[j]" { "post" } else { "pre" };
        let base = match &a.kind {
            ExprKind::Index { base, .. } => self.operand_text(base),
            _ => self.operand_text(a),
        };
        let help = match typed.kind {
            Kind::Matrix { .. } => {
                format!(
                    "hand over a vector with `{index}`, or write the parameter without index: `{}`",
                    p.name.name
                )
            }
            _ => format!("write `{base}{index}`"),
        };
        self.report(
            Diagnostic::error(
                codes::ORIENTATION,
                format!("the rule `{}` wants one value per {role} neuron here", rule.name.name),
                a.span,
                format!("this is {what}"),
            )
            .label(p.name.span, format!("the parameter is written `{}`", parameter_text(p)))
            .help(help),
        );
        false
    }

    /// The value of a parameter of the rule under expansion, without an index. The outer `None` says
    /// that no rule is being expanded.
    pub(super) fn rule_parameter(&mut self, name: &str, primed: bool, span: Span) -> Option<Option<Typed>> {
        let frame = self.frames.last()?;
        let Some(k) = frame.rule.parameters.iter().position(|p| p.name.name == name) else {
            return Some(None);
        };
        let (p, value) = (&frame.rule.parameters[k], frame.values[k]);
        if primed {
            return Some(None);
        }
        if p.index.is_some() && value.is_some_and(|v| v.kind != Kind::Scalar) {
            let text = parameter_text(p);
            let place = p.name.span;
            self.report(
                Diagnostic::error(
                    codes::ORIENTATION,
                    format!("the parameter `{name}` is used without its index"),
                    span,
                    "which end of the synapse is meant?",
                )
                .label(place, format!("written `{text}` here"))
                .help(format!("write `{text}`")),
            );
            return Some(None);
        }
        Some(value)
    }

    /// The value of `x[i]` in the body of a rule whose parameter is written with an index. The outer
    /// `None` says that it is not.
    pub(super) fn indexed_rule_parameter(
        &mut self,
        name: &str,
        index: &Index,
        span: Span,
    ) -> Option<Option<Typed>> {
        let frame = self.frames.last()?;
        let k = frame.rule.parameters.iter().position(|p| p.name.name == name)?;
        let (p, value) = (&frame.rule.parameters[k], frame.values[k]);
        let declared = p.index.as_ref()?;
        if declared == index {
            return Some(value);
        }
        let (text, place) = (parameter_text(p), p.name.span);
        self.report(
            Diagnostic::error(
                codes::BAD_INDEX,
                format!("the parameter `{name}` is used with another index than it is written with"),
                span,
                "a different index",
            )
            .label(place, format!("written `{text}` here"))
            .help(format!("write `{text}`")),
        );
        Some(None)
    }
}

fn parameter_text(p: &RuleParameter) -> String {
    let index = match &p.index {
        None => "",
        Some(Index::Post) => "[j]",
        Some(Index::Pre) => "[i]",
        Some(Index::Both) => "[j,i]",
        Some(Index::Element(_) | Index::Other(_)) => "[…]",
    };
    format!("{}{index}", p.name.name)
}
