//! Bug report (`jointwise info --report`): what one needs, as Markdown to paste. A part that fails says why, and the other parts follow.

use std::collections::BTreeMap;
use std::path::Path;

use super::{DeviceOptions, cache_folder, self_test_cache, system_facts, tuning_cache};
use crate::error::{Error, Result, visible};
use crate::gpu::{Caps, DeviceFacts, DeviceSummary, Gpu, Variant, list_devices};
use crate::kernels::storage::WeightFormat;
use crate::kernels::{CaseCheck, REGISTRY, check_cases, check_precision, check_variants, first_cases, supported_cases};
use crate::progress::ProgressReporter;
use crate::rng::Rng;

/// Takes a part of the report, which ends with a line.
type Say<'a> = &'a dyn Fn(String) -> Result<()>;

/// Tells the report's parts to `say` as they are known, so that a device that hangs leaves those before. `asked` is the flag that chose the
/// device's variants, if one did.
///
/// # Errors
/// Those of opening the device and of `say`; [`Error::Gpu`] where a kernel or a variant is wrong. The report is told before.
pub fn tell_bug_report(options: &DeviceOptions, asked: Option<&str>, all_cases: bool, say: Say) -> Result<()> {
    say(format!("# jointwise: report\n\n{}", facts_table(&system_facts::program_and_system())))?;
    let devices = pollster::block_on(list_devices());
    say(format!("\n## Devices\n\n{}", device_table(&devices)))?;
    let variables = std::env::vars_os();
    let variables = variables.map(|(name, value)| [name, value].map(|text| text.to_string_lossy().into_owned()));
    let environment = environment(variables.map(|[name, value]| (name, value)));
    let opened = Gpu::open_untested(options);
    let wrong = match &opened {
        Err(error) => {
            say(format!("\n## Chosen device\n\nIt cannot be opened: {}", cell(&error.to_string())))?;
            Vec::new()
        }
        Ok(gpu) => {
            say(format!("\n## Chosen device\n\n{}", facts_table(&device_facts(gpu.caps(), gpu.facts()))))?;
            if let Some(facts) = gpu.facts() {
                say(format!("\n## Limits and features\n\n{}", limits_and_features(facts)))?;
            }
            let asked = asked.or(std::env::var_os("JOINTWISE_VARIANT").map(|_| "JOINTWISE_VARIANT"));
            [tell_variants(gpu, asked, say)?, tell_self_test(gpu, all_cases, say)?].concat()
        }
    };
    if let Ok(gpu) = &opened {
        say(format!("\n## Tuning\n\n{}", tuning_table(gpu.caps())))?;
    }
    say(format!("\n## Environment\n\n{}", facts_table(&environment)))?;
    say(format!("\n## Cache folder\n\n{}", cache_table(&cache_folder())))?;
    opened?;
    if wrong.is_empty() { Ok(()) } else { Err(Error::Gpu(format!("self-test failed: {}", wrong.join(", ")))) }
}

/// Makes a table's cell of a text: one line, without characters that act on a terminal, and with the home folder as `~`.
fn cell(text: &str) -> String {
    let home = ["HOME", "USERPROFILE"].into_iter().find_map(|name| std::env::var(name).ok());
    without_home(&visible(text), home.as_deref().unwrap_or_default()).replace('|', "\\|").replace('`', "'")
}

fn without_home(text: &str, home: &str) -> String {
    let home = home.trim_end_matches(['/', '\\']);
    if home.is_empty() { text.into() } else { text.replace(home, "~") }
}

fn table_row(cells: &[String]) -> String {
    format!("| {} |", cells.iter().map(|text| cell(text)).collect::<Vec<_>>().join(" | "))
}

fn table<const N: usize>(head: [&str; N], rows: impl IntoIterator<Item = [String; N]>) -> String {
    let head = [table_row(&head.map(String::from)), format!("|{}", "---|".repeat(N))];
    head.into_iter().chain(rows.into_iter().map(|row| table_row(&row))).collect::<Vec<_>>().join("\n")
}

