//! Log-probabilities of target tokens and their gradient, without logits of T×V: the LM head is computed in tiles of the vocabulary.

use std::ops::Range;

use super::matmul::{LinearPass, MatmulDesc, OperandMatrix, matmul};
use super::row_vec4s::{self, BASELINE, FLIGHT, ROWS};
use super::shapes::ModelShape;
use super::storage::WeightFormat;
use super::{Case, CaseOutputs, Cost, HostTensor, Kernel};
use crate::gpu::{Caps, CountedWork, Recording, Shader, Slot, Variant, grid_1d};
use crate::rng::Rng;

/// Largest scratch for a tile of logits, in bytes.
pub const SCRATCH_BYTES: usize = 16 << 20;

/// Most rows of a tile of logits. A tile reads its rows of x and of W, and adds to those of d_x: square tiles move the fewest bytes.
const TILE_ROWS: usize = 2048;

/// Shard of the LM head's weight: consecutive rows in one slot.
#[derive(Clone, Copy)]
pub struct HeadShard<'a> {
    /// First row (token id).
    pub first: usize,
    /// Rows of the shard.
    pub rows: usize,
    /// Weight (rows, D).
    pub w: &'a Slot,
    /// Gradient (rows, D) in f32, where the weight is trained.
    pub d_w: Option<&'a Slot>,
}

/// LM head: logits = scale·x·Wᵀ, soft-capped.
#[derive(Clone)]
pub struct LmHead<'a> {
    /// Shards of W's rows, in order; each fits a binding.
    pub pages: Vec<HeadShard<'a>>,
    /// Storage format of W.
    pub storage: WeightFormat,
    /// D, elements per row of W.
    pub width: usize,
    /// Factor on the product (Granite: 1/`logits_scaling`).
    pub scale: f32,
    /// c of the soft cap z ← c·tanh(z/c).
    pub softcap: Option<f32>,
    /// Largest number of columns per tile.
    pub tile: usize,
}

impl LmHead<'_> {
    /// Returns the largest number of columns at which a tile of `rows` rows, or of the most rows that a tile has, fits [`SCRATCH_BYTES`].
    pub fn tile_for(rows: usize) -> usize {
        SCRATCH_BYTES / 4 / rows.clamp(1, TILE_ROWS) / 64 * 64
    }

    /// Divides `rows` rows among tiles: ranges of nearly equal length, which begin at multiples of 64, as slices of slots must.
    fn row_ranges(rows: usize) -> impl Iterator<Item = Range<usize>> {
        let each = rows.div_ceil(rows.div_ceil(TILE_ROWS).max(1)).next_multiple_of(64);
        (0..rows).step_by(each.max(1)).map(move |first| first..(first + each).min(rows))
    }

    /// Returns (shard, first row inside it, rows) of each tile.
    fn tiles(&self) -> impl Iterator<Item = (&HeadShard<'_>, usize, usize)> {
        self.pages.iter().flat_map(move |page| {
            (0..page.rows).step_by(self.tile).map(move |at| (page, at, self.tile.min(page.rows - at)))
        })
    }

    #[expect(clippy::too_many_arguments, reason = "a tile of a page, and its slots")]
    fn logits(&self, rec: &mut Recording, page: &HeadShard, at: usize, n: usize, rows: usize, x: &Slot, logits: &Slot) {
        let product = MatmulDesc {
            orientation: LinearPass::Forward,
            storage: self.storage,
            m: rows,
            n,
            k: self.width,
            alpha: self.scale,
            accumulate: false,
        };
        let w = OperandMatrix { slot: page.w, start: at * self.width, stride: self.width, absmax: None };
        matmul(rec, &product, OperandMatrix::new(x, self.width), w, OperandMatrix::new(logits, n));
    }

    fn scratch(&self, rec: &Recording, rows: usize) -> Slot {
        let widest = self.pages.iter().map(|p| p.rows).max().unwrap_or(0);
        let most = Self::row_ranges(rows).map(|rows| rows.len()).max().unwrap_or(0);
        rec.gpu().alloc_activation(most * self.tile.min(widest))
    }
}

#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct LogprobParams {
    rows: u32,
    n: u32,
    first: u32,
    softcap: f32,
}

/// Returns a kernel that reads no logits.
fn shader(entry: &'static str) -> Shader {
    Shader::new("logprob", entry).with("WG", 64.0)
}

fn flag(on: bool) -> f64 {
    f64::from(u8::from(on))
}

fn tile_baseline(softcap: bool, squares: bool) -> Shader {
    shader("logprob_tile").with("SOFTCAP", flag(softcap)).with("SQUARES", flag(squares))
}

