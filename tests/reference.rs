//! Reference scores: of the rows that a run visits and no others, found out when it comes to them, kept as they are computed; the same bits as a
//! pass over the whole file before the first step gives.

mod program;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::rc::Rc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use jointwise::data::batch::Example;
use jointwise::gpu::{DeviceChoice, Gpu};
use jointwise::model::checkpoint::Checkpoint;
use jointwise::model::decoder::Decoder;
use jointwise::model::description::ModelConfig;
use jointwise::model::load::{LoadOptions, TrainMode};
use jointwise::model::lora_config::LoraConfig;
use jointwise::model::peft::Adapter;
use jointwise::model::saved::RecomputePolicy;
use jointwise::model::scores::DEFAULT_SCORE_TOKENS;
use jointwise::model::weights::{BaseDtype, ParamDtype, TrainOptions, WeightSource};
use jointwise::objective::TrainingLoss;
use jointwise::objective::{Loss, LossMix, PreferenceLoss, SftLoss};
use jointwise::ranks::ReduceDtype;
use jointwise::train::lr_schedule::LrSchedulerType;
use jointwise::train::reference::{
    OtherModel, ReferenceModel, ReferenceScorer, RowReferences, ScoringEvent, ScoringWatch, TrainingRows,
};
use jointwise::train::score_store::{RowKey, ScoreStore};
use jointwise::train::scoring;
use jointwise::train::scoring::ScoredSequence;
use jointwise::train::settings::{RunLength, TrainDefaults, TrainSettings};
use jointwise::train::state::TrainingState;
use jointwise::train::steps::StepRunner;
use jointwise::train::synthetic::{self, RowLengths};
use jointwise::train::trainer::Trainer;
use program::{Ran, Sandbox, fixture, metrics};

/// What is trained, and what scores.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Case {
    /// A new adapter; the model without it.
    New,
    /// An adapter that has learnt; its start.
    Start(ParamDtype),
    /// The same; the model without it.
    Base,
    /// Everything; the start, before the first step.
    Full,
    /// Everything; another model, which happens to be the start. What instructions are compared by is trained.
    Beside,
}

fn load(gpu: &Gpu, case: Case) -> Decoder {
    let dir = fixture("mistral-odd/model");
    let config = dir.join("config.json");
    let d = ModelConfig::from_json(&config, &fs::read_to_string(&config).expect("a file")).expect("a configuration");
    let settings = LoraConfig { rank: 4, targets: vec!["all-linear".into()], ..LoraConfig::default() };
    let mut lora = Adapter::new(&d, &settings, "base", 3).expect("an adapter").lora;
    let is_full = matches!(case, Case::Full | Case::Beside);
    if case != Case::New {
        let wave = |(i, b): (usize, &mut f32)| *b = 0.05 * (i as f32 * 0.7).sin();
        lora.modules.values_mut().for_each(|(_, b)| b.iter_mut().enumerate().for_each(wave));
    }
    let param_dtype = if let Case::Start(dtype) = case { dtype } else { ParamDtype::F32 };
    let options = LoadOptions {
        trained: if is_full { TrainMode::Full } else { TrainMode::Lora },
        lora: (!is_full).then_some(lora),
        training: TrainOptions { optim: Some(TrainDefaults::OPTIM), param_dtype, ..TrainOptions::NONE },
        n_positions: d.max_positions,
        base: BaseDtype::Auto,
    };
    let source: Rc<dyn WeightSource> = Rc::new(Checkpoint::open(&dir).expect("a checkpoint"));
    let mut decoder = Decoder::load(gpu, &d, &source, &options).expect("weights");
    if matches!(case, Case::Start(_)) {
        decoder.keep_start(gpu);
    }
    decoder
}

fn model(gpu: &Gpu, case: Case) -> ReferenceModel<'_> {
    match case {
        Case::New | Case::Base => ReferenceModel::WithoutAdapter,
        Case::Start(_) => ReferenceModel::Start,
        Case::Full => ReferenceModel::Untrained,
        Case::Beside => ReferenceModel::Other(OtherModel::new(move || Ok(load(gpu, Case::Full)))),
    }
}

