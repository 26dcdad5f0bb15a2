//! Matrix products C = alpha·(A·B + A2·B2) (+ C) + bias + residual in the three orientations of a linear layer. The second pair, bias and
//! residual are optional; weights have any [`Storage`].
//!
//! Five implementations, each in a file of its own: the baseline, for any shape (`matmul.wgsl`); tiles of vec4s, for GPUs
//! (`matmul_tiles.wgsl`); for CPU adapters without and with subgroups (`matmul_cpu.wgsl`, `matmul_lanes.wgsl`); cooperative matrices, for
//! precisions below the highest (`matmul_coop.wgsl`). A product runs in the fastest that the device has and its alignment allows.

mod cases;
mod coop;
mod cpu;
mod lanes;
mod operands;
mod tiles;

pub use operands::{Epilogue, Matrix, Operands, Second};

use cases::{AccumulateCase, EpilogueCase, LinearCase, LowRankCase, ProductCase};
use coop::Coop;
use cpu::Cpu;
use operands::{MatmulParams, with_all, with_second};
use tiles::Tiles;

use super::shapes::ModelShape;
use super::storage::Storage;
use super::tunable::Tunable;
use super::{Case, Kernel};
use crate::gpu::{Caps, MatmulPrecision, Recording, Shader, Variant, uniform_bytes_in_parts};

/// Product of a linear layer: the output, or one of the two gradients.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Orientation {
    /// y (M, N) = x (M, K) · W (N, K)ᵀ.
    Forward,
    /// d_x (M, N) = d_y (M, K) · W (K, N).
    BackwardX,
    /// d_W (M, N) = d_y (K, M)ᵀ · x (K, N).
    BackwardW,
}

/// Description of a matrix product.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Product {
    /// Product of a linear layer that this is; it says how A and B are stored.
    pub orientation: Orientation,
    /// Storage format of B.
    pub storage: Storage,
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

impl Product {
    /// Returns the name of the class of similar products: sizes are rounded to powers of two.
    fn class(&self) -> String {
        let near = |n: usize| 1usize << (n as f64).log2().round() as u32;
        let (o, s) = (self.orientation, self.storage);
        format!("{o:?} {s:?} {}x{}x{}", near(self.m), near(self.n), near(self.k))
    }
    /// Returns the columns of B as stored.
    fn stored_columns(&self) -> usize {
        if self.orientation == Orientation::Forward { self.k } else { self.n }
    }
    fn flops(&self) -> u64 {
        2 * (self.m * self.n * self.k) as u64
    }
}

/// Tells a shader how A and B are stored.
fn oriented(shader: Shader, orientation: Orientation) -> Shader {
    let a = f64::from(u8::from(orientation == Orientation::BackwardW));
    let b = f64::from(u8::from(orientation == Orientation::Forward));
    shader.with("A_TRANSPOSED", a).with("B_TRANSPOSED", b)
}

fn baseline(orientation: Orientation, storage: Storage) -> Shader {
    let shader = oriented(Shader::new("matmul", "matmul"), orientation);
    storage.select(if storage.is_quantised() { shader.with("B_QUADS", 1.0) } else { shader })
}

/// Computes C = alpha·A·B (+ C). Does nothing when M, N or K is 0 (C is not cleared).
pub fn matmul(rec: &mut Recording, p: &Product, a: Matrix, b: Matrix, c: Matrix) {
    matmul_with(rec, p, Operands::new(a, b, c));
}

/// Computes C = alpha·(A·B + A2·B2) (+ C) + bias + residual. The second pair is fused into the first pair's pass wherever that is possible;
/// bias and residual are always added in the last pass. Where alpha is a power of two, the result is bit-identical to that of separate
/// passes (else a device may round product and sum at once).
pub fn matmul_with(rec: &mut Recording, p: &Product, o: Operands) {
    let caps = rec.gpu().caps();
    launch(rec, p, o, &caps.variants, caps.matmul_precision);
}

fn launch(rec: &mut Recording, p: &Product, o: Operands, allowed: &[Variant], precision: MatmulPrecision) {
    if p.m * p.n * p.k == 0 {
        return;
    }
    let coop = Coop::of(p, [o.a, o.b], rec.gpu().caps(), precision);
    // Cooperative-matrix kernels scale A and B to f16's range. The second pair needs other scales, so it cannot share their sums.
    if let Some(second) = o.second.filter(|s| coop.is_some() || !s.rides_along(p)) {
        launch(rec, p, Operands { second: None, epilogue: Epilogue::default(), ..o }, allowed, precision);
        let p = Product { storage: second.storage, k: second.k, accumulate: true, ..*p };
        return launch(rec, &p, Operands { a: second.a, b: second.b, second: None, ..o }, allowed, precision);
    }
    if let Some(coop) = coop {
        return coop.launch(rec, p, o);
    }
    let (shader, grid) = match choose(rec.gpu().caps(), p, [o.a, o.b, o.c], allowed) {
        Way::Lanes => return lanes::launch(rec, p, o),
        Way::Cpu(cpu) => return cpu::launch(rec, cpu, p, o),
        Way::Tiles(tiles) => (tiles.shader(p.orientation, p.storage), tiles.grid(p)),
        Way::Baseline => (baseline(p.orientation, p.storage), [p.n.div_ceil(64) as u32, p.m.div_ceil(64) as u32]),
    };
    o.dispatch(rec, &shader, p, grid);
}

