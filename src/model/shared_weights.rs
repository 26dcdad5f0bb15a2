//! Decoders that share frozen weights on the device: another adapter on the same base, and the reference of a training run.

use std::collections::BTreeMap;
use std::rc::Rc;

use super::decoder::{Decoder, LayerWeights};
use super::load::{LoadOptions, TrainMode};
use super::weights::{Weight, WeightArena, WeightSource};
use crate::error::Result;
use crate::gpu::{Gpu, Role};

impl Decoder {
    /// Loads another adapter, or none, over this decoder's frozen weights, which both decoders then share. Only the adapter is loaded, and tensors that either
    /// adapter replaces. `source` and the storage of frozen weights must be this decoder's.
    ///
    /// # Errors
    /// Those of [`Decoder::load`].
    pub fn load_beside(&self, gpu: &Gpu, source: &Rc<dyn WeightSource>, options: &LoadOptions) -> Result<Self> {
        assert!(options.trained != TrainMode::Full, "every weight is trained: none is shared");
        let own = self.weights().into_iter().filter(|w| !w.trained() && !self.replaced.contains(&w.spec.name));
        let shared: BTreeMap<String, Weight> = own.map(|w| (w.spec.name.clone(), w.clone())).collect();
        Self::load_sharing(gpu, &self.description, source, options, shared)
    }

    /// Keeps the model with another adapter, or without one, in [`Decoder::start`], as a reference for training. Tensors that either adapter replaces are loaded
    /// for it; all other weights are shared. `source` and the storage of frozen weights must be this decoder's.
    ///
    /// # Errors
    /// Those of [`Decoder::load`].
    pub fn keep_reference(&mut self, gpu: &Gpu, source: &Rc<dyn WeightSource>, options: &LoadOptions) -> Result<()> {
        self.start = Some(Box::new(self.load_beside(gpu, source, options)?));
        Ok(())
    }

    /// Keeps a frozen copy of the adapter as it is now in [`Decoder::start`], with tensors that are trained whole, as a reference for
    /// training. All other weights are shared.
    pub fn keep_start(&mut self, gpu: &Gpu) {
        let (mut layers, mut per_layer) = (self.layers.clone(), self.per_layer.clone());
        let (mut embedding, mut head) = (self.embedding.clone(), self.head.clone());
        let mut tokens = self.tokens.clone();
        let mut rec = gpu.record();
        for part in tokens.iter_mut().flat_map(|tokens| &mut tokens.rows.parts) {
            let copy = gpu.alloc_persistent(Role::Frozen, part.w.len());
            rec.copy(&part.w, &copy);
            (part.w, part.d_w) = (copy, None);
        }
        for part in [&mut embedding].into_iter().chain(&mut head).flat_map(|weight| &mut weight.parts) {
            if part.d_w.is_some() {
                let copy = gpu.alloc_persistent(Role::Frozen, part.w.len());
                rec.copy(&part.w, &copy);
                (part.w, part.d_w) = (copy, None);
            }
        }
        let inputs = per_layer.iter_mut().map(|inputs| &mut inputs.projection);
        let linears = layers.iter_mut().flat_map(LayerWeights::linears_mut).chain(inputs);
        for lora in linears.filter_map(|l| l.lora.as_mut()) {
            for part in lora.a.parts.iter_mut().chain(&mut lora.b.parts) {
                let copy = gpu.alloc_persistent(Role::Frozen, part.w.len());
                rec.copy(&part.w, &copy);
                (part.w, part.d_w) = (copy, None);
            }
        }
        rec.submit();
        self.start = Some(Box::new(Self {
            description: self.description.clone(),
            embedding,
            tokens,
            position_embedding: self.position_embedding.clone(),
            per_layer,
            ones: self.ones.clone(),
            layers,
            final_norm: self.final_norm.clone(),
            head,
            turns: self.turns.clone(),
            saved_dtype: self.saved_dtype,
            arena: WeightArena::default(),
            replaced: self.replaced.clone(),
            start: None,
        }));
    }
}
