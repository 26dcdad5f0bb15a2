//! The kernels of a training step: their list, their times, and the check of exactly those kernels that a program needs.
#![expect(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeSet;
use std::path::Path;

use jointwise::data::batch::Example;
use jointwise::eval::tasks::{DataSplit, rows};
use jointwise::gpu::{Caps, DeviceChoice, Gpu, PlannedWork, Recording, Shader, Slot, Variant};
use jointwise::kernels::description::KernelDescription;
use jointwise::kernels::shader_checks::{VariantCase, check_cases_of, check_shaders, variant_cases_of};
use jointwise::kernels::{Case, CaseOutputs, Cost, HostTensor, REGISTRY};
use jointwise::model::load::{LoadOptions, TrainMode};
use jointwise::model::lora_config::LoraConfig;
use jointwise::model::peft::Adapter;
use jointwise::model::saved::RecomputePolicy;
use jointwise::model::weights::{BaseDtype, TrainOptions};
use jointwise::ranks::{Ranks, ReduceDtype};
use jointwise::rng::Rng;
use jointwise::train::outcome::RowReference;
use jointwise::train::settings::TrainDefaults;
use jointwise::train::state;
use jointwise::train::step_launches::StepPhase;
use jointwise::train::trainer::{RecordedStep, StepUpdate, Trainer};
use jointwise::{Policy, Preferences, Recipe, Template};

const MODEL: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/models/demo");

/// The demo model with an adapter, and two pairs.
struct Setting {
    policy: Policy,
    rows: Preferences,
}

impl Setting {
    fn new() -> Self {
        let policy = Policy::open(MODEL).unwrap();
        let lines: Vec<String> =
            rows::conditional(DataSplit::Train, 0, 2).map(|row| serde_json::to_string(&row).unwrap()).collect();
        let options = jointwise::DataOptions { template: Template::Paper, ..Default::default() };
        let rows = Preferences::from_bytes("rows.jsonl", lines.join("\n").as_bytes(), &policy, &options).unwrap();
        Self { policy, rows }
    }

    fn trainer<'g>(&self, gpu: &'g Gpu) -> Trainer<'g> {
        let adapter = Adapter::new(self.policy.description(), &LoraConfig::all_linear(8), "", 0).unwrap();
        let options = LoadOptions {
            trained: TrainMode::Lora,
            lora: Some(adapter.lora),
            training: TrainOptions { optim: Some(TrainDefaults::OPTIM), ..TrainOptions::NONE },
            n_positions: 512,
            base: BaseDtype::Auto,
        };
        let decoder = self.policy.model().load(gpu, &options).unwrap();
        let goal = Recipe::default().settings().unwrap().goal();
        Trainer { gpu, decoder, goal, share_prefix: true, keep: RecomputePolicy::Everything, seed: 0 }
    }

    /// Records a step of two micro-batches.
    fn record<'g>(&self, trainer: &Trainer<'g>) -> RecordedStep<'g, '_> {
        let examples: Vec<&Example> = self.rows.dataset().examples.iter().collect();
        let reference = vec![RowReference::default(); examples.len()];
        let settings = Recipe::default().settings().unwrap();
        let update = StepUpdate {
            optimiser: &settings.optimiser,
            learning_rate: 1e-2,
            number: 1,
            ranks: Ranks::alone(),
            reduce_dtype: ReduceDtype::F32,
        };
        trainer.record(examples, reference, 1, &update)
    }

    fn loss(&self, trainer: &Trainer<'_>) -> f64 {
        let step = pollster::block_on(trainer.finish(self.record(trainer).submit())).unwrap();
        step.outcome.loss_sum
    }
}

fn open() -> Gpu {
    pollster::block_on(Gpu::open(&DeviceChoice::Best)).unwrap()
}

