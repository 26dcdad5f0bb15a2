//! What a run writes beside its weights: metrics.jsonl, TensorBoard events, report.html.
#![allow(clippy::unwrap_used)]

use jointwise::report::{self, BarFigure, BarGroup, Report, ReportSample, ReportTable};
use jointwise::rng::Rng;
use jointwise::train::metrics::{
    self, EvalMetrics, MetricsAccumulator, MetricsLog, PairMetrics, SideScores, StepMetrics,
};
use jointwise::train::tensorboard::{EventWriter, crc32c};
use std::fs;

fn step(step: u64) -> StepMetrics {
    StepMetrics {
        step,
        epoch: step as f64 / 7.0,
        loss: (0.1 + 0.2) / step as f64,
        grad_norm: 1.0 / 3.0,
        learning_rate: 5e-5,
        tokens: 100,
        num_tokens: 100 * step,
        seconds: 0.25,
        pairs: Some(PairMetrics { margins: 0.5, ..PairMetrics::default() }),
        exchange: None,
        extra: vec![("sft_loss".into(), 2.5)],
    }
}

#[test]
fn metrics_round_trip() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("metrics.jsonl");
    let mut log = MetricsLog::create(&path).unwrap();
    log.append(&step(1).line()).unwrap();
    log.append(&StepMetrics { loss: f64::NAN, grad_norm: f64::INFINITY, ..step(2) }.line()).unwrap();
    log.append(&EvalMetrics { step: 2, loss: 0.5, pairs: Some(PairMetrics::default()), ..Default::default() }.line())
        .unwrap();
    let lines = metrics::read(&path).unwrap();
    assert_eq!(lines.len(), 3, "each line is there before append returns");
    assert_eq!(lines[0], step(1).line());
    assert_eq!(lines[0]["loss"].as_f64().unwrap().to_bits(), (0.1f64 + 0.2).to_bits());
    assert!(lines[1]["loss"].is_null() && lines[1]["grad_norm"].is_null());
    assert_eq!(lines[2]["eval_rewards/accuracies"], 0.0);
    let text = fs::read_to_string(&path).unwrap();
    assert!(
        text.starts_with(r#"{"step":1,"epoch":0.14285714285714285,"loss":0.30000000000000004,"grad_norm":"#),
        "{text}"
    );
}

#[test]
fn resuming_drops_what_came_after_the_checkpoint() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("metrics.jsonl");
    let mut log = MetricsLog::create(&path).unwrap();
    for i in 1..=5 {
        log.append(&step(i).line()).unwrap();
    }
    drop(log);
    let whole = fs::read(&path).unwrap();
    // Killed in the middle of a line: with and without a resume point before it.
    for cut in [whole.len() - 1, whole.len() - 40, whole.len()] {
        for last in [0, 3, 4, 9] {
            fs::write(&path, &whole[..cut]).unwrap();
            let (mut log, missing) = MetricsLog::resume(&path, last, false).unwrap();
            log.append(&step(last + 1).line()).unwrap();
            let steps: Vec<u64> = metrics::read(&path).unwrap().iter().filter_map(metrics::step).collect();
            let kept = last.min(if cut == whole.len() { 5 } else { 4 });
            assert_eq!(steps, (1..=kept).chain([last + 1]).collect::<Vec<_>>());
            assert_eq!(missing, last - kept);
        }
    }
    fs::write(&path, "{\"step\":1}\nnonsense\n{\"step\":2}\n").unwrap();
    let error = MetricsLog::resume(&path, 1, false).unwrap_err().to_string();
    assert!(error.contains("metrics.jsonl:2:"), "{error}");
    // An evaluation that is done again: its line goes, the step's stays, and so does an earlier evaluation.
    let evaluated = "{\"step\":1,\"loss\":1}\n{\"step\":1,\"eval_loss\":1}\n{\"step\":2,\"loss\":1}\n{\"step\":2,\"eval_loss\":1}\n";
    for (again, lines) in [(true, 3), (false, 4)] {
        fs::write(&path, evaluated).unwrap();
        assert_eq!(MetricsLog::resume(&path, 2, again).unwrap().1, 0);
        assert_eq!(metrics::read(&path).unwrap().len(), lines);
    }
    let fresh = folder.path().join("fresh.jsonl");
    assert_eq!(MetricsLog::resume(&fresh, 3, false).unwrap().1, 3, "steps without a line");
    assert_eq!(fs::read(&fresh).unwrap(), b"");
    assert!(MetricsLog::create(&folder.path().join("no/metrics.jsonl")).is_err());
}

