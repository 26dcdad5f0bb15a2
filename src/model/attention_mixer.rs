//! Attention as a layer's token mixer: from the layer's normed input to the input of its output projection, and back.

use super::decoder::{Decoder, TokenSlots};
use super::description::{LayerConfig, QkNorm};
use super::kv_cache::{KvCache, LayerCache};
use super::linear::{LinearInput, LoraPass};
use super::mixer::{LinearOutput, MixerOutput};
use super::saved::{Attended, AttentionMixerSaved, MixerElementwise, MixerSaved};
use crate::gpu::{Recording, Slot};
use crate::kernels::attention::{AttentionConfig, AttentionSaved, QkvLayout, attention_bwd, attention_fwd};
use crate::kernels::matmul::row_absmax;
use crate::kernels::output_gate::{HeadPlace, output_gate_bwd, output_gate_copy, output_gate_fwd};
use crate::kernels::rmsnorm::RmsnormRows;
use crate::kernels::rope::{RopeHeads, rope};
use crate::kernels::{gather, rmsnorm};

impl Decoder {
    fn attention(&self, layer: &LayerConfig) -> AttentionConfig {
        let d = &self.description;
        AttentionConfig {
            heads: d.n_heads,
            kv_heads: d.n_kv_heads,
            head_dim: d.head_dim,
            scale: d.attention_scale,
            softcap: d.attention_softcap,
            window: layer.window,
        }
    }

    fn rotating(&self, t: usize) -> RopeHeads {
        let d = &self.description;
        let (queries, heads) = (d.n_heads, d.n_heads + d.n_kv_heads);
        RopeHeads { tokens: t, heads, queries, head_dim: d.head_dim, start: 0, stride: d.qkv_width() }
    }

    /// Returns the number of columns of queries and keys: (H + K)·E.
    fn raw_width(&self) -> usize {
        let d = &self.description;
        (d.n_heads + d.n_kv_heads) * d.head_dim
    }

    /// Returns the output of each projection of a layer: columns of qkv, of raw where the columns are normed, and all of gated where the
    /// queries have gates.
    fn qkv_outputs(&self, index: usize, qkv: &Slot, raw: Option<&Slot>, gated: Option<&Slot>) -> Vec<LinearOutput> {
        let d = &self.description;
        let output = |(i, linear): (usize, &super::linear::Linear)| {
            let column = linear.module.column;
            match (gated, raw) {
                (Some(gated), _) if i == 0 => LinearOutput::all(gated, 2 * d.n_heads * d.head_dim),
                (_, Some(raw)) if column < self.raw_width() => {
                    LinearOutput { slot: raw.clone(), column, stride: self.raw_width() }
                }
                _ => LinearOutput { slot: qkv.clone(), column, stride: d.qkv_width() },
            }
        };
        self.layers[index].qkv.iter().enumerate().map(output).collect()
    }

    /// Returns the places of queries: among their gates, and in a slot of `stride` columns that begin with the queries.
    fn query_places(&self, stride: usize) -> [HeadPlace; 2] {
        let d = &self.description;
        let packed = HeadPlace { start: 0, stride, head_stride: d.head_dim };
        [HeadPlace::queries(d.n_heads, d.head_dim), packed]
    }