/// Implementation that supports a product.
#[derive(Debug, Clone, Copy)]
enum Way {
    Lanes,
    Cpu(Cpu),
    Tiles(Tiles),
    Baseline,
}

impl Way {
    fn variant(self) -> Option<Variant> {
        match self {
            Self::Lanes => Some(Variant::Lanes),
            Self::Cpu(_) => Some(Variant::Cpu),
            Self::Tiles(tiles) => Some(tiles.variant),
            Self::Baseline => None,
        }
    }
}

/// Returns the fastest implementation by the device's table, else the default choice.
fn choose(caps: &Caps, p: &Product, matrices: [Matrix; 3], allowed: &[Variant]) -> Way {
    let ways = ways(caps, p, matrices, allowed);
    let variants: Vec<Option<Variant>> = ways.iter().map(|w| w.variant()).collect();
    let fastest = caps.tuning.fastest(&p.class(), &variants);
    ways.into_iter().find(|w| fastest.is_none_or(|f| w.variant() == f)).unwrap_or(Way::Baseline)
}

/// Returns all implementations that support a product, the default choice first.
fn ways(caps: &Caps, p: &Product, matrices: [Matrix; 3], allowed: &[Variant]) -> Vec<Way> {
    let b = matrices[1];
    let lanes = lanes::fits(p, b, caps, allowed).then_some(Way::Lanes);
    let tiles = Tiles::of(p, matrices, allowed).into_iter().map(Way::Tiles);
    lanes.into_iter().chain(Cpu::of(p, b, allowed).map(Way::Cpu)).chain(tiles).chain([Way::Baseline]).collect()
}

/// Returns the products of a layer, each in every implementation that supports it.
pub(super) fn tunable(model: &ModelShape, t: usize, caps: &Caps) -> Vec<Tunable> {
    let tunable = |case: ProductCase| {
        let variants = std::iter::once(None).chain(caps.variants.iter().copied().map(Some));
        let alone = variants.map(|v| (v, ProductCase { allowed: v.into_iter().collect(), ..case.clone() }));
        let serves = |v: Option<Variant>, c: &ProductCase| c.ways(caps).first().is_some_and(|w| w.variant() == v);
        let guess = case.ways(caps).first().and_then(|w| w.variant());
        let mut cases: Vec<(_, Box<dyn Case>)> = Vec::new();
        alone.filter(|(v, c)| serves(*v, c)).for_each(|(v, c)| cases.push((v, Box::new(c))));
        cases.sort_by_key(|c| c.0 != guess);
        Tunable { class: case.product().class(), cases }
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
        for storage in Storage::ALL.into_iter().filter(|s| n_in.is_multiple_of(s.columns())) {
            push(Orientation::Forward, storage);
            push(Orientation::BackwardX, storage);
        }
        push(Orientation::BackwardW, Storage::F32);
    }
    all
}

/// Returns the case of C (M, N) = A (M, K) · B (K, N), to time it.
pub fn product(m: usize, n: usize, k: usize, caps: &Caps) -> Box<dyn Case> {
    let (orientation, storage) = (Orientation::BackwardX, Storage::F32);
    let (allowed, precision) = (caps.variants.clone(), caps.matmul_precision);
    Box::new(ProductCase { orientation, storage, t: m, n_out: k, n_in: n, allowed, precision })
}

/// Variants that have matmul kernels of their own.
const VARIANTS: [Variant; 5] = [Variant::Tiles32, Variant::Tiles64, Variant::Tiles128, Variant::Cpu, Variant::Lanes];

/// Matmul kernels: `matmul`, its variants for GPUs and CPUs, and the one on cooperative matrices.
pub struct Matmul;

/// Returns the orientations whose B may have a storage format: B of d_W is an activation, which is never quantised.
fn orientations(storage: Storage) -> &'static [Orientation] {
    let all = &[Orientation::Forward, Orientation::BackwardX, Orientation::BackwardW];
    if storage.is_quantised() { &all[..2] } else { all }
}

