//! Backward pass of the decoder: the steps of the forward pass in reverse, down to the lowest trained layer.

use std::collections::BTreeMap;

use super::decoder::{Decoder, NormWeights, TokenSlots};
use super::description::{NormKind, TokenMixer};
use super::linear::{Linear, WeightColumns};
use super::saved::{ActivationSaved, ForwardSaved, LayerSaved, MixerSaved};
use super::shared_values::SharedGradients;
use super::weights::Weight;
use crate::gpu::{Recording, Slot};
use crate::kernels::embedding::{VocabShard, embedding_bwd_w};
use crate::kernels::rmsnorm::RmsnormRows;
use crate::kernels::{add, layernorm, rmsnorm};

impl Decoder {
    /// Computes the gradients through a norm of D: d_x (added to when `accumulate`), and those of the norm's weights where they are
    /// trained.
    #[expect(clippy::too_many_arguments, reason = "values of the forward pass, and slots for gradients")]
    pub fn norm_backward(
        &self,
        rec: &mut Recording,
        norm: &NormWeights,
        rows: usize,
        x: &Slot,
        stats: &Slot,
        d_y: &Slot,
        d_x: &Slot,
        accumulate: bool,
    ) {
        let (n, d) = (self.description.norm, self.description.d_model);
        match n.kind {
            NormKind::Rms => {
                let rows = RmsnormRows::contiguous(rows, d);
                rmsnorm::rmsnorm_bwd_x(rec, &rows, n.weight_offset, accumulate, x, norm.w.slot(), stats, d_y, d_x);
                if let Some(d_w) = norm.w.grad() {
                    rmsnorm::rmsnorm_bwd_w(rec, &rows, x, stats, d_y, d_w);
                }
            }
            NormKind::Layer => {
                let shape = layernorm::LayernormRows { rows, width: d, offset: n.weight_offset };
                layernorm::layernorm_bwd_x(rec, &shape, accumulate, x, norm.w.slot(), stats, d_y, d_x);
                if let (Some(d_w), Some(d_b)) = (norm.w.grad(), norm.b.as_ref().and_then(Weight::grad)) {
                    layernorm::layernorm_bwd_w(rec, &shape, x, stats, d_y, d_w, d_b);
                }
            }
        }
    }

    /// Returns whether the embedding is trained, or single rows of it.
    fn trains_embedding(&self) -> bool {
        self.embedding.trained() || self.tokens.is_some()
    }

    /// Returns the lowest layer that has trained weights; `None` where no layer has any.
    pub(super) fn lowest_trained(&self) -> Option<usize> {
        // Every layer reads the per-layer inputs.
        if self.trains_embedding() || self.needs_d_per_layer(false) {
            return Some(0);
        }
        self.layers.iter().position(|l| l.attn_norm.iter().any(|n| n.w.trained()) || l.linears().any(Linear::trained))
    }

    /// Computes all gradients from d_h (T, D), the gradient of the residual stream behind the last layer. Consumes the saved activations
    /// layer by layer.
    pub fn backward(&self, rec: &mut Recording, tokens: &TokenSlots, mut trace: ForwardSaved, d_h: &Slot) {
        let Some(lowest) = self.lowest_trained() else { return };
        let width = self.description.per_layer_inputs.as_ref().map_or(0, |inputs| inputs.projection.n_out);
        let needs_inputs = self.needs_d_per_layer(self.trains_embedding());
        let chunks = trace.shared.per_layer.iter().filter(|_| needs_inputs);
        let d_per_layer = chunks.map(|chunk| rec.gpu().alloc_activation(chunk.tokens.len() * width)).collect();
        let mut gradients = SharedGradients { d_lent: BTreeMap::new(), d_per_layer, lowest };
        for index in (lowest..self.layers.len()).rev() {
            rec.scope(format!("L{index}"));
            if let Some(kept) = trace.layers.pop() {
                let saved = self.restore(rec, index, tokens, &trace.shared, kept);
                let continues = index > lowest || self.trains_embedding();
                self.layer_backward(rec, index, tokens, &saved, &mut gradients, d_h, continues);
            }
        }
        rec.scope("embed");
        if needs_inputs {
            self.per_layer_inputs_backward(rec, tokens, &trace.shared, gradients, d_h, self.trains_embedding());
        }
        self.trained_tokens_backward(rec, tokens, d_h);
        if !self.embedding.trained() {
            return;
        }
        let d = &self.description;
        let page = |w: &Weight, first, rows| VocabShard { first, rows, width: d.d_model, storage: w.storage };
        for p in &self.embedding.parts {
            if let Some(d_w) = &p.d_w {
                let page = page(&self.embedding, p.first, p.rows);
                embedding_bwd_w(rec, &page, d.embed_scale, &tokens.ids, d_h, d_w);
            }
        }
        if let (Some(w), Some(ids)) = (&self.position_embedding, &tokens.position_ids) {
            for p in &w.parts {
                if let Some(d_w) = &p.d_w {
                    embedding_bwd_w(rec, &page(w, p.first, p.rows), 1.0, ids, d_h, d_w);
                }
            }
        }
    }

