//! Columns of one slot copied or added to those of another: keys and values that layers share, and a layer's part of per-layer inputs.

use super::shapes::ModelShape;
use super::value::{in_values, width};
use super::{Case, CaseOutputs, Cost, HostTensor, Kernel};
use crate::gpu::{Caps, CountedWork, Recording, Shader, Slot, grid_1d};
use crate::rng::Rng;

/// Columns of a slot, in elements: side by side from a start, in rows of a stride.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SlotColumns {
    /// First element.
    pub start: usize,
    /// Elements per token.
    pub stride: usize,
}

#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct ColumnsParams {
    n: u32,
    width: u32,
    x: [u32; 2],
    y: [u32; 2],
    pad: [u32; 2],
}

fn shader(entry: &'static str, sizes: &[usize]) -> Shader {
    in_values(Shader::new("columns", entry).with("WG", 64.0), sizes)
}

/// Runs an entry over `width` columns of T tokens.
fn run(
    rec: &mut Recording,
    entry: &'static str,
    [t, n_columns]: [usize; 2],
    places: [SlotColumns; 2],
    slots: &[&Slot; 2],
    values_per_element: usize,
) {
    let [x, y] = places;
    let sizes = [n_columns, x.start, x.stride, y.start, y.stride];
    let (elements, words) = (t * n_columns, |place: SlotColumns| [place.start as u32, place.stride as u32]);
    let n = elements / width(&sizes);
    let params = ColumnsParams { n: n as u32, width: n_columns as u32, x: words(x), y: words(y), pad: [0; 2] };
    let work = CountedWork::new(0, (4 * values_per_element * elements) as u64);
    rec.dispatch(&shader(entry, &sizes), &params, slots, grid_1d(n, 64), work);
}

/// Copies columns of x to columns of y. `shape`: T tokens, and the columns of each.
pub fn columns_copy(
    rec: &mut Recording,
    shape: [usize; 2],
    (x, from): (&Slot, SlotColumns),
    (y, to): (&Slot, SlotColumns),
) {
    run(rec, "columns_copy", shape, [from, to], &[x, y], 2);
}

/// Adds columns of x to columns of y. `shape`: T tokens, and the columns of each.
pub fn columns_add(
    rec: &mut Recording,
    shape: [usize; 2],
    (x, from): (&Slot, SlotColumns),
    (y, to): (&Slot, SlotColumns),
) {
    run(rec, "columns_add", shape, [from, to], &[x, y], 3);
}

/// Columns' kernels: `columns_copy`, `columns_add`.
pub struct ColumnsKernels;

impl Kernel for ColumnsKernels {
    fn name(&self) -> &'static str {
        "columns"
    }
    fn modules(&self) -> &'static [&'static str] {
        &["columns"]
    }
    fn variants(&self) -> Vec<Shader> {
        ["columns_copy", "columns_add"]
            .into_iter()
            .flat_map(|entry| [5, 4].map(|size| shader(entry, &[size])))
            .collect()
    }
    fn uniforms(&self) -> Vec<(&'static str, usize)> {
        vec![("ColumnsParams", size_of::<ColumnsParams>())]
    }
    fn cases(&self) -> Vec<Box<dyn Case>> {
        let place = |start, stride| SlotColumns { start, stride };
        let cases = [
            (1, 1, place(0, 1), place(0, 1)),
            (3, 5, place(2, 9), place(0, 5)),
            (17, 8, place(4, 12), place(8, 20)),
            (65, 4, place(0, 4), place(12, 16)),
            (9, 260, place(4, 264), place(3, 263)),
        ];
        let each = cases.into_iter().flat_map(|(t, width, x, y)| {
            [false, true].map(|adds| Box::new(ColumnsCase { t, width, x, y, adds }) as Box<dyn Case>)
        });
        each.collect()
    }
    fn benches(&self, model: &ModelShape, t: usize, _: &Caps) -> Vec<Box<dyn Case>> {
        let width = 2 * model.n_kv_heads * model.head_dim;
        let x = SlotColumns { start: 0, stride: width };
        let y = SlotColumns { start: model.n_heads * model.head_dim, stride: model.qkv_width() };
        [false, true].map(|adds| Box::new(ColumnsCase { t, width, x, y, adds }) as Box<dyn Case>).into()
    }
}

/// Case of columns x that are copied or added to columns of a given y.
struct ColumnsCase {
    t: usize,
    width: usize,
    x: SlotColumns,
    y: SlotColumns,
    adds: bool,
}

impl ColumnsCase {
    /// Returns the indices of each pair of elements in x and in y.
    fn pairs(&self) -> impl Iterator<Item = (usize, usize)> + use<> {
        let (width, x, y) = (self.width, self.x, self.y);
        (0..self.t).flat_map(move |t| (0..width).map(move |i| (x.start + t * x.stride + i, y.start + t * y.stride + i)))
    }
}

impl Case for ColumnsCase {
    fn label(&self) -> String {
        let (SlotColumns { start: x, stride: x_stride }, SlotColumns { start: y, stride: y_stride }) = (self.x, self.y);
        let added = if self.adds { " added" } else { "" };
        format!("T={} width={} x={x}+{x_stride} y={y}+{y_stride}{added}", self.t, self.width)
    }
    /// Draws x, and the y that was there before.
    fn inputs(&self, rng: &mut Rng) -> Vec<HostTensor> {
        [self.x, self.y].map(|place| HostTensor::normal(rng, place.start + self.t * place.stride)).into()
    }
    fn forward(&self, x: &[Vec<f64>]) -> Vec<Vec<f64>> {
        let mut y = x[1].clone();
        self.pairs().for_each(|(from, to)| y[to] = x[0][from] + if self.adds { y[to] } else { 0.0 });
        vec![y]
    }
    /// The gradient of the earlier y is d_y where the columns were added, and is not compared elsewhere.
    fn backward(&self, x: &[Vec<f64>], d_y: &[Vec<f64>]) -> Vec<Vec<f64>> {
        let mut d_x = vec![0.0; x[0].len()];
        self.pairs().for_each(|(from, to)| d_x[from] = d_y[0][to]);
        vec![d_x, if self.adds { d_y[0].clone() } else { Vec::new() }]
    }
    fn d_y_lens(&self) -> Vec<usize> {
        vec![self.y.start + self.t * self.y.stride]
    }
    fn launch(&self, rec: &mut Recording, x: &[Slot], d_y: &[Slot]) -> CaseOutputs {
        let [y, d_x] = [&x[1], &x[0]].map(|like| rec.gpu().alloc_activation(like.len()));
        rec.copy(&x[1], &y);
        rec.clear(&d_x);
        let shape = [self.t, self.width];
        let entry = if self.adds { columns_add } else { columns_copy };
        entry(rec, shape, (&x[0], self.x), (&y, self.y));
        columns_copy(rec, shape, (&d_y[0], self.y), (&d_x, self.x));
        CaseOutputs { y: vec![y], d_x: vec![Some(d_x), self.adds.then(|| d_y[0].clone())] }
    }
    fn reduction_len(&self) -> usize {
        1
    }
    fn cost(&self) -> Cost {
        let n = (self.t * self.width) as u64;
        Cost { bytes: 4 * (4 + u64::from(self.adds)) * n, flops: u64::from(self.adds) * n }
    }
}
