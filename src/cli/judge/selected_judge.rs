//! Judges, selected by flags.

use serde_json::{Map, Value, json};

use crate::cli::screen::Terminal;
use crate::data::comparisons::ComparisonKind;
use crate::data::named_templates::run_time;
use crate::data::prompt_template::Template;
use crate::error::{Error, Result};
use crate::eval::generate::GenerateSettings;
use crate::eval::journal::{ANSWERS, kept_identity};
use crate::eval::judge::Judge;
use crate::eval::judge::command::CommandJudge;
use crate::eval::judge::endpoint::EndpointDefaults;
use crate::eval::judge::endpoint::{AnswerFormat, ApiKey, Endpoint, EndpointSettings};
use crate::eval::judge::generating::GeneratingJudge;
use crate::eval::judge::grader::Grader;
use crate::eval::judge::local::{LocalJudge, begins_with_thoughts};
use crate::eval::judge::person::HumanJudge;
use crate::eval::judge::prompt::JudgePrompt;
use crate::flags::resolve_template;
use crate::flags::{AnswerArg, JudgeArgs, judge_checks};
use crate::gpu::Gpu;
use crate::kernels::sample::Sampling;
use crate::model::load::LoadOptions;
use crate::model::peft::Adapter;
use crate::model::scores::DEFAULT_SCORE_TOKENS;
use crate::workflow::{ChatTemplateChoice, OpenModel, weights_digest};

/// Judge that the flags select. A local model is read and verified, but not yet on a device.
pub enum SelectedJudge {
    Endpoint(Box<Endpoint>),
    Here(Box<dyn Judge>),
    Local { model: Box<OpenModel>, prompt: JudgePrompt },
}

impl SelectedJudge {
    /// Opens the judge that the flags select. Exactly one is named ([`judge_checks::one_judge`]).
    ///
    /// # Errors
    /// [`Error::Flag`], and those of the judge's prompt and model.
    pub fn from_flags(args: &JudgeArgs, mode: ComparisonKind) -> Result<Self> {
        let prompt = match &args.ask.prompt {
            Some(path) => JudgePrompt::read(path, mode)?,
            None => JudgePrompt::default_for(mode),
        };
        if args.ask.endpoint.is_some() {
            return Ok(Self::Endpoint(Box::new(endpoint(args, prompt)?)));
        }
        if let Some(command) = &args.ask.command {
            let timeout = judge_checks::seconds("timeout", args.ask.timeout.unwrap_or(EndpointDefaults::TIMEOUT))?;
            let concurrency = args.ask.concurrency.unwrap_or(1);
            return Ok(Self::Here(Box::new(CommandJudge { command: command.clone(), timeout, concurrency, prompt })));
        }
        if args.ask.person {
            let name = args.ask.judge_name.clone().unwrap_or_else(|| "person".into());
            let screen = Terminal::open()?;
            return Ok(Self::Here(Box::new(HumanJudge { screen, name, seed: args.seed.unwrap_or(0) })));
        }
        if args.ask.grader {
            return Ok(Self::Here(Box::new(Grader { noise: args.ask.grader_noise.unwrap_or(0.0) })));
        }
        Ok(Self::Local { model: Box::new(args.model.open()?), prompt })
    }

    /// Calls `then` with the judge. A local model is on the device for that time; the device is opened if `gpu` is `None`.
    ///
    /// # Errors
    /// Those of the device, of the model, and of `then`.
    pub fn with<T>(
        &self,
        args: &JudgeArgs,
        gpu: &mut Option<Gpu>,
        then: impl FnOnce(&dyn Judge, Option<&Endpoint>) -> Result<T>,
    ) -> Result<T> {
        match self {
            Self::Endpoint(endpoint) => then(&**endpoint, Some(endpoint)),
            Self::Here(judge) => then(&**judge, None),
            Self::Local { model, prompt } => {
                let gpu = Gpu::get_or_open(gpu, &args.model.device.options()?)?;
                let adapter = args.model.adapter.as_deref();
                let mut adapter = adapter.map(|place| model.open_adapter(place)).transpose()?;
                let local = local(args, model, &mut adapter, gpu, prompt.clone())?;
                match args.ask.answer {
                    Some(AnswerArg::Generate) => then(&generating(args, local)?, None),
                    Some(AnswerArg::Letter) | None => then(&local, None),
                }
            }
        }
    }
}

