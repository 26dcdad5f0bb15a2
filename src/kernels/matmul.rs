//! C = alpha·A·B (+ C) in the three orientations of a linear layer; weights in any [`Storage`].

use super::storage::{Packed, Storage};
use super::{Case, Cost, Host, Kernel, Outputs};
use crate::gpu::{Recording, Shader, Slot};
use crate::rng::Rng;

/// A matrix inside a slot: `start` and `stride` in elements, as stored.
#[derive(Debug, Clone, Copy)]
pub struct Matrix<'a> {
    /// Where.
    pub slot: &'a Slot,
    /// First element.
    pub start: usize,
    /// Elements from a stored row to the next.
    pub stride: usize,
}

impl<'a> Matrix<'a> {
    /// Rows of `stride` elements from the slot's beginning.
    pub fn new(slot: &'a Slot, stride: usize) -> Self {
        Self { slot, start: 0, stride }
    }
    /// From column `column` on.
    pub fn columns_from(self, column: usize) -> Self {
        Self { start: self.start + column, ..self }
    }
}

/// Which of the three products.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Orientation {
    /// y (M, N) = x (M, K) · W (N, K)ᵀ.
    Forward,
    /// d_x (M, N) = d_y (M, K) · W (K, N).
    BackwardX,
    /// d_W (M, N) = d_y (K, M)ᵀ · x (K, N).
    BackwardW,
}

/// M, N, K of a product.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Product {
    /// Orientation.
    pub orientation: Orientation,
    /// Storage of B.
    pub storage: Storage,
    /// Rows of C.
    pub m: usize,
    /// Columns of C.
    pub n: usize,
    /// Terms of each sum.
    pub k: usize,
    /// Factor on the product.
    pub alpha: f32,
    /// Add to C instead of replacing it.
    pub accumulate: bool,
}

#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct MatmulParams {
    m: u32,
    n: u32,
    k: u32,
    accumulate: u32,
    a_start: u32,
    a_stride: u32,
    b_start: u32,
    b_stride: u32,
    c_start: u32,
    c_stride: u32,
    alpha: f32,
    pad: u32,
}

fn tiled(orientation: Orientation, storage: Storage) -> Shader {
    let a = f64::from(u8::from(orientation == Orientation::BackwardW));
    let b = f64::from(u8::from(orientation == Orientation::Forward));
    let shader = Shader::new("matmul", "matmul").with("A_TRANSPOSED", a).with("B_TRANSPOSED", b);
    storage.select(if storage.is_quantised() { shader.with("B_QUADS", 1.0) } else { shader })
}

/// Entry points of `matmul_cpu` that are products.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Cpu {
    Rows,
    Narrow,
    Dots,
}

/// Lanes of a workgroup of `matmul_cpu`.
const LANES: usize = 8;
/// Columns up to which lanes go along the rows instead.
const NARROW: usize = 32;
/// Rows of x from which unpacking W first pays.
const UNPACK_FROM: usize = 32;

impl Cpu {
    /// The fastest for a product, if quads of B are aligned as it needs.
    fn of(p: &Product, b: Matrix) -> Option<Self> {
        if !b.start.is_multiple_of(4) || !b.stride.is_multiple_of(4) {
            return None;
        }
        match p.orientation {
            Orientation::Forward => p.k.is_multiple_of(4).then_some(Self::Dots),
            // A last quad beyond N is read: it must be B's.
            _ if !p.n.is_multiple_of(4) && (b.start > 0 || p.n > b.stride) => None,
            _ if p.n <= NARROW => Some(Self::Narrow),
            _ => Some(Self::Rows),
        }
    }

    fn shader(self, a_transposed: bool, storage: Storage, accumulate: bool) -> Shader {
        let entry = match self {
            Self::Rows => "matmul_rows",
            Self::Narrow => "matmul_narrow",
            Self::Dots => "matmul_dots",
        };
        let shader =
            storage.select(Shader::new("matmul_cpu", entry).with("ACCUMULATE", f64::from(u8::from(accumulate))));
        if a_transposed { shader.with("A_TRANSPOSED", 1.0) } else { shader }
    }

    fn grid(self, p: &Product) -> [u32; 3] {
        let (columns, rows) = match self {
            Self::Rows => (LANES * 8, 8),
            Self::Narrow => (8, LANES * 4),
            Self::Dots => (LANES, 8),
        };
        [p.n.div_ceil(columns) as u32, p.m.div_ceil(rows) as u32, 1]
    }
}

fn unpacking(storage: Storage, b_transposed: bool) -> Shader {
    let shader = Shader::new("matmul_cpu", "matmul_unpack").with("B_TRANSPOSED", f64::from(u8::from(b_transposed)));
    storage.select(shader)
}

