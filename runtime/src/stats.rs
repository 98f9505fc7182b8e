//! Statistics of few numbers: confidence intervals of means, rank-sum tests.

use statrs::distribution::{ContinuousCDF, Normal, StudentsT};

/// From this many numbers on in either sample, the distribution of rank sums is taken to be normal.
const MANY: usize = 50;

/// What is said of a sample.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Summary {
    /// The size.
    pub count: usize,
    /// The mean.
    pub mean: f64,
    /// The standard deviation, with n − 1; none for one number.
    pub sd: Option<f64>,
    /// Half of the width of the 95 % confidence interval of the mean, by Student's t; none for one
    /// number.
    pub ci95: Option<f64>,
    /// The median.
    pub median: f64,
    /// The least.
    pub min: f64,
    /// The greatest.
    pub max: f64,
}

impl Summary {
    /// Summarises at least one number.
    pub fn of(sample: &[f64]) -> Summary {
        let count = sample.len();
        let n = count as f64;
        let mean = sample.iter().sum::<f64>() / n;
        let squares: f64 = sample.iter().map(|x| (x - mean).powi(2)).sum();
        let sd = (count > 1).then(|| (squares / (n - 1.0)).sqrt());
        let mut sorted = sample.to_vec();
        sorted.sort_by(f64::total_cmp);
        Summary {
            count,
            mean,
            sd,
            ci95: sd.map(|sd| student(n - 1.0) * sd / n.sqrt()),
            median: 0.5 * (sorted[(count - 1) / 2] + sorted[count / 2]),
            min: sorted[0],
            max: sorted[count - 1],
        }
    }
}

/// The 97.5 % point of Student's t.
fn student(freedom: f64) -> f64 {
    StudentsT::new(0.0, 1.0, freedom).map_or(f64::NAN, |t| t.inverse_cdf(0.975))
}

/// How a p-value was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// From the distribution of the statistic.
    Exact,
    /// From a normal distribution with its mean and variance, with continuity correction.
    Normal,
    /// The same, with the variance that ties leave.
    Ties,
}

impl Method {
    /// For people.
    pub fn words(self) -> &'static str {
        match self {
            Method::Exact => "exact",
            Method::Normal => "normal approximation",
            Method::Ties => "normal approximation, corrected for ties",
        }
    }
}

/// A two-sided Wilcoxon rank-sum (Mann-Whitney) test.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RankSum {
    /// U: pairs in which the first sample has the greater number; ties count one half.
    pub u: f64,
    /// The probability of a U as far from its mean or farther, if both samples are alike.
    pub p: f64,
    /// How it was found.
    pub method: Method,
}

/// Compares two samples (Wilcoxon 1945; Mann and Whitney 1947).
pub fn rank_sum(a: &[f64], b: &[f64]) -> RankSum {
    let mut all: Vec<(f64, bool)> =
        a.iter().map(|x| (*x, true)).chain(b.iter().map(|x| (*x, false))).collect();
    all.sort_by(|x, y| x.0.total_cmp(&y.0));
    let (m, n) = (a.len() as f64, b.len() as f64);
    let (mut before, mut ranks, mut ties) = (0.0, 0.0, 0.0);
    for equal in all.chunk_by(|x, y| x.0 == y.0) {
        let size = equal.len() as f64;
        ranks += (before + 0.5 * (size + 1.0)) * equal.iter().filter(|x| x.1).count() as f64;
        ties += size.powi(3) - size;
        before += size;
    }
    let u = ranks - 0.5 * m * (m + 1.0);
    if ties == 0.0 && a.len().max(b.len()) < MANY {
        return RankSum { u, p: exact(a.len(), b.len(), u), method: Method::Exact };
    }
    let total = m + n;
    let variance = m * n / 12.0 * (total + 1.0 - ties / (total * (total - 1.0)));
    let distance = ((u - 0.5 * m * n).abs() - 0.5).max(0.0);
    let p = match Normal::new(0.0, variance.sqrt()) {
        Ok(normal) if variance > 0.0 => (2.0 * normal.sf(distance)).min(1.0),
        _ => 1.0,
    };
    RankSum { u, p, method: if ties == 0.0 { Method::Normal } else { Method::Ties } }
}

/// Twice the smaller tail, at most 1.
fn exact(m: usize, n: usize, u: f64) -> f64 {
    let counts = counts(m, n);
    let total: f64 = counts.iter().sum();
    let u = u.round() as usize;
    let low: f64 = counts[..=u].iter().sum();
    let high: f64 = counts[u..].iter().sum();
    (2.0 * low.min(high) / total).min(1.0)
}

/// In how many of the orders of `m` and `n` numbers U is 0, 1, …, m n. The greatest of all belongs to
/// the first sample, and is above all `n`, or to the second: c(m, n, u) = c(m−1, n, u−n) + c(m, n−1, u).
fn counts(m: usize, n: usize) -> Vec<f64> {
    // Before the first round n is 0: U can only be 0.
    let mut rows: Vec<Vec<f64>> = vec![vec![1.0]; m + 1];
    for n in 1..=n {
        for m in 1..=m {
            let mut row = std::mem::take(&mut rows[m]);
            row.resize(m * n + 1, 0.0);
            for (u, count) in rows[m - 1].iter().enumerate() {
                row[u + n] += count;
            }
            rows[m] = row;
        }
    }
    rows.swap_remove(m)
}

