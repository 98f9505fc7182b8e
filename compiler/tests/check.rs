//! No text makes the checker panic, and what it lets through obeys the law of the step IR.

use proptest::prelude::*;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

fn specs(folder: &Path, found: &mut Vec<PathBuf>) {
    let mut entries: Vec<PathBuf> = std::fs::read_dir(folder)
        .expect("the folder of specs")
        .map(|e| e.expect("an entry").path())
        .collect();
    entries.sort();
    for path in entries {
        if path.is_dir() {
            specs(&path, found);
        } else if path.extension().is_some_and(|e| e == "bpm") {
            found.push(path);
        }
    }
}

/// The model library and the wrong specs, as lists of tokens.
static CASES: LazyLock<Vec<Vec<String>>> = LazyLock::new(|| {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut files = vec![];
    specs(&root.join("specs"), &mut files);
    specs(&root.join("tests/wrong"), &mut files);
    files.iter().map(|p| tokens(&std::fs::read_to_string(p).expect("a readable spec"))).collect()
});

/// Words and numbers, spaces, and single other characters. Comments are left out: nothing happens
/// in them.
fn tokens(source: &str) -> Vec<String> {
    let lines = source.lines().filter(|l| !l.trim_start().starts_with("//"));
    let text: Vec<&str> = lines.collect();
    let mut found: Vec<String> = vec![];
    for c in text.join("\n").chars() {
        let kind = |c: char| c.is_alphanumeric() || c == '_';
        match found.last_mut() {
            Some(last) if kind(c) && last.chars().all(kind) => last.push(c),
            _ => found.push(c.to_string()),
        }
    }
    found
}

#[test]
fn the_library_obeys_the_law() {
    let mut files = vec![];
    specs(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../specs"), &mut files);
    let mut models = 0;
    for path in files {
        let source = std::fs::read_to_string(&path).expect("a readable spec");
        let checked = compiler::check::check(&source);
        assert!(checked.diagnostics.iter().all(|d| !d.is_error()), "{}", path.display());
        for model in &checked.models {
            assert_eq!(compiler::ir::verify(&model.step), Ok(()), "{}", path.display());
            models += 1;
        }
    }
    assert!(models > 30, "only {models} models");
}

/// A change of a list of tokens: what, where, and from where.
fn change() -> impl Strategy<Value = (u8, prop::sample::Index, prop::sample::Index)> {
    (0u8..4, any::<prop::sample::Index>(), any::<prop::sample::Index>())
}

fn apply(tokens: &mut Vec<String>, kind: u8, at: usize, from: usize) {
    match kind {
        0 => drop(tokens.remove(at)),
        1 => tokens.insert(at, tokens[from].clone()),
        2 => tokens.swap(at, from),
        _ => tokens[at] = tokens[from].clone(),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(1500) })]

    #[test]
    fn changed_specs_never_panic(
        case in any::<prop::sample::Index>(),
        changes in prop::collection::vec(change(), 1..6),
    ) {
        let mut tokens = case.get(&CASES).clone();
        for (kind, at, from) in changes {
            if tokens.len() < 2 {
                break;
            }
            let (at, from) = (at.index(tokens.len()), from.index(tokens.len()));
            apply(&mut tokens, kind, at, from);
        }
        let source = tokens.concat();
        let checked = compiler::check::check(&source);
        let errors = checked.diagnostics.iter().any(|d| d.is_error());
        prop_assert!(errors || !checked.models.is_empty() || !source.contains("spec"));
        for d in &checked.diagnostics {
            prop_assert!(d.span().end as usize <= source.len());
            prop_assert!(compiler::explain::explain(d.code).is_some());
        }
        checked.models.iter().for_each(|m| drop(compiler::check::remarks(m)));
        // Whatever is said can be shown.
        grammar::render::human("case.bpm", &source, &checked.diagnostics, false);
    }
}

#[test]
fn endless_expressions_are_refused() {
    let deep = format!("spec s {{\n  in u\n  out y = {}u{}\n}}", "tanh(".repeat(5000), ")".repeat(5000));
    let long = format!("spec s {{\n  in u\n  out y = u{}\n}}", " + u".repeat(20_000));
    let chain: String = (0..3000).map(|k| format!("  x{} = x{k} + 1\n", k + 1)).collect();
    let chain = format!("spec s {{\n  in x0\n{chain}  out x3000\n}}");
    assert!(compiler::check::check(&deep).models.is_empty());
    assert!(compiler::check::check(&long).models.is_empty());
    assert_eq!(compiler::check::check(&chain).models.len(), 1);
}
