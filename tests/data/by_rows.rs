//! The default template: each row's form decides.

use jointwise::data::dataset::Dataset;
use jointwise::data::prompt_template::Template;
use jointwise::data::rows::{DatasetType, Row};
use jointwise::data::tokens::Tokenizer;

use super::{LIMITS, asked, bpe512, read, with_config};

const TEXT: &str = r#"{"instruction":"Say hi","response":"Hi"}"#;
const CHAT: &str = r#"{"messages":[{"role":"user","content":"Say hi"},{"role":"assistant","content":"Hi"}]}"#;

fn rows(lines: &[&str]) -> Vec<Row> {
    read(&lines.join("\n"), DatasetType::Sft, &[]).unwrap()
}

fn built(tokenizer: &Tokenizer, lines: &[&str], template: &Template) -> Result<Dataset, String> {
    Dataset::build(&rows(lines), tokenizer, template, LIMITS).map_err(|e| e.to_string())
}

#[test]
fn conversations_take_the_chat_template_and_texts_the_paper_s() {
    let tokenizer = bpe512();
    for (line, template) in [(CHAT, Template::Chat), (TEXT, Template::Paper)] {
        let [by_rows, named] =
            [Template::ByRows, template].map(|template| built(&tokenizer, &[line, line], &template).unwrap());
        assert_eq!(by_rows.examples, named.examples);
        assert_eq!(by_rows.remarks.lines(), named.remarks.lines(), "one form needs no remark");
    }
    let mixed = built(&tokenizer, &[TEXT, CHAT, CHAT], &Template::ByRows).unwrap().remarks.lines();
    assert!(mixed.iter().any(|line| line.starts_with("2 rows of conversations among texts: ")), "{mixed:?}");
    assert!(mixed.iter().any(|line| line.starts_with("1 row of texts among conversations: ")), "{mixed:?}");
}

#[test]
fn a_conversation_without_a_chat_template_stops_with_the_ways_out() {
    let bare = with_config(r#"{"bos_token":"<|bos|>","eos_token":"<|eos|>"}"#).unwrap();
    let reason = built(&bare, &[TEXT, CHAT], &Template::ByRows).unwrap_err();
    assert!(reason.starts_with("--template: ") && reason.contains("rows.jsonl:2 is a conversation"), "{reason}");
    assert!(reason.contains("the tokenizer has no chat template") && reason.contains("--template paper"), "{reason}");
    assert!(built(&bare, &[TEXT], &Template::ByRows).is_ok());
    assert!(built(&bare, &[CHAT], &Template::Paper).is_ok());
    // Elsewhere the flag's own refusal stands.
    let named = Dataset::build(&rows(&[CHAT]), &bare, &Template::Chat, LIMITS).unwrap_err().to_string();
    assert!(named.starts_with("--template: chat: "), "{named}");
}

#[test]
fn prompts_of_one_form_settle_the_template() {
    let texts = [super::plain("a", "b").instruction, super::plain("c", "d").instruction];
    let chat = asked(&[("user", "a")]);
    assert_eq!(Template::ByRows.settled(texts.iter()), Template::Paper);
    assert_eq!(Template::ByRows.settled([chat.clone()].iter()), Template::Chat);
    assert_eq!(Template::ByRows.settled(texts.iter().chain([&chat])), Template::ByRows);
    assert_eq!(Template::None.settled(texts.iter()), Template::None);
    assert_eq!(Template::parse("by-rows").unwrap(), Template::ByRows);
}
