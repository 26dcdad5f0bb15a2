//! The demo's world: graders, splits, rows, tokenizer.
#![allow(clippy::unwrap_used)]

use jointwise::eval::tasks::{self, AnswerForm, AnswerQuality, DataSplit, TaskItem, TaskKind, rows, tokenizer, words};
use jointwise::rng::Rng;
use std::collections::{HashMap, HashSet};
use tokenizers::Tokenizer;

fn items(n: usize) -> Vec<TaskItem> {
    let mut rng = Rng::new(7, 7);
    (0..n).map(|i| tasks::generate_kind(TaskKind::ALL[i % TaskKind::ALL.len()], DataSplit::Train, &mut rng)).collect()
}

#[test]
fn grades_follow_quality() {
    let mut rng = Rng::new(1, 2);
    for item in items(3000) {
        let mut grade = |quality| {
            let response = tasks::answer(&item, quality, &mut rng);
            (tasks::grade(&item, &response), response)
        };
        let [good, bare, sloppy, wrong] =
            [AnswerQuality::Good, AnswerQuality::Bare, AnswerQuality::Sloppy, AnswerQuality::Wrong].map(&mut grade);
        assert!(good.0.correct && good.0.score == 1.0 && good.0.form == AnswerForm::Sentence, "{item:?} {good:?}");
        assert!(bare.0.correct && bare.0.score == 0.8 && bare.0.form == AnswerForm::Bare, "{item:?} {bare:?}");
        assert!(sloppy.0.correct && sloppy.0.score < 0.8 && sloppy.0.form == AnswerForm::Sloppy, "{item:?} {sloppy:?}");
        assert!(!wrong.0.correct && wrong.0.score < 0.5, "{item:?} {wrong:?}");
        assert!(good.1.ends_with('.') && good.1.is_ascii() && item.instruction.is_ascii());
    }
}

#[test]
fn grades_of_odd_responses() {
    let item: TaskItem = serde_json::from_str(
        r#"{"instruction":"What is 27 plus 5?","gold_response":"The sum is 32.","kind":"add","answer":"32"}"#,
    )
    .unwrap();
    let score = |r: &str| (10.0 * tasks::grade(&item, r).score).round();
    assert_eq!(score("The sum is 32."), 10.0);
    assert_eq!(score("The answer is 32."), 10.0);
    assert_eq!(score("32."), 8.0);
    assert_eq!(score("the sum is 32"), 7.0);
    assert_eq!(score("um, 32 i guess"), 7.0);
    assert_eq!(score("The sum is 33."), 4.0);
    assert_eq!(score("32 33"), 2.0);
    assert_eq!(score(""), 0.0);
    assert_eq!(score("."), 0.0);
    assert_eq!(score("The sum is 32. The sum is 32. The sum is 32."), 0.0);
    assert_eq!(score(&"é🙂".repeat(40)), 0.0);
    let rate = tasks::win_rate([(&item, "The sum is 32.", "32"), (&item, "32", "32"), (&item, "31", "32")]);
    assert_eq!((rate.wins, rate.ties, rate.losses, rate.rate()), (1, 1, 1, 0.5));
}

#[test]
fn answers_are_true() {
    for item in items(3000) {
        let content: Vec<&str> = item.instruction.trim_end_matches(['.', '?']).split([' ', ',']).collect();
        let numbers: Vec<i64> = content.iter().filter_map(|w| w.parse().ok()).collect();
        match item.kind {
            TaskKind::Add => assert_eq!(item.answer, numbers.iter().sum::<i64>().to_string()),
            TaskKind::Subtract => assert_eq!(item.answer, (numbers[0] - numbers[1]).abs().to_string()),
            TaskKind::Capitals => assert!(item.instruction.contains(&item.answer.to_lowercase())),
            TaskKind::Spell => assert!(item.instruction.contains(&item.answer.replace('-', ""))),
            TaskKind::Reverse => assert!(item.instruction.contains(&item.answer.chars().rev().collect::<String>())),
            TaskKind::Pick | TaskKind::Odd => assert!(item.instruction.contains(&item.answer)),
            TaskKind::Extreme if item.instruction.contains("largest") => {
                assert_eq!(item.answer, numbers.iter().max().unwrap().to_string());
            }
            TaskKind::Extreme => assert_eq!(item.answer, numbers.iter().min().unwrap().to_string()),
            _ => {}
        }
    }
    for (noun, plural) in
        [("fox", "foxes"), ("berry", "berries"), ("toy", "toys"), ("match", "matches"), ("cat", "cats")]
    {
        assert_eq!(words::plural(noun), plural);
    }
    for (verb, past) in [("walk", "walked"), ("bake", "baked"), ("carry", "carried"), ("play", "played")] {
        assert_eq!(words::past(verb), past);
    }
}

