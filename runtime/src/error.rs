//! What can go wrong, and with which exit code the program ends.
//!
//! An error is the user's fault or the machine's; our own faults are panics. The message is lower
//! case without a full stop and names the file, tensor or key it is about; help says what to do.

use crate::engine::EngineError;
use compiler::back::{BackError, x64::X64Error};
use compiler::ir::SizeError;
use grammar::diag::Diagnostic;
use std::path::{Path, PathBuf};

/// What sort of error it is; decides the exit code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The input has errors, or a check failed.
    Input,
    /// Usage, configuration or files.
    Usage,
    /// The device is missing or out of memory.
    Device,
    /// A number was not finite.
    Diverged,
    /// The user stopped the run.
    Interrupted,
}

/// A spec that does not compile: its text and what is wrong with it.
#[derive(Clone, Debug)]
pub struct SpecErrors {
    /// The file.
    pub path: PathBuf,
    /// Its text.
    pub source: String,
    /// What the compiler says.
    pub diagnostics: Vec<Diagnostic>,
}

/// An error with its advice.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{message}")]
pub struct Error {
    /// Its sort.
    pub kind: Kind,
    /// One line, lower case, no full stop. More lines if there are several independent mistakes.
    pub message: String,
    /// What to do.
    pub help: Vec<String>,
    /// The mistakes of a spec, if that is what it is about.
    pub spec: Option<Box<SpecErrors>>,
}

impl Error {
    /// An error of some kind.
    pub fn new(kind: Kind, message: impl Into<String>) -> Self {
        Error { kind, message: message.into(), help: vec![], spec: None }
    }

    /// The input is wrong: a tensor, a spec, a failed check.
    pub fn input(message: impl Into<String>) -> Self {
        Self::new(Kind::Input, message)
    }

    /// The command, a recipe or a file is wrong.
    pub fn usage(message: impl Into<String>) -> Self {
        Self::new(Kind::Usage, message)
    }

    /// The device is missing or too small.
    pub fn device(message: impl Into<String>) -> Self {
        Self::new(Kind::Device, message)
    }

    /// Training diverged.
    pub fn diverged(message: impl Into<String>) -> Self {
        Self::new(Kind::Diverged, message)
    }

    /// The operating system refused: `cannot ACTION PATH: reason`.
    pub fn file(action: &str, path: &Path, reason: &std::io::Error) -> Self {
        Self::usage(format!("cannot {action} `{}`: {}", path.display(), plain(reason)))
    }

    /// Adds advice.
    #[must_use]
    pub fn help(mut self, text: impl Into<String>) -> Self {
        self.help.push(text.into());
        self
    }

    /// The exit code of the program.
    pub fn exit_code(&self) -> u8 {
        match self.kind {
            Kind::Input => 1,
            Kind::Usage => 2,
            Kind::Device => 3,
            Kind::Diverged => 4,
            Kind::Interrupted => 130,
        }
    }
}

impl From<SizeError> for Error {
    fn from(e: SizeError) -> Self {
        Error::usage(e.to_string())
    }
}

impl From<EngineError> for Error {
    fn from(e: EngineError) -> Self {
        let error = Error::device(e.to_string());
        match e {
            EngineError::Jit(BackError::X64(X64Error::Host(_))) => {
                error.help("leave --backend out, or use --backend cranelift")
            }
            EngineError::Torch(fault) => fault.help.into_iter().fold(error, Error::help),
            EngineError::Device(fault) => fault.help.into_iter().fold(error, Error::help),
            _ => error,
        }
    }
}

/// The operating system's words, lower case and without the number.
fn plain(reason: &std::io::Error) -> String {
    let text = reason.to_string();
    let text = text.split(" (os error").next().unwrap_or(&text);
    let mut letters = text.chars();
    letters.next().map_or(String::new(), |c| c.to_lowercase().collect::<String>() + letters.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_named() {
        let reason = std::fs::read("/no/such/file").expect_err("missing");
        let error = Error::file("read", Path::new("/no/such/file"), &reason);
        assert_eq!(error.to_string(), "cannot read `/no/such/file`: no such file or directory");
        assert_eq!(error.exit_code(), 2);
    }
}
