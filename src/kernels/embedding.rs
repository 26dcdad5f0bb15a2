//! Token embedding: rows of a table by token id. The gradient is summed over sorted buckets of ids.

use super::row_vec4s::{self, BASELINE, FLIGHT, ROWS};
use super::shapes::ModelShape;
use super::storage::WeightFormat;
use super::{Case, CaseOutputs, Cost, HostTensor, Kernel};
use crate::gpu::{Caps, CountedWork, Gpu, Recording, Shader, Slot, Variant, uniform_bytes_in_parts};
use crate::rng::Rng;

/// Shard of a table (V, D): consecutive rows in one slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VocabShard {
    /// First row of the shard.
    pub first: usize,
    /// Rows of the shard.
    pub rows: usize,
    /// D, elements per row.
    pub width: usize,
    /// Storage format of the shard.
    pub storage: WeightFormat,
}

/// Token ids on the device, with the buckets that the gradient needs.
#[derive(Debug)]
pub struct TokenIds {
    ids: Slot,
    order: Slot,
    buckets: Slot,
    /// Id of each bucket, ascending.
    bucket_ids: Vec<u32>,
    t: usize,
}

impl TokenIds {
    /// Sorts the ids into buckets, and uploads ids and buckets.
    pub fn new(gpu: &Gpu, ids: &[u32]) -> Self {
        let mut order: Vec<u32> = (0..ids.len() as u32).collect();
        order.sort_by_key(|&t| ids[t as usize]);
        let (mut table, mut bucket_ids, mut at) = (Vec::new(), Vec::new(), 0);
        for run in order.chunk_by(|&a, &b| ids[a as usize] == ids[b as usize]) {
            let id = ids[run[0] as usize];
            table.extend([id, at, at + run.len() as u32]);
            bucket_ids.push(id);
            at += run.len() as u32;
        }
        Self { ids: gpu.upload(ids), order: gpu.upload(&order), buckets: gpu.upload(&table), bucket_ids, t: ids.len() }
    }
}

#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct EmbeddingParams {
    width: u32,
    first: u32,
    rows: u32,
    accumulate: u32,
    scale: f32,
    bucket: u32,
    tokens: u32,
}

fn params(page: &VocabShard, scale: f32, accumulate: bool, bucket: usize, tokens: usize) -> EmbeddingParams {
    EmbeddingParams {
        width: page.width as u32,
        first: page.first as u32,
        rows: page.rows as u32,
        accumulate: u32::from(accumulate),
        scale,
        bucket: bucket as u32,
        tokens: tokens as u32,
    }
}

fn forward_shader(storage: WeightFormat) -> Shader {
    storage.select(Shader::new("embedding", "embedding_fwd").with("WG", 64.0))
}

fn backward_shader() -> Shader {
    Shader::new("embedding", "embedding_bwd_w").with("WG", 64.0)
}

fn shader_rows(entry: &'static str) -> Shader {
    Shader::new("embedding_rows", entry).with("WG", 64.0).unroll("FLIGHT", FLIGHT)
}

/// vec4s of columns and tokens per workgroup of `embedding_rows_fwd`: COLUMNS and ROWS · FLIGHT.
const BLOCK: [usize; 2] = [16, 4 * FLIGHT];

/// Computes y (T, D) = `scale·w[ids]` for the tokens of this shard; adds to y when `accumulate`.
pub fn embedding_fwd(
    rec: &mut Recording,
    page: &VocabShard,
    scale: f32,
    accumulate: bool,
    ids: &TokenIds,
    w: &Slot,
    y: &Slot,
) {
    let (shader, grid) = if !page.storage.is_quantised() && row_vec4s::in_vec4s(rec, &[page.width]) {
        let grid = [(page.width / 4).div_ceil(BLOCK[0]) as u32, ids.t.div_ceil(BLOCK[1]) as u32];
        (page.storage.select(shader_rows("embedding_rows_fwd")), grid)
    } else {
        (forward_shader(page.storage), [page.width.div_ceil(64) as u32, ids.t as u32])
    };
    let of_y = if accumulate { 2 } else { 1 };
    let words = page.storage.words(ids.t, page.width) + of_y * ids.t * page.width;
    let params = params(page, scale, accumulate, 0, ids.t);
    rec.dispatch_in_parts(&shader, &params, &[&ids.ids, w, y], grid, CountedWork::new(0, 4 * words as u64));
}

