//! Judges, the questions that they are asked, and the verdict from two answers.
//!
//! Every comparison is asked twice, once in each order ([`PresentationOrder`]). A judge's answer names a letter ([`Choice`]), which
//! [`verdict_reader`] finds in texts. Two answers that name the same side are a preference; any other two answers are a tie ([`Verdict`]).
//! [`super::acquire::acquire`] asks any [`Judge`] and stores the answers.

#[cfg(feature = "native")]
pub mod command;
#[cfg(feature = "native")]
pub mod endpoint;
#[cfg(not(target_arch = "wasm32"))]
pub mod generating;
pub mod grader;
#[cfg(not(target_arch = "wasm32"))]
pub mod local;
pub mod person;
#[cfg(feature = "native")]
mod pool;
pub mod prompt;
#[cfg(feature = "native")]
mod shell;
#[cfg(not(target_arch = "wasm32"))]
mod token_group;
pub mod verdict_reader;

use std::sync::atomic::AtomicBool;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::data::comparisons::{Comparison, ComparisonKind, Side};
use crate::error::Result;
use verdict_reader::{NoVerdict, read_cut_verdict, read_verdict};

/// Presentation order: which side is shown as (a).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PresentationOrder {
    /// Side 0 is (a), side 1 is (b).
    Ab,
    /// Side 1 is (a), side 0 is (b).
    Ba,
}

impl PresentationOrder {
    /// Both orders, in the order in which answers are stored.
    pub const ALL: [PresentationOrder; 2] = [PresentationOrder::Ab, PresentationOrder::Ba];

    /// Returns the order's name in files.
    pub fn name(self) -> &'static str {
        match self {
            Self::Ab => "ab",
            Self::Ba => "ba",
        }
    }
}

/// Choice in an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Choice {
    /// Side shown as (a).
    A,
    /// Side shown as (b).
    B,
    /// Neither side. Models are not offered this choice.
    Tie,
}

impl Choice {
    /// Returns the chosen side; `None` for a tie.
    pub fn side(self, order: PresentationOrder) -> Option<usize> {
        match (self, order) {
            (Self::A, PresentationOrder::Ab) | (Self::B, PresentationOrder::Ba) => Some(0),
            (Self::B, PresentationOrder::Ab) | (Self::A, PresentationOrder::Ba) => Some(1),
            (Self::Tie, _) => None,
        }
    }
}

/// Verdict from the answers in both orders.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// Side 0 is better, in both orders.
    First,
    /// Side 1 is better, in both orders.
    Second,
    /// Both orders were answered, but not with the same side.
    Tie,
    /// At least one order has no answer.
    NoAnswer,
}

impl Verdict {
    /// Creates the verdict from the choices in the orders (a)(b) and (b)(a).
    pub fn from_answers(answers: [Option<Choice>; 2]) -> Self {
        let [Some(ab), Some(ba)] = answers else { return Self::NoAnswer };
        match (ab.side(PresentationOrder::Ab), ba.side(PresentationOrder::Ba)) {
            (Some(0), Some(0)) => Self::First,
            (Some(1), Some(1)) => Self::Second,
            _ => Self::Tie,
        }
    }

    /// Returns the better side; `None` where there is none.
    pub fn side(self) -> Option<usize> {
        match self {
            Self::First => Some(0),
            Self::Second => Some(1),
            Self::Tie | Self::NoAnswer => None,
        }
    }

    /// Returns the verdict with the sides exchanged.
    pub fn exchanged(self) -> Self {
        match self {
            Self::First => Self::Second,
            Self::Second => Self::First,
            other => other,
        }
    }
}

/// Returns whether there is a positional flip: the same letter in both orders.
pub fn is_flip(answers: [Option<Choice>; 2]) -> bool {
    matches!(answers, [Some(Choice::A), Some(Choice::A)] | [Some(Choice::B), Some(Choice::B)])
}

