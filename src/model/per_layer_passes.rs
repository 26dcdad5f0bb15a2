//! Passes through per-layer inputs ([`super::per_layer_inputs`]): they are computed once from the tokens, and read by a branch of each layer.
//! The formulas are those of `Gemma4TextModel.get_per_layer_inputs`, `Gemma4TextModel.project_per_layer_inputs` and
//! `Gemma4TextDecoderLayer.forward` in transformers 5.24.0, `models/gemma4/modeling_gemma4.py`.

use std::ops::Range;

use super::decoder::{Decoder, TokenSlots, rows_of};
use super::description::PerLayerInputs;
use super::linear::{LoraPass, WeightColumns};
use super::per_layer_inputs::{PerLayerIds, PerLayerWeights};
use super::saved::{ActivationSaved, PerLayerSaved};
use super::shared_values::{PerLayerChunk, SharedGradients, SharedValues};
use crate::gpu::{Recording, Slot};
use crate::kernels::activation::{MlpShape, activation_bwd, activation_fwd};
use crate::kernels::columns::{SlotColumns, columns_copy};
use crate::kernels::embedding::{VocabShard, embedding_bwd_w, embedding_fwd};
use crate::kernels::rmsnorm::RmsnormRows;
use crate::kernels::{add, rmsnorm};

/// Projection of the token embedding, before and after its norm.
struct ProjectedInputs {
    raw: Slot,        // (t, L·P)
    xa: Option<Slot>, // (t, R)
    stats: Slot,      // (t, L)
    normed: Slot,     // (t, L·P)
}

impl Decoder {
    /// Returns the configuration and the weights of per-layer inputs, where the model has them.
    fn per_layer_parts(&self) -> Option<(&PerLayerInputs, &PerLayerWeights)> {
        self.description.per_layer_inputs.as_ref().zip(self.per_layer.as_ref())
    }

    /// Describes the rows of t tokens that are normed: P numbers of each layer.
    fn per_layer_rows(&self, inputs: &PerLayerInputs, t: usize) -> RmsnormRows {
        let stride = inputs.projection.n_out;
        RmsnormRows {
            groups: self.layers.len(),
            width: inputs.width,
            x_stride: stride,
            y_stride: stride,
            ..RmsnormRows::contiguous(t, stride)
        }
    }

    /// Projects a range of the token embedding x0 (T, D), and norms the result.
    fn project_per_layer(
        &self,
        rec: &mut Recording,
        tokens: &Range<usize>,
        x0: &Slot,
        lora: LoraPass,
    ) -> Option<ProjectedInputs> {
        let ((inputs, w), gpu, t) = (self.per_layer_parts()?, rec.gpu(), tokens.len());
        let (n_out, n) = (inputs.projection.n_out, self.description.norm);
        let [raw, normed] = [(); 2].map(|()| gpu.alloc_activation(t * n_out));
        let x = rows_of(x0, tokens, self.description.d_model);
        let lora = lora.from_token(tokens.start);
        let xa = w.projection.forward(rec, t, (&x).into(), None, WeightColumns::all(&raw, n_out), lora);
        let stats = gpu.alloc_activation(t * self.layers.len());
        let rows = self.per_layer_rows(inputs, t);
        rmsnorm::rmsnorm_fwd(rec, &rows, n.eps, n.weight_offset, &raw, w.norm.slot(), &stats, &normed);
        Some(ProjectedInputs { raw, xa, stats, normed })
    }

