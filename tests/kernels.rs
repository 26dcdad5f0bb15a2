//! Every kernel of the registry: its twin's gradient against finite differences, the device against the twin, a nudged expectation
//! refused.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Deref;
use std::sync::Mutex;

use jointwise::gpu::{Caps, DeviceChoice, Gpu, MatmulPrecision, Recording, Role, Slot, Variant};
use jointwise::kernels::causal_conv::{
    ConvActivation, ConvTable, causal_conv_bwd_s, causal_conv_bwd_x, causal_conv_fwd,
};
use jointwise::kernels::delta_rule::{
    DeltaChunks, DeltaHeads, DeltaRuleSaved, OuterStates, Segment, delta_rule_bwd, delta_rule_fwd,
};
use jointwise::kernels::l2norm::{l2norm_bwd, l2norm_fwd};
use jointwise::kernels::matmul::{
    self as products, Epilogue, LinearPass, LowRank, MatmulDesc, MatmulOperands, OperandMatrix, product,
};
use jointwise::kernels::shapes::ModelShape;
use jointwise::kernels::storage::WeightFormat;
use jointwise::kernels::{
    Case, CaseOutputs, Cost, HostTensor, Kernel, REGISTRY, error_over_tolerance, self_test, verify,
};
use jointwise::rng::Rng;

/// A device of a test's own while it runs, and the next one's after it: recordings of a device are submitted in the order in which they
/// were recorded, and a software driver compiles on one thread a device.
struct Borrowed(Option<Gpu>);

static IDLE: Mutex<Vec<Gpu>> = Mutex::new(Vec::new());

fn gpu() -> Borrowed {
    let mut idle = IDLE.lock().unwrap_or_else(|e| e.into_inner());
    // Opened under the lock: the second finds what the first compiled on the disk.
    let open = || {
        let gpu = pollster::block_on(Gpu::open(&DeviceChoice::Best)).expect("a device, or Mesa's lavapipe");
        gpu.with_guards()
    };
    Borrowed(Some(idle.pop().unwrap_or_else(open)))
}

impl Deref for Borrowed {
    type Target = Gpu;
    fn deref(&self) -> &Gpu {
        self.0.as_ref().expect("lent until it is dropped")
    }
}

impl Drop for Borrowed {
    fn drop(&mut self) {
        IDLE.lock().unwrap_or_else(|e| e.into_inner()).extend(self.0.take());
    }
}

fn kernel(name: &str) -> &'static dyn Kernel {
    *REGISTRY.iter().find(|k| k.name() == name).expect("a name of the registry")
}

