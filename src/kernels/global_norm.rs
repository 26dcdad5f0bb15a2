//! L2 norm over all gradients.

use super::shapes::ModelShape;
use super::{Case, Cost, Host, Kernel, Outputs};
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

/// Workgroups a page.
const PARTIALS: usize = 256;

fn shader(entry: &'static str) -> Shader {
    Shader::new("global_norm", entry).with("WG", 64.0)
}

/// norm (1) = scale·√(Σ g²) over the pages.
pub fn global_norm(rec: &mut Recording, pages: &[&Slot], scale: f32, norm: &Slot) {
    let partials = rec.gpu().slot(pages.len() * PARTIALS);
    for (i, page) in pages.iter().enumerate() {
        let params = GlobalNormParams { n: page.len() as u32, first: (i * PARTIALS) as u32, scale, pad: 0 };
        let flops = 2 * page.len() as u64;
        rec.dispatch(&shader("global_norm_partial"), &params, &[page, &partials], [PARTIALS as u32, 1, 1], flops);
    }
    let params = GlobalNormParams { n: (pages.len() * PARTIALS) as u32, first: 0, scale, pad: 0 };
    rec.dispatch(&shader("global_norm_total"), &params, &[&partials, norm], [1, 1, 1], 0);
}

/// The family.
pub struct GlobalNorm;

impl Kernel for GlobalNorm {
    fn name(&self) -> &'static str {
        "global_norm"
    }
    fn modules(&self) -> &'static [&'static str] {
        &["global_norm"]
    }
    fn variants(&self) -> Vec<Shader> {
        ["global_norm_partial", "global_norm_total"].map(shader).into()
    }
    fn uniforms(&self) -> Vec<(&'static str, usize)> {
        vec![("GlobalNormParams", size_of::<GlobalNormParams>())]
    }
    fn cases(&self) -> Vec<Box<dyn Case>> {
        [&[1][..], &[63, 65], &[20_000, 1, 300]].map(|p| Box::new(NormCase(p.to_vec())) as Box<dyn Case>).into()
    }
    fn benches(&self, model: &ModelShape, _: usize, _: &Caps) -> Vec<Box<dyn Case>> {
        // One layer's weights; a step does it once, over all of them.
        vec![Box::new(NormCase(vec![model.layer_parameters()]))]
    }
}

struct NormCase(Vec<usize>);

impl Case for NormCase {
    fn label(&self) -> String {
        format!("pages of {:?}", self.0)
    }
    fn inputs(&self, rng: &mut Rng) -> Vec<Host> {
        self.0.iter().map(|&n| Host::normal(rng, n)).collect()
    }
    fn forward(&self, x: &[Vec<f64>]) -> Vec<Vec<f64>> {
        vec![vec![0.5 * x.iter().flatten().map(|g| g * g).sum::<f64>().sqrt()]]
    }
    fn launch(&self, rec: &mut Recording, x: &[Slot], _: &[Slot]) -> Outputs {
        let norm = rec.gpu().slot(1);
        global_norm(rec, &x.iter().collect::<Vec<_>>(), 0.5, &norm);
        Outputs { y: vec![norm], d_x: Vec::new() }
    }
    fn reduction(&self) -> usize {
        self.0.iter().sum()
    }
    fn cost(&self) -> Cost {
        let n = self.0.iter().sum::<usize>() as u64;
        Cost { bytes: 4 * n, flops: 2 * n }
    }
}
