//! Sampling with a KV cache. Prompts are processed side by side, with one cache row per token.

use crate::data::special_tokens::config_ids;
use crate::error::{Error, Result};
use crate::gpu::{Gpu, Recording, Slot};
use crate::kernels::attention::SegmentTable;
use crate::kernels::gather::{GatherIndices, gather_fwd};
use crate::kernels::matmul::{LinearPass, MatmulDesc, OperandMatrix, matmul};
use crate::kernels::sample::{NOT_FINITE, Sampling, sample};
use crate::model::decoder::{Decoder, TokenSlots};
use crate::model::kv_cache::{KvCache, LayerCache};
use crate::model::recurrent_tokens::RecurrentTokens;
use crate::model::saved::RecomputePolicy;
use crate::model::side_files::{CONFIG, GENERATION_CONFIG, SideFiles};
use crate::rng::Rng;

/// Default of `--max-new-tokens`, in tokens per response.
pub const DEFAULT_MAX_NEW_TOKENS: usize = 256;

/// Default number of prompts per batch.
pub const DEFAULT_BATCH_SIZE: usize = 16;

/// Settings of generation.
#[derive(Debug, Clone, PartialEq)]
pub struct GenerateSettings {
    /// Settings for choosing the next token.
    pub sampling: Sampling,
    /// Largest number of tokens of a response.
    pub max_new_tokens: usize,
    /// Random seed. Each prompt has its own random stream, so that its response does not depend on other prompts.
    pub seed: u64,
    /// Tokens that end a response. The response includes such a token.
    pub eos: Vec<u32>,
    /// Whether the adapter, if there is one, is used.
    pub with_lora: bool,
}

impl GenerateSettings {
    /// # Errors
    /// [`Error::Flag`] for a value out of range.
    pub fn validate(&self) -> Result<()> {
        if !(self.sampling.temperature >= 0.0 && self.sampling.temperature.is_finite()) {
            return Err(Error::flag("temperature", format!("{} is below 0", self.sampling.temperature)));
        }
        if !(self.sampling.top_p > 0.0 && self.sampling.top_p <= 1.0) {
            return Err(Error::flag("top-p", format!("{} is not in 0 .. 1", self.sampling.top_p)));
        }
        if self.max_new_tokens == 0 {
            return Err(Error::flag("max-new-tokens", "must be at least 1"));
        }
        Ok(())
    }
}

/// Returns the tokens that end a response: the tokenizer's EOS, and those in `generation_config.json` and `config.json` (chat models end a
/// turn with a token of its own).
///
/// # Errors
/// [`Error::Line`] for a file that is not JSON; [`Error::Field`] for ids in `generation_config.json` that the vocabulary does not have.
pub fn eos_ids(side: &SideFiles, eos: Option<u32>, vocab: usize) -> Result<Vec<u32>> {
    let mut ids: Vec<u32> = eos.into_iter().collect();
    let path = side.path(GENERATION_CONFIG);
    let config: serde_json::Value = match side.text(GENERATION_CONFIG)? {
        Some(text) => serde_json::from_str(text).map_err(|e| Error::line(&path, e.line(), format!("not JSON: {e}")))?,
        None => serde_json::Value::Null,
    };
    let named = match &config["eos_token_id"] {
        serde_json::Value::Null => Vec::new(),
        serde_json::Value::Array(list) => list.clone(),
        one => vec![one.clone()],
    };
    for id in named {
        let token = id
            .as_u64()
            .filter(|&id| id < vocab as u64)
            .ok_or_else(|| Error::field(&path, "eos_token_id", format!("expected ids below {vocab}, found {id}")))?;
        ids.push(token as u32);
    }
    // Ids beyond the vocabulary, which no model can produce, were reported with the tokenizer.
    let of_model = config_ids(&side.fields(CONFIG)?, "eos_token_id");
    ids.extend(of_model.into_iter().filter(|&id| id < vocab as u64).map(|id| id as u32));
    let mut seen = std::collections::BTreeSet::new();
    ids.retain(|id| seen.insert(*id));
    Ok(ids)
}

/// Response that is being generated.
struct ActivePrompt {
    prompt: usize,
    /// Number of the prompt for messages, from 1.
    number: usize,
    /// First cache row of the prompt.
    start: u32,
    /// Number of tokens in the cache.
    len: u32,
    rng: Rng,
}

