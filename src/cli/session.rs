//! What most commands begin with: a model folder, its tokenizer, its weights on a device, rows as tokens.

use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Mutex;

use indicatif::ProgressBar;

use super::args::{DataArgs, DeviceArgs, ModelArgs, ObjectiveArgs, OverflowArg};
use super::train::bar;
use super::{checked, tune};
use crate::config::{Defaults, ReferenceChoice, not_negative};
use crate::data::dataset::{Dataset, Limits, Overflow};
use crate::data::rows::{FieldMap, Purpose, read_rows};
use crate::data::template::Template;
use crate::data::tokens::Tokenizer;
use crate::error::{Error, Result};
use crate::eval::generate::{GENERATION_CONFIG, eos_ids};
use crate::gpu::{DeviceChoice, Gpu, MatmulPrecision, Variant};
use crate::model::checkpoint::Checkpoint;
use crate::model::decoder::Decoder;
use crate::model::description::{Description, Module};
use crate::model::folder::{MAX_CONFIG_BYTES, read_inside, read_optional};
use crate::model::hub;
use crate::model::load::{LoadOptions, LoraSpec, Trained, linear_modules};
use crate::model::peft::Adapter;
use crate::model::weights::{BaseDtype, Source, Training};
use crate::objective::{Loss, Preference};

/// A model folder that was read and verified; its weights stay on disk.
pub struct Model {
    /// The folder.
    pub dir: PathBuf,
    /// As the user named it.
    pub name: String,
    /// Resolved.
    pub description: Description,
    /// Verified against the description.
    pub checkpoint: Rc<Checkpoint>,
    /// How frozen linear weights are held.
    pub base: BaseDtype,
}

impl Model {
    /// A local folder or a hub id.
    pub fn open(name: &str, base: BaseDtype) -> Result<Self> {
        let dir = hub::resolve(name)?;
        let text = read_inside(&dir, "config.json", MAX_CONFIG_BYTES)?;
        let description = Description::from_json(dir.join("config.json"), &text)?;
        let checkpoint = Checkpoint::open(&dir)?;
        checkpoint.verify(&description)?;
        if let Some(storage) = base.quantised() {
            let modules: Vec<&Module> = linear_modules(&description).collect();
            let unfit = modules.iter().filter(|m| !m.n_in.is_multiple_of(storage.columns())).count();
            if unfit > 0 {
                let (all, columns, base) = (modules.len(), storage.columns(), base.name());
                note!(
                    "note: {unfit} of {all} linear weights are held as bf16: their columns are no multiple of {columns}, as {base} needs"
                );
            }
        }
        Ok(Self { dir, name: name.into(), description, checkpoint: Rc::new(checkpoint), base })
    }

    /// The model of `--model`, which must be there.
    pub fn of(args: &ModelArgs) -> Result<Self> {
        Self::named(args.model.as_deref(), args.base_dtype.unwrap_or_default())
    }

    /// The same, of a command that has no other flag of [`ModelArgs`].
    pub fn named(name: Option<&str>, base: BaseDtype) -> Result<Self> {
        let name = name.ok_or_else(|| Error::flag("model", "is missing: a Hugging Face folder or hub id"))?;
        Self::open(name, base)
    }

    /// The model of `--reference`, held as the policy's base is.
    pub fn reference(name: &str, base: BaseDtype) -> Result<Self> {
        Self::open(name, base).map_err(|error| match error {
            Error::Flag { flag: "model", reason } => Error::flag("reference", reason),
            other => other,
        })
    }

    /// The adapter of `--adapter`, if there is one.
    pub fn adapter(&self, dir: Option<&Path>) -> Result<Option<Adapter>> {
        let Some(dir) = dir else { return Ok(None) };
        let adapter = Adapter::open(dir, &self.description)?;
        if !adapter.absent.is_empty() {
            let names = adapter.absent.join(", ");
            note!("note: {}: target_modules that this model does not have: {names}", dir.display());
        }
        Ok(Some(adapter))
    }

    /// Its tokenizer.
    pub fn tokenizer(&self) -> Result<Tokenizer> {
        let mut tokenizer = Tokenizer::load(&self.dir)?;
        tokenizer.check_vocab(self.description.vocab)?;
        for note in tokenizer.notes() {
            note!("note: {note}");
        }
        Ok(tokenizer)
    }

