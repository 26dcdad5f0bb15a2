//! Win rates as a library: length-controlled rates against scikit-learn, means over runs and intervals against numpy, test rows.
#![allow(clippy::unwrap_used)]

#[allow(dead_code, reason = "a part of it is of other tests")]
mod common;

use std::fs;
use std::path::PathBuf;

use common::says;
use jointwise::data::rows::FieldMap;
use jointwise::eval::evaluate::lengths::{features, length, length_controlled, ratio_bin};
use jointwise::eval::evaluate::{EvaluatedRun, EvaluationResult, JudgedResponse, evaluate, prompts};
use jointwise::eval::interplay::BootstrapSettings;
use jointwise::eval::judge::Verdict;
use jointwise::report::evaluation as evaluation_report;
use serde_json::Value;

const BOOTSTRAP: BootstrapSettings = BootstrapSettings { level: 0.95, draws: 2000, seed: 1 };

fn answers() -> Value {
    serde_json::from_str(include_str!("statistics/evaluate.json")).unwrap()
}

fn floats(value: &Value) -> Vec<f64> {
    value.as_array().unwrap().iter().map(|v| v.as_f64().unwrap_or(f64::NAN)).collect()
}

fn near(found: f64, expected: f64, tolerance: f64) -> bool {
    (found - expected).abs() <= tolerance
}

#[track_caller]
fn close(found: f64, expected: f64, tolerance: f64) {
    assert!(near(found, expected, tolerance), "{found}, not {expected} ± {tolerance}");
}

fn outcome(prompt: usize, verdict: Verdict, lengths: [usize; 2]) -> JudgedResponse {
    JudgedResponse { prompt, verdict, is_flip: false, lengths, n_tokens: lengths[0], cut: false }
}

fn run(method: &str, number: usize, temperature: f64, outcomes: Vec<JudgedResponse>) -> EvaluatedRun {
    let checkpoint = format!("{method}-{number}");
    EvaluatedRun { name: checkpoint.clone(), checkpoint, method: method.into(), temperature, seed: 0, outcomes }
}

fn verdict(score: f64) -> Verdict {
    match score {
        1.0 => Verdict::First,
        0.5 => Verdict::Tie,
        0.0 => Verdict::Second,
        _ => Verdict::NoAnswer,
    }
}

#[test]
fn length_controlled_rates_are_scikit_learns() {
    for case in answers()["controlled"].as_array().unwrap() {
        let lengths: Vec<Vec<f64>> = case["lengths"].as_array().unwrap().iter().map(floats).collect();
        let (y, weights) = (floats(&case["y"]), floats(&case["weights"]));
        let x = features(&lengths.iter().map(|l| l[0] - l[1]).collect::<Vec<_>>()).unwrap();
        for (found, expected) in x.iter().zip(floats(&case["x"])) {
            close(*found, expected, 1e-12);
        }
        let number = |name: &str| case[name].as_f64().unwrap();
        let (rate, phi) = length_controlled(&x, &y, &vec![1.0; y.len()]);
        close(rate, number("rate"), 1e-6);
        close(phi, number("phi"), 1e-5);
        let (weighted, weighted_phi) = length_controlled(&x, &y, &weights);
        close(weighted, number("weighted"), 1e-6);
        close(weighted_phi, number("weighted_phi"), 1e-5);
        // Neither the raw rate nor the other weights' passes.
        assert!(!near(rate, number("raw"), 1e-4) && !near(rate, number("weighted"), 1e-4), "{rate}");
    }
}

#[test]
fn lengths_at_the_edges() {
    assert_eq!(["", "  \n", " ä b ", "漢字"].map(length), [0, 0, 3, 2]);
    for ((ours, theirs), expected) in [
        ((0, 5), 0),
        ((4, 5), 0),
        ((5, 5), 1),
        ((7, 5), 1),
        ((15, 10), 2),
        ((29, 10), 2),
        ((30, 10), 3),
        ((1, 0), 3),
        ((0, 0), 1),
    ] {
        assert_eq!(ratio_bin(ours, theirs), expected, "{ours} to {theirs}");
    }
    let ones = [1.0; 4];
    assert_eq!(length_controlled(&[0.1, -0.2, 0.3, 0.0], &ones, &ones).0, 1.0, "all is won");
    assert_eq!(length_controlled(&[0.1, -0.2, 0.3, 0.0], &[0.0; 4], &ones).0, 0.0, "all is lost");
    assert!(length_controlled(&[0.1; 4], &ones, &[0.0; 4]).0.is_nan(), "nothing counts");
    // Without a difference of lengths it is the raw rate; with the same difference everywhere there is no telling.
    close(length_controlled(&features(&[0.0; 4]).unwrap(), &[1.0, 1.0, 0.5, 0.0], &ones).0, 0.625, 1e-12);
    assert_eq!(features(&[3.0; 4]), None);
}

