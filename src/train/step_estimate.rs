//! Estimates of a step's time on GPUs that are not here: the work of each kernel, divided by the GPU's peak rates.

use std::collections::BTreeMap;

use crate::error::{Error, Result};
use crate::gpu::{Caps, CooperativeMatrix, DispatchWork, MatmulPrecision, PlannedWork};
use crate::kernels::Cost;
use crate::kernels::measure::DevicePeaks;

/// Data sheet of a GPU.
#[derive(Debug, Clone, Copy)]
pub struct GpuDataSheet {
    /// Name that `plan --estimate` takes.
    pub name: &'static str,
    /// The maker's name.
    pub title: &'static str,
    /// Memory in GiB.
    memory_gib: u64,
    /// Rates of memory and of f32 multiply-adds.
    pub peaks: DevicePeaks,
    /// Cooperative matrices that kernels can take, and the rate of f16 products with f32 sums in GFLOP/s.
    matrices: Option<(CooperativeMatrix, f64)>,
}

/// GPUs that can be estimated. The rates are the makers' peaks at boost clocks.
pub const GPUS: [GpuDataSheet; 3] = [
    // AMD, "Radeon RX 7900 XTX" specifications: 61.4 TFLOP/s single precision (96 CU × 64 lanes × 2 by dual issue × 2 × 2.5 GHz), 122.8 half
    // precision (WMMA), 960 GB/s, 24 GB. RADV offers 16×16×16 f16 to f32.
    GpuDataSheet {
        name: "rx-7900-xtx",
        title: "AMD Radeon RX 7900 XTX",
        memory_gib: 24,
        peaks: DevicePeaks { copy_gb_s: 960.0, fma_gflop_s: 61_400.0 },
        matrices: Some((CooperativeMatrix { edge: 16, subgroup: 64 }, 122_800.0)),
    },
    // Intel ARK, "Arc A770 Graphics (16GB)": 32 Xe cores of 16 vector engines, 8 lanes, 2.4 GHz boost (× 2: 19.7 TFLOP/s), 560 GB/s, 16 GB.
    // ANV's cooperative matrices are not square, so kernels take none.
    GpuDataSheet {
        name: "arc-a770",
        title: "Intel Arc A770 (16 GB)",
        memory_gib: 16,
        peaks: DevicePeaks { copy_gb_s: 560.0, fma_gflop_s: 19_700.0 },
        matrices: None,
    },
    // NVIDIA, "Ada GPU architecture" whitepaper, appendix A, GeForce RTX 4090: 82.6 TFLOP/s f32, 165.2 f16 tensor with f32 accumulation
    // (dense), 1008 GB/s, 24 GB.
    GpuDataSheet {
        name: "rtx-4090",
        title: "NVIDIA GeForce RTX 4090",
        memory_gib: 24,
        peaks: DevicePeaks { copy_gb_s: 1008.0, fma_gflop_s: 82_600.0 },
        matrices: Some((CooperativeMatrix { edge: 16, subgroup: 32 }, 165_200.0)),
    },
];

impl GpuDataSheet {
    /// Returns the data sheet of a GPU.
    ///
    /// # Errors
    /// [`Error::Flag`] listing the names.
    pub fn named(name: &str) -> Result<&'static Self> {
        GPUS.iter().find(|gpu| gpu.name == name.to_lowercase()).ok_or_else(|| {
            let names: Vec<&str> = GPUS.iter().map(|gpu| gpu.name).collect();
            Error::flag("estimate", format!("unknown `{name}`: expected one of {}", names.join(", ")))
        })
    }

    /// Returns capabilities like the GPU's: its memory, large bindings, kernels for GPUs.
    ///
    /// # Errors
    /// [`Error::Flag`] for a precision below the highest where kernels can take no cooperative matrices.
    pub fn caps(&self, precision: MatmulPrecision) -> Result<Caps> {
        let caps = Caps {
            name: self.title.into(),
            max_binding_bytes: 2 << 30,
            workgroup_bytes: 32 << 10,
            f16: true,
            cooperative: self.matrices.map(|(shape, _)| shape),
            memory_bytes: Some(self.memory_gib << 30),
            ..Caps::baseline()
        };
        caps.with_precision(precision)
    }

    /// Returns the rate in GFLOP/s that a kernel's operations have at most. Operands of [`MatmulPrecision::High`] are multiplied three times.
    fn gflop_s(&self, entry: &str, precision: MatmulPrecision) -> f64 {
        match (self.matrices, precision) {
            (Some((_, rate)), MatmulPrecision::High) if entry.contains("_coop") => rate / 3.0,
            (Some((_, rate)), _) if entry.contains("_coop") => rate,
            _ => self.peaks.fma_gflop_s,
        }
    }

    /// Returns the rates in words.
    pub fn rates(&self) -> String {
        let DevicePeaks { copy_gb_s, fma_gflop_s } = self.peaks;
        let matrices =
            self.matrices.map_or(String::new(), |(_, rate)| format!(", {:.1} TFLOP/s in f16 matrices", rate / 1e3));
        format!("{copy_gb_s:.0} GB/s, {:.1} TFLOP/s in f32{matrices}", fma_gflop_s / 1e3)
    }

    /// Estimates the least time of a step, by kernel, the longest first. Each dispatch takes the longer of the times of its bytes and its
    /// operations.
    pub fn estimate(&self, work: &PlannedWork, precision: MatmulPrecision) -> StepEstimate {
        let mut kernels: BTreeMap<&'static str, KernelEstimate> = BTreeMap::new();
        for (&(entry, DispatchWork { bytes, flops }), &n) in work {
            let peaks = DevicePeaks { fma_gflop_s: self.gflop_s(entry, precision), ..self.peaks };
            let us = |bytes, flops| n as f64 * peaks.least_us(&Cost { bytes, flops });
            let kernel = kernels.entry(entry).or_insert_with(|| KernelEstimate::new(entry));
            kernel.dispatches += n;
            kernel.work.bytes += n as u64 * bytes;
            kernel.work.flops += n as u64 * flops;
            let least = us(bytes, flops);
            kernel.least_us += least;
            if us(bytes, 0) >= us(0, flops) {
                kernel.memory_bound_us += least;
            }
        }
        let mut kernels: Vec<KernelEstimate> = kernels.into_values().collect();
        kernels.sort_by(|a, b| b.least_us.total_cmp(&a.least_us));
        StepEstimate { kernels }
    }
}

