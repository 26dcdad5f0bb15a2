//! Tables of what is read, and of what is not; and a property over generated answers: never the wrong side.

use proptest::prelude::*;
use proptest::sample::select;

use super::*;

const A: Option<Choice> = Some(Choice::A);
const B: Option<Choice> = Some(Choice::B);
const TIE: Option<Choice> = Some(Choice::Tie);

fn read(text: &str) -> Option<Choice> {
    read_verdict(text).ok()
}

/// The same with the letters exchanged, where they are places in a pattern.
fn of(pattern: &str, side: char) -> String {
    let other = if side == 'a' { 'b' } else { 'a' };
    let upper = |c: char| c.to_ascii_uppercase().to_string();
    let places = [("{s}", side.to_string()), ("{S}", upper(side)), ("{o}", other.to_string()), ("{O}", upper(other))];
    let circled = if side == 'a' { ("{c}", "🅰️") } else { ("{c}", "🅱️") };
    let full = if side == 'a' { ("{f}", "Ａ") } else { ("{f}", "Ｂ") };
    let text = places.into_iter().fold(pattern.to_string(), |text, (place, letter)| text.replace(place, &letter));
    [circled, full].into_iter().fold(text, |text, (place, letter)| text.replace(place, letter))
}

/// Answers that name a side, and must be read.
const FORMS: &[&str] = &[
    "({s})",
    "({S})",
    "{s}",
    "{S}",
    "{S}.",
    " \n {S} \n\n",
    "{S})",
    "[{S}]",
    "\"{S}\"",
    "'({s})'",
    "“{S}”",
    "`{s}`",
    "**{S}**",
    "**({s})**",
    "__{S}__",
    "*({s})*.",
    "# {S}",
    "> ({s})",
    "- ({s})",
    "✅ ({s})",
    "({s}) 🏆",
    "{c}",
    "（{f}）",
    "（{s}）",
    "【{S}】",
    "「{S}」",
    "Output ({s})",
    "Output ({S}).",
    "OUTPUT ({S})",
    "output {s}",
    "output_{s}",
    "Response {S}",
    "Assistant {S}",
    "Option {S}",
    "the response ({s})",
    "**Output ({s})**",
    "\"Output ({s})\"",
    "```\n{S}\n```",
    "```text\nOutput ({s})\n```",
    "[[{S}]]",
    "[[{s}]]",
    "[[ {S} ]]",
    "[[{S}>{O}]]",
    "[[{S}>>{O}]]",
    "**[[{S}]]**",
    "My final verdict is: [[{S}]]",
    "Final Verdict: [[{S}]]",
    "Based on accuracy and clarity, my final verdict is: [[{S}]].",
    "Therefore, Assistant {S} is better: [[{S}]]",
    "\\boxed{{S}}",
    "\\boxed{{s}}",
    "\\boxed{({s})}",
    "$\\boxed{{S}}$",
    "$$\\boxed{\\text{{S}}}$$",
    "\\[ \\boxed{\\textbf{Output ({s})}} \\]",
    "\\text{{S}}",
    "$\\mathbf{{S}}$",
    "The answer is $\\boxed{{S}}$.",
    "\\\\boxed{{S}}",
    "Answer: {S}",
    "answer: {s}",
    "ANSWER: {S}",
    "Answer: ({s})",
    "**Answer:** {S}",
    "**Answer: {S}**",
    "Answer = {S}",
    "Answer -> {S}",
    "Answer\n\n{S}",
    "Final answer: {S}.",
    "The final answer is: {s}",
    "Verdict: ({s}).",
    "**Verdict:** Output ({s})",
    "### Verdict\n\n**({s})**",
    "## Final answer\nOutput ({s})",
    "Verdict:\n\n- ({s})",
    "Winner: Output ({s})",
    "The winner is {S}!",
    "My choice: ({s})",
    "Better response: {S}",
    "Preferred: ({s})",
    "Decision - ({s})",
    "[RESULT] {S}",
    "Feedback: It follows the rubric. [RESULT] {S}",
    "<answer>{S}</answer>",
    "<answer>\nOutput ({s})\n</answer>",
    "<answer>{S}",
    "<verdict>({s})</verdict>",
    "<b>{S}</b>",
    "<p>Output ({s})</p>",
    "答案：{S}",
    "最终答案：（{f}）",
    "答案是（{s}）",
    "回答: {S}",
    "Antwort: {S}",
    "Réponse : ({s})",
    "**Réponse finale :** {S}",
    "Respuesta: {S}",
    "Ответ: {S}",
    "정답: {S}",
    "Output ({s}) is better",
    "Output ({s}) is better.",
    "OUTPUT ({S}) IS BETTER!",
    "Response {S} is better.",
    "{S} is better.",
    "{S} wins.",
    "({s}) is clearly the better response.",
    "Output ({s}) is the winner",
    "Output ({s}) is slightly better overall.",
    "Output ({s}) is better than output ({o}).",
    "Assistant {S} is better than Assistant {O}",
    "Output ({s}) is better than the other one.",
    "Output ({s}) answers its own instruction better.",
    "The better output is ({s}).",
    "The better one is Output ({s})",
    "I choose ({s}).",
    "I would pick Output ({s}).",
    "I prefer {S}.",
    "I think that ({s}) is better.",
    "Therefore, ({s}).",
    "Overall, output ({s}) is better.",
    "In my opinion, ({s}) is better.",
    "Based on the three criteria, Output ({s}) is better.",
    "So, the better output is, clearly, ({s}).",
    "Output ({s}) is better, so my answer is ({s}).",
    "Output ({s}) is better, because it is right.",
    "({s}) because it is right and clear.",
    "{\"winner\": \"{s}\"}",
    "{\"winner\":\"{S}\"}",
    "{\"winner\": \"Output ({s})\"}",
    "{\"Winner\": \"({s})\", \"reason\": \"({o}) leaves out half\", \"confidence\": 0.9}",
    "{\"reasoning\": \"Output ({o}) is better in style.\", \"final_verdict\": \"{S}\"}",
    "{\"winner\": \"{s}\", \"loser\": \"{o}\"}",
    "```json\n{\"winner\": \"{s}\"}\n```",
    "```json\n{\n  \"reason\": \"It is right.\",\n  \"winner\": \"{s}\"\n}\n```",
    "Here is my verdict:\n{\"answer\": \"{S}\"}",
    "{\"winner\": \"[[{S}]]\"}",
    "{S}<|im_end|>",
    "({s})</s>",
];

