// Rows of heads as vec4s, for attention.wgsl, with any E and any alignment. A row begins at element `at`. There is one function per
// binding, because WGSL takes no pointers into storage as arguments. Dimensions beyond E are zero. `shared/head_vec4s` is faster.

override E: u32 = 64u;

@group(0) @binding(1) var<storage, read> q: array<f32>; // (T, q_stride), heads side by side from q_start
@group(0) @binding(2) var<storage, read> kv: array<f32>; // (keys, kv_stride), keys from k_start, values from v_start
@group(0) @binding(1) var<storage, read> qkv: array<f32>; // (T, q_stride)
@group(0) @binding(2) var<storage, read> d_o: array<f32>; // (T, H·E)

// Returns the number of rows of `kv`.
fn keys() -> u32 {
    return arrayLength(&kv) / params.kv_stride;
}

fn load_q(at: u32, vec4_at: u32) -> vec4<f32> {
    let i = at + 4u * vec4_at;
    if E % 4u == 0u {
        return vec4<f32>(q[i], q[i + 1u], q[i + 2u], q[i + 3u]);
    }
    // No loop over a vector's components: FXC unrolls those, and gives up.
    let last = at + E - 1u;
    let all = vec4<f32>(q[i], q[min(i + 1u, last)], q[min(i + 2u, last)], q[min(i + 3u, last)]);
    return select(vec4<f32>(), all, vec4<u32>(0u, 1u, 2u, 3u) < vec4<u32>(E - 4u * vec4_at));
}

fn load_kv(at: u32, vec4_at: u32) -> vec4<f32> {
    let i = at + 4u * vec4_at;
    if E % 4u == 0u {
        return vec4<f32>(kv[i], kv[i + 1u], kv[i + 2u], kv[i + 3u]);
    }
    // No loop over a vector's components: FXC unrolls those, and gives up.
    let last = at + E - 1u;
    let all = vec4<f32>(kv[i], kv[min(i + 1u, last)], kv[min(i + 2u, last)], kv[min(i + 3u, last)]);
    return select(vec4<f32>(), all, vec4<u32>(0u, 1u, 2u, 3u) < vec4<u32>(E - 4u * vec4_at));
}

fn load_qkv(at: u32, vec4_at: u32) -> vec4<f32> {
    let i = at + 4u * vec4_at;
    if E % 4u == 0u {
        return vec4<f32>(qkv[i], qkv[i + 1u], qkv[i + 2u], qkv[i + 3u]);
    }
    // No loop over a vector's components: FXC unrolls those, and gives up.
    let last = at + E - 1u;
    let all = vec4<f32>(qkv[i], qkv[min(i + 1u, last)], qkv[min(i + 2u, last)], qkv[min(i + 3u, last)]);
    return select(vec4<f32>(), all, vec4<u32>(0u, 1u, 2u, 3u) < vec4<u32>(E - 4u * vec4_at));
}

fn load_d_o(at: u32, vec4_at: u32) -> vec4<f32> {
    let i = at + 4u * vec4_at;
    if E % 4u == 0u {
        return vec4<f32>(d_o[i], d_o[i + 1u], d_o[i + 2u], d_o[i + 3u]);
    }
    // No loop over a vector's components: FXC unrolls those, and gives up.
    let last = at + E - 1u;
    let all = vec4<f32>(d_o[i], d_o[min(i + 1u, last)], d_o[min(i + 2u, last)], d_o[min(i + 3u, last)]);
    return select(vec4<f32>(), all, vec4<u32>(0u, 1u, 2u, 3u) < vec4<u32>(E - 4u * vec4_at));
}
