//! Text to syntax tree, collecting all mistakes.
//!
//! The grammar in `bpm.pest` accepts every text: what does not belong to the language appears in the
//! parse as a rule whose name says so. `items` and `expressions` walk the parse, make the tree and
//! report; `mistakes` words the reports; `layout` knows where tokens and comments are. No meaning is
//! attached to names here.

mod access;
mod declarations;
mod equations;
mod expressions;
mod items;
mod judge;
pub(crate) mod layout;
mod mistakes;

use crate::ast::File;
use crate::diag::Diagnostic;
use crate::span::Span;
use items::Builder;
use layout::Layout;
use pest::Parser;
use pest::iterators::Pair;

/// The parser that pest derives from the grammar file.
mod grammar {
    #![allow(missing_docs, unreachable_pub)]

    /// The grammar as a type.
    #[derive(pest_derive::Parser)]
    #[grammar = "bpm.pest"]
    pub(crate) struct Grammar;
}
pub(crate) use grammar::{Grammar, Rule};

/// A node of the parse.
pub(crate) type Node<'s> = Pair<'s, Rule>;

/// Brackets inside brackets, at most.
const MAX_NESTING: usize = 100;

/// A comment and where it stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Comment {
    /// From the first slash or `#` to the end of the line.
    pub span: Span,
    /// The whole text, with its slashes.
    pub text: String,
    /// Whether it is documentation (`///`).
    pub doc: bool,
    /// Whether nothing but white space stands before it on its line.
    pub own_line: bool,
}

/// What a text says, and what is wrong with it.
#[derive(Clone, Debug, Default)]
pub struct Parsed {
    /// The tree. Statements that could not be read are [`crate::ast::StatementKind::Error`].
    pub file: File,
    /// All comments in text order, documentation included.
    pub comments: Vec<Comment>,
    /// All mistakes, sorted by place.
    pub diagnostics: Vec<Diagnostic>,
}

impl Parsed {
    /// Whether the text has at least one error.
    pub fn has_errors(&self) -> bool {
        self.diagnostics.iter().any(Diagnostic::is_error)
    }
}

/// Reads a file. Never panics and never stops at the first mistake.
///
/// # Errors
///
/// All mistakes are in [`Parsed::diagnostics`], with codes BPM0001 to BPM0099.
pub fn parse(source: &str) -> Parsed {
    let layout = Layout::new(source);
    let comments = layout.comments();
    if let Some(bracket) = layout.too_deep(MAX_NESTING) {
        return failed(comments, mistakes::nested_brackets(bracket, MAX_NESTING));
    }
    match Grammar::parse(Rule::file, source) {
        Ok(mut pairs) => {
            let mut builder = Builder::new(source, &layout);
            let file = pairs.next().map(|p| builder.file(p)).unwrap_or_default();
            let diagnostics = builder.finish();
            Parsed { file, comments, diagnostics }
        }
        Err(error) => failed(comments, mistakes::refused(source, &error)),
    }
}

fn failed(comments: Vec<Comment>, mistake: Diagnostic) -> Parsed {
    Parsed { file: File::default(), comments, diagnostics: vec![mistake] }
}

#[cfg(test)]
mod tests {
    //! The grammar is wider than the language; whatever it accepts beyond it must be reported.

    use super::{Grammar, Rule, parse};
    use pest::Parser;
    use proptest::prelude::*;

    /// Whether a rule stands for a mistake.
    fn is_mistake(rule: Rule) -> bool {
        let name = format!("{rule:?}");
        name.starts_with("missing") || name.starts_with("wrong") || LIKE_MISSING.contains(&rule)
    }

    const LIKE_MISSING: &[Rule] = &[
        Rule::unclosed,
        Rule::junk,
        Rule::hold_comma,
        Rule::stray,
        Rule::named_argument,
        Rule::reserved_operand,
        Rule::late_prime,
        Rule::superscript,
    ];

    const PIECES: &[&str] = &[
        "axis ",
        "in ",
        "learn ",
        "state ",
        "out ",
        "hold ",
        "when ",
        "penalty ",
        "every 3 episodes",
        "y",
        "y'",
        "W[N]",
        "3",
        ".5",
        "(",
        ")",
        "[",
        "]",
        ",",
        ";",
        "\n",
        " ",
        "'",
        " = ",
        "-",
        " * ",
        "@",
        ".",
        "^2",
        "^T",
        "<",
        "~",
        "f(",
        "modulator ",
        "rule ",
        "per ",
        "rank ",
        "²",
        "learn",
        "noise ",
        "const ",
        "?",
    ];

    const STATEMENTS: &[&str] = &[
        "axis I = ? , N = 2",
        "const a = 1 , b = 2",
        "in mod r , s[K]",
        "noise x[N] , y ~ normal(0, 1)",
        "learn W[N,N] , a in (0, 1) = .1 rank 2",
        "state y[N] = learn ~ normal(0, 1) , z per episode",
        "plastic H[N] every 3 episodes",
        "modulator m = f(a , b[j])",
        "y' = ( a + b ) @ c^2",
        "(f , g) = split(e, 2)",
        "out y' , z[N] = q",
        "hold S , y when e > 0",
        "penalty a . b",
    ];

    fn check(body: &str) {
        let source = format!("spec s {{\n{body}\n}}");
        let pairs = Grammar::parse(Rule::file, &source).expect("the grammar accepts every text");
        let mistakes: Vec<Rule> = pairs.flatten().map(|p| p.as_rule()).filter(|r| is_mistake(*r)).collect();
        let parsed = parse(&source);
        assert!(mistakes.is_empty() || parsed.has_errors(), "{mistakes:?} in {source:?}");
        let broken = format!("{:?}", parsed.file).contains("kind: Error");
        assert!(!broken || parsed.has_errors(), "an error node in {source:?}");
    }

    #[test]
    fn no_damaged_statement_is_silent() {
        for statement in STATEMENTS {
            assert!(!parse(&format!("spec s {{ {statement} }}")).has_errors(), "{statement}");
            let words: Vec<&str> = statement.split(' ').collect();
            for at in 0..words.len() {
                let (before, after) = (words[..at].join(" "), words[at + 1..].join(" "));
                check(&format!("{before} {after}"));
                for piece in PIECES {
                    check(&format!("{before} {piece} {after}"));
                    check(&format!("{before} {} {piece}{after}", words[at]));
                }
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 1500, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn no_mistake_is_silent(pieces in proptest::collection::vec(0..PIECES.len(), 0..16)) {
            let body: String = pieces.iter().map(|&p| PIECES[p]).collect();
            check(&body);
        }
    }
}
