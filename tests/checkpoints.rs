//! Checkpoints and adapters, read and written; bad ones told by file and tensor.

mod common;

use std::fs;
use std::path::Path;

use common::{describe, oracles, says};
use jointwise::config::LoraSettings;
use jointwise::error::Error;
use jointwise::model::checkpoint::Checkpoint;
use jointwise::model::description::{Description, TensorSpec};
use jointwise::model::peft::{Adapter, AdapterConfig, write_adapter};
use jointwise::model::save::{OutputDtype, Planned, save_model, write_model, write_safetensors};
use proptest::prelude::*;
use serde_json::{Value, json};

/// A small model: its config, every tensor, all values different.
struct Model {
    dir: tempfile::TempDir,
    d: Description,
}

const LLAMA: &str = r#"{"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 16,
    "intermediate_size": 24, "num_attention_heads": 4, "num_key_value_heads": 2, "num_hidden_layers": 2,
    "vocab_size": 40, "rms_norm_eps": 1e-05, "tie_word_embeddings": TIED, "dtype": "float32"}"#;

fn numbers(spec: &TensorSpec) -> Vec<f32> {
    let salt = spec.name.bytes().map(u32::from).sum::<u32>() as f32;
    (0..spec.shape.iter().product::<usize>()).map(|i| (salt + i as f32).sin() / 3.0).collect()
}

fn planned(name: &str, shape: &[usize]) -> Planned {
    Planned { name: name.into(), shape: shape.into(), dtype: OutputDtype::F32 }
}

impl Model {
    fn new(config: &str) -> Self {
        Self::with(config, |tensors| tensors)
    }

    /// The tensors changed before they are written.
    fn with(config: &str, change: impl FnOnce(Vec<TensorSpec>) -> Vec<TensorSpec>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let d = Description::from_json("config.json", config).unwrap();
        let tensors = change(d.tensors());
        fs::write(dir.path().join("config.json"), config).unwrap();
        fs::write(dir.path().join("tokenizer.json"), "{}").unwrap();
        let plan: Vec<Planned> = tensors.iter().map(|s| planned(&s.name, &s.shape)).collect();
        write_model(dir.path(), &plan, 1 << 40, &mut |i| Ok(numbers(&tensors[i]))).unwrap();
        Self { dir, d }
    }

    fn llama() -> Self {
        Self::new(&LLAMA.replace("TIED", "false"))
    }

    fn path(&self) -> &Path {
        self.dir.path()
    }

    fn verify(&self) -> Result<(), Error> {
        Checkpoint::open(self.path())?.verify(&self.d)
    }
}

fn plain(name: &str, shape: &[usize]) -> TensorSpec {
    TensorSpec { name: name.into(), shape: shape.into(), transposed: false }
}

// Checkpoints.

#[test]
fn missing_extra_and_misshapen_tensors_are_named() {
    let untied = LLAMA.replace("TIED", "false");
    let q = "model.layers.1.self_attn.q_proj.weight";
    let without = Model::with(&untied, |t| t.into_iter().filter(|s| s.name != q).collect());
    says(without.verify(), &["model.safetensors", q, "is missing"]);

    let more = Model::with(&untied, |mut t| {
        t.push(plain("model.layers.0.self_attn.q_proj.bias", &[16]));
        t
    });
    says(more.verify(), &["model.safetensors", "model.layers.0.self_attn.q_proj.bias", "is no weight of this Llama"]);

    let wrong = Model::with(&untied, |mut t| {
        t.iter_mut().filter(|s| s.name == q).for_each(|s| s.shape = vec![16, 8]);
        t
    });
    says(wrong.verify(), &["model.safetensors", q, "expected (16, 16), file has (16, 8)"]);

    let buffer = Model::with(&untied, |mut t| {
        t.push(plain("model.layers.0.self_attn.rotary_emb.inv_freq", &[2]));
        t
    });
    buffer.verify().unwrap();
}

