//! Which rows a step and an evaluation are of where they do not come out even, what `--seed` reaches, and the defaults that `--help` tells, against
//! what a run does and what its card says.

mod program;

use std::path::Path;

use jointwise::model::description::ModelConfig;
use jointwise::model::lora_config::LoraConfig;
use jointwise::model::peft::Adapter;
use program::{Sandbox, Tensors, fixture, metrics, read_tensors, rows, update_error};
use serde_json::{Value, json};

const FAMILY: &str = "mistral-odd";

/// A step without memory, of a size that gradients give: θ − lr·g/(|g| + 1).
const PLAIN: [&str; 14] = [
    "--learning-rate",
    "0.1",
    "--lr-scheduler-type",
    "constant",
    "--adam-beta1",
    "0",
    "--adam-beta2",
    "0",
    "--adam-epsilon",
    "1",
    "--max-grad-norm",
    "0",
    "--output-dtype",
    "f32",
];

struct Setting {
    sandbox: Sandbox,
    model: String,
}

impl Setting {
    fn new() -> Self {
        let model = fixture(FAMILY).join("model").to_str().expect("UTF-8").to_string();
        Self { sandbox: Sandbox::new(), model }
    }

    /// Rows of the fixture in a file, as preferences or as the chosen texts alone.
    fn rows(&self, range: std::ops::Range<usize>, sft: bool) -> String {
        let name = format!("{}-{}-{sft}.jsonl", range.start, range.end);
        let line = |line: &String| {
            let row: Value = serde_json::from_str(line).expect("a row");
            if sft {
                json!({"instruction": row["i_chosen"], "response": row["r_chosen"]}).to_string()
            } else {
                line.clone()
            }
        };
        // Joint rows and conditional ones in turn.
        let all = rows(FAMILY);
        let mixed: Vec<String> = (0..24).map(|i| line(&all[i / 2 + 12 * (i % 2)])).collect();
        self.sandbox.write(&name, mixed[range].join("\n"))
    }

    fn train(&self, sft: bool, data: &str, out: &str, more: &[&str]) -> Tensors {
        let command = if sft { "sft" } else { "train" };
        let args = [command, "--full", "--model", &self.model, "--data", data, "--output-dir", out, "--no-shuffle"];
        self.sandbox.run(&[&args, more].concat()).ok();
        read_tensors(&self.sandbox.path(out).join("model.safetensors"))
    }

    fn gradients(&self, sft: bool, data: &str, model: &str) -> Tensors {
        let args = ["grad", "--model", model, "--data", data, "--out", "grad.safetensors"];
        let more = if sft { vec!["--sft"] } else { vec!["--reference", &self.model] };
        self.sandbox.run(&[&args, &more[..]].concat()).ok();
        read_tensors(&self.sandbox.path("grad.safetensors"))
    }
}

/// θ − lr·g/(|g| + 1), g times a factor.
fn stepped(start: &Tensors, gradients: &Tensors, factor: f64) -> Tensors {
    let mut all = start.clone();
    for (name, tensor) in &mut all {
        let moved = |(w, g): (&f32, &f32)| {
            let g = f64::from(*g) * factor;
            (f64::from(*w) - 0.1 * g / (g.abs() + 1.0)) as f32
        };
        let values: Vec<f32> = tensor.values().iter().zip(&gradients[name].values()).map(moved).collect();
        tensor.set(&values);
    }
    all
}

/// An epoch's last step has the rows that are left: it goes along the gradient of their mean, not of a full step's.
#[test]
fn a_short_last_step_is_of_its_rows() {
    let s = Setting::new();
    for sft in [false, true] {
        let out = |name: &str| format!("{name}-{sft}");
        let more = [&PLAIN[..], &["--batch-size", "2", "--gradient-accumulation-steps", "4"]].concat();
        let both = s.train(sft, &s.rows(0..11, sft), &out("both"), &more);
        let first = s.train(sft, &s.rows(0..8, sft), &out("first"), &more);
        let lines = metrics(&s.sandbox.path(&out("both")));
        assert_eq!(lines.len(), 2, "two steps");
        let gradients = s.gradients(sft, &s.rows(8..11, sft), &out("first"));
        let error = update_error(&both, &stepped(&first, &gradients, 1.0), &first);
        println!("sft={sft}: {error:.1e} of the update");
        assert!(error < 1e-4, "sft={sft}: {error:.1e}");
        // Divided as a full step's would be; and of other rows.
        let error = update_error(&both, &stepped(&first, &gradients, 3.0 / 8.0), &first);
        assert!(error > 1e-2, "sft={sft}: another divisor passes: {error:.1e}");
        let others = s.gradients(sft, &s.rows(7..10, sft), &out("first"));
        assert!(update_error(&both, &stepped(&first, &others, 1.0), &first) > 1e-2, "sft={sft}: other rows pass");
    }
}