fn random(rng: &mut Rng, n: usize) -> Vec<f32> {
    (0..n).map(|_| rng.normal()).collect()
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// Σ d_y·y along a direction of input `i`: the twin's gradient against central differences of its forward.
fn check_differences(case: &dyn Case, x: &[Vec<f64>], d_y: &[Vec<f64>], d_x: &[Vec<f64>], rng: &mut Rng) {
    for (i, gradient) in d_x.iter().enumerate().filter(|(_, g)| !g.is_empty()) {
        let direction: Vec<f64> = random(rng, gradient.len()).into_iter().map(f64::from).collect();
        let objective = |step: f64| {
            let mut moved = x.to_vec();
            moved[i].iter_mut().zip(&direction).for_each(|(x, d)| *x += step * d);
            case.forward(&moved).iter().zip(d_y).map(|(y, d)| dot(y, d)).sum::<f64>()
        };
        let step = 1e-5;
        let (want, got) = ((objective(step) - objective(-step)) / (2.0 * step), dot(gradient, &direction));
        let scale = dot(gradient, gradient).sqrt() * dot(&direction, &direction).sqrt() + 1e-9;
        assert!((want - got).abs() / scale < 1e-6, "{}: input {i}: {got} against differences {want}", case.label());
    }
}

/// All of a kernel's cases, on as many devices as there are cores. Cases whose labels differ in numbers alone share shaders, and so a device.
fn check_all(name: &str) {
    let mut groups = Vec::new();
    let mut group = |label: String| {
        let words = label.replace(|c: char| c.is_ascii_digit(), "");
        groups.iter().position(|g| *g == words).unwrap_or_else(|| {
            groups.push(words);
            groups.len() - 1
        })
    };
    let of_case: Vec<usize> = kernel(name).cases().iter().map(|case| group(case.label())).collect();
    let workers = std::thread::available_parallelism().map_or(1, usize::from).min(groups.len());
    std::thread::scope(|scope| {
        for worker in 0..workers {
            let of_case = &of_case;
            scope.spawn(move || {
                let cases = kernel(name).cases();
                check(name, &gpu(), cases.iter().enumerate().filter(|(i, _)| of_case[*i] % workers == worker));
            });
        }
    });
}

fn check<'a>(name: &str, gpu: &Gpu, cases: impl Iterator<Item = (usize, &'a Box<dyn Case>)>) {
    for (i, case) in cases {
        let (case, mut rng) = (case.as_ref(), Rng::new(20_240_404, 530 + i as u64));
        let inputs = case.inputs(&mut rng);
        let x: Vec<Vec<f64>> = inputs.iter().map(HostTensor::to_f64).collect();
        let y = case.forward(&x);
        let d_y_host: Vec<Vec<f32>> = y.iter().take(case.differentiable()).map(|y| random(&mut rng, y.len())).collect();
        let d_y: Vec<Vec<f64>> = d_y_host.iter().map(|d| d.iter().map(|&v| f64::from(v)).collect()).collect();
        let d_x = case.backward(&x, &d_y);
        let lens: Vec<usize> = if d_x.is_empty() { Vec::new() } else { d_y.iter().map(Vec::len).collect() };
        assert_eq!(case.d_y_lens(), lens, "{}", case.label());
        check_differences(case, &x, &d_y, &d_x, &mut rng);

        let slots: Vec<Slot> = inputs.iter().map(|input| input.upload(gpu)).collect();
        let d_slots: Vec<Slot> = d_y_host.into_iter().map(|d| HostTensor::F32(d).upload(gpu)).collect();
        let mut rec = gpu.record();
        let out = case.launch(&mut rec, &slots, &d_slots);
        rec.submit();
        assert_eq!(out.y.len(), y.len(), "{}: outputs", case.label());
        let mut compared = 0;
        let mut compare = |what: String, slot: &Slot, want: &[f64], exact: bool| {
            let got: Vec<f64> = if exact {
                let words: Vec<Vec<u32>> = pollster::block_on(gpu.read(&[slot])).expect("readback");
                words[0].iter().take(want.len()).map(|&v| f64::from(v)).collect()
            } else {
                let values: Vec<Vec<f32>> = pollster::block_on(gpu.read(&[slot])).expect("readback");
                values[0].iter().take(want.len()).map(|&v| f64::from(v)).collect()
            };
            let at = format!("{name} {}: {what}", case.label());
            compared += 1;
            if exact {
                assert_eq!(got, want, "{at}");
                return;
            }
            assert_eq!(got.len(), want.len(), "{at}");
            let error = error_over_tolerance(&got, want, case.tolerance());
            assert!(error <= 1.0, "{at}: error is {error:.2} × the tolerance");
            // The same comparison must refuse an expectation that is slightly wrong, in one place.
            let mut nudged = want.to_vec();
            let scale = want.iter().fold(1e-30, |m: f64, x| m.max(x.abs()));
            nudged[want.len() / 2] += 3.0 * scale * case.tolerance();
            assert!(error_over_tolerance(&got, &nudged, case.tolerance()) > 1.0, "{at}: a wrong expectation passes");
        };
        for (i, (slot, want)) in out.y.iter().zip(&y).enumerate() {
            compare(format!("output {i}"), slot, want, case.exact(i));
        }
        for (i, want) in d_x.iter().enumerate().filter(|(_, d)| !d.is_empty()) {
            let slot = out.d_x[i].as_ref().unwrap_or_else(|| panic!("{}: no gradient of input {i}", case.label()));
            compare(format!("gradient of input {i}"), slot, want, false);
        }
        assert!(compared > 0, "{}: nothing compared", case.label());
        let damaged = pollster::block_on(gpu.damaged_guards()).expect("readback");
        assert_eq!(damaged, 0, "{name} {}: written outside of a slot", case.label());
        let cost = case.cost();
        assert!(cost.bytes > 0, "{}: no cost", case.label());
    }
}

