//! Operands of a matrix product, and their bindings.

use super::{LinearPass, MatmulDesc, WeightFormat};
use crate::gpu::{CountedWork, Recording, Shader, Slot};

/// Matrix inside a slot. `start` and `stride` count elements of the matrix as stored.
#[derive(Debug, Clone, Copy)]
pub struct OperandMatrix<'a> {
    /// Slot that contains the matrix.
    pub slot: &'a Slot,
    /// First element.
    pub start: usize,
    /// Elements from one stored row to the next.
    pub stride: usize,
    /// Absmax of the values, where it is known: of A's rows, from [`super::row_absmax`], or of all of B (1), from [`super::weight_absmax`]. Only
    /// products below the highest precision read it.
    pub absmax: Option<&'a Slot>,
}

impl<'a> OperandMatrix<'a> {
    /// Describes rows of `stride` elements from the slot's beginning.
    pub fn new(slot: &'a Slot, stride: usize) -> Self {
        Self { slot, start: 0, stride, absmax: None }
    }
    /// Returns the part from column `column` on.
    pub fn columns_from(self, column: usize) -> Self {
        Self { start: self.start + column, ..self }
    }
    /// Returns the matrix with its absmax.
    pub fn with_absmax(self, absmax: Option<&'a Slot>) -> Self {
        Self { absmax, ..self }
    }
    /// Returns whether the matrix's stored rows begin at multiples of four elements.
    pub(super) fn in_vec4s(&self) -> bool {
        self.start.is_multiple_of(4) && self.stride.is_multiple_of(4)
    }
}

/// Second pair of operands, of low rank (LoRA), added to the first pair's sums: C = alpha·(A·B + A2·B2) (+ C).
#[derive(Debug, Clone, Copy)]
pub struct LowRank<'a> {
    /// Storage format of B2.
    pub storage: WeightFormat,
    /// K2, the number of terms that the second pair adds to each sum.
    pub k: usize,
    /// A2 (M, K2).
    pub a: OperandMatrix<'a>,
    /// B2 (K2, N), stored as the orientation stores B.
    pub b: OperandMatrix<'a>,
}

impl LowRank<'_> {
    /// Returns whether the second pair is fused into the first pair's pass. Neither the variant nor M decides, because results must depend
    /// on neither.
    pub(super) fn can_fuse(&self, p: &MatmulDesc) -> bool {
        let in_vec4s = self.k.is_multiple_of(4) && self.a.in_vec4s() && self.b.in_vec4s();
        let is_read = match p.orientation {
            LinearPass::Forward => true,
            LinearPass::BackwardX => last_vec4_is_inside(p, self.b),
            LinearPass::BackwardW => false,
        };
        self.storage == WeightFormat::F32 && in_vec4s && is_read
    }
}

/// Epilogue, added to the sums: first the bias, then the residual. C = alpha·A·B (+ C) + bias + residual.
#[derive(Debug, Clone, Copy, Default)]
pub struct Epilogue<'a> {
    /// Bias (N), added to each row: its slot, and its first element there.
    pub bias: Option<(&'a Slot, usize)>,
    /// Residual (M, N), with the start and the stride of C in its own slot.
    pub residual: Option<&'a Slot>,
}

impl Epilogue<'_> {
    fn is_empty(&self) -> bool {
        self.bias.is_none() && self.residual.is_none()
    }
}

/// Operands of a product.
#[derive(Debug, Clone, Copy)]
pub struct MatmulOperands<'a> {
    /// A (M, K); [`super::LinearPass`] says whether it is stored transposed.
    pub a: OperandMatrix<'a>,
    /// B (K, N); [`super::LinearPass`] says whether it is stored transposed.
    pub b: OperandMatrix<'a>,
    /// Second pair of operands.
    pub second: Option<LowRank<'a>>,
    /// Bias and residual.
    pub epilogue: Epilogue<'a>,
    /// C (M, N).
    pub c: OperandMatrix<'a>,
}

impl<'a> MatmulOperands<'a> {
    /// Creates the operands of one pair, without an epilogue.
    pub fn new(a: OperandMatrix<'a>, b: OperandMatrix<'a>, c: OperandMatrix<'a>) -> Self {
        Self { a, b, second: None, epilogue: Epilogue::default(), c }
    }

    /// Dispatches a shader of one pair, extended by the second pair and the epilogue where the operands have them.
    pub(super) fn dispatch(&self, rec: &mut Recording, shader: &Shader, p: &MatmulDesc, grid: [u32; 2]) {
        let mut slots = vec![self.a.slot, self.b.slot, self.c.slot];
        let mut shader = shader.clone();
        if let Some(second) = &self.second {
            slots.extend([second.a.slot, second.b.slot]);
            shader = with_second(shader);
        }
        self.dispatch_to(rec, shader, p, slots, grid);
    }

