//! Cross-entropy of classes: the output holds logits `z`, the target a one-hot vector of the class `c`.
//!
//! ```text
//! p = softmax(z)
//! categorical:  loss = 1/B Σ_b Σ_t −ln p_c
//! binary:       loss = 1/B Σ_b Σ_t −1/K (ln p_c + Σ_{k≠c} ln(1 − p_k))        K classes
//! ```
//!
//! over the steps that have a target. The binary form, on every class by itself, is the one of the published
//! one-shot experiment (Miconi, Stanley, Clune 2018); its mean over classes is that of PyTorch's
//! `binary_cross_entropy`. Logarithms of p and of 1 − p are taken from the logits, so that no probability
//! that rounds to 0 or 1 needs a bound; PyTorch, which sees only p, cuts them off at −100.
//!
//! With `q_k = Σ_{i≠k} p_i = 1 − p_k` the cotangents of the logits are
//!
//! ```text
//! categorical:  z̄_j = p_j − [j = c]
//! binary:     K z̄_c = −q_c − Σ_{k≠c} p_k p_c / q_k
//!             K z̄_j = 2 p_j − Σ_{k≠c,j} p_k p_j / q_k                        j ≠ c
//! ```
//!
//! where no term is a difference of large numbers: `p_j / q_k` is at most 1.
//!
//! Logarithms and powers are those of [`super::elementary`], so that a device gives the same bits
//! (`engine/device/training/known.cu`).

use super::elementary::{exp, ln};
use crate::options::Options;
use crate::task::hot;

/// What is summed over the classes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// −ln of the probability of the target.
    Categorical,
    /// The mean over classes of the entropy of "it is this class" against "it is another one".
    Binary,
}

/// The learner with its options.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CrossEntropy {
    /// What is summed.
    pub form: Form,
}

/// ln p and ln (1 − p) of every class.
struct Logs {
    own: Vec<f64>,
    others: Vec<f64>,
}

impl Logs {
    fn new(logits: &[f32]) -> Logs {
        let z: Vec<f64> = logits.iter().map(|z| f64::from(*z)).collect();
        let all = log_sum(z.iter().copied());
        let others = |k: usize| {
            let rest = z.iter().enumerate().filter(move |(i, _)| *i != k).map(|(_, z)| *z);
            log_sum(rest) - all
        };
        Logs { own: z.iter().map(|z| z - all).collect(), others: (0..z.len()).map(others).collect() }
    }
}

/// `ln Σ exp(z)`, without overflow; −∞ of nothing.
fn log_sum(z: impl Iterator<Item = f64> + Clone) -> f64 {
    let top = z.clone().fold(f64::NEG_INFINITY, f64::max);
    match top.is_finite() {
        true => top + ln(z.map(|z| exp(z - top)).sum::<f64>()),
        false => top,
    }
}

impl CrossEntropy {
    /// Reads the options.
    pub fn new(o: &mut Options) -> Self {
        let forms = ["categorical", "binary"];
        let doc = "-ln p of the class, or the mean over classes of binary entropies, as published";
        let form = [Form::Categorical, Form::Binary][o.choice("form", 0, &forms, doc)];
        CrossEntropy { form }
    }

    /// The loss of one step, in nats. `logits` and `target` are [K]; `target` is one-hot.
    pub fn loss(&self, logits: &[f32], target: &[f32]) -> f64 {
        let (logs, class) = (Logs::new(logits), hot(target));
        match self.form {
            Form::Categorical => -logs.own[class],
            Form::Binary => {
                let others = (0..logits.len()).filter(|k| *k != class).map(|k| logs.others[k]);
                -(logs.own[class] + others.sum::<f64>()) / logits.len() as f64
            }
        }
    }

