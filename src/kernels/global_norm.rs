//! L2 norm over all gradients, or over all parameters in their storage format.

use super::row_vec4s::{self, BASELINE, FLIGHT, ROWS};
use super::shapes::ModelShape;
use super::storage::WeightFormat;
use super::{Case, CaseOutputs, Cost, HostTensor, Kernel};
use crate::gpu::{Caps, Recording, Shader, Slot, Variant};
use crate::rng::Rng;

#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct GlobalNormParams {
    n: u32,
    first: u32,
    scale: f32,
    pad: u32,
}

/// Workgroups per bucket.
const PARTIALS: usize = 256;
/// Invocations per workgroup.
const WG: usize = 64;
/// Invocations per workgroup of `global_norm_rows_partial`. Wide workgroups keep more loads in flight.
const WG_ROWS: usize = 256;

fn shader(entry: &'static str) -> Shader {
    Shader::new("global_norm", entry).with("WG", WG as f64)
}

fn partial(storage: WeightFormat) -> Shader {
    storage.select(shader("global_norm_partial"))
}

fn partial_rows(storage: WeightFormat) -> Shader {
    let shader = Shader::new("global_norm_rows", "global_norm_rows_partial").with("WG", WG_ROWS as f64);
    storage.select(shader.unroll("FLIGHT", FLIGHT))
}

/// Returns the number of elements of a bucket, whose values fill whole words.
fn elements(page: &(Slot, WeightFormat)) -> usize {
    page.0.len() * page.1.columns()
}

/// Computes norm (1) = scale·√(Σ g²) over the buckets `pages`, in f32 or bf16.
pub fn global_norm(rec: &mut Recording, pages: &[(Slot, WeightFormat)], scale: f32, norm: &Slot) {
    let partials = rec.gpu().alloc_activation(pages.len() * PARTIALS);
    for (i, page) in pages.iter().enumerate() {
        let n = elements(page);
        let params = GlobalNormParams { n: n as u32, first: (i * PARTIALS) as u32, scale, pad: 0 };
        let shader = if row_vec4s::in_vec4s(rec, &[n]) { partial_rows(page.1) } else { partial(page.1) };
        rec.dispatch(&shader, &params, &[&partials, &page.0], [PARTIALS as u32, 1, 1], 2 * n as u64);
    }
    let params = GlobalNormParams { n: (pages.len() * PARTIALS) as u32, first: 0, scale, pad: 0 };
    rec.dispatch(&shader("global_norm_total"), &params, &[&partials, norm], [1, 1, 1], 0);
}

/// Global-norm kernels: `global_norm_partial`, or `global_norm_rows_partial`, and `global_norm_total`.
pub struct GlobalNorm;

