//! Reading and writing files: bounded, atomic, with errors that name the path.

use crate::Error;
use std::io::Write;
use std::path::Path;

/// No file that bpm reads is larger than this.
const MAX_BYTES: u64 = 64 << 30;

/// The bytes of a file.
///
/// # Errors
/// If it cannot be read or is no regular file of a sensible size.
pub fn read(path: &Path) -> Result<Vec<u8>, Error> {
    let about = std::fs::metadata(path).map_err(|e| Error::file("read", path, &e))?;
    if about.is_dir() {
        return Err(Error::usage(format!("cannot read `{}`: it is a folder", path.display())));
    }
    if about.len() > MAX_BYTES {
        return Err(Error::usage(format!("cannot read `{}`: it is larger than 64 GiB", path.display())));
    }
    std::fs::read(path).map_err(|e| Error::file("read", path, &e))
}

/// The text of a file.
///
/// # Errors
/// If it cannot be read or is not UTF-8.
pub fn read_text(path: &Path) -> Result<String, Error> {
    String::from_utf8(read(path)?)
        .map_err(|_| Error::usage(format!("cannot read `{}`: it is no text (not UTF-8)", path.display())))
}

/// Writes a file beside its place, flushes it to the disk and renames it into place: at any time
/// there is either the old file or the new one. Devices and pipes are written to directly.
///
/// # Errors
/// If the file cannot be written; what was there before is untouched.
pub fn write(path: &Path, bytes: &[u8]) -> Result<(), Error> {
    write_quietly(path, bytes).map_err(|e| Error::file("write", path, &e))
}

fn write_quietly(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    if std::fs::metadata(path).is_ok_and(|m| !m.is_file()) {
        let mut file = std::fs::OpenOptions::new().write(true).open(path)?;
        file.write_all(bytes)?;
        return file.flush();
    }
    let folder = match path.parent() {
        Some(p) if !p.as_os_str().is_empty() => p,
        _ => Path::new("."),
    };
    let mut builder = tempfile::Builder::new();
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        builder.permissions(std::fs::Permissions::from_mode(0o666));
    }
    let mut file = builder.prefix(".bpm-").suffix(".part").tempfile_in(folder)?;
    file.write_all(bytes)?;
    file.as_file().sync_all()?;
    file.persist(path).map_err(|e| e.error)?;
    // The rename itself must survive a crash; a folder that cannot be opened keeps its own counsel.
    if let Ok(folder) = std::fs::File::open(folder) {
        let _ = folder.sync_all();
    }
    Ok(())
}

/// Makes a folder and those above it.
///
/// # Errors
/// If it cannot be made.
pub fn make_folder(path: &Path) -> Result<(), Error> {
    std::fs::create_dir_all(path).map_err(|e| Error::file("make the folder", path, &e))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writes_whole_files_and_leaves_nothing_beside() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("a.bin");
        write(&path, b"one").expect("write");
        write(&path, b"two").expect("write");
        assert_eq!(read(&path).expect("read"), b"two");
        assert_eq!(std::fs::read_dir(folder.path()).expect("list").count(), 1);
    }

    #[test]
    fn errors_name_the_path() {
        let error = write(Path::new("/dev/full"), b"x").expect_err("full");
        assert_eq!(error.message, "cannot write `/dev/full`: no space left on device");
        assert!(read(Path::new("/")).expect_err("folder").message.contains("folder"));
        assert!(
            write(Path::new("/no/such/place/x"), b"").expect_err("no place").message.contains("/no/such")
        );
    }
}
