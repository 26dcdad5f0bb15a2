//! Weights of a mixture of experts, and the products of all experts at once.
//!
//! Qwen3's checkpoints have a tensor per expert and projection, and so has this program: each is loaded, quantised, trained and saved like
//! any other matrix, under the checkpoint's name. What makes a stack of them is their place: a projection's matrices are allocated one after
//! the other, so they lie in one buffer at equal distances, and a kernel binds a range of them ([`ExpertGroup`]). gpt-oss's checkpoints have
//! one tensor (X, in, out) per projection. It becomes one weight with a part per expert, each transposed, and the parts make the same
//! groups. Where gate and up alternate in its rows, each of the two is a matrix whose rows lie two rows apart.

use super::description::ExpertProjection;
use super::saved::ExpertRouting;
use super::weights::{RowShard, Weight};
use crate::gpu::{Recording, Slot};
use crate::kernels::expert_bias::{BiasColumns, expert_bias_bwd, expert_bias_bwd_w, expert_bias_fwd};
use crate::kernels::matmul::{
    ExpertMatrices, LinearPass, MatmulDesc, OperandMatrix, experts_matmul, experts_matmul_bwd_w,
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

/// Rows of one expert's matrix.
struct ExpertShard<'a> {
    expert: usize,
    first_row: usize,
    storage: WeightFormat,
    shard: &'a RowShard,
}

impl ExpertGroup {
    fn new(of: &ExpertShard) -> Self {
        let shard = of.shard;
        Self {
            first: of.expert,
            n: 1,
            first_row: of.first_row,
            rows: shard.rows,
            storage: of.storage,
            w: (shard.w.clone(), shard.w.len()),
            d_w: shard.d_w.clone().map(|d_w| (d_w.clone(), d_w.len())),
        }
    }

    /// Adds the next expert, if its matrix lies at the distance of the others.
    fn extend(&mut self, next: &ExpertShard) -> bool {
        let ExpertShard { shard, storage, expert, .. } = next;
        let is_next = *expert == self.first + self.n && *storage == self.storage && shard.rows == self.rows;
        let Some(w) = extended(&self.w, self.n, &shard.w).filter(|_| is_next) else { return false };
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
    n_out: usize,
    n_in: usize,
    /// First column in the output slot.
    column: usize,
    /// Number of parts whose outputs alternate: 2 where gate and up do, else 1.
    parts: usize,
    /// Weights: one per expert, or one of all.
    pub weights: Vec<Weight>,
    /// Biases: (X, n_out).
    pub bias: Option<Weight>,
    groups: Vec<ExpertGroup>,
}

/// Rows of a group's matrices that belong to one of the alternating parts.
struct GroupRows<'a> {
    group: &'a ExpertGroup,
    /// Column of the first row's output, among those of the projection.
    column: usize,
    /// Number of rows.
    n: usize,
    /// First element in a matrix, and elements from row to row.
    place: [usize; 2],
}

impl ExpertStack {
    /// Creates a projection from its weights and biases.
    pub(super) fn new(config: &ExpertProjection, weights: Vec<Weight>, bias: Option<Weight>) -> Self {
        let &ExpertProjection { n_out, n_in, column, interleaved, .. } = config;
        let mut shards: Vec<ExpertShard> = Vec::new();
        for (i, weight) in weights.iter().enumerate() {
            shards.extend(weight.parts.iter().map(|shard| ExpertShard {
                expert: i + shard.first / n_out,
                first_row: shard.first % n_out,
                storage: weight.storage,
                shard,
            }));
        }
        shards.sort_by_key(|shard| (shard.first_row, shard.expert));
        let mut groups: Vec<ExpertGroup> = Vec::new();
        for shard in &shards {
            let last = groups.last_mut().filter(|group| group.first_row == shard.first_row);
            if !last.is_some_and(|group| group.extend(shard)) {
                groups.push(ExpertGroup::new(shard));
            }
        }
        Self { n_out, n_in, column, parts: if interleaved { 2 } else { 1 }, weights, bias, groups }
    }

    /// Returns whether the experts are trained.
    pub fn trained(&self) -> bool {
        self.weights[0].trained()
    }

    /// Returns all weights and biases.
    pub fn all(&self) -> impl Iterator<Item = &Weight> {
        self.weights.iter().chain(&self.bias)
    }

