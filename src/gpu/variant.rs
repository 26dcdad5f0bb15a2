//! Implementations besides the baseline, and their names.

use crate::error::{Error, Result};

/// Implementation that a device may use instead of the baseline. Matmul variants add the terms of a sum one after the other, in the
/// baseline's order. Their results are bit-identical, so they may be chosen by speed alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Variant {
    /// Matmul in tiles of 32×32 with vec4 loads and stores: for few rows.
    Tiles32,
    /// Matmul in tiles of 64×64 with vec4 loads and stores.
    Tiles64,
    /// Matmul in tiles of 128×128 with vec4 loads and stores: the fewest loads per multiplication.
    Tiles128,
    /// Attention with tiles of keys in workgroup memory, scores and outputs in blocks of registers.
    Flash,
    /// Norms, log-probabilities, column sums, gathers and embeddings with several vec4 loads in flight, for rows of whole vec4s. Sums are added
    /// in another order than the baseline's, so results may differ from it in the last bits. That order depends on a row's width, and not on
    /// the rows beside it.
    Rows,
    /// Matmul and attention without workgroup memory, in workgroups as wide as a vector: for CPU adapters.
    Cpu,
    /// Like [`Self::Cpu`], but values pass from lane to lane: for CPU adapters with subgroups of 8 or more.
    Lanes,
}

impl Variant {
    /// All variants, in the order of `jointwise info`.
    pub const ALL: [Self; 7] =
        [Self::Tiles32, Self::Tiles64, Self::Tiles128, Self::Flash, Self::Rows, Self::Cpu, Self::Lanes];

    /// Returns the name that `--variant` takes.
    pub fn name(self) -> &'static str {
        match self {
            Self::Tiles32 => "tiles32",
            Self::Tiles64 => "tiles64",
            Self::Tiles128 => "tiles128",
            Self::Flash => "flash",
            Self::Rows => "rows",
            Self::Cpu => "cpu",
            Self::Lanes => "lanes",
        }
    }

    /// Returns the variants that a CPU or a GPU may use by default.
    pub fn default_for(is_cpu: bool) -> Vec<Self> {
        Self::ALL.into_iter().filter(|v| matches!(v, Self::Cpu | Self::Lanes) == is_cpu).collect()
    }

    /// Parses `baseline` (no variants), or names separated by commas.
    ///
    /// # Errors
    /// [`Error::Flag`] listing the names.
    pub fn parse_list(text: &str) -> Result<Vec<Self>> {
        if text == "baseline" {
            return Ok(Vec::new());
        }
        let parse = |name: &str| {
            Self::ALL.into_iter().find(|v| v.name() == name.trim()).ok_or_else(|| {
                let names: Vec<&str> = Self::ALL.iter().map(|v| v.name()).collect();
                Error::flag("variant", format!("`{name}`: choose baseline, or from {}", names.join(", ")))
            })
        };
        let mut all = text.split(',').map(parse).collect::<Result<Vec<_>>>()?;
        all.sort_unstable();
        all.dedup();
        Ok(all)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_read_and_unknown_names_refused() {
        assert_eq!(Variant::parse_list("baseline").unwrap(), []);
        assert_eq!(Variant::parse_list("cpu, tiles64,cpu").unwrap(), [Variant::Tiles64, Variant::Cpu]);
        let error = Variant::parse_list("tiles65").unwrap_err().to_string();
        assert!(error.contains("`tiles65`") && error.contains("tiles64"), "{error}");
    }
}
