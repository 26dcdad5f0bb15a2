//! Activations that a forward pass saves for the backward pass.

use std::ops::Range;

use super::shared_values::SharedValues;
use crate::gpu::{Recording, Slot};
use crate::kernels::matmul::{ExpertRows, ExpertTiling};
use crate::kernels::pack::{BF16_MANTISSA, pack_bf16, unpack_bf16};
use crate::kernels::router::{ExpertChoice, RouterShape, SortedRows};

/// Choice of the activations to save; the others are recomputed. All choices give bit-identical gradients, because the same kernels run on
/// the same values, rounded to the same [`SavedDtype`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum RecomputePolicy {
    /// Nothing, because there is no backward pass.
    #[serde(skip)]
    Nothing,
    /// Each layer's input, (T, D): the backward pass computes the layer a second time, which is about a third more work.
    #[serde(rename = "block")]
    Inputs,
    /// Each layer's input, and the results of attention, (T, H·E) and (T, H): the backward pass computes the rest of the layer a second time.
    /// A layer with a delta net saves its input alone: its states between chunks are twice as large as its output, and without them the
    /// delta rule is recomputed anyway. It is a small part of the layer's work. So is a short convolution, whose layer saves its input alone,
    /// too.
    #[serde(rename = "linear")]
    InputsAndAttention,
    /// Results of matrix products and attention. The backward pass recomputes norms and activation functions, each in one pass over memory.
    #[serde(rename = "elementwise")]
    Products,
    /// Every value that the backward pass reads.
    #[serde(rename = "none")]
    Everything,
}

impl RecomputePolicy {
    /// Choices for training, the fastest first: the values of `--recompute`.
    pub const TRAINING: [Self; 4] = [Self::Everything, Self::Products, Self::InputsAndAttention, Self::Inputs];

    /// Returns the value of `--recompute`, which names the part that is recomputed.
    pub fn recompute(self) -> &'static str {
        match self {
            Self::Nothing | Self::Everything => "none",
            Self::Products => "elementwise",
            Self::InputsAndAttention => "linear",
            Self::Inputs => "block",
        }
    }
}

/// Data type of saved activations (`--saved-dtype`).
///
/// With bf16, the inputs of norms over D and of the MLP's activation function are saved as bf16. Norms and activation functions are then
/// always recomputed from the rounded inputs. Tensors that attention's backward pass reads stay f32: q, k, v, the head norms' inputs and
/// statistics, attention's output and lse. That pass subtracts nearly equal numbers: with rounded q and k, exp(q·k − lse) would have the
/// full rounding error, because lse belongs to the exact values; likewise d_y·v − d_o·o. A layer's input that is saved alone also stays
/// f32, so that the layer is recomputed from unrounded values.
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
    /// Choices on the command line.
    pub const ALL: [Self; 2] = [Self::F32, Self::Bf16];

    /// Returns the data type's name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
            Self::Coarse => "coarse",
        }
    }

    /// Returns the number of mantissa bits that are kept; `None` for all.
    fn mantissa(self) -> Option<u32> {
        match self {
            Self::F32 => None,
            Self::Bf16 => Some(BF16_MANTISSA),
            Self::Coarse => Some(4),
        }
    }
}

/// Saved activation.
#[derive(Debug)]
pub(super) enum ActivationSaved {
    /// f32, unrounded.
    F32(Slot),
    /// bf16, two values per word.
    Bf16 { words: Slot, len: usize },
}

