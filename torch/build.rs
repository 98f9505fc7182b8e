//! Looks at the libtorch that is going to be built in, before minutes go into compiling against it. A wrong version
//! would end in hundreds of lines of C++; a missing one in a download page.

use std::path::{Path, PathBuf};

/// The version that `tch` in `Cargo.toml` is made for.
const WANTED: &str = "2.13.0";

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    for name in ["LIBTORCH", "LIBTORCH_USE_PYTORCH", "LIBTORCH_BYPASS_VERSION_CHECK"] {
        println!("cargo:rerun-if-env-changed={name}");
    }
    if std::env::var_os("CARGO_FEATURE_LIBTORCH").is_none() {
        return;
    }
    if let Err(why) = look() {
        eprintln!("error: {why}");
        eprintln!("  help: docs/libtorch.md has the commands that get libtorch {WANTED} and build with it");
        std::process::exit(1);
    }
}

fn look() -> Result<(), String> {
    let is_set = |name: &str| std::env::var_os(name).is_some();
    // There torch-sys asks Python for the version.
    if is_set("LIBTORCH_USE_PYTORCH") || is_set("LIBTORCH_BYPASS_VERSION_CHECK") {
        return Ok(());
    }
    let Some(folder) = std::env::var_os("LIBTORCH").map(PathBuf::from) else {
        return match Path::new("/usr/lib/libtorch.so").exists() {
            true => Ok(()),
            false => {
                Err("the feature torch needs libtorch, and the variable LIBTORCH does not say where it is"
                    .into())
            }
        };
    };
    let shown = folder.display();
    if !folder.join("include").is_dir() || !folder.join("lib").is_dir() {
        return Err(format!(
            "LIBTORCH is `{shown}`, which has no folders `include` and `lib`: it is no libtorch"
        ));
    }
    match version(&folder) {
        Some(found) if found != WANTED => {
            Err(format!("LIBTORCH is `{shown}`, which has version {found}, but exactly {WANTED} is needed"))
        }
        // Some packages do not say which version they are.
        Some(_) | None => Ok(()),
    }
}

/// The version that a folder says it has: `build-version` of an archive, or `version.py` of a wheel.
fn version(folder: &Path) -> Option<String> {
    let read = |name: &str| std::fs::read_to_string(folder.join(name)).ok();
    let wheel = || {
        let text = read("version.py")?;
        let line = text.lines().find(|l| l.starts_with("__version__"))?;
        line.split(['\'', '"']).nth(1).map(str::to_owned)
    };
    let found = read("build-version").or_else(wheel)?;
    found.trim().split('+').next().map(str::to_owned)
}
