//! What most commands begin with: a model folder, its tokenizer, its weights on a device, rows as tokens.

use std::path::Path;
use std::rc::Rc;

use sha2::{Digest, Sha256};

use super::args::{BadRowArg, DataArgs, DeviceArgs, ModelArgs, ObjectiveArgs, OverflowArg};
use super::cache_folder::cache_folder;
use super::{checked, device_notes, tuning_cache};
use crate::data::bad_rows::BadRows;
use crate::data::dataset::DEFAULT_MAX_LENGTH;
use crate::data::dataset::{Dataset, Limits, Overflow};
use crate::data::named_templates::run_time;
use crate::data::rows::Purpose;
use crate::data::template::Template;
use crate::data::tokens::Tokenizer;
use crate::error::{Error, Result};
use crate::eval::generate::eos_ids;
use crate::gpu::{DeviceChoice, Gpu, MatmulPrecision, Variant};
use crate::model::checkpoint::Checkpoint;
use crate::model::decoder::Decoder;
use crate::model::description::{Description, Module};
use crate::model::hub;
use crate::model::load::{LoadOptions, LoraSpec, Trained, linear_modules};
use crate::model::peft::Adapter;
use crate::model::side_files::{CONFIG, SideFiles, TOKENIZER};
use crate::model::weights::{BaseDtype, Source, Training};
use crate::objective::{Loss, Preference};
use crate::train::settings::ReferenceChoice;
use crate::validate::not_negative;

/// A model folder that was read and verified; its weights stay on disk.
pub struct Model {
    /// As the user named it.
    pub name: String,
    /// Resolved.
    pub description: Description,
    /// Verified against the description.
    pub checkpoint: Rc<Checkpoint>,
    /// What the folder holds besides weights, as it was when the model was opened.
    pub side: SideFiles,
    /// How frozen linear weights are held.
    pub base: BaseDtype,
}

