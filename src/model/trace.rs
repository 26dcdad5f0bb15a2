//! What a forward pass keeps for the backward one.

use std::ops::Range;

use crate::gpu::Slot;

/// How much of it. All give the same bits: the same kernels run again on the same values.
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

/// Saved by a norm: statistics.
pub(super) type Stats = Slot;

/// What a layer's backward pass needs.
#[derive(Debug)]
pub struct LayerTrace {
    pub(super) products: Products,
    /// `None`: computed again where it is read.
    pub(super) elementwise: Option<Elementwise>,
}

/// What products and attention gave, and statistics.
#[derive(Debug)]
pub(super) struct Products {
    pub h_in: Slot, // (T, D)
    pub stats1: Stats,
    pub raw: Option<Slot>, // (T, (H + K)·E) before the head norms
    pub head_stats: Option<[Stats; 2]>,
    pub qkv: Slot,                        // (T, (H + 2K)·E)
    pub o: Slot,                          // (T, H·E)
    pub lse: Slot,                        // (T, H)
    pub attn_post: Option<(Slot, Stats)>, // input of the norm after attention
    pub h_mid: Slot,                      // (T, D)
    pub stats2: Stats,
    pub mlp: Vec<MlpTrace>,
    pub mlp_post: Option<(Slot, Stats)>,
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
    pub u: Slot,                  // (t, 2F) or (t, F)
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
