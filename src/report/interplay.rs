//! The analysis as tables and figures.

use super::{BarFigure, BarGroup, ReportTable};
use crate::eval::interplay::{AnnotationAnalysis, Interplay, JudgeAgreement};
use crate::eval::statistics::{Interval, ResamplingUnits};
use crate::eval::strata::Stratum;

fn has(x: &Interval) -> bool {
    x.n > 0 && !x.value.is_nan()
}

/// "73.2 (69.1 to 77.0)", per cent.
fn percent(x: &Interval) -> String {
    match (has(x), x.low.is_nan()) {
        (false, _) => "–".into(),
        (_, true) => format!("{:.1}", 100.0 * x.value),
        _ => format!("{:.1} ({:.1} to {:.1})", 100.0 * x.value, 100.0 * x.low, 100.0 * x.high),
    }
}

/// "0.42 (0.31 to 0.52)".
fn plain(x: &Interval) -> String {
    match (has(x), x.low.is_nan()) {
        (false, _) => "–".into(),
        (_, true) => format!("{:.2}", x.value),
        _ => format!("{:.2} ({:.2} to {:.2})", x.value, x.low, x.high),
    }
}

fn name(a: &AnnotationAnalysis) -> String {
    if a.is_person { format!("{} (person)", a.judge) } else { a.judge.clone() }
}

fn table(caption: &str, head: &[&str], rows: Vec<Vec<String>>, note: String) -> ReportTable {
    ReportTable { caption: caption.into(), head: head.iter().map(|h| (*h).into()).collect(), rows, note }
}

/// "by stratum" in words.
fn stratum(name: &str) -> &'static str {
    Stratum::ALL.into_iter().find(|s| s.name() == name).map_or("all", Stratum::title)
}

/// Describes how the shown intervals were made.
fn about<'a>(found: &Interplay, shown: impl Iterator<Item = &'a Interval>) -> String {
    let b = &found.bootstrap;
    let shares = shown.filter(|x| has(x)).any(|x| x.units == ResamplingUnits::Rows);
    let more = match shares {
        true => {
            " Where too many share preference rows, the rows are drawn, and a comparison counts as often as the product of its rows' draws."
        }
        false => "",
    };
    format!(
        "In brackets {:.0} % bootstrap intervals: {} draws of comparisons, those that share preference rows together.{more}",
        100.0 * b.level,
        b.draws
    )
}

/// Tables of everything that there is something to say about.
pub fn tables(found: &Interplay) -> Vec<ReportTable> {
    let judges = &found.judges;
    let note = about(found, judges.iter().flat_map(|j| j.decisive.iter().map(|(_, x)| x)));
    let mut all = Vec::new();
    let mut rows = Vec::new();
    for judge in judges {
        for (which, x) in &judge.decisive {
            rows.push(vec![name(judge), stratum(which).into(), x.n.to_string(), percent(x)]);
        }
    }
    let without: Vec<String> = (judges.iter().filter(|j| j.no_answer > 0))
        .map(|j| format!(" {}: {} of {} rows have no verdict and are left out.", name(j), j.no_answer, j.rows))
        .collect();
    let head = ["judge", "stratum", "n", "decisive, %"];
    all.push(table("How often one side wins in both orders", &head, rows, format!("{note}{}", without.concat())));

    let mixed: Vec<&AnnotationAnalysis> = judges.iter().filter(|j| j.mixed[0].1.n > 0).collect();
    if !mixed.is_empty() {
        let row = |j: &&AnnotationAnalysis| {
            let shares = j.mixed.iter().map(|(_, x)| percent(x));
            let first = [name(j), j.mixed[0].1.n.to_string()].into_iter();
            first.chain(shares).chain([percent(&j.conditional_agreement), plain(&j.conditional_kappa)]).collect()
        };
        let head = ["judge", "n", "C>R, %", "C<R, %", "tie, %", "agrees with conditional, %", "κ"];
        let note = "C was preferred to another response of its own instruction, R rejected. Agreement and κ: of pairs that were decided.";
        all.push(table(
            "One of each: does what was preferred conditionally win jointly?",
            &head,
            mixed.iter().map(row).collect(),
            note.into(),
        ));
    }
    let told: Vec<&AnnotationAnalysis> = judges.iter().filter(|j| j.said_a.n > 0).collect();
    if !told.is_empty() {
        let row = |j: &&AnnotationAnalysis| {
            vec![name(j), j.said_a.n.to_string(), percent(&j.said_a), percent(&j.flips), percent(&j.flips_to_a)]
        };
        let head = ["judge", "letters", "said (a), %", "same letter twice, %", "of those (a), %"];
        let note = "Without a bias half of the letters are (a). A comparison that gets the same letter in both orders is a tie.";
        all.push(table("Positional bias", &head, told.iter().map(row).collect(), note.into()));
    }
    for (with_person, caption) in [(false, "Agreement between judges"), (true, "Agreement with people")] {
        let pairs: Vec<&JudgeAgreement> = found.agreement.iter().filter(|a| a.with_person == with_person).collect();
        if pairs.is_empty() {
            continue;
        }
        let row = |a: &&JudgeAgreement| {
            let shares = [percent(&a.verdicts), plain(&a.kappa)].into_iter();
            let who = [a.judges.join(", "), a.verdicts.n.to_string()].into_iter();
            who.chain(shares).chain([a.decided.n.to_string(), percent(&a.decided), plain(&a.decided_kappa)]).collect()
        };
        let head = ["judges", "n", "same verdict, %", "κ", "n both decided", "same side, %", "κ decided"];
        let note = "κ is Cohen's, over first, second and tie, and over first and second where both decided. n: comparisons with a verdict of both.";
        all.push(table(
            caption,
            &head,
            pairs.iter().map(row).collect(),
            format!("{note} {}", about(found, pairs.iter().map(|a| &a.verdicts))),
        ));
    }
    all
}

