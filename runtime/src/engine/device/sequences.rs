//! Kernels that take whole sequences, beside those of single steps: whether a model has them on a device, which
//! of the two runs, and why.
//!
//! Whether a sequence can be mapped to the device is for the compiler's solver to say
//! ([`compiler::back::cuda::map_sequences`]), the same that `bpmc plan --target cuda` asks; here the device is asked
//! for the numbers that the solver needs, the kernels are compiled as a module of their own, and launched. What
//! stands apart from the loop over time, hoisted gradients and the sum over rows stay with [`super::code`].

use super::code::MOVES;
use super::{Blocks, Call, Device, Fault, Kernel, Module, Span, TapeArgs, cache};
use compiler::back::cuda::{self, Arch, CLUSTERS, Launch, Mapping, Spec};
use compiler::loops::Program;
use std::sync::Arc;

/// Which kernels are wanted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Tier {
    /// Of whole sequences where the model and the device allow them, else of single steps.
    Auto,
    /// Of single steps.
    #[default]
    #[value(name = "1")]
    Steps,
    /// Of whole sequences, or an error.
    #[value(name = "2")]
    Sequences,
}

/// Which kernels run, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// 1: a kernel for each step; 2: one for a whole sequence.
    pub tier: u8,
    /// In words.
    pub why: String,
}

impl std::fmt::Display for Route {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "tier {}: {}", self.tier, self.why)
    }
}

/// The kernels of whole sequences of a model on a device.
pub(in crate::engine) struct Whole {
    device: Arc<dyn Device>,
    module: Module,
    forward: Wide,
    backward: Wide,
    mapping: [Mapping; 2],
    bytes: usize,
}

/// A kernel, and how it is launched.
struct Wide {
    kernel: Kernel,
    /// As errors name it.
    name: String,
    cluster: u32,
    threads: u32,
    shared: u32,
}

impl Wide {
    fn blocks(&self, rows: usize) -> Blocks {
        let (cluster, threads, shared) = (self.cluster, self.threads, self.shared);
        Blocks { grid: [rows as u32 * cluster, 1], threads, cluster, shared }
    }
}

impl Drop for Whole {
    fn drop(&mut self) {
        self.device.unload(self.module);
    }
}

impl Whole {
    fn load(
        device: &Arc<dyn Device>,
        source: &cuda::Whole,
        mapping: [Mapping; 2],
        spec: &Spec<'_>,
    ) -> Result<Whole, Fault> {
        let name = format!("{}.sequences", spec.name);
        let (module, _) = cache::load(&**device, cache::folder(), &source.text, &name)?;
        let wide = |launch: &Launch| {
            Ok::<Wide, Fault>(Wide {
                kernel: device.kernel(module, &launch.name)?,
                name: format!("`{}` of `{}` ({})", launch.name, spec.name, spec.file),
                cluster: launch.cluster as u32,
                threads: launch.threads as u32,
                shared: launch.shared_bytes as u32,
            })
        };
        let both = wide(&source.sequences.forward).and_then(|f| Ok((f, wide(&source.sequences.backward)?)));
        match both {
            Ok((forward, backward)) => {
                let device = Arc::clone(device);
                Ok(Whole { device, module, forward, backward, mapping, bytes: source.text.len() })
            }
            Err(fault) => {
                device.unload(module);
                Err(fault)
            }
        }
    }

    /// Steps between checkpoints that cost least.
    pub(super) fn interval(&self, steps: usize) -> usize {
        self.mapping[1].interval(steps)
    }

    /// Snapshots that going backward needs.
    pub(super) fn snapshots(&self, interval: usize) -> usize {
        self.mapping[1].snapshots(interval)
    }

    /// Bytes of source.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Whether every kernel can run: the driver knows what its compiled code takes.
    fn runs(&self) -> Result<Option<String>, Fault> {
        for wide in [&self.forward, &self.backward] {
            if self.device.resident(wide.kernel, &wide.blocks(1)).map_err(|f| f.of(&wide.name))? == 0 {
                let (cluster, threads, shared) = (wide.cluster, wide.threads, wide.shared);
                return Ok(Some(format!(
                    "the driver finds no room for clusters of {cluster} blocks of {threads} threads and {shared} bytes of kernel {}",
                    wide.name
                )));
            }
        }
        Ok(None)
    }

