//! C = alpha·A·B (+ C) in the three orientations of a linear layer; weights in any [`Storage`].

use super::shapes::ModelShape;
use super::storage::{Packed, Storage};
use super::{Case, Cost, Host, Kernel, Outputs};
use crate::gpu::{Caps, Recording, Shader, Slot};
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
    Quads,
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
/// Columns of C from which transposing A first pays.
const TRANSPOSE_A_FROM: usize = 128;

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
            Self::Quads => "matmul_quads",
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
            Self::Quads | Self::Rows => (LANES * 8, 8),
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
    let flops = 2 * (p.m * p.n * p.k) as u64;
    let slots = [a.slot, b.slot, c.slot];
    let Some(cpu) = Cpu::of(p, b).filter(|_| on_cpu) else {
        let grid = [p.n.div_ceil(64) as u32, p.m.div_ceil(64) as u32, 1];
        return rec.dispatch(&tiled(p.orientation, p.storage), &params(p, a, b, c), &slots, grid, flops);
    };
    let b_transposed = cpu == Cpu::Dots;
    if p.m >= UNPACK_FROM && (b_transposed || p.storage.is_quantised()) {
        let (rows, columns) = if b_transposed { (p.n, p.k) } else { (p.k, p.n) };
        let (unpacked, stride) = unpack(rec, b, p.storage, b_transposed, rows, columns);
        let p = Product { orientation: Orientation::BackwardX, storage: Storage::F32, ..*p };
        return launch(rec, &p, a, Matrix::new(&unpacked, stride), c, true);
    }
    let a_transposed = p.orientation == Orientation::BackwardW;
    let in_quads = a.start.is_multiple_of(4) && a.stride.is_multiple_of(4);
    // matmul_quads has A stored (K, M) always.
    let shader = |cpu: Cpu| cpu.shader(a_transposed && cpu != Cpu::Quads, p.storage, p.accumulate);
    if cpu == Cpu::Rows && in_quads && a_transposed && p.m.is_multiple_of(4) {
        return rec.dispatch(&shader(Cpu::Quads), &params(p, a, b, c), &slots, Cpu::Quads.grid(p), flops);
    }
    let pays = p.n >= TRANSPOSE_A_FROM && p.m >= UNPACK_FROM && p.m <= rec.gpu().caps().max_workgroups as usize;
    if cpu == Cpu::Rows && in_quads && !a_transposed && p.k.is_multiple_of(4) && pays {
        let (columns, stride) = unpack(rec, a, Storage::F32, true, p.m, p.k);
        let a = Matrix::new(&columns, stride);
        let slots = [a.slot, b.slot, c.slot];
        return rec.dispatch(&shader(Cpu::Quads), &params(p, a, b, c), &slots, Cpu::Quads.grid(p), flops);
    }
    rec.dispatch(&shader(cpu), &params(p, a, b, c), &slots, cpu.grid(p), flops);
}

fn params(p: &Product, a: Matrix, b: Matrix, c: Matrix) -> MatmulParams {
    MatmulParams {
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
    }
}

