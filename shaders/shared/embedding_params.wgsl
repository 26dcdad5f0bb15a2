// Parameters of embedding's kernels.

struct EmbeddingParams {
    first_group: vec2<u32>,
    width: u32,
    first: u32,
    rows: u32,
    accumulate: u32,
    scale: f32,
    bucket: u32, // embedding_bwd_w: first bucket of this shard
    tokens: u32,
}

@group(0) @binding(0) var<uniform> params: EmbeddingParams;