macro_rules! kernels {
    ($($name:ident),* $(,)?) => {
        $(#[test] fn $name() { check_all(stringify!($name)); })*

        #[test]
        fn every_kernel_has_its_test() {
            let tested = BTreeSet::from([$(stringify!($name)),*]);
            assert_eq!(tested, REGISTRY.iter().map(|k| k.name()).collect());
        }
    };
}

kernels![
    activation,
    adamw,
    add,
    attention,
    attention_sinks,
    causal_conv,
    ceiling,
    column_sum,
    columns,
    conv_gates,
    delta_gates,
    delta_rule,
    dropout,
    embedding,
    expert_bias,
    expert_rows,
    gated_rmsnorm,
    gather,
    global_norm,
    l2norm,
    layernorm,
    logprob,
    matmul,
    objective,
    output_gate,
    pack,
    rmsnorm,
    rope,
    router,
    sample,
];

#[test]
fn slots_return_to_the_pool_and_the_plan_counts_alike() {
    let plan = Gpu::plan(gpu().caps().clone());
    let run = |gpu: &Gpu| {
        let held = gpu.alloc_persistent(Role::Params, 100);
        let first = gpu.alloc_activation(1000);
        drop(first);
        let again = gpu.alloc_activation(900);
        let more = gpu.alloc_activation(10);
        drop((held, again, more));
        let _later = gpu.alloc_persistent(Role::Batch, 1);
        // They share one block of the driver's memory.
        let block = gpu.caps().memory_block_bytes;
        assert_eq!((gpu.ledger().peak_bytes(), gpu.ledger().total()), (block, 4096 + 256 + 256));
        gpu.ledger().peak_by_role()
    };
    let counted = run(&plan);
    assert_eq!(counted.iter().find(|c| c.0 == Role::Activations).map(|c| c.1), Some(4096 + 256));
    assert_eq!(counted.iter().find(|c| c.0 == Role::Params).map(|c| c.1), Some(512));
}

/// What a kernel reads behind a slot is no number, and what it writes there is found.
#[test]
fn guards_show_indices_out_of_a_slot() {
    let gpu = gpu();
    let run = |rows_of_a: usize, rows_of_c: usize| {
        let (m, n, k) = (16, 16, 16);
        let [a, b, c] = [rows_of_a * k, n * k, rows_of_c * n].map(|len| gpu.alloc_persistent(Role::Frozen, len));
        let p = MatmulDesc {
            orientation: LinearPass::Forward,
            storage: WeightFormat::F32,
            m,
            n,
            k,
            alpha: 1.0,
            accumulate: false,
        };
        let mut rec = gpu.record();
        products::matmul(&mut rec, &p, OperandMatrix::new(&a, k), OperandMatrix::new(&b, k), OperandMatrix::new(&c, n));
        rec.submit();
        let c = pollster::block_on(gpu.read::<f32>(&[&c])).expect("readback").concat();
        let damaged = pollster::block_on(gpu.damaged_guards()).expect("readback");
        (c.iter().filter(|x| x.is_nan()).count(), damaged)
    };
    assert_eq!(run(16, 16), (0, 0));
    assert_eq!(run(15, 16), (16, 0), "a row is read behind A");
    assert_eq!(run(16, 15), (0, 1), "a row is written behind C");
}

/// A case whose twin is wrong in one place.
struct Wrong<'a> {
    case: &'a dyn Case,
    gradient: bool,
}

impl Case for Wrong<'_> {
    fn label(&self) -> String {
        self.case.label()
    }
    fn inputs(&self, rng: &mut Rng) -> Vec<HostTensor> {
        self.case.inputs(rng)
    }
    fn forward(&self, x: &[Vec<f64>]) -> Vec<Vec<f64>> {
        let mut y = self.case.forward(x);
        y[0][0] += f64::from(u8::from(!self.gradient));
        y
    }
    fn backward(&self, x: &[Vec<f64>], d_y: &[Vec<f64>]) -> Vec<Vec<f64>> {
        let mut d_x = self.case.backward(x, d_y);
        if self.gradient {
            d_x[0][0] += 1.0;
        }
        d_x
    }
    fn launch(&self, rec: &mut Recording, x: &[Slot], d_y: &[Slot]) -> CaseOutputs {
        self.case.launch(rec, x, d_y)
    }
    fn reduction_len(&self) -> usize {
        self.case.reduction_len()
    }
    fn precision(&self) -> MatmulPrecision {
        self.case.precision()
    }
    fn cost(&self) -> Cost {
        self.case.cost()
    }
}

