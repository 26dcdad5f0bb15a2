// Adds a bias and then a residual to a product's sums, each rounded as a pass of its own would round it. The pass that writes C adds both,
// which saves two more passes over C. `shared/epilogue_none` defines the same names for products without an epilogue.

import package::shared::product::{MatmulParams};

override BIAS: bool = true;
override RESIDUAL: bool = true;
override EPILOGUE: u32 = 4u; // first binding behind those of the product; a binding that is not added from may hold anything

@group(0) @binding(EPILOGUE) var<storage, read> bias: array<f32>; // (N) from bias_start on
@group(0) @binding(EPILOGUE + 1u) var<storage, read> residual: array<f32>; // (M, N), laid out as C
@group(0) @binding(EPILOGUE + 1u) var<storage, read> residual_vec4s: array<vec4<f32>>;

// Returns element `at` of C, in column n, with the epilogue. An entry point uses values or vec4s, not both.
fn with_epilogue(value: f32, n: u32, at: u32) -> f32 {
    var sum = value;
    if BIAS {
        sum += bias[params.bias_start + n];
    }
    if RESIDUAL {
        sum += residual[at];
    }
    return sum;
}

// Returns the bias of columns n to n + 3, or zeros where there is no bias.
fn bias_vec4(n: u32) -> vec4<f32> {
    if BIAS {
        let i = params.bias_start + n;
        return vec4<f32>(bias[i], bias[i + 1u], bias[i + 2u], bias[i + 3u]);
    }
    return vec4<f32>();
}

// Returns vec4 `vec4_at` of C with the epilogue, where `columns_bias` is the bias of its columns.
fn with_epilogue_vec4(values: vec4<f32>, columns_bias: vec4<f32>, vec4_at: u32) -> vec4<f32> {
    var sums = values;
    if BIAS {
        sums += columns_bias;
    }
    if RESIDUAL {
        sums += residual_vec4s[vec4_at];
    }
    return sums;
}
