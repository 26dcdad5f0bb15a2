// Turns scores of sequences into the loss's gradient by each token's log-probability. A loss is a sum of terms: src/objective/loss.rs says
// which terms make which loss, src/kernels/objective/term.rs is the f64 twin. One dispatch adds the gradient of one term.
//
//   objective_sums:         sums[s] = (Σ instruction rows, Σ response rows, Σ rows of the response's tail, 0) of logp
//   objective_log_weights:  sums[s].w = mean over response rows of logp − log Σ_v p_v²
//   objective_pairs:        d_sums[s] of a term that compares a pair's sides:   z = scale·(x_c − x_r) − offset
//   objective_sorted:       like objective_pairs, for sides of equal rank by x over all pairs
//   objective_margins:      like objective_pairs, less the reference's margin of equal rank: z = scale·(x_c − x_r − ρ) − offset
//   objective_cross:        the mean over all pairs (i, j) of sides:           z = scale·ω_ij·(x_c,i − x_r,j) − offset
//   objective_unpaired:     d_sums[s] of a term on single sequences:           z = ±scale·(x − shift) − offset
//   objective_scatter:      d_logp[r] = Σ over the sequences that row r belongs to
//   objective_dynamic:      d_logp[r] = d_logp[r]·exp(logp[r])
//
// x of a sequence is link(f'(e^s)) with s = Σ logp − (1 − tail_weight)·Σ tail − reference; with a penalty, x + penalty·min(0, x) if chosen.
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
    up: f32,     // for LOGISTIC; log-odds of the target for BERNOULLI_KL; τ for LOG_RATIO_MODULATED
    down: f32,
    divergence: u32, // REVERSE_KL, ...
    alpha: f32,      // for ALPHA
    tail_weight: f32,
    penalty: f32,
    weighted: u32,   // 1: multiply a pair's loss by exp of both log-weights
}

const SUM = 0u;
const MEAN = 1u;
const LOG_ODDS = 2u;

const LOGISTIC = 0u;
const HINGE = 1u;
const SQUARE = 2u;
const SIGMOID = 3u;
const LINEAR = 4u;
const BERNOULLI_KL = 5u;
const LOG_RATIO_MODULATED = 6u;

const REVERSE_KL = 0u;
const FORWARD_KL = 1u;
const JENSEN_SHANNON = 2u;
const ALPHA = 3u;

const ZERO = 0u;
const MEAN_OF_ALL = 1u;
const POSITIVE = 2u;
const OPPOSITE = 3u;

@group(0) @binding(0) var<uniform> params: ObjectiveParams;
@group(0) @binding(1) var<storage, read> spans: array<u32>; // (S, 6): prefix first, end; own first, end; first response row; first of the tail
@group(0) @binding(2) var<storage, read> logp: array<f32>;
@group(0) @binding(3) var<storage, read_write> sums: array<vec4<f32>>; // (S): instruction, response, tail, log-weight

// One workgroup per sequence.
@compute @workgroup_size(WG)
fn objective_sums(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_id) local: vec3<u32>) {
    let at = group.x * 6u;
    let response = spans[at + 4u];
    let tail = spans[at + 5u];
    var instruction_sum = 0.0;
    var response_sum = 0.0;
    var tail_sum = 0.0;
    for (var r = spans[at] + local.x; r < spans[at + 1u]; r += WG) {
        instruction_sum += logp[r];
    }
    for (var r = spans[at + 2u] + local.x; r < spans[at + 3u]; r += WG) {
        if r < response {
            instruction_sum += logp[r];
        } else {
            response_sum += logp[r];
        }
        tail_sum += select(0.0, logp[r], r >= tail);
    }
    let total = vec3<f32>(sum_across(local.x, instruction_sum), sum_across(local.x, response_sum), sum_across(local.x, tail_sum));
    if local.x == 0u && group.x < params.n {
        sums[group.x] = vec4<f32>(total, 0.0);
    }
}