impl Kernel for Matmul {
    fn name(&self) -> &'static str {
        "matmul"
    }
    fn modules(&self) -> &'static [&'static str] {
        &["matmul", "matmul_coop", "matmul_cpu", "matmul_lanes", "matmul_largest", "matmul_tiles"]
    }
    fn variants(&self) -> Vec<Shader> {
        let mut all = Vec::new();
        for storage in Storage::ALL {
            for &o in orientations(storage) {
                let mut of_one_pair = vec![baseline(o, storage)];
                of_one_pair.extend(Tiles::ALL.map(|t| t.shader(o, storage)));
                for shader in of_one_pair {
                    match o {
                        Orientation::Forward => all.extend(with_all(shader)),
                        Orientation::BackwardX => all.extend([with_second(shader.clone()), shader]),
                        Orientation::BackwardW => all.push(shader),
                    }
                }
                all.extend(Coop::shaders(o, storage));
            }
            all.extend(cpu::shaders(storage));
        }
        all.extend(lanes::shaders());
        all
    }
    fn uniforms(&self) -> Vec<(&'static str, usize)> {
        vec![
            ("MatmulParams", uniform_bytes_in_parts::<MatmulParams>()),
            ("LargestParams", size_of::<coop::LargestParams>()),
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
                for storage in Storage::ALL {
                    let fits = !storage.is_quantised() || n_in.is_multiple_of(storage.columns());
                    // Elsewhere the baseline serves, and is tested.
                    if fits && (variant.is_none() || n_in % 4 == 0) {
                        let (allowed, precision) = (variant.into_iter().collect(), MatmulPrecision::Highest);
                        all.push(Box::new(LinearCase { t, n_out, n_in, storage, allowed, precision }));
                    }
                }
            }
        }
        for (t, n_out, n_in, storage, rank) in LowRankCase::SHAPES {
            for variant in std::iter::once(None).chain(VARIANTS.map(Some)) {
                let (allowed, precision) = (variant.into_iter().collect(), MatmulPrecision::Highest);
                let linear = LinearCase { t, n_out, n_in, storage, allowed, precision };
                all.push(Box::new(LowRankCase { linear, rank }));
            }
        }
        for shape in EpilogueCase::SHAPES {
            for variant in std::iter::once(None).chain(VARIANTS.map(Some)) {
                all.push(Box::new(EpilogueCase::new(shape, variant.into_iter().collect(), MatmulPrecision::Highest)));
            }
        }
        for (t, n_out, n_in, storage) in AccumulateCase::SHAPES {
            for variant in std::iter::once(None).chain(VARIANTS.map(Some)) {
                let (allowed, precision) = (variant.into_iter().collect(), MatmulPrecision::Highest);
                let linear = LinearCase { t, n_out, n_in, storage, allowed, precision };
                all.push(Box::new(AccumulateCase { linear }));
            }
        }
        all
    }
    fn benches(&self, model: &ModelShape, t: usize, caps: &Caps) -> Vec<Box<dyn Case>> {
        let cases = linears(model, t, &caps.variants, caps.matmul_precision);
        cases.into_iter().map(|c| Box::new(c) as Box<dyn Case>).collect()
    }
    fn variant_cases(&self, variant: Variant, caps: &Caps) -> Vec<Box<dyn Case>> {
        if !VARIANTS.contains(&variant) {
            return Vec::new();
        }
        // Beside lanes, the other CPU kernels run only for few columns, and for few rows of a forward product.
        let beside = (variant == Variant::Cpu && caps.has_lanes()).then_some(Variant::Lanes);
        let allowed: Vec<Variant> = std::iter::once(variant).chain(beside).collect();
        let shapes = [
            (3, 5, 12, Storage::F32),
            (33, 66, 36, Storage::F32),
            (33, 12, 68, Storage::Bf16),
            (36, 132, 140, Storage::Bf16),
            (3, 5, 72, Storage::Int8),
            (33, 12, 72, Storage::Int8),
            (3, 5, 64, Storage::Nf4),
            (33, 12, 128, Storage::Nf4),
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
        all
    }
    fn precision_cases(&self, precision: MatmulPrecision) -> Vec<Box<dyn Case>> {
        // Both sides of fragments, slices, blocks of a subgroup, and tiles; all three products are on cooperative matrices.
        let shapes =
            [(33, 68, 128), (1, 32, 32), (3, 36, 44), (8, 64, 64), (37, 132, 140), (64, 32, 320), (129, 124, 64)];
        let linear = |(t, n_out, n_in), storage| LinearCase { t, n_out, n_in, storage, allowed: Vec::new(), precision };
        let mut all: Vec<Box<dyn Case>> = Vec::new();
        for shape in shapes {
            for storage in Storage::ALL.into_iter().filter(|storage| shape.2 % storage.columns() == 0) {
                all.push(Box::new(linear(shape, storage)));
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
