//! Every loss and its gradient against PyTorch's autograd in float64 (`tests/losses/make.py`); and what the program makes of them: two steps of
//! each, their numbers in `score`, rows with a label, and lines that refuse what makes no sense.

mod program;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use jointwise::objective::{FDivergence, Loss, LossInputs, LossMix, PreferenceLoss, SequenceLogps, cross_weights};
use program::{Sandbox, Tensors, metrics, read_tensors, update_error};
use serde::Deserialize;
use serde_json::{Value, json};

#[derive(Deserialize)]
struct Batch {
    /// Instruction, response, their tokens.
    sums: Vec<(f64, f64, usize, usize)>,
    /// Sums over the response tokens past the pair's shorter response.
    tails: Vec<f64>,
    /// Logarithms of WPO's weights.
    log_weights: Vec<f64>,
    reference: Vec<f64>,
    paired: bool,
    desirable: Vec<bool>,
    cosines: Vec<f64>,
}

#[derive(Deserialize)]
struct Expected {
    batch: String,
    preference: PreferenceLoss,
    losses: Vec<f64>,
    d_sums: Vec<[f64; 2]>,
    d_tails: Vec<f64>,
}

#[derive(Deserialize)]
struct Fixture {
    batches: BTreeMap<String, Batch>,
    cases: Vec<Expected>,
}

fn fixture() -> Fixture {
    serde_json::from_str(include_str!("losses/losses.json")).expect("the fixture")
}

/// The largest error of losses and gradients, relative where they are above 1.
fn error(p: &PreferenceLoss, batch: &Batch, want: &Expected) -> f64 {
    let sums =
        |(s, &(instruction, response, n_instruction, n_response)): (usize, &(f64, f64, usize, usize))| SequenceLogps {
            instruction,
            response,
            n_instruction,
            n_response,
            response_tail: batch.tails[s],
            log_weight: batch.log_weights[s],
            response_p_logp: 0.0,
        };
    let known = LossInputs {
        paired: batch.paired,
        desirable: batch.desirable.clone(),
        reference: batch.reference.clone(),
        cross: cross_weights(&batch.cosines, batch.sums.len() / 2, p.rpo_tau),
        step_tokens_per_row: None,
    };
    let got = p.evaluate(&batch.sums.iter().enumerate().map(sums).collect::<Vec<_>>(), &known);
    let losses = got.chunks(known.row_len()).map(|row| row.iter().map(|o| o.loss).sum::<f64>());
    let gradients = got.iter().flat_map(|o| o.d_sums).chain(got.iter().map(|o| o.d_tail));
    let got: Vec<f64> = losses.chain(gradients).collect();
    let want = want.losses.iter().chain(want.d_sums.as_flattened()).chain(&want.d_tails);
    let want: Vec<f64> = want.copied().collect();
    assert_eq!(got.len(), want.len());
    got.iter().zip(want).map(|(got, want)| (got - want).abs() / want.abs().max(1.0)).fold(0.0, f64::max)
}

#[test]
fn losses_and_gradients_are_pytorchs() {
    let Fixture { batches, cases } = fixture();
    let (mut seen, mut told) = (BTreeSet::new(), BTreeSet::new());
    for case in &cases {
        let (p, batch) = (case.preference.clone(), &batches[&case.batch]);
        p.validate().expect("constants in range");
        let found = error(&p, batch, case);
        assert!(found < 1e-9, "{} of {}: {found:.1e}: {p:?}", p.loss, case.batch);
        seen.extend(p.loss.parts().map(|(loss, _)| loss.name()));
        // The same comparison must refuse a constant that is slightly wrong.
        let (nudged, slightly) =
            (PreferenceLoss { beta: p.beta * 1.000_001, ..p.clone() }, p.loss.plus(Loss::Sft, 1e-6));
        if error(&nudged, batch, case) > 1e-9
            && error(&PreferenceLoss { loss: slightly, ..p.clone() }, batch, case) > 1e-9
        {
            told.extend(p.loss.parts().map(|(loss, _)| loss.name()));
        }
    }
    let all: BTreeSet<&str> = Loss::ALL.map(Loss::name).into();
    assert_eq!(seen, all);
    assert_eq!(told, all, "a wrong constant passes");
}

