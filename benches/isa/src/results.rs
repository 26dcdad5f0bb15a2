//! Figures of pipelines: a table of Markdown that is committed, read again, and compared.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// What a compiler made of a pipeline. `None` is a number that the driver does not tell, or that its listing does not show.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Figures {
    /// Registers of a lane: VGPRs (AMD), live registers of 128 (Intel), registers (NVIDIA).
    pub registers: Option<f64>,
    /// Registers that are spilled: stores of them where the driver counts instructions.
    pub spills: Option<f64>,
    /// Scratch memory of a lane in bytes.
    pub scratch: Option<f64>,
    /// Workgroup memory of a workgroup in bytes.
    pub workgroup: Option<f64>,
    /// Subgroups a SIMD (AMD) or warps a multiprocessor (NVIDIA) that fit; the SIMD width (Intel).
    pub waves: Option<f64>,
    /// Instructions in all.
    pub instructions: Option<f64>,
    /// Multiply-adds of a lane in the hot loop.
    pub fma: Option<f64>,
    /// Matrix instructions in the hot loop.
    pub matrix: Option<f64>,
    /// Other vector instructions in the hot loop.
    pub vector: Option<f64>,
    /// Loads from memory in the hot loop.
    pub memory_loads: Option<f64>,
    /// Loads from workgroup memory in the hot loop.
    pub shared_loads: Option<f64>,
    /// Bytes that a lane loads from workgroup memory, per multiply-add.
    pub bytes_per_fma: Option<f64>,
    /// Waits for memory in the hot loop with nothing behind them.
    pub memory_waits: Option<f64>,
    /// Waits for workgroup memory in the hot loop with nothing behind them.
    pub shared_waits: Option<f64>,
}

/// How a figure of one run compares with the same figure of another.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Rule {
    /// Worse where it is larger at all.
    NoMore,
    /// Worse where it is smaller at all.
    NoFewer,
    /// Worse where it is larger by more than two percent and by more than two.
    AboutNoMore,
    /// Not compared: it describes the loop.
    Ignored,
}

/// Column of the table: its head, its rule, and the field.
type Column = (&'static str, Rule, fn(&mut Figures) -> &mut Option<f64>);

const COLUMNS: [Column; 14] = [
    ("registers", Rule::AboutNoMore, |f| &mut f.registers),
    ("spills", Rule::NoMore, |f| &mut f.spills),
    ("scratch", Rule::NoMore, |f| &mut f.scratch),
    ("workgroup memory", Rule::AboutNoMore, |f| &mut f.workgroup),
    ("waves", Rule::NoFewer, |f| &mut f.waves),
    ("instructions", Rule::AboutNoMore, |f| &mut f.instructions),
    ("FMA", Rule::Ignored, |f| &mut f.fma),
    ("matrix", Rule::Ignored, |f| &mut f.matrix),
    ("other VALU", Rule::AboutNoMore, |f| &mut f.vector),
    ("memory loads", Rule::AboutNoMore, |f| &mut f.memory_loads),
    ("workgroup loads", Rule::Ignored, |f| &mut f.shared_loads),
    ("B/FMA", Rule::AboutNoMore, |f| &mut f.bytes_per_fma),
    ("memory waits", Rule::NoMore, |f| &mut f.memory_waits),
    ("workgroup waits", Rule::NoMore, |f| &mut f.shared_waits),
];

/// Results of a GPU.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct GpuResults {
    /// Name that Mesa's shim takes, such as `navi31`.
    pub gpu: String,
    /// Name of the device and version of the driver.
    pub driver: String,
    /// Figures by pipeline, in the order of the registry.
    pub pipelines: Vec<(String, Figures)>,
}

fn written(value: Option<f64>) -> String {
    match value {
        None => "–".into(),
        Some(v) if v.fract() == 0.0 => format!("{v:.0}"),
        Some(v) => format!("{v:.2}"),
    }
}

