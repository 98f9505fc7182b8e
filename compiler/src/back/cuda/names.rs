//! What stands in the source for a place in memory: names from the spec.
//!
//! Every region has a namespace of constants, `slot::y`, `matrix::H`, `param::W`, which are the offsets of
//! its parts; and every region that a kernel touches has a pointer, `now`, `before`, `carry`. The words of
//! the spec are made legal C++ here. Neither namespaces nor pointers can be mistaken for them, since a word
//! of the spec always stands behind a namespace or is made different.

use super::Spec;
use crate::ir::{Function, Op, Source, Value};
use crate::loops::{Access, Base, Program, Slot, routines};
use std::collections::{BTreeMap, BTreeSet};

/// A named part of a region.
#[derive(Clone, Debug)]
struct Part {
    offset: usize,
    word: String,
    remark: String,
}

/// The parts of a region.
#[derive(Clone, Debug)]
pub(super) struct Table {
    space: &'static str,
    title: &'static str,
    parts: Vec<Part>,
}

/// The names of all regions.
pub(super) struct Names {
    frame: Table,
    adjoint: Table,
    matrices: Table,
    /// `None` if the cotangents of the matrix states are carried.
    carried: Option<Table>,
    params: Table,
    grads: Table,
    logs: Table,
    log_bars: Table,
}

impl Table {
    /// Parts that begin at these offsets; words are made legal and different.
    fn new(
        space: &'static str,
        title: &'static str,
        parts: impl Iterator<Item = (usize, String, String)>,
    ) -> Self {
        let mut used = BTreeSet::new();
        let mut parts: Vec<Part> = parts
            .map(|(offset, name, remark)| Part { offset, word: different(&legal(&name), &mut used), remark })
            .collect();
        parts.sort_by_key(|p| p.offset);
        Table { space, title, parts }
    }

    fn part(&self, offset: usize) -> Option<&Part> {
        self.parts.iter().rev().find(|p| p.offset <= offset)
    }

    /// `slot::y`, `slot::y + 3`
    fn text(&self, offset: usize) -> String {
        match self.part(offset) {
            Some(p) if p.offset == offset => format!("{}::{}", self.space, p.word),
            Some(p) => format!("{}::{} + {}", self.space, p.word, offset - p.offset),
            None => offset.to_string(),
        }
    }

    /// The namespace as source.
    fn source(&self) -> String {
        if self.parts.is_empty() {
            return String::new();
        }
        let mut text = format!("// {}\nnamespace {} {{\n", self.title, self.space);
        for p in &self.parts {
            text.push_str(&format!("constexpr int {} = {};  // {}\n", p.word, p.offset, p.remark));
        }
        text.push_str("}\n\n");
        text
    }
}

impl Names {
    /// The names of a program's regions.
    pub(super) fn new(program: &Program, spec: &Spec<'_>) -> Names {
        let value = |v: Value| value_name(spec.step, v);
        let shape = |m: Option<(usize, usize)>, len: usize| {
            m.map_or(format!("[{len}]"), |(j, i)| format!("[{j},{i}]"))
        };
        // In a frame of vectors, `bar policy` is another thing than `policy`.
        let frame = program.frame.iter().map(|s| match s.name.strip_prefix("bar ") {
            Some(name) => Slot { name: format!("{}_bar", legal(name)), ..s.clone() },
            None => s.clone(),
        });
        let slot = |s: Slot| (s.offset, s.name.clone(), format!("[{}] {}", s.len, s.name));
        let matrices = program.matrices.iter().flatten();
        let matrices: Vec<(usize, String, String)> = matrices
            .map(|m| (m.offset, m.name.clone(), format!("[{},{}] {}", m.post, m.pre, m.name)))
            .collect();
        let carried = (!program.carries_states).then(|| {
            let title = "What a step of the backward pass hands to the next.";
            Table::new("carried", title, carried(program).into_iter())
        });
        let log = |offset: usize, l: &crate::loops::LogSlot| {
            (offset, l.name.clone(), format!("[{},{}] {}", l.events, l.len, l.name))
        };
        let params = program.params.iter().map(|b| (b.offset, value(b.value), shape(b.matrix, b.len)));
        let grads = program.grads.iter().map(|g| (g.offset, value(g.value), shape(g.matrix, g.len)));
        Names {
            frame: Table::new("slot", "A frame: the vectors of a step.", frame.map(slot)),
            adjoint: Table::new(
                "bar",
                "An adjoint frame: cotangents of the vectors of a step.",
                program.adjoint.iter().cloned().map(slot),
            ),
            matrices: Table::new(
                "matrix",
                "The matrix states, [pre][post], the post axis padded to eight.",
                matrices.into_iter(),
            ),
            carried,
            params: Table::new("param", "What is the same for all rows of the batch.", params),
            grads: Table::new("grad", "Gradients.", grads),
            logs: Table::new("event", "Logs of events.", program.logs.iter().map(|l| log(l.offset, l))),
            log_bars: Table::new(
                "event_bar",
                "Their cotangents.",
                program.logs.iter().map(|l| log(l.bar, l)),
            ),
        }
    }

