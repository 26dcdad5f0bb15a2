//! Tokens that transformers 5 puts before a text. They come from the post-processor of `tokenizer.json`; `add_bos_token` of
//! `tokenizer_config.json` is ignored if that file exists.

use tokenizers::{Encoding, PostProcessor, Token, Tokenizer};

/// Source of the tokens before a text.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum TextStart {
    /// The post-processor of `tokenizer.json`.
    #[default]
    PostProcessor,
    /// The tokenizer's class, which puts BOS before a text.
    Bos,
    /// The tokenizer's class, which puts nothing before a text.
    Nothing,
}

impl TextStart {
    /// Returns the ids before a text. `of_post_processor` and `bos` are the candidates.
    pub fn ids(self, of_post_processor: Vec<u32>, bos: Option<u32>) -> Vec<u32> {
        match self {
            Self::PostProcessor => of_post_processor,
            Self::Bos => bos.into_iter().collect(),
            Self::Nothing => Vec::new(),
        }
    }
}

/// Returns the ids that the post-processor puts before a text.
///
/// # Errors
/// The reason, where the post-processor fails.
pub(super) fn of_post_processor(tokenizer: &Tokenizer) -> Result<Vec<u32>, String> {
    /// Placeholder for the text, which is not a token's id.
    const TEXT: u32 = u32::MAX;
    let Some(processor) = tokenizer.get_post_processor() else { return Ok(Vec::new()) };
    let text = Encoding::from_tokens(vec![Token::new(TEXT, "a".into(), (0, 1))], 0);
    let processed = processor.process(text, None, true).map_err(|e| e.to_string())?;
    Ok(processed.get_ids().iter().copied().take_while(|id| *id != TEXT).collect())
}
