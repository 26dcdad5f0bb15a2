//! How exactly products are computed, attention's too.

use crate::error::{Error, Result};

/// How exactly a product of f32 matrices is computed: PyTorch's names. Below the highest, results have other bits, so a device does not
/// choose it by speed: it is asked for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum MatmulPrecision {
    /// f32 throughout.
    #[default]
    Highest,
    /// Three products of f16 on cooperative matrices for one of f32, summed in f32: within f32's tolerances.
    High,
    /// One product of f16 on cooperative matrices, summed in f32: operands are rounded to 11 bits.
    Medium,
}

impl MatmulPrecision {
    /// All, the most exact first.
    pub const ALL: [Self; 3] = [Self::Highest, Self::High, Self::Medium];

    /// As `--matmul-precision` takes it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Highest => "highest",
            Self::High => "high",
            Self::Medium => "medium",
        }
    }

    /// A name.
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
