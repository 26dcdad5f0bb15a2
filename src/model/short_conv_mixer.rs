//! Short convolution as a layer's token mixer (`Lfm2ShortConv` in transformers' `modular_lfm2.py`): from the layer's normed input to the input
//! of its output projection, and back.

use super::decoder::{Decoder, TokenSlots};
use super::description::ShortConvConfig;
use super::kv_cache::{KvCache, LayerCache};
use super::linear::{LinearInput, LoraPass};
use super::mixer::{LinearOutput, MixerOutput};
use super::recurrent_tokens::RecurrentTokens;
use super::saved::{MixerElementwise, MixerSaved, ShortConvSaved};
use super::short_conv::ShortConvWeights;
use super::weights::Weight;
use crate::gpu::{Recording, Slot};
use crate::kernels::causal_conv::{
    ConvActivation, ConvTable, causal_conv_bwd_w, causal_conv_bwd_x, causal_conv_fwd, causal_conv_step,
    causal_conv_window,
};
use crate::kernels::conv_gates::{
    ConvGatesGradients, conv_gates_in_bwd, conv_gates_in_fwd, conv_gates_out_bwd, conv_gates_out_fwd,
};
use crate::kernels::matmul::row_absmax;

impl Decoder {
    fn conv_weights(&self, index: usize) -> &ShortConvWeights {
        self.layers[index].short_conv.as_ref().expect("weights are loaded for every short convolution")
    }

    /// Computes a short convolution's output from the layer's normed input x1 (T, D). With a cache, stores or updates its window.
    #[expect(clippy::too_many_arguments, reason = "a layer's inputs, and what is known of it")]
    pub(super) fn short_conv_mix(
        &self,
        rec: &mut Recording,
        index: usize,
        net: &ShortConvConfig,
        tokens: &TokenSlots,
        cache: Option<&KvCache>,
        lora: LoraPass,
        x1: &Slot,
    ) -> MixerOutput {
        let (gpu, t, d) = (rec.gpu(), tokens.t, self.description.d_model);
        let gated = gpu.alloc_activation(t * 3 * d);
        let output = LinearOutput::all(&gated, 3 * d);
        let absmax = row_absmax(rec, x1, t, d);
        let x = LinearInput { x: x1, absmax: absmax.as_ref() };
        let linears = &self.layers[index].qkv;
        let xa = linears.iter().map(|linear| linear.forward(rec, t, x, None, output.columns(), lora)).collect();
        let s = match (self.conv_tokens(tokens), cache.map(|cache| &cache.layers[index])) {
            (RecurrentTokens::Next(rows), Some(LayerCache::Conv(window))) => {
                let (m, s) = (self.conv_input(rec, t, &gated), gpu.alloc_activation(t * d));
                let w = self.conv_weights(index).conv.slot();
                causal_conv_step(rec, t, d, net.taps, ConvActivation::None, rows, w, &m, window, &s);
                s
            }
            (RecurrentTokens::Segments { conv, ends, .. }, cache) => {
                let [m, s] = self.gated_conv(rec, index, t, conv, &gated);
                if let (Some((n, ends)), Some(LayerCache::Conv(window))) = (ends, cache) {
                    causal_conv_window(rec, conv, d, *n, ends, &m, window);
                }
                s
            }
            (RecurrentTokens::Next(_), _) => unreachable!("single tokens continue from a cache"),
        };
        let y = self.gated_output(rec, index, t, &gated, &s);
        MixerOutput {
            y: y.clone(),
            saved: MixerSaved::ShortConv(ShortConvSaved { gated }),
            elementwise: MixerElementwise { conv_sums: Some(s), y: Some(y), ..MixerElementwise::default() },
            xa,
        }
    }

