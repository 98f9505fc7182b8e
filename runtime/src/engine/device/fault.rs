//! What goes wrong with devices, in the user's words.

/// What sort of fault it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FaultKind {
    /// There is no driver.
    NoDriver,
    /// The driver is too old.
    OldDriver,
    /// There is no device, or none with that number.
    NoDevice,
    /// The device is of a kind that nothing can be compiled for.
    Architecture,
    /// The compiler is missing.
    NoCompiler,
    /// The compiler refuses a source.
    Source,
    /// Compiled code cannot be loaded.
    Image,
    /// There is too little memory.
    OutOfMemory,
    /// A launch or a transfer failed.
    Lost,
    /// Whole sequences cannot be mapped to the device.
    Unmapped,
}

/// A fault of a device.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Fault {
    /// Its sort.
    pub kind: FaultKind,
    /// One line, lower case, no full stop.
    pub message: String,
    /// What to do.
    pub help: Vec<String>,
}

impl Fault {
    /// A fault without advice.
    pub fn new(kind: FaultKind, message: impl Into<String>) -> Fault {
        Fault { kind, message: message.into(), help: vec![] }
    }

    /// The same fault, in this kernel.
    #[must_use]
    pub fn of(mut self, kernel: &str) -> Fault {
        self.message = format!("{}, in kernel {kernel}", self.message);
        self
    }

    /// Adds advice.
    #[must_use]
    pub fn help(mut self, text: impl Into<String>) -> Fault {
        self.help.push(text.into());
        self
    }
}
