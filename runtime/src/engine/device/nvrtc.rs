//! NVRTC, loaded when it is asked for, and what compilers of CUDA C say.

use super::{Fault, FaultKind};
use compiler::back::cuda::FLAGS;
use cudarc::nvrtc::{result, sys};
use std::ffi::CString;

/// What helps where NVRTC is missing.
const INSTALL: &str = "install the CUDA toolkit, or `pip install nvidia-cuda-nvrtc-cu12`, and put the folder of \
                       libnvrtc.so into LD_LIBRARY_PATH";

/// The version of NVRTC.
///
/// # Errors
/// If there is none.
pub(super) fn version() -> Result<(i32, i32), Fault> {
    // SAFETY: it looks for a library and calls nothing.
    if !unsafe { sys::is_culib_present() } {
        let message = "NVRTC, the compiler of CUDA kernels, is not installed";
        return Err(Fault::new(FaultKind::NoCompiler, message).help(INSTALL));
    }
    let has = |symbol: &[u8]| {
        // SAFETY: the library is there; the symbol is looked for and not called.
        unsafe { sys::culib().get::<unsafe extern "C" fn()>(symbol).is_ok() }
    };
    if !has(b"nvrtcVersion") || !has(b"nvrtcGetNumSupportedArchs") || !has(b"nvrtcGetCUBIN") {
        let message = "the NVRTC that is installed is older than CUDA 11.2";
        return Err(Fault::new(FaultKind::NoCompiler, message).help(INSTALL));
    }
    let (mut major, mut minor) = (0, 0);
    // SAFETY: both places are there.
    unsafe { sys::nvrtcVersion(&raw mut major, &raw mut minor) }.result().map_err(|e| {
        Fault::new(FaultKind::NoCompiler, format!("NVRTC does not answer: {e:?}")).help(INSTALL)
    })?;
    Ok((major, minor))
}

/// The architectures that NVRTC compiles for: 90 stands for sm_90.
pub(super) fn architectures() -> Result<Vec<i32>, Fault> {
    let fault = |e| Fault::new(FaultKind::NoCompiler, format!("NVRTC does not answer: {e:?}")).help(INSTALL);
    let mut count = 0;
    // SAFETY: the place is there.
    unsafe { sys::nvrtcGetNumSupportedArchs(&raw mut count) }.result().map_err(fault)?;
    let mut all = vec![0; usize::try_from(count).unwrap_or(0)];
    // SAFETY: there is room for all.
    unsafe { sys::nvrtcGetSupportedArchs(all.as_mut_ptr()) }.result().map_err(fault)?;
    Ok(all)
}

/// A program in the hands of NVRTC.
struct Program(sys::nvrtcProgram);

impl Drop for Program {
    fn drop(&mut self) {
        // SAFETY: it was made and not destroyed.
        let _ = unsafe { result::destroy_program(self.0) };
    }
}

/// Compiles a source to machine code for an architecture such as `sm_90`.
///
/// # Errors
/// With the words of NVRTC if it refuses.
pub(super) fn compile(source: &str, name: &str, architecture: &str) -> Result<Vec<u8>, Fault> {
    version()?;
    let broken = |what: String| Fault::new(FaultKind::Source, format!("`{name}` cannot be compiled: {what}"));
    let text = CString::new(source).map_err(|_| broken("its source holds a NUL".to_owned()))?;
    let file = CString::new(format!("{name}.cu")).map_err(|_| broken("its name holds a NUL".to_owned()))?;
    let program = result::create_program(&text, Some(&file)).map_err(|e| broken(format!("{e:?}")))?;
    let program = Program(program);
    let mut options: Vec<String> = FLAGS.map(str::to_owned).into();
    options.push(format!("--gpu-architecture={architecture}"));
    options.push("--generate-line-info".to_owned());
    // SAFETY: the program lives.
    if let Err(e) = unsafe { result::compile_program(program.0, &options) } {
        // SAFETY: the program lives.
        let log = unsafe { result::get_program_log(program.0) }.unwrap_or_default();
        let log: Vec<u8> = log.into_iter().map(|c| c as u8).take_while(|c| *c != 0).collect();
        let log = String::from_utf8_lossy(&log);
        if log.contains("libnvrtc-builtins") {
            let message = "NVRTC does not find its builtins";
            return Err(Fault::new(FaultKind::NoCompiler, message).help(INSTALL));
        }
        let log = if log.trim().is_empty() { format!("error: {e:?}") } else { log.into_owned() };
        return Err(refusal(name, source, &log));
    }
    let mut size = 0;
    // SAFETY: the program lives, and the place is there.
    unsafe { sys::nvrtcGetCUBINSize(program.0, &raw mut size) }
        .result()
        .map_err(|e| broken(format!("{e:?}")))?;
    let mut image = vec![0u8; size];
    // SAFETY: there is room for all of it.
    unsafe { sys::nvrtcGetCUBIN(program.0, image.as_mut_ptr().cast()) }
        .result()
        .map_err(|e| broken(format!("{e:?}")))?;
    Ok(image)
}

