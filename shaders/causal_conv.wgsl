// y[t,c] = f(s[t,c]);   s[t,c] = Σ_d w[c, K−1−d]·x[t−d, c], d from 0 to K−1; t−d is d tokens before t in its sequence, zero before the start
// f is silu (SILU), or nothing;   d_s = d_y·f'(s);   d_x[t] = Σ_d w[K−1−d]·d_s[t+d], over every token that is d tokens behind t;   d_w[c, K−1−d] = Σ_t d_s[t]·x[t−d]
//
// Depthwise convolution. With a shared prefix, the prefix's last tokens have a token d behind them in every branch.

import package::shared::grid::{flat_group};
import package::shared::sigmoid::{sigmoid};
import package::shared::value_f32::{Value, WIDTH, value_of};

override WG: u32 = 64u;
override K: u32 = 4u; // taps per channel, at least 2
override SILU: bool = true; // whether silu follows the convolution

const TOKENS = 8u; // tokens per invocation

struct CausalConvParams {
    n: u32, // causal_conv_step, causal_conv_window: invocations
    t: u32,
    channels: u32,
    block: u32, // causal_conv_bwd_w: tokens per partial sum
}

@group(0) @binding(0) var<uniform> params: CausalConvParams;
// Per token, the tokens 1 to K−1 before it, or an index of T or more. Then per token and one more, where its list begins in this table. Then
// the lists: (token, distance) of the tokens behind it.
@group(0) @binding(1) var<storage, read> table: array<u32>;
@group(0) @binding(2) var<storage, read> w: array<f32>; // (channels, K)
@group(0) @binding(3) var<storage, read> x: array<Value>; // (T, channels)
@group(0) @binding(4) var<storage, read_write> y: array<Value>; // (T, channels)

// Returns tap j of a Value of channels.
fn tap(i: u32, j: u32) -> Value {
    let at = i * WIDTH * K + j;
    let last = params.channels * K - 1u;
    return value_of(w[at], w[min(at + K, last)], w[min(at + 2u * K, last)], w[min(at + 3u * K, last)]);
}

fn load_taps(i: u32, taps: ptr<function, array<Value, K>>) {
    for (var j = 0u; j < K; j++) {
        (*taps)[j] = tap(i, j);
    }
}

// Returns f(s).
fn activated(s: Value) -> Value {
    if SILU {
        return s * sigmoid(s);
    }
    return s;
}

// Returns s of token t, of the i-th Value of its channels.
fn conv_sum(t: u32, i: u32, taps: ptr<function, array<Value, K>>) -> Value {
    let values = params.channels / WIDTH;
    var sum = (*taps)[K - 1u] * x[t * values + i];
    for (var d = 1u; d < K; d++) {
        let before = table[t * (K - 1u) + d - 1u];
        if before < params.t {
            sum += (*taps)[K - 1u - d] * x[before * values + i];
        }
    }
    return sum;
}

// One invocation per Value of channels and TOKENS tokens, for which it keeps the taps. Workgroups: along x channels, along y tokens.
@compute @workgroup_size(WG)
fn causal_conv_fwd(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_id) local: vec3<u32>) {
    let i = group.x * WG + local.x;
    let values = params.channels / WIDTH;
    if i >= values {
        return;
    }
    var taps: array<Value, K>;
    load_taps(i, &taps);
    let end = min((group.y + 1u) * TOKENS, params.t);
    for (var t = group.y * TOKENS; t < end; t++) {
        y[t * values + i] = activated(conv_sum(t, i, &taps));
    }
}

@group(0) @binding(4) var<storage, read_write> d_s: array<Value>; // (T, channels): d_y, then d_s

// For silu alone: without it, d_s is d_y. Workgroups are those of causal_conv_fwd.
@compute @workgroup_size(WG)
fn causal_conv_bwd_s(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_id) local: vec3<u32>) {
    let i = group.x * WG + local.x;
    let values = params.channels / WIDTH;
    if i >= values {
        return;
    }
    var taps: array<Value, K>;
    load_taps(i, &taps);
    let end = min((group.y + 1u) * TOKENS, params.t);
    for (var t = group.y * TOKENS; t < end; t++) {
        let s = conv_sum(t, i, &taps);
        let gate = sigmoid(s);
        d_s[t * values + i] *= gate * (1.0 + s * (1.0 - gate));
    }
}

@group(0) @binding(3) var<storage, read> d_s_saved: array<Value>;
@group(0) @binding(4) var<storage, read_write> d_x: array<Value>; // (T, channels)

