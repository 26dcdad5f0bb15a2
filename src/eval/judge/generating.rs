//! A local model as a judge that writes its answer, with thoughts before it where it has some, and whose text is read as an endpoint's is.

use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::{Value, json};

use super::local::{LocalJudge, opens_answer_with_thoughts};
use super::token_group::TokenGroup;
use super::{Answer, Judge, Question, Reply, Usage};
use crate::data::rows::Instruction;
use crate::error::Result;
use crate::eval::generate::{GenerateSettings, generate};

/// A model on a device, how it is asked, and how its answers are sampled.
pub struct GeneratingJudge<'g> {
    /// The model, its tokenizer and its prompt.
    pub local: LocalJudge<'g>,
    /// The longest answer, and the tokens that end one. Answers are the likeliest ones, so that a run that goes on gives the same.
    pub settings: GenerateSettings,
}

/// A question as token ids.
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

    /// Writes the answers of a group of questions.
    fn write(&self, group: &[EncodedQuestion], tell: &mut dyn FnMut(usize, Reply) -> Result<()>) -> Result<()> {
        if group.is_empty() {
            return Ok(());
        }
        let LocalJudge { gpu, decoder, tokenizer, template, .. } = &self.local;
        // Thoughts that the template opened are closed by the answer.
        let begun = if opens_answer_with_thoughts(tokenizer, template) { "<think>" } else { "" };
        let prompts: Vec<Vec<u32>> = group.iter().map(|asked| asked.ids.clone()).collect();
        let written = pollster::block_on(generate(gpu, decoder, &prompts, 0, &self.settings, &mut |_, _| ()))?;
        for (asked, written) in group.iter().zip(&written) {
            tell(asked.question, Reply::Answer(self.answer(asked, begun, written)?))?;
        }
        Ok(())
    }

    /// Reads what was written; `begun`: what the answer begins with that the prompt holds already.
    fn answer(&self, asked: &EncodedQuestion, begun: &str, written: &[u32]) -> Result<Answer> {
        let (end, before) = written.split_last().map_or((None, written), |(last, before)| (Some(last), before));
        let is_cut = !end.is_some_and(|id| self.settings.eos.contains(id));
        // Marks of thoughts may be special tokens.
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
        // As many side by side as have room in the cache.
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
