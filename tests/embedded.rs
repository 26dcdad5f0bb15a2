//! Operands that lie in the middle of what is no number: no product, no attention and no norm reads beyond its rows, columns and heads, or writes
//! there.
//! (Past a binding, software drivers give 0, and GPUs anything: here the edges lie inside.)

use std::ops::Range;

use jointwise::gpu::{DeviceChoice, Gpu, MatmulPrecision, Slot, Variant};
use jointwise::kernels::attention::{
    AttentionConfig, AttentionSaved, QkvLayout, SegmentTable, WindowedHeads, attention_bwd, attention_fwd,
};
use jointwise::kernels::column_sum::column_sum;
use jointwise::kernels::matmul::{
    Epilogue, LinearPass, LowRank, MatmulDesc, MatmulOperands, OperandMatrix, matmul_with,
};
use jointwise::kernels::packed_batch::PackedBatch;
use jointwise::kernels::rmsnorm::{RmsnormRows, rmsnorm_bwd_w, rmsnorm_bwd_x, rmsnorm_fwd};
use jointwise::kernels::storage::{PackedWeight, WeightFormat};
use jointwise::kernels::{error_over_tolerance, tolerance};
use jointwise::rng::Rng;

/// What lies around C, and must stay.
const AROUND: f32 = 7.25;
const ALPHA: f32 = 0.5;

fn values(rng: &mut Rng, n: usize) -> Vec<f32> {
    // As bf16 holds them, so that every storage has the same.
    (0..n).map(|_| half::bf16::from_f32(rng.normal()).to_f32()).collect()
}

/// Rows in the middle of a larger field.
struct Field {
    words: Vec<f32>,
    start: usize,
    stride: usize,
    columns: usize,
}

impl Field {
    /// `inside` is (rows, columns); rows and columns of `around` before and behind, so many that rows still begin at quads.
    fn new(inside: &[f32], columns: usize, around: f32) -> Self {
        let stride = columns.next_multiple_of(4) + 8;
        let (rows, start) = (inside.len() / columns, 2 * stride + 4);
        let mut words = vec![around; (rows + 4) * stride];
        for (i, row) in inside.chunks(columns).enumerate() {
            words[start + i * stride..][..columns].copy_from_slice(row);
        }
        Self { words, start, stride, columns }
    }

    fn upload(&self, gpu: &Gpu, storage: WeightFormat) -> Slot {
        let n = self.words.len();
        gpu.upload(&PackedWeight::new(storage, self.words.clone(), n).part(0, 1, n))
    }

    fn matrix<'a>(&self, slot: &'a Slot) -> OperandMatrix<'a> {
        OperandMatrix { start: self.start, ..OperandMatrix::new(slot, self.stride) }
    }

    fn columns_of(&self, row: usize) -> Range<usize> {
        let first = self.start + row * self.stride;
        first..first + self.columns
    }

    /// Rows of what a device holds in its place, and whether all around them is as it was.
    fn read(&self, gpu: &Gpu, slot: &Slot) -> (Vec<f64>, bool) {
        let mut all: Vec<f32> = pollster::block_on(gpu.read(&[slot])).expect("readback").concat();
        let rows = (self.words.len() / self.stride) - 4;
        let inside = (0..rows).flat_map(|row| all[self.columns_of(row)].to_vec()).map(f64::from).collect();
        (0..rows).for_each(|row| all[self.columns_of(row)].fill(AROUND));
        (inside, all.iter().all(|&v| v == AROUND))
    }
}

/// One product: what is added to it, and how many terms of its sums are computed.
struct Embedded {
    p: MatmulDesc,
    rank: usize,
    epilogue: bool,
}

impl Embedded {
    /// Stored shapes of A and B.
    fn shapes(&self) -> [(usize, usize); 2] {
        let MatmulDesc { m, n, k, .. } = self.p;
        match self.p.orientation {
            LinearPass::Forward => [(m, k), (n, k)],
            LinearPass::BackwardX => [(m, k), (k, n)],
            LinearPass::BackwardW => [(k, m), (k, n)],
        }
    }

