//! Weights on the device. Trained ones lie in arenas (values, gradients, moments) at equal offsets; frozen ones are packed in their storage
//! format.
//!
//! A bucket fits a binding. A tensor lies in one bucket, except a matrix larger than a bucket, which is split by rows.

use std::collections::BTreeMap;

use safetensors::Dtype;

use super::description::TensorSpec;
use super::saved::SavedDtype;
use crate::error::Result;
use crate::gpu::{Gpu, Role, Slot};
use crate::kernels::adamw;
use crate::kernels::moments::{self, BLOCK, MomentFormat, Optim};
use crate::kernels::storage::{PackedWeight, WeightFormat};

/// Source of weights. It is read tensor by tensor, so that at most one tensor is in memory.
pub trait WeightSource {
    /// Returns whether the tensor is stored as bf16.
    fn is_bf16(&self, spec: &TensorSpec) -> bool;
    /// Reads all values as stored, before any transposition.
    ///
    /// # Errors
    /// Errors of the file that holds the tensor.
    fn values(&self, spec: &TensorSpec) -> Result<Vec<f32>>;
    /// Returns whether the tensor is stored in NF4, whose codes and scales [`Self::packed`] reads.
    fn is_nf4(&self, _: &TensorSpec) -> bool {
        false
    }
    /// Reads the codes and scales of a tensor that is stored in NF4; `None` for another tensor.
    ///
    /// # Errors
    /// Errors of the file that holds the tensor.
    fn packed(&self, _: &TensorSpec) -> Result<Option<PackedWeight>> {
        Ok(None)
    }
}

/// Rows of a tensor in one buffer.
#[derive(Debug, Clone)]
pub struct RowShard {
    /// First row.
    pub first: usize,
    /// Number of rows.
    pub rows: usize,
    /// Values: (rows, cols), in the tensor's storage format.
    pub w: Slot,
    /// Gradients: (rows, cols) f32, where the tensor is trained.
    pub d_w: Option<Slot>,
    /// Absmax of the values (1), where they are frozen and the precision of products needs it.
    pub absmax: Option<Slot>,
}

/// Tensors of a checkpoint that are stored in NF4, by their names in the files.
pub trait Nf4Tensors: std::fmt::Debug {
    /// Tells whether a tensor is stored in NF4 that [`Self::packed`] reads as it is.
    fn is_nf4(&self, name: &str) -> bool;
    /// Reads a tensor's codes and scales as they are; `None` for another tensor.
    ///
    /// # Errors
    /// Errors of the file that holds the tensor.
    fn packed(&self, name: &str) -> Result<Option<PackedWeight>>;
}

/// Tensor on the device: (rows, cols), where a vector is one row. Conv1D weights are stored transposed, so that every matrix is (out, in).
#[derive(Debug, Clone)]
pub struct Weight {
    /// Name and shape in the checkpoint.
    pub spec: TensorSpec,
    /// Number of rows.
    pub rows: usize,
    /// Number of columns.
    pub cols: usize,
    /// Storage format of `parts`.
    pub storage: WeightFormat,
    /// Parts of the tensor by rows, in order.
    pub parts: Vec<RowShard>,
}

impl Weight {
    /// Returns the only part of a vector, or of a matrix that was not split.
    pub fn slot(&self) -> &Slot {
        &self.parts[0].w
    }
    /// Returns the gradient of [`Weight::slot`], where the tensor is trained.
    pub fn grad(&self) -> Option<&Slot> {
        self.parts[0].d_w.as_ref()
    }
    /// Returns whether the tensor is trained.
    pub fn trained(&self) -> bool {
        self.parts[0].d_w.is_some()
    }
}

/// Returns (rows, cols) as stored on the device.
fn held_shape(spec: &TensorSpec) -> (usize, usize) {
    match spec.shape.as_slice() {
        [n] => (1, *n),
        [a, b] if spec.transposed => (*b, *a),
        [a, b] => (*a, *b),
        [experts, a, b] if spec.transposed => (experts * b, *a),
        other => (1, other.iter().product()),
    }
}

