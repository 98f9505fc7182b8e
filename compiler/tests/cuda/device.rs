//! A device that is none: the source of the CUDA back end, compiled for this processor with the emulator
//! and loaded.

use compiler::back::cuda::{EMULATOR, Grid, Launch, Mapping, Source, StepKernel};
use compiler::ir::Sizes;
use compiler::model::Model;
use compiler::stages::{self, Subject};
use std::collections::BTreeMap;
use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};

/// The memory of a batch, as the prelude has it.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct Tape {
    pub(crate) frames: *mut f32,
    pub(crate) adjoints: *mut f32,
    pub(crate) snapshots: *mut f32,
    pub(crate) carry: *mut f32,
    pub(crate) next: *mut f32,
    pub(crate) ends: *mut f32,
    pub(crate) grads: *mut f32,
    pub(crate) logs: *mut f32,
    pub(crate) log_bars: *mut f32,
    pub(crate) scratch: *mut f32,
    pub(crate) params: *const f32,
    pub(crate) penalty_bar: f32,
    pub(crate) rows: c_int,
}

/// The step that a kernel is launched for, as the prelude has it.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct At {
    pub(crate) frame: c_int,
    pub(crate) adjoint: c_int,
    pub(crate) snapshot: c_int,
}

/// The steps that a kernel of a whole sequence takes, as its prelude has it.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub(crate) struct Span {
    pub(crate) frame: c_int,
    pub(crate) adjoint: c_int,
    pub(crate) steps: c_int,
    pub(crate) interval: c_int,
    pub(crate) done: c_int,
    pub(crate) checkpoints: *mut f32,
}

type Sequence = unsafe extern "C" fn(Tape, Span);
type Kernel = unsafe extern "C" fn(Tape, At);
type Hoisted = unsafe extern "C" fn(Tape, At, c_int, c_int, *mut f64);
type AddRows = unsafe extern "C" fn(*const f32, c_int, c_int, *mut f64);
type Emulate = unsafe extern "C" fn(
    u32,
    u32,
    u32,
    u32,
    u64,
    unsafe extern "C" fn(*const c_void),
    *const c_void,
) -> *const c_char;

unsafe extern "C" {
    fn dlopen(path: *const c_char, flags: c_int) -> *mut c_void;
    fn dlsym(library: *mut c_void, name: *const c_char) -> *mut c_void;
    fn dlclose(library: *mut c_void) -> c_int;
    fn dlerror() -> *const c_char;
}

/// A kernel and its arguments.
enum Call {
    Step(Kernel, Tape, At),
    Sequence(Sequence, Tape, Span),
    Hoisted(Hoisted, (Tape, At), [c_int; 2], *mut f64),
    AddRows(AddRows, *const f32, [c_int; 2], *mut f64),
}

/// What every emulated thread does.
unsafe extern "C" fn thread(call: *const c_void) {
    // SAFETY: `Device::emulate` passes a call that outlives the launch.
    match unsafe { &*call.cast::<Call>() } {
        // SAFETY: the kernels have these types, and their callers give them the memory that they need.
        Call::Step(f, tape, at) => unsafe { f(*tape, *at) },
        // SAFETY: as above.
        Call::Sequence(f, tape, span) => unsafe { f(*tape, *span) },
        // SAFETY: as above.
        Call::Hoisted(f, (tape, at), [steps, rows], sum) => unsafe { f(*tape, *at, *steps, *rows, *sum) },
        // SAFETY: as above.
        Call::AddRows(f, grads, [rows, length], sum) => unsafe { f(*grads, *rows, *length, *sum) },
    }
}

/// The kernels of a source.
pub(crate) struct Device {
    library: *mut c_void,
    emulate: Emulate,
    threads: u32,
}

impl Drop for Device {
    fn drop(&mut self) {
        // SAFETY: the library was opened, and none of its code runs.
        unsafe { dlclose(self.library) };
    }
}

/// The C++ compiler of this machine.
pub(crate) fn compiler() -> Option<String> {
    let wanted = std::env::var("CXX").ok();
    let known = ["g++", "clang++", "c++"].map(str::to_owned);
    let works =
        |name: &String| Command::new(name).arg("--version").output().is_ok_and(|o| o.status.success());
    wanted.into_iter().chain(known).find(works)
}