    /// As a multiple of the tolerance; and whether all around C stayed. `more`: terms beyond K.
    fn error(&self, gpu: &Gpu, more: usize) -> (f64, bool) {
        let mut rng = Rng::new(20_261_129, 3);
        let MatmulDesc { orientation, m, n, k, .. } = self.p;
        let (r, transposed) = (self.rank, orientation == LinearPass::Forward);
        let [(a_rows, a_columns), (b_rows, b_columns)] = self.shapes();
        let (b2_rows, b2_columns) = match r {
            0 => (1, 1),
            _ if transposed => (n, r),
            _ => (r, n),
        };
        // Of what there is none of, there is one number, which is not read.
        let mut draw = |n: usize| values(&mut rng, n.max(1));
        let (a, b, a2, b2) =
            (draw(a_rows * a_columns), draw(b_rows * b_columns), draw(m * r), draw(b2_rows * b2_columns));
        let (bias, residual, before) = (draw(n), draw(m * n), draw(m * n));

        let want = (0..m * n).map(|i| {
            let (row, column) = (i / n, i % n);
            let term = |k: usize| {
                let a = if orientation == LinearPass::BackwardW { a[k * m + row] } else { a[row * self.p.k + k] };
                let b = if transposed { b[column * self.p.k + k] } else { b[k * n + column] };
                f64::from(a) * f64::from(b)
            };
            let term2 = |k: usize| {
                f64::from(a2[row * r + k]) * f64::from(b2[if transposed { column * r + k } else { k * n + column }])
            };
            let sum: f64 = (0..k).map(term).chain((0..r).map(term2)).sum();
            let added = if self.epilogue { f64::from(bias[column]) + f64::from(residual[i]) } else { 0.0 };
            f64::from(ALPHA) * sum + added + if self.p.accumulate { f64::from(before[i]) } else { 0.0 }
        });
        let want: Vec<f64> = want.collect();

        let nan = f32::NAN;
        let field = |values: &[f32], columns: usize| Field::new(values, columns.max(1), nan);
        let (a, b, a2, b2) = (field(&a, a_columns), field(&b, b_columns), field(&a2, r), field(&b2, b2_columns));
        // What is not added to is not read either.
        let before = if self.p.accumulate { before } else { vec![nan; m * n] };
        let (c, residual) = (Field::new(&before, n, AROUND), field(&residual, n));
        let bias: Vec<f32> = [vec![nan; 3], bias, vec![nan; 64]].concat();

        let slots = [&a, &a2, &b2, &c, &residual].map(|field| field.upload(gpu, WeightFormat::F32));
        let ([a_slot, a2_slot, b2_slot, c_slot, residual_slot], b_slot) = (&slots, b.upload(gpu, self.p.storage));
        let bias_slot = gpu.upload(&bias);
        let second = LowRank { storage: WeightFormat::F32, k: r, a: a2.matrix(a2_slot), b: b2.matrix(b2_slot) };
        let epilogue = Epilogue { bias: Some((&bias_slot, 3)), residual: Some(residual_slot) };
        let operands = MatmulOperands::new(a.matrix(a_slot), b.matrix(&b_slot), c.matrix(c_slot));
        let operands = MatmulOperands {
            second: (r > 0).then_some(second),
            epilogue: if self.epilogue { epilogue } else { Epilogue::default() },
            ..operands
        };
        let mut rec = gpu.record();
        matmul_with(&mut rec, &MatmulDesc { k: k + more, ..self.p }, operands);
        rec.submit();
        let (got, stayed) = c.read(gpu, c_slot);
        (error_over_tolerance(&got, &want, tolerance(gpu.caps().matmul_precision, k + r + 3)), stayed)
    }
}

/// M, N, K at both sides of tiles of 32, 64 and 128 and of slices of 16, of few and of many.
const SIZES: [(usize, usize, usize); 8] =
    [(1, 4, 4), (3, 36, 20), (33, 68, 36), (40, 12, 32), (65, 124, 16), (129, 132, 68), (34, 30, 20), (7, 66, 12)];