fn bwd_baseline(softcap: bool) -> Shader {
    shader("logprob_bwd").with("SOFTCAP", flag(softcap))
}

/// Columns of a tile from which a row's workgroup of `logprob_rows_tile` is wider: there are fewer rows then.
const WIDE_TILE: usize = 4096;

fn tile_rows(n: usize, softcap: bool, squares: bool) -> Shader {
    let workgroup = if n < WIDE_TILE { 64 } else { 256 };
    shader_rows("logprob_rows_tile", workgroup, softcap).with("SQUARES", flag(squares))
}

/// Invocations per workgroup of `logprob_rows_bwd`.
const WG_ROWS_BWD: usize = 64;

fn bwd_rows(softcap: bool) -> Shader {
    shader_rows("logprob_rows_bwd", WG_ROWS_BWD, softcap)
}

fn shader_rows(entry: &'static str, workgroup: usize, softcap: bool) -> Shader {
    let shader = Shader::new("logprob_rows", entry).with("WG", workgroup as f64).unroll("FLIGHT", FLIGHT);
    shader.with("SOFTCAP", flag(softcap))
}

/// Returns the grid of `logprob_rows_bwd`: whole workgroups per row of `n` columns.
fn bwd_grid(rows: usize, n: usize) -> [u32; 3] {
    grid_1d(rows * (n / 4).div_ceil(FLIGHT * WG_ROWS_BWD), 1)
}

/// Slots that the forward pass writes.
#[derive(Clone, Copy)]
pub struct LogprobOutputs<'a> {
    /// (rows), log-probability of each target.
    pub logp: &'a Slot,
    /// (rows), log-sum-exp of the logits.
    pub lse: &'a Slot,
    /// (rows), log Σ_v p_v² over the vocabulary, where it is wanted.
    pub log_squares: Option<&'a Slot>,
}

/// Computes the outputs for `targets` (rows, u32) from x (rows, D).
pub fn logprob_fwd(rec: &mut Recording, head: &LmHead, rows: usize, x: &Slot, targets: &Slot, out: LogprobOutputs) {
    let squares = out.log_squares.is_some();
    let logits = head.scratch(rec, rows);
    for range in LmHead::row_ranges(rows) {
        let (first, rows) = (range.start, range.len());
        let part = |slot: &Slot| slot.slice(first, rows);
        let (x, targets) = (x.slice(first * head.width, rows * head.width), part(targets));
        let state = rec.gpu().alloc_activation(4 * rows);
        let params = |n: usize, first: usize| LogprobParams {
            rows: rows as u32,
            n: n as u32,
            first: first as u32,
            softcap: head.softcap.unwrap_or(1.0),
        };
        for (page, at, n) in head.tiles() {
            head.logits(rec, page, at, n, rows, &x, &logits);
            let softcap = head.softcap.is_some();
            let shader = match row_vec4s::in_vec4s(rec, &[n]) {
                true => tile_rows(n, softcap, squares),
                false => tile_baseline(softcap, squares),
            };
            let work = CountedWork::new(4 * (rows * n) as u64, (4 + 2 * u64::from(squares)) * (rows * n) as u64);
            let slots = [&logits, &targets, &state];
            rec.dispatch(&shader, &params(n, page.first + at), &slots, grid_1d(rows, 1), work);
        }
        let slots = [&state, &part(out.logp), &part(out.lse)];
        rec.dispatch(&shader("logprob_finish"), &params(0, 0), &slots, grid_1d(rows, 64), 0);
        if let Some(log_squares) = out.log_squares {
            let slots = [&state, &part(log_squares)];
            rec.dispatch(&shader("logprob_squares"), &params(0, 0), &slots, grid_1d(rows, 64), 0);
        }
    }
}

/// Values of the forward pass that the backward pass needs.
#[derive(Clone, Copy)]
pub struct LogprobSaved<'a> {
    /// (rows, D), hidden states.
    pub x: &'a Slot,
    /// (rows), u32 token ids.
    pub targets: &'a Slot,
    /// (rows), log-sum-exp of the logits.
    pub lse: &'a Slot,
}

