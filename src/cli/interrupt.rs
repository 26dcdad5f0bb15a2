//! Ctrl-C, SIGTERM and SIGHUP: the first signal ends the run in order, the second ends it at once. A run under `nohup` outlives its terminal, because signals
//! that were ignored when the program started stay ignored.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

/// Flag that Ctrl-C sets. The process has one, because the demo trains twice.
static STOP: AtomicBool = AtomicBool::new(false);

/// Returns the flag that Ctrl-C sets.
pub fn stop_flag() -> &'static AtomicBool {
    &STOP
}

/// Makes Ctrl-C set the flag that is returned. The first Ctrl-C prints `said` of the first call.
pub fn stop_on_ctrl_c(said: &'static str) -> &'static AtomicBool {
    static HANDLER: OnceLock<()> = OnceLock::new();
    HANDLER.get_or_init(|| {
        let ignored = IgnoredSignals::now();
        let set = ctrlc::set_handler(move || {
            if STOP.swap(true, Ordering::Relaxed) {
                std::process::exit(i32::from(super::INTERRUPTED));
            }
            note!("{said} (again: at once)");
        });
        if let Err(error) = set {
            note!("warning: Ctrl-C will end the program at once: {error}");
        }
        ignored.restore();
    });
    &STOP
}

/// Signals that were ignored when the program started. `nohup` ignores SIGHUP, a shell without job control SIGINT of what it starts in the
/// background. The handler of Ctrl-C takes them too.
struct IgnoredSignals(#[cfg(unix)] Vec<libc::c_int>);

#[cfg(unix)]
impl IgnoredSignals {
    /// Signals that the handler takes.
    const HANDLED: [libc::c_int; 3] = [libc::SIGINT, libc::SIGTERM, libc::SIGHUP];

    fn now() -> Self {
        Self(Self::HANDLED.into_iter().filter(|signal| is_ignored(*signal)).collect())
    }

    fn restore(self) {
        for signal in self.0 {
            // SAFETY: to ignore a signal runs no code of ours.
            unsafe { libc::signal(signal, libc::SIG_IGN) };
        }
    }
}

#[cfg(unix)]
fn is_ignored(signal: libc::c_int) -> bool {
    let mut action = std::mem::MaybeUninit::<libc::sigaction>::uninit();
    // SAFETY: without a new action the call changes nothing; it fills `action` where it returns 0, which is checked.
    unsafe {
        libc::sigaction(signal, std::ptr::null(), action.as_mut_ptr()) == 0
            && action.assume_init_ref().sa_sigaction == libc::SIG_IGN
    }
}

#[cfg(not(unix))]
impl IgnoredSignals {
    fn now() -> Self {
        Self()
    }

    fn restore(self) {}
}
