// Samples the next token of each row of logits. Temperature 0: the largest logit, ties to the smallest id. Otherwise: divides logits by the
// temperature, keeps the top_k largest, keeps the fewest of these whose probabilities reach top_p, and draws one by `uniform`.
//
// The result is 0xffffffff for a row whose largest logit is not finite.
//
// Thresholds are found exactly, by bisection over f32's bits as ordered integers, without a sort. One workgroup per row.

import package::shared::grid::{flat_group};
import package::shared::reduce::{WG, partials, sum_across};

struct SampleParams {
    rows: u32,
    vocab: u32,
    top_k: u32, // 0: all; less than the vocabulary
    greedy: u32,
    inverse_temperature: f32,
    top_p: f32, // 1: all
    softcap: f32, // 0: none
    pad: u32,
}

@group(0) @binding(0) var<uniform> params: SampleParams;
@group(0) @binding(1) var<storage, read> logits: array<f32>;        // (rows, V)
@group(0) @binding(2) var<storage, read> uniforms: array<f32>;      // (rows), in [0, 1)
@group(0) @binding(3) var<storage, read_write> tokens: array<u32>;  // (rows)

var<workgroup> found: array<u32, WG>;

// Returns x's bits as an integer that increases with x.
fn sortable_bits(x: f32) -> u32 {
    let bits = bitcast<u32>(x);
    return select(bits | 0x80000000u, ~bits, (bits & 0x80000000u) != 0u);
}

fn value(row: u32, v: u32) -> f32 {
    let l = logits[row * params.vocab + v];
    if params.softcap > 0.0 {
        return params.softcap * tanh(clamp(l / params.softcap, -15.0, 15.0));
    }
    return l;
}

// Counts the tokens whose sortable bits are at least `least`; `probability_at_least` sums their probabilities.
fn count_at_least(lane: u32, row: u32, least: u32) -> f32 {
    var n = 0.0;
    for (var v = lane; v < params.vocab; v += WG) {
        n += select(0.0, 1.0, sortable_bits(value(row, v)) >= least);
    }
    return sum_across(lane, n);
}

fn probability_at_least(lane: u32, row: u32, least: u32, top: f32) -> f32 {
    var mass = 0.0;
    for (var v = lane; v < params.vocab; v += WG) {
        let x = value(row, v);
        mass += select(0.0, exp((x - top) * params.inverse_temperature), sortable_bits(x) >= least);
    }
    return sum_across(lane, mass);
}

@compute @workgroup_size(WG)
fn sample(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) n_groups: vec3<u32>,
    @builtin(local_invocation_id) local: vec3<u32>,
) {
    let asked = flat_group(group, n_groups);
    let row = min(asked, params.rows - 1u);
    let lane = local.x;
    // The largest logit; ties to the smallest id.
    var best = lane;
    for (var v = lane; v < params.vocab; v += WG) {
        if value(row, v) > value(row, min(best, params.vocab - 1u)) {
            best = v;
        }
    }
    partials[lane] = value(row, min(best, params.vocab - 1u));
    found[lane] = min(best, params.vocab - 1u);
    workgroupBarrier();
    var winner = 0u;
    for (var i = 1u; i < WG; i++) {
        let better = partials[i] > partials[winner] || (partials[i] == partials[winner] && found[i] < found[winner]);
        winner = select(winner, i, better);
    }
    let top = partials[winner];
    // Tests the bits, because compilers may assume that x == x is true.
    let is_finite = (bitcast<u32>(top) & 0x7f800000u) != 0x7f800000u;
    let first = select(0xffffffffu, found[winner], is_finite);
    workgroupBarrier();
    if params.greedy == 1u {
        if lane == 0u && asked < params.rows {
            tokens[row] = first;
        }
        return;
    }
    var least = 0u;
    if params.top_k > 0u {
        // Finds the largest threshold that at least top_k tokens reach.
        for (var bit = 0u; bit < 32u; bit++) {
            let higher = least | (0x80000000u >> bit);
            if count_at_least(lane, row, higher) >= f32(params.top_k) {
                least = higher;
            }
        }
    }
    var total = probability_at_least(lane, row, least, top);
    if params.top_p < 1.0 {
        let wanted = params.top_p * total;
        var nucleus = 0u;
        for (var bit = 0u; bit < 32u; bit++) {
            let higher = nucleus | (0x80000000u >> bit);
            if probability_at_least(lane, row, max(higher, least), top) >= wanted {
                nucleus = higher;
            }
        }
        least = max(least, nucleus);
        total = probability_at_least(lane, row, least, top);
    }
    // Each lane owns a range of consecutive ids. The lane whose range contains the drawn point of the running sum searches its range.
    let run = (params.vocab + WG - 1u) / WG;
    let begin = min(lane * run, params.vocab);
    let end = min(begin + run, params.vocab);
    var mass = 0.0;
    for (var v = begin; v < end; v++) {
        let x = value(row, v);
        mass += select(0.0, exp((x - top) * params.inverse_temperature), sortable_bits(x) >= least);
    }
    workgroupBarrier();
    partials[lane] = mass;
    workgroupBarrier();
    if lane != 0u || asked >= params.rows {
        return;
    }
    let point = uniforms[row] * total;
    var passed = 0.0;
    var token = first;
    if !is_finite {
        tokens[row] = first;
        return;
    }
    for (var i = 0u; i < WG; i++) {
        if point < passed + partials[i] {
            for (var v = i * run; v < min(i * run + run, params.vocab); v++) {
                let x = value(row, v);
                if sortable_bits(x) >= least {
                    token = v;
                    passed += exp((x - top) * params.inverse_temperature);
                    if point < passed {
                        break;
                    }
                }
            }
            break;
        }
        passed += partials[i];
    }
    tokens[row] = token;
}