/// Two epochs of steps of six rows, in two micro-batches; the last of an epoch is shorter.
fn settings(preference: PreferenceLoss) -> TrainSettings {
    TrainSettings {
        sft_loss: SftLoss::Nll,
        preference: Some(preference),
        optim: TrainDefaults::OPTIM,
        param_dtype: TrainDefaults::PARAM_DTYPE,
        saved_dtype: TrainDefaults::SAVED_DTYPE,
        optimiser: TrainDefaults::OPTIMISER,
        learning_rate: 1e-2,
        lr_scheduler_type: LrSchedulerType::Constant,
        lr_num_cycles: 1,
        length: RunLength { num_train_epochs: 2.0, max_steps: None, warmup_steps: None, warmup_ratio: 0.0 },
        batch_size: 3,
        gradient_accumulation_steps: 2,
        n_ranks: 1,
        reduce_dtype: ReduceDtype::F32,
        seed: 5,
        shuffle: true,
        decay_all: false,
        share_prefix: true,
        lora_dropout: 0.0,
    }
}

const ROWS: usize = 40;

fn examples(vocab: usize) -> Vec<Example> {
    let [shared, mixed] = [RowLengths::Shared, RowLengths::Mixed].map(|l| synthetic::pairs(ROWS / 2, 24, vocab, l));
    shared.into_iter().chain(mixed).enumerate().map(|(row, e)| Example { row, ..e }).collect()
}

fn bits(scores: &[f64; 2]) -> [u64; 2] {
    scores.map(f64::to_bits)
}

/// Bits of the scores of each row's sequences, of one pass over all rows.
fn whole_pass(gpu: &Gpu, decoder: &Decoder, examples: &[Example], with_lora: bool) -> Vec<[u64; 2]> {
    let (examples, most) = (examples.iter().collect::<Vec<_>>(), DEFAULT_SCORE_TOKENS);
    let mut unseen = |_| ();
    let scored = scoring::score(gpu, decoder, &examples, with_lora, true, most, &mut unseen);
    let scored = pollster::block_on(scored).expect("scores");
    let score =
        |sides: &[ScoredSequence]| bits(&[0, 1].map(|i| sides[i].sums.score(PreferenceLoss::default().objective)));
    scored.chunks(2).map(score).collect()
}

