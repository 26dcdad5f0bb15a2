//! Weights of a mixture of experts, and the products of all experts at once.
//!
//! A checkpoint has a tensor per expert and projection, and so has this program: each is loaded, quantised, trained and saved like any other
//! matrix, under the checkpoint's name. What makes a stack of them is their place: a projection's matrices are allocated one after the other,
//! so they lie in one buffer at equal distances, and a kernel binds a range of them ([`ExpertGroup`]). gpt-oss has one tensor (X, in, out) per
//! projection. Its groups are parts of a single weight, and the orientations of its products are exchanged, because a product with W (in, out)
//! is the dense kernels' d_x.

use super::description::LinearSpec;
use super::weights::Weight;
use crate::gpu::{Recording, Slot};
use crate::kernels::expert_bias::{ExpertBiases, expert_bias_bwd_b, expert_bias_bwd_s, expert_bias_fwd};
use crate::kernels::matmul::{
    ExpertMatrices, ExpertRows, LinearPass, MatmulDesc, OperandMatrix, experts_matmul, experts_matmul_bwd_w,
};
use crate::kernels::router::ExpertChoice;
use crate::kernels::storage::WeightFormat;

/// Matrices, or the same rows of matrices, of neighbouring experts that lie in one buffer at equal distances.
#[derive(Debug, Clone)]
struct ExpertGroup {
    /// Number of the first expert.
    first: usize,
    /// Number of experts.
    n: usize,
    /// First row of each matrix, as stored.
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
    /// Describes the experts in a part of a stack, whose matrices have `rows` rows each.
    fn of_stack(weight: &Weight, part: usize, rows: usize) -> Self {
        let shard = &weight.parts[part];
        let (first, n) = (shard.first / rows, shard.rows / rows);
        assert!(shard.first == first * rows && shard.rows == n * rows, "{}: a part of an expert", weight.spec.name);
        let placed = |slot: &Slot| (slot.clone(), slot.len() / n);
        let (w, d_w) = (placed(&shard.w), shard.d_w.as_ref().map(placed));
        Self { first, n, first_row: 0, rows, storage: weight.storage, w, d_w }
    }

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

/// One projection of all experts: W (n_out, n_in) of each, or W (n_in, n_out) in a single weight.
#[derive(Debug, Clone)]
pub struct ExpertStack {
    /// First column in the output slot.
    column: usize,
    n_in: usize,
    n_out: usize,
    /// Weights of the X experts, or the one that holds all of them.
    pub weights: Vec<Weight>,
    /// Biases of the X experts, (X, n_out), of a single weight.
    pub biases: Option<Weight>,
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
        let LinearSpec { column, n_in, n_out, .. } = modules[0];
        Self { column, n_in, n_out, weights, biases: None, groups }
    }

    /// Creates the projection from a weight (X, n_in, n_out) that holds all experts, and their biases (X, n_out).
    pub(super) fn stacked(module: &LinearSpec, weight: Weight, biases: Weight) -> Self {
        let &LinearSpec { column, n_in, n_out, .. } = module;
        let mut groups: Vec<ExpertGroup> = Vec::new();
        for part in 0..weight.parts.len() {
            let group = ExpertGroup::of_stack(&weight, part, n_in);
            let joins = group.n == 1 && groups.last_mut().is_some_and(|last| last.extend(&weight, part));
            if !joins {
                groups.push(group);
            }
        }
        Self { column, n_in, n_out, weights: vec![weight], biases: Some(biases), groups }
    }

    /// Returns whether matrices are stored as (n_in, n_out).
    fn is_stacked(&self) -> bool {
        self.biases.is_some()
    }

    /// Returns the columns of a matrix, as stored.
    fn cols(&self) -> usize {
        if self.is_stacked() { self.n_out } else { self.n_in }
    }

