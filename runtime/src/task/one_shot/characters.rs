//! Characters: for each some drawings, square and grey.

use crate::Error;

/// A character.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Character {
    /// Its name, for messages.
    pub(super) name: String,
    /// Drawings by different hands: rows of grey values, 255 for paper.
    pub(super) drawings: Vec<Vec<u8>>,
}

/// All characters.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Characters {
    /// In an order that depends on nothing but what they are.
    pub(super) all: Vec<Character>,
}

impl Characters {
    /// Refuses characters that were not drawn often enough.
    ///
    /// # Errors
    /// If one has fewer drawings than an episode may need.
    pub(super) fn check(&self, needed: usize) -> Result<(), Error> {
        match self.all.iter().find(|c| c.drawings.len() < needed) {
            None => Ok(()),
            Some(c) => Err(Error::usage(format!(
                "`{}` has {} drawings, but an episode needs {needed}",
                c.name,
                c.drawings.len()
            ))
            .help("choose fewer `shots`")),
        }
    }
}

/// Reduces or enlarges an image to a square by averaging over the area that a new pixel covers.
pub(super) fn averaged(pixels: &[u8], (height, width): (usize, usize), side: usize) -> Vec<u8> {
    let (rows, columns) = (shares(height, side), shares(width, side));
    let mut image = Vec::with_capacity(side * side);
    for row in &rows {
        for column in &columns {
            let mut sum = 0.0;
            for (r, a) in row {
                for (c, b) in column {
                    sum += a * b * f64::from(pixels[r * width + c]);
                }
            }
            image.push((sum + 0.5).floor() as u8);
        }
    }
    image
}

/// For each of `to` equal stretches, which of `from` pixels it covers and what share of it each takes.
fn shares(from: usize, to: usize) -> Vec<Vec<(usize, f64)>> {
    let stretch = |k: usize| {
        // In units of 1 / (from · to), so that everything is whole.
        let (start, end) = (k * from, (k + 1) * from);
        let pixels = start / to..end.div_ceil(to);
        let share = |p: usize| (end.min((p + 1) * to) - start.max(p * to)) as f64 / from as f64;
        pixels.map(|p| (p, share(p))).collect()
    };
    (0..to).map(stretch).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn averages_keep_the_mean() {
        assert_eq!(averaged(&[10, 20, 30, 40], (2, 2), 1), [25]);
        assert_eq!(averaged(&[10, 20, 30, 40], (2, 2), 2), [10, 20, 30, 40]);
        assert_eq!(averaged(&[7], (1, 1), 2), [7; 4]);
        // Three columns to two: 2/3 of the first and 1/3 of the second pixel.
        assert_eq!(averaged(&[30, 60, 90, 30, 60, 90], (2, 3), 2), [40, 80, 40, 80]);
        for (from, to) in [(105, 31), (31, 105), (5, 5), (7, 3)] {
            for row in shares(from, to) {
                assert!((row.iter().map(|(_, s)| s).sum::<f64>() - 1.0).abs() < 1e-12);
                assert!(row.iter().all(|(p, s)| *p < from && *s > 0.0));
            }
        }
    }

    #[test]
    fn rare_drawings_are_refused() {
        let one = Character { name: "Latin/character01".into(), drawings: vec![vec![0]; 2] };
        let all = Characters { all: vec![one] };
        assert!(all.check(2).is_ok());
        let message = all.check(3).expect_err("too few").message;
        assert_eq!(message, "`Latin/character01` has 2 drawings, but an episode needs 3");
    }
}