    /// All steps of a span, forward or backward, of all rows.
    pub(super) fn launch(
        &self,
        is_backward: bool,
        rows: usize,
        tape: TapeArgs,
        span: Span,
    ) -> Result<(), Fault> {
        let wide = if is_backward { &self.backward } else { &self.forward };
        let call = Call::Sequence(tape, span);
        // SAFETY: a tape has the regions that its program states, for all its rows and steps.
        let done = unsafe { self.device.launch_blocks(wide.kernel, &wide.blocks(rows), &call) };
        done.map_err(|fault| fault.of(&wide.name))
    }

    /// How both directions are mapped, as plans say it.
    #[cfg(test)]
    pub(super) fn text(&self, arch: &Arch) -> [String; 2] {
        self.mapping.each_ref().map(|m| m.text(arch))
    }

    fn words(&self) -> String {
        let [f, b] = self.mapping.each_ref().map(|m| match m.cluster() {
            1 => format!("one block of {} threads", m.threads()),
            c => format!("{c} blocks of {} threads", m.threads()),
        });
        let states = self.mapping[1].states().map_or(String::new(), |s| format!("; states {s}"));
        format!("a sequence is one launch, {f} for a row forward, {b} backward{states}")
    }
}

/// What the solver must know of a device.
pub(super) fn arch(device: &Arc<dyn Device>) -> Result<Arch, Fault> {
    let about = device.about();
    let mut resident = [about.multiprocessors, 0, 0, 0];
    if about.clusters {
        let (module, _) = cache::load(&**device, cache::folder(), MOVES, "moves")?;
        let asked = device.kernel(module, "occupied").and_then(|kernel| {
            for (cluster, count) in CLUSTERS.into_iter().zip(&mut resident).skip(1) {
                // As much shared memory as there is: each block has a multiprocessor of its own.
                let blocks = Blocks {
                    grid: [cluster as u32, 1],
                    threads: 256,
                    cluster: cluster as u32,
                    shared: about.shared as u32,
                };
                *count = device.resident(kernel, &blocks)?;
            }
            Ok(())
        });
        device.unload(module);
        asked?;
    }
    Ok(Arch::of(&about.architecture, about.multiprocessors, about.shared, resident))
}

/// Decides which kernels run a batch of so many rows; those of whole sequences are loaded.
///
/// # Errors
/// If sequences are demanded and cannot be had, with the reason; if the device fails.
pub(super) fn choose(
    device: &Arc<dyn Device>,
    wanted: Tier,
    (program, spec): (&Program, &Spec<'_>),
    batch: usize,
) -> Result<(Option<Whole>, Route), Fault> {
    let steps = |why: String| (None, Route { tier: 1, why: format!("a kernel for each step, {why}") });
    if wanted == Tier::Steps {
        return Ok(steps("as asked for".to_owned()));
    }
    let asked = cuda::Device::new(arch(device)?, batch.max(1));
    let refusal = match cuda::map_sequences(program, spec, &asked) {
        Ok(mapping) => {
            let source = cuda::emit_whole(program, spec, &mapping);
            let whole = Whole::load(device, &source, mapping, spec)?;
            match whole.runs()? {
                None => {
                    let why = whole.words();
                    return Ok((Some(whole), Route { tier: 2, why }));
                }
                Some(why) => why,
            }
        }
        Err(why) => why.to_string(),
    };
    match wanted {
        Tier::Auto | Tier::Steps => Ok(steps(format!("for a whole sequence does not fit: {refusal}"))),
        Tier::Sequences => Err(Fault::new(
            super::FaultKind::Unmapped,
            format!("`{}` has no kernels of whole sequences on this device: {refusal}", spec.name),
        )
        .help("use --tier 1, which runs every model, or --tier auto")),
    }
}