    /// Computes the per-layer inputs from the tokens and their embedding x0 (T, D). `keeps_x0`: whether there will be a backward pass.
    pub(super) fn per_layer_inputs(
        &self,
        rec: &mut Recording,
        tokens: &TokenSlots,
        lora: LoraPass,
        x0: &Slot,
        keeps_x0: bool,
    ) -> SharedValues {
        let Some((inputs, w)) = self.per_layer_parts() else { return SharedValues::default() };
        let mut per_layer = Vec::new();
        for PerLayerIds { tokens, ids } in &tokens.per_layer_ids {
            let Some(ProjectedInputs { normed: p, .. }) = self.project_per_layer(rec, tokens, x0, lora) else {
                continue;
            };
            for part in &w.embedding.parts {
                let shard = self.per_layer_shard(inputs, w, part.first, part.rows);
                embedding_fwd(rec, &shard, inputs.embed_scale(), true, ids, &part.w, &p);
            }
            add::scale(rec, PerLayerInputs::SCALE, &p);
            per_layer.push(PerLayerChunk { tokens: tokens.clone(), p });
        }
        SharedValues { per_layer, x0: keeps_x0.then(|| x0.clone()), ..SharedValues::default() }
    }

    fn per_layer_shard(&self, inputs: &PerLayerInputs, w: &PerLayerWeights, first: usize, rows: usize) -> VocabShard {
        VocabShard { first, rows, width: inputs.projection.n_out, storage: w.embedding.storage }
    }

    /// Returns whether the gradients of the per-layer inputs are needed. `trains_embedding`: whether that of the token embedding is.
    pub(super) fn needs_d_per_layer(&self, trains_embedding: bool) -> bool {
        self.per_layer.as_ref().is_some_and(|w| w.trained() || trains_embedding)
    }

    /// Adds to all gradients those through the per-layer inputs, and to d_h (T, D) that of the token embedding where it `continues`.
    pub(super) fn per_layer_inputs_backward(
        &self,
        rec: &mut Recording,
        tokens: &TokenSlots,
        shared: &SharedValues,
        gradients: SharedGradients,
        d_h: &Slot,
        continues: bool,
    ) {
        let (Some((inputs, w)), Some(x0)) = (self.per_layer_parts(), &shared.x0) else { return };
        let (d, lora) = (&self.description, tokens.lora_pass(true));
        for (PerLayerIds { tokens, ids }, d_p) in tokens.per_layer_ids.iter().zip(gradients.d_per_layer) {
            add::scale(rec, PerLayerInputs::SCALE, &d_p);
            for part in &w.embedding.parts {
                if let Some(d_w) = &part.d_w {
                    let shard = self.per_layer_shard(inputs, w, part.first, part.rows);
                    embedding_bwd_w(rec, &shard, inputs.embed_scale(), ids, &d_p, d_w);
                }
            }
            if !continues && !w.projection.trained() && !w.norm.trained() {
                continue;
            }
            let Some(ProjectedInputs { raw, xa, stats, .. }) = self.project_per_layer(rec, tokens, x0, lora) else {
                continue;
            };
            let (rows, t) = (self.per_layer_rows(inputs, tokens.len()), tokens.len());
            let d_raw = rec.gpu().alloc_activation(d_p.len());
            let (weight, offset) = (&w.norm, d.norm.weight_offset);
            rmsnorm::rmsnorm_bwd_x(rec, &rows, offset, false, &raw, weight.slot(), &stats, &d_p, &d_raw);
            if let Some(d_w) = weight.grad() {
                rmsnorm::rmsnorm_bwd_w(rec, &rows, &raw, &stats, &d_p, d_w);
            }
            let [x, d_x] = [x0, d_h].map(|slot| rows_of(slot, tokens, d.d_model));
            let (d_y, d_x) = (WeightColumns::all(&d_raw, inputs.projection.n_out), continues.then_some(&d_x));
            let lora = lora.from_token(tokens.start);
            w.projection.backward(rec, t, Some(&x), xa.as_ref(), d_y, d_x, true, lora);
        }
    }

    fn per_layer_mlp(&self, inputs: &PerLayerInputs, t: usize) -> MlpShape {
        MlpShape { tokens: t, width: inputs.width, gated: true, activation: self.description.activation }
    }

