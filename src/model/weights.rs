//! Weights on the device: trained ones in arenas by role with equal offsets, frozen ones packed.
//!
//! A tensor never straddles a bucket, and a bucket fits a binding; a matrix larger than a bucket is split by rows.

use std::collections::BTreeMap;

use safetensors::Dtype;

use super::description::TensorSpec;
use super::saved::SavedDtype;
use crate::error::Result;
use crate::gpu::{Gpu, Role, Slot};
use crate::kernels::adamw;
use crate::kernels::moments::{self, BLOCK, MomentFormat, Optim};
use crate::kernels::storage::{PackedWeight, WeightFormat};

/// Source of weights, read tensor by tensor, so that at most one tensor is in memory.
pub trait WeightSource {
    /// Whether the tensor is stored as bf16.
    fn is_bf16(&self, spec: &TensorSpec) -> bool;
    /// All values, as stored (before any transposition).
    ///
    /// # Errors
    /// Errors of the file that holds the tensor.
    fn values(&self, spec: &TensorSpec) -> Result<Vec<f32>>;
}

/// Rows of a tensor in one buffer.
#[derive(Debug, Clone)]
pub struct RowShard {
    /// First row.
    pub first: usize,
    /// Rows.
    pub rows: usize,
    /// (rows, cols).
    pub w: Slot,
    /// (rows, cols) f32, where it is trained.
    pub d_w: Option<Slot>,
}

/// A tensor on the device: (rows, cols), vectors being one row. Conv1D weights are held transposed, so that every matrix is (out, in).
#[derive(Debug, Clone)]
pub struct Weight {
    /// Name and shape in the checkpoint.
    pub spec: TensorSpec,
    /// Rows.
    pub rows: usize,
    /// Columns.
    pub cols: usize,
    /// Storage format of `parts`.
    pub storage: WeightFormat,
    /// Parts of the tensor by rows, in order.
    pub parts: Vec<RowShard>,
}

impl Weight {
    /// The only part of a vector (or of a small matrix).
    pub fn slot(&self) -> &Slot {
        &self.parts[0].w
    }
    /// Returns the gradient of [`Weight::slot`], where it is trained.
    pub fn grad(&self) -> Option<&Slot> {
        self.parts[0].d_w.as_ref()
    }
    /// Whether it is trained.
    pub fn trained(&self) -> bool {
        self.parts[0].d_w.is_some()
    }
}

/// (rows, cols) as held on the device.
fn held_shape(spec: &TensorSpec) -> (usize, usize) {
    match spec.shape.as_slice() {
        [n] => (1, *n),
        [a, b] if spec.transposed => (*b, *a),
        [a, b] => (*a, *b),
        other => (1, other.iter().product()),
    }
}

/// Swaps rows and columns: (rows, cols) -> (cols, rows).
pub fn transpose(values: &[f32], rows: usize, cols: usize) -> Vec<f32> {
    (0..cols).flat_map(|c| (0..rows).map(move |r| values[r * cols + c])).collect()
}

/// Values as the device holds them.
fn held(spec: &TensorSpec, values: Vec<f32>) -> Vec<f32> {
    if spec.transposed { transpose(&values, spec.shape[0], spec.shape[1]) } else { values }
}

/// All trained parameters.
#[derive(Debug, Default)]
pub struct WeightArena {
    /// Buckets of values, gradients and moments.
    pub pages: Vec<adamw::ParamBucket>,
    /// The tensors in them.
    pub tensors: Vec<TrainedTensor>,
}

/// A trained tensor's state: what a checkpoint holds.
#[derive(Debug, Clone)]
pub struct TrainedTensor {
    /// Hugging Face's or PEFT's.
    pub name: String,
    /// Values and moments.
    pub arrays: Vec<StateArray>,
}

/// Values, moments, codes of moments or their scales, of one tensor.
#[derive(Debug, Clone)]
pub struct StateArray {
    /// `param`, `m`, `v` or `absmax`.
    pub role: &'static str,
    /// Data type in a checkpoint's header. Slots are whole words: codes may be followed by padding that stands for zero.
    pub dtype: Dtype,
    /// Slots per part of the tensor, in order. Only the host may read them, because they begin at any offset.
    pub slots: Vec<Slot>,
}

