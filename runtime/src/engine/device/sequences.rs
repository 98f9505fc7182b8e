//! Kernels that take whole sequences, beside those of single steps: which of the two take a direction on a device.
//!
//! Whether a sequence can be mapped to the device is for the compiler's solver to say, and which kernels are taken for
//! its [`Candidates::choose`], which `bpmc plan --target cuda` asks, too; here the device is asked
//! for the numbers that both need, the kernels are compiled as a module of their own, and launched. The driver has the
//! last word: where it finds no room for a kernel, its direction is chosen again without it. What
//! stands apart from the loop over time, hoisted gradients and the sum over rows stay with [`super::code`].

use super::code::MOVES;
use super::{Blocks, Call, Device, Fault, FaultKind, Kernel, Module, Span, TapeArgs, cache};
pub use compiler::back::cuda::Route;
use compiler::back::cuda::{self, Arch, CLUSTERS, Candidates, Choice, Launch, Mapping, Refusal, Spec, Wish};
use compiler::loops::Program;
use std::sync::Arc;

/// Which kernels are wanted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Tier {
    /// Direction by direction those that are estimated to take less time.
    Auto,
    /// Of single steps.
    #[default]
    #[value(name = "1")]
    Steps,
    /// Of whole sequences, or an error.
    #[value(name = "2")]
    Sequences,
    /// Of single steps forward, of whole sequences backward, or an error.
    #[value(name = "1,2")]
    ForwardSteps,
    /// Of whole sequences forward, of single steps backward, or an error.
    #[value(name = "2,1")]
    BackwardSteps,
}

impl Tier {
    /// By its name on the command line.
    pub fn named(name: &str) -> Option<Tier> {
        <Tier as clap::ValueEnum>::from_str(name, false).ok()
    }

    /// What it asks for. `one_by_one`: whether steps come one by one, so that no sequence is known going forward.
    pub fn wish(self, one_by_one: bool) -> Wish {
        use cuda::Tier::{Sequences, Steps};
        let tiers = match self {
            Tier::Auto => None,
            Tier::Steps => Some([Steps, Steps]),
            Tier::Sequences => Some([Sequences, Sequences]),
            Tier::ForwardSteps => Some([Steps, Sequences]),
            Tier::BackwardSteps => Some([Sequences, Steps]),
        };
        Wish { tiers, one_by_one }
    }
}

/// The kernels of whole sequences of a model on a device, in the directions that take them.
pub(in crate::engine) struct Whole {
    device: Arc<dyn Device>,
    module: Module,
    /// Forward and backward.
    kernels: [Option<Wide>; 2],
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
    mapping: Mapping,
}

impl Wide {
    fn blocks(&self, rows: usize) -> Blocks {
        let (cluster, threads, shared) = (self.cluster, self.threads, self.shared);
        Blocks { grid: [rows as u32 * cluster, 1], threads, cluster, shared }
    }

