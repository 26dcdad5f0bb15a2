//! The bar that shows progress on a terminal.

use std::io::IsTerminal;

use indicatif::{ProgressBar, ProgressStyle};

/// Returns whether progress can be drawn, and drawn over.
pub fn on_a_terminal() -> bool {
    std::io::stderr().is_terminal() && std::env::var_os("TERM").is_none_or(|term| term != "dumb")
}

/// Makes a bar on a terminal, and a hidden one elsewhere.
pub fn bar(n: usize, what: &'static str) -> ProgressBar {
    if n < 2 || !on_a_terminal() {
        return ProgressBar::hidden();
    }
    let style = ProgressStyle::with_template("{msg} {bar:30} {pos}/{len} {elapsed} left {eta}");
    let bar = ProgressBar::new(n as u64).with_message(what);
    style.map_or(ProgressBar::hidden(), |style| bar.with_style(style))
}
