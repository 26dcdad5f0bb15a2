//! Data parallel training over MPI: several ranks train like one process, and whatever is wrong on one rank ends all of them.
//!
//!     cargo test --release --features mpi --test mpi
//!
//! `JOINTWISE_MPIRUN` names another launcher than `mpirun`, such as MPICH's `mpirun.mpich`.

#[path = "mpi/failures.rs"]
mod failures;
#[path = "program/fault_layer.rs"]
mod fault_layer;
#[path = "mpi/harness.rs"]
mod harness;
mod launched;
mod program;

use std::fs;
use std::path::Path;

use harness::{ADAPTER, NOISE, Setting};
use launched::{Program, has_mpirun, mpirun, rank, ranks};
use program::{Ran, read_tensors, rows, update_error};
use serde_json::json;

#[test]
fn ranks_train_like_one_process() {
    if !has_mpirun() {
        return;
    }
    // 23 pairs in steps of six: the last step of an epoch has five.
    let setting = Setting::pairs(23);
    let parts = |n: &'static str| ["--batch-size", "1", "--gradient-accumulation-steps", n];
    setting.one("one", &parts("6")).ok();
    assert_eq!(setting.metrics("one").len(), 10);
    for (n, parts_of_rank) in [(1, "6"), (2, "3"), (3, "2")] {
        let out = format!("ranks-{n}");
        let ran = setting.several(n, &out, &parts(parts_of_rank)).ok();
        setting.close("one", &out);
        let [a, b] = ["one", &out].map(|out| read_tensors(&setting.sandbox.path(out).join(ADAPTER)));
        let start = a.iter().map(|(name, tensor)| {
            let mut zero = tensor.clone();
            zero.set(&vec![0.0; tensor.values().len()]);
            (name.clone(), zero)
        });
        let error = update_error(&b, &a, &start.collect());
        assert!(error < 1e-4, "{n} ranks: results differ by {error}");
        if n > 1 {
            let first = ran.stderr.lines().next().unwrap_or_default();
            assert!(first.starts_with(&format!("{n} ranks: ranks 0-{} on ", n - 1)), "{first}");
            assert!(ran.stderr.contains("global batch: 6 rows a step"), "{}", ran.stderr);
            assert_eq!(ran.stderr.matches("step 1/10").count(), 1, "rank 0 alone reports: {}", ran.stderr);
        }
    }
    // The control: a step of other rows is told from noise.
    setting.several(2, "other", &parts("2")).ok();
    assert!(setting.difference("one", "other", "loss") > 100.0 * NOISE);
}

/// Twenty pairs in steps of six: of the last two, which are one micro-batch, rank 0 has both. With evaluation.
#[test]
fn an_uneven_last_batch_and_evaluation_are_those_of_one_process() {
    if !has_mpirun() {
        return;
    }
    let setting = Setting::pairs(20);
    let held_out = setting.sandbox.write("held-out.jsonl", rows("mistral-odd")[19..].join("\n"));
    let parts = |n: &'static str| ["--batch-size", "2", "--gradient-accumulation-steps", n];
    let eval = ["--eval-data", &held_out, "--eval-steps", "4"];
    setting.one("one", &[&parts("3")[..], &eval].concat()).ok();
    setting.several(3, "three", &[&parts("1")[..], &eval].concat()).ok();
    setting.close("one", "three");
    let eval_loss = setting.difference("one", "three", "eval_loss");
    assert!((0.0..=NOISE).contains(&eval_loss), "{eval_loss}");
    assert!(setting.difference("one", "three", "eval_rewards/accuracies") <= 0.0);
    assert!(setting.sandbox.path("three/best").join(ADAPTER).is_file());
}

