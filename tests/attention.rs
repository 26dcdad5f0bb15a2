//! What a row of attention gets does not depend on what is packed beside it, to the bit, in any implementation.

use jointwise::data::batch::Batch;
use jointwise::gpu::{DeviceChoice, Gpu, Variant};
use jointwise::kernels::attention::{Attention, Saved, Segments, attention_bwd, attention_fwd};
use jointwise::rng::Rng;

const HEADS: usize = 4;
const KV_HEADS: usize = 2;

/// Sequences one after the other, each a prefix's length and its branches'.
fn packed(shape: &[(usize, &[usize])]) -> Batch {
    let mut batch = Batch::default();
    let mut add = |n: usize, position: usize, prefix: [u32; 2]| {
        let start = batch.ranges.len() as u32;
        batch.positions.extend((position..position + n).map(|p| p as u32));
        batch.ranges.extend((start..start + n as u32).map(|i| [prefix[0], prefix[1], start, i + 1]));
        start
    };
    for &(prefix, branches) in shape {
        let start = add(prefix, 0, [0, 0]);
        for &branch in branches {
            add(branch, prefix, [start, start + prefix as u32]);
        }
    }
    batch
}

/// A value of a sequence's token; what lies beside it is other sequences'.
fn value(sequence: usize, token: usize, column: usize) -> f32 {
    Rng::new((sequence * 1_000_003 + token * 4099 + column) as u64, 7).normal()
}

/// Rows of some width, as bits.
type Bits = Vec<Vec<u32>>;

/// o, lse, d_q and d_kv of a batch whose tokens are (sequence, token).
fn attend(gpu: &Gpu, batch: &Batch, tokens: &[(usize, usize)], e: usize, window: Option<usize>) -> [Bits; 4] {
    let scale = 1.0 / (e as f32).sqrt();
    let a = Attention { heads: HEADS, kv_heads: KV_HEADS, head_dim: e, scale, softcap: None, window };
    let (l, t, q) = (a.packed(), tokens.len(), HEADS * e);
    assert_eq!(batch.ranges.len(), t);
    let rows = |width: usize, first: usize| -> Vec<f32> {
        tokens.iter().flat_map(|&(s, i)| (0..width).map(move |c| value(s, i, first + c))).collect()
    };
    let (qkv, d_o) = (gpu.upload(&rows(l.q_stride, 0)), gpu.upload(&rows(q, l.q_stride)));
    let (o, lse, d_qkv) = (gpu.slot(t * q), gpu.slot(t * HEADS), gpu.slot(t * l.q_stride));
    let s = Segments::of_batch(gpu, batch, e, &[window]);
    let mut rec = gpu.record();
    attention_fwd(&mut rec, &a, &l, &qkv, &qkv, &s, &o, &lse);
    attention_bwd(&mut rec, &a, &l, Saved { qkv: &qkv, o: &o, lse: &lse }, &s, &d_o, &d_qkv);
    rec.submit();
    let read = |slot, width| -> Bits {
        let words: Vec<Vec<u32>> = pollster::block_on(gpu.read(&[slot])).expect("readback");
        words[0].chunks(width).take(t).map(<[u32]>::to_vec).collect()
    };
    let d = read(&d_qkv, l.q_stride);
    let part = |from: usize, to: usize| d.iter().map(|row| row[from..to].to_vec()).collect();
    [read(&o, q), read(&lse, HEADS), part(0, q), part(q, l.q_stride)]
}

fn last(bits: &[Bits; 4], n: usize) -> [Bits; 4] {
    bits.each_ref().map(|rows| rows[rows.len() - n..].to_vec())
}

fn check(variants: &[Variant]) {
    let gpu = pollster::block_on(Gpu::open(&DeviceChoice::Best)).expect("a device").with_variants(variants.to_vec());
    let n = 45;
    let mine = |sequence: usize| (0..n).map(move |i| (sequence, i));
    for (e, window) in [(8, None), (8, Some(20)), (64, None)] {
        let alone = attend(&gpu, &packed(&[(0, &[n])]), &mine(0).collect::<Vec<_>>(), e, window);
        for before in [1, 7, 31, 32, 40, 64, 77] {
            let tokens: Vec<_> = (0..before).map(|i| (1, i)).chain(mine(0)).collect();
            let together = attend(&gpu, &packed(&[(0, &[before]), (0, &[n])]), &tokens, e, window);
            assert!(last(&together, n) == alone, "{variants:?} E={e} {window:?}: other bits behind {before} tokens");
        }
        // The same sequence as the second branch behind a prefix: its queries get what they get alone.
        let prefix = 21;
        let tokens = (0..prefix).map(|i| (0, i)).chain((0..38).map(|i| (1, i))).chain(mine(0).skip(prefix));
        let tokens = tokens.collect::<Vec<_>>();
        let shared = attend(&gpu, &packed(&[(prefix, &[38, n - prefix])]), &tokens, e, window);
        assert!(last(&shared, n - prefix) == last(&alone, n - prefix), "{variants:?} E={e} {window:?}: shared prefix");
        // The comparison sees a difference: another sequence's rows, and one more token.
        let other = attend(&gpu, &packed(&[(0, &[n])]), &mine(1).collect::<Vec<_>>(), e, window);
        let moved = attend(
            &gpu,
            &packed(&[(0, &[n + 1])]),
            &[(1, 0)].into_iter().chain(mine(0)).collect::<Vec<_>>(),
            e,
            window,
        );
        for (i, rows) in alone.iter().enumerate() {
            assert!(other[i] != *rows && last(&moved, n)[i] != *rows, "{variants:?}: output {i}");
        }
    }
}

#[test]
fn in_the_baseline() {
    check(&[]);
}

#[test]
fn on_cpus() {
    check(&[Variant::Cpu]);
    check(&[Variant::Lanes, Variant::Cpu]);
}

#[test]
fn on_gpus() {
    check(&[Variant::Flash]);
}
