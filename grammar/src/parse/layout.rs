//! Where the tokens and comments of a text are.
//!
//! The grammar skips white space and comments silently; this table says where they were. It trims
//! nodes to their last token, tells whether two places are on one line, and finds the comments.

use super::{Comment, Grammar, Rule};
use crate::span::Span;
use pest::Parser;

/// The kinds of token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TokenKind {
    /// `// …` or `# …`
    Comment,
    /// A name or keyword.
    Word,
    /// A number.
    Number,
    /// An operator or bracket, or any other character.
    Symbol,
}

/// One token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Token {
    /// What it is.
    pub(crate) kind: TokenKind,
    /// Where it is.
    pub(crate) span: Span,
}

/// The tokens of a text, in order.
pub(crate) struct Layout<'s> {
    source: &'s str,
    tokens: Vec<Token>,
}

impl<'s> Layout<'s> {
    /// Splits a text into tokens.
    pub(crate) fn new(source: &'s str) -> Self {
        let parsed = Grammar::parse(Rule::tokens, source);
        let pairs = parsed.into_iter().flatten().flat_map(|p| p.into_inner());
        let tokens = pairs.filter_map(|pair| {
            let kind = match pair.as_rule() {
                Rule::comment => TokenKind::Comment,
                Rule::word => TokenKind::Word,
                Rule::number => TokenKind::Number,
                Rule::symbol => TokenKind::Symbol,
                _ => return None,
            };
            let at = pair.as_span();
            Some(Token { kind, span: Span::new(at.start(), at.end()) })
        });
        Layout { source, tokens: tokens.collect() }
    }

    /// All tokens, comments included.
    pub(crate) fn tokens(&self) -> &[Token] {
        &self.tokens
    }

    /// The text of a token.
    pub(crate) fn text(&self, token: Token) -> &'s str {
        &self.source[token.span.range()]
    }

    /// `start..end` without the white space and comments at its end.
    pub(crate) fn trim(&self, start: usize, end: usize) -> Span {
        let count = self.tokens.partition_point(|t| t.span.end as usize <= end);
        let last = self.tokens[..count].iter().rev().find(|t| t.kind != TokenKind::Comment);
        let token_end = last.map_or(start, |t| t.span.end as usize);
        // A place inside a token (text that is no statement) keeps its own end.
        let inside = self.tokens.get(count).is_some_and(|t| (t.span.start as usize) < end);
        Span::new(start, if inside { end } else { token_end.max(start) })
    }

    /// The first token at or after a place that is no comment.
    pub(crate) fn next(&self, place: usize) -> Option<Token> {
        let first = self.tokens.partition_point(|t| (t.span.start as usize) < place);
        self.tokens[first..].iter().copied().find(|t| t.kind != TokenKind::Comment)
    }

    /// The last token that ends at or before a place and is no comment.
    pub(crate) fn previous(&self, place: usize) -> Option<Token> {
        let count = self.tokens.partition_point(|t| t.span.end as usize <= place);
        self.tokens[..count].iter().rev().copied().find(|t| t.kind != TokenKind::Comment)
    }

    /// Whether no line ends between two places.
    pub(crate) fn same_line(&self, from: u32, to: u32) -> bool {
        let text = self.source.get(from.min(to) as usize..from.max(to) as usize);
        text.is_some_and(|t| !t.contains('\n'))
    }

    /// The first bracket that is nested deeper than `limit`. Brackets end where a statement begins.
    pub(crate) fn too_deep(&self, limit: usize) -> Option<Span> {
        let (mut brackets, mut braces) = (0usize, 0usize);
        let mut end = 0;
        for (at, &token) in self.tokens.iter().enumerate() {
            let new_line = !self.same_line(end, token.span.start);
            end = token.span.end;
            if new_line && self.begins_statement(at) {
                brackets = 0;
            }
            match self.text(token) {
                "(" | "[" => brackets += 1,
                ")" | "]" => brackets = brackets.saturating_sub(1),
                "{" => braces += 1,
                "}" => (brackets, braces) = (0, braces.saturating_sub(1)),
                ";" => brackets = 0,
                _ => {}
            }
            if brackets + braces > limit {
                return Some(token.span);
            }
        }
        None
    }

    /// Whether a token is the name on the left of an `=`: the beginning of an equation.
    fn begins_statement(&self, at: usize) -> bool {
        let mut rest = self.tokens[at + 1..].iter().map(|&t| self.text(t)).peekable();
        if self.tokens[at].kind != TokenKind::Word {
            return false;
        }
        rest.next_if_eq(&"'");
        if rest.next_if_eq(&"[").is_some() {
            while rest.next_if(|t| !matches!(*t, "[" | "]" | "=" | ";" | "}")).is_some() {}
            rest.next_if_eq(&"]");
        }
        rest.next() == Some("=")
    }

    /// All comments.
    pub(crate) fn comments(&self) -> Vec<Comment> {
        let comments = self.tokens.iter().filter(|t| t.kind == TokenKind::Comment);
        comments.map(|&token| self.comment(token)).collect()
    }

    /// A token as a comment.
    pub(crate) fn comment(&self, token: Token) -> Comment {
        let text = self.text(token).trim_end();
        let start = token.span.start as usize;
        let before = self.source[..start].rsplit('\n').next().unwrap_or_default();
        Comment {
            span: Span::new(start, start + text.len()),
            text: text.to_owned(),
            doc: text.starts_with("///") && !text.starts_with("////"),
            own_line: before.chars().all(|c| c.is_whitespace() || c == '\u{FEFF}'),
        }
    }
}
