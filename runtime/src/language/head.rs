//! The softmax over all words: loss and gradients, in blocks.
//!
//! ```text
//! z = W y + b        p = softmax(z)        loss = −Σ ln p[target]
//! ȳ = Wᵀ (p − e)     W̄ = Σ (p − e) yᵀ      b̄ = Σ (p − e)         each times `share`
//! ```
//!
//! `y` [M, E] are the features of all words of a window, `W` [V, E]. Blocks of at most [`TOKENS`] features
//! give their logits, probabilities and ȳ; then blocks of [`WORDS`] rows of W take their gradients. A
//! library multiplies the matrices, each on one thread.

use crate::parallel;
use faer::linalg::matmul::matmul;
use faer::{Accum, MatMut, MatRef, Par};

/// Features of a block.
const TOKENS: usize = 100;
/// Words of a block.
const WORDS: usize = 1000;
/// Numbers that are summed side by side.
const LANES: usize = 16;

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

impl Head<'_> {
    fn words(&self) -> usize {
        self.bias.len()
    }

    fn width(&self) -> usize {
        self.weight.len() / self.bias.len().max(1)
    }

    /// −ln p of every target. `scratch` [M, V] is filled with (p − e) `share`.
    fn slopes(
        &self,
        threads: usize,
        (features, targets): (&[f32], &[u32]),
        share: f32,
        scratch: &mut Vec<f32>,
        mut features_bar: Option<&mut [f32]>,
    ) -> Vec<f64> {
        let (count, words, width) = (targets.len(), self.words(), self.width());
        let blocks = count.div_ceil(TOKENS).max(1);
        let size = count.div_ceil(blocks).max(1);
        scratch.resize(count * words, 0.0);
        let mut jobs = vec![];
        let mut bars = features_bar.as_mut().map(|b| b.chunks_mut(size * width));
        for (k, (z, targets)) in scratch.chunks_mut(size * words).zip(targets.chunks(size)).enumerate() {
            let y = &features[k * size * width..][..targets.len() * width];
            jobs.push((y, targets, z, bars.as_mut().and_then(Iterator::next)));
        }
        type Job<'j> = (&'j [f32], &'j [u32], &'j mut [f32], Option<&'j mut [f32]>);
        let work = |_: &mut (), (y, targets, z, bar): Job<'_>| {
            self.products(y, z, Accum::Replace);
            let slope = |(z, t): (&mut [f32], &u32)| slope(z, self.bias, *t as usize, share);
            let losses: Vec<f64> = z.chunks_mut(words).zip(targets).map(slope).collect();
            if let Some(bar) = bar {
                let (p, w) = (
                    MatRef::from_row_major_slice(z, targets.len(), words),
                    MatRef::from_row_major_slice(self.weight, words, width),
                );
                let bar = MatMut::from_row_major_slice_mut(bar, targets.len(), width);
                matmul(bar, Accum::Replace, p, w, 1.0, Par::Seq);
            }
            losses
        };
        parallel::run(&mut vec![(); threads.max(1)], jobs, work).concat()
    }

    /// Logits of a block of features.
    pub fn logits(&self, features: &[f32], z: &mut [f32]) {
        z.chunks_mut(self.words()).for_each(|z| z.copy_from_slice(self.bias));
        self.products(features, z, Accum::Add);
    }

    /// W y of a block of features.
    fn products(&self, features: &[f32], z: &mut [f32], accum: Accum) {
        let (words, width) = (self.words(), self.width());
        let count = z.len() / words.max(1);
        let y = MatRef::from_row_major_slice(features, count, width);
        let w = MatRef::from_row_major_slice(self.weight, words, width);
        matmul(MatMut::from_row_major_slice_mut(z, count, words), accum, y, w.transpose(), 1.0, Par::Seq);
    }

    /// −ln p of every target, in nats.
    pub fn losses(
        &self,
        threads: usize,
        features: &[f32],
        targets: &[u32],
        scratch: &mut Vec<f32>,
    ) -> Vec<f64> {
        self.slopes(threads, (features, targets), 0.0, scratch, None)
    }

    /// The same, and the gradients of `share` times their sum.
    pub fn gradients(
        &self,
        threads: usize,
        given: (&[f32], &[u32]),
        share: f32,
        scratch: &mut Vec<f32>,
        into: Gradients<'_>,
    ) -> Vec<f64> {
        let losses = self.slopes(threads, given, share, scratch, Some(into.features));
        let (features, targets) = given;
        let (count, words, width) = (targets.len(), self.words(), self.width());
        let y = MatRef::from_row_major_slice(features, count, width);
        let slopes: &[f32] = scratch;
        let rows = into.weight.chunks_mut(WORDS * width).zip(into.bias.chunks_mut(WORDS));
        let work = |_: &mut (), (k, (weight, bias)): (usize, (&mut [f32], &mut [f32]))| {
            let (first, size) = (k * WORDS, bias.len());
            let p = MatRef::from_row_major_slice(slopes, count, words).subcols(first, size);
            let weight = MatMut::from_row_major_slice_mut(weight, size, width);
            matmul(weight, Accum::Replace, p.transpose(), y, 1.0, Par::Seq);
            bias.fill(0.0);
            for p in slopes.chunks(words) {
                bias.iter_mut().zip(&p[first..first + size]).for_each(|(b, p)| *b += p);
            }
        };
        parallel::run(&mut vec![(); threads.max(1)], rows.enumerate().collect(), work);
        losses
    }
}

