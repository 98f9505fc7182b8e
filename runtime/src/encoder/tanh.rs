//! The hyperbolic tangent of many numbers: the rational approximation of the kernels
//! (`compiler/src/loops/math.rs`), so that it is the same everywhere and eight numbers are done at a time.

/// Replaces every number by its hyperbolic tangent.
pub(super) fn tanh(x: &mut [f32]) {
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("avx2") && std::arch::is_x86_feature_detected!("fma") {
        // SAFETY: the processor has what the function asks for.
        return unsafe { with_fma(x) };
    }
    plain(x);
}

/// # Safety
/// The processor has AVX2 and FMA.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
unsafe fn with_fma(x: &mut [f32]) {
    plain(x);
}

#[inline(always)]
fn plain(x: &mut [f32]) {
    x.iter_mut().for_each(|x| *x = one(*x));
}

/// Degree 13 by 6 on |x| < 7.905, where the tangent is within 3e-7 of 1. NaN stays NaN.
#[inline(always)]
fn one(x: f32) -> f32 {
    const END: f32 = 7.905_311;
    let x = if x > END { END } else { x };
    let x = if x < -END { -END } else { x };
    let square = x * x;
    let mut p = -2.760_768_5e-16f32;
    for c in [2.000_188e-13, -8.604_672e-11, 5.122_297e-8, 1.485_722_4e-5, 6.372_619e-4, 4.893_524_6e-3] {
        p = p.mul_add(square, c);
    }
    let mut q = 1.198_258_4e-6f32;
    for c in [1.185_347_1e-4, 2.268_434_6e-3, 4.893_525e-3] {
        q = q.mul_add(square, c);
    }
    p * x / q
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_the_hyperbolic_tangent() {
        let mut x: Vec<f32> = (-120_000..120_000).map(|k| k as f32 * 1e-4).collect();
        let meant: Vec<f64> = x.iter().map(|x| f64::from(*x).tanh()).collect();
        let (mut slow, mut worst) = (x.clone(), 0.0f64);
        tanh(&mut x);
        for (found, meant) in x.iter().zip(&meant) {
            worst = worst.max((f64::from(*found) - meant).abs() / meant.abs().max(1e-9));
        }
        assert!(worst < 6e-7, "{worst}");
        plain(&mut slow);
        assert_eq!(x, slow, "the bits do not depend on the processor");
        let mut ends = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 0.0];
        tanh(&mut ends);
        assert!(ends[0].is_nan() && ends[1] > 0.999_999 && ends[2] < -0.999_999 && ends[3] == 0.0);
    }
}
