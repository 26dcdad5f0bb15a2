//! Kernel checks: which were done on this device, and which variants failed. The page keeps the result per device, driver and program, so
//! that a reload does not repeat them.

use jointwise::Result;
use jointwise::gpu::{DeviceChoice, Gpu, Variant};
use jointwise::kernels::check_variants;
use jointwise::kernels::storage::WeightFormat;
use jointwise::model::description::ModelConfig;
use jointwise::model::weights::{BaseDtype, WeightSource};
use serde::{Deserialize, Serialize};

/// Result of the kernel checks so far.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct KernelChecks {
    /// Weight formats whose kernels were checked.
    pub formats: Vec<WeightFormat>,
    /// Variants that computed wrongly. The device runs without them.
    pub wrong: Vec<Variant>,
}

impl KernelChecks {
    /// Opens the best device, without the variants that failed.
    ///
    /// # Errors
    /// [`jointwise::Error::Device`].
    pub async fn open_device(&self) -> Result<Gpu> {
        let gpu = Gpu::open(&DeviceChoice::Best).await?;
        let variants = gpu.caps().variants.iter().copied().filter(|variant| !self.wrong.contains(variant)).collect();
        Ok(gpu.with_variants(variants))
    }

    /// Checks the kernels of the formats that were not checked before. Returns whether variants failed, so that the device must be opened
    /// again without them.
    ///
    /// # Errors
    /// [`jointwise::Error::Gpu`].
    pub async fn add(&mut self, gpu: &Gpu, formats: &[WeightFormat]) -> Result<bool> {
        let missing: Vec<WeightFormat> = formats.iter().copied().filter(|f| !self.formats.contains(f)).collect();
        if missing.is_empty() {
            return Ok(false);
        }
        let checks = check_variants(gpu, &missing).await?;
        let failed: Vec<Variant> =
            checks.into_iter().filter(|(_, check)| check.error > 1.0).map(|(variant, _)| variant).collect();
        self.formats.extend(missing);
        self.wrong.extend(&failed);
        Ok(!failed.is_empty())
    }
}

/// Returns the formats of a model's weights and of its adapter, which is in f32.
pub fn formats(model: &ModelConfig, source: &dyn WeightSource, base: BaseDtype) -> Vec<WeightFormat> {
    let mut all = vec![WeightFormat::F32];
    for spec in model.tensors().iter().filter(|spec| spec.shape.len() == 2) {
        // Embedding and head are stored as in the files. A transposed weight has its columns as rows.
        for base in [base, BaseDtype::Auto] {
            for &cols in &spec.shape {
                let format = base.storage(cols, source.is_bf16(spec));
                if !all.contains(&format) {
                    all.push(format);
                }
            }
        }
    }
    all
}