fn facts_table(facts: &[(String, String)]) -> String {
    table(["what", "value"], facts.iter().map(|(name, value)| [name.clone(), value.clone()]))
}

fn device_table(devices: &[DeviceSummary]) -> String {
    if devices.is_empty() {
        return "No device answers.".into();
    }
    let row =
        |d: &DeviceSummary| [d.index.to_string(), d.name.clone(), d.backend.clone(), d.kind.clone(), d.driver.clone()];
    table(["--device", "name", "backend", "kind", "driver"], devices.iter().map(row))
}

fn bytes(n: u64) -> String {
    match n {
        0..1024 => format!("{n} B"),
        1024..0x10_0000 => format!("{:.1} KiB", n as f64 / 1024.0),
        0x10_0000..0x4000_0000 => format!("{:.1} MiB", n as f64 / f64::from(1 << 20)),
        _ => format!("{:.1} GiB", n as f64 / f64::from(1 << 30)),
    }
}

fn yes(is: bool) -> String {
    if is { "yes" } else { "no" }.into()
}

fn device_facts(caps: &Caps, facts: Option<&DeviceFacts>) -> Vec<(String, String)> {
    let known = |n: Option<u64>| n.map_or("not reported".into(), bytes);
    let subgroups = caps.subgroup.map_or("none".into(), |(least, most)| format!("{least} to {most}"));
    let cooperative = caps.cooperative.map_or("none that kernels take".into(), |c| {
        format!("{0}×{0}×{0}, f16 to f32, in subgroups of {1}", c.edge, c.subgroup)
    });
    let all = [
        ("name", caps.name.clone()),
        ("backend", caps.backend.clone()),
        ("driver", caps.driver.clone()),
        ("kind", facts.map_or("unknown".into(), |f| f.kind.clone())),
        ("vendor and device", facts.map_or("unknown".into(), |f| f.pci_id.clone())),
        ("memory, and free of it", format!("{}, {}", known(caps.memory_bytes), known(caps.free_memory_bytes))),
        ("invocations per subgroup", subgroups),
        ("cooperative matrices", cooperative),
        ("precision of matrix products", caps.matmul_precision.name().into()),
        ("largest binding that kernels use", bytes(caps.max_binding_bytes)),
        ("block of memory that buffers share", bytes(caps.memory_block_bytes)),
    ];
    all.map(|(name, value)| (name.into(), value)).into()
}

fn limits_and_features(facts: &DeviceFacts) -> String {
    let limits = facts.limits.iter().map(|l| [l.name.into(), l.value.to_string(), l.guaranteed.to_string()]);
    let features = facts.features.iter().map(|f| [f.name.clone(), yes(f.is_there), yes(f.is_enabled)]);
    let listed = |all: &[String]| if all.is_empty() { "none".into() } else { cell(&all.join(", ")) };
    format!(
        "{}\n\n{}\n\nCooperative matrices of the driver: {}.\n\nOther features: {}.",
        table(["limit", "adapter", "WebGPU guarantees"], limits),
        table(["feature", "adapter has it", "device is opened with it"], features),
        listed(&facts.cooperative),
        listed(&facts.other_features),
    )
}

/// Tells the table of variants, and returns the names of those that fail.
fn tell_variants(gpu: &Gpu, asked: Option<&str>, say: Say) -> Result<Vec<String>> {
    let cached = self_test_cache::cached_failures(gpu.caps());
    let checked = {
        let _progress = ProgressReporter::uncounted("checking the device's kernels");
        pollster::block_on(check_variants(gpu, &WeightFormat::ALL))
    };
    let earlier = match &cached {
        None => "No start of this program with these choices has cached a check of this device.".into(),
        Some(wrong) if wrong.is_empty() => "An earlier start cached a check that all variants passed.".into(),
        Some(wrong) => format!("An earlier start cached failures, and starts disable: {}.", cell(&wrong.join(", "))),
    };
    say(format!("\n## Kernel variants\n\n{earlier}\n"))?;
    let checks = match checked {
        Ok(checks) => checks,
        Err(error) => {
            say(format!("The check failed: {}", cell(&error.to_string())))?;
            return Ok(vec!["variants".into()]);
        }
    };
    let rows = variant_rows(gpu.caps().is_cpu, asked, &checks);
    say(table(["variant", "state", "why"], rows))?;
    Ok(checks.iter().filter(|(_, check)| check.error > 1.0).map(|(variant, _)| variant.name().into()).collect())
}