/// A copy in f32 of a matrix stored (rows, columns), transposed or not, its rows padded to whole quads; columns, start and stride are
/// multiples of four. With the elements from a row of it to the next.
fn unpack(
    rec: &mut Recording,
    m: Matrix,
    storage: Storage,
    transposed: bool,
    rows: usize,
    columns: usize,
) -> (Slot, usize) {
    let (n, k) = if transposed { (rows, columns) } else { (columns, rows) };
    let stride = n.next_multiple_of(4);
    let unpacked = rec.gpu().slot(stride * k);
    let orientation = Orientation::Forward;
    let p = Product { orientation, storage, m: columns, n, k: columns, alpha: 1.0, accumulate: false };
    let grid = [columns.div_ceil(LANES * 4) as u32, rows as u32, 1];
    let params = params(&p, m, m, Matrix::new(&unpacked, stride));
    rec.dispatch(&unpacking(storage, transposed), &params, &[&unpacked, m.slot], grid, 0);
    (unpacked, stride)
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
                all.extend([Cpu::Dots, Cpu::Quads].map(|c| c.shader(false, storage, accumulate)));
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
        let shapes: [(usize, usize, usize); 15] = [
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
    fn benches(&self, model: &ModelShape, t: usize, caps: &Caps) -> Vec<Box<dyn Case>> {
        let (q, kv) = (model.n_heads * model.head_dim, model.n_kv_heads * model.head_dim);
        let mut linears =
            vec![(q, model.d_model), (kv, model.d_model), (model.d_ff, model.d_model), (model.d_model, model.d_ff)];
        linears.dedup();
        let mut all: Vec<Box<dyn Case>> = Vec::new();
        for (n_out, n_in) in linears {
            let mut push = |orientation, storage| {
                all.push(Box::new(ProductCase { orientation, storage, t, n_out, n_in, on_cpu: caps.cpu_variants }));
            };
            for storage in Storage::ALL.into_iter().filter(|s| n_in.is_multiple_of(s.columns())) {
                push(Orientation::Forward, storage);
                push(Orientation::BackwardX, storage);
            }
            push(Orientation::BackwardW, Storage::F32);
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
        case(36, 132, 140, Storage::Bf16),
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

/// One product alone, for its time.
#[derive(Debug)]
struct ProductCase {
    orientation: Orientation,
    storage: Storage,
    t: usize,
    n_out: usize,
    n_in: usize,
    on_cpu: bool,
}

impl ProductCase {
    fn product(&self) -> Product {
        let (m, n, k) = match self.orientation {
            Orientation::Forward => (self.t, self.n_out, self.n_in),
            Orientation::BackwardX => (self.t, self.n_in, self.n_out),
            Orientation::BackwardW => (self.n_out, self.n_in, self.t),
        };
        Product { orientation: self.orientation, storage: self.storage, m, n, k, alpha: 1.0, accumulate: false }
    }
    /// Elements of A and B, as stored: (rows, columns).
    fn shapes(&self) -> [(usize, usize); 2] {
        let (x, w, y) = ((self.t, self.n_in), (self.n_out, self.n_in), (self.t, self.n_out));
        match self.orientation {
            Orientation::Forward => [x, w],
            Orientation::BackwardX => [y, w],
            Orientation::BackwardW => [y, x],
        }
    }
}

impl Case for ProductCase {
    fn label(&self) -> String {
        let Self { orientation, storage, t, n_out, n_in, .. } = self;
        format!("{orientation:?} {storage:?} T={t} out={n_out} in={n_in}")
    }
    fn inputs(&self, rng: &mut Rng) -> Vec<Host> {
        let [(a_rows, a_columns), (rows, columns)] = self.shapes();
        let a = Host::normal(rng, a_rows * a_columns);
        let b = (0..rows * columns).map(|_| rng.normal()).collect();
        let words = Packed::new(self.storage, b, columns).part(0, rows, columns);
        vec![a, Host::Packed { values: self.storage.unpack(&words, rows, columns), words }]
    }
    fn forward(&self, x: &[Vec<f64>]) -> Vec<Vec<f64>> {
        let (p, [(_, a_stride), (_, b_stride)]) = (self.product(), self.shapes());
        let at = |m: usize, k: usize| {
            if p.orientation == Orientation::BackwardW { k * a_stride + m } else { m * a_stride + k }
        };
        let bt = |k: usize, n: usize| {
            if p.orientation == Orientation::Forward { n * b_stride + k } else { k * b_stride + n }
        };
        let value = |i: usize| (0..p.k).map(|k| x[0][at(i / p.n, k)] * x[1][bt(k, i % p.n)]).sum();
        vec![(0..p.m * p.n).map(value).collect()]
    }
    fn launch(&self, rec: &mut Recording, x: &[Slot], _: &[Slot]) -> Outputs {
        let (p, [(_, a_stride), (_, b_stride)]) = (self.product(), self.shapes());
        let y = rec.gpu().slot(p.m * p.n);
        launch(rec, &p, Matrix::new(&x[0], a_stride), Matrix::new(&x[1], b_stride), Matrix::new(&y, p.n), self.on_cpu);
        Outputs { y: vec![y], d_x: Vec::new() }
    }
    fn reduction(&self) -> usize {
        self.product().k
    }
    fn cost(&self) -> Cost {
        let p = self.product();
        let [(a_rows, a_columns), (b_rows, b_columns)] = self.shapes();
        let words = a_rows * a_columns + self.storage.words(b_rows, b_columns) + p.m * p.n;
        Cost { bytes: 4 * words as u64, flops: 2 * (p.m * p.n * p.k) as u64 }
    }
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
    fn d_y_lens(&self) -> Vec<usize> {
        vec![self.t * (self.n_out + COLUMN)]
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
