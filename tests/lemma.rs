//! What must hold whatever the weights: Lemma D.1, and equalities between ways of computing the same thing. Each comparison has a
//! control that must fail.

mod program;

use std::f64::consts::LN_2;
use std::path::Path;

use program::{Sandbox, Tensors, edit, fixture, metrics, perturb, read_tensors, relative_l2, rows, update_error};
use serde_json::Value;

const FAMILY: &str = "mistral-odd";

/// Families whose layers, rotary tables or files differ most from those of [`FAMILY`]: see tests/oracle/README.md.
const OTHERS: [&str; 14] = [
    "smollm3",
    "granite",
    "granitemoehybrid",
    "ministral3",
    "olmo2",
    "olmo3",
    "glm4",
    "phi4-mini",
    "qwen3_5",
    "gemma4-12b",
    "gemma4-e2b",
    "qwen3_moe",
    "gpt_oss",
    "lfm2",
];

/// A perturbed model, its unperturbed reference, conditional and joint rows.
struct Setting {
    family: &'static str,
    sandbox: Sandbox,
    reference: String,
    policy: String,
    conditional: String,
    joint: String,
}

impl Setting {
    fn new() -> Self {
        Self::of(FAMILY)
    }

    fn of(family: &'static str) -> Self {
        let sandbox = Sandbox::new();
        perturb(&sandbox.copy(&format!("{family}/model"), "policy"));
        let all = rows(family);
        Self {
            family,
            reference: fixture(&format!("{family}/model")).to_str().expect("UTF-8").into(),
            policy: sandbox.text("policy"),
            conditional: sandbox.write("conditional.jsonl", all[..12].join("\n")),
            joint: sandbox.write("joint.jsonl", all[12..].join("\n")),
            sandbox,
        }
    }

    fn score(&self, data: &str, more: &[&str]) -> Vec<Value> {
        let args = ["score", "--model", &self.policy, "--data", data];
        self.sandbox.run(&[&args, more].concat()).ok().lines()
    }

    fn loss(&self, data: &str, objective: &str) -> f64 {
        let lines = self.score(data, &["--reference", &self.reference, "--objective", objective]);
        lines.last().and_then(|l| l["summary"]["loss"].as_f64()).expect("a loss")
    }

    fn gradients(&self, data: &str, objective: &str) -> Tensors {
        let out = self.sandbox.text("grad.safetensors");
        let args = ["grad", "--model", &self.policy, "--data", data, "--reference", &self.reference];
        self.sandbox.run(&[args.as_slice(), &["--objective", objective, "--out", &out]].concat()).ok();
        read_tensors(Path::new(&out))
    }

    /// Three steps from the policy; a large ε keeps AdamW from magnifying noise.
    fn train(&self, out: &str, data: &str, more: &[&str]) -> Tensors {
        let mut args = vec!["train", "--model", &self.policy, "--data", data, "--output-dir", out, "--full"];
        args.extend(["--max-steps", "3", "--learning-rate", "1e-2", "--adam-epsilon", "1e-2", "--max-grad-norm", "0"]);
        args.extend(more);
        self.sandbox.run(&args).ok();
        read_tensors(&self.sandbox.path(out).join("model.safetensors"))
    }

    fn start(&self) -> Tensors {
        read_tensors(&self.sandbox.path("policy/model.safetensors"))
    }
}

/// The largest relative L2 error over all tensors, with its tensor.
fn worst(a: &Tensors, b: &Tensors) -> (f64, String) {
    assert!(a.keys().eq(b.keys()) && a.len() > 10);
    let errors = a.iter().map(|(name, a)| (relative_l2(&a.values(), &b[name].values()), name.clone()));
    errors.max_by(|a, b| a.0.total_cmp(&b.0)).expect("tensors")
}

/// The lemma is about tokens: rows whose sides have the same ones before the boundary. (Where a response begins with a mark that
/// the tokenizer joins to the template's last, that token is scored with the response, and the other side has one more.)
fn same_tokens(s: &Setting) -> String {
    let [jpo, dpo] = ["jpo", "dpo"].map(|o| s.score(&s.conditional, &["--objective", o, "--tokens"]));
    let instruction = |row: usize, side: &str| {
        let n_scored = |lines: &[Value]| lines[row][side]["n_scored"].as_u64().expect("a number") as usize;
        let ids = jpo[row][side]["ids"].as_array().expect("ids");
        ids[..=n_scored(&jpo) - n_scored(&dpo)].to_vec()
    };
    let all = rows(FAMILY);
    let same = (0..12).filter(|&row| instruction(row, "chosen") == instruction(row, "rejected"));
    let kept: Vec<&str> = same.map(|row| all[row].as_str()).collect();
    assert!((6..12).contains(&kept.len()), "{} rows", kept.len());
    s.sandbox.write("same.jsonl", kept.join("\n"))
}

