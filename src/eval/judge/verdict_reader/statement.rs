//! Grammar of verdicts: decides which sentences say that one of (a) and (b) is better. A sentence with a word that the grammar does not
//! know has no statement. No negation, condition or comparison that its author did not think of is therefore taken for a verdict.

pub(super) mod tokens;

use self::tokens::{StatementToken, sides, tokens, words};
use super::words::{
    BETTER, CLOSING, DECIDES, DOUBTS, FOREIGN, GROUNDS, INTRODUCES, LABELS, LEADS, NOUNS, PREDICATE, REASONS, SAYS,
    TIE, TIED, VERBS, has,
};
use crate::eval::judge::Choice;

/// Statement of a sentence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum VerdictStatement {
    /// A verdict.
    Verdict(Choice, StatementForm),
    /// The statement that this side is not the better one.
    Against(Choice),
    /// No statement about the better side.
    Nothing,
}

/// Form of a verdict.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StatementForm {
    /// Only the side, without a word about it: `(a)`, `Output (b)`, `Evaluation of (a)`.
    Bare,
    /// A sentence: "Output (a) is better".
    Sentence,
    /// The side behind a label, `Answer: (a)`, or in a marker of a final answer, `[[A]]`.
    Marked,
}

/// Phrases that do not change a statement.
const PHRASES: &[&[&str]] = &[
    &["in", "my", "opinion"],
    &["in", "my", "view"],
    &["in", "my", "judgment"],
    &["in", "conclusion"],
    &["in", "summary"],
    &["in", "short"],
    &["in", "the", "end"],
    &["on", "balance"],
    &["on", "the", "whole"],
    &["all", "things", "considered"],
    &["than", "the", "other", "one"],
    &["than", "the", "other", "output"],
    &["than", "the", "other", "response"],
    &["than", "the", "other"],
    &["to", "the", "instruction"],
    &["to", "its", "instruction"],
    &["to", "its", "own", "instruction"],
    &["that", "answers", "its", "own", "instruction"],
];

/// Returns whether a word may reverse a verdict, or cast doubt on it.
pub fn is_doubt(word: &str) -> bool {
    has(DOUBTS, word) || word.ends_with("n't")
}

/// Returns whether a word may stand before a side without changing the meaning.
pub fn is_lead(word: &str) -> bool {
    has(LEADS, word) || has(NOUNS, word) || has(LABELS, word) || has(FOREIGN, word)
}

/// Returns the verdict in a marker, which must contain only a statement or a ranking.
pub fn inside(text: &str) -> Option<Choice> {
    let ranking: String = text.chars().filter(|c| !c.is_whitespace()).collect::<String>().to_uppercase();
    match ranking.as_str() {
        "A>B" | "A>>B" => return Some(Choice::A),
        "B>A" | "B>>A" => return Some(Choice::B),
        "A=B" | "B=A" => return Some(Choice::Tie),
        _ => {}
    }
    match statement(&tokens(text)) {
        VerdictStatement::Verdict(choice, _) => Some(choice),
        VerdictStatement::Against(_) | VerdictStatement::Nothing => None,
    }
}

/// Criteria that the default prompts ask for. A comparison by all of them is a verdict; one by some of them is not.
const CRITERIA: [&str; 3] = ["accuracy", "coherence", "harmlessness"];

/// Removes "in terms of accuracy, coherence and harmlessness" from the end.
fn without_criteria(tokens: &[StatementToken]) -> &[StatementToken] {
    let is_criterion = |token: &StatementToken| match token {
        StatementToken::Comma => true,
        StatementToken::Word(word) => word == "and" || CRITERIA.contains(&word.as_str()),
        _ => false,
    };
    let from = tokens.len() - tokens.iter().rev().take_while(|token| is_criterion(token)).count();
    let (before, listed) = tokens.split_at(from);
    let are_all = CRITERIA.iter().all(|criterion| words(listed).any(|word| word == *criterion));
    let leads = [&["in", "terms", "of"][..], &["in"]].into_iter().find(|lead| {
        let end = before.len().checked_sub(lead.len()).map(|at| &before[at..]);
        end.is_some_and(|end| end.iter().map(StatementToken::word).eq(lead.iter().map(|word| Some(*word))))
    });
    match leads {
        Some(lead) if are_all => &before[..before.len() - lead.len()],
        _ => tokens,
    }
}