/// Estimate of a kernel's dispatches in a step.
#[derive(Debug, Clone, Copy)]
pub struct KernelEstimate {
    /// Entry point.
    pub entry: &'static str,
    /// Number of dispatches.
    pub dispatches: usize,
    /// Work of all of them.
    pub work: DispatchWork,
    /// Least time in µs.
    pub least_us: f64,
    /// Part of it that belongs to dispatches whose bytes take longer than their operations, in µs.
    pub memory_bound_us: f64,
}

impl KernelEstimate {
    fn new(entry: &'static str) -> Self {
        Self { entry, dispatches: 0, work: DispatchWork::default(), least_us: 0.0, memory_bound_us: 0.0 }
    }
}

/// Estimate of a step.
#[derive(Debug, Clone)]
pub struct StepEstimate {
    /// Kernels, the longest first.
    pub kernels: Vec<KernelEstimate>,
}

impl StepEstimate {
    /// Returns the least time of the step in µs: kernels run one after the other.
    pub fn least_us(&self) -> f64 {
        self.kernels.iter().map(|kernel| kernel.least_us).sum()
    }

    /// Returns the number of dispatches, and the work of all of them.
    pub fn total(&self) -> (usize, DispatchWork) {
        let sum = |of: fn(&KernelEstimate) -> u64| self.kernels.iter().map(of).sum();
        let work = DispatchWork { bytes: sum(|k| k.work.bytes), flops: sum(|k| k.work.flops) };
        (self.kernels.iter().map(|k| k.dispatches).sum(), work)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_slower_of_memory_and_arithmetic_decides() {
        let gpu = GpuDataSheet::named("RTX-4090").unwrap();
        let dispatch = |entry, bytes, flops| (entry, DispatchWork { bytes, flops });
        let work = PlannedWork::from([
            (dispatch("add", 504_000_000, 1), 2),
            (dispatch("matmul_tiles", 1000, 743_400_000_000), 1),
            (dispatch("matmul_tiles", 1_008_000_000, 1000), 1),
            (dispatch("matmul_coop", 1000, 165_200_000_000), 1),
        ]);
        let estimate = gpu.estimate(&work, MatmulPrecision::High);
        let told: Vec<_> =
            estimate.kernels.iter().map(|k| (k.entry, k.least_us.round(), k.memory_bound_us.round())).collect();
        // A dispatch that waits for memory does not hide another one's arithmetic.
        assert_eq!(told, [("matmul_tiles", 10_000.0, 1000.0), ("matmul_coop", 3000.0, 0.0), ("add", 1000.0, 1000.0)]);
        assert_eq!(estimate.total().0, 5);
        assert!((estimate.least_us() - 14_000.0).abs() < 1e-6);
        assert!((gpu.estimate(&work, MatmulPrecision::Medium).least_us() - 12_000.0).abs() < 1e-6);
    }

    #[test]
    fn unknown_gpus_and_missing_matrices_are_refused() {
        let error = GpuDataSheet::named("rtx-9999").unwrap_err().to_string();
        assert!(error.contains("rtx-9999") && error.contains("arc-a770"), "{error}");
        let arc = GpuDataSheet::named("arc-a770").unwrap();
        assert!(arc.caps(MatmulPrecision::High).is_err() && arc.caps(MatmulPrecision::Highest).is_ok());
    }
}
