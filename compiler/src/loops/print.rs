//! The loop IR as text.
//!
//! ```text
//! nest matrix [5,5] "write H; sum y"
//!   %0 = load matrix carry+0                        ; H
//!   %1 = load pre frame[-1]+8                       ; y'
//!   store matrix carry+0 = %0                       ; H
//!   sum_pre frame[0]+16 = %0 * %1                   ; y'
//! ```
//!
//! A place is a region and an element in it; `frame[-1]` is the frame of the step before. What stands
//! behind `;` is a remark: the slot that the place belongs to. `routine NAME cut 32 8` has its sums cut in slabs of 32
//! columns and 8 stretches of rows.
//! [`super::parse()`] reads everything else back exactly.

use super::body::{BodyOp, Id};
use super::{Access, Base, Effect, Extent, Nest, Place, Program, Routine, Slot};
use crate::scan::quote;

/// A program as text.
pub fn print(program: &Program) -> String {
    let mut text = layout(program);
    for (name, routine) in NAMES.iter().zip(routines(program)) {
        let cut = routine.cut.map_or(String::new(), |c| format!(" cut {} {}", c.columns, c.stretches));
        text.push_str(&format!("routine {name}{cut}\n"));
        for nest in &routine.nests {
            print_nest(&mut text, nest, program);
        }
    }
    text
}

/// The names of the routines, in order.
pub const NAMES: [&str; 11] = [
    "forward.before",
    "forward.first",
    "forward.step",
    "forward.flush",
    "forward.after",
    "replay",
    "backward.before",
    "backward.first",
    "backward.step",
    "backward.flush",
    "backward.after",
];

/// The routines of a program, in the order of [`NAMES`].
pub fn routines(program: &Program) -> [&Routine; 11] {
    let (forward, backward) = (&program.forward, &program.backward);
    [
        &forward.before,
        &forward.first,
        &forward.step,
        &forward.flush,
        &forward.after,
        &program.replay,
        &backward.before,
        &backward.first,
        &backward.step,
        &backward.flush,
        &backward.after,
    ]
}

/// The same routines, to be changed.
pub(super) fn routines_mut(program: &mut Program) -> [&mut Routine; 11] {
    let (forward, backward) = (&mut program.forward, &mut program.backward);
    [
        &mut forward.before,
        &mut forward.first,
        &mut forward.step,
        &mut forward.flush,
        &mut forward.after,
        &mut program.replay,
        &mut backward.before,
        &mut backward.first,
        &mut backward.step,
        &mut backward.flush,
        &mut backward.after,
    ]
}

fn layout(p: &Program) -> String {
    let yes = |b: bool| if b { "yes" } else { "no" };
    let mut text = format!(
        "program\n  joined {} {}\n  carries_states {}\n",
        yes(p.merged.0),
        yes(p.merged.1),
        yes(p.carries_states)
    );
    let lengths = [
        ("scratch", p.scratch_len),
        ("matrices", p.matrices_len),
        ("carry", p.carry_len),
        ("params", p.params_len),
        ("grads", p.grads_len),
        ("frame", p.frame_len),
        ("adjoint", p.adjoint_len),
        ("penalty_bar", p.penalty_bar),
        ("widest", p.widest),
    ];
    lengths.iter().for_each(|(name, n)| text.push_str(&format!("  {name} {n}\n")));
    if !p.logs.is_empty() {
        text.push_str(&format!("  logs {}\n  log_bars {}\n", p.log_len, p.log_bar_len));
    }
    let offsets = [("inputs", &p.inputs), ("outputs", &p.outputs), ("output_bars", &p.output_bars)];
    let plain = |xs: &[usize]| xs.iter().map(|x| format!(" {x}")).collect::<String>();
    offsets.iter().for_each(|(name, xs)| text.push_str(&format!("  {name}{}\n", plain(xs))));
    text.push_str(&format!("  penalties{}\n", plain(&p.penalties)));
    for (name, xs) in [("states", &p.states), ("state_bars", &p.state_bars), ("input_bars", &p.input_bars)] {
        let words = xs.iter().map(|x| x.map_or(" -".to_owned(), |x| format!(" {x}")));
        text.push_str(&format!("  {name}{}\n", words.collect::<String>()));
    }
    slots(&mut text, p);
    text
}

