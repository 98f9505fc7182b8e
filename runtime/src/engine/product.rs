//! `sum[j,i] += Σ_t a_t[j] b_t[i]`: gradients that are products of two vectors, summed over time.
//!
//! The order is the same on every processor, hence the bits are: steps ascend, each by a fused
//! multiply-add, from zero; after every [`STRETCH`] steps, and after the last, the result is added to what
//! is there. A library multiplies matrices so where the processor has AVX2 and FMA; it takes another
//! order for single rows, columns and steps, and on other processors. These are summed by [`simple`].

use compiler::loops::Rank1;

/// Vectors over time: the first, and the distance between two.
pub(super) type Series = (*const f32, usize);

/// Steps that are summed from zero.
const STRETCH: usize = 512;

/// Adds the products of `steps` steps.
///
/// # Safety
/// `a` and `b` point to `steps` vectors of `post` and `pre` numbers.
pub(super) unsafe fn accumulate(rank1: &Rank1, steps: usize, a: Series, b: Series, sum: &mut [f32]) {
    for first in (0..steps).step_by(STRETCH) {
        let steps = STRETCH.min(steps - first);
        let later = |(start, stride): Series| (start.wrapping_add(first * stride), stride);
        // SAFETY: promised by the caller.
        unsafe { stretch([rank1.post, rank1.pre, steps], later(a), later(b), sum) };
    }
}

/// # Safety
/// As for [`accumulate`].
unsafe fn stretch(sizes: [usize; 3], a: Series, b: Series, sum: &mut [f32]) {
    // SAFETY: promised by the caller; AVX2 and FMA are there where they are used.
    unsafe {
        #[cfg(target_arch = "x86_64")]
        if std::arch::is_x86_feature_detected!("avx2") && std::arch::is_x86_feature_detected!("fma") {
            return match sizes.contains(&1) {
                true => simple_with_fma(sizes, a, b, sum),
                false => multiplied(sizes, a, b, sum),
            };
        }
        simple(sizes, a, b, sum);
    }
}

/// As one product of matrices.
///
/// # Safety
/// As for [`accumulate`].
#[cfg(target_arch = "x86_64")]
unsafe fn multiplied([post, pre, steps]: [usize; 3], a: Series, b: Series, sum: &mut [f32]) {
    use faer::{Accum, MatMut, MatRef, Par};
    // SAFETY: promised by the caller.
    let (lhs, rhs) = unsafe {
        (
            MatRef::from_raw_parts(a.0, post, steps, 1, a.1 as isize),
            MatRef::from_raw_parts(b.0, steps, pre, b.1 as isize, 1),
        )
    };
    let target = MatMut::from_row_major_slice_mut(sum, post, pre);
    faer::linalg::matmul::matmul(target, Accum::Add, lhs, rhs, 1.0f32, Par::Seq);
}

/// # Safety
/// As for [`accumulate`], on a processor with AVX2 and FMA.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
unsafe fn simple_with_fma(sizes: [usize; 3], a: Series, b: Series, sum: &mut [f32]) {
    // SAFETY: promised by the caller.
    unsafe { simple(sizes, a, b, sum) }
}

/// Row by row, or as one row if there is one column.
///
/// # Safety
/// As for [`accumulate`].
#[inline(always)]
unsafe fn simple([post, pre, steps]: [usize; 3], a: Series, b: Series, sum: &mut [f32]) {
    let (a, b, pre) = if pre == 1 { (b, a, post) } else { (a, b, pre) };
    let mut row = vec![0.0f32; pre];
    for (j, sum) in sum.chunks_mut(pre.max(1)).enumerate() {
        row.fill(0.0);
        for t in 0..steps {
            // SAFETY: promised by the caller.
            let (x, ys) = unsafe {
                let ys = std::slice::from_raw_parts(b.0.wrapping_add(t * b.1), pre);
                (*a.0.wrapping_add(t * a.1 + j), ys)
            };
            row.iter_mut().zip(ys).for_each(|(s, y)| *s = x.mul_add(*y, *s));
        }
        sum.iter_mut().zip(&row).for_each(|(s, x)| *s += x);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Numbers in ±1 from a seed.
    fn numbers(count: usize, mut seed: u64) -> Vec<f32> {
        let mut draw = || {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            ((seed >> 33) as f64 / f64::from(1u32 << 30) - 1.0) as f32
        };
        (0..count).map(|_| draw()).collect()
    }

    /// The definition, element by element.
    fn meant([post, pre, steps]: [usize; 3], a: &[f32], b: &[f32], stride: usize, sum: &mut [f32]) {
        for (k, sum) in sum.iter_mut().enumerate() {
            assert!(k < post * pre);
            for first in (0..steps).step_by(STRETCH) {
                let end = steps.min(first + STRETCH);
                *sum += (first..end)
                    .fold(0.0, |s: f32, t| a[t * stride + k / pre].mul_add(b[t * stride + k % pre], s));
            }
        }
    }

    #[test]
    fn the_order_is_the_same_for_every_shape() {
        let mut shapes = vec![[1, 40, 600], [40, 1, 600], [9, 20, 512], [9, 20, 513], [20, 9, 1100]];
        let few = [1, 2, 3, 4, 5, 7, 8, 11, 16, 17, 24, 31, 33, 48, 50, 65, 100];
        for post in few {
            for pre in few {
                shapes.extend([1, 2, 3, 9, 35].map(|steps| [post, pre, steps]));
            }
        }
        shapes.extend([[200, 200, 35], [130, 200, 20], [100, 100, 199]]);
        for shape in shapes {
            let [post, pre, steps] = shape;
            let stride = post.max(pre) + 3;
            let (a, b) = (numbers(steps * stride, 1), numbers(steps * stride, 2));
            let mut found = numbers(post * pre, 3);
            let mut expected = found.clone();
            meant(shape, &a, &b, stride, &mut expected);
            let place = compiler::loops::Place { base: compiler::loops::Base::Scratch, offset: 0 };
            let rank1 = Rank1 { value: compiler::ir::Value(0), a: place, b: place, post, pre };
            // SAFETY: the series have `steps` vectors of `stride` numbers.
            unsafe { accumulate(&rank1, steps, (a.as_ptr(), stride), (b.as_ptr(), stride), &mut found) };
            let same = found.iter().zip(&expected).all(|(f, e)| f.to_bits() == e.to_bits());
            assert!(same, "{post} by {pre}, {steps} steps");
        }
    }
}
