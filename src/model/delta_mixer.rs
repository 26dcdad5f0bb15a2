//! Gated delta net as a layer's token mixer (`Qwen3_5GatedDeltaNet` in transformers' `modular_qwen3_5.py`): from the layer's normed input to
//! the input of its output projection, and back.

use super::decoder::{Decoder, TokenSlots};
use super::delta_net::DeltaNetWeights;
use super::description::DeltaNetConfig;
use super::kv_cache::{KvCache, LayerCache};
use super::linear::{LinearInput, LoraPass};
use super::mixer::{LinearOutput, MixerOutput};
use super::recurrent_tokens::RecurrentTokens;
use super::saved::{DeltaNetSaved, MixerElementwise, MixerSaved};
use crate::gpu::{Recording, Slot};
use crate::kernels::causal_conv::{
    ConvActivation, ConvTable, causal_conv_bwd_s, causal_conv_bwd_w, causal_conv_bwd_x, causal_conv_fwd,
    causal_conv_step, causal_conv_window,
};
use crate::kernels::delta_gates::{DeltaGatesGradients, delta_gates_bwd, delta_gates_fwd};
use crate::kernels::delta_rule::{DeltaRuleSaved, delta_rule_bwd, delta_rule_fwd, delta_rule_step};
use crate::kernels::gated_rmsnorm::{gated_rmsnorm_bwd, gated_rmsnorm_bwd_w, gated_rmsnorm_fwd};
use crate::kernels::l2norm::{l2norm_bwd, l2norm_fwd};
use crate::kernels::matmul::row_absmax;

impl Decoder {
    fn delta_weights(&self, index: usize) -> &DeltaNetWeights {
        self.layers[index].delta_net.as_ref().expect("weights are loaded for every delta net")
    }

    /// Returns the outputs of the input projections, or their gradients, in the order of [`DeltaNetConfig::input_widths`].
    fn delta_outputs(net: &DeltaNetConfig, slots: [&Slot; 4]) -> Vec<LinearOutput> {
        slots.iter().zip(net.input_widths()).map(|(slot, width)| LinearOutput::all(slot, width)).collect()
    }

    /// Computes a delta net's output from the layer's normed input x1 (T, D). With a cache, stores or updates its states.
    #[expect(clippy::too_many_arguments, reason = "a layer's inputs, and what is known of it")]
    pub(super) fn delta_net_mix(
        &self,
        rec: &mut Recording,
        index: usize,
        net: &DeltaNetConfig,
        tokens: &TokenSlots,
        cache: Option<&KvCache>,
        lora: LoraPass,
        x1: &Slot,
    ) -> MixerOutput {
        let (gpu, t, heads) = (rec.gpu(), tokens.t, net.heads());
        let (w, own) = (&self.layers[index], self.delta_weights(index));
        let (channels, hv) = (heads.width(), heads.value_heads);
        let [mixed, z, b, a] = net.input_widths().map(|width| gpu.alloc_activation(t * width));
        let outputs = Self::delta_outputs(net, [&mixed, &z, &b, &a]);
        let each = w.qkv.iter().zip(&outputs);
        let absmax = row_absmax(rec, x1, t, self.description.d_model);
        let x = LinearInput { x: x1, absmax: absmax.as_ref() };
        let xa = each.map(|(linear, y)| linear.forward(rec, t, x, None, y.columns(), lora)).collect();
        let gates = gpu.alloc_activation(t * 2 * hv);
        delta_gates_fwd(rec, t, hv, own.decay(&a), &b, &gates);
        drop(b);
        let o = gpu.alloc_activation(t * heads.value_width());
        let (qkv, states);
        match (self.delta_tokens(tokens), cache.map(|cache| &cache.layers[index])) {
            (RecurrentTokens::Next(rows), Some(LayerCache::Delta { window, states: cached })) => {
                let x = gpu.alloc_activation(t * channels);
                let (silu, conv) = (ConvActivation::Silu, own.conv.slot());
                causal_conv_step(rec, t, channels, net.taps, silu, rows, conv, &mixed, window, &x);
                qkv = self.l2_normed(rec, net, t, x);
                delta_rule_step(rec, &heads, t, rows, &qkv[0], &gates, cached, &o);
                states = cached.clone();
            }
            (RecurrentTokens::Segments { conv, chunks: Some(chunks), ends }, cache) => {
                qkv = self.delta_qkv(rec, net, index, t, conv, &mixed);
                states = gpu.alloc_activation(chunks.states_len(&heads));
                delta_rule_fwd(rec, &heads, chunks, &qkv[0], &gates, &o, &states);
                if let (Some((n, ends)), Some(LayerCache::Delta { window, states: cached })) = (ends, cache) {
                    causal_conv_window(rec, conv, channels, *n, ends, &mixed, window);
                    rec.copy(&states.slice(0, n * heads.state_len()), cached);
                }
            }
            (RecurrentTokens::Next(_), _) => unreachable!("single tokens continue from a cache"),
            (RecurrentTokens::Segments { chunks: None, .. }, _) => unreachable!("models with delta nets have chunks"),
        }
        let (stats, y) = (gpu.alloc_activation(t * hv), gpu.alloc_activation(t * heads.value_width()));
        let eps = self.description.norm.eps;
        gated_rmsnorm_fwd(rec, t * hv, heads.value_dim, eps, &o, &z, own.norm.slot(), &stats, &y);
        MixerOutput {
            y: y.clone(),
            saved: MixerSaved::DeltaNet(DeltaNetSaved { mixed, z, a, gates, o, states, stats }),
            elementwise: MixerElementwise { qkv: Some(qkv), y: Some(y), ..MixerElementwise::default() },
            xa,
        }
    }