    /// Writes the cotangent of the logits of one step. `share` is 1/B.
    pub fn logits_bar(&self, logits: &[f32], target: &[f32], share: f64, bar: &mut [f32]) {
        let (logs, class, classes) = (Logs::new(logits), hot(target), logits.len());
        let p = |k: usize| exp(logs.own[k]);
        let pulls = |j: usize| {
            let others = (0..classes).filter(|k| *k != class && *k != j);
            others.map(|k| p(k) * exp(logs.own[j] - logs.others[k])).sum::<f64>()
        };
        for (j, slot) in bar.iter_mut().enumerate() {
            let slope = match (self.form, j == class) {
                (Form::Categorical, true) => -exp(logs.others[j]),
                (Form::Categorical, false) => p(j),
                (Form::Binary, true) => (-exp(logs.others[j]) - pulls(j)) / classes as f64,
                (Form::Binary, false) => (2.0 * p(j) - pulls(j)) / classes as f64,
            };
            *slot = (slope * share) as f32;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOTH: [CrossEntropy; 2] =
        [CrossEntropy { form: Form::Categorical }, CrossEntropy { form: Form::Binary }];

    fn one_hot(classes: usize, class: usize) -> Vec<f32> {
        (0..classes).map(|k| f32::from(u8::from(k == class))).collect()
    }

    /// The definitions, by probabilities in double precision.
    fn meant(form: Form, logits: &[f64], class: usize) -> f64 {
        let total: f64 = logits.iter().map(|z| z.exp()).sum();
        let p: Vec<f64> = logits.iter().map(|z| z.exp() / total).collect();
        match form {
            Form::Categorical => -p[class].ln(),
            Form::Binary => {
                let term = |(k, p): (usize, &f64)| if k == class { p.ln() } else { (1.0 - p).ln() };
                -p.iter().enumerate().map(term).sum::<f64>() / p.len() as f64
            }
        }
    }

    #[test]
    fn losses_are_as_defined() {
        let logits = [0.5f32, -1.25, 2.0, 0.0, 3.5];
        let wide: Vec<f64> = logits.iter().map(|z| f64::from(*z)).collect();
        for learner in BOTH {
            for class in 0..5 {
                let found = learner.loss(&logits, &one_hot(5, class));
                assert!((found - meant(learner.form, &wide, class)).abs() < 1e-12, "{found}");
            }
        }
    }

    #[test]
    fn cotangents_are_the_slopes_of_the_loss() {
        let cases: [&[f32]; 3] = [&[0.5, -1.25, 2.0, 0.0, 3.5], &[1.0, -1.0], &[6.0, 0.5, -5.0]];
        for (learner, logits) in BOTH.into_iter().flat_map(|l| cases.map(|c| (l, c))) {
            for class in 0..logits.len() {
                let mut bar = vec![0.0; logits.len()];
                learner.logits_bar(logits, &one_hot(logits.len(), class), 0.5, &mut bar);
                for k in 0..logits.len() {
                    let at = |h: f64| {
                        let mut z: Vec<f64> = logits.iter().map(|z| f64::from(*z)).collect();
                        z[k] += h;
                        meant(learner.form, &z, class)
                    };
                    let slope = 0.5 * (at(1e-5) - at(-1e-5)) / 2e-5;
                    let error = (slope - f64::from(bar[k])).abs();
                    assert!(
                        error < 1e-7 + 1e-6 * slope.abs(),
                        "{learner:?} {logits:?} {class} {k}: {slope} {bar:?}"
                    );
                }
            }
        }
    }

    #[test]
    fn extreme_logits_stay_finite() {
        for learner in BOTH {
            let logits = [1000.0f32, -1000.0, 0.0, 999.0, 3e38];
            for class in 0..5 {
                let mut bar = [0.0f32; 5];
                let target = one_hot(5, class);
                let loss = learner.loss(&logits, &target);
                learner.logits_bar(&logits, &target, 1.0, &mut bar);
                assert!(loss.is_finite() && loss >= 0.0, "{learner:?} {class} {loss}");
                assert!(bar.iter().all(|b| b.is_finite() && b.abs() <= 2.0), "{learner:?} {class} {bar:?}");
            }
            // A saturated mistake still has its full slope.
            let mut bar = [0.0f32; 2];
            learner.logits_bar(&[500.0, -500.0], &[0.0, 1.0], 1.0, &mut bar);
            assert_eq!(bar, [1.0, -1.0], "{learner:?}");
        }
    }

    #[test]
    fn one_class_costs_nothing() {
        for learner in BOTH {
            let mut bar = [9.0f32];
            learner.logits_bar(&[3.0], &[1.0], 1.0, &mut bar);
            assert_eq!((learner.loss(&[3.0], &[1.0]).abs(), bar), (0.0, [0.0]));
        }
    }
}