fn products(gpu: &Gpu, name: &str) {
    for (m, n, k) in SIZES {
        for orientation in [LinearPass::Forward, LinearPass::BackwardX, LinearPass::BackwardW] {
            let storages: &[WeightFormat] = if orientation == LinearPass::BackwardW {
                &[WeightFormat::F32]
            } else {
                &[WeightFormat::F32, WeightFormat::Bf16]
            };
            for (&storage, accumulate) in storages.iter().flat_map(|s| [(s, false), (s, true)]) {
                let rank = if orientation == LinearPass::BackwardW { 0 } else { 8 };
                let p = MatmulDesc { orientation, storage, m, n, k, alpha: ALPHA, accumulate };
                let all = [(0, false), (rank, false), (rank, orientation == LinearPass::Forward)];
                for (i, (rank, epilogue)) in all.into_iter().enumerate().filter(|(i, (rank, _))| *i == 0 || *rank > 0) {
                    let case = Embedded { p, rank, epilogue };
                    let at =
                        format!("{name} {orientation:?} {storage:?} {m}x{n}x{k} R={rank} {epilogue} C+={accumulate}");
                    let (error, stayed) = case.error(gpu, 0);
                    assert!(error <= 1.0, "{at}: error is {error:.2} × the tolerance");
                    assert!(stayed, "{at}: written beyond C");
                    // Terms beyond K are no numbers: whoever reads them is seen.
                    assert!(i > 0 || case.error(gpu, 4).0 > 1.0, "{at}: K + 4 passes");
                }
            }
        }
    }
}

fn open() -> Gpu {
    pollster::block_on(Gpu::open(&DeviceChoice::Best)).expect("a device")
}

/// Devices below the highest precision, where there are cooperative matrices.
fn lower_precisions() -> impl Iterator<Item = Gpu> {
    let open = |precision| pollster::block_on(Gpu::open_for(&DeviceChoice::Best, precision)).ok();
    [MatmulPrecision::High, MatmulPrecision::Medium].into_iter().filter_map(open)
}

#[test]
fn products_in_the_baseline() {
    products(&open().with_variants(Vec::new()), "baseline");
}

#[test]
fn products_in_tiles() {
    for variant in [Variant::Tiles32, Variant::Tiles64, Variant::Tiles64Wide, Variant::Tiles128] {
        products(&open().with_variants(vec![variant]), variant.name());
    }
}

#[test]
fn products_on_cpus() {
    for variants in [&[Variant::Cpu][..], &[Variant::Lanes], &[Variant::Lanes, Variant::Cpu]] {
        products(&open().with_variants(variants.to_vec()), &format!("{variants:?}"));
    }
}

#[test]
fn products_of_lower_precision() {
    lower_precisions().for_each(|gpu| products(&gpu, gpu.caps().matmul_precision.name()));
}

const HEADS: usize = 4;
const KV_HEADS: usize = 2;

/// A prefix with two branches, and a sequence alone: at no tile's edge.
fn batch() -> PackedBatch {
    let mut batch = PackedBatch::default();
    for (n, prefix, position) in [(21, [0, 0], 0), (38, [0, 21], 21), (9, [0, 21], 21), (33, [0, 0], 0)] {
        let start = batch.ranges.len() as u32;
        batch.positions.extend(position..position + n);
        batch.ranges.extend((start..start + n).map(|i| [prefix[0], prefix[1], start, i + 1]));
    }
    batch
}

