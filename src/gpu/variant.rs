//! Implementations beside the baseline, by name.

use crate::error::{Error, Result};

/// An implementation that a device may be given beside the baseline. Products in all of them add the terms of a sum in the baseline's order,
/// one after the other: which of them runs does not change a bit, so a choice by speed alone is safe.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Variant {
    /// Products in tiles of 32×32, loads and stores in quads: for few rows.
    Tiles32,
    /// The same, 64×64.
    Tiles64,
    /// The same, 128×128: the fewest loads for a multiplication.
    Tiles128,
    /// Attention with tiles of keys in workgroup memory, scores and outputs in blocks of registers.
    Flash,
    /// No workgroup memory, workgroups as wide as a vector: for adapters that are CPUs.
    Cpu,
    /// The same with values handed from lane to lane: for CPUs with subgroups of 8 or more.
    Lanes,
}

impl Variant {
    /// All, in the order of `info`.
    pub const ALL: [Self; 6] = [Self::Tiles32, Self::Tiles64, Self::Tiles128, Self::Flash, Self::Cpu, Self::Lanes];

    /// As `--variant` takes it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Tiles32 => "tiles32",
            Self::Tiles64 => "tiles64",
            Self::Tiles128 => "tiles128",
            Self::Flash => "flash",
            Self::Cpu => "cpu",
            Self::Lanes => "lanes",
        }
    }

    /// What a device is given: for a CPU, or for a GPU.
    pub fn usual(is_cpu: bool) -> Vec<Self> {
        Self::ALL.into_iter().filter(|v| matches!(v, Self::Cpu | Self::Lanes) == is_cpu).collect()
    }

    /// `baseline`, or names with commas between them.
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
