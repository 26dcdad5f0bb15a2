//! Memory: what `plan` says is what a step takes, and nothing of T×V exists.

mod program;

use jointwise::gpu::{Caps, Gpu, Role};
use jointwise::kernels::logprob::{Head, HeadPage, Saved, logprob_bwd, logprob_fwd};
use jointwise::kernels::storage::Storage;
use program::{Ran, fixture};
use serde_json::Value;
use std::path::Path;
use std::process::Command;

/// One pair of 2×1024 tokens on a vocabulary of 151,936: the head's kernels need at most 64 MiB beside their inputs and outputs.
#[test]
fn the_head_of_a_large_vocabulary_needs_little_scratch() {
    for is_cpu in [false, true] {
        let gpu = Gpu::plan(Caps { is_cpu, cpu_variants: is_cpu, ..Caps::baseline() });
        let (rows, vocab, width) = (2048, 151_936, 896);
        let scratch =
            |gpu: &Gpu| gpu.ledger().peak_by_role().into_iter().find(|r| r.0 == Role::Activations).map_or(0, |r| r.1);
        // Two pages: the matrix is larger than a binding.
        let halves: Vec<_> = (0..2).map(|_| gpu.lasting(Role::Frozen, vocab / 2 * width / 2)).collect();
        let pages =
            halves.iter().enumerate().map(|(i, w)| HeadPage { first: i * vocab / 2, rows: vocab / 2, w, d_w: None });
        let head =
            Head { pages: pages.collect(), storage: Storage::Bf16, width, softcap: None, tile: Head::tile_for(rows) };
        let input = |n| gpu.lasting(Role::Batch, n);
        let (x, targets, logp, lse) = (input(rows * width), input(rows), input(rows), input(rows));
        let (d_logp, d_x) = (input(rows), input(rows * width));
        let mut rec = gpu.record();
        logprob_fwd(&mut rec, &head, rows, &x, &targets, &logp, &lse);
        logprob_bwd(&mut rec, &head, rows, Saved { x: &x, targets: &targets, lse: &lse }, &d_logp, &d_x);
        let bytes = scratch(&gpu);
        assert!(bytes > 1 << 20 && bytes <= 64 << 20, "is_cpu={is_cpu}: {bytes} bytes");
        assert!((bytes as usize) < rows * vocab, "as much as T×V bytes");
    }
}

/// `plan` against the ledger of a run: full and LoRA, preferences and SFT, weights of 4 and 8 bits.
#[test]
fn a_step_takes_what_plan_says() {
    let family = fixture("mistral-odd");
    let (odd, data) = (family.join("model"), family.join("prefs.jsonl"));
    let demo = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/demo");
    let (full, lora) = (&["--full"][..], &["--lora-targets", "all-linear"][..]);
    let quantised = |base| ["--lora-targets", "all-linear", "--recompute", "block", "--base-dtype", base];
    let (int8, nf4) = (quantised("int8"), quantised("nf4"));
    let cases = [
        (&odd, "train", full, 0.1),
        (&odd, "train", lora, 0.1),
        (&odd, "sft", full, 0.1),
        (&odd, "sft", lora, 0.1),
        (&demo, "train", &int8[..], 0.05),
        (&demo, "train", &nf4[..], 0.05),
    ];
    for (model, command, method, tolerance) in cases {
        let dir = tempfile::tempdir().expect("a folder");
        let run = |command: &str, more: &[&str]| -> f64 {
            let mut program = Command::new(env!("CARGO_BIN_EXE_jointwise"));
            program.arg(command).args(["--batch-size", "8", "--json", "--model"]).arg(model).arg("--data").arg(&data);
            program.env("XDG_CACHE_HOME", dir.path());
            let ran = Ran::of(program.args(method).args(more)).ok();
            let line: Value = ran.lines().pop().expect("an object");
            line["peak_bytes"].as_f64().expect("peak_bytes")
        };
        let planned = run("plan", if command == "sft" { &["--sft"] } else { &[] });
        let out = dir.path().join("out");
        let taken = run(command, &["--num-train-epochs", "2", "--output-dir", out.to_str().expect("UTF-8")]);
        assert!((taken / planned - 1.0).abs() <= tolerance, "{command} {method:?}: planned {planned}, taken {taken}");
    }
}
