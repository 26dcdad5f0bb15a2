//! Biases of experts: a vector per expert, added to the rows that are sent to it, and its gradients (`gate_up_proj_bias` and `down_proj_bias` of
//! `GptOssExperts` in transformers' `modeling_gpt_oss.py`).

use super::router::{ExpertChoice, RouterShape, SortedRows, router_sort};
use super::shapes::ModelShape;
use super::value::{ROW_WORKGROUP, in_values, row_lanes, width};
use super::{Case, CaseOutputs, Cost, HostTensor, Kernel};
use crate::gpu::{Caps, CountedWork, Recording, Shader, Slot, uniform_bytes_in_parts};
use crate::rng::Rng;

/// Biases of X experts, and the rows that they are added to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ExpertBiases {
    /// X, the number of experts.
    pub experts: usize,
    /// Number of rows, T·k.
    pub rows: usize,
    /// Columns of a bias. They are the first ones of a row.
    pub width: usize,
    /// Elements from a row to the next.
    pub stride: usize,
}

#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct ExpertBiasParams {
    rows: u32,
    width: u32,
    stride: u32,
    experts: u32,
}

impl ExpertBiases {
    fn params(&self) -> ExpertBiasParams {
        let [rows, width, stride, experts] = [self.rows, self.width, self.stride, self.experts].map(|n| n as u32);
        ExpertBiasParams { rows, width, stride, experts }
    }

    fn sizes(&self) -> [usize; 2] {
        [self.width, self.stride]
    }

    /// Returns the workgroups along the columns.
    fn columns(&self) -> u32 {
        (self.width / width(&self.sizes())).div_ceil(ROW_WORKGROUP) as u32
    }

    fn work(&self, flops: usize, elements: usize) -> CountedWork {
        let n = self.rows * self.width;
        CountedWork::new((flops * n) as u64, 4 * (elements * n) as u64)
    }
}

fn shader(entry: &'static str, sizes: &[usize]) -> Shader {
    in_values(Shader::new("expert_bias", entry).with("WG", ROW_WORKGROUP as f64), sizes)
}

fn shader_bwd_b(sizes: &[usize], weighted: bool) -> Shader {
    shader("expert_bias_bwd_b", sizes).with("WEIGHTED", f64::from(u8::from(weighted)))
}

fn shader_bwd_s(columns: usize, sizes: &[usize]) -> Shader {
    shader("expert_bias_bwd_s", sizes).with("LANES", row_lanes(columns, sizes) as f64)
}

/// Adds to each row of y (T·k, stride) the bias of its expert: b (X, width).
pub fn expert_bias_fwd(rec: &mut Recording, biases: &ExpertBiases, sorted: &SortedRows, b: &Slot, y: &Slot) {
    let grid = [biases.columns(), sorted.n_tiles as u32];
    let shader = shader("expert_bias_fwd", &biases.sizes());
    rec.dispatch_in_parts(&shader, &biases.params(), &[b, &sorted.tiles, y], grid, biases.work(1, 2));
}

/// Adds to `d_b` (X, width) the sums of d_y (T·k, stride) over the rows of each expert, times their weights (T, k) where these are given.
pub fn expert_bias_bwd_b(
    rec: &mut Recording,
    biases: &ExpertBiases,
    sorted: &SortedRows,
    weights: Option<&Slot>,
    d_y: &Slot,
    d_b: &Slot,
) {
    let shader = shader_bwd_b(&biases.sizes(), weights.is_some());
    // A binding that nothing reads holds d_y.
    let slots = [&sorted.offsets, &sorted.source, weights.unwrap_or(d_y), d_y, d_b];
    let grid = [biases.columns(), biases.experts as u32];
    rec.dispatch_in_parts(&shader, &biases.params(), &slots, grid, biases.work(2, 1));
}

