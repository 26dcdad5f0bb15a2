//! Checkpoints with quantised weights are read as what other programs say that they stand for (tests/quantised/make.py).
#![allow(clippy::unwrap_used)]

mod program;

use std::path::{Path, PathBuf};
use std::rc::Rc;

use jointwise::kernels::storage::{PackedWeight, WeightFormat};
use jointwise::model::checkpoint::Checkpoint;
use jointwise::model::quantised::{QuantMethod, open_quantised};
use jointwise::model::weights::{BaseDtype, WeightSource};
use jointwise::workflow::OpenModel;
use program::{Sandbox, Tensor, edit, read_tensors, rows};
use serde_json::Value;

/// Values of a tensor in bf16.
fn values(tensor: &Tensor) -> Vec<f32> {
    assert_eq!(tensor.dtype, safetensors::Dtype::BF16);
    tensor.bytes.chunks_exact(2).map(|b| half::bf16::from_le_bytes([b[0], b[1]]).to_f32()).collect()
}

const ALL: [&str; 5] = ["fp8-blocks", "fp8-rows", "fp8-tensor", "nf4-nested", "nf4-plain"];

fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/quantised").join(name)
}

/// Copies a checkpoint to a folder, with the demo's tokenizer, without the expected values.
fn copied(sandbox: &Sandbox, name: &str, to: &str) -> PathBuf {
    let to = sandbox.path(to);
    std::fs::create_dir_all(&to).unwrap();
    let demo = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/demo");
    for file in ["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"] {
        std::fs::copy(demo.join(file), to.join(file)).unwrap();
    }
    for file in ["model.safetensors", "config.json"] {
        std::fs::copy(folder(name).join(file), to.join(file)).unwrap();
    }
    to
}

fn model(sandbox: &Sandbox, name: &str) -> PathBuf {
    copied(sandbox, name, name)
}

/// The values that a checkpoint stands for, as a checkpoint in bf16.
fn floats(sandbox: &Sandbox, name: &str) -> PathBuf {
    let to = copied(sandbox, name, &format!("{name}-floats"));
    std::fs::copy(folder(name).join("expected.safetensors"), to.join("model.safetensors")).unwrap();
    change_config(&to, |config| drop(config.as_object_mut().unwrap().remove("quantization_config")));
    to
}

fn change_config(model: &Path, change: impl FnOnce(&mut Value)) {
    let path = model.join("config.json");
    let mut config: Value = serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
    change(&mut config);
    std::fs::write(&path, config.to_string()).unwrap();
}

#[test]
fn values_are_those_of_other_programs() {
    let sandbox = Sandbox::new();
    for name in ALL {
        let open = OpenModel::open(model(&sandbox, name).to_str().unwrap(), BaseDtype::Auto).unwrap();
        let expected = read_tensors(&folder(name).join("expected.safetensors"));
        let specs = open.description.tensors();
        assert_eq!(specs.len(), expected.len(), "{name}");
        for spec in &specs {
            let read = open.checkpoint.values(spec).unwrap();
            assert!(read == values(&expected[&spec.name]), "{name}: {}", spec.name);
            assert!(WeightSource::is_bf16(&*open.checkpoint, spec), "{name}: {}", spec.name);
        }
        // The control: other scales give other values.
        let other = model(&sandbox, name);
        edit(&other.join("model.safetensors"), |tensors| {
            let scales = tensors.iter_mut().find(|(name, _)| {
                name.contains("q_proj.weight") && (name.contains("_scale") || name.ends_with("absmax"))
            });
            let bytes = &mut scales.unwrap().1.bytes;
            bytes.iter_mut().for_each(|byte| *byte ^= 1);
        });
        let changed = OpenModel::open(other.to_str().unwrap(), BaseDtype::Auto).unwrap();
        let spec = specs.iter().find(|spec| spec.name.contains("q_proj")).unwrap();
        assert!(changed.checkpoint.values(spec).unwrap() != values(&expected[&spec.name]), "{name}");
    }
}

