//! What is said when a number is not finite: which, after which step, and where it is declared.

use super::pass::stage;
use super::{RowError, Trainer};
use crate::engine::Mode;
use crate::error::Error;
use crate::rng::{Address, Domain};
use crate::rollout::{NonFinite, Place};

impl Trainer {
    /// The first step of a row in which a state or an output is not finite.
    fn locate(&self, row: usize) -> Option<NonFinite> {
        let bound = self.engine.bind(&self.params.values_of(self.engine.model().params.len())).ok()?;
        let stage = stage(&self.engine, &self.wiring, &self.recipe, &bound, &self.params);
        let mut tape = self.engine.tape(stage.task.steps(), Mode::Infer);
        let seed = self.recipe.schedule.seed;
        let address = Address { seed, domain: Domain::Train, episode: self.update as u32, row: row as u32 };
        stage.locate(&mut tape, address, self.carried.get(row))
    }

    /// What is said of a row in which something was not finite.
    pub(super) fn bad_row(&self, (row, at): RowError) -> Error {
        self.bad_number(row, self.locate(row).unwrap_or(at))
    }

    pub(super) fn bad_number(&self, row: usize, found: NonFinite) -> Error {
        let model = self.engine.model();
        let (what, span) = match found.at {
            Place::Output(id) => {
                (format!("output `{}`", model.outputs[id.index()].name), model.outputs[id.index()].span)
            }
            Place::State(id) => {
                (format!("state `{}`", model.states[id.index()].name), model.states[id.index()].span)
            }
        };
        Error::diverged(format!(
            "training diverged in update {}: {what} is not finite after step {} of row {row}",
            self.update + 1,
            found.step
        ))
        .help(format!("it is declared in {}", self.spec.line(span)))
        .help("bound plastic states with `clip` or decay; lower `optimiser.rate`; set `optimiser.clip`")
    }

    pub(super) fn bad_gradient(&self, gradients: &[Vec<f32>]) -> Error {
        // A state may be infinite and every output finite; the gradient is not, then.
        let mut rows = 0..if self.language.is_some() { 0 } else { self.recipe.schedule.batch };
        if let Some((row, found)) = rows.find_map(|row| self.locate(row).map(|found| (row, found))) {
            return self.bad_number(row, found);
        }
        let broken = gradients.iter().position(|g| g.iter().any(|x| !x.is_finite()));
        let number = self.update + 1;
        let Some(broken) = broken else {
            return Error::diverged(format!(
                "training diverged in update {number}: the gradient is too large"
            ));
        };
        let name = &self.params.about[broken].name;
        let error = Error::diverged(format!(
            "training diverged in update {number}: the gradient of parameter `{name}` is not finite"
        ));
        match self.engine.model().params.get(broken) {
            Some(param) => error.help(format!("it is declared in {}", self.spec.line(param.span))),
            // One of an encoder or an embedding.
            None => error.help("lower `optimiser.rate`; set `optimiser.clip`"),
        }
    }
}
