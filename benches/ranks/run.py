#!/usr/bin/env python3
"""What a second rank costs: seconds per step of one process, and of two ranks over shared memory and over a network of 1 Gbit/s between two
network namespaces, which are hosts to MPI. Each rank has one core, so that the second rank brings a core of its own.

usage: run.py JOINTWISE [--steps 5] [--rate 1gbit] [--out FILE.md]
needs root, Open MPI, ip and tc; JOINTWISE is built with `--features mpi`."""
import argparse, contextlib, json, os, platform, statistics, struct, subprocess, sys, tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
HOSTS = {"jwa": "10.77.0.1", "jwb": "10.77.0.2"}

# The shape of SmolLM2-135M, with random weights: time does not depend on them.
SHAPE = dict(hidden_size=576, intermediate_size=1536, num_hidden_layers=30, num_attention_heads=9, num_key_value_heads=3, head_dim=64,
             vocab_size=49152)


def write_model(folder):
    """Writes a model of SHAPE in bf16, with the demo's tokenizer."""
    demo = ROOT / "models/demo"
    folder.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        (folder / name).write_bytes((demo / name).read_bytes())
    config = json.loads((demo / "config.json").read_text()) | SHAPE
    (folder / "config.json").write_text(json.dumps(config))
    d, f, kv = SHAPE["hidden_size"], SHAPE["intermediate_size"], SHAPE["num_key_value_heads"] * SHAPE["head_dim"]
    shapes = {"model.embed_tokens.weight": [SHAPE["vocab_size"], d], "model.norm.weight": [d]}
    for i in range(SHAPE["num_hidden_layers"]):
        at = f"model.layers.{i}."
        shapes |= {at + f"self_attn.{name}_proj.weight": [rows, d] for name, rows in (("q", d), ("k", kv), ("v", kv), ("o", d))}
        shapes |= {at + "mlp.gate_proj.weight": [f, d], at + "mlp.up_proj.weight": [f, d], at + "mlp.down_proj.weight": [d, f]}
        shapes |= {at + "input_layernorm.weight": [d], at + "post_attention_layernorm.weight": [d]}
    header, end = {}, 0
    for name, shape in shapes.items():
        start, end = end, end + 2 * (shape[0] * (shape[1] if len(shape) > 1 else 1))
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    # A bf16's high byte: ±0.0078 to ±0.031.
    high = bytes(0x3C | (byte & 0x80) for byte in range(256))
    with open(folder / "model.safetensors", "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for shape in shapes.values():
            n = shape[0] * (shape[1] if len(shape) > 1 else 1)
            values = bytearray(b"\x80\x3f" * n) if len(shape) == 1 else bytearray(os.urandom(2 * n))
            if len(shape) > 1:
                values[1::2] = values[1::2].translate(high)
            file.write(values)


def write_rows(path, n=64):
    words = "the green leaf falls before red light and late rain makes a slow river".split()
    text = lambda seed, n: " ".join(words[(seed * 7 + 3 * k * k) % len(words)] for k in range(n))
    rows = ({"instruction": text(i, 24), "chosen": text(i + 1, 24), "rejected": text(i + 2, 24)} for i in range(n))
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def sh(command, **more):
    return subprocess.run(command, check=True, capture_output=True, text=True, **more)


@contextlib.contextmanager
def network(rate):
    """Two namespaces with a wire between them."""
    def remove():
        for name in HOSTS:
            subprocess.run(["ip", "netns", "del", name], capture_output=True)
    remove()
    try:
        for name in HOSTS:
            sh(["ip", "netns", "add", name])
        sh("ip link add jwva netns jwa type veth peer name jwvb netns jwb".split())
        for name, address in HOSTS.items():
            link = f"jwv{name[-1]}"
            sh(["ip", "-n", name, "addr", "add", f"{address}/24", "dev", link])
            for up in (link, "lo"):
                sh(["ip", "-n", name, "link", "set", up, "up"])
            sh(f"ip netns exec {name} tc qdisc add dev {link} root tbf rate {rate} burst 256kb latency 50ms".split())
        yield
    finally:
        remove()


def in_host(name, command):
    """The command on one of the hosts, whose name MPI sees too."""
    return ["ip", "netns", "exec", name, "unshare", "--uts", "sh", "-c", f'hostname {name}; exec "$@"', "sh", *command]


def agent(folder):
    """Starts MPI's helper on another host, in the place of ssh."""
    path = folder / "agent"
    names = "".join(f"{address}) host={name};; " for name, address in HOSTS.items())
    path.write_text(f'#!/bin/sh\nhost=$1; shift\ncase $host in {names}esac\n'
                    'exec ip netns exec "$host" unshare --uts sh -c "hostname $host; $*"\n')
    path.chmod(0o755)
    return path


class Bench:
    def __init__(self, program, folder, steps):
        self.program, self.folder, self.steps = program, folder, steps

    def rank(self, out, core, flags):
        command = ["taskset", "-c", str(core), self.program, "train", "--model", self.folder / "model", "--data", self.folder / "rows.jsonl",
                   "--output-dir", out, "--batch-size", "1", "--max-steps", self.steps, "--save-steps", "1000000", *flags]
        return [str(part) for part in command]

    def measure(self, name, command):
        """The medians of the steps after the first."""
        out = self.folder / name
        # One thread for lavapipe: the core that the rank has.
        env = dict(os.environ, LP_NUM_THREADS="1", OMPI_ALLOW_RUN_AS_ROOT="1", OMPI_ALLOW_RUN_AS_ROOT_CONFIRM="1")
        ran = subprocess.run(command(out), env=env, capture_output=True, text=True)
        if ran.returncode:
            sys.exit(f"{name}: status {ran.returncode}\n{ran.stderr[-3000:]}")
        lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()][1:]
        of = lambda key: statistics.median(line.get(key, 0) for line in lines)
        return {key: of(key) for key in ("seconds", "exchange_bytes", "exchange_seconds", "exchange_wait_seconds")}

    def rows(self, label, flags, rate):
        one = self.measure(f"{label}-one", lambda out: self.rank(out, 0, flags))
        yield label, "one process", one, one
        def local(out):
            return ["mpirun", "--bind-to", "none", "-n", "1", *self.rank(out, 0, flags), ":", "-n", "1", *self.rank(out, 1, flags)]
        yield label, "2 ranks, shared memory", self.measure(f"{label}-local", local), one
        def hosts(out):
            mca = ["--mca", "plm_rsh_agent", str(agent(self.folder)), "--mca", "btl", "self,tcp", "--mca", "btl_tcp_if_include", "10.77.0.0/24",
                   "--mca", "oob_tcp_if_include", "10.77.0.0/24"]
            return in_host("jwa", ["mpirun", *mca, "--bind-to", "none", "-x", "LP_NUM_THREADS", "-n", "1", "-H", HOSTS["jwa"], *self.rank(out, 0, flags),
                                   ":", "-n", "1", "-H", HOSTS["jwb"], *self.rank(out, 1, flags)])
        with network(rate):
            yield label, f"2 ranks, {rate}", self.measure(f"{label}-net", hosts), one


