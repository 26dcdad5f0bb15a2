//! The crate's sources of chance. On the host PCG32 (O'Neill 2014, XSH-RR 64/32), whose whole state is two numbers; on the device
//! Philox2x32-10 (Salmon et al. 2011), which has no state at all. So a run can be resumed to the same bits.

/// A PCG32 generator.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Rng {
    state: u64,
    increment: u64,
}

impl Rng {
    /// Equal seeds and streams give equal numbers; different streams of one seed are independent.
    pub fn new(seed: u64, stream: u64) -> Self {
        let mut rng = Self { state: 0, increment: stream << 1 | 1 };
        rng.next_u32();
        rng.state = rng.state.wrapping_add(seed);
        rng.next_u32();
        rng
    }
    /// Uniform over u32.
    pub fn next_u32(&mut self) -> u32 {
        let old = self.state;
        self.state = old.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(self.increment);
        let mixed = ((old >> 18 ^ old) >> 27) as u32;
        mixed.rotate_right((old >> 59) as u32)
    }
    /// Uniform in [0, 1), 24 bits.
    pub fn next_f32(&mut self) -> f32 {
        (self.next_u32() >> 8) as f32 / (1 << 24) as f32
    }
    /// Uniform in 0..n, without bias; 0 for n = 0.
    pub fn below(&mut self, n: u32) -> u32 {
        if n == 0 {
            return 0;
        }
        let threshold = n.wrapping_neg() % n;
        loop {
            let x = self.next_u32();
            if x >= threshold {
                return x % n;
            }
        }
    }
    /// Standard normal (Box and Muller).
    pub fn normal(&mut self) -> f32 {
        let u = 1.0 - f64::from(self.next_f32());
        let v = f64::from(self.next_f32());
        ((-2.0 * u.ln()).sqrt() * (std::f64::consts::TAU * v).cos()) as f32
    }
    /// Shuffles in place (Fisher and Yates).
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for i in (1..items.len()).rev() {
            items.swap(i, self.below(i as u32 + 1) as usize);
        }
    }
}

/// Philox2x32-10: two words of chance from a counter and a key. The twin of `shaders/shared/philox.wgsl`.
pub fn philox2x32(counter: [u32; 2], key: u32) -> [u32; 2] {
    let ([mut a, mut b], mut k) = (counter, key);
    for _ in 0..10 {
        let product = u64::from(a) * 0xd256_d193;
        (a, b) = ((product >> 32) as u32 ^ k ^ b, product as u32);
        k = k.wrapping_add(0x9e37_79b9);
    }
    [a, b]
}

/// Hashes bytes to 64 bits: FNV-1a (Fowler, Noll, Vo), mixed as in SplitMix64 (Steele et al. 2014), so that each bit depends on each byte.
/// Seeds are made with it. It does not withstand inputs that are chosen to collide.
pub fn hash64<'a>(parts: impl IntoIterator<Item = &'a [u8]>) -> u64 {
    let mut hash: u64 = 0xcbf2_9ce4_8422_2325;
    for &byte in parts.into_iter().flatten() {
        hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    }
    hash = (hash ^ hash >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    hash = (hash ^ hash >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    hash ^ hash >> 31
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equals_the_reference_implementation() {
        // pcg32-demo of the C library, seed 42, stream 54.
        let mut rng = Rng::new(42, 54);
        let first: Vec<u32> = (0..4).map(|_| rng.next_u32()).collect();
        assert_eq!(first, [0xa15c_02b7, 0x7b47_f409, 0xba1d_3330, 0x83d2_f293]);
    }

    #[test]
    fn philox_equals_the_reference_implementation() {
        // kat_vectors of Random123.
        assert_eq!(philox2x32([0, 0], 0), [0xff1d_ae59, 0x6cd1_0df2]);
        assert_eq!(philox2x32([u32::MAX; 2], u32::MAX), [0x2c3f_628b, 0xab4f_d7ad]);
        assert_eq!(philox2x32([0x243f_6a88, 0x85a3_08d3], 0x1319_8a2e), [0xdd7c_e038, 0xf62a_4c12]);
    }

    #[test]
    fn below_is_in_range_and_normal_is_normal() {
        let mut rng = Rng::new(1, 1);
        assert!((0..1000).all(|_| rng.below(7) < 7));
        let n = 20_000;
        let values: Vec<f64> = (0..n).map(|_| f64::from(rng.normal())).collect();
        let mean = values.iter().sum::<f64>() / f64::from(n);
        let variance = values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / f64::from(n);
        assert!(mean.abs() < 0.03 && (variance - 1.0).abs() < 0.04, "{mean} {variance}");
    }
}
