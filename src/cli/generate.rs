//! `generate`: responses to prompts, streamed.

use std::io::{IsTerminal, Write};
use std::sync::atomic::Ordering;

use serde_json::json;

use super::interrupt::stop_on_ctrl_c;
use super::output::JsonlWriter;
use crate::data::prompt_template::Template;
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
use crate::validate::at_least_one;
use crate::workflow::{Finished, response_row};

/// Runs `jointwise generate`.
pub fn run(args: &GenerateArgs) -> Result<Finished> {
    let mut out = JsonlWriter::new(args.out.as_deref(), &args.prompts)?;
    let policies = args.policies()?;
    let template = resolve_template(args.template.as_deref(), args.chat_template.as_deref())?;
    let positions = policies[0].1.description().max_positions;
    let settings = GenerateSettings {
        sampling: Sampling { temperature: args.temperature, top_k: args.top_k, top_p: args.top_p },
        max_new_tokens: args.max_new_tokens.unwrap_or(DEFAULT_MAX_NEW_TOKENS),
        seed: args.seed,
        eos: Vec::new(),
        with_lora: true,
    };
    settings.validate()?;
    at_least_one("batch-size", args.batch_size)?;
    let mut instructions: Vec<Instruction> = args.prompt.iter().cloned().map(Instruction::Plain).collect();
    let mut places: Vec<Option<SourceLocation>> = vec![None; instructions.len()];
    if let Some(path) = &args.prompts {
        let read = read_prompt_file(path, &FieldMap::parse(&args.map)?)?;
        read.notes.iter().for_each(|line| note!("note: {line}"));
        for prompt in read.rows {
            instructions.push(prompt.instruction);
            places.push(Some(prompt.place));
        }
    }
    if instructions.is_empty() {
        return Err(Error::flag("prompt", "is missing: a text, or --prompts FILE"));
    }
    let first = policies[0].1.tokenizer();
    note!("{}", template_line(first, &template, &instructions[0], "prompts"));
    bos_note(first, &template, &instructions[0]).into_iter().for_each(|line| note!("{line}"));
    let mut job = GenerationJob { args, settings, instructions, places, template };
    // Tokens by policy, because an adapter may bring a tokenizer of its own.
    let prompts = policies.iter().map(|(_, policy)| job.encode(policy.tokenizer())).collect::<Result<Vec<_>>>()?;
    let lengths = prompts.iter().flat_map(|all| all.iter().map(Vec::len).enumerate());
    let (at, longest) = lengths.max_by_key(|(_, n)| *n).unwrap_or_default();
    if args.max_new_tokens.is_none() {
        job.settings.max_new_tokens = job.settings.max_new_tokens.min(positions.saturating_sub(longest).max(1));
    }
    check_length(longest, job.settings.max_new_tokens, positions).map_err(|error| match &job.places[at] {
        Some(place) => place.error(error),
        None => error,
    })?;
    let longest = longest + job.settings.max_new_tokens;
    let gpu = Gpu::open_with(&args.device.options()?.for_model(policies[0].1.model()))?;

    let n = prompts.len() * job.instructions.len();
    let hidden = job.streams(n);
    let progress = if hidden { ProgressReporter::hidden() } else { ProgressReporter::items("generating", n) };
    let (mut n_done, mut ended, mut decoder) = (0, Ok(Finished::Whole), None::<Decoder>);
    for ((name, policy), prompts) in policies.iter().zip(&prompts) {
        let loaded = match decoder.take() {
            None => policy.load(&gpu, longest)?,
            Some(before) => policy.load_beside(&before, &gpu, longest)?,
        };
        let adapter = (policies.len() > 1).then_some(name.as_str());
        let asked = AskedPolicy { gpu: &gpu, decoder: &loaded, tokenizer: policy.tokenizer(), adapter, prompts };
        ended = job.respond(&asked, n, &progress, &mut out, &mut n_done);
        decoder = Some(loaded);
        if !matches!(ended, Ok(Finished::Whole)) {
            break;
        }
    }
    // What was generated is not lost with what was not.
    if ended.is_ok() || n_done > 0 {
        out.finish()?;
    }
    if 0 < n_done && n_done < n {
        let done = if policies.len() > 1 { "responses were made" } else { "prompts were answered" };
        note!("note: {n_done} of {n} {done}");
    }
    ended
}