/// Swaps rows and columns: (rows, cols) -> (cols, rows).
pub fn transpose(values: &[f32], rows: usize, cols: usize) -> Vec<f32> {
    (0..cols).flat_map(|c| (0..rows).map(move |r| values[r * cols + c])).collect()
}

/// Converts values from the checkpoint's order to the device's.
fn held(spec: &TensorSpec, values: Vec<f32>) -> Vec<f32> {
    match spec.shape.as_slice() {
        [.., a, b] if spec.transposed => values.chunks(a * b).flat_map(|matrix| transpose(matrix, *a, *b)).collect(),
        _ => values,
    }
}

/// All trained parameters, with gradients and moments.
#[derive(Debug, Default)]
pub struct WeightArena {
    /// Buckets of values, gradients and moments.
    pub pages: Vec<adamw::ParamBucket>,
    /// Tensors in the buckets.
    pub tensors: Vec<TrainedTensor>,
}

/// Trained tensor with the state that a checkpoint saves.
#[derive(Debug, Clone)]
pub struct TrainedTensor {
    /// Name in Hugging Face's or PEFT's convention.
    pub name: String,
    /// Values and moments.
    pub arrays: Vec<StateArray>,
}

/// State array of one tensor: values, moments, or codes of moments and their scales.
#[derive(Debug, Clone)]
pub struct StateArray {
    /// `param`, `m`, `v` or `absmax`.
    pub role: &'static str,
    /// Data type in a checkpoint's header. Slots are whole words, so padding may follow the codes; it decodes to zero.
    pub dtype: Dtype,
    /// Slots of the tensor's parts, in order. Only the host may read them, because they begin at unaligned offsets.
    pub slots: Vec<Slot>,
}

/// Description of a tensor to train.
pub struct TrainedSpec {
    /// Name and shape in the checkpoint.
    pub spec: TensorSpec,
    /// Whether the tensor is an embedding table.
    pub embeds: bool,
    /// Initial values, as stored in the checkpoint.
    pub values: Box<dyn FnOnce() -> Result<Vec<f32>>>,
}

/// Storage and optimiser of trained parameters, and data type of saved activations.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TrainOptions {
    /// Optimiser; `None` where there are no updates, and so no moments.
    pub optim: Option<Optim>,
    /// Data type of trained matrices.
    pub param_dtype: ParamDtype,
    /// Data type of the activations that the forward pass saves for the backward pass.
    pub saved_dtype: SavedDtype,
    /// Whether one-dimensional tensors have weight decay, too.
    pub decay_all: bool,
}

impl TrainOptions {
    /// Options without an optimiser: for gradients alone, or for an adapter that is only read.
    pub const NONE: Self =
        Self { optim: None, param_dtype: ParamDtype::F32, saved_dtype: SavedDtype::F32, decay_all: false };
}

/// Data type of trained matrices (`--param-dtype`). Vectors (norm weights, biases) are always f32, because they are small. So are matrices
/// of odd width, because their rows are not whole words of bf16.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ParamDtype {
    /// f32, like a master copy of weights.
    F32,
    /// bf16; updates are rounded stochastically.
    Bf16,
}

impl ParamDtype {
    /// All choices.
    pub const ALL: [Self; 2] = [Self::F32, Self::Bf16];

    /// Returns the data type's name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
        }
    }
}

/// Smallest number of elements of a tensor with eight-bit moments; smaller ones keep f32, as in bitsandbytes (`min_8bit_size`).
const LEAST_IN_EIGHT_BITS: usize = 4096;

/// Properties that all tensors of a bucket share. Weight decay is not one of them: the last tensors of a bucket may lack it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct BucketKind {
    bf16: bool,
    eight_bits: bool,
}

impl TrainOptions {
    fn decays(&self, spec: &TensorSpec) -> bool {
        // transformers' Trainer leaves out biases by name: those of experts have two dimensions.
        self.decay_all || (spec.shape.len() > 1 && !spec.name.ends_with("_bias"))
    }