/// Says on a machine without a C++ compiler that nothing was tested; fails if `BPM_CUDA` is set.
pub(crate) fn has_compiler() -> bool {
    if compiler().is_some() {
        return true;
    }
    use std::io::Write;
    let _ = writeln!(std::io::stderr(), "NOT RUN: CUDA kernels, emulated: there is no C++ compiler");
    assert!(std::env::var_os("BPM_CUDA").is_none(), "BPM_CUDA wants a C++ compiler");
    false
}

impl Device {
    /// Compiles a source.
    pub(crate) fn new(source: &Source) -> Device {
        Device::of_text(&source.text, 32)
    }

    /// Compiles source text for blocks of so many threads.
    pub(crate) fn of_text(text: &str, threads: usize) -> Device {
        let path = library(text);
        let name = CString::new(path.to_str().expect("a path of text")).expect("a path without NUL");
        // SAFETY: the library has no code that runs when it is loaded but that of the C++ library.
        let library = unsafe { dlopen(name.as_ptr(), 2) };
        // SAFETY: the error is a string if there is one.
        assert!(!library.is_null(), "{}", unsafe { CStr::from_ptr(dlerror()) }.to_string_lossy());
        let _ = std::fs::remove_file(&path);
        let symbol = find(library, "emulate");
        // SAFETY: the emulator declares it so.
        let emulate = unsafe { std::mem::transmute::<*mut c_void, Emulate>(symbol) };
        Device { library, emulate, threads: u32::try_from(threads).expect("few threads") }
    }

    /// Leaves out a barrier, by its number in the text, from now on; none if negative.
    pub(crate) fn leave_out(&self, barrier: i32) {
        // SAFETY: the emulator declares it so.
        let f = unsafe {
            std::mem::transmute::<*mut c_void, unsafe extern "C" fn(c_int)>(find(self.library, "leave_out"))
        };
        // SAFETY: it sets a variable.
        unsafe { f(barrier) };
    }

    /// From now on no block sees what others of its launch write to this memory.
    pub(crate) fn isolate(&self, memory: &mut [f32]) {
        // SAFETY: the emulator declares it so.
        let f = unsafe {
            std::mem::transmute::<*mut c_void, unsafe extern "C" fn(*mut f32, usize)>(find(
                self.library,
                "isolate",
            ))
        };
        let start = if memory.is_empty() { std::ptr::null_mut() } else { memory.as_mut_ptr() };
        // SAFETY: it sets variables.
        unsafe { f(start, size_of_val(memory)) };
    }

    /// Launches a kernel for a batch, for one step or several.
    ///
    /// # Errors
    /// What the emulator says.
    pub(crate) fn try_launch(
        &self,
        kernel: &StepKernel,
        [rows, steps]: [usize; 2],
        seed: u64,
        (tape, at): (Tape, At),
    ) -> Result<(), String> {
        // SAFETY: the kernels of routines have this type.
        let f = unsafe { std::mem::transmute::<*mut c_void, Kernel>(find(self.library, &kernel.name)) };
        let threads = u32::try_from(kernel.threads).expect("few threads");
        let tape = Tape { rows: c_int::try_from(rows).expect("few rows"), ..tape };
        self.emulate([kernel.blocks(rows), steps], [1, threads], seed, &Call::Step(f, tape, at))
    }

    /// All launches of a routine.
    pub(crate) fn launch(
        &self,
        kernels: &[StepKernel],
        grid: [usize; 2],
        seed: u64,
        batch: (Tape, At),
    ) -> Result<(), String> {
        kernels.iter().try_for_each(|kernel| self.try_launch(kernel, grid, seed, batch))
    }

    /// Launches a kernel of a whole sequence; what goes wrong.
    pub(crate) fn sequence(
        &self,
        launch: &Launch,
        rows: usize,
        seed: u64,
        (tape, span): (Tape, Span),
    ) -> Result<(), String> {
        let symbol = find(self.library, &launch.name);
        // SAFETY: the kernels of whole sequences have this type.
        let kernel = unsafe { std::mem::transmute::<*mut c_void, Sequence>(symbol) };
        assert!(launch.shared_bytes <= 232_448, "a block has so much shared memory");
        let block = [launch.cluster, launch.threads].map(|n| u32::try_from(n).expect("few threads"));
        self.emulate([rows * launch.cluster, 1], block, seed, &Call::Sequence(kernel, tape, span))
    }

