//! Diagnostics as text: for people, for editors, for programs.
//!
//! Nothing here panics, whatever the spans: they are clamped to the text and widened to whole
//! characters first.

use crate::diag::{Diagnostic, Severity};
use crate::span::{Span, line_column};
use annotate_snippets::{AnnotationKind, Group, Level, Patch, Renderer, Snippet};
use serde_json::{Value, json};
use std::ops::Range;

/// Errors shown in one run, at most.
const MAX_ERRORS: usize = 20;

/// Columns of the output, after which long lines of the source are cut.
const WIDTH: usize = 140;

/// All diagnostics as a person reads them: message, excerpt, labels, help, notes.
pub fn human(path: &str, source: &str, diagnostics: &[Diagnostic], color: bool) -> String {
    let (shown, hidden) = select(diagnostics);
    let mut text: Vec<String> = shown.iter().map(|d| one(path, source, d, color)).collect();
    if hidden > 0 {
        text.push(format!("… and {}\n", counted(hidden, "more error")));
    }
    text.join("\n")
}

/// One line for each diagnostic: `path:line:col: error[CODE]: message`.
pub fn short(path: &str, source: &str, diagnostics: &[Diagnostic]) -> String {
    let (shown, hidden) = select(diagnostics);
    let mut text = String::new();
    for diagnostic in shown {
        let (line, column) = line_column(source, clamp(source, diagnostic.span()).start);
        let (level, code) = (level_name(diagnostic.severity), diagnostic.code);
        text.push_str(&format!("{path}:{line}:{column}: {level}[{code}]: {}\n", diagnostic.message));
    }
    if hidden > 0 {
        text.push_str(&format!("{path}: {}\n", counted(hidden, "more error")));
    }
    text
}

/// One JSON object on a line for each diagnostic. Nothing is left out.
pub fn json(path: &str, source: &str, diagnostics: &[Diagnostic]) -> String {
    let mut text = String::new();
    for diagnostic in sorted(diagnostics) {
        text.push_str(&object(path, source, diagnostic).to_string());
        text.push('\n');
    }
    text
}

/// `2 errors, 1 warning in maze.bpm`; empty if there is nothing to count.
pub fn summary(path: &str, diagnostics: &[Diagnostic]) -> String {
    let count = |severity| diagnostics.iter().filter(|d| d.severity == severity).count();
    let parts: Vec<String> = [
        (count(Severity::Error), "error"),
        (count(Severity::Warning), "warning"),
        (count(Severity::Info), "remark"),
    ]
    .into_iter()
    .filter(|(n, _)| *n > 0)
    .map(|(n, word)| counted(n, word))
    .collect();
    if parts.is_empty() { String::new() } else { format!("{} in {path}", parts.join(", ")) }
}

fn counted(count: usize, word: &str) -> String {
    format!("{count} {word}{}", if count == 1 { "" } else { "s" })
}

fn level_name(severity: Severity) -> &'static str {
    match severity {
        Severity::Error => "error",
        Severity::Warning => "warning",
        Severity::Info => "info",
    }
}

fn sorted(diagnostics: &[Diagnostic]) -> Vec<&Diagnostic> {
    let mut sorted: Vec<&Diagnostic> = diagnostics.iter().collect();
    sorted.sort_by_key(|d| d.span());
    sorted
}

/// The diagnostics to show, sorted by place, and the number of errors left out.
fn select(diagnostics: &[Diagnostic]) -> (Vec<&Diagnostic>, usize) {
    let mut errors = 0;
    let mut shown = sorted(diagnostics);
    shown.retain(|d| {
        errors += usize::from(d.is_error());
        !d.is_error() || errors <= MAX_ERRORS
    });
    (shown, errors.saturating_sub(MAX_ERRORS))
}

/// The bytes of a span, inside the text and on the borders of characters.
fn clamp(source: &str, span: Span) -> Range<usize> {
    let mut start = (span.start as usize).min(source.len());
    let mut end = (span.end as usize).min(source.len()).max(start);
    while !source.is_char_boundary(start) {
        start -= 1;
    }
    while !source.is_char_boundary(end) {
        end += 1;
    }
    start..end
}

/// The same for an excerpt: never empty where a character can be shown, never over the line's end.
fn visible(source: &str, span: Span) -> Range<usize> {
    let mut range = clamp(source, span);
    if range.is_empty()
        && let Some(next) = source[range.start..].chars().next()
        && next != '\n'
        && next != '\r'
    {
        range.end += next.len_utf8();
    }
    range
}

