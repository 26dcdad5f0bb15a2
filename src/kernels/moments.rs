//! AdamW's moments on the device: f32, or eight bits and a scale a block (arXiv 2110.02861), as bitsandbytes' AdamW8bit has them.
//! `shaders/shared/moments*.wgsl` read and write what is held here.

use super::storage::{DYNAMIC, DYNAMIC_UNSIGNED};
use crate::gpu::{Gpu, Role, Shader, Slot};

/// Elements that share a scale: what a workgroup of the update walks over.
pub const BLOCK: usize = 256;

/// The optimiser (`--optim`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Optim {
    /// AdamW with moments in f32.
    Adamw,
    /// AdamW with moments in eight bits, where there are many.
    Adamw8bit,
}

impl Optim {
    /// All of them.
    pub const ALL: [Self; 2] = [Self::Adamw, Self::Adamw8bit];

    /// As on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Adamw => "adamw",
            Self::Adamw8bit => "adamw8bit",
        }
    }
}

/// Both moments of a page.
#[derive(Debug, Clone)]
pub enum Moments {
    /// There is no optimiser: gradients alone are wanted, or not even these.
    None,
    /// One word a value.
    F32 {
        /// Of gradients.
        m: Slot,
        /// Of their squares.
        v: Slot,
    },
    /// Four codes a word, in whole blocks. Zeros are zero.
    EightBits {
        /// Codes of the signed map.
        m: Slot,
        /// Codes of the unsigned one.
        v: Slot,
        /// (blocks, 2) f32: the largest magnitudes of m and v.
        absmax: Slot,
        /// [`maps`].
        maps: Slot,
    },
}

/// (2, 256) f32: what codes of m and of v stand for, in units of their block's largest magnitude.
pub fn maps(gpu: &Gpu) -> Slot {
    let slot = gpu.lasting(Role::Moments, 2 * 256);
    gpu.write(&slot, &[*DYNAMIC, *DYNAMIC_UNSIGNED].concat());
    slot
}

impl Moments {
    /// Zeros for `n` elements.
    pub fn f32(gpu: &Gpu, n: usize) -> Self {
        let moment = || gpu.lasting(Role::Moments, n);
        Self::F32 { m: moment(), v: moment() }
    }

    /// Zeros for `n` elements.
    pub fn eight_bits(gpu: &Gpu, n: usize, maps: &Slot) -> Self {
        let blocks = n.div_ceil(BLOCK);
        let codes = || gpu.lasting(Role::Moments, blocks * BLOCK / 4);
        Self::EightBits { m: codes(), v: codes(), absmax: gpu.lasting(Role::Moments, 2 * blocks), maps: maps.clone() }
    }

    /// In the order of their bindings.
    pub(super) fn slots(&self) -> Vec<&Slot> {
        match self {
            Self::None => Vec::new(),
            Self::F32 { m, v } => vec![m, v],
            Self::EightBits { m, v, absmax, maps } => vec![m, v, absmax, maps],
        }
    }

    /// The module that the update imports for them.
    pub(super) fn select(&self, shader: Shader) -> Shader {
        match self {
            Self::EightBits { .. } => eight_bits(shader),
            Self::None | Self::F32 { .. } => shader,
        }
    }
}

/// A shader over moments in eight bits.
pub(super) fn eight_bits(shader: Shader) -> Shader {
    shader.substitute("shared/moments", "shared/moments_8bit")
}
