//! Activations that a forward pass saves for the backward pass.

use std::ops::Range;

use crate::gpu::{Recording, Slot};
use crate::kernels::pack::{BF16_MANTISSA, pack_bf16, unpack_bf16};

/// Choice of the activations to save; the others are recomputed. All choices give bit-identical gradients, because the same kernels run
/// on the same values, rounded alike ([`SavedDtype`]).
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum RecomputePolicy {
    /// Nothing: there is no backward pass.
    #[serde(skip)]
    Nothing,
    /// Each layer's input, T·D: the backward pass runs the layer again. About a third more work.
    #[serde(rename = "block")]
    Inputs,
    /// Results of matrix products and attention. The backward pass recomputes norms and activations, each a pass over memory.
    #[serde(rename = "elementwise")]
    Products,
    /// All that the backward pass reads.
    #[serde(rename = "none")]
    Everything,
}

impl RecomputePolicy {
    /// Choices for a backward pass, the fastest first: `--recompute`'s values.
    pub const TRAINING: [Self; 3] = [Self::Everything, Self::Products, Self::Inputs];

    /// Returns the value of `--recompute`, which names the part that is recomputed.
    pub fn recompute(self) -> &'static str {
        match self {
            Self::Nothing | Self::Everything => "none",
            Self::Products => "elementwise",
            Self::Inputs => "block",
        }
    }
}

/// Data type of saved activations (`--saved-dtype`).
///
/// With bf16, the inputs of norms over D and of the MLP's activation are saved as bf16. Norms and activations are then always
/// recomputed, from the rounded inputs. Tensors that attention's backward pass reads stay f32: q, k, v, the head norms' inputs and
/// statistics, attention's output and lse. That pass subtracts numbers that are nearly equal. With rounded q and k, exp(q·k − lse) is
/// off by their whole error, because lse belongs to the exact ones; so is d_y·v − d_o·o. A layer's input that is saved alone stays f32
/// too, so that the layer is recomputed from unrounded values.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SavedDtype {
    /// f32, unrounded.
    F32,
    /// Rounded to the nearest bf16, two to a word.
    Bf16,
    /// Tests only: a 4-bit mantissa, so coarse that the gradient tests must fail. No command offers it.
    #[serde(skip)]
    Coarse,
}

impl SavedDtype {
    /// Choices that a command offers.
    pub const ALL: [Self; 2] = [Self::F32, Self::Bf16];

    /// Returns the data type's name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
            Self::Coarse => "coarse",
        }
    }

    /// Bits of mantissa that are kept, where some are not.
    fn mantissa(self) -> Option<u32> {
        match self {
            Self::F32 => None,
            Self::Bf16 => Some(BF16_MANTISSA),
            Self::Coarse => Some(4),
        }
    }
}

/// Values that a backward pass reads.
#[derive(Debug)]
pub(super) enum ActivationSaved {
    /// f32, unrounded.
    F32(Slot),
    /// bf16, two values per word.
    Bf16 { words: Slot, len: usize },
}

impl ActivationSaved {
    /// Returns the values as f32, in scratch memory where they are stored otherwise.
    pub fn read(&self, rec: &mut Recording) -> Slot {
        match self {
            Self::F32(slot) => slot.clone(),
            Self::Bf16 { words, len } => {
                let slot = rec.gpu().alloc_activation(*len);
                unpack_bf16(rec, words, &slot);
                slot
            }
        }
    }

    fn round(&mut self, rec: &mut Recording, mantissa: u32) {
        if let Self::F32(slot) = self {
            let (words, len) = (rec.gpu().alloc_activation(slot.len().div_ceil(2)), slot.len());
            pack_bf16(rec, mantissa, slot, &words);
            *self = Self::Bf16 { words, len };
        }
    }
}

/// Statistics that a norm saves, per row.
pub(super) type NormStats = Slot;

/// Activations that a layer's backward pass needs.
#[derive(Debug)]
pub struct LayerSaved {
    pub(super) products: ProductsSaved,
    /// `None`: recomputed where it is read.
    pub(super) elementwise: Option<ElementwiseSaved>,
}

impl LayerSaved {
    /// Rounds the activations saved for the backward pass to `dtype`, and drops those that are then recomputed.
    pub(super) fn hold(&mut self, rec: &mut Recording, dtype: SavedDtype) {
        let Some(mantissa) = dtype.mantissa() else { return };
        self.elementwise = None;
        let p = &mut self.products;
        let post = p.attn_post.iter_mut().chain(&mut p.mlp_post).map(|(x, _)| x);
        let u = p.mlp.iter_mut().map(|part| &mut part.u);
        [&mut p.h_in, &mut p.h_mid].into_iter().chain(post).chain(u).for_each(|x| x.round(rec, mantissa));
    }
}

/// Results of matrix products and attention, with the norms' statistics.
#[derive(Debug)]
pub(super) struct ProductsSaved {
    pub h_in: ActivationSaved, // (T, D)
    pub stats1: NormStats,
    pub raw: Option<Slot>, // (T, (H + K)·E) before the head norms
    pub head_stats: Option<[NormStats; 2]>,
    pub qkv: Slot,                                       // (T, (H + 2K)·E)
    pub o: Slot,                                         // (T, H·E)
    pub lse: Slot,                                       // (T, H)
    pub attn_post: Option<(ActivationSaved, NormStats)>, // input of the norm after attention
    pub h_mid: ActivationSaved,                          // (T, D)
    pub stats2: NormStats,
    pub mlp: Vec<MlpSaved>,
    pub mlp_post: Option<(ActivationSaved, NormStats)>,
    pub xa_qkv: Vec<Option<Slot>>, // s·x·Aᵀ of each module, (T, R)
    pub xa_out: Option<Slot>,
}

/// Results that follow from [`ProductsSaved`] element by element, or row by row.
#[derive(Debug)]
pub(super) struct ElementwiseSaved {
    pub x1: Slot,     // (T, D), the normed input of attention
    pub x2: Slot,     // (T, D), that of the MLP
    pub a: Vec<Slot>, // (t, F) of each part of the MLP
}

/// Activations that the MLP's backward pass needs for a range of tokens: all tokens, unless they would not fit a binding.
#[derive(Debug)]
pub(super) struct MlpSaved {
    pub tokens: Range<usize>,     // t of them
    pub u: ActivationSaved,       // (t, 2F) or (t, F)
    pub xa_up: Vec<Option<Slot>>, // (t, R)
    pub xa_down: Option<Slot>,
}

/// State that a layer's forward pass leaves, see [`RecomputePolicy`].
#[derive(Debug)]
pub(super) enum LayerState {
    /// (T, D), the layer's input.
    Input(Slot),
    /// Saved activations of the layer.
    Trace(Box<LayerSaved>),
}

/// A forward pass.
#[derive(Debug)]
pub struct ForwardSaved {
    /// L entries, or none when nothing was kept.
    pub(super) layers: Vec<LayerState>,
    /// (T, D), the residual stream behind the last layer.
    pub h: Slot,
}
