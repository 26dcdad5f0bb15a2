//! Local model as a judge that writes its answer, possibly after thoughts. The text is read like an endpoint's.

use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::{Value, json};

use super::local::{LocalJudge, opens_answer_with_thoughts};
use super::token_group::TokenGroup;
use super::{Answer, Judge, Question, Reply, Usage};
use crate::data::rows::Instruction;
use crate::error::Result;
use crate::eval::generate::{GenerateSettings, generate};

/// Model on a device, with its prompt and the settings for sampling its answers.
pub struct GeneratingJudge<'g> {
    /// The model, its tokenizer and its prompt.
    pub local: LocalJudge<'g>,
    /// Largest number of tokens of an answer, and the tokens that end one. Answers are sampled greedily, so that a run that continues gives
    /// the same ones.
    pub settings: GenerateSettings,
}

/// Question as token ids.
struct EncodedQuestion {
    question: usize,
    ids: Vec<u32>,
}

impl GeneratingJudge<'_> {
    fn encode(&self, i: usize, question: &Question<'_>) -> std::result::Result<EncodedQuestion, String> {
        let local = &self.local;
        let ids = local.tokenizer.encode_prompt(&Instruction::Plain(local.prompt.render(question)), &local.template)?;
        let (n, most) = (ids.len() + self.settings.max_new_tokens, local.max_length);
        if n > most {
            return Err(format!("question and answer may have {n} tokens, --max-length is {most}"));
        }
        Ok(EncodedQuestion { question: i, ids })
    }

    /// Generates the answers to a group of questions.
    fn write(&self, group: &[EncodedQuestion], tell: &mut dyn FnMut(usize, Reply) -> Result<()>) -> Result<()> {
        if group.is_empty() {
            return Ok(());
        }
        let LocalJudge { gpu, decoder, tokenizer, template, .. } = &self.local;
        // If the template opens thoughts, the answer closes them.
        let begun = if opens_answer_with_thoughts(tokenizer, template) { "<think>" } else { "" };
        let prompts: Vec<Vec<u32>> = group.iter().map(|asked| asked.ids.clone()).collect();
        let written = pollster::block_on(generate(gpu, decoder, &prompts, 0, &self.settings, &mut |_, _| ()))?;
        for (asked, written) in group.iter().zip(&written) {
            tell(asked.question, Reply::Answer(self.answer(asked, begun, written)?))?;
        }
        Ok(())
    }

    /// Reads a generated answer. `begun` is the beginning of the answer that the prompt already contains.
    fn answer(&self, asked: &EncodedQuestion, begun: &str, written: &[u32]) -> Result<Answer> {
        let (end, before) = written.split_last().map_or((None, written), |(last, before)| (Some(last), before));
        let is_cut = !end.is_some_and(|id| self.settings.eos.contains(id));
        // Markers of thoughts may be special tokens, so these are kept in the text.
        let text = begun.to_string() + &self.local.tokenizer.decode_all(if is_cut { written } else { before })?;
        let usage = Usage { prompt_tokens: asked.ids.len() as u64, completion_tokens: written.len() as u64 };
        Ok(Answer::read(text, is_cut).with_usage(Some(usage), Some(self.settings.max_new_tokens as u64)))
    }
}

impl Judge for GeneratingJudge<'_> {
    fn name(&self) -> &str {
        self.local.name()
    }

    fn identity(&self) -> Value {
        let mut identity = self.local.identity();
        identity["max_tokens"] = json!(self.settings.max_new_tokens);
        identity
    }

    fn is_deterministic(&self) -> bool {
        self.settings.sampling.temperature == 0.0
    }

    fn ask(
        &self,
        questions: &[Question<'_>],
        stop: &AtomicBool,
        tell: &mut dyn FnMut(usize, Reply) -> Result<()>,
    ) -> Result<()> {
        // A group has as many questions as fit the cache side by side.
        let mut group = TokenGroup::new(self.local.max_tokens);
        for (i, question) in questions.iter().enumerate() {
            if stop.load(Ordering::Relaxed) {
                return Ok(());
            }
            match self.encode(i, question) {
                Ok(asked) => {
                    let n_tokens = asked.ids.len() + self.settings.max_new_tokens;
                    if let Some(full) = group.push(asked, n_tokens) {
                        self.write(&full, tell)?;
                    }
                }
                Err(reason) => tell(i, Reply::Unfit(reason))?,
            }
        }
        match stop.load(Ordering::Relaxed) {
            true => Ok(()),
            false => self.write(&group.take(), tell),
        }
    }
}