/// Computes d_w (rows, D) += scale·Σ d_y over the tokens of each id of this shard.
pub fn embedding_bwd_w(rec: &mut Recording, page: &VocabShard, scale: f32, ids: &TokenIds, d_y: &Slot, d_w: &Slot) {
    let first = ids.bucket_ids.partition_point(|&id| (id as usize) < page.first);
    let end = ids.bucket_ids.partition_point(|&id| (id as usize) < page.first + page.rows);
    let (shader, columns) = if row_vec4s::in_vec4s(rec, &[page.width]) {
        (shader_rows("embedding_rows_bwd_w"), page.width / 4)
    } else {
        (backward_shader(), page.width)
    };
    let grid = [columns.div_ceil(64) as u32, (end - first) as u32];
    let slots = [&ids.buckets, &ids.order, d_y, d_w];
    let params = params(page, scale, true, first, ids.t);
    rec.dispatch_in_parts(&shader, &params, &slots, grid, (ids.t * page.width) as u64);
}

/// Embedding kernels: `embedding_fwd`, `embedding_bwd_w`, `embedding_rows_fwd`, `embedding_rows_bwd_w`.
pub struct EmbeddingKernels;

impl Kernel for EmbeddingKernels {
    fn name(&self) -> &'static str {
        "embedding"
    }
    fn modules(&self) -> &'static [&'static str] {
        &["embedding", "embedding_rows"]
    }
    fn variants(&self) -> Vec<Shader> {
        let formats = [WeightFormat::F32, WeightFormat::Bf16];
        let forward = formats
            .into_iter()
            .flat_map(|storage| [forward_shader(storage), storage.select(shader_rows("embedding_rows_fwd"))]);
        forward.chain([backward_shader(), shader_rows("embedding_rows_bwd_w")]).collect()
    }
    fn uniforms(&self) -> Vec<(&'static str, usize)> {
        vec![("EmbeddingParams", uniform_bytes_in_parts::<EmbeddingParams>())]
    }
    fn cases(&self) -> Vec<Box<dyn Case>> {
        let shapes = [
            (1, 1, 1, 1, WeightFormat::F32, false),
            (7, 3, 65, 1, WeightFormat::F32, false),
            (40, 12, 64, 2, WeightFormat::Bf16, false),
            (130, 9, 6, 3, WeightFormat::F32, true),
        ];
        let baseline = shapes.map(|shape| EmbeddingCase::new(shape, BASELINE));
        // Both sides of an invocation's tokens, of a workgroup's tokens, and of its columns.
        let shapes = [
            (1, 1, 4, 1, WeightFormat::F32, false),
            (3, 200, 60, 2, WeightFormat::F32, false),
            (4, 1, 64, 1, WeightFormat::Bf16, true),
            (5, 1, 68, 1, WeightFormat::F32, true),
            (16, 12, 252, 2, WeightFormat::Bf16, false),
            (17, 40, 260, 1, WeightFormat::F32, false),
            (130, 9, 8, 3, WeightFormat::F32, true),
        ];
        let rows = shapes.map(|shape| EmbeddingCase::new(shape, ROWS));
        baseline.into_iter().chain(rows).map(|case| Box::new(case) as Box<dyn Case>).collect()
    }
    fn variant_cases(&self, variant: Variant, _: &Caps) -> Vec<Box<dyn Case>> {
        if variant != Variant::Rows {
            return Vec::new();
        }
        let shapes = [(130, 9, 68, 3, WeightFormat::F32, true), (40, 12, 260, 2, WeightFormat::Bf16, false)];
        shapes.map(|shape| Box::new(EmbeddingCase::new(shape, ROWS)) as Box<dyn Case>).into()
    }
    fn benches(&self, model: &ModelShape, t: usize, caps: &Caps) -> Vec<Box<dyn Case>> {
        let mut rng = Rng::new(t as u64, 3);
        let ids = (0..t).map(|_| rng.below(model.vocab as u32)).collect();
        let (vocab, width) = (model.vocab, model.d_model);
        vec![Box::new(EmbeddingCase {
            ids,
            vocab,
            width,
            pages: pages(vocab, width, caps),
            storage: WeightFormat::F32,
            accumulate: false,
            allowed: row_vec4s::taken(caps),
        })]
    }
}

/// Returns the number of shards of a table: equal shards, each of which fits a binding.
pub(super) fn pages(vocab: usize, width: usize, caps: &Caps) -> usize {
    let fits = |n: &usize| vocab.is_multiple_of(*n) && (vocab / n * width * 4) as u64 <= caps.max_binding_bytes;
    (1..=vocab).find(fits).unwrap_or(vocab)
}