fn methods(answers: &Value) -> Vec<EvaluatedRun> {
    let scores: Vec<Vec<f64>> = answers["scores"].as_array().unwrap().iter().map(floats).collect();
    let outcomes = |scores: &[f64]| {
        scores.iter().enumerate().map(|(i, s)| outcome(i, verdict(*s), [10 + i % 7, 12])).collect::<Vec<_>>()
    };
    let name = |i: usize| if i < 3 { "a" } else { "b" };
    scores.iter().enumerate().map(|(i, s)| run(name(i), i, 0.5, outcomes(s))).collect()
}

fn ends_match(found: [f64; 2], expected: &Value) -> bool {
    let (ends, sd) = (floats(&expected["ends"]), floats(&expected["ends_sd"]));
    (0..2).all(|i| near(found[i], ends[i], 4.5 * sd[i]))
}

#[test]
fn means_over_runs_and_intervals_over_prompts_are_numpys() {
    let expected = &answers()["runs"];
    let found = evaluate(&methods(expected), 120, "gold", "test", BOOTSTRAP);
    for (i, name) in ["a", "b"].into_iter().enumerate() {
        let (m, e) = (&found.methods[i], &expected[name]);
        assert_eq!(m.name, name);
        close(m.win_rate.mean.value, e["mean"].as_f64().unwrap(), 1e-12);
        close(m.win_rate.sd, e["sd"].as_f64().unwrap(), 1e-12);
        assert!(ends_match([m.win_rate.mean.low, m.win_rate.mean.high], e), "{:?}", m.win_rate);
        // Drawn as single judgements, intervals are too narrow: the comparison would tell.
        let alone = floats(&e["alone"]);
        assert!(!ends_match([alone[0], alone[1]], e), "{alone:?}");
        for (run, rate) in found.runs.iter().filter(|r| r.method == name).zip(floats(&e["rates"])) {
            close(run.win_rate.value, rate, 1e-12);
        }
    }
    let difference = &found.differences[0];
    assert_eq!((found.differences.len(), &difference.methods), (1, &["a".to_string(), "b".to_string()]));
    close(difference.win_rate.value, expected["difference"]["value"].as_f64().unwrap(), 1e-12);
    assert!(ends_match([difference.win_rate.low, difference.win_rate.high], &expected["difference"]), "{difference:?}");
    let again = evaluate(&methods(expected), 120, "gold", "test", BOOTSTRAP);
    let other = evaluate(&methods(expected), 120, "gold", "test", BootstrapSettings { seed: 2, ..BOOTSTRAP });
    let text = |e: &EvaluationResult| serde_json::to_string(&e.methods).unwrap();
    assert_eq!(text(&found), text(&again), "seeded");
    assert_ne!(text(&found), text(&other));
}