/// Returns (name, state, reason) of every variant. `asked` is the flag or environment variable that chose variants; `checks` has those that the
/// device may use.
fn variant_rows(is_cpu: bool, asked: Option<&str>, checks: &[(Variant, CaseCheck)]) -> Vec<[String; 3]> {
    let of_variant = |variant: Variant| -> (&str, String) {
        let Some((_, check)) = checks.iter().find(|(v, _)| *v == variant) else {
            let kind = if is_cpu { "a GPU's, and this device is a CPU" } else { "a CPU's, and this device is a GPU" };
            return ("off", asked.map_or(kind.into(), |by| format!("{by} does not name it")));
        };
        match check {
            CaseCheck { n_cases: 0, .. } => ("not used", "the device lacks what it needs".into()),
            CaseCheck { error, case, .. } if *error > 1.0 => {
                ("disabled", format!("the check failed: {error:.3} times the tolerance in `{case}`"))
            }
            CaseCheck { error, n_cases, .. } => {
                ("may be chosen", format!("{n_cases} cases passed, with at most {error:.3} of the tolerance"))
            }
        }
    };
    let row = |variant: Variant| {
        let (state, why) = of_variant(variant);
        [variant.name().into(), state.into(), why]
    };
    let baseline = ["baseline".into(), "always there".into(), "the self-test below".into()];
    std::iter::once(baseline).chain(Variant::ALL.into_iter().map(row)).collect()
}

/// Runs the self-test and tells a row after each family. Returns the names of the families that fail.
fn tell_self_test(gpu: &Gpu, all_cases: bool, say: Say) -> Result<Vec<String>> {
    say("\n## Self-test\n\nError and tolerance are relative to the largest magnitude of a tensor.\n".into())?;
    say(table(["kernel family", "cases", "largest error", "tolerance", "of the tolerance", "case"], []))?;
    let progress = ProgressReporter::items("checking the device's kernels", REGISTRY.len() + 1);
    let mut rng = Rng::new(0, 0);
    let mut wrong = Vec::new();
    let mut add = |name: String, checked: Result<CaseCheck>| -> Result<bool> {
        progress.advance(1);
        let is_there = checked.is_ok();
        if !checked.as_ref().is_ok_and(|check| check.error <= 1.0) {
            wrong.push(name.clone());
        }
        progress.suspend(|| say(table_row(&self_test_row(name, checked))))?;
        Ok(is_there)
    };
    let mut is_there = true;
    for kernel in REGISTRY {
        let cases = if all_cases { supported_cases(*kernel, gpu.caps()) } else { first_cases(*kernel) };
        let checked = pollster::block_on(check_cases(gpu, &cases, &mut rng));
        is_there = add(kernel.name().into(), checked)?;
        if !is_there {
            break;
        }
    }
    let precision = gpu.caps().matmul_precision;
    if is_there && let Some(checked) = pollster::block_on(check_precision(gpu)).transpose() {
        add(format!("precision {}", precision.name()), checked)?;
    }
    Ok(wrong)
}

fn self_test_row(name: String, checked: Result<CaseCheck>) -> [String; 6] {
    match checked {
        Ok(check) => {
            let verdict = if check.error <= 1.0 { "" } else { " FAILED" };
            let error = check.error * check.tolerance;
            [
                name,
                check.n_cases.to_string(),
                format!("{error:.2e}"),
                format!("{:.2e}", check.tolerance),
                format!("{:.3}{verdict}", check.error),
                check.case,
            ]
        }
        Err(error) => [name, "FAILED".into(), String::new(), String::new(), String::new(), error.to_string()],
    }
}

