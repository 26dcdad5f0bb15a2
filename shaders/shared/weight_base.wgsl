// First word of a quantised matrix in its binding: the binding's own. `shared/product_tile_experts` defines the same name for many matrices.

fn weight_base() -> u32 {
    return 0u;
}