/// The smallest p-value that two samples of these sizes can have.
pub fn least_p(m: usize, n: usize) -> f64 {
    let orders: f64 = (1..=m).map(|k| (n + k) as f64 / k as f64).product();
    (2.0 / orders).min(1.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn near(found: f64, wanted: f64, tolerance: f64) {
        assert!((found - wanted).abs() <= tolerance, "{found} {wanted}");
    }

    /// Quantiles as in any table of Student's t.
    #[test]
    fn intervals_of_student() {
        let table = [(1.0, 12.7062), (2.0, 4.3027), (4.0, 2.7764), (9.0, 2.2622), (30.0, 2.0423)];
        table.iter().for_each(|(freedom, t)| near(student(*freedom), *t, 5e-5));
        let s = Summary::of(&[4.0, 1.0, 3.0, 2.0]);
        assert_eq!((s.mean, s.median, s.min, s.max), (2.5, 2.5, 1.0, 4.0));
        near(s.ci95.expect("four"), 3.1824 * 1.290_994 / 2.0, 1e-4);
        let one = Summary::of(&[7.0]);
        assert_eq!((one.mean, one.median, one.sd, one.ci95), (7.0, 7.0, None, None));
        assert_eq!(Summary::of(&[1.0, 9.0, 2.0]).median, 2.0);
    }

    /// Table I of Mann and Whitney (1947): P(U ≤ u) for n = m = 3 and n = m = 4.
    #[test]
    fn the_distribution_as_published() {
        let tails = |m, n| {
            let counts = counts(m, n);
            let total: f64 = counts.iter().sum();
            let tail = |u: usize| counts[..=u].iter().sum::<f64>() / total;
            (0..counts.len()).map(tail).collect::<Vec<f64>>()
        };
        for (found, wanted) in tails(3, 3).iter().zip([0.05, 0.1, 0.2, 0.35, 0.5]) {
            near(*found, wanted, 5e-4);
        }
        for (found, wanted) in tails(4, 4).iter().zip([0.014, 0.029, 0.057, 0.1, 0.171, 0.243, 0.343]) {
            near(*found, wanted, 5e-4);
        }
        assert_eq!(counts(2, 3), [1.0, 1.0, 2.0, 2.0, 2.0, 1.0, 1.0]);
    }

    /// Critical values, two-sided, 5 %, as in textbooks.
    #[test]
    fn critical_values() {
        for (m, n, u) in [
            (4, 4, 0.0),
            (3, 5, 0.0),
            (5, 5, 2.0),
            (8, 8, 13.0),
            (7, 9, 12.0),
            (6, 10, 11.0),
            (20, 20, 127.0),
        ] {
            assert!(exact(m, n, u) <= 0.05 && exact(m, n, u + 1.0) > 0.05, "{m} {n} {u}");
            near(exact(m, n, u), exact(n, m, (m * n) as f64 - u), 1e-12);
        }
    }

    /// Hollander and Wolfe (1973), p. 69: permeability of membranes; one-sided .1272.
    #[test]
    fn an_example_without_ties() {
        let x = [0.80, 0.83, 1.89, 1.04, 1.45, 1.38, 1.91, 1.64, 0.73, 1.46];
        let y = [1.15, 0.88, 0.90, 0.74, 1.21];
        let t = rank_sum(&x, &y);
        assert_eq!((t.u, t.method), (35.0, Method::Exact));
        near(t.p, 2.0 * 0.1272, 1e-4);
        near(rank_sum(&y, &x).p, t.p, 1e-12);
    }

    /// Ozone in New York, May and August 1973 (Chambers et al. 1983): W = 127.5, p = 0.0001208.
    #[test]
    fn an_example_with_ties() {
        let may = [
            41, 36, 12, 18, 28, 23, 19, 8, 7, 16, 11, 14, 18, 14, 34, 6, 30, 11, 1, 11, 4, 32, 23, 45, 115,
            37,
        ];
        let august = [
            39, 9, 16, 78, 35, 66, 122, 89, 110, 44, 28, 65, 22, 59, 23, 31, 44, 21, 9, 45, 168, 73, 76, 118,
            84, 85,
        ];
        let t = rank_sum(&may.map(f64::from), &august.map(f64::from));
        assert_eq!((t.u, t.method), (127.5, Method::Ties));
        near(t.p, 0.000_120_8, 5e-8);
        let same = rank_sum(&[1.0, 1.0], &[1.0, 1.0, 1.0]);
        assert_eq!((same.u, same.p), (3.0, 1.0));
    }

    #[test]
    fn large_samples_are_nearly_normal() {
        let a: Vec<f64> = (0..MANY).map(|k| f64::from(k as u32)).collect();
        let b: Vec<f64> = a.iter().map(|x| x + 8.5).collect();
        let t = rank_sum(&a, &b);
        assert_eq!(t.method, Method::Normal);
        near(t.p, exact(MANY, MANY, t.u), 5e-4);
        assert!(t.p < 0.05);
    }

    #[test]
    fn few_seeds_prove_nothing() {
        near(least_p(3, 3), 0.1, 1e-12);
        near(least_p(4, 4), 2.0 / 70.0, 1e-12);
        assert_eq!((least_p(1, 1), least_p(1, 5)), (1.0, 2.0 / 6.0));
        for (m, n) in [(3, 3), (2, 7), (5, 4)] {
            near(least_p(m, n), exact(m, n, 0.0), 1e-12);
        }
    }
}