/// Description of a tensor to train.
pub struct TrainedSpec {
    /// The tensor.
    pub spec: TensorSpec,
    /// A table of embeddings.
    pub embeds: bool,
    /// Initial values, as stored in the checkpoint.
    pub values: Box<dyn FnOnce() -> Result<Vec<f32>>>,
}

/// Storage and update of trained parameters, and data type of the activations saved for their gradients.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TrainOptions {
    /// `None`: there are no updates, so there are no moments.
    pub optim: Option<Optim>,
    /// Data type of trained matrices.
    pub param_dtype: ParamDtype,
    /// Data type of the activations that the forward pass saves for the backward pass.
    pub saved_dtype: SavedDtype,
    /// Weight decay on one-dimensional tensors too.
    pub decay_all: bool,
}

impl TrainOptions {
    /// Gradients alone, or an adapter that is only read.
    pub const NONE: Self =
        Self { optim: None, param_dtype: ParamDtype::F32, saved_dtype: SavedDtype::F32, decay_all: false };
}

/// Data type of trained matrices (`--param-dtype`). Vectors (norm weights, biases) are few, and always f32. Matrices of an odd width are
/// f32 too, because their rows fit no words of bf16.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ParamDtype {
    /// f32: a master copy.
    F32,
    /// bf16, updates being rounded stochastically.
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

/// A tensor with fewer elements keeps moments in f32, as bitsandbytes has it (`min_8bit_size`).
const LEAST_IN_EIGHT_BITS: usize = 4096;

/// Properties that all tensors of a bucket share. Weight decay is not one: the last tensors of a bucket may be without it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct BucketKind {
    bf16: bool,
    eight_bits: bool,
}

impl TrainOptions {
    fn decays(&self, spec: &TensorSpec) -> bool {
        self.decay_all || spec.shape.len() > 1
    }

    /// Embeddings keep moments in f32, as transformers' Trainer leaves them: a row that no token of a step has gets no gradient, and where
    /// its second moment were rounded to zero and the first one not, the update would be divided by ε alone.
    fn kind(&self, tensor: &TrainedSpec) -> BucketKind {
        let (rows, cols) = held_shape(&tensor.spec);
        let is_matrix = tensor.spec.shape.len() == 2;
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

/// A tensor to be laid out.
struct TensorExtent {
    rows: usize,
    cols: usize,
    kind: BucketKind,
}

/// A bucket to be allocated.
#[derive(Debug, PartialEq)]
struct BucketExtent {
    kind: BucketKind,
    /// Number of the first element, like [`adamw::ParamBucket`]'s `first`.
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

/// Rows that a copy of a bucket's matrix for products is padded to.
const VEC4_ROWS: usize = 4;

/// Buckets and places: tensors in order, those of a kind together, split by rows where one is larger than a bucket. Each tensor begins at a
/// block, and is split at one: so all blocks and all numbers of elements are the same for any length of buckets.
fn lay_out(tensors: &[TensorExtent], page_len: usize) -> (Vec<BucketExtent>, Vec<TensorPlacement>) {
    let (mut pages, mut places): (Vec<BucketExtent>, Vec<TensorPlacement>) = (Vec::new(), Vec::new());
    // Of the tensor's first element.
    let mut number = 0;
    for (tensor, &TensorExtent { rows, cols, kind }) in tensors.iter().enumerate() {
        // This many rows end at a block's end. (No matrix is so wide that these are more than a bucket.)
        let unit = BLOCK >> cols.trailing_zeros().min(BLOCK.trailing_zeros());
        // A matrix that is copied into another order has its rows in vec4s, and must fit a bucket as well.
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
    // The update walks over four elements at a time.
    pages.iter_mut().for_each(|p| p.len = p.len.next_multiple_of(4));
    (pages, places)
}

/// `n` elements of a bucket from `at` on: values, gradients, and all arrays of the state.
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
    /// Allocates parameters and gradients, and moments where there are updates; loads initial values. Decaying tensors come first.
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
        let (spans, places) = lay_out(&extents, (gpu.caps().max_binding_bytes / 4) as usize);
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
        // Before gigabytes are read for memory that is not there.
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
                parts.push(RowShard { first: p.first, rows: p.rows, w, d_w: Some(d_w) });
            }
            gpu.check()?;
            all.push(TrainedTensor { name: tensor.spec.name.clone(), arrays });
            weights.insert(tensor.spec.name.clone(), Weight { spec: tensor.spec, rows, cols, storage, parts });
        }
        Ok((Self { pages, tensors: all }, weights))
    }

