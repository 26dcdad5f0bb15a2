//! Curves over steps as SVG.

use crate::train::metrics::{self, MetricsLine};
use serde_json::{Value, json};
use std::f64::consts::LN_2;
use std::fmt::Write;

/// The drawing of a panel in user units: half a page wide, a third, or all of it.
const HALF: (f64, f64) = (560.0, 264.0);
const THIRD: (f64, f64) = (360.0, 216.0);
const WIDE: (f64, f64) = (1140.0, 300.0);
/// Left, right, top, bottom.
const MARGIN: (f64, f64, f64, f64) = (56.0, 14.0, 12.0, 30.0);
/// Points of a drawn curve, at most about that many.
const POINTS: usize = 480;

/// A curve to draw: metric, label.
type ChartCurve = (&'static str, &'static str);

struct ChartLayout {
    title: &'static str,
    help: &'static str,
    curves: &'static [ChartCurve],
    /// A level worth seeing.
    level: Option<(f64, &'static str)>,
    /// Fixed limits, and percent on the axis.
    share: bool,
    /// Metrics of the training process rather than of the model: drawn smaller.
    aside: bool,
}

const PLANS: [ChartLayout; 9] = [
    ChartLayout {
        title: "Loss",
        help: "Mean over pairs, before the update.",
        curves: &[("loss", "loss")],
        level: None,
        share: false,
        aside: false,
    },
    ChartLayout {
        title: "Reward accuracy",
        help: "Share of pairs whose preferred side has the higher reward; ties count half.",
        curves: &[("rewards/accuracies", "accuracy")],
        level: Some((0.5, "chance")),
        share: true,
        aside: false,
    },
    ChartLayout {
        title: "Reward margin",
        help: "β times the difference of log-ratios, preferred minus rejected.",
        curves: &[("rewards/margins", "margin")],
        level: Some((0.0, "")),
        share: false,
        aside: false,
    },
    ChartLayout {
        title: "Rewards",
        help: "β times the log-ratio to the reference, of either side.",
        curves: &[("rewards/chosen", "chosen"), ("rewards/rejected", "rejected")],
        level: Some((0.0, "reference")),
        share: false,
        aside: false,
    },
    ChartLayout {
        title: "Log-probability of the two sides",
        help: "The objective's score. Both may fall while the margin grows.",
        curves: &[("logps/chosen", "chosen"), ("logps/rejected", "rejected")],
        level: None,
        share: false,
        aside: false,
    },
    ChartLayout {
        title: "Instruction and response",
        help: "The preferred side's log-probability, split where the response begins.",
        curves: &[("logps/instruction", "instruction"), ("logps/response", "response")],
        level: None,
        share: false,
        aside: false,
    },
    ChartLayout {
        title: "Gradient norm",
        help: "Before clipping.",
        curves: &[("grad_norm", "norm")],
        level: None,
        share: false,
        aside: true,
    },
    ChartLayout {
        title: "Learning rate",
        help: "",
        curves: &[("learning_rate", "rate")],
        level: None,
        share: false,
        aside: true,
    },
    ChartLayout {
        title: "Tokens a second",
        help: "",
        curves: &[("tokens/s", "tokens/s")],
        level: None,
        share: false,
        aside: true,
    },
];

/// A curve with its data.
struct ChartSeries {
    label: String,
    /// 0 or 1: which colour.
    colour: usize,
    /// Validation: few points, drawn as dots.
    eval: bool,
    /// (step, value).
    raw: Vec<(f64, f64)>,
    smooth: Vec<(f64, f64)>,
}

/// A chart.
pub(super) struct ChartPanel {
    plan: &'static ChartLayout,
    series: Vec<ChartSeries>,
    level: Option<(f64, &'static str)>,
    size: (f64, f64),
    x: (f64, f64),
    y: (f64, f64),
}

/// A value of a line; tokens/s is the one that is computed.
fn value(line: &MetricsLine, name: &str) -> Option<f64> {
    let plain = |name: &str| line.get(name).and_then(Value::as_f64);
    match name {
        "tokens/s" => Some(plain("tokens")? / plain("seconds").filter(|s| *s > 0.0)?),
        _ => plain(name),
    }
}

fn points(lines: &[MetricsLine], name: &str) -> Vec<(f64, f64)> {
    let point = |l: &MetricsLine| Some((metrics::step(l)? as f64, value(l, name)?));
    lines.iter().filter_map(point).filter(|p| p.1.is_finite()).collect()
}

/// Mean with weights that fall off by distance to either side, over about a fortieth of the run: no lag, no bias at the ends.
fn smooth(raw: &[(f64, f64)]) -> Vec<(f64, f64)> {
    let keep = 1.0 - 1.0 / (raw.len() as f64 / 40.0).max(1.0);
    let pass = |points: &mut dyn Iterator<Item = &(f64, f64)>| -> Vec<(f64, f64)> {
        let next = |(sum, weight): &mut (f64, f64), p: &(f64, f64)| {
            (*sum, *weight) = (*sum * keep + p.1, *weight * keep + 1.0);
            Some((*sum, *weight))
        };
        points.scan((0.0, 0.0), next).collect()
    };
    let (before, mut after) = (pass(&mut raw.iter()), pass(&mut raw.iter().rev()));
    after.reverse();
    let both = raw.iter().zip(before).zip(after);
    both.map(|((&(x, y), a), b)| (x, (a.0 + b.0 - y) / (a.1 + b.1 - 1.0))).collect()
}

/// The smoothed last value of a metric.
pub(super) fn smoothed_last(lines: &[MetricsLine], name: &str) -> Option<f64> {
    smooth(&points(lines, name)).last().map(|p| p.1)
}

/// Every chart that has something to show.
pub(super) fn panels(lines: &[MetricsLine]) -> Vec<ChartPanel> {
    let preferences = lines.iter().any(|l| l.contains_key("rewards/margins"));
    let mut panels: Vec<ChartPanel> = PLANS.iter().filter_map(|plan| panel(plan, lines, preferences)).collect();
    // No half row: the first of an odd number (SFT has only its loss) takes a whole one.
    if panels.iter().filter(|p| !p.plan.aside).count() % 2 == 1 {
        panels[0].size = WIDE;
    }
    panels
}

fn panel(plan: &'static ChartLayout, lines: &[MetricsLine], preferences: bool) -> Option<ChartPanel> {
    let mut series = Vec::new();
    for (colour, (name, label)) in plan.curves.iter().enumerate() {
        let raw = points(lines, name);
        if !raw.is_empty() {
            // A schedule is exact: nothing to smooth.
            let smooth = if *name == "learning_rate" { raw.clone() } else { smooth(&raw) };
            series.push(ChartSeries { label: (*label).into(), colour, eval: false, raw, smooth });
        }
    }
    for (colour, (name, label)) in plan.curves.iter().enumerate() {
        let raw = points(lines, &format!("eval_{name}"));
        if !raw.is_empty() {
            series.push(ChartSeries {
                label: format!("{label}, validation"),
                colour,
                eval: true,
                smooth: raw.clone(),
                raw,
            });
        }
    }
    let steps = || series.iter().flat_map(|s| &s.raw).map(|p| p.0);
    let x = (steps().fold(f64::MAX, f64::min), steps().fold(f64::MIN, f64::max));
    if series.is_empty() {
        return None;
    }
    let x = if x.0 < x.1 { x } else { (x.0 - 0.5, x.1 + 0.5) };
    // Where -log σ begins, at the reference; other losses begin elsewhere.
    let begins_at_ln2 = plan.title == "Loss" && preferences && (series[0].raw[0].1 / LN_2 - 1.0).abs() < 0.05;
    let level = if begins_at_ln2 { Some((LN_2, "ln 2")) } else { plan.level };
    let y = if plan.share { (0.0, 1.0) } else { limits(&series, level.map(|l| l.0)) };
    Some(ChartPanel { plan, series, level, size: if plan.aside { THIRD } else { HALF }, x, y })
}

/// The smoothed curves wholly, the raw ones but for their wildest hundredth.
fn limits(series: &[ChartSeries], level: Option<f64>) -> (f64, f64) {
    let mut low = level.unwrap_or(f64::MAX);
    let mut high = level.unwrap_or(f64::MIN);
    for s in series {
        let mut raw: Vec<f64> = s.raw.iter().map(|p| p.1).collect();
        raw.sort_by(f64::total_cmp);
        let cut = raw.len() / 100;
        for v in s.smooth.iter().map(|p| p.1).chain([raw[cut], raw[raw.len() - 1 - cut]]) {
            (low, high) = (low.min(v), high.max(v));
        }
    }
    let room = if high > low { 0.06 * (high - low) } else { 0.5 * high.abs().max(1e-6) };
    // A quantity that is never negative keeps its zero line.
    (if low >= 0.0 { (low - room).max(0.0) } else { low - room }, high + room)
}

/// At most about `n` round values inside the limits.
fn ticks((low, high): (f64, f64), n: f64, whole: bool) -> Vec<f64> {
    let rough = (high - low) / n;
    let power = 10f64.powf(rough.log10().floor());
    let unit = [1.0, 2.0, 5.0, 10.0].into_iter().map(|m| m * power).find(|u| *u >= rough).unwrap_or(rough);
    let unit = if whole { unit.max(1.0) } else { unit };
    if !(unit > 0.0 && unit.is_finite()) {
        return vec![];
    }
    let first = (low / unit).ceil();
    (0..20).map(|i| (first + f64::from(i)) * unit).take_while(|t| *t <= high + 1e-9 * unit).collect()
}

/// Each bucket's lowest and highest point in their order: spikes survive.
fn thin(all: &[(f64, f64)]) -> Vec<(f64, f64)> {
    if all.len() <= POINTS {
        return all.to_vec();
    }
    let mut out = Vec::new();
    for bucket in all.chunks(all.len().div_ceil(POINTS / 2)) {
        let by = |a: &&(f64, f64), b: &&(f64, f64)| a.1.total_cmp(&b.1);
        if let (Some(low), Some(high)) = (bucket.iter().min_by(by), bucket.iter().max_by(by)) {
            let (a, b) = if low.0 <= high.0 { (low, high) } else { (high, low) };
            out.push(*a);
            if a != b {
                out.push(*b);
            }
        }
    }
    out
}

/// Evenly chosen points, the last among them.
fn sampled(all: &[(f64, f64)]) -> Vec<(f64, f64)> {
    let stride = all.len().div_ceil(POINTS).max(1);
    let mut out: Vec<_> = all.iter().step_by(stride).copied().collect();
    if out.last() != all.last() {
        out.extend(all.last());
    }
    out
}

impl ChartPanel {
    fn px(&self, x: f64) -> f64 {
        MARGIN.0 + (x - self.x.0) / (self.x.1 - self.x.0) * (self.size.0 - MARGIN.0 - MARGIN.1)
    }