    /// Launches the kernel of a hoisted gradient.
    pub(crate) fn hoisted(
        &self,
        name: &str,
        grid: [usize; 2],
        batch: (Tape, At),
        count: [usize; 2],
        sum: &mut [f64],
    ) {
        // SAFETY: the kernels of hoisted gradients have this type.
        let kernel = unsafe { std::mem::transmute::<*mut c_void, Hoisted>(find(self.library, name)) };
        let count = count.map(|n| c_int::try_from(n).expect("a small number"));
        let threads = u32::try_from(compiler::back::cuda::HOISTED_THREADS).expect("few threads");
        let call = Call::Hoisted(kernel, batch, count, sum.as_mut_ptr());
        self.emulate(grid, [1, threads], 1, &call).expect("it runs");
    }

    /// Adds up the gradients of the rows.
    pub(crate) fn add_rows(&self, grads: &[f32], rows: usize, sum: &mut [f64]) {
        // SAFETY: the kernel has this type.
        let kernel = unsafe { std::mem::transmute::<*mut c_void, AddRows>(find(self.library, "add_rows")) };
        let count = [rows, sum.len()].map(|n| c_int::try_from(n).expect("a small number"));
        let call = Call::AddRows(kernel, grads.as_ptr(), count, sum.as_mut_ptr());
        self.emulate([sum.len().div_ceil(64), 1], [1, 64], 1, &call).expect("it runs");
    }

    fn emulate(
        &self,
        grid: [usize; 2],
        [cluster, threads]: [u32; 2],
        seed: u64,
        call: &Call,
    ) -> Result<(), String> {
        let [x, y] = grid.map(|n| u32::try_from(n).expect("a small grid"));
        let call = std::ptr::from_ref(call).cast::<c_void>();
        // SAFETY: `thread` takes the call, which outlives the launch.
        let wrong = unsafe { (self.emulate)(x, y, cluster, threads, seed, thread, call) };
        // SAFETY: what is not null is a string.
        if wrong.is_null() {
            Ok(())
        } else {
            Err(unsafe { CStr::from_ptr(wrong) }.to_string_lossy().into_owned())
        }
    }

    /// What goes wrong when a kernel without arguments that matter is launched for two blocks.
    pub(crate) fn complaint(&self, name: &str, cluster: u32) -> Option<String> {
        // SAFETY: the kernels under test touch no memory of the tape.
        let kernel = unsafe { std::mem::transmute::<*mut c_void, Kernel>(find(self.library, name)) };
        let (p, q) = (std::ptr::null_mut(), std::ptr::null());
        let tape = Tape {
            frames: p,
            adjoints: p,
            snapshots: p,
            carry: p,
            next: p,
            ends: p,
            grads: p,
            logs: p,
            log_bars: p,
            scratch: p,
            params: q,
            penalty_bar: 0.0,
            rows: 2,
        };
        self.emulate([2, 1], [cluster, self.threads], 1, &Call::Step(kernel, tape, At::default())).err()
    }
}

fn find(library: *mut c_void, name: &str) -> *mut c_void {
    let text = CString::new(name).expect("a name without NUL");
    // SAFETY: the library is open.
    let symbol = unsafe { dlsym(library, text.as_ptr()) };
    assert!(!symbol.is_null(), "the source has a function {name}");
    symbol
}

