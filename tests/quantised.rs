//! Checkpoints with quantised weights are read as what other programs say that they stand for (tests/quantised/make.py).
#![allow(clippy::unwrap_used)]

mod program;

use std::path::{Path, PathBuf};
use std::rc::Rc;

use jointwise::kernels::storage::{PackedWeight, WeightFormat};
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

/// Experts in MXFP4 are read as transformers reads them (make_mxfp4.py), and scores are those of the floats.
#[test]
fn experts_in_mxfp4() {
    let (sandbox, name) = (Sandbox::new(), "mxfp4");
    let (quantised, floats) = (model(&sandbox, name), floats(&sandbox, name));
    let open = |path: &Path| OpenModel::open(path.to_str().unwrap(), BaseDtype::Auto).unwrap();
    let (read, expected) = (open(&quantised), read_tensors(&folder(name).join("expected.safetensors")));
    let specs = read.description.tensors();
    assert_eq!(specs.len(), expected.len());
    for spec in &specs {
        assert!(read.checkpoint.values(spec).unwrap() == values(&expected[&spec.name]), "{}", spec.name);
    }
    let data = sandbox.write("rows.jsonl", rows("mistral-odd")[..2].join("\n"));
    let score = |model: &Path| {
        let args = ["score", "--model", model.to_str().unwrap(), "--data", &data, "--template", "plain"];
        let ran = sandbox.run(&args).ok();
        (ran.stdout.clone(), ran.stderr)
    };
    let (text, said) = score(&quantised);
    assert!(said.contains("2 tensors in MXFP4 are read as bf16"), "{said}");
    assert_eq!(text, score(&floats).0);
    // The control: another code and another scale give other values; codes without scales are refused by name.
    let experts = specs.iter().find(|spec| spec.name.ends_with("down_proj")).unwrap();
    for part in ["down_proj_blocks", "down_proj_scales"] {
        edit(&quantised.join("model.safetensors"), |tensors| {
            let (_, tensor) = tensors.iter_mut().find(|(name, _)| name.ends_with(part)).unwrap();
            tensor.bytes[0] ^= 1;
        });
        let changed = open(&quantised).checkpoint.values(experts).unwrap();
        assert!(changed != values(&expected[&experts.name]), "{part}");
    }
    edit(&quantised.join("model.safetensors"), |tensors| tensors.retain(|name, _| !name.ends_with("down_proj_scales")));
    let error = OpenModel::open(quantised.to_str().unwrap(), BaseDtype::Auto).err().unwrap().to_string();
    assert!(error.contains("down_proj_scales") && error.contains("is missing"), "{error}");
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
