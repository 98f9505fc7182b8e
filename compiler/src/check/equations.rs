//! Equations: what they define, and whether their value has the axes of what they define.

use super::builtins::Call;
use super::checker::Checker;
use super::codes;
use super::names::{Symbol, nearest};
use super::types::{Kind, Typed};
use crate::ir::{Shape, Source, StateId};
use grammar::ast::{Expr, ExprKind, Spec, Statement, StatementKind, Target};
use grammar::diag::Diagnostic;
use grammar::span::Span;

/// One equation of the spec.
pub(super) struct Equation<'a> {
    /// The state it advances, if it advances one.
    pub(super) state: Option<StateId>,
    /// Its left side, for messages: `H'`, `m`, `(f, i, o)`.
    pub(super) title: String,
    /// The left side's place.
    pub(super) span: Span,
    /// Whether it is written with the word `modulator`.
    pub(super) modulator: bool,
    /// What it defines.
    pub(super) goals: Vec<Goal<'a>>,
    /// Whether the goals stand in parentheses.
    pub(super) tuple: bool,
    /// The right side.
    pub(super) value: &'a Expr,
    /// While one of these is not zero, the state keeps its value.
    pub(super) holds: Vec<&'a Expr>,
}

/// One thing that an equation defines.
pub(super) struct Goal<'a> {
    /// As it is written.
    pub(super) target: &'a Target,
    /// What it means.
    pub(super) meaning: Meaning,
}

/// What the target of an equation means.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Meaning {
    /// The value of a state after the step.
    State(StateId),
    /// A transient.
    Transient,
    /// Nothing: reported.
    Nothing,
}

/// What stands in the brackets of a target.
#[derive(Clone, Copy)]
pub(super) enum Brackets {
    /// There are none.
    None,
    /// `[j]`
    Post,
    /// `[i]`
    Pre,
    /// `[j,i]`
    Both,
    /// Axes, such as `[N]`.
    Shape(Shape),
}