struct EmbeddingCase {
    ids: Vec<u32>,
    vocab: usize,
    width: usize,
    pages: usize,
    storage: WeightFormat,
    /// Whether the rows are added to an earlier y, which is the last input.
    accumulate: bool,
    allowed: &'static [Variant],
}

/// T, V, D, shards, storage, and whether an earlier y is added, of a case.
type EmbeddingShape = (usize, usize, usize, usize, WeightFormat, bool);

impl EmbeddingCase {
    fn new((t, vocab, width, pages, storage, accumulate): EmbeddingShape, allowed: &'static [Variant]) -> Self {
        let mut rng = Rng::new(t as u64, 3);
        let ids = (0..t).map(|_| rng.below(vocab as u32)).collect();
        Self { ids, vocab, width, pages, storage, accumulate, allowed }
    }
}

const SCALE: f32 = 1.5;

impl Case for EmbeddingCase {
    fn label(&self) -> String {
        let added = if self.accumulate { " added" } else { "" };
        let (t, suffix) = (self.ids.len(), row_vec4s::suffix(self.allowed));
        format!("T={t} V={} D={} pages={} {:?}{added}{suffix}", self.vocab, self.width, self.pages, self.storage)
    }
    fn inputs(&self, rng: &mut Rng) -> Vec<HostTensor> {
        let rows = self.vocab / self.pages * self.width;
        let page = |rng: &mut Rng| match self.storage {
            WeightFormat::Bf16 => HostTensor::normal_bf16(rng, rows),
            _ => HostTensor::normal(rng, rows),
        };
        let mut all: Vec<HostTensor> = (0..self.pages).map(|_| page(rng)).collect();
        all.extend(self.accumulate.then(|| HostTensor::normal(rng, self.ids.len() * self.width)));
        all
    }
    fn forward(&self, x: &[Vec<f64>]) -> Vec<Vec<f64>> {
        let table = x[..self.pages].concat();
        let row = |&id: &u32| table[id as usize * self.width..][..self.width].iter().map(|v| f64::from(SCALE) * v);
        let mut y: Vec<f64> = self.ids.iter().flat_map(row).collect();
        x[self.pages..].iter().for_each(|there| y.iter_mut().zip(there).for_each(|(y, there)| *y += there));
        vec![y]
    }
    fn backward(&self, x: &[Vec<f64>], d_y: &[Vec<f64>]) -> Vec<Vec<f64>> {
        let mut d = vec![0.0; self.vocab * self.width];
        for (t, &id) in self.ids.iter().enumerate() {
            for i in 0..self.width {
                d[id as usize * self.width + i] += f64::from(SCALE) * d_y[0][t * self.width + i];
            }
        }
        let mut d: Vec<Vec<f64>> = d.chunks(x[0].len()).map(<[f64]>::to_vec).collect();
        d.extend(self.accumulate.then(|| d_y[0].clone()));
        d
    }
    fn d_y_lens(&self) -> Vec<usize> {
        vec![self.ids.len() * self.width]
    }
    fn launch(&self, rec: &mut Recording, x: &[Slot], d_y: &[Slot]) -> CaseOutputs {
        let gpu = rec.gpu();
        let (y, ids) = (gpu.alloc_activation(self.ids.len() * self.width), TokenIds::new(gpu, &self.ids));
        let rows = self.vocab / self.pages;
        let (pages, there) = x.split_at(self.pages);
        there.iter().for_each(|there| rec.copy(&there.slice_unaligned(0, y.len()), &y));
        let mut d_x = Vec::new();
        for (n, w) in pages.iter().enumerate() {
            let page = VocabShard { first: n * rows, rows, width: self.width, storage: self.storage };
            let d_w = gpu.alloc_activation(rows * self.width);
            rec.clear(&d_w);
            rec.with_variants(self.allowed, |rec| {
                embedding_fwd(rec, &page, SCALE, self.accumulate, &ids, w, &y);
                embedding_bwd_w(rec, &page, SCALE, &ids, &d_y[0], &d_w);
            });
            d_x.push(Some(d_w));
        }
        // The gradient of the earlier y is d_y itself.
        d_x.extend(there.iter().map(|_| Some(d_y[0].clone())));
        CaseOutputs { y: vec![y], d_x }
    }
    fn reduction_len(&self) -> usize {
        self.ids.len()
    }
    fn is_supported(&self, caps: &Caps) -> bool {
        self.allowed.iter().all(|variant| caps.variants.contains(variant))
    }
    fn cost(&self) -> Cost {
        let n = (self.ids.len() * self.width) as u64;
        Cost { bytes: 4 * 5 * n, flops: 2 * n }
    }
}
