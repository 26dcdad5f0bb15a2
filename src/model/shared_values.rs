//! Values of a pass that several layers read, and their gradients: keys and values that layers lend (`num_kv_shared_layers` of Gemma 4:
//! `Gemma4TextAttention` in transformers' `modeling_gemma4.py`), and per-layer inputs.

use std::collections::BTreeMap;

use super::decoder::Decoder;
use super::per_layer_inputs::PerLayerChunk;
use crate::gpu::{Recording, Slot};
use crate::kernels::columns::{SlotColumns, columns_add, columns_copy};

/// Values that several layers read.
#[derive(Debug, Default)]
pub(super) struct SharedValues {
    /// Keys and values of each lender, normed and rotated: (T, 2K·E). Generation has them in its cache instead.
    pub lent: BTreeMap<usize, Slot>,
    /// Per-layer inputs of ranges of tokens.
    pub per_layer: Vec<PerLayerChunk>,
    /// (T, D), the token embedding from which the per-layer inputs were computed, where there will be a backward pass.
    pub x0: Option<Slot>,
}

/// Gradients of [`SharedValues`], summed from the last layer to the first one.
#[derive(Debug)]
pub(super) struct SharedGradients {
    /// Gradients of the keys and values of each lender: (T, 2K·E).
    pub d_lent: BTreeMap<usize, Slot>,
    /// Gradients of the per-layer inputs, by ranges of tokens: (t, L·P); empty where nothing needs them.
    pub d_per_layer: Vec<Slot>,
    /// Lowest layer that has a backward pass.
    pub lowest: usize,
}

impl Decoder {
    /// Keeps a lender's keys and values from its qkv slot.
    pub(super) fn lend(&self, rec: &mut Recording, index: usize, t: usize, qkv: &Slot, shared: &mut SharedValues) {
        let layer = &self.description.layers[index];
        let n_columns = 2 * layer.n_kv_heads * layer.head_dim;
        let lent = rec.gpu().alloc_activation(t * n_columns);
        let to = SlotColumns { start: 0, stride: n_columns };
        columns_copy(rec, [t, n_columns], (qkv, self.kv_columns(layer)), (&lent, to));
        shared.lent.insert(index, lent);
    }

    /// Hands a borrower's gradients of keys and values in d_qkv on to its lender, or adds a lender's to its own in d_qkv.
    pub(super) fn lend_backward(
        &self,
        rec: &mut Recording,
        index: usize,
        t: usize,
        d_qkv: &Slot,
        shared: &mut SharedGradients,
    ) {
        let layer = &self.description.layers[index];
        let n_columns = 2 * layer.n_kv_heads * layer.head_dim;
        let (shape, own, packed) =
            ([t, n_columns], self.kv_columns(layer), SlotColumns { start: 0, stride: n_columns });
        match layer.lender() {
            Some(lender) if lender >= shared.lowest => match shared.d_lent.get(&lender) {
                Some(d_lent) => columns_add(rec, shape, (d_qkv, own), (d_lent, packed)),
                None => {
                    let d_lent = rec.gpu().alloc_activation(t * n_columns);
                    columns_copy(rec, shape, (d_qkv, own), (&d_lent, packed));
                    shared.d_lent.insert(lender, d_lent);
                }
            },
            Some(_) => {}
            None => {
                if let Some(d_lent) = shared.d_lent.remove(&index) {
                    columns_add(rec, shape, (&d_lent, packed), (d_qkv, own));
                }
            }
        }
    }
}