/// Every modifier changes the losses that it is compared with: leaving one out is noticed.
#[test]
fn a_modifier_that_is_left_out_is_noticed() {
    let Fixture { batches, cases } = fixture();
    let mut seen = BTreeSet::new();
    for case in &cases {
        let p = &case.preference;
        for (modifier, without) in [
            ("ld_alpha", PreferenceLoss { ld_alpha: None, ..p.clone() }),
            ("wpo", PreferenceLoss { wpo: false, ..p.clone() }),
            ("f_divergence", PreferenceLoss { f_divergence: FDivergence::ReverseKl, ..p.clone() }),
        ] {
            if without != *p {
                assert!(error(&without, &batches[&case.batch], case) > 1e-9, "{modifier}: {p:?}");
                seen.insert(modifier);
            }
        }
    }
    assert_eq!(seen.len(), 3);
}

/// The demo model with a few rows of its tasks: pairs of one instruction, pairs of two, texts with a label.
struct Demo {
    sandbox: Sandbox,
    model: String,
}

const PAIRS: [[&str; 4]; 6] = [
    ["Say red.", " red", "Say red.", " blue"],
    ["Add 2 and 3.", " 5", "Add 2 and 3.", " 6 and more"],
    ["Say red.", " red", "Add 2 and 3.", " no"],
    ["Repeat: cat", " cat", "Repeat: dog", " cow"],
    ["Add 2 and 3.", " 5", "Say red.", " green green"],
    ["Repeat: cat", " cat", "Say red.", " r"],
];

impl Demo {
    fn new() -> Self {
        let sandbox = Sandbox::new();
        let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/demo");
        let lines = |of: &mut dyn FnMut(usize, &[&str; 4]) -> Value| {
            PAIRS.iter().enumerate().map(|(i, pair)| of(i, pair).to_string()).collect::<Vec<_>>().join("\n")
        };
        let pairs = lines(&mut |_, [a, b, c, d]| json!({"i_chosen": a, "r_chosen": b, "i_reject": c, "r_reject": d}));
        sandbox.write("pairs.jsonl", pairs);
        let labelled = |i: usize, [a, b, c, d]: &[&str; 4]| match i % 2 {
            0 => json!({"prompt": a, "completion": b, "label": true}),
            _ => json!({"prompt": c, "completion": d, "label": false}),
        };
        sandbox.write("labelled.jsonl", lines(&mut { labelled }));
        Self { model: model.to_str().expect("UTF-8").into(), sandbox }
    }

    fn args<'a>(&'a self, command: &'a str, data: &'a str, loss: &'a str) -> Vec<&'a str> {
        vec![command, "--model", &self.model, "--data", data, "--loss", loss]
    }

    /// Two steps on all six rows, with the loss before each and after both.
    fn train(&self, data: &str, loss: &str, more: &[&str]) -> [f64; 3] {
        let out = format!("{data}-{loss}{}", more.concat());
        let mut args = self.args("train", data, loss);
        args.extend(["--max-steps", "2", "--learning-rate", "1e-2", "--no-shuffle", "--output-dir", &out]);
        args.extend(["--eval-data", data, "--lr-scheduler-type", "constant", "--preset", "paper"]);
        self.sandbox.run(&[&args, more].concat()).ok();
        let lines = metrics(&self.sandbox.path(&out));
        let number =
            |line: &Value, name: &str| line[name].as_f64().unwrap_or_else(|| panic!("{loss}: no {name}: {line}"));
        for line in &lines[..2] {
            assert!(number(line, "grad_norm") > 0.0, "{loss}: {line}");
        }
        [number(&lines[0], "loss"), number(&lines[1], "loss"), number(&lines[2], "eval_loss")]
    }
}

