//! An evaluation as tables and figures.

use super::{BarFigure, BarGroup, ReportTable};
use crate::eval::evaluate::lengths::RATIO_NAMES;
use crate::eval::evaluate::{EvaluationResult, MeanRate, MethodResult};
use crate::eval::statistics::Interval;

fn has(x: &Interval) -> bool {
    x.n > 0 && !x.value.is_nan()
}

fn percent(x: f64) -> String {
    if x.is_nan() { "–".into() } else { format!("{:.1}", 100.0 * x) }
}

/// "73.2 (69.1 to 77.0)", per cent.
fn with_interval(x: &Interval) -> String {
    match (has(x), x.low.is_nan()) {
        (false, _) => "–".into(),
        (_, true) => percent(x.value),
        _ => format!("{} ({} to {})", percent(x.value), percent(x.low), percent(x.high)),
    }
}

/// "73.2 ± 1.4", per cent.
fn with_sd(x: &MeanRate) -> String {
    match x.sd.is_nan() {
        true => percent(x.mean.value),
        false => format!("{} ± {}", percent(x.mean.value), percent(x.sd)),
    }
}

fn range(x: &Interval) -> String {
    if x.low.is_nan() { "–".into() } else { format!("{} to {}", percent(x.low), percent(x.high)) }
}

fn number(x: f64) -> String {
    if x.is_nan() { "–".into() } else { format!("{x:.1}") }
}

fn table(caption: String, head: Vec<String>, rows: Vec<Vec<String>>, note: String) -> ReportTable {
    ReportTable { caption, head, rows, note }
}

fn names<const N: usize>(head: [&str; N]) -> Vec<String> {
    head.map(String::from).into()
}

/// Temperatures of any method, from the lowest.
fn temperatures(found: &EvaluationResult) -> Vec<f64> {
    let mut all: Vec<f64> = found.methods.iter().flat_map(|m| m.by_temperature.iter().map(|t| t.temperature)).collect();
    all.sort_by(f64::total_cmp);
    all.dedup();
    all
}

fn at(method: &MethodResult, temperature: f64) -> Option<&MeanRate> {
    method.by_temperature.iter().find(|t| t.temperature == temperature).map(|t| &t.win_rate)
}

/// Share of comparisons above which flips, or missing verdicts, make a win rate doubtful.
const DOUBTFUL: f64 = 0.2;

/// Names what makes win rates doubtful: a judge that goes by the order in which sides are shown, or that often says nothing.
pub fn warnings(found: &EvaluationResult) -> Vec<String> {
    let of = |m: &MethodResult| {
        let t = &m.tally;
        let all = t.judged() + t.no_answer;
        let share = |n: usize| n as f64 / all.max(1) as f64;
        let flips = (2 * t.flips > t.ties && share(t.flips) > DOUBTFUL).then(|| {
            format!(
                "{}: {} of {} ties are flips: {} said the same letter in both orders, and a rate near 50 % says nothing of the responses",
                m.name, t.flips, t.ties, found.judge
            )
        });
        let missing = (share(t.no_answer) > DOUBTFUL).then(|| {
            let percent = 100.0 * share(t.no_answer);
            format!(
                "{}: {} of {all} comparisons ({percent:.0} %) have no verdict and are left out",
                m.name, t.no_answer
            )
        });
        flips.into_iter().chain(missing)
    };
    found.methods.iter().flat_map(of).collect()
}

