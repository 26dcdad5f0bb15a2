//! Depthwise causal convolution over packed sequences, with SiLU behind it (q, k and v of Qwen3.5's delta nets) or without (LFM2).

use super::delta_rule::Segment;
use super::row_vec4s::BLOCK_ROWS;
use super::shapes::ModelShape;
use super::value::in_values;
use super::{Case, CaseOutputs, Cost, HostTensor, Kernel, column_sum};
use crate::gpu::{Caps, Gpu, Recording, Shader, Slot, grid_1d};
use crate::rng::Rng;

/// Word of a token that does not exist; the shader tests whether an index is below T.
const NONE: u32 = u32::MAX;
/// Tokens per invocation: the shader's TOKENS.
const TOKENS: usize = 8;
/// Tokens per partial sum of d_w.
const BLOCK: usize = BLOCK_ROWS;

/// Function that is applied to the convolution's sums.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ConvActivation {
    /// s·σ(s).
    Silu,
    /// None: the output is the sum.
    None,
}

/// Tokens before and behind each token of a batch, on the device.
#[derive(Debug)]
pub struct ConvTable {
    table: Slot,
    t: usize,
    taps: usize,
}

impl ConvTable {
    /// Builds the table of `segments` for `taps` taps per channel, at least 2.
    pub fn new(gpu: &Gpu, segments: &[Segment], taps: usize) -> Self {
        let t = segments.iter().map(|s| s.start + s.len).max().unwrap_or(0);
        let mut before = vec![NONE; t * (taps - 1)];
        let mut behind: Vec<Vec<u32>> = vec![Vec::new(); t];
        for segment in segments {
            let prefix = segment.prefix.map(|p| segments[p].start..segments[p].start + segments[p].len);
            let n_prefix = prefix.as_ref().map_or(0, |p| p.len());
            let token_at = |i: usize| match &prefix {
                Some(prefix) if i < n_prefix => prefix.start + i,
                _ => segment.start + i - n_prefix,
            };
            for i in n_prefix..n_prefix + segment.len {
                for d in 1..taps.min(i + 1) {
                    let (token, earlier) = (token_at(i), token_at(i - d));
                    before[token * (taps - 1) + d - 1] = earlier as u32;
                    behind[earlier].extend([token as u32, d as u32]);
                }
            }
        }
        let mut start = before.len() + t + 1;
        let mut starts = vec![start as u32];
        for list in &behind {
            start += list.len();
            starts.push(start as u32);
        }
        Self { table: gpu.upload(&[before, starts, behind.concat()].concat()), t, taps }
    }
}

#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct CausalConvParams {
    n: u32,
    t: u32,
    channels: u32,
    block: u32,
}

/// Returns an entry that computes outputs.
fn shader_of_outputs(entry: &'static str, channels: usize, taps: usize, activation: ConvActivation) -> Shader {
    let shader = Shader::new("causal_conv", entry).with("WG", 64.0).with("K", taps as f64);
    in_values(shader.with("SILU", f64::from(u8::from(activation == ConvActivation::Silu))), &[channels])
}

/// Returns an entry that does not depend on the activation function.
fn shader(entry: &'static str, channels: usize, taps: usize) -> Shader {
    shader_of_outputs(entry, channels, taps, ConvActivation::None)
}

/// Runs a shader with one invocation per element or vec4 of `rows` rows of channels.
fn run(rec: &mut Recording, shader: &Shader, rows: usize, t: usize, channels: usize, taps: usize, slots: &[&Slot]) {
    let n = rows * channels / super::value::width(&[channels]);
    let params = CausalConvParams { n: n as u32, t: t as u32, channels: channels as u32, block: BLOCK as u32 };
    let flops = (2 * taps * rows * channels) as u64;
    rec.dispatch(shader, &params, slots, grid_1d(n, 64), flops);
}

/// Runs a shader over the tokens of a table.
fn run_tokens(rec: &mut Recording, shader: &Shader, table: &ConvTable, channels: usize, slots: [&Slot; 3]) {
    let params = CausalConvParams { n: 0, t: table.t as u32, channels: channels as u32, block: 0 };
    let values = channels / super::value::width(&[channels]);
    let grid = [values.div_ceil(64) as u32, table.t.div_ceil(TOKENS) as u32, 1];
    let flops = (2 * table.taps * table.t * channels) as u64;
    let [first, second, third] = slots;
    let slots = [&table.table, first, second, third];
    rec.dispatch(shader, &params, &slots, grid, flops);
}

