//! Reads the printed intermediate representations, line by line, without ever panicking.

/// Why a printed text cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {message}")]
pub struct ParseError {
    /// The line, counted from one; zero if the text as a whole breaks the law.
    pub line: usize,
    /// What is wrong.
    pub message: String,
}

/// What a reader gives.
pub(crate) type Read<T> = Result<T, ParseError>;

/// One line of a text, read from left to right.
#[derive(Clone, Debug)]
pub(crate) struct Line<'t> {
    number: usize,
    rest: &'t str,
}

/// The lines that hold something: no blank ones, no comments (`//`).
pub(crate) fn lines(text: &str) -> impl Iterator<Item = Line<'_>> {
    let numbered = text.lines().enumerate().map(|(k, rest)| Line { number: k + 1, rest });
    numbered.filter(|l| !l.rest.trim().is_empty() && !l.rest.trim_start().starts_with("//"))
}

impl<'t> Line<'t> {
    /// An error on this line.
    pub(crate) fn error(&self, message: impl Into<String>) -> ParseError {
        ParseError { line: self.number, message: message.into() }
    }

    /// Whether the line stands at the margin.
    pub(crate) fn is_heading(&self) -> bool {
        !self.rest.starts_with(' ')
    }

    /// The line up to a `;` outside of quotes.
    pub(crate) fn without_remark(self) -> Line<'t> {
        let (mut quoted, mut escaped) = (false, false);
        for (at, c) in self.rest.char_indices() {
            match c {
                _ if escaped => escaped = false,
                '\\' if quoted => escaped = true,
                '"' => quoted = !quoted,
                ';' if !quoted => return Line { rest: self.rest[..at].trim_end(), ..self },
                _ => {}
            }
        }
        self
    }

    /// What is still to be read.
    pub(crate) fn rest(&self) -> &'t str {
        self.rest.trim_start()
    }

    /// Reads a mark if it stands here.
    pub(crate) fn take(&mut self, mark: &str) -> bool {
        match self.rest().strip_prefix(mark) {
            Some(rest) => {
                self.rest = rest;
                true
            }
            None => false,
        }
    }

    /// Reads a mark that must stand here.
    pub(crate) fn expect(&mut self, mark: &str) -> Read<()> {
        if self.take(mark) { Ok(()) } else { Err(self.error(format!("expected `{mark}`{}", self.found()))) }
    }

    fn found(&self) -> String {
        match self.rest() {
            "" => " at the end of the line".to_owned(),
            rest => format!(", found `{}`", rest.chars().take(20).collect::<String>()),
        }
    }

    /// Reads the characters that qualify; at least one must.
    pub(crate) fn run(&mut self, what: &str, qualifies: impl Fn(char) -> bool) -> Read<&'t str> {
        let rest = self.rest();
        let end = rest.find(|c| !qualifies(c)).unwrap_or(rest.len());
        if end == 0 {
            return Err(self.error(format!("expected {what}{}", self.found())));
        }
        self.rest = &rest[end..];
        Ok(&rest[..end])
    }

    /// A word: letters, digits, `_`, `.`, `'`.
    pub(crate) fn word(&mut self) -> Read<&'t str> {
        self.run("a word", |c| c.is_alphanumeric() || matches!(c, '_' | '.' | '\''))
    }

    /// A number without a sign.
    pub(crate) fn count(&mut self) -> Read<usize> {
        let digits = self.run("a number", |c| c.is_ascii_digit())?;
        match digits.parse() {
            Ok(n) if n <= usize::MAX >> 8 => Ok(n),
            _ => Err(self.error(format!("the number {digits} is too large"))),
        }
    }

    /// The number of a value or of something else that is counted in 32 bits.
    pub(crate) fn index(&mut self) -> Read<u32> {
        let n = self.count()?;
        u32::try_from(n).map_err(|_| self.error(format!("the number {n} is too large")))
    }

    /// `%12`
    pub(crate) fn value(&mut self) -> Read<u32> {
        self.expect("%")?;
        self.index()
    }

    /// `%1, %2`
    pub(crate) fn values(&mut self) -> Read<Vec<u32>> {
        let mut found = vec![self.value()?];
        while self.take(",") {
            found.push(self.value()?);
        }
        Ok(found)
    }

    /// A number with a fraction, a sign or an exponent, `inf` or `NaN`.
    pub(crate) fn float<F: std::str::FromStr>(&mut self) -> Read<F> {
        let text = self.run("a number", |c| c.is_ascii_alphanumeric() || matches!(c, '+' | '-' | '.'))?;
        text.parse().map_err(|_| self.error(format!("`{text}` is no number")))
    }

    /// `"text"`, with `\"`, `\\` and `\n`.
    pub(crate) fn quoted(&mut self) -> Read<String> {
        self.expect("\"")?;
        let mut text = String::new();
        let mut characters = self.rest.char_indices();
        while let Some((at, c)) = characters.next() {
            match c {
                '"' => {
                    self.rest = &self.rest[at + 1..];
                    return Ok(text);
                }
                '\\' => match characters.next() {
                    Some((_, 'n')) => text.push('\n'),
                    Some((_, c)) => text.push(c),
                    None => break,
                },
                c => text.push(c),
            }
        }
        Err(self.error("a text in quotes does not end"))
    }

    /// Nothing may follow.
    pub(crate) fn end(&self) -> Read<()> {
        if self.rest().is_empty() {
            Ok(())
        } else {
            Err(self.error(format!("unexpected text{}", self.found())))
        }
    }
}

/// A text in quotes, as [`Line::quoted`] reads it.
pub(crate) fn quote(text: &str) -> String {
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n"))
}
