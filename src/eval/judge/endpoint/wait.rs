//! Pauses that an endpoint asks for in its headers.

use std::time::{Duration, SystemTime};

use reqwest::header::HeaderMap;

/// Longest pause that is derived from a limit's reset time, because a request may be possible long before the whole limit is available
/// again.
const LONGEST_HINT: Duration = Duration::from_secs(60);

/// Returns a header's text. Also finds a header that a proxy passed on from the provider behind it.
fn header<'h>(headers: &'h HeaderMap, name: &str) -> Option<&'h str> {
    let value = headers.get(name).or_else(|| headers.get(format!("llm_provider-{name}")))?;
    Some(value.to_str().ok()?.trim())
}

/// Parses `Retry-After`: seconds, or an HTTP date. Seconds may have a fraction, which some endpoints send.
pub fn retry_after(headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
    let milliseconds = header(headers, "retry-after-ms").and_then(|text| text.parse::<f64>().ok());
    let text = header(headers, "retry-after");
    let seconds = milliseconds.map(|ms| ms / 1e3).or_else(|| text?.parse::<f64>().ok()).filter(|s| s.is_finite());
    if let Some(seconds) = seconds {
        return Duration::try_from_secs_f64(seconds.max(0.0)).ok();
    }
    let at = httpdate::parse_http_date(text?).ok()?;
    Some(at.duration_since(now).unwrap_or_default())
}

/// Parses `x-ratelimit-reset-requests` and similar headers, for responses without `Retry-After`: the last reset among exhausted limits,
/// else the first reset of all.
pub fn reset(headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
    let (mut used_up, mut first) = (None, None);
    for limit in ["-requests", "-tokens", ""] {
        let Some(wait) = header(headers, &format!("x-ratelimit-reset{limit}")).and_then(|text| until(text, now)) else {
            continue;
        };
        if header(headers, &format!("x-ratelimit-remaining{limit}")).is_some_and(|left| left == "0") {
            used_up = used_up.max(Some(wait));
        }
        first = Some(first.map_or(wait, |first: Duration| first.min(wait)));
    }
    used_up.or(first).map(|wait| wait.min(LONGEST_HINT))
}

/// Parses a pause as limits give it: `6m0s`, `20ms`, seconds, or a time since 1970 in seconds or milliseconds.
fn until(text: &str, now: SystemTime) -> Option<Duration> {
    if let Ok(number) = text.parse::<f64>() {
        let since = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs_f64();
        let seconds = match number {
            n if n > 1e12 => n / 1e3 - since,
            n if n > 1e9 => n - since,
            n => n,
        };
        return Duration::try_from_secs_f64(seconds.max(0.0)).ok();
    }
    let (mut rest, mut seconds) = (text, 0.0);
    while !rest.is_empty() {
        let unit = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let end = rest[unit..].find(|c: char| c.is_ascii_digit()).map_or(rest.len(), |n| unit + n);
        let factor = match &rest[unit..end] {
            "ms" => 1e-3,
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3600.0,
            "d" => 86_400.0,
            _ => return None,
        };
        seconds += factor * rest[..unit].parse::<f64>().ok()?;
        rest = &rest[end..];
    }
    (!text.is_empty()).then(|| Duration::try_from_secs_f64(seconds).ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;
    use reqwest::header::RETRY_AFTER;
    use std::time::UNIX_EPOCH;

    #[test]
    fn pauses_are_seconds_or_dates() {
        // Sun, 06 Nov 1994 08:49:37 GMT, in the three formats of RFC 9110.
        let date = UNIX_EPOCH + Duration::from_secs(784_111_777);
        let wait = |value: &str, now: SystemTime| {
            let mut headers = HeaderMap::new();
            headers.insert(RETRY_AFTER, value.parse().expect("a header"));
            retry_after(&headers, now)
        };
        let seconds = |n| Some(Duration::from_secs(n));
        for text in ["Sun, 06 Nov 1994 08:49:37 GMT", "Sunday, 06-Nov-94 08:49:37 GMT", "Sun Nov  6 08:49:37 1994"] {
            assert_eq!(wait(text, date - Duration::from_secs(20)), seconds(20), "{text}");
            assert_eq!(wait(text, date + Duration::from_secs(20)), seconds(0), "{text}: past");
        }
        assert_eq!(wait("7", date), seconds(7));
        assert_eq!(wait(" 0.25 ", date), Some(Duration::from_millis(250)));
        assert_eq!(wait("-3", date), seconds(0));
        for text in ["soon", "", "nan", "1e300", "Sun, 06 Nov 1994"] {
            assert_eq!(wait(text, date), None, "{text}");
        }
        assert_eq!(retry_after(&HeaderMap::new(), date), None);
    }

    #[test]
    fn limits_say_when_they_are_free_again() {
        let now = UNIX_EPOCH + Duration::from_secs(1_800_000_000);
        let milliseconds = |n| Some(Duration::from_millis(n));
        for (text, wait) in [
            ("6m0s", milliseconds(360_000)),
            ("20ms", milliseconds(20)),
            ("1.5s", milliseconds(1500)),
            ("1h2m3s", milliseconds(3_723_000)),
            ("7", milliseconds(7000)),
            ("1800000009", milliseconds(9000)),
            ("1800000009500", milliseconds(9500)),
            ("1700000000", milliseconds(0)),
            ("", None),
            ("soon", None),
            ("3 years", None),
        ] {
            assert_eq!(until(text, now), wait, "{text}");
        }
        let wait = |lines: &[(&'static str, &str)]| {
            let mut headers = HeaderMap::new();
            for (name, value) in lines {
                headers.insert(*name, value.parse().expect("a header"));
            }
            retry_after(&headers, now).or_else(|| reset(&headers, now))
        };
        assert_eq!(wait(&[("llm_provider-retry-after", "3")]), milliseconds(3000));
        assert_eq!(wait(&[("retry-after-ms", "250"), ("retry-after", "1")]), milliseconds(250));
        let (requests, tokens) = (("x-ratelimit-reset-requests", "2s"), ("x-ratelimit-reset-tokens", "9s"));
        assert_eq!(wait(&[requests, tokens]), milliseconds(2000));
        assert_eq!(wait(&[requests, tokens, ("x-ratelimit-remaining-tokens", "0")]), milliseconds(9000));
        assert_eq!(wait(&[("x-ratelimit-reset-tokens", "6m0s")]), milliseconds(60_000), "a hint is no promise");
        assert_eq!(wait(&[]), None);
    }
}