/// What a model may say before its answer, about the other side too. Empty: nothing.
const LEADS: &[&str] = &[
    "",
    "Let me look at both of them.\n\n",
    "Output ({o}) leaves out half. ",
    "Output ({o}) leaves out half of what was asked.\n\n",
    "({o}) is fluent and well structured, and ({s}) is short.\n\n",
    "Output ({o}) is better in style, but wrong.\n\n",
    "### Output (a)\nIt is fine.\n\n### Output (b)\nIt is fine too.\n\n",
    "1. Accuracy: Output ({o}) is better.\n2. Coherence: Output ({s}) is better.\n3. Harmlessness: equal.\n\n",
    "First I thought of ({o}), which says \"the answer is {O}\".\n\n",
    "A better answer would say more than {O} does.\n\n",
    "Sure! ",
    "Which output is better? ",
    "😀\n\n",
    "---\n\n",
];

/// How thoughts stand before an answer; `{t}` are the thoughts.
const THOUGHTS: &[&str] = &[
    "",
    "<think>\n{t}\n</think>\n\n",
    "<think>{t}</think>",
    "{t}\n</think>\n\n",
    "<think>\n{t} <think> {t}\n</think>\n\n",
    "<thinking>{t}</thinking>\n",
    "<THINK>{t}</THINK>\n",
    "<reasoning>\n{t}\n</reasoning>\n",
    "<thought>{t}</thought>",
    "[THINK]{t}[/THINK]",
    "◁think▷{t}◁/think▷",
    "<seed:think>{t}</seed:think>",
    "<|begin_of_thought|>{t}<|end_of_thought|>\n",
    "<|START_THINKING|>{t}<|END_THINKING|>",
    "<|channel|>analysis<|message|>{t}<|end|><|start|>assistant<|channel|>final<|message|>",
    "analysis{t}assistantfinal",
    "<think></think>\n\n",
    "&lt;think&gt;{t}&lt;/think&gt;\n",
];

/// Thoughts, which name the other side.
const INSIDE: &[&str] = &[
    "Output ({o}) leaves out half of what was asked.",
    "Answer: {O}\nNo, wait.",
    "[[{O}]]? \\boxed{{O}}. Hmm.",
    "We could say {\"winner\": \"{o}\"}",
    "({o})",
];

/// What may stand behind a verdict and leaves it alone.
const TAILS: &[&str] = &[
    "",
    "\n",
    "\n\nI hope this helps!",
    "\nLet me know if you have any questions.",
    "\n\nThank you!",
    "\n\nExplanation: It is right and clear.",
    "\n\nIt follows the instruction, and what it states is right.",
    "\n\n---\n",
    " 😊",
];