#[test]
fn lemma_d1() {
    let s = Setting::new();
    let same = same_tokens(&s);
    let [jpo, dpo] = ["jpo", "dpo"].map(|o| s.loss(&same, o));
    assert!((jpo - dpo).abs() <= 1e-5 * dpo && (dpo - LN_2).abs() > 1e-3, "{jpo} {dpo}");
    let [jpo, dpo] = ["jpo", "dpo"].map(|o| s.gradients(&same, o));
    let (error, tensor) = worst(&jpo, &dpo);
    assert!(error <= 1e-5, "{tensor}: {error:.1e}");

    // Joint rows have instructions of their own, so the objectives differ.
    let [jpo, dpo] = ["jpo", "dpo"].map(|o| s.loss(&s.joint, o));
    assert!((jpo - dpo).abs() > 1e-3 * dpo, "{jpo} {dpo}");
    let [jpo, dpo] = ["jpo", "dpo"].map(|o| s.gradients(&s.joint, o));
    let differ = jpo.iter().filter(|(name, t)| relative_l2(&t.values(), &dpo[*name].values()) > 0.1).count();
    assert!(differ > jpo.len() / 2, "{differ} of {}", jpo.len());
}

#[test]
fn accumulation_and_prefixes_change_nothing() {
    [FAMILY].into_iter().chain(OTHERS).for_each(|family| accumulated_and_shared(&Setting::of(family)));
}

fn accumulated_and_shared(s: &Setting) {
    let (start, family) = (s.start(), s.family);
    let whole = s.train("whole", &s.conditional, &["--batch-size", "4"]);
    let parts = s.train("parts", &s.conditional, &["--batch-size", "1", "--gradient-accumulation-steps", "4"]);
    let error = update_error(&parts, &whole, &start);
    assert!(error <= 1e-5, "{family}: accumulation: {error:.1e}");
    let unshared = s.train("unshared", &s.conditional, &["--batch-size", "4", "--no-share-prefix"]);
    let error = update_error(&unshared, &whole, &start);
    assert!(error <= 1e-5, "{family}: prefixes: {error:.1e}");
    let other = s.train("other", &s.conditional, &["--batch-size", "4", "--seed", "1"]);
    assert!(update_error(&other, &whole, &start) > 1e-2, "{family}: other rows must show");

    // The policy begins as its reference.
    let first = &metrics(&s.sandbox.path("whole"))[0];
    let number = |name: &str| first[name].as_f64().unwrap_or_else(|| panic!("no {name} in {first}"));
    assert!((number("loss") - LN_2).abs() < 1e-6, "{first}");
    assert!(number("rewards/margins").abs() < 1e-6, "{first}");
    // Sharing was on: fewer tokens were computed, though only for pairs of phi4-mini whose sides use the same rotary table.
    let tokens = |out: &str| -> f64 {
        metrics(&s.sandbox.path(out)).iter().map(|line| line["tokens"].as_f64().expect("tokens")).sum()
    };
    assert!(tokens("whole") < tokens("unshared"), "{family}");
}

/// chosen and rejected log-probs of the first row.
fn logps(row: &Value) -> [f64; 2] {
    ["chosen", "rejected"].map(|side| row[side]["logp"].as_f64().expect("a logp"))
}

/// To the bit: no kernel's sum depends on what is packed beside a row.
#[test]
fn packed_is_alone() {
    for family in [FAMILY].into_iter().chain(OTHERS) {
        let s = Setting::of(family);
        let all = s.sandbox.write("all.jsonl", rows(family).join("\n"));
        let together = s.score(&all, &[]);
        let n = rows(family).len();
        assert_eq!(together.len(), n + 1);
        // Row 9 of phi4-mini is a pair of which one side is a long sequence, and both sides of row 11 are.
        for row in [0, 9, 11, 17].into_iter().filter(|row| row + 1 < n) {
            let one = s.sandbox.write("one.jsonl", &rows(family)[row]);
            let alone = logps(&s.score(&one, &[])[0]);
            assert_eq!(logps(&together[row]), alone, "{family}: row {row}");
            assert_ne!(logps(&together[row + 1]), alone);
        }
    }
}

