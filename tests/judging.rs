//! Judging as a library: answers and verdicts, prompts, files of answers, strata, statistics, the analysis.
#![allow(clippy::unwrap_used)]

#[allow(dead_code, reason = "a part of it is of other tests")]
mod common;

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, HashSet};
use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use common::says;
use jointwise::Result;
use jointwise::data::comparisons::{Comparison, ComparisonKind, Side, place};
use jointwise::eval::acquire::{JudgingResult, MOST_FAILURES, acquire, pending};
use jointwise::eval::interplay::{BootstrapSettings, analyse, compare, interplay, read};
use jointwise::eval::journal::{ANSWERS, AnswerJournal};
use jointwise::eval::judge::grader::Grader;
use jointwise::eval::judge::person::{HumanJudge, JudgeScreen, KeyPress};
use jointwise::eval::judge::prompt::JudgePrompt;
use jointwise::eval::judge::verdict_reader::read_verdict;
use jointwise::eval::judge::{Answer, Choice, Judge, PresentationOrder, Question, Reply, Verdict, is_flip};
use jointwise::eval::statistics::{ClusterResampler, ResamplingUnits, kappa, quantile, share};
use jointwise::eval::strata::{ConditionalPreference, Stratum, draw};
use jointwise::eval::tasks::{self, DataSplit, TaskKind};
use jointwise::report::interplay as interplay_report;
use jointwise::report::{self, Report};
use jointwise::rng::Rng;
use proptest::prelude::*;
use serde_json::{Map, Value, json};

fn side(instruction: &str, response: &str) -> Side {
    Side { instruction: instruction.into(), response: response.into() }
}

fn pair(line: usize, sides: [Side; 2]) -> Comparison {
    Comparison { place: place("rows.jsonl".into(), line), mode: ComparisonKind::Pair, sides, more: Map::new() }
}

/// Row i asks for the larger of two numbers; equal every fifth time.
fn rows(n: usize) -> Vec<Comparison> {
    let row = |i: usize| {
        let (x, y) = (i * 7 % 10, if i.is_multiple_of(5) { i * 7 % 10 } else { i * 3 % 10 });
        pair(i + 1, [side(&format!("I{i}"), &x.to_string()), side(&format!("J{i}"), &y.to_string())])
    };
    (0..n).map(row).collect()
}

/// Prefers the larger number, and (a) where they are equal. Counts what it is asked, and may say something else first.
#[derive(Default)]
struct Larger {
    asked: RefCell<HashMap<String, usize>>,
    /// Ends after so many.
    patience: Option<usize>,
    /// Instead of an answer: by question number in the run.
    odd: HashMap<usize, Reply>,
    name: String,
}