/// Computes y (T, channels) from w (channels, K), the checkpoint's weight of the convolution, and x (T, channels).
pub fn causal_conv_fwd(
    rec: &mut Recording,
    table: &ConvTable,
    channels: usize,
    activation: ConvActivation,
    w: &Slot,
    x: &Slot,
    y: &Slot,
) {
    let shader = shader_of_outputs("causal_conv_fwd", channels, table.taps, activation);
    run_tokens(rec, &shader, table, channels, [w, x, y]);
}

/// Turns d_y (T, channels) into the gradient of the sums that SiLU is applied to, in place. The gradients of x and w read it. Without SiLU, d_y
/// is that gradient.
pub fn causal_conv_bwd_s(rec: &mut Recording, table: &ConvTable, channels: usize, w: &Slot, x: &Slot, d_y: &Slot) {
    run_tokens(rec, &shader("causal_conv_bwd_s", channels, table.taps), table, channels, [w, x, d_y]);
}

/// Computes d_x (T, channels) from d_s, the gradient of the sums; all of d_x is written.
pub fn causal_conv_bwd_x(rec: &mut Recording, table: &ConvTable, channels: usize, w: &Slot, d_s: &Slot, d_x: &Slot) {
    run_tokens(rec, &shader("causal_conv_bwd_x", channels, table.taps), table, channels, [w, d_s, d_x]);
}

/// Computes d_w (channels, K) += its gradient, from x and d_s, the gradient of the sums.
pub fn causal_conv_bwd_w(rec: &mut Recording, table: &ConvTable, channels: usize, x: &Slot, d_s: &Slot, d_w: &Slot) {
    let (blocks, width) = (table.t.div_ceil(BLOCK), channels * table.taps);
    let partial = rec.gpu().alloc_activation(blocks * width);
    let params = CausalConvParams { n: 0, t: table.t as u32, channels: channels as u32, block: BLOCK as u32 };
    let grid = [channels.div_ceil(64) as u32, blocks as u32, 1];
    let flops = (2 * table.t * width) as u64;
    rec.dispatch(&shader("causal_conv_bwd_w", 1, table.taps), &params, &[&table.table, x, d_s, &partial], grid, flops);
    column_sum::column_sum(rec, &partial, blocks, width, 0, width, d_w);
}

/// Returns the elements of a sequence's window: its last K − 1 tokens.
pub fn window_len(channels: usize, taps: usize) -> usize {
    (taps - 1) * channels
}

/// Computes y (n, channels) of one token for each of `n` sequences, x (n, channels), and moves their windows on: rows `rows` (n, u32, on the
/// device) of `cache`, of [`window_len`] elements each.
#[expect(clippy::too_many_arguments, reason = "a launcher's arguments are the kernel's parameters and bindings")]
pub fn causal_conv_step(
    rec: &mut Recording,
    n: usize,
    channels: usize,
    taps: usize,
    activation: ConvActivation,
    rows: &Slot,
    w: &Slot,
    x: &Slot,
    cache: &Slot,
    y: &Slot,
) {
    let shader = shader_of_outputs("causal_conv_step", channels, taps, activation);
    run(rec, &shader, n, n, channels, taps, &[rows, w, x, cache, y]);
}

/// Stores the last K − 1 tokens of `n` sequences of x (T, channels) in `cache`. `ends` (n, 2, u32, on the device) has each sequence's last
/// token and its row of the cache. Where a sequence is shorter, zeros precede it.
pub fn causal_conv_window(
    rec: &mut Recording,
    table: &ConvTable,
    channels: usize,
    n: usize,
    ends: &Slot,
    x: &Slot,
    cache: &Slot,
) {
    let rows = n * (table.taps - 1);
    let shader = shader("causal_conv_window", channels, table.taps);
    run(rec, &shader, rows, table.t, channels, table.taps, &[&table.table, ends, x, cache]);
}

/// Kernels of the causal convolution.
pub struct CausalConvKernels;

/// Entries that compute outputs.
const OUTPUTS: [&str; 2] = ["causal_conv_fwd", "causal_conv_step"];
/// Entries that SiLU does not change.
const OTHERS: [&str; 3] = ["causal_conv_bwd_s", "causal_conv_bwd_x", "causal_conv_window"];
const ACTIVATIONS: [ConvActivation; 2] = [ConvActivation::Silu, ConvActivation::None];

