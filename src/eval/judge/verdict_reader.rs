//! Reader of the verdict in a judge's answer. It serves endpoints, programs and local models that generate text.
//!
//! Thoughts are removed (`thoughts`), decoration is removed (`plain`), and the rest is read sentence by sentence from its end
//! (`statement`). The last verdict counts if nothing after it takes it back, and no other verdict contradicts it. A grammar of verdicts
//! decides, never the letters that occur: a sentence that the grammar does not know has no statement. An uncertain answer is therefore no
//! verdict: the row is lost, but not reversed.

#[cfg(test)]
mod cases;
mod json;
mod plain;
mod statement;
#[cfg(test)]
mod tests;
mod thoughts;
mod words;

pub use thoughts::opens_thoughts;

use serde::{Deserialize, Serialize};

use super::Choice;
use statement::tokens::{StatementToken, tokens};
use statement::{
    StatementForm, VerdictStatement, asks_for_verdict, dangles, introduces, is_doubt, is_label, is_quiet, is_title,
    may_turn, statement,
};

/// Reason why an answer has no verdict.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NoVerdict {
    /// The answer was cut at the largest number of tokens, or ends inside its thoughts.
    Cut,
    /// The answer has no text, or only thoughts.
    Empty,
    /// The model refused to answer.
    Refusal,
    /// The model called a tool instead of answering.
    ToolCall,
    /// The endpoint ended the answer for a reason of its own, such as a content filter.
    Stopped,
    /// The text states no verdict, or not with certainty.
    Unclear,
}

impl NoVerdict {
    /// Describes the reason, for messages.
    pub fn told(self) -> &'static str {
        match self {
            Self::Cut => "cut off before a verdict",
            Self::Empty => "no text",
            Self::Refusal => "a refusal",
            Self::ToolCall => "a tool call",
            Self::Stopped => "ended by the endpoint",
            Self::Unclear => "no clear verdict",
        }
    }
}

/// Number of bytes at the end of an answer that are read. The verdict is there, and reading the text before it takes time.
const MOST_BYTES: usize = 256 << 10;

/// Largest length of a line, in bytes, that may continue in the next line.
const MOST_JOINED: usize = 500;

/// Reads an answer that ended by itself.
///
/// # Errors
/// The reason why there is no verdict.
pub fn read_verdict(text: &str) -> Result<Choice, NoVerdict> {
    let whole = text.replace("&lt;", "<").replace("&gt;", ">").replace("&quot;", "\"");
    let answer = thoughts::without_thoughts(&whole).ok_or(NoVerdict::Cut)?;
    let answer = plain::without_special_tokens(answer);
    let from = (answer.len().saturating_sub(MOST_BYTES)..answer.len()).find(|&at| answer.is_char_boundary(at));
    let answer = &answer[from.unwrap_or(0)..];
    if answer.trim().is_empty() {
        return Err(NoVerdict::Empty);
    }
    if writes_response(answer) {
        return Err(NoVerdict::Unclear);
    }
    decide(&units(answer)).ok_or(NoVerdict::Unclear)
}

/// Returns whether a judge continues the prompt instead of judging: with a line "Output (a):", followed by a response that may contain
/// anything. Where both sides have such a line, or list items follow, the lines are headings over statements about the sides.
fn writes_response(answer: &str) -> bool {
    let text = plain::plain(answer);
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    let lines: Vec<(&str, Vec<StatementToken>)> = lines.map(|line| (line, tokens(line))).collect();
    let is_labelled = |side: Choice| {
        let label = [StatementToken::Side(side), StatementToken::Colon];
        lines.iter().any(|(_, tokens)| tokens.windows(2).any(|pair| pair == label))
    };
    let begins = |sentence: &str| matches!(tokens(sentence)[..], [StatementToken::Side(_), StatementToken::Colon, ..]);
    let goes_on =
        |pair: &[(&str, Vec<StatementToken>)]| split(pair[0].0).into_iter().any(begins) && !is_item(pair[1].0);
    is_labelled(Choice::A) != is_labelled(Choice::B) && lines.windows(2).any(goes_on)
}

/// Returns whether a line is a list item.
fn is_item(line: &str) -> bool {
    let digits = line.trim_start_matches(|c: char| c.is_ascii_digit());
    let is_numbered = digits.len() < line.len() && (digits.starts_with(". ") || digits.starts_with(") "));
    is_numbered || ["- ", "* ", "+ ", "• "].iter().any(|bullet| line.starts_with(bullet))
}

/// Reads an answer that was cut at the largest number of tokens. Only a complete JSON object is a verdict, because servers that enforce
/// JSON may write white space behind it until the limit. Any other text might have continued with the opposite.
///
/// # Errors
/// [`NoVerdict::Cut`], where there is no complete object.
pub fn read_cut_verdict(text: &str) -> Result<Choice, NoVerdict> {
    let answer = thoughts::without_thoughts(text).ok_or(NoVerdict::Cut)?;
    json::whole(answer.trim()).ok_or(NoVerdict::Cut)
}

