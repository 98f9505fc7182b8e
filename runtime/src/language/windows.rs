//! Which words an update reads: the windows of truncated backpropagation through time.
//!
//! A row of `n` words has `n − 1` to predict. Windows follow each other without a gap. They have the same
//! length, or, as in the AWD-LSTM (Merity et al. 2018): with probability 0.95 the length is drawn around
//! the full one, else around the half, normal with a standard deviation of 5, at least 5 and at most 10 more
//! than the full one; the learning rate of such an update is scaled by the drawn length over the full one.

use crate::rng::{Purpose, Stream};
use std::sync::{Mutex, PoisonError};

/// A window of all rows.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Window {
    /// The epoch, from zero.
    pub epoch: u32,
    /// Its first word within a row.
    pub start: usize,
    /// How many words are predicted.
    pub steps: usize,
    /// Factor of the learning rate.
    pub scale: f64,
    /// Whether it is the last of its epoch.
    pub last: bool,
}

/// How windows are laid out.
#[derive(Debug)]
pub struct Windows {
    /// Words per row.
    pub row: usize,
    /// The full length.
    pub length: usize,
    /// Whether lengths vary.
    pub vary: bool,
    /// The seed of their variation.
    pub seed: u64,
    /// Windows of the epochs so far.
    epochs: Mutex<Vec<Vec<Window>>>,
}

impl Windows {
    /// A layout.
    pub fn new(row: usize, length: usize, vary: bool, seed: u64) -> Windows {
        Windows { row, length, vary, seed, epochs: Mutex::new(vec![]) }
    }

    /// The longest window there can be.
    pub fn longest(&self) -> usize {
        let most = if self.vary { self.length + 10 } else { self.length };
        most.min(self.row.saturating_sub(1)).max(1)
    }

    fn epoch(&self, epoch: u32) -> Vec<Window> {
        let mut stream = Stream::named(self.seed, Purpose::World, &format!("windows of epoch {epoch}"));
        let mut all: Vec<Window> = vec![];
        let (mut start, words) = (0, self.row.saturating_sub(1));
        while start < words {
            let drawn = if self.vary { draw(self.length, &mut stream) } else { self.length };
            let steps = drawn.min(words - start);
            let scale = if self.vary { drawn as f64 / self.length as f64 } else { 1.0 };
            all.push(Window { epoch, start, steps, scale, last: start + steps == words });
            start += steps;
        }
        all
    }

    /// How many updates so many epochs take.
    pub fn updates(&self, epochs: u32) -> u64 {
        (0..epochs).map(|e| self.epoch(e).len() as u64).sum()
    }

    /// The window of an update.
    pub fn at(&self, update: u64) -> Window {
        let mut known = self.epochs.lock().unwrap_or_else(PoisonError::into_inner);
        let mut left = update;
        for epoch in 0.. {
            if known.len() <= epoch {
                known.push(self.epoch(epoch as u32));
            }
            match known[epoch].get(left as usize) {
                Some(window) => return *window,
                None => left -= known[epoch].len().max(1) as u64,
            }
        }
        unreachable!("epochs follow each other without end")
    }
}

fn draw(length: usize, stream: &mut Stream) -> usize {
    let base = if stream.chance(0.95) { length as f64 } else { length as f64 / 2.0 };
    let drawn = (base + 5.0 * stream.normal()).max(5.0) as usize;
    drawn.clamp(1, length + 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_cover_a_row() {
        for vary in [false, true] {
            let windows = Windows::new(1000, 30, vary, 3);
            let (mut next, mut lengths, mut updates) = (0, vec![], 0);
            loop {
                let w = windows.at(updates);
                assert_eq!((w.epoch, w.start), (0, next));
                next += w.steps;
                lengths.push(w.steps);
                updates += 1;
                if w.last {
                    break;
                }
            }
            assert_eq!((next, windows.updates(1)), (999, updates));
            assert_eq!(windows.at(updates).epoch, 1);
            let most = lengths.iter().max().expect("windows");
            assert!(*most <= windows.longest());
            assert_eq!(lengths.iter().all(|l| *l == 30 || *l == 9), !vary, "{lengths:?}");
        }
        let scale = Windows::new(1000, 30, true, 3).at(0);
        assert!((scale.scale - scale.steps as f64 / 30.0).abs() < 1e-12);
        assert_ne!(Windows::new(1000, 30, true, 3).epoch(0), Windows::new(1000, 30, true, 4).epoch(0));
    }
}
