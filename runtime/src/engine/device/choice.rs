//! Whether a GPU is worth it.
//!
//! # The model
//!
//! Forward and backward together, per step of a batch. None of its numbers for a GPU has been measured: they
//! are arithmetic on data sheets and on published figures, and they decide nothing but a default.
//!
//! **On the processor** a step costs the elements of all matrix states of all rows, at [`PER_THREAD`] elements per
//! second and thread (measured: 1.3 to 2.2 thousand million, out of caches and in them); rows are shared by as many
//! threads as there are rows.
//!
//! **On a GPU** it costs what the compiler estimates of the kernels that would run, forward and backward: the same
//! numbers that decide which they are ([`compiler::back::cuda::Candidates`]) and that plans print. Where an environment
//! on the processor answers, a transfer each way and the wait for it come to each step, [`ROUND_TRIP`].
//!
//! A GPU is taken if it is estimated to be at least [`MARGIN`] times as fast, and if the batch fits into
//! its memory.

use super::{Fault, FaultKind, open};
use crate::engine::Backend;
use compiler::back::cuda::Arch;
use std::fmt;

/// Elements of matrix states per second and thread, forward and backward.
const PER_THREAD: f64 = 1.7e9;
/// Microseconds from the host to the device and back.
const ROUND_TRIP: f64 = 40.0;
/// How much faster a GPU must be.
const MARGIN: f64 = 1.5;

/// What is going to run.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Work {
    /// Elements of the matrix states of a row.
    pub elements: usize,
    /// Rows.
    pub batch: usize,
    /// Steps of a sequence.
    pub steps: usize,
    /// Whether an environment on the processor answers every step.
    pub answers: bool,
    /// Threads of the processor.
    pub threads: usize,
}

/// Microseconds per step, forward and backward.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Estimate {
    processor: f64,
    device: f64,
}

impl Work {
    /// `kernels`: microseconds of a step of the whole batch on the device, forward and backward.
    fn estimate(&self, kernels: [f64; 2]) -> Estimate {
        let (elements, batch) = (self.elements as f64, self.batch as f64);
        let threads = self.threads.min(self.batch).max(1) as f64;
        let processor = 1e6 * elements * (batch / threads).ceil() / PER_THREAD;
        let trip = if self.answers { ROUND_TRIP } else { 0.0 };
        Estimate { processor, device: trip + kernels.iter().sum::<f64>() }
    }

    /// Bytes of the matrix states that training keeps, roughly: checkpoints and snapshots.
    fn bytes(&self) -> f64 {
        4.0 * self.elements as f64 * self.batch as f64 * (2.0 * (self.steps as f64).sqrt() + 6.0)
    }
}

impl Estimate {
    fn favours_device(&self) -> bool {
        MARGIN * self.device < self.processor
    }
}

impl fmt::Display for Estimate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "estimated {:.0} µs per step against {:.0} µs on the processor",
            self.device, self.processor
        )
    }
}

/// Where something runs, and why.
#[derive(Clone, Debug, PartialEq)]
pub struct Choice {
    /// The device's back end; none for the processor.
    pub backend: Option<Backend>,
    /// Why, if there was anything to choose.
    pub reason: Option<String>,
}

/// Microseconds of a step of the whole batch, forward and backward, on a kind of device; none if nobody knows.
pub type Mapped = Box<dyn Fn(&Arch) -> Option<[f64; 2]>>;