impl ActivationSaved {
    /// Returns the values as f32, unpacked into scratch memory where they are stored as bf16.
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

/// Statistics that a norm saves for each row.
pub(super) type NormStats = Slot;

/// Activations that a layer's backward pass needs.
#[derive(Debug)]
pub struct LayerSaved {
    pub(super) products: ProductsSaved,
    /// Results of element-wise steps; `None` where they are recomputed when they are read.
    pub(super) elementwise: Option<ElementwiseSaved>,
}

impl LayerSaved {
    /// Drops inputs of linear layers that nothing will read: the token mixer's, the output projection's, and the MLP's.
    pub(super) fn drop_unread(&mut self, [reads_x1, reads_y, reads_x2]: [bool; 3]) {
        let Some(ElementwiseSaved { x1, x2, mixer, .. }) = &mut self.elementwise else { return };
        *x1 = x1.take().filter(|_| reads_x1);
        mixer.y = mixer.y.take().filter(|_| reads_y);
        *x2 = x2.take().filter(|_| reads_x2);
    }

    /// Rounds the saved activations to `dtype`, and drops those that are recomputed in this case.
    pub(super) fn hold(&mut self, rec: &mut Recording, dtype: SavedDtype) {
        let Some(mantissa) = dtype.mantissa() else { return };
        self.elementwise = None;
        let p = &mut self.products;
        let post = p.attn_post.iter_mut().chain(&mut p.mlp_post).map(|(x, _)| x);
        let u = p.mlp.iter_mut().map(|part| &mut part.u);
        let branch = p.per_layer.iter_mut().flat_map(PerLayerSaved::all);
        [&mut p.h_in, &mut p.h_mid].into_iter().chain(post).chain(u).chain(branch).for_each(|x| x.round(rec, mantissa));
    }
}

/// Saved results of matrix products and attention, with the statistics of norms.
#[derive(Debug)]
pub(super) struct ProductsSaved {
    pub h_in: ActivationSaved, // (T, D)
    pub stats1: Option<NormStats>,
    pub mixer: MixerSaved,
    pub attn_post: Option<(ActivationSaved, NormStats)>, // input of the norm after attention
    pub h_mid: ActivationSaved,                          // (T, D)
    pub stats2: Option<NormStats>,
    pub mlp: Vec<MlpSaved>,
    pub mlp_post: Option<(ActivationSaved, NormStats)>,
    pub per_layer: Option<PerLayerSaved>,
    pub xa_qkv: Vec<Option<Slot>>, // s·x·Aᵀ of each module of the layer's qkv: (T, R)
    pub xa_out: Option<Slot>,
}

/// Saved results of a layer's token mixer.
#[derive(Debug)]
pub(super) enum MixerSaved {
    /// Results of attention.
    Attention(AttentionMixerSaved),
    /// Results of a delta net.
    DeltaNet(DeltaNetSaved),
    /// Results of a short convolution.
    ShortConv(ShortConvSaved),
}

/// Saved results of attention.
#[derive(Debug)]
pub(super) struct AttentionMixerSaved {
    pub gated: Option<Slot>,        // (T, 2·H·E), per head a query and its gate
    pub raw: Option<Slot>, // (T, (H + K)·E) before the norms of queries and keys; of Gemma 4 with the values, where they have a projection
    pub head_stats: Vec<NormStats>, // of the norms of queries, keys and values, where there are any
    pub qkv: Slot,         // (T, (H + 2K)·E)
    pub o: Slot,           // (T, H·E)
    pub lse: Slot,         // (T, H)
}

/// Saved results of a delta net.
#[derive(Debug)]
pub(super) struct DeltaNetSaved {
    pub mixed: Slot,      // (T, 2·Hk·dk + Hv·dv), input of the convolution
    pub z: Slot,          // (T, Hv·dv)
    pub a: Slot,          // (T, Hv)
    pub gates: Slot,      // (T, 2·Hv), β and g
    pub o: Slot,          // (T, Hv·dv)
    pub states: Slot,     // states between chunks
    pub stats: NormStats, // (T, Hv), of the gated norm
}

/// Saved results of a short convolution.
#[derive(Debug)]
pub(super) struct ShortConvSaved {
    pub gated: Slot, // (T, 3·D), both gates and the value that is convolved
}

/// Saved results of a token mixer that follow from [`MixerSaved`] element by element, or row by row.
#[derive(Debug, Default)]
pub(super) struct MixerElementwise {
    /// A delta net's normalised q and k, with v (T, 2·Hk·dk + Hv·dv), and the statistics of their norms (T, 2·Hk).
    pub qkv: Option<[Slot; 2]>,
    /// Sums of a short convolution: (T, D).
    pub conv_sums: Option<Slot>,
    /// Input of the output projection, where it is not the mixer's own output: (T, H·E), (T, Hv·dv) or (T, D).
    pub y: Option<Slot>,
}

/// Saved results that follow from [`ProductsSaved`] element by element, or row by row: inputs of linear layers. A layer of which nothing is
/// trained needs none.
#[derive(Debug)]
pub(super) struct ElementwiseSaved {
    pub x1: Option<Slot>, // (T, D), attention's input, normed where there is a norm
    pub x2: Option<Slot>, // (T, D), the MLP's input, likewise
    pub a: Vec<Slot>,     // (t, F) for each range of the MLP's tokens; with experts (t·k, F)
    pub mixer: MixerElementwise,
}

/// Activations that the MLP's backward pass needs for a range of tokens. There is one range for all tokens, unless they would not fit a
/// binding.
#[derive(Debug)]
pub(super) struct MlpSaved {
    pub tokens: Range<usize>,     // t tokens
    pub u: ActivationSaved,       // (t, 2F) or (t, F); with experts (t·k, 2F), in their order
    pub xa_up: Vec<Option<Slot>>, // (t, R)
    pub xa_down: Option<Slot>,
    pub routing: Option<ExpertRouting>, // of a mixture of experts
}

impl MlpSaved {
    /// Returns the number of rows of u.
    pub fn rows(&self) -> usize {
        self.routing.as_ref().map_or(self.tokens.len(), |routing| routing.shape.rows())
    }
}

/// Choice of experts for a range of tokens, and the order of their rows.
#[derive(Debug)]
pub(super) struct ExpertRouting {
    pub shape: RouterShape,
    pub tiling: ExpertTiling,
    pub logits: Slot, // (t, X)
    pub choice: ExpertChoice,
    pub sorted: SortedRows,
}

impl ExpertRouting {
    /// Describes the rows for the experts' products.
    pub fn rows(&self) -> ExpertRows<'_> {
        ExpertRows { sorted: &self.sorted, tiling: self.tiling, rows: self.shape.rows() }
    }
}

