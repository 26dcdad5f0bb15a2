//! Tokens that transformers puts before a text, as transformers 5 finds them: in the post-processor of `tokenizer.json`. `add_bos_token` of
//! `tokenizer_config.json` is not looked at beside that file.

use tokenizers::{Encoding, PostProcessor, Token, Tokenizer};

/// Source of the tokens before a text.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum TextStart {
    /// The post-processor of `tokenizer.json`.
    #[default]
    PostProcessor,
    /// The tokenizer's class, which puts BOS there.
    Bos,
    /// The tokenizer's class, which puts nothing there.
    Nothing,
}

impl TextStart {
    /// Returns the ids, from those of the post-processor and BOS.
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
/// The reason, where it cannot process a text.
pub(super) fn of_post_processor(tokenizer: &Tokenizer) -> Result<Vec<u32>, String> {
    /// Stands for the text, and is no id.
    const TEXT: u32 = u32::MAX;
    let Some(processor) = tokenizer.get_post_processor() else { return Ok(Vec::new()) };
    let text = Encoding::from_tokens(vec![Token::new(TEXT, "a".into(), (0, 1))], 0);
    let processed = processor.process(text, None, true).map_err(|e| e.to_string())?;
    Ok(processed.get_ids().iter().copied().take_while(|id| *id != TEXT).collect())
}