/// Sentence or JSON object of an answer, with its position.
#[derive(Debug)]
struct AnswerUnit {
    tokens: Vec<StatementToken>,
    said: VerdictStatement,
    /// Whether a full stop or similar character ends the sentence.
    is_finished: bool,
    /// Whether the line begins with `#`.
    is_heading: bool,
    /// Whether the line is a list item.
    is_item: bool,
    /// Whether an empty line precedes it.
    is_paragraph: bool,
}

impl AnswerUnit {
    fn choice(&self) -> Option<Choice> {
        match self.said {
            VerdictStatement::Verdict(choice, _) => Some(choice),
            VerdictStatement::Against(_) | VerdictStatement::Nothing => None,
        }
    }

    fn has_doubt(&self) -> bool {
        self.tokens.iter().any(|token| matches!(token, StatementToken::Word(word) if is_doubt(word) && word != "both"))
    }

    /// Returns whether the unit is, or may be, the title of a text about the worse side: "Worse output". Items of a list of faults are not
    /// titles.
    fn may_deny(&self) -> bool {
        !self.is_finished && self.has_doubt() && (!self.is_item || is_title(&self.tokens, true))
    }

    fn is_bare(&self) -> bool {
        matches!(self.said, VerdictStatement::Verdict(_, StatementForm::Bare))
    }
}

/// Splits an answer into JSON objects and sentences.
fn units(answer: &str) -> Vec<AnswerUnit> {
    let mut all = Vec::new();
    // Whether the next object is on the same line as the text before it.
    let mut is_inline = false;
    for piece in json::pieces(answer) {
        match piece {
            json::JsonPiece::Text(text) => {
                let text = plain::plain(text);
                let line = text.rsplit('\n').next().unwrap_or_default().trim();
                is_inline = !line.starts_with("```") && !tokens(line).is_empty();
                sentences(&text, &mut all);
            }
            json::JsonPiece::Object(verdict) => {
                // Such as "I would not say {...}".
                let begun = all.last().filter(|unit| !unit.is_finished && (is_inline || dangles(&unit.tokens)));
                let said = match verdict {
                    Some(choice) if begun.is_none_or(|unit: &AnswerUnit| introduces(&unit.tokens, choice)) => {
                        VerdictStatement::Verdict(choice, StatementForm::Marked)
                    }
                    _ => VerdictStatement::Nothing,
                };
                let tokens = vec![StatementToken::Mark(verdict)];
                all.push(AnswerUnit {
                    tokens,
                    said,
                    is_finished: true,
                    is_heading: false,
                    is_item: false,
                    is_paragraph: true,
                });
            }
        }
    }
    all
}

/// Adds a text's sentences. A sentence ends with its line, unless the line ends with a colon or is a label of the next one.
fn sentences(text: &str, all: &mut Vec<AnswerUnit>) {
    let mut begun = String::new();
    let mut is_paragraph = true;
    for line in text.lines() {
        let trimmed = line.trim();
        if trimmed.is_empty() {
            is_paragraph = true;
            continue;
        }
        // Skips code fences with a language's name, and horizontal rules.
        let is_fence = trimmed.strip_prefix("```").is_some_and(|name| name.chars().all(char::is_alphanumeric));
        if is_fence || trimmed.chars().all(|c| "-*_=# ".contains(c)) {
            continue;
        }
        if trimmed.starts_with('#') && !begun.is_empty() {
            push(&std::mem::take(&mut begun), AnswerLine { is_item: false, is_paragraph }, all);
        }
        let is_item = is_item(trimmed);
        let bullet =
            if begun.is_empty() { None } else { ["- ", "> ", "* ", "+ "].iter().find_map(|b| trimmed.strip_prefix(b)) };
        let mut parts = split(bullet.unwrap_or(trimmed).trim());
        let last = parts.pop().unwrap_or_default();
        for part in parts {
            let line = AnswerLine { is_item, is_paragraph: std::mem::take(&mut is_paragraph) };
            push(&(std::mem::take(&mut begun) + part), line, all);
        }
        let whole = std::mem::take(&mut begun) + last;
        let found = tokens(&whole);
        let is_open = found.last() == Some(&StatementToken::Colon);
        if whole.len() < MOST_JOINED && (is_open || is_label(&found) && !is_finished(&whole)) {
            begun = whole + if is_open { " " } else { ": " };
            continue;
        }
        push(&whole, AnswerLine { is_item, is_paragraph: std::mem::take(&mut is_paragraph) }, all);
    }
    if !begun.is_empty() {
        push(&begun, AnswerLine { is_item: false, is_paragraph }, all);
    }
}

