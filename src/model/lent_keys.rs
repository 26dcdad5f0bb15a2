//! Keys and values that a layer lends to later ones (`num_kv_shared_layers` of Gemma 4: `shared_kv_states` in `Gemma4TextAttention.forward`,
//! transformers 5.24.0, `models/gemma4/modeling_gemma4.py`), and their gradients.

use super::decoder::Decoder;
use super::shared_values::{SharedGradients, SharedValues};
use crate::gpu::{Recording, Slot};
use crate::kernels::columns::{SlotColumns, columns_add, columns_copy};

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