    /// Returns the kind of bucket that a tensor belongs to. Embeddings keep moments in f32, as in transformers' Trainer: a row whose token
    /// does not occur in a step gets no gradient. If its second moment were rounded to zero and its first were not, its update would be
    /// divided by ε alone.
    fn kind(&self, tensor: &TrainedSpec) -> BucketKind {
        let (rows, cols) = held_shape(&tensor.spec);
        let is_matrix = tensor.spec.matrices() > 0;
        BucketKind {
            bf16: self.param_dtype == ParamDtype::Bf16
                && is_matrix
                && cols.is_multiple_of(WeightFormat::Bf16.columns()),
            eight_bits: self.optim == Some(Optim::Adamw8bit)
                && is_matrix
                && !tensor.embeds
                && rows * cols >= LEAST_IN_EIGHT_BITS,
        }
    }
}

/// Tensor to be placed in a bucket.
struct TensorExtent {
    rows: usize,
    cols: usize,
    kind: BucketKind,
}

/// Bucket to be allocated.
#[derive(Debug, PartialEq)]
struct BucketExtent {
    kind: BucketKind,
    /// Index of the first element, as in [`adamw::ParamBucket::first`].
    first: usize,
    len: usize,
}

#[derive(Debug)]
struct TensorPlacement {
    tensor: usize,
    first: usize,
    rows: usize,
    page: usize,
    offset: usize,
}

/// A transposed copy of a matrix, which CPU products need, pads the number of rows to a multiple of this.
const VEC4_ROWS: usize = 4;

/// Places tensors in buckets: in order, those of a kind together, split by rows where one is larger than a bucket. Each tensor begins at a
/// block of moments, and is split at block boundaries. Blocks and element indices are therefore the same for any length of buckets.
fn lay_out(tensors: &[TensorExtent], page_len: usize) -> (Vec<BucketExtent>, Vec<TensorPlacement>) {
    let (mut pages, mut places): (Vec<BucketExtent>, Vec<TensorPlacement>) = (Vec::new(), Vec::new());
    // Index of the tensor's first element.
    let mut number = 0;
    for (tensor, &TensorExtent { rows, cols, kind }) in tensors.iter().enumerate() {
        // This many rows end at a block's end. They fit a bucket, because no matrix is that wide.
        let unit = BLOCK >> cols.trailing_zeros().min(BLOCK.trailing_zeros());
        // A transposed copy of a matrix pads its rows to whole vec4s, and must fit a bucket's length as well.
        let unit = unit.max(VEC4_ROWS);
        let mut first = 0;
        while first < rows {
            let left = rows - first;
            let padded = if rows > 1 { left.next_multiple_of(VEC4_ROWS) } else { left };
            let behind = pages.last().filter(|p| p.kind == kind).map(|p| p.len.next_multiple_of(BLOCK));
            let at = behind.filter(|at| at + padded * cols <= page_len);
            if at.is_none() {
                pages.push(BucketExtent { kind, first: number + first * cols, len: 0 });
            }
            let (at, fit) = (at.unwrap_or(0), page_len / cols.max(1));
            let rows = if padded <= fit { left } else { (fit / unit * unit).clamp(1, left) };
            let page = pages.len() - 1;
            pages[page].len = at + rows * cols;
            places.push(TensorPlacement { tensor, first, rows, page, offset: at });
            first += rows;
        }
        number += (rows * cols).next_multiple_of(BLOCK);
    }
    // The update kernel works on four elements at a time.
    pages.iter_mut().for_each(|p| p.len = p.len.next_multiple_of(4));
    (pages, places)
}

/// Places tensors like [`lay_out`], and each matrix of a tensor of all experts as if it were a tensor: none shares a part with another.
fn lay_out_matrices(
    tensors: &[TrainedSpec],
    extents: &[TensorExtent],
    page_len: usize,
) -> (Vec<BucketExtent>, Vec<TensorPlacement>) {
    let matrices = extents.iter().zip(tensors).enumerate().flat_map(|(tensor, (extent, spec))| {
        let (n, &TensorExtent { cols, kind, .. }) = (spec.spec.matrices().max(1), extent);
        let rows = extent.rows / n;
        (0..n).map(move |i| (tensor, i * rows, TensorExtent { rows, cols, kind }))
    });
    let (owners, matrices): (Vec<(usize, usize)>, Vec<TensorExtent>) =
        matrices.map(|(tensor, first, extent)| ((tensor, first), extent)).unzip();
    let (pages, mut places) = lay_out(&matrices, page_len);
    for place in &mut places {
        let (tensor, first) = owners[place.tensor];
        (place.tensor, place.first) = (tensor, first + place.first);
    }
    (pages, places)
}

