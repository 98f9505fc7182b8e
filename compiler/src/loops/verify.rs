//! The law of the loop IR.
//!
//! * An operand of a body is defined before it is used. Masks are made by comparisons, joined with
//!   `and` and `not`, and used by `select`, `keep` and `number`; everything else takes numbers.
//! * An operand varies only with axes that its nest has, and an effect reduces only axes that its
//!   nest has. What varies with the whole extent is stored and added point by point.
//! * Every place, with all that the nest touches from there on, lies inside its region; vectors are
//!   touched in whole registers. A routine touches only regions that exist for it: going forward
//!   there are no snapshots, adjoint frames or gradients.
//! * No nest reads what one of its sums writes: the sum is there when the nest has ended.
//! * A routine that is cut has no sums over whole matrices; a sum over post has room for the sums of all slabs.
//! * Slots lie inside their regions.

use super::body::{BodyOp, Id};
use super::{
    Access, Base, Cut, Effect, Extent, LANES, Nest, PARTIALS, Place, Program, Tiles, padded, routines,
};
use std::ops::Range;

/// Checks a program against the law.
///
/// # Errors
/// The first breach, with the routine and the nest.
pub fn verify(program: &Program) -> Result<(), String> {
    slots(program)?;
    for (k, routine) in routines(program).into_iter().enumerate() {
        for (n, nest) in routine.nests.iter().enumerate() {
            let at = |why: String| format!("{} nest {n} ({}): {why}", super::NAMES[k], nest.label);
            let direction = match k {
                0..=4 => Direction::Forward,
                5 => Direction::Replay,
                _ => Direction::Backward,
            };
            verify_nest(nest, program, direction, routine.cut).map_err(at)?;
        }
    }
    Ok(())
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Direction {
    Forward,
    Replay,
    Backward,
}

type Law = Result<(), String>;

fn verify_nest(nest: &Nest, program: &Program, direction: Direction, cut: Option<Cut>) -> Law {
    body(nest)?;
    for access in nest.body.loads() {
        let fits = match (access, nest.extent) {
            (Access::Scalar(_), _) | (_, Extent::Matrix { .. } | Extent::Log { .. }) => true,
            (Access::Post(_), Extent::Vector(_)) => true,
            (Access::Post(_) | Access::Pre(_) | Access::Matrix(_), Extent::Scalar | Extent::Vector(_)) => {
                false
            }
        };
        if !fits {
            return Err(format!("the load {access:?} varies with an axis that the nest does not have"));
        }
        inside(access.place(), touched(access, nest.extent), program, direction)?;
    }
    for effect in &nest.effects {
        verify_effect(effect, nest, program, (direction, cut))?;
    }
    sums_are_not_read(nest)?;
    let sums = nest.effects.iter().filter(|e| matches!(e, Effect::SumPost(..))).count();
    if let Extent::Log { post, .. } = nest.extent
        && (!post.is_multiple_of(LANES) || Tiles::of(post, program.widest).narrow > 0)
    {
        return Err(format!("a log of {post} events is not cut into equal tiles"));
    }
    if let Extent::Matrix { pre, .. } | Extent::Log { pre, .. } = nest.extent
        && PARTIALS.saturating_add(sums.saturating_mul(pre).saturating_mul(LANES)) > program.scratch_len
    {
        return Err("scratch has no room for its row sums".to_owned());
    }
    Ok(())
}

/// Operands before uses, masks apart from numbers.
fn body(nest: &Nest) -> Law {
    let ops = &nest.body.ops;
    let is_mask = |id: &Id| ops[id.index()].is_mask();
    for (k, op) in ops.iter().enumerate() {
        let operands = op.operands();
        if operands.iter().any(|o| o.index() >= k) {
            return Err(format!("%{k} uses a value that is not defined before: {op:?}"));
        }
        let masks: Vec<bool> = operands.iter().map(is_mask).collect();
        let expected: &[bool] = match op {
            BodyOp::And(..) => &[true, true],
            BodyOp::Not(_) | BodyOp::Number(_) => &[true],
            BodyOp::Keep(..) => &[true, false],
            BodyOp::Select(..) => &[true, false, false],
            _ => &[false; 3][..masks.len()],
        };
        if masks != expected {
            return Err(format!("%{k} takes a mask for a number, or a number for a mask: {op:?}"));
        }
    }
    for effect in &nest.effects {
        for v in effect.operands() {
            if v.index() >= ops.len() || is_mask(&v) {
                return Err(format!("the effect {effect:?} needs a number that exists"));
            }
        }
    }
    Ok(())
}

fn verify_effect(
    effect: &Effect,
    nest: &Nest,
    program: &Program,
    (direction, cut): (Direction, Option<Cut>),
) -> Law {
    let slabs = |post: usize| cut.map_or(1, |c| c.slabs(post));
    let (legal, len) = match (effect, nest.extent) {
        (Effect::Store(a, _) | Effect::Add(a, ..), extent) => {
            let legal = match extent {
                Extent::Scalar => matches!(a, Access::Scalar(_)),
                Extent::Vector(_) => matches!(a, Access::Post(_)),
                Extent::Matrix { .. } | Extent::Log { .. } => matches!(a, Access::Matrix(_)),
            };
            (legal, touched(*a, extent))
        }
        (Effect::SumPre(..), Extent::Matrix { post, .. } | Extent::Log { post, .. }) => (true, padded(post)),
        (Effect::SumPost(..), Extent::Matrix { post, pre } | Extent::Log { post, pre }) => {
            (true, (slabs(post) - 1).saturating_mul(padded(pre)).saturating_add(pre))
        }
        (Effect::SumPre(..) | Effect::SumPost(..), _) => (false, 0),
        (Effect::SumAll(..) | Effect::MaxAll(..), Extent::Matrix { .. } | Extent::Log { .. }) => {
            (cut.is_none(), 1)
        }
        (Effect::SumAll(..) | Effect::MaxAll(..), extent) => (extent != Extent::Scalar, 1),
    };
    if !legal {
        return Err(format!("the effect {effect:?} is not possible in this extent"));
    }
    if effect.place().base == Base::Params {
        return Err(format!("the effect {effect:?} writes to parameters"));
    }
    inside(effect.place(), len, program, direction)
}

/// Elements from an operand's place on that a nest touches.
fn touched(access: Access, extent: Extent) -> usize {
    match (access, extent) {
        (Access::Scalar(_), _) | (_, Extent::Scalar) => 1,
        (_, Extent::Vector(n)) => padded(n),
        (Access::Post(_), Extent::Matrix { post, .. } | Extent::Log { post, .. }) => padded(post),
        (Access::Pre(_), Extent::Matrix { pre, .. } | Extent::Log { pre, .. }) => pre,
        (Access::Matrix(_), Extent::Matrix { post, pre } | Extent::Log { post, pre }) => {
            padded(post).saturating_mul(pre)
        }
    }
}

fn inside(place: Place, len: usize, program: &Program, direction: Direction) -> Law {
    if !Base::ALL.contains(&place.base) {
        return Err(format!("no routine gets a pointer to {:?}", place.base));
    }
    let backward = direction == Direction::Backward;
    let room = match place.base {
        Base::Frame(_) => Some(program.frame_len),
        Base::Scratch => Some(program.scratch_len),
        Base::Params => Some(program.params_len),
        Base::Adjoint(_) => backward.then_some(program.adjoint_len),
        Base::Carry if backward => Some(program.carry_len),
        Base::Carry | Base::Next => (direction == Direction::Forward).then_some(program.matrices_len),
        Base::Ends => backward.then_some(program.matrices_len),
        Base::Snapshot(_) => (direction != Direction::Forward).then_some(program.matrices_len),
        Base::Grads => backward.then_some(program.grads_len),
        Base::Log => (direction != Direction::Replay).then_some(program.log_len),
        Base::LogBar => backward.then_some(program.log_bar_len),
    };
    match room {
        None => Err(format!("this routine has no {:?}", place.base)),
        Some(room) if place.offset.saturating_add(len) > room => {
            Err(format!("{len} elements from {} leave {:?}, which has {room}", place.offset, place.base))
        }
        Some(_) => Ok(()),
    }
}

fn sums_are_not_read(nest: &Nest) -> Law {
    for effect in &nest.effects {
        let len = match (effect, nest.extent) {
            (Effect::Store(..) | Effect::Add(..), _) => continue,
            (Effect::SumPre(..), Extent::Matrix { post, .. } | Extent::Log { post, .. }) => post,
            (Effect::SumPost(..), Extent::Matrix { pre, .. } | Extent::Log { pre, .. }) => pre,
            _ => 1,
        };
        let place = effect.place();
        let written = place.offset..place.offset + len;
        let reads = |a: Access| {
            let from = a.place();
            from.base == place.base && overlap(&written, &(from.offset..from.offset + exact(a, nest.extent)))
        };
        if nest.body.loads().any(reads) {
            return Err(format!("the sum {effect:?} is read in the nest that computes it"));
        }
    }
    Ok(())
}

/// Elements that an operand has, without what fills up registers.
fn exact(access: Access, extent: Extent) -> usize {
    match (access, extent) {
        (Access::Scalar(_), _) | (_, Extent::Scalar) => 1,
        (_, Extent::Vector(n)) => n,
        (Access::Post(_), Extent::Matrix { post, .. } | Extent::Log { post, .. }) => post,
        (Access::Pre(_), Extent::Matrix { pre, .. } | Extent::Log { pre, .. }) => pre,
        (Access::Matrix(_), Extent::Matrix { post, pre } | Extent::Log { post, pre }) => {
            padded(post).saturating_mul(pre)
        }
    }
}

fn overlap(a: &Range<usize>, b: &Range<usize>) -> bool {
    a.start < b.end && b.start < a.end
}

fn slots(p: &Program) -> Law {
    let fits = |what: &str, offset: usize, len: usize, room: usize| match offset.saturating_add(len) <= room {
        true => Ok(()),
        false => Err(format!("{what} at {offset}, {len} elements, leaves its region of {room}")),
    };
    p.frame.iter().try_for_each(|s| fits(&s.name, s.offset, s.len, p.frame_len))?;
    p.adjoint.iter().try_for_each(|s| fits(&s.name, s.offset, s.len, p.adjoint_len))?;
    for m in p.matrices.iter().flatten() {
        fits(&m.name, m.offset, packed(m.post, m.pre), p.matrices_len)?;
    }
    for l in &p.logs {
        fits(&l.name, l.offset, packed(l.events, l.len), p.log_len)?;
        fits(&l.name, l.bar, packed(l.events, l.len), p.log_bar_len)?;
        fits(&l.name, l.row, l.len, p.frame_len)?;
        fits(&l.name, l.row_bar, l.len, p.adjoint_len)?;
    }
    let room = |matrix: Option<(usize, usize)>, len: usize| matrix.map_or(len, |(j, i)| packed(j, i));
    for b in &p.params {
        fits(&format!("%{}", b.value.0), b.offset, room(b.matrix, b.len), p.params_len)?;
    }
    for g in &p.grads {
        fits(&format!("%{}", g.value.0), g.offset, room(g.matrix, g.len), p.grads_len)?;
    }
    for r in &p.rank1 {
        inside(r.a, r.post, p, Direction::Backward)?;
        inside(r.b, r.pre, p, Direction::Backward)?;
    }
    let frame = p.inputs.iter().chain(&p.outputs).chain(&p.output_bars).chain(&p.penalties);
    frame.chain(p.states.iter().flatten()).try_for_each(|o| fits("an offset", *o, 1, p.frame_len))?;
    let bars = p.state_bars.iter().chain(&p.input_bars).flatten();
    bars.clone().try_for_each(|o| fits("an offset", *o, 1, p.adjoint_len))?;
    fits("the penalty's cotangent", p.penalty_bar, 1, p.scratch_len.min(PARTIALS))
}

fn packed(post: usize, pre: usize) -> usize {
    if post.max(pre) > 1 << 30 { usize::MAX } else { Tiles::packed_len(post, pre) }
}