/// The fault of a compiler that refuses a source: the kernel, the line of the spec, its words.
pub(super) fn refusal(name: &str, source: &str, log: &str) -> Fault {
    let first = log.lines().find(|l| l.contains("error")).or(log.lines().next()).unwrap_or_default().trim();
    let place = place(first);
    let kernel = place.and_then(|(file, line)| kernel_of(source, file, line));
    let kernel = kernel.map_or(String::new(), |k| format!("kernel `{k}` of "));
    let at = place.map_or(String::new(), |(file, line)| format!(" at line {line} of {file}"));
    let message = format!("the CUDA compiler refuses {kernel}`{name}`{at}: {first}");
    let rest: Vec<&str> = log.lines().filter(|l| l.contains("error")).skip(1).take(4).collect();
    let fault = Fault::new(FaultKind::Source, message);
    let fault =
        if rest.is_empty() { fault } else { fault.help(format!("it also says: {}", rest.join("; "))) };
    fault.help(
        "the kernels were written by bpm, so this is a fault of bpm; the CPU runs the model: --device cpu",
    )
}

/// The file and the line in `FILE(12): error: …` and in `FILE:12:3: error: …`.
fn place(text: &str) -> Option<(&str, usize)> {
    let head = text.split("error").next()?;
    let bracket = head.split_once('(').and_then(|(file, rest)| Some((file, rest.split_once(')')?.0)));
    let (file, line) = bracket.or_else(|| {
        let (file, rest) = head.split_once(':')?;
        Some((file, rest.split(':').next()?))
    })?;
    Some((file, line.trim().parse().ok()?))
}

/// The kernel that has a line of a file: the spec's, by `#line`, or the generated one.
fn kernel_of<'s>(source: &'s str, file: &str, wanted: usize) -> Option<&'s str> {
    let (mut kernel, mut at) = (None, None);
    for (k, text) in source.lines().enumerate() {
        if let Some(rest) = text.strip_prefix("#line ") {
            let (number, name) = rest.split_once(' ')?;
            at = Some((number.parse::<usize>().ok()?, name.trim_matches('"')));
            continue;
        }
        if text.contains("__global__") {
            kernel = text.split('(').rev().nth(1).and_then(|s| s.split_whitespace().last()).or(kernel);
        }
        let (line, name) = at.unwrap_or((k + 1, file));
        if line == wanted && name == file {
            return kernel;
        }
        at = at.map(|(line, name)| (line + 1, name));
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_names_the_kernel_and_the_line_of_the_spec() {
        let source = "int f();\nextern \"C\" __global__ void __launch_bounds__(THREADS, 1) first(const Tape t) {\n\
                      #line 3 \"a.bpm\"\n  x;\n}\nextern \"C\" __global__ void __launch_bounds__(THREADS, 1) step(const Tape t) {\n\
                      #line 7 \"a.bpm\"\n  y;\n";
        for log in
            ["a.bpm(7): error: identifier \"y\" is undefined\n", "a.bpm:7:3: error: 'y' was not declared\n"]
        {
            let fault = refusal("net", source, log);
            assert!(
                fault
                    .message
                    .starts_with("the CUDA compiler refuses kernel `step` of `net` at line 7 of a.bpm: ")
            );
            assert!(fault.help.iter().any(|h| h.contains("--device cpu")));
        }
        assert!(refusal("net", source, "nonsense").message.ends_with("refuses `net`: nonsense"));
    }

    /// Where NVRTC is installed: kernels compile, and mistakes are told.
    #[test]
    fn nvrtc_compiles_where_it_is_installed() {
        if let Err(fault) = version() {
            assert_eq!(fault.kind, FaultKind::NoCompiler);
            assert!(fault.help[0].contains("LD_LIBRARY_PATH"));
            use std::io::Write;
            let _ = writeln!(std::io::stderr(), "NOT RUN: NVRTC: it is not installed");
            return;
        }
        assert!(architectures().expect("architectures").contains(&90));
        let good = compile(include_str!("moves.cu"), "moves", "sm_90").expect("it compiles");
        assert!(good.starts_with(b"\x7fELF"));
        let shared = include_str!("training/training.cuh");
        let (episode, known) = (include_str!("training/episode.cu"), include_str!("training/known.cu"));
        let sources = [
            ("maze", include_str!("../../task/maze.cu"), episode),
            ("cues", include_str!("../../task/cue_reward.cu"), episode),
            ("patterns", include_str!("../../task/pattern_completion.cu"), known),
            ("characters", include_str!("../../task/one_shot/one_shot.cu"), known),
            ("descent", "", include_str!("training/descent.cu")),
        ];
        for (name, world, rest) in sources {
            let text = [shared, world, rest].concat();
            for architecture in ["sm_80", "sm_90a"] {
                compile(&text, name, architecture).unwrap_or_else(|fault| panic!("{name}: {fault}"));
            }
        }
        let bad = "extern \"C\" __global__ void k() {\n#line 5 \"s.bpm\"\n  y = 1;\n}\n";
        let fault = compile(bad, "net", "sm_90").expect_err("y is unknown");
        assert!(fault.message.contains("kernel `k` of `net` at line 5 of s.bpm"), "{}", fault.message);
    }
}
