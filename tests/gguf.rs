//! GGUF files: read and written, against the answers of the PyPI package `gguf`; whole models exported and read again; adapters; corrupted files.
#![expect(clippy::unwrap_used, reason = "tests")]

#[path = "gguf/adapters.rs"]
mod adapters;
#[path = "gguf/corrupted.rs"]
mod corrupted;
#[path = "gguf/models.rs"]
mod models;
mod program;
#[path = "gguf/vocabularies.rs"]
mod vocabularies;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use jointwise::data::tokens::Tokenizer;
use jointwise::model::gguf::{
    GgmlType, GgufFile, GgufMetadata, GgufModel, GgufTensorToWrite, GgufWeightType, MetaValue, PreTokenizer,
    SpecialIds, read_tokenizer, tokenizer_metadata, write_gguf,
};
use jointwise::model::side_files::SideFiles;
use jointwise::model::weights::WeightSource;
use jointwise::workflow::OpenModel;
use jointwise::{BaseDtype, Error, Gpu, Policy, PolicyOptions, Template};
use models::{FAMILIES, exported, tiny_model};
use program::{Sandbox, fixture};

fn quants() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/gguf/quants.gguf")
}

fn values(file: &GgufFile, name: &str) -> Vec<f32> {
    file.values(file.tensor(name).unwrap()).unwrap()
}

#[test]
fn every_type_has_the_values_that_gguf_reads() {
    let file = GgufFile::open(&quants()).unwrap();
    let kinds: Vec<GgmlType> = file.tensors.iter().filter(|t| !t.name.contains('.')).map(|t| t.kind).collect();
    assert_eq!(kinds.len(), 11, "{kinds:?}");
    for kind in kinds {
        let name = kind.name();
        let (found, mut expected) = (values(&file, name), values(&file, &format!("{name}.expected")));
        assert_eq!(file.tensor(name).unwrap().shape, [2, 256]);
        let bits = |values: &[f32]| values.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
        assert_eq!(bits(&found), bits(&expected), "{name}");
        // The control: a nudged expectation is seen.
        expected[300] = f32::from_bits(expected[300].to_bits() ^ 1);
        assert_ne!(bits(&found), bits(&expected), "{name}");
    }
}

#[test]
fn metadata_of_every_kind_are_read() {
    let file = GgufFile::open(&quants()).unwrap();
    let expected = [
        ("u8", MetaValue::U32(200)),
        ("i8", MetaValue::I128(-100)),
        ("u16", MetaValue::U32(60_000)),
        ("i16", MetaValue::I128(-30_000)),
        ("u32", MetaValue::U32(4_000_000_000)),
        ("i32", MetaValue::I128(-2_000_000_000)),
        ("u64", MetaValue::I128((1 << 63) + 1)),
        ("i64", MetaValue::I128(-(1 << 62))),
        ("f32", MetaValue::F32(0.1)),
        ("f64", MetaValue::F64(0.1)),
        ("bool", MetaValue::Bool(true)),
        ("text", MetaValue::Text("a\nb ça 日本語".into())),
        ("texts", MetaValue::Texts(["", "ä", "b"].map(String::from).into())),
        ("integers", MetaValue::Integers(vec![1, -2, 3])),
        ("floats", MetaValue::Floats(vec![0.5, -1.5])),
        ("bools", MetaValue::Bools(vec![true, false])),
    ];
    for (name, value) in expected {
        assert_eq!(file.metadata.get(&format!("kind.{name}")), Some(&value), "{name}");
    }
    // A float32 is returned as the decimal number that was meant.
    assert_eq!(file.metadata.number("kind.f32").unwrap(), Some(0.1));
    let told = file.metadata.size("kind.text").unwrap_err().to_string();
    assert!(
        told.ends_with("quants.gguf: field `kind.text`: expected a whole number, found `a\\nb ça 日本語`"),
        "{told}"
    );
}

