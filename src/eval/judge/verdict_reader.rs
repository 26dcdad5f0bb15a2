//! Reads the verdict in a judge's answer: the one reader for endpoints, programs and local models that generate.
//!
//! Thoughts are set aside (`thoughts`), decoration is taken off (`plain`), and what is left is read sentence by sentence from its end
//! (`statement`). The last verdict counts where nothing after it takes it back and no other verdict contradicts it. Everything is read
//! by a grammar of what verdicts look like, never by which letters occur: a sentence that the grammar does not know says nothing. So what is
//! not certain is no answer, and a row is left out rather than turned around.

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

/// Reason for which an answer has no verdict.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NoVerdict {
    /// The answer was cut at the longest length, or ends within its thoughts.
    Cut,
    /// The answer has no text: thoughts alone, or nothing.
    Empty,
    /// The model refused to answer.
    Refusal,
    /// A call of a tool, instead of an answer.
    ToolCall,
    /// The endpoint ended it for a reason of its own, such as a content filter.
    Stopped,
    /// The text does not say, or not for certain.
    Unclear,
}

impl NoVerdict {
    /// Describes it, for messages.
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

/// Bytes at an answer's end that are read: a verdict is there, and the reader takes time for what is before it.
const MOST_BYTES: usize = 256 << 10;

/// Bytes of a line that goes on in the next.
const MOST_JOINED: usize = 500;

/// Reads an answer that ended by itself.
///
/// # Errors
/// Reason for which there is no verdict.
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

/// Tells whether a judge goes on with the prompt instead of judging: a line "Output (a):" and a response behind it, which may say anything. Where both
/// sides stand so, or points follow, something is said of them.
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

/// Tells whether a line is an item of a list.
fn is_item(line: &str) -> bool {
    let digits = line.trim_start_matches(|c: char| c.is_ascii_digit());
    let is_numbered = digits.len() < line.len() && (digits.starts_with(". ") || digits.starts_with(") "));
    is_numbered || ["- ", "* ", "+ ", "• "].iter().any(|bullet| line.starts_with(bullet))
}

/// Reads an answer that was cut at the longest length: only a whole JSON object is a verdict, because servers that enforce JSON may write white
/// space behind it for ever. Any other text might have gone on to say the opposite.
///
/// # Errors
/// [`NoVerdict::Cut`].
pub fn read_cut_verdict(text: &str) -> Result<Choice, NoVerdict> {
    let answer = thoughts::without_thoughts(text).ok_or(NoVerdict::Cut)?;
    json::whole(answer.trim()).ok_or(NoVerdict::Cut)
}

/// A sentence, or an object of JSON, and where it stands.
#[derive(Debug)]
struct AnswerUnit {
    tokens: Vec<StatementToken>,
    said: VerdictStatement,
    /// A full stop or the like ends it.
    is_finished: bool,
    /// The line begins with `#`.
    is_heading: bool,
    /// An item of a list.
    is_item: bool,
    /// An empty line is before it.
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

    /// Whether it is, or may be, the title of what is not the better one: "Worse output", but no item of a list of faults.
    fn may_deny(&self) -> bool {
        !self.is_finished && self.has_doubt() && (!self.is_item || is_title(&self.tokens, true))
    }

    fn is_bare(&self) -> bool {
        matches!(self.said, VerdictStatement::Verdict(_, StatementForm::Bare))
    }
}

/// Splits an answer into objects of JSON and sentences.
fn units(answer: &str) -> Vec<AnswerUnit> {
    let mut all = Vec::new();
    // The object stands in the line of what is before it.
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
                // "I would not say {...}".
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

/// Adds a text's sentences. A line ends one, unless it ends with a colon or names what follows.
fn sentences(text: &str, all: &mut Vec<AnswerUnit>) {
    let mut begun = String::new();
    let mut is_paragraph = true;
    for line in text.lines() {
        let trimmed = line.trim();
        if trimmed.is_empty() {
            is_paragraph = true;
            continue;
        }
        // Fences of code with the language's name, and rules.
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

/// The line that a sentence stands in, as [`AnswerUnit`] has it.
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

/// Whether a sentence has its full stop.
fn is_finished(sentence: &str) -> bool {
    sentence.trim_end_matches(|c: char| "*_`\"')]".contains(c) || c.is_whitespace()).ends_with(['.', '!', '?'])
}

/// Splits a line behind full stops, which are no abbreviations, numbers of a list, or ellipses.
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

/// The last verdict, if it is certain.
fn decide(units: &[AnswerUnit]) -> Option<Choice> {
    // A heading is over what is said of a side, unless nothing follows.
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

/// Whether a unit means what it says alone: what is before it may ask the opposite question, or be the beginning of its sentence.
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
