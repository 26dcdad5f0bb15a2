// Rows of heads as vec4s, for attention.wgsl, where vec4s are aligned in memory (E, starts and strides are multiples of four). A row begins
// at element `at`. `shared/head_values` defines the same names for any E and any alignment.

override E: u32 = 64u;

@group(0) @binding(1) var<storage, read> q: array<vec4<f32>>; // (T, q_stride), heads side by side from q_start
@group(0) @binding(2) var<storage, read> kv: array<vec4<f32>>; // (keys, kv_stride), keys from k_start, values from v_start
@group(0) @binding(1) var<storage, read> qkv: array<vec4<f32>>; // (T, q_stride)
@group(0) @binding(2) var<storage, read> d_o: array<vec4<f32>>; // (T, H·E)

// Returns the number of rows of `kv`.
fn keys() -> u32 {
    return 4u * arrayLength(&kv) / params.kv_stride;
}

fn load_q(at: u32, vec4_at: u32) -> vec4<f32> {
    return q[at / 4u + vec4_at];
}

fn load_kv(at: u32, vec4_at: u32) -> vec4<f32> {
    return kv[at / 4u + vec4_at];
}

fn load_qkv(at: u32, vec4_at: u32) -> vec4<f32> {
    return qkv[at / 4u + vec4_at];
}

fn load_d_o(at: u32, vec4_at: u32) -> vec4<f32> {
    return d_o[at / 4u + vec4_at];
}
