//! Whole models against PyTorch in float64: the command line on every family of `tests/oracle` (see its README) and, where it
//! lies beside the repository, of the public set `../shared/oracle`. Scores, losses, gradients, ten AdamW steps, LoRA, merging,
//! generation. Each comparison is made a second time with a nudged expectation, which must be refused.

use std::path::Path;

use serde_json::{Value, json};

#[path = "oracle/checks.rs"]
mod checks;
#[path = "oracle/fixture.rs"]
mod fixture;
#[path = "oracle/saved.rs"]
mod saved;
#[path = "oracle/sft.rs"]
mod sft;

use checks::{Checks, Metric, tolerance};
use fixture::*;

/// What `generate` is called with, besides `--model`, `--adapter` and `--prompt TEXT` (repeatable). It prints an object a prompt
/// with `prompt_ids` and `ids`, the new ones.
const GENERATE: &[&str] =
    &["--template", "none", "--max-new-tokens", "32", "--temperature", "0", "--ignore-eos", "--json"];

/// The optimiser of the fixtures (README there, "Formulas").
const OPTIMIZER: &[&str] = &[
    "--learning-rate",
    "1e-3",
    "--weight-decay",
    "0.05",
    "--max-grad-norm",
    "1.0",
    "--lr-scheduler-type",
    "cosine",
    "--warmup-steps",
    "2",
    "--max-steps",
    "10",
    "--no-shuffle",
];

/// Variants of the loss in the fixtures, and their flags.
const LOSSES: &[(&str, &[&str])] = &[
    ("sigmoid", &["--loss", "sigmoid"]),
    ("sigmoid_ls0.1", &["--loss", "sigmoid", "--label-smoothing", "0.1"]),
    ("hinge", &["--loss", "hinge"]),
    ("ipo", &["--loss", "ipo"]),
    ("kto_pair", &["--loss", "kto_pair"]),
    ("sigmoid_reffree", &["--loss", "sigmoid", "--reference-free"]),
];

/// The score that each objective minimises, by the fixtures' names.
const MODES: &[(&str, &str)] = &[("joint", "jpo"), ("cond", "dpo")];

/// Scores, rewards, tokens and losses under both objectives. `models`: the flags that name policy and reference.
fn scores(c: &mut Checks, f: &Fixture, models: &[&str]) {
    let lengths = f.sequences["seq_len"].usizes();
    let prompts = f.sequences["prompt_len"].usizes();
    for (mode, objective) in MODES {
        let base = [models, &["--objective", objective, "--beta", "0.1"]].concat();
        let s = Scores::run(f, &[&base[..], &["--data", &f.all(), "--tokens"]].concat());
        c.equal(
            format!("{mode} row numbers"),
            &s.field("row"),
            &(0..lengths.len() / 2).map(|i| i as f64).collect::<Vec<_>>(),
        );
        let scored = |i: usize| lengths[i] - if *mode == "joint" { 1 } else { prompts[i] };
        let want: Vec<_> = (0..lengths.len()).map(|i| (lengths[i] as f64, scored(i) as f64)).collect();
        let got: Vec<_> = s.side("n_tokens").into_iter().zip(s.side("n_scored")).collect();
        c.equal(format!("{mode} n_tokens, n_scored"), &got, &want);

        let policy = f.tensor(&format!("policy/seq_logps_{mode}"));
        let reference = f.tensor(&format!("ref/seq_logps_{mode}"));
        let seq = tolerance::SEQUENCE;
        c.close(format!("{mode} policy sequence log-probs"), Metric::Rel, &s.side("logp"), policy, seq);
        c.close(format!("{mode} reference sequence log-probs"), Metric::Rel, &s.reference(), reference, seq);
        let rewards: Vec<f64> = policy.iter().zip(reference).map(|(p, r)| 0.1 * (p - r)).collect();
        let chosen: Vec<f64> = rewards.iter().copied().step_by(2).collect();
        let rejected: Vec<f64> = rewards.iter().copied().skip(1).step_by(2).collect();
        let margins: Vec<f64> = chosen.iter().zip(&rejected).map(|(a, b)| a - b).collect();
        for (name, want) in [("rewards_chosen", chosen), ("rewards_rejected", rejected), ("margin", margins)] {
            c.close(format!("{mode} {name}"), Metric::Abs, &s.field(name), &want, tolerance::REWARD);
        }
        let cond = f.tensor("policy/seq_logps_cond");
        let joint = f.tensor("policy/seq_logps_joint");
        let instruction: Vec<f64> = joint.iter().zip(cond).map(|(j, c)| j - c).collect();
        for (name, want) in [("logp_instruction", &instruction[..]), ("logp_response", cond)] {
            c.close(format!("{mode} {name}"), Metric::Abs, &s.side(name), want, tolerance::PART);
        }
        tokens(c, f, &s, &lengths);
        losses(c, f, mode, &base);
    }
}