#[test]
fn the_list_of_launches_has_the_work_of_the_plan() {
    let (setting, gpu) = (Setting::new(), open());
    let trainer = setting.trainer(&gpu);
    let launches = setting.record(&trainer).launches();
    let mut listed = PlannedWork::new();
    for one in &launches {
        *listed.entry((one.launch.shader.entry, one.launch.work)).or_default() += 1;
    }
    let plan = Gpu::plan(gpu.caps().clone());
    let planned = setting.record(&setting.trainer(&plan)).planned_work();
    assert_eq!(listed, planned);
    // A list without one launch differs.
    let first = (launches[0].launch.shader.entry, launches[0].launch.work);
    *listed.get_mut(&first).unwrap() -= 1;
    assert_ne!(listed, planned);

    let phases: Vec<StepPhase> = launches.iter().map(|one| one.phase).collect();
    let mut runs = phases.clone();
    runs.dedup();
    use StepPhase::{Backward, Forward, Update};
    assert_eq!(runs, [Forward, Backward, Forward, Backward, Update], "two micro-batches and the update");
    let update: BTreeSet<&str> =
        launches.iter().filter(|one| one.phase == Update).map(|one| one.launch.shader.entry).collect();
    assert!(
        update.contains("adamw") && update.iter().all(|entry| entry.starts_with("global_norm") || *entry == "adamw")
    );
    assert!(launches.iter().any(|one| one.launch.scope == "L0"), "layers are named");
    for one in &launches {
        let (launch, about) = (&one.launch, KernelDescription::new(&one.launch.shader).unwrap());
        assert!(launch.workgroups.iter().all(|&n| n > 0) && launch.work.bytes > 0, "{launch:?}");
        assert!(about.formula.contains('=') || about.family == "sample", "{}: {}", about.family, about.formula);
        assert!(about.wgsl.contains(&format!("fn {}(", launch.shader.entry)));
        for file in [&about.shader_file, &about.rust_file] {
            assert!(Path::new(env!("CARGO_MANIFEST_DIR")).join(file).is_file(), "{file}");
        }
    }
}

#[test]
fn timing_a_step_changes_a_run_only_until_the_weights_are_restored() {
    let setting = Setting::new();
    let losses = |is_timed: bool, is_restored: bool, timestamps: bool| {
        let gpu = if timestamps { open() } else { open().without_timestamps() };
        let trainer = setting.trainer(&gpu);
        let mut losses = vec![setting.loss(&trainer)];
        if is_timed {
            let mut saved = Vec::new();
            let path = Path::new("state");
            pollster::block_on(state::encode(&gpu, &trainer.decoder.arena, path, &mut saved)).unwrap();
            let step = setting.record(&trainer);
            let n = step.launches().len();
            let times = pollster::block_on(step.time(0.5)).unwrap();
            let timed: Vec<f64> = times.launches_us.iter().flatten().copied().collect();
            assert_eq!(times.launches_us.len(), n);
            assert!(timed.iter().all(|&us| us > 0.0) && times.whole_us > 0.0, "{times:?}");
            assert!(timed.len() > n / 4, "{} of {n} launches are timed", timed.len());
            if is_restored {
                state::restore(&gpu, &trainer.decoder.arena, path, &saved).unwrap();
            }
        }
        losses.push(setting.loss(&trainer));
        losses
    };
    let plain = losses(false, false, true);
    assert_ne!(plain[0], plain[1], "nothing was learnt");
    assert_eq!(losses(true, true, true), plain, "by timestamps");
    assert_eq!(losses(true, true, false), plain, "by the clock");
    assert_ne!(losses(true, false, true), plain, "updates that ran again are not seen");
}

#[test]
fn a_run_of_the_library_lists_and_times_its_steps_and_goes_on_as_without() {
    let (gpu, policy) = (open(), Policy::open(MODEL).unwrap().with_lora(LoraConfig::all_linear(8)).unwrap());
    let rows = Preferences::read(concat!(env!("CARGO_MANIFEST_DIR"), "/examples/preferences.jsonl"), &policy).unwrap();
    let recipe = Recipe { max_steps: Some(2), batch_size: 2, learning_rate: 1e-2, ..Recipe::default() };
    let losses = |is_timed: bool| -> Vec<f64> {
        let mut training = policy.train(&gpu, &rows, &recipe).unwrap();
        let mut losses = Vec::new();
        for _ in 0..2 {
            losses.push(training.next().unwrap().unwrap().loss);
            if is_timed {
                let launches = training.step_launches().unwrap();
                let timed = training.time_step(0.2).unwrap();
                assert_eq!(timed.launches, launches, "the last step again");
                assert_eq!(timed.times.launches_us.len(), launches.len());
            }
        }
        assert!(training.next().is_none());
        losses
    };
    let plain = losses(false);
    assert_ne!(plain[0], plain[1]);
    assert_eq!(losses(true), plain);
}

