//! Loading of a decoder's weights from a checkpoint: trained weights, frozen weights, and low-rank additions.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use super::decoder::{Decoder, LayerWeights, NormWeights, PerLayerBranchWeights};
use super::delta_net::DeltaNetWeights;
use super::description::{
    ExpertProjection, ExpertsConfig, LayerConfig, LinearSpec, MlpConfig, ModelConfig, NormKind, TensorSpec,
};
use super::experts::{ExpertStack, ExpertsWeights};
use super::linear::{Linear, LoraWeights};
use super::mlp_weights::MlpWeights;
use super::per_layer_inputs::PerLayerWeights;
use super::saved::SavedDtype;
use super::short_conv::ShortConvWeights;
use super::trained_tokens::{TrainedTokens, TrainedTokensSpec};
use super::weights::{BaseDtype, FrozenTensor, TrainOptions, TrainedSpec, Weight, WeightArena, WeightSource};
use crate::error::{Error, Result};
use crate::gpu::{Gpu, Role};
use crate::kernels::matmul::{scales_operands, weight_absmax};
use crate::kernels::rope::RopeCache;
use crate::kernels::storage::PackedWeight;

/// Low-rank addition to build: its modules and their initial values.
#[derive(Debug, Clone, Default)]
pub struct LoraSpec {
    /// R, the rank.
    pub rank: usize,
    /// s = α/R, or α/√R.
    pub scale: f32,
    /// Matrices A (R, n_in) and B (n_out, R) by module name.
    pub modules: BTreeMap<String, (Vec<f32>, Vec<f32>)>,
    /// Probability with which training steps drop an element of a module's input.
    pub dropout: f64,
    /// Tensors of the model that the adapter brings whole (PEFT's `modules_to_save`), by name: their values, or `None` for the base's own.
    pub whole: BTreeMap<String, Option<Rc<Vec<f32>>>>,
    /// Tokens whose embeddings the adapter brings (PEFT's `trainable_token_indices`).
    pub tokens: Option<TrainedTokensSpec>,
    /// R and s of modules that differ from the adapter's (PEFT's `rank_pattern`, `alpha_pattern`).
    pub exceptions: BTreeMap<String, (usize, f32)>,
}

impl LoraSpec {
    /// Adds a module with its R, its s, and its matrices A and B.
    pub fn insert(&mut self, module: &str, rank: usize, scale: f32, matrices: (Vec<f32>, Vec<f32>)) {
        if rank != self.rank || scale.to_bits() != self.scale.to_bits() {
            self.exceptions.insert(module.into(), (rank, scale));
        }
        self.modules.insert(module.into(), matrices);
    }

    /// Returns the values of a tensor by the name that a decoder gives it: a matrix's name in PEFT's files, or a whole tensor's own.
    pub fn values(&self, name: &str) -> Option<Vec<f32>> {
        if let Some(values) = self.whole.get(name) {
            return values.as_ref().map(|values| values.to_vec());
        }
        if let Some(tokens) = self.tokens.as_ref().filter(|tokens| tokens.name == name) {
            return tokens.rows.as_ref().map(|rows| rows.to_vec());
        }
        let is = |module: &&String| lora_names(module).iter().position(|n| n == name);
        let (side, (a, b)) = self.modules.iter().find_map(|(module, pair)| Some((is(&module)?, pair)))?;
        Some(if side == 0 { a.clone() } else { b.clone() })
    }

    /// Returns whether the adapter takes the place of weights of the model, so that a decoder with it has no base beside it.
    pub fn replaces_weights(&self) -> bool {
        !self.whole.is_empty() || self.tokens.is_some()
    }

    /// Returns R of a module.
    pub fn rank_of(&self, module: &str) -> usize {
        self.exceptions.get(module).map_or(self.rank, |(rank, _)| *rank)
    }

    /// Returns s of a module.
    pub fn scale_of(&self, module: &str) -> f32 {
        self.exceptions.get(module).map_or(self.scale, |(_, scale)| *scale)
    }
}

/// Parameters that are trained.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TrainMode {
    /// No parameters: for scoring and generation.
    Nothing,
    /// All parameters.
    Full,
    /// The low-rank additions only.
    Lora,
}