/// Ids and log-probs of every token.
fn tokens(c: &mut Checks, f: &Fixture, s: &Scores, lengths: &[usize]) {
    let (ids, want) = (&f.sequences["input_ids"], &f.expected["policy/token_logps"]);
    let (mut got_all, mut want_all) = (Vec::new(), Vec::new());
    for (i, side) in s.sides().into_iter().enumerate() {
        c.equal(format!("ids of sequence {i}"), &numbers(&side["ids"])[..], ids.row(i, lengths[i]));
        let got = side["token_logps"].as_array().cloned().unwrap_or_default();
        c.equal(format!("first token_logps of sequence {i}"), &got.first(), &Some(&Value::Null));
        got_all.extend(got.iter().skip(1).map(number));
        want_all.extend_from_slice(want.row(i, lengths[i] - 1));
    }
    c.close("token log-probs", Metric::Abs, &got_all, &want_all, tolerance::TOKEN);
}

/// Every variant of the loss on the batch, mean and by row.
fn losses(c: &mut Checks, f: &Fixture, mode: &str, base: &[&str]) {
    let batch = f.data("batch.jsonl", &f.batch());
    for (name, flags) in LOSSES {
        let s = Scores::run(f, &[base, flags, &["--data", &batch]].concat());
        let key = format!("loss/{mode}/{name}");
        c.close(
            format!("{mode} {name}"),
            Metric::Rel,
            &[number(&s.summary["loss"])],
            &[f.scalar(&key)],
            tolerance::LOSS,
        );
        let mut want = f.tensor(&format!("{key}/losses")).to_vec();
        if *name == "kto_pair" {
            let rejected = want.split_off(want.len() / 2);
            want = want.iter().zip(rejected).map(|(a, b)| (a + b) / 2.0).collect();
        }
        c.close(format!("{mode} {name} of rows"), Metric::Mixed, &s.field("loss"), &want, tolerance::ROW_LOSS);
        if (mode, *name) == ("joint", "sigmoid") {
            for (name, key) in [("rewards/margins", "reward_margin_mean"), ("rewards/accuracies", "accuracy")] {
                let want = f.scalar(&format!("jpo/{key}"));
                c.close(name, Metric::Abs, &[number(&s.summary[name])], &[want], tolerance::REWARD);
            }
        }
    }
}