    /// Dispatches a shader on `slots` and, behind them, the epilogue's slots.
    pub(super) fn dispatch_to(
        &self,
        rec: &mut Recording,
        mut shader: Shader,
        p: &MatmulDesc,
        mut slots: Vec<&'a Slot>,
        grid: [u32; 2],
    ) {
        let Epilogue { bias, residual } = self.epilogue;
        if !self.epilogue.is_empty() {
            shader = with_epilogue(shader, slots.len(), bias.is_some(), residual.is_some());
            // A binding that nothing reads holds A's slot.
            slots.extend([bias.map_or(self.a.slot, |b| b.0), residual.unwrap_or(self.a.slot)]);
        }
        rec.dispatch_in_parts(&shader, &self.params(p), &slots, grid, self.work(p));
    }

    /// Counts the operations of both pairs, and the bytes of the matrices, which may be parts of their slots.
    fn work(&self, p: &MatmulDesc) -> CountedWork {
        let (b_rows, b_columns) = if p.orientation == LinearPass::Forward { (p.n, p.k) } else { (p.k, p.n) };
        let k2 = self.second.map_or(0, |second| second.k);
        let of_c = 1 + usize::from(p.accumulate) + usize::from(self.epilogue.residual.is_some());
        let words = p.m * p.k + p.storage.words(b_rows, b_columns) + k2 * (p.m + p.n) + of_c * p.m * p.n;
        let bias = if self.epilogue.bias.is_some() { p.n } else { 0 };
        CountedWork::new(2 * (p.m * p.n * (p.k + k2)) as u64, 4 * (words + bias) as u64)
    }

    pub(super) fn params(&self, p: &MatmulDesc) -> MatmulParams {
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
            low_rank_x_start: a2.start as u32,
            low_rank_x_stride: a2.stride as u32,
            low_rank_w_start: b2.start as u32,
            low_rank_w_stride: b2.stride as u32,
            bias_start: epilogue.bias.map_or(0, |b| b.1 as u32),
            first_expert: 0,
            n_experts: 0,
            expert_stride: 0,
            expert_words: 0,
        }
    }
}

/// Adds an epilogue to a shader, with its slots bound behind the first `n_slots` slots.
fn with_epilogue(shader: Shader, n_slots: usize, bias: bool, residual: bool) -> Shader {
    let flag = |on| f64::from(u8::from(on));
    shader
        .substitute("shared/epilogue_none", "shared/epilogue")
        .with("EPILOGUE", (n_slots + 1) as f64)
        .with("BIAS", flag(bias))
        .with("RESIDUAL", flag(residual))
}

/// Returns a shader with each epilogue: bias, residual, and both.
pub(super) fn with_epilogues(shader: Shader, n_slots: usize) -> impl Iterator<Item = Shader> {
    let some = [(true, false), (false, true), (true, true)];
    some.into_iter().map(move |(bias, residual)| with_epilogue(shader.clone(), n_slots, bias, residual))
}

/// Returns a shader for one pair and for two pairs of operands, each without and with each epilogue.
pub(super) fn with_all(shader: Shader) -> Vec<Shader> {
    let two = with_second(shader.clone());
    let added = with_epilogues(shader.clone(), 3).chain(with_epilogues(two.clone(), 5));
    added.chain([shader.clone(), two.clone()]).collect()
}

/// Extends a shader for one pair of operands by the second pair.
pub(super) fn with_second(shader: Shader) -> Shader {
    shader.substitute("shared/low_rank_none", "shared/low_rank")
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
    low_rank_x_start: u32,
    low_rank_x_stride: u32,
    low_rank_w_start: u32,
    low_rank_w_stride: u32,
    bias_start: u32,
    first_expert: u32,
    n_experts: u32,
    expert_stride: u32,
    expert_words: u32,
}

impl MatmulParams {
    /// Adds a range of experts: its first one and their number, and the elements or words from an expert's matrix to the next one's.
    pub fn with_experts(self, [first, n]: [usize; 2], [stride, words]: [usize; 2]) -> Self {
        Self {
            first_expert: first as u32,
            n_experts: n as u32,
            expert_stride: stride as u32,
            expert_words: words as u32,
            ..self
        }
    }
}

/// Returns whether the last vec4 of a row, which is read even beyond N, lies inside B.
pub(super) fn last_vec4_is_inside(p: &MatmulDesc, b: OperandMatrix) -> bool {
    p.n.is_multiple_of(4) || (b.start == 0 && p.n <= b.stride)
}
