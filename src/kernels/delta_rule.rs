//! Gated delta rule, the linear attention of Qwen3.5 and Qwen3-Next (arXiv 2412.06464): in chunks of 64 tokens for training and prompts, token
//! by token for generation.
//!
//! States at the borders of chunks are kept for the backward pass, which recomputes all else. A segment's chunks begin at its start, so
//! results do not depend on what is packed beside it. The implementation for CPUs differs only in how a workgroup divides its outputs, and gives
//! bit-identical results. It has no cases for start-up, because a CPU's driver takes seconds to compile the kernels.

mod cases;
mod chunks;

pub use chunks::{DeltaChunks, OuterStates, Segment};

use chunks::CHUNK;

use super::shapes::ModelShape;
use super::{Case, Kernel};
use crate::gpu::{Caps, Recording, Shader, Slot, Variant, grid_1d, uniform_bytes_in_parts};

/// Heads of a linear-attention layer. Queries, keys and values of a token lie side by side: (T, 2·Hk·dk + Hv·dv).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeltaHeads {
    /// Hk, the number of query and key heads; divides Hv.
    pub key_heads: usize,
    /// Hv, the number of value heads. Value head h uses key head floor(h / (Hv/Hk)).
    pub value_heads: usize,
    /// dk, the size of a query or key head.
    pub key_dim: usize,
    /// dv, the size of a value head.
    pub value_dim: usize,
}

impl DeltaHeads {
    /// Returns the elements per token of q and k together: 2·Hk·dk.
    pub fn key_width(&self) -> usize {
        2 * self.key_heads * self.key_dim
    }
    /// Returns the elements per token of v, and of o: Hv·dv.
    pub fn value_width(&self) -> usize {
        self.value_heads * self.value_dim
    }
    /// Returns the elements per token of q, k and v.
    pub fn width(&self) -> usize {
        self.key_width() + self.value_width()
    }
    /// Returns the elements of a token's state: Hv·dk·dv, with dk and dv rounded up to multiples of four.
    pub fn state_len(&self) -> usize {
        let padded = self.padded();
        padded.value_heads * padded.key_dim * padded.value_dim
    }
    /// Returns the heads with sizes rounded up to whole vec4s.
    fn padded(&self) -> Self {
        let [key_dim, value_dim] = [self.key_dim, self.value_dim].map(|n| n.next_multiple_of(4));
        Self { key_dim, value_dim, ..*self }
    }
    /// Returns the heads without q and k.
    fn values(&self) -> Self {
        Self { key_heads: 0, ..*self }
    }
}

#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct DeltaRuleParams {
    t: u32,
    chunks: u32,
    key_heads: u32,
    value_heads: u32,
    stride: u32,
    first: u32,
    y_start: u32,
    single: u32,
}

#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct DeltaStepParams {
    key_heads: u32,
    value_heads: u32,
}

#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct DeltaResizeParams {
    n: u32,
    key_heads: u32,
    value_heads: u32,
    key_from: u32,
    key_to: u32,
    value_from: u32,
    value_to: u32,
    pad: u32,
}

/// Invocations per workgroup of the step and of resizing: the shader's WG.
const STEP_WORKGROUP: usize = 64;
/// Columns of values per workgroup of the step.
const STEP_COLUMNS: usize = 32;

/// Division of a workgroup's outputs: lanes along columns, lanes along rows, rows per lane.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Lanes {
    x: usize,
    y: usize,
    rows: usize,
}

/// Division of a GPU's workgroups over all chunks, and of those that go from chunk to chunk, of which there must be many.
const WIDE: Lanes = Lanes { x: 16, y: 16, rows: 4 };
const SCAN: Lanes = Lanes { x: 4, y: 16, rows: 4 };
/// Division of a CPU's workgroups, which are as wide as a vector.
const CPU: Lanes = Lanes { x: 8, y: 1, rows: 8 };
/// Division of a CPU's workgroups that go from chunk to chunk: more rows share a load of a state's or a token's columns.
const CPU_SCAN: Lanes = Lanes { x: 8, y: 1, rows: 16 };

