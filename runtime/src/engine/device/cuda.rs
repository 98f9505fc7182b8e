//! A CUDA device: the driver, loaded when it is asked for, so that the same program runs where there is none.
//!
//! All work goes into one stream. Sequences are recorded as CUDA graphs by capturing that stream, so nobody else may touch
//! it: whoever lends an array makes another stream, the door, wait for what he has still to do, and work waits for the
//! door when it is told to ([`Device::admit`]).
//!
//! The context is the primary one of the device, which all libraries of a process share: what they have allocated can
//! be read here. A thread that comes in leaves with the context it came with, so that nobody's current device changes.

use super::{
    About, Address, At, Blocks, Call, Device, Fault, FaultKind, Graph, Kernel, Memory, Module, nvrtc,
};
use cudarc::driver::sys::{self, CUresult};
use cudarc::driver::{DriverError, result};
use std::ffi::{CString, c_int, c_void};
use std::ptr::from_ref;

/// The oldest driver that is used, as the driver counts: CUDA 12.0.
const OLDEST: i32 = 12_000;

/// A device and its stream.
pub(super) struct Cuda {
    about: About,
    device: sys::CUdevice,
    context: sys::CUcontext,
    stream: sys::CUstream,
    door: sys::CUstream,
    /// Passes from the door to the stream.
    event: sys::CUevent,
}

// SAFETY: contexts and streams may be used from any thread that makes the context current, as every call does.
unsafe impl Send for Cuda {}
// SAFETY: as above; the driver locks.
unsafe impl Sync for Cuda {}

/// The driver's word for an error, and its sentence.
fn words(e: DriverError) -> String {
    let text = |t: Result<&std::ffi::CStr, DriverError>| {
        t.map_or_else(|_| format!("error {}", e.0 as u32), |t| t.to_string_lossy().into_owned())
    };
    format!("{} ({})", text(e.error_string()), text(e.error_name()))
}

fn lost(doing: &'static str) -> impl Fn(DriverError) -> Fault {
    move |e| match e.0 {
        CUresult::CUDA_ERROR_OUT_OF_MEMORY => {
            Fault::new(FaultKind::OutOfMemory, format!("the CUDA device is out of memory while {doing}"))
                .help("another program may have taken it since it was checked: nvidia-smi shows which")
                .help("make the batch or the sequence smaller, or use --device cpu")
        }
        _ => Fault::new(FaultKind::Lost, format!("the CUDA device failed while {doing}: {}", words(e)))
            .help("nvidia-smi shows whether the device is healthy; the CPU runs the model: --device cpu"),
    }
}

/// Whether there is a driver that can be used, and how many devices it has.
///
/// # Errors
/// Why not.
pub(super) fn count() -> Result<u32, Fault> {
    // SAFETY: it looks for a library and calls nothing.
    if !unsafe { sys::is_culib_present() } {
        return Err(Fault::new(FaultKind::NoDriver, "there is no CUDA driver on this machine")
            .help("install NVIDIA's driver (libcuda.so), or use --device cpu"));
    }
    let has = |symbol: &[u8]| {
        // SAFETY: the library is there; the symbol is looked for and not called.
        unsafe { sys::culib().get::<unsafe extern "C" fn()>(symbol).is_ok() }
    };
    // All that is called later is part of every driver that is new enough.
    if !has(b"cuDriverGetVersion") || !has(b"cuInit") {
        return Err(Fault::new(FaultKind::NoDriver, "libcuda.so is no CUDA driver: it lacks cuDriverGetVersion")
            .help("look for another file of that name in LD_LIBRARY_PATH, install NVIDIA's driver, or use --device cpu"));
    }
    let mut version = 0;
    // SAFETY: the place is there.
    unsafe { sys::cuDriverGetVersion(&raw mut version) }.result().map_err(lost("asking for its version"))?;
    check_driver(version, OLDEST)?;
    match result::init() {
        Ok(()) => {}
        Err(DriverError(CUresult::CUDA_ERROR_NO_DEVICE)) => return Err(none()),
        Err(DriverError(CUresult::CUDA_ERROR_SYSTEM_DRIVER_MISMATCH)) => {
            return Err(Fault::new(
                FaultKind::OldDriver,
                "the CUDA library and the driver in the kernel are of different versions",
            )
            .help("restart the machine after an update of the driver, or use --device cpu"));
        }
        Err(e) => return Err(lost("starting the driver")(e)),
    }
    let found = result::device::get_count().map_err(lost("counting devices"))?;
    if found <= 0 { Err(none()) } else { Ok(found as u32) }
}

