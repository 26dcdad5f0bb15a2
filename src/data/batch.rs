//! Tokenised sequences, and micro-batches packed without padding: the data that the engine gets.

use std::ops::Range;

/// One tokenised instruction–response text.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Sequence {
    /// `[BOS] + tok(template(I) + R) + [EOS]`; with a chat template what it prints, nothing around it.
    pub ids: Vec<u32>,
    /// Index in `ids` of the first response token: everything before it is BOS, template and instruction.
    pub response_start: usize,
    /// Parts of `ids` behind `response_start` that are no response but what stands between its answers, rising and apart; none where there is one answer.
    pub between: Vec<Range<usize>>,
}

impl Sequence {
    /// A sequence whose response goes on to its end.
    pub fn new(ids: Vec<u32>, response_start: usize) -> Self {
        Self { ids, response_start, between: Vec::new() }
    }

    /// Whether the token is a part of the response, and so scored by DPO and SFT. The first token of a sequence never is.
    pub fn is_response(&self, token: usize) -> bool {
        token >= self.response_start.max(1) && !self.between.iter().any(|range| range.contains(&token))
    }

    /// Number of response tokens that are scored.
    pub fn n_response(&self) -> usize {
        let between: usize = self.between.iter().map(Range::len).sum();
        self.ids.len().saturating_sub(self.response_start.max(1) + between)
    }

    /// Cuts tokens out before the response.
    pub(super) fn cut_before_response(&mut self, tokens: Range<usize>) {
        let n = tokens.len();
        self.ids.drain(tokens);
        self.response_start -= n;
        self.between.iter_mut().for_each(|range| *range = range.start - n..range.end - n);
    }

    /// Cuts everything from a token of the response on.
    pub(super) fn truncate(&mut self, length: usize) {
        self.ids.truncate(length);
        self.between.retain(|range| range.start < length);
        self.between.iter_mut().for_each(|range| range.end = range.end.min(length));
    }
}

/// Row of data, tokenised.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Example {
    /// Row number in the data, from 0, before anything was dropped.
    pub row: usize,
    /// One sequence for SFT and for a text with a label; chosen, then rejected, for preferences.
    pub sequences: Vec<Sequence>,
    /// A text's label; none of other rows.
    pub desirable: Option<bool>,
}

impl Example {
    /// Tokens when packed, a shared instruction counted once when `share_prefix`.
    pub fn n_tokens(&self, share_prefix: bool) -> usize {
        let all: usize = self.sequences.iter().map(|s| s.ids.len()).sum();
        all - if share_prefix { self.shared_prefix() } else { 0 }
    }

    /// Leading tokens that the two sides share and that belong to both instructions; 0 for single sequences.
    pub fn shared_prefix(&self) -> usize {
        let [a, b] = self.sequences.as_slice() else { return 0 };
        let limit = a.response_start.min(b.response_start);
        a.ids[..limit].iter().zip(&b.ids[..limit]).take_while(|(x, y)| x == y).count()
    }
}