/// Mean loss per row (preferences), or per response token (sft), of rows that `score` scored.
fn loss(lines: &[Value], sft: bool) -> f64 {
    let rows = &lines[..lines.len() - 1];
    let number = |value: &Value| value.as_f64().expect("a number");
    if sft {
        let chosen = |field: &str| rows.iter().map(|row| number(&row["chosen"][field])).sum::<f64>();
        return -chosen("logp") / chosen("n_scored");
    }
    rows.iter().map(|row| number(&row["loss"])).sum::<f64>() / rows.len() as f64
}

/// The evaluation's last micro-batch has the rows that are left, and each counts as the others do.
#[test]
fn an_evaluation_file_with_a_remainder() {
    let s = Setting::new();
    for sft in [false, true] {
        let out = format!("out-{sft}");
        let eval = s.rows(10..17, sft);
        let more = [&PLAIN[..], &["--batch-size", "3", "--max-steps", "1", "--eval-data", &eval]].concat();
        s.train(sft, &s.rows(0..3, sft), &out, &more);
        let lines = metrics(&s.sandbox.path(&out));
        let found = lines.iter().find_map(|l| l["eval_loss"].as_f64()).expect("an evaluation");
        let score = |range| {
            let objective = if sft { "dpo" } else { "jpo" };
            // Preferences: scored alike, and the chosen side is what sft has.
            let data = s.rows(range, false);
            let args = ["score", "--model", &out, "--reference", &s.model, "--data", &data, "--objective", objective];
            loss(&s.sandbox.run(&args).ok().lines(), sft)
        };
        let want = score(10..17);
        assert!((found / want - 1.0).abs() < 1e-5, "sft={sft}: {found}, not {want}");
        for other in [score(10..16), score(10..18)] {
            assert!((found / other - 1.0).abs() > 1e-4, "sft={sft}: a row more or less passes");
        }
    }
}

/// The numbers that a new adapter begins with are the seed's: what is trained at a rate of almost nothing still has them.
#[test]
fn the_seed_reaches_a_new_adapter() {
    let s = Setting::new();
    let config = Path::new(&s.model).join("config.json");
    let d = ModelConfig::from_json(&config, &std::fs::read_to_string(&config).expect("text")).expect("a configuration");
    let data = [s.rows(0..4, false), s.rows(0..4, true)];
    let trained = |command: &str, seed: &str| {
        let out = format!("{command}-{seed}");
        let data = &data[usize::from(command == "sft")];
        let args =
            [command, "--model", &s.model, "--data", data, "--output-dir", &out, "--max-steps", "1", "--no-shuffle"];
        s.sandbox.run(&[&args[..], &["--learning-rate", "1e-30", "--seed", seed]].concat()).ok();
        read_tensors(&s.sandbox.path(&out).join("adapter_model.safetensors"))
    };
    for command in ["train", "sft"] {
        for seed in [0, 5] {
            let got = trained(command, &seed.to_string());
            let begun =
                |seed: u64| Adapter::new(&d, &LoraConfig::default(), "base", seed).expect("an adapter").lora.modules;
            assert_eq!(got.len(), 2 * begun(seed).len());
            for (module, (a, _)) in begun(seed) {
                let name = format!("base_model.model.{module}.lora_A.weight");
                assert!(got[&name].values() == a, "{command}: {name} does not begin as seed {seed} has it");
                assert!(begun(seed + 1)[&module].0 != a);
            }
        }
    }
}

