//! Every kernel of the registry: its twin's gradient against finite differences, the device against the twin, a nudged expectation
//! refused, every variant through naga to SPIR-V, MSL and HLSL, and uniform layouts against their Rust structs.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{LazyLock, Mutex, MutexGuard};

use jointwise::gpu::{Caps, DeviceChoice, Gpu, Recording, Role, SHADERS, Shader, Slot, Variant};
use jointwise::kernels::matmul::product;
use jointwise::kernels::shapes::ModelShape;
use jointwise::kernels::{Case, Cost, Host, Kernel, Outputs, REGISTRY, excess, self_test, tolerance, verify};
use jointwise::rng::Rng;

/// One device for all tests, one test at a time: recordings of a device are submitted in the order in which they were recorded.
fn gpu() -> MutexGuard<'static, Gpu> {
    static GPU: LazyLock<Mutex<Gpu>> = LazyLock::new(|| {
        Mutex::new(pollster::block_on(Gpu::open(&DeviceChoice::Best)).expect("a device, or Mesa's lavapipe"))
    });
    GPU.lock().unwrap_or_else(|e| e.into_inner())
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

fn check(kernel: &dyn Kernel) {
    let gpu = &*gpu();
    let mut rng = Rng::new(20_240_404, 530);
    for case in kernel.cases() {
        let case = case.as_ref();
        let inputs = case.inputs(&mut rng);
        let x: Vec<Vec<f64>> = inputs.iter().map(Host::to_f64).collect();
        let y = case.forward(&x);
        let d_y_host: Vec<Vec<f32>> = y.iter().take(case.differentiable()).map(|y| random(&mut rng, y.len())).collect();
        let d_y: Vec<Vec<f64>> = d_y_host.iter().map(|d| d.iter().map(|&v| f64::from(v)).collect()).collect();
        let d_x = case.backward(&x, &d_y);
        let lens: Vec<usize> = if d_x.is_empty() { Vec::new() } else { d_y.iter().map(Vec::len).collect() };
        assert_eq!(case.d_y_lens(), lens, "{}", case.label());
        check_differences(case, &x, &d_y, &d_x, &mut rng);

        let slots: Vec<Slot> = inputs.iter().map(|h| h.upload(gpu)).collect();
        let d_slots: Vec<Slot> = d_y_host.iter().map(|d| gpu.upload(d)).collect();
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
            let at = format!("{} {}: {what}", kernel.name(), case.label());
            compared += 1;
            if exact {
                assert_eq!(got, want, "{at}");
                return;
            }
            assert_eq!(got.len(), want.len(), "{at}");
            let error = excess(&got, want, case.reduction());
            assert!(error <= 1.0, "{at}: error is {error:.2} × the tolerance");
            // The same comparison must refuse an expectation that is slightly wrong, in one place.
            let mut nudged = want.to_vec();
            let scale = want.iter().fold(1e-30, |m: f64, x| m.max(x.abs()));
            nudged[want.len() / 2] += 3.0 * scale * tolerance(case.reduction());
            assert!(excess(&got, &nudged, case.reduction()) > 1.0, "{at}: a wrong expectation passes");
        };
        for (i, (slot, want)) in out.y.iter().zip(&y).enumerate() {
            compare(format!("output {i}"), slot, want, case.exact(i));
        }
        for (i, want) in d_x.iter().enumerate().filter(|(_, d)| !d.is_empty()) {
            let slot = out.d_x[i].as_ref().unwrap_or_else(|| panic!("{}: no gradient of input {i}", case.label()));
            compare(format!("gradient of input {i}"), slot, want, false);
        }
        assert!(compared > 0, "{}: nothing compared", case.label());
        let cost = case.cost();
        assert!(cost.bytes > 0, "{}: no cost", case.label());
    }
}

