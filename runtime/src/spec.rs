//! Loads a spec file and compiles it to a model.

use crate::error::{Error, Kind, SpecErrors};
use crate::files;
use compiler::model::Model;
use grammar::diag::{Diagnostic, did_you_mean};
use grammar::span::{Span, line_column};
use std::path::Path;
use std::sync::Arc;

/// A spec with its text.
#[derive(Clone, Debug)]
pub struct Spec {
    /// Where it was read, for messages.
    pub path: String,
    /// The text of the file.
    pub source: String,
    /// The checked model.
    pub model: Arc<Model>,
    /// Warnings of the compiler.
    pub warnings: Vec<Diagnostic>,
}

/// Reads `FILE.bpm`, or `FILE.bpm#NAME` for one of several specs of a file.
///
/// # Errors
/// If the file cannot be read or the spec has errors.
pub fn load(place: &str) -> Result<Spec, Error> {
    let (path, name) = match place.split_once('#') {
        Some((path, name)) => (path, Some(name)),
        None => (place, None),
    };
    let source = files::read_text(Path::new(path))?;
    compile(path, source, name)
}

/// Compiles the text of a spec; `path` is for messages only. Without a name it is the one spec that no
/// other uses as a layer.
///
/// # Errors
/// If the spec has errors, or the file has not exactly one spec (of that name).
pub fn compile(path: &str, source: String, name: Option<&str>) -> Result<Spec, Error> {
    let checked = compiler::check::check(&source);
    if checked.diagnostics.iter().any(Diagnostic::is_error) {
        let summary = grammar::render::summary(path, &checked.diagnostics);
        let mut error = Error::new(Kind::Input, summary);
        let errors = SpecErrors { path: path.into(), source, diagnostics: checked.diagnostics };
        error.spec = Some(Box::new(errors));
        return Err(error);
    }
    let names: Vec<String> = checked.models.iter().map(|m| m.name.clone()).collect();
    let outermost: Vec<String> = checked.outermost().iter().map(|m| m.name.clone()).collect();
    let name = match (name, outermost.as_slice()) {
        (Some(name), _) => name,
        (None, [name]) => name,
        (None, all) => return Err(not_one(path, all)),
    };
    let model = checked.models.into_iter().find(|m| m.name == name).map(Arc::new);
    let model = model.ok_or_else(|| missing(path, name, &names))?;
    Ok(Spec { path: path.into(), source, model, warnings: checked.diagnostics })
}

fn missing(path: &str, name: &str, names: &[String]) -> Error {
    let error = Error::input(format!("`{path}` has no spec `{name}`"));
    match did_you_mean(name, names.iter().map(String::as_str)) {
        Some(c) => error.help(format!("did you mean `{c}`?")),
        None => error.help(format!("its specs are {}", names.join(", "))),
    }
}

fn not_one(path: &str, names: &[String]) -> Error {
    match names {
        [] => Error::input(format!("`{path}` has no spec")),
        [first, ..] => Error::input(format!("`{path}` has {} specs: {}", names.len(), names.join(", ")))
            .help(format!("choose one: `{path}#{first}`")),
    }
}

impl Spec {
    /// `simple.bpm:12: H'[j,i] = …`: the place and the line of a span.
    pub fn line(&self, span: Span) -> String {
        let (line, _) = line_column(&self.source, span.start as usize);
        let text = self.source.lines().nth(line - 1).unwrap_or("").trim();
        format!("{}:{line}: {text}", self.path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TWO: &str =
        "spec a {\n  axis N = 2\n  in u[N]\n  state y[N] = 0\n  y' = tanh(u + y)\n  out y'\n}\n";

    #[test]
    fn one_of_several() {
        let text = TWO.to_string() + &TWO.replace("spec a", "spec b");
        assert_eq!(compile("f.bpm", text.clone(), Some("b")).expect("b").model.name, "b");
        let error = compile("f.bpm", text, None).expect_err("which");
        assert_eq!(error.message, "`f.bpm` has 2 specs: a, b");
        assert_eq!(error.help, ["choose one: `f.bpm#a`"]);
    }

    #[test]
    fn layers_are_not_meant() {
        let outer = "spec net {\n  axis I = ?\n  in u[I]\n  layer one = a(u, N = I)\n  out y = one.y'\n}\n";
        let text = TWO.to_string() + outer;
        assert_eq!(compile("f.bpm", text.clone(), None).expect("net").model.name, "net");
        assert_eq!(compile("f.bpm", text, Some("a")).expect("a").model.name, "a");
    }

    #[test]
    fn errors_carry_diagnostics() {
        let error = compile("f.bpm", TWO.replace("tanh", "tahn"), None).expect_err("typo");
        assert_eq!(error.exit_code(), 1);
        assert!(error.spec.is_some_and(|s| !s.diagnostics.is_empty()));
        assert!(compile("f.bpm", String::new(), None).is_err());
    }

    #[test]
    fn lines_are_found() {
        let spec = compile("f.bpm", TWO.into(), None).expect("ok");
        assert_eq!(spec.line(spec.model.states[0].span), "f.bpm:4: state y[N] = 0");
    }
}
