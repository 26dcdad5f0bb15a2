#!/usr/bin/env python3
"""Writes sequences.json: what TRL's own trainers make of rows of texts and conversations, by tokenizers whose post-processors differ. Needs trl 1.16 and
transformers 5.24. No model is loaded: the trainers' preparation of a data set runs alone.

    python make.py > sequences.json
"""
import json, os, shutil, sys, tempfile
from pathlib import Path
from types import SimpleNamespace

os.environ["HF_HUB_OFFLINE"] = "1"
import datasets, transformers, trl
from datasets import Dataset
from transformers import AutoTokenizer
from trl import DPOTrainer, SFTTrainer
from trl.trainer.dpo_trainer import DataCollatorForPreference

datasets.disable_progress_bars()
transformers.logging.set_verbosity_error()
ROOT = Path(__file__).resolve().parents[3]

# Ends of prompts and beginnings of responses that byte-pair encoding joins, or not; letters that are more than a byte; texts that end in an EOS.
PROMPTS = ["Name a river.", "Q: Why is the sky blue?\nA: ", "  leading blanks", "déjà vu", "数学は好きですか", "12 + 30 =", "def f(x):\n    return",
           "Tell me a story ", "End with a newline\n", "emoji 🦀 here", "A", "The quick brown fox jumps over the lazy dog. " * 4]
ANSWERS = [("The Rhine.", "A lake."), (" It scatters.", "Paint"), ("\n\nfirst line", "\tindented"), ("s", "ly"), ("はい、好きです。", "いいえ"),
           ("42", " 42 "), ("  two blanks", "e"), ("Once upon a time there was a fox.\n", "No."), ("🦀🦀", "é"), ("'s end", "x" * 40)]


def template(*parts):
    special = [p for p in parts if p != "A"]
    ids = lambda t, tokens: {s: {"id": s, "ids": [t.convert_tokens_to_ids(s)], "tokens": [s]} for s in tokens}
    piece = lambda p: {"Sequence": {"id": "A", "type_id": 0}} if p == "A" else {"SpecialToken": {"id": p, "type_id": 0}}
    return lambda t: {"type": "TemplateProcessing", "single": [piece(p) for p in parts],
                      "pair": [piece(p) for p in parts] + [{"Sequence": {"id": "B", "type_id": 1}}], "special_tokens": ids(t, special)}