#[test]
fn two_steps_of_every_loss_go_down() {
    let demo = Demo::new();
    let mixes = ["sigmoid=1,sft=0.2", "rpo=0.5,kto=1", "sigmoid_norm=1,apo_zero=0.5"];
    let alone = Loss::ALL.map(Loss::name).into_iter().chain(mixes).map(|loss| (loss, needed(loss)));
    let modified = [
        ("sigmoid", &["--ld-alpha", "0.5"][..]),
        ("sigmoid", &["--wpo"]),
        ("apo_zero", &["--wpo", "--ld-alpha", "0", "--objective", "dpo"]),
        ("sigmoid", &["--f-divergence", "forward_kl"]),
        ("ipo", &["--f-divergence", "alpha=0.5", "--sft-weight", "0.1"]),
    ];
    for (loss, more) in alone.chain(modified) {
        let [first, second, last] = demo.train("pairs.jsonl", loss, more);
        assert!(last < first && second < first, "{loss} {more:?}: {first} {second} {last}");
    }
    for loss in ["kto", "kto=1,sft=0.1", "apo_zero_unpaired"] {
        let [first, second, last] = demo.train("labelled.jsonl", loss, &["--objective", "dpo"]);
        assert!(last < first && second < first, "{loss}: {first} {second} {last}");
    }
}

/// Flags without which a loss is refused, or does not fall.
fn needed(loss: &str) -> &'static [&'static str] {
    match loss {
        "exo_pair" => &["--label-smoothing", "0.001"],
        // With the default τ, 0.05, the loss has a local minimum where the rejected side leads.
        "discopop" => &["--discopop-tau", "1"],
        // With the default λ, 50, these few rows pull the chosen sides to and fro.
        "dpop" => &["--dpop-lambda", "5"],
        _ => &[],
    }
}

/// Rewards are β·(log π − log π_ref) where the loss is the likelihood alone, too, as with every other loss: 0 before the first step.
#[test]
fn rewards_of_the_likelihood_alone_are_against_the_reference() {
    let demo = Demo::new();
    demo.train("pairs.jsonl", "sft", &["--beta", "0.25"]);
    let steps = metrics(&demo.sandbox.path("pairs.jsonl-sft--beta0.25"));
    for side in ["chosen", "rejected"] {
        let of = |step: usize, kind: &str| steps[step][format!("{kind}/{side}")].as_f64().expect("a number");
        assert_eq!(of(0, "rewards"), 0.0, "{side}");
        let expected = 0.25 * (of(1, "logps") - of(0, "logps"));
        assert!((of(1, "rewards") - expected).abs() < 1e-5 && expected != 0.0, "{side}: {expected}");
    }
}

#[test]
fn score_has_every_loss() {
    let demo = Demo::new();
    for loss in Loss::ALL {
        let mut args = demo.args("score", "pairs.jsonl", loss.name());
        args.extend(["--reference", "initial"]);
        args.extend(needed(loss.name()));
        let lines = demo.sandbox.run(&args).ok().lines();
        let of_rows: Vec<f64> = lines[..6].iter().map(|l| l["loss"].as_f64().expect("a loss")).collect();
        let mean = lines[6]["summary"]["loss"].as_f64().expect("a mean");
        assert!((of_rows.iter().sum::<f64>() / 6.0 - mean).abs() < 1e-12, "{loss:?}");
        let at_the_start = match loss {
            Loss::Sigmoid
            | Loss::Robust
            | Loss::SigmoidNorm
            | Loss::Dpop
            | Loss::Aot
            | Loss::AotUnpaired
            | Loss::Rpo => Some(std::f64::consts::LN_2),
            Loss::BcoPair | Loss::BcoShift | Loss::NcaPair => Some(2.0 * std::f64::consts::LN_2),
            Loss::Hinge | Loss::ApoZero | Loss::ApoDown => Some(1.0),
            Loss::Ipo => Some(25.0),
            Loss::SppoHard => Some(50.0),
            // Half of each: the logistic loss ln 2, the exponential one 1.
            Loss::Discopop => Some(0.5 * (std::f64::consts::LN_2 + 1.0)),
            // KL((½, ½) ‖ (1 − ε, ε)).
            Loss::ExoPair => Some(0.5 * (0.25_f64.ln() - (0.999_f64 * 0.001).ln())),
            Loss::KtoPair | Loss::Kto | Loss::ApoZeroUnpaired => Some(0.5),
            Loss::Simpo | Loss::Orpo | Loss::Cpo | Loss::Sft => None,
        };
        assert!(at_the_start.is_none_or(|want| (mean - want).abs() < 1e-9), "{loss:?}: {mean}");
    }
    // Texts with a label: as rows of their own, and none where the loss is of pairs.
    let mut args = demo.args("score", "labelled.jsonl", "kto");
    let lines = demo.sandbox.run(&args).ok().lines();
    assert!(lines[0]["label"] == true && lines[1]["label"] == false && lines[0].get("loss").is_none());
    args.extend(["--reference", "base", "--undesirable-weight", "3"]);
    let lines = demo.sandbox.run(&args).ok().lines();
    let got: Vec<f64> = lines[..6].iter().map(|l| l["loss"].as_f64().expect("a loss")).collect();
    assert_eq!(got, [0.5, 1.5, 0.5, 1.5, 0.5, 1.5]);
    assert_eq!(lines[6]["summary"]["loss"], 1.0);
    assert!(lines[6]["summary"].get("rewards/accuracies").is_none());
}