    /// Copies a layer's columns between the per-layer inputs (t, L·P) of all ranges, or their gradients, and the second half of u (T, 2P).
    fn copy_per_layer<'s>(
        &self,
        rec: &mut Recording,
        index: usize,
        width: usize,
        chunks: impl Iterator<Item = (&'s Range<usize>, &'s Slot)>,
        u: &Slot,
        into_u: bool,
    ) {
        let of_layer = SlotColumns { start: index * width, stride: self.layers.len() * width };
        let second = SlotColumns { start: width, stride: 2 * width };
        for (tokens, p) in chunks {
            let u = rows_of(u, tokens, 2 * width);
            let ends = [(p, of_layer), (&u, second)];
            let [from, to] = if into_u { ends } else { [ends[1], ends[0]] };
            columns_copy(rec, [tokens.len(), width], from, to);
        }
    }

    /// Computes a layer's branch of per-layer inputs up to the product behind its gate: from h (T, D) to y (T, D).
    pub(super) fn per_layer_branch(
        &self,
        rec: &mut Recording,
        index: usize,
        (t, lora): (usize, LoraPass),
        shared: &SharedValues,
        h: &Slot,
        y: &Slot,
    ) -> Option<PerLayerSaved> {
        let ((inputs, _), w, gpu) = (self.per_layer_parts()?, self.layers[index].per_layer.as_ref()?, rec.gpu());
        let width = inputs.width;
        let u = gpu.alloc_activation(t * 2 * width);
        let gate = WeightColumns { slot: &u, column: 0, stride: 2 * width };
        let xa_gate = w.gate.forward(rec, t, h.into(), None, gate, lora);
        let chunks = shared.per_layer.iter().map(|chunk| (&chunk.tokens, &chunk.p));
        self.copy_per_layer(rec, index, width, chunks, &u, true);
        let a = gpu.alloc_activation(t * width);
        activation_fwd(rec, &self.per_layer_mlp(inputs, t), &u, &a);
        let out = WeightColumns::all(y, self.description.d_model);
        let xa_projection = w.projection.forward(rec, t, (&a).into(), None, out, lora);
        let h = w.gate.trained().then(|| ActivationSaved::F32(h.clone()));
        Some(PerLayerSaved { h, u: ActivationSaved::F32(u), xa_gate, xa_projection, post: None })
    }

    /// Adds to d_h (T, D) the gradient through a layer's branch of per-layer inputs. d_h is the gradient of the branch's end.
    pub(super) fn per_layer_branch_backward(
        &self,
        rec: &mut Recording,
        index: usize,
        tokens: &TokenSlots,
        saved: &PerLayerSaved,
        shared: &SharedGradients,
        d_h: &Slot,
    ) {
        let (Some((inputs, _)), Some(w)) = (self.per_layer_parts(), &self.layers[index].per_layer) else { return };
        let (gpu, t, lora, width) = (rec.gpu(), tokens.t, tokens.lora_pass(true), inputs.width);
        let mlp = self.per_layer_mlp(inputs, t);
        let d_post = self.post_norm_backward(rec, Some(&w.post_norm), saved.post.as_ref(), t, d_h);
        let d_out = WeightColumns::all(d_post.as_ref().unwrap_or(d_h), self.description.d_model);
        let u = saved.u.read(rec);
        let a = w.projection.trained().then(|| {
            let a = gpu.alloc_activation(t * width);
            activation_fwd(rec, &mlp, &u, &a);
            a
        });
        let [d_a, d_u] = [width, 2 * width].map(|width| gpu.alloc_activation(t * width));
        w.projection.backward(rec, t, a.as_ref(), saved.xa_projection.as_ref(), d_out, Some(&d_a), false, lora);
        activation_bwd(rec, &mlp, &u, &d_a, &d_u);
        drop((d_post, a, d_a, u));
        let ranges = tokens.per_layer_ids.iter().map(|ids| &ids.tokens).zip(&shared.d_per_layer);
        self.copy_per_layer(rec, index, width, ranges, &d_u, false);
        let h = saved.h.as_ref().map(|h| h.read(rec));
        let d_gate = WeightColumns { slot: &d_u, column: 0, stride: 2 * width };
        w.gate.backward(rec, t, h.as_ref(), saved.xa_gate.as_ref(), d_gate, Some(d_h), true, lora);
    }
}
