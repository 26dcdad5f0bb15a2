//! Rate limiter: decides when the next request may be sent, and how many requests may be under way. It follows the user's limits, the
//! pauses that an endpoint asks for, and the rate at which the endpoint was found to accept requests.
//!
//! After status 429, no request is sent for the pause that the endpoint names. Then requests are sent one by one, at the mean interval of
//! the requests that were accepted before; the interval shrinks by one percent with each answer. A request that times out halves the number
//! of requests under way, and answers let the number grow again.

use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

/// Longest sleep before checking whether asking has ended.
const SLICE: Duration = Duration::from_millis(50);

/// Longest interval between two requests, in seconds: one day, however low the limit is.
const LONGEST: f64 = 86_400.0;

/// Longest interval that is estimated from the endpoint's answers, in seconds.
const LONGEST_FOUND: f64 = 60.0;
/// Number of accepted requests from which an interval can be estimated.
const TELLING: u32 = 5;
/// First interval, as a fraction of the pause, where none can be estimated; `FIRST_DISTANCE` are its bounds in seconds.
const FIRST_PART: f64 = 0.05;
const FIRST_DISTANCE: (f64, f64) = (0.05, 3.0);

/// Sleeps for a pause. Returns false where asking ended meanwhile.
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

/// Limits the rate and the number of requests to an endpoint. All workers share one limiter.
#[derive(Debug)]
pub struct RateLimiter {
    /// Seconds per request, from the limit on requests.
    per_request: f64,
    /// Seconds per token, from the limit on tokens.
    per_token: f64,
    /// Largest number of requests under way.
    most: f64,
    found: Mutex<FoundPace>,
}

/// State of the endpoint, estimated from its answers.
#[derive(Debug)]
struct FoundPace {
    /// Earliest time of the next request.
    next: Instant,
    /// Seconds between two requests.
    distance: f64,
    /// Number of requests accepted since `since`.
    accepted: u32,
    since: Instant,
    /// Time of the last change of the interval. Answers to requests that were sent earlier carry no new information.
    lowered: Instant,
    /// Time of the last answer.
    answered: Option<Instant>,
    /// Largest number of requests under way at present; `under_way` is the actual number.
    at_once: f64,
    under_way: u32,
    /// Time when the largest number was last halved.
    halved: Instant,
}

/// Permission for one request. The request counts as under way until this value is dropped.
#[derive(Debug)]
pub struct RequestTurn<'p> {
    pace: &'p RateLimiter,
    /// Time when the request began.
    begun: Instant,
}

impl Drop for RequestTurn<'_> {
    fn drop(&mut self) {
        let mut found = self.pace.found();
        found.under_way = found.under_way.saturating_sub(1);
    }
}

impl RateLimiter {
    /// Creates a limiter with limits per minute (0: no limit), and the largest number of requests under way.
    pub fn new(requests: f64, tokens: f64, most: usize) -> Self {
        let seconds = |limit: f64| if limit > 0.0 { 60.0 / limit } else { 0.0 };
        let (now, most) = (Instant::now(), most as f64);
        let found = FoundPace {
            next: now,
            distance: 0.0,
            accepted: 0,
            since: now,
            lowered: now,
            answered: None,
            at_once: most,
            under_way: 0,
            halved: now,
        };
        Self { per_request: seconds(requests), per_token: seconds(tokens), most, found: Mutex::new(found) }
    }

    fn found(&self) -> MutexGuard<'_, FoundPace> {
        self.found.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// Waits for permission to send a request of `tokens` tokens; `None` where asking ended meanwhile.
    pub fn turn(&self, tokens: u64, halted: &dyn Fn() -> bool) -> Option<RequestTurn<'_>> {
        loop {
            let wait = {
                let mut found = self.found();
                let begun = Instant::now();
                if f64::from(found.under_way) + 1.0 > found.at_once {
                    SLICE
                } else if found.next <= begun {
                    if halted() {
                        return None;
                    }
                    let own = self.per_request.max(self.per_token * tokens as f64);
                    found.next = begun + Duration::from_secs_f64(own.max(found.distance).min(LONGEST));
                    found.under_way += 1;
                    return Some(RequestTurn { pace: self, begun });
                } else {
                    found.next - begun
                }
            };
            if !sleep(wait, halted) {
                return None;
            }
        }
    }

    /// Records that a request was accepted.
    pub fn answered(&self) {
        let mut found = self.found();
        found.accepted += 1;
        found.answered = Some(Instant::now());
        found.distance *= 0.99;
        found.at_once = (found.at_once + 0.5 / found.at_once).min(self.most);
    }

    /// Returns the time since the last answer, or since `begun` if that is later.
    pub fn unanswered(&self, begun: Instant) -> Duration {
        self.found().answered.map_or(begun, |answered| answered.max(begun)).elapsed()
    }

    /// Records that the endpoint was busy. No request is sent during `pause`; then requests are sent one by one.
    pub fn hold(&self, turn: &RequestTurn<'_>, pause: Duration) {
        let mut found = self.found();
        let now = Instant::now();
        found.next = found.next.max(now + pause);
        if turn.begun < found.lowered {
            return;
        }
        let pause = pause.as_secs_f64();
        let whole = now.saturating_duration_since(found.since).as_secs_f64() + pause;
        let told = if found.accepted >= TELLING {
            whole / f64::from(found.accepted)
        } else {
            (FIRST_PART * pause).clamp(FIRST_DISTANCE.0, FIRST_DISTANCE.1).max(1.5 * found.distance)
        };
        found.distance = told.min(LONGEST_FOUND);
        (found.lowered, found.since, found.accepted) = (now, found.next, 0);
    }

    /// Records that a request timed out, and halves the number of requests under way.
    pub fn timed_out(&self, turn: &RequestTurn<'_>) {
        let mut found = self.found();
        if turn.begun >= found.halved {
            found.at_once = (found.at_once.floor() / 2.0).max(1.0);
            found.halved = Instant::now();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_distance_is_that_of_the_requests_that_were_accepted() {
        let pace = RateLimiter::new(0.0, 0.0, 8);
        let never = || false;
        let turns: Vec<_> = (0..3).map(|_| pace.turn(1, &never).expect("a turn")).collect();
        (0..20).for_each(|_| pace.answered());
        // Twenty accepted requests, then a pause of one minute: an interval of three seconds.
        pace.hold(&turns[0], Duration::from_secs(60));
        let distance = pace.found().distance;
        assert!((distance - 3.0).abs() < 0.1, "{distance}");
        // A busy answer to an earlier request does not change the interval again.
        pace.hold(&turns[1], Duration::from_secs(60));
        assert_eq!(pace.found().distance, distance);
        pace.answered();
        assert!(pace.found().distance < distance);
    }

    #[test]
    fn time_outs_halve_what_is_under_way_once_and_answers_let_it_grow() {
        let pace = RateLimiter::new(0.0, 0.0, 8);
        let never = || false;
        let turns: Vec<_> = (0..8).map(|_| pace.turn(1, &never).expect("a turn")).collect();
        turns.iter().for_each(|turn| pace.timed_out(turn));
        assert_eq!(pace.found().at_once, 4.0, "all of them were sent together");
        drop(turns);
        for half in [2.0, 1.0, 1.0] {
            let turn = pace.turn(1, &never).expect("a turn");
            pace.timed_out(&turn);
            assert_eq!(pace.found().at_once, half);
        }
        (0..100).for_each(|_| pace.answered());
        assert_eq!(pace.found().at_once, 8.0);
        assert_eq!(pace.found().under_way, 0);
    }
}
