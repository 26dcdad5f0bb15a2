//! Packing: examples side by side without padding, with a shared instruction stored once.
//!
//! A pair whose instructions share a prefix of P ≥ 2 tokens becomes `[prefix][chosen's rest][rejected's rest]`. Both rests continue at
//! position P and see the prefix. The prefix's last hidden state predicts the first token of each rest.

use std::ops::Range;

use super::batch::{Example, PrefixSharing, Sequence};
use crate::kernels::packed_batch::{PackedBatch, ScoredRow, SequenceSpan};

/// Smallest shared prefix, in tokens: a shorter one saves too little for a third segment.
const MIN_PREFIX: usize = 2;

impl PackedBatch {
    /// Packs whole examples, in order.
    pub fn pack(examples: &[&Example], sharing: impl Into<PrefixSharing>) -> Self {
        let (mut batch, sharing) = (Self::default(), sharing.into());
        for example in examples {
            batch.examples.push(example.row);
            let shared = example.packed_prefix(sharing);
            if shared >= MIN_PREFIX {
                batch.push_shared(example, shared);
            } else {
                for sequence in &example.sequences {
                    batch.push_alone(sequence);
                }
            }
            let first = batch.spans.len() - example.sequences.len();
            set_tails(&mut batch.spans[first..]);
        }
        batch
    }

    /// Returns T, the number of tokens.
    pub fn n_tokens(&self) -> usize {
        self.ids.len()
    }

    /// Returns the sequences of the batch, rebuilt from the scored rows: the inverse of `pack`, for sequences of at least two tokens.
    pub fn unpack(&self) -> Vec<Vec<u32>> {
        let ids = |span: &SequenceSpan| {
            let rows: Vec<ScoredRow> = self.rows_in_order(span).into_iter().map(|row| self.rows[row]).collect();
            let first = rows.first().map(|row| self.ids[row.hidden as usize]);
            first.into_iter().chain(rows.iter().map(|row| row.target)).collect()
        };
        self.spans.iter().map(ids).collect()
    }

    fn push_alone(&mut self, sequence: &Sequence) {
        let start = self.ids.len() as u32;
        self.push_segment(&sequence.ids, 0, [start, start]);
        let own = self.push_rows(&sequence.ids, start, None);
        let response = self.responses_last(&own, |row| sequence.is_response(row + 1));
        self.spans.push(SequenceSpan { prefix: own.start..own.start, tail: own.end, own, response });
    }

    fn push_shared(&mut self, pair: &Example, shared: usize) {
        let start = self.ids.len() as u32;
        let prefix_ids = &pair.sequences[0].ids[..shared];
        self.push_segment(prefix_ids, 0, [start, start]);
        let prefix = self.push_rows(prefix_ids, start, None);
        let last = start + shared as u32 - 1;
        for sequence in &pair.sequences {
            let (rest, at) = (&sequence.ids[shared..], self.ids.len() as u32);
            self.push_segment(rest, shared as u32, [start, last + 1]);
            let own = self.push_rows(rest, at, Some(last));
            let response = self.responses_last(&own, |row| sequence.is_response(shared + row));
            self.spans.push(SequenceSpan { prefix: prefix.clone(), tail: own.end, own, response });
        }
    }

    /// Moves a sequence's rows that predict a response token behind its other rows. Returns the first of them.
    fn responses_last(&mut self, own: &Range<usize>, is_response: impl Fn(usize) -> bool) -> usize {
        let rows = self.rows[own.clone()].to_vec();
        let (response, rest): (Vec<_>, Vec<_>) = rows.into_iter().enumerate().partition(|(row, _)| is_response(*row));
        let first = own.start + rest.len();
        self.rows.splice(own.clone(), rest.into_iter().chain(response).map(|(_, row)| row));
        first
    }

    fn push_segment(&mut self, ids: &[u32], position: u32, prefix: [u32; 2]) {
        let start = self.ids.len() as u32;
        let end = start + ids.len() as u32;
        // An empty prefix range is placed at the segment's start.
        let [prefix_start, prefix_end] = prefix;
        self.ids.extend_from_slice(ids);
        self.positions.extend((0..ids.len() as u32).map(|i| position + i));
        self.ranges.extend((start..end).map(|t| [prefix_start, prefix_end, start, t + 1]));
    }

    /// Adds the predictions of the tokens `ids`, which begin at packed index `start`. The first token is predicted only where there is a
    /// hidden state `before` it.
    fn push_rows(&mut self, ids: &[u32], start: u32, before: Option<u32>) -> Range<usize> {
        let first = self.rows.len();
        if let (Some(hidden), Some(&target)) = (before, ids.first()) {
            self.rows.push(ScoredRow { hidden, target });
        }
        self.rows.extend(ids.iter().skip(1).zip(start..).map(|(&target, hidden)| ScoredRow { hidden, target }));
        first..self.rows.len()
    }
}

/// Sets the first row past the shorter response in the spans of an example's sequences.
fn set_tails(spans: &mut [SequenceSpan]) {
    let shorter = spans.iter().map(|span| span.own.end - span.response).min().unwrap_or(0);
    spans.iter_mut().for_each(|span| span.tail = span.response + shorter);
}

/// Splits examples, in order, into micro-batches of at most `max_examples` examples and, where given, `max_tokens` packed tokens. A pair is
/// never split; a larger example is a micro-batch of its own.
pub fn micro_batches<'a>(
    examples: &[&'a Example],
    max_examples: usize,
    max_tokens: Option<usize>,
    sharing: impl Into<PrefixSharing>,
) -> Vec<Vec<&'a Example>> {
    let sharing = sharing.into();
    let mut batches: Vec<Vec<&Example>> = Vec::new();
    let mut tokens = 0;
    for &example in examples {
        let more = example.n_tokens(sharing);
        match batches.last_mut() {
            Some(last) if last.len() < max_examples && max_tokens.is_none_or(|max| tokens + more <= max) => {
                last.push(example);
                tokens += more;
            }
            _ => {
                batches.push(vec![example]);
                tokens = more;
            }
        }
    }
    batches
}
