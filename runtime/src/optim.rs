//! Optimisers: Adam and stochastic gradient descent, as PyTorch defines them, and clipping of the
//! gradient's norm. Everything is kept in 32 bits and goes through parameters in their order.

use crate::options::Options;
use crate::task::Defaults;
use crate::tensors::{Taker, Tensor, Tensors};

/// Which rule moves the parameters.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Rule {
    /// Adam with L2 weight decay; epsilon is added outside of the square root.
    Adam {
        /// Decay of the mean gradient.
        beta1: f64,
        /// Decay of the mean squared gradient.
        beta2: f64,
        /// Added to the root of the mean squared gradient.
        epsilon: f64,
    },
    /// Gradient descent, with momentum if it is not zero.
    Sgd {
        /// Decay of the velocity.
        momentum: f64,
    },
}

/// An optimiser with its options.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Settings {
    /// The rule.
    pub rule: Rule,
    /// Learning rate.
    pub rate: f64,
    /// L2 weight decay: this times the parameter is added to the gradient.
    pub decay: f64,
    /// Bound of the norm of all gradients together; 0 for none.
    pub clip: f64,
}

impl Settings {
    /// Reads the options.
    pub fn new(o: &mut Options, defaults: &Defaults) -> Self {
        let any = 0.0..=1e9;
        let name = o.choice("name", 0, &["adam", "sgd"], "the rule that moves the parameters");
        let rate = o.number("rate", defaults.rate, any.clone(), "learning rate");
        let rule = match name {
            0 => Rule::Adam {
                beta1: o.number("beta1", 0.9, 0.0..=0.999_999_999, "decay of the mean gradient"),
                beta2: o.number("beta2", 0.999, 0.0..=0.999_999_999, "decay of the mean squared gradient"),
                epsilon: o.number(
                    "epsilon",
                    defaults.epsilon,
                    any.clone(),
                    "added outside of the square root",
                ),
            },
            _ => Rule::Sgd { momentum: o.number("momentum", 0.0, 0.0..=1.0, "decay of the velocity") },
        };
        let decay = o.number("decay", 0.0, any.clone(), "L2 weight decay");
        let clip = o.number("clip", defaults.clip, any, "bound of the gradient's norm; 0 for none");
        Settings { rule, rate, decay, clip }
    }
}

/// An optimiser and its memory.
#[derive(Clone, Debug)]
pub struct Optimiser {
    settings: Settings,
    steps: u64,
    mean: Vec<Vec<f32>>,
    square: Vec<Vec<f32>>,
}

impl Optimiser {
    /// An optimiser for parameter tensors of these sizes.
    pub fn new(settings: Settings, sizes: impl IntoIterator<Item = usize>) -> Self {
        let mean: Vec<Vec<f32>> = sizes.into_iter().map(|n| vec![0.0; n]).collect();
        let square = match settings.rule {
            Rule::Adam { .. } => mean.clone(),
            Rule::Sgd { .. } => vec![],
        };
        Optimiser { settings, steps: 0, mean, square }
    }

    /// Scales the gradients so that their norm does not exceed the bound; gives the norm before.
    pub fn clip(&self, gradients: &mut [Vec<f32>]) -> f64 {
        let norm = norm(gradients);
        let factor = self.settings.clip / (norm + 1e-6);
        if self.settings.clip > 0.0 && factor < 1.0 {
            gradients.iter_mut().flatten().for_each(|g| *g *= factor as f32);
        }
        norm
    }

    /// Moves the parameters that are learned.
    pub fn step(&mut self, params: &mut [Vec<f32>], gradients: &[Vec<f32>], learned: &[bool]) {
        self.steps += 1;
        for k in (0..params.len()).filter(|&k| learned[k]) {
            match self.settings.rule {
                Rule::Adam { beta1, beta2, epsilon } => {
                    self.adam(k, &mut params[k], &gradients[k], [beta1, beta2, epsilon]);
                }
                Rule::Sgd { momentum } => self.sgd(k, &mut params[k], &gradients[k], momentum),
            }
        }
    }

    fn adam(&mut self, k: usize, params: &mut [f32], gradients: &[f32], [b1, b2, epsilon]: [f64; 3]) {
        let steps = i32::try_from(self.steps).unwrap_or(i32::MAX);
        let (correction1, correction2) = (1.0 - b1.powi(steps), 1.0 - b2.powi(steps));
        let rate = (self.settings.rate / correction1) as f32;
        let root2 = correction2.sqrt() as f32;
        let (decay, epsilon) = (self.settings.decay as f32, epsilon as f32);
        let (keep2, add1, add2) = (b2 as f32, (1.0 - b1) as f32, (1.0 - b2) as f32);
        let memory = self.mean[k].iter_mut().zip(&mut self.square[k]);
        for ((p, g), (m, v)) in params.iter_mut().zip(gradients).zip(memory) {
            let g = g + decay * *p;
            *m += (g - *m) * add1;
            *v = *v * keep2 + add2 * g * g;
            *p -= rate * (*m / (v.sqrt() / root2 + epsilon));
        }
    }