#[test]
fn a_tied_head_must_equal_its_embedding() {
    let tied = LLAMA.replace("TIED", "true");
    let model = Model::new(&tied);
    model.verify().unwrap();
    let names: Vec<Planned> = model.d.tensors().iter().map(|s| planned(&s.name, &s.shape)).collect();
    for (equal, shape) in [(true, [40, 16]), (false, [40, 16]), (false, [16, 40])] {
        let mut plan = names.clone();
        plan.push(planned("lm_head.weight", &shape));
        let specs = model.d.tensors();
        let embedding = specs.iter().find(|s| s.name == model.d.embedding).unwrap();
        write_model(model.path(), &plan, 1 << 40, &mut |i| {
            let mut values = numbers(specs.get(i).unwrap_or(embedding));
            if i == specs.len() && !equal {
                values[639] += 1.0;
            }
            Ok(values)
        })
        .unwrap();
        match equal {
            true => model.verify().unwrap(),
            false => says(model.verify(), &["lm_head.weight", "differs from model.embed_tokens.weight"]),
        }
    }
}

#[test]
fn an_unsupported_type_is_named() {
    let model = Model::llama();
    let path = model.path().join("model.safetensors");
    let bytes = fs::read(&path).unwrap();
    let n = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let header = String::from_utf8(bytes[8..8 + n].to_vec()).unwrap().replacen("\"F32\"", "\"I32\"", 1);
    fs::write(&path, [&bytes[..8], header.as_bytes(), &bytes[8 + n..]].concat()).unwrap();
    says(
        model.verify(),
        &["model.safetensors", "model.embed_tokens.weight", "expected F32, F16 or BF16, file has I32"],
    );
}

#[test]
fn missing_truncated_and_overlong_files_are_named() {
    let model = Model::llama();
    let path = model.path().join("model.safetensors");
    let bytes = fs::read(&path).unwrap();
    for n in [0, 7, 8, 100, bytes.len() / 2, bytes.len() - 1] {
        fs::write(&path, &bytes[..n]).unwrap();
        says(model.verify(), &["model.safetensors", "truncated"]);
    }
    fs::write(&path, [&bytes[..], &[0]].concat()).unwrap();
    says(model.verify(), &["model.safetensors", "1 bytes follow"]);
    // A header that claims to be huge: nothing is allocated for it.
    fs::write(&path, [&u64::MAX.to_le_bytes(), &bytes[8..]].concat()).unwrap();
    says(model.verify(), &["model.safetensors", "truncated or no safetensors file"]);
    fs::write(&path, [&bytes[..8], "x".repeat(bytes.len() - 8).as_bytes()].concat()).unwrap();
    says(model.verify(), &["model.safetensors", "no safetensors header"]);
    fs::remove_file(&path).unwrap();
    says(model.verify(), &["holds neither model.safetensors nor"]);
    fs::write(model.path().join("pytorch_model.bin"), "").unwrap();
    says(model.verify(), &["holds pytorch_model.bin, which is not read"]);
    says(Checkpoint::open(model.path().join("absent")), &["absent", "no such folder"]);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn no_file_makes_us_panic(at in any::<prop::sample::Index>(), to in any::<u8>(), cut in any::<prop::sample::Index>()) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.safetensors");
        write_safetensors(&path, &[planned("a", &[3]), planned("b", &[2, 2])], &mut |i| Ok(vec![1.0; 3 + i])).unwrap();
        let mut bytes = fs::read(&path).unwrap();
        let i = at.index(bytes.len());
        bytes[i] = to;
        if to.is_multiple_of(2) {
            bytes.truncate(cut.index(bytes.len() + 1));
        }
        if let Ok(checkpoint) = Checkpoint::of(vec![("x.safetensors".into(), Box::new(bytes))]) {
            let _ = checkpoint.read_f32("a");
        }
    }
}

/// A model in two shards.
fn sharded() -> Model {
    let model = Model::llama();
    let specs = model.d.tensors();
    let plan: Vec<Planned> = specs.iter().map(|s| planned(&s.name, &s.shape)).collect();
    fs::remove_file(model.path().join("model.safetensors")).unwrap();
    write_model(model.path(), &plan, 8000, &mut |i| Ok(numbers(&specs[i]))).unwrap();
    assert!(model.path().join("model-00001-of-00003.safetensors").exists());
    model
}

