//! Passes through a mixture of experts (`Qwen3MoeSparseMoeBlock` and `Qwen3MoeExperts` in transformers 5.24.0,
//! `models/qwen3_moe/modeling_qwen3_moe.py`).
//!
//! A router chooses k experts per token. The T·k choices are sorted by expert on the device; rows of x are gathered in that order, pass all
//! experts' products at once, and are summed per token with the router's weights, in the order of the token's choices. So neither the host
//! nor the other tokens have a part in a token's result.
//!
//! In the backward pass, d = d_y·W_down of each row serves twice: the gradient of the row's weight is a·d, and that of a is w·d. The
//! outputs of the experts are therefore not saved.

use super::decoder::{Decoder, rows_of};
use super::experts::ExpertsWeights;
use super::saved::{ActivationSaved, ExpertRouting, MlpSaved};
use super::weights::Weight;
use crate::gpu::{Recording, Slot};
use crate::kernels::activation::activation_bwd;
use crate::kernels::column_sum::column_sum;
use crate::kernels::expert_rows::{RowSum, expert_rows_bwd, expert_rows_gather, expert_rows_sum, expert_rows_weigh};
use crate::kernels::matmul::{
    Epilogue, ExpertTiling, LinearPass, MatmulDesc, MatmulOperands, OperandMatrix, matmul_highest,
};
use crate::kernels::router::{RouterShape, router_bwd, router_fwd, router_sort};
use crate::kernels::storage::WeightFormat;

/// Computes one of the router's products, in f32 at any precision of the device: logits, d_x, or the gradient of W from d_logits and x.
fn router_product(
    rec: &mut Recording,
    orientation: LinearPass,
    (experts, t): (&ExpertsWeights, usize),
    [a, c]: [&Slot; 2],
    accumulate: bool,
) {
    let w = &experts.router;
    let (d, experts, bias) = (w.cols, w.rows, experts.router_bias.as_ref());
    for part in &w.parts {
        let of_part = |slot| OperandMatrix { start: part.first, ..OperandMatrix::new(slot, experts) };
        let ((m, n, k), storage, operands) = match orientation {
            LinearPass::Forward => {
                let operands = [OperandMatrix::new(a, d), OperandMatrix::new(&part.w, d), of_part(c)];
                ((t, part.rows, d), w.storage, operands)
            }
            LinearPass::BackwardX => {
                let operands = [of_part(a), OperandMatrix::new(&part.w, d), OperandMatrix::new(c, d)];
                ((t, d, part.rows), w.storage, operands)
            }
            LinearPass::BackwardW => {
                let Some(d_w) = &part.d_w else { continue };
                let operands = [of_part(a), OperandMatrix::new(c, d), OperandMatrix::new(d_w, d)];
                ((part.rows, d, t), WeightFormat::F32, operands)
            }
        };
        let p = MatmulDesc { orientation, storage, m, n, k, alpha: 1.0, accumulate };
        let [a, b, c] = operands;
        let bias = bias.filter(|_| orientation == LinearPass::Forward).map(|bias| (bias.slot(), part.first));
        let epilogue = Epilogue { bias, residual: None };
        matmul_highest(rec, &p, MatmulOperands { epilogue, ..MatmulOperands::new(a, b, c) });
    }
}

impl Decoder {
    /// Computes the experts of a range of tokens up to u, the output of their first products, from x2 (T, D).
    pub(super) fn experts_up(
        &self,
        rec: &mut Recording,
        index: usize,
        w: &ExpertsWeights,
        tokens: std::ops::Range<usize>,
        x2: &Slot,
    ) -> MlpSaved {
        let (d, gpu, t) = (self.description.d_model, rec.gpu(), tokens.len());
        let layer = &self.description.layers[index];
        let (up_width, Some(config)) = (self.up_width(index), layer.experts()) else {
            unreachable!("a layer with experts' weights has their configuration")
        };
        let shape = RouterShape { t, experts: config.count, top_k: config.top_k, over_all: config.over_all };
        let x2 = rows_of(x2, &tokens, d);
        let logits = gpu.alloc_activation(t * shape.experts);
        router_product(rec, LinearPass::Forward, (w, t), [&x2, &logits], false);
        let choice = router_fwd(rec, &shape, &logits);
        let widths = [d, layer.d_ff, up_width];
        let tiling = ExpertTiling::new(gpu.caps(), rec.variants(), shape.rows(), shape.experts, &widths);
        let sorted = router_sort(rec, &shape, tiling.tile_rows(), &choice.chosen);
        let routing = ExpertRouting { shape, tiling, logits, choice, sorted };
        let x = gpu.alloc_activation(shape.rows() * d);
        expert_rows_gather(rec, [t, shape.top_k, d], &routing.sorted.source, &x2, &x);
        let u = gpu.alloc_activation(shape.rows() * up_width);
        for stack in &w.up {
            stack.forward(rec, &routing, &x, (&u, up_width));
        }
        MlpSaved { tokens, u: ActivationSaved::F32(u), xa_up: Vec::new(), xa_down: None, routing: Some(routing) }
    }

