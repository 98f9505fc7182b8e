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
