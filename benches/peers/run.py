#!/usr/bin/env python3
"""jointwise, Burn and PyTorch on one task (`task.py`), one after the other: losses compared step by step before any time is printed, then
one table. Each runs in a process of its own: two steps with empty caches of compiled and tuned kernels, then all steps with full ones.

usage: run.py JOINTWISE [--steps 4] [--peers jointwise,burn,torch] [--cuda] [--warm] [--out FILE.md]
needs torch, numpy and safetensors; --cuda also trl. `README.md` says more."""
import argparse, json, os, shlex, shutil, subprocess, sys, tempfile, threading, time
from pathlib import Path

import task

HERE = Path(__file__).resolve().parent
BURN = HERE / "burn"
TARGET = Path(os.environ.get("CARGO_TARGET_DIR", BURN / "target")).resolve()
THROUGH = shlex.split(os.environ.get("PEERS_THROUGH", ""))  # A loader of programs on wgpu, where the driver needs another libc: `.ci/with-mesa26`
TOLERANCE = {"f32": 1e-3, "bf16": 2e-2}  # of a loss, relative to PyTorch's
COLD_STEPS = 2  # Burn tunes in the second step too: only there has the optimiser a state


class Resident(threading.Thread):
    """The peak resident bytes of a process, as Linux counts them. Not by `wait4`: its maximum begins with that of this process."""

    def __init__(self, pid):
        super().__init__(daemon=True)
        self.status, self.peak = Path(f"/proc/{pid}/status"), 0
        self.start()

    def run(self):
        while True:
            try:
                [line] = [line for line in self.status.read_text().splitlines() if line.startswith("VmHWM")]
            except (OSError, ValueError):
                return
            self.peak = int(line.split()[1]) * 1024
            time.sleep(0.01)

    def peak_bytes(self):
        self.join()
        return self.peak


class Peer:
    """A program that takes the task. `steps` and `product` give its command; `measure` what it printed, as the others'."""

    precision = "f32"

    def __init__(self, key, command):
        self.key, self.command = key, command
        self.caches = TARGET / "peer-caches" / key

    def run(self, command):
        """Its last line as JSON, the wall time of the process, and its peak resident bytes."""
        self.caches.mkdir(parents=True, exist_ok=True)
        (self.caches / "cubecl.toml").write_text('[environment]\npath = "local"\n[compilation]\ncache = true\n')
        env = dict(os.environ, XDG_CACHE_HOME=str(self.caches), MESA_SHADER_CACHE_DIR=str(self.caches),
                   __GL_SHADER_DISK_CACHE_PATH=str(self.caches))
        command = [str(c) for c in command]
        started = time.time()
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=env, cwd=self.caches)
        resident = Resident(process.pid)
        out = process.stdout.read()
        process.wait()
        if process.returncode:
            sys.exit(f"{self.key}: exit status {process.returncode}: {shlex.join(command)}\n{out}")
        return out, time.time() - started, resident.peak_bytes()

    def steps(self, folder, _steps):
        out, wall, rss = self.run([*self.command, "steps", folder / "task.json"])
        return self.printed(out, wall, rss)

    def printed(self, out, wall, rss):
        found = json.loads(out.splitlines()[-1])
        self.device, self.version = found["device"], found.get("version")
        return {**found["measured"], "wall": wall, "rss": rss, "device_bytes": found.get("device_bytes")}

    def product(self):
        """Seconds."""
        return self.printed(*self.run([*self.command, "product", task.PRODUCT]))["seconds"]