/// Removes the phrases [`PHRASES`].
fn without_phrases(tokens: &[StatementToken]) -> Vec<StatementToken> {
    let mut out: Vec<StatementToken> = Vec::with_capacity(tokens.len());
    let mut i = 0;
    while i < tokens.len() {
        let is_here = |phrase: &&&[&str]| {
            let here = tokens[i..].iter().map(StatementToken::word);
            phrase.len() <= tokens.len() - i && here.zip(phrase.iter()).all(|(word, expected)| word == Some(*expected))
        };
        match PHRASES.iter().find(is_here) {
            Some(phrase) => i += phrase.len(),
            None => {
                out.push(tokens[i].clone());
                i += 1;
            }
        }
    }
    out
}

/// Returns the statement of a sentence.
pub fn statement(tokens: &[StatementToken]) -> VerdictStatement {
    if tokens.contains(&StatementToken::Question) {
        return VerdictStatement::Nothing;
    }
    let tokens = without_phrases(without_criteria(tokens));
    if let Some(at) = tokens.iter().position(|token| matches!(token, StatementToken::Mark(_))) {
        return of_mark(&tokens, at);
    }
    // A), as in multiple-choice tests.
    if let [StatementToken::Side(side), StatementToken::Other(')')] = tokens[..] {
        return VerdictStatement::Verdict(side, StatementForm::Bare);
    }
    let first_side = tokens.iter().position(|token| matches!(token, StatementToken::Side(_))).unwrap_or(tokens.len());
    let is_reason = |(i, token): (usize, &StatementToken)| {
        let next = tokens.get(i + 1).and_then(StatementToken::word);
        match token.word() {
            Some("because" | "since" | "due") => true,
            Some("as") => matches!(next, Some("it" | "its" | "it's")),
            _ => false,
        }
    };
    let reason =
        tokens.iter().enumerate().skip(first_side).find(|found| is_reason(*found)).map_or(tokens.len(), |(i, _)| i);
    let (said, reason) = tokens.split_at(reason);
    let found = of_clauses(said);
    match found {
        VerdictStatement::Verdict(choice, _) if !explains(reason, choice) => VerdictStatement::Nothing,
        found => found,
    }
}

/// Returns the statement of a sentence with a marker of a final answer.
fn of_mark(tokens: &[StatementToken], at: usize) -> VerdictStatement {
    let (before, after) = (&tokens[..at], &tokens[at + 1..]);
    match tokens[at] {
        StatementToken::Mark(Some(choice)) if introduces(before, choice) && explains(after, choice) => {
            VerdictStatement::Verdict(choice, StatementForm::Marked)
        }
        _ => VerdictStatement::Nothing,
    }
}

/// Returns whether the text before a marker or a JSON object, in the same sentence, says that a verdict follows: it states the same
/// verdict, or ends with a label. "The answer that breaks the rule is" labels something else.
pub fn introduces(before: &[StatementToken], choice: Choice) -> bool {
    let is_doubt = |word: &str| is_doubt(word) && word != "both" && !(choice == Choice::Tie && has(TIE, word));
    let is_known = |token: &StatementToken| match token {
        StatementToken::Side(side) => *side == choice,
        StatementToken::Word(word) => !is_doubt(word),
        StatementToken::Comma | StatementToken::Colon => true,
        StatementToken::Other(mark) => "()[]{}|\\/".contains(*mark),
        StatementToken::Letter(..) | StatementToken::Mark(_) | StatementToken::Question => false,
    };
    if !before.iter().all(is_known) {
        return false;
    }
    let is_end = |token: &&StatementToken| matches!(token, StatementToken::Colon | StatementToken::Comma);
    let said = &before[..before.len() - before.iter().rev().take_while(is_end).count()];
    if matches!(statement(said), VerdictStatement::Verdict(same, _) if same == choice) {
        return true;
    }
    let mut clauses: Vec<&[StatementToken]> = said.split(|token| *token == StatementToken::Comma).collect();
    let label = clauses.pop().unwrap_or_default();
    let introduces = |word: &str| is_lead(word) || has(PREDICATE, word) || has(INTRODUCES, word);
    if !sides(label).is_empty() || !words(label).all(introduces) {
        return false;
    }
    // "Format: {...}" is an example of an answer; "here is my answer in the requested format: {...}" is an answer.
    let shows_format = words(label).any(|word| word == "format")
        && !words(label).any(|word| ["here", "here's", "in", "my"].contains(&word));
    if shows_format {
        return false;
    }
    let is_label = words(label).any(|word| has(LABELS, word))
        && words(label).next().is_some_and(|word| !["is", "was", "be", "would"].contains(&word));
    let is_better = words(label).any(|word| has(BETTER, word));
    clauses.iter().all(|clause| {
        sides(clause).is_empty() && words(clause).all(is_lead) || is_label && (is_better || !asks(clause))
    })
}