/// o, lse and d_qkv's numbers, as bits, where q, k and v have `gap` elements that are no numbers before and behind each token's.
fn attend(gpu: &Gpu, e: usize, window: Option<usize>, gap: usize, tail: usize) -> [Vec<u32>; 3] {
    let batch = batch();
    let (t, q, k) = (batch.ranges.len(), HEADS * e, KV_HEADS * e);
    let a = AttentionConfig { heads: HEADS, kv_heads: KV_HEADS, head_dim: e, scale: 0.3, softcap: None, window };
    let stride = q + 2 * k + 4 * gap;
    let l =
        QkvLayout { q_start: gap, q_stride: stride, k_start: 2 * gap + q, v_start: 3 * gap + q + k, kv_stride: stride };
    let is_inside = |column: usize| {
        [(l.q_start, q), (l.k_start, k), (l.v_start, k)].iter().any(|&(start, n)| (start..start + n).contains(&column))
    };
    let (mut rng, mut rng_d) = (Rng::new(5, 1), Rng::new(5, 2));
    let mut qkv: Vec<f32> =
        (0..t * stride).map(|i| if is_inside(i % stride) { rng.normal() } else { f32::NAN }).collect();
    qkv.resize(t * stride + tail, f32::NAN);
    let mut d_o: Vec<f32> = (0..t * q).map(|_| rng_d.normal()).collect();
    d_o.resize(t * q + tail, f32::NAN);
    let (qkv, d_o) = (gpu.upload(&qkv), gpu.upload(&d_o));
    let (o, lse, d_qkv) = (
        gpu.alloc_activation(t * q + tail),
        gpu.alloc_activation(t * HEADS + tail),
        gpu.alloc_activation(t * stride + tail),
    );
    [&o, &lse, &d_qkv].iter().for_each(|slot| gpu.write(slot, &vec![f32::NAN; slot.len()]));
    let s = SegmentTable::of_batch(gpu, &batch, &[WindowedHeads { head_dim: e, window }]);
    let mut rec = gpu.record();
    attention_fwd(&mut rec, &a, &l, &qkv, &qkv, &s, &o, &lse);
    attention_bwd(&mut rec, &a, &l, AttentionSaved { qkv: &qkv, o: &o, lse: &lse }, &s, &d_o, &d_qkv);
    rec.submit();
    let read = |slot: &Slot| pollster::block_on(gpu.read::<f32>(&[slot])).expect("readback").concat();
    let (o, lse, d) = (read(&o), read(&lse), read(&d_qkv));
    for (what, beyond) in [("o", &o[t * q..]), ("lse", &lse[t * HEADS..]), ("d_qkv", &d[t * stride..])] {
        assert!(beyond.iter().all(|v| v.is_nan()), "{what}: written beyond");
    }
    let inside = |(column, v): (usize, &f32)| {
        assert!(is_inside(column) || v.is_nan(), "d_qkv: written between heads");
        is_inside(column).then(|| v.to_bits())
    };
    let d = d[..t * stride].chunks(stride).flat_map(|row| row.iter().enumerate().filter_map(inside)).collect();
    let bits = |values: &[f32]| values.iter().map(|v| v.to_bits()).collect();
    [bits(&o[..t * q]), bits(&lse[..t * HEADS]), d]
}

fn attention(gpu: &Gpu, name: &str, heads: &[usize]) {
    for (e, window) in heads.iter().flat_map(|&e| [(e, None), (e, Some(20))]) {
        let plain = attend(gpu, e, window, 0, 0);
        let embedded = attend(gpu, e, window, 4, 4096);
        for (i, (want, got)) in plain.iter().zip(&embedded).enumerate() {
            assert!(want.iter().all(|&v| f32::from_bits(v).is_finite()), "{name} E={e}: output {i}");
            assert!(want == got, "{name} E={e} {window:?}: output {i} depends on what lies around");
        }
        // The comparison sees a difference.
        assert!(attend(gpu, e, Some(19), 0, 0)[0] != plain[0], "{name} E={e}");
    }
}

#[test]
fn attention_in_every_implementation() {
    for variants in [&[][..], &[Variant::Cpu], &[Variant::Lanes, Variant::Cpu], &[Variant::Flash]] {
        attention(&open().with_variants(variants.to_vec()), &format!("{variants:?}"), &[8, 64]);
    }
}

#[test]
fn attention_of_lower_precision() {
    lower_precisions().for_each(|gpu| attention(&gpu, gpu.caps().matmul_precision.name(), &[20]));
}

