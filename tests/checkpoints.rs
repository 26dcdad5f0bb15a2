//! Checkpoints and adapters, read and written; bad ones told by file and tensor.

mod common;

use std::fs;
use std::path::Path;

use common::{describe, oracles, says};
use jointwise::error::Error;
use jointwise::model::checkpoint::Checkpoint;
use jointwise::model::description::{ModelConfig, TensorSpec};
use jointwise::model::lora_config::LoraConfig;
use jointwise::model::peft::{Adapter, AdapterConfig, write_adapter};
use jointwise::model::save::{OutputDtype, TensorToWrite, save_model, write_model, write_safetensors};
use jointwise::model::side_files::SideFiles;
use proptest::prelude::*;
use serde_json::{Value, json};

/// A small model: its config, every tensor, all values different.
struct Model {
    dir: tempfile::TempDir,
    d: ModelConfig,
}

const LLAMA: &str = r#"{"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 16,
    "intermediate_size": 24, "num_attention_heads": 4, "num_key_value_heads": 2, "num_hidden_layers": 2,
    "vocab_size": 40, "rms_norm_eps": 1e-05, "tie_word_embeddings": TIED, "dtype": "float32"}"#;

fn numbers(spec: &TensorSpec) -> Vec<f32> {
    let salt = spec.name.bytes().map(u32::from).sum::<u32>() as f32;
    (0..spec.shape.iter().product::<usize>()).map(|i| (salt + i as f32).sin() / 3.0).collect()
}

fn planned(name: &str, shape: &[usize]) -> TensorToWrite {
    TensorToWrite { name: name.into(), shape: shape.into(), dtype: OutputDtype::F32 }
}

impl Model {
    fn new(config: &str) -> Self {
        Self::with(config, |tensors| tensors)
    }

    /// The tensors changed before they are written.
    fn with(config: &str, change: impl FnOnce(Vec<TensorSpec>) -> Vec<TensorSpec>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let d = ModelConfig::from_json("config.json", config).unwrap();
        let tensors = change(d.tensors());
        fs::write(dir.path().join("config.json"), config).unwrap();
        fs::write(dir.path().join("tokenizer.json"), "{}").unwrap();
        let plan: Vec<TensorToWrite> = tensors.iter().map(|s| planned(&s.name, &s.shape)).collect();
        write_model(dir.path(), &plan, 1 << 40, &mut |i| Ok(numbers(&tensors[i]))).unwrap();
        Self { dir, d }
    }

    fn llama() -> Self {
        Self::new(&LLAMA.replace("TIED", "false"))
    }

    fn path(&self) -> &Path {
        self.dir.path()
    }