    /// Adds to d_h the gradients of a layer's two branches. On entry d_h is the gradient of the layer's output, on return that of its
    /// input. Unless the backward pass `continues` below the layer, nobody reads the latter, and it may be incomplete.
    #[expect(clippy::too_many_arguments, reason = "values of the forward pass, and slots for gradients")]
    fn layer_backward(
        &self,
        rec: &mut Recording,
        index: usize,
        tokens: &TokenSlots,
        trace: &LayerSaved,
        gradients: &mut SharedGradients,
        d_h: &Slot,
        continues: bool,
    ) {
        let (s, kept) = (&trace.products, trace.elementwise.as_ref());
        let (d, w, gpu, t) = (&self.description, &self.layers[index], rec.gpu(), tokens.t);

        let ([reads_x1, reads_y, reads_x2], lora) = (w.reads_inputs(), tokens.lora_pass(true));

        if w.scalar != 1.0 {
            add::scale(rec, w.scalar, d_h);
        }
        if let Some(saved) = &s.per_layer {
            self.per_layer_branch_backward(rec, index, tokens, saved, gradients, d_h);
        }

        // MLP branch.
        let d_post = self.post_norm_backward(rec, w.mlp_post_norm.as_ref(), s.mlp_post.as_ref(), t, d_h);
        let d_branch = d_post.as_ref().unwrap_or(d_h);
        let h_mid = s.h_mid.read(rec);
        let kept_x2 = kept.and_then(|e| e.x2.clone());
        let recomputed_x2 = |rec: &mut Recording| self.input_norm(rec, w.mlp_norm.as_ref(), t, &h_mid).0;
        let x2 = reads_x2.then(|| kept_x2.unwrap_or_else(|| recomputed_x2(rec)));
        // Without a norm before it, the branch adds to the residual stream's gradient.
        let d_x2 = w.mlp_norm.as_ref().map_or_else(|| d_h.clone(), |_| gpu.alloc_activation(t * d.d_model));
        for (i, mlp) in s.mlp.iter().enumerate() {
            let u = mlp.u.read(rec);
            let kept_a = kept.and_then(|e| e.a.get(i).cloned());
            let a = w.mlp.reads_activation().then(|| kept_a.unwrap_or_else(|| self.activation(rec, index, mlp, &u)));
            self.mlp_backward(rec, index, mlp, &u, [a.as_ref(), x2.as_ref()], d_branch, &d_x2, lora);
        }
        drop(x2);
        drop(d_post);
        if let (Some(norm), Some(stats)) = (&w.mlp_norm, &s.stats2) {
            self.norm_backward(rec, norm, t, &h_mid, stats, &d_x2, d_h, true);
        }
        drop((d_x2, h_mid));

        // Branch of the token mixer.
        let d_post = self.post_norm_backward(rec, w.attn_post_norm.as_ref(), s.attn_post.as_ref(), t, d_h);
        let d_branch = d_post.as_ref().unwrap_or(d_h);
        let y = reads_y.then(|| {
            let kept_y = kept.and_then(|e| e.mixer.y.clone());
            kept_y.unwrap_or_else(|| self.mixer_output(rec, index, tokens, &s.mixer))
        });
        let d_y = gpu.alloc_activation(t * w.out.w.cols);
        let d_out = WeightColumns::all(d_branch, d.d_model);
        w.out.backward(rec, t, y.as_ref(), s.xa_out.as_ref(), d_out, Some(&d_y), false, lora);
        drop((d_post, y));
        let d_inputs = match (&d.layers[index].mixer, &s.mixer) {
            (TokenMixer::DeltaNet(net), MixerSaved::DeltaNet(saved)) => {
                let kept = kept.map(|e| &e.mixer);
                self.delta_net_mix_backward(rec, index, net, tokens, saved, kept, d_y)
            }
            (_, MixerSaved::ShortConv(saved)) => {
                self.short_conv_mix_backward(rec, index, tokens, saved, kept.map(|e| &e.mixer), d_y)
            }
            (_, MixerSaved::Attention(saved)) => self.attention_mix_backward(rec, index, tokens, saved, gradients, d_y),
            (_, MixerSaved::DeltaNet(_)) => unreachable!("a layer saves its own mixer"),
        };
        let h_in = s.h_in.read(rec);
        let kept_x1 = kept.and_then(|e| e.x1.clone());
        let recomputed_x1 = |rec: &mut Recording| self.input_norm(rec, w.attn_norm.as_ref(), t, &h_in).0;
        let x1 = reads_x1.then(|| kept_x1.unwrap_or_else(|| recomputed_x1(rec)));
        let needs_d_x1 = continues || w.attn_norm.as_ref().is_some_and(|norm| norm.w.trained());
        let d_x1 = || w.attn_norm.as_ref().map_or_else(|| d_h.clone(), |_| gpu.alloc_activation(t * d.d_model));
        let d_x1 = needs_d_x1.then(d_x1);
        for (i, (linear, d_y)) in w.qkv.iter().zip(&d_inputs).enumerate() {
            let accumulate = i > 0 || w.attn_norm.is_none();
            let (xa, d_y) = (s.xa_qkv[i].as_ref(), d_y.columns());
            linear.backward(rec, t, x1.as_ref(), xa, d_y, d_x1.as_ref(), accumulate, lora);
        }
        drop(d_inputs);
        if let (Some(norm), Some(stats), Some(d_x1)) = (&w.attn_norm, &s.stats1, d_x1) {
            self.norm_backward(rec, norm, t, &h_in, stats, &d_x1, d_h, true);
        }
    }