/// Computes d_x (rows, D) from d_logp (rows), overwriting it, and adds to the shards' d_w.
pub fn logprob_bwd(rec: &mut Recording, head: &LmHead, rows: usize, saved: LogprobSaved, d_logp: &Slot, d_x: &Slot) {
    let logits = head.scratch(rec, rows);
    rec.clear(d_x);
    for range in LmHead::row_ranges(rows) {
        let part = |slot: &Slot, width| slot.slice(range.start * width, range.len() * width);
        let [x, d_x] = [saved.x, d_x].map(|slot| part(slot, head.width));
        let [targets, lse, d_logp] = [saved.targets, saved.lse, d_logp].map(|slot| part(slot, 1));
        let saved = LogprobSaved { x: &x, targets: &targets, lse: &lse };
        for (page, at, n) in head.tiles() {
            logprob_bwd_tile(rec, head, (page, at, n), range.len(), saved, &d_logp, &logits, &d_x);
        }
    }
}

/// Adds a tile's part to d_x (rows, D), and to its shard's d_w.
#[expect(clippy::too_many_arguments, reason = "a tile, and its slots")]
fn logprob_bwd_tile(
    rec: &mut Recording,
    head: &LmHead,
    (page, at, n): (&HeadShard, usize, usize),
    rows: usize,
    saved: LogprobSaved,
    d_logp: &Slot,
    logits: &Slot,
    d_x: &Slot,
) {
    head.logits(rec, page, at, n, rows, saved.x, logits);
    let params = LogprobParams {
        rows: rows as u32,
        n: n as u32,
        first: (page.first + at) as u32,
        softcap: head.softcap.unwrap_or(1.0),
    };
    let slots = [saved.targets, saved.lse, d_logp, logits];
    let softcap = head.softcap.is_some();
    let (shader, grid) = match row_vec4s::in_vec4s(rec, &[n]) {
        true => (bwd_rows(softcap), bwd_grid(rows, n)),
        false => (bwd_baseline(softcap), grid_1d(rows * n, 64)),
    };
    let work = CountedWork::new(6 * (rows * n) as u64, 8 * (rows * n) as u64);
    rec.dispatch(&shader, &params, &slots, grid, work);
    let d_logits = OperandMatrix::new(logits, n);
    let start = at * head.width;
    let product = MatmulDesc {
        orientation: LinearPass::BackwardX,
        storage: head.storage,
        m: rows,
        n: head.width,
        k: n,
        alpha: head.scale,
        accumulate: true,
    };
    let w = OperandMatrix { slot: page.w, start, stride: head.width, absmax: None };
    matmul(rec, &product, d_logits, w, OperandMatrix::new(d_x, head.width));
    if let Some(d_w) = page.d_w {
        let product =
            MatmulDesc { orientation: LinearPass::BackwardW, storage: WeightFormat::F32, m: n, k: rows, ..product };
        let d_w = OperandMatrix { slot: d_w, start, stride: head.width, absmax: None };
        matmul(rec, &product, d_logits, OperandMatrix::new(saved.x, head.width), d_w);
    }
}

/// Log-probability kernels: `logprob_tile`, `logprob_finish` and `logprob_squares` forward, `logprob_bwd` backward, and `logprob_rows_`
/// variants.
pub struct LogprobKernels;

