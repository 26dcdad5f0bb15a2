#!/usr/bin/env python3
"""The program against PyTorch's float64 answers of tests/oracle, with Python's standard library alone: a table in Markdown.

usage: parity.py PROGRAM FIXTURES FAMILY... [--precision highest|high|medium]
The exit status is 1 where a check fails. `../shared/tools/parity.py` checks more, and needs numpy."""
import array, json, math, struct, subprocess, sys, tempfile
from pathlib import Path

# Largest errors: of a sequence's log-probability (relative), a token's (absolute), a loss (relative), gradients (relative L2), a step's loss and norm.
ALLOWED = {"sequence": 5e-6, "token": 1e-4, "loss": 3e-4, "gradient": 3e-4, "step": 1e-3}
# One f16 product per f32 product: as tests/oracle.rs gates `medium`.
ALLOWED_MEDIUM = {"sequence": 1e-3, "token": 5e-2, "loss": 1e-2, "gradient": 1e-2, "step": 1e-2}


def read(path):
    """Tensors of a safetensors file: (shape, values)."""
    raw = path.read_bytes()
    start = 8 + int.from_bytes(raw[:8], "little")
    tensors = {}
    for name, about in json.loads(raw[8:start]).items():
        if name == "__metadata__":
            continue
        data = raw[start + about["data_offsets"][0]:start + about["data_offsets"][1]]
        kind = about["dtype"]
        if kind == "BF16":
            words = array.array("H", data)
            values = array.array("f", b"".join(struct.pack("<I", w << 16) for w in words))
        elif kind == "F16":
            values = array.array("f", struct.unpack(f"<{len(data) // 2}e", data))
        else:
            values = array.array({"F32": "f", "F64": "d", "I32": "i", "I64": "q"}[kind], data)
        tensors[name] = (about["shape"], values)
    return tensors


def write(path, tensors):
    """All in float32."""
    head, data = {"__metadata__": {"format": "pt"}}, b""
    for name, (shape, values) in tensors.items():
        piece = array.array("f", values).tobytes()
        head[name] = {"dtype": "F32", "shape": shape, "data_offsets": [len(data), len(data) + len(piece)]}
        data += piece
    text = json.dumps(head).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)


def relative_l2(got, want):
    norm = lambda values: math.sqrt(sum(v * v for v in values))
    return norm(g - w for g, w in zip(got, want)) / max(norm(want), 1e-30)