#[test]
fn pairs_are_averaged_and_ties_count_half() {
    let mut all = MetricsAccumulator::default();
    assert!(all.pairs().is_none() && all.loss().is_nan());
    for (chosen, rejected) in [(1.0, 0.0), (0.0, 0.0), (-1.0, 1.0), (3.0, 1.0)] {
        let side = |reward, logp| SideScores { reward, logp, ..Default::default() };
        all.add_pair([&side(chosen, -4.0), &side(rejected, -2.0)]);
    }
    all.add_loss(1.0, 1, 10);
    all.add_loss(5.0, 3, 20);
    let pairs = all.pairs().unwrap();
    assert_eq!((pairs.accuracies, pairs.margins, pairs.logps_chosen), (0.625, 0.25, -4.0));
    assert_eq!(pairs.rewards_chosen - pairs.rewards_rejected, pairs.margins);
    assert_eq!((all.loss(), all.tokens()), (1.5, 30));
}

#[test]
fn labelled_texts_have_no_accuracy() {
    let mut all = MetricsAccumulator::default();
    for (desirable, reward) in [(true, 1.0), (true, 2.0), (false, -0.5)] {
        all.add_side(desirable, &SideScores { reward, logp: -4.0, ..Default::default() });
    }
    let names = |all: &MetricsAccumulator| all.pairs().unwrap().entries().map(|(name, _)| name).collect::<Vec<_>>();
    let pairs = all.pairs().unwrap();
    assert_eq!((pairs.rewards_chosen, pairs.rewards_rejected, pairs.margins), (1.5, -0.5, 2.0));
    assert!(!names(&all).contains(&"rewards/accuracies") && names(&all).len() == 7);
    let mut one = MetricsAccumulator::default();
    one.add_side(false, &SideScores::default());
    assert_eq!(names(&one), ["rewards/rejected", "logps/rejected"]);
}

/// Records of an event file, checksums checked.
fn records(bytes: &[u8]) -> Vec<Vec<u8>> {
    let masked = |b: &[u8]| crc32c(b).rotate_right(15).wrapping_add(0xa282_ead8).to_le_bytes();
    let (mut at, mut out) = (0, vec![]);
    while at < bytes.len() {
        let n = u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap()) as usize;
        assert_eq!(bytes[at + 8..at + 12], masked(&bytes[at..at + 8]));
        let data = &bytes[at + 12..at + 12 + n];
        assert_eq!(bytes[at + 12 + n..at + 16 + n], masked(data));
        out.push(data.to_vec());
        at += 16 + n;
    }
    out
}

#[test]
fn events_decode() {
    let folder = tempfile::tempdir().unwrap();
    let mut events = EventWriter::create(folder.path(), None).unwrap();
    let second = EventWriter::create(folder.path(), Some(41)).unwrap();
    assert!(second.path() > events.path(), "read in the order of names");
    events.scalar(300, "train/loss", 0.5).unwrap();
    events.line(&step(301).line()).unwrap();
    let all = records(&fs::read(events.path()).unwrap());
    assert_eq!(all.len(), 3);
    assert!(all[0].ends_with(b"\x1a\x0dbrain.Event:2"));
    // Key 1 (double), eight bytes; key 2, 300 as a varint; key 5: value { tag, simple_value }.
    let mut expected = b"\x10\xac\x02\x2a\x13\x0a\x11\x0a\x0atrain/loss\x15".to_vec();
    expected.extend(0.5f32.to_le_bytes());
    assert_eq!(all[1][0], 0x09);
    assert_eq!(all[1][9..], expected);
    let has = |tag: &str| all[2].windows(tag.len()).any(|w| w == tag.as_bytes());
    assert!(has("train/rewards/margins") && has("train/sft_loss") && !has("train/step"));
    let resumed = records(&fs::read(second.path()).unwrap());
    assert_eq!(resumed[1][9..], *b"\x10\x2a\x3a\x02\x08\x01");
    let name = events.path().file_name().unwrap().to_str().unwrap();
    assert!(name.starts_with("events.out.tfevents.") && name.ends_with(".jointwise"));
}

