//! Checking whole specs: the library is free of errors, and no text makes the checker panic.

use std::path::{Path, PathBuf};

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

#[test]
fn the_library_has_no_errors() {
    let mut files = vec![];
    specs(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../specs"), &mut files);
    assert!(!files.is_empty());
    let mut text = String::new();
    let mut warnings = vec![];
    for path in files {
        let source = std::fs::read_to_string(&path).expect("a readable spec");
        let checked = compiler::check::check(&source);
        for model in &checked.models {
            assert_eq!(compiler::ir::verify(&model.step), Ok(()));
        }
        for d in checked.diagnostics.iter().filter(|d| !d.is_error()) {
            let name = path.file_stem().expect("a file").display().to_string();
            warnings.push(format!("{name}: {}", d.code));
        }
        let errors: Vec<_> = checked.diagnostics.into_iter().filter(|d| d.is_error()).collect();
        text += &grammar::render::human(&path.display().to_string(), &source, &errors, false);
    }
    assert!(text.is_empty(), "{text}");
    // Without a clip, the rate and the plastic coefficients of this network can be traded.
    assert_eq!(warnings, ["plastic_noclip: BPM0404"]);
}
