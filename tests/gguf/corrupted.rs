//! Malformed and hostile files: an error with the file and the tensor or key, never a panic.

use super::*;

/// Header of a file: version, counts, and whatever follows.
fn header(version: u32, n_tensors: u64, n_values: u64, rest: &[u8]) -> Vec<u8> {
    let counts = [n_tensors.to_le_bytes(), n_values.to_le_bytes()].concat();
    [b"GGUF".to_vec(), version.to_le_bytes().to_vec(), counts, rest.to_vec()].concat()
}

fn text(text: &str) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes()[..], text.as_bytes()].concat()
}

/// Entry of the table of tensors; dimensions in the file's order.
fn tensor(name: &str, dims: &[u64], kind: u32, offset: u64) -> Vec<u8> {
    let dims_bytes: Vec<u8> = dims.iter().flat_map(|n| n.to_le_bytes()).collect();
    [
        text(name),
        (dims.len() as u32).to_le_bytes().to_vec(),
        dims_bytes,
        kind.to_le_bytes().to_vec(),
        offset.to_le_bytes().to_vec(),
    ]
    .concat()
}

fn read(bytes: &[u8]) -> Result<GgufFile, Error> {
    GgufFile::from_content(Path::new("x.gguf"), Box::new(bytes.to_vec()))
}

#[track_caller]
fn refused(bytes: &[u8], words: &str) {
    let told = read(bytes).unwrap_err().to_string();
    assert!(told.starts_with("x.gguf: ") && told.contains(words), "`{words}` is not in: {told}");
}

#[test]
fn what_a_header_promises_must_be_there() {
    refused(b"", "does not begin with `GGUF`");
    refused(b"GGML\x03\0\0\0", "does not begin with `GGUF`");
    refused(&header(1, 0, 0, &[]), "GGUF version 1 is not supported");
    refused(&header(3_u32.swap_bytes(), 0, 0, &[]), "big-endian");
    refused(&header(3, 0, 0, &[])[..20], "truncated");
    refused(&header(3, u64::MAX, 0, &[]), "the number of tensors: 18446744073709551615 do not fit into the");
    refused(&header(3, 0, 1 << 40, &[0; 100]), "the number of metadata values: 1099511627776 do not fit");
    refused(&header(3, 0, 1, &[&text("k")[..], &[99, 0, 0, 0, 0]].concat()), "field `k`: type 99");
    refused(&header(3, 0, 1, &[&u64::MAX.to_le_bytes()[..], &[0; 20]].concat()), "needs 18446744073709551615 bytes");
    refused(
        &header(3, 0, 1, &[&text("k")[..], &8_u32.to_le_bytes(), &(1_u64 << 50).to_le_bytes()].concat()),
        "k at byte",
    );
    let list = |element: u32, n: u64| {
        [&text("k")[..], &9_u32.to_le_bytes(), &element.to_le_bytes(), &n.to_le_bytes(), &[0; 8]].concat()
    };
    refused(&header(3, 0, 1, &list(8, u64::MAX)), "k: 18446744073709551615 do not fit");
    refused(&header(3, 0, 1, &list(4, 3)), "k: 3 do not fit into the 8 bytes");
    refused(&header(3, 0, 1, &list(9, 1)), "a list of type 9 is not supported");
    refused(
        &header(3, 0, 1, &[&text("k")[..], &7_u32.to_le_bytes(), &[2]].concat()),
        "2 is neither true (1) nor false (0)",
    );
    let number = |key: &str, n: u32| [&text(key)[..], &4_u32.to_le_bytes(), &n.to_le_bytes()].concat();
    refused(&header(3, 0, 2, &[number("k", 1), number("k", 1)].concat()), "field `k`: is there twice");
    refused(&header(3, 0, 1, &number("general.alignment", 24)), "expected a power of two");
    refused(&header(3, 0, 1, &number("general.alignment", 0)), "expected a power of two");
    refused(&header(3, 0, 1, &number("split.count", 3)), "3 files hold this model");
    let latin = [&1_u64.to_le_bytes()[..], &[0xe4], &4_u32.to_le_bytes(), &[0; 4]].concat();
    refused(&header(3, 0, 1, &latin), "a metadata key: incomplete utf-8");
    assert!(read(&header(2, 0, 1, &number("k", 1))).is_ok(), "version 2 is read");
}

