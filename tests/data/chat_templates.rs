//! Chat templates against Jinja2 and transformers: pieces of Jinja, and templates that TRL ships (see chat_templates/make.py).

use std::ops::Range;
use std::path::{Path, PathBuf};

use jointwise::data::chat_template::{ChatInput, ChatTemplate, RenderedChat};
use serde_json::Value;

use super::{fixture, json};

const TOKENS: [(&str, &str); 4] =
    [("bos_token", "<s>"), ("eos_token", "</s>"), ("pad_token", "<pad>"), ("unk_token", "<unk>")];
/// 2026-07-26 12:34:56, the time at which make.py rendered.
const CLOCK: u64 = 1_785_069_296;

fn render(source: &str, case: &Value) -> Result<RenderedChat, String> {
    let template = ChatTemplate::new(source, TOKENS.map(|(name, text)| (name.into(), text.into())).to_vec())?;
    template.set_clock(CLOCK);
    template.render(&ChatInput {
        messages: case["messages"].as_array().unwrap(),
        tools: case.get("tools"),
        kwargs: case.get("kwargs").and_then(Value::as_object),
        add_generation_prompt: case["add_generation_prompt"] == true,
    })
}

/// Pieces that give another text than in Jinja2: they print Python's own objects, or Jinja2 refuses them and minijinja has a value. No
/// template is known to need them.
const OTHERWISE: [&str; 8] = [
    "{{ range(3) }} {{ range(3) | list }}",
    "{{ namespace(a=1) }}",
    "{{ self }}",
    "{% for x in [1] %}{{ loop }}{% endfor %}",
    "{{ (messages | map(attribute='role')) is sequence }}",
    "{% set ns = namespace(_x=1) %}",
    "{{ 1 in 'abc' }}",
    "{{ 'a' < 1 }}",
];

/// Every piece gives Jinja2's text, is refused where Jinja2 refuses it, or is refused though Jinja2 has it: never another text.
#[test]
fn pieces_of_jinja_are_jinja2_s() {
    let cases = json(fixture("chat_templates/cases.json"));
    let (mut right, mut otherwise, mut refused, mut wrong) = (0, 0, Vec::new(), Vec::new());
    for piece in cases["pieces"].as_array().unwrap() {
        let source = piece["jinja"].as_str().unwrap();
        match (render(source, &cases["piece"]), piece["text"].as_str()) {
            (Ok(got), Some(text)) if got.text == text => right += 1,
            (Err(_), None) => right += 1,
            (Err(reason), Some(_)) => refused.push(format!("{source:?}: {reason}")),
            (Ok(_), _) if OTHERWISE.contains(&source) => otherwise += 1,
            (Ok(got), expected) => {
                wrong.push(format!(
                    "{source:?}\n  is        {:?}\n  should be {}",
                    got.text,
                    expected.map_or(piece["error"].to_string(), |text| format!("{text:?}"))
                ));
            }
        }
    }
    assert_eq!(otherwise, OTHERWISE.len());
    println!("{right} right, {} refused:\n{}", refused.len(), refused.join("\n"));
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(refused.len() <= 21, "{} are refused", refused.len());
}

/// Every character that transformers counts to the assistant.
fn characters(ranges: impl Iterator<Item = Range<usize>>) -> Vec<usize> {
    let mut all: Vec<usize> = ranges.flatten().collect();
    all.sort_unstable();
    all.dedup();
    all
}

#[test]
fn templates_of_trl_are_transformers_s() {
    let dir = std::env::var_os("JOINTWISE_CHAT_TEMPLATES").map_or_else(|| fixture("chat_templates"), PathBuf::from);
    let cases = json(dir.join("cases.json"));
    let (mut texts, mut refusals, mut wrong) = (0, 0, Vec::new());
    for case in cases["templates"].as_array().unwrap() {
        let (name, conversation) = (case["template"].as_str().unwrap(), case["conversation"].as_str().unwrap());
        let source = std::fs::read_to_string(dir.join("trl").join(name)).unwrap();
        let got = render(&source, &cases["conversations"][conversation]);
        let at = format!("{name}, {conversation}");
        match (got, case["text"].as_str()) {
            (Ok(got), Some(text)) if got.text == text => {
                texts += 1;
                if let Some(marked) = case["assistant"].as_array() {
                    let pair = |r: &Value| r[0].as_u64().unwrap() as usize..r[1].as_u64().unwrap() as usize;
                    let expected = characters(marked.iter().map(pair));
                    let found = characters(got.assistant.iter().cloned());
                    if found != expected {
                        wrong
                            .push(format!("{at}: the assistant's turns are {:?}, should be {marked:?}", got.assistant));
                    }
                }
            }
            (Err(reason), None) => {
                refusals += 1;
                let error = case["error"].as_str().unwrap();
                if let Some(said) = error.strip_prefix("TemplateError: ")
                    && !reason.contains(&said.split_whitespace().collect::<Vec<_>>().join(" "))
                {
                    wrong.push(format!("{at}: refused with {reason:?}, should be {error:?}"));
                }
            }
            (got, expected) => {
                wrong.push(format!("{at}:\n  is        {got:?}\n  should be {expected:?} {}", case["error"]))
            }
        }
    }
    println!("{texts} texts, {refusals} refusals");
    assert!(wrong.is_empty(), "{} wrong\n{}", wrong.len(), wrong.join("\n"));
    assert!(texts > 100 && refusals > 10, "{texts} texts, {refusals} refusals");
}

/// The comparison notices another text, and another turn.
#[test]
fn a_changed_template_is_noticed() {
    let cases = json(fixture("chat_templates/cases.json"));
    let source =
        std::fs::read_to_string(Path::new(&fixture("chat_templates/trl")).join("qwen3_training.jinja")).unwrap();
    let case = cases["templates"].as_array().unwrap().iter();
    let case =
        case.into_iter().find(|c| c["template"] == "qwen3_training.jinja" && c["conversation"] == "thought").unwrap();
    let conversation = &cases["conversations"]["thought"];
    let right = render(&source, conversation).unwrap();
    assert_eq!(case["text"], right.text.as_str());
    assert!(!right.assistant.is_empty());
    let moved = source.replacen("{%- generation %}", "", 1).replacen("{%- endgeneration %}", "", 1);
    assert!(moved.len() < source.len() && render(&moved, conversation).unwrap().assistant != right.assistant);
    let changed = source.replacen("<think>\\n", "<think>", 9);
    assert!(changed.len() < source.len() && render(&changed, conversation).unwrap().text != right.text);
}