fn none() -> Fault {
    Fault::new(FaultKind::NoDevice, "the CUDA driver finds no device")
        .help("check CUDA_VISIBLE_DEVICES and nvidia-smi, or use --device cpu")
}

/// Refuses a driver that is older than what is needed.
fn check_driver(version: i32, needed: i32) -> Result<(), Fault> {
    let text = |v: i32| format!("{}.{}", v / 1000, v % 1000 / 10);
    if version >= needed {
        return Ok(());
    }
    let message = format!(
        "the CUDA driver is too old: it knows CUDA {}, and {} is needed",
        text(version),
        text(needed)
    );
    Err(Fault::new(FaultKind::OldDriver, message).help("update NVIDIA's driver, or use --device cpu"))
}

/// Refuses an architecture that the compiler does not know.
fn check_architecture(device: &str, (major, minor): (i32, i32), known: &[i32]) -> Result<(), Fault> {
    let number = 10 * major + minor;
    if known.contains(&number) {
        return Ok(());
    }
    let known: Vec<String> = known.iter().map(|n| format!("sm_{n}")).collect();
    let message = format!(
        "{device} has compute capability {major}.{minor}, for which the installed NVRTC cannot compile; it knows {}",
        known.join(", ")
    );
    Err(Fault::new(FaultKind::Architecture, message).help(
        "install another version of NVRTC, choose another device with --device cuda:N, or use --device cpu",
    ))
}

impl Cuda {
    /// The device of that number.
    ///
    /// # Errors
    /// If driver, device or compiler are missing or do not go together.
    pub(super) fn new(ordinal: u32) -> Result<Cuda, Fault> {
        let found = count()?;
        if ordinal >= found {
            let message = format!("there is no CUDA device {ordinal}; there are {found}, counted from zero");
            return Err(Fault::new(FaultKind::NoDevice, message).help("--device cuda:0 is the first"));
        }
        let device = result::device::get(ordinal as c_int).map_err(lost("opening it"))?;
        let name = result::device::get_name(device).map_err(lost("asking for its name"))?;
        let attribute = |a: sys::CUdevice_attribute| {
            // SAFETY: the device is there.
            unsafe { result::device::get_attribute(device, a) }.map_err(lost("asking what it is"))
        };
        use sys::CUdevice_attribute_enum as Attribute;
        let major = attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?;
        let minor = attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?;
        let multiprocessors = attribute(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)? as usize;
        let shared = attribute(Attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)? as usize;
        let clusters = attribute(Attribute::CU_DEVICE_ATTRIBUTE_CLUSTER_LAUNCH)? != 0;
        let version = nvrtc::version()?;
        let mut driver = 0;
        // SAFETY: the place is there.
        unsafe { sys::cuDriverGetVersion(&raw mut driver) }
            .result()
            .map_err(lost("asking for its version"))?;
        // Machine code of a major version runs on drivers of that version.
        check_driver(driver, 1000 * version.0)?;
        check_architecture(&name, (major, minor), &nvrtc::architectures()?)?;
        let about = About {
            name,
            architecture: format!("sm_{major}{minor}"),
            compiler: format!("NVRTC {}.{} {}", version.0, version.1, compiler::back::cuda::FLAGS.join(" ")),
            multiprocessors,
            shared,
            clusters,
        };
        // SAFETY: the device is there; the context is released when the device is dropped.
        let context = unsafe { result::primary_ctx::retain(device) }.map_err(lost("opening it"))?;
        let _visit = Visit::new(context)?;
        let stream = || {
            result::stream::create(result::stream::StreamKind::NonBlocking).map_err(lost("opening a stream"))
        };
        let event = result::event::create(sys::CUevent_flags::CU_EVENT_DISABLE_TIMING);
        let event = event.map_err(lost("opening a stream"))?;
        Ok(Cuda { about, device, context, stream: stream()?, door: stream()?, event })
    }

    /// Makes the context that of this thread, as long as the visit lives.
    fn enter(&self) -> Result<Visit, Fault> {
        Visit::new(self.context)
    }
}

/// A thread in the context of a device; when it is dropped, the thread has the context that it had.
struct Visit {
    /// Null for none; nothing if it was the same.
    before: Option<sys::CUcontext>,
}

impl Visit {
    /// The context must be retained as long as this lives.
    fn new(context: sys::CUcontext) -> Result<Visit, Fault> {
        let before = result::ctx::get_current().map_err(lost("entering its context"))?;
        let before = before.unwrap_or(std::ptr::null_mut());
        if before == context {
            return Ok(Visit { before: None });
        }
        // SAFETY: the context is retained.
        unsafe { result::ctx::set_current(context) }.map_err(lost("entering its context"))?;
        Ok(Visit { before: Some(before) })
    }
}

