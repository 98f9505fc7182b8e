//! Wrong specs and what is said about them. A case is a file in `wrong/`; the text it must give stands
//! beside it as `.stderr`. `UPDATE_GOLDEN=1` rewrites the texts.

use std::collections::BTreeSet;
use std::path::PathBuf;

fn cases() -> Vec<PathBuf> {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/wrong");
    let entries = std::fs::read_dir(folder).expect("the folder of cases is in the repository");
    let mut paths: Vec<PathBuf> = entries.map(|e| e.expect("a readable folder").path()).collect();
    paths.retain(|p| p.extension().is_some_and(|e| e == "bpm"));
    paths.sort();
    paths
}

#[test]
fn texts() {
    let update = std::env::var_os("UPDATE_GOLDEN").is_some();
    let cases = cases();
    assert!(cases.len() >= 60, "only {} cases", cases.len());
    let mut failures = vec![];
    for path in cases {
        let source = std::fs::read_to_string(&path).expect("a case is text");
        let diagnostics = compiler::check::check(&source).diagnostics;
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        assert!(!diagnostics.is_empty(), "nothing is said about {name}");
        let text = grammar::render::human(&name, &source, &diagnostics, false);
        let golden = path.with_extension("stderr");
        if update {
            std::fs::write(&golden, text).expect("the text can be written");
        } else if std::fs::read_to_string(&golden).unwrap_or_default() != text {
            failures.push(text);
        }
    }
    assert!(failures.is_empty(), "changed:\n{}", failures.join("\n"));
}

#[test]
fn every_code_of_the_checker_has_a_case() {
    let mut seen = BTreeSet::new();
    for path in cases() {
        let source = std::fs::read_to_string(&path).expect("a case is text");
        seen.extend(compiler::check::check(&source).diagnostics.iter().map(|d| d.code));
    }
    let remarks = compiler::check::codes::REMARKS;
    let missing: Vec<&&str> =
        compiler::check::codes::ALL.iter().filter(|c| !seen.contains(*c) && !remarks.contains(c)).collect();
    assert!(missing.is_empty(), "no case for {missing:?}");
}
