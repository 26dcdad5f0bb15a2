//! Treatment of bad rows, set by `--on-bad-row` and `--max-bad-rows`.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Treatment of a row that cannot be read, or that the template cannot represent.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub enum BadRows {
    /// A bad row stops the program.
    #[default]
    Error,
    /// A bad row is skipped, counted and reported. More bad rows than the limit stop the program.
    Skip(BadRowLimit),
}

/// Limit on the number of bad rows that are skipped.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "BadRowLimitText")]
pub enum BadRowLimit {
    /// Fraction of all rows, 0 to 1.
    Share(f64),
    /// Number of rows.
    Count(usize),
}

impl Default for BadRowLimit {
    /// Returns the default limit, 1 %.
    fn default() -> Self {
        Self::Share(0.01)
    }
}

impl BadRowLimit {
    /// Returns the largest number of bad rows among `n_rows` rows.
    pub fn most(self, n_rows: usize) -> usize {
        match self {
            // In f64, 0.29 times 100 is slightly below 29.
            Self::Share(share) => (share * n_rows as f64 + 1e-9).floor() as usize,
            Self::Count(count) => count,
        }
    }
}

impl FromStr for BadRowLimit {
    type Err = String;

    /// Parses `1%`, a fraction below 1 such as `0.01`, or a count such as `20`.
    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("`{}`: expected a part of the rows (1% or 0.01) or a count (20)", text.escape_debug());
        if let Ok(count) = text.parse::<usize>() {
            return Ok(Self::Count(count));
        }
        let share = match text.strip_suffix('%') {
            Some(percent) => percent.trim_end().parse::<f64>().map(|percent| percent / 100.0).ok(),
            None => text.parse::<f64>().ok().filter(|share| *share < 1.0),
        };
        share.filter(|share| (0.0..=1.0).contains(share)).map(Self::Share).ok_or_else(wrong)
    }
}

impl fmt::Display for BadRowLimit {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Self::Share(share) => write!(f, "{}%", (share * 1e8).round() / 1e6),
            Self::Count(count) => write!(f, "{count}"),
        }
    }
}

impl From<BadRowLimit> for String {
    fn from(limit: BadRowLimit) -> Self {
        limit.to_string()
    }
}

/// Limit in a settings file: a text, or a number.
#[derive(Deserialize)]
#[serde(untagged)]
enum BadRowLimitText {
    Text(String),
    Count(u64),
    Share(f64),
}

impl TryFrom<BadRowLimitText> for BadRowLimit {
    type Error = String;

    fn try_from(written: BadRowLimitText) -> Result<Self, String> {
        match written {
            BadRowLimitText::Text(text) => text.parse(),
            BadRowLimitText::Count(count) => count.to_string().parse(),
            BadRowLimitText::Share(share) => share.to_string().parse(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_parts_or_counts() {
        for (text, limit, of_250, shown) in [
            ("1%", BadRowLimit::Share(0.01), 2, "1%"),
            ("0.5 %", BadRowLimit::Share(0.005), 1, "0.5%"),
            ("0.01", BadRowLimit::Share(0.01), 2, "1%"),
            ("0.028", BadRowLimit::Share(0.028), 7, "2.8%"),
            ("100%", BadRowLimit::Share(1.0), 250, "100%"),
            ("0.0", BadRowLimit::Share(0.0), 0, "0%"),
            ("0", BadRowLimit::Count(0), 0, "0"),
            ("20", BadRowLimit::Count(20), 20, "20"),
        ] {
            let parsed: BadRowLimit = text.parse().unwrap();
            assert_eq!((parsed, parsed.most(250), parsed.to_string()), (limit, of_250, shown.into()), "{text}");
        }
        assert_eq!(BadRowLimit::Share(0.29).most(100), 29);
        for text in ["", "%", "1.0", "1.5", "-1", "-0.1", "101%", "nan", "nan%", "inf", "few", "1%%"] {
            let error = text.parse::<BadRowLimit>().unwrap_err();
            assert!(error.contains("1% or 0.01"), "{text}: {error}");
        }
    }

    #[test]
    fn settings_files_hold_numbers_or_text() {
        let read = |json: &str| serde_json::from_str::<BadRowLimit>(json).map_err(|e| e.to_string());
        assert_eq!(read("\"2%\""), Ok(BadRowLimit::Share(0.02)));
        assert_eq!(read("0.02"), Ok(BadRowLimit::Share(0.02)));
        assert_eq!(read("3"), Ok(BadRowLimit::Count(3)));
        assert!(read("1.5").is_err() && read("-3").is_err() && read("true").is_err());
        assert_eq!(serde_json::to_string(&BadRowLimit::default()).unwrap(), "\"1%\"");
    }
}
