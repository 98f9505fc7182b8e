//! A spec as a document: `bpmc doc`. Tables of what it declares, and its equations.

use crate::model::Model;
use crate::stages::{param_text, role_text, state_text};
use crate::{ir, tex};
use grammar::ast::{Item, Spec, Statement, StatementKind};

/// The kind of document.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Markdown, with equations between dollars.
    Markdown,
    /// A web page that needs nothing else; equations as the spec writes them.
    Html,
    /// A LaTeX document.
    Latex,
}

/// A table of a document.
struct Table {
    title: &'static str,
    columns: [&'static str; 4],
    rows: Vec<[String; 4]>,
}

/// The document of some models of a file.
pub fn document(source: &str, models: &[Model], format: Format) -> String {
    let parsed = grammar::parse(source);
    let mut text = String::new();
    for model in models {
        let spec = parsed.file.items.iter().find_map(|item| match item {
            Item::Spec(spec) if spec.name.name == model.name => Some(spec),
            _ => None,
        });
        if let Some(spec) = spec {
            text.push_str(&match format {
                Format::Markdown => markdown(model, spec),
                Format::Html => html(source, model, spec),
                Format::Latex => latex(model, spec),
            });
        }
    }
    match format {
        Format::Markdown => text,
        Format::Html => format!("{HTML_HEAD}{text}</html>\n"),
        Format::Latex => format!("{LATEX_HEAD}{text}\\end{{document}}\n"),
    }
}

const HTML_HEAD: &str = "<!doctype html>
<html lang=\"en\">
<meta charset=\"utf-8\">
<title>bpm</title>
<style>
body { font: 16px/1.5 sans-serif; max-width: 60em; margin: 2em auto; padding: 0 1em }
table { border-collapse: collapse; margin: 1em 0 }
th, td { text-align: left; vertical-align: top; padding: .2em .8em .2em 0; border-bottom: 1px solid #ccc }
pre { background: #f6f6f6; padding: .8em; overflow-x: auto }
</style>
";

const LATEX_HEAD: &str = "\\documentclass{article}
\\usepackage[utf8]{inputenc}
\\usepackage{amsmath,amssymb,longtable}
\\begin{document}
";

fn tables(model: &Model) -> Vec<Table> {
    let shape = |s| ir::shape_text(s, &model.axes);
    let axes = model.axes.named.iter();
    let axes = axes.map(|a| {
        let size = a.size.map_or("open".to_owned(), |n| n.to_string());
        [a.name.clone(), size, String::new(), String::new()]
    });
    let params =
        model.params.iter().map(|p| [p.name.clone(), shape(p.shape), param_text(p, model), p.doc.join(" ")]);
    let inputs = model
        .inputs
        .iter()
        .map(|i| [i.name.clone(), shape(i.shape), role_text(&i.role, model), i.doc.join(" ")]);
    let states =
        model.states.iter().map(|s| [s.name.clone(), shape(s.shape), state_text(s, model), s.doc.join(" ")]);
    let outputs =
        model.outputs.iter().map(|o| [o.name.clone(), shape(o.shape), String::new(), o.doc.join(" ")]);
    let table =
        |title, second, third, rows| Table { title, columns: ["name", second, third, "what it is"], rows };
    let mut all = vec![
        table("Axes", "size", "", axes.collect()),
        table("Parameters", "axes", "how", params.collect()),
        table("Inputs", "axes", "role", inputs.collect()),
        table("States", "axes", "role and start", states.collect()),
        table("Outputs", "axes", "", outputs.collect()),
    ];
    all.retain(|t| !t.rows.is_empty());
    all
}

impl Table {
    /// The columns that hold something.
    fn used(&self) -> Vec<usize> {
        (0..4).filter(|k| self.rows.iter().any(|r| !r[*k].is_empty())).collect()
    }
}

// ------------------------------------------------------------------ Markdown

fn markdown(model: &Model, spec: &Spec) -> String {
    let mut text = format!("# {}\n\n{}\n\n", model.name, spec.doc.join("\n"));
    for table in tables(model) {
        let used = table.used();
        let row = |cells: Vec<String>| format!("| {} |\n", cells.join(" | "));
        text.push_str(&format!("## {}\n\n", table.title));
        text.push_str(&row(used.iter().map(|k| table.columns[*k].to_owned()).collect()));
        text.push_str(&row(used.iter().map(|_| "---".to_owned()).collect()));
        for r in &table.rows {
            let cell = |k: &usize| match (*k, r[*k].as_str()) {
                (3, plain) => plain.replace('|', "\\|"),
                (_, "") => String::new(),
                (_, code) => format!("`{code}`"),
            };
            text.push_str(&row(used.iter().map(cell).collect()));
        }
        text.push('\n');
    }
    text.push_str("## Equations\n\n$$\n\\begin{aligned}\n");
    text.push_str(&tex::equations(model, &spec.statements).join(" \\\\\n"));
    text.push_str("\n\\end{aligned}\n$$\n\n");
    text
}

// ---------------------------------------------------------------------- HTML

fn html(source: &str, model: &Model, spec: &Spec) -> String {
    let mut text = format!("<h1>{}</h1>\n", escape_html(&model.name));
    for paragraph in spec.doc.join("\n").split("\n\n") {
        text.push_str(&format!("<p>{}</p>\n", escape_html(paragraph.trim())));
    }
    for table in tables(model) {
        let used = table.used();
        text.push_str(&format!("<h2>{}</h2>\n<table>\n<tr>", table.title));
        used.iter().for_each(|k| text.push_str(&format!("<th>{}</th>", table.columns[*k])));
        text.push_str("</tr>\n");
        for r in &table.rows {
            let cell = |k: &usize| match *k {
                3 => format!("<td>{}</td>", escape_html(&r[3])),
                k => format!("<td><code>{}</code></td>", escape_html(&r[k])),
            };
            text.push_str(&format!("<tr>{}</tr>\n", used.iter().map(cell).collect::<String>()));
        }
        text.push_str("</table>\n");
    }
    text.push_str("<h2>Equations</h2>\n<pre>");
    for statement in spec.statements.iter().filter(|s| is_equation(s)) {
        let line = source.get(statement.span.range()).unwrap_or_default();
        text.push_str(&format!("{}\n", escape_html(line.trim())));
    }
    text.push_str("</pre>\n");
    text
}

fn is_equation(statement: &Statement) -> bool {
    matches!(
        statement.kind,
        StatementKind::Equation { .. }
            | StatementKind::Output(_)
            | StatementKind::Penalty(_)
            | StatementKind::Hold { .. }
            | StatementKind::Layer { .. }
    )
}

fn escape_html(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

// --------------------------------------------------------------------- LaTeX

fn latex(model: &Model, spec: &Spec) -> String {
    let mut text =
        format!("\\section*{{{}}}\n{}\n\n", tex::escape(&model.name), tex::escape(&spec.doc.join("\n")));
    for table in tables(model) {
        let used = table.used();
        let column = |k: &usize| if *k == 3 { "p{0.45\\linewidth}" } else { "l" };
        text.push_str(&format!("\\subsection*{{{}}}\n", table.title));
        text.push_str(&format!("\\begin{{longtable}}{{{}}}\n", used.iter().map(column).collect::<String>()));
        let titles: Vec<&str> = used.iter().map(|k| table.columns[*k]).collect();
        text.push_str(&format!("{} \\\\\n\\hline\n", titles.join(" & ")));
        for r in &table.rows {
            let cell = |k: &usize| match *k {
                3 => tex::escape(&r[3]),
                k => format!("\\texttt{{{}}}", tex::escape(&r[k])),
            };
            let cells: Vec<String> = used.iter().map(cell).collect();
            text.push_str(&format!("{} \\\\\n", cells.join(" & ")));
        }
        text.push_str("\\end{longtable}\n");
    }
    text.push_str("\\subsection*{Equations}\n\\begin{align*}\n");
    text.push_str(&tex::equations(model, &spec.statements).join(" \\\\\n"));
    text.push_str("\n\\end{align*}\n\n");
    text
}