fn unseen(_: &ScoringEvent<'_>) {}

fn found(references: &RowReferences) -> usize {
    references.scores().iter().flatten().count()
}

/// Between steps that change the policy, in blocks, in the steps' order: each row's reference is that of one pass over all rows before the first step.
#[test]
fn blocks_between_steps_have_the_bits_of_one_pass() {
    let gpu = pollster::block_on(Gpu::open(&DeviceChoice::Best)).expect("a device");
    let (stop, mut tell) = (AtomicBool::new(false), unseen);
    let preference = PreferenceLoss { loss: LossMix::single(Loss::Rpo), ..PreferenceLoss::default() };
    for case in
        [Case::New, Case::Start(ParamDtype::F32), Case::Start(ParamDtype::Bf16), Case::Base, Case::Full, Case::Beside]
    {
        let decoder = load(&gpu, case);
        let examples = examples(decoder.description.vocab);
        let (with_lora, most) = (!matches!(case, Case::New | Case::Base), DEFAULT_SCORE_TOKENS);
        let score = |decoder: &Decoder, with_lora| whole_pass(&gpu, decoder, &examples, with_lora);
        let want = score(&decoder, with_lora);
        // The adapter's part shows, so that to leave it out would.
        assert_eq!(
            want == score(&decoder, !with_lora),
            matches!(case, Case::New | Case::Full | Case::Beside),
            "{case:?}"
        );
        let mut watch = ScoringWatch { stop: &stop, tell: &mut tell };
        let mut whole = ReferenceScorer::new(&gpu, &preference, model(&gpu, case), most, None);
        let mut of_whole = whole.rows(ROWS);
        let rows = &mut TrainingRows { examples: &examples, references: &mut of_whole };
        let every: Vec<usize> = (0..ROWS).collect();
        assert!(pollster::block_on(whole.find(&decoder, rows, &every, &mut watch)).expect("a device"));

        let mut scorer = ReferenceScorer::new(&gpu, &preference, model(&gpu, case), 150, None);
        let mut known = scorer.rows(ROWS);
        let mut rows = TrainingRows { examples: &examples, references: &mut known };
        let goal = TrainingLoss::Preference(preference.clone());
        let trainer =
            Trainer { gpu: &gpu, decoder, goal, share_prefix: true, keep: RecomputePolicy::Everything, seed: 0 };
        let start =
            TrainingState { step: 0, num_tokens: 0, best: None, fingerprint: String::new(), time: None, n_ranks: 1 };
        let mut steps = StepRunner::new(settings(preference.clone()), ROWS, start);
        let mut n_known = Vec::new();
        if scorer.precedes_steps(&trainer.decoder) {
            let left = steps.rows_left();
            assert!(pollster::block_on(scorer.find(&trainer.decoder, &mut rows, &left, &mut watch)).expect("a device"));
        }
        for _ in 0..steps.schedule.max_steps {
            assert!(pollster::block_on(steps.prepare(&mut scorer, &trainer, &mut rows, &mut watch)).expect("a device"));
            n_known.push(found(rows.references));
            let running = steps.record(&trainer, &rows).submit();
            pollster::block_on(steps.finish(&trainer, running, Instant::now())).expect("a step");
        }
        assert_eq!(n_known.len(), 14);
        let rises = n_known.windows(2).filter(|n| n[0] < n[1]).count();
        match case {
            Case::Full | Case::Beside => assert_eq!(n_known[0], ROWS),
            _ => assert!(n_known[0] < ROWS / 2 && rises > 1 && n_known[6] == ROWS, "{case:?}: {n_known:?}"),
        }
        for (row, want) in want.iter().enumerate() {
            let got = known.get(row);
            assert_eq!(bits(&got.scores), *want, "{case:?}, row {row}");
            assert_eq!(got, of_whole.get(row), "{case:?}, row {row}");
            assert!(got.prompt_embeddings[0].iter().any(|&x| x != 0.0));
        }
        // The policy is another one by now.
        assert!(score(&trainer.decoder, true).iter().zip(&want).all(|(now, before)| now != before), "{case:?}");
    }
}

/// A pass that is stopped keeps what it has, and the next one, over other rows beside the same, adds the rest: no row is scored twice.
#[test]
fn a_stopped_pass_goes_on_where_it_ended() {
    let gpu = pollster::block_on(Gpu::open(&DeviceChoice::Best)).expect("a device");
    let dir = tempfile::tempdir().expect("a folder");
    let decoder = load(&gpu, Case::Full);
    let examples = examples(decoder.description.vocab);
    let every: Vec<usize> = (0..ROWS).collect();
    let preference = PreferenceLoss::default();
    // Gives what is known of rows, and how many were scored, where a pass ends after some.
    let pass = |examples: &[Example], wanted: &[usize], stop_after: usize| {
        let store = ScoreStore::open(dir.path());
        let mut scorer = ReferenceScorer::new(&gpu, &preference, model(&gpu, Case::Full), 150, Some(store));
        let mut known = scorer.rows(examples.len());
        let (stop, mut last) = (AtomicBool::new(false), 0);
        let mut tell = |scoring: &ScoringEvent<'_>| {
            if let ScoringEvent::Rows { done, .. } = scoring {
                last = *done;
                stop.store(*done >= stop_after, std::sync::atomic::Ordering::Relaxed);
            }
        };
        let mut rows = TrainingRows { examples, references: &mut known };
        let mut watch = ScoringWatch { stop: &stop, tell: &mut tell };
        let is_whole = pollster::block_on(scorer.find(&decoder, &mut rows, wanted, &mut watch)).expect("a device");
        assert_eq!(is_whole, found(&known) == wanted.len());
        (known, last)
    };
    let (known, first) = pass(&examples, &every, 7);
    assert!((7..20).contains(&first) && found(&known) == first, "{first}");
    // Backwards, as another seed might.
    let reversed: Vec<Example> = examples.iter().rev().cloned().collect();
    let (_, second) = pass(&reversed, &every, usize::MAX);
    assert_eq!(first + second, ROWS);
    let (known, third) = pass(&examples, &every, usize::MAX);
    assert_eq!(third, 0);
    for (row, want) in whole_pass(&gpu, &decoder, &examples, true).into_iter().enumerate() {
        assert_eq!(bits(&known.get(row).scores), want, "row {row}");
    }
    // The control: scores that are kept are those that are taken.
    let mut store = ScoreStore::open(dir.path());
    store.append(&[(RowKey::new(&examples[3], 1.0), [[1.0; 2]; 2])]).expect("a file");
    assert_eq!(store.get(RowKey::new(&examples[3], 1.0)), Some([[1.0; 2]; 2]));
}

/// Runs over rows of the bundled model.
struct Setting {
    sandbox: Sandbox,
    data: String,
    eval: String,
    extra: &'static [&'static str],
}

const LORA: &[&str] = &["--learning-rate", "1e-2"];
const FULL: &[&str] = &["--full", "--learning-rate", "1e-3"];

