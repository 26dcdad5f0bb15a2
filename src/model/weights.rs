//! Weights on the device: trained ones in arenas by role with equal offsets, frozen ones packed.
//!
//! A tensor never straddles a page, and a page fits a binding; a matrix larger than a page is split by rows.

use std::collections::BTreeMap;

use super::description::TensorSpec;
use crate::error::Result;
use crate::gpu::{Gpu, Role, Slot};
use crate::kernels::adamw;
use crate::kernels::storage::{Packed, Storage};

/// Where values come from, tensor by tensor, so that one at most is in memory.
pub trait Source {
    /// Whether the tensor is stored as bf16.
    fn is_bf16(&self, spec: &TensorSpec) -> bool;
    /// All values, as stored (before any transposition).
    ///
    /// # Errors
    /// What the file says.
    fn values(&self, spec: &TensorSpec) -> Result<Vec<f32>>;
}

/// Rows of a tensor in one buffer.
#[derive(Debug, Clone)]
pub struct Part {
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
    /// As in the checkpoint.
    pub spec: TensorSpec,
    /// Rows.
    pub rows: usize,
    /// Columns.
    pub cols: usize,
    /// How `parts` are stored.
    pub storage: Storage,
    /// By rows, in order.
    pub parts: Vec<Part>,
}

impl Weight {
    /// The only part of a vector (or of a small matrix).
    pub fn slot(&self) -> &Slot {
        &self.parts[0].w
    }
    /// Its gradient.
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
pub struct Arena {
    /// Pages of the four roles, equal offsets.
    pub pages: Vec<adamw::Page>,
    /// The tensors in them.
    pub tensors: Vec<Trained>,
}

/// A trained tensor's state, in parts of equal offsets.
#[derive(Debug, Clone)]
pub struct Trained {
    /// Hugging Face's or PEFT's.
    pub name: String,
    /// Value, first and second moment of each part.
    pub parts: Vec<[Slot; 3]>,
}

/// What one AdamW update walks over: decaying tensors first.
pub struct TrainedSpec {
    /// The tensor.
    pub spec: TensorSpec,
    /// Initial values, as stored in the checkpoint.
    pub values: Box<dyn FnOnce() -> Result<Vec<f32>>>,
}

/// Alignment of a tensor inside a page, in elements: that of bindings.
const ALIGN: usize = 64;

struct Place {
    tensor: usize,
    first: usize,
    rows: usize,
    page: usize,
    offset: usize,
}

/// Page lengths and places: tensors in order, split by rows where one is larger than a page.
fn lay_out(shapes: &[(usize, usize)], page_len: usize) -> (Vec<usize>, Vec<Place>) {
    let (mut pages, mut places): (Vec<usize>, Vec<Place>) = (Vec::new(), Vec::new());
    for (tensor, &(rows, cols)) in shapes.iter().enumerate() {
        let mut first = 0;
        while first < rows {
            let left = rows - first;
            let at = pages.last().map_or(0, |p| p.next_multiple_of(ALIGN));
            let whole_fits = pages.last().is_some() && at + left * cols <= page_len;
            if !whole_fits {
                pages.push(0);
            }
            let at = if whole_fits { at } else { 0 };
            let rows_now = left.min((page_len / cols.max(1)).max(1));
            let page = pages.len() - 1;
            pages[page] = at + rows_now * cols;
            places.push(Place { tensor, first, rows: rows_now, page, offset: at });
            first += rows_now;
        }
    }
    (pages, places)
}

impl Arena {
    /// Allocates parameters and gradients, and moments when `moments`; loads initial values.
    ///
    /// # Errors
    /// From the values.
    pub fn new(
        gpu: &Gpu,
        mut tensors: Vec<TrainedSpec>,
        decay_all: bool,
        moments: bool,
    ) -> Result<(Self, BTreeMap<String, Weight>)> {
        let decays = |s: &TensorSpec| decay_all || s.shape.len() > 1;
        tensors.sort_by_key(|t| !decays(&t.spec));
        let shapes: Vec<_> = tensors.iter().map(|t| held_shape(&t.spec)).collect();
        let (lengths, places) = lay_out(&shapes, (gpu.caps().max_binding_bytes / 4) as usize);
        let page = |(index, &len): (usize, &usize)| {
            let first_plain = places.iter().find(|p| p.page == index && !decays(&tensors[p.tensor].spec));
            let params = gpu.lasting(Role::Params, len);
            let moment = || if moments { gpu.lasting(Role::Moments, len) } else { params.clone() };
            adamw::Page {
                grads: gpu.lasting(Role::Grads, len),
                m: moment(),
                v: moment(),
                decay_end: first_plain.map_or(len, |p| p.offset),
                params,
            }
        };
        let pages: Vec<adamw::Page> = lengths.iter().enumerate().map(page).collect();
        let mut weights = BTreeMap::new();
        let mut places = places.into_iter().peekable();
        let mut states = Vec::new();
        for (index, tensor) in tensors.into_iter().enumerate() {
            let (rows, cols) = shapes[index];
            let values = if gpu.is_plan() { None } else { Some(held(&tensor.spec, (tensor.values)()?)) };
            let (mut parts, mut state) = (Vec::new(), Vec::new());
            while let Some(p) = places.next_if(|p| p.tensor == index) {
                let page = &pages[p.page];
                state.push([&page.params, &page.m, &page.v].map(|role| role.slice(p.offset, p.rows * cols)));
                let w = page.params.slice(p.offset, p.rows * cols);
                if let Some(values) = &values {
                    gpu.write(&w, &values[p.first * cols..][..p.rows * cols]);
                }
                let d_w = Some(page.grads.slice(p.offset, p.rows * cols));
                parts.push(Part { first: p.first, rows: p.rows, w, d_w });
            }
            states.push(Trained { name: tensor.spec.name.clone(), parts: state });
            weights.insert(
                tensor.spec.name.clone(),
                Weight { spec: tensor.spec, rows, cols, storage: Storage::F32, parts },
            );
        }
        Ok((Self { pages, tensors: states }, weights))
    }