    /// Tokens that end a response, see [`eos_ids`].
    pub fn stop_ids(&self, tokenizer: &Tokenizer) -> Result<Vec<u32>> {
        let config = read_optional(&self.dir, GENERATION_CONFIG, MAX_CONFIG_BYTES)?;
        eos_ids(&self.dir.join(GENERATION_CONFIG), config.as_deref(), tokenizer.eos_id(), self.description.vocab)
    }

    /// Onto a device.
    pub fn load(&self, gpu: &Gpu, options: &LoadOptions) -> Result<Decoder> {
        let source: Rc<dyn Source> = self.checkpoint.clone();
        Decoder::load(gpu, &self.description, &source, options)
    }
}

/// For scoring and generation: nothing is trained.
pub fn frozen(base: BaseDtype, lora: Option<LoraSpec>, n_positions: usize) -> LoadOptions {
    LoadOptions { trained: Trained::Nothing, lora, training: Training::NONE, n_positions, base }
}

/// Where every weight takes gradients: quantised ones cannot.
pub fn refuse_quantised(base: BaseDtype, what: &str) -> Result<()> {
    match base.quantised() {
        Some(_) => Err(Error::flag(
            "base-dtype",
            format!("{} is for weights that are not trained; {what} has none", base.name()),
        )),
        None => Ok(()),
    }
}

/// Where things are kept that cost time alone when they are lost.
pub fn cache_folder() -> PathBuf {
    let home = std::env::var_os("XDG_CACHE_HOME").or_else(|| std::env::var_os("LOCALAPPDATA")).map(PathBuf::from);
    let home = home.or_else(|| std::env::var_os("HOME").map(|h| PathBuf::from(h).join(".cache")));
    home.unwrap_or_else(std::env::temp_dir).join("jointwise")
}

/// Opens the device, with the variants and the precision that the flags ask for.
pub fn open_unchecked(args: &DeviceArgs) -> Result<Gpu> {
    let variants = args.variant.as_deref().map(Variant::parse_list).transpose()?;
    let choice = args.device.as_deref().map_or(DeviceChoice::Best, DeviceChoice::parse);
    let mut gpu = match &args.matmul_precision {
        Some(name) => pollster::block_on(Gpu::open_for(&choice, MatmulPrecision::parse(name)?))?,
        None => pollster::block_on(Gpu::open(&choice))?,
    };
    for note in gpu.notes() {
        note!("note: {note}");
    }
    gpu.keep_pipelines(&cache_folder().join("pipelines"));
    let shown = Mutex::new(ProgressBar::hidden());
    gpu.on_compile(Some(Box::new(move |done, total| {
        let mut shown = shown.lock().unwrap_or_else(|e| e.into_inner());
        if done == 1 {
            *shown = bar(total, "compiling kernels");
        }
        shown.set_position(done as u64);
        if done == total {
            shown.finish_and_clear();
        }
    })));
    let gpu = match tune::kept(gpu.caps()) {
        Some(tuning) => gpu.with_tuning(tuning),
        None => gpu,
    };
    Ok(match variants {
        Some(variants) => gpu.with_variants(variants),
        None => gpu,
    })
}

/// Opens the device with the variants that compute rightly, and says so when it is a CPU.
pub fn open_gpu(args: &DeviceArgs) -> Result<Gpu> {
    let (gpu, off) = checked::once(open_unchecked(args)?)?;
    for variant in off {
        note!(
            "warning: the kernels `{}` compute wrongly on {}: they are switched off",
            variant.name(),
            gpu.caps().name
        );
    }
    if gpu.caps().is_cpu {
        note!("note: no GPU is used: {} computes on the CPU, which is slow", gpu.caps().name);
        if gpu.caps().driver.contains("Mesa 22.") {
            note!(
                "note: Mesa 22 is a quarter as fast as Mesa 25 on CPUs without AVX-512 (make demo and make test fetch the latter)"
            );
        }
    }
    Ok(gpu)
}

/// The device that is open, or [`open_gpu`]'s.
pub fn opened<'g>(gpu: &'g mut Option<Gpu>, args: &DeviceArgs) -> Result<&'g Gpu> {
    match gpu {
        Some(gpu) => Ok(gpu),
        none => Ok(none.insert(open_gpu(args)?)),
    }
}