#[test]
fn what_is_written_is_read_again() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.gguf");
    let metadata = [
        ("a.text".to_string(), MetaValue::Text("ü".into())),
        ("b.texts".into(), MetaValue::Texts(vec![String::new(), "x".into()])),
        ("c.integers".into(), MetaValue::Integers(vec![-1, 5])),
        ("d.floats".into(), MetaValue::Floats(vec![0.5])),
        ("e.bools".into(), MetaValue::Bools(vec![false, true])),
        ("f.u32".into(), MetaValue::U32(u32::MAX)),
        ("g.i64".into(), MetaValue::I128(-7)),
        ("h.f32".into(), MetaValue::F32(1e-6)),
        ("i.f64".into(), MetaValue::F64(1e-9)),
    ];
    let given = values(&GgufFile::open(&quants()).unwrap(), "F32");
    let kinds = [GgmlType::Q8_0, GgmlType::F32, GgmlType::Bf16, GgmlType::F16];
    let tensor = |kind: &GgmlType| GgufTensorToWrite { name: kind.name().into(), shape: vec![2, 256], kind: *kind };
    let mut tensors: Vec<GgufTensorToWrite> = kinds.iter().map(tensor).collect();
    tensors.push(GgufTensorToWrite { name: "odd".into(), shape: vec![3], kind: GgmlType::F16 });
    let source = |i: usize| if i < 4 { given.clone() } else { vec![1.0, -2.0, 0.5] };
    write_gguf(&path, &metadata, &tensors, &mut |i| Ok(source(i))).unwrap();
    let file = GgufFile::open(&path).unwrap();
    assert_eq!(file.metadata.entries(), metadata);
    assert_eq!(values(&file, "F32"), given);
    assert_eq!(values(&file, "odd"), [1.0, -2.0, 0.5]);
    let rounded = |round: fn(f32) -> f32| given.iter().map(|v| round(*v)).collect::<Vec<_>>();
    assert_eq!(values(&file, "F16"), rounded(|v| half::f16::from_f32(v).to_f32()));
    assert_eq!(values(&file, "BF16"), rounded(|v| half::bf16::from_f32(v).to_f32()));
    // The package's own blocks of Q8_0 of these values, byte for byte.
    let theirs = GgufFile::open(&quants()).unwrap();
    let blocks = |file: &GgufFile, name: &str| file.bytes(file.tensor(name).unwrap()).unwrap();
    assert_eq!(blocks(&file, "Q8_0"), blocks(&theirs, "Q8_0.written"));

    // A value too large for f16 leaves the old file.
    let was = fs::read(&path).unwrap();
    let told = write_gguf(&path, &[], &tensors[4..], &mut |_| Ok(vec![1e6; 3])).unwrap_err().to_string();
    assert!(told.ends_with("x.gguf: tensor `odd`: 1000000 does not fit float16: take --type bf16"), "{told}");
    let told = write_gguf(&path, &[], &tensors[4..], &mut |_| Ok(vec![])).unwrap_err().to_string();
    assert!(told.contains("tensor `odd`: expected 3 values, was given 0"), "{told}");
    assert_eq!((fs::read(&path).unwrap() == was, fs::read_dir(dir.path()).unwrap().count()), (true, 1));
}

/// Scores of texts: log-probabilities of all tokens.
fn scores(gpu: &Gpu, model: OpenModel) -> Vec<f32> {
    let policy = Policy::from_model(model, None, PolicyOptions::default()).unwrap();
    let responses = [" It is three o'clock, and not four.", "\n\nNo."];
    let scored = policy.score(gpu, "What time is it there, please?", &responses, &Template::Paper).unwrap();
    scored.iter().flat_map(|score| score.token_logps.clone()).collect()
}

fn open(path: &Path) -> OpenModel {
    OpenModel::open(path.to_str().unwrap(), BaseDtype::Auto).unwrap_or_else(|e| panic!("{e}"))
}

fn largest_difference(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).fold(0.0, |most, (a, b)| most.max((a - b).abs()))
}

/// Each type, with the largest difference of a log-probability from the model's own that is its rounding.
const TYPES: [(GgufWeightType, f32); 3] =
    [(GgufWeightType::F16, 2e-2), (GgufWeightType::Bf16, 0.2), (GgufWeightType::Q8_0, 0.3)];

#[test]
fn models_are_written_and_read_again() {
    let gpu = Gpu::open_best().unwrap();
    for family in FAMILIES {
        let dir = tempfile::tempdir().unwrap();
        let folder = tiny_model(family, dir.path());
        let (mut own, was) = (open(&folder), scores(&gpu, open(&folder)));
        // A file of `llama` does not say whose class it was.
        own.description.architecture = own.description.architecture.replace("Mistral", "Llama");
        for (weights, tolerance) in TYPES {
            let file = exported(&own, &folder, weights, dir.path());
            let read = open(&file);
            let mut described = read.description.clone();
            described.norm.eps = own.description.norm.eps;
            assert_eq!(described, own.description, "{family}");
            for spec in own.description.tensors() {
                let (a, b) = (own.checkpoint.values(&spec).unwrap(), read.checkpoint.values(&spec).unwrap());
                let round = |v: f32| match weights {
                    _ if spec.shape.len() < 2 => v,
                    GgufWeightType::Bf16 => half::bf16::from_f32(v).to_f32(),
                    _ => half::f16::from_f32(v).to_f32(),
                };
                let is_q8 =
                    weights == GgufWeightType::Q8_0 && spec.shape.len() == 2 && spec.shape[1].is_multiple_of(32);
                let largest = a.iter().fold(0.0, |most: f32, v| most.max(v.abs()));
                for (a, b) in a.iter().zip(&b) {
                    let expected = if is_q8 { *a } else { round(*a) };
                    // Gemma's norms are rounded where 1 is added to them.
                    let allowed = if is_q8 {
                        largest / 200.0
                    } else if spec.shape.len() < 2 {
                        1e-7
                    } else {
                        0.0
                    };
                    assert!((expected - b).abs() <= allowed, "{family} {}: {a} became {b}", spec.name);
                }
            }
            let found = largest_difference(&scores(&gpu, read), &was);
            println!("{family} {}: {found:.1e}", weights.name());
            assert!(found <= tolerance, "{family} {}: {found}", weights.name());
        }
    }
}

