//! Updates of language models: windows of a text, epochs, and what is read between them.

use super::{RowOutcome, Rows, Trainer};
use crate::error::Error;
use crate::language;
use crate::learner::Learner;
use crate::params::ParamStore;
use crate::timings::{self, Phase};

impl Trainer {
    /// The epoch of the next update, counted from one; 1 in tasks without epochs.
    pub fn epoch(&self) -> u32 {
        self.language.as_ref().map_or(1, |m| m.windows.at(self.update).epoch + 1)
    }

    /// The factor of the learning rate in the next update.
    pub(super) fn multiple(&self) -> f64 {
        let scale = self.language.as_ref().map_or(1.0, |m| m.windows.at(self.update).scale);
        match self.language {
            Some(_) => scale * self.recipe.optimiser.epochs.factor(self.epoch()),
            None => 1.0,
        }
    }

    /// Whether parameters are averaged from the next update on.
    pub(super) fn averages(&self) -> bool {
        let Some(memory) = &self.language else { return false };
        let epochs = &self.recipe.optimiser.epochs;
        self.optimiser.average().is_some() || epochs.averages(self.epoch(), &memory.history)
    }

    /// The parameters that are evaluated: averaged ones, if there are.
    pub fn evaluated(&self) -> ParamStore {
        let mut params = self.params.clone();
        if let Some(average) = self.optimiser.average() {
            params.raw = average.to_vec();
        }
        params
    }

    /// At the end of an epoch of a text: reads the validation split.
    ///
    /// # Errors
    /// If the split is too short, or its loss is not finite.
    pub fn validate(&mut self) -> Result<Option<language::Validation>, Error> {
        let (Some(memory), Some(text)) = (&self.language, self.recipe.task.text()) else { return Ok(None) };
        let ended = self.update.checked_sub(1).map(|last| memory.windows.at(last)).filter(|w| w.last);
        let Some(ended) = ended else { return Ok(None) };
        let how = language::report::Reading {
            split: language::Split::Valid,
            batch: text.valid_batch,
            window: text.window,
            carry: language::report::Carry::All,
        };
        let fit = language::report::read_split(self, &self.evaluated(), text, how, self.workers.len())?;
        let epoch = ended.epoch + 1;
        let Some(memory) = &mut self.language else { return Ok(None) };
        memory.history.truncate(ended.epoch as usize);
        let best = memory.history.iter().all(|l| fit.loss < *l);
        memory.history.push(fit.loss);
        Ok(Some(language::Validation { epoch, loss: fit.loss, best }))
    }

    /// A window of a text.
    pub(super) fn window(&mut self, memory: &mut language::Memory) -> Result<Rows, Error> {
        let (Some(text), Learner::NextWord(learner)) = (self.recipe.task.text(), &self.recipe.learner) else {
            return Err(Error::usage("this task has no text"));
        };
        let bound = self.engine.bind(&self.params.values_of(self.engine.model().params.len()))?;
        timings::lap(&mut self.timings, Phase::Parameters);
        let window = memory.windows.at(self.update);
        let update = language::training::Update {
            engine: &self.engine,
            bound: &bound,
            wiring: &self.wiring,
            text,
            learner,
            params: &self.params,
            carried: &self.carried,
            window,
            seed: self.recipe.schedule.seed,
            update: self.update,
            batch: self.recipe.schedule.batch,
            threads: self.workers.len(),
        };
        let found = update.run(memory, &mut self.timings);
        self.engine.check()?;
        let found = found.map_err(|(row, at)| self.bad_number(row, at))?;
        let rows = found.losses.into_iter().zip(found.penalties).zip(found.states);
        let row = |((loss, penalty), state)| RowOutcome {
            scores: vec![loss],
            loss,
            penalty,
            state: Some(state),
            ..RowOutcome::default()
        };
        Ok(Rows { all: rows.map(row).collect(), steps: window.steps, gradients: found.gradients })
    }
}