impl Lanes {
    fn shader(self, module: &'static str, entry: &'static str, heads: &DeltaHeads) -> Shader {
        let shader = Shader::new(module, entry)
            .with("DK", heads.key_dim as f64)
            .with("DV", heads.value_dim as f64)
            .with("X", self.x as f64)
            .with("Y", self.y as f64)
            .with("R", self.rows as f64)
            .with("RV", (self.rows / 4) as f64)
            .unroll("R", self.rows)
            .unroll("RV", self.rows / 4);
        if module == "delta_rule" { shader.unroll("TURNS", 4) } else { shader }
    }
    fn workgroup(self) -> usize {
        self.x * self.y
    }
    /// Returns the number of workgroups along `columns` columns.
    fn tiles(self, columns: usize) -> usize {
        columns.div_ceil(4 * self.x)
    }
}

fn step_shader(entry: &'static str, heads: &DeltaHeads) -> Shader {
    Shader::new("delta_rule_step", entry).with("DK", heads.key_dim as f64).with("DV", heads.value_dim as f64)
}

/// Launcher of the kernels over one batch. Head sizes are whole vec4s.
struct Launch<'a, 'g> {
    rec: &'a mut Recording<'g>,
    heads: DeltaHeads,
    chunks: &'a DeltaChunks,
    wide: Lanes,
    scan: Lanes,
}

impl<'a, 'g> Launch<'a, 'g> {
    fn new(rec: &'a mut Recording<'g>, heads: &DeltaHeads, chunks: &'a DeltaChunks) -> Self {
        let is_cpu = rec.variants().contains(&Variant::Cpu);
        let (wide, scan) = if is_cpu { (CPU, CPU_SCAN) } else { (WIDE, SCAN) };
        Self { rec, heads: heads.padded(), chunks, wide, scan }
    }

    fn alloc(&self, n: usize) -> Slot {
        self.rec.gpu().alloc_activation(n)
    }

    fn params(&self, first: usize) -> DeltaRuleParams {
        let h = &self.heads;
        DeltaRuleParams {
            t: self.chunks.t as u32,
            chunks: self.chunks.n as u32,
            key_heads: h.key_heads as u32,
            value_heads: h.value_heads as u32,
            stride: h.width() as u32,
            first: first as u32,
            y_start: (self.chunks.t * h.value_width() / 4) as u32,
            single: u32::from(first == 0),
        }
    }

    /// Runs an entry of delta_rule.wgsl. `grid`: workgroups along x and y; `flops`: multiply-adds per token and value head, times two.
    fn run(&mut self, entry: &'static str, slots: &[&Slot], grid: [usize; 2], flops: usize) {
        let shader = self.wide.shader("delta_rule", entry, &self.heads);
        let flops = (flops * self.chunks.t * self.heads.value_heads) as u64;
        self.rec.dispatch_in_parts(&shader, &self.params(0), slots, grid.map(|n| n as u32), flops);
    }

    /// Runs an entry of delta_rule_scan.wgsl over the chains at `first` in the table, or over each chunk alone where `first` is 0.
    fn run_scan(&mut self, entry: &'static str, slots: &[&Slot], first: usize, n: usize, flops: usize) {
        let shader = self.scan.shader("delta_rule_scan", entry, &self.heads);
        let grid = [n * self.scan.tiles(self.heads.value_dim), self.heads.value_heads].map(|n| n as u32);
        let flops = (flops * self.chunks.t * self.heads.value_heads) as u64;
        self.rec.dispatch_in_parts(&shader, &self.params(first), slots, grid, flops);
    }

    /// Returns a grid of one invocation per item.
    fn each(&self, n: usize) -> [usize; 2] {
        [n.div_ceil(self.wide.workgroup()), 1]
    }

