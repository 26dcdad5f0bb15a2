// AdamW's moments as f32, in bindings 4 and 5 of the importing module. `shared/moments_8bit` defines the same names over eight bits.

@group(0) @binding(4) var<storage, read_write> m: array<vec4<f32>>;
@group(0) @binding(5) var<storage, read_write> v: array<vec4<f32>>;

struct Moments {
    m: vec4<f32>,
    v: vec4<f32>,
}

// Nothing has to be prepared.
fn prepare_moments(lane: u32) {}

fn load_moments(vec4_at: u32) -> Moments {
    return Moments(m[vec4_at], v[vec4_at]);
}

// All invocations of a workgroup must call this together. `lane` is the invocation's index in it, `inside` whether its vec4 is in the
// bucket.
fn store_moments(vec4_at: u32, lane: u32, inside: bool, now: Moments) {
    if inside {
        m[vec4_at] = now.m;
        v[vec4_at] = now.v;
    }
}