    /// The note on tensors that are not the model's, if there is one.
    fn verify(&self) -> Result<Vec<String>, Error> {
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

    let wrong = Model::with(&untied, |mut t| {
        t.iter_mut().filter(|s| s.name == q).for_each(|s| s.shape = vec![16, 8]);
        t
    });
    says(wrong.verify(), &["model.safetensors", q, "expected (16, 16), file has (16, 8)"]);
}

/// As in transformers, which warns of them.
#[test]
fn tensors_of_no_module_are_named_once() {
    let untied = LLAMA.replace("TIED", "false");
    let with = |names: Vec<String>| {
        Model::with(&untied, |mut t| {
            t.extend(names.iter().map(|name| plain(name, &[2])));
            t
        })
    };
    let computed = ["layers.0.self_attn.rotary_emb.inv_freq", "rotary_emb.inv_freq", "embed.position_ids"];
    let buffers = with(computed.iter().map(|name| format!("model.{name}")).collect());
    assert_eq!(buffers.verify().unwrap(), [""; 0]);

    let one = with(vec!["model.layers.0.self_attn.q_proj.bias".into()]);
    let note = one.verify().unwrap().concat();
    let expected = "1 tensor is no part of this LlamaForCausalLM and not used, as in transformers: model.layers.0.self_attn.q_proj.bias";
    assert!(note.ends_with(expected), "{note}");
    let many = with((0..10).map(|i| format!("model.layers.{i}.weight_scale")).collect());
    let note = many.verify().unwrap().concat();
    assert!(
        note.contains(": 10 tensors are no part of") && note.ends_with("model.layers.7.weight_scale and 2 more"),
        "{note}"
    );
    // A model saved without its head has names of its own.
    let tied = LLAMA.replace("TIED", "true");
    let strip = |s: TensorSpec| TensorSpec { name: s.name.replacen("model.", "", 1), ..s };
    let headless = Model::with(&tied, |t| t.into_iter().map(strip).collect());
    assert_eq!(headless.verify().unwrap(), [""; 0]);
}

/// As in transformers 5: what the files hold counts more than `tie_word_embeddings`.
#[test]
fn a_head_is_tied_where_the_files_do_not_differ() {
    let tied = LLAMA.replace("TIED", "true");
    let model = Model::new(&tied);
    model.verify().unwrap();
    let specs = model.d.tensors();
    let embedding = specs.iter().find(|s| s.name == model.d.embedding).unwrap();
    for (equal, shape) in [(true, [40, 16]), (false, [40, 16]), (false, [16, 40])] {
        let mut plan: Vec<TensorToWrite> = specs.iter().map(|s| planned(&s.name, &s.shape)).collect();
        plan.push(planned("lm_head.weight", &shape));
        write_model(model.path(), &plan, 1 << 40, &mut |i| {
            let mut values = numbers(specs.get(i).unwrap_or(embedding));
            if i == specs.len() && !equal {
                values[639] += 1.0;
            }
            Ok(values)
        })
        .unwrap();
        let (mut d, mut checkpoint) = (model.d.clone(), Checkpoint::open(model.path()).unwrap());
        checkpoint.settle_tying(&mut d).unwrap();
        let verified = checkpoint.verify(&d);
        if shape != [40, 16] {
            says(verified, &["lm_head.weight", "differs from model.embed_tokens.weight"]);
            continue;
        }
        assert_eq!((verified.unwrap(), d.tied, checkpoint.notes().len()), (Vec::new(), equal, usize::from(!equal)));
        // What is saved says so itself.
        let out = model.path().join(format!("out-{equal}"));
        let side = SideFiles::read(model.path());
        save_model(&out, &checkpoint, &side, &d, None, &[], &mut |s| checkpoint.read_f32(&s.name)).unwrap();
        assert_eq!(describe(&out.join("config.json")).tied, equal);
        let saved = Checkpoint::open(&out).unwrap();
        saved.verify(&d).unwrap();
        assert_eq!(saved.info("lm_head.weight").is_some(), !equal);
    }
    assert!(checkpoint_note(&model).is_empty(), "another shape is told by verify");

    // The head alone: it is the embedding.
    let plan: Vec<TensorToWrite> = specs
        .iter()
        .map(|s| planned(if s.name == embedding.name { "lm_head.weight" } else { &s.name }, &s.shape))
        .collect();
    write_model(model.path(), &plan, 1 << 40, &mut |i| Ok(numbers(&specs[i]))).unwrap();
    says(model.verify(), &["model.embed_tokens.weight", "is missing"]);
    let (mut d, mut checkpoint) = (model.d.clone(), Checkpoint::open(model.path()).unwrap());
    checkpoint.settle_tying(&mut d).unwrap();
    assert_eq!((checkpoint.verify(&d).unwrap(), d.tied), (Vec::new(), true));
    assert_eq!(checkpoint.read_f32(&d.embedding).unwrap(), numbers(embedding));
}

fn checkpoint_note(model: &Model) -> Vec<String> {
    let mut checkpoint = Checkpoint::open(model.path()).unwrap();
    checkpoint.settle_tying(&mut model.d.clone()).unwrap();
    checkpoint.notes().to_vec()
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
        if let Ok(checkpoint) = Checkpoint::from_contents(vec![("x.safetensors".into(), Box::new(bytes))]) {
            let _ = checkpoint.read_f32("a");
        }
    }
}

/// A model in two shards.
fn sharded() -> Model {
    let model = Model::llama();
    let specs = model.d.tensors();
    let plan: Vec<TensorToWrite> = specs.iter().map(|s| planned(&s.name, &s.shape)).collect();
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
    for bad in ["../x.safetensors", "/etc/passwd", "..", "", "a/../b.safetensors", "a//b", "C:x", "a\\\\b"] {
        fs::write(&index, good.replacen(first, bad, 1)).unwrap();
        let shown = bad.replace("\\\\", "\\");
        says(
            model.verify(),
            &["index.json", "weight_map.model.embed_tokens.weight", &format!("`{shown}` is not a file of")],
        );
    }
    fs::write(&index, "{\n\"weight_map\": {\n").unwrap();
    says(model.verify(), &["index.json:3: "]);
    fs::write(&index, "{}").unwrap();
    says(model.verify(), &["index.json", "`weight_map`", "is missing"]);
    fs::write(&index, &good).unwrap();
    fs::remove_file(model.path().join(first)).unwrap();
    says(model.verify(), &[first, "No such file"]);
}

