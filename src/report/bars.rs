//! Bars with whiskers as SVG: shares of groups, side by side.

use super::escape;
use std::fmt::Write;

/// A chart of shares between 0 and 1.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct BarFigure {
    /// Title above the chart.
    pub title: String,
    /// Explanation of the chart.
    pub help: String,
    /// Series, one colour each.
    pub series: Vec<String>,
    /// Groups from left to right.
    pub groups: Vec<BarGroup>,
}

/// Bars side by side.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct BarGroup {
    /// Below them.
    pub label: String,
    /// Bars, one per series: value, lower and upper end (NaN: no whisker). `None` leaves a gap.
    pub bars: Vec<Option<[f64; 3]>>,
}

const SIZE: (f64, f64) = (560.0, 280.0);
/// Left, right, top, and bottom without labels.
const MARGIN: (f64, f64, f64, f64) = (56.0, 14.0, 24.0, 14.0);
/// Colours of the page's style.
const COLOURS: usize = 8;
/// A character of the page's 12-pixel labels, about.
const CHARACTER: f64 = 6.6;
/// A line of labels.
const LINE: f64 = 16.0;
/// Lines per label, at most.
const MAX_LINES: usize = 3;

impl BarFigure {
    /// The card with its drawing.
    pub(super) fn figure(&self) -> String {
        let right = SIZE.0 - MARGIN.1;
        let wide = (right - MARGIN.0) / self.groups.len().max(1) as f64;
        let labels: Vec<Vec<String>> =
            self.groups.iter().map(|group| lines(&group.label, (wide / CHARACTER) as usize)).collect();
        let bottom = SIZE.1 - MARGIN.3 - LINE * labels.iter().map(Vec::len).max().unwrap_or(0) as f64;
        let (highest, ticks) = self.axis();
        let py = |y: f64| MARGIN.2 + (1.0 - y.clamp(0.0, highest) / highest) * (bottom - MARGIN.2);
        let mut svg = String::new();
        for t in (0..=ticks).map(|i| highest * i as f64 / ticks as f64) {
            let (y, left) = (py(t), MARGIN.0);
            let _ = write!(
                svg,
                "<path class=\"grid\" d=\"M{left} {y:.1}H{right}\"/><text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{:.0} %</text>",
                left - 8.0,
                y + 4.0,
                100.0 * t
            );
        }
        let bar = (0.76 * wide / self.series.len().max(1) as f64).min(64.0);
        for (g, (group, label)) in self.groups.iter().zip(&labels).enumerate() {
            let middle = MARGIN.0 + (g as f64 + 0.5) * wide;
            for (line, text) in label.iter().enumerate() {
                let _ = write!(
                    svg,
                    "<text x=\"{middle:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>",
                    bottom + 3.0 + LINE * (line + 1) as f64,
                    escape(text)
                );
            }
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

    /// Its end, a quarter, a half or all, with some air above the highest whisker; and in how many parts it is marked.
    fn axis(&self) -> (f64, usize) {
        let ends =
            self.groups.iter().flat_map(|group| group.bars.iter().flatten()).map(|[value, _, high]| value.max(*high));
        let most = 1.05 * ends.fold(0.0, f64::max);
        [(0.25, 5), (0.5, 5)].into_iter().find(|&(end, _)| most <= end).unwrap_or((1.0, 4))
    }

    /// "both chosen, gpt: 61.2 % (55.0 to 67.1)".
    fn told(&self, group: &BarGroup, series: usize) -> String {
        let Some(Some([value, low, high])) = group.bars.get(series) else { return String::new() };
        let name = self.series.get(series).filter(|_| self.series.len() > 1);
        let name = name.map_or(String::new(), |name| format!(", {name}"));
        let range = if low <= high { format!(" ({:.1} to {:.1})", 100.0 * low, 100.0 * high) } else { String::new() };
        format!("{}{name}: {:.1} %{range}", group.label, 100.0 * value)
    }
}

/// A label's words on at most [`MAX_LINES`] lines of `room` characters; `…` stands for what has no room.
fn lines(label: &str, room: usize) -> Vec<String> {
    let cut = |text: &str| match text.chars().count() > room.max(2) {
        true => text.chars().take(room.max(2) - 1).chain(['…']).collect(),
        false => text.to_string(),
    };
    let mut lines: Vec<String> = Vec::new();
    for word in label.split_whitespace() {
        let is_last = lines.len() == MAX_LINES;
        match lines.last_mut() {
            Some(line) if is_last || line.chars().count() + 1 + word.chars().count() <= room => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(word.to_string()),
        }
    }
    lines.iter().map(|line| cut(line)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_wrapped_and_cut() {
        assert_eq!(lines("DPO conditional", 40), ["DPO conditional"]);
        assert_eq!(lines("DPO conditional", 11), ["DPO", "conditional"]);
        assert_eq!(lines("DPO conditional", 8), ["DPO", "conditi…"]);
        assert_eq!(lines("a b c d e f", 1), ["a", "b", "c…"]);
        assert_eq!(lines("", 5), [""; 0]);
    }

    #[test]
    fn the_axis_ends_above_the_highest_whisker() {
        let highest = |bar: [f64; 3]| {
            let groups = vec![BarGroup { label: "a".into(), bars: vec![None, Some([0.01, 0.0, 0.02]), Some(bar)] }];
            BarFigure { groups, ..BarFigure::default() }.axis().0
        };
        assert_eq!(highest([0.2, 0.1, 0.23]), 0.25);
        assert_eq!(highest([0.2, 0.1, 0.245]), 0.5);
        assert_eq!(highest([0.5, f64::NAN, f64::NAN]), 1.0);
        assert_eq!(highest([1.0, 1.0, 1.0]), 1.0);
    }
}
