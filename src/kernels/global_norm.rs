//! L2 norm over all gradients, or over all parameters in their storage format.

use super::shapes::ModelShape;
use super::storage::WeightFormat;
use super::{Case, CaseOutputs, Cost, HostTensor, Kernel};
use crate::gpu::{Caps, Recording, Shader, Slot};
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

fn shader(entry: &'static str) -> Shader {
    Shader::new("global_norm", entry).with("WG", WG as f64)
}

fn partial(storage: WeightFormat) -> Shader {
    storage.select(shader("global_norm_partial"))
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
        rec.dispatch(&partial(page.1), &params, &[&partials, &page.0], [PARTIALS as u32, 1, 1], 2 * n as u64);
    }
    let params = GlobalNormParams { n: (pages.len() * PARTIALS) as u32, first: 0, scale, pad: 0 };
    rec.dispatch(&shader("global_norm_total"), &params, &[&partials, norm], [1, 1, 1], 0);
}

/// Global-norm kernels: `global_norm_partial`, `global_norm_total`.
pub struct GlobalNorm;

impl Kernel for GlobalNorm {
    fn name(&self) -> &'static str {
        "global_norm"
    }
    fn modules(&self) -> &'static [&'static str] {
        &["global_norm"]
    }
    fn variants(&self) -> Vec<Shader> {
        vec![partial(WeightFormat::F32), partial(WeightFormat::Bf16), shader("global_norm_total")]
    }
    fn uniforms(&self) -> Vec<(&'static str, usize)> {
        vec![("GlobalNormParams", size_of::<GlobalNormParams>())]
    }
    fn cases(&self) -> Vec<Box<dyn Case>> {
        let case = |pages: &[(usize, WeightFormat)]| Box::new(NormCase(pages.to_vec())) as Box<dyn Case>;
        let (f32, bf16) = (WeightFormat::F32, WeightFormat::Bf16);
        vec![
            case(&[(1, f32)]),
            case(&[(63, f32), (66, bf16)]),
            case(&[(20_000, f32), (1, f32), (300, bf16)]),
            // More elements than all workgroups read in their first round.
            case(&[(PARTIALS * WG * 2 + 77, f32), (PARTIALS * WG + 2, bf16)]),
        ]
    }
    fn benches(&self, model: &ModelShape, _: usize, _: &Caps) -> Vec<Box<dyn Case>> {
        // One layer's weights; a step does this once, over all layers.
        vec![Box::new(NormCase(vec![(model.layer_parameters(), WeightFormat::F32)]))]
    }
}

struct NormCase(Vec<(usize, WeightFormat)>);

impl Case for NormCase {
    fn label(&self) -> String {
        let page = |(n, storage): &(usize, WeightFormat)| format!("{n} {storage:?}");
        format!("pages of {}", self.0.iter().map(page).collect::<Vec<_>>().join(", "))
    }
    fn inputs(&self, rng: &mut Rng) -> Vec<HostTensor> {
        let page = |&(n, storage): &(usize, WeightFormat)| {
            let mut page = match storage {
                WeightFormat::Bf16 => HostTensor::normal_bf16(rng, n),
                _ => HostTensor::normal(rng, n),
            };
            // The first element that a workgroup reads in its second round: it is large, so that a sum without it is visibly wrong.
            if let HostTensor::F32(values) | HostTensor::Bf16(values) = &mut page
                && let Some(value) = values.get_mut(PARTIALS * WG)
            {
                *value = 256.0;
            }
            page
        };
        self.0.iter().map(page).collect()
    }
    fn forward(&self, x: &[Vec<f64>]) -> Vec<Vec<f64>> {
        vec![vec![0.5 * x.iter().flatten().map(|g| g * g).sum::<f64>().sqrt()]]
    }
    fn launch(&self, rec: &mut Recording, x: &[Slot], _: &[Slot]) -> CaseOutputs {
        let norm = rec.gpu().alloc_activation(1);
        let pages: Vec<_> = x.iter().cloned().zip(self.0.iter().map(|p| p.1)).collect();
        global_norm(rec, &pages, 0.5, &norm);
        CaseOutputs { y: vec![norm], d_x: Vec::new() }
    }
    fn reduction_len(&self) -> usize {
        self.0.iter().map(|p| p.0).sum()
    }
    fn cost(&self) -> Cost {
        let bytes = self.0.iter().map(|&(n, storage)| 4 * storage.words(1, n) as u64).sum();
        Cost { bytes, flops: 2 * self.reduction_len() as u64 }
    }
}