/// Returns whether a clause names the question, which may be about the worse side: "considering which response breaks more rules".
fn asks(clause: &[StatementToken]) -> bool {
    words(clause).any(|word| ["which", "who"].contains(&word))
}

/// Returns whether words before a side say that it is the verdict.
fn says(before: &[StatementToken]) -> bool {
    words(before).any(|word| has(SAYS, word) || has(LABELS, word) && !has(NOUNS, word))
}

/// Returns the statement of the clauses between commas, which must agree.
fn of_clauses(tokens: &[StatementToken]) -> VerdictStatement {
    let mut found = VerdictStatement::Nothing;
    let mut lead: Vec<StatementToken> = Vec::new();
    let mut grounds: Vec<&[StatementToken]> = Vec::new();
    let clauses: Vec<&[StatementToken]> = tokens.split(|token| *token == StatementToken::Comma).collect();
    for (i, clause) in clauses.iter().enumerate() {
        let is_ground = words(clause).next().is_some_and(|word| has(GROUNDS, word));
        let is_free = |word: &str| !is_doubt(word) || word == "both";
        if clause.is_empty()
            || is_ground && i + 1 < clauses.len() && sides(clause).is_empty() && words(clause).all(is_free)
        {
            grounds.extend(Some(*clause).filter(|clause| !clause.is_empty()));
            continue;
        }
        // "Therefore, the verdict is, clearly, (a)".
        if sides(clause).is_empty()
            && words(clause).all(is_lead)
            && found == VerdictStatement::Nothing
            && i + 1 < clauses.len()
        {
            lead.extend_from_slice(clause);
            continue;
        }
        let whole: Vec<StatementToken> = lead.drain(..).chain(clause.iter().cloned()).collect();
        // "Considering which response breaks more rules, (b)".
        let is_better = words(&whole).any(|word| has(BETTER, word));
        if !grounds.is_empty() && !is_better && (!says(&whole) || grounds.iter().any(|ground| asks(ground))) {
            return VerdictStatement::Nothing;
        }
        found = match (found, of_clause(&whole)) {
            (_, VerdictStatement::Nothing) => return VerdictStatement::Nothing,
            (VerdictStatement::Nothing, one) => one,
            (VerdictStatement::Verdict(a, form), VerdictStatement::Verdict(b, _)) if a == b => {
                VerdictStatement::Verdict(a, form)
            }
            _ => return VerdictStatement::Nothing,
        };
    }
    found
}

fn of_clause(tokens: &[StatementToken]) -> VerdictStatement {
    let is_known = |token: &StatementToken| {
        matches!(token, StatementToken::Side(_) | StatementToken::Word(_) | StatementToken::Colon)
    };
    if !tokens.iter().all(is_known) {
        return VerdictStatement::Nothing;
    }
    match sides(tokens)[..] {
        [] => tie(tokens, &[]),
        [(at, side)] => of_side(&tokens[..at], side, &tokens[at + 1..]),
        [(first, a), (second, b)] if a != b => {
            of_both(&tokens[..first], a, &tokens[first + 1..second], &tokens[second + 1..])
        }
        _ => VerdictStatement::Nothing,
    }
}