#[test]
fn the_seed_reaches_generate() {
    let sandbox = Sandbox::new();
    let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/demo");
    let generate = |more: &[&str]| {
        let args =
            ["generate", "--model", model.to_str().expect("UTF-8"), "--prompt", "Repeat: cat", "--prompt", "Say red."];
        let sampled = ["--max-new-tokens", "16", "--temperature", "1.5", "--ignore-eos", "--json"];
        sandbox.run(&[&args, &sampled[..], more].concat()).ok().stdout
    };
    let one = generate(&["--seed", "1"]);
    assert_eq!(one, generate(&["--seed", "1"]));
    assert_ne!(one, generate(&["--seed", "2"]));
    assert_eq!(generate(&[]), generate(&["--seed", "0"]));
}

/// A response ends with its EOS, and goes on behind it where EOS is ignored.
#[test]
fn a_response_ends_with_eos() {
    let sandbox = Sandbox::new();
    let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/demo");
    let ids = |more: &[&str]| -> Vec<u64> {
        let args =
            ["generate", "--model", model.to_str().expect("UTF-8"), "--prompt", "reverse abc", "--temperature", "0"];
        let line =
            sandbox.run(&[&args[..], &["--max-new-tokens", "24", "--json"], more].concat()).ok().lines().remove(0);
        line["ids"].as_array().expect("ids").iter().filter_map(Value::as_u64).collect()
    };
    let (ended, ignored) = (ids(&[]), ids(&["--ignore-eos"]));
    let eos = 2;
    assert!(ended.len() < 24 && ended.iter().position(|&id| id == eos) == Some(ended.len() - 1), "{ended:?}");
    assert_eq!((ignored.len(), &ignored[..ended.len()]), (24, &ended[..]));
}

/// `[default: ...]` of a flag in a command's `--help`.
fn told(sandbox: &Sandbox, command: &str, flag: &str) -> String {
    let help = sandbox.run(&[command, "--help"]).ok().stdout;
    let words = help.split_whitespace().collect::<Vec<_>>().join(" ");
    let text = words.split(&format!(" --{flag} <")).nth(1).unwrap_or_else(|| panic!("no --{flag} in: {words}"));
    let text = text.split_once("[default: ").unwrap_or_else(|| panic!("--{flag}: no default")).1;
    text.split(']').next().unwrap_or_default().to_string()
}

/// A card's table of settings.
fn card(out: &Path) -> Vec<(String, String)> {
    let text = std::fs::read_to_string(out.join("README.md")).expect("a card");
    let table =
        text.split("## Training").nth(1).expect("settings").split("\n## ").next().unwrap_or_default().to_string();
    let cells = |line: &str| -> Option<(String, String)> {
        let (name, value) = line.trim().strip_prefix("| ")?.strip_suffix(" |")?.split_once(" | ")?;
        Some((name.to_string(), value.to_string()))
    };
    table.lines().filter_map(cells).collect()
}

/// What `--help` tells is what a run without flags has on its card, and the rates that it then used.
#[test]
fn documented_defaults_are_a_runs() {
    let s = Setting::new();
    let data = [s.rows(0..6, false), s.rows(0..6, true)];
    // "5e-5; --full: 1e-6, sft --full: 2e-5".
    let rates = told(&s.sandbox, "train", "learning-rate");
    let (lora, others) = rates.split_once("; --full: ").expect("three rates");
    let (full, sft_full) = others.split_once(", sft --full: ").expect("three rates");
    for (command, more, rate) in
        [("train", &[][..], lora), ("sft", &[], lora), ("train", &["--full"], full), ("sft", &["--full"], sft_full)]
    {
        let out = format!("{command}{}", more.len());
        let data = &data[usize::from(command == "sft")];
        let args = [command, "--model", &s.model, "--data", data, "--output-dir", &out, "--max-steps", "5"];
        s.sandbox.run(&[&args, more].concat()).ok();
        let card = card(&s.sandbox.path(&out));
        let has =
            |name: &str| card.iter().find(|c| c.0 == name).unwrap_or_else(|| panic!("no {name}: {card:?}")).1.clone();
        let number = |text: &str| text.parse::<f64>().unwrap_or_else(|_| panic!("{text} is not a number"));
        assert_eq!(number(&has("learning-rate")), number(rate), "{out}");
        let constants = ["adam-beta1", "adam-beta2", "adam-epsilon", "weight-decay", "max-grad-norm"];
        for name in constants.into_iter().chain(["batch-size", "gradient-accumulation-steps", "seed"]) {
            assert_eq!(number(&has(name)), number(&told(&s.sandbox, command, name)), "{out}: {name}");
        }
        for name in ["lr-scheduler-type", "optim", "param-dtype", "saved-dtype"] {
            assert_eq!(has(name), told(&s.sandbox, command, name), "{out}: {name}");
        }
        if command == "train" {
            assert_eq!(number(&has("beta")), number(&told(&s.sandbox, command, "beta")));
            assert_eq!(has("loss"), told(&s.sandbox, command, "loss"));
        }
        if more.is_empty() {
            let scale = number(&told(&s.sandbox, command, "lora-alpha")) / number(&told(&s.sandbox, command, "lora-r"));
            assert_eq!((number(&has("lora-r")), number(&has("lora-scale"))), (16.0, scale));
        }
        assert_eq!(has("warmup-steps"), "0");
        // Half a cosine over five steps.
        let used: Vec<f64> =
            metrics(&s.sandbox.path(&out)).iter().filter_map(|l| l["learning_rate"].as_f64()).collect();
        let rate = number(rate);
        let want = (0..5).map(|i| rate * 0.5 * (1.0 + (std::f64::consts::PI * f64::from(i) / 5.0).cos()));
        assert_eq!(used.len(), 5);
        assert!(used.iter().zip(want).all(|(used, want)| (used - want).abs() < 1e-12 * rate), "{out}: {used:?}");
    }
}

