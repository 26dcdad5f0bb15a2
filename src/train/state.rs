//! Training state: every trained tensor with its moments by name, as stored on the device, and the state besides the tensors. It is the
//! content of a checkpoint, wherever that is stored. The order of rows is a function of (seed, epoch), so the step number determines all
//! random choices.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;

use crate::error::{Error, Result};
use crate::gpu::{Gpu, Slot};
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
    /// Number of ranks that the run began with. A resumed run keeps the number of rows per step, whatever its number of ranks.
    #[serde(default = "one", skip_serializing_if = "is_one")]
    pub n_ranks: usize,
}

fn one() -> usize {
    1
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "as serde calls it")]
fn is_one(n: &usize) -> bool {
    *n == one()
}

/// Iterates over the stored arrays by name, in the file's order.
fn arrays(arena: &WeightArena) -> impl Iterator<Item = (String, &StateArray)> {
    arena.tensors.iter().flat_map(|t| t.arrays.iter().map(|a| (format!("{}/{}", a.role, t.name), a)))
}

/// Returns all slots of the stored arrays, in the file's order.
pub fn slots(arena: &WeightArena) -> Vec<&Slot> {
    arrays(arena).flat_map(|(_, array)| &array.slots).collect()
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
    for group in read_groups(&slots(arena)) {
        for words in gpu.read::<u32>(group).await? {
            out.write_all(bytemuck::cast_slice(&words)).map_err(at)?;
        }
    }
    Ok(())
}

/// Most bytes that are read back together. Few reads, because each may take a browser 100 ms; not all at once, because an array may be
/// larger than the host's memory has room for twice.
const READ_BYTES: u64 = 64 << 20;

/// Splits slots into groups of at most `READ_BYTES` each. A larger slot is a group of its own.
pub fn read_groups<'s>(mut slots: &'s [&'s Slot]) -> impl Iterator<Item = &'s [&'s Slot]> {
    std::iter::from_fn(move || {
        let mut n_bytes = 0;
        let fits = |slot: &&&Slot| {
            n_bytes += slot.bytes();
            n_bytes <= READ_BYTES
        };
        let n = slots.iter().take_while(fits).count().max(1).min(slots.len());
        let (group, others) = slots.split_at(n);
        slots = others;
        (!group.is_empty()).then_some(group)
    })
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
