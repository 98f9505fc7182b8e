//! Reads the printed loop IR back: the inverse of [`super::print()`].

use super::body::{Body, BodyOp, Id};
use super::{
    Access, Base, Bound, Cut, Effect, Extent, GradSlot, LogSlot, MatrixSlot, Nest, Place, Program, Rank1,
    Routine,
};
use super::{LANES, NAMES, Slot, Steps};
use crate::ir::Value;
use crate::scan::{Line, ParseError, Read, lines};

/// Reads a program.
///
/// # Errors
/// [`ParseError`] with the line that cannot be read, or the breach of the law ([`super::verify()`]).
pub fn parse(text: &str) -> Result<Program, ParseError> {
    let mut reader = Reader { program: blank(), routines: vec![], section: String::new() };
    for line in lines(text) {
        // What stands behind `;` is a remark, but not inside of quotes.
        let line = line.without_remark();
        if line.is_heading() { reader.heading(line)? } else { reader.content(line)? }
    }
    let program = reader.finish()?;
    super::verify(&program).map_err(|message| ParseError { line: 0, message })?;
    Ok(program)
}

fn blank() -> Program {
    Program {
        forward: Steps::default(),
        replay: Routine::default(),
        backward: Steps::default(),
        frame: vec![],
        frame_len: 0,
        adjoint: vec![],
        adjoint_len: 0,
        scratch_len: 0,
        penalty_bar: 0,
        widest: 1,
        rows: 1,
        matrices: vec![],
        matrices_len: 0,
        logs: vec![],
        log_len: 0,
        log_bar_len: 0,
        carry_len: 0,
        params: vec![],
        params_len: 0,
        grads: vec![],
        grads_len: 0,
        rank1: vec![],
        inputs: vec![],
        outputs: vec![],
        output_bars: vec![],
        states: vec![],
        state_bars: vec![],
        input_bars: vec![],
        penalties: vec![],
        merged: (false, false),
        carries_states: false,
    }
}

struct Reader {
    program: Program,
    routines: Vec<Routine>,
    section: String,
}

impl Reader {
    fn heading(&mut self, mut line: Line<'_>) -> Read<()> {
        let word = line.word()?;
        if word == "routine" {
            let name = line.word()?;
            let expected = NAMES.get(self.routines.len()).copied().unwrap_or("the end");
            if name != expected {
                return Err(line.error(format!("expected the routine {expected}, found {name}")));
            }
            let cut = match line.take("cut ") {
                true => Some(cut(&mut line)?),
                false => None,
            };
            self.routines.push(Routine { cut, ..Routine::default() });
        }
        let known = ["program", "frame_slots", "adjoint_slots", "matrix_slots", "param_slots", "grad_slots"];
        if !known.contains(&word) && !["hoisted", "routine", "log_slots"].contains(&word) {
            return Err(line.error(format!("there is no section `{word}`")));
        }
        word.clone_into(&mut self.section);
        line.end()
    }

    fn content(&mut self, mut line: Line<'_>) -> Read<()> {
        match self.section.as_str() {
            "program" => self.field(&mut line)?,
            "frame_slots" => self.program.frame.push(slot(&mut line)?),
            "adjoint_slots" => self.program.adjoint.push(slot(&mut line)?),
            "log_slots" => self.program.logs.push(log_slot(&mut line)?),
            "matrix_slots" => self.program.matrices.push(matrix_slot(&mut line)?),
            "param_slots" => {
                let (offset, len, value, matrix) = bound(&mut line)?;
                self.program.params.push(Bound { value, offset, matrix, len });
            }
            "grad_slots" => {
                let (offset, len, value, matrix) = bound(&mut line)?;
                self.program.grads.push(GradSlot { value, offset, matrix, len });
            }
            "hoisted" => self.program.rank1.push(hoisted(&mut line)?),
            "routine" => self.nest_line(&mut line)?,
            _ => return Err(line.error("this line belongs to no section")),
        }
        line.end()
    }

