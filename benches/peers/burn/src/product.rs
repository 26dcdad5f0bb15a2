//! One f32 matrix product by Burn's general kernel, tuned.

use std::time::Instant;

use burn::tensor::{Device, Distribution, Tensor};
use serde::Serialize;

/// What was measured: the middle run, by the clock.
#[derive(Serialize)]
pub struct Product {
    seconds: f64,
    gflop_s: f64,
}

/// Runs that are timed together, so that waiting for the device is not what is measured.
const TOGETHER: usize = 4;
/// Times.
const RUNS: usize = 9;
/// Elements that are compared with f64.
const CHECKED: usize = 64;

/// C (N, N) = A (N, N) · B (N, N).
pub fn run(n: usize, device: &Device) -> Product {
    let matrix = || Tensor::<2>::random([n, n], Distribution::Normal(0.0, 1.0), device);
    let (a, b) = (matrix(), matrix());
    // Tunes.
    let c = a.clone().matmul(b.clone());
    check(n, [&a, &b, &c]);
    let mut seconds: Vec<f64> = (0..RUNS)
        .map(|_| {
            let started = Instant::now();
            let products: Vec<_> = (0..TOGETHER).map(|_| a.clone().matmul(b.clone())).collect();
            device.sync().expect("the device");
            let seconds = started.elapsed().as_secs_f64() / TOGETHER as f64;
            drop(products);
            seconds
        })
        .collect();
    seconds.sort_by(f64::total_cmp);
    let seconds = seconds[RUNS / 2];
    Product { seconds, gflop_s: 2.0 * (n as f64).powi(3) / seconds / 1e9 }
}

fn check(n: usize, tensors: [&Tensor<2>; 3]) {
    let [a, b, c] = tensors.map(|t| t.to_data().to_vec::<f32>().expect("f32"));
    for i in (0..n * n).step_by(n * n / CHECKED + 1) {
        let (row, column) = (i / n, i % n);
        let sum: f64 = (0..n).map(|k| f64::from(a[row * n + k]) * f64::from(b[k * n + column])).sum();
        // Of sums with a standard deviation of √n.
        let error = (sum - f64::from(c[i])).abs() / (n as f64).sqrt();
        assert!(error < 1e-4, "product {row}, {column}: {} is not {sum}", c[i]);
    }
}
