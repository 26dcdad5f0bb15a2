//! Attention as a layer's token mixer: from the layer's normed input to the input of its output projection, and back.

use super::decoder::{Decoder, NormWeights, TokenSlots};
use super::description::{KeysValues, LayerConfig, QkNorm};
use super::kv_cache::{KvCache, LayerCache};
use super::linear::{LinearInput, LoraPass};
use super::mixer::{LinearOutput, MixerOutput};
use super::saved::{Attended, AttentionMixerSaved, MixerElementwise, MixerSaved};
use super::shared_values::{SharedGradients, SharedValues};
use crate::gpu::{Recording, Slot};
use crate::kernels::attention::{AttentionConfig, AttentionSaved, QkvLayout, attention_bwd, attention_fwd};
use crate::kernels::attention_sinks::{SinkRows, attention_sinks_bwd, attention_sinks_fwd};
use crate::kernels::columns::{SlotColumns, columns_copy};
use crate::kernels::matmul::row_absmax;
use crate::kernels::output_gate::{HeadPlace, output_gate_bwd, output_gate_copy, output_gate_fwd};
use crate::kernels::rmsnorm::RmsnormRows;
use crate::kernels::rope::{RopeHeads, rope};
use crate::kernels::{gather, rmsnorm};

/// RMSNorm of a layer's heads of queries, keys or values, from the raw slot to the qkv slot.
struct HeadNorm<'a> {
    rows: RmsnormRows,
    /// Weight; `None` for values, whose norm has none.
    weights: Option<&'a NormWeights>,
    /// Whether the raw columns are those of an earlier norm, too.
    shares_input: bool,
}

impl HeadNorm<'_> {
    /// Returns what is added to the weight, given the offset of the model's norms.
    fn offset(&self, of_model: f32) -> f32 {
        if self.weights.is_some() { of_model } else { 0.0 }
    }
}

impl Decoder {
    fn attention(&self, layer: &LayerConfig) -> AttentionConfig {
        let d = &self.description;
        AttentionConfig {
            heads: d.n_heads,
            kv_heads: layer.n_kv_heads,
            head_dim: layer.head_dim,
            scale: d.attention_scale,
            softcap: d.attention_softcap,
            window: layer.window,
        }
    }

    fn sink_rows(&self, layer: &LayerConfig, tokens: usize) -> SinkRows {
        SinkRows { tokens, heads: self.description.n_heads, head_dim: layer.head_dim }
    }

    fn rotating(&self, layer: &LayerConfig, t: usize) -> RopeHeads {
        let queries = self.description.n_heads;
        // Another layer's keys are rotated already.
        let heads = queries + if layer.lender().is_some() { 0 } else { layer.n_kv_heads };
        let stride = layer.qkv_width(queries);
        RopeHeads { tokens: t, heads, queries, head_dim: layer.head_dim, start: 0, stride }
    }

    /// Returns the number of columns that are normed: queries, keys and, where they have a norm and a projection, values.
    fn raw_width(&self, layer: &LayerConfig) -> usize {
        let kv_heads = match layer.keys_values {
            KeysValues::OfLayer(_) => 0,
            KeysValues::Own if self.description.value_norm => 2 * layer.n_kv_heads,
            KeysValues::Own | KeysValues::KeysAsValues => layer.n_kv_heads,
        };
        (self.description.n_heads + kv_heads) * layer.head_dim
    }

    /// Returns the output of each projection of a layer: columns of qkv, of raw where the columns are normed, and all of gated where the
    /// queries have gates.
    fn qkv_outputs(&self, index: usize, qkv: &Slot, raw: Option<&Slot>, gated: Option<&Slot>) -> Vec<LinearOutput> {
        let (d, layer) = (&self.description, &self.description.layers[index]);
        let output = |(i, linear): (usize, &super::linear::Linear)| {
            let (column, raw_width) = (linear.module.column, self.raw_width(layer));
            match (gated, raw) {
                (Some(gated), _) if i == 0 => LinearOutput::all(gated, 2 * d.n_heads * layer.head_dim),
                (_, Some(raw)) if column < raw_width => LinearOutput { slot: raw.clone(), column, stride: raw_width },
                _ => LinearOutput { slot: qkv.clone(), column, stride: layer.qkv_width(d.n_heads) },
            }
        };
        self.layers[index].qkv.iter().enumerate().map(output).collect()
    }