/// C = alpha·A·B (+ C). Nothing happens when M, N or K is 0 (C is not cleared).
pub fn matmul(rec: &mut Recording, p: &Product, a: Matrix, b: Matrix, c: Matrix) {
    let on_cpu = rec.gpu().caps().cpu_variants;
    launch(rec, p, a, b, c, on_cpu);
}

fn launch(rec: &mut Recording, p: &Product, a: Matrix, b: Matrix, c: Matrix, on_cpu: bool) {
    if p.m * p.n * p.k == 0 {
        return;
    }
    let params = MatmulParams {
        m: p.m as u32,
        n: p.n as u32,
        k: p.k as u32,
        accumulate: u32::from(p.accumulate),
        a_start: a.start as u32,
        a_stride: a.stride as u32,
        b_start: b.start as u32,
        b_stride: b.stride as u32,
        c_start: c.start as u32,
        c_stride: c.stride as u32,
        alpha: p.alpha,
        pad: 0,
    };
    let flops = 2 * (p.m * p.n * p.k) as u64;
    let slots = [a.slot, b.slot, c.slot];
    let Some(cpu) = Cpu::of(p, b).filter(|_| on_cpu) else {
        let grid = [p.n.div_ceil(64) as u32, p.m.div_ceil(64) as u32, 1];
        return rec.dispatch(&tiled(p.orientation, p.storage), &params, &slots, grid, flops);
    };
    let b_transposed = cpu == Cpu::Dots;
    if p.m >= UNPACK_FROM && (b_transposed || p.storage.is_quantised()) {
        let stride = p.n.next_multiple_of(4);
        let unpacked = rec.gpu().slot(stride * p.k);
        let (rows, columns) = if b_transposed { (p.n, p.k) } else { (p.k, p.n) };
        let grid = [columns.div_ceil(LANES * 4) as u32, rows as u32, 1];
        let params = MatmulParams { k: columns as u32, c_stride: stride as u32, ..params };
        rec.dispatch(&unpacking(p.storage, b_transposed), &params, &[&unpacked, b.slot], grid, 0);
        let p = Product { orientation: Orientation::BackwardX, storage: Storage::F32, ..*p };
        return launch(rec, &p, a, Matrix::new(&unpacked, stride), c, true);
    }
    let a_transposed = p.orientation == Orientation::BackwardW;
    rec.dispatch(&cpu.shader(a_transposed, p.storage, p.accumulate), &params, &slots, cpu.grid(p), flops);
}

/// The family.
pub struct Matmul;

impl Kernel for Matmul {
    fn name(&self) -> &'static str {
        "matmul"
    }
    fn modules(&self) -> &'static [&'static str] {
        &["matmul", "matmul_cpu"]
    }
    fn variants(&self) -> Vec<Shader> {
        let mut all = Vec::new();
        for storage in Storage::ALL {
            all.extend([Orientation::Forward, Orientation::BackwardX].map(|o| tiled(o, storage)));
            all.push(unpacking(storage, true));
            if storage.is_quantised() {
                all.push(unpacking(storage, false));
            } else {
                all.push(tiled(Orientation::BackwardW, storage));
            }
            for accumulate in [false, true] {
                all.push(Cpu::Dots.shader(false, storage, accumulate));
                // A is transposed in d_W alone, whose B is no weight.
                for a_transposed in [false, true].into_iter().take(if storage.is_quantised() { 1 } else { 2 }) {
                    all.extend([Cpu::Rows, Cpu::Narrow].map(|c| c.shader(a_transposed, storage, accumulate)));
                }
            }
        }
        all
    }
    fn uniforms(&self) -> Vec<(&'static str, usize)> {
        vec![("MatmulParams", size_of::<MatmulParams>())]
    }
    fn cases(&self) -> Vec<Box<dyn Case>> {
        let shapes: [(usize, usize, usize); 13] = [
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
            (33, 68, 128),
            // More than one group of NF4's scales.
            (2, 130, 192),
            (35, 9, 200),
        ];
        let mut all: Vec<Box<dyn Case>> = Vec::new();
        for (t, n_out, n_in) in shapes {
            for on_cpu in [false, true] {
                for storage in Storage::ALL {
                    let fits = !storage.is_quantised() || n_in.is_multiple_of(storage.columns());
                    if fits && (!on_cpu || n_in % 4 == 0) {
                        all.push(Box::new(LinearCase { t, n_out, n_in, storage, on_cpu }));
                    }
                }
            }
        }
        all
    }
}

/// Every entry point of the variants for CPUs, at their edges.
pub fn variant_cases() -> Vec<Box<dyn Case>> {
    let case =
        |t, n_out, n_in, storage| -> Box<dyn Case> { Box::new(LinearCase { t, n_out, n_in, storage, on_cpu: true }) };
    vec![
        case(3, 5, 12, Storage::F32),
        case(33, 66, 36, Storage::F32),
        case(33, 12, 68, Storage::Bf16),
        case(3, 5, 72, Storage::Int8),
        case(33, 12, 72, Storage::Int8),
        case(3, 5, 64, Storage::Nf4),
        case(33, 12, 128, Storage::Nf4),
    ]
}