/// Losses that look at a whole micro-batch are others with fewer rows in it, which docs/objectives.md says; the rest are sums over rows.
#[test]
fn accumulation_is_exact_where_rows_stand_alone() {
    let demo = Demo::new();
    // The half of an adapter that begins at 0: all of it is update.
    let train = |loss: &str, name: &str, more: &[&str]| -> Tensors {
        let out = format!("{loss}-{name}");
        let mut args = demo.args("train", "pairs.jsonl", loss);
        args.extend(["--max-steps", "3", "--learning-rate", "3e-2", "--adam-epsilon", "1e-2", "--max-grad-norm", "0"]);
        args.extend(["--no-shuffle", "--output-dir", &out]);
        demo.sandbox.run(&[&args, more].concat()).ok();
        let mut adapter = read_tensors(&demo.sandbox.path(&out).join("adapter_model.safetensors"));
        adapter.retain(|name, _| name.contains("lora_B"));
        adapter
    };
    for (loss, alone) in [
        ("orpo", true),
        ("sigmoid=1,sft=0.2", true),
        ("kto", false),
        ("bco_pair", true),
        ("apo_zero", true),
        ("cpo", true),
        ("bco_shift", false),
        ("aot", false),
        ("aot_unpaired", false),
        ("rpo", false),
    ] {
        let whole = train(loss, "whole", &["--batch-size", "6"]);
        let mut zero = whole.clone();
        zero.values_mut().for_each(|t| t.bytes.fill(0));
        let parts = ["--batch-size", "1", "--gradient-accumulation-steps", "6"];
        let error = update_error(&train(loss, "parts", &parts), &whole, &zero);
        assert!(if alone { error <= 1e-5 } else { error > 1e-3 }, "{loss}: {error:.1e}");
    }
}

