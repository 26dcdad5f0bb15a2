//! Results of a study: `results.json` and `report.html`.

use std::path::Path;

use serde_json::{Value, json};

use super::study_file::{ConditionalSource, JointSource, Study};
use super::{START, StudyMethod, StudyRun, WrittenResults};
use crate::error::{Error, Result};
use crate::eval::acquire::ANNOTATED;
use crate::eval::interplay::{Interplay, interplay, read};
use crate::model::folder::read_file;
use crate::model::save::write_text;
use crate::objective::Objective;
use crate::report::interplay as interplay_report;
use crate::report::{self, BarFigure, BarGroup, Report, ReportTable};
use crate::train::metrics::{self, METRICS};

/// Most bytes of a results file, which this program wrote itself.
const MOST_BYTES: u64 = 1 << 30;

/// Reads the stages' results, and writes `results.json` and `report.html`. Returns the text of both.
pub fn write(run: &StudyRun<'_>) -> Result<WrittenResults> {
    let study = run.study;
    let evaluation = evaluation(&run.dir("evaluate/results.json"))?;
    let interplay = analysed(run)?;
    let trainings = trainings(run)?;
    let found = json!({
        "title": study.title, "model": study.model, "seeds": study.seeds, "fractions": study.fractions,
        "methods": study.methods.iter().map(|m| json!({
            "name": m.name, "conditional": m.shares[0], "joint": m.shares[1],
            "objective": m.train.objective.objective.unwrap_or(Objective::Jpo),
        })).collect::<Vec<_>>(),
        "trainings": trainings, "interplay": interplay, "evaluation": evaluation,
    });
    let json = write_numbers(&run.dir("results.json"), &found)?;
    let rates = WinRates { study, evaluation: &evaluation };
    let mut bars = rates.figures();
    let mut tables = vec![rates.table()];
    tables.extend(rates.differences());
    if let Some(found) = &interplay {
        bars.extend(interplay_report::figures(found));
        tables.extend(interplay_report::tables(found));
    }
    let report = Report {
        title: study.title.clone(),
        command: report::command_line(),
        model: study.model.clone(),
        objective: study.methods.iter().map(|m| m.name.as_str()).collect::<Vec<_>>().join(", "),
        data: rates.data(&trainings),
        facts: vec![
            ("Seeds".into(), study.seeds.iter().map(u64::to_string).collect::<Vec<_>>().join(", ")),
            ("Judge".into(), text_of(&evaluation["judge"])),
        ],
        bars,
        tables: tables.clone(),
        ..Report::default()
    };
    let page = run.dir("report.html");
    report::write(&page, &report)?;
    note_places(&run.stages.out);
    let tables = tables.iter().take(2).map(|table| format!("{}\n", table.to_text())).collect();
    Ok(WrittenResults { json, tables })
}

/// Says where the results in an output folder are.
pub fn note_places(out: &Path) {
    let [page, numbers] = ["report.html", "results.json"].map(|name| out.join(name));
    note!("figures, tables and every number: {} and {}", page.display(), numbers.display());
}

/// Writes `results.json`. Returns its contents.
pub fn write_numbers(path: &Path, found: &Value) -> Result<String> {
    let text = serde_json::to_string_pretty(found).map_err(|e| Error::file(path, e))? + "\n";
    write_text(path, &text)?;
    Ok(text)
}

/// Returns a text, or nothing for another value.
pub fn text_of(value: &Value) -> String {
    value.as_str().unwrap_or_default().into()
}

/// Reads the results of `evaluate`, without the paths of files.
pub fn evaluation(path: &Path) -> Result<Value> {
    let mut found: Value =
        serde_json::from_str(&read_file(path, MOST_BYTES)?).map_err(|e| Error::line(path, e.line(), e))?;
    if let Some(object) = found.as_object_mut() {
        object.remove("data");
    }
    Ok(found)
}