impl GpuResults {
    /// Writes the GPU's section: a heading, the driver, and a row per pipeline.
    pub fn section(&self) -> String {
        let heads: Vec<&str> = COLUMNS.iter().map(|c| c.0).collect();
        let mut text = format!("## {}\n\n{}\n\n| pipeline | {} |\n", self.gpu, self.driver, heads.join(" | "));
        text.push_str(&format!("|---|{}\n", "---|".repeat(COLUMNS.len())));
        for (pipeline, figures) in &self.pipelines {
            let mut figures = figures.clone();
            let cells: Vec<String> = COLUMNS.iter().map(|c| written(*c.2(&mut figures))).collect();
            text.push_str(&format!("| {pipeline} | {} |\n", cells.join(" | ")));
        }
        text
    }

    /// Reads every section of a table that [`Self::section`] wrote.
    pub fn read(text: &str) -> Result<Vec<Self>, String> {
        let mut all: Vec<Self> = Vec::new();
        for (number, line) in text.lines().enumerate() {
            if let Some(gpu) = line.strip_prefix("## ") {
                all.push(Self { gpu: gpu.into(), ..Self::default() });
                continue;
            }
            let Some(results) = all.last_mut() else { continue };
            let Some(row) = line.strip_prefix("| ").and_then(|l| l.strip_suffix(" |")) else {
                if results.driver.is_empty() {
                    results.driver = line.into();
                }
                continue;
            };
            let cells: Vec<&str> = row.split(" | ").collect();
            if cells[0] == "pipeline" {
                continue;
            }
            if cells.len() != 1 + COLUMNS.len() {
                return Err(format!("line {}: {} cells, not {}", number + 1, cells.len(), 1 + COLUMNS.len()));
            }
            let mut figures = Figures::default();
            for (column, cell) in COLUMNS.iter().zip(&cells[1..]) {
                let value = if *cell == "–" {
                    None
                } else {
                    Some(cell.parse().map_err(|_| format!("line {}: {cell}", number + 1))?)
                };
                *column.2(&mut figures) = value;
            }
            results.pipelines.push((cells[0].into(), figures));
        }
        Ok(all)
    }
}

/// Returns a line per figure that is worse in `now` than in `before`.
pub fn worse(gpu: &str, pipeline: &str, before: &Figures, now: &Figures) -> Vec<String> {
    let (mut before, mut now) = (before.clone(), now.clone());
    // A loop that a compiler unrolls otherwise holds more or fewer multiply-adds: its other instructions are compared per multiply-add.
    let work = |f: &Figures| f.fma.unwrap_or(0.0) + 64.0 * f.matrix.unwrap_or(0.0);
    let scale = if work(&before) > 0.0 && work(&now) > 0.0 { work(&before) / work(&now) } else { 1.0 };
    let mut all = Vec::new();
    for (head, rule, field) in COLUMNS {
        let per_work = ["other VALU", "memory loads", "memory waits", "workgroup waits"].contains(&head);
        let (Some(was), Some(is)) = (*field(&mut before), *field(&mut now)) else { continue };
        // The table has two decimals.
        let is = (100.0 * is * if per_work { scale } else { 1.0 }).round() / 100.0;
        let slack = if head == "B/FMA" { 0.0 } else { 2.0 };
        let is_worse = match rule {
            Rule::NoMore => is > was,
            Rule::NoFewer => is < was,
            Rule::AboutNoMore => is > 1.02 * was && is > was + slack,
            Rule::Ignored => false,
        };
        if is_worse {
            all.push(format!("{gpu}, {pipeline}: {head} {} was {}", written(Some(is)), written(Some(was))));
        }
    }
    all
}