/// Returns the shaders of a step of the demo model on a device with these capabilities.
fn step_shaders(caps: &Caps) -> Vec<Shader> {
    let (setting, plan) = (Setting::new(), Gpu::plan(caps.clone()));
    drop(setting.record(&setting.trainer(&plan)));
    plan.recorded_shaders()
}

#[test]
fn the_check_has_a_case_for_each_variant_that_a_step_uses_and_compiles_few_others() {
    for is_cpu in [false, true] {
        let subgroup = is_cpu.then_some((8, 8));
        let caps = Caps { is_cpu, subgroup, variants: Variant::default_for(is_cpu, 0), ..Caps::baseline() };
        let needed = step_shaders(&caps);
        let baseline = step_shaders(&Caps { variants: Vec::new(), ..caps.clone() });
        let entry = |shader: &Shader| (shader.module, shader.entry);
        let cases = variant_cases_of(&caps, &needed);
        let checked: BTreeSet<_> = cases.iter().flat_map(|case| &case.shaders).map(entry).collect();
        let own: BTreeSet<_> = needed.iter().map(entry).filter(|e| !baseline.iter().any(|s| entry(s) == *e)).collect();
        assert!(own.len() > 3 && own.is_subset(&checked), "not checked: {:?}", own.difference(&checked));
        // The comparison refuses a program with a kernel that has no case.
        let unknown = Shader::new("matmul_tiles", "none");
        assert!(!checked.contains(&entry(&unknown)));
        let compiled: BTreeSet<String> = cases.iter().flat_map(|case| &case.shaders).map(Shader::key).collect();
        let all =
            caps.variants.iter().flat_map(|&v| REGISTRY.iter().flat_map(move |k| k.variant_cases(v, &caps_of(is_cpu))));
        let all: BTreeSet<String> = all
            .flat_map(|case| jointwise::kernels::shader_checks::case_shaders(&caps, case.as_ref()))
            .map(|shader| shader.key())
            .collect();
        println!(
            "is_cpu {is_cpu}: {} needed, {} compiled, {} of all variants",
            needed.len(),
            compiled.len(),
            all.len()
        );
        assert!(2 * compiled.len() < all.len(), "{} of {} are compiled", compiled.len(), all.len());
    }
}

fn caps_of(is_cpu: bool) -> Caps {
    Caps { is_cpu, subgroup: is_cpu.then_some((8, 8)), variants: Variant::default_for(is_cpu, 0), ..Caps::baseline() }
}

/// Case of a kernel that computes wrongly: its twin differs in one value.
struct WrongKernel(Box<dyn Case>);

impl Case for WrongKernel {
    fn label(&self) -> String {
        self.0.label()
    }
    fn inputs(&self, rng: &mut Rng) -> Vec<HostTensor> {
        self.0.inputs(rng)
    }
    fn forward(&self, x: &[Vec<f64>]) -> Vec<Vec<f64>> {
        let mut y = self.0.forward(x);
        y[0][0] += 1.0;
        y
    }
    fn launch(&self, rec: &mut Recording, x: &[Slot], d_y: &[Slot]) -> CaseOutputs {
        CaseOutputs { d_x: Vec::new(), ..self.0.launch(rec, x, d_y) }
    }
    fn d_y_lens(&self) -> Vec<usize> {
        self.0.d_y_lens()
    }
    fn reduction_len(&self) -> usize {
        self.0.reduction_len()
    }
    fn cost(&self) -> Cost {
        self.0.cost()
    }
}

#[test]
fn the_check_passes_a_right_device_and_finds_a_wrong_kernel() {
    let gpu = open();
    let needed = step_shaders(gpu.caps());
    let found = pollster::block_on(check_shaders(&gpu, &needed)).unwrap();
    assert!(found.n_shaders > 0 && !found.variants.is_empty(), "{found:?}");
    assert_eq!(found.wrong(), [], "{found:?}");
    let mut cases = variant_cases_of(gpu.caps(), &needed);
    let VariantCase { variant, case, shaders } = cases.swap_remove(0);
    cases.push(VariantCase { variant, case: Box::new(WrongKernel(case)), shaders });
    assert_eq!(pollster::block_on(check_cases_of(&gpu, &cases)).unwrap().wrong(), [variant]);
}
