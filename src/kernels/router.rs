//! Router of a mixture of experts: each token's k experts with their weights, and all choices sorted by expert.
//!
//! A router's weights are a softmax over the chosen logits, or over all of them. The first is gpt-oss's rule, and also Qwen3-MoE's where
//! `norm_topk_prob` is on: a softmax over all experts, divided by its sum over the chosen ones, is the softmax over the chosen ones.

use super::shapes::ModelShape;
use super::{Case, CaseOutputs, Cost, HostTensor, Kernel};
use crate::gpu::{Caps, Recording, Shader, Slot};
use crate::rng::Rng;

/// Invocations per workgroup: the shader's WG.
const WORKGROUP: usize = 64;
/// Choices per chunk of the sort: the shader's CHUNK.
const CHUNK: usize = 256;
/// Largest number of experts: the shader's MOST_EXPERTS.
pub const MOST_EXPERTS: usize = 1024;

/// Sizes of a router.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RouterShape {
    /// T, the number of tokens.
    pub t: usize,
    /// X, the number of experts.
    pub experts: usize,
    /// k, the number of experts that a token is sent to.
    pub top_k: usize,
    /// Whether weights are a softmax over all experts, and so add up to less than 1, instead of one over the chosen experts.
    pub over_all: bool,
}

impl RouterShape {
    /// Returns the number of choices, T·k: the number of rows that all experts together compute.
    pub fn rows(&self) -> usize {
        self.t * self.top_k
    }

    fn chunks(&self) -> usize {
        self.rows().div_ceil(CHUNK)
    }

    /// Returns the largest number of tiles of `tile_rows` rows: each expert with rows may have one tile that is not full.
    fn most_tiles(&self, tile_rows: usize) -> usize {
        let rows = self.rows();
        (rows + self.experts.min(rows) * (tile_rows - 1)) / tile_rows
    }

    fn params(&self, tile_rows: usize) -> RouterParams {
        RouterParams {
            t: self.t as u32,
            experts: self.experts as u32,
            top_k: self.top_k as u32,
            n: self.rows() as u32,
            chunks: self.chunks() as u32,
            tile_rows: tile_rows as u32,
            n_tiles: self.most_tiles(tile_rows) as u32,
            pad: 0,
        }
    }
}

#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct RouterParams {
    t: u32,
    experts: u32,
    top_k: u32,
    n: u32,
    chunks: u32,
    tile_rows: u32,
    n_tiles: u32,
    pad: u32,
}

fn shader(entry: &'static str) -> Shader {
    Shader::new("router", entry)
}

fn softmax_shader(entry: &'static str, over_all: bool) -> Shader {
    shader(entry).with("OVER_ALL", f64::from(u8::from(over_all)))
}

/// Experts of each token: chosen (T, k) u32, and their weights (T, k).
#[derive(Debug, Clone)]
pub struct ExpertChoice {
    /// Chosen experts, that of the largest logit first: (T, k) u32.
    pub chosen: Slot,
    /// Their weights: (T, k).
    pub weights: Slot,
}

/// Rows in the order of experts: row `row_of[c]` belongs to choice c = t·k + j.
#[derive(Debug, Clone)]
pub struct SortedRows {
    /// First row of each expert, and the number of rows: (X + 1) u32.
    pub offsets: Slot,
    /// Tiles of at most `tile_rows` rows of one expert, (expert, first row, end row, 0): (n_tiles, 4) u32.
    pub tiles: Slot,
    /// Number of tiles; the last ones may have no rows.
    pub n_tiles: usize,
    /// Largest number of rows of a tile.
    pub tile_rows: usize,
    /// Row of each choice: (T, k) u32.
    pub row_of: Slot,
    /// Choice of each row: (T·k) u32.
    pub source: Slot,
}

/// Chooses each token's experts from the logits (T, X), and computes their weights. Of equal logits, the lowest expert is chosen.
pub fn router_fwd(rec: &mut Recording, shape: &RouterShape, logits: &Slot) -> ExpertChoice {
    let [chosen, weights] = [(); 2].map(|()| rec.gpu().alloc_activation(shape.rows()));
    let flops = (shape.t * shape.experts * shape.top_k) as u64;
    let slots = [logits, &chosen, &weights];
    let shader = softmax_shader("router_fwd", shape.over_all);
    rec.dispatch(&shader, &shape.params(1), &slots, [shape.t.div_ceil(WORKGROUP) as u32, 1, 1], flops);
    ExpertChoice { chosen, weights }
}

/// Computes d_logits (T, X) from the gradient of the weights (T, k); all of d_logits is written.
pub fn router_bwd(
    rec: &mut Recording,
    shape: &RouterShape,
    logits: &Slot,
    choice: &ExpertChoice,
    d_weights: &Slot,
    d_logits: &Slot,
) {
    let flops = (3 * shape.t * shape.experts) as u64;
    let slots = [logits, &choice.chosen, &choice.weights, d_weights, d_logits];
    let shader = softmax_shader("router_bwd", shape.over_all);
    rec.dispatch(&shader, &shape.params(1), &slots, [shape.t.div_ceil(WORKGROUP) as u32, 1, 1], flops);
}