impl Judge for Larger {
    fn name(&self) -> &str {
        "larger"
    }
    fn identity(&self) -> Value {
        json!({"kind": "test", "model": self.name})
    }
    fn ask(
        &self,
        questions: &[Question<'_>],
        stop: &AtomicBool,
        tell: &mut dyn FnMut(usize, Reply) -> Result<()>,
    ) -> Result<()> {
        for (i, question) in questions.iter().enumerate().take(self.patience.unwrap_or(usize::MAX)) {
            if stop.load(Ordering::Relaxed) {
                break;
            }
            *self.asked.borrow_mut().entry(question.key()).or_default() += 1;
            let [a, b] = [question.a(), question.b()].map(|side| side.response.parse::<u32>().unwrap());
            let choice = if a >= b { Choice::A } else { Choice::B };
            tell(i, self.odd.get(&i).cloned().unwrap_or_else(|| Reply::Answer(choice.into())))?;
        }
        Ok(())
    }
}

fn run(rows: &[Comparison], judge: &dyn Judge, folder: &Path) -> JudgingResult {
    let mut journal = AnswerJournal::open(&folder.join(ANSWERS), judge).unwrap();
    acquire(rows, judge, &mut journal, &AtomicBool::new(false), &mut |_| ())
}

// ------------------------------------------------------------------------------------------------ answers and verdicts

#[test]
fn answers_are_read_and_not_guessed() {
    for (text, expected) in [
        ("(a)", Some(Choice::A)),
        ("Output (b)", Some(Choice::B)),
        (" **Output (A).** ", Some(Choice::A)),
        ("B.", Some(Choice::B)),
        ("The final answer is: b", Some(Choice::B)),
        ("Output (a) is better, because it is right.", Some(Choice::A)),
        ("Output (a) rambles, Output (b) does not.\nAnswer: Output (b)", Some(Choice::B)),
        ("Tie", Some(Choice::Tie)),
        // The paper's code takes the first letter of its search, whatever is said of it.
        ("Output (a) is worse than Output (b)", None),
        ("(a) or (b)", None),
        ("neither", None),
        ("a banana", None),
        ("", None),
        ("42", None),
    ] {
        assert_eq!(read_verdict(text).ok(), expected, "{text}");
    }
}

#[test]
fn two_orders_make_a_verdict() {
    let (a, b, tie) = (Some(Choice::A), Some(Choice::B), Some(Choice::Tie));
    for (answers, verdict, flip) in [
        ([a, b], Verdict::First, false),
        ([b, a], Verdict::Second, false),
        ([a, a], Verdict::Tie, true),
        ([b, b], Verdict::Tie, true),
        ([tie, tie], Verdict::Tie, false),
        ([a, tie], Verdict::Tie, false),
        ([a, None], Verdict::NoAnswer, false),
        ([None, tie], Verdict::NoAnswer, false),
    ] {
        assert_eq!((Verdict::from_answers(answers), is_flip(answers)), (verdict, flip), "{answers:?}");
    }
}

#[test]
fn prompts_hold_the_texts_once_and_as_they_are() {
    let row = pair(1, [side("{response_b}", "first {instruction_a}"), side("I1", "second")]);
    let [ab, ba] = PresentationOrder::ALL.map(|order| Question { comparison: &row, order });
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("prompt.txt");
    fs::write(&path, "{\"x\": 1} A {instruction_a}|{response_a} B {instruction_b}|{response_b} {other}\n").unwrap();
    let own = JudgePrompt::read(&path, ComparisonKind::Pair).unwrap();
    assert_eq!(own.render(&ab), "{\"x\": 1} A {response_b}|first {instruction_a} B I1|second {other}");
    assert_eq!(own.render(&ba), "{\"x\": 1} A I1|second B {response_b}|first {instruction_a} {other}");
    let ours = JudgePrompt::default_for(ComparisonKind::Pair);
    assert_ne!(ours.hash(), own.hash());
    for text in ["first {instruction_a}", "second", "I1", "Accuracy", "Coherence", "Harmlessness"] {
        assert_eq!(ours.render(&ab).matches(text).count(), 1, "{text}");
    }
    says(JudgePrompt::read(&path, ComparisonKind::Single), &["prompt.txt", "{instruction}", "single"]);
    fs::write(&path, "{instruction} {response_a} {response_b} {instruction_a}").unwrap();
    says(JudgePrompt::read(&path, ComparisonKind::Single), &["prompt.txt", "instruction_a", "pair"]);
}

// --------------------------------------------------------------------------------------------------------- acquiring

#[test]
fn verdicts_count_ties_and_flips() {
    let (rows, folder) = (rows(40), tempfile::tempdir().unwrap());
    let judge = Larger::default();
    let acquired = run(&rows, &judge, folder.path());
    for (row, judged) in rows.iter().zip(&acquired.judged) {
        let [x, y] = [0, 1].map(|i| row.sides[i].response.parse::<u32>().unwrap());
        let expected = match x.cmp(&y) {
            std::cmp::Ordering::Greater => Verdict::First,
            std::cmp::Ordering::Less => Verdict::Second,
            std::cmp::Ordering::Equal => Verdict::Tie,
        };
        assert_eq!(judged.verdict(), expected);
        let better = judged.preference(row).map(|p| (p.r_chosen.parse::<u32>().unwrap(), p.r_reject.parse().unwrap()));
        assert!(better.is_none_or(|(chosen, reject)| chosen > reject));
        assert_eq!(better.is_none(), expected == Verdict::Tie);
    }
    let counts = acquired.counts();
    // Equal numbers get (a) in both orders: a positional flip.
    assert!(counts.ties > 5 && counts.flips == counts.ties);
    assert_eq!(counts.first + counts.second + counts.ties, 40);
    assert_eq!((acquired.asked, acquired.reused, acquired.left), (80, 0, 0));
}

#[test]
fn resumed_is_uninterrupted_and_nothing_is_asked_twice() {
    let rows = rows(30);
    let whole = run(&rows, &Larger::default(), tempfile::tempdir().unwrap().path());
    for patience in [1, 7, 31, 59] {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(ANSWERS);
        let mut asked: HashMap<String, usize> = HashMap::new();
        for run_number in 0.. {
            let judge = Larger { patience: Some(patience), ..Larger::default() };
            // Rows in another order each time: answers are found by what was asked.
            let mut shuffled = rows.clone();
            Rng::new(run_number, 1).shuffle(&mut shuffled);
            let acquired = run(&shuffled, &judge, folder.path());
            judge.asked.borrow().iter().for_each(|(key, n)| *asked.entry(key.clone()).or_default() += n);
            // A crash in the middle of the next line.
            let mut bytes = fs::read(&path).unwrap();
            bytes.extend(b"{\"key\":\"0123");
            fs::write(&path, bytes).unwrap();
            let judge = Larger::default();
            let journal = AnswerJournal::open(&path, &judge).unwrap();
            assert_eq!(journal.notes().len(), 1);
            assert!(journal.notes()[0].contains("cut short after 12 bytes"), "{:?}", journal.notes());
            if acquired.left == 0 {
                break;
            }
        }
        assert!(asked.len() == 60 && asked.values().all(|&n| n == 1), "patience {patience}: {asked:?}");
        let resumed = run(&rows, &Larger { patience: Some(0), ..Larger::default() }, folder.path());
        assert_eq!(resumed.judged, whole.judged);
        assert_eq!((resumed.asked, resumed.reused, resumed.left), (0, 60, 0));
    }
}

#[test]
fn what_is_cut_anywhere_loses_one_line_at_most() {
    let (rows, folder) = (rows(4), tempfile::tempdir().unwrap());
    let path = folder.path().join(ANSWERS);
    run(&rows, &Larger::default(), folder.path());
    let whole = fs::read(&path).unwrap();
    let lines: Vec<usize> = (0..whole.len()).filter(|&i| whole[i] == b'\n').collect();
    for cut in 0..=whole.len() {
        fs::write(&path, &whole[..cut]).unwrap();
        let journal = AnswerJournal::open(&path, &Larger::default()).unwrap();
        // A line that lacks its newline alone is whole.
        let kept = lines.iter().filter(|&&end| end <= cut).count().saturating_sub(1);
        assert_eq!(journal.len(), kept, "cut at {cut}");
        let whole_line = cut == 0 || lines.contains(&cut) || lines.contains(&(cut - 1));
        assert_eq!(journal.notes().is_empty(), whole_line, "cut at {cut}");
        drop(journal);
        let again = run(&rows, &Larger::default(), folder.path());
        assert_eq!((again.asked, again.reused), (8 - kept, kept), "cut at {cut}");
        assert_eq!(fs::read(&path).unwrap().len(), whole.len(), "cut at {cut}");
    }
}

/// As the first versions wrote them, and as a person may edit them.
fn without_checksums(text: &str) -> String {
    let line = |line: &str| {
        line.split(",\"crc32c\"").next().map(|l| if l.ends_with('}') { l.into() } else { format!("{l}}}") })
    };
    text.lines().filter_map(line).map(|l: String| l + "\n").collect()
}

/// An answer is never another one than was given: a flipped bit is found, or changes nothing.
#[test]
fn every_flipped_bit_of_an_answer_is_found() {
    let (rows, folder) = (rows(2), tempfile::tempdir().unwrap());
    let path = folder.path().join(ANSWERS);
    run(&rows, &Larger::default(), folder.path());
    let answers = || {
        let journal = AnswerJournal::open(&path, &Larger::default()).ok()?;
        let mut all: Vec<String> = journal.answers().map(|answer| json!(answer).to_string()).collect();
        all.sort();
        Some(all)
    };
    let (whole, good) = (fs::read(&path).unwrap(), answers().unwrap());
    let flipped = |whole: &[u8], bit: usize| {
        let mut bytes = whole.to_vec();
        bytes[bit / 8] ^= 1 << (bit % 8);
        fs::write(&path, bytes).unwrap();
        answers().is_none_or(|all| all == good)
    };
    let line = |whole: &[u8]| {
        let ends: Vec<usize> = (0..whole.len()).filter(|&i| whole[i] == b'\n').collect();
        (ends[0] + 1) * 8..ends[1] * 8
    };
    for bit in line(&whole) {
        assert!(flipped(&whole, bit), "bit {bit}");
    }
    // The control: what has no checksum is taken, flipped or not.
    let bare = without_checksums(std::str::from_utf8(&whole).unwrap()).into_bytes();
    assert!(line(&bare).any(|bit| !flipped(&bare, bit)));
    fs::write(&path, &bare).unwrap();
    assert_eq!(answers().unwrap(), good);
}

#[test]
fn damaged_and_foreign_files_are_refused() {
    let (rows, folder) = (rows(3), tempfile::tempdir().unwrap());
    let path = folder.path().join(ANSWERS);
    run(&rows, &Larger::default(), folder.path());
    let whole = fs::read_to_string(&path).unwrap();
    let other = Larger { name: "another".into(), ..Larger::default() };
    says(AnswerJournal::open(&path, &other), &["--resume", "answers.jsonl", "`model`", "another"]);
    let other_key = whole.replacen("\"key\"", "\"kex\"", 1);
    fs::write(&path, &other_key).unwrap();
    says(AnswerJournal::open(&path, &Larger::default()), &["answers.jsonl:2", "is damaged", "crc32c"]);
    fs::write(&path, without_checksums(&other_key)).unwrap();
    says(AnswerJournal::open(&path, &Larger::default()), &["answers.jsonl:2", "key"]);
    // In the middle it is damage, not a crash.
    let mut lines: Vec<&str> = whole.lines().collect();
    lines[2] = "{\"key\":\"01";
    fs::write(&path, lines.join("\n")).unwrap();
    says(AnswerJournal::open(&path, &Larger::default()), &["answers.jsonl:3", "not a JSON object"]);
    fs::write(&path, "{\"a\": 1}\n").unwrap();
    says(AnswerJournal::open(&path, &Larger::default()), &["answers.jsonl:1", "judge"]);
    fs::write(&path, &whole).unwrap();
    let first = AnswerJournal::open(&path, &Larger::default()).unwrap();
    says(AnswerJournal::open(&path, &Larger::default()), &["answers.jsonl", "another run"]);
    drop(first);
    AnswerJournal::open(&path, &Larger::default()).unwrap();
}

#[test]
fn nonsense_is_kept_and_asked_again() {
    let (rows, folder) = (rows(5), tempfile::tempdir().unwrap());
    let nonsense = Reply::Answer(Answer { text: Some("as an AI".into()), ..Answer::default() });
    let odd = HashMap::from([(2, nonsense), (5, Reply::Failed("HTTP 500".into()))]);
    let first = run(&rows, &Larger { odd, ..Larger::default() }, folder.path());
    let counts = first.counts();
    assert_eq!((counts.no_answer, counts.unasked, first.failures.len()), (1, 1, 1));
    assert_eq!(first.failures[0], ("rows.jsonl:3, order ba".to_string(), "HTTP 500".to_string()));
    let text = fs::read_to_string(folder.path().join(ANSWERS)).unwrap();
    assert!(text.contains("as an AI") && text.contains("\"failed\":\"HTTP 500\"") && text.contains("rows.jsonl:3"));
    let annotated = first.judged[1].annotate(&rows[1], "x");
    assert_eq!((&annotated["verdict"], &annotated["answers"]), (&json!("no_answer"), &json!([null, "b"])));
    // Those two, and no others.
    let judge = Larger::default();
    let second = run(&rows, &judge, folder.path());
    assert_eq!((second.asked, second.counts().no_answer, second.failures.len()), (2, 0, 0));
    assert!(judge.asked.borrow().contains_key(&Question { comparison: &rows[1], order: PresentationOrder::Ab }.key()));
}

#[test]
fn a_judge_that_only_fails_is_left_alone() {
    let (rows, folder) = (rows(30), tempfile::tempdir().unwrap());
    let fails =
        |from: usize, reply: fn(String) -> Reply| (from..60).map(move |i| (i, reply("no power".into()))).collect();
    let acquired = run(&rows, &Larger { odd: fails(20, Reply::Failed), ..Larger::default() }, folder.path());
    let error = acquired.error.unwrap();
    assert_eq!(error.exit_status(), 1);
    assert!(error.to_string().contains("10 questions in a row") && error.to_string().contains("no power"), "{error}");
    assert_eq!((acquired.asked, acquired.failures.len(), acquired.left), (20, MOST_FAILURES, 30));
    assert_eq!(run(&rows, &Larger::default(), folder.path()).reused, 20);
    // Rows that are at fault themselves end nothing.
    let folder = tempfile::tempdir().unwrap();
    let acquired = run(&rows, &Larger { odd: fails(0, Reply::Unfit), ..Larger::default() }, folder.path());
    assert!(acquired.error.is_none() && acquired.failures.len() == 60);
}

#[test]
fn equal_comparisons_are_asked_once() {
    let folder = tempfile::tempdir().unwrap();
    let mut twice = rows(3);
    twice.extend(rows(3));
    // The same with its sides exchanged has the same two questions.
    let exchanged = twice[1].sides.clone();
    twice.push(pair(7, [exchanged[1].clone(), exchanged[0].clone()]));
    let acquired = run(&twice, &Larger::default(), folder.path());
    assert_eq!(acquired.asked, 6);
    assert_eq!(acquired.judged[1].verdict(), acquired.judged[4].verdict());
    assert_eq!(acquired.judged[6].verdict(), acquired.judged[1].verdict().exchanged());
    assert_ne!(acquired.judged[1].verdict(), Verdict::Tie);
}

// ------------------------------------------------------------------------------------------------------------ people

/// Presses keys in turn; keeps what it was shown.
struct Script {
    keys: Vec<KeyPress>,
    at: Cell<usize>,
    shown: RefCell<Vec<String>>,
}

impl JudgeScreen for &Script {
    fn show(&self, title: &str, texts: &[(&str, String)], _: &str) -> Result<()> {
        let texts: Vec<String> = texts.iter().map(|(heading, text)| format!("{heading}: {text}")).collect();
        self.shown.borrow_mut().push(format!("{title}\n{}", texts.join("\n")));
        Ok(())
    }
    fn press(&self) -> Result<KeyPress> {
        self.at.set(self.at.get() + 1);
        Ok(self.keys.get(self.at.get() - 1).copied().unwrap_or(KeyPress::Quit))
    }
}

#[test]
fn a_person_answers_undoes_skips_and_quits() {
    let (rows, folder) = (rows(4), tempfile::tempdir().unwrap());
    let press = |keys: Vec<KeyPress>| Script { keys, at: Cell::new(0), shown: RefCell::default() };
    let [a, b] = [KeyPress::Choose(Choice::A), KeyPress::Choose(Choice::B)];
    let script = press(vec![
        KeyPress::Undo,
        a,
        KeyPress::Other,
        b,
        KeyPress::Undo,
        a,
        KeyPress::Skip,
        KeyPress::Choose(Choice::Tie),
    ]);
    let person = |screen| HumanJudge { screen, name: "ann".into(), seed: 5 };
    let first = run(&rows, &person(&script), folder.path());
    // (a), (a) in place of (b), nothing, a tie.
    assert_eq!((first.asked, first.left), (4, 4));
    let shown = script.shown.borrow();
    let number = |i: usize| shown[i].split(' ').next().unwrap().parse::<usize>().unwrap();
    assert_eq!((0..shown.len()).map(number).collect::<Vec<_>>(), [1, 2, 3, 2, 3, 4, 5]);
    assert_eq!(shown[1], shown[3], "the question that was undone comes again");
    let letters = first.judged.iter().flat_map(|j| j.choices());
    assert_eq!(letters.clone().filter(|c| *c == Some(Choice::A)).count(), 2);
    assert_eq!(letters.filter(|c| *c == Some(Choice::B)).count(), 0, "what was undone does not count");
    // The one that was skipped comes again, with the four that were not seen.
    let rest = press(vec![a; 5]);
    let second = run(&rows, &person(&rest), folder.path());
    assert_eq!((second.asked, second.reused, second.left), (5, 4, 0));
    assert_eq!(second.counts().no_answer, 0);
    let evil = [pair(1, [side("I\u{1b}[2J", "x\n\u{202e}y"), side("J", "z")])];
    let script = press(vec![a]);
    run(&evil, &person(&script), tempfile::tempdir().unwrap().path());
    assert!(script.shown.borrow()[0].contains("\\u{1b}[2J") && !script.shown.borrow()[0].contains('\u{202e}'));
}

// ------------------------------------------------------------------------------------------------------------ grader

#[test]
fn the_grader_reads_its_own_tasks() {
    let mut rng = Rng::new(5, 5);
    for i in 0..30_000 {
        let kind = TaskKind::ALL[i % TaskKind::ALL.len()];
        let split = if i % 2 == 0 { DataSplit::Train } else { DataSplit::HeldOut };
        let item = tasks::generate_kind(kind, split, &mut rng);
        let found = tasks::read(&item.instruction).unwrap_or_else(|| panic!("{}", item.instruction));
        assert_eq!(
            (found.kind, &found.answer, &found.gold),
            (item.kind, &item.answer, &item.gold),
            "{}",
            item.instruction
        );
        for response in [&item.gold, &item.answer, "no idea"] {
            assert_eq!(tasks::grade(&found, response), tasks::grade(&item, response));
        }
    }
    for other in ["", "Write a poem.", "What is 3 plus x?", "Spell the word .", "Subtract 9 from 3."] {
        assert!(tasks::read(other).is_none(), "{other}");
    }
    let rows = [
        pair(1, [side("What is 2 plus 3?", "The sum is 5."), side("Spell the word fox.", "f-o-z")]),
        pair(2, [side("What is 2 plus 3?", "5"), side("Add 4 and 4.", "8")]),
        pair(3, [side("What is 2 plus 3?", "5"), side("Who are you?", "8")]),
    ];
    let acquired = run(&rows, &Grader::default(), tempfile::tempdir().unwrap().path());
    let verdicts: Vec<Verdict> = acquired.judged.iter().map(|j| j.verdict()).collect();
    assert_eq!(verdicts, [Verdict::First, Verdict::Tie, Verdict::NoAnswer]);
    assert!(acquired.failures[0].0.contains("rows.jsonl:3") && acquired.counts().flips == 0);
}

#[test]
fn a_grader_with_noise_is_wrong_as_often_as_it_is_told() {
    let row =
        |i: usize| pair(i, [side(&format!("What is {i} plus 3?"), &(i + 3).to_string()), side("Add 4 and 4.", "9")]);
    let rows: Vec<_> = (1..1001).map(row).collect();
    let wrong = |noise| {
        let acquired = run(&rows, &Grader { noise }, tempfile::tempdir().unwrap().path());
        assert_eq!(acquired.counts().flips, 0, "the same mistake in both orders");
        acquired.judged.iter().map(|j| j.verdict() == Verdict::Second).collect::<Vec<_>>()
    };
    let count = |noise| wrong(noise).iter().filter(|w| **w).count();
    assert_eq!([count(0.0), count(1.0)], [0, 1000]);
    // Three standard deviations of a binomial count.
    assert!(count(0.3).abs_diff(300) < 44, "{}", count(0.3));
    assert_eq!(wrong(0.3), wrong(0.3));
    let rows = [pair(1, [side("What is 2 plus 3?", "5"), side("Add 4 and 4.", "8")])];
    let acquired = run(&rows, &Grader { noise: 1.0 }, tempfile::tempdir().unwrap().path());
    assert_eq!(acquired.judged[0].verdict(), Verdict::Tie, "a tie is no mistake");
}

// ------------------------------------------------------------------------------------------------------------ strata

fn preferences(n: usize, per_instruction: usize) -> Vec<ConditionalPreference> {
    let one = |i: usize| ConditionalPreference {
        instruction: format!("I{}", i / per_instruction),
        responses: [format!("good {i}"), format!("bad {i}")],
        source: format!("prefs.jsonl:{}", i + 1),
    };
    (0..n).map(one).collect()
}

/// Unordered pairs of preferences with different instructions.
fn capacity(all: &[ConditionalPreference]) -> usize {
    (0..all.len()).map(|i| (0..i).filter(|&j| all[i].instruction != all[j].instruction).count()).sum()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]
    #[test]
    fn strata_are_exactly_balanced(n in 2_usize..40, per in 1_usize..4, pairs in 1_usize..200, seed: u64) {
        let all = preferences(n, per);
        let path = Path::new("out/comparisons.jsonl");
        let most = 3 * capacity(&all);
        let drawn = draw(&all, &Stratum::DRAWN, pairs, seed, path);
        // Each of the first two strata holds `capacity` pairs, the mixed one twice as many.
        if pairs.div_ceil(3) > capacity(&all) {
            prop_assert!(drawn.is_err(), "{pairs} pairs of {most}");
            return Ok(());
        }
        let drawn = drawn.unwrap();
        prop_assert_eq!(drawn.len(), pairs);
        let mut counts: HashMap<&str, usize> = HashMap::new();
        let mut seen = HashSet::new();
        let (mut first, mut second) = (0_usize, 0);
        let mut used: HashMap<(String, &str), usize> = HashMap::new();
        for row in &drawn {
            let stratum = row.more["stratum"].as_str().unwrap();
            *counts.entry(stratum).or_default() += 1;
            prop_assert!(row.sides[0].instruction != row.sides[1].instruction);
            let mut sides = row.sides.clone().map(|s| s.instruction + &s.response);
            for (i, side) in sides.iter().enumerate() {
                let chosen = row.more[&format!("chosen_{i}")].as_bool().unwrap();
                prop_assert_eq!(row.sides[i].response.starts_with("good"), chosen);
                let source = row.more[&format!("source_{i}")].as_str().unwrap();
                let preference = all.iter().find(|p| p.source == source).unwrap();
                prop_assert_eq!(&row.sides[i].instruction, &preference.instruction);
                prop_assert!(preference.responses.contains(&row.sides[i].response));
                *used.entry((side.clone(), stratum)).or_default() += 1;
            }
            let chosen = [0, 1].map(|i| row.more[&format!("chosen_{i}")] == true);
            let expected = match chosen {
                [true, true] => "both_chosen",
                [false, false] => "both_rejected",
                _ => "mixed",
            };
            prop_assert_eq!(stratum, expected);
            if stratum == "mixed" {
                first += usize::from(chosen[0]);
                second += usize::from(chosen[1]);
            }
            sides.sort();
            prop_assert!(seen.insert(sides), "no pair comes twice");
        }
        let count = |s: Stratum| counts.get(s.name()).copied().unwrap_or(0);
        let [chosen, rejected, mixed] = Stratum::DRAWN.map(count);
        prop_assert!(chosen - mixed <= 1 && rejected - mixed <= 1 && chosen + rejected + mixed == pairs);
        prop_assert!(first.abs_diff(second) <= 1, "{first} {second}");
        let again = draw(&all, &Stratum::DRAWN, pairs, seed, path).unwrap();
        prop_assert!(again == drawn);
    }
}

