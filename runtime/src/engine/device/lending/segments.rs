//! A batch, cut at every moment at which some of its rows are reset.
//!
//! A device steps all rows at once, so a reset of one row ends a segment for all of them: the rows that are not reset
//! begin the next one where they were, the others at their own initial values. Results of a row do not depend on how
//! often the others are reset.

use std::ops::Range;

/// Steps between two such moments.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Segment {
    /// Its first step.
    pub(super) first: usize,
    /// The step after its last.
    pub(super) end: usize,
    /// The rows that begin it at their own initial values, in runs.
    pub(super) fresh: Vec<Range<usize>>,
    /// The rows that do not.
    pub(super) going: Vec<Range<usize>>,
}

impl Segment {
    /// Its steps.
    pub(super) fn len(&self) -> usize {
        self.end - self.first
    }
}

/// Rows that are reset, or are not, in runs.
fn runs(rows: usize, is_in: impl Fn(usize) -> bool) -> Vec<Range<usize>> {
    let mut all: Vec<Range<usize>> = vec![];
    for row in (0..rows).filter(|row| is_in(*row)) {
        match all.last_mut() {
            Some(run) if run.end == row => run.end += 1,
            _ => all.push(row..row + 1),
        }
    }
    all
}

/// The segments of a batch, in the order of time. `resets` are `[step][row]`, or empty.
pub(super) fn cut(steps: usize, rows: usize, resets: &[bool]) -> Vec<Segment> {
    let is_reset = |t: usize, row: usize| resets.get(t * rows + row).is_some_and(|r| *r);
    let mut firsts: Vec<usize> =
        (0..steps).filter(|t| *t == 0 || (0..rows).any(|row| is_reset(*t, row))).collect();
    firsts.push(steps);
    let segment = |w: &[usize]| Segment {
        first: w[0],
        end: w[1],
        fresh: runs(rows, |row| is_reset(w[0], row)),
        going: runs(rows, |row| !is_reset(w[0], row)),
    };
    firsts.windows(2).map(segment).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reset_of_a_row_ends_a_segment_for_all() {
        let resets = [[1, 0, 0], [0, 0, 0], [1, 1, 0], [1, 0, 1]].concat();
        let resets: Vec<bool> = resets.iter().map(|r| *r != 0).collect();
        let found: Vec<_> =
            cut(4, 3, &resets).into_iter().map(|s| (s.first..s.end, s.fresh, s.going)).collect();
        let run = |a: usize, b: usize| a..b;
        let expected = [
            (0..2, vec![run(0, 1)], vec![run(1, 3)]),
            (2..3, vec![run(0, 2)], vec![run(2, 3)]),
            (3..4, vec![run(0, 1), run(2, 3)], vec![run(1, 2)]),
        ];
        assert_eq!(found, expected);
        assert_eq!(cut(4, 3, &[]).len(), 1);
        assert_eq!(cut(4, 3, &[])[0].going, [run(0, 3)]);
    }
}