/// Question: a comparison in one order.
#[derive(Debug, Clone, Copy)]
pub struct Question<'a> {
    /// Comparison that the question is about.
    pub comparison: &'a Comparison,
    /// Order in which the sides are shown.
    pub order: PresentationOrder,
}

impl<'a> Question<'a> {
    /// Returns the side shown as (a).
    pub fn a(&self) -> &'a Side {
        &self.comparison.sides[usize::from(self.order == PresentationOrder::Ba)]
    }

    /// Returns the side shown as (b).
    pub fn b(&self) -> &'a Side {
        &self.comparison.sides[usize::from(self.order == PresentationOrder::Ab)]
    }

    /// Returns a key of the question's texts: 128 bits of SHA-256, in hexadecimal. The row's place in the file does not affect it.
    pub fn key(&self) -> String {
        let (a, b) = (self.a(), self.b());
        let asked = json!([self.comparison.mode, a.instruction, a.response, b.instruction, b.response]);
        hash(&asked.to_string())
    }

    /// Formats the row and the order: "rows.jsonl:3, order ba".
    pub fn place_and_order(&self) -> String {
        format!("{}, order {}", self.comparison.place, self.order.name())
    }

    /// Returns the question's texts, by the names that prompts and commands use.
    pub fn texts(&self) -> Vec<(&'static str, &'a str)> {
        let (a, b) = (self.a(), self.b());
        match self.comparison.mode {
            ComparisonKind::Single => {
                vec![("instruction", &a.instruction), ("response_a", &a.response), ("response_b", &b.response)]
            }
            ComparisonKind::Pair => vec![
                ("instruction_a", &a.instruction),
                ("response_a", &a.response),
                ("instruction_b", &b.instruction),
                ("response_b", &b.response),
            ],
        }
    }
}

/// Computes 128 bits of a text's SHA-256, in hexadecimal.
pub fn hash(text: &str) -> String {
    Sha256::digest(text).iter().take(16).map(|byte| format!("{byte:02x}")).collect()
}

/// Tokens that an answer cost, as counted by the judge.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// Number of tokens that the judge read.
    pub prompt_tokens: u64,
    /// Number of tokens that the judge wrote.
    pub completion_tokens: u64,
}

impl Usage {
    /// Adds the tokens of another answer.
    pub fn add(&mut self, other: Self) {
        self.prompt_tokens = self.prompt_tokens.saturating_add(other.prompt_tokens);
        self.completion_tokens = self.completion_tokens.saturating_add(other.completion_tokens);
    }
}

/// Answer of a judge to one question.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Answer {
    /// Choice; `None` where the text contains no verdict.
    pub choice: Option<Choice>,
    /// Text of the judge's answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text: Option<String>,
    /// Reason why there is no choice.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub no_verdict: Option<NoVerdict>,
    /// log π of "(a)" and "(b)", in nats.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub logps: Option<[f64; 2]>,
    /// Tokens that the answer cost.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub usage: Option<Usage>,
    /// Whether the answer ended by itself although it has the largest number of tokens. Without this field, a stored text of that length
    /// counts as cut.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub is_whole: bool,
}

impl From<Choice> for Answer {
    fn from(choice: Choice) -> Self {
        Self { choice: Some(choice), ..Self::default() }
    }
}

/// Largest number of characters of an answer that are shown.
const SHOWN: usize = 80;

impl Answer {
    /// Reads a text, which either ended by itself or was cut at the largest number of tokens.
    pub fn read(text: String, is_cut: bool) -> Self {
        let found = if is_cut { read_cut_verdict(&text) } else { read_verdict(&text) };
        Self { choice: found.ok(), no_verdict: found.err(), text: Some(text), ..Self::default() }
    }

    /// Creates an answer without a text that could be read.
    pub fn without_verdict(why: NoVerdict, text: Option<String>) -> Self {
        Self { no_verdict: Some(why), text, ..Self::default() }
    }