#[test]
fn preferences_are_used_evenly() {
    let all = preferences(50, 1);
    let drawn = draw(&all, &Stratum::DRAWN, 300, 7, Path::new("c")).unwrap();
    for stratum in Stratum::DRAWN {
        let mut used: HashMap<String, usize> = HashMap::new();
        for row in drawn.iter().filter(|row| row.more["stratum"] == stratum.name()) {
            row.sides.iter().for_each(|side| *used.entry(side.instruction.clone()).or_default() += 1);
        }
        // 200 places: each of 50 preferences comes 4 times, or one off.
        assert_eq!(used.len(), 50);
        assert!(used.values().all(|&n| n.abs_diff(4) <= 1), "{stratum:?} {used:?}");
        // While there are enough, none comes twice.
        let first = drawn.iter().filter(|row| row.more["stratum"] == stratum.name()).take(25);
        let first: HashSet<&str> = first.flat_map(|row| row.sides.iter().map(|s| s.instruction.as_str())).collect();
        assert_eq!(first.len(), 50);
    }
    assert_ne!(draw(&all, &Stratum::DRAWN, 300, 8, Path::new("c")).unwrap(), drawn);
    says(
        draw(&preferences(3, 1), &Stratum::DRAWN, 12, 0, Path::new("c")),
        &["--pairs", "12", "4 of both chosen", "hold 3"],
    );
    // All that there are.
    assert_eq!(draw(&preferences(3, 1), &Stratum::DRAWN, 9, 0, Path::new("c")).unwrap().len(), 9);
}