/// Returns `n` elements of a bucket from `at` on: values, gradients, and all arrays of the state.
fn slices(page: &adamw::ParamBucket, at: usize, n: usize) -> (Slot, Slot, Vec<(&'static str, Dtype, Slot)>) {
    let (w, dtype) = match page.storage {
        WeightFormat::Bf16 => (page.params.slice(at / 2, n / 2), Dtype::BF16),
        _ => (page.params.slice(at, n), Dtype::F32),
    };
    let mut arrays = vec![("param", dtype, w.clone())];
    match &page.moments {
        MomentFormat::None => {}
        MomentFormat::F32 { m, v } => {
            arrays.extend([("m", m), ("v", v)].map(|(role, slot)| (role, Dtype::F32, slot.slice(at, n))));
        }
        MomentFormat::EightBits { m, v, absmax, .. } => {
            let codes = |slot: &Slot| slot.slice(at / 4, n.div_ceil(4));
            arrays.extend([("m", m), ("v", v)].map(|(role, slot)| (role, Dtype::U8, codes(slot))));
            arrays.push(("absmax", Dtype::F32, absmax.slice_unaligned(at / BLOCK * 2, n.div_ceil(BLOCK) * 2)));
        }
    }
    (w, page.grads.slice(at, n), arrays)
}

impl WeightArena {
    /// Allocates parameters and gradients, and moments where there is an optimiser; loads initial values. Tensors with weight decay come
    /// first.
    ///
    /// # Errors
    /// Errors of the initial values; [`crate::Error::OutOfMemory`] and others of [`Gpu::check`].
    pub fn new(
        gpu: &Gpu,
        mut tensors: Vec<TrainedSpec>,
        training: &TrainOptions,
    ) -> Result<(Self, BTreeMap<String, Weight>)> {
        tensors.sort_by_key(|t| (training.kind(t), !training.decays(&t.spec)));
        let extent = |t: &TrainedSpec| {
            let (rows, cols) = held_shape(&t.spec);
            TensorExtent { rows, cols, kind: training.kind(t) }
        };
        let extents: Vec<TensorExtent> = tensors.iter().map(extent).collect();
        let (spans, places) = lay_out_matrices(&tensors, &extents, (gpu.caps().max_binding_bytes / 4) as usize);
        let maps = spans.iter().any(|s| s.kind.eight_bits).then(|| moments::maps(gpu));
        let page = |(index, span): (usize, &BucketExtent)| {
            let first_plain = places.iter().find(|p| p.page == index && !training.decays(&tensors[p.tensor].spec));
            let storage = if span.kind.bf16 { WeightFormat::Bf16 } else { WeightFormat::F32 };
            adamw::ParamBucket {
                len: span.len,
                first: span.first,
                params: gpu.alloc_persistent(Role::Params, storage.words(1, span.len)),
                storage,
                grads: gpu.alloc_persistent(Role::Grads, span.len),
                moments: match (training.optim, &maps) {
                    (None, _) => MomentFormat::None,
                    (Some(_), Some(maps)) if span.kind.eight_bits => MomentFormat::eight_bits(gpu, span.len, maps),
                    (Some(_), _) => MomentFormat::f32(gpu, span.len),
                },
                decay_end: first_plain.map_or(span.len, |p| p.offset),
            }
        };
        let pages: Vec<adamw::ParamBucket> = spans.iter().enumerate().map(page).collect();
        // Fails before gigabytes are read, if the memory is missing.
        gpu.check()?;
        let mut weights = BTreeMap::new();
        let mut places = places.into_iter().peekable();
        let mut all = Vec::new();
        for (index, tensor) in tensors.into_iter().enumerate() {
            let TensorExtent { rows, cols, kind } = extents[index];
            let storage = if kind.bf16 { WeightFormat::Bf16 } else { WeightFormat::F32 };
            let packed = match gpu.is_plan() {
                true => None,
                false => Some(PackedWeight::new(storage, held(&tensor.spec, (tensor.values)()?), cols)),
            };
            let (mut parts, mut arrays): (Vec<RowShard>, Vec<StateArray>) = (Vec::new(), Vec::new());
            while let Some(p) = places.next_if(|p| p.tensor == index) {
                let (w, d_w, slices) = slices(&pages[p.page], p.offset, p.rows * cols);
                if let Some(packed) = &packed {
                    gpu.write(&w, &packed.part(p.first, p.rows, cols));
                }
                for (i, (role, dtype, slot)) in slices.into_iter().enumerate() {
                    match arrays.get_mut(i) {
                        Some(array) => array.slots.push(slot),
                        None => arrays.push(StateArray { role, dtype, slots: vec![slot] }),
                    }
                }
                parts.push(RowShard { first: p.first, rows: p.rows, w, d_w: Some(d_w), absmax: None });
            }
            gpu.check()?;
            all.push(TrainedTensor { name: tensor.spec.name.clone(), arrays });
            weights.insert(tensor.spec.name.clone(), Weight { spec: tensor.spec, rows, cols, storage, parts });
        }
        Ok((Self { pages, tensors: all }, weights))
    }

    /// Returns the number of trained elements, padding included.
    pub fn len(&self) -> usize {
        self.pages.iter().map(|p| p.len).sum()
    }
    /// Returns whether nothing is trained.
    pub fn is_empty(&self) -> bool {
        self.pages.is_empty()
    }
}

/// Storage of frozen linear weights (`--base-dtype`). Embedding, head and norms are always stored like [`BaseDtype::Auto`].
///
/// # Examples
/// ```
/// use jointwise::{BaseDtype, Policy, PolicyOptions};
/// let options = PolicyOptions { base_dtype: BaseDtype::Int8, ..PolicyOptions::default() };
/// let policy = Policy::open_with("models/demo", options)?;
/// # Ok::<(), jointwise::Error>(())
/// ```
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BaseDtype {
    /// bf16 where the checkpoint has bf16, else f32.
    #[default]
    Auto,
    /// f32.
    F32,
    /// Rounded to bf16.
    Bf16,
    /// [`WeightFormat::Int8`].
    Int8,
    /// [`WeightFormat::Nf4`].
    Nf4,
}

impl BaseDtype {
    /// All choices.
    pub const ALL: [Self; 5] = [Self::Auto, Self::F32, Self::Bf16, Self::Int8, Self::Nf4];

    /// Returns the choice's name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
            Self::Int8 => "int8",
            Self::Nf4 => "nf4",
        }
    }

    /// Returns the quantised format; `None` for other choices.
    pub fn quantised(self) -> Option<WeightFormat> {
        match self {
            Self::Int8 => Some(WeightFormat::Int8),
            Self::Nf4 => Some(WeightFormat::Nf4),
            Self::Auto | Self::F32 | Self::Bf16 => None,
        }
    }

    /// Returns the formats that a model's weights may have: f32 and bf16, as files and adapters have them, and a quantised one.
    pub fn weight_formats(self) -> Vec<WeightFormat> {
        [WeightFormat::F32, WeightFormat::Bf16].into_iter().chain(self.quantised()).collect()
    }

    /// Returns the storage of a matrix of `cols` columns. Falls back to bf16 where `cols` does not fit the quantised storage's blocks, and
    /// to f32 where it does not fit a word.
    pub fn storage(self, cols: usize, is_bf16: bool) -> WeightFormat {
        let wanted = match self {
            Self::Auto if is_bf16 => WeightFormat::Bf16,
            Self::Auto | Self::F32 => WeightFormat::F32,
            Self::Bf16 => WeightFormat::Bf16,
            Self::Int8 => WeightFormat::Int8,
            Self::Nf4 => WeightFormat::Nf4,
        };
        let fits = |s: &WeightFormat| cols.is_multiple_of(s.columns());
        [wanted, WeightFormat::Bf16].into_iter().find(fits).unwrap_or(WeightFormat::F32)
    }
}

