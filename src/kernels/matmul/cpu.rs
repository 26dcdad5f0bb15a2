//! Entry points of `matmul_cpu.wgsl`, and the unpacking of weights before them.

use super::operands::{last_vec4_is_inside, with_all, with_epilogues};
use super::{LinearPass, LowRank, MatmulDesc, MatmulOperands, OperandMatrix, WeightFormat, with_second};
use crate::gpu::{MatmulPrecision, Recording, Shader, Slot, Variant};

/// Entry points of `matmul_cpu.wgsl` that compute a product.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum CpuMatmul {
    Rows,
    Narrow,
    Dots,
}

/// Lanes per workgroup of `matmul_cpu`.
const LANES: usize = 8;
/// Largest number of columns for which lanes go along the rows instead.
pub(super) const NARROW: usize = 32;
/// Smallest number of rows of x at which unpacking W beforehand saves time.
pub(super) const UNPACK_FROM: usize = 32;

impl CpuMatmul {
    /// Rows per workgroup of the entry points that compute experts' products.
    pub const ROWS: usize = 8;

    /// Returns the entry point for experts' products, whose rows are few.
    pub fn for_experts(orientation: LinearPass) -> Self {
        if orientation == LinearPass::Forward { Self::Dots } else { Self::Rows }
    }

    /// Returns the columns of C per workgroup.
    pub fn columns(self) -> usize {
        match self {
            Self::Rows => LANES * 8,
            Self::Narrow => 8,
            Self::Dots => LANES,
        }
    }

    /// Returns the fastest entry point for a product, if the vec4s of B are aligned as it needs.
    pub fn choose(p: &MatmulDesc, b: OperandMatrix, allowed: &[Variant]) -> Option<Self> {
        if !allowed.contains(&Variant::Cpu) || !b.in_vec4s() {
            return None;
        }
        match p.orientation {
            LinearPass::Forward => p.k.is_multiple_of(4).then_some(Self::Dots),
            _ if !last_vec4_is_inside(p, b) => None,
            _ if p.n <= NARROW => Some(Self::Narrow),
            _ => Some(Self::Rows),
        }
    }

    pub fn shader(self, a_transposed: bool, storage: WeightFormat, accumulate: bool) -> Shader {
        let entry = match self {
            Self::Rows => "matmul_rows",
            Self::Narrow => "matmul_narrow",
            Self::Dots => "matmul_dots",
        };
        let shader =
            storage.select(Shader::new("matmul_cpu", entry).with("ACCUMULATE", f64::from(u8::from(accumulate))));
        if a_transposed { shader.with("A_TRANSPOSED", 1.0) } else { shader }
    }

    fn grid(self, p: &MatmulDesc) -> [u32; 2] {
        let rows = if self == Self::Narrow { LANES * 4 } else { Self::ROWS };
        [p.n.div_ceil(self.columns()) as u32, p.m.div_ceil(rows) as u32]
    }
}

/// Returns every specialisation for a storage format.
pub(super) fn shaders(storage: WeightFormat) -> Vec<Shader> {
    let mut all = vec![unpacking(storage, true)];
    if storage.is_quantised() {
        all.push(unpacking(storage, false));
    }
    for accumulate in [false, true] {
        all.extend(with_all(CpuMatmul::Dots.shader(false, storage, accumulate)));
        for shader in [CpuMatmul::Rows, CpuMatmul::Narrow].map(|c| c.shader(false, storage, accumulate)) {
            // Forward products of these formats read an unpacked weight.
            if storage == WeightFormat::F32 {
                all.extend(with_epilogues(shader.clone(), 3).chain(with_epilogues(with_second(shader.clone()), 5)));
            }
            all.push(with_second(shader));
        }
        // Only d_W has a transposed A, and its B is not a weight.
        for a_transposed in [false, true].into_iter().take(if storage.is_quantised() { 1 } else { 2 }) {
            all.extend([CpuMatmul::Rows, CpuMatmul::Narrow].map(|c| c.shader(a_transposed, storage, accumulate)));
        }
    }
    all
}

pub(super) fn launch(rec: &mut Recording, cpu: CpuMatmul, p: &MatmulDesc, o: MatmulOperands) {
    let b_transposed = cpu == CpuMatmul::Dots;
    if p.m >= UNPACK_FROM && (b_transposed || p.storage.is_quantised()) {
        let unpacked = UnpackedWeight::new(rec, p, &o);
        let (p, o) = (unpacked.product(p), unpacked.operands(o));
        return super::launch(rec, &p, o, &[Variant::Cpu], MatmulPrecision::Highest);
    }
    let shader = cpu.shader(p.orientation == LinearPass::BackwardW, p.storage, p.accumulate);
    o.dispatch(rec, &shader, p, cpu.grid(p));
}

/// Unpacked operands, each with its stride: B in f32 as (K, N), and B2 as (K2, N) where B2 is stored transposed.
pub(super) struct UnpackedWeight {
    b: (Slot, usize),
    b2: Option<(Slot, usize)>,
}

impl UnpackedWeight {
    pub fn new(rec: &mut Recording, p: &MatmulDesc, o: &MatmulOperands) -> Self {
        let transposed = p.orientation == LinearPass::Forward;
        let (rows, columns) = if transposed { (p.n, p.k) } else { (p.k, p.n) };
        let b = unpack(rec, o.b, p.storage, transposed, rows, columns);
        let stored_transposed = o.second.filter(|_| transposed);
        Self { b, b2: stored_transposed.map(|s| unpack(rec, s.b, s.storage, true, p.n, s.k)) }
    }

    /// Returns the description of the product on the unpacked operands.
    pub fn product(&self, p: &MatmulDesc) -> MatmulDesc {
        MatmulDesc { orientation: LinearPass::BackwardX, storage: WeightFormat::F32, ..*p }
    }

    pub fn operands<'a>(&'a self, o: MatmulOperands<'a>) -> MatmulOperands<'a> {
        let matrix = |(slot, stride): &'a (Slot, usize)| OperandMatrix::new(slot, *stride);
        let second = o.second.map(|s| LowRank { b: self.b2.as_ref().map_or(s.b, matrix), ..s });
        MatmulOperands { b: matrix(&self.b), second, ..o }
    }
}

/// Returns the shader that unpacks a weight into f32, transposed or as stored.
fn unpacking(storage: WeightFormat, b_transposed: bool) -> Shader {
    let shader = Shader::new("matmul_cpu", "matmul_unpack").with("B_TRANSPOSED", f64::from(u8::from(b_transposed)));
    storage.select(shader)
}

/// Copies a matrix stored (rows, columns) into f32, transposed or not, with rows padded to whole vec4s. Columns, start and stride must be
/// multiples of four. Returns the copy and its stride.
fn unpack(
    rec: &mut Recording,
    m: OperandMatrix,
    storage: WeightFormat,
    transposed: bool,
    rows: usize,
    columns: usize,
) -> (Slot, usize) {
    let (n, k) = if transposed { (rows, columns) } else { (columns, rows) };
    let stride = n.next_multiple_of(4);
    let unpacked = rec.gpu().alloc_activation(stride * k);
    let orientation = LinearPass::Forward;
    let p = MatmulDesc { orientation, storage, m: columns, n, k: columns, alpha: 1.0, accumulate: false };
    let grid = [columns.div_ceil(LANES * 4) as u32, rows as u32];
    let params = MatmulOperands::new(m, m, OperandMatrix::new(&unpacked, stride)).params(&p);
    rec.dispatch_in_parts(&unpacking(storage, transposed), &params, &[&unpacked, m.slot], grid, 0);
    (unpacked, stride)
}
