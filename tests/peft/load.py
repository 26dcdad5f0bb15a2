#!/usr/bin/env python3
"""Loads adapters that the program writes with PEFT: layers, exclusions, rsLoRA, dropout, modules_to_save and single tokens, on a tied and an
untied model. Token log-probs must be the program's own, and no tensor may be missing or unknown.

usage: load.py PROGRAM [FAMILY ...]        needs torch, transformers, peft 0.21 (by hand, not part of CI)"""
import json, subprocess, sys, tempfile, warnings
from pathlib import Path

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

ORACLE = Path(__file__).resolve().parent.parent / "oracle"
TOKENS = ",".join(["e", "t"])
CASES = {
    "default": [],
    "layers": ["--lora-layers", "1", "--lora-exclude", "down_proj,k_proj"],
    "rslora": ["--rslora", "--lora-r", "4", "--preset", "paper"],
    "modules_to_save": ["--lora-targets", "q_proj", "--modules-to-save", "embed_tokens,lm_head"],
    "train_tokens": ["--lora-targets", "q_proj", "--train-tokens", TOKENS],
}


def run(*args):
    done = subprocess.run([sys.argv[1], *map(str, args)], capture_output=True, text=True)
    assert done.returncode == 0, (args, done.stderr[-600:])


def logps(model, ids):
    with torch.no_grad():
        found = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0].log_softmax(-1)
    return [found[i, ids[i + 1]].item() for i in range(len(ids) - 1)]


def check(family, name, flags, out):
    initial, rows = ORACLE / family / "model", ORACLE / family / "prefs.jsonl"
    common = ["--model", initial, "--max-steps", 4, "--learning-rate", "2e-2", "--batch-size", 2, "--output-dir", out / name]
    if name == "dropout":
        texts = out / "sft.jsonl"
        texts.write_text("\n".join(json.dumps(dict(instruction=r["i_chosen"], response=r["r_chosen"])) for r in map(json.loads, open(rows))))
        run("sft", *common, "--data", texts, *flags)
    else:
        run("train", *common, "--data", rows, *flags)
    run("score", "--model", initial, "--adapter", out / name, "--data", rows, "--tokens", "--out", out / "scores.jsonl")
    base = lambda: AutoModelForCausalLM.from_pretrained(initial, dtype=torch.float32, attn_implementation="eager").eval()
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*(missing|unexpected).*")  # of keys, when an adapter is loaded
        model = PeftModel.from_pretrained(base(), out / name).eval()
    found = [json.loads(line) for line in open(out / "scores.jsonl")]
    sides = [row[side] for row in found if row.get("row", 99) < 4 for side in ("chosen", "rejected")]
    worst = max(abs(a - b) for s in sides for a, b in zip(logps(model, s["ids"]), s["token_logps"][1:]))
    without = base()
    apart = max(abs(a - b) for s in sides for a, b in zip(logps(without, s["ids"]), s["token_logps"][1:]))
    assert worst < 1e-4 < 0.05 < apart, (worst, apart)
    print(f"{family} {name}: token log-probs differ by at most {worst:.1e} (without the adapter {apart:.1e})", flush=True)


for family in sys.argv[2:] or ("mistral-odd", "smollm3"):
    with tempfile.TemporaryDirectory() as out:
        for name, flags in {**CASES, "dropout": ["--lora-dropout", "0.2"]}.items():
            check(family, name, flags, Path(out))
