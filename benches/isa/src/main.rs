//! What Mesa's compilers make of every pipeline of the registry, counted in their statistics and listings. No GPU is needed and nothing is
//! computed: the drivers run on Mesa's drm-shims. `benches/README.md` says how to run it, and `head.md` what is counted.

mod assembly;
mod hot_loop;
mod label;
mod results;
mod spirv;
mod vulkan;

use std::collections::HashSet;
use std::path::Path;

use assembly::Vendor;
use jointwise::kernels::REGISTRY;
use results::{Figures, GpuResults};
use serde::{Deserialize, Serialize};
use vulkan::{CompiledPipeline, ShimDevice};

const HELP: &str = "jointwise-isa compile GPU FILE.json [TEXT [DIR]]   compiles every pipeline (whose name has TEXT) on the only device that the
                                                   Vulkan loader finds; listings go to DIR
jointwise-isa before COMMIT FILE.json...           prints results of another commit's shaders, for `table`
jointwise-isa table BEFORE.json FILE.json...       prints the table in Markdown
jointwise-isa show FILE.json                       prints the section of one GPU
jointwise-isa check TABLE.md FILE.json...          fails where a figure of the table got worse";

/// Results of the shaders of an earlier commit.
#[derive(Debug, Serialize, Deserialize)]
struct EarlierResults {
    commit: String,
    gpus: Vec<GpuResults>,
}

/// Modules for CPU adapters, which no GPU is given.
const FOR_CPUS: [&str; 3] = ["attention_lanes", "matmul_cpu", "matmul_lanes"];

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let done = match arguments.as_slice() {
        ["compile", gpu, file] => compile(gpu, file, "", None),
        ["compile", gpu, file, text] => compile(gpu, file, text, None),
        ["compile", gpu, file, text, dir] => compile(gpu, file, text, Some(Path::new(dir))),
        ["before", commit, files @ ..] if !files.is_empty() => print_before(commit, files),
        ["table", before, files @ ..] if !files.is_empty() => print_table(before, files),
        ["show", file] => read_all(&[file]).map(|all| print!("{}", results::section(&all[0], None))),
        ["check", committed, files @ ..] if !files.is_empty() => check(committed, files),
        _ => Err(HELP.into()),
    };
    if let Err(reason) = done {
        eprintln!("{reason}");
        std::process::exit(1);
    }
}

/// Names that one process compiles: Mesa's shims give memory to pipelines and never take it back, and RADV crashes where there is none left.
const PER_PROCESS: usize = 256;

/// Exit status of a process that has not compiled all: the same command goes on.
const GOES_ON: i32 = 3;

fn compile(gpu: &str, file: &str, text: &str, dump: Option<&Path>) -> Result<(), String> {
    let device = ShimDevice::open()?;
    let vendor = Vendor::of_device(&device.name);
    let mut results: GpuResults = if Path::new(file).exists() { read_json(file)? } else { GpuResults::default() };
    (results.gpu, results.driver) = (gpu.into(), format!("{}, {}", device.name.trim(), device.driver));
    let first = std::mem::take(&mut results.compiled);
    let mut seen = HashSet::new();
    for shader in REGISTRY.iter().flat_map(|kernel| kernel.variants()) {
        let name = label::label(&shader);
        if FOR_CPUS.contains(&shader.module)
            || !label::is_for(&shader, vendor)
            || !name.contains(text)
            || !seen.insert(name.clone())
        {
            continue;
        }
        let source = shader.source().map_err(|e| e.to_string())?;
        let has_matrices = shader.enables.contains(&"wgpu_cooperative_matrix");
        let is_there = |edge: &u32| source.contains(&format!("coop_mat{edge}x{edge}<f32, C>"));
        if has_matrices && !device.cooperative_edges.iter().any(is_there) {
            continue;
        }
        if seen.len() <= first {
            continue;
        }
        if seen.len() > first + PER_PROCESS {
            results.compiled = first + PER_PROCESS;
            break;
        }
        let compiled = spirv::translate(&source, shader.entry)
            .and_then(|module| device.compile(&module))
            .map_err(|reason| format!("{gpu}, {name}: {reason}"))?;
        if let Some(dir) = dump {
            let file = name.replace(|c: char| !c.is_ascii_alphanumeric(), "_");
            let mut text = format!("{:#?}\n", compiled.statistics);
            compiled.texts.iter().for_each(|(title, form)| text.push_str(&format!("\n=== {title}\n{form}\n")));
            let written = std::fs::create_dir_all(dir).and_then(|()| std::fs::write(dir.join(file + ".txt"), text));
            written.map_err(|e| format!("{}: {e}", dir.display()))?;
        }
        let row = if text.is_empty() { label::row(&shader, gpu, vendor) } else { Some(name) };
        results.add(shader.module, row, figures(vendor, &compiled));
    }
    if results.modules.is_empty() {
        return Err(format!("{gpu}: no pipeline's name has `{text}`"));
    }
    let json = serde_json::to_string(&results).map_err(|e| e.to_string())?;
    std::fs::write(file, json).map_err(|e| format!("{file}: {e}"))?;
    if results.compiled > 0 {
        std::process::exit(GOES_ON);
    }
    eprintln!("{gpu}: {} pipelines, {}", results.total().pipelines, results.driver);
    Ok(())
}