    fn py(&self, y: f64) -> f64 {
        MARGIN.2 + (self.y.1 - y) / (self.y.1 - self.y.0) * (self.size.1 - MARGIN.2 - MARGIN.3)
    }

    fn path(&self, points: &[(f64, f64)]) -> String {
        let mut d = String::new();
        for (i, (x, y)) in points.iter().enumerate() {
            let _ = write!(d, "{}{:.1} {:.1}", if i == 0 { 'M' } else { 'L' }, self.px(*x), self.py(*y));
        }
        d
    }

    /// The card with its drawing.
    pub(super) fn figure(&self, index: usize) -> String {
        let (width, height) = self.size;
        let (right, bottom) = (width - MARGIN.1, height - MARGIN.3);
        let mut svg = String::new();
        let labels = if self.plan.share { vec![0.0, 0.25, 0.5, 0.75, 1.0] } else { ticks(self.y, 4.0, false) };
        for t in labels {
            let y = self.py(t);
            let text = if self.plan.share { format!("{:.0} %", 100.0 * t) } else { short(t) };
            let _ = write!(
                svg,
                "<path class=\"grid\" d=\"M{} {y:.1}H{right}\"/><text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{text}</text>",
                MARGIN.0,
                MARGIN.0 - 8.0,
                y + 4.0
            );
        }
        for t in ticks(self.x, (width / 70.0).min(9.0), true) {
            let x = self.px(t);
            let anchor = if x > right - 12.0 { "end" } else { "middle" };
            let _ = write!(
                svg,
                "<text x=\"{x:.1}\" y=\"{:.1}\" text-anchor=\"{anchor}\">{}</text>",
                bottom + 19.0,
                thousands(t)
            );
        }
        if let Some((level, name)) = self.level {
            let y = self.py(level);
            let _ = write!(svg, "<path class=\"level\" d=\"M{} {y:.1}H{right}\"/>", MARGIN.0);
            let _ = write!(
                svg,
                "<text class=\"level\" x=\"{right}\" y=\"{:.1}\" text-anchor=\"end\">{name}</text>",
                y - 5.0
            );
        }
        let _ = write!(
            svg,
            "<clipPath id=\"clip{index}\"><rect x=\"{}\" y=\"{}\" width=\"{}\" height=\"{}\"/></clipPath><g clip-path=\"url(#clip{index})\">",
            MARGIN.0 - 6.0,
            MARGIN.2 - 6.0,
            right - MARGIN.0 + 12.0,
            bottom - MARGIN.2 + 9.0
        );
        for s in self.series.iter().filter(|s| !s.eval) {
            let c = s.colour;
            let _ = write!(svg, "<path class=\"raw c{c}\" d=\"{}\"/>", self.path(&thin(&s.raw)));
        }
        for s in &self.series {
            let (c, kind) = (s.colour, if s.eval { "eval" } else { "smooth" });
            let _ = write!(svg, "<path class=\"{kind} c{c}\" d=\"{}\"/>", self.path(&sampled(&s.smooth)));
            if s.raw.len() == 1 || s.eval {
                for (x, y) in sampled(&s.raw) {
                    let _ = write!(
                        svg,
                        "<circle class=\"dot c{c}\" cx=\"{:.1}\" cy=\"{:.1}\" r=\"3.5\"/>",
                        self.px(x),
                        self.py(y)
                    );
                }
            }
        }
        svg += "</g><g class=\"cursor\"></g>";
        let plan = self.plan;
        let legend = self.legend();
        let summary = self.summary();
        format!(
            "<figure{}><figcaption><h3>{}</h3><p>{}</p>{legend}</figcaption><svg viewBox=\"0 0 {width} {height}\" role=\"img\" tabindex=\"0\" \
             data-panel=\"{index}\" aria-label=\"{}. {summary}\">{svg}</svg></figure>",
            if self.size == WIDE { " class=\"wide\"" } else { "" },
            plan.title,
            plan.help,
            plan.title
        )
    }

