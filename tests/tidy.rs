//! The house rules that a program can check: which way dependencies point, that every file says
//! what it is for, that no rule of the library is known to the compiler, and that the map of the
//! project is short and names every module.

mod support;

use std::path::Path;
use support::{files, root};

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

fn shown(path: &Path) -> String {
    path.strip_prefix(root()).unwrap_or(path).display().to_string()
}

/// The code of a file without its tests and comments.
fn code(text: &str) -> String {
    let text = text.split("#[cfg(test)]\nmod tests").next().unwrap_or(text);
    text.lines().filter(|l| !l.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n")
}

/// A folder and the names that its code must not use.
const FORBIDDEN: [(&str, &[&str]); 18] = [
    ("grammar/src", &["compiler::", "runtime::"]),
    ("compiler/src", &["runtime::"]),
    // A second opinion on gradients knows nothing of the first.
    (
        "torch/src",
        &["runtime::", "compiler::autodiff", "compiler::interp", "compiler::loops", "compiler::back"],
    ),
    ("compiler/src/ir", &["crate::check", "crate::autodiff", "crate::loops", "crate::back", "crate::interp"]),
    ("compiler/src/check", &["crate::loops", "crate::back", "crate::interp"]),
    ("compiler/src/autodiff", &["crate::check", "crate::loops", "crate::back", "crate::interp"]),
    ("compiler/src/passes", &["crate::check", "crate::autodiff", "crate::back", "crate::interp"]),
    ("compiler/src/loops", &["crate::check", "crate::autodiff", "crate::back", "crate::interp"]),
    ("compiler/src/back", &["crate::check", "crate::autodiff", "crate::interp"]),
    ("compiler/src/back/cranelift/", &["crate::model"]),
    ("compiler/src/back/x64", &["crate::model"]),
    ("compiler/src/back/cuda", &["crate::model"]),
    ("compiler/src/back/torch", &["crate::loops", "crate::passes"]),
    ("runtime/src/engine", &["crate::task", "crate::learner", "crate::train", "crate::recipe"]),
    ("runtime/src/sequence", &["crate::task", "crate::learner", "crate::train", "crate::recipe"]),
    ("runtime/src/task", &["crate::engine", "crate::train", "crate::learner"]),
    ("runtime/src/learner", &["crate::engine", "crate::train", "crate::run"]),
    ("runtime/src/optim.rs", &["crate::engine", "crate::train"]),
];

#[test]
fn dependencies_point_one_way() {
    let mut wrong = vec![];
    for (folder, names) in FORBIDDEN {
        let path = root().join(folder);
        let inside = if path.is_dir() { files(folder, "rs") } else { vec![path] };
        assert!(!inside.is_empty(), "{folder} exists");
        for path in inside {
            let text = code(&read(&path));
            for name in names.iter().filter(|n| text.contains(**n)) {
                wrong.push(format!("{} uses {name}", shown(&path)));
            }
        }
    }
    for (package, names) in [
        ("grammar", vec!["bpm-compiler", "compiler =", "runtime ="]),
        ("compiler", vec!["runtime =", "torch ="]),
    ] {
        let text = read(&root().join(package).join("Cargo.toml"));
        for name in names.iter().filter(|n| text.contains(**n)) {
            wrong.push(format!("{package}/Cargo.toml names {name}"));
        }
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

#[test]
fn no_rule_is_known_to_the_programs() {
    let mut names: Vec<String> = support::all_specs().into_iter().map(|(name, _)| name).collect();
    names.retain(|n| n.len() > 5);
    for folder in ["grammar/src", "compiler/src", "torch/src", "runtime/src", "python/src"] {
        for path in files(folder, "rs") {
            let text = code(&read(&path));
            for name in &names {
                assert!(!text.contains(&format!("\"{name}\"")), "{} knows the spec {name}", shown(&path));
            }
        }
    }
}

#[test]
fn every_file_says_what_it_is_for() {
    for folder in ["grammar", "compiler", "torch", "runtime", "python", "tests"] {
        for path in files(folder, "rs") {
            assert!(read(&path).starts_with("//!"), "{} begins with `//!`", shown(&path));
        }
    }
}

#[test]
fn the_map_is_short_and_complete() {
    let map = read(&root().join("ARCHITECTURE.md"));
    assert!(map.lines().count() <= 200, "ARCHITECTURE.md has at most 200 lines");
    for package in ["grammar", "compiler", "torch", "runtime", "python"] {
        for path in files(&format!("{package}/src"), "rs") {
            let inside = path.strip_prefix(root().join(package).join("src")).expect("it is inside");
            let mut parts = inside.iter().map(|p| p.to_string_lossy().into_owned());
            let first = parts.next().expect("a name");
            let name = first.trim_end_matches(".rs");
            if !["lib", "main"].contains(&name) {
                assert!(map.contains(name), "ARCHITECTURE.md names {package}/src/{first}");
            }
        }
    }
}
