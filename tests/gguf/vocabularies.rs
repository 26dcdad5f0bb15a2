//! Vocabularies that llama.cpp tests its own tokenizers with.

use super::*;
use jointwise::model::gguf::{PROBE, tokens};

/// Reads the files `models/ggml-vocab-NAME.gguf` of llama.cpp, in the folder `JOINTWISE_GGUF_VOCABS`, with their texts (`.inp`) and ids (`.out`).
#[test]
#[ignore = "needs files of llama.cpp: the source of the PyPI package llama-cpp-python has them, in vendor/llama.cpp/models"]
fn vocabularies_of_llama_cpp() {
    let folder = PathBuf::from(std::env::var("JOINTWISE_GGUF_VOCABS").unwrap());
    for name in ["llama-bpe", "qwen2"] {
        let path = folder.join(format!("ggml-vocab-{name}.gguf"));
        let file = GgufFile::open(&path).unwrap();
        let read = read_tokenizer(&file.metadata).unwrap();
        let files = read.files.iter().map(|(name, text)| (name.as_str(), text.as_bytes()));
        let tokenizer = Tokenizer::from_side_files(&SideFiles::from_contents(&path, files)).unwrap();
        let ids = [tokenizer.start_ids(), &tokenizer.encode_text(PROBE).unwrap()].concat();
        assert_eq!(PreTokenizer::of_probe(&ids).unwrap().name, name, "SHA-256 of the ids of the probe text");
        let texts = fs::read_to_string(path.with_extension("gguf.inp")).unwrap();
        let expected = fs::read_to_string(path.with_extension("gguf.out")).unwrap();
        let texts: Vec<&str> = texts.split("\n__ggml_vocab_test__\n").collect();
        let expected: Vec<Vec<u32>> =
            expected.lines().map(|line| line.split_whitespace().map(|id| id.parse().unwrap()).collect()).collect();
        let n = expected.len();
        assert!(n > 40 && texts.len() >= n, "{} texts, {n} lists of ids", texts.len());
        for (text, expected) in texts.iter().zip(&expected) {
            assert_eq!(tokenizer.encode_text(text).unwrap(), *expected, "{name}: {text:?}");
        }
        println!("{name}: {n} texts, {} tokens", tokens(&file.metadata).unwrap().len());
    }
}