/// Compares runs with committed results. Returns the figures that are worse, and notes on what cannot be compared.
pub fn compare(committed: &[GpuResults], now: &[GpuResults]) -> Result<(Vec<String>, Vec<String>), String> {
    let (mut bad, mut notes) = (Vec::new(), Vec::new());
    for results in now {
        let gpu = &results.gpu;
        let Some(earlier) = committed.iter().find(|c| c.gpu == *gpu) else {
            notes.push(format!("{gpu}: not in the committed table"));
            continue;
        };
        if earlier.driver != results.driver {
            return Err(format!(
                "{gpu}: committed with {}, run with {}: write the table again",
                earlier.driver, results.driver
            ));
        }
        let known: BTreeMap<&str, &Figures> = earlier.pipelines.iter().map(|(name, f)| (name.as_str(), f)).collect();
        for (pipeline, figures) in &results.pipelines {
            match known.get(pipeline.as_str()) {
                Some(before) => bad.extend(worse(gpu, pipeline, before, figures)),
                None => notes.push(format!("{gpu}, {pipeline}: new")),
            }
        }
        let gone = known.keys().filter(|name| !results.pipelines.iter().any(|(now, _)| now == **name));
        notes.extend(gone.map(|name| format!("{gpu}, {name}: gone")));
    }
    Ok((bad, notes))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn figures() -> Figures {
        Figures {
            registers: Some(96.0),
            spills: Some(0.0),
            waves: Some(16.0),
            instructions: Some(2293.0),
            fma: Some(1024.0),
            vector: Some(150.0),
            bytes_per_fma: Some(1.0 / 3.0),
            memory_waits: Some(8.0),
            ..Figures::default()
        }
    }

    #[test]
    fn a_table_is_read_as_it_was_written() {
        let all = GpuResults {
            gpu: "navi31".into(),
            driver: "AMD RX 7900, Mesa 26".into(),
            pipelines: vec![("tiles64 fwd f32".into(), figures()), ("add".into(), Figures::default())],
        };
        let read = GpuResults::read(&format!("# ISA\n\n{}\n{}", all.section(), all.section())).unwrap();
        assert_eq!(read.len(), 2);
        assert_eq!((read[0].gpu.as_str(), read[0].driver.as_str()), ("navi31", "AMD RX 7900, Mesa 26"));
        assert_eq!(read[0].pipelines[0].1.registers, Some(96.0));
        assert_eq!(read[0].pipelines[1].1, Figures::default());
        assert!(GpuResults::read("## a\n\nb\n\n| c | 1 |\n").is_err());
        // What was written is not worse than itself, though it was rounded.
        assert_eq!(compare(&read[..1], &[all.clone()]).unwrap(), (vec![], vec![]));
        let other = GpuResults { driver: "Mesa 27".into(), ..all };
        assert!(compare(&read, &[other]).is_err());
    }

    #[test]
    fn worse_figures_are_found_and_better_ones_are_not() {
        let base = figures();
        let with = |change: fn(&mut Figures)| {
            let mut f = figures();
            change(&mut f);
            worse("g", "p", &base, &f)
        };
        for change in [
            (|f| f.spills = Some(1.0)) as fn(&mut Figures),
            |f| f.waves = Some(12.0),
            |f| f.registers = Some(100.0),
            |f| f.instructions = Some(2400.0),
            |f| f.vector = Some(160.0),
            |f| f.memory_waits = Some(9.0),
            |f| f.bytes_per_fma = Some(0.5),
            // Half of the loop with the same waits.
            |f| (f.fma, f.vector) = (Some(512.0), Some(75.0)),
        ] {
            assert_eq!(with(change).len(), 1, "{:?}", with(change));
        }
        for change in [
            (|f| f.registers = Some(97.0)) as fn(&mut Figures),
            |f| f.instructions = Some(2300.0),
            |f| f.vector = Some(60.0),
            |f| f.memory_waits = Some(0.0),
            |f| f.waves = Some(20.0),
            |f| f.spills = None,
            // Twice the loop: twice the waits.
            |f| (f.fma, f.vector, f.memory_waits) = (Some(2048.0), Some(300.0), Some(16.0)),
        ] {
            assert_eq!(with(change), Vec::<String>::new());
        }
        assert_eq!(with(|f| f.spills = Some(3.0)), ["g, p: spills 3 was 0"]);
    }
}
