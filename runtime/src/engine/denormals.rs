//! Flushing of denormal numbers, on every processor in the same way.

/// How denormals are handled, for run records.
pub const DENORMALS: &str = "flushed to zero";

/// While this lives, the calling thread flushes denormal inputs and results to zero.
pub struct FlushDenormals {
    saved: u64,
}

impl FlushDenormals {
    /// Starts flushing.
    #[must_use]
    pub fn start() -> Self {
        let saved = read();
        write(saved | FLUSH);
        FlushDenormals { saved }
    }
}

impl Drop for FlushDenormals {
    fn drop(&mut self) {
        write(self.saved);
    }
}

/// Flush-to-zero and denormals-are-zero in MXCSR.
#[cfg(target_arch = "x86_64")]
const FLUSH: u64 = 0x8040;
/// Flush-to-zero in FPCR.
#[cfg(target_arch = "aarch64")]
const FLUSH: u64 = 1 << 24;
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
const FLUSH: u64 = 0;

#[cfg(target_arch = "x86_64")]
fn read() -> u64 {
    let mut word: u32 = 0;
    // SAFETY: stores the thread's MXCSR register into `word`.
    unsafe { std::arch::asm!("stmxcsr [{}]", in(reg) &raw mut word, options(nostack)) };
    u64::from(word)
}

#[cfg(target_arch = "x86_64")]
fn write(value: u64) {
    let word = value as u32;
    // SAFETY: loads MXCSR from a value that was read from it, with only the two flush bits added.
    unsafe { std::arch::asm!("ldmxcsr [{}]", in(reg) &raw const word, options(nostack, readonly)) };
}

#[cfg(target_arch = "aarch64")]
fn read() -> u64 {
    let word: u64;
    // SAFETY: reads the thread's FPCR register.
    unsafe { std::arch::asm!("mrs {}, fpcr", out(reg) word, options(nostack, nomem)) };
    word
}

#[cfg(target_arch = "aarch64")]
fn write(value: u64) {
    // SAFETY: sets FPCR to a value that was read from it, with only the flush bit added.
    unsafe { std::arch::asm!("msr fpcr, {}", in(reg) value, options(nostack, nomem)) };
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
fn read() -> u64 {
    0
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
fn write(_value: u64) {}

/// Clears the upper halves of the vector registers.
///
/// The kernels mix VEX and legacy encodings of 128-bit instructions. If library code has left upper
/// halves set, every legacy instruction waits for the full register, which was measured to make
/// kernels a hundred times slower on one Intel processor.
#[cfg(target_arch = "x86_64")]
pub(super) fn clear_upper_halves() {
    if std::arch::is_x86_feature_detected!("avx") {
        // SAFETY: the processor has AVX; no value lives in an upper half across this call, since
        // the calling convention lets every function change them.
        unsafe { upper() };
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx")]
unsafe fn upper() {
    std::arch::x86_64::_mm256_zeroupper();
}

#[cfg(not(target_arch = "x86_64"))]
pub(super) fn clear_upper_halves() {}