/// Reads the figures from a driver's statistics and its listing.
fn figures(vendor: Vendor, compiled: &CompiledPipeline) -> Figures {
    let names = vendor.statistics();
    let number = |name: &str| compiled.statistics.iter().find(|(n, _)| n == name).map(|(_, value)| *value);
    let mut figures = Figures {
        registers: number(names.registers),
        spills: number(names.spills),
        scratch: number(names.scratch),
        waves: number(names.waves),
        instructions: number(names.instructions),
        ..Figures::default()
    };
    let lines = vendor.parse(vendor.listing(&compiled.texts));
    if let Some(hot) = hot_loop::find(&lines) {
        let counted = |n: usize| Some(n as f64);
        figures.fma = counted(hot.multiply_adds);
        figures.matrix = counted(hot.matrix);
        figures.vector = counted(hot.vector);
        figures.memory_loads = counted(hot.memory_loads);
        figures.workgroup_loads = counted(hot.workgroup_loads);
        if vendor.shows_waits() {
            figures.memory_waits = counted(hot.memory_waits);
            figures.workgroup_waits = counted(hot.workgroup_waits);
        }
    }
    figures
}

fn read_json<T: serde::de::DeserializeOwned>(file: &str) -> Result<T, String> {
    let text = std::fs::read_to_string(file).map_err(|e| format!("{file}: {e}"))?;
    serde_json::from_str(&text).map_err(|e| format!("{file}: {e}"))
}

fn read_all(files: &[&str]) -> Result<Vec<GpuResults>, String> {
    files.iter().map(|file| read_json(file)).collect()
}

fn print_before(commit: &str, files: &[&str]) -> Result<(), String> {
    let before = EarlierResults { commit: commit.into(), gpus: read_all(files)? };
    println!("{}", serde_json::to_string(&before).map_err(|e| e.to_string())?);
    Ok(())
}

fn check(committed: &str, files: &[&str]) -> Result<(), String> {
    let text = std::fs::read_to_string(committed).map_err(|e| format!("{committed}: {e}"))?;
    let (worse, notes) = results::compare(&results::read(&text)?, &read_all(files)?)?;
    notes.iter().for_each(|note| println!("{note}"));
    if worse.is_empty() {
        println!("no figure is worse than in {committed}");
        return Ok(());
    }
    Err(format!("{}\n{} figures are worse than in {committed}", worse.join("\n"), worse.len()))
}

/// Prints the whole file: what is counted, a summary, and a section per GPU.
fn print_table(before: &str, files: &[&str]) -> Result<(), String> {
    let (before, all): (EarlierResults, _) = (read_json(before)?, read_all(files)?);
    // The driver's version stands behind the device's name.
    let mesa = all[0].driver.rsplit_once(", ").map_or("", |(_, version)| version);
    print!("{}", include_str!("head.md").replace("{commit}", &before.commit).replace("{mesa}", mesa));
    println!("\n| GPU | device | pipelines | that spill | spills in all | scratch, most |\n|---|---|---|---|---|---|");
    let earlier = |gpu: &GpuResults| before.gpus.iter().find(|b| b.gpu == gpu.gpu);
    for gpu in &all {
        let (was, is) = (earlier(gpu).map(GpuResults::total), gpu.total());
        let cell = |field: fn(&results::ModuleSums) -> f64| {
            results::cell(was.as_ref().map(|w| Some(field(w))), Some(field(&is)))
        };
        let device = gpu.driver.split(", ").next().unwrap_or_default();
        println!(
            "| {} | {device} | {} | {} | {} | {} |",
            gpu.gpu,
            cell(|m| m.pipelines),
            cell(|m| m.that_spill),
            cell(|m| m.spills),
            cell(|m| m.scratch)
        );
    }
    for gpu in &all {
        print!("\n{}", results::section(gpu, earlier(gpu)));
    }
    Ok(())
}