/// The check at start-up passes what is right, and refuses a wrong output and a wrong gradient.
#[test]
fn variants_are_checked() {
    let mut rng = Rng::new(3, 1);
    let gpu = &*gpu();
    let mut error = |case: &dyn Case| pollster::block_on(verify(gpu, case, &mut rng)).expect("a device");
    let is_used = |variant: &Variant| *variant != Variant::Lanes || gpu.caps().has_lanes();
    for variant in Variant::ALL.into_iter().filter(is_used) {
        let cases: Vec<_> = REGISTRY.iter().flat_map(|k| k.variant_cases(variant, gpu.caps())).collect();
        assert!(!cases.is_empty(), "{variant:?}: nothing is checked");
        let has_gradient = |case: &dyn Case| !case.d_y_lens().is_empty();
        assert!(cases.iter().any(|c| has_gradient(c.as_ref())), "{variant:?}: no gradient is checked");
        for case in cases {
            assert!(error(case.as_ref()) <= 1.0, "{}", case.label());
            for gradient in [false, true].into_iter().take(1 + usize::from(has_gradient(case.as_ref()))) {
                let wrong = Wrong { case: case.as_ref(), gradient };
                assert!(error(&wrong) > 1.0, "{}: gradient={gradient}", case.label());
            }
        }
    }
    let plain = pollster::block_on(Gpu::open(&DeviceChoice::Best)).expect("a device").with_variants(Vec::new());
    let results = pollster::block_on(self_test(&plain)).expect("a device");
    assert!(results.iter().all(|(_, error)| *error <= 1.0), "{results:?}");
}

/// Devices for products below the highest precision, where there are cooperative matrices (Mesa 26 in CI); elsewhere they are refused by
/// name.
fn lower_precisions() -> Vec<Gpu> {
    let mut all = Vec::new();
    for precision in [MatmulPrecision::High, MatmulPrecision::Medium] {
        let opened = pollster::block_on(Gpu::open_for(&DeviceChoice::Best, precision));
        if gpu().caps().cooperative.is_some() {
            all.push(opened.expect("a device"));
        } else {
            let error = opened.err().expect("refused").to_string();
            assert!(error.contains("--matmul-precision") && error.contains(precision.name()), "{error}");
        }
    }
    all
}

fn check_lower_precisions(name: &str) {
    for gpu in lower_precisions() {
        let cases = kernel(name).precision_cases(gpu.caps().matmul_precision);
        check(name, &gpu, cases.iter().enumerate());
        let mut rng = Rng::new(3, 2);
        let mut error = |case: &dyn Case| pollster::block_on(verify(&gpu, case, &mut rng)).expect("a device");
        for gradient in [false, true] {
            assert!(error(&Wrong { case: cases[0].as_ref(), gradient }) > 1.0, "gradient={gradient}");
        }
    }
}

#[test]
fn products_of_lower_precision() {
    check_lower_precisions("matmul");
}

#[test]
fn attention_of_lower_precision() {
    check_lower_precisions("attention");
}

