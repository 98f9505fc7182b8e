//! What a mapping must know of a device: how much lies on a multiprocessor, and how many clusters run at once.
//!
//! The table is for plans without a device. Whoever has one asks it ([`Arch::of`]), so that plan and launch go
//! through the same solver with the numbers that they have.

use super::super::slabs::KEPT;

/// The numbers of blocks that a cluster can have. More than eight are more than every device of an architecture with
/// clusters has: a kernel must say that it takes them, and its device is asked.
pub const CLUSTERS: [usize; 5] = [1, 2, 4, 8, 16];

/// A kind of device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arch {
    /// As NVRTC calls it.
    pub name: &'static str,
    /// Multiprocessors.
    pub processors: usize,
    /// Bytes of shared memory that a block can have.
    pub shared: usize,
    /// Bytes of its memory.
    pub memory: u64,
    /// Clusters that run at the same time, by [`CLUSTERS`], when each block has a multiprocessor of its own; none
    /// where a cluster cannot have so many blocks.
    pub resident: [usize; CLUSTERS.len()],
}

impl Arch {
    /// The devices that are known. Whether 16 clusters of 8, or 8 of 16, run at once on the last has not been seen: that
    /// depends on how its multiprocessors are grouped (by 16 or 18, where all of a cluster lie in one group), and a
    /// device is asked.
    pub const ALL: [Arch; 3] = [
        Arch {
            name: "sm_80",
            processors: 108,
            shared: 166_912,
            memory: 80 << 30,
            resident: [108, 0, 0, 0, 0],
        },
        Arch { name: "sm_86", processors: 84, shared: 101_376, memory: 24 << 30, resident: [84, 0, 0, 0, 0] },
        Arch {
            name: "sm_90a",
            processors: 132,
            shared: 232_448,
            memory: 80 << 30,
            resident: [132, 66, 33, 16, 8],
        },
    ];

    /// The device with a name.
    pub fn named(name: &str) -> Option<Arch> {
        Arch::ALL.into_iter().find(|a| a.name == name)
    }

    /// A device as it describes itself. `architecture` is what NVRTC compiles for, `resident` as in [`Arch`].
    pub fn of(
        architecture: &str,
        processors: usize,
        shared: usize,
        memory: u64,
        resident: [usize; CLUSTERS.len()],
    ) -> Arch {
        let known = Arch::ALL.into_iter().find(|a| a.name.trim_end_matches('a') == architecture);
        Arch { name: known.map_or("this device", |a| a.name), processors, shared, memory, resident }
    }

    /// How many clusters of so many blocks run at the same time.
    pub fn resident(&self, cluster: usize) -> usize {
        CLUSTERS.iter().position(|c| *c == cluster).map_or(0, |k| self.resident[k])
    }
}

/// What a mapping is made for.
#[derive(Clone, Copy, Debug)]
pub struct Device {
    /// The kind of device.
    pub arch: Arch,
    /// Rows of the batch.
    pub batch: usize,
    /// Steps of a sequence whose matrix states may all be kept for the way back; 0 if that is not known, or not wanted.
    pub steps: usize,
    /// Blocks of a cluster and threads of a block; the best if none.
    pub wanted: Option<(usize, usize)>,
    /// How states come back going backward.
    pub replay: Replay,
}

impl Device {
    /// The best mapping of so many rows to a kind of device.
    pub fn new(arch: Arch, batch: usize) -> Device {
        Device { arch, batch, steps: 0, wanted: None, replay: Replay::Cheapest }
    }

    /// The same for sequences of so many steps.
    pub fn for_steps(self, steps: usize) -> Device {
        Device { steps, ..self }
    }

    /// Whether it can be expected to have room for all matrix states of a sequence, `states` numbers per row, so that
    /// single steps need neither checkpoints nor replay. What else lies in its memory is not known here, and has no part
    /// in it: what follows is the same in every run.
    pub fn keeps(&self, states: usize) -> bool {
        let bytes =
            4 * (states as u64).saturating_mul(self.batch as u64).saturating_mul(self.steps as u64 + 1);
        0 < self.steps && bytes <= self.arch.memory / KEPT
    }
}

/// How matrix states of earlier steps come back going backward.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Replay {
    /// As costs least time by the estimate.
    #[default]
    Cheapest,
    /// Through the device's memory.
    Memory,
    /// On the chip, with so many slots for states between checkpoints.
    Slots(usize),
}
