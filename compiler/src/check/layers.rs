//! Layers: specs as parts of other specs.
//!
//! `layer one = cell(u, N = 200)` puts the statements of the spec `cell` into the spec that says it, before anything
//! is judged. What is checked, differentiated and compiled is one flat spec; a layer costs nothing and means nothing
//! of its own.
//!
//! * Every name `x` of `cell` becomes `one.x`. No text can spell such a declaration, so that none can clash.
//! * Arguments without a name are the inputs of `cell`, in the order in which it declares them. With a name they are
//!   inputs, axes or constants. An input becomes an equation, `one.u[one.I] = u`. Where `cell` takes no gradient
//!   (`in mod`, `in target`, `in mask`) it is `stopgrad` of the argument. `in reset` takes a reset input of the
//!   outer spec: the states of a row return to their initial values together.
//! * An axis is what an argument says, `N = 200` or `N = 2*M`; else, for the axis of an input, the axis of its
//!   argument, as far as the text tells; else what `cell` says. An axis that is still `?` is an error: a task gives
//!   sizes to the axes of the outer spec alone.
//! * The outer spec reads the outputs of the layer, and its axes, as `one.NAME`. `out h'` hands out the state after
//!   the step, `one.h'`, and before it, `one.h`: so layers may feed each other in circles, with the delay of a step.
//!   `out z` and `out z = …` hand out `one.z`.
//! * What serves only outputs that nobody reads is left away: equations, states, parameters. A penalty serves itself.
//! * A layer may have layers. A spec that would contain itself is an error.
//!
//! Mistakes in the text of `cell` are reported where `cell` itself is judged, once, and a spec that uses it is then
//! silent about it. What goes wrong only inside of the outer spec carries a label that leads to the layer.

mod axes;
mod unread;

use super::codes;
use grammar::ast::{
    self, AxisDeclaration, Expr, ExprKind, Ident, LayerArgument, OutputDeclaration, Spec, Statement,
    StatementKind, Target, Variable,
};
use grammar::diag::{Diagnostic, did_you_mean};
use grammar::span::Span;
use grammar::visit::{self, Visitor};
use std::collections::{BTreeMap, BTreeSet};

/// A text that has become part of a spec.
#[derive(Clone, Debug)]
pub(super) struct Origin {
    /// The spec that is the layer.
    text: Span,
    /// The statement that uses it.
    used: Span,
    /// The layer's name there.
    name: String,
}

/// A spec without layers.
#[derive(Clone, Debug)]
pub(super) struct Flat {
    /// All its statements.
    pub(super) spec: Spec,
    /// Where those of layers come from.
    pub(super) origins: Vec<Origin>,
    /// What is wrong with the layers.
    pub(super) diagnostics: Vec<Diagnostic>,
    /// Whether a layer is missing: names of it will then seem to be.
    pub(super) torn: bool,
}

/// The specs of a file, those that others need first.
pub(super) struct Layers<'f> {
    specs: Vec<&'f Spec>,
    /// Specs that contain themselves, with the error for each.
    circular: BTreeMap<usize, Diagnostic>,
    /// Indices of `specs`.
    order: Vec<usize>,
}

impl<'f> Layers<'f> {
    /// Sorts the specs of a file.
    pub(super) fn collect(file: &'f ast::File) -> Self {
        let specs = file.items.iter().filter_map(|item| match item {
            ast::Item::Spec(spec) => Some(spec),
            ast::Item::Rule(_) => None,
        });
        let mut all = Layers { specs: specs.collect(), circular: BTreeMap::new(), order: vec![] };
        let mut path = vec![];
        (0..all.specs.len()).for_each(|k| all.visit(k, &mut path));
        all
    }

    /// The specs with their places in the file, those that others need first.
    pub(super) fn order(&self) -> impl Iterator<Item = (usize, &'f Spec)> {
        self.order.iter().map(|k| (*k, self.specs[*k]))
    }