/// Activations that the branch of per-layer inputs needs for its backward pass.
#[derive(Debug)]
pub(super) struct PerLayerSaved {
    pub h: Option<ActivationSaved>, // (T, D), the gate's input, where the gate is trained
    pub u: ActivationSaved,         // (T, 2P), the gate's output and the per-layer inputs
    pub xa_gate: Option<Slot>,      // (T, R)
    pub xa_projection: Option<Slot>,
    pub post: Option<(ActivationSaved, NormStats)>, // input of the norm behind the projection
}

impl PerLayerSaved {
    fn all(&mut self) -> impl Iterator<Item = &mut ActivationSaved> {
        self.h.iter_mut().chain([&mut self.u]).chain(self.post.iter_mut().map(|(x, _)| x))
    }
}

/// Results of attention.
#[derive(Debug, Clone)]
pub(super) struct Attended {
    pub o: Slot,   // (T, H·E)
    pub lse: Slot, // (T, H)
}

/// State that a layer's forward pass leaves for its backward pass, by [`RecomputePolicy`].
#[derive(Debug)]
pub(super) enum LayerState {
    /// (T, D), the layer's input, and the results of attention where they were saved.
    Input(Slot, Option<Attended>),
    /// Saved activations of the layer.
    Trace(Box<LayerSaved>),
}

/// Result of a forward pass.
#[derive(Debug)]
pub struct ForwardSaved {
    /// State of each of the L layers; empty where nothing was saved.
    pub(super) layers: Vec<LayerState>,
    /// Values that several layers read.
    pub(super) shared: SharedValues,
    /// (T, D), the residual stream behind the last layer.
    pub h: Slot,
}