fn tuning_table(caps: &Caps) -> String {
    let measured = tuning_cache::kept(caps).map_or(0, |tuning| tuning.len());
    let head = format!(
        "{} classes of shapes; `jointwise tune` measured {measured} here, and the others are shipped.",
        caps.tuning.len()
    );
    if caps.tuning.is_empty() {
        return format!("{head} Tiles are chosen by the number of workgroups.");
    }
    let mut by_variant: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for (class, variant) in caps.tuning.entries() {
        by_variant.entry(variant.map_or("baseline", Variant::name)).or_default().push(class);
    }
    let row = |(variant, classes): (&str, Vec<&str>)| [variant.into(), classes.join(", ")];
    format!("{head}\n\n{}", table(["fastest", "classes"], by_variant.into_iter().map(row)))
}

/// Beginnings of the names of variables that decide what the program, wgpu or a driver does.
const PREFIXES: [&str; 13] = [
    "JOINTWISE_",
    "WGPU_",
    "VK_",
    "MESA_",
    "RADV_",
    "ACO_",
    "ANV_",
    "INTEL_",
    "NVK_",
    "LVP_",
    "LP_",
    "GALLIUM_",
    "MTL_",
];
/// Other such names.
const NAMES: [&str; 4] = ["CUDA_VISIBLE_DEVICES", "DRI_PRIME", "LD_LIBRARY_PATH", "XDG_CACHE_HOME"];
/// Parts of the names of variables whose values are nobody's business.
const SECRETS: [&str; 5] = ["KEY", "TOKEN", "SECRET", "PASSW", "AUTH"];

/// Returns the variables that matter, sorted by name. A key is only said to be set or unset.
fn environment(all: impl IntoIterator<Item = (String, String)>) -> Vec<(String, String)> {
    let mut found = BTreeMap::from([("JOINTWISE_API_KEY".to_string(), "unset".to_string())]);
    for (name, value) in all {
        let upper = name.to_uppercase();
        if SECRETS.iter().any(|part| upper.contains(part)) {
            if upper.starts_with("JOINTWISE_") {
                found.insert(name, "set".into());
            }
        } else if PREFIXES.iter().any(|p| upper.starts_with(p)) || NAMES.contains(&upper.as_str()) {
            found.insert(name, value);
        }
    }
    found.into_iter().collect()
}

/// Most files of a folder that are counted.
const MOST_FILES: usize = 100_000;

/// Returns the number and bytes of a folder's files, with those in its folders; `None` where it cannot be read.
fn files_in(folder: &Path) -> Option<(usize, u64)> {
    let (mut n, mut total) = (0, 0);
    let mut folders = vec![std::fs::read_dir(folder).ok()?];
    while let Some(entries) = folders.pop() {
        for entry in entries.flatten() {
            match entry.metadata() {
                Ok(about) if about.is_dir() => folders.extend(std::fs::read_dir(entry.path())),
                Ok(about) if n < MOST_FILES => (n, total) = (n + 1, total + about.len()),
                _ => {}
            }
        }
    }
    Some((n, total))
}