    /// Elements that are trained, padding included.
    pub fn len(&self) -> usize {
        self.pages.iter().map(|p| p.len).sum()
    }
    /// Nothing is trained.
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

    /// The quantised storage, where it is one.
    pub fn quantised(self) -> Option<WeightFormat> {
        match self {
            Self::Int8 => Some(WeightFormat::Int8),
            Self::Nf4 => Some(WeightFormat::Nf4),
            Self::Auto | Self::F32 | Self::Bf16 => None,
        }
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

/// A frozen tensor before it is loaded: how it is held, and memory for its parts.
#[derive(Debug)]
pub struct FrozenTensor {
    storage: WeightFormat,
    /// First row, rows and elements of four bytes.
    parts: Vec<(usize, usize, usize)>,
    slots: Vec<Slot>,
}

impl FrozenTensor {
    fn new(gpu: &Gpu, spec: &TensorSpec, source: &dyn WeightSource, base: BaseDtype) -> Self {
        let (rows, cols) = held_shape(spec);
        let is_matrix = spec.shape.len() == 2;
        let storage = if is_matrix { base.storage(cols, source.is_bf16(spec)) } else { WeightFormat::F32 };
        // Products for CPUs unpack a part into f32, which must fit a binding too. Quantised parts are smaller than bf16's.
        let widest = match storage {
            _ if gpu.caps().unpacks_weights() => WeightFormat::F32,
            WeightFormat::Int8 | WeightFormat::Nf4 => WeightFormat::Bf16,
            other => other,
        };
        let per_row = widest.words(1, cols).max(1);
        let most = gpu.caps().max_binding_bytes as usize / 4 / per_row;
        let rows_a_part = if most > VEC4_ROWS { most / VEC4_ROWS * VEC4_ROWS } else { 1 }.min(rows.max(1));
        let mut parts = Vec::new();
        for first in (0..rows).step_by(rows_a_part) {
            let n = rows_a_part.min(rows - first);
            parts.push((first, n, storage.words(n, cols)));
        }
        Self { storage, parts, slots: Vec::new() }
    }

    /// Allocates all of a model's, before any is read.
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

    /// Loads the values; matrices are quantised as a whole, then cut into parts.
    ///
    /// # Errors
    /// Errors of the source, and those of [`Gpu::check`].
    pub fn load(self, gpu: &Gpu, spec: &TensorSpec, source: &dyn WeightSource) -> Result<Weight> {
        let (rows, cols) = held_shape(spec);
        let Self { storage, parts, slots } = self;
        if !gpu.is_plan() {
            let packed = PackedWeight::new(storage, held(spec, source.values(spec)?), cols);
            for (slot, (first, n, _)) in slots.iter().zip(&parts) {
                gpu.write(slot, &packed.part(*first, *n, cols));
            }
            gpu.check()?;
        }
        let parts = slots.into_iter().zip(parts).map(|(w, (first, rows, _))| RowShard { first, rows, w, d_w: None });
        Ok(Weight { spec: spec.clone(), rows, cols, storage, parts: parts.collect() })
    }
}

/// A tensor's values, or its gradient's, as the checkpoint stores them.
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
    Ok(if weight.spec.transposed { transpose(&all, weight.rows, weight.cols) } else { all })
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
                // Five would fit, but not as the eight that a copy of them takes.
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

    /// Blocks and numbers of elements, by which they are rounded, do not depend on the length of buckets.
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