/// Scores of a quantised checkpoint are those of its floats, bit by bit.
#[test]
fn scores_are_those_of_the_floats() {
    let sandbox = Sandbox::new();
    let data = sandbox.write("rows.jsonl", rows("mistral-odd")[..4].join("\n"));
    let score = |model: &Path, dtype: &str| {
        let args = [
            "score",
            "--model",
            model.to_str().unwrap(),
            "--data",
            &data,
            "--base-dtype",
            dtype,
            "--template",
            "plain",
        ];
        let ran = sandbox.run(&args).ok();
        (ran.stdout.clone(), ran.stderr)
    };
    for name in ["fp8-blocks", "nf4-plain"] {
        let (quantised, floats) = (model(&sandbox, name), floats(&sandbox, name));
        let (text, said) = score(&quantised, "auto");
        assert!(
            said.contains(if name.starts_with("fp8") {
                "7 tensors in FP8 are read as bf16"
            } else {
                "of which 0 are held as they are"
            }),
            "{said}"
        );
        assert_eq!(text, score(&floats, "auto").0, "{name}");
    }
}

/// The blocks of a checkpoint in NF4 go to the device as they are.
#[test]
fn nf4_is_held_without_a_loss() {
    let sandbox = Sandbox::new();
    let path = model(&sandbox, "nf4-nested");
    let open = OpenModel::open(path.to_str().unwrap(), BaseDtype::Auto).unwrap();
    let source: Rc<dyn WeightSource> = open.weight_source();
    let (mut n_packed, mut n_lossy) = (0, 0);
    for spec in open.description.tensors().iter().filter(|spec| spec.name.contains("proj")) {
        let (rows, columns) = (spec.shape[0], spec.shape[1]);
        let Some(packed) = source.packed(spec).unwrap() else {
            assert!(!columns.is_multiple_of(64), "{}", spec.name);
            continue;
        };
        assert!(source.is_nf4(spec));
        let unpack = |packed: &PackedWeight| {
            let words = packed.part(0, rows, columns);
            WeightFormat::Nf4.unpack(&words, rows, columns)
        };
        // bitsandbytes rounds to bf16 what it has in f32.
        let round = |values: Vec<f32>| values.into_iter().map(|v| half::bf16::from_f32(v).to_f32()).collect::<Vec<_>>();
        let values = source.values(spec).unwrap();
        assert!(round(unpack(&packed)) == values, "{}", spec.name);
        n_packed += 1;
        // The control: the values quantised again have other scales.
        let again = PackedWeight::new(WeightFormat::Nf4, values.clone(), columns);
        n_lossy += usize::from(round(unpack(&again)) != values);
    }
    assert_eq!(n_packed, 6);
    assert!(n_lossy > 0);

    // So the device's self-test has to check products with them.
    assert!(open.weight_formats().contains(&WeightFormat::Nf4));
    let floats = model(&sandbox, "fp8-blocks");
    let floats = OpenModel::open(floats.to_str().unwrap(), BaseDtype::Auto).unwrap();
    assert!(!floats.weight_formats().contains(&WeightFormat::Nf4));
}

#[test]
fn adapters_are_trained_on_and_merged_into_quantised_weights() {
    let sandbox = Sandbox::new();
    let data = sandbox.write("rows.jsonl", rows("mistral-odd")[..4].join("\n"));
    for name in ["fp8-blocks", "nf4-nested"] {
        let base = model(&sandbox, name);
        let base = base.to_str().unwrap();
        let out = format!("{name}-tuned");
        let train = [
            "train",
            "--model",
            base,
            "--data",
            &data,
            "--output-dir",
            &out,
            "--max-steps",
            "2",
            "--lora-r",
            "4",
            "--lora-targets",
            "q_proj",
            "--learning-rate",
            "0.1",
            "--template",
            "plain",
        ];
        sandbox.run(&train).ok();
        let merged = format!("{name}-merged");
        sandbox.run(&["merge", "--model", base, "--adapter", &out, "--output-dir", &merged]).ok();
        let config: Value =
            serde_json::from_str(&std::fs::read_to_string(sandbox.path(&merged).join("config.json")).unwrap()).unwrap();
        assert!(config.get("quantization_config").is_none());
        let written = read_tensors(&sandbox.path(&merged).join("model.safetensors"));
        let expected = read_tensors(&folder(name).join("expected.safetensors"));
        assert!(written.keys().eq(expected.keys()));
        // What no adapter changes is written as it is read.
        for (name, tensor) in &written {
            assert_eq!(tensor.bytes == expected[name].bytes, !name.contains("q_proj"), "{name}");
        }
    }
}

