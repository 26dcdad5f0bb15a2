//! The grammar of verdicts: which sentences say that one of (a) and (b) is better. A sentence with a word that the grammar does not have says
//! nothing, so that no negation, condition or comparison is taken for a verdict because nobody thought of it.

pub(super) mod tokens;

use self::tokens::{Token, sides, tokens, words};
use super::words::{
    BETTER, CLOSING, DECIDES, DOUBTS, FOREIGN, GROUNDS, INTRODUCES, LABELS, LEADS, NOUNS, PREDICATE, REASONS, SAYS,
    TIE, TIED, VERBS, has,
};
use crate::eval::judge::Choice;

/// Statement that a sentence makes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Statement {
    /// A verdict.
    Verdict(Choice, Form),
    /// The statement that this side is not the better one.
    Against(Choice),
    /// Neither.
    Nothing,
}

/// Way in which a verdict is put.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// The side, and no word that says what of it: `(a)`, `Output (b)`, `Evaluation of (a)`.
    Bare,
    /// A sentence: "Output (a) is better".
    Sentence,
    /// The side behind a label, `Answer: (a)`, or in a mark for final answers, `[[A]]`.
    Marked,
}

/// Phrases that may be left out.
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

/// Tells whether a word may turn a verdict around.
pub fn is_doubt(word: &str) -> bool {
    has(DOUBTS, word) || word.ends_with("n't")
}

/// Tells whether a word before a side leaves the meaning alone.
pub fn is_lead(word: &str) -> bool {
    has(LEADS, word) || has(NOUNS, word) || has(LABELS, word) || has(FOREIGN, word)
}

/// The verdict in a mark: nothing but a statement, or a ranking.
pub fn inside(text: &str) -> Option<Choice> {
    let ranking: String = text.chars().filter(|c| !c.is_whitespace()).collect::<String>().to_uppercase();
    match ranking.as_str() {
        "A>B" | "A>>B" => return Some(Choice::A),
        "B>A" | "B>>A" => return Some(Choice::B),
        "A=B" | "B=A" => return Some(Choice::Tie),
        _ => {}
    }
    match statement(&tokens(text)) {
        Statement::Verdict(choice, _) => Some(choice),
        Statement::Against(_) | Statement::Nothing => None,
    }
}

/// The qualities that our prompts ask for. A comparison in all of it is a verdict, one in a part of it is none.
const CRITERIA: [&str; 3] = ["accuracy", "coherence", "harmlessness"];

/// Leaves "in terms of accuracy, coherence and harmlessness" out at the end.
fn without_criteria(tokens: &[Token]) -> &[Token] {
    let is_criterion = |token: &Token| match token {
        Token::Comma => true,
        Token::Word(word) => word == "and" || CRITERIA.contains(&word.as_str()),
        _ => false,
    };
    let from = tokens.len() - tokens.iter().rev().take_while(|token| is_criterion(token)).count();
    let (before, listed) = tokens.split_at(from);
    let are_all = CRITERIA.iter().all(|criterion| words(listed).any(|word| word == *criterion));
    let leads = [&["in", "terms", "of"][..], &["in"]].into_iter().find(|lead| {
        let end = before.len().checked_sub(lead.len()).map(|at| &before[at..]);
        end.is_some_and(|end| end.iter().map(Token::word).eq(lead.iter().map(|word| Some(*word))))
    });
    match leads {
        Some(lead) if are_all => &before[..before.len() - lead.len()],
        _ => tokens,
    }
}