    /// Returns the legend's HTML; empty where all strokes are of one kind.
    fn legend(&self) -> String {
        let trained: Vec<&ChartSeries> = self.series.iter().filter(|s| !s.eval).collect();
        let mut entries: Vec<String> = match trained.as_slice() {
            [_] => vec!["<li class=\"c0\">training</li>".into()],
            many => many.iter().map(|s| format!("<li class=\"c{}\">{}</li>", s.colour, s.label)).collect(),
        };
        if trained.len() < self.series.len() {
            let colour = if trained.len() == 1 { "c0" } else { "both" };
            entries.push(format!("<li class=\"eval {colour}\">validation</li>"));
        }
        if entries.len() > 1 { format!("<ul>{}</ul>", entries.concat()) } else { String::new() }
    }

    /// Whether it is of the last row.
    pub(super) fn aside(&self) -> bool {
        self.plan.aside
    }

    /// Describes the curves in words, for readers who do not see them.
    fn summary(&self) -> String {
        let one = |s: &ChartSeries| match (s.smooth.first(), s.smooth.last()) {
            (Some(a), Some(b)) => {
                format!("{}: from {} at step {} to {} at step {}.", s.label, short(a.1), a.0, short(b.1), b.0)
            }
            _ => String::new(),
        };
        self.series.iter().map(one).collect::<Vec<_>>().join(" ")
    }

