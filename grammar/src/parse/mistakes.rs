//! The wording of every syntax error. One function per mistake; nothing here decides.

use super::Rule;
use crate::codes;
use crate::diag::{Diagnostic, did_you_mean};
use crate::span::Span;

/// Words that cannot be names.
pub(super) const KEYWORDS: &[&str] = &[
    "axis",
    "const",
    "in",
    "noise",
    "learn",
    "fixed",
    "state",
    "plastic",
    "trace",
    "modulator",
    "out",
    "penalty",
    "hold",
    "layer",
    "spec",
    "rule",
];

/// Words that follow a declared name.
pub(super) const CLAUSE_WORDS: &[&str] =
    &["in", "rank", "gradscale", "tied", "unbounded", "dense", "events", "per", "every", "persist", "when"];

/// Words of other languages and papers, with the keyword that says the same here.
const SYNONYMS: &[(&str, &str)] = &[
    ("input", "in"),
    ("inputs", "in"),
    ("output", "out"),
    ("outputs", "out"),
    ("return", "out"),
    ("param", "learn"),
    ("params", "learn"),
    ("parameter", "learn"),
    ("weight", "learn"),
    ("weights", "learn"),
    ("train", "learn"),
    ("genome", "learn"),
    ("constant", "const"),
    ("frozen", "fixed"),
    ("dim", "axis"),
    ("size", "axis"),
    ("var", "state"),
    ("hebbian", "plastic"),
    ("fast", "plastic"),
    ("eligibility", "trace"),
    ("model", "spec"),
    ("network", "spec"),
    ("loss", "penalty"),
    ("random", "noise"),
    ("freeze", "hold"),
    ("module", "layer"),
    ("block", "layer"),
    ("use", "layer"),
    ("def", "rule"),
    ("fn", "rule"),
];

/// The keyword that a word was meant to be.
pub(super) fn keyword_for(word: &str) -> Option<&'static str> {
    let lower = word.to_lowercase();
    let exact = KEYWORDS.iter().find(|k| **k == lower);
    let known = SYNONYMS.iter().find(|(w, _)| *w == lower).map(|(_, k)| *k);
    let near = || did_you_mean(word, KEYWORDS.iter().copied().filter(|_| word.len() > 2));
    exact.copied().or(known).or_else(near)
}

fn here(code: &'static str, message: impl Into<String>, at: Span, label: impl Into<String>) -> Diagnostic {
    Diagnostic::error(code, message, at, label)
}

// ---------------------------------------------------------------- brackets and nesting

pub(super) fn nested_brackets(at: Span, limit: usize) -> Diagnostic {
    here(
        codes::TOO_DEEP,
        "brackets are nested too deeply",
        at,
        format!("more than {limit} brackets are open here"),
    )
    .help("give the inner parts names, each in an equation of its own")
}

pub(super) fn deep_expression(at: Span, limit: usize) -> Diagnostic {
    here(
        codes::TOO_DEEP,
        "this expression is too deep",
        at,
        format!("more than {limit} operations in each other"),
    )
    .help("give a part of it a name, in an equation of its own")
}

pub(super) fn unclosed(open: Span, bracket: &str, end: Span, close: &str) -> Diagnostic {
    here(codes::UNCLOSED, format!("`{bracket}` is never closed"), open, "opened here")
        .help(format!("add `{close}`"))
        .fix(end, close)
}

pub(super) fn wrong_closing(open: Span, at: Span, found: &str, wanted: &str) -> Diagnostic {
    here(
        codes::UNMATCHED,
        format!("`{found}` does not close this bracket"),
        at,
        format!("expected `{wanted}`"),
    )
    .label(open, "opened here")
    .fix(at, wanted)
}

pub(super) fn unmatched(at: Span, bracket: &str) -> Diagnostic {
    here(codes::UNMATCHED, format!("`{bracket}` has no partner"), at, "nothing is open here")
        .help("remove it, or open the bracket it should close")
}

pub(super) fn braces(at: Span) -> Diagnostic {
    here(codes::UNEXPECTED, "a block in braces has no meaning here", at, "opened here")
        .help("only `spec name { … }` has braces")
}

pub(super) fn unclosed_spec(head: Span, end: Span, name: &str) -> Diagnostic {
    here(codes::UNCLOSED_SPEC, format!("the spec `{name}` is never closed"), head, "begins here")
        .label(end, "`}` is missing after this")
        .help("add `}` after its last statement")
}

pub(super) fn missing_open(head: Span) -> Diagnostic {
    let end = Span::new(head.end as usize, head.end as usize);
    here(codes::UNCLOSED_SPEC, "the opening brace of the spec is missing", head, "expected `{` after this")
        .fix(end, " {")
}

