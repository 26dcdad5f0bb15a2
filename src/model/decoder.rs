//! Forward pass of the decoder: one implementation for every family, from a [`ModelConfig`].
//!
//! Tokens are packed without padding; the segment table says which keys a query sees. The values that the backward pass needs are saved in
//! a [`ForwardSaved`], as the [`RecomputePolicy`] says.

use std::collections::BTreeSet;

use super::delta_net::DeltaNetWeights;
use super::description::{ModelConfig, NormKind, TokenMixer};
use super::kv_cache::KvCache;
use super::linear::{Linear, LoraPass, WeightColumns};
use super::mixer::MixerOutput;
use super::mlp_weights::MlpWeights;
use super::per_layer_inputs::{PerLayerIds, PerLayerWeights};
use super::recurrent_tokens::RecurrentTokens;
use super::saved::{
    ActivationSaved, Attended, AttentionMixerSaved, ElementwiseSaved, ForwardSaved, LayerSaved, LayerState, MixerSaved,
    NormStats, ProductsSaved, RecomputePolicy, SavedDtype,
};
use super::shared_values::SharedValues;
use super::short_conv::ShortConvWeights;
use super::trained_tokens::{TrainedTokenNumbers, TrainedTokens};
use super::weights::Weight;
use crate::gpu::{Gpu, Recording, Slot};
use crate::kernels::attention::SegmentTable;
use crate::kernels::embedding::{TokenIds, VocabShard, embedding_fwd};
use crate::kernels::logprob::{HeadShard, LmHead};
use crate::kernels::rmsnorm::RmsnormRows;
use crate::kernels::rope::{RopeCache, rotary_row};
use crate::kernels::{add, layernorm, rmsnorm};

/// Weights of a norm on the device.
#[derive(Debug, Clone)]
pub struct NormWeights {
    /// Weight: (D), (E), (H·E) or (K·E).
    pub w: Weight,
    /// Bias of a LayerNorm: (D).
    pub b: Option<Weight>,
}

/// Weights of a layer's branch of per-layer inputs.
#[derive(Debug, Clone)]
pub struct PerLayerBranchWeights {
    /// Gate: (P, D).
    pub gate: Linear,
    /// Projection back to D: (D, P).
    pub projection: Linear,
    /// Norm behind the projection: (D).
    pub post_norm: NormWeights,
}

/// Weights of a layer.
#[derive(Debug, Clone)]
pub struct LayerWeights {
    /// Norm before attention.
    pub attn_norm: Option<NormWeights>,
    /// Projections that write the columns of qkv, or the inputs of a delta net or of a short convolution.
    pub qkv: Vec<Linear>,
    /// Further weights of a delta net.
    pub delta_net: Option<DeltaNetWeights>,
    /// Further weights of a short convolution.
    pub short_conv: Option<ShortConvWeights>,
    /// Norm of the queries.
    pub q_norm: Option<NormWeights>,
    /// Norm of the keys.
    pub k_norm: Option<NormWeights>,
    /// Sinks of attention: (H).
    pub sinks: Option<Weight>,
    /// Projection of the mixer's output.
    pub out: Linear,
    /// Norm after attention.
    pub attn_post_norm: Option<NormWeights>,
    /// Norm before the MLP.
    pub mlp_norm: Option<NormWeights>,
    /// Part behind the token mixer: an MLP, or a mixture of them.
    pub mlp: MlpWeights,
    /// Norm after the MLP.
    pub mlp_post_norm: Option<NormWeights>,
    /// Branch of the per-layer inputs.
    pub per_layer: Option<PerLayerBranchWeights>,
    /// Factor on the layer's output: 1, or [`super::description::LayerConfig::scalar`].
    pub scalar: f32,
}

impl LayerWeights {
    /// Returns the linear layers, in the order of [`super::description::LayerConfig::linears`].
    pub(super) fn linears(&self) -> impl Iterator<Item = &Linear> {
        let branch = self.per_layer.iter().flat_map(|branch| [&branch.gate, &branch.projection]);
        self.qkv.iter().chain([&self.out]).chain(self.mlp.linears()).chain(branch)
    }