/// What takes a verdict back, or puts it into doubt. The sides are those of the verdict that is true in the end.
const TURNS: &[&str] = &[
    " Wait, no.",
    "\n\nWait, that is wrong: ({s}).",
    "\n\nActually, the other one is better.",
    "\n\nOn reflection, I was mistaken.",
    " Just kidding!",
    "\n\nScratch that.",
    "\n\nHowever, the opposite holds.",
    "\n\nHmm, let me think again.",
    " But I am not sure.",
    "\n\nCorrection: ({s})",
    "\n\nNo, {S}.",
    " I mean the second one.",
    "?",
    "? No.",
    " is worse.",
    " is not better.",
    " isn't better.",
    " is worse than ({s}).",
    " loses.",
    " is inferior to ({s})",
    " is what a careless reader would choose.",
    " is better in style, but not in what counts.",
    " would be better if it were right.",
    ", not!",
    "\n\nThe final answer is ({s}).",
    "\n\n[[{S}]]",
    " 👎",
    " ❌",
    "\nis worse.",
];

/// Answers that mean a side by denying the other, or by comparing: read rightly or not at all.
const DENIALS: &[&str] = &[
    "Not ({o}).",
    "not ({o})",
    "It is not ({o}).",
    "It isn't {O}.",
    "It can't be Output ({o}).",
    "({o}) is worse.",
    "Output ({o}) is worse.",
    "Output ({o}) is worse than output ({s}).",
    "Output ({o}) is not better.",
    "Output ({o}) isn't the better one.",
    "Response {O} is worse than {S}",
    "Output ({o}) is far from better.",
    "Output ({o}) is no better",
    "Output ({o}) is hardly better",
    "Output ({o}) is inferior to ({s})",
    "Output ({o}) loses to ({s})",
    "{O} loses.",
    "I prefer {S} to {O}.",
    "I prefer {S} over {O}",
    "{S} > {O}",
    "{S} >> {O}",
    "{O} < {S}",
    "({s}) over ({o})",
    "({s}) rather than ({o})",
    "({s}), not ({o})",
    "({s}) instead of ({o})",
    "rather than ({o})",
    "Anything but ({o})",
    "All but ({o})",
    "Avoid ({o})",
    "No: ({o})",
    "Never ({o})",
    "Neither is ({o})",
    "Loser: ({o})",
    "Worse: {O}",
    "The worse output is ({o})",
    "The worse output is\n({o})",
    "The worse output is:\n\n({o})",
    "The worse output is:\n\n**({o})**",
    "The worst answer: {O}",
    "Worse output\n\n({o})",
    "## Worse\n({o})",
    "Which output is worse? ({o})",
    "Which one should be thrown away?\n\n({o})",
    "I would reject ({o})",
    "I would not say:\n\nAnswer: {O}",
    "It would be wrong to answer \"{O}\"",
    "It is false that the answer is {O}.",
    "Unless I am mistaken about it, not {O}",
    "I disagree that ({o}) is better",
    "Some would say that ({o}) is better.",
    "At first ({o}) is better, in the end ({s}).",
    "If accuracy did not count, ({o}) would be better.",
    "Is ({o}) better? No.",
    "Is ({o}) the better one?",
    "Output ({o}) is bad at this. So is its style. ({s})",
    "I cannot say [[{O}]]",
    "The loser is [[{O}]]",
    "Eliminated: [[{O}]]",
    "[[{O}]] is worse.",
    "not \\boxed{{O}}",
    "\\boxed{\\text{not } {O}}",
    "\\cancel{{O}}",
    "\\lnot {O}",
    "~~({o})~~ ({s})",
    "~~{O}~~",
    "¬{O}",
    "!{O}",
    "≠ {O}",
    "❌ ({o})",
    "👎 {O}",
    "<del>{O}</del> {S}",
    "<worse>{O}</worse>",
    "<answer>not {O}</answer>",
    "{\"loser\": \"{o}\"}",
    "{\"worse\": \"{o}\", \"better\": \"{s}\"}",
    "{\"winner\": \"not {o}\"}",
    "{\"winner\": \"{o}\", \"winner\": \"{s}\"}",
    "{\"winner\": \"{o}\", \"loser\": \"{o}\"}",
    "{\"winner\": null, \"guess\": \"{o}\"}",
    "I would not say {\"winner\": \"{o}\"}",
    "The wrong one is {\"answer\": \"{o}\"}",
    "I will write [[{O}]] where ({o}) is better and [[{S}]] where ({s}) is.",
    "Reply with \"Output ({o})\" or \"Output ({s})\" and nothing else.",
    "{O}\n{S}",
    "({o})\n\n({s})",
    "[[{O}]] [[{S}]]",
    "Answer: {O}\nAnswer: {S}",
    "Answer: {O} or {S}",
    "{O}/{S}",
    "{O}: 4\n{S}: 8",
    "({o}): 4/10, ({s}): 8/10",
    "{O}. The first one\n{S}. The second one",
    "1. ({s})\n2. ({o})",
    "Output ({o}):\nIt is wrong.\n\nOutput ({s}):\nIt is right.",
    "Output ({o}):",
    "## Output ({o})\n\nIt is wrong.\n\n## Output ({s})",
    "Everything in ({o}) is wrong, e.g. ({o}).",
    "The worse one is... ({o})",
    "答案不是{O}",
    "答案不是（{o}）",
    "较差的是（{o}）",
    "Nicht {O}",
    "Die Antwort ist nicht {O}",
    "Pas {O}",
    "<think>\n({s}) it is.\n",
    "<think>Output ({o}) is better",
    "[THINK]\n\n({o})",
    "<plan>\n\nOutput ({o}) is better.",
];

