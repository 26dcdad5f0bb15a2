//! Estimates of a step's time on GPUs that are not here: the work of each kernel, divided by the GPU's peak rates.

use std::collections::BTreeMap;

use crate::error::{Error, Result};
use crate::gpu::{Caps, CooperativeMatrix, KernelWork, MatmulPrecision};
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

    /// Estimates the least time of a step, by kernel, the longest first.
    pub fn estimate(&self, work: &BTreeMap<&'static str, KernelWork>, precision: MatmulPrecision) -> StepEstimate {
        let kernel = |(&entry, &work): (&&'static str, &KernelWork)| {
            let peaks = DevicePeaks { fma_gflop_s: self.gflop_s(entry, precision), ..self.peaks };
            let us = |bytes, flops| peaks.least_us(&Cost { bytes, flops });
            let is_memory_bound = us(work.bytes, 0) >= us(0, work.flops);
            KernelEstimate { entry, work, least_us: us(work.bytes, work.flops), is_memory_bound }
        };
        let mut kernels: Vec<KernelEstimate> = work.iter().map(kernel).collect();
        kernels.sort_by(|a, b| b.least_us.total_cmp(&a.least_us));
        StepEstimate { kernels }
    }
}

/// Estimate of a kernel's dispatches in a step.
#[derive(Debug, Clone, Copy)]
pub struct KernelEstimate {
    /// Entry point.
    pub entry: &'static str,
    /// Work of all its dispatches.
    pub work: KernelWork,
    /// Least time in µs.
    pub least_us: f64,
    /// Whether memory decides, not arithmetic.
    pub is_memory_bound: bool,
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

    /// Returns the work of all kernels.
    pub fn total(&self) -> KernelWork {
        let mut all = KernelWork::default();
        self.kernels.iter().for_each(|kernel| all += kernel.work);
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_slower_of_memory_and_arithmetic_decides() {
        let gpu = GpuDataSheet::named("RTX-4090").unwrap();
        let work = BTreeMap::from([
            ("add", KernelWork { dispatches: 2, bytes: 1_008_000_000, flops: 1 }),
            ("matmul_tiles", KernelWork { dispatches: 1, bytes: 1000, flops: 826_000_000_000 }),
            ("matmul_coop", KernelWork { dispatches: 1, bytes: 1000, flops: 165_200_000_000 }),
        ]);
        let estimate = gpu.estimate(&work, MatmulPrecision::High);
        let told: Vec<_> = estimate.kernels.iter().map(|k| (k.entry, k.least_us.round(), k.is_memory_bound)).collect();
        assert_eq!(told, [("matmul_tiles", 10_000.0, false), ("matmul_coop", 3000.0, false), ("add", 1000.0, true)]);
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