    /// Returns all weights, in the order of [`super::description::ExpertsConfig::tensors`].
    fn all(&self) -> impl Iterator<Item = &Weight> {
        self.weights.iter().chain(&self.biases)
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
            LinearPass::Forward => (rows, group.rows, self.cols()),
            LinearPass::BackwardX => (rows, self.cols(), group.rows),
            LinearPass::BackwardW => (group.rows, self.cols(), rows),
        };
        let storage = if orientation == LinearPass::BackwardW { WeightFormat::F32 } else { group.storage };
        MatmulDesc { orientation, storage, m, n, k, alpha: 1.0, accumulate }
    }

    /// Computes y (rows, n_out) from x (rows, n_in).
    pub(super) fn forward(&self, rec: &mut Recording, rows: &ExpertRows, x: &Slot, (y, column, stride): RowColumns) {
        for group in &self.groups {
            let pass = if self.is_stacked() { LinearPass::BackwardX } else { LinearPass::Forward };
            let p = self.product(pass, group, rows.rows, false);
            let y = columns((y, column + group.first_row, stride));
            let w = group.matrices(&group.w);
            experts_matmul(rec, &p, rows, OperandMatrix::new(x, self.n_in), (&w, self.cols()), y);
        }
        if let Some(biases) = &self.biases {
            expert_bias_fwd(rec, &self.bias_rows(rows, stride), rows.sorted, biases.slot(), y);
        }
    }

    /// Describes the biases for rows of `stride` elements, of which they have the first ones.
    fn bias_rows(&self, rows: &ExpertRows, stride: usize) -> ExpertBiases {
        let experts = self.biases.as_ref().map_or(0, |biases| biases.rows);
        ExpertBiases { experts, rows: rows.rows, width: self.n_out, stride }
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
            let pass = if self.is_stacked() { LinearPass::Forward } else { LinearPass::BackwardX };
            let p = self.product(pass, group, rows.rows, accumulate || group.first_row > 0);
            let d_y = columns((d_y, column + group.first_row, stride));
            let w = group.matrices(&group.w);
            experts_matmul(rec, &p, rows, d_y, (&w, self.cols()), OperandMatrix::new(d_x, self.n_in));
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
            let (x, d_w) = (OperandMatrix::new(x, self.n_in), group.matrices(d_w));
            let [a, b] = if self.is_stacked() { [x, d_y] } else { [d_y, x] };
            experts_matmul_bwd_w(rec, &p, rows, a, b, (&d_w, self.cols()));
        }
    }

    /// Adds the gradients of the biases, where they are trained, from d_y (rows, stride) and, where rows are summed with weights, these.
    pub(super) fn backward_b(
        &self,
        rec: &mut Recording,
        rows: &ExpertRows,
        weights: Option<&Slot>,
        (d_y, stride): (&Slot, usize),
    ) {
        if let Some(d_b) = self.biases.as_ref().and_then(Weight::grad) {
            expert_bias_bwd_b(rec, &self.bias_rows(rows, stride), rows.sorted, weights, d_y, d_b);
        }
    }

    /// Adds the biases' part of the gradient of the router's weights from d_y (rows, n_out).
    pub(super) fn backward_s(
        &self,
        rec: &mut Recording,
        rows: &ExpertRows,
        choice: &ExpertChoice,
        d_y: &Slot,
        d_weights: &Slot,
    ) {
        if let Some(biases) = &self.biases {
            let bias_rows = self.bias_rows(rows, self.n_out);
            expert_bias_bwd_s(rec, &bias_rows, rows.sorted, choice, biases.slot(), d_y, d_weights);
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
    /// Returns all weights, in the order of [`super::description::ExpertsConfig::tensors`].
    pub fn all(&self) -> impl Iterator<Item = &Weight> {
        let stacks = self.up.iter().chain([&self.down]);
        std::iter::once(&self.router).chain(&self.router_bias).chain(stacks.flat_map(ExpertStack::all))
    }

    /// Returns whether the router or the experts are trained.
    pub fn trained(&self) -> bool {
        self.router.trained() || self.up.iter().chain([&self.down]).any(ExpertStack::trained)
    }
}
