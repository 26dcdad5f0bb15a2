//! Cache of the kernel self-test, which is run once per device, driver and program.

use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::cache_folder::cache_folder;
use crate::error::Result;
use crate::gpu::{Caps, Gpu, Variant};
use crate::kernels::storage::WeightFormat;
use crate::kernels::with_checked_variants;
use crate::model::folder::{MAX_CONFIG_BYTES, read_file};
use crate::model::save::write_text;
use crate::progress::ProgressReporter;

/// Cached result of a self-test, as JSON.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct SelfTestFile {
    device: String,
    driver: String,
    /// Formats of weights whose kernels were checked.
    formats: Vec<WeightFormat>,
    /// Names of the variants that failed.
    wrong: Vec<String>,
}

/// Returns the size of the program's file in bytes, and the time of its last change, which tell builds apart. `None` where the program does not know its own
/// file.
pub fn program_file() -> Option<(u64, u128)> {
    let program = std::env::current_exe().and_then(std::fs::metadata).ok()?;
    let written = program.modified().ok()?.duration_since(UNIX_EPOCH).ok()?.as_nanos();
    Some((program.len(), written))
}

/// Returns the file of a device's result. Another program, driver, device or choice of kernels has another file. `None` where the program does not know its own
/// file.
fn path(caps: &Caps) -> Option<PathBuf> {
    let (n_bytes, written) = program_file()?;
    let of_device = (&caps.name, &caps.backend, &caps.driver, caps.subgroup, caps.f16, caps.cooperative);
    let chosen = (&caps.variants, caps.matmul_precision, caps.workgroup_bytes);
    let key = Sha256::digest(format!("{of_device:?} {chosen:?} {n_bytes} {written}"));
    let name: String = key.iter().take(16).map(|byte| format!("{byte:02x}")).collect();
    Some(cache_folder().join("checked").join(name).with_extension("json"))
}

fn read(path: &Path) -> Option<SelfTestFile> {
    serde_json::from_str(&read_file(path, MAX_CONFIG_BYTES).ok()?).ok()
}

/// Returns the names of the variants that failed on this device, as an earlier start of this program cached them; `None` where it cached nothing.
pub fn cached_failures(caps: &Caps) -> Option<Vec<String>> {
    path(caps).as_deref().and_then(read).map(|file| file.wrong)
}

/// Runs the self-test of kernel variants for formats of weights, once per device, driver and program; the result is cached on disk. Also returns the
/// variants that failed.
pub fn self_test_cached(gpu: Gpu, formats: &[WeightFormat]) -> Result<(Gpu, Vec<Variant>)> {
    let path = path(gpu.caps());
    let (device, driver) = (gpu.caps().name.clone(), gpu.caps().driver.clone());
    let mut kept = path.as_deref().and_then(read).unwrap_or(SelfTestFile {
        device,
        driver,
        formats: Vec::new(),
        wrong: Vec::new(),
    });
    let is_wrong = |variant: &Variant| kept.wrong.iter().any(|name| name == variant.name());
    let (mut wrong, right): (Vec<_>, Vec<_>) = gpu.caps().variants.iter().partition(|variant| is_wrong(variant));
    let gpu = gpu.with_variants(right);
    let missing: Vec<WeightFormat> = formats.iter().copied().filter(|format| !kept.formats.contains(format)).collect();
    if missing.is_empty() {
        return Ok((gpu, wrong));
    }
    // Each shader is compiled: by FXC in up to half a second, where others take milliseconds.
    if gpu.caps().is_cpu || gpu.caps().backend == "dx12" {
        note!("note: the first start on {} checks its kernels, which takes a while", gpu.caps().name);
    }
    let (gpu, failed) = {
        let _progress = ProgressReporter::uncounted("checking the device's kernels");
        pollster::block_on(with_checked_variants(gpu, &missing))?
    };
    kept.formats.extend(missing);
    kept.wrong.extend(failed.iter().map(|variant| variant.name().to_string()));
    wrong.extend(failed);
    // A file that cannot be written costs the next start a check.
    if let Some(path) = path
        && path.parent().is_some_and(|dir| std::fs::create_dir_all(dir).is_ok())
        && let Ok(text) = serde_json::to_string(&kept)
    {
        let _ = write_text(&path, &text);
    }
    Ok((gpu, wrong))
}