impl Kernel for CausalConvKernels {
    fn name(&self) -> &'static str {
        "causal_conv"
    }
    fn modules(&self) -> &'static [&'static str] {
        &["causal_conv"]
    }
    fn variants(&self) -> Vec<Shader> {
        let of_outputs = |activation| {
            let each = move |entry| [1, 4].map(|channels| shader_of_outputs(entry, channels, 4, activation));
            OUTPUTS.into_iter().flat_map(each)
        };
        let others = OTHERS.into_iter().flat_map(|entry| [1, 4].map(|channels| shader(entry, channels, 4)));
        ACTIVATIONS.into_iter().flat_map(of_outputs).chain(others).chain([shader("causal_conv_bwd_w", 1, 4)]).collect()
    }
    fn uniforms(&self) -> Vec<(&'static str, usize)> {
        vec![("CausalConvParams", size_of::<CausalConvParams>())]
    }
    fn cases(&self) -> Vec<Box<dyn Case>> {
        let alone = |start, len| Segment { start, len, prefix: None };
        let branch = |start, len| Segment { start, len, prefix: Some(0) };
        // Sequences and branches shorter than the taps, and both sides of an invocation's tokens and of a block of tokens.
        let shared = vec![alone(0, 5), branch(5, 1), branch(6, 2), branch(8, 7), alone(15, 2), alone(17, 66)];
        let short = vec![alone(0, 1), branch(1, 2), branch(3, 63)];
        let cases = [
            (7, 4, vec![alone(0, 6)]),
            (36, 4, shared.clone()),
            (68, 4, short.clone()),
            (5, 3, short),
            (260, 2, shared),
        ];
        let each = cases.into_iter().flat_map(|(channels, taps, segments)| {
            ACTIVATIONS.map(|activation| {
                Box::new(ConvCase { channels, taps, activation, segments: segments.clone() }) as Box<dyn Case>
            })
        });
        each.collect()
    }
    fn benches(&self, model: &ModelShape, t: usize, _: &Caps) -> Vec<Box<dyn Case>> {
        let channels = 3 * model.n_heads * model.head_dim;
        let half = |start, len| Segment { start, len, prefix: None };
        let segments = vec![half(0, t / 2), half(t / 2, t - t / 2)];
        vec![Box::new(ConvCase { channels, taps: 4, activation: ConvActivation::Silu, segments })]
    }
}

struct ConvCase {
    channels: usize,
    taps: usize,
    activation: ConvActivation,
    segments: Vec<Segment>,
}

impl ConvCase {
    fn t(&self) -> usize {
        self.segments.iter().map(|s| s.len).sum()
    }
    /// Returns a segment's tokens behind those of its prefix, and where the segment's own begin.
    fn path(&self, s: &Segment) -> (Vec<usize>, usize) {
        let own = |s: &Segment| s.start..s.start + s.len;
        let prefix: Vec<usize> = s.prefix.into_iter().flat_map(|p| own(&self.segments[p])).collect();
        let n = prefix.len();
        (prefix.into_iter().chain(own(s)).collect(), n)
    }
    /// Returns (token, tap, token that the tap reads) of every product of the convolution: `Conv1d` with padding K − 1 and groups = channels,
    /// cut to the sequence's length, as in `Qwen3NextGatedDeltaNet` of transformers 5.24.0, models/qwen3_next/modeling_qwen3_next.py (and
    /// `Qwen3_5GatedDeltaNet`, models/qwen3_5/modular_qwen3_5.py), where SiLU follows; `Lfm2ShortConv`, models/lfm2/modular_lfm2.py, has none.
    fn products(&self) -> Vec<(usize, usize, usize)> {
        let mut all = Vec::new();
        for (path, n_prefix) in self.segments.iter().map(|s| self.path(s)) {
            for i in n_prefix..path.len() {
                let taps = (0..self.taps).filter(|j| i + j + 1 >= self.taps);
                all.extend(taps.map(|j| (path[i], j, path[i + j + 1 - self.taps])));
            }
        }
        all
    }
    fn sums(&self, x: &[Vec<f64>]) -> Vec<f64> {
        let mut s = vec![0.0; x[0].len()];
        for (t, j, earlier) in self.products() {
            for c in 0..self.channels {
                s[t * self.channels + c] += x[1][c * self.taps + j] * x[0][earlier * self.channels + c];
            }
        }
        s
    }
}