/// Chooses between the processor and the first CUDA device.
pub fn choose(work: &Work, mapped: &Mapped) -> Choice {
    let processor = |reason: Option<String>| Choice { backend: None, reason };
    let id = open::DeviceId::Cuda(0);
    let opened = super::cuda::count().and_then(|_| open::open(id));
    let device = match opened {
        Ok(device) => device,
        // Nothing is missed.
        Err(Fault { kind: FaultKind::NoDriver | FaultKind::NoDevice, .. }) => return processor(None),
        Err(fault) => return processor(Some(format!("the processor is used: {fault}"))),
    };
    let name = &device.about().name;
    let arch = match super::sequences::arch(&device) {
        Ok(arch) => arch,
        Err(fault) => return processor(Some(format!("{name} is not used: {fault}"))),
    };
    let Some(kernels) = mapped(&arch) else {
        return processor(Some(format!(
            "{name} is not used: its time is not known; --device cuda forces it"
        )));
    };
    let estimate = work.estimate(kernels);
    let fits = device.memory().is_ok_and(|m| work.bytes() < 0.9 * m.free as f64);
    match (estimate.favours_device(), fits) {
        (true, true) => {
            let reason = Some(format!("{name} is used: {estimate}; --device cpu forbids it"));
            Choice { backend: Some(Backend::Device(id)), reason }
        }
        (false, _) => processor(Some(format!("{name} is not used: {estimate}; --device cuda forces it"))),
        (true, false) => {
            processor(Some(format!("{name} is not used: the batch does not fit into its memory")))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn work(n: usize, batch: usize, answers: bool, threads: usize) -> Work {
        Work { elements: 2 * n * n, batch, steps: 200, answers, threads }
    }

    /// The estimate of the compiler for the retroactive network on an H100.
    fn estimated(n: usize, w: Work) -> Estimate {
        use compiler::back::cuda::{Candidates, Device, Grid, Wanted, Wish};
        use compiler::loops::plan::{Tapes, Use};
        let source = include_str!("../../../../specs/backpropamine/retroactive.bpm");
        let model = compiler::check::check(source).models.swap_remove(0);
        let bound = [("I", 5), ("N", n), ("A", 3)].map(|(name, n)| (name.to_owned(), n)).into();
        let tapes = Tapes::PerThread;
        let (batch, steps) = (w.batch, w.steps);
        let usage = Use { batch, steps, threads: 1, tapes, checkpoint_every: None, memory: None };
        let subject = compiler::stages::Subject {
            file: "retroactive.bpm",
            source,
            model: &model,
            bound: &bound,
            usage: &usage,
        };
        let arch = Arch::named("sm_90a").expect("it is known");
        let grid = Grid { processors: arch.processors, batch, wanted: Wanted::Fastest };
        let candidates: Candidates =
            compiler::stages::cuda_candidates(&subject, grid, &Device::new(arch, batch)).expect("sizes");
        let wish = Wish { tiers: None, one_by_one: w.answers };
        let route = candidates.choose(wish).expect("anything will do");
        w.estimate(route.directions.map(|d| d.microseconds()))
    }

    #[test]
    fn large_batches_go_to_a_device_and_small_ones_stay() {
        let favours = |n: usize, batch, answers, threads| {
            estimated(n, work(n, batch, answers, threads)).favours_device()
        };
        assert!(favours(256, 64, false, 16));
        assert!(favours(256, 64, true, 8));
        assert!(!favours(20, 1, false, 1));
        assert!(!favours(100, 1, true, 2), "a row whose environment answers");
        assert!(!favours(100, 30, true, 16));
        assert!(favours(100, 30, false, 16), "whole sequences");
    }

    #[test]
    fn more_rows_and_more_threads_pull_in_opposite_directions() {
        let ratio = |w: Work| {
            let e = estimated(128, w);
            e.processor / e.device
        };
        assert!(ratio(work(128, 8, false, 4)) < ratio(work(128, 128, false, 4)));
        assert!(ratio(work(128, 32, false, 16)) < ratio(work(128, 32, false, 4)));
        assert!(ratio(work(128, 32, true, 4)) < ratio(work(128, 32, false, 4)));
    }

    /// A round trip per step comes on top of kernels of steps.
    #[test]
    fn answers_are_waited_for() {
        let [known, answered] = [false, true].map(|answers| work(100, 4, answers, 4));
        let [known, answered] = [known, answered].map(|w| w.estimate([10.0, 3.0]).device);
        assert_eq!([known, answered], [13.0, 13.0 + ROUND_TRIP]);
        let network = |answers| estimated(100, work(100, 4, answers, 4)).device;
        assert!(network(true) > network(false) + ROUND_TRIP, "forward goes by steps");
    }

    #[test]
    fn without_a_driver_nothing_is_said() {
        if matches!(super::super::cuda::count(), Err(Fault { kind: FaultKind::NoDriver, .. })) {
            let unasked: Mapped = Box::new(|_| None);
            assert_eq!(choose(&work(256, 64, false, 1), &unasked), Choice { backend: None, reason: None });
        }
    }
}
