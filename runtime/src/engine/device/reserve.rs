//! Room on a tape for steps to come. Sequences that are longer than was said, and resets, need more than a tape began
//! with; what has grown lies elsewhere, and recordings that reach it are forgotten.

use super::regions::grow;
use super::tape::Tape;
use crate::engine::{Bound, Mode};

/// Frames that a step reads besides its own.
const PAST: usize = 3;

impl Tape {
    /// Makes room for a frame and the one behind it.
    pub(super) fn reserve(&mut self, bound: &Bound<'_>, frame: usize) {
        let count = self.memory.as_ref().map_or(0, |m| m.frame_count);
        if count == 0 || frame + 2 <= self.base + count {
            return;
        }
        let (each, adjoint) = (self.rows * bound.engine.program.frame_len, bound.engine.program.adjoint_len);
        if self.mode == Mode::Infer {
            let first = frame - PAST - self.base;
            self.work(bound, |w| w.regions.frames.take(0, &w.regions.frames, first * each, PAST * each));
            self.base = frame - PAST;
            return;
        }
        let longer = (frame + 2).max(2 * count);
        let train = self.mode == Mode::Train;
        let grown = self.work(bound, |w| {
            let r = w.regions;
            let frames = grow(w, &r.frames, longer * each)?;
            let adjoints =
                if train { Some(grow(w, &r.adjoints, (longer + 3) * adjoint * w.rows)?) } else { None };
            let widest = [&w.code.inputs, &w.code.outputs, &w.code.output_bars, &w.code.input_bars];
            let widest = widest.iter().map(|m| m.width).max().unwrap_or(0) * longer * w.rows;
            let staging = grow(w, &r.staging, widest.max(r.staging.bytes() / 4))?;
            Ok((frames, adjoints, staging))
        });
        self.forget();
        if let (Some((frames, adjoints, staging)), Some(m)) = (grown, &mut self.memory) {
            m.frames = frames;
            m.staging = staging;
            m.frame_count = longer;
            if let Some(adjoints) = adjoints {
                m.adjoints = adjoints;
            }
        }
    }

    /// Makes room for the checkpoints of the coming steps, or for their matrix states: resets make more of them than
    /// the steps say.
    pub(super) fn reserve_checkpoints(&mut self, bound: &Bound<'_>, steps: usize) {
        let count = match (self.keeps, self.due()) {
            (true, _) => self.next_frame() + steps,
            (false, Some(saved)) => {
                saved + (self.steps..self.steps + steps).filter(|t| self.due_at(*t)).count()
            }
            (false, None) => return,
        };
        let floats = count * bound.engine.program.matrices_len * self.rows;
        if self.memory.as_ref().is_none_or(|m| 4 * floats <= m.checkpoints.bytes()) {
            return;
        }
        let grown = self.work(bound, |w| grow(w, &w.regions.checkpoints, 2 * floats));
        self.forget();
        if let (Some(grown), Some(m)) = (grown, &mut self.memory) {
            m.checkpoints = grown;
        }
    }
}
