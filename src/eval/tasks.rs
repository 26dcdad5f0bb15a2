//! Tasks of the demo model: fifteen kinds, whose answers a program grades.
//!
//! A [`TaskItem`] is an instruction with its answer. Words are common ones or made-up ones ("the plural of brop"), and numbers are small,
//! so a model of a million parameters can learn the rules from about ten million tokens. The model is then *tuned* for the grader's
//! preference: a correct answer in one short sentence is better than the bare answer, which is better than a sloppy one, and all of these
//! are better than a wrong one ([`AnswerGrade`]). Supervised rows mix the four qualities in fixed proportions ([`rows::SFT_MIX`]), so
//! supervised training alone does not reach the best quality; preferences by the grader do.
//!
//! Training and held-out items are disjoint: a hash of an item's content (not of its wording, nor of the order of listed things) determines
//! its [`DataSplit`]. Everything is determined by a seed.

mod answers;
mod grade;
mod kinds;
mod read;
pub mod rows;
pub mod tokenizer;
pub mod untrained_model;
pub mod words;

pub use answers::{AnswerQuality, answer};
pub use grade::{AnswerForm, AnswerGrade, WinRate, grade, win_rate};
pub use read::read;

use crate::rng::Rng;
use serde::{Deserialize, Serialize};

/// Kind of a task. [`TaskKind::ALL`] lists them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TaskKind {
    /// "Spell the word fox." f-o-x
    Spell,
    /// "How many letters are in fox?" 3
    Count,
    /// "What is the last letter of fox?" x
    Letter,
    /// "Sort the digits 7 2 5." 2 5 7
    Sort,
    /// "What is 27 plus 5?" 32
    Add,
    /// "Subtract 5 from 27." 22
    Subtract,
    /// "Which is the largest of 12, 47 and 30?" 47
    Extreme,
    /// "Which word is second in fox, sun, hat?" sun
    Pick,
    /// "Which is the odd one out: b k 7 d?" 7
    Odd,
    /// "What is the plural of fox?" foxes
    Plural,
    /// "Write the past tense of carry." carried
    Past,
    /// "Repeat fox three times." fox fox fox
    Repeat,
    /// "Write fox in capitals." FOX
    Capitals,
    /// "Write fox backwards." xof
    Reverse,
    /// "Say politely: open the door." please open the door
    Polite,
}

impl TaskKind {
    /// All kinds.
    pub const ALL: [TaskKind; 15] = [
        TaskKind::Spell,
        TaskKind::Count,
        TaskKind::Letter,
        TaskKind::Sort,
        TaskKind::Add,
        TaskKind::Subtract,
        TaskKind::Extreme,
        TaskKind::Pick,
        TaskKind::Odd,
        TaskKind::Plural,
        TaskKind::Past,
        TaskKind::Repeat,
        TaskKind::Capitals,
        TaskKind::Reverse,
        TaskKind::Polite,
    ];

    /// Returns the kind's name in the rows, such as `spell`.
    pub fn name(self) -> &'static str {
        match self {
            TaskKind::Spell => "spell",
            TaskKind::Count => "count",
            TaskKind::Letter => "letter",
            TaskKind::Sort => "sort",
            TaskKind::Add => "add",
            TaskKind::Subtract => "subtract",
            TaskKind::Extreme => "extreme",
            TaskKind::Pick => "pick",
            TaskKind::Odd => "odd",
            TaskKind::Plural => "plural",
            TaskKind::Past => "past",
            TaskKind::Repeat => "repeat",
            TaskKind::Capitals => "capitals",
            TaskKind::Reverse => "reverse",
            TaskKind::Polite => "polite",
        }
    }

    /// Returns the kind's share of the rows: kinds that need more practice occur twice as often.
    pub fn weight(self) -> u32 {
        match self {
            TaskKind::Add | TaskKind::Subtract | TaskKind::Count | TaskKind::Sort | TaskKind::Extreme => 2,
            _ => 1,
        }
    }

    fn draw(rng: &mut Rng) -> Self {
        let mut ticket = rng.below(Self::ALL.iter().map(|k| k.weight()).sum());
        for kind in Self::ALL {
            match ticket.checked_sub(kind.weight()) {
                Some(rest) => ticket = rest,
                None => return kind,
            }
        }
        unreachable!("the ticket is below the sum of weights")
    }
}

/// Split of the items. A tenth of all contents is held out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DataSplit {
    /// Items for supervised rows and preferences.
    Train,
    /// Items for evaluation only.
    HeldOut,
}

/// Task item. Its JSON is a row of held-out prompts: `{instruction, gold_response}` of PAPER section 5, with two more fields.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskItem {
    /// Instruction of the task.
    pub instruction: String,
    /// Gold response: one sentence around [`TaskItem::answer`].
    #[serde(rename = "gold_response")]
    pub gold: String,
    /// Kind of the task.
    pub kind: TaskKind,
    /// Bare answer.
    pub answer: String,
    /// Content of the item apart from its wording. It determines the split.
    #[serde(skip)]
    content: String,
    /// Plausible wrong answers; may be empty.
    #[serde(skip)]
    wrong: Vec<String>,
}

impl TaskItem {
    /// Returns the parts of the gold sentence before and after the bare answer.
    fn frame(&self) -> (&str, &str) {
        match self.gold.rfind(&self.answer) {
            Some(at) => (&self.gold[..at], &self.gold[at + self.answer.len()..]),
            None => (&self.gold, ""),
        }
    }

    /// Returns the split that this item belongs to.
    pub fn split(&self) -> DataSplit {
        if hash(self.kind.name(), &self.content).is_multiple_of(10) { DataSplit::HeldOut } else { DataSplit::Train }
    }
}

/// Generates a random item of a split, whose kind is drawn by [`TaskKind::weight`].
pub fn generate(split: DataSplit, rng: &mut Rng) -> TaskItem {
    generate_kind(TaskKind::draw(rng), split, rng)
}

/// Generates a random item of a kind.
pub fn generate_kind(kind: TaskKind, split: DataSplit, rng: &mut Rng) -> TaskItem {
    loop {
        let item = kinds::draw(kind, rng);
        if item.split() == split {
            return item;
        }
    }
}

/// Computes FNV-1a with a final mix, so that its remainders are evenly distributed.
fn hash(kind: &str, content: &str) -> u64 {
    let mut h = 0xcbf2_9ce4_8422_2325_u64;
    for byte in kind.bytes().chain([0]).chain(content.bytes()) {
        h = (h ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3);
    }
    h ^= h >> 33;
    h = h.wrapping_mul(0xff51_afd7_ed55_8ccd);
    h ^ h >> 33
}