#[test]
fn the_strata_named_are_drawn_alone() {
    let all = preferences(20, 1);
    let kinds = |strata: &[Stratum], n| -> Vec<String> {
        let drawn = draw(&all, strata, n, 7, Path::new("c")).unwrap();
        drawn.iter().map(|row| row.more["stratum"].as_str().unwrap().to_string()).collect()
    };
    assert_eq!(kinds(&[Stratum::Mixed], 4), ["mixed"; 4]);
    assert_eq!(
        kinds(&[Stratum::Mixed, Stratum::BothChosen], 5),
        ["mixed", "both_chosen", "mixed", "both_chosen", "mixed"]
    );
    let twice = draw(&all, &[Stratum::Mixed, Stratum::Mixed], 4, 7, Path::new("c"));
    says(twice, &["--strata", "none twice"]);
    let few = draw(&preferences(2, 1), &[Stratum::BothChosen, Stratum::Mixed], 4, 7, Path::new("c"));
    says(few, &["--pairs", "4 pairs need 2 of both chosen", "hold 1"]);
}

// -------------------------------------------------------------------------------------------------------- statistics

fn fixture() -> Value {
    serde_json::from_str(include_str!("statistics/statistics.json")).unwrap()
}

fn floats(value: &Value) -> Vec<f64> {
    value.as_array().unwrap().iter().map(|v| v.as_f64().unwrap()).collect()
}