    /// Computes β and G (T, 3·Hv), P and A (2, chunks, Hv, C, C), and M (chunks, Hv, C, C).
    fn prepare(&mut self, qkv: &Slot, gates: &Slot) -> (Slot, Slot, Slot) {
        let DeltaHeads { value_heads, key_dim, .. } = self.heads;
        let squares = self.chunks.n * value_heads * CHUNK * CHUNK;
        let decay = self.alloc(self.chunks.t * 3 * value_heads);
        let (scores, solve) = (self.alloc(2 * squares), self.alloc(squares));
        let table = &self.chunks.table;
        let each = self.each(self.chunks.n * value_heads);
        self.run("delta_rule_decay", &[table, gates, &decay], each, 1);
        let grid = [self.chunks.n * self.wide.tiles(CHUNK), value_heads];
        self.run("delta_rule_scores", &[table, qkv, &decay, &scores], grid, 4 * CHUNK * key_dim);
        self.run("delta_rule_solve", &[table, &scores, &decay, &solve], [self.chunks.n, value_heads], CHUNK * CHUNK);
        (decay, scores, solve)
    }

    fn forward(&mut self, qkv: &Slot, gates: &Slot, o: &Slot, states: &Slot) {
        let DeltaHeads { value_heads, key_dim, value_dim, .. } = self.heads;
        let (decay, scores, solve) = self.prepare(qkv, gates);
        let values = self.alloc(self.chunks.t * self.heads.value_width());
        let table = &self.chunks.table;
        for chains in self.chunks.chains.clone() {
            let slots = [table, qkv, &decay, &solve, &values, states];
            let flops = (4 * key_dim + CHUNK) * value_dim;
            self.run_scan("delta_rule_scan_fwd", &slots, chains.start, chains.len(), flops);
        }
        let grid = [self.chunks.n * self.wide.tiles(value_dim), value_heads];
        let slots = [table, qkv, &decay, &scores, &values, states, o];
        self.run("delta_rule_out", &slots, grid, (2 * key_dim + CHUNK) * value_dim);
    }

    fn backward(&mut self, saved: &DeltaRuleSaved, d_o: &Slot, d_states: &Slot, d_qkv: &Slot, d_gates: &Slot) {
        let DeltaHeads { key_heads, value_heads, key_dim, value_dim } = self.heads;
        let (DeltaRuleSaved { qkv, gates, o, states }, table, n) = (*saved, &self.chunks.table, self.chunks.n);
        let (decay, scores, solve) = self.prepare(qkv, gates);
        let values = self.alloc(2 * self.chunks.t * self.heads.value_width());
        let slots = [table, qkv, &decay, &solve, &values, states];
        self.run_scan("delta_rule_scan_fwd", &slots, 0, n, (2 * key_dim + CHUNK) * value_dim);
        let grid = [n * self.wide.tiles(value_dim), value_heads];
        self.run("delta_rule_bwd_u", &[table, d_o, &scores, &values], grid, CHUNK * value_dim);
        let [roots, branches] = self.chunks.chains.clone();
        let slots = [table, qkv, &decay, &solve, &values, d_o, d_states];
        let flops = (6 * key_dim + CHUNK) * value_dim;
        self.run_scan("delta_rule_scan_bwd", &slots, branches.start, branches.len(), flops);
        let sums = self.chunks.branch_sums.clone();
        let shader = self.scan.shader("delta_rule_scan", "delta_rule_branches", &self.heads);
        let grid = [(self.heads.state_len() / 4).div_ceil(self.scan.workgroup()) as u32, sums.len() as u32];
        self.rec.dispatch_in_parts(&shader, &self.params(sums.start), &[table, d_states], grid, 0);
        self.run_scan("delta_rule_scan_bwd", &slots, roots.start, roots.len(), flops);
        let grid = [n * self.wide.tiles(CHUNK), value_heads];
        self.run("delta_rule_bwd_scores", &[table, d_o, &decay, &scores, &values], grid, 4 * CHUNK * value_dim);
        let grid = [n * self.wide.tiles(key_dim), key_heads];
        let flops = 2 * key_dim * value_dim + CHUNK * key_dim;
        self.run("delta_rule_bwd_q", &[table, qkv, &decay, &scores, d_o, states, d_qkv], grid, flops);
        let slots = [table, qkv, &decay, &scores, &values, states, d_states, d_qkv];
        self.run("delta_rule_bwd_k", &slots, grid, 4 * key_dim * value_dim + 3 * CHUNK * key_dim);
        let each = self.each(self.chunks.t * value_heads);
        let slots = [d_o, qkv, &decay, o, &values, d_qkv, d_gates];
        self.run("delta_rule_bwd_v", &slots, each, 6 * value_dim);
        let slots = [table, states, d_states, d_gates];
        self.run("delta_rule_bwd_g", &slots, [n, value_heads], 2 * key_dim * value_dim / CHUNK);
    }
}

