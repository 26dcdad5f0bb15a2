//! Figures of pipelines: a table of Markdown that is committed, read again, and compared.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Figures of a pipeline as a compiler made it. `None` is a number that the driver does not tell, or that its listing does not show.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Figures {
    /// Registers of a lane: VGPRs (AMD), live registers of 128 (Intel), registers (NVIDIA).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub registers: Option<f64>,
    /// Registers that are spilled: stores of them where the driver counts instructions.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub spills: Option<f64>,
    /// Scratch memory of a lane in bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scratch: Option<f64>,
    /// Subgroups per SIMD (AMD) or warps per multiprocessor (NVIDIA) that fit; the SIMD width (Intel).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub waves: Option<f64>,
    /// Instructions in all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub instructions: Option<f64>,
    /// Multiply-adds of a lane in the hot loop.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fma: Option<f64>,
    /// Matrix instructions in the hot loop.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub matrix: Option<f64>,
    /// Other vector instructions in the hot loop.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vector: Option<f64>,
    /// Loads from memory in the hot loop.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_loads: Option<f64>,
    /// Loads from workgroup memory in the hot loop.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub workgroup_loads: Option<f64>,
    /// Waits for memory in the hot loop that nearly all of a load's latency is seen by.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_waits: Option<f64>,
    /// Waits for workgroup memory in the hot loop that nearly all of a load's latency is seen by.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub workgroup_waits: Option<f64>,
}

/// Sums over all pipelines of a WGSL module.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct ModuleSums {
    /// Number of pipelines.
    pub pipelines: f64,
    /// Number of pipelines that spill.
    pub that_spill: f64,
    /// Spilled registers of all pipelines.
    pub spills: f64,
    /// Largest scratch memory of a lane in bytes.
    pub scratch: f64,
}

/// Results of a GPU.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct GpuResults {
    /// Name that Mesa's shim takes, such as `navi31`.
    pub gpu: String,
    /// Name of the device and version of the driver.
    pub driver: String,
    /// Figures of the pipelines that the table shows, in the order of the registry.
    pub shown: Vec<(String, Figures)>,
    /// Sums over all pipelines, by WGSL module.
    pub modules: BTreeMap<String, ModuleSums>,
    /// Number of pipelines that are compiled, where others are not yet; else 0.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub compiled: usize,
}

fn is_zero(n: &usize) -> bool {
    *n == 0
}

impl GpuResults {
    /// Adds a pipeline to its module's sums, and as a row of the table. A row of the same name is replaced.
    pub fn add(&mut self, module: &str, row: Option<String>, figures: Figures) {
        let sums = self.modules.entry(module.into()).or_default();
        let spills = figures.spills.unwrap_or(0.0);
        sums.pipelines += 1.0;
        sums.that_spill += f64::from(u8::from(spills > 0.0));
        sums.spills += spills;
        sums.scratch = sums.scratch.max(figures.scratch.unwrap_or(0.0));
        let Some(row) = row else { return };
        match self.shown.iter_mut().find(|(name, _)| *name == row) {
            Some((_, shown)) => *shown = figures,
            None => self.shown.push((row, figures)),
        }
    }

    /// Adds the sums of all modules.
    pub fn total(&self) -> ModuleSums {
        self.modules.values().fold(ModuleSums::default(), |all, m| ModuleSums {
            pipelines: all.pipelines + m.pipelines,
            that_spill: all.that_spill + m.that_spill,
            spills: all.spills + m.spills,
            scratch: all.scratch.max(m.scratch),
        })
    }
}

/// Comparison of a figure with the same figure of an earlier run.
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

/// Column of a table: its head, its rule, and the field.
struct Column<T: 'static> {
    head: &'static str,
    rule: Rule,
    /// Whether the figure counts instructions of the hot loop, which grows where a compiler unrolls it.
    per_work: bool,
    field: fn(&mut T) -> &mut Option<f64>,
}

const fn column(head: &'static str, rule: Rule, field: fn(&mut Figures) -> &mut Option<f64>) -> Column<Figures> {
    Column { head, rule, per_work: false, field }
}

const fn of_loop(head: &'static str, rule: Rule, field: fn(&mut Figures) -> &mut Option<f64>) -> Column<Figures> {
    Column { head, rule, per_work: true, field }
}

