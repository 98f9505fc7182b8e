//! The Python process: started, asked line by line, ended when it is dropped.

use crate::{Error, files};
use serde_json::Value;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{ChildStdin, ChildStdout, Command, Stdio};

/// What the process runs.
const DRIVER: &str = include_str!("driver.py");

const REMEDY: &str =
    "name a Python that has PyTorch: --python PATH, or BPM_PYTHON=PATH; `pip install torch` installs it";

/// A Python process with PyTorch.
pub(super) struct Child {
    process: std::process::Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
    /// Where what it complains of goes.
    complaints: std::path::PathBuf,
    python_path: String,
    /// The version of PyTorch.
    pub(super) torch: String,
    /// The version of Python.
    pub(super) python: String,
}

impl Child {
    /// Starts Python in a folder that holds the module.
    ///
    /// # Errors
    /// If it cannot be started or has no PyTorch.
    pub(super) fn start(python: &str, folder: &Path, threads: usize) -> Result<Child, Error> {
        let driver = folder.join("driver.py");
        files::write(&driver, DRIVER.as_bytes())?;
        let complaints = folder.join("complaints.txt");
        let sink = std::fs::File::create(&complaints).map_err(|e| Error::file("create", &complaints, &e))?;
        let mut process = Command::new(python)
            .arg(&driver)
            .arg(folder)
            .arg(threads.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(sink)
            .spawn()
            .map_err(|e| Error::device(format!("cannot run `{python}`: {}", plain(&e))).help(REMEDY))?;
        let (input, output) = (process.stdin.take(), process.stdout.take());
        let (Some(input), Some(output)) = (input, output) else {
            return Err(Error::device(format!("cannot talk to `{python}`")));
        };
        let output = BufReader::new(output);
        let (torch, version, path) = (String::new(), String::new(), python.to_owned());
        let mut child =
            Child { process, input, output, complaints, python_path: path, torch, python: version };
        let hello = child.answer()?;
        let text = |key: &str| hello[key].as_str().unwrap_or_default().to_owned();
        child.torch = text("torch");
        child.python = text("python");
        Ok(child)
    }

    /// Asks for something and waits for the answer.
    ///
    /// # Errors
    /// If the process cannot do it, or has ended.
    pub(super) fn ask(&mut self, wish: &Value) -> Result<Value, Error> {
        // A process that has ended says so where its answer is missing.
        let _ = writeln!(self.input, "{wish}").and_then(|()| self.input.flush());
        self.answer()
    }

    fn answer(&mut self) -> Result<Value, Error> {
        let mut line = String::new();
        let read = self.output.read_line(&mut line).unwrap_or(0);
        let answer: Option<Value> = serde_json::from_str(&line).ok().filter(|_| read != 0);
        let Some(answer) = answer else {
            let error = Error::device(format!("`{}` has ended without an answer", self.python_path));
            return Err(match self.last_complaint() {
                Some(complaint) => error.help(format!("it says: {complaint}")).help(REMEDY),
                None => error.help(REMEDY),
            });
        };
        match answer["error"].as_str() {
            Some(why) if answer["missing"] == "torch" => {
                Err(Error::device(format!("`{}` has no PyTorch: {why}", self.python_path)).help(REMEDY))
            }
            Some(why) => Err(Error::device(format!("PyTorch fails: {why}"))),
            None => Ok(answer),
        }
    }

    fn last_complaint(&self) -> Option<String> {
        let text = std::fs::read_to_string(&self.complaints).ok()?;
        text.lines().rev().find(|l| !l.trim().is_empty()).map(str::to_owned)
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn plain(error: &std::io::Error) -> String {
    match error.kind() {
        std::io::ErrorKind::NotFound => "there is no such program".to_owned(),
        _ => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Kind;

    fn start(python: &str) -> Error {
        let folder = std::env::temp_dir().join(format!("bpm-child-{}-{}", std::process::id(), python.len()));
        files::make_folder(&folder).expect("a folder");
        let error = Child::start(python, &folder, 1).err().expect("it cannot start");
        let _ = std::fs::remove_dir_all(&folder);
        error
    }

    #[test]
    fn what_is_missing_is_said_with_a_remedy() {
        let error = start("no-such-python");
        assert_eq!((error.kind, error.exit_code()), (Kind::Device, 3));
        assert_eq!(error.message, "cannot run `no-such-python`: there is no such program");
        assert!(error.help[0].contains("--python PATH"));
        // Any program that is no Python.
        let error = start("true");
        assert!(error.message.contains("has ended without an answer"), "{}", error.message);
        assert_eq!(error.exit_code(), 3);
    }
}
