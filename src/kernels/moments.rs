//! AdamW's moments on the device: f32, or eight bits with one scale per block (arXiv 2110.02861), as in bitsandbytes' AdamW8bit.
//! `shaders/shared/moments*.wgsl` read and write this layout.

use super::storage::{DYNAMIC, DYNAMIC_UNSIGNED};
use crate::gpu::{Gpu, Role, Shader, Slot};

/// Elements per block, which share a scale and are updated by one workgroup.
pub const BLOCK: usize = 256;

/// Optimiser (`--optim`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Optim {
    /// AdamW with moments in f32.
    Adamw,
    /// AdamW with moments in eight bits; small tensors, vectors and embeddings keep f32.
    Adamw8bit,
}

impl Optim {
    /// All optimisers.
    pub const ALL: [Self; 2] = [Self::Adamw, Self::Adamw8bit];

    /// Returns the name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Adamw => "adamw",
            Self::Adamw8bit => "adamw8bit",
        }
    }
}

/// AdamW's moments of a bucket of parameters.
#[derive(Debug, Clone)]
pub enum MomentFormat {
    /// No moments: only gradients are wanted, or nothing is trained.
    None,
    /// f32, one word per value.
    F32 {
        /// Averages of gradients.
        m: Slot,
        /// Averages of squared gradients.
        v: Slot,
    },
    /// Eight bits, four codes per word, in whole blocks. Slots of zeros decode to zero.
    EightBits {
        /// Codes of m in the signed map.
        m: Slot,
        /// Codes of v in the unsigned map.
        v: Slot,
        /// (blocks, 2) f32: absmax of m and of v per block.
        absmax: Slot,
        /// (2, 256) f32: values of the codes, as [`maps()`] uploads them.
        maps: Slot,
    },
}

/// Uploads (2, 256) f32: the value of each code of m and of v, in units of the block's absmax.
pub fn maps(gpu: &Gpu) -> Slot {
    let slot = gpu.alloc_persistent(Role::Moments, 2 * 256);
    gpu.write(&slot, &[*DYNAMIC, *DYNAMIC_UNSIGNED].concat());
    slot
}

impl MomentFormat {
    /// Allocates f32 moments of zeros for `n` elements.
    pub fn f32(gpu: &Gpu, n: usize) -> Self {
        let moment = || gpu.alloc_persistent(Role::Moments, n);
        Self::F32 { m: moment(), v: moment() }
    }

    /// Allocates moments of zeros in eight bits for `n` elements.
    pub fn eight_bits(gpu: &Gpu, n: usize, maps: &Slot) -> Self {
        let blocks = n.div_ceil(BLOCK);
        let codes = || gpu.alloc_persistent(Role::Moments, blocks * BLOCK / 4);
        Self::EightBits {
            m: codes(),
            v: codes(),
            absmax: gpu.alloc_persistent(Role::Moments, 2 * blocks),
            maps: maps.clone(),
        }
    }

    /// Returns the slots in the order of their bindings.
    pub(super) fn slots(&self) -> Vec<&Slot> {
        match self {
            Self::None => Vec::new(),
            Self::F32 { m, v } => vec![m, v],
            Self::EightBits { m, v, absmax, maps } => vec![m, v, absmax, maps],
        }
    }

    /// Makes the update's shader import the module for this moment format.
    pub(super) fn select(&self, shader: Shader) -> Shader {
        match self {
            Self::EightBits { .. } => eight_bits(shader),
            Self::None | Self::F32 { .. } => shader,
        }
    }
}

/// Makes a shader use eight-bit moments.
pub(super) fn eight_bits(shader: Shader) -> Shader {
    shader.substitute("shared/moments", "shared/moments_8bit")
}