#[test]
fn plain_forms_are_read() {
    for pattern in FORMS {
        for (side, expected) in [('a', A), ('b', B)] {
            let text = of(pattern, side);
            assert_eq!(read(&text), expected, "{text}");
        }
    }
}

#[test]
fn what_leaves_a_verdict_alone_does() {
    for form in ["Output ({s})", "[[{S}]]", "\\boxed{{S}}", "Answer: {S}", "**Verdict: ({s})**", "Output ({s}) is better.", "{\"winner\": \"{s}\"}"] {
        for lead in LEADS {
            for thoughts in THOUGHTS {
                for tail in TAILS {
                    for (side, expected) in [('a', A), ('b', B)] {
                        let pattern = thoughts.replace("{t}", INSIDE[0]) + lead + form + tail;
                        let text = of(&pattern, side);
                        // Behind such a line, a side alone may be of another list.
                        let is_certain = !(form.starts_with("Output") && lead.contains("wrong"));
                        let found = read(&text);
                        assert!(found == expected || !is_certain && found.is_none(), "{found:?} of {text}");
                    }
                }
            }
        }
    }
}

#[test]
fn ties_are_read() {
    for text in [
        "tie", "Tie.", "TIE", "**Tie**", "[[C]]", "[[A=B]]", "It's a tie.", "It is a draw.", "equal", "Both are equal.", "Both outputs are equally good.",
        "They are equally good.", "Verdict: tie", "The answer is a tie.", "\\boxed{tie}", "{\"winner\": \"tie\"}", "<think>(a)</think>Tie",
        "Output (a) and output (b) are equally good.", "Overall, both responses are equally good.",
    ] {
        assert_eq!(read(text), TIE, "{text}");
    }
}

#[test]
fn what_is_not_certain_is_no_answer() {
    for text in [
        "", " \n", "42", "neither", "Neither is better.", "both", "Both (a) and (b).", "(a) or (b)", "A and B", "A/B", "I cannot decide.",
        "a banana", "A better response is possible.", "A better response is what I would like to see.", "As an AI, I like both.",
        "A response like this is good.", "an A+", "Grade: A", "Plan B", "Response", "Output", "A+", "1", "first", "The second one.", "Response 1 is better.",
        "Not equal.", "Not a tie", "It is no tie.", "[[A]] if assistant A is better, [[B]] if assistant B is better.", "\\boxed{42}", "{}", "{\"winner\": \"c\"}",
        "{\"winner\": true}", "{\"score_a\": 8, \"score_b\": 6}", "[\"winner\", \"a\"]", "<think>", "</think>", "<think>(a)</think>", "А", "α", "C", "(c)",
        "Output (a)?", "Maybe (a).", "Perhaps Output (b) is better", "(a), I guess?", "The letter a is the first of the alphabet.", "Output (a) is better or worse.",
        "So is (a).", "Output (a) is better than nothing.", "Output (a) is better in style.", "Output (a) is much", "Output (a)...", "I would say (a) if pressed.",
    ] {
        assert_eq!(read(text), None, "{text}");
    }
}

#[test]
fn denials_are_no_verdict_for_what_they_deny() {
    for pattern in DENIALS {
        for (side, expected) in [('a', A), ('b', B)] {
            for lead in LEADS {
                let text = of(&(lead.to_string() + pattern), side);
                let found = read(&text);
                assert!(found.is_none() || found == expected, "{found:?} of {text}");
            }
        }
    }
}