impl Drop for Visit {
    fn drop(&mut self) {
        if let Some(before) = self.before {
            // SAFETY: it was the context of this thread, or null.
            let _ = unsafe { result::ctx::set_current(before) };
        }
    }
}

impl Drop for Cuda {
    fn drop(&mut self) {
        let _visit = self.enter();
        // SAFETY: all were made by `new`; nothing else uses them any more.
        unsafe {
            let _ = result::event::destroy(self.event);
            let _ = result::stream::destroy(self.door);
            let _ = result::stream::destroy(self.stream);
            let _ = result::primary_ctx::release(self.device);
        }
    }
}

impl Device for Cuda {
    fn about(&self) -> &About {
        &self.about
    }

    fn memory(&self) -> Result<Memory, Fault> {
        let _visit = self.enter()?;
        let (free, total) = result::mem_get_info().map_err(lost("asking for its memory"))?;
        Ok(Memory { free: free as u64, total: total as u64 })
    }

    fn compile(&self, source: &str, name: &str) -> Result<Vec<u8>, Fault> {
        nvrtc::compile(source, name, &self.about.architecture)
    }

    fn load(&self, image: &[u8]) -> Result<Module, Fault> {
        let _visit = self.enter()?;
        // SAFETY: the driver checks what it is given, and reads as far as the image says; images come from NVRTC
        // or from the cache, which has checked its hash.
        let module = unsafe { result::module::load_data(image.as_ptr().cast()) }.map_err(|e| {
            Fault::new(FaultKind::Image, format!("compiled kernels cannot be loaded: {}", words(e)))
                .help("update NVIDIA's driver, or use --device cpu")
        })?;
        Ok(Module(module as u64))
    }

    fn unload(&self, Module(module): Module) {
        let _visit = self.enter();
        // SAFETY: `load` gave it, and its kernels are not used any more.
        let _ = unsafe { result::module::unload(module as sys::CUmodule) };
    }

    fn kernel(&self, Module(module): Module, name: &str) -> Result<Kernel, Fault> {
        let _visit = self.enter()?;
        let missing = || Fault::new(FaultKind::Image, format!("compiled kernels have no `{name}`"));
        let text = CString::new(name).map_err(|_| missing())?;
        // SAFETY: `load` gave the module.
        let found = unsafe { result::module::get_function(module as sys::CUmodule, text) };
        Ok(Kernel(found.map_err(|_| missing())? as u64))
    }

    fn allocate(&self, bytes: usize) -> Result<Address, Fault> {
        let _visit = self.enter()?;
        // SAFETY: the memory is written before it is read.
        let at = unsafe { result::malloc_sync(bytes) }.map_err(lost("taking memory"))?;
        Ok(at as Address)
    }

    unsafe fn free(&self, at: Address) {
        let _visit = self.enter();
        // SAFETY: `allocate` gave it; freeing waits for work under way.
        let _ = unsafe { result::free_sync(at as sys::CUdeviceptr) };
    }

    unsafe fn upload(&self, to: Address, from: &[u8]) -> Result<(), Fault> {
        let _visit = self.enter()?;
        // SAFETY: the caller vouches for the place. The host's memory is pageable, so that the driver has copied it
        // when the call returns.
        unsafe { result::memcpy_htod_async(to as sys::CUdeviceptr, from, self.stream) }
            .map_err(lost("copying to it"))
    }

    unsafe fn download(&self, from: Address, to: &mut [u8]) -> Result<(), Fault> {
        let _visit = self.enter()?;
        // SAFETY: the caller vouches for the place, and the stream is waited for.
        unsafe {
            result::memcpy_dtoh_async(to, from as sys::CUdeviceptr, self.stream)
                .map_err(lost("copying from it"))?;
            result::stream::synchronize(self.stream).map_err(lost("running kernels"))
        }
    }

    fn wait(&self) -> Result<(), Fault> {
        let _visit = self.enter()?;
        // SAFETY: the stream lives.
        unsafe { result::stream::synchronize(self.stream) }.map_err(lost("running kernels"))
    }

    fn door(&self) -> Option<u64> {
        Some(self.door as u64)
    }

    fn admit(&self) -> Result<(), Fault> {
        let _visit = self.enter()?;
        let flags = sys::CUevent_wait_flags::CU_EVENT_WAIT_DEFAULT;
        // SAFETY: streams and event live.
        unsafe {
            result::event::record(self.event, self.door).map_err(lost("waiting for others"))?;
            result::stream::wait_event(self.stream, self.event, flags).map_err(lost("waiting for others"))
        }
    }