/// Returns the statement of a clause about one side.
fn of_side(before: &[StatementToken], side: Choice, after: &[StatementToken]) -> VerdictStatement {
    let known = |word: &str| is_lead(word) || has(PREDICATE, word);
    let negates = |word: &str| is_doubt(word);
    if words(before).chain(words(after)).any(negates) {
        let all = words(before).chain(words(after)).all(|word| known(word) || negates(word));
        return if all { VerdictStatement::Against(side) } else { VerdictStatement::Nothing };
    }
    let asks = words(before).next().is_some_and(|word| ["is", "would", "will", "be", "must"].contains(&word));
    // "So is (a)" refers to a statement before it.
    let has_subject = |word: &str| has(NOUNS, word) || has(LABELS, word) || ["one", "it", "that"].contains(&word);
    let lacks_subject =
        matches!(before.last().and_then(StatementToken::word), Some("is" | "be")) && !words(before).any(has_subject);
    // "One would think that (a)".
    let supposes =
        words(before).any(|word| word == "would") && !words(before).any(|word| ["i", "we", "be"].contains(&word));
    if !words(before).all(is_lead) || asks || lacks_subject || supposes || instructs(before) {
        return VerdictStatement::Nothing;
    }
    if after.is_empty() {
        let is_label = before.contains(&StatementToken::Colon) && words(before).any(|word| has(LABELS, word));
        let form = match (is_label, says(before)) {
            (true, _) => StatementForm::Marked,
            (false, true) => StatementForm::Sentence,
            (false, false) => StatementForm::Bare,
        };
        return VerdictStatement::Verdict(side, form);
    }
    // "Output (a) better answers its instruction".
    let begins = match after {
        [StatementToken::Word(better), rest @ ..] if better == "better" => rest,
        all => all,
    };
    let is_verdict = words(begins).next().is_some_and(|word| has(VERBS, word))
        && after.iter().all(|token| token.word().is_some_and(|word| has(PREDICATE, word)))
        && words(after).any(|word| has(BETTER, word));
    if is_verdict { VerdictStatement::Verdict(side, StatementForm::Sentence) } else { VerdictStatement::Nothing }
}

/// Returns whether words before a side tell the reader what to write: "answer with (b)", "say (b)".
fn instructs(before: &[StatementToken]) -> bool {
    let all: Vec<&str> = words(before).collect();
    let follows = |word: &str, subjects: &[&str]| {
        let at = all.iter().position(|found| *found == word);
        at.is_some_and(|at| at == 0 || !subjects.contains(&all[at - 1]))
    };
    follows("with", &["go", "going"])
        || follows("say", &["i", "would", "will", "i'd", "i'll", "must", "we", "clearly", "definitely", "certainly"])
}

/// Returns the statement of a clause about both sides: "(a) is better than (b)", "(a) and (b) are equally good".
fn of_both(
    before: &[StatementToken],
    first: Choice,
    between: &[StatementToken],
    after: &[StatementToken],
) -> VerdictStatement {
    let between: Vec<&str> = between.iter().map(|token| token.word().unwrap_or(":")).collect();
    if between == ["and"] {
        return tie(before, after);
    }
    let [verb, middle @ .., end] = &between[..] else { return VerdictStatement::Nothing };
    let compares = match *end {
        "than" => middle.contains(&"better"),
        "to" => middle.iter().any(|word| ["superior", "preferable", "preferred"].contains(word)),
        _ => false,
    };
    let is_verdict = ["is", "was", "answers", "performs", "does"].contains(verb)
        && middle.iter().all(|word| has(PREDICATE, word))
        && words(before).all(is_lead)
        && words(before).next().is_none_or(|word| word != "is")
        && after.is_empty();
    if is_verdict && compares {
        VerdictStatement::Verdict(first, StatementForm::Sentence)
    } else {
        VerdictStatement::Nothing
    }
}

/// Returns the statement of a clause that says that both sides are equal, without naming them.
fn tie(before: &[StatementToken], after: &[StatementToken]) -> VerdictStatement {
    let all = || words(before).chain(words(after));
    let is_tie = all().all(|word| has(TIE, word) || is_lead(word)) && all().any(|word| has(TIED, word));
    match is_tie {
        true => VerdictStatement::Verdict(
            Choice::Tie,
            if before.contains(&StatementToken::Colon) { StatementForm::Marked } else { StatementForm::Sentence },
        ),
        false => VerdictStatement::Nothing,
    }
}

