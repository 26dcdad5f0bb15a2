//! A model to train or to score with.

#[cfg(feature = "native")]
use std::path::Path;
use std::rc::Rc;

use super::open_model::{ChatTemplateChoice, OpenModel};
use crate::data::batch::Example;
use crate::data::conversation::{Instruction, PromptResponse};
use crate::data::prompt_template::Template;
use crate::data::tokens::Tokenizer;
use crate::error::{Error, Result};
use crate::gpu::Gpu;
use crate::model::decoder::Decoder;
use crate::model::description::ModelConfig;
use crate::model::load::LoadOptions;
use crate::model::lora_config::LoraConfig;
use crate::model::peft::{Adapter, new_config};
use crate::model::scores::DEFAULT_SCORE_TOKENS;
use crate::model::weights::BaseDtype;
use crate::objective::Objective;
use crate::train::scoring::{ScoredSequence, score};

/// Options for opening a policy.
///
/// # Examples
/// ```
/// use jointwise::{BaseDtype, Policy, PolicyOptions};
/// let options = PolicyOptions { base_dtype: BaseDtype::Nf4, ..PolicyOptions::default() };
/// let policy = Policy::open_with("models/demo", options)?;
/// # Ok::<(), jointwise::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct PolicyOptions {
    /// Data type of linear weights that are not trained.
    pub base_dtype: BaseDtype,
    /// A Jinja file, or the name of one of the tokenizer's chat templates. `None`: the tokenizer's default.
    pub chat_template: Option<String>,
    /// Time that chat templates print, in seconds since 1970. `None`: the program's start.
    pub chat_time: Option<u64>,
    /// Put EOS behind responses, so that their end is scored and learnt.
    pub append_eos: bool,
}

impl Default for PolicyOptions {
    fn default() -> Self {
        Self { base_dtype: BaseDtype::Auto, chat_template: None, chat_time: None, append_eos: true }
    }
}

/// Low-rank adapter of a policy.
enum PolicyAdapter {
    /// Every parameter of the model is trained.
    None,
    /// A new adapter, made when training begins: its values depend on the recipe's seed.
    New(LoraConfig),
    /// An adapter that was read.
    Read(Rc<Adapter>),
}

/// A model folder with its tokenizer, and perhaps an adapter. Weights stay on disk until a device needs them.
///
/// # Examples
/// ```
/// use jointwise::{LoraConfig, Policy};
/// let policy = Policy::open("models/demo")?.with_lora(LoraConfig::all_linear(16))?;
/// println!("{} layers", policy.description().layers.len());
/// # Ok::<(), jointwise::Error>(())
/// ```
pub struct Policy {
    model: OpenModel,
    adapter: PolicyAdapter,
    tokenizer: Tokenizer,
    options: PolicyOptions,
}

impl std::fmt::Debug for Policy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Policy").field("model", &self.model.name).finish_non_exhaustive()
    }
}

/// Log-probabilities of one response, in nats.
///
/// # Examples
/// ```
/// use jointwise::SequenceScore;
/// fn perplexity(score: &SequenceScore) -> f64 {
///     (-score.joint / score.token_logps.len() as f64).exp()
/// }
/// # let score = SequenceScore { joint: -2.0, conditional: -1.0, token_logps: vec![-1.0; 2] };
/// # assert_eq!(perplexity(&score), 1f64.exp());
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct SequenceScore {
    /// log π(instruction, response): what JPO compares.
    pub joint: f64,
    /// log π(response | instruction): what DPO compares.
    pub conditional: f64,
    /// Log-probability of each token after the first.
    pub token_logps: Vec<f32>,
}

impl From<&ScoredSequence> for SequenceScore {
    fn from(scored: &ScoredSequence) -> Self {
        let [joint, conditional] = [Objective::Jpo, Objective::Dpo].map(|objective| scored.sums.score(objective));
        Self { joint, conditional, token_logps: scored.token_logps.clone() }
    }
}

