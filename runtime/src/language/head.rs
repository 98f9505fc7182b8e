//! The softmax over all words: loss and gradients, in blocks.
//!
//! ```text
//! z = W y + b        p = softmax(z)        loss = −Σ ln p[target]
//! ȳ = Wᵀ (p − e)     W̄ = Σ (p − e) yᵀ      b̄ = Σ (p − e)         each times `share`
//! ```
//!
//! `y` [M, E] are the features of all words of a window, `W` [V, E]. Groups of at most [`TOKENS`] features are
//! taken one after the other, and for each of them two passes over blocks of [`WORDS`] rows of W: the first gives
//! logits, their exponentials and the sums of these; the second, which needs the sums of all blocks,
//! gives W̄, b̄, and the block's part of ȳ. The logits of a block lie as [word, token], so that both
//! passes read them in the order of memory while they are near, and every block is a job of equal size. A library
//! multiplies the matrices, each on one thread.

use super::softmax::{Sums, exponentials, slopes};
use crate::parallel;
use faer::linalg::matmul::matmul;
use faer::{Accum, MatMut, MatRef, Par};

/// Features of a group.
const TOKENS: usize = 512;
/// Words of a block: with 400 tokens its logits fit into the second cache.
const WORDS: usize = 500;
/// Columns of ȳ that one thread adds up.
const COLUMNS: usize = 25;

/// The decoder.
#[derive(Clone, Copy)]
pub struct Head<'a> {
    /// W [V, E], row-major.
    pub weight: &'a [f32],
    /// b [V].
    pub bias: &'a [f32],
}

/// Gradients of a window.
pub struct Gradients<'a> {
    /// ȳ [M, E]; replaced.
    pub features: &'a mut [f32],
    /// W̄ [V, E]; replaced.
    pub weight: &'a mut [f32],
    /// b̄ [V]; replaced.
    pub bias: &'a mut [f32],
}

/// Memory that is used again from window to window.
#[derive(Default)]
pub struct Scratch {
    /// Logits of a group, then p − e, [V, tokens].
    logits: Vec<f32>,
    /// ȳ of a group, transposed, from each block: [blocks, E, tokens].
    parts: Vec<f32>,
}

/// What a block of words gives to its gradients.
struct Block<'b> {
    number: usize,
    /// Logits, [words, tokens].
    logits: &'b mut [f32],
    weight: &'b mut [f32],
    bias: &'b mut [f32],
    /// Part of ȳ, [E, tokens].
    features: &'b mut [f32],
}