/// Frozen tensor before it is loaded: its storage format, and memory for its parts.
#[derive(Debug)]
pub struct FrozenTensor {
    storage: WeightFormat,
    /// (first row, number of rows, number of four-byte words) of each part.
    parts: Vec<(usize, usize, usize)>,
    slots: Vec<Slot>,
}

impl FrozenTensor {
    fn new(gpu: &Gpu, spec: &TensorSpec, source: &dyn WeightSource, base: BaseDtype) -> Self {
        let (rows, cols) = held_shape(spec);
        let is_matrix = spec.matrices() > 0;
        let storage = match base {
            _ if !is_matrix => WeightFormat::F32,
            BaseDtype::Auto if source.is_nf4(spec) => WeightFormat::Nf4,
            base => base.storage(cols, source.is_bf16(spec)),
        };
        // CPU products unpack a part into f32, which must fit a binding too. A quantised part is smaller than bf16's would be.
        let widest = match storage {
            _ if gpu.caps().unpacks_weights() => WeightFormat::F32,
            WeightFormat::Int8 | WeightFormat::Nf4 => WeightFormat::Bf16,
            other => other,
        };
        let per_row = widest.words(1, cols).max(1);
        let most = gpu.caps().max_binding_bytes as usize / 4 / per_row;
        let rows_a_part = if most > VEC4_ROWS { most / VEC4_ROWS * VEC4_ROWS } else { 1 }.min(rows.max(1));
        let mut parts = Vec::new();
        // No part has rows of two experts.
        let of_matrix = rows / spec.matrices().max(1);
        for matrix in (0..rows).step_by(of_matrix.max(1)) {
            for first in (matrix..matrix + of_matrix).step_by(rows_a_part) {
                let n = rows_a_part.min(matrix + of_matrix - first);
                parts.push((first, n, storage.words(n, cols)));
            }
        }
        Self { storage, parts, slots: Vec::new() }
    }

