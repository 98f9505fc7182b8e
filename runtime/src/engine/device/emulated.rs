//! A device that is none: CUDA C compiled for this processor with the emulator of the compiler, and loaded.
//!
//! For tests, and for whoever wants to see the host's side at work without a GPU: very slow. Memory that is
//! allocated is full of NaNs; threads run in an order that changes from launch to launch.

use super::{
    About, Address, Blocks, Call, Device, Fault, FaultKind, Graph, Kernel, Memory, Module, Move, TapeArgs,
};
use super::{At, Span, fault::FaultKind::Image};
use compiler::back::cuda::{Arch, EMULATOR};
use std::collections::{BTreeMap, HashMap};
use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::process::Command;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread::{self, ThreadId};

/// What the C++ compiler is told.
const FLAGS: [&str; 6] = ["-O1", "-std=c++17", "-ffp-contract=off", "-shared", "-fPIC", "-xc++"];

/// Bytes that the emulated device has, unless it is told otherwise.
const MEMORY: u64 = 4 << 30;

/// The device whose limits it has, unless it is told otherwise.
const LIKE: &str = "sm_90a";

type Step = unsafe extern "C" fn(TapeArgs, At);
type Sequence = unsafe extern "C" fn(TapeArgs, Span);
type Hoisted = unsafe extern "C" fn(TapeArgs, At, c_int, c_int, Address);
type AddRows = unsafe extern "C" fn(Address, c_int, c_int, Address);
type Moves = unsafe extern "C" fn(Move);
type Kept = unsafe extern "C" fn(Address, c_int);
type Thread = unsafe extern "C" fn(*const c_void);
type Emulate = unsafe extern "C" fn(u32, u32, u32, u32, u64, Thread, *const c_void) -> *const c_char;

unsafe extern "C" {
    fn dlopen(path: *const c_char, flags: c_int) -> *mut c_void;
    fn dlsym(library: *mut c_void, name: *const c_char) -> *mut c_void;
    fn dlclose(library: *mut c_void) -> c_int;
    fn dlerror() -> *const c_char;
}

/// The device.
pub struct Emulated {
    about: About,
    compiler: String,
    /// Whose limits it has.
    arch: Arch,
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    /// Libraries by their handles.
    libraries: BTreeMap<u64, Emulate>,
    /// Functions, and the libraries that they are of.
    kernels: Vec<(usize, u64)>,
    /// Bytes by address.
    memory: BTreeMap<Address, usize>,
    limit: u64,
    /// What each thread is recording: models that share the device do not disturb each other.
    recordings: HashMap<ThreadId, Vec<Work>>,
    graphs: BTreeMap<u64, Vec<Work>>,
    /// Launches so far, the seeds of the order of threads.
    launches: u64,
    /// Graphs so far.
    recorded: u64,
}

/// What can be recorded.
#[derive(Clone, Copy)]
enum Work {
    Copy(Address, Address, usize),
    Clear(Address, usize),
    Launch(Kernel, Blocks, Call),
}

/// What every emulated thread does.
unsafe extern "C" fn thread(bundle: *const c_void) {
    // SAFETY: `Inner::run` passes a pair that outlives the launch.
    let (function, call) = unsafe { &*bundle.cast::<(usize, Call)>() };
    // SAFETY: the launch was asked for with the arguments that the kernel has.
    unsafe {
        match *call {
            Call::Step(tape, at) => std::mem::transmute::<usize, Step>(*function)(tape, at),
            Call::Sequence(tape, span) => std::mem::transmute::<usize, Sequence>(*function)(tape, span),
            Call::Hoisted(tape, at, [steps, rows], sum) => {
                std::mem::transmute::<usize, Hoisted>(*function)(tape, at, steps, rows, sum);
            }
            Call::AddRows(grads, [rows, length], sum) => {
                std::mem::transmute::<usize, AddRows>(*function)(grads, rows, length, sum);
            }
            Call::Move(moved) => std::mem::transmute::<usize, Moves>(*function)(moved),
            Call::Kept(told, number) => std::mem::transmute::<usize, Kept>(*function)(told, number),
        }
    }
}