/// The index says which files are read, the files which tensors there are.
#[test]
fn an_index_that_is_not_exact_is_read_as_transformers_does() {
    let model = sharded();
    let index = model.path().join("model.safetensors.index.json");
    let good = fs::read_to_string(&index).unwrap();
    let open = |text: &str| {
        fs::write(&index, text).unwrap();
        let checkpoint = Checkpoint::open(model.path()).unwrap();
        assert_eq!(checkpoint.verify(&model.d).unwrap(), [""; 0]);
        for spec in model.d.tensors() {
            assert_eq!(checkpoint.read_f32(&spec.name).unwrap(), numbers(&spec));
        }
        checkpoint.notes().to_vec()
    };
    let none: [&str; 0] = [];
    // A wrong size, a tensor said to be in another shard, and one that is not named at all.
    let size: Value = serde_json::from_str(&good).unwrap();
    let size = size["metadata"]["total_size"].to_string();
    assert_eq!(open(&good.replacen(&size, "1", 1)), none);
    let first = "model-00001-of-00003.safetensors";
    assert_eq!(open(&good.replacen(first, "model-00002-of-00003.safetensors", 1)), none);
    let unnamed = open(&good.replacen("model.embed_tokens.weight", "other", 1));
    assert!(unnamed[0].ends_with("index.json names 1 tensor that no shard holds: other"), "{unnamed:?}");
    // A tied head that was left out of the shards.
    let mut with_head: Value = serde_json::from_str(&good).unwrap();
    with_head["weight_map"]["extra.lm_head.weight"] = json!(first);
    assert_eq!(open(&with_head.to_string()), none);
    // Shards in a folder.
    fs::create_dir(model.path().join("parts")).unwrap();
    fs::rename(model.path().join(first), model.path().join("parts").join(first)).unwrap();
    assert_eq!(open(&good.replace(first, &format!("parts/{first}"))), none);
}

#[test]
fn two_shards_with_one_tensor_must_agree() {
    let model = sharded();
    let index = model.path().join("model.safetensors.index.json");
    let mut map: Value = serde_json::from_str(&fs::read_to_string(&index).unwrap()).unwrap();
    map["weight_map"]["again"] = json!("again.safetensors");
    fs::write(&index, map.to_string()).unwrap();
    let norm = model.d.tensors().into_iter().find(|s| s.name == "model.norm.weight").unwrap();
    let again = model.path().join("again.safetensors");
    for (more, equal) in [(0.0, true), (1.0, false)] {
        let values = &mut |_| Ok(numbers(&norm).into_iter().map(|v| v + more).collect());
        write_safetensors(&again, &[planned(&norm.name, &norm.shape)], values).unwrap();
        match equal {
            true => assert_eq!(model.verify().unwrap(), [""; 0]),
            false => says(model.verify(), &["model.norm.weight", "is also in", "again.safetensors", "other values"]),
        }
    }
}

/// What was opened is what is read: another file of that name is not, and a changed one is refused.
#[test]
fn a_file_that_changes_after_it_was_opened_is_not_read() {
    let model = Model::llama();
    let (path, spec) = (model.path().join("model.safetensors"), &model.d.tensors()[0]);
    let bytes = fs::read(&path).unwrap();
    let checkpoint = Checkpoint::open(model.path()).unwrap();
    let other = model.path().join("other");
    fs::write(&other, vec![0; bytes.len()]).unwrap();
    #[cfg(unix)]
    {
        fs::rename(&other, &path).unwrap();
        assert_eq!(checkpoint.read_f32(&spec.name).unwrap(), numbers(spec));
        assert!(Checkpoint::open(model.path()).is_err(), "the new file is no model");
    }
    drop(checkpoint);

    fs::write(&path, &bytes).unwrap();
    let checkpoint = Checkpoint::open(model.path()).unwrap();
    assert_eq!(checkpoint.read_f32(&spec.name).unwrap(), numbers(spec));
    for change in [&bytes[..100], &[1; 200]] {
        std::thread::sleep(std::time::Duration::from_millis(20));
        fs::write(&path, change).unwrap();
        says(checkpoint.read_f32(&spec.name), &["model.safetensors", "was changed after it was opened"]);
    }
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
    save_model(&out, &source, &SideFiles::read(model.path()), &model.d, None, &[], &mut |s| source.read_f32(&s.name))
        .unwrap();
    let saved = Checkpoint::open(&out).unwrap();
    saved.verify(&model.d).unwrap();
    let names: Vec<&String> = saved.files().flat_map(|f| f.tensors().keys()).collect();
    assert!(names.contains(&&"h.0.attn.c_attn.weight".to_string()) && !names.iter().any(|n| n.contains("transformer")));
    assert_eq!(names.len(), model.d.tensors().len());
}