#[test]
fn kappa_and_quantiles_equal_scikit_learn_and_numpy() {
    let fixture = fixture();
    for case in fixture["kappas"].as_array().unwrap() {
        let whole = |name: &str| floats(&case[name]).into_iter().map(|x| x as usize).collect::<Vec<_>>();
        let (a, b, weights) = (whole("a"), whole("b"), floats(&case["weights"]));
        let n = case["n"].as_u64().unwrap() as usize;
        let found = |weight: &dyn Fn(usize) -> f64| kappa((0..a.len()).map(|i| ([a[i], b[i]], weight(i))), n);
        assert!((found(&|_| 1.0) - case["kappa"].as_f64().unwrap()).abs() < 1e-12);
        let weighted = case["weighted"].as_f64().unwrap();
        assert!((found(&|i| weights[i]) - weighted).abs() < 1e-12);
        // One answer that is another is seen.
        let nudged = kappa((0..a.len()).map(|i| ([if i == 0 { (a[0] + 1) % n } else { a[i] }, b[i]], weights[i])), n);
        assert!((nudged - weighted).abs() > 1e-4);
    }
    assert!(kappa([([0, 0], 1.0)], 2).is_nan() && kappa([], 2).is_nan());
    for case in fixture["quantiles"].as_array().unwrap() {
        let values = floats(&case["values"]);
        for (q, expected) in floats(&case["q"]).into_iter().zip(floats(&case["quantiles"])) {
            assert!((quantile(&values, q) - expected).abs() < 1e-14);
        }
    }
    assert!(quantile(&[], 0.5).is_nan());
}

