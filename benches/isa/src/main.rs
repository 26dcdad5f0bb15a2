//! What Mesa's compilers make of every pipeline of the registry, counted in their statistics and listings. No GPU is needed and nothing is
//! computed: the drivers run on Mesa's drm-shims. `README.md` says how to run it and what is counted.

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
use vulkan::{CompiledPipeline, ShimDevice};

const HELP: &str = "jointwise-isa compile GPU FILE.json [TEXT [DIR]]   compiles every pipeline (whose name has TEXT) on the only device that the
                                                   Vulkan loader finds; listings go to DIR
jointwise-isa table FILE.json...                   prints the table in Markdown
jointwise-isa check TABLE.md FILE.json...          fails where a figure of the table got worse";

/// Modules for CPU adapters, which no GPU is given.
const FOR_CPUS: [&str; 3] = ["attention_lanes", "matmul_cpu", "matmul_lanes"];

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let done = match arguments.as_slice() {
        ["compile", gpu, file] => compile(gpu, file, "", None),
        ["compile", gpu, file, text] => compile(gpu, file, text, None),
        ["compile", gpu, file, text, dir] => compile(gpu, file, text, Some(Path::new(dir))),
        ["table", files @ ..] if !files.is_empty() => read_all(files).map(|all| print!("{}", table(&all))),
        ["check", committed, files @ ..] if !files.is_empty() => check(committed, files),
        _ => Err(HELP.into()),
    };
    if let Err(reason) = done {
        eprintln!("{reason}");
        std::process::exit(1);
    }
}

fn compile(gpu: &str, file: &str, text: &str, dump: Option<&Path>) -> Result<(), String> {
    let device = ShimDevice::open()?;
    let vendor = Vendor::of_device(&device.name);
    let mut results =
        GpuResults { gpu: gpu.into(), driver: format!("{}, {}", device.name.trim(), device.driver), ..Default::default() };
    let mut seen = HashSet::new();
    for shader in REGISTRY.iter().flat_map(|kernel| kernel.variants()) {
        let name = label::label(&shader);
        if FOR_CPUS.contains(&shader.module) || !name.contains(text) || !seen.insert(name.clone()) {
            continue;
        }
        let source = shader.source().map_err(|e| e.to_string())?;
        let has_matrices = shader.enables.contains(&"wgpu_cooperative_matrix");
        let is_there = |edge: &u32| source.contains(&format!("coop_mat{edge}x{edge}<f32, C>"));
        if has_matrices && !device.cooperative_edges.iter().any(is_there) {
            continue;
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
        results.pipelines.push((name, figures(vendor, &compiled)));
    }
    if results.pipelines.is_empty() {
        return Err(format!("{gpu}: no pipeline's name has `{text}`"));
    }
    let json = serde_json::to_string(&results).map_err(|e| e.to_string())?;
    std::fs::write(file, json).map_err(|e| format!("{file}: {e}"))?;
    eprintln!("{gpu}: {} pipelines, {}", results.pipelines.len(), results.driver);
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
        workgroup: number(names.workgroup).or_else(|| assembly::shared_size(&compiled.texts)),
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
        figures.shared_loads = counted(hot.shared_loads);
        figures.bytes_per_fma = (hot.multiply_adds > 0).then(|| hot.shared_bytes as f64 / hot.multiply_adds as f64);
        if vendor.shows_waits() {
            figures.memory_waits = counted(hot.memory_waits);
            figures.shared_waits = counted(hot.shared_waits);
        }
    }
    figures
}

fn read_all(files: &[&str]) -> Result<Vec<GpuResults>, String> {
    let read = |file: &&str| {
        let text = std::fs::read_to_string(file).map_err(|e| format!("{file}: {e}"))?;
        serde_json::from_str(&text).map_err(|e| format!("{file}: {e}"))
    };
    files.iter().map(read).collect()
}

fn check(committed: &str, files: &[&str]) -> Result<(), String> {
    let text = std::fs::read_to_string(committed).map_err(|e| format!("{committed}: {e}"))?;
    let (worse, notes) = results::compare(&GpuResults::read(&text)?, &read_all(files)?)?;
    notes.iter().for_each(|note| println!("{note}"));
    if worse.is_empty() {
        println!("no figure is worse than in {committed}");
        return Ok(());
    }
    Err(format!("{}\n{} figures are worse than in {committed}", worse.join("\n"), worse.len()))
}

/// Writes the whole file: what is counted, a summary, and a section per GPU.
fn table(all: &[GpuResults]) -> String {
    let mut text = String::from(include_str!("head.md"));
    text.push_str("\n| GPU | pipelines | that spill | spills in all | scratch, most | memory waits in all | workgroup waits in all |\n|---|---|---|---|---|---|---|\n");
    for results in all {
        let sum = |field: fn(&Figures) -> Option<f64>| {
            let values: Vec<f64> = results.pipelines.iter().filter_map(|(_, f)| field(f)).collect();
            if values.is_empty() { "–".into() } else { format!("{:.0}", values.iter().sum::<f64>()) }
        };
        let n_spill = results.pipelines.iter().filter(|(_, f)| f.spills.is_some_and(|n| n > 0.0)).count();
        let scratch = results.pipelines.iter().filter_map(|(_, f)| f.scratch).fold(0.0, f64::max);
        text.push_str(&format!(
            "| {} | {} | {n_spill} | {} | {scratch:.0} | {} | {} |\n",
            results.gpu,
            results.pipelines.len(),
            sum(|f| f.spills),
            sum(|f| f.memory_waits),
            sum(|f| f.shared_waits),
        ));
    }
    for results in all {
        text.push('\n');
        text.push_str(&results.section());
    }
    text
}
