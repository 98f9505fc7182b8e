//! Random numbers, counter based: Philox4x32-10 (Salmon et al. 2011).
//!
//! A number is a function of an address — seed, purpose, episode, row, step — and of its place in
//! the stream at that address. It does not depend on threads, on the order of rows, or on what was
//! drawn elsewhere. Every number a model can see comes from here.

/// What a stream is drawn for. Streams of different purposes are independent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// Initial parameters.
    Parameters = 1,
    /// Random initial states.
    States = 2,
    /// Noise inputs.
    Noise = 3,
    /// The task: cues, mazes, patterns, rewards.
    World = 4,
    /// Sampled actions.
    Action = 5,
    /// Words that are left out.
    Words = 6,
    /// Noise inputs that are drawn once per episode.
    Locked = 7,
    /// Characters: which are held out, and how generated ones look.
    Characters = 8,
}

/// Whether numbers are for training or for evaluation; the two never share a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Domain {
    /// Training.
    Train = 0,
    /// Evaluation.
    Eval = 0x80,
}

/// Names an episode of one batch row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Address {
    /// The seed of the run.
    pub seed: u64,
    /// Training or evaluation.
    pub domain: Domain,
    /// The episode, counted per row.
    pub episode: u32,
    /// The batch row; less than 2²⁴.
    pub row: u32,
}

impl Address {
    /// The stream for a purpose at a step of the episode.
    pub fn stream(self, purpose: Purpose, step: u32) -> Stream {
        let tag = (purpose as u32 | self.domain as u32) << 24 | (self.row & 0x00ff_ffff);
        Stream::at(self.seed, [0, step, self.episode, tag])
    }
}

/// A sequence of random numbers.
#[derive(Clone, Debug)]
pub struct Stream {
    key: [u32; 2],
    counter: [u32; 4],
    block: [u32; 4],
    used: usize,
}

impl Stream {
    fn at(seed: u64, counter: [u32; 4]) -> Self {
        Stream { key: [seed as u32, (seed >> 32) as u32], counter, block: [0; 4], used: 4 }
    }

    /// The stream for a thing with a name, such as a parameter.
    pub fn named(seed: u64, purpose: Purpose, name: &str) -> Self {
        let hash = fnv1a(name.as_bytes());
        Self::at(seed, [0, hash as u32, (hash >> 32) as u32, (purpose as u32) << 24])
    }

    /// 32 random bits.
    pub fn bits(&mut self) -> u32 {
        if self.used == 4 {
            self.block = philox(self.counter, self.key);
            self.counter[0] = self.counter[0].wrapping_add(1);
            self.used = 0;
        }
        self.used += 1;
        self.block[self.used - 1]
    }

    /// Uniform in the open interval (0, 1), with 52 random bits.
    pub fn uniform(&mut self) -> f64 {
        let bits = u64::from(self.bits()) << 32 | u64::from(self.bits());
        ((bits >> 12) as f64 + 0.5) / (1u64 << 52) as f64
    }

    /// Standard normal (Box and Muller).
    pub fn normal(&mut self) -> f64 {
        let (a, b) = (self.uniform(), self.uniform());
        (-2.0 * a.ln()).sqrt() * (std::f64::consts::TAU * b).cos()
    }

    /// Uniform in `0..n`, without bias (Lemire 2019). `n` is at least 1.
    pub fn below(&mut self, n: usize) -> usize {
        let n = n.max(1) as u64;
        let reject = (1u64 << 32) % n;
        loop {
            let product = u64::from(self.bits()) * n;
            if product & 0xffff_ffff >= reject {
                return (product >> 32) as usize;
            }
        }
    }

    /// True with probability `p`.
    pub fn chance(&mut self, p: f64) -> bool {
        self.uniform() < p
    }

    /// An index drawn with these probabilities. They need not sum to exactly 1.
    pub fn categorical(&mut self, probabilities: &[f64]) -> usize {
        let total: f64 = probabilities.iter().sum();
        let mut left = self.uniform() * total;
        for (k, p) in probabilities.iter().enumerate() {
            left -= p;
            if left < 0.0 {
                return k;
            }
        }
        // Rounding can leave a crumb: it belongs to the last possible choice.
        probabilities.iter().rposition(|&p| p > 0.0).unwrap_or(0)
    }

    /// Puts a slice in random order (Fisher and Yates).
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for k in (1..items.len()).rev() {
            items.swap(k, self.below(k + 1));
        }
    }

    /// A random order of `0..n`.
    pub fn permutation(&mut self, n: usize) -> Vec<usize> {
        let mut order: Vec<usize> = (0..n).collect();
        self.shuffle(&mut order);
        order
    }
}