macro_rules! kernels {
    ($($name:ident),* $(,)?) => {
        $(#[test] fn $name() { check(kernel(stringify!($name))); })*

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
    ceiling,
    column_sum,
    embedding,
    gather,
    global_norm,
    layernorm,
    logprob,
    matmul,
    objective,
    rmsnorm,
    rope,
    sample,
];

#[test]
fn the_registry_covers_every_shader() {
    let files = |dir: &str| -> BTreeSet<String> {
        let entries = std::fs::read_dir(dir).expect("shaders").map(|e| e.expect("entry").path());
        let wgsl = entries.filter(|p| p.extension().is_some_and(|e| e == "wgsl"));
        wgsl.map(|p| p.file_stem().expect("stem").to_string_lossy().into_owned()).collect()
    };
    let owned: BTreeSet<String> = REGISTRY.iter().flat_map(|k| k.modules()).map(|m| m.to_string()).collect();
    assert_eq!(owned, files(concat!(env!("CARGO_MANIFEST_DIR"), "/shaders")));
    let shared: BTreeSet<String> =
        SHADERS.iter().filter_map(|(n, _)| n.strip_prefix("shared/")).map(String::from).collect();
    assert_eq!(shared, files(concat!(env!("CARGO_MANIFEST_DIR"), "/shaders/shared")));
}

fn translate(shader: &Shader) -> Result<(usize, usize, usize), String> {
    use naga::{back, front, valid};
    let source = shader.source().map_err(|e| e.to_string())?;
    let module = front::wgsl::parse_str(&source).map_err(|e| e.emit_to_string(&source))?;
    // The baseline profile: no capability beyond WebGPU's, but for the variant that needs subgroups.
    let lanes = source.contains("subgroup");
    let caps = if lanes { valid::Capabilities::SUBGROUP } else { valid::Capabilities::empty() };
    let info = valid::Validator::new(valid::ValidationFlags::all(), caps)
        .subgroup_operations(if lanes { valid::SubgroupOperationSet::all() } else { Default::default() })
        .subgroup_stages(if lanes { valid::ShaderStages::COMPUTE } else { valid::ShaderStages::empty() })
        .validate(&module)
        .map_err(|e| e.emit_to_string(&source))?;
    let stage = naga::ShaderStage::Compute;
    let (module, info) =
        back::pipeline_constants::process_overrides(&module, &info, Some((stage, shader.entry)), &Default::default())
            .map_err(|e| e.to_string())?;
    let options = back::spv::PipelineOptions { shader_stage: stage, entry_point: shader.entry.into() };
    let spirv = back::spv::write_vec(
        &module,
        &info,
        &back::spv::Options { lang_version: (1, 3), ..Default::default() },
        Some(&options),
    )
    .map_err(|e| e.to_string())?;
    let options = back::msl::Options { lang_version: (2, 4), fake_missing_bindings: true, ..Default::default() };
    let (msl, _) = back::msl::write_string(&module, &info, &options, &Default::default()).map_err(|e| e.to_string())?;
    let options = back::hlsl::Options {
        shader_model: back::hlsl::ShaderModel::V6_0,
        fake_missing_bindings: true,
        ..Default::default()
    };
    let (mut hlsl, pipeline) = (String::new(), back::hlsl::PipelineOptions::default());
    back::hlsl::Writer::new(&mut hlsl, &options, &pipeline).write(&module, &info, None).map_err(|e| e.to_string())?;
    Ok((spirv.len(), msl.len(), hlsl.len()))
}

#[test]
fn every_variant_becomes_spirv_msl_and_hlsl() {
    for kernel in REGISTRY {
        let variants = kernel.variants();
        assert!(!variants.is_empty(), "{}: no variants", kernel.name());
        for shader in variants {
            let (spirv, msl, hlsl) = translate(&shader).unwrap_or_else(|e| panic!("{}: {e}", shader.key()));
            assert!(spirv > 100 && msl > 300 && hlsl > 300, "{}: {spirv} {msl} {hlsl}", shader.key());
        }
    }
    // The check can fail.
    let broken = Shader::new("rmsnorm", "rmsnorm_forward");
    assert!(translate(&broken).is_err());
}

#[test]
fn uniform_layouts_equal_their_rust_structs() {
    for kernel in REGISTRY {
        let mut found = BTreeSet::new();
        for shader in kernel.variants() {
            let module = naga::front::wgsl::parse_str(&shader.source().expect("linked")).expect("parsed");
            for (_, ty) in module.types.iter() {
                let naga::TypeInner::Struct { span, .. } = ty.inner else { continue };
                let name = ty.name.clone().unwrap_or_default();
                let uniform = kernel.uniforms().into_iter().find(|(n, _)| *n == name);
                if let Some((_, size)) = uniform {
                    assert_eq!(span as usize, size, "{}: {name}", kernel.name());
                    found.insert(name);
                }
            }
        }
        assert_eq!(found.len(), kernel.uniforms().len(), "{}: uniforms not in its WGSL", kernel.name());
    }
}

#[test]
fn slots_return_to_the_pool_and_the_plan_counts_alike() {
    let plan = Gpu::plan(gpu().caps().clone());
    let run = |gpu: &Gpu| {
        let held = gpu.lasting(Role::Params, 100);
        let first = gpu.slot(1000);
        drop(first);
        let again = gpu.slot(900);
        let more = gpu.slot(10);
        drop((held, again, more));
        gpu.ledger().peak_by_role()
    };
    let counted = run(&plan);
    assert_eq!(counted.iter().find(|c| c.0 == Role::Activations).map(|c| c.1), Some(4096 + 256));
    assert_eq!(counted.iter().find(|c| c.0 == Role::Params).map(|c| c.1), Some(512));
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
    fn inputs(&self, rng: &mut Rng) -> Vec<Host> {
        self.case.inputs(rng)
    }
    fn forward(&self, x: &[Vec<f64>]) -> Vec<Vec<f64>> {
        let mut y = self.case.forward(x);
        y[0][0] += f64::from(u8::from(!self.gradient));
        y
    }
    fn backward(&self, x: &[Vec<f64>], d_y: &[Vec<f64>]) -> Vec<Vec<f64>> {
        let mut d_x = self.case.backward(x, d_y);
        d_x[0][0] += f64::from(u8::from(self.gradient));
        d_x
    }
    fn launch(&self, rec: &mut Recording, x: &[Slot], d_y: &[Slot]) -> Outputs {
        self.case.launch(rec, x, d_y)
    }
    fn reduction(&self) -> usize {
        self.case.reduction()
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
    for variant in Variant::ALL {
        let cases: Vec<_> = REGISTRY.iter().flat_map(|k| k.variant_cases(variant, gpu.caps())).collect();
        assert!(!cases.is_empty(), "{variant:?}: nothing is checked");
        for case in cases {
            assert!(error(case.as_ref()) <= 1.0, "{}", case.label());
            for gradient in [false, true] {
                let wrong = Wrong { case: case.as_ref(), gradient };
                assert!(error(&wrong) > 1.0, "{}: gradient={gradient}", case.label());
            }
        }
    }
    let plain = pollster::block_on(Gpu::open(&DeviceChoice::Best)).expect("a device").with_variants(Vec::new());
    let results = pollster::block_on(self_test(&plain)).expect("a device");
    assert!(results.iter().all(|(_, error)| *error <= 1.0), "{results:?}");
}

/// What lets a product's implementation be chosen by speed alone: all of them give the baseline's bits.
#[test]
fn variants_of_a_product_give_the_same_bits() {
    let gpu = &*gpu();
    let outputs = |case: &dyn Case, seed: u64| -> Vec<Vec<u32>> {
        let mut rng = Rng::new(seed, 6);
        let x: Vec<Slot> = case.inputs(&mut rng).iter().map(|h| h.upload(gpu)).collect();
        let d_y: Vec<Slot> = case.d_y_lens().iter().map(|&n| Host::normal(&mut rng, n).upload(gpu)).collect();
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
    assert_eq!(compared.len(), Variant::ALL.len());
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
    };
    let mut rng = Rng::new(20_240_404, 531);
    let gpu = &*gpu();
    let baseline = gpu.caps().clone();
    for is_cpu in [false, true] {
        let caps = Caps { variants: Variant::usual(is_cpu), ..baseline.clone() };
        let alone = product(34, 40, 24, &caps);
        assert_eq!(alone.inputs(&mut rng).iter().map(Host::len).collect::<Vec<_>>(), [34 * 24, 24 * 40]);
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