    fn sgd(&mut self, k: usize, params: &mut [f32], gradients: &[f32], momentum: f64) {
        let (rate, decay, momentum) =
            (self.settings.rate as f32, self.settings.decay as f32, momentum as f32);
        for ((p, g), v) in params.iter_mut().zip(gradients).zip(&mut self.mean[k]) {
            let g = g + decay * *p;
            // PyTorch starts the velocity at the first gradient, which is this with v = 0.
            *v = momentum * *v + g;
            *p -= rate * *v;
        }
    }

    /// The number of steps taken.
    pub fn steps(&self) -> u64 {
        self.steps
    }

    /// Sets the number of steps taken, when a run goes on.
    pub fn set_steps(&mut self, steps: u64) {
        self.steps = steps;
    }

    /// Writes the memory as tensors `mean.NAME` and `square.NAME`.
    pub fn export(&self, names: &[&str], into: &mut Tensors) {
        for (prefix, memory) in [("mean", &self.mean), ("square", &self.square)] {
            for (name, x) in names.iter().zip(memory) {
                into.insert(format!("{prefix}.{name}"), Tensor::f32(vec![x.len()], x.clone()));
            }
        }
    }

    /// Takes back what [`Optimiser::export`] gave.
    pub fn import(&mut self, names: &[&str], taker: &mut Taker) {
        for (prefix, memory) in [("mean", &mut self.mean), ("square", &mut self.square)] {
            for (name, x) in names.iter().zip(memory) {
                if let Some(t) = taker.required(&format!("{prefix}.{name}"), &[x.len()]) {
                    *x = t.to_f32();
                }
            }
        }
    }
}

/// The Euclidean norm of all gradients together.
pub fn norm(gradients: &[Vec<f32>]) -> f64 {
    gradients.iter().flatten().map(|g| f64::from(*g) * f64::from(*g)).sum::<f64>().sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn adam(decay: f64, clip: f64) -> Optimiser {
        let rule = Rule::Adam { beta1: 0.9, beta2: 0.999, epsilon: 1e-4 };
        Optimiser::new(Settings { rule, rate: 0.1, decay, clip }, [2])
    }

    /// Three steps on f(p) = Σ p⁴/4, against the textbook recursion in 64 bits.
    #[test]
    fn adam_is_the_textbook_recursion() {
        for decay in [0.0, 0.05] {
            let mut optimiser = adam(decay, 0.0);
            let mut p = vec![vec![1.0f32, -0.5]];
            let (mut q, mut m, mut v) = ([1.0f64, -0.5], [0.0; 2], [0.0; 2]);
            for t in 1..=3 {
                let g = vec![p[0].iter().map(|x| x * x * x).collect()];
                optimiser.step(&mut p, &g, &[true]);
                for k in 0..2 {
                    let g = q[k].powi(3) + decay * q[k];
                    m[k] = 0.9 * m[k] + 0.1 * g;
                    v[k] = 0.999 * v[k] + 0.001 * g * g;
                    let (mh, vh) = (m[k] / (1.0 - 0.9f64.powi(t)), v[k] / (1.0 - 0.999f64.powi(t)));
                    q[k] -= 0.1 * mh / (vh.sqrt() + 1e-4);
                }
            }
            assert!(p[0].iter().zip(q).all(|(a, b)| (f64::from(*a) - b).abs() < 1e-6), "{p:?} {q:?}");
        }
    }

    #[test]
    fn sgd_with_momentum() {
        let settings = Settings { rule: Rule::Sgd { momentum: 0.5 }, rate: 0.1, decay: 0.0, clip: 0.0 };
        let mut optimiser = Optimiser::new(settings, [1, 1]);
        let mut p = vec![vec![1.0f32], vec![1.0]];
        for _ in 0..2 {
            optimiser.step(&mut p, &[vec![1.0], vec![1.0]], &[true, false]);
        }
        assert!((p[0][0] - 0.75).abs() < 1e-6);
        assert_eq!(p[1][0], 1.0, "not learned");
    }

    #[test]
    fn clipping_scales_all_gradients() {
        let mut g = vec![vec![3.0f32, 0.0], vec![4.0]];
        assert_eq!(adam(0.0, 2.0).clip(&mut g), 5.0);
        assert!((norm(&g) - 2.0).abs() < 1e-5);
        let before = g.clone();
        assert!((adam(0.0, 2.5).clip(&mut g) - 2.0).abs() < 1e-5);
        assert_eq!(g, before);
        let mut g = vec![vec![300.0f32]];
        adam(0.0, 0.0).clip(&mut g);
        assert_eq!(g[0][0], 300.0);
    }
}