/// Each tensor of a gradient file, those stored by rows too, and their global norm.
fn gradients(c: &mut Checks, f: &Fixture, file: &str, prefix: &str, tol: f64) {
    let got = read_tensors(Path::new(file));
    let rows = f.expected.get("vocab_rows").map(Tensor::usizes).unwrap_or_default();
    let norm = f.scalar(&format!("{prefix}/norm"));
    let global = got.values().flat_map(|t| &t.data).map(|x| x * x).sum::<f64>().sqrt();
    c.close(format!("{prefix} global norm"), Metric::Rel, &[global], &[norm], tol);
    let mut n = 0;
    for (key, want) in &f.expected {
        let by_rows = key.strip_prefix(prefix).and_then(|k| k.strip_prefix("_rows/"));
        let Some(name) = by_rows.or_else(|| key.strip_prefix(prefix).and_then(|k| k.strip_prefix('/'))) else {
            continue;
        };
        n += 1;
        let Some(g) = find(&got, name) else {
            c.equal(format!("{key} is there"), &false, &true);
            continue;
        };
        let picked;
        let g = if by_rows.is_some() {
            picked = g.rows(&rows);
            &picked
        } else {
            c.equal(format!("{key} shape"), &g.shape, &want.shape);
            &g.data
        };
        let size = want.data.iter().map(|x| x * x).sum::<f64>().sqrt();
        if size < 1e-3 * norm {
            c.close(key, Metric::Abs, g, &want.data, 1e-2 * tol * norm);
        } else {
            c.close(key, Metric::L2, g, &want.data, tol);
        }
    }
    c.equal(format!("{prefix} number of tensors"), &got.len(), &n);
}

/// metrics.jsonl of ten steps.
fn metrics(c: &mut Checks, f: &Fixture, dir: &str, key: &str) {
    let lines = read_lines(&Path::new(dir).join("metrics.jsonl"));
    let steps: Vec<&Value> = lines.iter().filter(|l| l.get("loss").is_some() && l.get("step").is_some()).collect();
    let get = |name: &str| steps.iter().map(|l| number(&l[name])).collect::<Vec<f64>>();
    let want = |name: &str| numbers(&f.meta["scalars"][format!("{key}/{name}")]["f64"]);
    c.equal(format!("{key} steps"), &get("step"), &(1..=10).map(f64::from).collect());
    c.close(format!("{key} losses"), Metric::Abs, &get("loss"), &want("loss"), tolerance::STEP_LOSS);
    c.close(format!("{key} gradient norms"), Metric::Rel, &get("grad_norm"), &want("grad_norm"), tolerance::STEP_NORM);
    c.close(format!("{key} learning rates"), Metric::Abs, &get("learning_rate"), &want("lr"), tolerance::STEP_RATE);
}

/// Weights after ten steps against the expected, relative to how far they moved.
fn updates(c: &mut Checks, f: &Fixture, got: &Tensors, start: &Tensors, tol: f64) {
    let rows = f.expected.get("vocab_rows").map(Tensor::usizes).unwrap_or_default();
    for (key, want) in &f.expected {
        let by_rows = key.starts_with("after10_rows/");
        let Some(name) = key.strip_prefix("after10/").or_else(|| key.strip_prefix("after10_rows/")) else { continue };
        let (Some(g), Some(s)) = (find(got, name), find(start, name)) else {
            c.equal(format!("{key} is there"), &false, &true);
            continue;
        };
        let pick = |t: &Tensor| if by_rows { t.rows(&rows) } else { t.data.clone() };
        let (mut g, mut s, mut w) = (pick(g), pick(s), want.data.clone());
        if name.ends_with("attn.c_attn.bias") {
            // K's bias has no true gradient: Adam amplifies the noise.
            let third = w.len() / 3;
            for x in [&mut g, &mut s, &mut w] {
                x.drain(third..2 * third);
            }
        }
        let moved = w.iter().zip(&s).map(|(a, b)| (a - b) * (a - b)).sum::<f64>().sqrt();
        let tol = if name.ends_with("k_proj.bias") { tolerance::UPDATE_K_BIAS } else { tol };
        c.close(key, Metric::L2Over(moved), &g, &w, tol);
    }
}