pub(super) fn stray_brace(at: Span) -> Diagnostic {
    here(codes::UNMATCHED, "`}` has no partner", at, "no spec is open here").help("remove it").fix(at, "")
}

pub(super) fn closed_early(first: Span, early: Span, close: Span) -> Diagnostic {
    here(codes::UNMATCHED, "a brace closes the spec too early", early, "the spec ends here")
        .label(first, "this stands outside of it")
        .label(close, "and this closes nothing")
        .help("remove the first of the two braces")
        .fix(early, "")
}

// ---------------------------------------------------------------- items

pub(super) fn outside(at: Span) -> Diagnostic {
    here(codes::OUTSIDE, "this stands outside of a spec", at, "not inside `spec name { … }`")
        .help("move it into a spec: `spec name { … }`")
}

pub(super) fn empty_file() -> Diagnostic {
    here(codes::EMPTY, "the file holds no spec", Span::default(), "nothing but white space and comments")
        .help("begin with `spec name { … }`")
}

pub(super) fn rule_inside(at: Span) -> Diagnostic {
    here(codes::RULE_INSIDE, "a rule is defined inside a spec", at, "this rule")
        .help("move it out of the braces; every spec of the file can use it there")
}

pub(super) fn missing_parameters(at: Span) -> Diagnostic {
    here(codes::MISSING_NAME, "a rule without parameters", at, "expected `(` after this")
        .help("write the parameters in parentheses: `rule oja(x[i], y[j], w) = …`")
}

pub(super) fn refused(source: &str, error: &pest::error::Error<Rule>) -> Diagnostic {
    let at = match error.location {
        pest::error::InputLocation::Pos(place) => place,
        pest::error::InputLocation::Span((place, _)) => place,
    };
    let at = Span::new(at.min(source.len()), at.min(source.len()));
    here(codes::TOO_DEEP, "this text is nested too deeply to be read", at, "reading stopped here")
        .help("give the inner parts names, each in an equation of its own")
}

// ---------------------------------------------------------------- statements

pub(super) fn unknown_keyword(at: Span, word: &str, next: &str, meant: Option<&str>) -> Diagnostic {
    let wrong =
        here(codes::UNKNOWN_KEYWORD, format!("unknown keyword `{word}`"), at, "no statement begins so");
    match meant {
        Some(meant) => wrong.help(format!("did you mean `{meant}`?")).fix(at, meant),
        None if next.is_empty() => wrong.note(statement_words()),
        None => wrong
            .help(format!("to define `{word}`, write `{word} = …`; to multiply, `{word} * {next}`"))
            .note(statement_words()),
    }
}

fn statement_words() -> String {
    let words: Vec<String> = KEYWORDS[..14].iter().map(|k| format!("`{k}`")).collect();
    format!("a statement is an equation or begins with {}", words.join(", "))
}

pub(super) fn lonely(at: Span, word: &str) -> Diagnostic {
    here(
        codes::UNEXPECTED,
        format!("`{word}` alone is no statement"),
        at,
        "expected an equation or a declaration",
    )
    .help(format!("define it with `{word} = …`, or remove it"))
}

pub(super) fn no_statement(at: Span) -> Diagnostic {
    here(codes::UNEXPECTED, "this is no statement", at, "expected an equation or a declaration")
        .help("an equation is written `name = …`, the next value of a state `name' = …`")
}

pub(super) fn unexpected(at: Span, text: &str) -> Diagnostic {
    let mut text: String = text.chars().take(20).collect();
    text.truncate(text.trim_end().len());
    here(codes::UNEXPECTED, format!("unexpected `{text}`"), at, "the statement is complete before this")
        .help("remove it, or put it into a statement of its own")
}

pub(super) fn same_line(end: u32, second: Span) -> Diagnostic {
    let gap = Span::new(end as usize, end as usize);
    here(codes::SAME_LINE, "two statements on one line", second, "the second one begins here")
        .help("put it on a line of its own, or write `;` between them; names in a list need `,`")
        .fix(gap, ";")
}

pub(super) fn missing_assign(place: Span, after: &str) -> Diagnostic {
    here(codes::MISSING_ASSIGN, "`=` is missing", place, format!("expected `=` after {after}"))
        .fix(place, " =")
}

pub(super) fn wrong_assign(at: Span, sign: &str) -> Diagnostic {
    let wrong = here(codes::WRONG_ASSIGN, format!("`{sign}` does not define anything"), at, "expected `=`");
    let wrong =
        if sign == "==" { wrong.note("`==` compares two values inside an expression") } else { wrong };
    wrong.fix(at, "=")
}