    /// Why it cannot run, if it cannot: the driver knows what compiled code takes.
    fn refused(&self, device: &Arc<dyn Device>) -> Result<Option<Refusal>, Fault> {
        let found = device.resident(self.kernel, &self.blocks(1)).map_err(|f| f.of(&self.name))?;
        let (cluster, threads, shared) = (self.cluster, self.threads, self.shared);
        Ok((found == 0).then(|| {
            Refusal(format!(
                "the driver finds no room for clusters of {cluster} blocks of {threads} threads and {shared} bytes of kernel {}",
                self.name
            ))
        }))
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
        (program, spec): (&Program, &Spec<'_>),
        mapping: [Option<&Mapping>; 2],
    ) -> Result<Whole, Fault> {
        let source = cuda::emit_whole(program, spec, mapping);
        let name = format!("{}.sequences", spec.name);
        let (module, _) = cache::load(&**device, cache::folder(), &source.text, &name)?;
        // From here on the module is given back whatever happens.
        let bytes = source.text.len();
        let mut whole = Whole { device: Arc::clone(device), module, kernels: [None, None], bytes };
        let launches = [source.sequences.forward, source.sequences.backward];
        for ((kernel, launch), mapping) in whole.kernels.iter_mut().zip(launches).zip(mapping) {
            let Some((launch, mapping)) = launch.zip(mapping) else { continue };
            *kernel = Some(wide(device, module, &launch, (mapping, spec))?);
        }
        Ok(whole)
    }

    /// Whether there is a kernel for a direction.
    pub(super) fn takes(&self, is_backward: bool) -> bool {
        self.kernels[usize::from(is_backward)].is_some()
    }

    /// Steps between checkpoints that cost least going backward; none if single steps go there.
    pub(super) fn interval(&self, steps: usize) -> Option<usize> {
        self.kernels[1].as_ref().map(|w| w.mapping.interval(steps))
    }

    /// Snapshots that going backward needs; none if single steps go there.
    pub(super) fn snapshots(&self, interval: usize) -> Option<usize> {
        self.kernels[1].as_ref().map(|w| w.mapping.snapshots(interval))
    }

    /// Bytes of source.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// All steps of a span, forward or backward, of all rows; false if single steps go there.
    pub(super) fn launch(
        &self,
        is_backward: bool,
        rows: usize,
        tape: TapeArgs,
        span: Span,
    ) -> Result<bool, Fault> {
        let Some(wide) = &self.kernels[usize::from(is_backward)] else { return Ok(false) };
        let call = Call::Sequence(tape, span);
        // SAFETY: a tape has the regions that its program states, for all its rows and steps.
        let done = unsafe { self.device.launch_blocks(wide.kernel, &wide.blocks(rows), &call) };
        done.map_err(|fault| fault.of(&wide.name))?;
        Ok(true)
    }

    /// How directions are mapped, as plans say it.
    #[cfg(test)]
    pub(super) fn text(&self, arch: &Arch) -> [Option<String>; 2] {
        self.kernels.each_ref().map(|w| w.as_ref().map(|w| w.mapping.text(arch)))
    }
}

fn wide(
    device: &Arc<dyn Device>,
    module: Module,
    launch: &Launch,
    (mapping, spec): (&Mapping, &Spec<'_>),
) -> Result<Wide, Fault> {
    Ok(Wide {
        kernel: device.kernel(module, &launch.name)?,
        name: format!("`{}` of `{}` ({})", launch.name, spec.name, spec.file),
        cluster: launch.cluster as u32,
        threads: launch.threads as u32,
        shared: launch.shared_bytes as u32,
        mapping: mapping.clone(),
    })
}

/// What the solver must know of a device.
pub(super) fn arch(device: &Arc<dyn Device>) -> Result<Arch, Fault> {
    let about = device.about();
    let mut resident = [0; CLUSTERS.len()];
    resident[0] = about.multiprocessors;
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
    Ok(Arch::of(&about.architecture, about.multiprocessors, about.shared, device.memory()?.total, resident))
}

/// Decides which kernels run a batch whose single steps are mapped so, in sequences of so many steps if that is known;
/// those of whole sequences are loaded.
///
/// # Errors
/// If sequences are demanded and cannot be had, with the reason; if the device fails.
pub(super) fn choose(
    device: &Arc<dyn Device>,
    wish: Wish,
    of: (&Program, &Spec<'_>),
    (steps, length): (Choice, usize),
) -> Result<(Option<Whole>, Route), Fault> {
    let (program, spec) = of;
    let target = cuda::Device::new(arch(device)?, steps.grid.batch).for_steps(length);
    let sequences = match wish.tiers {
        // Nobody asks the device for what is not wanted.
        Some([cuda::Tier::Steps, cuda::Tier::Steps]) => {
            [(); 2].map(|()| Err(Refusal("it was not asked for".to_owned())))
        }
        _ => cuda::map_sequences(program, spec, &target),
    };
    let mut candidates = Candidates {
        steps,
        sequences,
        states: program.matrices_len,
        keeps: target.keeps(program.matrices_len),
    };
    loop {
        let route = candidates.choose(wish).map_err(|why| unmapped(spec, &why))?;
        let mapping = candidates.taken(&route);
        if mapping.iter().all(Option::is_none) {
            return Ok((None, route));
        }
        let whole = Whole::load(device, of, mapping)?;
        let mut is_refused = false;
        for (kernel, sequence) in whole.kernels.iter().zip(&mut candidates.sequences) {
            if let Some(why) = kernel.as_ref().map_or(Ok(None), |k| k.refused(device))? {
                *sequence = Err(why);
                is_refused = true;
            }
        }
        if !is_refused {
            return Ok((Some(whole), route));
        }
    }
}

fn unmapped(spec: &Spec<'_>, why: &Refusal) -> Fault {
    let name = spec.name;
    Fault::new(
        FaultKind::Unmapped,
        format!("`{name}` has no kernels of whole sequences on this device: {why}"),
    )
    .help("use --tier 1, which runs every model, or --tier auto")
}