    /// Recomputes the input of a layer's output projection from saved results.
    fn mixer_output(&self, rec: &mut Recording, index: usize, tokens: &TokenSlots, saved: &MixerSaved) -> Slot {
        match (&self.description.layers[index].mixer, saved) {
            (TokenMixer::DeltaNet(net), MixerSaved::DeltaNet(saved)) => {
                self.delta_net_output(rec, index, net, tokens.t, saved)
            }
            (_, MixerSaved::ShortConv(saved)) => self.short_conv_output(rec, index, tokens, saved),
            (_, MixerSaved::Attention(saved)) => self.attention_output(rec, index, tokens.t, saved),
            (_, MixerSaved::DeltaNet(_)) => unreachable!("a layer saves its own mixer"),
        }
    }

    /// Computes the gradient through the norm behind a branch; `None` without such a norm.
    pub(super) fn post_norm_backward(
        &self,
        rec: &mut Recording,
        norm: Option<&NormWeights>,
        saved: Option<&(ActivationSaved, Slot)>,
        t: usize,
        d_h: &Slot,
    ) -> Option<Slot> {
        let (norm, (x, stats)) = norm.zip(saved)?;
        let d_x = rec.gpu().alloc_activation(t * self.description.d_model);
        let x = x.read(rec);
        self.norm_backward(rec, norm, t, &x, stats, d_h, &d_x, false);
        Some(d_x)
    }
}
