//! What a row of attention gets does not depend on what is packed beside it, to the bit, in any implementation.

use jointwise::gpu::{DeviceChoice, Gpu, MatmulPrecision, Variant};
use jointwise::kernels::attention::{
    AttentionConfig, AttentionSaved, SegmentTable, WindowedHeads, attention_bwd, attention_fwd,
};
use jointwise::kernels::attention_sinks::{SinkRows, attention_sinks_bwd, attention_sinks_fwd};
use jointwise::kernels::packed_batch::PackedBatch;
use jointwise::rng::Rng;

const HEADS: usize = 4;
const KV_HEADS: usize = 2;

/// Sequences one after the other, each a prefix's length and its branches'.
fn packed(shape: &[(usize, &[usize])]) -> PackedBatch {
    let mut batch = PackedBatch::default();
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
fn attend(gpu: &Gpu, batch: &PackedBatch, tokens: &[(usize, usize)], e: usize, window: Option<usize>) -> [Bits; 4] {
    attend_scaled(gpu, batch, tokens, e, window, [1.0; 4])
}

/// The same with q, k, v and d_o times a factor each.
fn attend_scaled(
    gpu: &Gpu,
    batch: &PackedBatch,
    tokens: &[(usize, usize)],
    e: usize,
    window: Option<usize>,
    factors: [f32; 4],
) -> [Bits; 4] {
    let scale = 1.0 / (e as f32).sqrt();
    let a = AttentionConfig { heads: HEADS, kv_heads: KV_HEADS, head_dim: e, scale, softcap: None, window };
    let (l, t, q) = (a.packed(), tokens.len(), HEADS * e);
    assert_eq!(batch.ranges.len(), t);
    let factor = |c: usize| factors[[l.k_start, l.v_start, l.q_stride].iter().filter(|&&start| c >= start).count()];
    let rows = |width: usize, first: usize| -> Vec<f32> {
        let columns = first..first + width;
        tokens.iter().flat_map(|&(s, i)| columns.clone().map(move |c| factor(c) * value(s, i, c))).collect()
    };
    let (qkv, d_o) = (gpu.upload(&rows(l.q_stride, 0)), gpu.upload(&rows(q, l.q_stride)));
    let (o, lse, d_qkv) =
        (gpu.alloc_activation(t * q), gpu.alloc_activation(t * HEADS), gpu.alloc_activation(t * l.q_stride));
    let s = SegmentTable::of_batch(gpu, batch, &[WindowedHeads { head_dim: e, window }]);
    let mut rec = gpu.record();
    attention_fwd(&mut rec, &a, &l, &qkv, &qkv, &s, &o, &lse);
    attention_bwd(&mut rec, &a, &l, AttentionSaved { qkv: &qkv, o: &o, lse: &lse }, &s, &d_o, &d_qkv);
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
    check_on(&gpu, &format!("{variants:?}"), &[(8, None), (8, Some(20)), (64, None)]);
}

/// At head sizes and windows.
fn check_on(gpu: &Gpu, name: &str, layers: &[(usize, Option<usize>)]) {
    let n = 45;
    let mine = |sequence: usize| (0..n).map(move |i| (sequence, i));
    for &(e, window) in layers {
        let alone = attend(gpu, &packed(&[(0, &[n])]), &mine(0).collect::<Vec<_>>(), e, window);
        // The last are so many that a CPU takes more rows a lane; wide heads are not compiled for that here, which is slow.
        let long = (e == 8).then_some(1100);
        for before in [1, 7, 31, 32, 40, 64, 77].into_iter().chain(long) {
            let tokens: Vec<_> = (0..before).map(|i| (1, i)).chain(mine(0)).collect();
            let together = attend(gpu, &packed(&[(0, &[before]), (0, &[n])]), &tokens, e, window);
            assert!(last(&together, n) == alone, "{name} E={e} {window:?}: other bits behind {before} tokens");
        }
        // The same sequence as the second branch behind a prefix: its queries get what they get alone.
        let prefix = 21;
        let tokens = (0..prefix).map(|i| (0, i)).chain((0..38).map(|i| (1, i))).chain(mine(0).skip(prefix));
        let tokens = tokens.collect::<Vec<_>>();
        let shared = attend(gpu, &packed(&[(prefix, &[38, n - prefix])]), &tokens, e, window);
        assert!(last(&shared, n - prefix) == last(&alone, n - prefix), "{name} E={e} {window:?}: shared prefix");
        // The comparison sees a difference: another sequence's rows, and one more token.
        let other = attend(gpu, &packed(&[(0, &[n])]), &mine(1).collect::<Vec<_>>(), e, window);
        let moved =
            attend(gpu, &packed(&[(0, &[n + 1])]), &[(1, 0)].into_iter().chain(mine(0)).collect::<Vec<_>>(), e, window);
        for (i, rows) in alone.iter().enumerate() {
            assert!(other[i] != *rows && last(&moved, n)[i] != *rows, "{name}: output {i}");
        }
    }
}

/// Sinks far below every score change no bit, and have no gradient; sinks far above take all of the softmax.
#[test]
fn sinks_far_from_the_scores() {
    let gpu = pollster::block_on(Gpu::open(&DeviceChoice::Best)).expect("a device");
    let rows = SinkRows { tokens: 21, heads: HEADS, head_dim: 8 };
    let n = rows.tokens * HEADS;
    let values = |column: usize, n: usize| -> Vec<f32> { (0..n).map(|i| value(3, i, column)).collect() };
    let (o, lse_keys, delta) = (values(0, 8 * n), values(1, n), values(2, n));
    let run = |sink: f32| -> [Vec<f32>; 3] {
        let [sinks, keys, outputs, terms] =
            [&vec![sink; HEADS], &lse_keys, &o, &delta].map(|values| gpu.upload(values));
        let [lse, d_sinks] = [n, HEADS].map(|n| gpu.alloc_activation(n));
        let mut rec = gpu.record();
        rec.clear(&d_sinks);
        attention_sinks_fwd(&mut rec, &rows, &sinks, &keys, &outputs, &lse);
        attention_sinks_bwd(&mut rec, &rows, &sinks, &lse, &terms, &d_sinks);
        rec.submit();
        let read = pollster::block_on(gpu.read::<f32>(&[&outputs, &lse, &d_sinks])).expect("readback");
        let lens = [8 * n, n, HEADS];
        [0, 1, 2].map(|i| read[i][..lens[i]].to_vec())
    };
    assert!(run(-1e30) == [o.clone(), lse_keys.clone(), vec![0.0; HEADS]]);
    let [outputs, lse, d_sinks] = run(1e4);
    assert!(outputs.iter().all(|&x| x == 0.0) && lse.iter().all(|&x| x == 1e4));
    // All of delta goes to the sink.
    for (head, d_sink) in d_sinks.iter().enumerate() {
        let sum: f32 = delta.iter().skip(head).step_by(HEADS).sum();
        assert!((d_sink + sum).abs() < 1e-4, "{d_sink} {sum}");
    }
    // The comparison sees sinks among the scores.
    assert!(run(0.0)[0] != o && run(0.0)[1] != lse_keys);
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

/// Devices below the highest precision, where there are cooperative matrices (Mesa 26 in CI); elsewhere tests/kernels.rs sees them refused.
fn lower_precisions() -> impl Iterator<Item = (Gpu, &'static str)> {
    [MatmulPrecision::High, MatmulPrecision::Medium].into_iter().filter_map(|precision| {
        let gpu = pollster::block_on(Gpu::open_for(&DeviceChoice::Best, precision)).ok()?;
        Some((gpu, precision.name()))
    })
}

#[test]
fn on_cooperative_matrices() {
    for (gpu, name) in lower_precisions() {
        check_on(&gpu, name, &[(20, None), (20, Some(20))]);
    }
}

/// f16's range is narrow: gradients of training are far below it, activations may be above it. What is linear gives 2ⁿ times the result,
/// to the bit, for 2ⁿ times the operand.
#[test]
fn results_scale_with_operands() {
    let times = |rows: &Bits, n: i32| -> Bits {
        let scaled = |x: &u32| (f32::from_bits(*x) * 2f32.powi(n)).to_bits();
        rows.iter().map(|row| row.iter().map(scaled).collect()).collect()
    };
    for (gpu, name) in lower_precisions() {
        let (e, n) = (20, 37);
        let tokens: Vec<_> = (0..n).map(|i| (0, i)).collect();
        let scaled = |exponents: [i32; 4]| {
            attend_scaled(&gpu, &packed(&[(0, &[n])]), &tokens, e, None, exponents.map(|x| 2f32.powi(x)))
        };
        let [o, lse, d_q, d_kv] = scaled([0; 4]);
        let halves = |d_kv: &Bits| -> [Bits; 2] {
            let half = KV_HEADS * e;
            [0, half].map(|start| d_kv.iter().map(|row| row[start..start + half].to_vec()).collect())
        };
        let [d_k, d_v] = halves(&d_kv);
        for [qk, v, d_o] in [[0, 0, -30], [0, 24, 0], [0, -20, -40], [40, 0, 0], [-40, 10, -10]] {
            let got = scaled([qk, -qk, v, d_o]);
            let got_kv = halves(&got[3]);
            let want = [times(&o, v), lse.clone(), times(&d_q, v + d_o - qk)];
            assert!(got[..3] == want, "{name}: q and 1/k times 2^{qk}, v 2^{v}, d_o 2^{d_o}");
            assert!(got_kv == [times(&d_k, v + d_o + qk), times(&d_v, d_o)], "{name}: 2^{qk}, 2^{v}, 2^{d_o}");
        }
        // The comparison sees a last bit.
        assert!(scaled([1, 0, 0, 0])[1] != lse && scaled([0, 0, 0, 1])[2] != d_q, "{name}");
    }
}
