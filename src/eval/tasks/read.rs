//! Parsing of an instruction: its task and its answer, for rows that contain only texts.

use super::{TaskItem, TaskKind, words};

const ORDINALS: [&str; 4] = ["first", "second", "third", "fourth"];

/// Returns the text between two parts of a wording; `None` where the wording does not match.
fn between<'a>(text: &'a str, before: &str, after: &str) -> Option<&'a str> {
    text.strip_prefix(before)?.strip_suffix(after)
}

/// Returns the text between the two parts of whichever wording matches.
fn either<'a>(text: &'a str, wordings: [(&str, &str); 2]) -> Option<&'a str> {
    wordings.iter().find_map(|(before, after)| between(text, before, after))
}

/// Returns the task of an instruction, with the answer and its sentence; `None` where it is not one of the demo's tasks. The task's content
/// and plausible wrong answers are not known.
/// its content or plausible wrong answers.
pub fn read(instruction: &str) -> Option<TaskItem> {
    TaskKind::ALL.into_iter().find_map(|kind| {
        let (answer, sentence) = solve(kind, instruction)?;
        let gold = sentence.replacen("{}", &answer, 1);
        let instruction = instruction.into();
        Some(TaskItem { instruction, gold, kind, answer, content: String::new(), wrong: Vec::new() })
    })
}

/// Returns a text if it is a word of the tasks: lower-case letters.
fn word(text: &str) -> Option<&str> {
    (!text.is_empty() && text.bytes().all(|b| b.is_ascii_lowercase())).then_some(text)
}

fn numbers<'a>(parts: impl IntoIterator<Item = &'a str>) -> Option<Vec<u32>> {
    parts.into_iter().map(|part| part.parse().ok()).collect()
}

/// Computes the answer, and its sentence with `{}` in place of the answer.
fn solve(kind: TaskKind, asked: &str) -> Option<(String, String)> {
    let fixed = |answer: String, sentence: &str| Some((answer, sentence.to_string()));
    match kind {
        TaskKind::Spell => {
            let w = word(either(asked, [("Spell the word ", "."), ("How do you spell ", "?")])?)?;
            fixed(w.chars().map(String::from).collect::<Vec<_>>().join("-"), "It is spelled {}.")
        }
        TaskKind::Count => {
            let w = word(either(asked, [("How many letters are in ", "?"), ("Count the letters in ", ".")])?)?;
            fixed(w.len().to_string(), "It has {} letters.")
        }
        TaskKind::Letter => {
            let (place, w) = either(asked, [("What is the ", "?"), ("Write the ", ".")])?.split_once(" letter of ")?;
            let letters: Vec<char> = word(w)?.chars().collect();
            let letter = match place {
                "first" => letters.first(),
                "second" => letters.get(1),
                "last" => letters.last(),
                _ => None,
            }?;
            Some((letter.to_string(), format!("The {place} letter is {{}}.")))
        }
        TaskKind::Sort => {
            let list = (between(asked, "Sort the digits ", "."))
                .or_else(|| either(asked, [("Sort the letters ", "."), ("Sort: ", ".")]))?;
            let mut list: Vec<&str> = list.split(' ').collect();
            list.sort_unstable();
            fixed(list.join(" "), "The order is {}.")
        }
        TaskKind::Add => {
            let sum = between(asked, "What is ", "?").and_then(|t| t.split_once(" plus "));
            let (a, b) = sum.or_else(|| between(asked, "Add ", ".")?.split_once(" and "))?;
            let [a, b] = numbers([a, b])?.try_into().ok()?;
            fixed((a + b).to_string(), "The sum is {}.")
        }
        TaskKind::Subtract => {
            let minus = between(asked, "What is ", "?").and_then(|t| t.split_once(" minus "));
            let from = || between(asked, "Subtract ", ".")?.split_once(" from ").map(|(b, a)| (a, b));
            let (a, b) = minus.or_else(from)?;
            let [a, b] = numbers([a, b])?.try_into().ok()?;
            fixed(a.checked_sub(b)?.to_string(), "The difference is {}.")
        }
        TaskKind::Extreme => ["largest", "smallest"].into_iter().find_map(|which| {
            let listed = between(asked, &format!("Which is the {which} of "), "?").map(|t| t.replace(" and ", ", "));
            let listed = listed.or_else(|| between(asked, &format!("Find the {which}: "), ".").map(String::from))?;
            let list = numbers(listed.split(", "))?;
            let found = if which == "largest" { list.iter().max() } else { list.iter().min() }?;
            Some((found.to_string(), format!("The {which} is {{}}.")))
        }),
        TaskKind::Pick => ORDINALS.into_iter().enumerate().find_map(|(at, nth)| {
            let which = between(asked, &format!("Which word is {nth} in "), "?");
            let list = which.or_else(|| between(asked, &format!("Pick the {nth}: "), "."))?;
            Some((list.split(", ").nth(at)?.to_string(), format!("The {nth} word is {{}}.")))
        }),
        TaskKind::Odd => {
            let list = either(asked, [("Which is the odd one out: ", "?"), ("Find the odd one out: ", ".")])?;
            fixed(odd(&list.split(' ').collect::<Vec<_>>())?, "The odd one out is {}.")
        }
        TaskKind::Plural => {
            let w = word(either(asked, [("What is the plural of ", "?"), ("Write the plural of ", ".")])?)?;
            fixed(words::plural(w), "The plural is {}.")
        }
        TaskKind::Past => {
            let w = word(either(asked, [("What is the past tense of ", "?"), ("Write the past tense of ", ".")])?)?;
            fixed(words::past(w), "The past tense is {}.")
        }
        TaskKind::Repeat => [(2, " two times."), (3, " three times.")].into_iter().find_map(|(n, times)| {
            let w = word(either(asked, [("Repeat ", times), ("Say ", times)])?)?;
            fixed(vec![w; n].join(" "), "Here you go: {}.")
        }),
        TaskKind::Capitals => {
            let w = word(either(asked, [("Write ", " in capitals."), ("Put ", " in capitals.")])?)?;
            fixed(w.to_uppercase(), "In capitals it is {}.")
        }
        TaskKind::Reverse => {
            let w = word(either(asked, [("Write ", " backwards."), ("Reverse the word ", ".")])?)?;
            fixed(w.chars().rev().collect(), "Backwards it is {}.")
        }
        TaskKind::Polite => {
            let w = either(asked, [("Say politely: ", "."), ("Make this polite: ", ".")])?;
            fixed(format!("please {w}"), "You could say {}.")
        }
    }
}

/// Returns the element that is the only one of its sort: a letter, a digit, or a number of the other parity.
fn odd(list: &[&str]) -> Option<String> {
    let sort = |x: &&&str| match x.parse::<u32>() {
        Ok(n) => n % 2,
        Err(_) => 2,
    };
    let is_letter = |x: &&&str| sort(x) == 2;
    let alone = |of: &dyn Fn(&&&str) -> bool| match list.iter().filter(of).collect::<Vec<_>>().as_slice() {
        [one] => Some((**one).to_string()),
        _ => None,
    };
    match list.iter().filter(is_letter).count() {
        0 => alone(&|x| sort(x) == 0).or_else(|| alone(&|x| sort(x) == 1)),
        1 => alone(&is_letter),
        _ => alone(&|x| !is_letter(x)),
    }
}
