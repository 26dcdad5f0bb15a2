//! Precision of matrix products, including attention's.

use crate::error::{Error, Result};

/// Precision of products of f32 matrices, with PyTorch's names. Results change below the highest precision, so the user chooses the
/// precision; the program never lowers it for speed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum MatmulPrecision {
    /// Computes in f32 throughout.
    #[default]
    Highest,
    /// Computes an f32 product as three f16 products on cooperative matrices, summed in f32: within f32's tolerances.
    High,
    /// Computes one f16 product on cooperative matrices: operands are rounded to 11 bits. Sums are f32 as matrix units add, which may
    /// truncate 2⁻²⁴ of a sum per 16 terms.
    Medium,
}

impl MatmulPrecision {
    /// All precisions, the most exact first.
    pub const ALL: [Self; 3] = [Self::Highest, Self::High, Self::Medium];

    /// Returns the name that `--matmul-precision` takes.
    pub fn name(self) -> &'static str {
        match self {
            Self::Highest => "highest",
            Self::High => "high",
            Self::Medium => "medium",
        }
    }

    /// Parses a name.
    ///
    /// # Errors
    /// [`Error::Flag`] listing the names.
    pub fn parse(text: &str) -> Result<Self> {
        Self::ALL.into_iter().find(|p| p.name() == text).ok_or_else(|| {
            let names = Self::ALL.map(Self::name).join(", ");
            Error::flag("matmul-precision", format!("`{text}`: choose from {names}"))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_and_others_refused() {
        for precision in MatmulPrecision::ALL {
            assert_eq!(MatmulPrecision::parse(precision.name()).unwrap(), precision);
        }
        let error = MatmulPrecision::parse("low").unwrap_err().to_string();
        assert!(error.contains("`low`") && error.contains("highest"), "{error}");
    }
}