    fn field(&mut self, line: &mut Line<'_>) -> Read<()> {
        let p = &mut self.program;
        match line.word()? {
            "joined" => p.merged = (flag(line)?, flag(line)?),
            "carries_states" => p.carries_states = flag(line)?,
            "scratch" => p.scratch_len = line.count()?,
            "matrices" => p.matrices_len = line.count()?,
            "logs" => p.log_len = line.count()?,
            "log_bars" => p.log_bar_len = line.count()?,
            "carry" => p.carry_len = line.count()?,
            "params" => p.params_len = line.count()?,
            "grads" => p.grads_len = line.count()?,
            "frame" => p.frame_len = line.count()?,
            "adjoint" => p.adjoint_len = line.count()?,
            "penalty_bar" => p.penalty_bar = line.count()?,
            "widest" => p.widest = line.count()?,
            "inputs" => p.inputs = counts(line)?,
            "outputs" => p.outputs = counts(line)?,
            "output_bars" => p.output_bars = counts(line)?,
            "penalties" => p.penalties = counts(line)?,
            "states" => p.states = perhaps(line)?,
            "state_bars" => p.state_bars = perhaps(line)?,
            "input_bars" => p.input_bars = perhaps(line)?,
            other => return Err(line.error(format!("a program has no `{other}`"))),
        }
        Ok(())
    }

    fn nest_line(&mut self, line: &mut Line<'_>) -> Read<()> {
        let Some(routine) = self.routines.last_mut() else {
            return Err(line.error("a nest belongs into a routine"));
        };
        if line.take("nest ") {
            let extent = extent(line)?;
            let label = line.quoted()?;
            routine.nests.push(Nest { extent, body: Body::default(), effects: vec![], label });
            return Ok(());
        }
        let Some(nest) = routine.nests.last_mut() else {
            return Err(line.error("expected `nest`"));
        };
        if !line.rest().starts_with('%') {
            nest.effects.push(effect(line)?);
            return Ok(());
        }
        let number = line.value()?;
        line.expect("=")?;
        let op = op(line)?;
        let id = nest.body.push(op);
        if id.0 != number {
            let why = format!("this is %{} of the nest, not %{number}; equal operations are shared", id.0);
            return Err(line.error(why));
        }
        Ok(())
    }

    fn finish(self) -> Read<Program> {
        let found = self.routines.len();
        let routines: [Routine; NAMES.len()] = self.routines.try_into().map_err(|_| ParseError {
            line: 0,
            message: format!("a program has {} routines, found {found}", NAMES.len()),
        })?;
        let mut routines = routines.into_iter();
        let mut next = || routines.next().unwrap_or_default();
        let forward = Steps { before: next(), first: next(), step: next(), flush: next(), after: next() };
        let replay = next();
        let backward = Steps { before: next(), first: next(), step: next(), flush: next(), after: next() };
        Ok(Program { forward, replay, backward, ..self.program })
    }
}

fn flag(line: &mut Line<'_>) -> Read<bool> {
    match line.word()? {
        "yes" => Ok(true),
        "no" => Ok(false),
        other => Err(line.error(format!("expected yes or no, found `{other}`"))),
    }
}

fn counts(line: &mut Line<'_>) -> Read<Vec<usize>> {
    let mut found = vec![];
    while !line.rest().is_empty() {
        found.push(line.count()?);
    }
    Ok(found)
}

fn perhaps(line: &mut Line<'_>) -> Read<Vec<Option<usize>>> {
    let mut found = vec![];
    while !line.rest().is_empty() {
        found.push(if line.take("-") { None } else { Some(line.count()?) });
    }
    Ok(found)
}

/// `8 len 5 "y'"`
fn slot(line: &mut Line<'_>) -> Read<Slot> {
    let offset = line.count()?;
    line.expect("len ")?;
    Ok(Slot { offset, len: line.count()?, name: line.quoted()? })
}

