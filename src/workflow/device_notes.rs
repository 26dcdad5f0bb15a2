//! Notes while the user waits for the device: kernels that are compiled, and work that does not end.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use crate::gpu::Gpu;
use crate::progress::ProgressReporter;

/// Makes the device report kernels that are compiled, and waits without progress.
pub fn set(gpu: &Gpu) {
    let compiling: Mutex<Option<ProgressReporter>> = Mutex::new(None);
    gpu.on_compile(Some(Box::new(move |done, total| {
        let mut compiling = compiling.lock().unwrap_or_else(PoisonError::into_inner);
        if done < total {
            compiling
                .get_or_insert_with(|| ProgressReporter::items("compiling kernels", total))
                .set_counts(done, total);
        } else {
            *compiling = None;
        }
    })));
    gpu.on_wait(Some(Box::new(|running, since| note!("{}", wait_note(running, since)))));
}

fn wait_note(running: &str, since: Duration) -> String {
    let seconds = since.as_secs();
    format!(
        "note: nothing has come back from the device for {seconds} s; it was given: {running}. If it hangs, Ctrl-C twice ends the program, and --resume goes on"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wait_names_what_runs() {
        let note = wait_note("matmul_fwd/L3 and 17 more dispatches", Duration::from_millis(120_500));
        assert!(note.contains("120 s") && note.contains("matmul_fwd/L3") && note.contains("Ctrl-C"), "{note}");
    }
}
