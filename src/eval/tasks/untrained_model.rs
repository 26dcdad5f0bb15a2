//! Untrained demo model, with its data.

use std::fs;
use std::path::Path;

use super::{rows, tokenizer};
use crate::error::{Error, Result};
use crate::model::description::ModelConfig;
use crate::model::save::{OutputDtype, SHARD_BYTES, TensorToWrite, write_model};
use crate::rng::Rng;

/// Standard deviation of untrained weights.
const INIT_STD: f32 = 0.04;

/// Writes the untrained demo model into `dir/model`, and all data beside it. The bundled model was trained from these files.
///
/// # Errors
/// [`Error::File`].
pub fn write_untrained(dir: &Path, seed: u64) -> Result<()> {
    let model = dir.join("model");
    fs::create_dir(&model).map_err(|e| Error::file(&model, e))?;
    let shape = tokenizer::DemoShape::DEMO;
    tokenizer::write(&model, &shape)?;
    let d = ModelConfig::from_json(model.join("config.json"), &shape.config_json())?;
    let specs = d.tensors();
    let planned: Vec<TensorToWrite> = specs
        .iter()
        .map(|s| TensorToWrite { name: s.name.clone(), shape: s.shape.clone(), dtype: OutputDtype::F32 })
        .collect();
    let mut rng = Rng::new(seed, 7);
    write_model(&model, &planned, SHARD_BYTES, &mut |i| {
        let n: usize = specs[i].shape.iter().product();
        let is_norm = specs[i].shape.len() == 1;
        Ok((0..n).map(|_| if is_norm { 1.0 } else { INIT_STD * rng.normal() }).collect())
    })?;
    rows::write_all(dir, seed, &rows::TaskSizes::default())
}