// Workgroups are those of causal_conv_fwd.
@compute @workgroup_size(WG)
fn causal_conv_bwd_x(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_id) local: vec3<u32>) {
    let i = group.x * WG + local.x;
    let values = params.channels / WIDTH;
    if i >= values {
        return;
    }
    var taps: array<Value, K>;
    load_taps(i, &taps);
    let end = min((group.y + 1u) * TOKENS, params.t);
    for (var t = group.y * TOKENS; t < end; t++) {
        let starts = params.t * (K - 1u) + t;
        var sum = taps[K - 1u] * d_s_saved[t * values + i];
        let stop = min(table[starts + 1u], arrayLength(&table) - 1u); // never beyond the end, even where the upload was lost
        for (var at = table[starts]; at < stop; at += 2u) {
            let behind = d_s_saved[min(table[at], params.t - 1u) * values + i];
            // An array that is indexed by constants alone stays in registers.
            for (var d = 1u; d < K; d++) {
                if table[at + 1u] == d {
                    sum += taps[K - 1u - d] * behind;
                }
            }
        }
        d_x[t * values + i] = sum;
    }
}

@group(0) @binding(2) var<storage, read> x_scalars: array<f32>;
@group(0) @binding(3) var<storage, read> d_s_scalars: array<f32>;
@group(0) @binding(4) var<storage, read_write> d_w_partial: array<f32>; // (blocks, channels, K): column_sum adds them up

// One invocation per channel; workgroups along y are blocks of tokens.
@compute @workgroup_size(WG)
fn causal_conv_bwd_w(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_id) local: vec3<u32>) {
    let c = group.x * WG + local.x;
    if c >= params.channels {
        return;
    }
    var sums: array<f32, K>;
    let end = min((group.y + 1u) * params.block, params.t);
    for (var t = group.y * params.block; t < end; t++) {
        let d_s = d_s_scalars[t * params.channels + c];
        sums[K - 1u] += d_s * x_scalars[t * params.channels + c];
        for (var d = 1u; d < K; d++) {
            let before = table[t * (K - 1u) + d - 1u];
            if before < params.t {
                sums[K - 1u - d] += d_s * x_scalars[before * params.channels + c];
            }
        }
    }
    for (var j = 0u; j < K; j++) {
        d_w_partial[(group.y * params.channels + c) * K + j] = sums[j];
    }
}

@group(0) @binding(1) var<storage, read> rows: array<u32>; // (sequences), rows of the cache
@group(0) @binding(4) var<storage, read_write> cache: array<Value>; // (rows, K − 1, channels), the oldest token first
@group(0) @binding(5) var<storage, read_write> y_of_step: array<Value>; // (sequences, channels)

// One token of each sequence, whose earlier tokens are in the cache.
@compute @workgroup_size(WG)
fn causal_conv_step(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) n_groups: vec3<u32>,
    @builtin(local_invocation_id) local: vec3<u32>,
) {
    let n = flat_group(group, n_groups) * WG + local.x;
    if n >= params.n {
        return;
    }
    let values = params.channels / WIDTH;
    let i = n % values;
    let row = rows[n / values] * (K - 1u) * values + i;
    let own = x[n];
    var sum = tap(i, K - 1u) * own;
    for (var j = 0u; j + 1u < K; j++) {
        sum += tap(i, j) * cache[row + j * values];
        if j > 0u {
            cache[row + (j - 1u) * values] = cache[row + j * values];
        }
    }
    cache[row + (K - 2u) * values] = own;
    y_of_step[n] = activated(sum);
}

@group(0) @binding(2) var<storage, read> ends: array<vec2<u32>>; // (sequences): last token, row of the cache

// Stores the last K − 1 tokens of each sequence in the cache.
@compute @workgroup_size(WG)
fn causal_conv_window(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) n_groups: vec3<u32>,
    @builtin(local_invocation_id) local: vec3<u32>,
) {
    let n = flat_group(group, n_groups) * WG + local.x;
    if n >= params.n {
        return;
    }
    let values = params.channels / WIDTH;
    let i = n % values;
    let j = n / values % (K - 1u);
    let end = ends[n / values / (K - 1u)];
    let d = K - 2u - j;
    var token = end.x;
    if d > 0u {
        token = table[end.x * (K - 1u) + d - 1u];
    }
    var value = Value();
    if token < params.t {
        value = x[token * values + i];
    }
    cache[(end.y * (K - 1u) + j) * values + i] = value;
}