    /// Adds the tokens that the answer cost. `longest` is the largest number of tokens.
    #[must_use]
    pub fn with_usage(self, usage: Option<Usage>, longest: Option<u64>) -> Self {
        let answer = Self { usage, ..self };
        Self { is_whole: answer.is_full(longest) && answer.no_verdict != Some(NoVerdict::Cut), ..answer }
    }

    /// Returns the end of the text, where a verdict would be, in backquotes.
    pub fn end(&self) -> String {
        let text = self.text.as_deref().unwrap_or_default().trim();
        let from = text.char_indices().rev().nth(SHOWN).map(|(at, _)| at);
        from.map_or_else(|| format!("`{text}`"), |at| format!("`…{}`", text[at..].trim_start()))
    }

    /// Returns whether the answer has the largest number of tokens.
    fn is_full(&self, longest: Option<u64>) -> bool {
        self.usage.zip(longest).is_some_and(|(usage, most)| usage.completion_tokens >= most)
    }

    /// Reads the text of a stored answer anew. Returns whether its verdict has changed. Earlier versions did not store how a text ended, so
    /// a text with the largest number of tokens counts as cut.
    pub fn read_again(&mut self, longest: Option<u64>) -> bool {
        let before = self.choice;
        let is_cut = self.is_full(longest) && !self.is_whole;
        let found = match (&self.text, self.no_verdict) {
            (Some(text), None | Some(NoVerdict::Unclear)) if is_cut => read_cut_verdict(text),
            (Some(text), Some(NoVerdict::Cut)) => read_cut_verdict(text),
            (Some(text), None | Some(NoVerdict::Unclear)) => read_verdict(text),
            _ => return false,
        };
        (self.choice, self.no_verdict) = (found.ok(), found.err());
        self.choice != before
    }
}

/// Reply to a question.
#[derive(Debug, Clone, PartialEq)]
pub enum Reply {
    /// The judge answered.
    Answer(Answer),
    /// The judge gave no answer, for this reason. The question is not asked again in this run.
    Failed(String),
    /// The judge cannot answer, because the row is too long or of an unsupported kind.
    Unfit(String),
    /// The judge did not accept the question. The row is at fault if others are accepted, otherwise the judge is.
    Rejected(String),
    /// The question is asked again, for this reason in a word or two.
    Repeat(String),
    /// The judge's reply cannot be read as an answer. A further reply says what becomes of the question.
    Unread {
        /// Reason for which the answer cannot be read.
        reason: String,
        /// Tokens that the reply cost, where the judge reports them.
        usage: Option<Usage>,
    },
    /// Tokens were paid for without an answer. A further reply says what becomes of the question.
    Spent(Usage),
    /// Remark for the user. It does not affect the question.
    Noted(String),
    /// The answer was taken back.
    Undone,
}

/// Judge, which decides which of two sides is better.
pub trait Judge {
    /// Returns the judge's name, for tables and annotated rows.
    fn name(&self) -> &str;

    /// Describes everything that the judge's answers depend on. A run with another identity cannot continue with these answers. The
    /// identity contains no secret. Field `endpoint` may change, and `max_tokens` may grow.
    fn identity(&self) -> Value;

    /// Returns whether the judge gives the same answer when it is asked again, so that asking again is useless.
    fn is_deterministic(&self) -> bool {
        false
    }

    /// Returns whether answers are so costly that each one is synced to disk.
    fn is_costly(&self) -> bool {
        true
    }

    /// Asks the questions, in any order and several at a time where possible. Calls `tell` with each reply as soon as it is there, and the
    /// question's index. Once `stop` is set, no more questions are begun; replies to questions under way, which are paid for, are still
    /// passed to `tell`. There are no replies to questions that were never begun.
    ///
    /// # Errors
    /// Fails with an error that every further question would meet (such as a key that is refused), or with the first error that `tell`
    /// returned. No question is begun after the error.
    fn ask(
        &self,
        questions: &[Question<'_>],
        stop: &AtomicBool,
        tell: &mut dyn FnMut(usize, Reply) -> Result<()>,
    ) -> Result<()>;
}
