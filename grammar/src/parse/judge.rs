//! Judgements: what a piece of text that does not fit was meant to be.
//!
//! The grammar says that something is missing or left over; here the tokens around the place decide
//! which mistake it is. The wording is in `mistakes`.

use super::items::Builder;
use super::layout::{Token, TokenKind};
use super::{Node, mistakes};
use crate::diag::did_you_mean;
use crate::span::Span;

impl<'s> Builder<'s, '_> {
    /// The token at a place in words, for "found …".
    pub(super) fn found(&self, place: usize) -> String {
        match self.layout.next(place) {
            None => "the end of the file".to_owned(),
            Some(token) => {
                let end = self.layout.previous(place).map_or(0, |t| t.span.end);
                if self.layout.same_line(end, token.span.start) {
                    format!("`{}`", self.layout.text(token))
                } else {
                    "the end of the line".to_owned()
                }
            }
        }
    }

    /// The empty place after the last token before `place`.
    pub(super) fn end_before(&self, place: usize) -> Span {
        let end = self.layout.previous(place).map_or(0, |t| t.span.end as usize);
        Span::new(end, end)
    }

    /// Whether nothing of the same statement follows a place.
    pub(super) fn next_is_end(&self, place: usize) -> bool {
        let end = self.end_before(place).end;
        match self.layout.next(place) {
            None => true,
            Some(token) => {
                matches!(self.layout.text(token), ";" | "}") || !self.layout.same_line(end, token.span.start)
            }
        }
    }

    /// Reports an operand that is not there.
    pub(super) fn missing_expression(&mut self, at: Span) {
        let place = at.start as usize;
        let gap = self.end_before(place);
        let found = self.found(place);
        let next = self.layout.next(place).filter(|_| found.starts_with('`'));
        let text = next.map_or("", |t| self.layout.text(t));
        let span = next.map_or(gap, |t| t.span);
        if text == "[" {
            return self.report(mistakes::list_literal(span));
        }
        if mistakes::KEYWORDS.contains(&text) && self.layout.same_line(gap.end, span.start) {
            return self.report(mistakes::reserved(span, text, "an operand"));
        }
        match text {
            "!" => return self.report(mistakes::no_such_operator(span, "!")),
            "|" => return self.report(mistakes::bars(span)),
            _ => {}
        }
        if is_foreign(text) {
            return self.report(mistakes::character(span, text));
        }
        let before = self.layout.previous(place).map(|t| (t.span, self.layout.text(t)));
        self.report(mistakes::missing_expression(span, &found, before));
    }

    /// Reports a bracket that is not closed; `text` begins with it.
    pub(super) fn unclosed(&mut self, open: usize, text: &str, end: u32) {
        let bracket = text.chars().next().unwrap_or('(');
        let open = Span::new(open, open + bracket.len_utf8());
        let close = if bracket == '[' { "]" } else { ")" };
        let inner = Span::new(open.end as usize, end as usize);
        let next = self.layout.next(end as usize);
        let same_line = next.filter(|t| self.layout.same_line(end, t.span.start));
        let text = same_line.map_or("", |t| self.layout.text(t));
        match same_line {
            // What stands in the way is the cause, unless the statement ends here anyway.
            Some(token) if matches!(text, ")" | "]") && !self.reported_in(inner) => {
                self.report(mistakes::wrong_closing(open, token.span, text, close));
            }
            _ if self.reported_in(inner) && !text.is_empty() => {}
            Some(token) if matches!(text, "(" | "[") && self.spaced_call(token, text) => {}
            _ => {
                let at = Span::new(end as usize, end as usize);
                self.report(mistakes::unclosed(open, &bracket.to_string(), at, close));
            }
        }
    }

    /// Reports a bracket that stands apart from the name before it; false if it does not.
    fn spaced_call(&mut self, bracket: Token, text: &str) -> bool {
        let place = bracket.span.start as usize;
        let name = self.layout.previous(place).filter(|t| t.kind == TokenKind::Word);
        let gap = name.map(|t| Span::new(t.span.end as usize, place)).filter(|g| g.start < g.end);
        if let Some(gap) = gap {
            self.report(mistakes::spaced_call(gap, text));
        }
        gap.is_some()
    }

    /// Reports two operands side by side in brackets, which hold one value or a list.
    pub(super) fn side_by_side(&mut self, before: Span, place: usize, one_value: bool) {
        let next = self.layout.next(place).map_or(Span::new(place, place), |t| t.span);
        let gap = Span::new(before.end as usize, before.end as usize);
        self.report(if one_value {
            mistakes::missing_operator(before, next, gap)
        } else {
            mistakes::operator_or_comma(before, next, gap)
        });
    }

    /// Reports a comma that is not there, or a word that does not belong to the list.
    pub(super) fn missing_comma(&mut self, node: &Node<'s>) {
        let place = node.as_span().start();
        let gap = self.end_before(place);
        let Some(next) = self.layout.next(place) else { return };
        let text = self.layout.text(next);
        if self.layout.same_line(gap.end, next.span.start) {
            let words = mistakes::CLAUSE_WORDS.iter().copied();
            let meant = did_you_mean(text, words).filter(|_| text.len() > 3);
            self.report(mistakes::missing_comma(gap, next.span, text, meant));
        } else {
            self.report(mistakes::lonely(next.span, text));
        }
    }

    /// Reports a statement that begins with an unknown word.
    pub(super) fn wrong_word(&mut self, word: Span) {
        let text = &self.source[word.range()];
        let rest = self.layout.next(word.end as usize);
        let second = rest.map_or("", |t| self.layout.text(t));
        let third = rest.and_then(|t| self.layout.next(t.span.end as usize));
        let called = third.is_some_and(|t| self.layout.text(t) == "(");
        let braced = third.is_some_and(|t| self.layout.text(t) == "{");
        let meant = mistakes::keyword_for(text).filter(|m| match *m {
            "spec" => braced,
            "rule" => called,
            _ => true,
        });
        let mistake = if meant.is_none() && called {
            let gap = Span::new(word.end as usize, word.end as usize);
            mistakes::missing_assign(gap, &format!("`{text}`"))
        } else {
            mistakes::unknown_keyword(word, text, second, meant)
        };
        self.report(mistake);
    }

    /// Reports text that belongs to no statement. `before` is the token before it on its line.
    pub(super) fn leftover(&mut self, at: Span, before: Option<Token>) {
        let text = &self.source[at.range()];
        let first = self.layout.next(at.start as usize).filter(|t| t.span.start < at.end);
        let Some(first) = first else { return };
        let token = self.layout.text(first);
        let mistake = match token {
            ")" | "]" => mistakes::unmatched(first.span, token),
            "(" | "[" if before.is_some_and(|b| b.kind == TokenKind::Word) => {
                let gap = Span::new(before.map_or(0, |b| b.span.end as usize), first.span.start as usize);
                if gap.start < gap.end {
                    mistakes::spaced_call(gap, token)
                } else {
                    mistakes::unexpected(at, text)
                }
            }
            "'" => mistakes::prime_on(first.span, "this expression"),
            "|" => mistakes::bars(first.span),
            "?" if before.is_some() => mistakes::question(first.span),
            "!" => mistakes::no_such_operator(first.span, "!"),
            "{" => mistakes::braces(first.span),
            "=" if before.is_some() => mistakes::second_assign(first.span),
            _ if is_foreign(token) => mistakes::character(first.span, token),
            _ => self.leftover_word(at, first, before),
        };
        self.report(mistake);
    }

    fn leftover_word(&self, at: Span, first: Token, before: Option<Token>) -> crate::diag::Diagnostic {
        let token = self.layout.text(first);
        let text = &self.source[at.range()];
        match (first.kind, before) {
            (TokenKind::Word | TokenKind::Number, Some(before)) => {
                let gap = Span::new(before.span.end as usize, before.span.end as usize);
                mistakes::missing_operator(before.span, first.span, gap)
            }
            (TokenKind::Word, None) => match mistakes::keyword_for(token) {
                Some(meant) => mistakes::unknown_keyword(first.span, token, "", Some(meant)),
                None if text == token => mistakes::lonely(first.span, token),
                None if text.contains('{') => mistakes::unknown_keyword(first.span, token, "", None),
                None => mistakes::no_statement(at),
            },
            (_, None) => mistakes::no_statement(at),
            (_, Some(_)) => mistakes::unexpected(first.span, token),
        }
    }
}

/// Whether a token is a character that the language never uses.
fn is_foreign(token: &str) -> bool {
    let known = "+-*/^@.<>=()[]{},;'~?|!&\"%:";
    token.chars().next().is_some_and(|c| !known.contains(c) && !c.is_alphanumeric() && c != '_')
}
