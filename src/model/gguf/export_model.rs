//! Model as a GGUF file.

use std::path::Path;

use super::super::checkpoint::Checkpoint;
use super::super::description::{ModelConfig, RopeScaling};
use super::super::weights::WeightSource;
use super::architecture::GgufArchitecture;
use super::ggml_type::GgmlType;
use super::metadata::MetaValue;
use super::rope::{ROPE_FREQS, frequency_divisors};
use super::write::{GgufTensorToWrite, write_gguf};
use super::write_config::config_metadata;
use crate::error::{Error, Result};

/// Data type of the matrices in a written model. Norms and biases are F32 in all of them, as llama.cpp wants them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GgufWeightType {
    /// float16.
    F16,
    /// bfloat16.
    Bf16,
    /// Blocks of 32 elements with 8 bits each and a scale. A matrix whose rows are no multiple of 32 is F16.
    Q8_0,
}

impl GgufWeightType {
    /// Returns the name that llama.cpp's converter has for it.
    pub fn name(self) -> &'static str {
        match self {
            Self::F16 => "f16",
            Self::Bf16 => "bf16",
            Self::Q8_0 => "q8_0",
        }
    }

    /// Returns the number in `general.file_type`: `llama_ftype` in `llama.h`.
    fn file_type(self) -> u32 {
        match self {
            Self::F16 => 1,
            Self::Q8_0 => 7,
            Self::Bf16 => 32,
        }
    }

    fn of_shape(self, shape: &[usize]) -> GgmlType {
        let columns = shape.last().copied().unwrap_or(1);
        match self {
            _ if shape.len() < 2 => GgmlType::F32,
            Self::Q8_0 if columns.is_multiple_of(GgmlType::Q8_0.block_len()) => GgmlType::Q8_0,
            Self::Bf16 => GgmlType::Bf16,
            Self::F16 | Self::Q8_0 => GgmlType::F16,
        }
    }
}

/// Parts of a model to write.
#[derive(Debug, Clone, Copy)]
pub struct GgufModelToWrite<'m> {
    /// Text in `general.name`.
    pub name: &'m str,
    /// Architecture.
    pub description: &'m ModelConfig,
    /// Weights.
    pub checkpoint: &'m Checkpoint,
    /// Metadata of the tokenizer; empty for a file that programs feed with ids.
    pub tokenizer: &'m [(String, MetaValue)],
    /// Data type of matrices.
    pub weights: GgufWeightType,
}

/// Returns the command of llama.cpp's own converter for a model folder.
pub fn converter_command(folder: &str, path: &Path, weights: GgufWeightType) -> String {
    let (outfile, outtype) = (path.display(), weights.name());
    format!("python convert_hf_to_gguf.py {folder} --outfile {outfile} --outtype {outtype}")
}

/// Writes a model: the file appears completely or not at all. Returns remarks for the user.
///
/// # Errors
/// [`Error::File`]; [`Error::Flag`] for a model that has no form in GGUF; [`Error::Tensor`] for a value that float16 cannot represent.
pub fn export_model(path: &Path, model: &GgufModelToWrite<'_>) -> Result<Vec<String>> {
    let d = model.description;
    let refused = |reason: String| Error::flag("gguf", reason);
    let architecture = GgufArchitecture::of_model(d).ok_or_else(|| {
        let known = GgufArchitecture::MODELS.map(GgufArchitecture::name).join(", ");
        refused(format!("models of {} are not written (the architectures {known} are)", d.architecture))
    })?;
    let config = config_metadata(d, architecture).map_err(|reason| refused(format!("{}: {reason}", model.name)))?;
    let text = |text: &str| MetaValue::Text(text.into());
    let mut metadata = vec![
        ("general.architecture".to_string(), text(architecture.name())),
        ("general.type".into(), text("model")),
        ("general.name".into(), text(model.name)),
        ("general.file_type".into(), MetaValue::U32(model.weights.file_type())),
        ("general.quantization_version".into(), MetaValue::U32(2)),
    ];
    metadata.extend(config.values);
    if model.tokenizer.is_empty() {
        metadata.push(("tokenizer.ggml.model".into(), text("none")));
    }
    metadata.extend_from_slice(model.tokenizer);

    let specs = d.tensors();
    let mut tensors = Vec::new();
    for spec in &specs {
        let name = architecture.gguf_name(&spec.name).ok_or_else(|| {
            Error::tensor(path, &spec.name, format!("has no name in the architecture `{}`", architecture.name()))
        })?;
        tensors.push(GgufTensorToWrite { name, shape: spec.shape.clone(), kind: model.weights.of_shape(&spec.shape) });
    }
    let table = d.ropes.iter().find(|rope| matches!(rope.scaling, RopeScaling::Llama3 { .. })).map(frequency_divisors);
    if let Some(table) = &table {
        tensors.push(GgufTensorToWrite { name: ROPE_FREQS.into(), shape: vec![table.len()], kind: GgmlType::F32 });
    }
    write_gguf(path, &metadata, &tensors, &mut |i| {
        let Some(spec) = specs.get(i) else { return Ok(table.clone().unwrap_or_default()) };
        let mut values = model.checkpoint.values(spec)?;
        if architecture.adds_one_to_norms() && spec.name.ends_with("norm.weight") {
            values.iter_mut().for_each(|v| *v += 1.0);
        }
        let columns = spec.shape[1..].iter().product();
        let rows = architecture.row_order(&spec.name, spec.shape[0], (d.n_heads, d.n_kv_heads));
        Ok(match rows {
            Some(rows) => rows.to_gguf(&values, columns),
            None => values,
        })
    })?;
    Ok(config.notes)
}