impl<'a> Checker<'a> {
    /// Collects the equations and declares the transients.
    pub(super) fn collect_equations(&mut self) -> Vec<Equation<'a>> {
        let spec = self.spec;
        let mut equations: Vec<Equation<'a>> = vec![];
        for statement in &spec.statements {
            if let StatementKind::Equation { modulator, targets, tuple, value } = &statement.kind {
                let mut goals: Vec<Goal<'a>> = vec![];
                for target in targets {
                    let within = goals.iter().map(|g| (g.target.span, g.meaning));
                    let earlier: Vec<(Span, Meaning)> = equations
                        .iter()
                        .flat_map(|e| e.goals.iter().map(|g| (g.target.span, g.meaning)))
                        .chain(within)
                        .collect();
                    let meaning = self.meaning(target, equations.len(), &earlier);
                    goals.push(Goal { target, meaning });
                }
                equations.push(equation(*modulator, goals, *tuple, value));
            }
        }
        for equation in &equations {
            if equation.modulator && equation.goals.iter().any(|g| matches!(g.meaning, Meaning::State(_))) {
                self.report(
                    Diagnostic::error(
                        codes::BAD_DECLARATION,
                        "a modulator is a transient, not a state",
                        equation.span,
                        "this advances a state",
                    )
                    .help(format!(
                        "write `modulator d = {}` beside the equation of the state",
                        equation.title
                    )),
                );
            }
        }
        equations
    }

    fn meaning(&mut self, target: &Target, equation: usize, earlier: &[(Span, Meaning)]) -> Meaning {
        let name = &target.name.name;
        let found = self.names.get(name).map(|e| (e.symbol.clone(), e.span));
        match found {
            Some((Symbol::State(s), place)) if target.primed => {
                let state = Meaning::State(s);
                if let Some((first, _)) = earlier.iter().find(|(_, m)| *m == state) {
                    self.second_equation(target, *first, place);
                    return Meaning::Nothing;
                }
                state
            }
            Some((Symbol::State(s), place)) => {
                self.misspelt.insert(s);
                self.missing_prime(target, place);
                Meaning::Nothing
            }
            Some((Symbol::Poison, _)) => Meaning::Nothing,
            Some((symbol @ Symbol::Transient(_), place)) if target.primed => {
                self.primed_transient(target, &symbol, place)
            }
            None if target.primed => self.undeclared_state(target),
            Some((Symbol::Transient(_), _)) | None => {
                match self.declare(&target.name, Symbol::Transient(equation)) {
                    true => Meaning::Transient,
                    false => Meaning::Nothing,
                }
            }
            Some((symbol, place)) => {
                self.not_assignable(target, &symbol, place);
                Meaning::Nothing
            }
        }
    }

    fn second_equation(&mut self, target: &Target, first: Span, place: Span) {
        let name = &target.name.name;
        self.report(
            Diagnostic::error(
                codes::DEFINED_TWICE,
                format!("`{name}'` has two equations"),
                target.span,
                "defined again here",
            )
            .label(first, "first defined here")
            .label(place, "the state is declared here")
            .help("a state has one equation; add the terms up in one right side"),
        );
    }

    fn missing_prime(&mut self, target: &Target, place: Span) {
        let name = &target.name.name;
        self.report(
            Diagnostic::error(
                codes::MISSING_PRIME,
                format!("`{name}` is a state, whose equation gives its value after the step"),
                target.name.span,
                "no prime here",
            )
            .label(place, format!("`{name}` is declared as a state"))
            .help(format!("write `{name}' = …`"))
            .fix(target.name.span, format!("{name}'")),
        );
    }

    fn primed_transient(&mut self, target: &Target, symbol: &Symbol, place: Span) -> Meaning {
        let name = &target.name.name;
        self.report(
            Diagnostic::error(
                codes::STRAY_PRIME,
                format!("`{name}` is {} and has no value after the step", symbol.noun()),
                target.span,
                "a prime means \"after this step\"",
            )
            .label(place, "defined here without a prime")
            .help(format!("declare it as a state, `state {name} = 0`, or rename one of the two")),
        );
        self.names.poison(&target.name);
        Meaning::Nothing
    }

    fn undeclared_state(&mut self, target: &Target) -> Meaning {
        let name = &target.name.name;
        let states = self.states.iter().map(|s| s.name.as_str());
        let near = nearest(name, states).map(str::to_owned);
        let diagnostic = Diagnostic::error(
            codes::UNKNOWN_NAME,
            format!("there is no state `{name}`"),
            target.name.span,
            "a prime advances a declared state",
        );
        let help = match near {
            Some(near) => format!("did you mean `{near}'`?"),
            None => {
                let axes = match &target.axes {
                    Some(axes) if axes.len() == 2 => "[N, N]",
                    _ => "[N]",
                };
                format!("declare it: `state {name}{axes} = 0`; a value of this step alone takes no prime")
            }
        };
        self.report(diagnostic.help(help));
        self.names.poison(&target.name);
        Meaning::Nothing
    }

    fn not_assignable(&mut self, target: &Target, symbol: &Symbol, place: Span) {
        let name = &target.name.name;
        let noun = symbol.noun();
        let help = match symbol {
            Symbol::Param(_) | Symbol::Factored(_) => {
                format!(
                    "what changes from step to step is a state: `plastic {name}[…] = 0` and `{name}' = …`"
                )
            }
            _ => "choose another name for the value of this equation".to_owned(),
        };
        self.report(
            Diagnostic::error(
                codes::NOT_ASSIGNABLE,
                format!("`{name}` is {noun} and has no equation"),
                target.span,
                "cannot be defined here",
            )
            .label(place, format!("`{name}` is declared here, as {noun}"))
            .help(help),
        );
        if target.primed {
            self.names.poison(&target.name);
        }
    }

    /// Builds an equation and gives its goals their values.
    pub(super) fn build_equation(&mut self, equation: &Equation<'a>) {
        if equation.tuple && equation.goals.len() != 1 {
            let parts = self.tuple_parts(equation);
            for (k, goal) in equation.goals.iter().enumerate() {
                let part = parts.as_ref().and_then(|p| p.get(k)).copied();
                self.settle(equation, goal, part);
            }
            return;
        }
        let value = self.expr(equation.value);
        if let Some(goal) = equation.goals.first() {
            self.settle(equation, goal, value);
        }
    }

    fn tuple_parts(&mut self, equation: &Equation<'a>) -> Option<Vec<Typed>> {
        match &equation.value.kind {
            ExprKind::Call { function, arguments } if function.name == "split" && arguments.len() == 2 => {
                self.split(&Call { expr: equation.value, function, arguments }, equation.goals.len())
            }
            _ => {
                self.expr(equation.value)?;
                self.report(
                    Diagnostic::error(
                        codes::BAD_TARGET,
                        format!("one value cannot define {} names", equation.goals.len()),
                        equation.value.span,
                        "a single value",
                    )
                    .label(equation.span, "several names")
                    .help(format!(
                        "take a vector apart with `{} = split(v, {})`, or write one equation per name",
                        equation.title,
                        equation.goals.len()
                    )),
                );
                None
            }
        }
    }

    /// Gives a goal its value, after checking that it has the goal's axes.
    fn settle(&mut self, equation: &Equation<'a>, goal: &Goal<'a>, value: Option<Typed>) {
        let brackets = self.brackets(goal.target);
        self.builder.set_span(equation.value.span);
        match goal.meaning {
            Meaning::State(s) => {
                let value = match (brackets, value) {
                    (Some(b), Some(v)) => self.fit_state(s, b, v, equation, goal),
                    _ => None,
                };
                let held = self.hold(equation, s, value);
                let kind = Kind::of(self.states[s.index()].shape);
                self.facts.equations.insert(s, equation.value.span);
                if let Some(value) = held {
                    self.builder.name(value, &format!("{}'", goal.target.name.name));
                    self.next.insert(s, Typed { value, kind });
                }
            }
            Meaning::Transient => {
                let typed = match (brackets, value) {
                    (Some(b), Some(v)) => self.fit_transient(b, v, equation, goal),
                    _ => None,
                };
                if let Some(typed) = typed {
                    self.builder.name(typed.value, &goal.target.name.name);
                }
                self.transients.insert(goal.target.name.name.clone(), typed);
            }
            Meaning::Nothing => {}
        }
    }

    /// What stands in the brackets of a target.
    fn brackets(&mut self, target: &Target) -> Option<Brackets> {
        let Some(axes) = &target.axes else { return Some(Brackets::None) };
        let index = |e: &Expr| match &e.kind {
            ExprKind::Name { name, primed: false } if name == "j" || name == "i" => Some(name == "j"),
            _ => None,
        };
        let indices: Vec<Option<bool>> = axes.iter().map(index).collect();
        match indices.as_slice() {
            [Some(true)] => Some(Brackets::Post),
            [Some(false)] => Some(Brackets::Pre),
            [Some(true), Some(false)] => Some(Brackets::Both),
            [Some(false), Some(true)] => {
                self.exchanged_indices(target);
                None
            }
            [] => {
                self.bad_target(target, "empty brackets", "");
                None
            }
            all if all.iter().any(Option::is_some) => {
                self.report(
                    Diagnostic::error(
                        codes::BAD_TARGET,
                        "the left side is not understood",
                        target.span,
                        "indices and axes do not mix",
                    )
                    .help("write indices alone, `[j,i]` or `[j]`, or axes alone, `[N,N]` or `[N]`"),
                );
                None
            }
            _ => Some(Brackets::Shape(self.shape_of_axes(axes, target.span)?)),
        }
    }

    /// `[i,j]`. Exchanging the indices here alone is right for those whose `j` is the post neuron, and wrong for
    /// those whose `i` is: nothing is offered to be put in without a look.
    fn exchanged_indices(&mut self, target: &Target) {
        let fixed = format!("{}{}[j,i]", target.name.name, if target.primed { "'" } else { "" });
        self.report(
            Diagnostic::error(
                codes::BAD_TARGET,
                "the left side is not understood",
                target.span,
                "`j` is the post neuron, `i` the pre neuron, and post stands first",
            )
            .help(format!(
                "write `{fixed} = …`, and if your `i` is the post neuron, exchange `i` and `j` on the right, too"
            )),
        );
    }

    fn bad_target(&mut self, target: &Target, why: &str, brackets: &str) {
        let prime = if target.primed { "'" } else { "" };
        let fixed = format!("{}{prime}{brackets}", target.name.name);
        self.report(
            Diagnostic::error(codes::BAD_TARGET, "the left side is not understood", target.span, why)
                .help(format!("write `{fixed} = …`"))
                .fix(target.span, fixed),
        );
    }

    /// The value of a state after the step.
    pub(super) fn next_state(&mut self, s: StateId) -> Option<Typed> {
        if let Some(found) = self.next.get(&s) {
            return Some(*found);
        }
        // Its equation has an error. The declared axes are known, so that readers of the state are
        // still checked; the model is not returned.
        let shape = self.states[s.index()].shape;
        let name = format!("{}'", self.states[s.index()].name);
        Some(self.load(Source::Next(s), shape, &name))
    }
}