#[test]
fn what_is_not_whole_is_refused_by_name() {
    let sandbox = Sandbox::new();
    let refused = |name: &str, change: &dyn Fn(&mut program::Tensors), parts: &[&str]| {
        let path = model(&sandbox, name);
        edit(&path.join("model.safetensors"), change);
        let error = OpenModel::open(path.to_str().unwrap(), BaseDtype::Auto).map(drop).unwrap_err().to_string();
        parts.iter().for_each(|part| assert!(error.contains(part), "{part}: {error}"));
    };
    let q = "model.layers.0.self_attn.q_proj.weight";
    refused("fp8-blocks", &|t| drop(t.remove(&format!("{q}_scale_inv"))), &[q, "has no", "_scale_inv"]);
    refused(
        "fp8-blocks",
        &|t| t.get_mut(&format!("{q}_scale_inv")).unwrap().shape = vec![1, 1, 1],
        &[q, "weight_block_size [128, 128]"],
    );
    for part in [".absmax", ".quant_map", ".nested_absmax", ".nested_quant_map"] {
        refused("nf4-nested", &|t| drop(t.remove(&format!("{q}{part}"))), &[q, part]);
    }
    let path = model(&sandbox, "fp8-blocks");
    change_config(&path, |config| config["quantization_config"]["quant_method"] = "awq".into());
    let error = OpenModel::open(path.to_str().unwrap(), BaseDtype::Auto).map(drop).unwrap_err().to_string();
    assert!(error.contains("quantization_config") && error.contains("awq"), "{error}");
    // Files of floats whose configuration says otherwise.
    let path = model(&sandbox, "fp8-rows");
    std::fs::copy(folder("fp8-rows").join("expected.safetensors"), path.join("model.safetensors")).unwrap();
    let error = OpenModel::open(path.to_str().unwrap(), BaseDtype::Auto).map(drop).unwrap_err().to_string();
    assert!(error.contains("no tensor is"), "{error}");
}

/// Opens a checkpoint in MXFP4 as floats; `text` is that of config.json.
fn open_mxfp4(dir: &Path, text: &str) -> jointwise::Result<(Checkpoint, String)> {
    let (method, _) = QuantMethod::take(&dir.join("config.json"), text).unwrap().unwrap();
    open_quantised(Checkpoint::open(dir).unwrap(), method)
}

/// Experts in MXFP4 are the floats that transformers reads, transposed as there, under their names and beside the other tensors.
#[test]
fn experts_in_mxfp4_are_those_of_transformers() {
    let sandbox = Sandbox::new();
    let text = std::fs::read_to_string(folder("mxfp4").join("config.json")).unwrap();
    let (checkpoint, note) = open_mxfp4(&folder("mxfp4"), &text).unwrap();
    assert!(note.ends_with("mxfp4: 4 tensors of experts in MXFP4 are read as bf16"), "{note}");
    let expected = read_tensors(&folder("mxfp4").join("expected.safetensors"));
    assert!(checkpoint.names().eq(expected.keys()));
    let file = checkpoint.files().next().unwrap();
    for (name, tensor) in &expected {
        assert_eq!(checkpoint.stored(name).unwrap(), (tensor.dtype, tensor.shape.as_slice()), "{name}");
        let read = checkpoint.tensor(name).unwrap();
        assert!(read.bytes == tensor.bytes, "{name}");
        // Pieces begin and end inside of values, columns and experts.
        let stored = &file.tensors()[name];
        for n in [7, 1001] {
            let mut pieces = vec![0; tensor.bytes.len()];
            let parts = pieces.chunks_mut(n).enumerate();
            parts.for_each(|(i, part)| file.read_range(name, stored, (i * n) as u64, part).unwrap());
            assert!(pieces == tensor.bytes, "{name} in pieces of {n}");
        }
    }
    // The control: each byte of codes and scales decides about values.
    for (end, bit) in [("_blocks", 1), ("_blocks", 16), ("_scales", 1)] {
        let other = copied(&sandbox, "mxfp4", &format!("changed{end}{bit}"));
        let name = "model.layers.1.mlp.experts.down_proj";
        edit(&other.join("model.safetensors"), |tensors| {
            tensors.get_mut(&format!("{name}{end}")).unwrap().bytes.iter_mut().for_each(|byte| *byte ^= bit);
        });
        let (changed, _) = open_mxfp4(&other, &text).unwrap();
        assert!(changed.tensor(name).unwrap().bytes != expected[name].bytes, "{end} {bit}");
    }
}

