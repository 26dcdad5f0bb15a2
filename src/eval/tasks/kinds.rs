//! Kinds of tasks, with one small function per kind: draws the content, words the instruction, and computes the answer.

use super::{TaskItem, TaskKind, words};
use crate::rng::Rng;

const ORDINALS: [&str; 4] = ["first", "second", "third", "fourth"];

/// Task before its kind is set.
struct TaskDraft {
    content: String,
    instruction: String,
    answer: String,
    /// Gold sentence, with `{}` in place of the answer.
    sentence: String,
    wrong: Vec<String>,
}

pub(super) fn draw(kind: TaskKind, rng: &mut Rng) -> TaskItem {
    let d = match kind {
        TaskKind::Spell => spell(rng),
        TaskKind::Count => count(rng),
        TaskKind::Letter => letter(rng),
        TaskKind::Sort => sort(rng),
        TaskKind::Add => add(rng),
        TaskKind::Subtract => subtract(rng),
        TaskKind::Extreme => extreme(rng),
        TaskKind::Pick => pick(rng),
        TaskKind::Odd => odd(rng),
        TaskKind::Plural => plural(rng),
        TaskKind::Past => past(rng),
        TaskKind::Repeat => repeat(rng),
        TaskKind::Capitals => capitals(rng),
        TaskKind::Reverse => reverse(rng),
        TaskKind::Polite => polite(rng),
    };
    let gold = d.sentence.replacen("{}", &d.answer, 1);
    let wrong = d.wrong.into_iter().filter(|w| *w != d.answer).collect();
    TaskItem { instruction: d.instruction, gold, kind, answer: d.answer, content: d.content, wrong }
}

/// Draws one of the wordings of a sentence.
fn sentence(wordings: &[String], rng: &mut Rng) -> String {
    wordings[rng.below(wordings.len() as u32) as usize].clone()
}

fn draft(content: &str, instruction: String, answer: impl ToString, sentence: &str, wrong: Vec<String>) -> TaskDraft {
    TaskDraft { content: content.into(), instruction, answer: answer.to_string(), sentence: sentence.into(), wrong }
}

/// Draws `n` different numbers below `limit`.
fn distinct(n: usize, limit: u32, rng: &mut Rng) -> Vec<u32> {
    let mut all = Vec::new();
    while all.len() < n {
        let x = rng.below(limit);
        if !all.contains(&x) {
            all.push(x);
        }
    }
    all
}

fn joined<T: ToString>(items: &[T], between: &str) -> String {
    items.iter().map(T::to_string).collect::<Vec<_>>().join(between)
}

/// Sorts items, so that the content of a task that lists them does not depend on their order.
fn sorted<T: Ord + Clone>(items: &[T]) -> Vec<T> {
    let mut all = items.to_vec();
    all.sort();
    all
}

fn spell(rng: &mut Rng) -> TaskDraft {
    let w = words::word(8, rng);
    let asked = sentence(&[format!("Spell the word {w}."), format!("How do you spell {w}?")], rng);
    draft(&w, asked, joined(&w.chars().collect::<Vec<_>>(), "-"), "It is spelled {}.", vec![])
}

fn count(rng: &mut Rng) -> TaskDraft {
    let w = words::word(8, rng);
    let asked = sentence(&[format!("How many letters are in {w}?"), format!("Count the letters in {w}.")], rng);
    draft(&w, asked, w.len(), "It has {} letters.", vec![(w.len() + 1).to_string(), (w.len() - 1).to_string()])
}

fn letter(rng: &mut Rng) -> TaskDraft {
    let w = words::word(7, rng);
    let (place, at) = [("first", 0), ("second", 1), ("last", w.len() - 1)][rng.below(3) as usize];
    let asked =
        sentence(&[format!("What is the {place} letter of {w}?"), format!("Write the {place} letter of {w}.")], rng);
    let others = w.chars().map(String::from).collect();
    draft(&format!("{place} {w}"), asked, &w[at..=at], &format!("The {place} letter is {{}}."), others)
}

fn sort(rng: &mut Rng) -> TaskDraft {
    let n = 3 + rng.below(3) as usize;
    let (things, list) = match rng.below(2) {
        0 => ("digits", distinct(n, 10, rng).iter().map(u32::to_string).collect::<Vec<_>>()),
        _ => ("letters", distinct(n, 26, rng).iter().map(|&i| char::from(b'a' + i as u8).to_string()).collect()),
    };
    let answer = joined(&sorted(&list), " ");
    let asked =
        sentence(&[format!("Sort the {things} {}.", list.join(" ")), format!("Sort: {}.", list.join(" "))], rng);
    let mut swapped = sorted(&list);
    swapped.swap(0, 1);
    draft(&answer, asked, &answer, "The order is {}.", vec![list.join(" "), swapped.join(" ")])
}

fn near(x: u32) -> Vec<String> {
    [x + 1, x + 10, x.saturating_sub(1)].iter().map(u32::to_string).collect()
}