/// The control: rows of queries and keys that are not permuted are seen in the scores.
#[test]
fn rows_of_queries_and_keys_have_llama_cpps_order() {
    let gpu = Gpu::open_best().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let folder = tiny_model("llama", dir.path());
    let own = open(&folder);
    let path = exported(&own, &folder, GgufWeightType::F16, dir.path());
    let was = scores(&gpu, open(&folder));
    let file = GgufFile::open(&path).unwrap();
    let to_write = |t: &jointwise::model::gguf::GgufTensor| GgufTensorToWrite {
        name: t.name.clone(),
        shape: t.shape.clone(),
        kind: t.kind,
    };
    let tensors: Vec<GgufTensorToWrite> = file.tensors.iter().map(to_write).collect();
    let wrong = dir.path().join("gguf/wrong.gguf");
    write_gguf(&wrong, &file.metadata.entries(), &tensors, &mut |i| {
        let spec = own.description.tensors().into_iter().find(|spec| {
            let name = file.tensors[i].name.replace("blk.", "model.layers.").replace("attn_", "self_attn.");
            ["q", "k"].iter().any(|m| name.ends_with(&format!("self_attn.{m}.weight")))
                && spec.name == name.replace(".weight", "_proj.weight")
        });
        spec.map_or_else(|| file.values(&file.tensors[i]), |spec| own.checkpoint.values(&spec))
    })
    .unwrap();
    let found = largest_difference(&scores(&gpu, open(&wrong)), &was);
    assert!(found > 0.5, "unpermuted rows change scores by {found} only");
    let again = largest_difference(&scores(&gpu, open(&path)), &was);
    assert!(again < 2e-3, "{again}");
}

#[test]
fn a_tokenizer_goes_into_metadata_and_back() {
    for (family, pre) in [("llama3-scaling", "llama-bpe"), ("qwen3", "qwen2")] {
        let folder = fixture(family).join("model");
        let side = SideFiles::read(&folder);
        let own = Tokenizer::from_side_files(&side).unwrap();
        let pre = PreTokenizer::named(pre).unwrap();
        let adds_bos = !own.start_ids().is_empty();
        let special = SpecialIds { bos: own.bos_id(), eos: own.eos_id(), adds_bos };
        let written = tokenizer_metadata(&side, pre, special, 384).unwrap();
        let metadata = GgufMetadata::new(Path::new("x.gguf"), written.iter().cloned().collect());
        assert_eq!(metadata.texts("tokenizer.ggml.tokens").unwrap().unwrap().len(), 384);
        let read = read_tokenizer(&metadata).unwrap();
        assert_eq!(read.pre.as_ref().unwrap().name, pre.name);
        let files = read.files.iter().map(|(name, text)| (name.as_str(), text.as_bytes()));
        let again = Tokenizer::from_side_files(&SideFiles::from_contents(Path::new("x.gguf"), files)).unwrap();
        assert_eq!((again.start_ids(), again.eos_id()), (own.start_ids(), own.eos_id()), "{family}");
        for text in ["Hello, it's 12345 o'clock\n\n  now", "ça 日本語 🦙\r\n\tx", "<|im_end|>a<|pad|> b", ""] {
            assert_eq!(again.encode_text(text).unwrap(), own.encode_text(text).unwrap(), "{family} {text}");
        }
        let ids: Vec<u32> = (0..384).collect();
        assert_eq!(again.decode_all(&ids).unwrap(), own.decode_all(&ids).unwrap(), "{family}");
        assert_eq!(again.chat_templates().digest(), own.chat_templates().digest(), "{family}");
        let error = tokenizer_metadata(&side, pre, special, 383).map(drop);
        assert!(family == "qwen3" || error.unwrap_err().to_string().contains("is beyond the embedding's 383 rows"));
    }
}

