//! Matrix products C = alpha·(A·B + A2·B2) (+ C) + bias + residual in the three orientations of a linear layer. The second pair, bias and
//! residual are optional; weights have any [`WeightFormat`].
//!
//! Five implementations, each in a file of its own: the baseline, for any shape (`matmul.wgsl`); tiles of vec4s, for GPUs
//! (`matmul_tiles.wgsl`); for CPU adapters without and with subgroups (`matmul_cpu.wgsl`, `matmul_lanes.wgsl`); cooperative matrices, for
//! precisions below the highest (`matmul_coop.wgsl`). A product runs in the fastest implementation that the device supports and the
//! product's alignment allows.

mod cases;
mod coop;
mod cpu;
mod expert_cases;
mod experts;
mod lanes;
mod operands;
mod tiles;

pub use coop::{row_absmax, scales_operands, weight_absmax};
pub use experts::{ExpertMatrices, ExpertRows, ExpertTiling, experts_matmul, experts_matmul_bwd_w};
pub use operands::{Epilogue, LowRank, MatmulOperands, OperandMatrix};

use cases::{AccumulateCase, EpilogueCase, LinearCase, LowRankCase, ProductCase};
use coop::CoopMatmul;
use cpu::CpuMatmul;
use expert_cases::ExpertCase;
use operands::{MatmulParams, with_all, with_second};
use tiles::TiledMatmul;

use super::shapes::ModelShape;
use super::storage::WeightFormat;
use super::tunable::TunableProduct;
use super::{Case, Kernel};
use crate::gpu::{Caps, MatmulPrecision, Recording, Shader, Variant, uniform_bytes_in_parts};

/// Product of a linear layer: the output, or one of the two gradients.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LinearPass {
    /// y (M, N) = x (M, K) · W (N, K)ᵀ.
    Forward,
    /// d_x (M, N) = d_y (M, K) · W (K, N).
    BackwardX,
    /// d_W (M, N) = d_y (K, M)ᵀ · x (K, N).
    BackwardW,
}

/// Description of a matrix product.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct MatmulDesc {
    /// Which product of a linear layer this is; decides how A and B are stored.
    pub orientation: LinearPass,
    /// Storage format of B.
    pub storage: WeightFormat,
    /// Rows of C.
    pub m: usize,
    /// Columns of C.
    pub n: usize,
    /// Terms of each sum.
    pub k: usize,
    /// Factor on the product.
    pub alpha: f32,
    /// Whether to add to C instead of replacing it.
    pub accumulate: bool,
}

impl MatmulDesc {
    /// Returns the name of the class of similar products: sizes are rounded to powers of two.
    fn class(&self) -> String {
        let near = |n: usize| 1usize << (n as f64).log2().round() as u32;
        let (o, s) = (self.orientation, self.storage);
        format!("{o:?} {s:?} {}x{}x{}", near(self.m), near(self.n), near(self.k))
    }
    /// Returns the columns of B as stored.
    fn stored_columns(&self) -> usize {
        if self.orientation == LinearPass::Forward { self.k } else { self.n }
    }
}

/// Sets a shader's overrides for how A and B are stored.
fn oriented(shader: Shader, orientation: LinearPass) -> Shader {
    let a = f64::from(u8::from(orientation == LinearPass::BackwardW));
    let b = f64::from(u8::from(orientation == LinearPass::Forward));
    shader.with("A_TRANSPOSED", a).with("B_TRANSPOSED", b)
}

fn baseline(orientation: LinearPass, storage: WeightFormat) -> Shader {
    let shader = oriented(Shader::new("matmul", "matmul"), orientation);
    storage.select(if storage.is_quantised() { shader.with("B_VEC4S", 1.0) } else { shader })
}

/// Computes C = alpha·A·B (+ C). Does nothing when M, N or K is 0 (C is not cleared).
pub fn matmul(rec: &mut Recording, p: &MatmulDesc, a: OperandMatrix, b: OperandMatrix, c: OperandMatrix) {
    matmul_with(rec, p, MatmulOperands::new(a, b, c));
}