/// The tensors of a wrapped language model have names of transformers 5, of the hub, or of a model saved without its head. Those around it are written
/// back as they are, in their own type; the language model's own leftovers are not.
#[test]
fn a_wrapped_model_keeps_what_is_around_it() {
    let config = |tied: bool| {
        let text = json!({"model_type": "mistral", "hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 4,
            "num_key_value_heads": 2, "num_hidden_layers": 2, "vocab_size": 40});
        json!({"architectures": ["Mistral3ForConditionalGeneration"], "model_type": "mistral3", "text_config": text,
            "tie_word_embeddings": tied})
        .to_string()
    };
    let renamed = |name: &str, inside: &str, head: &str| match name.strip_prefix("model.language_model.") {
        Some(rest) => format!("{inside}{rest}"),
        None => format!("{head}{name}"),
    };
    for (tied, inside, head) in [
        (false, "model.language_model.", ""),
        (false, "language_model.model.", "language_model."),
        (false, "language_model.model.", ""),
        (true, "language_model.", ""),
    ] {
        let around =
            [("vision_tower.conv.weight", vec![2, 3, 2]), ("mtp.fc.weight", vec![4, 4]), ("vision_tower.b", vec![3])];
        let leftover = format!("{inside}layers.0.self_attn.q_proj.bias");
        let model = Model::with(&config(tied), |mut tensors| {
            tensors.iter_mut().for_each(|spec| spec.name = renamed(&spec.name, inside, head));
            let more = around.iter().cloned().map(|(name, shape)| (name.to_string(), shape));
            let more = more.chain([(leftover.clone(), vec![16])]);
            tensors.extend(more.map(|(name, shape)| TensorSpec { name, shape, transposed: false }));
            tensors
        });
        let source = Checkpoint::open(model.path()).unwrap();
        let mut names: Vec<&str> = around.iter().map(|(name, _)| *name).collect();
        names.sort_unstable();
        assert_eq!(source.carried(&model.d), names, "{inside}");
        let notes = source.verify(&model.d).unwrap();
        assert!(notes[0].contains("3 tensors of other parts are left as they are: mtp, vision_tower"), "{notes:?}");
        assert!(notes[1].contains(&leftover) && notes.len() == 2, "{notes:?}");

        let out = model.path().join("out");
        let (side, half) = (SideFiles::read(model.path()), Some(OutputDtype::Bf16));
        save_model(&out, &source, &side, &model.d, half, &[], &mut |s| source.read_f32(&s.name)).unwrap();
        let saved = Checkpoint::open(&out).unwrap();
        assert_eq!(saved.verify(&model.d).unwrap().len(), 1);
        for name in source.carried(&model.d) {
            let bytes = |checkpoint: &Checkpoint| {
                let mut all = Vec::new();
                let mut take = |piece: &[u8]| {
                    all.extend_from_slice(piece);
                    Ok(())
                };
                checkpoint.read_stored(name, &mut take).unwrap();
                all
            };
            assert_eq!((saved.stored(name), bytes(&saved)), (source.stored(name), bytes(&source)), "{name}");
        }
        for spec in model.d.tensors() {
            assert_eq!(saved.file_name(&spec.name), renamed(&spec.name, inside, head));
            assert_eq!(saved.info(&spec.name).unwrap().0, safetensors::Dtype::BF16);
        }
    }
    // A model that is not wrapped carries nothing.
    let plain = Model::llama();
    assert!(Checkpoint::open(plain.path()).unwrap().carried(&plain.d).is_empty());
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
        save_model(&out, &source, &SideFiles::read(model.path()), &model.d, Some(dtype), &card, &mut |s| {
            source.read_f32(&s.name)
        })
        .unwrap();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "something was left aside");
        let saved = Checkpoint::open(&out).unwrap();
        saved.verify(&describe(&out.join("config.json"))).unwrap();
        assert_eq!(OutputDtype::from_stored(saved.dtype(&model.d)), dtype);
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
        save_model(&out, &saved, &SideFiles::read(model.path()), &model.d, None, &[], &mut |s| saved.read_f32(&s.name))
            .unwrap();
        Checkpoint::open(&out).unwrap().verify(&model.d).unwrap();
    }
}

/// Tensors of one model in three types, over two shards: each is read as it is, and saved in its own type.
#[test]
fn types_may_be_mixed() {
    let model = Model::llama();
    let specs = model.d.tensors();
    let types = [OutputDtype::F32, OutputDtype::Bf16, OutputDtype::F16];
    let plan: Vec<TensorToWrite> = specs
        .iter()
        .enumerate()
        .map(|(i, s)| TensorToWrite { dtype: types[i % 3], ..planned(&s.name, &s.shape) })
        .collect();
    fs::remove_file(model.path().join("model.safetensors")).unwrap();
    write_model(model.path(), &plan, 6000, &mut |i| Ok(numbers(&specs[i]))).unwrap();
    let source = Checkpoint::open(model.path()).unwrap();
    assert!(source.files().count() > 1);
    let out = model.path().join("out");
    let side = SideFiles::read(model.path());
    save_model(&out, &source, &side, &model.d, None, &[], &mut |s| source.read_f32(&s.name)).unwrap();
    for checkpoint in [&source, &Checkpoint::open(&out).unwrap()] {
        assert_eq!(checkpoint.verify(&model.d).unwrap(), [""; 0]);
        for (spec, planned) in specs.iter().zip(&plan) {
            assert_eq!(
                OutputDtype::from_stored(checkpoint.info(&spec.name).unwrap().0),
                planned.dtype,
                "{}",
                spec.name
            );
            let tolerance = [0.0, 1.0 / 256.0, 1.0 / 2048.0][types.iter().position(|t| *t == planned.dtype).unwrap()];
            for (a, b) in checkpoint.read_f32(&spec.name).unwrap().iter().zip(numbers(spec)) {
                assert!((a - b).abs() <= b.abs() * tolerance, "{}: {a} {b}", spec.name);
            }
        }
    }
}

