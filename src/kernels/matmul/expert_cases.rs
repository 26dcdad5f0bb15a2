//! Cases of experts' products: all three of a linear layer whose rows belong to different experts.

use super::experts::{ExpertMatrices, ExpertRows, ExpertTiling, experts_matmul, experts_matmul_bwd_w};
use super::{LinearPass, MatmulDesc, OperandMatrix, WeightFormat};
use crate::gpu::{Caps, Recording, Slot, Variant};
use crate::kernels::router::SortedRows;
use crate::kernels::storage::PackedWeight;
use crate::kernels::{Case, CaseOutputs, Cost, HostTensor};
use crate::rng::Rng;

/// Columns of y's slot before the product's.
const COLUMN: usize = 4;

/// Case of y[r] = x[r]·W_eᵀ and its gradients, with rows in the order of their experts e. The experts' matrices are bound in two ranges.
#[derive(Debug, Clone)]
pub(super) struct ExpertCase {
    rows: usize,
    experts: usize,
    n_out: usize,
    n_in: usize,
    storage: WeightFormat,
    /// Allowed variants; none of them is the baseline.
    allowed: Vec<Variant>,
    /// Whether d_x is added to.
    adds: bool,
}

impl ExpertCase {
    /// Returns shapes on both sides of tiles and slices, with one expert, with more experts than rows, and with a width of no whole vec4s.
    pub fn all() -> Vec<Self> {
        use WeightFormat::{Bf16, F32, Int8, Nf4};
        // The tensors of experts lie at multiples of 64 words.
        let shapes = [
            (1, 1, 16, 4, F32),
            (5, 8, 16, 4, F32),
            (70, 3, 64, 7, F32),
            (33, 4, 5, 64, F32),
            (300, 4, 68, 16, F32),
            (40, 2, 132, 32, Bf16),
            (65, 5, 16, 40, Bf16),
            (50, 3, 16, 72, Int8),
            (90, 4, 12, 64, Nf4),
            (35, 2, 68, 128, Nf4),
        ];
        let variants = [None, Some(Variant::Cpu), Some(Variant::Tiles32), Some(Variant::Tiles64)];
        let cases = shapes.into_iter().flat_map(|shape| variants.map(|variant| Self::new(shape, variant)));
        // Sizes of tiles differ in no format's reading, and a width of no whole vec4s runs the baseline.
        let is_own = |case: &Self| match case.allowed.first() {
            None => true,
            Some(Variant::Tiles64) => case.storage == F32 && case.n_in.is_multiple_of(4),
            Some(_) => case.n_in.is_multiple_of(4),
        };
        cases.filter(is_own).collect()
    }

    /// Returns the cases that check a variant at start-up.
    pub fn of_variant(variant: Variant) -> Vec<Self> {
        let is_of = |case: &Self| case.allowed == [variant] && case.rows < 100;
        Self::all().into_iter().filter(is_of).collect()
    }

    /// Returns the products of Qwen3-30B-A3B's experts with as many rows as a token has experts, in the formats of a device.
    pub fn benches(t: usize, caps: &Caps) -> impl Iterator<Item = Self> + use<> {
        let allowed = caps.variants.clone();
        let shape = (8 * t.min(256), 16, 768, 2048);
        [WeightFormat::Bf16, WeightFormat::Nf4].into_iter().map(move |storage| {
            let (rows, experts, n_out, n_in) = shape;
            Self { rows, experts, n_out, n_in, storage, allowed: allowed.clone(), adds: false }
        })
    }

    fn new(
        (rows, experts, n_out, n_in, storage): (usize, usize, usize, usize, WeightFormat),
        v: Option<Variant>,
    ) -> Self {
        let (allowed, adds) = (v.into_iter().collect(), rows % 2 == 1);
        Self { rows, experts, n_out, n_in, storage, allowed, adds }
    }