/// The C++ compiler of this machine, and the first line that it says of itself.
fn cpp() -> Option<(String, String)> {
    let wanted = std::env::var("CXX").ok();
    let known = ["g++", "clang++", "c++"].map(str::to_owned);
    wanted.into_iter().chain(known).find_map(|name| {
        let said = Command::new(&name).arg("--version").output().ok().filter(|o| o.status.success())?;
        let first = String::from_utf8_lossy(&said.stdout).lines().next()?.to_owned();
        Some((name, first))
    })
}

/// What the loader says.
fn complaint() -> String {
    // SAFETY: the error is null or a string.
    unsafe {
        let text = dlerror();
        if text.is_null() { String::new() } else { CStr::from_ptr(text).to_string_lossy().into_owned() }
    }
}

impl Emulated {
    /// The device of this machine's C++ compiler.
    ///
    /// # Errors
    /// If there is none.
    pub fn new() -> Result<Emulated, Fault> {
        Emulated::with_memory(MEMORY)
    }

    /// The same, with so many bytes of memory.
    ///
    /// # Errors
    /// If there is no C++ compiler.
    pub fn with_memory(limit: u64) -> Result<Emulated, Fault> {
        Emulated::like(Arch::named(LIKE).unwrap_or(Arch::ALL[0]), limit)
    }

    /// The same, with the limits of a kind of device.
    ///
    /// # Errors
    /// If there is no C++ compiler.
    pub fn like(arch: Arch, limit: u64) -> Result<Emulated, Fault> {
        let Some((compiler, version)) = cpp() else {
            return Err(Fault::new(FaultKind::NoCompiler, "the emulated device needs a C++ compiler")
                .help("install g++, or name a compiler in CXX"));
        };
        let about = About {
            name: "emulated device".to_owned(),
            architecture: std::env::consts::ARCH.to_owned(),
            compiler: format!("{version} {}", FLAGS.join(" ")),
            multiprocessors: arch.processors,
            shared: arch.shared,
            clusters: 0 < arch.resident(2),
        };
        Ok(Emulated { about, compiler, arch, inner: Mutex::new(Inner { limit, ..Inner::default() }) })
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn work(&self, work: Work) -> Result<(), Fault> {
        let mut inner = self.inner();
        match inner.recordings.get_mut(&thread::current().id()) {
            Some(recording) => {
                recording.push(work);
                Ok(())
            }
            None => inner.run(work),
        }
    }

    /// Launches so far, and graphs recorded.
    pub fn counts(&self) -> (u64, u64) {
        let inner = self.inner();
        (inner.launches, inner.recorded)
    }
}

impl Inner {
    /// Whether the calling thread is recording.
    fn is_recording(&self) -> bool {
        self.recordings.contains_key(&thread::current().id())
    }

    fn run(&mut self, work: Work) -> Result<(), Fault> {
        match work {
            // SAFETY: the caller of `copy` vouches for both places; they may overlap nowhere.
            Work::Copy(to, from, bytes) => unsafe {
                std::ptr::copy(from as *const u8, to as *mut u8, bytes);
            },
            // SAFETY: the caller of `clear` vouches for the place.
            Work::Clear(at, bytes) => unsafe { std::ptr::write_bytes(at as *mut u8, 0, bytes) },
            Work::Launch(Kernel(number), Blocks { grid: [x, y], threads, cluster, .. }, call) => {
                let (function, library) = self.kernels[number as usize];
                let emulate = self.libraries[&library];
                self.launches += 1;
                let bundle = (function, call);
                let bundle = (&raw const bundle).cast::<c_void>();
                // SAFETY: the bundle outlives the launch, and the caller of `launch` vouches for the rest.
                let wrong = unsafe { emulate(x, y, cluster, threads, self.launches, thread, bundle) };
                if !wrong.is_null() {
                    // SAFETY: what is not null is a string.
                    let words = unsafe { CStr::from_ptr(wrong) }.to_string_lossy().into_owned();
                    return Err(Fault::new(FaultKind::Lost, format!("the emulated device failed: {words}")));
                }
            }
        }
        Ok(())
    }
}

/// A file as a fault.
fn io(what: &str, error: &std::io::Error) -> Fault {
    Fault::new(FaultKind::NoCompiler, format!("the emulated device cannot {what}: {error}"))
}

impl Device for Emulated {
    fn about(&self) -> &About {
        &self.about
    }

