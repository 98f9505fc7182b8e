//! Squared error: `loss = 1/B Σ_b Σ_t Σ_k (y_k − target_k)²` over the steps and units that have a
//! target. There is no mean over units or steps, as published.

/// The learner; it has no options.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SquaredError;

impl SquaredError {
    /// The loss of one step.
    pub fn loss(&self, output: &[f32], target: &[f32]) -> f64 {
        output.iter().zip(target).map(|(y, t)| (f64::from(*y) - f64::from(*t)).powi(2)).sum()
    }

    /// Writes the cotangent of the output of one step, `2 (y − target) / B`. `share` is 1/B.
    pub fn output_bar(&self, output: &[f32], target: &[f32], share: f64, bar: &mut [f32]) {
        for ((slot, y), t) in bar.iter_mut().zip(output).zip(target) {
            *slot = (2.0 * (f64::from(*y) - f64::from(*t)) * share) as f32;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cotangents_are_the_slopes_of_the_loss() {
        let (y, target, h) = ([0.5f32, -0.75, 3.0], [1.0f32, -1.0], 1.0 / 256.0);
        let mut bar = [0.0; 3];
        SquaredError.output_bar(&y, &target, 0.5, &mut bar);
        for k in 0..3 {
            let (mut up, mut down) = (y, y);
            up[k] += h;
            down[k] -= h;
            let slope = SquaredError.loss(&up, &target) - SquaredError.loss(&down, &target);
            assert!((slope / (2.0 * f64::from(h)) * 0.5 - f64::from(bar[k])).abs() < 1e-6);
        }
        assert_eq!(bar, [-0.5, 0.25, 0.0]);
    }
}
