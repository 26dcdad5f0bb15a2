//! Settings of a low-rank adapter.

/// Size and place of a low-rank adapter (LoRA, arXiv 2106.09685): each module W gets (α/R)·B·A, with A (R, in) and B (out, R).
///
/// # Examples
/// ```
/// use jointwise::LoraConfig;
/// let lora = LoraConfig { rank: 4, alpha: 8.0, targets: vec!["q_proj".into(), "v_proj".into()] };
/// ```
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct LoraConfig {
    /// Rank R.
    pub rank: usize,
    /// Numerator α of the scale α/R.
    pub alpha: f64,
    /// Names of modules, or `all-linear`.
    pub targets: Vec<String>,
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
        Self { rank, alpha: 2.0 * rank as f64, targets: vec!["all-linear".into()] }
    }
}

impl Default for LoraConfig {
    /// The paper's adapter: R 8, α 16 on q, k, v.
    fn default() -> Self {
        Self { rank: 8, alpha: 16.0, targets: ["q_proj", "k_proj", "v_proj"].map(String::from).into() }
    }
}
