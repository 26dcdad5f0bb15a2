// Turns scores of sequences into the loss's gradient by each token's log-probability. A loss is a sum of terms: src/objective/loss.rs says
// which terms make which loss, src/kernels/objective/term.rs is the f64 twin. One dispatch adds the gradient of one term.
//
//   objective_sums:      sums[s] = (Σ instruction rows, Σ response rows) of logp
//   objective_pairs:     d_sums[s] of a term that compares a pair's sides:   z = scale·(x_c − x_r) − offset
//   objective_sorted:    like objective_pairs, for sides of equal rank by x over all pairs
//   objective_cross:     the mean over all pairs (i, j) of sides:           z = scale·ω_ij·(x_c,i − x_r,j) − offset
//   objective_unpaired:  d_sums[s] of a term on single sequences:           z = ±scale·(x − shift)
//   objective_scatter:   d_logp[r] = Σ over the sequences that row r belongs to
//
// One workgroup handles all sequences of a micro-batch, because most losses look at several of them.

import package::shared::grid::{flat_group};
import package::shared::reduce::{WG, sum_across};

struct ObjectiveParams {
    n: u32,      // sequences; rows in objective_scatter
    add: u32,    // 1: add to the gradients of earlier terms
    joint: u32,  // 1: instruction rows count
    link: u32,   // SUM, ...
    curve: u32,  // LOGISTIC, ...
    shift: u32,  // ZERO, ...
    scale: f32,
    offset: f32,
    up: f32,     // for LOGISTIC
    down: f32,
}

const SUM = 0u;
const MEAN = 1u;
const LOG_ODDS = 2u;

const LOGISTIC = 0u;
const HINGE = 1u;
const SQUARE = 2u;
const SIGMOID = 3u;
const LINEAR = 4u;

const ZERO = 0u;
const MEAN_OF_ALL = 1u;
const POSITIVE = 2u;
const OPPOSITE = 3u;

@group(0) @binding(0) var<uniform> params: ObjectiveParams;
@group(0) @binding(1) var<storage, read> spans: array<u32>; // (S, 5): prefix first, end; own first, end; first response row
@group(0) @binding(2) var<storage, read> logp: array<f32>;
@group(0) @binding(3) var<storage, read_write> sums: array<vec2<f32>>; // (S)

// One workgroup per sequence.
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
@group(0) @binding(2) var<storage, read> known: array<vec4<f32>>; // (S): reference score, tokens, weight, 1 desirable or −1
@group(0) @binding(3) var<storage, read_write> d_sums: array<vec2<f32>>;

fn sigmoid(x: f32) -> f32 {
    return 1.0 / (1.0 + exp(-clamp(x, -80.0, 80.0)));
}

const CERTAIN = -9.5367431640625e-7;

// Returns 1 − exp(x) for x below 0, by a series where the difference would lose digits.
fn one_minus_exp(x: f32) -> f32 {
    let series = -x * (1.0 + x / 2.0 * (1.0 + x / 3.0 * (1.0 + x / 4.0 * (1.0 + x / 5.0))));
    return select(1.0 - exp(x), series, x > -0.1);
}

// Returns x of a sequence, and its slope by the score.
fn x_of(s: u32) -> vec2<f32> {
    let score = sums_in[s].y + select(0.0, sums_in[s].x, params.joint == 1u) - known[s].x;
    if params.link == SUM {
        return vec2<f32>(score, 1.0);
    }
    let n = known[s].y;
    if params.link == MEAN {
        return vec2<f32>(score, 1.0) / n;
    }
    let mean = min(score / n, CERTAIN);
    let rest = one_minus_exp(mean);
    return vec2<f32>(mean - log(rest), select(0.0, 1.0 / (n * rest), score / n < CERTAIN));
}

// Returns the curve's slope at z.
fn slope(z: f32) -> f32 {
    switch params.curve {
        case LOGISTIC: {
            return params.down * sigmoid(z) - params.up * sigmoid(-z);
        }
        case HINGE: {
            return select(0.0, -1.0, z < 1.0);
        }
        case SQUARE: {
            return 2.0 * z;
        }
        case SIGMOID: {
            return -sigmoid(z) * sigmoid(-z);
        }
        default: {
            return -1.0;
        }
    }
}

fn add_d_sum(s: u32, d_score: f32) {
    let d = d_score * vec2<f32>(f32(params.joint), 1.0);
    d_sums[s] = select(d, d + d_sums[s], params.add == 1u);
}

fn compare(c: u32, r: u32) {
    let chosen = x_of(c);
    let rejected = x_of(r);
    let d = known[c].z * params.scale * slope(params.scale * (chosen.x - rejected.x) - params.offset);
    add_d_sum(c, d * chosen.y);
    add_d_sum(r, -d * rejected.y);
}

@compute @workgroup_size(WG)
fn objective_pairs(@builtin(local_invocation_id) local: vec3<u32>) {
    for (var p = local.x; p < params.n / 2u; p += WG) {
        compare(2u * p, 2u * p + 1u);
    }
}

@group(0) @binding(4) var<storage, read_write> ranked: array<u32>; // (pairs): the rejected sequence of each rank