    /// Returns the data of the pointer's read-out: limits, and the points of each curve.
    pub(super) fn json(&self) -> Value {
        let rounded = |v: f64| json!(format!("{v:.6e}").parse::<f64>().unwrap_or(v));
        let curve = |s: &ChartSeries| {
            let at =
                |p: &[(f64, f64)]| -> Vec<Value> { sampled(p).iter().map(|p| json!([p.0, rounded(p.1)])).collect() };
            json!({"label": s.label, "colour": s.colour, "eval": s.eval, "raw": at(&s.raw), "smooth": at(&s.smooth)})
        };
        json!({
            "x": [self.x.0, self.x.1], "y": [self.y.0, self.y.1], "share": self.plan.share,
            "size": [self.size.0, self.size.1], "margin": [MARGIN.0, MARGIN.1, MARGIN.2, MARGIN.3],
            "series": self.series.iter().map(curve).collect::<Vec<_>>()
        })
    }
}

/// "12,345".
pub(super) fn thousands(v: f64) -> String {
    let digits = format!("{:.0}", v.abs());
    let mut out = String::new();
    for (i, c) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(c);
    }
    if v <= -0.5 { format!("−{out}") } else { out }
}

/// "1.24 M".
pub(super) fn amount(v: f64) -> String {
    match v {
        v if v >= 1e9 => format!("{:.2} G", v / 1e9),
        v if v >= 1e6 => format!("{:.2} M", v / 1e6),
        v if v >= 1e5 => format!("{:.0} k", v / 1e3),
        v => thousands(v),
    }
}

/// Four significant digits at most, no zeros at the end.
pub(super) fn short(v: f64) -> String {
    if v == 0.0 {
        return "0".into();
    }
    let trim = |s: String| if s.contains('.') { s.trim_end_matches('0').trim_end_matches('.').to_string() } else { s };
    let text = match v.abs() {
        a if a >= 1000.0 => return thousands(v),
        a if a >= 100.0 => trim(format!("{v:.1}")),
        a if a >= 10.0 => trim(format!("{v:.2}")),
        a if a >= 0.01 => trim(format!("{v:.3}")),
        _ => {
            let text = format!("{v:.2e}");
            let (mantissa, power) = text.split_once('e').unwrap_or((&text, "0"));
            format!("{}e{power}", trim(mantissa.into()))
        }
    };
    text.replace('-', "−")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_short() {
        let all = [0.0, 0.7312, -2.5, 12_345.6, -1500.0, 5e-5, 123.456, 0.6].map(short);
        assert_eq!(all, ["0", "0.731", "−2.5", "12,346", "−1,500", "5e−5", "123.5", "0.6"]);
        assert_eq!([999.0, 250_000.0, 6.5e6].map(amount), ["999", "250 k", "6.50 M"]);
    }

    #[test]
    fn ticks_are_round_and_inside() {
        assert_eq!(ticks((0.0, 1.0), 4.0, false), [0.0, 0.5, 1.0]);
        assert_eq!(ticks((1.0, 3.0), 5.0, true), [1.0, 2.0, 3.0]);
        assert!(ticks((0.0, 0.0), 4.0, false).is_empty());
    }

    #[test]
    fn thinning_keeps_the_spike() {
        let all: Vec<(f64, f64)> = (0..5000).map(|i| (f64::from(i), f64::from(i == 2500))).collect();
        let thinned = thin(&all);
        assert!(thinned.len() <= POINTS + 2 && thinned.contains(&(2500.0, 1.0)));
    }
}
