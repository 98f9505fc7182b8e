//! Matrix states that a step writes to another place than it reads them from.
//!
//! On a processor a step forward changes the matrix states where they lie ([`Base::Carry`]): they stay in a cache.
//! On a device they go through memory in any case, and whoever wants to keep those of every step need not copy them if
//! the step itself writes them to where they are to stay. [`onward`] says so in the loop IR:
//!
//! ```text
//! nest matrix [5,5] "write H"                  nest matrix [5,5] "write H"
//!   %0 = load matrix carry+0             →       %0 = load matrix carry+0
//!   …                                            …
//!   store matrix carry+0 = %7                    store matrix next+0 = %7
//! nest matrix [5,3] "sum %25"                  nest matrix [5,3] "sum %25"
//!   %1 = load matrix carry+0             →       %1 = load matrix next+0
//! ```
//!
//! [`Base::Carry`] is then what a routine finds, and [`Base::Next`] what it leaves. Both may be the same memory: a nest
//! touches an element in both, and no other nest reads from `Carry` what an earlier one has written. Nothing is computed
//! otherwise, so that all bits stay. Costs time in proportion to the program's length.

use super::body::BodyOp;
use super::{Access, Base, Effect, Extent, Nest, Place, Program, Routine};

/// The program whose steps going forward write the matrix states that they leave to [`Base::Next`].
#[must_use]
pub fn onward(program: &Program) -> Program {
    let mut program = program.clone();
    let steps = &mut program.forward;
    for routine in [&mut steps.first, &mut steps.step, &mut steps.flush] {
        move_on(routine);
    }
    program
}

fn move_on(routine: &mut Routine) {
    let mut written: Vec<Place> = vec![];
    for nest in &mut routine.nests {
        // Within a nest a state is read before it is written.
        for op in &mut nest.body.ops {
            if let BodyOp::Load(Access::Matrix(place)) = op
                && written.contains(place)
            {
                place.base = Base::Next;
            }
        }
        let mut now = vec![];
        for effect in &mut nest.effects {
            if let Effect::Store(Access::Matrix(place), _) = effect
                && place.base == Base::Carry
            {
                now.push(*place);
                place.base = Base::Next;
            }
        }
        written.extend(now);
    }
}

/// Whether every routine that leaves matrix states leaves all of them, whole, and takes none of them in part: then
/// those of every step can be kept.
pub fn leaves_all(program: &Program) -> bool {
    let steps = &program.forward;
    let all = || program.matrices.iter().flatten();
    let leaves = |routine: &Routine| {
        let written: Vec<(Place, Extent)> = routine.nests.iter().flat_map(stores).collect();
        written.iter().all(|(place, _)| all().any(|m| m.offset == place.offset))
            && all().all(|m| {
                let whole = Extent::Matrix { post: m.post, pre: m.pre };
                written.contains(&(Place { base: Base::Next, offset: m.offset }, whole))
            })
    };
    let rests = |routine: &Routine| routine.nests.iter().flat_map(stores).next().is_none();
    match program.merged.0 {
        true => rests(&steps.first) && leaves(&steps.step) && leaves(&steps.flush),
        false => leaves(&steps.first),
    }
}

/// The matrix states that a nest leaves.
fn stores(nest: &Nest) -> impl Iterator<Item = (Place, Extent)> {
    nest.effects.iter().filter(|e| e.place().base == Base::Next).map(|e| (e.place(), nest.extent))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::loops::{by_columns, routines};

    fn program(text: &str, n: usize) -> Program {
        let model = crate::check::check(text).models.into_iter().next().expect("a model");
        let sizes = model.axes.named.iter().map(|a| (a.name.clone(), n)).collect();
        let sizes = crate::ir::Sizes::bind(&model.axes, &sizes).expect("sizes");
        by_columns(&crate::stages::program(&model, &sizes).expect("a program"))
    }

    fn touches(routine: &Routine, base: Base) -> [usize; 2] {
        let loads = routine.nests.iter().flat_map(|n| n.body.loads()).filter(|a| a.place().base == base);
        let effects = routine.nests.iter().flat_map(|n| &n.effects).filter(|e| e.place().base == base);
        [loads.count(), effects.count()]
    }

    #[test]
    fn a_joined_step_leaves_its_states_elsewhere() {
        let before = program(include_str!("../../../specs/backpropamine/retroactive.bpm"), 9);
        let after = onward(&before);
        assert!(before.merged.0 && !leaves_all(&before) && leaves_all(&after));
        assert_eq!(touches(&before.forward.step, Base::Carry), [2, 2]);
        assert_eq!(touches(&after.forward.step, Base::Carry), [2, 0]);
        assert_eq!(touches(&after.forward.step, Base::Next), [0, 2]);
        assert_eq!(touches(&after.forward.first, Base::Next), [0, 0]);
        let both = routines(&before).into_iter().zip(routines(&after)).enumerate();
        for (k, (old, new)) in both {
            assert_eq!(old != new, k == 2 || k == 3, "routine {k}");
        }
    }

    /// Where several sweeps need each other's sums, the later ones read what the first has written.
    #[test]
    fn what_has_been_written_is_read_where_it_lies() {
        let after = onward(&program(include_str!("../../../specs/zoo/srwm.bpm"), 6));
        assert!(leaves_all(&after) && touches(&after.forward.step, Base::Next)[0] > 0);
        let after = onward(&program(include_str!("../../../specs/zoo/metods.bpm"), 6));
        assert!(!after.merged.0 && leaves_all(&after) && touches(&after.forward.first, Base::Next)[1] > 0);
    }
}