fn add(rng: &mut Rng) -> TaskDraft {
    let (a, b) = (rng.below(50), rng.below(50));
    let asked = sentence(&[format!("What is {a} plus {b}?"), format!("Add {a} and {b}.")], rng);
    draft(&joined(&sorted(&[a, b]), "+"), asked, a + b, "The sum is {}.", near(a + b))
}

fn subtract(rng: &mut Rng) -> TaskDraft {
    let (a, b) = (rng.below(60), rng.below(60));
    let (a, b) = (a.max(b), a.min(b));
    let asked = sentence(&[format!("What is {a} minus {b}?"), format!("Subtract {b} from {a}.")], rng);
    draft(&format!("{a}-{b}"), asked, a - b, "The difference is {}.", near(a - b))
}

fn extreme(rng: &mut Rng) -> TaskDraft {
    let list = distinct(3, 100, rng);
    let order = sorted(&list);
    let (which, answer) = [("largest", order[2]), ("smallest", order[0])][rng.below(2) as usize];
    let [a, b, c] = [list[0], list[1], list[2]];
    let asked = sentence(
        &[format!("Which is the {which} of {a}, {b} and {c}?"), format!("Find the {which}: {a}, {b}, {c}.")],
        rng,
    );
    let others = list.iter().map(u32::to_string).collect();
    draft(&joined(&order, " "), asked, answer, &format!("The {which} is {{}}."), others)
}

fn pick(rng: &mut Rng) -> TaskDraft {
    let list: Vec<String> = (0..3 + rng.below(2)).map(|_| words::word(4, rng)).collect();
    let at = rng.below(list.len() as u32) as usize;
    let (nth, all) = (ORDINALS[at], list.join(", "));
    let asked = sentence(&[format!("Which word is {nth} in {all}?"), format!("Pick the {nth}: {all}.")], rng);
    draft(&joined(&sorted(&list), " "), asked, &list[at], &format!("The {nth} word is {{}}."), list.clone())
}

fn odd(rng: &mut Rng) -> TaskDraft {
    let letter = |i: u32| char::from(b'a' + i as u8).to_string();
    let (odd, mut list): (String, Vec<String>) = match rng.below(4) {
        0 => (rng.below(10).to_string(), distinct(3, 26, rng).into_iter().map(letter).collect()),
        1 => (letter(rng.below(26)), distinct(3, 10, rng).iter().map(u32::to_string).collect()),
        parity => {
            let parity = parity - 2;
            let alone = 2 * rng.below(5) + 1 - parity;
            (alone.to_string(), distinct(3, 5, rng).iter().map(|x| (2 * x + parity).to_string()).collect())
        }
    };
    let wrong = list.clone();
    list.push(odd.clone());
    rng.shuffle(&mut list);
    let all = list.join(" ");
    let asked = sentence(&[format!("Which is the odd one out: {all}?"), format!("Find the odd one out: {all}.")], rng);
    draft(&joined(&sorted(&list), " "), asked, odd, "The odd one out is {}.", wrong)
}

fn plural(rng: &mut Rng) -> TaskDraft {
    let w = words::noun(rng);
    let asked = sentence(&[format!("What is the plural of {w}?"), format!("Write the plural of {w}.")], rng);
    let wrong = vec![w.clone(), format!("{w}s"), format!("{w}es")];
    draft(&w, asked, words::plural(&w), "The plural is {}.", wrong)
}

fn past(rng: &mut Rng) -> TaskDraft {
    let w = words::verb(rng);
    let asked = sentence(&[format!("What is the past tense of {w}?"), format!("Write the past tense of {w}.")], rng);
    let wrong = vec![w.clone(), format!("{w}ed"), format!("{w}d"), format!("{w}ing")];
    draft(&w, asked, words::past(&w), "The past tense is {}.", wrong)
}

fn repeat(rng: &mut Rng) -> TaskDraft {
    let w = words::word(4, rng);
    let (n, times) = [(2, "two"), (3, "three")][rng.below(2) as usize];
    let asked = sentence(&[format!("Repeat {w} {times} times."), format!("Say {w} {times} times.")], rng);
    let of = |n: usize| vec![w.as_str(); n].join(" ");
    draft(&format!("{n} {w}"), asked, of(n), "Here you go: {}.", vec![of(n - 1), of(n + 1)])
}

fn capitals(rng: &mut Rng) -> TaskDraft {
    let w = words::word(7, rng);
    let asked = sentence(&[format!("Write {w} in capitals."), format!("Put {w} in capitals.")], rng);
    draft(&w, asked, w.to_uppercase(), "In capitals it is {}.", vec![w.clone()])
}

fn reverse(rng: &mut Rng) -> TaskDraft {
    let w = words::word(4, rng);
    let asked = sentence(&[format!("Write {w} backwards."), format!("Reverse the word {w}.")], rng);
    draft(&w, asked, w.chars().rev().collect::<String>(), "Backwards it is {}.", vec![w.clone()])
}

fn polite(rng: &mut Rng) -> TaskDraft {
    let w = words::request(rng);
    let asked = sentence(&[format!("Say politely: {w}."), format!("Make this polite: {w}.")], rng);
    draft(&w, asked, format!("please {w}"), "You could say {}.", vec![w.clone(), format!("{w} now")])
}
