//! `exp` and `ln` in double precision, spelled out: the one definition of the functions from which actions are
//! sampled and losses made.
//!
//! The C library of every system rounds a few arguments in its own way, and a device rounds others. A probability
//! that differs in its last bit can draw another action, and the episode is another one. These two use nothing but
//! operations that IEEE 754 rounds in one way, so that every processor and every device draws the same actions;
//! `engine/device/training/training.cuh` has them once more, for devices.
//!
//! Range reduction and polynomials are those of fdlibm (`e_exp.c`, `e_log.c`; Sun Microsystems, 1993): an error of
//! less than one unit in the last place.

#![expect(clippy::excessive_precision, reason = "the digits are those that were published")]

/// ln 2, cut off so that small multiples are exact, and the rest.
const LN_2: (f64, f64) = (6.931_471_803_691_238_164_90e-1, 1.908_214_929_270_587_700_02e-10);
/// 1 / ln 2.
const PER_LN_2: f64 = std::f64::consts::LOG2_E;

/// The mantissa of 1, and of the root of 1/2 as far as its upper half says.
const ONE: u64 = 0x3ff0_0000_0000_0000;
const ROOT: u64 = 0x3fe6_a09e_0000_0000;
const MANTISSA: u64 = 0x000f_ffff_ffff_ffff;

/// 2^k for a normal result.
fn power_of_two(k: i64) -> f64 {
    f64::from_bits(((k + 1023) as u64) << 52)
}

/// eˣ; zero below -708, infinite above 709.
pub(crate) fn exp(x: f64) -> f64 {
    if x.is_nan() {
        return x;
    }
    if x < -708.0 {
        return 0.0;
    }
    if x > 709.0 {
        return f64::INFINITY;
    }
    let y = x * PER_LN_2 + if x < 0.0 { -0.5 } else { 0.5 };
    let k = y as i64;
    let (high, low) = (x - k as f64 * LN_2.0, k as f64 * LN_2.1);
    let r = high - low;
    let t = r * r;
    let p = 6.613_756_321_437_934_361_17e-5
        + t * (-1.653_390_220_546_525_153_90e-6 + t * 4.138_136_797_057_238_460_39e-8);
    let c = r - t * (1.666_666_666_666_660_190_37e-1 + t * (-2.777_777_777_701_559_338_42e-3 + t * p));
    (1.0 - ((low - r * c / (2.0 - c)) - high)) * power_of_two(k)
}

/// The natural logarithm of a normal number above zero.
pub(crate) fn ln(x: f64) -> f64 {
    let shifted = x.to_bits().wrapping_add(ONE - ROOT);
    let k = ((shifted >> 52) as i64 - 1023) as f64;
    let f = f64::from_bits((shifted & MANTISSA) + ROOT) - 1.0;
    let (s, half) = (f / (2.0 + f), 0.5 * f * f);
    let z = s * s;
    let w = z * z;
    let even = w
        * (3.999_999_999_940_941_908e-1
            + w * (2.222_219_843_214_978_396e-1 + w * 1.531_383_769_920_937_332e-1));
    let odd = z
        * (6.666_666_666_666_735_130e-1
            + w * (2.857_142_874_366_239_149e-1
                + w * (1.818_357_216_161_805_012e-1 + w * 1.479_819_860_511_658_591e-1)));
    let r = even + odd;
    k * LN_2.0 - ((half - (s * (half + r) + k * LN_2.1)) - f)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Units in the last place between two numbers.
    fn apart(a: f64, b: f64) -> f64 {
        let ulp = f64::from_bits(b.abs().to_bits() + 1) - b.abs();
        (a - b).abs() / ulp
    }

    #[test]
    fn they_are_the_functions_to_the_last_place() {
        for k in -70_000..70_000 {
            let x = f64::from(k) * 0.010_1;
            if (-708.0..709.0).contains(&x) {
                assert!(apart(exp(x), x.exp()) <= 1.0, "{x}: {} {}", exp(x), x.exp());
            }
            let y = (f64::from(k) * 0.003).exp();
            assert!(
                apart(ln(y), y.ln()) <= 1.0 || (ln(y) - y.ln()).abs() < 1e-17,
                "{y}: {} {}",
                ln(y),
                y.ln()
            );
        }
    }

    #[test]
    fn the_ends_are_exact() {
        assert_eq!((exp(0.0), exp(-0.0), ln(1.0)), (1.0, 1.0, 0.0));
        assert_eq!((exp(-709.0), exp(f64::NEG_INFINITY), exp(710.0)), (0.0, 0.0, f64::INFINITY));
        assert!(exp(f64::NAN).is_nan() && exp(-708.0) > 0.0);
    }
}