impl Case for ConvCase {
    fn label(&self) -> String {
        let lens: Vec<String> =
            self.segments.iter().map(|s| format!("{}{}", if s.prefix.is_some() { "+" } else { "" }, s.len)).collect();
        let silu = if self.activation == ConvActivation::Silu { " silu" } else { "" };
        format!("T={} channels={} K={}{silu} ({})", self.t(), self.channels, self.taps, lens.join(" "))
    }
    fn inputs(&self, rng: &mut Rng) -> Vec<HostTensor> {
        let x = HostTensor::normal(rng, self.t() * self.channels);
        vec![x, HostTensor::normal(rng, self.channels * self.taps)]
    }
    /// Computes y; the step's y of each segment's last token; and the windows of all segments.
    fn forward(&self, x: &[Vec<f64>]) -> Vec<Vec<f64>> {
        let mut y = self.sums(x);
        if self.activation == ConvActivation::Silu {
            y.iter_mut().for_each(|s| *s /= 1.0 + (-*s).exp());
        }
        let (mut last, mut windows) = (Vec::new(), Vec::new());
        for (path, _) in self.segments.iter().map(|s| self.path(s)) {
            last.extend_from_slice(&y[path[path.len() - 1] * self.channels..][..self.channels]);
            for d in (0..self.taps - 1).rev() {
                match path.len().checked_sub(d + 1) {
                    Some(i) => windows.extend_from_slice(&x[0][path[i] * self.channels..][..self.channels]),
                    None => windows.extend(vec![0.0; self.channels]),
                }
            }
        }
        vec![y, last, windows]
    }
    fn backward(&self, x: &[Vec<f64>], d_y: &[Vec<f64>]) -> Vec<Vec<f64>> {
        let slope = |s: f64| {
            let gate = 1.0 / (1.0 + (-s).exp());
            if self.activation == ConvActivation::Silu { gate + s * gate * (1.0 - gate) } else { 1.0 }
        };
        let d_s: Vec<f64> = self.sums(x).iter().zip(&d_y[0]).map(|(&s, d)| d * slope(s)).collect();
        let (mut d_x, mut d_w) = (vec![0.0; x[0].len()], vec![0.0; x[1].len()]);
        for (t, j, earlier) in self.products() {
            for c in 0..self.channels {
                d_x[earlier * self.channels + c] += x[1][c * self.taps + j] * d_s[t * self.channels + c];
                d_w[c * self.taps + j] += x[0][earlier * self.channels + c] * d_s[t * self.channels + c];
            }
        }
        vec![d_x, d_w]
    }
    fn d_y_lens(&self) -> Vec<usize> {
        vec![self.t() * self.channels]
    }
    fn launch(&self, rec: &mut Recording, x: &[Slot], d_y: &[Slot]) -> CaseOutputs {
        let gpu = rec.gpu();
        let (n, c, s) = (self.t() * self.channels, self.channels, self.segments.len());
        let table = ConvTable::new(gpu, &self.segments, self.taps);
        let [y, d_s, d_x, d_w, y_last, cache] =
            [n, n, n, c * self.taps, s * c, s * window_len(c, self.taps)].map(|n| gpu.alloc_activation(n));
        causal_conv_fwd(rec, &table, c, self.activation, &x[1], &x[0], &y);
        rec.copy(&d_y[0], &d_s);
        if self.activation == ConvActivation::Silu {
            causal_conv_bwd_s(rec, &table, c, &x[1], &x[0], &d_s);
        }
        causal_conv_bwd_x(rec, &table, c, &x[1], &d_s, &d_x);
        rec.clear(&d_w);
        causal_conv_bwd_w(rec, &table, c, &x[0], &d_s, &d_w);
        // The windows of each segment without its last token, which a step then adds.
        let paths: Vec<Vec<usize>> = self.segments.iter().map(|s| self.path(s).0).collect();
        let shorter: Vec<usize> = (0..s).filter(|&s| paths[s].len() > 1).collect();
        let ends: Vec<u32> = shorter.iter().flat_map(|&s| [paths[s][paths[s].len() - 2] as u32, s as u32]).collect();
        rec.clear(&cache);
        if !shorter.is_empty() {
            causal_conv_window(rec, &table, c, shorter.len(), &gpu.upload(&ends), &x[0], &cache);
        }
        let last = gpu.alloc_activation(s * c);
        let tokens: Vec<u32> = paths.iter().map(|path| path[path.len() - 1] as u32).collect();
        let indices = super::gather::GatherIndices::new(gpu, &tokens, self.t());
        super::gather::gather_fwd(rec, &indices, c, &x[0], &last);
        let rows = gpu.upload(&(0..s as u32).collect::<Vec<_>>());
        causal_conv_step(rec, s, c, self.taps, self.activation, &rows, &x[1], &last, &cache, &y_last);
        CaseOutputs { y: vec![y, y_last, cache], d_x: vec![Some(d_x), Some(d_w)] }
    }
    fn reduction_len(&self) -> usize {
        self.t()
    }
    fn cost(&self) -> Cost {
        let n = (self.t() * self.channels) as u64;
        Cost { bytes: 4 * 7 * n, flops: (8 * self.taps as u64 + 12) * n }
    }
}
