//! scratch
#[test]
fn docs() {
    let text = std::fs::read_to_string("../docs/language.md").unwrap();
    let mut block = String::new();
    let mut kind: Option<String> = None;
    for line in text.lines() {
        if let Some(k) = &kind {
            if line.starts_with("```") {
                if k.starts_with("bpm") {
                    let checked = compiler::check::check(&block);
                    if !checked.diagnostics.is_empty() || k.contains("wrong") {
                        println!(
                            "=== {k}\n{}",
                            grammar::render::human("doc.bpm", &block, &checked.diagnostics, false)
                        );
                    }
                }
                kind = None;
            } else {
                block += line;
                block.push('\n');
            }
        } else if let Some(k) = line.strip_prefix("```") {
            kind = Some(k.to_owned());
            block.clear();
        }
    }
}
