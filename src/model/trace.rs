//! What a forward pass keeps for the backward one.

use std::ops::Range;

use crate::gpu::{Recording, Slot};
use crate::kernels::pack::{BF16_MANTISSA, pack_bf16, unpack_bf16};

/// How much of it. All give the same bits: the same kernels run again on the same values, rounded alike ([`SavedDtype`]).
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum Keep {
    /// Nothing: there is no backward pass.
    #[serde(skip)]
    Nothing,
    /// Each layer's input, T·D: the backward pass runs the layer again. About a third more work.
    #[serde(rename = "block")]
    Inputs,
    /// What products and attention gave: the backward pass computes norms and activations again, which is a pass over memory each.
    #[serde(rename = "elementwise")]
    Products,
    /// All that the backward pass reads.
    #[serde(rename = "none")]
    Everything,
}

impl Keep {
    /// What a backward pass may be given, the fastest first: `--recompute`'s choices.
    pub const TRAINING: [Self; 3] = [Self::Everything, Self::Products, Self::Inputs];

    /// As on the command line: what is computed again.
    pub fn recompute(self) -> &'static str {
        match self {
            Self::Nothing | Self::Everything => "none",
            Self::Products => "elementwise",
            Self::Inputs => "block",
        }
    }
}

/// How it is held (`--saved-dtype`).
///
/// In bf16: the inputs of norms over D and of the MLP's activation. Norms and activations are then always computed again, from what was rounded.
/// f32 stay what attention's backward pass reads (q, k, v, and what the head norms and the attention made), because it subtracts
/// numbers that are nearly equal: exp(q·k − lse) of rounded q and k with the lse of what they were is off by their whole error, and so is
/// d_y·v − d_o·o. A layer's input that is kept alone stays f32 too, so that the layer runs again on the same values.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SavedDtype {
    /// As computed.
    F32,
    /// Rounded to the nearest bf16, two to a word.
    Bf16,
    /// The same with 4 bits of mantissa, which is too coarse: what tests of the gradients must notice. No command asks for it.
    #[serde(skip)]
    Coarse,
}

impl SavedDtype {
    /// What may be asked for.
    pub const ALL: [Self; 2] = [Self::F32, Self::Bf16];

    /// As on the command line.
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
pub(super) enum Saved {
    /// As computed.
    F32(Slot),
    /// In words of two.
    Bf16 { words: Slot, len: usize },
}

impl Saved {
    /// f32, in scratch where they are not held so.
    pub fn read(&self, rec: &mut Recording) -> Slot {
        match self {
            Self::F32(slot) => slot.clone(),
            Self::Bf16 { words, len } => {
                let slot = rec.gpu().slot(*len);
                unpack_bf16(rec, words, &slot);
                slot
            }
        }
    }

    fn round(&mut self, rec: &mut Recording, mantissa: u32) {
        if let Self::F32(slot) = self {
            let (words, len) = (rec.gpu().slot(slot.len().div_ceil(2)), slot.len());
            pack_bf16(rec, mantissa, slot, &words);
            *self = Self::Bf16 { words, len };
        }
    }
}

/// Saved by a norm: statistics.
pub(super) type Stats = Slot;

/// What a layer's backward pass needs.
#[derive(Debug)]
pub struct LayerTrace {
    pub(super) products: Products,
    /// `None`: computed again where it is read.
    pub(super) elementwise: Option<Elementwise>,
}

impl LayerTrace {
    /// Holds what is behind the forward pass as `dtype` says.
    pub(super) fn hold(&mut self, rec: &mut Recording, dtype: SavedDtype) {
        let Some(mantissa) = dtype.mantissa() else { return };
        self.elementwise = None;
        let p = &mut self.products;
        let post = p.attn_post.iter_mut().chain(&mut p.mlp_post).map(|(x, _)| x);
        let u = p.mlp.iter_mut().map(|part| &mut part.u);
        [&mut p.h_in, &mut p.h_mid].into_iter().chain(post).chain(u).for_each(|x| x.round(rec, mantissa));
    }
}

/// What products and attention gave, and statistics.
#[derive(Debug)]
pub(super) struct Products {
    pub h_in: Saved, // (T, D)
    pub stats1: Stats,
    pub raw: Option<Slot>, // (T, (H + K)·E) before the head norms
    pub head_stats: Option<[Stats; 2]>,
    pub qkv: Slot,                         // (T, (H + 2K)·E)
    pub o: Slot,                           // (T, H·E)
    pub lse: Slot,                         // (T, H)
    pub attn_post: Option<(Saved, Stats)>, // input of the norm after attention
    pub h_mid: Saved,                      // (T, D)
    pub stats2: Stats,
    pub mlp: Vec<MlpTrace>,
    pub mlp_post: Option<(Saved, Stats)>,
    pub xa_qkv: Vec<Option<Slot>>, // s·x·Aᵀ of each module, (T, R)
    pub xa_out: Option<Slot>,
}

/// What follows from them element by element, or row by row.
#[derive(Debug)]
pub(super) struct Elementwise {
    pub x1: Slot,     // (T, D), the normed input of attention
    pub x2: Slot,     // (T, D), that of the MLP
    pub a: Vec<Slot>, // (t, F) of each part of the MLP
}

/// What the MLP's backward pass needs of some tokens: all of them, unless that would not fit a binding.
#[derive(Debug)]
pub(super) struct MlpTrace {
    pub tokens: Range<usize>,     // t of them
    pub u: Saved,                 // (t, 2F) or (t, F)
    pub xa_up: Vec<Option<Slot>>, // (t, R)
    pub xa_down: Option<Slot>,
}

/// What a layer left, see [`Keep`].
#[derive(Debug)]
pub(super) enum Kept {
    /// (T, D), the layer's input.
    Input(Slot),
    /// What it computed.
    Trace(Box<LayerTrace>),
}

/// A forward pass.
#[derive(Debug)]
pub struct Trace {
    /// L entries, or none when nothing was kept.
    pub(super) layers: Vec<Kept>,
    /// (T, D), the residual stream behind the last layer.
    pub h: Slot,
}