pub(super) fn second_assign(at: Span) -> Diagnostic {
    here(codes::WRONG_ASSIGN, "a second `=` in one statement", at, "the statement is complete before this")
        .help("define one name per equation; to compare, write `==`")
}

pub(super) fn compound_assign(at: Span, sign: &str, name: &str) -> Diagnostic {
    let op = sign.trim_end_matches('=');
    here(codes::COMPOUND_ASSIGN, format!("`{sign}` is not an equation"), at, "expected `=`")
        .help(format!("write both times: `{name}' = {name} {op} …`"))
        .note("the prime is the value after the step, the bare name the value before it")
}

pub(super) fn axis_without_size(at: Span, name: &str) -> Diagnostic {
    let end = Span::new(at.end as usize, at.end as usize);
    here(codes::MISSING_ASSIGN, format!("the axis `{name}` has no size"), at, "expected `= size` or `= ?`")
        .help(format!("write `{name} = ?` if the task or `--axis {name}=…` gives the size"))
        .fix(end, " = ?")
}

pub(super) fn unnamed_output(at: Span) -> Diagnostic {
    let start = Span::new(at.start as usize, at.start as usize);
    here(codes::UNNAMED_OUTPUT, "this output has no name", at, "an expression")
        .help("give it a name: `out name = …`")
        .fix(start, "name = ")
}

pub(super) fn clause(at: Span, message: &str, help: &str) -> Diagnostic {
    here(codes::CLAUSE, message, at, "here").help(help)
}

pub(super) fn interval_brackets(at: Span, inside: &str) -> Diagnostic {
    here(codes::CLAUSE, "a range is written with parentheses", at, "this range")
        .note("the value approaches the bounds and never reaches them")
        .fix(at, format!("({inside})"))
}

pub(super) fn bound_sign(at: Span, sign: &str) -> Diagnostic {
    here(codes::CLAUSE, format!("`{sign}` is no bound"), at, "expected `<`, `<=`, `>` or `>=`")
        .help("an initial value is written `= value`")
}

pub(super) fn missing_distribution(place: Span, found: &str) -> Diagnostic {
    here(codes::CLAUSE, format!("expected a distribution, found {found}"), place, "after `~`")
        .help("write, for example, `~ uniform(0, 0.01)`; a fixed value is written `= value`")
}

// ---------------------------------------------------------------- names

pub(super) fn missing_name(at: Span, what: &str, found: &str) -> Diagnostic {
    here(codes::MISSING_NAME, format!("expected {what}, found {found}"), at, "a name is missing here")
}

pub(super) fn nameless_equation(sign: Span) -> Diagnostic {
    here(codes::MISSING_NAME, "an equation without a name", sign, "expected a name before this")
}

pub(super) fn reserved(at: Span, name: &str, what: &str) -> Diagnostic {
    here(codes::RESERVED, format!("`{name}` is a reserved word"), at, format!("cannot be {what}"))
        .help(format!("choose another name, such as `{name}_`"))
        .note(statement_words())
}

pub(super) fn name_letters(at: Span, name: &str) -> Diagnostic {
    let plain: String = name.chars().map(|c| spelled(c).unwrap_or_else(|| c.to_string())).collect();
    let wrong =
        here(codes::NAME_LETTERS, format!("the name `{name}` has letters outside ASCII"), at, "this name");
    if plain.is_ascii() {
        wrong.help(format!("write `{plain}`")).fix(at, plain)
    } else {
        wrong.help("names are ASCII letters, digits and `_`")
    }
}

/// Letters of the papers, spelled out.
fn spelled(c: char) -> Option<String> {
    const GREEK: &[(char, &str)] = &[
        ('α', "alpha"),
        ('β', "beta"),
        ('γ', "gamma"),
        ('δ', "delta"),
        ('ε', "epsilon"),
        ('ϵ', "epsilon"),
        ('ζ', "zeta"),
        ('η', "eta"),
        ('θ', "theta"),
        ('κ', "kappa"),
        ('λ', "lambda"),
        ('μ', "mu"),
        ('µ', "mu"),
        ('ν', "nu"),
        ('ξ', "xi"),
        ('π', "pi"),
        ('ρ', "rho"),
        ('σ', "sigma"),
        ('τ', "tau"),
        ('φ', "phi"),
        ('ϕ', "phi"),
        ('χ', "chi"),
        ('ψ', "psi"),
        ('ω', "omega"),
        ('Γ', "Gamma"),
        ('Δ', "Delta"),
        ('Θ', "Theta"),
        ('Λ', "Lambda"),
        ('Σ', "Sigma"),
        ('Φ', "Phi"),
        ('Ψ', "Psi"),
        ('Ω', "Omega"),
    ];
    let digit = "₀₁₂₃₄₅₆₇₈₉".chars().position(|s| s == c);
    let letter = GREEK.iter().find(|(g, _)| *g == c).map(|(_, s)| (*s).to_owned());
    letter.or_else(|| digit.map(|d| d.to_string()))
}

