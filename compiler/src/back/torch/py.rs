//! Python expressions as trees: parentheses where they are needed, lines that are not too long.
//!
//! A tree keeps the order of sums and products, so that `a + (b + c)` is written as such. A product of matrices
//! beside another product always stands in parentheses: Python reads `2 * W @ y` from the left.

/// Columns of a line.
const WIDTH: usize = 100;

/// An expression.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Py {
    /// A name, a number, or another text that binds tightest.
    Word(String),
    /// `f(a, b)`
    Call(String, Vec<Py>),
    /// `[a, b]`
    List(Vec<Py>),
    /// `name=a`, as an argument.
    Keyword(String, Box<Py>),
    /// What follows an expression: `x.T`, `x[:, None]`, `x.sum(-1)`.
    Of(Box<Py>, String),
    /// `-x`
    Negative(Box<Py>),
    /// `a + b`, `a @ b`, `a < b`
    Infix(&'static str, Box<Py>, Box<Py>),
}

/// How tightly an expression binds.
#[derive(Clone, Copy, PartialEq, PartialOrd)]
enum Level {
    Comparison,
    Sum,
    Product,
    Sign,
    Word,
}

impl Py {
    /// A name or a number.
    pub(super) fn word(text: impl Into<String>) -> Py {
        Py::Word(text.into())
    }

    /// `f(arguments)`
    pub(super) fn call(function: &str, arguments: Vec<Py>) -> Py {
        Py::Call(function.to_owned(), arguments)
    }

    /// `name=value`
    pub(super) fn keyword(name: &str, value: Py) -> Py {
        Py::Keyword(name.to_owned(), Box::new(value))
    }

    /// `a sign b`
    pub(super) fn infix(sign: &'static str, a: Py, b: Py) -> Py {
        Py::Infix(sign, Box::new(a), Box::new(b))
    }

    /// What follows this expression.
    pub(super) fn of(self, suffix: impl Into<String>) -> Py {
        Py::Of(Box::new(self), suffix.into())
    }

    /// `-x`
    pub(super) fn negative(self) -> Py {
        Py::Negative(Box::new(self))
    }

    /// A number as Python writes it: `1`, `0.05`, `1e-12`.
    pub(super) fn number(x: f64) -> Py {
        let text = match x.abs() {
            a if a.is_nan() => "math.nan".to_owned(),
            a if a.is_infinite() => "math.inf".to_owned(),
            a if a < 1e6 && a.fract() == 0.0 => format!("{a:.0}"),
            a => format!("{a:?}"),
        };
        if x < 0.0 { Py::Word(text).negative() } else { Py::Word(text) }
    }

    /// Whether it is a name: `y`, `self.W`.
    pub(super) fn name(&self) -> Option<&str> {
        match self {
            Py::Word(text) => {
                let text = text.strip_prefix("self.").unwrap_or(text);
                text.starts_with(|c: char| c.is_ascii_alphabetic()).then_some(text)
            }
            _ => None,
        }
    }

    fn level(&self) -> Level {
        match self {
            Py::Word(_) | Py::Call(..) | Py::List(_) | Py::Of(..) => Level::Word,
            Py::Keyword(..) => Level::Comparison,
            Py::Negative(_) => Level::Sign,
            Py::Infix("+" | "-", ..) => Level::Sum,
            Py::Infix("*" | "/" | "@", ..) => Level::Product,
            Py::Infix(..) => Level::Comparison,
        }
    }

    /// Whether an operand of `sign` needs parentheses.
    fn needs_parentheses(&self, sign: &str, is_right: bool) -> bool {
        let own = match sign {
            "+" | "-" => Level::Sum,
            "*" | "/" | "@" => Level::Product,
            _ => Level::Comparison,
        };
        let mixed = match self {
            Py::Infix(other, ..) => own == self.level() && (sign == "@" || *other == "@"),
            _ => false,
        };
        let level = self.level();
        level < own
            || mixed
            || (is_right && (level == own || level == Level::Sign))
            || (own == Level::Comparison && level == own)
    }

    fn operand(&self, sign: &str, is_right: bool) -> String {
        let text = self.flat();
        if self.needs_parentheses(sign, is_right) { format!("({text})") } else { text }
    }