/// A run that looks like one; `REPORT=path cargo test --test outputs` writes its page there.
fn example() -> Report {
    let mut rng = Rng::new(1, 1);
    let mut lines = vec![];
    let n = 900;
    for i in 1..=n {
        let t = i as f64 / n as f64;
        let mut noise = |s: f64| s * f64::from(rng.normal());
        let margin = 2.2 * (1.0 - (-4.0 * t).exp());
        let pairs = PairMetrics {
            rewards_chosen: 0.7 * margin - 0.4 * t + noise(0.15),
            rewards_rejected: -0.3 * margin - 0.4 * t + noise(0.15),
            margins: margin + noise(0.25),
            accuracies: (0.5 + 0.42 * (1.0 - (-6.0 * t).exp()) + noise(0.08)).clamp(0.0, 1.0),
            logps_chosen: -62.0 + 9.0 * t + noise(3.0),
            logps_rejected: -66.0 - 14.0 * t + noise(3.0),
            logps_instruction: -48.0 + 2.0 * t + noise(2.5),
            logps_response: -14.0 + 7.0 * t + noise(1.5),
        };
        let rate = 5e-5 * (i as f64 / 90.0).min(0.5 + 0.5 * (std::f64::consts::PI * (t - 0.1).max(0.0) / 0.9).cos());
        lines.push(
            StepMetrics {
                step: i,
                epoch: 3.0 * t,
                // ln 2 exactly at the first step, where the policy is the reference.
                loss: std::f64::consts::LN_2 * (0.3 + 0.7 * (-3.0 * (t - 1.0 / n as f64)).exp())
                    + if i > 1 { noise(0.05) } else { 0.0 },
                grad_norm: 1.5 + 0.8 * (-5.0 * t).exp() + noise(0.3).abs() + if i == 400 { 9.0 } else { 0.0 },
                learning_rate: rate,
                tokens: 850,
                num_tokens: 850 * i,
                seconds: 0.3 + noise(0.02).abs(),
                pairs: Some(pairs),
                exchange: None,
                extra: vec![],
            }
            .line(),
        );
        if i % 150 == 0 {
            let pairs =
                PairMetrics { margins: margin - 0.1, accuracies: 0.48 + 0.4 * (1.0 - (-6.0 * t).exp()), ..pairs };
            let loss = std::f64::consts::LN_2 * (0.36 + 0.64 * (-3.0 * t).exp());
            lines.push(EvalMetrics { step: i, epoch: 3.0 * t, loss, seconds: 2.0, pairs: Some(pairs) }.line());
        }
    }
    let text =
        |rows: &[&[&str]]| rows.iter().map(|r| r.iter().map(|c| c.to_string()).collect()).collect::<Vec<Vec<_>>>();
    let sample = |i: &str, a: &str, b: &str| ReportSample {
        instruction: i.into(),
        answers: vec![("SFT".into(), a.into()), ("JPO".into(), b.into())],
    };
    Report {
        title: "JPO on the demo model".into(),
        command: "jointwise train --model models/demo --data joint.jsonl --objective jpo --full --max-steps 900 --output-dir runs/jpo".into(),
        model: "models/demo".into(),
        device: "llvmpipe (LLVM 15.0.6, 256 bits), Vulkan".into(),
        parameters: "1,035,136, all trained".into(),
        objective: "JPO, sigmoid, β = 0.1".into(),
        data: "joint.jsonl: 4,000 pairs".into(),
        started: report::utc(std::time::UNIX_EPOCH + std::time::Duration::from_secs(1_795_486_275)),
        seconds: 290.0,
        facts: vec![("Seed".into(), "0".into())],
        lines,
        bars: vec![],
        tables: vec![ReportTable {
            caption: "Before and after, on 450 held-out tasks (made-up figures)".into(),
            head: ["Model", "Win rate against gold", "Correct", "Good form", "Reward accuracy", "Margin"].map(String::from).into(),
            rows: text(&[
                &["SFT", "11.2 %", "84.0 %", "12.0 %", "50.0 %", "0.00"],
                &["DPO", "41.0 %", "85.1 %", "88.2 %", "91.0 %", "1.90"],
                &["JPO", "42.6 %", "85.6 %", "91.3 %", "92.0 %", "2.20"],
            ]),
            note: "Win rate: (wins + ½ ties) / judged.".into(),
        }],
        samples: vec![
            sample("Spell the word fox.", "f-o-x", "It is spelled f-o-x."),
            sample("What is 27 plus 5?", "um, 32 i guess", "The sum is 32."),
            sample("Which is the odd one out: b k 7 d?", "7", "The odd one out is 7."),
        ],
    }
}

