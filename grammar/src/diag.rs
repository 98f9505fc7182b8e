//! What is wrong with a text, as data. Rendering happens in [`crate::render`], at the edge.
//!
//! A diagnostic is made at the place that found the mistake. Its message is lower case without a
//! full stop; the primary label says what is *there*, a secondary label says where the expectation
//! came from, and help says what to do.

use crate::span::Span;

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Severity {
    /// The spec cannot be compiled.
    Error,
    /// The spec compiles, but does probably not mean what its author wants.
    Warning,
    /// A fact worth knowing.
    Info,
}

/// A piece of the text with a remark.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Label {
    /// Where.
    pub span: Span,
    /// What is here.
    pub text: String,
    /// Whether this is the place of the mistake, or a place that explains it.
    pub primary: bool,
}

/// A replacement that mends the mistake.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fix {
    /// The text to replace; empty to insert.
    pub span: Span,
    /// What to put there.
    pub replacement: String,
}

/// One mistake or remark, with a stable code of the form `BPM0203`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Diagnostic {
    /// Stable code; the first two digits are the family.
    pub code: &'static str,
    /// How bad it is.
    pub severity: Severity,
    /// One line, lower case, no full stop.
    pub message: String,
    /// Places; the first one is the primary one.
    pub labels: Vec<Label>,
    /// What to do.
    pub help: Vec<String>,
    /// Background.
    pub notes: Vec<String>,
    /// A mechanical remedy, where there is a safe one.
    pub fix: Option<Fix>,
}

impl Diagnostic {
    /// An error with its primary place.
    pub fn error(code: &'static str, message: impl Into<String>, at: Span, label: impl Into<String>) -> Self {
        Self::new(Severity::Error, code, message.into(), at, label.into())
    }

    /// A warning with its primary place.
    pub fn warning(
        code: &'static str,
        message: impl Into<String>,
        at: Span,
        label: impl Into<String>,
    ) -> Self {
        Self::new(Severity::Warning, code, message.into(), at, label.into())
    }

    /// A remark with its primary place.
    pub fn info(code: &'static str, message: impl Into<String>, at: Span, label: impl Into<String>) -> Self {
        Self::new(Severity::Info, code, message.into(), at, label.into())
    }

    fn new(severity: Severity, code: &'static str, message: String, span: Span, text: String) -> Self {
        let labels = vec![Label { span, text, primary: true }];
        Diagnostic { code, severity, message, labels, help: vec![], notes: vec![], fix: None }
    }

    /// Adds a secondary place.
    #[must_use]
    pub fn label(mut self, span: Span, text: impl Into<String>) -> Self {
        self.labels.push(Label { span, text: text.into(), primary: false });
        self
    }

    /// Adds advice.
    #[must_use]
    pub fn help(mut self, text: impl Into<String>) -> Self {
        self.help.push(text.into());
        self
    }

    /// Adds background.
    #[must_use]
    pub fn note(mut self, text: impl Into<String>) -> Self {
        self.notes.push(text.into());
        self
    }

    /// Adds a mechanical remedy.
    #[must_use]
    pub fn fix(mut self, span: Span, replacement: impl Into<String>) -> Self {
        self.fix = Some(Fix { span, replacement: replacement.into() });
        self
    }

    /// Whether the spec cannot be compiled because of this.
    pub fn is_error(&self) -> bool {
        self.severity == Severity::Error
    }

    /// The primary place.
    pub fn span(&self) -> Span {
        self.labels.first().map_or(Span::default(), |l| l.span)
    }
}

/// The candidate nearest to `name`, if it is near enough to be a slip of the pen.
///
/// The distance is the optimal string alignment distance (insert, delete, replace, swap); a
/// candidate qualifies up to a third of the length of the name, and at least one.
pub fn did_you_mean<'a>(name: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let limit = (name.chars().count() / 3).max(1);
    candidates
        .into_iter()
        .filter(|c| *c != name)
        .map(|c| (edit_distance(name, c), c))
        .filter(|(d, c)| *d <= limit && *d < c.chars().count().max(name.chars().count()))
        .min()
        .map(|(_, c)| c)
}

fn edit_distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let mut d = vec![vec![0; b.len() + 1]; a.len() + 1];
    for (i, row) in d.iter_mut().enumerate() {
        row[0] = i;
    }
    for (j, cell) in d[0].iter_mut().enumerate() {
        *cell = j;
    }
    for i in 1..=a.len() {
        for j in 1..=b.len() {
            let same = usize::from(a[i - 1] != b[j - 1]);
            d[i][j] = (d[i - 1][j] + 1).min(d[i][j - 1] + 1).min(d[i - 1][j - 1] + same);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                d[i][j] = d[i][j].min(d[i - 2][j - 2] + 1);
            }
        }
    }
    d[a.len()][b.len()]
}