/// The loss along its own gradient, for the losses of which no fixture holds gradients.
fn slopes(c: &mut Checks, f: &Fixture, policy: &Path) {
    let ratio = |i: usize| f.tensor("policy/seq_logps_joint")[i] - f.tensor("ref/seq_logps_joint")[i];
    let mut order: Vec<usize> = (0..f.rows().len()).collect();
    // The largest sums: both means well above kto_pair's max(0, ·), so that gradient flows through them.
    order.sort_by(|&a, &b| (ratio(2 * b) + ratio(2 * b + 1)).total_cmp(&(ratio(2 * a) + ratio(2 * a + 1))));
    order.truncate(4);
    order.sort_unstable();
    let data = f.data("high.jsonl", &order);
    let weights = read_checkpoint(policy);
    for loss in ["hinge", "ipo", "kto_pair"] {
        let model = f.model();
        let common = ["--reference", &model, "--data", &data, "--objective", "jpo", "--beta", "0.1", "--loss", loss];
        let out = f.out("slope.safetensors");
        run(&[&["grad", "--model", text(policy), "--out", &out], &common[..]].concat());
        let g = read_tensors(Path::new(&out));
        let norm = g.values().flat_map(|t| &t.data).map(|x| x * x).sum::<f64>().sqrt();
        let step = 1e-3;
        let ends = [1.0, -1.0].map(|sign| {
            let mut moved = Tensors::new();
            for (k, w) in &weights {
                let mut data = w.data.clone();
                if let Some(g) = find(&g, k) {
                    data.iter_mut().zip(&g.data).for_each(|(w, g)| *w += sign * step / norm * g);
                }
                moved.insert(k.clone(), Tensor { shape: w.shape.clone(), data });
            }
            let dir = f.copy_model(&format!("moved-{loss}{sign}"), false);
            write_checkpoint(&moved, &dir);
            number(&Scores::run(f, &[&["--model", text(&dir)], &common[..]].concat()).summary["loss"])
        });
        let slope = (ends[0] - ends[1]) / (2.0 * step);
        c.close(format!("{loss}: slope along the gradient"), Metric::Rel, &[slope], &[norm], tolerance::SLOPE);
    }
}

/// The same configuration in other forms (`config_*.json`) gives the same scores.
fn config_forms(c: &mut Checks, f: &Fixture) {
    for form in files_of(&f.base.join("model")) {
        let name = form.file_name().expect("a file has a name").to_string_lossy().into_owned();
        if !name.starts_with("config_") {
            continue;
        }
        let dir = f.copy_model(&name, true);
        std::fs::copy(&form, dir.join("config.json")).expect("a copied config");
        let data = f.data("form.jsonl", &f.batch());
        let s = Scores::run(f, &["--model", text(&dir), "--reference", "initial", "--data", &data]);
        let all = f.tensor("ref/seq_logps_joint");
        let want: Vec<f64> = f.batch().iter().flat_map(|&r| [all[2 * r], all[2 * r + 1]]).collect();
        c.close(name, Metric::Rel, &s.side("logp"), &want, tolerance::SEQUENCE);
    }
}

/// All checks of a family of full models.
fn full(set: &str, name: &str) {
    let Some(dir) = family(set, name) else { return };
    let (f, mut c) = (Fixture::new(dir), Checks::new(name));
    let (policy, reference) = (f.policy(), f.model());
    let models = ["--model", text(&policy), "--reference", &reference];
    scores(&mut c, &f, &models);
    config_forms(&mut c, &f);

    let batch = f.data("batch.jsonl", &f.batch());
    let s = Scores::run(&f, &["--model", &reference, "--reference", "initial", "--data", &batch, "--beta", "0.1"]);
    let ln2 = std::f64::consts::LN_2;
    c.close("loss against the starting policy", Metric::Abs, &[number(&s.summary["loss"])], &[ln2], 1e-6);

    let jpo = ["--objective", "jpo", "--beta", "0.1"];
    let g = f.out("g.safetensors");
    run(&[&["grad", "--data", &batch, "--out", &g], &models[..], &jpo].concat());
    gradients(&mut c, &f, &g, "grad_jpo", tolerance::GRADIENT);
    untouched(&mut c, &f, &batch);
    if f.meta["reduced"] != json!(true) {
        let dpo = f.data("dpo.jsonl", &indices(&f.meta["dpo_rows"]));
        run(&[&["grad", "--data", &dpo, "--out", &g, "--objective", "dpo", "--beta", "0.1"], &models[..]].concat());
        gradients(&mut c, &f, &g, "grad_dpo", tolerance::GRADIENT);
        let all = f.rows();
        let sft =
            f.batch().into_iter().map(|r| json!({"instruction": all[r]["i_chosen"], "response": all[r]["r_chosen"]}));
        let sft = f.write_lines("sft.jsonl", sft);
        run(&["grad", "--sft", "--data", &sft, "--out", &g, "--model", text(&policy)]);
        gradients(&mut c, &f, &g, "grad_sft", tolerance::GRADIENT);
        full_training(&mut c, &f, &policy, &models, &jpo);
    }
    c.finish();
}

