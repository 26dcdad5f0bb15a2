//! Results of online rounds: `results.json` and `report.html`.

use std::path::Path;

use serde_json::{Value, json};

use super::super::WrittenResults;
use super::super::results::{evaluation, text_of, write_numbers};
use super::super::rows::{self, SampledComparisons};
use super::rounds_file::{RoundOpponent, RoundReference};
use super::{RoundsRun, START, stage_of};
use crate::error::Result;
use crate::eval::acquire::{ANNOTATED, PREFERENCES};
use crate::objective::Objective;
use crate::report::{self, BarFigure, BarGroup, Report, ReportTable};
use crate::train::metrics::{self, METRICS};

/// Verdicts on the comparisons of a stage.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
pub struct StageVerdicts {
    /// Number of comparisons.
    pub comparisons: usize,
    /// Number of comparisons with a preferred side.
    pub decided: usize,
    /// Number of comparisons in which neither side is better.
    pub ties: usize,
    /// Number of ties in which both orders gave the same letter.
    pub flips: usize,
    /// Number of comparisons without a verdict.
    pub no_verdict: usize,
}

impl StageVerdicts {
    /// Writes the counts as text.
    pub fn text(&self) -> String {
        format!(
            "{} of {} comparisons decided, {} ties ({} of them the same letter in both orders), {} without a verdict",
            self.decided, self.comparisons, self.ties, self.flips, self.no_verdict
        )
    }
}

/// Counts the verdicts in the folder of a stage that asked a judge.
pub fn counts(dir: &Path) -> Result<StageVerdicts> {
    let mut counts = StageVerdicts::default();
    for row in rows::objects(&[dir.join(ANNOTATED)])? {
        counts.comparisons += 1;
        *match row["verdict"].as_str() {
            Some("first" | "second") => &mut counts.decided,
            Some("tie") => &mut counts.ties,
            _ => &mut counts.no_verdict,
        } += 1;
        counts.flips += usize::from(row["flip"] == true);
    }
    Ok(counts)
}

/// Reads the stages' results up to a round, and writes `results.json` and `report.html`. Returns the text of both.
pub fn write(run: &RoundsRun<'_>, last: usize) -> Result<WrittenResults> {
    let rounds = run.rounds;
    let evaluation = evaluation(&run.dir("evaluate/results.json"))?;
    let all = (1..=last).map(|round| of_round(run, round, &evaluation)).collect::<Result<Vec<Value>>>()?;
    let objective = run.method().train.objective.objective.unwrap_or(Objective::Jpo);
    let found = json!({
        "title": rounds.study.title, "model": rounds.study.model, "adapter": rounds.adapter, "seed": rounds.seed,
        "objective": objective, "reference": rounds.reference, "against": rounds.against, "planned_rounds": rounds.rounds,
        "rounds": all, "evaluation": evaluation,
    });
    let json = write_numbers(&run.dir("results.json"), &found)?;
    let by_round = RoundTables { against: rounds.against, rounds: &all, evaluation: &evaluation };
    let tables = [Some(by_round.rates()), Some(by_round.verdicts()), by_round.differences()];
    let tables: Vec<ReportTable> = tables.into_iter().flatten().collect();
    let reference = match rounds.reference {
        RoundReference::Round => "the policy at the start of each round",
        RoundReference::Start => "the policy at the start of the first round",
    };
    let name = match objective {
        Objective::Jpo => "JPO",
        Objective::Dpo => "DPO",
    };
    let page = Report {
        title: rounds.study.title.clone(),
        command: report::command_line(),
        model: rounds.study.model.clone(),
        objective: format!("{name}, {last} of {} rounds", rounds.rounds),
        facts: vec![
            ("Reference".into(), reference.into()),
            ("Seed".into(), rounds.seed.to_string()),
            ("Judge".into(), text_of(&evaluation["judge"])),
        ],
        bars: by_round.figures(),
        tables: tables.clone(),
        ..Report::default()
    };
    report::write(&run.dir("report.html"), &page)?;
    let tables = tables.iter().take(2).map(|table| format!("{}\n", table.to_text())).collect();
    Ok(WrittenResults { json, tables })
}

/// Counts the rows of a file of a round.
fn n_rows(run: &RoundsRun<'_>, round: usize, file: &str) -> Result<usize> {
    Ok(rows::objects(&[run.dir(&stage_of(round, file))])?.len())
}

