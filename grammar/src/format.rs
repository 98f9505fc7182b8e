//! The one canonical layout of a spec, and expressions as text.
//!
//! `format` works on tokens, not on the tree, so it can lose nothing: comments stay where they are,
//! numbers keep their spelling, and a line break inside a statement stays a line break. Only white
//! space and `;` change. The parse says where statements begin and which minus is a sign.

mod expression;
mod spacing;

pub use expression::expr_text;

use crate::diag::Diagnostic;
use crate::parse::layout::{Layout, Token, TokenKind};
use crate::parse::{Grammar, Rule};
use pest::Parser;
use spacing::Spacing;
use std::collections::BTreeSet;

/// Columns a statement stands in from the edge of its spec.
const INDENT: usize = 2;

/// Further columns of the second and later lines of a statement.
const CONTINUED: usize = 4;

/// The text in canonical layout.
///
/// One statement per line, two columns of indent, one space around operators and none inside
/// `[j,i]`. Comments and single blank lines are kept. Formatting twice changes nothing more, and the
/// tree of the result is the tree of the text, places aside.
///
/// # Errors
///
/// A text with syntax errors is not touched; its diagnostics are returned.
pub fn format(source: &str) -> Result<String, Vec<Diagnostic>> {
    let parsed = crate::parse(source);
    if parsed.has_errors() {
        return Err(parsed.diagnostics);
    }
    let layout = Layout::new(source);
    let mut printer = Printer::new(source, &layout);
    for (at, &token) in layout.tokens().iter().enumerate() {
        printer.token(at, token);
    }
    Ok(printer.finish())
}

/// Where the dots of `one.h` stand, with a layer `one`.
fn accesses(layout: &Layout<'_>) -> BTreeSet<u32> {
    let text = |t: &Token| layout.text(*t);
    let tokens = layout.tokens();
    let named = tokens.windows(2).filter(|t| text(&t[0]) == "layer" && t[1].kind == TokenKind::Word);
    let layers: BTreeSet<&str> = named.map(|t| text(&t[1])).collect();
    let touches = |a: &Token, b: &Token| a.span.end == b.span.start;
    let access = |t: &&[Token]| {
        text(&t[1]) == "."
            && layers.contains(text(&t[0]))
            && t[2].kind == TokenKind::Word
            && touches(&t[0], &t[1])
            && touches(&t[1], &t[2])
    };
    tokens.windows(3).filter(access).map(|t| t[1].span.start).collect()
}

/// A line of the result.
#[derive(Default)]
struct Line {
    indent: usize,
    text: String,
    comment: Option<String>,
    blank_before: bool,
}

struct Printer<'s, 'l> {
    source: &'s str,
    layout: &'l Layout<'s>,
    /// Where statements and items begin.
    starts: BTreeSet<u32>,
    spacing: Spacing,
    /// Whether a spec is open.
    in_spec: bool,
    lines: Vec<Line>,
    line: Line,
    /// Where the last token ended.
    end: u32,
}

impl<'s, 'l> Printer<'s, 'l> {
    fn new(source: &'s str, layout: &'l Layout<'s>) -> Self {
        let (mut starts, mut signs) = (BTreeSet::new(), BTreeSet::new());
        let pairs = Grammar::parse(Rule::file, source).into_iter().flatten();
        for node in pairs.flat_map(|p| p.into_inner().flatten()) {
            let start = node.as_span().start() as u32;
            match node.as_rule() {
                Rule::statement | Rule::spec | Rule::rule_item => starts.insert(start),
                Rule::sign => signs.insert(start),
                _ => false,
            };
        }
        Printer {
            source,
            layout,
            starts,
            spacing: Spacing::new(signs, accesses(layout)),
            in_spec: false,
            lines: vec![],
            line: Line::default(),
            end: 0,
        }
    }

    fn token(&mut self, at: usize, token: Token) {
        let text = self.layout.text(token);
        match (token.kind, text) {
            (TokenKind::Comment, _) => self.comment(at, token),
            (_, ";") => {}
            (_, "{") => {
                self.append(token, text);
                self.in_spec = true;
                self.spacing.restart();
                self.break_line_later();
            }
            (_, "}") => {
                self.flush();
                self.in_spec = false;
                self.start_line(token, 0);
                self.line.blank_before = false;
                self.append(token, text);
                self.break_line_later();
            }
            _ => self.word(token, text),
        }
        self.end = token.span.end;
    }

