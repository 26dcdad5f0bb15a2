//! Small models of every architecture that GGUF files are read of, made of the fixtures of `tests/oracle`.

use std::fs;
use std::path::{Path, PathBuf};

use jointwise::model::gguf::GgufWeightType;
use jointwise::rng::Rng;
use jointwise::workflow::OpenModel;
use safetensors::Dtype;
use serde_json::{Value, json};

use crate::program::{Tensor, Tensors, edit, fixture};

/// Models of [`tiny_model`]: two of the architecture `llama`, one with Llama 3.1's rotary table.
pub const FAMILIES: [&str; 5] = ["llama", "mistral", "qwen2", "qwen3", "gemma3"];

/// Makes a model in a folder `model` of `dir`: a fixture, without what GGUF has no form for.
pub fn tiny_model(family: &str, dir: &Path) -> PathBuf {
    let from = match family {
        "llama" => "llama3-scaling",
        "mistral" => "mistral-odd",
        "qwen2" => "qwen3",
        other => other,
    };
    let folder = dir.join("model");
    fs::create_dir(&folder).unwrap();
    for entry in fs::read_dir(fixture(from).join("model")).unwrap().map(|entry| entry.unwrap().path()) {
        fs::copy(&entry, folder.join(entry.file_name().unwrap())).unwrap();
    }
    let path = folder.join("config.json");
    let mut config: Value = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
    match family {
        // llama.cpp has no window for this architecture.
        "mistral" => config["sliding_window"] = Value::Null,
        "gemma3" => config["query_pre_attn_scalar"] = json!(12),
        "qwen2" => {
            (config["architectures"], config["model_type"]) = (json!(["Qwen2ForCausalLM"]), json!("qwen2"));
            // llama.cpp wants H·E = D for this architecture: heads of 8 instead of 12.
            config["head_dim"] = json!(8);
            edit(&folder.join("model.safetensors"), qwen2_of_qwen3);
        }
        _ => {}
    }
    fs::write(&path, config.to_string()).unwrap();
    folder
}

/// Exports a model into the folder `gguf` of `dir`, beside the tokenizer of its folder.
pub fn exported(model: &OpenModel, folder: &Path, weights: GgufWeightType, dir: &Path) -> PathBuf {
    let out = dir.join("gguf");
    fs::create_dir_all(&out).unwrap();
    for name in ["tokenizer.json", "tokenizer_config.json", "generation_config.json"] {
        fs::copy(folder.join(name), out.join(name)).unwrap();
    }
    let file = out.join(format!("{}.gguf", weights.name()));
    model.export_gguf_without_tokenizer(&file, weights).unwrap();
    file
}

/// Makes tensors of a Qwen2 with heads of 8 from those of the fixture of Qwen3: fewer rows, no norms of queries and keys, biases.
fn qwen2_of_qwen3(tensors: &mut Tensors) {
    tensors.retain(|name, _| !name.ends_with("q_norm.weight") && !name.ends_with("k_norm.weight"));
    let mut rng = Rng::new(5, 0);
    for layer in 0..2 {
        let name = |module: &str, part: &str| format!("model.layers.{layer}.self_attn.{module}_proj.{part}");
        for (module, rows) in [("q", 32), ("k", 16), ("v", 16)] {
            let weight = tensors.get_mut(&name(module, "weight")).unwrap();
            weight.bytes.truncate(weight.bytes.len() / weight.shape[0] * rows);
            weight.shape[0] = rows;
            let bytes = (0..rows).flat_map(|_| (0.3 * rng.normal()).to_le_bytes()).collect();
            tensors.insert(name(module, "bias"), Tensor { dtype: Dtype::F32, shape: vec![rows], bytes });
        }
        let out = tensors.get_mut(&name("o", "weight")).unwrap();
        let row = out.bytes.len() / out.shape[0];
        out.bytes = out.bytes.chunks_exact(row).flat_map(|whole| &whole[..row / 48 * 32]).copied().collect();
        out.shape[1] = 32;
    }
}
