//! The model library and every `bpm` block of the documents: they parse, and stand in the canonical layout.

use std::fs;
use std::path::{Path, PathBuf};

/// A text in the language and where it stands.
struct Source {
    place: String,
    text: String,
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// All files under `folder` with this extension, sorted.
fn files(folder: &Path, extension: &str) -> Vec<PathBuf> {
    let mut found = vec![];
    for entry in fs::read_dir(folder).expect("the folder is part of the repository") {
        let path = entry.expect("the folder can be read").path();
        if path.is_dir() {
            found.extend(files(&path, extension));
        } else if path.extension().is_some_and(|e| e == extension) {
            found.push(path);
        }
    }
    found.sort();
    found
}

fn library() -> Vec<Source> {
    let read = |path: PathBuf| Source {
        place: path.strip_prefix(root()).expect("it lies in the repository").display().to_string(),
        text: fs::read_to_string(&path).expect("it is text"),
    };
    files(&root().join("specs"), "bpm").into_iter().map(read).collect()
}

/// The fenced blocks of all documents whose info string is exactly this.
fn blocks(info: &str) -> Vec<Source> {
    let mut documents = files(&root().join("docs"), "md");
    documents.extend(["README.md", "ARCHITECTURE.md"].map(|name| root().join(name)).into_iter().filter(|p| p.exists()));
    let mut found = vec![];
    for path in documents {
        let text = fs::read_to_string(&path).expect("it is text");
        let mut block: Option<(usize, String, bool)> = None;
        for (line, content) in text.lines().enumerate() {
            match (&mut block, content.strip_prefix("```")) {
                (None, Some(word)) => block = Some((line + 2, String::new(), word.trim() == info)),
                (Some(_), Some(_)) => {
                    if let Some((start, text, true)) = block.take() {
                        let name = path.strip_prefix(root()).expect("it lies in the repository").display();
                        found.push(Source { place: format!("{name}:{start}"), text });
                    }
                }
                (Some((_, text, _)), None) => text.extend([content, "\n"]),
                (None, None) => {}
            }
        }
    }
    found
}

#[test]
fn everything_parses() {
    let mut wrong = vec![];
    for source in library().into_iter().chain(blocks("bpm")).chain(blocks("bpm wrong")) {
        for d in grammar::parse(&source.text).diagnostics {
            let (line, column) = grammar::span::line_column(&source.text, d.span().start as usize);
            wrong.push(format!("{} {line}:{column} {} {}", source.place, d.code, d.message));
        }
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

#[test]
fn the_layout_is_canonical() {
    let mut wrong = vec![];
    for source in library().into_iter().chain(blocks("bpm")) {
        if let Ok(formatted) = grammar::format::format(&source.text)
            && formatted != source.text
        {
            wrong.push(source.place);
        }
    }
    assert!(wrong.is_empty(), "not in canonical layout; run `bpmc fmt`: {}", wrong.join(", "));
}