class Jointwise(Peer):
    def __init__(self, binary, recompute):
        super().__init__(f"jointwise-{recompute}", [*THROUGH, binary])
        self.recompute = recompute
        info = json.loads(self.run([*self.command, "info", "--json"])[0])["device"]
        self.device, self.driver, self.on_cpu = info["name"], info["driver"], info["is_cpu"]
        self.name = f"jointwise {self.run([*self.command, '--version'])[0].split()[-1]}, recompute {recompute}"

    def steps(self, folder, steps):
        out = folder / "out"
        flag = {"learning_rate": "--learning-rate", "adam_beta1": "--adam-beta1", "adam_beta2": "--adam-beta2",
                "adam_epsilon": "--adam-epsilon", "weight_decay": "--weight-decay", "max_grad_norm": "--max-grad-norm"}
        command = [*self.command, "train", "--model", folder / "model", "--data", folder / "rows.jsonl", "--template", "none", "--full",
                   "--batch-size", task.PAIRS, "--max-steps", steps, "--no-shuffle", "--lr-scheduler-type", "constant",
                   "--beta", task.BETA, "--recompute", self.recompute, "--output-dir", out, "--json"]
        for key, value in task.OPTIMISER.items():
            command += [flag[key], value]
        printed, wall, rss = self.run(command)
        lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
        return {"losses": [l["loss"] for l in lines], "seconds": [l["seconds"] for l in lines], "wall": wall, "rss": rss,
                "device_bytes": json.loads(printed.splitlines()[-1])["peak_bytes"]}

    def product(self):
        n = task.PRODUCT
        out = self.run([*self.command, "bench", "--product", f"{n},{n},{n}", "--json"])[0]
        [case] = json.loads(out)["cases"]
        return case["us"] / 1e6


class Burn(Peer):
    def __init__(self, on_cpu):
        super().__init__("burn", [*THROUGH, TARGET / "release" / "peer-burn"])
        env = dict(os.environ, CARGO_TARGET_DIR=str(TARGET))
        # Burn's documentation takes SPIR-V for speed; on Mesa 25.0.7 its compiler crashes lavapipe.
        language = [] if on_cpu else ["--features", "spirv"]
        subprocess.run(["cargo", "build", "--release", "--locked", *language], cwd=BURN, env=env, check=True)
        lock = (BURN / "Cargo.lock").read_text().split("\n\n")
        [version] = [p.split('version = "')[1].split('"')[0] for p in lock if 'name = "burn"\n' in p]
        self.name = f"Burn {version}"


class Torch(Peer):
    def __init__(self, device):
        super().__init__(f"torch-{device}", [sys.executable, HERE / "torch_steps.py", device])

    @property
    def name(self):
        return f"PyTorch {self.version}"


class Trl(Peer):
    precision = "bf16"

    def __init__(self):
        super().__init__("trl", [sys.executable, HERE / "trl_steps.py", "cuda"])

    @property
    def name(self):
        return f"TRL {self.version}, bf16"

    def product(self):
        return None


def measure(peer, steps, warm):
    """Cold and warm steps, and the product."""
    note = lambda text: print(f"{peer.key}: {text}", file=sys.stderr, flush=True)
    cold = None
    if not warm:
        shutil.rmtree(peer.caches, ignore_errors=True)
        note(f"{COLD_STEPS} steps, caches empty")
        cold = in_folder(peer, COLD_STEPS)
    note(f"{steps} steps")
    return {"peer": peer, "cold": cold, "warm": in_folder(peer, steps), "product": (note("product"), peer.product())[1]}


def in_folder(peer, steps):
    with tempfile.TemporaryDirectory() as folder:
        task.write(Path(folder), steps)
        return peer.steps(Path(folder), steps)


def compare(results, reference):
    """Every loss of every run against PyTorch's."""
    expected = reference["warm"]["losses"]
    worst = {}
    for r in results:
        for run in filter(None, (r["cold"], r["warm"])):
            errors = [abs(a - b) / abs(b) for a, b in zip(run["losses"], expected)]
            whole = len(run["losses"]) in (COLD_STEPS, len(expected)) and len(run["losses"]) == len(run["seconds"])
            if not whole or not max(errors) <= TOLERANCE[r["peer"].precision]:
                sys.exit(f"{r['peer'].key}: losses differ by {max(errors):.2e} from PyTorch's (at most {TOLERANCE[r['peer'].precision]}): "
                         f"{run['losses']}, {expected}")
            worst[r["peer"].key] = max(worst.get(r["peer"].key, 0.0), *errors)
    return worst