    fn conv_tokens<'t>(&self, tokens: &'t TokenSlots) -> &'t RecurrentTokens {
        tokens.recurrent.as_ref().expect("tokens of a model with short convolutions have their tables")
    }

    /// Computes the convolution's input m (T, D) from the projection's output.
    fn conv_input(&self, rec: &mut Recording, t: usize, gated: &Slot) -> Slot {
        let d = self.description.d_model;
        let m = rec.gpu().alloc_activation(t * d);
        conv_gates_in_fwd(rec, [t, d], gated, &m);
        m
    }

    /// Computes the convolution's input m (T, D) and its sums s (T, D) from the projection's output.
    fn gated_conv(&self, rec: &mut Recording, index: usize, t: usize, conv: &ConvTable, gated: &Slot) -> [Slot; 2] {
        let d = self.description.d_model;
        let (m, s) = (self.conv_input(rec, t, gated), rec.gpu().alloc_activation(t * d));
        causal_conv_fwd(rec, conv, d, ConvActivation::None, self.conv_weights(index).conv.slot(), &m, &s);
        [m, s]
    }

    /// Computes the input of the output projection (T, D) from the convolution's sums s.
    fn gated_output(&self, rec: &mut Recording, index: usize, t: usize, gated: &Slot, s: &Slot) -> Slot {
        let d = self.description.d_model;
        let y = rec.gpu().alloc_activation(t * d);
        let bias = self.conv_weights(index).bias.as_ref().map(Weight::slot);
        conv_gates_out_fwd(rec, [t, d], gated, s, bias, &y);
        y
    }

    /// Recomputes the input of the output projection from saved results.
    pub(super) fn short_conv_output(
        &self,
        rec: &mut Recording,
        index: usize,
        tokens: &TokenSlots,
        saved: &ShortConvSaved,
    ) -> Slot {
        let [_, s] = self.gated_conv(rec, index, tokens.t, self.conv_table(tokens), &saved.gated);
        self.gated_output(rec, index, tokens.t, &saved.gated, &s)
    }

    /// Returns the tokens that the convolution reads, in a batch with a backward pass.
    fn conv_table<'t>(&self, tokens: &'t TokenSlots) -> &'t ConvTable {
        match self.conv_tokens(tokens) {
            RecurrentTokens::Segments { conv, .. } => conv,
            RecurrentTokens::Next(_) => unreachable!("there is no backward pass of generation"),
        }
    }

    /// Computes the gradients of the projection's output from d_y, that of the output projection's input; adds those of the convolution's own
    /// weights.
    pub(super) fn short_conv_mix_backward(
        &self,
        rec: &mut Recording,
        index: usize,
        tokens: &TokenSlots,
        saved: &ShortConvSaved,
        kept: Option<&MixerElementwise>,
        d_y: Slot,
    ) -> Vec<LinearOutput> {
        let (gpu, t, d, own) = (rec.gpu(), tokens.t, self.description.d_model, self.conv_weights(index));
        let (conv, gated) = (self.conv_table(tokens), &saved.gated);
        let (m, s) = match kept.and_then(|kept| kept.conv_sums.clone()) {
            Some(s) => (own.conv.grad().map(|_| self.conv_input(rec, t, gated)), s),
            None => {
                let [m, s] = self.gated_conv(rec, index, t, conv, gated);
                (Some(m), s)
            }
        };
        let [d_gated, d_s] = [3 * d, d].map(|width| gpu.alloc_activation(t * width));
        let bias = own.bias.as_ref();
        let gradients = ConvGatesGradients { d_s: &d_s, d_gated: &d_gated, d_bias: bias.and_then(Weight::grad) };
        conv_gates_out_bwd(rec, [t, d], gated, &s, bias.map(Weight::slot), &d_y, gradients);
        drop((d_y, s));
        if let (Some(m), Some(d_w)) = (&m, own.conv.grad()) {
            causal_conv_bwd_w(rec, conv, d, m, &d_s, d_w);
        }
        drop(m);
        let d_m = gpu.alloc_activation(t * d);
        causal_conv_bwd_x(rec, conv, d, own.conv.slot(), &d_s, &d_m);
        conv_gates_in_bwd(rec, [t, d], gated, &d_m, &d_gated);
        vec![LinearOutput::all(&d_gated, 3 * d)]
    }
}
