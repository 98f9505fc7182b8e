//! scratch
fn main() {
    let source = std::fs::read_to_string(std::env::args().nth(1).unwrap()).unwrap();
    let p = grammar::parse(&source);
    if std::env::args().nth(2).is_some() {
        println!("{:#?}", p.file);
    }
    for d in &p.diagnostics {
        println!(
            "{} {:?} {}",
            d.code,
            grammar::span::line_column(&source, d.span().start as usize),
            d.message
        );
    }
    let n: usize = p
        .file
        .items
        .iter()
        .map(|i| match i {
            grammar::ast::Item::Spec(s) => s.statements.len(),
            _ => 1,
        })
        .sum();
    println!("{n} statements");
}
