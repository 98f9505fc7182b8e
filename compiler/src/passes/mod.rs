//! Rewrites of the step function before it is differentiated for the fast back ends.
//!
//! The interpreter runs the step as the checker made it; every rewrite here is compared with it by
//! the tests, to rounding.

pub mod chain;
pub mod events;
mod spread;

use crate::model::Model;

/// The model in the form that the loops are made from.
pub fn optimise(model: &Model) -> Model {
    let mut model = model.clone();
    spread::spread(&mut model);
    debug_assert_eq!(crate::ir::verify(&model.step), Ok(()));
    model
}
