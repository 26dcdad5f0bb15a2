//! Ctrl-C: once to end in order, twice to end at once.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

/// Set by Ctrl-C. One flag for the process, because the demo trains twice; `said` (once set) is what the first one prints.
pub fn stop_on_ctrl_c(said: &'static str) -> &'static AtomicBool {
    static STOP: AtomicBool = AtomicBool::new(false);
    static HANDLER: OnceLock<()> = OnceLock::new();
    HANDLER.get_or_init(|| {
        let set = ctrlc::set_handler(move || {
            if STOP.swap(true, Ordering::Relaxed) {
                std::process::exit(i32::from(super::INTERRUPTED));
            }
            note!("{said} (again: at once)");
        });
        if let Err(error) = set {
            note!("warning: Ctrl-C will end the program at once: {error}");
        }
    });
    &STOP
}