impl Kernel for LogprobKernels {
    fn name(&self) -> &'static str {
        "logprob"
    }
    fn modules(&self) -> &'static [&'static str] {
        &["logprob", "logprob_rows"]
    }
    fn variants(&self) -> Vec<Shader> {
        let tiles = |softcap, squares| {
            let rows = [64, WIDE_TILE].map(|n| tile_rows(n, softcap, squares));
            rows.into_iter().chain([tile_baseline(softcap, squares)])
        };
        let of = |softcap| {
            let forward = [false, true].into_iter().flat_map(move |squares| tiles(softcap, squares));
            forward.chain([bwd_baseline(softcap), bwd_rows(softcap)])
        };
        let ends = ["logprob_finish", "logprob_squares"].map(shader);
        [false, true].into_iter().flat_map(of).chain(ends).collect()
    }
    fn uniforms(&self) -> Vec<(&'static str, usize)> {
        vec![("LogprobParams", size_of::<LogprobParams>())]
    }
    fn cases(&self) -> Vec<Box<dyn Case>> {
        let shapes = [
            (1, 2, 1, 1, 64, None, WeightFormat::F32),
            (5, 131, 7, 1, 64, None, WeightFormat::F32),
            (66, 64, 8, 2, 64, Some(3.0), WeightFormat::Bf16),
            (9, 300, 12, 3, 64, Some(2.0), WeightFormat::F32),
            // More rows than a tile has.
            (2100, 9, 4, 1, 64, None, WeightFormat::F32),
        ];
        let baseline = shapes.map(|shape| LogprobCase::new(shape, BASELINE));
        let shape = (7, 130, 12, 1, 64, Some(2.0), WeightFormat::F32);
        let scaled = LogprobCase { scale: 0.25, ..LogprobCase::new(shape, BASELINE) };
        // Both sides of an invocation's loads, and of the tiles of wider workgroups. The last tile of 131 columns is the baseline's.
        let shapes = [
            (1, 4, 1, 1, 64, None, WeightFormat::F32),
            (5, 131, 7, 1, 64, None, WeightFormat::F32),
            (66, 120, 8, 2, 64, Some(3.0), WeightFormat::Bf16),
            (9, 252, 12, 1, 256, None, WeightFormat::F32),
            (3, 1028, 4, 1, 2048, Some(2.0), WeightFormat::F32),
            (2, 5124, 4, 1, 4100, None, WeightFormat::F32),
        ];
        let rows = shapes.map(|shape| LogprobCase::new(shape, ROWS));
        let all = baseline.into_iter().chain([scaled]).chain(rows);
        // Squared probabilities of several tiles, by each shader that sums them.
        let squares = all.clone().filter(|case| case.vocab > 100).map(|case| LogprobCase { squares: true, ..case });
        all.chain(squares).map(|case| Box::new(case) as Box<dyn Case>).collect()
    }
    fn benches(&self, model: &ModelShape, t: usize, caps: &Caps) -> Vec<Box<dyn Case>> {
        let mut rng = Rng::new(t as u64, 9);
        let targets = (0..t).map(|_| rng.below(model.vocab as u32)).collect();
        let (vocab, width) = (model.vocab, model.d_model);
        let (pages, tile) = (super::embedding::pages(vocab, width, caps), LmHead::tile_for(t));
        let (storage, allowed) = (WeightFormat::F32, row_vec4s::taken(caps));
        let (scale, softcap, squares) = (1.0, None, false);
        vec![Box::new(LogprobCase { targets, vocab, width, pages, tile, scale, softcap, storage, allowed, squares })]
    }
    fn variant_cases(&self, variant: Variant, _: &Caps) -> Vec<Box<dyn Case>> {
        if variant != Variant::Rows {
            return Vec::new();
        }
        let shapes =
            [(9, 300, 12, 3, 64, Some(2.0), WeightFormat::F32), (2, 5124, 4, 1, 4100, None, WeightFormat::F32)];
        shapes.map(|shape| Box::new(LogprobCase::new(shape, ROWS)) as Box<dyn Case>).into()
    }
}

/// Rows, V, D, shards, tile, soft cap, and storage of a case.
type LogprobShape = (usize, usize, usize, usize, usize, Option<f32>, WeightFormat);

#[derive(Clone)]
struct LogprobCase {
    targets: Vec<u32>,
    vocab: usize,
    width: usize,
    pages: usize,
    tile: usize,
    scale: f32,
    softcap: Option<f32>,
    storage: WeightFormat,
    allowed: &'static [Variant],
    /// Whether squared probabilities are summed, too.
    squares: bool,
}

impl LogprobCase {
    fn new((rows, vocab, width, pages, tile, softcap, storage): LogprobShape, allowed: &'static [Variant]) -> Self {
        let mut rng = Rng::new(vocab as u64, 9);
        let targets = (0..rows).map(|_| rng.below(vocab as u32)).collect();
        Self { targets, vocab, width, pages, tile, scale: 1.0, softcap, storage, allowed, squares: false }
    }
    /// Computes z, the slopes of the soft cap, and the log-sum-exp of a row.
    fn row(&self, x: &[f64], w: &[f64]) -> (Vec<f64>, Vec<f64>, f64) {
        let scale = f64::from(self.scale);
        let logits = w.chunks(self.width).map(|w| scale * w.iter().zip(x).map(|(a, b)| a * b).sum::<f64>());
        let (z, slope): (Vec<f64>, Vec<f64>) = logits
            .map(|l| match self.softcap.map(f64::from) {
                Some(c) => (c * (l / c).tanh(), 1.0 - (l / c).tanh().powi(2)),
                None => (l, 1.0),
            })
            .unzip();
        let lse = z.iter().map(|z| z.exp()).sum::<f64>().ln();
        (z, slope, lse)
    }
}

