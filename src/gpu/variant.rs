//! Implementations besides the baseline, and their names.

use crate::error::{Error, Result};

/// PCI's numbers of vendors.
const PCI_AMD: u32 = 0x1002;
const PCI_INTEL: u32 = 0x8086;
const PCI_NVIDIA: u32 = 0x10de;

/// Implementation that a device may use instead of the baseline. Matmul variants add the terms of a sum one after the other, in the
/// baseline's order. Their results are bit-identical, so they may be chosen by speed alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Variant {
    /// Matmul in tiles of 32×32 with vec4 loads and stores: for few rows.
    Tiles32,
    /// Matmul in tiles of 64×64 with vec4 loads and stores.
    Tiles64,
    /// Like [`Self::Tiles64`] with half the invocations, each with twice the outputs: for GPUs with many registers.
    Tiles64Wide,
    /// Matmul in tiles of 128×128 with vec4 loads and stores: the fewest loads from memory per multiplication.
    Tiles128,
    /// Like [`Self::Tiles128`] with half the invocations, each with twice the outputs: for GPUs with many registers.
    Tiles128Wide,
    /// Attention with tiles of keys in workgroup memory, scores and outputs in blocks of registers.
    Flash,
    /// Like [`Self::Flash`] with fewer values per invocation, and gradients of keys and of values in kernels of their own: for GPUs with few
    /// registers.
    FlashNarrow,
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
    pub const ALL: [Self; 10] = [
        Self::Tiles32,
        Self::Tiles64,
        Self::Tiles64Wide,
        Self::Tiles128,
        Self::Tiles128Wide,
        Self::Flash,
        Self::FlashNarrow,
        Self::Rows,
        Self::Cpu,
        Self::Lanes,
    ];

    /// Returns the name that `--variant` takes.
    pub fn name(self) -> &'static str {
        match self {
            Self::Tiles32 => "tiles32",
            Self::Tiles64 => "tiles64",
            Self::Tiles64Wide => "tiles64wide",
            Self::Tiles128 => "tiles128",
            Self::Tiles128Wide => "tiles128wide",
            Self::Flash => "flash",
            Self::FlashNarrow => "flashnarrow",
            Self::Rows => "rows",
            Self::Cpu => "cpu",
            Self::Lanes => "lanes",
        }
    }

    /// Returns the variants that a CPU or a GPU may use by default. `vendor` is the PCI vendor, 0 where it is unknown. An
    /// invocation has 128 registers of 8 lanes on Intel's GPUs and up to 255 on AMD's and NVIDIA's: what does not fit is spilled
    /// (benches/results/isa.md).
    pub fn default_for(is_cpu: bool, vendor: u32) -> Vec<Self> {
        let has_many_registers = [PCI_AMD, PCI_NVIDIA].contains(&vendor);
        let suits = |variant: &Self| match variant {
            Self::Cpu | Self::Lanes => is_cpu,
            Self::Tiles64Wide | Self::Tiles128Wide => !is_cpu && has_many_registers,
            Self::Flash => !is_cpu && vendor != PCI_INTEL,
            Self::FlashNarrow => !is_cpu && vendor == PCI_INTEL,
            _ => !is_cpu,
        };
        Self::ALL.into_iter().filter(suits).collect()
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
    fn variants_suit_a_vendors_registers() {
        let has = |variant, is_cpu, vendor| Variant::default_for(is_cpu, vendor).contains(&variant);
        for vendor in [PCI_AMD, PCI_NVIDIA] {
            for wide in [Variant::Tiles64Wide, Variant::Tiles128Wide] {
                assert!(has(wide, false, vendor));
            }
            assert!(!has(Variant::FlashNarrow, false, vendor));
        }
        for vendor in [PCI_INTEL, 0] {
            assert!(has(Variant::Tiles128, false, vendor));
            assert!(!has(Variant::Tiles64Wide, false, vendor) && !has(Variant::Tiles128Wide, false, vendor));
            assert_eq!(
                [Variant::FlashNarrow, Variant::Flash].map(|v| has(v, false, vendor)),
                [vendor != 0, vendor == 0]
            );
        }
        assert_eq!(Variant::default_for(true, PCI_AMD), [Variant::Cpu, Variant::Lanes]);
    }

    #[test]
    fn lists_are_read_and_unknown_names_refused() {
        assert_eq!(Variant::parse_list("baseline").unwrap(), []);
        assert_eq!(Variant::parse_list("cpu, tiles64,cpu").unwrap(), [Variant::Tiles64, Variant::Cpu]);
        let error = Variant::parse_list("tiles65").unwrap_err().to_string();
        assert!(error.contains("`tiles65`") && error.contains("tiles64"), "{error}");
    }
}