/// `0 [5,5] "H"`, or `-`
fn matrix_slot(line: &mut Line<'_>) -> Read<Option<MatrixSlot>> {
    if line.take("-") {
        return Ok(None);
    }
    let offset = line.count()?;
    let (post, pre) = pair(line)?;
    Ok(Some(MatrixSlot { offset, post, pre, name: line.quoted()? }))
}

/// `0 bar 640 [32,5] state 3 row 24 bar 8 "events.log0"`
fn log_slot(line: &mut Line<'_>) -> Read<LogSlot> {
    let offset = line.count()?;
    line.expect("bar ")?;
    let bar = line.count()?;
    let (events, len) = pair(line)?;
    line.expect("state ")?;
    let state = line.count()?;
    line.expect("row ")?;
    let row = line.count()?;
    line.expect("bar ")?;
    let row_bar = line.count()?;
    Ok(LogSlot { name: line.quoted()?, state, offset, bar, events, len, row, row_bar })
}

/// `[5,5]`
fn pair(line: &mut Line<'_>) -> Read<(usize, usize)> {
    line.expect("[")?;
    let post = line.count()?;
    line.expect(",")?;
    let pre = line.count()?;
    line.expect("]")?;
    Ok((post, pre))
}

/// Offset, length, value and packing.
type Unbatched = (usize, usize, Value, Option<(usize, usize)>);

/// `8 len 25 %3 [5,5]`
fn bound(line: &mut Line<'_>) -> Read<Unbatched> {
    let offset = line.count()?;
    line.expect("len ")?;
    let len = line.count()?;
    let value = Value(line.value()?);
    let matrix = if line.rest().is_empty() { None } else { Some(pair(line)?) };
    Ok((offset, len, value, matrix))
}

/// `%3 += adjoint[0]+8 outer frame[-1]+16 [5,5]`
fn cut(line: &mut Line<'_>) -> Read<Cut> {
    let (columns, stretches) = (line.count()?, line.count()?);
    let is_legal = columns.is_power_of_two() && columns >= LANES && stretches > 0;
    if is_legal { Ok(Cut { columns, stretches }) } else { Err(line.error("there are no such slabs")) }
}

fn hoisted(line: &mut Line<'_>) -> Read<Rank1> {
    let value = Value(line.value()?);
    line.expect("+=")?;
    let a = place(line)?;
    line.expect("outer ")?;
    let b = place(line)?;
    let (post, pre) = pair(line)?;
    Ok(Rank1 { value, a, b, post, pre })
}

fn extent(line: &mut Line<'_>) -> Read<Extent> {
    match line.word()? {
        "scalar" => Ok(Extent::Scalar),
        "vector" => {
            line.expect("[")?;
            let n = line.count()?;
            line.expect("]")?;
            Ok(Extent::Vector(n))
        }
        "matrix" => pair(line).map(|(post, pre)| Extent::Matrix { post, pre }),
        "log" => pair(line).map(|(post, pre)| Extent::Log { post, pre }),
        other => Err(line.error(format!("there is no extent `{other}`"))),
    }
}

/// `frame[-1]+24`
fn place(line: &mut Line<'_>) -> Read<Place> {
    let word = line.word()?;
    let shifted = |line: &mut Line<'_>| -> Read<i8> {
        line.expect("[")?;
        let minus = line.take("-");
        let k = line.count()?.min(100) as i8;
        line.expect("]")?;
        Ok(if minus { -k } else { k })
    };
    let base = match word {
        "frame" => Base::Frame(shifted(line)?),
        "adjoint" => Base::Adjoint(shifted(line)?),
        "snapshot" => Base::Snapshot(shifted(line)?),
        "scratch" => Base::Scratch,
        "params" => Base::Params,
        "carry" => Base::Carry,
        "ends" => Base::Ends,
        "grads" => Base::Grads,
        "log" => Base::Log,
        "log_bar" => Base::LogBar,
        "next" => Base::Next,
        other => return Err(line.error(format!("there is no region `{other}`"))),
    };
    if !Base::ALL.contains(&base) {
        return Err(line.error("no routine gets a pointer to this step"));
    }
    line.expect("+")?;
    Ok(Place { base, offset: line.count()? })
}