/// Tensors around a wrapped language model: training every weight and merging an adapter hand them on, and change the model's own.
fn untouched(c: &mut Checks, f: &Fixture, data: &str) {
    let Some(names) = f.meta["untouched"].as_array().filter(|names| !names.is_empty()) else { return };
    let (model, adapter) = (f.model(), f.out("adapter"));
    let into = |out: &str, more: &[&str]| {
        let train = ["train", "--model", &model, "--data", data, "--max-steps", "2", "--warmup-steps", "0"];
        let rest = ["--learning-rate", "1e-3", "--batch-size", "2", "--no-shuffle", "--output-dir", out];
        run(&[&train[..], &rest, more].concat());
    };
    let (full, merged) = (f.out("full"), f.out("merged"));
    into(&full, &["--full"]);
    into(&adapter, &["--lora-targets", "all-linear"]);
    // A name alone would match modules of the vision tower, too.
    let targets = read_json(&Path::new(&adapter).join("adapter_config.json"))["target_modules"].clone();
    c.equal("target_modules is a pattern", &targets.as_str().is_some_and(|t| t.contains("language_model")), &true);
    run(&["merge", "--model", &model, "--adapter", &adapter, "--output-dir", &merged]);
    let start = read_checkpoint(Path::new(&model));
    for out in [&full, &merged] {
        let got = read_checkpoint(Path::new(out));
        c.equal(format!("{out} names"), &got.keys().collect::<Vec<_>>(), &start.keys().collect());
        for (name, tensor) in &start {
            let is_same = got.get(name).is_some_and(|g| g.data == tensor.data && g.shape == tensor.shape);
            let is_other = names.iter().any(|other| other.as_str() == Some(name));
            if is_other || (out == &full) || name.ends_with("_proj.weight") {
                c.equal(format!("{out}: {name} is unchanged"), &is_same, &is_other);
            }
        }
        let s = Scores::run(f, &["--model", out, "--reference", &model, "--data", data]);
        c.equal(format!("{out} is another policy"), &(number(&s.summary["loss"]) != std::f64::consts::LN_2), &true);
    }
}

fn full_training(c: &mut Checks, f: &Fixture, policy: &Path, models: &[&str], jpo: &[&str]) {
    let steps = f.meta["train_rows"].as_array().cloned().unwrap_or_default();
    let data = f.data("train.jsonl", &steps.iter().flat_map(indices).collect::<Vec<_>>());
    let pairs = indices(&steps[0]).len().to_string();
    let train = [&["train", "--full", "--output-dtype", "f32", "--data", &data], models, jpo, OPTIMIZER].concat();
    let all = f.all();
    let final_scores = |dir: &str| {
        let s = Scores::run(f, &[&["--model", dir, "--reference", dir, "--data", &all], jpo].concat());
        s.side("logp")
    };
    let out = f.out("trained");
    run(&[&train[..], &["--decay-all", "--batch-size", &pairs, "--output-dir", &out]].concat());
    metrics(c, f, &out, "train");
    updates(c, f, &read_checkpoint(Path::new(&out)), &read_checkpoint(policy), tolerance::UPDATE);
    let key = "train/final_seq_logps_joint";
    c.close(key, Metric::L2, &final_scores(&out), f.tensor(key), tolerance::TRAINED);

    // The default decay groups; one pair a micro-batch, accumulated to the same batch.
    let out = f.out("trained-hf-groups");
    let one = ["--batch-size", "1", "--gradient-accumulation-steps", &pairs, "--output-dir", &out];
    run(&[&train[..], &one].concat());
    metrics(c, f, &out, "train_hf_groups");
    let key = "train_hf_groups/final_seq_logps_joint";
    c.close(key, Metric::L2, &final_scores(&out), f.tensor(key), tolerance::TRAINED);
}

