//! Ctrl-C, SIGTERM and SIGHUP: once to end in order, twice to end at once. A run under `nohup` outlives its terminal.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

/// Set by Ctrl-C. One flag for the process, because the demo trains twice; `said` (once set) is what the first one prints.
pub fn stop_on_ctrl_c(said: &'static str) -> &'static AtomicBool {
    static STOP: AtomicBool = AtomicBool::new(false);
    static HANDLER: OnceLock<()> = OnceLock::new();
    HANDLER.get_or_init(|| {
        let hangup = Hangup::now();
        let set = ctrlc::set_handler(move || {
            if STOP.swap(true, Ordering::Relaxed) {
                std::process::exit(i32::from(super::INTERRUPTED));
            }
            note!("{said} (again: at once)");
        });
        if let Err(error) = set {
            note!("warning: Ctrl-C will end the program at once: {error}");
        }
        hangup.restore();
    });
    &STOP
}

/// Whether SIGHUP was ignored when the program started, as `nohup` arranges; the handler of Ctrl-C takes SIGHUP, too.
struct Hangup {
    #[cfg(unix)]
    is_ignored: bool,
}

#[cfg(unix)]
impl Hangup {
    fn now() -> Self {
        let mut action = std::mem::MaybeUninit::<libc::sigaction>::uninit();
        // SAFETY: without a new action the call changes nothing; it fills `action` where it returns 0, which is checked.
        let is_ignored = unsafe {
            libc::sigaction(libc::SIGHUP, std::ptr::null(), action.as_mut_ptr()) == 0
                && action.assume_init_ref().sa_sigaction == libc::SIG_IGN
        };
        Self { is_ignored }
    }

    fn restore(self) {
        if self.is_ignored {
            // SAFETY: to ignore a signal runs no code of ours.
            unsafe { libc::signal(libc::SIGHUP, libc::SIG_IGN) };
        }
    }
}

#[cfg(not(unix))]
impl Hangup {
    fn now() -> Self {
        Self {}
    }

    fn restore(self) {}
}