/// Prompts, with the settings of their responses.
struct GenerationJob<'a> {
    args: &'a GenerateArgs,
    settings: GenerateSettings,
    instructions: Vec<Instruction>,
    /// Places of the instructions; `None` for those of the command line.
    places: Vec<Option<SourceLocation>>,
    template: Template,
}

/// A policy on the device, with the prompts in its tokens.
struct AskedPolicy<'a> {
    gpu: &'a Gpu,
    decoder: &'a Decoder,
    tokenizer: &'a Tokenizer,
    /// Name of the adapter, where several answer.
    adapter: Option<&'a str>,
    prompts: &'a [Vec<u32>],
}

impl GenerationJob<'_> {
    /// Tells whether the response is shown token by token.
    fn streams(&self, n: usize) -> bool {
        n == 1 && !self.args.json && self.args.out.is_none() && std::io::stdout().is_terminal()
    }

    /// Returns the tokens of the prompts. Errors name a prompt by its file and line, or by its number.
    fn encode(&self, tokenizer: &Tokenizer) -> Result<Vec<Vec<u32>>> {
        let template = &self.template;
        tokenizer.check_template(template)?;
        let bad = |i: usize, reason: &str| match &self.places[i] {
            Some(place) => place.error(reason),
            None => Error::flag("prompt", format!("number {}: {reason}", i + 1)),
        };
        let one = |(i, instruction): (usize, &Instruction)| {
            let place = self.places[i].as_ref().map_or_else(|| format!("prompt {}", i + 1), SourceLocation::to_string);
            tokenizer.check_conversation(instruction, template, &place)?;
            let ids = tokenizer.encode_prompt(instruction, template).map_err(|reason| bad(i, &reason))?;
            if ids.is_empty() { Err(bad(i, "it has no tokens")) } else { Ok(ids) }
        };
        self.instructions.iter().enumerate().map(one).collect()
    }

    /// Answers a policy's prompts in batches, and shows each batch as soon as it is done. Adds the responses to `n_done`, which ends at `n`.
    fn respond(
        &self,
        asked: &AskedPolicy<'_>,
        n: usize,
        progress: &ProgressReporter,
        out: &mut JsonlWriter,
        n_done: &mut usize,
    ) -> Result<Finished> {
        let AskedPolicy { gpu, decoder, tokenizer, adapter, prompts } = asked;
        let (is_rows, batch_size) = (self.args.json || self.args.out.is_some(), self.args.batch_size);
        let stream = self.streams(n);
        let eos = if self.args.ignore_eos { Vec::new() } else { tokenizer.stop_ids().to_vec() };
        let settings = &GenerateSettings { eos, ..self.settings.clone() };
        // One batch ends at once.
        let has_more = n > batch_size;
        let stop = has_more.then(|| stop_on_ctrl_c("ending after the prompts under way, whose responses are written"));
        for (batch, some) in prompts.chunks(batch_size).enumerate() {
            if stop.is_some_and(|stop| stop.load(Ordering::Relaxed)) {
                return Ok(Finished::Interrupted);
            }
            let first = batch * batch_size;
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
                        let mut row = response_row(&self.instructions[first + i], &response, &some[i], ids);
                        adapter.iter().for_each(|name| row["adapter"] = json!(name));
                        out.push(&row)?;
                    } else if stream {
                        say!()?;
                    } else {
                        adapter.map_or(Ok(()), |name| say!("[{name}]"))?;
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