#[test]
fn experts_in_mxfp4_that_are_not_whole_are_refused_by_name() {
    let sandbox = Sandbox::new();
    let text = std::fs::read_to_string(folder("mxfp4").join("config.json")).unwrap();
    let name = "model.layers.0.mlp.experts.gate_up_proj";
    let (blocks, scales) = (format!("{name}_blocks"), format!("{name}_scales"));
    let refused = |change: &dyn Fn(&mut program::Tensors), parts: &[&str]| {
        let path = copied(&sandbox, "mxfp4", "changed");
        edit(&path.join("model.safetensors"), change);
        let error = open_mxfp4(&path, &text).map(drop).unwrap_err().to_string();
        let all = ["changed", &blocks].into_iter().chain(parts.iter().copied());
        all.for_each(|part| assert!(error.contains(part), "{part}: {error}"));
    };
    refused(&|t| drop(t.remove(&scales)), &["has no", &scales]);
    refused(&|t| t.get_mut(&scales).unwrap().shape = vec![3, 32, 6], &["(3, 64, 3, 16), with scales (3, 32, 6)"]);
    refused(
        &|t| t.get_mut(&blocks).unwrap().shape = vec![192, 3, 16],
        &["(192, 3, 16)", "(experts, rows, blocks, 16) is read"],
    );
    refused(&|t| t.get_mut(&blocks).unwrap().shape = vec![3, 64, 6, 8], &["(3, 64, 6, 8)"]);
    let as_i8 = |t: &mut program::Tensors| t.get_mut(&blocks).unwrap().dtype = safetensors::Dtype::I8;
    refused(&as_i8, &["is I8 with scales of type U8"]);
    let twice = |t: &mut program::Tensors| {
        let copy = read_tensors(&folder("mxfp4").join("expected.safetensors")).remove(name).unwrap();
        t.insert(name.into(), copy);
    };
    refused(&twice, &["is in the files, too"]);
    // A module that config.json says to be left as it is.
    for entry in ["mlp.experts", "model.layers.*", r"model\\.layers\\.0"] {
        let kept = text.replace("\"lm_head\"", &format!("\"{entry}\""));
        let error = open_mxfp4(&folder("mxfp4"), &kept).map(drop).unwrap_err().to_string();
        let first = "model.layers.0.mlp.experts.down_proj_blocks";
        let parts = [first, "modules_to_not_convert", "which is model.layers.0.mlp.experts"];
        parts.iter().for_each(|part| assert!(error.contains(part), "{part}: {error}"));
    }
    let bad = text.replace("\"lm_head\"", "\"(\"");
    let error = open_mxfp4(&folder("mxfp4"), &bad).map(drop).unwrap_err().to_string();
    assert!(error.contains("is not a regular expression"), "{error}");
}

/// A gpt-oss with experts in MXFP4 scores as its floats do, bit by bit.
#[test]
fn scores_of_experts_in_mxfp4() {
    let sandbox = Sandbox::new();
    let (quantised, floats) = (model(&sandbox, "mxfp4"), floats(&sandbox, "mxfp4"));
    // The fixture's largest scales are no model's: a sum of their values overflows.
    edit(&quantised.join("model.safetensors"), |tensors| {
        let scales = tensors.iter_mut().filter(|(name, _)| name.ends_with("_scales"));
        scales.for_each(|(_, tensor)| tensor.bytes.fill(122));
    });
    let text = std::fs::read_to_string(quantised.join("config.json")).unwrap();
    let (read, _) = open_mxfp4(&quantised, &text).unwrap();
    edit(&floats.join("model.safetensors"), |tensors| {
        let experts = tensors.iter_mut().filter(|(name, _)| name.contains(".experts."));
        experts.for_each(|(name, tensor)| tensor.bytes = read.tensor(name).unwrap().bytes.to_vec());
    });
    let data = sandbox.write("rows.jsonl", rows("mistral-odd")[..2].join("\n"));
    let score = |model: &Path| {
        let args = ["score", "--model", model.to_str().unwrap(), "--data", &data, "--template", "plain"];
        let ran = sandbox.run(&args).ok();
        (ran.stdout.clone(), ran.stderr)
    };
    let (scores, said) = score(&quantised);
    assert!(said.contains("4 tensors of experts in MXFP4 are read as bf16"), "{said}");
    assert_eq!(scores, score(&floats).0);
    // The control: other scales give other scores.
    edit(&quantised.join("model.safetensors"), |tensors| {
        let scales = tensors.iter_mut().filter(|(name, _)| name.ends_with("down_proj_scales"));
        scales.for_each(|(_, tensor)| tensor.bytes.fill(123));
    });
    assert_ne!(score(&quantised).0, scores);
}
