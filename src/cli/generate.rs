//! `generate`: responses to prompts, streamed.

use std::io::{IsTerminal, Write};
use std::sync::atomic::Ordering;

use serde_json::{Value, json};

use super::interrupt::stop_on_ctrl_c;
use super::output::JsonlWriter;
use crate::data::prompts::read_prompt_file;
use crate::data::rows::{FieldMap, Instruction, SourceLocation};
use crate::data::template_notes::{bos_note, template_line};
use crate::data::tokens::Tokenizer;
use crate::error::{Error, Result, visible_lines};
use crate::eval::generate::DEFAULT_MAX_NEW_TOKENS;
use crate::eval::generate::{GenerateSettings, check_length, generate};
use crate::flags::GenerateArgs;
use crate::flags::resolve_template;
use crate::gpu::Gpu;
use crate::kernels::sample::Sampling;
use crate::model::decoder::Decoder;
use crate::progress::ProgressReporter;
use crate::workflow::{Finished, Policy, PolicyOptions};

/// Runs `jointwise generate`.
pub fn run(args: &GenerateArgs) -> Result<Finished> {
    let mut out = JsonlWriter::new(args.out.as_deref(), &args.prompts)?;
    let model = args.model.open()?;
    let adapter = args.model.adapter.as_deref().map(|place| model.open_adapter(place)).transpose()?;
    let options = PolicyOptions { chat_template: args.chat_template.clone(), ..PolicyOptions::default() };
    let policy = Policy::from_model(model, adapter, options)?;
    let tokenizer = policy.tokenizer();
    let template = resolve_template(args.template.as_deref(), args.chat_template.as_deref())?;
    tokenizer.check_template(&template)?;
    let mut settings = GenerateSettings {
        sampling: Sampling { temperature: args.temperature, top_k: args.top_k, top_p: args.top_p },
        max_new_tokens: args.max_new_tokens.unwrap_or(DEFAULT_MAX_NEW_TOKENS),
        seed: args.seed,
        eos: if args.ignore_eos { Vec::new() } else { tokenizer.stop_ids().to_vec() },
        with_lora: true,
    };
    settings.validate()?;
    if args.batch_size == 0 {
        return Err(Error::flag("batch-size", "must be at least 1"));
    }
    let mut instructions: Vec<Instruction> = args.prompt.iter().cloned().map(Instruction::Plain).collect();
    let mut places: Vec<Option<SourceLocation>> = vec![None; instructions.len()];
    if let Some(path) = &args.prompts {
        let read = read_prompt_file(path, &FieldMap::parse(&args.map)?)?;
        for line in read.notes {
            note!("note: {line}");
        }
        for prompt in read.rows {
            instructions.push(prompt.instruction);
            places.push(Some(prompt.place));
        }
    }
    if instructions.is_empty() {
        return Err(Error::flag("prompt", "is missing: a text, or --prompts FILE"));
    }
    note!("{}", template_line(tokenizer, &template, &instructions[0], "prompts"));
    bos_note(tokenizer, &template, &instructions[0]).into_iter().for_each(|line| note!("{line}"));
    // A prompt is named by its file and line, or by its number.
    let bad = |i: usize, reason: &str| match &places[i] {
        Some(place) => place.error(reason),
        None => Error::flag("prompt", format!("number {}: {reason}", i + 1)),
    };
    let mut prompts = Vec::new();
    for (i, instruction) in instructions.iter().enumerate() {
        let place = places[i].as_ref().map_or_else(|| format!("prompt {}", i + 1), SourceLocation::to_string);
        tokenizer.check_conversation(instruction, &template, &place)?;
        let ids = tokenizer.encode_prompt(instruction, &template).map_err(|reason| bad(i, &reason))?;
        if ids.is_empty() {
            return Err(bad(i, "it has no tokens"));
        }
        prompts.push(ids);
    }
    let (at, longest) = prompts.iter().map(Vec::len).enumerate().max_by_key(|(_, n)| *n).unwrap_or_default();
    let positions = policy.description().max_positions;
    if args.max_new_tokens.is_none() {
        settings.max_new_tokens = settings.max_new_tokens.min(positions.saturating_sub(longest).max(1));
    }
    check_length(longest, settings.max_new_tokens, positions).map_err(|error| match &places[at] {
        Some(place) => place.error(error),
        None => error,
    })?;
    let longest = longest + settings.max_new_tokens;
    let gpu = Gpu::open_with(&args.model.device_options()?)?;
    let decoder = policy.load(&gpu, longest)?;

    let asked = GenerationJob { args, gpu: &gpu, decoder: &decoder, tokenizer, settings, instructions, prompts };
    let mut n_done = 0;
    let ended = asked.respond(&mut out, &mut n_done);
    let n = asked.prompts.len();
    // What was generated is not lost with what was not.
    if ended.is_ok() || n_done > 0 {
        out.finish()?;
    }
    if 0 < n_done && n_done < n {
        note!("note: {n_done} of {n} prompts were answered");
    }
    ended
}