/// Compiles source text as a library; returns where it lies.
fn library(text: &str) -> PathBuf {
    static NUMBER: AtomicUsize = AtomicUsize::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("cuda-{}", std::process::id()));
    std::fs::create_dir_all(&folder).expect("a folder");
    let at = |ending: &str| folder.join(format!("k{number}.{ending}"));
    let (header, source, library) = (folder.join("emulator.h"), at("cu"), at("so"));
    // Other threads may be reading the same text.
    if !header.exists() {
        let beside = at("h");
        std::fs::write(&beside, EMULATOR).expect("a file");
        std::fs::rename(&beside, &header).expect("a file");
    }
    std::fs::write(&source, text).expect("a file");
    let done = Command::new(compiler().expect("a C++ compiler"))
        .args(["-O1", "-std=c++17", "-ffp-contract=off", "-shared", "-fPIC", "-x", "c++", "-include"])
        .arg(&header)
        .arg(&source)
        .arg("-o")
        .arg(&library)
        .output()
        .expect("the compiler starts");
    assert!(
        done.status.success(),
        "{}: {}",
        source.display(),
        String::from_utf8_lossy(&done.stderr).lines().take(30).collect::<Vec<_>>().join("\n")
    );
    let _ = std::fs::remove_file(&source);
    library
}

/// Every model of the library.
pub(crate) fn models() -> Vec<(String, Model)> {
    let mut todo = vec![Path::new(env!("CARGO_MANIFEST_DIR")).join("../specs")];
    let mut paths: Vec<PathBuf> = vec![];
    while let Some(path) = todo.pop() {
        if path.is_dir() {
            todo.extend(std::fs::read_dir(&path).expect("a folder").map(|e| e.expect("an entry").path()));
        } else if path.extension().is_some_and(|e| e == "bpm") {
            paths.push(path);
        }
    }
    paths.sort();
    let text = |p: &PathBuf| std::fs::read_to_string(p).expect("a spec is text");
    paths
        .iter()
        .flat_map(|p| {
            let source = text(p);
            let models = compiler::check::check(&source).models;
            models.into_iter().map(move |m| (source.clone(), m))
        })
        .collect()
}

/// Sizes near `n`, different for every axis.
pub(crate) fn sizes(model: &Model, n: usize) -> BTreeMap<String, usize> {
    let named = model.axes.named.iter().enumerate();
    named.map(|(k, a)| (a.name.clone(), n + k % 3)).collect()
}

/// A model as CUDA C.
pub(crate) fn source(text: &str, model: &Model, bound: &BTreeMap<String, usize>) -> Source {
    let file = format!("{}.bpm", model.name);
    let subject = Subject { file: &file, source: text, model, bound, usage: &USAGE };
    stages::cuda(&subject).expect("sizes for every axis")
}

/// The same for a device and a batch.
pub(crate) fn source_for(text: &str, model: &Model, bound: &BTreeMap<String, usize>, grid: Grid) -> Source {
    let file = format!("{}.bpm", model.name);
    let subject = Subject { file: &file, source: text, model, bound, usage: &USAGE };
    stages::cuda_for(&subject, grid).expect("sizes for every axis")
}

const USAGE: compiler::loops::plan::Use = compiler::loops::plan::Use {
    batch: 2,
    steps: 4,
    threads: 1,
    tapes: compiler::loops::plan::Tapes::PerThread,
    checkpoint_every: None,
    memory: None,
};

/// A model as CUDA C that takes whole sequences, or why it cannot.
pub(crate) fn sequences(
    text: &str,
    model: &Model,
    bound: &BTreeMap<String, usize>,
    device: &compiler::back::cuda::Device,
) -> Result<(Source, [Mapping; 2]), compiler::back::cuda::Refusal> {
    let file = format!("{}.bpm", model.name);
    let subject = Subject { file: &file, source: text, model, bound, usage: &USAGE };
    stages::cuda_sequences(&subject, device).expect("sizes for every axis")
}

/// A model as CUDA C with the kernels that are wished for in each direction, or why there are none.
pub(crate) fn chosen(
    text: &str,
    model: &Model,
    bound: &BTreeMap<String, usize>,
    on: (Grid, &compiler::back::cuda::Device),
    wish: compiler::back::cuda::Wish,
) -> Result<(Source, compiler::back::cuda::Route), compiler::back::cuda::Refusal> {
    let file = format!("{}.bpm", model.name);
    let subject = Subject { file: &file, source: text, model, bound, usage: &USAGE };
    stages::cuda_chosen(&subject, on, wish).expect("sizes for every axis")
}

/// The sizes as the compiler has them.
pub(crate) fn bind(model: &Model, bound: &BTreeMap<String, usize>) -> Sizes {
    Sizes::bind(&model.axes, bound).expect("sizes for every axis")
}
