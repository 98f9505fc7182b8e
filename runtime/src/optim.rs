//! Optimisers: Adam and stochastic gradient descent, as PyTorch defines them, and clipping of the
//! gradient's norm. Everything is kept in 32 bits and goes through parameters in their order.

use crate::options::Options;
use crate::parallel;
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
    /// What changes from epoch to epoch.
    pub epochs: Epochs,
}

/// What changes from epoch to epoch, in tasks that have them.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Epochs {
    /// Factor of the rate in every epoch behind `decay_after`.
    pub decay: f64,
    /// The last epoch with the full rate.
    pub decay_after: u32,
    /// The epoch, counted from one, from which on parameters are averaged; 0 for none.
    pub average_from: u32,
    /// Averaging starts when the validation loss is no better than the best of all epochs but so many of
    /// the last; 0 for never.
    pub average_patience: usize,
}

impl Epochs {
    fn new(o: &mut Options) -> Self {
        Epochs {
            decay: o.number(
                "epoch_decay",
                1.0,
                0.0..=1.0,
                "factor of the rate per epoch, behind the next key",
            ),
            decay_after: o.integer("decay_after", 0, 0..=1 << 20, "the last epoch with the full rate") as u32,
            average_from: o.integer(
                "average_from",
                0,
                0..=1 << 20,
                "first epoch of averaged gradient descent (ASGD); 0: none",
            ) as u32,
            average_patience: o.size(
                "average_patience",
                0,
                0..=1 << 20,
                "average when validation is not better than before so many epochs; 0: never",
            ),
        }
    }

    /// The factor of the rate in an epoch, counted from one.
    pub fn factor(&self, epoch: u32) -> f64 {
        match epoch.saturating_sub(self.decay_after) {
            0 => 1.0,
            _ if self.decay == 1.0 => 1.0,
            n => self.decay.powi(n as i32),
        }
    }

    /// Whether averaging starts with an epoch, counted from one, given the validation losses before it.
    pub fn averages(&self, epoch: u32, losses: &[f64]) -> bool {
        let by_number = self.average_from > 0 && epoch >= self.average_from;
        let before = losses.len().saturating_sub(self.average_patience);
        let best = losses[..before].iter().copied().fold(f64::INFINITY, f64::min);
        let stuck = self.average_patience > 0 && before > 0 && losses.last().is_some_and(|l| *l > best);
        by_number || stuck
    }
}

impl Settings {
    /// Reads the options.
    pub fn new(o: &mut Options, defaults: &Defaults) -> Self {
        let any = 0.0..=1e9;
        let usual = usize::from(defaults.epochs > 0);
        let name = o.choice("name", usual, &["adam", "sgd"], "the rule that moves the parameters");
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
        let epochs = if defaults.epochs > 0 { Epochs::new(o) } else { Epochs::default() };
        Settings { rule, rate, decay, clip, epochs }
    }
}

/// The numbers of a step, in the precision in which parameters move.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Numbers {
    /// The rate, with the correction of Adam's mean.
    pub rate: f32,
    /// The root of the correction of Adam's mean square.
    pub root: f32,
    /// L2 weight decay.
    pub decay: f32,
    /// Adam's epsilon.
    pub epsilon: f32,
    /// What stays of Adam's mean square.
    pub keep: f32,
    /// What a gradient adds to Adam's mean.
    pub add_mean: f32,
    /// What its square adds to the mean square.
    pub add_square: f32,
    /// What stays of the velocity.
    pub momentum: f32,
}

impl Settings {
    /// The numbers of a step, counted from one, at a multiple of the rate.
    pub fn numbers(&self, step: u64, multiple: f64) -> Numbers {
        let decay = self.decay as f32;
        match self.rule {
            Rule::Adam { beta1, beta2, epsilon } => {
                let steps = i32::try_from(step).unwrap_or(i32::MAX);
                let (correction1, correction2) = (1.0 - beta1.powi(steps), 1.0 - beta2.powi(steps));
                Numbers {
                    rate: (self.rate * multiple / correction1) as f32,
                    root: correction2.sqrt() as f32,
                    decay,
                    epsilon: epsilon as f32,
                    keep: beta2 as f32,
                    add_mean: (1.0 - beta1) as f32,
                    add_square: (1.0 - beta2) as f32,
                    momentum: 0.0,
                }
            }
            Rule::Sgd { momentum } => Numbers {
                rate: (self.rate * multiple) as f32,
                decay,
                momentum: momentum as f32,
                ..Numbers::default()
            },
        }
    }
}

