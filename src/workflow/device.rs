//! Opening of a device with cached kernels, measured variants and a self-test.

use super::cache_folder::cache_folder;
use super::open_model::OpenModel;
use super::{device_notes, self_test_cache, tuning_cache};
use crate::error::Result;
use crate::gpu::{DeviceChoice, Gpu, MatmulPrecision, Variant};
use crate::kernels::storage::WeightFormat;

/// Choice of a device and of the kernels that it may use.
///
/// # Examples
/// ```no_run
/// // Not run by the test: a machine may have no Vulkan.
/// use jointwise::gpu::DeviceChoice;
/// use jointwise::{DeviceOptions, Gpu};
/// let gpu = Gpu::open_with(&DeviceOptions { device: DeviceChoice::parse("vulkan"), ..DeviceOptions::default() })?;
/// # Ok::<(), jointwise::Error>(())
/// ```
#[derive(Debug, Clone, Default)]
pub struct DeviceOptions {
    /// Device to open.
    pub device: DeviceChoice,
    /// Kernel variants that may be chosen. `None`: all that the device has.
    pub variants: Option<Vec<Variant>>,
    /// Precision of matrix products. `None`: f32, or what `JOINTWISE_MATMUL_PRECISION` says.
    pub matmul_precision: Option<MatmulPrecision>,
    /// Formats of weights whose kernels the self-test checks. `None`: all. Kernels of other formats are used unchecked.
    pub weight_formats: Option<Vec<WeightFormat>>,
}

impl DeviceOptions {
    /// Limits the self-test to kernels of the formats that the model's weights have.
    #[must_use]
    pub fn for_model(self, model: &OpenModel) -> Self {
        Self { weight_formats: Some(model.weight_formats()), ..self }
    }
}

impl Gpu {
    /// Opens the best device of this machine: a discrete GPU, else an integrated one, else a CPU that stands in for one.
    ///
    /// # Errors
    /// Those of [`Gpu::open_with`].
    ///
    /// # Examples
    /// ```
    /// let gpu = jointwise::Gpu::open_best()?;
    /// println!("{}", gpu.caps().name);
    /// # Ok::<(), jointwise::Error>(())
    /// ```
    pub fn open_best() -> Result<Self> {
        Self::open_with(&DeviceOptions::default())
    }

    /// Opens a device. Kernels that fail the self-test on it are disabled, with a warning in the log. The test is run once per device, driver and
    /// program; its result is cached.
    ///
    /// # Errors
    /// [`crate::Error::Device`] where there is no device, [`crate::Error::Flag`] where none matches, [`crate::Error::Gpu`] where products of the chosen
    /// precision are wrong on it.
    pub fn open_with(options: &DeviceOptions) -> Result<Self> {
        let formats = options.weight_formats.as_deref().unwrap_or(&WeightFormat::ALL);
        let (gpu, wrong) = self_test_cache::self_test_cached(Self::open_untested(options)?, formats)?;
        for variant in wrong {
            let (variant, device) = (variant.name(), &gpu.caps().name);
            note!("warning: the kernels `{variant}` failed the self-test on {device} and are disabled");
        }
        if gpu.caps().is_cpu {
            note!("note: no GPU is used: {} computes on the CPU, which is slow", gpu.caps().name);
            if gpu.caps().driver.contains("Mesa 22.") {
                note!(
                    "note: Mesa 22 is a quarter as fast as Mesa 25 on CPUs without AVX-512 (make demo and make test fetch the latter)"
                );
            }
        }
        Ok(gpu)
    }

    /// Returns the device that is open already, or opens one.
    ///
    /// # Errors
    /// Those of [`Gpu::open_with`].
    pub fn get_or_open<'g>(open: &'g mut Option<Self>, options: &DeviceOptions) -> Result<&'g Self> {
        match open {
            Some(gpu) => Ok(gpu),
            none => Ok(none.insert(Self::open_with(options)?)),
        }
    }

    /// Opens a device without its self-test.
    ///
    /// # Errors
    /// [`crate::Error::Device`] where there is no device, [`crate::Error::Flag`] where none matches.
    pub fn open_untested(options: &DeviceOptions) -> Result<Self> {
        let mut gpu = match options.matmul_precision {
            Some(precision) => pollster::block_on(Self::open_for(&options.device, precision))?,
            None => pollster::block_on(Self::open(&options.device))?,
        };
        for note in gpu.notes() {
            note!("note: {note}");
        }
        gpu.keep_pipelines(&cache_folder().join("pipelines"));
        device_notes::set(&gpu);
        if let Some(tuning) = tuning_cache::kept(gpu.caps()) {
            gpu = gpu.with_tuning(tuning);
        }
        Ok(match &options.variants {
            Some(variants) => gpu.with_variants(variants.clone()),
            None => gpu,
        })
    }
}