#[test]
fn tensors_must_be_in_the_file() {
    let table = |entries: &[Vec<u8>], n_data: usize| {
        let mut bytes = header(3, entries.len() as u64, 0, &entries.concat());
        bytes.resize(bytes.len().next_multiple_of(32) + n_data, 0);
        bytes
    };
    let one = |entry: Vec<u8>| table(&[entry], 64);
    assert!(read(&one(tensor("t", &[16], 0, 0))).is_ok());
    refused(&one(tensor("t", &[17], 0, 0)), "tensor `t`: truncated file: 68 bytes at offset 0");
    refused(&one(tensor("t", &[8], 0, 64)), "tensor `t`: truncated file: 32 bytes at offset 64");
    refused(&one(tensor("t", &[8], 0, u64::MAX - 31)), "tensor `t`: truncated file");
    refused(&one(tensor("t", &[8], 0, 8)), "tensor `t`: its offset 8 is no multiple of the alignment 32");
    refused(&one(tensor("t", &[1 << 32, 1 << 32], 0, 0)), "overflow");
    refused(&one(tensor("t", &[1 << 62], 0, 0)), "overflow");
    refused(&one(tensor("t", &[u64::MAX, 2, 3], 0, 0)), "overflow");
    refused(&one(tensor("t", &[0], 0, 0)), "tensor `t`: has a dimension of 0");
    refused(&one(tensor("t", &[], 0, 0)), "tensor `t`: has 0 dimensions");
    refused(&one(tensor("t", &[1; 5], 0, 0)), "tensor `t`: has 5 dimensions");
    refused(&one(tensor("t", &[8], 10, 0)), "tensor `t`: type 10 (Q2_K) is not supported (F32,");
    refused(
        &one(tensor("t", &[33], 8, 0)),
        "tensor `t`: has rows of 33, which is no multiple of the 32 of Q8_0's blocks",
    );
    refused(&table(&[tensor("t", &[8], 0, 0), tensor("t", &[8], 0, 32)], 64), "tensor `t`: is there twice");
    refused(&table(&[tensor("t", &[16], 0, 0), tensor("u", &[8], 0, 32)], 64), "tensor `u`: overlaps tensor `t`");
}

/// Reads everything that a model's user would read.
fn read_all(bytes: Vec<u8>, dir: &Path) -> Result<(), Error> {
    let path = dir.join("y.gguf");
    fs::write(&path, bytes).unwrap();
    let model = OpenModel::open(path.to_str().unwrap(), BaseDtype::Auto)?;
    model.description.tensors().iter().try_for_each(|spec| model.checkpoint.values(spec).map(drop))
}

#[test]
fn truncated_and_changed_files_give_errors_and_never_panic() {
    let dir = tempfile::tempdir().unwrap();
    let folder = tiny_model("llama", dir.path());
    let file = exported(&open(&folder), &folder, GgufWeightType::Q8_0, dir.path());
    let whole = fs::read(&file).unwrap();
    let out = file.parent().unwrap();
    assert!(read_all(whole.clone(), out).is_ok());
    let data = GgufFile::open(&file).unwrap().tensors[0].start as usize;
    let lengths = (0..data).step_by(37).chain((data..whole.len()).step_by(4001)).chain([whole.len() - 40]);
    for length in lengths {
        let told = read_all(whole[..length].to_vec(), out).expect_err("a truncated file").to_string();
        assert!(told.contains("y.gguf"), "{length}: {told}");
    }
    // Every byte of the header, changed in turn to a large and to a small number.
    let (mut read, mut refused) = (0, 0);
    for at in (0..data).step_by(7) {
        for value in [0xff, 0x00, whole[at] ^ 1] {
            let mut changed = whole.clone();
            changed[at] = value;
            match read_all(changed, out) {
                Ok(()) => read += 1,
                Err(error) => {
                    assert!(error.to_string().contains("y.gguf"), "byte {at}: {error}");
                    refused += 1;
                }
            }
        }
    }
    assert!(read > 20 && refused > 100, "{read} {refused}");
}