impl Model {
    /// A local folder or a hub id.
    pub fn open(name: &str, base: BaseDtype) -> Result<Self> {
        let dir = hub::resolve(name)?;
        let side = SideFiles::read(&dir);
        let mut description = Description::from_json(side.path(CONFIG), side.required(CONFIG)?)?;
        let mut checkpoint = Checkpoint::open(&dir)?;
        checkpoint.settle_tying(&mut description)?;
        let unknown = checkpoint.verify(&description)?;
        checkpoint.notes().iter().chain(&unknown).for_each(|note| note!("note: {note}"));
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
        Ok(Self { name: name.into(), description, checkpoint: Rc::new(checkpoint), side, base })
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

    /// The adapter of `--adapter`, a folder or a hub id, if there is one.
    pub fn adapter(&self, place: Option<&Path>) -> Result<Option<Adapter>> {
        let Some(place) = place else { return Ok(None) };
        let dir = hub::resolve_adapter(place)?;
        let adapter = Adapter::open_on(&dir, &self.description, Some(&self.checkpoint))?;
        adapter.notes.iter().for_each(|note| note!("note: {}: {note}", dir.display()));
        Ok(Some(adapter))
    }

    /// Its side files, with the tokenizer of an adapter's folder in place of its own.
    pub fn side_files(&self, adapter: Option<&Adapter>) -> SideFiles {
        adapter.map_or_else(|| self.side.clone(), |adapter| self.side.with_tokenizer_of(&adapter.side))
    }

    /// The side files of an adapter whose folder has a tokenizer's files, and not the model's own.
    pub fn own_tokenizer<'a>(&self, adapter: Option<&'a Adapter>) -> Option<&'a SideFiles> {
        let side = adapter.map(|adapter| &adapter.side).filter(|side| side.has_tokenizer_files())?;
        (!side.has_same_tokenizer_files(&self.side)).then_some(side)
    }

    /// The tokenizer: that of the adapter's folder where it has one, else the model's own.
    pub fn tokenizer(&self, adapter: Option<&Adapter>) -> Result<Tokenizer> {
        let mut tokenizer = Tokenizer::from_side_files(&self.side_files(adapter))?;
        if let Some(own) = self.own_tokenizer(adapter) {
            self.compare_tokenizers(&tokenizer, own)?;
        }
        tokenizer.check_vocab(self.description.vocab)?;
        for note in tokenizer.notes() {
            note!("note: {note}");
        }
        Ok(tokenizer)
    }

    /// Says where the tokenizer of an adapter's folder is not the base's. One with tokens beyond the embedding is refused.
    fn compare_tokenizers(&self, tokenizer: &Tokenizer, own: &SideFiles) -> Result<()> {
        let base = self.side.has(TOKENIZER).then(|| Tokenizer::from_side_files(&self.side)).transpose()?;
        let place = own.path("").display().to_string();
        let (place, rows) = (place.trim_end_matches('/'), self.description.vocab);
        let beyond = tokenizer.added_beyond(base.as_ref(), rows);
        if let Some(last) = beyond.last() {
            let (n, needs) = (beyond.len(), *last as usize + 1);
            let reason = format!(
                "its tokenizer has {n} added tokens and needs {needs} ids, the base model's embedding has {rows} rows: give --model the base that was resized and saved with them"
            );
            return Err(Error::file(own.path(TOKENIZER), reason));
        }
        let Some(base) = base else {
            note!("note: {place}: the adapter's own tokenizer is used; the base's folder has none");
            return Ok(());
        };
        if !own.has_template() && self.side.has_template() {
            note!("note: {place}: the adapter's tokenizer has no chat template: the base's is used");
        }
        let differences = tokenizer.differences(&base);
        if !differences.is_empty() {
            let what = differences.join(", ");
            note!("note: {place}: the adapter's own tokenizer is used, which differs from the base's in {what}");
        }
        Ok(())
    }

    /// Tokens that end a response, see [`eos_ids`].
    pub fn stop_ids(&self, adapter: Option<&Adapter>, tokenizer: &Tokenizer) -> Result<Vec<u32>> {
        eos_ids(&self.side_files(adapter), tokenizer.eos_id(), self.description.vocab)
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
    device_notes::set(&gpu);
    let gpu = match tuning_cache::kept(gpu.caps()) {
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

/// SHA-256 of a model's digest, an adapter's, and the tokenizer that the adapter brings: what they are, wherever they lie.
pub fn weights_digest(model: &Model, base: &str, adapter: Option<&Adapter>) -> String {
    let mut hash = Sha256::new();
    hash.update(base);
    adapter.iter().for_each(|adapter| hash.update(&adapter.digest));
    model.own_tokenizer(adapter).iter().for_each(|own| hash.update(own.tokenizer_digest()));
    hash.finalize().iter().take(16).map(|byte| format!("{byte:02x}")).collect()
}

/// Which chat template renders conversations, and the time that it prints.
#[derive(Debug, Clone, Copy, Default)]
pub struct ChatChoice<'a> {
    /// `--chat-template`.
    pub template: Option<&'a str>,
    /// Seconds since 1970; `None`: the program's start.
    pub time: Option<u64>,
}

impl DataArgs {
    /// The chat template of the flags.
    pub fn chat(&self) -> ChatChoice<'_> {
        ChatChoice { template: self.chat_template.as_deref(), time: self.time }
    }
}

/// Reads a model's tokenizer, or that of an adapter's folder, with the chat template of the flags.
pub fn tokenizer(model: &Model, adapter: Option<&Adapter>, chat: ChatChoice<'_>) -> Result<Tokenizer> {
    let mut tokenizer = model.tokenizer(adapter)?;
    chat.template.map_or(Ok(()), |value| tokenizer.choose_chat_template(value))?;
    tokenizer.chat_templates().set_time(chat.time.unwrap_or_else(run_time));
    tokenizer.set_stop_ids(model.stop_ids(adapter, &tokenizer)?);
    Ok(tokenizer)
}

/// Reads the tokenizer of a command that reads rows, with or without an end behind them.
pub fn row_tokenizer(args: &DataArgs, model: &Model, adapter: Option<&Adapter>) -> Result<Tokenizer> {
    dated_tokenizer(args, model, adapter, args.chat())
}