/// All checks of a LoRA family.
fn lora(set: &str, name: &str) {
    let Some(dir) = family(set, name) else { return };
    let (f, mut c) = (Fixture::new(dir), Checks::new(name));
    let (base, adapter) = (f.model(), text(&f.dir.join("adapter")).to_owned());
    let models = ["--model", &base, "--adapter", &adapter, "--reference", "base"];
    scores(&mut c, &f, &models);

    let jpo = ["--objective", "jpo", "--beta", "0.1"];
    let g = f.out("g.safetensors");
    for (prefix, objective, rows) in [("grad_jpo", "jpo", "batch_rows"), ("grad_dpo", "dpo", "dpo_rows")] {
        let data = f.data("rows.jsonl", &indices(&f.meta[rows]));
        let rest = ["--objective", objective, "--beta", "0.1"];
        run(&[&["grad", "--data", &data, "--out", &g], &models[..], &rest].concat());
        gradients(&mut c, &f, &g, prefix, tolerance::GRADIENT);
    }

    let steps = f.meta["train_rows"].as_array().cloned().unwrap_or_default();
    let data = f.data("train.jsonl", &steps.iter().flat_map(indices).collect::<Vec<_>>());
    let pairs = indices(&steps[0]).len().to_string();
    let out = f.out("trained");
    let rest = ["--decay-all", "--batch-size", &pairs, "--output-dir", &out];
    run(&[&["train", "--data", &data], &models[..], &jpo, OPTIMIZER, &rest].concat());
    metrics(&mut c, &f, &out, "train");
    let file = "adapter_model.safetensors";
    let start = read_tensors(&f.dir.join("adapter").join(file));
    updates(&mut c, &f, &read_tensors(&Path::new(&out).join(file)), &start, tolerance::UPDATE_LORA);
    let config = read_json(&Path::new(&out).join("adapter_config.json"));
    for (key, want) in [("r", "r"), ("lora_alpha", "alpha")] {
        c.close(key, Metric::Abs, &[number(&config[key])], &[number(&f.meta["lora"][want])], 1e-9);
    }
    // The program's own adapter and PEFT's, after ten steps.
    let peft = text(&f.dir.join("adapter_after10")).to_owned();
    for (what, adapter) in [("its own", &out), ("PEFT's", &peft)] {
        let s = Scores::run(
            &f,
            &[&["--model", &base, "--adapter", adapter, "--reference", "base", "--data", &f.all()], &jpo[..]].concat(),
        );
        let key = "train/final_seq_logps_joint";
        c.close(format!("{key}, {what} adapter"), Metric::L2, &s.side("logp"), f.tensor(key), tolerance::TRAINED);
    }

    let merged = f.out("merged");
    run(&["merge", "--model", &base, "--adapter", &adapter, "--output-dtype", "f32", "--output-dir", &merged]);
    let (got, initial) = (read_checkpoint(Path::new(&merged)), read_checkpoint(Path::new(&base)));
    let changed = read_tensors(&f.dir.join("merged.safetensors"));
    c.equal("merged tensors", &got.keys().collect::<Vec<_>>(), &initial.keys().collect());
    for (key, want) in &initial {
        let (want, g) = (changed.get(key).unwrap_or(want), got.get(key).map(|t| &t.data[..]).unwrap_or_default());
        c.close(format!("merged {key}"), Metric::Abs, g, &want.data, tolerance::MERGED);
    }
    let s = Scores::run(&f, &[&["--model", &merged, "--reference", &base, "--data", &f.all()], &jpo[..]].concat());
    let want = f.tensor("policy/seq_logps_joint");
    c.close("log-probs of the merged model", Metric::Rel, &s.side("logp"), want, tolerance::SEQUENCE);
    c.finish();
}