#[test]
fn a_tokenizer_that_is_not_certain_is_refused_with_llama_cpps_command() {
    let sandbox = Sandbox::new();
    let model = sandbox.copy("qwen3/model", "model");
    let model = model.to_str().unwrap();
    let command =
        format!("python convert_hf_to_gguf.py {model} --outfile {} --outtype q8_0", sandbox.path("m.gguf").display());
    let flags = ["export", "--model", model, "--gguf", &sandbox.text("m.gguf"), "--type", "q8_0"];
    sandbox.refused(
        &flags,
        &["its tokenizer is not one that is written for certain (llama-bpe, qwen2, smollm)", &command],
    );
    sandbox.refused(&["export", "--gguf", "m.gguf"], &["--model: is missing"]);
    sandbox.refused(&["export", "--model", model, "--gguf", "none/m.gguf"], &["is in a folder that does not exist"]);
    let olmo = fixture("olmo2/model");
    let flags = ["export", "--model", olmo.to_str().unwrap(), "--gguf", "m.gguf"];
    sandbox.refused(&flags, &["convert_hf_to_gguf.py"]);

    let phi = open(&fixture("phi3/model"));
    let told = phi.export_gguf_without_tokenizer(&sandbox.path("m.gguf"), GgufWeightType::F16).unwrap_err().to_string();
    assert!(
        told.contains("models of Phi3ForCausalLM are not written") && told.contains("convert_hf_to_gguf.py"),
        "{told}"
    );
    let gemma = open(&fixture("gemma3/model"));
    let told =
        gemma.export_gguf_without_tokenizer(&sandbox.path("m.gguf"), GgufWeightType::F16).unwrap_err().to_string();
    assert!(told.contains("its query_pre_attn_scalar is not 12") && told.contains("convert_hf_to_gguf.py"), "{told}");

    // Reading: without a tokenizer beside the file, and with one that is another model's.
    let own = open(Path::new(model));
    let file = sandbox.path("alone.gguf");
    own.export_gguf_without_tokenizer(&file, GgufWeightType::F16).unwrap();
    fs::write(sandbox.path("rows.jsonl"), r#"{"prompt": "a", "chosen": "b", "rejected": "c"}"#).unwrap();
    let flags = ["score", "--model", "alone.gguf", "--data", "rows.jsonl"];
    let reason = "alone.gguf: its tokenizer cannot be read for certain: tokenizer.ggml.model is `none`";
    sandbox.refused(&flags, &[reason, "Put the model's tokenizer.json and tokenizer_config.json into its folder"]);
}

/// Writes models, adapters and this program's scores for `tests/gguf/compare.py`, into the folder `JOINTWISE_GGUF_OUT`.
#[test]
#[ignore = "for tests/gguf/compare.py"]
fn files_for_llama_cpp() {
    let out = PathBuf::from(std::env::var("JOINTWISE_GGUF_OUT").unwrap());
    let gpu = Gpu::open_best().unwrap();
    for family in FAMILIES {
        let dir = out.join(family);
        fs::create_dir_all(&dir).unwrap();
        let folder = tiny_model(family, &dir);
        let own = open(&folder);
        let file = exported(&own, &folder, GgufWeightType::F16, &dir);
        adapters::random_adapter(&own, &dir.join("adapter"), &serde_json::json!({"use_rslora": true}), |_| 4);
        let adapter = own.open_adapter(&dir.join("adapter")).unwrap();
        own.export_gguf_adapter(&adapter, "adapter", &dir.join("adapter.gguf")).unwrap();
        let answer = " It is three o'clock, and not four.";
        let text = jointwise::data::conversation::PromptResponse {
            instruction: jointwise::data::conversation::Instruction::Plain("What time is it there, please?".into()),
            response: answer.into(),
        };
        let read = Policy::from_model(open(&file), None, PolicyOptions::default()).unwrap();
        let ids = read.tokenizer().encode(&text, &Template::Paper).unwrap().ids;
        let with = Policy::from_model(open(&file), Some(adapter), PolicyOptions::default()).unwrap();
        let logps = |policy: &Policy| {
            let all = policy.score(&gpu, "What time is it there, please?", &[answer], &Template::Paper).unwrap();
            all[0].token_logps.clone()
        };
        let scores = serde_json::json!({"ids": ids, "logps": logps(&read), "adapter_logps": logps(&with)});
        fs::write(dir.join("scores.json"), scores.to_string()).unwrap();
    }
}