/// Sorts all choices by expert, in tiles of `tile_rows` rows, without the host.
pub fn router_sort(rec: &mut Recording, shape: &RouterShape, tile_rows: usize, chosen: &Slot) -> SortedRows {
    assert!(shape.experts <= MOST_EXPERTS, "{shape:?}: too many experts");
    let (gpu, n_tiles, chunks) = (rec.gpu(), shape.most_tiles(tile_rows), shape.chunks());
    let counts = gpu.alloc_activation(chunks * shape.experts);
    let offsets = gpu.alloc_activation(shape.experts + 1);
    let tiles = gpu.alloc_activation(4 * n_tiles);
    let [row_of, source] = [(); 2].map(|()| gpu.alloc_activation(shape.rows()));
    let (params, of_chunks) = (shape.params(tile_rows), [chunks as u32, 1, 1]);
    rec.dispatch(&shader("router_count"), &params, &[chosen, &counts], of_chunks, 0);
    rec.dispatch(&shader("router_offsets"), &params, &[&offsets, &counts, &tiles], [1, 1, 1], 0);
    rec.dispatch(&shader("router_rows"), &params, &[chosen, &counts, &offsets, &row_of, &source], of_chunks, 0);
    SortedRows { offsets, tiles, n_tiles, tile_rows, row_of, source }
}

/// Router kernels: `router_fwd`, `router_bwd`, and the sort by `router_count`, `router_offsets` and `router_rows`.
pub struct RouterKernels;

impl Kernel for RouterKernels {
    fn name(&self) -> &'static str {
        "router"
    }
    fn modules(&self) -> &'static [&'static str] {
        &["router"]
    }
    fn variants(&self) -> Vec<Shader> {
        let softmaxes = ["router_fwd", "router_bwd"].into_iter();
        let softmaxes = softmaxes.flat_map(|entry| [false, true].map(|over_all| softmax_shader(entry, over_all)));
        softmaxes.chain(["router_count", "router_offsets", "router_rows"].map(shader)).collect()
    }
    fn uniforms(&self) -> Vec<(&'static str, usize)> {
        vec![("RouterParams", size_of::<RouterParams>())]
    }
    fn cases(&self) -> Vec<Box<dyn Case>> {
        // Both sides of a chunk's choices and of a workgroup's tokens and experts; more experts than choices; one expert; all of them.
        let shapes = [
            (1, 4, 2, 8),
            (5, 8, 8, 4),
            (64, 7, 3, 16),
            (65, 64, 4, 8),
            (128, 65, 2, 32),
            (129, 130, 2, 64),
            (300, 1, 1, 32),
            (77, 128, 8, 8),
        ];
        let cases = shapes.into_iter().flat_map(|(t, experts, top_k, tile_rows)| {
            [(false, false), (true, false), (false, true)].map(|(over_all, ties)| {
                let shape = RouterShape { t, experts, top_k, over_all };
                Box::new(RouterCase { shape, tile_rows, ties }) as Box<dyn Case>
            })
        });
        cases.collect()
    }
    fn benches(&self, _: &ModelShape, t: usize, _: &Caps) -> Vec<Box<dyn Case>> {
        // Qwen3-30B-A3B's router.
        let shape = RouterShape { t, experts: 128, top_k: 8, over_all: false };
        vec![Box::new(RouterCase { shape, tile_rows: 32, ties: false })]
    }
}

/// Case of choosing and sorting.
struct RouterCase {
    shape: RouterShape,
    tile_rows: usize,
    /// Whether many logits are equal. Such a choice has no derivative.
    ties: bool,
}

impl RouterCase {
    /// Returns a token's experts, sorted by logit, and their weights.
    fn choose(&self, logits: &[f64]) -> (Vec<usize>, Vec<f64>) {
        let RouterShape { experts, top_k, over_all, .. } = self.shape;
        let mut order: Vec<usize> = (0..experts).collect();
        order.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]));
        let top = logits[order[0]];
        let exp = |e: &usize| (logits[*e] - top).exp();
        let sum: f64 = order.iter().take(if over_all { experts } else { top_k }).map(exp).sum();
        order.truncate(top_k);
        let weights = order.iter().map(|e| exp(e) / sum).collect();
        (order, weights)
    }
}

