#!/usr/bin/env python3
"""Seconds from the program's start to its first step, on files of many pairs of which two steps visit four: `train --max-steps 2 --batch-size 2` of
the bundled model, an adapter and all parameters. Kernels are checked and compiled before; no score is kept.

usage: .ci/with-driver python3 benches/first_step.py target/release/jointwise [--rows 10000,100000] [--out FILE.md]"""
import argparse, json, os, random, re, subprocess, sys, tempfile, time
from pathlib import Path

MODEL = Path(__file__).resolve().parent.parent / "models/demo"
METHODS = {"LoRA": [], "LoRA, `--loss rpo`": ["--loss", "rpo"], "`--full`": ["--full"]}
WORDS = 12  # Of a prompt: about 90 tokens of the bundled model's, a pair about 230.


def pairs(path, n):
    """Pairs of a prompt of its own each, with two responses."""
    rng = random.Random(n)
    word = lambda: "".join(rng.choice("abcdefghijklmnopqrstuvwxyz") for _ in range(rng.randint(3, 7)))
    with open(path, "w") as file:
        for _ in range(n):
            words = [word() for _ in range(WORDS)]
            row = {"prompt": f"Sort these words: {' '.join(words)}.", "chosen": " ".join(sorted(words)[:4]),
                   "rejected": " ".join(words[:4])}
            file.write(json.dumps(row) + "\n")


def run(program, data, folder, name, more):
    """Seconds until rows are tokens, until the first step, and of all; peak resident MiB."""
    command = [program, "train", "--model", MODEL, "--data", data, "--preset", "paper", "--max-steps", "2", "--batch-size", "2",
               "--output-dir", folder / name, *more]
    env = dict(os.environ, XDG_CACHE_HOME=str(folder / "cache"))
    started, seen = time.monotonic(), {}
    process = subprocess.Popen([str(c) for c in command], stderr=subprocess.PIPE, text=True, env=env)
    peak = 0
    for line in process.stderr:
        for what, pattern in [("tokens", r"\d+ rows: "), ("step", r"step 1/")]:
            if re.match(pattern, line):
                seen.setdefault(what, time.monotonic() - started)
        try:
            status = Path(f"/proc/{process.pid}/status").read_text()
            peak = max(peak, *(int(kib) for kib in re.findall(r"VmHWM:\s*(\d+)", status)), 0)
        except OSError:
            pass
    if process.wait():
        sys.exit(f"{' '.join(map(str, command))}: status {process.returncode}")
    return seen["tokens"], seen["step"], time.monotonic() - started, peak / 1024


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("program", type=lambda path: str(Path(path).resolve()))
    parser.add_argument("--rows", default="10000,100000")
    parser.add_argument("--out")
    args = parser.parse_args()
    lines = ["| rows | method | rows are tokens, s | first step, s | between, s | second start, s | resident MiB |",
             "|---|---|---|---|---|---|---|"]
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        few = folder / "few.jsonl"
        pairs(few, 8)
        for i, more in enumerate(METHODS.values()):
            run(args.program, few, folder, f"warm-{i}", more)
        for n in map(int, args.rows.split(",")):
            data = folder / f"{n}.jsonl"
            pairs(data, n)
            for i, (method, more) in enumerate(METHODS.items()):
                tokens, step, _, peak = run(args.program, data, folder, f"{n}-{i}", more)
                again = run(args.program, data, folder, f"{n}-{i}-again", more)[1]
                lines.append(f"| {n:,} | {method} | {tokens:.1f} | {step:.1f} | {step - tokens:.1f} | {again:.1f} | {peak:.0f} |")
                print(lines[-1], file=sys.stderr, flush=True)
    text = "\n".join(lines) + "\n"
    if args.out:
        Path(args.out).write_text(text)
    print(text, end="")


if __name__ == "__main__":
    main()