fn bars(title: &str, help: &str, series: Vec<String>, groups: Vec<BarGroup>) -> BarFigure {
    BarFigure { title: title.into(), help: help.into(), series, groups }
}

/// The paper's figures 2 and 3, and agreement.
pub fn figures(found: &Interplay) -> Vec<BarFigure> {
    let judges = &found.judges;
    let series: Vec<String> = judges.iter().map(name).collect();
    let bar = |x: &Interval| has(x).then_some([x.value, x.low, x.high]);
    let mut all = Vec::new();
    let strata: Vec<Stratum> = Stratum::ALL
        .into_iter()
        .filter(|s| judges.iter().any(|j| j.decisive.iter().any(|(which, x)| *which == s.name() && has(x))))
        .collect();
    let of = |j: &AnnotationAnalysis, s: &Stratum| {
        j.decisive.iter().find(|(which, _)| *which == s.name()).and_then(|(_, x)| bar(x))
    };
    let groups =
        strata.iter().map(|s| BarGroup { label: s.title().into(), bars: judges.iter().map(|j| of(j, s)).collect() });
    let help = "Share of comparisons in which one side wins in both orders, by what the sides were under their conditional preferences.";
    all.push(bars("Decisive", help, series.clone(), groups.collect()));
    if judges.iter().any(|j| j.mixed[0].1.n > 0) {
        let labels = ["C > R", "C < R", "tie"].into_iter().enumerate();
        let groups = labels.map(|(i, label)| BarGroup {
            label: label.into(),
            bars: judges.iter().map(|j| bar(&j.mixed[i].1)).collect(),
        });
        let help = "A side that was preferred conditionally (C) against one that was rejected (R), under different instructions.";
        all.push(bars("One of each", help, series.clone(), groups.collect()));
    }
    if judges.iter().any(|j| j.flips.n > 0) {
        let kind = |label: &str, of: &dyn Fn(&AnnotationAnalysis) -> Interval| BarGroup {
            label: label.into(),
            bars: judges.iter().map(|j| bar(&of(j))).collect(),
        };
        let groups = [kind("said (a)", &|j| j.said_a), kind("same letter twice", &|j| j.flips)];
        let help = "How often the order of asking decides: half of all letters are (a) where it does not.";
        all.push(bars("Positional bias", help, series, groups.into()));
    }
    if !found.agreement.is_empty() {
        let group =
            |a: &JudgeAgreement| BarGroup { label: a.judges.join(", "), bars: vec![bar(&a.verdicts), bar(&a.decided)] };
        let help = "Of the comparisons that both judged; and of those that both decided.";
        let series = ["same verdict", "same side, where both decided"].map(String::from).into();
        all.push(bars("Agreement", help, series, found.agreement.iter().map(group).collect()));
    }
    all
}