/// Settings for building a decoder.
#[derive(Debug, Clone)]
pub struct LoadOptions {
    /// Parameters that are trained.
    pub trained: TrainMode,
    /// Adapter, trained or not.
    pub lora: Option<LoraSpec>,
    /// Storage and optimiser state of the trained parameters.
    pub training: TrainOptions,
    /// Number of positions of the rotary tables, at least the longest sequence.
    pub n_positions: usize,
    /// Storage format of the frozen linear weights.
    pub base: BaseDtype,
}

impl LoadOptions {
    /// Returns options for a decoder that only scores and generates: nothing is trained.
    pub fn frozen(base: BaseDtype, lora: Option<LoraSpec>, n_positions: usize) -> Self {
        Self { trained: TrainMode::Nothing, lora, training: TrainOptions::NONE, n_positions, base }
    }
}

/// Returns the tensor names of A and B of a module, as PEFT writes them.
pub fn lora_names(module: &str) -> [String; 2] {
    ["A", "B"].map(|x| format!("base_model.model.{module}.lora_{x}.weight"))
}

/// Returns the linear modules that an adapter may add to: all except the head. In a model with experts, these are the attention's: PEFT reads
/// the names of an MLP's modules as those of the experts, too.
pub fn linear_modules(d: &ModelConfig) -> impl Iterator<Item = &LinearSpec> {
    let has_experts = d.has_experts();
    let inputs = d.per_layer_inputs.iter().map(|inputs| &inputs.projection);
    // The token mixer's modules come first.
    let n = move |layer: &LayerConfig| if has_experts { layer.qkv.len() + 1 } else { usize::MAX };
    d.layers.iter().flat_map(move |layer| layer.linears().take(n(layer))).chain(inputs)
}

/// Source of weights some of which an adapter brings.
struct OverlaidSource {
    base: Rc<dyn WeightSource>,
    whole: BTreeMap<String, Option<Rc<Vec<f32>>>>,
    embedding: String,
    /// Rows in place of the embedding's; the embedding is f32 then, so that no row is rounded.
    tokens: Option<TrainedTokensSpec>,
    d_model: usize,
}

impl OverlaidSource {
    fn own(&self, spec: &TensorSpec) -> Option<&Rc<Vec<f32>>> {
        self.whole.get(&spec.name)?.as_ref()
    }
}

impl WeightSource for OverlaidSource {
    fn is_nf4(&self, spec: &TensorSpec) -> bool {
        let has_rows = self.tokens.is_some() && spec.name == self.embedding;
        self.own(spec).is_none() && !has_rows && self.base.is_nf4(spec)
    }
    fn packed(&self, spec: &TensorSpec) -> Result<Option<PackedWeight>> {
        if self.is_nf4(spec) { self.base.packed(spec) } else { Ok(None) }
    }
    fn is_bf16(&self, spec: &TensorSpec) -> bool {
        let has_rows = self.tokens.is_some() && spec.name == self.embedding;
        self.own(spec).is_none() && !has_rows && self.base.is_bf16(spec)
    }
    fn values(&self, spec: &TensorSpec) -> Result<Vec<f32>> {
        let mut values = self.own(spec).map_or_else(|| self.base.values(spec), |values| Ok(values.to_vec()))?;
        if let Some(tokens) = self.tokens.as_ref().filter(|_| spec.name == self.embedding) {
            tokens.apply(&mut values, self.d_model);
        }
        Ok(values)
    }
}

impl Decoder {
    /// Loads the weights onto the device. On a device that only plans memory, allocates without reading.
    ///
    /// # Errors
    /// Errors of the source, for a tensor that is missing or unreadable.
    pub fn load(gpu: &Gpu, d: &ModelConfig, source: &Rc<dyn WeightSource>, options: &LoadOptions) -> Result<Self> {
        Self::load_sharing(gpu, d, source, options, BTreeMap::new())
    }

