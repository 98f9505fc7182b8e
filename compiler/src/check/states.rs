//! Declarations of `state`, `plastic`, `trace`, `in` and `noise`.

use super::checker::Checker;
use super::codes;
use super::constants::number;
use super::initial::{Place, count};
use super::names::Symbol;
use super::parameters::learned_start;
use crate::ir::{InputId, Shape, StateId};
use crate::model::{ConstExpr, Init, Input, Law, Noise, Prefer, ResetPolicy, Role, State};
use grammar::ast::{Expr, Ident, Initial, Reset, StateDeclaration, StateKind, StatementKind, Variable};
use grammar::diag::{Diagnostic, did_you_mean};

/// The words between `in` and the first name.
const ROLES: &[&str] = &["mod", "target", "mask", "reset"];

impl<'a> Checker<'a> {
    /// Declares all inputs and noises.
    pub(super) fn declare_inputs(&mut self) {
        let spec = self.spec;
        for statement in &spec.statements {
            match &statement.kind {
                StatementKind::Input { role, variables } => {
                    let role = self.role(role.as_ref());
                    for v in variables {
                        self.declare_input(v, role.clone(), &statement.doc);
                    }
                }
                StatementKind::Noise { variables, initial, locked } => {
                    for v in variables {
                        let role = self.noise(v, initial.as_ref(), *locked);
                        self.declare_input(v, role, &statement.doc);
                    }
                }
                _ => {}
            }
        }
    }

    fn role(&mut self, word: Option<&Ident>) -> Option<Role> {
        let Some(word) = word else { return Some(Role::Signal) };
        match word.name.as_str() {
            "mod" => Some(Role::Modulator),
            "target" => Some(Role::Target),
            "mask" => Some(Role::Mask),
            "reset" => Some(Role::Reset),
            other => {
                let near = match other {
                    "modulator" | "reward" => Some("mod"),
                    "label" => Some("target"),
                    _ => did_you_mean(other, ROLES.iter().copied()),
                };
                let diagnostic = Diagnostic::error(
                    codes::UNKNOWN_WORD,
                    format!("`{other}` is no role of an input"),
                    word.span,
                    "not understood",
                );
                self.report(match near {
                    Some(near) => diagnostic.help(format!("did you mean `in {near}`?")).fix(word.span, near),
                    None => diagnostic.help("the roles are mod, target, mask and reset; or write `in name`"),
                });
                None
            }
        }
    }

    fn noise(&mut self, v: &Variable, initial: Option<&Initial>, locked: bool) -> Option<Role> {
        if let Some(Initial::Distribution { name, arguments }) = initial
            && name.name == "dropout"
        {
            let law = Law::Dropout(self.dropout(name, arguments)?);
            return Some(Role::Noise(Noise { law, locked }));
        }
        let standard = Init::Normal(ConstExpr::Number(0.0), ConstExpr::Number(1.0));
        let init = match initial {
            None => standard,
            Some(initial) => {
                self.initial(initial, &Place { name: &v.name, shape: Shape::Scalar, before: None })?
            }
        };
        if matches!(init, Init::Normal(..) | Init::Uniform(..)) {
            return Some(Role::Noise(Noise { law: Law::Drawn(init), locked }));
        }
        self.report(
            Diagnostic::error(codes::BAD_DECLARATION, "this is no noise", v.span, "not drawn at every step")
                .help(format!(
                    "write `noise {} ~ normal(0, 1)`, `~ uniform(-1, 1)` or `~ dropout(0.5)`",
                    self.text(v.span)
                )),
        );
        None
    }

    /// The probability of `dropout(p)`.
    fn dropout(&mut self, name: &Ident, arguments: &[Expr]) -> Option<ConstExpr> {
        let [p] = arguments else {
            self.report(
                Diagnostic::error(
                    codes::ARGUMENT_COUNT,
                    "`dropout` takes one argument",
                    name.span,
                    format!("{} given", count(arguments.len())),
                )
                .help("write `~ dropout(0.5)`, with the probability of zero"),
            );
            return None;
        };
        let probability = self.constant(p, "the probability of dropout")?;
        let number = self.declared_number(&probability);
        if number.is_none_or(|p| (0.0..1.0).contains(&p)) {
            return Some(probability);
        }
        let label = number.map_or(String::new(), |p| format!("it is {p}"));
        self.report(
            Diagnostic::error(codes::BAD_RANGE, "the probability of `dropout` lies in [0, 1)", p.span, label)
                .help("a kept value is divided by 1-p"),
        );
        None
    }

    fn declare_input(&mut self, v: &Variable, role: Option<Role>, doc: &[String]) {
        let shape = self.shape(v);
        if !self.declare(&v.name, Symbol::Poison) {
            return;
        }
        let (Some(shape), Some(role)) = (shape, role) else { return };
        if let Shape::Matrix { .. } = shape {
            self.report(
                Diagnostic::error(
                    codes::TOO_MANY_AXES,
                    format!("the input `{}` has two axes", v.name.name),
                    v.span,
                    "an input is a scalar or a vector",
                )
                .help("declare one input per row, or one long vector and `slice` it"),
            );
            return;
        }
        if role == Role::Reset && shape != Shape::Scalar {
            self.report(
                Diagnostic::error(
                    codes::BAD_DECLARATION,
                    format!("the reset input `{}` has an axis", v.name.name),
                    v.span,
                    "a row's states return to their initial values together",
                )
                .help(format!("write `in reset {}`", v.name.name)),
            );
            return;
        }
        self.inputs.push(Input { name: v.name.name.clone(), doc: doc.to_vec(), role, shape, span: v.span });
        self.names.set(&v.name.name, Symbol::Input(InputId(self.inputs.len() as u32 - 1)));
    }