/// f16's range is narrow: activations exceed it (Qwen's pass 65,504), and gradients lie far below it. Scales are powers of two, and a row
/// has one of its own: a row times 2ⁿ gives 2ⁿ times the result, to the bit, whatever the others are, no numbers included.
#[test]
fn a_product_scales_with_each_row() {
    let powers = |exponents: &[i32]| exponents.iter().map(|&e| 2f32.powi(e)).collect::<Vec<f32>>();
    let factors = [powers(&[0, 24, -30, 60, -60]), vec![f32::NAN, f32::INFINITY]].concat();
    for gpu in lower_precisions() {
        for orientation in [LinearPass::Forward, LinearPass::BackwardX] {
            let (m, n, k) = (factors.len(), 36, 68);
            let p = MatmulDesc { orientation, storage: WeightFormat::F32, m, n, k, alpha: 1.0, accumulate: false };
            let mut rng = Rng::new(3, 7);
            let (row, w) = (random(&mut rng, k), random(&mut rng, n * k));
            let x: Vec<f32> = factors.iter().flat_map(|f| row.iter().map(move |x| f * x)).collect();
            let product = |w_factor: f32| {
                let w: Vec<f32> = w.iter().map(|w| w_factor * w).collect();
                let (x, w, y) = (gpu.upload(&x), gpu.upload(&w), gpu.alloc_activation(m * n));
                let mut rec = gpu.record();
                let w = OperandMatrix::new(&w, if orientation == LinearPass::Forward { k } else { n });
                products::matmul(&mut rec, &p, OperandMatrix::new(&x, k), w, OperandMatrix::new(&y, n));
                rec.submit();
                pollster::block_on(gpu.read::<f32>(&[&y])).expect("readback").concat()
            };
            let plain = product(1.0);
            assert!(plain[..n].iter().all(|y| y.is_finite() && *y != 0.0), "{orientation:?}");
            for w_factor in powers(&[0, 20, -40]) {
                for (row, factor) in product(w_factor).chunks(n).zip(&factors) {
                    let want: Vec<f32> = plain[..n].iter().map(|y| factor * w_factor * y).collect();
                    let same = if factor.is_finite() { row == want } else { row.iter().all(|y| !y.is_finite()) };
                    assert!(
                        same,
                        "{orientation:?}: row times {factor}, weight times {w_factor}: {row:?}, not {want:?}"
                    );
                }
            }
        }
    }
}

/// An absmax that is known, of x for several products and of a weight for all its products, gives the bits of products that compute it. A wrong one gives
/// others.
#[test]
fn products_that_share_an_absmax_have_the_same_bits() {
    for gpu in lower_precisions() {
        let (m, k, widths) = (7, 68, [36, 40, 132]);
        let mut rng = Rng::new(3, 8);
        let x = gpu.upload(&random(&mut rng, m * k));
        let weights: Vec<Slot> = widths.iter().map(|n| gpu.upload(&random(&mut rng, n * k))).collect();
        let run = |rows_known: bool, weights_known: bool, factor: f32| {
            let mut rec = gpu.record();
            let rows = products::row_absmax(&mut rec, &x, m, k).filter(|_| rows_known);
            let all: Vec<Slot> = (weights.iter().zip(widths).enumerate())
                .map(|(i, (w, n))| {
                    let storage = WeightFormat::F32;
                    let of_weight = gpu.alloc_activation(1);
                    products::weight_absmax(&mut rec, storage, w, (n, k), &of_weight);
                    let wrong = gpu.upload(&[factor]);
                    let known = if factor == 0.0 { &of_weight } else { &wrong };
                    // One of three weights is unknown beside known rows.
                    let known = Some(known).filter(|_| weights_known && i != 1);
                    let (orientation, alpha) = (LinearPass::Forward, 1.0);
                    let p = MatmulDesc { orientation, storage, m, n, k, alpha, accumulate: false };
                    let y = gpu.alloc_activation(m * n);
                    let (a, b) = (OperandMatrix::new(&x, k), OperandMatrix::new(w, k));
                    let operands = (a.with_absmax(rows.as_ref()), b.with_absmax(known), OperandMatrix::new(&y, n));
                    products::matmul(&mut rec, &p, operands.0, operands.1, operands.2);
                    y
                })
                .collect();
            rec.submit();
            pollster::block_on(gpu.read::<u32>(&all.iter().collect::<Vec<_>>())).expect("readback")
        };
        let alone = run(false, false, 0.0);
        for (rows, weights) in [(true, false), (false, true), (true, true)] {
            assert!(run(rows, weights, 0.0) == alone, "rows known: {rows}, weights known: {weights}");
        }
        assert!(run(true, true, 1e-9) != alone, "a wrong absmax is not seen");
    }
}

