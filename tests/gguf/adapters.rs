//! Adapters in llama.cpp's form.

use super::*;
use program::{Tensors, write_tensors};
use serde_json::json;

/// Writes a random adapter of all linear layers, as PEFT does. Its fields are R 4, α 6, and those of `config`.
pub fn random_adapter(
    model: &OpenModel,
    dir: &Path,
    config: &serde_json::Value,
    rank: impl Fn(&str) -> usize,
) -> Tensors {
    use jointwise::model::load::linear_modules;
    let mut rng = jointwise::rng::Rng::new(3, 1);
    let mut tensors = Tensors::new();
    for module in linear_modules(&model.description) {
        let r = rank(&module.name);
        for (side, shape) in [("A", [r, module.n_in]), ("B", [module.n_out, r])] {
            let bytes = (0..shape[0] * shape[1]).flat_map(|_| (0.1 * rng.normal()).to_le_bytes()).collect();
            let tensor = program::Tensor { dtype: safetensors::Dtype::F32, shape: shape.into(), bytes };
            tensors.insert(format!("base_model.model.{}.lora_{side}.weight", module.name), tensor);
        }
    }
    fs::create_dir_all(dir).unwrap();
    write_tensors(&dir.join("adapter_model.safetensors"), &tensors);
    let mut all = json!({"peft_type": "LORA", "r": 4, "lora_alpha": 6, "target_modules": "all-linear",
        "base_model_name_or_path": model.name});
    all.as_object_mut().unwrap().extend(config.as_object().unwrap().clone());
    fs::write(dir.join("adapter_config.json"), all.to_string()).unwrap();
    tensors
}

/// Exports a random adapter of a fixture. Returns it with A and B by module, as PEFT has them.
fn adapter(
    family: &str,
    config: serde_json::Value,
    rank: impl Fn(&str) -> usize,
) -> (GgufFile, Tensors, tempfile::TempDir) {
    let sandbox = tempfile::tempdir().unwrap();
    let own = open(&fixture(family).join("model"));
    let tensors = random_adapter(&own, &sandbox.path().join("adapter"), &config, rank);
    let done = std::process::Command::new(env!("CARGO_BIN_EXE_jointwise"))
        .args(["export", "--adapter", "adapter", "--gguf", "adapter.gguf"])
        .current_dir(sandbox.path())
        .output()
        .unwrap();
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    let file = GgufFile::open(&sandbox.path().join("adapter.gguf")).unwrap();
    (file, tensors, sandbox)
}

fn peft(tensors: &Tensors, module: &str, side: &str) -> Vec<f32> {
    tensors[&format!("base_model.model.model.layers.1.{module}.lora_{side}.weight")].values()
}

#[test]
fn adapters_have_llama_cpps_names_scales_and_rows() {
    let (file, tensors, _dir) = adapter("mistral-odd", json!({}), |_| 4);
    let text = |key: &str| file.metadata.text(key).unwrap();
    assert_eq!((text("general.type"), text("adapter.type")), (Some("adapter"), Some("lora")));
    assert_eq!(text("general.architecture"), Some("llama"));
    assert_eq!(file.metadata.number("adapter.lora.alpha").unwrap(), Some(6.0));
    assert_eq!(file.tensors.len(), tensors.len());
    for (module, name) in
        [("self_attn.v_proj", "attn_v"), ("self_attn.o_proj", "attn_output"), ("mlp.up_proj", "ffn_up")]
    {
        for (side, theirs) in [("A", "a"), ("B", "b")] {
            let found = file.tensor(&format!("blk.1.{name}.weight.lora_{theirs}")).unwrap();
            let own = &tensors[&format!("base_model.model.model.layers.1.{module}.lora_{side}.weight")];
            assert_eq!((&found.shape, file.values(found).unwrap()), (&own.shape, own.values()), "{module}");
        }
    }
    // Three query heads of 12 rows: rows j and j + 6 of a head become neighbours; A is as it was.
    let (b, own) = (values(&file, "blk.1.attn_q.weight.lora_b"), peft(&tensors, "self_attn.q_proj", "B"));
    for (head, j, half) in (0..3).flat_map(|h| (0..6).flat_map(move |j| [(h, j, 0), (h, j, 1)])) {
        let (to, from) = (12 * head + 2 * j + half, 12 * head + 6 * half + j);
        assert_eq!(b[4 * to..][..4], own[4 * from..][..4], "row {from}");
    }
    assert_ne!(b, own);
    assert_eq!(values(&file, "blk.1.attn_q.weight.lora_a"), peft(&tensors, "self_attn.q_proj", "A"));
}

