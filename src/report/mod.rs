//! `report.html`: a run on one page that loads nothing. Curves are SVG drawn here; a small script adds the read-out.

mod bars;
mod chart;
pub mod evaluation;
pub mod interplay;
#[cfg(feature = "cli")]
pub mod roofline;

use crate::error::{Result, visible};
use crate::files::write_text;
use crate::train::metrics::MetricsLine;
pub use bars::{BarFigure, BarGroup};
use chart::ChartPanel;
use sha2::{Digest, Sha256};
use std::fmt::Write;
use std::path::Path;
use web_time::{SystemTime, UNIX_EPOCH};

const TEMPLATE: &str = include_str!("report.html");

/// Returns the command line that was typed, for reports.
pub fn command_line() -> String {
    std::env::args_os().map(|a| a.to_string_lossy().into_owned()).collect::<Vec<_>>().join(" ")
}

/// Contents of a report. Every text is escaped; an empty one is left out.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Report {
    /// Headline.
    pub title: String,
    /// The command that was run.
    pub command: String,
    /// Model's name or folder.
    pub model: String,
    /// The GPU (or what stands in for it).
    pub device: String,
    /// "1.04 M, all trained".
    pub parameters: String,
    /// "JPO, sigmoid, β = 0.1".
    pub objective: String,
    /// Files, and rows in them.
    pub data: String,
    /// Time of the start, written by [`utc`].
    pub started: String,
    /// Wall time, s.
    pub seconds: f64,
    /// Further facts: name, value.
    pub facts: Vec<(String, String)>,
    /// Lines of `metrics.jsonl`.
    pub lines: Vec<MetricsLine>,
    /// Shares, of an analysis.
    pub bars: Vec<BarFigure>,
    /// Tables, such as results before and after training.
    pub tables: Vec<ReportTable>,
    /// Example instructions with the models' answers.
    pub samples: Vec<ReportSample>,
}

/// A table: the first column names, the others are figures.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ReportTable {
    /// Title above the table.
    pub caption: String,
    /// Column heads.
    pub head: Vec<String>,
    /// Cells.
    pub rows: Vec<Vec<String>>,
    /// Explanation below the table; may be empty.
    pub note: String,
}

/// Answers to one instruction.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ReportSample {
    /// Instruction that the models answer.
    pub instruction: String,
    /// Answers: the model's name, and its answer.
    pub answers: Vec<(String, String)>,
}

/// Writes the page, whole or not at all.
pub fn write(path: &Path, report: &Report) -> Result<()> {
    write_text(path, &render(report))
}

/// The page.
pub fn render(report: &Report) -> String {
    let panels = chart::panels(&report.lines);
    let row = |aside: bool| -> String {
        let chosen = panels.iter().enumerate().filter(|(_, p)| p.aside() == aside);
        let figures: String = chosen.map(|(i, p)| p.figure(i)).collect();
        let class = if aside { "charts aside" } else { "charts" };
        if figures.is_empty() { figures } else { format!("<div class=\"{class}\">{figures}</div>") }
    };
    let bars: String = report.bars.iter().map(BarFigure::figure).collect();
    let curves = match (panels.is_empty(), bars.is_empty()) {
        (true, true) => "<p class=\"empty\">No step was logged.</p>".into(),
        (_, true) => row(false) + &row(true),
        _ => row(false) + &row(true) + &format!("<div class=\"charts\">{bars}</div>"),
    };
    let (brand, reading) = match panels.is_empty() && !report.bars.is_empty() {
        true => ("report", "Whiskers are intervals."),
        false => {
            ("training report", "Strong lines are smoothed, faint ones are single steps, rings are the validation set.")
        }
    };
    fill(
        TEMPLATE,
        &[
            ("script", script_hash()),
            ("brand", brand.into()),
            ("reading", reading.into()),
            ("title", escape(if report.title.is_empty() { "Training report" } else { &report.title })),
            ("lead", lead(report)),
            ("tiles", tiles(&report.lines)),
            ("curves", curves),
            ("tables", report.tables.iter().map(table).collect()),
            ("samples", samples(&report.samples)),
            ("facts", facts(report)),
            ("version", env!("CARGO_PKG_VERSION").into()),
            ("series", chart_json(&panels)),
        ],
    )
}

/// Names the page's own script in its Content-Security-Policy, so that no other one runs. Browsers hash it with line feeds alone.
fn script_hash() -> String {
    let script = TEMPLATE.split_once("<script>").and_then(|(_, rest)| rest.split_once("</script>"));
    let script = script.map_or("", |(script, _)| script).replace("\r\n", "\n");
    format!("sha256-{}", base64(&Sha256::digest(script)))
}

fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut out = String::new();
    for chunk in bytes.chunks(3) {
        let word = chunk.iter().enumerate().fold(0, |word, (i, byte)| word | u32::from(*byte) << (16 - 8 * i));
        for i in 0..4 {
            let digit = DIGITS[(word >> (18 - 6 * i)) as usize & 63] as char;
            out.push(if i <= chunk.len() { digit } else { '=' });
        }
    }
    out
}