    /// The names of specs that others use.
    pub(super) fn used(&self) -> BTreeSet<String> {
        let uses = self.specs.iter().flat_map(|s| uses(s));
        uses.filter(|u| self.find(&u.name).is_some()).map(|u| u.name.clone()).collect()
    }

    fn find(&self, name: &str) -> Option<usize> {
        self.specs.iter().position(|s| s.name.name == name)
    }

    fn visit(&mut self, k: usize, path: &mut Vec<(usize, Span)>) {
        if self.order.contains(&k) {
            return;
        }
        for used in uses(self.specs[k]) {
            let Some(next) = self.find(&used.name) else { continue };
            path.push((k, used.span));
            match path.iter().position(|(p, _)| *p == next) {
                Some(start) => self.circle(&path[start..]),
                None => self.visit(next, path),
            }
            path.pop();
        }
        self.order.push(k);
    }

    fn circle(&mut self, path: &[(usize, Span)]) {
        let [(first, place), rest @ ..] = path else { return };
        let name = &self.specs[*first].name.name;
        let mut diagnostic = Diagnostic::error(
            codes::LAYER_CYCLE,
            format!("the spec `{name}` would contain itself"),
            *place,
            if rest.is_empty() { "a layer of its own kind" } else { "by way of this layer" },
        );
        for (_, place) in rest {
            diagnostic = diagnostic.label(*place, "which has this layer");
        }
        let diagnostic =
            diagnostic.help("a layer is a spec of its own; to feed a layer back, use `one.h` in its input");
        self.circular.entry(*first).or_insert(diagnostic);
        for (k, _) in rest {
            self.circular.entry(*k).or_insert_with(|| silent(*place));
        }
    }

    /// Puts the layers of a spec into it. `flat` has what became of the specs before it in the order; `None` for
    /// those with errors.
    pub(super) fn flatten(&self, k: usize, flat: &BTreeMap<usize, Option<Flat>>) -> Flat {
        let spec = self.specs[k];
        let mut result = Flat { spec: spec.clone(), origins: vec![], diagnostics: vec![], torn: false };
        if let Some(error) = self.circular.get(&k) {
            result.torn = true;
            result.diagnostics.extend((!error.message.is_empty()).then(|| error.clone()));
        }
        let mut uses = vec![];
        for (at, statement) in spec.statements.iter().enumerate() {
            let StatementKind::Layer { name, spec: used, arguments } = &statement.kind else { continue };
            let found = self.find(&used.name).filter(|_| !self.circular.contains_key(&k));
            match found.map(|f| (f, flat.get(&f))) {
                Some((_, Some(Some(part)))) => {
                    result.origins.extend(part.origins.iter().cloned());
                    result.origins.push(Origin {
                        text: part.spec.span,
                        used: statement.span,
                        name: name.name.clone(),
                    });
                    uses.push(Use::new(at, name, used, arguments, part));
                }
                // Errors of that spec have been reported.
                Some(_) => result.torn = true,
                None if self.circular.contains_key(&k) => {}
                None => {
                    result.torn = true;
                    result.diagnostics.push(self.unknown(used));
                }
            }
        }
        if uses.is_empty() {
            result.spec.statements.retain(|s| !matches!(s.kind, StatementKind::Layer { .. }));
            return result;
        }
        let mut outer = Outer { spec: &mut result.spec, diagnostics: vec![] };
        outer.put(uses);
        let mut found = outer.diagnostics;
        result.torn |= !found.is_empty();
        result.diagnostics.append(&mut found);
        result
    }

    fn unknown(&self, used: &Ident) -> Diagnostic {
        let diagnostic = Diagnostic::error(
            codes::UNKNOWN_LAYER,
            format!("there is no spec `{}` in this file", used.name),
            used.span,
            "a layer is a spec of the same file",
        );
        let names = self.specs.iter().map(|s| s.name.name.as_str());
        match did_you_mean(&used.name, names) {
            Some(near) => diagnostic.help(format!("did you mean `{near}`?")).fix(used.span, near),
            None => diagnostic.help(format!("copy it into this file: `spec {} {{ … }}`", used.name)),
        }
    }
}

