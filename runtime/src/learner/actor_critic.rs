//! Advantage actor-critic over whole episodes of fixed length, without bootstrapping.
//!
//! ```text
//! R_t  = r_t + γ R_{t+1},  R_T = 0;   adv_t = R_t − V_t
//! loss = 1/(T B) Σ_b Σ_t [ e Σ_a p_t(a)² − ln p_t(a_t) stopgrad(adv_t) + v adv_t² ]
//! ```
//!
//! `p` is the softmax of the logits. The entropy term is a penalty on the squares of the action
//! probabilities, as published. With [`Baseline::First`], every row uses the value output of row 0,
//! as the released code does.

use super::elementary;
use crate::options::Options;
use crate::task::Defaults;

/// Whose value output is the baseline of a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Baseline {
    /// The row's own.
    Own,
    /// That of row 0, for all rows: a slip of the released code, to compare with it.
    First,
}

/// The learner with its options.
#[derive(Clone, Debug, PartialEq)]
pub struct ActorCritic {
    /// Discount γ.
    pub gamma: f64,
    /// Weight v of the value loss.
    pub value: f64,
    /// Weight e of the penalty on squared probabilities.
    pub entropy: f64,
    /// Whose value is the baseline.
    pub baseline: Baseline,
    /// Updates at the start without learning.
    pub burn_in: u64,
}

/// The terms of the loss, summed over the steps of a row.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Terms {
    /// Σ −ln p(a) adv.
    pub policy: f64,
    /// Σ Σ p².
    pub squares: f64,
    /// Σ adv².
    pub value: f64,
    /// Σ entropy of the policy, in nats; not part of the loss.
    pub entropy: f64,
}

impl ActorCritic {
    /// Reads the options.
    pub fn new(o: &mut Options, defaults: &Defaults) -> Self {
        let any = 0.0..=1e9;
        ActorCritic {
            gamma: o.number("gamma", 0.9, 0.0..=1.0, "discount of later rewards"),
            value: o.number("value", 0.1, any.clone(), "weight of the value loss"),
            entropy: o.number("entropy", defaults.entropy, any, "weight of the sum of squared probabilities"),
            baseline: match o.choice(
                "baseline",
                0,
                &["own", "first"],
                "whose value a row uses; \"first\" as released",
            ) {
                0 => Baseline::Own,
                _ => Baseline::First,
            },
            burn_in: o.integer("burn_in", 0, 0..=1 << 40, "updates without learning; 101 as released") as u64,
        }
    }

    /// The returns of a row: `R_t = r_t + γ R_{t+1}`.
    pub fn returns(&self, rewards: &[f32]) -> Vec<f64> {
        let mut returns = vec![0.0; rewards.len()];
        let mut next = 0.0;
        for (slot, reward) in returns.iter_mut().zip(rewards).rev() {
            next = f64::from(*reward) + self.gamma * next;
            *slot = next;
        }
        returns
    }

    /// The terms of one step.
    pub fn terms(&self, logits: &[f32], action: usize, advantage: f64) -> Terms {
        let p = softmax(logits);
        let logs = log_softmax(logits);
        Terms {
            policy: -logs[action] * advantage,
            squares: p.iter().map(|p| p * p).sum(),
            value: advantage * advantage,
            entropy: -p.iter().zip(&logs).filter(|(p, _)| **p > 0.0).map(|(p, l)| p * l).sum::<f64>(),
        }
    }

    /// The loss made of terms.
    pub fn loss(&self, t: &Terms) -> f64 {
        self.entropy * t.squares + t.policy + self.value * t.value
    }

    /// Writes the cotangent of the logits of one step. `share` is 1/(T B).
    ///
    /// d(−ln p(a) adv)/dz_k = (p_k − \[k = a\]) adv and d(Σ p²)/dz_k = 2 p_k (p_k − Σ p²).
    pub fn logits_bar(&self, logits: &[f32], action: usize, advantage: f64, share: f64, bar: &mut [f32]) {
        let p = softmax(logits);
        let squares: f64 = p.iter().map(|p| p * p).sum();
        for (k, slot) in bar.iter_mut().enumerate() {
            let chosen = f64::from(u8::from(k == action));
            let slope = (p[k] - chosen) * advantage + self.entropy * 2.0 * p[k] * (p[k] - squares);
            *slot = (share * slope) as f32;
        }
    }

