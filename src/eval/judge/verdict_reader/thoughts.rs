//! Removal of a model's thoughts: the text before its answer, by the markers that reasoning models put around it.

/// Names of XML-like elements that contain thoughts.
const ELEMENTS: &[&str] = &[
    "think",
    "thinking",
    "thought",
    "thoughts",
    "thought_process",
    "reasoning",
    "reflection",
    "reflections",
    "scratchpad",
    "analysis",
    "monologue",
    "inner_monologue",
    "cot",
    "seed:think",
];

/// Other markers, in lower case: the beginning of thoughts, and their end.
const MARKS: &[[&str; 2]] = &[
    // Mistral's Magistral.
    ["[think]", "[/think]"],
    ["[thinking]", "[/thinking]"],
    // Kimi.
    ["◁think▷", "◁/think▷"],
    // OpenThinker, Cohere, Apertus, MedGemma.
    ["<|begin_of_thought|>", "<|end_of_thought|>"],
    ["<|start_thinking|>", "<|end_thinking|>"],
    ["<|inner_prefix|>", "<|inner_suffix|>"],
    ["<|think|>", "<|/think|>"],
    ["<unused94>", "<unused95>"],
];

/// Largest length of a tag, in bytes.
const MOST_TAG: usize = 64;

/// Recognises the tag of an element for thoughts at the beginning of a text. Returns its length, and whether it is a closing tag.
fn element(lower: &str) -> Option<(usize, bool)> {
    let inside = lower.get(1..lower.bytes().take(MOST_TAG).position(|byte| byte == b'>')?)?;
    let (name, closes) = match inside.trim().strip_prefix('/') {
        Some(name) => (name.trim(), true),
        None => (inside.trim(), false),
    };
    let name = name.split(|c: char| c.is_whitespace()).next()?;
    ELEMENTS.contains(&name).then_some((inside.len() + 2, closes))
}

/// Recognises a marker at the beginning of a text in lower case. Returns its length, and whether it ends thoughts.
fn mark(lower: &str) -> Option<(usize, bool)> {
    if lower.starts_with('<')
        && let Some(found) = element(lower)
    {
        return Some(found);
    }
    MARKS.iter().find_map(|[open, close]| match () {
        () if lower.starts_with(open) => Some((open.len(), false)),
        () if lower.starts_with(close) => Some((close.len(), true)),
        () => None,
    })
}

/// Returns whether a text, such as a prompt, ends inside thoughts that it has opened.
pub fn opens_thoughts(text: &str) -> bool {
    let lower = text.to_ascii_lowercase();
    let last = lower.char_indices().filter_map(|(at, _)| mark(&lower[at..])).next_back();
    last.is_some_and(|(_, closes)| !closes) || lower.trim_end().ends_with("<|channel|>analysis<|message|>")
}

/// Returns the text behind the last thoughts; `None` where the text ends inside thoughts, so that there is no answer yet.
///
/// An end marker counts even without a beginning marker, because templates put the beginning into the prompt.
pub fn without_thoughts(text: &str) -> Option<&str> {
    let text = final_channel(text)?;
    let lower = text.to_ascii_lowercase();
    let mut start = 0;
    let mut is_open = false;
    for (at, _) in lower.char_indices().filter(|(_, c)| matches!(c, '<' | '[' | '◁')) {
        match mark(&lower[at..]) {
            Some((length, true)) => (start, is_open) = (at + length, false),
            Some((_, false)) => is_open = true,
            None => {}
        }
    }
    (!is_open).then(|| &text[start..])
}

/// Returns the final channel of an answer in OpenAI's harmony format, with or without its special tokens. Other texts are returned whole.
/// Returns `None` where there is no final channel yet.
fn final_channel(text: &str) -> Option<&str> {
    const CHANNEL: &str = "<|channel|>";
    if text.contains(CHANNEL) {
        let (channel, answer) = text.rsplit_once(CHANNEL)?.1.split_once("<|message|>")?;
        let ends = ["<|return|>", "<|end|>", "<|call|>"];
        let end = ends.iter().filter_map(|end| answer.find(end)).min().unwrap_or(answer.len());
        return channel.trim_start().starts_with("final").then(|| &answer[..end]);
    }
    let text = text.trim_start();
    let is_glued = |rest: &str| rest.starts_with(|c: char| !c.is_whitespace() && !":,.;!?-*".contains(c));
    match text.rsplit_once("assistantfinal") {
        Some((_, answer)) => (!answer.contains("assistantanalysis")).then_some(answer),
        None if text.strip_prefix("analysis").is_some_and(is_glued) => None,
        None => Some(text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_follows_the_last_thought_is_the_answer() {
        for (text, answer) in [
            ("no thoughts", Some("no thoughts")),
            ("<think>x</think>y", Some("y")),
            ("<THINK>\nx\n</Think>y", Some("y")),
            ("x</think>y", Some("y")),
            ("<think>x <think>in</think> z</think>y", Some("y")),
            ("<think>x</think>a<think>z</think>y", Some("y")),
            ("<think budget=\"3\">x</think >y", Some("y")),
            ("[THINK]x[/THINK]y", Some("y")),
            ("◁think▷é◁/think▷y", Some("y")),
            ("<seed:think>x</seed:think>y", Some("y")),
            ("<|START_THINKING|>x<|END_THINKING|>y", Some("y")),
            (
                "<|channel|>analysis<|message|>x<|end|><|start|>assistant<|channel|>final<|message|>y<|return|>",
                Some("y"),
            ),
            ("<|channel|>final <|constrain|>json<|message|>y", Some("y")),
            ("analysisWe look at both.assistantfinaly", Some("y")),
            ("Analysis: of both", Some("Analysis: of both")),
            ("<answer>y</answer>", Some("<answer>y</answer>")),
            ("<think>x", None),
            ("<think>x</think>y<think>z", None),
            ("[THINK]x", None),
            ("<|channel|>analysis<|message|>x", None),
            ("<|channel|>final<|message|>y<|end|><|start|>assistant<|channel|>analysis<|message|>z", None),
            ("analysisWe look at both.", None),
        ] {
            assert_eq!(without_thoughts(text), answer, "{text}");
        }
        assert!(opens_thoughts("<|user|>x<|assistant|><think>\n") && opens_thoughts("[THINK]"));
        assert!(!opens_thoughts("<think>\n\n</think>\n\n") && !opens_thoughts("<|assistant|>\n"));
    }
}