impl Flat {
    /// Leads from a place in the text of a layer to the spec that is judged.
    pub(super) fn trace(&self, mut diagnostic: Diagnostic) -> Diagnostic {
        let mut place = diagnostic.span();
        let within = |a: Span, b: Span| b.start <= a.start && a.end <= b.end;
        for _ in 0..self.origins.len() {
            if within(place, self.spec.span) {
                break;
            }
            let Some(origin) = self.origins.iter().rev().find(|o| within(place, o.text)) else { break };
            diagnostic = diagnostic.label(origin.used, format!("in the layer `{}`", origin.name));
            place = origin.used;
        }
        diagnostic
    }

    /// Whether a place lies in the text of a layer.
    pub(super) fn borrows(&self, place: Span) -> bool {
        self.origins.iter().any(|o| o.text.start <= place.start && place.end <= o.text.end)
    }
}

/// Marks a spec on somebody else's circle.
fn silent(place: Span) -> Diagnostic {
    Diagnostic::error(codes::LAYER_CYCLE, String::new(), place, String::new())
}

/// The specs that a spec uses.
fn uses(spec: &Spec) -> impl Iterator<Item = &Ident> {
    spec.statements.iter().filter_map(|s| match &s.kind {
        StatementKind::Layer { spec, .. } => Some(spec),
        _ => None,
    })
}

/// One layer on its way into a spec.
struct Use<'f> {
    /// The index of its statement.
    at: usize,
    name: &'f Ident,
    spec: &'f Ident,
    arguments: &'f [LayerArgument],
    part: &'f Flat,
    /// Its outputs: what the outer spec calls them, and what they are called within.
    outputs: BTreeMap<String, Part>,
    /// The statements, as they will stand in the outer spec.
    statements: Vec<Statement>,
}

/// An output of a layer.
struct Part {
    /// Its name in the flat spec.
    name: String,
    /// Whether it may be read with a prime and without one.
    state: bool,
}

impl<'f> Use<'f> {
    fn new(
        at: usize,
        name: &'f Ident,
        spec: &'f Ident,
        arguments: &'f [LayerArgument],
        part: &'f Flat,
    ) -> Self {
        let declared: Vec<&Ident> = part.spec.statements.iter().flat_map(declared).collect();
        let states: BTreeSet<&str> = part.spec.statements.iter().flat_map(states).collect();
        let mut outputs = BTreeMap::new();
        for o in part.spec.statements.iter().flat_map(handed_out) {
            let own = &o.target.name.name;
            let taken = o.value.is_some() && declared.iter().any(|d| d.name == *own);
            let inner =
                if taken { format!("{}.out.{own}", name.name) } else { format!("{}.{own}", name.name) };
            let state = o.value.is_none() && states.contains(own.as_str());
            outputs.insert(format!("{}.{own}", name.name), Part { name: inner, state });
        }
        Use { at, name, spec, arguments, part, outputs, statements: vec![] }
    }

    fn own(&self, name: &str) -> String {
        format!("{}.{name}", self.name.name)
    }

    fn variables(&self) -> impl Iterator<Item = (&'f Variable, Option<&'f Ident>)> {
        self.part.spec.statements.iter().flat_map(|s| match &s.kind {
            StatementKind::Input { role, variables } => {
                variables.iter().map(|v| (v, role.as_ref())).collect::<Vec<_>>()
            }
            _ => vec![],
        })
    }

    fn axes(&self) -> impl Iterator<Item = &'f AxisDeclaration> {
        self.part.spec.statements.iter().flat_map(|s| match &s.kind {
            StatementKind::Axis(all) => all.as_slice(),
            _ => &[],
        })
    }

    fn constants(&self) -> impl Iterator<Item = &'f Ident> {
        self.part.spec.statements.iter().flat_map(|s| match &s.kind {
            StatementKind::Const(all) => all.iter().map(|(name, _)| name).collect(),
            _ => vec![],
        })
    }

    /// How the layer is written: `cell(u, r, N = …)`.
    fn signature(&self) -> String {
        let inputs: Vec<&str> = self.variables().map(|(v, _)| v.name.name.as_str()).collect();
        format!("{}({})", self.spec.name, inputs.join(", "))
    }
}

