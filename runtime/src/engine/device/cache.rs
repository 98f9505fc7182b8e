//! Compiled kernels on disk, so that a model is compiled once for a kind of device.
//!
//! An entry is named by a hash of everything that decides what is in it: source, architecture, compiler with
//! its version and flags. It is written beside its place and renamed, so that another process sees all of it
//! or nothing. Its first line holds a hash of the rest; what does not fit its hash, or cannot be loaded, is
//! compiled again. A cache that cannot be written to costs time, not results, and is passed over in silence.
//!
//! The folder is `BPM_CACHE`, else `bpm` in `XDG_CACHE_HOME`, else in `~/.cache`; an empty `BPM_CACHE` turns
//! the cache off.

use super::{Device, Fault, Module};
use crate::files;
use md5::{Digest, Md5};
use std::path::PathBuf;

/// The first word of an entry: what it is, and the form of what follows.
const MARK: &str = "bpm-kernels-1";

/// Where a module came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Origin {
    /// It was compiled just now.
    Compiled,
    /// It was in the cache.
    Cached,
}

/// The folder of the cache, as the environment says.
pub(super) fn folder() -> Option<PathBuf> {
    if cfg!(test) {
        // Beside the tests, not in somebody's home.
        return Some(std::env::current_exe().ok()?.parent()?.join("kernels"));
    }
    let named = |name: &str| std::env::var_os(name).map(PathBuf::from);
    match named("BPM_CACHE") {
        Some(folder) if folder.as_os_str().is_empty() => None,
        Some(folder) => Some(folder),
        None => {
            let absolute = |p: &PathBuf| p.is_absolute();
            let base = named("XDG_CACHE_HOME").filter(absolute);
            let home = || named("HOME").filter(absolute).map(|home| home.join(".cache"));
            base.or_else(home).map(|base| base.join("bpm"))
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    Md5::digest(bytes).iter().map(|b| format!("{b:02x}")).collect()
}

/// The name of the entry of a source.
fn key(device: &dyn Device, source: &str) -> String {
    let about = device.about();
    hex([MARK, &about.architecture, &about.compiler, source].join("\u{0}").as_bytes())
}

/// The code in an entry, if it is whole.
fn unwrap(entry: &[u8]) -> Option<&[u8]> {
    let end = entry.iter().position(|b| *b == b'\n')?;
    let (line, image) = (std::str::from_utf8(&entry[..end]).ok()?, &entry[end + 1..]);
    (line == format!("{MARK} {}", hex(image))).then_some(image)
}

fn wrap(image: &[u8]) -> Vec<u8> {
    [format!("{MARK} {}\n", hex(image)).as_bytes(), image].concat()
}

/// A module for a source: from the folder if it is there, else compiled and put there.
///
/// # Errors
/// If the source does not compile, or what was compiled cannot be loaded.
pub(super) fn load(
    device: &dyn Device,
    folder: Option<PathBuf>,
    source: &str,
    name: &str,
) -> Result<(Module, Origin), Fault> {
    let path = folder.as_ref().map(|f| f.join(format!("{}.kernels", key(device, source))));
    let entry = path.as_ref().and_then(|p| std::fs::read(p).ok());
    if let Some(image) = entry.as_deref().and_then(unwrap)
        && let Ok(module) = device.load(image)
    {
        return Ok((module, Origin::Cached));
    }
    let image = device.compile(source, name)?;
    if let (Some(folder), Some(path)) = (folder, path) {
        let _ = std::fs::create_dir_all(folder).map_err(drop).and_then(|()| {
            // Another process may have been faster: what it wrote is the same.
            files::write(&path, &wrap(&image)).map_err(drop)
        });
    }
    Ok((device.load(&image)?, Origin::Compiled))
}
