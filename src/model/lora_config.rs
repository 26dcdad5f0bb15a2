//! Settings of a low-rank adapter.

/// Size and place of a low-rank adapter.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct LoraConfig {
    /// R.
    pub rank: usize,
    /// α; the addition is scaled by α/R.
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