/// The names that a statement declares or defines.
fn declared(statement: &Statement) -> Vec<&Ident> {
    match &statement.kind {
        StatementKind::Axis(all) => all.iter().map(|a| &a.name).collect(),
        StatementKind::Const(all) => all.iter().map(|(name, _)| name).collect(),
        StatementKind::Input { variables, .. } | StatementKind::Noise { variables, .. } => {
            variables.iter().map(|v| &v.name).collect()
        }
        StatementKind::Parameter { declarations, .. } => {
            declarations.iter().map(|d| &d.variable.name).collect()
        }
        StatementKind::State { declarations, .. } => declarations.iter().map(|d| &d.variable.name).collect(),
        StatementKind::Equation { targets, .. } => {
            targets.iter().filter(|t| !t.primed).map(|t| &t.name).collect()
        }
        StatementKind::Layer { name, .. } => vec![name],
        StatementKind::Output(_)
        | StatementKind::Penalty(_)
        | StatementKind::Hold { .. }
        | StatementKind::Error => {
            vec![]
        }
    }
}

/// The states that a statement declares.
fn states(statement: &Statement) -> Vec<&str> {
    match &statement.kind {
        StatementKind::State { declarations, .. } => {
            declarations.iter().map(|d| d.variable.name.name.as_str()).collect()
        }
        _ => vec![],
    }
}

fn handed_out(statement: &Statement) -> &[OutputDeclaration] {
    match &statement.kind {
        StatementKind::Output(all) => all,
        _ => &[],
    }
}

/// What an argument is for.
#[derive(Default)]
struct Given {
    inputs: BTreeMap<String, Expr>,
    axes: BTreeMap<String, Expr>,
    constants: BTreeMap<String, Expr>,
}

/// The spec that has layers.
struct Outer<'s> {
    spec: &'s mut Spec,
    diagnostics: Vec<Diagnostic>,
}