#[test]
fn what_makes_no_sense_is_refused() {
    let demo = Demo::new();
    let out = ["--output-dir", "out"];
    let refused = |data: &str, loss: &str, more: &[&str], parts: &[&str]| {
        demo.sandbox.refused(&[&demo.args("train", data, loss), &out[..], more].concat(), parts);
    };
    let names = Loss::ALL.map(Loss::name);
    refused("pairs.jsonl", "squared", &[], &[&format!("expected one of {}", names.join(", "))]);
    refused("pairs.jsonl", "sigmoid=0", &[], &["--loss", "above 0"]);
    for loss in Loss::ALL.into_iter().filter(|l| l.needs_pairs()) {
        refused("labelled.jsonl", loss.name(), needed(loss.name()), &["labelled.jsonl:1", "--loss kto"]);
    }
    refused("labelled.jsonl", "kto=1,sigmoid=1", &[], &["labelled.jsonl:1", "--loss kto"]);
    refused("pairs.jsonl", "kto", &["--data", "labelled.jsonl"], &["labelled.jsonl:1", "label", "other forms"]);
    refused("pairs.jsonl", "hinge", &["--label-smoothing", "0.1"], &["--label-smoothing", "hinge"]);
    for (flag, loss) in [
        ("--simpo-gamma", "orpo"),
        ("--rpo-tau", "sigmoid"),
        ("--desirable-weight", "kto_pair"),
        ("--discopop-tau", "ipo"),
        ("--dpop-lambda", "sigmoid"),
        ("--cpo-alpha", "simpo"),
    ] {
        refused("pairs.jsonl", loss, &[flag, "0.3"], &[flag, loss]);
    }
    refused("pairs.jsonl", "exo_pair", &[], &["--label-smoothing", "exo_pair", "above 0"]);
    refused("pairs.jsonl", "kto", &["--ld-alpha", "0.5"], &["--ld-alpha", "kto is of single texts"]);
    refused("pairs.jsonl", "aot", &["--wpo"], &["--wpo", "aot compares several pairs"]);
    refused("pairs.jsonl", "sigmoid=1,sft=1", &["--wpo"], &["--wpo", "sft has a mean over a step's tokens"]);
    refused("pairs.jsonl", "apo_zero", &["--f-divergence", "js"], &["--f-divergence", "log-ratios alone"]);
    refused("pairs.jsonl", "sigmoid", &["--f-divergence", "tv"], &["--f-divergence", "alpha=A"]);
    refused("pairs.jsonl", "sigmoid", &["--sft-loss", "dft"], &["--sft-loss", "only for sft"]);
    refused("pairs.jsonl", "rpo", &["--rpo-tau", "0"], &["--rpo-tau"]);
    demo.sandbox.write("unlabelled.jsonl", r#"{"prompt": "a", "completion": "b", "label": 2}"#);
    refused("unlabelled.jsonl", "kto", &[], &["unlabelled.jsonl:1", "`label`", "true or false", "found 2"]);
    let sft = ["sft", "--model", &demo.model, "--data", "labelled.jsonl", "--output-dir", "out"];
    demo.sandbox.refused(&sft, &["labelled.jsonl:2", "not one to imitate"]);
    assert_eq!("sigmoid".parse(), Ok(LossMix::single(Loss::Sigmoid)));
}

/// Dynamic fine-tuning: the gradient of the first step is that of −p·log p with a constant p, and the loss falls.
#[test]
fn dynamic_fine_tuning_weighs_tokens_by_their_probabilities() {
    let demo = Demo::new();
    let data = "imitated.jsonl";
    let rows =
        PAIRS.map(|[instruction, response, ..]| json!({"prompt": instruction, "completion": response}).to_string());
    demo.sandbox.write(data, rows.join("\n"));
    // Σ −p·log p and Σ −log p over the response tokens, from the tokens' log-probabilities.
    let lines = demo.sandbox.run(&["score", "--model", &demo.model, "--data", data, "--tokens"]).ok().lines();
    let (mut dynamic, mut plain, mut n) = (0.0, 0.0, 0.0);
    for line in &lines[..6] {
        let text = &line["text"];
        let all = text["token_logps"].as_array().expect("log-probabilities");
        let scored = text["n_scored"].as_u64().expect("a number") as usize;
        let of_response = response_tokens(text, scored);
        for logp in all[all.len() - of_response..].iter().map(|x| x.as_f64().expect("a number")) {
            dynamic -= logp * logp.exp();
            plain -= logp;
            n += 1.0;
        }
    }
    for (loss, want) in [("dft", dynamic / n), ("nll", plain / n)] {
        let out = format!("sft-{loss}");
        let args = ["sft", "--model", &demo.model, "--data", data, "--sft-loss", loss, "--output-dir", &out];
        let more = ["--max-steps", "3", "--learning-rate", "1e-2", "--no-shuffle", "--lr-scheduler-type", "constant"];
        demo.sandbox.run(&[&args[..], &more].concat()).ok();
        let steps = metrics(&demo.sandbox.path(&out));
        let at = |step: usize| steps[step]["loss"].as_f64().expect("a loss");
        assert!((at(0) - want).abs() < 1e-5, "{loss}: {} {want}", at(0));
        assert!(at(2) < at(0), "{loss}: {} {}", at(0), at(2));
    }
}

/// The number of response tokens, whose log-probabilities add up to `logp_response`.
fn response_tokens(text: &Value, most: usize) -> usize {
    let all = text["token_logps"].as_array().expect("log-probabilities");
    let want = text["logp_response"].as_f64().expect("a number");
    let last = |n: usize| all[all.len() - n..].iter().filter_map(Value::as_f64).sum::<f64>();
    (1..=most).find(|&n| (last(n) - want).abs() < 1e-6).expect("a sum of the last tokens")
}

/// The reward under LD-DPO is of the response tokens up to the shorter side's length, and of a part of the others.
#[test]
fn ld_alpha_weighs_the_longer_response() {
    let demo = Demo::new();
    for objective in ["jpo", "dpo"] {
        let mut args = demo.args("score", "pairs.jsonl", "sigmoid");
        args.extend(["--objective", objective, "--tokens", "--reference-free", "--ld-alpha", "0.25"]);
        let lines = demo.sandbox.run(&args).ok().lines();
        let mut weighted = 0;
        for line in &lines[..6] {
            let n = ["chosen", "rejected"].map(|side| {
                let most = line[side]["token_logps"].as_array().expect("log-probabilities").len() - 1;
                response_tokens(&line[side], most)
            });
            for (side, own) in ["chosen", "rejected"].into_iter().zip(n) {
                let all: Vec<f64> =
                    line[side]["token_logps"].as_array().into_iter().flatten().filter_map(Value::as_f64).collect();
                let tail: f64 = all[all.len() - (own - n[0].min(n[1]))..].iter().sum();
                let want = 0.1 * (line[side]["logp"].as_f64().expect("a score") - 0.75 * tail);
                let got = line[format!("rewards_{side}")].as_f64().expect("a reward");
                assert!((got - want).abs() < 1e-9, "{objective} {side}: {got} {want}");
                weighted += usize::from(tail != 0.0);
            }
        }
        assert!(weighted >= 3, "{objective}: no response is longer");
    }
}

/// Every margin is 0 at the start, with WPO and LD-DPO too, and the loss is ln 2 times the pairs' weights; `score` computes the same.
#[test]
fn weighted_pairs_start_at_the_reference() {
    let demo = Demo::new();
    for more in [&["--wpo"][..], &["--wpo", "--ld-alpha", "0.5"], &["--ld-alpha", "0.5"]] {
        let out = format!("weighted{}", more.concat());
        let mut args = demo.args("train", "pairs.jsonl", "sigmoid");
        args.extend(["--max-steps", "1", "--no-shuffle", "--output-dir", &out]);
        demo.sandbox.run(&[&args, more].concat()).ok();
        let first = &metrics(&demo.sandbox.path(&out))[0];
        // Policy and reference are the same model: every margin is 0, and every loss ln 2 times the pair's weight.
        assert_eq!((first["rewards/margins"].as_f64(), first["rewards/chosen"].as_f64()), (Some(0.0), Some(0.0)));
        let loss = first["loss"].as_f64().expect("a loss");
        let is_weighted = more.contains(&"--wpo");
        assert_eq!((loss - std::f64::consts::LN_2).abs() > 1e-3, is_weighted, "{more:?}: {loss}");
        let mut args = demo.args("score", "pairs.jsonl", "sigmoid");
        args.extend(["--reference", "initial"]);
        let lines = demo.sandbox.run(&[&args, more].concat()).ok().lines();
        let scored = lines[6]["summary"]["loss"].as_f64().expect("a loss");
        assert!((scored - loss).abs() < 1e-6, "{more:?}: {scored} {loss}");
    }
}