    /// Loads the weights that are not in `shared`, frozen weights that are on the device already, by name.
    pub(super) fn load_sharing(
        gpu: &Gpu,
        d: &ModelConfig,
        source: &Rc<dyn WeightSource>,
        options: &LoadOptions,
        mut shared: BTreeMap<String, Weight>,
    ) -> Result<Self> {
        let mut projections = d.layers.iter().filter_map(LayerConfig::experts).flat_map(ExpertsConfig::projections);
        if options.base == BaseDtype::Int8 && projections.any(|p| p.interleaved) {
            let reason = "int8 is not supported where the rows of gate and up alternate: take nf4 or bf16";
            return Err(Error::flag("base-dtype", reason));
        }
        if options.training.saved_dtype == SavedDtype::Bf16 && !d.saves_in_bf16() {
            let reason = "bf16 is not supported with a clamped SwiGLU: its gradients would move by more than 1 %";
            return Err(Error::flag("saved-dtype", reason));
        }
        let mut trained = Vec::new();
        if options.trained == TrainMode::Full {
            for spec in d.tensors() {
                let (source, of) = (source.clone(), spec.clone());
                let of_layers = d.per_layer_inputs.as_ref().map(|inputs| &inputs.embedding);
                let embeds = [Some(&d.embedding), d.position_embedding.as_ref(), of_layers].contains(&Some(&spec.name));
                trained.push(TrainedSpec { spec, embeds, values: Box::new(move || source.values(&of)) });
            }
        }
        let whole = options.lora.as_ref().map(|lora| lora.whole.clone()).unwrap_or_default();
        let tokens = options.lora.as_ref().and_then(|lora| lora.tokens.clone());
        let trains_tokens = options.trained == TrainMode::Lora && tokens.is_some();
        let has_rows = tokens.is_some() && !trains_tokens;
        let replaced: BTreeSet<String> = whole.keys().chain(has_rows.then_some(&d.embedding)).cloned().collect();
        let source: Rc<dyn WeightSource> = match whole.is_empty() && tokens.is_none() {
            true => source.clone(),
            false => Rc::new(OverlaidSource {
                base: source.clone(),
                whole: whole.clone(),
                embedding: d.embedding.clone(),
                // Trained rows come and go, as passes have them.
                tokens: tokens.clone().map(|t| TrainedTokensSpec { rows: t.rows.filter(|_| !trains_tokens), ..t }),
                d_model: d.d_model,
            }),
        };
        let source = &source;
        if options.trained == TrainMode::Lora {
            for spec in d.tensors().into_iter().filter(|spec| whole.contains_key(&spec.name)) {
                let (source, of, embeds) = (source.clone(), spec.clone(), spec.name == d.embedding);
                trained.push(TrainedSpec { spec, embeds, values: Box::new(move || source.values(&of)) });
            }
        }
        let of_tokens = tokens.filter(|_| trains_tokens);
        let base_rows = match &of_tokens {
            Some(tokens) if !gpu.is_plan() => {
                let spec = TensorSpec { name: d.embedding.clone(), shape: vec![d.vocab, d.d_model], transposed: false };
                Some(tokens.rows_of(&source.values(&spec)?, d.d_model))
            }
            _ => None,
        };
        if let Some(tokens) = &of_tokens {
            let spec =
                TensorSpec { name: tokens.name.clone(), shape: vec![tokens.ids.len(), d.d_model], transposed: false };
            let rows = tokens.rows.as_ref().map(|rows| rows.to_vec()).or(base_rows.clone()).unwrap_or_default();
            trained.push(TrainedSpec { spec, embeds: true, values: Box::new(move || Ok(rows)) });
        }
        if let Some(lora) = &options.lora {
            for module in linear_modules(d) {
                let Some((a, b)) = lora.modules.get(&module.name) else { continue };
                let [name_a, name_b] = lora_names(&module.name);
                let rank = lora.rank_of(&module.name);
                let shapes = [vec![rank, module.n_in], vec![module.n_out, rank]];
                for ((name, shape), values) in [name_a, name_b].into_iter().zip(shapes).zip([a.clone(), b.clone()]) {
                    let spec = TensorSpec { name, shape, transposed: false };
                    trained.push(TrainedSpec { spec, embeds: false, values: Box::new(move || Ok(values)) });
                }
            }
        }
        // An adapter that is not trained is in the arena too: it is small, and its gradients are never used.
        let (arena, mut weights) = WeightArena::new(gpu, trained, &options.training)?;
        let tokens = of_tokens.map(|tokens| {
            let rows = weights.remove(&tokens.name).expect("the rows are among the trained tensors");
            TrainedTokens::new(gpu, tokens, rows, base_rows.as_deref())
        });
        let experts = d.layers.iter().filter_map(LayerConfig::experts).flat_map(ExpertsConfig::matrices);
        let inputs = d.per_layer_inputs.iter().map(|inputs| &inputs.projection);
        let linear = d.layers.iter().flat_map(LayerConfig::linears).chain(inputs);
        let linear = linear.map(|m| format!("{}.weight", m.name));
        let linear: BTreeSet<String> = linear.chain(experts.map(|spec| spec.name.clone())).collect();
        let tensors = d.tensors();
        shared.retain(|name, _| !replaced.contains(name));
        let frozen = tensors.iter().filter(|s| !weights.contains_key(&s.name) && !shared.contains_key(&s.name));
        let frozen = frozen.map(|s| (s, if linear.contains(&s.name) { options.base } else { BaseDtype::Auto }));
        let mut frozen = FrozenTensor::allocate(gpu, frozen, source.as_ref())?;
        let mut held = |name: &str| weights.remove(name).or_else(|| shared.remove(name));
        let mut take = |spec: &TensorSpec| match (held(&spec.name), frozen.remove(&spec.name)) {
            (Some(weight), _) => Ok(weight),
            (None, Some(frozen)) => frozen.load(gpu, spec, source.as_ref()),
            (None, None) => unreachable!("{} is used twice", spec.name),
        };
        let specs: BTreeMap<String, TensorSpec> = tensors.into_iter().map(|s| (s.name.clone(), s)).collect();
        let embedding = take(&specs[&d.embedding])?;
        let position_embedding = d.position_embedding.as_ref().map(|name| take(&specs[name])).transpose()?;
        let mut build = DecoderBuilder { d, specs: &specs, lora: options.lora.as_ref(), take: &mut take };
        let mut per_layer = build.per_layer()?;
        let mut layers = d.layers.iter().map(|l| build.layer(l)).collect::<Result<Vec<_>>>()?;
        let final_norm = build.norm(&d.final_norm)?;
        let head = if d.tied { None } else { Some((build.take)(&specs[&format!("{}.weight", d.head.name)])?) };
        for (layer, spec) in layers.iter_mut().zip(&d.layers) {
            layer.scalar = layer_scalar(gpu, spec, source.as_ref())?;
        }
        let inputs = per_layer.iter_mut().map(|inputs| &mut inputs.projection);
        keep_absmax(gpu, layers.iter_mut().flat_map(LayerWeights::linears_mut).chain(inputs));
        let widest = d.layers.iter().map(|layer| layer.head_dim).max().unwrap_or(0);
        let turns = d.ropes.iter().map(|r| RopeCache::new(gpu, r, options.n_positions)).collect();
        Ok(Self {
            description: d.clone(),
            embedding,
            tokens,
            position_embedding,
            per_layer,
            ones: d.value_norm.then(|| gpu.upload(&vec![1.0f32; widest])),
            layers,
            final_norm,
            head,
            turns,
            saved_dtype: options.training.saved_dtype,
            arena,
            replaced,
            start: None,
        })
    }