/// Pairs of sums, each of its own.
fn sums(rows: std::ops::Range<usize>) -> String {
    let pair = |i: usize| {
        let (a, b) = (i % 89 + 10, i / 89 + 11);
        format!("{{\"prompt\":\"Add {a} and {b}.\",\"chosen\":\"{}\",\"rejected\":\"it is {}\"}}\n", a + b, a + b + 1)
    };
    rows.map(pair).collect()
}

impl Setting {
    fn new(extra: &'static [&'static str], n: usize) -> Self {
        let sandbox = Sandbox::new();
        let data = sandbox.write("rows.jsonl", sums(0..n));
        let eval = sandbox.write("eval.jsonl", sums(1000..1030));
        Self { sandbox, data, eval, extra }
    }

    fn args<'a>(&'a self, out: &'a str, more: &[&'a str]) -> Vec<&'a str> {
        let model = concat!(env!("CARGO_MANIFEST_DIR"), "/models/demo");
        let fixed = ["train", "--model", model, "--data", &self.data, "--output-dir", out, "--batch-size", "2"];
        [&fixed[..], self.extra, more].concat()
    }

    fn run(&self, out: &str, more: &[&str]) -> Ran {
        self.sandbox.run(&self.args(out, more)).ok()
    }

    fn start(&self, out: &str, more: &[&str]) -> Child {
        let mut command = self.sandbox.command(&self.args(out, more));
        command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("the program starts")
    }

    fn cache(&self) -> PathBuf {
        self.sandbox.path("cache/jointwise/reference")
    }

    /// Rows whose scores are kept, by folder and key, with how often each is.
    fn kept(&self) -> Vec<(PathBuf, Vec<u8>)> {
        let entries = |dir: &Path| fs::read_dir(dir).into_iter().flatten().map(|e| e.expect("an entry").path());
        let mut all = Vec::new();
        for folder in entries(&self.cache()) {
            for file in entries(&folder) {
                let bytes = fs::read(file).expect("a file");
                all.extend(bytes.chunks_exact(56).map(|record| (folder.clone(), record[..16].to_vec())));
            }
        }
        all
    }

    /// How many are kept, each once.
    #[track_caller]
    fn n_kept(&self) -> usize {
        let all = self.kept();
        assert_eq!(all.iter().collect::<BTreeSet<_>>().len(), all.len(), "a row was scored twice");
        all.len()
    }

    fn forget(&self) {
        fs::remove_dir_all(self.cache()).expect("a cache");
    }

    #[track_caller]
    fn same(&self, a: &str, b: &str) {
        let [a, b] = [a, b].map(|name| self.sandbox.path(name));
        let log = |out: &Path| {
            let mut lines = metrics(out);
            lines.iter_mut().for_each(|line| drop(line.as_object_mut().map(|line| line.remove("eval_seconds"))));
            lines
        };
        let (log_a, log_b) = (log(&a), log(&b));
        assert_eq!(log_a.len(), log_b.len());
        log_a.iter().zip(&log_b).for_each(|(a, b)| assert_eq!(a, b));
        let result = if self.extra == FULL { "model.safetensors" } else { "adapter_model.safetensors" };
        assert!(fs::read(a.join(result)).expect("a result") == fs::read(b.join(result)).expect("a result"));
    }
}