/// Ten rounds of Philox4x32.
fn philox(mut c: [u32; 4], mut k: [u32; 2]) -> [u32; 4] {
    for _ in 0..10 {
        let p = u64::from(c[0]) * 0xD251_1F53;
        let q = u64::from(c[2]) * 0xCD9E_8D57;
        c = [(q >> 32) as u32 ^ c[1] ^ k[0], q as u32, (p >> 32) as u32 ^ c[3] ^ k[1], p as u32];
        k = [k[0].wrapping_add(0x9E37_79B9), k[1].wrapping_add(0xBB67_AE85)];
    }
    c
}

/// The 64-bit FNV-1a hash: stable, not cryptographic.
pub fn fnv1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |h, &b| (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stream(seed: u64) -> Stream {
        Address { seed, domain: Domain::Train, episode: 3, row: 7 }.stream(Purpose::World, 5)
    }

    /// The known answers published with the Random123 library.
    #[test]
    fn philox_known_answers() {
        assert_eq!(philox([0; 4], [0; 2]), [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]);
        assert_eq!(philox([!0; 4], [!0; 2]), [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]);
        let counter = [0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344];
        let expected = [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1];
        assert_eq!(philox(counter, [0xa409_3822, 0x299f_31d0]), expected);
    }

    #[test]
    fn fnv_known_answers() {
        assert_eq!(fnv1a(b""), 0xcbf2_9ce4_8422_2325);
        assert_eq!(fnv1a(b"foobar"), 0x8594_4171_f739_67e8);
    }

    #[test]
    fn every_part_of_the_address_matters() {
        let base = Address { seed: 1, domain: Domain::Train, episode: 0, row: 0 };
        let mut first = vec![
            base.stream(Purpose::World, 0).bits(),
            base.stream(Purpose::World, 1).bits(),
            base.stream(Purpose::Action, 0).bits(),
            Address { seed: 2, ..base }.stream(Purpose::World, 0).bits(),
            Address { seed: 1 << 32, ..base }.stream(Purpose::World, 0).bits(),
            Address { domain: Domain::Eval, ..base }.stream(Purpose::World, 0).bits(),
            Address { episode: 1, ..base }.stream(Purpose::World, 0).bits(),
            Address { row: 1, ..base }.stream(Purpose::World, 0).bits(),
            Stream::named(1, Purpose::Parameters, "W").bits(),
            Stream::named(1, Purpose::Parameters, "V").bits(),
        ];
        first.sort_unstable();
        first.dedup();
        assert_eq!(first.len(), 10);
    }

    #[test]
    fn uniform_and_normal_have_their_moments() {
        let mut s = stream(1);
        let n = 100_000;
        let draws: Vec<f64> = (0..n).map(|_| s.uniform()).collect();
        let mean = draws.iter().sum::<f64>() / f64::from(n);
        let square = draws.iter().map(|x| x * x).sum::<f64>() / f64::from(n);
        assert!((mean - 0.5).abs() < 4.0 * 0.289 / 316.0, "{mean}");
        assert!((square - 1.0 / 3.0).abs() < 0.004, "{square}");
        let draws: Vec<f64> = (0..n).map(|_| s.normal()).collect();
        let mean = draws.iter().sum::<f64>() / f64::from(n);
        let square = draws.iter().map(|x| x * x).sum::<f64>() / f64::from(n);
        let fourth = draws.iter().map(|x| x.powi(4)).sum::<f64>() / f64::from(n);
        assert!(mean.abs() < 0.013 && (square - 1.0).abs() < 0.02 && (fourth - 3.0).abs() < 0.15);
    }

    #[test]
    fn below_and_categorical_are_fair() {
        let mut s = stream(2);
        let mut counts = [0f64; 7];
        for _ in 0..70_000 {
            counts[s.below(7)] += 1.0;
        }
        let chi: f64 = counts.iter().map(|c| (c - 1e4).powi(2) / 1e4).sum();
        assert!(chi < 22.5, "chi² with 6 degrees of freedom: {chi}");
        let mut counts = [0f64; 3];
        for _ in 0..60_000 {
            counts[s.categorical(&[0.5, 0.0, 0.5])] += 1.0;
        }
        assert_eq!(counts[1], 0.0);
        assert!((counts[0] - 30_000.0).abs() < 4.0 * 123.0);
    }

    #[test]
    fn permutations_are_permutations() {
        let mut order = stream(3).permutation(50);
        assert_ne!(order, (0..50).collect::<Vec<_>>());
        order.sort_unstable();
        assert_eq!(order, (0..50).collect::<Vec<_>>());
    }
}