/// What lets a product's implementation be chosen by speed alone: all of them give the baseline's bits. A property of the shader compiler, too: it
/// holds for Mesa's, which fuse no multiplication with an addition. One that does so in one kernel and not in another (FXC) gives other last bits.
#[test]
fn variants_of_a_product_give_the_same_bits() {
    let gpu = &*gpu();
    let outputs = |case: &dyn Case, seed: u64| -> Vec<Vec<u32>> {
        let mut rng = Rng::new(seed, 6);
        let x: Vec<Slot> = case.inputs(&mut rng).iter().map(|h| h.upload(gpu)).collect();
        let d_y: Vec<Slot> = case.d_y_lens().iter().map(|&n| HostTensor::normal(&mut rng, n).upload(gpu)).collect();
        let mut rec = gpu.record();
        let out = case.launch(&mut rec, &x, &d_y);
        rec.submit();
        let slots: Vec<&Slot> = out.y.iter().chain(out.d_x.iter().flatten()).collect();
        pollster::block_on(gpu.read(&slots)).expect("readback")
    };
    let mut of_baseline = BTreeMap::new();
    let mut compared = BTreeSet::new();
    for case in kernel("matmul").cases() {
        let label = case.label();
        let (shape, variant) = label.rsplit_once(' ').expect("a variant's name");
        let got = outputs(case.as_ref(), 4);
        if variant == "baseline" {
            assert_ne!(got, outputs(case.as_ref(), 5), "{label}: the comparison sees nothing");
            of_baseline.insert(shape.to_string(), got);
        } else {
            assert!(got == of_baseline[shape], "{label}: other bits than the baseline's");
            compared.insert(variant.to_string());
        }
    }
    // All but attention's own two, and that of norms, log-probabilities and gathers.
    assert_eq!(compared.len(), Variant::ALL.len() - 3);
}

/// What rides along in a product has the bits of passes of their own, in their order: the product, then the bias, then the residual.
#[test]
fn a_product_adds_bias_and_residual_as_passes_of_their_own_would() {
    let check = |gpu: &Gpu, name: &str| {
        let mut rng = Rng::new(3, 8);
        for (m, n, k, rank) in [(40, 68, 132, 0), (40, 12, 36, 6), (129, 132, 64, 64)] {
            let (orientation, storage) = (LinearPass::Forward, WeightFormat::F32);
            let p = MatmulDesc { orientation, storage, m, n, k, alpha: 1.0, accumulate: false };
            let mut values = |n: usize| random(&mut rng, n);
            let (x, w, x2, w2) = (values(m * k), values(n * k), values((m * rank).max(1)), values((n * rank).max(1)));
            let (bias, residual) = (values(n), values(m * n));
            let [x, w, x2, w2] = [x, w, x2, w2].map(|v| gpu.upload(&v));
            let (bias_slot, residual_slot) = (gpu.upload(&bias), gpu.upload(&residual));
            let product = |with_bias: bool, with_residual: bool| {
                let y = gpu.alloc_activation(m * n);
                let mut rec = gpu.record();
                let second =
                    LowRank { storage, k: rank, a: OperandMatrix::new(&x2, rank), b: OperandMatrix::new(&w2, rank) };
                let epilogue = Epilogue {
                    bias: with_bias.then_some((&bias_slot, 0)),
                    residual: with_residual.then_some(&residual_slot),
                };
                let operands = MatmulOperands::new(
                    OperandMatrix::new(&x, k),
                    OperandMatrix::new(&w, k),
                    OperandMatrix::new(&y, n),
                );
                let second = (rank > 0).then_some(second);
                products::matmul_with(&mut rec, &p, MatmulOperands { second, epilogue, ..operands });
                rec.submit();
                pollster::block_on(gpu.read::<f32>(&[&y])).expect("readback").concat()
            };
            let plain = product(false, false);
            let sums = |sum: &dyn Fn(f32, f32, f32) -> f32| -> Vec<f32> {
                (0..m * n).map(|i| sum(plain[i], bias[i % n], residual[i])).collect()
            };
            let at = format!("{name} {m}x{n}x{k} R={rank}");
            assert!(product(true, false) == sums(&|y, b, _| y + b), "{at}: bias");
            assert!(product(false, true) == sums(&|y, _, r| y + r), "{at}: residual");
            let both = product(true, true);
            assert!(both == sums(&|y, b, r| (y + b) + r), "{at}: both");
            // The comparison sees the order of the sums.
            assert!(both != sums(&|y, b, r| (y + r) + b) && both != sums(&|y, b, r| y + (b + r)), "{at}");
        }
    };
    let mut gpu = pollster::block_on(Gpu::open(&DeviceChoice::Best)).expect("a device");
    let usual = gpu.caps().variants.clone();
    let alone = Variant::ALL.into_iter().map(|v| vec![v]);
    for variants in alone.chain([Vec::new(), usual]) {
        gpu = gpu.with_variants(variants.clone());
        check(&gpu, &format!("{variants:?}"));
    }
    for gpu in lower_precisions() {
        check(&gpu, gpu.caps().matmul_precision.name());
    }
}

