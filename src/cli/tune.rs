//! `tune`: the fastest kernels of this device for the shapes of models, kept in the cache folder.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::args::TuneArgs;
use super::bench::chosen;
use super::session;
use crate::error::{Error, Result};
use crate::files::follow_links;
use crate::gpu::{Caps, Gpu, Tuning, Variant};
use crate::kernels::shapes::{MODELS, ModelShape};
use crate::kernels::tune::{Tuned, tune};
use crate::model::folder::{MAX_CONFIG_BYTES, read_file};
use crate::model::save::write_text;
use crate::progress::ProgressReporter;

/// The file.
#[derive(Serialize, Deserialize)]
struct Kept {
    /// What was measured: of another version or driver, entries are stale and not taken.
    version: String,
    driver: String,
    fastest: Tuning,
}

fn path(caps: &Caps) -> PathBuf {
    let name: String = caps.name.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).collect();
    session::cache_folder().join("tuning").join(format!("{name}-{}.json", caps.backend))
}

/// What an earlier `tune` found for this device, driver and version.
pub fn kept(caps: &Caps) -> Option<Tuning> {
    let text = read_file(&path(caps), MAX_CONFIG_BYTES).ok()?;
    let kept: Kept = serde_json::from_str(&text).ok()?;
    (kept.version == env!("CARGO_PKG_VERSION") && kept.driver == caps.driver).then_some(kept.fastest)
}

/// `jointwise tune`.
pub fn run(args: &TuneArgs) -> Result<()> {
    crate::config::measurable(&args.tokens, args.seconds)?;
    let models = chosen("models", &args.models, &MODELS, |m| m.name)?;
    let gpu = session::open_gpu(&args.device)?;
    let on_cpu = gpu.caps().is_cpu;
    let models = if on_cpu && args.models.is_empty() { models[..1].to_vec() } else { models };
    let tokens = match args.tokens.as_slice() {
        [] if on_cpu => vec![512],
        [] => vec![512, 2048],
        typed => typed.to_vec(),
    };
    let found = measure(&gpu, &models, &tokens, args)?;
    let caps = gpu.caps();
    let mut all = kept(caps).unwrap_or_default();
    let n = found.len();
    all.merge(found);
    let path = path(caps);
    if let Some(dir) = path.parent() {
        std::fs::create_dir_all(dir).map_err(|e| Error::file(dir, e))?;
    }
    let kept = Kept { version: env!("CARGO_PKG_VERSION").into(), driver: caps.driver.clone(), fastest: all };
    let text = serde_json::to_string_pretty(&kept).map_err(|e| Error::file(&path, e))?;
    // A user may keep the cache's files elsewhere.
    let place = follow_links(&path).map_err(|reason| Error::file(&path, reason))?;
    write_text(&place, &text)?;
    if args.json {
        return say!("{text}");
    }
    say!("{n} classes kept in {}", path.display())
}

fn measure(gpu: &Gpu, models: &[ModelShape], tokens: &[usize], args: &TuneArgs) -> Result<Tuning> {
    let mut progress = None;
    let mut told = Ok(());
    let name = |v: Option<Variant>| v.map_or("baseline", Variant::name);
    let tuning = pollster::block_on(tune(gpu, models, tokens, args.seconds, &mut |tuned: &Tuned, total| {
        let progress = progress.get_or_insert_with(|| ProgressReporter::items("tuning", total));
        progress.advance(1);
        if args.json || told.is_err() {
            return;
        }
        let times: Vec<String> = tuned.us.iter().map(|&(v, us)| format!("{} {us:.0}", name(v))).collect();
        told = progress.suspend(|| say!("{:<36} {:<10} {} us", tuned.class, name(tuned.fastest()), times.join(", ")));
    }))?;
    told?;
    Ok(tuning)
}
