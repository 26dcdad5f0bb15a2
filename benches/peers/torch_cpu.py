#!/usr/bin/env python3
"""JPO steps of jointwise and of plain PyTorch on the CPU, side by side: the same checkpoint, rows, precision (f32) and optimiser, all
parameters. Losses are compared step by step before any time is printed.

usage: torch_cpu.py JOINTWISE [--steps 5] [--out FILE.md]      needs torch, safetensors"""
import argparse, json, os, random, resource, subprocess, sys, tempfile, time
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file

D, L, H, FF, V = 288, 6, 6, 768, 4096  # `llama-7m` of src/kernels/shapes.rs
E = D // H
PAIRS, LENGTH, INSTRUCTION = 4, 256, 85
BETA, RATE = 0.1, 1e-4


def checkpoint(folder, generator):
    """A Llama with random weights, and a tokenizer whose words are its ids: w0 .. w4095."""
    config = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": D, "num_attention_heads": H,
              "num_key_value_heads": H, "intermediate_size": FF, "vocab_size": V, "num_hidden_layers": L, "tie_word_embeddings": True,
              "max_position_embeddings": 1024, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "hidden_act": "silu"}
    weight = lambda *shape: torch.randn(*shape, generator=generator) * 0.02
    w = {"model.embed_tokens.weight": weight(V, D), "model.norm.weight": torch.ones(D)}
    for i in range(L):
        for name, shape in [("self_attn.q_proj", (D, D)), ("self_attn.k_proj", (D, D)), ("self_attn.v_proj", (D, D)), ("self_attn.o_proj", (D, D)),
                            ("mlp.gate_proj", (FF, D)), ("mlp.up_proj", (FF, D)), ("mlp.down_proj", (D, FF))]:
            w[f"model.layers.{i}.{name}.weight"] = weight(*shape)
        for name in ("input_layernorm", "post_attention_layernorm"):
            w[f"model.layers.{i}.{name}.weight"] = torch.ones(D)
    save_file(w, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config))
    tokenizer = {"version": "1.0", "truncation": None, "padding": None, "added_tokens": [], "normalizer": None,
                 "pre_tokenizer": {"type": "WhitespaceSplit"}, "post_processor": None, "decoder": None,
                 "model": {"type": "WordLevel", "vocab": {f"w{i}": i for i in range(V)}, "unk_token": "w0"}}
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    (folder / "tokenizer_config.json").write_text(json.dumps({"bos_token": None, "eos_token": None}))
    return w


def rows(steps, rng):
    return [[[rng.randrange(V) for _ in range(LENGTH)] for _ in range(2)] for _ in range(PAIRS * steps)]


def ours(binary, folder, pairs, steps):
    text = lambda ids: "".join(f" w{i}" for i in ids)
    line = lambda p: json.dumps({"i_chosen": text(p[0][:INSTRUCTION]), "r_chosen": text(p[0][INSTRUCTION:]),
                                 "i_reject": text(p[1][:INSTRUCTION]), "r_reject": text(p[1][INSTRUCTION:])})
    (folder / "rows.jsonl").write_text("\n".join(map(line, pairs)) + "\n")
    command = [binary, "train", "--model", folder, "--data", folder / "rows.jsonl", "--template", "none", "--full", "--batch-size", PAIRS,
               "--max-steps", steps, "--no-shuffle", "--learning-rate", RATE, "--lr-scheduler-type", "constant", "--beta", BETA,
               "--output-dir", folder / "out", "--json"]
    env = dict(os.environ, XDG_CACHE_HOME=str(folder / "cache"))
    started = time.time()
    ran = subprocess.run([str(c) for c in command], capture_output=True, text=True, env=env)
    if ran.returncode:
        sys.exit(f"jointwise: {ran.stderr}")
    lines = [json.loads(l) for l in open(folder / "out" / "metrics.jsonl")]
    rss = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
    return {"losses": [l["loss"] for l in lines], "seconds": [l["seconds"] for l in lines], "total": time.time() - started, "rss": rss,
            "device_bytes": json.loads(ran.stdout.splitlines()[-1])["peak_bytes"]}