    /// The cotangent of the value of one step: d(v adv²)/dV = −2 v adv.
    pub fn value_bar(&self, advantage: f64, share: f64) -> f32 {
        (-2.0 * self.value * advantage * share) as f32
    }
}

impl Terms {
    /// Adds the terms of another step or row.
    pub fn add(&mut self, other: &Terms) {
        self.policy += other.policy;
        self.squares += other.squares;
        self.value += other.value;
        self.entropy += other.entropy;
    }
}

/// The softmax of logits.
pub(crate) fn softmax(logits: &[f32]) -> Vec<f64> {
    log_softmax(logits).iter().map(|l| elementary::exp(*l)).collect()
}

fn log_softmax(logits: &[f32]) -> Vec<f64> {
    let top = logits.iter().fold(f32::NEG_INFINITY, |a, &b| a.max(b));
    let shifted = logits.iter().map(|&z| f64::from(z) - f64::from(top));
    let log_sum = elementary::ln(shifted.clone().map(elementary::exp).sum::<f64>());
    shifted.map(|z| z - log_sum).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn learner() -> ActorCritic {
        ActorCritic { gamma: 0.9, value: 0.1, entropy: 0.03, baseline: Baseline::Own, burn_in: 0 }
    }

    #[test]
    fn returns_are_discounted() {
        let found = learner().returns(&[1.0, 0.0, -1.0, 2.0]);
        let expected = [1.0 + 0.81 * 0.8, 0.9 * 0.8, 0.8, 2.0];
        assert!(found.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-12), "{found:?}");
    }

    /// The loss of one step as a function of logits and value; the advantage in the policy term is
    /// a constant, that in the value term is not.
    fn loss(logits: &[f32], value: f64, action: usize, ret: f64, fixed: f64) -> f64 {
        let a = learner();
        let t = a.terms(logits, action, fixed);
        a.entropy * t.squares + t.policy + a.value * (ret - value).powi(2)
    }

    #[test]
    fn cotangents_are_the_slopes_of_the_loss() {
        let (logits, value, action, ret) = ([0.5f32, -1.25, 2.0, 0.0], 0.4, 2, 1.7);
        let (advantage, share, h) = (ret - value, 1.0 / 14.0, 1.0 / 1024.0);
        let mut bar = [0.0; 4];
        learner().logits_bar(&logits, action, advantage, share, &mut bar);
        for k in 0..4 {
            let (mut up, mut down) = (logits, logits);
            up[k] += h;
            down[k] -= h;
            let slope = (loss(&up, value, action, ret, advantage)
                - loss(&down, value, action, ret, advantage))
                / (2.0 * f64::from(h));
            assert!((slope * share - f64::from(bar[k])).abs() < 1e-7, "logit {k}: {slope} {bar:?}");
            assert!(bar[k].abs() > 1e-4, "vacuous");
        }
        let slope = (loss(&logits, value + 1e-4, action, ret, advantage)
            - loss(&logits, value - 1e-4, action, ret, advantage))
            / 2e-4;
        assert!((slope * share - f64::from(learner().value_bar(advantage, share))).abs() < 1e-8);
    }

    #[test]
    fn cotangents_of_logits_sum_to_zero() {
        let mut bar = [0.0f32; 3];
        learner().logits_bar(&[80.0, -90.0, 0.5], 1, -3.0, 1.0, &mut bar);
        assert!(bar.iter().sum::<f32>().abs() < 1e-6 && bar.iter().all(|b| b.is_finite()));
        assert!(learner().terms(&[500.0, -500.0, 0.0], 1, 1.0).policy.is_finite());
    }
}