    /// Computes attention's output from the layer's normed input x1 (T, D). Results of attention that were saved are not recomputed.
    #[expect(clippy::too_many_arguments, reason = "a layer's inputs, and what is known of it")]
    pub(super) fn attention_mix(
        &self,
        rec: &mut Recording,
        index: usize,
        tokens: &TokenSlots,
        cache: Option<&KvCache>,
        lora: LoraPass,
        x1: &Slot,
        attended: Option<Attended>,
    ) -> MixerOutput {
        let (d, gpu, t) = (&self.description, rec.gpu(), tokens.t);
        let (w, layer) = (&self.layers[index], &d.layers[index]);
        let heads = [d.n_heads, d.head_dim];
        let qkv = gpu.alloc_activation(t * d.qkv_width());
        let raw = w.qk_norms.is_some().then(|| gpu.alloc_activation(t * self.raw_width()));
        let gated = layer.has_output_gate().then(|| gpu.alloc_activation(t * 2 * d.n_heads * d.head_dim));
        let outputs = self.qkv_outputs(index, &qkv, raw.as_ref(), gated.as_ref());
        let each = w.qkv.iter().zip(&outputs);
        let absmax = row_absmax(rec, x1, t, self.description.d_model);
        let x = LinearInput { x: x1, absmax: absmax.as_ref() };
        let xa = each.map(|(linear, y)| linear.forward(rec, t, x, None, y.columns(), lora)).collect();
        if let Some(gated) = &gated {
            let (queries, stride) = raw.as_ref().map_or((&qkv, d.qkv_width()), |raw| (raw, self.raw_width()));
            let [among_gates, packed] = self.query_places(stride);
            output_gate_copy(rec, t, heads, [&among_gates, &packed], gated, queries);
        }
        let head_stats = w.qk_norms.as_ref().zip(raw.as_ref()).map(|(norms, raw)| {
            let rows = self.qk_norm_rows(t);
            let stats = [0, 1].map(|i| gpu.alloc_activation(rows[i].count()));
            for i in 0..2 {
                let (n, weight) = (d.norm, norms[i].w.slot());
                rmsnorm::rmsnorm_fwd(rec, &rows[i], n.eps, n.weight_offset, raw, weight, &stats[i], &qkv);
            }
            stats
        });
        if let Some(i) = layer.rope {
            rope(rec, &self.rotating(t), false, &tokens.rotary_rows, &self.turns[i], &qkv);
        }
        let Attended { o, lse } = attended.unwrap_or_else(|| self.attend(rec, index, tokens, cache, &qkv));
        let y = gated.as_ref().map(|gated| self.gate_output(rec, t, &o, gated));
        MixerOutput {
            y: y.clone().unwrap_or_else(|| o.clone()),
            saved: MixerSaved::Attention(AttentionMixerSaved { gated, raw, head_stats, qkv, o, lse }),
            elementwise: MixerElementwise { qkv: None, y },
            xa,
        }
    }

    /// Multiplies attention's output o (T, H·E) by σ(gate).
    fn gate_output(&self, rec: &mut Recording, t: usize, o: &Slot, gated: &Slot) -> Slot {
        let d = &self.description;
        let y = rec.gpu().alloc_activation(t * d.n_heads * d.head_dim);
        let place = HeadPlace::gates(d.n_heads, d.head_dim);
        output_gate_fwd(rec, t, [d.n_heads, d.head_dim], &place, o, gated, &y);
        y
    }

    /// Returns the input of the output projection, recomputed from saved results where it is not among them.
    pub(super) fn attention_output(&self, rec: &mut Recording, t: usize, saved: &AttentionMixerSaved) -> Slot {
        match &saved.gated {
            Some(gated) => self.gate_output(rec, t, &saved.o, gated),
            None => saved.o.clone(),
        }
    }

    /// Computes a layer's attention from the rotated q, k and v. With a cache, stores k and v there, and reads all keys from it.
    fn attend(
        &self,
        rec: &mut Recording,
        index: usize,
        tokens: &TokenSlots,
        cache: Option<&KvCache>,
        qkv: &Slot,
    ) -> Attended {
        let (d, gpu, t) = (&self.description, rec.gpu(), tokens.t);
        let attention = self.attention(&d.layers[index]);
        let (o, lse) = (gpu.alloc_activation(t * d.n_heads * d.head_dim), gpu.alloc_activation(t * d.n_heads));
        match cache.map(|cache| (&cache.layers[index], &cache.rows)) {
            Some((LayerCache::Keys(keys), rows)) => {
                let (q, kv) = (d.n_heads * d.head_dim, 2 * d.n_kv_heads * d.head_dim);
                let width = d.qkv_width();
                gather::gather_scatter(rec, rows, t, qkv, q, width, kv, keys);
                let layout = QkvLayout { q_start: 0, q_stride: width, k_start: 0, v_start: kv / 2, kv_stride: kv };
                attention_fwd(rec, &attention, &layout, qkv, keys, &tokens.segments, &o, &lse);
            }
            _ => attention_fwd(rec, &attention, &attention.packed(), qkv, qkv, &tokens.segments, &o, &lse),
        }
        Attended { o, lse }
    }