    /// Returns whether the backward pass reads the inputs of linear layers, because one of these is trained: the token mixer's input, that of
    /// its output projection, and the MLP's.
    pub(super) fn reads_inputs(&self) -> [bool; 3] {
        let is_trained = |linears: &[Linear]| linears.iter().any(Linear::trained);
        let reads_x2 = match &self.mlp {
            MlpWeights::Dense { up, .. } => is_trained(up),
            MlpWeights::Experts(experts) => experts.trained(),
        };
        [is_trained(&self.qkv), self.out.trained(), reads_x2]
    }
}

/// Decoder on a device.
#[derive(Debug)]
pub struct Decoder {
    /// Architecture and dimensions.
    pub description: ModelConfig,
    /// Token embedding: (V, D).
    pub embedding: Weight,
    /// Embeddings of single tokens that are trained, where `embedding` is not.
    pub tokens: Option<TrainedTokens>,
    /// Learned position embedding: (positions, D).
    pub position_embedding: Option<Weight>,
    /// Weights of per-layer inputs.
    pub per_layer: Option<PerLayerWeights>,
    /// Ones, the weight of norms without one: (E), of the widest heads.
    pub ones: Option<Slot>,
    /// Weights of the L layers.
    pub layers: Vec<LayerWeights>,
    /// Final norm: (D).
    pub final_norm: NormWeights,
    /// LM head: (V, D); `None` where it is tied to the embedding.
    pub head: Option<Weight>,
    /// RoPE caches, in the order of [`ModelConfig::ropes`].
    pub turns: Vec<RopeCache>,
    /// Data type of the activations that are saved for the backward pass.
    pub saved_dtype: SavedDtype,
    /// Trained parameters with their gradients and moments.
    pub arena: super::weights::WeightArena,
    /// Names of tensors that the adapter has in place of the base's.
    pub replaced: BTreeSet<String>,
    /// The reference of a training run, which shares frozen weights: this decoder with its adapter as it was before training
    /// ([`Decoder::keep_start`]), or with another adapter or none ([`Decoder::keep_reference`]).
    pub start: Option<Box<Decoder>>,
}

/// Packed tokens on the device.
#[derive(Debug)]
pub struct TokenSlots {
    /// T, the number of tokens.
    pub t: usize,
    /// Token ids.
    pub ids: TokenIds,
    /// Positions as ids into the learned position table, where the model has one.
    pub position_ids: Option<TokenIds>,
    /// Token ids as the table of per-layer inputs is read; empty where the model has none.
    pub(super) per_layer_ids: Vec<PerLayerIds>,
    /// Row of each token in the RoPE caches: (T).
    pub rotary_rows: Slot,
    /// Segment table, which says which keys a query sees.
    pub segments: SegmentTable,
    /// Tables of delta nets and short convolutions, where the model has them.
    pub recurrent: Option<RecurrentTokens>,
    /// Seed of dropout in a training step; `None` where nothing is dropped.
    pub dropout_seed: Option<u64>,
    /// Numbers of tokens whose embeddings are trained, in a training step.
    pub trained: Option<TrainedTokenNumbers>,
}

impl TokenSlots {
    /// Uploads the tokens. `lengths`: tokens of each token's sequence.
    pub fn new(
        gpu: &Gpu,
        d: &ModelConfig,
        ids: &[u32],
        positions: &[u32],
        lengths: &[usize],
        segments: SegmentTable,
        recurrent: Option<RecurrentTokens>,
    ) -> Self {
        let limit = d.long_above();
        let rows = positions.iter().zip(lengths).map(|(&position, &length)| rotary_row(position, length, limit));
        Self {
            t: ids.len(),
            ids: TokenIds::new(gpu, ids),
            position_ids: d.position_embedding.is_some().then(|| TokenIds::new(gpu, positions)),
            per_layer_ids: d.per_layer_inputs.iter().flat_map(|inputs| PerLayerIds::new(gpu, inputs, ids)).collect(),
            rotary_rows: gpu.upload(&rows.collect::<Vec<u32>>()),
            segments,
            recurrent,
            dropout_seed: None,
            trained: None,
        }
    }

    /// Returns the use of low-rank additions in a pass over these tokens.
    pub(super) fn lora_pass(&self, with_lora: bool) -> LoraPass {
        match self.dropout_seed {
            _ if !with_lora => LoraPass::Off,
            None => LoraPass::Plain,
            Some(seed) => LoraPass::Training { seed, first: 0 },
        }
    }
}