    /// All namespaces as source.
    pub(super) fn source(&self) -> String {
        let Names { frame, adjoint, matrices, carried, params, grads, logs, log_bars } = self;
        let all = [frame, adjoint, matrices, params, grads, logs, log_bars];
        all.into_iter().chain(carried).map(Table::source).collect()
    }

    fn table(&self, base: Base, backward: bool) -> Option<&Table> {
        match base {
            Base::Frame(_) => Some(&self.frame),
            Base::Adjoint(_) => Some(&self.adjoint),
            Base::Params => Some(&self.params),
            Base::Carry if backward && self.carried.is_some() => self.carried.as_ref(),
            Base::Carry | Base::Next | Base::Ends | Base::Snapshot(_) => Some(&self.matrices),
            Base::Grads => Some(&self.grads),
            Base::Log => Some(&self.logs),
            Base::LogBar => Some(&self.log_bars),
            Base::Scratch => None,
        }
    }

    /// The offset of a place within its region: `slot::y`.
    pub(super) fn offset(&self, base: Base, offset: usize, backward: bool) -> String {
        self.table(base, backward).map_or(offset.to_string(), |t| t.text(offset))
    }

    /// A word for a value that lies at a place: `y_before`.
    pub(super) fn word(&self, base: Base, offset: usize, backward: bool) -> Option<String> {
        let part = self.table(base, backward)?.part(offset)?;
        let from = if part.offset == offset { String::new() } else { format!("_{}", offset - part.offset) };
        let when = match base {
            Base::Frame(-2) => "_earlier",
            Base::Frame(-1) => "_before",
            Base::Frame(1) | Base::Snapshot(1) | Base::Next => "_after",
            Base::Frame(2) | Base::Snapshot(2) => "_later",
            Base::Adjoint(1) => "_bar_after",
            Base::Adjoint(2) => "_bar_later",
            Base::Adjoint(_) | Base::Ends | Base::LogBar => "_bar",
            Base::Grads => "_grad",
            Base::Frame(_) | Base::Snapshot(_) | Base::Params | Base::Carry | Base::Log | Base::Scratch => "",
        };
        Some(format!("{}{from}{when}", part.word))
    }
}

/// The length of a row's region.
pub(super) fn length(base: Base, backward: bool) -> &'static str {
    match base {
        Base::Frame(_) => "FRAME",
        Base::Adjoint(_) => "ADJOINT",
        Base::Carry if backward => "CARRY",
        Base::Carry | Base::Next | Base::Ends | Base::Snapshot(_) => "MATRICES",
        Base::Scratch => "SCRATCH",
        Base::Params => "PARAMS",
        Base::Grads => "GRADS",
        Base::Log => "LOGS",
        Base::LogBar => "LOG_BARS",
    }
}

/// The pointer to a region, and what it is computed from.
pub(super) fn pointer(base: Base, backward: bool) -> (&'static str, String) {
    let numbered = |what: &str, number: &str, shift: i8, length: &str| {
        let shift = match shift {
            0 => String::new(),
            k if k < 0 => format!(" - {}", -k),
            k => format!(" + {k}"),
        };
        format!("region(tape.{what}, {number}{shift}, {length})")
    };
    let carry = if backward { "CARRY" } else { "MATRICES" };
    let (name, text) = match base {
        Base::Frame(k) => {
            let name = match k {
                -2 => "earlier",
                -1 => "before",
                0 => "now",
                1 => "after",
                _ => "later",
            };
            (name, numbered("frames", "at.frame + (int)blockIdx.y", k, "FRAME"))
        }
        Base::Adjoint(k) => {
            let name = match k {
                0 => "now_bar",
                1 => "after_bar",
                _ => "later_bar",
            };
            (name, numbered("adjoints", "at.adjoint + (int)blockIdx.y", k, "ADJOINT"))
        }
        Base::Snapshot(k) => {
            let name = match k {
                0 => "snapshot",
                1 => "snapshot_after",
                _ => "snapshot_later",
            };
            (name, numbered("snapshots", "at.snapshot", k, "MATRICES"))
        }
        Base::Scratch => ("scratch", "region(tape.scratch, blockIdx.y, SCRATCH)".to_owned()),
        Base::Params => ("params", "tape.params".to_owned()),
        Base::Carry => ("carry", format!("region(tape.carry, 0, {carry})")),
        Base::Next => ("next", "region(tape.next, 0, MATRICES)".to_owned()),
        Base::Ends => ("ends", "region(tape.ends, 0, MATRICES)".to_owned()),
        Base::Grads => ("grads", "region(tape.grads, 0, GRADS)".to_owned()),
        Base::Log => ("logs", "region(tape.logs, 0, LOGS)".to_owned()),
        Base::LogBar => ("log_bars", "region(tape.log_bars, 0, LOG_BARS)".to_owned()),
    };
    (name, text)
}

