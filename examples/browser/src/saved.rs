//! Saved states of runs, and the files that are made of them without a device.

use jointwise::model::description::ModelConfig;
use jointwise::model::peft::{Adapter, encode_adapter};
use jointwise::model::save::OutputDtype;
use jointwise::model::side_files::CONFIG;
use jointwise::model::tensor_file::TensorFile;
use jointwise::report::{self, Report};
use jointwise::train::metrics::MetricsLine;
use jointwise::train::state::TrainingState;
use jointwise::{Error, Result};
use serde::Serialize;
use web_time::{Duration, UNIX_EPOCH};

use crate::settings::Settings;

/// Returns the error of a call that comes too early.
pub(crate) fn missing(what: &str) -> Error {
    Error::Device(format!("{what} first"))
}

/// Saved state of a run, from which it can continue.
pub struct Kept {
    /// JSON text with the run's step, token count and reference scores.
    pub state: String,
    /// Trained tensors and their moments, as safetensors.
    pub arena: Vec<u8>,
}

/// JSON form of [`Kept::state`].
#[derive(Serialize, serde::Deserialize)]
pub(crate) struct KeptState {
    pub state: TrainingState,
    /// Reference scores of each example's sequences; `None` for an example without scores so far.
    pub reference: Vec<Option<[f64; 2]>>,
    /// Facts for [`saved_files`]. Version 1 of the page did not save them.
    #[serde(default)]
    pub facts: Option<SavedFacts>,
}

/// Facts about a run, from which its files can be made without its model and without a device.
#[derive(Debug, Clone, Serialize, serde::Deserialize)]
pub(crate) struct SavedFacts {
    /// Name of the model.
    pub model: String,
    /// Text of the model's config.json.
    pub config: String,
    /// Name of the device.
    pub device: String,
    /// Summary of the rows.
    pub data: String,
}

pub(crate) fn render_report(
    model: String,
    device: String,
    data: String,
    adapter: &Adapter,
    lines: Vec<MetricsLine>,
    started: f64,
) -> String {
    let trained: usize = adapter.lora.modules.values().map(|(a, b)| a.len() + b.len()).sum();
    let seconds = lines.iter().filter_map(|l| l.get("seconds")?.as_f64()).sum();
    report::render(&Report {
        title: "Preference tuning in a browser".into(),
        model,
        device,
        parameters: format!("{trained} trained"),
        data,
        started: report::utc(UNIX_EPOCH + Duration::from_secs_f64(started)),
        seconds,
        lines,
        ..Report::default()
    })
}

/// Returns an adapter's files in PEFT's format, with the values of a saved state.
pub(crate) fn adapter_files(
    d: &ModelConfig,
    adapter: &Adapter,
    arena: Vec<u8>,
) -> Result<Vec<(&'static str, Vec<u8>)>> {
    let file = TensorFile::from_content("state.safetensors", Box::new(arena))?;
    let values = &mut |name: &str| {
        let name = format!("param/{name}");
        let stored = file.tensors().get(&name).ok_or_else(|| Error::tensor(file.path(), &name, "is missing"))?;
        file.values(&name, stored)
    };
    Ok(encode_adapter(&adapter.config, d, &adapter.lora, OutputDtype::F32, values)?.into())
}

/// Returns the adapter's files and `report.html` of a run's saved state, without a device and without the model's weights.
///
/// # Errors
/// The state is damaged, or version 1 of the page saved it, which did not save the model's configuration.
pub fn saved_files(
    kept: Kept,
    settings: &Settings,
    lines: Vec<MetricsLine>,
    started: f64,
) -> Result<Vec<(&'static str, Vec<u8>)>> {
    let known: KeptState = serde_json::from_str(&kept.state).map_err(|e| Error::file("state.json", e))?;
    let facts = known.facts.ok_or_else(|| missing("load the run's model"))?;
    let description = ModelConfig::from_json(CONFIG, &facts.config)?;
    let adapter = Adapter::new(&description, &settings.lora, &facts.model, settings.seed)?;
    let mut files = adapter_files(&description, &adapter, kept.arena)?;
    let report = render_report(facts.model, facts.device, facts.data, &adapter, lines, started);
    files.push(("report.html", report.into_bytes()));
    Ok(files)
}
