//! Responses that a policy samples.

use serde_json::{Value, json};

use super::policy::Policy;
use crate::data::conversation::Instruction;
use crate::data::prompt_template::Template;
use crate::error::{Error, Result};
use crate::eval::generate::{DEFAULT_BATCH_SIZE, DEFAULT_MAX_NEW_TOKENS, GenerateSettings, check_length, generate};
use crate::gpu::Gpu;
use crate::kernels::sample::Sampling;
use crate::validate::at_least_one;

/// Settings of sampling responses. The default draws from the model's own distribution.
///
/// # Examples
/// ```
/// use jointwise::GenerateOptions;
/// let greedy = GenerateOptions { temperature: 0.0, max_new_tokens: 40, ..GenerateOptions::default() };
/// # assert_eq!(greedy.top_p, 1.0);
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct GenerateOptions {
    /// Temperature of sampling; 0 takes the likeliest token.
    pub temperature: f32,
    /// Number of likeliest tokens that are drawn from; 0: all.
    pub top_k: usize,
    /// Probability that the likeliest tokens, which are drawn from, reach together; 1: all tokens.
    pub top_p: f32,
    /// Longest response in tokens.
    pub max_new_tokens: usize,
    /// Seed of the draws. Each instruction has a stream of its own, so its response does not depend on the others.
    pub seed: u64,
    /// Number of instructions that are answered side by side.
    pub batch_size: usize,
}

impl Default for GenerateOptions {
    fn default() -> Self {
        Self {
            temperature: 1.0,
            top_k: 0,
            top_p: 1.0,
            max_new_tokens: DEFAULT_MAX_NEW_TOKENS,
            seed: 0,
            batch_size: DEFAULT_BATCH_SIZE,
        }
    }
}

impl Policy {
    /// Samples a response to each instruction. A response ends with the model's end of a text or turn, which is left out of it, or at the longest length.
    ///
    /// # Errors
    /// [`Error::Flag`] for settings out of range, an instruction that the template cannot take, or that leaves no room in the model's positions;
    /// [`Error::NotFinite`], [`Error::Gpu`].
    ///
    /// # Examples
    /// ```
    /// use jointwise::{GenerateOptions, Gpu, Policy, Template};
    /// let (gpu, policy) = (Gpu::open_best()?, Policy::open("models/demo")?);
    /// let options = GenerateOptions { temperature: 0.0, max_new_tokens: 12, ..GenerateOptions::default() };
    /// let responses = policy.generate(&gpu, &["Say hello.", "Name a colour."], &Template::Paper, &options)?;
    /// assert_eq!(responses.len(), 2);
    /// # Ok::<(), jointwise::Error>(())
    /// ```
    #[cfg(not(target_arch = "wasm32"))]
    pub fn generate(
        &self,
        gpu: &Gpu,
        instructions: &[&str],
        template: &Template,
        options: &GenerateOptions,
    ) -> Result<Vec<String>> {
        pollster::block_on(self.generate_async(gpu, instructions, template, options))
    }

    /// Does what `Self::generate` does without blocking, in a browser too.
    ///
    /// # Errors
    /// Those of `Self::generate`.
    pub async fn generate_async(
        &self,
        gpu: &Gpu,
        instructions: &[&str],
        template: &Template,
        options: &GenerateOptions,
    ) -> Result<Vec<String>> {
        let GenerateOptions { temperature, top_k, top_p, max_new_tokens, seed, batch_size } = *options;
        let tokenizer = self.tokenizer();
        let settings = GenerateSettings {
            sampling: Sampling { temperature, top_k, top_p },
            max_new_tokens,
            seed,
            eos: tokenizer.stop_ids().to_vec(),
            with_lora: true,
        };
        settings.validate()?;
        at_least_one("batch-size", batch_size)?;
        tokenizer.check_template(template)?;
        let encode = |(i, text): (usize, &&str)| {
            let ids = tokenizer.encode_prompt(&Instruction::Plain((*text).into()), template);
            match ids {
                Ok(ids) if !ids.is_empty() => Ok(ids),
                Ok(_) => Err(Error::flag("prompt", format!("number {}: it has no tokens", i + 1))),
                Err(reason) => Err(Error::flag("prompt", format!("number {}: {reason}", i + 1))),
            }
        };
        let prompts = instructions.iter().enumerate().map(encode).collect::<Result<Vec<_>>>()?;
        let longest = prompts.iter().map(Vec::len).max().unwrap_or(0);
        check_length(longest, max_new_tokens, self.description().max_positions)?;
        let decoder = self.load(gpu, longest + max_new_tokens)?;
        let mut responses = Vec::with_capacity(prompts.len());
        for some in prompts.chunks(batch_size) {
            let answers = generate(gpu, &decoder, some, responses.len(), &settings, &mut |_, _| ()).await?;
            for ids in &answers {
                responses.push(tokenizer.decode(ids)?);
            }
        }
        Ok(responses)
    }
}

/// Makes the row of a sampled response. It keeps the instruction's inputs to the chat template, so that the row can be read as a prompt again.
pub fn response_row(instruction: &Instruction, response: &str, prompt_ids: &[u32], ids: &[u32]) -> Value {
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

#[cfg(all(test, feature = "native"))]
mod tests {
    use super::*;
    use crate::data::prompts::read_prompts;
    use crate::data::rows::FieldMap;

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
            let written = response_row(&instruction, "a", &[1, 2], &[3]);
            assert_eq!(read(&written), instruction, "{given}");
            assert_eq!(
                (&written["tools"], &written["chat_template_kwargs"]),
                (&given["tools"], &given["chat_template_kwargs"])
            );
        }
    }
}