/// y and d_x of the heads, and d_w, as bits, of RMSNorm where each token's heads have `gap` elements that are no numbers before and behind them.
fn norm_heads(gpu: &Gpu, tokens: usize, groups: usize, width: usize, gap: usize) -> [Vec<u32>; 3] {
    let (heads, stride) = (groups * width, groups * width + 2 * gap);
    let rows =
        RmsnormRows { tokens, groups, width, x_start: gap, x_stride: stride, y_start: 2 * gap, y_stride: stride + gap };
    let spread = |values: &[f32], start: usize, stride: usize, around: f32| {
        let mut all = vec![around; start + tokens * stride];
        for (t, row) in values.chunks(heads).enumerate() {
            all[start + t * stride..][..heads].copy_from_slice(row);
        }
        gpu.upload(&all)
    };
    let inside = |slot: &Slot, start: usize, stride: usize| -> Vec<u32> {
        let all: Vec<u32> = pollster::block_on(gpu.read(&[slot])).expect("readback").concat();
        let is_inside = |i: &usize| *i >= start && (*i - start) % stride < heads;
        assert!(
            (0..all.len()).filter(|i| !is_inside(i)).all(|i| f32::from_bits(all[i]) == AROUND),
            "D={width}: written outside of the heads"
        );
        (0..all.len()).filter(is_inside).map(|i| all[i]).collect()
    };
    // Draws of their own: the first tokens are alike, whatever follows.
    let draw = |seed, n| values(&mut Rng::new(6, seed), n);
    let (x, d_y, before) = (draw(1, tokens * heads), draw(2, tokens * heads), draw(3, tokens * heads));
    let nan = f32::NAN;
    let (x, d_y) = (spread(&x, gap, stride, nan), spread(&d_y, 2 * gap, stride + gap, nan));
    let w = gpu.upload(&draw(4, width));
    let y = spread(&vec![nan; tokens * heads], 2 * gap, stride + gap, AROUND);
    let d_x = spread(&before, gap, stride, AROUND);
    let (r, d_w) = (gpu.alloc_activation(rows.count()), gpu.upload(&vec![0.0_f32; width]));
    let mut rec = gpu.record();
    rmsnorm_fwd(&mut rec, &rows, 1e-5, 0.5, &x, &w, &r, &y);
    rmsnorm_bwd_x(&mut rec, &rows, 0.5, true, &x, &w, &r, &d_y, &d_x);
    rmsnorm_bwd_w(&mut rec, &rows, &x, &r, &d_y, &d_w);
    rec.submit();
    let d_w = pollster::block_on(gpu.read(&[&d_w])).expect("readback").concat();
    [inside(&y, 2 * gap, stride + gap), inside(&d_x, gap, stride), d_w]
}

/// A head's result depends neither on what lies around it nor on the tokens beside it, and a column's sum not on its neighbours.
#[test]
fn norms_and_column_sums() {
    for variants in [&[][..], &[Variant::Rows]] {
        let gpu = open().with_variants(variants.to_vec());
        for (groups, width) in [(3, 64), (2, 260), (1, 576)] {
            let at = format!("{variants:?} D={width}");
            let plain = norm_heads(&gpu, 70, groups, width, 0);
            assert!(plain.iter().flatten().all(|&v| f32::from_bits(v).is_finite()), "{at}");
            assert!(plain == norm_heads(&gpu, 70, groups, width, 8), "{at}: depends on what lies around");
            let alone = norm_heads(&gpu, 1, groups, width, 8);
            let heads = groups * width;
            for i in 0..2 {
                assert!(alone[i] == plain[i][..heads], "{at}: output {i} depends on other tokens");
                assert!(alone[i] != plain[i][heads..2 * heads], "{at}: the comparison sees nothing");
            }
        }
        for (rows, width) in [(70, 60), (200, 68)] {
            let mut rng = Rng::new(7, 1);
            let x = values(&mut rng, rows * width);
            let sums = |margin: usize| {
                let mut around = vec![f32::NAN; rows * (width + 2 * margin)];
                for (row, x) in around.chunks_mut(width + 2 * margin).zip(x.chunks(width)) {
                    row[margin..][..width].copy_from_slice(x);
                }
                let (x, out) = (gpu.upload(&around), gpu.upload(&vec![0.0_f32; width]));
                let mut rec = gpu.record();
                column_sum(&mut rec, &x, rows, width + 2 * margin, margin, width, &out);
                rec.submit();
                pollster::block_on(gpu.read::<u32>(&[&out])).expect("readback").concat()
            };
            assert!(sums(0) == sums(8), "{variants:?} {rows}x{width}: depends on what lies around");
        }
    }
}
