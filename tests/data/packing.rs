//! Packed batches against the sequences inside: what every hidden state sees and predicts.

use super::*;
use proptest::prelude::*;

/// Sequences of a small alphabet, so that prefixes are often shared, of one side or two; some with tokens between their answers.
fn example() -> impl Strategy<Value = Example> {
    let ids = |n| prop::collection::vec(0_u32..3, n);
    (ids(0..6), ids(1..6), ids(0..3), ids(1..5), any::<bool>(), any::<bool>(), 0_usize..4, 0_usize..3).prop_map(
        |(i, r, more, other, pair, joint, after, n)| {
            let sequence = |instruction: &[u32], response: &[u32]| {
                let start = 1 + instruction.len();
                let mut sequence = Sequence::new([&[9], instruction, response].concat(), start);
                let gap = (start + 1 + after).min(sequence.ids.len())..(start + 1 + after + n).min(sequence.ids.len());
                sequence.between.extend(Some(gap).filter(|gap| !gap.is_empty()));
                sequence
            };
            let mut sequences = vec![sequence(&i, &r)];
            if pair {
                sequences.push(if joint { sequence(&[i, more].concat(), &other) } else { sequence(&i, &other) });
            }
            Example { row: 0, sequences, desirable: None }
        },
    )
}

/// For each prediction of a sequence: the (token, position) pairs that its hidden state sees, and the target.
fn context(batch: &PackedBatch, span: usize) -> Vec<(Vec<(u32, u32)>, u32)> {
    let rows = batch.rows_in_order(&batch.spans[span]);
    rows.into_iter()
        .map(|row| batch.rows[row])
        .map(|row| {
            let [a, b, c, d] = batch.ranges[row.hidden as usize];
            let seen = (a..b).chain(c..d).map(|k| (batch.ids[k as usize], batch.positions[k as usize])).collect();
            (seen, row.target)
        })
        .collect()
}