/// Like [`row_tokenizer`], with the time that a run has kept.
pub fn dated_tokenizer(
    args: &DataArgs,
    model: &Model,
    adapter: Option<&Adapter>,
    chat: ChatChoice<'_>,
) -> Result<Tokenizer> {
    let tokenizer = tokenizer(model, adapter, chat)?;
    Ok(if args.no_eos { tokenizer.without_end() } else { tokenizer })
}

/// Refuses to train on responses whose end could not be learnt, unless that is asked for. A chat template has an end of its own.
pub fn require_end(args: &DataArgs, tokenizer: &Tokenizer, model: &Model) -> Result<()> {
    let is_chat = template(args.template.as_deref(), args.chat_template.as_deref())? == Template::Chat;
    if tokenizer.eos_id().is_some() || args.no_eos || is_chat {
        return Ok(());
    }
    let reason = format!(
        "{}: neither the tokenizer nor config.json names an EOS, so the end of a response would not be learnt: add eos_token to tokenizer_config.json, or train without an end with --no-eos",
        model.name
    );
    Err(Error::flag("model", reason))
}

/// The template of `--template` and `--chat-template`, which implies `chat`; without them each row's form decides.
pub fn template(name: Option<&str>, chat_template: Option<&str>) -> Result<Template> {
    let template = Template::parse(name.unwrap_or(if chat_template.is_some() { "chat" } else { "by-rows" }))?;
    if chat_template.is_some() && template != Template::Chat {
        return Err(Error::flag("chat-template", "goes with --template chat"));
    }
    Ok(template)
}

/// Refuses `--last-turn-only` where it would change nothing: without texts to imitate (`sft`).
pub fn check_last_turn_only(args: &DataArgs, sft: bool) -> Result<()> {
    match args.last_turn_only && !sft {
        true => {
            Err(Error::flag("last-turn-only", "goes with sft: preferences and labels are of what follows the prompt"))
        }
        false => Ok(()),
    }
}

/// Gives what happens to bad rows, as resolved.
pub fn bad_rows(args: &DataArgs) -> Result<BadRows> {
    match (args.on_bad_row.unwrap_or(BadRowArg::Error), args.max_bad_rows) {
        (BadRowArg::Skip, limit) => Ok(BadRows::Skip(limit.unwrap_or_default())),
        (BadRowArg::Error, None) => Ok(BadRows::Error),
        (BadRowArg::Error, Some(_)) => Err(Error::flag("max-bad-rows", "goes with --on-bad-row skip")),
    }
}

/// Template and limits as resolved.
pub fn limits(args: &DataArgs, d: &Description) -> Result<(Template, Limits)> {
    let template = template(args.template.as_deref(), args.chat_template.as_deref())?;
    let max_length = args.max_length.unwrap_or(DEFAULT_MAX_LENGTH.min(d.max_positions));
    if max_length < 2 || max_length > d.max_positions {
        let reason = format!("{max_length} is not in 2 .. {}, the model's positions", d.max_positions);
        return Err(Error::flag("max-length", reason));
    }
    let overflow = match (args.on_overflow, args.paper_compat) {
        (Some(_), true) => return Err(Error::flag("paper-compat", "cannot be used with --on-overflow")),
        (None, true) => Overflow::Paper,
        (None | Some(OverflowArg::Drop), false) => Overflow::Drop,
        (Some(OverflowArg::TruncatePrompt), false) => Overflow::TruncatePrompt,
        (Some(OverflowArg::TruncateResponse), false) => Overflow::TruncateResponse,
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

/// The model of a reference that is another checkpoint, opened once: what is hashed is what scores.
pub fn reference_model(choice: &ReferenceChoice, policy: &Model) -> Result<Option<Model>> {
    let ReferenceChoice::Model(name) = choice else { return Ok(None) };
    let model = Model::reference(name, policy.base)?;
    let (theirs, ours) = (model.description.vocab, policy.description.vocab);
    if theirs != ours {
        return Err(Error::flag("reference", format!("{name} has {theirs} tokens, the policy {ours}")));
    }
    Ok(Some(model))
}

/// The longest sequence of some data.
pub fn longest(data: &Dataset) -> usize {
    data.examples.iter().flat_map(|e| &e.sequences).map(|s| s.ids.len()).max().unwrap_or(1)
}