/// Leaves phrases out that say nothing.
fn without_phrases(tokens: &[Token]) -> Vec<Token> {
    let mut out: Vec<Token> = Vec::with_capacity(tokens.len());
    let mut i = 0;
    while i < tokens.len() {
        let is_here = |phrase: &&&[&str]| {
            let here = tokens[i..].iter().map(Token::word);
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

/// Statement that a sentence makes.
pub fn statement(tokens: &[Token]) -> Statement {
    if tokens.contains(&Token::Question) {
        return Statement::Nothing;
    }
    let tokens = without_phrases(without_criteria(tokens));
    if let Some(at) = tokens.iter().position(|token| matches!(token, Token::Mark(_))) {
        return of_mark(&tokens, at);
    }
    // A), as in tests with several choices.
    if let [Token::Side(side), Token::Other(')')] = tokens[..] {
        return Statement::Verdict(side, Form::Bare);
    }
    let first_side = tokens.iter().position(|token| matches!(token, Token::Side(_))).unwrap_or(tokens.len());
    let is_reason = |(i, token): (usize, &Token)| {
        let next = tokens.get(i + 1).and_then(Token::word);
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
        Statement::Verdict(choice, _) if !explains(reason, choice) => Statement::Nothing,
        found => found,
    }
}

/// A sentence with a mark for final answers.
fn of_mark(tokens: &[Token], at: usize) -> Statement {
    let (before, after) = (&tokens[..at], &tokens[at + 1..]);
    match tokens[at] {
        Token::Mark(Some(choice)) if introduces(before, choice) && explains(after, choice) => {
            Statement::Verdict(choice, Form::Marked)
        }
        _ => Statement::Nothing,
    }
}

/// Whether what stands before a mark or an object of JSON in its sentence says that a verdict follows: the same verdict, or a label directly
/// before it. "The answer that breaks the rule is" labels something else.
pub fn introduces(before: &[Token], choice: Choice) -> bool {
    let is_doubt = |word: &str| is_doubt(word) && word != "both" && !(choice == Choice::Tie && has(TIE, word));
    let is_known = |token: &Token| match token {
        Token::Side(side) => *side == choice,
        Token::Word(word) => !is_doubt(word),
        Token::Comma | Token::Colon => true,
        Token::Other(mark) => "()[]{}|\\/".contains(*mark),
        Token::Letter(..) | Token::Mark(_) | Token::Question => false,
    };
    if !before.iter().all(is_known) {
        return false;
    }
    let is_end = |token: &&Token| matches!(token, Token::Colon | Token::Comma);
    let said = &before[..before.len() - before.iter().rev().take_while(is_end).count()];
    if matches!(statement(said), Statement::Verdict(same, _) if same == choice) {
        return true;
    }
    let mut clauses: Vec<&[Token]> = said.split(|token| *token == Token::Comma).collect();
    let label = clauses.pop().unwrap_or_default();
    let introduces = |word: &str| is_lead(word) || has(PREDICATE, word) || has(INTRODUCES, word);
    if !sides(label).is_empty() || !words(label).all(introduces) {
        return false;
    }
    // "Format: {...}" shows what an answer looks like; "here is my answer in the requested format: {...}" is one.
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

/// Whether a clause names what is asked for, which may be the worse one: "considering which response breaks more rules".
fn asks(clause: &[Token]) -> bool {
    words(clause).any(|word| ["which", "who"].contains(&word))
}

/// Whether words before a side say that it is the verdict.
fn says(before: &[Token]) -> bool {
    words(before).any(|word| has(SAYS, word) || has(LABELS, word) && !has(NOUNS, word))
}

/// Clauses between commas, which must agree.
fn of_clauses(tokens: &[Token]) -> Statement {
    let mut found = Statement::Nothing;
    let mut lead: Vec<Token> = Vec::new();
    let mut grounds: Vec<&[Token]> = Vec::new();
    let clauses: Vec<&[Token]> = tokens.split(|token| *token == Token::Comma).collect();
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
            && found == Statement::Nothing
            && i + 1 < clauses.len()
        {
            lead.extend_from_slice(clause);
            continue;
        }
        let whole: Vec<Token> = lead.drain(..).chain(clause.iter().cloned()).collect();
        // "Considering which response breaks more rules, (b)".
        let is_better = words(&whole).any(|word| has(BETTER, word));
        if !grounds.is_empty() && !is_better && (!says(&whole) || grounds.iter().any(|ground| asks(ground))) {
            return Statement::Nothing;
        }
        found = match (found, of_clause(&whole)) {
            (_, Statement::Nothing) => return Statement::Nothing,
            (Statement::Nothing, one) => one,
            (Statement::Verdict(a, form), Statement::Verdict(b, _)) if a == b => Statement::Verdict(a, form),
            _ => return Statement::Nothing,
        };
    }
    found
}

fn of_clause(tokens: &[Token]) -> Statement {
    let is_known = |token: &Token| matches!(token, Token::Side(_) | Token::Word(_) | Token::Colon);
    if !tokens.iter().all(is_known) {
        return Statement::Nothing;
    }
    match sides(tokens)[..] {
        [] => tie(tokens, &[]),
        [(at, side)] => of_side(&tokens[..at], side, &tokens[at + 1..]),
        [(first, a), (second, b)] if a != b => {
            of_both(&tokens[..first], a, &tokens[first + 1..second], &tokens[second + 1..])
        }
        _ => Statement::Nothing,
    }
}

/// A clause about one side.
fn of_side(before: &[Token], side: Choice, after: &[Token]) -> Statement {
    let known = |word: &str| is_lead(word) || has(PREDICATE, word);
    let negates = |word: &str| is_doubt(word);
    if words(before).chain(words(after)).any(negates) {
        let all = words(before).chain(words(after)).all(|word| known(word) || negates(word));
        return if all { Statement::Against(side) } else { Statement::Nothing };
    }
    let asks = words(before).next().is_some_and(|word| ["is", "would", "will", "be", "must"].contains(&word));
    // "So is (a)": what is, was said before.
    let has_subject = |word: &str| has(NOUNS, word) || has(LABELS, word) || ["one", "it", "that"].contains(&word);
    let lacks_subject =
        matches!(before.last().and_then(Token::word), Some("is" | "be")) && !words(before).any(has_subject);
    // "One would think that (a)".
    let supposes =
        words(before).any(|word| word == "would") && !words(before).any(|word| ["i", "we", "be"].contains(&word));
    if !words(before).all(is_lead) || asks || lacks_subject || supposes || instructs(before) {
        return Statement::Nothing;
    }
    if after.is_empty() {
        let is_label = before.contains(&Token::Colon) && words(before).any(|word| has(LABELS, word));
        let form = match (is_label, says(before)) {
            (true, _) => Form::Marked,
            (false, true) => Form::Sentence,
            (false, false) => Form::Bare,
        };
        return Statement::Verdict(side, form);
    }
    // "Output (a) better answers its instruction".
    let begins = match after {
        [Token::Word(better), rest @ ..] if better == "better" => rest,
        all => all,
    };
    let is_verdict = words(begins).next().is_some_and(|word| has(VERBS, word))
        && after.iter().all(|token| token.word().is_some_and(|word| has(PREDICATE, word)))
        && words(after).any(|word| has(BETTER, word));
    if is_verdict { Statement::Verdict(side, Form::Sentence) } else { Statement::Nothing }
}

/// Tells whether words before a side tell somebody what to write: "answer with (b)", "say (b)".
fn instructs(before: &[Token]) -> bool {
    let all: Vec<&str> = words(before).collect();
    let follows = |word: &str, subjects: &[&str]| {
        let at = all.iter().position(|found| *found == word);
        at.is_some_and(|at| at == 0 || !subjects.contains(&all[at - 1]))
    };
    follows("with", &["go", "going"])
        || follows("say", &["i", "would", "will", "i'd", "i'll", "must", "we", "clearly", "definitely", "certainly"])
}

/// A clause about both sides: "(a) is better than (b)", "(a) and (b) are equally good".
fn of_both(before: &[Token], first: Choice, between: &[Token], after: &[Token]) -> Statement {
    let between: Vec<&str> = between.iter().map(|token| token.word().unwrap_or(":")).collect();
    if between == ["and"] {
        return tie(before, after);
    }
    let [verb, middle @ .., end] = &between[..] else { return Statement::Nothing };
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
    if is_verdict && compares { Statement::Verdict(first, Form::Sentence) } else { Statement::Nothing }
}

/// A clause that says that both are equal, without their names.
fn tie(before: &[Token], after: &[Token]) -> Statement {
    let all = || words(before).chain(words(after));
    let is_tie = all().all(|word| has(TIE, word) || is_lead(word)) && all().any(|word| has(TIED, word));
    match is_tie {
        true => {
            Statement::Verdict(Choice::Tie, if before.contains(&Token::Colon) { Form::Marked } else { Form::Sentence })
        }
        false => Statement::Nothing,
    }
}

/// Whether what follows a verdict in its sentence leaves it alone.
fn explains(tokens: &[Token], choice: Choice) -> bool {
    let tokens = match tokens {
        [Token::Comma, rest @ ..] => rest,
        all => all,
    };
    tokens.is_empty() || words(tokens).next().is_some_and(|word| has(REASONS, word)) && is_harmless(tokens, choice)
}

fn is_harmless(tokens: &[Token], choice: Choice) -> bool {
    let decides = |word: &str| has(DECIDES, word) && sides(tokens).is_empty();
    let is_harmless = |token: &Token| match token {
        Token::Side(side) => *side == choice,
        Token::Word(word) => !is_doubt(word) && !decides(word),
        Token::Comma | Token::Colon => true,
        Token::Letter(..) | Token::Mark(_) | Token::Question | Token::Other(_) => false,
    };
    tokens.iter().all(is_harmless)
}

/// Whether a sentence behind a verdict leaves it alone: a polite ending, an explanation, or more about the same side.
pub fn is_quiet(tokens: &[Token], choice: Choice) -> bool {
    let is_closing =
        !tokens.contains(&Token::Question) && sides(tokens).is_empty() && words(tokens).all(|w| has(CLOSING, w));
    let is_known = |token: &Token| !matches!(token, Token::Mark(_) | Token::Other(_));
    let about = !sides(tokens).is_empty() && is_harmless(tokens, choice);
    tokens.is_empty() || is_closing && tokens.iter().all(is_known) || explains(tokens, choice) || about
}

/// Whether a question before a verdict asks for it.
pub fn asks_for_verdict(tokens: &[Token]) -> bool {
    let known = ["which", "what", "who", "why", "question"];
    let asks = |word: &str| is_lead(word) || has(PREDICATE, word) || known.contains(&word);
    tokens.iter().all(|token| match token {
        Token::Word(word) => asks(word),
        Token::Question | Token::Comma | Token::Colon => true,
        _ => false,
    })
}

/// Whether a line without a full stop names what follows it: "Final verdict".
pub fn is_label(tokens: &[Token]) -> bool {
    sides(tokens).is_empty()
        && words(tokens).any(|word| has(LABELS, word))
        && tokens.iter().all(|token| matches!(token, Token::Colon) || token.word().is_some_and(is_lead))
}

/// Whether a sentence without a full stop has to go on.
pub fn dangles(tokens: &[Token]) -> bool {
    let goes_on = [
        "is", "are", "be", "was", "the", "of", "to", "for", "and", "or", "with", "by", "than", "as", "that", "say",
        "choose",
    ];
    tokens.last().is_some_and(|token| match token {
        Token::Word(word) => goes_on.contains(&word.as_str()),
        token => *token == Token::Colon,
    })
}

/// Whether words are a title of what follows them, by what the grammar knows: of a verdict, or, with its doubts, of the opposite.
pub fn is_title(tokens: &[Token], with_doubts: bool) -> bool {
    sides(tokens).is_empty() && words(tokens).all(|word| is_lead(word) || with_doubts && is_doubt(word))
}

/// Whether a sentence may turn around what follows it, or goes on in it.
pub fn may_turn(tokens: &[Token], is_finished: bool) -> bool {
    let dangles = !is_finished && dangles(tokens);
    // "Worse." is about what follows, a long sentence that is finished is not.
    let is_short = words(tokens).count() <= 6;
    let doubts = words(tokens).any(|word| is_doubt(word) && (!is_finished || is_short && !has(TIED, word)));
    // "The output with more errors is the following."
    let points =
        words(tokens).any(|word| ["following", "follows", "below"].contains(&word)) && !words(tokens).all(is_lead);
    dangles || doubts || points || tokens.iter().any(|token| matches!(token, Token::Other('<')))
}
