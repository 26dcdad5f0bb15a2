//! Notes while the device makes the user wait: kernels that are compiled, work that does not end.

use std::sync::Mutex;
use std::time::{Duration, Instant};

use super::progress_bar::{bar, on_a_terminal};
use crate::gpu::{Gpu, OnCompile};

/// Time between lines about compilation, where nothing is drawn.
const BETWEEN_LINES: Duration = Duration::from_secs(10);
/// Calls with longer pauses between them are of two compilations.
const PAUSE: Duration = Duration::from_secs(5);

/// Tells of kernels that are compiled, with a bar or lines, and of waits without progress.
pub fn set(gpu: &Gpu) {
    let shown = Mutex::new(None);
    set_drawn(gpu, move |done, total| {
        let mut shown = shown.lock().unwrap_or_else(|e| e.into_inner());
        let bar = shown.get_or_insert_with(|| bar(total, "compiling kernels"));
        bar.set_position(done as u64);
        if done == total {
            bar.finish_and_clear();
            *shown = None;
        }
    });
    gpu.on_wait(Some(Box::new(|running, since| note!("{}", wait_note(running, since)))));
}

/// Tells of kernels that are compiled: `draw` on a terminal, lines elsewhere.
pub fn set_drawn(gpu: &Gpu, draw: impl Fn(usize, usize) + Send + Sync + 'static) {
    let on_compile: OnCompile = if on_a_terminal() {
        Box::new(draw)
    } else {
        let lines = Mutex::new(Lines::default());
        Box::new(move |done, total| {
            let mut lines = lines.lock().unwrap_or_else(|e| e.into_inner());
            if let Some(since) = lines.due(Instant::now()) {
                note!("compiling kernels: {done} of {total}, for {} s so far", since.as_secs());
            }
        })
    };
    gpu.on_compile(Some(on_compile));
}

fn wait_note(running: &str, since: Duration) -> String {
    let seconds = since.as_secs();
    format!(
        "note: nothing has come back from the device for {seconds} s; it was given: {running}. If it hangs, Ctrl-C twice ends the program, and --resume goes on"
    )
}

/// When lines about compilation are told.
#[derive(Default)]
struct Lines {
    /// The last call, the last line or the compilation's start, and that start.
    times: Option<[Instant; 3]>,
}

impl Lines {
    /// Gives the time since the compilation began, where a line is due at a call of this time.
    fn due(&mut self, now: Instant) -> Option<Duration> {
        let [called, told, began] = self.times.unwrap_or([now; 3]);
        let [told, began] = if now - called > PAUSE { [now; 2] } else { [told, began] };
        let is_due = now - told >= BETWEEN_LINES;
        self.times = Some([now, if is_due { now } else { told }, began]);
        is_due.then(|| now - began)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_come_every_ten_seconds_of_compilation() {
        let began = Instant::now();
        let mut lines = Lines::default();
        let mut due = |second: u64| lines.due(began + Duration::from_secs(second)).map(|since| since.as_secs());
        let told: Vec<u64> = (0..35).filter_map(&mut due).collect();
        assert_eq!(told, [10, 20, 30]);
        // An hour of steps, then short compilations: none lasts.
        assert_eq!([3600, 3604, 3615, 3616, 3620].map(&mut due), [None; 5]);
        assert_eq!([3624, 3625].map(&mut due), [None, Some(10)]);
    }

    #[test]
    fn a_wait_names_what_runs() {
        let note = wait_note("matmul_fwd/L3 and 17 more dispatches", Duration::from_millis(120_500));
        assert!(note.contains("120 s") && note.contains("matmul_fwd/L3") && note.contains("Ctrl-C"), "{note}");
    }
}