impl Outer<'_> {
    /// Puts the layers into the spec.
    fn put(&mut self, mut uses: Vec<Use<'_>>) {
        self.distinct(&uses);
        let mut given: Vec<Given> = uses.iter().map(|u| self.sort(u)).collect();
        self.resolve(&uses, &mut given);
        if !self.diagnostics.is_empty() {
            self.spec.statements.retain(|s| !matches!(s.kind, StatementKind::Layer { .. }));
            return;
        }
        for (u, given) in uses.iter_mut().zip(&given) {
            u.statements = self.renamed(u, given);
        }
        self.sizes(&mut uses, &given);
        unread::remove(&self.spec.statements, &mut uses);
        for u in uses.iter_mut().rev() {
            self.spec.statements.splice(u.at..=u.at, std::mem::take(&mut u.statements));
        }
        // Those of which nothing is known.
        self.spec.statements.retain(|s| !matches!(s.kind, StatementKind::Layer { .. }));
    }

    /// A layer's name is its own.
    fn distinct(&mut self, uses: &[Use<'_>]) {
        let mut found = vec![];
        for u in uses {
            let others = self.spec.statements.iter().flat_map(declared);
            let twin = others
                .filter(|d| d.span != u.name.span && d.name == u.name.name)
                .min_by_key(|d| d.span.start);
            let Some(twin) = twin else { continue };
            let both = uses.iter().any(|v| v.name.span == twin.span);
            if both && twin.span.start > u.name.span.start {
                continue;
            }
            let diagnostic = Diagnostic::error(
                codes::DEFINED_TWICE,
                format!("`{}` is defined twice", u.name.name),
                u.name.span,
                "as a layer here",
            );
            found.push(
                diagnostic.label(twin.span, "also defined here").help("rename or remove one of the two"),
            );
        }
        self.diagnostics.extend(found);
    }

    /// What the arguments of a layer are for.
    fn sort(&mut self, u: &Use<'_>) -> Given {
        let mut given = Given::default();
        let inputs: Vec<&str> = u.variables().map(|(v, _)| v.name.name.as_str()).collect();
        for (k, argument) in u.arguments.iter().filter(|a| a.name.is_none()).enumerate() {
            match inputs.get(k) {
                Some(input) => drop(given.inputs.insert((*input).to_owned(), argument.value.clone())),
                None => self.too_many(u, argument.value.span, inputs.len()),
            }
        }
        for argument in u.arguments {
            let Some(name) = &argument.name else { continue };
            let own = name.name.as_str();
            let place = if inputs.contains(&own) {
                &mut given.inputs
            } else if u.axes().any(|a| a.name.name == own) {
                &mut given.axes
            } else if u.constants().any(|c| c.name == own) {
                &mut given.constants
            } else {
                self.unknown_argument(u, name);
                continue;
            };
            if place.insert(own.to_owned(), argument.value.clone()).is_some() {
                self.twice(u, own, name.span);
            }
        }
        for (v, role) in u.variables() {
            match given.inputs.get(&v.name.name) {
                None => self.missing(u, v),
                Some(e) if role.is_some_and(|r| r.name == "reset") && !self.is_reset(e) => {
                    self.no_reset(u, v, e.span)
                }
                Some(_) => {}
            }
        }
        given
    }

    fn wrong(&mut self, message: String, place: Span, label: String, help: String) {
        self.diagnostics.push(Diagnostic::error(codes::BAD_LAYER, message, place, label).help(help));
    }

    fn twice(&mut self, u: &Use<'_>, name: &str, place: Span) {
        let message = format!("`{name}` is given twice to the layer `{}`", u.name.name);
        self.wrong(message, place, "given again here".into(), "give every input and axis once".into());
    }

    fn too_many(&mut self, u: &Use<'_>, place: Span, count: usize) {
        let inputs = super::initial::count(count).replace("argument", "input");
        let message = format!("the spec `{}` has {inputs}", u.spec.name);
        let help = format!("write `{}`; sizes carry a name: `N = 200`", u.signature());
        self.wrong(message, place, "one too many".into(), help);
    }

    fn missing(&mut self, u: &Use<'_>, v: &Variable) {
        let message = format!("the layer `{}` lacks its input `{}`", u.name.name, v.name.name);
        let diagnostic = Diagnostic::error(codes::BAD_LAYER, message, u.spec.span, "not given here")
            .label(v.span, "declared here")
            .help(format!("write `layer {} = {}`", u.name.name, u.signature()));
        self.diagnostics.push(diagnostic);
    }

    fn unknown_argument(&mut self, u: &Use<'_>, name: &Ident) {
        let axes = u.axes().map(|a| a.name.name.as_str());
        let inputs = u.variables().map(|(v, _)| v.name.name.as_str());
        let known = inputs.chain(axes).chain(u.constants().map(|c| c.name.as_str()));
        let known: Vec<&str> = known.filter(|k| !k.contains('.')).collect();
        let message = format!("the spec `{}` has no input, axis or constant `{}`", u.spec.name, name.name);
        let diagnostic = Diagnostic::error(codes::BAD_LAYER, message, name.span, "not known there");
        self.diagnostics.push(match did_you_mean(&name.name, known.iter().copied()) {
            Some(near) => diagnostic.help(format!("did you mean `{near}`?")).fix(name.span, near),
            None => diagnostic.help(format!("it has {}", known.join(", "))),
        });
    }

    fn is_reset(&self, e: &Expr) -> bool {
        let ExprKind::Name { name, primed: false } = &e.kind else { return false };
        self.role(name) == Some(Some("reset"))
    }

    /// The role of an input of the outer spec.
    fn role(&self, name: &str) -> Option<Option<&str>> {
        self.spec.statements.iter().find_map(|s| match &s.kind {
            StatementKind::Input { role, variables } if variables.iter().any(|v| v.name.name == name) => {
                Some(role.as_ref().map(|r| r.name.as_str()))
            }
            StatementKind::Noise { variables, .. } if variables.iter().any(|v| v.name.name == name) => {
                Some(Some("noise"))
            }
            _ => None,
        })
    }

    fn no_reset(&mut self, u: &Use<'_>, v: &Variable, place: Span) {
        let message = format!("`{}` of the layer `{}` resets the states of a row", v.name.name, u.name.name);
        let help = "hand over a reset input: `in reset e`; it resets the whole network";
        self.wrong(message, place, "not a reset input".into(), help.into());
    }

    /// Turns what the outer spec reads of its layers into names of the flat spec.
    fn resolve(&mut self, uses: &[Use<'_>], given: &mut [Given]) {
        let mut reader = Reader { uses, diagnostics: vec![] };
        for statement in &mut self.spec.statements {
            visit::statement(&mut statement.kind, &mut reader);
        }
        for g in given {
            let all = g.inputs.values_mut().chain(g.axes.values_mut()).chain(g.constants.values_mut());
            all.for_each(|e| visit::expr(e, &mut reader));
        }
        for d in reader.diagnostics {
            if !self.diagnostics.contains(&d) {
                self.diagnostics.push(d);
            }
        }
    }

    /// The statements of a layer under their new names, with equations for its inputs and outputs.
    fn renamed(&self, u: &Use<'_>, given: &Given) -> Vec<Statement> {
        let names = u.part.spec.statements.iter().flat_map(declared).map(|d| d.name.clone()).collect();
        let mut rename = Rename { owner: &u.name.name, names };
        let mut found = vec![];
        for statement in &u.part.spec.statements {
            let mut statement = statement.clone();
            visit::statement(&mut statement.kind, &mut rename);
            match statement.kind {
                StatementKind::Input { variables, role } => {
                    for v in variables {
                        found.extend(self.binding(u, given, v, role.as_ref(), &statement.doc));
                    }
                }
                StatementKind::Output(all) => {
                    for o in all {
                        found.extend(output(u, o, &statement.doc, statement.span));
                    }
                }
                StatementKind::Const(mut all) => {
                    for (name, value) in &mut all {
                        if let Some(other) = given.constants.get(&name.name[u.name.name.len() + 1..]) {
                            *value = other.clone();
                        }
                    }
                    found.push(Statement { kind: StatementKind::Const(all), ..statement });
                }
                kind => found.push(Statement { kind, ..statement }),
            }
        }
        found
    }

    /// `one.u[one.I] = u`
    fn binding(
        &self,
        u: &Use<'_>,
        given: &Given,
        v: Variable,
        role: Option<&Ident>,
        doc: &[String],
    ) -> Option<Statement> {
        let argument = given.inputs.get(&v.name.name[u.name.name.len() + 1..])?.clone();
        let span = argument.span;
        let plain = match &argument.kind {
            ExprKind::Number(_) => true,
            ExprKind::Name { name, primed: false } => matches!(self.role(name), Some(Some(_))),
            _ => false,
        };
        let value = match role.is_none() || plain {
            true => argument,
            false => {
                let function = Ident { name: "stopgrad".into(), span };
                Expr { kind: ExprKind::Call { function, arguments: vec![argument] }, span }
            }
        };
        let axes = (!v.axes.is_empty()).then_some(v.axes);
        let target = Target { name: v.name, primed: false, axes, span: v.span };
        let kind = StatementKind::Equation { modulator: false, targets: vec![target], tuple: false, value };
        Some(Statement { doc: doc.to_vec(), kind, span })
    }
}

/// `one.z[one.A] = …` of `out z[A] = …`
fn output(u: &Use<'_>, o: OutputDeclaration, doc: &[String], span: Span) -> Option<Statement> {
    let value = o.value?;
    let part = u.outputs.get(&u.own(&o.target.name.name))?;
    let name = Ident { name: part.name.clone(), span: o.target.name.span };
    let target = Target { name, ..o.target };
    let kind = StatementKind::Equation { modulator: false, targets: vec![target], tuple: false, value };
    Some(Statement { doc: doc.to_vec(), kind, span })
}

/// Gives the names of a layer their owner. The names of outputs are no names of the spec.
struct Rename<'u> {
    owner: &'u str,
    names: BTreeSet<String>,
}