/// Copies `tokens` tokens of heads `from` into heads `to`, whose sizes differ: what is new is zero.
fn resize(rec: &mut Recording, tokens: usize, from: &DeltaHeads, to: &DeltaHeads, x: &Slot, y: &Slot) {
    let n = tokens * to.width();
    let params = DeltaResizeParams {
        n: n as u32,
        key_heads: 2 * to.key_heads as u32,
        value_heads: to.value_heads as u32,
        key_from: from.key_dim as u32,
        key_to: to.key_dim as u32,
        value_from: from.value_dim as u32,
        value_to: to.value_dim as u32,
        pad: 0,
    };
    let shader = step_shader("delta_rule_resize", &to.padded());
    rec.dispatch(&shader, &params, &[x, y], grid_1d(n, STEP_WORKGROUP), n as u64);
}

/// Returns x with heads of whole vec4s: x itself, or a copy.
fn padded(rec: &mut Recording, tokens: usize, heads: &DeltaHeads, x: &Slot) -> Slot {
    let to = heads.padded();
    if to == *heads {
        return x.clone();
    }
    let y = rec.gpu().alloc_activation(tokens * to.width());
    resize(rec, tokens, heads, &to, x, &y);
    y
}

/// Returns y itself where its heads are whole vec4s, else a slot that [`unpad`] copies into y.
fn padded_output(rec: &mut Recording, tokens: usize, heads: &DeltaHeads, y: &Slot) -> Slot {
    let to = heads.padded();
    if to == *heads { y.clone() } else { rec.gpu().alloc_activation(tokens * to.width()) }
}

fn unpad(rec: &mut Recording, tokens: usize, heads: &DeltaHeads, x: &Slot, y: &Slot) {
    if heads.padded() != *heads {
        resize(rec, tokens, &heads.padded(), heads, x, y);
    }
}

/// Computes o (T, Hv·dv) from normalised and scaled q, k, and v in `qkv` (T, 2·Hk·dk + Hv·dv), and β and g ≤ 0 in `gates` (T, 2·Hv).
/// Writes the states between chunks, [`DeltaChunks::states_len`] elements, which the backward pass reads. The caller fills the slots of
/// [`OuterStates::first`].
pub fn delta_rule_fwd(
    rec: &mut Recording,
    heads: &DeltaHeads,
    chunks: &DeltaChunks,
    qkv: &Slot,
    gates: &Slot,
    o: &Slot,
    states: &Slot,
) {
    let qkv = padded(rec, chunks.t, heads, qkv);
    let o_padded = padded_output(rec, chunks.t, &heads.values(), o);
    Launch::new(rec, heads, chunks).forward(&qkv, gates, &o_padded, states);
    unpad(rec, chunks.t, &heads.values(), &o_padded, o);
}

/// Values of the forward pass that the backward pass needs.
#[derive(Debug, Clone, Copy)]
pub struct DeltaRuleSaved<'a> {
    /// (T, 2·Hk·dk + Hv·dv): q, k, v.
    pub qkv: &'a Slot,
    /// (T, 2·Hv): β, g.
    pub gates: &'a Slot,
    /// (T, Hv·dv), outputs.
    pub o: &'a Slot,
    /// States between chunks.
    pub states: &'a Slot,
}

/// Computes d_qkv and d_gates from d_o (T, Hv·dv); all of both is written. `d_states` has [`DeltaChunks::d_states_len`] elements and the order
/// of the states. Where [`OuterStates::last`] are kept, the caller fills their slots with gradients; where there are [`OuterStates::first`],
/// their slots receive theirs.
#[expect(clippy::too_many_arguments, reason = "a launcher's arguments are the kernel's bindings, in order")]
pub fn delta_rule_bwd(
    rec: &mut Recording,
    heads: &DeltaHeads,
    chunks: &DeltaChunks,
    saved: DeltaRuleSaved,
    d_o: &Slot,
    d_states: &Slot,
    d_qkv: &Slot,
    d_gates: &Slot,
) {
    let t = chunks.t;
    let values = heads.values();
    let (qkv, o) = (padded(rec, t, heads, saved.qkv), padded(rec, t, &values, saved.o));
    let d_o = padded(rec, t, &values, d_o);
    let d_padded = padded_output(rec, t, heads, d_qkv);
    let saved = DeltaRuleSaved { qkv: &qkv, o: &o, ..saved };
    Launch::new(rec, heads, chunks).backward(&saved, &d_o, d_states, &d_padded, d_gates);
    unpad(rec, t, heads, &d_padded, d_qkv);
}