// ---------------------------------------------------------------- operators

pub(super) fn operator_spelling(at: Span, found: &str, ascii: &str) -> Diagnostic {
    let code = if found.is_ascii() { codes::FOREIGN_OPERATOR } else { codes::UNICODE_OPERATOR };
    let wrong = here(code, format!("`{found}` is written `{ascii}`"), at, format!("expected `{ascii}`"));
    let wrong = match found {
        "·" | "⋅" | "∙" => {
            wrong.help("`.` is the dot product of two vectors, `*` the elementwise product")
        }
        ".*" | "./" | ".^" => wrong.help("`*`, `/` and `^` work elementwise; a matrix product is `@`"),
        _ => wrong,
    };
    wrong.fix(at, ascii)
}

pub(super) fn no_such_operator(at: Span, sign: &str) -> Diagnostic {
    let help = match sign {
        "!=" | "≠" => "write `1 - (a == b)`",
        "&&" => "a comparison is 1 or 0; multiply the two",
        "||" => "a comparison is 1 or 0; write `max(a, b)`",
        "!" => "a comparison is 1 or 0; write `1 - x`",
        "%" => "there is no remainder",
        _ => "see the operators in the language reference",
    };
    here(codes::FOREIGN_OPERATOR, format!("there is no operator `{sign}`"), at, "not an operator").help(help)
}

pub(super) fn plus_sign(at: Span) -> Diagnostic {
    here(codes::FOREIGN_OPERATOR, "`+` is no sign", at, "no operand on its left")
        .help("remove it")
        .fix(at, "")
}

pub(super) fn comparison_chain(first: Span, second: Span) -> Diagnostic {
    here(codes::COMPARISON_CHAIN, "comparisons cannot be chained", second, "the second comparison")
        .label(first, "the first one")
        .help("multiply two comparisons: `(a < b) * (b < c)`")
}

pub(super) fn power_chain(first: Span, second: Span) -> Diagnostic {
    here(codes::POWER_CHAIN, "powers cannot be chained", second, "the second power")
        .label(first, "the first one")
        .help("use parentheses: `(a^2)^3`")
}

pub(super) fn missing_operator(left: Span, right: Span, gap: Span) -> Diagnostic {
    here(codes::MISSING_OPERATOR, "an operator is missing", right, "no operator before this")
        .label(left, "the expression ends here")
        .help("write `*` for the elementwise product, `@` for matrix times vector, `.` for the dot product")
        .fix(gap, " *")
}

pub(super) fn operator_or_comma(left: Span, right: Span, gap: Span) -> Diagnostic {
    here(
        codes::MISSING_OPERATOR,
        "an operator or a comma is missing",
        right,
        "expected `,` or an operator before this",
    )
    .label(left, "after this")
    .help("write `,` between two arguments, or an operator such as `*` or `@`")
    .fix(gap, ",")
}

pub(super) fn missing_comma(gap: Span, next: Span, text: &str, meant: Option<&str>) -> Diagnostic {
    match meant {
        Some(meant) => here(codes::CLAUSE, format!("unknown word `{text}`"), next, "in a declaration")
            .help(format!("did you mean `{meant}`?"))
            .fix(next, meant),
        None => {
            here(codes::MISSING_COMMA, "a comma is missing", next, "expected `,` before this").fix(gap, ",")
        }
    }
}

pub(super) fn missing_expression(at: Span, found: &str, before: Option<(Span, &str)>) -> Diagnostic {
    let wrong = here(
        codes::MISSING_EXPRESSION,
        format!("expected an expression, found {found}"),
        at,
        "an operand is missing here",
    );
    match before {
        Some((span, sign)) if "+-*/^@.<>=,~".contains(sign) => {
            wrong.label(span, format!("after this `{sign}`"))
        }
        _ => wrong,
    }
}

pub(super) fn list_literal(at: Span) -> Diagnostic {
    here(
        codes::MISSING_EXPRESSION,
        "expected an expression, found `[`",
        at,
        "a list of values has no meaning here",
    )
    .help("brackets follow a name directly: `y[j]`; vectors are joined with `concat(a, b)`")
}