/// Ends within four of their own standard deviations (those of a run of 2000 draws), and further than that from where they are not.
#[track_caller]
fn near(found: [f64; 3], case: &Value, name: &str) -> bool {
    let (ends, sd) = (floats(&case[name]), floats(&case["sd"]));
    (0..2).all(|i| (found[i + 1] - ends[i]).abs() <= 4.0 * sd[i] + 1e-12)
}

#[test]
fn intervals_equal_scipy() {
    let fixture = fixture();
    for case in fixture["shares"].as_array().unwrap() {
        let hits: Vec<bool> = floats(&case["hits"]).iter().map(|&h| h == 1.0).collect();
        let names: Vec<String> = (0..hits.len()).map(|i| i.to_string()).collect();
        let resampler = ClusterResampler::new(names.iter().map(|name| vec![name.as_str()]));
        assert_eq!(resampler.units(), ResamplingUnits::Groups);
        let of = |weights: &[f64]| share(weights, &hits);
        let found = resampler.interval(&of, 0.95, 2000, 3);
        assert!(near(found, case, "ends") && near(found, case, "exact"), "{found:?} {case}");
        assert!((found[0] - hits.iter().filter(|&&h| h).count() as f64 / hits.len() as f64).abs() < 1e-12);
        let wrong = resampler.interval(&of, 0.80, 2000, 3);
        assert!(!near(wrong, case, "ends"), "80 % is told from 95 %: {wrong:?}");
        assert_eq!(found, resampler.interval(&of, 0.95, 2000, 3));
    }
    let case = &fixture["kappa_interval"];
    let (a, b) = (floats(&case["a"]), floats(&case["b"]));
    let names: Vec<String> = (0..a.len()).map(|i| i.to_string()).collect();
    let resampler = ClusterResampler::new(names.iter().map(|name| vec![name.as_str()]));
    let of = |weights: &[f64]| kappa((0..a.len()).map(|i| ([a[i] as usize, b[i] as usize], weights[i])), 3);
    let found = resampler.interval(&of, 0.95, 2000, 3);
    assert!(near(found, case, "ends"), "{found:?} {}", case["ends"]);
}

