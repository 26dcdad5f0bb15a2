//! Supervised fine-tuning in uneven micro-batches, the last step being a short one, against PyTorch in float64: ten AdamW steps.

use std::path::Path;

use serde_json::{Value, json};

use super::checks::{Checks, Metric, tolerance};
use super::fixture::*;
use super::{OPTIMIZER, metrics, updates};

#[test]
fn ten_steps_of_uneven_micro_batches() {
    let Some(dir) = family(OURS, "mistral-odd") else { return };
    let (mut f, mut c) = (Fixture::new(dir), Checks::new("mistral-odd"));
    let policy = f.policy();
    f.meta = read_json(&f.dir.join("sft.json"));
    f.expected = read_tensors(&f.dir.join("sft.safetensors"));
    let vocab_rows =
        read_tensors(&f.dir.join("expected.safetensors")).remove("vocab_rows").expect("rows of the vocabulary");
    f.expected.insert("vocab_rows".into(), vocab_rows);

    let all = f.rows();
    let chosen = |r: usize| json!({"instruction": all[r]["i_chosen"], "response": all[r]["r_chosen"]});
    let data = f.write_lines("sft.jsonl", indices(&f.meta["rows"]).into_iter().map(chosen));
    let setting = |name: &str| f.meta[name].to_string();
    let (clip, rows, parts) = (setting("max_grad_norm"), setting("batch_size"), setting("gradient_accumulation_steps"));
    let at = OPTIMIZER.iter().position(|flag| *flag == "--max-grad-norm").expect("the flag");
    let others = [&OPTIMIZER[..at], &OPTIMIZER[at + 2..]].concat();
    let out = f.out("trained");
    let model =
        ["sft", "--full", "--model", text(&policy), "--data", &data, "--output-dir", &out, "--output-dtype", "f32"];
    let batches =
        ["--batch-size", &rows, "--gradient-accumulation-steps", &parts, "--max-grad-norm", &clip, "--decay-all"];
    run(&[&model[..], &batches, &others].concat());

    metrics(&mut c, &f, &out, "sft");
    updates(&mut c, &f, &read_checkpoint(Path::new(&out)), &read_checkpoint(&policy), tolerance::UPDATE);
    let scored = ["--model", &out, "--reference", &out, "--data", &f.all(), "--objective", "dpo"];
    let logps = Scores::run(&f, &scored).side("logp");
    let key = "final_seq_logps_cond";
    c.close(key, Metric::L2, &logps, f.tensor(key), tolerance::TRAINED);

    // A mean of the micro-batches' means would be told from the mean over a step's tokens.
    let lines = read_lines(&Path::new(&out).join("metrics.jsonl"));
    let losses: Vec<f64> = lines.iter().map(|l: &Value| number(&l["loss"])).collect();
    let of_means = Metric::Abs.error(&losses, &numbers(&f.meta["loss_of_means"]));
    assert!(of_means > 10.0 * tolerance::STEP_LOSS, "{of_means}");
    c.finish();
}