impl Rename<'_> {
    fn rename(&self, name: &mut String) {
        if self.names.contains(name) {
            *name = format!("{}.{name}", self.owner);
        }
    }
}

impl Visitor for Rename<'_> {
    fn name(&mut self, name: &mut Ident) {
        self.rename(&mut name.name);
    }

    fn output(&mut self, _name: &mut Ident) {}

    fn expr(&mut self, e: &mut Expr) {
        if let ExprKind::Name { name, .. } = &mut e.kind {
            self.rename(name);
        }
    }
}

/// Reads parts of layers in the outer spec.
struct Reader<'u, 'f> {
    uses: &'u [Use<'f>],
    diagnostics: Vec<Diagnostic>,
}

impl Visitor for Reader<'_, '_> {
    fn expr(&mut self, e: &mut Expr) {
        let ExprKind::Name { name, primed } = &mut e.kind else { return };
        let Some(u) =
            name.split_once('.').and_then(|(owner, _)| self.uses.iter().find(|u| u.name.name == owner))
        else {
            if let Some(u) = self.uses.iter().find(|u| u.name.name == *name) {
                self.diagnostics.push(whole(u, e.span));
            }
            return;
        };
        match u.outputs.get(name) {
            Some(part) if *primed && !part.state => self.diagnostics.push(primed_part(name, e.span)),
            Some(part) => name.clone_from(&part.name),
            None if u.axes().any(|a| u.own(&a.name.name) == *name) => {}
            None => self.diagnostics.push(no_part(u, name, e.span)),
        }
    }
}