    /// Returns every weight of the checkpoint, for saving and for gradients.
    pub fn weights(&self) -> Vec<&Weight> {
        let mut all = vec![&self.embedding];
        all.extend(&self.position_embedding);
        if let Some(PerLayerWeights { embedding, projection, norm }) = &self.per_layer {
            all.push(embedding);
            push_linear(&mut all, projection);
            all.push(norm);
        }
        for l in &self.layers {
            l.attn_norm.iter().for_each(|n| push_norm(&mut all, n));
            all.extend(l.delta_net.iter().flat_map(DeltaNetWeights::all));
            all.extend(&l.sinks);
            all.extend(l.short_conv.iter().flat_map(ShortConvWeights::all));
            l.qkv.iter().chain([&l.out]).for_each(|x| push_linear(&mut all, x));
            l.q_norm
                .iter()
                .chain(&l.k_norm)
                .chain(&l.attn_post_norm)
                .chain(&l.mlp_norm)
                .for_each(|n| push_norm(&mut all, n));
            l.mlp.linears().for_each(|x| push_linear(&mut all, x));
            if let MlpWeights::Experts(experts) = &l.mlp {
                all.extend(experts.all());
            }
            l.mlp_post_norm.iter().for_each(|n| push_norm(&mut all, n));
            if let Some(PerLayerBranchWeights { gate, projection, post_norm }) = &l.per_layer {
                [gate, projection].into_iter().for_each(|x| push_linear(&mut all, x));
                push_norm(&mut all, post_norm);
            }
        }
        push_norm(&mut all, &self.final_norm);
        all.extend(&self.head);
        all
    }

    /// Returns the adapter's matrices by module: (name, A, B).
    pub fn adapter(&self) -> Vec<(&str, &Weight, &Weight)> {
        let inputs = self.per_layer.iter().map(|inputs| &inputs.projection);
        let linears = self.layers.iter().flat_map(LayerWeights::linears).chain(inputs);
        linears.filter_map(|l| l.lora.as_ref().map(|x| (l.module.name.as_str(), &x.a, &x.b))).collect()
    }

