//! Flags of models and devices, which most commands have; `merge`.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use serde::{Deserialize, Serialize};

use super::values::parse_base_dtype;
use crate::error::{Error, Result};
use crate::gpu::{DeviceChoice, MatmulPrecision, Variant};
use crate::model::save::OutputDtype;
use crate::model::weights::BaseDtype;
use crate::ranks::Ranks;
use crate::workflow::recovery::OnDeviceLost;
use crate::workflow::several_ranks::assign_devices;
use crate::workflow::{DeviceOptions, OpenModel};

/// Flags that choose a device and its kernels.
#[derive(Debug, Clone, Default, Args, Serialize, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
pub struct DeviceArgs {
    /// Device, by its number, a part of its name, or its backend, such as `vulkan` or `dx12` (see `jointwise info`); numbers with commas are those of the
    /// ranks of a machine, under `mpirun`
    #[arg(long)]
    pub device: Option<String>,
    /// Kernel variants that may be used: baseline, or some of tiles32, tiles64, tiles64wide, tiles128, tiles128wide, flash, flashnarrow, rows, cpu, lanes [default: by the device]
    #[arg(long, value_name = "NAME,..")]
    pub variant: Option<String>,
    /// Precision of matrix products, also in attention: highest (f32), high (three f16 products per f32 product, on cooperative matrices) or medium (one f16
    /// product) [default: highest]
    #[arg(long, value_name = "NAME")]
    pub matmul_precision: Option<String>,
}

/// Flags that choose a model, an adapter and a device.
#[derive(Debug, Clone, Default, Args, Serialize, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
pub struct ModelArgs {
    /// Model: a Hugging Face folder, a GGUF file, or a hub id (org/name)
    #[arg(long, value_name = "DIR|FILE|HUB_ID")]
    pub model: Option<String>,
    /// PEFT LoRA adapter on top of the model: a folder, or a hub id (org/name, org/name/folder)
    #[arg(long, value_name = "DIR|HUB_ID")]
    pub adapter: Option<PathBuf>,
    #[command(flatten)]
    #[serde(flatten)]
    pub device: DeviceArgs,
    /// Data type of linear weights that are not trained: auto (as stored), f32, bf16, int8 or nf4 (QLoRA) [default: auto]
    #[arg(long, value_name = "DTYPE", value_parser = parse_base_dtype)]
    pub base_dtype: Option<BaseDtype>,
}

/// Values of `--on-device-lost`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DeviceLostArg {
    /// Open the device again and continue from what is saved, up to three times in a row without progress
    Resume,
    /// End with an error
    Stop,
}

/// Values of `--output-dtype`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DtypeArg {
    /// 32 bits
    F32,
    /// bfloat16
    Bf16,
    /// float16
    F16,
}

/// Flags of `merge`.
#[derive(Debug, Clone, Args)]
pub struct MergeArgs {
    /// Base model: a Hugging Face folder, a GGUF file, or a hub id (org/name)
    #[arg(long, value_name = "DIR|FILE|HUB_ID")]
    pub model: Option<String>,
    /// PEFT LoRA adapter to merge into the model: a folder, or a hub id (org/name, org/name/folder)
    #[arg(long, value_name = "DIR|HUB_ID")]
    pub adapter: Option<PathBuf>,
    /// Folder for the merged model
    #[arg(long, value_name = "DIR")]
    pub output_dir: PathBuf,
    /// Data type of the saved weights [default: the model's]
    #[arg(long, value_enum)]
    pub output_dtype: Option<DtypeArg>,
}

impl DeviceArgs {
    /// Resolves the device to open and the kernels that it may use.
    ///
    /// # Errors
    /// [`Error::Flag`] for an unknown variant or precision.
    pub fn options(&self) -> Result<DeviceOptions> {
        Ok(DeviceOptions {
            variants: self.variant.as_deref().map(Variant::parse_list).transpose()?,
            device: self.device.as_deref().map_or(DeviceChoice::Best, DeviceChoice::parse),
            matmul_precision: self.matmul_precision.as_deref().map(MatmulPrecision::parse).transpose()?,
            weight_formats: None,
        })
    }
}

impl ModelArgs {
    /// Resolves the device of a rank, and says which rank has which.
    ///
    /// # Errors
    /// Those of [`DeviceArgs::options`] and [`assign_devices`].
    pub fn device_options_of(&self, ranks: Ranks) -> Result<DeviceOptions> {
        let mut options = self.device.options()?;
        assign_devices(&mut options, ranks)?;
        Ok(options)
    }

    /// Opens the model of `--model`.
    ///
    /// # Errors
    /// [`Error::Flag`] where the flag is missing; those of [`OpenModel::open`].
    pub fn open(&self) -> Result<OpenModel> {
        open_model(self.model.as_deref(), self.base_dtype.unwrap_or_default())
    }
}

/// Opens the model of a command's `--model`.
///
/// # Errors
/// [`Error::Flag`] where the flag is missing; those of [`OpenModel::open`].
pub fn open_model(name: Option<&str>, base: BaseDtype) -> Result<OpenModel> {
    let name =
        name.ok_or_else(|| Error::flag("model", "is missing: a Hugging Face folder, a GGUF file or a hub id"))?;
    OpenModel::open(name, base)
}

impl From<DtypeArg> for OutputDtype {
    fn from(dtype: DtypeArg) -> Self {
        match dtype {
            DtypeArg::F32 => Self::F32,
            DtypeArg::Bf16 => Self::Bf16,
            DtypeArg::F16 => Self::F16,
        }
    }
}

impl From<DeviceLostArg> for OnDeviceLost {
    fn from(choice: DeviceLostArg) -> Self {
        match choice {
            DeviceLostArg::Resume => Self::Resume,
            DeviceLostArg::Stop => Self::Stop,
        }
    }
}