/// All tables that there is something to say in.
pub fn tables(found: &EvaluationResult) -> Vec<ReportTable> {
    let (b, methods, against) = (&found.bootstrap, &found.methods, &found.against);
    let mut all = Vec::new();
    let other = format!("{against}'s length");
    let head = [
        "",
        "runs",
        "win",
        "tie",
        "loss",
        "flips",
        "no verdict",
        "win rate, %",
        "interval",
        "at equal lengths, %",
        "length",
        other.as_str(),
        "tokens",
        "cut, %",
    ];
    let row = |m: &MethodResult| {
        let (t, l) = (&m.tally, &m.mean_lengths);
        let counts = [m.win_rate.runs, t.wins, t.ties, t.losses, t.flips, t.no_answer].map(|n| n.to_string());
        let rates = [with_sd(&m.win_rate), range(&m.win_rate.mean), with_interval(&m.length_controlled)];
        let lengths = [number(l.response), number(l.other), number(l.tokens), percent(l.cut)];
        std::iter::once(m.name.clone()).chain(counts).chain(rates).chain(lengths).collect()
    };
    let note = format!(
        "Win rate: (wins + ½ ties) / judged, mean ± standard deviation over runs (checkpoints × temperatures × seeds). Interval: {:.0} % \
         bootstrap, {} draws of prompts. At equal lengths: length-controlled as in AlpacaEval 2, without instruction difficulty. Flips: ties for which the judge said the same letter in both orders. No verdict: comparisons that are left out. Lengths \
         in characters, means; cut: responses that the longest length ended. Judges favour long answers: read the rate beside the lengths.{}",
        100.0 * b.level,
        b.draws,
        warnings(found).iter().map(|warning| format!(" Warning: {warning}.")).collect::<String>()
    );
    let caption =
        format!("Win rate against {against}: {} prompts, both orders, judged by {}", found.prompts, found.judge);
    all.push(table(caption, names(head), methods.iter().map(row).collect(), note));

    let temperatures = temperatures(found);
    if temperatures.len() > 1 {
        let head = std::iter::once(String::new()).chain(temperatures.iter().map(f64::to_string)).collect();
        let cell = |m: &MethodResult, t: f64| {
            at(m, t).map_or("–".into(), |rate| format!("{} ({})", with_sd(rate), range(&rate.mean)))
        };
        let rows = methods
            .iter()
            .map(|m| std::iter::once(m.name.clone()).chain(temperatures.iter().map(|&t| cell(m, t))).collect());
        let note = "Per cent, mean ± standard deviation over checkpoints and seeds, in brackets the interval.";
        all.push(table("Win rate by temperature".into(), head, rows.collect(), note.into()));
    }

    let head = std::iter::once(String::new()).chain(RATIO_NAMES.map(String::from)).collect();
    let cell = |x: &Interval| if has(x) { format!("{} [{}]", with_interval(x), x.n) } else { "–".into() };
    let rows = methods
        .iter()
        .map(|m| std::iter::once(m.name.clone()).chain(m.by_length_ratio.iter().map(|r| cell(&r.win_rate))).collect());
    let note =
        format!("Per cent, by a response's length over {against}'s, with the interval and [judged comparisons].");
    all.push(table("Win rate by ratio of lengths".into(), head, rows.collect(), note));

    if !found.differences.is_empty() {
        let points = |x: f64| if x.is_nan() { "–".into() } else { format!("{:+.1}", 100.0 * x) };
        let rows = found.differences.iter().map(|d| {
            let x = &d.win_rate;
            let between =
                if x.low.is_nan() { "–".into() } else { format!("{} to {}", points(x.low), points(x.high)) };
            vec![d.methods.join(" − "), points(x.value), between]
        });
        let note =
            "Points of win rate, over the same draws of prompts. An interval that holds 0 does not tell the two apart.";
        all.push(table("Differences".into(), names(["", "difference", "interval"]), rows.collect(), note.into()));
    }
    if found.runs.len() > methods.len() {
        let rows = found.runs.iter().map(|r| {
            let t = &r.tally;
            let counts = [t.wins, t.ties, t.losses, t.flips, t.no_answer].map(|n| n.to_string());
            let rates = [with_interval(&r.win_rate), percent(r.length_controlled), number(r.mean_lengths.response)];
            [r.checkpoint.clone(), r.temperature.to_string(), r.seed.to_string()]
                .into_iter()
                .chain(counts)
                .chain(rates)
                .collect()
        });
        let head = [
            "",
            "temperature",
            "seed",
            "win",
            "tie",
            "loss",
            "flips",
            "no verdict",
            "win rate, %",
            "at equal lengths, %",
            "length",
        ];
        all.push(table("Every run".into(), names(head), rows.collect(), String::new()));
    }
    all
}

fn bar(x: &Interval) -> Option<[f64; 3]> {
    has(x).then_some([x.value, x.low, x.high])
}

/// Win rate by method, by temperature, by ratio of lengths.
pub fn figures(found: &EvaluationResult) -> Vec<BarFigure> {
    let (methods, against) = (&found.methods, &found.against);
    let series: Vec<String> = methods.iter().map(|m| m.name.clone()).collect();
    let group = |m: &MethodResult| BarGroup {
        label: m.name.clone(),
        bars: vec![bar(&m.win_rate.mean), bar(&m.length_controlled)],
    };
    let mut all = vec![BarFigure {
        title: format!("Win rate against {against}"),
        help: "Mean over runs; and what it would be if both sides were equally long. Half is neither better nor worse."
            .into(),
        series: ["win rate", "at equal lengths"].map(String::from).into(),
        groups: methods.iter().map(group).collect(),
    }];
    let temperatures = temperatures(found);
    if temperatures.len() > 1 {
        let group = |&t: &f64| BarGroup {
            label: t.to_string(),
            bars: methods.iter().map(|m| at(m, t).and_then(|rate| bar(&rate.mean))).collect(),
        };
        all.push(BarFigure {
            title: "By temperature".into(),
            help: "Of sampling.".into(),
            series: series.clone(),
            groups: temperatures.iter().map(group).collect(),
        });
    }
    let group = |(i, label): (usize, &str)| BarGroup {
        label: label.into(),
        bars: methods.iter().map(|m| bar(&m.by_length_ratio[i].win_rate)).collect(),
    };
    all.push(BarFigure {
        title: "By ratio of lengths".into(),
        help: format!("A response's characters over {against}'s: judges favour long answers."),
        series,
        groups: RATIO_NAMES.into_iter().enumerate().map(group).collect(),
    });
    all
}