    /// Declares all states.
    pub(super) fn declare_states(&mut self) {
        let spec = self.spec;
        for statement in &spec.statements {
            if let StatementKind::State { kind, declarations } = &statement.kind {
                for d in declarations {
                    let shape = self.shape(&d.variable);
                    if self.declare(&d.variable.name, Symbol::Poison) {
                        self.declare_state(*kind, d, shape, &statement.doc);
                    }
                }
            }
        }
    }

    fn declare_state(
        &mut self,
        kind: StateKind,
        d: &'a StateDeclaration,
        shape: Option<Shape>,
        doc: &[String],
    ) {
        let reset = self.reset(d.reset.as_ref());
        let mut prefer = Prefer::Auto;
        for attribute in &d.attributes {
            match attribute.word.name.as_str() {
                "dense" | "events" if matches!(shape, None | Some(Shape::Matrix { .. })) => {
                    let events = attribute.word.name == "events";
                    prefer = if events { Prefer::Events } else { Prefer::Dense };
                }
                word @ ("dense" | "events") => {
                    self.report(
                        Diagnostic::error(
                            codes::BAD_DECLARATION,
                            format!("only a matrix of connections can be `{word}`"),
                            attribute.word.span,
                            "other states are always kept as they are",
                        )
                        .help("remove the word"),
                    );
                }
                "unbounded" if kind == StateKind::Plastic => {
                    self.facts.unbounded.insert(StateId(self.states.len() as u32));
                }
                "unbounded" => {
                    self.report(
                        Diagnostic::error(
                            codes::BAD_DECLARATION,
                            "only a plastic state can be `unbounded`",
                            attribute.word.span,
                            "other states need no such word",
                        )
                        .help("remove the word"),
                    );
                }
                _ => {
                    self.unknown_attribute(attribute, &["unbounded", "dense", "events", "persist"]);
                }
            }
        }
        let Some(shape) = shape else { return };
        let init = self.state_initial(d, shape);
        let name = d.variable.name.name.clone();
        // A state whose start or reset is wrong still has a shape, which is all that equations need.
        let state = State {
            name: name.clone(),
            doc: doc.to_vec(),
            kind,
            shape,
            init: init.unwrap_or(Init::Constant(ConstExpr::Number(0.0))),
            reset: reset.unwrap_or(ResetPolicy::EveryEpisodes(1)),
            prefer,
            span: d.variable.span,
        };
        self.states.push(state);
        self.names.set(&name, Symbol::State(StateId(self.states.len() as u32 - 1)));
    }

    fn state_initial(&mut self, d: &'a StateDeclaration, shape: Shape) -> Option<Init> {
        let name = &d.variable.name;
        let zero = Init::Constant(ConstExpr::Number(0.0));
        match &d.initial {
            None => Some(zero),
            Some(Initial::Learn { span, start }) => {
                let start = match start.as_deref() {
                    None => zero,
                    Some(start) => self.initial(start, &Place { name, shape, before: None })?,
                };
                let param = learned_start(&name.name, shape, start, *span);
                Some(Init::Param(self.add_param(param)))
            }
            Some(Initial::Value(e)) => match self.initial_parameter(e, d, shape) {
                Some(found) => found,
                None => Some(Init::Constant(self.constant(e, "an initial value")?)),
            },
            Some(initial @ Initial::Distribution { .. }) => {
                self.initial(initial, &Place { name, shape, before: None })
            }
        }
    }

    /// `= h0`, where `h0` is a parameter: the state starts at its value. The outer `None` says that
    /// the expression is no parameter's name.
    fn initial_parameter(
        &mut self,
        e: &grammar::ast::Expr,
        d: &StateDeclaration,
        shape: Shape,
    ) -> Option<Option<Init>> {
        let grammar::ast::ExprKind::Name { name, primed: false } = &e.kind else { return None };
        let entry = self.names.get(name)?;
        let (symbol, place) = (entry.symbol.clone(), entry.span);
        let found = match symbol {
            Symbol::Param(p) => p,
            Symbol::Factored(_) => {
                self.report(
                    Diagnostic::error(
                        codes::BAD_DECLARATION,
                        format!("`{name}` has a rank and cannot be an initial value"),
                        e.span,
                        "kept as factors",
                    )
                    .label(place, "declared here")
                    .help("declare it without `rank`"),
                );
                return Some(None);
            }
            _ => return None,
        };
        let other = self.params[found.index()].shape;
        if other != shape {
            let state = &d.variable.name.name;
            self.report(
                Diagnostic::error(
                    codes::ASSIGNMENT_AXES,
                    format!("`{state}` cannot start at `{name}`: their axes differ"),
                    e.span,
                    self.declared_text(name, other).replace(" here", ""),
                )
                .label(d.variable.span, self.declared_text(state, shape))
                .help("a state and its initial value have the same axes"),
            );
            return Some(None);
        }
        Some(Some(Init::Param(found)))
    }

    fn reset(&mut self, reset: Option<&Reset>) -> Option<ResetPolicy> {
        match reset {
            None | Some(Reset::PerEpisode(_)) => Some(ResetPolicy::EveryEpisodes(1)),
            Some(Reset::Persist(_)) => Some(ResetPolicy::Persist),
            Some(Reset::Every { episodes, span }) => {
                let k = self.constant(episodes, "the number of episodes")?;
                match number(&k).filter(|k| k.fract() == 0.0 && (1.0..=1e9).contains(k)) {
                    Some(k) => Some(ResetPolicy::EveryEpisodes(k as u32)),
                    None => {
                        let help = "write `every 3 episodes`, `per episode` or `persist`";
                        self.bad_range(
                            *span,
                            "this is no number of episodes",
                            "not a positive whole number",
                            help,
                        );
                        None
                    }
                }
            }
        }
    }
}