    /// Allocates memory for all frozen tensors of a model, before any is read.
    ///
    /// # Errors
    /// [`crate::Error::OutOfMemory`] and others of [`Gpu::check`].
    pub fn allocate<'s>(
        gpu: &Gpu,
        specs: impl Iterator<Item = (&'s TensorSpec, BaseDtype)>,
        source: &dyn WeightSource,
    ) -> Result<BTreeMap<String, Self>> {
        let mut all: Vec<(&str, Self)> =
            specs.map(|(spec, base)| (spec.name.as_str(), Self::new(gpu, spec, source, base))).collect();
        let lens: Vec<usize> = all.iter().flat_map(|(_, t)| t.parts.iter().map(|p| p.2)).collect();
        let mut slots = gpu.lasting_packed(Role::Frozen, &lens).into_iter();
        gpu.check()?;
        all.iter_mut().for_each(|(_, t)| t.slots.extend(slots.by_ref().take(t.parts.len())));
        Ok(all.into_iter().map(|(name, tensor)| (name.into(), tensor)).collect())
    }

    /// Loads the values. Matrices are quantised as a whole, then divided into parts.
    ///
    /// # Errors
    /// Errors of the source, and those of [`Gpu::check`].
    pub fn load(self, gpu: &Gpu, spec: &TensorSpec, source: &dyn WeightSource) -> Result<Weight> {
        let (rows, cols) = held_shape(spec);
        let Self { storage, parts, slots } = self;
        if !gpu.is_plan() {
            let as_stored = if storage == WeightFormat::Nf4 { source.packed(spec)? } else { None };
            let packed = match as_stored {
                Some(packed) => packed,
                None => PackedWeight::new(storage, held(spec, source.values(spec)?), cols),
            };
            for (slot, (first, n, _)) in slots.iter().zip(&parts) {
                gpu.write(slot, &packed.part(*first, *n, cols));
            }
            gpu.check()?;
        }
        let parts = slots.into_iter().zip(parts).map(|(w, (first, rows, _))| RowShard {
            first,
            rows,
            w,
            d_w: None,
            absmax: None,
        });
        Ok(Weight { spec: spec.clone(), rows, cols, storage, parts: parts.collect() })
    }
}

