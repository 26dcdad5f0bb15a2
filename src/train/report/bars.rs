//! Bars with whiskers as SVG: shares of groups, side by side.

use super::escape;
use std::fmt::Write;

/// A chart of shares between 0 and 1.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Bars {
    /// What it shows.
    pub title: String,
    /// How to read it.
    pub help: String,
    /// One colour each.
    pub series: Vec<String>,
    /// From left to right.
    pub groups: Vec<Group>,
}

/// Bars side by side.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Group {
    /// Below them.
    pub label: String,
    /// One a series: value, lower and upper end (NaN: no whisker); `None` leaves a gap.
    pub bars: Vec<Option<[f64; 3]>>,
}

const SIZE: (f64, f64) = (560.0, 280.0);
/// Left, right, top, bottom.
const MARGIN: (f64, f64, f64, f64) = (56.0, 14.0, 24.0, 30.0);
/// Colours of the page's style.
const COLOURS: usize = 6;
/// Characters of a label that have room.
const LABEL: usize = 34;

impl Bars {
    /// The card with its drawing.
    pub(super) fn figure(&self) -> String {
        let (right, bottom) = (SIZE.0 - MARGIN.1, SIZE.1 - MARGIN.3);
        let py = |y: f64| MARGIN.2 + (1.0 - y.clamp(0.0, 1.0)) * (bottom - MARGIN.2);
        let mut svg = String::new();
        for t in [0.0, 0.25, 0.5, 0.75, 1.0] {
            let (y, left) = (py(t), MARGIN.0);
            let _ = write!(
                svg,
                "<path class=\"grid\" d=\"M{left} {y:.1}H{right}\"/><text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{:.0} %</text>",
                left - 8.0,
                y + 4.0,
                100.0 * t
            );
        }
        let wide = (right - MARGIN.0) / self.groups.len().max(1) as f64;
        let bar = (0.76 * wide / self.series.len().max(1) as f64).min(64.0);
        let room = (LABEL as f64 * wide / (right - MARGIN.0) * 2.2).max(6.0) as usize;
        for (g, group) in self.groups.iter().enumerate() {
            let middle = MARGIN.0 + (g as f64 + 0.5) * wide;
            let mut label: String = group.label.chars().take(room).collect();
            if label.len() < group.label.len() {
                label.push('…');
            }
            let _ = write!(
                svg,
                "<text x=\"{middle:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>",
                bottom + 19.0,
                escape(&label)
            );
            let left = middle - 0.5 * bar * group.bars.len() as f64;
            for (s, [value, low, high]) in group.bars.iter().enumerate().filter_map(|(s, b)| Some((s, (*b)?))) {
                let (x, y) = (left + s as f64 * bar, py(value));
                let _ = write!(
                    svg,
                    "<rect class=\"bar c{}\" x=\"{:.1}\" y=\"{y:.1}\" width=\"{:.1}\" height=\"{:.1}\"><title>{}</title></rect>",
                    s % COLOURS,
                    x + 1.0,
                    bar - 2.0,
                    bottom - y,
                    escape(&self.told(group, s))
                );
                let (x, mut top) = (x + 0.5 * bar, y);
                if low <= high {
                    top = py(high);
                    let _ = write!(
                        svg,
                        "<path class=\"whisker\" d=\"M{x:.1} {:.1}V{top:.1}M{:.1} {top:.1}h8M{:.1} {:.1}h8\"/>",
                        py(low),
                        x - 4.0,
                        x - 4.0,
                        py(low)
                    );
                }
                if bar >= 24.0 {
                    let _ = write!(
                        svg,
                        "<text class=\"value\" x=\"{x:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{:.0}</text>",
                        top - 5.0,
                        100.0 * value
                    );
                }
            }
        }
        let legend: String = match self.series.as_slice() {
            [] | [_] => String::new(),
            many => {
                let entry =
                    |(s, name): (usize, &String)| format!("<li class=\"bar c{}\">{}</li>", s % COLOURS, escape(name));
                format!("<ul>{}</ul>", many.iter().enumerate().map(entry).collect::<String>())
            }
        };
        let told: Vec<String> = (self.groups.iter())
            .flat_map(|g| (0..g.bars.len()).filter(|&s| g.bars[s].is_some()).map(|s| self.told(g, s)))
            .collect();
        format!(
            "<figure><figcaption><h3>{title}</h3><p>{}</p>{legend}</figcaption><svg class=\"bars\" viewBox=\"0 0 {} {}\" role=\"img\" \
             aria-label=\"{title}. {}\">{svg}</svg></figure>",
            escape(&self.help),
            SIZE.0,
            SIZE.1,
            escape(&told.join(". ")),
            title = escape(&self.title),
        )
    }

    /// "both chosen, gpt: 61.2 % (55.0 to 67.1)".
    fn told(&self, group: &Group, series: usize) -> String {
        let Some(Some([value, low, high])) = group.bars.get(series) else { return String::new() };
        let name = self.series.get(series).filter(|_| self.series.len() > 1);
        let name = name.map_or(String::new(), |name| format!(", {name}"));
        let range = if low <= high { format!(" ({:.1} to {:.1})", 100.0 * low, 100.0 * high) } else { String::new() };
        format!("{}{name}: {:.1} %{range}", group.label, 100.0 * value)
    }
}