/// Analyses the questions that this study asked a judge, as in the paper's figures 2 and 3.
fn analysed(run: &StudyRun<'_>) -> Result<Option<Interplay>> {
    let asked = [
        matches!(run.study.conditional, ConditionalSource::Sampled(_)).then_some("conditional"),
        matches!(run.study.joint, JointSource::Drawn(..)).then_some("joint"),
    ];
    let mut files = Vec::new();
    for stage in asked.into_iter().flatten() {
        let mut file = read(&run.dir(stage).join(ANNOTATED), false)?.0;
        // Results are the same wherever they lie.
        file.path = Path::new(stage).join(ANNOTATED);
        files.push(file);
    }
    let bootstrap = run.study.evaluate.bootstrap()?;
    // One judge's two files are one table.
    let merged = files.into_iter().reduce(|mut all, more| {
        all.rows.extend(more.rows);
        all
    });
    Ok(merged.map(|file| interplay(&[file], bootstrap)))
}

/// Returns the rows, steps and last metrics of each training run.
fn trainings(run: &StudyRun<'_>) -> Result<Vec<Value>> {
    let one = |training: super::StudyTraining<'_>| {
        let lines = metrics::read(&run.dir("train").join(training.name()).join(METRICS))?;
        let mut last = lines.last().cloned().unwrap_or_default();
        last.remove("seconds");
        let rows = run.data_file(training.method, training.fraction);
        let rows = std::fs::read_to_string(&rows).map_err(|e| Error::file(&rows, e))?.lines().count();
        Ok(json!({
            "method": training.method.name, "fraction": training.fraction, "seed": training.seed,
            "rows": rows, "steps": lines.len(), "last": last,
        }))
    };
    run.trainings().map(one).collect()
}

/// Win rates as the report shows them.
struct WinRates<'a> {
    study: &'a Study,
    evaluation: &'a Value,
}