#[test]
fn shards_are_read_and_an_index_stays_in_its_folder() {
    let model = sharded();
    model.verify().unwrap();
    let whole = Model::llama();
    let (a, b) = (Checkpoint::open(model.path()).unwrap(), Checkpoint::open(whole.path()).unwrap());
    assert_eq!(a.digest().unwrap(), b.digest().unwrap());
    for spec in model.d.tensors() {
        assert_eq!(a.read_f32(&spec.name).unwrap(), numbers(&spec));
    }

    let index = model.path().join("model.safetensors.index.json");
    let good = fs::read_to_string(&index).unwrap();
    let first = "model-00001-of-00003.safetensors";
    for bad in ["../x.safetensors", "/etc/passwd", "..", "", "a/b.safetensors", "C:x", "a\\\\b"] {
        fs::write(&index, good.replacen(first, bad, 1)).unwrap();
        let shown = bad.replace("\\\\", "\\");
        says(
            model.verify(),
            &["index.json", "weight_map.model.embed_tokens.weight", &format!("`{shown}` is no file of")],
        );
    }
    fs::write(&index, good.replacen(first, "model-00002-of-00003.safetensors", 1)).unwrap();
    says(model.verify(), &["model.embed_tokens.weight", "is not in model-00002-of-00003.safetensors"]);
    fs::write(&index, good.replacen("model.embed_tokens.weight", "other", 1)).unwrap();
    says(model.verify(), &["`other`", "is not in"]);
    fs::write(&index, "{\n\"weight_map\": {\n").unwrap();
    says(model.verify(), &["index.json:3: "]);
    fs::write(&index, "{}").unwrap();
    says(model.verify(), &["index.json", "`weight_map`", "is missing"]);
    fs::write(&index, &good).unwrap();
    fs::remove_file(model.path().join(first)).unwrap();
    says(model.verify(), &[first, "No such file"]);
}

#[cfg(unix)]
#[test]
fn links_out_of_the_folder_are_refused_but_for_the_hubs_blobs() {
    use std::os::unix::fs::symlink;
    let (model, other) = (sharded(), tempfile::tempdir().unwrap());
    let name = "model-00001-of-00003.safetensors";
    let away = other.path().join("away");
    fs::rename(model.path().join(name), &away).unwrap();
    symlink(&away, model.path().join(name)).unwrap();
    says(model.verify(), &[name, "is a link out of the checkpoint's folder"]);

    let repository = other.path().join("models--a--b");
    let (blobs, snapshot) = (repository.join("blobs"), repository.join("snapshots/0123"));
    fs::create_dir_all(&blobs).unwrap();
    fs::create_dir_all(&snapshot).unwrap();
    let whole = Model::llama();
    fs::copy(whole.path().join("model.safetensors"), blobs.join("ff")).unwrap();
    symlink("../../blobs/ff", snapshot.join("model.safetensors")).unwrap();
    Checkpoint::open(&snapshot).unwrap().verify(&whole.d).unwrap();
}

#[test]
fn gpt2_keeps_its_own_names() {
    let config = r#"{"architectures": ["GPT2LMHeadModel"], "n_embd": 8, "n_head": 2, "n_layer": 2, "n_positions": 16,
        "vocab_size": 20}"#;
    let model = Model::with(config, |specs| {
        let strip = |s: TensorSpec| TensorSpec { name: s.name.replacen("transformer.", "", 1), ..s };
        let buffers = [plain("h.0.attn.bias", &[1, 1, 16, 16]), plain("h.0.attn.masked_bias", &[1])];
        specs.into_iter().map(strip).chain(buffers).collect()
    });
    model.verify().unwrap();
    let source = Checkpoint::open(model.path()).unwrap();
    let out = model.path().join("out");
    save_model(&out, &source, &model.d, None, &[], &mut |s| source.read_f32(&s.name)).unwrap();
    let saved = Checkpoint::open(&out).unwrap();
    saved.verify(&model.d).unwrap();
    let names: Vec<&String> = saved.files().flat_map(|f| f.tensors().keys()).collect();
    assert!(names.contains(&&"h.0.attn.c_attn.weight".to_string()) && !names.iter().any(|n| n.contains("transformer")));
    assert_eq!(names.len(), model.d.tensors().len());
}