@group(0) @binding(3) var<storage, read> log_squares: array<f32>; // (rows): log Σ_v p_v²
@group(0) @binding(4) var<storage, read_write> sums_weighted: array<vec4<f32>>; // (S), like sums

// One workgroup per sequence.
@compute @workgroup_size(WG)
fn objective_log_weights(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_id) local: vec3<u32>) {
    let at = group.x * 6u;
    let response = spans[at + 4u];
    let end = spans[at + 3u];
    var sum = 0.0;
    for (var r = response + local.x; r < end; r += WG) {
        sum += logp[r] - log_squares[r];
    }
    let total = sum_across(local.x, sum);
    if local.x == 0u && group.x < params.n {
        sums_weighted[group.x].w = total / f32(max(end - response, 1u));
    }
}

@group(0) @binding(1) var<storage, read> sums_in: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> known: array<vec4<f32>>; // (S): reference score, tokens, weight, 1 desirable or −1
@group(0) @binding(3) var<storage, read_write> d_sums: array<vec4<f32>>; // (S): by an instruction row, a response row, a row of the tail; -

fn sigmoid(x: f32) -> f32 {
    return 1.0 / (1.0 + exp(-clamp(x, -80.0, 80.0)));
}

// Returns log σ(x).
fn log_sigmoid(x: f32) -> f32 {
    return min(x, 0.0) - log(1.0 + exp(-abs(x)));
}

const MAX_EXPONENT = 80.0;

// Returns exp(x) and its slope; both end at MAX_EXPONENT.
fn bounded_exp(x: f32) -> vec2<f32> {
    let value = exp(min(x, MAX_EXPONENT));
    return vec2<f32>(value, select(0.0, value, x < MAX_EXPONENT));
}

// Returns f'(e^s), and its slope by s.
fn diverged(s: f32) -> vec2<f32> {
    switch params.divergence {
        case FORWARD_KL: {
            let exponential = bounded_exp(-s);
            return vec2<f32>(1.0 - exponential.x, exponential.y);
        }
        case JENSEN_SHANNON: {
            return vec2<f32>(0.6931471805599453 + log_sigmoid(s), sigmoid(-s));
        }
        case ALPHA: {
            let exponential = bounded_exp((params.alpha - 1.0) * s);
            return vec2<f32>((exponential.x - 1.0) / (params.alpha - 1.0), exponential.y);
        }
        default: {
            return vec2<f32>(s, 1.0);
        }
    }
}

const CERTAIN = -9.5367431640625e-7;

// Returns 1 − exp(x) for x below 0, by a series where the difference would lose digits.
fn one_minus_exp(x: f32) -> f32 {
    let series = -x * (1.0 + x / 2.0 * (1.0 + x / 3.0 * (1.0 + x / 4.0 * (1.0 + x / 5.0))));
    return select(1.0 - exp(x), series, x > -0.1);
}

// Returns the link's value at a score over n tokens, and its slope.
fn linked(score: f32, n: f32) -> vec2<f32> {
    if params.link == SUM {
        return vec2<f32>(score, 1.0);
    }
    if params.link == MEAN {
        return vec2<f32>(score, 1.0) / n;
    }
    let mean = min(score / n, CERTAIN);
    let rest = one_minus_exp(mean);
    return vec2<f32>(mean - log(rest), select(0.0, 1.0 / (n * rest), score / n < CERTAIN));
}

// Returns x of a sequence, and its slope by the score.
fn x_of(s: u32) -> vec2<f32> {
    let tail = (1.0 - params.tail_weight) * sums_in[s].z;
    let score = diverged(sums_in[s].y + select(0.0, sums_in[s].x, params.joint == 1u) - tail - known[s].x);
    let x = linked(score.x, known[s].y) * vec2<f32>(1.0, score.y);
    return x * (1.0 + select(0.0, params.penalty, known[s].w > 0.0 && x.x < 0.0));
}