impl Policy {
    /// Opens a Hugging Face folder, a GGUF file, or a hub id (`org/name`), which is fetched. Without an adapter, training changes every parameter.
    ///
    /// # Errors
    /// [`Error::File`], [`Error::Field`] and [`Error::Tensor`], naming what is missing or at odds with config.json.
    ///
    /// # Examples
    /// ```no_run
    /// // Not run by the test: it fetches the model.
    /// let policy = jointwise::Policy::open("HuggingFaceTB/SmolLM2-135M-Instruct")?;
    /// # Ok::<(), jointwise::Error>(())
    /// ```
    #[cfg(feature = "native")]
    pub fn open(model: &str) -> Result<Self> {
        Self::open_with(model, PolicyOptions::default())
    }

    /// Opens a model with a data type for its weights and a chat template of choice.
    ///
    /// # Errors
    /// Those of [`Self::open`]; [`Error::Flag`] for a chat template that is not there.
    ///
    /// # Examples
    /// ```
    /// use jointwise::{Policy, PolicyOptions};
    /// let policy = Policy::open_with("models/demo", PolicyOptions { append_eos: false, ..PolicyOptions::default() })?;
    /// # assert!(!policy.options().append_eos);
    /// # Ok::<(), jointwise::Error>(())
    /// ```
    #[cfg(feature = "native")]
    pub fn open_with(model: &str, options: PolicyOptions) -> Result<Self> {
        let model = OpenModel::open(model, options.base_dtype)?;
        Self::from_model(model, None, options)
    }

    /// Makes a policy of a model that is open, and of an adapter on it.
    ///
    /// # Errors
    /// [`Error::File`] for a tokenizer that cannot be read; [`Error::Flag`] for a chat template that is not there.
    pub fn from_model(model: OpenModel, adapter: Option<Adapter>, options: PolicyOptions) -> Result<Self> {
        let options = PolicyOptions { base_dtype: model.base, ..options };
        let chat = ChatTemplateChoice { template: options.chat_template.as_deref(), time: options.chat_time };
        let mut tokenizer = model.chat_tokenizer(adapter.as_ref(), chat)?;
        if !options.append_eos {
            tokenizer = tokenizer.without_end();
        }
        let adapter = adapter.map_or(PolicyAdapter::None, |adapter| PolicyAdapter::Read(Rc::new(adapter)));
        Ok(Self { model, adapter, tokenizer, options })
    }

    /// Adds a new low-rank adapter: training changes its matrices alone.
    ///
    /// # Errors
    /// [`Error::Flag`] for a rank, an α or names of modules that this model does not have.
    ///
    /// # Examples
    /// ```
    /// use jointwise::{LoraConfig, Policy};
    /// let lora = LoraConfig { rank: 8, alpha: 16.0, targets: vec!["q_proj".into(), "v_proj".into()], ..LoraConfig::default() };
    /// let policy = Policy::open("models/demo")?.with_lora(lora)?;
    /// # Ok::<(), jointwise::Error>(())
    /// ```
    pub fn with_lora(mut self, lora: LoraConfig) -> Result<Self> {
        if self.adapter().is_some() {
            return Err(Error::flag("lora-r", "the policy has an adapter, which training goes on from"));
        }
        new_config(&self.model.description, &lora, &self.model.name)?;
        self.adapter = PolicyAdapter::New(lora);
        Ok(self)
    }

    /// Adds an adapter of PEFT's from a folder or a hub id; training goes on from it. Its folder's tokenizer takes the place of the model's.
    ///
    /// # Errors
    /// [`Error::File`], [`Error::Tensor`] for an adapter that does not fit the model.
    ///
    /// # Examples
    /// ```no_run
    /// // Not run by the test: the adapter is the result of a run.
    /// let policy = jointwise::Policy::open("models/demo")?.with_adapter("runs/sft")?;
    /// # Ok::<(), jointwise::Error>(())
    /// ```
    #[cfg(feature = "native")]
    pub fn with_adapter(self, place: impl AsRef<Path>) -> Result<Self> {
        let adapter = self.model.open_adapter(place.as_ref())?;
        Self::from_model(self.model, Some(adapter), self.options)
    }