/// Computes C = alpha·(A·B + A2·B2) (+ C) + bias + residual. The second pair is fused into the first pair's pass wherever that is possible;
/// bias and residual are always added in the last pass. Where alpha is a power of two, the result is bit-identical to that of separate
/// passes. Otherwise a device may fuse a product and a sum, and round once.
pub fn matmul_with(rec: &mut Recording, p: &MatmulDesc, o: MatmulOperands) {
    let caps = rec.gpu().caps();
    launch(rec, p, o, &caps.variants, caps.matmul_precision);
}

/// Computes a product like [`matmul_with`] at the highest precision, whatever the device's is.
pub fn matmul_highest(rec: &mut Recording, p: &MatmulDesc, o: MatmulOperands) {
    launch(rec, p, o, &rec.gpu().caps().variants, MatmulPrecision::Highest);
}

fn launch(rec: &mut Recording, p: &MatmulDesc, o: MatmulOperands, allowed: &[Variant], precision: MatmulPrecision) {
    if p.m * p.n * p.k == 0 {
        return;
    }
    let coop = CoopMatmul::choose(p, [o.a, o.b], rec.gpu().caps(), allowed, precision);
    let most_columns = if coop.is_some() { coop::MOST_RANK } else { usize::MAX };
    if let Some(second) = o.second.filter(|s| !s.can_fuse(p) || s.k > most_columns) {
        launch(rec, p, MatmulOperands { second: None, epilogue: Epilogue::default(), ..o }, allowed, precision);
        let p = MatmulDesc { storage: second.storage, k: second.k, accumulate: true, ..*p };
        return launch(rec, &p, MatmulOperands { a: second.a, b: second.b, second: None, ..o }, allowed, precision);
    }
    if let Some(coop) = coop {
        return coop.launch(rec, p, o);
    }
    let (shader, grid) = match choose(rec.gpu().caps(), p, [o.a, o.b, o.c], allowed) {
        MatmulImpl::Lanes => return lanes::launch(rec, p, o),
        MatmulImpl::Cpu(cpu) => return cpu::launch(rec, cpu, p, o),
        MatmulImpl::Tiles(tiles) => {
            let workgroup_bytes = rec.gpu().caps().workgroup_bytes;
            (tiles.shader(p.orientation, p.storage, workgroup_bytes), tiles.grid(p))
        }
        MatmulImpl::Baseline => {
            (baseline(p.orientation, p.storage), [p.n.div_ceil(64) as u32, p.m.div_ceil(64) as u32])
        }
    };
    o.dispatch(rec, &shader, p, grid);
}

/// Implementation that supports a product.
#[derive(Debug, Clone, Copy)]
enum MatmulImpl {
    Lanes,
    Cpu(CpuMatmul),
    Tiles(TiledMatmul),
    Baseline,
}

impl MatmulImpl {
    fn variant(self) -> Option<Variant> {
        match self {
            Self::Lanes => Some(Variant::Lanes),
            Self::Cpu(_) => Some(Variant::Cpu),
            Self::Tiles(tiles) => Some(tiles.variant),
            Self::Baseline => None,
        }
    }
}

/// Returns the fastest implementation by the device's tuning table, or the default choice where the table has none.
fn choose(caps: &Caps, p: &MatmulDesc, matrices: [OperandMatrix; 3], allowed: &[Variant]) -> MatmulImpl {
    let ways = candidates(caps, p, matrices, allowed);
    let variants: Vec<Option<Variant>> = ways.iter().map(|w| w.variant()).collect();
    let fastest = caps.tuning.fastest(&p.class(), &variants);
    ways.into_iter().find(|w| fastest.is_none_or(|f| w.variant() == f)).unwrap_or(MatmulImpl::Baseline)
}

/// Returns all implementations that support a product, the default choice first.
fn candidates(caps: &Caps, p: &MatmulDesc, matrices: [OperandMatrix; 3], allowed: &[Variant]) -> Vec<MatmulImpl> {
    let b = matrices[1];
    let lanes = lanes::fits(p, b, caps, allowed).then_some(MatmulImpl::Lanes);
    let tiles = TiledMatmul::candidates(p, matrices, allowed).into_iter().map(MatmulImpl::Tiles);
    lanes
        .into_iter()
        .chain(CpuMatmul::choose(p, b, allowed).map(MatmulImpl::Cpu))
        .chain(tiles)
        .chain([MatmulImpl::Baseline])
        .collect()
}