/// Replaces `z`, which is the logits without their bias, by (softmax − e_target) · share; gives −ln p of the target.
fn slope(z: &mut [f32], bias: &[f32], target: usize, share: f32) -> f64 {
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("avx2") && std::arch::is_x86_feature_detected!("fma") {
        // SAFETY: the processor has what the function asks for.
        return unsafe { slope_with_fma(z, bias, target, share) };
    }
    slope_plain(z, bias, target, share)
}

/// # Safety
/// The processor has AVX2 and FMA.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
unsafe fn slope_with_fma(z: &mut [f32], bias: &[f32], target: usize, share: f32) -> f64 {
    slope_plain(z, bias, target, share)
}

#[inline(always)]
fn slope_plain(z: &mut [f32], bias: &[f32], target: usize, share: f32) -> f64 {
    let top = maximum(z, bias);
    let own = f64::from(z[target] + bias[target]) - f64::from(top);
    let mut sums = [0.0f32; LANES];
    let mut total = 0.0f64;
    // Sums of few numbers in single precision, of these in double.
    for (block, bias) in z.chunks_mut(64 * LANES).zip(bias.chunks(64 * LANES)) {
        sums.fill(0.0);
        let mut groups = block.chunks_exact_mut(LANES);
        let mut biases = bias.chunks_exact(LANES);
        for (group, bias) in (&mut groups).zip(&mut biases) {
            for ((s, z), b) in sums.iter_mut().zip(group).zip(bias) {
                *z = exp(*z + b - top);
                *s += *z;
            }
        }
        for ((s, z), b) in sums.iter_mut().zip(groups.into_remainder()).zip(biases.remainder()) {
            *z = exp(*z + b - top);
            *s += *z;
        }
        total += sums.iter().map(|s| f64::from(*s)).sum::<f64>();
    }
    let factor = (f64::from(share) / total) as f32;
    z.iter_mut().for_each(|p| *p *= factor);
    z[target] -= share;
    total.ln() - own
}

#[inline(always)]
fn maximum(z: &[f32], bias: &[f32]) -> f32 {
    let mut tops = [f32::NEG_INFINITY; LANES];
    let (mut groups, mut biases) = (z.chunks_exact(LANES), bias.chunks_exact(LANES));
    for (group, bias) in (&mut groups).zip(&mut biases) {
        for ((top, z), b) in tops.iter_mut().zip(group).zip(bias) {
            let z = z + b;
            *top = if z > *top { z } else { *top };
        }
    }
    let rest = groups.remainder().iter().zip(biases.remainder()).map(|(z, b)| z + b);
    tops.into_iter().chain(rest).fold(f32::NEG_INFINITY, |a, b| if b > a { b } else { a })
}

/// `2ⁿ eʳ` of a number that is not positive; 0 below −87.3. The polynomial is that of the kernels
/// (`compiler/src/loops/math.rs`).
#[inline(always)]
fn exp(x: f32) -> f32 {
    const LOW: f32 = -87.336_54;
    const ROUND: f32 = 12_582_912.0; // 1.5 · 2²³: adding it rounds to a whole number.
    let clipped = if x > LOW { x } else { LOW };
    let shifted = clipped.mul_add(std::f32::consts::LOG2_E, ROUND);
    let n = shifted - ROUND;
    let r = n.mul_add(-0.693_359_4, clipped);
    let r = n.mul_add(2.121_944_4e-4, r);
    let mut p = 1.987_569_1e-4;
    for c in [1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 0.166_666_66, 0.5] {
        p = r.mul_add(p, c);
    }
    let m = p.mul_add(r * r, r + 1.0);
    let power = f32::from_bits(((shifted.to_bits() << 23) as i32 + 0x3f80_0000) as u32);
    let y = m * power;
    if x < LOW {
        0.0
    } else if x.is_nan() {
        x
    } else {
        y
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(count: usize, scale: f64, tag: f64) -> Vec<f32> {
        (0..count).map(|k| (scale * (0.7 * k as f64 + tag).sin()) as f32).collect()
    }

    #[test]
    fn exponentials() {
        let mut worst = 0.0f64;
        for k in 0..200_000 {
            let x = -f64::from(k) * 4e-4;
            let x = x as f32;
            let meant = f64::from(x).exp();
            worst = worst.max((f64::from(exp(x)) - meant).abs() / meant);
        }
        assert!(worst < 2e-7, "{worst}");
        assert_eq!((exp(0.0), exp(-100.0), exp(f32::NEG_INFINITY)), (1.0, 0.0, 0.0));
        assert!(exp(f32::NAN).is_nan());
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
            let losses = head.gradients(2, (&c.features, &c.targets), 0.5, &mut vec![], into);
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
    fn threads_change_nothing() {
        let c = case(2100, 8, 330);
        let head = Head { weight: &c.weight, bias: &c.bias };
        let run = |threads| {
            let (mut y, mut w, mut b) = (vec![0.0; 330 * 8], vec![0.0; 2100 * 8], vec![0.0; 2100]);
            let into = Gradients { features: &mut y, weight: &mut w, bias: &mut b };
            let losses = head.gradients(threads, (&c.features, &c.targets), 0.1, &mut vec![], into);
            (losses, y, w, b)
        };
        assert_eq!(run(1), run(3));
        assert_eq!(head.losses(2, &c.features, &c.targets, &mut vec![]), run(1).0);
    }
}