#[test]
fn settings_that_are_not_known_are_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let folder = tiny_model("llama", dir.path());
    let path = exported(&open(&folder), &folder, GgufWeightType::F16, dir.path());
    let file = GgufFile::open(&path).unwrap();
    let told = |change: &dyn Fn(&mut BTreeMap<String, MetaValue>), drop_tensor: &str, rename: (&str, &str)| {
        let mut metadata: BTreeMap<String, MetaValue> = file.metadata.entries().into_iter().collect();
        change(&mut metadata);
        let kept: Vec<_> = file.tensors.iter().filter(|tensor| tensor.name != drop_tensor).collect();
        let to_write = |t: &&jointwise::model::gguf::GgufTensor| {
            let name = if t.name == rename.0 { rename.1.into() } else { t.name.clone() };
            GgufTensorToWrite { name, shape: t.shape.clone(), kind: t.kind }
        };
        let tensors: Vec<GgufTensorToWrite> = kept.iter().map(to_write).collect();
        let metadata: Vec<(String, MetaValue)> = metadata.into_iter().collect();
        let out = path.with_file_name("changed.gguf");
        write_gguf(&out, &metadata, &tensors, &mut |i| file.values(kept[i])).unwrap();
        let read =
            GgufModel::open(&out).and_then(|_| OpenModel::open(out.to_str().unwrap(), BaseDtype::Auto).map(drop));
        read.err().map(|error| error.to_string()).unwrap_or_default()
    };
    let number = |key: &'static str, n: u32| {
        move |all: &mut BTreeMap<String, MetaValue>| drop(all.insert(key.into(), MetaValue::U32(n)))
    };
    let words = |key: &'static str, text: &'static str| {
        move |all: &mut BTreeMap<String, MetaValue>| drop(all.insert(key.into(), MetaValue::Text(text.into())))
    };
    let none = ("", "");
    let check = |told: String, parts: &[&str]| {
        assert!(told.contains("changed.gguf"), "{told}");
        parts.iter().for_each(|part| assert!(told.contains(part), "`{part}` is not in: {told}"));
    };
    assert_eq!(told(&|_| {}, "", none), "");
    assert_eq!(told(&number("llama.expert_count", 0), "", none), "");
    check(told(&number("llama.expert_count", 8), "", none), &["field `llama.expert_count`: is not supported"]);
    check(
        told(&words("general.architecture", "mamba"), "", none),
        &["`mamba` is not supported (llama, qwen2, qwen3, gemma3 are)"],
    );
    check(told(&words("general.type", "adapter"), "", none), &["expected `model`, found `adapter`"]);
    check(
        told(&words("llama.rope.scaling.type", "longrope"), "rope_freqs.weight", none),
        &["`longrope` is not supported"],
    );
    check(told(&number("llama.block_count", 3), "", none), &["model.layers.2.input_layernorm.weight", "is missing"]);
    check(told(&number("llama.attention.head_count", 0), "", none), &["field `llama.attention.head_count`: expected"]);
    check(told(&number("llama.attention.head_count_kv", 3), "", none), &["num_key_value_heads"]);
    check(told(&number("llama.rope.dimension_count", 8), "", none), &["8 is not supported beside heads of 16"]);
    check(told(&number("llama.vocab_size", 9), "", none), &["9, but token_embd.weight has 384 rows"]);
    check(
        told(&words("llama.block_count", "x"), "", none),
        &["field `llama.block_count`: expected a whole number, found `x`"],
    );
    check(told(&|_| {}, "token_embd.weight", none), &["tensor `token_embd.weight`: is missing"]);
    check(told(&|_| {}, "blk.1.ffn_up.weight", none), &["tensor `model.layers.1.mlp.up_proj.weight`: is missing"]);
    check(
        told(&|_| {}, "", ("blk.1.ffn_up.weight", "blk.1.ffn_up_exps.weight")),
        &["tensor `blk.1.ffn_up_exps.weight`: is not a tensor"],
    );
    let theta =
        |all: &mut BTreeMap<String, MetaValue>| drop(all.insert("llama.rope.freq_base".into(), MetaValue::F32(123.0)));
    check(told(&theta, "", none), &["tensor `rope_freqs.weight`: is not the rotary table of Llama 3.1"]);
}