fn one(path: &str, source: &str, diagnostic: &Diagnostic, color: bool) -> String {
    let renderer = if color { Renderer::styled() } else { Renderer::plain() };
    let mut text = renderer.term_width(WIDTH).render(&report(path, source, diagnostic));
    text.push('\n');
    text
}

fn report<'a>(path: &'a str, source: &'a str, diagnostic: &'a Diagnostic) -> Vec<Group<'a>> {
    let level = match diagnostic.severity {
        Severity::Error => Level::ERROR,
        Severity::Warning => Level::WARNING,
        Severity::Info => Level::INFO,
    };
    let mut snippet = Snippet::source(source).path(path);
    for label in &diagnostic.labels {
        let kind = if label.primary { AnnotationKind::Primary } else { AnnotationKind::Context };
        let text = Some(label.text.as_str()).filter(|t| !t.is_empty());
        snippet = snippet.annotation(kind.span(visible(source, label.span)).label(text));
    }
    let mut main = level.primary_title(diagnostic.message.as_str()).id(diagnostic.code).element(snippet);
    let fix = diagnostic.fix.as_ref().map(|fix| (clamp(source, fix.span), fix.replacement.as_str()));
    // The last help carries the patch; so the excerpt with the change stands under its reason.
    let (carried, plain) = match (&fix, diagnostic.help.split_last()) {
        (Some(_), Some((last, rest))) => (Some(last.as_str()), rest),
        _ => (None, diagnostic.help.as_slice()),
    };
    for help in plain {
        main = main.element(Level::HELP.message(help.as_str()));
    }
    for note in &diagnostic.notes {
        main = main.element(Level::NOTE.message(note.as_str()));
    }
    let mut groups = vec![main];
    if let Some((range, replacement)) = fix {
        let title = carried.map_or_else(|| fix_title(&source[range.clone()], replacement), str::to_owned);
        let patch = Snippet::source(source).path(path).patch(Patch::new(range, replacement));
        groups.push(Level::HELP.secondary_title(title).element(patch));
    }
    groups
}

fn fix_title(old: &str, new: &str) -> String {
    match (old.is_empty(), new.is_empty()) {
        (true, _) => format!("add `{}`", new.trim()),
        (_, true) if old.trim().is_empty() => "remove the space".to_owned(),
        (_, true) => "remove it".to_owned(),
        _ => format!("write `{}`", new.trim()),
    }
}

fn object(path: &str, source: &str, diagnostic: &Diagnostic) -> Value {
    let spans: Vec<Value> = diagnostic
        .labels
        .iter()
        .map(|label| place(path, source, label.span, &label.text, label.primary))
        .collect();
    json!({
        "schema": 1,
        "reason": "diagnostic",
        "code": diagnostic.code,
        "level": level_name(diagnostic.severity),
        "message": diagnostic.message,
        "spans": spans,
        "children": children(path, source, diagnostic),
        "rendered": one(path, source, diagnostic, false),
    })
}

fn place(path: &str, source: &str, span: Span, label: &str, primary: bool) -> Value {
    let range = clamp(source, span);
    let (line_start, column_start) = line_column(source, range.start);
    let (line_end, column_end) = line_column(source, range.end);
    json!({
        "file": path,
        "byte_start": range.start,
        "byte_end": range.end,
        "line_start": line_start,
        "column_start": column_start,
        "line_end": line_end,
        "column_end": column_end,
        "label": label,
        "primary": primary,
    })
}

fn children(path: &str, source: &str, diagnostic: &Diagnostic) -> Vec<Value> {
    let note = |level: &str, message: &String| json!({ "level": level, "message": message });
    let mut children: Vec<Value> = diagnostic.help.iter().map(|h| note("help", h)).collect();
    children.extend(diagnostic.notes.iter().map(|n| note("note", n)));
    if let Some(fix) = &diagnostic.fix {
        let range = clamp(source, fix.span);
        let mut spot = place(path, source, fix.span, "", true);
        if let Some(fields) = spot.as_object_mut() {
            fields.shift_remove("label");
            fields.shift_remove("primary");
        }
        children.push(json!({
            "level": "help",
            "message": fix_title(&source[range], &fix.replacement),
            "replacement": fix.replacement,
            "span": spot,
        }));
    }
    children
}
