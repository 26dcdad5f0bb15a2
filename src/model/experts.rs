//! Weights of a mixture of experts, and the products of all experts at once.
//!
//! A checkpoint has a tensor per expert and projection, and so has this program: each is loaded, quantised, trained and saved like any other
//! matrix, under the checkpoint's name. What makes a stack of them is their place: a projection's matrices are allocated one after the other,
//! so they lie in one buffer at equal distances, and a kernel binds a range of them ([`ExpertGroup`]). A family whose checkpoint has one
//! tensor (X, in, out) per projection can build the same groups from the parts of a single weight, with the orientations of the products
//! exchanged, because a product with W (in, out) is the dense kernels' d_x.

use super::description::LinearSpec;
use super::weights::Weight;
use crate::gpu::{Recording, Slot};
use crate::kernels::matmul::{
    ExpertMatrices, ExpertRows, LinearPass, MatmulDesc, OperandMatrix, experts_matmul, experts_matmul_bwd_w,
};
use crate::kernels::storage::WeightFormat;

/// Matrices, or the same rows of matrices, of neighbouring experts that lie in one buffer at equal distances.
#[derive(Debug, Clone)]
struct ExpertGroup {
    /// Number of the first expert.
    first: usize,
    /// Number of experts.
    n: usize,
    /// First row of each matrix.
    first_row: usize,
    /// Rows of each matrix.
    rows: usize,
    storage: WeightFormat,
    /// Slot of all matrices, and the words from one to the next.
    w: (Slot, usize),
    /// Their gradients, where they are trained.
    d_w: Option<(Slot, usize)>,
}

/// Returns the slot of the slots so far and one more at the same distance, with that distance. `n` is their number so far.
fn extended((slot, stride): &(Slot, usize), n: usize, next: &Slot) -> Option<(Slot, usize)> {
    let distance = slot.distance_to(next)?;
    let stride = if n == 1 { distance } else { *stride };
    (distance == n * stride && stride.is_multiple_of(64)).then(|| (slot.through(next), stride))
}

impl ExpertGroup {
    fn new(weights: &[Weight], first: usize, part: usize) -> Self {
        let (weight, shard) = (&weights[first], &weights[first].parts[part]);
        Self {
            first,
            n: 1,
            first_row: shard.first,
            rows: shard.rows,
            storage: weight.storage,
            w: (shard.w.clone(), shard.w.len()),
            d_w: shard.d_w.clone().map(|d_w| (d_w.clone(), d_w.len())),
        }
    }

    /// Adds the next expert, if its matrix lies at the distance of the others.
    fn extend(&mut self, weight: &Weight, part: usize) -> bool {
        let shard = &weight.parts[part];
        let Some(w) = extended(&self.w, self.n, &shard.w).filter(|_| weight.storage == self.storage) else {
            return false;
        };
        match (&self.d_w, &shard.d_w) {
            (Some(d_w), Some(next)) => match extended(d_w, self.n, next) {
                Some(d_w) => self.d_w = Some(d_w),
                None => return false,
            },
            (None, None) => {}
            _ => return false,
        }
        (self.w, self.n) = (w, self.n + 1);
        true
    }

    fn matrices<'a>(&self, (slot, stride): &'a (Slot, usize)) -> ExpertMatrices<'a> {
        ExpertMatrices { first: self.first, n: self.n, slot, stride_words: *stride }
    }
}

/// One projection of all experts: W (n_out, n_in) of each.
#[derive(Debug, Clone)]
pub struct ExpertStack {
    /// First column in the output slot.
    column: usize,
    n_in: usize,
    /// Weights of the X experts.
    pub weights: Vec<Weight>,
    groups: Vec<ExpertGroup>,
}

/// Columns of a slot of rows: slot, first column, elements per row.
pub(super) type RowColumns<'a> = (&'a Slot, usize, usize);

fn columns((slot, column, stride): RowColumns) -> OperandMatrix {
    OperandMatrix { start: column, ..OperandMatrix::new(slot, stride) }
}