    /// Returns the first row of each expert, and the number of rows. The second expert has no rows where there are others.
    fn offsets(&self) -> Vec<usize> {
        let mut rng = Rng::new((self.rows * self.experts) as u64, 77);
        let mut experts: Vec<usize> = (0..self.rows)
            .map(|_| match rng.below(self.experts as u32) as usize {
                1 if self.experts > 2 => 0,
                e => e,
            })
            .collect();
        experts.sort_unstable();
        (0..=self.experts).map(|e| experts.partition_point(|&own| own < e)).collect()
    }

    /// Returns the expert of each row.
    fn expert_of_rows(&self) -> Vec<usize> {
        let offsets = self.offsets();
        (0..self.experts).flat_map(|e| vec![e; offsets[e + 1] - offsets[e]]).collect()
    }

    fn sorted(&self, rec: &Recording, tile_rows: usize) -> SortedRows {
        let (gpu, offsets) = (rec.gpu(), self.offsets());
        let mut tiles = Vec::new();
        for e in 0..self.experts {
            let own = (offsets[e]..offsets[e + 1]).step_by(tile_rows);
            tiles.extend(own.flat_map(|row| [e, row, offsets[e + 1].min(row + tile_rows), 0].map(|n| n as u32)));
        }
        // Tiles without rows come last.
        tiles.resize(tiles.len() + 8, 0);
        let none = gpu.alloc_activation(1);
        SortedRows {
            offsets: gpu.upload(&offsets.iter().map(|&n| n as u32).collect::<Vec<_>>()),
            n_tiles: tiles.len() / 4,
            tiles: gpu.upload(&tiles),
            tile_rows,
            row_of: none.clone(),
            source: none,
        }
    }

    fn stride_words(&self, storage: WeightFormat) -> usize {
        storage.words(self.n_out, self.n_in).next_multiple_of(64)
    }

    /// Divides a slot of all matrices into those of the first expert, and those of the others.
    fn ranges(&self, slot: &Slot, storage: WeightFormat) -> Vec<(usize, usize, Slot)> {
        let stride = self.stride_words(storage);
        let range = |first: usize, n: usize| (first, n, slot.slice(first * stride, n * stride));
        if self.experts == 1 { vec![range(0, 1)] } else { vec![range(0, 1), range(1, self.experts - 1)] }
    }

    fn product(&self, orientation: LinearPass, storage: WeightFormat, accumulate: bool) -> MatmulDesc {
        let (m, n, k) = match orientation {
            LinearPass::Forward => (self.rows, self.n_out, self.n_in),
            LinearPass::BackwardX => (self.rows, self.n_in, self.n_out),
            LinearPass::BackwardW => (self.n_out, self.n_in, self.rows),
        };
        MatmulDesc { orientation, storage, m, n, k, alpha: 1.0, accumulate }
    }
}

