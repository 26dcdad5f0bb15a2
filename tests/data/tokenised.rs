//! Rows on all cores, and instructions once: the tokens of one row after the other, each text by itself.

use jointwise::data::bad_rows::{BadRowLimit, BadRows};
use jointwise::data::dataset::DatasetBuilder;
use jointwise::data::rows::SourceLocation;
use proptest::prelude::*;

use super::*;

/// Tokenizers of several kinds: GPT-2's, Llama 3's and Qwen's part words; SentencePiece's see a whole text.
const TOKENIZERS: [&str; 6] = ["gpt2-odd", "llama3-scaling", "qwen3", "mistral-odd", "gemma2", "gemma3"];

fn tokenizer(name: &str) -> Tokenizer {
    Tokenizer::load(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/oracle").join(name).join("model")).unwrap()
}

fn row(line: usize, content: RowContent) -> Row {
    Row { place: SourceLocation::new(Path::new("rows.jsonl"), line), content }
}

/// Rows of every fate: kept, cut, dropped, bad.
fn many(n: usize) -> Vec<Row> {
    let word = |i: usize| ["colour", "of the", "sea", "42", "ü漢", "it's", "\n\n", "Say"][i % 8];
    let text = |i: usize, n: usize| (0..n).map(|k| word(i * 7 + k * k)).collect::<Vec<_>>().join(" ");
    let content = |i: usize| match i % 37 {
        5 => RowContent::Unreadable(format!("bad row {i}")),
        11 => preference(plain(&text(i, 9), " "), plain(&text(i, 9), "no")),
        17 => preference(plain("same", "a"), plain("same", "a")),
        23 => preference(chat(&[("system", "S"), ("user", "Q")], "a"), plain("Q", "b")),
        _ => preference(plain(&text(i, i % 40), &text(i + 1, 5)), plain(&text(i, i % 40), &text(i + 2, 3 + i % 9))),
    };
    (0..n).map(|i| row(i + 1, content(i))).collect()
}

#[test]
fn rows_on_all_cores_are_rows_one_after_the_other() {
    let (rows, tokenizer) = (many(700), bpe512());
    let skip = BadRows::Skip(BadRowLimit::Share(1.0));
    for (max_length, overflow) in [(120, Overflow::Drop), (120, Overflow::TruncatePrompt), (240, Overflow::Paper)] {
        let limits = LengthLimits { max_length, overflow };
        let together = Dataset::build_with(&rows, &tokenizer, &Template::Paper, limits, skip).unwrap();
        let mut builder = DatasetBuilder::new(&tokenizer, &Template::Paper, limits, skip).unwrap();
        rows.iter().for_each(|row| builder.add(std::slice::from_ref(row)).unwrap());
        let alone = builder.finish().unwrap();
        assert_eq!(together, alone, "{overflow:?}");
        let fates = [OverflowAction::Dropped, OverflowAction::Truncated, OverflowAction::Skipped]
            .map(|fate| together.count(fate));
        assert!(fates[2] > 18 && fates[0] + fates[1] > 30 && together.examples.len() > 100, "{fates:?}");
    }
    // The first error of the rows, wherever the cores are.
    let error = |rows: &[Row]| Dataset::build(rows, &tokenizer, &Template::Paper, LIMITS).unwrap_err().to_string();
    assert_eq!(error(&rows), "rows.jsonl:6: bad row 5");
    let mut labelled = rows.clone();
    labelled[3].content = RowContent::Labelled(plain("Q", "a"), true);
    assert!(error(&labelled).starts_with("rows.jsonl:4: texts with a label stand beside"), "{}", error(&labelled));
}

/// Both sides of a preference, and each of its texts alone.
fn compare(tokenizer: &Tokenizer, template: &Template, prompt: &str, answers: [&str; 2]) {
    let texts = answers.map(|answer| plain(prompt, answer));
    let pair = row(1, preference(texts[0].clone(), texts[1].clone()));
    let limits = LengthLimits { max_length: 100_000, overflow: Overflow::Error };
    let Ok(data) = Dataset::build(&[pair], tokenizer, template, limits) else { return };
    let alone = texts.map(|text| tokenizer.encode(&text, template).unwrap());
    assert_eq!(data.examples[0].sequences, alone, "{prompt:?} {answers:?}");
}

#[test]
fn shared_instructions_have_the_tokens_of_each_text_alone() {
    let tokenizers = TOKENIZERS.map(tokenizer);
    let pieces = prop::sample::select(vec![
        "one",
        "two",
        " ",
        "  ",
        "\n",
        "'s",
        " 's",
        "3",
        "42",
        "é",
        "漢",
        ".",
        " (",
        "\t",
        "Say",
        "<s>",
        "<|im_end|>",
        " a",
        "e\u{301}",
        "\u{301}",
    ]);
    let text = || prop::collection::vec(pieces.clone(), 0..12).prop_map(|pieces| pieces.concat());
    let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig {
        cases: 300,
        failure_persistence: None,
        ..ProptestConfig::default()
    });
    let cases = (text(), text(), text());
    runner
        .run(&cases, |(prompt, a, b)| {
            for tokenizer in &tokenizers {
                for template in [Template::None, Template::Paper, Template::Text("{instruction} then".into())] {
                    compare(tokenizer, &template, &prompt, [&a, &b]);
                }
            }
            Ok(())
        })
        .unwrap();
    // The control: texts that are parted elsewhere have other tokens.
    let llama = &tokenizers[1];
    let text = "Name the colour of the sea.";
    let whole = llama.encode_text(text).unwrap();
    let parted =
        |at: usize| [llama.encode_text(&text[..at]).unwrap(), llama.encode_text(&text[at..]).unwrap()].concat();
    assert!((1..text.len()).any(|at| parted(at) != whole));
    assert_eq!(
        [4, 8, 15].map(parted),
        [(); 3].map(|()| whole.clone()),
        "between a letter and a space they are the same"
    );
}

#[test]
fn everything_that_tokens_depend_on_is_in_the_digest() {
    let paper = bpe512().digest(&Template::Paper);
    assert_eq!(bpe512().digest(&Template::Paper), paper);
    let mut chosen = bpe512();
    chosen.set_stop_ids(vec![3]);
    let mut narrow = bpe512();
    narrow.check_vocab(600).unwrap();
    let dated = |seconds| {
        let config = r#"{"bos_token":"<|bos|>","eos_token":"<|eos|>","chat_template":"{{ strftime_now('%Y') }}{{ messages[0].content }}"}"#;
        let tokenizer = with_config(config).unwrap();
        tokenizer.chat_templates().set_time(seconds);
        [tokenizer.digest(&Template::Chat), tokenizer.digest(&Template::Paper)]
    };
    let ([today, plain], [tomorrow, same]) = (dated(0), dated(86_400));
    assert_eq!(plain, same, "a template that is not used");
    let others = [
        bpe512().digest(&Template::None),
        bpe512().digest(&Template::Chat),
        bpe512().without_end().digest(&Template::Paper),
        with_config(r#"{"bos_token":null,"eos_token":"<|eos|>"}"#).unwrap().digest(&Template::Paper),
        chosen.digest(&Template::Paper),
        narrow.digest(&Template::Paper),
        tokenizer("llama3-scaling").digest(&Template::Paper),
        paper,
        plain,
        today,
        tomorrow,
    ];
    let all: std::collections::BTreeSet<_> = others.iter().collect();
    assert_eq!(all.len(), others.len());
}
