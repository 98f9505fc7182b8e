//! An expression as text, with no more parentheses than needed.

use crate::ast::{BinaryOp, Expr, ExprKind, Index};

/// How tightly a form of expression binds, from loose to tight.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Tightness {
    Comparison,
    Sum,
    Product,
    Contraction,
    Sign,
    Power,
    Postfix,
}

/// Deepest tree that is printed in full.
const MAX_DEPTH: usize = 300;

/// The canonical text of an expression. An operand that could not be parsed appears as `…`.
pub fn expr_text(expr: &Expr) -> String {
    let mut text = String::new();
    write(&mut text, expr, 0);
    text
}

fn write(text: &mut String, expr: &Expr, depth: usize) {
    if depth > MAX_DEPTH {
        text.push('…');
        return;
    }
    match &expr.kind {
        ExprKind::Number(value) => text.push_str(&number(*value)),
        ExprKind::Name { name, primed } => {
            text.push_str(name);
            text.push_str(if *primed { "'" } else { "" });
        }
        ExprKind::Index { base, index, .. } => {
            write_at(text, base, Tightness::Postfix, depth);
            text.push_str(&index_text(index));
        }
        ExprKind::Transpose(base) => {
            write_at(text, base, Tightness::Postfix, depth);
            text.push_str("^T");
        }
        ExprKind::Negate(inner) => {
            text.push('-');
            write_at(text, inner, Tightness::Sign, depth);
        }
        ExprKind::Binary { op, left, right, .. } => write_binary(text, *op, left, right, depth),
        ExprKind::Call { function, arguments } => {
            text.push_str(&function.name);
            text.push('(');
            for (at, argument) in arguments.iter().enumerate() {
                text.push_str(if at > 0 { ", " } else { "" });
                write(text, argument, depth + 1);
            }
            text.push(')');
        }
        ExprKind::Error => text.push('…'),
    }
}

fn write_binary(text: &mut String, op: BinaryOp, left: &Expr, right: &Expr, depth: usize) {
    let own = binary_tightness(op);
    let (left_at, right_at) = match own {
        Tightness::Comparison => (Tightness::Sum, Tightness::Sum),
        Tightness::Sum => (own, Tightness::Product),
        Tightness::Product => (own, Tightness::Contraction),
        Tightness::Contraction => (own, Tightness::Sign),
        Tightness::Sign | Tightness::Power | Tightness::Postfix => (Tightness::Postfix, Tightness::Postfix),
    };
    write_at(text, left, left_at, depth);
    if op == BinaryOp::Pow {
        text.push('^');
    } else {
        text.push_str(&format!(" {} ", sign(op)));
    }
    match &right.kind {
        ExprKind::Negate(inner) if op == BinaryOp::Pow => {
            text.push('-');
            write_at(text, inner, Tightness::Postfix, depth);
        }
        // A bare `T` after `^` would read as the transpose.
        ExprKind::Name { name, primed: false } if op == BinaryOp::Pow && name == "T" => text.push_str("(T)"),
        _ => write_at(text, right, right_at, depth),
    }
}

/// Writes an operand, in parentheses if it binds more loosely than its place needs.
fn write_at(text: &mut String, expr: &Expr, place: Tightness, depth: usize) {
    if tightness(expr) < place {
        text.push('(');
        write(text, expr, depth + 1);
        text.push(')');
    } else {
        write(text, expr, depth + 1);
    }
}

fn tightness(expr: &Expr) -> Tightness {
    match &expr.kind {
        ExprKind::Binary { op, .. } => binary_tightness(*op),
        ExprKind::Negate(_) => Tightness::Sign,
        ExprKind::Number(value) if value.is_sign_negative() => Tightness::Sign,
        ExprKind::Number(_)
        | ExprKind::Name { .. }
        | ExprKind::Index { .. }
        | ExprKind::Transpose(_)
        | ExprKind::Call { .. }
        | ExprKind::Error => Tightness::Postfix,
    }
}

fn binary_tightness(op: BinaryOp) -> Tightness {
    match op {
        BinaryOp::Add | BinaryOp::Sub => Tightness::Sum,
        BinaryOp::Mul | BinaryOp::Div => Tightness::Product,
        BinaryOp::Contract | BinaryOp::Dot => Tightness::Contraction,
        BinaryOp::Pow => Tightness::Power,
        BinaryOp::Less
        | BinaryOp::LessEqual
        | BinaryOp::Greater
        | BinaryOp::GreaterEqual
        | BinaryOp::Equal => Tightness::Comparison,
    }
}

fn sign(op: BinaryOp) -> &'static str {
    match op {
        BinaryOp::Add => "+",
        BinaryOp::Sub => "-",
        BinaryOp::Mul => "*",
        BinaryOp::Div => "/",
        BinaryOp::Pow => "^",
        BinaryOp::Contract => "@",
        BinaryOp::Dot => ".",
        BinaryOp::Less => "<",
        BinaryOp::LessEqual => "<=",
        BinaryOp::Greater => ">",
        BinaryOp::GreaterEqual => ">=",
        BinaryOp::Equal => "==",
    }
}

fn index_text(index: &Index) -> String {
    match index {
        Index::Post => "[j]".to_owned(),
        Index::Pre => "[i]".to_owned(),
        Index::Both => "[j,i]".to_owned(),
        Index::Element(at) => format!("[{at}]"),
        Index::Other(text) => format!("[{text}]"),
    }
}

/// A number as a person writes it; reading it back gives the same value.
fn number(value: f64) -> String {
    let size = value.abs();
    if size != 0.0 && !(1e-4..1e9).contains(&size) { format!("{value:e}") } else { format!("{value}") }
}