    fn word(&mut self, token: Token, text: &str) {
        if self.starts.contains(&token.span.start) {
            self.flush();
            self.spacing.restart();
            let indent = self.statement_indent();
            self.start_line(token, indent);
        } else if self.broken_before(token) {
            self.flush();
            self.line.indent = self.statement_indent() + CONTINUED;
        }
        self.append(token, text);
    }

    fn comment(&mut self, at: usize, token: Token) {
        let text = self.layout.text(token).trim_end();
        let alone = self.layout.comment(token).own_line;
        if !alone && !self.line.text.is_empty() && self.line.comment.is_none() {
            self.line.comment = Some(text.to_owned());
            return;
        }
        if !alone && let Some(last) = self.lines.last_mut().filter(|l| l.comment.is_none()) {
            last.comment = Some(text.to_owned());
            return;
        }
        self.flush();
        let next = self.layout.tokens()[at..].iter().find(|t| t.kind != TokenKind::Comment);
        let inside = next.is_some_and(|&n| {
            !self.starts.contains(&n.span.start) && !matches!(self.layout.text(n), "}" | "{" | ";")
        });
        let indent = self.statement_indent() + if inside { CONTINUED } else { 0 };
        self.start_line(token, indent);
        self.line.blank_before &= !inside;
        self.line.text = text.to_owned();
        self.flush();
    }

    fn statement_indent(&self) -> usize {
        if self.in_spec { INDENT } else { 0 }
    }

    /// Whether the text has a line break before a token in the middle of a statement.
    fn broken_before(&self, token: Token) -> bool {
        !self.layout.same_line(self.end, token.span.start)
    }

    fn append(&mut self, token: Token, text: &str) {
        let adjacent = self.end == token.span.start;
        if self.spacing.space_before(token, text, adjacent) && !self.line.text.is_empty() {
            self.line.text.push(' ');
        }
        self.line.text.push_str(text);
    }

    /// Begins a line at the first token of a statement, item or comment.
    fn start_line(&mut self, token: Token, indent: usize) {
        let between = self.source.get(self.end as usize..token.span.start as usize).unwrap_or_default();
        let opens = self.lines.last().is_none_or(|l| l.text.ends_with('{'));
        self.line.indent = indent;
        self.line.blank_before = !opens && between.matches('\n').count() > 1;
    }

    /// Ends the line; a comment that follows on the same line still joins it.
    fn break_line_later(&mut self) {
        self.flush();
    }

    fn flush(&mut self) {
        let line = std::mem::take(&mut self.line);
        if !line.text.is_empty() {
            self.lines.push(line);
        }
    }

    fn finish(mut self) -> String {
        self.flush();
        let columns = comment_columns(&self.lines);
        let mut text = String::new();
        for (line, column) in self.lines.iter().zip(columns) {
            if line.blank_before {
                text.push('\n');
            }
            text.push_str(&" ".repeat(line.indent));
            text.push_str(&line.text);
            if let Some(comment) = &line.comment {
                text.push_str(&" ".repeat(column - line.width()));
                text.push_str(comment);
            }
            text.push('\n');
        }
        text
    }
}

impl Line {
    fn width(&self) -> usize {
        self.indent + self.text.chars().count()
    }
}

/// The column of each line's comment: neighbouring lines with comments share one.
fn comment_columns(lines: &[Line]) -> Vec<usize> {
    let mut columns = vec![0; lines.len()];
    let mut first = 0;
    while first < lines.len() {
        let run = |l: &&Line| l.comment.is_some();
        let rest = &lines[first + 1..];
        let more = rest.iter().take_while(|l| run(l) && !l.blank_before).count();
        let last = if lines[first].comment.is_some() { first + more } else { first };
        let width = lines[first..=last].iter().map(Line::width).max().unwrap_or(0);
        columns[first..=last].fill(width + 2);
        first = last + 1;
    }
    columns
}
