//! Passes through the part of a layer behind its token mixer, for ranges of tokens.

use std::ops::Range;

use super::decoder::{Decoder, rows_of};
use super::linear::{LinearInput, LoraPass, WeightColumns};
use super::mlp_weights::MlpWeights;
use super::saved::{ActivationSaved, MlpSaved};
use crate::gpu::{Gpu, Recording, Slot};
use crate::kernels::activation::{MlpShape, activation_bwd, activation_fwd};
use crate::kernels::matmul::row_absmax;

impl Decoder {
    pub(super) fn mlp(&self, index: usize, t: usize) -> MlpShape {
        let d = &self.description;
        MlpShape { tokens: t, width: d.layers[index].d_ff, gated: d.gated, activation: d.activation }
    }

    /// Width of the MLP's input slot.
    pub(super) fn up_width(&self, index: usize) -> usize {
        self.description.layers[index].d_ff * if self.description.gated { 2 } else { 1 }
    }

    /// Returns ranges of tokens whose MLP is computed at once. The MLP's activations are the widest of all, and each must fit a binding.
    pub(super) fn mlp_chunks(&self, gpu: &Gpu, index: usize, t: usize) -> impl Iterator<Item = Range<usize>> + use<> {
        let width = match self.description.layers[index].experts() {
            None => self.up_width(index),
            Some(experts) => experts.top_k * self.up_width(index).max(self.description.d_model),
        };
        let most = gpu.caps().max_binding_bytes as usize / 4 / width;
        // Slices of a slot must begin at multiples of 64 elements.
        let rows = if t <= most { t } else { (most / 64 * 64).max(64) };
        (0..t).step_by(rows.max(1)).map(move |first| first..(first + rows).min(t))
    }

    /// Computes the MLP of a range of tokens up to u, the output of its first products.
    pub(super) fn mlp_up(
        &self,
        rec: &mut Recording,
        index: usize,
        tokens: Range<usize>,
        x2: &Slot,
        lora: LoraPass,
    ) -> MlpSaved {
        let up = match &self.layers[index].mlp {
            MlpWeights::Dense { up, .. } => up,
            MlpWeights::Experts(experts) => return self.experts_up(rec, index, experts, tokens, x2),
        };
        let lora = lora.from_token(tokens.start);
        let (d, gpu, t, up_width) = (&self.description, rec.gpu(), tokens.len(), self.up_width(index));
        let x2 = rows_of(x2, &tokens, d.d_model);
        let u = gpu.alloc_activation(t * up_width);
        let mut xa_up = Vec::new();
        let absmax = row_absmax(rec, &x2, t, d.d_model);
        let x2 = LinearInput { x: &x2, absmax: absmax.as_ref() };
        for linear in up {
            let y = WeightColumns { slot: &u, column: linear.module.column, stride: up_width };
            xa_up.push(linear.forward(rec, t, x2, None, y, lora));
        }
        MlpSaved { tokens, u: ActivationSaved::F32(u), xa_up, xa_down: None, routing: None }
    }

    /// Computes the MLP's activation, (t, F) or (t·k, F), for a range of tokens from their u.
    pub(super) fn activation(&self, rec: &mut Recording, index: usize, mlp: &MlpSaved, u: &Slot) -> Slot {
        let shape = self.mlp(index, mlp.rows());
        let a = rec.gpu().alloc_activation(shape.tokens * shape.width);
        activation_fwd(rec, &shape, u, &a);
        a
    }

    /// Computes d_x2 (T, D) for a range of tokens from their rows of d_branch (T, D). Adds to d_x2 where the MLP has no norm before it. The
    /// inputs of the last product and of the first ones may be absent where nothing of these is trained.
    #[expect(clippy::too_many_arguments, reason = "values of the forward pass, and slots for gradients")]
    pub(super) fn mlp_backward(
        &self,
        rec: &mut Recording,
        index: usize,
        s: &MlpSaved,
        u: &Slot,
        [a, x2]: [Option<&Slot>; 2],
        d_branch: &Slot,
        d_x2: &Slot,
        lora: LoraPass,
    ) {
        let (up, down) = match (&self.layers[index].mlp, &s.routing, a) {
            (MlpWeights::Dense { up, down }, ..) => (up, down),
            (MlpWeights::Experts(experts), Some(routing), Some(a)) => {
                return self.experts_backward(rec, index, (experts, routing), s, u, (a, x2), d_branch, d_x2);
            }
            (MlpWeights::Experts(_), ..) => unreachable!("experts save their routing, and read their activation"),
        };
        let lora = lora.from_token(s.tokens.start);
        let (d, gpu, t, up_width) = (&self.description, rec.gpu(), s.tokens.len(), self.up_width(index));
        let (w, shape) = (&self.layers[index], self.mlp(index, t));
        let rows = |slot| rows_of(slot, &s.tokens, d.d_model);
        let (x2, [d_branch, d_x2]) = (x2.map(rows), [d_branch, d_x2].map(rows));
        let d_a = gpu.alloc_activation(t * shape.width);
        let d_out = WeightColumns::all(&d_branch, d.d_model);
        down.backward(rec, t, a, s.xa_down.as_ref(), d_out, Some(&d_a), false, lora);
        let d_u = gpu.alloc_activation(t * up_width);
        activation_bwd(rec, &shape, u, &d_a, &d_u);
        drop(d_a);
        for (i, linear) in up.iter().enumerate() {
            let d_y = WeightColumns { slot: &d_u, column: linear.module.column, stride: up_width };
            let accumulate = i > 0 || w.mlp_norm.is_none();
            linear.backward(rec, t, x2.as_ref(), s.xa_up[i].as_ref(), d_y, Some(&d_x2), accumulate, lora);
        }
    }
}
