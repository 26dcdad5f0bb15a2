//! Settings of a low-rank adapter.

/// Size and place of a low-rank adapter (LoRA, arXiv 2106.09685): each module W gets (α/R)·B·A, with A (R, in) and B (out, R).
///
/// # Examples
/// ```
/// use jointwise::LoraConfig;
/// let lora = LoraConfig { rank: 4, alpha: 8.0, layers: (16..32).collect(), ..LoraConfig::default() };
/// ```
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(default)]
pub struct LoraConfig {
    /// Rank R.
    pub rank: usize,
    /// Numerator α of the scale α/R.
    pub alpha: f64,
    /// Names of modules, or `all-linear`.
    pub targets: Vec<String>,
    /// Numbers of the layers that have an adapter, from 0; empty for all layers.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub layers: Vec<usize>,
    /// Names of modules among `targets` that have no adapter.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub exclude: Vec<String>,
    /// Whether the scale is α/√R instead of α/R (rsLoRA, arXiv 2312.03732).
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub rslora: bool,
    /// Modules that are trained whole beside the adapter: the embedding (`embed_tokens`), the LM head (`lm_head`). A tied head stays tied.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub modules_to_save: Vec<String>,
    /// Ids of tokens whose embeddings are trained beside the adapter, and with them their rows of a tied LM head.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub train_tokens: Vec<u32>,
}

impl LoraConfig {
    /// Returns an adapter of rank `rank` on every linear layer of the decoder, with α = 2·rank.
    ///
    /// # Examples
    /// ```
    /// let lora = jointwise::LoraConfig::all_linear(16);
    /// assert_eq!((lora.rank, lora.alpha), (16, 32.0));
    /// ```
    pub fn all_linear(rank: usize) -> Self {
        Self {
            rank,
            alpha: 2.0 * rank as f64,
            targets: vec!["all-linear".into()],
            layers: Vec::new(),
            exclude: Vec::new(),
            rslora: false,
            modules_to_save: Vec::new(),
            train_tokens: Vec::new(),
        }
    }

    /// Returns the adapter of the JPO paper (arXiv 2404.00530): R 8, α 16 on q, k and v.
    ///
    /// # Examples
    /// ```
    /// let lora = jointwise::LoraConfig::paper();
    /// assert_eq!((lora.rank, lora.targets.len()), (8, 3));
    /// ```
    pub fn paper() -> Self {
        let targets = ["q_proj", "k_proj", "v_proj"].map(String::from).into();
        Self { targets, ..Self::all_linear(8) }
    }
}

impl Default for LoraConfig {
    /// R 16, α 32 on all linear layers, as published recipes have it.
    fn default() -> Self {
        Self::all_linear(16)
    }
}
