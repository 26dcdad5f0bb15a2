//! The cases of `jointwise bench` under Criterion, at the smallest model's shapes, in device time:
//! `cargo bench --bench kernels [-- PART_OF_A_NAME]`.

use std::time::Duration;

use criterion::{Criterion, Throughput};
use jointwise::gpu::{DeviceChoice, Gpu};
use jointwise::kernels::REGISTRY;
use jointwise::kernels::measure::PreparedCase;
use jointwise::kernels::shapes::MODELS;

const TOKENS: usize = 256;

fn main() {
    let gpu = pollster::block_on(Gpu::open(&DeviceChoice::Best)).expect("a device");
    let mut criterion = Criterion::default()
        .sample_size(10)
        .warm_up_time(Duration::from_millis(100))
        .measurement_time(Duration::from_secs(1))
        .configure_from_args();
    for kernel in REGISTRY {
        let mut group = criterion.benchmark_group(kernel.name());
        for case in kernel.benches(&MODELS[0], TOKENS, gpu.caps()) {
            group.throughput(Throughput::Elements(case.cost().flops.max(1)));
            let mut prepared = None;
            group.bench_function(case.label(), |b| {
                let prepared = prepared.get_or_insert_with(|| {
                    pollster::block_on(PreparedCase::new(&gpu, case.as_ref())).expect("a device")
                });
                b.iter_custom(|runs| {
                    let run = |_| pollster::block_on(prepared.run()).expect("a device").us;
                    Duration::from_secs_f64((0..runs).map(run).sum::<f64>() / 1e6)
                });
            });
        }
        group.finish();
    }
    criterion.final_summary();
}