#[test]
fn saving_and_loading_give_the_same_in_three_types() {
    let model = sharded();
    let source = Checkpoint::open(model.path()).unwrap();
    for (dtype, tolerance) in
        [(OutputDtype::F32, 0.0), (OutputDtype::F16, 1.0 / 2048.0), (OutputDtype::Bf16, 1.0 / 256.0)]
    {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("out");
        let card = [("README.md", "card".to_string())];
        save_model(&out, &source, &model.d, Some(dtype), &card, &mut |s| source.read_f32(&s.name)).unwrap();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "something was left aside");
        let saved = Checkpoint::open(&out).unwrap();
        saved.verify(&describe(&out.join("config.json"))).unwrap();
        assert_eq!(OutputDtype::of(saved.dtype(&model.d)), dtype);
        for spec in model.d.tensors() {
            for (a, b) in saved.read_f32(&spec.name).unwrap().iter().zip(numbers(&spec)) {
                assert!((a - b).abs() <= b.abs() * tolerance, "{a} {b}");
            }
        }
        let bits = saved.read_bf16(&model.d.embedding).unwrap();
        assert_eq!(bits.is_some(), dtype == OutputDtype::Bf16);
        let config: Value = serde_json::from_str(&fs::read_to_string(out.join("config.json")).unwrap()).unwrap();
        assert_eq!(config["dtype"], dtype.torch_name());
        assert_eq!(fs::read_to_string(out.join("tokenizer.json")).unwrap(), "{}");
        assert_eq!(fs::read_to_string(out.join("README.md")).unwrap(), "card");
        // Once more over what is there.
        save_model(&out, &saved, &model.d, None, &[], &mut |s| saved.read_f32(&s.name)).unwrap();
        Checkpoint::open(&out).unwrap().verify(&model.d).unwrap();
    }
}

#[test]
fn a_save_that_fails_leaves_nothing() {
    let model = Model::llama();
    let source = Checkpoint::open(model.path()).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    let values = &mut |s: &TensorSpec| Ok(vec![1e6; s.shape.iter().product()]);
    let result = save_model(&out, &source, &model.d, Some(OutputDtype::F16), &[], values);
    says(result, &["model.embed_tokens.weight", "1000000 does not fit float16"]);
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    fs::write(&out, "").unwrap();
    let result = save_model(&out, &source, &model.d, None, &[], &mut |s| source.read_f32(&s.name));
    says(result, &["out", "exists and is no folder"]);
}

// Adapters.

fn settings(targets: &[&str]) -> LoraSettings {
    LoraSettings { rank: 4, alpha: 8.0, targets: targets.iter().map(|t| t.to_string()).collect() }
}

/// Writes a new adapter of `d`.
fn write_new(dir: &Path, d: &Description, targets: &[&str]) -> Adapter {
    let adapter = Adapter::new(d, &settings(targets), "base", 7).unwrap();
    let modules = adapter.lora.modules.clone();
    let values = &mut |module: &str, i: usize| {
        let (a, b) = &modules[module];
        Ok(if i == 0 { a.clone() } else { b.clone() })
    };
    write_adapter(dir, &adapter.config, d, &adapter.lora, OutputDtype::F32, values).unwrap();
    adapter
}

#[test]
fn adapters_are_read_back() {
    for (config, targets, n) in [
        (LLAMA.replace("TIED", "true"), &["q_proj", "self_attn.v_proj"][..], 4),
        (LLAMA.replace("TIED", "false"), &["all-linear"], 14),
        (
            r#"{"architectures": ["GPT2LMHeadModel"], "n_embd": 8, "n_head": 2, "n_layer": 2, "vocab_size": 20}"#
                .into(),
            &["c_attn", "mlp.c_proj"],
            4,
        ),
    ] {
        let d = Description::from_json("config.json", &config).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let written = write_new(dir.path(), &d, targets);
        let read = Adapter::open(dir.path(), &d).unwrap();
        assert_eq!((&read.config, &read.lora.modules), (&written.config, &written.lora.modules));
        assert_eq!((read.lora.modules.len(), read.lora.rank, read.lora.scale), (n, 4, 2.0));
    }
}

/// Changes `target_modules` of a written adapter.
fn retarget(dir: &Path, targets: Value) {
    let path = dir.join("adapter_config.json");
    let mut config: Value = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
    config["target_modules"] = targets;
    fs::write(path, config.to_string()).unwrap();
}

