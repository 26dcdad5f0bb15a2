//! Training state: every trained tensor with its moments by name, as stored on the device, and the state besides the tensors. It is the
//! content of a checkpoint, wherever that is stored. The order of rows is a function of (seed, epoch), so the step number determines all
//! random choices.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;

use crate::error::{Error, Result};
use crate::gpu::Gpu;
use crate::model::weights::{StateArray, WeightArena};

/// Training state besides the tensors.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct TrainingState {
    /// Number of finished steps.
    pub step: usize,
    /// Number of tokens trained on.
    pub num_tokens: u64,
    /// Lowest evaluation loss so far, and its step.
    pub best: Option<(f64, usize)>,
    /// Hash of settings, data and model, which must be equal when a run is resumed.
    pub fingerprint: String,
    /// Time that the chat template prints, in seconds since 1970, if it prints any. A resumed run keeps the time of its start.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub time: Option<u64>,
}

/// Iterates over the stored arrays by name, in the file's order.
fn arrays(arena: &WeightArena) -> impl Iterator<Item = (String, &StateArray)> {
    arena.tensors.iter().flat_map(|t| t.arrays.iter().map(|a| (format!("{}/{}", a.role, t.name), a)))
}

fn n_bytes(array: &StateArray) -> usize {
    array.slots.iter().map(|s| s.bytes() as usize).sum()
}

/// Returns the number of elements for the header: the slots' whole words, counted as elements of the array's type.
fn n_elements(array: &StateArray) -> usize {
    n_bytes(array) * 8 / array.dtype.bitsize()
}

/// Encodes the arena as a safetensors file. `path` is for messages.
///
/// # Errors
/// [`Error::File`], for example where the disk is full; [`Error::Gpu`].
pub async fn encode(gpu: &Gpu, arena: &WeightArena, path: &Path, out: &mut impl Write) -> Result<()> {
    let at = |e: std::io::Error| Error::file(path, e);
    let mut header = serde_json::Map::new();
    let mut offset = 0;
    for (name, array) in arrays(arena) {
        let end = offset + n_bytes(array);
        let entry =
            serde_json::json!({"dtype": array.dtype, "shape": [n_elements(array)], "data_offsets": [offset, end]});
        header.insert(name, entry);
        offset = end;
    }
    let mut header = serde_json::to_vec(&header).map_err(|e| Error::file(path, e))?;
    header.resize(header.len().next_multiple_of(8), b' ');
    out.write_all(&(header.len() as u64).to_le_bytes()).map_err(at)?;
    out.write_all(&header).map_err(at)?;
    for (_, array) in arrays(arena) {
        // Reads one slot after the other, because the host may not have memory for a whole array twice.
        for slot in &array.slots {
            for words in gpu.read::<u32>(&[slot]).await? {
                out.write_all(bytemuck::cast_slice(&words)).map_err(at)?;
            }
        }
    }
    Ok(())
}

/// Loads the content of such a file into the arena. `path` is for messages.
///
/// # Errors
/// [`Error::File`], [`Error::Tensor`] where the content is damaged, or belongs to another arena.
pub fn restore(gpu: &Gpu, arena: &WeightArena, path: &Path, content: &[u8]) -> Result<()> {
    let tensors = safetensors::SafeTensors::deserialize(content).map_err(|e| Error::file(path, e))?;
    let by_name: BTreeMap<String, _> = tensors.tensors().into_iter().collect();
    for (name, array) in arrays(arena) {
        let tensor = by_name.get(&name).ok_or_else(|| Error::tensor(path, &name, "missing"))?;
        if tensor.dtype() != array.dtype || tensor.data().len() != n_bytes(array) {
            let (dtype, n) = (array.dtype, n_elements(array));
            let reason = format!("expected {dtype:?} ({n}), file has {:?} {:?}", tensor.dtype(), tensor.shape());
            return Err(Error::tensor(path, &name, reason));
        }
        let mut at = 0;
        for slot in &array.slots {
            let end = at + slot.bytes() as usize;
            gpu.write(slot, &tensor.data()[at..end]);
            at = end;
        }
    }
    Ok(())
}
