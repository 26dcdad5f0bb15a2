//! Time of the heaviest kernels, recording to readback: `cargo bench --bench kernels [-- PART_OF_A_LABEL]`.

use std::time::Instant;

use jointwise::data::batch::Batch;
use jointwise::gpu::{DeviceChoice, Gpu, Recording};
use jointwise::kernels::attention::{Attention, Saved, Segments, attention_bwd, attention_fwd};
use jointwise::kernels::matmul::{Matrix, Orientation, Product, matmul};
use jointwise::kernels::storage::Storage;

fn measure(gpu: &Gpu, label: &str, record: &dyn Fn(&mut Recording)) {
    let run = || {
        let mut rec = gpu.record();
        record(&mut rec);
        let flops = rec.flops();
        let started = Instant::now();
        rec.submit();
        let done = gpu.slot(1);
        pollster::block_on(gpu.read::<f32>(&[&done])).expect("device");
        (started.elapsed().as_secs_f64(), flops)
    };
    run();
    let best = (0..5).map(|_| run()).min_by(|a, b| a.0.total_cmp(&b.0)).expect("five runs");
    println!("{label:<52} {:>9.2} ms {:>9.2} GFLOP/s", best.0 * 1e3, best.1 as f64 / best.0 / 1e9);
}

/// Segments of `len` tokens each.
fn segments(t: usize, len: usize) -> Batch {
    let mut batch = Batch::default();
    for i in 0..t as u32 {
        let start = i / len as u32 * len as u32;
        batch.ranges.push([start, start, start, i + 1]);
        batch.positions.push(i - start);
        batch.query_end.push((start + len as u32).min(t as u32));
    }
    batch
}

fn products(gpu: &Gpu, filter: &str) {
    for (t, n_out, n_in) in [(1750, 128, 128), (1750, 512, 128), (512, 576, 576), (512, 1536, 576)] {
        for orientation in [Orientation::Forward, Orientation::BackwardX, Orientation::BackwardW] {
            let label = format!("matmul {orientation:?} T={t} out={n_out} in={n_in}");
            if !label.contains(filter) {
                continue;
            }
            let (m, n, k) = match orientation {
                Orientation::Forward => (t, n_out, n_in),
                Orientation::BackwardX => (t, n_in, n_out),
                Orientation::BackwardW => (n_out, n_in, t),
            };
            let (x, w, y) = (gpu.slot(t * n_in), gpu.slot(n_out * n_in), gpu.slot(t * n_out));
            let (a, b, c) = match orientation {
                Orientation::Forward => ((&x, n_in), (&w, n_in), (&y, n_out)),
                Orientation::BackwardX => ((&y, n_out), (&w, n_in), (&x, n_in)),
                Orientation::BackwardW => ((&y, n_out), (&x, n_in), (&w, n_in)),
            };
            let p = Product { orientation, storage: Storage::F32, m, n, k, alpha: 1.0, accumulate: false };
            let matrix = |(slot, stride)| Matrix::new(slot, stride);
            measure(gpu, &label, &|rec| (0..4).for_each(|_| matmul(rec, &p, matrix(a), matrix(b), matrix(c))));
        }
    }
}

fn attention(gpu: &Gpu, filter: &str) {
    for (t, len, heads, kv_heads, head_dim) in [(1750, 27, 4, 2, 32), (1024, 512, 9, 3, 64)] {
        let a = Attention { heads, kv_heads, head_dim, scale: 0.1, softcap: None, window: None };
        let layout = a.packed();
        let s = Segments::of_batch(gpu, &segments(t, len));
        let (qkv, o, lse) = (gpu.slot(t * layout.q_stride), gpu.slot(t * heads * head_dim), gpu.slot(t * heads));
        let (d_o, d_qkv) = (gpu.slot(t * heads * head_dim), gpu.slot(t * layout.q_stride));
        let label = format!("attention T={t} segments of {len} H={heads} E={head_dim}");
        if !label.contains(filter) {
            continue;
        }
        measure(gpu, &format!("{label} fwd"), &|rec| attention_fwd(rec, &a, &layout, &qkv, &qkv, &s, &o, &lse));
        let saved = Saved { qkv: &qkv, o: &o, lse: &lse };
        measure(gpu, &format!("{label} bwd"), &|rec| attention_bwd(rec, &a, &layout, saved, &s, &d_o, &d_qkv));
    }
}

fn main() {
    let filter = std::env::args().skip(1).find(|a| !a.starts_with('-')).unwrap_or_default();
    let gpu = pollster::block_on(Gpu::open(&DeviceChoice::Best)).expect("a device");
    println!("{} {}", gpu.caps().name, gpu.caps().driver);
    products(&gpu, &filter);
    attention(&gpu, &filter);
}