fn slots(text: &mut String, p: &Program) {
    for (section, slots) in [("frame_slots", &p.frame), ("adjoint_slots", &p.adjoint)] {
        text.push_str(&format!("{section}\n"));
        for s in slots {
            text.push_str(&format!("  {} len {} {}\n", s.offset, s.len, quote(&s.name)));
        }
    }
    text.push_str("matrix_slots\n");
    for m in &p.matrices {
        text.push_str(&match m {
            Some(m) => format!("  {} [{},{}] {}\n", m.offset, m.post, m.pre, quote(&m.name)),
            None => "  -\n".to_owned(),
        });
    }
    if !p.logs.is_empty() {
        text.push_str("log_slots\n");
    }
    for l in &p.logs {
        let (at, row, len) = (l.offset, l.row, l.len);
        text.push_str(&format!(
            "  {at} bar {} [{},{len}] state {} row {row} bar {} {}\n",
            l.bar,
            l.events,
            l.state,
            l.row_bar,
            quote(&l.name)
        ));
    }
    let packed = |m: Option<(usize, usize)>| m.map_or(String::new(), |(j, i)| format!(" [{j},{i}]"));
    text.push_str("param_slots\n");
    for b in &p.params {
        text.push_str(&format!("  {} len {} %{}{}\n", b.offset, b.len, b.value.0, packed(b.matrix)));
    }
    text.push_str("grad_slots\n");
    for g in &p.grads {
        text.push_str(&format!("  {} len {} %{}{}\n", g.offset, g.len, g.value.0, packed(g.matrix)));
    }
    text.push_str("hoisted\n");
    for r in &p.rank1 {
        let (a, b) = (place_text(r.a), place_text(r.b));
        text.push_str(&format!("  %{} += {a} outer {b} [{},{}]\n", r.value.0, r.post, r.pre));
    }
}

fn print_nest(text: &mut String, nest: &Nest, program: &Program) {
    text.push_str(&format!("  nest {} {}\n", extent_text(nest.extent), quote(&nest.label)));
    for (k, op) in nest.body.ops.iter().enumerate() {
        let line = format!("%{k} = {}", op_text(op));
        let place = if let BodyOp::Load(access) = op { Some(access.place()) } else { None };
        push_line(text, &line, place, program);
    }
    for effect in &nest.effects {
        push_line(text, &effect_text(effect), Some(effect.place()), program);
    }
}

fn push_line(text: &mut String, line: &str, place: Option<Place>, program: &Program) {
    match place.and_then(|p| slot_name(p, program)) {
        Some(name) => text.push_str(&format!("    {line:<44} ; {name}\n")),
        None => text.push_str(&format!("    {line}\n")),
    }
}

/// What lies at a place, in the spec's words where they are known.
fn slot_name(place: Place, p: &Program) -> Option<String> {
    let at = place.offset;
    let of = |slots: &[Slot]| {
        let slot = slots.iter().find(|s| s.offset <= at && at < s.offset + s.len.max(1))?;
        Some(inside(&slot.name, at - slot.offset))
    };
    match place.base {
        Base::Frame(_) => of(&p.frame),
        Base::Adjoint(_) => of(&p.adjoint),
        Base::Params => {
            let found = p.params.iter().rev().find(|b| b.offset <= at)?;
            Some(inside(&format!("%{} of the step", found.value.0), at - found.offset))
        }
        Base::Grads => {
            let found = p.grads.iter().rev().find(|g| g.offset <= at)?;
            Some(inside(&format!("%{} of the step", found.value.0), at - found.offset))
        }
        Base::Snapshot(_) | Base::Ends => {
            Some(p.matrices.iter().flatten().rev().find(|m| m.offset <= at)?.name.clone())
        }
        Base::Log => Some(p.logs.iter().rev().find(|l| l.offset <= at)?.name.clone()),
        Base::LogBar => {
            let log = p.logs.iter().filter(|l| l.bar <= at).max_by_key(|l| l.bar)?;
            Some(format!("bar {}", log.name))
        }
        Base::Carry | Base::Next | Base::Scratch => None,
    }
}

