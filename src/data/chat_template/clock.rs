//! Clock for the dates that a template prints.

use std::sync::atomic::{AtomicU64, Ordering};

/// Fixed time, in seconds since 1970 (UTC).
#[derive(Debug)]
pub(super) struct FixedClock(AtomicU64);

impl FixedClock {
    /// Creates a clock that is fixed at the present.
    pub(super) fn now() -> Self {
        let since = web_time::SystemTime::now().duration_since(web_time::UNIX_EPOCH);
        Self(AtomicU64::new(since.map_or(0, |d| d.as_secs())))
    }

    pub(super) fn set(&self, seconds: u64) {
        self.0.store(seconds, Ordering::Relaxed);
    }

    pub(super) fn seconds(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Formats a time like Python's `strftime`, in English and UTC.
///
/// # Errors
/// The directive, if it is not among those that chat templates use.
pub(super) fn strftime(format: &str, seconds: u64) -> Result<String, String> {
    const MONTHS: [&str; 12] = [
        "January",
        "February",
        "March",
        "April",
        "May",
        "June",
        "July",
        "August",
        "September",
        "October",
        "November",
        "December",
    ];
    const DAYS: [&str; 7] = ["Thursday", "Friday", "Saturday", "Sunday", "Monday", "Tuesday", "Wednesday"];
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    // Converts days to a civil date after 1970, by Howard Hinnant's algorithm.
    let z = days + 719_468;
    let of_era = z % 146_097;
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * of_year + 2) / 153;
    let day = of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    let year = year_of_era + z / 146_097 * 400 + u64::from(month <= 2);
    let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    let day_of_year = if month > 2 { of_year + 60 + u64::from(leap) } else { of_year - 305 };
    let (month_name, day_name) = (MONTHS[month as usize - 1], DAYS[(days % 7) as usize]);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    let hour_12 = if hour % 12 == 0 { 12 } else { hour % 12 };

    let mut out = String::new();
    let mut rest = format.chars();
    while let Some(c) = rest.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        let (plain, directive) = match rest.next() {
            Some('-') => (true, rest.next()),
            other => (false, other),
        };
        let padded = |n: u64, width: usize| if plain { n.to_string() } else { format!("{n:0width$}") };
        out += &match directive {
            Some('Y') => year.to_string(),
            Some('y') => padded(year % 100, 2),
            Some('m') => padded(month, 2),
            Some('d') => padded(day, 2),
            Some('j') => padded(day_of_year, 3),
            Some('H') => padded(hour, 2),
            Some('I') => padded(hour_12, 2),
            Some('M') => padded(minute, 2),
            Some('S') => padded(second, 2),
            Some('f') => "000000".into(),
            Some('B') => month_name.into(),
            Some('b' | 'h') => month_name[..3].into(),
            Some('A') => day_name.into(),
            Some('a') => day_name[..3].into(),
            Some('p') => if hour < 12 { "AM" } else { "PM" }.into(),
            Some('F') => format!("{year}-{month:02}-{day:02}"),
            Some('T') => format!("{hour:02}:{minute:02}:{second:02}"),
            Some('z' | 'Z') => String::new(),
            Some('%') => "%".into(),
            other => return Err(format!("strftime_now: `%{}` is not supported", other.unwrap_or_default())),
        };
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::strftime;

    #[test]
    fn dates_are_python_s() {
        let leap_day = 951_782_400 + 3661;
        assert_eq!(strftime("%d %b %Y %A %H:%M:%S %j", leap_day).as_deref(), Ok("29 Feb 2000 Tuesday 01:01:01 060"));
        assert_eq!(strftime("%Y-%m-%d %a%% %j", 0).as_deref(), Ok("1970-01-01 Thu% 001"));
        assert_eq!(strftime("%B %-d, %y %I %p %j", 1_798_761_599).as_deref(), Ok("December 31, 26 11 PM 365"));
        assert_eq!(strftime("%j %F %T", 1_735_603_200 + 86_400).as_deref(), Ok("001 2025-01-01 00:00:00"));
        assert!(strftime("%Q", 0).unwrap_err().contains("`%Q`"));
    }
}