/// Returns the products of a layer, each in every implementation that supports it, for tuning.
pub(super) fn tunable(model: &ModelShape, t: usize, caps: &Caps) -> Vec<TunableProduct> {
    let tunable = |case: ProductCase| {
        let variants = std::iter::once(None).chain(caps.variants.iter().copied().map(Some));
        let alone = variants.map(|v| (v, ProductCase { allowed: v.into_iter().collect(), ..case.clone() }));
        let serves = |v: Option<Variant>, c: &ProductCase| c.ways(caps).first().is_some_and(|w| w.variant() == v);
        let guess = case.ways(caps).first().and_then(|w| w.variant());
        let mut cases: Vec<(_, Box<dyn Case>)> = Vec::new();
        alone.filter(|(v, c)| serves(*v, c)).for_each(|(v, c)| cases.push((v, Box::new(c))));
        cases.sort_by_key(|c| c.0 != guess);
        TunableProduct { class: case.product().class(), cases }
    };
    linears(model, t, &caps.variants, MatmulPrecision::Highest).into_iter().map(tunable).collect()
}

/// Returns the products of a layer's linear modules, in every storage format.
fn linears(model: &ModelShape, t: usize, allowed: &[Variant], precision: MatmulPrecision) -> Vec<ProductCase> {
    let (q, kv) = (model.n_heads * model.head_dim, model.n_kv_heads * model.head_dim);
    let mut linears =
        vec![(q, model.d_model), (kv, model.d_model), (model.d_ff, model.d_model), (model.d_model, model.d_ff)];
    linears.dedup();
    let mut all = Vec::new();
    for (n_out, n_in) in linears {
        let mut push = |orientation, storage| {
            all.push(ProductCase { orientation, storage, t, n_out, n_in, allowed: allowed.to_vec(), precision });
        };
        for storage in WeightFormat::ALL.into_iter().filter(|s| n_in.is_multiple_of(s.columns())) {
            push(LinearPass::Forward, storage);
            push(LinearPass::BackwardX, storage);
        }
        push(LinearPass::BackwardW, WeightFormat::F32);
    }
    all
}

/// Returns the case of C (M, N) = A (M, K) · B (K, N), for timing.
pub fn product(m: usize, n: usize, k: usize, caps: &Caps) -> Box<dyn Case> {
    let (orientation, storage) = (LinearPass::BackwardX, WeightFormat::F32);
    let (allowed, precision) = (caps.variants.clone(), caps.matmul_precision);
    Box::new(ProductCase { orientation, storage, t: m, n_out: k, n_in: n, allowed, precision })
}

/// Variants that have matmul kernels of their own.
const VARIANTS: [Variant; 7] = [
    Variant::Tiles32,
    Variant::Tiles64,
    Variant::Tiles64Wide,
    Variant::Tiles128,
    Variant::Tiles128Wide,
    Variant::Cpu,
    Variant::Lanes,
];

/// Tells whether [`MatmulKernels`]' cases have a variant with a format. Wide tiles differ from the others in how blocks are shared out, not in how
/// a format is decoded, and a CPU's driver takes ten seconds to compile one.
fn is_tested(variant: Option<Variant>, storage: WeightFormat) -> bool {
    let is_wide = matches!(variant, Some(Variant::Tiles64Wide | Variant::Tiles128Wide));
    !is_wide || matches!(storage, WeightFormat::F32 | WeightFormat::Nf4)
}

/// Matmul kernels: `matmul`, its variants for GPUs and CPUs, and the one on cooperative matrices.
pub struct MatmulKernels;

/// Returns the products whose B may have a storage format. In d_W, B is an activation, which is never quantised.
fn orientations(storage: WeightFormat) -> &'static [LinearPass] {
    let all = &[LinearPass::Forward, LinearPass::BackwardX, LinearPass::BackwardW];
    if storage.is_quantised() { &all[..2] } else { all }
}

