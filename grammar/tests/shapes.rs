//! What text becomes which tree.

use grammar::ast::{
    Constraint, Expr, ExprKind, Index, Initial, Item, ParameterKind, Reset, Spec, StateKind, StatementKind,
};
use grammar::expr_text;

fn spec(body: &str) -> Spec {
    let source = format!("spec s {{\n{body}\n}}");
    let parsed = grammar::parse(&source);
    let text = grammar::render::human("s.bpm", &source, &parsed.diagnostics, false);
    assert!(parsed.diagnostics.is_empty(), "{text}");
    match parsed.file.items.into_iter().next() {
        Some(Item::Spec(spec)) => spec,
        other => panic!("no spec: {other:?}"),
    }
}

fn one(body: &str) -> StatementKind {
    let mut statements = spec(body).statements;
    assert_eq!(statements.len(), 1, "{statements:#?}");
    statements.remove(0).kind
}

fn value(text: &str) -> Expr {
    match one(&format!("z = {text}")) {
        StatementKind::Equation { value, .. } => value,
        other => panic!("no equation: {other:?}"),
    }
}

/// An expression with all its parentheses.
fn tree(expr: &Expr) -> String {
    match &expr.kind {
        ExprKind::Binary { op, left, right, .. } => format!("{op:?}({}, {})", tree(left), tree(right)),
        ExprKind::Negate(inner) => format!("Neg({})", tree(inner)),
        ExprKind::Transpose(inner) => format!("T({})", tree(inner)),
        ExprKind::Index { base, index, .. } => format!("{index:?}<{}>", tree(base)),
        ExprKind::Call { function, arguments } => {
            let arguments: Vec<String> = arguments.iter().map(tree).collect();
            format!("{}({})", function.name, arguments.join(", "))
        }
        _ => expr_text(expr),
    }
}

fn check(text: &str, expected: &str) {
    assert_eq!(tree(&value(text)), expected, "{text}");
}

#[test]
fn precedence() {
    check("a + b * c", "Add(a, Mul(b, c))");
    check("a - b - c", "Sub(Sub(a, b), c)");
    check("a * W @ x", "Mul(a, Contract(W, x))");
    check("W @ x . y", "Dot(Contract(W, x), y)");
    check("-a * b", "Mul(Neg(a), b)");
    check("-x^2", "Neg(Pow(x, 2))");
    check("x^-2", "Pow(x, Neg(2))");
    check("a @ -v", "Contract(a, Neg(v))");
    check("a + b < c", "Less(Add(a, b), c)");
    check("(a + b) * c", "Mul(Add(a, b), c)");
    check("W^T @ v", "Contract(T(W), v)");
    check("W ^ T @ v", "Contract(T(W), v)");
    check("-(v - H @ k)[j] * b[0]", "Mul(Neg(Post<Sub(v, Contract(H, k))>), Element(0)<b>)");
    check("y'[j] * y[i] * M[j,i]", "Mul(Mul(Post<y'>, Pre<y>), Both<M>)");
}

#[test]
fn dots_and_numbers() {
    check("wm.y'", "Dot(wm, y')");
    check("wm . y'", "Dot(wm, y')");
    check("a + .5", "Add(a, 0.5)");
    check("1e-3 * 2.5e4", "Mul(0.001, 25000)");
    check("a.b.c", "Dot(Dot(a, b), c)");
    check("f(a, g())", "f(a, g())");
}