    /// Returns all trained weights, the adapter's included.
    pub fn trained_weights(&self) -> Vec<&Weight> {
        let own = self.weights().into_iter().filter(|w| w.trained());
        let tokens = self.tokens.iter().map(|tokens| &tokens.rows);
        own.chain(tokens).chain(self.adapter().into_iter().flat_map(|(_, a, b)| [a, b])).collect()
    }
}

/// Computes the absmax of frozen weights of linear layers, where the precision of products needs it, so that no step computes it again.
fn keep_absmax<'a>(gpu: &Gpu, linears: impl Iterator<Item = &'a mut Linear>) {
    if !scales_operands(gpu.caps()) {
        return;
    }
    let weights = linears.map(|linear| &mut linear.w);
    let weights: Vec<&mut Weight> =
        weights.filter(|w| !w.trained() && w.parts.iter().any(|p| p.absmax.is_none())).collect();
    let n_parts = weights.iter().map(|w| w.parts.len()).sum();
    let mut slots = gpu.lasting_packed(Role::Frozen, &vec![1; n_parts]).into_iter();
    let mut rec = gpu.record();
    for weight in weights {
        let (storage, cols) = (weight.storage, weight.cols);
        for (part, slot) in weight.parts.iter_mut().zip(slots.by_ref()) {
            weight_absmax(&mut rec, storage, &part.w, (part.rows, cols), &slot);
            part.absmax = Some(slot);
        }
    }
    rec.submit();
}

impl LayerWeights {
    pub(super) fn linears_mut(&mut self) -> impl Iterator<Item = &mut Linear> {
        let branch = self.per_layer.iter_mut().flat_map(|branch| [&mut branch.gate, &mut branch.projection]);
        let (up, down) = match &mut self.mlp {
            MlpWeights::Dense { up, down } => (up.as_mut_slice(), Some(down)),
            MlpWeights::Experts(_) => (&mut [][..], None),
        };
        self.qkv.iter_mut().chain([&mut self.out]).chain(up).chain(down).chain(branch)
    }
}

/// Reads the factor on a layer's output; 1 where there is none, or where only memory is planned.
fn layer_scalar(gpu: &Gpu, layer: &LayerConfig, source: &dyn WeightSource) -> Result<f32> {
    let Some(name) = layer.scalar.as_ref().filter(|_| !gpu.is_plan()) else { return Ok(1.0) };
    let spec = TensorSpec { name: name.clone(), shape: vec![1], transposed: false };
    Ok(source.values(&spec)?.first().copied().unwrap_or(1.0))
}

fn push_norm<'a>(all: &mut Vec<&'a Weight>, n: &'a NormWeights) {
    all.push(&n.w);
    all.extend(&n.b);
}

fn push_linear<'a>(all: &mut Vec<&'a Weight>, l: &'a Linear) {
    all.push(&l.w);
    all.extend(&l.b);
}

struct DecoderBuilder<'a, F: FnMut(&TensorSpec) -> Result<Weight>> {
    d: &'a ModelConfig,
    specs: &'a BTreeMap<String, TensorSpec>,
    lora: Option<&'a LoraSpec>,
    take: &'a mut F,
}