#[test]
fn report_is_whole_and_loads_nothing() {
    let report = example();
    let page = report::render(&report);
    if let Ok(path) = std::env::var("REPORT") {
        report::write(path.as_ref(), &report).unwrap();
    }
    assert_eq!(page.matches("<figure").count(), 9);
    assert_eq!(page.matches("class=\"dot").count() % 6, 0, "validation points");
    for text in ["JPO on the demo model", "4 min 50 s", "Reward accuracy", "ln 2", "odd one out"] {
        assert!(page.contains(text), "{text}");
    }
    let mut elsewhere = report;
    elsewhere.lines[0].insert("loss".into(), 2.5.into());
    assert!(!report::render(&elsewhere).contains("ln 2"), "a loss that begins at 2.5 has no such line");
    assert!(!page.contains("{{"), "a name without a value");
    for outside in ["http://", "https://", "src=", "@import", "url(", "fetch("] {
        let rest = page.replace("http://www.w3.org/2000/svg", "").replace("url(#clip", "");
        assert!(!rest.contains(outside), "{outside}");
    }
    assert!(!page.contains("NaN") && page.len() < 600_000, "{}", page.len());
}

#[test]
fn report_escapes_what_it_shows() {
    let evil = "</script><script>alert(1)</script>\"'&{{facts}}\u{0}";
    let text = || evil.to_string();
    let report = Report {
        title: text(),
        command: text(),
        model: text(),
        device: text(),
        parameters: text(),
        objective: text(),
        data: text(),
        started: text(),
        facts: vec![(text(), text())],
        lines: vec![
            serde_json::from_str(r#"{"step":1,"loss":null,"</script>":1,"rewards/margins":"</script>"}"#).unwrap(),
        ],
        tables: vec![ReportTable {
            caption: text(),
            head: vec![text()],
            rows: vec![vec![text(), text()], vec![]],
            note: text(),
        }],
        samples: vec![ReportSample { instruction: text(), answers: vec![(text(), text())] }],
        seconds: 1.0,
        bars: vec![BarFigure {
            title: text(),
            help: text(),
            series: vec![text(), text()],
            groups: vec![BarGroup {
                label: text(),
                bars: vec![Some([0.5, f64::NAN, f64::NAN]), Some([2.0, -1.0, 3.0])],
            }],
        }],
    };
    let page = report::render(&report);
    assert!(!page.contains("<script>alert") && !page.contains("NaN"));
    assert_eq!(page.matches("</script>").count(), 2);
    assert!(!page.contains('\0'));
}

#[test]
fn report_of_little() {
    assert!(report::render(&Report::default()).contains("No step was logged"));
    let one = Report { lines: vec![step(1).line()], ..Default::default() };
    let page = report::render(&one);
    assert!(page.contains("<circle class=\"dot") && !page.contains("NaN") && !page.contains("inf"));
    assert!(!page.contains("ln 2"), "a loss that does not begin there");
    let huge = StepMetrics { loss: 1e300, grad_norm: f64::NAN, learning_rate: 0.0, seconds: 0.0, ..step(2) };
    let page = report::render(&Report { lines: vec![step(1).line(), huge.line()], ..Default::default() });
    assert!(!page.contains("NaN") && !page.contains("inf"));
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("report.html");
    report::write(&path, &one).unwrap();
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "nothing is left beside it");
    assert!(report::write(&folder.path().join("no/report.html"), &one).is_err());
}
