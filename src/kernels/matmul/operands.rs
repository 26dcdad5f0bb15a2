//! What a product reads and writes.

use super::cpu::last_quad_is_inside;
use super::{Orientation, Product, Storage};
use crate::gpu::{Recording, Shader, Slot};

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
    /// Whether its rows begin at quads.
    pub(super) fn in_quads(&self) -> bool {
        self.start.is_multiple_of(4) && self.stride.is_multiple_of(4)
    }
}

/// A second pair of operands, of low rank, added to the same sums: C = alpha·(A·B + A2·B2) (+ C).
#[derive(Debug, Clone, Copy)]
pub struct Second<'a> {
    /// Storage of B2.
    pub storage: Storage,
    /// Terms of each of its sums.
    pub k: usize,
    /// (M, K2).
    pub a: Matrix<'a>,
    /// (K2, N), stored as the orientation has B.
    pub b: Matrix<'a>,
}

impl Second<'_> {
    /// Whether the first pair's pass takes it along. No variant has a say, nor has M: bits must depend on neither.
    pub(super) fn rides_along(&self, p: &Product) -> bool {
        let in_quads = self.k.is_multiple_of(4) && self.a.in_quads() && self.b.in_quads();
        let is_read = match p.orientation {
            Orientation::Forward => true,
            Orientation::BackwardX => last_quad_is_inside(p, self.b),
            Orientation::BackwardW => false,
        };
        self.storage == Storage::F32 && in_quads && is_read
    }
}

/// What is added behind the sums, first the bias, then the residual: C = alpha·A·B (+ C) + bias + residual.
#[derive(Debug, Clone, Copy, Default)]
pub struct Epilogue<'a> {
    /// (N), from an element of its slot on, to each row.
    pub bias: Option<(&'a Slot, usize)>,
    /// (M, N), laid out in its slot as C is in its own.
    pub residual: Option<&'a Slot>,
}

impl Epilogue<'_> {
    fn is_empty(&self) -> bool {
        self.bias.is_none() && self.residual.is_none()
    }
}

/// All of a product's.
#[derive(Debug, Clone, Copy)]
pub struct Operands<'a> {
    /// (M, K), as stored.
    pub a: Matrix<'a>,
    /// (K, N), as stored.
    pub b: Matrix<'a>,
    /// Another pair.
    pub second: Option<Second<'a>>,
    /// What else is added.
    pub epilogue: Epilogue<'a>,
    /// (M, N).
    pub c: Matrix<'a>,
}

impl<'a> Operands<'a> {
    /// Of one pair, with nothing added.
    pub fn new(a: Matrix<'a>, b: Matrix<'a>, c: Matrix<'a>) -> Self {
        Self { a, b, second: None, epilogue: Epilogue::default(), c }
    }

    /// Dispatches a shader of one pair, or the same of two, and of what is added.
    pub(super) fn dispatch(&self, rec: &mut Recording, shader: &Shader, p: &Product, grid: [u32; 2]) {
        let mut slots = vec![self.a.slot, self.b.slot, self.c.slot];
        let (mut shader, mut flops) = (shader.clone(), p.flops());
        if let Some(second) = &self.second {
            slots.extend([second.a.slot, second.b.slot]);
            shader = with_second(shader);
            flops += Product { k: second.k, ..*p }.flops();
        }
        self.dispatch_to(rec, shader, p, slots, grid, flops);
    }

    /// Dispatches a shader on these slots, and those of what is added behind them.
    pub(super) fn dispatch_to(
        &self,
        rec: &mut Recording,
        mut shader: Shader,
        p: &Product,
        mut slots: Vec<&'a Slot>,
        grid: [u32; 2],
        flops: u64,
    ) {
        let Epilogue { bias, residual } = self.epilogue;
        if !self.epilogue.is_empty() {
            shader = with_epilogue(shader, slots.len(), bias.is_some(), residual.is_some());
            // A binding that nothing is read from holds A.
            slots.extend([bias.map_or(self.a.slot, |b| b.0), residual.unwrap_or(self.a.slot)]);
        }
        rec.dispatch_in_parts(&shader, &self.params(p), &slots, grid, flops);
    }

    pub(super) fn params(&self, p: &Product) -> MatmulParams {
        let Self { a, b, second, epilogue, c } = self;
        let (a2, b2) = second.map_or((*a, *b), |s| (s.a, s.b));
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
            k2: second.map_or(0, |s| s.k as u32),
            a2_start: a2.start as u32,
            a2_stride: a2.stride as u32,
            b2_start: b2.start as u32,
            b2_stride: b2.stride as u32,
            bias_start: epilogue.bias.map_or(0, |b| b.1 as u32),
        }
    }
}

/// The same shader with what is added behind the sums, bound behind the first `n_slots` slots.
fn with_epilogue(shader: Shader, n_slots: usize, bias: bool, residual: bool) -> Shader {
    let flag = |on| f64::from(u8::from(on));
    shader
        .substitute("shared/epilogue_none", "shared/epilogue")
        .with("EPILOGUE", (n_slots + 1) as f64)
        .with("BIAS", flag(bias))
        .with("RESIDUAL", flag(residual))
}

/// The same shader with all that may be added.
pub(super) fn with_epilogues(shader: Shader, n_slots: usize) -> impl Iterator<Item = Shader> {
    let some = [(true, false), (false, true), (true, true)];
    some.into_iter().map(move |(bias, residual)| with_epilogue(shader.clone(), n_slots, bias, residual))
}

/// The same shader of one pair and of two, each also with all that may be added.
pub(super) fn with_all(shader: Shader) -> Vec<Shader> {
    let two = with_second(shader.clone());
    let added = with_epilogues(shader.clone(), 3).chain(with_epilogues(two.clone(), 5));
    added.chain([shader.clone(), two.clone()]).collect()
}

/// The same shader with a second pair.
pub(super) fn with_second(shader: Shader) -> Shader {
    shader.substitute("shared/second_none", "shared/second")
}

#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
pub(super) struct MatmulParams {
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
    k2: u32,
    a2_start: u32,
    a2_stride: u32,
    b2_start: u32,
    b2_stride: u32,
    bias_start: u32,
}