fn inside(name: &str, at: usize) -> String {
    if at == 0 { name.to_owned() } else { format!("{name} from {at}") }
}

pub(super) fn extent_text(extent: Extent) -> String {
    match extent {
        Extent::Scalar => "scalar".to_owned(),
        Extent::Vector(n) => format!("vector [{n}]"),
        Extent::Matrix { post, pre } => format!("matrix [{post},{pre}]"),
        Extent::Log { post, pre } => format!("log [{post},{pre}]"),
    }
}

/// A place: `frame[-1]+24`.
pub(super) fn place_text(place: Place) -> String {
    format!("{}+{}", base_text(place.base), place.offset)
}

fn base_text(base: Base) -> String {
    match base {
        Base::Frame(k) => format!("frame[{k}]"),
        Base::Adjoint(k) => format!("adjoint[{k}]"),
        Base::Snapshot(k) => format!("snapshot[{k}]"),
        Base::Scratch => "scratch".to_owned(),
        Base::Params => "params".to_owned(),
        Base::Carry => "carry".to_owned(),
        Base::Ends => "ends".to_owned(),
        Base::Grads => "grads".to_owned(),
        Base::Log => "log".to_owned(),
        Base::LogBar => "log_bar".to_owned(),
        Base::Next => "next".to_owned(),
    }
}

fn access_text(access: Access) -> String {
    let kind = match access {
        Access::Matrix(_) => "matrix",
        Access::Post(_) => "post",
        Access::Pre(_) => "pre",
        Access::Scalar(_) => "scalar",
    };
    format!("{kind} {}", place_text(access.place()))
}

fn op_text(op: &BodyOp) -> String {
    let operands: Vec<String> = op.operands().iter().map(|o| format!("%{}", o.0)).collect();
    match op {
        BodyOp::Const(c) => format!("const {c:?}"),
        BodyOp::Load(access) => format!("load {}", access_text(*access)),
        op => format!("{} {}", word(op), operands.join(", ")),
    }
}

/// The word of an operation that has operands.
fn word(op: &BodyOp) -> &'static str {
    match op {
        BodyOp::Const(_) => "const",
        BodyOp::Load(_) => "load",
        BodyOp::Neg(_) => "neg",
        BodyOp::Abs(_) => "abs",
        BodyOp::Sqrt(_) => "sqrt",
        BodyOp::Round(_) => "round",
        BodyOp::PowerOfTwo(_) => "power_of_two",
        BodyOp::Exponent(_) => "exponent",
        BodyOp::Mantissa(_) => "mantissa",
        BodyOp::Add(..) => "add",
        BodyOp::Sub(..) => "sub",
        BodyOp::Mul(..) => "mul",
        BodyOp::Div(..) => "div",
        BodyOp::Min(..) => "min",
        BodyOp::Max(..) => "max",
        BodyOp::Fma(..) => "fma",
        BodyOp::FmaNeg(..) => "fma_neg",
        BodyOp::Less(..) => "less",
        BodyOp::LessEqual(..) => "less_equal",
        BodyOp::Equal(..) => "equal",
        BodyOp::And(..) => "and",
        BodyOp::Not(_) => "not",
        BodyOp::Select(..) => "select",
        BodyOp::Keep(..) => "keep",
        BodyOp::Number(_) => "number",
    }
}

fn effect_text(effect: &Effect) -> String {
    let product = |v: &Id, w: &Option<Id>| match w {
        Some(w) => format!("%{} * %{}", v.0, w.0),
        None => format!("%{}", v.0),
    };
    match effect {
        Effect::Store(access, v) => format!("store {} = %{}", access_text(*access), v.0),
        Effect::Add(access, v, w) => format!("add {} = {}", access_text(*access), product(v, w)),
        Effect::SumPre(p, v, w) => format!("sum_pre {} = {}", place_text(*p), product(v, w)),
        Effect::SumPost(p, v, w) => format!("sum_post {} = {}", place_text(*p), product(v, w)),
        Effect::SumAll(p, v, w) => format!("sum_all {} = {}", place_text(*p), product(v, w)),
        Effect::MaxAll(p, v) => format!("max_all {} = %{}", place_text(*p), v.0),
    }
}
