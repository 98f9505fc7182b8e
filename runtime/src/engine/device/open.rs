//! Devices by name, opened once.

use super::cuda::Cuda;
use super::{Device, Emulated, Fault};
use std::sync::{Arc, Mutex, PoisonError};

/// The variable that puts the emulated device in the place of all others.
const EMULATED: &str = "BPM_EMULATED_CUDA";

/// A device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeviceId {
    /// A CUDA device, by its number.
    Cuda(u32),
    /// The one that is none.
    Emulated,
}

impl DeviceId {
    /// The CUDA device with this number; the emulated one where `BPM_EMULATED_CUDA` is set, to 1 or to the bytes of
    /// memory that it shall have.
    pub fn cuda(number: u32) -> DeviceId {
        let emulated = std::env::var_os(EMULATED).is_some_and(|v| !v.is_empty());
        if emulated { DeviceId::Emulated } else { DeviceId::Cuda(number) }
    }

    /// Its name on the command line and in run records.
    pub fn name(self) -> &'static str {
        match self {
            DeviceId::Cuda(_) => "cuda",
            DeviceId::Emulated => "cuda, emulated",
        }
    }
}

static OPENED: Mutex<Vec<(DeviceId, Arc<dyn Device>)>> = Mutex::new(vec![]);

/// A device; one that was opened before is the same.
///
/// # Errors
/// If it is not there or cannot be used.
pub fn open(id: DeviceId) -> Result<Arc<dyn Device>, Fault> {
    let mut opened = OPENED.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some((_, device)) = opened.iter().find(|(known, _)| *known == id) {
        return Ok(Arc::clone(device));
    }
    let device: Arc<dyn Device> = match id {
        DeviceId::Cuda(number) => Arc::new(Cuda::new(number)?),
        DeviceId::Emulated => {
            let told = std::env::var(EMULATED).ok().and_then(|v| v.parse().ok()).filter(|n| 1 < *n);
            Arc::new(told.map_or_else(Emulated::new, Emulated::with_memory)?)
        }
    };
    opened.push((id, Arc::clone(&device)));
    Ok(device)
}