/// Adds to the gradient of the router's weights, `d_weights` (T, k), the products of each row's bias with d_y (T·k, stride).
pub fn expert_bias_bwd_s(
    rec: &mut Recording,
    biases: &ExpertBiases,
    sorted: &SortedRows,
    choice: &ExpertChoice,
    b: &Slot,
    d_y: &Slot,
    d_weights: &Slot,
) {
    let sizes = biases.sizes();
    let groups = biases.rows.div_ceil(ROW_WORKGROUP / row_lanes(biases.width, &sizes));
    let slots = [b, &sorted.source, &choice.chosen, d_y, d_weights];
    let shader = shader_bwd_s(biases.width, &sizes);
    rec.dispatch_in_parts(&shader, &biases.params(), &slots, [groups as u32, 1], biases.work(2, 2));
}

/// Kernels of experts' biases: `expert_bias_fwd`, `expert_bias_bwd_b`, `expert_bias_bwd_s`.
pub struct ExpertBiasKernels;

impl Kernel for ExpertBiasKernels {
    fn name(&self) -> &'static str {
        "expert_bias"
    }
    fn modules(&self) -> &'static [&'static str] {
        &["expert_bias"]
    }
    fn variants(&self) -> Vec<Shader> {
        let of_size = |n: usize| {
            let sums = [false, true].map(|weighted| shader_bwd_b(&[n], weighted));
            [shader("expert_bias_fwd", &[n]), shader_bwd_s(n, &[n])].into_iter().chain(sums)
        };
        [5, 64].into_iter().flat_map(of_size).collect()
    }
    fn uniforms(&self) -> Vec<(&'static str, usize)> {
        vec![("ExpertBiasParams", uniform_bytes_in_parts::<ExpertBiasParams>())]
    }
    fn cases(&self) -> Vec<Box<dyn Case>> {
        // One expert; more experts than rows; rows on both sides of tiles; widths on both sides of a workgroup's columns.
        let shapes = [(1, 1, 1, 1), (3, 9, 2, 5), (20, 4, 3, 8), (40, 3, 2, 260), (33, 5, 2, 68), (9, 2, 2, 65)];
        let cases = shapes.into_iter().flat_map(|(t, experts, top_k, width)| {
            [false, true].map(|weighted| Box::new(BiasCase { t, experts, top_k, width, weighted }) as Box<dyn Case>)
        });
        cases.collect()
    }
    fn benches(&self, model: &ModelShape, t: usize, _: &Caps) -> Vec<Box<dyn Case>> {
        // As many experts as gpt-oss-20b has.
        vec![Box::new(BiasCase { t, experts: 32, top_k: 4, width: model.d_model, weighted: true })]
    }
}

/// Rows of a tile in the cases.
const TILE_ROWS: usize = 8;

/// Case of y[r] = s[r]·(x[r] + b[e(r)]), with s[r] the weight of the row's choice, or 1. x is already in the order of experts.
struct BiasCase {
    t: usize,
    experts: usize,
    top_k: usize,
    width: usize,
    weighted: bool,
}

impl BiasCase {
    fn rows(&self) -> usize {
        self.t * self.top_k
    }

    /// Returns the expert of each choice: every token has different ones.
    fn chosen(&self) -> Vec<usize> {
        let of = |c: usize| (c / self.top_k * 7 + c % self.top_k) % self.experts;
        (0..self.rows()).map(of).collect()
    }

    /// Returns the choice of each row, by a stable sort.
    fn source(&self) -> Vec<usize> {
        let chosen = self.chosen();
        let mut source: Vec<usize> = (0..self.rows()).collect();
        source.sort_by_key(|&c| chosen[c]);
        source
    }

    fn biases(&self) -> ExpertBiases {
        ExpertBiases { experts: self.experts, rows: self.rows(), width: self.width, stride: self.width }
    }

    fn weight(&self, x: &[Vec<f64>], choice: usize) -> f64 {
        if self.weighted { x[2][choice] } else { 1.0 }
    }
}