    /// Elements that are trained, padding included.
    pub fn len(&self) -> usize {
        self.pages.iter().map(|p| p.params.len()).sum()
    }
    /// Nothing is trained.
    pub fn is_empty(&self) -> bool {
        self.pages.is_empty()
    }
}

/// How frozen linear weights are held (`--base-dtype`). Embedding, head and norms are always held as [`BaseDtype::Auto`] has them.
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
    /// [`Storage::Int8`].
    Int8,
    /// [`Storage::Nf4`].
    Nf4,
}

impl BaseDtype {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Auto, Self::F32, Self::Bf16, Self::Int8, Self::Nf4];

    /// As on the command line.
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
    pub fn quantised(self) -> Option<Storage> {
        match self {
            Self::Int8 => Some(Storage::Int8),
            Self::Nf4 => Some(Storage::Nf4),
            Self::Auto | Self::F32 | Self::Bf16 => None,
        }
    }

    /// How a matrix of `cols` columns is held: bf16 where they fit no block of the quantised storage, f32 where they fit no word.
    pub fn storage(self, cols: usize, is_bf16: bool) -> Storage {
        let wanted = match self {
            Self::Auto if is_bf16 => Storage::Bf16,
            Self::Auto | Self::F32 => Storage::F32,
            Self::Bf16 => Storage::Bf16,
            Self::Int8 => Storage::Int8,
            Self::Nf4 => Storage::Nf4,
        };
        let fits = |s: &Storage| cols.is_multiple_of(s.columns());
        [wanted, Storage::Bf16].into_iter().find(fits).unwrap_or(Storage::F32)
    }
}

/// A frozen tensor; matrices are quantised as a whole, then cut into parts.
///
/// # Errors
/// From the source.
pub fn frozen(gpu: &Gpu, spec: &TensorSpec, source: &dyn Source, base: BaseDtype) -> Result<Weight> {
    let (rows, cols) = held_shape(spec);
    let is_matrix = spec.shape.len() == 2;
    let storage = if is_matrix { base.storage(cols, source.is_bf16(spec)) } else { Storage::F32 };
    // Products for CPUs unpack a part into f32, which must fit a binding too. Quantised parts are smaller than bf16's.
    let widest = match storage {
        _ if gpu.caps().unpacks_weights() => Storage::F32,
        Storage::Int8 | Storage::Nf4 => Storage::Bf16,
        other => other,
    };
    let per_row = widest.words(1, cols).max(1);
    let most = gpu.caps().max_binding_bytes as usize / 4 / per_row;
    let rows_a_part = if most > 4 { most / 4 * 4 } else { 1 }.min(rows.max(1));
    let packed = if gpu.is_plan() { None } else { Some(Packed::new(storage, held(spec, source.values(spec)?), cols)) };
    let mut parts = Vec::new();
    for first in (0..rows).step_by(rows_a_part) {
        let n = rows_a_part.min(rows - first);
        let w = gpu.lasting(Role::Frozen, storage.words(n, cols));
        if let Some(packed) = &packed {
            gpu.write(&w, &packed.part(first, n, cols));
        }
        parts.push(Part { first, rows: n, w, d_w: None });
    }
    Ok(Weight { spec: spec.clone(), rows, cols, storage, parts })
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
        let storage = if gradient { Storage::F32 } else { weight.storage };
        let words = gpu.read::<u32>(&[slot]).await?.concat();
        all.extend(storage.unpack(&words, part.rows, weight.cols));
    }
    Ok(if weight.spec.transposed { transpose(&all, weight.rows, weight.cols) } else { all })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_hold_whole_tensors_and_split_larger_ones_by_rows() {
        let (pages, places) = lay_out(&[(3, 50), (1, 10), (5, 100), (1, 7)], 256);
        let got: Vec<_> = places.iter().map(|p| (p.tensor, p.first, p.rows, p.page, p.offset)).collect();
        assert_eq!(
            got,
            [(0, 0, 3, 0, 0), (1, 0, 1, 0, 192), (2, 0, 2, 1, 0), (2, 2, 2, 2, 0), (2, 4, 1, 3, 0), (3, 0, 1, 3, 128)]
        );
        assert_eq!(pages, [202, 200, 200, 135]);
    }

    #[test]
    fn transposition_is_undone_by_itself() {
        let values: Vec<f32> = (0..6).map(|x| x as f32).collect();
        assert_eq!(transpose(&values, 2, 3), [0.0, 3.0, 1.0, 4.0, 2.0, 5.0]);
        assert_eq!(transpose(&transpose(&values, 2, 3), 3, 2), values);
    }
}