fn cache_table(folder: &Path) -> String {
    let place = cell(&folder.display().to_string());
    let Ok(entries) = std::fs::read_dir(folder) else {
        let why = std::fs::read_dir(folder).err().map_or(String::new(), |e| e.to_string());
        return format!("`{place}` is not there yet, or cannot be read: {}", cell(&why));
    };
    let mut parts: Vec<_> = entries.flatten().map(|e| e.path()).collect();
    parts.sort();
    let row = |path: &std::path::PathBuf| {
        let name = path.file_name().map_or(String::new(), |name| name.to_string_lossy().into_owned());
        match files_in(path) {
            Some((n, total)) => [format!("{name}/"), n.to_string(), bytes(total)],
            None => [name, "1".into(), path.metadata().map_or("cannot be read".into(), |about| bytes(about.len()))],
        }
    };
    format!("`{place}`\n\n{}", table(["part", "files", "size"], parts.iter().map(row)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(n_cases: usize, error: f64) -> CaseCheck {
        CaseCheck { n_cases, case: "a|b".into(), error, tolerance: 1e-6 }
    }

    #[test]
    fn each_variant_has_a_state_and_a_reason() {
        let checks =
            [(Variant::Tiles32, check(3, 0.25)), (Variant::Tiles64, check(3, 7.5)), (Variant::Flash, check(0, 0.0))];
        let rows = variant_rows(false, None, &checks);
        let row = |name: &str| rows.iter().find(|r| r[0] == name).map(|r| (r[1].as_str(), r[2].as_str())).unwrap();
        assert_eq!(rows.len(), 1 + Variant::ALL.len());
        assert_eq!(row("tiles32"), ("may be chosen", "3 cases passed, with at most 0.250 of the tolerance"));
        assert_eq!(row("tiles64"), ("disabled", "the check failed: 7.500 times the tolerance in `a|b`"));
        assert_eq!(row("flash").0, "not used");
        assert_eq!(row("cpu"), ("off", "a CPU's, and this device is a GPU"));
        assert_eq!(variant_rows(true, Some("--variant"), &[])[1], ["tiles32", "off", "--variant does not name it"]);
    }

    #[test]
    fn a_failed_family_is_seen_and_a_lost_device_too() {
        let row = self_test_row("rope".into(), Ok(check(4, 2.0)));
        assert_eq!(row, ["rope", "4", "2.00e-6", "1.00e-6", "2.000 FAILED", "a|b"]);
        assert!(table(["", "", "", "", "", ""], [row]).contains("a\\|b"), "a bar ends no cell");
        let row = self_test_row("rope".into(), Err(Error::Gpu("no".into())));
        assert_eq!((row[1].as_str(), row[5].as_str()), ("FAILED", "GPU: no"));
    }

    #[test]
    fn secrets_are_never_shown() {
        let all = [
            ("JOINTWISE_API_KEY", "sk-1"),
            ("JOINTWISE_HUB_TOKEN", "sk-2"),
            ("JOINTWISE_VARIANT", "tiles64"),
            ("VK_DRIVER_FILES", "/a.json"),
            ("MESA_PASSWORD", "sk-3"),
            ("OPENAI_API_KEY", "sk-4"),
            ("PATH", "/bin"),
        ];
        let found = environment(all.map(|(name, value)| (name.to_string(), value.to_string())));
        let expected = [
            ("JOINTWISE_API_KEY", "set"),
            ("JOINTWISE_HUB_TOKEN", "set"),
            ("JOINTWISE_VARIANT", "tiles64"),
            ("VK_DRIVER_FILES", "/a.json"),
        ];
        assert_eq!(found, expected.map(|(name, value)| (name.to_string(), value.to_string())));
        assert_eq!(environment([]), [("JOINTWISE_API_KEY".to_string(), "unset".to_string())]);
    }

    #[test]
    fn a_home_folder_is_not_told() {
        assert_eq!(without_home("/home/ada/.cache and /home/ada", "/home/ada"), "~/.cache and ~");
        assert_eq!(without_home("/a/b", "/"), "/a/b");
        assert_eq!(without_home("/a/b", ""), "/a/b");
    }

    #[test]
    fn the_cache_is_counted() {
        let dir = tempfile::tempdir().unwrap();
        assert!(cache_table(&dir.path().join("none")).contains("not there"));
        std::fs::create_dir_all(dir.path().join("tokens/a")).unwrap();
        std::fs::write(dir.path().join("tokens/a/b"), [0; 2048]).unwrap();
        std::fs::write(dir.path().join("tokens/c"), [0; 1024]).unwrap();
        std::fs::write(dir.path().join("loose"), [0; 5]).unwrap();
        let told = cache_table(dir.path());
        assert!(told.contains("| tokens/ | 2 | 3.0 KiB |") && told.contains("| loose | 1 | 5 B |"), "{told}");
    }
}