/// Replaces `{{name}}` in one pass, so that nothing inside a value is taken for a name.
fn fill(template: &str, values: &[(&str, String)]) -> String {
    let mut out = String::with_capacity(template.len() * 4);
    let mut rest = template;
    while let Some((before, (name, after))) =
        rest.split_once("{{").and_then(|(before, tail)| Some((before, tail.split_once("}}")?)))
    {
        out += before;
        out += values.iter().find(|(n, _)| *n == name).map_or("", |(_, v)| v);
        rest = after;
    }
    out + rest
}

/// Escapes text for element content and quoted attributes. Control characters, which HTML forbids, become the replacement character.
fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out += "&amp;",
            '<' => out += "&lt;",
            '>' => out += "&gt;",
            '"' => out += "&quot;",
            '\'' => out += "&#39;",
            '\n' | '\t' => out.push(c),
            c if c.is_control() => out.push('\u{fffd}'),
            c => out.push(c),
        }
    }
    out
}

fn lead(report: &Report) -> String {
    let parts = [&report.objective, &report.model, &report.device].into_iter().filter(|t| !t.is_empty());
    parts.map(|t| format!("<span>{}</span>", escape(t))).collect()
}

/// The figures that one looks for first.
fn tiles(lines: &[MetricsLine]) -> String {
    let last = |name: &str| lines.iter().rev().find_map(|l| l.get(name)?.as_f64());
    let smooth = |name: &str| chart::smoothed_last(lines, name);
    let best =
        |name: &str| last(&format!("eval_{name}")).map(|v| (v, "validation")).or(smooth(name).map(|v| (v, "training")));
    let mut out = String::new();
    let mut tile = |label: &str, value: String, note: &str| {
        let _ = write!(out, "<div class=\"tile\"><b>{value}</b><span>{label}</span><i>{note}</i></div>");
    };
    if let Some((v, of)) = best("loss") {
        tile("loss", chart::short(v), of);
    }
    if let Some((v, of)) = best("rewards/accuracies") {
        tile("reward accuracy", format!("{:.1} %", 100.0 * v), of);
    }
    if let Some((v, of)) = best("rewards/margins") {
        tile("reward margin", chart::short(v), of);
    }
    if let Some(step) = last("step") {
        let epoch = last("epoch").map_or(String::new(), |e| format!("epoch {e:.2}"));
        tile("steps", chart::thousands(step), &epoch);
    }
    if let Some(tokens) = last("num_tokens") {
        let sum = |name: &str| lines.iter().filter_map(|l| l.get(name)?.as_f64()).sum::<f64>();
        let seconds = sum("seconds");
        let rate = if seconds > 0.0 {
            format!("{} a second", chart::thousands(sum("tokens") / seconds))
        } else {
            String::new()
        };
        tile("tokens", chart::amount(tokens), &rate);
    }
    if out.is_empty() { out } else { format!("<section class=\"tiles\">{out}</section>") }
}

fn table(table: &ReportTable) -> String {
    let cells =
        |row: &[String], tag: &str| -> String { row.iter().map(|c| format!("<{tag}>{}</{tag}>", escape(c))).collect() };
    let rows: String = (table.rows.iter())
        .map(|r| match r.split_first() {
            Some((name, rest)) => format!("<tr><th scope=\"row\">{}</th>{}</tr>", escape(name), cells(rest, "td")),
            None => String::new(),
        })
        .collect();
    let note =
        if table.note.is_empty() { String::new() } else { format!("<p class=\"note\">{}</p>", escape(&table.note)) };
    format!(
        "<section><h2>{}</h2><div class=\"scroll\"><table><thead><tr>{}</tr></thead><tbody>{rows}</tbody></table></div>{note}</section>",
        escape(&table.caption),
        cells(&table.head, "th scope=\"col\"").replace("</th scope=\"col\">", "</th>"),
    )
}

fn samples(samples: &[ReportSample]) -> String {
    if samples.is_empty() {
        return String::new();
    }
    let answers = |s: &ReportSample| -> String {
        let one = |(who, what): &(String, String)| format!("<dt>{}</dt><dd>{}</dd>", escape(who), escape(what));
        s.answers.iter().map(one).collect()
    };
    let card =
        |s: &ReportSample| format!("<article><h3>{}</h3><dl>{}</dl></article>", escape(&s.instruction), answers(s));
    let cards: String = samples.iter().map(card).collect();
    format!("<section><h2>Samples</h2><div class=\"samples\">{cards}</div></section>")
}