/// As transformers has it: a part of a step is a step.
#[test]
fn a_warmup_ratio_is_rounded_up() {
    let s = Setting::new();
    let more =
        ["--max-steps", "5", "--warmup-ratio", "0.21", "--learning-rate", "1e-3", "--lr-scheduler-type", "constant"];
    s.train(false, &s.rows(0..4, false), "out", &more);
    let rates: Vec<f64> = metrics(&s.sandbox.path("out")).iter().filter_map(|l| l["learning_rate"].as_f64()).collect();
    assert_eq!(rates, [0.0, 5e-4, 1e-3, 1e-3, 1e-3]);
    let card = card(&s.sandbox.path("out"));
    assert!(card.contains(&("warmup-steps".into(), "2".into())), "{card:?}");
}

/// Reference scores that are kept are those of their rows and of their objective: with one cache, each run begins at its own reference.
#[test]
fn cached_reference_scores_are_of_their_rows_and_objective() {
    let s = Setting::new();
    let first_loss = |range: std::ops::Range<usize>, objective: &str, more: &[&str]| {
        let out = format!("{}-{objective}-{}", range.start, more.len());
        let fixed = ["--max-steps", "1", "--objective", objective];
        s.train(false, &s.rows(range, false), &out, &[&fixed[..], more].concat());
        metrics(&s.sandbox.path(&out))[0]["loss"].as_f64().expect("a loss")
    };
    for (range, objective) in [(0..6, "jpo"), (6..12, "jpo"), (0..6, "dpo")] {
        let loss = first_loss(range.clone(), objective, &[]);
        assert!((loss - std::f64::consts::LN_2).abs() < 1e-5, "{range:?} {objective}: {loss}");
        let free = first_loss(range, objective, &["--reference-free"]);
        assert!((free - std::f64::consts::LN_2).abs() > 1e-2, "no reference passes: {free}");
    }
}

/// Tokens in metrics are those of all rows so far, over steps and epochs.
#[test]
fn tokens_are_counted_on() {
    let setting = Setting::new();
    let counted = |range: std::ops::Range<usize>, out: &str, more: &[&str]| {
        let data = setting.rows(range, true);
        setting.train(true, &data, out, &[&["--batch-size", "2"], more].concat());
        let lines = metrics(&setting.sandbox.path(out));
        lines.iter().filter_map(|line| line["num_tokens"].as_u64()).collect::<Vec<_>>()
    };
    let alone: Vec<u64> = (0..3).map(|i| counted(i..i + 1, &format!("row-{i}"), &[])[0]).collect();
    assert!(alone.iter().all(|&n| n > 8) && alone[0] != alone[2], "{alone:?}");
    let (two, three) = (alone[0] + alone[1], alone.iter().sum::<u64>());
    let steps = counted(0..3, "all", &["--num-train-epochs", "2", "--logging-steps", "1"]);
    assert_eq!(steps, [two, three, three + two, 2 * three]);
}