fn access(line: &mut Line<'_>) -> Read<Access> {
    match line.word()? {
        "matrix" => place(line).map(Access::Matrix),
        "post" => place(line).map(Access::Post),
        "pre" => place(line).map(Access::Pre),
        "scalar" => place(line).map(Access::Scalar),
        other => {
            Err(line.error(format!("an operand varies like matrix, post, pre or scalar, not `{other}`")))
        }
    }
}

fn op(line: &mut Line<'_>) -> Read<BodyOp> {
    let word = line.word()?;
    match word {
        "const" => return Ok(BodyOp::Const(line.float()?)),
        "load" => return access(line).map(BodyOp::Load),
        _ => {}
    }
    let operands: Vec<Id> = line.values()?.into_iter().map(Id).collect();
    Ok(match (word, operands.as_slice()) {
        ("neg", &[a]) => BodyOp::Neg(a),
        ("abs", &[a]) => BodyOp::Abs(a),
        ("sqrt", &[a]) => BodyOp::Sqrt(a),
        ("round", &[a]) => BodyOp::Round(a),
        ("power_of_two", &[a]) => BodyOp::PowerOfTwo(a),
        ("exponent", &[a]) => BodyOp::Exponent(a),
        ("mantissa", &[a]) => BodyOp::Mantissa(a),
        ("not", &[a]) => BodyOp::Not(a),
        ("number", &[a]) => BodyOp::Number(a),
        ("add", &[a, b]) => BodyOp::Add(a, b),
        ("sub", &[a, b]) => BodyOp::Sub(a, b),
        ("mul", &[a, b]) => BodyOp::Mul(a, b),
        ("div", &[a, b]) => BodyOp::Div(a, b),
        ("min", &[a, b]) => BodyOp::Min(a, b),
        ("max", &[a, b]) => BodyOp::Max(a, b),
        ("less", &[a, b]) => BodyOp::Less(a, b),
        ("less_equal", &[a, b]) => BodyOp::LessEqual(a, b),
        ("equal", &[a, b]) => BodyOp::Equal(a, b),
        ("and", &[a, b]) => BodyOp::And(a, b),
        ("keep", &[a, b]) => BodyOp::Keep(a, b),
        ("fma", &[a, b, c]) => BodyOp::Fma(a, b, c),
        ("fma_neg", &[a, b, c]) => BodyOp::FmaNeg(a, b, c),
        ("select", &[a, b, c]) => BodyOp::Select(a, b, c),
        _ => return Err(line.error(format!("there is no operation `{word}` of {} operands", operands.len()))),
    })
}

fn effect(line: &mut Line<'_>) -> Read<Effect> {
    let word = line.word()?;
    Ok(match word {
        "store" => {
            let to = access(line)?;
            line.expect("=")?;
            Effect::Store(to, Id(line.value()?))
        }
        "add" => {
            let to = access(line)?;
            let (v, w) = product(line)?;
            Effect::Add(to, v, w)
        }
        "max_all" => {
            let to = place(line)?;
            line.expect("=")?;
            Effect::MaxAll(to, Id(line.value()?))
        }
        "sum_pre" | "sum_post" | "sum_all" => {
            let to = place(line)?;
            let (v, w) = product(line)?;
            match word {
                "sum_pre" => Effect::SumPre(to, v, w),
                "sum_post" => Effect::SumPost(to, v, w),
                _ => Effect::SumAll(to, v, w),
            }
        }
        other => return Err(line.error(format!("a nest has no effect `{other}`"))),
    })
}

/// `= %1`, `= %1 * %2`
fn product(line: &mut Line<'_>) -> Read<(Id, Option<Id>)> {
    line.expect("=")?;
    let v = Id(line.value()?);
    let w = if line.take("*") { Some(Id(line.value()?)) } else { None };
    Ok((v, w))
}