/// Returns rows of a slot of `width` columns. The first row must be a multiple of 64.
pub(super) fn rows_of(slot: &Slot, rows: &std::ops::Range<usize>, width: usize) -> Slot {
    slot.slice(rows.start * width, rows.len() * width)
}

impl Decoder {
    /// Returns the LM head, divided into shards, for the log-prob kernels. `rows` is the number of rows to score.
    pub fn head(&self, rows: usize) -> LmHead<'_> {
        let w = self.head.as_ref().unwrap_or(&self.embedding);
        let page = |p: &'_ super::weights::RowShard| (p.first, p.rows);
        let pages = w.parts.iter().map(|p| {
            let (first, rows) = page(p);
            HeadShard { first, rows, w: &p.w, d_w: p.d_w.as_ref() }
        });
        LmHead {
            pages: pages.collect(),
            storage: w.storage,
            width: self.description.d_model,
            scale: self.description.logit_scale,
            softcap: self.description.logit_softcap,
            tile: LmHead::tile_for(rows),
        }
    }

    /// Normalises `rows` rows of D. Returns the normed rows and the statistics.
    pub fn norm(&self, rec: &mut Recording, norm: &NormWeights, rows: usize, x: &Slot) -> (Slot, NormStats) {
        let (n, d) = (self.description.norm, self.description.d_model);
        let y = rec.gpu().alloc_activation(rows * d);
        let stats = match n.kind {
            NormKind::Rms => {
                let stats = rec.gpu().alloc_activation(rows);
                let rows = RmsnormRows::contiguous(rows, d);
                rmsnorm::rmsnorm_fwd(rec, &rows, n.eps, n.weight_offset, x, norm.w.slot(), &stats, &y);
                stats
            }
            NormKind::Layer => {
                let stats = rec.gpu().alloc_activation(2 * rows);
                let shape = layernorm::LayernormRows { rows, width: d, offset: n.weight_offset };
                // Every LayerNorm has a bias, because `ModelConfig::tensors` requires one.
                let b = norm.b.as_ref().map_or(norm.w.slot(), Weight::slot);
                layernorm::layernorm_fwd(rec, &shape, n.eps, x, norm.w.slot(), b, &stats, &y);
                stats
            }
        };
        (y, stats)
    }

    /// Computes a branch's input from `rows` rows of the residual stream: the normed rows, with their statistics, or the rows themselves
    /// where the branch has no norm before it.
    pub(super) fn input_norm(
        &self,
        rec: &mut Recording,
        norm: Option<&NormWeights>,
        rows: usize,
        x: &Slot,
    ) -> (Slot, Option<NormStats>) {
        match norm {
            Some(norm) => {
                let (y, stats) = self.norm(rec, norm, rows, x);
                (y, Some(stats))
            }
            None => (x.clone(), None),
        }
    }

    /// Computes the token embeddings, plus position embeddings where the model has them: (T, D).
    pub fn embed(&self, rec: &mut Recording, tokens: &TokenSlots) -> Slot {
        let d = &self.description;
        let h = rec.gpu().alloc_activation(tokens.t * d.d_model);
        let page = |w: &Weight, first, rows| VocabShard { first, rows, width: d.d_model, storage: w.storage };
        for p in &self.embedding.parts {
            let page = page(&self.embedding, p.first, p.rows);
            embedding_fwd(rec, &page, d.embed_scale, false, &tokens.ids, &p.w, &h);
        }
        if let (Some(w), Some(ids)) = (&self.position_embedding, &tokens.position_ids) {
            for p in &w.parts {
                embedding_fwd(rec, &page(w, p.first, p.rows), 1.0, true, ids, &p.w, &h);
            }
        }
        h
    }

    /// Computes the residual stream behind the last layer, and saves activations as `keep` says. Without `with_lora`, computes the base
    /// model.
    pub fn forward(
        &self,
        rec: &mut Recording,
        tokens: &TokenSlots,
        cache: Option<&KvCache>,
        with_lora: bool,
        keep: RecomputePolicy,
    ) -> ForwardSaved {
        rec.scope("embed");
        self.put_trained_tokens(rec, with_lora);
        let mut h = self.embed(rec, tokens);
        let (mut layers, lora) = (Vec::new(), tokens.lora_pass(with_lora));
        let mut shared = self.per_layer_inputs(rec, tokens, lora, &h, keep != RecomputePolicy::Nothing);
        let lenders = if cache.is_none() { self.description.lenders() } else { BTreeSet::new() };
        // The backward pass ends at the lowest trained layer.
        let lowest = self.lowest_trained().unwrap_or(self.layers.len());
        for (index, weights) in self.layers.iter().enumerate() {
            rec.scope(format!("L{index}"));
            let input = h.clone();
            let mut trace = self.layer(rec, index, tokens, cache, lora, &shared, h, None);
            if let MixerSaved::Attention(saved) = &trace.products.mixer
                && lenders.contains(&index)
            {
                self.lend(rec, index, tokens.t, &saved.qkv, &mut shared);
            }
            h = self.layer_output(rec, index, tokens.t, lora, &shared, &mut trace);
            trace.drop_unread(weights.reads_inputs());
            match keep {
                _ if index < lowest => (),
                RecomputePolicy::Nothing => (),
                RecomputePolicy::Inputs => layers.push(LayerState::Input(input, None)),
                RecomputePolicy::InputsAndAttention => {
                    let attended = match trace.products.mixer {
                        MixerSaved::Attention(AttentionMixerSaved { o, lse, .. }) => Some(Attended { o, lse }),
                        MixerSaved::DeltaNet(_) | MixerSaved::ShortConv(_) => None,
                    };
                    layers.push(LayerState::Input(input, attended));
                }
                RecomputePolicy::Products | RecomputePolicy::Everything => {
                    if keep == RecomputePolicy::Products {
                        trace.elementwise = None;
                    }
                    // The f32 values pass on to the next layer. Of this layer's, only the rounded copy is saved.
                    drop(input);
                    trace.hold(rec, self.saved_dtype);
                    layers.push(LayerState::Trace(Box::new(trace)));
                }
            }
        }
        rec.scope("head");
        ForwardSaved { layers, shared, h }
    }

    /// Computes a layer from its input to the input of the MLP's activation function. Results of attention that were saved are not computed
    /// again.
    #[expect(clippy::too_many_arguments, reason = "a layer's inputs, and what is known of it")]
    fn layer(
        &self,
        rec: &mut Recording,
        index: usize,
        tokens: &TokenSlots,
        cache: Option<&KvCache>,
        lora: LoraPass,
        shared: &SharedValues,
        h_in: Slot,
        attended: Option<Attended>,
    ) -> LayerSaved {
        let (d, gpu, t) = (&self.description, rec.gpu(), tokens.t);
        let (w, layer) = (&self.layers[index], &d.layers[index]);
        let (x1, stats1) = self.input_norm(rec, w.attn_norm.as_ref(), t, &h_in);
        let MixerOutput { y: mixed, saved: mixer, elementwise, xa: xa_qkv } = match &layer.mixer {
            TokenMixer::Attention { .. } => self.attention_mix(rec, index, tokens, cache, lora, shared, &x1, attended),
            TokenMixer::DeltaNet(net) => self.delta_net_mix(rec, index, net, tokens, cache, lora, &x1),
            TokenMixer::ShortConv(conv) => self.short_conv_mix(rec, index, conv, tokens, cache, lora, &x1),
        };

        let mut xa_out = None;
        let (h_mid, attn_post) =
            self.add_branch(rec, w.attn_post_norm.as_ref(), t, (&h_in, 1.0), |rec, residual, y| {
                xa_out = w.out.forward(rec, t, (&mixed).into(), residual, WeightColumns::all(y, d.d_model), lora);
            });

        let (x2, stats2) = self.input_norm(rec, w.mlp_norm.as_ref(), t, &h_mid);
        let mlp = self.mlp_chunks(gpu, index, t).map(|tokens| self.mlp_up(rec, index, tokens, &x2, lora)).collect();
        let products = ProductsSaved {
            h_in: ActivationSaved::F32(h_in),
            stats1,
            mixer,
            attn_post,
            h_mid: ActivationSaved::F32(h_mid),
            stats2,
            mlp,
            mlp_post: None,
            per_layer: None,
            xa_qkv,
            xa_out,
        };
        let elementwise = ElementwiseSaved { x1: Some(x1), x2: Some(x2), a: Vec::new(), mixer: elementwise };
        LayerSaved { products, elementwise: Some(elementwise) }
    }

    /// Computes the rest of a layer: the MLP's activation, its last product, norm and addition, and the branch of per-layer inputs. Returns the
    /// layer's output (T, D).
    fn layer_output(
        &self,
        rec: &mut Recording,
        index: usize,
        t: usize,
        lora: LoraPass,
        shared: &SharedValues,
        trace: &mut LayerSaved,
    ) -> Slot {
        let (d, w) = (self.description.d_model, &self.layers[index]);
        let LayerSaved { products: ProductsSaved { h_mid, mlp, mlp_post, per_layer, .. }, elementwise } = trace;
        let h_mid = h_mid.read(rec);
        let scale = if w.per_layer.is_some() { 1.0 } else { w.scalar };
        let (h_out, post) = self.add_branch(rec, w.mlp_post_norm.as_ref(), t, (&h_mid, scale), |rec, residual, y| {
            for mlp in mlp {
                let u = mlp.u.read(rec);
                let a = self.activation(rec, index, mlp, &u);
                let rows = |slot: &Slot| rows_of(slot, &mlp.tokens, d);
                let (residual, y, n) = (residual.map(rows), rows(y), mlp.tokens.len());
                let residual = residual.as_ref();
                match (&w.mlp, &mlp.routing) {
                    (MlpWeights::Experts(experts), Some(routing)) => {
                        self.experts_down(rec, experts, routing, &a, residual, &y);
                    }
                    (MlpWeights::Dense { down, .. }, _) => {
                        let lora = lora.from_token(mlp.tokens.start);
                        mlp.xa_down = down.forward(rec, n, (&a).into(), residual, WeightColumns::all(&y, d), lora);
                    }
                    (MlpWeights::Experts(_), None) => unreachable!("experts save their routing"),
                }
                if let Some(elementwise) = elementwise.as_mut().filter(|_| w.mlp.reads_activation()) {
                    elementwise.a.push(a);
                }
            }
        });
        *mlp_post = post;
        let Some(branch) = &w.per_layer else { return h_out };
        let (h_end, post) = self.add_branch(rec, Some(&branch.post_norm), t, (&h_out, w.scalar), |rec, _, y| {
            *per_layer = self.per_layer_branch(rec, index, (t, lora), shared, &h_out, y);
        });
        if let Some(saved) = per_layer {
            saved.post = post;
        }
        h_end
    }

    /// Computes the residual stream (T, D) behind a branch: h plus the branch, times `scale`. `product` gets a residual to add and a slot to
    /// write to. Without a norm behind the branch, the matmul adds h in its own pass. With a norm, the sum is a pass of its own, and the
    /// norm's input and statistics are returned too.
    fn add_branch(
        &self,
        rec: &mut Recording,
        norm: Option<&NormWeights>,
        t: usize,
        (h, scale): (&Slot, f32),
        product: impl FnOnce(&mut Recording, Option<&Slot>, &Slot),
    ) -> (Slot, Option<(ActivationSaved, NormStats)>) {
        let y = rec.gpu().alloc_activation(t * self.description.d_model);
        let Some(norm) = norm else {
            product(rec, Some(h), &y);
            if scale != 1.0 {
                add::scale(rec, scale, &y);
            }
            return (y, None);
        };
        product(rec, None, &y);
        let (normed, stats) = self.norm(rec, norm, t, &y);
        let sum = rec.gpu().alloc_activation(t * self.description.d_model);
        add::add(rec, scale, h, &normed, &sum);
        (sum, Some((ActivationSaved::F32(y), stats)))
    }

    /// Returns the activations that a layer's backward pass reads. Recomputes the layer where only its input was saved.
    pub(super) fn restore(
        &self,
        rec: &mut Recording,
        index: usize,
        tokens: &TokenSlots,
        shared: &SharedValues,
        kept: LayerState,
    ) -> LayerSaved {
        match kept {
            LayerState::Trace(trace) => *trace,
            LayerState::Input(h_in, attended) => {
                let (w, lora) = (&self.layers[index], tokens.lora_pass(true));
                let mut trace = self.layer(rec, index, tokens, None, lora, shared, h_in, attended);
                // The output itself is not needed again. The layer's last part is recomputed only where it saves something.
                if w.mlp.linears().last().is_some_and(|down| down.lora.is_some()) || w.mlp_post_norm.is_some() {
                    self.layer_output(rec, index, tokens.t, lora, shared, &mut trace);
                }
                trace.drop_unread(w.reads_inputs());
                trace.hold(rec, self.saved_dtype);
                trace
            }
        }
    }
}