    fn delta_tokens<'t>(&self, tokens: &'t TokenSlots) -> &'t RecurrentTokens {
        tokens.recurrent.as_ref().expect("tokens of a model with delta nets have their tables")
    }

    /// Computes the convolved q, k and v, with q and k normalised, and the statistics of the norms.
    fn delta_qkv(
        &self,
        rec: &mut Recording,
        net: &DeltaNetConfig,
        index: usize,
        t: usize,
        conv: &ConvTable,
        mixed: &Slot,
    ) -> [Slot; 2] {
        let channels = net.heads().width();
        let x = rec.gpu().alloc_activation(t * channels);
        let w = self.delta_weights(index).conv.slot();
        causal_conv_fwd(rec, conv, channels, ConvActivation::Silu, w, mixed, &x);
        self.l2_normed(rec, net, t, x)
    }

    /// Normalises q and k in place. Returns them with the statistics.
    fn l2_normed(&self, rec: &mut Recording, net: &DeltaNetConfig, t: usize, qkv: Slot) -> [Slot; 2] {
        let r = rec.gpu().alloc_activation(t * 2 * net.key_heads);
        l2norm_fwd(rec, &net.heads(), t, &qkv, &r);
        [qkv, r]
    }

    /// Recomputes the input of the output projection from saved results.
    pub(super) fn delta_net_output(
        &self,
        rec: &mut Recording,
        index: usize,
        net: &DeltaNetConfig,
        t: usize,
        saved: &DeltaNetSaved,
    ) -> Slot {
        let (heads, norm) = (net.heads(), &self.delta_weights(index).norm);
        let rows = t * heads.value_heads;
        let [y, stats] = [t * heads.value_width(), rows].map(|n| rec.gpu().alloc_activation(n));
        let (width, eps) = (heads.value_dim, self.description.norm.eps);
        gated_rmsnorm_fwd(rec, rows, width, eps, &saved.o, &saved.z, norm.slot(), &stats, &y);
        y
    }

    /// Computes the gradients of the projections' outputs from d_y, that of the output projection's input; adds those of the net's own
    /// weights.
    #[expect(clippy::too_many_arguments, reason = "values of the forward pass, and a gradient")]
    pub(super) fn delta_net_mix_backward(
        &self,
        rec: &mut Recording,
        index: usize,
        net: &DeltaNetConfig,
        tokens: &TokenSlots,
        saved: &DeltaNetSaved,
        kept: Option<&MixerElementwise>,
        d_y: Slot,
    ) -> Vec<LinearOutput> {
        let RecurrentTokens::Segments { conv, chunks: Some(chunks), .. } = self.delta_tokens(tokens) else {
            unreachable!("there is no backward pass of generation")
        };
        let (gpu, t, heads, own) = (rec.gpu(), tokens.t, net.heads(), self.delta_weights(index));
        let (channels, hv, rows, width) = (heads.width(), heads.value_heads, t * heads.value_heads, heads.value_dim);
        let [d_o, d_z] = [(); 2].map(|()| gpu.alloc_activation(t * heads.value_width()));
        let DeltaNetSaved { mixed, z, a, gates, o, states, stats } = saved;
        gated_rmsnorm_bwd(rec, rows, width, o, z, own.norm.slot(), stats, &d_y, &d_o, &d_z);
        if let Some(d_w) = own.norm.grad() {
            gated_rmsnorm_bwd_w(rec, rows, width, o, z, stats, &d_y, d_w);
        }
        drop(d_y);
        let [qkv, r] =
            kept.and_then(|kept| kept.qkv.clone()).unwrap_or_else(|| self.delta_qkv(rec, net, index, t, conv, mixed));
        let [d_qkv, d_gates] = [t * channels, t * 2 * hv].map(|n| gpu.alloc_activation(n));
        let d_states = gpu.alloc_activation(chunks.d_states_len(&heads));
        let of_rule = DeltaRuleSaved { qkv: &qkv, gates, o, states };
        delta_rule_bwd(rec, &heads, chunks, of_rule, &d_o, &d_states, &d_qkv, &d_gates);
        drop((d_o, d_states));
        l2norm_bwd(rec, &heads, t, &qkv, &r, &d_qkv);
        drop((qkv, r));
        let [d_a, d_b] = [(); 2].map(|()| gpu.alloc_activation(t * hv));
        let params = own.a_log.grad().zip(own.dt_bias.grad()).map(|(d_a_log, d_dt_bias)| [d_a_log, d_dt_bias]);
        let gradients = DeltaGatesGradients { d_a: &d_a, d_b: &d_b, params };
        delta_gates_bwd(rec, t, hv, own.decay(a), gates, &d_gates, gradients);
        drop(d_gates);
        causal_conv_bwd_s(rec, conv, channels, own.conv.slot(), mixed, &d_qkv);
        if let Some(d_w) = own.conv.grad() {
            causal_conv_bwd_w(rec, conv, channels, mixed, &d_qkv, d_w);
        }
        let d_mixed = gpu.alloc_activation(t * channels);
        causal_conv_bwd_x(rec, conv, channels, own.conv.slot(), &d_qkv, &d_mixed);
        Self::delta_outputs(net, [&d_mixed, &d_z, &d_b, &d_a])
    }
}
