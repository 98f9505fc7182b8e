//! Shows errors and warnings on stderr, for people, for editors, for programs.

use crate::error::Error;
use crate::progress::{Format, say};
use crate::spec::Spec;
use grammar::diag::{Diagnostic, Severity};
use serde_json::json;
use std::io::IsTerminal;

/// Whether stderr may have colours.
pub fn colours() -> bool {
    let set = |name: &str| std::env::var_os(name).is_some_and(|v| !v.is_empty());
    let dumb = std::env::var_os("TERM").is_some_and(|t| t == "dumb");
    !set("NO_COLOR") && !dumb && std::io::stderr().is_terminal()
}

/// Shows an error with its advice.
pub fn error(error: &Error, format: Format) {
    if let Some(spec) = &error.spec {
        let path = spec.path.display().to_string();
        diagnostics(&path, &spec.source, &spec.diagnostics, format);
    }
    match format {
        Format::Human => {
            say(&format!("{}: {}", painted("error", "31"), indented(&error.message)));
            error.help.iter().for_each(|h| say(&format!("  {}: {h}", painted("help", "36"))));
        }
        Format::Short => error.message.lines().for_each(|l| say(&format!("error: {l}"))),
        Format::Json => {
            let code = error.exit_code();
            let line = json!({
                "schema": 1,
                "reason": "error",
                "message": error.message,
                "help": error.help,
                "exit_code": code,
            });
            say(&line.to_string());
        }
    }
}

/// Shows a warning.
pub fn warning(text: &str, format: Format) {
    match format {
        Format::Human => say(&format!("{}: {}", painted("warning", "33"), indented(text))),
        Format::Short => say(&format!("warning: {text}")),
        Format::Json => say(&json!({"schema": 1, "reason": "warning", "message": text}).to_string()),
    }
}

/// Shows a note.
pub fn note(text: &str, format: Format) {
    match format {
        Format::Human => say(&format!("{}: {}", painted("note", "32"), indented(text))),
        Format::Short => say(&format!("note: {text}")),
        Format::Json => say(&json!({"schema": 1, "reason": "note", "message": text}).to_string()),
    }
}

/// Shows what the compiler warns of.
pub fn spec_warnings(spec: &Spec, format: Format, quiet: bool) {
    let shown: Vec<Diagnostic> =
        spec.warnings.iter().filter(|d| d.severity == Severity::Warning).cloned().collect();
    if !shown.is_empty() && !quiet {
        diagnostics(&spec.path, &spec.source, &shown, format);
    }
}

fn diagnostics(path: &str, source: &str, all: &[Diagnostic], format: Format) {
    let text = match format {
        Format::Human => grammar::render::human(path, source, all, colours()),
        Format::Short => grammar::render::short(path, source, all),
        Format::Json => grammar::render::json(path, source, all),
    };
    say(text.trim_end_matches('\n'));
}

fn painted(word: &str, colour: &str) -> String {
    if colours() { format!("\u{1b}[1;{colour}m{word}\u{1b}[0m") } else { word.into() }
}

fn indented(text: &str) -> String {
    text.replace('\n', "\n  ")
}