fn well_formed(batch: &PackedBatch) {
    let t = batch.ids.len();
    assert_eq!((batch.positions.len(), batch.ranges.len()), (t, t));
    for (q, &[a, b, c, d]) in batch.ranges.iter().enumerate() {
        assert!(a <= b && b <= c && c < d && d == q as u32 + 1, "query {q} sees {a}..{b} and {c}..{d}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn packed_is_each_alone(examples in prop::collection::vec(example(), 1..5), share in any::<bool>()) {
        let borrowed: Vec<&Example> = examples.iter().collect();
        let batch = PackedBatch::pack(&borrowed, share);
        well_formed(&batch);
        let sequences: Vec<&Sequence> = examples.iter().flat_map(|e| &e.sequences).collect();
        let ids: Vec<Vec<u32>> = sequences.iter().map(|s| s.ids.clone()).collect();
        prop_assert_eq!(batch.unpack(), ids);
        prop_assert_eq!(batch.spans.len(), sequences.len());
        for (s, sequence) in sequences.iter().enumerate() {
            // What a hidden state sees, and predicts, is what it does where the sequence stands alone.
            let expected: Vec<_> = (1..sequence.ids.len())
                .map(|t| ((0..t).map(|k| (sequence.ids[k], k as u32)).collect::<Vec<_>>(), sequence.ids[t]))
                .collect();
            prop_assert_eq!(context(&batch, s), expected);
            let span = &batch.spans[s];
            prop_assert_eq!(span.own.end - span.response, sequence.n_response());
            // Behind `response` are the predictions of response tokens, in their order.
            let scored = |t: &usize| sequence.is_response(*t);
            let expected: Vec<u32> = (1..sequence.ids.len()).filter(scored).map(|t| sequence.ids[t]).collect();
            let got: Vec<u32> = batch.rows[span.response..span.own.end].iter().map(|row| row.target).collect();
            prop_assert_eq!(got, expected);
            prop_assert!(span.response >= span.own.start);
        }
        // Rows and tokens are grouped in order and none is left over.
        let mut rows: Vec<usize> = batch.spans.iter().flat_map(|s| s.prefix.clone().chain(s.own.clone())).collect();
        rows.sort_unstable();
        rows.dedup();
        prop_assert_eq!(rows, (0..batch.rows.len()).collect::<Vec<_>>());
        let counted: usize = examples.iter().map(|e| if e.shared_prefix() > 1 { e.n_tokens(share) } else { e.n_tokens(false) }).sum();
        prop_assert_eq!(batch.n_tokens(), counted);
    }

    #[test]
    fn examples_do_not_meet(examples in prop::collection::vec(example(), 1..5), share in any::<bool>()) {
        let borrowed: Vec<&Example> = examples.iter().collect();
        let packed = PackedBatch::pack(&borrowed, share);
        let mut span = 0;
        for example in &examples {
            let alone = PackedBatch::pack(&[example], share);
            for s in 0..alone.spans.len() {
                prop_assert_eq!(context(&alone, s), context(&packed, span));
                span += 1;
            }
        }
    }

    #[test]
    fn micro_batches_split_no_pair(examples in prop::collection::vec(example(), 0..9), count in 1_usize..4, tokens in 1_usize..40) {
        let borrowed: Vec<&Example> = examples.iter().collect();
        let batches = micro_batches(&borrowed, count, Some(tokens), true);
        prop_assert_eq!(batches.concat(), borrowed.clone());
        for batch in &batches {
            let n: usize = batch.iter().map(|e| e.n_tokens(true)).sum();
            prop_assert!(!batch.is_empty() && batch.len() <= count && (n <= tokens || batch.len() == 1));
        }
        prop_assert!(micro_batches(&borrowed, count, None, true).iter().rev().skip(1).all(|b| b.len() == count));
    }
}

#[test]
fn a_shared_pair_s_layout() {
    let sequence = |ids: &[u32]| Sequence::new(ids.into(), 3);
    let pair =
        Example { row: 7, sequences: vec![sequence(&[0, 5, 6, 7, 1]), sequence(&[0, 5, 6, 8, 9, 1])], desirable: None };
    let batch = PackedBatch::pack(&[&pair], true);
    assert_eq!(batch.ids, [0, 5, 6, 7, 1, 8, 9, 1]);
    assert_eq!(batch.positions, [0, 1, 2, 3, 4, 3, 4, 5]);
    assert_eq!(batch.ranges[2], [0, 0, 0, 3]);
    assert_eq!(batch.ranges[4], [0, 3, 3, 5]);
    assert_eq!(batch.ranges[6], [0, 3, 5, 7]);
    let rows: Vec<(u32, u32)> = batch.rows.iter().map(|r| (r.hidden, r.target)).collect();
    assert_eq!(rows, [(0, 5), (1, 6), (2, 7), (3, 1), (2, 8), (5, 9), (6, 1)]);
    let spans: Vec<_> = batch.spans.iter().map(|s| (s.prefix.clone(), s.own.clone(), s.response)).collect();
    assert_eq!(spans, [(0..2, 2..4, 2), (0..2, 4..7, 4)]);
    assert_eq!(batch.examples, [7]);
}

/// A pair shares its prefix under LongRoPE where both sides are short, or both long.
#[test]
fn sides_of_different_rotary_tables_share_nothing() {
    let text = r#"{"architectures": ["Phi3ForCausalLM"], "hidden_size": 4, "intermediate_size": 8, "num_attention_heads": 1,
        "num_hidden_layers": 1, "vocab_size": 40, "max_position_embeddings": 64, "original_max_position_embeddings": 5,
        "rope_scaling": {"type": "longrope", "short_factor": [1, 1], "long_factor": [2, 3]}}"#;
    let model = jointwise::model::description::ModelConfig::from_json("config.json", text).unwrap();
    assert_eq!(model.long_above(), Some(5));
    let sharing = PrefixSharing::new(true, &model);
    let sequence = |n: u32| Sequence::new([vec![0, 5, 6], (10..7 + n).collect()].concat(), 3);
    for (lengths, shared) in [([4, 5], 3), ([5, 6], 0), ([6, 7], 3), ([9, 4], 0)] {
        let pair = Example { row: 0, sequences: lengths.map(sequence).into(), desirable: None };
        let tokens: usize = lengths.iter().map(|&n| n as usize).sum();
        assert_eq!((pair.packed_prefix(sharing), pair.packed_prefix(true), pair.packed_prefix(false)), (shared, 3, 0));
        assert_eq!(pair.n_tokens(sharing), tokens - shared);
        let batch = PackedBatch::pack(&[&pair, &pair], sharing);
        assert_eq!(batch.n_tokens(), 2 * (tokens - shared));
        // A shared prefix is as long as its longest branch: both are on the same side of the limit.
        let long = batch.sequence_lengths().into_iter().map(|n| n > 5);
        let [first, second] = lengths.map(|n| n > 5);
        let expected = (0..tokens - shared).map(|t| if t < lengths[0] as usize { first } else { second });
        assert!(long.eq(expected.clone().chain(expected)), "{lengths:?}");
    }
    let pair = Example { row: 0, sequences: vec![sequence(4), sequence(7)], desirable: None };
    assert_eq!(PackedBatch::pack(&[&pair], true).sequence_lengths(), [7, 7, 7, 4, 7, 7, 7, 7]);
    assert_eq!(PackedBatch::pack(&[&pair], false).sequence_lengths(), [[4; 4].as_slice(), &[7; 7]].concat());
}