/// Computes o (n, Hv·dv) of one token for each of `n` sequences, and updates their states: rows `rows` (n, u32, on the device) of `cache`, of
/// [`DeltaHeads::state_len`] elements each. q, k, v and gates are laid out as in [`delta_rule_fwd`].
#[expect(clippy::too_many_arguments, reason = "a launcher's arguments are the kernel's bindings, in order")]
pub fn delta_rule_step(
    rec: &mut Recording,
    heads: &DeltaHeads,
    n: usize,
    rows: &Slot,
    qkv: &Slot,
    gates: &Slot,
    cache: &Slot,
    o: &Slot,
) {
    let wide = heads.padded();
    let qkv = padded(rec, n, heads, qkv);
    let o_padded = padded_output(rec, n, &heads.values(), o);
    let params = DeltaStepParams { key_heads: wide.key_heads as u32, value_heads: wide.value_heads as u32 };
    let grid = [(n * wide.value_dim.div_ceil(STEP_COLUMNS)) as u32, wide.value_heads as u32];
    let flops = (8 * n * heads.state_len()) as u64;
    let shader = step_shader("delta_rule_step", &wide);
    rec.dispatch_in_parts(&shader, &params, &[rows, &qkv, gates, cache, &o_padded], grid, flops);
    unpad(rec, n, &heads.values(), &o_padded, o);
}

/// Gated delta rule's kernels: over all chunks, from chunk to chunk, and of one token.
pub struct DeltaRuleKernels;

impl Kernel for DeltaRuleKernels {
    fn name(&self) -> &'static str {
        "delta_rule"
    }
    fn modules(&self) -> &'static [&'static str] {
        &["delta_rule", "delta_rule_scan", "delta_rule_step"]
    }
    fn variants(&self) -> Vec<Shader> {
        let over_chunks = [
            "delta_rule_decay",
            "delta_rule_scores",
            "delta_rule_solve",
            "delta_rule_out",
            "delta_rule_bwd_u",
            "delta_rule_bwd_scores",
            "delta_rule_bwd_q",
            "delta_rule_bwd_k",
            "delta_rule_bwd_v",
            "delta_rule_bwd_g",
        ];
        let scans = ["delta_rule_scan_fwd", "delta_rule_scan_bwd", "delta_rule_branches"];
        let heads = DeltaHeads { key_heads: 1, value_heads: 1, key_dim: 128, value_dim: 128 };
        let of_lanes = |wide: Lanes, scan: Lanes| {
            let all = over_chunks.map(|entry| wide.shader("delta_rule", entry, &heads)).into_iter();
            all.chain(scans.map(|entry| scan.shader("delta_rule_scan", entry, &heads)))
        };
        let steps = ["delta_rule_step", "delta_rule_resize"].map(|entry| step_shader(entry, &heads));
        of_lanes(WIDE, SCAN).chain(of_lanes(CPU, CPU_SCAN)).chain(steps).collect()
    }
    fn uniforms(&self) -> Vec<(&'static str, usize)> {
        vec![
            ("DeltaRuleParams", uniform_bytes_in_parts::<DeltaRuleParams>()),
            ("DeltaStepParams", uniform_bytes_in_parts::<DeltaStepParams>()),
            ("DeltaResizeParams", size_of::<DeltaResizeParams>()),
        ]
    }
    fn cases(&self) -> Vec<Box<dyn Case>> {
        cases::all()
    }
    fn benches(&self, model: &ModelShape, t: usize, caps: &Caps) -> Vec<Box<dyn Case>> {
        cases::benches(model, t, caps)
    }
}