    fn rows(&self) -> impl Iterator<Item = GroupRows<'_>> {
        let parts = self.parts;
        self.groups.iter().flat_map(move |group| {
            let rows = move |part: usize| GroupRows {
                group,
                column: self.column + part * self.n_out / parts + group.first_row / parts,
                n: group.rows / parts,
                place: [part * self.n_in, parts * self.n_in],
            };
            (0..parts).map(rows)
        })
    }

    fn product(&self, orientation: LinearPass, of: &GroupRows, rows: usize, accumulate: bool) -> MatmulDesc {
        let (m, n, k) = match orientation {
            LinearPass::Forward => (rows, of.n, self.n_in),
            LinearPass::BackwardX => (rows, self.n_in, of.n),
            LinearPass::BackwardW => (of.n, self.n_in, rows),
        };
        let storage = if orientation == LinearPass::BackwardW { WeightFormat::F32 } else { of.group.storage };
        MatmulDesc { orientation, storage, m, n, k, alpha: 1.0, accumulate }
    }

    /// Returns the columns of a slot that have biases.
    fn bias_columns(&self, stride: usize) -> impl Iterator<Item = BiasColumns> {
        let (parts, n_out) = (self.parts, self.n_out);
        let width = n_out / parts;
        let start = self.column;
        let columns = move |part| BiasColumns {
            start: start + part * width,
            stride,
            width,
            first: part,
            step: parts,
            bias_width: n_out,
        };
        (0..parts).map(columns)
    }

    /// Computes y (rows, stride) from x (rows, n_in).
    pub(super) fn forward(&self, rec: &mut Recording, routing: &ExpertRouting, x: &Slot, (y, stride): (&Slot, usize)) {
        let rows = routing.rows();
        for of in self.rows() {
            let p = self.product(LinearPass::Forward, &of, rows.rows, false);
            let y = OperandMatrix::new(y, stride).columns_from(of.column);
            let w = of.group.matrices(&of.group.w);
            experts_matmul(rec, &p, &rows, OperandMatrix::new(x, self.n_in), (&w, of.place), y);
        }
        if let Some(bias) = &self.bias {
            for columns in self.bias_columns(stride) {
                expert_bias_fwd(rec, columns, &routing.sorted, &routing.choice, (bias.slot(), bias.storage), y);
            }
        }
    }

    /// Computes d_x (rows, n_in) from d_y (rows, stride), added to d_x when `accumulate`.
    pub(super) fn backward_x(
        &self,
        rec: &mut Recording,
        routing: &ExpertRouting,
        (d_y, stride): (&Slot, usize),
        d_x: &Slot,
        accumulate: bool,
    ) {
        let rows = routing.rows();
        for of in self.rows() {
            // The first rows of each expert's matrix begin its sums.
            let is_later = of.group.first_row > 0 || of.place[0] > 0;
            let p = self.product(LinearPass::BackwardX, &of, rows.rows, accumulate || is_later);
            let d_y = OperandMatrix::new(d_y, stride).columns_from(of.column);
            let w = of.group.matrices(&of.group.w);
            experts_matmul(rec, &p, &rows, d_y, (&w, of.place), OperandMatrix::new(d_x, self.n_in));
        }
    }

    /// Adds the gradients of the experts' weights, where they are trained, from d_y (rows, stride) and x (rows, n_in).
    pub(super) fn backward_w(
        &self,
        rec: &mut Recording,
        routing: &ExpertRouting,
        (d_y, stride): (&Slot, usize),
        x: &Slot,
    ) {
        let rows = routing.rows();
        for of in self.rows() {
            let Some(d_w) = &of.group.d_w else { continue };
            let p = self.product(LinearPass::BackwardW, &of, rows.rows, true);
            let d_y = OperandMatrix::new(d_y, stride).columns_from(of.column);
            let d_w = of.group.matrices(d_w);
            experts_matmul_bwd_w(rec, &p, &rows, d_y, OperandMatrix::new(x, self.n_in), (&d_w, of.place));
        }
    }

    /// Adds the gradients of the biases, where they are trained, from d_y (rows, stride). With `weighted`, d_y is that of each row's
    /// weighted output.
    pub(super) fn backward_bias(
        &self,
        rec: &mut Recording,
        routing: &ExpertRouting,
        (d_y, stride): (&Slot, usize),
        weighted: bool,
    ) {
        let Some(d_bias) = self.bias.as_ref().and_then(Weight::grad) else { return };
        for columns in self.bias_columns(stride) {
            let choice = weighted.then_some(&routing.choice);
            expert_bias_bwd(rec, columns, &routing.sorted, choice, d_y, d_bias);
        }
    }

    /// Adds the biases' part of the gradient of the router's weights, from the gradient d_y (rows, n_out) of each row's weighted output.
    pub(super) fn bias_backward_weights(
        &self,
        rec: &mut Recording,
        routing: &ExpertRouting,
        d_y: &Slot,
        d_weights: &Slot,
    ) {
        let Some(bias) = &self.bias else { return };
        let of_bias = (bias.slot(), bias.storage);
        expert_bias_bwd_w(rec, self.n_out, &routing.sorted, &routing.choice, of_bias, d_y, d_weights);
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