/// What the text says of its equations and penalty terms.
pub(super) fn described(spec: &Spec) -> Vec<crate::model::Equation> {
    let one = |s: &Statement| {
        let names = match &s.kind {
            StatementKind::Equation { targets, .. } => targets.iter().map(target_text).collect(),
            StatementKind::Penalty(_) => vec![],
            _ => return None,
        };
        Some(crate::model::Equation { names, doc: s.doc.clone() })
    };
    spec.statements.iter().filter_map(one).collect()
}

/// `y'`, `m`
fn target_text(t: &Target) -> String {
    format!("{}{}", t.name.name, if t.primed { "'" } else { "" })
}

fn equation<'a>(modulator: bool, goals: Vec<Goal<'a>>, tuple: bool, value: &'a Expr) -> Equation<'a> {
    let names: Vec<String> = goals.iter().map(|g| target_text(g.target)).collect();
    let title = if tuple { format!("({})", names.join(", ")) } else { names.join(", ") };
    let spans = goals.iter().map(|g| g.target.span);
    let span = spans.reduce(Span::to).unwrap_or(value.span);
    let state = match goals.as_slice() {
        [Goal { meaning: Meaning::State(s), .. }] => Some(*s),
        _ => None,
    };
    Equation { state, title, span, modulator, goals, tuple, value, holds: vec![] }
}