/// The spec's name of a value of the step, or its number.
pub(super) fn value_name(step: &Function, v: Value) -> String {
    let instruction = step.body.get(v.index());
    instruction.and_then(|i| i.name.clone()).unwrap_or_else(|| match instruction.map(|i| &i.op) {
        Some(Op::Load(Source::Param(p))) => format!("parameter {}", p.index()),
        _ => format!("%{}", v.0),
    })
}

/// The expressions that the backward pass carries from step to step, by the places where nests keep them.
fn carried(program: &Program) -> Vec<(usize, String, String)> {
    let mut found = BTreeMap::new();
    for nest in routines(program).into_iter().skip(6).flat_map(|r| &r.nests) {
        let effects = nest.effects.iter().map(crate::loops::Effect::place);
        let loads = nest.body.loads().filter(|a| matches!(a, Access::Matrix(_))).map(Access::place);
        for place in loads.chain(effects).filter(|p| p.base == Base::Carry) {
            found.insert(place.offset, ());
        }
    }
    let named = found.into_keys().enumerate();
    named.map(|(k, offset)| (offset, format!("c{k}"), "carried".to_owned())).collect()
}

/// Words that C++, CUDA or the prelude use, or that compilers define as macros.
const TAKEN: &[&str] = &[
    "alignas",
    "alignof",
    "and",
    "and_eq",
    "asm",
    "assert",
    "auto",
    "bitand",
    "bitor",
    "bool",
    "break",
    "case",
    "catch",
    "char",
    "class",
    "compl",
    "const",
    "constexpr",
    "continue",
    "decltype",
    "default",
    "delete",
    "do",
    "double",
    "else",
    "enum",
    "explicit",
    "export",
    "extern",
    "false",
    "float",
    "for",
    "friend",
    "goto",
    "if",
    "inline",
    "int",
    "linux",
    "long",
    "major",
    "minor",
    "mutable",
    "namespace",
    "new",
    "noexcept",
    "not",
    "not_eq",
    "nullptr",
    "operator",
    "or",
    "or_eq",
    "private",
    "protected",
    "public",
    "register",
    "return",
    "short",
    "signed",
    "sizeof",
    "static",
    "struct",
    "switch",
    "template",
    "this",
    "throw",
    "true",
    "try",
    "typedef",
    "typeid",
    "typename",
    "union",
    "unix",
    "unsigned",
    "using",
    "virtual",
    "void",
    "volatile",
    "while",
    "xor",
    "xor_eq",
    "NULL",
    "NAN",
    "INFINITY",
    "EOF",
    "THREADS",
    "FRAME",
    "ADJOINT",
    "MATRICES",
    "CARRY",
    "PARAMS",
    "GRADS",
    "SCRATCH",
    "LOGS",
    "LOG_BARS",
    "COLUMNS",
    "block",
    "batch",
    "row",
    "slab",
    "column",
    "stretch",
    "begin",
    "earlier",
    "before",
    "now",
    "after",
    "later",
    "now_bar",
    "after_bar",
    "later_bar",
    "snapshot",
    "snapshot_after",
    "snapshot_later",
    "scratch",
    "params",
    "carry",
    "next",
    "ends",
    "grads",
    "logs",
    "log_bars",
    "tape",
    "at",
    "i",
    "j",
    "shared",
    "held",
    "sums",
    "frames",
    "bars",
    "ranks",
    "rank",
    "span",
    "memory",
    "when",
    "end",
    "segment",
    "row_of",
    "CLUSTER",
];

/// Functions of the prelude and of the device.
const FUNCTIONS: &[&str] = &[
    "region",
    "region_of",
    "sum_halves",
    "infinity",
    "not_a_number",
    "lesser",
    "greater",
    "power_of_two",
    "exponent",
    "mantissa",
    "chain",
    "chain_max",
    "sum_lanes",
    "max_lanes",
    "fmaf",
    "fabsf",
    "sqrtf",
    "rintf",
    "first",
    "rows",
];

/// Namespaces of this source.
const SPACES: &[&str] = &["slot", "bar", "matrix", "carried", "param", "grad", "event", "event_bar"];

/// A legal word: `y'` → `y`, `%14` → `v14`, `bar u` → `u`, `row K` → `row_K`.
pub(super) fn legal(name: &str) -> String {
    let name = name.strip_prefix("bar ").unwrap_or(name).trim_end_matches('\'');
    let letter = |c: char| if c.is_ascii_alphanumeric() || c == '_' { c } else { '_' };
    let mut word: String = name.replace('%', "v").chars().map(letter).collect();
    if !word.starts_with(|c: char| c.is_ascii_alphabetic()) {
        word.insert(0, 'v');
    }
    let word = word.replace("__", "_");
    let is_taken = |w: &str| TAKEN.contains(&w) || FUNCTIONS.contains(&w) || SPACES.contains(&w);
    if is_taken(&word) { format!("{word}_") } else { word }
}

/// The word, with a number behind it if it is used already.
pub(super) fn different(word: &str, used: &mut BTreeSet<String>) -> String {
    let mut found = word.to_owned();
    let mut number = 2;
    while !used.insert(found.clone()) {
        found = format!("{word}_{number}");
        number += 1;
    }
    found
}