impl Head<'_> {
    fn words(&self) -> usize {
        self.bias.len()
    }

    fn width(&self) -> usize {
        self.weight.len() / self.bias.len().max(1)
    }

    /// Rows of W and entries of b of a block.
    fn block(&self, number: usize, words: usize) -> (MatRef<'_, f32>, &[f32]) {
        let (first, width) = (number * WORDS, self.width());
        let rows = &self.weight[first * width..][..words * width];
        (MatRef::from_row_major_slice(rows, words, width), &self.bias[first..][..words])
    }

    /// Logits of a block of features, [M, V].
    pub fn logits(&self, features: &[f32], z: &mut [f32]) {
        let (words, width) = (self.words(), self.width());
        z.chunks_mut(words).for_each(|z| z.copy_from_slice(self.bias));
        let count = z.len() / words.max(1);
        let y = MatRef::from_row_major_slice(features, count, width);
        let w = MatRef::from_row_major_slice(self.weight, words, width);
        let z = MatMut::from_row_major_slice_mut(z, count, words);
        matmul(z, Accum::Add, y, w.transpose(), 1.0, Par::Seq);
    }

    /// Fills `logits` with exponentials; the sums of every block, in order.
    fn exponentials(
        &self,
        threads: usize,
        (features, targets): (&[f32], &[u32]),
        logits: &mut [f32],
    ) -> Vec<Sums> {
        let count = targets.len();
        let y = MatRef::from_row_major_slice(features, count, self.width());
        let work = |(): &mut (), (number, z): (usize, &mut [f32])| {
            let (w, bias) = self.block(number, z.len() / count);
            let product = MatMut::from_row_major_slice_mut(z, bias.len(), count);
            matmul(product, Accum::Replace, w, y.transpose(), 1.0, Par::Seq);
            exponentials(z, bias, number * WORDS, targets)
        };
        let jobs = logits.chunks_mut(WORDS * count).enumerate().collect();
        parallel::run(&mut vec![(); threads.max(1)], jobs, work)
    }

    /// −ln p of every target, in nats.
    pub fn losses(
        &self,
        threads: usize,
        features: &[f32],
        targets: &[u32],
        scratch: &mut Scratch,
    ) -> Vec<f64> {
        let mut losses = vec![];
        let size = group(targets.len());
        for (targets, y) in targets.chunks(size).zip(features.chunks(size * self.width())) {
            scratch.logits.resize(targets.len() * self.words(), 0.0);
            let sums = self.exponentials(threads, (y, targets), &mut scratch.logits);
            losses.extend(Sums::of_all(&sums).losses());
        }
        losses
    }

    /// The same, and the gradients of `share` times their sum.
    pub fn gradients(
        &self,
        threads: usize,
        (features, targets): (&[f32], &[u32]),
        share: f32,
        scratch: &mut Scratch,
        into: Gradients<'_>,
    ) -> Vec<f64> {
        let (width, size) = (self.width(), group(targets.len()));
        let mut losses = vec![];
        let groups = targets.chunks(size).zip(features.chunks(size * width));
        for (k, ((targets, y), bar)) in groups.zip(into.features.chunks_mut(size * width)).enumerate() {
            scratch.logits.resize(targets.len() * self.words(), 0.0);
            scratch.parts.resize(self.words().div_ceil(WORDS) * bar.len(), 0.0);
            let sums = self.exponentials(threads, (y, targets), &mut scratch.logits);
            let all = Sums::of_all(&sums);
            losses.extend(all.losses());
            let mut parts = scratch.parts.chunks_mut(bar.len().max(1));
            let logits = scratch.logits.chunks_mut(WORDS * targets.len());
            let weight = into.weight.chunks_mut(WORDS * width).zip(into.bias.chunks_mut(WORDS));
            let blocks = logits.zip(weight).enumerate().filter_map(|(number, (logits, (weight, bias)))| {
                Some(Block { number, logits, weight, bias, features: parts.next()? })
            });
            let accum = if k == 0 { Accum::Replace } else { Accum::Add };
            let work = |(): &mut (), block: Block<'_>| {
                if k == 0 {
                    block.bias.fill(0.0);
                }
                let factors = sums[block.number].factors(&all, share);
                slopes(block.logits, &factors, block.number * WORDS, (targets, share), block.bias);
                self.products(block, y, accum);
            };
            parallel::run(&mut vec![(); threads.max(1)], blocks.collect(), work);
            add_parts(threads, &mut scratch.parts, bar, width);
        }
        losses
    }

    /// The products of a block: W̄ and its part of ȳ.
    fn products(&self, block: Block<'_>, features: &[f32], accum: Accum) {
        let (words, width) = (block.bias.len(), self.width());
        let count = block.logits.len() / words;
        let (w, _) = self.block(block.number, words);
        let p = MatRef::from_row_major_slice(block.logits, words, count);
        let y = MatRef::from_row_major_slice(features, count, width);
        let weight = MatMut::from_row_major_slice_mut(block.weight, words, width);
        matmul(weight, accum, p, y, 1.0, Par::Seq);
        let part = MatMut::from_row_major_slice_mut(block.features, width, count);
        matmul(part, Accum::Replace, w.transpose(), p, 1.0, Par::Seq);
    }
}

/// Features of a group: as many groups as [`TOKENS`] asks for, of nearly equal size.
fn group(tokens: usize) -> usize {
    tokens.div_ceil(tokens.div_ceil(TOKENS).max(1)).max(1)
}

