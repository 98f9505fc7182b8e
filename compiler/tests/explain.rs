//! Every code has a page, and the examples of a page are what it says they are.

use std::collections::BTreeSet;

/// The fenced block of a page whose fence is `kind`.
fn example(page: &str, kind: &str) -> String {
    let fence = format!("```{kind}\n");
    let start = page.find(&fence).unwrap_or_else(|| panic!("no example {kind:?} in\n{page}")) + fence.len();
    let length = page[start..].find("```").expect("a closed example");
    page[start..start + length].to_owned()
}

fn codes(source: &str) -> BTreeSet<&'static str> {
    compiler::check::check(source).diagnostics.iter().map(|d| d.code).collect()
}

#[test]
fn every_code_has_a_page() {
    let ours = compiler::check::codes::ALL.iter().copied();
    let parser = grammar::codes::ALL.iter().map(|(code, _)| *code);
    let expected: BTreeSet<&str> = ours.chain(parser).collect();
    let pages: BTreeSet<&str> = compiler::explain::CODES.iter().copied().collect();
    assert_eq!(pages, expected);
    for code in pages {
        let page = compiler::explain::explain(code).expect("a page");
        assert!(page.starts_with(&format!("# {code}: ")), "{code}");
    }
    assert_eq!(compiler::explain::explain("BPM9999"), None);
}

#[test]
fn wrong_examples_give_their_code_and_right_ones_nothing() {
    let mut failures = vec![];
    for code in compiler::explain::CODES {
        let page = compiler::explain::explain(code).expect("a page");
        if compiler::check::codes::REMARKS.contains(code) {
            continue;
        }
        let wrong = codes(&example(page, "bpm wrong"));
        if wrong != BTreeSet::from([*code]) {
            failures.push(format!("{code}: the wrong example gives {wrong:?}"));
        }
        let right = codes(&example(page, "bpm"));
        if !right.is_empty() {
            failures.push(format!("{code}: the right example gives {right:?}"));
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

#[test]
fn remarks_say_what_the_examples_show() {
    for code in compiler::check::codes::REMARKS {
        let page = compiler::explain::explain(code).expect("a page");
        let checked = compiler::check::check(&example(page, "bpm"));
        assert!(checked.diagnostics.is_empty(), "{code}");
        let remarks = compiler::check::remarks(&checked.models[0]);
        assert!(remarks.iter().any(|d| d.code == *code), "{code}");
    }
}

/// The remarks on the plastic state of a network with these equations.
fn remarks(equations: &str) -> Vec<String> {
    let source = format!(
        "spec s {{\n  axis N = 4\n  in u[N], v[N]\n  learn W[N,N] ~ linear\n  state y[N] = 0\n{equations}\n}}"
    );
    let checked = compiler::check::check(&source);
    let texts: Vec<&str> = checked.diagnostics.iter().map(|d| d.message.as_str()).collect();
    assert_eq!(checked.models.len(), 1, "{texts:?}");
    compiler::check::remarks(&checked.models[0]).into_iter().map(|d| d.message).collect()
}

fn expect(equations: &str, latency: &str, locality: &str, class: &str) {
    let found = remarks(equations);
    for (text, wanted) in found.iter().zip([latency, locality, class]) {
        assert!(text.contains(wanted), "{text}\n{wanted}\n{equations}");
    }
    assert_eq!(found.len(), 3, "{equations}");
}

#[test]
fn remarks_tell_rules_apart() {
    let plastic = "  plastic H[N,N] = 0\n  y' = tanh(u + W @ v + H @ y)\n  out y'\n";
    let rule = |rhs: &str| format!("{plastic}  H'[j,i] = {rhs}");
    expect(&rule("clip(H + y'[j] * y[i], -1, 1)"), "one step", "two-factor", "class C");
    expect(&rule("0.9 * H + mean(y') * y'[j] * y[i]"), "one step", "three-factor", "class B");
    expect(&rule("rownorm(H + y'[j] * y[i])"), "one step", "local to a population", "class D");
    expect(&rule("frobcap(H + y'[j] * y[i], 1)"), "one step", "global", "class D");
    expect(&rule("0.9 * H + 0.1 * tanh(y'[j] * y[i])"), "one step", "two-factor", "class B");
    let retroactive =
        rule("clip(H + mean(y') * E, -1, 1)\n  trace E[N,N] = 0\n  E'[j,i] = 0.9 * E + y'[j] * y[i]");
    expect(&retroactive, "2 steps", "three-factor", "class C");
    let delta = "  plastic H[N,N] = 0\n  y' = W @ u\n  k = softmax(u)\n\
                 \x20 H'[j,i] = H + 0.5 * (v - H @ k)[j] * k[i]\n  out z = H' @ k + y";
    expect(delta, "same step", "local to a population", "class A");
}
