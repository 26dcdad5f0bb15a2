//! Checks that the values of flags are in their ranges. Errors name the flag and the value.

use crate::error::{Error, Result};

/// Returns whether f32, which kernels take, holds a value: it becomes neither infinite nor, above 0, zero.
fn fits_f32(value: f64) -> bool {
    let held = value as f32;
    held.is_finite() && (value == 0.0 || held.abs() >= f32::MIN_POSITIVE)
}

/// Checks that a value is above 0.
///
/// # Errors
/// [`Error::Flag`] for a value that is not above 0, or not in f32's range.
pub fn positive(flag: &'static str, value: f64) -> Result<()> {
    if value > 0.0 && fits_f32(value) { Ok(()) } else { Err(out_of_range(flag, value, "is not above 0")) }
}

/// Checks that a value is 0 or above.
///
/// # Errors
/// [`Error::Flag`] for a value below 0, or not in f32's range.
pub fn not_negative(flag: &'static str, value: f64) -> Result<()> {
    if value >= 0.0 && fits_f32(value) { Ok(()) } else { Err(out_of_range(flag, value, "is below 0")) }
}

/// Checks that a value is in 0 .. 1.
///
/// # Errors
/// [`Error::Flag`] for a value outside 0 .. 1, also when rounded to f32.
pub fn below_one(flag: &'static str, value: f64) -> Result<()> {
    if (0.0..1.0).contains(&value) && (value as f32) < 1.0 {
        Ok(())
    } else {
        Err(out_of_range(flag, value, "is not in 0 .. 1"))
    }
}

fn out_of_range(flag: &'static str, value: f64, otherwise: &str) -> Error {
    let reason = if value > 0.0 && !fits_f32(value) { "is beyond the range of f32" } else { otherwise };
    Error::flag(flag, format!("{value} {reason}"))
}

/// Checks that a number is not 0.
///
/// # Errors
/// [`Error::Flag`] for 0.
pub fn at_least_one(flag: &'static str, value: usize) -> Result<()> {
    if value > 0 { Ok(()) } else { Err(Error::flag(flag, "must be at least 1")) }
}

/// Checks that a number is at most `most`.
///
/// # Errors
/// [`Error::Flag`] for more than `most`: it would be allocated, or looped over, without end.
#[cfg(feature = "cli")]
pub fn at_most(flag: &'static str, value: usize, most: usize) -> Result<()> {
    if value <= most { Ok(()) } else { Err(Error::flag(flag, format!("{value} is above {most}, the most"))) }
}