/// Generates responses to tokenised prompts. `on_token(prompt, id)` is called with each new token at once. The random streams of the
/// prompts are numbered from `first` on.
///
/// # Errors
/// [`Error::NotFinite`], [`Error::Gpu`].
pub async fn generate(
    gpu: &Gpu,
    decoder: &Decoder,
    prompts: &[Vec<u32>],
    first: usize,
    settings: &GenerateSettings,
    on_token: &mut dyn FnMut(usize, u32),
) -> Result<Vec<Vec<u32>>> {
    let d = &decoder.description;
    let mut responses = vec![Vec::new(); prompts.len()];
    let mut active = Vec::new();
    let mut rows = 0;
    for (prompt, ids) in prompts.iter().enumerate() {
        let number = first + prompt + 1;
        active.push(ActivePrompt {
            prompt,
            number,
            start: rows,
            len: 0,
            rng: Rng::new(settings.seed, (first + prompt) as u64),
        });
        rows += (ids.len() + settings.max_new_tokens) as u32;
    }
    let layers = KvCache::allocate_layers(gpu, d, rows as usize, prompts.len());
    // The first step processes whole prompts, later ones one token per prompt.
    let mut new: Vec<Vec<u32>> = prompts.to_vec();
    while !active.is_empty() {
        for (a, new) in active.iter_mut().zip(&mut new) {
            // A response that becomes longer than LongRoPE's short sequences turns all of its positions by other frequencies: its keys are
            // computed anew, as in transformers (`Phi3ForCausalLM.prepare_inputs_for_generation`).
            if d.long_above().is_some_and(|limit| (a.len as usize) == limit && a.len > 0) {
                *new = [prompts[a.prompt].as_slice(), &responses[a.prompt]].concat();
                a.len = 0;
            }
        }
        let tokens = step(gpu, decoder, &layers, &mut active, &new, settings).await?;
        for (a, &token) in active.iter().zip(&tokens) {
            responses[a.prompt].push(token);
            on_token(a.prompt, token);
        }
        let goes_on: Vec<bool> = active
            .iter()
            .zip(&tokens)
            .map(|(a, t)| !settings.eos.contains(t) && responses[a.prompt].len() < settings.max_new_tokens)
            .collect();
        let mut keep = goes_on.iter();
        active.retain(|_| *keep.next().unwrap_or(&false));
        new = tokens.iter().zip(&goes_on).filter(|(_, goes)| **goes).map(|(&t, _)| vec![t]).collect();
    }
    Ok(responses)
}

/// Processes the new tokens of each active response, and chooses the next token of each.
async fn step(
    gpu: &Gpu,
    decoder: &Decoder,
    layers: &[LayerCache],
    active: &mut [ActivePrompt],
    new: &[Vec<u32>],
    settings: &GenerateSettings,
) -> Result<Vec<u32>> {
    let d = &decoder.description;
    let (mut ids, mut positions, mut ranges, mut cache_rows, mut last) =
        (Vec::new(), Vec::new(), Vec::new(), Vec::new(), Vec::new());
    let mut lengths = Vec::new();
    // Whole prompts come first, each with the row of its number; then one token of each response follows.
    let recurrent = match active.iter().all(|a| a.len == 0) {
        true => RecurrentTokens::of_prompts(gpu, d, &new.iter().map(Vec::len).collect::<Vec<_>>()),
        false => RecurrentTokens::of_next(gpu, d, &active.iter().map(|a| a.prompt as u32).collect::<Vec<_>>()),
    };
    for (a, new) in active.iter_mut().zip(new) {
        lengths.extend(std::iter::repeat_n(a.len as usize + new.len(), new.len()));
        for &id in new {
            ids.push(id);
            positions.push(a.len);
            cache_rows.push(a.start + a.len);
            a.len += 1;
            ranges.push([a.start, a.start, a.start, a.start + a.len]);
        }
        last.push(ids.len() as u32 - 1);
    }
    let segments = SegmentTable::of_cache(gpu, &ranges, &positions, &d.windowed_heads());
    let tokens = TokenSlots::new(gpu, d, &ids, &positions, &lengths, segments, recurrent);
    let cache = KvCache { layers: layers.to_vec(), rows: gpu.upload(&cache_rows) };
    let mut rec = gpu.record();
    let trace = decoder.forward(&mut rec, &tokens, Some(&cache), settings.with_lora, RecomputePolicy::Nothing);
    let n = last.len();
    let picked = gpu.alloc_activation(n * d.d_model);
    gather_fwd(&mut rec, &GatherIndices::new(gpu, &last, ids.len()), d.d_model, &trace.h, &picked);
    let (normed, _) = decoder.norm(&mut rec, &decoder.final_norm, n, &picked);
    let logits = logits(&mut rec, decoder, n, &normed);
    let uniforms: Vec<f32> = active.iter_mut().map(|a| a.rng.next_f32()).collect();
    let chosen = gpu.alloc_activation(n);
    let uniforms = gpu.upload(&uniforms);
    sample(&mut rec, &settings.sampling, d.logit_softcap, n, d.vocab, &logits, &uniforms, &chosen);
    rec.submit();
    let chosen = gpu.read::<u32>(&[&chosen]).await?.concat();
    match active.iter().zip(&chosen).find(|(_, token)| **token == NOT_FINITE) {
        Some((a, _)) => {
            Err(Error::NotFinite { place: format!("prompt {}", a.number), what: "a logit of its next token".into() })
        }
        None => Ok(chosen),
    }
}

/// Computes logits (n, V), before any soft cap.
fn logits(rec: &mut Recording, decoder: &Decoder, n: usize, x: &Slot) -> Slot {
    let d = &decoder.description;
    let head = decoder.head(n);
    let logits = rec.gpu().alloc_activation(n * d.vocab);
    for page in &head.pages {
        let product = MatmulDesc {
            orientation: LinearPass::Forward,
            storage: head.storage,
            m: n,
            n: page.rows,
            k: d.d_model,
            alpha: head.scale,
            accumulate: false,
        };
        let out = OperandMatrix::new(&logits, d.vocab).columns_from(page.first);
        matmul(rec, &product, OperandMatrix::new(x, d.d_model), OperandMatrix::new(page.w, d.d_model), out);
    }
    logits
}

/// Checks that a prompt and its response fit the model's positions.
///
/// # Errors
/// [`Error::Flag`] where they exceed the model's positions.
pub fn check_length(prompt: usize, max_new_tokens: usize, max_positions: usize) -> Result<()> {
    if prompt.saturating_add(max_new_tokens) > max_positions {
        let reason =
            format!("{max_new_tokens} behind a prompt of {prompt} tokens: the model has {max_positions} positions");
        return Err(Error::flag("max-new-tokens", reason));
    }
    Ok(())
}