impl Case for RouterCase {
    fn label(&self) -> String {
        let RouterShape { t, experts, top_k, over_all } = self.shape;
        let softmax = if over_all { " over all" } else { "" };
        let ties = if self.ties { " ties" } else { "" };
        format!("T={t} X={experts} k={top_k} tiles of {}{softmax}{ties}", self.tile_rows)
    }
    fn inputs(&self, rng: &mut Rng) -> Vec<HostTensor> {
        let RouterShape { t, experts, .. } = self.shape;
        if self.ties {
            return vec![HostTensor::F32((0..t * experts).map(|_| rng.below(3) as f32).collect())];
        }
        // A token's logits are so far apart that finite differences change no choice.
        let mut logits = Vec::with_capacity(t * experts);
        for _ in 0..t {
            let mut own: Vec<f32> =
                (0..experts).map(|e| (e as f32 + 0.5 * rng.next_f32()) * 4.0 / experts as f32).collect();
            (1..experts).rev().for_each(|i| own.swap(i, rng.below(i as u32 + 1) as usize));
            logits.extend(own);
        }
        vec![HostTensor::F32(logits)]
    }
    /// Computes the choice as `Qwen3MoeTopKRouter.forward` and `GptOssTopKRouter.forward` of transformers 5.24.0 do (modeling_qwen3_moe.py,
    /// modeling_gpt_oss.py), and the order of a stable sort.
    fn forward(&self, x: &[Vec<f64>]) -> Vec<Vec<f64>> {
        let RouterShape { experts, .. } = self.shape;
        let (mut chosen, mut weights) = (Vec::new(), Vec::new());
        for logits in x[0].chunks(experts) {
            let (order, own) = self.choose(logits);
            chosen.extend(order);
            weights.extend(own);
        }
        let mut source: Vec<usize> = (0..chosen.len()).collect();
        source.sort_by_key(|&c| chosen[c]);
        let mut row_of = vec![0.0; chosen.len()];
        source.iter().enumerate().for_each(|(row, &c)| row_of[c] = row as f64);
        let first = |e: usize| source.partition_point(|&c| chosen[c] < e);
        let mut tiles = Vec::new();
        for e in 0..experts {
            let end = first(e + 1);
            let own = (first(e)..end).step_by(self.tile_rows);
            tiles.extend(own.flat_map(|row| [e, row, end.min(row + self.tile_rows), 0]));
        }
        tiles.resize(4 * self.shape.most_tiles(self.tile_rows), 0);
        let floats = |all: Vec<usize>| all.into_iter().map(|n| n as f64).collect::<Vec<_>>();
        let offsets = (0..=experts).map(first).collect();
        vec![weights, floats(chosen), floats(offsets), floats(tiles), row_of, floats(source)]
    }
    fn backward(&self, x: &[Vec<f64>], d_y: &[Vec<f64>]) -> Vec<Vec<f64>> {
        if self.ties {
            return Vec::new();
        }
        let RouterShape { experts, top_k, over_all, .. } = self.shape;
        let mut d_logits = Vec::new();
        for (logits, d_w) in x[0].chunks(experts).zip(d_y[0].chunks(top_k)) {
            let (chosen, weights) = self.choose(logits);
            let pull: f64 = weights.iter().zip(d_w).map(|(w, d)| w * d).sum();
            let probability = |e: usize| match chosen.iter().position(|&c| c == e) {
                Some(j) => weights[j],
                None if over_all => (logits[e] - logits[chosen[0]]).exp() * weights[0],
                None => 0.0,
            };
            let mut own: Vec<f64> = (0..experts).map(|e| -probability(e) * pull).collect();
            chosen.iter().zip(weights.iter().zip(d_w)).for_each(|(&e, (w, d))| own[e] += w * d);
            d_logits.extend(own);
        }
        vec![d_logits]
    }
    fn d_y_lens(&self) -> Vec<usize> {
        if self.ties { Vec::new() } else { vec![self.shape.rows()] }
    }
    fn exact(&self, output: usize) -> bool {
        output > 0
    }
    fn launch(&self, rec: &mut Recording, x: &[Slot], d_y: &[Slot]) -> CaseOutputs {
        let choice = router_fwd(rec, &self.shape, &x[0]);
        let sorted = router_sort(rec, &self.shape, self.tile_rows, &choice.chosen);
        let d_logits = rec.gpu().alloc_activation(x[0].len());
        let d_weights = d_y.first().filter(|_| !self.ties);
        d_weights.iter().for_each(|d| router_bwd(rec, &self.shape, &x[0], &choice, d, &d_logits));
        let SortedRows { offsets, tiles, row_of, source, .. } = sorted;
        CaseOutputs {
            y: vec![choice.weights, choice.chosen, offsets, tiles, row_of, source],
            d_x: vec![d_weights.map(|_| d_logits)],
        }
    }
    fn reduction_len(&self) -> usize {
        self.shape.experts
    }
    fn cost(&self) -> Cost {
        let RouterShape { t, experts, top_k, .. } = self.shape;
        Cost { bytes: (4 * (3 * t * experts + 10 * t * top_k)) as u64, flops: (t * experts * (top_k + 3)) as u64 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Any division of the rows among experts needs at most as many tiles as there are.
    #[test]
    fn there_are_enough_tiles() {
        for (t, experts, top_k, tile_rows) in [(1, 128, 8, 64), (100, 4, 2, 8), (33, 5, 5, 32), (7, 9, 1, 1)] {
            let shape = RouterShape { t, experts, top_k, over_all: false };
            // As many experts as possible have one row more than full tiles have.
            let mut left = shape.rows();
            let ones = experts.min(left);
            left -= ones;
            let needed = ones + left / tile_rows;
            assert!(shape.most_tiles(tile_rows) >= needed, "{shape:?}");
            assert!(shape.most_tiles(tile_rows) <= shape.rows().div_ceil(tile_rows) + ones, "{shape:?}");
        }
    }
}
