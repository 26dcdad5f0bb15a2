//! Progress of long work on standard error: a bar on a terminal, and a line now and then elsewhere.

use std::fmt::Write as _;
use std::io::IsTerminal;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};

/// Age of a task at its first line.
const FIRST_LINE: Duration = Duration::from_secs(15);
/// Shortest time between two lines of any tasks.
const BETWEEN_LINES: Duration = Duration::from_secs(30);
/// Environment variable for tests: seconds that replace [`FIRST_LINE`] and [`BETWEEN_LINES`].
const TEST_SECONDS: &str = "JOINTWISE_PROGRESS_SECONDS";
/// Time between two redraws of a bar whose count stands still.
const REDRAW: Duration = Duration::from_millis(500);

/// Age at which a bar below another one appears, so that short tasks draw none.
const NESTED_BAR: Duration = Duration::from_secs(1);

/// All bars of the terminal, each on a line of its own.
static BARS: LazyLock<MultiProgress> = LazyLock::new(MultiProgress::new);
/// Number of tasks that have a bar.
static N_BARS: AtomicUsize = AtomicUsize::new(0);
/// All tasks that write lines.
static LINES: Mutex<ProgressLines> = Mutex::new(ProgressLines::new());

/// Unit of a task's counts.
#[derive(Debug, Clone, Copy, PartialEq)]
enum CountUnit {
    Items,
    Bytes,
}

/// Counts of a task.
#[derive(Debug)]
struct ProgressTask {
    label: &'static str,
    unit: CountUnit,
    done: u64,
    /// Part of `done` that an earlier run did: the rate leaves it out.
    skipped: u64,
    total: Option<u64>,
    /// Text behind the counts.
    detail: String,
    began: Instant,
}

/// Tasks that write lines, the outermost first, and when the last line was written.
struct ProgressLines {
    tasks: Vec<Arc<Mutex<ProgressTask>>>,
    last_line: Option<Instant>,
    /// Whether the thread that writes the lines runs.
    is_watched: bool,
}

/// Reporter of how far one long task is, until it is dropped. On a terminal it draws a bar. Elsewhere it writes a line with what is done, the rate and the
/// time left: the first after 15 s, then one every 30 s, also while the count stands still. Of nested tasks the innermost that is old enough writes.
#[derive(Debug)]
pub struct ProgressReporter {
    task: Arc<Mutex<ProgressTask>>,
    output: ReporterOutput,
}

#[derive(Debug)]
enum ReporterOutput {
    Bar(DrawnBar),
    Lines,
    Hidden,
}

/// Bar of the terminal, which may not have appeared yet.
#[derive(Debug)]
struct DrawnBar {
    bar: ProgressBar,
    is_shown: AtomicBool,
}

impl DrawnBar {
    fn show(&self) {
        if !self.is_shown.swap(true, Ordering::Relaxed) {
            BARS.add(self.bar.clone());
            self.bar.enable_steady_tick(REDRAW);
        }
    }
}

/// Whether tasks are shown at all: a library says nothing unless its program wants that.
static IS_SHOWN: AtomicBool = AtomicBool::new(false);

/// Shows the progress of long work on standard error from now on, as the command line does.
pub fn show_progress() {
    IS_SHOWN.store(true, Ordering::Relaxed);
}

/// Text before this process's lines, where several processes share standard error: "rank 1, train/JPO-seed-0: ".
static LINE_LABEL: Mutex<String> = Mutex::new(String::new());

/// Sets the text before each line for the user; an empty one for none.
pub fn set_line_label(label: String) {
    *lock(&LINE_LABEL) = label;
}

/// Returns the text before each line for the user.
pub fn line_label() -> String {
    lock(&LINE_LABEL).clone()
}