/// As PEFT: names that match nothing are passed over where others match.
#[test]
fn targets_of_other_architectures_are_passed_over() {
    let d = Description::from_json("config.json", &LLAMA.replace("TIED", "true")).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let written = write_new(dir.path(), &d, &["q_proj", "v_proj"]);
    // The paper's own list.
    let names = ["q_proj", "c_attn", "v_proj", "c_proj", "fc_in", "fc_out"];
    retarget(dir.path(), json!(names));
    let read = Adapter::open(dir.path(), &d).unwrap();
    assert_eq!(read.lora.modules, written.lora.modules);
    assert_eq!(read.absent, ["c_attn", "c_proj", "fc_in", "fc_out"]);
    assert_eq!(read.config.to_json(&d)["target_modules"], json!(names));

    retarget(dir.path(), json!(["c_attn", "fc_in"]));
    says(Adapter::open(dir.path(), &d), &["adapter_config.json", "`target_modules`", "names no module of this model"]);
    retarget(dir.path(), json!(["q_proj", "c_attn"]));
    says(Adapter::open(dir.path(), &d), &["v_proj.lora_A.weight", "belongs to no module"]);
}

/// A pattern is Python's: the tensors say what it matched.
#[test]
fn a_pattern_of_targets_is_kept() {
    let d = Description::from_json("config.json", &LLAMA.replace("TIED", "true")).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let written = write_new(dir.path(), &d, &["layers.1.self_attn.q_proj", "down_proj"]);
    let pattern = json!(r"^(?:.*\.1\.self_attn\.q_proj|.*down_proj)$");
    retarget(dir.path(), pattern.clone());
    let read = Adapter::open(dir.path(), &d).unwrap();
    assert_eq!((read.lora.modules.len(), &read.lora.modules), (3, &written.lora.modules));
    let again = tempfile::tempdir().unwrap();
    let values = &mut |module: &str, i: usize| {
        let (a, b) = &read.lora.modules[module];
        Ok(if i == 0 { a.clone() } else { b.clone() })
    };
    write_adapter(again.path(), &read.config, &d, &read.lora, OutputDtype::F32, values).unwrap();
    let reread = Adapter::open(again.path(), &d).unwrap();
    assert_eq!((&reread.config, &reread.lora.modules), (&read.config, &read.lora.modules));
    assert_eq!(reread.config.to_json(&d)["target_modules"], pattern);

    // One matrix of a pair, a module that is not the model's, none at all.
    let path = dir.path().join("adapter_model.safetensors");
    let [a, b] = ["A", "B"].map(|x| format!("base_model.model.model.layers.0.mlp.down_proj.lora_{x}.weight"));
    write_safetensors(&path, &[planned(&a, &[4, 24])], &mut |_| Ok(vec![0.0; 96])).unwrap();
    says(Adapter::open(dir.path(), &d), &[&b, "is missing"]);
    let more = [planned(&a, &[4, 24]), planned(&b, &[16, 4]), planned("base_model.model.x.lora_A.weight", &[4, 1])];
    write_safetensors(&path, &more, &mut |i| Ok(vec![0.0; [96, 64, 4][i]])).unwrap();
    says(Adapter::open(dir.path(), &d), &["base_model.model.x.lora_A.weight", "belongs to no module"]);
    write_safetensors(&path, &more[2..], &mut |_| Ok(vec![0.0; 4])).unwrap();
    says(Adapter::open(dir.path(), &d), &["adapter_config.json", "`target_modules`", "holds no module of this model"]);
}

#[test]
fn the_oracles_adapters_are_read() {
    for family in oracles().iter().filter_map(|f| f.parent()).collect::<std::collections::BTreeSet<_>>() {
        for (lora, base) in [("lora-llama", "llama"), ("lora-mistral", "mistral-odd")] {
            let adapter = family.join(lora).join("adapter");
            if adapter.join("adapter_model.safetensors").exists() {
                let d = describe(&family.join(base).join("model/config.json"));
                let adapter = Adapter::open(&adapter, &d).unwrap();
                assert!(!adapter.lora.modules.is_empty());
            }
        }
    }
}

#[test]
fn rank_stabilised_adapters_scale_by_the_root() {
    let text = r#"{"peft_type": "LORA", "r": 16, "lora_alpha": 8, "target_modules": ["q_proj"], "use_rslora": true,
        "lora_dropout": 0.1}"#;
    let config = AdapterConfig::from_json(Path::new("x"), text).unwrap();
    assert_eq!((config.scale(), config.dropout), (2.0, 0.1));
}

