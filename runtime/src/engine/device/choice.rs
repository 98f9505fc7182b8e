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
//! **On a GPU** it costs
//!
//! * launches: two forward, one of replay, two backward, one for what stands apart; recorded, [`LAUNCH`] each;
//! * bytes: 28 for each element of a matrix state, going forward (read and write), replaying (read and write)
//!   and backward (read; cotangents read and written), at [`BANDWIDTH`], or what the multiprocessors that have
//!   blocks move, [`PER_PROCESSOR`] each: a row has a block for every [`COLUMNS`] columns of a square matrix with its
//!   elements;
//! * where an environment on the processor answers, a transfer each way and the wait for it, [`ROUND_TRIP`] per step.
//!
//! Where whole sequences can be mapped to it, a step costs what the compiler's solver estimates, in cycles of
//! [`CLOCK`]; but forward steps that an environment answers are launched one by one, as above.
//!
//! A GPU is taken if it is estimated to be at least [`MARGIN`] times as fast, and if the batch fits into
//! its memory.

use super::{Fault, FaultKind, open};
use crate::engine::Backend;
use compiler::back::cuda::Arch;
use std::fmt;

/// Elements of matrix states per second and thread, forward and backward.
const PER_THREAD: f64 = 1.7e9;
/// Seconds per recorded launch.
const LAUNCH: f64 = 2.0e-6;
/// Launches per step.
const LAUNCHES: f64 = 6.0;
/// Of these, those going forward.
const FORWARD_LAUNCHES: f64 = 2.0;
/// Bytes per element of a matrix state and step.
const BYTES: f64 = 28.0;
/// Bytes per second of a GPU's memory: of one of 2020 or later for servers, less a fifth.
const BANDWIDTH: f64 = 1.5e12;
/// Bytes per second that one multiprocessor moves.
const PER_PROCESSOR: f64 = 4e10;
/// Columns of a block.
const COLUMNS: f64 = 32.0;
/// Of the bytes of a step, those going forward.
const FORWARD: f64 = 8.0 / 28.0;
/// Cycles of a GPU per second.
const CLOCK: f64 = 1.755e9;
/// Seconds from the host to the device and back.
const ROUND_TRIP: f64 = 40e-6;
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
    /// `cycles`: those of a step of the whole batch forward and backward, if sequences are mapped.
    fn estimate(&self, multiprocessors: usize, cycles: Option<[f64; 2]>) -> Estimate {
        let (elements, batch) = (self.elements as f64, self.batch as f64);
        let threads = self.threads.min(self.batch).max(1) as f64;
        let processor = elements * (batch / threads).ceil() / PER_THREAD;
        let blocks = batch * (elements.sqrt() / COLUMNS).ceil().max(1.0);
        let busy = blocks.min(multiprocessors.max(1) as f64);
        let moved = BYTES * elements * batch / BANDWIDTH.min(busy * PER_PROCESSOR);
        let trip = if self.answers { ROUND_TRIP } else { 0.0 };
        let single = trip + FORWARD_LAUNCHES * LAUNCH + FORWARD * moved;
        let device = match (cycles, self.answers) {
            (Some([forward, backward]), false) => (forward + backward) / CLOCK,
            (Some([_, backward]), true) => single + backward / CLOCK,
            (None, _) => single + (LAUNCHES - FORWARD_LAUNCHES) * LAUNCH + (1.0 - FORWARD) * moved,
        };
        Estimate { processor: 1e6 * processor, device: 1e6 * device }
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

/// Cycles of a step of the whole batch, forward and backward, on a device to which whole sequences are mapped.
pub type Mapped = Box<dyn Fn(&Arch) -> Option<[f64; 2]>>;

/// Chooses between the processor and the first CUDA device. `mapped` is asked if kernels of whole sequences may run.
pub fn choose(work: &Work, mapped: Option<&Mapped>) -> Choice {
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
    let arch = || super::sequences::arch(&device).ok();
    let cycles = mapped.and_then(|cycles| cycles(&arch()?));
    let estimate = work.estimate(device.about().multiprocessors, cycles);
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

    #[test]
    fn large_batches_go_to_a_device_and_small_ones_stay() {
        let favours = |w: Work| w.estimate(132, None).favours_device();
        assert!(favours(work(256, 64, false, 16)));
        assert!(favours(work(256, 64, true, 8)));
        assert!(!favours(work(20, 1, false, 1)));
        assert!(!favours(work(100, 1, true, 2)), "a row whose environment answers");
        assert!(!favours(work(100, 30, true, 16)));
        assert!(!favours(Work { elements: 0, ..work(1, 30, false, 1) }));
    }

    #[test]
    fn more_rows_and_more_threads_pull_in_opposite_directions() {
        let ratio = |w: Work| {
            let e = w.estimate(132, None);
            e.processor / e.device
        };
        assert!(ratio(work(128, 8, false, 4)) < ratio(work(128, 128, false, 4)));
        assert!(ratio(work(128, 32, false, 16)) < ratio(work(128, 32, false, 4)));
        assert!(ratio(work(128, 32, true, 4)) < ratio(work(128, 32, false, 4)));
    }

    /// A sequence in one launch is worth a device where kernels of single steps are not; not where answers are waited
    /// for.
    #[test]
    fn whole_sequences_count() {
        let small = work(100, 4, false, 4);
        assert!(!small.estimate(132, None).favours_device());
        assert!(small.estimate(132, Some([3e3, 6e3])).favours_device());
        let answered = Work { answers: true, ..small };
        assert!(!answered.estimate(132, Some([3e3, 6e3])).favours_device());
        let [one, two] = [None, Some([3e3, 6e3])].map(|c| answered.estimate(132, c).device);
        assert!(two < one, "going backward it helps there too");
    }

    #[test]
    fn without_a_driver_nothing_is_said() {
        if matches!(super::super::cuda::count(), Err(Fault { kind: FaultKind::NoDriver, .. })) {
            assert_eq!(choose(&work(256, 64, false, 1), None), Choice { backend: None, reason: None });
        }
    }
}