/// Properties of a sentence's line, for its [`AnswerUnit`].
#[derive(Debug, Clone, Copy)]
struct AnswerLine {
    is_item: bool,
    is_paragraph: bool,
}

fn push(sentence: &str, line: AnswerLine, all: &mut Vec<AnswerUnit>) {
    let tokens = tokens(sentence);
    if tokens.is_empty() {
        return;
    }
    let said = statement(&tokens);
    let AnswerLine { is_item, is_paragraph } = line;
    let is_heading = sentence.trim_start().starts_with('#');
    all.push(AnswerUnit { said, tokens, is_finished: is_finished(sentence), is_heading, is_item, is_paragraph });
}

/// Returns whether a sentence has its full stop.
fn is_finished(sentence: &str) -> bool {
    sentence.trim_end_matches(|c: char| "*_`\"')]".contains(c) || c.is_whitespace()).ends_with(['.', '!', '?'])
}

/// Splits a line behind full stops, except those of abbreviations, list numbers and ellipses.
fn split(line: &str) -> Vec<&str> {
    let mut parts = Vec::new();
    let mut start = 0;
    let chars: Vec<(usize, char)> = line.char_indices().collect();
    for (i, &(at, c)) in chars.iter().enumerate() {
        if !matches!(c, '.' | '!' | '?') || at < start {
            continue;
        }
        let closing = chars[i + 1..].iter().take_while(|(_, c)| "*_`\"')!?".contains(*c)).count();
        let Some(&(next, _)) = chars.get(i + 1 + closing).filter(|(_, c)| *c == ' ') else { continue };
        let before = line[start..at].trim_end_matches(['*', '_', '`', '"', '\'']);
        let word = before.rsplit(|c: char| !c.is_alphanumeric()).next().unwrap_or_default();
        let is_listed = line[..at].trim_start_matches(|c: char| !c.is_alphanumeric()) == word && word.len() <= 2;
        let is_short = c == '.' && word.len() <= 2 && !matches!(word, "a" | "b" | "A" | "B") && !word.is_empty();
        let is_abbreviation = c == '.' && ["etc", "resp", "viz", "approx", "incl"].contains(&word);
        let is_ellipsis = before.ends_with('.') || chars.get(i + 1).is_some_and(|(_, c)| *c == '.');
        if !(is_listed && !word.is_empty() || is_short || is_abbreviation || is_ellipsis) {
            parts.push(&line[start..next]);
            start = next;
        }
    }
    parts.push(&line[start..]);
    parts
}

/// Returns the last verdict, if it is certain.
fn decide(units: &[AnswerUnit]) -> Option<Choice> {
    // A heading that names a side introduces a text about the side, unless nothing follows.
    let is_heading = |unit: &AnswerUnit| unit.is_heading && unit.is_bare();
    let ends_with_heading = units.last().is_some_and(is_heading);
    let counts = |i: usize| stands(units, i) && (ends_with_heading || !is_heading(&units[i]));
    let said: Vec<VerdictStatement> =
        (0..units.len()).map(|i| if counts(i) { units[i].said } else { VerdictStatement::Nothing }).collect();
    let last = said.iter().rposition(|said| matches!(said, VerdictStatement::Verdict(..)))?;
    let choice = units[last].choice()?;
    let agrees = |said: &VerdictStatement| match said {
        VerdictStatement::Verdict(other, _) => *other == choice,
        VerdictStatement::Against(other) => *other != choice,
        VerdictStatement::Nothing => true,
    };
    let is_kept = units[last + 1..].iter().all(|unit| is_quiet(&unit.tokens, choice));
    (said.iter().all(agrees) && is_kept).then_some(choice)
}

/// Returns whether a unit may be read on its own. The unit before it may ask the opposite question, or may be the beginning of the same
/// sentence.
fn stands(units: &[AnswerUnit], i: usize) -> bool {
    let Some(before) = i.checked_sub(1).map(|before| &units[before]) else { return true };
    if before.choice().is_some() {
        return true;
    }
    if before.tokens.contains(&StatementToken::Question) {
        return asks_for_verdict(&before.tokens);
    }
    if let VerdictStatement::Verdict(choice, StatementForm::Marked) = units[i].said {
        // "The loser is\n[[A]]", "The answer that breaks the rule is\n[[A]]".
        let goes_on = !before.is_finished && dangles(&before.tokens) && !introduces(&before.tokens, choice);
        return !goes_on && !before.may_deny();
    }
    // "Runner-up\n\n(b)".
    if units[i].is_bare() && !before.is_finished && !is_title(&before.tokens, false) {
        return false;
    }
    let goes_on = !before.is_finished && !units[i].is_paragraph;
    !goes_on && !may_turn(&before.tokens, before.is_finished)
}
