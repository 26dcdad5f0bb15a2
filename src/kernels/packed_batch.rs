//! Micro-batch as kernels read it: packed tokens, the keys that each of them sees, and the predictions that are scored.

use std::ops::Range;

/// Scored prediction: the hidden state of token `hidden` predicts `target`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ScoredRow {
    /// Index into the packed tokens.
    pub hidden: u32,
    /// Token id.
    pub target: u32,
}

/// Ranges of a sequence's scored rows. The rows of `prefix` and `own` together predict its tokens from index 1 on. Rows of `prefix` are in
/// the order of the tokens. In `own`, rows that predict no response token come first, then those that do, each in the order of the tokens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SequenceSpan {
    /// Rows of the shared prefix (empty without one).
    pub prefix: Range<usize>,
    /// Rows of the sequence's own tokens.
    pub own: Range<usize>,
    /// First row of `own` that predicts a response token.
    pub response: usize,
    /// First row of `own` past the length of the pair's shorter response; the end of `own` for the shorter response and for a single
    /// sequence.
    pub tail: usize,
}

/// Micro-batch: T packed tokens in S segments, no padding.
///
/// A query sees the keys of its prefix range and of its own range (which ends with itself).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PackedBatch {
    /// (T), token ids.
    pub ids: Vec<u32>,
    /// (T), position in the sequence: a branch continues from its prefix.
    pub positions: Vec<u32>,
    /// (T), [prefix_start, prefix_end, own_start, own_end): visible keys; own_end = t + 1.
    pub ranges: Vec<[u32; 4]>,
    /// (N) predictions. Each span's `own` is contiguous, and so is each prefix; [`SequenceSpan`] has their order.
    pub rows: Vec<ScoredRow>,
    /// (S), one per sequence; pairs give chosen, rejected, chosen, rejected, ...
    pub spans: Vec<SequenceSpan>,
    /// Row numbers of the batch's examples.
    pub examples: Vec<usize>,
}

impl PackedBatch {
    /// Returns the length in tokens of each token's sequence: (T). A shared prefix has the length of its longest branch.
    pub fn sequence_lengths(&self) -> Vec<usize> {
        let mut lengths = vec![0; self.ranges.len()];
        let mut previous = None;
        // From the last token of each segment to its first.
        for (t, &[prefix_start, prefix_end, own_start, own_end]) in self.ranges.iter().enumerate().rev() {
            let length = match previous {
                Some((segment, length)) if segment == own_start => length,
                _ => (prefix_end - prefix_start + own_end - own_start) as usize,
            };
            previous = Some((own_start, length));
            lengths[t] = length.max(lengths[t]);
            if t == own_start as usize {
                let prefix = &mut lengths[prefix_start as usize..prefix_end as usize];
                prefix.iter_mut().for_each(|of_prefix| *of_prefix = length.max(*of_prefix));
            }
        }
        lengths
    }

    /// Returns the rows that predict a sequence's tokens from index 1 on, in the order of the tokens, which is also the order of their
    /// hidden states.
    pub fn rows_in_order(&self, span: &SequenceSpan) -> Vec<usize> {
        let mut own: Vec<usize> = span.own.clone().collect();
        own.sort_by_key(|&row| self.rows[row].hidden);
        span.prefix.clone().chain(own).collect()
    }
}