/// ȳ [M, E] from its parts, [E, M] each, which are added in their order.
fn add_parts(threads: usize, parts: &mut [f32], bar: &mut [f32], width: usize) {
    let tokens = bar.len() / width.max(1);
    let (sum, rest) = parts.split_at_mut(bar.len());
    let columns = sum.chunks_mut(COLUMNS * tokens).enumerate().collect();
    let work = |(): &mut (), (k, sum): (usize, &mut [f32])| {
        for part in rest.chunks(width * tokens) {
            let part = &part[k * COLUMNS * tokens..][..sum.len()];
            sum.iter_mut().zip(part).for_each(|(sum, x)| *sum += x);
        }
    };
    parallel::run(&mut vec![(); threads.max(1)], columns, work);
    for (t, bar) in bar.chunks_mut(width).enumerate() {
        bar.iter_mut().zip(sum[t..].iter().step_by(tokens)).for_each(|(bar, x)| *bar = *x);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(count: usize, scale: f64, tag: f64) -> Vec<f32> {
        (0..count).map(|k| (scale * (0.7 * k as f64 + tag).sin()) as f32).collect()
    }

    struct Case {
        weight: Vec<f32>,
        bias: Vec<f32>,
        features: Vec<f32>,
        targets: Vec<u32>,
    }

    fn case(words: usize, width: usize, count: usize) -> Case {
        Case {
            weight: numbers(words * width, 0.8, 1.0),
            bias: numbers(words, 0.5, 2.0),
            features: numbers(count * width, 1.0, 3.0),
            targets: (0..count).map(|k| ((k * 7 + 3) % words) as u32).collect(),
        }
    }

    /// Loss by definition, in double precision.
    fn meant(c: &Case) -> f64 {
        let width = c.weight.len() / c.bias.len();
        let row = |(y, target): (&[f32], &u32)| {
            let dot = |w: &[f32]| y.iter().zip(w).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>();
            let z: Vec<f64> =
                c.weight.chunks(width).zip(&c.bias).map(|(w, b)| dot(w) + f64::from(*b)).collect();
            z.iter().map(|z| z.exp()).sum::<f64>().ln() - z[*target as usize]
        };
        c.features.chunks(width).zip(&c.targets).map(row).sum()
    }

    #[test]
    fn gradients_are_slopes_of_the_loss() {
        for (words, width, count) in [(1, 3, 2), (17, 5, 3), (1203, 4, 107)] {
            let c = case(words, width, count);
            let head = Head { weight: &c.weight, bias: &c.bias };
            let (mut y, mut w, mut b) =
                (vec![9.0; count * width], vec![9.0; words * width], vec![9.0; words]);
            let into = Gradients { features: &mut y, weight: &mut w, bias: &mut b };
            let losses = head.gradients(2, (&c.features, &c.targets), 0.5, &mut Scratch::default(), into);
            assert!((losses.iter().sum::<f64>() - meant(&c)).abs() < 1e-4 * count as f64);
            let h = 1.0 / 64.0;
            let check = |found: f32, change: &dyn Fn(&mut Case, f32)| {
                let at = |h: f32| {
                    let mut c = case(words, width, count);
                    change(&mut c, h);
                    meant(&c)
                };
                let slope = (at(h) - at(-h)) / (2.0 * f64::from(h)) * 0.5;
                assert!((slope - f64::from(found)).abs() < 2e-4 * slope.abs().max(0.2), "{slope} {found}");
            };
            for k in [0, count * width - 1] {
                check(y[k], &|c, h| c.features[k] += h);
            }
            for k in [0, words * width / 2, words * width - 1] {
                check(w[k], &|c, h| c.weight[k] += h);
            }
            for k in [0, words - 1] {
                check(b[k], &|c, h| c.bias[k] += h);
            }
        }
    }

    #[test]
    fn groups_of_tokens_are_added() {
        let (words, width, half) = (37, 5, TOKENS - 200);
        let c = case(words, width, 2 * half);
        let head = Head { weight: &c.weight, bias: &c.bias };
        let run = |tokens: std::ops::Range<usize>| {
            let y = &c.features[tokens.start * width..tokens.end * width];
            let (mut bar, mut w, mut b) = (vec![9.0; y.len()], vec![9.0; words * width], vec![9.0; words]);
            let into = Gradients { features: &mut bar, weight: &mut w, bias: &mut b };
            let given = (y, &c.targets[tokens]);
            let losses = head.gradients(1, given, 0.1, &mut Scratch::default(), into);
            (losses, bar, [w, b].concat())
        };
        let (all, one, two) = (run(0..2 * half), run(0..half), run(half..2 * half));
        assert_eq!(all.0, [one.0, two.0].concat());
        assert_eq!(all.1, [one.1, two.1].concat());
        for (sum, (a, b)) in all.2.iter().zip(one.2.iter().zip(&two.2)) {
            assert!((sum - (a + b)).abs() < 1e-5, "{sum} is not {a} + {b}");
        }
    }

    #[test]
    fn threads_change_nothing() {
        let c = case(2100, 8, 330);
        let head = Head { weight: &c.weight, bias: &c.bias };
        let run = |threads| {
            let (mut y, mut w, mut b) = (vec![0.0; 330 * 8], vec![0.0; 2100 * 8], vec![0.0; 2100]);
            let into = Gradients { features: &mut y, weight: &mut w, bias: &mut b };
            let losses =
                head.gradients(threads, (&c.features, &c.targets), 0.1, &mut Scratch::default(), into);
            (losses, y, w, b)
        };
        assert_eq!(run(1), run(3));
        assert_eq!(head.losses(2, &c.features, &c.targets, &mut Scratch::default()), run(1).0);
    }
}