/// Returns the numbers of a round.
fn of_round(run: &RoundsRun<'_>, round: usize, evaluation: &Value) -> Result<Value> {
    let prompts = rows::objects(&run.prompts(round)?)?.len();
    let SampledComparisons { answered, empty, same, .. } = run.compared(round)?;
    let joint = run.dir(&stage_of(round, "joint"));
    let joint = if joint.join(ANNOTATED).exists() { Some(counts(&joint)?) } else { None };
    let lines = metrics::read(&run.dir(&stage_of(round, "train")).join(METRICS))?;
    let accuracies: Vec<f64> = lines.iter().filter_map(|line| line.get("rewards/accuracies")?.as_f64()).collect();
    let accuracy = (!accuracies.is_empty()).then(|| accuracies.iter().sum::<f64>() / accuracies.len() as f64);
    let mut last = lines.last().cloned().unwrap_or_default();
    last.remove("seconds");
    let name = format!("round-{round}");
    Ok(json!({
        "round": round, "prompts": prompts, "too_long": prompts - answered, "same_response_twice": same,
        "empty_response": empty,
        "conditional": counts(&run.dir(&stage_of(round, "conditional")))?, "joint": joint,
        "preferences": n_rows(run, round, PREFERENCES)?, "steps": lines.len(), "reward_accuracy": accuracy, "last": last,
        "evaluated": method(evaluation, &name),
    }))
}

/// Returns the results of a checkpoint in an evaluation.
fn method<'a>(evaluation: &'a Value, name: &str) -> Option<&'a Value> {
    evaluation["methods"].as_array()?.iter().find(|m| m["name"] == name)
}

/// Tables and figures by round.
struct RoundTables<'a> {
    against: RoundOpponent,
    rounds: &'a [Value],
    evaluation: &'a Value,
}

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or(f64::NAN)
}

fn percent(x: f64) -> String {
    if x.is_nan() { "–".into() } else { format!("{:.1}", 100.0 * x) }
}

fn interval(of: &Value) -> Option<[f64; 3]> {
    Some([of["value"].as_f64()?, number(&of["low"]), number(&of["high"])])
}

fn table(caption: String, head: &[&str], rows: Vec<Vec<String>>, note: &str) -> ReportTable {
    ReportTable { caption, head: head.iter().map(|&text| text.into()).collect(), rows, note: note.into() }
}