impl Case for LogprobCase {
    fn label(&self) -> String {
        let n = self.targets.len();
        let mut cap = self.softcap.map_or(String::new(), |c| format!(" cap={c}"));
        if self.scale != 1.0 {
            cap += &format!(" scale={}", self.scale);
        }
        if self.squares {
            cap += " squares";
        }
        let suffix = row_vec4s::suffix(self.allowed);
        format!("rows={n} V={} D={} pages={}{cap} {:?}{suffix}", self.vocab, self.width, self.pages, self.storage)
    }
    fn inputs(&self, rng: &mut Rng) -> Vec<HostTensor> {
        let rows = self.vocab / self.pages * self.width;
        // Small inputs keep every probability far from 1, where 1 − p would have few digits in any 32-bit arithmetic.
        let bound = 0.25 / (self.width as f32).sqrt();
        let x = (0..self.targets.len() * self.width).map(|_| bound * (2.0 * rng.next_f32() - 1.0)).collect();
        let mut all = vec![HostTensor::F32(x)];
        all.extend((0..self.pages).map(|_| match self.storage {
            WeightFormat::Bf16 => HostTensor::normal_bf16(rng, rows),
            _ => HostTensor::normal(rng, rows),
        }));
        all
    }
    fn forward(&self, x: &[Vec<f64>]) -> Vec<Vec<f64>> {
        let w = x[1..].concat();
        let rows = x[0].chunks(self.width).zip(&self.targets);
        let (logp, log_squares) = rows
            .map(|(x, &target)| {
                let (z, _, lse) = self.row(x, &w);
                (z[target as usize] - lse, z.iter().map(|z| (2.0 * (z - lse)).exp()).sum::<f64>().ln())
            })
            .unzip();
        if self.squares { vec![logp, log_squares] } else { vec![logp] }
    }
    fn backward(&self, x: &[Vec<f64>], d_y: &[Vec<f64>]) -> Vec<Vec<f64>> {
        let w = x[1..].concat();
        let (mut d_x, mut d_w) = (vec![0.0; x[0].len()], vec![0.0; w.len()]);
        for (r, &target) in self.targets.iter().enumerate() {
            let x = &x[0][r * self.width..][..self.width];
            let (z, slope, lse) = self.row(x, &w);
            for v in 0..self.vocab {
                let hit = f64::from(u8::from(v == target as usize));
                let d = d_y[0][r] * (hit - (z[v] - lse).exp()) * slope[v];
                for i in 0..self.width {
                    d_x[r * self.width + i] += d * f64::from(self.scale) * w[v * self.width + i];
                    d_w[v * self.width + i] += d * f64::from(self.scale) * x[i];
                }
            }
        }
        let mut all = vec![d_x];
        all.extend(d_w.chunks(w.len() / self.pages).map(<[f64]>::to_vec));
        all
    }
    fn d_y_lens(&self) -> Vec<usize> {
        vec![self.targets.len()]
    }
    fn launch(&self, rec: &mut Recording, x: &[Slot], d_y: &[Slot]) -> CaseOutputs {
        let (gpu, n, rows) = (rec.gpu(), self.targets.len(), self.vocab / self.pages);
        let d_w: Vec<Slot> = (0..self.pages).map(|_| gpu.alloc_activation(rows * self.width)).collect();
        d_w.iter().for_each(|d| rec.clear(d));
        let page = |(i, d_w)| HeadShard { first: i * rows, rows, w: &x[1 + i], d_w: Some(d_w) };
        let head = LmHead {
            pages: d_w.iter().enumerate().map(page).collect(),
            storage: self.storage,
            width: self.width,
            scale: self.scale,
            softcap: self.softcap,
            tile: self.tile,
        };
        let (targets, logp, lse, d_x) = (
            gpu.upload(&self.targets),
            gpu.alloc_activation(n),
            gpu.alloc_activation(n),
            gpu.alloc_activation(n * self.width),
        );
        let saved = LogprobSaved { x: &x[0], targets: &targets, lse: &lse };
        let log_squares = self.squares.then(|| gpu.alloc_activation(n));
        let out = LogprobOutputs { logp: &logp, lse: &lse, log_squares: log_squares.as_ref() };
        rec.with_variants(self.allowed, |rec| {
            logprob_fwd(rec, &head, n, &x[0], &targets, out);
            logprob_bwd(rec, &head, n, saved, &d_y[0], &d_x);
        });
        CaseOutputs {
            y: std::iter::once(logp).chain(log_squares).collect(),
            d_x: std::iter::once(Some(d_x)).chain(d_w.into_iter().map(Some)).collect(),
        }
    }
    fn reduction_len(&self) -> usize {
        self.vocab.max(self.targets.len())
    }
    fn is_supported(&self, caps: &Caps) -> bool {
        self.allowed.iter().all(|variant| caps.variants.contains(variant))
    }
    fn cost(&self) -> Cost {
        let (n, v, d) = (self.targets.len() as u64, self.vocab as u64, self.width as u64);
        Cost { bytes: 4 * (3 * v * d + 4 * n * d), flops: 8 * n * v * d }
    }
}