/// An optimiser and its memory.
#[derive(Clone, Debug)]
pub struct Optimiser {
    settings: Settings,
    steps: u64,
    mean: Vec<Vec<f32>>,
    square: Vec<Vec<f32>>,
    /// Means of the parameters over the steps since averaging began, and how many there were.
    average: Vec<Vec<f32>>,
    averaged: u64,
    /// Threads; no result depends on them.
    threads: usize,
}

impl Optimiser {
    /// An optimiser for parameter tensors of these sizes.
    pub fn new(settings: Settings, sizes: impl IntoIterator<Item = usize>, threads: usize) -> Self {
        let plain = settings.rule == Rule::Sgd { momentum: 0.0 };
        let mean: Vec<Vec<f32>> = sizes.into_iter().map(|n| vec![0.0; if plain { 0 } else { n }]).collect();
        let square = match settings.rule {
            Rule::Adam { .. } => mean.clone(),
            Rule::Sgd { .. } => vec![],
        };
        Optimiser { settings, steps: 0, mean, square, average: vec![], averaged: 0, threads }
    }

    /// The means of the parameters since averaging began, if it did.
    pub fn average(&self) -> Option<&[Vec<f32>]> {
        (self.averaged > 0).then_some(&self.average)
    }

    /// How many steps are averaged.
    pub fn averaged(&self) -> u64 {
        self.averaged
    }

    /// Says how many steps are averaged in parameters of these sizes, when a run goes on.
    pub fn set_averaged(&mut self, steps: u64, sizes: impl IntoIterator<Item = usize>) {
        self.averaged = steps;
        self.average = match steps {
            0 => vec![],
            _ => sizes.into_iter().map(|n| vec![0.0; n]).collect(),
        };
    }

    /// Takes the parameters of this step into the averages.
    pub fn add_to_average(&mut self, params: &[Vec<f32>]) {
        self.averaged += 1;
        if self.averaged == 1 {
            self.average = params.to_vec();
            return;
        }
        let share = (1.0 / self.averaged as f64) as f32;
        for (mean, params) in self.average.iter_mut().zip(params) {
            blocks(self.threads, mean.chunks_mut(BLOCK).zip(params.chunks(BLOCK)), |(mean, params)| {
                mean.iter_mut().zip(params).for_each(|(m, p)| *m += share * (p - *m));
            });
        }
    }

    /// The norm of the gradients, and the factor with which it does not exceed the bound.
    pub fn clip(&self, gradients: &[Vec<f32>]) -> (f64, f32) {
        let norm = norm(gradients, self.threads);
        let factor = self.settings.clip / (norm + 1e-6);
        let clips = self.settings.clip > 0.0 && factor < 1.0;
        (norm, if clips { factor as f32 } else { 1.0 })
    }

    /// Moves the parameters that are learned, at a multiple of the rate, by the gradients times a factor.
    pub fn step(
        &mut self,
        params: &mut [Vec<f32>],
        (gradients, factor): (&[Vec<f32>], f32),
        learned: &[bool],
        multiple: f64,
    ) {
        self.steps += 1;
        for k in (0..params.len()).filter(|&k| learned[k]) {
            let gradients = (gradients[k].as_slice(), factor);
            match self.settings.rule {
                Rule::Adam { .. } => self.adam(k, &mut params[k], gradients, multiple),
                Rule::Sgd { .. } => self.sgd(k, &mut params[k], gradients, multiple),
            }
        }
    }

    /// What the rule keeps of the parameters: their means and mean squares, or velocities; empty where there is
    /// nothing to keep.
    pub fn memory(&self) -> [&[Vec<f32>]; 2] {
        [&self.mean, &self.square]
    }

    /// The same, to be written.
    pub fn memory_mut(&mut self) -> [&mut [Vec<f32>]; 2] {
        [&mut self.mean, &mut self.square]
    }