    unsafe fn copy(&self, to: Address, from: Address, bytes: usize) -> Result<(), Fault> {
        let _visit = self.enter()?;
        let (to, from) = (to as sys::CUdeviceptr, from as sys::CUdeviceptr);
        // SAFETY: the caller vouches for both places.
        unsafe { result::memcpy_dtod_async(to, from, bytes, self.stream) }.map_err(lost("copying"))
    }

    unsafe fn clear(&self, at: Address, bytes: usize) -> Result<(), Fault> {
        let _visit = self.enter()?;
        // SAFETY: the caller vouches for the place.
        unsafe { result::memset_d8_async(at as sys::CUdeviceptr, 0, bytes, self.stream) }
            .map_err(lost("clearing"))
    }

    unsafe fn launch_blocks(&self, kernel: Kernel, blocks: &Blocks, call: &Call) -> Result<(), Fault> {
        let _visit = self.enter()?;
        let run = |arguments: &mut [*mut c_void]| {
            let mut cluster = cluster_of(blocks);
            let config = config(blocks, self.stream, &mut cluster);
            let kernel = kernel.0 as sys::CUfunction;
            // SAFETY: the caller vouches for the arguments; the driver copies them before it returns, and the
            // attribute outlives the call.
            unsafe { sys::cuLaunchKernelEx(&raw const config, kernel, arguments.as_mut_ptr(), no_extra()) }
                .result()
                .map_err(lost("launching a kernel"))
        };
        match call {
            Call::Step(tape, at) => run(&mut [place(tape), place::<At>(at)]),
            Call::Sequence(tape, span) => run(&mut [place(tape), place(span)]),
            Call::Hoisted(tape, at, [steps, rows], sum) => {
                run(&mut [place(tape), place(at), place(steps), place(rows), place(sum)])
            }
            Call::AddRows(grads, [rows, length], sum) => {
                run(&mut [place(grads), place(rows), place(length), place(sum)])
            }
            Call::Move(moved) => run(&mut [place(moved)]),
            Call::Kept(told, number) => run(&mut [place(told), place(number)]),
        }
    }

    fn resident(&self, kernel: Kernel, blocks: &Blocks) -> Result<usize, Fault> {
        let _visit = self.enter()?;
        let kernel = kernel.0 as sys::CUfunction;
        let most = sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
        // SAFETY: `kernel` gave it, and its module is loaded.
        match unsafe { sys::cuFuncSetAttribute(kernel, most, blocks.shared as c_int) } {
            CUresult::CUDA_SUCCESS => {}
            // The kernel's own shared memory and this together are more than there is.
            CUresult::CUDA_ERROR_INVALID_VALUE => return Ok(0),
            other => other.result().map_err(lost("asking for shared memory"))?,
        }
        if PORTABLE < blocks.cluster {
            let allowed = sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_NON_PORTABLE_CLUSTER_SIZE_ALLOWED;
            // SAFETY: as above.
            match unsafe { sys::cuFuncSetAttribute(kernel, allowed, 1) } {
                CUresult::CUDA_SUCCESS => {}
                // A device, or a driver, that knows no such clusters.
                CUresult::CUDA_ERROR_INVALID_VALUE | CUresult::CUDA_ERROR_NOT_SUPPORTED => return Ok(0),
                other => other.result().map_err(lost("asking for large clusters"))?,
            }
        }
        let mut found: c_int = 0;
        let asked = match self.about.clusters {
            true => {
                let mut cluster = cluster_of(blocks);
                let config = config(blocks, self.stream, &mut cluster);
                // SAFETY: all places are there, and the attribute outlives the call.
                unsafe { sys::cuOccupancyMaxActiveClusters(&raw mut found, kernel, &raw const config) }
            }
            false => {
                let (threads, shared) = (blocks.threads as c_int, blocks.shared as usize);
                // SAFETY: the place is there.
                unsafe {
                    sys::cuOccupancyMaxActiveBlocksPerMultiprocessor(&raw mut found, kernel, threads, shared)
                }
            }
        };
        match asked {
            CUresult::CUDA_SUCCESS if self.about.clusters => Ok(found.max(0) as usize),
            CUresult::CUDA_SUCCESS => Ok(found.max(0) as usize * self.about.multiprocessors),
            CUresult::CUDA_ERROR_INVALID_CLUSTER_SIZE => Ok(0),
            CUresult::CUDA_ERROR_INVALID_VALUE if PORTABLE < blocks.cluster => Ok(0),
            other => other.result().map_err(lost("asking how many clusters it runs")).map(|()| 0),
        }
    }