    /// Makes a policy of the same model with another adapter, which was trained on it. The model's files are not read again, and [`Self::load_beside`] puts its
    /// weights on a device once for both.
    ///
    /// # Errors
    /// [`Error::File`], [`Error::Tensor`] for an adapter that does not fit the model.
    ///
    /// # Examples
    /// ```no_run
    /// // Not run by the test: the adapters are the results of runs.
    /// let dpo = jointwise::Policy::open("models/demo")?.with_adapter("runs/dpo")?;
    /// let jpo = dpo.with_other_adapter("runs/jpo")?;
    /// # Ok::<(), jointwise::Error>(())
    /// ```
    #[cfg(feature = "native")]
    pub fn with_other_adapter(&self, place: impl AsRef<Path>) -> Result<Self> {
        let adapter = self.model.open_adapter(place.as_ref())?;
        Self::from_model(self.model.clone(), Some(adapter), self.options.clone())
    }

    /// Returns the model folder.
    pub fn model(&self) -> &OpenModel {
        &self.model
    }

    /// Returns the adapter that was read; `None` for a new adapter.
    pub fn adapter(&self) -> Option<&Adapter> {
        match &self.adapter {
            PolicyAdapter::Read(adapter) => Some(adapter),
            PolicyAdapter::None | PolicyAdapter::New(_) => None,
        }
    }

    /// Tells whether training changes every parameter, because there is no adapter.
    ///
    /// # Examples
    /// ```
    /// use jointwise::{LoraConfig, Policy};
    /// assert!(Policy::open("models/demo")?.is_full());
    /// assert!(!Policy::open("models/demo")?.with_lora(LoraConfig::default())?.is_full());
    /// # Ok::<(), jointwise::Error>(())
    /// ```
    pub fn is_full(&self) -> bool {
        matches!(self.adapter, PolicyAdapter::None)
    }

    /// Returns the tokenizer.
    ///
    /// # Examples
    /// ```
    /// let policy = jointwise::Policy::open("models/demo")?;
    /// println!("EOS is {:?}", policy.tokenizer().eos_id());
    /// # Ok::<(), jointwise::Error>(())
    /// ```
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// Returns the architecture: sizes, attention, norms and positions.
    ///
    /// # Examples
    /// ```
    /// let policy = jointwise::Policy::open("models/demo")?;
    /// println!("{} layers, width {}", policy.description().layers.len(), policy.description().d_model);
    /// # Ok::<(), jointwise::Error>(())
    /// ```
    pub fn description(&self) -> &ModelConfig {
        &self.model.description
    }

    /// Returns the options that the policy was opened with.
    pub fn options(&self) -> &PolicyOptions {
        &self.options
    }

    /// Returns the adapter that training starts from. A new adapter gets its values from `seed`.
    ///
    /// # Errors
    /// None after [`Self::with_lora`] has checked the configuration.
    pub fn starting_adapter(&self, seed: u64) -> Result<Option<Rc<Adapter>>> {
        match &self.adapter {
            PolicyAdapter::None => Ok(None),
            PolicyAdapter::New(lora) => {
                Adapter::new(&self.model.description, lora, &self.model.name, seed).map(|new| Some(Rc::new(new)))
            }
            PolicyAdapter::Read(adapter) => Ok(Some(adapter.clone())),
        }
    }

    /// Refuses to train on responses whose end could not be learnt, unless that is asked for. A chat template has an end of its own.
    ///
    /// # Errors
    /// [`Error::Flag`] where the tokenizer has no EOS.
    pub fn require_end(&self, template: &Template) -> Result<()> {
        if self.tokenizer.eos_id().is_some() || !self.options.append_eos || *template == Template::Chat {
            return Ok(());
        }
        let reason = format!(
            "{}: neither the tokenizer nor config.json names an EOS, so the end of a response would not be learnt: add eos_token to tokenizer_config.json, or train without an end with --no-eos",
            self.model.name
        );
        Err(Error::flag("model", reason))
    }