def table(results, worst, load):
    cell = lambda seconds: "—" if seconds is None else f"{seconds:.2f} s"
    mib = lambda n: f"{n / 2**20:.0f} MiB"
    head = ["", "first step, caches empty", "run of 2 steps, caches empty", "first step, warm", "step (median of the others)", "tokens/s",
            "peak resident, warm (caches empty)", "device memory", f"f32 product {task.PRODUCT}³"]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    steps = ["| | losses | largest difference | seconds of each step |", "|---|---|---|---|"]
    for r in results:
        peer, cold, warm = r["peer"], r["cold"], r["warm"]
        later = sorted(warm["seconds"][1:])
        middle = later[len(later) // 2]
        rate = "—" if r["product"] is None else f"{1e3 * r['product']:.1f} ms, {2e-9 * task.PRODUCT ** 3 / r['product']:.1f} GFLOP/s"
        first = (cold["seconds"][0], cold["wall"]) if cold else (None, None)
        memory = mib(warm["device_bytes"]) if warm["device_bytes"] else "—"
        name = f"{peer.name}, {peer.device}"
        resident = mib(warm["rss"]) + (f" ({mib(cold['rss'])})" if cold else "")
        lines.append(f"| {name} | {cell(first[0])} | {cell(first[1])} | {cell(warm['seconds'][0])} | {middle:.3f} s | "
                     f"{task.TOKENS / middle:.0f} | {resident} | {memory} | {rate} |")
        listed = lambda numbers, digits: ", ".join(f"{x:.{digits}f}" for x in numbers)
        seconds = f"{listed(warm['seconds'], 2)}" + (f"; caches empty: {listed(cold['seconds'], 2)}" if cold else "")
        steps.append(f"| {name} | {listed(warm['losses'], 7)} | {worst[peer.key]:.1e} | {seconds} |")
    return (f"{task.TITLE}; {os.cpu_count()} cores, load average {load:.2f} before; {time.strftime('%Y-%m-%d')}.\n\n"
            + "\n".join(lines) + "\n\n" + "\n".join(steps) + "\n")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("binary", type=Path)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--peers", default="jointwise,burn,torch", help="of these; PyTorch always runs, for its losses")
    parser.add_argument("--recompute", default="elementwise,block", help="jointwise's, a row each: none is fastest, block takes least memory")
    parser.add_argument("--cuda", action="store_true", help="PyTorch and TRL on CUDA too")
    parser.add_argument("--warm", action="store_true", help="keep the caches of the run before; nothing with empty ones")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    if args.steps <= COLD_STEPS:
        parser.error(f"--steps {args.steps}: at least {COLD_STEPS + 1}")
    load, named = os.getloadavg()[0], args.peers.split(",")
    torch = Torch("cpu")
    jointwise = [Jointwise(args.binary.resolve(), recompute) for recompute in args.recompute.split(",")]
    ours = jointwise[0]
    peers = jointwise if "jointwise" in named else []
    peers += [Burn(ours.on_cpu)] if "burn" in named else []
    peers += [torch] + ([Torch("cuda"), Trl()] if args.cuda else [])
    results = [measure(peer, args.steps, args.warm) for peer in peers]
    for r in results:
        if r["peer"].key == "burn" and r["peer"].device != ours.device:
            sys.exit(f"Burn ran on {r['peer'].device}, jointwise on {ours.device}")
    worst = compare(results, next(r for r in results if r["peer"] is torch))
    command = shlex.join([str(Path(sys.argv[0]).name), *map(str, sys.argv[1:])])
    text = table(results, worst, load) + f"\nDriver: {ours.driver}. Command: `{command}`.\n"
    print(text)
    if args.out:
        args.out.write_text(text)


main()