    fn record(&self) -> Result<(), Fault> {
        let _visit = self.enter()?;
        let mode = sys::CUstreamCaptureMode_enum::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        // SAFETY: the stream lives.
        unsafe { result::stream::begin_capture(self.stream, mode) }.map_err(lost("recording"))
    }

    fn recorded(&self) -> Result<Graph, Fault> {
        let _visit = self.enter()?;
        // SAFETY: the stream is being captured; the graph is not used once it is instantiated.
        unsafe {
            let graph = result::stream::end_capture(self.stream).map_err(lost("recording"))?;
            let mut ready = std::ptr::null_mut();
            let done = sys::cuGraphInstantiateWithFlags(&raw mut ready, graph, 0).result();
            let _ = result::graph::destroy(graph);
            done.map_err(lost("preparing a recording"))?;
            Ok(Graph(ready as u64))
        }
    }

    unsafe fn replay(&self, Graph(graph): Graph) -> Result<(), Fault> {
        let _visit = self.enter()?;
        // SAFETY: `recorded` gave it, and the caller vouches for what is in it.
        unsafe { result::graph::launch(graph as sys::CUgraphExec, self.stream) }
            .map_err(lost("running a recording"))
    }

    fn forget(&self, Graph(graph): Graph) {
        let _visit = self.enter();
        // SAFETY: `recorded` gave it; the driver keeps what is still running.
        let _ = unsafe { result::graph::exec_destroy(graph as sys::CUgraphExec) };
    }
}

/// Blocks of a cluster that every device with clusters can have; a kernel must say that it takes more.
const PORTABLE: u32 = 8;

/// The attribute of a launch that says how many blocks a cluster has.
fn cluster_of(blocks: &Blocks) -> sys::CUlaunchAttribute {
    let size = sys::CUlaunchAttributeValue_union__bindgen_ty_1 { x: blocks.cluster, y: 1, z: 1 };
    sys::CUlaunchAttribute {
        id: sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION,
        pad: [0; 4],
        value: sys::CUlaunchAttributeValue { clusterDim: size },
    }
}

/// A launch. Blocks that are alone have no attribute: devices before sm_90 know no clusters.
fn config(
    blocks: &Blocks,
    stream: sys::CUstream,
    cluster: &mut sys::CUlaunchAttribute,
) -> sys::CUlaunchConfig {
    let [x, y] = blocks.grid;
    let is_alone = blocks.cluster == 1;
    sys::CUlaunchConfig {
        gridDimX: x,
        gridDimY: y,
        gridDimZ: 1,
        blockDimX: blocks.threads,
        blockDimY: 1,
        blockDimZ: 1,
        sharedMemBytes: blocks.shared,
        hStream: stream,
        attrs: if is_alone { std::ptr::null_mut() } else { cluster },
        numAttrs: u32::from(!is_alone),
    }
}

/// Arguments come as a list of places, not packed.
fn no_extra() -> *mut *mut c_void {
    std::ptr::null_mut()
}

/// Where an argument lies.
fn place<T>(argument: &T) -> *mut c_void {
    from_ref(argument).cast_mut().cast()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn drivers_and_architectures_are_judged() {
        assert!(check_driver(13_000, 12_000).is_ok());
        let old = check_driver(11_080, 12_000).expect_err("too old");
        assert_eq!(old.kind, FaultKind::OldDriver);
        assert_eq!(old.message, "the CUDA driver is too old: it knows CUDA 11.8, and 12.0 is needed");
        assert!(check_architecture("x", (9, 0), &[80, 90]).is_ok());
        let wrong = check_architecture("Tesla P100", (6, 0), &[75, 90]).expect_err("unknown");
        assert_eq!(wrong.kind, FaultKind::Architecture);
        assert!(wrong.message.contains("6.0") && wrong.message.ends_with("it knows sm_75, sm_90"));
    }

    #[test]
    fn out_of_memory_is_told_apart() {
        let fault = |e| lost("taking memory")(DriverError(e)).kind;
        assert_eq!(fault(CUresult::CUDA_ERROR_OUT_OF_MEMORY), FaultKind::OutOfMemory);
    }

    #[test]
    fn a_machine_without_a_driver_is_told_so() {
        match count() {
            Err(fault) if fault.kind == FaultKind::NoDriver => {
                assert!(fault.help[0].contains("--device cpu"))
            }
            Err(fault) => assert!(!fault.help.is_empty(), "{fault}"),
            Ok(devices) => assert!(devices > 0),
        }
    }
}
