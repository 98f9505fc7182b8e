//! Source text in the making: indentation, and which line of the spec a line comes from.
//!
//! `#line N "spec.bpm"` says so for the one line that follows it; lines that come from no place in the
//! spec are those of this text, and `#line` says so as well where one follows another. So debuggers,
//! profilers and error messages lead to the spec.

/// Text with places.
pub(super) struct Text {
    out: String,
    /// Of the lines to come.
    depth: usize,
    /// The next line, from one.
    next: usize,
    /// What a compiler takes the next line for: a line of the spec, or of this text (`None`).
    taken: Option<usize>,
    /// The file of the spec, quoted.
    spec: String,
    /// The file of this text, quoted.
    own: String,
}

/// A name as a string of C.
fn quoted(name: &str) -> String {
    let mut text = String::from("\"");
    for c in name.chars() {
        match c {
            '"' | '\\' => text.extend(['\\', c]),
            c if c.is_control() => text.push('?'),
            c => text.push(c),
        }
    }
    text.push('"');
    text
}

impl Text {
    /// Empty text of the file `own`, about the file `spec`.
    pub(super) fn new(spec: &str, own: &str) -> Text {
        Text { out: String::new(), depth: 0, next: 1, taken: None, spec: quoted(spec), own: quoted(own) }
    }

    /// The text.
    pub(super) fn finish(self) -> String {
        self.out
    }

    fn push(&mut self, line: &str) {
        if !line.is_empty() {
            let width = if line.starts_with('#') { 0 } else { 2 * self.depth };
            self.out.push_str(&" ".repeat(width));
            self.out.push_str(line);
        }
        self.out.push('\n');
        self.next += 1;
    }

    /// A line that comes from a line of the spec, if that is known.
    pub(super) fn from(&mut self, origin: Option<usize>, line: &str) {
        let Some(origin) = origin else { return self.line(line) };
        if self.taken != Some(origin) {
            let directive = format!("#line {origin} {}", self.spec);
            self.push(&directive);
        }
        self.push(line);
        self.taken = Some(origin + 1);
    }

    /// A line of this text.
    pub(super) fn line(&mut self, line: &str) {
        if self.taken.is_some() {
            let directive = format!("#line {} {}", self.next + 1, self.own);
            self.push(&directive);
            self.taken = None;
        }
        self.push(line);
    }

    /// Several lines of this text.
    pub(super) fn lines(&mut self, text: &str) {
        text.lines().for_each(|line| self.line(line));
    }

    /// A line that opens a block: `for (…) {`.
    pub(super) fn open(&mut self, line: &str) {
        self.line(line);
        self.depth += 1;
    }

    /// The end of a block.
    pub(super) fn close(&mut self) {
        self.close_with("}");
    }

    /// The end of a block: `};`, `} else {`.
    pub(super) fn close_with(&mut self, line: &str) {
        self.depth -= 1;
        self.line(line);
    }

    /// What follows stands in a block that a line has opened already.
    pub(super) fn deepen(&mut self) {
        self.depth += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_line_says_where_it_comes_from() {
        let mut text = Text::new("a\\b.bpm", "c.cu");
        text.open("{");
        text.from(Some(7), "x = 1;");
        text.from(Some(8), "y = 2;");
        text.from(Some(3), "z = 3;");
        text.close();
        text.line("done");
        let expected = "{\n#line 7 \"a\\\\b.bpm\"\n  x = 1;\n  y = 2;\n#line 3 \"a\\\\b.bpm\"\n  z = 3;\n\
                        #line 8 \"c.cu\"\n}\ndone\n";
        assert_eq!(text.finish(), expected);
    }
}