const COLUMNS: [Column<Figures>; 11] = [
    column("registers", Rule::AboutNoMore, |f| &mut f.registers),
    column("spills", Rule::NoMore, |f| &mut f.spills),
    column("waves", Rule::NoFewer, |f| &mut f.waves),
    column("instructions", Rule::AboutNoMore, |f| &mut f.instructions),
    column("FMA", Rule::Ignored, |f| &mut f.fma),
    column("matrix", Rule::Ignored, |f| &mut f.matrix),
    of_loop("other VALU", Rule::AboutNoMore, |f| &mut f.vector),
    of_loop("memory loads", Rule::AboutNoMore, |f| &mut f.memory_loads),
    column("workgroup loads", Rule::Ignored, |f| &mut f.workgroup_loads),
    of_loop("memory waits", Rule::NoMore, |f| &mut f.memory_waits),
    of_loop("workgroup waits", Rule::NoMore, |f| &mut f.workgroup_waits),
];

/// Head of the table of modules; a row's cells are its name and the four sums.
const MODULES_HEAD: &str = "| all pipelines of | number | that spill | spills in all | scratch, most |";
/// Row of the table of modules that adds up the modules that never spill.
const OTHERS: &str = "the other modules";

fn written(value: Option<f64>) -> String {
    value.map_or("–".into(), |v| format!("{v:.0}"))
}

/// Writes a cell: the figure, behind the earlier one and an arrow where they differ.
pub fn cell(before: Option<Option<f64>>, now: Option<f64>) -> String {
    let now = written(now);
    match before.map(written) {
        Some(before) if before != now => format!("{before} → {now}"),
        _ => now,
    }
}

/// Reads a cell's present figure.
fn read_cell(cell: &str) -> Result<Option<f64>, String> {
    let now = cell.rsplit(" → ").next().unwrap_or_default().trim();
    if now == "–" { Ok(None) } else { now.parse().map(Some).map_err(|_| format!("`{cell}` is not a figure")) }
}

/// Writes a GPU's section: a heading, the driver, a row per shown pipeline, and sums by module. `before` are results of earlier shaders.
pub fn section(now: &GpuResults, before: Option<&GpuResults>) -> String {
    let mut text = format!("## {}\n\n{}\n\n", now.gpu, now.driver);
    let is_told =
        |c: &Column<Figures>, f: &Figures| (c.field)(&mut f.clone()).is_some_and(|v| c.head != "matrix" || v > 0.0);
    let has_any = |c: &&Column<Figures>| now.shown.iter().any(|(_, f)| is_told(c, f));
    let columns: Vec<&Column<Figures>> = COLUMNS.iter().filter(has_any).collect();
    let heads: Vec<&str> = columns.iter().map(|c| c.head).collect();
    text.push_str(&format!("| pipeline | {} |\n|---|{}\n", heads.join(" | "), "---|".repeat(columns.len())));
    for (name, figures) in &now.shown {
        let earlier = before.and_then(|b| b.shown.iter().find(|(n, _)| n == name)).map(|(_, f)| f.clone());
        let cell = |c: &&Column<Figures>| {
            let before = earlier.clone().map(|mut f| *(c.field)(&mut f));
            cell(before, *(c.field)(&mut figures.clone()))
        };
        let mark = if before.is_some() && earlier.is_none() { " (new)" } else { "" };
        let cells: Vec<String> = columns.iter().map(cell).collect();
        text.push_str(&format!("| {name}{mark} | {} |\n", cells.join(" | ")));
    }
    text.push_str(&format!("\n{MODULES_HEAD}\n|---|---|---|---|---|\n"));
    let mut others = (ModuleSums::default(), ModuleSums::default());
    let mut write = |name: &str, before: Option<&ModuleSums>, now: &ModuleSums| {
        let row = [
            cell(before.map(|b| Some(b.pipelines)), Some(now.pipelines)),
            cell(before.map(|b| Some(b.that_spill)), Some(now.that_spill)),
            cell(before.map(|b| Some(b.spills)), Some(now.spills)),
            cell(before.map(|b| Some(b.scratch)), Some(now.scratch)),
        ];
        text.push_str(&format!("| {name} | {} |\n", row.join(" | ")));
    };
    for (name, sums) in &now.modules {
        let nothing = ModuleSums::default();
        let earlier = before.map(|b| b.modules.get(name).unwrap_or(&nothing));
        let is_clean = |m: &ModuleSums| m.spills == 0.0 && m.scratch == 0.0;
        if is_clean(sums) && earlier.is_none_or(is_clean) {
            others.0.pipelines += earlier.map_or(0.0, |m| m.pipelines);
            others.1.pipelines += sums.pipelines;
        } else {
            write(name, earlier, sums);
        }
    }
    write(OTHERS, before.map(|_| &others.0), &others.1);
    text
}