/// A time is of the right thing: what benchmarks run is checked as the other cases are, at a small model's shapes.
#[test]
fn benches_compute_what_they_time() {
    let model = ModelShape {
        name: "tiny",
        d_model: 24,
        n_heads: 4,
        n_kv_heads: 2,
        head_dim: 6,
        d_ff: 40,
        vocab: 66,
        n_layers: 1,
        tied: true,
        qk_norm: false,
    };
    let mut rng = Rng::new(20_240_404, 531);
    let gpu = &*gpu();
    let baseline = gpu.caps().clone();
    for is_cpu in [false, true] {
        let caps = Caps { variants: Variant::default_for(is_cpu, 0), ..baseline.clone() };
        let alone = product(34, 40, 24, &caps);
        assert_eq!(alone.inputs(&mut rng).iter().map(HostTensor::len).collect::<Vec<_>>(), [34 * 24, 24 * 40]);
        let mut all = vec![("product", alone)];
        for kernel in REGISTRY {
            let cases = kernel.benches(&model, 34, &caps);
            assert!(!cases.is_empty() || kernel.name() == "ceiling", "{}: no benchmark", kernel.name());
            all.extend(cases.into_iter().map(|case| (kernel.name(), case)));
        }
        for (name, case) in all {
            let error = pollster::block_on(verify(gpu, case.as_ref(), &mut rng)).expect("a device");
            assert!(error <= 1.0, "{name} {}: {error:.2} × the tolerance", case.label());
        }
    }
}

/// Outputs and gradients of linear attention's kernels over segments: convolution, L2 norm, delta rule. Bits of (T, ..) tensors.
fn linear_attention(gpu: &Gpu, segments: &[Segment], x: &[f32], gates: &[f32], d_o: &[f32]) -> Vec<Vec<u32>> {
    let heads = DeltaHeads { key_heads: 1, value_heads: 2, key_dim: 8, value_dim: 8 };
    let t = gates.len() / 4;
    let width = heads.width();
    let (conv, chunks) = (ConvTable::new(gpu, segments, 4), DeltaChunks::new(gpu, segments, OuterStates::default()));
    let w: Vec<f32> = random(&mut Rng::new(5, 5), 4 * width);
    let [x, gates, d_o, w] = [x, gates, d_o, &w].map(|v| gpu.upload(v));
    let [qkv, r, o, d_qkv, d_gates, d_x] =
        [t * width, 2 * t, 16 * t, t * width, 4 * t, t * width].map(|n| gpu.alloc_activation(n));
    let states = gpu.alloc_activation(chunks.states_len(&heads));
    let d_states = gpu.alloc_activation(chunks.d_states_len(&heads));
    let mut rec = gpu.record();
    causal_conv_fwd(&mut rec, &conv, width, ConvActivation::Silu, &w, &x, &qkv);
    l2norm_fwd(&mut rec, &heads, t, &qkv, &r);
    delta_rule_fwd(&mut rec, &heads, &chunks, &qkv, &gates, &o, &states);
    let saved = DeltaRuleSaved { qkv: &qkv, gates: &gates, o: &o, states: &states };
    delta_rule_bwd(&mut rec, &heads, &chunks, saved, &d_o, &d_states, &d_qkv, &d_gates);
    l2norm_bwd(&mut rec, &heads, t, &qkv, &r, &d_qkv);
    causal_conv_bwd_s(&mut rec, &conv, width, &w, &x, &d_qkv);
    causal_conv_bwd_x(&mut rec, &conv, width, &w, &d_qkv, &d_x);
    rec.submit();
    pollster::block_on(gpu.read::<u32>(&[&o, &d_x, &d_gates])).expect("readback")
}

