//! Local model as a judge, run on the device. Its choice is the letter with the higher probability as the beginning of an answer. Nothing
//! is sampled or parsed.

use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::{Value, json};

use super::prompt::JudgePrompt;
use super::token_group::TokenGroup;
use super::verdict_reader::opens_thoughts;
use super::{Answer, Choice, Judge, Question, Reply};
use crate::data::batch::{Example, Sequence};
use crate::data::prompt_template::Template;
use crate::data::rows::Instruction;
use crate::data::tokens::Tokenizer;
use crate::error::Result;
use crate::gpu::Gpu;
use crate::model::decoder::Decoder;
use crate::train::scoring::score;

/// Beginnings of an answer, whose probabilities are compared.
pub const LETTERS: [&str; 2] = ["(a)", "(b)"];

/// Model on a device, with the settings for asking it.
pub struct LocalJudge<'g> {
    /// Device that the model is on.
    pub gpu: &'g Gpu,
    /// Model that judges.
    pub decoder: Decoder,
    /// Tokenizer of the model.
    pub tokenizer: Tokenizer,
    /// Template around the prompt; for a chat model, its own.
    pub template: Template,
    /// Prompt that asks for the judgement.
    pub prompt: JudgePrompt,
    /// Largest number of tokens of a sequence.
    pub max_length: usize,
    /// Largest number of tokens of a forward pass, which has as many questions as fit.
    pub max_tokens: usize,
    /// Name of the judge, for messages and files.
    pub name: String,
    /// Digest of the model's weights, including an adapter's. It identifies the model independently of its path.
    pub weights: String,
    /// Other settings that the answers depend on, such as storage and template.
    pub settings: Value,
}

/// Returns a question's two sequences, one per letter, which share the prompt.
///
/// # Errors
/// The reason: a text that the tokenizer or template cannot represent, or that is too long.
pub fn example(
    question: &Question<'_>,
    prompt: &JudgePrompt,
    tokenizer: &Tokenizer,
    template: &Template,
    max_length: usize,
) -> std::result::Result<Example, String> {
    let asked = Instruction::Plain(prompt.render(question));
    let begun = |letter: &str| tokenizer.encode_begun(&asked, letter, template);
    let sequences: Vec<Sequence> = LETTERS.into_iter().map(begun).collect::<std::result::Result<_, _>>()?;
    let longest = sequences.iter().map(|s| s.ids.len()).max().unwrap_or(0);
    if longest > max_length {
        return Err(format!("the question has {longest} tokens, --max-length is {max_length}"));
    }
    if sequences[0].ids == sequences[1].ids {
        return Err("the tokenizer has the same tokens for (a) and (b)".into());
    }
    Ok(Example { row: 0, sequences, desirable: None })
}

/// Returns the prompt of a question without content, as the model sees it.
fn empty_prompt(tokenizer: &Tokenizer, template: &Template) -> String {
    let asked = tokenizer.encode_prompt(&Instruction::Plain("?".into()), template);
    asked.ok().and_then(|ids| tokenizer.decode_all(&ids).ok()).unwrap_or_default()
}

/// Returns whether the template itself opens the answer's thoughts. Markers in a row's texts do not count.
pub fn opens_answer_with_thoughts(tokenizer: &Tokenizer, template: &Template) -> bool {
    opens_thoughts(&empty_prompt(tokenizer, template))
}

/// Returns whether a chat model's answer begins with thoughts, judging by its template and its vocabulary, so that its first letter is not
/// the verdict.
pub fn begins_with_thoughts(tokenizer: &Tokenizer, template: &Template) -> bool {
    if *template != Template::Chat {
        return false;
    }
    let text = empty_prompt(tokenizer, template);
    let is_token = |mark: &str| tokenizer.encode_text(mark).is_ok_and(|ids| ids.len() == 1);
    let is_closed = ["</think>", "[/THINK]"].iter().any(|mark| text.trim_end().ends_with(mark));
    opens_thoughts(&text) || !is_closed && ["<think>", "[THINK]"].into_iter().any(is_token)
}

/// Returns log π of "(a)" and of "(b)" behind each prompt, in nats. A prompt is computed once for both.
///
/// # Errors
/// [`crate::Error::Gpu`].
pub async fn log_probabilities(
    gpu: &Gpu,
    decoder: &Decoder,
    examples: &[&Example],
    max_tokens: usize,
) -> Result<Vec<[f64; 2]>> {
    let scored = score(gpu, decoder, examples, true, true, max_tokens, &mut |_| ()).await?;
    Ok(scored.as_chunks().0.iter().map(|[a, b]| [a.sums.response, b.sums.response]).collect())
}

/// Returns the reply with the likelier letter.
fn answer(logps: [f64; 2]) -> Reply {
    let choice = match logps[0].partial_cmp(&logps[1]) {
        Some(std::cmp::Ordering::Greater) => Choice::A,
        Some(std::cmp::Ordering::Less) => Choice::B,
        Some(std::cmp::Ordering::Equal) => Choice::Tie,
        None => return Reply::Failed("a log-probability is not finite".into()),
    };
    Reply::Answer(Answer { choice: Some(choice), logps: Some(logps), ..Answer::default() })
}

impl Judge for LocalJudge<'_> {
    fn name(&self) -> &str {
        &self.name
    }

    fn identity(&self) -> Value {
        json!({"kind": "local", "weights": self.weights, "settings": self.settings, "prompt": self.prompt.hash()})
    }

    fn is_costly(&self) -> bool {
        false
    }

    fn ask(
        &self,
        questions: &[Question<'_>],
        stop: &AtomicBool,
        tell: &mut dyn FnMut(usize, Reply) -> Result<()>,
    ) -> Result<()> {
        let mut group = TokenGroup::new(self.max_tokens);
        for (i, question) in questions.iter().enumerate() {
            if stop.load(Ordering::Relaxed) {
                return Ok(());
            }
            match example(question, &self.prompt, &self.tokenizer, &self.template, self.max_length) {
                Ok(example) => {
                    let n_tokens = example.n_tokens(true);
                    if let Some(full) = group.push(Example { row: i, ..example }, n_tokens) {
                        self.answer(&full, tell)?;
                    }
                }
                Err(reason) => tell(i, Reply::Unfit(reason))?,
            }
        }
        match stop.load(Ordering::Relaxed) {
            true => Ok(()),
            false => self.answer(&group.take(), tell),
        }
    }
}

impl LocalJudge<'_> {
    /// Answers a group of questions. The examples contain the questions' indices.
    fn answer(&self, group: &[Example], tell: &mut dyn FnMut(usize, Reply) -> Result<()>) -> Result<()> {
        let examples: Vec<&Example> = group.iter().collect();
        let logps = pollster::block_on(log_probabilities(self.gpu, &self.decoder, &examples, self.max_tokens))?;
        group.iter().zip(logps).try_for_each(|(example, logps)| tell(example.row, answer(logps)))
    }
}