    /// Returns the places of queries: among their gates, and in a slot of `stride` columns that begin with the queries.
    fn query_places(&self, layer: &LayerConfig, stride: usize) -> [HeadPlace; 2] {
        let packed = HeadPlace { start: 0, stride, head_stride: layer.head_dim };
        [HeadPlace::queries(self.description.n_heads, layer.head_dim), packed]
    }

    /// Returns the columns of keys and values in a layer's qkv slot.
    pub(super) fn kv_columns(&self, layer: &LayerConfig) -> SlotColumns {
        let n_heads = self.description.n_heads;
        SlotColumns { start: n_heads * layer.head_dim, stride: layer.qkv_width(n_heads) }
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
        shared: &SharedValues,
        x1: &Slot,
        attended: Option<Attended>,
    ) -> MixerOutput {
        let (d, gpu, t) = (&self.description, rec.gpu(), tokens.t);
        let (w, layer) = (&self.layers[index], &d.layers[index]);
        let (heads, width, raw_width) =
            ([d.n_heads, layer.head_dim], layer.qkv_width(d.n_heads), self.raw_width(layer));
        let qkv = gpu.alloc_activation(t * width);
        let raw = w.q_norm.is_some().then(|| gpu.alloc_activation(t * raw_width));
        let gated = layer.has_output_gate().then(|| gpu.alloc_activation(t * 2 * d.n_heads * layer.head_dim));
        let outputs = self.qkv_outputs(index, &qkv, raw.as_ref(), gated.as_ref());
        let each = w.qkv.iter().zip(&outputs);
        let absmax = row_absmax(rec, x1, t, self.description.d_model);
        let x = LinearInput { x: x1, absmax: absmax.as_ref() };
        let xa = each.map(|(linear, y)| linear.forward(rec, t, x, None, y.columns(), lora)).collect();
        if let Some(gated) = &gated {
            let (queries, stride) = raw.as_ref().map_or((&qkv, width), |raw| (raw, raw_width));
            let [among_gates, packed] = self.query_places(layer, stride);
            output_gate_copy(rec, t, heads, [&among_gates, &packed], gated, queries);
        }
        let mut head_stats = Vec::new();
        for norm in raw.iter().flat_map(|_| self.head_norms(index, t)) {
            let (raw, weight, stats) =
                (raw.as_ref().unwrap_or(&qkv), self.head_weight(&norm), gpu.alloc_activation(norm.rows.count()));
            rmsnorm::rmsnorm_fwd(
                rec,
                &norm.rows,
                d.norm.eps,
                norm.offset(d.norm.weight_offset),
                raw,
                weight,
                &stats,
                &qkv,
            );
            head_stats.push(stats);
        }
        if let Some(i) = layer.rope {
            rope(rec, &self.rotating(layer, t), false, &tokens.rotary_rows, &self.turns[i], &qkv);
        }
        if let Some(lent) = layer.lender().and_then(|lender| shared.lent.get(&lender)) {
            let n_columns = 2 * layer.n_kv_heads * layer.head_dim;
            let from = SlotColumns { start: 0, stride: n_columns };
            columns_copy(rec, [t, n_columns], (lent, from), (&qkv, self.kv_columns(layer)));
        }
        let Attended { o, lse } = attended.unwrap_or_else(|| self.attend(rec, index, tokens, cache, &qkv));
        let y = gated.as_ref().map(|gated| self.gate_output(rec, index, t, &o, gated));
        MixerOutput {
            y: y.clone().unwrap_or_else(|| o.clone()),
            saved: MixerSaved::Attention(AttentionMixerSaved { gated, raw, head_stats, qkv, o, lse }),
            elementwise: MixerElementwise { y, ..MixerElementwise::default() },
            xa,
        }
    }

