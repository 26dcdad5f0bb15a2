//! Adapter as a GGUF file: llama.cpp's form of LoRA (`convert_lora_to_gguf.py`, `src/llama-adapter.cpp`).

use std::path::Path;

use super::super::description::ModelConfig;
use super::super::load::linear_modules;
use super::super::peft::Adapter;
use super::architecture::GgufArchitecture;
use super::ggml_type::GgmlType;
use super::metadata::MetaValue;
use super::write::{GgufTensorToWrite, write_gguf};
use crate::error::{Error, Result};

/// Writes an adapter. llama.cpp computes each module's scale as `adapter.lora.alpha` / R, so α of a rank-stabilised adapter is written as
/// α·√R. Where a module's scale is another one, its B is multiplied. `name` is the text in `general.name`.
///
/// # Errors
/// [`Error::File`]; [`Error::Flag`] for an architecture whose adapters are not written.
pub fn export_adapter(path: &Path, adapter: &Adapter, d: &ModelConfig, name: &str) -> Result<()> {
    let architecture = GgufArchitecture::of_adapter(d).ok_or_else(|| {
        let known = GgufArchitecture::ALL.map(GgufArchitecture::name).join(", ");
        let command = "python convert_lora_to_gguf.py --base MODEL ADAPTER --outfile FILE";
        Error::flag(
            "gguf",
            format!(
                "adapters of {} are not written ({known} are); llama.cpp's own converter: {command}",
                d.architecture
            ),
        )
    })?;
    let (lora, alpha) = (&adapter.lora, adapter.lora.scale * adapter.lora.rank as f32);
    // α as typed, where the scale is α/R.
    let alpha = if adapter.config.rslora { alpha } else { adapter.config.alpha as f32 };
    let text = |text: &str| MetaValue::Text(text.into());
    let metadata = [
        ("general.architecture".to_string(), text(architecture.name())),
        ("general.type".into(), text("adapter")),
        ("general.name".into(), text(name)),
        ("adapter.type".into(), text("lora")),
        ("adapter.lora.alpha".into(), MetaValue::F32(alpha)),
    ];
    let mut tensors = Vec::new();
    let mut values: Vec<Vec<f32>> = Vec::new();
    for module in linear_modules(d).filter(|module| lora.modules.contains_key(&module.name)) {
        let weight = format!("{}.weight", module.name);
        let gguf_name = architecture.gguf_name(&weight).ok_or_else(|| {
            Error::tensor(path, &module.name, format!("has no name in the architecture `{}`", architecture.name()))
        })?;
        let (a, b) = &lora.modules[&module.name];
        let rank = lora.rank_of(&module.name);
        let factor = lora.scale_of(&module.name) / (alpha / rank as f32);
        // A difference in the last bits is that of the two ways to compute one scale.
        let is_one = (factor - 1.0).abs() < 1e-6;
        let b: Vec<f32> = if is_one { b.clone() } else { b.iter().map(|v| v * factor).collect() };
        let rows = architecture.row_order(&weight, module.n_out, (d.n_heads, d.n_kv_heads));
        let b = match rows {
            Some(rows) => rows.to_gguf(&b, rank),
            None => b,
        };
        for (side, shape, matrix) in [("a", [rank, module.n_in], a.clone()), ("b", [module.n_out, rank], b)] {
            let name = format!("{gguf_name}.lora_{side}");
            tensors.push(GgufTensorToWrite { name, shape: shape.into(), kind: GgmlType::F32 });
            values.push(matrix);
        }
    }
    write_gguf(path, &metadata, &tensors, &mut |i| Ok(std::mem::take(&mut values[i])))
}