fn facts(report: &Report) -> String {
    let duration = if report.seconds > 0.0 { duration(report.seconds) } else { String::new() };
    let named = [
        ("Model", &report.model),
        ("Parameters", &report.parameters),
        ("Objective", &report.objective),
        ("Data", &report.data),
        ("Device", &report.device),
        ("Started", &report.started),
        ("Duration", &duration),
    ];
    let more = report.facts.iter().map(|(n, v)| (n.as_str(), v));
    let rows: String = (named.into_iter().chain(more).filter(|(_, v)| !v.is_empty()))
        .map(|(n, v)| format!("<div><dt>{}</dt><dd>{}</dd></div>", escape(n), escape(v)))
        .collect();
    let command = match report.command.is_empty() {
        true => String::new(),
        false => format!("<pre><code>{}</code></pre>", escape(&report.command)),
    };
    match rows.is_empty() && command.is_empty() {
        true => String::new(),
        false => format!("<section><h2>Run</h2>{command}<dl class=\"facts\">{rows}</dl></section>"),
    }
}

/// Encodes the panels as JSON for a script element: without `<`, so that nothing can close the element.
fn chart_json(panels: &[ChartPanel]) -> String {
    let all: Vec<_> = panels.iter().map(ChartPanel::json).collect();
    serde_json::Value::Array(all).to_string().replace('<', "\\u003c")
}

/// "1 h 02 min", "3 min 20 s", "4.2 s".
pub fn duration(seconds: f64) -> String {
    let whole = seconds.round() as u64;
    match whole {
        0..=59 => format!("{seconds:.1} s"),
        60..=3599 => format!("{} min {:02} s", whole / 60, whole % 60),
        _ => format!("{} h {:02} min", whole / 3600, whole % 3600 / 60),
    }
}

/// "2026-11-24 02:11 UTC" (days to date: H. Hinnant's civil_from_days).
pub fn utc(time: SystemTime) -> String {
    let seconds = time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let z = seconds / 86_400 + 719_468;
    let (era, day_of_era) = (z / 146_097, z % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let (day, month) =
        (day_of_year - (153 * shifted + 2) / 5 + 1, if shifted < 10 { shifted + 3 } else { shifted - 9 });
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    format!("{year:04}-{month:02}-{day:02} {:02}:{:02} UTC", seconds / 3600 % 24, seconds / 60 % 60)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn dates_and_durations() {
        assert_eq!(utc(UNIX_EPOCH), "1970-01-01 00:00 UTC");
        assert_eq!(utc(UNIX_EPOCH + Duration::from_secs(951_827_696)), "2000-02-29 12:34 UTC");
        assert_eq!(utc(UNIX_EPOCH + Duration::from_secs(1_795_486_275)), "2026-11-24 02:11 UTC");
        assert_eq!([4.25, 200.0, 3720.0].map(duration), ["4.2 s", "3 min 20 s", "1 h 02 min"]);
    }

    #[test]
    fn only_the_page_s_own_script_may_run() {
        let texts = ["", "f", "fo", "foo", "foob"].map(|text| base64(text.as_bytes()));
        assert_eq!(texts, ["", "Zg==", "Zm8=", "Zm9v", "Zm9vYg=="]);
        let page = render(&Report { title: "<script>alert(1)</script>".into(), ..Report::default() });
        let script = page.split("<script>").nth(1).and_then(|rest| rest.split("</script>").next()).unwrap();
        let hash = format!("script-src 'sha256-{}'", base64(&Sha256::digest(script)));
        assert!(
            script.contains("const panels") && page.contains(&hash) && page.matches("<script>").count() == 1,
            "{hash}"
        );
    }

    #[test]
    fn a_value_is_never_taken_for_a_name() {
        assert_eq!(fill("a {{x}} {{y}} {{z", &[("x", "{{y}}".into()), ("y", "2".into())]), "a {{y}} 2 {{z");
        assert_eq!(escape("<a href=\"x\">'&'\u{0}"), "&lt;a href=&quot;x&quot;&gt;&#39;&amp;&#39;\u{fffd}");
    }
}

impl ReportTable {
    /// Lays the table out in columns. A name with a line feed in it keeps its row.
    pub fn to_text(&self) -> String {
        let cells = |row: &Vec<String>| row.iter().map(|cell| visible(cell)).collect();
        let all: Vec<Vec<String>> = std::iter::once(&self.head).chain(&self.rows).map(cells).collect();
        let width = |c: usize| all.iter().map(|r| r[c].chars().count()).max().unwrap_or(0);
        let widths: Vec<usize> = (0..self.head.len()).map(width).collect();
        let line = |row: &Vec<String>| {
            row.iter().zip(&widths).map(|(cell, w)| format!("{cell:>w$}", w = *w)).collect::<Vec<_>>().join("  ")
        };
        format!("{}\n{}\n{}\n", self.caption, all.iter().map(line).collect::<Vec<_>>().join("\n"), self.note)
    }
}

#[cfg(test)]
mod table_tests {
    use super::ReportTable;

    #[test]
    fn names_keep_their_row() {
        let rows = vec![vec!["a\nb\u{1b}[2J".into(), "1".into()], vec!["c".into(), "2".into()]];
        let table = ReportTable { head: vec!["judge".into(), "n".into()], rows, ..ReportTable::default() };
        assert_eq!(table.to_text(), "\n        judge  n\na\\nb\\u{1b}[2J  1\n            c  2\n\n");
    }
}