impl<F: FnMut(&TensorSpec) -> Result<Weight>> DecoderBuilder<'_, F> {
    fn norm(&mut self, name: &str) -> Result<NormWeights> {
        let w = (self.take)(&self.specs[&format!("{name}.weight")])?;
        let with_bias = self.d.norm.kind == NormKind::Layer;
        let b = if with_bias { Some((self.take)(&self.specs[&format!("{name}.bias")])?) } else { None };
        Ok(NormWeights { w, b })
    }

    fn linear(&mut self, module: &LinearSpec, scale: f32) -> Result<Linear> {
        let w = (self.take)(&self.specs[&format!("{}.weight", module.name)])?;
        let b = if module.bias { Some((self.take)(&self.specs[&format!("{}.bias", module.name)])?) } else { None };
        let lora = match self.lora.filter(|l| l.modules.contains_key(&module.name)) {
            None => None,
            Some(spec) => {
                let (rank, scale) = (spec.rank_of(&module.name), spec.scale_of(&module.name));
                let [a, b] = lora_names(&module.name);
                let shape = |name, shape| TensorSpec { name, shape, transposed: false };
                let a = (self.take)(&shape(a, vec![rank, module.n_in]))?;
                let b = (self.take)(&shape(b, vec![module.n_out, rank]))?;
                Some(LoraWeights { a, b, scale, dropout: spec.dropout })
            }
        };
        Ok(Linear { module: module.clone(), w, b, lora, scale })
    }

    fn per_layer(&mut self) -> Result<Option<PerLayerWeights>> {
        let Some(inputs) = &self.d.per_layer_inputs else { return Ok(None) };
        Ok(Some(PerLayerWeights {
            embedding: (self.take)(&self.specs[&inputs.embedding])?,
            projection: self.linear(&inputs.projection, inputs.projection_scale())?,
            norm: (self.take)(&self.specs[&format!("{}.weight", inputs.norm)])?,
        }))
    }

    fn mlp(&mut self, mlp: &MlpConfig) -> Result<MlpWeights> {
        let config = match mlp {
            MlpConfig::Dense { up, down } => {
                let up = up.iter().map(|m| self.linear(m, 1.0)).collect::<Result<_>>()?;
                return Ok(MlpWeights::Dense { up, down: self.linear(down, self.d.residual_scale)? });
            }
            MlpConfig::Experts(config) => config,
        };
        let mut tensor = |name: String| (self.take)(&self.specs[&name]);
        let router = tensor(format!("{}.weight", config.router.name))?;
        let bias = format!("{}.bias", config.router.name);
        let router_bias = if config.router.bias { Some(tensor(bias)?) } else { None };
        let mut stack = |projection: &ExpertProjection| -> Result<ExpertStack> {
            let weights = projection.weights.iter().map(|spec| tensor(spec.name.clone())).collect::<Result<_>>()?;
            let bias = projection.bias.as_ref().map(|spec| tensor(spec.name.clone())).transpose()?;
            Ok(ExpertStack::new(projection, weights, bias))
        };
        let up = config.up.iter().map(&mut stack).collect::<Result<_>>()?;
        Ok(MlpWeights::Experts(ExpertsWeights { router, router_bias, up, down: stack(&config.down)? }))
    }

    fn layer(&mut self, l: &LayerConfig) -> Result<LayerWeights> {
        let scale = self.d.residual_scale;
        let qkv = l.qkv.iter().map(|m| self.linear(m, 1.0)).collect::<Result<_>>()?;
        let [q_norm, k_norm] = [&l.q_norm, &l.k_norm].map(|name| name.as_ref().map(|n| self.norm(n)).transpose());
        let per_layer = match &l.per_layer {
            None => None,
            Some(branch) => Some(PerLayerBranchWeights {
                gate: self.linear(&branch.gate, 1.0)?,
                projection: self.linear(&branch.projection, 1.0)?,
                post_norm: self.norm(&branch.post_norm)?,
            }),
        };
        let delta_net = match l.delta_net() {
            None => None,
            Some(net) => Some(DeltaNetWeights {
                a_log: (self.take)(&self.specs[&net.a_log])?,
                dt_bias: (self.take)(&self.specs[&net.dt_bias])?,
                conv: (self.take)(&self.specs[&format!("{}.weight", net.conv)])?,
                norm: (self.take)(&self.specs[&format!("{}.weight", net.norm)])?,
            }),
        };
        let sinks = l.sinks.as_ref().map(|name| (self.take)(&self.specs[name])).transpose()?;
        let short_conv = match l.short_conv() {
            None => None,
            Some(conv) => {
                let mut own = |spec: TensorSpec| (self.take)(&self.specs[&spec.name]);
                let (weight, bias) = conv.tensors(self.d.d_model);
                Some(ShortConvWeights { conv: own(weight)?, bias: bias.map(own).transpose()? })
            }
        };
        Ok(LayerWeights {
            attn_norm: l.attn_norm.as_ref().map(|n| self.norm(n)).transpose()?,
            qkv,
            delta_net,
            short_conv,
            q_norm: q_norm?,
            k_norm: k_norm?,
            sinks,
            out: self.linear(&l.out, scale)?,
            attn_post_norm: l.attn_post_norm.as_ref().map(|n| self.norm(n)).transpose()?,
            mlp_norm: l.mlp_norm.as_ref().map(|n| self.norm(n)).transpose()?,
            mlp: self.mlp(&l.mlp)?,
            mlp_post_norm: l.mlp_post_norm.as_ref().map(|n| self.norm(n)).transpose()?,
            per_layer,
            scalar: 1.0,
        })
    }
}
