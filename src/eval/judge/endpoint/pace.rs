//! When the next request may go: rate limits of our own, and pauses that an endpoint asks for.

use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

/// Ends a pause within so much when asking ends.
const SLICE: Duration = Duration::from_millis(50);

/// Between two requests, s: however low the limit is, a day.
const LONGEST: f64 = 86_400.0;

/// Waits; false where asking ended meanwhile.
pub fn sleep(pause: Duration, halted: &dyn Fn() -> bool) -> bool {
    let until = Instant::now() + pause;
    loop {
        if halted() {
            return false;
        }
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return true;
        }
        std::thread::sleep(left.min(SLICE));
    }
}

/// Shared by all workers.
#[derive(Debug)]
pub struct Pace {
    /// Seconds a request, and a token.
    per_request: f64,
    per_token: f64,
    /// When the next request may start.
    next: Mutex<Instant>,
}

impl Pace {
    /// Limits a minute; 0: none.
    pub fn new(requests: f64, tokens: f64) -> Self {
        let seconds = |limit: f64| if limit > 0.0 { 60.0 / limit } else { 0.0 };
        Self { per_request: seconds(requests), per_token: seconds(tokens), next: Mutex::new(Instant::now()) }
    }

    fn next(&self) -> MutexGuard<'_, Instant> {
        self.next.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// Waits for the turn of a request of so many tokens; false where asking ended meanwhile.
    pub fn turn(&self, tokens: u64, halted: &dyn Fn() -> bool) -> bool {
        loop {
            let wait = {
                let mut next = self.next();
                let now = Instant::now();
                if *next <= now {
                    let takes = self.per_request.max(self.per_token * tokens as f64).min(LONGEST);
                    *next = now + Duration::from_secs_f64(takes);
                    return !halted();
                }
                *next - now
            };
            if !sleep(wait, halted) {
                return false;
            }
        }
    }

    /// Nobody asks for so long.
    pub fn hold(&self, pause: Duration) {
        let mut next = self.next();
        *next = (*next).max(Instant::now() + pause);
    }
}