    /// Multiplies attention's output o (T, H·E) by σ(gate).
    fn gate_output(&self, rec: &mut Recording, index: usize, t: usize, o: &Slot, gated: &Slot) -> Slot {
        let [heads, head_dim] = [self.description.n_heads, self.description.layers[index].head_dim];
        let y = rec.gpu().alloc_activation(t * heads * head_dim);
        let place = HeadPlace::gates(heads, head_dim);
        output_gate_fwd(rec, t, [heads, head_dim], &place, o, gated, &y);
        y
    }

    /// Returns the input of the output projection, recomputed from saved results where it is not among them.
    pub(super) fn attention_output(
        &self,
        rec: &mut Recording,
        index: usize,
        t: usize,
        saved: &AttentionMixerSaved,
    ) -> Slot {
        match &saved.gated {
            Some(gated) => self.gate_output(rec, index, t, &saved.o, gated),
            None => saved.o.clone(),
        }
    }

    /// Computes a layer's attention from the rotated q, k and v. With a cache, stores k and v there, where they are the layer's own, and reads
    /// all keys from it.
    fn attend(
        &self,
        rec: &mut Recording,
        index: usize,
        tokens: &TokenSlots,
        cache: Option<&KvCache>,
        qkv: &Slot,
    ) -> Attended {
        let (d, gpu, t) = (&self.description, rec.gpu(), tokens.t);
        let layer = &d.layers[index];
        let attention = self.attention(layer);
        let (o, lse) = (gpu.alloc_activation(t * d.n_heads * layer.head_dim), gpu.alloc_activation(t * d.n_heads));
        match cache.map(|cache| (&cache.layers[index], &cache.rows)) {
            Some((LayerCache::Keys(keys), rows)) => {
                let (q, kv) = (d.n_heads * layer.head_dim, 2 * layer.n_kv_heads * layer.head_dim);
                let width = layer.qkv_width(d.n_heads);
                // A lender has stored its own.
                if layer.lender().is_none() {
                    gather::gather_scatter(rec, rows, t, qkv, q, width, kv, keys);
                }
                let layout = QkvLayout { q_start: 0, q_stride: width, k_start: 0, v_start: kv / 2, kv_stride: kv };
                attention_fwd(rec, &attention, &layout, qkv, keys, &tokens.segments, &o, &lse);
            }
            _ => attention_fwd(rec, &attention, &attention.packed(), qkv, qkv, &tokens.segments, &o, &lse),
        }
        match &self.layers[index].sinks {
            None => Attended { o, lse },
            Some(sinks) => {
                let with_sinks = gpu.alloc_activation(t * d.n_heads);
                attention_sinks_fwd(rec, &self.sink_rows(layer, t), sinks.slot(), &lse, &o, &with_sinks);
                Attended { o, lse: with_sinks }
            }
        }
    }