/// Tells whether bars can be drawn on standard error.
fn can_draw() -> bool {
    std::io::stderr().is_terminal() && std::env::var_os("TERM").is_none_or(|term| term != "dumb")
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Returns [`FIRST_LINE`] and [`BETWEEN_LINES`], or what a test sets instead.
fn line_times() -> [Duration; 2] {
    let seconds = std::env::var(TEST_SECONDS).ok().and_then(|text| text.parse().ok());
    let shortened = seconds.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
    shortened.map_or([FIRST_LINE, BETWEEN_LINES], |time| [time; 2])
}

impl ProgressReporter {
    /// Begins a task of `total` items.
    pub fn items(label: &'static str, total: usize) -> Self {
        // A single item is done or not: a bar would not move.
        Self::begin(
            label,
            CountUnit::Items,
            Some(total as u64),
            total > 1,
            "{prefix} {bar:30} {pos}/{len} {elapsed} left {eta}{msg}",
        )
    }

    /// Begins a task whose number of items is not known.
    pub fn open_ended(label: &'static str) -> Self {
        Self::begin(label, CountUnit::Items, None, true, "{prefix} {human_pos} {elapsed}{msg}")
    }

    /// Begins a task that counts nothing.
    pub fn uncounted(label: &'static str) -> Self {
        Self::begin(label, CountUnit::Items, None, true, "{prefix} {elapsed}{msg}")
    }

    /// Begins a download of `total` bytes.
    pub fn bytes(label: &'static str, total: u64) -> Self {
        let layout = "{prefix} {bar:30} {bytes}/{total_bytes} {bytes_per_sec} left {eta}{msg}";
        Self::begin(label, CountUnit::Bytes, Some(total), true, layout)
    }

    /// Begins a task that shows nothing, because something else shows it.
    pub fn hidden() -> Self {
        Self { task: ProgressTask::new("", CountUnit::Items, None), output: ReporterOutput::Hidden }
    }

    fn begin(label: &'static str, unit: CountUnit, total: Option<u64>, has_bar: bool, layout: &str) -> Self {
        let task = ProgressTask::new(label, unit, total);
        if !IS_SHOWN.load(Ordering::Relaxed) {
            return Self { task, output: ReporterOutput::Hidden };
        }
        if !can_draw() {
            ProgressLines::add(&task);
            return Self { task, output: ReporterOutput::Lines };
        }
        let output = match ProgressStyle::with_template(layout) {
            Ok(style) if has_bar => {
                let bar = ProgressBar::with_draw_target(total, ProgressDrawTarget::hidden());
                let bar = DrawnBar { bar: bar.with_style(style).with_prefix(label), is_shown: AtomicBool::new(false) };
                if N_BARS.fetch_add(1, Ordering::Relaxed) == 0 {
                    bar.show();
                }
                ReporterOutput::Bar(bar)
            }
            _ => ReporterOutput::Hidden,
        };
        Self { task, output }
    }

    fn change(&self, change: impl FnOnce(&mut ProgressTask)) {
        let mut task = lock(&self.task);
        change(&mut task);
        if let ReporterOutput::Bar(drawn) = &self.output {
            if let Some(total) = task.total {
                drawn.bar.set_length(total);
            }
            drawn.bar.set_position(task.done);
            if task.began.elapsed() >= NESTED_BAR {
                drawn.show();
            }
        }
    }

    /// Sets the number of items that are done.
    pub fn set_done(&self, done: usize) {
        self.change(|task| task.done = done as u64);
    }

    /// Sets the number of items that are done, and of all items.
    pub fn set_counts(&self, done: usize, total: usize) {
        self.change(|task| (task.done, task.total) = (done as u64, Some(total as u64)));
    }

    /// Adds to the items, or bytes, that are done.
    pub fn advance(&self, n: u64) {
        self.change(|task| task.done += n);
    }

    /// Adds items, or bytes, that an earlier run did.
    pub fn skip(&self, n: u64) {
        self.change(|task| (task.done, task.skipped) = (task.done + n, task.skipped + n));
        if let ReporterOutput::Bar(drawn) = &self.output {
            drawn.bar.reset_eta();
        }
    }

    /// Takes back bytes that must be fetched again.
    pub fn take_back(&self, n: u64) {
        self.change(|task| (task.done, task.skipped) = (task.done.saturating_sub(n), task.skipped.saturating_sub(n)));
    }

    /// Sets the text behind the counts.
    pub fn set_detail(&self, detail: String) {
        if let ReporterOutput::Bar(drawn) = &self.output {
            drawn.bar.set_message(detail.clone());
        }
        self.change(|task| task.detail = detail);
    }

    /// Writes a line above the bar. The next line about progress comes 30 s later.
    pub fn note(&self, line: &str) {
        if self.writes_lines() {
            lock(&LINES).last_line = Some(Instant::now());
        }
        self.suspend(|| note!("{line}"));
    }

    /// Writes other text while no bar is drawn.
    pub fn suspend<T>(&self, write: impl FnOnce() -> T) -> T {
        match &self.output {
            ReporterOutput::Bar(_) => BARS.suspend(write),
            ReporterOutput::Lines | ReporterOutput::Hidden => write(),
        }
    }

    /// Tells whether lines are written, because no bar can be drawn.
    pub fn writes_lines(&self) -> bool {
        matches!(self.output, ReporterOutput::Lines)
    }
}

impl Drop for ProgressReporter {
    fn drop(&mut self) {
        match &self.output {
            ReporterOutput::Bar(drawn) => {
                drawn.bar.finish_and_clear();
                if drawn.is_shown.load(Ordering::Relaxed) {
                    BARS.remove(&drawn.bar);
                }
                N_BARS.fetch_sub(1, Ordering::Relaxed);
            }
            ReporterOutput::Lines => lock(&LINES).tasks.retain(|task| !Arc::ptr_eq(task, &self.task)),
            ReporterOutput::Hidden => {}
        }
    }
}

impl ProgressTask {
    fn new(label: &'static str, unit: CountUnit, total: Option<u64>) -> Arc<Mutex<Self>> {
        let (detail, began) = (String::new(), Instant::now());
        Arc::new(Mutex::new(Self { label, unit, done: 0, skipped: 0, total, detail, began }))
    }

    /// Writes "scoring: 1200 of 4000, 34 per second, 82 s left".
    fn line(&self, now: Instant) -> String {
        let elapsed = now.saturating_duration_since(self.began).as_secs_f64();
        let mut line = format!("{}: ", self.label);
        let done = match (self.unit, self.total) {
            (CountUnit::Items, Some(total)) => format!("{} of {total}", self.done),
            (CountUnit::Items, None) if self.done == 0 => String::new(),
            (CountUnit::Items, None) => self.done.to_string(),
            (CountUnit::Bytes, total) => {
                format!("{:.1} of {:.1} MB", megabytes(self.done), megabytes(total.unwrap_or_default()))
            }
        };
        let per_second = self.done.saturating_sub(self.skipped) as f64 / elapsed.max(1e-9);
        let rate = match self.unit {
            _ if per_second == 0.0 => String::new(),
            CountUnit::Bytes => format!("{:.1} MB per second", per_second / 1e6),
            CountUnit::Items if per_second >= 10.0 => format!("{per_second:.0} per second"),
            CountUnit::Items if per_second >= 1.0 => format!("{per_second:.1} per second"),
            CountUnit::Items => format!("{:.1} s each", 1.0 / per_second),
        };
        let time = match self.total {
            Some(total) if per_second > 0.0 => {
                format!("{} left", format_seconds(total.saturating_sub(self.done) as f64 / per_second))
            }
            _ => format!("{} so far", format_seconds(elapsed)),
        };
        let parts = [done, rate, time].into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>();
        let _ = write!(line, "{}{}", parts.join(", "), self.detail);
        line
    }
}

fn megabytes(bytes: u64) -> f64 {
    bytes as f64 / 1e6
}

/// Writes "82 s", "12 min", "3 h 20 min".
fn format_seconds(seconds: f64) -> String {
    let minutes = (seconds / 60.0).round() as u64;
    match minutes {
        _ if seconds < 119.5 => format!("{seconds:.0} s"),
        0..120 => format!("{minutes} min"),
        _ => format!("{} h {} min", minutes / 60, minutes % 60),
    }
}

impl ProgressLines {
    const fn new() -> Self {
        Self { tasks: Vec::new(), last_line: None, is_watched: false }
    }

    /// Adds a task, and starts the thread that writes lines where it does not run.
    fn add(task: &Arc<Mutex<ProgressTask>>) {
        let mut lines = lock(&LINES);
        lines.tasks.push(task.clone());
        if lines.is_watched {
            return;
        }
        let times = line_times();
        let pause = (times[0] / 4).clamp(Duration::from_millis(5), Duration::from_secs(1));
        let watch = move || {
            loop {
                std::thread::sleep(pause);
                let mut lines = lock(&LINES);
                if lines.tasks.is_empty() {
                    lines.is_watched = false;
                    return;
                }
                if let Some(line) = lines.due_line(times, Instant::now()) {
                    note!("{line}");
                }
            }
        };
        // Without a thread there are no lines.
        lines.is_watched = std::thread::Builder::new().name("progress".into()).spawn(watch).is_ok();
    }

    /// Returns the line that is due: that of the innermost task that is older than the first of `times`, where the last line is older than the second.
    fn due_line(&mut self, times: [Duration; 2], now: Instant) -> Option<String> {
        if self.last_line.is_some_and(|last| now.saturating_duration_since(last) < times[1]) {
            return None;
        }
        let is_old = |task: &ProgressTask| now.saturating_duration_since(task.began) >= times[0];
        let line = self.tasks.iter().rev().map(|task| lock(task)).find(|task| is_old(task))?.line(now);
        self.last_line = Some(now);
        Some(line)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(began: Instant, second: u64) -> Instant {
        began + Duration::from_secs(second)
    }

    #[test]
    fn lines_come_after_15_seconds_and_then_every_30() {
        let task = ProgressTask::new("scoring", CountUnit::Items, Some(4000));
        let began = lock(&task).began;
        let mut lines = ProgressLines { tasks: vec![task.clone()], ..ProgressLines::new() };
        let mut written = Vec::new();
        for second in 0..=80 {
            lock(&task).done = 20 * second;
            written.extend(lines.due_line([FIRST_LINE, BETWEEN_LINES], at(began, second)));
        }
        let expected = [
            "scoring: 300 of 4000, 20 per second, 3 min left",
            "scoring: 900 of 4000, 20 per second, 3 min left",
            "scoring: 1500 of 4000, 20 per second, 2 min left",
        ];
        assert_eq!(written, expected);
    }

    #[test]
    fn the_innermost_task_that_lasts_writes() {
        let (outer, inner) = (
            ProgressTask::new("training", CountUnit::Items, Some(9)),
            ProgressTask::new("compiling kernels", CountUnit::Items, Some(30)),
        );
        let began = lock(&outer).began;
        lock(&inner).began = at(began, 10);
        let mut lines = ProgressLines { tasks: vec![outer, inner.clone()], ..ProgressLines::new() };
        let mut line = |second| lines.due_line([FIRST_LINE, BETWEEN_LINES], at(began, second));
        assert_eq!(line(15).as_deref(), Some("training: 0 of 9, 15 s so far"));
        lock(&inner).done = 10;
        assert_eq!([line(30), line(44)], [None, None]);
        assert_eq!(line(45).as_deref(), Some("compiling kernels: 10 of 30, 3.5 s each, 70 s left"));
    }

    #[test]
    fn a_line_says_what_is_known() {
        let line = |unit, total, done, skipped, seconds| {
            let task = ProgressTask::new("x", unit, total);
            let mut task = lock(&task);
            (task.done, task.skipped, task.detail) = (done, skipped, ", more".into());
            task.line(at(task.began, seconds))
        };
        assert_eq!(line(CountUnit::Items, None, 0, 0, 20), "x: 20 s so far, more");
        assert_eq!(line(CountUnit::Items, None, 90_000, 0, 20), "x: 90000, 4500 per second, 20 s so far, more");
        // What an earlier run did is no part of the rate.
        assert_eq!(line(CountUnit::Items, Some(1000), 950, 900, 20), "x: 950 of 1000, 2.5 per second, 20 s left, more");
        assert_eq!(
            line(CountUnit::Items, Some(1000), 10, 0, 9000),
            "x: 10 of 1000, 900.0 s each, 247 h 30 min left, more"
        );
        let bytes = line(CountUnit::Bytes, Some(270_000_000), 120_000_000, 20_000_000, 10);
        assert_eq!(bytes, "x: 120.0 of 270.0 MB, 10.0 MB per second, 15 s left, more");
    }
}