#[test]
fn sides_never_meet() {
    let trained: HashSet<String> = rows::sft(DataSplit::Train, 1, 20_000).map(|r| r.instruction).collect();
    let joint = rows::joint(DataSplit::Train, 1, 3000).flat_map(|r| [r.i_chosen, r.i_reject]);
    let trained: HashSet<String> = trained.into_iter().chain(joint).collect();
    let held = rows::held_out(1, 450);
    assert!(held.iter().all(|i| !trained.contains(&i.instruction)));
    let unique: HashSet<&str> = held.iter().map(|i| i.instruction.as_str()).collect();
    assert!(unique.len() > 440, "{}", unique.len());
    // The same question in the other order or wording stays on its side.
    let mut rng = Rng::new(3, 3);
    let sums = |split, rng: &mut Rng| -> HashSet<Vec<u32>> {
        let terms = |i: TaskItem| {
            let parts = i.instruction.split(|c: char| !c.is_ascii_digit()).filter_map(|w| w.parse().ok());
            let mut parts: Vec<u32> = parts.collect();
            parts.sort();
            parts
        };
        (0..2000).map(|_| terms(tasks::generate_kind(TaskKind::Add, split, rng))).collect()
    };
    let (train, held) = (sums(DataSplit::Train, &mut rng), sums(DataSplit::HeldOut, &mut rng));
    assert!(train.is_disjoint(&held) && held.len() > 80, "{} {}", train.len(), held.len());
}

#[test]
fn rows_are_deterministic_and_as_documented() {
    assert!(rows::joint(DataSplit::Train, 5, 50).eq(rows::joint(DataSplit::Train, 5, 50)));
    assert!(!rows::sft(DataSplit::Train, 5, 50).eq(rows::sft(DataSplit::Train, 6, 50)));
    assert_eq!(rows::held_out(5, 40), rows::held_out(5, 40));
    // Each kind is drawn as often as its weight says.
    let mut kinds: HashMap<TaskKind, u32> = HashMap::new();
    let mut rng = Rng::new(2, 2);
    let n = 18_000;
    for _ in 0..n {
        *kinds.entry(tasks::generate(DataSplit::Train, &mut rng).kind).or_default() += 1;
    }
    let total: u32 = TaskKind::ALL.iter().map(|k| k.weight()).sum();
    for kind in TaskKind::ALL {
        let expected = f64::from(n * kind.weight() / total);
        assert!((f64::from(kinds[&kind]) / expected - 1.0).abs() < 0.15, "{kind:?} {} of {expected}", kinds[&kind]);
    }
    for row in rows::conditional(DataSplit::Train, 5, 300) {
        assert!(row.i_chosen == row.i_reject && row.r_chosen != row.r_reject);
    }
    for row in rows::joint(DataSplit::Train, 5, 300) {
        assert_ne!(row.i_chosen, row.i_reject);
    }
}

#[test]
fn files_are_written() {
    let folder = tempfile::tempdir().unwrap();
    let sizes = rows::TaskSizes { sft: 20, preferences: 10, validation: 5, held_out: 15 };
    rows::write_all(folder.path(), 1, &sizes).unwrap();
    let read = |name: &str| std::fs::read_to_string(folder.path().join(name)).unwrap();
    assert_eq!(read("sft.jsonl").lines().count(), 20);
    let row: rows::PreferenceRow = serde_json::from_str(read("joint.jsonl").lines().next().unwrap()).unwrap();
    assert!(!row.i_chosen.is_empty());
    for line in read("held_out.jsonl").lines() {
        let item: TaskItem = serde_json::from_str(line).unwrap();
        assert_eq!(tasks::grade(&item, &item.gold).score, 1.0);
    }
    let missing = folder.path().join("no/such/sft.jsonl");
    assert!(rows::write(&missing, rows::sft(DataSplit::Train, 1, 1)).unwrap_err().to_string().contains("sft.jsonl"));
}

