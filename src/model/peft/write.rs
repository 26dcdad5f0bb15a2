//! Writing of adapters in PEFT's form, and merging.

use std::path::Path;

use super::super::description::ModelConfig;
use super::super::load::{LoraSpec, linear_modules, lora_names};
use super::super::save::{OutputDtype, TensorToWrite, encode_safetensors, write_safetensors, write_text};
use super::config::AdapterConfig;
use super::whole_modules::head_weight;
use super::{CONFIG, PREFIX, WEIGHTS};
use crate::error::Result;

/// Function that returns the values of a tensor by the name that a decoder gives it, as [`LoraSpec::values`] takes it.
type NamedValues<'a> = dyn FnMut(&str) -> Result<Vec<f32>> + 'a;

/// Writes an adapter into a folder, the configuration last.
///
/// # Errors
/// [`crate::Error::File`]; errors of `values`.
pub fn write_adapter(
    dir: &Path,
    config: &AdapterConfig,
    d: &ModelConfig,
    lora: &LoraSpec,
    dtype: OutputDtype,
    values: &mut NamedValues,
) -> Result<()> {
    let (tensors, sources) = planned(d, lora, dtype);
    write_safetensors(&dir.join(WEIGHTS), &tensors, &mut |i| values(&sources[i]))?;
    write_text(&dir.join(CONFIG), &format!("{:#}\n", config.to_json(d)))
}

/// Encodes in memory the two files that [`write_adapter`] writes, each with its name.
///
/// # Errors
/// Errors of `values`.
pub fn encode_adapter(
    config: &AdapterConfig,
    d: &ModelConfig,
    lora: &LoraSpec,
    dtype: OutputDtype,
    values: &mut NamedValues,
) -> Result<[(&'static str, Vec<u8>); 2]> {
    let (tensors, sources) = planned(d, lora, dtype);
    let mut weights = Vec::new();
    encode_safetensors(Path::new(WEIGHTS), &mut weights, &tensors, &mut |i| values(&sources[i]))?;
    Ok([(WEIGHTS, weights), (CONFIG, format!("{:#}\n", config.to_json(d)).into_bytes())])
}

/// Returns the tensors of an adapter, each with the name that a decoder gives it.
fn planned(d: &ModelConfig, lora: &LoraSpec, dtype: OutputDtype) -> (Vec<TensorToWrite>, Vec<String>) {
    let mut tensors = Vec::new();
    for module in linear_modules(d).filter(|m| lora.modules.contains_key(&m.name)) {
        let rank = lora.rank_of(&module.name);
        let shapes = [vec![rank, module.n_in], vec![module.n_out, rank]];
        let both = lora_names(&module.name).into_iter().zip(shapes);
        tensors.extend(both.map(|(name, shape)| TensorToWrite { name, shape, dtype }));
    }
    let mut sources: Vec<String> = tensors.iter().map(|tensor| tensor.name.clone()).collect();
    if let Some(tokens) = &lora.tokens {
        tensors.push(TensorToWrite { name: tokens.name.clone(), shape: vec![tokens.ids.len(), d.d_model], dtype });
        sources.push(tokens.name.clone());
    }
    for name in lora.whole.keys() {
        tensors.push(TensorToWrite { name: format!("{PREFIX}{name}"), shape: vec![d.vocab, d.d_model], dtype });
        sources.push(name.clone());
        // PEFT has a copy for each module that shares the matrix.
        if d.tied && *name == d.embedding {
            let name = format!("{PREFIX}{}", head_weight(d));
            tensors.push(TensorToWrite { name, shape: vec![d.vocab, d.d_model], dtype });
            sources.push(d.embedding.clone());
        }
    }
    (tensors, sources)
}

/// Computes W + s·B·A (n_out, n_in), in f64.
pub fn merged(w: &[f32], a: &[f32], b: &[f32], rank: usize, scale: f32) -> Vec<f32> {
    let n_in = a.len() / rank;
    let row = |(w, b): (&[f32], &[f32])| {
        let value = |i: usize| {
            let sum: f64 = (0..rank).map(|r| f64::from(b[r]) * f64::from(a[r * n_in + i])).sum();
            (f64::from(w[i]) + f64::from(scale) * sum) as f32
        };
        (0..n_in).map(value).collect::<Vec<_>>()
    };
    w.chunks(n_in).zip(b.chunks(rank)).flat_map(row).collect()
}