/// Reads the present figures of every section that [`section`] wrote.
pub fn read(text: &str) -> Result<Vec<GpuResults>, String> {
    let mut all: Vec<GpuResults> = Vec::new();
    let mut heads: Vec<String> = Vec::new();
    for (number, line) in text.lines().enumerate() {
        let at = |reason: String| format!("line {}: {reason}", number + 1);
        if let Some(gpu) = line.strip_prefix("## ") {
            all.push(GpuResults { gpu: gpu.into(), ..GpuResults::default() });
            continue;
        }
        let Some(results) = all.last_mut() else { continue };
        let Some(row) = line.strip_prefix("| ").and_then(|l| l.strip_suffix(" |")) else {
            if results.driver.is_empty() {
                results.driver = line.into();
            }
            continue;
        };
        let mut cells: Vec<String> = row.split(" | ").map(String::from).collect();
        let name = cells.remove(0);
        if name == "pipeline" || line == MODULES_HEAD {
            heads = cells;
            continue;
        }
        if cells.len() != heads.len() {
            return Err(at(format!("{} cells, not {}", cells.len(), heads.len())));
        }
        let values = cells.iter().map(|c| read_cell(c)).collect::<Result<Vec<_>, _>>().map_err(at)?;
        if heads[0] == "number" {
            let [pipelines, that_spill, spills, scratch] =
                [0, 1, 2, 3].map(|i| values.get(i).copied().flatten().unwrap_or(0.0));
            results.modules.insert(name, ModuleSums { pipelines, that_spill, spills, scratch });
            continue;
        }
        let mut figures = Figures::default();
        for (head, value) in heads.iter().zip(values) {
            let column = COLUMNS.iter().find(|c| c.head == head).ok_or_else(|| at(format!("no column `{head}`")))?;
            *(column.field)(&mut figures) = value;
        }
        results.shown.push((name.trim_end_matches(" (new)").into(), figures));
    }
    Ok(all)
}

fn is_worse(rule: Rule, was: f64, is: f64) -> bool {
    match rule {
        Rule::NoMore => is > was,
        Rule::NoFewer => is < was,
        Rule::AboutNoMore => is > 1.02 * was && is > was + 2.0,
        Rule::Ignored => false,
    }
}