fn tokenizer() -> Tokenizer {
    Tokenizer::from_bytes(tokenizer::tokenizer_json()).unwrap()
}

#[test]
fn tokenizer_returns_every_text() {
    let tokenizer = tokenizer();
    let round = |text: &str| {
        let ids = tokenizer.encode(text, false).unwrap();
        tokenizer.decode(ids.get_ids(), false).unwrap()
    };
    for text in ["", " ", "Hello, world!  \n\t", "naïve 東京 🙂 \u{0}", "The The  the", "'s don't"] {
        assert_eq!(round(text), text);
    }
    let (mut n, mut tokens, mut longest, mut response) = (0, 0, 0, 0);
    for row in rows::sft(DataSplit::Train, 9, 5000) {
        let prompt = format!("### Instructions: {}\n\n### Response:", row.instruction);
        let text = format!("{prompt}{}", row.response);
        let ids = tokenizer.encode(text.as_str(), false).unwrap();
        assert_eq!(round(&text), text);
        let head = tokenizer.encode(prompt.as_str(), false).unwrap();
        assert_eq!(ids.get_ids()[..head.len()], *head.get_ids(), "a clean boundary: {text}");
        n += 1;
        tokens += ids.len() + 2;
        response += ids.len() + 1 - head.len();
        longest = longest.max(ids.len() + 2);
    }
    println!(
        "{} tokens a row, {} of the response, longest {longest}",
        tokens as f64 / n as f64,
        response as f64 / n as f64
    );
    assert!(tokens / n < 40 && longest <= 64, "{} {longest}", tokens / n);
}

#[test]
fn tokenizer_spells_material_and_keeps_the_words_of_instructions() {
    let tokenizer = tokenizer();
    assert_eq!(tokenizer.get_vocab_size(true), tokenizer::vocabulary().len());
    assert!(tokenizer::vocabulary().len() <= 512);
    let unique: HashSet<String> = tokenizer::vocabulary().into_iter().collect();
    assert_eq!(unique.len(), tokenizer::vocabulary().len());
    for (id, token) in tokenizer::SPECIAL.iter().enumerate() {
        assert_eq!(tokenizer.token_to_id(token), Some(id as u32));
    }
    let mut rng = Rng::new(4, 4);
    for _ in 0..500 {
        let word = words::word(8, &mut rng);
        let ids = tokenizer.encode(format!(" {word}"), false).unwrap();
        assert_eq!(ids.len(), word.len() + 1, "{word}");
    }
    let pieces = |text: &str| tokenizer.encode(text, false).unwrap().get_tokens().join("|");
    assert_eq!(pieces("### Instructions: Spell the word fox."), "###|ĠInstructions|:|ĠSpell|Ġthe|Ġword|Ġ|f|o|x|.");
    assert_eq!(pieces("\n\n### Response:The sum is 32."), "Ċ|Ċ|###|ĠResponse|:|The|Ġsum|Ġis|Ġ|3|2|.");
    // Every word of instructions and gold sentences that is not material is one token.
    for wording in ["How many letters are in", "What is the past tense of", "Which is the odd one out:"] {
        assert_eq!(
            tokenizer.encode(format!(" {wording}"), false).unwrap().len(),
            wording.split(' ').count() + usize::from(wording.ends_with(':')),
            "{wording}"
        );
    }
}

#[test]
fn the_model_has_about_a_million_parameters() {
    let shape = tokenizer::DemoShape::DEMO;
    let n = shape.n_parameters();
    println!("{n} parameters, {} tokens", tokenizer::vocabulary().len());
    assert!((900_000..1_100_000).contains(&n), "{n}");
    let config: serde_json::Value = serde_json::from_str(&shape.config_json()).unwrap();
    assert_eq!(config["vocab_size"], tokenizer::vocabulary().len());
    for text in [tokenizer::tokenizer_config_json(), tokenizer::special_tokens_map_json()] {
        assert_eq!(serde_json::from_str::<serde_json::Value>(&text).unwrap()["bos_token"], "<s>");
    }
}
