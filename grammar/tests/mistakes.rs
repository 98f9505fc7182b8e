//! Every syntax error with its text. A case is a file in `mistakes/`; what it prints is in `snapshots/`.

use grammar::diag::{Diagnostic, Fix};
use grammar::span::Span;
use std::collections::BTreeSet;
use std::path::PathBuf;

fn cases() -> Vec<(String, String)> {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/mistakes");
    let entries = std::fs::read_dir(folder).expect("the folder of cases is in the repository");
    let mut paths: Vec<PathBuf> = entries.map(|e| e.expect("a readable folder").path()).collect();
    paths.sort();
    let read = |p: &PathBuf| {
        let name = p.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        (name, std::fs::read_to_string(p).expect("a case is text"))
    };
    paths.iter().map(read).collect()
}

#[test]
fn texts() {
    let cases = cases();
    assert!(cases.len() >= 35, "only {} cases", cases.len());
    for (name, source) in cases {
        let diagnostics = grammar::parse(&source).diagnostics;
        let path = format!("{name}.bpm");
        let text = grammar::render::human(&path, &source, &diagnostics, false);
        let summary = grammar::render::summary(&path, &diagnostics);
        insta::assert_snapshot!(name, format!("{text}\n{summary}\n"));
    }
}

#[test]
fn every_code_has_a_case() {
    let mut seen = BTreeSet::new();
    for (_, source) in cases() {
        seen.extend(grammar::parse(&source).diagnostics.iter().map(|d| d.code));
    }
    let missing: Vec<_> = grammar::codes::ALL.iter().filter(|(code, _)| !seen.contains(code)).collect();
    assert!(missing.is_empty(), "no case for {missing:?}");
    assert_eq!(seen.len(), grammar::codes::ALL.len(), "a code is missing from the list");
}

fn apply(source: &str, fix: &Fix) -> String {
    let mut text = source.to_owned();
    text.replace_range(fix.span.range(), &fix.replacement);
    text
}

/// Whether a diagnostic of this code stands at this place.
fn stands(diagnostics: &[Diagnostic], code: &str, place: Span) -> bool {
    diagnostics.iter().any(|d| d.code == code && d.span() == place)
}

#[test]
fn every_fix_mends_its_mistake() {
    let mut tried = 0;
    for (name, source) in cases() {
        let before = grammar::parse(&source).diagnostics;
        for diagnostic in &before {
            let Some(fix) = &diagnostic.fix else { continue };
            let after = grammar::parse(&apply(&source, fix)).diagnostics;
            let gone = !stands(&after, diagnostic.code, diagnostic.span());
            let message = &diagnostic.message;
            assert!(gone, "{name}: {message}: the fix leaves the mistake");
            assert!(after.len() <= before.len(), "{name}: {message}: the fix makes new mistakes: {after:#?}");
            tried += 1;
        }
    }
    assert!(tried > 60, "only {tried} fixes tried");
}

#[test]
fn a_mistake_does_not_hide_the_next_statement() {
    for (name, source) in cases() {
        if source.contains("  z = 1\n}") {
            let file = grammar::parse(&source).file;
            let text = format!("{file:?}");
            assert!(text.contains("name: \"z\""), "{name}: `z = 1` is lost");
        }
    }
}
