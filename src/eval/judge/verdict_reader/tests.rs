//! Tables of answers that are read, and of answers that are not; and a property over generated answers: the wrong side is never returned.

use proptest::prelude::*;
use proptest::sample::select;
use proptest::test_runner::RngSeed;

use super::cases::{DENIALS, FORMS, INSIDE, LEADS, TAILS, THOUGHTS, TURNS};
use super::*;

const A: Option<Choice> = Some(Choice::A);
const B: Option<Choice> = Some(Choice::B);
const TIE: Option<Choice> = Some(Choice::Tie);

fn read(text: &str) -> Option<Choice> {
    read_verdict(text).ok()
}

/// Fills in a pattern's placeholders, where `side` is the better one.
fn of(pattern: &str, side: char) -> String {
    let other = if side == 'a' { 'b' } else { 'a' };
    let upper = |c: char| c.to_ascii_uppercase().to_string();
    let places = [("{s}", side.to_string()), ("{S}", upper(side)), ("{o}", other.to_string()), ("{O}", upper(other))];
    let circled = if side == 'a' { ("{c}", "🅰️") } else { ("{c}", "🅱️") };
    let full = if side == 'a' { ("{f}", "Ａ") } else { ("{f}", "Ｂ") };
    let text = places.into_iter().fold(pattern.to_string(), |text, (place, letter)| text.replace(place, &letter));
    [circled, full].into_iter().fold(text, |text, (place, letter)| text.replace(place, letter))
}

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
    for form in [
        "Output ({s})",
        "[[{S}]]",
        "\\boxed{{S}}",
        "Answer: {S}",
        "**Verdict: ({s})**",
        "Output ({s}) is better.",
        "{\"winner\": \"{s}\"}",
    ] {
        for lead in LEADS {
            for thoughts in THOUGHTS {
                for tail in TAILS {
                    for (side, expected) in [('a', A), ('b', B)] {
                        let pattern = thoughts.replace("{t}", INSIDE[0]) + lead + form + tail;
                        let text = of(&pattern, side);
                        // Behind such a line, a side alone may belong to another list.
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
        "tie",
        "Tie.",
        "TIE",
        "**Tie**",
        "[[C]]",
        "[[A=B]]",
        "It's a tie.",
        "It is a draw.",
        "equal",
        "Both are equal.",
        "Both outputs are equally good.",
        "They are equally good.",
        "Verdict: tie",
        "The answer is a tie.",
        "\\boxed{tie}",
        "{\"winner\": \"tie\"}",
        "<think>(a)</think>Tie",
        "Output (a) and output (b) are equally good.",
        "Overall, both responses are equally good.",
    ] {
        assert_eq!(read(text), TIE, "{text}");
    }
}

#[test]
fn what_is_not_certain_is_no_answer() {
    for text in [
        "",
        " \n",
        "42",
        "neither",
        "Neither is better.",
        "both",
        "Both (a) and (b).",
        "(a) or (b)",
        "A and B",
        "A/B",
        "I cannot decide.",
        "a banana",
        "A better response is possible.",
        "A better response is what I would like to see.",
        "As an AI, I like both.",
        "A response like this is good.",
        "an A+",
        "Grade: A",
        "Plan B",
        "Response",
        "Output",
        "A+",
        "1",
        "first",
        "The second one.",
        "Response 1 is better.",
        "Not equal.",
        "Not a tie",
        "It is no tie.",
        "[[A]] if assistant A is better, [[B]] if assistant B is better.",
        "\\boxed{42}",
        "{}",
        "{\"winner\": \"c\"}",
        "{\"winner\": true}",
        "{\"score_a\": 8, \"score_b\": 6}",
        "[\"winner\", \"a\"]",
        "<think>",
        "</think>",
        "<think>(a)</think>",
        "А",
        "α",
        "C",
        "(c)",
        "Output (a)?",
        "Maybe (a).",
        "Perhaps Output (b) is better",
        "(a), I guess?",
        "The letter a is the first of the alphabet.",
        "Output (a) is better or worse.",
        "So is (a).",
        "Output (a) is better than nothing.",
        "Output (a) is better in style.",
        "Output (a) is much",
        "Output (a)...",
        "I would say (a) if pressed.",
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

/// Control: a naive reader, which looks for letters as the first version's did, takes many of these cases for the other side.
#[test]
fn a_reader_of_letters_would_be_wrong() {
    let naive = |text: &str| match (text.to_lowercase().contains("(a)"), text.to_lowercase().contains("(b)")) {
        (true, false) => A,
        (false, true) => B,
        _ => None,
    };
    let thoughts = THOUGHTS[1].replace("{t}", INSIDE[0]);
    let turned = TURNS.iter().map(|turn| format!("({{o}}){turn}"));
    let all = DENIALS
        .iter()
        .map(|denial| denial.to_string())
        .chain(turned)
        .chain(FORMS.iter().map(|form| thoughts.clone() + form));
    let is_wrong = |read: &dyn Fn(&str) -> Option<Choice>, pattern: &str| read(&of(pattern, 'a')) == B;
    let wrong =
        |reader: &dyn Fn(&str) -> Option<Choice>| all.clone().filter(|pattern| is_wrong(reader, pattern)).count();
    assert!(wrong(&naive) > 80, "{}", wrong(&naive));
    assert_eq!(wrong(&read), 0);
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
    // Long answers do not take long to read.
    for long in ["{\"a\":", "<answer>", "\\boxed{", "[[", "(", "<think>", "A. ", "$", "[result]", "<", "<b"] {
        for end in ["", " >"] {
            let text = long.repeat(200_000 / long.len()) + "\n\nAnswer: (b)" + end;
            let begun = std::time::Instant::now();
            let _ = read(&text);
            assert!(begun.elapsed().as_secs_f64() < 10.0, "{long}{end}");
        }
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

/// Returns the text in another notation with the same meaning.
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

/// Returns proptest's settings. With a fixed seed, all runs have the same cases. `PROPTEST_CASES=1000000` runs more cases, with a random
/// seed.
fn config() -> ProptestConfig {
    match std::env::var_os("PROPTEST_CASES") {
        Some(_) => ProptestConfig::default(),
        None => ProptestConfig { cases: 5_000, rng_seed: RngSeed::Fixed(19), ..ProptestConfig::default() },
    }
}

proptest! {
    #![proptest_config(config())]

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

    /// Thoughts may be cut anywhere, whatever reason the endpoint gives for the end.
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