impl RoundTables<'_> {
    fn opponent(&self) -> &'static str {
        match self.against {
            RoundOpponent::Start => "the start policy",
            RoundOpponent::Gold => "gold",
        }
    }

    /// Returns the policies in order, each with its results. Against itself, the start policy has half of all by definition.
    fn policies(&self) -> Vec<(String, Option<&Value>)> {
        let rounds = self.rounds.iter().map(|round| (format!("round {}", round["round"]), round.get("evaluated")));
        std::iter::once((START.into(), method(self.evaluation, START))).chain(rounds).collect()
    }

    fn figures(&self) -> Vec<BarFigure> {
        let half = Some([0.5, f64::NAN, f64::NAN]);
        let group = |(label, found): (String, Option<&Value>)| BarGroup {
            bars: match found {
                None => vec![half, half],
                Some(found) => vec![interval(&found["win_rate"]["mean"]), interval(&found["length_controlled"])],
            },
            label,
        };
        let accuracy = |round: &Value| BarGroup {
            label: format!("round {}", round["round"]),
            bars: vec![round["reward_accuracy"].as_f64().map(|value| [value, f64::NAN, f64::NAN])],
        };
        vec![
            BarFigure {
                title: format!("Win rate against {}, by round", self.opponent()),
                help: "On the test prompts, with its interval; and what it would be if both sides were equally long."
                    .into(),
                series: ["win rate", "at equal lengths"].map(String::from).into(),
                groups: self.policies().into_iter().map(group).collect(),
            },
            BarFigure {
                title: "Reward accuracy, by round".into(),
                help: "Share of a round's preferences whose preferred side has the higher reward: the mean over its steps."
                    .into(),
                series: vec!["reward accuracy".into()],
                groups: self.rounds.iter().map(accuracy).collect(),
            },
        ]
    }

    /// Writes win rates, lengths and training by round.
    fn rates(&self) -> ReportTable {
        let row = |(i, (name, found)): (usize, (String, Option<&Value>))| {
            let round = i.checked_sub(1).map(|i| &self.rounds[i]);
            let of_round = |key: &str| round.map_or("–".into(), |round| round[key].to_string());
            let accuracy = percent(round.map_or(f64::NAN, |round| number(&round["reward_accuracy"])));
            let training = [of_round("preferences"), of_round("steps"), accuracy];
            let rates = match found {
                None => ["50.0".into(), "–".into(), "50.0".into(), self.start_length()],
                Some(found) => {
                    let [value, low, high] = interval(&found["win_rate"]["mean"]).unwrap_or([f64::NAN; 3]);
                    let range =
                        if low.is_nan() { "–".into() } else { format!("{} to {}", percent(low), percent(high)) };
                    let equal = percent(number(&found["length_controlled"]["value"]));
                    [percent(value), range, equal, format!("{:.0}", number(&found["mean_lengths"]["response"]))]
                }
            };
            std::iter::once(name).chain(rates).chain(training).collect()
        };
        let caption = format!(
            "Win rate against {}: {} prompts, judged in both orders by {}",
            self.opponent(),
            self.evaluation["prompts"],
            text_of(&self.evaluation["judge"])
        );
        let head = [
            "",
            "win rate, %",
            "interval",
            "at equal lengths, %",
            "length",
            "preferences",
            "steps",
            "reward accuracy, %",
        ];
        table(
            caption,
            &head,
            self.policies().into_iter().enumerate().map(row).collect(),
            "(wins + ½ ties) / judged, of the policy after the round; the interval draws prompts. Length: characters of a response, mean. Judges \
             favour long answers: read the rate beside the lengths. Preferences, steps and reward accuracy are those of the round's training; the accuracy is the \
             mean over its steps.",
        )
    }

    /// Returns the mean length of the start policy's responses, which the rounds' responses are compared with.
    fn start_length(&self) -> String {
        let length = self.rounds.first().map_or(f64::NAN, |round| number(&round["evaluated"]["mean_lengths"]["other"]));
        if length.is_nan() { "–".into() } else { format!("{length:.0}") }
    }

    /// Writes what the judge said of a round's samples.
    fn verdicts(&self) -> ReportTable {
        let row = |round: &Value| {
            let of = |value: &Value, key: &str| match &value[key] {
                Value::Null => "–".into(),
                value => value.to_string(),
            };
            let own = ["prompts", "too_long", "same_response_twice", "empty_response"].map(|key| of(round, key));
            let judged = |kind: &str| ["decided", "ties", "flips", "no_verdict"].map(|key| of(&round[kind], key));
            let name = format!("round {}", round["round"]);
            std::iter::once(name).chain(own).chain(judged("conditional")).chain(judged("joint")).collect()
        };
        let head = [
            "",
            "prompts",
            "too long",
            "same response twice",
            "empty response",
            "decided",
            "ties",
            "flips",
            "no verdict",
            "joint: decided",
            "ties",
            "flips",
            "no verdict",
        ];
        table(
            "What the judge said of each round's responses".into(),
            &head,
            self.rounds.iter().map(row).collect(),
            "Two responses per prompt. Prompts that are too long, two equal responses, an empty response, ties and comparisons without a verdict give no preference. Flips: \
             ties for which the judge said the same letter in both orders.",
        )
    }

    /// Writes the differences between the policies' win rates.
    fn differences(&self) -> Option<ReportTable> {
        let points = |value: &Value| value.as_f64().map_or("–".into(), |x| format!("{:+.1}", 100.0 * x));
        let name = |value: &Value| text_of(value).replace('-', " ");
        let row = |d: &Value| {
            let (names, x) = (&d["methods"], &d["win_rate"]);
            // Later − earlier: the evaluation has them the other way round.
            let minus = |value: &Value| value.as_f64().map_or(Value::Null, |x| json!(-x));
            vec![
                format!("{} − {}", name(&names[1]), name(&names[0])),
                points(&minus(&x["value"])),
                points(&minus(&x["high"])),
                points(&minus(&x["low"])),
            ]
        };
        let rows: Vec<Vec<String>> = self.evaluation["differences"].as_array()?.iter().map(row).collect();
        (!rows.is_empty()).then(|| {
            table(
                "Differences of win rates, in points".into(),
                &["", "difference", "from", "to"],
                rows,
                "Over the same draws of prompts. An interval that holds 0 does not tell the two apart.",
            )
        })
    }
}
