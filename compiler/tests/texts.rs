//! The intermediate representations as text: what is printed is read back exactly, every program
//! obeys the law, and no text makes a reader panic.

use compiler::ir::{Function, Sizes};
use compiler::loops::{self, LowerOptions, Program};
use compiler::model::Model;
use compiler::{autodiff, ir, passes};
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

/// Every model of the library.
fn models() -> Vec<Model> {
    let mut todo = vec![Path::new(env!("CARGO_MANIFEST_DIR")).join("../specs")];
    let mut paths: Vec<PathBuf> = vec![];
    while let Some(path) = todo.pop() {
        if path.is_dir() {
            todo.extend(std::fs::read_dir(&path).expect("a folder").map(|e| e.expect("an entry").path()));
        } else if path.extension().is_some_and(|e| e == "bpm") {
            paths.push(path);
        }
    }
    paths.sort();
    let text = |p: &PathBuf| std::fs::read_to_string(p).expect("a spec is text");
    paths.iter().flat_map(|p| compiler::check::check(&text(p)).models).collect()
}

fn functions(model: &Model) -> [(&'static str, Function); 4] {
    [
        ("step", model.step.clone()),
        ("adjoint", autodiff::step(model)),
        ("prologue", autodiff::prologue(model)),
        ("tangent", autodiff::forward(model)),
    ]
}

fn program(model: &Model, n: usize, input_bars: bool) -> Program {
    let named = model.axes.named.iter().enumerate();
    let bound: BTreeMap<String, usize> = named.map(|(k, a)| (a.name.clone(), n + k % 3)).collect();
    let sizes = Sizes::bind(&model.axes, &bound).expect("sizes for every axis");
    let model = &passes::optimise(model);
    loops::lower(model, &sizes, &autodiff::step(model), LowerOptions { input_bars })
}

#[test]
fn functions_are_read_back_exactly() {
    for model in models().into_iter().flat_map(|m| [passes::optimise(&m), m]) {
        for (title, f) in functions(&model) {
            let text = ir::print(&f, &model, title);
            let (found, read) =
                ir::parse(&text, &model).unwrap_or_else(|e| panic!("{} {title}: {e}\n{text}", model.name));
            assert_eq!(found, title);
            assert_eq!(read, f, "{} {title}", model.name);
            assert_eq!(ir::print(&read, &model, title), text);
        }
    }
}

#[test]
fn programs_are_read_back_exactly_and_obey_the_law() {
    for model in models() {
        for (n, bars) in [(1, true), (3, false), (6, true), (33, true)] {
            let program = program(&model, n, bars);
            loops::verify(&program).unwrap_or_else(|e| panic!("{} {n}: {e}", model.name));
            let text = loops::print(&program);
            let read = loops::parse(&text).unwrap_or_else(|e| panic!("{} {n}: {e}\n{text}", model.name));
            assert_eq!(loops::print(&read), text, "{} {n}", model.name);
            // A constant NaN is not equal to itself.
            assert!(read == program || text.contains("const NaN"), "{} {n}", model.name);
        }
    }
}

fn example() -> &'static Model {
    static EXAMPLE: OnceLock<Model> = OnceLock::new();
    EXAMPLE.get_or_init(|| {
        let found = models().into_iter().find(|m| m.name == "retroactive");
        found.expect("the library has this spec")
    })
}

#[test]
fn errors_name_the_line() {
    let model = example();
    let text = ir::print(&model.step, model, "step");
    let wrong = text.replacen("tanh", "tahn", 1);
    let line = 1 + text.lines().position(|l| l.contains("tanh")).expect("a tanh");
    let error = ir::parse(&wrong, model).expect_err("no such operation");
    assert_eq!(error.to_string(), format!("line {line}: there is no operation `tahn` of 1 operands"));
    let wrong = text.replacen("load param Wx", "load param Wz", 1);
    let error = ir::parse(&wrong, model).expect_err("no such parameter");
    assert_eq!(error.to_string(), "line 2: the model has no parameter `Wz`");
    let wrong = text.replacen("%0:  [N,I]", "%0:  [I,N]", 1);
    assert!(ir::parse(&wrong, model).is_err(), "wrong axes");
}

#[test]
fn breaches_of_the_law_are_found() {
    let text = loops::print(&program(example(), 5, true));
    let breach = |from: &str, to: &str| {
        assert!(text.contains(from), "{from} in\n{text}");
        loops::parse(&text.replacen(from, to, 1)).expect_err("a breach").to_string()
    };
    assert!(breach("  scratch ", "  scratch 1 //").contains("line"));
    assert!(breach("load matrix carry+0\n", "load matrix carry+100000\n").contains("leave Carry"));
    assert!(breach("load matrix carry+0\n", "load matrix grads+0\n").contains("no Grads"));
    assert!(breach("nest matrix [", "nest vector [1] \"\" //").contains("line"));
    assert!(breach("keep %", "mul %").contains("takes a mask for a number"));
}

/// A text with one piece removed, doubled or replaced.
fn mutate(text: &str, at: usize, len: usize, with: &str) -> String {
    let border = |mut k: usize| {
        k = k.min(text.len());
        while !text.is_char_boundary(k) {
            k -= 1;
        }
        k
    };
    let start = border(at % (text.len() + 1));
    let end = border(start + len).max(start);
    format!("{}{with}{}", &text[..start], &text[end..])
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_text_makes_a_reader_panic(
        at in any::<usize>(),
        len in 0..12usize,
        with in "[%\\[\\]a-z0-9+=,.\"; \n-]{0,6}",
        which in 0..4usize,
    ) {
        let model = example();
        let (title, f) = functions(model)[which].clone();
        let text = mutate(&ir::print(&f, model, title), at, len, &with);
        if let Ok((title, f)) = ir::parse(&text, model) {
            prop_assert_eq!(ir::parse(&ir::print(&f, model, &title), model), Ok((title, f)));
        }
        let text = mutate(&loops::print(&program(model, 2, true)), at, len, &with);
        if let Ok(p) = loops::parse(&text) {
            let again = loops::parse(&loops::print(&p));
            prop_assert_eq!(again.map(|p| loops::print(&p)), Ok(loops::print(&p)));
        }
    }
}
