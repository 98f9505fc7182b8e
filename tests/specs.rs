//! The model library and every `bpm` block of the documents: they check, stand in the canonical
//! layout, and have the published numbers of parameters.

use compiler::ir::Sizes;
use grammar::diag::Diagnostic;
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
    documents.extend(
        ["README.md", "ARCHITECTURE.md"].map(|name| root().join(name)).into_iter().filter(|p| p.exists()),
    );
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

/// What the first lines of a library file say about warnings: `// expect: BPM0502 reason`.
fn expected(text: &str) -> Vec<&str> {
    text.lines()
        .map_while(|line| line.strip_prefix("// "))
        .filter_map(|line| line.strip_prefix("expect: "))
        .filter_map(|line| line.split_whitespace().next())
        .collect()
}

fn report(source: &Source, diagnostics: &[Diagnostic]) -> String {
    grammar::render::human(&source.place, &source.text, diagnostics, false)
}

#[test]
fn the_library_checks_without_warnings() {
    let mut wrong = vec![];
    for source in library() {
        let checked = compiler::check::check(&source.text);
        let expected = expected(&source.text);
        let unexpected: Vec<Diagnostic> =
            checked.diagnostics.into_iter().filter(|d| d.is_error() || !expected.contains(&d.code)).collect();
        if !unexpected.is_empty() {
            wrong.push(report(&source, &unexpected));
        }
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

#[test]
fn every_expected_warning_appears() {
    for source in library() {
        let checked = compiler::check::check(&source.text);
        for code in expected(&source.text) {
            assert!(checked.diagnostics.iter().any(|d| d.code == code), "{}: no {code}", source.place);
        }
    }
}

#[test]
fn every_document_checks_without_warnings() {
    let mut wrong = vec![];
    for source in blocks("bpm").into_iter().chain(blocks("bpm free-form")) {
        let checked = compiler::check::check(&source.text);
        if !checked.diagnostics.is_empty() || checked.models.is_empty() {
            wrong.push(report(&source, &checked.diagnostics));
        }
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

#[test]
fn every_wrong_example_is_refused() {
    for source in blocks("bpm wrong") {
        let checked = compiler::check::check(&source.text);
        assert!(checked.diagnostics.iter().any(Diagnostic::is_error), "{} has no error", source.place);
    }
}

/// The number of trained numbers of a model of the library.
fn parameters(file: &str, axes: &[(&str, usize)]) -> usize {
    let text = fs::read_to_string(root().join("specs").join(file)).expect("it is a file of the library");
    let model = &compiler::check::check(&text).models[0];
    let bound = axes.iter().map(|(name, size)| ((*name).to_string(), *size)).collect();
    let sizes = Sizes::bind(&model.axes, &bound).expect("every open axis is bound");
    model.params.iter().filter(|p| p.learned).map(|p| sizes.count(p.shape)).sum()
}

/// The published counts of Miconi et al. 2019. The released cue-reward code declares one more
/// parameter in the modulated networks, which no equation uses: 86,405 and 86,406.
#[test]
fn networks_of_the_reinforcement_learning_tasks_have_the_published_sizes() {
    let maze = |n| [("I", 17), ("N", n), ("A", 4)];
    let cues = [("I", 27), ("N", 200), ("A", 2)];
    assert_eq!(parameters("backpropamine/plain.bpm", &maze(100)), 12_305);
    assert_eq!(parameters("backpropamine/plain.bpm", &maze(139)), 22_523);
    assert_eq!(parameters("backpropamine/plastic.bpm", &maze(101)), 22_731);
    assert_eq!(parameters("backpropamine/simple.bpm", &maze(100)), 22_406);
    assert_eq!(parameters("backpropamine/simple_fanout.bpm", &maze(100)), 22_606);
    assert_eq!(parameters("backpropamine/retroactive.bpm", &maze(100)), 22_407);
    assert_eq!(parameters("backpropamine/plain.bpm", &cues), 46_203);
    assert_eq!(parameters("backpropamine/plastic.bpm", &cues), 86_204);
    assert_eq!(parameters("backpropamine/simple.bpm", &cues) + 1, 86_405);
    assert_eq!(parameters("backpropamine/retroactive.bpm", &cues) + 1, 86_406);
}

/// The published counts of the large language models: an embedding of 400 for 10,000 words, tied
/// with the output layer, and three layers.
#[test]
fn language_models_have_the_published_sizes() {
    let model = |file: &str, cells: usize| {
        let layers = [(400, cells), (cells, cells), (cells, 400)];
        // The readout belongs to the spec of a layer, not to the published count.
        let layer =
            |(inputs, n): (usize, usize)| parameters(file, &[("I", inputs), ("N", n), ("O", 1)]) - (n + 1);
        10_000 * 400 + 10_000 + layers.map(layer).iter().sum::<usize>()
    };
    assert_eq!(model("plastic_lstm/lstm.bpm", 1150), 24_221_600);
    assert_eq!(model("plastic_lstm/modulated.bpm", 1149), 24_198_893);
    assert_eq!(model("plastic_lstm/plastic.bpm", 1149), 24_190_799);
    assert_eq!(model("plastic_lstm/modulated_full_alpha.bpm", 1067), 24_188_589);
    assert_eq!(model("plastic_lstm/modulated_full_alpha.bpm", 1068), 24_221_699);
}

#[test]
fn the_output_layer_of_one_shot_classification_has_the_published_size() {
    assert_eq!(
        parameters("differentiable_plasticity/omniglot_head.bpm", &[("I", 64), ("O", 5)]),
        112_065 - 111_424
    );
}