/// The outputs of a layer as the outer spec writes them.
fn parts(u: &Use<'_>) -> Vec<String> {
    u.outputs.iter().map(|(name, part)| if part.state { format!("{name}'") } else { name.clone() }).collect()
}

fn whole(u: &Use<'_>, place: Span) -> Diagnostic {
    let name = &u.name.name;
    let diagnostic = Diagnostic::error(
        codes::NO_PART,
        format!("`{name}` is a layer, not a value"),
        place,
        "a whole network",
    );
    let diagnostic = diagnostic.label(u.name.span, "defined here");
    match parts(u).as_slice() {
        [] => diagnostic.help(format!("give the spec `{}` an output: `out y'`", u.spec.name)),
        all => diagnostic.help(format!("read one of its outputs: {}", all.join(", "))),
    }
}

fn primed_part(name: &str, place: Span) -> Diagnostic {
    Diagnostic::error(
        codes::NO_PART,
        format!("`{name}` takes no prime"),
        place,
        "an output of this step, not a state",
    )
    .help(format!("write `{name}`"))
    .fix(place, name)
}

fn no_part(u: &Use<'_>, name: &str, place: Span) -> Diagnostic {
    let own = name.split_once('.').map_or(name, |(_, own)| own);
    let hidden = u.part.spec.statements.iter().flat_map(declared).find(|d| d.name == own);
    let diagnostic = Diagnostic::error(
        codes::NO_PART,
        format!("the layer `{}` hands out no `{own}`", u.name.name),
        place,
        "only outputs and axes of a layer can be read",
    );
    if let Some(hidden) = hidden {
        let state = u.part.spec.statements.iter().flat_map(states).any(|s| s == own);
        let prime = if state { "'" } else { "" };
        return diagnostic
            .label(hidden.span, format!("`{own}` stays inside of `{}`", u.spec.name))
            .help(format!("write `out {own}{prime}` in the spec `{}`", u.spec.name));
    }
    match did_you_mean(name, u.outputs.keys().map(String::as_str)) {
        Some(near) => diagnostic.help(format!("did you mean `{near}`?")),
        None => diagnostic.help(match parts(u).as_slice() {
            [] => format!("the spec `{}` has no outputs", u.spec.name),
            all => format!("it hands out {}", all.join(", ")),
        }),
    }
}
