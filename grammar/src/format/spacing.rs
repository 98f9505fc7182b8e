//! Whether a space stands between two tokens of a line.

use crate::parse::layout::{Token, TokenKind};
use std::collections::BTreeSet;

/// Words with a space before a parenthesis.
const OPENING_WORDS: &[&str] = &["in", "penalty", "out"];

/// Words that are a clause with a space before a parenthesis, and a function without one.
const EITHER_WORDS: &[&str] = &["when", "rank", "gradscale", "every", "tied"];

/// The tokens so far, as far as they matter for the next space.
pub(super) struct Spacing {
    /// Where signs stand.
    signs: BTreeSet<u32>,
    /// Where the dots of `one.h` stand.
    accesses: BTreeSet<u32>,
    /// The token before, and its text.
    before: Option<(Token, String)>,
    /// The brackets that are open.
    open: Vec<char>,
}

impl Spacing {
    pub(super) fn new(signs: BTreeSet<u32>, accesses: BTreeSet<u32>) -> Self {
        Spacing { signs, accesses, before: None, open: vec![] }
    }

    /// Forgets everything: a statement begins.
    pub(super) fn restart(&mut self) {
        self.before = None;
        self.open.clear();
    }

    /// Takes the next token; `adjacent` says whether the text has no space before it.
    pub(super) fn space_before(&mut self, token: Token, text: &str, adjacent: bool) -> bool {
        let space = self.before.as_ref().is_some_and(|(previous, sign)| {
            !self.tight_after(*previous, sign) && !self.tight_before(*previous, sign, token, text, adjacent)
        });
        match text {
            "(" => self.open.push('('),
            "[" => self.open.push('['),
            ")" | "]" => drop(self.open.pop()),
            _ => {}
        }
        self.before = Some((token, text.to_owned()));
        space
    }

    /// Whether nothing may follow a token but the next one.
    fn tight_after(&self, token: Token, text: &str) -> bool {
        match text {
            "(" | "[" | "^" => true,
            _ if token.kind != TokenKind::Symbol => false,
            _ => self.signs.contains(&token.span.start) || self.accesses.contains(&token.span.start),
        }
    }

    fn tight_before(&self, previous: Token, before: &str, token: Token, text: &str, adjacent: bool) -> bool {
        let in_brackets = self.open.contains(&'[');
        match text {
            ")" | "]" | "," | "'" | "[" | "^" => true,
            "(" if previous.kind == TokenKind::Word => {
                !OPENING_WORDS.contains(&before) && (adjacent || !EITHER_WORDS.contains(&before))
            }
            _ if self.accesses.contains(&token.span.start) => true,
            _ if token.kind != TokenKind::Symbol && previous.kind != TokenKind::Symbol => adjacent,
            _ => in_brackets,
        }
    }
}