    /// Computes the gradients of the projections' outputs from d_y, that of the output projection's input; adds those of norms.
    pub(super) fn attention_mix_backward(
        &self,
        rec: &mut Recording,
        index: usize,
        tokens: &TokenSlots,
        saved: &AttentionMixerSaved,
        shared: &mut SharedGradients,
        d_y: Slot,
    ) -> Vec<LinearOutput> {
        let (d, gpu, t) = (&self.description, rec.gpu(), tokens.t);
        let layer = &d.layers[index];
        let (heads, width, raw_width) =
            ([d.n_heads, layer.head_dim], layer.qkv_width(d.n_heads), self.raw_width(layer));
        let mut d_gated = None;
        let d_o = match &saved.gated {
            None => d_y,
            Some(gated) => {
                let d_o = gpu.alloc_activation(t * d.n_heads * layer.head_dim);
                let d_gates = gpu.alloc_activation(t * 2 * d.n_heads * layer.head_dim);
                let place = HeadPlace::gates(d.n_heads, layer.head_dim);
                output_gate_bwd(rec, t, heads, &place, &saved.o, gated, &d_y, &d_o, &d_gates);
                d_gated = Some(d_gates);
                d_o
            }
        };
        let d_qkv = gpu.alloc_activation(t * width);
        let attention = self.attention(layer);
        let of_attention = AttentionSaved { qkv: &saved.qkv, o: &saved.o, lse: &saved.lse };
        let delta = attention_bwd(rec, &attention, &attention.packed(), of_attention, &tokens.segments, &d_o, &d_qkv);
        if let Some((sinks, d_sinks)) = self.layers[index].sinks.as_ref().and_then(|w| Some((w.slot(), w.grad()?))) {
            attention_sinks_bwd(rec, &self.sink_rows(layer, t), sinks, &saved.lse, &delta, d_sinks);
        }
        drop((delta, d_o));
        self.lend_backward(rec, index, t, &d_qkv, shared);
        if let Some(i) = layer.rope {
            rope(rec, &self.rotating(layer, t), true, &tokens.rotary_rows, &self.turns[i], &d_qkv);
        }
        let d_raw = saved.raw.as_ref().map(|raw| {
            let d_raw = gpu.alloc_activation(t * raw_width);
            for (norm, r) in self.head_norms(index, t).iter().zip(&saved.head_stats) {
                let (rows, weight, offset) = (&norm.rows, self.head_weight(norm), norm.offset(d.norm.weight_offset));
                rmsnorm::rmsnorm_bwd_x(rec, rows, offset, norm.shares_input, raw, weight, r, &d_qkv, &d_raw);
                if let Some(d_w) = norm.weights.and_then(|weights| weights.w.grad()) {
                    rmsnorm::rmsnorm_bwd_w(rec, rows, raw, r, &d_qkv, d_w);
                }
            }
            d_raw
        });
        if let Some(d_gated) = &d_gated {
            let (d_q, stride) = d_raw.as_ref().map_or((&d_qkv, width), |d_raw| (d_raw, raw_width));
            let [among_gates, packed] = self.query_places(layer, stride);
            output_gate_copy(rec, t, heads, [&packed, &among_gates], d_q, d_gated);
        }
        self.qkv_outputs(index, &d_qkv, d_raw.as_ref(), d_gated.as_ref())
    }

    /// Describes the norms of a layer's heads: rows of E, or all heads of a token together.
    fn head_norms(&self, index: usize, t: usize) -> Vec<HeadNorm<'_>> {
        let (d, w, layer) = (&self.description, &self.layers[index], &self.description.layers[index]);
        let [q, k] = [d.n_heads, layer.n_kv_heads].map(|heads| heads * layer.head_dim);
        let whole = d.qk_norm == QkNorm::Whole;
        let norm = |heads: usize, width: usize, [x_start, y_start]: [usize; 2], weights, shares_input| HeadNorm {
            rows: RmsnormRows {
                tokens: t,
                groups: if whole { 1 } else { heads },
                width,
                x_start,
                x_stride: self.raw_width(layer),
                y_start,
                y_stride: layer.qkv_width(d.n_heads),
            },
            weights,
            shares_input,
        };
        let [q_width, k_width] = d.qk_norm_widths(layer);
        let queries = w.q_norm.iter().map(|w| norm(d.n_heads, q_width, [0, 0], Some(w), false));
        let keys = w.k_norm.iter().map(|w| norm(layer.n_kv_heads, k_width, [q, q], Some(w), false));
        let values = (d.value_norm && layer.lender().is_none()).then(|| {
            let of_keys = layer.keys_values == KeysValues::KeysAsValues;
            let start = if of_keys { q } else { q + k };
            norm(layer.n_kv_heads, layer.head_dim, [start, q + k], None, of_keys)
        });
        queries.chain(keys).chain(values).collect()
    }

    /// Returns the weight of a norm of heads: ones where it has none.
    fn head_weight<'a>(&'a self, norm: &HeadNorm<'a>) -> &'a Slot {
        match norm.weights {
            Some(weights) => weights.w.slot(),
            None => self.ones.as_ref().expect("models whose values have a norm have ones"),
        }
    }
}
