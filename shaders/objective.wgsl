// Scores of sequences -> gradient of the loss by each token's log-probability. The formulas stand in src/objective.rs, which is the twin.
//
//   objective_sums:   sums[s] = (Σ instruction rows, Σ response rows) of logp
//   objective_pairs:  d_sums[s] from sums, reference scores and counts; one workgroup for all pairs (kto_pair needs their means)
//   objective_spread: d_logp[r] = Σ over the sequences that row r belongs to

import package::shared::grid::{flat_group};
import package::shared::reduce::{WG, sum_across};

struct ObjectiveParams {
    n: u32,      // sequences; rows in objective_spread
    kind: u32,   // SIGMOID ..
    joint: u32,  // 1: instruction rows count
    pad: u32,
    beta: f32,
    smoothing: f32,
    sft_weight: f32, // of the chosen response's mean negative log-likelihood
    pad1: f32,
}

const SIGMOID = 0u;
const HINGE = 1u;
const IPO = 2u;
const KTO_PAIR = 3u;
const SFT = 4u;

@group(0) @binding(0) var<uniform> params: ObjectiveParams;
@group(0) @binding(1) var<storage, read> spans: array<u32>; // (S, 5): prefix first, end; own first, end; first response row
@group(0) @binding(2) var<storage, read> logp: array<f32>;
@group(0) @binding(3) var<storage, read_write> sums: array<vec2<f32>>; // (S)

// A workgroup a sequence.
@compute @workgroup_size(WG)
fn objective_sums(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_id) local: vec3<u32>) {
    let at = group.x * 5u;
    let response = spans[at + 4u];
    var instruction_sum = 0.0;
    var response_sum = 0.0;
    for (var r = spans[at] + local.x; r < spans[at + 1u]; r += WG) {
        instruction_sum += logp[r];
    }
    for (var r = spans[at + 2u] + local.x; r < spans[at + 3u]; r += WG) {
        if r < response {
            instruction_sum += logp[r];
        } else {
            response_sum += logp[r];
        }
    }
    let total = vec2<f32>(sum_across(local.x, instruction_sum), sum_across(local.x, response_sum));
    if local.x == 0u && group.x < params.n {
        sums[group.x] = total;
    }
}

@group(0) @binding(1) var<storage, read> sums_in: array<vec2<f32>>;
@group(0) @binding(2) var<storage, read> known: array<vec4<f32>>; // (S): reference score, scored tokens, response tokens, -
@group(0) @binding(3) var<storage, read_write> d_sums: array<vec2<f32>>;

fn sigmoid(x: f32) -> f32 {
    return 1.0 / (1.0 + exp(-clamp(x, -80.0, 80.0)));
}

// s = log π − log π_ref; ipo: per scored token.
fn log_ratio(s: u32) -> f32 {
    let score = sums_in[s].y + select(0.0, sums_in[s].x, params.joint == 1u) - known[s].x;
    return select(score, score / known[s].y, params.kind == IPO);
}

@compute @workgroup_size(WG)
fn objective_pairs(@builtin(local_invocation_id) local: vec3<u32>) {
    let pairs = params.n / 2u;
    var kl = vec2<f32>();
    var d_kl = vec2<f32>();
    if params.kind == KTO_PAIR {
        var sum = vec2<f32>();
        for (var p = local.x; p < pairs; p += WG) {
            sum += vec2<f32>(log_ratio(2u * p), log_ratio(2u * p + 1u));
        }
        let mean = vec2<f32>(sum_across(local.x, sum.x), sum_across(local.x, sum.y)) / f32(pairs);
        kl = max(mean, vec2<f32>());
        // How the sum of losses changes with each mean, per member.
        var slopes = vec2<f32>();
        for (var p = local.x; p < pairs; p += WG) {
            let a = sigmoid(params.beta * (log_ratio(2u * p) - kl.y));
            let b = sigmoid(params.beta * (kl.x - log_ratio(2u * p + 1u)));
            slopes += 0.5 * params.beta * vec2<f32>(-b * (1.0 - b), a * (1.0 - a));
        }
        d_kl = vec2<f32>(sum_across(local.x, slopes.x), sum_across(local.x, slopes.y)) / f32(pairs);
        d_kl = select(vec2<f32>(), d_kl, mean > vec2<f32>());
    }
    for (var p = local.x; p < pairs; p += WG) {
        let c = 2u * p;
        let r = c + 1u;
        let gap = log_ratio(c) - log_ratio(r);
        var d = vec2<f32>();
        if params.kind == SIGMOID {
            let up = (1.0 - params.smoothing) * sigmoid(-params.beta * gap) - params.smoothing * sigmoid(params.beta * gap);
            d = params.beta * up * vec2<f32>(-1.0, 1.0);
        } else if params.kind == HINGE {
            d = select(0.0, params.beta, params.beta * gap < 1.0) * vec2<f32>(-1.0, 1.0);
        } else if params.kind == IPO {
            d = 2.0 * (gap - 0.5 / params.beta) * vec2<f32>(1.0 / known[c].y, -1.0 / known[r].y);
        } else {
            let a = sigmoid(params.beta * (log_ratio(c) - kl.y));
            let b = sigmoid(params.beta * (kl.x - log_ratio(r)));
            d = 0.5 * params.beta * vec2<f32>(-a * (1.0 - a), b * (1.0 - b)) + d_kl;
        }
        let joint = f32(params.joint);
        d_sums[c] = vec2<f32>(joint * d.x, d.x - params.sft_weight / known[c].z);
        d_sums[r] = vec2<f32>(joint * d.y, d.y);
    }
    if params.kind == SFT {
        for (var s = local.x; s < params.n; s += WG) {
            d_sums[s] = vec2<f32>(0.0, -1.0);
        }
    }
}

@group(0) @binding(1) var<storage, read> owners: array<vec2<u32>>; // (rows): 2·sequence + (1 for a response row), or NONE
@group(0) @binding(2) var<storage, read> d_sums_in: array<vec2<f32>>;
@group(0) @binding(3) var<storage, read_write> d_logp: array<f32>;

const NONE = 0xffffffffu;

fn share(owner: u32) -> f32 {
    if owner == NONE {
        return 0.0;
    }
    let d = d_sums_in[owner >> 1u];
    return select(d.x, d.y, (owner & 1u) == 1u);
}

@compute @workgroup_size(WG)
fn objective_spread(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) n_groups: vec3<u32>,
    @builtin(local_invocation_id) local: vec3<u32>,
) {
    let r = flat_group(group, n_groups) * WG + local.x;
    if r < params.n {
        d_logp[r] = share(owners[r].x) + share(owners[r].y);
    }
}