#[test]
fn shared_rows_are_drawn_not_comparisons() {
    let fixture = fixture();
    for (name, units) in [("groups", ResamplingUnits::Groups), ("rows", ResamplingUnits::Rows)] {
        let case = &fixture[name];
        let hits: Vec<bool> = floats(&case["hits"]).iter().map(|&h| h == 1.0).collect();
        let names = case["units"].as_array().unwrap();
        let resampler = ClusterResampler::new(
            names.iter().map(|own| own.as_array().unwrap().iter().map(|u| u.as_str().unwrap()).collect()),
        );
        assert_eq!(resampler.units(), units);
        let of = |weights: &[f64]| share(weights, &hits);
        let found = resampler.interval(&of, 0.95, 2000, 3);
        assert!(near(found, case, "ends"), "{name}: {found:?} {}", case["ends"]);
        if case.get("alone").is_some() {
            assert!(!near(found, case, "alone"), "{name}: as wide as if nothing were shared: {found:?}");
        }
    }
    // What is nowhere has no interval.
    let nothing = ClusterResampler::new([]).interval(&|weights| share(weights, &[]), 0.95, 100, 0);
    assert!(nothing.iter().all(|x| x.is_nan()));
}

// --------------------------------------------------------------------------------------------------------- interplay

const BOOTSTRAP: BootstrapSettings = BootstrapSettings { level: 0.95, draws: 200, seed: 0 };

fn annotated(i: usize, chosen: [bool; 2], answers: [&str; 2], judge: &str) -> String {
    json!({
        "instruction_0": format!("I{i}"), "response_0": "x", "instruction_1": format!("J{i}"), "response_1": "y",
        "chosen_0": chosen[0], "chosen_1": chosen[1], "source_0": format!("p:{i}"), "source_1": format!("p:{}", i + 100),
        "answers": answers.map(|a| if a == "-" { json!(null) } else { json!(a) }), "judge": judge,
    })
    .to_string()
}

/// What a row says: both chosen, both rejected, C first, C second.
const ROWS: [([bool; 2], [&str; 2]); 12] = [
    ([true, true], ["a", "b"]),
    ([true, true], ["a", "a"]),
    ([true, true], ["b", "a"]),
    ([true, true], ["tie", "tie"]),
    ([false, false], ["a", "b"]),
    ([false, false], ["b", "b"]),
    ([true, false], ["a", "b"]),
    ([true, false], ["b", "a"]),
    ([false, true], ["b", "a"]),
    ([false, true], ["b", "a"]),
    ([false, true], ["a", "a"]),
    ([false, true], ["a", "-"]),
];

#[test]
fn the_analysis_counts_by_hand() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("annotated.jsonl");
    let lines: Vec<String> = ROWS.iter().enumerate().map(|(i, (c, a))| annotated(i, *c, *a, "j")).collect();
    fs::write(&path, lines.join("\n") + "\n{\"instruction_0\":\"cut").unwrap();
    let (file, note) = read(&path, false).unwrap();
    assert!(note.unwrap().contains("annotated.jsonl:13"), "the half-written line is named");
    let found = analyse(&file, &BOOTSTRAP);
    assert_eq!((found.rows, found.no_answer), (12, 1));
    assert!(found.decisive.iter().all(|(_, x)| x.units == ResamplingUnits::Groups));
    let decisive: Vec<(&str, usize, f64)> = found.decisive.iter().map(|(name, x)| (*name, x.n, x.value)).collect();
    assert_eq!(
        decisive,
        [("all", 11, 7.0 / 11.0), ("both_chosen", 4, 0.5), ("both_rejected", 2, 0.5), ("mixed", 5, 0.8)]
    );
    let mixed: Vec<f64> = found.mixed.iter().map(|(_, x)| x.value).collect();
    assert_eq!(mixed, [0.6, 0.2, 0.2]);
    assert_eq!((found.conditional_agreement.value, found.conditional_agreement.n), (0.75, 4));
    // Chosen 0 0 1 1, joint 0 1 1 1: p_o = 3/4, p_e = 1/2.
    assert!((found.conditional_kappa.value - 0.5).abs() < 1e-12);
    // Letters: 2 per row but the tie and the missing one.
    assert_eq!((found.said_a.n, found.said_a.value), (21, 12.0 / 21.0));
    assert_eq!((found.flips.n, found.flips.value, found.flips_to_a.value), (10, 0.3, 2.0 / 3.0));
    assert!(found.decisive.iter().all(|(_, x)| x.low <= x.value && x.value <= x.high));
}

