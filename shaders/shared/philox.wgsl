// Philox2x32-10 (Salmon et al. 2011): two random words from a counter and a key, without state. `src/rng.rs` has the Rust twin.

fn philox2x32(counter: vec2<u32>, key: u32) -> vec2<u32> {
    var c = counter;
    var k = key;
    for (var round = 0u; round < 10u; round++) {
        let low = c.x * 0xd256d193u;
        c = vec2<u32>(high_product(c.x, 0xd256d193u) ^ k ^ c.y, low);
        k += 0x9e3779b9u;
    }
    return c;
}

// Returns the upper 32 bits of a product, from products of halves.
fn high_product(a: u32, b: u32) -> u32 {
    let low = (a & 0xffffu) * (b & 0xffffu);
    let cross = (a >> 16u) * (b & 0xffffu) + (low >> 16u);
    let other = (a & 0xffffu) * (b >> 16u) + (cross & 0xffffu);
    return (a >> 16u) * (b >> 16u) + (cross >> 16u) + (other >> 16u);
}