#[test]
fn rates_by_temperature_and_by_length() {
    // Cold: longer answers win. Hot: the first half wins, whatever its length; two of twenty have no verdict.
    let lengths = |i: usize| [if i.is_multiple_of(2) { 20 } else { 5 }, 10];
    let cold = (0..20).map(|i| outcome(i, verdict(if i.is_multiple_of(2) { 1.0 } else { 0.0 }), lengths(i))).collect();
    let hot = |i: usize| match i {
        0 | 1 => f64::NAN,
        2..10 => 1.0,
        10 => 0.5,
        _ => 0.0,
    };
    let hot = (0..20).map(|i| outcome(i, verdict(hot(i)), lengths(i))).collect();
    let runs = [run("m", 0, 1.0, hot), run("m", 0, 0.001, cold)];
    let found = evaluate(&runs, 20, "gold", "test", BOOTSTRAP);
    let m = &found.methods[0];
    assert_eq!((m.tally.wins, m.tally.ties, m.tally.losses, m.tally.no_answer), (18, 1, 19, 2));
    assert_eq!(m.by_temperature.iter().map(|t| t.temperature).collect::<Vec<_>>(), [0.001, 1.0]);
    close(m.by_temperature[0].win_rate.mean.value, 0.5, 1e-12);
    close(m.by_temperature[1].win_rate.mean.value, 8.5 / 18.0, 1e-12);
    assert!(m.by_temperature[0].win_rate.sd.is_nan(), "one run has no deviation");
    close(m.win_rate.mean.value, (0.5 + 8.5 / 18.0) / 2.0, 1e-12);
    close(m.win_rate.sd, (0.5 - 8.5 / 18.0) / 2f64.sqrt(), 1e-12);
    let by_ratio: Vec<(f64, usize)> = m.by_length_ratio.iter().map(|r| (r.win_rate.value, r.win_rate.n)).collect();
    close(by_ratio[0].0, 4.0 / 19.0, 1e-12);
    close(by_ratio[2].0, 14.5 / 19.0, 1e-12);
    assert_eq!([by_ratio[0].1, by_ratio[1].1, by_ratio[2].1, by_ratio[3].1], [19, 0, 19, 0]);
    assert!(by_ratio[1].0.is_nan());
    assert!(m.length_coefficient > 0.5, "longer answers win: {}", m.length_coefficient);
    close(m.mean_lengths.response, 12.5, 1e-12);
    // Nothing that has no number breaks a table, a figure or the JSON.
    let text = serde_json::to_string(&found).unwrap();
    assert!(!text.contains("NaN") && text.contains("\"sd\":null"), "{text}");
    let tables = evaluation_report::tables(&found);
    let heads: Vec<&str> = tables.iter().map(|t| t.caption.as_str()).collect();
    assert_eq!(heads[1..], ["Win rate by temperature", "Win rate by ratio of lengths", "Every run"]);
    assert_eq!((tables[0].head[6].as_str(), tables[0].rows[0][6].as_str()), ("no verdict", "2"));
    assert!(evaluation_report::warnings(&found).is_empty(), "{:?}", evaluation_report::warnings(&found));
    for table in &tables {
        assert!(table.rows.iter().all(|row| row.len() == table.head.len()), "{}", table.caption);
    }
    assert_eq!(tables[2].rows[0][2], "–");
    assert_eq!(evaluation_report::figures(&found)[2].groups[1].bars, [None]);
}

#[test]
fn a_judge_that_goes_by_the_order_or_says_nothing_is_warned_of() {
    let of = |n_flips: usize, n_ties: usize, n_missing: usize| {
        let outcomes = (0..20).map(|i| {
            let verdict = match i {
                _ if i < n_ties => Verdict::Tie,
                _ if i < n_ties + n_missing => Verdict::NoAnswer,
                _ => Verdict::First,
            };
            JudgedResponse { is_flip: i < n_flips, ..outcome(i, verdict, [10, 20]) }
        });
        let found = evaluate(&[run("m", 0, 1.0, outcomes.collect())], 20, "gold", "test", BOOTSTRAP);
        let table = &evaluation_report::tables(&found)[0];
        assert_eq!(
            (&table.head[5], &table.rows[0][5], &table.rows[0][6]),
            (&"flips".to_string(), &n_flips.to_string(), &n_missing.to_string())
        );
        let warnings = evaluation_report::warnings(&found);
        assert!(warnings.iter().all(|warning| table.note.contains(warning)), "the page has them, too: {}", table.note);
        warnings.join("; ")
    };
    assert!(of(20, 20, 0).contains("20 of 20 ties are flips"));
    assert!(of(0, 0, 5).contains("5 of 20 comparisons (25 %) have no verdict"));
    for (flips, ties, missing) in [(0, 20, 0), (4, 8, 0), (3, 3, 0), (0, 0, 4)] {
        assert_eq!(of(flips, ties, missing), "", "{flips} {ties} {missing}");
    }
}