def theirs(w, pairs, steps):
    w = {k: v.clone().requires_grad_() for k, v in w.items()}
    angle = torch.arange(LENGTH)[:, None] / 10000.0 ** (torch.arange(0, E, 2) / E)
    cos, sin = torch.cat([angle.cos()] * 2, -1), torch.cat([angle.sin()] * 2, -1)
    turn = lambda x: x * cos + torch.cat([-x[..., E // 2:], x[..., : E // 2]], -1) * sin
    norm = lambda x, name: F.rms_norm(x, (D,), w[name + ".weight"], 1e-5)

    def scores(ids):
        x = F.embedding(ids, w["model.embed_tokens.weight"])
        for i in range(L):
            p = f"model.layers.{i}."
            lin = lambda x, name: x @ w[p + name + ".weight"].T
            heads = lambda x: x.view(len(ids), LENGTH, H, E).transpose(1, 2)
            h = norm(x, p + "input_layernorm")
            q, k, v = turn(heads(lin(h, "self_attn.q_proj"))), turn(heads(lin(h, "self_attn.k_proj"))), heads(lin(h, "self_attn.v_proj"))
            o = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).reshape(len(ids), LENGTH, D)
            x = x + lin(o, "self_attn.o_proj")
            h = norm(x, p + "post_attention_layernorm")
            x = x + lin(F.silu(lin(h, "mlp.gate_proj")) * lin(h, "mlp.up_proj"), "mlp.down_proj")
        logits = norm(x, "model.norm") @ w["model.embed_tokens.weight"].T
        return F.log_softmax(logits, -1)[:, :-1].gather(2, ids[:, 1:, None]).squeeze(-1).sum(1)

    batch = lambda step: torch.tensor([side for pair in pairs[step * PAIRS:(step + 1) * PAIRS] for side in pair])
    with torch.no_grad():
        reference = [scores(batch(s)) for s in range(steps)]
    optimiser = torch.optim.AdamW(w.values(), lr=RATE, weight_decay=0.0)
    losses, seconds = [], []
    for step in range(steps):
        started = time.time()
        s = scores(batch(step)) - reference[step]
        loss = -F.logsigmoid(BETA * (s[0::2] - s[1::2])).mean()
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(w.values(), 1.0)
        optimiser.step()
        losses.append(loss.item())
        seconds.append(time.time() - started)
    return {"losses": losses, "seconds": seconds, "rss": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("binary")
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--out")
    args = parser.parse_args()
    torch.set_num_threads(os.cpu_count())
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        w = checkpoint(folder, torch.Generator().manual_seed(0))
        pairs = rows(args.steps, random.Random(0))
        a = ours(args.binary, folder, pairs, args.steps)
        b = theirs(w, pairs, args.steps)
    worst = max(abs(x - y) for x, y in zip(a["losses"], b["losses"]))
    if worst > 1e-3 or len(a["losses"]) != args.steps:
        sys.exit(f"losses differ by {worst:.2e}: {a['losses']} {b['losses']}")
    middle = lambda times: sorted(times[1:])[len(times[1:]) // 2]
    mib = lambda n: f"{n / 2**20:.0f} MiB"
    info = json.loads(subprocess.run([args.binary, "info", "--json"], capture_output=True, text=True).stdout)["device"]
    text = f"""JPO step, all parameters, f32: Llama D {D}, L {L}, H {H}, F {FF}, V {V}, tied; {PAIRS} pairs of 2 × {LENGTH} tokens; {os.cpu_count()} cores;
{time.strftime("%Y-%m-%d")}. Losses of {args.steps} steps differ by at most {worst:.1e}.

| | first step | step (median of the others) | tokens/s | memory |
|---|---|---|---|---|
| jointwise, {info["name"]}, {info["driver"]} | {a["seconds"][0]:.2f} s | {middle(a["seconds"]):.3f} s | {PAIRS * 2 * LENGTH / middle(a["seconds"]):.0f} | {mib(a["device_bytes"])} of device memory, {mib(a["rss"])} resident |
| PyTorch {torch.__version__}, CPU | {b["seconds"][0]:.2f} s | {middle(b["seconds"]):.3f} s | {PAIRS * 2 * LENGTH / middle(b["seconds"]):.0f} | {mib(b["rss"])} resident |

PyTorch takes {middle(a["seconds"]) / middle(b["seconds"]):.1f} times less.
"""
    print(text)
    if args.out:
        Path(args.out).write_text(text)


main()