/// Greedy continuations: each prompt by itself, then all in one call.
fn generation(set: &str, name: &str) {
    let Some(dir) = family(set, name) else { return };
    let (f, mut c) = (Fixture::new(dir), Checks::new(name));
    let (model, adapter) = (f.model(), text(&f.dir.join("adapter")).to_owned());
    let mut base = vec!["generate", "--model", &model];
    if f.meta.get("base").is_some() {
        base.extend(["--adapter", &adapter]);
    }
    base.extend(GENERATE);

    let (ids, lengths) = (&f.sequences["input_ids"], f.sequences["prompt_len"].usizes());
    let rows = f.rows();
    let want: Vec<(Vec<f64>, Vec<f64>)> = f.meta["generation"]["prompts"]
        .as_array()
        .into_iter()
        .flatten()
        .map(numbers)
        .zip(f.meta["generation"]["tokens"].as_array().into_iter().flatten().map(numbers))
        .collect();
    // The fixtures hold a prompt's ids; its text is that of a sequence that begins with them.
    let texts: Vec<String> = want
        .iter()
        .map(|(p, _)| {
            let s = (0..lengths.len()).find(|&s| lengths[s] == p.len() && ids.row(s, p.len()) == p);
            let s = s.unwrap_or_else(|| panic!("{name}: a prompt that no sequence begins with"));
            let instruction = rows[s / 2][if s % 2 == 0 { "i_chosen" } else { "i_reject" }].as_str();
            format!("### Instructions: {}\n\n### Response:", instruction.expect("an instruction is a text"))
        })
        .collect();
    let objects = |args: &[&str]| -> Vec<(Vec<f64>, Vec<f64>)> {
        let out = run(args);
        let parse = |l: &str| serde_json::from_str::<Value>(l).unwrap_or_else(|e| panic!("{e}: {l}"));
        out.lines().map(parse).map(|o| (numbers(&o["prompt_ids"]), numbers(&o["ids"]))).collect()
    };
    for (i, prompt) in texts.iter().enumerate() {
        let got = objects(&[&base[..], &["--prompt", prompt]].concat());
        c.equal(format!("prompt {i} alone"), &got, &want[i..=i].to_vec());
    }
    let flags: Vec<&str> = texts.iter().flat_map(|t| ["--prompt", t.as_str()]).collect();
    c.equal("prompts side by side", &objects(&[&base[..], &flags].concat()), &want);
    c.finish();
}

macro_rules! families {
    ($($test:ident: $kind:ident($set:ident, $name:expr);)*) => {$(
        mod $test {
            #[test]
            fn scores_gradients_training() {
                super::$kind(super::$set, $name);
            }

            #[test]
            fn generation() {
                super::generation(super::$set, $name);
            }
        }
    )*};
}