impl Case for BiasCase {
    fn label(&self) -> String {
        let Self { t, experts, top_k, width, weighted } = self;
        format!("T={t} X={experts} k={top_k} width={width}{}", if *weighted { " weighted" } else { "" })
    }
    /// Draws x, the biases, and the weights of the choices; the last input is the expert of each choice.
    fn inputs(&self, rng: &mut Rng) -> Vec<HostTensor> {
        let sizes = [self.rows() * self.width, self.experts * self.width, self.rows()];
        let floats = sizes.map(|n| HostTensor::normal(rng, n));
        let chosen = self.chosen().into_iter().map(|e| e as u32).collect();
        floats.into_iter().chain([HostTensor::U32(chosen)]).collect()
    }
    /// Computes the rows behind the bias, and those times their weights: the kernels have the weights in later ones, so the second is checked
    /// through its gradients alone.
    fn forward(&self, x: &[Vec<f64>]) -> Vec<Vec<f64>> {
        let (chosen, source, f) = (self.chosen(), self.source(), self.width);
        let plain = (0..self.rows() * f).map(|n| x[0][n] + x[1][chosen[source[n / f]] * f + n % f]);
        let plain: Vec<f64> = plain.collect();
        let weighted = plain.iter().enumerate().map(|(n, y)| self.weight(x, source[n / f]) * y).collect();
        vec![weighted, plain]
    }
    fn backward(&self, x: &[Vec<f64>], d_y: &[Vec<f64>]) -> Vec<Vec<f64>> {
        let (chosen, source, f) = (self.chosen(), self.source(), self.width);
        let (mut d_b, mut d_w) = (vec![0.0; x[1].len()], vec![0.0; if self.weighted { x[2].len() } else { 0 }]);
        let y = &self.forward(x)[1];
        for (n, d) in d_y[0].iter().enumerate() {
            let choice = source[n / f];
            d_b[chosen[choice] * f + n % f] += self.weight(x, choice) * d;
            d_w.get_mut(choice).into_iter().for_each(|d_w| *d_w += y[n] * d);
        }
        vec![Vec::new(), d_b, d_w]
    }
    fn d_y_lens(&self) -> Vec<usize> {
        vec![self.rows() * self.width]
    }
    fn launch(&self, rec: &mut Recording, x: &[Slot], d_y: &[Slot]) -> CaseOutputs {
        let (biases, n) = (self.biases(), self.rows());
        let [y, weighted, d_b] = [&x[0], &x[0], &x[1]].map(|like| rec.gpu().alloc_activation(like.len()));
        let d_weights = rec.gpu().alloc_activation(n);
        let shape = RouterShape { t: self.t, experts: self.experts, top_k: self.top_k, over_all: false };
        let choice = ExpertChoice { chosen: x[3].clone(), weights: x[2].clone() };
        let sorted = router_sort(rec, &shape, TILE_ROWS, &choice.chosen);
        rec.copy(&x[0], &y);
        expert_bias_fwd(rec, &biases, &sorted, &x[1], &y);
        rec.clear(&d_b);
        expert_bias_bwd_b(rec, &biases, &sorted, self.weighted.then_some(&choice.weights), &d_y[0], &d_b);
        // Products with x are expert_rows_bwd's part, which overwrites the gradient of its rows.
        let d_rows = rec.gpu().alloc_activation(x[0].len());
        rec.copy(&d_y[0], &d_rows);
        let sizes = [self.t, self.top_k, self.width];
        super::expert_rows::expert_rows_bwd(rec, sizes, &sorted, &choice, &x[0], &d_rows, &d_weights, None);
        expert_bias_bwd_s(rec, &biases, &sorted, &choice, &x[1], &d_y[0], &d_weights);
        // The weighted rows: expert_rows_bwd multiplies its rows by their weights.
        let scratch = rec.gpu().alloc_activation(n);
        rec.copy(&y, &weighted);
        if self.weighted {
            super::expert_rows::expert_rows_bwd(rec, sizes, &sorted, &choice, &x[0], &weighted, &scratch, None);
        }
        let d_w = self.weighted.then_some(d_weights);
        CaseOutputs { y: vec![weighted, y], d_x: vec![None, Some(d_b), d_w, None] }
    }
    fn reduction_len(&self) -> usize {
        self.rows().max(self.width)
    }
    fn cost(&self) -> Cost {
        let n = (self.rows() * self.width) as u64;
        Cost { bytes: 4 * 5 * n, flops: 6 * n }
    }
}