pub(super) fn named_argument(at: Span, name: &str) -> Diagnostic {
    here(codes::NAMED_ARGUMENT, "arguments have no names", at, format!("`{name}` is not needed"))
        .help("pass the values in the order of the definition")
        .fix(at, "")
}

pub(super) fn tuple_value(at: Span, count: usize) -> Diagnostic {
    let what = if count == 0 { "nothing" } else { "several values" };
    here(codes::TUPLE_VALUE, format!("{what} in parentheses is no expression"), at, "expected one value")
        .help("`(a, b) = …` stands on the left side only; vectors are joined with `concat(a, b)`")
}

pub(super) fn spaced_call(gap: Span, bracket: &str) -> Diagnostic {
    let what = if bracket == "(" { "the arguments of a call" } else { "an index" };
    here(codes::SPACED_CALL, format!("a space before `{bracket}`"), gap, "this space")
        .help(format!("{what} must follow directly; a product needs `*`"))
        .fix(gap, "")
}

pub(super) fn bars(at: Span) -> Diagnostic {
    here(codes::FOREIGN_OPERATOR, "`|` is not an operator", at, "here").help("the absolute value is `abs(x)`")
}

pub(super) fn question(at: Span) -> Diagnostic {
    here(codes::FOREIGN_OPERATOR, "there is no operator `?`", at, "here")
        .help("a comparison is 1 or 0; write `c * a + (1 - c) * b`")
}

/// A character as it can be printed in a message.
fn shown(c: char) -> String {
    if c.is_control() { c.escape_default().to_string() } else { c.to_string() }
}

pub(super) fn character(at: Span, text: &str) -> Diagnostic {
    let shown: String = text.chars().map(shown).collect();
    here(codes::CHARACTER, format!("the character `{shown}` is not part of the language"), at, "here")
}

// ---------------------------------------------------------------- numbers and primes

pub(super) fn bad_number(at: Span, text: &str) -> Diagnostic {
    here(codes::NUMBER, format!("`{text}` is no number"), at, "cannot be read as a number")
        .help("write, for example, `1`, `.5`, `2.5e4` or `1e-3`")
}

pub(super) fn huge_number(at: Span, text: &str) -> Diagnostic {
    here(codes::NUMBER, format!("`{text}` is too large"), at, "greater than any number a computer stores")
}

pub(super) fn number_then_name(at: Span, gap: Span, number: &str, name: &str) -> Diagnostic {
    if name.starts_with('_') {
        return here(codes::NUMBER, format!("`{number}{name}` is no number"), at, "digits are not grouped")
            .help("write the digits without `_`");
    }
    here(codes::MISSING_OPERATOR, "an operator is missing", at, "a number directly before a name")
        .help(format!("write `{number}*{name}`"))
        .note("`3N` is allowed only for the size of an axis, in brackets")
        .fix(gap, "*")
}

pub(super) fn dot_element(at: Span, number: &str) -> Diagnostic {
    here(codes::DOT_ELEMENT, "the dot product needs two vectors", at, "a number after the dot")
        .help(format!("an element is written with brackets: `[{number}]`"))
        .fix(at, format!("[{number}]"))
}

pub(super) fn prime_on(at: Span, what: &str) -> Diagnostic {
    here(codes::PRIME_PLACE, format!("{what} cannot carry a prime"), at, "this prime")
        .help("the prime follows directly the name of a state: `y'`")
        .note("the prime is the value after the step")
}

pub(super) fn declared_prime(at: Span, name: &str) -> Diagnostic {
    here(codes::PRIME_PLACE, "a declaration carries no prime", at, "this prime")
        .help(format!("declare `{name}`; its value after the step is `{name}'`"))
        .fix(at, "")
}

pub(super) fn prime_after_index(at: Span, both: Span, brackets: &str) -> Diagnostic {
    here(codes::PRIME_PLACE, "the prime stands before the brackets", at, "this prime")
        .fix(both, format!("'{}", brackets.trim_end_matches('\'')))
}

pub(super) fn double_prime(at: Span, text: &str) -> Diagnostic {
    here(codes::DOUBLE_PRIME, format!("`{text}` is not a prime"), at, "expected one `'`")
        .help("a step has one before and one after; for the value of an earlier step keep it in a state")
        .fix(at, "'")
}

// ---------------------------------------------------------------- documentation

pub(super) fn lost_doc(at: Span) -> Diagnostic {
    Diagnostic::warning(codes::LOST_DOC, "this documentation belongs to nothing", at, "a `///` comment")
        .help("put it on its own line above a spec, rule or statement, or write `//`")
}
