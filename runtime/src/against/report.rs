//! What a comparison with PyTorch found.

use super::{Round, TOLERANCE};
use crate::Error;
use crate::bench::Times;
use crate::tensors::Tensors;
use serde::Serialize;

/// How well outputs and gradients agree.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Agreement {
    /// Rows that were compared.
    pub rows: usize,
    /// Steps that were compared.
    pub steps: usize,
    /// Tensors that were compared.
    pub tensors: usize,
    /// The largest relative error of the norm of a tensor.
    pub error: f64,
    /// The tensor that has it.
    pub tensor: String,
}

/// PyTorch, in one of its ways.
#[derive(Clone, Debug, Serialize)]
pub struct Rival {
    /// `eager`, or `compiled` by torch.compile.
    pub how: &'static str,
    /// How well its numbers agree with ours.
    pub agreement: Agreement,
    /// Forward, in milliseconds.
    pub forward_ms: Times,
    /// Forward and backward, in milliseconds.
    pub forward_backward_ms: Times,
    /// Its time by ours, forward.
    pub forward_ratio: Times,
    /// Its time by ours, forward and backward.
    pub forward_backward_ratio: Times,
}

/// A spec here and in PyTorch.
#[derive(Clone, Debug, Serialize)]
pub struct Comparison {
    /// The spec.
    pub spec: String,
    /// Rows.
    pub batch: usize,
    /// Steps.
    pub steps: usize,
    /// Threads of both.
    pub threads: usize,
    /// Our back end.
    pub backend: &'static str,
    /// The version of PyTorch.
    pub torch: String,
    /// The version of Python.
    pub python: String,
    /// Our forward pass, in milliseconds.
    pub forward_ms: Times,
    /// Our forward and backward pass, in milliseconds.
    pub forward_backward_ms: Times,
    /// PyTorch, in its ways.
    pub rivals: Vec<Rival>,
}

impl Agreement {
    /// Compares tensors by name.
    ///
    /// # Errors
    /// If PyTorch gave other tensors than ours, or a number of ours is not finite.
    pub(super) fn of(
        rows: usize,
        steps: usize,
        found: &Tensors,
        expected: &Tensors,
    ) -> Result<Agreement, Error> {
        let mut all = Agreement { rows, steps, tensors: expected.len(), ..Agreement::default() };
        for (name, ours) in expected {
            let Some(theirs) = found.get(name).filter(|t| t.shape == ours.shape) else {
                return Err(Error::input(format!("PyTorch gives no `{name}` of shape {:?}", ours.shape)));
            };
            let (ours, theirs) = (ours.to_f64(), theirs.to_f64());
            let norm = ours.iter().map(|x| x * x).sum::<f64>().sqrt();
            if !norm.is_finite() {
                return Err(Error::diverged(format!("`{name}` is not finite at these sizes")));
            }
            let off = ours.iter().zip(&theirs).map(|(a, b)| (a - b).powi(2)).sum::<f64>().sqrt();
            let error = if off.is_finite() { off / norm.max(1e-3) } else { f64::INFINITY };
            if all.error <= error {
                all.error = error;
                all.tensor.clone_from(name);
            }
        }
        Ok(all)
    }

    /// Whether numbers agree.
    pub(super) fn is_fine(&self) -> bool {
        self.error <= TOLERANCE
    }

    pub(super) fn error(&self, how: &str) -> Error {
        let Agreement { error, tensor, rows, steps, .. } = self;
        Error::input(format!(
            "PyTorch ({how}) disagrees: `{tensor}` is off by {error:.1e} over {steps} steps of {rows} rows"
        ))
        .help("nothing was timed; this is a bug of bpm or of PyTorch, please report it with the spec")
    }
}

impl Rival {
    pub(super) fn new(how: &'static str, agreement: Agreement, own: &[Round], times: &[Round]) -> Rival {
        let of = |k: usize| Times::of(times.iter().map(|t| t[k]).collect());
        let ratio = |k: usize| Times::of(times.iter().zip(own).map(|(t, o)| t[k] / o[k]).collect());
        Rival {
            how,
            agreement,
            forward_ms: of(0),
            forward_backward_ms: of(1),
            forward_ratio: ratio(0),
            forward_backward_ratio: ratio(1),
        }
    }
}

impl Comparison {
    /// For people.
    pub fn text(&self) -> String {
        let threads = if self.threads == 1 { "" } else { "s" };
        let mut text = format!(
            "{}: batch {}, {} steps, {} thread{threads}; PyTorch {}, Python {}\n",
            self.spec, self.batch, self.steps, self.threads, self.torch, self.python
        );
        for r in &self.rivals {
            let a = &r.agreement;
            text += &format!(
                "  {:<8} agrees: {} tensors over {} steps of {} rows, at most {:.1e} off ({})\n",
                r.how, a.tensors, a.steps, a.rows, a.error, a.tensor
            );
        }
        text += &format!("{:<19} {:>13} {:>26} {:>14}\n", "", "forward", "", "forward+backward");
        let name = format!("bpm, {}", self.backend);
        let (forward, both) = (self.forward_ms.median, self.forward_backward_ms.median);
        text += &format!("{name:<19} {forward:>10.2} ms {:>26} {both:>10.2} ms\n", "");
        for r in &self.rivals {
            let ratio = |t: Times| format!("{:>7.1} × ({:.1} to {:.1})", t.median, t.min, t.max);
            text += &format!(
                "{:<19} {:>10.2} ms {:<26} {:>10.2} ms {}\n",
                format!("PyTorch, {}", r.how),
                r.forward_ms.median,
                ratio(r.forward_ratio),
                r.forward_backward_ms.median,
                ratio(r.forward_backward_ratio)
            );
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensors::Tensor;

    fn one(name: &str, numbers: &[f32]) -> Tensors {
        [(name.to_owned(), Tensor::f32(vec![numbers.len()], numbers.to_vec()))].into()
    }

    #[test]
    fn numbers_that_differ_are_named() {
        let expected = one("out.y", &[3.0, 4.0]);
        let fine = Agreement::of(1, 1, &one("out.y", &[3.0, 4.001]), &expected).expect("compared");
        assert!(fine.is_fine() && fine.error > 1e-4);
        let off = Agreement::of(1, 1, &one("out.y", &[3.0, 4.1]), &expected).expect("compared");
        assert!(!off.is_fine());
        assert!(off.error("eager").message.contains("`out.y` is off by 2.0e-2"));
        assert!(
            !Agreement::of(1, 1, &one("out.y", &[3.0, f32::NAN]), &expected).expect("compared").is_fine()
        );
        assert!(Agreement::of(1, 1, &one("out.z", &[3.0, 4.0]), &expected).is_err());
    }

    #[test]
    fn ratios_are_of_the_same_round() {
        let own = [[1.0, 2.0], [2.0, 4.0], [1.0, 2.0]];
        let times = [[10.0, 20.0], [20.0, 40.0], [10.0, 20.0]];
        let rival = Rival::new("eager", Agreement::default(), &own, &times);
        assert_eq!((rival.forward_ratio.min, rival.forward_ratio.max), (10.0, 10.0));
        assert_eq!(rival.forward_ms.max, 20.0);
    }
}