#[test]
fn other_scales_and_ranks_are_written_for_llama_cpps_formula() {
    // Rank-stabilised: α/√R = (α·√R)/R.
    let (file, tensors, _dir) = adapter("qwen3", json!({"use_rslora": true}), |_| 4);
    assert_eq!(file.metadata.number("adapter.lora.alpha").unwrap(), Some(12.0));
    assert_eq!(values(&file, "blk.1.attn_q.weight.lora_b"), peft(&tensors, "self_attn.q_proj", "B"));
    // α 3 and R 2 of one module are 1.5, which is the 6/4 of the others: llama.cpp would take 6/2, so B is halved.
    let pattern = json!({"rank_pattern": {"up_proj": 2}, "alpha_pattern": {"up_proj": 3}});
    let rank = |name: &str| if name.ends_with("up_proj") { 2 } else { 4 };
    let (file, tensors, _dir) = adapter("qwen3", pattern, rank);
    assert_eq!(file.metadata.number("adapter.lora.alpha").unwrap(), Some(6.0));
    let halved: Vec<f32> = peft(&tensors, "mlp.up_proj", "B").iter().map(|v| v * 0.5).collect();
    assert_eq!(values(&file, "blk.1.ffn_up.weight.lora_b"), halved);
    assert_eq!(values(&file, "blk.1.ffn_down.weight.lora_b"), peft(&tensors, "mlp.down_proj", "B"));
}

#[test]
fn phi_3_has_fused_names_and_other_families_are_refused() {
    let (file, tensors, _dir) = adapter("phi3", json!({}), |_| 4);
    assert_eq!(file.metadata.text("general.architecture").unwrap(), Some("phi3"));
    assert_eq!(values(&file, "blk.1.attn_qkv.weight.lora_b"), peft(&tensors, "self_attn.qkv_proj", "B"));
    assert_eq!(values(&file, "blk.1.ffn_up.weight.lora_b"), peft(&tensors, "mlp.gate_up_proj", "B"));
    let (file, ..) = adapter("gemma3", json!({}), |_| 4);
    assert_eq!(file.metadata.text("general.architecture").unwrap(), Some("gemma3"));

    let sandbox = Sandbox::new();
    let adapter = fixture("lora-mistral/adapter");
    let flags = ["export", "--adapter", adapter.to_str().unwrap(), "--gguf", "a.gguf"];
    let olmo = fixture("olmo2/model");
    let own = open(&olmo);
    let config = jointwise::LoraConfig::all_linear(2);
    let new = jointwise::model::peft::Adapter::new(&own.description, &config, "base", 1).unwrap();
    let told = own.export_gguf_adapter(&new, "a", &sandbox.path("a.gguf")).unwrap_err().to_string();
    assert!(told.contains("adapters of Olmo2ForCausalLM are not written"), "{told}");
    assert!(told.contains("python convert_lora_to_gguf.py --base MODEL ADAPTER --outfile FILE"), "{told}");
    sandbox.refused(&[&flags[..], &["--type", "f16"]].concat(), &[]);
    assert!(!sandbox.path("a.gguf").exists());
}

/// An adapter is merged into a GGUF file as into the folder that the file was made of: the fixture's bf16 weights are exact in f16.
#[test]
fn merging_into_a_file_equals_merging_into_its_model() {
    let dir = tempfile::tempdir().unwrap();
    let folder = tiny_model("qwen3", dir.path());
    let own = open(&folder);
    let file = exported(&own, &folder, GgufWeightType::F16, dir.path());
    random_adapter(&own, &dir.path().join("adapter"), &json!({}), |_| 4);
    let merge = |model: &Path, name: &str| {
        let done = std::process::Command::new(env!("CARGO_BIN_EXE_jointwise"))
            .args(["merge", "--adapter", "adapter", "--output-dtype", "f32", "--output-dir", name, "--model"])
            .arg(model)
            .current_dir(dir.path())
            .output()
            .unwrap();
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
        dir.path().join(name)
    };
    let (a, b) = (merge(&folder, "a"), merge(&file, "b"));
    let tensors = [&a, &b].map(|out| program::read_tensors(&out.join("model.safetensors")));
    assert!(tensors[0].len() > 20 && tensors[0] == tensors[1]);
    let before = program::read_tensors(&folder.join("model.safetensors"));
    assert_ne!(
        tensors[0]["model.layers.0.mlp.up_proj.weight"].bytes,
        before["model.layers.0.mlp.up_proj.weight"].bytes
    );
    // The folder is a model of its own.
    assert_eq!(open(&b).description, own.description);
    assert!(b.join("tokenizer.json").exists() && b.join("config.json").exists());
}
