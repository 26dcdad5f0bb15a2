//! Failures of a device: those that the device reports outside a call, and panics of wgpu where the device fails.

use std::sync::{Arc, Mutex};

use crate::error::Error;

/// Failure of a device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum DeviceFailure {
    /// The device is gone, or work on it vanished, so that its memory is not reliable.
    Lost(String),
    /// An allocation was refused. The text describes the allocation; `None` until it is known.
    OutOfMemory(Option<String>),
    /// A call was refused, for example by validation, or for a pipeline that does not compile.
    Refused(String),
}

impl DeviceFailure {
    /// Classifies a lost device by the driver's message, because wgpu also gives a device up where memory for wgpu's own needs is refused.
    pub fn lost(words: &str) -> Self {
        match words.to_lowercase().contains("out of memory") {
            true => Self::OutOfMemory(None),
            false => Self::Lost(words.into()),
        }
    }

    /// Returns the driver's message.
    pub fn words(self) -> String {
        match self {
            Self::Lost(words) | Self::Refused(words) => words,
            Self::OutOfMemory(what) => what.unwrap_or("out of memory".into()),
        }
    }

    /// Creates an error that names the device.
    pub fn error(&self, device: &str) -> Error {
        let line = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
        match self {
            Self::Lost(words) => Error::DeviceLost { device: device.into(), reason: line(words) },
            Self::OutOfMemory(what) => Error::OutOfMemory {
                refused: what.as_deref().map_or("memory was refused".into(), line),
                advice: memory_advice().into(),
            },
            Self::Refused(words) => Error::Gpu(line(words)),
        }
    }
}

/// Returns advice on how to make a run need less memory.
fn memory_advice() -> &'static str {
    "a smaller --batch-size or --max-length, --recompute block or --base-dtype int8 or nf4 takes less (jointwise plan tells how much)"
}

/// Describes a refused allocation: "activations: 12 MiB refused after 1,871 MiB".
pub(super) fn refused(what: &str, bytes: u64, held_bytes: u64) -> String {
    format!("{what}: {} refused after {}", size(bytes), size(held_bytes))
}

/// Formats a size in MiB, or in KiB if it is smaller, with commas between thousands.
fn size(bytes: u64) -> String {
    let (n, unit) = if bytes < 1 << 20 { (bytes.div_ceil(1 << 10), "KiB") } else { (bytes.div_ceil(1 << 20), "MiB") };
    let digits = n.to_string();
    let mut text = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    format!("{text} {unit}")
}

/// First failure of a device; later failures are ignored.
#[derive(Debug, Clone, Default)]
pub(super) struct FirstFailure(Arc<Mutex<Option<DeviceFailure>>>);

impl FirstFailure {
    fn cell(&self) -> std::sync::MutexGuard<'_, Option<DeviceFailure>> {
        self.0.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// Records a failure, unless one was recorded before.
    pub fn set(&self, failure: DeviceFailure) {
        self.cell().get_or_insert(failure);
    }

    /// Adds a description of the allocation to a refusal that has none yet.
    pub fn name_refusal(&self, what: impl FnOnce() -> String) {
        if let Some(DeviceFailure::OutOfMemory(named @ None)) = &mut *self.cell() {
            *named = Some(what());
        }
    }

    pub fn get(&self) -> Option<DeviceFailure> {
        self.cell().clone()
    }

    pub fn is_set(&self) -> bool {
        self.cell().is_some()
    }
}

/// Calls wgpu where it may panic because a device fails, and returns the panic's message instead. wgpu's poll panics where the device is
/// lost, and its backends panic where a driver gives an unexpected answer. wgpu's locks are released by then.
///
/// # Errors
/// Message of the panic.
#[cfg(not(target_arch = "wasm32"))]
pub(super) fn catch_panic<T>(call: impl FnOnce() -> T) -> Result<T, String> {
    quiet::install();
    let was = quiet::IS_QUIET.replace(true);
    let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(call));
    quiet::IS_QUIET.set(was);
    done.map_err(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str).or(panic.downcast_ref::<&str>().copied());
        text.unwrap_or("wgpu panicked").into()
    })
}

/// Calls wgpu directly, because in a browser it has no panics of this kind, and none could be caught.
///
/// # Errors
/// None.
#[cfg(target_arch = "wasm32")]
pub(super) fn catch_panic<T>(call: impl FnOnce() -> T) -> Result<T, String> {
    Ok(call())
}

/// Installs a panic hook that prints nothing while this thread catches panics. It is installed once, before the first such call, and stays.
/// Other threads, and this thread outside [`catch_panic`], print panics as before.
#[cfg(not(target_arch = "wasm32"))]
mod quiet {
    use std::cell::Cell;
    use std::sync::Once;

    thread_local! {
        pub static IS_QUIET: Cell<bool> = const { Cell::new(false) };
    }

    pub fn install() {
        static INSTALLED: Once = Once::new();
        // A panicking thread must not change the hook.
        if !std::thread::panicking() {
            INSTALLED.call_once(|| {
                let before = std::panic::take_hook();
                std::panic::set_hook(Box::new(move |info| {
                    if !IS_QUIET.get() {
                        before(info);
                    }
                }));
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn panics_of_this_thread_are_caught_and_others_go_on() {
        let caught: Result<(), _> = catch_panic(|| panic!("Error in Device::poll: {}", "lost"));
        assert_eq!(caught, Err("Error in Device::poll: lost".into()));
        assert_eq!(catch_panic(|| 3), Ok(3));
        assert!(!quiet::IS_QUIET.get());
        // A nested call, and a panic of another thread at the same time.
        let inner = catch_panic(|| {
            assert!(catch_panic(|| panic!("inner")).is_err() && quiet::IS_QUIET.get());
            std::thread::spawn(|| assert!(!quiet::IS_QUIET.get())).join().is_ok()
        });
        assert_eq!(inner, Ok(true));
    }

    #[test]
    fn a_failure_is_one_line_with_a_way_out() {
        let told = |failure: DeviceFailure| failure.error("RTX (vulkan)").to_string();
        let lost = told(DeviceFailure::lost("Device is lost"));
        assert!(lost.starts_with("RTX (vulkan) was lost: Device is lost"), "{lost}");
        for way_out in ["--batch-size", "--max-length", "Watchdogs", "--resume"] {
            assert!(lost.contains(way_out), "{lost}");
        }
        let cell = FirstFailure::default();
        cell.name_refusal(|| panic!("nothing was refused"));
        cell.set(DeviceFailure::lost("Out of memory"));
        cell.set(DeviceFailure::Refused("later".into()));
        cell.name_refusal(|| refused("parameters, page 3", 128 << 20, 1871 << 20));
        cell.name_refusal(|| panic!("named before"));
        let refused = told(cell.get().unwrap());
        assert!(
            refused.starts_with("out of device memory: parameters, page 3: 128 MiB refused after 1,871 MiB; "),
            "{refused}"
        );
        assert!(refused.contains("--batch-size") && refused.contains("plan"), "{refused}");
        assert_eq!(
            told(DeviceFailure::Refused("Validation Error\n\nCaused by:\n  x".into())),
            "GPU: Validation Error Caused by: x"
        );
    }

    #[test]
    fn sizes_have_their_unit() {
        assert_eq!(size(0), "0 KiB");
        assert_eq!(size(256), "1 KiB");
        assert_eq!(size(1_234_567 << 20), "1,234,567 MiB");
        assert_eq!(size(999 << 20), "999 MiB");
    }
}