/// Returns whether the rest of a verdict's sentence leaves the verdict unchanged.
fn explains(tokens: &[StatementToken], choice: Choice) -> bool {
    let tokens = match tokens {
        [StatementToken::Comma, rest @ ..] => rest,
        all => all,
    };
    tokens.is_empty() || words(tokens).next().is_some_and(|word| has(REASONS, word)) && is_harmless(tokens, choice)
}

fn is_harmless(tokens: &[StatementToken], choice: Choice) -> bool {
    let decides = |word: &str| has(DECIDES, word) && sides(tokens).is_empty();
    let is_harmless = |token: &StatementToken| match token {
        StatementToken::Side(side) => *side == choice,
        StatementToken::Word(word) => !is_doubt(word) && !decides(word),
        StatementToken::Comma | StatementToken::Colon => true,
        StatementToken::Letter(..) | StatementToken::Mark(_) | StatementToken::Question | StatementToken::Other(_) => {
            false
        }
    };
    tokens.iter().all(is_harmless)
}

/// Returns whether a sentence behind a verdict leaves it unchanged: a polite ending, an explanation, or more about the same side.
pub fn is_quiet(tokens: &[StatementToken], choice: Choice) -> bool {
    let is_closing = !tokens.contains(&StatementToken::Question)
        && sides(tokens).is_empty()
        && words(tokens).all(|w| has(CLOSING, w));
    let is_known = |token: &StatementToken| !matches!(token, StatementToken::Mark(_) | StatementToken::Other(_));
    let about = !sides(tokens).is_empty() && is_harmless(tokens, choice);
    tokens.is_empty() || is_closing && tokens.iter().all(is_known) || explains(tokens, choice) || about
}

/// Returns whether a question before a verdict asks for this verdict.
pub fn asks_for_verdict(tokens: &[StatementToken]) -> bool {
    let known = ["which", "what", "who", "why", "question"];
    let asks = |word: &str| is_lead(word) || has(PREDICATE, word) || known.contains(&word);
    tokens.iter().all(|token| match token {
        StatementToken::Word(word) => asks(word),
        StatementToken::Question | StatementToken::Comma | StatementToken::Colon => true,
        _ => false,
    })
}

/// Returns whether a line without a full stop is a label of the next line: "Final verdict".
pub fn is_label(tokens: &[StatementToken]) -> bool {
    sides(tokens).is_empty()
        && words(tokens).any(|word| has(LABELS, word))
        && tokens.iter().all(|token| matches!(token, StatementToken::Colon) || token.word().is_some_and(is_lead))
}

/// Returns whether a sentence without a full stop must continue.
pub fn dangles(tokens: &[StatementToken]) -> bool {
    let goes_on = [
        "is", "are", "be", "was", "the", "of", "to", "for", "and", "or", "with", "by", "than", "as", "that", "say",
        "choose",
    ];
    tokens.last().is_some_and(|token| match token {
        StatementToken::Word(word) => goes_on.contains(&word.as_str()),
        token => *token == StatementToken::Colon,
    })
}

/// Returns whether words, all known to the grammar, are the title of a verdict. With `with_doubts`, also of the opposite of one.
pub fn is_title(tokens: &[StatementToken], with_doubts: bool) -> bool {
    sides(tokens).is_empty() && words(tokens).all(|word| is_lead(word) || with_doubts && is_doubt(word))
}

/// Returns whether a sentence may reverse the meaning of the text behind it, or continues in that text.
pub fn may_turn(tokens: &[StatementToken], is_finished: bool) -> bool {
    let dangles = !is_finished && dangles(tokens);
    // "Worse." is about the text behind it; a long finished sentence is not.
    let is_short = words(tokens).count() <= 6;
    let doubts = words(tokens).any(|word| is_doubt(word) && (!is_finished || is_short && !has(TIED, word)));
    // "The output with more errors is the following."
    let points =
        words(tokens).any(|word| ["following", "follows", "below"].contains(&word)) && !words(tokens).all(is_lead);
    dangles || doubts || points || tokens.iter().any(|token| matches!(token, StatementToken::Other('<')))
}