#[test]
fn a_save_that_fails_leaves_nothing() {
    let model = Model::llama();
    let source = Checkpoint::open(model.path()).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    let values = &mut |s: &TensorSpec| Ok(vec![1e6; s.shape.iter().product()]);
    let result =
        save_model(&out, &source, &SideFiles::read(model.path()), &model.d, Some(OutputDtype::F16), &[], values);
    says(result, &["model.embed_tokens.weight", "1000000 does not fit float16"]);
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    fs::write(&out, "").unwrap();
    let result = save_model(&out, &source, &SideFiles::read(model.path()), &model.d, None, &[], &mut |s| {
        source.read_f32(&s.name)
    });
    says(result, &["out", "exists and is not a folder"]);
}

// Adapters.

fn settings(targets: &[&str]) -> LoraConfig {
    let targets = targets.iter().map(|t| t.to_string()).collect();
    LoraConfig { rank: 4, alpha: 8.0, targets, ..LoraConfig::default() }
}

/// Writes a new adapter of `d`.
fn write_new(dir: &Path, d: &ModelConfig, targets: &[&str]) -> Adapter {
    let adapter = Adapter::new(d, &settings(targets), "base", 7).unwrap();
    let values = &mut |name: &str| Ok(adapter.lora.values(name).unwrap());
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
        let d = ModelConfig::from_json("config.json", &config).unwrap();
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
    let d = ModelConfig::from_json("config.json", &LLAMA.replace("TIED", "true")).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let written = write_new(dir.path(), &d, &["q_proj", "v_proj"]);
    // The paper's own list.
    let names = ["q_proj", "c_attn", "v_proj", "c_proj", "fc_in", "fc_out"];
    retarget(dir.path(), json!(names));
    let read = Adapter::open(dir.path(), &d).unwrap();
    assert_eq!(read.lora.modules, written.lora.modules);
    assert_eq!(read.notes, ["target_modules that this model does not have: c_attn, c_proj, fc_in, fc_out"]);
    assert_eq!(read.config.to_json(&d)["target_modules"], json!(names));

    retarget(dir.path(), json!(["c_attn", "fc_in"]));
    says(Adapter::open(dir.path(), &d), &["adapter_config.json", "`target_modules`", "names no module of this model"]);
    retarget(dir.path(), json!(["q_proj", "c_attn"]));
    says(Adapter::open(dir.path(), &d), &["v_proj.lora_A.weight", "belongs to no module"]);
}