impl Kernel for GlobalNorm {
    fn name(&self) -> &'static str {
        "global_norm"
    }
    fn modules(&self) -> &'static [&'static str] {
        &["global_norm", "global_norm_rows"]
    }
    fn variants(&self) -> Vec<Shader> {
        let formats = [WeightFormat::F32, WeightFormat::Bf16];
        let partials = formats.into_iter().flat_map(|storage| [partial(storage), partial_rows(storage)]);
        partials.chain([shader("global_norm_total")]).collect()
    }
    fn uniforms(&self) -> Vec<(&'static str, usize)> {
        vec![("GlobalNormParams", size_of::<GlobalNormParams>())]
    }
    fn cases(&self) -> Vec<Box<dyn Case>> {
        let case = |pages: &[(usize, WeightFormat)]| NormCase { pages: pages.to_vec(), allowed: BASELINE };
        let rows = |pages: &[(usize, WeightFormat)]| NormCase { pages: pages.to_vec(), allowed: ROWS };
        let (f32, bf16) = (WeightFormat::F32, WeightFormat::Bf16);
        let all = [
            case(&[(1, f32)]),
            case(&[(63, f32), (66, bf16)]),
            case(&[(20_000, f32), (1, f32), (300, bf16)]),
            // More elements than all workgroups read in their first round.
            case(&[(PARTIALS * WG * 2 + 77, f32), (PARTIALS * WG + 2, bf16)]),
            rows(&[(4, f32), (68, bf16)]),
            rows(&[(20_000, f32), (1, f32), (4 * WG_ROWS, f32), (4 * WG_ROWS + 4, bf16)]),
            // Both sides of what all workgroups have in flight.
            rows(&[(4 * PARTIALS * WG_ROWS * FLIGHT, f32), (4 * PARTIALS * WG_ROWS * FLIGHT + 4, f32)]),
            rows(&[(4 * PARTIALS * WG_ROWS + 8, bf16)]),
        ];
        all.map(|case| Box::new(case) as Box<dyn Case>).into()
    }
    fn benches(&self, model: &ModelShape, _: usize, caps: &Caps) -> Vec<Box<dyn Case>> {
        // One layer's weights; a step does this once, over all layers.
        let pages = vec![(model.layer_parameters(), WeightFormat::F32)];
        vec![Box::new(NormCase { pages, allowed: row_vec4s::taken(caps) })]
    }
    fn variant_cases(&self, variant: Variant, _: &Caps) -> Vec<Box<dyn Case>> {
        let pages = vec![(4 * PARTIALS * WG_ROWS + 8, WeightFormat::F32), (68, WeightFormat::Bf16)];
        match variant {
            Variant::Rows => vec![Box::new(NormCase { pages, allowed: ROWS })],
            _ => Vec::new(),
        }
    }
}

struct NormCase {
    pages: Vec<(usize, WeightFormat)>,
    allowed: &'static [Variant],
}

impl Case for NormCase {
    fn label(&self) -> String {
        let page = |(n, storage): &(usize, WeightFormat)| format!("{n} {storage:?}");
        let pages = self.pages.iter().map(page).collect::<Vec<_>>().join(", ");
        format!("pages of {pages}{}", row_vec4s::suffix(self.allowed))
    }
    fn inputs(&self, rng: &mut Rng) -> Vec<HostTensor> {
        let page = |&(n, storage): &(usize, WeightFormat)| {
            let mut page = match storage {
                WeightFormat::Bf16 => HostTensor::normal_bf16(rng, n),
                _ => HostTensor::normal(rng, n),
            };
            // The first element that a workgroup reads in its second round, and a long bucket's last: they are large, so that a sum without
            // one of them is visibly wrong.
            let second = if self.allowed.is_empty() { PARTIALS * WG } else { 4 * PARTIALS * WG_ROWS * FLIGHT };
            if let HostTensor::F32(values) | HostTensor::Bf16(values) = &mut page {
                values.get_mut(second).into_iter().for_each(|value| *value = 256.0);
                let is_long = values.len() > PARTIALS * WG;
                values.last_mut().filter(|_| is_long).into_iter().for_each(|value| *value = 256.0);
            }
            page
        };
        self.pages.iter().map(page).collect()
    }
    fn forward(&self, x: &[Vec<f64>]) -> Vec<Vec<f64>> {
        vec![vec![0.5 * x.iter().flatten().map(|g| g * g).sum::<f64>().sqrt()]]
    }
    fn launch(&self, rec: &mut Recording, x: &[Slot], _: &[Slot]) -> CaseOutputs {
        let norm = rec.gpu().alloc_activation(1);
        let pages: Vec<_> = x.iter().cloned().zip(self.pages.iter().map(|p| p.1)).collect();
        rec.with_variants(self.allowed, |rec| global_norm(rec, &pages, 0.5, &norm));
        CaseOutputs { y: vec![norm], d_x: Vec::new() }
    }
    fn reduction_len(&self) -> usize {
        self.pages.iter().map(|p| p.0).sum()
    }
    fn is_supported(&self, caps: &Caps) -> bool {
        self.allowed.iter().all(|variant| caps.variants.contains(variant))
    }
    fn cost(&self) -> Cost {
        let bytes = self.pages.iter().map(|&(n, storage)| 4 * storage.words(1, n) as u64).sum();
        Cost { bytes, flops: 2 * self.reduction_len() as u64 }
    }
}