fn wait_until(child: &mut Child, what: &str, is: impl Fn() -> bool) {
    let started = Instant::now();
    while !is() {
        assert!(child.try_wait().expect("a child").is_none(), "the run ended before {what}");
        assert!(started.elapsed() < Duration::from_secs(240), "no {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// A run of two steps of two rows on hundreds scores these four; rows for evaluation when they are evaluated.
#[test]
fn rows_that_are_not_visited_are_not_scored() {
    for extra in [LORA, FULL] {
        let s = Setting::new(extra, 300);
        s.run("two", &["--max-steps", "2"]);
        assert_eq!(s.n_kept(), 4);
        s.run("evaluated", &["--max-steps", "2", "--eval-data", &s.eval]);
        assert_eq!(s.n_kept(), 34);
        // The same seed begins with the same rows.
        s.run("three", &["--max-steps", "3"]);
        assert_eq!(s.n_kept(), 36);
    }
}

/// The whole file, scored in another order by another loss, under other rates, seed and rank: a run that finds all of that is the run that finds
/// nothing.
#[test]
fn another_run_takes_the_scores_of_the_first() {
    for extra in [LORA, FULL] {
        let s = Setting::new(extra, 40);
        let run = ["--max-steps", "5", "--gradient-accumulation-steps", "2", "--eval-data", &s.eval];
        s.run("first", &run);
        assert!((50..70).contains(&s.n_kept()));
        s.forget();
        let rank: &[&str] = if extra == FULL { &[] } else { &["--lora-r", "3", "--lora-targets", "all-linear"] };
        let other = ["--objective", "dpo", "--loss", "ipo", "--beta", "0.3", "--seed", "9", "--warmup-steps", "3"];
        let longer = ["--num-train-epochs", "2", "--eval-data", &s.eval];
        s.run("other", &[&other[..], &longer, rank].concat());
        assert_eq!(s.n_kept(), 70);
        s.run("second", &run);
        assert_eq!(s.n_kept(), 70, "all were known");
        s.same("first", "second");
        // The control: kept scores are used.
        let file = fs::read_dir(s.cache()).expect("a folder").next().expect("an entry").expect("an entry").path();
        fs::remove_dir_all(file).expect("removed");
        s.run("third", &run);
        assert!((50..70).contains(&s.n_kept()));
        s.same("first", "third");
    }
}

/// Killed while rows are scored, before the first step: what was scored is not scored again.
#[test]
fn a_killed_pass_before_the_first_step_goes_on() {
    let s = Setting::new(FULL, 300);
    let run = ["--max-steps", "100", "--save-steps", "200"];
    let mut child = s.start("killed", &run);
    wait_until(&mut child, "20 scores", || s.kept().len() >= 20);
    child.kill().expect("killed");
    child.wait().expect("ended");
    assert!(!s.sandbox.path("killed/metrics.jsonl").exists());
    let before = s.n_kept();
    assert!((20..200).contains(&before), "{before}");
    s.run("killed", &[&run[..], &["--resume"]].concat());
    assert_eq!(s.n_kept(), 200);
    s.forget();
    s.run("whole", &run);
    s.same("killed", "whole");
}

/// Ctrl-C ends it, too.
#[cfg(unix)]
#[test]
fn an_interrupted_pass_ends_in_order() {
    let s = Setting::new(FULL, 300);
    let mut command = s.sandbox.command(&s.args("out", &["--max-steps", "100"]));
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("the program starts");
    wait_until(&mut child, "20 scores", || s.kept().len() >= 20);
    // SAFETY: a system call with two numbers. The child was not waited for, so the id is its own.
    assert_eq!(unsafe { libc::kill(child.id() as libc::pid_t, libc::SIGINT) }, 0);
    let ended = child.wait_with_output().expect("ended");
    let said = String::from_utf8_lossy(&ended.stderr);
    assert_eq!(ended.status.code(), Some(130), "{said}");
    assert!(said.contains("stopped after step 0: the same command with --resume goes on"), "{said}");
    assert!((20..200).contains(&s.n_kept()));
    s.run("out", &["--max-steps", "100", "--resume"]);
    assert_eq!(s.n_kept(), 200);
}

/// A run of everything that goes on without its cache is scored by the weights that it began with, not by those of its checkpoint.
#[test]
fn a_lost_cache_changes_nothing() {
    for extra in [LORA, FULL] {
        let s = Setting::new(extra, 60);
        let run = ["--max-steps", "40", "--save-steps", "3", "--eval-data", &s.eval, "--eval-steps", "15"];
        s.run("whole", &run);
        let mut child = s.start("killed", &run);
        let log = s.sandbox.path("killed/metrics.jsonl");
        wait_until(&mut child, "step 7", || fs::read_to_string(&log).map_or(0, |t| t.matches('\n').count()) >= 7);
        child.kill().expect("killed");
        child.wait().expect("ended");
        s.forget();
        // It goes on from an older checkpoint: the rows of its steps are known, too.
        let checkpoints =
            fs::read_dir(s.sandbox.path("killed")).expect("a folder").map(|e| e.expect("an entry").path());
        let step = |path: &Path| path.file_name()?.to_str()?.strip_prefix("checkpoint-")?.parse::<usize>().ok();
        let newest = checkpoints.max_by_key(|path| step(path)).expect("a checkpoint");
        fs::write(newest.join("state.safetensors"), "").expect("a file");
        let said = s.run("killed", &[&run[..], &["--resume"]].concat()).stderr;
        assert!(said.contains("going on from an older checkpoint"), "{said}");
        s.same("whole", "killed");
        // Rows that lie behind the checkpoint are not scored again, unless a later epoch visits them.
        assert!((60..=90).contains(&s.n_kept()));
    }
}
