// Activation functions and their slopes.
// silu: x·σ(x);   gelu: x·Φ(x), Φ by erf;   gelu_tanh: x/2·(1 + tanh(√(2/π)·(x + 0.044715·x³)))

override KIND: u32 = 0u; // 0 silu, 1 gelu, 2 gelu_tanh

// Φ(x) − 1/2 = erf(x/√2)/2. WGSL has no erf: small |z| take a series, larger ones a continued product form (erfc of Numerical Recipes,
// relative error 1.2e-7).
fn erf(z: f32) -> f32 {
    let a = abs(z);
    if a < 1.0 {
        let s = z * z;
        var term = z;
        var sum = z;
        for (var n = 1u; n < 12u; n++) {
            term *= -s / f32(n);
            sum += term / f32(2u * n + 1u);
        }
        return 1.1283791671 * sum;
    }
    let t = 1.0 / (1.0 + 0.5 * a);
    let poly = -1.26551223 + t * (1.00002368 + t * (0.37409196 + t * (0.09678418 + t * (-0.18628806 + t * (0.27886807
        + t * (-1.13520398 + t * (1.48851587 + t * (-0.82215223 + t * 0.17087277))))))));
    return sign(z) * (1.0 - t * exp(poly - a * a));
}

fn sigmoid(x: f32) -> f32 {
    return 1.0 / (1.0 + exp(-clamp(x, -80.0, 80.0)));
}

// f(x), f'(x)
fn activate(x: f32) -> vec2<f32> {
    if KIND == 0u {
        let s = sigmoid(x);
        return vec2<f32>(x * s, s * (1.0 + x * (1.0 - s)));
    }
    if KIND == 1u {
        let phi = 0.5 * (1.0 + erf(x * 0.70710678));
        return vec2<f32>(x * phi, phi + x * 0.39894228 * exp(-0.5 * x * x));
    }
    let inner = 0.79788456 * (x + 0.044715 * x * x * x);
    let h = tanh(clamp(inner, -15.0, 15.0));
    let slope = 0.79788456 * (1.0 + 0.134145 * x * x);
    return vec2<f32>(0.5 * x * (1.0 + h), 0.5 * (1.0 + h) + 0.5 * x * (1.0 - h * h) * slope);
}