#[test]
fn judges_are_matched_by_what_they_compared() {
    let folder = tempfile::tempdir().unwrap();
    let (a, b) = (folder.path().join("a.jsonl"), folder.path().join("b.jsonl"));
    let lines: Vec<String> = ROWS.iter().enumerate().map(|(i, (c, x))| annotated(i, *c, *x, "one")).collect();
    fs::write(&a, lines.join("\n")).unwrap();
    // The other judge's file is the other way round in both senses, and has a row more.
    let mut other: Vec<String> = lines
        .iter()
        .map(|line| {
            let row: Value = serde_json::from_str(line).unwrap();
            let mut swapped = row.clone();
            for (x, y) in ["instruction", "response", "chosen", "source"].map(|n| (format!("{n}_0"), format!("{n}_1")))
            {
                (swapped[&x], swapped[&y]) = (row[&y].clone(), row[&x].clone());
            }
            // Order ab of the exchanged row is order ba of the other.
            swapped["answers"] = json!([row["answers"][1], row["answers"][0]]);
            swapped["judge"] = json!("two");
            swapped.to_string()
        })
        .collect();
    other.push(annotated(99, [true, true], ["a", "b"], "two"));
    other.reverse();
    fs::write(&b, other.join("\n")).unwrap();
    let (one, two) = (read(&a, false).unwrap().0, read(&b, true).unwrap().0);
    let found = compare(&one, &two, &BOOTSTRAP);
    assert_eq!((found.verdicts.n, found.verdicts.value, found.kappa.value), (11, 1.0, 1.0));
    assert_eq!((found.decided.n, found.decided.value), (7, 1.0));
    assert!(found.with_person);
    // A judge who says the opposite.
    fs::write(&b, other.join("\n").replace("\"answers\":[\"a\",\"b\"]", "\"answers\":[\"b\",\"a\"]")).unwrap();
    let opposite = compare(&one, &read(&b, false).unwrap().0, &BOOTSTRAP);
    assert!(opposite.verdicts.value < 1.0 && opposite.kappa.value < 1.0 && opposite.decided.value < 1.0);

    let all = interplay(&[one, two], BOOTSTRAP);
    let tables = interplay_report::tables(&all);
    let captions: Vec<&str> = tables.iter().map(|t| t.caption.as_str()).collect();
    assert_eq!(captions.len(), 4, "{captions:?}");
    assert!(captions[3].contains("people") && tables[3].rows[0][2].starts_with("100.0"), "{:?}", tables[3]);
    assert!(tables.iter().all(|t| t.rows.iter().all(|row| row.len() == t.head.len())));
    let page = report::render(&Report { bars: interplay_report::figures(&all), tables, ..Report::default() });
    assert_eq!(page.matches("<figure").count(), 4);
    assert!(page.contains("class=\"whisker\"") && !page.contains("NaN") && !page.contains("{{"));
    assert!(!page.contains("training report") && !page.contains("No step"));
    let json = serde_json::to_string(&all).unwrap();
    assert!(json.contains("\"C>R\"") && json.contains("\"units\":\"groups\""));
}

#[test]
fn rows_that_were_not_judged_are_told() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("rows.jsonl");
    let good = annotated(0, [true, false], ["a", "b"], "j");
    let refused = |change: &dyn Fn(&mut Value), parts: &[&str]| {
        let mut row: Value = serde_json::from_str(&good).unwrap();
        change(&mut row);
        fs::write(&path, format!("{good}\n{row}\n")).unwrap();
        says(read(&path, false), &[&["rows.jsonl:2"], parts].concat());
    };
    refused(&|row| drop(row.as_object_mut().unwrap().remove("answers")), &["verdict", "not judged"]);
    refused(&|row| row["answers"] = json!(["a", "c"]), &["answers"]);
    refused(&|row| row["verdict"] = json!("second"), &["contradict"]);
    refused(&|row| row["verdict"] = json!(3), &["verdict", "no_answer"]);
    refused(&|row| row["stratum"] = json!("both_chosen"), &["stratum", "contradicts"]);
    refused(&|row| row["stratum"] = json!("odd"), &["stratum", "mixed"]);
    refused(&|row| row["chosen_1"] = json!("no"), &["chosen_1", "true or false"]);
    refused(&|row| row["judge"] = json!("other"), &["judge", "another"]);
    refused(&|row| row["response_1"] = json!(null), &["response_1", "missing"]);
    fs::write(&path, "{").unwrap();
    says(read(&path, false), &["rows.jsonl", "no rows"]);
    says(read(&folder.path().join("none"), false), &["none"]);
}

#[test]
fn pending_is_what_has_no_letter() {
    let (rows, folder) = (rows(2), tempfile::tempdir().unwrap());
    let judge = Larger::default();
    let mut journal = AnswerJournal::open(&folder.path().join(ANSWERS), &judge).unwrap();
    assert!(journal.is_empty());
    assert_eq!(pending(&rows, &journal).len(), 4);
    let question = Question { comparison: &rows[0], order: PresentationOrder::Ba };
    journal.keep(&question, Answer::default()).unwrap();
    assert_eq!(pending(&rows, &journal).len(), 4, "nonsense is asked again");
    journal.keep(&question, Choice::B.into()).unwrap();
    assert_eq!(pending(&rows, &journal).len(), 3);
    journal.undo(&question).unwrap();
    assert_eq!(pending(&rows, &journal).len(), 4);
}