    fn memory(&self) -> Result<Memory, Fault> {
        let inner = self.inner();
        let used: u64 = inner.memory.values().map(|n| *n as u64).sum();
        Ok(Memory { free: inner.limit.saturating_sub(used), total: inner.limit })
    }

    fn compile(&self, source: &str, name: &str) -> Result<Vec<u8>, Fault> {
        let folder = tempfile::tempdir().map_err(|e| io("make a folder", &e))?;
        let at = |file: &str| folder.path().join(file);
        let write = |file: &str, text: &str| {
            std::fs::write(at(file), text).map_err(|e| io("write a source", &e)).map(|()| at(file))
        };
        let header = write("emulator.h", EMULATOR)?;
        let text = write("source.cu", source)?;
        let library = at("kernels.so");
        let done = Command::new(&self.compiler)
            .args(FLAGS)
            .arg("-include")
            .args([&header, &text])
            .arg("-o")
            .arg(&library)
            .output()
            .map_err(|e| io("start the compiler", &e))?;
        if !done.status.success() {
            let log = String::from_utf8_lossy(&done.stderr);
            return Err(super::nvrtc::refusal(name, source, &log));
        }
        std::fs::read(&library).map_err(|e| io("read what was compiled", &e))
    }

    fn load(&self, image: &[u8]) -> Result<Module, Fault> {
        let folder = tempfile::tempdir().map_err(|e| io("make a folder", &e))?;
        let path = folder.path().join("kernels.so");
        std::fs::write(&path, image).map_err(|e| io("write a library", &e))?;
        let name = CString::new(path.display().to_string())
            .map_err(|_| Fault::new(Image, "a folder has a name with NUL"))?;
        // SAFETY: the library has no code that runs when it is loaded but that of the C library.
        let library = unsafe { dlopen(name.as_ptr(), 2) };
        if library.is_null() {
            return Err(Fault::new(Image, format!("compiled kernels cannot be loaded: {}", complaint())));
        }
        // SAFETY: the library is open.
        let symbol = unsafe { dlsym(library, c"emulate".as_ptr()) };
        if symbol.is_null() {
            return Err(Fault::new(Image, format!("compiled kernels cannot be loaded: {}", complaint())));
        }
        // SAFETY: the emulator declares it so.
        let emulate = unsafe { std::mem::transmute::<*mut c_void, Emulate>(symbol) };
        let handle = library as u64;
        self.inner().libraries.insert(handle, emulate);
        Ok(Module(handle))
    }

    fn unload(&self, module: Module) {
        self.inner().libraries.remove(&module.0);
        // SAFETY: the library was opened by `load`, and none of its code runs.
        unsafe { dlclose(module.0 as *mut c_void) };
    }

    fn kernel(&self, module: Module, name: &str) -> Result<Kernel, Fault> {
        let text = CString::new(name).map_err(|_| Fault::new(Image, "a kernel has a name with NUL"))?;
        // SAFETY: the library is open.
        let symbol = unsafe { dlsym(module.0 as *mut c_void, text.as_ptr()) };
        if symbol.is_null() {
            return Err(Fault::new(Image, format!("compiled kernels have no `{name}`")));
        }
        let mut inner = self.inner();
        inner.kernels.push((symbol as usize, module.0));
        Ok(Kernel(inner.kernels.len() as u64 - 1))
    }

