//! Reads the verdict in a judge's answer: the one reader for endpoints, programs and local models that generate.
//!
//! Thoughts are set aside ([`thoughts`]), decoration is taken off ([`plain`]), and what is left is read sentence by sentence from its end
//! ([`statement`]). The last verdict counts where nothing after it takes it back and no other verdict contradicts it. Everything is read
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
use statement::{Form, Statement, Token, asks_for_verdict, is_doubt, is_label, is_quiet, may_turn, statement, tokens};

/// Why an answer has no verdict.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NoVerdict {
    /// It was cut at the longest length, or ends within its thoughts.
    Cut,
    /// It has no text: thoughts alone, or nothing.
    Empty,
    /// The model refused to answer.
    Refusal,
    /// A call of a tool, instead of an answer.
    ToolCall,
    /// The endpoint ended it for a reason of its own, such as a content filter.
    Stopped,
    /// Its text does not say, or not for certain.
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
/// Why there is no verdict.
pub fn read_verdict(text: &str) -> Result<Choice, NoVerdict> {
    let whole = text.replace("&lt;", "<").replace("&gt;", ">").replace("&quot;", "\"");
    let answer = thoughts::without_thoughts(&whole).ok_or(NoVerdict::Cut)?;
    let answer = plain::without_special_tokens(answer);
    let from = (answer.len().saturating_sub(MOST_BYTES)..answer.len()).find(|&at| answer.is_char_boundary(at));
    let answer = &answer[from.unwrap_or(0)..];
    if answer.trim().is_empty() {
        return Err(NoVerdict::Empty);
    }
    decide(&units(answer)).ok_or(NoVerdict::Unclear)
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
struct Unit {
    tokens: Vec<Token>,
    said: Statement,
    /// A full stop or the like ends it.
    is_finished: bool,
    /// A line of its own that begins with `#`.
    is_heading: bool,
    /// An empty line is before it.
    is_paragraph: bool,
}

impl Unit {
    fn choice(&self) -> Option<Choice> {
        match self.said {
            Statement::Verdict(choice, _) => Some(choice),
            Statement::Against(_) | Statement::Nothing => None,
        }
    }

    fn has_doubt(&self) -> bool {
        self.tokens.iter().any(|token| matches!(token, Token::Word(word) if is_doubt(word)))
    }

    fn is_bare(&self) -> bool {
        matches!(self.said, Statement::Verdict(_, Form::Bare))
    }
}

/// Splits an answer into objects of JSON and sentences.
fn units(answer: &str) -> Vec<Unit> {
    let mut all = Vec::new();
    for piece in json::pieces(answer) {
        match piece {
            json::Piece::Text(text) => sentences(&plain::plain(text), &mut all),
            json::Piece::Object(verdict) => {
                // "I would not say {...}".
                let turned = all.last().is_some_and(|unit: &Unit| !unit.is_finished && unit.has_doubt());
                let said = match verdict.filter(|_| !turned) {
                    Some(choice) => Statement::Verdict(choice, Form::Marked),
                    None => Statement::Nothing,
                };
                let tokens = vec![Token::Mark(verdict)];
                all.push(Unit { tokens, said, is_finished: true, is_heading: false, is_paragraph: true });
            }
        }
    }
    all
}

/// Adds a text's sentences. A line ends one, unless it ends with a colon or names what follows.
fn sentences(text: &str, all: &mut Vec<Unit>) {
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
        let is_heading = trimmed.starts_with('#');
        if is_heading && !begun.is_empty() {
            push(&std::mem::take(&mut begun), false, is_paragraph, all);
        }
        let bullet =
            if begun.is_empty() { None } else { ["- ", "> ", "* ", "+ "].iter().find_map(|b| trimmed.strip_prefix(b)) };
        let mut parts = split(bullet.unwrap_or(trimmed).trim());
        let last = parts.pop().unwrap_or_default();
        for part in parts {
            push(&(std::mem::take(&mut begun) + part), false, std::mem::take(&mut is_paragraph), all);
        }
        let whole = std::mem::take(&mut begun) + last;
        let found = tokens(&whole);
        let is_open = found.last() == Some(&Token::Colon);
        if whole.len() < MOST_JOINED && (is_open || is_label(&found) && !is_finished(&whole)) {
            begun = whole + if is_open { " " } else { ": " };
            continue;
        }
        push(&whole, is_heading, std::mem::take(&mut is_paragraph), all);
    }
    if !begun.is_empty() {
        push(&begun, false, is_paragraph, all);
    }
}

fn push(sentence: &str, is_heading: bool, is_paragraph: bool, all: &mut Vec<Unit>) {
    let tokens = tokens(sentence);
    if tokens.is_empty() {
        return;
    }
    let said = statement(&tokens);
    all.push(Unit { said, tokens, is_finished: is_finished(sentence), is_heading, is_paragraph });
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
fn decide(units: &[Unit]) -> Option<Choice> {
    let said: Vec<Statement> =
        (0..units.len()).map(|i| if stands(units, i) { units[i].said } else { Statement::Nothing }).collect();
    let last = said.iter().rposition(|said| matches!(said, Statement::Verdict(..)))?;
    let choice = units[last].choice()?;
    let all_bare = units[last].is_heading && units[last].is_bare();
    let agrees = |(i, said): (usize, &Statement)| match said {
        // A heading over what is said of a side.
        Statement::Verdict(_, Form::Bare) if units[i].is_heading && i != last && !all_bare => true,
        Statement::Verdict(other, _) => *other == choice,
        Statement::Against(other) => *other != choice,
        Statement::Nothing => true,
    };
    let is_kept = units[last + 1..].iter().all(|unit| is_quiet(&unit.tokens, choice));
    (said.iter().enumerate().all(agrees) && is_kept).then_some(choice)
}

/// Whether a unit means what it says alone: what is before it may ask the opposite question, or be the beginning of its sentence.
fn stands(units: &[Unit], i: usize) -> bool {
    let Some(before) = i.checked_sub(1).map(|before| &units[before]) else { return true };
    // "The loser is\n[[A]]".
    if units[i].tokens.first().is_some_and(|token| matches!(token, Token::Mark(_)))
        && !before.is_finished
        && before.has_doubt()
    {
        return false;
    }
    if matches!(units[i].said, Statement::Verdict(_, Form::Marked)) || before.choice().is_some() {
        return true;
    }
    if before.tokens.contains(&Token::Question) {
        return asks_for_verdict(&before.tokens);
    }
    let goes_on = !before.is_finished && !units[i].is_paragraph;
    !goes_on && !may_turn(&before.tokens, before.is_finished)
}