/// A pattern is Python's, and matches whole names.
#[test]
fn a_pattern_of_targets_is_kept() {
    let d = ModelConfig::from_json("config.json", &LLAMA.replace("TIED", "true")).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let written = write_new(dir.path(), &d, &["layers.1.self_attn.q_proj", "down_proj"]);
    let pattern = json!(r"^(?:.*\.1\.self_attn\.q_proj|.*down_proj)$");
    retarget(dir.path(), pattern.clone());
    let read = Adapter::open(dir.path(), &d).unwrap();
    assert_eq!((read.lora.modules.len(), &read.lora.modules), (3, &written.lora.modules));
    let again = tempfile::tempdir().unwrap();
    let values = &mut |name: &str| Ok(read.lora.values(name).unwrap());
    write_adapter(again.path(), &read.config, &d, &read.lora, OutputDtype::F32, values).unwrap();
    let reread = Adapter::open(again.path(), &d).unwrap();
    assert_eq!((&reread.config, &reread.lora.modules), (&read.config, &read.lora.modules));
    assert_eq!(reread.config.to_json(&d)["target_modules"], pattern);

    // A pattern that matches less or more than there are tensors, or nothing.
    for (pattern, parts) in [
        (r".*down_proj", &["layers.1.self_attn.q_proj.lora_A.weight", "belongs to no module"][..]),
        (r".*\.1\.self_attn\.q_proj|.*down_proj|.*up_proj", &["layers.0.mlp.up_proj.lora_A.weight", "is missing"]),
        (r"down_proj", &["adapter_config.json", "`target_modules`", "names no module of this model"]),
        (r"(", &["adapter_config.json", "`target_modules`", "is not a regular expression"]),
        ("((?=.).|(?=.).)*!", &["adapter_config.json", "`target_modules`", "cannot be matched with model.layers.0."]),
    ] {
        retarget(dir.path(), json!(pattern));
        says(Adapter::open(dir.path(), &d), parts);
    }
    // One matrix of a pair, and a module that is not the model's.
    retarget(dir.path(), json!(r".*\.0\.mlp\.down_proj"));
    let path = dir.path().join("adapter_model.safetensors");
    let [a, b] = ["A", "B"].map(|x| format!("base_model.model.model.layers.0.mlp.down_proj.lora_{x}.weight"));
    write_safetensors(&path, &[planned(&a, &[4, 24])], &mut |_| Ok(vec![0.0; 96])).unwrap();
    says(Adapter::open(dir.path(), &d), &[&b, "is missing"]);
    let more = [planned(&a, &[4, 24]), planned(&b, &[16, 4]), planned("base_model.model.x.lora_A.weight", &[4, 1])];
    write_safetensors(&path, &more, &mut |i| Ok(vec![0.0; [96, 64, 4][i]])).unwrap();
    says(Adapter::open(dir.path(), &d), &["base_model.model.x.lora_A.weight", "belongs to no module"]);
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

/// Writes an adapter with these fields; each module's R, and names of its tensors, as the case has them.
fn write_forms(dir: &Path, fields: Value, modules: &[(&str, usize)], rename: &dyn Fn(String) -> String) {
    let mut config = json!({"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj", "v_proj"]});
    config.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    fs::write(dir.join("adapter_config.json"), config.to_string()).unwrap();
    let mut plan = Vec::new();
    for (module, rank) in modules {
        let n_out = if module.contains("v_proj") { 8 } else { 16 };
        let shapes = [("A", [*rank, 16]), ("B", [n_out, *rank])];
        let name = |side: &str| rename(format!("base_model.model.{module}.lora_{side}.weight"));
        plan.extend(shapes.map(|(side, shape)| planned(&name(side), &shape)));
    }
    let values = |plan: &TensorToWrite| (0..plan.shape.iter().product()).map(|i| (i as f32).sin()).collect();
    write_safetensors(&dir.join("adapter_model.safetensors"), &plan, &mut |i| Ok(values(&plan[i]))).unwrap();
}

const Q0: &str = "model.layers.0.self_attn.q_proj";
const Q1: &str = "model.layers.1.self_attn.q_proj";
const V0: &str = "model.layers.0.self_attn.v_proj";
const V1: &str = "model.layers.1.self_attn.v_proj";