/// Returns a line per figure that is worse in `now` than in `before`.
fn worse(place: &str, before: &Figures, now: &Figures) -> Vec<String> {
    let (mut before, mut now) = (before.clone(), now.clone());
    // A loop that a compiler unrolls otherwise holds more or fewer multiply-adds: its other instructions are compared per multiply-add.
    let work = |f: &Figures| f.fma.unwrap_or(0.0) + 64.0 * f.matrix.unwrap_or(0.0);
    let scale = if work(&before) > 0.0 && work(&now) > 0.0 { work(&before) / work(&now) } else { 1.0 };
    let mut all = Vec::new();
    for c in &COLUMNS {
        let (Some(was), Some(is)) = (*(c.field)(&mut before), *(c.field)(&mut now)) else { continue };
        let compared = if c.per_work { (100.0 * is * scale).round() / 100.0 } else { is };
        if is_worse(c.rule, was, compared) {
            let loops = if c.per_work && scale != 1.0 {
                format!(" ({compared:.2} per so many FMA as before)")
            } else {
                String::new()
            };
            all.push(format!("{place}: {} {} was {}{loops}", c.head, written(Some(is)), written(Some(was))));
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
            let (was, is) = (&earlier.driver, &results.driver);
            return Err(format!("{gpu}: committed with {was}, run with {is}: write the table again"));
        }
        for (name, figures) in &results.shown {
            match earlier.shown.iter().find(|(n, _)| n == name) {
                Some((_, before)) => bad.extend(worse(&format!("{gpu}, {name}"), before, figures)),
                None => notes.push(format!("{gpu}, {name}: new")),
            }
        }
        let gone = earlier.shown.iter().filter(|(name, _)| !results.shown.iter().any(|(n, _)| n == name));
        notes.extend(gone.map(|(name, _)| format!("{gpu}, {name}: gone")));
        let clean = ModuleSums::default();
        for (module, is) in &results.modules {
            let was = earlier.modules.get(module).unwrap_or(&clean);
            for (head, was, is) in [
                ("pipelines that spill", was.that_spill, is.that_spill),
                ("spills in all", was.spills, is.spills),
                ("most scratch", was.scratch, is.scratch),
            ] {
                if is > was {
                    bad.push(format!("{gpu}, all pipelines of {module}: {head} {is:.0} was {was:.0}"));
                }
            }
        }
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
            scratch: Some(0.0),
            waves: Some(16.0),
            instructions: Some(2293.0),
            fma: Some(1024.0),
            vector: Some(150.0),
            memory_waits: Some(8.0),
            ..Figures::default()
        }
    }

    fn results() -> GpuResults {
        let mut all = GpuResults { gpu: "navi31".into(), driver: "AMD RX 7900, Mesa 26".into(), ..Default::default() };
        all.add("matmul_tiles", Some("matmul_tiles64 fwd f32".into()), figures());
        all.add("matmul_tiles", None, figures());
        all.add("add", Some("add".into()), Figures { registers: Some(9.0), ..Figures::default() });
        all.add("add", Some("add".into()), Figures { registers: Some(8.0), ..Figures::default() });
        all.add("rope", None, Figures { spills: Some(5.0), scratch: Some(64.0), ..figures() });
        all
    }

    #[test]
    fn a_table_is_read_as_it_was_written() {
        let all = results();
        let before = GpuResults { shown: vec![("add".into(), figures())], ..GpuResults::default() };
        for text in [section(&all, None), section(&all, Some(&before)), section(&all, Some(&all))] {
            let read = read(&format!("# ISA\n\n{text}\n{text}")).unwrap();
            assert_eq!(read.len(), 2);
            assert_eq!((read[0].gpu.as_str(), read[0].driver.as_str()), ("navi31", "AMD RX 7900, Mesa 26"));
            assert_eq!(read[0].shown.len(), 2);
            assert_eq!(read[0].shown[0].1, Figures { scratch: None, ..figures() });
            assert_eq!(read[0].shown[1].1, Figures { registers: Some(8.0), ..Figures::default() });
            assert_eq!(read[0].modules["rope"], all.modules["rope"]);
            assert_eq!(read[0].modules[OTHERS].pipelines, 4.0);
            // What was written is not worse than itself.
            assert_eq!(compare(&read[..1], std::slice::from_ref(&all)).unwrap(), (vec![], vec![]));
            let other = GpuResults { driver: "Mesa 27".into(), ..all.clone() };
            assert!(compare(&read, &[other]).is_err());
        }
        assert!(read("## a\n\nb\n\n| pipeline | registers |\n| c | 1 | 2 |\n").is_err());
        assert!(read("## a\n\nb\n\n| pipeline | registers |\n| c | one |\n").is_err());
        let text = section(&all, Some(&before));
        assert!(text.contains("| add | 96 → 8 | 0 → – |") && text.contains("matmul_tiles64 fwd f32 (new)"), "{text}");
    }

    #[test]
    fn worse_figures_are_found_and_better_ones_are_not() {
        let with = |change: fn(&mut Figures)| {
            let mut f = figures();
            change(&mut f);
            worse("p", &figures(), &f)
        };
        for change in [
            (|f| f.spills = Some(1.0)) as fn(&mut Figures),
            |f| f.waves = Some(12.0),
            |f| f.registers = Some(100.0),
            |f| f.instructions = Some(2400.0),
            |f| f.vector = Some(160.0),
            |f| f.memory_waits = Some(9.0),
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
        assert_eq!(with(|f| f.spills = Some(3.0)), ["p: spills 3 was 0"]);
    }

    #[test]
    fn a_pipeline_without_a_row_is_seen_where_it_spills() {
        let committed = read(&section(&results(), None)).unwrap();
        let mut now = results();
        now.add("add", None, Figures { spills: Some(2.0), ..Figures::default() });
        let (bad, notes) = compare(&committed, &[now]).unwrap();
        assert_eq!(
            bad,
            [
                "navi31, all pipelines of add: pipelines that spill 1 was 0",
                "navi31, all pipelines of add: spills in all 2 was 0"
            ]
        );
        assert_eq!(notes, Vec::<String>::new());
    }
}