impl Kernel for MatmulKernels {
    fn name(&self) -> &'static str {
        "matmul"
    }
    fn modules(&self) -> &'static [&'static str] {
        &["matmul", "matmul_coop", "matmul_cpu", "matmul_lanes", "matmul_absmax", "matmul_tiles"]
    }
    fn variants(&self) -> Vec<Shader> {
        let mut all = Vec::new();
        for storage in WeightFormat::ALL {
            for &o in orientations(storage) {
                let mut of_one_pair = vec![baseline(o, storage)];
                of_one_pair.extend(TiledMatmul::shaders(o, storage));
                for shader in of_one_pair {
                    match o {
                        LinearPass::Forward => all.extend(with_all(shader)),
                        LinearPass::BackwardX => all.extend([with_second(shader.clone()), shader]),
                        LinearPass::BackwardW => all.push(shader),
                    }
                }
                all.extend(CoopMatmul::shaders(o, storage));
            }
            all.extend(cpu::shaders(storage));
            all.extend(ExpertTiling::shaders(storage));
        }
        all.extend(lanes::shaders());
        all
    }
    fn uniforms(&self) -> Vec<(&'static str, usize)> {
        vec![
            ("MatmulParams", uniform_bytes_in_parts::<MatmulParams>()),
            ("AbsmaxParams", size_of::<coop::AbsmaxParams>()),
        ]
    }
    fn cases(&self) -> Vec<Box<dyn Case>> {
        let shapes: [(usize, usize, usize); 17] = [
            (3, 5, 64),
            (3, 5, 7),
            (1, 1, 1),
            (64, 64, 16),
            (65, 63, 17),
            (8, 4, 4),
            (9, 68, 20),
            (70, 132, 260),
            (1, 512, 64),
            (40, 66, 36),
            (37, 132, 132),
            (44, 140, 136),
            (33, 68, 128),
            // More than one group of NF4's scales.
            (2, 130, 192),
            (35, 9, 200),
            // Both sides of a tile of 128.
            (128, 128, 64),
            (129, 124, 144),
        ];
        let mut all: Vec<Box<dyn Case>> = Vec::new();
        for (t, n_out, n_in) in shapes {
            for variant in std::iter::once(None).chain(VARIANTS.map(Some)) {
                for storage in WeightFormat::ALL {
                    let fits = !storage.is_quantised() || n_in.is_multiple_of(storage.columns());
                    // Other cases would run the baseline, which has cases of its own.
                    let has_own = variant.is_none() || n_in % 4 == 0;
                    if fits && has_own && is_tested(variant, storage) {
                        let (allowed, precision) = (variant.into_iter().collect(), MatmulPrecision::Highest);
                        all.push(Box::new(LinearCase { t, n_out, n_in, storage, allowed, precision }));
                    }
                }
            }
        }
        // The widest tiles add, store and accumulate as the wide ones do.
        let most_variants =
            || std::iter::once(None).chain(VARIANTS.map(Some)).filter(|v| *v != Some(Variant::Tiles128Wide));
        for (t, n_out, n_in, storage, rank) in LowRankCase::SHAPES {
            for variant in most_variants() {
                let (allowed, precision) = (variant.into_iter().collect(), MatmulPrecision::Highest);
                let linear = LinearCase { t, n_out, n_in, storage, allowed, precision };
                all.push(Box::new(LowRankCase { linear, rank }));
            }
        }
        for shape in EpilogueCase::SHAPES {
            for variant in most_variants() {
                all.push(Box::new(EpilogueCase::new(shape, variant.into_iter().collect(), MatmulPrecision::Highest)));
            }
        }
        for (t, n_out, n_in, storage) in AccumulateCase::SHAPES {
            for variant in most_variants() {
                let (allowed, precision) = (variant.into_iter().collect(), MatmulPrecision::Highest);
                let linear = LinearCase { t, n_out, n_in, storage, allowed, precision };
                all.push(Box::new(AccumulateCase { linear }));
            }
        }
        all.extend(ExpertCase::all().into_iter().map(|case| Box::new(case) as Box<dyn Case>));
        all
    }
    fn benches(&self, model: &ModelShape, t: usize, caps: &Caps) -> Vec<Box<dyn Case>> {
        let cases = linears(model, t, &caps.variants, caps.matmul_precision);
        let experts = ExpertCase::benches(t, caps).map(|c| Box::new(c) as Box<dyn Case>);
        cases.into_iter().map(|c| Box::new(c) as Box<dyn Case>).chain(experts).collect()
    }
    fn variant_cases(&self, variant: Variant, caps: &Caps) -> Vec<Box<dyn Case>> {
        // Without lanes, the device runs the baseline in their place.
        if !VARIANTS.contains(&variant) || (variant == Variant::Lanes && !caps.has_lanes()) {
            return Vec::new();
        }
        // On devices with lanes, the other CPU kernels run only for few columns, and for few rows of a forward product.
        let beside = (variant == Variant::Cpu && caps.has_lanes()).then_some(Variant::Lanes);
        let allowed: Vec<Variant> = std::iter::once(variant).chain(beside).collect();
        let shapes = [
            (3, 5, 12, WeightFormat::F32),
            (33, 66, 36, WeightFormat::F32),
            (33, 12, 68, WeightFormat::Bf16),
            (36, 132, 140, WeightFormat::Bf16),
            (3, 5, 72, WeightFormat::Int8),
            (33, 12, 72, WeightFormat::Int8),
            (3, 5, 64, WeightFormat::Nf4),
            (33, 12, 128, WeightFormat::Nf4),
        ];
        let case = |(t, n_out, n_in, storage)| -> Box<dyn Case> {
            let (allowed, precision) = (allowed.clone(), MatmulPrecision::Highest);
            Box::new(LinearCase { t, n_out, n_in, storage, allowed, precision })
        };
        let low_rank = |(t, n_out, n_in, storage, rank)| -> Box<dyn Case> {
            let (allowed, precision) = (allowed.clone(), MatmulPrecision::Highest);
            Box::new(LowRankCase { linear: LinearCase { t, n_out, n_in, storage, allowed, precision }, rank })
        };
        let epilogue =
            |shape| -> Box<dyn Case> { Box::new(EpilogueCase::new(shape, allowed.clone(), MatmulPrecision::Highest)) };
        let (t, n_out, n_in, storage) = AccumulateCase::CHECKED;
        let linear =
            LinearCase { t, n_out, n_in, storage, allowed: allowed.clone(), precision: MatmulPrecision::Highest };
        let mut all: Vec<Box<dyn Case>> = shapes.map(case).into();
        all.extend(LowRankCase::SHAPES.map(low_rank));
        all.extend(EpilogueCase::SHAPES.map(epilogue));
        all.push(Box::new(AccumulateCase { linear }));
        all.extend(ExpertCase::of_variant(variant).into_iter().map(|case| Box::new(case) as Box<dyn Case>));
        all
    }
    fn precision_cases(&self, precision: MatmulPrecision) -> Vec<Box<dyn Case>> {
        // On both sides of fragments, slices, subgroup blocks and tiles; all three products run on cooperative matrices.
        let shapes =
            [(33, 68, 128), (1, 32, 32), (3, 36, 44), (8, 64, 64), (37, 132, 140), (64, 32, 320), (129, 124, 64)];
        let linear = |(t, n_out, n_in), storage| LinearCase { t, n_out, n_in, storage, allowed: Vec::new(), precision };
        let mut all: Vec<Box<dyn Case>> = Vec::new();
        for (i, shape) in shapes.into_iter().enumerate() {
            for storage in WeightFormat::ALL.into_iter().filter(|storage| shape.2 % storage.columns() == 0) {
                all.push(Box::new(linear(shape, storage)));
                // GPUs run the largest tiles only for large products, unless they are asked for.
                if i == 0 {
                    all.push(Box::new(LinearCase { allowed: vec![Variant::Tiles128], ..linear(shape, storage) }));
                }
            }
        }
        for (t, n_out, n_in, storage, rank) in LowRankCase::SHAPES {
            all.push(Box::new(LowRankCase { linear: linear((t, n_out, n_in), storage), rank }));
        }
        for shape in EpilogueCase::SHAPES {
            all.push(Box::new(EpilogueCase::new(shape, Vec::new(), precision)));
        }
        for (t, n_out, n_in, storage) in AccumulateCase::SHAPES {
            all.push(Box::new(AccumulateCase { linear: linear((t, n_out, n_in), storage) }));
        }
        all
    }
}