/// Reads back a tensor's values, or its gradient, in the checkpoint's order.
///
/// # Errors
/// [`crate::Error::Gpu`].
pub async fn read_back(gpu: &Gpu, weight: &Weight, gradient: bool) -> Result<Vec<f32>> {
    let mut all = Vec::with_capacity(weight.rows * weight.cols);
    for part in &weight.parts {
        let slot = if gradient { part.d_w.as_ref() } else { Some(&part.w) };
        let Some(slot) = slot else { continue };
        let storage = if gradient { WeightFormat::F32 } else { weight.storage };
        let words = gpu.read::<u32>(&[slot]).await?.concat();
        all.extend(storage.unpack(&words, part.rows, weight.cols));
    }
    Ok(match weight.spec.shape.as_slice() {
        [.., a, b] if weight.spec.transposed => {
            all.chunks(a * b).flat_map(|matrix| transpose(matrix, *b, *a)).collect()
        }
        _ => all,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const F32: BucketKind = BucketKind { bf16: false, eight_bits: false };
    const EIGHT: BucketKind = BucketKind { bf16: false, eight_bits: true };

    fn extents(all: &[(usize, usize, BucketKind)]) -> Vec<TensorExtent> {
        all.iter().map(|&(rows, cols, kind)| TensorExtent { rows, cols, kind }).collect()
    }

    #[test]
    fn pages_hold_whole_tensors_of_a_kind_and_split_larger_ones_at_blocks() {
        let tensors = [(3, 50, F32), (1, 10, F32), (9, 128, F32), (1, 7, F32), (2, 128, EIGHT)];
        let (pages, places) = lay_out(&extents(&tensors), 640);
        let got: Vec<_> = places.iter().map(|p| (p.tensor, p.first, p.rows, p.page, p.offset)).collect();
        assert_eq!(
            got,
            [
                (0, 0, 3, 0, 0),
                (1, 0, 1, 0, 256),
                (2, 0, 4, 1, 0),
                // Five rows would fit a bucket, but their transposed copy is padded to eight rows, which would not.
                (2, 4, 4, 2, 0),
                (2, 8, 1, 3, 0),
                (3, 0, 1, 3, 256),
                (4, 0, 2, 4, 0)
            ]
        );
        let pages: Vec<_> = pages.iter().map(|p| (p.kind, p.first, p.len)).collect();
        let want = [(F32, 0, 268), (F32, 512, 512), (F32, 1024, 512), (F32, 1536, 264), (EIGHT, 2048, 256)];
        assert_eq!(pages, want);
    }

    /// Blocks and element indices, on which rounding depends, do not depend on the length of buckets.
    #[test]
    fn elements_have_their_numbers_and_blocks_in_any_pages() {
        let tensors = extents(&[(700, 24, EIGHT), (3, 50, F32), (600, 96, F32), (1, 7, F32)]);
        let numbers = |page_len| {
            let (pages, places) = lay_out(&tensors, page_len);
            let mut all = BTreeMap::new();
            for p in &places {
                let cols = tensors[p.tensor].cols;
                for i in 0..p.rows * cols {
                    let at = p.offset + i;
                    let old = all.insert((p.tensor, p.first * cols + i), (pages[p.page].first + at, at % BLOCK));
                    assert_eq!(old, None);
                }
            }
            (pages.len(), all)
        };
        let (whole, want) = numbers(1 << 20);
        let mut once: Vec<_> = want.values().map(|v| v.0).collect();
        once.dedup();
        assert!(whole == 2 && once.len() == 700 * 24 + 3 * 50 + 600 * 96 + 7);
        for (page_len, n) in [(24_700, 5), (12_288, 8)] {
            let (pages, got) = numbers(page_len);
            assert!(pages == n && got == want, "{page_len}: {pages} pages");
        }
    }

    #[test]
    fn transposition_is_undone_by_itself() {
        let values: Vec<f32> = (0..6).map(|x| x as f32).collect();
        assert_eq!(transpose(&values, 2, 3), [0.0, 3.0, 1.0, 4.0, 2.0, 5.0]);
        assert_eq!(transpose(&transpose(&values, 2, 3), 3, 2), values);
    }
}