#[test]
fn two_runs_are_the_same_and_a_resumed_one_too() {
    if !has_mpirun() {
        return;
    }
    let setting = Setting::pairs(23);
    let flags =
        ["--batch-size", "2", "--gradient-accumulation-steps", "2", "--save-steps", "3", "--save-total-limit", "9"];
    setting.several(2, "whole", &flags).ok();
    setting.several(2, "again", &flags).ok();
    setting.same("whole", "again");
    // As a run that was killed after step 4 leaves its folder.
    let killed = |name: &str| {
        let [from, to] = ["whole", name].map(|name| setting.sandbox.path(name));
        copy_folder(&from.join("checkpoint-3"), &to.join("checkpoint-3"));
        let log = fs::read_to_string(from.join("metrics.jsonl")).expect("a log");
        let lines: Vec<&str> = log.lines().take(4).collect();
        fs::write(to.join("metrics.jsonl"), lines.join("\n") + "\n").expect("a log");
    };
    let resume = [&flags[..], &["--resume"]].concat();
    killed("resumed");
    let ran = setting.several(2, "resumed", &resume).ok();
    assert!(!ran.stderr.contains("the run began with"), "{}", ran.stderr);
    setting.same("whole", "resumed");

    // With another number of ranks: the same rows, other bits, and the run says so.
    killed("alone");
    let ran = setting.one("alone", &resume).ok();
    assert!(ran.stderr.contains("the run began with 2 ranks and goes on with 1"), "{}", ran.stderr);
    setting.close("whole", "alone");
    killed("three");
    let ran = setting.several(3, "three", &resume).ok();
    assert!(ran.stderr.contains("the run began with 2 ranks and goes on with 3"), "{}", ran.stderr);
    setting.close("whole", "three");
    // Other settings are refused, by rank 0.
    let refused = setting.several(2, "resumed", &[&resume[..], &["--beta", "0.3"]].concat());
    assert_eq!(refused.status, 2, "{}", refused.stderr);
    assert!(refused.stderr.contains("error: rank 0: resumed/checkpoint-"), "{}", refused.stderr);
}

fn copy_folder(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("a folder");
    for file in fs::read_dir(from).expect("a folder").map(|entry| entry.expect("an entry").path()) {
        fs::copy(&file, to.join(file.file_name().expect("a name"))).expect("a copy");
    }
}

/// Each rank has one text: a short and a long one. The mean is over tokens, not over ranks.
#[test]
fn tokens_weigh_the_mean_of_supervised_tuning() {
    if !has_mpirun() {
        return;
    }
    let texts = ["Yes.", "The green fades first; red pigments made late in the season then show, and the leaves fall."];
    let lines = texts.map(|text| json!({"instruction": "Why?", "response": text}).to_string());
    let flags = ["--lora-r", "4", "--learning-rate", "1e-30", "--no-shuffle", "--batch-size", "1"];
    let setting = Setting::new("sft", &lines, &flags);
    setting.one("rows", &["--max-steps", "2"]).ok();
    setting.one("one", &["--max-steps", "2", "--gradient-accumulation-steps", "2"]).ok();
    setting.several(2, "two", &["--max-steps", "2"]).ok();
    let losses =
        |out: &str| setting.metrics(out).iter().map(|l| l["loss"].as_f64().expect("a loss")).collect::<Vec<_>>();
    let (of_rows, one, two) = (losses("rows"), losses("one"), losses("two"));
    assert!((one[0] - two[0]).abs() <= NOISE && (one[1] - two[1]).abs() <= NOISE, "{one:?} {two:?}");
    assert!(setting.difference("one", "two", "grad_norm") < 1e-4);
    // The control: the mean of the ranks' means is another number.
    assert!(((of_rows[0] + of_rows[1]) / 2.0 - two[0]).abs() > 1e-3, "{of_rows:?} {two:?}");
}

/// Other kernels round otherwise: rank 0's parameters are sent, so that the ranks have the same.
#[test]
fn devices_that_differ_work_together() {
    if !has_mpirun() {
        return;
    }
    let setting = Setting::pairs(20);
    let parts = |n: &'static str| ["--batch-size", "2", "--gradient-accumulation-steps", n, "--save-steps", "2"];
    setting.one("one", &parts("2")).ok();
    let args = setting.args("two", &parts("1"));
    let other = Program { n: 1, variables: vec![("JOINTWISE_VARIANT", "baseline".into())], args: args.clone() };
    let ran = Ran::of(&mut mpirun(&setting.sandbox, &[rank(args), other])).ok();
    assert!(ran.stderr.contains("note: devices differ"), "{}", ran.stderr);
    setting.close_by(1e-4, "one", "two");
}