    /// Computes the gradients of the projections' outputs from d_y, that of the output projection's input; adds those of norms.
    pub(super) fn attention_mix_backward(
        &self,
        rec: &mut Recording,
        index: usize,
        tokens: &TokenSlots,
        saved: &AttentionMixerSaved,
        d_y: Slot,
    ) -> Vec<LinearOutput> {
        let (d, gpu, t) = (&self.description, rec.gpu(), tokens.t);
        let (w, layer) = (&self.layers[index], &d.layers[index]);
        let heads = [d.n_heads, d.head_dim];
        let width = d.qkv_width();
        let mut d_gated = None;
        let d_o = match &saved.gated {
            None => d_y,
            Some(gated) => {
                let d_o = gpu.alloc_activation(t * d.n_heads * d.head_dim);
                let d_gates = gpu.alloc_activation(t * 2 * d.n_heads * d.head_dim);
                let place = HeadPlace::gates(d.n_heads, d.head_dim);
                output_gate_bwd(rec, t, heads, &place, &saved.o, gated, &d_y, &d_o, &d_gates);
                d_gated = Some(d_gates);
                d_o
            }
        };
        let d_qkv = gpu.alloc_activation(t * width);
        let attention = self.attention(layer);
        let of_attention = AttentionSaved { qkv: &saved.qkv, o: &saved.o, lse: &saved.lse };
        attention_bwd(rec, &attention, &attention.packed(), of_attention, &tokens.segments, &d_o, &d_qkv);
        drop(d_o);
        if let Some(i) = layer.rope {
            rope(rec, &self.rotating(t), true, &tokens.rotary_rows, &self.turns[i], &d_qkv);
        }
        let d_raw = match (&w.qk_norms, &saved.raw, &saved.head_stats) {
            (Some(norms), Some(raw), Some(stats)) => {
                let d_raw = gpu.alloc_activation(t * self.raw_width());
                for (i, rows) in self.qk_norm_rows(t).iter().enumerate() {
                    let (weight, offset) = (&norms[i].w, d.norm.weight_offset);
                    let r = &stats[i];
                    rmsnorm::rmsnorm_bwd_x(rec, rows, offset, false, raw, weight.slot(), r, &d_qkv, &d_raw);
                    if let Some(d_w) = weight.grad() {
                        rmsnorm::rmsnorm_bwd_w(rec, rows, raw, r, &d_qkv, d_w);
                    }
                }
                Some(d_raw)
            }
            _ => None,
        };
        if let Some(d_gated) = &d_gated {
            let (d_q, stride) = d_raw.as_ref().map_or((&d_qkv, width), |d_raw| (d_raw, self.raw_width()));
            let [among_gates, packed] = self.query_places(stride);
            output_gate_copy(rec, t, heads, [&packed, &among_gates], d_q, d_gated);
        }
        self.qkv_outputs(index, &d_qkv, d_raw.as_ref(), d_gated.as_ref())
    }

    /// Describes the rows of queries and of keys that are normed, read from the raw slot and written to the qkv slot: heads of E, or all
    /// heads of a token together.
    fn qk_norm_rows(&self, t: usize) -> [RmsnormRows; 2] {
        let d = &self.description;
        let q = d.n_heads * d.head_dim;
        let groups = if d.qk_norm == QkNorm::Whole { [1, 1] } else { [d.n_heads, d.n_kv_heads] };
        [0, 1].map(|i| {
            let start = [0, q][i];
            RmsnormRows {
                tokens: t,
                groups: groups[i],
                width: d.qk_norm_widths()[i],
                x_start: start,
                x_stride: self.raw_width(),
                y_start: start,
                y_stride: d.qkv_width(),
            }
        })
    }
}