    /// Loads the weights for scoring and generation, for sequences of at most `n_positions` tokens.
    ///
    /// # Errors
    /// [`Error::Gpu`], [`Error::OutOfMemory`]; [`Error::File`] where the weights cannot be read.
    pub fn load(&self, gpu: &Gpu, n_positions: usize) -> Result<Decoder> {
        let lora = self.adapter().map(|adapter| adapter.lora.clone());
        self.model.load(gpu, &LoadOptions::frozen(self.model.base, lora, n_positions))
    }

    /// Loads the policy like [`Self::load`], beside a decoder of the same model: its frozen weights are shared, and only the adapter is loaded.
    ///
    /// # Errors
    /// Those of [`Self::load`].
    ///
    /// # Examples
    /// ```
    /// use jointwise::{Gpu, Policy};
    /// let (gpu, policy) = (Gpu::open_best()?, Policy::open("models/demo")?);
    /// let first = policy.load(&gpu, 64)?;
    /// let second = policy.load_beside(&first, &gpu, 128)?;
    /// # Ok::<(), jointwise::Error>(())
    /// ```
    pub fn load_beside(&self, decoder: &Decoder, gpu: &Gpu, n_positions: usize) -> Result<Decoder> {
        let lora = self.adapter().map(|adapter| adapter.lora.clone());
        self.model.load_beside(decoder, gpu, &LoadOptions::frozen(self.model.base, lora, n_positions))
    }

    /// Scores responses to one instruction: their log-probabilities, jointly with the instruction and given it.
    ///
    /// # Errors
    /// [`Error::Flag`] for a text that the tokenizer or the template cannot take; [`Error::Gpu`].
    ///
    /// # Examples
    /// ```
    /// use jointwise::{Gpu, Policy, Template};
    /// let (gpu, policy) = (Gpu::open_best()?, Policy::open("models/demo")?);
    /// let scores = policy.score(&gpu, "Say hello.", &[" Hello!", " No."], &Template::Paper)?;
    /// assert!(scores[0].joint < scores[0].conditional);
    /// # Ok::<(), jointwise::Error>(())
    /// ```
    #[cfg(not(target_arch = "wasm32"))]
    pub fn score(
        &self,
        gpu: &Gpu,
        instruction: &str,
        responses: &[&str],
        template: &Template,
    ) -> Result<Vec<SequenceScore>> {
        pollster::block_on(self.score_async(gpu, instruction, responses, template))
    }

    /// Does what `Self::score` does without blocking, in a browser too.
    ///
    /// # Errors
    /// [`Error::Flag`] for a text that the tokenizer or the template cannot take; [`Error::Gpu`].
    pub async fn score_async(
        &self,
        gpu: &Gpu,
        instruction: &str,
        responses: &[&str],
        template: &Template,
    ) -> Result<Vec<SequenceScore>> {
        self.tokenizer.check_template(template)?;
        let encode = |response: &&str| {
            let text =
                PromptResponse { instruction: Instruction::Plain(instruction.into()), response: (*response).into() };
            self.tokenizer.encode(&text, template).map_err(|reason| Error::flag("data", reason))
        };
        let encoded = responses.iter().map(encode).collect::<Result<Vec<_>>>()?;
        let longest = encoded.iter().map(|s| s.ids.len()).max().unwrap_or(1);
        let positions = self.model.description.max_positions;
        if longest > positions {
            return Err(Error::flag(
                "max-length",
                format!("{longest} tokens are more than the model's {positions} positions"),
            ));
        }
        let example = |sequence| Example { row: 0, sequences: vec![sequence], desirable: None };
        let examples: Vec<Example> = encoded.into_iter().map(example).collect();
        let decoder = self.load(gpu, longest)?;
        let rows: Vec<&Example> = examples.iter().collect();
        let unseen = &mut |_| ();
        let scored = score(gpu, &decoder, &rows, true, true, DEFAULT_SCORE_TOKENS, unseen).await?;
        Ok(scored.iter().map(SequenceScore::from).collect())
    }
}
