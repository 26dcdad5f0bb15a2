// One-dimensional work spread over a two-dimensional grid (65,535 workgroups per dimension); the Rust side is `grid_1d`.

fn flat_group(group: vec3<u32>, n_groups: vec3<u32>) -> u32 {
    return group.y * n_groups.x + group.x;
}
