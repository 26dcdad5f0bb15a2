//! Parsers of flag values.

use std::collections::BTreeSet;

use crate::error::{Error, Result};
use crate::kernels::moments::Optim;
use crate::model::saved::SavedDtype;
use crate::model::weights::{BaseDtype, ParamDtype};
use crate::objective::Objective;
use crate::ranks::ReduceDtype;
use crate::train::lr_schedule::LrSchedulerType;

/// Returns the value with this name.
pub(super) fn parse_name<T: Copy, const N: usize>(
    all: [T; N],
    name: fn(T) -> &'static str,
    text: &str,
) -> Result<T, String> {
    let found = all.into_iter().find(|&value| name(value) == text);
    found.ok_or_else(|| format!("expected one of {}", all.map(name).join(", ")))
}

pub(super) fn parse_base_dtype(text: &str) -> Result<BaseDtype, String> {
    parse_name(BaseDtype::ALL, BaseDtype::name, text)
}

pub(super) fn parse_optim(text: &str) -> Result<Optim, String> {
    parse_name(Optim::ALL, Optim::name, text)
}

pub(super) fn parse_param_dtype(text: &str) -> Result<ParamDtype, String> {
    parse_name(ParamDtype::ALL, ParamDtype::name, text)
}

pub(super) fn parse_reduce_dtype(text: &str) -> Result<ReduceDtype, String> {
    parse_name(ReduceDtype::ALL, ReduceDtype::name, text)
}

pub(super) fn parse_saved_dtype(text: &str) -> Result<SavedDtype, String> {
    parse_name(SavedDtype::ALL, SavedDtype::name, text)
}

/// Largest number of a layer: far beyond any model.
const MOST_LAYERS: usize = 1 << 16;

/// Parses numbers and ranges of layers, such as `0,2,8-11`. Returns them in order, each once.
///
/// # Errors
/// [`Error::Flag`] for a text of another form.
pub(super) fn parse_layers(text: &str) -> Result<Vec<usize>> {
    let number = |text: &str| text.trim().parse::<usize>().ok().filter(|&n| n < MOST_LAYERS);
    let range = |part: &str| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        Some(number(first)?..=number(last)?).filter(|range| !range.is_empty())
    };
    let ranges: Option<Vec<_>> = text.split(',').map(range).collect();
    let ranges =
        ranges.ok_or_else(|| Error::flag("lora-layers", format!("expected 16-31 or 0,2,8-11, found `{text}`")))?;
    let layers: BTreeSet<usize> = ranges.into_iter().flatten().collect();
    Ok(layers.into_iter().collect())
}

pub(super) fn parse_objective(text: &str) -> Result<Objective, String> {
    match text {
        "jpo" => Ok(Objective::Jpo),
        "dpo" => Ok(Objective::Dpo),
        _ => Err("expected jpo or dpo".into()),
    }
}

/// Units of a size with their bytes: powers of ten, as memory is sold, and powers of two, as it is counted.
const SIZES: [(&str, f64); 4] = [("MB", 1e6), ("MiB", (1 << 20) as f64), ("GB", 1e9), ("GiB", (1 << 30) as f64)];

/// Most bytes of a device's memory: far beyond any device, and exact in f64.
const MOST_BYTES: f64 = 1e15;

/// Parses a size in bytes. A number without a unit is refused, because any unit may be meant.
pub(super) fn parse_size(text: &str) -> Result<u64, String> {
    let (number, unit) = text.split_at(text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len()));
    let unit = SIZES.into_iter().find(|(name, _)| *name == unit.trim_start());
    let bytes = number.parse::<f64>().ok().zip(unit).map(|(n, (_, bytes))| n * bytes);
    let bytes =
        bytes.ok_or_else(|| format!("expected a number and one of {}, such as 8GiB", SIZES.map(|s| s.0).join(", ")))?;
    if !(1.0..=MOST_BYTES).contains(&bytes) {
        return Err(format!("expected 1 byte to {MOST_BYTES:e}"));
    }
    Ok(bytes as u64)
}

pub(super) fn parse_lr_scheduler_type(text: &str) -> Result<LrSchedulerType, String> {
    parse_name(LrSchedulerType::ALL, LrSchedulerType::name, text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_a_number_and_a_unit() {
        for (text, bytes) in [
            ("8GiB", 8 << 30),
            ("8 GiB", 8 << 30),
            ("8192MiB", 8 << 30),
            ("8GB", 8_000_000_000),
            ("6.5GB", 6_500_000_000),
            ("0.5MiB", 1 << 19),
            ("1.5MB", 1_500_000),
        ] {
            assert_eq!(parse_size(text), Ok(bytes), "{text}");
        }
        let words = "8 8.5 GiB .GiB 8gib 8G 8KiB 8GiBs -8GiB +8GiB 1.2.3GiB 8,5GB 1e3MiB infGiB nanGiB";
        for text in words.split(' ').chain(["", "8GiB 8", "eight GiB"]) {
            let said = parse_size(text).expect_err(text);
            assert!(said.contains("GiB") && said.contains("MB"), "{text}: {said}");
        }
        for text in ["0GiB", "0.0000001MB", "99999999999999999GiB"] {
            let said = parse_size(text).expect_err(text);
            assert!(said.contains("1 byte"), "{text}: {said}");
        }
    }
}
