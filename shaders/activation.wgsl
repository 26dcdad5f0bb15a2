// gated: y[t,i] = f(u[t,i])·u[t,F+i], u: (T, 2F) as gate, up;   plain: y[t,i] = f(u[t,i]), u: (T, F)
// silu: x·σ(x);   gelu: x·Φ(x), Φ by erf;   gelu_tanh: x/2·(1 + tanh(√(2/π)·(x + 0.044715·x³)))
// d_u = (f'(gate)·up·d_y, f(gate)·d_y);   d_u = f'(u)·d_y
// clamped SwiGLU, gated: y = (v + 1)·g·σ(α·g), g = min(gate, c), v = min(max(up, −c), c); clamped values have no gradient

import package::shared::grid::{flat_group};
import package::shared::sigmoid::{sigmoid};
import package::shared::value_f32::{Value, WIDTH};

override WG: u32 = 64u;
override KIND: u32 = 0u; // 0 silu, 1 gelu, 2 gelu_tanh, 3 clamped SwiGLU
override LIMIT: f32 = 7.0; // c of clamped SwiGLU
override ALPHA: f32 = 1.0; // α of clamped SwiGLU

struct ActivationParams {
    n: u32, // T × F
    width: u32,
    gated: u32,
    pad: u32,
}

@group(0) @binding(0) var<uniform> params: ActivationParams;
@group(0) @binding(1) var<storage, read> u: array<Value>;
@group(0) @binding(2) var<storage, read_write> y: array<Value>; // (T, F)

// Φ(x) − 1/2 = erf(x/√2)/2. WGSL has no erf: small |z| take a series, larger ones a continued product form (erfc of Numerical Recipes,
// relative error 1.2e-7).
fn erf(z: Value) -> Value {
    let a = abs(z);
    let s = z * z;
    var term = z;
    var sum = z;
    for (var n = 1u; n < 12u; n++) {
        term *= -s / f32(n);
        sum += term / f32(2u * n + 1u);
    }
    let t = 1.0 / (1.0 + 0.5 * a);
    let poly = -1.26551223 + t * (1.00002368 + t * (0.37409196 + t * (0.09678418 + t * (-0.18628806 + t * (0.27886807
        + t * (-1.13520398 + t * (1.48851587 + t * (-0.82215223 + t * 0.17087277))))))));
    return select(sign(z) * (1.0 - t * exp(poly - a * a)), 1.1283791671 * sum, a < Value() + 1.0);
}

// f(x) and f'(x).
struct Activated {
    value: Value,
    slope: Value,
}

fn activate(x: Value) -> Activated {
    if KIND == 0u {
        let s = sigmoid(x);
        return Activated(x * s, s * (1.0 + x * (1.0 - s)));
    }
    if KIND == 1u {
        let phi = 0.5 * (1.0 + erf(x * 0.70710678));
        return Activated(x * phi, phi + x * 0.39894228 * exp(-0.5 * x * x));
    }
    let inner = 0.79788456 * (x + 0.044715 * x * x * x);
    let h = tanh(clamp(inner, Value() - 15.0, Value() + 15.0));
    let slope = 0.79788456 * (1.0 + 0.134145 * x * x);
    return Activated(0.5 * x * (1.0 + h), 0.5 * (1.0 + h) + 0.5 * x * (1.0 - h * h) * slope);
}

// y of a gate and an up, and its derivatives.
struct Gated {
    value: Value,
    d_gate: Value,
    d_up: Value,
}

fn gated(gate: Value, up: Value) -> Gated {
    if KIND == 3u {
        let limit = Value() + LIMIT;
        let g = min(gate, limit);
        let s = sigmoid(ALPHA * g);
        let v = clamp(up, -limit, limit) + 1.0;
        let slope = s * (1.0 + ALPHA * g * (1.0 - s));
        return Gated(v * (g * s), select(Value(), v * slope, gate <= limit), select(Value(), g * s, abs(up) <= limit));
    }
    let f = activate(gate);
    return Gated(f.value * up, f.slope * up, f.value);
}

// Returns the index of the gate that belongs to y's n-th Value: row·2F + column, in Values. Its up lies F elements behind it.
fn gate_at(n: u32) -> u32 {
    let values = params.width / WIDTH;
    return n / values * values + n;
}

@compute @workgroup_size(WG)
fn activation_fwd(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) n_groups: vec3<u32>,
    @builtin(local_invocation_id) local: vec3<u32>,
) {
    let n = flat_group(group, n_groups) * WG + local.x;
    if n >= params.n / WIDTH {
        return;
    }
    if params.gated == 1u {
        let at = gate_at(n);
        y[n] = gated(u[at], u[at + params.width / WIDTH]).value;
    } else {
        y[n] = activate(u[n]).value;
    }
}

@group(0) @binding(2) var<storage, read> d_y: array<Value>;
@group(0) @binding(3) var<storage, read_write> d_u: array<Value>;

@compute @workgroup_size(WG)
fn activation_bwd(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) n_groups: vec3<u32>,
    @builtin(local_invocation_id) local: vec3<u32>,
) {
    let n = flat_group(group, n_groups) * WG + local.x;
    if n >= params.n / WIDTH {
        return;
    }
    let pull = d_y[n];
    if params.gated == 1u {
        let at = gate_at(n);
        let y = gated(u[at], u[at + params.width / WIDTH]);
        d_u[at] = y.d_gate * pull;
        d_u[at + params.width / WIDTH] = y.d_up * pull;
    } else {
        d_u[n] = activate(u[n]).slope * pull;
    }
}