families! {
    qwen3: full(OURS, "qwen3");
    gemma2: full(OURS, "gemma2");
    gemma3: full(OURS, "gemma3");
    phi3: full(OURS, "phi3");
    llama3_scaling: full(OURS, "llama3-scaling");
    mistral_odd: full(OURS, "mistral-odd");
    gpt2_odd: full(OURS, "gpt2-odd");
    smollm3: full(OURS, "smollm3");
    granite: full(OURS, "granite");
    granitemoehybrid: full(OURS, "granitemoehybrid");
    ministral3: full(OURS, "ministral3");
    olmo2: full(OURS, "olmo2");
    olmo3: full(OURS, "olmo3");
    glm4: full(OURS, "glm4");
    phi4_mini: full(OURS, "phi4-mini");
    qwen3_5: full(OURS, "qwen3_5");
    qwen3_5_wrapper: full(OURS, "qwen3_5-wrapper");
    gemma4_12b: full(OURS, "gemma4-12b");
    gemma4_e2b: full(OURS, "gemma4-e2b");
    qwen3_moe: full(OURS, "qwen3_moe");
    gpt_oss: full(OURS, "gpt_oss");
    lfm2: full(OURS, "lfm2");
    lora_mistral: lora(OURS, "lora-mistral");
    public_gpt2: full(PUBLIC, "gpt2");
    public_llama: full(PUBLIC, "llama");
    public_mistral: full(PUBLIC, "mistral");
    public_qwen2: full(PUBLIC, "qwen2");
    public_lora_llama: lora(PUBLIC, "lora-llama");
}

/// A loss's gradient is also the one it climbs along.
#[test]
fn gradients_are_slopes() {
    let Some(dir) = family(OURS, "mistral-odd") else { return };
    let (f, mut c) = (Fixture::new(dir), Checks::new("mistral-odd"));
    let policy = f.policy();
    slopes(&mut c, &f, &policy);
    c.finish();
}

/// The gate of `--matmul-precision medium`, whose operands have 11 bits: every gradient of the models, where the device has cooperative
/// matrices (Mesa 26 in CI). A family whose gradient such operands move by more than the tolerance in PyTorch, too, is compared with that gradient
/// of PyTorch (`make.py --f16`).
#[test]
fn medium_precision_keeps_gradients() {
    let info: Value = serde_json::from_str(&run(&["info", "--json"])).expect("JSON");
    if info["device"]["cooperative"].is_null() {
        println!("no cooperative matrices: skipped");
        return;
    }
    let families = ["gemma2", "gemma3", "llama3-scaling", "mistral-odd", "phi3", "qwen3"];
    let newer =
        ["smollm3", "granite", "granitemoehybrid", "ministral3", "olmo2", "olmo3", "glm4", "phi4-mini", "qwen3_5"];
    let newer = newer.into_iter().chain(["gemma4-12b", "gemma4-e2b", "lfm2"]);
    let families = families.into_iter().chain(newer).map(|name| (OURS, name));
    for (set, name) in families.into_iter().chain(["gpt2", "llama", "qwen2"].map(|name| (PUBLIC, name))) {
        let Some(dir) = family(set, name) else { continue };
        let (mut f, mut c) = (Fixture::new(dir), Checks::new(name));
        let (policy, reference, data) = (f.policy(), f.model(), f.data("batch.jsonl", &f.batch()));
        let gradient_file = |precision: &str| {
            let out = f.out(precision);
            let models = ["grad", "--model", text(&policy), "--reference", &reference, "--data", &data, "--out", &out];
            run(&[&models[..], &["--objective", "jpo", "--beta", "0.1", "--matmul-precision", precision]].concat());
            out
        };
        let (highest, medium) = (gradient_file("highest"), gradient_file("medium"));
        assert!(std::fs::read(highest).ok() != std::fs::read(&medium).ok(), "{name}: medium is highest");
        let rounded = f.dir.join("f16_products.safetensors");
        if rounded.is_file() {
            f.expected = read_tensors(&rounded);
        }
        gradients(&mut c, &f, &medium, "grad_jpo", tolerance::GRADIENT_MEDIUM);
        c.finish();
    }
}

/// Every folder of the set is tested.
#[test]
fn no_family_is_forgotten() {
    let source = include_str!("oracle.rs");
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join(OURS);
    for entry in std::fs::read_dir(&dir).expect("the fixtures") {
        let path = entry.expect("a readable folder").path();
        if path.is_dir() && path.join("expected.json").is_file() {
            let name = path.file_name().expect("a folder has a name").to_string_lossy().into_owned();
            assert!(source.contains(&format!("(OURS, \"{name}\");")), "{name} has no test");
        }
    }
}