def main():
    parser = argparse.ArgumentParser(usage=__doc__)
    parser.add_argument("program", type=Path)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--rate", default="1gbit")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    lines = ["| what is trained | ranks | s/step | sent a step | exchange | of it waited for | share of a step | pairs/s against one |", "|---|---|---|---|---|---|---|---|"]
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        write_model(folder / "model")
        write_rows(folder / "rows.jsonl")
        bench = Bench(args.program.resolve(), folder, args.steps)
        settings = {"LoRA, r 16": ["--lora-r", "16"], "all": ["--full"], "all, bf16": ["--full", "--reduce-dtype", "bf16"]}
        for label, flags in settings.items():
            for label, ranks, found, one in bench.rows(label.replace(" ", "").replace(",", "-"), flags, args.rate):
                n = 1 if ranks == "one process" else 2
                line = (f"| {label} | {ranks} | {found['seconds']:.2f} | {found['exchange_bytes'] / 1e6:.1f} MB | {found['exchange_seconds']:.2f} s "
                        f"| {found['exchange_wait_seconds']:.2f} s | {100 * found['exchange_wait_seconds'] / found['seconds']:.1f} % "
                        f"| {n * one['seconds'] / found['seconds']:.2f} |")
                lines.append(line)
                print(line, flush=True)
    if args.out:
        args.out.write_text("\n".join(lines) + "\n")
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores; {args.steps} steps, medians of those after the first")


main()