#[test]
fn length_control_takes_a_bias_for_length_away() {
    // As good as the other, and judged by length alone: the raw rate is that of being longer, the controlled one is a half.
    let biased = |i: usize| {
        let lengths = [10 + (i * 7) % 40, 20];
        outcome(i, verdict(if lengths[0] > lengths[1] { 1.0 } else { 0.0 }), lengths)
    };
    // Better, whatever its length: of four responses of each length, three win.
    let better =
        |i: usize| outcome(i, verdict(if i.is_multiple_of(4) { 0.0 } else { 1.0 }), [10 + (i / 4 * 7) % 40, 20]);
    let runs =
        [run("biased", 0, 0.0, (0..200).map(biased).collect()), run("better", 0, 0.0, (0..200).map(better).collect())];
    let found = evaluate(&runs, 200, "gold", "test", BOOTSTRAP);
    let [biased, better] = [&found.methods[0], &found.methods[1]];
    assert!(biased.win_rate.mean.value > 0.7, "{:?}", biased.win_rate);
    assert!(biased.length_controlled.value < 0.6 && biased.length_coefficient > 5.0, "{:?}", biased.length_controlled);
    close(better.length_controlled.value, 0.75, 1e-9);
    close(better.length_coefficient, 0.0, 1e-9);
    close(better.win_rate.mean.value, 0.75, 1e-12);
    let x = &better.length_controlled;
    assert!(x.low < x.value && x.value < x.high && x.high - x.low < 0.2, "{x:?}");
}

#[test]
fn test_rows_are_read_and_named() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        let path = folder.path().join(name);
        fs::write(&path, text).unwrap();
        path
    };
    let row = |i: &str, gold: &str| format!("{{\"instruction\": \"{i}\", \"gold_response\": \"{gold}\"}}\n");
    let map = FieldMap::default();
    let one = file("one.jsonl", &(row("A", " a ") + "\n" + &row("B", "b")));
    let two = file("two.jsonl", &row("C", "c"));
    let read = |files: &[&PathBuf], gold: bool, limit: Option<usize>| {
        prompts::read(&files.iter().map(|f| (*f).clone()).collect::<Vec<_>>(), &map, gold, limit).map(|read| read.rows)
    };
    let rows = read(&[&one, &two], true, None).unwrap();
    let told: Vec<(&str, Option<&str>, usize)> =
        rows.iter().map(|r| (r.text.as_str(), r.gold.as_deref(), r.place.line)).collect();
    assert_eq!(told, [("A", Some("a"), 1), ("B", Some("b"), 3), ("C", Some("c"), 1)]);
    assert_eq!(read(&[&one, &two], true, Some(2)).unwrap().len(), 2);
    let again = file("again.jsonl", &(row("D", "d") + &row("B", "other")));
    says(read(&[&one, &again], true, None), &["again.jsonl:2", "one.jsonl:3", "again"]);
    let no_gold = file("no_gold.jsonl", &(row("A", "a") + "{\"instruction\": \"B\"}\n"));
    says(read(&[&no_gold], true, None), &["no_gold.jsonl:2", "gold_response", "missing"]);
    assert_eq!(read(&[&no_gold], false, None).unwrap()[1].gold, None);
    says(read(&[&file("empty.jsonl", &row("A", "  "))], true, None), &["empty.jsonl:1", "gold_response", "empty"]);
    says(read(&[&file("none.jsonl", "\n")], true, None), &["none.jsonl", "no rows"]);
    says(read(&[&file("odd.jsonl", "{\"other\": 1}\n")], true, None), &["odd.jsonl:1", "instruction"]);
    says(
        read(&[&file("text.jsonl", "{\"text\": 1}\n")], true, None),
        &["text.jsonl:1", "whole text", "--map prompt=text"],
    );
    says(read(&[], true, None), &["--data", "missing"]);
    let chat =
        "{\"messages\": [{\"role\": \"user\", \"content\": \"Hi\"}, {\"role\": \"assistant\", \"content\": \"Ho\"}]}\n";
    let rows = read(&[&file("chat.jsonl", chat)], true, None).unwrap();
    assert_eq!((rows[0].text.as_str(), rows[0].gold.as_deref()), ("Hi", Some("Ho")));
}