#[test]
fn why_there_is_no_verdict_is_told() {
    for (text, why) in [
        ("", NoVerdict::Empty),
        ("<think>(a)</think>\n", NoVerdict::Empty),
        ("<think>(a)", NoVerdict::Cut),
        ("both", NoVerdict::Unclear),
    ] {
        assert_eq!(read_verdict(text), Err(why), "{text}");
    }
    for text in ["(a)", "[[A]]", "Answer: A", "<think>x</think>(a)", "{\"winner\": \"a\"", "{\"winner\": \"a\"} Wait"] {
        assert_eq!(read_cut_verdict(text), Err(NoVerdict::Cut), "{text}");
    }
    assert_eq!(read_cut_verdict("{\"winner\": \"a\"}\n\n\n"), Ok(Choice::A));
    // Long answers take no long time.
    for long in ["{\"a\":", "<answer>", "\\boxed{", "[[", "(", "<think>", "A. ", "$", "[result]"] {
        let text = long.repeat(200_000 / long.len()) + "\n\nAnswer: (b)";
        let begun = std::time::Instant::now();
        let _ = read(&text);
        assert!(begun.elapsed().as_secs_f64() < 20.0, "{long}");
    }
}

fn pattern() -> impl Strategy<Value = String> {
    let form = select(FORMS).prop_map(String::from);
    // A verdict for the other side that is taken back.
    let turned = (select(FORMS), select(TURNS)).prop_map(|(form, turn)| {
        let other = form.replace("{s}", "{x}").replace("{o}", "{s}").replace("{x}", "{o}");
        let other = other.replace("{S}", "{x}").replace("{O}", "{S}").replace("{x}", "{O}");
        other.replace("{c}", "({o})").replace("{f}", "{O}") + turn
    });
    let denial = select(DENIALS).prop_map(String::from);
    prop_oneof![3 => form, 3 => turned, 2 => denial]
}

/// How a text may look otherwise and mean the same.
fn dressed(text: &str, dress: usize) -> String {
    match dress {
        1 => text.to_uppercase(),
        2 => text.replace('(', "（").replace(')', "）"),
        3 => text.replace('\n', "\r\n"),
        4 => text.replace(". ", ".\n"),
        5 => text.replace(' ', "\u{a0}"),
        6 => format!("\u{feff}{text}\u{200b}"),
        7 => text.replace('\'', "’"),
        8 => format!("**{text}**"),
        9 => text.replace(": ", ":\n\n"),
        10 => format!("{text}\n\n"),
        11 => text.replace(" is ", " is\n"),
        _ => text.into(),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(20_000))]

    #[test]
    fn a_wrong_side_is_never_read(
        said in pattern(),
        lead in select(LEADS),
        thoughts in select(THOUGHTS),
        inside in select(INSIDE),
        tail in select(TAILS),
        dress in 0..13usize,
        is_first in any::<bool>(),
    ) {
        let side = if is_first { 'a' } else { 'b' };
        let text = of(&(thoughts.replace("{t}", inside) + &dressed(&(lead.to_string() + &said + tail), dress)), side);
        let wrong = if is_first { Choice::B } else { Choice::A };
        prop_assert_ne!(read(&text), Some(wrong), "{}", text);
    }

    /// Thoughts that were cut anywhere, however the endpoint tells it.
    #[test]
    fn thoughts_that_are_cut_are_no_answer(
        thoughts in select(THOUGHTS.iter().filter(|t| !t.starts_with("{t}") && t.contains("{t}")).collect::<Vec<_>>()),
        inside in select(INSIDE),
        is_first in any::<bool>(),
        cut in 0.0..1.0f64,
    ) {
        let before = thoughts.split("{t}").next().unwrap_or_default();
        let inside = of(inside, if is_first { 'a' } else { 'b' });
        let end = (0..=inside.len()).rev().find(|&at| inside.is_char_boundary(at) && at as f64 <= cut * inside.len() as f64);
        let text = before.to_string() + &inside[..end.unwrap_or(0)];
        prop_assert_eq!(read(&text), None, "{}", text);
    }

    #[test]
    fn any_text_is_read_without_a_panic(text in "\\PC{0,60}", marks in "[\\[\\](){}<>/\\\\$ab AB.:?\"'\u{1}\u{2}\n-]{0,60}") {
        let _ = (read_verdict(&text), read_verdict(&marks), read_cut_verdict(&marks), read_verdict(&(marks.clone() + &text)));
    }
}