/// Prompts, with the model and the settings that answer them.
struct GenerationJob<'a> {
    args: &'a GenerateArgs,
    gpu: &'a Gpu,
    decoder: &'a Decoder,
    tokenizer: &'a Tokenizer,
    settings: GenerateSettings,
    instructions: Vec<Instruction>,
    prompts: Vec<Vec<u32>>,
}

impl GenerationJob<'_> {
    /// Answers the prompts in batches, and shows each batch as soon as it is done. Adds the answered prompts to `n_done`.
    fn respond(&self, out: &mut JsonlWriter, n_done: &mut usize) -> Result<Finished> {
        let Self { args, gpu, decoder, tokenizer, settings, instructions, prompts } = self;
        let (is_rows, batch_size) = (args.json || args.out.is_some(), args.batch_size.max(1));
        let stream = prompts.len() == 1 && !is_rows && std::io::stdout().is_terminal();
        // One batch ends at once.
        let has_more = prompts.len() > batch_size;
        let stop = has_more.then(|| stop_on_ctrl_c("ending after the prompts under way, whose responses are written"));
        let progress = match stream {
            true => ProgressReporter::hidden(),
            false => ProgressReporter::items("generating", prompts.len()),
        };
        for some in prompts.chunks(batch_size) {
            if stop.is_some_and(|stop| stop.load(Ordering::Relaxed)) {
                return Ok(Finished::Interrupted);
            }
            let first = *n_done;
            let mut shown = String::new();
            let mut so_far = Vec::new();
            let responses = pollster::block_on(generate(gpu, decoder, some, first, settings, &mut |_, id| {
                if stream {
                    so_far.push(id);
                    let text = tokenizer.decode(&so_far).unwrap_or_default();
                    // A token may hold a part of a character: wait for the rest.
                    if let Some(more) = text.strip_prefix(shown.as_str()).filter(|m| !m.ends_with('\u{fffd}')) {
                        let _ = write!(std::io::stdout(), "{}", visible_lines(more));
                        let _ = std::io::stdout().flush();
                        shown = text;
                    }
                }
            }))?;
            progress.suspend(|| {
                for (i, ids) in responses.iter().enumerate() {
                    let response = tokenizer.decode(ids)?;
                    if is_rows {
                        out.push(&row(&instructions[first + i], &response, &some[i], ids))?;
                    } else if stream {
                        say!()?;
                    } else {
                        say!("{response}")?;
                    }
                }
                out.show()
            })?;
            *n_done += some.len();
            progress.advance(some.len() as u64);
        }
        Ok(Finished::Whole)
    }
}

/// Makes the row of a response. It keeps the instruction's inputs to the chat template, so that the row can be read as a prompt again.
fn row(instruction: &Instruction, response: &str, prompt_ids: &[u32], ids: &[u32]) -> Value {
    let (instruction, inputs) = match instruction {
        Instruction::Plain(text) | Instruction::Verbatim(text) => (json!(text), None),
        Instruction::Chat(conversation) => (json!(conversation.messages), Some(&conversation.inputs)),
    };
    let mut row = json!({"instruction": instruction, "response": response, "prompt_ids": prompt_ids, "ids": ids});
    if let Some(inputs) = inputs {
        inputs.tools.iter().for_each(|tools| row["tools"] = tools.clone());
        if !inputs.kwargs.is_empty() {
            row["chat_template_kwargs"] = json!(inputs.kwargs);
        }
    }
    row
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::prompts::read_prompts;

    /// Rows that `--out` writes are read as the instructions that were answered.
    #[test]
    fn rows_can_be_given_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("rows.jsonl");
        let read = |row: &Value| {
            std::fs::write(&path, row.to_string()).unwrap();
            read_prompts(&path, &FieldMap::default()).unwrap().remove(0).instruction
        };
        let tools = json!([{"type": "function", "function": {"name": "f"}}]);
        let messages = json!([{"role": "system", "content": "s"}, {"role": "user", "content": "q"}]);
        let kwargs = json!({"enable_thinking": false});
        for given in [
            json!({"prompt": "q"}),
            json!({"prompt": messages, "tools": tools, "chat_template_kwargs": kwargs}),
            json!({"prompt": "q", "tools": tools}),
            json!({"prompt": "q", "chat_template_kwargs": kwargs}),
        ] {
            let instruction = read(&given);
            let written = row(&instruction, "a", &[1, 2], &[3]);
            assert_eq!(read(&written), instruction, "{given}");
            assert_eq!(
                (&written["tools"], &written["chat_template_kwargs"]),
                (&given["tools"], &given["chat_template_kwargs"])
            );
        }
    }
}
