//! Cuts the rows of a batch where they are reset, and deals out arrays `[T, B, …]` to the pieces.

use super::Given;

/// Steps of a row between two resets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Piece {
    /// The row.
    pub(super) row: usize,
    /// Its first step.
    pub(super) first: usize,
    /// The step after its last.
    pub(super) end: usize,
    /// Whether it starts where the host says, and not at a reset.
    pub(super) continues: bool,
}

impl Piece {
    /// Its steps.
    pub(super) fn len(&self) -> usize {
        self.end - self.first
    }
}

/// All pieces, row by row, in the order of time.
pub(super) fn cut<N>(given: &Given<'_, N>) -> Vec<Piece> {
    let is_reset = |t: usize, row: usize| given.resets.get(t * given.rows + row).is_some_and(|r| *r);
    let mut pieces = vec![];
    for row in 0..given.rows {
        let mut firsts: Vec<usize> = (0..given.steps).filter(|t| *t == 0 || is_reset(*t, row)).collect();
        firsts.push(given.steps);
        let piece = |w: &[usize]| {
            let continues = w[0] == 0 && !is_reset(0, row);
            Piece { row, first: w[0], end: w[1], continues }
        };
        pieces.extend(firsts.windows(2).map(piece));
    }
    pieces
}

/// The parts of arrays that belong to a piece: by array and step.
pub(super) type Cells<'a, N> = Vec<Vec<&'a mut [N]>>;

/// Deals out arrays `[T, B, …]` to pieces that cover every step of every row once, and are in the order of time.
pub(super) fn deal<'a, N>(
    arrays: &'a mut [Vec<N>],
    pieces: &[Piece],
    (steps, rows): (usize, usize),
) -> Vec<Cells<'a, N>> {
    let mut owner = vec![0; steps * rows];
    for (number, piece) in pieces.iter().enumerate() {
        (piece.first..piece.end).for_each(|t| owner[t * rows + piece.row] = number);
    }
    let empty = |piece: &Piece| -> Cells<'a, N> {
        (0..arrays.len()).map(|_| Vec::with_capacity(piece.len())).collect()
    };
    let mut cells: Vec<Cells<'a, N>> = pieces.iter().map(empty).collect();
    for (number, array) in arrays.iter_mut().enumerate() {
        let count = (array.len() / (steps * rows)).max(1);
        for (cell, owner) in array.chunks_exact_mut(count).zip(&owner) {
            cells[*owner][number].push(cell);
        }
    }
    cells
}

#[cfg(test)]
mod tests {
    use super::*;

    fn given(resets: &[u8]) -> Given<'static, f32> {
        let resets = resets.iter().map(|r| *r != 0).collect();
        Given { steps: 4, rows: 2, inputs: vec![], states: vec![], resets }
    }

    #[test]
    fn rows_are_cut_at_resets() {
        let all = |resets: &[u8]| {
            let pieces = cut(&given(resets));
            pieces.iter().map(|p| (p.row, p.first, p.end, p.continues)).collect::<Vec<_>>()
        };
        assert_eq!(all(&[]), [(0, 0, 4, true), (1, 0, 4, true)]);
        let found = all(&[1, 0, 0, 0, 1, 0, 1, 1]);
        assert_eq!(
            found,
            [(0, 0, 2, false), (0, 2, 3, false), (0, 3, 4, false), (1, 0, 3, true), (1, 3, 4, false)]
        );
    }

    #[test]
    fn every_cell_is_dealt_to_its_piece() {
        let given = given(&[0, 0, 0, 1, 1, 0, 0, 1]);
        let pieces = cut(&given);
        let mut arrays = vec![vec![0; 8], vec![0; 24]];
        for (piece, cells) in pieces.iter().zip(deal(&mut arrays, &pieces, (4, 2))) {
            for cell in cells.into_iter().flat_map(|c| c.into_iter().enumerate()) {
                let (t, cell) = cell;
                cell.fill(100 * piece.row + piece.first + t + 1);
            }
        }
        let expected = [1, 101, 2, 102, 3, 103, 4, 104];
        assert_eq!(arrays[0], expected);
        assert_eq!(arrays[1], expected.map(|x| [x; 3]).concat());
    }
}