impl Case for ExpertCase {
    fn label(&self) -> String {
        let Self { rows, experts, n_out, n_in, storage, .. } = self;
        let variant = self.allowed.first().map_or("baseline", |v| v.name());
        format!("experts rows={rows} X={experts} out={n_out} in={n_in} {storage:?} {variant}")
    }
    fn inputs(&self, rng: &mut Rng) -> Vec<HostTensor> {
        let (mut values, mut words) = (Vec::new(), Vec::new());
        for _ in 0..self.experts {
            let w = (0..self.n_out * self.n_in).map(|_| rng.normal()).collect();
            let own = PackedWeight::new(self.storage, w, self.n_in).part(0, self.n_out, self.n_in);
            values.extend(self.storage.unpack(&own, self.n_out, self.n_in));
            words.extend(own);
            words.resize(words.len().next_multiple_of(self.stride_words(self.storage)), 0);
        }
        vec![HostTensor::normal(rng, self.rows * self.n_in), HostTensor::Packed { values, words }]
    }
    fn forward(&self, x: &[Vec<f64>]) -> Vec<Vec<f64>> {
        let (width, mut y) = (self.n_out + COLUMN, Vec::new());
        for (r, e) in self.expert_of_rows().into_iter().enumerate() {
            y.extend([0.0; COLUMN]);
            let row = &x[0][r * self.n_in..][..self.n_in];
            let w = x[1][e * self.n_out * self.n_in..].chunks(self.n_in).take(self.n_out);
            y.extend(w.map(|w| row.iter().zip(w).map(|(a, b)| a * b).sum::<f64>()));
        }
        assert_eq!(y.len(), self.rows * width);
        vec![y]
    }
    fn backward(&self, x: &[Vec<f64>], d_y: &[Vec<f64>]) -> Vec<Vec<f64>> {
        let width = self.n_out + COLUMN;
        let (mut d_x, mut d_w) = (vec![0.0; x[0].len()], vec![0.0; x[1].len()]);
        for (r, e) in self.expert_of_rows().into_iter().enumerate() {
            for n in 0..self.n_out {
                let d = d_y[0][r * width + COLUMN + n];
                for k in 0..self.n_in {
                    let at = (e * self.n_out + n) * self.n_in + k;
                    d_x[r * self.n_in + k] += d * x[1][at];
                    d_w[at] += d * x[0][r * self.n_in + k];
                }
            }
        }
        vec![d_x, d_w]
    }
    fn d_y_lens(&self) -> Vec<usize> {
        vec![self.rows * (self.n_out + COLUMN)]
    }
    fn launch(&self, rec: &mut Recording, x: &[Slot], d_y: &[Slot]) -> CaseOutputs {
        let (gpu, width) = (rec.gpu(), self.n_out + COLUMN);
        let widths = [self.n_in, self.n_out, width];
        let tiling = ExpertTiling::new(gpu.caps(), &self.allowed, self.rows, self.experts, &widths);
        let sorted = self.sorted(rec, tiling.tile_rows());
        let rows = ExpertRows { sorted: &sorted, tiling, rows: self.rows };
        let y = gpu.alloc_activation(self.rows * width);
        let d_x = gpu.alloc_activation(self.rows * self.n_in);
        let d_w = gpu.alloc_activation(self.experts * self.stride_words(WeightFormat::F32));
        [&y, &d_x, &d_w].iter().for_each(|slot| rec.clear(slot));
        let input = OperandMatrix::new(&x[0], self.n_in);
        let d_out = OperandMatrix::new(&d_y[0], width).columns_from(COLUMN);
        for (first, n, slot) in self.ranges(&x[1], self.storage) {
            let w = ExpertMatrices { first, n, slot: &slot, stride_words: self.stride_words(self.storage) };
            let p = self.product(LinearPass::Forward, self.storage, false);
            let out = OperandMatrix::new(&y, width).columns_from(COLUMN);
            experts_matmul(rec, &p, &rows, input, (&w, [0, self.n_in]), out);
            let p = self.product(LinearPass::BackwardX, self.storage, self.adds);
            experts_matmul(rec, &p, &rows, d_out, (&w, [0, self.n_in]), OperandMatrix::new(&d_x, self.n_in));
        }
        for (first, n, slot) in self.ranges(&d_w, WeightFormat::F32) {
            let c = ExpertMatrices { first, n, slot: &slot, stride_words: self.stride_words(WeightFormat::F32) };
            let p = self.product(LinearPass::BackwardW, WeightFormat::F32, true);
            experts_matmul_bwd_w(rec, &p, &rows, d_out, input, (&c, [0, self.n_in]));
        }
        CaseOutputs { y: vec![y], d_x: vec![Some(d_x), Some(d_w)] }
    }
    fn weight_format(&self) -> Option<WeightFormat> {
        Some(self.storage)
    }
    fn reduction_len(&self) -> usize {
        self.n_in.max(self.n_out).max(self.rows)
    }
    fn is_supported(&self, caps: &Caps) -> bool {
        self.allowed.iter().all(|variant| caps.variants.contains(variant))
    }
    fn cost(&self) -> Cost {
        let Self { rows, experts, n_out, n_in, storage, .. } = *self;
        let words = 3 * rows * (n_in + n_out) + experts * (2 * storage.words(n_out, n_in) + n_out * n_in);
        Cost { bytes: 4 * words as u64, flops: 6 * (rows * n_out * n_in) as u64 }
    }
}