/// A sequence's outputs and gradients have the same bits alone as packed beside others, and in every implementation. A prefix that branches
/// share gives the branches' own results but for rounding, and the sum of their gradients.
#[test]
fn linear_attention_of_packed_sequences_equals_that_of_each_alone() {
    let mut gpu = pollster::block_on(Gpu::open(&DeviceChoice::Best)).expect("a device");
    let mut rng = Rng::new(7, 7);
    let lens = [70, 5, 130];
    let t: usize = lens.iter().sum();
    let (x, d_o) = (random(&mut rng, 32 * t), random(&mut rng, 16 * t));
    let gate = |rng: &mut Rng, i: usize| if i % 4 < 2 { 0.5 } else { -rng.normal().exp() };
    let gates: Vec<f32> = (0..4 * t).map(|i| gate(&mut rng, i)).collect();
    let rows = |of: &[Vec<u32>], start: usize, len: usize| -> Vec<Vec<u32>> {
        of.iter().zip([16, 32, 4]).map(|(all, width)| all[start * width..(start + len) * width].to_vec()).collect()
    };
    let mut of_variants = Vec::new();
    for variants in [Vec::new(), vec![Variant::Cpu]] {
        gpu = gpu.with_variants(variants);
        let starts = [0, 70, 75];
        let segments: Vec<Segment> =
            starts.iter().zip(lens).map(|(&start, len)| Segment { start, len, prefix: None }).collect();
        let packed = linear_attention(&gpu, &segments, &x, &gates, &d_o);
        for Segment { start, len, .. } in segments {
            let part = |all: &[f32], width: usize| all[start * width..(start + len) * width].to_vec();
            let alone = Segment { start: 0, len, prefix: None };
            let got = linear_attention(&gpu, &[alone], &part(&x, 32), &part(&gates, 4), &part(&d_o, 16));
            assert!(got == rows(&packed, start, len), "a segment of {len} tokens");
        }
        // The comparison sees a token that belongs to another segment.
        let shifted = [(0, 69), (69, 136)].map(|(start, len)| Segment { start, len, prefix: None });
        let other = linear_attention(&gpu, &shifted, &x, &gates, &d_o);
        assert!(rows(&other, 70, 5)[0] != rows(&packed, 70, 5)[0]);
        of_variants.push(packed);
        // Prefix of 70 with branches of 5 and 66 tokens, and the same without sharing.
        let own = |start, len, prefix| Segment { start, len, prefix };
        let shared = [own(0, 70, None), own(70, 5, Some(0)), own(75, 66, Some(0))];
        let take = |all: &[f32], width: usize, ranges: &[[usize; 2]]| -> Vec<f32> {
            ranges.iter().flat_map(|r| all[r[0] * width..r[1] * width].to_vec()).collect()
        };
        let with = linear_attention(&gpu, &shared, &x[..32 * 141], &gates[..4 * 141], &d_o[..16 * 141]);
        let ranges = [[0, 70], [70, 75], [0, 70], [75, 141]];
        // The prefix's outputs count once.
        let mut d_o_without = take(&d_o, 16, &ranges);
        d_o_without[16 * 75..16 * 145].fill(0.0);
        let without = [own(0, 75, None), own(75, 136, None)];
        let without = linear_attention(&gpu, &without, &take(&x, 32, &ranges), &take(&gates, 4, &ranges), &d_o_without);
        let floats = |words: &[u32]| words.iter().map(|&w| f64::from(f32::from_bits(w))).collect::<Vec<f64>>();
        for (i, width) in [16, 32, 4].into_iter().enumerate() {
            let (with, without) = (floats(&with[i]), floats(&without[i]));
            let mut want: Vec<f64> =
                [[0, 75], [145, 211]].iter().flat_map(|r| without[r[0] * width..r[1] * width].to_vec()).collect();
            if i > 0 {
                (0..70 * width).for_each(|n| want[n] += without[75 * width + n]);
            }
            let error = error_over_tolerance(&with, &want, 1e-5);
            assert!(error < 1.0, "tensor {i}: {error}");
        }
    }
    assert!(of_variants[0] == of_variants[1], "the implementations' bits differ");
}