#[test]
fn an_adapter_of_zeros_is_the_base() {
    let s = Setting::new();
    let adapter = s.sandbox.copy("lora-mistral/adapter", "adapter");
    let model = ["score", "--model", &s.reference, "--data", &s.joint];
    let score = |more: &[&str]| s.sandbox.run(&[&model, more].concat()).ok().stdout;
    let base = score(&[]);
    assert_ne!(score(&["--adapter", "adapter"]), base);
    edit(&adapter.join("adapter_model.safetensors"), |tensors| {
        let of_b = tensors.iter_mut().filter(|(name, _)| name.contains("lora_B"));
        of_b.for_each(|(_, t)| t.bytes.fill(0));
    });
    assert_eq!(score(&["--adapter", "adapter"]), base);
}

/// Computing in the backward pass again what was not kept gives the same bits in less memory: gemma2 has a norm behind the last product, an adapter
/// has one beside it.
#[test]
fn recomputed_is_saved() {
    let sandbox = Sandbox::new();
    const RECOMPUTE: [&str; 4] = ["none", "elementwise", "linear", "block"];
    let lora = ["--lora-targets", "all-linear"];
    let old = [("mistral-odd", &["--full"][..]), ("gemma2", &["--full"]), ("mistral-odd", &lora)];
    let new = OTHERS.into_iter().flat_map(|family| [(family, &["--full"][..]), (family, &lora)]);
    for (family, method) in old.into_iter().chain(new) {
        let (model, data) = (fixture(family).join("model"), fixture(family).join("prefs.jsonl"));
        let (model, data) = (model.to_str().expect("UTF-8"), data.to_str().expect("UTF-8"));
        let run = |command: &str, recompute: &str, more: &[&str]| {
            let args =
                [command, "--model", model, "--data", data, "--batch-size", "4", "--recompute", recompute, "--json"];
            sandbox.run(&[&args, method, more].concat()).ok().lines().pop().expect("an object")
        };
        let [saved, elementwise, linear, block] = RECOMPUTE.map(|recompute| {
            let out = format!("{family}-{}-{recompute}", method.len());
            run("train", recompute, &["--max-steps", "3", "--learning-rate", "1e-3", "--output-dir", &out]);
            let file = if method == lora { "adapter_model.safetensors" } else { "model.safetensors" };
            std::fs::read(sandbox.path(&out).join(file)).expect("a result")
        });
        assert!([elementwise, linear, block].iter().all(|bits| *bits == saved), "{family} {method:?}: other bits");
        let bytes = RECOMPUTE.map(|recompute| {
            let plan = run("plan", recompute, &[]);
            assert_eq!(plan["recompute"], recompute);
            plan["roles"]["activations"].as_u64().expect("bytes")
        });
        assert!(bytes.is_sorted_by(|more, less| more > less), "{family} {method:?}: {bytes:?} bytes");
    }
}

/// Whatever a table of fastest kernels says, the results are the same to the bit (with compilers that fuse no multiplication with an addition, as
/// Mesa's); one that cannot be read is left alone.
#[test]
fn tuning_changes_no_result() {
    let s = Setting::new();
    let score = || s.sandbox.run(&["score", "--model", &s.policy, "--data", &s.joint, "--tokens"]).ok().stdout;
    let before = score();
    let said = s.sandbox.run(&["tune", "--models", "llama-7m", "--tokens", "16", "--seconds", "0"]).ok().stdout;
    let path = said.trim().strip_prefix("0 classes kept in ").unwrap_or_else(|| panic!("{said}"));
    let mut kept: Value = serde_json::from_slice(&std::fs::read(path).expect("a table")).expect("JSON");
    let sizes: Vec<usize> = (0..10).map(|i| 1 << i).collect();
    for variant in [Value::Null, "cpu".into(), "tiles64".into()] {
        let classes = ["Forward", "BackwardX", "BackwardW"].into_iter().flat_map(|o| {
            let of = |m: usize| sizes.iter().flat_map(move |n| (0..10).map(move |k| format!("{m}x{n}x{}", 1 << k)));
            sizes.iter().flat_map(move |&m| of(m).map(move |shape| format!("{o} F32 {shape}"))).collect::<Vec<_>>()
        });
        kept["fastest"] = classes.map(|class| (class, variant.clone())).collect::<serde_json::Map<_, _>>().into();
        std::fs::write(path, kept.to_string()).expect("written");
        let info = &s.sandbox.run(&["info", "--json"]).ok().lines()[0];
        assert_eq!(info["device"]["tuning"]["Forward F32 32x32x32"], variant);
        assert!(score() == before, "{variant}: other results");
    }
    std::fs::write(path, "{\"fastest\": {\"Forward F32 32x32x32\": \"no such\"}}").expect("written");
    let info = &s.sandbox.run(&["info", "--json"]).ok().lines()[0];
    assert_ne!(info["device"]["tuning"]["Forward F32 32x32x32"], "no such");
    assert!(score() == before);
}