// Returns the weight of a sequence's loss, and with WPO that of its pair.
fn weight_of(s: u32) -> f32 {
    if params.weighted == 0u {
        return known[s].z;
    }
    return known[s].z * exp(sums_in[s].w + sums_in[s ^ 1u].w);
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
        case BERNOULLI_KL: {
            return sigmoid(z) * sigmoid(-z) * (z - params.up);
        }
        case LOG_RATIO_MODULATED: {
            let m = sigmoid(z / params.up);
            let rest = sigmoid(-z / params.up);
            // m·exp(−z) in one exponential, because exp(−z) alone overflows where m is 0.
            let blended = exp(log_sigmoid(z / params.up) - z);
            return -rest * sigmoid(-z) - blended + rest * (blended + m * log_sigmoid(z)) / params.up;
        }
        default: {
            return -1.0;
        }
    }
}

fn add_d_sum(s: u32, d_score: f32) {
    let d = d_score * vec4<f32>(f32(params.joint), 1.0, params.tail_weight, 0.0);
    d_sums[s] = select(d, d + d_sums[s], params.add == 1u);
}

fn compare(c: u32, r: u32, margin: f32) {
    let chosen = x_of(c);
    let rejected = x_of(r);
    let d = weight_of(c) * params.scale * slope(params.scale * (chosen.x - rejected.x - margin) - params.offset);
    add_d_sum(c, d * chosen.y);
    add_d_sum(r, -d * rejected.y);
}

@compute @workgroup_size(WG)
fn objective_pairs(@builtin(local_invocation_id) local: vec3<u32>) {
    for (var p = local.x; p < params.n / 2u; p += WG) {
        compare(2u * p, 2u * p + 1u, 0.0);
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
        compare(2u * p, min(ranked[rank_of(2u * p)], params.n - 1u), 0.0);
    }
}

@group(0) @binding(4) var<storage, read> reference_margins: array<f32>; // (pairs), ascending

fn margin_of(p: u32) -> f32 {
    return x_of(2u * p).x - x_of(2u * p + 1u).x;
}

@compute @workgroup_size(WG)
fn objective_margins(@builtin(local_invocation_id) local: vec3<u32>) {
    let pairs = params.n / 2u;
    for (var p = local.x; p < pairs; p += WG) {
        let margin = margin_of(p);
        var rank = 0u; // among all pairs, ascending; ties by index
        for (var other = 0u; other < pairs; other++) {
            let its = margin_of(other);
            rank += select(0u, 1u, its < margin || (its == margin && other < p));
        }
        compare(2u * p, 2u * p + 1u, reference_margins[min(rank, pairs - 1u)]);
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
    let z = scale * (x_of(s).x - select(shift.y, shift.x, known[s].w > 0.0)) - params.offset;
    return weight_of(s) * scale * slope(z);
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

@group(0) @binding(1) var<storage, read> owners: array<vec2<u32>>; // (rows): 4·sequence + part (instruction, response, tail), or NONE
@group(0) @binding(2) var<storage, read> d_sums_in: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read_write> d_logp: array<f32>;

const NONE = 0xffffffffu;

fn d_sum_of(owner: u32) -> f32 {
    if owner == NONE {
        return 0.0;
    }
    let d = d_sums_in[owner >> 2u];
    let part = owner & 3u;
    return select(select(d.x, d.y, part == 1u), d.z, part == 2u);
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

@group(0) @binding(1) var<storage, read> logp_in: array<f32>; // (rows)
@group(0) @binding(2) var<storage, read_write> d_logp_dynamic: array<f32>; // (rows)

@compute @workgroup_size(WG)
fn objective_dynamic(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) n_groups: vec3<u32>,
    @builtin(local_invocation_id) local: vec3<u32>,
) {
    let r = flat_group(group, n_groups) * WG + local.x;
    if r < params.n {
        d_logp_dynamic[r] *= exp(logp_in[r]);
    }
}
