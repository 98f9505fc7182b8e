//! The elementwise part of the softmax, on the logits of a block of words, [words, tokens].
//!
//! Tokens lie side by side, so every loop runs over tokens, and nothing is summed over lanes. Exponentials are
//! taken from the largest logit of the token in the block; [`Sums`] of blocks are joined afterwards. Sums over
//! words are in single precision over [`RUN`] of them, and in double over these.

/// Words whose exponentials are summed in single precision.
const RUN: usize = 64;
/// Numbers that are summed side by side.
const LANES: usize = 16;

/// By token: what a block of words, or all of them, add to the softmax.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Sums {
    /// The largest logit.
    top: Vec<f32>,
    /// Σ exp(z − top)
    total: Vec<f64>,
    /// The logit of the target, if it is among the words.
    own: Vec<Option<f32>>,
}

impl Sums {
    /// Those of all blocks together.
    pub(super) fn of_all(blocks: &[Sums]) -> Sums {
        let tokens = blocks.first().map_or(0, |b| b.top.len());
        let mut all =
            Sums { top: vec![f32::NEG_INFINITY; tokens], total: vec![0.0; tokens], own: vec![None; tokens] };
        for block in blocks {
            all.top.iter_mut().zip(&block.top).for_each(|(top, x)| *top = if *x > *top { *x } else { *top });
            all.own.iter_mut().zip(&block.own).for_each(|(own, x)| *own = own.or(*x));
        }
        for block in blocks {
            for (t, total) in all.total.iter_mut().enumerate() {
                *total += block.total[t] * f64::from(exp(block.top[t] - all.top[t]));
            }
        }
        all
    }

    /// −ln p of every target.
    pub(super) fn losses(&self) -> impl Iterator<Item = f64> {
        self.own.iter().enumerate().map(|(t, own)| {
            let own = own.map_or(f64::NEG_INFINITY, |z| f64::from(z) - f64::from(self.top[t]));
            self.total[t].ln() - own
        })
    }

    /// What turns the exponentials of this block into `share` · p.
    pub(super) fn factors(&self, all: &Sums, share: f32) -> Vec<f32> {
        let factor =
            |t: usize| (f64::from(exp(self.top[t] - all.top[t])) * f64::from(share) / all.total[t]) as f32;
        (0..self.top.len()).map(factor).collect()
    }
}

/// Replaces logits without their bias, of the words from `first` on, by exp(z + b − top).
pub(super) fn exponentials(z: &mut [f32], bias: &[f32], first: usize, targets: &[u32]) -> Sums {
    let own = targets.iter().enumerate().map(|(t, target)| {
        let word = (*target as usize).checked_sub(first).filter(|w| *w < bias.len())?;
        Some(z[word * targets.len() + t] + bias[word])
    });
    let own = own.collect();
    let (mut top, mut total) = (vec![f32::NEG_INFINITY; targets.len()], vec![0.0; targets.len()]);
    #[cfg(target_arch = "x86_64")]
    if has_fma() {
        // SAFETY: the processor has what the function asks for.
        unsafe { exponentials_with_fma(z, bias, &mut top, &mut total) };
        return Sums { top, total, own };
    }
    exponentials_plain(z, bias, &mut top, &mut total);
    Sums { top, total, own }
}

/// Replaces the exponentials of a block by (p − e) `share`; adds the sum of every word to `sums`.
pub(super) fn slopes(
    z: &mut [f32],
    factors: &[f32],
    first: usize,
    (targets, share): (&[u32], f32),
    sums: &mut [f32],
) {
    for row in z.chunks_mut(factors.len().max(1)) {
        row.iter_mut().zip(factors).for_each(|(p, f)| *p *= f);
    }
    for (t, target) in targets.iter().enumerate() {
        if let Some(word) = (*target as usize).checked_sub(first).filter(|w| *w < sums.len()) {
            z[word * targets.len() + t] -= share;
        }
    }
    for (sum, row) in sums.iter_mut().zip(z.chunks(factors.len().max(1))) {
        *sum += side_by_side(row);
    }
}

fn side_by_side(x: &[f32]) -> f32 {
    let mut sums = [0.0f32; LANES];
    let mut groups = x.chunks_exact(LANES);
    for group in &mut groups {
        sums.iter_mut().zip(group).for_each(|(s, x)| *s += x);
    }
    sums.iter().chain(groups.remainder()).sum()
}

#[cfg(target_arch = "x86_64")]
fn has_fma() -> bool {
    std::arch::is_x86_feature_detected!("avx2") && std::arch::is_x86_feature_detected!("fma")
}

/// # Safety
/// The processor has AVX2 and FMA.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
unsafe fn exponentials_with_fma(z: &mut [f32], bias: &[f32], top: &mut [f32], total: &mut [f64]) {
    exponentials_plain(z, bias, top, total);
}

#[inline(always)]
fn exponentials_plain(z: &mut [f32], bias: &[f32], top: &mut [f32], total: &mut [f64]) {
    let tokens = top.len().max(1);
    for (row, b) in z.chunks(tokens).zip(bias) {
        for (top, z) in top.iter_mut().zip(row) {
            let z = z + b;
            *top = if z > *top { z } else { *top };
        }
    }
    let mut sums = vec![0.0f32; tokens];
    for (run, bias) in z.chunks_mut(RUN * tokens).zip(bias.chunks(RUN)) {
        sums.fill(0.0);
        for (row, b) in run.chunks_mut(tokens).zip(bias) {
            for ((z, top), sum) in row.iter_mut().zip(&*top).zip(&mut sums) {
                *z = exp(*z + b - top);
                *sum += *z;
            }
        }
        total.iter_mut().zip(&sums).for_each(|(total, sum)| *total += f64::from(*sum));
    }
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
}