// Returns the rank of sequence s among its side's (chosen or rejected), ascending by x; ties by index.
fn rank_of(s: u32) -> u32 {
    let x = x_of(s).x;
    var rank = 0u;
    for (var other = s & 1u; other < params.n; other += 2u) {
        let its = x_of(other).x;
        rank += select(0u, 1u, its < x || (its == x && other < s));
    }
    return rank;
}

@compute @workgroup_size(WG)
fn objective_sorted(@builtin(local_invocation_id) local: vec3<u32>) {
    for (var p = local.x; p < params.n / 2u; p += WG) {
        ranked[rank_of(2u * p + 1u)] = 2u * p + 1u;
    }
    storageBarrier();
    for (var p = local.x; p < params.n / 2u; p += WG) {
        // A NaN score has no rank of its own, so the entry may be arbitrary; such a step is the run's last anyway.
        compare(2u * p, min(ranked[rank_of(2u * p)], params.n - 1u));
    }
}

@group(0) @binding(4) var<storage, read> cross: array<f32>; // (pairs, pairs): ω

@compute @workgroup_size(WG)
fn objective_cross(@builtin(local_invocation_id) local: vec3<u32>) {
    let pairs = params.n / 2u;
    for (var p = local.x; p < pairs; p += WG) {
        let chosen = x_of(2u * p);
        let rejected = x_of(2u * p + 1u);
        var d = vec2<f32>();
        for (var q = 0u; q < pairs; q++) {
            let of_row = params.scale * cross[p * pairs + q];
            let of_column = params.scale * cross[q * pairs + p];
            d.x += of_row * slope(of_row * (chosen.x - x_of(2u * q + 1u).x) - params.offset);
            d.y -= of_column * slope(of_column * (x_of(2u * q).x - rejected.x) - params.offset);
        }
        d *= known[2u * p].z / f32(pairs);
        add_d_sum(2u * p, d.x * chosen.y);
        add_d_sum(2u * p + 1u, d.y * rejected.y);
    }
}

// Returns the derivative of a single sequence's loss by its x. `shift` holds the reference points of desirable and undesirable sequences.
fn d_side(s: u32, shift: vec2<f32>) -> f32 {
    let scale = known[s].w * params.scale;
    let z = scale * (x_of(s).x - select(shift.y, shift.x, known[s].w > 0.0));
    return known[s].z * scale * slope(z);
}

@compute @workgroup_size(WG)
fn objective_unpaired(@builtin(local_invocation_id) local: vec3<u32>) {
    var shift = vec2<f32>();
    var d_shift = vec2<f32>();
    if params.shift != ZERO {
        var sum = vec2<f32>();
        for (var s = local.x; s < params.n; s += WG) {
            sum += x_of(s).x * select(vec2<f32>(0.0, 1.0), vec2<f32>(1.0, 0.0), known[s].w > 0.0);
        }
        sum = vec2<f32>(sum_across(local.x, sum.x), sum_across(local.x, sum.y));
        shift = vec2<f32>((sum.x + sum.y) / f32(params.n));
        if params.shift == OPPOSITE {
            shift = sum.yx / f32(params.n / 2u);
        }
        if params.shift != MEAN_OF_ALL {
            shift = max(shift, vec2<f32>());
        }
    }
    if params.shift == OPPOSITE {
        // Derivative of the summed loss by each shift, divided by the number of members of the shift's mean.
        for (var s = local.x; s < params.n; s += WG) {
            d_shift -= d_side(s, shift) * select(vec2<f32>(0.0, 1.0), vec2<f32>(1.0, 0.0), known[s].w > 0.0);
        }
        d_shift = vec2<f32>(sum_across(local.x, d_shift.x), sum_across(local.x, d_shift.y)) / f32(params.n / 2u);
        d_shift = select(vec2<f32>(), d_shift, shift > vec2<f32>());
    }
    for (var s = local.x; s < params.n; s += WG) {
        let through_shift = select(d_shift.x, d_shift.y, known[s].w > 0.0);
        add_d_sum(s, (d_side(s, shift) + through_shift) * x_of(s).y);
    }
}

@group(0) @binding(1) var<storage, read> owners: array<vec2<u32>>; // (rows): 2·sequence + (1 for a response row), or NONE
@group(0) @binding(2) var<storage, read> d_sums_in: array<vec2<f32>>;
@group(0) @binding(3) var<storage, read_write> d_logp: array<f32>;

const NONE = 0xffffffffu;

fn d_sum_of(owner: u32) -> f32 {
    if owner == NONE {
        return 0.0;
    }
    let d = d_sums_in[owner >> 1u];
    return select(d.x, d.y, (owner & 1u) == 1u);
}

@compute @workgroup_size(WG)
fn objective_scatter(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) n_groups: vec3<u32>,
    @builtin(local_invocation_id) local: vec3<u32>,
) {
    let r = flat_group(group, n_groups) * WG + local.x;
    if r < params.n {
        d_logp[r] = d_sum_of(owners[r].x) + d_sum_of(owners[r].y);
    }
}
