//! Responses of evaluated models to test prompts.

use std::num::NonZeroU32;
use std::path::PathBuf;
use std::sync::atomic::AtomicBool;

use serde::Serialize;

use super::device::DeviceOptions;
use super::evaluated_models::{EvaluatedModel, GOLD};
use crate::error::{Error, Result};
use crate::eval::evaluate::compare::{RunResponses, run_name, write_alpaca};
use crate::eval::evaluate::folder::EvaluationFolder;
use crate::eval::evaluate::prompts::{TestPrompt, encode, too_long};
use crate::eval::evaluate::response_sampling::ResponseSampling;
use crate::eval::evaluate::responses::{RespondingPolicy, ResponseFile, respond};
use crate::gpu::Gpu;
use crate::progress::ProgressReporter;

/// A prompt that was left out, because it is too long.
#[derive(Debug, Clone, Serialize)]
pub struct DroppedPrompt {
    file: PathBuf,
    line: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    row: Option<NonZeroU32>,
    n_tokens: usize,
}

/// Returns the prompts that leave every model room for a response, counted in its own tokens, so that all models answer the same prompts. Logs a note for
/// each prompt that is left out.
///
/// # Errors
/// [`Error::Flag`] where no prompt is left.
pub fn fitting_prompts(
    prompts: Vec<TestPrompt>,
    models: &[EvaluatedModel],
    sampled: &ResponseSampling,
) -> Result<(Vec<TestPrompt>, Vec<DroppedPrompt>)> {
    let mut longest = vec![None; prompts.len()];
    for (i, checkpoint) in models.iter().enumerate() {
        checkpoint.tokenizer.check_template(&sampled.template)?;
        if models[..i].iter().any(|before| before.reads_like(checkpoint)) {
            continue;
        }
        let positions = checkpoint.model.description.max_positions;
        let (tokenizer, template) = (&checkpoint.tokenizer, &sampled.template);
        for prompt in &prompts {
            tokenizer.check_conversation(&prompt.instruction, template, &prompt.place.to_string())?;
        }
        for (prompt, n) in too_long(&prompts, tokenizer, template, sampled.max_new_tokens, positions)? {
            longest[prompt] = longest[prompt].max(Some((n, positions)));
        }
    }
    let (mut kept, mut dropped) = (Vec::new(), Vec::new());
    for (prompt, longest) in prompts.into_iter().zip(longest) {
        let Some((n, positions)) = longest else {
            kept.push(prompt);
            continue;
        };
        let place = &prompt.place;
        let reason = format!(
            "{n} tokens leave no room for --max-new-tokens {} in the model's {positions} positions",
            sampled.max_new_tokens
        );
        note!("note: {place}: {reason}: left out");
        dropped.push(DroppedPrompt {
            file: place.path.to_path_buf(),
            line: place.line,
            row: place.element,
            n_tokens: n,
        });
    }
    if kept.is_empty() {
        return Err(Error::flag(
            "max-new-tokens",
            format!("{}: no prompt leaves the model room for it", sampled.max_new_tokens),
        ));
    }
    if !dropped.is_empty() {
        note!("note: {} of {} prompts are too long, and left out", dropped.len(), kept.len() + dropped.len());
    }
    Ok((kept, dropped))
}

/// Samples the responses of every model at every temperature and seed, as far as `selects` says yes to the run's name. Responses of earlier runs are read from
/// the folder; the device is opened where some are missing. Returns `None` where `stop` was set.
///
/// # Errors
/// Those of the models and the device; [`Error::File`], [`Error::Line`] for responses of an earlier run that cannot be read.
pub fn respond_all(
    models: &[EvaluatedModel],
    prompts: &[TestPrompt],
    sampled: &ResponseSampling,
    folder: &EvaluationFolder,
    (gpu, device): (&mut Option<Gpu>, &DeviceOptions),
    (stop, selects): (&AtomicBool, &dyn Fn(&str) -> bool),
) -> Result<Option<Vec<RunResponses>>> {
    let mut all = Vec::new();
    let mut before = None;
    for checkpoint in models {
        let named = &checkpoint.named;
        let mut files = Vec::new();
        for (temperature, seed) in sampled.pairs().filter(|&(t, s)| selects(&run_name(&named.name, t, s))) {
            let path = folder.responses(&run_name(&named.name, temperature, seed));
            let file = ResponseFile::open(&path, prompts)?;
            file.notes.iter().for_each(|note| note!("note: {note}"));
            if file.rows().is_empty() && folder.alpaca(&run_name(&named.name, temperature, seed)).exists() {
                note!("note: {}: the responses of the earlier run are gone, and made again", path.display());
            }
            files.push((temperature, seed, path, file));
        }
        let missing = files.iter().map(|(.., file)| prompts.len() - file.rows().len()).sum();
        if missing > 0 {
            let gpu = Gpu::get_or_open(gpu, device)?;
            let (tokenizer, template) = (&*checkpoint.tokenizer, &sampled.template);
            let mut longest = 0;
            for prompt in prompts {
                longest = longest.max(encode(prompt, tokenizer, template)?.len() + sampled.max_new_tokens);
            }
            let decoder = checkpoint.load(gpu, longest, before.take())?;
            let eos = checkpoint.stop_ids.clone();
            let noun = if missing == 1 { "response" } else { "responses" };
            note!("{}: {missing} {noun} to make", named.name);
            let progress = ProgressReporter::items("answering", missing);
            for (temperature, seed, _, file) in &mut files {
                let settings = &sampled.settings(*temperature, *seed, eos.clone());
                let batch_size = sampled.batch_size;
                let policy = RespondingPolicy { gpu, decoder: &decoder, tokenizer, template, settings, batch_size };
                let watch = &mut |n| progress.advance(n as u64);
                if !pollster::block_on(respond(&policy, prompts, file, stop, watch))? {
                    return Ok(None);
                }
            }
            before = Some((checkpoint, decoder));
        }
        all.extend(files.into_iter().map(|(temperature, seed, path, file)| RunResponses {
            checkpoint: named.name.clone(),
            method: named.method.clone(),
            temperature,
            seed,
            path,
            rows: file.into_rows(),
        }));
    }
    Ok(Some(all))
}

/// Writes AlpacaEval's files: one per run, and the gold responses.
///
/// # Errors
/// [`Error::File`].
pub fn export_alpaca(folder: &EvaluationFolder, prompts: &[TestPrompt], responses: &[RunResponses]) -> Result<()> {
    for one in responses {
        let outputs = one.rows.iter().map(|row| row.response.as_str());
        write_alpaca(&folder.alpaca(&one.name()), prompts, outputs, &one.name())?;
    }
    let gold: Option<Vec<&str>> = prompts.iter().map(|prompt| prompt.gold.as_deref()).collect();
    gold.map_or(Ok(()), |gold| write_alpaca(&folder.alpaca(GOLD), prompts, gold.into_iter(), GOLD))
}