/// Rows as tokens.
pub fn dataset(
    args: &DataArgs,
    files: &[PathBuf],
    model: &Model,
    tokenizer: &Tokenizer,
    purpose: Purpose,
) -> Result<Dataset> {
    let (template, limits) = limits(args, &model.description)?;
    if files.is_empty() {
        return Err(Error::flag("data", "is missing: a file of rows"));
    }
    let map = FieldMap::parse(&args.map)?;
    let mut rows = Vec::new();
    for file in files {
        rows.extend(read_rows(file, &map, purpose)?);
    }
    let data = Dataset::build(&rows, tokenizer, &template, limits)?;
    for note in data.notes.iter().take(5) {
        note!("note: {}: {}", data.place(note.row), note.reason);
    }
    note!("{}", data.summary());
    Ok(data)
}

/// Template and limits as resolved.
pub fn limits(args: &DataArgs, d: &Description) -> Result<(Template, Limits)> {
    let template = Template::parse(args.template.as_deref().unwrap_or("paper"))?;
    let max_length = args.max_length.unwrap_or(Defaults::MAX_LENGTH.min(d.max_positions));
    if max_length < 2 || max_length > d.max_positions {
        let reason = format!("{max_length} is not in 2 .. {}, the model's positions", d.max_positions);
        return Err(Error::flag("max-length", reason));
    }
    let overflow = match (args.on_overflow, args.paper_compat) {
        (Some(_), true) => return Err(Error::flag("paper-compat", "cannot be used with --on-overflow")),
        (None, true) => Overflow::Paper,
        (None | Some(OverflowArg::Drop), false) => Overflow::Drop,
        (Some(OverflowArg::TruncatePrompt), false) => Overflow::TruncatePrompt,
        (Some(OverflowArg::Error), false) => Overflow::Error,
    };
    Ok((template, Limits { max_length, overflow }))
}

/// The loss as resolved.
pub fn preference(args: &ObjectiveArgs) -> Result<Preference> {
    let base = Preference::default();
    let sft_weight = args.sft_weight.unwrap_or(0.0);
    not_negative("sft-weight", sft_weight)?;
    let p = Preference {
        objective: args.objective.unwrap_or(base.objective),
        loss: args.loss.unwrap_or(base.loss).plus(Loss::Sft, sft_weight),
        beta: args.beta.unwrap_or(base.beta),
        label_smoothing: args.label_smoothing.unwrap_or(base.label_smoothing),
        simpo_gamma: args.simpo_gamma.unwrap_or(base.simpo_gamma),
        rpo_tau: args.rpo_tau.unwrap_or(base.rpo_tau),
        desirable_weight: args.desirable_weight.unwrap_or(base.desirable_weight),
        undesirable_weight: args.undesirable_weight.unwrap_or(base.undesirable_weight),
        reference_free: args.reference_free,
    };
    p.validate()?;
    // A flag that would change nothing is a mistake.
    for (flag, value, loss) in [
        ("simpo-gamma", args.simpo_gamma, Loss::Simpo),
        ("rpo-tau", args.rpo_tau, Loss::Rpo),
        ("desirable-weight", args.desirable_weight, Loss::Kto),
        ("undesirable-weight", args.undesirable_weight, Loss::Kto),
    ] {
        if value.is_some() && !p.loss.has(loss) {
            return Err(Error::flag(flag, format!("goes with --loss {}, not {}", loss.name(), p.loss)));
        }
    }
    Ok(p)
}

/// What rows must be for this loss; `None`: SFT.
pub fn purpose(preference: Option<&Preference>) -> Purpose {
    match preference {
        None => Purpose::Sft,
        Some(p) if p.loss.needs_pairs() => Purpose::Preference,
        Some(_) => Purpose::Judgement,
    }
}

/// The reference as resolved.
pub fn reference(args: &ObjectiveArgs) -> ReferenceChoice {
    args.reference.as_deref().map_or(ReferenceChoice::Initial, ReferenceChoice::parse)
}

/// The longest sequence of some data.
pub fn longest(data: &Dataset) -> usize {
    data.examples.iter().flat_map(|e| &e.sequences).map(|s| s.ids.len()).max().unwrap_or(1)
}
