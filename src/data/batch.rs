//! Tokenised sequences, and micro-batches packed without padding: the input of training and scoring.

use std::ops::Range;

use crate::model::description::ModelConfig;

/// Tokens of an instruction and its response.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Sequence {
    /// Token ids: `[BOS] + tok(template(I) + R) + [EOS]`. With a chat template, the tokens of the text that it prints, without additions.
    pub ids: Vec<u32>,
    /// Index in `ids` of the first response token. The tokens before it are BOS, template and instruction.
    pub response_start: usize,
    /// Ranges of `ids` behind `response_start` that lie between answers and are not part of the response: ascending and disjoint; empty
    /// where there is one answer.
    pub between: Vec<Range<usize>>,
}

impl Sequence {
    /// Creates a sequence whose response extends to its end.
    pub fn new(ids: Vec<u32>, response_start: usize) -> Self {
        Self { ids, response_start, between: Vec::new() }
    }

    /// Returns whether the token is part of the response, and so scored by DPO and SFT. The first token of a sequence never is.
    pub fn is_response(&self, token: usize) -> bool {
        token >= self.response_start.max(1) && !self.between.iter().any(|range| range.contains(&token))
    }

    /// Returns the number of response tokens that are scored.
    pub fn n_response(&self) -> usize {
        let between: usize = self.between.iter().map(Range::len).sum();
        self.ids.len().saturating_sub(self.response_start.max(1) + between)
    }

    /// Removes tokens before the response.
    pub(super) fn cut_before_response(&mut self, tokens: Range<usize>) {
        let n = tokens.len();
        self.ids.drain(tokens);
        self.response_start -= n;
        self.between.iter_mut().for_each(|range| *range = range.start - n..range.end - n);
    }

    /// Removes all tokens from index `length` on, which must be inside the response.
    pub(super) fn truncate(&mut self, length: usize) {
        self.ids.truncate(length);
        self.between.retain(|range| range.start < length);
        self.between.iter_mut().for_each(|range| range.end = range.end.min(length));
    }
}

/// Row of data, tokenised.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Example {
    /// Row number in the data, from 0, counting dropped rows.
    pub row: usize,
    /// Sequences of the row: one for SFT and for a labelled text; chosen, then rejected, for a preference.
    pub sequences: Vec<Sequence>,
    /// Label of a labelled text; `None` for other rows.
    pub desirable: Option<bool>,
}

/// Rule for computing the instruction that both sides of a preference share once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PrefixSharing {
    is_on: bool,
    /// Length above which a sequence's positions rotate by other frequencies ([`ModelConfig::long_above`]): both sides must be on the same
    /// side of it.
    long_above: Option<usize>,
}

impl PrefixSharing {
    /// Returns the rule for a model.
    pub fn new(is_on: bool, model: &ModelConfig) -> Self {
        Self { is_on, long_above: model.long_above() }
    }
}

/// Returns the rule for a model whose rotary tables do not depend on the length of a sequence.
impl From<bool> for PrefixSharing {
    fn from(is_on: bool) -> Self {
        Self { is_on, long_above: None }
    }
}

impl Example {
    /// Returns the number of tokens when packed, counting a shared instruction once where `sharing` allows it.
    pub fn n_tokens(&self, sharing: impl Into<PrefixSharing>) -> usize {
        self.sequences.iter().map(|s| s.ids.len()).sum::<usize>() - self.packed_prefix(sharing)
    }

    /// Returns the number of leading tokens that are computed once for both sides.
    pub fn packed_prefix(&self, sharing: impl Into<PrefixSharing>) -> usize {
        let PrefixSharing { is_on, long_above } = sharing.into();
        let is_long = |s: &Sequence| long_above.is_some_and(|limit| s.ids.len() > limit);
        let fits = self.sequences.windows(2).all(|pair| is_long(&pair[0]) == is_long(&pair[1]));
        if is_on && fits { self.shared_prefix() } else { 0 }
    }

    /// Returns the number of leading tokens that both sides share and that belong to both instructions; 0 for a single sequence.
    pub fn shared_prefix(&self) -> usize {
        let [a, b] = self.sequences.as_slice() else { return 0 };
        let limit = a.response_start.min(b.response_start);
        a.ids[..limit].iter().zip(&b.ids[..limit]).take_while(|(x, y)| x == y).count()
    }
}
