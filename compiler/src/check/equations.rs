//! Equations: what they define, and whether their value has the axes of what they define.

use super::builtins::Call;
use super::checker::Checker;
use super::codes;
use super::names::{Symbol, nearest};
use super::types::{Kind, Typed, shape_text};
use crate::ir::{Axis, Shape, Source, StateId, Value};
use grammar::ast::{Expr, ExprKind, StatementKind, Target};
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
enum Brackets {
    None,
    Post,
    Pre,
    Both,
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
                    self.report(
                        Diagnostic::error(
                            codes::DEFINED_TWICE,
                            format!("`{name}'` has two equations"),
                            target.span,
                            "defined again here",
                        )
                        .label(*first, "first defined here")
                        .label(place, "the state is declared here")
                        .help("a state has one equation; add the terms up in one right side"),
                    );
                    return Meaning::Nothing;
                }
                state
            }
            Some((Symbol::State(s), place)) => {
                self.misspelt.insert(s);
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
                self.bad_target(target, "the post neuron stands first", "[j,i]");
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

    fn bad_target(&mut self, target: &Target, why: &str, brackets: &str) {
        let prime = if target.primed { "'" } else { "" };
        let fixed = format!("{}{prime}{brackets}", target.name.name);
        self.report(
            Diagnostic::error(codes::BAD_TARGET, "the left side is not understood", target.span, why)
                .help(format!("write `{fixed} = …`"))
                .fix(target.span, fixed),
        );
    }

    fn fit_state(
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
            _ => format!(
                "both sides need the same axes: declare `{}{}`, or change the right side",
                goal.target.name.name,
                shape_text(&self.axes, kind.shape())
            ),
        }
    }

    fn fit_transient(
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

    /// `where(e, S, rhs)` for every condition under which the state keeps its value.
    fn hold(&mut self, equation: &Equation<'a>, s: StateId, value: Option<Value>) -> Option<Value> {
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

fn equation<'a>(modulator: bool, goals: Vec<Goal<'a>>, tuple: bool, value: &'a Expr) -> Equation<'a> {
    let text = |t: &Target| format!("{}{}", t.name.name, if t.primed { "'" } else { "" });
    let names: Vec<String> = goals.iter().map(|g| text(g.target)).collect();
    let title = if tuple { format!("({})", names.join(", ")) } else { names.join(", ") };
    let spans = goals.iter().map(|g| g.target.span);
    let span = spans.reduce(Span::to).unwrap_or(value.span);
    let state = match goals.as_slice() {
        [Goal { meaning: Meaning::State(s), .. }] => Some(*s),
        _ => None,
    };
    Equation { state, title, span, modulator, goals, tuple, value, holds: vec![] }
}
