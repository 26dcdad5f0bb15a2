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

/// All of a product's.
#[derive(Debug, Clone, Copy)]
pub(super) struct Operands<'a> {
    pub a: Matrix<'a>,
    pub b: Matrix<'a>,
    pub second: Option<Second<'a>>,
    pub c: Matrix<'a>,
}

impl<'a> Operands<'a> {
    /// Of one pair.
    pub fn new(a: Matrix<'a>, b: Matrix<'a>, c: Matrix<'a>) -> Self {
        Self { a, b, second: None, c }
    }

    /// Dispatches a shader of one pair, or the same of two.
    pub fn dispatch(&self, rec: &mut Recording, shader: &Shader, p: &Product, grid: [u32; 3]) {
        let mut slots = vec![self.a.slot, self.b.slot, self.c.slot];
        let Some(second) = &self.second else {
            return rec.dispatch(shader, &self.params(p), &slots, grid, p.flops());
        };
        slots.extend([second.a.slot, second.b.slot]);
        let flops = p.flops() + Product { k: second.k, ..*p }.flops();
        rec.dispatch(&with_second(shader.clone()), &self.params(p), &slots, grid, flops);
    }

    pub fn params(&self, p: &Product) -> MatmulParams {
        let Self { a, b, second, c } = self;
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
        }
    }
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
}