class Family:
    def __init__(self, program, folder, precision, out):
        self.program, self.folder, self.out = program, folder, out
        self.precision = ["--matmul-precision", precision] if precision != "highest" else []
        self.allowed = ALLOWED_MEDIUM if precision == "medium" else ALLOWED
        self.name = f"{folder.name}, {precision}"
        self.expected = read(folder / "expected.safetensors")
        self.about = json.loads((folder / "expected.json").read_text())
        self.rows, self.failed = [], 0

    def run(self, *arguments):
        done = subprocess.run([self.program, *map(str, arguments), *self.precision], capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"{arguments[0]}: {(done.stderr.strip().splitlines() or ['no message'])[-1]}")

    def check(self, what, error, kind):
        passed = error <= self.allowed[kind]  # False for NaN
        self.failed += not passed
        self.rows.append(f"| {self.name} | {what} | {error:.2e} | {self.allowed[kind]:.0e} | {'yes' if passed else '**NO**'} |")

    def policy(self):
        """The initial weights plus the fixture's delta, in float32."""
        model, weights = self.out / "policy", {}
        model.mkdir()
        for file in (self.folder / "model").iterdir():
            if file.suffix == ".safetensors":
                weights.update(read(file))
            elif not file.name.endswith(".index.json"):
                (model / file.name).write_bytes(file.read_bytes())
        delta = read(self.folder / "delta.safetensors")
        moved = {n: (s, array.array("f", (a + b for a, b in zip(v, delta[n][1])))) if n in delta else (s, v) for n, (s, v) in weights.items()}
        write(model / "model.safetensors", moved)
        return model

    def chosen_rows(self, numbers, name):
        lines = (self.folder / "prefs.jsonl").read_text().splitlines()
        path = self.out / name
        path.write_text("".join(lines[i] + "\n" for i in numbers))
        return path

    def all_checks(self):
        policy = self.policy()
        common = ["--model", policy, "--reference", self.folder / "model", "--objective", "jpo", "--beta", "0.1"]
        scores = self.out / "scores.jsonl"
        self.run("score", *common, "--data", self.folder / "prefs.jsonl", "--tokens", "--out", scores)
        sides = [row[side] for row in map(json.loads, scores.open()) if "row" in row for side in ("chosen", "rejected")]
        want = self.expected["policy/seq_logps_joint"][1]
        self.check("log-probabilities of sequences", max(abs(s["logp"] - w) / abs(w) for s, w in zip(sides, want)), "sequence")
        (_, width), tokens = self.expected["policy/token_logps"]
        errors = [abs(logp - tokens[i * width + t]) for i, s in enumerate(sides) for t, logp in enumerate(s["token_logps"][1:])]
        self.check("log-probabilities of tokens", max(errors), "token")

        batch = self.chosen_rows(self.about["batch_rows"], "batch.jsonl")
        for loss in ("sigmoid", "ipo"):
            self.run("score", *common, "--data", batch, "--loss", loss, "--out", scores)
            [summary] = [row["summary"] for row in map(json.loads, scores.open()) if "summary" in row]
            want = self.about["scalars"][f"loss/joint/{loss}"]["f64"]
            self.check(f"loss `{loss}`", abs(summary["loss"] - want) / abs(want), "loss")
        self.run("grad", *common, "--data", batch, "--out", self.out / "grad.safetensors")
        got, norm = read(self.out / "grad.safetensors"), self.about["scalars"]["grad_jpo/norm"]["f64"]
        worst = 0.0
        for name, (_, want) in self.expected.items():
            # Gradients of almost nothing are left out: their relative error says nothing.
            if name.startswith("grad_jpo/") and math.sqrt(sum(w * w for w in want)) > 1e-3 * norm:
                worst = max(worst, relative_l2(got[name.removeprefix("grad_jpo/")][1], want))
        self.check("gradients, the worst tensor", worst, "gradient")

        steps = self.about["train_rows"]
        data = self.chosen_rows([i for step in steps for i in step], "train.jsonl")
        self.run("train", *common, "--data", data, "--full", "--learning-rate", "1e-3", "--weight-decay", "0.05", "--decay-all", "--max-grad-norm", "1.0",
                 "--lr-scheduler-type", "cosine", "--warmup-steps", "2", "--max-steps", "10", "--batch-size", len(steps[0]), "--no-shuffle",
                 "--output-dtype", "f32", "--output-dir", self.out / "trained")
        lines = [json.loads(line) for line in (self.out / "trained" / "metrics.jsonl").open()]
        lines = [line for line in lines if "loss" in line and "step" in line]
        want = {key: self.about["scalars"][f"train/{key}"]["f64"] for key in ("loss", "grad_norm")}
        if len(lines) != len(want["loss"]):
            raise RuntimeError(f"train: {len(lines)} steps")
        self.check("losses of ten AdamW steps", max(abs(l["loss"] - w) for l, w in zip(lines, want["loss"])), "step")
        self.check("gradients' norms of the steps", max(abs(l["grad_norm"] - w) / w for l, w in zip(lines, want["grad_norm"])), "step")


def main():
    arguments = sys.argv[1:]
    precision = "highest"
    if "--precision" in arguments:
        at = arguments.index("--precision")
        precision = arguments[at + 1]
        del arguments[at:at + 2]
    program, fixtures, *families = arguments
    failed = 0
    print("| family, precision | check | largest error | allowed | passed |\n|---|---|---|---|---|")
    for name in families:
        with tempfile.TemporaryDirectory() as out:
            family = Family(program, Path(fixtures) / name, precision, Path(out))
            try:
                family.all_checks()
            except Exception as error:  # A crash is a failure of this family, with its reason.
                family.failed += 1
                family.rows.append(f"| {family.name} | {str(error).replace('|', '/')} | | | **NO** |")
            print(*family.rows, sep="\n", flush=True)
            failed += family.failed
    sys.exit(1 if failed else 0)


main()