/// Each rank scores a share of the rows: the same lines as one process writes.
#[test]
fn scores_and_gradients_are_those_of_one_process() {
    if !has_mpirun() {
        return;
    }
    let setting = Setting::pairs(11);
    let model = setting.sandbox.copy("mistral-odd/model", "policy");
    program::perturb(&model);
    let policy = model.to_str().expect("UTF-8");
    let inputs = ["--model", policy, "--reference", &setting.model, "--data", &setting.data];
    let args = |command: &'static str, out: &'static str| [&[command][..], &inputs, &["--out", out]].concat();
    let text = |out: &str| fs::read_to_string(setting.sandbox.path(out)).expect("a file");
    setting.sandbox.run(&[&args("score", "one")[..], &["--tokens"]].concat()).ok();
    for n in [2, 3] {
        let scored = Ran::of(&mut mpirun(
            &setting.sandbox,
            &[ranks(n, [&args("score", "several")[..], &["--tokens"]].concat())],
        ));
        assert!(scored.ok().stderr.starts_with(&format!("{n} ranks: ")));
        assert!(text("one") == text("several"), "{n} ranks: other scores");
    }
    for more in [&[][..], &["--sft"]] {
        let more = |out| [&args("grad", out)[..], more].concat();
        let one = setting.sandbox.run(&more("one.safetensors")).ok();
        let several = Ran::of(&mut mpirun(&setting.sandbox, &[ranks(3, more("several.safetensors"))])).ok();
        let (one, several) = (&one.lines()[0], &several.lines()[0]);
        for name in ["loss", "grad_norm"] {
            let [a, b] = [one, several].map(|line| line[name].as_f64().expect("a number"));
            assert!((a - b).abs() <= 1e-5 * a.abs(), "{name}: {a} {b}");
        }
        let [a, b] = ["one.safetensors", "several.safetensors"].map(|out| read_tensors(&setting.sandbox.path(out)));
        for (name, tensor) in &a {
            let error = program::relative_l2(&b[name].values(), &tensor.values());
            assert!(error < 1e-4, "{name}: {error}");
        }
    }
    // Another loss, and another reference, on one rank.
    let beta = [&args("score", "other")[..], &["--beta", "0.2"]].concat();
    let elsewhere = ["--model", policy, "--reference", policy, "--data", &setting.data];
    let reference = [&["score"][..], &elsewhere, &["--out", "other"]].concat();
    for (other, part) in [(beta, "rank 1 has another loss"), (reference, "rank 1 has another --reference")] {
        let refused = Ran::of(&mut mpirun(&setting.sandbox, &[rank(args("score", "other")), rank(other)]));
        assert!(refused.status == 2 && refused.stderr.contains(part), "{}", refused.stderr);
    }
    // The gradient of a share alone would be another.
    let kto = [&args("grad", "kto")[..], &["--loss", "kto"]].concat();
    let refused = Ran::of(&mut mpirun(&setting.sandbox, &[ranks(2, kto)]));
    assert!(refused.status == 2 && refused.stderr.contains("start `grad` once"), "{}", refused.stderr);
}

/// Gradients in bf16: half the bytes, nearly the same run, and the same bits twice.
#[test]
fn gradients_in_bf16_are_close_and_half_as_long() {
    if !has_mpirun() {
        return;
    }
    let setting = Setting::pairs(20);
    let flags = ["--batch-size", "2", "--save-steps", "3"];
    let bf16 = [&flags[..], &["--reduce-dtype", "bf16"]].concat();
    setting.several(2, "f32", &flags).ok();
    setting.several(2, "bf16", &bf16).ok();
    setting.several(2, "again", &bf16).ok();
    setting.same("bf16", "again");
    // The first step has the same weights: its gradients are within bf16's rounding, 2^-9.
    let [f32, bf16] = ["f32", "bf16"].map(|out| setting.metrics(out)[0].clone());
    let [a, b] = [&f32, &bf16].map(|line| line["grad_norm"].as_f64().expect("a norm"));
    assert!(f32["loss"] == bf16["loss"] && a != b && (a - b).abs() < a / 512.0, "{a} {b}");
    let bytes = |out: &str| setting.metrics(out)[0]["exchange_bytes"].as_f64().expect("bytes");
    let ratio = bytes("f32") / bytes("bf16");
    assert!((1.9..=2.1).contains(&ratio), "{ratio}");
    // A resumed run keeps it.
    let refused = setting.several(2, "bf16", &[&flags[..], &["--resume"]].concat());
    assert_eq!(refused.status, 2, "{}", refused.stderr);
}

/// All weights, which are more than one section of the exchange holds: the backward pass completes some before others.
#[test]
fn full_gradients_are_exchanged_in_sections() {
    if !has_mpirun() {
        return;
    }
    let demo = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/demo");
    let lines = rows("mistral-odd");
    let flags = ["--full", "--learning-rate", "1e-4", "--max-steps", "3"];
    let mut setting = Setting::new("train", &lines[..8], &flags);
    setting.model = demo.to_str().expect("UTF-8").into();
    setting.one("one", &["--batch-size", "1", "--gradient-accumulation-steps", "2"]).ok();
    setting.several(2, "two", &["--batch-size", "1"]).ok();
    setting.close_by(1e-5, "one", "two");
    let line = &setting.metrics("two")[0];
    let n_values = line["exchange_bytes"].as_u64().expect("bytes") / 4;
    assert!(n_values > 1 << 19, "{n_values} values are one section");
}