/// y = 0.5·x·Wᵀ with all three products, C in the middle of a wider slot.
struct LinearCase {
    t: usize,
    n_out: usize,
    n_in: usize,
    storage: Storage,
    on_cpu: bool,
}

const ALPHA: f32 = 0.5;
const COLUMN: usize = 4;
/// Rows of W before those that are multiplied: NF4's scales then begin inside a group.
const BEFORE: usize = 3;

impl LinearCase {
    fn product(&self, orientation: Orientation) -> Product {
        let (m, n, k) = match orientation {
            Orientation::Forward => (self.t, self.n_out, self.n_in),
            Orientation::BackwardX => (self.t, self.n_in, self.n_out),
            Orientation::BackwardW => (self.n_out, self.n_in, self.t),
        };
        let storage = if orientation == Orientation::BackwardW { Storage::F32 } else { self.storage };
        Product { orientation, storage, m, n, k, alpha: ALPHA, accumulate: true }
    }
}

impl Case for LinearCase {
    fn label(&self) -> String {
        format!("T={} out={} in={} {:?} cpu={}", self.t, self.n_out, self.n_in, self.storage, self.on_cpu)
    }
    fn inputs(&self, rng: &mut Rng) -> Vec<Host> {
        let w = (0..(BEFORE + self.n_out) * self.n_in).map(|_| rng.normal()).collect();
        let words = Packed::new(self.storage, w, self.n_in).part(BEFORE, self.n_out, self.n_in);
        let values = self.storage.unpack(&words, self.n_out, self.n_in);
        vec![Host::normal(rng, self.t * self.n_in), Host::Packed { values, words }]
    }
    fn forward(&self, x: &[Vec<f64>]) -> Vec<Vec<f64>> {
        let width = self.n_out + COLUMN;
        let mut y = vec![0.0; self.t * width];
        for t in 0..self.t {
            for n in 0..self.n_out {
                let row = &x[0][t * self.n_in..][..self.n_in];
                let sum: f64 = row.iter().zip(&x[1][n * self.n_in..]).map(|(a, b)| a * b).sum();
                y[t * width + COLUMN + n] = f64::from(ALPHA) * sum;
            }
        }
        vec![y]
    }
    fn backward(&self, x: &[Vec<f64>], d_y: &[Vec<f64>]) -> Vec<Vec<f64>> {
        let width = self.n_out + COLUMN;
        let (mut d_x, mut d_w) = (vec![0.0; x[0].len()], vec![0.0; x[1].len()]);
        for t in 0..self.t {
            for n in 0..self.n_out {
                let d = f64::from(ALPHA) * d_y[0][t * width + COLUMN + n];
                for k in 0..self.n_in {
                    d_x[t * self.n_in + k] += d * x[1][n * self.n_in + k];
                    d_w[n * self.n_in + k] += d * x[0][t * self.n_in + k];
                }
            }
        }
        vec![d_x, d_w]
    }
    fn launch(&self, rec: &mut Recording, x: &[Slot], d_y: &[Slot]) -> Outputs {
        let width = self.n_out + COLUMN;
        let gpu = rec.gpu();
        let (y, d_x, d_w) = (gpu.slot(self.t * width), gpu.slot(x[0].len()), gpu.slot(self.n_out * self.n_in));
        [&y, &d_x, &d_w].iter().for_each(|s| rec.clear(s));
        let (input, weight) = (Matrix::new(&x[0], self.n_in), Matrix::new(&x[1], self.n_in));
        let out = Matrix::new(&y, width).columns_from(COLUMN);
        let d_out = Matrix::new(&d_y[0], width).columns_from(COLUMN);
        launch(rec, &self.product(Orientation::Forward), input, weight, out, self.on_cpu);
        launch(rec, &self.product(Orientation::BackwardX), d_out, weight, Matrix::new(&d_x, self.n_in), self.on_cpu);
        launch(rec, &self.product(Orientation::BackwardW), d_out, input, Matrix::new(&d_w, self.n_in), self.on_cpu);
        Outputs { y: vec![y], d_x: vec![Some(d_x), Some(d_w)] }
    }
    fn reduction(&self) -> usize {
        self.n_in.max(self.n_out).max(self.t)
    }
    fn cost(&self) -> Cost {
        let weight = 4 * self.storage.words(self.n_out, self.n_in);
        let bytes = 2 * 4 * self.t * (self.n_in + self.n_out) + 2 * weight + 4 * self.n_out * self.n_in;
        Cost { bytes: bytes as u64, flops: 6 * (self.t * self.n_out * self.n_in) as u64 }
    }
}