    /// On one line.
    pub(super) fn flat(&self) -> String {
        let list = |all: &[Py]| all.iter().map(Py::flat).collect::<Vec<_>>().join(", ");
        match self {
            Py::Word(text) => text.clone(),
            Py::Call(f, arguments) => format!("{f}({})", list(arguments)),
            Py::List(all) => format!("[{}]", list(all)),
            Py::Keyword(name, value) => format!("{name}={}", value.flat()),
            Py::Of(x, suffix) if x.level() == Level::Word => format!("{}{suffix}", x.flat()),
            Py::Of(x, suffix) => format!("({}){suffix}", x.flat()),
            Py::Negative(x) if x.level() < Level::Sign => format!("-({})", x.flat()),
            Py::Negative(x) => format!("-{}", x.flat()),
            Py::Infix(sign, a, b) => format!("{} {sign} {}", a.operand(sign, false), b.operand(sign, true)),
        }
    }

    /// On as many lines as it takes, `indent` columns in; `before` columns are taken on the first line.
    pub(super) fn laid_out(&self, indent: usize, before: usize) -> String {
        let flat = self.flat();
        if indent + before + flat.len() <= WIDTH {
            return flat;
        }
        let (inner, outer) = (" ".repeat(indent + 4), " ".repeat(indent));
        let one = |a: &Py| match a {
            // Inside of brackets a chain needs none of its own.
            Py::Infix(..) if WIDTH < indent + 5 + a.flat().len() => a.chain().join(&format!("\n{inner}")),
            a => a.laid_out(indent + 4, 1),
        };
        let lines = |all: &[Py]| -> String { all.iter().map(|a| format!("{inner}{},\n", one(a))).collect() };
        match self {
            Py::Call(f, arguments) if arguments.len() == 1 => {
                format!("{f}(\n{inner}{}\n{outer})", one(&arguments[0]))
            }
            Py::Call(f, arguments) if !arguments.is_empty() => format!("{f}(\n{}{outer})", lines(arguments)),
            Py::List(all) => format!("[\n{}{outer}]", lines(all)),
            Py::Keyword(name, value) => format!("{name}={}", value.laid_out(indent, before + name.len() + 1)),
            Py::Of(x, suffix) if x.level() == Level::Word => {
                format!("{}{suffix}", x.laid_out(indent, before + suffix.len()))
            }
            Py::Of(x, suffix) => format!("{}{suffix}", x.in_parentheses(indent)),
            Py::Infix(..) => self.in_parentheses(indent),
            Py::Word(_) | Py::Call(..) | Py::Negative(_) => flat,
        }
    }

    /// In parentheses, one operand of a chain on each line.
    fn in_parentheses(&self, indent: usize) -> String {
        let (inner, outer) = (" ".repeat(indent + 4), " ".repeat(indent));
        let text: String = self.chain().iter().map(|line| format!("{inner}{line}\n")).collect();
        format!("(\n{text}{outer})")
    }

    /// The operands of a chain of one level: `a`, `+ b`, `- c`.
    fn chain(&self) -> Vec<String> {
        let Py::Infix(sign, a, b) = self else { return vec![self.flat()] };
        let mut lines = match &**a {
            Py::Infix(..) if a.level() == self.level() && !a.needs_parentheses(sign, false) => a.chain(),
            _ => vec![a.operand(sign, false)],
        };
        lines.push(format!("{sign} {}", b.operand(sign, true)));
        lines
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn w(text: &str) -> Py {
        Py::word(text)
    }

    #[test]
    fn parentheses_keep_the_order() {
        let sum = Py::infix("+", w("a"), Py::infix("+", w("b"), w("c")));
        assert_eq!(sum.flat(), "a + (b + c)");
        let product = Py::infix("@", Py::infix("*", w("a"), w("b")), w("c"));
        assert_eq!(product.flat(), "(a * b) @ c");
        let scaled = Py::infix("*", Py::infix("@", w("W"), w("y")), w("k"));
        assert_eq!(scaled.flat(), "(W @ y) * k");
        assert_eq!(Py::infix("*", w("a"), Py::number(-0.5)).flat(), "a * (-0.5)");
        assert_eq!(Py::infix("+", w("a"), w("b")).of(".sum(-1)").flat(), "(a + b).sum(-1)");
        assert_eq!(Py::infix("-", w("a"), w("b")).negative().flat(), "-(a - b)");
    }

    #[test]
    fn long_lines_break_where_they_bind_least() {
        let long = |c: &str| w(&c.repeat(40));
        let sum = Py::infix("+", Py::infix("+", long("a"), long("b")), long("c"));
        let expected =
            format!("(\n    {}\n    + {}\n    + {}\n)", "a".repeat(40), "b".repeat(40), "c".repeat(40));
        assert_eq!(sum.laid_out(0, 4), expected);
    }
}