fn endpoint(args: &JudgeArgs, prompt: JudgePrompt) -> Result<Endpoint> {
    let model =
        args.ask.judge_model.clone().ok_or_else(|| Error::flag("judge-model", "is missing: the model's name there"))?;
    let extra: Map<String, Value> = match &args.ask.request {
        Some(text) => {
            serde_json::from_str(text).map_err(|e| Error::flag("request", format!("not a JSON object: {e}")))?
        }
        None => Map::new(),
    };
    let answer_format = args.ask.answer_format.map_or(AnswerFormat::Auto, AnswerFormat::from);
    let longest = match answer_format {
        AnswerFormat::Auto => EndpointDefaults::MAX_TOKENS,
        AnswerFormat::Json => EndpointDefaults::MAX_TOKENS_JSON,
        AnswerFormat::Letter => EndpointDefaults::MAX_TOKENS_LETTER,
    };
    let settings = EndpointSettings {
        url: args.ask.endpoint.clone().unwrap_or_default(),
        model,
        temperature: Some(args.temperature.unwrap_or(0.0)),
        max_tokens: args.max_tokens.unwrap_or(longest),
        answer_format,
        extra,
        concurrency: args.ask.concurrency.unwrap_or(EndpointDefaults::CONCURRENCY),
        retries: args.ask.retries.unwrap_or(EndpointDefaults::RETRIES),
        timeout: judge_checks::seconds("timeout", args.ask.timeout.unwrap_or(EndpointDefaults::TIMEOUT))?,
        backoff: judge_checks::seconds("backoff", args.ask.backoff.unwrap_or(EndpointDefaults::BACKOFF))?,
        max_wait: judge_checks::seconds("max-wait", args.ask.max_wait.unwrap_or(EndpointDefaults::MAX_WAIT))?,
        requests_per_minute: args.ask.requests_per_minute.unwrap_or(0.0),
        tokens_per_minute: args.ask.tokens_per_minute.unwrap_or(0.0),
    };
    let endpoint = Endpoint::new(settings, prompt, ApiKey::from_environment(args.ask.api_key_env.as_deref())?)?;
    if endpoint.is_in_clear() {
        note!("warning: the key crosses the network unencrypted: the endpoint is http://");
    }
    Ok(endpoint)
}

/// Setting of a local judge: the time that its chat template prints, if it prints one.
const TIME: &str = "time";

/// Returns the time that a local judge's chat template printed when it gave the answers in the output folder.
fn kept_time(args: &JudgeArgs) -> Option<u64> {
    let dir = args.output_dir.as_ref().filter(|_| args.resume)?;
    kept_identity(&dir.join(ANSWERS))?.get("settings")?.get(TIME)?.as_u64()
}

/// Loads a local judge onto the device. The adapter's weights are moved out of `adapter`.
fn local<'g>(
    args: &JudgeArgs,
    model: &OpenModel,
    adapter: &mut Option<Adapter>,
    gpu: &'g Gpu,
    prompt: JudgePrompt,
) -> Result<LocalJudge<'g>> {
    let chat = ChatTemplateChoice { template: args.chat_template.as_deref(), time: kept_time(args).or(args.time) };
    let tokenizer = model.chat_tokenizer(adapter.as_ref(), chat)?;
    let templates = tokenizer.chat_templates();
    let template = match (&args.template, chat.template) {
        (None, None) if templates.is_empty() => Template::None,
        (None, None) => Template::Chat,
        (name, chosen) => resolve_template(name.as_deref(), chosen)?,
    };
    tokenizer.check_template(&template)?;
    let mut settings = json!({"base_dtype": model.base.name(), "template": format!("{template:?}")});
    if template == Template::Chat {
        settings["chat_template"] = json!(templates.digest());
        if templates.prints_time() {
            settings[TIME] = json!(chat.time.unwrap_or_else(run_time));
        }
    }
    let positions = model.description.max_positions;
    let max_length = args.max_length.unwrap_or(positions);
    if max_length < 2 || max_length > positions {
        let reason = format!("{max_length} is not in 2 .. {positions}, the model's positions");
        return Err(Error::flag("max-length", reason));
    }
    let weights = weights_digest(model, &model.checkpoint.digest()?, adapter.as_ref());
    if args.ask.answer != Some(AnswerArg::Generate) && begins_with_thoughts(&tokenizer, &template) {
        note!(
            "note: {} thinks before it answers, and is asked for its first letter without: --answer generate lets it think",
            model.name
        );
    }
    let options = LoadOptions::frozen(model.base, adapter.as_mut().map(|a| std::mem::take(&mut a.lora)), max_length);
    Ok(LocalJudge {
        gpu,
        decoder: model.load(gpu, &options)?,
        weights,
        settings,
        tokenizer,
        template,
        prompt,
        max_length,
        max_tokens: args.ask.batch_tokens.unwrap_or(DEFAULT_SCORE_TOKENS),
        name: model.name.clone(),
    })
}

/// Makes a local judge that writes its answers.
fn generating<'g>(args: &JudgeArgs, local: LocalJudge<'g>) -> Result<GeneratingJudge<'g>> {
    let most = local.max_length;
    let max_new_tokens = args.max_tokens.map_or((EndpointDefaults::MAX_TOKENS as usize).min(most / 2), |n| n as usize);
    if max_new_tokens >= most {
        let reason = format!(
            "{max_new_tokens} leaves no room for a question: they have {most} positions together (--max-length)"
        );
        return Err(Error::flag("max-tokens", reason));
    }
    let settings = GenerateSettings {
        sampling: Sampling { temperature: 0.0, top_k: 0, top_p: 1.0 },
        max_new_tokens,
        seed: 0,
        eos: local.tokenizer.stop_ids().to_vec(),
        with_lora: true,
    };
    Ok(GeneratingJudge { local, settings })
}