    fn allocate(&self, bytes: usize) -> Result<Address, Fault> {
        let Memory { free, .. } = self.memory()?;
        let words = bytes.div_ceil(8).max(1);
        if (words as u64) * 8 > free {
            let message = format!("the emulated device has no {bytes} bytes left, but {free}");
            return Err(Fault::new(FaultKind::OutOfMemory, message));
        }
        // Every half of a word is a NaN, and so is the word.
        let memory = vec![u64::MAX; words].into_boxed_slice();
        let at = Box::into_raw(memory).cast::<u64>() as Address;
        self.inner().memory.insert(at, words * 8);
        Ok(at)
    }

    unsafe fn free(&self, at: Address) {
        if let Some(bytes) = self.inner().memory.remove(&at) {
            let words = std::ptr::slice_from_raw_parts_mut(at as *mut u64, bytes / 8);
            // SAFETY: `allocate` made this box.
            drop(unsafe { Box::from_raw(words) });
        }
    }

    unsafe fn upload(&self, to: Address, from: &[u8]) -> Result<(), Fault> {
        assert!(!self.inner().is_recording(), "transfers are not recorded");
        // SAFETY: the caller vouches for the place.
        unsafe { std::ptr::copy_nonoverlapping(from.as_ptr(), to as *mut u8, from.len()) };
        Ok(())
    }

    unsafe fn download(&self, from: Address, to: &mut [u8]) -> Result<(), Fault> {
        assert!(!self.inner().is_recording(), "transfers are not recorded");
        // SAFETY: the caller vouches for the place.
        unsafe { std::ptr::copy_nonoverlapping(from as *const u8, to.as_mut_ptr(), to.len()) };
        Ok(())
    }

    fn wait(&self) -> Result<(), Fault> {
        Ok(())
    }

    fn door(&self) -> Option<u64> {
        None
    }

    fn admit(&self) -> Result<(), Fault> {
        Ok(())
    }

    unsafe fn copy(&self, to: Address, from: Address, bytes: usize) -> Result<(), Fault> {
        self.work(Work::Copy(to, from, bytes))
    }

    unsafe fn clear(&self, at: Address, bytes: usize) -> Result<(), Fault> {
        self.work(Work::Clear(at, bytes))
    }

    unsafe fn launch_blocks(&self, kernel: Kernel, blocks: &Blocks, call: &Call) -> Result<(), Fault> {
        self.work(Work::Launch(kernel, *blocks, *call))
    }

    fn resident(&self, _: Kernel, blocks: &Blocks) -> Result<usize, Fault> {
        let fits = blocks.shared as usize <= self.arch.shared && blocks.threads <= 1024;
        Ok(if fits { self.arch.resident(blocks.cluster as usize) } else { 0 })
    }

    fn record(&self) -> Result<(), Fault> {
        let mut inner = self.inner();
        assert!(!inner.is_recording(), "one recording at a time");
        inner.recordings.insert(thread::current().id(), vec![]);
        Ok(())
    }

    fn recorded(&self) -> Result<Graph, Fault> {
        let mut inner = self.inner();
        let work = inner.recordings.remove(&thread::current().id()).unwrap_or_default();
        inner.recorded += 1;
        let number = inner.recorded;
        inner.graphs.insert(number, work);
        Ok(Graph(number))
    }

    unsafe fn replay(&self, graph: Graph) -> Result<(), Fault> {
        let mut inner = self.inner();
        let work = inner.graphs.get(&graph.0).cloned().unwrap_or_default();
        work.into_iter().try_for_each(|w| inner.run(w))
    }

    fn forget(&self, graph: Graph) {
        self.inner().graphs.remove(&graph.0);
    }
}