BYTES = lambda t: {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
then = lambda *steps: lambda t: {"type": "Sequence", "processors": [step(t) for step in steps]}
SAME = object()
CUT = 24  # --max-length, with --on-overflow truncate-response
BOS = template("<|bos|>", "A")
FOLDERS = [
    ("tests/data/bpe512", SAME, {}),
    ("tests/data/bpe512", BYTES, {"add_bos_token": True}),
    ("tests/data/bpe512", BOS, {}),
    ("tests/data/bpe512", BOS, {"add_bos_token": False}),
    ("tests/data/bpe512", then(BYTES, BOS), {}),
    ("tests/data/bpe512", template("<|eos|>", "<|bos|>", "A"), {}),
    ("tests/data/bpe512", BOS, {"tokenizer_class": "LlamaTokenizer"}),
    ("tests/data/bpe512", BOS, {"tokenizer_class": "GPT2Tokenizer"}),
    ("tests/data/bpe512", BOS, {"tokenizer_class": "GPTNeoXTokenizer"}),
    ("tests/data/bpe512", SAME, {"tokenizer_class": "GPT2Tokenizer", "add_bos_token": True}),
    ("tests/data/bpe512", template("<|bos|>", "A", "<|eos|>"), {}),
    ("models/demo", SAME, {}),
    ("tests/oracle/llama3-scaling/model", SAME, {}),
    ("tests/oracle/gemma3/model", SAME, {}),
    ("tests/oracle/qwen3/model", SAME, {}),
]


def before(tokenizer):
    """What the tokenizer puts before a text."""
    text = tokenizer("a", add_special_tokens=False)["input_ids"]
    ids = tokenizer("a")["input_ids"]
    return ids[: next(i for i in range(len(ids)) if ids[i:][: len(text)] == text)]


def dpo(tokenizer, rows, max_length=None):
    args = SimpleNamespace(dataset_num_proc=None, max_length=max_length, truncation_mode="keep_start")
    trainer = SimpleNamespace(_tokenizer=tokenizer)
    collate = DataCollatorForPreference(pad_token_id=0, max_length=max_length, truncation_mode="keep_start")
    for row in DPOTrainer._prepare_dataset(trainer, Dataset.from_list(rows), tokenizer, args, "train"):
        batch = collate([row])
        sides = zip(batch["input_ids"].tolist(), batch["attention_mask"].tolist(), batch["completion_mask"].tolist())
        yield [[(mask + [1]).index(1), ids[: sum(attended)]] for ids, attended, mask in sides]


def sft(tokenizer, rows, max_length=None):
    args = SimpleNamespace(dataset_num_proc=None, max_length=max_length, truncation_mode="keep_start", dataset_text_field="text", assistant_only_loss=False, shuffle_dataset=False)
    trainer = SimpleNamespace(_tokenizer=tokenizer, chat_template=None, completion_only_loss=True)
    for row in SFTTrainer._prepare_dataset(trainer, Dataset.from_list(rows), tokenizer, args, False, None, "train"):
        n = next(i for i, label in enumerate(row["labels"]) if label != -100)
        assert all(label != -100 for label in row["labels"][n:])
        yield [[n, row["input_ids"]]]


texts = [{"prompt": p, "chosen": c, "rejected": r} for i, p in enumerate(PROMPTS) for c, r in (ANSWERS[i % 10], ANSWERS[(3 * i + 1) % 10])]
said = lambda role, text: [{"role": role, "content": text}]
chats = [{"prompt": said("system", "Be brief.") * (i % 3 == 0) + said("user", t["prompt"]), "chosen": said("assistant", t["chosen"]),
          "rejected": said("assistant", t["rejected"])} for i, t in enumerate(texts)]
whole = [{"text": t["prompt"] + t["chosen"]} for t in texts[::3]]
completions = [{"prompt": t["prompt"], "completion": t["chosen"]} for t in texts[::3]]
cases = []
for folder, processor, config in FOLDERS:
    with tempfile.TemporaryDirectory() as place:
        for file in (ROOT / folder).glob("*.json"):
            if file.name != "cases.json" and file.name != "model.safetensors.index.json":
                shutil.copy(file, place)
        for file in (ROOT / folder).glob("*.jinja"):
            shutil.copy(file, place)
        plain = AutoTokenizer.from_pretrained(place)
        path = Path(place)
        inner = json.loads((path / "tokenizer.json").read_text())
        if processor is not SAME:
            inner["post_processor"] = processor(plain)
            (path / "tokenizer.json").write_text(json.dumps(inner))
        settings = json.loads((path / "tokenizer_config.json").read_text())
        (path / "tokenizer_config.json").write_text(json.dumps({**settings, **config}))
        tokenizer = AutoTokenizer.from_pretrained(place)
        # Where the post-processor alone is another, a few rows show it.
        is_all = processor in (SAME, BOS) and not config
        # Of a tokenizer that puts EOS behind a text, too, what it puts before one alone: TRL has EOS twice there.
        ends = tokenizer("a")["input_ids"][-1] == tokenizer.eos_token_id
        forms = {} if ends else {"texts": list(dpo(tokenizer, texts if is_all else texts[:4]))}
        if is_all:
            forms |= {"whole": list(sft(tokenizer, whole)), "completions": list(sft(tokenizer, completions))}
            if tokenizer.chat_template and "gemma" not in folder:
                forms["chats"] = list(dpo(tokenizer, chats))
        if not cases:
            forms |= {"cut texts": list(dpo(tokenizer, texts, CUT)), "cut completions": list(sft(tokenizer, completions, CUT))}
        case = {"folder": folder, "config": config, "post_processor": inner.get("post_processor") if processor is not SAME else "same",
                "before": before(tokenizer), "forms": forms}
        cases.append(case)
rows = {"texts": texts, "chats": chats, "whole": whole, "completions": completions}
json.dump({"trl": trl.__version__, "transformers": transformers.__version__, "rows": rows, "cases": cases}, sys.stdout, ensure_ascii=False, separators=(",", ":"))