impl WinRates<'_> {
    fn method(&self, name: &str) -> Option<&Value> {
        self.evaluation["methods"].as_array()?.iter().find(|m| m["name"] == name)
    }

    fn bar(&self, name: &str) -> Option<[f64; 3]> {
        let mean = &self.method(name)?["win_rate"]["mean"];
        let end = |key: &str| mean[key].as_f64().unwrap_or(f64::NAN);
        mean["value"].as_f64().map(|value| [value, end("low"), end("high")])
    }

    fn group(&self, label: &str, names: &[String]) -> BarGroup {
        BarGroup { label: label.into(), bars: names.iter().map(|name| self.bar(name)).collect() }
    }

    /// Returns the largest fraction of the data.
    fn most(&self) -> f64 {
        self.study.fractions.last().copied().unwrap_or(1.0)
    }

    /// Returns the method that is trained on one kind of preference alone (0: conditional, 1: joint), under the joint objective.
    fn only(&self, kind: usize) -> Option<&StudyMethod> {
        let is = |m: &&StudyMethod| {
            let joint = m.train.objective.objective.unwrap_or(Objective::Jpo) == Objective::Jpo;
            joint && m.shares[kind] > 0.0 && m.shares[1 - kind] == 0.0
        };
        self.study.methods.iter().find(is)
    }

    fn figures(&self) -> Vec<BarFigure> {
        let most = self.most();
        let against = text_of(&self.evaluation["against"]);
        let methods = &self.study.methods;
        let mut all = vec![BarFigure {
            title: format!("Win rate against {against}, by method"),
            help: "Mean over seeds and temperatures, with its interval; the paper's figure 4.".into(),
            series: vec!["win rate".into()],
            groups: std::iter::once(self.group(START, &[START.into()]))
                .chain(methods.iter().map(|m| self.group(&m.name, &[m.name_for(most)])))
                .collect(),
        }];
        if let (Some(identical), Some(different)) = (self.only(0), self.only(1)) {
            all.push(BarFigure {
                title: "JPO on identical and on different instructions".into(),
                help:
                    "Preferences between responses to one instruction, and between pairs of two; the paper's figure 5."
                        .into(),
                series: vec!["win rate".into()],
                groups: [("identical", identical), ("different", different)]
                    .map(|(label, method)| self.group(label, &[method.name_for(most)]))
                    .into(),
            });
        }
        if self.study.fractions.len() > 1 {
            let group = |&fraction: &f64| {
                let names: Vec<String> = methods.iter().map(|m| m.name_for(fraction)).collect();
                self.group(&format!("{:.0} %", 100.0 * fraction), &names)
            };
            all.push(BarFigure {
                title: "Win rate by amount of data".into(),
                help: "Parts of the preferences, each a part of the next.".into(),
                series: methods.iter().map(|m| m.name.clone()).collect(),
                groups: self.study.fractions.iter().map(group).collect(),
            });
        }
        all
    }

    fn table(&self) -> ReportTable {
        let percent = |x: f64| if x.is_nan() { "–".into() } else { format!("{:.1}", 100.0 * x) };
        let number = |value: &Value| value.as_f64().unwrap_or(f64::NAN);
        let row = |method: Option<&StudyMethod>, fraction: f64| {
            let name = method.map_or(START.into(), |m| m.name_for(fraction));
            let found = self.method(&name)?;
            let [value, low, high] = self.bar(&name)?;
            let shares = method.map_or(["–".into(), "–".into()], |m| m.shares.map(|s| percent(s * fraction)));
            let [conditional, joint] = shares;
            let interval = if low.is_nan() { "–".into() } else { format!("{} to {}", percent(low), percent(high)) };
            let equal = percent(number(&found["length_controlled"]["value"]));
            let length = format!("{:.0}", number(&found["mean_lengths"]["response"]));
            let runs = found["win_rate"]["runs"].to_string();
            let sd = percent(number(&found["win_rate"]["sd"]));
            Some(vec![
                method.map_or(START, |m| &m.name).into(),
                conditional,
                joint,
                runs,
                percent(value),
                sd,
                interval,
                equal,
                length,
            ])
        };
        let mut all: Vec<Vec<String>> = row(None, 1.0).into_iter().collect();
        for method in &self.study.methods {
            let of = |&fraction: &f64| row(Some(method), fraction);
            all.extend(self.study.fractions.iter().filter_map(of));
        }
        let head = [
            "",
            "conditional, %",
            "joint, %",
            "runs",
            "win rate, %",
            "sd",
            "interval",
            "at equal lengths, %",
            "length",
        ];
        ReportTable {
            caption: format!(
                "Win rate against {}: {} prompts, judged in both orders by {}",
                text_of(&self.evaluation["against"]),
                self.evaluation["prompts"],
                text_of(&self.evaluation["judge"]),
            ),
            head: head.map(String::from).into(),
            rows: all,
            note: "(wins + ½ ties) / judged. Conditional, joint: parts of those preferences that a method was trained on. Runs are seeds × \
                   temperatures, sd their standard deviation; the interval draws prompts. Lengths in characters."
                .into(),
        }
    }

    fn differences(&self) -> Option<ReportTable> {
        let most = self.most();
        let names: Vec<String> =
            std::iter::once(START.into()).chain(self.study.methods.iter().map(|m| m.name_for(most))).collect();
        let points = |value: &Value| value.as_f64().map_or("–".into(), |x| format!("{:+.1}", 100.0 * x));
        let rows = self.evaluation["differences"].as_array()?.iter().filter_map(|d| {
            let [a, b] = [d["methods"][0].as_str()?, d["methods"][1].as_str()?];
            let x = &d["win_rate"];
            let both = [a, b].iter().all(|name| names.iter().any(|n| n == name));
            both.then(|| vec![format!("{a} − {b}"), points(&x["value"]), points(&x["low"]), points(&x["high"])])
        });
        let rows: Vec<Vec<String>> = rows.collect();
        (!rows.is_empty()).then(|| ReportTable {
            caption: "Differences of win rates, in points".into(),
            head: ["", "difference", "from", "to"].map(String::from).into(),
            rows,
            note: "Over the same draws of prompts. An interval that holds 0 does not tell the two apart.".into(),
        })
    }

    fn data(&self, trainings: &[Value]) -> String {
        let most = self.most();
        let rows = trainings.iter().filter(|t| t["fraction"] == most && t["seed"] == self.study.seeds[0]);
        rows.map(|t| format!("{}: {} preferences", text_of(&t["method"]), t["rows"])).collect::<Vec<_>>().join("; ")
    }
}
