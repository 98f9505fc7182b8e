//! Arbitrary text: nothing panics, and what is valid keeps its meaning in the canonical layout.

use grammar::diag::Diagnostic;
use grammar::parse;
use grammar::span::Span;
use proptest::prelude::*;

const SPECS: &[&str] = &[
    "/// doc\nspec s {\n  axis I = ?, N = 200 // size\n  in mod r, u[I]\n  learn W[N,3N], a[N] in (0,1) ~ uniform(0, .1) rank 2\n  \
     state y[N] = learn ~ normal(0, 1) per episode; plastic H[N,N] = 0 every 3 episodes unbounded\n  \
     y' = tanh(W @ u + b . c - (W + a[j] * H)^T @ y)\n  H'[j,i] = clip(H + m * -x^2, -1, 1)\n}\n",
    "rule oja(x[i], y[j], w) = y[j] * (x[i] - y[j] * w)\nspec t {\n  (f, g) = split(e, 2)\n  # why\n  z = f\n    + g\n  \
     hold S, y when e > .5\n  out y', v[N] = q\n  penalty 1e-4 * mean(P')\n  modulator m = h\n}\n",
];

/// Pieces that a text of the language is made of, and some that it is not.
const PIECES: &[&str] = &[
    "spec", "rule", "axis", "in", "learn", "state", "out", "hold", "when", "penalty", "every", "episodes",
    "rank", "y", "W", "N", "3", ".5", "1e-3", "(", ")", "[", "]", "{", "}", ",", ";", "\n", " ", "'", "=",
    "==", "+", "-", "*", "/", "@", ".", "^", "^T", "<", "~", "?", "//", "///", "#", "α", "×", "′", "ᵀ", "²",
    "\u{FEFF}", "$", "\r",
];

/// Everything the crate does with a text.
fn everything(source: &str) {
    let parsed = parse(source);
    let _ = grammar::render::human("f.bpm", source, &parsed.diagnostics, true);
    let _ = grammar::render::short("f.bpm", source, &parsed.diagnostics);
    let _ = grammar::render::json("f.bpm", source, &parsed.diagnostics);
    for diagnostic in &parsed.diagnostics {
        for label in &diagnostic.labels {
            assert!(source.get(label.span.range()).is_some(), "{diagnostic:?} in {source:?}");
        }
    }
    match grammar::format(source) {
        Err(diagnostics) => assert!(diagnostics.iter().any(Diagnostic::is_error)),
        Ok(text) => same_meaning(source, &text),
    }
}

/// The layout keeps tree and comments, and is its own layout.
fn same_meaning(source: &str, text: &str) {
    let (before, after) = (parse(source), parse(text));
    assert!(!after.has_errors(), "{source:?} became {text:?}");
    assert_eq!(without_places(&before.file), without_places(&after.file), "{source:?} became {text:?}");
    let mut comments: Vec<_> = before.comments.iter().map(|c| &c.text).collect();
    let mut kept: Vec<_> = after.comments.iter().map(|c| &c.text).collect();
    comments.sort();
    kept.sort();
    assert_eq!(comments, kept, "{source:?} became {text:?}");
    assert_eq!(grammar::format(text).as_deref(), Ok(text), "from {source:?}");
}

/// The tree as text with all places blanked.
fn without_places(file: &grammar::ast::File) -> String {
    let text = format!("{file:?}");
    let parts = text.split("Span { start: ").map(|p| p.split_once('}').map_or(p, |(_, rest)| rest));
    parts.collect::<Vec<_>>().join("@")
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_string(source in "\\PC{0,80}") {
        everything(&source);
    }

    #[test]
    fn any_bytes(bytes in proptest::collection::vec(any::<u8>(), 0..120)) {
        everything(&String::from_utf8_lossy(&bytes));
    }

    #[test]
    fn any_pieces(pieces in proptest::collection::vec(0..PIECES.len(), 0..40)) {
        let body: String = pieces.iter().map(|&p| PIECES[p]).collect();
        everything(&body);
        everything(&format!("spec s {{\n{body}\n}}"));
    }

    #[test]
    fn any_spaced_pieces(pieces in proptest::collection::vec(0..PIECES.len(), 0..30)) {
        let body: Vec<&str> = pieces.iter().map(|&p| PIECES[p]).collect();
        everything(&format!("spec s {{\ny' = {}\n}}", body.join(" ")));
    }

    #[test]
    fn damaged_specs(which in 0..SPECS.len(), cuts in proptest::collection::vec((0usize..700, 0usize..6, 0..PIECES.len()), 1..4)) {
        let mut text: Vec<char> = SPECS[which].chars().collect();
        for (at, length, piece) in cuts {
            let at = at % text.len();
            let end = (at + length).min(text.len());
            text.splice(at..end, PIECES[piece].chars());
        }
        everything(&text.into_iter().collect::<String>());
    }

    #[test]
    fn any_span_renders(start in 0u32..60, end in 0u32..60, huge in any::<u32>(), source in "(a|\n|\r|é|\t|𝛼){0,20}") {
        for span in [Span { start, end }, Span { start: huge, end }, Span { start, end: huge }] {
            let wrong = Diagnostic::error("BPM0001", "message", span, "here")
                .label(Span { start: end, end: start }, "there")
                .help("do")
                .note("why")
                .fix(span, "new");
            for color in [false, true] {
                let text = grammar::render::human("f.bpm", &source, std::slice::from_ref(&wrong), color);
                assert!(text.contains("BPM0001"));
            }
            let _ = grammar::render::short("f.bpm", &source, std::slice::from_ref(&wrong));
            let _ = grammar::render::json("f.bpm", &source, std::slice::from_ref(&wrong));
        }
    }
}

#[test]
fn valid_specs_are_valid() {
    for source in SPECS {
        let parsed = parse(source);
        assert!(parsed.diagnostics.is_empty(), "{:?}", parsed.diagnostics);
        everything(source);
    }
}

#[test]
fn deep_and_long_texts_end_in_an_ordinary_error() {
    let wrap = |body: String| format!("spec s {{\n  z = {body}\n  v = 1\n}}");
    let n = 100_000;
    let texts = [
        wrap(format!("{}1{}", "(".repeat(n), ")".repeat(n))),
        wrap("(".repeat(n)),
        wrap("f(".repeat(n)),
        wrap("x[".repeat(n)),
        wrap("-".repeat(n)),
        wrap(format!("1{}", " + 1".repeat(n))),
        wrap(format!("W{}", "^T".repeat(n))),
        wrap(format!("x{}", "^2".repeat(n))),
        wrap(format!("x{}", "[j]".repeat(n))),
        wrap(format!("1{}", " < 1".repeat(n))),
        "{".repeat(n),
    ];
    for source in texts {
        let parsed = parse(&source);
        assert!(parsed.has_errors());
        assert!(grammar::format(&source).is_err());
    }
}

#[test]
fn long_files_are_read_in_time_proportional_to_their_length() {
    let lines = "  y' = tanh(W @ x + (a + b[j]) * f(c, d))  // note\n  foo bar(\n".repeat(2000);
    let started = std::time::Instant::now();
    let parsed = parse(&format!("spec s {{\n{lines}}}"));
    assert!(parsed.diagnostics.len() >= 2000);
    assert!(started.elapsed().as_secs() < 20, "{:?}", started.elapsed());
}
