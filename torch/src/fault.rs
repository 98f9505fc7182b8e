//! What goes wrong with libtorch, in words.

/// Why libtorch does not give what was asked for.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Fault {
    /// One line, lower case, no full stop.
    pub message: String,
    /// What to do.
    pub help: Vec<String>,
}

impl Fault {
    /// libtorch is not built in.
    #[cfg(not(feature = "libtorch"))]
    pub(crate) fn absent() -> Fault {
        Fault {
            message: "the back end torch is not built into this program".to_owned(),
            help: vec![
                "build it with libtorch: cargo build --release -p bpm-runtime --features torch".to_owned(),
                "docs/libtorch.md says how to get libtorch".to_owned(),
            ],
        }
    }

    /// A CUDA device that cannot be used.
    #[cfg(feature = "libtorch")]
    pub(crate) fn no_device(why: String) -> Fault {
        Fault { message: why, help: vec!["use --device cpu, or leave --backend torch out".to_owned()] }
    }
}

#[cfg(feature = "libtorch")]
impl From<tch::TchError> for Fault {
    fn from(e: tch::TchError) -> Fault {
        let text = match e {
            tch::TchError::Torch(text) => text,
            other => other.to_string(),
        };
        // Behind the first line libtorch names places in its own sources.
        let line = text.lines().next().unwrap_or("").trim_end_matches('.');
        let lacks_memory = line.contains("out of memory") || line.contains("can't allocate memory");
        let help = lacks_memory.then(|| "make the batch, the steps or an axis smaller".to_owned());
        Fault { message: format!("libtorch failed: {line}"), help: help.into_iter().collect() }
    }
}
