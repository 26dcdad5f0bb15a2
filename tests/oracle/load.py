#!/usr/bin/env python3
"""Loads what the program writes with transformers and PEFT: an adapter on all linear layers, the same adapter merged, and a model trained whole.
Their token log-probs must be the program's own; no tensor may be missing or unknown, and no module of a vision tower may get an adapter.

usage: load.py PROGRAM FAMILY_FOLDER ...        needs torch, transformers 5, peft (not part of CI)"""
import json, subprocess, sys, tempfile
from pathlib import Path

import torch
from peft import PeftModel
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText


def run(*args):
    done = subprocess.run([sys.argv[1], *map(str, args)], capture_output=True, text=True)
    assert done.returncode == 0, (args, done.stderr[-600:])


def logps(model, ids):
    with torch.no_grad():
        found = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0].log_softmax(-1)
    return [found[i, ids[i + 1]].item() for i in range(len(ids) - 1)]


def check(family, out):
    initial, rows = family / "model", family / "prefs.jsonl"
    common = ["--model", initial, "--data", rows, "--max-steps", 4, "--learning-rate", "2e-2", "--warmup-steps", 0, "--batch-size", 2, "--output-dir"]
    run("train", *common, out / "lora", "--lora-targets", "all-linear")
    run("train", *common, out / "full", "--full")
    run("merge", "--model", initial, "--adapter", out / "lora", "--output-dir", out / "merged")
    wrapped = hasattr(AutoConfig.from_pretrained(initial), "text_config")
    auto = AutoModelForImageTextToText if wrapped else AutoModelForCausalLM
    for name in ("lora", "merged", "full"):
        place, of_program = (initial, ["--adapter", out / "lora"]) if name == "lora" else (out / name, [])
        model, info = auto.from_pretrained(place, dtype=torch.float32, attn_implementation="eager", output_loading_info=True)
        assert not info["missing_keys"] and not info["unexpected_keys"], info
        if name == "lora":
            model = PeftModel.from_pretrained(model, out / "lora")
            adapters = [k for k, _ in model.named_parameters() if ".lora_" in k]
            assert adapters and not [k for k in adapters if "vision" in k], adapters
        run("score", "--model", place, *of_program, "--data", rows, "--tokens", "--out", out / "scores.jsonl")
        found = [json.loads(line) for line in open(out / "scores.jsonl")]
        sides = [row[side] for row in found if row.get("row", 99) < 6 for side in ("chosen", "rejected")]
        model.eval()
        worst = max(abs(a - b) for s in sides for a, b in zip(logps(model, s["ids"]), s["token_logps"][1:]))
        assert worst < 1e-4, worst
        print(f"{family.name} {name}: token log-probs differ by at most {worst:.1e}", flush=True)


for folder in sys.argv[2:]:
    with tempfile.TemporaryDirectory() as out:
        check(Path(folder), Path(out))
