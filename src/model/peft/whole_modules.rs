//! Modules that an adapter brings whole (PEFT's `modules_to_save`): the embedding and the LM head. Also single rows of the embedding
//! (`trainable_token_indices`).

use std::collections::BTreeMap;
use std::path::Path;
use std::rc::Rc;

use super::super::description::ModelConfig;
use super::super::tensor_file::{TensorFile, shape_text};
use super::super::trained_tokens::TrainedTokensSpec;
use super::config::{AdapterConfig, MERGE};
use super::targets::ends;
use super::{CONFIG, PREFIX};
use crate::error::{Error, Result};

/// Returns the embedding's name as a module.
fn embedding_module(d: &ModelConfig) -> &str {
    d.embedding.trim_end_matches(".weight")
}

/// Returns the name of the LM head's weight as a module of its own, which a tied head has in PEFT alone.
pub(super) fn head_weight(d: &ModelConfig) -> String {
    format!("{}.weight", d.head.name)
}

/// Returns the tensor of the model that a name in `modules_to_save` stands for; `None` for other modules. A tied head's is the embedding.
pub(super) fn tensor_of(d: &ModelConfig, name: &str) -> Option<String> {
    if ends(embedding_module(d), name) {
        return Some(d.embedding.clone());
    }
    ends(&d.head.name, name).then(|| if d.tied { d.embedding.clone() } else { head_weight(d) })
}

/// Lists the names that [`tensor_of`] knows.
pub(super) fn known_names(d: &ModelConfig) -> String {
    let last = |module: &str| module.rsplit('.').next().unwrap_or(module).to_string();
    format!("{}, {}", last(embedding_module(d)), last(&d.head.name))
}

/// Returns `modules_to_save` of a new adapter. A tied head is written as the embedding, which PEFT ties again.
pub(super) fn written_names(d: &ModelConfig, names: &[String]) -> Vec<String> {
    let is_head = |name: &String| ends(&d.head.name, name);
    let embedding = embedding_module(d).rsplit('.').next().unwrap_or_default();
    let mut written: Vec<String> =
        names.iter().map(|name| if d.tied && is_head(name) { embedding.into() } else { name.clone() }).collect();
    written.sort();
    written.dedup();
    written
}

/// Returns the name of trained rows of the embedding in PEFT's files.
pub(super) fn rows_name(d: &ModelConfig) -> String {
    format!("{PREFIX}{}.token_adapter.trainable_tokens_delta", embedding_module(d))
}

/// Returns the embedding's last name, by which `trainable_token_indices` is written.
pub(super) fn embedding_name(d: &ModelConfig) -> &str {
    embedding_module(d).rsplit('.').next().unwrap_or_default()
}

/// Reads the rows of `trainable_token_indices`; `None` where the adapter has none.
///
/// # Errors
/// [`Error::Field`] for ids that the model does not have, or another module; [`Error::Tensor`] where the rows are missing or too many.
pub(super) fn read_rows(
    dir: &Path,
    config: &AdapterConfig,
    d: &ModelConfig,
    file: &TensorFile,
    names: &BTreeMap<String, &str>,
) -> Result<Option<TrainedTokensSpec>> {
    let Some((module, ids)) = &config.tokens else { return Ok(None) };
    let bad = |reason: String| Error::field(dir.join(CONFIG), "trainable_token_indices", reason);
    if !ends(embedding_module(d), module) && module != "embed_tokens" {
        return Err(bad(format!("`{module}` is not supported, only {}: {MERGE}", embedding_name(d))));
    }
    if !config.modules_to_save.is_empty() {
        return Err(bad(format!("is not supported beside modules_to_save: {MERGE}")));
    }
    if let Some(id) = ids.iter().find(|&&id| id as usize >= d.vocab) {
        return Err(bad(format!("{id} is not a token of this model, which has {}", d.vocab)));
    }
    let name = rows_name(d);
    let stored_name = names.get(&name).ok_or_else(|| Error::tensor(file.path(), &name, "is missing"))?;
    let stored = &file.tensors()[*stored_name];
    let expected = [ids.len(), d.d_model];
    if stored.shape != expected {
        let (ours, theirs) = (shape_text(&expected), shape_text(&stored.shape));
        return Err(Error::tensor(file.path(), stored_name, format!("expected {ours}, file has {theirs}")));
    }
    let rows = Some(Rc::new(file.values(stored_name, stored)?));
    Ok(Some(TrainedTokensSpec { ids: ids.clone(), name, rows }))
}

/// Reads the tensors of `modules_to_save` from an adapter's file: their values by their names in the model. Also returns the names in the
/// file that were read. `names`: PEFT's names of the file's tensors.
///
/// # Errors
/// [`Error::Field`] for another module, or for a tied head that PEFT would untie; [`Error::Tensor`] for a tensor that is missing or has
/// another shape.
#[expect(clippy::type_complexity, reason = "a field of LoraSpec, and names")]
pub(super) fn read(
    dir: &Path,
    config: &AdapterConfig,
    d: &ModelConfig,
    file: &TensorFile,
    names: &BTreeMap<String, &str>,
) -> Result<(BTreeMap<String, Option<Rc<Vec<f32>>>>, Vec<String>)> {
    let path = dir.join(CONFIG);
    let (mut whole, mut known) = (BTreeMap::new(), Vec::new());
    for name in &config.modules_to_save {
        let tensor = tensor_of(d, name).ok_or_else(|| {
            let reason = format!("`{name}` is not supported, only {}: {MERGE}", known_names(d));
            Error::field(&path, "modules_to_save", reason)
        })?;
        if d.tied && !config.ties {
            let reason = format!(
                "is not set, so PEFT unties the head from the embedding that modules_to_save names; this model has them tied: {MERGE}"
            );
            return Err(Error::field(&path, "ensure_weight_tying", reason));
        }
        let copies = if d.tied { vec![d.embedding.clone(), head_weight(d)] } else { vec![tensor.clone()] };
        let mut values: Option<Vec<f32>> = None;
        for copy in copies {
            let Some((in_peft, stored_name)) = names.get_key_value(&format!("{PREFIX}{copy}")) else { continue };
            let found = file.values(stored_name, &file.tensors()[*stored_name])?;
            if found.len() != d.vocab * d.d_model {
                let reason = format!("has {} values, expected {} · {}", found.len(), d.vocab, d.d_model);
                return Err(Error::tensor(file.path(), stored_name, reason));
            }
            if values.as_ref().is_some_and(|values| *values != found) {
                let reason = "is another matrix than the embedding, to which this model's head is tied";
                return Err(Error::tensor(file.path(), stored_name, reason));
            }
            values = Some(found);
            known.push(in_peft.clone());
        }
        let values = values.ok_or_else(|| Error::tensor(file.path(), format!("{PREFIX}{tensor}"), "is missing"))?;
        whole.insert(tensor, Some(Rc::new(values)));
    }
    Ok((whole, known))
}