    fn adam(&mut self, k: usize, params: &mut [f32], (gradients, factor): (&[f32], f32), multiple: f64) {
        let Numbers {
            rate, root: root2, decay, epsilon, keep: keep2, add_mean: add1, add_square: add2, ..
        } = self.settings.numbers(self.steps, multiple);
        let memory = self.mean[k].iter_mut().zip(&mut self.square[k]);
        for ((p, g), (m, v)) in params.iter_mut().zip(gradients).zip(memory) {
            let g = factor * g + decay * *p;
            *m += (g - *m) * add1;
            *v = *v * keep2 + add2 * g * g;
            *p -= rate * (*m / (v.sqrt() / root2 + epsilon));
        }
    }

    fn sgd(&mut self, k: usize, params: &mut [f32], (gradients, factor): (&[f32], f32), multiple: f64) {
        let Numbers { rate, decay, momentum, .. } = self.settings.numbers(self.steps, multiple);
        if momentum == 0.0 {
            let all = params.chunks_mut(BLOCK).zip(gradients.chunks(BLOCK));
            blocks(self.threads, all, |(params, gradients)| {
                params.iter_mut().zip(gradients).for_each(|(p, g)| *p -= rate * (factor * g + decay * *p));
            });
            return;
        }
        for ((p, g), v) in params.iter_mut().zip(gradients).zip(&mut self.mean[k]) {
            let g = factor * g + decay * *p;
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
        for (prefix, memory) in [("mean", &self.mean), ("square", &self.square), ("average", &self.average)] {
            for (name, x) in names.iter().zip(memory) {
                into.insert(format!("{prefix}.{name}"), Tensor::f32(vec![x.len()], x.clone()));
            }
        }
    }

    /// Takes back what [`Optimiser::export`] gave.
    pub fn import(&mut self, names: &[&str], taker: &mut Taker) {
        let all = [("mean", &mut self.mean), ("square", &mut self.square), ("average", &mut self.average)];
        for (prefix, memory) in all {
            for (name, x) in names.iter().zip(memory) {
                if let Some(t) = taker.required(&format!("{prefix}.{name}"), &[x.len()]) {
                    *x = t.to_f32();
                }
            }
        }
    }
}

/// The Euclidean norm of all gradients together.
pub fn norm(gradients: &[Vec<f32>], threads: usize) -> f64 {
    let all = gradients.iter().flat_map(|g| g.chunks(BLOCK));
    blocks(threads, all, squares).iter().sum::<f64>().sqrt()
}

/// Numbers that are gone through by one thread.
const BLOCK: usize = 1 << 17;

/// Does something to every block; the results are in order.
fn blocks<J: Send, T: Send>(
    threads: usize,
    all: impl Iterator<Item = J>,
    work: impl Fn(J) -> T + Sync,
) -> Vec<T> {
    parallel::run(&mut vec![(); threads.max(1)], all.collect(), |(), block| work(block))
}

/// Where the pieces begin, and how long they are, whose squares are summed apart, among `count` numbers.
pub fn pieces(count: usize) -> impl Iterator<Item = (usize, usize)> {
    (0..count).step_by(BLOCK).map(move |first| (first, BLOCK.min(count - first)))
}

/// The sum of squares, eight side by side.
fn squares(x: &[f32]) -> f64 {
    let mut sums = [0.0f64; 8];
    let mut groups = x.chunks_exact(8);
    for group in &mut groups {
        sums.iter_mut().zip(group).for_each(|(s, x)| *s += f64::from(*x) * f64::from(*x));
    }
    let rest: f64 = groups.remainder().iter().map(|x| f64::from(*x) * f64::from(*x)).sum();
    sums.iter().sum::<f64>() + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    fn adam(decay: f64, clip: f64) -> Optimiser {
        let rule = Rule::Adam { beta1: 0.9, beta2: 0.999, epsilon: 1e-4 };
        Optimiser::new(Settings { rule, rate: 0.1, decay, clip, epochs: Epochs::default() }, [2], 1)
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
                optimiser.step(&mut p, (&g, 1.0), &[true], 1.0);
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
        let settings = Settings {
            rule: Rule::Sgd { momentum: 0.5 },
            rate: 0.1,
            decay: 0.0,
            clip: 0.0,
            epochs: Epochs::default(),
        };
        let mut optimiser = Optimiser::new(settings, [1, 1], 1);
        let mut p = vec![vec![1.0f32], vec![1.0]];
        for _ in 0..2 {
            optimiser.step(&mut p, (&[vec![1.0], vec![1.0]], 1.0), &[true, false], 1.0);
        }
        assert!((p[0][0] - 0.75).abs() < 1e-6);
        assert_eq!(p[1][0], 1.0, "not learned");
    }

    #[test]
    fn clipping_scales_all_gradients() {
        let g = [vec![3.0f32, 0.0], vec![4.0]];
        let (norm, factor) = adam(0.0, 2.0).clip(&g);
        assert_eq!(norm, 5.0);
        assert!((factor - 0.4).abs() < 1e-6);
        assert_eq!(adam(0.0, 5.5).clip(&g), (5.0, 1.0));
        assert_eq!(adam(0.0, 0.0).clip(&[vec![300.0]]), (300.0, 1.0));
        for momentum in [0.0, 0.5] {
            let rule = Rule::Sgd { momentum };
            let settings = Settings { rule, rate: 0.1, decay: 0.0, clip: 2.0, epochs: Epochs::default() };
            let mut p = vec![vec![0.0f32, 0.0], vec![0.0]];
            Optimiser::new(settings, [2, 1], 1).step(&mut p, (&g, factor), &[true, true], 1.0);
            assert!((p[0][0] + 0.12).abs() < 1e-6 && (p[1][0] + 0.16).abs() < 1e-6, "{p:?}");
        }
        let (mut p, mut q) = (vec![vec![1.0f32, -1.0]], vec![vec![1.0f32, -1.0]]);
        adam(0.1, 2.0).step(&mut p, (&g, factor), &[true], 1.0);
        let scaled: Vec<Vec<f32>> = g.iter().map(|g| g.iter().map(|g| g * factor).collect()).collect();
        adam(0.1, 0.0).step(&mut q, (&scaled, 1.0), &[true], 1.0);
        assert_eq!(p, q);
    }

    #[test]
    fn the_rate_falls_by_epochs() {
        let e = Epochs { decay: 0.5, decay_after: 4, ..Epochs::default() };
        assert_eq!([1, 4, 5, 7].map(|n| e.factor(n)), [1.0, 1.0, 0.5, 0.125]);
        let settings =
            Settings { rule: Rule::Sgd { momentum: 0.0 }, rate: 0.1, decay: 0.5, clip: 0.0, epochs: e };
        let mut p = vec![vec![1.0f32]];
        Optimiser::new(settings, [1], 1).step(&mut p, (&[vec![1.0]], 1.0), &[true], e.factor(5));
        assert!((p[0][0] - (1.0 - 0.05 * 1.5)).abs() < 1e-6);
    }

    #[test]
    fn averaging_starts_by_number_or_when_stuck() {
        let by_number = Epochs { average_from: 3, ..Epochs::default() };
        assert_eq!([1, 2, 3, 9].map(|n| by_number.averages(n, &[])), [false, false, true, true]);
        let stuck = Epochs { average_patience: 2, ..Epochs::default() };
        assert!(!stuck.averages(3, &[5.0, 6.0]));
        assert!(stuck.averages(4, &[5.0, 6.0, 5.5]));
        assert!(!stuck.averages(4, &[5.0, 6.0, 4.5]));
    }

    #[test]
    fn averages_are_means_of_the_steps() {
        let settings = Settings {
            rule: Rule::Sgd { momentum: 0.0 },
            rate: 1.0,
            decay: 0.0,
            clip: 0.0,
            epochs: Epochs::default(),
        };
        let mut optimiser = Optimiser::new(settings, [1], 2);
        assert!(optimiser.average().is_none());
        let mut p = vec![vec![0.0f32]];
        for _ in 0..4 {
            optimiser.step(&mut p, (&[vec![-1.0]], 1.0), &[true], 1.0);
            optimiser.add_to_average(&p);
        }
        assert!((optimiser.average().expect("average")[0][0] - 2.5).abs() < 1e-6);
    }

    #[test]
    fn norms_do_not_depend_on_threads() {
        let g = vec![(0..300_001).map(|k| ((k as f32) * 0.7).sin()).collect::<Vec<f32>>(), vec![0.5; 3]];
        let meant: f64 = g.iter().flatten().map(|x| f64::from(*x).powi(2)).sum();
        assert_eq!(norm(&g, 1).to_bits(), norm(&g, 3).to_bits());
        assert!((norm(&g, 1) - meant.sqrt()).abs() < 1e-9 * meant);
    }
}