/// A module with the rank and the scale that it is to have.
type RankAndScale = (&'static str, usize, f32);

/// Ranks and scales by pattern, layers and exclusions, as PEFT has them; written and read back.
#[test]
fn patterns_layers_and_exclusions_are_peft_s() {
    let d = ModelConfig::from_json("config.json", &LLAMA.replace("TIED", "true")).unwrap();
    let root = 2.0f32.sqrt();
    let cases: [(Value, &[RankAndScale]); 10] = [
        (json!({"rank_pattern": {"v_proj": 4}}), &[(Q0, 2, 2.0), (V0, 4, 1.0), (Q1, 2, 2.0), (V1, 4, 1.0)]),
        (json!({"alpha_pattern": {"v_proj": 32}}), &[(Q0, 2, 2.0), (V0, 2, 16.0), (Q1, 2, 2.0), (V1, 2, 16.0)]),
        (
            json!({"rank_pattern": {"1.self_attn.q_proj": 3, "q_proj": 1}, "alpha_pattern": {r".*\.1\..*": 6}}),
            &[(Q0, 1, 4.0), (V0, 2, 2.0), (Q1, 3, 2.0), (V1, 2, 3.0)],
        ),
        (
            json!({"use_rslora": true, "alpha_pattern": {"q_proj": 2}}),
            &[(Q0, 2, 2.0 / root), (V0, 2, 4.0 / root), (Q1, 2, 2.0 / root), (V1, 2, 4.0 / root)],
        ),
        (json!({"layers_to_transform": 1}), &[(Q1, 2, 2.0), (V1, 2, 2.0)]),
        (json!({"layers_to_transform": [0], "layers_pattern": "layers"}), &[(Q0, 2, 2.0), (V0, 2, 2.0)]),
        (json!({"exclude_modules": ["1.self_attn.v_proj"]}), &[(Q0, 2, 2.0), (V0, 2, 2.0), (Q1, 2, 2.0)]),
        (json!({"exclude_modules": r".*\.0\..*"}), &[(Q1, 2, 2.0), (V1, 2, 2.0)]),
        (json!({"bias": "lora_only", "target_modules": [Q1]}), &[(Q1, 2, 2.0)]),
        (json!({"target_modules": r".*\.q_proj", "layers_to_transform": null}), &[(Q0, 2, 2.0), (Q1, 2, 2.0)]),
    ];
    for (fields, expected) in cases {
        let dir = tempfile::tempdir().unwrap();
        let modules: Vec<(&str, usize)> = expected.iter().map(|(module, rank, _)| (*module, *rank)).collect();
        write_forms(dir.path(), fields.clone(), &modules, &|name| name);
        let again = tempfile::tempdir().unwrap();
        let read = Adapter::open(dir.path(), &d).unwrap_or_else(|e| panic!("{fields}: {e}"));
        let values = &mut |name: &str| Ok(read.lora.values(name).unwrap());
        write_adapter(again.path(), &read.config, &d, &read.lora, OutputDtype::F32, values).unwrap();
        for adapter in [&read, &Adapter::open(again.path(), &d).unwrap()] {
            assert_eq!(adapter.lora.modules.len(), expected.len(), "{fields}");
            for (module, rank, scale) in expected {
                let found = (adapter.lora.rank_of(module), adapter.lora.scale_of(module));
                assert_eq!(found, (*rank, *scale), "{fields}: {module}");
                assert_eq!(adapter.lora.modules[*module].0.len(), rank * 16, "{fields}: {module}");
            }
        }
    }
    // A tensor that the fields do not call for, or of another rank than they say, is an error.
    let dir = tempfile::tempdir().unwrap();
    write_forms(dir.path(), json!({"layers_to_transform": [1]}), &[(Q0, 2), (Q1, 2), (V1, 2)], &|name| name);
    says(Adapter::open(dir.path(), &d), &["layers.0.self_attn.q_proj.lora_A.weight", "belongs to no module"]);
    write_forms(dir.path(), json!({"rank_pattern": {"k_proj": 4}}), &[(Q0, 2), (Q1, 2), (V0, 4), (V1, 2)], &|name| {
        name
    });
    says(Adapter::open(dir.path(), &d), &["layers.0.self_attn.v_proj.lora_A.weight", "expected (2, 16)", "(4, 16)"]);
    let unused = json!({"alpha_pattern": {"k_proj": 4}, "new_setting": 3, "eva_config": null});
    write_forms(dir.path(), unused, &[(Q0, 2), (Q1, 2), (V0, 2), (V1, 2)], &|name| name);
    assert_eq!(
        Adapter::open(dir.path(), &d).unwrap().notes,
        [
            "rank_pattern, alpha_pattern: names that fit no module here: k_proj",
            "fields that are not known and not used: new_setting"
        ]
    );
    // A pattern that takes too many steps is not one that does not fit.
    let endless = "((?=.).|(?=.).)*!";
    for fields in [
        json!({"rank_pattern": {endless: 4}}),
        json!({"alpha_pattern": {endless: 4}}),
        json!({"exclude_modules": endless}),
        json!({"layers_pattern": endless, "layers_to_transform": [0]}),
    ] {
        write_forms(dir.path(), fields.clone(), &[(Q0, 2), (Q1, 2), (V0, 2), (V1, 2)], &|name| name);
        let field = fields.as_object().unwrap().keys().find(|field| *field != "layers_to_transform").unwrap();
        let parts = ["adapter_config.json", &format!("`{field}`"), "cannot be matched with model.layers.0."];
        says(Adapter::open(dir.path(), &d), &parts);
    }
}

#[test]
fn names_of_other_programs_are_put_right() {
    let d = ModelConfig::from_json("config.json", &LLAMA.replace("TIED", "true")).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let modules = [(Q0, 2), (Q1, 2), (V0, 2), (V1, 2)];
    write_forms(dir.path(), json!({}), &modules, &|name| name);
    let usual = Adapter::open(dir.path(), &d).unwrap().lora.modules;
    let named = |name: String| name.replace(".weight", ".default.weight");
    let bare = |name: String| name.replace("base_model.model.", "");
    for rename in [&named as &dyn Fn(String) -> String, &bare] {
        write_forms(dir.path(), json!({}), &modules, rename);
        assert_eq!(Adapter::open(dir.path(), &d).unwrap().lora.modules, usual);
    }
    let two = |name: String| {
        if name.contains("layers.1") {
            name.replace("layers.1", "layers.0").replace(".weight", ".x.weight")
        } else {
            name
        }
    };
    write_forms(dir.path(), json!({}), &modules, &two);
    says(Adapter::open(dir.path(), &d), &["lora_A.x.weight", "is the same matrix as"]);
    fs::rename(dir.path().join("adapter_model.safetensors"), dir.path().join("adapter_model.bin")).unwrap();
    says(Adapter::open(dir.path(), &d), &["holds adapter_model.bin, which is not read"]);
}

/// Copies of the base's weights, which PEFT saves on its own; others are refused.
#[test]
fn weights_saved_with_an_adapter_must_be_the_base_s() {
    let model = Model::llama();
    let base = Checkpoint::open(model.path()).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let specs = model.d.tensors();
    let spec = |name: &str| specs.iter().find(|s| s.name == name).unwrap();
    let write = |fields: Value, extra: &str, shape: &[usize], change: f32| {
        write_forms(dir.path(), fields, &[(Q0, 2), (Q1, 2), (V0, 2), (V1, 2)], &|name| name);
        let path = dir.path().join("adapter_model.safetensors");
        let lora = Checkpoint::from_contents(vec![("x".into(), Box::new(fs::read(&path).unwrap()))]).unwrap();
        let names: Vec<String> = lora.files().flat_map(|f| f.tensors().keys().cloned()).collect();
        let mut plan: Vec<TensorToWrite> = names.iter().map(|name| planned(name, lora.info(name).unwrap().1)).collect();
        plan.push(planned(&format!("base_model.model.{extra}"), shape));
        let own = numbers(spec(extra));
        let values = |i: usize| match names.get(i) {
            Some(name) => lora.read_f32(name),
            None => Ok((0..shape.iter().product()).map(|i| own.get(i).unwrap_or(&0.0) + change).collect()),
        };
        write_safetensors(&path, &plan, &mut |i| values(i)).unwrap();
        Adapter::open_on(dir.path(), &model.d, Some(&base))
    };
    let embedding = "model.embed_tokens.weight";
    let copied = write(json!({}), embedding, &[40, 16], 0.0).unwrap();
    assert_eq!(copied.notes, [format!("saved with the adapter, and the base's own: {embedding}")]);
    says(write(json!({}), embedding, &[40, 16], 0.5), &[embedding, "is not the base's own", "merge it with PEFT"]);
    says(write(json!({}), "lm_head.weight", &[40, 16], 0.5), &["lm_head.weight", "is not the base's own"]);
    let grown = write(json!({}), embedding, &[42, 16], 0.0);
    says(grown, &[embedding, "is (42, 16), the base's is (40, 16): the adapter was trained with added tokens"]);
    // An adapter of the head, which this program has none for.
    for (module, n_out) in [("lm_head", 40), ("model.embed_tokens", 40)] {
        write_forms(dir.path(), json!({"target_modules": ["q_proj", "v_proj", module]}), &[], &|name| name);
        let plan = [
            planned(&format!("base_model.model.{module}.lora_A.weight"), &[2, 16]),
            planned(&format!("base_model.model.{module}.lora_B.weight"), &[n_out, 2]),
        ];
        write_safetensors(&dir.path().join("adapter_model.safetensors"), &plan, &mut |i| Ok(vec![0.0; [32, 80][i]]))
            .unwrap();
        says(Adapter::open(dir.path(), &model.d), &["`target_modules`", module, "no adapter is supported"]);
    }
}

#[test]
fn an_adapter_of_another_base_is_refused() {
    let d = |text: String| ModelConfig::from_json("config.json", &text).unwrap();
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
        ("bias", json!("some"), "expected none, all or lora_only, found \"some\""),
        ("use_dora", json!(true), "is not supported"),
        ("modules_to_save", json!("lm_head"), "expected a list of names"),
        ("rank_pattern", json!({"q_proj": 0}), "q_proj: expected 1 ..= 4096, found 0"),
        ("rank_pattern", json!({"q(": 8}), "is not a regular expression"),
        ("alpha_pattern", json!({"q_proj": "8"}), "q_proj: expected numbers above 0, found \"8\""),
        ("alpha_pattern", json!([1]), "expected an object of names and numbers"),
        ("layers_to_transform", json!(["1"]), "expected layers' numbers"),
        ("layers_pattern", json!("layers"), "needs layers_to_transform, as in PEFT"),
        ("exclude_modules", json!([1]), "expected a name or a list of names"),
        ("exclude_modules", json!("("), "is not a regular expression"),
        ("trainable_token_indices", json!({"embed_tokens": [1], "lm_head": [1]}), "ids of the embedding alone"),
        ("trainable_token_indices", json!([1, 1]), "token ids, each once, found 1"),
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
    let d = ModelConfig::from_json("config.json", &LLAMA.replace("TIED", "true")).unwrap();
    let listed = "down_proj, gate_proj, k_proj, o_proj, q_proj, up_proj, v_proj";
    for target in ["c_attn", "lm_head", "proj"] {
        says(
            Adapter::new(&d, &settings(&["q_proj", target]), "base", 0),
            &["--lora-targets", &format!("`{target}`"), listed],
        );
    }
    says(Adapter::new(&d, &settings(&[]), "base", 0), &["--lora-targets", "names no module"]);
    says(Adapter::new(&d, &LoraConfig { rank: 0, ..settings(&["q_proj"]) }, "base", 0), &["--lora-r"]);
    says(Adapter::new(&d, &LoraConfig { alpha: f64::NAN, ..settings(&["q_proj"]) }, "base", 0), &["--lora-alpha"]);
}