#[test]
fn an_adapter_of_another_base_is_refused() {
    let d = |text: String| Description::from_json("config.json", &text).unwrap();
    let (small, wide) = (d(LLAMA.replace("TIED", "true")), d(LLAMA.replace("TIED", "true").replace("24", "32")));
    let deep = d(LLAMA.replace("TIED", "true").replace(r#""num_hidden_layers": 2"#, r#""num_hidden_layers": 3"#));
    let dir = tempfile::tempdir().unwrap();
    write_new(dir.path(), &wide, &["q_proj", "up_proj"]);
    let name = "base_model.model.model.layers.0.mlp.up_proj.lora_B.weight";
    says(
        Adapter::open(dir.path(), &small),
        &["adapter_model.safetensors", name, "expected (24, 4) for this base model, file has (32, 4)"],
    );
    write_new(dir.path(), &small, &["q_proj"]);
    says(Adapter::open(dir.path(), &deep), &["layers.2.self_attn.q_proj.lora_A.weight", "is missing"]);
    write_new(dir.path(), &deep, &["q_proj"]);
    says(Adapter::open(dir.path(), &small), &["layers.2.self_attn.q_proj.lora_A.weight", "belongs to no module"]);
    fs::write(dir.path().join("adapter_model.safetensors"), "x").unwrap();
    says(Adapter::open(dir.path(), &small), &["adapter_model.safetensors", "truncated"]);
    fs::remove_file(dir.path().join("adapter_model.safetensors")).unwrap();
    says(Adapter::open(dir.path(), &small), &["adapter_model.safetensors", "No such file"]);
    fs::remove_file(dir.path().join("adapter_config.json")).unwrap();
    says(Adapter::open(dir.path(), &small), &["adapter_config.json", "No such file"]);
}

#[test]
fn bad_adapter_configs_name_the_field() {
    let good = json!({"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj"], "bias": "none",
        "fan_in_fan_out": false, "use_dora": false, "modules_to_save": null, "rank_pattern": {}, "lora_dropout": 0.05});
    AdapterConfig::from_json(Path::new("x"), &good.to_string()).unwrap();
    let cases = [
        ("peft_type", json!("IA3"), "`IA3` is not supported"),
        ("r", json!(0), "expected 1 ..= 4096, found 0"),
        ("r", json!("8"), "found \"8\""),
        ("lora_alpha", json!(-1), "expected a number above 0"),
        ("bias", json!("all"), "\"all\" is not supported"),
        ("use_dora", json!(true), "is not supported"),
        ("modules_to_save", json!(["lm_head"]), "is not supported"),
        ("rank_pattern", json!({"q_proj": 8}), "is not supported"),
        ("init_lora_weights", json!("pissa"), "changes the base's weights"),
        ("target_modules", json!(""), "expected a list of names"),
        ("target_modules", json!([]), "expected a list of names"),
        ("target_modules", json!([1]), "expected names"),
    ];
    for (field, value, reason) in cases {
        let mut config = good.clone();
        config[field] = value;
        let result = AdapterConfig::from_json(Path::new("a/adapter_config.json"), &config.to_string());
        says(result, &["a/adapter_config.json", &format!("`{field}`"), reason]);
    }
    says(AdapterConfig::from_json(Path::new("a.json"), "{\n"), &["a.json:2: "]);
}

#[test]
fn a_target_that_matches_nothing_lists_what_there_is() {
    let d = Description::from_json("config.json", &LLAMA.replace("TIED", "true")).unwrap();
    let listed = "down_proj, gate_proj, k_proj, o_proj, q_proj, up_proj, v_proj";
    for target in ["c_attn", "lm_head", "proj"] {
        says(
            Adapter::new(&d, &settings(&["q_proj", target]), "base", 0),
            &["--lora-targets", &format!("`{target}`"), listed],
        );
    }
    says(Adapter::new(&d, &settings(&[]), "base", 0), &["--lora-targets", "names no module"]);
    says(Adapter::new(&d, &LoraSettings { rank: 0, ..settings(&["q_proj"]) }, "base", 0), &["--lora-r"]);
    says(Adapter::new(&d, &LoraSettings { alpha: f64::NAN, ..settings(&["q_proj"]) }, "base", 0), &["--lora-alpha"]);
}
