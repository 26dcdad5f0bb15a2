#!/usr/bin/env python3
"""Writes cases.json: folders with special tokens named here and there, and what AutoTokenizer makes of them. Needs transformers 5.24, no torch.

    python make.py > cases.json
"""
import json, os, sys, tempfile

os.environ["HF_HUB_OFFLINE"] = "1"
import transformers
from transformers import AutoTokenizer

transformers.logging.set_verbosity_error()
LETTERS = [chr(c) for c in range(ord("a"), ord("z") + 1)] + ["Ġ", "<|named|>"]
SPECIALS = ["<s>", "</s>", "<unk>", "<bos>", "<eos>", "<pad>", "<|endoftext|>", "<|other|>", "<BOS_TOKEN>", "<|END_OF_TURN_TOKEN|>"]


def added(token, **more):
    return {"content": token, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True, **more}


def tokenizer(byte_level=True):
    """Letters, a special token that is in the vocabulary and not listed, and listed ones behind it."""
    meta = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "never", "split": False}
    byte = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    step = byte if byte_level else meta
    vocab = {letter: i for i, letter in enumerate(LETTERS)}
    model = {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None, "end_of_word_suffix": None,
             "fuse_unk": False, "byte_fallback": False, "ignore_merges": False, "vocab": vocab, "merges": []}
    listed = [{"id": len(LETTERS) + i, **added(token)} for i, token in enumerate(SPECIALS)]
    return {"version": "1.0", "truncation": None, "padding": None, "added_tokens": listed, "normalizer": None, "pre_tokenizer": step,
            "post_processor": None, "decoder": step, "model": model}


CASES = []


def case(name, config=None, map=None, more=None, model=None, texts=(), byte_level=True):
    files = {"tokenizer_config.json": config or {}, "special_tokens_map.json": map, "added_tokens.json": more, "config.json": model or {"model_type": "llama"}}
    with tempfile.TemporaryDirectory() as folder:
        for file, content in {**files, "tokenizer.json": tokenizer(byte_level)}.items():
            if content is not None:
                json.dump(content, open(f"{folder}/{file}", "w"))
        t = AutoTokenizer.from_pretrained(folder)
        encode = lambda text: t.encode(text, add_special_tokens=False)
        CASES.append({"name": name, "byte_level": byte_level, "files": {k: v for k, v in files.items() if v is not None}, "class": type(t).__name__,
                      "bos": t.bos_token_id, "eos": t.eos_token_id, "texts": [[text, encode(text)] for text in texts]})


for model in ["llama", "qwen2", "qwen3", "gemma2", "gemma3_text", "gpt2", "phi3", "mistral"]:
    case(f"no class, {model}", model={"model_type": model}, byte_level=not model.startswith("gemma"))
for name in ["GPT2Tokenizer", "GPT2TokenizerFast", "CodeGenTokenizerFast", "GPTNeoXTokenizerFast", "LlamaTokenizerFast", "CodeLlamaTokenizer",
             "GemmaTokenizerFast", "Qwen2TokenizerFast", "CohereTokenizerFast", "PreTrainedTokenizerFast", "TokenizersBackend"]:
    case(name, {"tokenizer_class": name}, byte_level=not name.startswith(("Llama", "CodeLlama", "Gemma")))
case("LlamaTokenizer of bytes", {"tokenizer_class": "LlamaTokenizer"})
case("the class in config.json", model={"model_type": "llama", "tokenizer_class": "GPT2Tokenizer"})
case("another class of qwen2", {"tokenizer_class": "PreTrainedTokenizerFast"}, model={"model_type": "qwen2"})
case("null over a default", {"tokenizer_class": "GPT2Tokenizer", "bos_token": None, "eos_token": "</s>"})
case("named over a default", {"tokenizer_class": "GPT2Tokenizer", "bos_token": "<s>", "eos_token": {"__type": "AddedToken", **added("</s>")}})
case("the map alone", map={"bos_token": "<s>", "eos_token": added("</s>")})
case("the map over the configuration", {"eos_token": "<|other|>", "bos_token": "<s>"}, {"eos_token": "</s>"})
case("the map beside listed tokens is not read", {"added_tokens_decoder": {"28": added("<s>")}, "eos_token": "<|other|>"}, {"eos_token": "</s>", "bos_token": "<s>"})
case("a named token of the vocabulary is one token", {"eos_token": "<|named|>"}, texts=["ab<|named|>c"])
case("one that nothing names is letters", texts=["ab</s>c"])
case("listed in the configuration alone", {"eos_token": "<|im_end|>", "added_tokens_decoder": {"38": added("<|im_end|>"), "39": added("xy", special=False)}},
     texts=["ab<|im_end|>c", "axyb"])
case("listed in added_tokens.json alone", {"eos_token": "</s>"}, more={"<tool>": 39, "<|im_end|>": 38}, texts=["ab<|im_end|>c<tool>"])
case("a list of more special tokens", {"eos_token": "</s>", "additional_special_tokens": ["<|named|>"]}, texts=["a<|named|>b"])
case("tokens of a name of their own", {"eos_token": "</s>", "image_token": "<|named|>"}, texts=["a<|named|>b"])
json.dump({"transformers": transformers.__version__, "tokenizers": {"bytes": tokenizer(), "words": tokenizer(False)}, "cases": CASES}, sys.stdout, indent=1)