impl ExpertStack {
    /// Creates the projection from the weights of its modules, expert by expert.
    pub(super) fn new(modules: &[LinearSpec], weights: Vec<Weight>) -> Self {
        let mut groups: Vec<ExpertGroup> = Vec::new();
        for part in 0..weights[0].parts.len() {
            let mut group = ExpertGroup::new(&weights, 0, part);
            for (e, weight) in weights.iter().enumerate().skip(1) {
                if !group.extend(weight, part) {
                    groups.push(std::mem::replace(&mut group, ExpertGroup::new(&weights, e, part)));
                }
            }
            groups.push(group);
        }
        Self { column: modules[0].column, n_in: modules[0].n_in, weights, groups }
    }

    /// Returns the first column in the output slot.
    pub fn column(&self) -> usize {
        self.column
    }

    /// Returns whether the experts are trained.
    pub fn trained(&self) -> bool {
        self.weights[0].trained()
    }

    fn product(&self, orientation: LinearPass, group: &ExpertGroup, rows: usize, accumulate: bool) -> MatmulDesc {
        let (m, n, k) = match orientation {
            LinearPass::Forward => (rows, group.rows, self.n_in),
            LinearPass::BackwardX => (rows, self.n_in, group.rows),
            LinearPass::BackwardW => (group.rows, self.n_in, rows),
        };
        let storage = if orientation == LinearPass::BackwardW { WeightFormat::F32 } else { group.storage };
        MatmulDesc { orientation, storage, m, n, k, alpha: 1.0, accumulate }
    }

    /// Computes y (rows, n_out) from x (rows, n_in).
    pub(super) fn forward(&self, rec: &mut Recording, rows: &ExpertRows, x: &Slot, (y, column, stride): RowColumns) {
        for group in &self.groups {
            let p = self.product(LinearPass::Forward, group, rows.rows, false);
            let y = columns((y, column + group.first_row, stride));
            let w = group.matrices(&group.w);
            experts_matmul(rec, &p, rows, OperandMatrix::new(x, self.n_in), (&w, self.n_in), y);
        }
    }

    /// Computes d_x (rows, n_in) from d_y (rows, n_out), added to d_x when `accumulate`.
    pub(super) fn backward_x(
        &self,
        rec: &mut Recording,
        rows: &ExpertRows,
        (d_y, column, stride): RowColumns,
        d_x: &Slot,
        accumulate: bool,
    ) {
        for group in &self.groups {
            let p = self.product(LinearPass::BackwardX, group, rows.rows, accumulate || group.first_row > 0);
            let d_y = columns((d_y, column + group.first_row, stride));
            let w = group.matrices(&group.w);
            experts_matmul(rec, &p, rows, d_y, (&w, self.n_in), OperandMatrix::new(d_x, self.n_in));
        }
    }

    /// Adds the gradients of the experts' weights, where they are trained, from d_y (rows, n_out) and x (rows, n_in).
    pub(super) fn backward_w(
        &self,
        rec: &mut Recording,
        rows: &ExpertRows,
        (d_y, column, stride): RowColumns,
        x: &Slot,
    ) {
        for group in &self.groups {
            let Some(d_w) = &group.d_w else { continue };
            let p = self.product(LinearPass::BackwardW, group, rows.rows, true);
            let d_y = columns((d_y, column + group.first_row, stride));
            let d_w = group.matrices(d_w);
            experts_matmul_bwd_w(rec, &p, rows, d_y, OperandMatrix::new(x, self.n_in), (&d_w, self.n_in));
        }
    }
}

/// Weights of a layer's mixture of experts.
#[derive(Debug, Clone)]
pub struct ExpertsWeights {
    /// Router: (X, D).
    pub router: Weight,
    /// Bias of the router: (X).
    pub router_bias: Option<Weight>,
    /// Projections that write the columns of gate and up.
    pub up: Vec<ExpertStack>,
    /// Projection back to D.
    pub down: ExpertStack,
}

impl ExpertsWeights {
    /// Returns all weights, in the order of [`super::description::ExpertsConfig::modules`].
    pub fn all(&self) -> impl Iterator<Item = &Weight> {
        let stacks = self.up.iter().chain([&self.down]);
        std::iter::once(&self.router).chain(&self.router_bias).chain(stacks.flat_map(|stack| &stack.weights))
    }

    /// Returns whether the router or the experts are trained.
    pub fn trained(&self) -> bool {
        self.router.trained() || self.up.iter().chain([&self.down]).any(ExpertStack::trained)
    }
}