    /// Computes y (t, D) from the activations a (t·k, F) of a range of tokens: the last products, and their weighted sums.
    pub(super) fn experts_down(
        &self,
        rec: &mut Recording,
        w: &ExpertsWeights,
        routing: &ExpertRouting,
        a: &Slot,
        residual: Option<&Slot>,
        y: &Slot,
    ) {
        let (d, shape) = (self.description.d_model, &routing.shape);
        let rows = rec.gpu().alloc_activation(shape.rows() * d);
        w.down.forward(rec, routing, a, (&rows, d));
        let sum = RowSum { weights: Some(&routing.choice.weights), residual, accumulate: false };
        expert_rows_sum(rec, [shape.t, shape.top_k, d], &routing.sorted.row_of, &rows, sum, y);
    }

    /// Computes d_x2 (T, D) for a range of tokens from their rows of d_branch (T, D), and the gradients of the experts and of the router,
    /// where they are trained. Adds to d_x2 where there is no norm before the experts. x2 may be absent where nothing of them is trained.
    #[expect(clippy::too_many_arguments, reason = "values of the forward pass, and slots for gradients")]
    pub(super) fn experts_backward(
        &self,
        rec: &mut Recording,
        index: usize,
        (w, routing): (&ExpertsWeights, &ExpertRouting),
        s: &MlpSaved,
        u: &Slot,
        (a, x2): (&Slot, Option<&Slot>),
        d_branch: &Slot,
        d_x2: &Slot,
    ) {
        let (d, gpu, up_width) = (self.description.d_model, rec.gpu(), self.up_width(index));
        let shape = &routing.shape;
        let (mlp, sorted) = (self.mlp(index, shape.rows()), &routing.sorted);
        let of_tokens = |slot: &Slot| rows_of(slot, &s.tokens, d);
        let (x2, [d_branch, d_x2]) = (x2.map(of_tokens), [d_branch, d_x2].map(of_tokens));
        let of_rows = [shape.t, shape.top_k, d];

        let d_rows = gpu.alloc_activation(shape.rows() * d);
        expert_rows_gather(rec, of_rows, &sorted.source, &d_branch, &d_rows);
        let d_a = gpu.alloc_activation(shape.rows() * mlp.width);
        w.down.backward_x(rec, routing, (&d_rows, d), &d_a, false);
        let d_weights = gpu.alloc_activation(shape.rows());
        expert_rows_bwd(rec, mlp.width, sorted, &routing.choice, (a, &d_a), &d_weights);
        if w.down.trained() {
            let a_weighted = gpu.alloc_activation(shape.rows() * mlp.width);
            expert_rows_weigh(rec, mlp.width, sorted, &routing.choice, a, &a_weighted);
            w.down.backward_w(rec, routing, (&d_rows, d), &a_weighted);
        }
        w.down.bias_backward_weights(rec, routing, &d_rows, &d_weights);
        w.down.backward_bias(rec, routing, (&d_rows, d), true);
        let d_u = gpu.alloc_activation(shape.rows() * up_width);
        activation_bwd(rec, &mlp, u, &d_a, &d_u);
        drop(d_a);
        let trains_up = w.up.iter().any(|stack| stack.trained());
        if let Some(x2) = x2.as_ref().filter(|_| trains_up) {
            let x = gpu.alloc_activation(shape.rows() * d);
            expert_rows_gather(rec, of_rows, &sorted.source, x2, &x);
            for stack in &w.up {
                stack.backward_w(rec, routing, (&d_u, up_width), &x);
            }
        }
        for (i, stack) in w.up.iter().enumerate() {
            stack.backward_x(rec, routing, (&d_u, up_width), &d_rows, i > 0);
            stack.backward_bias(rec, routing, (&d_u, up_width), false);
        }
        drop(d_u);
        let sum = RowSum { accumulate: self.layers[index].mlp_norm.is_none(), ..RowSum::default() };
        expert_rows_sum(rec, of_rows, &sorted.row_of, &d_rows, sum, &d_x2);

        let d_logits = gpu.alloc_activation(shape.t * shape.experts);
        router_bwd(rec, shape, &routing.logits, &routing.choice, &d_weights, &d_logits);
        router_product(rec, LinearPass::BackwardX, (w, shape.t), [&d_logits, &d_x2], true);
        if let Some(d_bias) = w.router_bias.as_ref().and_then(Weight::grad) {
            column_sum(rec, &d_logits, shape.t, shape.experts, 0, shape.experts, d_bias);
        }
        if let Some(x2) = x2.filter(|_| w.router.trained()) {
            router_product(rec, LinearPass::BackwardW, (w, shape.t), [&d_logits, &x2], true);
        }
    }
}