/// The dot behind a layer's name is no product, whatever stands before it.
#[test]
fn parts_of_layers() {
    let value = |text: &str| {
        let parsed = spec(&format!("layer one = cell(u, N = 2*M, r = -one.h)\nz = {text}"));
        match &parsed.statements[1].kind {
            StatementKind::Equation { value, .. } => tree(value),
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(value("one.h'"), "one.h'");
    assert_eq!(value("W @ one.h' + b"), "Add(Contract(W, one.h'), b)");
    assert_eq!(value("a . one.h . one.h"), "Dot(Dot(a, one.h), one.h)");
    assert_eq!(value("one.h'[j] * two.h[i]"), "Mul(Post<one.h'>, Dot(two, Pre<h>))");
    assert_eq!(value("one . h"), "Dot(one, h)");
    assert_eq!(value("f(one.h)^2"), "Pow(f(one.h), 2)");
    let StatementKind::Layer { name, spec, arguments } = one("layer one = cell(u, N = 2*M)") else {
        panic!("no layer")
    };
    assert_eq!((name.name.as_str(), spec.name.as_str()), ("one", "cell"));
    assert_eq!(arguments[0].name, None);
    assert_eq!(arguments[1].name.as_ref().map(|n| n.name.as_str()), Some("N"));
}

#[test]
fn lines_go_on_at_operators_only() {
    check("a\n  + b // here\n  # and here\n  * c", "Add(a, Mul(b, c))");
    let statements = spec("z = tanh(x)\n(f, g) = split(z, 2)\n").statements;
    assert_eq!(statements.len(), 2);
    let statements = spec("a = b; c = d\nlearn W[N,N]\nin u[I]").statements;
    assert_eq!(statements.len(), 4);
}

#[test]
fn sizes_of_axes() {
    let StatementKind::State { declarations, kind: StateKind::State } = one("state y[3N,I+N,2*N]") else {
        panic!("no state")
    };
    let axes: Vec<String> = declarations[0].variable.axes.iter().map(tree).collect();
    assert_eq!(axes, ["Mul(3, N)", "Add(I, N)", "Mul(2, N)"]);
    let StatementKind::Axis(axes) = one("axis I = ?, N = 200, M = 2N") else { panic!("no axis") };
    assert!(axes[0].size.is_none() && axes[1].size.is_some());
    assert_eq!(axes[2].size.as_ref().map(tree).as_deref(), Some("Mul(2, N)"));
}

#[test]
fn parameters() {
    let StatementKind::Parameter { kind, declarations } =
        one("learn W[N,N], alpha[N,N] in (0,1) ~ uniform(0, 0.01) gradscale 1/N rank 2 tied x, a > 0 = 1")
    else {
        panic!("no parameters")
    };
    assert_eq!(kind, ParameterKind::Learn);
    assert!(declarations[0].initial.is_none() && declarations[0].constraint.is_none());
    assert!(matches!(declarations[1].constraint, Some(Constraint::Interval { .. })));
    assert!(matches!(&declarations[1].initial, Some(Initial::Distribution { name, arguments })
        if name.name == "uniform" && arguments.len() == 2));
    let words: Vec<&str> = declarations[1].attributes.iter().map(|a| a.word.name.as_str()).collect();
    assert_eq!(words, ["gradscale", "rank", "tied"]);
    assert!(matches!(declarations[2].constraint, Some(Constraint::Compare { .. })));
    assert!(matches!(declarations[2].initial, Some(Initial::Value(_))));
}

#[test]
fn states() {
    let StatementKind::State { declarations, kind } = one(
        "plastic A[N] = learn ~ normal(0,.1), B[N] = 0 per episode, C[N] every 3 episodes, D[N] persist unbounded",
    ) else {
        panic!("no states")
    };
    assert_eq!(kind, StateKind::Plastic);
    assert!(matches!(&declarations[0].initial, Some(Initial::Learn { start: Some(_), .. })));
    assert!(matches!(declarations[1].reset, Some(Reset::PerEpisode(_))));
    assert!(matches!(declarations[2].reset, Some(Reset::Every { .. })));
    assert!(matches!(declarations[3].reset, Some(Reset::Persist(_))));
    assert_eq!(declarations[3].attributes[0].word.name, "unbounded");
}

#[test]
fn inputs_and_outputs() {
    let StatementKind::Input { role, variables } = one("in mod r, s[K]") else { panic!("no input") };
    assert_eq!(role.map(|r| r.name).as_deref(), Some("mod"));
    assert_eq!(variables.len(), 2);
    let StatementKind::Input { role: None, .. } = one("in u[I]") else { panic!("a role") };
    let StatementKind::Output(outputs) = one("out y', z = e, policy[A] = Wo @ y'") else {
        panic!("no output")
    };
    assert!(outputs[0].target.primed && outputs[0].value.is_none());
    assert!(outputs[2].target.axes.is_some() && outputs[2].value.is_some());
    let StatementKind::Hold { states, .. } = one("hold S, y when e > 0") else { panic!("no hold") };
    assert_eq!(states.len(), 2);
}

#[test]
fn equations() {
    let StatementKind::Equation { modulator: true, targets, tuple: false, .. } =
        one("modulator m[N] = tanh(x)")
    else {
        panic!("no modulator")
    };
    assert!(targets[0].axes.is_some());
    let StatementKind::Equation { tuple: true, targets, .. } = one("(f, i, o) = split(e, 3)") else {
        panic!("no tuple")
    };
    assert_eq!(targets.len(), 3);
    let StatementKind::Equation { targets, .. } = one("H'[j,i] = H") else { panic!("no equation") };
    assert!(targets[0].primed);
}

#[test]
fn rules_documentation_and_places() {
    let source = "/// Oja.\n/// Twice.\nrule oja(x[i], y[j], w) = y[j] * x[i]  // end\n\n// plain\n/// A spec.\n\
                  spec plastic {\n  /// doc of y\n  state y[N] // trailing\n}\n";
    let parsed = grammar::parse(source);
    assert!(parsed.diagnostics.is_empty(), "{:?}", parsed.diagnostics);
    let [Item::Rule(rule), Item::Spec(spec)] = &parsed.file.items[..] else { panic!("two items") };
    assert_eq!(rule.doc, ["Oja.", "Twice."]);
    assert_eq!(rule.parameters[0].index, Some(Index::Pre));
    assert_eq!(rule.parameters[2].index, None);
    assert_eq!(&source[rule.span.range()], "rule oja(x[i], y[j], w) = y[j] * x[i]");
    assert_eq!(spec.doc, ["A spec."]);
    assert_eq!(spec.statements[0].doc, ["doc of y"]);
    assert_eq!(&source[spec.statements[0].span.range()], "state y[N]");
    assert_eq!(parsed.comments.len(), 7);
    assert!(!parsed.comments[6].own_line && !parsed.comments[6].doc);
}

#[test]
fn spans_cover_the_parentheses() {
    let source = "spec s {\n  z = (a + b) * c  // x\n}";
    let parsed = grammar::parse(source);
    let Item::Spec(spec) = &parsed.file.items[0] else { panic!("a spec") };
    let StatementKind::Equation { value, .. } = &spec.statements[0].kind else { panic!("an equation") };
    assert_eq!(&source[value.span.range()], "(a + b) * c");
}
